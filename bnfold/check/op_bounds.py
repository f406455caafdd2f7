"""The running error bound of each operator: how many roundings it adds, and M on the sizes of its operands."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from bnfold.reference import evaluate_node

from .arithmetic import Arithmetic, Array, Bounded, NoBound


def given(value: Array) -> Bounded:
    """A value that is not computed: its size is its own."""
    return Bounded(value, np.abs(value) if value.dtype.kind == "f" else value)


Evaluate = Callable[[onnx.NodeProto, Sequence[Array | None], Mapping[str, int]], list[Array]]


@dataclass(frozen=True)
class Kernels:
    """How a runtime computes a node's outputs, in float64; and the rules of ops that are its own, or other there."""

    evaluate: Evaluate
    rules: Mapping[tuple[str, str], Rule]


@dataclass(frozen=True)
class Op:
    """A node as a rule sees it: its operands' bounds, its outputs' values, and its kernel to be used on sizes."""

    node: onnx.NodeProto
    operands: Sequence[Bounded | None]
    outputs: Sequence[Array | None]
    arithmetic: Arithmetic
    opsets: Mapping[str, int]
    kernels: Kernels

    @property
    def x(self) -> Bounded:
        return self[0]

    def __getitem__(self, slot: int) -> Bounded:
        found = self.operands[slot] if slot < len(self.operands) else None
        if found is None:
            raise NoBound(f"{self.node.op_type} without its operand {slot}")
        return found

    def has(self, slot: int) -> bool:
        return slot < len(self.operands) and self.operands[slot] is not None

    @property
    def given(self) -> list[Bounded]:
        return [operand for operand in self.operands if operand is not None]

    def attribute(self, name: str, default: Any) -> Any:
        found = next((a for a in self.node.attribute if a.name == name), None)
        value = default if found is None else onnx.helper.get_attribute_value(found)
        return value.decode() if isinstance(value, bytes) else value

    def on_sizes(self, *slots: int, node: onnx.NodeProto | None = None) -> list[Array]:
        """The node's outputs when the operands in `slots` are M instead of values."""
        arrays = [
            None if operand is None else operand.size if slot in slots else operand.value
            for slot, operand in enumerate(self.operands)
        ]
        return self.kernels.evaluate(self.node if node is None else node, arrays, self.opsets)


Rule = Callable[[Op], list[Bounded]]


def bound(op: Op) -> list[Bounded]:
    """The bounds of a node's outputs. Raises NoBound."""
    node, outputs, arithmetic = op.node, op.outputs, op.arithmetic
    plain = node.domain in ("", "ai.onnx")
    if plain and (node.op_type in _SHAPES or all(o is None or o.dtype.kind in "iub" for o in outputs)):
        if node.op_type in _SHAPES or all(operand.exact for operand in op.given):
            return [Bounded(np.empty(0), np.empty(0)) if o is None else given(o) for o in outputs]
        raise NoBound(f"{node.op_type}, which makes integers")
    rule = op.kernels.rules.get((node.domain, node.op_type), _RULES.get(node.op_type) if plain else None)
    if rule is None:
        raise NoBound(node.op_type)
    lost = arithmetic.tiny / arithmetic.stored
    with np.errstate(all="ignore"):
        return [replace(bound, size=bound.size + lost) for bound in rule(op)]


def joined(op: Op, size: Array, among: Sequence[Bounded], *, k: int = 0, n: int = 0, output: int = 0) -> Bounded:
    """An output whose every path comes from one of `among` and rounds k + n times more."""
    value = op.outputs[output]
    return Bounded(
        np.empty(0) if value is None else value,
        size,
        max((b.k for b in among), default=0) + k,
        max((b.n for b in among), default=0) + n,
        max((b.operands for b in among), default=0),
    )


def product(op: Op, size: Array, a: Bounded, b: Bounded, *, n: int, k: int = 0, sums: bool = True) -> Bounded:
    """A sum of n products; `k` more roundings. A tensor core rounds both operands first."""
    value = op.outputs[0]
    rounded = 2 if sums and op.arithmetic.operand else 0
    return Bounded(
        np.empty(0) if value is None else value, size, a.k + b.k + k, a.n + b.n + n, a.operands + b.operands + rounded
    )


def with_bias(found: Bounded, bias: Bounded | None, k: int) -> Bounded:
    if bias is None:
        return found
    return replace(
        found, k=max(found.k, bias.k) + k, n=max(found.n, bias.n), operands=max(found.operands, bias.operands)
    )


def _conv(op: Op) -> list[Bounded]:
    x, w = op[0], op[1]
    length = math.prod(w.value.shape[1:])
    if op.node.op_type == "ConvTranspose":
        length = w.value.shape[0] // int(op.attribute("group", 1)) * math.prod(w.value.shape[2:])
    bias = op[2] if op.has(2) else None
    return [with_bias(product(op, op.on_sizes(0, 1, 2)[0], x, w, n=length), bias, 1)]


