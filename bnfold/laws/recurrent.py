"""LSTM, downward only: its input projection is linear, its output is not.

down    W@(s*x + t) + b = (W s)@x + (b + W@t)      for each direction; W is [D, 4H, I], B is [D, 8H] = [Wb, Rb]
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..affine import Affine, affine
from ..gauge import Answer, Need, Op, Reason
from .common import Law, attributes, no, stray, up_refused


def lstm_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    if set(given) != {0}:
        return no(op, Reason.NONLINEAR, "The value is a state or a parameter of the LSTM.")
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
        return no(op, Reason.NOT_CONSTANT, f"The weight {op.value(1)} is computed at run time.")
    shift = np.concatenate([weight @ t, np.zeros((directions, gates))], axis=1)
    return [(scale, Need(3, affine(np.ones(()), shift), missing=(directions, 2 * gates)))]


LAWS = {
    ("", "LSTM"): Law(
        up_refused, lstm_down,
        attributes(
            "activation_alpha activation_beta activations clip direction hidden_size input_forget layout"
            " output_sequence"
        ),
    ),
}  # fmt: skip
