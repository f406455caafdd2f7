"""δ: what rounding alone may do to this model, the yardstick of gate 3.

Every weight of the original is perturbed at random by ±u relative, u the unit roundoff of its own type, and the model
is evaluated in float64: δ is the rms deviation of its outputs, the median of three draws (docs: numerics).
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from bnfold.bodies import bodies_of, graphs_of
from bnfold.weights import read

__all__ = ["Weights", "lifted", "roundoff", "unit_roundoff"]

Array = npt.NDArray[Any]

_ROUNDOFF: dict[int, float] = {
    TensorProto.DOUBLE: 2.0**-53,
    TensorProto.FLOAT: 2.0**-24,
    TensorProto.FLOAT16: 2.0**-11,
    TensorProto.BFLOAT16: 2.0**-8,
}

# Operands that settle a shape, or on which the output does not depend smoothly: no rounding of a fold reaches them.
_EXACT_SLOTS: dict[str, tuple[int, ...]] = {
    "Resize": (1, 2, 3),
    "Upsample": (1,),
    "Reshape": (1,),
    "Expand": (1,),
    "Tile": (1, 2),
    "ConstantOfShape": (0,),
    "Range": (0, 1, 2),
    "OneHot": (1, 2),
    "TopK": (1,),
    "Pow": (1,),
    "NonMaxSuppression": (2, 3, 4),
    "Pad": (1,),
    "Slice": (1, 2, 3, 4),
    "Mod": (0, 1),
    "QuantizeLinear": (1,),
}


def roundoff(data_type: int) -> float:
    """u of a floating type, given as ONNX's TensorProto code."""
    return _ROUNDOFF[data_type]


def unit_roundoff(model: ModelProto) -> float:
    """u of the model's coarsest weight type with more than one element; of float32 when it has no weights."""
    kinds = {p.data_type for p in model.graph.initializer if p.data_type in _ROUNDOFF and np.prod(p.dims) > 1}
    return max((_ROUNDOFF[kind] for kind in kinds), default=_ROUNDOFF[TensorProto.FLOAT])


def lifted(model: ModelProto) -> ModelProto:
    """A copy in which the Constant nodes of the main graph that hold a tensor are initializers."""
    copy = ModelProto()
    copy.CopyFrom(model)
    kept: list[NodeProto] = []
    for node in copy.graph.node:
        tensor = _constant(node)
        if tensor is None:
            kept.append(node)
            continue
        proto = copy.graph.initializer.add()
        proto.CopyFrom(tensor)
        proto.name = node.output[0]
    if len(kept) < len(copy.graph.node):
        rest = [node.SerializeToString() for node in kept]
        del copy.graph.node[:]
        for data in rest:
            copy.graph.node.add().ParseFromString(data)
    return copy


def _constant(node: NodeProto) -> TensorProto | None:
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or not node.output:
        return None
    return next((a.t for a in node.attribute if a.name == "value" and a.type == AttributeProto.TENSOR), None)


class Weights:
    """The floating weights of a lifted model, to be perturbed, those inside the bodies of If, Loop and Scan too."""

    def __init__(self, model: ModelProto, directory: Path | None) -> None:
        self._model = model
        self._directory = directory
        self._has_inner = any(True for _ in _inner_weights(model.graph))
        exact = _exact_values(model.graph)
        read = _all_reads(model.graph)
        self._protos = [
            proto
            for proto in model.graph.initializer
            if proto.data_type in _ROUNDOFF and proto.name in read and proto.name not in exact
        ]

    def perturbed(self, seed: int, draw: int, scale: float = 1.0) -> tuple[ModelProto, dict[str, Array]]:
        """The model, and its weights in float64 for Evaluator's `exact`, each element moved by ±scale·u of its size."""
        moved = {
            proto.name: self._moved(proto, np.random.default_rng([seed, draw, index]), scale)
            for index, proto in enumerate(self._protos)
        }
        if not self._has_inner:
            return self._model, moved
        model = ModelProto()
        model.CopyFrom(self._model)
        for index, proto in enumerate(_inner_weights(model.graph)):
            value = self._moved(proto, np.random.default_rng([seed, draw, len(self._protos) + index]), scale)
            proto.CopyFrom(numpy_helper.from_array(value, proto.name))  # double: the judge promotes all floats anyway
        return model, moved

    def neighbours(self, seed: int, draw: int) -> dict[str, Array]:
        """The weights outside of bodies in their own types, each moved to a number close by."""
        found: dict[str, Array] = {}
        for index, proto in enumerate(self._protos):
            moved = self._moved(proto, np.random.default_rng([seed, draw, index]), 1.5)
            kind = onnx.helper.tensor_dtype_to_np_dtype(proto.data_type)
            found[proto.name] = moved.astype(kind)
        return found

    def _moved(self, proto: TensorProto, rng: np.random.Generator, scale: float) -> Array:
        value = read(proto, self._directory).astype(np.float64)
        signs = 1.0 - 2.0 * rng.integers(0, 2, value.shape, dtype=np.int8)
        return value * (1.0 + scale * _ROUNDOFF[proto.data_type] * signs)


def _inner_weights(graph: GraphProto) -> Iterator[TensorProto]:
    for body in islice(graphs_of(graph), 1, None):
        exact = _exact_values(body)
        constants = ((node.output[0], _constant(node)) for node in body.node if node.output)
        for name, proto in (*((p.name, p) for p in body.initializer), *constants):
            if proto is not None and name not in exact and proto.data_type in _ROUNDOFF:
                yield proto


def _all_reads(graph: GraphProto) -> set[str]:
    read = {name for each in graphs_of(graph) for node in each.node for name in node.input}
    return read | {value.name for each in graphs_of(graph) for value in each.output}


def _exact_values(graph: GraphProto) -> set[str]:
    """Values that reach an exact operand, Shape and Size ending the way, for what they give depends on no weight."""
    producers: Mapping[str, NodeProto] = {name: node for node in graph.node for name in node.output if name}
    found: set[str] = set()
    pending: list[str] = []
    for node in graph.node:
        for slot in _EXACT_SLOTS.get(node.op_type, ()):
            if slot < len(node.input) and node.input[slot]:
                pending.append(node.input[slot])
    for body in (body for node in graph.node for body in bodies_of(node)):
        found |= _exact_values(body)
    while pending:
        name = pending.pop()
        if name in found:
            continue
        found.add(name)
        node = producers.get(name)
        if node is not None and node.op_type not in ("Shape", "Size"):
            pending.extend(inner for inner in node.input if inner)
    return found