def _gemm(op: Op) -> list[Bounded]:
    a, b = op[0], op[1]
    node = onnx.NodeProto()
    node.CopyFrom(op.node)
    for attribute in node.attribute:
        if attribute.name in ("alpha", "beta"):
            attribute.f = abs(attribute.f)
    length = a.value.shape[0 if op.attribute("transA", 0) else 1]
    bias = op[2] if op.has(2) else None
    return [with_bias(product(op, op.on_sizes(0, 1, 2, node=node)[0], a, b, n=length, k=1), bias, 2)]


def _matmul(op: Op) -> list[Bounded]:
    return [product(op, op.on_sizes(0, 1)[0], op[0], op[1], n=max(op[0].value.shape[-1], 1))]


def _norm(op: Op) -> list[Bounded]:
    if op.attribute("training_mode", 0) or not op.attribute("spatial", 1) or len([o for o in op.node.output if o]) > 1:
        raise NoBound("BatchNormalization in training mode, or not of channels")
    x = op.x
    parameters = [op[slot] for slot in range(1, 5)]
    lead = [1, -1] + [1] * (x.value.ndim - 2)
    gamma_, beta, mean, variance = (p.value.reshape(lead) for p in parameters)
    spread = np.sqrt(np.abs(variance + op.attribute("epsilon", float(np.float32(1e-5)))))
    size = np.abs(gamma_) / spread * (x.size + np.abs(mean)) + np.abs(beta)
    behind = max(p.k + p.n for p in parameters)
    return [joined(op, size, [x], k=op.arithmetic.norm + 3 * behind)]


def _sum(op: Op) -> list[Bounded]:
    total = op.given[0].size
    for operand in op.given[1:]:
        total = total + operand.size
    return [joined(op, np.asarray(total), op.given, k=max(len(op.given) - 1, 1))]


def _mean(op: Op) -> list[Bounded]:
    (found,) = _sum(op)
    return [replace(found, size=found.size / len(op.given), k=found.k + 1)]


def _mul(op: Op) -> list[Bounded]:
    return [product(op, np.asarray(op[0].size * op[1].size), op[0], op[1], n=0, k=1, sums=False)]


def _div(op: Op) -> list[Bounded]:
    _relative(op, op[1])
    return [product(op, np.asarray(op[0].size / np.abs(op[1].value)), op[0], op[1], n=0, k=1, sums=False)]


def _relative(op: Op, x: Bounded) -> None:
    """An op that is not linear in x needs that x has a small relative error: nothing cancelled on the way to it."""
    if not x.exact and not bool(np.all(x.size <= np.abs(x.value) * (1 + 2.0**-20))):
        raise NoBound(f"{op.node.op_type} of a value in which terms may cancel")


def _root(op: Op) -> list[Bounded]:
    _relative(op, op.x)
    return [joined(op, np.abs(_value(op)), [op.x], k=1)]  # x(1 + θ_k) has the root √x·(1 + θ_k)


def _power(op: Op) -> list[Bounded]:
    _relative(op, op.x)
    exponent = op[1]
    if not exponent.exact or exponent.value.size != 1:
        raise NoBound("Pow with more than one exponent")
    times = max(1, math.ceil(abs(float(exponent.value.reshape(-1)[0]))))
    if times > 8:
        raise NoBound("Pow with a large exponent")
    return [Bounded(_value(op), np.abs(_value(op)), times * op.x.k + 4, times * op.x.n, times * op.x.operands)]


def _value(op: Op) -> Array:
    value = op.outputs[0]
    assert value is not None
    return value


def _steady(op: Op) -> list[Bounded]:
    """1-Lipschitz in x and no rounding of its own: Relu, Abs, Neg, Identity."""
    return [joined(op, np.maximum(op.x.size, np.abs(_value(op))), [op.x])]


def _clip(op: Op) -> list[Bounded]:
    size = np.maximum(op.x.size, np.abs(_value(op)))
    for bound in op.given[1:]:
        if not bound.exact:
            size = np.maximum(size, bound.size)
    return [joined(op, size, op.given)]


def _extreme(op: Op) -> list[Bounded]:
    size = op.given[0].size
    for operand in op.given[1:]:
        size = np.maximum(size, operand.size)
    return [joined(op, np.asarray(size), op.given)]


def _leaky(op: Op) -> list[Bounded]:
    slope = abs(float(op.attribute("alpha", 0.01)))
    return [joined(op, np.maximum(op.x.size * max(1.0, slope), np.abs(_value(op))), [op.x], k=1)]


def _prelu(op: Op) -> list[Bounded]:
    x, slope = op[0], op[1]
    size = np.asarray(x.size * np.maximum(1.0, slope.size))
    return [product(op, size, x, slope, n=0, k=1, sums=False)]


def _hard_sigmoid(op: Op) -> list[Bounded]:
    alpha, beta = abs(float(op.attribute("alpha", 0.2))), abs(float(op.attribute("beta", 0.5)))
    return [joined(op, alpha * op.x.size + beta, [op.x], k=2)]


