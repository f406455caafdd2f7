"""Max, Min, Where: one of several values, element by element.

up      s*max(x, y) + t = max(s*x + t, s*y + t) for s >= 0          where: any s
down    max(s*x + t, y) = s*max(x, (y - t)/s) + t for s > 0
"""

from __future__ import annotations

from collections.abc import Mapping

from ..affine import Affine
from ..gauge import Answer, Carry, Op, Reason, Refusal
from .common import Law, attributes, no, not_positive, raised
from .elementwise import every, put


def _operands(op: Op) -> range:
    return range(1, 3) if op.kind == "Where" else range(op.slots)


def select_up(op: Op, output: int, a: Affine) -> Answer:
    refused = None if op.kind == "Where" else not_positive(op, a)
    return refused or [every([put(op, slot, a) for slot in _operands(op)])]


def select_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    if not set(given) <= set(_operands(op)):
        return no(op, Reason.NONLINEAR, "The value is a condition.")
    a, *more = given.values()
    refused: Refusal | None = None if op.kind == "Where" else not_positive(op, a)
    if refused is not None:
        return refused
    out = op.output_shape()
    if out is None and a.rank:
        return no(op, Reason.UNKNOWN_SHAPE, "The rank of the output is not known.")
    rank = len(out) if out is not None else 0
    wide = Affine(raised(a.scale, rank), raised(a.shift, rank))
    if any(not Affine(raised(b.scale, rank), raised(b.shift, rank)).equals(wide) for b in more):
        return no(op, Reason.CONFLICT, f"The operands of {op.kind} carry different maps.")
    others = [slot for slot in _operands(op) if slot not in given]
    if others and not a.scale.all():
        return no(op, Reason.ZERO_SCALE, "The other operand would have to be divided by a scale of 0.")
    return [every([*(put(op, slot, wide.inverse(), inverse=True) for slot in others), Carry(wide)])]


LAWS = {
    ("", "Max"): Law(select_up, select_down, attributes("consumed_inputs")),
    ("", "Min"): Law(select_up, select_down, attributes("consumed_inputs")),
    ("", "Where"): Law(select_up, select_down, frozenset()),
}
