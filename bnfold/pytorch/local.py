# torch leaves parts of its interface untyped: what comes from there is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Gate 2 where torch runs: each region fed the original's own activations, on the module's device and in float64.

The regions are those of the two skeletons; what computes them are the ATen calls of the two programs.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch.fx import Node

from ..check.arithmetic import Bounded
from ..check.evaluation import Regions
from ..check.gate2 import Gate2
from ..check.measuring import Bounds
from ..check.op_bounds import Kernels, Op
from ..check.providers import ProviderError
from ..check.regions import Pair, Region
from ..check.sharing import cut
from ..check.shelf import Shelf
from ..files import ModelFile
from .bounds import RULES, resized
from .calls import Calls, State, from_array, named_inputs, to_array, widened
from .outcome import Sides

Array = NDArray[Any]
BUDGET = 20.0  # seconds for the float64 evaluations of all samples; beyond it one sample has to do
PATIENCE = 120.0  # seconds beyond which the gate is left out
_EVALUATIONS = 5
_MEMORY = 1 << 28  # bytes of values and of evaluated regions that are kept in memory


def local_bounds(
    sides: Sides,
    samples: Sequence[Any],
    kinds: Sequence[str],
    *,
    arithmetic: str,
    seed: int,
    different: bool | None,
) -> Gate2:
    """Gate 2 on samples, each (args, kwargs). arithmetic: "ieee", "gpu" or "tf32".

    different: what gate 3 found of the whole. What goes wrong on the way is said in `Gate2.note`.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            inputs = [named_inputs(sides.original, sample) for sample in samples]
            return _local_bounds(sides, inputs, kinds, Path(folder), arithmetic, seed, different)
        except (MemoryError, torch.OutOfMemoryError):
            return Gate2((), 0, arithmetic, "it needs more memory than there is", done=False)
        except (RuntimeError, LookupError, TypeError, NotImplementedError) as error:  # a call that runs in no float64
            text = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            return Gate2((), 0, arithmetic, f"torch cannot run a part of the program alone: {text}", done=False)


def _local_bounds(
    sides: Sides,
    inputs: list[dict[str, torch.Tensor]],
    kinds: Sequence[str],
    folder: Path,
    arithmetic: str,
    seed: int,
    different: bool | None,
) -> Gate2:
    pair = Pair(_file(sides.original.model), _file(sides.model))
    shared = set(pair.original.inputs)
    if all(pair.identical(pair.region(name, shared | set(pair.names))) for name in pair.names):
        return Gate2((), 0, arithmetic)
    runner = _Runner(sides, inputs, folder)
    seconds, note = _EVALUATIONS * runner.seconds(pair.original.outputs), ""
    if seconds > PATIENCE:
        return Gate2((), 0, arithmetic, f"it would take about {seconds:.0f} s", done=False)
    if seconds * len(inputs) > BUDGET and len(inputs) > 1:
        runner.keep(1)
        kinds, note = kinds[:1], "on one sample, for the model is large"
    boundary = sorted({n for name in pair.names for n in _reads(pair, name, shared | set(pair.names))})
    for k in range(len(kinds)):
        runner.values(k, boundary)
    regions = _TorchRegions(pair, runner, len(kinds))
    bounds = Bounds(regions, kinds, runner, arithmetic, True)
    cuts, unopened = cut(regions, seed=seed, different=different, settle=bounds.prepare)
    return Gate2(tuple(bounds.of(cuts)), len(kinds), arithmetic, "; ".join(filter(None, (note, unopened))))


class _Moved(Mapping[str, torch.Tensor]):
    """State in float64 with every element moved by ±u of its own type, made when it is asked for."""

    def __init__(self, own: State, wide: State, seed: Sequence[int]) -> None:
        self._own, self._wide, self._seed = own, wide, seed

    def __getitem__(self, name: str) -> torch.Tensor:
        own, wide = self._own[name], self._wide[name]
        if not own.is_floating_point():
            return wide
        random = np.random.default_rng([*self._seed, crc32(name.encode())])
        signs = torch.from_numpy(random.integers(0, 2, tuple(own.shape), np.int8) * 2.0 - 1).to(own.device)
        return wide * (1 + torch.finfo(own.dtype).eps / 2 * signs)

    def __iter__(self) -> Iterator[str]:
        return iter(self._own)

    def __len__(self) -> int:
        return len(self._own)


def _reads(pair: Pair, name: str, shared: set[str]) -> frozenset[str]:
    """What the region of a value reads, if it differs and every name means the same in both."""
    region = pair.region(name, shared)
    return frozenset() if pair.identical(region) else region.inputs


def _file(model: onnx.ModelProto) -> ModelFile:
    return ModelFile(model, None, Path(), 0)


class _Runner:
    """Both programs, on the inputs and on what the original makes of them."""

    def __init__(self, sides: Sides, inputs: list[dict[str, torch.Tensor]], folder: Path) -> None:
        self.folder = folder
        self.calls = Calls.of(sides.original), Calls.named_like(sides.candidate, sides.model)
        self.states = tuple(tuple(calls.state(wide=wide) for wide in (False, True)) for calls in self.calls)
        self._inputs = inputs
        self._device = next((t.device for given in inputs for t in given.values()), torch.device("cpu"))
        self._shelf = Shelf(folder, "value", _MEMORY)
        made = [name for node in sides.original.model.graph.node for name in node.output]
        size = sum(_bytes(self.calls[0].values.get(name)) for name in made) * len(inputs)
        self._every = made if size <= _MEMORY else []  # kept when first run, asked for or not
        for k, given in enumerate(self._inputs):
            for calls, (state, _) in zip(self.calls, self.states, strict=True):
                calls.learn_sizes(given, state, k)

    def keep(self, samples: int) -> None:
        del self._inputs[samples:]

    def seconds(self, outputs: Sequence[str]) -> float:
        """How long the original takes in float64."""
        start = time.perf_counter()
        given = {name: widened(value) for name, value in self._inputs[0].items()}
        self.calls[0].run(outputs, given, self.states[0][1], wide=True, sample=0)
        return time.perf_counter() - start

    def values(self, sample: int, names: Iterable[str]) -> dict[str, Array]:
        """What the original makes of a sample, in its own types."""
        inputs = self._inputs[sample]
        wanted = list(names)
        missing = [n for n in wanted if n not in inputs and (sample, n) not in self._shelf]
        if missing:
            every = [*dict.fromkeys((*missing, *self._every))]
            found = self.calls[0].run(every, inputs, self.states[0][0], wide=False, sample=sample)
            for name, value in found.items():
                self._shelf.put((sample, name), to_array(value))
        return {n: to_array(inputs[n]) if n in inputs else self._shelf[sample, n] for n in wanted}

    def side(
        self,
        which: int,
        wanted: Sequence[str],
        feeds: Mapping[str, Array],
        sample: int,
        *,
        wide: bool,
        state: State | None = None,
    ) -> dict[str, torch.Tensor]:
        """What one side (0: the original) makes of values of the original."""
        given = {name: from_array(value).to(self._device) for name, value in feeds.items()}
        if wide:
            given = {name: widened(value) for name, value in given.items()}
        held = self.states[which][int(wide)] if state is None else state
        return self.calls[which].run(wanted, given, held, wide=wide, sample=sample)

    def run(
        self, pair: Pair, which: int, regions: Sequence[Region], feeds: Sequence[Sequence[Mapping[str, Array]]]
    ) -> list[list[Array] | ProviderError]:
        return [
            [to_array(self.side(which, [r.end], f, k, wide=False)[r.end]) for k, f in enumerate(each)]
            for r, each in zip(regions, feeds, strict=True)
        ]


class _TorchRegions(Regions):
    """Regions whose nodes are ATen calls."""

    def __init__(self, pair: Pair, runner: _Runner, samples: int) -> None:
        super().__init__(pair, lambda index, names: runner.values(index, sorted(names)), samples)
        self._runner = runner
        self._held: OrderedDict[tuple[Region, int], list[dict[str, Array]]] = OrderedDict()
        self._size = 0

    def evaluated(self, region: Region, sample: int) -> list[dict[str, Array]]:
        key = region, sample
        if key in self._held:
            return self._held[key]
        feeds = self.feeds(region, sample)
        found: list[dict[str, Array]] = []
        for which, model in enumerate(self.models(region)):
            there = self._runner.calls[which].values
            made = [name for node in model.graph.node for name in node.output if name in there]
            values = self._runner.side(which, made, feeds, sample, wide=True)
            held = {t.name: _wide(onnx.numpy_helper.to_array(t)) for t in model.graph.initializer}
            given = {name: _wide(feeds[name]) for name in (v.name for v in model.graph.input)}
            found.append({**held, **given, **{name: to_array(value) for name, value in values.items()}})
        self._held[key] = found
        self._size += sum(value.nbytes for values in found for value in values.values())
        while self._size > _MEMORY and len(self._held) > 1:
            _, oldest = self._held.popitem(last=False)
            self._size -= sum(value.nbytes for values in oldest for value in values.values())
        return found

    def drawn(self, region: Region, sample: int, seed: int, draws: int) -> Iterator[Array]:
        own, wide = self._runner.states[0]
        for draw in range(draws):
            moved = _Moved(own, wide, [seed, draw])
            found = self._runner.side(0, [region.end], self.feeds(region, sample), sample, wide=True, state=moved)
            yield to_array(found[region.end])

    def kernels(self, region: Region, which: int) -> Kernels:
        calls = self._runner.calls[which]

        def evaluate(node: onnx.NodeProto, arrays: Sequence[Array | None], _: Mapping[str, int]) -> list[Array]:
            return calls.alone(node.output[0], arrays)

        def resize(op: Op) -> list[Bounded]:
            return resized(op, str(calls.values[op.node.output[0]].target))

        return Kernels(evaluate, {**RULES, ("", "Resize"): resize})

    def off(self, region: Region, which: int) -> Mapping[str, Array]:
        """Constants that the program computes from its state, in its own types."""
        calls, (own, wide) = self._runner.calls[which], self._runner.states[which]
        cone = (region.original, region.candidate)[which]
        found: dict[str, Array] = {}
        for name in cone.weights:
            node = calls.values.get(name)
            if node is not None and node.op == "call_function" and node.meta["val"].is_floating_point():
                mine = calls.run([name], {}, own, wide=False, sample=0)[name]
                exact = calls.run([name], {}, wide, wide=True, sample=0)[name]
                found[name] = to_array((mine.double() - exact).abs())
        return found


def _bytes(node: Node | None) -> int:
    """Of a value with the sizes of the example."""
    value = None if node is None else node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return 0
    sizes: list[Any] = list(value.shape)  # of which some may be symbols
    return value.element_size() * math.prod(int(getattr(getattr(d, "node", None), "hint", d) or 1) for d in sizes)


def _wide(value: Array) -> Array:
    return value.astype(np.float64) if value.dtype.kind not in "iub" else value
