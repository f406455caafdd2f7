"""Regions measured: what both sides make on the provider, as a share of the running error bound of each element.

Bounds are made while the float64 values are at hand; what the provider makes is asked for at the end, in batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx

from bnfold.errors import UnsupportedOp
from bnfold.reference import EvaluationError

from .arithmetic import Arithmetic, NoBound, arithmetic_of
from .batches import Feeds, grouped, run_side
from .bounds import running_bounds
from .evaluation import Regions
from .providers import Provider, ProviderError
from .regions import Pair, Region
from .sharing import FAULT, Cut
from .shelf import Shelf

__all__ = ["Bounds", "Local", "OnProvider", "Runner"]

Array = npt.NDArray[Any]
_MEMORY = 1 << 27  # bytes of bounds that are kept in memory
_TYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.DOUBLE: "float64",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
}
_OWN, _FOREIGN = 2, 8  # roundings behind a folded weight: made in float64 by bnfold; by others in float32


@dataclass(frozen=True)
class Local:
    """One region. `ratio`: the worst |ŷ_fold − ŷ_orig| as a share of its bound, at `index` of the value `end` on the
    sample `sample`; None where there is no bound, `why` saying what is in the way. `function`: the float64 difference
    as a share of what rounding explains, None where it is not known."""

    name: str
    end: str
    original: tuple[str, ...]  # the nodes' types
    candidate: tuple[str, ...]
    ratio: float | None
    index: tuple[int, ...] = ()
    sample: str = ""
    why: str = ""
    function: float | None = None
    relative: float = 0.0  # the float64 difference, of the value's rms
    certain: bool = True

    @property
    def other_function(self) -> bool:
        """In float64 the region differs by more than rounding."""
        return self.function is not None and self.function > 1

    @property
    def failed(self) -> bool:
        over = self.ratio is not None and self.ratio > 1 and (self.certain or self.other_function)
        return over or (self.function is not None and self.function > FAULT)

    @property
    def sentence(self) -> str:
        """What is wrong with it."""
        if self.other_function:
            return f"{self.name} computes another function: in float64 it differs by {self.relative:.2g} of its size"
        where = f"[{', '.join(map(str, self.index))}]"
        return f"{self.name} differs by {self.ratio or 0.0:.3g} times the error bound, at {self.end}{where}"

    def to_dict(self) -> dict[str, Any]:
        status = "failed" if self.failed else "no bound" if self.ratio is None else "passed"
        found: dict[str, Any] = {"name": self.name, "end": self.end, "status": status, "ratio": self.ratio}
        found.update(original=list(self.original), candidate=list(self.candidate), float64=self.function)
        if self.ratio is not None:
            found.update(index=list(self.index), sample=self.sample)
        if self.why:
            found["why"] = self.why
        return found


class _Disagreement(Exception):
    """The provider is further from the float64 value of the original's region than any rounding explains."""


@dataclass(frozen=True)
class _Prepared:
    """One region before it has run: its arithmetic, the float64 values' own difference as a share of the bound, and
    the bytes that it reads and makes. Its bounds lie on the shelf."""

    arithmetic: Arithmetic
    exactly: float
    size: int


class Runner(Protocol):
    """What runs regions. `folder`: where arrays may lie meanwhile."""

    @property
    def folder(self) -> Path: ...

    def run(
        self, pair: Pair, which: int, regions: Sequence[Region], feeds: Sequence[Feeds]
    ) -> list[list[Array] | ProviderError]:
        """What one side (0: the original) of each region makes, by sample, or why it does not run."""
        ...


@dataclass(frozen=True)
class OnProvider:
    """Regions as models in ONNX Runtime."""

    provider: Provider

    @property
    def folder(self) -> Path:
        return self.provider.folder

    def run(
        self, pair: Pair, which: int, regions: Sequence[Region], feeds: Sequence[Feeds]
    ) -> list[list[Array] | ProviderError]:
        return run_side(pair, which, regions, feeds, self.provider)


