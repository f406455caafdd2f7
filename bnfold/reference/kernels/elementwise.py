"""Ops on single elements, one table row each: numpy's function where it has one, the definition where not.

Before opset 7 the binary ops broadcast only on request: `broadcast` 1, and B's axes begin at A's `axis`.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from bnfold.errors import UnsupportedOp
from bnfold.reference.node import Array, Kernel, Node


def sigmoid(x: Array) -> Array:
    """1/(1 + exp(−x)), without overflow on either side."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


def erf(x: Array) -> Array:
    """math.erf, the C library's, is correct to an ulp; numpy has none."""
    return np.fromiter(map(math.erf, x.ravel().tolist()), dtype=x.dtype, count=x.size).reshape(x.shape)


def aligned(node: Node, a: Array, b: Array) -> Array:
    """b with the axes that it needs to broadcast into a as the node's opset says."""
    if node.since >= 7 or not node.get("broadcast") or node.get("axis") is None:
        return b
    axis = node["axis"] % a.ndim
    return b.reshape(b.shape + (1,) * (a.ndim - axis - b.ndim))


def _unary(function: Callable[[Array], Any]) -> Kernel:
    def kernel(_: Node, x: Array) -> tuple[Array]:
        return (np.asarray(function(x)).astype(x.dtype, copy=False),)

    return kernel


def _compare(function: Callable[[Array], Any]) -> Kernel:
    def kernel(_: Node, x: Array) -> tuple[Array]:
        return (np.asarray(function(x)),)

    return kernel


def _binary(function: Callable[[Array, Array], Any]) -> Kernel:
    def kernel(node: Node, a: Array, b: Array) -> tuple[Array]:
        return (np.asarray(function(a, aligned(node, a, b))),)

    return kernel


def _variadic(function: Callable[[Array, Array], Any], mean: bool = False) -> Kernel:
    def kernel(_: Node, *inputs: Array) -> tuple[Array]:
        total = inputs[0]
        for x in inputs[1:]:
            total = np.asarray(function(total, x))
        return (total / len(inputs) if mean else total,)

    return kernel


def _identity(_: Node, x: Any) -> tuple[Any]:
    """Of a tensor, a sequence or an optional."""
    return (x,)


def _where(_: Node, condition: Array, a: Array, b: Array) -> tuple[Array]:
    return (np.where(condition, a, b),)


def _divide(a: Array, b: Array) -> Array:
    """Integers are divided towards zero, as C does."""
    if not np.issubdtype(a.dtype, np.integer):
        return a / b
    quotient = a // b
    return quotient + ((quotient < 0) & (quotient * b != a)).astype(a.dtype)


def _pow(node: Node, a: Array, b: Array) -> tuple[Array]:
    """The result has the base's type, whatever the exponent's."""
    return (np.asarray(np.power(a, aligned(node, a, b))).astype(a.dtype),)


def _mod(node: Node, a: Array, b: Array) -> tuple[Array]:
    return (np.asarray(np.fmod(a, b) if node.get("fmod") else np.mod(a, b)),)


def _clip(node: Node, x: Array, low: Array | None = None, high: Array | None = None) -> tuple[Array]:
    """The bounds are attributes before opset 11. Where they cross, the upper one holds."""
    floor = node.get("min") if low is None else low
    ceiling = node.get("max") if high is None else high
    y = x if floor is None else np.maximum(x, floor)
    y = y if ceiling is None else np.minimum(y, ceiling)
    return (np.asarray(y).astype(x.dtype, copy=False),)


def _prelu(node: Node, x: Array, slope: Array) -> tuple[Array]:
    """Before opset 7 a slope of one axis belongs to the channels."""
    if node.since < 7 and slope.size > 1 and slope.ndim == 1:
        slope = slope.reshape(-1, *[1] * (x.ndim - 2))
    return (np.where(x < 0, slope * x, x),)


def _leaky_relu(node: Node, x: Array) -> tuple[Array]:
    return (np.where(x < 0, node["alpha"] * x, x),)


def _elu(node: Node, x: Array) -> tuple[Array]:
    return (np.where(x < 0, node["alpha"] * np.expm1(np.minimum(x, 0)), x),)


def _selu(node: Node, x: Array) -> tuple[Array]:
    return (node["gamma"] * np.where(x < 0, node["alpha"] * np.expm1(np.minimum(x, 0)), x),)


def _celu(node: Node, x: Array) -> tuple[Array]:
    alpha = node["alpha"]
    return (np.maximum(x, 0) + np.minimum(alpha * np.expm1(np.minimum(x, 0) / alpha), 0),)


