"""Which nodes are affine maps, and which: BatchNormalization of every opset, arithmetic with constants that fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import bnfold
from bnfold.errors import MalformedModel
from tests.graphs import Builder, count, folded


def conv(b: Builder, channels: int = 6, *, spatial: tuple[int | str, ...] = (5, 5)) -> str:
    kernel = (1,) * len(spatial)
    return b.op("Conv", b.input("x", 2, 3, *spatial), b.weight(channels, 3, *kernel))


@pytest.mark.parametrize(
    ("opset", "attributes", "reason"),
    [
        (6, {"is_test": 1}, None), (6, {}, "TRAINING_MODE"), (6, {"is_test": 0}, "TRAINING_MODE"),
        (7, {}, None), (7, {"spatial": 1}, None), (8, {}, None), (9, {}, None), (13, {"momentum": 0.5}, None),
        (14, {}, None), (14, {"training_mode": 0}, None), (15, {}, None), (22, {}, None),
    ],
)  # fmt: skip
def test_every_opset(opset: int, attributes: dict[str, Any], reason: str | None) -> None:
    b = Builder(opset=opset, ir_version=8 if opset < 20 else 10)
    y = b.norm(conv(b), 6)
    for name, value in attributes.items():
        b.nodes[-1].attribute.append(onnx.helper.make_attribute(name, value))
    model = b.model(y)
    if reason is None:
        folded(model)
    else:
        assert [k.reason for k in bnfold.fold(model).report.kept] == [reason]


def test_training_mode_stays() -> None:
    b = Builder(opset=15)
    y = b.norm(conv(b), 6)
    b.nodes[-1].attribute.append(onnx.helper.make_attribute("training_mode", 1))
    b.nodes[-1].output.extend(["running_mean", "running_var"])
    result = bnfold.fold(b.model(y))
    assert [k.reason for k in result.report.kept] == ["TRAINING_MODE"]
    b = Builder(opset=9)
    y = b.norm(conv(b), 6)
    b.nodes[-1].output.extend(["mean", "var", "saved_mean", "saved_var"])
    model = b.model(y)
    assert [k.reason for k in bnfold.fold(model).report.kept] == ["TRAINING_MODE"]


@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_every_rank(rank: int) -> None:
    b = Builder()
    if rank == 2:
        y = b.op("Gemm", b.input("x", 4, 6), b.weight(6, 6), transB=1)
    else:
        y = conv(b, spatial=(6,) * (rank - 2))
    folded(b.model(b.norm(y, 6)))


@pytest.mark.parametrize("epsilon", [1e-9, 0.8, None])
def test_epsilon_is_the_nodes_own(epsilon: float | None) -> None:
    b = Builder()
    y = b.norm(conv(b), 6)
    del b.nodes[-1].attribute[:]
    if epsilon is not None:
        b.nodes[-1].attribute.append(onnx.helper.make_attribute("epsilon", epsilon))
    b.weights[b.nodes[-1].input[4]] = np.full(6, 1e-4, np.float32)
    folded(b.model(y))


@pytest.mark.parametrize("role", [1, 2, 3, 4])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_statistics_that_are_not_finite_are_refused_with_their_channels(role: int, value: float) -> None:
    b = Builder()
    y = b.norm(conv(b), 6)
    name = b.nodes[-1].input[role]
    b.weights[name] = np.asarray([1, 1, value, 1, 1, value], np.float32)
    (kept,) = bnfold.fold(b.model(y)).report.kept
    assert kept.reason == "BAD_STATISTICS"
    assert "2 channels (2, 5)" in kept.message


@pytest.mark.parametrize(("variance", "reason"), [(-0.01, "BAD_STATISTICS"), (-1.0, "BAD_STATISTICS"), (-0.005, None)])
def test_a_negative_variance(variance: float, reason: str | None) -> None:
    b = Builder()
    y = b.norm(conv(b), 6)
    name = b.nodes[-1].input[4]
    b.weights[name] = np.asarray([1, variance, 1, 1, 1, 1], np.float32)
    if variance == -0.01:  # what epsilon, a float32, takes away exactly
        b.weights[name][1] = -np.float32(0.01)
    model = b.model(y)
    if reason:
        (kept,) = bnfold.fold(model).report.kept
        assert kept.reason == reason and "channel 1" in kept.message
    else:
        result = folded(model)
        assert any("variance is negative in channel 1" in note for note in result.report.notes)


def test_parameters_of_different_lengths_are_malformed() -> None:
    b = Builder()
    y = b.norm(conv(b), 6)
    model = b.model(y)
    for t in model.graph.initializer:
        if t.name == b.nodes[-1].input[2]:
            t.CopyFrom(onnx.numpy_helper.from_array(np.ones(5, np.float32), t.name))
    with pytest.raises(MalformedModel, match="shapes"):
        bnfold.fold(model)


def test_a_parameter_for_each_activation() -> None:
    b = Builder(opset=8)
    y = b.norm(conv(b), 6)
    b.nodes[-1].attribute.append(onnx.helper.make_attribute("spatial", 0))
    for name in b.nodes[-1].input[1:]:
        b.weights[name] = np.random.default_rng(0).uniform(0.5, 1.5, (6, 5, 5)).astype(np.float32)
    result = bnfold.fold(b.model(y))
    (kept,) = result.report.kept
    assert "WRONG_AXIS" in {kept.reason, *(a.reason for a in kept.alternatives)}


@pytest.mark.parametrize("kind", ["Mul", "Add", "Sub", "Div"])
@pytest.mark.parametrize("first", [False, True])
def test_arithmetic_in_both_orders(kind: str, first: bool) -> None:
    b = Builder()
    y = conv(b)
    c = b.weight(values=np.asarray([1, 2, 3, -4, 5, 6], np.float32).reshape(6, 1, 1))
    result = bnfold.fold(b.model(b.op(kind, *((c, y) if first else (y, c)))))
    folds = not (kind == "Div" and first)  # c/x is no affine map
    assert bool(result.report.folded) == folds
    assert result.report.sources == int(folds)
    if folds:
        assert result.check()


def test_a_constant_longer_than_the_value_is_no_source() -> None:
    b = Builder()
    y = b.op("Mul", conv(b, 1), b.weight(6, 1, 1))
    assert bnfold.fold(b.model(y)).report.sources == 0
    b = Builder()
    y = b.op("Mul", conv(b), b.weight(1, 1, 6, 1, 1))
    assert bnfold.fold(b.model(y)).report.sources == 0


def test_a_vector_stands_on_the_last_axis_whatever_its_length() -> None:
    b = Builder()
    y = b.op("Mul", conv(b, spatial=(6, 6)), b.weight(6))
    result = bnfold.fold(b.model(b.op("Tanh", y)))
    (kept,) = result.report.kept
    assert "WRONG_AXIS" in {kept.reason, *(a.reason for a in kept.alternatives)}


@pytest.mark.parametrize("kind", ["Mul", "Add"])
def test_before_opset_7_an_attribute_says_where_a_constant_stands(kind: str) -> None:
    b = Builder(opset=6)
    y = b.op(kind, conv(b, spatial=(6, 6)), b.weight(6), broadcast=1, axis=1)
    result = bnfold.fold(b.model(y))
    assert [n.op_type for n in result.model.graph.node] == ["Conv"]
    assert result.certificate().passed
    y2 = Builder(opset=6)
    y = y2.op(kind, conv(y2, spatial=(6, 6)), y2.weight(6), broadcast=1)  # the last axis
    assert not bnfold.fold(y2.model(y)).changed


def test_a_normalization_written_as_arithmetic_folds_whole() -> None:
    b = Builder()
    y = conv(b)
    mean, deviation, gamma, beta = (b.weight(1, 6, 1, 1) for _ in range(4))
    b.weights[deviation] = np.abs(b.weights[deviation]) + np.float32(0.5)
    y = b.op("Add", b.op("Mul", b.op("Div", b.op("Sub", y, mean), deviation), gamma), beta)
    result = folded(b.model(y))
    assert [n.op_type for n in result.model.graph.node] == ["Conv"]
    assert [f.op for f in result.report.folded] == ["Sub + Div + Mul + Add"]


def test_caffe2s_scale_layer_behind_a_normalization() -> None:
    b = Builder()
    y = b.norm(conv(b), 6)
    scale = b.op("Unsqueeze", b.weight(6), b.ints(1, 2))
    shift = b.op("Unsqueeze", b.weight(6), b.ints(1, 2))
    result = folded(b.model(b.op("Add", b.op("Mul", y, scale), shift)))
    assert [n.op_type for n in result.model.graph.node] == ["Conv"]


def test_a_shape_that_nobody_declared_is_found() -> None:
    b = Builder()
    y = b.op("Conv", b.input("x", "N", 3, 8, 9), b.weight(6, 3, 3, 3))
    y = b.op("Transpose", b.op("Identity", b.op("Transpose", y, perm=[0, 2, 3, 1])), perm=[0, 3, 1, 2])
    model = b.model(b.norm(y, 6))
    del model.graph.value_info[:]
    assert count(folded(model).model) == 0


def test_unusable_statistics_are_a_reason_and_no_warning():
    """The Mul asks the BatchNormalization behind it; tests turn numpy's warnings into errors."""
    b = Builder()
    scaled = b.op("Mul", b.input("x", 1, 4, 3, 3), b.weight(4, 1, 1))
    y = b.norm(scaled, 4)
    b.weights[b.nodes[-1].input[4]][2] = -1.0
    kept = bnfold.fold(b.model(b.op("Sigmoid", y))).report.kept
    assert {each.reason for each in kept} >= {"BAD_STATISTICS"}
