"""`bnfold model.pt2` and `bnfold package.module:factory --weights w.pth`: PyTorch models on the command line.

Both are folded as exported programs; what is written is a .pt2 archive or, by torch.onnx.export, an ONNX file.
"""
# torch may not be installed, and leaves parts of its interface untyped where it is.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import files
from ..errors import UnreadableModel, UsageError
from ..report.text import fold_table
from .documents import result_dict
from .options import destination
from .output import Console, width
from .settings import Checking, Selection, Writing

if TYPE_CHECKING:
    from ..pytorch import ProgramFold

_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_USED = {"wanted", "shapes", "seed", "samples", "tf32"}


def is_torch(model: Path) -> bool:
    """Whether the argument names a .pt2 archive or a factory of modules."""
    return model.suffix == ".pt2" or (not model.exists() and _FACTORY.fullmatch(str(model)) is not None)


def run_torch(
    model: Path, weights: Path | None, selection: Selection, checking: Checking, writing: Writing, console: Console
) -> int:
    """Fold it, check it with torch as the judge, write it. Returns the exit code."""
    _only_what_applies(selection, checking, writing)
    archive = model.suffix == ".pt2"
    if archive and weights is not None:
        raise UsageError(f"{model} holds its weights; --weights goes with package.module:factory.")
    if not archive and writing.out is None and not writing.dry_run:
        raise UsageError("Say with --output where the result goes: a .pt2 or .onnx file; or give --dry-run.")
    target = destination(model, writing.out, in_place=writing.in_place, dry_run=writing.dry_run, force=writing.force)
    if target is not None and target.suffix not in (".pt2", ".onnx"):
        raise UsageError(f"{target}: a PyTorch model is written as .pt2 or .onnx.")
    console.clear_of(model if archive else None, target)
    try:
        from ..pytorch import fold_exported
    except ImportError as error:
        raise UsageError("PyTorch models need torch: pip install 'bnfold[torch]'.") from error
    from .torch_stats import gate

    drift = gate(model, weights, checking, writing.max_drift)
    if drift is not None and drift.code:
        return drift.refused(console)
    program = load_program(model) if archive else _made(str(model), weights, checking)
    result = fold_exported(program, skip=selection.skip, only=selection.only)
    check = (
        result.check(samples=checking.samples or 3, seed=checking.seed, tf32=checking.tf32) if checking.wanted else None
    )
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
    left = len(result.report.unfolded)
    where = f"wrote {written[0]}{distance}" if written else "nothing was written"
    folded = f"{len(result.report.folded)} of {result.report.sources} sources folded"
    word, sentence = ("NOT CHECKED", f"{folded}; {where}.") if check is None else (check.verdict.name, "")
    if check is not None:
        sentence = f"{folded}; {where}." if check else f"{check.sentence}; {where}."
    if code == 0 and writing.fail_on_unfolded and left:
        word, sentence, code = "UNFOLDED", f"{left} normalizations stay (--fail-on-unfolded); {where}.", 1
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


def _only_what_applies(selection: Selection, checking: Checking, writing: Writing) -> None:
    given = [f.name for f in fields(Selection) if f.name not in ("skip", "only") and getattr(selection, f.name)]
    used = _USED if writing.max_drift is None else {*_USED, "inputs", "threads"}
    given += [f.name for f in fields(Checking) if f.name not in used and getattr(checking, f.name)]
    given += [name for name in ("rescue", "keep_statistics") if getattr(writing, name)]
    if given:
        raise UsageError(f"--{given[0].replace('_', '-')} is for ONNX models; a PyTorch model knows no such thing.")
    if writing.in_place:
        raise UsageError("A PyTorch model is not replaced in place: give --output.")


def load_program(model: Path) -> Any:
    import torch

    if not model.is_file():
        raise UnreadableModel(f"{model} is not a file.")
    try:
        return torch.export.load(model)
    except Exception as error:  # an archive may be wrong in many ways
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UnreadableModel(f"{model} cannot be read by torch.export.load: {first}") from error


def _made(name: str, weights: Path | None, checking: Checking) -> Any:
    """The program of the module that a factory makes, with these weights, in eval mode."""
    return exported(name, module_of(name, weights), checking.shapes, checking.seed)


def module_of(name: str, weights: Path | None) -> Any:
    """The module that a factory makes, with these weights, in eval mode."""
    import torch

    from ..pytorch.state import load_weights
    from ..pytorch.trace import require_foldable, sentence, unwrapped

    factory = _factory(name)
    try:
        module = factory()
    except Exception as error:  # the user's own code
        raise UsageError(f"{name}() fails: {sentence(error)} It is called without arguments.") from error
    if not isinstance(module, torch.nn.Module):
        raise UsageError(f"{name}() makes a {type(module).__name__}, not a torch.nn.Module.")
    module = unwrapped(module).eval()
    if weights is not None:
        load_weights(module, weights)
    require_foldable(module)
    return module


def exported(name: str, module: Any, shapes: Mapping[str, tuple[int, ...]], seed: int) -> Any:
    """The program of a module, exported with noise of these shapes as its arguments."""
    import torch

    from ..errors import UnsupportedModel
    from ..pytorch.trace import sentence

    parameters = inspect.signature(module.forward).parameters
    needed = [
        p.name
        for p in parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    strange = [each for each in shapes if each not in parameters]
    missing = [each for each in needed if each not in shapes]
    if strange or missing:
        example = (missing or [*parameters, "x"])[0]
        raise UsageError(
            f"{type(module).__name__}.forward takes {', '.join(parameters) or 'nothing'}: give --shape {example}:SIZES "
            "and the like for each of them."
        )
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    random = torch.Generator().manual_seed(seed)
    given = {each: torch.randn(*sizes, generator=random).to(dtype) for each, sizes in shapes.items()}
    try:
        return torch.export.export(module, (), given, strict=False)
    except Exception as error:  # as in trace.py
        raise UnsupportedModel(f"torch.export cannot export {name}: {sentence(error)}") from error


def _factory(name: str) -> Any:
    package, _, attribute = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does
    try:
        found: Any = importlib.import_module(package)
    except ImportError as error:
        raise UsageError(f"{package} cannot be imported: {error}.") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UsageError(f"{package} has no {attribute}.")
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"{name} cannot be called: give a class or a function that makes the module.")
    return found


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
