"""Gemm and MatMul.

up      s*(A@B) + t = A@(B s) + t         the free axis of the constant; t into C, or an Add
down    (A s + t)@B = A@(s B) + t@B       the contracted axis of the constant
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..affine import Affine, Array, affine
from ..gauge import AddAfter, Answer, Carry, Need, Op, Reason, Refusal, SetAttribute
from .common import Law, attributes, cut, no, raised, static, stray, variable


def _row(vector: Array, axis: int) -> Array:
    return vector if vector.size == 1 and vector.ndim == 0 else vector.reshape((-1, 1) if axis == 0 else (1, -1))


def _on(coefficients: Array, axis: int, target: int) -> Array:
    """2-d coefficients that vary along `axis` alone, put on the axis `target` of another matrix."""
    return coefficients if coefficients.ndim == 0 else _row(coefficients.reshape(coefficients.shape[axis]), target)


def gemm_up(op: Op, output: int, a: Affine) -> Answer:
    along = a.scale.ndim and [i for i, d in enumerate(a.scale.shape) if d > 1]
    if along and len(along) > 1:
        return no(op, Reason.WRONG_AXIS, "The scale varies along both axes of the product.")
    rows = bool(along) and along == [0]
    operand, transposed = (0, op.attribute("transA", 0)) if rows else (1, op.attribute("transB", 0))
    free = (1 if transposed else 0) if rows else (0 if transposed else 1)
    scale = Need(operand, affine(_on(a.scale, 0 if rows else 1, free)))
    bias = _gemm_bias(op, a)
    if isinstance(bias, Refusal):
        return bias
    options = [(scale, *bias)]
    if not along and not op.is_constant(1):
        options.append((Need(0, affine(a.scale)), *bias))
    return options


def _gemm_bias(op: Op, a: Affine) -> tuple[Need | SetAttribute, ...] | Refusal:
    """C' = s*beta*C + t with beta' = 1; where C is computed at run time beta stays and C' = s*C + t/beta."""
    beta = float(op.attribute("beta", 1.0))
    if op.opset < 7 and 0 in a.varying:
        return no(op, Reason.WRONG_AXIS, "Before opset 7 a C that broadcasts stands on the columns.")
    if not op.has(2):
        shape = _bias_shape(op)
        if a.is_pure_scale:
            return ()
        if op.opset < 11 and shape is None:
            return no(op, Reason.UNKNOWN_SHAPE, "The width of the product is not known.")
        width = shape if shape is not None else ()
        t = a.only_shift()
        flat = cut(t, 1, 1)
        grown = Need(2, flat if flat is not None else t, missing=width, grow=True)
        return (grown,) if beta == 1.0 else (grown, SetAttribute("beta", 1.0))
    shape = op.shape(2)
    if shape is None or len(shape) > 2:
        return no(op, Reason.UNKNOWN_SHAPE, f"The shape of {op.value(2)} is not known.")
    if op.is_constant(2):
        change = Affine(a.scale * beta, a.shift)
        flat = cut(change, 2 - len(shape), len(shape))
        need = Need(2, flat if flat is not None else change, grow=True)
        return (need,) if beta == 1.0 else (need, SetAttribute("beta", 1.0))
    if beta == 0.0:
        return no(op, Reason.NOT_CONSTANT, "C is computed at run time and beta is 0.")
    change = Affine(a.scale, a.shift / beta)
    flat = cut(change, 2 - len(shape), len(shape))
    if flat is None or any(shape[i] == 1 for i in flat.varying):
        return no(op, Reason.WRONG_AXIS, f"{op.value(2)} is shorter than the product where the coefficients vary.")
    if not static([shape[i] for i in flat.varying]):
        return no(op, Reason.UNKNOWN_SHAPE, f"It is not known whether {op.value(2)} is as long as the product.")
    return (Need(2, flat, plain=True),)


def _bias_shape(op: Op) -> tuple[int, ...] | None:
    shape = op.shape(1)
    width = None if shape is None else shape[0 if op.attribute("transB", 0) else 1]
    return (width,) if isinstance(width, int) else None


def gemm_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    if len(given) > 1:
        return no(op, Reason.CONFLICT, "More than one operand of the product would change.")
    ((slot, a),) = given.items()
    beta, alpha = float(op.attribute("beta", 1.0)), float(op.attribute("alpha", 1.0))
    if slot == 2:
        if not a.is_pure_shift:
            return no(op, Reason.NOT_CONSTANT, "C is computed at run time; its scale cannot leave the sum.")
        return [(Carry(affine(1.0, raised(a.shift * beta, 2))),)]
    turned = bool(op.attribute("transA" if slot == 0 else "transB", 0))
    inner = (0 if turned else 1) if slot == 0 else (1 if turned else 0)
    other = 1 - slot
    other_turned = bool(op.attribute("transB" if slot == 0 else "transA", 0))
    other_inner = (1 if other_turned else 0) if slot == 0 else (0 if other_turned else 1)
    refused = stray(op, a, (inner,))
    if refused is not None:
        return refused
    scale = Need(other, affine(_on(a.scale, inner, other_inner)))
    if a.is_pure_scale:
        return [(scale,)]
    weight = op.constant(other)
    if weight is None or weight.ndim != 2:
        return variable(op, other)
    t = np.broadcast_to(a.shift.reshape(-1) if a.shift.ndim else a.shift, weight.shape[other_inner])
    response = alpha * (t @ (weight if other_inner == 0 else weight.T))
    layout = response[None, :] if slot == 0 else response[:, None]
    bias = _gemm_bias(op, affine(1.0, layout))
    return bias if isinstance(bias, Refusal) else [(scale, *bias)]


