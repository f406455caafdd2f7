"""ONNX Runtime's fused ops: Conv, Gemm and MatMul with an activation behind them, which ends the way up."""

from __future__ import annotations

from collections.abc import Mapping

from ..affine import Affine
from ..gauge import Answer, Law, Need, Op, Reason, Refusal
from .common import attributes, no
from .convolution import conv_down, conv_up
from .linear import gemm_down, gemm_up, matmul_down, matmul_up


def _active(op: Op) -> Refusal | None:
    name = op.attribute("activation", "")
    return no(op, Reason.NONLINEAR, f"{op.kind} ends in {name}.") if name else None


def conv_behind(op: Op, output: int, a: Affine) -> Answer:
    answer = _active(op) or conv_up(op, output, a)
    if isinstance(answer, Refusal) or not op.has(3):
        return answer
    # the fourth operand is added to the product
    return [o if isinstance(o, Refusal) else (*o, Need(3, a.only_scale())) for o in answer]


def conv_before(op: Op, given: Mapping[int, Affine]) -> Answer:
    if 3 in given:
        return no(op, Reason.NOT_CONSTANT, f"{op.kind} adds the value to a product that is computed at run time.")
    return conv_down(op, given)


def gemm_behind(op: Op, output: int, a: Affine) -> Answer:
    return _active(op) or gemm_up(op, output, a)


def gemm_before(op: Op, given: Mapping[int, Affine]) -> Answer:
    # a map given to C leaves through the output, where the activation is
    return (_active(op) if 2 in given else None) or gemm_down(op, given)


def _plain(op: Op, *, alpha: bool) -> Refusal | None:
    flags = [n for n in ("transA", "transB", "transBatchA", "transBatchB") if op.attribute(n, 0)]
    if flags or (alpha and float(op.attribute("alpha", 1.0)) != 1.0):
        return no(op, Reason.UNKNOWN_OP, f"FusedMatMul with {flags[0] if flags else 'alpha'} has no law.")
    return None


def product_behind(op: Op, output: int, a: Affine) -> Answer:
    return _plain(op, alpha=False) or matmul_up(op, output, a)


def product_before(op: Op, given: Mapping[int, Affine]) -> Answer:
    pure = all(a.is_pure_scale for a in given.values())
    return _plain(op, alpha=not pure) or matmul_down(op, given)


_ACTIVATION = "activation activation_params activation_alpha activation_beta activation_gamma"
_CONV = "auto_pad dilations group kernel_shape pads strides"
LAWS = {
    ("com.microsoft", "FusedConv"): Law(conv_behind, conv_before, attributes(f"{_CONV} {_ACTIVATION}")),
    ("com.microsoft", "FusedGemm"): Law(
        gemm_behind, gemm_before, attributes(f"alpha beta transA transB {_ACTIVATION}")
    ),
    ("com.microsoft", "FusedMatMul"): Law(
        product_behind, product_before, attributes("alpha transA transB transBatchA transBatchB")
    ),
}
