"""`check`: two files, one verdict, whoever made the second."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import files, receipt
from ..report.findings import is_left, would_fold
from .documents import source_dict
from .output import Console, width
from .settings import Checking

if TYPE_CHECKING:
    from ..check.verdict import CheckResult, Verdict
    from ..files import ModelFile


_OF_POWER = ("samples", "seed", "inputs", "shapes", "threads")  # the options that the planted faults are judged with


def run_check(
    original: Path,
    candidate: Path,
    checking: Checking,
    accept: frozenset[str],
    console: Console,
    *,
    power: bool = False,
) -> int:
    """`bnfold check`: returns the exit code. power: plant faults, and say how many were caught."""
    console.clear_of(original, candidate)
    from ..check import check
    from ..fold import fold

    arguments = checking.arguments()
    with console.progress(3 if power else 2) as step:
        step("reading")
        pair = [files.load(path) for path in (original, candidate)]
        inside: dict[str, Any] = fold(candidate).report.to_dict() if console.fail_on_unfolded else {}
        step("checking")
        result = check(original, candidate, **arguments)
        planted = None
        if power:
            from ..check.power import power as power_of

            step("planting faults")
            planted = power_of(original, **{name: arguments[name] for name in _OF_POWER})
    left = _left(inside)
    held = receipt.read(candidate, pair[1].model)
    if held is not None:
        same = "this original" if held.source_sha256 == pair[0].sha256 else "another file than this original"
        left.append(f"receipt the candidate says that it was made from {same}")
    lines = [] if planted is None else str(planted).splitlines()
    console.say("\n".join([*str(result).splitlines()[:-1], *left, *lines, ""]))
    word, sentence, code = _verdict(result, len(left) - (held is not None), accept)

    def parts() -> dict[str, Any]:
        source, other = (_about(each) for each in pair)
        found = result.to_dict() if planted is None else {**result.to_dict(), "power": planted.to_dict()}
        return {"source": source, "result": other, **inside, "check": found}

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


def run_receipt(path: Path, source: Path | None, console: Console) -> int:
    """`bnfold check MODEL`: what the model's receipt says, and whether it still speaks of this file."""
    console.clear_of(path, source)
    with console.progress(1) as step:
        step("reading")
        model = files.load(path)
        found = receipt.read(path, model.model)
        origin = None if source is None else files.load(source)
    verdict, sentence = _told(found, None if origin is None else origin.sha256, source)
    code = verdict.exit_code
    if found is not None:
        lines = [f"source  sha256 {found.source_sha256}", f"folded  {found.folded} of {found.sources} sources"]
        lines += [f"found   {found.verdict}: {found.sentence}"] if found.sentence else [f"found   {found.verdict}"]
        console.say("\n".join([f"receipt by bnfold {found.version}", *lines, ""]))

    def parts() -> dict[str, Any]:
        told: dict[str, Any] = {"verdict": verdict.value, "sentence": sentence, "exit_code": code}
        told["receipt"] = None if found is None else found.to_dict()
        return {"source": None if origin is None else _about(origin), "result": _about(model), "check": told}

    return console.finish("check", verdict.name, sentence, code, parts)


def _told(found: receipt.Receipt | None, digest: str | None, source: Path | None) -> tuple[Verdict, str]:
    """The verdict that a receipt supports: its own, if it speaks of this file and of the source given."""
    from ..check.verdict import Verdict

    ask = "give the original too: bnfold check ORIGINAL MODEL"
    if found is None:
        return Verdict.INCONCLUSIVE, f"the model holds no receipt; {ask}"
    if found.verdict not in Verdict.__members__:
        return Verdict.INCONCLUSIVE, f"its receipt says that it was not checked; {ask}"
    if not found.intact:
        return Verdict.INCONCLUSIVE, f"the file was changed after its receipt was written; {ask}"
    if digest is not None and digest != found.source_sha256:
        return Verdict.INCONCLUSIVE, f"its receipt names another source than {source}; {ask}"
    made = "the source given" if digest is not None else "a source that was not given"
    return Verdict[found.verdict], f"so its receipt says, of the file as it stands, made from {made}"


def _about(model: ModelFile) -> dict[str, object]:
    opset = next((entry.version for entry in model.model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    return source_dict(model, model.sha256, opset, len(model.model.graph.node))
