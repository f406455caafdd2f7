"""Which names mean the same in both models: two values that agree in float64, computed from the same operands.

Regions are cut from the inputs on. A value that agrees with its namesake to rounding (2δ of the region) is shared, and
what follows starts from the original's. One that does not may be stored as another thing there (a scale that is made
good later): it is left inside the region of whatever agrees next. If nothing does, one of them is wrong, and is named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from bnfold.errors import UnsupportedOp
from bnfold.reference import EvaluationError, Evaluator

from .compare import JUDGE, SAME, luck, same_places
from .regions import Pair, Region
from .rounding import Weights, lifted, unit_roundoff

__all__ = ["Agreement", "Cut", "cut", "evaluated"]

Array = npt.NDArray[Any]
Values = Callable[[int, frozenset[str]], Mapping[str, Array]]
FAULT = 64.0  # times 2δ: a region whose float64 values differ by so much is another function
_NEAR = 1e-4  # of rms: another meaning is seldom so close; rather it is the same value with an error in it
_STRIKES = 2  # values behind one that differs which differ too, before it is taken for wrong
_TRIED = 6  # values that are tried as the wrong one
_DRAWS = 2
_CHANNEL = 16  # elements from which on the rms of a channel is not small by chance
_WORK = 6  # nodes evaluated, in nodes of the model, beyond which no more regions are opened up


@dataclass(frozen=True)
class Agreement:
    """How a region's two sides compare in float64 on the same operands. `share`: of 2δ, in rms or largest element."""

    known: bool
    share: float
    relative: float = 0.0  # the rms difference, of the original's rms
    why: str = ""

    @property
    def same(self) -> bool:
        return self.known and self.share <= 1

    @property
    def near(self) -> bool:
        """Perhaps the same value with an error in it, perhaps one that is scaled by nearly one."""
        return self.known and not self.same and self.relative <= _NEAR


@dataclass(frozen=True)
class Cut:
    """A region in which the models differ, and whether its sides agree in float64."""

    region: Region
    agreement: Agreement


def evaluated(
    model: onnx.ModelProto, directory: Any, feeds: Mapping[str, Array], names: list[str] | None = None
) -> dict[str, Array]:
    """Values of a region in float64. Raises UnsupportedOp, EvaluationError."""
    wanted = {value.name for value in model.graph.input}
    with np.errstate(all="ignore"):
        return Evaluator(model, directory=directory).run({k: v for k, v in feeds.items() if k in wanted}, names)


