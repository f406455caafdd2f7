"""Gate 3 in numbers: what was measured on each output of each sample, and which of its bounds it exceeds.

(a) the same function    rms(y64* − y64) ≤ 10⁻⁹·rms(y64), or, without the exact weights, rms(y64' − y64) ≤ 2δ
(b) as well computed     rms(ŷ_fold − y64') ≤ c·rms(ŷ_orig − y64) + 8δ,   c = 2 (float32), 3 (half floats)
and each with a guard on the largest element. δ: rounding.py. Small outputs get room for the luck of few numbers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Failure", "Measure", "Outputs", "Runs", "agrees", "failures", "luck", "measure", "same_places", "vacuous"]

Array = npt.NDArray[Any]
Outputs = Mapping[str, Array]

EXACT = 1e-9  # of rms: float64's own accuracy, with room for ill-conditioned networks
EXACT_DELTA = 1e-6  # of δ: float64 rounds 2⁻²⁹ ≈ 2·10⁻⁹ as coarsely as float32; 500 of these for the length of the sums
JUDGE = 1e-12  # of rms: what the float64 judge itself may be off; it matters for float64 models only
SAME = 2.0  # δ: correct folds of unknown make measured 0.07 to 1.1
ARITHMETIC = 8.0  # δ
GUARD = 4.0  # how much further than the rms bounds the largest element may go
_LARGEST = {
    "float16": 65504.0, "bfloat16": 3.3895313892515355e38,
    "float32": float(np.finfo(np.float32).max), "float64": float(np.finfo(np.float64).max),
}  # fmt: skip
EDGE = 8.0  # times what a draw moved the output: a value this close to the type's largest number may overflow
DISAGREEMENT = 10.0  # judge and provider about the original


@dataclass(frozen=True)
class Runs:
    """All evaluations of one sample. Float64: the original, the candidate as stored, the candidate with exact weights,
    the original perturbed. Provider: both models. Absent: None, or no draws."""

    y: Outputs
    candidate: Outputs
    exact: Outputs | None
    draws: Sequence[Outputs]
    provider_original: Outputs | None
    provider_candidate: Outputs | None


@dataclass
class Measure:
    """One floating output of one sample. Pairs are (rms, largest element), in units of the output."""

    output: str
    sample: int
    elements: int
    rms: float
    largest: float
    drawn: tuple[tuple[float, float], ...]
    stored: tuple[float, float]
    exact: tuple[float, float] | None = None
    error_original: tuple[float, float] | None = None
    error_candidate: tuple[float, float] | None = None
    truth_candidate: tuple[float, float] | None = None  # against y64, the original's truth
    delta: float = 0.0
    delta_largest: float = 0.0
    bit_equal: bool = False
    worse: dict[str, float] = field(default_factory=dict[str, float])  # share of each bound that was used


@dataclass(frozen=True)
class Failure:
    """A bound that was exceeded: which question, by which measure, and a sentence."""

    question: str  # "same_function", "arithmetic", "judge"
    sentence: str


def luck(elements: int) -> float:
    """How much further a bound reaches for an output of few elements, whose rms may be small by chance."""
    return 1.0 + 8.0 / math.sqrt(max(elements, 1))


def same_places(y: Array, other: Array) -> bool:
    """NaN and the infinities of either sign stand in the same places."""
    if y.dtype.kind not in "fc":
        return True
    return bool(
        np.array_equal(np.isnan(y), np.isnan(other))
        and np.array_equal(y[np.isinf(y)], other[np.isinf(y)])
        and np.array_equal(np.isinf(y), np.isinf(other))
    )


def vacuous(outputs: Sequence[Outputs]) -> list[str]:
    """For each sample why its outputs could not have shown a difference, "" where they could.

    A sample counts if some output has finite elements that are not all the same, or that differ between samples.
    """
    constants: list[dict[str, float]] = []
    reasons: list[str] = []
    for sample in outputs:
        steady: dict[str, float] = {}
        reason = "empty"
        for name, value in sample.items():
            if value.size == 0:
                continue
            finite = value[np.isfinite(value)] if value.dtype.kind in "fc" else value.reshape(-1)
            if finite.size == 0:
                reason = "not finite" if reason != "" else reason
            elif np.all(finite == finite[0]):
                steady[name] = float(finite[0])
                reason = ("all zero" if finite[0] == 0 else "constant") if reason != "" else reason
            else:
                reason = ""
        constants.append(steady)
        reasons.append(reason)
    for name in {name for steady in constants for name in steady}:
        if len({steady[name] for steady in constants if name in steady}) > 1:
            for k, steady in enumerate(constants):
                if name in steady:
                    reasons[k] = ""
    return reasons


def measure(name: str, sample: int, runs: Runs) -> Measure | None:
    """The figures of one floating output; None where it has no finite element to compare."""
    y = runs.y[name]
    keep = np.isfinite(y)
    if runs.provider_original is not None:
        keep = keep & np.isfinite(_wide(runs.provider_original[name]))
    if runs.provider_candidate is not None:
        keep = keep & np.isfinite(_wide(runs.provider_candidate[name]))
    if not keep.any():
        return None
    truth, stored = y[keep], runs.candidate[name][keep]
    found = Measure(
        name,
        sample,
        int(keep.sum()),
        *_size(truth),
        tuple(_size(draw[name][keep] - truth) for draw in runs.draws if draw[name].shape == y.shape),
        _size(stored - truth),
    )
    if runs.exact is not None:
        found.exact = _size(runs.exact[name][keep] - truth)
    if runs.provider_original is not None and runs.provider_candidate is not None:
        hat, folded = _wide(runs.provider_original[name])[keep], _wide(runs.provider_candidate[name])[keep]
        found.error_original = _size(hat - truth)
        found.error_candidate = _size(folded - stored)
        found.truth_candidate = _size(folded - truth)
        found.bit_equal = bool(np.array_equal(hat, folded))
    return found


def settle_deltas(measures: Sequence[Measure], u: float) -> None:
    """δ of every measure: the median of its draws, and no less than a quarter of what the output shows elsewhere.

    An output of one element meets a draw that hardly moves it now and then; the other samples know better. Writing the
    output rounds it once, whatever the weights do: u/4 of its rms is the least.
    """
    typical: dict[str, float] = {}
    for name in {m.output for m in measures}:
        shares = [rms / m.rms for m in measures if m.output == name and m.rms > 0 for rms, _ in m.drawn]
        typical[name] = float(np.median(shares)) if shares else 0.0
    for m in measures:
        floor = 0.25 * max(typical[m.output], u) * m.rms
        m.delta = max(float(np.median([rms for rms, _ in m.drawn])) if m.drawn else 0.0, floor)
        m.delta_largest = max([largest for _, largest in m.drawn], default=0.0)
        m.delta_largest = max(m.delta_largest, m.delta)


def failures(measures: Sequence[Measure], c: float, u: float) -> list[Failure]:
    """Every bound that is exceeded, the judge's disagreement left to `agrees`. Fills each measure's `worse`."""
    settle_deltas(measures, u)
    found: list[Failure] = []
    for m in measures:
        found.extend(_same_function(m))
        found.extend(_as_stored(m))
        found.extend(_arithmetic(m, c))
    return found


def _same_function(m: Measure) -> list[Failure]:
    if m.exact is not None:
        (rms, largest), what = m.exact, "with the weights before rounding"
        allowed = max(EXACT * m.rms, EXACT_DELTA * m.delta)
        most = max(EXACT * m.largest, EXACT_DELTA * m.delta_largest)
    else:
        (rms, largest), what = m.stored, "in float64"
        allowed = SAME * luck(m.elements) * m.delta + JUDGE * m.rms
        most = GUARD * (SAME * luck(m.elements) * m.delta_largest + JUDGE * m.largest)
    used = max(_share(rms, allowed), _share(largest, most))
    m.worse["same_function"] = used
    if used <= 1:
        return []
    in_delta = f", {m.stored[0] / m.delta:.3g} times what rounding does to this model" if m.delta > 0 else ""
    return [
        Failure(
            "same_function",
            f"{what} output {m.output!r} differs by {_share(rms, m.rms):.2g} of its size{in_delta}",
        )
    ]


def _as_stored(m: Measure) -> list[Failure]:
    """The exact weights may be right and the file wrong: a loose bound on what is stored; gate 1 has the strict one."""
    if m.exact is None:
        return []
    allowed = ARITHMETIC * luck(m.elements) * m.delta + JUDGE * m.rms
    m.worse["stored"] = _share(m.stored[0], allowed)
    if m.worse["stored"] <= 1:
        return []
    return [
        Failure(
            "arithmetic",
            f"the weights as stored move output {m.output!r} by {_share(m.stored[0], m.delta):.3g} times what rounding "
            "does to this model",
        )
    ]


def _arithmetic(m: Measure, c: float) -> list[Failure]:
    if m.error_original is None or m.error_candidate is None:
        return []
    room = ARITHMETIC * luck(m.elements)
    allowed = c * m.error_original[0] + room * m.delta + JUDGE * m.rms
    most = GUARD * (c * m.error_original[1] + room * m.delta_largest + JUDGE * m.largest)
    used = max(_share(m.error_candidate[0], allowed), _share(m.error_candidate[1], most))
    m.worse["arithmetic"] = used
    if used <= 1:
        return []
    return [
        Failure(
            "arithmetic",
            f"output {m.output!r} is {_share(m.error_candidate[0], m.error_original[0]):.3g} times as far from the "
            f"truth as the original's, {used:.3g} times what is allowed",
        )
    ]


def agrees(m: Measure, own: float) -> Failure | None:
    """Do judge and provider agree about the original? `own`: the judge's rms error in the model's own types."""
    if m.error_original is None:
        return None
    allowed = DISAGREEMENT * luck(m.elements) * max(own, m.delta) + JUDGE * m.rms
    if m.error_original[0] <= allowed:
        return None
    return Failure(
        "judge",
        f"judge and provider disagree about the original: output {m.output!r} differs by "
        f"{_share(m.error_original[0], m.rms):.2g} of its size, where rounding explains {_share(allowed, m.rms):.2g}",
    )


def overflowed(name: str, runs: Runs) -> tuple[Array, Array]:
    """Where the candidate alone is not finite on the provider, although the value is far from the type's largest
    number; and where it is so close to it that rounding decides: no further than 8 times what a draw moved."""
    y, provided = runs.y[name], (runs.provider_original, runs.provider_candidate)
    if provided[0] is None or provided[1] is None:
        return np.zeros(y.shape, np.bool_), np.zeros(y.shape, np.bool_)
    lost = np.isfinite(_wide(provided[0][name])) & ~np.isfinite(_wide(provided[1][name]))
    if not lost.any():
        return lost, np.zeros_like(lost)
    limit = _LARGEST.get(provided[1][name].dtype.name, math.inf)
    keep = np.isfinite(y)
    most = max((_size((draw[name] - y)[keep])[1] for draw in runs.draws if draw[name].shape == y.shape), default=0.0)
    edge = lost & (np.abs(y) + EDGE * most >= limit)
    return lost & ~edge, edge


def _size(x: Array) -> tuple[float, float]:
    """(rms, largest magnitude), scaled so that no square overflows; NaN counts as infinitely large."""
    largest = float(np.max(np.abs(x)))
    if largest == 0.0:
        return 0.0, 0.0
    if not math.isfinite(largest):
        return math.inf, math.inf
    return largest * float(np.sqrt(np.mean(np.square(x / largest)))), largest


def _share(value: float, of: float) -> float:
    if value == 0.0:
        return 0.0
    return value / of if of > 0 else math.inf


def _wide(x: Array) -> Array:
    return x.astype(np.float64)
