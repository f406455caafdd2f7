"""Resize, Upsample and Pad: what they make is a mean or a copy of what they read, or a constant beside it.

resize  sum w*(s*x + t) = s*(sum w*x) + t, for the weights of every interpolation add up to 1
pad     pad_c(s*x + t) = s*pad_c'(x) + t with c' = (c - t)/s, which must be one number
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..affine import Affine, Array, affine
from ..gauge import Action, Answer, Carry, Need, Op, Reason, Refusal, SetAttribute
from .common import Law, attributes, no, stray


def _resized(op: Op, rank: int) -> set[int] | Refusal:
    """The axes that the op may resize."""
    old = op.attribute("height_scale", None), op.attribute("width_scale", None)
    if any(f is not None for f in old):
        return {rank - 2, rank - 1}
    slot = 2 if op.kind == "Resize" and op.opset >= 11 else 1
    given = op.attribute("scales", None)
    scales = op.constant(slot) if given is None and op.has(slot) else given
    axes = [a % rank for a in op.attribute("axes", None) or range(rank)]
    if scales is not None and len(scales) == len(axes):
        return {a for a, f in zip(axes, scales, strict=True) if float(f) != 1.0}
    sizes, shape = op.integers(3) if op.kind == "Resize" and op.has(3) else None, op.shape(0)
    if sizes is not None and shape is not None and len(sizes) == len(axes):
        if op.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
            return set(axes)
        return {a for a, n in zip(axes, sizes, strict=True) if shape[a] != n}
    return set(axes)


def _cropped(op: Op, rank: int) -> set[int]:
    """The axes whose region is not known to be the whole."""
    axes = [a % rank for a in op.attribute("axes", None) or range(rank)]
    roi = op.constant(1) if op.has(1) else None
    if roi is None or roi.size != 2 * len(axes):
        return set(axes)
    ends = roi.reshape(2, -1)
    return {a for i, a in enumerate(axes) if (ends[0, i], ends[1, i]) != (0.0, 1.0)}


def _interpolates(op: Op, a: Affine) -> Refusal | None:
    """Why the map does not pass, or None."""
    if op.attribute("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        outside = float(op.attribute("extrapolation_value", 0.0))
        if outside != 0.0 or not a.is_pure_scale:
            return no(op, Reason.PADDED, "Outside the region it puts a constant, which the map would have to change.")
    if not a.varying:
        return None
    shape = op.shape(0)
    if shape is None:
        return no(op, Reason.UNKNOWN_SHAPE, f"The rank of {op.value(0)} is not known.")
    resized = _resized(op, len(shape))
    if isinstance(resized, Refusal):
        return resized
    # a region may shift or turn an axis that is not resized
    if op.attribute("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        resized |= _cropped(op, len(shape))
    # this mode looks half an element further even where nothing is resized
    if op.attribute("coordinate_transformation_mode", "") == "tf_half_pixel_for_nn" and "ceil" in op.attribute(
        "nearest_mode", "round_prefer_floor"
    ):
        resized = set(range(len(shape)))
    return stray(op, a, set(range(len(shape))) - resized)


def resize_up(op: Op, output: int, a: Affine) -> Answer:
    return _interpolates(op, a) or [(Need(0, a),)]


def resize_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    if set(given) != {0}:
        return no(op, Reason.NONLINEAR, f"The value is a size of this {op.kind}.")
    return _interpolates(op, given[0]) or [(Carry(given[0]),)]


def _pads(op: Op) -> dict[int, tuple[int, int]] | Refusal:
    """Axis -> elements added before and behind, negative where they are cut; only axes where something happens."""
    shape = op.shape(0)
    if shape is None:
        return no(op, Reason.UNKNOWN_SHAPE, f"The rank of {op.value(0)} is not known.")
    given = op.attribute("pads", None) or op.attribute("paddings", None)
    flat = op.integers(1) if given is None and op.has(1) else given
    axes = op.integers(3) if op.has(3) else tuple(range(len(shape)))
    if flat is None or axes is None or len(flat) != 2 * len(axes):
        return no(op, Reason.NOT_CONSTANT, "How much is padded is computed at run time.")
    n = len(axes)
    found = {axes[i] % len(shape): (int(flat[i]), int(flat[n + i])) for i in range(n)}
    return {axis: pair for axis, pair in found.items() if any(pair)}


def _value(op: Op) -> float | Refusal:
    if op.opset < 11:
        return float(op.attribute("value", 0.0))
    if not op.has(2):
        return 0.0
    c = op.constant(2)
    if c is None or c.size != 1:
        return no(op, Reason.NOT_CONSTANT, "What is padded with is computed at run time.")
    return float(c.reshape(-1)[0])


def _new_value(op: Op, old: float, wanted: Array) -> tuple[Action, ...] | Refusal:
    """Actions that make the padded constant `wanted`, which must be one number."""
    values = np.unique(wanted)
    if not np.isfinite(wanted).all() and not (values == old).all():
        return no(op, Reason.OUT_OF_RANGE, f"It pads with {old}, which the map does not leave as it is.")
    if values.size != 1:
        text = f"It pads with one number; the channels would need {values.size} different ones."
        return no(op, Reason.PADDED, text)
    new = float(values[0])
    if new == old:
        return ()
    if op.opset >= 11:
        return (Need(2, affine(1.0, new - old), missing=()),)
    if float(np.float32(new)) != new:
        return no(op, Reason.OUT_OF_RANGE, f"It pads with an attribute, in float32; {new!r} is not exact there.")
    return (SetAttribute("value", new),)


def pad_up(op: Op, output: int, a: Affine) -> Answer:
    pads = _pads(op)
    if isinstance(pads, Refusal):
        return pads
    kept = set(range(a.rank)) - set(pads)
    added = any(n > 0 for pair in pads.values() for n in pair)
    refused = stray(op, a, kept)
    if refused is not None or not added or op.attribute("mode", "constant") != "constant":
        return refused or [(Need(0, a),)]
    c = _value(op)
    if isinstance(c, Refusal):
        return c
    edit = _new_value(op, c, a.scale * c + a.shift)
    return edit if isinstance(edit, Refusal) else [(Need(0, a), *edit)]


def pad_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    if set(given) != {0}:
        return no(op, Reason.NONLINEAR, "The value is a parameter of this Pad.")
    a, pads = given[0], _pads(op)
    if isinstance(pads, Refusal):
        return pads
    mode = op.attribute("mode", "constant")
    added = {axis: pair for axis, pair in pads.items() if max(pair) > 0}
    varies = a.varying & set(pads)
    if not added:
        return [(Carry(_cut(a, pads)),)]
    if mode != "constant":
        return stray(op, a, set(range(a.rank)) - set(pads)) or [(Carry(a),)]
    if varies:
        # along the channels: the new ones have a map of their own, the identity
        if len(pads) > 1 or any(n < 0 for pair in pads.values() for n in pair):
            return no(op, Reason.PADDED, "It pads the axis along which the coefficients vary, and another one.")
        ((axis, pair),) = pads.items()
        return [(Carry(_extended(a, axis, pair)),)]
    c = _value(op)
    if isinstance(c, Refusal):
        return c
    if a.is_pure_scale and c == 0.0:
        return [(Carry(a),)]
    if not a.scale.all():
        return no(op, Reason.ZERO_SCALE, "The padded constant would have to be divided by a scale of 0.")
    edit = _new_value(op, c, (c - a.shift) / a.scale)
    return edit if isinstance(edit, Refusal) else [(*edit, Carry(a))]


def _extended(a: Affine, axis: int, pair: tuple[int, int]) -> Affine:
    """The map of the padded value: the identity for what was added along the axis on which it varies."""
    size = max(c.shape[axis] for c in (a.scale, a.shift) if c.ndim)
    width = [pair if i == axis else (0, 0) for i in range(a.rank)]

    def extend(c: Array, value: float) -> Array:
        full = c if c.ndim else c.reshape((1,) * a.rank)
        wide = np.broadcast_to(full, (*full.shape[:axis], size, *full.shape[axis + 1 :]))
        return np.pad(wide, width, constant_values=value)

    return affine(extend(a.scale, 1.0), extend(a.shift, 0.0))


def _cut(a: Affine, pads: Mapping[int, tuple[int, int]]) -> Affine:
    for axis, (before, behind) in pads.items():
        if a.rank:
            size = max(c.shape[axis] for c in (a.scale, a.shift) if c.ndim)
            a = a.sliced(axis, -before, size + behind)
    return a


_RESIZE = """antialias axes coordinate_transformation_mode cubic_coeff_a exclude_outside extrapolation_value
    keep_aspect_ratio_policy mode nearest_mode"""
LAWS = {
    ("", "Resize"): Law(resize_up, resize_down, attributes(_RESIZE)),
    ("", "Upsample"): Law(resize_up, resize_down, attributes("mode scales height_scale width_scale")),
    ("", "Pad"): Law(pad_up, pad_down, attributes("mode pads paddings value")),
}
