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
DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}
HIDDEN, INPUTS, BATCH, LENGTH = 5, 4, 3, 7
X, W, R, B, SEQUENCE_LENS, INITIAL_H, INITIAL_C, P = range(8)


def recurrent(
    kind: str,
    *,
    bias: bool = True,
    lengths: bool = False,
    states: bool = False,
    peepholes: bool = False,
    opset: int = 17,
    shift: bool = True,
    given: Mapping[int, str] | None = None,
    builder: Builder | None = None,
    **attributes: Any,
) -> onnx.ModelProto:
    """A normalization of the features, and a `kind` of them. `given`: values to use in place of its own operands."""
    b = builder or Builder(opset=opset)
    batch_first, directions = attributes.get("layout", 0), DIRECTIONS[attributes.get("direction", "forward")]
    rows, state = GATES[kind] * HIDDEN, (directions, BATCH, HIDDEN)
    if batch_first:
        state = BATCH, directions, HIDDEN
    x = b.norm(b.op("Tanh", b.input("x", BATCH, INPUTS, LENGTH)), INPUTS, shift=shift)
    operands = {
        X: b.op("Transpose", x, perm=[0, 2, 1] if batch_first else [2, 0, 1]),
        W: b.weight(directions, rows, INPUTS),
        R: b.weight(directions, rows, HIDDEN),
    }
    if bias:
        operands[B] = b.weight(directions, 2 * rows)
    if lengths:
        operands[SEQUENCE_LENS] = b.weight(values=np.asarray([7, 3, 1], np.int32))
    if states:
        operands[INITIAL_H] = b.op("Relu", b.input("h", *state))
        if kind == "LSTM":
            operands[INITIAL_C] = b.weight(*state)
    if peepholes:
        operands[P] = b.weight(directions, 3 * HIDDEN)
    operands |= given or {}
    inputs = [operands.get(slot, "") for slot in range(max(operands) + 1)]
    outputs = 3 if kind == "LSTM" else 2
    y = b.op(kind, *inputs, outputs=outputs, hidden_size=HIDDEN, **attributes)
    return b.model(*(y + "_" * k for k in range(outputs)))


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("shift", [False, True])
def test_every_direction(kind: str, direction: str, bias: bool, lengths: bool, shift: bool) -> None:
    model = recurrent(kind, bias=bias, direction=direction, lengths=lengths, shift=shift)
    result = folded(model)
    made = next(n for n in result.model.graph.node if n.op_type == kind)
    assert bool(made.input[B] if len(made.input) > B else "") == (bias or shift)  # B is made if it is needed


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_with_all_operands(kind: str, direction: str, layout: int, clip: float | None) -> None:
    attributes: dict[str, Any] = {} if clip is None else {"clip": clip}
    if layout:
        attributes["layout"] = 1
    if kind == "LSTM":
        attributes["peepholes"] = True
    folded(recurrent(kind, direction=direction, lengths=True, states=True, **attributes))


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("opset", [7, 13, 14, 22])
def test_opsets(kind: str, opset: int) -> None:
    folded(recurrent(kind, opset=opset, lengths=True))


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("bias", [False, True])
def test_gru_linear_before_reset(before: int, direction: str, bias: bool) -> None:
    folded(recurrent("GRU", linear_before_reset=before, direction=direction, bias=bias, states=True))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("bias", [False, True])
def test_lstm_with_peepholes_and_coupled_gates(direction: str, bias: bool) -> None:
    folded(recurrent("LSTM", peepholes=True, direction=direction, bias=bias))
    folded(recurrent("LSTM", input_forget=1, direction=direction, bias=bias))


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("LSTM", ["HardSigmoid", "Tanh", "Relu"]),
        ("LSTM", ["Sigmoid", "ScaledTanh", "Affine"]),
        ("GRU", ["HardSigmoid", "LeakyRelu"]),
        ("RNN", ["Relu"]),
        ("RNN", ["ThresholdedRelu"]),
    ],
)
def test_other_activations(kind: str, names: list[str], direction: str) -> None:
    directions = DIRECTIONS[direction]
    parameters = {
        "HardSigmoid": ([0.3], [0.4]),
        "ScaledTanh": ([1.5], [0.7]),
        "Affine": ([0.9], [0.1]),
        "LeakyRelu": ([0.2], []),
        "ThresholdedRelu": ([0.8], []),
    }
    alphas = [a for name in names for a in parameters.get(name, ([], []))[0]] * directions
    betas = [v for name in names for v in parameters.get(name, ([], []))[1]] * directions
    lists = {"activation_alpha": alphas, "activation_beta": betas}
    given: dict[str, Any] = {name: values for name, values in lists.items() if values}
    folded(recurrent(kind, direction=direction, activations=names * directions, **given))


@pytest.mark.parametrize("kind", GATES)
def test_two_layers_with_the_same_weights(kind: str) -> None:
    b = Builder()
    rows = GATES[kind] * HIDDEN
    shared = b.weight(1, rows, INPUTS), b.weight(1, rows, HIDDEN), b.weight(1, 2 * rows)
    other = b.op(kind, b.input("z", LENGTH, BATCH, INPUTS), *shared, hidden_size=HIDDEN)
    b.op("Relu", other)
    folded(recurrent(kind, builder=b, given=dict(zip((W, R, B), shared, strict=True))))


