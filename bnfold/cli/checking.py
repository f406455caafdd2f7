"""`check`: two files, one verdict, whoever made the second."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .. import files
from ..report.json import document
from .folding import Checking, source_dict
from .output import Console

if TYPE_CHECKING:
    from ..files import ModelFile


_OF_POWER = ("samples", "seed", "inputs", "shapes", "threads")  # the options that the planted faults are judged with


def run_check(original: Path, candidate: Path, checking: Checking, console: Console, *, power: bool = False) -> int:
    """`bnfold check`: returns the exit code, that of the verdict. power: plant faults, and say how many were caught."""
    from ..check import check

    arguments = checking.arguments()
    with console.progress(3 if power else 2) as step:
        step("reading")
        pair = [files.load(path) for path in (original, candidate)]
        step("checking")
        result = check(original, candidate, **arguments)
        planted = None
        if power:
            from ..check.power import power as power_of

            step("planting faults")
            planted = power_of(original, **{name: arguments[name] for name in _OF_POWER})
    if console.json:
        source, other = (_about(each) for each in pair)
        found = result.to_dict() if planted is None else {**result.to_dict(), "power": planted.to_dict()}
        console.document(document(source=source, result=other, check=found))
        return result.exit_code
    *lines, _ = str(result).splitlines()
    console.say("\n".join([*lines, *([] if planted is None else str(planted).splitlines()), ""]))
    console.verdict(result.verdict.name, result.sentence, good=result.exit_code == 0)
    return result.exit_code


def _about(model: ModelFile) -> dict[str, object]:
    opset = next((entry.version for entry in model.model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    return source_dict(model, model.sha256, opset, len(model.model.graph.node))
