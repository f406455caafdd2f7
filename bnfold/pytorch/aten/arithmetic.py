# torch leaves parts of its interface untyped: what comes from there is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Arithmetic, element by element, and activations; types and copies.

add(x, y)   ->   Add(x, y)          relu(x)   ->   Relu(x)          contiguous(x), x in eval dropout   ->   Identity(x)
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from ..tensors import TYPES
from .calls import Arguments, Made, Number, Shaped, is_number, name_of, rank, rule, sizes, static


def _operand(value: Any) -> Node | Number | None:
    if isinstance(value, Node):
        return value if rank(value) >= 0 else None
    return Number(float(value)) if is_number(value) else None


def _arithmetic(kind: str, node: Node, first: Any, second: Any) -> Made | None:
    operands = [_operand(first), _operand(second)]
    floating = isinstance(node.meta.get("val"), torch.Tensor) and node.meta["val"].dtype.is_floating_point
    return Made(kind, operands) if floating and all(o is not None for o in operands) else None


def _alpha(a: Arguments) -> bool:
    return a.get("alpha", 1) == 1 and a.get("rounding_mode") is None


for _kind, _names in (
    ("Add", "add.Tensor add.Scalar"),
    ("Sub", "sub.Tensor sub.Scalar"),
    ("Mul", "mul.Tensor mul.Scalar"),
    ("Div", "div.Tensor div.Scalar div.Tensor_mode"),
):
    rule(*_names.split())(
        lambda node, a, kind=_kind: _arithmetic(kind, node, a["self"], a["other"]) if _alpha(a) else None
    )
rule("rsub.Scalar", "rsub.Tensor")(
    lambda node, a: _arithmetic("Sub", node, a["other"], a["self"]) if _alpha(a) else None
)
rule("neg.default")(lambda node, a: _arithmetic("Mul", node, a["self"], -1.0))
rule("maximum.default", "max.other")(lambda node, a: Made("Max", [a["self"], a["other"]]))
rule("minimum.default", "min.other")(lambda node, a: Made("Min", [a["self"], a["other"]]))
rule("where.self")(lambda node, a: Made("Where", [a["condition"], a["self"], a["other"]]))

for _kind, _names in (
    ("Relu", "relu.default"), ("Abs", "abs.default"), ("Sign", "sign.default"), ("Sigmoid", "sigmoid.default"),
    ("Tanh", "tanh.default"), ("Selu", "selu.default"), ("Elu", "elu.default"), ("Celu", "celu.default"),
    ("Gelu", "gelu.default"), ("Swish", "silu.default"), ("HardSwish", "hardswish.default"), ("Mish", "mish.default"),
    ("Softplus", "softplus.default"), ("Softsign", "softsign.default"), ("Exp", "exp.default"),
    ("Log", "log.default"), ("Sqrt", "sqrt.default"), ("Erf", "erf.default"), ("Sin", "sin.default"),
    ("Cos", "cos.default"), ("Floor", "floor.default"), ("Ceil", "ceil.default"), ("Round", "round.default"),
    ("Reciprocal", "reciprocal.default"),
):  # fmt: skip
    rule(*_names.split())(lambda node, a, kind=_kind: Made(kind, [a["self"] if "self" in a else a["input"]]))


@rule("pow.Tensor_Scalar")
def _pow(node: Node, a: Arguments) -> Made | None:
    return Made("Pow", [a["self"], Number(float(a["exponent"]))]) if is_number(a["exponent"]) else None


@rule("leaky_relu.default")
def _leaky(node: Node, a: Arguments) -> Made | None:
    slope = a["negative_slope"]
    return Made("LeakyRelu", [a["self"]], exact={"alpha": float(slope)}) if is_number(slope) else None


@rule("prelu.default", "_prelu_kernel.default")
def _prelu(node: Node, a: Arguments) -> Made | None:
    weight, count = a["weight"], rank(a["self"])
    if count < 2 or not isinstance(weight, Node) or not static(sizes(weight)):
        return None
    shape = (sizes(weight)[0], *(1,) * (count - 2)) if rank(weight) == 1 else None
    if shape is None:
        return None
    return Made("PRelu", [a["self"], Shaped(weight, shape)])


@rule("relu6.default", "hardtanh.default", "clamp.default", "clamp_min.default", "clamp_max.default")
def _clip(node: Node, a: Arguments) -> Made | None:
    if name_of(node) == "relu6.default":
        low, high = 0.0, 6.0
    else:
        low = a.get("min_val", a.get("min"))
        high = a.get("max_val", a.get("max"))
    if any(bound is not None and not is_number(bound) for bound in (low, high)):
        return None
    return Made("Clip", [a["self"], *(None if b is None else Number(float(b)) for b in (low, high))])


@rule("softmax.int", "_softmax.default")
def _softmax(node: Node, a: Arguments) -> Made | None:
    return Made("Softmax", [a["self"]], {"axis": a["dim"]}) if a.get("dtype") is None else None


@rule("log_softmax.int", "_log_softmax.default")
def _log_softmax(node: Node, a: Arguments) -> Made | None:
    return Made("LogSoftmax", [a["self"]], {"axis": a["dim"]}) if a.get("dtype") is None else None


@rule("argmax.default", "argmin.default")
def _argmax(node: Node, a: Arguments) -> Made | None:
    if a["dim"] is None:
        return None
    kind = "ArgMax" if "argmax" in name_of(node) else "ArgMin"
    return Made(kind, [a["self"]], {"axis": a["dim"], "keepdims": int(a["keepdim"])})


@rule("dropout.default", "feature_dropout.default", "alpha_dropout.default", "feature_alpha_dropout.default")
def _dropout(node: Node, a: Arguments) -> Made | None:
    return None if a["train"] else Made("Identity", [a["input"]])


@rule("contiguous.default", "clone.default", "alias.default", "detach.default", "lift_fresh_copy.default",
       "lift_fresh.default", "to.dtype", "to.dtype_layout", "to.device", "to.other", "_to_copy.default",
       "type_as.default", "view_as.default", "expand_as.default", "positive.default")  # fmt: skip
def _same(node: Node, a: Arguments) -> Made | None:
    source = a["self"] if "self" in a else a["x"]
    before, after = source.meta["val"], node.meta["val"]
    if before.dtype == after.dtype:
        return Made("Identity", [source]) if str(before.shape) == str(after.shape) else None
    return Made("Cast", [source], {"to": TYPES[after.dtype]}) if after.dtype in TYPES else None
