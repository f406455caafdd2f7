"""The JSON that tools read, schema 1. Keys are only ever added; a changed meaning would be schema 2.

{"schema": 1, "tool": {}, "source": {}, "result": {} | null, "counts": {}, "folded": [], "kept": [], "notes": [],
 "check": {} | null, "command", "verdict": {}}     and on an error     {"schema": 1, "error": {"kind", "message"}}
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, cast

from .. import __version__
from . import Alternative, Folded, FoldReport, Kept

SCHEMA = 1


def report_dict(report: FoldReport) -> dict[str, Any]:
    """`counts`, `folded`, `kept` and `notes` of a fold."""
    return {
        "counts": report.counts,
        "folded": [_folded(each) for each in report.folded],
        "kept": [_kept(each) for each in report.kept],
        "notes": list(report.notes),
    }


def document(**parts: Any) -> dict[str, Any]:
    """A whole document: the schema and the tool, then `parts` in the order given."""
    return {"schema": SCHEMA, "tool": {"name": "bnfold", "version": __version__}, **parts}


def error_document(kind: str, message: str) -> dict[str, Any]:
    """What stands in place of a document when there is no result."""
    return {"schema": SCHEMA, "error": {"kind": kind, "message": message}}


def dumps(value: Mapping[str, Any]) -> str:
    """Two spaces a level, ASCII only; NaN and Inf, which JSON does not have, become the strings that Python prints."""
    return json.dumps(_plain(value), indent=2, allow_nan=False)


def _folded(folded: Folded) -> dict[str, Any]:
    return {
        "nodes": list(folded.nodes),
        "op": folded.op,
        "direction": folded.direction,
        "into": [{"node": target.node, "op": target.op} for target in folded.into],
        "through": list(folded.through),
        **({"partial": True} if folded.partial else {}),
        "normalization": folded.is_normalization,
    }


def _kept(kept: Kept) -> dict[str, Any]:
    return {
        "nodes": list(kept.nodes),
        "op": kept.op,
        "reason": kept.reason,
        "at": kept.at,
        "message": kept.message,
        "hint": kept.hint,
        "alternatives": [_alternative(each) for each in kept.alternatives],
        "normalization": kept.is_normalization,
    }


def _alternative(alternative: Alternative) -> dict[str, Any]:
    return {
        "direction": alternative.direction,
        "through": list(alternative.through),
        "reason": alternative.reason,
        "at": alternative.at,
    }


def _plain(value: object) -> object:
    # numpy scalars have .item(); json knows neither them nor a float that is not finite
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in cast("Mapping[object, object]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in cast("list[object]", value)]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else repr(float(value))
    if value is None or isinstance(value, bool | int | str):
        return value
    item = getattr(value, "item", None)
    return _plain(item()) if callable(item) else str(value)
