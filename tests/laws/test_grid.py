"""A grid a law: signs, padding, groups and sizes that coincide; what must fold and what must be refused."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from tests.graphs import Builder, count, folded, refused

SPACE = {1: (7,), 2: (7, 6), 3: (5, 6, 4)}


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("group", [1, 2, 6])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("pads", [0, 1])
def test_conv_upward(n: int, group: int, bias: bool, pads: int) -> None:
    b = Builder()
    x = b.input("x", "N", 6, *SPACE[n])
    extra = [b.weight(6)] if bias else []
    y = b.op("Conv", x, b.weight(6, 6 // group, *[3] * n), *extra, group=group, pads=[pads] * 2 * n)
    folded(b.model(b.norm(y, 6)))


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("group", [1, 2, 6])
@pytest.mark.parametrize("bias", [False, True])
def test_conv_downward(n: int, group: int, bias: bool) -> None:
    b = Builder()
    y = b.norm(b.op("Relu", b.input("x", "N", 6, *SPACE[n])), 6)
    extra = [b.weight(12)] if bias else []
    spread = 2 if n == 1 else 1
    w = b.weight(12, 6 // group, *[3] * n)
    folded(b.model(b.op("Conv", y, w, *extra, group=group, dilations=[spread] * n)))


PADDING: list[tuple[dict[str, Any], int, bool]] = [
    ({"pads": [1, 1, 1, 1]}, 3, False),
    ({"pads": [0, 0, 0, 1]}, 3, False),
    ({"pads": [1, 1, 1, 1]}, 1, False),  # a kernel of 1 does not excuse explicit pads
    ({"auto_pad": "VALID"}, 3, True),
    ({"auto_pad": "SAME_UPPER"}, 3, False),
    ({"auto_pad": "SAME_LOWER"}, 3, False),
    ({"auto_pad": "SAME_UPPER"}, 1, True),
]


@pytest.mark.parametrize(("attributes", "kernel", "folds"), PADDING)
def test_conv_downward_minds_the_border(attributes: dict[str, Any], kernel: int, folds: bool) -> None:
    b = Builder()
    y = b.norm(b.op("Relu", b.input("x", "N", 6, 8, 7)), 6)
    model = b.model(b.op("Conv", y, b.weight(4, 6, kernel, kernel), **attributes))
    if folds:
        folded(model)
    else:
        refused(model, "PADDED")
    b = Builder()  # without a shift the border stays 0
    y = b.norm(b.op("Relu", b.input("x", "N", 6, 8, 7)), 6, shift=False)
    folded(b.model(b.op("Conv", y, b.weight(4, 6, kernel, kernel), **attributes)))


@pytest.mark.parametrize("group", [1, 2, 3, 6])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("attributes", [{}, {"strides": [2, 2], "output_padding": [1, 1]}, {"pads": [1, 0, 1, 0]}])
def test_conv_transpose_upward(group: int, bias: bool, attributes: dict[str, Any]) -> None:
    b = Builder()
    x = b.input("x", "N", 6, 5, 4)
    extra = [b.weight(2 * group)] if bias else []
    y = b.op("ConvTranspose", x, b.weight(6, 2, 3, 3), *extra, group=group, **attributes)
    folded(b.model(b.norm(y, 2 * group)))


@pytest.mark.parametrize("group", [1, 2, 3])
@pytest.mark.parametrize(
    ("kernel", "attributes", "folds"),
    [
        (1, {}, True),
        (3, {"pads": [2, 2, 2, 2]}, True),
        (3, {"pads": [1, 1, 1, 1]}, False),
        (3, {}, False),
        (2, {"strides": [2, 2]}, False),
        (3, {"pads": [4, 4, 4, 4], "dilations": [2, 2]}, True),
        (3, {"pads": [2, 2, 2, 2], "dilations": [2, 2]}, False),
    ],
)
def test_conv_transpose_downward(group: int, kernel: int, attributes: dict[str, Any], folds: bool) -> None:
    b = Builder()
    y = b.norm(b.op("Relu", b.input("x", "N", 6, 9, 8)), 6)
    model = b.model(b.op("ConvTranspose", y, b.weight(6, 2, kernel, kernel), group=group, **attributes))
    if folds:
        folded(model)
    else:
        refused(model, "PADDED")


GEMM = list(itertools.product((1.0, 0.7), (1.0, -0.3, 0.0), (0, 1), (None, (), (5,), (1, 5), (4, 1), (4, 5))))


@pytest.mark.parametrize(("alpha", "beta", "turn", "c"), GEMM)
def test_gemm(alpha: float, beta: float, turn: int, c: tuple[int, ...] | None) -> None:
    for way in ("up", "down"):
        b = Builder()
        x = b.input("x", 4, 6)
        x = b.norm(b.op("Relu", x), 6) if way == "down" else x
        extra = [] if c is None else [b.weight(*c)]
        w = b.weight(*((5, 6) if turn else (6, 5)))
        y = b.op("Gemm", x, w, *extra, alpha=alpha, beta=beta, transB=turn)
        folded(b.model(b.norm(y, 5) if way == "up" else y))


def test_gemm_whose_first_operand_is_turned_or_constant() -> None:
    b = Builder()
    x = b.input("x", 6, 4)  # transA: x is [K, M]; its axis 1 is M, which a Gemm by a constant B leaves alone
    refused(b.model(b.op("Gemm", b.norm(b.op("Relu", x), 4), b.weight(6, 5), transA=1)), "WRONG_AXIS")
    b = Builder()
    y = b.op("Gemm", b.weight(4, 6), b.norm(b.op("Relu", b.input("x", 6, 5)), 5))
    refused(b.model(y), "WRONG_AXIS")
    b = Builder()
    folded(b.model(b.norm(b.op("Gemm", b.input("x", 6, 4), b.weight(6, 5), transA=1), 5)))


@pytest.mark.parametrize("right", [(6, 5), (3, 6, 5)])
def test_matmul_upward_becomes_matmul_and_add(right: tuple[int, ...]) -> None:
    b = Builder()
    y = b.op("MatMul", b.input("x", "N", 6) if len(right) == 2 else b.input("x", 3, 4, 6), b.weight(*right))
    if len(right) == 3:
        y = b.op("Transpose", y, perm=[0, 2, 1])
    result = folded(b.model(b.norm(y, 5)))
    assert [n.op_type for n in result.model.graph.node if n.op_type != "Transpose"] == ["MatMul", "Add"]


def test_matmul_carries_a_shift_into_the_next_gemm() -> None:
    b = Builder()
    y = b.op("MatMul", b.norm(b.op("Relu", b.input("x", "N", 6)), 6), b.weight(6, 5))
    result = folded(b.model(b.op("Gemm", y, b.weight(5, 3))))
    assert [n.op_type for n in result.model.graph.node] == ["Relu", "MatMul", "Gemm"]


def test_matmul_with_the_constant_on_the_left() -> None:
    b = Builder()
    y = b.op("MatMul", b.weight(6, 4), b.input("x", "N", 4, 5))
    folded(b.model(b.norm(y, 6)))


@pytest.mark.parametrize("kind", ["Mul", "Add", "Sub", "Div"])
@pytest.mark.parametrize("shape", [(), (1,), (6, 1, 1), (1, 6, 1, 1)])
@pytest.mark.parametrize("first", [False, True])
def test_constant_arithmetic_after_a_conv(kind: str, shape: tuple[int, ...], first: bool) -> None:
    b = Builder()
    y = b.op("Conv", b.input("x", "N", 3, 6, 6), b.weight(6, 3, 1, 1))
    c = b.weight(*shape)
    y = b.op(kind, *((c, y) if first else (y, c)))
    result = folded(b.model(y))
    nodes = [n.op_type for n in result.model.graph.node]
    assert nodes == (["Conv", "Div"] if first and kind == "Div" else ["Conv"])


@pytest.mark.parametrize("shape", [(6,), (6, 1), (1, 6), (6, 6)])
@pytest.mark.parametrize("kind", ["Mul", "Add"])
def test_a_constant_is_aligned_not_measured(kind: str, shape: tuple[int, ...]) -> None:
    b = Builder()  # [6] on a 6-wide output of 6 channels is a width vector
    y = b.op("Conv", b.input("x", "N", 6, 6, 6), b.weight(6, 6, 1, 1))
    result = folded(b.model(b.op(kind, y, b.weight(*shape))))
    assert [n.op_type for n in result.model.graph.node] == ["Conv", kind]


@pytest.mark.parametrize("kind", ["Add", "Sub", "Sum"])
def test_sums_of_branches(kind: str) -> None:
    b = Builder()
    x = b.input("x", "N", 3, 6, 6)
    left, right = (b.op("Conv", x, b.weight(6, 3, 1, 1)) for _ in range(2))
    folded(b.model(b.norm(b.op(kind, left, right), 6)))
    b = Builder()  # downward, with 1/s on the other branch
    x = b.input("x", "N", 6, 6, 6)
    left = b.norm(b.op("Relu", x), 6)
    right = b.op("Conv", x, b.weight(6, 6, 1, 1))
    folded(b.model(b.op("Conv", b.op(kind, left, right), b.weight(4, 6, 3, 3))))


def test_a_value_added_to_itself() -> None:
    for kind in ("Add", "Sub"):
        b = Builder()
        y = b.op("Conv", b.input("x", "N", 3, 5, 5), b.weight(6, 3, 1, 1))
        model = b.model(b.norm(b.op(kind, y, y), 6))
        if kind == "Add":
            folded(model)
        else:
            refused(model, "CONFLICT")


def test_another_reader_gets_the_inverse() -> None:
    b = Builder()
    y = b.op("Conv", b.input("x", "N", 3, 6, 6), b.weight(6, 3, 3, 3))
    other = b.op("Conv", y, b.weight(4, 6, 1, 1))
    result = folded(b.model(b.op("Relu", b.norm(y, 6)), other))
    assert result.report.folded[0].direction == "both"


def test_another_reader_that_cannot_be_edited_refuses() -> None:
    b = Builder()
    y = b.op("Conv", b.input("x", "N", 3, 6, 6), b.weight(6, 3, 3, 3))
    refused(b.model(b.op("Tanh", b.norm(y, 6)), b.op("Tanh", y)), "NONLINEAR")


@pytest.mark.parametrize("shared", ["weight", "bias", "both"])
def test_shared_weights_are_cloned_for_each_distinct_demand(shared: str) -> None:
    b = Builder()
    x = b.input("x", "N", 3, 6, 6)
    w, c = b.weight(6, 3, 1, 1), b.weight(6)
    one = b.norm(b.op("Conv", x, w, c), 6)
    other = (w if shared != "bias" else b.weight(6, 3, 1, 1), c if shared != "weight" else b.weight(6))
    two = b.norm(b.op("Conv", x, *other), 6)
    folded(b.model(one, two))


@pytest.mark.parametrize("kind", ["Relu", "LeakyRelu", "PRelu"])
@pytest.mark.parametrize("positive", [True, False])
def test_piecewise_linear(kind: str, positive: bool) -> None:
    b = Builder()
    y = b.op("Conv", b.input("x", "N", 3, 6, 6), b.weight(6, 3, 1, 1))
    # slopes below 0, for those above let a negative scale through
    slope = [b.weight(values=-np.linspace(0.1, 0.6, 6, dtype=np.float32).reshape(6, 1, 1))] if kind == "PRelu" else []
    model = b.model(b.norm(b.op(kind, y, *slope), 6, positive=positive, shift=False))
    if positive:
        folded(model)
    else:
        refused(model, "NEGATIVE_SCALE")
    b = Builder()
    y = b.op("Conv", b.input("x", "N", 3, 6, 6), b.weight(6, 3, 1, 1))
    y = b.op(kind, y, *([b.weight(6, 1, 1)] if kind == "PRelu" else []))
    refused(b.model(b.norm(y, 6, positive=True)), "NONLINEAR")


@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 1, 1, 1]])
def test_max_pool(positive: bool, pads: list[int]) -> None:
    settings: list[dict[str, Any]] = [{}, {"ceil_mode": 1}, {"strides": [2, 2]}]
    for attributes in settings:
        b = Builder()
        y = b.op("Conv", b.input("x", "N", 3, 7, 7), b.weight(6, 3, 1, 1))
        y = b.op("MaxPool", y, kernel_shape=[3, 3], pads=pads, **attributes)
        model = b.model(b.norm(y, 6, positive=positive))
        if positive:
            folded(model)
        else:
            refused(model, "NEGATIVE_SCALE")


@pytest.mark.parametrize(
    ("attributes", "folds"),
    [
        ({}, True),
        ({"pads": [1, 1, 1, 1]}, True),
        ({"pads": [1, 1, 1, 1], "count_include_pad": 1}, False),
        ({"count_include_pad": 1}, True),
        ({"auto_pad": "SAME_UPPER", "count_include_pad": 1}, False),
    ],
)
def test_average_pool(attributes: dict[str, Any], folds: bool) -> None:
    b = Builder()
    y = b.op("Conv", b.input("x", "N", 3, 7, 7), b.weight(6, 3, 1, 1))
    model = b.model(b.norm(b.op("AveragePool", y, kernel_shape=[3, 3], **attributes), 6))
    if folds:
        folded(model)
    else:
        refused(model, "PADDED")


@pytest.mark.parametrize("kind", ["GlobalAveragePool", "ReduceMean", "ReduceMean-"])
def test_means(kind: str) -> None:
    b = Builder()
    y = b.op("Conv", b.input("x", "N", 3, 7, 7), b.weight(6, 3, 1, 1))
    if kind == "GlobalAveragePool":
        y = b.op(kind, y)
    else:
        y = b.op("ReduceMean", y, axes=[-1, 2], keepdims=0 if kind.endswith("-") else 1)
    folded(b.model(b.norm(y, 6)))
    b = Builder()
    y = b.norm(b.op("Relu", b.input("x", "N", 6, 7, 7)), 6)
    y = b.op("ReduceMean", y, axes=[2, 3], keepdims=0)
    folded(b.model(b.op("Gemm", y, b.weight(6, 4))))


@pytest.mark.parametrize("length", [6, 5])
def test_layouts(length: int) -> None:
    b = Builder()  # tokens: [N, L, C], L may equal C
    y = b.op("MatMul", b.input("x", "N", length, 4), b.weight(4, 6))
    y = b.op("Reshape", y, b.ints(-1, 6))
    y = b.op("Reshape", b.norm(y, 6), b.ints(-1, length, 6))
    folded(b.model(y))
    b = Builder()
    y = b.op("MatMul", b.input("x", "N", length, 4), b.weight(4, 6))
    y = b.op("Transpose", y, perm=[0, 2, 1])
    folded(b.model(b.norm(y, 6)))
    b = Builder()  # a Reshape that puts other elements on the channel axis must not be skipped
    y = b.op("MatMul", b.input("x", "N", 6, 4), b.weight(4, 6))
    refused(b.model(b.norm(y, 6)), "GRAPH_BOUNDARY")
    b = Builder()
    y = b.norm(b.op("Relu", b.input("x", "N", 6, length, 2)), 6)
    folded(b.model(b.op("Gemm", b.op("Flatten", y), b.weight(6 * length * 2, 3))))
    b = Builder(opset=11)
    y = b.op("Conv", b.input("x", "N", 3, length), b.weight(6, 3, 1))
    y = b.op("Squeeze", b.op("Unsqueeze", y, axes=[3]), axes=[3])
    folded(b.model(b.norm(y, 6)))


@pytest.mark.parametrize("axis", [1, -3, 2, -1])
def test_concat(axis: int) -> None:
    b = Builder()
    x = b.input("x", 2, 3, 6, 6)
    parts = [b.op("Conv", x, b.weight(6, 3, 1, 1)) for _ in range(2)]
    y = b.op("Concat", *parts, axis=axis)
    folded(b.model(b.norm(y, 12 if axis in (1, -3) else 6)))
    b = Builder()  # downward: joined with the identity of the other input
    x = b.input("x", 2, 6, 6, 6)
    y = b.op("Concat", b.norm(b.op("Relu", x), 6), x, axis=1)
    folded(b.model(b.op("Conv", y, b.weight(4, 12, 3, 3))))


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("bias", [False, True])
def test_lstm_downward(direction: str, bias: bool) -> None:
    b = Builder()
    d, hidden = (2 if direction == "bidirectional" else 1), 5
    x = b.op("Transpose", b.norm(b.op("Relu", b.input("x", 3, 4, 7)), 4), perm=[2, 0, 1])
    extra = [b.weight(d, 8 * hidden)] if bias else []
    y = b.op("LSTM", x, b.weight(d, 4 * hidden, 4), b.weight(d, 4 * hidden, hidden), *extra,
             hidden_size=hidden, direction=direction)  # fmt: skip
    folded(b.model(y))


def test_identity_and_dropout_pass() -> None:
    b = Builder()
    y = b.op("Conv", b.input("x", "N", 3, 6, 6), b.weight(6, 3, 1, 1))
    folded(b.model(b.norm(b.op("Dropout", b.op("Identity", y)), 6)))


def test_runs_of_affine_nodes_become_one() -> None:
    b = Builder()
    y = b.op("Tanh", b.input("x", "N", 6, 5, 5))
    y = b.op("Add", b.op("Mul", b.norm(b.norm(y, 6), 6), b.weight(6, 1, 1)), b.weight(1, 6, 1, 1))
    result = folded(b.model(b.op("Tanh", y)), left=1)
    assert [n.op_type for n in result.model.graph.node] == ["Tanh", "BatchNormalization", "Tanh"]


def test_a_mul_and_add_is_never_made_of_a_batch_normalization() -> None:
    b = Builder()
    y = b.op("Mul", b.op("Tanh", b.input("x", "N", 6, 5, 5)), b.weight(6, 1, 1))
    result = folded(b.model(b.op("Tanh", b.norm(y, 6))), left=1)
    assert count(result.model) == 1 and len(result.model.graph.node) == 3


def test_both_arms_of_a_diamond() -> None:
    b = Builder()
    y = b.norm(b.op("Relu", b.input("x", "N", 6, 5, 5)), 6, positive=True, shift=False)
    z = b.op("Add", b.op("Relu", y), b.op("MaxPool", y, kernel_shape=[1, 1]))
    folded(b.model(b.op("Conv", z, b.weight(4, 6, 3, 3))))


def test_weights_from_constant_nodes_and_expressions() -> None:
    b = Builder()
    rng = np.random.default_rng(0)
    import onnx

    value = onnx.numpy_helper.from_array(rng.normal(size=(3, 6, 1, 1)).astype(np.float32))
    w = b.op("Transpose", b.op("Constant", value=value), perm=[1, 0, 2, 3])
    folded(b.model(b.norm(b.op("Conv", b.input("x", "N", 3, 6, 6), w), 6)))
