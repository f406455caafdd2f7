"""Products of quantized tensors: exact integers in between, and one rounding at the end.

y = saturate(round_half_even((x − x₀)·(w − w₀)·(s_x·s_w/s_y)) + y₀)
"""

from typing import Any

import numpy as np

from bnfold.reference.kernels.convolution import conv
from bnfold.reference.node import Array, Kernel, Node


def _centred(x: Array, zero: Array | None, axis: int) -> Array:
    """x minus its zero points, in float64, which holds every sum of such products that fits memory."""
    wide = x.astype(np.float64)
    return wide if zero is None else wide - _along(zero.astype(np.float64), x.ndim, axis)


def _along(parameter: Array, rank: int, axis: int) -> Array:
    """A parameter of the whole tensor, of its slices along `axis`, or of the tensor's own rank."""
    if parameter.size == 1:
        return parameter.reshape(())
    return parameter.reshape([-1 if i == axis % rank else 1 for i in range(rank)]) if parameter.ndim == 1 else parameter


def _rounded(y: Array, zero: Array, axis: int) -> Array:
    limits: Any = np.iinfo(zero.dtype)
    shifted = np.rint(y) + _along(zero.astype(np.float64), y.ndim, axis)
    return np.clip(shifted, limits.min, limits.max).astype(zero.dtype)


def qlinear_matmul(
    _: Node, a: Array, a_scale: Array, a_zero: Array, b: Array, b_scale: Array, b_zero: Array, scale: Array, zero: Array
) -> tuple[Array]:
    product = np.matmul(_centred(a, a_zero, -2), _centred(b, b_zero, -1))
    factor = _along(a_scale.astype(np.float64), a.ndim, -2) * _along(b_scale.astype(np.float64), b.ndim, -1)
    return (_rounded(product * (factor / scale.astype(np.float64)), zero, -2),)


def qlinear_conv(
    node: Node,
    x: Array,
    x_scale: Array,
    x_zero: Array,
    w: Array,
    w_scale: Array,
    w_zero: Array,
    scale: Array,
    zero: Array,
    b: Array | None = None,
) -> tuple[Array]:
    """The weight's scale and zero point may belong to its output channels; the bias is in units of s_x·s_w."""
    (product,) = conv(node, _centred(x, x_zero, 1), _centred(w, w_zero, 0), None if b is None else b.astype(np.float64))
    factor = _along(w_scale.astype(np.float64), x.ndim, 1) * x_scale.astype(np.float64) / scale.astype(np.float64)
    return (_rounded(product * factor, zero, 1),)


def conv_integer(
    node: Node, x: Array, w: Array, x_zero: Array | None = None, w_zero: Array | None = None
) -> tuple[Array]:
    (product,) = conv(node, _centred(x, x_zero, 1), _centred(w, w_zero, 0))
    return (product.astype(np.int32),)


KERNELS: dict[str, Kernel] = {
    "QLinearMatMul": qlinear_matmul,
    "QLinearConv": qlinear_conv,
    "ConvInteger": conv_integer,
}
