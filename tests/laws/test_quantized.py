"""A dequantized weight takes scales, of either sign, exactly; between Q and DQ nothing moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from bnfold.affine import Affine
from bnfold.fold import FoldResult, fold
from bnfold.gauge import Answer, Law, Need, Op, Refusal
from bnfold.laws import LAWS
from tests.graphs import Builder, count, difference, folded, refused


def quantized(
    b: Builder, shape: tuple[int, ...], dtype: Any, scale: NDArray[Any], zero: bool, **attributes: Any
) -> str:
    """DequantizeLinear of a random weight that has the smallest and the largest integer in it."""
    limits = np.iinfo(dtype)
    q = b.random.integers(limits.min, limits.max + 1, shape).astype(dtype)
    q.reshape(-1)[:2] = limits.min, limits.max
    names = [b.weight(values=q), b.weight(values=scale.astype(np.float32))]
    if zero:
        middle = b.random.integers(limits.min // 2, limits.max // 2 + 1, scale.shape).astype(dtype)
        names.append(b.weight(values=np.asarray(middle, dtype)))
    return b.op("DequantizeLinear", *names, **attributes)


def ran(model: onnx.ModelProto, left: int = 0) -> FoldResult:
    """Folded, and passed by the runtime as well: it knows the integers' rules by itself."""
    result = folded(model, left)
    verdict = result.check()
    assert verdict, str(verdict)
    return result


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize("positive", [True, False])
def test_a_scale_for_each_channel(dtype: Any, zero: bool, positive: bool) -> None:
    b = Builder()
    w = quantized(b, (6, 3, 3, 3), dtype, b.random.uniform(0.01, 0.02, 6), zero, axis=0)
    y = b.op("Conv", b.input("x", 2, 3, 8, 7), w, b.weight(6))
    result = ran(b.model(b.norm(y, 6, positive=positive)))
    assert [n.op_type for n in result.model.graph.node] == ["DequantizeLinear", "Conv"]
    integers = [t.data_type for t in result.model.graph.initializer if t.data_type != onnx.TensorProto.FLOAT]
    assert set(integers) <= {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}


@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize("positive", [True, False])
def test_one_scale_for_the_tensor_becomes_one_for_each_channel(zero: bool, positive: bool) -> None:
    b = Builder()
    w = quantized(b, (6, 3, 3, 3), np.int8, np.asarray(0.015), zero)
    y = b.op("Conv", b.input("x", 2, 3, 8, 7), w)
    ran(b.model(b.norm(y, 6, positive=positive)))
    b = Builder(opset=11)  # where there is no axis
    w = quantized(b, (6, 3, 3, 3), np.int8, np.asarray(0.015), zero)
    y = b.op("Conv", b.input("x", 2, 3, 8, 7), w)
    refused(b.model(b.norm(y, 6, positive=True)), "WRONG_AXIS")
    b = Builder(opset=11)
    w = quantized(b, (6, 3, 3, 3), np.int8, np.asarray(0.015), zero)
    y = b.op("Conv", b.input("x", 2, 3, 8, 7), w)
    factor = 0.3 if positive else -0.3
    assert fold(b.model(b.op("Mul", y, b.weight(values=np.asarray(factor, np.float32))))).report.folded


def test_a_gemm_with_a_dequantized_weight() -> None:
    for axis, transposed in ((0, 1), (1, 0)):
        b = Builder()
        w = quantized(b, (6, 6), np.int8, b.random.uniform(0.01, 0.02, 6), True, axis=axis)
        y = b.op("Gemm", b.input("x", 4, 6), w, b.weight(6), transB=transposed)
        ran(b.model(b.norm(y, 6)))


def test_scales_along_the_other_axis_stay() -> None:
    b = Builder()
    w = quantized(b, (6, 6, 1, 1), np.int8, b.random.uniform(0.01, 0.02, 6), True, axis=1)
    y = b.op("Conv", b.input("x", 2, 6, 8, 7), w)
    refused(b.model(b.norm(y, 6)), "WRONG_AXIS")


