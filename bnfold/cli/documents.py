"""The parts of the JSON documents that several commands share: the file that was read and the one that was written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import files

if TYPE_CHECKING:
    from ..files import ModelFile


def source_dict(source: ModelFile, digest: str, opset: int, nodes: int) -> dict[str, Any]:
    """The `source` object."""
    path = None if source.path is None else str(source.path)
    return {"path": path, "sha256": digest, "bytes": source.size, "opset": opset, "nodes": nodes}


def result_dict(written: Sequence[Path], opset: int, nodes: int, *, identical: bool = False) -> dict[str, Any] | None:
    """The `result` object; None where nothing was written. written: the model file first, then its data files."""
    if not written:
        return None
    path, *data = written
    return {
        "path": str(path),
        "sha256": files.digest(path),
        "bytes": path.stat().st_size,
        "opset": opset,
        "nodes": nodes,
        "identical": identical,
        "data": [str(each) for each in data],
    }
