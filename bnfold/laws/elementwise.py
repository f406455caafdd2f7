"""Add, Sub, Sum, Mul, Div; the identities; Relu.

up      s*(x + z) + t = (s*x + t1) + (s*z + t2), t1 + t2 = t        s*(x*c) + t = (s*x + t/c)*c
down    (s*x + t) + z = s*(x + z/s) + t                             (s*x + t)*c = x*(c*s) + c*t
relu    s*relu(x) = relu(s*x) for s >= 0
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..affine import Affine, Array, affine
from ..gauge import Action, Answer, Become, Carry, Need, Op, Reason, Refusal, Shape, Vanish
from .common import Law, attributes, cut, fitted, no, not_positive, raised


def _sign(op: Op, slot: int) -> float:
    return -1.0 if op.kind == "Sub" and slot == 1 else 1.0


def _first(op: Op, slot: int, size: int, rank: int) -> int:
    """The axis of the output where an operand of `size` axes begins: before opset 7 `axis` says it for the second."""
    axis = op.attribute("axis", rank - size) if slot == 1 and op.opset < 7 and op.attribute("broadcast", 0) else -size
    return min(axis % rank, rank - size) if size else rank


def _raised(op: Op, slot: int, array: Array, rank: int) -> Array:
    """Coefficients of the operand at `slot`, or that operand, in the layout of the output."""
    first = _first(op, slot, array.ndim, rank)
    return raised(array.reshape(array.shape + (1,) * (rank - first - array.ndim)), rank) if array.ndim else array


def _operand(op: Op, slot: int, a: Affine) -> Affine | Refusal:
    """The coefficients of the output in the layout of the constant at `slot`; longer than it where they vary."""
    shape, out = op.shape(slot), op.output_shape()
    if shape is None or a.rank == 0:
        return a
    if out is None:
        return no(op, Reason.UNKNOWN_SHAPE, "The rank of the output is not known.")
    rank, size = len(out), len(shape)
    first = _first(op, slot, size, rank)
    flat = cut(a, first, size)
    if flat is not None:
        return flat
    if first + size < rank:
        return no(op, Reason.WRONG_AXIS, f"{op.value(slot)} stands on other axes than the ones that vary.")
    return a  # it grows to the full rank


def _constant(op: Op, slot: int) -> Array | None:
    """A constant operand in the layout of the output."""
    c, out = op.constant(slot), op.output_shape()
    if c is None or c.ndim == 0:
        return c
    if out is None or c.ndim > len(out):
        return None
    return _raised(op, slot, c, len(out))


def _edit(op: Op, slot: int, a: Affine) -> Need | Refusal:
    placed = _operand(op, slot, a)
    if isinstance(placed, Refusal):
        return placed
    shape, out = op.shape(slot), op.output_shape()
    if op.opset < 7 and shape is not None and out is not None and placed.rank:
        grown = np.broadcast_shapes([d for d in shape if isinstance(d, int)], placed.scale.shape, placed.shift.shape)
        first = _first(op, slot, len(grown), len(out))
        if grown != shape and grown != out[first : first + len(grown)]:
            return no(op, Reason.WRONG_AXIS, "Before opset 7 a constant that broadcasts has whole axes of the output.")
    return Need(slot, placed, grow=True)


def put(op: Op, slot: int, a: Affine, *, inverse: bool = False) -> Need | Refusal:
    """The demand on a branch that is broadcast into the output."""
    if op.is_constant(slot):
        return _edit(op, slot, a)
    shape, out = op.shape(slot), op.output_shape()
    first = None if shape is None or out is None else _first(op, slot, len(shape), len(out))
    placed = fitted(op, a, slot, out, first)
    return placed if isinstance(placed, Refusal) else Need(slot, placed, inverse=inverse)


def every(parts: Sequence[Action | Refusal]) -> tuple[Action, ...] | Refusal:
    actions: list[Action] = []
    for part in parts:
        if isinstance(part, Refusal):
            return part
        actions.append(part)
    return tuple(actions)


def add_up(op: Op, output: int, a: Affine) -> Answer:
    """s to every branch; the shift to a constant, else to one of the values: the search tries each."""
    slots = range(op.slots)
    only = a.only_scale()
    constants = [i for i in slots if op.is_constant(i)]
    if a.is_pure_scale:
        return [every([put(op, i, only) for i in slots])]
    if constants:
        keep = constants[-1]
        shifted = Affine(a.scale, a.shift * _sign(op, keep))
        return [every([put(op, i, shifted if i == keep else only) for i in slots])]
    options: list[tuple[Action, ...] | Refusal] = []
    for name in dict.fromkeys(op.value(i) for i in slots):
        takers = [i for i in slots if op.value(i) == name]
        weight = sum(_sign(op, i) for i in takers)
        if weight:  # x + x takes half of the shift at x
            shifted = Affine(a.scale, a.shift / weight)
            options.append(every([put(op, i, shifted if i in takers else only) for i in slots]))
    return options or no(op, Reason.CONFLICT, "A value is subtracted from itself: no operand can take the shift.")


def add_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    """(s, t) on some branches: the others get 1/s, the sum carries (s, t); a constant takes t in if it can."""
    out = op.output_shape()
    if out is None and any(a.rank for a in given.values()):
        return no(op, Reason.UNKNOWN_SHAPE, "The rank of the output is not known.")
    rank = len(out) if out is not None else 0
    wide = {i: a.moved(lambda c, i=i: _raised(op, i, c, rank)) for i, a in given.items()}
    first = next(iter(wide.values()))
    if any(not np.array_equal(a.scale, first.scale) for a in wide.values()):
        return no(op, Reason.CONFLICT, "The branches of the sum carry different scales.")
    scale = first.scale
    shift = sum((a.shift * _sign(op, i) for i, a in wide.items()), np.zeros(()))
    others = [i for i in range(op.slots) if i not in given]
    whole = affine(scale, shift)
    if not others:
        return [(Carry(whole),)]
    unscaled = first.is_pure_shift
    options: list[tuple[Action, ...] | Refusal] = []
    constants = [i for i in others if op.is_constant(i)]
    if constants and unscaled:
        return [every([put(op, constants[-1], affine(1.0, shift * _sign(op, constants[-1])))])]
    if constants and op.slots == 2:
        options += _past_constant(op, next(iter(given)), constants[0], whole)
    if unscaled:
        options.append((Carry(whole),))
        options += [every([put(op, i, affine(1.0, shift * _sign(op, i)))]) for i in others]
        return options
    if not scale.all():
        return [*options, no(op, Reason.ZERO_SCALE, "The other branch would have to be divided by a scale of 0.")]
    inverse = Affine(1.0 / scale, np.zeros(()))
    takes = [Affine(1.0 / scale, shift / scale * _sign(op, i)) for i in others]
    options.append(every([*(put(op, i, inverse, inverse=True) for i in others), Carry(whole)]))
    if shift.any():
        for taker in range(len(others)):
            demands = [put(op, i, takes[taker] if k == taker else inverse, inverse=True) for k, i in enumerate(others)]
            options.append(every([*demands, Carry(affine(scale))]))
    return options


def _past_constant(op: Op, slot: int, constant: int, whole: Affine) -> list[tuple[Action, ...] | Refusal]:
    """x + c with x = (s, t): the Add goes and (s, t + c) travels on."""
    c, shape = _constant(op, constant), op.shape(slot)
    if c is None or (c.ndim and not _broadcasts_into(c, shape)):
        return []  # x alone is smaller than x + c
    sign = _sign(op, slot)
    gone = affine(whole.scale * sign, whole.shift + c * _sign(op, constant))
    return [(Vanish(slot), Carry(gone))]


def _broadcasts_into(c: Array, shape: Shape | None) -> bool:
    return shape is not None and c.ndim == len(shape) and all(n in (1, d) for n, d in zip(c.shape, shape, strict=True))


def mul_up(op: Op, output: int, a: Affine) -> Answer:
    if op.slots != 2:
        return no(op, Reason.UNKNOWN_OP, f"{op.kind} with {op.slots} operands.")
    constants = [i for i in (0, 1) if op.is_constant(i)]
    if not constants:
        if not a.is_pure_scale:
            return no(op, Reason.NONLINEAR, "A product of two values takes a scale, but no shift.")
        sides = (0, 1) if op.kind == "Mul" else (0,)
        return [every([put(op, i, a)]) for i in sides]
    (constant,) = constants[:1]
    c = _constant(op, constant)
    if c is None:
        return no(op, Reason.UNKNOWN_SHAPE, "The constant's place in the value is not known.")
    if op.kind == "Div" and constant == 0:
        if a.is_pure_scale:
            return [every([_edit(op, 0, a)])]
        return no(op, Reason.NONLINEAR, "A constant divided by the value takes a scale, but no shift.")
    options: list[tuple[Action, ...] | Refusal] = []
    own = _factor(op, constant, a.scale)
    if a.is_pure_scale:
        options.append(own if isinstance(own, Refusal) else (own,))
    if op.kind == "Div":
        options.append(every([put(op, 1 - constant, affine(a.scale, a.shift * c))]))
    elif ((a.shift != 0) & (c == 0)).any():
        options.append(no(op, Reason.ZERO_SCALE, "The shift would have to be divided by a factor of 0."))
    else:
        safe = np.where(c == 0, 1.0, c)
        options.append(every([put(op, 1 - constant, affine(a.scale, a.shift / safe))]))
    return options


def _factor(op: Op, constant: int, scale: Array) -> Need | Refusal:
    """The scale taken in by the constant factor or divisor."""
    if op.kind == "Mul":
        return _edit(op, constant, affine(scale))
    if not scale.all():
        return no(op, Reason.ZERO_SCALE, "The divisor cannot take in a scale of 0.")
    return _edit(op, constant, affine(1.0 / scale))


def mul_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    out = op.output_shape()
    if op.slots != 2:
        return no(op, Reason.UNKNOWN_OP, f"{op.kind} with {op.slots} operands.")
    if out is None and any(a.rank for a in given.values()):
        return no(op, Reason.UNKNOWN_SHAPE, "The rank of the output is not known.")
    rank = len(out) if out is not None else 0
    if len(given) > 1 or not op.is_constant(1 - next(iter(given))):
        return _product_down(op, given, rank)
    ((slot, a),) = given.items()
    if op.kind == "Div" and slot == 1:
        answer = _product_down(op, given, rank)  # c/(s*x) = (c/s)/x
        if isinstance(answer, Refusal):
            return answer
        return [every([_edit(op, 0, affine(1.0 / _raised(op, 1, a.scale, rank)))]), *answer]
    scale, shift = _raised(op, slot, a.scale, rank), _raised(op, slot, a.shift, rank)
    c = _constant(op, 1 - slot)
    if c is None:
        return no(op, Reason.UNKNOWN_SHAPE, "The constant's place in the value is not known.")
    if op.kind == "Div" and not c.all():
        return no(op, Reason.ZERO_SCALE, "The divisor is 0 somewhere.")
    onward = shift * c if op.kind == "Mul" else shift / c
    own = _factor(op, 1 - slot, scale)
    first = own if isinstance(own, Refusal) else (own, Carry(affine(1.0, onward)))
    return [first, (Carry(affine(scale, onward)),)]


def _product_down(op: Op, given: Mapping[int, Affine], rank: int) -> Answer:
    """Of two values: the scales of both leave it together."""
    scale: Array = np.ones(())
    for slot, a in given.items():
        if not a.is_pure_scale:
            return no(op, Reason.NONLINEAR, "A product of two values carries a scale, but no shift.")
        if op.kind == "Div" and slot == 1:
            if not a.scale.all():
                return no(op, Reason.ZERO_SCALE, "The divisor would be 0.")
            scale = scale / _raised(op, slot, a.scale, rank)
        else:
            scale = scale * _raised(op, slot, a.scale, rank)
    return [(Carry(affine(scale)),)]


def identity_up(op: Op, output: int, a: Affine) -> Answer:
    return _training(op, output) or [(Need(0, a),)]


def identity_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    if set(given) != {0}:
        return no(op, Reason.NONLINEAR, f"The value is a parameter of {op.kind}.")
    return _training(op, 0) or [(Carry(given[0]),)]


def _training(op: Op, output: int) -> Refusal | None:
    if op.kind != "Dropout":
        return None
    if output != 0:
        return no(op, Reason.UNKNOWN_OP, "The mask of a Dropout is no affine value.")
    test = op.attribute("is_test", 0) if op.opset < 7 else 1
    mode = op.integers(2) if op.has(2) else (0,)
    if test and mode is not None and not any(mode):
        return None
    return no(op, Reason.TRAINING_MODE, "The Dropout is (or may be) in training mode.")


def relu_up(op: Op, output: int, a: Affine) -> Answer:
    # relu(x) + u = max(x + u, u): it costs the runtime its fusion of Conv and Relu. Max broadcasts from opset 8 on.
    if op.kind == "Relu" and op.aggressive and op.opset >= 8 and not a.is_pure_scale:
        return not_positive(op, a) or [(Need(0, a), Become("Max", a.shift))]
    return _keeps(op, a) or [(Need(0, a),)]


def relu_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    if set(given) != {0}:
        return no(op, Reason.NONLINEAR, f"The value is a parameter of {op.kind}.")
    return _keeps(op, given[0]) or [(Carry(given[0]),)]


def _keeps(op: Op, a: Affine) -> Refusal | None:
    if not a.is_pure_scale:
        # a negative scale would be in the way as well: the refusal that is nearest to a fold is told first
        return no(op, Reason.NONLINEAR, f"{op.kind} lets a scale through, but no shift.")
    return not_positive(op, a)


_LEGACY = "axis broadcast consumed_inputs"
LAWS = {
    **{("", kind): Law(add_up, add_down, attributes(_LEGACY)) for kind in ("Add", "Sub", "Sum")},
    **{("", kind): Law(mul_up, mul_down, attributes(_LEGACY)) for kind in ("Mul", "Div")},
    ("", "Identity"): Law(identity_up, identity_down, frozenset()),
    ("", "Dropout"): Law(identity_up, identity_down, attributes("ratio seed is_test consumed_inputs")),
    ("", "Relu"): Law(relu_up, relu_down, attributes("consumed_inputs")),
}
