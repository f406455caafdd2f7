"""LSTM, GRU and RNN with everything they may have: a map of their input goes into W and B."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest

from bnfold.affine import Affine, affine
from bnfold.fold import fold
from bnfold.gauge import Answer, Law, Need, Op, Refusal
from bnfold.laws import LAWS
from tests.graphs import Builder, difference, folded, refused

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
HIDDEN = 5


def recurrent(
    kind: str, *, directions: int = 1, bias: bool = True, layout: int = 0, norm_of: str = "input", **attributes: Any
) -> onnx.ModelProto:
    b = Builder()
    # [batch, channels, length] -> [length, batch, channels], or [batch, length, channels] with layout 1
    y = b.op("Tanh", b.input("x", 3, 4, 7))
    y = b.norm(y, 4) if norm_of == "input" else y
    y = b.op("Transpose", y, perm=[0, 2, 1] if layout else [2, 0, 1])
    gates = GATES[kind]
    operands = [b.weight(directions, gates * HIDDEN, 4), b.weight(directions, gates * HIDDEN, HIDDEN)]
    operands.append(b.weight(directions, 2 * gates * HIDDEN) if bias else "")
    if attributes.pop("lengths", False):
        operands.append(b.weight(values=np.asarray([7, 3, 5], np.int32)))
    if attributes.pop("peepholes", False):
        operands += [""] * (7 - 1 - len(operands)) + ["", b.weight(directions, 3 * HIDDEN)]
        operands = operands[:7]
        operands = [*operands[:3], "", "", "", operands[-1]]
    if layout:
        attributes["layout"] = 1
    y = b.op(kind, y, *operands, hidden_size=HIDDEN, **attributes)
    if norm_of == "output":
        y = b.norm(b.op("Squeeze", y, b.ints(1)), 3)
    return b.model(y)


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize(("direction", "directions"), [("forward", 1), ("reverse", 1), ("bidirectional", 2)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("lengths", [False, True])
def test_every_direction(kind: str, direction: str, directions: int, bias: bool, lengths: bool) -> None:
    folded(recurrent(kind, directions=directions, bias=bias, direction=direction, lengths=lengths))


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("attributes", [{"clip": 0.5}, {"layout": 1}])
def test_clip_and_layout(kind: str, attributes: dict[str, Any]) -> None:
    model = recurrent(kind, **attributes)
    if "layout" in attributes:
        result = fold(model)  # judged by weights alone: few evaluators know this layout
        assert result.changed and result.certificate().passed
        other = recurrent(kind)
        assert [t.raw_data for t in result.model.graph.initializer] == [
            t.raw_data for t in fold(other).model.graph.initializer
        ]
    else:
        folded(model)


@pytest.mark.parametrize("before", [0, 1])
def test_gru_linear_before_reset(before: int) -> None:
    folded(recurrent("GRU", linear_before_reset=before))


def test_lstm_with_peepholes_and_coupled_gates() -> None:
    folded(recurrent("LSTM", peepholes=True))
    result = fold(recurrent("LSTM", input_forget=1))
    assert result.changed and result.certificate().passed


@pytest.mark.parametrize("kind", ["GRU", "RNN", "LSTM"])
def test_other_activations(kind: str) -> None:
    names = {"LSTM": ["HardSigmoid", "Tanh", "Relu"], "GRU": ["HardSigmoid", "Relu"], "RNN": ["Relu"]}[kind]
    folded(recurrent(kind, activations=names))


@pytest.mark.parametrize("kind", GATES)
def test_its_output_cannot_be_rescaled(kind: str) -> None:
    refused(recurrent(kind, norm_of="output"), "NONLINEAR")


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("mutant", ["shift dropped", "shift of another gate"])
def test_mutants_are_caught(kind: str, mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    law = LAWS["", kind]

    def down(op: Op, given: Mapping[int, Affine]) -> Answer:
        answer = law.down(op, given)
        assert not isinstance(answer, Refusal)
        (option,) = answer
        assert not isinstance(option, Refusal)
        scale, shift = option
        assert isinstance(shift, Need)
        if mutant == "shift dropped":
            return [(scale,)]
        return [(scale, Need(3, affine(1.0, np.roll(shift.affine.shift, 2, axis=-1)), missing=shift.missing))]

    monkeypatch.setitem(LAWS, ("", kind), Law(law.up, down, law.attributes))
    model = recurrent(kind, linear_before_reset=1) if kind == "GRU" else recurrent(kind)
    result = fold(model)
    assert result.changed and difference(model, result) > 1e-3
