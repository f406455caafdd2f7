# torch leaves parts of its interface untyped: what comes from them is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Which statistics are best is measured: each method's model runs over held-out data, and the scores are compared.

A method replaces the sequential one only if its mean paired difference has a 95 % confidence interval above 0, all
methods together (Bonferroni). Small batches can favour the training batches' statistics, on which later weights learnt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from ..errors import BnfoldError, UsageError
from .feeding import again, batches
from .methods import Estimator, Method, NotEstimable
from .moments import Moments, merged

Score = Callable[[Any, Any], Tensor]
HELD_OUT = 5  # every fifth batch, unless held-out data is given
ENOUGH = 30  # samples, for a mean to be about normally distributed
CONFIDENCE = 0.95
OTHERS: tuple[Method, ...] = ("pooled", "algorithm2")


@dataclass(frozen=True)
class Choice:
    """The method, or "stored" for the statistics that were there, and why, in a sentence.

    scores: mean held-out score by method. intervals: of the difference from sequential, (low, high).
    """

    method: Any
    why: str
    scores: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]


def choose(estimator: Estimator, held_out: Iterable[Any] | None, score: Score | None) -> Choice:
    """Compare the methods on held-out data; the model's statistics are those of the last one tried afterwards."""
    if not again(estimator.loader):
        return Choice("pooled", "pooled, for an iterator can be read only once", {}, {})
    if held_out is not None and not again(held_out):
        raise UsageError("held_out is an iterator, which can be read once; every method has to be tried on it.")
    usable = not estimator._unusable()  # pyright: ignore[reportPrivateUsage] -- a method's, for this alone
    found: dict[str, Tensor] = {}
    judge = _Judge(estimator, held_out, score or default_score)
    # A rank whose estimate fails says so at the gather of its pass; one whose scores fail, at the only gather below.
    failure: Exception | None = None
    methods: list[Method] = ["sequential", *OTHERS]
    for method in (*methods, *((None,) if usable else ())):
        if method is None:
            estimator.saved.restore(estimator.layers)
        else:
            trial = replace(estimator, poisons=[], without=set[int](), keep=judge.estimates)
            try:
                trial.estimate(method)
            except NotEstimable:
                found[method] = torch.empty(0, dtype=torch.float64)
                continue
        if failure is None:
            try:
                found[method or "stored"] = judge.scores()
            except Exception as error:
                failure = error
    estimator.saved.restore(estimator.layers)
    if failure is not None:
        with suppress(BnfoldError):
            estimator.ranks.fail(3 * 2 * (len(OTHERS) + 2))
        raise failure
    return _decide(estimator, found)


def default_score(output: Any, batch: Any) -> Tensor:
    """[N]: the share of right classes, where output is [N, K, ...] and the targets are integers; else −(y − t)²."""
    output, target = first_tensor(output), _target(batch)
    if output is None or target is None:
        raise _NoTargets
    target = target.to(output.device)
    if not target.is_floating_point() and output.dim() >= 2 and target.shape == (output.shape[0], *output.shape[2:]):
        return (output.argmax(1) == target).double().reshape(len(target), -1).mean(1)
    if target.is_floating_point() and target.shape == output.shape:
        return -(output.double() - target.double()).square().reshape(len(target), -1).mean(1)
    raise _NoTargets


def first_tensor(value: Any) -> Tensor | None:
    """The first tensor of floating point in an output: itself, or within a tuple, list or dict."""
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else None
    items: Iterable[Any] = value.values() if isinstance(value, Mapping) else value if _sequence(value) else ()
    return next((found for item in items if (found := first_tensor(item)) is not None), None)


class _NoTargets(Exception):
    """The batches say nothing that the default score could compare an output with."""


class _Judge:
    def __init__(self, estimator: Estimator, held_out: Iterable[Any] | None, score: Score) -> None:
        self.estimator, self.held_out, self.score = estimator, held_out, score

    def estimates(self, index: int) -> bool:
        """Whether this batch of the loader is one to estimate from."""
        return self.held_out is not None or index % HELD_OUT != HELD_OUT - 1

    def scores(self) -> Tensor:
        """One number a held-out sample of this rank, float64; empty where there are none, or no targets."""
        estimator, found = self.estimator, [torch.empty(0, dtype=torch.float64)]
        estimator.random.restore()
        loader = estimator.loader if self.held_out is None else self.held_out
        limit = estimator.limit if self.held_out is None else None
        for index, batch in enumerate(batches(loader, limit, estimator.device)):
            if self.held_out is None and self.estimates(index):
                continue
            output = estimator.forward(estimator.model, batch)
            try:
                found.append(self.score(output, batch).detach().double().cpu().flatten())
            except _NoTargets:
                return torch.empty(0, dtype=torch.float64)
        return torch.cat(found)


def _decide(estimator: Estimator, found: Mapping[str, Tensor]) -> Choice:
    base = found["sequential"]
    columns: list[Tensor] = []
    names = ("sequential", *OTHERS, "stored")
    for name in names:
        own = found.get(name, torch.empty(0, dtype=torch.float64))
        for values in (own, own - base if own.shape == base.shape else own[:0]):
            moments = Moments.of(values.reshape(-1, 1))
            columns += [moments.n.reshape(1), moments.mean, moments.m2]
    gathered = estimator.ranks.gather(torch.cat(columns))
    rows = [part.reshape(len(names), 2, 3) for part in gathered]
    totals = {
        name: tuple(merged([Moments(r[i, j, 0], r[i, j, 1:2], r[i, j, 2:3]) for r in rows]) for j in (0, 1))
        for i, name in enumerate(names)
    }
    count = int(totals["sequential"][0].n)
    if count < ENOUGH:
        why = f"sequential, for only {count} held-out samples with targets could be scored ({ENOUGH} are needed)"
        return Choice("sequential", why, {}, {})
    compared = [name for name in names[1:] if int(totals[name][1].n) == count]
    quantile = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / (2 * max(1, len(compared))))
    scores = {name: float(totals[name][0].mean) for name in ("sequential", *compared)}
    intervals: dict[str, tuple[float, float]] = {}
    for name in compared:
        difference = totals[name][1]
        half = quantile * float(difference.unbiased_var / difference.n) ** 0.5
        intervals[name] = (float(difference.mean) - half, float(difference.mean) + half)
    better = [name for name in compared if intervals[name][0] > 0]
    best = max(better, key=lambda name: scores[name]) if better else "sequential"
    shown = "; ".join(f"{name} {scores[name]:.4g}, {lo:+.2g} to {hi:+.2g}" for name, (lo, hi) in intervals.items())
    because = "it is better with confidence" if better else "none is better with confidence"
    why = f"{best}, {because}: mean score on {count} held-out samples, sequential {scores['sequential']:.4g}; {shown}"
    return Choice(best, why, scores, intervals)


def _target(batch: Any) -> Tensor | None:
    if isinstance(batch, Mapping):
        batch = (None, batch.get("labels", batch.get("target")))
    if isinstance(batch, tuple | list) and len(batch) > 1 and isinstance(batch[1], Tensor):
        return batch[1]
    return None


def _sequence(value: Any) -> bool:
    return isinstance(value, tuple | list)