def test_a_scale_of_zero_stays() -> None:
    b = Builder()
    w = quantized(b, (6, 3, 3, 3), np.int8, b.random.uniform(0.01, 0.02, 6), True, axis=0)
    y = b.op("Conv", b.input("x", 2, 3, 8, 7), w)
    zero = b.weight(values=np.asarray([1, 0, 2, 3, 4, 5], np.float32).reshape(6, 1, 1))
    (kept,) = fold(b.model(b.op("Mul", y, zero))).report.kept
    assert "ZERO_SCALE" in {kept.reason, *(a.reason for a in kept.alternatives)}


def test_a_dequantized_bias_becomes_a_floating_one_where_it_takes_more_than_a_scale() -> None:
    b = Builder()
    w = quantized(b, (6, 3, 3, 3), np.int8, b.random.uniform(0.01, 0.02, 6), False, axis=0)
    bias = quantized(b, (6,), np.int32, np.full(6, 1e-9), False, axis=0)
    y = b.op("Conv", b.input("x", 2, 3, 8, 7), w, bias)
    result = ran(b.model(b.norm(y, 6)))
    assert [n.op_type for n in result.model.graph.node] == ["DequantizeLinear", "Conv"]


@pytest.mark.parametrize("uniform", [True, False])
def test_blocks(uniform: bool) -> None:
    b = Builder(opset=21, ir_version=10)
    w = quantized(b, (6, 8), np.int8, b.random.uniform(0.01, 0.02, (6, 2)), False, axis=1, block_size=4)
    y = b.op("Gemm", b.input("x", 4, 8), w, transB=1)
    folded(b.model(b.norm(y, 6, positive=True, shift=not uniform)))  # rows lie across the blocks
    b = Builder(opset=21, ir_version=10)
    w = quantized(b, (8, 6), np.int8, b.random.uniform(0.01, 0.02, (8, 2)), False, axis=1, block_size=3)
    y = b.op("Gemm", b.input("x", 4, 8), w)
    refused(b.model(b.norm(y, 6, positive=True)), "WRONG_AXIS")


def test_nothing_passes_a_quantized_value() -> None:
    b = Builder()
    y = b.op("Conv", b.input("x", 2, 3, 8, 7), b.weight(6, 3, 3, 3))
    scale, zero = b.weight(values=np.asarray(0.05, np.float32)), b.weight(values=np.asarray(3, np.int8))
    y = b.op("DequantizeLinear", b.op("QuantizeLinear", y, scale, zero), scale, zero)
    result = fold(b.model(b.op("Tanh", b.norm(y, 6))))
    assert count(result.model) == 1
    (kept,) = result.report.unfolded
    assert "QUANTIZED" in {kept.reason, *(a.reason for a in kept.alternatives)}


def conv(b: Builder, w: str, *bias: str, **attributes: Any) -> str:
    return b.op("Conv", b.input("x", 2, 3, 8, 7), w, *bias, **attributes)


def drawn(b: Builder, *shape: int, axis: int = 0, size: int = 6) -> str:
    return quantized(b, shape, np.int8, b.random.uniform(0.01, 0.02, size), True, axis=axis)


def transposed(b: Builder) -> str:
    return b.op("ConvTranspose", b.input("x", 2, 3, 8, 7), drawn(b, 3, 6, 3, 3, axis=1))


def turned(b: Builder) -> str:
    w = b.op("Transpose", drawn(b, 6, 6, axis=-1), perm=[1, 0])
    return b.op("Gemm", b.input("x", 4, 6), w, b.weight(6), transB=1)


def reshaped(b: Builder) -> str:
    return conv(b, b.op("Reshape", drawn(b, 6, 27), b.ints(6, 3, 3, 3)))


def added(b: Builder) -> str:
    return b.op("Add", conv(b, drawn(b, 6, 3, 3, 3)), drawn(b, 6, 1, 1))


@pytest.mark.parametrize("make", [transposed, turned, reshaped])
@pytest.mark.parametrize("positive", [True, False])
def test_the_scale_finds_its_axis(make: Callable[[Builder], str], positive: bool) -> None:
    b = Builder()
    ran(b.model(b.norm(make(b), 6, positive=positive)))


