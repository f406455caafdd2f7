"""A node as what it computes, so that two ways to write the same thing compare as equal.

MatMul(x, W), MatMul(x, W) + b and Gemm(x, W, b) with or without a transposed W are one kind, "Linear"; an attribute
that has its default is none; a missing bias is a bias of zeros.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..graph import Graph, Node
from ..weights import Tensor, zeros

__all__ = ["LAYERS", "Operand", "Term", "bypassed", "term"]

Array = NDArray[np.float64]
LAYERS = frozenset(("Conv", "ConvTranspose", "Linear"))
_COMMUTATIVE = frozenset(("Add", "Mul", "Max", "Min", "And", "Or", "Xor", "Equal"))
_BROADCAST = frozenset(("Add", "Sub", "Mul", "Div", "PRelu", "Max", "Min", "Pow", "Where"))
_ROLES = {
    "BatchNormalization": ("x", "scale", "bias", "mean", "variance"),
    "Conv": ("x", "weight", "bias"),
    "ConvTranspose": ("x", "weight", "bias"),
    "Linear": ("x", "weight", "bias"),
}
_NO_MATTER = {  # attributes that say nothing about what is computed at inference, or that the weight's shape says
    "BatchNormalization": frozenset(("consumed_inputs",)),
    "Conv": frozenset(("kernel_shape",)),
    "ConvTranspose": frozenset(("kernel_shape",)),
}
_ONES, _ZEROS = frozenset(("strides", "dilations")), frozenset(("pads", "output_padding"))


@dataclass(frozen=True, eq=False)
class Operand:
    """A constant operand of a term: `tensor` is input `slot` of `node`; `turned` and `factor` lead to the term's form.

    flat: leading axes of length 1 do not count.
    """

    tensor: Tensor
    node: Node
    slot: int
    role: str
    turned: bool = False
    factor: float = 1.0
    flat: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self._formed(np.broadcast_to(np.zeros((), np.bool_), self.tensor.shape)).shape

    def exact(self) -> Array:
        """The value before rounding, in float64."""
        value = self._formed(self.tensor.exact())
        return value if self.factor == 1.0 else value * self.factor

    def magnitude(self) -> Array:
        """M: the same with every term by its absolute value."""
        value = np.abs(self.tensor.doubles())
        for step in self.tensor.steps:
            value = value * np.abs(step.scale) + np.abs(step.shift)
        return self._formed(np.broadcast_to(value, self.tensor.shape)) * abs(self.factor)

    def original(self) -> Operand:
        """The same operand before any edit; of the same shape, or of the one that it had."""
        base = self.tensor
        if base.proto is None:
            return replace(self, tensor=zeros(base.name, base.shape, base.data_type))
        return replace(
            self, tensor=Tensor(base.name, base.data_type, tuple(base.proto.dims), base.proto, base.directory)
        )

    def index(self, where: tuple[int, ...]) -> tuple[int, ...]:
        """Where an element of the term's form stands in the file."""
        return where[::-1] if self.turned else (0,) * (len(self.tensor.shape) - len(where)) + where

    def _formed(self, value: NDArray[Any]) -> NDArray[Any]:
        if self.turned:
            return value.T
        if self.flat:
            while value.ndim and value.shape[0] == 1:
                value = value[0]
        return value


@dataclass(frozen=True, eq=False)
class Term:
    """One op: `node` names it; operands are names of computed values, constants, or None where absent."""

    kind: str
    domain: str
    node: Node
    attributes: dict[str, Any]
    operands: tuple[str | Operand | None, ...]

    @property
    def constants(self) -> list[Operand]:
        return [operand for operand in self.operands if isinstance(operand, Operand)]


def bypassed(graph: Graph, node: Node) -> bool:
    """The node hands its input 0 on as its output 0: Identity, and Dropout at inference."""
    if node.domain or not node.has(0):
        return False
    if node.op_type == "Dropout":
        if graph.opset("") < 7:
            return bool(node.attribute("is_test", 0))
        mode = graph.constant(node.inputs[2]) if node.has(2) else None
        return not node.has(2) or (mode is not None and not mode.array().any())
    return node.op_type == "Identity"


def term(graph: Graph, node: Node) -> Term:
    """What a node computes; an Add that is the bias of a MatMul is taken together with it."""
    linear = _linear(graph, node)
    if linear is not None:
        return linear
    kind = node.op_type
    roles = _ROLES.get(kind, ())
    operands: list[str | Operand | None] = []
    for slot, name in enumerate(node.inputs):
        held = graph.constant(name) if name else None
        if held is None:
            operands.append(name or None)
            continue
        role = roles[slot] if slot < len(roles) else f"input {slot}"
        flat = kind in _BROADCAST and _fits(graph, node, held)
        operands.append(Operand(held, node, slot, role, flat=flat))
    while operands and operands[-1] is None:
        operands.pop()
    if kind in _COMMUTATIVE and len(operands) == 2 and isinstance(operands[0], Operand):
        operands.reverse()
    return Term(kind, node.domain, node, _attributes(graph, node), tuple(operands))


