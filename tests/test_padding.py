"""BatchNormalization in front of a padded convolution: what is exact all the same, what flags allow, what stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import bnfold
from bnfold.cli import main
from bnfold.fold import FoldResult
from tests.graphs import Builder, count, difference


def padded(b: Builder, y: str, channels: int = 6) -> onnx.ModelProto:
    return b.model(b.op("Conv", y, b.weight(4, channels, 3, 3), pads=[1, 1, 1, 1]))


def relu_norm(*, pool: bool, positive: bool = False, opset: int = 17) -> onnx.ModelProto:
    b = Builder(opset=opset)
    y = b.op("Relu", b.op("Conv", b.input("x", 1, 6, 9, 8), b.weight(6, 6, 3, 3), b.weight(6), pads=[1, 1, 1, 1]))
    if pool:
        y = b.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    return padded(b, b.norm(y, 6, positive=positive))


def same(model: onnx.ModelProto, result: FoldResult) -> None:
    onnx.checker.check_model(result.model, full_check=True)
    assert difference(model, result) < 1e-9
    assert result.certificate().passed
    assert result.check()


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("positive", [False, True])
def test_relu_becomes_max_only_when_asked(pool: bool, positive: bool) -> None:
    model = relu_norm(pool=pool, positive=positive)
    left = bnfold.fold(model)
    (kept,) = left.report.kept
    assert "PADDED" in {kept.reason, *(a.reason for a in kept.alternatives)}
    assert not left.changed
    result = bnfold.fold(model, aggressive=True)
    assert count(result.model) == 0, result.report
    assert "Max" in [n.op_type for n in result.model.graph.node]
    same(model, result)
    again = bnfold.fold(result.model, aggressive=True)
    assert not again.report.folded


def test_max_does_not_broadcast_before_opset_8() -> None:
    assert count(bnfold.fold(relu_norm(pool=False, opset=7), aggressive=True).model) == 1


def test_a_channel_of_scale_zero_becomes_its_shift() -> None:
    model = relu_norm(pool=False)
    gamma = next(n for n in model.graph.node if n.op_type == "BatchNormalization").input[1]
    for t in model.graph.initializer:
        if t.name == gamma:
            values = onnx.numpy_helper.to_array(t).copy()
            values[[1, 4]] = 0.0
            t.CopyFrom(onnx.numpy_helper.from_array(values, gamma))
    result = bnfold.fold(model, aggressive=True)
    assert count(result.model) == 0, result.report
    same(model, result)


@pytest.mark.parametrize("aggressive", [False, True])
def test_another_reader_of_the_relu_is_given_the_inverse_or_it_stays(aggressive: bool) -> None:
    b = Builder()
    y = b.op("Relu", b.op("Conv", b.input("x", 1, 6, 9, 8), b.weight(6, 6, 3, 3), b.weight(6)))
    z = b.op("Conv", b.norm(y, 6), b.weight(6, 6, 3, 3), pads=[1, 1, 1, 1])
    linear = b.model(b.op("Add", z, b.op("Conv", y, b.weight(6, 6, 1, 1))))
    result = bnfold.fold(linear, aggressive=aggressive)
    assert count(result.model) == (0 if aggressive else 1), result.report
    same(linear, result)
    b = Builder()
    y = b.op("Relu", b.op("Conv", b.input("x", 1, 6, 9, 8), b.weight(6, 6, 3, 3), b.weight(6)))
    z = b.op("Conv", b.norm(y, 6), b.weight(6, 6, 3, 3), pads=[1, 1, 1, 1])
    curved = b.model(b.op("Add", z, b.op("Tanh", y)))
    assert count(bnfold.fold(curved, aggressive=aggressive).model) == 1


def test_the_shift_goes_up_and_the_scale_down_where_only_that_is_exact() -> None:
    b = Builder()
    y = b.op("Conv", b.input("x", 1, 6, 9, 8), b.weight(6, 6, 3, 3))
    y = b.op("MaxPool", y, kernel_shape=[3, 3], pads=[1, 1, 1, 1])  # negative scales cannot pass upward
    model = padded(b, b.norm(y, 6))
    result = bnfold.fold(model)
    assert count(result.model) == 0, result.report
    assert [f.direction for f in result.report.folded] == ["both"]
    same(model, result)


def test_the_scale_goes_up_and_the_shift_down_where_only_that_is_exact() -> None:
    b = Builder()
    x = b.input("x", 1, 6, 9, 8)
    y = b.norm(b.op("Relu", b.op("Conv", x, b.weight(6, 6, 3, 3), pads=[1, 1, 1, 1])), 6, positive=True)
    z = b.op("Add", y, b.op("Tanh", x))  # which cannot be divided by the scale
    model = b.model(b.op("Conv", z, b.weight(4, 6, 3, 3)))
    result = bnfold.fold(model)
    assert count(result.model) == 0, result.report
    assert [f.direction for f in result.report.folded] == ["both"]
    same(model, result)


def test_partial_leaves_an_add() -> None:
    b = Builder()
    y = b.op("Tanh", b.op("Conv", b.input("x", 1, 6, 9, 8), b.weight(6, 6, 3, 3)))
    model = padded(b, b.norm(y, 6))
    assert not bnfold.fold(model).changed
    result = bnfold.fold(model, partial=True)
    assert [n.op_type for n in result.model.graph.node] == ["Conv", "Tanh", "Add", "Conv"]
    assert [f.partial for f in result.report.folded] == [True]
    assert result.report.to_dict()["folded"][0]["partial"] is True
    same(model, result)
    assert not bnfold.fold(result.model, partial=True).report.folded


def test_partial_takes_the_whole_where_it_can() -> None:
    b = Builder()
    model = padded(b, b.norm(b.op("Conv", b.input("x", 1, 6, 9, 8), b.weight(6, 6, 3, 3)), 6))
    result = bnfold.fold(model, partial=True, aggressive=True)
    assert [n.op_type for n in result.model.graph.node] == ["Conv", "Conv"]


def test_several_affines_whose_shifts_cancel_fold_into_a_padded_convolution() -> None:
    b = Builder()
    y = b.op("Tanh", b.op("Conv", b.input("x", 1, 6, 9, 8), b.weight(6, 6, 3, 3)))
    c = b.weight(values=np.full((6, 1, 1), 0.75, np.float32))
    y = b.op("Sub", b.op("Mul", b.op("Add", y, c), b.weight(values=np.full((6, 1, 1), 2.0, np.float32))),
             b.weight(values=np.full((6, 1, 1), 1.5, np.float32)))  # fmt: skip
    model = padded(b, y)
    result = bnfold.fold(model)
    assert [n.op_type for n in result.model.graph.node] == ["Conv", "Tanh", "Conv"], result.report
    same(model, result)


def test_the_command_line_has_both_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(relu_norm(pool=False), path)
    assert main([str(path), "--aggressive"]) == 0
    assert "EQUIVALENT: 1 of 1" in capsys.readouterr().out
    assert main([str(path), "--partial", "-o", str(tmp_path / "partial.onnx")]) == 0
    out = capsys.readouterr().out
    assert "an Add stays" in out and "EQUIVALENT: 1 of 1" in out
