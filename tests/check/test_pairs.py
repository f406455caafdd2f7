"""Gate 1 on a pair of files: folds by whomever pass, and each planted fault is found in the right layer."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from bnfold.check import Verdict, check
from bnfold.check.pairs import PairCertificate, certify_pair
from bnfold.files import load
from bnfold.fold import fold
from tests.graphs import EPSILON, Builder

MODELS = Path(__file__).parents[2] / "models"
Array = NDArray[Any]


def certified(original: onnx.ModelProto | Path, candidate: onnx.ModelProto | Path) -> PairCertificate:
    return certify_pair(load(original), load(candidate))


# -- our own folds ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"aggressive": True}, {"partial": True}], ids=str)
@pytest.mark.parametrize("path", sorted(MODELS.glob("*.onnx")), ids=lambda p: p.stem)
def test_our_own_fold_is_proven_and_correctly_rounded(path: Path, options: dict[str, bool]) -> None:
    result = fold(path, **dict[str, Any](options))
    found = certified(path, result.model)
    assert found.passed and found.decided, found.sentence
    assert found.figures["correctly_rounded"] and found.figures["worst_u"] <= 1.0
    assert found.gone >= len(result.records) and not found.breaks
    assert all(record.state in ("folded", "unchanged") for record in found.layers)
    assert any(record.state == "folded" for record in found.layers) == result.changed


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.onnx")), ids=lambda p: p.stem)
def test_a_model_is_its_own_equal_and_the_fold_without_one_source_too(path: Path) -> None:
    same = certified(path, path)
    assert same.passed and same.gone == 0
    source = fold(path).report.folded[0].nodes[0]
    part = certified(path, fold(path, only=[source]).model)
    assert part.passed and part.gone >= 1, part.sentence


# -- other tools' ----------------------------------------------------------------------------------------------------


def _onnxruntime(model: onnx.ModelProto) -> onnx.ModelProto:
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = f"{folder}/model.onnx"
        runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(f"{folder}/model.onnx")


def _onnxslim(model: onnx.ModelProto) -> onnx.ModelProto:
    return pytest.importorskip("onnxslim").slim(model)


def _onnxsim(model: onnx.ModelProto) -> onnx.ModelProto:
    return pytest.importorskip("onnxsim").simplify(model)[0]


def _onnxoptimizer(model: onnx.ModelProto) -> onnx.ModelProto:
    tool = pytest.importorskip("onnxoptimizer")
    return tool.optimize(model, ["fuse_bn_into_conv", "fuse_add_bias_into_conv"])


def _onnxscript(model: onnx.ModelProto) -> onnx.ModelProto:
    return pytest.importorskip("onnxscript.rewriter").rewrite(model)


TOOLS: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "onnxruntime": _onnxruntime, "onnxslim": _onnxslim, "onnxsim": _onnxsim, "onnxoptimizer": _onnxoptimizer,
    "onnxscript": _onnxscript,
}  # fmt: skip


def conv() -> onnx.ModelProto:
    b = Builder(1)
    y = b.op("Conv", b.input("x", "N", 3, 9, 11), b.weight(6, 3, 3, 3), b.weight(6))
    y = b.op("Conv", b.op("Relu", b.norm(y, 6)), b.weight(5, 6, 1, 1))
    return b.model(b.norm(y, 5))


def grouped() -> onnx.ModelProto:
    b = Builder(2)
    y = b.op("Conv", b.input("x", "N", 4, 9, 11), b.weight(8, 2, 3, 3), group=2, pads=[1, 1, 1, 1])
    return b.model(b.op("Relu", b.norm(y, 8)))


def transposed() -> onnx.ModelProto:
    b = Builder(3)
    y = b.op("ConvTranspose", b.input("x", "N", 4, 5, 6), b.weight(4, 6, 3, 3), b.weight(6), strides=[2, 2])
    return b.model(b.op("Relu", b.norm(y, 6)))


def gemm() -> onnx.ModelProto:
    b = Builder(4)
    y = b.op("Gemm", b.input("x", "N", 7), b.weight(5, 7), b.weight(5), transB=1)
    y = b.op("Gemm", b.op("Relu", b.norm(y, 5)), b.weight(5, 4), b.weight(4))
    return b.model(b.norm(y, 4))


def matmul() -> onnx.ModelProto:
    b = Builder(5)
    y = b.op("Add", b.op("MatMul", b.input("x", "N", 7), b.weight(7, 5)), b.weight(5))
    y = b.norm(b.op("MatMul", b.op("Relu", b.norm(y, 5)), b.weight(5, 6)), 6)
    return b.model(b.op("Tanh", y))


def residual() -> onnx.ModelProto:
    b = Builder(6)
    x = b.input("x", "N", 6, 9, 11)
    y = b.op("Relu", b.norm(b.op("Conv", x, b.weight(6, 6, 3, 3), pads=[1] * 4), 6))
    y = b.norm(b.op("Conv", y, b.weight(6, 6, 3, 3), pads=[1] * 4), 6)
    return b.model(b.op("Relu", b.op("Add", y, x)))


def before() -> onnx.ModelProto:
    b = Builder(7)
    y = b.norm(b.op("Relu", b.input("x", "N", 3, 9, 11)), 3)
    return b.model(b.op("Relu", b.op("Conv", y, b.weight(6, 3, 3, 3), b.weight(6))))


def run_of_affines() -> onnx.ModelProto:
    b = Builder(8)
    y = b.op("Conv", b.input("x", "N", 3, 9, 11), b.weight(6, 3, 3, 3))
    y = b.op("Add", b.op("Mul", b.norm(y, 6), b.weight(6, 1, 1)), b.weight(1, 6, 1, 1))
    return b.model(b.op("Relu", y))


NETS: dict[str, Callable[[], onnx.ModelProto]] = {
    f.__name__: f for f in (conv, grouped, transposed, gemm, matmul, residual, before, run_of_affines)
}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("tool", TOOLS)
def test_a_fold_by_another_tool(tool: str, net: str) -> None:
    """Whatever it folded or left: right, and proven to be."""
    model = NETS[net]()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    candidate = TOOLS[tool](copy)
    found = certified(model, candidate)
    assert found.passed, f"{found.sentence} {found.breaks}"
    gone = len(_sources(model)) - len(_sources(candidate))
    assert found.gone >= gone


def test_other_tools_do_fold() -> None:
    for tool in TOOLS.values():
        model = conv()
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        found = certified(model, tool(copy))
        assert [record.state for record in found.layers] == ["folded", "folded"]


def _sources(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "BatchNormalization"]


# -- planted faults --------------------------------------------------------------------------------------------------


def edited(model: onnx.ModelProto, name: str, change: Callable[[Array], Array]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    proto = next(t for t in copy.graph.initializer if t.name == name)
    value = np.asarray(change(numpy_helper.to_array(proto).copy()), np.float32)
    proto.CopyFrom(numpy_helper.from_array(value, name))
    return copy


def norm_of(model: onnx.ModelProto) -> onnx.NodeProto:
    return _sources(model)[-1]


def off_by_one_percent(model: onnx.ModelProto) -> onnx.ModelProto:
    def change(w: Array) -> Array:
        where = np.unravel_index(np.argmax(np.abs(w)), w.shape)
        w[where] *= 1.01
        return w

    return edited(model, weight_of(model), change)


def layer_of(model: onnx.ModelProto) -> onnx.NodeProto:
    kinds = ("Conv", "ConvTranspose", "Gemm", "MatMul")
    return [node for node in model.graph.node if node.op_type in kinds][-1]


def weight_of(model: onnx.ModelProto) -> str:
    return layer_of(model).input[1]


def bias_of(model: onnx.ModelProto) -> str:
    layer = layer_of(model)
    if layer.op_type != "MatMul":
        return layer.input[2]
    add = next(node for node in model.graph.node if node.op_type == "Add" and layer.output[0] in node.input)
    return next(name for name in add.input if name != layer.output[0])


def rolled(model: onnx.ModelProto) -> onnx.ModelProto:
    """Two output channels change places, weight and bias."""
    layer = layer_of(model)
    turned = any(a.name == "transB" and a.i for a in layer.attribute)
    axis = 0 if layer.op_type == "Conv" or turned else 1
    model = edited(model, layer.input[1], lambda w: np.roll(w, 1, axis))
    return edited(model, bias_of(model), lambda b: np.roll(b, 1))


def without_bias(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    layer = layer_of(copy)
    if layer.op_type != "MatMul":
        del layer.input[2:]
        return copy
    add = next(node for node in copy.graph.node if node.op_type == "Add" and layer.output[0] in node.input)
    layer.output[0] = add.output[0]
    copy.graph.node.remove(add)
    return copy


def with_norm(change: Callable[[onnx.ModelProto, onnx.NodeProto], None]) -> Callable[[onnx.ModelProto], Any]:
    """Fold a model whose last normalization is another one: what a tool with that bug would write."""

    def wrong(original: onnx.ModelProto) -> onnx.ModelProto:
        copy = onnx.ModelProto()
        copy.CopyFrom(original)
        change(copy, norm_of(copy))
        return fold(copy).model

    return wrong


def _epsilon(model: onnx.ModelProto, norm: onnx.NodeProto) -> None:
    del norm.attribute[:]
    norm.attribute.append(helper.make_attribute("epsilon", 0.0))


def _parameter(slot: int, change: Callable[[Array], Array]) -> Callable[[onnx.ModelProto, onnx.NodeProto], None]:
    def apply(model: onnx.ModelProto, norm: onnx.NodeProto) -> None:
        model.CopyFrom(edited(model, norm.input[slot], change))

    return apply


def dropped(original: onnx.ModelProto) -> onnx.ModelProto:
    """The last normalization is gone, and nothing took it in."""
    copy = onnx.ModelProto()
    copy.CopyFrom(original)
    norm = norm_of(copy)
    for node in copy.graph.node:
        for slot, name in enumerate(node.input):
            if name == norm.output[0]:
                node.input[slot] = norm.input[0]
    for node in copy.graph.node:
        if norm.output[0] == copy.graph.output[0].name and node.output[0] == norm.input[0]:
            node.output[0] = norm.output[0]
    copy.graph.node.remove(norm)
    return copy


def twice(original: onnx.ModelProto) -> onnx.ModelProto:
    """The weights have taken the last normalization in, and it is still there."""
    norm = norm_of(original)
    copy = fold(original, only=[norm.name]).model
    lost = {t.name for t in original.graph.initializer} - {t.name for t in copy.graph.initializer}
    copy.graph.initializer.extend(t for t in original.graph.initializer if t.name in lost)
    inner, outer = norm.input[0], norm.output[0]
    nodes = copy.graph.node
    made = next((k for k, node in enumerate(nodes) if outer in node.output), None)
    if made is not None:
        nodes[made].output[0] = inner
        nodes.insert(made + 1, norm)
        return copy
    reader = next(k for k, node in enumerate(nodes) if inner in node.input)
    nodes[reader].input[list(nodes[reader].input).index(inner)] = outer
    nodes.insert(reader, norm)
    return copy


AFTER: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "one weight off by 1 %": off_by_one_percent,
    "bias missing": without_bias,
    "rows swapped": rolled,
    "rounded to half": lambda m: edited(m, weight_of(m), lambda w: w.astype(np.float16)),
}
INSTEAD: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "epsilon taken as 0": with_norm(_epsilon),
    "beta dropped": with_norm(_parameter(2, np.zeros_like)),
    "sign of the mean": with_norm(_parameter(3, np.negative)),
    "gamma of the neighbour": with_norm(_parameter(1, lambda g: np.roll(g, 1))),
    "dropped": dropped,
    "applied twice": twice,
}
assert EPSILON == 0.01


def _cases() -> Iterator[Any]:
    for net in NETS:
        for fault in (*AFTER, *INSTEAD):
            yield pytest.param(net, fault, id=f"{net}, {fault}")


@pytest.mark.parametrize(("net", "fault"), list(_cases()))
def test_planted_fault(net: str, fault: str) -> None:
    original = NETS[net]()
    candidate = AFTER[fault](fold(original).model) if fault in AFTER else INSTEAD[fault](original)
    onnx.checker.check_model(candidate)
    found = certified(original, candidate)
    assert found.decided and not found.passed, found.sentence
    (wrong,) = found.wrong
    assert wrong.name == layer_of(original).name
    assert wrong.worst is not None and not wrong.worst.right and wrong.worst.worst > 100
    assert found.certain
    sentence = found.sentence
    assert f"'{wrong.name}'" in sentence and " is right (off by " in sentence
    norm = norm_of(original).name
    assert f"'{norm}'" in sentence
    if fault == "dropped":
        assert sentence.startswith(f"'{norm}'") and "gone from the candidate" in sentence
    if fault == "applied twice":
        assert "applied twice" in sentence
    json.dumps(found.figures)


def test_the_sentence_says_where_and_by_how_much() -> None:
    original = conv()
    candidate = fold(original).model
    name = weight_of(candidate)
    right = next(numpy_helper.to_array(t) for t in candidate.graph.initializer if t.name == name)

    def change(w: Array) -> Array:
        w[4, 0, 0, 0] *= np.float32(1 + 2400 * 2.0**-24)
        return w

    found = certified(original, edited(candidate, name, change))
    layer, norm = layer_of(original).name, norm_of(original).name
    held = float(change(right.copy())[4, 0, 0, 0])
    assert found.sentence.startswith(f"Conv '{layer}' took in '{norm}', but its weight [4,0,0,0] is {held:.4g} where ")
    worst = found.wrong[0].worst
    assert worst is not None and worst.index == (4, 0, 0, 0)
    assert 2390 < worst.worst < 2410
    assert worst.held == held


# -- what is no fold -------------------------------------------------------------------------------------------------


def changed(model: onnx.ModelProto, change: Callable[[onnx.GraphProto], None]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    change(copy.graph)
    return copy


def _leaky(graph: onnx.GraphProto) -> None:
    next(n for n in graph.node if n.op_type == "Relu").op_type = "LeakyRelu"


def _no_relu(graph: onnx.GraphProto) -> None:
    next(n for n in graph.node if n.op_type == "Relu").op_type = "Identity"


def _pads(graph: onnx.GraphProto) -> None:
    graph.node[0].attribute.append(helper.make_attribute("dilations", [2, 2]))


def _epsilon_of_one_that_stays(graph: onnx.GraphProto) -> None:
    norm = next(n for n in graph.node if n.op_type == "BatchNormalization")
    norm.attribute[0].f = 0.02


@pytest.mark.parametrize("change", [_leaky, _no_relu, _pads])
def test_right_weights_in_another_graph_prove_nothing(change: Callable[[onnx.GraphProto], None]) -> None:
    original = conv()
    found = certified(original, changed(fold(original).model, change))
    assert not found.passed and not found.decided and not found.wrong
    assert found.sentence.startswith("not decided: 2 of 2 layers are right, but ")


def test_a_normalization_that_stays_with_another_epsilon() -> None:
    original = conv()
    last = norm_of(original).name
    found = certified(original, changed(fold(original, only=[last]).model, _epsilon_of_one_that_stays))
    assert not found.passed and found.breaks


def test_another_default_of_an_input_is_seen() -> None:
    b = Builder(0)
    y = b.op("Mul", b.op("Relu", b.input("x", "N", 4)), b.weight(4, name="scale"))
    model = b.model(b.op("Relu", y))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "unused"))
    model.graph.input.append(helper.make_tensor_value_info("scale", onnx.TensorProto.FLOAT, [4]))
    assert certified(model, model).passed
    assert not certified(model, edited(model, "scale", lambda s: s * 2)).passed


def test_weights_of_another_type_are_not_decided() -> None:
    original = gemm()
    candidate = fold(original).model
    weight = next(t for t in candidate.graph.initializer if t.name == weight_of(candidate))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float64), weight.name))
    found = certified(original, candidate)
    assert not found.passed and not found.decided
    assert "is double where it was float" in found.sentence


def test_a_layer_of_another_kind_is_unknown() -> None:
    original = matmul()

    def change(graph: onnx.GraphProto) -> None:
        layer = [n for n in graph.node if n.op_type == "MatMul"][-1]
        layer.op_type = "Einsum"
        layer.attribute.append(helper.make_attribute("equation", "ij,jk->ik"))

    found = certified(original, changed(fold(original).model, change))
    assert not found.passed and not found.decided
    assert [record.name for record in found.unknown] == [layer_of(original).name]
    assert found.unknown[0].candidate is None


# -- other right ways to write a fold --------------------------------------------------------------------------------


def test_a_fold_in_the_other_direction() -> None:
    """Between two convolutions a normalization may go either way; the second takes it in here, written out by hand."""
    b = Builder(11)
    y = b.norm(b.op("Conv", b.input("x", "N", 3, 7, 8), b.weight(4, 3, 3, 3, name="first")), 4)
    original = b.model(b.op("Conv", y, b.weight(5, 4, 3, 3, name="second"), b.weight(5, name="bias")))
    values = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in original.graph.initializer}
    gamma, beta, mean, variance = (values[name] for name in norm_of(original).input[1:])
    scale = gamma / np.sqrt(variance + np.float64(np.float32(EPSILON)))
    shift = beta - scale * mean
    bias = values["bias"] + np.einsum("oikl,i->o", values["second"], shift)

    def change(graph: onnx.GraphProto) -> None:
        norm = next(n for n in graph.node if n.op_type == "BatchNormalization")
        graph.node[-1].input[0] = norm.input[0]
        graph.node.remove(norm)

    candidate = changed(original, change)
    candidate = edited(candidate, "second", lambda w: w * scale[:, None, None])
    candidate = edited(candidate, "bias", lambda _: bias)
    found = certified(original, candidate)
    assert found.passed, found.sentence
    assert [record.state for record in found.layers] == ["unchanged", "folded"]
    wrong = certified(original, edited(candidate, "second", lambda w: w * np.float32(1.001)))
    assert not wrong.passed and wrong.wrong


def test_matmul_and_add_as_gemm_with_turned_weights() -> None:
    original = matmul()
    candidate = fold(original).model

    def change(graph: onnx.GraphProto) -> None:
        for layer in [n for n in graph.node if n.op_type == "MatMul"]:
            add = next(n for n in graph.node if n.op_type == "Add" and layer.output[0] in n.input)
            bias = next(name for name in add.input if name != layer.output[0])
            weight = next(t for t in graph.initializer if t.name == layer.input[1])
            weight.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(numpy_helper.to_array(weight).T), weight.name))
            layer.op_type = "Gemm"
            layer.attribute.append(helper.make_attribute("transB", 1))
            layer.input.append(bias)
            layer.output[0] = add.output[0]
            graph.node.remove(add)

    turned = changed(candidate, change)
    onnx.checker.check_model(turned)
    assert certified(original, turned).passed

    def wrong(w: Array) -> Array:
        w[3, 2] *= 1.01
        return w

    found = certified(original, edited(turned, weight_of(turned), wrong))
    worst = found.wrong[0].worst
    assert worst is not None and worst.index == (3, 2), "the index is the one in the candidate's file"


def test_names_do_not_matter() -> None:
    """Every node and initializer called something else: the structure says which is which."""
    original = residual()
    candidate = fold(original).model
    for k, node in enumerate(candidate.graph.node):
        node.name = f"other{k}"
        for slot, name in enumerate(node.input):
            if name != "x":
                node.input[slot] = f"_{name}"
        for slot, name in enumerate(node.output):
            if name != candidate.graph.output[0].name:
                node.output[slot] = f"_{name}"
    for proto in candidate.graph.initializer:
        proto.name = f"_{proto.name}"
    del candidate.graph.value_info[:]
    assert certified(original, candidate).passed
    found = certified(original, off_by_one_percent(candidate))
    assert found.wrong[0].name == layer_of(original).name and found.wrong[0].candidate == layer_of(candidate).name


def test_inside_the_branch_of_an_if() -> None:
    def wrapped(inner: onnx.ModelProto) -> onnx.ModelProto:
        copy = onnx.ModelProto()
        copy.CopyFrom(inner)
        body = onnx.GraphProto()
        body.CopyFrom(copy.graph)
        del body.input[:]
        node = helper.make_node("If", ["yes"], [body.output[0].name], then_branch=body, else_branch=body)
        graph = helper.make_graph(
            [node], "g", copy.graph.input, copy.graph.output, [numpy_helper.from_array(np.array(True), "yes")]
        )
        return helper.make_model(graph, opset_imports=copy.opset_import, ir_version=8)

    original = conv()
    assert certified(wrapped(original), fold(wrapped(original)).model).passed
    assert certified(wrapped(original), wrapped(fold(original).model)).passed
    found = certified(wrapped(original), wrapped(off_by_one_percent(fold(original).model)))
    assert found.decided and {record.name for record in found.wrong} == {layer_of(original).name}


# -- what it does to the verdict -------------------------------------------------------------------------------------


def test_the_verdict_names_the_layer() -> None:
    original = conv()
    candidate = INSTEAD["beta dropped"](original)
    result = check(original, candidate, samples=1)
    assert result.verdict is Verdict.NOT_EQUIVALENT
    assert f"Conv '{layer_of(original).name}' took in '{norm_of(original).name}', but its bias [" in result.sentence
    document = result.to_dict()["certificate"]
    assert document["passed"] is False and document["decided"] is True
    assert [layer["state"] for layer in document["figures"]["layers"]] == ["folded", "wrong"]


def test_a_masked_fault_is_no_pass() -> None:
    """One weight off by 1 % in a channel that the next layer does not read: gate 3 cannot see it, gate 1 does."""
    b = Builder(12)
    y = b.op("Relu", b.norm(b.op("Conv", b.input("x", "N", 3, 7, 8), b.weight(4, 3, 3, 3, name="w")), 4))
    unread = np.random.default_rng(0).normal(size=(5, 4, 1, 1)).astype(np.float32)
    unread[:, 2] = 0
    original = b.model(b.op("Conv", y, b.weight(values=unread)))

    def change(w: Array) -> Array:
        w[2, 1, 1, 0] *= 1.01
        return w

    result = check(original, edited(fold(original).model, "w", change), samples=1)
    assert result.verdict is Verdict.NOT_EQUIVALENT, str(result)
    assert "weight [2,1,1,0]" in result.sentence and "do not show it" in result.sentence


def test_channels_that_another_layer_scales_back_are_left_to_gate_3() -> None:
    """Two layers that differ from the fold and undo one another: the same function, so no verdict from gate 1."""
    original = matmul()
    folded = fold(original).model
    first = next(n for n in folded.graph.node if n.op_type == "MatMul")
    add = next(n for n in folded.graph.node if n.op_type == "Add" and first.output[0] in n.input)
    bias = next(name for name in add.input if name != first.output[0])
    factors = np.asarray([2, 0.5, 4, 1, 8], np.float32)
    equalized = edited(folded, first.input[1], lambda w: w * factors)
    equalized = edited(equalized, bias, lambda b: b * factors)
    equalized = edited(equalized, weight_of(folded), lambda w: w / factors[:, None])
    found = certified(original, equalized)
    assert len(found.wrong) == 2 and not found.certain
    result = check(original, equalized, samples=1)
    assert result.verdict.passed, str(result)
    assert "gate 1  MatMul" in str(result)


@pytest.mark.filterwarnings("error")
def test_a_bias_of_which_a_channel_is_zero_is_compared_in_silence() -> None:
    """A bias [C, 1, 1] has no ratio where it was set to zero; numpy is not to say so on the terminal."""
    b = Builder(seed=4)
    original = b.model(
        b.op("Relu", b.norm(b.op("Einsum", b.input("x", 2, 4, 5, 6), b.weight(3, 4), equation="bchw,oc->bohw"), 3))
    )
    candidate = fold(original).model
    bias = next(t for t in candidate.graph.initializer if list(t.dims) == [3, 1, 1])
    value = numpy_helper.to_array(bias).copy()
    value[1] = 0
    bias.CopyFrom(numpy_helper.from_array(value, bias.name))
    found = certified(original, candidate)
    assert found.wrong and not found.passed, found.sentence
