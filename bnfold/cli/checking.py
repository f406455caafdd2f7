"""`check`: two files, one verdict, whoever made the second."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .. import files, receipt
from ..report.json import document
from .folding import Checking, source_dict
from .output import Console

if TYPE_CHECKING:
    from ..check.verdict import Verdict
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
    held = receipt.read(candidate, pair[1].model)
    if held is not None:
        same = "this original" if held.source_sha256 == pair[0].sha256 else "another file than this original"
        lines.append(f"receipt the candidate says that it was made from {same}")
    console.say("\n".join([*lines, ""]))
    console.verdict(result.verdict.name, result.sentence, good=result.exit_code == 0)
    return result.exit_code


def run_receipt(path: Path, source: Path | None, console: Console) -> int:
    """`bnfold check MODEL`: what the model's receipt says, and whether it still speaks of this file."""
    with console.progress(1) as step:
        step("reading")
        model = files.load(path)
        found = receipt.read(path, model.model)
        origin = None if source is None else files.load(source)
    verdict, sentence = _told(found, None if origin is None else origin.sha256, source)
    code = verdict.exit_code
    if console.json:
        told: dict[str, object] = {"verdict": verdict.value, "sentence": sentence, "exit_code": code}
        told["receipt"] = None if found is None else found.to_dict()
        about = None if origin is None else _about(origin)
        console.document(document(source=about, result=_about(model), check=told))
        return code
    if found is not None:
        lines = [f"source  sha256 {found.source_sha256}", f"folded  {found.folded} of {found.sources} sources"]
        lines += [f"found   {found.verdict}: {found.sentence}"] if found.sentence else [f"found   {found.verdict}"]
        console.say("\n".join([f"receipt by bnfold {found.version}", *lines, ""]))
    console.verdict(verdict.name, sentence, good=code == 0)
    return code


def _told(found: receipt.Receipt | None, digest: str | None, source: Path | None) -> tuple[Verdict, str]:
    """The verdict that a receipt supports: its own, if it speaks of this file and of the source given."""
    from ..check.verdict import Verdict

    ask = "give the original too: bnfold check ORIGINAL MODEL"
    if found is None:
        return Verdict.INCONCLUSIVE, f"the model holds no receipt; {ask}"
    if not found.intact:
        return Verdict.INCONCLUSIVE, f"the file was changed after its receipt was written; {ask}"
    if digest is not None and digest != found.source_sha256:
        return Verdict.INCONCLUSIVE, f"its receipt names another source than {source}; {ask}"
    if found.verdict not in Verdict.__members__:
        return Verdict.INCONCLUSIVE, f"its receipt says that it was not checked; {ask}"
    made = "the source given" if digest is not None else "a source that was not given"
    return Verdict[found.verdict], f"so its receipt says, of the file as it stands, made from {made}"


def _about(model: ModelFile) -> dict[str, object]:
    opset = next((entry.version for entry in model.model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    return source_dict(model, model.sha256, opset, len(model.model.graph.node))
