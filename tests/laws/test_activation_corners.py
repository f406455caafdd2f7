"""Bounds, slopes and operands at their ends: infinite, missing, longer than the value, over no axes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from bnfold.fold import fold
from tests.graphs import Builder, count, difference, folded, refused

LARGEST = float(np.finfo(np.float32).max)


def made(b: Builder) -> str:
    return b.op("Conv", b.input("x", "N", 3, 6, 6), b.weight(6, 3, 1, 1))


def number(b: Builder, value: float) -> str:
    return b.weight(values=np.asarray(value, np.float32))


@pytest.mark.parametrize("bounds", [(0.25, np.inf), (-np.inf, 0.25), (-np.inf, np.inf), (0.25, LARGEST), (-LARGEST, 1)])
@pytest.mark.parametrize("scale", [0.5, 4.0])
@pytest.mark.parametrize("opset", [9, 17])
def test_a_bound_that_bounds_nothing_is_in_nobodys_way(bounds: tuple[float, float], scale: float, opset: int) -> None:
    b = Builder(opset=opset)
    low, high = bounds
    x = made(b)
    y = b.op("Clip", x, number(b, low), number(b, high)) if opset > 9 else b.op("Clip", x, min=low, max=high)
    result = folded(b.model(b.op("Mul", y, number(b, scale))))
    assert [n.op_type for n in result.model.graph.node] == ["Conv", "Clip"]


@pytest.mark.parametrize("kind", ["Max", "Min"])
def test_an_infinite_operand_stays_infinite(kind: str) -> None:
    b = Builder()
    y = b.op(kind, made(b), number(b, -np.inf if kind == "Max" else np.inf))
    folded(b.model(b.norm(y, 6, positive=True)))


@pytest.mark.parametrize("up", [True, False])
@pytest.mark.parametrize("scale", [0.125, -0.125])
def test_a_mask_of_infinities_stays_infinite(up: bool, scale: float) -> None:
    b = Builder()
    mask = b.weight(values=np.tri(6, dtype=np.bool_))
    x = made(b) if up else b.op("Mul", b.op("Tanh", made(b)), number(b, scale))
    y = b.op("Where", mask, x, number(b, -np.inf * np.sign(scale)))
    if up:
        y = b.op("Mul", y, number(b, scale))
        model = b.model(b.op("Softmax", y, axis=-1))
    else:
        y = b.op("Mul", b.op("Where", mask, y, number(b, 0.0)), number(b, 3.0))
        y = b.op("Where", mask, y, number(b, 0.0))
        model = b.model(b.op("Conv", y, b.weight(2, 6, 1, 1)))
    result = fold(model)
    assert [k.reason for k in result.report.kept] == []
    assert difference(model, result) < 1e-9
    assert result.certificate().passed


def test_infinity_by_zero_is_refused() -> None:
    b = Builder()
    y = b.op("Max", made(b), number(b, -np.inf))
    model = b.model(b.op("Mul", y, b.weight(values=np.arange(6, dtype=np.float32).reshape(6, 1, 1))))
    result = fold(model)
    assert not result.changed
    assert [k.reason for k in result.report.kept] == ["OUT_OF_RANGE"]


@pytest.mark.parametrize("scales", [np.full(6, 0.5), np.full(6, -2.0)])
def test_a_slope_with_more_axes_than_the_value_is_refused(scales: np.ndarray) -> None:
    b = Builder()
    y = b.op("PRelu", b.op("MatMul", b.input("x", 4, 6), b.weight(6, 6)), positive_slopes(b, 2, 1, 6))
    model = b.model(b.op("Mul", y, b.weight(values=scales.astype(np.float32))))
    result = fold(model)
    assert not result.changed
    assert "WRONG_AXIS" in {a.reason for k in result.report.kept for a in (k, *k.alternatives)}


def positive_slopes(b: Builder, *shape: int) -> str:
    return b.weight(values=np.full(shape, 0.5, np.float32))


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("axis", [1, 2, -1])
@pytest.mark.parametrize("positive", [True, False])
def test_hardmax_swallows_what_keeps_the_order(opset: int, axis: int, positive: bool) -> None:
    b = Builder(opset=opset)
    model = b.model(b.op("Hardmax", b.norm(b.op("Tanh", made(b)), 6, positive=positive), axis=axis))
    result = fold(model)
    assert count(result.model) == (0 if positive and axis != 1 else 1), result.report
    assert difference(model, result) == 0


@pytest.mark.parametrize("kind", ["ReduceL1", "ReduceL2"])
@pytest.mark.parametrize("positive", [True, False])
def test_a_norm_over_no_axes_keeps_only_positive_scales(kind: str, positive: bool) -> None:
    """Some runtimes make |x| of it, others leave x as it is."""
    b = Builder(opset=20)
    y = b.op(kind, b.norm(b.op("Tanh", made(b)), 6, positive=positive, shift=False), noop_with_empty_axes=1)
    model = b.model(b.op("Conv", y, b.weight(4, 6, 1, 1)))
    if positive:
        folded(model)
    else:
        refused(model, "NEGATIVE_SCALE")


@pytest.mark.parametrize("kind", ["Add", "Sub"])
@pytest.mark.parametrize("shape", [(6, 4, 4), (2, 6, 1, 1), (1, 1, 4, 1), (2, 1, 6, 1, 1), (1, 1, 1, 1, 1)])
@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("swapped", [True, False])
def test_a_constant_that_makes_the_value_larger_stays(
    kind: str, shape: tuple[int, ...], alike: bool, swapped: bool
) -> None:
    b = Builder()
    y = b.norm(b.op("Tanh", b.op("GlobalAveragePool", b.input("x", 1, 6, 4, 4))), 6)
    c = b.weight(values=np.full(shape, 0.5, np.float32)) if alike else b.weight(*shape)
    y = b.op(kind, c, y) if swapped else b.op(kind, y, c)
    if len(shape) == 5:
        y = b.op("Squeeze", y, b.ints(0)) if shape[0] == 1 else b.op("Reshape", y, b.ints(2, 6, 1, 1))
    model = b.model(b.op("Conv", y, b.weight(4, 6, 1, 1)))
    result = fold(model)
    onnx.checker.check_model(result.model, full_check=True)
    assert difference(model, result) < 1e-9
    assert kind in [n.op_type for n in result.model.graph.node]


@pytest.mark.parametrize("down", [True, False])
@pytest.mark.parametrize("shift", [True, False])
def test_a_constant_divided_by_a_value_takes_a_scale(down: bool, shift: bool) -> None:
    b = Builder()
    c = b.weight(6, 1, 1)
    if down:
        y = b.op("Div", c, b.norm(b.op("Exp", made(b)), 6, shift=shift))
        model = b.model(b.op("Tanh", y))
    else:
        model = b.model(b.norm(b.op("Div", c, b.op("Exp", made(b))), 6, shift=shift))
    refused(model, "NONLINEAR") if shift else folded(model)


@pytest.mark.parametrize("shape", [(6, 6, 1), (6, 6, 6), (1, 6, 6, 6)])
def test_the_certificate_reads_a_constant_that_is_the_same_along_an_axis(shape: tuple[int, ...]) -> None:
    """A square map: the size of what varies does not tell the axis."""
    b = Builder()
    rows = np.ascontiguousarray(np.broadcast_to(np.linspace(0.5, 2, 6, dtype=np.float32).reshape(6, 1), shape[-2:]))
    constant = b.weight(values=np.ascontiguousarray(np.broadcast_to(rows, shape)))
    y = b.op("Mul", b.op("Tanh", made(b)), constant)
    result = folded(b.model(b.op("Mul", y, b.weight(6, 1, 1))))
    assert result.changed
