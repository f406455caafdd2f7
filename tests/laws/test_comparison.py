"""Max, Min, Where; sums, maxima and norms along axes; the mean of several values."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from bnfold.fold import fold
from bnfold.gauge import Carry, Law, Need
from bnfold.laws import LAWS
from tests.graphs import Builder, difference, folded, refused


def conv(b: Builder, x: str, channels: int = 6) -> str:
    return b.op("Conv", x, b.weight(channels, 3, 1, 1), b.weight(channels))


def read(b: Builder, y: str) -> onnx.ModelProto:
    return b.model(b.op("Conv", y, b.weight(4, 6, 1, 1), b.weight(4)))


@pytest.mark.parametrize("kind", ["Max", "Min"])
@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("constant", [True, False])
def test_max_of_values_and_constants(kind: str, positive: bool, constant: bool) -> None:
    b = Builder()
    x = b.input("x", "N", 3, 6, 6)
    other = b.weight(6, 1, 1) if constant else conv(b, x)
    up = b.model(b.norm(b.op(kind, conv(b, x), other), 6, positive=positive))
    b = Builder()
    x = b.input("x", "N", 3, 6, 6)
    other = b.weight(6, 1, 1) if constant else conv(b, x)
    down = read(b, b.op(kind, b.norm(b.op("Tanh", conv(b, x)), 6, positive=positive), other))
    for model in (up, down):
        if positive:
            folded(model)
        else:
            refused(model, "NEGATIVE_SCALE")


def test_max_of_three_and_of_one() -> None:
    b = Builder()
    x = b.input("x", "N", 3, 6, 6)
    folded(b.model(b.norm(b.op("Max", conv(b, x), conv(b, x), b.weight(6, 1, 1)), 6, positive=True)))
    b = Builder()
    folded(b.model(b.norm(b.op("Max", conv(b, b.input("x", "N", 3, 6, 6))), 6, positive=True)))


def test_max_with_a_value_that_cannot_take_the_map_stays() -> None:
    b = Builder()
    x = b.input("x", "N", 3, 6, 6)
    refused(b.model(b.norm(b.op("Max", conv(b, x), b.op("Tanh", conv(b, x))), 6, positive=True)), "NONLINEAR")


@pytest.mark.parametrize("slot", [0, 1])
@pytest.mark.parametrize("constant", [True, False])
def test_where_takes_any_scale(slot: int, constant: bool) -> None:
    b = Builder()
    x = b.input("x", "N", 3, 6, 6)
    condition = b.op("Greater", b.op("ReduceMean", x, axes=[1]), b.weight(values=np.asarray(0, np.float32)))
    arms = [conv(b, x), b.weight(values=np.asarray(-2, np.float32)) if constant else conv(b, x)]
    arms = arms[::-1] if slot else arms
    folded(b.model(b.norm(b.op("Where", condition, *arms), 6)))
    b = Builder()
    x = b.input("x", "N", 3, 6, 6)
    condition = b.op("Greater", b.op("ReduceMean", x, axes=[1]), b.weight(values=np.asarray(0, np.float32)))
    arms = [b.norm(b.op("Tanh", conv(b, x)), 6), b.weight(6, 1, 1) if constant else conv(b, x)]
    arms = arms[::-1] if slot else arms
    folded(read(b, b.op("Where", condition, *arms)))


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("kind", ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2"])
@pytest.mark.parametrize("axes", [[2, 3], [-1], [0], [2]])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_reductions_of_other_axes(kind: str, axes: list[int], keepdims: int, opset: int) -> None:
    norm = kind in ("ReduceL1", "ReduceL2")

    def reduced(b: Builder, y: str) -> str:
        as_input = opset >= (13 if kind == "ReduceSum" else 18)
        if as_input:
            return b.op(kind, y, b.ints(*axes), keepdims=keepdims)
        return b.op(kind, y, axes=axes, keepdims=keepdims)

    positive = kind not in ("ReduceSum", "ReduceMean")
    b = Builder(opset=opset)
    y = reduced(b, conv(b, b.input("x", 2, 3, 6, 6)))
    rank = 4 if keepdims else 4 - len(axes)
    if 0 in axes and not keepdims:
        return  # the channels are then axis 0, which a BatchNormalization does not normalize
    folded(b.model(b.norm(y, 6, positive=positive, shift=not norm)))
    b = Builder(opset=opset)
    y = b.norm(b.op("Tanh", conv(b, b.input("x", 2, 3, 6, 6))), 6, positive=positive, shift=not norm)
    y = reduced(b, y)
    if rank == 2:
        folded(b.model(b.op("Gemm", y, b.weight(6, 6))))
    elif rank == 4:
        folded(b.model(b.op("Conv", y, b.weight(4, 6, 1, 1))))
    else:
        folded(b.model(b.op("Conv", y, b.weight(4, 6, 1))))


@pytest.mark.parametrize("kind", ["ReduceSum", "ReduceMax", "ReduceL2"])
def test_reductions_of_the_channels(kind: str) -> None:
    b = Builder(opset=12)
    y = b.norm(b.op("Tanh", conv(b, b.input("x", 2, 3, 6, 6))), 6, positive=True, shift=kind == "ReduceSum")
    refused(b.model(b.op("Tanh", b.op(kind, y, axes=[1]))), "WRONG_AXIS")
    b = Builder(opset=12)
    y = b.norm(b.op("Tanh", conv(b, b.input("x", 2, 3, 6, 6))), 6)
    refused(b.model(b.op("Tanh", b.op("ReduceL1", y, axes=[2]))), "NONLINEAR")


def test_a_sum_over_a_size_that_is_not_known_takes_a_scale_alone() -> None:
    for shift, left in ((False, 0), (True, 1)):
        b = Builder(opset=12)
        y = b.op("ReduceSum", conv(b, b.input("x", 1, 3, "H", 6)), axes=[2])
        folded(b.model(b.norm(y, 6, shift=shift)), left=left)


def test_a_sum_of_nothing_is_the_value() -> None:
    b = Builder()
    y = b.op("ReduceSum", conv(b, b.input("x", 1, 3, 6, 6)), noop_with_empty_axes=1)
    folded(b.model(b.norm(y, 6)))


@pytest.mark.parametrize("kind", ["LpPool", "GlobalLpPool"])
@pytest.mark.parametrize("positive", [True, False])
def test_norm_pools(kind: str, positive: bool) -> None:
    attributes: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]} if kind == "LpPool" else {}
    b = Builder()
    y = b.op(kind, conv(b, b.input("x", 1, 3, 6, 6)), **attributes)
    up = b.model(b.norm(y, 6, positive=positive, shift=False))
    folded(up) if positive else refused(up, "NEGATIVE_SCALE")
    b = Builder()
    y = b.norm(b.op("Tanh", conv(b, b.input("x", 1, 3, 6, 6))), 6, positive=positive, shift=False)
    folded(read(b, b.op(kind, y, **attributes)))


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("constant", [False, True])
def test_mean_of_values(count: int, constant: bool) -> None:
    b = Builder()
    x = b.input("x", "N", 3, 6, 6)
    extra = [b.weight(6, 1, 1)] if constant else []
    folded(b.model(b.norm(b.op("Mean", *(conv(b, x) for _ in range(count)), *extra), 6)))
    b = Builder()
    x = b.input("x", "N", 3, 6, 6)
    extra = [b.weight(6, 1, 1)] if constant else []
    y = b.norm(b.op("Tanh", conv(b, x)), 6)
    folded(read(b, b.op("Mean", y, *(conv(b, x) for _ in range(count - 1)), *extra)))


MUTANTS: dict[str, Law] = {
    "Max": Law(lambda op, out, a: [(Need(0, a),)], LAWS["", "Max"].down, LAWS["", "Max"].attributes),
    "Where": Law(LAWS["", "Where"].up, lambda op, given: [(Carry(next(iter(given.values()))),)], frozenset()),
    "ReduceSum": Law(LAWS["", "ReduceMean"].up, LAWS["", "ReduceMean"].down, LAWS["", "ReduceSum"].attributes),
    "Mean": Law(LAWS["", "Sum"].up, LAWS["", "Sum"].down, frozenset()),
}


@pytest.mark.parametrize("kind", MUTANTS)
@pytest.mark.parametrize("down", [False, True])
def test_mutants_are_caught(kind: str, down: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    law = LAWS["", kind]
    wrong = MUTANTS[kind]
    if (wrong.down is law.down and down) or (wrong.up is law.up and not down):
        pytest.skip("the other direction is the mutant's")
    monkeypatch.setitem(LAWS, ("", kind), wrong)
    b = Builder(opset=12)
    x = b.input("x", 2, 3, 6, 6)
    y = conv(b, x)
    y = b.norm(b.op("Tanh", y), 6, positive=True) if down else y
    if kind == "Where":
        mean = b.op("ReduceMean", x, axes=[1])
        y = b.op(kind, b.op("Greater", mean, b.weight(values=np.asarray(0, np.float32))), y, conv(b, x))
    elif kind == "ReduceSum":
        y = b.op(kind, y, axes=[2])
    else:
        y = b.op(kind, y, conv(b, x))
    model = read(b, y) if down else b.model(b.norm(y, 6, positive=True))
    result = fold(model)
    assert result.changed and difference(model, result) > 1e-3
