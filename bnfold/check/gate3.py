"""Gate 3 on evaluated samples: measures, failures and the verdict that follows from them.

The judge's agreement with the provider comes first, then question (a), then (b). Where the model rounds values inside
(Floor, Cast to an integer, Quantize), a bound that is exceeded is measured again against draws of ±32u.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .compare import (
    Array,
    Failure,
    Measure,
    Outputs,
    Runs,
    agrees,
    failures,
    luck,
    measure,
    overflowed,
    same_places,
    vacuous,
)
from .discrete import Flips, compare_discrete
from .figures import Found, Judgement, figures_of, listed, notes_on
from .judge import Judge
from .running import Provided
from .verdict import Settled, Verdict

__all__ = ["judge_pair"]

CLEARLY = 0.5  # a candidate with less than half of the original's error is called more accurate
_LUCK = 0.01  # of the elements that overflow in the original already: so many more may do so in the candidate
_MANY = 100  # elements, from which on that is no luck
_ASK_OWN = 3.0  # δ: an original this close to the truth needs no second opinion from the judge in float32
_NEARBY = 3  # models nearby that are asked as well before judge and provider are said to disagree


def judge_pair(
    judge: Judge,
    provided: Provided | None,
    *,
    samples: int,
    draws: int,
    seed: int,
    u: float,
    c: float,
    jumps: dict[str, int],
    coarser: float = 1.0,
) -> Judgement:
    """Both questions, over all samples.

    u: the unit roundoff of the weights. c: how much worse the provider's arithmetic may become. jumps: see steps.py.
    coarser: how many times the provider's own roundoff is that of its types (TF32).
    """
    y = judge.original()
    candidate, exact = judge.candidate(), judge.exact()
    names = judge.outputs
    for k in range(samples):
        _same_shapes(names, y[k], candidate[k], None if provided is None else provided.original[k])
        _same_nonfinite(names, y[k], candidate[k])
    hats = [None] * samples if provided is None else provided.original
    reasons = vacuous([_comparable(names, y[k], hats[k]) for k in range(samples)])
    drawn = [judge.draw(number, seed) for number in range(draws)]
    runs = [_runs(k, y, candidate, exact, drawn, provided) for k in range(samples)]
    found = Found(*_compare(judge, runs, c, u, coarser, seed))
    if jumps and found.failures:
        drawn = [judge.draw(number, seed, wide=True) for number in range(3)]
        wide = [_runs(k, y, candidate, exact, drawn, provided) for k in range(samples)]
        found = Found(*_compare(judge, wide, c, u, coarser, seed), widened=True)
    return _decide(judge, runs, found, reasons, jumps, exact is not None, provided is not None)


def _comparable(names: Sequence[str], y: Outputs, provider: Outputs | None) -> dict[str, Array]:
    """y64, with NaN where the original is not finite on the provider: nothing can be compared there."""
    if provider is None:
        return {name: y[name] for name in names}
    shown: dict[str, Array] = {}
    for name in names:
        floating = y[name].dtype.kind == "f"
        shown[name] = np.where(np.isfinite(_wide(provider[name])), y[name], np.nan) if floating else y[name]
    return shown


def _runs(
    k: int,
    y: list[dict[str, Array]],
    candidate: list[dict[str, Array]],
    exact: list[dict[str, Array]] | None,
    drawn: list[list[dict[str, Array]]],
    provided: Provided | None,
) -> Runs:
    return Runs(
        y[k],
        candidate[k],
        None if exact is None else exact[k],
        [draw[k] for draw in drawn],
        None if provided is None else provided.original[k],
        None if provided is None else provided.candidate[k],
    )


def _compare(
    judge: Judge, runs: Sequence[Runs], c: float, u: float, coarser: float, seed: int
) -> tuple[list[Measure], list[Flips], list[Failure]]:
    measures: list[Measure] = []
    flips: list[Flips] = []
    found: list[Failure] = []
    for k, sample in enumerate(runs):
        for name in judge.outputs:
            if sample.y[name].size == 0:
                continue
            if sample.y[name].dtype.kind in "iub":
                flip, lost = compare_discrete(name, sample, judge, c)
                flips.append(flip)
                found.extend(lost)
                continue
            found.extend(_finite_on_provider(name, sample))
            if (m := measure(name, k, sample)) is not None:
                measures.append(m)
    found.extend(failures(measures, c, u))
    for m in measures:
        found.extend(_second_opinion(m, judge, runs[m.sample], coarser, seed))
    return measures, flips, found


def _second_opinion(m: Measure, judge: Judge, runs: Runs, coarser: float, seed: int) -> list[Failure]:
    """The judge in the model's own types, asked only where the provider is further from y64 than rounding explains."""
    if m.error_original is None or m.error_original[0] <= _ASK_OWN * luck(m.elements) * m.delta:
        return []
    y = runs.y[m.output]
    own = _rms(judge.own_types(m.sample)[m.output], y)
    failure = agrees(m, own if coarser == 1 else coarser * max(own, m.delta))
    for number in range(_NEARBY):
        if failure is None:
            return []
        # where rounding is all there is (a normalization of a constant), one evaluation may meet none of it by chance
        truth, mine = judge.nearby(m.sample, number, seed)
        own = max(own, _rms(mine[m.output], truth[m.output]))
        failure = agrees(m, own if coarser == 1 else coarser * max(own, m.delta))
    return [] if failure is None else [failure]


