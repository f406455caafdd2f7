"""Where it goes wrong: gate 2 asked after gate 3, and what it adds to the verdict.

A region over its bound is another function where float64 shows one, else worse arithmetic. A bound that holds never
improves on gate 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from bnfold.files import ModelFile

from .catalogue import Choice
from .figures import Judgement
from .gate2 import Gate2, local_bounds
from .inputs import Sample
from .providers import NoProvider, Provider
from .settings import Settings
from .verdict import Verdict

__all__ = ["combined", "located", "without_hidden"]

_HIDDEN = 1e-5  # of the value's rms


def located(
    original: ModelFile,
    candidate: ModelFile,
    samples: Sequence[Sample],
    settings: Settings,
    judgement: Judgement,
    choice: Choice,
    *,
    proven: bool,
) -> tuple[Gate2, Verdict, str]:
    """Gate 2's result, the verdict with it in mind, and the sentence, which names the first region that is wrong.

    proven: gate 1 has shown every weight to be right, in graphs that agree.
    """
    judged = judgement.figures.get("judge") is not None
    different = judgement.verdict is Verdict.NOT_EQUIVALENT if judged else None
    if judgement.verdict is Verdict.INCONCLUSIVE:
        different = None
    arithmetic = "ieee" if choice.is_cpu else "tf32" if choice.tf32 else "gpu"
    try:
        with Provider(
            choice, threads=settings.threads, timeout=settings.timeout, libraries=settings.custom_ops
        ) as provider:
            found = local_bounds(
                original,
                candidate,
                samples,
                provider,
                arithmetic=arithmetic,
                seed=settings.seed,
                different=different,
                own=settings.exact is not None,
            )
    except NoProvider as error:
        found = Gate2((), 0, "ieee", str(error), done=False)
    except MemoryError:
        found = Gate2((), 0, "ieee", "it needs more memory than there is", done=False)
    if judgement.verdict.passed:
        found = without_hidden(found, math.inf if proven else _HIDDEN)
    return found, *combined(found, judgement)


def without_hidden(found: Gate2, limit: float) -> Gate2:
    """The regions without failures that may be none.

    Where gate 3 sees the same function, a region that differs in float64 by less than `limit` has no bound.

    A value that is stored in another way on purpose looks wrong if nothing behind it shows the difference, as a shift
    of 1 beside values of 1e9.
    """
    why = "stored in another way, which nothing behind shows"
    return replace(
        found,
        regions=tuple(
            replace(each, ratio=None, function=None, why=why)
            if each.failed and each.other_function and each.relative < limit
            else each
            for each in found.regions
        ),
    )


def combined(found: Gate2, judgement: Judgement) -> tuple[Verdict, str]:
    """The verdict of gate 3 with gate 2 in mind, and the sentence."""
    guilty = found.first_failure
    verdict, sentence = judgement.verdict, judgement.sentence
    if guilty is None:
        return verdict, sentence
    if verdict in (Verdict.NOT_EQUIVALENT, Verdict.DEGRADED):
        return verdict, f"{sentence.rstrip('.')}; the first place that is wrong: {guilty.sentence}"
    if guilty.other_function:
        unseen = "" if verdict is Verdict.INCONCLUSIVE else ", which the outputs do not show on these inputs"
        return Verdict.NOT_EQUIVALENT, f"{guilty.sentence}{unseen}"
    if verdict is Verdict.INCONCLUSIVE:
        return verdict, sentence
    return Verdict.DEGRADED, f"the same function, but {guilty.sentence}"
