"""`bnfold model.pt2` and `bnfold package.module:factory --weights w.pth`: PyTorch models on the command line.

Both are folded as exported programs; what is written is a .pt2 archive or, by torch.onnx.export, an ONNX file.
"""
# torch may not be installed, and leaves parts of its interface untyped where it is.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import files
from ..errors import UsageError
from ..report.text import explanation, fold_table
from .documents import explained, folded_of, result_dict, that_stay
from .options import destination, is_archive
from .output import Console, width
from .settings import Checking, Selection, Writing
from .torch_loading import Loaded, load
from .torch_stats import gate

if TYPE_CHECKING:
    from ..pytorch import ProgramFold

_CHECKING = {"wanted", "shapes", "seed", "samples", "tf32", "ranges", "inputs", "providers"}  # what applies here too
_OPTIONS = {"providers": "provider", "custom_ops": "custom-ops"}  # fields that are not called like their options


def run_torch(
    model: Path, weights: Path | None, selection: Selection, checking: Checking, writing: Writing, console: Console
) -> int:
    """Fold it, check it with torch as the judge, write it. Returns the exit code."""
    _only_what_applies(selection, checking, writing)
    archive = is_archive(model)
    if not archive and writing.out is None and not writing.dry_run:
        raise UsageError("Say with --output where the result goes: a .pt2 or .onnx file; or give --dry-run.")
    target = destination(model, writing.out, in_place=writing.in_place, dry_run=writing.dry_run, force=writing.force)
    if target is not None and target.suffix not in (".pt2", ".onnx"):
        raise UsageError(f"{target}: a PyTorch model is written as .pt2 or .onnx.")
    console.clear_of(model if archive else None, target)
    drift = gate(model, weights, checking, writing.max_drift)
    if drift is not None:
        if drift.code:
            return drift.refused(console)
        checking = checking._replace(inputs=())  # its rows are the data's, not those that the program was made for
    loaded, result = _folded(model, weights, selection, checking)
    check = None
    if checking.wanted:
        how: dict[str, Any] = {"seed": checking.seed, "tf32": checking.tf32, "ranges": checking.ranges}
        samples = (checking.samples or 2) + 1 + len(loaded.samples)
        check = result.check(samples=samples, inputs=loaded.samples, **how)
    console.say(fold_table(result.report, verbose=console.verbose, width=width()))
    if check is not None:
        console.say("\n" + "\n".join(str(check).splitlines()[:-1]))
    console.say("")
    if drift is not None:
        console.say(f"note: Statistics {drift.word.lower()}: {drift.sentence}\n")
    accepted = writing.accepts(check)
    written: list[Path] = []
    distance = ""
    if target is not None and accepted is not None:
        with files.Staging(target) as stage:
            distance = _write(result, stage.path, compare=check is not None)
            written = stage.commit()
    code = 0 if check is None else check.exit_code
    where = f"wrote {written[0]}{distance}" if written else "nothing was written"
    folded = f"{folded_of(result.report)} folded"
    word, sentence = ("NOT CHECKED", f"{folded}; {where}.") if check is None else (check.verdict.name, "")
    if check is not None:
        sentence = f"{folded}; {where}." if check else f"{check.sentence}; {where}."
    if code == 0 and writing.fail_on_unfolded and result.report.unfolded:
        word, sentence, code = "UNFOLDED", f"{that_stay(result.report)}; {where}.", 1
    return console.finish(
        "fold",
        word,
        sentence,
        code,
        lambda: {
            "source": _source(model, archive, result),
            "result": result_dict(written, 0, result.report.nodes_after),
            **result.report.to_dict(),
            "check": None if check is None else check.to_dict(),
            **({} if drift is None else {"statistics": drift.found.to_dict()}),
        },
    )


def explain_torch(model: Path, weights: Path | None, selection: Selection, checking: Checking, console: Console) -> int:
    """Say where each affine of a PyTorch model goes, or why not. Returns the exit code."""
    _only_what_applies(selection, checking, None)
    archive = is_archive(model)
    console.clear_of(model if archive else None)
    _, result = _folded(model, weights, selection, checking)
    report = result.report
    console.say(explanation(report, width=width()))
    console.say("")
    parts = {"source": _source(model, archive, result), "result": None, **report.to_dict(), "check": None}
    return console.finish("explain", *explained(report, model), 0, lambda: parts)


def _folded(model: Path, weights: Path | None, selection: Selection, checking: Checking) -> tuple[Loaded, ProgramFold]:
    loaded = load(model, weights, checking)
    from ..pytorch import fold_exported

    return loaded, fold_exported(loaded.program, skip=selection.skip, only=selection.only)


def _only_what_applies(selection: Selection, checking: Checking, writing: Writing | None) -> None:
    given = [name for name, value in selection._asdict().items() if name not in ("skip", "only") and value]
    measured = writing is not None and writing.max_drift is not None
    used = _CHECKING | {"threads"} if measured else _CHECKING
    given += [name for name, value in checking._asdict().items() if name not in used and value]
    if writing is not None:
        given += [n for n in ("rescue", "keep_statistics") if getattr(writing, n)]
    if given:
        option = _OPTIONS.get(given[0], given[0]).replace("_", "-")
        raise UsageError(f"--{option} is for ONNX models; a PyTorch model knows no such thing.")
    if writing is not None and writing.in_place:
        raise UsageError("A PyTorch model is not replaced in place: give --output.")


def _write(result: ProgramFold, path: Path, *, compare: bool) -> str:
    """Write the program; for ONNX, the words that say how far ONNX Runtime is from torch."""
    import torch

    if path.suffix == ".pt2":
        torch.export.save(result.program, path)
        return ""
    from ..pytorch.onnx_export import distance_to_file, room, write_onnx

    write_onnx(result.program, (), path, None)
    if not compare:
        return ""
    args, kwargs = result.inputs()
    original = result.original.module()
    distance = distance_to_file(original, args, kwargs, path)
    if distance is None:
        return ", which was not run"
    if not distance <= room(original):
        raise UsageError(
            f"ONNX Runtime is {distance:.1e} of the largest output away from torch in the file that torch.onnx.export "
            "wrote, so it was removed; --no-check keeps it."
        )
    return f", {distance:.1e} of the largest output from torch under ONNX Runtime"


def _source(model: Path, archive: bool, result: ProgramFold) -> dict[str, Any]:
    size = model.stat().st_size if archive else sum(t.nbytes for t in result.original.state_dict.values())
    digest = files.digest(model) if archive else ""
    return {"path": str(model), "sha256": digest, "bytes": size, "opset": 0, "nodes": result.report.nodes_before}
