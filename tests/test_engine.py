"""The loop and the rewriter: what counts as a gain, what growth costs, what is left alone, what order costs."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import bnfold
from bnfold.affine import Affine
from bnfold.errors import UsageError
from bnfold.gauge import Answer, Law, Op
from bnfold.graph import Graph
from bnfold.laws import LAWS
from tests.graphs import Builder, count, difference, folded, refused


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def conv(b: Builder, x: str, channels: int = 6) -> str:
    return b.op("Conv", x, b.weight(channels, channels, 1, 1), b.weight(channels))


# -- gain --


def test_a_product_and_a_normalization_become_a_product_and_a_bias() -> None:
    b = Builder()
    result = folded(b.model(b.op("Tanh", b.norm(b.op("MatMul", b.input("x", 4, 6), b.weight(6, 6)), 6))))
    assert kinds(result.model) == ["MatMul", "Add", "Tanh"]


def test_a_bias_behind_a_product_is_no_gain() -> None:
    b = Builder()
    y = b.op("Add", b.op("MatMul", b.input("x", 4, 6), b.weight(6, 6)), b.weight(6))
    result = bnfold.fold(b.model(b.op("Tanh", y)))
    assert not result.changed and not result.report.sources


def test_a_shift_alone_does_not_become_an_add_elsewhere() -> None:
    b = Builder()
    y = b.op(
        "Add", b.op("Reshape", b.op("MatMul", b.input("x", 4, 6), b.weight(6, 6)), b.ints(4, 6, 1)), b.weight(6, 1)
    )
    result = bnfold.fold(b.model(b.op("Tanh", y)))
    (kept,) = result.report.kept
    assert "NO_GAIN" in {kept.reason, *(a.reason for a in kept.alternatives)} and not result.changed


def test_a_normalization_between_curves_stays_one_node() -> None:
    b = Builder()
    y = b.norm(b.op("Tanh", b.input("x", 2, 6, 5, 5)), 6)
    refused(b.model(b.op("Tanh", y)), "NONLINEAR")


@pytest.mark.parametrize(
    ("ops", "left"),
    [
        (["BN", "BN"], ["BatchNormalization"]),
        (["BN", "Mul", "Add"], ["BatchNormalization"]),
        (["Mul", "Add", "Mul"], ["Mul", "Add"]),
        (["Add", "Add"], ["Add"]),
        (["Mul", "Mul"], ["Mul"]),
        (["Mul", "Add", "BN", "Mul"], ["BatchNormalization"]),
        (["Add", "Mul"], ["Add", "Mul"]),
    ],
)
def test_what_nobody_takes_in_is_shortened(ops: list[str], left: list[str]) -> None:
    b = Builder()
    y = b.op("Tanh", b.input("x", 2, 6, 5, 5))
    for op in ops:
        y = b.norm(y, 6) if op == "BN" else b.op(op, y, b.weight(6, 1, 1))
    result = folded(b.model(b.op("Tanh", y)), left=left.count("BatchNormalization"))
    assert sorted(kinds(result.model)[1:-1]) == sorted(left)
    assert not bnfold.fold(result.model).changed


# -- growth and shared weights --


def shared(norms: int, *, same: bool = False) -> onnx.ModelProto:
    b = Builder()
    x, w = b.input("x", 2, 6, 5, 5), b.weight(6, 6, 3, 3)
    ys = [b.op("Conv", x, w) for _ in range(2)]
    first = b.norm(ys[0], 6)
    if norms == 2 and same:
        second = b.op("BatchNormalization", ys[1], *b.nodes[-1].input[1:], epsilon=0.01)
    else:
        second = b.norm(ys[1], 6) if norms == 2 else ys[1]
    return b.model(b.op("Add", b.op("Tanh", first), b.op("Tanh", second)))


@pytest.mark.parametrize("norms", [1, 2])
def test_a_shared_weight_is_cloned_for_each_distinct_demand(norms: int) -> None:
    result = folded(shared(norms))
    weights = {n.input[1] for n in result.model.graph.node if n.op_type == "Conv"}
    assert len(weights) == 2
    assert result.report.growth_bytes >= 6 * 6 * 9 * 4


def test_growth_beyond_the_limit_is_refused() -> None:
    result = bnfold.fold(shared(2), max_growth=0)
    assert {k.reason for k in result.report.kept} == {"GROWTH"}
    assert not result.changed
    assert count(bnfold.fold(shared(2), max_growth=10_000).model) == 0


def test_a_weight_that_every_reader_wants_alike_is_edited_once() -> None:
    b = Builder()
    x, w = b.op("Tanh", b.input("x", 2, 6, 5, 5)), b.weight(6, 6, 1, 1)
    y = b.norm(x, 6, shift=False)
    result = folded(b.model(b.op("Tanh", b.op("Conv", y, w)), b.op("Abs", b.op("Conv", y, w))))
    assert {n.input[1] for n in result.model.graph.node if n.op_type == "Conv"} == {w}


# -- readers --


def test_another_linear_reader_is_given_the_inverse() -> None:
    b = Builder()
    y = conv(b, b.input("x", 2, 6, 5, 5))
    result = folded(b.model(b.op("Tanh", b.norm(y, 6)), b.op("Tanh", conv(b, y))))
    assert [f.direction for f in result.report.folded] == ["both"]


def test_the_inverse_of_a_dead_channel_is_refused() -> None:
    b = Builder()
    y = conv(b, b.input("x", 2, 6, 5, 5))
    z = b.norm(y, 6)
    gamma = b.nodes[-1].input[1]
    b.weights[gamma] = np.asarray([1, 1e-12, 1, 1, 1, 1], np.float32)
    refused(b.model(b.op("Tanh", z), b.op("Tanh", conv(b, y))), "ZERO_SCALE")


def test_a_value_and_itself() -> None:
    for make in (lambda b, y: b.op("Add", y, y), lambda b, y: b.op("Concat", y, y, axis=0)):
        b = Builder()
        folded(b.model(b.norm(make(b, conv(b, b.input("x", 2, 6, 5, 5))), 6)))
        b = Builder()
        y = make(b, b.norm(b.op("Tanh", b.input("x", 2, 6, 5, 5)), 6))
        folded(b.model(b.op("Conv", y, b.weight(4, 6, 3, 3))))


def test_readers_of_the_shape_alone_are_no_readers() -> None:
    b = Builder()
    y = conv(b, b.input("x", 2, 6, 5, 5))
    n = b.norm(y, 6)
    sizes = b.op("Cast", b.op("Shape", y), to=onnx.TensorProto.FLOAT)
    folded(b.model(b.op("Tanh", n), sizes))


def test_a_graph_output_keeps_its_meaning_and_its_name() -> None:
    b = Builder()
    y = conv(b, b.input("x", 2, 6, 5, 5))
    model = b.model(b.norm(y, 6))
    result = folded(model)
    assert [o.name for o in result.model.graph.output] == [o.name for o in model.graph.output]
    b = Builder()
    y = conv(b, b.input("x", 2, 6, 5, 5))
    refused(b.model(b.op("Tanh", b.norm(y, 6)), y), "GRAPH_BOUNDARY")
    b = Builder()
    refused(b.model(b.norm(b.input("x", 2, 6, 5, 5), 6)), "GRAPH_BOUNDARY")


# -- what is left alone --


def two() -> onnx.ModelProto:
    b = Builder()
    y = b.op("Tanh", b.norm(conv(b, b.input("x", 2, 6, 5, 5)), 6))
    return b.model(b.norm(conv(b, y), 6))


def test_skip_and_only_are_globs() -> None:
    names = [n.name for n in two().graph.node if n.op_type == "BatchNormalization"]
    for arguments in (
        {"skip": [names[0]]},
        {"only": [names[1]]},
        {"only": ["n*"], "skip": [f"{names[0][:-1]}[{names[0][-1]}]"]},
    ):
        result = bnfold.fold(two(), **arguments)  # type: ignore[arg-type]
        assert [n.name for n in result.model.graph.node if n.op_type == "BatchNormalization"] == [names[0]]
        assert [k.reason for k in result.report.kept] == ["SKIPPED"]
    with pytest.raises(UsageError, match="nothing-like-it"):
        bnfold.fold(two(), skip=["nothing-like-it"])


def arithmetic(*, kept: bool = False) -> onnx.ModelProto:
    """Mul (n1), Identity and Add (n3) by constants before a Conv; `kept`: the Add's constant has another reader."""
    b = Builder()
    x = b.op("Tanh", b.input("x", 2, 6, 5, 5))
    shift = b.weight(1, 6, 1, 1)
    y = b.op("Add", b.op("Identity", b.op("Mul", x, b.weight(1, 6, 1, 1))), shift)
    y = conv(b, y)
    return b.model(y, b.op("Exp", shift)) if kept else b.model(y)


