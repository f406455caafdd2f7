# torch leaves parts of its interface untyped: what comes from there is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# where a module keeps its parameters and hooks has no public name
# pyright: reportPrivateUsage=false
"""The check of a folded module: the certificate, and gates 2 and 3 with torch in float64 as the judge.

Both modules run as they are, on their own device; both in float64, the folded one also with its weights before they
were rounded, and the original with every weight moved by ±u. What these must satisfy is what a file must.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils import _pytree as pytree

from ..check.gate3 import judge_pair
from ..check.inputs import Sample
from ..check.judge import Judge
from ..check.locate import combined, without_hidden
from ..check.running import Provided
from ..check.steps import jumps_inside
from ..check.verdict import Certificate, CheckResult, SampleRecord, Settled, Verdict
from .local import local_bounds
from .outcome import Sides
from .samples import GENERATED, by_leaf, sample
from .trace import _HOOKS, _WITH, copied

Array = NDArray[Any]
_ROUNDOFF = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
_TF32 = 2.0**-11
Exactly = Callable[[nn.Module], "Callable[..., Any] | None"]


def check_modules(
    original: nn.Module,
    folded: nn.Module,
    to_exact: Exactly | None,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    sides: Sides,
    certificate: Certificate,
    samples: int,
    seed: int,
    tf32: bool,
    inputs: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]] = (),
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> CheckResult:
    """The verdict on a folded module.

    to_exact: from a copy of the original in float64 to the fold before its weights were rounded, to be called; None:
    the stored weights are judged alone. sides: the two graphs, for gate 2. inputs: more samples than the one in args
    and kwargs. ranges: of generated values, by the inputs' names in the exported program.
    """
    first, second = _quiet(original), _quiet(folded)
    device = next((str(t.device.type) for t in first.parameters()), "cpu")
    given = [(args, dict(kwargs)), *((one, dict(other)) for one, other in inputs)]
    kinds = ["given"] * len(given)
    kinds += [GENERATED[k % len(GENERATED)] for k in range(max(0, samples - len(given)))]
    within = by_leaf(sides.original, ranges or {})
    feeds = [sample(kind, k, seed, given[k] if kind == "given" else given[0], within) for k, kind in enumerate(kinds)]
    shapes = [{f"input {i}": tuple(t.shape) for i, t in enumerate(_tensors(feed))} for feed in feeds]
    provided = Provided(tuple(Sample(kind, {}) for kind in kinds))
    with _precision(tf32):
        provided.original = [_run(first, feed) for feed in feeds]
        provided.candidate = [_run(second, feed) for feed in feeds]
    judge = _TorchJudge(first, second, to_exact, feeds, provided)
    u = max((_ROUNDOFF.get(p.dtype, 0.0) for p in first.parameters()), default=2.0**-24) or 2.0**-24
    coarser = _TF32 / u if tf32 and device == "cuda" and u == 2.0**-24 else 1.0
    try:
        found = judge_pair(
            cast(Judge, judge),
            provided,
            samples=len(feeds),
            draws=3,
            seed=seed,
            u=u,
            c=2.0 if u <= 2.0**-24 and coarser == 1.0 else 3.0,
            jumps=jumps_inside(sides.original.model.graph),
            coarser=coarser,
        )
    except Settled as end:
        return CheckResult(end.verdict, end.sentence, certificate, provider=f"torch {device}", seed=seed)
    except _NoJudge as error:
        sentence = f"torch cannot run the module in float64: {error}"
        return CheckResult(Verdict.INCONCLUSIVE, sentence, certificate, provider=f"torch {device}", seed=seed)
    arithmetic = "ieee" if device == "cpu" else "tf32" if tf32 else "gpu"
    different = None if found.verdict is Verdict.INCONCLUSIVE else found.verdict is Verdict.NOT_EQUIVALENT
    with _precision(tf32):
        gate2 = local_bounds(sides, feeds, kinds, arithmetic=arithmetic, seed=seed, different=different)
    if found.verdict.passed and certificate.passed:
        gate2 = without_hidden(gate2, math.inf)
    verdict, sentence = combined(gate2, found)
    if not certificate.passed:
        verdict, sentence = Verdict.NOT_EQUIVALENT, f"{certificate.sentence}; {sentence}"
    counted = zip(kinds, shapes, found.counted, strict=True)
    records = tuple(SampleRecord(kind, shape, not why, why) for kind, shape, why in counted)
    return CheckResult(
        verdict,
        sentence,
        certificate,
        found.figures,
        f"torch {device}",
        records,
        seed,
        tuple(found.warnings),
        gate2=gate2,
    )


@dataclass(frozen=True)
class Altered:
    """Gate 1 where the module does not hold any more what the fold put there: `names` of its state."""

    names: tuple[str, ...]
    passed: bool = False

    @property
    def figures(self) -> Mapping[str, Any]:
        return {"altered": list(self.names)}

    @property
    def sentence(self) -> str:
        more = f" (and {len(self.names) - 1} more)" if len(self.names) > 1 else ""
        return f"{next(iter(self.names), '')}{more} is no longer what the fold made of it"


class _NoJudge(Exception):
    """The module does not run in float64."""


class _TorchJudge:
    """What gate 3 asks of a judge, answered by torch in float64."""

    def __init__(
        self, first: nn.Module, second: nn.Module, to_exact: Exactly | None, feeds: Sequence[Any], provided: Provided
    ) -> None:
        self._first, self._second, self._to_exact = first, second, to_exact
        self._feeds = [pytree.tree_map(_widened, feed) for feed in feeds]
        self._provided = provided
        self._known: dict[str, list[dict[str, Array]]] = {}
        self.outputs = tuple(provided.original[0])

    def original(self) -> list[dict[str, Array]]:
        return self._once("original", lambda: _wide(self._first))

    def candidate(self) -> list[dict[str, Array]]:
        return self._once("candidate", lambda: _wide(self._second))

    def exact(self) -> list[dict[str, Array]] | None:
        made = None if self._to_exact is None else self._to_exact(_wide(self._first))
        return None if made is None else self._once("exact", lambda: made)

    def draw(self, number: int, seed: int, *, wide: bool = False) -> list[dict[str, Array]]:
        def make() -> nn.Module:
            made = _wide(self._first)
            random = torch.Generator().manual_seed(seed * 1009 + number + (1000 if wide else 0))
            for mine, own in zip(_state(made), _state(self._first), strict=True):
                u = _ROUNDOFF.get(own.dtype, 2.0**-24) * (32.0 if wide else 1.0)
                signs = torch.randint(0, 2, mine.shape, generator=random, dtype=torch.float64) * 2 - 1
                mine.data = mine.data * (1 + u * signs.to(mine.device))
            return made

        return self._once(f"draw {seed} {number} {wide}", make)

    def own_types(self, index: int) -> dict[str, Array]:
        return self._provided.original[index]

    def margin(self, output: str, y: Mapping[str, Array]) -> None:
        return None

    def producers(self, output: str) -> tuple[str, ...]:
        return ()

    def _once(self, key: str, make: Callable[[], Callable[..., Any]]) -> list[dict[str, Array]]:
        if key not in self._known:
            try:
                module = make()
                self._known[key] = [_run(module, feed) for feed in self._feeds]
            except Exception as error:  # a module may insist on a type of its own anywhere
                raise _NoJudge(str(error).splitlines()[0] if str(error) else type(error).__name__) from error
        return self._known[key]


def _quiet(module: nn.Module) -> nn.Module:
    """A copy without hooks, which are not to see what the check does."""
    made = copied(module)
    for part in made.modules():
        for name in (*_HOOKS, *_WITH):
            if hasattr(part, name) and not _computes(part, name):
                setattr(part, name, type(getattr(part, name))())
    return made


def _computes(part: nn.Module, name: str) -> bool:
    """Whether these hooks make the module's own weights (weight_norm)."""
    return any(type(h).__name__ in ("WeightNorm", "SpectralNorm") for h in getattr(part, name).values())


def _wide(module: nn.Module) -> nn.Module:
    return copied(module).double()


def _widened(value: Any) -> Any:
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _state(module: nn.Module) -> Iterator[torch.Tensor]:
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            yield tensor


def _tensors(values: Any) -> list[torch.Tensor]:
    return [value for value in pytree.tree_leaves(values) if isinstance(value, torch.Tensor)]


def _run(module: Callable[..., Any], feed: Any) -> dict[str, Array]:
    args, kwargs = copy.deepcopy(feed)  # a module may write into its inputs
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = _tensors(module(*args, **kwargs))
    return {f"output {i}": _array(value) for i, value in enumerate(found)}


def _array(value: torch.Tensor) -> Array:
    held = value.detach().cpu()
    return np.asarray((held.float() if held.dtype == torch.bfloat16 else held).numpy())


@contextmanager
def _precision(tf32: bool) -> Generator[None]:
    """Whether CUDA may compute float32 products in TF32, while the modules run."""
    cudnn: Any = torch.backends.cudnn
    places: list[Any] = [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn]
    before = [place.fp32_precision for place in places]  # allow_tf32 raises where both ways to set it were used
    try:
        for place in places:
            place.fp32_precision = "tf32" if tf32 else "ieee"
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value
