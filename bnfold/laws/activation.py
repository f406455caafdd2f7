"""Piecewise linear ops, and those that swallow part of a map.

prelu    s*prelu(x; a) = prelu(s*x; a) for s >= 0, and = prelu(a*s*x; 1/a) for s < 0, a > 0
clip     s*clip(x; lo, hi) + t = clip(s*x + t; s*lo + t, s*hi + t) for s > 0
abs      s*|x| = |s*x| for s >= 0            softmax(x + t) = softmax(x) for t constant along its axis
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import TensorProto

from ..affine import Affine, Array, affine
from ..gauge import Action, Answer, Carry, Need, Op, Reason, Refusal, SetAttribute
from .common import Law, attributes, no, not_positive, raised, stray, up_refused


def _shiftless(op: Op, a: Affine) -> Refusal | None:
    if a.is_pure_scale:
        return None
    # a negative scale would be in the way as well: the refusal that is nearest to a fold is told first
    return no(op, Reason.NONLINEAR, f"{op.kind} lets a scale through, but no shift.")


def _only_data(op: Op, given: Mapping[int, Affine]) -> Refusal | None:
    return None if set(given) == {0} else no(op, Reason.NONLINEAR, f"The value is a parameter of {op.kind}.")


def _exact(op: Op, name: str, value: float) -> SetAttribute | Refusal:
    """An attribute is float32, and no certificate looks at it: it must hold the value exactly."""
    with np.errstate(over="ignore"):  # beyond float32 it becomes infinite, which is another number
        held = float(np.float32(value))
    if held == value:
        return SetAttribute(name, value)
    return no(op, Reason.OUT_OF_RANGE, f"Its attribute {name} would have to be {value!r}, which float32 does not hold.")


# -- LeakyRelu and PRelu ---------------------------------------------------------------------------------------------


def _leaky(op: Op, a: Affine, carried: bool) -> Answer:
    refused = _shiftless(op, a)
    if refused is not None:
        return refused
    if (a.scale >= 0).all():
        return [(Carry(a),)] if carried else [(Need(0, a),)]
    alpha = float(np.float32(op.attribute("alpha", 0.01)))
    if not (a.scale < 0).all() or alpha <= 0:
        return not_positive(op, a) or no(op, Reason.NEGATIVE_SCALE, "Its slope is not above 0.")
    flipped = _exact(op, "alpha", 1.0 / alpha)
    if isinstance(flipped, Refusal):
        return no(op, Reason.NEGATIVE_SCALE, f"A negative scale needs the slope 1/alpha: {flipped.message}")
    scaled = affine(a.scale * alpha)
    return [(flipped, Carry(scaled) if carried else Need(0, scaled))]


def leaky_up(op: Op, output: int, a: Affine) -> Answer:
    return _leaky(op, a, carried=False)


def leaky_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    return _only_data(op, given) or _leaky(op, given[0], carried=True)


def _prelu(op: Op, a: Affine, carried: bool) -> Answer:
    """leaky with a slope for each channel, of which some may flip: prelu(s*x; k) = s*k*prelu(x; 1/k) for s < 0."""
    refused = _shiftless(op, a)
    if refused is not None:
        return refused
    shape, slopes = op.shape(0), op.shape(1)
    if shape is not None and slopes is not None and len(slopes) > len(shape):
        return no(op, Reason.WRONG_AXIS, f"Its slope {op.value(1)} has more axes than the value.")
    negative = a.scale < 0
    if not negative.any():
        return [(Carry(a),)] if carried else [(Need(0, a),)]
    slope = op.constant(1)
    refusal = not_positive(op, a) or no(op, Reason.NEGATIVE_SCALE, "A scale is negative.")
    if slope is None or (op.opset < 7 and slope.size > 1):  # before, the slope stood on the channels by itself
        return refusal
    if shape is None:
        return no(op, Reason.UNKNOWN_SHAPE, f"The rank of {op.value(0)} is not known.")
    rank = len(shape)
    k, flips = np.broadcast_arrays(raised(slope, rank), raised(a.scale, rank) < 0)
    if not (k[flips] > 0).all():
        return no(op, refusal.reason, f"{refusal.message} Not all slopes there are above 0, which would do as well.")
    safe = np.where(flips, k, 1.0)
    factor = affine(1.0 / (safe * safe))  # the slope k becomes k/k^2 = 1/k where the scale is negative
    if op.opset < 7 and factor.varying:  # a shape that broadcasts was no slope then
        return no(op, refusal.reason, f"{refusal.message} Its one slope cannot become several before opset 7.")
    while factor.rank > slope.ndim and factor.scale.shape[0] == 1:
        factor = affine(factor.scale[0])
    scaled = affine(raised(a.scale, rank) * safe)
    edit = Need(1, factor, grow=True)
    return [(edit, Carry(scaled) if carried else Need(0, scaled))]


def prelu_up(op: Op, output: int, a: Affine) -> Answer:
    return _prelu(op, a, carried=False)


def prelu_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    return _only_data(op, given) or _prelu(op, given[0], carried=True)


# -- Abs, Clip ---------------------------------------------------------------------------------------------------------


def abs_up(op: Op, output: int, a: Affine) -> Answer:
    return _shiftless(op, a) or not_positive(op, a) or [(Need(0, a),)]


def abs_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    return _shiftless(op, given[0]) or [(Carry(affine(np.abs(given[0].scale))),)]


def _number(array: Array) -> float | None:
    return float(array.reshape(-1)[0]) if array.size == 1 else None


_LARGEST = 3.4028234663852886e38  # of float32: as a bound it is none


def _clip(op: Op, a: Affine, carried: bool) -> Answer:
    s, t = _number(a.scale), _number(a.shift)
    if s is None or t is None:
        return no(op, Reason.NONLINEAR, f"{op.kind} has one pair of bounds; the coefficients vary.")
    if s <= 0:
        return not_positive(op, a) or no(op, Reason.ZERO_SCALE, "The bounds would become one.")
    # up: the bounds follow the map. down: they are to stand where the value was.
    move = affine(1.0 / s, -t / s) if carried else affine(s, t)
    actions: list[Action] = []
    if op.opset >= 11:
        for slot, open_end in ((1, -_LARGEST), (2, _LARGEST)):
            if op.has(slot):
                held = op.constant(slot)
                if held is None:
                    return no(op, Reason.NOT_CONSTANT, f"The bound {op.value(slot)} is computed at run time.")
                if op.elem_type(slot) != TensorProto.FLOAT or (held != open_end).any():
                    actions.append(Need(slot, move))
    else:
        for name, open_end in (("min", -_LARGEST), ("max", _LARGEST)):
            bound = float(op.attribute(name, open_end))
            if bound != open_end:
                moved = _exact(op, name, float(move.scale.reshape(-1)[0]) * bound + float(move.shift.reshape(-1)[0]))
                if isinstance(moved, Refusal):
                    return moved
                actions.append(moved)
    return [(*actions, Carry(a) if carried else Need(0, a))]


def clip_up(op: Op, output: int, a: Affine) -> Answer:
    return _clip(op, a, carried=False)


def clip_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    return _only_data(op, given) or _clip(op, given[0], carried=True)


# -- what swallows a map ---------------------------------------------------------------------------------------------


def _axes(op: Op, rank: int) -> set[int]:
    """The axes that are normalized or searched together; before opset 13 Softmax flattens all from `axis` on."""
    softmax = op.kind in ("Softmax", "LogSoftmax", "Hardmax")
    axis = op.attribute("axis", 0 if not softmax else -1 if op.opset >= 13 else 1) % rank
    return set(range(axis, rank)) if softmax and op.opset < 13 else {axis}


def softmax_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    a, shape = given[0], op.shape(0)
    if op.kind == "Hardmax":  # it marks the largest element, as ArgMax numbers it
        return arg_down(op, given)
    if not a.is_pure_shift:
        return no(op, Reason.NONLINEAR, f"{op.kind} swallows a shift, but no scale.")
    if shape is None:
        return no(op, Reason.UNKNOWN_SHAPE, f"The rank of {op.value(0)} is not known.")
    if not shape:
        return no(op, Reason.WRONG_AXIS, f"{op.value(0)} is a single number: it has no axis to normalize along.")
    return stray(op, a, set(range(len(shape))) - _axes(op, len(shape))) or [()]


def arg_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    a, shape = given[0], op.shape(0)
    if shape is None:
        return no(op, Reason.UNKNOWN_SHAPE, f"The rank of {op.value(0)} is not known.")
    if not shape:
        return no(op, Reason.WRONG_AXIS, f"{op.value(0)} is a single number: it has no axis to search along.")
    refused = not_positive(op, a) or stray(op, a, set(range(len(shape))) - _axes(op, len(shape)))
    if refused is None and not a.scale.all():
        refused = no(op, Reason.ZERO_SCALE, "A scale of 0 makes all elements equal.")
    return refused or [()]


def sign_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    a = given[0]
    refused = _shiftless(op, a) or not_positive(op, a)
    if refused is None and not a.scale.all():
        refused = no(op, Reason.ZERO_SCALE, "The sign of 0*x is 0.")
    return refused or [()]


def hard_sigmoid_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    """max(0, min(1, alpha*(s*x + t) + beta)) = max(0, min(1, (alpha*s)*x + (alpha*t + beta)))."""
    s, t = _number(given[0].scale), _number(given[0].shift)
    if s is None or t is None:
        return no(op, Reason.NONLINEAR, "HardSigmoid has one slope; the coefficients vary.")
    alpha = float(np.float32(op.attribute("alpha", 0.2)))
    beta = float(np.float32(op.attribute("beta", 0.5)))
    parts: Sequence[SetAttribute | Refusal] = (
        _exact(op, "alpha", alpha * s), _exact(op, "beta", alpha * t + beta)
    )  # fmt: skip
    actions: list[Action] = []
    for part in parts:
        if isinstance(part, Refusal):
            return part
        actions.append(part)
    return [tuple(actions)]


LAWS = {
    ("", "LeakyRelu"): Law(leaky_up, leaky_down, attributes("alpha consumed_inputs")),
    ("", "PRelu"): Law(prelu_up, prelu_down, attributes("consumed_inputs")),
    ("", "Abs"): Law(abs_up, abs_down, attributes("consumed_inputs")),
    ("", "Clip"): Law(clip_up, clip_down, attributes("min max consumed_inputs")),
    ("", "Softmax"): Law(up_refused, softmax_down, attributes("axis")),
    ("", "LogSoftmax"): Law(up_refused, softmax_down, attributes("axis")),
    ("", "Hardmax"): Law(up_refused, softmax_down, attributes("axis")),
    ("", "ArgMax"): Law(up_refused, arg_down, attributes("axis keepdims select_last_index")),
    ("", "ArgMin"): Law(up_refused, arg_down, attributes("axis keepdims select_last_index")),
    ("", "Sign"): Law(up_refused, sign_down, frozenset()),
    ("", "HardSigmoid"): Law(up_refused, hard_sigmoid_down, attributes("alpha beta consumed_inputs")),
}
