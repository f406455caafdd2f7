"""Which values an input may hold: what indexes a table stays inside it, traced backward from the op that looks up.

need(x) ⊇ {v : f(v) ∈ need(f(x))}      for f = Cast, Add, Mul, Clip, Reshape ..., through bodies and functions

Where two computed values meet (a sum of two inputs), each gets half of the way; what cannot be traced stays free.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import GraphProto, ModelProto, NodeProto, numpy_helper

from bnfold.bodies import bodies_of

from .cost import inferred_shapes
from .sizes import GraphInput

__all__ = ["Interval", "bounds"]

Interval = tuple[float, float]  # both ends belong to it
Array = npt.NDArray[Any]
FLAGS: Interval = (0, 1)  # for integers of unknown meaning: masks, flags and token types are 0 or 1

_SMALL = 1024  # elements: constants up to here may be operands of arithmetic on indices
_DEPTH = 16  # functions and bodies inside each other
_KEEPS_FIRST = frozenset(
    (
        *("Cast", "CastLike", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Slice", "Split"),
        *(
            "Expand",
            "Tile",
            "Dropout",
            "Floor",
            "Ceil",
            "Round",
            "Relu",
            "ReduceMax",
            "ReduceMin",
            "Compress",
            "Gather",
        ),
        *("GatherElements", "GatherND", "DepthToSpace", "SpaceToDepth", "ReverseSequence", "TopK", "Pad", "Upsample"),
        *("Resize", "Trilu", "MaxPool", "GlobalMaxPool", "Abs"),
    )
)
_KEEPS: dict[str, tuple[int, ...]] = {"Where": (1, 2), "ScatterElements": (0, 2), "ScatterND": (0, 2)}
_KEEPS_ALL = frozenset(("Concat", "Max", "Min"))


def bounds(
    model: ModelProto, inputs: Sequence[GraphInput], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Interval]:
    """The values to feed: for every integer input, and for floating ones that the model turns into indices.

    `shapes` are the inputs' own; they settle tables that are computed, and the length of a sequence.
    """
    trace = _Trace(model, shapes)
    trace.graph(model.graph)
    found: dict[str, Interval] = {}
    for value in inputs:
        dtype = _dtype(value.elem_type)
        if dtype is None or dtype.kind not in "iuf":
            continue
        need = trace.need.get(value.name)
        if dtype.kind == "f":
            if need is not None and all(map(math.isfinite, need)):
                found[value.name] = need
        elif need is not None:
            found[value.name] = _inside(need, dtype)
        elif dtype.itemsize == 1:
            found[value.name] = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)  # pixels, quantised values
        else:
            found[value.name] = FLAGS
    return found


def _dtype(elem_type: int) -> "np.dtype[Any] | None":
    try:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(elem_type))
    except KeyError:
        return None


def _inside(need: Interval, dtype: "np.dtype[Any]") -> Interval:
    """The integers of the interval, those from 0 on where there are any: exporters count from there."""
    limits = np.iinfo(dtype)
    low = max(math.ceil(need[0]), int(limits.min)) if math.isfinite(need[0]) else min(0, math.floor(need[1]))
    high = min(math.floor(need[1]), int(limits.max)) if math.isfinite(need[1]) else max(int(FLAGS[1]), low)
    low = 0 if low < 0 <= high else low
    return low, max(high, low)


class _Trace:
    """What each value must stay inside of, found from the last node to the first."""

    def __init__(self, model: ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._model, self._given = model, shapes
        self._functions = {(f.domain, f.name): f for f in model.functions}
        self._constants: dict[str, Array] = {}
        self._weights: dict[str, tuple[int, ...]] = {}
        self.need: dict[str, Interval] = {}

    @cached_property
    def _inferred(self) -> dict[str, tuple[int, ...]]:
        return inferred_shapes(self._model, self._given)

    def _shape(self, name: str) -> tuple[int, ...] | None:
        found = self._weights.get(name)
        return self._inferred.get(name) if found is None else found

    def graph(self, graph: GraphProto, depth: int = 0) -> None:
        for proto in graph.initializer:
            self._weights[proto.name] = tuple(proto.dims)
            if proto.data_location != onnx.TensorProto.EXTERNAL and math.prod(proto.dims) <= _SMALL:
                self._constants[proto.name] = numpy_helper.to_array(proto)
        self._nodes(graph.node, depth)

    def _nodes(self, nodes: Sequence[NodeProto], depth: int) -> None:
        for node in nodes:
            for a in node.attribute:
                if node.op_type == "Constant" and a.name == "value" and node.output:
                    self._weights[node.output[0]] = tuple(a.t.dims)
                    if math.prod(a.t.dims) <= _SMALL:
                        self._constants[node.output[0]] = numpy_helper.to_array(a.t)
                elif node.op_type == "Constant" and a.name in ("value_int", "value_float") and node.output:
                    self._constants[node.output[0]] = np.asarray(onnx.helper.get_attribute_value(a))
            if (
                node.op_type in ("Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze")
                and node.input[0] in self._constants
            ):
                self._constants[node.output[0]] = self._constants[node.input[0]]  # the values are what counts
        for node in reversed(nodes):
            self._node(node, depth)

    def _narrow(self, name: str, low: float, high: float) -> None:
        """`name` must lie in [low, high]. What contradicts an earlier demand gives way to it."""
        if not name or name in self._constants or math.isnan(low) or math.isnan(high) or low > high:
            return
        known = self.need.get(name, (-math.inf, math.inf))
        both = max(low, known[0]), min(high, known[1])
        if both[0] <= both[1]:
            self.need[name] = both

    def _node(self, node: NodeProto, depth: int) -> None:
        if depth < _DEPTH:
            self._inner(node, depth)
        for slot, size in self._tables(node):
            if slot < len(node.input) and size is not None and size > 0:
                self._narrow(node.input[slot], 0, size - 1)
        self._lengths(node)
        wanted = [self.need[name] for name in node.output if name in self.need]
        if wanted:
            low, high = max(w[0] for w in wanted), min(w[1] for w in wanted)
            self._through(node, low, high)

    def _tables(self, node: NodeProto) -> list[tuple[int, int | None]]:
        """Which operands are indices, and into how many entries."""
        op, names = node.op_type, list(node.input)
        shape = self._shape(names[0]) if names and op in _LOOKS_UP else None
        axis = _int(node, "axis", 0)
        if op in ("Gather", "GatherElements", "ScatterElements", "Scatter", "ArrayFeatureExtractor"):
            axis = -1 if op == "ArrayFeatureExtractor" else axis
            return [(1, shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None)]
        if op in ("GatherND", "ScatterND") and shape:
            first = _int(node, "batch_dims", 0) if op == "GatherND" else 0
            tuples = self._shape(names[1])
            last = first + tuples[-1] if tuples else len(shape)
            return [(1, min(shape[first:last], default=None))]
        if op == "OneHot" and names[1] in self._constants:
            return [(0, int(self._constants[names[1]].reshape(-1)[0]))]
        if op == "EmbedLayerNormalization":
            tables = ((0, 2), (1, 4), (8, 3))
            return [(slot, (self._shape(names[t]) or (None,))[0]) for slot, t in tables if t < len(names) and names[t]]
        if op == "RotaryEmbedding":
            slot, cache = (1, 2) if node.domain else (3, 1)
            rows = self._shape(names[cache]) if cache < len(names) else None
            return [(slot, rows[0])] if rows and (node.domain or len(rows) == 2) else []
        if op in ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"):
            scores = self._shape(names[0])
            return [(1, scores[1] if scores and len(scores) > 1 else None)]
        return []

    def _lengths(self, node: NodeProto) -> None:
        """Lengths of sequences: at least one step, and no more than there are."""
        slot, axis = {
            "LSTM": (4, _int(node, "layout", 0)),
            "GRU": (4, _int(node, "layout", 0)),
            "RNN": (4, _int(node, "layout", 0)),
            "ReverseSequence": (1, _int(node, "time_axis", 0)),
        }.get(node.op_type, (0, 0))
        if slot and slot < len(node.input):
            shape = self._shape(node.input[0])
            self._narrow(node.input[slot], 1, shape[axis] if shape is not None and axis < len(shape) else 1)

    def _through(self, node: NodeProto, low: float, high: float) -> None:
        op, names = node.op_type, list(node.input)
        if op in _KEEPS_FIRST and names:
            self._narrow(names[0], low, high)
        elif op in _KEEPS_ALL or op in _KEEPS:
            for slot in _KEEPS.get(op, range(len(names))):
                if slot < len(names):
                    self._narrow(names[slot], low, high)
        elif op == "Clip":
            floor, ceiling = self._clip(node)
            if not (low <= floor and ceiling <= high):
                self._narrow(names[0], low, high)
        elif op == "Neg":
            self._narrow(names[0], -high, -low)
        elif op == "Mod" and names[1] in self._constants:
            by = self._constants[names[1]]
            if by.size and not (low <= 0 and by.min() > 0 and by.max() - 1 <= high):
                self._narrow(names[0], max(low, 0), high)
            elif by.size and _int(node, "fmod", 0):
                self._narrow(names[0], 0, math.inf)  # fmod of a negative number is negative
        elif op in ("Add", "Sub", "Mul", "Div") and len(names) == 2:
            self._arithmetic(op, names, low, high)

    def _clip(self, node: NodeProto) -> Interval:
        given = {a.name: float(a.f) for a in node.attribute if a.name in ("min", "max")}
        ends = [given.get("min", -math.inf), given.get("max", math.inf)]
        for slot in (1, 2):
            if slot < len(node.input) and node.input[slot] in self._constants:
                ends[slot - 1] = float(self._constants[node.input[slot]].reshape(-1)[0])
        return ends[0], ends[1]

    def _arithmetic(self, op: str, names: Sequence[str], low: float, high: float) -> None:
        a, b = (self._constants.get(name) for name in names)
        if (a is not None and b is not None) or (a is not None and not a.size) or (b is not None and not b.size):
            return
        if a is None and b is None:  # two computed values: each gets half of the way
            if op == "Add":
                for name in names:
                    self._narrow(name, low / 2, high / 2)
            elif op == "Mul" and low <= 0 <= high:
                for name in names:
                    self._narrow(name, 0, math.sqrt(high))
            return
        name, c = (names[0], b) if a is None else (names[1], a)
        if c is None or not np.isfinite(c).all():
            return
        least, most = float(c.min()), float(c.max())
        if op == "Add":
            self._narrow(name, low - least, high - most)
        elif op == "Sub" and b is not None:
            self._narrow(name, low + most, high + least)
        elif op == "Sub":
            self._narrow(name, most - high, least - low)
        elif op == "Mul" and least > 0:
            self._narrow(name, max(low / least, low / most), min(high / least, high / most))
        elif op == "Div" and b is not None and least > 0:
            self._narrow(name, max(low * least, low * most), min(high * least, high * most))

    def _inner(self, node: NodeProto, depth: int) -> None:
        """The bodies of If, Loop and Scan, and the model's own functions: outputs in, inputs out."""
        function = self._functions.get((node.domain, node.op_type))
        if function is not None:
            inner = _Trace(self._model, self._given)
            inner._inherit(self, dict(zip(function.input, node.input, strict=False)))
            inner._pairs(zip(node.output, function.output, strict=False), self)
            inner._nodes(function.node, depth + 1)
            self._pairs(zip(function.input, node.input, strict=False), inner)
            return
        for body in bodies_of(node):
            first_out, first_in = (1, 2) if node.op_type == "Loop" else (0, 0)
            self._pairs(zip(node.output, body.output[first_out:], strict=False), self, value_infos=True)
            self.graph(body, depth + 1)
            for formal, actual in zip(body.input[first_in:], node.input[first_in:], strict=False):
                if formal.name in self.need:
                    self._narrow(actual, *self.need[formal.name])
            if node.op_type == "Loop" and body.input and body.input[0].name in self.need:
                self._narrow(node.input[0], 1, self.need[body.input[0].name][1] + 1)

    def _inherit(self, outer: "_Trace", actual: Mapping[str, str]) -> None:
        for formal, name in actual.items():
            if name in outer._constants:
                self._constants[formal] = outer._constants[name]
            if (shape := outer._shape(name) if name else None) is not None:
                self._weights[formal] = shape

    def _pairs(self, pairs: Any, source: "_Trace", value_infos: bool = False) -> None:
        """What `source` needs of the first of each pair, the second needs here."""
        for known, wanted in pairs:
            if known in source.need:
                self._narrow(wanted.name if value_infos else wanted, *source.need[known])


_LOOKS_UP = frozenset(
    ("Gather", "GatherElements", "ScatterElements", "Scatter", "ArrayFeatureExtractor", "GatherND", "ScatterND")
)


def _int(node: NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)
