"""What the outcomes of several commands have in common: parts of the JSON documents, and of the last line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import files
from ..report.text import of_sources, plural

if TYPE_CHECKING:
    from ..files import ModelFile
    from ..report import FoldReport


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


def folded_of(report: FoldReport) -> str:
    """As in "3 of 4 sources"."""
    return of_sources(len(report.folded), report.sources)


def that_stay(report: FoldReport) -> str:
    """As in "2 normalizations stay (--fail-on-unfolded)"."""
    left = len(report.unfolded)
    return f"{plural(left, 'normalization')} stay{'s' if left == 1 else ''} (--fail-on-unfolded)"


def explained(report: FoldReport, model: Path) -> tuple[str, str]:
    """The word and the sentence with which `explain` ends."""
    if not report.sources:
        return "NOTHING TO FOLD", f"{model} holds no BatchNormalization and no constant arithmetic."
    return "EXPLAINED", f"{folded_of(report)} would fold; nothing was written."
