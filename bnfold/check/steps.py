"""Values that jump: indices, comparisons, roundings. There a difference of one unit roundoff can flip the result.

An integer output may flip only where the float64 margin of its float producer is below the error bound there:
ArgMax by the gap between the two largest, Cast and Floor by the distance to the next integer, Greater by |a − b|.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

__all__ = ["Decider", "decider", "jumps_inside"]

Array = npt.NDArray[Any]

_ROUNDING = frozenset(("Floor", "Ceil", "Round", "QuantizeLinear", "DynamicQuantizeLinear"))
_COMPARING = frozenset(("Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Equal"))
_LAYOUT = frozenset(("Identity", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Transpose", "Not"))
_INTEGERS = frozenset(
    value for name, value in onnx.TensorProto.DataType.items() if name.startswith(("INT", "UINT", "BOOL"))
)


def jumps_inside(graph: onnx.GraphProto) -> dict[str, int]:
    """How often each op that rounds its data to a grid is in the graph, shape arithmetic apart."""
    counts: dict[str, int] = {}
    exempt = _from_shapes(graph)
    for node in graph.node:
        rounds = node.op_type in _ROUNDING or (node.op_type == "Cast" and _target(node) in _INTEGERS)
        if rounds and node.input and node.input[0] not in exempt:
            counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


def _from_shapes(graph: onnx.GraphProto) -> set[str]:
    """Values computed from shapes and constants alone; no rounding of data reaches them."""
    known = {proto.name for proto in graph.initializer}
    for node in graph.node:
        if node.op_type in ("Shape", "Size") or all(name in known for name in node.input if name):
            known.update(node.output)
    return known


@dataclass(frozen=True)
class Decider:
    """The node that makes an integer or boolean output out of floats, and the way its margin takes to that output."""

    node: onnx.NodeProto
    layout: tuple[onnx.NodeProto, ...]  # from the node to the output

    @property
    def operands(self) -> tuple[str, ...]:
        """The float values from which the margin follows."""
        two = self.node.op_type in _COMPARING or self.node.op_type == "TopK"
        return tuple(self.node.input[:2]) if two else (self.node.input[0],)

    def margin(self, values: Mapping[str, Array], move: Callable[[onnx.NodeProto, Array], Array]) -> Array:
        """For each element of the output, by how much the operands must change before it can flip.

        `values`: the operands in float64; `move(node, x)` applies one node of the layout to x.
        """
        margin = _MARGINS[self.node.op_type](self.node, *(values[name] for name in self.operands))
        for node in self.layout:
            margin = move(node, margin)
        return margin


def decider(graph: onnx.GraphProto, output: str) -> Decider | None:
    """The decider of an output, None when it comes from anything else than a lone jump followed by layout."""
    producers = {name: node for node in graph.node for name in node.output if name}
    layout: list[onnx.NodeProto] = []
    name = output
    while (node := producers.get(name)) is not None:
        if node.op_type in _LAYOUT or (node.op_type == "Cast" and _makes_integers(producers.get(node.input[0]))):
            if node.op_type not in ("Not", "Cast"):
                layout.insert(0, node)
            name = node.input[0]
            continue
        if node.op_type in _MARGINS and (node.op_type != "TopK" or name == node.output[-1]):
            return Decider(node, tuple(layout))
        return None
    return None


def _makes_integers(node: onnx.NodeProto | None) -> bool:
    return node is not None and (node.op_type in _MARGINS or node.op_type in ("Squeeze", "Unsqueeze", "Not"))


def _target(node: onnx.NodeProto) -> int:
    return next((a.i for a in node.attribute if a.name == "to"), 0)


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((a.i for a in node.attribute if a.name == name), default)


def _distance(_: onnx.NodeProto, a: Array, b: Array) -> Array:
    return np.abs(a - b)


def _half(_: onnx.NodeProto, x: Array) -> Array:
    return np.abs(x - np.floor(x) - 0.5)


def _sign(_: onnx.NodeProto, x: Array) -> Array:
    return np.abs(x)


def _arg(node: onnx.NodeProto, x: Array) -> Array:
    axis = _attribute(node, "axis", 0)
    if x.shape[axis] < 2:
        margin = np.full_like(np.take(x, [0], axis), np.inf)
    else:
        ordered = np.sort(x if node.op_type == "ArgMax" else -x, axis=axis)
        margin = np.take(ordered, [-1], axis) - np.take(ordered, [-2], axis)
    return margin if _attribute(node, "keepdims", 1) else np.squeeze(margin, axis)


def _top(node: onnx.NodeProto, x: Array, k: Array | None = None) -> Array:
    axis = _attribute(node, "axis", -1)
    count = _attribute(node, "k", 1) if k is None else int(k.reshape(-1)[0])  # an attribute before opset 10
    ordered = np.sort(x, axis=axis)
    if _attribute(node, "largest", 1):
        ordered = np.flip(ordered, axis)
    gaps = np.abs(np.diff(ordered, axis=axis))
    edge = np.full_like(np.take(ordered, [0], axis), np.inf)
    before, after = np.concatenate([edge, gaps], axis), np.concatenate([gaps, edge], axis)
    return np.take(np.minimum(before, after), np.arange(count), axis)


def _integer(_: onnx.NodeProto, x: Array) -> Array:
    return np.abs(x - np.round(x))


def _truncated(node: onnx.NodeProto, x: Array) -> Array:
    if _target(node) == onnx.TensorProto.BOOL:
        return np.abs(x)
    return np.where(np.abs(x) < 0.5, 1.0 - np.abs(x), np.abs(x - np.round(x)))  # truncation does not jump at 0


_MARGINS: dict[str, Callable[..., Array]] = {
    "ArgMax": _arg,
    "ArgMin": _arg,
    "TopK": _top,
    "Cast": _truncated,
    "Floor": _integer,
    "Ceil": _integer,
    "Round": _half,
    "Sign": _sign,
    **dict.fromkeys(_COMPARING, _distance),
}
