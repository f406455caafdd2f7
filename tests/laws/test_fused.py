"""ONNX Runtime's fused ops: a map behind the activation stays, one before it goes in. The runtime is the judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnfold.affine import Affine
from bnfold.fold import FoldResult, fold
from bnfold.gauge import Answer, Need, Op, Refusal
from bnfold.laws import LAWS
from bnfold.laws.convolution import conv_up
from tests.graphs import EPSILON, Builder

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
    assert difference(original, result.model) < 1e-4
    assert result.certificate().passed


def difference(original: onnx.ModelProto, candidate: onnx.ModelProto) -> float:
    """The largest difference of the runtime's outputs, relative to the largest output."""
    random = np.random.default_rng(1)
    feeds = {
        i.name: random.normal(size=[d.dim_value for d in i.type.tensor_type.shape.dim]).astype(np.float32)
        for i in original.graph.input
    }
    outputs = [
        runtime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)[0]
        for m in (original, candidate)
    ]
    return float(np.abs(outputs[0] - outputs[1]).max() / np.abs(outputs[0]).max())


def stays(original: onnx.ModelProto, reason: str) -> None:
    result = fold(original)
    (kept,) = result.report.kept
    assert reason in {kept.reason, *(a.reason for a in kept.alternatives)}, result.report
    assert not result.changed


