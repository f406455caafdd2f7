"""Comparison without a judge: both models on the provider, under torch.testing's tolerances scaled by rms(y).

It cannot tell rounding from a fault where they are of a size, and says so.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .compare import Array, same_places, vacuous
from .figures import Judgement
from .running import Provided
from .verdict import Settled, Verdict

__all__ = ["provider_only"]

# torch.testing's (rtol, atol) for each type, atol in units of rms(y)
_TOLERANCES = {"float64": (1e-7, 1e-7), "float32": (1.3e-6, 1e-5), "float16": (1e-3, 1e-5), "bfloat16": (1.6e-2, 1e-5)}
_PLAINLY = 100.0  # tolerances: without a judge, this far off is another function


def provider_only(names: Sequence[str], provided: Provided, reason: str) -> Judgement:
    """No float64 judge: both models' outputs on the provider under torch.testing's tolerance, scaled by rms(y)."""
    worst, where = 0.0, ""
    for y, folded in zip(provided.original, provided.candidate, strict=True):
        for name in names:
            if y[name].shape != folded[name].shape:
                raise Settled(
                    Verdict.NOT_EQUIVALENT,
                    f"output {name!r} has the shape {list(y[name].shape)} in the original and "
                    f"{list(folded[name].shape)} in the candidate",
                )
            used = _tolerance_used(y[name], folded[name])
            if used > worst or not where:
                worst, where = max(worst, used), name
    reasons = vacuous([{name: sample[name] for name in names} for sample in provided.original])
    line = f"there was no float64 judge: {reason}"
    figures: dict[str, Any] = {
        "judge": None,
        "why_no_judge": reason,
        "lines": [line, f"on the provider: {worst:.2g} of torch.testing's tolerance, scaled by rms (output {where!r})"],
        "tolerance": {"used": worst, "output": where},
    }
    if worst > _PLAINLY:
        sentence = f"output {where!r} differs on the provider by {worst:.3g} times torch.testing's tolerance; {line}"
        return Judgement(Verdict.NOT_EQUIVALENT, sentence, reasons, figures)
    if worst > 1:
        sentence = f"output {where!r} differs by {worst:.2g} times the tolerance, which may be rounding or not; {line}"
        return Judgement(Verdict.INCONCLUSIVE, sentence, reasons, figures)
    if all(reasons):
        sentence = f"no sample could have shown a difference: outputs are {', '.join(dict.fromkeys(reasons))}"
        return Judgement(Verdict.INCONCLUSIVE, sentence, reasons, figures)
    sentence = f"the outputs agree within torch.testing's tolerances on the provider; {line}"
    return Judgement(Verdict.EQUIVALENT, sentence, reasons, figures)


def _tolerance_used(y: Array, other: Array) -> float:
    if y.size == 0:
        return 0.0
    if str(y.dtype) not in _TOLERANCES:
        return 0.0 if np.array_equal(y, other) else float("inf")
    wide, theirs = y.astype(np.float64), other.astype(np.float64)
    if not same_places(wide, theirs):
        return float("inf")
    keep = np.isfinite(wide)
    if not keep.any():
        return 0.0
    rtol, atol = _TOLERANCES[str(y.dtype)]
    wide, difference = wide[keep], np.abs(theirs[keep] - wide[keep])
    allowed = rtol * np.abs(wide) + atol * float(np.sqrt(np.mean(np.square(wide))))
    return float(np.max(np.divide(difference, allowed, out=np.where(difference > 0, np.inf, 0.0), where=allowed > 0)))
