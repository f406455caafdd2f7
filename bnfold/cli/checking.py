"""`check`: two files, one verdict, whoever made the second."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import files
from ..report.findings import is_left, would_fold
from .folding import Checking, source_dict
from .output import Console, width

if TYPE_CHECKING:
    from ..check.verdict import CheckResult
    from ..files import ModelFile


def run_check(original: Path, candidate: Path, checking: Checking, accept: frozenset[str], console: Console) -> int:
    """`bnfold check`: returns the exit code."""
    console.clear_of(original, candidate)
    from ..check import check
    from ..fold import fold

    arguments = checking.arguments()
    with console.progress(2) as step:
        step("reading")
        pair = [files.load(path) for path in (original, candidate)]
        inside: dict[str, Any] = fold(candidate).report.to_dict() if console.fail_on_unfolded else {}
        step("checking")
        result = check(original, candidate, **arguments)
    left = _left(inside)
    console.say("\n".join([*str(result).splitlines()[:-1], *left, ""]))
    word, sentence, code = _verdict(result, len(left), accept)

    def parts() -> dict[str, Any]:
        source, other = (_about(each) for each in pair)
        return {"source": source, "result": other, **inside, "check": result.to_dict()}

    return console.finish("check", word, sentence, code, parts)


def _verdict(result: CheckResult, left: int, accept: frozenset[str]) -> tuple[str, str, int]:
    word, sentence, code = result.verdict.name, result.sentence, result.exit_code
    if code and word.lower() in accept:
        code, sentence = 0, f"{sentence.rstrip('.')}; accepted (--accept {word.lower()})."
    if code == 0 and left:
        are = "normalization is" if left == 1 else "normalizations are"
        return "UNFOLDED", f"{left} {are} left in the candidate (--fail-on-unfolded); {word}.", 1
    return word, sentence, code


def _left(inside: dict[str, Any]) -> list[str]:
    """A paragraph for each normalization that the candidate holds, whether it would fold or not."""
    sentences = [would_fold(each) for each in inside.get("folded", ()) if is_left(each)]
    sentences += [
        f"{', '.join(each['nodes'])} ({each['op']}) stays: {each['reason']}: {each['message']}"
        for each in inside.get("kept", ())
        if is_left(each)
    ]
    options: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
    return [
        textwrap.fill(each, max(width(), 40), initial_indent="left    ", subsequent_indent=" " * 8, **options)
        for each in sentences
    ]


def _about(model: ModelFile) -> dict[str, object]:
    opset = next((entry.version for entry in model.model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    return source_dict(model, model.sha256, opset, len(model.model.graph.node))
