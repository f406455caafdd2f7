"""Normalizations as absorbers: their scale and bias take in what comes behind; BatchNormalization also what is before.

up      s*(gamma*x^ + beta) + t = (s*gamma)*x^ + (s*beta + t)                 x^ = (x - mean)/sqrt(var + eps)
down    gamma*((s*x + t) - mean)/d + beta = (gamma*s)*x^ + beta + gamma/d*(t - mean*(1 - s))
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..affine import Affine, affine
from ..gauge import Answer, Need, Op, Reason, Refusal
from .common import Law, attributes, cut, no, static, stray


def _inference(op: Op) -> Refusal | None:
    training = op.attribute("training_mode", 0) if op.opset >= 14 else op.opset < 7 and not op.attribute("is_test", 0)
    if training:
        return no(op, Reason.TRAINING_MODE, "A BatchNormalization in training mode removes any affine map itself.")
    if op.opset < 9 and not op.attribute("spatial", 1):
        return no(op, Reason.UNKNOWN_OP, "A BatchNormalization with spatial=0 has a parameter for each activation.")
    return None


def _channels(op: Op) -> int | Refusal:
    shape = op.shape(1)
    if shape is None or len(shape) != 1 or not isinstance(shape[0], int):
        return no(op, Reason.UNKNOWN_SHAPE, "The number of channels is not known.")
    return shape[0]


def up(op: Op, output: int, a: Affine) -> Answer:
    count = _channels(op)
    refused = _inference(op) or stray(op, a, (1,))
    if refused or isinstance(count, Refusal):
        return refused or count  # pyright: ignore[reportReturnType]  # one of the two is a Refusal
    s, t = a.vector(1, count)
    return [(Need(1, affine(s)), Need(2, affine(s, t)))]


def down(op: Op, given: Mapping[int, Affine]) -> Answer:
    if set(given) != {0}:
        return no(op, Reason.NOT_CONSTANT, "The value is a parameter of this BatchNormalization.")
    count = _channels(op)
    refused = _inference(op) or stray(op, given[0], (1,))
    if refused or isinstance(count, Refusal):
        return refused or count  # pyright: ignore[reportReturnType]  # one of the two is a Refusal
    gamma, mean, variance = op.constant(1), op.constant(3), op.constant(4)
    if gamma is None or mean is None or variance is None or not op.is_constant(2):
        return no(op, Reason.NOT_CONSTANT, "Its parameters are computed at run time.")
    deviation = np.sqrt(variance + float(op.attribute("epsilon", np.float32(1e-5))))
    if not (np.isfinite(deviation).all() and deviation.all()):
        return no(op, Reason.BAD_STATISTICS, "Its statistics are unusable.")
    s, t = given[0].vector(1, count)
    return [(Need(1, affine(s)), Need(2, affine(1.0, gamma / deviation * (t - mean * (1.0 - s)))))]


def instance_up(op: Op, output: int, a: Affine) -> Answer:
    """InstanceNormalization; GroupNormalization, whose scale was one number a group before opset 21."""
    count = _channels(op)
    by_group = op.kind == "GroupNormalization" and op.opset < 21
    refused = stray(op, a, (1,))
    if refused is None and by_group and a.varying:
        refused = no(op, Reason.WRONG_AXIS, "Before opset 21 GroupNormalization has one scale for each group.")
    if refused or isinstance(count, Refusal):
        return refused or count  # pyright: ignore[reportReturnType]  # one of the two is a Refusal
    s, t = (np.full(count, c.reshape(-1)[0]) for c in (a.scale, a.shift)) if by_group else a.vector(1, count)
    return [(Need(1, affine(s)), Need(2, affine(s, t)))]


def layer_up(op: Op, output: int, a: Affine) -> Answer:
    if output != 0:
        return no(op, Reason.NONLINEAR, "The mean and deviation that it returns are no affine values.")
    shape, scale = op.shape(0), op.shape(1)
    if shape is None or scale is None or not static(scale):
        return no(op, Reason.UNKNOWN_SHAPE, f"The shapes of this {op.kind} are not known.")
    rank = len(shape)
    refused = stray(op, a, range(op.attribute("axis", -1) % rank, rank))
    own = cut(a, rank - len(scale), len(scale)) if a.rank else a
    if refused is not None or own is None:
        return refused or no(op, Reason.WRONG_AXIS, "Its scale has not the axis along which they vary.")
    missing = tuple(d for d in scale if isinstance(d, int))
    return [(Need(1, own.only_scale()), Need(2, own, missing=missing))]


def nonlinear_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    return no(op, Reason.NONLINEAR, f"{op.kind} computes its own statistics, epsilon included, from the value.")


LAWS = {
    ("", "InstanceNormalization"): Law(instance_up, nonlinear_down, attributes("epsilon consumed_inputs")),
    ("", "GroupNormalization"): Law(instance_up, nonlinear_down, attributes("epsilon num_groups stash_type")),
    ("", "LayerNormalization"): Law(layer_up, nonlinear_down, attributes("axis epsilon stash_type")),
    ("", "BatchNormalization"): Law(
        up, down, attributes("epsilon momentum training_mode spatial is_test consumed_inputs")
    ),
}
