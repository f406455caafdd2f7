"""Words that the laws share: saying no, and cutting coefficients to an operand's layout."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from ..affine import Affine, Array
from ..gauge import Dim, Law, Op, Reason, Refusal, Shape


def no(op: Op, reason: Reason, message: str) -> Refusal:
    return Refusal(reason, op.at, message)


def variable(op: Op, slot: int) -> Refusal:
    """The refusal of a law that must know the weight at `slot`."""
    if op.is_quantized(slot):
        return no(op, Reason.QUANTIZED, f"The weight {op.value(slot)} is quantized: only a scale can go into it.")
    return no(op, Reason.NOT_CONSTANT, f"The weight {op.value(slot)} is computed at run time.")


def attributes(names: str) -> frozenset[str]:
    return frozenset(names.split())


def stray(op: Op, a: Affine, axes: Collection[int]) -> Refusal | None:
    """A refusal if a coefficient varies along an axis that is not in `axes`."""
    strays = sorted(a.varying - set(axes))
    if not strays:
        return None
    text = f"The coefficients vary along axis {strays[0]}, which {op.kind} does not leave alone."
    return no(op, Reason.WRONG_AXIS, text)


def not_positive(op: Op, a: Affine) -> Refusal | None:
    """A refusal unless scale >= 0 everywhere."""
    negative = a.scale < 0
    if not negative.any():
        return None
    where = ", ".join(str(i) for i in np.flatnonzero(negative)[:8]) + (", ..." if negative.sum() > 8 else "")
    return no(
        op, Reason.NEGATIVE_SCALE,
        f"{op.kind} needs scale >= 0; it is negative in {int(negative.sum())} of {negative.size} channels ({where}).",
    )  # fmt: skip


def up_refused(op: Op, output: int, a: Affine) -> Refusal:
    return no(op, Reason.NONLINEAR, f"{op.kind} is not linear: its output cannot be rescaled by its weights.")


def raised(array: Array, rank: int) -> Array:
    """Coefficients in the layout of a value of higher rank, as broadcasting aligns them."""
    return array if array.ndim == 0 else array.reshape((1,) * (rank - array.ndim) + array.shape)


def cut(a: Affine, first: int, rank: int) -> Affine | None:
    """Coefficients on the axes first .. first+rank of the value; None if they vary along another one."""
    if any(not first <= axis < first + rank for axis in a.varying):
        return None
    return a.moved(lambda c: c.reshape(c.shape[first : first + rank]))


def fitted(op: Op, a: Affine, slot: int, out: Shape | None, first: int | None = None) -> Affine | Refusal:
    """The coefficients of the output for the operand at `slot`, which is broadcast into an output of shape `out`.

    first: the axis of the output where the operand begins; None: as many before the last as it has axes.
    """
    if a.rank == 0:
        return a
    shape = op.shape(slot)
    if shape is None or out is None:
        return no(op, Reason.UNKNOWN_SHAPE, f"The shape of {op.value(slot)} is not known.")
    first = len(out) - len(shape) if first is None else first
    for axis in a.varying:
        size = max(c.shape[axis] for c in (a.scale, a.shift) if c.ndim)
        inside = first <= axis < first + len(shape)
        own = shape[axis - first] if inside else 1
        if own == size or (isinstance(own, str) and own == out[axis]):
            continue
        if isinstance(own, str):
            text = f"It is not known that {op.value(slot)} has length {size} on axis {axis - first}."
            return no(op, Reason.UNKNOWN_SHAPE, text)
        text = f"{op.value(slot)} is shorter than the output on axis {axis}, where the coefficients vary."
        return no(op, Reason.WRONG_AXIS, text)
    result = cut(a, first, len(shape))
    return result if result is not None else no(op, Reason.WRONG_AXIS, "The coefficients vary along a missing axis.")


def static(dims: Collection[Dim]) -> bool:
    return all(isinstance(d, int) for d in dims)


__all__ = [
    "Law", "attributes", "cut", "fitted", "no", "not_positive", "raised", "static", "stray", "up_refused", "variable",
]  # fmt: skip
