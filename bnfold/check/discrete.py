"""Integer and boolean outputs: they must be equal, save where a rounding may flip them.

A flip is explained where the float64 margin of its producer is below the error bound there (steps.py). Where no margin
is known, perturbing the weights by a rounding must flip about as many.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .compare import EXACT, EXACT_DELTA, Array, Failure, Runs, luck
from .judge import Judge

__all__ = ["Flips", "compare_discrete"]

MARGIN = 16.0  # in the largest deviation that the perturbed weights cause at the producer


@dataclass(frozen=True)
class Flips:
    """What was found on one discrete output of one sample: elements, and flips that the margin explains."""

    output: str
    elements: int
    explained: int


def compare_discrete(name: str, runs: Runs, judge: Judge, c: float) -> tuple[Flips, list[Failure]]:
    """Compare one integer or boolean output of one sample under both questions."""
    y = runs.y[name]
    found: list[Failure] = []
    margin = judge.margin(name, runs.y)
    if margin is not None and margin.shape != y.shape:
        margin = None
    noise, scale = _producer_noise(name, runs, judge)
    drawn = max((_count(draw[name], y) for draw in runs.draws), default=0)
    explained = 0

    if runs.exact is not None:
        limit = max(EXACT * scale, EXACT_DELTA * noise)
        lost, kept = _judged(runs.exact[name], y, margin, limit, 0)
        sentence = "with the weights before rounding"
    else:
        lost, kept = _judged(runs.candidate[name], y, margin, MARGIN * noise, 2 * drawn)
        sentence = "in float64"
    explained = max(explained, kept)
    if lost:
        found.append(
            Failure("same_function", f"{sentence} output {name!r} differs in {lost} of {y.size} integers{_why(margin)}")
        )
    if runs.provider_original is None or runs.provider_candidate is None:
        return Flips(name, y.size, explained), found

    hat, folded = runs.provider_original[name], runs.provider_candidate[name]
    lost, _ = _judged(hat, y, margin, MARGIN * noise, 10 * drawn)
    if lost:
        sentence = "judge and provider disagree about the original"
        found.append(Failure("judge", f"{sentence}: output {name!r} differs in {lost} of {y.size} integers"))
    lost, kept = _judged(folded, y, margin, MARGIN * noise, round(c * _count(hat, y) + 8 * drawn))
    if lost and not np.array_equal(folded, hat):
        found.append(
            Failure("arithmetic", f"output {name!r} flips in {lost} of {y.size} integers on the provider{_why(margin)}")
        )
    return Flips(name, y.size, max(explained, kept)), found


def _judged(value: Array, y: Array, margin: Array | None, limit: float, allowed: int) -> tuple[int, int]:
    """(flips without an explanation, flips with one)."""
    flips = value != y
    total = int(flips.sum())
    if margin is None:
        return (0, total) if total <= allowed else (total, 0)
    lost = int((flips & ~(margin <= limit)).sum())
    return lost, total - lost


def _producer_noise(name: str, runs: Runs, judge: Judge) -> tuple[float, float]:
    """The largest deviation that the draws cause at the producers, with room for few elements, and their rms."""
    noise, scale = 0.0, 0.0
    for producer in judge.producers(name):
        y = runs.y[producer]
        if y.size == 0 or y.dtype.kind != "f":
            continue
        deviations: Sequence[float] = [
            float(np.nanmax(np.abs(draw[producer] - y))) for draw in runs.draws if draw[producer].shape == y.shape
        ]
        noise = max(noise, luck(y.size) * max(deviations, default=0.0))
        scale = max(scale, float(np.sqrt(np.mean(np.square(y)))))
    return noise, scale


def _count(value: Array, y: Array) -> int:
    return int((value != y).sum()) if value.shape == y.shape else y.size


def _why(margin: Array | None) -> str:
    return "" if margin is None else ", and their float64 margin is larger than rounding explains"