@pytest.mark.parametrize("kind", GATES)
def test_two_readers_of_one_input(kind: str) -> None:
    b = Builder()
    x = b.norm(b.op("Tanh", b.input("x", BATCH, INPUTS, LENGTH)), INPUTS)
    y = b.op("Transpose", x, perm=[2, 0, 1])
    rows = GATES[kind] * HIDDEN
    outputs = [
        b.op(kind, y, b.weight(1, rows, INPUTS), b.weight(1, rows, HIDDEN), hidden_size=HIDDEN, direction=way)
        for way in ("forward", "reverse")
    ]
    folded(b.model(*outputs, b.op("Conv", x, b.weight(2, INPUTS, 1))))


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("shift", [False, True])
def test_a_computed_weight_is_produced_with_the_scale_and_no_shift(kind: str, shift: bool) -> None:
    b = Builder()
    rows = GATES[kind] * HIDDEN
    made = b.op("MatMul", b.input("m", 1, rows, 2), b.weight(2, INPUTS))
    model = recurrent(kind, builder=b, given={W: made}, shift=shift)
    if shift:
        refused(model, "NOT_CONSTANT")
    else:
        folded(model)


@pytest.mark.parametrize("kind", GATES)
def test_a_computed_bias_is_produced_with_the_shift(kind: str) -> None:
    b = Builder()
    rows = GATES[kind] * HIDDEN
    made = b.op("Gemm", b.input("m", 1, 2), b.weight(2, 2 * rows), b.weight(2 * rows))
    folded(recurrent(kind, builder=b, given={B: made}))


@pytest.mark.parametrize("kind", GATES)
def test_its_output_cannot_be_rescaled(kind: str) -> None:
    rows = GATES[kind] * HIDDEN
    for output in (0, 1):
        b = Builder()
        x = b.input("x", LENGTH, BATCH, INPUTS)
        y = b.op(kind, x, b.weight(1, rows, INPUTS), b.weight(1, rows, HIDDEN), outputs=2, hidden_size=HIDDEN)
        y = b.op("Squeeze", y, b.ints(1)) if output == 0 else y + "_"
        refused(b.model(b.norm(y, BATCH)), "NONLINEAR")


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("layout", [0, 1])
def test_coefficients_along_time_or_batch_stay(kind: str, axis: int, layout: int) -> None:
    rows, size = GATES[kind] * 4, 4  # all sizes coincide
    b = Builder()
    x = b.op("Tanh", b.input("x", 4, 4, 4))
    x = b.norm(x, size) if axis == 1 else b.op("Transpose", b.norm(x, size), perm=[1, 0, 2])
    attributes = {"layout": 1} if layout else {}
    y = b.op(kind, x, b.weight(1, rows, 4), b.weight(1, rows, 4), hidden_size=4, **attributes)
    refused(b.model(y), "WRONG_AXIS")


OPERANDS = {W: (1, INPUTS), R: (1, HIDDEN), INITIAL_H: (BATCH, HIDDEN), INITIAL_C: (BATCH, HIDDEN), B: (2,)}


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("slot", OPERANDS)
def test_a_value_that_is_a_weight_or_a_state_stays(kind: str, slot: int) -> None:
    if slot == INITIAL_C and kind != "LSTM":
        slot = INITIAL_H
    rows = GATES[kind] * HIDDEN
    shapes = {W: (rows, INPUTS), R: (rows, HIDDEN), INITIAL_H: (BATCH, HIDDEN), INITIAL_C: (BATCH, HIDDEN)}
    b = Builder()
    if slot == B:
        value = b.norm(b.op("Tanh", b.input("v", 1, 2 * rows)), 2 * rows)
    else:
        value = b.norm(b.op("Tanh", b.input("v", 1, *shapes[slot])), shapes[slot][0])
    operands = {
        X: b.input("x", LENGTH, BATCH, INPUTS),
        W: b.weight(1, rows, INPUTS),
        R: b.weight(1, rows, HIDDEN),
        slot: value,
    }
    y = b.op(kind, *(operands.get(k, "") for k in range(max(operands) + 1)), hidden_size=HIDDEN)
    refused(b.model(y), "NONLINEAR")


MUTANTS = ["shift dropped", "scale dropped", "shift of another gate", "scale of another input"]


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("mutant", [*MUTANTS, "one direction", "the recurrent bias"])
def test_mutants_are_caught(kind: str, mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if mutant == "the recurrent bias" and kind != "GRU":
        mutant = "shift dropped"  # the two halves of B are only ever added
    law = LAWS["", kind]
    attributes: dict[str, Any] = {"linear_before_reset": 1} if kind == "GRU" else {}
    model = recurrent(kind, direction="bidirectional", **attributes)
    folded(model)  # the right law passes

    def down(op: Op, given: Mapping[int, Affine]) -> Answer:
        answer = law.down(op, given)
        assert not isinstance(answer, Refusal)
        (option,) = answer
        assert not isinstance(option, Refusal)
        scale, shift = option
        assert isinstance(scale, Need) and isinstance(shift, Need)
        s, t = scale.affine.scale.copy(), shift.affine.shift.copy()
        match mutant:
            case "shift dropped":
                t[:] = 0
            case "scale dropped":
                s[:] = 1
            case "shift of another gate":
                t = np.roll(t, 2, axis=-1)
            case "scale of another input":
                s = np.roll(s, 1, axis=-1)
            case "one direction":
                t[1] = 0
            case _:
                t = np.roll(t, t.shape[1] // 2, axis=-1)
        return [(Need(1, affine(s)), Need(3, affine(1.0, t), missing=shift.missing))]

    monkeypatch.setitem(LAWS, ("", kind), Law(law.up, down, law.attributes))
    result = fold(model)
    assert result.changed and difference(model, result) > 1e-3