@pytest.mark.parametrize("positive", [True, False])
def test_a_dequantized_constant_that_is_added_leaves_the_shift_to_others(positive: bool) -> None:
    b = Builder()
    ran(b.model(b.norm(added(b), 6, positive=positive)))


@pytest.mark.parametrize("positive", [True, False])
def test_a_depthwise_weight_takes_scales_from_both_sides(positive: bool) -> None:
    b = Builder()
    x = b.norm(b.op("Relu", b.input("x", 2, 6, 8, 7)), 6, positive=positive, shift=False)
    y = b.op("Conv", x, drawn(b, 6, 1, 3, 3), group=6)
    ran(b.model(b.norm(y, 6, positive=positive)))


@pytest.mark.parametrize("positive", [True, False])
def test_two_folds_into_one_constant(positive: bool) -> None:
    b = Builder()
    y = b.norm(conv(b, drawn(b, 6, 3, 3, 3)), 6, positive=positive)
    y = b.norm(b.op("Transpose", y, perm=[0, 1, 3, 2]), 6, positive=positive)
    ran(b.model(y))


@pytest.mark.parametrize("positive", [True, False])
def test_a_scale_that_another_constant_shares_is_copied(positive: bool) -> None:
    b = Builder()
    w = quantized(b, (6, 3, 3, 3), np.int8, np.asarray(0.01), True)
    other = b.op("DequantizeLinear", *b.nodes[0].input)
    x = b.input("x", 2, 3, 8, 7)
    ran(b.model(b.norm(b.op("Conv", x, w), 6, positive=positive), b.op("Conv", b.op("Relu", x), other)))


def test_a_dequantized_weight_with_another_reader_stays() -> None:
    b = Builder()
    w, x = drawn(b, 6, 3, 3, 3), b.input("x", 2, 3, 8, 7)
    other = b.op("Conv", b.op("Relu", x), w)
    refused(b.model(b.norm(b.op("Conv", x, w), 6), other), "NOT_CONSTANT")


@pytest.mark.parametrize("positive", [True, False])
def test_a_dequantized_bias_stays_one_under_scales_above_zero(positive: bool) -> None:
    b = Builder()
    bias = quantized(b, (6,), np.int32, np.full(6, 1e-9), False, axis=0)
    result = folded(b.model(b.norm(conv(b, drawn(b, 6, 3, 3, 3), bias), 6, positive=positive, shift=False)))
    assert [n.op_type for n in result.model.graph.node].count("DequantizeLinear") == (2 if positive else 1)


@pytest.mark.parametrize(("name", "opset"), [("int16", 21), ("int4", 21), ("uint4", 21), ("float8_e4m3fn", 19)])
def test_other_types_take_positive_scales(name: str, opset: int) -> None:
    for positive in (True, False):
        b = Builder(opset=opset, ir_version=10)
        dtype = {"int16": np.int16}.get(name) or getattr(ml_dtypes, name)
        w = b.weight(values=b.random.integers(0, 8, (6, 3, 3, 3)).astype(dtype))
        d = b.weight(values=b.random.uniform(0.01, 0.02, 6).astype(np.float32))
        model = b.model(b.norm(conv(b, b.op("DequantizeLinear", w, d, axis=0)), 6, positive=positive))
        if positive:
            result = folded(model)
            assert [t.raw_data for t in result.model.graph.initializer if t.name == w] == [
                t.raw_data for t in model.graph.initializer if t.name == w
            ]
        else:
            refused(model, "NEGATIVE_SCALE")


def test_a_scale_that_can_only_be_a_power_of_two_stays() -> None:
    b = Builder(opset=23, ir_version=11)
    w = b.weight(values=b.random.integers(-8, 8, (6, 3, 3, 3)).astype(np.int8))
    d = b.weight(values=np.exp2(b.random.integers(-3, 3, 6)).astype(ml_dtypes.float8_e8m0fnu))
    y = conv(b, b.op("DequantizeLinear", w, d, axis=0, output_dtype=onnx.TensorProto.FLOAT))
    refused(b.model(b.norm(y, 6, positive=True)), "QUANTIZED")


