"""Before opset 7 the second operand of Add, Sub, Mul and Div stands where the attribute `axis` says."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from bnfold.fold import FoldResult, fold
from tests.graphs import Builder, difference

KINDS = ["Add", "Sub", "Mul", "Div"]


def compared(model: onnx.ModelProto) -> FoldResult:
    """Fold, and compare; the checker does not come in, for onnx infers no shape behind such an op."""
    result = fold(model)
    assert difference(model, result) < 1e-9, result.report
    if result.changed:
        assert result.certificate().passed
    return result


def positive(b: Builder, *shape: int) -> str:
    return b.weight(values=np.random.default_rng(5).uniform(0.5, 2.0, shape).astype(np.float32))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axis", [1, -3])
@pytest.mark.parametrize("up", [True, False])
def test_a_vector_of_channels_on_a_map_that_is_as_wide(kind: str, axis: int, up: bool) -> None:
    b = Builder(opset=6)
    x = b.op("Conv", b.input("x", 2, 3, 6, 6), b.weight(6, 3, 1, 1))
    if up:
        y = b.op("Mul", b.op(kind, x, positive(b, 6), broadcast=1, axis=axis), positive(b, 6), broadcast=1, axis=1)
    else:
        y = b.op("Mul", b.op("Tanh", x), positive(b, 6), broadcast=1, axis=1)
        y = b.op("Conv", b.op(kind, y, positive(b, 6), broadcast=1, axis=axis), b.weight(4, 6, 3, 3))
    assert not compared(b.model(y)).report.kept


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["up", "down"])
def test_a_branch_of_channels_that_is_computed(kind: str, way: str) -> None:
    b = Builder(opset=6)
    x, z = b.input("x", 2, 6, 6, 6), b.input("z", 2, 6)
    wide = b.op("Conv", x, b.weight(6, 6, 1, 1))
    gate = b.op("MatMul", z, positive(b, 6, 6))
    if way == "down":
        gate = b.op("Mul", b.op("Tanh", gate), positive(b, 6), broadcast=1, axis=1)
    y = b.op(kind, wide, gate, broadcast=1, axis=0)
    if way == "up":
        y = b.op("Mul", y, positive(b, 6), broadcast=1, axis=1)
    model = b.model(b.op("Conv", y, b.weight(4, 6, 3, 3)) if way == "down" else b.op("Tanh", y))
    assert not compared(model).report.kept


@pytest.mark.parametrize("kind", KINDS)
def test_a_branch_of_channels_knows_nothing_of_a_scale_along_the_width(kind: str) -> None:
    b = Builder(opset=6)
    x, z = b.op("Tanh", b.input("x", 6, 6, 6, 6)), b.op("Conv", b.input("z", 6, 6, 6), b.weight(6, 6, 1))
    y = b.op(kind, x, z, broadcast=1, axis=0)  # its axes are samples, channels, rows
    compared(b.model(b.op("Tanh", b.op("Mul", y, positive(b, 6), broadcast=1, axis=3))))


@pytest.mark.parametrize("kind", ["Add", "Mul"])
def test_a_constant_with_all_axes_takes_what_the_smaller_value_has(kind: str) -> None:
    b = Builder(opset=6)
    z = b.op("Mul", b.op("Tanh", b.input("z", 6)), positive(b, 6))
    y = b.op(kind, b.weight(2, 6, 6, 6), z, broadcast=1, axis=1)
    compared(b.model(b.op("Conv", y, b.weight(4, 6, 3, 3))))


@pytest.mark.parametrize("kind", ["Mul", "Div", "Add"])
def test_the_value_keeps_the_shape_of_the_first_operand(kind: str) -> None:
    b = Builder(opset=6)
    x = b.op("Conv", b.input("x", 2, 3, 6, 4), b.weight(6, 3, 1, 1))
    y = b.op(kind, x, positive(b, 6), broadcast=1, axis=1)  # 6 channels stand on no axis of 4
    assert not compared(b.model(b.op("Conv", y, b.weight(4, 6, 3, 3)))).report.kept


def test_a_single_factor_does_not_become_one_for_each_channel() -> None:
    b = Builder(opset=6)
    y = b.op("Mul", b.op("Tanh", b.input("x", 2, 6, 5, 5)), b.weight(1), broadcast=1)  # it stands on the last axis
    model = b.model(b.op("Tanh", b.op("Mul", y, positive(b, 6), broadcast=1, axis=1)))
    result = compared(model)
    held = {t.name: tuple(t.dims) for t in result.model.graph.initializer}
    assert [held[n.input[1]] for n in result.model.graph.node if n.op_type == "Mul"] == [(6,)]
