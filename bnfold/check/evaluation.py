"""Regions evaluated in float64 on the original's own activations, each side once for whoever asks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from bnfold.reference import Evaluator

from .op_bounds import Kernels
from .regions import Pair, Region
from .rounding import Weights, lifted

__all__ = ["Regions", "Values"]

Array = npt.NDArray[Any]
Values = Callable[[int, frozenset[str]], Mapping[str, Array]]
_MEMORY = 1 << 27  # bytes of evaluated values that are kept


class Regions:
    """values: the original's activations by number of the sample and names; LookupError where there are none."""

    def __init__(self, pair: Pair, values: Values, samples: int) -> None:
        self.pair, self.samples = pair, samples
        self._values = values
        self._kept: OrderedDict[tuple[Region, int], list[dict[str, Array]]] = OrderedDict()
        self._bytes = 0

    def feeds(self, region: Region, sample: int) -> Mapping[str, Array]:
        """What both sides read."""
        return self._values(sample, region.inputs)

    def models(self, region: Region) -> list[onnx.ModelProto]:
        """The original's side and the candidate's, as models of their own."""
        kinds = {name: value.dtype for name, value in self.feeds(region, 0).items()}
        return [self.pair.model(region, which, kinds) for which in (0, 1)]

    def kernels(self, region: Region, which: int) -> Kernels | None:
        """What computes the nodes of one side; None: ONNX's own."""
        return None

    def off(self, region: Region, which: int) -> Mapping[str, Array]:
        """How far weights are from their values where they are used: nowhere, in ONNX."""
        return {}

    def evaluated(self, region: Region, sample: int) -> list[dict[str, Array]]:
        """All values of either side in float64, weights too. Raises UnsupportedOp, EvaluationError, LookupError."""
        key = region, sample
        if key in self._kept:
            return self._kept[key]
        feeds = self.feeds(region, sample)
        sides = self.pair.original, self.pair.candidate
        found: list[dict[str, Array]] = []
        for model, side in zip(self.models(region), sides, strict=True):
            given = {value.name for value in model.graph.input}
            names = [*dict.fromkeys(name for node in model.graph.node for name in (*node.input, *node.output) if name)]
            with np.errstate(all="ignore"):
                evaluator = Evaluator(model, directory=side.directory)
                found.append(evaluator.run({k: v for k, v in feeds.items() if k in given}, names))
        self._kept[key] = found
        self._bytes += _size(found)
        while self._bytes > _MEMORY and len(self._kept) > 1:
            self._bytes -= _size(self._kept.popitem(last=False)[1])
        return found

    def drawn(self, region: Region, sample: int, seed: int, draws: int) -> Iterator[Array]:
        """The region's end in float64 after the original's weights were moved by ±u, again and again."""
        base = lifted(self.models(region)[0])
        directory = self.pair.original.directory
        weights = Weights(base, directory)
        given = {value.name for value in base.graph.input}
        inside = {name: value for name, value in self.feeds(region, sample).items() if name in given}
        for draw in range(draws):
            perturbed, moved = weights.perturbed(seed, draw)
            with np.errstate(all="ignore"):
                yield Evaluator(perturbed, directory=directory, exact=moved).run(inside, [region.end])[region.end]


def _size(found: list[dict[str, Array]]) -> int:
    return sum(value.nbytes for values in found for value in values.values())