def written(b: Builder, y: str) -> onnx.ModelProto:
    """The builder's graph with ONNX Runtime's ops in it, of which onnx's inference knows nothing."""
    tensors = [numpy_helper.from_array(array, name) for name, array in b.weights.items()]
    outputs = [helper.make_tensor_value_info(y, TensorProto.FLOAT, None)]
    graph = helper.make_graph(b.nodes, "g", b.inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


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


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("added", ["conv", "constant"])
def test_what_a_fused_convolution_adds_is_scaled_too(added: str, biased: bool) -> None:
    b = Builder()
    x = b.input("x", 2, 6, 6, 6)
    z = b.op("Conv", x, b.weight(6, 6, 1, 1), b.weight(6)) if added == "conv" else b.weight(2, 6, 6, 6)
    y = b.op("FusedConv", x, b.weight(6, 6, 1, 1), b.weight(6) if biased else "", z, domain=DOMAIN)
    original = written(b, b.norm(y, 6))
    result = fold(original)
    assert not result.report.unfolded and "BatchNormalization" not in {n.op_type for n in result.model.graph.node}
    same(original, result)


def test_what_a_fused_convolution_adds_must_be_free_to_scale() -> None:
    b = Builder()
    x = b.input("x", 2, 6, 6, 6)
    y = b.op("FusedConv", x, b.weight(6, 6, 1, 1), b.weight(6), x, domain=DOMAIN)
    stays(written(b, b.norm(y, 6)), "GRAPH_BOUNDARY")
    b = Builder()
    x = b.input("x", 2, 6, 6, 6)
    z = b.op("Conv", x, b.weight(6, 6, 1, 1))
    y = b.op("FusedConv", x, b.weight(6, 6, 1, 1), b.weight(6), z, domain=DOMAIN, activation="Relu")
    stays(written(b, b.norm(y, 6)), "NONLINEAR")
    b = Builder()
    x = b.op("Tanh", b.input("x", 2, 6, 6, 6))
    y = b.op("FusedConv", x, b.weight(6, 6, 1, 1), b.weight(6), b.norm(x, 6), domain=DOMAIN, activation="Relu")
    stays(written(b, y), "NOT_CONSTANT")


@pytest.mark.parametrize("activation", [{}, {"activation": "LeakyRelu", "activation_params": [0.1]}])
@pytest.mark.parametrize("group", [2, 6])
def test_a_fused_convolution_in_groups_takes_in_what_is_before(group: int, activation: dict[str, Any]) -> None:
    original = model("FusedConv", (2, 6, 6, 6), (6, 6 // group, 3, 3), down=True, group=group, **activation)
    result = fold(original)
    assert result.report.folded
    same(original, result)


def test_only_a_scale_passes_the_padding_of_a_fused_convolution() -> None:
    b = Builder()
    x = b.norm(b.op("Tanh", b.input("x", 2, 6, 6, 6)), 6, shift=False)
    w = b.weight(6, 6, 3, 3)
    original = written(b, b.op("FusedConv", x, w, domain=DOMAIN, activation="Relu", pads=[1, 1, 1, 1]))
    result = fold(original)
    assert result.report.folded
    same(original, result)


@pytest.mark.parametrize("activation", ["", "Relu"])
def test_a_map_given_to_the_sum_of_a_fused_product_meets_its_activation(activation: str) -> None:
    b = Builder()
    x = b.input("x", 4, 6)
    c = b.op("Add", b.op("Tanh", x), b.weight(6))
    active: dict[str, Any] = {"activation": activation} if activation else {}
    y = b.op("FusedGemm", x, b.weight(6, 6), c, domain=DOMAIN, beta=0.7, **active)
    original = written(b, b.op("Gemm", y, b.weight(6, 6), b.weight(6)))
    result = fold(original)
    assert bool(result.report.folded) == (not activation)
    if not activation:
        assert difference(_plain(original), _plain(result.model)) < 1e-4
    reasons = {a.reason for r in result.report.kept for a in (r, *r.alternatives)}
    assert ("NONLINEAR" in reasons) == bool(activation)


def _plain(fused: onnx.ModelProto) -> onnx.ModelProto:
    """Without an activation the op is ONNX's own; the runtime has none of its kind."""
    plain = onnx.ModelProto.FromString(fused.SerializeToString())
    for node in plain.graph.node:
        if node.domain == DOMAIN:
            node.op_type, node.domain = node.op_type.removeprefix("Fused"), ""
    return plain


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("down", [True, False])
def test_a_fused_product_with_a_factor(down: bool, shift: bool) -> None:
    b = Builder()
    x = b.op("Tanh", b.input("x", 4, 6))
    if down:
        x = b.norm(x, 6, shift=shift)
    y = b.op("FusedMatMul", x, b.weight(6, 6), domain=DOMAIN, alpha=0.5)
    original = written(b, y if down else b.norm(y, 6, shift=shift))
    if down and shift:
        stays(original, "UNKNOWN_OP")  # alpha would have to multiply the shift's response
    else:
        result = fold(original)
        assert result.report.folded
        same(original, result)


def test_an_attribute_that_no_law_knows_stays() -> None:
    stays(model("FusedConv", (2, 6, 6, 6), (6, 6, 1, 1), down=False, layout="NHWC"), "UNKNOWN_OP")


Up = Callable[[Op, int, Affine], Answer]


def _without_shift(up: Up) -> Up:
    def wrong(op: Op, output: int, a: Affine) -> Answer:
        return up(op, output, a.only_scale())

    return wrong


def _without_slot(up: Up, slot: int) -> Up:
    def wrong(op: Op, output: int, a: Affine) -> Answer:
        answer = up(op, output, a)
        if isinstance(answer, Refusal):
            return answer
        options = [o for o in answer if not isinstance(o, Refusal)]
        return [tuple(x for x in o if not (isinstance(x, Need) and x.slot == slot)) for o in options]

    return wrong


UP_MUTANTS: dict[str, Callable[[Up], Up]] = {
    "shift dropped": _without_shift,
    "weight forgotten": lambda up: _without_slot(up, 1),
    "sum forgotten": lambda up: _without_slot(up, 3),
}


@pytest.mark.parametrize("mutant", UP_MUTANTS)
def test_a_mutant_of_the_way_up_is_caught(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    b = Builder()
    x = b.input("x", 2, 6, 6, 6)
    z = b.op("Conv", x, b.weight(6, 6, 1, 1), b.weight(6))
    y = b.op("FusedConv", x, b.weight(6, 6, 1, 1), b.weight(6), z, domain=DOMAIN)
    original = written(b, b.norm(y, 6))
    law = LAWS[DOMAIN, "FusedConv"]
    monkeypatch.setitem(LAWS, (DOMAIN, "FusedConv"), replace(law, up=UP_MUTANTS[mutant](law.up)))
    result = fold(original)
    assert result.changed and difference(original, result.model) > 1e-2


def test_a_law_that_ignores_the_activation_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    original = model("FusedConv", (2, 6, 6, 6), (6, 6, 1, 1), down=False, activation="Relu")
    law = LAWS[DOMAIN, "FusedConv"]
    monkeypatch.setitem(LAWS, (DOMAIN, "FusedConv"), replace(law, up=conv_up))
    result = fold(original)
    assert result.changed and difference(original, result.model) > 1e-2


def test_a_law_that_ignores_the_padding_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    original = model("FusedConv", (2, 6, 6, 6), (6, 6, 3, 3), down=True, pads=[1, 1, 1, 1])
    law = LAWS[DOMAIN, "FusedConv"]

    def scale_only(op: Op, given: Mapping[int, Affine]) -> Answer:
        return law.down(op, {slot: a.only_scale() for slot, a in given.items()})

    monkeypatch.setitem(LAWS, (DOMAIN, "FusedConv"), replace(law, down=scale_only))
    result = fold(original)
    assert result.changed and difference(original, result.model) > 1e-2
