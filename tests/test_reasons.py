"""Every reason that a report can give: a small model for each, and what the report says of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import bnfold
from bnfold import loop, search
from bnfold.reasons import Reason
from tests.graphs import Builder, folded


def conv(b: Builder, x: str | None = None) -> str:
    return b.op("Conv", x or b.input("x", 2, 6, 5, 5), b.weight(6, 6, 1, 1), b.weight(6))


def boundary(b: Builder) -> str:
    return b.op("Tanh", b.norm(b.input("x", 2, 6, 5, 5), 6))


def conflict(b: Builder) -> str:
    y = conv(b)
    return b.op("Sub", b.op("Add", b.norm(b.op("Sub", y, y), 6), y), y)


def nonlinear(b: Builder) -> str:
    return b.op("Tanh", b.norm(b.op("Tanh", conv(b)), 6))


def padded(b: Builder) -> str:
    return b.op("Conv", b.norm(b.op("Tanh", conv(b)), 6), b.weight(6, 6, 3, 3), pads=[1] * 4)


def negative(b: Builder) -> str:
    return b.op("Tanh", b.norm(b.op("Relu", conv(b)), 6, shift=False))


def zero(b: Builder) -> str:
    y = conv(b)
    z = b.norm(y, 6)
    b.weights[b.nodes[-1].input[1]] = np.asarray([1, 0, 1, 1, 1, 1], np.float32)
    return b.op("Add", b.op("Tanh", z), b.op("Tanh", conv(b, y)))


def wrong_axis(b: Builder) -> str:
    return b.op("Tanh", b.op("Add", b.op("Mul", conv(b), b.weight(5)), b.weight(5)))


def not_constant(b: Builder) -> str:
    y = b.norm(conv(b), 6)
    b.nodes[-1].input[1] = b.input("gamma", 6)
    return y


def overridable(b: Builder) -> str:
    y = b.norm(conv(b), 6)
    b.inputs.append(helper.make_tensor_value_info(b.nodes[-1].input[1], onnx.TensorProto.FLOAT, [6]))
    return y


def training(b: Builder) -> str:
    y = b.norm(conv(b), 6)
    b.nodes[-1].attribute.append(helper.make_attribute("training_mode", 1))
    b.nodes[-1].output.extend(["running_mean", "running_var"])
    return y


def bad_statistics(b: Builder) -> str:
    y = b.norm(conv(b), 6)
    b.weights[b.nodes[-1].input[4]] = np.asarray([1, 1, -1, 1, 1, np.nan], np.float32)
    return y


def malformed(b: Builder) -> str:
    y = b.norm(b.op("Transpose", conv(b), perm=[0, 2, 1, 3]), 5)
    for name in b.nodes[-1].input[1:]:
        b.weights[name] = np.ones(0, np.float32)  # for a value with five channels
    return b.op("Tanh", y)


def out_of_range(b: Builder) -> str:
    y = b.norm(conv(b), 6)
    b.weights[b.nodes[-1].input[1]] = np.full(6, 3e38, np.float32)
    b.weights[b.nodes[-1].input[4]] = np.full(6, 1e-12, np.float32)
    b.nodes[-1].attribute[0].f = 1e-12
    return y


def quantized(b: Builder) -> str:
    scale, point = b.weight(values=np.asarray(0.1, np.float32)), b.weight(values=np.asarray(0, np.int8))
    y = b.op("DequantizeLinear", b.op("QuantizeLinear", conv(b), scale, point), scale, point)
    return b.op("Tanh", b.norm(y, 6))


def unknown_shape(b: Builder) -> str:
    y = b.op("Reshape", b.op("Tanh", conv(b)), b.op("Cast", b.input("s", 3), to=onnx.TensorProto.INT64))
    return b.op("Tanh", b.op("Reshape", b.norm(y, 6), b.ints(-1, 5)))


def unknown_op(b: Builder) -> str:
    return b.op("Tanh", b.norm(b.op("GridSample", conv(b), b.input("grid", 2, 5, 5, 2)), 6))


def no_gain(b: Builder) -> str:
    y = b.op("MatMul", b.op("Tanh", b.input("x", 2, 6)), b.weight(6, 6))
    return b.op("Tanh", b.op("Add", b.op("Reshape", y, b.ints(2, 6, 1)), b.weight(6, 1)))


def growth(b: Builder) -> str:
    w = b.weight(6, 6, 1, 1)
    x = b.input("x", 2, 6, 5, 5)
    return b.op("Add", b.op("Tanh", b.norm(b.op("Conv", x, w), 6)), b.op("Abs", b.op("Conv", x, w)))


def folds(b: Builder) -> str:
    return b.norm(conv(b), 6)


CASES: dict[Reason, tuple[Callable[[Builder], str], dict[str, Any]]] = {
    Reason.GRAPH_BOUNDARY: (boundary, {}),
    Reason.CONFLICT: (conflict, {}),
    Reason.NONLINEAR: (nonlinear, {}),
    Reason.PADDED: (padded, {}),
    Reason.NEGATIVE_SCALE: (negative, {}),
    Reason.ZERO_SCALE: (zero, {}),
    Reason.WRONG_AXIS: (wrong_axis, {}),
    Reason.NOT_CONSTANT: (not_constant, {}),
    Reason.OVERRIDABLE: (overridable, {}),
    Reason.TRAINING_MODE: (training, {}),
    Reason.BAD_STATISTICS: (bad_statistics, {}),
    Reason.MALFORMED: (malformed, {}),
    Reason.OUT_OF_RANGE: (out_of_range, {}),
    Reason.QUANTIZED: (quantized, {}),
    Reason.UNKNOWN_SHAPE: (unknown_shape, {}),
    Reason.UNKNOWN_OP: (unknown_op, {}),
    Reason.NO_GAIN: (no_gain, {}),
    Reason.GROWTH: (growth, {"max_growth": 0}),
    Reason.SEARCH_BUDGET: (folds, {}),
    Reason.SKIPPED: (folds, {"skip": ["*"]}),
}


def built(make: Callable[[Builder], str]) -> onnx.ModelProto:
    """Without onnx's strict inference, which some of these do not pass."""
    b = Builder(opset=20, ir_version=9)
    y = make(b)
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in b.weights.items()]
    out = helper.make_tensor_value_info(y, onnx.TensorProto.FLOAT, None)
    graph = helper.make_graph(b.nodes, "g", b.inputs, [out], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def test_there_is_a_case_for_every_reason() -> None:
    assert set(CASES) == set(Reason)


@pytest.mark.parametrize("reason", CASES)
def test_the_reason_is_given_with_its_place_and_what_would_help(
    reason: Reason, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, options = CASES[reason]
    if reason is Reason.SEARCH_BUDGET:
        monkeypatch.setattr(search, "STEPS", 0)
        monkeypatch.setattr(loop, "pairs", lambda graph, nodes: {})  # the shortcut needs no search
    result = bnfold.fold(built(make), **options)
    (kept,) = [k for k in result.report.kept if reason in {k.reason, *(a.reason for a in k.alternatives)}]
    assert kept.message and kept.hint and kept.at
    assert all(a.message and a.at for a in kept.alternatives)
    text = " ".join(bnfold.fold(built(make), **options).report.to_dict()["kept"][0]["message"].split())
    assert text.endswith(".")


@pytest.mark.parametrize("opset", [1, 5, 6])
@pytest.mark.parametrize("test", [0, 1])
def test_the_oldest_opsets(opset: int, test: int) -> None:
    b = Builder(opset=opset, ir_version=3)
    y = b.norm(conv(b), 6)
    b.nodes[-1].attribute.append(helper.make_attribute("is_test", test))
    if opset < 6:
        b.nodes[-1].attribute.append(helper.make_attribute("consumed_inputs", [0, 0, 0, 1, 1]))
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in b.weights.items()]
    infos = [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors]
    out = helper.make_tensor_value_info(y, onnx.TensorProto.FLOAT, [2, 6, 5, 5])
    graph = helper.make_graph(b.nodes, "g", [*b.inputs, *infos], [out], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=3)
    result = bnfold.fold(model)
    if test:
        assert [n.op_type for n in result.model.graph.node] == ["Conv"]
        assert result.certificate().passed
        assert {t.name for t in result.model.graph.initializer} <= {i.name for i in result.model.graph.input}
    else:
        assert [k.reason for k in result.report.kept] == ["TRAINING_MODE"]


def test_the_newest_opset() -> None:
    b = Builder(opset=onnx.defs.onnx_opset_version(), ir_version=onnx.IR_VERSION)
    folded(b.model(b.norm(conv(b), 6)))
