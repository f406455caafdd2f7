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


def run_check(original: Path, candidate: Path, checking: Checking, console: Console) -> int:
    """`bnfold check`: returns the exit code."""
    from ..check import check

    arguments = checking.arguments()
    with console.progress(2) as step:
        step("reading")
        pair = [files.load(path) for path in (original, candidate)]
        step("checking")
        result = check(original, candidate, **arguments)
    if console.json:
        source, other = (_about(each) for each in pair)
        console.document(document(source=source, result=other, check=result.to_dict()))
        return result.exit_code
    *lines, _ = str(result).splitlines()
    console.say("\n".join([*lines, ""]))
    console.verdict(result.verdict.name, result.sentence, good=result.exit_code == 0)
    return result.exit_code


def _about(model: ModelFile) -> dict[str, object]:
    opset = next((entry.version for entry in model.model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    return source_dict(model, model.sha256, opset, len(model.model.graph.node))
