"""What one layer's stale statistics do to the output of the whole model: they alone are replaced by the measured ones.

The statistics become inputs of a copy of the model, so that one session serves all layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from ..check.providers import ProviderError
from ..dtypes import rounded
from .layers import Layer
from .measuring import Bench, excerpt
from .moments import Moments
from .staleness import Drift

__all__ = ["Outputs", "swapped"]

Array = npt.NDArray[Any]
BATCHES = 8  # that outputs are compared on, at most
RUNS = 160  # of the model, in all; with so many layers that not even one batch fits, one
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)


class Outputs:
    """How outputs differ, over all batches `add`ed: the root of the mean square, and the share of other predictions."""

    def __init__(self) -> None:
        self._squares, self._count, self._flipped, self._rows = 0.0, 0, 0, 0

    def add(self, before: Array, after: Array) -> None:
        a, b = before.astype(np.float64), after.astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            self._squares += float(np.square(a - b).sum())
        self._count += a.size
        if a.ndim > 1 and a.shape[1] > 1:
            flipped = a.argmax(1) != b.argmax(1)
            self._flipped += int(flipped.sum())
            self._rows += flipped.size

    @property
    def change(self) -> float:
        """Infinite where an output is not finite."""
        found = math.sqrt(self._squares / self._count) if self._count else 0.0
        return math.inf if math.isnan(found) else found

    @property
    def flips(self) -> float | None:
        return self._flipped / self._rows if self._rows else None


def swapped(on: Bench, layers: Sequence[Layer], moments: Sequence[Moments], drifts: Sequence[Drift]) -> list[Drift]:
    """`drifts` with `output` and `flips`; as they are where the model has no output of floating point numbers, or does
    not run to its end.
    """
    model = on.model
    output = next((o.name for o in model.graph.output if o.type.tensor_type.elem_type in _FLOATS), None)
    usable = {layer.index for layer in layers if set(layer.kinds) <= set(_FLOATS)}
    if output is None or not usable:
        return list(drifts)
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    stored: dict[str, Array] = {}
    fresh: dict[int, dict[str, Array]] = {}
    for layer, found in zip(layers, moments, strict=True):
        if layer.index not in usable:
            continue
        node = opened.graph.node[layer.index]
        mine: dict[str, Array] = {}
        for slot, kind, old, new in zip(
            (3, 4), layer.kinds, (layer.mean, layer.variance), (found.mean, found.variance), strict=True
        ):
            name = f"bnfold.{layer.index}.{slot}"
            opened.graph.input.append(helper.make_tensor_value_info(name, kind, list(old.shape)))
            node.input[slot] = name
            stored[name], mine[name] = rounded(old, kind), rounded(new, kind)
        fresh[layer.index] = mine
    try:
        return _compared(on, excerpt(opened, [output]), output, layers, drifts, stored, fresh)
    except ProviderError:  # what stands behind the layers need not run for their statistics to be known
        return list(drifts)


def _compared(
    on: Bench,
    model: onnx.ModelProto,
    output: str,
    layers: Sequence[Layer],
    drifts: Sequence[Drift],
    stored: Mapping[str, Array],
    fresh: Mapping[int, Mapping[str, Array]],
) -> list[Drift]:
    read = {name for node in model.graph.node for name in node.input}
    found = {index: Outputs() for index in fresh}
    reached = [index for index, mine in fresh.items() if read.issuperset(mine)]
    for run in on.runs(model, max(1, min(BATCHES, RUNS // (len(reached) + 1)))):
        reference = run(stored)[output]
        for index in reached:
            found[index].add(reference, run({**stored, **fresh[index]})[output])
    told: list[Drift] = []
    for layer, drift in zip(layers, drifts, strict=True):
        outputs = found.get(layer.index)
        told.append(drift if outputs is None else replace(drift, output=outputs.change, flips=outputs.flips))
    return told
