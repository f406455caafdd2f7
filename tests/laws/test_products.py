"""Mul, Div and MatMul of two values: a scale passes through either operand, a shift through neither."""

from __future__ import annotations

import pytest
from onnx import helper

from bnfold.fold import fold
from tests.graphs import Builder, folded, refused


def branches(b: Builder) -> tuple[str, str]:
    x = b.input("x", "N", 6, 6, 6)
    return b.op("Conv", x, b.weight(6, 6, 1, 1)), b.op("Exp", b.op("Conv", x, b.weight(6, 6, 1, 1)))


@pytest.mark.parametrize("kind", ["Mul", "Div"])
@pytest.mark.parametrize("slot", [0, 1])
def test_a_scale_leaves_a_product(kind: str, slot: int) -> None:
    b = Builder()
    pair = [b.op("Tanh", v) for v in branches(b)]
    pair[slot] = b.norm(pair[slot], 6, shift=False)
    folded(b.model(b.op("Conv", b.op(kind, *pair), b.weight(4, 6, 3, 3))))


@pytest.mark.parametrize("kind", ["Mul", "Div"])
def test_a_scale_enters_a_product(kind: str) -> None:
    b = Builder()
    y = b.op(kind, *branches(b))
    folded(b.model(b.norm(y, 6, shift=False)))


@pytest.mark.parametrize("kind", ["Mul", "Div"])
def test_a_shift_does_not_enter_a_product(kind: str) -> None:
    b = Builder()
    refused(b.model(b.norm(b.op(kind, *branches(b)), 6)), "NONLINEAR")


@pytest.mark.parametrize("kind", ["Mul", "Div"])
def test_a_shift_does_not_leave_a_product(kind: str) -> None:
    b = Builder()
    x, z = (b.op("Tanh", v) for v in branches(b))
    refused(b.model(b.op("Conv", b.op(kind, b.norm(x, 6), z), b.weight(4, 6, 3, 3))), "NONLINEAR")


@pytest.mark.parametrize("kind", ["Mul", "Div"])
def test_a_product_with_itself(kind: str) -> None:
    b = Builder()
    y = b.norm(b.op("Tanh", b.input("x", "N", 6, 6, 6)), 6, shift=False)
    folded(b.model(b.op("Conv", b.op(kind, y, y), b.weight(4, 6, 3, 3))), left=0)


@pytest.mark.parametrize("axis", [1, 2])
def test_a_scale_of_rows_or_columns_enters_a_matrix_product_of_two_values(axis: int) -> None:
    b = Builder()
    x = b.input("x", "N", 6, 6)
    left = b.op("MatMul", b.weight(6, 6), b.op("Tanh", x))
    right = b.op("MatMul", b.op("Tanh", x), b.weight(6, 6))
    y = b.op("MatMul", left, right)
    scale = b.weight(6, 1) if axis == 1 else b.weight(6)
    result = folded(b.model(b.op("Mul", y, scale)))
    assert not any(n.op_type == "Mul" for n in result.model.graph.node)


def test_a_branch_that_is_shorter_where_the_scale_varies_cannot_take_it() -> None:
    b = Builder()
    x = b.op("Conv", b.input("x", "N", 6, 6, 6), b.weight(6, 6, 1, 1))
    gate = b.op("Sigmoid", b.op("ReduceMean", x, axes=[1]))
    one = b.op("Conv", b.input("z", "N", 6, 6, 6), b.weight(1, 6, 1, 1))
    folded(b.model(b.norm(b.op("Mul", b.op("Conv", x, b.weight(6, 6, 1, 1)), gate), 6, shift=False)))
    refused(b.model(b.norm(b.op("Mul", one, b.op("Tanh", x)), 6, shift=False)), "WRONG_AXIS")


@pytest.mark.parametrize("kind", ["Gemm", "Add"])
def test_a_term_that_may_have_length_one_takes_no_scale_that_varies(kind: str) -> None:
    b = Builder()
    c = b.op("Mul", b.op("Tanh", b.input("c", 2, "C")), b.op("Exp", b.input("d", 2, "C")))
    x = b.input("x", 2, 3)
    y = b.op("Gemm", x, b.weight(3, 6), c) if kind == "Gemm" else b.op("Add", b.op("MatMul", x, b.weight(3, 6)), c)
    (kept,) = fold(b.model(b.norm(y, 6, shift=False))).report.unfolded
    assert {kept.reason, *(a.reason for a in kept.alternatives)} == {"UNKNOWN_SHAPE", "GRAPH_BOUNDARY"}


@pytest.mark.parametrize("rank", [2, 3])
def test_an_add_before_opset_7_says_where_it_stands(rank: int) -> None:
    b = Builder(opset=6)
    x, w = b.input("x", "N", *(6,) * (rank - 1)), b.weight(6, 6)
    y = b.norm(b.op("MatMul", *((w, x) if rank == 3 else (x, w))), 6)
    b.nodes[-1].attribute.append(helper.make_attribute("is_test", 1))
    result = folded(b.model(y))
    add = result.model.graph.node[-1]
    assert {a.name: a.i for a in add.attribute} == {"broadcast": 1, "axis": 1}
    (bias,) = (t for t in result.model.graph.initializer if t.name == add.input[1])
    assert list(bias.dims) == [6]