@pytest.mark.parametrize("kept", [False, True])
def test_only_keeps_the_other_sources_from_vanishing(kept: bool) -> None:
    model = arithmetic(kept=kept)
    result = bnfold.fold(model, only=["n1"])
    assert [k.reason for k in result.report.kept if "n3" in k.nodes] == ["SKIPPED"]
    assert "Add" in kinds(result.model)
    assert difference(model, result) < 1e-12


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("only", [(), ("n1", "n3")])
def test_a_source_that_vanishes_on_the_way_is_reported_as_folded(kept: bool, only: tuple[str, ...]) -> None:
    model = arithmetic(kept=kept)
    result = bnfold.fold(model, only=only)
    assert not {"Mul", "Add"} & set(kinds(result.model))
    assert sorted(n for f in result.report.folded for n in f.nodes) == ["n1", "n3"]
    assert all([t.op for t in f.into] == ["Conv"] for f in result.report.folded)
    assert not result.report.kept
    assert difference(model, result) < 1e-12


def test_every_part_of_a_decomposed_normalization_is_reported() -> None:
    b = Builder()
    y = b.op("Tanh", b.input("x", 2, 6, 5, 5))
    for kind in ("Sub", "Div", "Mul", "Add"):
        y = b.op("Identity", b.op(kind, y, b.weight(1, 6, 1, 1)))
    model = b.model(conv(b, y))
    result = bnfold.fold(model)
    assert not {"Sub", "Div", "Mul", "Add"} & set(kinds(result.model))
    assert sorted(n for f in result.report.folded for n in f.nodes) == ["n1", "n3", "n5", "n7"]
    assert all(f.into for f in result.report.folded) and not result.report.kept
    assert difference(model, result) < 1e-12


