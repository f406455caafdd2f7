"""Constants that are not initializers: Constant nodes, and expressions computed from constants alone.

A constant expression is evaluated once, in its own types, by the reference evaluator, as the runtime would do it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from .weights import Tensor, tensor

if TYPE_CHECKING:
    from .graph import Graph, Node

_LARGEST = 1 << 28  # bytes that evaluating a constant expression may make: beyond it the value counts as unknown


def tensor_of(graph: Graph, value: str) -> Tensor | None:
    """The tensor of a value that a constant node of `graph` computes; None where it cannot be evaluated."""
    node = graph.constant_node(value)
    if node is None:
        return None
    if node.op_type == "Constant":
        return _literal(graph, node, value)
    try:
        array = _evaluate(graph, value)
    except Exception:  # whatever an odd expression makes the evaluator raise, it is not a constant that we know
        return None
    if array is None:
        return None
    return tensor(onnx.numpy_helper.from_array(np.asarray(array), value), None, value)


def dequantized(graph: Graph, node: Node, value: str) -> Tensor | None:
    """(q - z)*d in float64 of a DequantizeLinear of one axis at most; to be stored in the type of d."""
    parts = [graph.constant(name) if name else None for name in node.inputs]
    q, d = parts[0], parts[1]
    z = parts[2] if len(parts) > 2 else None
    if q is None or d is None or not d.is_float or len(q.shape) > 1 or node.attribute("block_size", 0):
        return None
    if len(parts) > 2 and node.inputs[2] and z is None:
        return None
    exact = (q.exact() - (0.0 if z is None else z.exact())) * d.exact()
    proto = onnx.TensorProto(name=value, data_type=onnx.TensorProto.DOUBLE, dims=exact.shape, raw_data=exact.tobytes())
    return tensor(proto, None, value).retyped(d.data_type)


def _literal(graph: Graph, node: Node, value: str) -> Tensor | None:
    found = node.attributes
    if "value" in found:
        return tensor(found["value"], graph.directory, value)
    for name, dtype in (
        ("value_float", np.float32), ("value_floats", np.float32), ("value_int", np.int64), ("value_ints", np.int64)
    ):  # fmt: skip
        if name in found:
            return tensor(onnx.numpy_helper.from_array(np.asarray(found[name], dtype), value), None, value)
    return None


def _evaluate(graph: Graph, value: str) -> NDArray[Any] | None:
    from .reference import evaluate_node

    known: dict[str, NDArray[Any] | None] = {}
    stack = [value]
    while stack:
        name = stack[-1]
        if name in known:
            stack.pop()
            continue
        node = graph.constant_node(name)
        if node is None or node.op_type == "Constant":
            found = graph.constant(name)
            known[name] = None if found is None else found.array()
            continue
        if node.op_type == "Shape" and not graph.is_constant(node.inputs[0]):
            found = graph.shapes.elements(name)
            known[name] = None if found is None else np.asarray(found, np.int64)
            continue
        missing = [i for i in node.inputs[: 1 if node.op_type == "CastLike" else None] if i and i not in known]
        if missing:
            stack.extend(missing)
            continue
        if node.op_type == "CastLike":
            known[name] = _cast_like(graph, node, known[node.inputs[0]])
            continue
        given = [known[i] if i else None for i in node.inputs]
        if any(i and known[i] is None for i in node.inputs) or _too_large(node, given):
            return None
        for out, array in zip(node.outputs, evaluate_node(node.proto, given, graph.opsets), strict=False):
            known[out] = array
    return known[value]


def _cast_like(graph: Graph, node: Node, array: NDArray[Any] | None) -> NDArray[Any] | None:
    from .reference import evaluate_node

    to = graph.shapes.elem_type(node.inputs[1])
    if array is None or not to:
        return None
    cast = onnx.helper.make_node("Cast", ["x"], ["y"], to=to)
    return evaluate_node(cast, [array], graph.opsets)[0]


def _too_large(node: Node, given: list[NDArray[Any] | None]) -> bool:
    if node.op_type in ("ConstantOfShape", "Expand", "Tile") and given[-1] is not None:
        if node.op_type == "ConstantOfShape":
            return float(np.prod(np.asarray(given[0], np.float64))) * 8 > _LARGEST
        base = 1.0 if given[0] is None else float(given[0].size)
        return base * float(np.prod(np.abs(given[-1]), dtype=np.float64)) * 8 > _LARGEST
    return sum(g.nbytes for g in given if g is not None) > _LARGEST
