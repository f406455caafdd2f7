"""What gate 3 found, as figures for machines, lines for people, and notes on what was out of the ordinary."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .compare import Array, Failure, Measure, Runs, overflowed, vacuous
from .discrete import Flips
from .verdict import Verdict

__all__ = ["Found", "Judgement", "figures_of", "listed", "notes_on"]


@dataclass
class Judgement:
    """The verdict of gate 3 with everything that was measured."""

    verdict: Verdict
    sentence: str
    counted: list[str]  # for each sample why it does not count, "" where it does
    figures: dict[str, Any] = field(default_factory=dict[str, Any])
    warnings: list[str] = field(default_factory=list[str])
    worse: list[Failure] = field(default_factory=list[Failure])  # bounds of question (b) that were exceeded
    failed: frozenset[str] = frozenset()  # the questions that failed: same_function, arithmetic, judge


@dataclass
class Found:
    """All measures and failures of one comparison; `widened`: against draws of ±32u."""

    measures: list[Measure]
    flips: list[Flips]
    failures: list[Failure]
    widened: bool = False


def listed(jumps: dict[str, int]) -> str:
    return ", ".join(f"{op} ×{count}" for op, count in sorted(jumps.items()))


def notes_on(names: Sequence[str], runs: Sequence[Runs], found: Found, jumps: dict[str, int]) -> list[str]:
    said: list[str] = []
    for name in names:
        values = [sample.y[name] for sample in runs]
        if len(runs) and all(v.size == 0 for v in values):
            said.append(f"Output {name!r} is empty in every sample; nothing was compared there.")
        elif all(vacuous([{name: v} for v in values])):
            said.append(f"Output {name!r} is the same in every element of every sample; little was compared there.")
    explained = sum(flips.explained for flips in found.flips)
    if explained:
        total = sum(flips.elements for flips in found.flips)
        said.append(f"{explained} of {total} integers flip, each where its float64 margin is within rounding.")
    if found.widened:
        said.append(f"The model rounds values inside ({listed(jumps)}): bounds were widened to what ±32u does there.")
    overflows = sum(
        int((np.isfinite(s.y[name]) & ~np.isfinite(_wide(s.provider_original[name]))).sum())
        for s in runs
        if s.provider_original is not None
        for name in names
        if s.y[name].dtype.kind == "f"
    )
    if overflows:
        said.append(f"{overflows} output elements overflow on the provider in the original already; left out.")
    edge = sum(int(overflowed(name, s)[1].sum()) for s in runs for name in names if s.y[name].dtype.kind == "f")
    if edge:
        said.append(
            f"{edge} output elements are so close to their type's largest number that rounding decides whether they "
            "overflow, and in the candidate they do; left out."
        )
    return said


def figures_of(found: Found, has_exact: bool, has_provider: bool) -> dict[str, Any]:
    figures: dict[str, Any] = {"judge": "float64", "outputs": [_row(m) for m in found.measures]}
    if found.flips:
        figures["flips"] = [{"output": f.output, "elements": f.elements, "explained": f.explained} for f in found.flips]
    lines: list[str] = []
    if found.measures:
        stored = max(_ratio(m.stored[0], m.rms) for m in found.measures)
        deltas = [_ratio(m.stored[0], m.delta) for m in found.measures]
        same: dict[str, Any] = {
            "used": max(m.worse.get("same_function", 0.0) for m in found.measures),
            "stored_share": stored,
            "stored_in_delta": max(deltas),
            "delta_share": max(_ratio(m.delta, m.rms) for m in found.measures),
        }
        if has_exact:
            same["exact_share"] = max(_ratio(m.exact[0], m.rms) for m in found.measures if m.exact is not None)
            lines.append(
                f"same function: float64 outputs agree to {same['exact_share']:.1e} of rms before rounding; "
                f"the rounded weights move them by {same['stored_in_delta']:.2g} δ"
            )
        else:
            lines.append(
                f"same function: float64 outputs agree to {stored:.1e} of rms, {same['stored_in_delta']:.2g} δ of 2 δ "
                f"(δ, rounding alone: {same['delta_share']:.1e} of rms)"
            )
        figures["same_function"] = same
    if has_provider and found.measures:
        original, candidate, truth = (
            _pooled([(pair[0], m.rms) for m in found.measures if (pair := getattr(m, key)) is not None])
            for key in ("error_original", "error_candidate", "truth_candidate")
        )
        figures["arithmetic"] = {
            "used": max(m.worse.get("arithmetic", 0.0) for m in found.measures),
            "error_original": original,
            "error_candidate": candidate,
            "truth_candidate": truth,
            "error_ratio": truth / original if original > 0 else None,
        }
        lines.append(
            f"arithmetic: error {truth:.1e} of rms on the provider, the original's {original:.1e}; "
            f"{figures['arithmetic']['used']:.2g} of the bound"
        )
    return {"lines": lines, **figures}


def _row(m: Measure) -> dict[str, Any]:
    row: dict[str, Any] = {
        "output": m.output,
        "sample": m.sample,
        "elements": m.elements,
        "rms": m.rms,
        "delta": m.delta,
        "stored": m.stored[0],
        "used": dict(m.worse),
    }
    for key in ("exact", "error_original", "error_candidate", "truth_candidate"):
        pair: tuple[float, float] | None = getattr(m, key)
        if pair is not None:
            row[key] = pair[0]
    return row


def _wide(x: Array) -> Array:
    return x.astype(np.float64)


def _ratio(value: float, of: float) -> float:
    if value == 0.0:
        return 0.0
    return value / of if of > 0 else float("inf")


def _pooled(pairs: Sequence[tuple[float, float]]) -> float:
    """The rms over outputs and samples of error/rms."""
    shares = [value / rms for value, rms in pairs if rms > 0]
    return float(np.sqrt(np.mean(np.square(shares)))) if shares else 0.0