def matmul_up(op: Op, output: int, a: Affine) -> Answer:
    left, right = op.shape(0), op.shape(1)
    if left is None or right is None:
        return no(op, Reason.UNKNOWN_SHAPE, "The shapes of the product's operands are not known.")
    out = max(len(left), len(right), 2) - (len(left) == 1) - (len(right) == 1)
    row = out - 1 - (len(right) > 1) if len(left) > 1 else None
    column = out - 1 if len(right) > 1 else None
    axes = {i for i, d in enumerate(a.scale.shape) if d > 1}
    options: list[tuple[Need, AddAfter]] = []
    for slot, axis, shape in ((1, column, right), (0, row, left)):
        if axes - ({axis} if axis is not None else set()):
            continue
        if a.scale.ndim == 0 or not axes:
            scale = affine(a.scale.reshape(()) if a.scale.size == 1 else a.scale)
        else:
            place = len(shape) - (1 if slot == 1 else 2)
            scale = affine(a.scale.reshape((1,) * place + (-1,) + (1,) * (len(shape) - place - 1)))
        options.append((Need(slot, scale), AddAfter(a.shift)))
    if not options:
        return no(op, Reason.WRONG_AXIS, "The scale varies along an axis that neither operand holds alone.")
    # a constant takes the scale in at no cost: try that operand first
    options.sort(key=lambda option: not op.is_constant(option[0].slot))
    return options


def matmul_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    if len(given) > 1:
        return no(op, Reason.CONFLICT, "Both operands of the product would change.")
    ((slot, a),) = given.items()
    data, weight_shape = op.shape(slot), op.shape(1 - slot)
    if data is None or weight_shape is None:
        return no(op, Reason.UNKNOWN_SHAPE, "The shapes of the product's operands are not known.")
    if len(weight_shape) > 2 and a.varying - {len(data) - 1, len(data) - 2}:
        return no(op, Reason.WRONG_AXIS, "The coefficients vary along a batch axis of the product.")
    inner = len(data) - (1 if slot == 0 or len(data) == 1 else 2)
    rank = max(len(data), len(weight_shape), 2)
    s_inner = a.scale.ndim > 0 and a.scale.shape[inner] > 1
    s_outer = any(d > 1 for i, d in enumerate(a.scale.shape) if i != inner)
    if s_inner and s_outer:
        return no(op, Reason.WRONG_AXIS, "The scale varies along the contracted axis and another one.")
    if s_outer and 1 in (len(data), len(weight_shape)):
        return no(op, Reason.WRONG_AXIS, "The scale varies along an axis of a product with a vector.")
    actions: list[Need] = []
    carried = np.ones(())
    if s_inner or not s_outer:
        vector = a.scale.reshape(-1)
        place = 0 if len(weight_shape) == 1 else len(weight_shape) - (2 if slot == 0 else 1)
        layout = (1,) * place + (-1,) + (1,) * (len(weight_shape) - place - 1)
        flat = vector.reshape(layout if s_inner else ())
        actions.append(Need(1 - slot, affine(flat)))
    else:
        carried = raised(a.scale, rank)
    if a.is_pure_scale:
        return [(*actions, Carry(affine(carried)))]
    weight = op.constant(1 - slot)
    if weight is None:
        return variable(op, 1 - slot)
    response = _response(a.shift, weight, slot, len(data), inner)
    return [(*actions, Carry(affine(carried, response))), *_with_add(actions, carried, response)]


def _with_add(actions: list[Need], carried: Array, response: Array) -> list[tuple[Need | AddAfter | Carry, ...]]:
    return [(*actions, AddAfter(response))] if carried.ndim == 0 else []


def _response(shift: Array, weight: Array, slot: int, rank: int, inner: int) -> Array:
    """What the product makes of a constant `shift` on its data operand."""
    length = weight.shape[0 if weight.ndim == 1 else (-2 if slot == 0 else -1)]
    full = shift if shift.ndim else shift.reshape((1,) * rank)
    full = np.broadcast_to(full, (*full.shape[:inner], length, *full.shape[inner + 1 :]))
    return full @ weight if slot == 0 else weight @ full


LAWS = {
    ("", "Gemm"): Law(gemm_up, gemm_down, attributes("alpha beta broadcast transA transB")),
    ("", "MatMul"): Law(matmul_up, matmul_down, frozenset()),
}
