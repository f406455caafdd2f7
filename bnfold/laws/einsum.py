"""Einsum of a value and a constant: MatMul's law for any letters.

up      s*sum(x w) + t: s on letters that the constant holds and that survive go into it; t becomes an Add
down    sum((s*x + t) w) = sum(x (s w)) + sum(t w): s on letters of the constant goes into it, on others it is carried
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ..affine import Affine, Array, affine
from ..gauge import AddAfter, Answer, Carry, Dim, Need, Op, Reason, Refusal
from .common import Law, attributes, no, variable

_Terms = tuple[list[str], str]


def _shape(op: Op, slot: int, term: str) -> Sequence[Dim]:
    """The operand's shape; its letters where that is not known."""
    shape = op.shape(slot)
    return term if shape is None else shape


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
        if out not in (out.lower(), out.upper()):
            return no(op, Reason.UNKNOWN_OP, f"{text!r} leaves letters of both cases, whose order is not agreed upon.")
    if len(set(out)) != len(out) or any(len(_shape(op, k, t)) != len(t) for k, t in enumerate(terms)):
        return no(op, Reason.MALFORMED, f"The equation {text!r} does not fit its operands.")
    for k in sorted(set("".join(terms))):
        sizes = {_shape(op, i, t)[t.index(k)] for i, t in enumerate(terms) if k in t}
        if 1 in sizes and any(isinstance(d, int) and d != 1 for d in sizes):
            return no(op, Reason.WRONG_AXIS, f"A length of 1 is broadcast along {k}, against ONNX's shape inference.")
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


def _placed_on(op: Op, slot: int, c: Array, letters: str, terms: list[str]) -> Affine | Refusal:
    """The scale `c` over `letters` for the operand at `slot`, which must be as long as `c` wherever `c` varies."""
    sizes = dict(zip(letters, c.shape, strict=False))
    others = {k for i, term in enumerate(terms) if i != slot for k in term}
    shape = op.shape(slot)
    for k in _letters(c, letters):
        if k not in terms[slot]:
            text = f"The scale varies along {k}, which {op.value(slot)} lacks."
            return no(op, Reason.WRONG_AXIS, text)
        size = None if shape is None else shape[terms[slot].index(k)]
        if size == 1:  # a length of 1 is broadcast, as numpy and ONNX Runtime do
            text = f"{op.value(slot)} has length 1 along {k}, where the scale varies."
            return no(op, Reason.WRONG_AXIS, text)
        if size != sizes[k] and k in others:
            text = f"It is not known that {op.value(slot)} has length {sizes[k]} along {k}, where the scale varies."
            return no(op, Reason.UNKNOWN_SHAPE, text)
    return affine(_placed(c, letters, terms[slot]))


def up(op: Op, output: int, a: Affine) -> Answer:
    found = _terms(op)
    if isinstance(found, Refusal):
        return found
    terms, out = found
    options: list[tuple[Need | AddAfter, ...] | Refusal] = []
    for slot in sorted(range(op.slots), key=lambda k: not op.is_constant(k)):
        scale = _placed_on(op, slot, a.scale, out, terms)
        if isinstance(scale, Refusal):
            options.append(scale)
        else:
            options.append((Need(slot, scale), *(() if a.is_pure_scale else (AddAfter(a.shift),))))
    return options


def down(op: Op, given: Mapping[int, Affine]) -> Answer:
    found = _terms(op)
    if isinstance(found, Refusal):
        return found
    terms, out = found
    if len(given) > 1:
        return no(op, Reason.CONFLICT, "More than one operand of the product would change.")
    ((slot, a),) = given.items()
    response = _response(op, a.shift, terms, out, slot)
    if isinstance(response, Refusal):
        return response
    one: Array = np.ones(())
    options: list[tuple[Need | AddAfter | Carry, ...] | Refusal] = []
    for other in sorted(set(range(op.slots)) - {slot}, key=lambda k: not op.is_constant(k)):
        scale = _placed_on(op, other, a.scale, terms[slot], terms)
        if isinstance(scale, Refusal):
            options.append(scale)
        else:
            options.append((Need(other, scale), Carry(affine(one, response))))
            if response.any():
                options.append((Need(other, scale), AddAfter(response)))
    if _letters(a.scale, terms[slot]) <= set(out):
        options.append((Carry(affine(_placed(a.scale, terms[slot], out), response)),))
    else:
        options.append(no(op, Reason.WRONG_AXIS, "The scale varies along letters that are summed."))
    return options


def _response(op: Op, shift: Array, terms: list[str], out: str, slot: int) -> Array | Refusal:
    """What the product makes of the constant `shift` on its operand at `slot`."""
    if not shift.any():
        return np.zeros(())
    arrays: list[Array] = []
    for k in range(op.slots):
        array = shift if k == slot else op.constant(k)
        if array is None:
            return variable(op, k)
        arrays.append(array if array.ndim else array.reshape((1,) * len(terms[k])))
    sizes: dict[str, int] = {}
    for term, array in zip(terms, arrays, strict=True):
        for k, size in zip(term, array.shape, strict=True):
            sizes[k] = size if sizes.get(k, 1) == 1 else sizes[k]
    # what is constant along a summed letter is added up as often as the operand that `shift` is on is long there
    shape = op.shape(slot) or ()
    counts = [n for k, n in zip(terms[slot], shape, strict=False) if k not in out and sizes[k] == 1]
    known = [n for n in counts if isinstance(n, int)]
    if len(known) != len(counts) or (not shape and terms[slot]):
        return no(op, Reason.UNKNOWN_SHAPE, "How many elements are added up is not known before it runs.")
    wide = [np.broadcast_to(c, [sizes[k] for k in term]) for term, c in zip(terms, arrays, strict=True)]
    return np.asarray(np.einsum(f"{','.join(terms)}->{out}", *wide, optimize=True) * math.prod(known))


LAWS = {("", "Einsum"): Law(up, down, attributes("equation"))}