class Bounds:
    """Runs regions on the provider and measures them. kinds: the samples'. own: the folded weights were rounded once,
    from float64."""

    def __init__(self, regions: Regions, kinds: Sequence[str], runner: Runner, arithmetic: str, own: bool) -> None:
        self._regions, self._pair = regions, regions.pair
        self._kinds, self._runner, self._kind, self._own = kinds, runner, arithmetic, own
        self._prepared: dict[Region, _Prepared | str] = {}  # or why there is no bound
        self._shelf = Shelf(runner.folder, "bound", _MEMORY)
        self._number: dict[Region, int] = {}

    def prepare(self, region: Region) -> None:
        """Make the bounds of a region, on every sample."""
        if region in self._prepared:
            return
        try:
            self._prepared[region] = self._bounds(region)
        except (NoBound, UnsupportedOp, EvaluationError, LookupError) as error:
            self._prepared[region] = str(error).rstrip(".")

    def of(self, cuts: Sequence[Cut]) -> list[Local]:
        """The measured regions, in the order of `cuts`. Raises ProviderDied."""
        found: dict[Region, Local] = {}
        ready: list[tuple[Cut, _Prepared]] = []
        for each in cuts:
            self.prepare(each.region)
            prepared = self._prepared[each.region]
            if isinstance(prepared, str):
                found[each.region] = Local(ratio=None, why=prepared, **self._common(each))
            else:
                ready.append((each, prepared))
        sizes = [prepared.size for _, prepared in ready]
        for group in grouped(self._pair, [each.region for each, _ in ready], sizes):
            for each, local in self._run([ready[k] for k in group]):
                found[each.region] = local
        return [found[each.region] for each in cuts]

    def _run(self, group: Sequence[tuple[Cut, _Prepared]]) -> list[tuple[Cut, Local]]:
        regions = [each.region for each, _ in group]
        samples = range(len(self._kinds))
        feeds = [[self._regions.feeds(region, k) for k in samples] for region in regions]
        y, other = (self._runner.run(self._pair, which, regions, feeds) for which in (0, 1))
        return [
            (each, self._local(each, *rest)) for (each, *rest) in zip(*zip(*group, strict=True), y, other, strict=True)
        ]

    def _common(self, found: Cut) -> dict[str, Any]:
        region, agreement = found.region, found.agreement
        original, candidate = (
            tuple(side.nodes[k].op_type for k in cone.nodes)
            for side, cone in ((self._pair.original, region.original), (self._pair.candidate, region.candidate))
        )
        return {
            "name": self._pair.title(region),
            "end": region.end,
            "original": original,
            "candidate": candidate,
            "function": float(agreement.share) if agreement.known else None,
            "relative": float(agreement.relative),
        }

    def _local(
        self, found: Cut, prepared: _Prepared, y: list[Array] | ProviderError, other: list[Array] | ProviderError
    ) -> Local:
        common = self._common(found)
        for failed in (y, other):
            if isinstance(failed, ProviderError):
                why = f"the provider does not run it alone: {failed}".rstrip(".")
                return Local(ratio=None, why=why, **common)
        assert isinstance(y, list) and isinstance(other, list)
        try:
            ratio, index, sample = self._worst(found.region, prepared.arithmetic, y, other)
        except _Disagreement as error:
            common["function"] = None
            return Local(ratio=None, why=str(error), **common)
        if prepared.exactly > 1:  # no rounding of weights explains so much
            common["function"] = max(common["function"] or 0.0, prepared.exactly)
        certain = prepared.arithmetic.certain
        return Local(ratio=ratio, index=index, sample=self._kinds[sample], certain=certain, **common)

    def _worst(
        self, region: Region, arithmetic: Arithmetic, y: Sequence[Array], other: Sequence[Array]
    ) -> tuple[float, tuple[int, ...], int]:
        """The worst ratio on the provider, its index and sample."""
        worst, where, sample = 0.0, tuple[int, ...](), -1
        number = self._number[region]
        for k, (mine, theirs) in enumerate(zip(y, other, strict=True)):
            truth, bound, both, safe = (self._shelf[number, k, what] for what in ("truth", "bound", "both", "safe"))
            if arithmetic.certain and _ratio(truth, mine, bound, safe)[0] > 1:
                raise _Disagreement("judge and provider disagree about the original there")
            ratio, index = _ratio(mine, theirs, both, safe)
            if ratio > worst or sample < 0:
                worst, where, sample = ratio, index, k
        return worst, where, sample

    def _bounds(self, region: Region) -> _Prepared:
        """Elementwise, for every sample: of |ŷ_fold − ŷ_orig| (both) and |ŷ_orig − truth| (bound), and where nothing
        on the way can overflow (safe)."""
        models = self._regions.models(region)
        feeds = self._regions.feeds(region, 0)
        arithmetic = self._arithmetic(models, feeds)
        behind = dict.fromkeys(self._pair.changed_weights(region), _OWN if self._own else _FOREIGN)
        number = self._number[region] = len(self._number)
        exactly, made = 0.0, 0
        for sample in range(len(self._kinds)):
            sizes: list[tuple[Array, float]] = []
            exact: list[Array] = []
            for which, values in enumerate(self._regions.evaluated(region, sample)):
                off, kernels = self._regions.off(region, which), self._regions.kernels(region, which)
                found = running_bounds(
                    models[which], values, arithmetic, behind if which else {}, off=off, kernels=kernels
                )
                bound = found[region.end]
                sizes.append((bound.size, arithmetic.share(bound)))
                exact.append(bound.value)
            (mine, share), (theirs, other) = sizes
            if mine.shape != theirs.shape:
                raise NoBound("sides of different shapes")
            if not share + other < 0.1:
                raise NoBound("too many roundings in a row")
            both, safe = share * mine + other * theirs, np.maximum(mine, theirs) < arithmetic.largest / 8
            exactly = max(exactly, _ratio(exact[0], exact[1], both, safe)[0])
            narrow = arithmetic.stored >= 2.0**-24
            kept = {"truth": exact[0], "safe": safe}
            kept |= {"both": _up(both, narrow), "bound": _up(share * mine, narrow)}
            for what, value in kept.items():
                self._shelf.put((number, sample, what), value)
            made = max(made, exact[0].nbytes)
        return _Prepared(arithmetic, exactly, made + sum(value.nbytes for value in feeds.values()))

    def _arithmetic(self, models: Sequence[onnx.ModelProto], feeds: Mapping[str, Array]) -> Arithmetic:
        """That of the coarsest floating type in the region."""
        types = {str(value.dtype) for value in feeds.values()}
        for model in models:
            types |= {_type(proto.data_type) for proto in model.graph.initializer}
            types |= {_type(a.t.data_type) for n in model.graph.node for a in n.attribute if a.HasField("t")}
            types |= {
                _type(a.i) for n in model.graph.node if n.op_type == "Cast" for a in n.attribute if a.name == "to"
            }
        coarsest = [name for name in ("bfloat16", "float16", "float32", "float64") if name in types]
        if not coarsest:
            raise NoBound("values that are no floats")
        return arithmetic_of(coarsest[0], self._kind)


