"""`python -m benchmarks faults FOLDER ...`: known faults planted in the folds of real models, and who catches them.

For every .onnx under the folders and every seed: `power` plants the faults and judges each. The fold without a fault is
checked as bnfold's own and as a file of unknown make: it must raise no alarm.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import click

import bnfold
from bnfold.check.power import Outcome, power
from bnfold.errors import BnfoldError
from bnfold.fold import fold_leaving

ENOUGH = 0.99  # of the planted faults


def row(path: Path, seeds: int, per_fault: int, samples: int | None) -> tuple[list[Outcome], int, str]:
    """The planted faults of all seeds, the false alarms, and a remark."""
    outcomes: list[Outcome] = []
    alarms = 0
    remark = ""
    for seed in range(seeds):
        found = power(path, per_fault=per_fault, samples=samples, seed=seed)
        if not found.folded:
            return outcomes, 0, found.warnings[0]
        outcomes += found.outcomes
        own = bnfold.fold(path).check(samples=samples, seed=seed)
        if own.flipped:  # as `bnfold MODEL` does: a source in front of an op that rounds stays, if the integers change
            own = fold_leaving(path, own.flipped).check(samples=samples, seed=seed)
        judged = own.verdict.name != "INCONCLUSIVE"
        alarms += bool(found.alarm) or (judged and not own)
        remark = remark or found.alarm or found.without or ("" if own or not judged else own.sentence)
    return outcomes, alarms, remark


def cells(outcomes: Sequence[Outcome]) -> str:
    """planted | gate 1 | gate 3 (a) | gate 3 (b) | any | not shown by the inputs"""
    asked = [each for each in outcomes if each.same_function is not None]
    numbers = (
        len(outcomes),
        sum(bool(each.gate1) for each in outcomes),
        sum(bool(each.same_function) for each in asked) if asked else "-",
        sum(bool(each.arithmetic) for each in asked) if asked else "-",
        sum(each.caught for each in outcomes),
        sum(not each.by_gate3 for each in asked) if asked else "-",
    )
    return " | ".join(map(str, numbers))


@click.command("faults")
@click.argument("folders", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--seeds", default=5, show_default=True)
@click.option("--per-fault", default=4, show_default=True, help="Faults of each kind, for each model and seed.")
@click.option("--samples", type=int, help="Inputs of each check. Default: the check's own number.")
def faults_command(folders: tuple[Path, ...], seeds: int, per_fault: int, samples: int | None) -> None:
    """Plant faults in the folds of all models under FOLDERS; fail below 99 % caught, or on a false alarm."""
    paths = [path for folder in folders for path in sorted(folder.rglob("*.onnx")) if ".folded" not in path.name]
    click.echo("| model | planted | gate 1 | gate 3 (a) | gate 3 (b) | caught | not at the outputs | alarms | |")
    click.echo("|---|---|---|---|---|---|---|---|---|")
    everything: list[Outcome] = []
    alarms = 0
    for path in paths:
        label = path.parent.name if path.stem.lower() in ("model", "quant_model") else path.stem
        start = time.perf_counter()
        try:
            outcomes, raised, remark = row(path, seeds, per_fault, samples)
        except BnfoldError as error:
            click.echo(f"| {label} | {error} |")
            continue
        click.echo(f"| {label} | {cells(outcomes)} | {raised} | {remark} |")
        click.echo(f"{label}: {time.perf_counter() - start:.0f} s", err=True)
        for each in (each for each in outcomes if not each.caught):
            click.echo(f"{label}: missed {each}", err=True)
        everything += outcomes
        alarms += raised
    click.echo(f"| **all** | {cells(everything)} | {alarms} | |")
    caught = sum(each.caught for each in everything)
    if alarms or caught < ENOUGH * len(everything):
        raise click.ClickException(f"{caught} of {len(everything)} faults caught, {alarms} false alarms")
