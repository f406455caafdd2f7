"""The commands and their options. `bnfold MODEL` is `bnfold fold MODEL`; a file called `check` is reachable as ./check.

Everything heavy is imported inside a command, so that --help and --version answer at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .. import hashing
from . import shared
from .options import chosen, chosen_form, is_torch
from .output import Console
from .startup import to_compute, to_fold_alone

_EXIT_CODES = (
    ("0", "equivalent, or nothing to fold"),
    ("1", "not equivalent; or --fail-on-unfolded and a normalization was left"),
    ("2", "usage, unreadable or unsupported model, or a bug in bnfold (which says so)"),
    ("3", "inconclusive: the check could not decide"),
    ("130", "interrupted; nothing was written"),
)


class DefaultGroup(click.Group):
    """A group whose first argument may be a model: then the command is `fold`."""

    default = "fold"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h", "--version"):
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return ["MODEL [OPTIONS]  |  COMMAND ..."]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_commands(ctx, formatter)
        fold = self.commands[self.default]
        options = [each for each in fold.params if isinstance(each, click.Option)]
        rows = [row for row in (each.get_help_record(ctx) for each in options) if row is not None]
        with formatter.section("Options of fold"):
            formatter.write_dl([*rows, ("-h, --help", "Show this message and exit.")])
        with formatter.section("Exit codes"):
            formatter.write_dl(_EXIT_CODES)


@click.group(cls=DefaultGroup, context_settings={"help_option_names": ["-h", "--help"]})
@shared.version
def bnfold() -> None:
    """Fold every BatchNormalization of an ONNX model into the weights beside it, prove that nothing changed, and say
    why when one stays.

    `bnfold net.onnx` writes net.folded.onnx beside it. A file that is called like a command is reachable as ./check.
    """


@bnfold.command("fold")
@shared.model()
@shared.output("folded")
@shared.weights
@shared.force
@shared.in_place
@click.option("--dry-run", is_flag=True, help="Fold and check, but write nothing.")
@click.option("--no-check", is_flag=True, help="Do not compare the result with the original.")
@click.option(
    "--accept",
    type=click.Choice(["degraded", "certificate", "any"]),
    multiple=True,
    help="Write a result that did not pass: one of lower accuracy; one that only the certificate vouches for; "
    "any. Repeatable; the exit code stays.",
)
@shared.fail_on_unfolded
@click.option(
    "--rescue",
    is_flag=True,
    help="If the result does not pass, leave out the sources to blame and write the largest fold that does.",
)
@click.option("--no-receipt", is_flag=True, help="Write no receipt of the check into OUT's metadata.")
@click.option(
    "--keep-statistics",
    is_flag=True,
    help="Keep what the fold replaces in OUT.bnfold, a sidecar from which `bnfold unfold` gives MODEL back.",
)
@shared.max_drift
@shared.what_to_fold
@shared.how_to_check
@shared.how_to_say
@click.option("-v", "--verbose", is_flag=True, help="List every fold with its path, and every source that stays.")
@shared.version
def fold(
    model: Path,
    output: Path | None,
    weights: Path | None,
    force: bool,
    in_place: bool,
    dry_run: bool,
    no_check: bool,
    accept: tuple[str, ...],
    fail_on_unfolded: bool,
    no_receipt: bool,
    rescue: bool,
    keep_statistics: bool,
    max_drift: float | None,
    **others: Any,
) -> int:
    """Fold MODEL, check the result against it, and write it. This is what `bnfold MODEL` does."""
    if not (no_receipt or dry_run):
        hashing.begin(model)  # beside the imports
    in_torch = is_torch(model)
    only_folds = no_check and max_drift is None and not in_torch
    if only_folds:
        to_fold_alone()
    from .folding import run
    from .settings import Checking, Selection, Writing

    console = _console(others, fail_on_unfolded=fail_on_unfolded, only_folds=only_folds)
    selection, checking = chosen(Selection, others), chosen(Checking, others, wanted=not no_check)
    writing = Writing(
        output,
        force,
        in_place,
        dry_run,
        frozenset(accept),
        fail_on_unfolded,
        not no_receipt,
        rescue,
        max_drift,
        keep_statistics,
    )
    with console.reporting():
        if in_torch:
            from .torch_models import run_torch

            return run_torch(model, weights, selection, checking, writing, console)
        if weights is not None:
            raise click.UsageError("--weights goes with package.module:factory as MODEL.")
        return run(model, selection, checking, writing, console)


@bnfold.command("explain")
@shared.model()
@shared.weights
@shared.shape("With package.module:factory as MODEL: the shape of an input, as in x:1,3,224,224; repeatable.")
@shared.what_to_fold
@shared.how_to_say
def explain(model: Path, weights: Path | None, shapes: dict[str, tuple[int, ...]], **others: Any) -> int:
    """Say where each affine of MODEL goes, or why not. Writes nothing."""
    in_torch = is_torch(model)
    if not in_torch:
        to_fold_alone()
    from .folding import run_explain
    from .settings import Checking, Selection

    console = _console(others, only_folds=not in_torch)
    selection = chosen(Selection, others)
    with console.reporting():
        if in_torch:
            from .torch_models import explain_torch

            return explain_torch(model, weights, selection, Checking(False, None, (), shapes, 0, None), console)
        if weights is not None or shapes:
            raise click.UsageError("--weights and --shape go with package.module:factory as MODEL.")
        return run_explain(model, selection, console)


@bnfold.command("check")
@shared.model("original")
@shared.model("candidate", required=False)
@click.option(
    "--source",
    type=shared.FILE,
    metavar="FILE",
    help="With a single MODEL: the file that its receipt must name as its source.",
)
@click.option(
    "--accept",
    type=click.Choice(["degraded"]),
    multiple=True,
    help="Exit 0 for this verdict too: the same function at a lower accuracy.",
)
@shared.fail_on_unfolded
@click.option(
    "--certificate-only",
    is_flag=True,
    help="Run nothing: fold ORIGINAL again and compare every weight of CANDIDATE. For folds that bnfold made.",
)
@click.option("--power", is_flag=True, help="Plant known faults in a fold of ORIGINAL and say how many are caught.")
@shared.how_to_check
@shared.how_to_say
def check(
    original: Path,
    candidate: Path | None,
    source: Path | None,
    accept: tuple[str, ...],
    fail_on_unfolded: bool,
    power: bool,
    **others: Any,
) -> int:
    """Is CANDIDATE the same function as ORIGINAL? Whoever made it. Writes nothing.

    A single MODEL: what does its receipt say, and is it still the file that was checked?
    """
    from .checking import run_check, run_receipt
    from .settings import Checking

    if candidate is not None and source is not None:
        raise click.UsageError("--source goes with a single MODEL; two models are compared with each other.")
    console = _console(others, fail_on_unfolded=fail_on_unfolded)
    with console.reporting():
        if candidate is None:
            return run_receipt(original, source, console)
        checking = chosen(Checking, others, wanted=True)
        return run_check(original, candidate, checking, frozenset(accept), console, power=power)


@bnfold.command("bench")
@shared.model()
@shared.model("candidate", required=False)
@shared.how_to_time
@shared.how_to_say
def bench(model: Path, candidate: Path | None, **others: Any) -> int:
    """Time MODEL against its fold (or CANDIDATE) in ONNX Runtime.

    Session creation and runs, in turn, with all optimisations; and how many kernels a run launches. Writes nothing.
    """
    from .bench import Timing, run_bench

    console = _console(others)
    with console.reporting():
        return run_bench(model, candidate, chosen(Timing, others), console)


@bnfold.command("unfold")
@shared.model()
@shared.output("unfolded", "the source")
@shared.force
@shared.how_to_say
def unfold(model: Path, output: Path | None, force: bool, **others: Any) -> int:
    """Give back, byte for byte, the file that MODEL was folded from.

    MODEL.bnfold must be beside it: the sidecar that `bnfold fold --keep-statistics` writes.
    """
    from .unfolding import run_unfold

    console = _console(others)
    with console.reporting():
        return run_unfold(model, output, console, force=force)


@bnfold.group("stats")
def stats() -> None:
    """Measure a model's statistics on data, and put the data's in place."""


@stats.command("drift")
@shared.model()
@shared.max_drift
@shared.how_to_measure
@shared.how_to_say
def stats_drift(model: Path, max_drift: float | None, **others: Any) -> int:
    """How far the stored statistics of MODEL are from those of what its BatchNormalizations are fed. Writes nothing."""
    from .stats import Measuring, run_drift
    from .torch_stats import run_torch_drift

    console = _console(others)
    run = run_torch_drift if is_torch(model) else run_drift
    with console.reporting():
        return run(model, chosen(Measuring, others), max_drift, console)


@stats.command("refresh")
@shared.model()
@shared.output("refreshed")
@shared.force
@shared.in_place
@shared.how_to_measure
@shared.how_to_say
def stats_refresh(model: Path, output: Path | None, force: bool, in_place: bool, **others: Any) -> int:
    """Give the BatchNormalizations of MODEL the mean and variance of the data, layer after layer."""
    from .options import destination
    from .stats import Measuring, run_refresh
    from .torch_stats import run_torch_refresh

    console = _console(others)
    measuring = chosen(Measuring, others)
    with console.reporting():
        if is_torch(model):
            return run_torch_refresh(model, measuring, output, console, force=force, in_place=in_place)
        target = destination(model, output, in_place=in_place, dry_run=False, force=force, made="refreshed")
        assert target is not None, "only a dry run has none"
        return run_refresh(model, measuring, target, force=force, in_place=in_place, console=console)


@bnfold.command("hook")
@click.argument("models", type=shared.FILE, nargs=-1, required=True)
def hook(models: tuple[Path, ...]) -> int:
    """Say which MODELS still hold what would fold; runs nothing.

    What the pre-commit hook runs. A normalization that would fold is a failure, and so is a MODEL.folded.onnx that is
    not, weight for weight, the fold of the MODEL.onnx beside it. A model with its fold beside it need not be folded.
    """
    from .hook import run_hook

    to_compute()
    return run_hook(models)


@bnfold.command("doctor")
@shared.timeout
@shared.how_to_say
def doctor(timeout: float | None, **others: Any) -> int:
    """Try each execution provider on one node.

    Lists what is installed, finds packages that are in each other's way, and says which commands repair it.
    """
    from .doctor import run_doctor

    console = _console(others)
    with console.reporting():
        return run_doctor(console, timeout)


def _console(given: dict[str, Any], *, fail_on_unfolded: bool = False, only_folds: bool = False) -> Console:
    if not only_folds:
        to_compute()
    form = chosen_form(click.get_current_context(), given["as_json"], given["form"])
    return Console(given["quiet"], given.get("verbose", False), form, given["reports"], fail_on_unfolded)
