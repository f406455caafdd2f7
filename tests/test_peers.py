"""Wrong answers that other tools give: each graph must come out folded right, or refused for the right reason."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnfold.fold import fold
from tests.graphs import Builder, count, folded, refused


@pytest.mark.parametrize("between", ["Reshape", "Transpose"])
def test_a_layout_op_between_matmul_and_norm_is_asked_which_axis(between: str) -> None:
    b = Builder()
    y = b.op("MatMul", b.input("x", 6, 6, 6), b.weight(6, 6))
    if between == "Transpose":
        refused(b.model(b.norm(b.op("Transpose", y, perm=[1, 0, 2]), 6)), "GRAPH_BOUNDARY")
    else:
        refused(b.model(b.norm(b.op("Reshape", y, b.ints(6, 6, 2, 3)), 6)), "GRAPH_BOUNDARY")


def test_training_mode_is_refused() -> None:
    b = Builder()
    y = b.op("Conv", b.input("x", "N", 3, 5, 5), b.weight(6, 3, 1, 1))
    model = b.model(b.norm(y, 6))
    model.graph.node[1].attribute.append(helper.make_attribute("training_mode", 1))
    result = fold(model)
    assert result.report.kept[0].reason == "TRAINING_MODE" and not result.changed


def test_a_bias_name_that_exists_and_a_bias_of_nothing() -> None:
    b = Builder()
    w = b.weight(6, 3, 1, 1, name="conv.weight")
    taken = b.weight(1, 6, 1, 1, name="conv.bias")
    y = b.op("Conv", b.input("x", "N", 3, 5, 5), w, "")
    z = b.op("Tanh", b.norm(y, 6))
    folded(b.model(b.op("Div", taken, z)))


def test_half_precision_that_would_overflow_is_refused() -> None:
    model = _half(variance=0.0, epsilon=1e-8)
    result = fold(model)
    assert result.report.kept[0].reason == "OUT_OF_RANGE"
    assert not result.changed


def test_half_data_with_float_parameters_loads() -> None:
    runtime = pytest.importorskip("onnxruntime")
    result = fold(_half(variance=1.0, epsilon=1e-3))
    assert count(result.model) == 0
    runtime.InferenceSession(result.model.SerializeToString(), providers=["CPUExecutionProvider"])


def _half(variance: float, epsilon: float) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    tensors = [numpy_helper.from_array((rng.normal(size=(4, 3, 1, 1)) * 8).astype(np.float16), "w")]
    tensors += [
        numpy_helper.from_array(np.full(4, value, np.float32), name)
        for name, value in (("s", 2.0), ("b", 0.5), ("m", 0.25), ("v", variance))
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["y"], epsilon=epsilon),
    ]
    half = TensorProto.FLOAT16
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", half, [1, 3, 4, 4])],
        [helper.make_tensor_value_info("y", half, [1, 4, 4, 4])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)


@pytest.mark.parametrize("epsilon", [0.8, 1e-3, 1e-9, None])
def test_epsilon_is_the_nodes_own(epsilon: float | None) -> None:
    b = Builder()
    y = b.op("Conv", b.input("x", "N", 3, 5, 5), b.weight(6, 3, 1, 1))
    model = b.model(b.norm(y, 6))
    del model.graph.node[1].attribute[:]
    if epsilon is not None:
        model.graph.node[1].attribute.append(helper.make_attribute("epsilon", epsilon))
    folded(model)


@pytest.mark.parametrize("ir_version", [3, 8])
@pytest.mark.parametrize("listed", ["all", "weight"])
def test_a_weight_that_is_also_an_input(ir_version: int, listed: str) -> None:
    b = Builder(opset=8, ir_version=ir_version)
    y = b.op("Conv", b.input("x", "N", 3, 5, 5), b.weight(6, 3, 1, 1, name="w"))
    model = b.model(b.norm(y, 6))
    for t in model.graph.initializer:
        if listed == "all" or t.name == "w":
            model.graph.input.append(helper.make_tensor_value_info(t.name, t.data_type, t.dims))
    result = fold(model)
    names = {i.name for i in result.model.graph.input}
    held = {t.name for t in result.model.graph.initializer}
    if ir_version == 3:
        assert count(result.model) == 0 and held <= names
    elif listed == "all":
        assert count(result.model) == 0 and names == {"x"}
        assert result.report.notes
        assert count(fold(model, keep_inputs=True).model) == 1
    else:
        assert result.report.kept[0].reason == "OVERRIDABLE" and not result.changed
        assert count(fold(model, freeze_inputs=True).model) == 0


def test_two_norms_that_share_gamma_and_beta() -> None:
    b = Builder()
    x = b.input("x", "N", 3, 5, 5)
    one = b.norm(b.op("Conv", x, b.weight(6, 3, 1, 1)), 6)
    two = b.norm(b.op("Conv", x, b.weight(6, 3, 1, 1)), 6)
    model = b.model(one, two)
    first, second = (n for n in model.graph.node if n.op_type == "BatchNormalization")
    second.input[1], second.input[2] = first.input[1], first.input[2]
    folded(model)


def test_bad_statistics_name_their_channels() -> None:
    b = Builder()
    y = b.op("Conv", b.input("x", "N", 3, 5, 5), b.weight(6, 3, 1, 1))
    y = b.norm(y, 6)
    b.weights["w4"][2] = np.nan
    (kept,) = fold(b.model(y)).report.kept
    assert kept.reason == "BAD_STATISTICS" and "channel 2" in kept.message
