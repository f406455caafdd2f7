"""Bodies of If, Loop and Scan, model-local functions, names, element types, and what must pass through untouched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bnfold.check import check
from bnfold.fold import FoldResult, fold
from tests.graphs import EPSILON, Builder, count, folded

CHANNELS = 6


def tensors(prefix: str, *, seed: int = 0) -> list[onnx.TensorProto]:
    """A 1x1 convolution and a BatchNormalization of 6 channels: {prefix}w, s, b, m, v."""
    random = np.random.default_rng(seed)
    arrays: dict[str, NDArray[Any]] = {
        "w": random.normal(size=(CHANNELS, CHANNELS, 1, 1)),
        "s": random.uniform(0.5, 2.0, CHANNELS) * np.where(np.arange(CHANNELS) % 2, -1, 1),
        "b": random.normal(size=CHANNELS),
        "m": random.normal(size=CHANNELS),
        "v": random.uniform(0.5, 2.0, CHANNELS),
    }
    return [numpy_helper.from_array(array.astype(np.float32), prefix + key) for key, array in arrays.items()]


def pair(x: str, y: str, weights: str, name: str = "") -> list[onnx.NodeProto]:
    """Conv -> BatchNormalization from x to y."""
    norm = [f"{y}_c", *(weights + key for key in "sbmv")]
    return [
        helper.make_node("Conv", [x, f"{weights}w"], [f"{y}_c"], name=name and f"{name}_conv"),
        helper.make_node("BatchNormalization", norm, [y], name=name and f"{name}_bn", epsilon=EPSILON),
    ]


def value(name: str, *shape: int | str, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def whole(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    output: onnx.ValueInfoProto,
    *more: Any,
    **fields: Any,
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", inputs, [output], *more)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, **fields)


def bodies(model: onnx.ModelProto) -> list[onnx.GraphProto]:
    return [a.g for node in model.graph.node for a in node.attribute if a.HasField("g")]


def certified(model: onnx.ModelProto) -> FoldResult:
    """Fold, and have certificate, checker, runtime and judge look at it."""
    onnx.checker.check_model(model, full_check=True)
    before = model.SerializeToString()
    result = fold(model)
    assert model.SerializeToString() == before
    onnx.checker.check_model(result.model, full_check=True)
    verdict = result.check()
    assert verdict and verdict.certificate is not None and verdict.certificate.passed, str(verdict)
    return result


X = value("x", "N", CHANNELS, 5, 5)
Z = value("z", "N", CHANNELS, 5, 5)


@pytest.mark.parametrize("inside", [True, False])
def test_both_branches_of_an_if(inside: bool) -> None:
    outer = [] if inside else tensors("o")
    branches: dict[str, Any] = {
        f"{name}_branch": helper.make_graph(
            pair("x", f"{name}y", "i" if inside else "o"), name, [], [value(f"{name}y", "N", CHANNELS, 5, 5)],
            tensors("i", seed=k) if inside else [],
        )
        for k, name in enumerate(("then", "else"))
    }  # fmt: skip
    choose = helper.make_node("If", ["cond"], ["z"], name="if", **branches)
    result = certified(whole([choose], [X, value("cond", kind=TensorProto.BOOL)], Z, outer))
    assert [[n.op_type for n in body.node] for body in bodies(result.model)] == [["Conv"], ["Conv"]]
    assert not result.model.graph.initializer  # the outer weights went with the last body that read them
    assert result.report.counts["folded"] == 2


def test_a_value_that_a_body_captures_keeps_its_meaning() -> None:
    then = helper.make_graph([helper.make_node("Relu", ["h_c"], ["t"])], "t", [], [value("t", "N", CHANNELS, 5, 5)])
    other = helper.make_graph([helper.make_node("Abs", ["h"], ["e"])], "e", [], [value("e", "N", CHANNELS, 5, 5)])
    nodes = [*pair("x", "h", "w"), helper.make_node("If", ["cond"], ["z"], then_branch=then, else_branch=other)]
    result = fold(whole(nodes, [X, value("cond", kind=TensorProto.BOOL)], Z, tensors("w")))
    (kept,) = result.report.kept
    assert {kept.reason, *(a.reason for a in kept.alternatives)} == {"GRAPH_BOUNDARY"}
    assert "captured" in kept.message
    assert not result.changed


def test_a_loop_folds_inside_and_its_state_keeps_its_meaning() -> None:
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            *pair("state", "inner", "i"),
            helper.make_node("Tanh", ["inner"], ["next"]),
        ],
        "body",
        [
            value("step", kind=TensorProto.INT64),
            value("go", kind=TensorProto.BOOL),
            value("state", "N", CHANNELS, 5, 5),
        ],
        [value("on", kind=TensorProto.BOOL), value("next", "N", CHANNELS, 5, 5)],
        tensors("i"),
    )
    nodes = [*pair("x", "h", "w"), helper.make_node("Loop", ["times", "", "h"], ["z"], body=body)]
    times = numpy_helper.from_array(np.asarray(3, np.int64), "times")
    result = certified(whole(nodes, [X], Z, [times, *tensors("w", seed=3)]))
    assert result.report.counts["folded"] == 2 and not result.report.kept


def test_a_normalization_of_loop_state_stays() -> None:
    norm = helper.make_node("BatchNormalization", ["state", "is", "ib", "im", "iv"], ["next"], epsilon=EPSILON)
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), norm],
        "body",
        [
            value("step", kind=TensorProto.INT64),
            value("go", kind=TensorProto.BOOL),
            value("state", "N", CHANNELS, 5, 5),
        ],
        [value("on", kind=TensorProto.BOOL), value("next", "N", CHANNELS, 5, 5)],
        tensors("i")[1:],
    )
    times = numpy_helper.from_array(np.asarray(3, np.int64), "times")
    result = fold(whole([helper.make_node("Loop", ["times", "", "x"], ["z"], body=body)], [X], Z, [times]))
    assert [k.reason for k in result.report.kept] == ["GRAPH_BOUNDARY"]
    assert not result.changed


def test_a_scan_body() -> None:
    body = helper.make_graph(
        pair("slice", "out", "i"), "body", [value("slice", "N", CHANNELS, 5, 5)], [value("out", "N", CHANNELS, 5, 5)],
        tensors("i"),
    )  # fmt: skip
    scan = helper.make_node("Scan", ["x"], ["z"], body=body, num_scan_inputs=1)
    shape = ("T", "N", CHANNELS, 5, 5)
    result = certified(whole([scan], [value("x", *shape)], value("z", *shape)))
    assert result.report.counts["folded"] == 1


def test_a_body_inside_a_body() -> None:
    def branch(name: str, nodes: list[onnx.NodeProto], y: str, weights: list[onnx.TensorProto]) -> onnx.GraphProto:
        return helper.make_graph(nodes, name, [], [value(y, "N", CHANNELS, 5, 5)], weights)

    inner: dict[str, Any] = {
        "then_branch": branch("it", pair("x", "it", "o"), "it", []),
        "else_branch": branch("ie", pair("x", "ie", "i"), "ie", tensors("i", seed=5)),
    }
    choose = helper.make_node("If", ["cond"], ["chosen"], **inner)
    outer: dict[str, Any] = {
        "then_branch": branch("ot", [choose], "chosen", []),
        "else_branch": branch("oe", pair("x", "oe", "o"), "oe", []),
    }
    nodes = [helper.make_node("If", ["cond"], ["z"], **outer)]
    result = certified(whole(nodes, [X, value("cond", kind=TensorProto.BOOL)], Z, tensors("o")))
    assert result.report.counts["folded"] == 3
    assert not result.model.graph.initializer


def test_functions_called_with_different_parameters_fold_at_each_call() -> None:
    parameters = ["x", *(f"p{key}" for key in "wsbmv")]
    norm = helper.make_function(
        "local", "ConvNorm", parameters, ["y"], pair("x", "y", "p"), [helper.make_opsetid("", 17)]
    )
    other = helper.make_function(
        "local", "Gate", ["x"], ["y"],
        [helper.make_node("Sigmoid", ["x"], ["s"]), helper.make_node("Mul", ["x", "s"], ["y"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    nodes = [
        helper.make_node("ConvNorm", ["x", *(f"a{key}" for key in "wsbmv")], ["h"], domain="local"),
        helper.make_node("Gate", ["h"], ["g"], domain="local"),
        helper.make_node("ConvNorm", ["g", *(f"b{key}" for key in "wsbmv")], ["z"], domain="local"),
    ]
    model = whole(nodes, [X], Z, [*tensors("a"), *tensors("b", seed=1)], functions=[norm, other])
    model.opset_import.append(helper.make_opsetid("local", 1))
    result = certified(model)
    assert count(result.model) == 0
    assert [n.op_type for n in result.model.graph.node] == ["Conv", "Gate", "Conv"]
    assert [f.name for f in result.model.functions] == ["Gate"]


def test_a_function_without_a_normalization_stays_and_the_file_is_identical(tmp_path: Any) -> None:
    gate = helper.make_function(
        "local", "Gate", ["x"], ["y"], [helper.make_node("Tanh", ["x"], ["y"])], [helper.make_opsetid("", 17)]
    )
    model = whole([helper.make_node("Gate", ["x"], ["z"], domain="local")], [X], Z, functions=[gate])
    model.opset_import.append(helper.make_opsetid("local", 1))
    onnx.save(model, tmp_path / "a.onnx")
    fold(tmp_path / "a.onnx").save(tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_names_that_are_missing_doubled_or_taken() -> None:
    nodes = [*pair("x", "h", "a"), *pair("h", "k", "b"), helper.make_node("Add", ["k", "abias"], ["z"])]
    for node in nodes:
        node.name = "" if node.op_type == "Add" else "same"
    taken = [numpy_helper.from_array(np.zeros((CHANNELS, 5, 5), np.float32) + k, n) for k, n in enumerate(
        ("abias", "aw_bias", "bw_bias", "aw_bias_2"))]  # fmt: skip
    model = whole(nodes, [X], Z, [*tensors("a"), *tensors("b", seed=1), *taken])
    result = folded(model)
    names = [t.name for t in result.model.graph.initializer]
    assert len(names) == len(set(names))
    held = {t.name: t for t in result.model.graph.initializer}
    assert all(held[t.name] == t for t in taken if t.name in held and t.name != "abias")


def test_an_absent_bias_and_trailing_empty_outputs() -> None:
    nodes = pair("x", "z", "a")
    nodes[0].input.append("")
    nodes[1].output.extend(["", ""])
    result = folded(whole(nodes, [X], Z, tensors("a")))
    assert [n.op_type for n in result.model.graph.node] == ["Conv"]


@pytest.mark.parametrize("kind", [TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_other_floating_types(kind: int) -> None:
    def cast(proto: onnx.TensorProto) -> onnx.TensorProto:
        dtype = helper.tensor_dtype_to_np_dtype(kind)
        return numpy_helper.from_array(numpy_helper.to_array(proto).astype(dtype), proto.name)

    model = whole(
        pair("x", "z", "a"), [value("x", "N", CHANNELS, 5, 5, kind=kind)], value("z", "N", CHANNELS, 5, 5, kind=kind),
        [cast(t) for t in tensors("a")],
    )  # fmt: skip
    result = folded(model)
    assert {t.data_type for t in result.model.graph.initializer} == {kind}


def test_half_precision_data_with_single_precision_statistics() -> None:
    weights = [
        numpy_helper.from_array(numpy_helper.to_array(t).astype(np.float16 if t.name == "aw" else np.float32), t.name)
        for t in tensors("a")
    ]
    model = whole(
        pair("x", "z", "a"), [value("x", "N", CHANNELS, 5, 5, kind=TensorProto.FLOAT16)],
        value("z", "N", CHANNELS, 5, 5, kind=TensorProto.FLOAT16), weights,
    )  # fmt: skip
    result = folded(model)
    assert {t.data_type for t in result.model.graph.initializer} == {TensorProto.FLOAT16}


@pytest.mark.parametrize(("gamma", "variance", "word"), [(6e4, 1e-4, "overflow"), (6e-8, 1.0, "become 0")])
def test_a_half_precision_weight_out_of_range_stays(gamma: float, variance: float, word: str) -> None:
    weights = [numpy_helper.to_array(t).astype(np.float16) for t in tensors("a")]
    weights[1][2], weights[4][2] = gamma, variance
    protos = [numpy_helper.from_array(a, f"a{key}") for a, key in zip(weights, "wsbmv", strict=True)]
    nodes = pair("x", "z", "a")
    nodes[1].attribute[0].f = 1e-8
    model = whole(
        nodes, [value("x", "N", CHANNELS, 5, 5, kind=TensorProto.FLOAT16)],
        value("z", "N", CHANNELS, 5, 5, kind=TensorProto.FLOAT16), protos,
    )  # fmt: skip
    result = fold(model)
    (kept,) = result.report.kept
    assert kept.reason == "OUT_OF_RANGE" and word in kept.message and "[2," in kept.message, kept.message


def test_statistics_beyond_the_range_of_half_precision_are_refused() -> None:
    weights = [numpy_helper.to_array(t).astype(np.float16) for t in tensors("a")]
    weights[4][3] = np.inf  # what 70,000 becomes
    protos = [numpy_helper.from_array(a, f"a{key}") for a, key in zip(weights, "wsbmv", strict=True)]
    kinds = {"kind": TensorProto.FLOAT16}
    model = whole(
        pair("x", "z", "a"),
        [value("x", "N", CHANNELS, 5, 5, **kinds)],
        value("z", "N", CHANNELS, 5, 5, **kinds),
        protos,
    )
    (kept,) = fold(model).report.kept
    assert kept.reason == "BAD_STATISTICS" and "channel 3" in kept.message


def test_what_is_none_of_its_business_passes_through() -> None:
    b = Builder()
    y = b.norm(b.op("Conv", b.input("x", 1, 6, 5, 5), b.weight(6, 6, 1, 1)), 6)
    model = b.model(b.op("Relu", y))
    words = numpy_helper.from_array(np.asarray(["a", "b"], object), "words")
    model.graph.node.append(helper.make_node("Constant", [], ["text"], value=words, name="text"))
    model.graph.node.append(
        helper.make_node("Strange", ["text"], ["odd"], domain="somewhere.else", name="strange", k=3)
    )
    model.opset_import.append(helper.make_opsetid("somewhere.else", 7))
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.asarray([2.5], np.float32), "sparse"),
        numpy_helper.from_array(np.asarray([4], np.int64), "sparse_i"),
        [9],
    )
    model.graph.sparse_initializer.append(sparse)
    annotation = model.graph.quantization_annotation.add(tensor_name="v2")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w0")
    model.metadata_props.add(key="who", value="me")
    model.doc_string, model.graph.doc_string = "model", "graph"
    result = fold(model)
    assert count(result.model) == 0
    assert [n.op_type for n in result.model.graph.node] == ["Conv", "Relu", "Constant", "Strange"]
    assert list(result.model.graph.node)[2:] == list(model.graph.node)[3:]
    assert list(result.model.graph.sparse_initializer) == [sparse]
    assert list(result.model.graph.quantization_annotation) == [annotation]
    for field in ("metadata_props", "opset_import", "doc_string"):
        assert getattr(result.model, field) == getattr(model, field)
    assert result.model.graph.doc_string == "graph"


def test_a_sparse_weight_is_left() -> None:
    dense = np.zeros((6, 6), np.float32)
    dense[0, 0] = 1.0
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.asarray([1.0], np.float32), "sw"),
        numpy_helper.from_array(np.asarray([0], np.int64), "sw_i"),
        [6, 6],
    )
    norm = helper.make_node("BatchNormalization", ["h", "as", "ab", "am", "av"], ["z"], epsilon=EPSILON)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "sw"], ["h"]), norm], "g", [value("x", 2, 6)], [value("z", 2, 6)],
        tensors("a")[1:], sparse_initializer=[sparse],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    result = fold(model)
    assert not result.changed and [k.is_normalization for k in result.report.kept] == [True]


def test_the_check_sees_a_wrong_weight_in_a_body() -> None:
    then = helper.make_graph(pair("x", "t", "i"), "t", [], [value("t", "N", CHANNELS, 5, 5)], tensors("i"))
    other = helper.make_graph([helper.make_node("Abs", ["x"], ["e"])], "e", [], [value("e", "N", CHANNELS, 5, 5)])
    choose = helper.make_node("If", ["cond"], ["z"], then_branch=then, else_branch=other)
    model = whole([choose], [X, value("cond", kind=TensorProto.BOOL)], Z)
    result = fold(model)
    wrong = onnx.ModelProto()
    wrong.CopyFrom(result.model)
    for body in bodies(wrong):
        for t in body.initializer:
            t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t) * np.float32(1.01), t.name))
    assert not result.certificate(wrong).passed
    assert not check(model, wrong)


def test_external_weights_stay_external_when_each_of_them_was_edited(tmp_path: Path) -> None:
    b = Builder()
    y = b.norm(b.op("Conv", b.input("x", 1, 32, 5, 5), b.weight(32, 32, 3, 3)), 32)
    (tmp_path / "in").mkdir()
    onnx.save(
        b.model(y), tmp_path / "in" / "net.onnx", save_as_external_data=True, location="net.bin", size_threshold=0
    )
    result = fold(tmp_path / "in" / "net.onnx")
    written = result.save(tmp_path / "out.onnx")
    assert [path.name for path in written] == ["out.onnx", "out.onnx.data"]
    weights = {t.name: t for t in onnx.load(tmp_path / "out.onnx", load_external_data=False).graph.initializer}
    assert any(t.data_location == TensorProto.EXTERNAL for t in weights.values())
    assert result.check(path=tmp_path / "out.onnx")


@pytest.mark.parametrize("swapped", [False, True])
def test_the_bias_of_a_product_is_no_source_on_either_side(swapped: bool) -> None:
    b = Builder()
    y, bias = b.op("MatMul", b.input("x", 2, 6), b.weight(6, 6)), b.weight(6)
    assert fold(b.model(b.op("Tanh", b.op("Add", *((bias, y) if swapped else (y, bias)))))).report.sources == 0
