"""The laws: how each op commutes with an affine map. One family a file; this is the table of them all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..gauge import Law, Reason, Refusal
from . import (
    activation,
    comparison,
    convolution,
    einsum,
    elementwise,
    fused,
    layout,
    linear,
    normalization,
    pooling,
    quantized,
    recurrent,
    reduction,
    resampling,
    selection,
    space,
)

if TYPE_CHECKING:
    from ..graph import Node

LAWS: dict[tuple[str, str], Law] = {
    **convolution.LAWS,
    **linear.LAWS,
    **recurrent.LAWS,
    **elementwise.LAWS,
    **normalization.LAWS,
    **pooling.LAWS,
    **layout.LAWS,
    **activation.LAWS,
    **comparison.LAWS,
    **reduction.LAWS,
    **selection.LAWS,
    **space.LAWS,
    **resampling.LAWS,
    **einsum.LAWS,
    **quantized.LAWS,
    **fused.LAWS,
}

_NONLINEAR = frozenset(
    """Sigmoid Tanh Elu Selu Celu Gelu Mish HardSwish Swish Softplus Softsign ThresholdedRelu Exp Log Sqrt Pow
    Reciprocal Erf Sin Cos Tan Floor Ceil Round LpNormalization LRN MeanVarianceNormalization Greater Less
    Equal Not And Or TopK NonMaxSuppression Cast""".split()
)
_QUANTIZED = frozenset(("DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul"))


def without_law(node: Node) -> Refusal:
    """The refusal of an op that has no law."""
    if node.op_type in _QUANTIZED:
        return Refusal(Reason.QUANTIZED, node.at, f"{node.op_type} works on quantized values.")
    if node.domain == "" and node.op_type in _NONLINEAR:
        return Refusal(Reason.NONLINEAR, node.at, f"{node.op_type} does not commute with a scale and a shift.")
    kind = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    return Refusal(Reason.UNKNOWN_OP, node.at, f"No law is known for {kind}.")
