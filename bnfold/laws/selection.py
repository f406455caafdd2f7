"""Slice, Split and Gather: the coefficients are cut as the value is.

down    slice(s*x + t) = slice(s)*slice(x) + slice(t)
up      what is selected gets its coefficients, what is not the identity; an axis of length 1 is never cut
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..affine import Affine, Array, affine
from ..gauge import Answer, Carry, Dim, Need, Op, Reason, Refusal
from .common import Law, attributes, no

_LONGEST = 1 << 22  # elements of an axis that gets coefficients of its own because a part of it is selected
# axis -> the positions that are selected along it, in order; None: not known before it runs
_Chosen = dict[int, "Sequence[int] | None"]


def _slices(op: Op, shape: tuple[Dim, ...]) -> _Chosen | Refusal:
    """What a Slice selects, on the axes that it cuts."""
    if op.opset < 10:
        starts, ends, axes, steps = (op.attribute(n, None) for n in ("starts", "ends", "axes", "steps"))
    else:
        starts, ends, axes, steps = (op.integers(slot) if op.has(slot) else None for slot in (1, 2, 3, 4))
        if op.has(3) and axes is None:
            return no(op, Reason.NOT_CONSTANT, "The axes that it cuts are computed at run time.")
    rank = len(shape)
    count = len(starts) if starts is not None else len(ends) if ends is not None else rank
    on = [int(a) % rank for a in (axes if axes is not None else range(count))]
    if starts is None or ends is None or (op.opset >= 10 and op.has(4) and steps is None):
        return dict.fromkeys(on)
    found: _Chosen = {}
    for axis, start, end, step in zip(on, starts, ends, steps or [1] * len(on), strict=False):
        size = shape[axis]
        if isinstance(size, int):
            first = int(start)
            if step < 0 and size:
                first = max(first, -size)  # far before the beginning is its first element; Python selects nothing
            kept = range(size)[slice(first, int(end), int(step))]  # else out of range as in Python
            if len(kept) != size or step != 1:
                found[axis] = kept
        elif not (start == 0 and end >= 2**31 - 1 and step == 1):
            found[axis] = None
    return found


def _select(a: Affine, chosen: _Chosen, op: Op) -> Affine | Refusal:
    for axis, positions in chosen.items():
        if axis not in a.varying:
            continue
        if positions is None:
            return no(op, Reason.NOT_CONSTANT, f"What it selects along axis {axis} is not known before it runs.")
        if not len(positions):
            return affine(1.0)
        a = a.moved(lambda c, axis=axis, at=positions: np.take(c, at, axis) if c.shape[axis] > 1 else c)
    return a


def _spread(a: Affine, chosen: _Chosen, shape: tuple[Dim, ...], op: Op) -> Affine | Refusal:
    """The map of the whole value of which the selected part has the map `a`."""
    rank = len(shape)
    for axis, positions in chosen.items():
        size = shape[axis]
        if positions is None or not isinstance(size, int):
            return no(op, Reason.NOT_CONSTANT, f"What it selects along axis {axis} is not known before it runs.")
        if size > _LONGEST:
            return no(op, Reason.WRONG_AXIS, f"Axis {axis}, of which it selects a part, has {size:,} elements.")
        if len(set(positions)) == size and axis not in a.varying:
            continue
        scale = _scattered(a.scale, positions, size, axis, rank, 1.0)
        shift = _scattered(a.shift, positions, size, axis, rank, 0.0)
        if scale is None or shift is None:
            return no(op, Reason.CONFLICT, "It selects one element twice, with different coefficients.")
        a = affine(scale, shift)
    return a


def _either(a: Affine, chosen: _Chosen, shape: tuple[Dim, ...], op: Op) -> Answer:
    """The whole value gets a map that is constant along what is cut; or only what is selected gets it."""
    options: list[tuple[Need, ...] | Refusal] = []
    if not a.varying & chosen.keys():
        options.append((Need(0, a),))
    part = _spread(a, chosen, shape, op)
    options.append(part if isinstance(part, Refusal) else (Need(0, part),))
    return options


def _scattered(c: Array, at: Sequence[int], size: int, axis: int, rank: int, rest: float) -> Array | None:
    full = c if c.ndim else c.reshape((1,) * rank)
    full = np.broadcast_to(full, (*full.shape[:axis], len(at), *full.shape[axis + 1 :]))
    out = np.full((*full.shape[:axis], size, *full.shape[axis + 1 :]), rest)
    where = (slice(None),) * axis + (np.asarray(at, np.int64),)
    out[where] = full
    return out if np.array_equal(out[where], full) else None


def _shape(op: Op) -> tuple[Dim, ...] | Refusal:
    shape = op.shape(0)
    return shape if shape is not None else no(op, Reason.UNKNOWN_SHAPE, f"The rank of {op.value(0)} is not known.")


def slice_up(op: Op, output: int, a: Affine) -> Answer:
    shape = _shape(op)
    chosen = shape if isinstance(shape, Refusal) else _slices(op, shape)
    if isinstance(shape, Refusal) or isinstance(chosen, Refusal):
        return chosen  # pyright: ignore[reportReturnType]  # a Refusal in both cases
    return _either(a, chosen, shape, op)


def slice_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    shape = _shape(op)
    if set(given) != {0}:
        return no(op, Reason.NONLINEAR, "The value is an index of this Slice.")
    chosen = shape if isinstance(shape, Refusal) else _slices(op, shape)
    if isinstance(chosen, Refusal):
        return chosen
    part = _select(given[0], chosen, op)
    return part if isinstance(part, Refusal) else [(Carry(part),)]


# -- Split -----------------------------------------------------------------------------------------------------------


def _parts(op: Op) -> tuple[int, list[range], tuple[Dim, ...]] | Refusal:
    """The axis, what each output gets of it, and the shape of the value."""
    shape = _shape(op)
    if isinstance(shape, Refusal):
        return shape
    axis = op.attribute("axis", 0) % len(shape)
    sizes = op.attribute("split", None) or (op.integers(1) if op.has(1) else None)
    total, count = shape[axis], op.outputs
    if sizes is None and isinstance(total, int) and not op.has(1):
        each = -(-total // count)  # the last one is smaller where it does not go up evenly
        sizes = [min(each, total - k * each) for k in range(count)]
    if sizes is None or len(sizes) != count:
        return no(op, Reason.NOT_CONSTANT, "Where it splits is not known before it runs.")
    ends = np.cumsum(sizes)
    return axis, [range(int(end - n), int(end)) for n, end in zip(sizes, ends, strict=True)], shape


def split_up_all(op: Op, wanted: Mapping[int, Affine]) -> Answer:
    whole_shape = _shape(op)
    if isinstance(whole_shape, Refusal):
        return whole_shape
    used = {k for k in range(op.outputs) if op.used(k)}
    first, along = next(iter(wanted.values())), op.attribute("axis", 0) % len(whole_shape)
    if used <= wanted.keys() and along not in first.varying and all(a.equals(first) for a in wanted.values()):
        return [(Need(0, first),)]  # wherever it splits
    found = _parts(op)
    if isinstance(found, Refusal):
        return found
    axis, parts, shape = found
    total = parts[-1].stop
    whole = affine(1.0)
    for output, a in wanted.items():
        part = _spread(a, {axis: parts[output]}, (*shape[:axis], total, *shape[axis + 1 :]), op)
        if isinstance(part, Refusal):
            return part
        whole = whole.then(part)  # they touch different elements
    return [(Need(0, whole),)]


def split_up(op: Op, output: int, a: Affine) -> Answer:
    return split_up_all(op, {output: a})


def split_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    a = given.get(0)
    if a is None or len(given) > 1:
        return no(op, Reason.NONLINEAR, "The value says where to split.")
    if op.attribute("axis", 0) % max(len(op.shape(0) or (0,)), 1) not in a.varying:
        return [tuple(Carry(a, k) for k in range(op.outputs) if op.used(k))]
    found = _parts(op)
    if isinstance(found, Refusal):
        return found
    axis, parts, _ = found
    cuts = [a.sliced(axis, part.start, part.stop) for part in parts]
    return [tuple(Carry(cut, k) for k, cut in enumerate(cuts) if op.used(k))]


# -- Gather ----------------------------------------------------------------------------------------------------------


def _gathered(op: Op) -> tuple[int, int, Sequence[int] | None, tuple[Dim, ...]] | Refusal:
    """(axis, rank of the indices, the indices as far as they are known, shape of the data)."""
    shape, indices = _shape(op), op.shape(1)
    if isinstance(shape, Refusal):
        return shape
    if indices is None:
        return no(op, Reason.UNKNOWN_SHAPE, f"The rank of {op.value(1)} is not known.")
    axis = op.attribute("axis", 0) % len(shape)
    at, size = op.integers(1), shape[axis]
    if at is not None and isinstance(size, int):
        at = tuple(i % size for i in at) if size else None
    elif at is not None and min(at, default=0) < 0:
        at = None  # counted from an end that is not known
    return axis, len(indices), at, shape


def gather_up(op: Op, output: int, a: Affine) -> Answer:
    found = _gathered(op)
    if isinstance(found, Refusal):
        return found
    axis, extra, at, shape = found
    if any(axis <= i < axis + extra for i in a.varying):
        if at is None:
            text = "The coefficients vary along what the indices choose, which is not known before it runs."
            return no(op, Reason.WRONG_AXIS, text)
        if extra > 1:
            text = "The coefficients vary along one of the axes that it gathers out of one."
            return no(op, Reason.WRONG_AXIS, text)
    else:
        a = a.moved(lambda c: c.reshape((*c.shape[:axis], 1, *c.shape[axis + extra :])))
    return _either(a, {axis: at}, shape, op)


def gather_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    found = _gathered(op)
    if set(given) != {0} or isinstance(found, Refusal):
        return found if isinstance(found, Refusal) else no(op, Reason.NONLINEAR, "The value is an index.")
    axis, extra, at, _ = found
    a = given[0]
    if axis in a.varying:
        if at is None:
            return no(op, Reason.NOT_CONSTANT, f"What it gathers along axis {axis} is not known before it runs.")
        if extra > 1:
            return no(op, Reason.WRONG_AXIS, "It gathers several axes out of the one along which they vary.")
        a = a.moved(lambda c: np.take(c, at, axis) if c.shape[axis] > 1 else c)
        return [(Carry(a if extra else a.squeezed((axis,))),)]
    return [(Carry(a.moved(lambda c: c.reshape((*c.shape[:axis], *(1,) * extra, *c.shape[axis + 1 :])))),)]


LAWS = {
    ("", "Slice"): Law(slice_up, slice_down, attributes("axes ends starts steps")),
    ("", "Split"): Law(split_up, split_down, attributes("axis num_outputs split"), split_up_all),
    ("", "Gather"): Law(gather_up, gather_down, attributes("axis")),
}
