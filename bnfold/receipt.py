"""The receipt: what was folded and how the check ended, in the `metadata_props` of the model that was written.

body + receipt      protobuf lets fields follow later, so the checked bytes stay as they were and the receipt is
                    appended; `bnfold.sha256` is the digest of that body. It is no signature: anybody can write one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import onnx

from . import __version__
from .files import digest
from .files.formats import BINARY, format_of

if TYPE_CHECKING:
    from .check.verdict import CheckResult
    from .report import FoldReport

PREFIX = "bnfold."
NOT_CHECKED = "NOT CHECKED"


class Receipt(NamedTuple):
    """What a model says of its own making.

    intact: the rest of the file is, byte for byte, what was checked; None where nothing was, and `sha256` is empty.
    """

    version: str
    source_sha256: str
    sha256: str
    folded: int
    sources: int
    unfolded: int
    verdict: str
    sentence: str
    figures: Mapping[str, Any]
    intact: bool | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        return {
            "version": self.version,
            "source_sha256": self.source_sha256,
            "sha256": self.sha256,
            "folded": self.folded,
            "sources": self.sources,
            "unfolded": self.unfolded,
            "verdict": self.verdict,
            "sentence": self.sentence,
            "figures": dict(self.figures),
            "intact": self.intact,
        }


def write(path: Path, source_sha256: str, report: FoldReport, check: CheckResult | None) -> None:
    """Append the receipt to the model file at `path`, which has none yet.

    check: None says that nothing was checked.
    """
    entries = {
        "version": __version__,
        "source.sha256": source_sha256,
        "folded": str(len(report.folded)),
        "sources": str(report.sources),
        "unfolded": str(len(report.unfolded)),
        "verdict": NOT_CHECKED if check is None else check.verdict.value,
        "sentence": "" if check is None else check.sentence,
        "figures": json.dumps({} if check is None else _figures(check), sort_keys=True),
    }
    if check is not None:
        entries["sha256"] = digest(path)
    if format_of(path) == BINARY:
        with path.open("ab") as file:
            file.write(_tail(entries))
        return
    from .files.loading import load
    from .files.writing import serialize

    model = load(path).model
    model.metadata_props.extend(_props(entries))
    path.write_bytes(serialize(model, path))


def read(path: Path, model: onnx.ModelProto) -> Receipt | None:
    """The receipt of the model file at `path`, whose content is `model`; None if it has none."""
    found = {p.key[len(PREFIX) :]: p.value for p in model.metadata_props if p.key.startswith(PREFIX)}
    needed = ("version", "source.sha256", "verdict", "folded", "sources", "unfolded")
    if any(key not in found for key in needed) or not all(found[k].isdecimal() for k in needed[3:]):
        return None
    try:
        figures: Any = json.loads(found.get("figures", "{}"))
    except ValueError:
        figures = {}
    return Receipt(
        found["version"],
        found["source.sha256"],
        found.get("sha256", ""),
        int(found["folded"]),
        int(found["sources"]),
        int(found["unfolded"]),
        found["verdict"],
        found.get("sentence", ""),
        figures if isinstance(figures, dict) else {},  # pyright: ignore[reportUnknownArgumentType] -- what JSON holds
        _intact(path, model, found) if "sha256" in found else None,
    )


def without(model: onnx.ModelProto) -> None:
    """Remove a receipt from `model`: it speaks of the file that it was written into, not of what is made from it."""
    kept = [(p.key, p.value) for p in model.metadata_props if not p.key.startswith(PREFIX)]
    if len(kept) < len(model.metadata_props):
        del model.metadata_props[:]
        for key, value in kept:
            model.metadata_props.add(key=key, value=value)


def _props(entries: Mapping[str, str]) -> list[onnx.StringStringEntryProto]:
    return [onnx.StringStringEntryProto(key=PREFIX + key, value=value) for key, value in entries.items()]


def _tail(entries: Mapping[str, str]) -> bytes:
    return onnx.ModelProto(metadata_props=_props(entries)).SerializeToString(deterministic=True)


def _intact(path: Path, model: onnx.ModelProto, found: Mapping[str, str]) -> bool:
    if format_of(path) == BINARY:
        tail = _tail(found)
        length = path.stat().st_size - len(tail)
        if length < 0:
            return False
        with path.open("rb") as file:
            file.seek(length)
            if file.read() != tail:
                return False
        return digest(path, length) == found["sha256"]
    from .files.writing import serialize

    body = onnx.ModelProto()
    body.CopyFrom(model)
    without(body)
    return hashlib.sha256(serialize(body, path)).hexdigest() == found["sha256"]


def _figures(check: CheckResult) -> dict[str, Any]:
    """What the check measured, to three digits."""
    kept: dict[str, Any] = {
        "provider": check.provider,
        "seed": check.seed,
        "samples": len(check.samples),
        "counted": check.counted,
        "certificate": None if check.certificate is None else check.certificate.passed,
    }
    for part in ("same_function", "arithmetic"):
        found = check.figures.get(part)
        if isinstance(found, dict):
            kept[part] = {key: _short(value) for key, value in found.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType] -- plain numbers
    return kept


def _short(value: Any) -> Any:
    return float(f"{value:.3g}") if isinstance(value, float) else value
