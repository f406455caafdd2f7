"""Ops that move elements: the coefficients, which have the value's layout, move with it.

Transpose, Squeeze, Unsqueeze      the inverse layout upward, the layout downward
Reshape, Flatten                   both shapes in groups of equal product; the groups that vary are moved
Concat                             cut for each input; or joined with the identity
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from ..affine import IDENTITY, Affine, Array, affine, concatenated
from ..dims import factor
from ..gauge import Action, Answer, Carry, Dim, Need, Op, Reason, Refusal, Shape
from .common import Law, attributes, no, static

_MOST = 1 << 24  # coefficients that moving them into another layout may make


def _permutation(op: Op) -> Sequence[int] | Refusal:
    perm = op.attribute("perm", None)
    if perm:
        return list(perm)
    shape = op.shape(0)
    if shape is None:
        return no(op, Reason.UNKNOWN_SHAPE, f"The rank of {op.value(0)} is not known.")
    return list(range(len(shape)))[::-1]


def transpose_up(op: Op, output: int, a: Affine) -> Answer:
    perm = _permutation(op)
    if isinstance(perm, Refusal):
        return perm
    return [(Need(0, a.transposed([int(i) for i in np.argsort(perm)])),)]


def transpose_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    perm = _permutation(op)
    return perm if isinstance(perm, Refusal) else [(Carry(given[0].transposed(perm)),)]


def _axes(op: Op) -> tuple[int, ...] | Refusal:
    """The axes of length 1 that a Squeeze drops or an Unsqueeze makes, in the longer layout."""
    long = op.shape(0) if op.kind == "Squeeze" else op.output_shape()
    axes = op.attribute("axes", None)
    if axes is None and op.has(1):
        axes = op.integers(1)
        if axes is None:
            return no(op, Reason.NOT_CONSTANT, "The axes are computed at run time.")
    if long is None:
        return no(op, Reason.UNKNOWN_SHAPE, f"The rank of {op.value(0)} is not known.")
    if axes is None:
        if not static(long):
            return no(op, Reason.UNKNOWN_SHAPE, "Which axes have length 1 is not known.")
        return tuple(i for i, d in enumerate(long) if d == 1)
    return tuple(sorted(i % len(long) for i in axes))


def squeeze_up(op: Op, output: int, a: Affine) -> Answer:
    axes = _axes(op) if a.rank else ()
    if isinstance(axes, Refusal):
        return axes
    return [(Need(0, a.unsqueezed(axes) if op.kind == "Squeeze" else a.squeezed(axes)),)]


def squeeze_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    a = given.get(0)
    if a is None:
        return no(op, Reason.NONLINEAR, f"The value gives the axes of {op.kind}.")
    axes = _axes(op) if a.rank else ()
    if isinstance(axes, Refusal):
        return axes
    return [(Carry(a.squeezed(axes) if op.kind == "Squeeze" else a.unsqueezed(axes)),)]


def reshape_up(op: Op, output: int, a: Affine) -> Answer:
    moved = _reshaped(op, a, op.output_shape(), op.shape(0))
    return moved if isinstance(moved, Refusal) else [(Need(0, moved),)]


def reshape_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    if set(given) != {0}:
        return no(op, Reason.NONLINEAR, f"The value gives the shape of {op.kind}.")
    moved = _reshaped(op, given[0], op.shape(0), op.output_shape())
    return moved if isinstance(moved, Refusal) else [(Carry(moved),)]


def _reshaped(op: Op, a: Affine, source: Shape | None, target: Shape | None) -> Affine | Refusal:
    if a.rank == 0:
        return a
    if source is None or target is None:
        return no(op, Reason.UNKNOWN_SHAPE, "The shapes before and after are not known.")
    groups = grouped(source, target)
    parts = [regrouped(c, source, target, groups) for c in (a.scale, a.shift)]
    if parts[0] is None or parts[1] is None:
        return no(
            op, Reason.UNKNOWN_SHAPE if not (static(source) and static(target)) else Reason.WRONG_AXIS,
            f"The axis that varies is merged with one of unknown size: {_text(source)} and {_text(target)}.",
        )  # fmt: skip
    return affine(parts[0], parts[1])


def _text(shape: Shape) -> str:
    return "[" + ", ".join("?" if isinstance(d, str) and d.startswith("?") else str(d) for d in shape) + "]"


_Groups: TypeAlias = list[tuple[range, range]]


def grouped(source: Shape, target: Shape) -> _Groups:
    """Both shapes cut into groups of axes with equal products, in order.

    Groups are peeled off at both ends; what is left in the middle is one group, for the totals are equal.
    """
    left = _peel(source, target)
    i, j = sum(len(a) for a, _ in left), sum(len(b) for _, b in left)
    right = _peel(source[i:][::-1], target[j:][::-1])
    ends: _Groups = []
    m, n = len(source), len(target)
    for a, b in right:
        ends.append((range(m - len(a), m), range(n - len(b), n)))
        m, n = m - len(a), n - len(b)
    if i < m or j < n:
        ends.append((range(i, m), range(j, n)))
    return left + ends[::-1]


def _peel(source: Shape, target: Shape) -> _Groups:
    groups: _Groups = []
    i = j = 0
    while i < len(source) and j < len(target):
        m, n = i + 1, j + 1
        while (order := _compare(source[i:m], target[j:n])) != 0:
            if order < 0 and m < len(source):
                m += 1
            elif order > 0 and n < len(target):
                n += 1
            else:
                return groups
        groups.append((range(i, m), range(j, n)))
        i, j = m, n
    return groups


def _compare(a: Sequence[Dim], b: Sequence[Dim]) -> int:
    """0: equal products; -1 or 1: only a or b can be extended to reach the other; 2: neither."""
    (x, p), (y, q) = factor(a), factor(b)
    more, less = p - q, q - p
    if (more and less) or x == 0 or y == 0:
        return 2
    if more:
        return 1
    if less:
        return -1
    return (x > y) - (x < y)


def regrouped(c: Array, source: Shape, target: Shape, groups: _Groups) -> Array | None:
    """Coefficients of layout `source` in layout `target`; None where a varying group has an unknown size."""
    if c.ndim == 0:
        return c
    full, new = [1] * len(source), [1] * len(target)
    for before, after in groups:
        varying = [k for k in before if c.shape[k] > 1]
        if not varying:
            continue
        if len(before) == len(after) == 1:
            full[before[0]] = new[after[0]] = c.shape[before[0]]
            continue
        sizes, others = [source[k] for k in before], [target[k] for k in after]
        if not static(sizes) or not static(others):
            return None
        for k in before:
            full[k] = int(source[k])
        for k in after:
            new[k] = int(target[k])
    return np.broadcast_to(c, full).reshape(new) if math.prod(full) <= _MOST else None


def concat_up(op: Op, output: int, a: Affine) -> Answer:
    out = op.output_shape()
    if a.rank == 0:
        return [tuple(Need(i, a) for i in range(op.slots))]
    if out is None:
        return no(op, Reason.UNKNOWN_SHAPE, "The rank of the output is not known.")
    axis = op.attribute("axis", 1) % len(out)
    if axis not in a.varying:
        return [tuple(Need(i, a) for i in range(op.slots))]
    sizes = _sizes(op, axis)
    if isinstance(sizes, Refusal):
        return sizes
    ends = np.cumsum([0, *sizes])
    return [tuple(Need(i, affine(*_pair(a.sliced(axis, int(ends[i]), int(ends[i + 1]))))) for i in range(op.slots))]


def _pair(a: Affine) -> tuple[Array, Array]:
    return a.scale, a.shift


def concat_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    out = op.output_shape()
    first = next(iter(given.values()))
    same = all(a.equals(first) for a in given.values())
    others = [i for i in range(op.slots) if i not in given]
    if same and not others and first.rank == 0:
        return [(Carry(first),)]
    if out is None:
        return no(op, Reason.UNKNOWN_SHAPE, "The rank of the output is not known.")
    axis = op.attribute("axis", 1) % len(out)
    if same and not others and axis not in first.varying:
        return [(Carry(first),)]
    options: list[tuple[Action, ...] | Refusal] = []
    sizes = _sizes(op, axis)
    if isinstance(sizes, Refusal):
        options.append(sizes)
    else:
        parts = [given.get(i, IDENTITY) for i in range(op.slots)]
        options.append((Carry(concatenated(parts, sizes, axis, len(out))),))
    if same and others and axis not in first.varying:
        if first.scale.all():
            options.append((*(Need(i, first.inverse(), inverse=True) for i in others), Carry(first)))
        else:
            options.append(no(op, Reason.ZERO_SCALE, "The other inputs would have to be divided by a scale of 0."))
    return options


def _sizes(op: Op, axis: int) -> list[int] | Refusal:
    sizes: list[int] = []
    for i in range(op.slots):
        shape = op.shape(i)
        size = shape[axis] if shape is not None else None
        if not isinstance(size, int):
            return no(op, Reason.UNKNOWN_SHAPE, f"The size of {op.value(i)} on axis {axis} is not known.")
        sizes.append(size)
    return sizes


LAWS = {
    ("", "Transpose"): Law(transpose_up, transpose_down, attributes("perm")),
    ("", "Squeeze"): Law(squeeze_up, squeeze_down, attributes("axes")),
    ("", "Unsqueeze"): Law(squeeze_up, squeeze_down, attributes("axes")),
    ("", "Reshape"): Law(reshape_up, reshape_down, attributes("allowzero shape consumed_inputs")),
    ("", "Flatten"): Law(reshape_up, reshape_down, attributes("axis")),
    ("", "Concat"): Law(concat_up, concat_down, attributes("axis")),
}
