"""Which names mean the same in both models: two values that agree in float64, computed from the same operands.

Regions are cut from the inputs on. A value that agrees with its namesake to rounding (2δ of the region) is shared, and
what follows starts from the original's. One that does not may be stored as another thing there (a scale that is made
good later): it is left inside the region of whatever agrees next. If nothing does, one of them is wrong, and is named.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bnfold.errors import UnsupportedOp
from bnfold.reference import EvaluationError

from .compare import JUDGE, SAME, luck, same_places
from .evaluation import Regions
from .regions import Pair, Region
from .rounding import unit_roundoff

__all__ = ["Agreement", "Cut", "cut"]

Array = npt.NDArray[Any]
FAULT = 64.0  # times 2δ: a region whose float64 values differ by so much is another function
_NEAR = 1e-4  # of rms: another meaning is seldom so close; rather it is the same value with an error in it
_STRIKES = 2  # values behind one that differs which differ too, before it is taken for wrong
_TRIED = 6  # values that are tried as the wrong one
_DRAWS = 6  # at most, while the difference is still more than they allow: a channel may move little by chance
_FAR = 16.0  # times what is allowed: no further draw will allow it
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


class _Comparer:
    """Compares both sides of regions in float64, each once."""

    def __init__(self, regions: Regions, seed: int) -> None:
        self._regions, self._seed = regions, seed
        self._known: dict[Region, Agreement] = {}
        self.work = 0

    def __call__(self, region: Region) -> Agreement:
        if region not in self._known:
            self.work += len(region.original.nodes) + len(region.candidate.nodes)
            try:
                found = [self._compared(region, k) for k in range(self._regions.samples)]
                self._known[region] = max(found, key=lambda agreement: agreement.share)
            except (UnsupportedOp, EvaluationError, LookupError) as error:
                self._known[region] = Agreement(False, 0.0, why=str(error).rstrip("."))
        return self._known[region]

    def _compared(self, region: Region, sample: int) -> Agreement:
        y, other = (side[region.end] for side in self._regions.evaluated(region, sample))
        if y.shape != other.shape or y.dtype.kind != other.dtype.kind or not same_places(y, other):
            return Agreement(True, np.inf, np.inf)
        if y.dtype.kind != "f":
            return Agreement(True, 0.0) if np.array_equal(y, other) else Agreement(True, np.inf, np.inf)
        if not np.isfinite(y).any():
            return Agreement(True, 0.0)
        measured = _Difference(y, other, unit_roundoff(self._regions.models(region)[0]))
        if measured.within_roundoff:
            return Agreement(True, measured.off / (2 * measured.u * measured.rms or 1.0), measured.relative)
        share = np.inf
        for moved in self._regions.drawn(region, sample, self._seed, _DRAWS):
            share = measured.share(moved)
            if share <= 1 or share > _FAR:  # more draws allow more, but not so much more
                break
        return Agreement(True, share, measured.relative)


class _Difference:
    """other − y in rms, at its largest and in every channel; and what rounding may do to those, as far as is known."""

    def __init__(self, y: Array, other: Array, u: float) -> None:
        self.u = u
        self._y, self._keep, self._whole = y, np.isfinite(y), bool(np.isfinite(y).all())
        self.rms, self._largest = self._measured(y)
        with np.errstate(all="ignore"):
            difference = other - y
        self.off, self._most = self._measured(difference)
        self._channels = _channels(y, u)
        self._sizes, self._offs = ([_sizes(x, axis) for axis in self._channels] for x in (y, difference))
        self._delta, self._moved = u * self.rms / 4, 0.0
        self._each = [u * size / 4 for size in self._sizes]

    def _measured(self, x: Array) -> tuple[float, float]:
        return _size(x if self._whole else x[self._keep])

    @property
    def relative(self) -> float:
        if self.rms:
            return float(self.off / self.rms)
        return float("inf") if self.off else 0.0

    @property
    def within_roundoff(self) -> bool:
        """Everywhere as close as two roundings of the value itself."""
        u = 2 * self.u
        close = self.off <= u * self.rms and self._most <= u * self._largest
        return close and all(_within(off, size, u) for off, size in zip(self._offs, self._sizes, strict=True))

    def share(self, moved: Array) -> float:
        """The difference as a share of what is allowed after one more draw."""
        y = self._y
        with np.errstate(all="ignore"):
            drawn = moved - y if moved.shape == y.shape else np.zeros_like(y)
        rms, most = self._measured(drawn)
        self._delta, self._moved = max(self._delta, rms), max(self._moved, most)
        reach = SAME * luck(int(self._keep.sum()))
        allowed = reach * self._delta + JUDGE * self.rms
        allowed_most = 4 * (reach * max(self._delta, self._moved) + JUDGE * self._largest)
        share = max(self.off / allowed, self._most / allowed_most) if allowed else np.inf
        for k, axis in enumerate(self._channels):
            self._each[k] = np.maximum(self._each[k], _sizes(drawn, axis))
            # a dead channel's folded weights may be subnormal: next to the others that is nothing
            room = SAME * luck(y.size // y.shape[axis])
            allowed_each = room * self._each[k] + JUDGE * self._sizes[k] + 2.0**-80 * self.rms
            away = self._offs[k]
            with np.errstate(all="ignore"):
                used = np.where(away > 0, away / allowed_each, 0.0)
            share = max(share, float(np.max(used, initial=0.0)))
        return float(share)


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


def cut(
    regions: Regions, *, seed: int, different: bool | None, settle: Callable[[Region], None]
) -> tuple[list[Cut], str]:
    """The regions in which the models differ, in topological order, and a note where not all could be opened up.

    different: whether the models are known to be different functions; False: known to be the same, None: it is found
    out here, at the outputs. settle: is shown each region that is cut, as soon as it is; some are taken back later.
    """
    return _Search(regions.pair, _Comparer(regions, seed), different, settle).run()


class _Search:
    def __init__(
        self, pair: Pair, compare: _Comparer, different: bool | None, settle: Callable[[Region], None]
    ) -> None:
        self._pair, self._compare, self._different, self._settle = pair, compare, different, settle
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
                self._keep(name, region, agreement)
            return following
        return self._differs(name, region, agreement)

    def _accept(self, name: str, region: Region, agreement: Agreement) -> None:
        self._shared.add(name)
        self._keep(name, region, agreement)

    def _keep(self, name: str, region: Region, agreement: Agreement) -> None:
        self._cuts[name] = Cut(region, agreement)
        self._settle(region)

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
                self._keep(name, region, agreement)
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
