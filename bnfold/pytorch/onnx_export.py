# torch leaves parts of its interface untyped: what comes from there is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""export: fold a module, write it as ONNX by torch.onnx.export(dynamo=True), and compare torch with ONNX Runtime."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..check.verdict import CheckResult, Verdict
from ..errors import UnsupportedModel, UsageError
from .module import ModuleFold, fold

_ROOM = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}


@dataclass(frozen=True)
class Exported:
    """What `export` did: the fold, the files, the fold's check in torch, and how far ONNX Runtime is from torch.

    distance: the largest difference between the original module in torch and the file in ONNX Runtime, relative to
    the largest output; None where it was not run.
    """

    fold: ModuleFold[Any]
    path: Path
    check: CheckResult | None
    distance: float | None
    limit: float = field(default=0.0)

    def __bool__(self) -> bool:
        near = self.distance is not None and self.distance <= self.limit
        return bool(self.check) and near


def export(
    module: nn.Module,
    args: Sequence[Any],
    path: str | os.PathLike[str],
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    skip: Sequence[str] = (),
    only: Sequence[str] = (),
    check: bool = True,
    **options: Any,
) -> Exported:
    """Fold `module` and write it to `path` as ONNX.

    args, kwargs, dynamic_shapes, skip, only: as for `fold`. options: of torch.onnx.export (input_names, ...).
    check: the fold's own check in torch, and the original in torch against the file in ONNX Runtime on these arguments.
    Nothing is written where the fold is not the same function. Raises UsageError where that is so, and UnsupportedModel
    for what torch.onnx.export cannot write.
    """
    result = fold(module, args, kwargs, dynamic_shapes=dynamic_shapes, skip=skip, only=only)
    verdict = result.check() if check else None
    if verdict is not None and verdict.verdict in (Verdict.NOT_EQUIVALENT, Verdict.DEGRADED):
        raise UsageError(
            f"The folded module is not as good as the original, so nothing was written: {verdict.sentence}"
        )
    write_onnx(result.module, result.args, path, result.kwargs, dynamic_shapes=dynamic_shapes, **options)
    distance = distance_to_file(result.original, result.args, result.kwargs, path) if check else None
    return Exported(result, Path(path), verdict, distance, room(result.original))


def write_onnx(
    module: Any, args: tuple[Any, ...], path: str | os.PathLike[str], kwargs: Mapping[str, Any] | None, **options: Any
) -> None:
    """torch.onnx.export(dynamo=True), quiet; `module` may be an ExportedProgram. Raises UnsupportedModel."""
    try:
        import onnxscript  # noqa: F401  # pyright: ignore[reportUnusedImport, reportMissingImports, reportMissingTypeStubs] -- whether it is there
    except ImportError as error:
        raise UsageError("torch.onnx.export needs onnxscript: pip install 'bnfold[torch]'.") from error
    log = logging.getLogger("torch.onnx")
    level = log.level
    try:
        log.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(module, args, kwargs=dict(kwargs or {}), dynamo=True, verbose=False, **options)
    except Exception as error:  # the exporter has many ways to fail
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UnsupportedModel(f"torch.onnx.export cannot write this module: {first}") from error
    finally:
        log.setLevel(level)
    if program is None:
        raise UnsupportedModel("torch.onnx.export gave back no program.")
    program.save(os.fspath(path))


def distance_to_file(
    original: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], path: str | os.PathLike[str]
) -> float | None:
    """How far the file is under ONNX Runtime from the module under torch, relative to the largest output.

    None where ONNX Runtime is not installed, or the file has other inputs than the module.
    """
    try:
        import onnxruntime  # pyright: ignore[reportMissingTypeStubs] -- it has none
    except ImportError:
        return None
    session: Any = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
    given = [t for t in pytree.tree_leaves((args, dict(kwargs))) if isinstance(t, torch.Tensor)]
    names = [i.name for i in session.get_inputs()]
    if len(names) != len(given):
        return None
    found = session.run(None, {n: t.detach().cpu().numpy() for n, t in zip(names, given, strict=True)})
    with torch.no_grad():
        output = original(*args, **kwargs)
    truth = [t for t in pytree.tree_leaves(output) if isinstance(t, torch.Tensor)]
    worst = 0.0
    for mine, theirs in zip(truth, found, strict=True):
        wide = mine.detach().cpu().double().numpy()
        size = float(np.abs(wide).max(initial=0.0)) or 1.0
        worst = max(worst, float(np.abs(np.asarray(theirs, np.float64) - wide).max(initial=0.0)) / size)
    return worst


def room(module: nn.Module) -> float:
    """How far a file may be from its module: what their types leave to the order of the sums."""
    return max((_ROOM.get(t.dtype, 0.0) for t in module.parameters()), default=_ROOM[torch.float32])
