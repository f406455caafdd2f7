"""Sums, maxima and norms along axes; the mean of several values.

sum     sum over n of (s*x + t) = s*sum(x) + n*t          mean of values: as their sum, with t times their number
max     max(s*x + t) = s*max(x) + t for s >= 0            norms: |s|, no shift
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ..affine import Affine, affine
from ..gauge import Action, Answer, Carry, Need, Op, Reason, Refusal, Vanish
from .common import Law, attributes, no, not_positive, stray
from .elementwise import add_down, add_up
from .pooling import reduced_axes


def _layout(op: Op) -> tuple[int, tuple[int, ...]] | Refusal:
    """The rank of the value and the axes that are reduced."""
    shape = op.shape(0)
    if shape is None:
        return no(op, Reason.UNKNOWN_SHAPE, f"The rank of {op.value(0)} is not known.")
    axes = reduced_axes(op, len(shape))
    return axes if isinstance(axes, Refusal) else (len(shape), axes)


def _keeps(op: Op, a: Affine, carried: bool) -> Refusal | None:
    """Why a reduction other than a sum does not let the map pass, or None."""
    if op.kind in ("ReduceMax", "ReduceMin"):
        return not_positive(op, a)
    if not a.is_pure_scale:
        return no(op, Reason.NONLINEAR, f"{op.kind} lets a scale through, but no shift.")
    return None if carried else not_positive(op, a)


def _unsqueezed(op: Op, a: Affine, axes: tuple[int, ...]) -> Affine:
    return a if op.attribute("keepdims", 1) or not axes else a.unsqueezed(axes)


def _squeezed(op: Op, a: Affine, axes: tuple[int, ...]) -> Affine:
    return a if op.attribute("keepdims", 1) or not axes else a.squeezed(axes)


def sum_up(op: Op, output: int, a: Affine) -> Answer:
    found = _layout(op)
    if isinstance(found, Refusal):
        return found
    _, axes = found
    inner = _unsqueezed(op, a, axes)
    if a.is_pure_scale:
        return [(Need(0, inner),)]
    count = _count(op, axes)
    if isinstance(count, Refusal):
        return count
    return [(Need(0, affine(inner.scale, inner.shift / count)),)]


def _count(op: Op, axes: tuple[int, ...]) -> int | Refusal:
    shape = op.shape(0) or ()
    sizes = [shape[axis] for axis in axes]
    known = [n for n in sizes if isinstance(n, int)]
    if len(known) != len(sizes) or 0 in known:
        return no(op, Reason.UNKNOWN_SHAPE, "How many elements are added up is not known before it runs.")
    return math.prod(known)


def sum_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    found = _layout(op)
    if set(given) != {0} or isinstance(found, Refusal):
        return found if isinstance(found, Refusal) else no(op, Reason.NONLINEAR, "The value is a parameter.")
    rank, axes = found
    a = given[0]
    refused = stray(op, a.only_scale(), set(range(rank)) - set(axes))
    if refused is not None:
        return refused
    shift = a.shift
    if shift.any():
        full = shift if shift.ndim else shift.reshape((1,) * rank)
        even = tuple(axis for axis in axes if full.shape[axis] == 1)  # the shift is the same all along them
        count = _count(op, even)
        if isinstance(count, Refusal):
            return count
        shift = full.sum(axes, keepdims=True) * count if axes else full
    return [(Carry(_squeezed(op, affine(a.scale, shift), axes)),)]


def reduce_up(op: Op, output: int, a: Affine) -> Answer:
    found = _layout(op)
    if isinstance(found, Refusal):
        return found
    return _keeps(op, a, carried=False) or [(Need(0, _unsqueezed(op, a, found[1])),)]


def reduce_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    found = _layout(op)
    if set(given) != {0} or isinstance(found, Refusal):
        return found if isinstance(found, Refusal) else no(op, Reason.NONLINEAR, "The value is a parameter.")
    rank, axes = found
    a = given[0]
    # a norm over no axes is |x| for some runtimes and x for others, which agree on scales that are not negative
    refused = _keeps(op, a, carried=bool(axes)) or stray(op, a, set(range(rank)) - set(axes))
    if refused is not None:
        return refused
    norm = op.kind not in ("ReduceMax", "ReduceMin")
    return [(Carry(_squeezed(op, affine(np.abs(a.scale)) if norm else a, axes)),)]


def norm_pool_up(op: Op, output: int, a: Affine) -> Answer:
    return _keeps(op, a, carried=False) or stray(op, a, (0, 1)) or [(Need(0, a),)]


def norm_pool_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    a = given[0]
    return _keeps(op, a, carried=True) or stray(op, a, (0, 1)) or [(Carry(affine(np.abs(a.scale))),)]


def mean_up(op: Op, output: int, a: Affine) -> Answer:
    return add_up(op, output, affine(a.scale, a.shift * op.slots))


def mean_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    answer = add_down(op, given)
    if isinstance(answer, Refusal):
        return answer
    options: list[tuple[Action, ...] | Refusal] = []
    for option in answer:
        if isinstance(option, Refusal):
            options.append(option)
        elif not any(isinstance(action, Vanish) for action in option):
            options.append(tuple(_shared(op, action) for action in option))
    return options


def _shared(op: Op, action: Action) -> Action:
    if isinstance(action, Carry):
        return Carry(affine(action.affine.scale, action.affine.shift / op.slots), action.output)
    return action


_REDUCE = attributes("axes keepdims noop_with_empty_axes")
_WINDOW = attributes("auto_pad ceil_mode dilations kernel_shape p pads strides")
LAWS = {
    ("", "ReduceSum"): Law(sum_up, sum_down, _REDUCE),
    **{("", f"Reduce{kind}"): Law(reduce_up, reduce_down, _REDUCE) for kind in ("Max", "Min", "L1", "L2")},
    ("", "LpPool"): Law(norm_pool_up, norm_pool_down, _WINDOW),
    ("", "GlobalLpPool"): Law(norm_pool_up, norm_pool_down, attributes("p")),
    ("", "Mean"): Law(mean_up, mean_down, attributes("consumed_inputs")),
}