def _fits(graph: Graph, node: Node, held: Tensor) -> bool:
    """The constant has no more axes than a computed operand: leading ones do not change the result's rank."""
    if len(held.shape) <= 1:
        return True
    ranks = [graph.shapes.rank(name) for name in node.inputs if name and not graph.is_constant(name)]
    return any(rank is not None and rank >= len(held.shape) for rank in ranks)


def _linear(graph: Graph, node: Node) -> Term | None:
    if node.domain:
        return None
    if node.op_type == "Add" and len(node.inputs) == 2:
        for slot in (0, 1):
            made = graph.producer(node.inputs[slot])
            held = graph.constant(node.inputs[1 - slot])
            if made is None or held is None or made[0].op_type != "MatMul" or len(graph.readers(node.inputs[slot])) > 1:
                continue
            inner = _linear(graph, made[0])
            if inner is None or node.inputs[slot] in graph.outputs or node.inputs[slot] in graph.captured:
                continue
            weight = inner.constants[0]
            bias = Operand(held, node, 1 - slot, "bias", flat=True)
            if held.is_float and _fits(graph, node, held) and bias.shape in ((), (1,), weight.shape[1:]):
                return replace(inner, operands=(*inner.operands, bias))
        return None
    if node.op_type not in ("MatMul", "Gemm") or not node.has(0) or not node.has(1):
        return None
    weight, first = graph.constant(node.inputs[1]), graph.constant(node.inputs[0])
    if weight is None or first is not None or len(weight.shape) != 2 or not weight.is_float:
        return None
    if node.op_type == "MatMul":
        return Term("Linear", "", node, {}, (node.inputs[0], Operand(weight, node, 1, "weight")))
    if node.attribute("transA", 0) or (graph.opset("") < 7 and node.has(2)):
        return None
    turned, alpha, beta = bool(node.attribute("transB", 0)), node.attribute("alpha", 1.0), node.attribute("beta", 1.0)
    operands: list[str | Operand | None] = [node.inputs[0]]
    operands.append(Operand(weight, node, 1, "weight", turned=turned, factor=float(alpha)))
    if node.has(2) and beta != 0.0:
        held = graph.constant(node.inputs[2])
        if held is None:
            return None
        bias = Operand(held, node, 2, "bias", factor=float(beta), flat=True)
        if len(bias.shape) > 1:
            return None
        operands.append(bias)
    return Term("Linear", "", node, {}, tuple(operands))


def _attributes(graph: Graph, node: Node) -> dict[str, Any]:
    defaults = _defaults(node.op_type, node.domain, graph.opset(node.domain))
    dropped = _NO_MATTER.get(node.op_type, frozenset())
    out: dict[str, Any] = {}
    for a in node.proto.attribute:
        if a.name in dropped or a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
            continue
        value = _plain(onnx.helper.get_attribute_value(a))
        if a.name in defaults and defaults[a.name] == value:
            continue
        if (a.name in _ONES and set(a.ints) == {1}) or (a.name in _ZEROS and set(a.ints) == {0}):
            continue
        if a.name in ("axis", "axes") and node.has(0):
            value = _counted_from_the_front(graph, node, a)
        out[a.name] = a.ref_attr_name or value
    if node.op_type == "BatchNormalization" and not any(node.outputs[1:]):
        out.pop("momentum", None)
    if node.op_type == "AveragePool" and not out.keys() & {"pads", "auto_pad", "ceil_mode"}:
        out.pop("count_include_pad", None)
    return out


def _counted_from_the_front(graph: Graph, node: Node, a: onnx.AttributeProto) -> Any:
    rank = graph.shapes.rank(node.inputs[0])
    axes = (a.i,) if a.name == "axis" else tuple(a.ints)
    if rank is None:
        return axes
    if node.op_type == "Unsqueeze":
        rank += len(axes)
    return tuple(axis + rank if axis < 0 else axis for axis in axes)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes | str | int | float):
        return value
    if isinstance(value, onnx.TensorProto):
        array = onnx.numpy_helper.to_array(value)
        return (value.data_type, array.shape, array.tobytes())  # whatever its name is
    if hasattr(value, "SerializeToString"):
        return value.SerializeToString(deterministic=True)
    return tuple(_plain(each) for each in value)


@functools.cache
def _defaults(kind: str, domain: str, opset: int) -> dict[str, Any]:
    try:
        schema = onnx.defs.get_schema(kind, opset, domain)
    except onnx.defs.SchemaError:
        return {}
    return {
        name: _plain(onnx.helper.get_attribute_value(a.default_value))
        for name, a in schema.attributes.items()
        if a.default_value.name
    }