def test_the_argument_is_not_modified_and_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    model = two()
    before = model.SerializeToString()
    results = [bnfold.fold(model) for _ in range(2)]
    assert model.SerializeToString() == before
    for k, result in enumerate(results):
        result.save(tmp_path / f"{k}.onnx")
    assert (tmp_path / "0.onnx").read_bytes() == (tmp_path / "1.onnx").read_bytes()


def test_nothing_to_fold_gives_back_the_bytes(tmp_path: Path) -> None:
    b = Builder()
    model = b.model(b.op("Tanh", conv(b, b.input("x", 2, 6, 5, 5))))
    onnx.save(model, tmp_path / "a.onnx")
    result = bnfold.fold(tmp_path / "a.onnx")
    assert not result.changed
    result.save(tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_stale_value_info_and_dead_initializers_go_and_the_rest_stays() -> None:
    model = onnx.shape_inference.infer_shapes(two())
    infos = {v.name for v in model.graph.value_info}
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(3, np.float32), "nobody"))
    result = bnfold.fold(model)
    made = {o for n in result.model.graph.node for o in n.output}
    left = {v.name for v in result.model.graph.value_info}
    assert left <= made and left < infos
    read = {i for n in result.model.graph.node for i in n.input}
    assert {t.name for t in result.model.graph.initializer} - read == {"nobody"}  # it was dead before


