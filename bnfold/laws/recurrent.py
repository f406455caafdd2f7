"""LSTM, GRU and RNN, downward only: their input projection is linear, their output is not.

down    W@(s*x + t) + b = (W s)@x + (b + W@t)   in each direction; W is [D, gates*H, I], B [D, 2*gates*H] = [Wb, Rb]

What else they may have (clip, peepholes, sequence_lens, linear_before_reset, layout) comes after the projection.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..affine import Affine, affine
from ..gauge import Answer, Need, Op, Reason
from .common import Law, attributes, no, stray, up_refused, variable


def recurrent_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    if set(given) != {0}:
        return no(op, Reason.NONLINEAR, f"The value is a state or a parameter of the {op.kind}.")
    a, shape = given[0], op.shape(1)
    refused = stray(op, a, (2,))
    if refused is not None:
        return refused
    if shape is None or len(shape) != 3 or not all(isinstance(d, int) for d in shape):
        return no(op, Reason.UNKNOWN_SHAPE, f"The shape of the weight {op.value(1)} is not known.")
    directions, gates, inputs = (int(d) for d in shape)
    s, t = a.vector(2, inputs)
    scale = Need(1, affine(s.reshape(1, 1, inputs)))
    if a.is_pure_scale:
        return [(scale,)]
    weight = op.constant(1)
    if weight is None:
        return variable(op, 1)
    shift = np.concatenate([weight @ t, np.zeros((directions, gates))], axis=1)
    return [(scale, Need(3, affine(np.ones(()), shift), missing=(directions, 2 * gates)))]


_SHARED = "activation_alpha activation_beta activations clip direction hidden_size layout output_sequence"
LAWS = {
    ("", "LSTM"): Law(up_refused, recurrent_down, attributes(f"{_SHARED} input_forget")),
    ("", "GRU"): Law(up_refused, recurrent_down, attributes(f"{_SHARED} linear_before_reset")),
    ("", "RNN"): Law(up_refused, recurrent_down, attributes(_SHARED)),
}
