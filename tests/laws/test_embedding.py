"""Embeddings: Gather from a constant table, with the normalization behind or before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from bnfold.affine import Affine
from bnfold.fold import FoldResult, fold
from bnfold.gauge import Answer, Carry, Need, Op, Refusal
from bnfold.laws import LAWS
from bnfold.reference import Evaluator
from tests.graphs import Builder, difference, folded, refused

WORDS, WIDTH = 6, 6  # equal, so that a law that looks for a size takes the wrong axis


def tokens(b: Builder, *shape: int | str, name: str = "tokens") -> str:
    b.inputs.append(helper.make_tensor_value_info(name, onnx.TensorProto.INT64, shape))
    return name


def run(model: onnx.ModelProto, given: Mapping[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return [np.asarray(y) for y in session.run(None, dict(given))]


def same(model: onnx.ModelProto, left: int = 0) -> FoldResult:
    """Fold, and assert the same function of every word: in the reference, and in the runtime with negative indices."""
    result = fold(model)
    onnx.checker.check_model(result.model)
    given: dict[str, np.ndarray[Any, Any]] = {}
    for at, info in enumerate(model.graph.input):
        shape = [d.dim_value or 3 for d in info.type.tensor_type.shape.dim]
        given[info.name] = np.asarray((np.arange(np.prod(shape, dtype=int)) * 5 + at).reshape(shape) % WORDS)
    exact = Evaluator(result.model, exact=result.exact).run(given)
    for name, expected in Evaluator(model).run(given).items():
        np.testing.assert_allclose(exact[name], expected, rtol=1e-9, atol=1e-9)
    counted = model.opset_import[0].version >= 11  # from the end
    below = {name: np.asarray(ids - WORDS * (ids % 2)) if counted else ids for name, ids in given.items()}
    for y, expected in zip(run(result.model, below), run(model, below), strict=True):
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    assert sum(n.op_type == "BatchNormalization" for n in result.model.graph.node) == left, result.report
    return result


def kinds(result: FoldResult) -> list[str]:
    return [n.op_type for n in result.model.graph.node]


@pytest.mark.parametrize("opset", [9, 11, 13, 17])
@pytest.mark.parametrize("axis", [None, 0, -2])
@pytest.mark.parametrize("shift", [True, False])
def test_a_normalization_behind_goes_into_the_table(opset: int, axis: int | None, shift: bool) -> None:
    b = Builder(opset=opset)
    y = b.op("Gather", b.weight(WORDS, WIDTH), tokens(b, "N"), **({} if axis is None else {"axis": axis}))
    assert kinds(same(b.model(b.norm(y, WIDTH, shift=shift)))) == ["Gather"]


@pytest.mark.parametrize("shape", [(), (3,), ("N", 6), ("N", 6, 2)])
@pytest.mark.parametrize("kind", ["Mul", "Div"])
def test_arithmetic_along_the_width_goes_into_the_table(shape: tuple[int | str, ...], kind: str) -> None:
    b = Builder()
    y = b.op("Gather", b.weight(WORDS, WIDTH), tokens(b, *shape))
    c = b.weight(values=np.asarray([0.5, -1.5, 2, -0.7, 1, 3], np.float32))
    assert kinds(same(b.model(b.op(kind, y, c)))) == ["Gather"]


@pytest.mark.parametrize("shape", [("N", 6), (2, 6)])
def test_the_channels_of_a_sequence_are_its_last_axis(shape: tuple[int | str, ...]) -> None:
    b = Builder()
    y = b.op("Transpose", b.op("Gather", b.weight(WORDS, WIDTH), tokens(b, *shape)), perm=[0, 2, 1])
    assert kinds(same(b.model(b.norm(y, WIDTH)))) == ["Gather", "Transpose"]


def test_a_position_in_the_sequence_is_no_word() -> None:
    b = Builder()  # [N, 6, 6]: the normalization's axis is that of the indices
    y = b.op("Gather", b.weight(WORDS, WIDTH), tokens(b, "N", 6))
    same(b.model(b.norm(y, 6)), left=1)


def test_words_that_are_chosen_at_run_time_are_no_channels() -> None:
    b = Builder()  # the table lies on its side
    y = b.op("Gather", b.weight(WIDTH, WORDS), tokens(b, 6), axis=1)
    same(b.model(b.norm(y, 6)), left=1)


@pytest.mark.parametrize("axis", [1, -1])
def test_a_table_on_its_side_takes_what_varies_along_its_width(axis: int) -> None:
    b = Builder()
    y = b.op("Transpose", b.op("Gather", b.weight(WIDTH, WORDS), tokens(b, "N"), axis=axis), perm=[1, 0])
    assert kinds(same(b.model(b.norm(y, WIDTH)))) == ["Gather", "Transpose"]


def test_a_table_of_three_axes() -> None:
    b = Builder()
    y = b.op("Gather", b.weight(WORDS, 6, 2), tokens(b, "N"))
    assert kinds(same(b.model(b.norm(y, 6)))) == ["Gather"]


@pytest.mark.parametrize("both", [True, False])
def test_two_readers_of_one_table(both: bool) -> None:
    b = Builder()
    table = b.weight(WORDS, WIDTH)
    y = b.norm(b.op("Gather", table, tokens(b, "N")), WIDTH)
    z = b.op("Gather", table, tokens(b, "M", name="others"))
    same(b.model(y, b.norm(z, WIDTH) if both else z))


def test_a_table_that_is_also_the_last_layer() -> None:
    b = Builder()
    table = b.weight(WORDS, WIDTH)
    y = b.norm(b.op("Gather", table, tokens(b, "N")), WIDTH)
    logits = b.op("MatMul", b.op("Tanh", y), b.op("Transpose", table, perm=[1, 0]))
    same(b.model(logits))


@pytest.mark.parametrize("shift", [True, False])
def test_two_readers_of_the_words(shift: bool) -> None:
    b = Builder()  # the other one gets the inverse
    y = b.op("Gather", b.weight(WORDS, WIDTH), tokens(b, "N"))
    z = b.op("Gemm", y, b.weight(WIDTH, 4), b.weight(4))
    same(b.model(b.norm(y, WIDTH, shift=shift), z))


def test_words_and_positions() -> None:
    b = Builder()
    words = b.op("Gather", b.weight(WORDS, WIDTH), tokens(b, "N", 6))
    places = b.op("Gather", b.weight(6, WIDTH), b.ints(*range(6)))
    y = b.op("Transpose", b.op("Add", words, places), perm=[0, 2, 1])
    assert "BatchNormalization" not in kinds(same(b.model(b.norm(y, WIDTH))))


def test_what_is_gathered_by_constant_indices_keeps_its_own_channels() -> None:
    for at in ((5, 0, 3), (-1, -6, 2), (1, 1, 4)):
        b = Builder()
        x = b.norm(b.op("Tanh", b.input("x", "N", 6, 4)), 6)
        y = b.op("Gather", x, b.ints(*at), axis=1)
        folded(b.model(b.op("Conv", y, b.weight(4, 3, 1), b.weight(4))))
        b = Builder()
        y = b.op("Gather", b.op("Conv", b.input("x", "N", 6, 4), b.weight(6, 6, 1), b.weight(6)), b.ints(*at), axis=1)
        folded(b.model(b.norm(y, 3)), left=int(at == (1, 1, 4)))


def test_indices_of_several_axes_along_the_channels_stay() -> None:
    b = Builder()
    y = b.op("Conv", b.input("x", "N", 6, 4), b.weight(6, 6, 1), b.weight(6))
    at = b.weight(values=np.arange(6, dtype=np.int64).reshape(2, 3))
    result = refused(b.model(b.norm(b.op("Gather", y, at, axis=1), 2)), "WRONG_AXIS")
    (kept,) = result.report.unfolded
    said = " ".join([kept.message, *(a.message for a in kept.alternatives)])
    assert "run" not in said and "axes" in said


def test_a_normalized_value_is_a_table_of_its_own() -> None:
    b = Builder()  # the rows are computed, and chosen at run time
    x = b.norm(b.op("Tanh", b.input("x", WORDS, WIDTH)), WIDTH)
    y = b.op("Gather", x, b.op("ArgMax", b.input("z", 4, WORDS), axis=1, keepdims=0))
    folded(b.model(b.op("Gemm", y, b.weight(WIDTH, 4), b.weight(4))))
    b = Builder()
    x = b.norm(b.op("Tanh", b.input("x", 4, WORDS)), WORDS)
    y = b.op("Gather", x, b.op("ArgMax", b.input("z", 6, WORDS), axis=1, keepdims=0), axis=1)
    refused(b.model(b.op("Gemm", y, b.weight(6, 4), b.weight(4))), "NOT_CONSTANT")


# -- wrong laws ------------------------------------------------------------------------------------------------------


def _turned(op: Op, output: int, a: Affine) -> Answer:
    return [(Need(0, a.transposed((1, 0))),)]  # a scale for each word


def _scaled(op: Op, output: int, a: Affine) -> Answer:
    return [(Need(0, a.only_scale()),)]


def _unsigned(op: Op, output: int, a: Affine) -> Answer:
    return [(Need(0, Affine(np.abs(a.scale), a.shift)),)]


@pytest.mark.parametrize("wrong", [_turned, _scaled, _unsigned])
def test_a_wrong_law_upward_is_caught(monkeypatch: pytest.MonkeyPatch, wrong: Callable[..., Answer]) -> None:
    b = Builder()
    model = b.model(b.norm(b.op("Gather", b.weight(WORDS, WIDTH), tokens(b, "N")), WIDTH))
    same(model)
    monkeypatch.setitem(LAWS, ("", "Gather"), replace(LAWS["", "Gather"], up=wrong))
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        same(model)


def test_a_wrong_law_downward_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    law = LAWS["", "Gather"]

    def down(op: Op, given: Mapping[int, Affine]) -> Answer:
        answer = law.down(op, given)
        assert not isinstance(answer, Refusal)
        return [(Carry(given[0]),)]  # as if the indices were in order

    b = Builder()
    x = b.norm(b.op("Tanh", b.input("x", "N", 6, 4)), 6)
    y = b.op("Gather", x, b.ints(5, 3, 1, 0, 2, 4), axis=1)
    model = b.model(b.op("Conv", y, b.weight(4, 6, 1), b.weight(4)))
    folded(model)
    monkeypatch.setitem(LAWS, ("", "Gather"), replace(law, down=down))
    result = fold(model)
    assert result.changed and difference(model, result) > 1e-3
