"""The kernels by (domain, op_type): KERNELS, CONTROL for those with subgraphs, REFUSALS for what a kernel must not do.

TYPED are the ops whose result's type is their own affair; the others compute half floats in float32.
"""

from collections.abc import Callable

from bnfold.reference.kernels import (
    attention,
    constants,
    control,
    convolution,
    elementwise,
    fused,
    layout,
    linear,
    losses,
    normalization,
    pooling,
    quantized,
    recurrent,
    reduction,
    resampling,
    sampling,
    spectral,
)
from bnfold.reference.node import Kernel, Node

_FAMILIES: tuple[dict[str, Kernel], ...] = (
    attention.KERNELS,
    constants.KERNELS,
    convolution.KERNELS,
    elementwise.KERNELS,
    layout.KERNELS,
    linear.KERNELS,
    losses.KERNELS,
    normalization.KERNELS,
    pooling.KERNELS,
    quantized.KERNELS,
    recurrent.KERNELS,
    reduction.KERNELS,
    resampling.KERNELS,
    sampling.KERNELS,
    spectral.KERNELS,
)
KERNELS: dict[tuple[str, str], Kernel] = {
    **{("", name): kernel for family in _FAMILIES for name, kernel in family.items()},
    **fused.KERNELS,
}
CONTROL: dict[tuple[str, str], Kernel] = {("", name): kernel for name, kernel in control.CONTROL.items()}
REFUSALS: dict[tuple[str, str], Callable[[Node], str | None]] = {
    ("", "BatchNormalization"): normalization.refuse_training,
    ("", "Dropout"): elementwise.refuse_training,
    ("", "Scan"): control.refuse_batched_scan,
}
TYPED = constants.TYPED
ATTRIBUTES = fused.ATTRIBUTES

__all__ = ["ATTRIBUTES", "CONTROL", "KERNELS", "REFUSALS", "TYPED"]