def test_a_weight_computed_from_an_input_is_not_constant() -> None:
    b = Builder()
    y = conv(b, b.input("x", 2, 6, 5, 5))
    z = b.norm(y, 6)
    b.nodes[-1].input[1] = b.input("gamma", 6)
    model = b.model(z)
    refused(model, "NOT_CONSTANT")


@pytest.mark.parametrize(
    ("listed", "ir_version", "options", "folds"),
    [
        ("all", 3, {}, True),
        ("all", 8, {}, True),
        ("all", 8, {"keep_inputs": True}, False),
        ("gamma", 8, {}, False),
        ("gamma", 8, {"freeze_inputs": True}, True),
    ],
)
def test_initializers_among_the_inputs(listed: str, ir_version: int, options: dict[str, bool], folds: bool) -> None:
    b = Builder(opset=8, ir_version=ir_version)
    y = conv(b, b.input("x", 2, 6, 5, 5))
    model = b.model(b.norm(y, 6))
    gamma = next(n for n in model.graph.node if n.op_type == "BatchNormalization").input[1]
    for t in model.graph.initializer:
        if listed == "all" or t.name == gamma:
            model.graph.input.append(helper.make_tensor_value_info(t.name, t.data_type, t.dims))
    result = bnfold.fold(model, **options)  # type: ignore[arg-type]
    assert (count(result.model) == 0) == folds, result.report
    names = {i.name for i in result.model.graph.input}
    held = {t.name for t in result.model.graph.initializer}
    if not folds:
        assert {k.reason for k in result.report.kept} == {"OVERRIDABLE"}
    elif ir_version == 3:
        assert held <= names  # every initializer is an input there
    else:
        assert not any(name in names for name in result.exact)
        assert any("left the graph's inputs" in note for note in result.report.notes) == (listed == "all")


# -- cost --


def asked(pairs: int, monkeypatch: pytest.MonkeyPatch, *, stuck: bool) -> int:
    """How often a law is asked for a chain of `pairs`."""
    calls = 0

    def counted(law: Law) -> Law:
        def up(op: Op, output: int, a: Affine) -> Answer:
            nonlocal calls
            calls += 1
            return law.up(op, output, a)

        def down(op: Op, given: Mapping[int, Affine]) -> Answer:
            nonlocal calls
            calls += 1
            return law.down(op, given)

        return Law(up, down, law.attributes, law.up_all)

    b = Builder()
    y = b.input("x", 1, 6, 4, 4)
    for _ in range(pairs):
        y = b.norm(b.op("Tanh", y) if stuck else conv(b, y), 6)
    model = b.model(b.op("Tanh", y))
    with monkeypatch.context() as patch:
        for key, law in list(LAWS.items()):
            patch.setitem(LAWS, key, counted(law))
        result = bnfold.fold(model)
    assert count(result.model) == (pairs if stuck else 0)
    return calls


@pytest.mark.parametrize("stuck", [False, True])
def test_the_search_is_linear_in_the_number_of_nodes(stuck: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = (asked(n, monkeypatch, stuck=stuck) for n in (25, 100))
    assert many <= 4 * few + 8


def test_folds_of_the_past_do_not_pile_up():
    """The collector is off while a fold is made; whoever makes many must not keep them all."""
    model = two()
    before = sum(type(each) is Graph for each in gc.get_objects())
    for _ in range(400):
        bnfold.fold(model)
    assert gc.isenabled()
    assert sum(type(each) is Graph for each in gc.get_objects()) - before < 100
