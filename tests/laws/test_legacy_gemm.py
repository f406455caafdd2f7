"""Gemm before opset 7: C broadcasts when it is told to, on the columns."""

import pytest
from onnx import helper

from tests.graphs import Builder, count
from tests.laws.test_legacy_broadcast import compared


def norm(b: Builder, x: str, channels: int) -> str:
    name = b.norm(x, channels)
    b.nodes[-1].attribute.append(helper.make_attribute("is_test", 1))
    return name


@pytest.mark.parametrize("opset", [1, 6])
@pytest.mark.parametrize("shape", [(6,), (1, 6), (4, 6)])
@pytest.mark.parametrize("way", ["up", "down"])
def test_the_bias_takes_the_shift(opset: int, shape: tuple[int, ...], way: str) -> None:
    b = Builder(opset=opset)
    x = b.op("Tanh", b.input("x", 4, 5))
    if way == "down":
        x = norm(b, x, 5)
    y = b.op("Gemm", x, b.weight(5, 6), b.weight(*shape), alpha=0.5, beta=2.0, broadcast=int(shape != (4, 6)))
    result = compared(b.model(norm(b, y, 6) if way == "up" else y))
    assert count(result.model) == 0


def test_rows_stay() -> None:
    b = Builder(opset=6)
    x = b.op("Gemm", b.input("x", 6, 5), b.weight(5, 6), b.weight(6), broadcast=1)
    (kept,) = compared(b.model(b.op("Mul", x, b.weight(6, 1), broadcast=1, axis=0))).report.kept
    assert kept.reason == "WRONG_AXIS"
