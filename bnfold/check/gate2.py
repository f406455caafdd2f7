"""Gate 2: every region in which the models differ, fed the original's own activations, against a running error bound.

|ŷ_fold − ŷ_orig| ≤ share(fold)·M_fold + share(orig)·M_orig elementwise, both sides on the provider. It does not grow
with depth, and it names the layer. That no wrong fold excuses itself by its M, float64 values must agree as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from bnfold.files import ModelFile

from .cost import estimate
from .evaluation import Regions
from .inputs import Sample
from .measuring import Bounds, Local, OnProvider
from .providers import Provider, ProviderDied
from .regions import Pair
from .sharing import cut
from .teacher import NoValue, Teacher

__all__ = ["Gate2", "Local", "local_bounds"]

Array = npt.NDArray[Any]
BUDGET = 6.0  # estimated seconds for the float64 evaluations of all samples; beyond it one sample has to do
PATIENCE = 90.0  # estimated seconds beyond which the gate is left out
_EVALUATIONS = 5  # of each sample, as far as the models differ


@dataclass(frozen=True)
class Gate2:
    """All regions in topological order. `done` is False where the gate could not be asked; `note` says why, or what
    was left out."""

    regions: tuple[Local, ...]
    samples: int
    arithmetic: str
    note: str = ""
    done: bool = True

    @property
    def failures(self) -> list[Local]:
        return [local for local in self.regions if local.failed]

    @property
    def passed(self) -> bool:
        return self.done and not self.failures

    @property
    def first_failure(self) -> Local | None:
        """The region to blame: the first one that is another function in float64, else the first over its bound."""
        return next((r for r in self.failures if r.other_function), next(iter(self.failures), None))

    @property
    def sentence(self) -> str:
        """One line for people."""
        if not self.done:
            return f"was not asked: {self.note}"
        if not self.regions:
            same = (
                "what differs reaches no output" if self.samples else "the models do not differ in any node or weight"
            )
            return _noted(same, self.note)
        bounded = [r for r in self.regions if r.ratio is not None]
        inside = [r for r in bounded if not r.failed]
        text = f"{len(inside)} of {len(bounded)} folds within the bound" if bounded else "no fold has a bound"
        if bounded:
            worst = max(bounded, key=lambda r: r.ratio or 0.0)
            text += f", the worst at {worst.ratio:.2g} of it ({worst.name})"
        without = [r for r in self.regions if r.ratio is None]
        if without:
            reasons = ", ".join(dict.fromkeys(_short(r.why) for r in without[:3]))
            text += f"; no bound for {len(without)} ({reasons})" if bounded else f" ({reasons})"
        guilty = self.first_failure
        if guilty is not None:
            text += f"; {guilty.sentence}"
        return _noted(text, self.note)

    def to_dict(self) -> dict[str, Any]:
        bounded = [r for r in self.regions if r.ratio is not None]
        guilty = self.first_failure
        return {
            "done": self.done,
            "passed": self.passed,
            "sentence": self.sentence,
            "arithmetic": self.arithmetic,
            "samples": self.samples,
            "within": sum(not r.failed for r in bounded),
            "bounded": len(bounded),
            "worst": max((r.ratio or 0.0 for r in bounded), default=None),
            "first_failure": None if guilty is None else guilty.name,
            "regions": [r.to_dict() for r in self.regions],
        }


def _short(why: str, limit: int = 80) -> str:
    return why if len(why) <= limit else why[:limit].rstrip() + " ..."


def _noted(text: str, note: str) -> str:
    return f"{text}; {note}" if note else text


def local_bounds(
    original: ModelFile,
    candidate: ModelFile,
    samples: Sequence[Sample],
    provider: Provider,
    *,
    arithmetic: str = "ieee",
    seed: int = 0,
    different: bool | None = None,
    own: bool = False,
) -> Gate2:
    """Gate 2 on a pair of models, whoever made the second.

    samples: inputs on which the original runs. arithmetic: the provider's, "ieee" (a CPU), "gpu" or "tf32".
    different: what is known of the whole, True: another function, so that the one that is wrong is to be found; False:
    the same; None: nothing. own: the folded weights were rounded once, from float64.

    Whatever goes wrong on the way is said in `Gate2.note`; nothing is raised but MemoryError.
    """
    pair = Pair(original, candidate)
    shared = set(pair.original.inputs)
    if all(pair.identical(pair.region(name, shared | set(pair.names))) for name in pair.names):
        return Gate2((), 0, arithmetic)
    seconds = [_EVALUATIONS * estimate(original.model, sample.shapes).seconds for sample in samples]
    if not seconds or min(seconds) > PATIENCE:
        why = f"it would take about {min(seconds):.0f} s" if seconds else "there are no samples"
        return Gate2((), 0, arithmetic, why, done=False)
    note = ""
    if sum(seconds) > BUDGET and len(samples) > 1:
        samples, note = [samples[int(np.argmin(seconds))]], "on one sample, for the model is large"
    try:
        teacher = Teacher(original, samples, provider, pair.names)
        teacher.fetch(sorted(_boundary(pair, shared | set(pair.names))))
        regions = Regions(pair, partial(_values, teacher), len(samples))
        bounds = Bounds(regions, [sample.kind for sample in samples], OnProvider(provider), arithmetic, own)
        cuts, unopened = cut(regions, seed=seed, different=different, settle=bounds.prepare)
        locals_ = tuple(bounds.of(cuts))
    except ProviderDied as error:
        return Gate2((), 0, arithmetic, f"the provider died of a part of the models: {error}".rstrip("."), done=False)
    return Gate2(locals_, len(samples), arithmetic, "; ".join(filter(None, (note, unopened))))


def _boundary(pair: Pair, shared: set[str]) -> set[str]:
    """What the regions read if every name means the same in both."""
    regions = (pair.region(name, shared) for name in pair.names)
    return {name for region in regions if not pair.identical(region) for name in region.inputs}


def _values(teacher: Teacher, index: int, names: frozenset[str]) -> Mapping[str, Array]:
    try:
        return teacher.values(index, sorted(names))
    except NoValue as error:
        raise LookupError(str(error)) from error
