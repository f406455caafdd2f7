"""Conv and ConvTranspose, 1-d to 3-d, any group.

up      s*(W(x) + b) + t = (sW)(x) + (s*b + t)            rows of W
down    W(s*x + t) + b = (Ws)(x) + (b + sum W*t)          columns of W; t only where no border is padded
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..affine import Affine, Array, affine
from ..gauge import Answer, Need, Op, Reason, Refusal, Shape
from .common import Law, attributes, no, stray, variable


def _weight(op: Op) -> Shape | Refusal:
    shape = op.shape(1)
    if shape is None or len(shape) < 3 or not all(isinstance(d, int) for d in shape[:2]):
        return no(op, Reason.UNKNOWN_SHAPE, f"The shape of the weight {op.value(1)} is not known.")
    return shape


def _column(vector: Array, shape: Shape, axis: int) -> Array:
    return vector.reshape((1,) * axis + (-1,) + (1,) * (len(shape) - axis - 1))


def _ints(*dims: object) -> list[int]:
    return [d for d in dims if isinstance(d, int)]


def conv_up(op: Op, output: int, a: Affine) -> Answer:
    refused = stray(op, a, (1,))
    shape = _weight(op)
    kernel: list[int] = op.attribute("kernel_shape", None) or []
    if isinstance(shape, Refusal) and kernel and a.varying:
        # nothing says the weight's shape: whatever makes it is to answer, not this
        shape = (max(a.scale.size, a.shift.size), "?", *kernel)
    if refused or isinstance(shape, Refusal):
        return refused or shape  # pyright: ignore[reportReturnType]  # one of the two is a Refusal
    (count,) = _ints(shape[0])
    s, t = a.vector(1, count)
    return [(Need(1, affine(_column(s, shape, 0))), Need(2, affine(s, t), missing=(count,), plain=True))]


def conv_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    shape = _weight(op)
    refused = _only_data(op, given) or stray(op, given[0], (1,))
    if refused or isinstance(shape, Refusal):
        return refused or shape  # pyright: ignore[reportReturnType]  # one of the two is a Refusal
    group = op.attribute("group", 1)
    count, per_group = _ints(shape[0], shape[1])
    s, t = given[0].vector(1, per_group * group)
    # row o of W sees the input channels of its group: a [count, per_group] table, one row when there is one group
    rows = s.reshape(group, per_group).repeat(count // group, 0) if group > 1 else s.reshape(1, per_group)
    scale = Need(1, affine(rows.reshape(*rows.shape, *(1,) * (len(shape) - 2))))
    if given[0].is_pure_scale:
        return [(scale,)]
    if _pads(op, shape):
        return no(op, Reason.PADDED, "The border is padded with 0, which the shift would have to become as well.")
    weight = op.constant(1)
    if weight is None:
        return variable(op, 1)
    sums = weight.reshape(group, count // group, per_group, -1).sum(-1)
    shift = np.einsum("goi,gi->go", sums, t.reshape(group, per_group)).reshape(count)
    return [(scale, Need(2, affine(np.ones(()), shift), missing=(count,), plain=True))]


def transpose_up(op: Op, output: int, a: Affine) -> Answer:
    refused = stray(op, a, (1,))
    shape = _weight(op)
    if refused or isinstance(shape, Refusal):
        return refused or shape  # pyright: ignore[reportReturnType]  # one of the two is a Refusal
    group = op.attribute("group", 1)
    inputs, per_group = _ints(shape[0], shape[1])
    s, t = a.vector(1, per_group * group)
    # W is [C_in, C_out/group, ...]: input channel i makes the outputs of its own group only
    rows = s.reshape(group, per_group).repeat(inputs // group, 0) if group > 1 else s.reshape(1, per_group)
    scale = affine(rows.reshape(*rows.shape, *(1,) * (len(shape) - 2)))
    return [(Need(1, scale), Need(2, affine(s, t), missing=(per_group * group,), plain=True))]


def transpose_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    shape = _weight(op)
    refused = _only_data(op, given) or stray(op, given[0], (1,))
    if refused or isinstance(shape, Refusal):
        return refused or shape  # pyright: ignore[reportReturnType]  # one of the two is a Refusal
    group = op.attribute("group", 1)
    inputs, per_group = _ints(shape[0], shape[1])
    s, t = given[0].vector(1, inputs)
    scale = Need(1, affine(_column(s, shape, 0)))
    if given[0].is_pure_scale:
        return [(scale,)]
    if not _overlaps_fully(op, shape):
        return no(op, Reason.PADDED, "Not every output sees every element of the kernel: the shift would differ there.")
    weight = op.constant(1)
    if weight is None:
        return variable(op, 1)
    sums = weight.reshape(group, inputs // group, per_group, -1).sum(-1)
    shift = np.einsum("gio,gi->go", sums, t.reshape(group, inputs // group)).reshape(-1)
    return [(scale, Need(2, affine(np.ones(()), shift), missing=(per_group * group,)))]


def _only_data(op: Op, given: Mapping[int, Affine]) -> Refusal | None:
    if set(given) == {0}:
        return None
    return no(op, Reason.NOT_CONSTANT, f"The value is the weight or the bias of this {op.kind}.")


def _kernel(op: Op, shape: Shape) -> list[int] | None:
    kernel = op.attribute("kernel_shape", None) or shape[2:]
    sizes = _ints(*kernel)
    return sizes if len(sizes) == len(shape) - 2 else None


def _pads(op: Op, shape: Shape) -> bool:
    auto = op.attribute("auto_pad", "NOTSET")
    if auto == "VALID":
        return False  # `pads` is ignored
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        kernel = _kernel(op, shape)
        return kernel is None or any(k != 1 for k in kernel)
    return any(op.attribute("pads", None) or ())


def _overlaps_fully(op: Op, shape: Shape) -> bool:
    # Every output must be the sum over the whole kernel: stride 1, and the pads cut what the kernel only half covers.
    n, kernel = len(shape) - 2, _kernel(op, shape)
    if kernel is None or op.attribute("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return False
    if any(op.attribute("output_padding", None) or ()) or op.attribute("output_shape", None):
        return False
    if any(s != 1 for s in op.attribute("strides", None) or ()):
        return False
    valid = op.attribute("auto_pad", "NOTSET") == "VALID"
    pads = [0] * (2 * n) if valid else op.attribute("pads", None) or [0] * (2 * n)
    dilations = op.attribute("dilations", None) or [1] * n
    return all(min(pads[i], pads[n + i]) >= (kernel[i] - 1) * dilations[i] for i in range(n))


_SHARED = "auto_pad dilations group kernel_shape pads strides"
LAWS = {
    ("", "Conv"): Law(conv_up, conv_down, attributes(_SHARED)),
    ("", "ConvTranspose"): Law(transpose_up, transpose_down, attributes(f"{_SHARED} output_padding output_shape")),
}
