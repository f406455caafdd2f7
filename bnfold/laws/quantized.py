"""DequantizeLinear of a constant weight: y = (q - z)*d takes a scale into d, and a sign into q and z.

up      s*(q - z)*d = (q - z)*(s*d)   for s > 0
        s*(q - z)*d = (q' - z)*(-s*d) with q' = 2z - q for s < 0; where that is out of range q' = m - q, z' = m - z with
        m = -1 (unsigned: 255), exact for -128 too
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from ..affine import Affine, Array, affine
from ..gauge import Action, Answer, Law, Need, Op, Reason, Refusal, SetAttribute
from .common import attributes, no, stray

_RANGE: dict[int, tuple[float, float]] = {onnx.TensorProto.INT8: (-128.0, 127.0), onnx.TensorProto.UINT8: (0.0, 255.0)}


def up(op: Op, output: int, a: Affine) -> Answer:
    if not op.is_constant(0):
        return no(op, Reason.QUANTIZED, "What it dequantizes is not a stored constant.")
    if not a.is_pure_scale:
        return no(op, Reason.QUANTIZED, "A quantized constant takes a scale, but no shift.")
    if not a.scale.all():
        return no(op, Reason.ZERO_SCALE, "The scale of a quantized constant cannot become 0.")
    shape, scales = op.shape(0), op.shape(1)
    if shape is None or scales is None or not op.is_constant(1) or (op.has(2) and not op.is_constant(2)):
        return no(op, Reason.QUANTIZED, "Its scale or zero point is not a stored constant.")
    if op.has(2) and op.shape(2) != scales:
        return no(op, Reason.QUANTIZED, "Its scale and zero point have different shapes.")
    if op.constant(1) is None:
        return no(op, Reason.QUANTIZED, "Its scale can only hold powers of two.")
    axis = op.attribute("axis", 1) % max(len(shape), 1) if op.opset >= 13 and shape else None
    refused = _misplaced(op, a, len(shape), len(scales), axis)
    if refused is not None:
        return refused
    actions: list[Action] = []
    negative = (a.scale < 0).any()
    if negative:
        flips = _flipped(op, a, axis)
        if isinstance(flips, Refusal):
            return flips
        actions += flips
    size = _laid(op, np.abs(a.scale))
    if size.ndim <= len(scales):
        return [(*actions, Need(1, affine(size)))]
    # one scale for the tensor becomes one for each element of the axis along which they vary, and so does the zero
    actions += [Need(1, affine(size), grow=True, shape=size.shape), SetAttribute("axis", min(a.varying))]
    if op.has(2) and not any(isinstance(x, Need) and x.slot == 2 for x in actions):
        actions.append(Need(2, affine(1.0), grow=True, shape=size.shape))
    return [tuple(actions)]


def _laid(op: Op, c: Array) -> Array:
    """Coefficients of the value, laid out for its scale and zero point."""
    if op.attribute("block_size", 0) or c.ndim == 0:
        return c
    return c.reshape(-1) if c.size > 1 else c.reshape(())


def _misplaced(op: Op, a: Affine, rank: int, scale_rank: int, axis: int | None) -> Refusal | None:
    if not a.varying:
        return None
    if axis is None:
        return no(op, Reason.WRONG_AXIS, "Before opset 13 it has one scale for the whole tensor.")
    if op.attribute("block_size", 0):
        return stray(op, a, set(range(rank)) - {axis})  # blocks lie along `axis`
    if len(a.varying) > 1:
        return no(op, Reason.WRONG_AXIS, "It has scales along one axis; the coefficients vary along two.")
    # a tensor with one scale for all can have one for each element of any axis
    return stray(op, a, (axis,)) if scale_rank else None


def _flipped(op: Op, a: Affine, axis: int | None) -> list[Action] | Refusal:
    limits, shape = _RANGE.get(op.elem_type(0)), op.shape(0)
    if limits is None or shape is None:
        return no(op, Reason.NEGATIVE_SCALE, "A negative scale can be folded into int8 and uint8 constants alone.")
    if op.attribute("block_size", 0):
        return no(op, Reason.NEGATIVE_SCALE, "A negative scale cannot be folded into blocks.")
    negative = a.scale < 0
    sign = np.where(negative, -1.0, 1.0)
    # About its zero point, where the other end is in range: z stays, which some runtimes want to be 0
    z = np.asarray((op.integers(2) if op.has(2) else None) or 0, np.float64)
    z = z.reshape([-1 if i == axis else 1 for i in range(len(shape))]) if z.size > 1 else z.reshape(())
    turned = 2.0 * z - np.asarray(op.integers(0), np.float64).reshape([d for d in shape if isinstance(d, int)])
    if (~negative | ((turned >= limits[0]) & (turned <= limits[1]))).all():
        return [Need(0, affine(sign, np.where(negative, 2.0 * z, 0.0)))]
    shift = np.where(negative, sum(limits), 0.0)
    scales = op.shape(1) or ()
    count = (negative.size,) if negative.size > 1 else tuple(d for d in scales if isinstance(d, int))
    point = affine(_laid(op, sign), _laid(op, shift))
    return [Need(0, affine(sign, shift)), Need(2, point, missing=count, grow=True, shape=count, like=0)]


def down(op: Op, given: Mapping[int, Affine]) -> Answer:
    return no(op, Reason.QUANTIZED, "The value is a scale of quantized numbers.")


LAWS = {("", "DequantizeLinear"): Law(up, down, attributes("axis block_size output_dtype"))}
