"""Laws of the ATen ops that no single ONNX op says: linear of any rank, recurrent layers by parameter, hooks, sums.

linear  s*(xW' + b) + t = x(sW)' + (s*b + t)             (s*x + t)W' + b = x(Ws)' + (b + Wt)
lstm    W(s*x + t) + b = (Ws)x + (b + Wt)                the input weights of the first layer, each direction
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..affine import Affine, affine
from ..gauge import Answer, Carry, Need, Op, Reason, Refusal
from ..laws import LAWS
from ..laws.common import Law, attributes, no, stray, variable

if TYPE_CHECKING:
    from ..affine import Array

DOMAIN = "torch"
NO_LAWS = "aten"  # the domain of the calls that no law knows
HOOK, SUM = "hook", "sum"


def _sizes(op: Op) -> tuple[int, int, int] | Refusal:
    """The rank of the value, and the weight's outputs and inputs."""
    shape, weight = op.shape(0), op.shape(1)
    if shape is None or weight is None or len(weight) != 2:
        return no(op, Reason.UNKNOWN_SHAPE, "The shapes of this linear layer are not known.")
    outputs, inputs = weight
    if not (isinstance(outputs, int) and isinstance(inputs, int)):
        return no(op, Reason.UNKNOWN_SHAPE, "The shape of its weight is not known.")
    return len(shape), outputs, inputs


def _along_last(op: Op, a: Affine, rank: int, count: int) -> tuple[Array, Array] | Refusal:
    refused = stray(op, a, (rank - 1,))
    return refused if refused is not None else a.vector(rank - 1, count)


def linear_up(op: Op, output: int, a: Affine) -> Answer:
    sizes = _sizes(op)
    if isinstance(sizes, Refusal):
        return sizes
    rank, outputs, _ = sizes
    found = _along_last(op, a, rank, outputs)
    if isinstance(found, Refusal):
        return found
    s, t = found
    return [(Need(1, affine(s[:, None])), Need(2, affine(s, t), missing=(outputs,)))]


def linear_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    sizes = _sizes(op)
    if isinstance(sizes, Refusal):
        return sizes
    if set(given) != {0}:
        return no(op, Reason.NOT_CONSTANT, "The value is the weight or the bias of this linear layer.")
    rank, outputs, inputs = sizes
    a = given[0]
    if a.is_pure_scale and rank - 1 not in a.varying and not op.has(2):
        return [(Carry(a),)]  # without a bias a scale along another axis passes
    found = _along_last(op, a, rank, inputs)
    if isinstance(found, Refusal):
        return found
    s, t = found
    scale = Need(1, affine(s[None, :]))
    if not t.any():
        return [(scale,)]
    weight = op.constant(1)
    if weight is None:
        return variable(op, 1)
    return [(scale, Need(2, affine(np.ones(()), weight @ t), missing=(outputs,)))]


def recurrent_up(op: Op, output: int, a: Affine) -> Answer:
    return no(op, Reason.NONLINEAR, f"{op.kind} is not linear: its output cannot be rescaled by its weights.")


def recurrent_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    """Inputs: the value, the states, then for each direction of the first layer W_ih and b_ih, and all the others."""
    shape = op.shape(0)
    if set(given) != {0} or shape is None:
        return no(op, Reason.NONLINEAR, f"The value is a state of this {op.kind}.")
    first, directions, biased = (op.attribute(name, 0) for name in ("first", "directions", "biased"))
    actions: list[Need] = []
    for k in range(directions):
        slot = first + k * (2 if biased else 1)
        weight = op.constant(slot)
        if weight is None:
            return variable(op, slot)
        found = _along_last(op, given[0], len(shape), weight.shape[1])
        if isinstance(found, Refusal):
            return found
        s, t = found
        actions.append(Need(slot, affine(s[None, :])))
        if t.any():
            if not biased:
                return no(op, Reason.NO_GAIN, f"This {op.kind} has no bias that could take the shift.")
            actions.append(Need(slot + 1, affine(np.ones(()), weight @ t)))
    return [tuple(actions)]


def _hook(op: Op) -> Refusal:
    return no(op, Reason.GRAPH_BOUNDARY, f"{op.at} has a hook, which would see another value.")


def _hook_up(op: Op, output: int, a: Affine) -> Answer:
    return _hook(op)


def _hook_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    return _hook(op)


def _sum_refused(op: Op, a: Affine) -> Refusal | None:
    if a.is_pure_scale:
        return None
    return no(op, Reason.UNKNOWN_SHAPE, "How many elements are added up depends on the input: the shift would too.")


def sum_up(op: Op, output: int, a: Affine) -> Answer:
    return _sum_refused(op, a) or LAWS["", "ReduceSum"].up(op, output, a)


def sum_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    refused = next((r for a in given.values() if (r := _sum_refused(op, a)) is not None), None)
    return refused or LAWS["", "ReduceSum"].down(op, given)


LAWS.update(
    {
        (DOMAIN, "linear"): Law(linear_up, linear_down, frozenset()),
        **{
            (DOMAIN, kind): Law(recurrent_up, recurrent_down, attributes("first directions biased"))
            for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu")
        },
        (DOMAIN, HOOK): Law(_hook_up, _hook_down, frozenset()),
        (DOMAIN, SUM): Law(sum_up, sum_down, attributes("keepdims")),
    }
)
