"""Random graphs out of lawful ops: the fold is the same function in float64, and a second fold finds nothing more."""

from __future__ import annotations

import random
import time

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnfold.fold import fold
from tests.graphs import Builder, count, difference

KINDS = (
    "Conv", "Conv", "BN", "BN", "Relu", "LeakyRelu", "Add", "Sub", "Concat", "MaxPool", "AveragePool", "Turn", "Mul",
    "Plus", "ConvTranspose", "Shared",
)  # fmt: skip
SIZE = 6  # channels, height and width coincide on purpose


def graph(seed: int) -> onnx.ModelProto:
    """3 to 9 ops on values [2, 6, h, w]; each op reads any of the values made so far."""
    choose = random.Random(seed)
    b = Builder(seed)
    values = [b.op("Relu", b.input("x", 2, SIZE, SIZE, SIZE))]
    shared = b.weight(SIZE, SIZE, 1, 1)
    for _ in range(choose.randint(3, 9)):
        x = choose.choice(values[-3:])
        match choose.choice(KINDS):
            case "Conv":
                group, kernel = choose.choice((1, 2, 3, 6)), choose.choice((1, 3))
                extra = [b.weight(SIZE)] if choose.random() < 0.5 else []
                w = b.weight(SIZE, SIZE // group, kernel, kernel)
                y = b.op("Conv", x, w, *extra, group=group, pads=[kernel // 2] * 4)
            case "ConvTranspose":
                group = choose.choice((1, 2, 3))
                y = b.op("ConvTranspose", x, b.weight(SIZE, SIZE // group, 3, 3), group=group, pads=[1] * 4)
            case "Shared":
                y = b.op("Conv", x, shared)
            case "BN":
                y = b.norm(x, SIZE, positive=choose.random() < 0.5, shift=choose.random() < 0.7)
            case "Add" | "Sub" as kind:
                y = b.op(kind, x, choose.choice(values))
            case "Concat":
                y = b.op("Conv", b.op("Concat", x, choose.choice(values), axis=1), b.weight(SIZE, 2 * SIZE, 1, 1))
            case "MaxPool" | "AveragePool" as kind:
                y = b.op(kind, x, kernel_shape=[3, 3], pads=[1] * 4)
            case "Turn":
                y = b.op("Transpose", x, perm=[0, *choose.sample((1, 2, 3), 3)])
            case "Mul" | "Plus" as kind:
                shape = choose.choice(((), (SIZE,), (SIZE, 1, 1), (1, SIZE, 1)))
                y = b.op("Mul" if kind == "Mul" else "Add", x, b.weight(*shape))
            case kind:
                y = b.op(str(kind), x)
        values.append(y)
    return b.model(values[-1])


def holds(seed: int) -> None:
    model = graph(seed)
    result = fold(model)
    onnx.checker.check_model(result.model)
    assert difference(model, result) < 1e-9
    assert result.certificate().passed
    left = [k for k in result.report.kept if "BatchNormalization" in k.op]
    assert count(result.model) == sum(k.op.split(" + ").count("BatchNormalization") for k in left)
    assert all(k.reason and k.message and k.hint for k in result.report.kept)
    again = fold(result.model)
    assert not again.report.folded, again.report


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_random_graph_stays_the_same_function(seed: int) -> None:
    holds(seed)


@pytest.mark.slow
def test_random_graphs_for_a_time_budget(slow_budget: float) -> None:
    end, seed = time.monotonic() + slow_budget, 0
    while time.monotonic() < end:
        holds(seed)
        seed += 1
    assert seed > 50
