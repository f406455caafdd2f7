"""ONNX Runtime's fused ops: a map behind the activation stays, one before it goes in. The runtime is the judge."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnfold.fold import FoldResult, fold
from tests.graphs import EPSILON

DOMAIN = "com.microsoft"
runtime = pytest.importorskip("onnxruntime")


def model(
    kind: str, shape: tuple[int, ...], weight: tuple[int, ...], *, down: bool, **attributes: Any
) -> onnx.ModelProto:
    """A fused op with a BatchNormalization behind it, or before it and a Tanh."""
    random = np.random.default_rng(0)
    tensors = {"w": random.normal(size=weight), "c": random.normal(size=6), "s": random.uniform(0.5, 2, 6),
               "b": random.normal(size=6), "m": random.normal(size=6), "v": random.uniform(0.5, 2, 6)}  # fmt: skip
    tensors["s"][1::2] *= -1
    operands = ["w", "c"] if kind != "FusedMatMul" else ["w"]
    norm = ["s", "b", "m", "v"]
    nodes = [helper.make_node("Tanh", ["x"], ["a"])]
    if down:
        nodes.append(helper.make_node("BatchNormalization", ["a", *norm], ["n"], epsilon=EPSILON, name="bn"))
    out = "y" if down else "h"
    nodes.append(helper.make_node(kind, ["n" if down else "a", *operands], [out], domain=DOMAIN, **attributes))
    if not down:
        nodes.append(helper.make_node("BatchNormalization", ["h", *norm], ["y"], epsilon=EPSILON, name="bn"))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    protos = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in tensors.items()]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], protos)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def same(original: onnx.ModelProto, result: FoldResult) -> None:
    random = np.random.default_rng(1)
    feeds = {
        i.name: random.normal(size=[d.dim_value for d in i.type.tensor_type.shape.dim]).astype(np.float32)
        for i in original.graph.input
    }
    outputs = [
        runtime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)[0]
        for m in (original, result.model)
    ]
    assert np.abs(outputs[0] - outputs[1]).max() < 1e-4 * np.abs(outputs[0]).max()
    assert result.certificate().passed


CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "FusedConv": ((2, 6, 6, 6), (6, 6, 1, 1), {}),
    "FusedGemm": ((4, 6), (6, 6), {"transB": 1, "alpha": 0.5, "beta": 0.7}),
    "FusedMatMul": ((4, 6), (6, 6), {}),
}


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("activation", ["", "Relu"])
@pytest.mark.parametrize("down", [False, True])
def test_an_activation_ends_the_way_up_alone(kind: str, activation: str, down: bool) -> None:
    shape, weight, attributes = CASES[kind]
    if kind == "FusedMatMul":
        if activation:
            pytest.skip("it has no activation")
        if down:  # its shift is carried on, and nobody takes it behind the product
            attributes = {"alpha": 1.0}
    elif kind == "FusedGemm" and not activation:
        pytest.skip("the runtime has it with an activation only")
    elif activation:
        attributes = {**attributes, "activation": activation}
    original = model(kind, shape, weight, down=down, **attributes)
    result = fold(original)
    folds = down or not activation
    assert bool(result.report.folded) == folds, result.report
    if folds:
        same(original, result)
    else:
        (kept,) = result.report.kept
        assert "NONLINEAR" in {kept.reason, *(a.reason for a in kept.alternatives)}


@pytest.mark.parametrize("attributes", [{"transA": 1}, {"transB": 1}])
def test_a_turned_product_has_no_law(attributes: dict[str, Any]) -> None:
    original = model("FusedMatMul", (6, 6), (6, 6), down=False, **attributes)
    assert not fold(original).changed


def test_padding_stays_in_the_way_of_a_fused_convolution() -> None:
    original = model("FusedConv", (2, 6, 6, 6), (6, 6, 3, 3), down=True, pads=[1, 1, 1, 1], activation="Relu")
    (kept,) = fold(original).report.kept
    assert "PADDED" in {kept.reason, *(a.reason for a in kept.alternatives)}