def _hard_sigmoid(node: Node, x: Array) -> tuple[Array]:
    return (np.clip(node["alpha"] * x + node["beta"], 0, 1),)


def _hard_swish(_: Node, x: Array) -> tuple[Array]:
    """1/6 is a float32 attribute of HardSigmoid in the op's definition."""
    return (x * np.clip(float(np.float32(1 / 6)) * x + 0.5, 0, 1),)


def _thresholded_relu(node: Node, x: Array) -> tuple[Array]:
    return (np.where(x > node["alpha"], x, np.zeros_like(x)),)


def _shrink(node: Node, x: Array) -> tuple[Array]:
    bias, lambd = node["bias"], node["lambd"]
    return (np.where(x < -lambd, x + bias, np.where(x > lambd, x - bias, 0)).astype(x.dtype),)


def _gelu(node: Node, x: Array) -> tuple[Array]:
    if node.get("approximate") == "tanh":
        return (0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),)
    return (0.5 * x * (1 + erf(x / math.sqrt(2))),)


def _swish(node: Node, x: Array) -> tuple[Array]:
    return (x * sigmoid(node["alpha"] * x),)


def _isinf(node: Node, x: Array) -> tuple[Array]:
    positive, negative = node.get("detect_positive", 1), node.get("detect_negative", 1)
    return (np.isposinf(x) & bool(positive) | np.isneginf(x) & bool(negative),)


def _dropout(node: Node, x: Array, ratio: Array | None = None, training: Array | None = None) -> tuple[Array, ...]:
    """At inference it is the identity. The mask is true, false before opset 12, and in x's type before 10."""
    if training is not None and bool(training) and (ratio is None or float(ratio) != 0):
        raise UnsupportedOp(f"{node}: training_mode is true; it drops elements at random, which no run can repeat.")
    return x, np.full(x.shape, node.since >= 12, dtype=bool if node.since >= 10 else x.dtype)


def refuse_training(node: Node) -> str | None:
    if node.since <= 6 and not node["is_test"]:
        return "it is in training mode (is_test is 0) and drops elements at random."
    return None


_UNARY: dict[str, Callable[[Array], Any]] = {
    "Abs": np.abs, "Neg": np.negative, "Sign": np.sign, "Reciprocal": lambda x: 1 / x,
    "Sqrt": np.sqrt, "Exp": np.exp, "Log": np.log, "Erf": erf,
    "Floor": np.floor, "Ceil": np.ceil, "Round": np.round,
    "Sin": np.sin, "Cos": np.cos, "Tan": np.tan, "Asin": np.arcsin, "Acos": np.arccos, "Atan": np.arctan,
    "Sinh": np.sinh, "Cosh": np.cosh, "Tanh": np.tanh, "Asinh": np.arcsinh, "Acosh": np.arccosh, "Atanh": np.arctanh,
    "Relu": lambda x: np.maximum(x, 0), "Sigmoid": sigmoid,
    "Softplus": lambda x: np.logaddexp(x, np.zeros_like(x)), "Softsign": lambda x: x / (1 + np.abs(x)),
    "Mish": lambda x: x * np.tanh(np.logaddexp(x, np.zeros_like(x))),
    "Not": np.logical_not, "BitwiseNot": np.invert,
}  # fmt: skip
_BINARY: dict[str, Callable[[Array, Array], Any]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": _divide,
    "Equal": np.equal, "Less": np.less, "LessOrEqual": np.less_equal,
    "Greater": np.greater, "GreaterOrEqual": np.greater_equal,
    "And": np.logical_and, "Or": np.logical_or, "Xor": np.logical_xor,
    "BitwiseAnd": np.bitwise_and, "BitwiseOr": np.bitwise_or, "BitwiseXor": np.bitwise_xor,
}  # fmt: skip
KERNELS: dict[str, Kernel] = {
    **{name: _unary(function) for name, function in _UNARY.items()},
    **{name: _binary(function) for name, function in _BINARY.items()},
    "Identity": _identity,
    "IsNaN": _compare(np.isnan),
    "IsInf": _isinf,
    "Max": _variadic(np.maximum),
    "Min": _variadic(np.minimum),
    "Sum": _variadic(np.add),
    "Mean": _variadic(np.add, mean=True),
    "Where": _where,
    "Pow": _pow,
    "Mod": _mod,
    "Clip": _clip,
    "PRelu": _prelu,
    "LeakyRelu": _leaky_relu,
    "Elu": _elu,
    "Selu": _selu,
    "Celu": _celu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "ThresholdedRelu": _thresholded_relu,
    "Shrink": _shrink,
    "Gelu": _gelu,
    "Swish": _swish,
    "Dropout": _dropout,
}
