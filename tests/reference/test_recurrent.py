"""RNN, GRU and LSTM: directions, layout, ended sequences, clipping, peepholes and activations, against ONNX Runtime."""

import itertools

import numpy as np
import pytest

from .one_node import U, compare, feeds, judge, normal, one_node, provider

RNG = np.random.default_rng(2)
STEPS, BATCH, SIZE, HIDDEN = 5, 3, 4, 2
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
# Each step sums SIZE + HIDDEN + 4 terms of at most 4 or so and passes a function of slope at most 1 (weights are
# scaled so that the recurrence contracts), a few ulps of which are the function's own error: no step amplifies.
TOLERANCE = STEPS * (SIZE + HIDDEN + 16) * U * 4
OPSETS = {"RNN": (7, 14), "GRU": (7, 14), "LSTM": (7, 14)}


def operands(op: str, direction: str, layout: int = 0, lens: bool = True, initial: bool = True, bias: bool = True):
    directions, gates = (2 if direction == "bidirectional" else 1), GATES[op] * HIDDEN
    x = normal(RNG, *((BATCH, STEPS) if layout else (STEPS, BATCH)), SIZE)
    w, r = normal(RNG, directions, gates, SIZE) / 2, normal(RNG, directions, gates, HIDDEN) / 3
    b = normal(RNG, directions, 2 * gates) / 2 if bias else None
    lengths = np.array([3, 5, 1], dtype=np.int32) if lens else None
    shape = (BATCH, directions, HIDDEN) if layout else (directions, BATCH, HIDDEN)
    given = [x, w, r, b, lengths, normal(RNG, *shape) if initial else None]
    if op == "LSTM":
        given.append(normal(RNG, *shape) if initial else None)
    return given


def outputs(op: str) -> int:
    return 3 if op == "LSTM" else 2


