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
import onnx

from bnfold.errors import UnsupportedOp
from bnfold.files import ModelFile, save
from bnfold.reference import EvaluationError

from .bounds import Arithmetic, NoBound, arithmetic_of, running_bounds
from .cost import estimate
from .inputs import Sample
from .providers import Provider, ProviderDied, ProviderError
from .regions import Pair
from .sharing import FAULT, Cut, cut, evaluated
from .teacher import NoValue, Teacher

__all__ = ["Gate2", "Local", "local_bounds"]

Array = npt.NDArray[Any]
BUDGET = 6.0  # estimated seconds for the float64 evaluations of all samples; beyond it one sample has to do
PATIENCE = 90.0  # estimated seconds beyond which the gate is left out
_EVALUATIONS = 5  # of each sample, as far as the models differ
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
            return _noted("the models do not differ in any node or weight", self.note)
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
        teacher = Teacher(original, samples, provider)
        teacher.fetch(sorted(_boundary(pair, shared | set(pair.names))))
        cuts, unopened = cut(pair, partial(_values, teacher), len(samples), seed=seed, different=different)
        teacher.fetch(sorted({name for found in cuts for name in found.region.inputs}))
        locals_ = tuple(_Bounds(pair, teacher, samples, provider, arithmetic, own).of(found) for found in cuts)
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


class _Disagreement(Exception):
    """The provider is further from the float64 value of the original's region than any rounding explains."""


@dataclass(frozen=True)
class _Allowed:
    """The bounds of one region on one sample, elementwise."""

    both: Array  # of |ŷ_fold − ŷ_orig|
    safe: Array  # where nothing on the way can overflow
    truth: Array  # the original's side in float64
    original: Array  # of |ŷ_orig − truth|
    exactly: float  # the float64 values' own difference, as a share of `both`


@dataclass(frozen=True)
class _Bounds:
    """Runs regions on the provider and measures them."""

    pair: Pair
    teacher: Teacher
    samples: Sequence[Sample]
    provider: Provider
    arithmetic: str
    own: bool

    def of(self, found: Cut) -> Local:
        region, agreement = found.region, found.agreement
        kinds = [
            tuple(side.nodes[k].op_type for k in cone.nodes)
            for side, cone in ((self.pair.original, region.original), (self.pair.candidate, region.candidate))
        ]
        common: dict[str, Any] = {
            "name": self.pair.title(region),
            "end": region.end,
            "original": kinds[0],
            "candidate": kinds[1],
            "function": float(agreement.share) if agreement.known else None,
            "relative": float(agreement.relative),
        }
        try:
            ratio, index, sample, certain, exactly = self._worst(found)
        except NoBound as error:
            return Local(ratio=None, why=str(error), **common)
        except _Disagreement as error:
            common["function"] = None
            return Local(ratio=None, why=str(error), **common)
        except (UnsupportedOp, EvaluationError, NoValue) as error:
            return Local(ratio=None, why=str(error).rstrip("."), **common)
        except ProviderDied:
            raise
        except ProviderError as error:
            return Local(ratio=None, why=f"the provider does not run it alone: {error}".rstrip("."), **common)
        if exactly > 1:  # no rounding of weights explains so much
            common["function"] = max(common["function"] or 0.0, exactly)
        return Local(ratio=ratio, index=index, sample=sample, certain=certain, **common)

    def _worst(self, found: Cut) -> tuple[float, tuple[int, ...], str, bool, float]:
        """The worst ratio on the provider, its index and sample, whether it is binding, and the worst in float64."""
        region = found.region
        worst, where, kind = 0.0, tuple[int, ...](), ""
        runs: list[list[Array]] = [[], []]
        feeds = [self.teacher.values(k, sorted(region.inputs)) for k in range(len(self.samples))]
        models = [self.pair.model(region, which, {n: v.dtype for n, v in feeds[0].items()}) for which in (0, 1)]
        arithmetic = self._arithmetic(models, feeds[0])
        allowed = [self._allowed(found, models, given, arithmetic) for given in feeds]
        for which, model in enumerate(models):
            path = self.provider.folder / "region.onnx"
            save(model, path, directory=(self.pair.original, self.pair.candidate)[which].directory)
            self.provider.load(path)
            wanted = {value.name for value in model.graph.input}
            for given in feeds:
                inside = {name: np.asarray(value) for name, value in given.items() if name in wanted}
                runs[which].append(self.provider.run(inside)[region.end])
        for sample, bound, y, other in zip(self.samples, allowed, *runs, strict=True):
            if arithmetic.certain and _ratio(bound.truth, y, bound.original, bound.safe)[0] > 1:
                raise _Disagreement("judge and provider disagree about the original there")
            ratio, index = _ratio(y, other, bound.both, bound.safe)
            if ratio > worst or not kind:
                worst, where, kind = ratio, index, sample.kind
        return worst, where, kind, arithmetic.certain, max(bound.exactly for bound in allowed)

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
        return arithmetic_of(coarsest[0], self.arithmetic)

    def _allowed(
        self, found: Cut, models: Sequence[onnx.ModelProto], feeds: Mapping[str, Array], arithmetic: Arithmetic
    ) -> _Allowed:
        changed = self.pair.changed_weights(found.region)
        behind = dict.fromkeys(changed, _OWN if self.own else _FOREIGN)
        sizes: list[tuple[Array, float]] = []
        exact: list[Array] = []
        for which, model in enumerate(models):
            side = (self.pair.original, self.pair.candidate)[which]
            names = [*dict.fromkeys(name for node in model.graph.node for name in (*node.input, *node.output) if name)]
            values = evaluated(model, side.directory, feeds, names)
            bound = running_bounds(model, values, arithmetic, behind if which else {})[found.region.end]
            sizes.append((bound.size, arithmetic.share(bound)))
            exact.append(bound.value)
        (mine, share), (theirs, other) = sizes
        if mine.shape != theirs.shape:
            raise NoBound("sides of different shapes")
        if not share + other < 0.1:
            raise NoBound("too many roundings in a row")
        both, safe = share * mine + other * theirs, np.maximum(mine, theirs) < arithmetic.largest / 8
        return _Allowed(both, safe, exact[0], share * mine, _ratio(exact[0], exact[1], both, safe)[0])


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