class _Comparer:
    """Evaluates both sides of regions in float64, each once."""

    def __init__(self, pair: Pair, values: Values, samples: int, seed: int) -> None:
        self._pair, self._values, self._samples, self._seed = pair, values, samples, seed
        self._known: dict[Region, Agreement] = {}
        self.work = 0

    def __call__(self, region: Region) -> Agreement:
        if region not in self._known:
            self.work += len(region.original.nodes) + len(region.candidate.nodes)
            try:
                found = [self._compared(region, k) for k in range(self._samples)]
                self._known[region] = max(found, key=lambda agreement: agreement.share)
            except (UnsupportedOp, EvaluationError, LookupError) as error:
                self._known[region] = Agreement(False, 0.0, why=str(error).rstrip("."))
        return self._known[region]

    def _compared(self, region: Region, sample: int) -> Agreement:
        feeds = self._values(sample, region.inputs)
        kinds = {name: value.dtype for name, value in feeds.items()}
        models = [self._pair.model(region, which, kinds) for which in (0, 1)]
        sides = self._pair.original, self._pair.candidate
        y, other = (evaluated(m, s.directory, feeds)[region.end] for m, s in zip(models, sides, strict=True))
        if y.shape != other.shape or y.dtype.kind != other.dtype.kind or not same_places(y, other):
            return Agreement(True, np.inf, np.inf)
        if y.dtype.kind != "f":
            return Agreement(True, 0.0) if np.array_equal(y, other) else Agreement(True, np.inf, np.inf)
        keep = np.isfinite(y)
        if not keep.any():
            return Agreement(True, 0.0)
        rms, largest = _size(y[keep])
        off, most = _size((other - y)[keep])
        u = unit_roundoff(models[0])
        channels = _channels(y, u)
        sizes, offs = ([_sizes(x, axis) for axis in channels] for x in (y, other - y))
        if off <= 2 * u * rms and most <= 2 * u * largest and all(map(_within, offs, sizes, [2 * u] * len(sizes))):
            return Agreement(True, off / (2 * u * rms) if rms else 0.0, off / rms if rms else 0.0)
        drawn = self._drawn(models[0], feeds, region.end, y)
        moved = [_size(d[keep]) for d in drawn]
        delta = max(u * rms / 4, *(d for d, _ in moved))
        allowed = SAME * luck(int(keep.sum())) * delta + JUDGE * rms
        allowed_most = 4 * (SAME * luck(int(keep.sum())) * max(delta, *(d for _, d in moved)) + JUDGE * largest)
        share = max(off / allowed, most / allowed_most) if allowed else np.inf
        for axis, size, away in zip(channels, sizes, offs, strict=True):
            room = SAME * luck(y.size // y.shape[axis])
            each = np.max([u * size / 4, *(_sizes(d, axis) for d in drawn)], axis=0)
            # a dead channel's folded weights may be subnormal: next to the others that is nothing
            allowed_each = room * each + JUDGE * size + 2.0**-80 * rms
            with np.errstate(all="ignore"):
                used = np.where(away > 0, away / allowed_each, 0.0)
            share = max(share, float(np.max(used, initial=0.0)))
        return Agreement(True, float(share), float(off / rms) if rms else np.inf)

    def _drawn(self, model: onnx.ModelProto, feeds: Mapping[str, Array], end: str, y: Array) -> list[Array]:
        """What moving the original's weights by ±u does to the region's end."""
        base = lifted(model)
        directory = self._pair.original.directory
        weights = Weights(base, directory)
        given = {value.name for value in base.graph.input}
        inside = {name: value for name, value in feeds.items() if name in given}
        found: list[Array] = []
        for draw in range(_DRAWS):
            perturbed, moved = weights.perturbed(self._seed, draw)
            with np.errstate(all="ignore"):
                value = Evaluator(perturbed, directory=directory, exact=moved).run(inside, [end])[end]
                found.append(value - y if value.shape == y.shape else np.zeros_like(y))
        return found


def _channels(y: Array, u: float) -> list[int]:
    """The axes along which a shift could hide beside larger channels; half floats have too small a range for that."""
    if y.ndim < 2 or u > 2.0**-24 or not np.isfinite(y).all():
        return []
    return [axis for axis in dict.fromkeys((1, y.ndim - 1)) if y.shape[axis] and y.size // y.shape[axis] >= _CHANNEL]


def _sizes(x: Array, axis: int) -> Array:
    """The rms of each channel."""
    others = tuple(k for k in range(x.ndim) if k != axis)
    largest = np.max(np.abs(x), axis=others, keepdims=True)
    scaled = np.divide(x, largest, out=np.zeros_like(x), where=largest > 0)
    return (largest * np.sqrt(np.mean(np.square(scaled), axis=others, keepdims=True))).reshape(-1)


def _within(off: Array, size: Array, share: float) -> bool:
    return bool(np.all(off <= share * size))


def _size(x: Array) -> tuple[float, float]:
    largest = float(np.max(np.abs(x), initial=0.0))
    if largest == 0.0 or not np.isfinite(largest):
        return largest, largest
    return largest * float(np.sqrt(np.mean(np.square(x / largest)))), largest


def cut(pair: Pair, values: Values, samples: int, *, seed: int, different: bool | None) -> tuple[list[Cut], str]:
    """The regions in which the models differ, in topological order, and a note where not all could be opened up.

    values: the original's activations by number of the sample and names. different: whether the models are known to be
    different functions; False: known to be the same, None: it is found out here, at the outputs.
    """
    return _Search(pair, _Comparer(pair, values, samples, seed), different).run()


class _Search:
    def __init__(self, pair: Pair, compare: _Comparer, different: bool | None) -> None:
        self._pair, self._compare, self._different = pair, compare, different
        self._names = pair.names
        self._place = {name: k for k, name in enumerate(self._names)}
        self._outputs = set(pair.original.outputs)
        self._shared: set[str] = set(pair.original.inputs)
        self._cuts: dict[str, Cut] = {}
        self._strikes: dict[str, int] = {}  # of the values that differ from their namesakes, in order

    def run(self) -> tuple[list[Cut], str]:
        limit = _WORK * (len(self._pair.original.nodes) + len(self._pair.candidate.nodes)) + 200
        position = 0
        while position < len(self._names):
            if self._compare.work > limit:
                return list(self._cuts.values()), f"not all regions were opened up (from {self._names[position]!r} on)"
            position = self._visit(self._names[position])
        return list(self._cuts.values()), ""

    def _visit(self, name: str) -> int:
        """Decide on one value; returns the position of the next one."""
        following = self._place[name] + 1
        if name not in self._outputs and self._pair.carried(name):
            before = [r for r in self._pair.original.reads[self._pair.original.made[name]] if r in self._place]
            if any(r in self._strikes for r in before):
                self._strikes[name] = 0
                return following
        region = self._pair.region(name, self._shared)
        if self._pair.identical(region):
            self._shared.add(name)
            return following
        agreement = self._compare(region)
        if agreement.same:
            drowned = self._drowned(name, region, agreement)
            if drowned is not None:
                return self._blame(drowned)
            self._accept(name, region, agreement)
            return following
        if not agreement.known:
            self._strikes[name] = 0
            if name in self._outputs:
                self._cuts[name] = Cut(region, agreement)
            return following
        return self._differs(name, region, agreement)

    def _accept(self, name: str, region: Region, agreement: Agreement) -> None:
        self._shared.add(name)
        self._cuts[name] = Cut(region, agreement)

    def _differs(self, name: str, region: Region, agreement: Agreement) -> int:
        following = self._place[name] + 1
        chain = self._inside(region)
        for other in chain:
            self._strikes[other] += 1
        self._strikes[name] = 0
        tired = any(self._strikes[other] >= _STRIKES for other in chain)
        last = name in self._outputs
        if self._different is False or not (last or (tired and self._different)):
            if last:
                self._cuts[name] = Cut(region, agreement)
            return following
        return self._blame(self._culprit([*chain, name]))

    def _drowned(self, name: str, region: Region, agreement: Agreement) -> str | None:
        """A value inside that differs, although what follows takes it for the original's: an error that the next
        layers' rounding hides, not another meaning. A channel that nobody reads is like that too: so it is asked only
        where something is known to be wrong, or where the values are nearly the same."""
        for other in self._inside(region):
            itself = self._region(other)
            if not self._pair.changed_weights(itself) or not (self._different or self._compare(itself).near):
                continue
            forced = self._compare(self._pair.region(name, self._shared | {other}))
            if forced.same and (self._different or forced.share < agreement.share / 2):
                return other
        return None

    def _inside(self, region: Region) -> list[str]:
        """The values in the region that differ from their namesakes, in order."""
        inside = {out for k in region.candidate.nodes for out in self._pair.candidate.nodes[k].output}
        return sorted((other for other in self._strikes if other in inside), key=self._place.__getitem__)

    def _blame(self, culprit: str) -> int:
        """Take the value for the same one, computed wrongly, and start again behind it."""
        self._rewind(culprit)
        region = self._pair.region(culprit, self._shared)
        self._accept(culprit, region, self._compare(region))
        return self._place[culprit] + 1

    def _rewind(self, culprit: str) -> None:
        """Forget what was decided from the culprit on."""
        place = self._place[culprit]
        later = {name for name in self._shared if self._place.get(name, -1) >= place}
        self._shared -= later
        self._cuts = {name: found for name, found in self._cuts.items() if self._place[name] < place}
        self._strikes = {name: 0 for name in self._strikes if self._place[name] < place}

    def _culprit(self, chain: list[str]) -> str:
        """The value of a chain of differing ones behind which everything agrees again, if it is taken as it is."""
        plausible = [name for name in chain if self._pair.changed_weights(self._region(name))]
        for name in plausible[:_TRIED]:
            if self._heals(name):
                return name
        shorter = [name for name in plausible if self._loses_nodes(self._region(name))]
        return next(iter((*shorter, *plausible, *chain)))

    def _region(self, name: str) -> Region:
        place = self._place[name]
        return self._pair.region(name, {n for n in self._shared if self._place.get(n, -1) < place})

    def _loses_nodes(self, region: Region) -> bool:
        return len(region.candidate.nodes) < len(region.original.nodes)

    def _heals(self, name: str) -> bool:
        place = self._place[name]
        shared = {n for n in self._shared if self._place.get(n, -1) < place} | {name}
        for other in self._names[place + 1 :]:
            region = self._pair.region(other, shared)
            if self._pair.identical(region):
                shared.add(other)
            elif name in region.inputs:
                return self._compare(region).same
        return True
