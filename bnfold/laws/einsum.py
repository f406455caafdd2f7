"""Einsum of a value and a constant: MatMul's law for any letters.

up      s*sum(x w) + t: s on letters that the constant holds and that survive go into it; t becomes an Add
down    sum((s*x + t) w) = sum(x (s w)) + sum(t w): s on letters of the constant goes into it, on others it is carried
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ..affine import Affine, Array, affine
from ..gauge import AddAfter, Answer, Carry, Need, Op, Reason, Refusal
from .common import Law, attributes, no, variable

_Terms = tuple[list[str], str]


def _terms(op: Op) -> _Terms | Refusal:
    """The letters of each operand and of the output."""
    text = str(op.attribute("equation", "")).replace(" ", "")
    left, arrow, out = text.partition("->")
    terms = left.split(",")
    if "." in text or len(terms) != op.slots or any(len(set(t)) != len(t) for t in terms):
        return no(
            op, Reason.UNKNOWN_OP, f"The equation {text!r} has an ellipsis, a diagonal or another form of its own."
        )
    if not arrow:
        letters = "".join(terms)
        out = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    if len(set(out)) != len(out) or any(len(op.shape(k) or t) != len(t) for k, t in enumerate(terms)):
        return no(op, Reason.MALFORMED, f"The equation {text!r} does not fit its operands.")
    return terms, out


def _placed(c: Array, letters: str, onto: str) -> Array:
    """Coefficients laid out for `letters`, moved to the letters `onto`; they vary along common letters alone."""
    if c.ndim == 0:
        return c
    sizes = dict(zip(letters, c.shape, strict=True))
    kept = [k for k in letters if k in onto]
    flat = c.reshape([sizes[k] for k in kept])
    order = [kept.index(k) for k in onto if k in kept]
    return flat.transpose(order).reshape([sizes.get(k, 1) for k in onto])


def _letters(c: Array, letters: str) -> set[str]:
    return {k for k, size in zip(letters, c.shape, strict=False) if size > 1} if c.ndim else set()


def up(op: Op, output: int, a: Affine) -> Answer:
    found = _terms(op)
    if isinstance(found, Refusal):
        return found
    terms, out = found
    varying = _letters(a.scale, out)
    options: list[tuple[Need | AddAfter, ...]] = []
    for slot in sorted(range(op.slots), key=lambda k: not op.is_constant(k)):
        if varying <= set(terms[slot]):
            scale = Need(slot, affine(_placed(a.scale, out, terms[slot])))
            options.append((scale, AddAfter(a.shift)) if not a.is_pure_scale else (scale,))
    if not options:
        return no(op, Reason.WRONG_AXIS, "The scale varies along letters that no operand holds together.")
    return options


def down(op: Op, given: Mapping[int, Affine]) -> Answer:
    found = _terms(op)
    if isinstance(found, Refusal):
        return found
    terms, out = found
    if len(given) > 1 or op.slots != 2:
        return no(op, Reason.NOT_CONSTANT, "More than one operand of the product would change.")
    ((slot, a),) = given.items()
    mine, theirs = terms[slot], terms[1 - slot]
    varying = _letters(a.scale, mine)
    if varying <= set(theirs):
        first: tuple[Need, ...] = (Need(1 - slot, affine(_placed(a.scale, mine, theirs))),)
        carried: Array = np.ones(())
    elif varying <= set(out):
        first, carried = (), _placed(a.scale, mine, out)
    else:
        return no(op, Reason.WRONG_AXIS, "The scale varies along letters that the other operand and the output lack.")
    if a.is_pure_scale:
        return [(*first, Carry(affine(carried)))]
    response = _response(op, a.shift, mine, theirs, out, 1 - slot)
    if isinstance(response, Refusal):
        return response
    options = [(*first, Carry(affine(carried, response)))]
    return [*options, (*first, AddAfter(response))] if carried.ndim == 0 else options


def _response(op: Op, shift: Array, mine: str, theirs: str, out: str, slot: int) -> Array | Refusal:
    """What the product makes of the constant `shift` on its data."""
    weight, shape = op.constant(slot), op.shape(1 - slot)
    if weight is None or shape is None:
        return variable(op, slot)
    full = shift if shift.ndim else shift.reshape((1,) * len(mine))
    lost = [(k, n) for k, n in zip(mine, shape, strict=True) if k not in theirs and k not in out]
    counts = [n for (k, n) in lost if full.shape[mine.index(k)] == 1]
    known = [n for n in counts if isinstance(n, int)]
    if len(known) != len(counts):
        return no(op, Reason.UNKNOWN_SHAPE, "How many elements are added up is not known before it runs.")
    sizes = dict(zip(theirs, weight.shape, strict=True))
    wide = np.broadcast_to(full, [sizes.get(k, n) for k, n in zip(mine, full.shape, strict=True)])
    return np.asarray(np.einsum(f"{mine},{theirs}->{out}", wide, weight, optimize=True) * math.prod(known))


LAWS = {("", "Einsum"): Law(up, down, attributes("equation"))}