@pytest.mark.parametrize("shift", [True, False])
def test_what_is_before_a_dequantized_weight_stays(shift: bool) -> None:
    """Its scales lie along the rows, and a map from before would have to go into the columns."""
    b = Builder()
    y = b.op("Conv", b.norm(b.op("Tanh", b.input("x", 2, 6, 8, 7)), 6, shift=shift), drawn(b, 6, 6, 1, 1))
    refused(b.model(y), "QUANTIZED" if shift else "WRONG_AXIS")


def test_a_weight_that_is_quantized_in_the_graph_stays() -> None:
    b = Builder()
    scale, zero = b.weight(values=np.asarray(0.02, np.float32)), b.weight(values=np.asarray(0, np.int8))
    w = b.op("DequantizeLinear", b.op("QuantizeLinear", b.weight(6, 3, 3, 3), scale, zero), scale, zero)
    refused(b.model(b.norm(conv(b, w), 6)), "QUANTIZED")


def test_nothing_enters_quantized_activations_and_quantized_ops_are_left_alone() -> None:
    b = Builder()
    step, zero = b.weight(values=np.asarray(0.05, np.float32)), b.weight(values=np.asarray(3, np.uint8))
    x = b.op("QuantizeLinear", b.input("x", 2, 6, 8, 7), step, zero)
    w = b.weight(values=b.random.integers(-9, 9, (6, 6, 1, 1)).astype(np.int8))
    wide, none = b.weight(values=np.full(6, 0.1, np.float32)), b.weight(values=np.zeros(6, np.int8))
    y = b.op("QLinearConv", x, step, zero, w, wide, none, step, zero)
    y = b.op("DequantizeLinear", y, step, zero)
    y = b.op("Relu", b.norm(y, 6))  # what makes it is quantized, and what reads it is not linear
    model = b.model(b.op("Sigmoid", y))
    result = fold(model)
    (kept,) = result.report.unfolded
    assert "QUANTIZED" in {kept.reason, *(a.reason for a in kept.alternatives)}
    assert result.model.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


@pytest.mark.parametrize("mutant", ["zero point forgotten", "integers forgotten"])
def test_mutants_are_caught(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    law = LAWS["", "DequantizeLinear"]
    forgotten = 2 if mutant.startswith("zero") else 0

    def up(op: Op, output: int, a: Affine) -> Answer:
        answer = law.up(op, output, a)
        if isinstance(answer, Refusal):
            return answer
        options = [o for o in answer if not isinstance(o, Refusal)]
        return [tuple(x for x in o if not (isinstance(x, Need) and x.slot == forgotten)) for o in options]

    monkeypatch.setitem(LAWS, ("", "DequantizeLinear"), Law(up, law.down, law.attributes))
    b = Builder()
    w = quantized(b, (6, 3, 3, 3), np.int8, b.random.uniform(0.01, 0.02, 6), True, axis=0)
    model = b.model(b.norm(b.op("Conv", b.input("x", 2, 3, 8, 7), w, b.weight(6)), 6))
    result = fold(model)
    assert result.changed and difference(model, result) > 1e-3


def test_a_shift_in_front_of_a_quantized_weight_says_what_is_in_the_way() -> None:
    b = Builder()
    w = quantized(b, (6, 6, 1, 1), np.int8, b.random.uniform(0.01, 0.02, 6), True, axis=0)
    shift = b.weight(values=np.asarray([1, 2, 3, 4, 5, 6], np.float32).reshape(6, 1, 1))
    y = b.op("Add", b.op("Tanh", b.input("x", 2, 6, 8, 7)), shift)
    (kept,) = fold(b.model(b.op("Conv", y, w))).report.kept
    assert "QUANTIZED" in {kept.reason, *(a.reason for a in kept.alternatives)}


def test_a_dequantized_bias_of_a_gemm() -> None:
    b = Builder()
    w = quantized(b, (6, 6), np.int8, b.random.uniform(0.01, 0.02, 6), True, axis=0)
    bias = quantized(b, (6,), np.int32, np.full(6, 1e-9), False, axis=0)
    y = b.op("Gemm", b.input("x", 4, 6), w, bias, transB=1, beta=0.5)
    ran(b.model(b.norm(y, 6)))
