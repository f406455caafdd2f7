"""net.onnx, net.folded.onnx and net.folded.onnx.bnfold: which file belongs to which, by their names."""

from __future__ import annotations

from pathlib import Path

SIDECAR = ".bnfold"

_FOLDED = ".folded.onnx"


def source_of(path: Path) -> Path | None:
    """net.onnx, if that is a file and `path` is net.folded.onnx beside it."""
    stem = path.name.removesuffix(_FOLDED)
    source = path.with_name(f"{stem}.onnx")
    return source if stem not in ("", path.name) and source.is_file() else None


def fold_beside(path: Path) -> Path | None:
    """net.folded.onnx, if `path` is net.onnx and that file is beside it."""
    folded = path.with_name(f"{path.stem}{_FOLDED}")
    return folded if path.suffix == ".onnx" and not path.name.endswith(_FOLDED) and folded.is_file() else None


def sidecar_of(model: Path) -> Path:
    """Where the sidecar of a folded model is."""
    return model.with_name(model.name + SIDECAR)