def _up(bound: Array, narrow: bool) -> Array:
    """In half the memory, and not smaller."""
    if not narrow:
        return bound
    with np.errstate(all="ignore"):
        return np.nextafter(bound.astype(np.float32), np.float32(np.inf))


def _type(code: int) -> str:
    return _TYPES.get(code, "")


def _ratio(y: Array, other: Array, bound: Array, safe: Array) -> tuple[float, tuple[int, ...]]:
    """The largest |ŷ − y| as a share of its bound, and where it is; infinite for an element that is not finite."""
    if y.shape != other.shape or y.shape != bound.shape:
        return np.inf, ()
    if not y.size:
        return 0.0, ()
    with np.errstate(all="ignore"):
        difference = np.abs(other.astype(np.float64) - y.astype(np.float64))
        ratio = np.where(difference == 0, 0.0, difference / bound)
    finite = np.isfinite(y.astype(np.float64)), np.isfinite(other.astype(np.float64))
    ratio = np.where(finite[0] & finite[1], ratio, np.where(finite[0] == finite[1], 0.0, np.inf))
    ratio = np.where(safe, ratio, 0.0)
    worst = int(np.argmax(ratio))
    return float(ratio.reshape(-1)[worst]), tuple(int(i) for i in np.unravel_index(worst, ratio.shape))
