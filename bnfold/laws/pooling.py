"""Pools and means over a window: a map that is constant on the window passes.

max     max(s*x + t) = s*max(x) + t for s >= 0
mean    mean(s*x + t) = s*mean(x) + t, unless padding is counted as values
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..affine import Affine, affine
from ..gauge import Answer, Carry, Need, Op, Reason, Refusal
from .common import Law, attributes, no, not_positive, stray


def _passes(op: Op, a: Affine) -> Refusal | None:
    """Why the map does not commute with this pool, or None."""
    refused = stray(op, a, (0, 1))
    if refused is not None:
        return refused
    padded = op.attribute("auto_pad", "NOTSET").startswith("SAME") or any(op.attribute("pads", None) or ())
    if "Max" in op.kind:
        if op.used(1):
            return no(op, Reason.NONLINEAR, "The indices of the maxima are used.")
        if padded and any(d != 1 for d in op.attribute("dilations", None) or ()):
            return no(op, Reason.PADDED, "A dilated window may lie wholly in the padding.")
        return not_positive(op, a)
    counted = op.attribute("count_include_pad", 0) and (padded or op.attribute("ceil_mode", 0))
    if counted and not a.is_pure_scale:
        return no(op, Reason.PADDED, "The padding is counted as zeros, which the shift would have to become as well.")
    return None


def pool_up(op: Op, output: int, a: Affine) -> Answer:
    if output != 0:
        return no(op, Reason.NONLINEAR, "The indices of a pool are no affine value.")
    return _passes(op, a) or [(Need(0, a),)]


def pool_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    return _passes(op, given[0]) or [(Carry(given[0]),)]


def reduced_axes(op: Op, rank: int) -> tuple[int, ...] | Refusal:
    """The reduced axes, from the attribute or (opset 18 on) the second input."""
    axes = op.attribute("axes", None)
    if axes is None and op.has(1):
        axes = op.integers(1)
        if axes is None:
            return no(op, Reason.NOT_CONSTANT, "The reduced axes are computed at run time.")
    if not axes:
        return () if op.attribute("noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted(i % rank for i in axes))


def mean_up(op: Op, output: int, a: Affine) -> Answer:
    shape = op.shape(0)
    if a.rank == 0:
        return [(Need(0, a),)]
    if shape is None:
        return no(op, Reason.UNKNOWN_SHAPE, f"The rank of {op.value(0)} is not known.")
    axes = reduced_axes(op, len(shape))
    if isinstance(axes, Refusal):
        return axes
    if not op.attribute("keepdims", 1):
        a = a.unsqueezed(axes)
    # after keepdims the reduced axes have length 1, so the coefficients cannot vary there
    return [(Need(0, a),)]


def mean_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    if set(given) != {0}:
        return no(op, Reason.NONLINEAR, f"The value is a parameter of {op.kind}.")
    a, shape = given[0], op.shape(0)
    if a.rank == 0:
        return [(Carry(a),)]
    if shape is None:
        return no(op, Reason.UNKNOWN_SHAPE, f"The rank of {op.value(0)} is not known.")
    axes = reduced_axes(op, len(shape))
    if isinstance(axes, Refusal):
        return axes
    refused = stray(op, Affine(a.scale, np.zeros(())), set(range(len(shape))) - set(axes))
    if refused is not None:
        return refused
    shift = a.shift.mean(axes, keepdims=True) if a.shift.ndim and axes else a.shift
    out = affine(a.scale, shift)
    return [(Carry(out if op.attribute("keepdims", 1) else out.squeezed(axes)),)]


_WINDOW = "auto_pad ceil_mode dilations kernel_shape pads strides"
LAWS = {
    ("", "MaxPool"): Law(pool_up, pool_down, attributes(f"{_WINDOW} storage_order")),
    ("", "AveragePool"): Law(pool_up, pool_down, attributes(f"{_WINDOW} count_include_pad")),
    ("", "GlobalAveragePool"): Law(pool_up, pool_down, frozenset()),
    ("", "GlobalMaxPool"): Law(pool_up, pool_down, frozenset()),
    ("", "ReduceMean"): Law(mean_up, mean_down, attributes("axes keepdims noop_with_empty_axes")),
}