def _rms(mine: Array, y: Array) -> float:
    wide = mine.astype(np.float64)
    keep = np.isfinite(y) & np.isfinite(wide)
    return float(np.sqrt(np.mean(np.square(wide[keep] - y[keep])))) if keep.any() else 0.0


def _same_shapes(names: Sequence[str], y: Outputs, candidate: Outputs, provider: Outputs | None) -> None:
    for name in names:
        if candidate[name].shape != y[name].shape:
            raise Settled(
                Verdict.NOT_EQUIVALENT,
                f"output {name!r} has the shape {list(y[name].shape)} in the original and "
                f"{list(candidate[name].shape)} in the candidate",
            )
        if provider is not None and provider[name].shape != y[name].shape:
            raise Settled(
                Verdict.INCONCLUSIVE,
                f"judge and provider disagree about the original: output {name!r} has the shape "
                f"{list(y[name].shape)} here and {list(provider[name].shape)} there",
            )


def _same_nonfinite(names: Sequence[str], y: Outputs, candidate: Outputs) -> None:
    for name in names:
        if not same_places(y[name], candidate[name]):
            raise Settled(
                Verdict.NOT_EQUIVALENT, f"NaN or infinities stand in other places of output {name!r} in the candidate"
            )


def _finite_on_provider(name: str, runs: Runs) -> list[Failure]:
    if runs.provider_original is None or runs.provider_candidate is None:
        return []
    truth, hat = (np.isfinite(_wide(x)) for x in (runs.y[name], runs.provider_original[name]))
    if (hat & ~truth).any():
        return [
            Failure(
                "judge",
                f"judge and provider disagree about the original: output {name!r} is finite only on the provider",
            )
        ]
    lost = int(overflowed(name, runs)[0].sum())
    if lost <= _LUCK * int((truth & ~hat).sum()):  # at the end of a type's range rounding decides about the last ones
        return []
    return [
        Failure("arithmetic", f"output {name!r} overflows on the provider in {lost} elements, not so in the original")
    ]


def _decide(
    judge: Judge,
    runs: Sequence[Runs],
    found: Found,
    reasons: list[str],
    jumps: dict[str, int],
    has_exact: bool,
    has_provider: bool,
) -> Judgement:
    warnings = notes_on(judge.outputs, runs, found, jumps)
    figures = figures_of(found, has_exact, has_provider)
    by_question = {q: [f for f in found.failures if f.question == q] for q in ("judge", "same_function", "arithmetic")}
    exactly = _lost_exactness(found.measures, jumps)
    if by_question["judge"]:
        verdict, sentence = Verdict.INCONCLUSIVE, by_question["judge"][0].sentence
    elif by_question["same_function"]:
        verdict, sentence = Verdict.NOT_EQUIVALENT, by_question["same_function"][0].sentence
    elif by_question["arithmetic"] or exactly:
        cause = by_question["arithmetic"][0].sentence if by_question["arithmetic"] else exactly
        verdict = Verdict.DEGRADED
        sentence = f"the same function, but worse conditioned: {cause}"
    elif all(reasons):
        listed = ", ".join(dict.fromkeys(reasons))
        verdict = Verdict.INCONCLUSIVE
        sentence = f"no sample could have shown a difference: the original's outputs are {listed} in all {len(reasons)}"
    else:
        verdict, sentence = _passed(found, figures, has_exact, has_provider)
    failed = {f.question for f in found.failures} | ({"arithmetic"} if exactly else set[str]())
    return Judgement(verdict, sentence, reasons, figures, warnings, by_question["arithmetic"], frozenset(failed))


def _passed(found: Found, figures: dict[str, Any], has_exact: bool, has_provider: bool) -> tuple[Verdict, str]:
    same = "the same function"
    if found.measures:
        key = "exact_share" if has_exact else "stored_share"
        same += f", float64 outputs agree to {figures['same_function'][key]:.1e} of their size"
    if not has_provider:
        return Verdict.EQUIVALENT, f"{same}; no provider ran"
    ratio = figures.get("arithmetic", {}).get("error_ratio")
    if ratio is None:
        return Verdict.EQUIVALENT, same
    elements = sum(m.elements for m in found.measures)
    original, candidate = figures["arithmetic"]["error_original"], figures["arithmetic"]["truth_candidate"]
    if elements >= _MANY and candidate < CLEARLY * original:
        return (
            Verdict.MORE_ACCURATE,
            f"{same}, closer to the truth: its error on the provider is {candidate / original:.2g} of the original's",
        )
    return Verdict.EQUIVALENT, f"{same}; its error on the provider is {ratio:.2f} of the original's"


def _lost_exactness(measures: Sequence[Measure], jumps: dict[str, int]) -> str:
    """An original that is exact on the provider and rounds inside means integers: there the fold must be exact too."""
    if not jumps or any(m.error_original is None or m.error_original[0] > 0 for m in measures):
        return ""
    wrong = next((m for m in measures if m.rms > 0 and not m.bit_equal), None)
    if wrong is None:
        return ""
    return (
        f"the original is exact on the provider and rounds inside ({listed(jumps)}), "
        f"but output {wrong.output!r} of the candidate is not"
    )


def _wide(x: Array) -> Array:
    return x.astype(np.float64)