def _where(op: Op) -> list[Bounded]:
    if not op[0].exact:
        raise NoBound("Where with a computed condition")
    return [joined(op, np.where(op[0].value, op[1].size, op[2].size), [op[1], op[2]])]


def _cast(op: Op) -> list[Bounded]:
    """CastLike too: its second operand lends its type only."""
    value = _value(op)
    narrow = {2.0**-24: np.float32, 2.0**-11: np.float16}.get(op.arithmetic.stored)
    if narrow is not None and op.x.exact and np.array_equal(value.astype(narrow), value):
        return [Bounded(value, np.abs(value))]
    return [joined(op, np.abs(value) if op.x.value.dtype.kind != "f" else op.x.size, [op.x], k=1)]


def _dequantized(op: Op) -> list[Bounded]:
    if not op.x.exact:
        raise NoBound("DequantizeLinear of computed integers")
    return [joined(op, np.abs(_value(op)), op.given, k=2)]


def _layout(op: Op) -> list[Bounded]:
    """Moves elements of its first operand and computes nothing; further operands say where to."""
    if any(not operand.exact for operand in op.given[1:]):
        raise NoBound(f"{op.node.op_type} by computed positions")
    sizes = op.on_sizes(0)
    return [joined(op, size, [op.x], output=k) for k, size in zip(_named(op), sizes, strict=True)]


def _named(op: Op) -> list[int]:
    return [k for k, name in enumerate(op.node.output) if name]


def _pad(op: Op) -> list[Bounded]:
    fill = [op[2]] if op.has(2) else []
    sizes = op.on_sizes(0, 2)[0]
    return [joined(op, np.maximum(sizes, np.abs(_value(op))), [op.x, *fill])]


def _concat(op: Op) -> list[Bounded]:
    return [joined(op, op.on_sizes(*range(len(op.operands)))[0], op.given)]


def _pool(op: Op) -> list[Bounded]:
    if len([o for o in op.node.output if o]) > 1:
        raise NoBound("MaxPool with indices")
    # Half of a window may lie in the padding; a maximum of sizes is never below the size of the maximum.
    return [joined(op, op.on_sizes(0)[0], [op.x])]


def _averaged(op: Op) -> list[Bounded]:
    length = math.prod(op.attribute("kernel_shape", [1]))
    if op.node.op_type != "AveragePool":
        length = max(1, op.x.value.size // max(1, _value(op).size))
    return [joined(op, op.on_sizes(0)[0], [op.x], n=length, k=2)]


def _resized(op: Op) -> list[Bounded]:
    mode = op.attribute("mode", "nearest")
    if mode not in ("nearest", "linear", "bilinear") or op.attribute("antialias", 0):
        raise NoBound(f"Resize ({mode})")
    if op.attribute("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        raise NoBound("Resize of a crop")
    # A runtime computes coordinates in its own precision: M of the neighbours covers the one that it may choose.
    widened = replace(op.x, size=_neighbours(op.x.size))
    wide = replace(op, operands=[widened, *op.operands[1:]])
    roundings = 0 if mode == "nearest" else 4 * max(op.x.value.ndim, 1)
    return [joined(op, wide.on_sizes(0)[0], [op.x], k=roundings)]


def _neighbours(size: Array) -> Array:
    for axis in range(size.ndim):
        if size.shape[axis] < 2:
            continue
        before, after = np.take(size, [0], axis), np.take(size, [-1], axis)
        low = np.concatenate([before, np.delete(size, -1, axis)], axis)
        high = np.concatenate([np.delete(size, 0, axis), after], axis)
        size = np.maximum(size, np.maximum(low, high))
    return size


ONNX = Kernels(evaluate_node, {})
_SHAPES = frozenset(("Shape", "Size", "Constant", "ConstantOfShape"))
_RULES: dict[str, Rule] = {
    "BatchNormalization": _norm,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Mul": _mul,
    "Div": _div,
    "Mean": _mean,
    "Clip": _clip,
    "LeakyRelu": _leaky,
    "PRelu": _prelu,
    "HardSigmoid": _hard_sigmoid,
    "Where": _where,
    "Cast": _cast,
    "CastLike": _cast,
    "DequantizeLinear": _dequantized,
    "Pad": _pad,
    "Concat": _concat,
    "Pow": _power,
    **dict.fromkeys(("Conv", "ConvTranspose"), _conv),
    **dict.fromkeys(("Add", "Sub", "Sum"), _sum),
    **dict.fromkeys(("Max", "Min"), _extreme),
    **dict.fromkeys(("Sqrt", "Reciprocal"), _root),
    **dict.fromkeys(("Relu", "Abs", "Neg", "Identity", "Dropout"), _steady),
    **dict.fromkeys(("MaxPool", "GlobalMaxPool", "ReduceMax"), _pool),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum", "ReduceL1"), _averaged),
    **dict.fromkeys(("Resize", "Upsample"), _resized),
    **dict.fromkeys(
        "Reshape Transpose Flatten Squeeze Unsqueeze Slice Split Gather GatherND GatherElements Expand Tile "
        "DepthToSpace SpaceToDepth".split(),
        _layout,
    ),
}