@pytest.mark.parametrize("op", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_directions_lengths_and_states(op: str, direction: str):
    for opset in OPSETS[op]:
        for lens, initial, bias in itertools.product((False, True), repeat=3):
            given = operands(op, direction, 0, lens, initial, bias)
            compare(op, given, opset, TOLERANCE, outputs(op), direction=direction, hidden_size=HIDDEN)


@pytest.mark.parametrize("op", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_clip(op: str, direction: str):
    for clip in (0.3, 1.5):
        given = operands(op, direction)
        compare(op, given, 14, TOLERANCE, outputs(op), direction=direction, hidden_size=HIDDEN, clip=clip)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_gru_linear_before_reset(direction: str):
    for bias, clip in ((False, {}), (True, {}), (True, {"clip": 0.5})):
        given = operands("GRU", direction, bias=bias)
        compare("GRU", given, 14, TOLERANCE, 2, direction=direction, hidden_size=HIDDEN, linear_before_reset=1, **clip)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("coupled", [0, 1])
def test_lstm_peepholes_and_coupled_gates(direction: str, coupled: int):
    directions = 2 if direction == "bidirectional" else 1
    for peepholes in (None, normal(RNG, directions, 3 * HIDDEN) / 2):
        for clip in ({}, {"clip": 0.6}):
            given = [*operands("LSTM", direction), peepholes]
            options = {"direction": direction, "hidden_size": HIDDEN, "input_forget": coupled, **clip}
            compare("LSTM", given, 14, TOLERANCE, 3, **options)


ACTIVATIONS = [
    "Relu",
    "LeakyRelu",
    "ThresholdedRelu",
    "HardSigmoid",
    "Elu",
    "Softsign",
    "Softplus",
    "Sigmoid",
    "Affine",
]


@pytest.mark.parametrize("activation", [*ACTIVATIONS, "ScaledTanh"])
def test_activations(activation: str):
    alpha = {"LeakyRelu": 0.1, "ThresholdedRelu": 0.2, "HardSigmoid": 0.3, "Elu": 0.7, "Affine": 0.8, "ScaledTanh": 0.9}
    beta = {"HardSigmoid": 0.4, "Affine": 0.1, "ScaledTanh": 0.6}
    given = operands("RNN", "bidirectional")
    options = {}
    if activation in alpha:
        options["activation_alpha"] = [alpha[activation]] * 2
    if activation in beta:
        options["activation_beta"] = [beta[activation]] * 2
    if activation == "Softplus":
        given = operands("RNN", "bidirectional")
    options |= {"direction": "bidirectional", "hidden_size": HIDDEN, "activations": [activation] * 2}
    # An unbounded activation lets the state grow to 8 or so
    compare("RNN", given, 14, 4 * TOLERANCE, 2, **options)


def test_activations_take_their_parameters_in_order():
    given = operands("LSTM", "forward")
    options = {
        "activations": ["HardSigmoid", "Tanh", "LeakyRelu"],
        "activation_alpha": [0.3, 0.2],
        "activation_beta": [0.4],
    }
    compare("LSTM", given, 14, 4 * TOLERANCE, 3, hidden_size=HIDDEN, **options)


@pytest.mark.parametrize("op", ["RNN", "GRU", "LSTM"])
def test_batch_first_is_the_other_layout_transposed(op: str):
    given = operands(op, "bidirectional", layout=1)
    options = {"direction": "bidirectional", "hidden_size": HIDDEN}
    first = judge(one_node(op, given, 14, outputs(op), layout=1, **options), feeds(given))
    turned = [given[0].swapaxes(0, 1), *given[1:5], *(state.swapaxes(0, 1) for state in given[5:])]
    time = judge(one_node(op, turned, 14, outputs(op), **options), feeds(turned))
    np.testing.assert_array_equal(first[0], time[0].transpose(2, 0, 1, 3))
    for ours, theirs in zip(first[1:], time[1:], strict=True):
        np.testing.assert_array_equal(ours, theirs.swapaxes(0, 1))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_lstm_against_torch_in_float64(bidirectional: bool):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    module = torch.nn.LSTM(SIZE, HIDDEN, bidirectional=bidirectional, dtype=torch.float64)
    suffixes = ["l0", "l0_reverse"] if bidirectional else ["l0"]

    def stacked(name: str) -> np.ndarray:
        # torch's gates are i, f, c, o
        parts = [np.split(getattr(module, f"{name}_{s}").detach().numpy(), 4) for s in suffixes]
        return np.stack([np.concatenate([i, o, f, c]) for i, f, c, o in parts])

    bias = np.concatenate([stacked("bias_ih"), stacked("bias_hh")], axis=1)
    x = RNG.standard_normal((STEPS, BATCH, SIZE))
    given = [x, stacked("weight_ih"), stacked("weight_hh"), bias]
    direction = "bidirectional" if bidirectional else "forward"
    y, h, c = judge(one_node("LSTM", given, 14, 3, hidden_size=HIDDEN, direction=direction), feeds(given))
    theirs, (theirs_h, theirs_c) = module(torch.from_numpy(x))
    np.testing.assert_allclose(y.swapaxes(1, 2).reshape(STEPS, BATCH, -1), theirs.detach(), rtol=0, atol=1e-14)
    np.testing.assert_allclose(h, theirs_h.detach(), rtol=0, atol=1e-14)
    np.testing.assert_allclose(c, theirs_c.detach(), rtol=0, atol=1e-14)


def test_gru_against_torch_in_float64():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    module = torch.nn.GRU(SIZE, HIDDEN, dtype=torch.float64)

    def reordered(name: str) -> np.ndarray:
        r, z, h = np.split(getattr(module, f"{name}_l0").detach().numpy(), 3)
        return np.concatenate([z, r, h])[None]

    bias = np.concatenate([reordered("bias_ih"), reordered("bias_hh")], axis=1)
    x = RNG.standard_normal((STEPS, BATCH, SIZE))
    given = [x, reordered("weight_ih"), reordered("weight_hh"), bias]
    y, h = judge(one_node("GRU", given, 14, 2, hidden_size=HIDDEN, linear_before_reset=1), feeds(given))
    theirs, theirs_h = module(torch.from_numpy(x))
    np.testing.assert_allclose(y[:, 0], theirs.detach(), rtol=0, atol=1e-14)
    np.testing.assert_allclose(h, theirs_h.detach(), rtol=0, atol=1e-14)


def test_stock_lstm_is_not_enough():
    """onnx's own reference runs on past the end of a sequence."""
    from onnx.reference import ReferenceEvaluator

    given = operands("LSTM", "forward", initial=False)
    model = one_node("LSTM", given, 14, 3, hidden_size=HIDDEN)
    truth, stock = provider(model, feeds(given)), ReferenceEvaluator(model).run(None, feeds(given))
    assert isinstance(stock, list)
    assert max(np.abs(np.asarray(a) - b).max() for a, b in zip(stock[1:], truth[1:], strict=True)) > 0.01
    for ours, theirs in zip(judge(model, feeds(given)), truth, strict=True):
        assert np.abs(ours - theirs).max() < TOLERANCE


def test_no_length_beyond_a_sequence_leaks():
    """What comes after a sequence's end changes nothing."""
    given = operands("LSTM", "bidirectional")
    other = [given[0].copy(), *given[1:]]
    other[0][3:, 0] = 99
    options = {"direction": "bidirectional", "hidden_size": HIDDEN}
    model = one_node("LSTM", given, 14, 3, **options)
    for a, b in zip(judge(model, feeds(given)), judge(model, feeds(other)), strict=True):
        np.testing.assert_array_equal(a, b)
