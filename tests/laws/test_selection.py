"""Slice, Split and Gather: on every axis, in every syntax, beside other readers of what they cut."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from bnfold.affine import affine
from bnfold.fold import fold
from bnfold.gauge import Carry, Law, Need
from bnfold.laws import LAWS
from tests.graphs import Builder, difference, folded, refused

END = 2**63 - 1


def made(b: Builder, channels: int = 6, batch: int | str = "N") -> str:
    return b.op("Conv", b.input("x", batch, 3, 6, 6), b.weight(channels, 3, 1, 1), b.weight(channels))


def cut(b: Builder, y: str, start: int, end: int, axis: int, step: int = 1) -> str:
    if b.opset < 10:
        return b.op("Slice", y, starts=[start], ends=[end], axes=[axis])
    return b.op("Slice", y, b.ints(start), b.ints(end), b.ints(axis), b.ints(step))


CUTS = [(0, 4, 1), (2, END, 1), (-3, -1, 1), (-1, -END - 1, -1), (5, 0, -2), (0, 6, 2), (-100, 100, 1), (3, 4, 1)]


@pytest.mark.parametrize(("start", "end", "step"), CUTS)
@pytest.mark.parametrize("axis", [1, -3])
def test_a_slice_of_the_channels(start: int, end: int, step: int, axis: int) -> None:
    kept = len(range(6)[start:end:step])
    b = Builder()
    folded(b.model(b.norm(cut(b, made(b), start, end, axis, step), kept)))
    b = Builder()
    y = cut(b, b.norm(b.op("Tanh", made(b)), 6), start, end, axis, step)
    folded(b.model(b.op("Conv", y, b.weight(4, kept, 3, 3))))


@pytest.mark.parametrize("opset", [9, 10, 17])
@pytest.mark.parametrize("axis", [0, 2, 3])
def test_a_slice_of_another_axis(opset: int, axis: int) -> None:
    b = Builder(opset=opset)
    folded(b.model(b.norm(cut(b, made(b, batch=4), 1, 5, axis), 6)))
    b = Builder(opset=opset)
    y = cut(b, b.norm(b.op("Tanh", made(b, batch=4)), 6), 1, 5, axis)
    folded(b.model(b.op("Conv", y, b.weight(4, 6, 3, 3))))


def test_both_halves_of_the_channels_have_a_normalization() -> None:
    b = Builder()
    y = made(b)
    folded(b.model(b.norm(cut(b, y, 0, 3, 1), 3), b.norm(cut(b, y, 3, 6, 1), 3)))


@pytest.mark.parametrize("reader", ["Tanh", "Conv"])
def test_another_reader_sees_only_what_was_selected_change(reader: str) -> None:
    b = Builder()
    y = made(b)
    first = b.norm(cut(b, y, 0, 3, 1), 3)
    if reader == "Conv":
        folded(b.model(first, b.op("Conv", y, b.weight(4, 6, 1, 1))))
    else:
        refused(b.model(first, b.op("Tanh", y)), "NONLINEAR")
    b = Builder()
    y = made(b)
    folded(b.model(b.norm(cut(b, y, 0, 3, 1), 3), b.op("Tanh", cut(b, y, 3, 6, 1))))  # it sees the other half


def test_where_a_slice_starts_may_be_known_only_at_run_time() -> None:
    b = Builder()
    start = b.op("Cast", b.op("ReduceMax", b.input("s", 1), keepdims=1), to=onnx.TensorProto.INT64)
    y = b.op("Slice", made(b), start, b.ints(6), b.ints(1))
    result = fold(b.model(b.op("Mul", y, b.weight(values=np.asarray(2.0, np.float32)))))
    assert len(result.report.folded) == 1  # one factor for all channels
    b = Builder()
    start = b.op("Cast", b.op("ReduceMax", b.input("s", 1), keepdims=1), to=onnx.TensorProto.INT64)
    y = b.op("Slice", b.norm(b.op("Tanh", made(b)), 6), start, b.ints(6), b.ints(1))
    (kept,) = fold(b.model(b.op("Relu", y))).report.kept
    assert "NOT_CONSTANT" in {kept.reason, *(a.reason for a in kept.alternatives)}


def split(b: Builder, y: str, sizes: list[int], axis: int) -> list[str]:
    if b.opset >= 13:
        even = len(set(sizes)) == 1
        first = b.op("Split", y, *([] if even and b.opset < 18 else [b.ints(*sizes)]), outputs=len(sizes), axis=axis)
    else:
        first = b.op("Split", y, outputs=len(sizes), axis=axis, split=sizes)
    return [first + "_" * k for k in range(len(sizes))]


@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("sizes", [[3, 3], [2, 2, 2], [1, 5], [4, 1, 1]])
@pytest.mark.parametrize("axis", [1, -3])
def test_split_of_the_channels(opset: int, sizes: list[int], axis: int) -> None:
    b = Builder(opset=opset)
    parts = split(b, made(b), sizes, axis)
    folded(b.model(*(b.norm(part, n) for part, n in zip(parts, sizes, strict=True))))
    b = Builder(opset=opset)
    parts = split(b, b.norm(b.op("Tanh", made(b)), 6), sizes, axis)
    folded(b.model(*(b.op("Conv", part, b.weight(4, n, 1, 1)) for part, n in zip(parts, sizes, strict=True))))


def test_the_outputs_of_a_split_are_one_demand() -> None:
    b = Builder()
    first, second = split(b, made(b), [3, 3], 1)
    folded(b.model(b.norm(b.op("Concat", second, first, axis=1), 6)))  # channel shuffle
    b = Builder()
    first, second = split(b, made(b, batch=4), [2, 2], 0)
    folded(b.model(b.norm(b.op("Concat", second, first, axis=0), 6)))  # the same map for both halves of the batch
    b = Builder()
    first, second = split(b, made(b), [3, 3], 1)
    refused(b.model(b.norm(b.op("Concat", b.op("Tanh", second), first, axis=1), 6)), "NONLINEAR")


def test_one_output_of_a_split_stays_as_it_is() -> None:
    b = Builder()
    first, second = split(b, made(b), [2, 4], 1)
    folded(b.model(b.norm(second, 4), b.op("Tanh", first)))


def test_channel_shuffle_by_reshape_and_transpose() -> None:
    b = Builder()
    y = b.op("Transpose", b.op("Reshape", made(b), b.ints(0, 2, 3, 6, 6)), perm=[0, 2, 1, 3, 4])
    folded(b.model(b.norm(b.op("Reshape", y, b.ints(0, 6, 6, 6)), 6)))


@pytest.mark.parametrize("indices", [[0, 2, 4], [5, 4, 3, 2, 1, 0], [-1, 0]])
@pytest.mark.parametrize("axis", [1, -3])
def test_gather_of_channels(indices: list[int], axis: int) -> None:
    b = Builder()
    y = b.op("Gather", made(b), b.ints(*indices), axis=axis)
    folded(b.model(b.norm(y, len(indices))))
    b = Builder()
    y = b.op("Gather", b.norm(b.op("Tanh", made(b)), 6), b.ints(*indices), axis=axis)
    folded(b.model(b.op("Conv", y, b.weight(4, len(indices), 1, 1))))


def test_gather_of_one_channel_twice() -> None:
    b = Builder()
    refused(b.model(b.norm(b.op("Gather", made(b), b.ints(0, 0, 1), axis=1), 3)), "CONFLICT")
    b = Builder()
    y = b.op("Gather", made(b), b.ints(0, 0, 1), axis=1)
    factor = b.weight(values=np.asarray([3, 3, -2], np.float32).reshape(3, 1, 1))
    assert fold(b.model(b.op("Mul", y, factor))).report.folded


@pytest.mark.parametrize("axis", [1, 2])
def test_gather_of_one_element_drops_the_axis(axis: int) -> None:
    b = Builder()
    one = b.weight(values=np.asarray(2, np.int64))
    y = b.op("Gather", b.norm(b.op("Tanh", made(b)), 6), one, axis=axis)
    folded(b.model(b.op("MatMul", b.op("Transpose", y, perm=[0, 2, 1]), b.weight(6, 6))))
    b = Builder()
    one = b.weight(values=np.asarray(2, np.int64))
    y = b.op("Gather", made(b), one, axis=axis)
    if axis == 2:
        folded(b.model(b.norm(y, 6)))
    else:
        model = b.model(b.norm(y, 6))  # the channels are gone: it normalizes rows
        refused(model, "WRONG_AXIS")


@pytest.mark.parametrize("shape", [(), ("N",), ("N", 5)])
def test_an_embedding_table_takes_the_map(shape: tuple[str | int, ...]) -> None:
    b = Builder()
    b.inputs.append(onnx.helper.make_tensor_value_info("i", onnx.TensorProto.INT64, shape))
    y = b.op("Gather", b.weight(6, 6), "i", axis=0)
    y = b.op("Mul", b.op("Add", b.op("Mul", y, b.weight(6)), b.weight(6)), b.weight(6))
    result = fold(b.model(b.op("Tanh", y)))
    assert [n.op_type for n in result.model.graph.node] == ["Gather", "Tanh"], result.report
    assert result.check()


def test_an_embedding_along_its_own_axis_stays() -> None:
    b = Builder()
    b.inputs.append(onnx.helper.make_tensor_value_info("i", onnx.TensorProto.INT64, (6,)))
    y = b.op("Gather", b.weight(6, 6), "i", axis=0)
    result = fold(b.model(b.op("Tanh", b.op("Mul", y, b.weight(6, 1)))))
    assert not result.changed


@pytest.mark.parametrize("kind", ["Slice", "Split", "Gather"])
@pytest.mark.parametrize("down", [False, True])
def test_mutants_are_caught(kind: str, down: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    law = LAWS["", kind]  # the mutant forgets where the cut began
    wrong = Law(
        lambda op, out, a: [(Need(0, affine(np.concatenate([a.scale, np.ones_like(a.scale)], 1))),)],
        lambda op, given: [tuple(Carry(given[0].sliced(1, 0, 3), k) for k in range(op.outputs))],
        law.attributes,
    )
    monkeypatch.setitem(LAWS, ("", kind), Law(law.up, wrong.down, law.attributes) if down else wrong)
    b = Builder()
    y = b.norm(b.op("Tanh", made(b)), 6) if down else made(b)
    if kind == "Slice":
        y = cut(b, y, 3, 6, 1)
    elif kind == "Split":
        y = split(b, y, [3, 3], 1)[1]
    else:
        y = b.op("Gather", y, b.ints(3, 4, 5), axis=1)
    model = b.model(b.op("Conv", y, b.weight(4, 3, 1, 1)) if down else b.op("Mul", y, b.weight(3, 1, 1)))
    result = fold(model)
    assert result.changed and difference(model, result) > 1e-3
