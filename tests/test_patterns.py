"""Whole patterns as exporters write them: attention, tokens, NHWC, shuffles, an LSTM in front of a classifier."""

from __future__ import annotations

import numpy as np
import pytest

import bnfold
from tests.graphs import Builder, folded


def kinds(result: bnfold.FoldResult) -> list[str]:
    return [node.op_type for node in result.model.graph.node]


@pytest.mark.parametrize("batch", [2, "N"])
def test_tokens_that_are_flattened_and_put_back(batch: int | str) -> None:
    b = Builder()
    y = b.op("MatMul", b.input("x", batch, 6, 6), b.weight(6, 6))
    y = b.op("Reshape", b.norm(b.op("Reshape", y, b.ints(-1, 6)), 6), b.ints(-1, 6, 6))
    assert "BatchNormalization" not in kinds(folded(b.model(b.op("Tanh", y))))


@pytest.mark.parametrize("batch", [2, "N"])
def test_a_normalization_between_transposes(batch: int | str) -> None:
    b = Builder()
    y = b.op("Add", b.op("MatMul", b.input("x", batch, 6, 6), b.weight(6, 6)), b.weight(6))
    y = b.op("Transpose", b.norm(b.op("Transpose", y, perm=[0, 2, 1]), 6), perm=[0, 2, 1])
    assert "BatchNormalization" not in kinds(folded(b.model(b.op("Tanh", y))))


def test_attention_with_normalized_projections() -> None:
    """LeViT's way: a normalization behind each of q, k, v, over heads that are cut out of one projection."""
    b = Builder()
    y = b.op("MatMul", b.input("x", "N", 5, 12), b.weight(12, 36))
    y = b.op("Reshape", b.norm(b.op("Reshape", y, b.ints(-1, 36)), 36), b.ints(-1, 5, 2, 18))
    first = b.op("Split", y, b.ints(6, 6, 6), outputs=3, axis=3)
    q, k, v = (b.op("Transpose", first + "_" * i, perm=[0, 2, 1, 3]) for i in range(3))
    scores = b.op("MatMul", q, b.op("Transpose", k, perm=[0, 1, 3, 2]))
    scores = b.op("Softmax", b.op("Mul", scores, b.weight(values=np.asarray(6**-0.5, np.float32))), axis=-1)
    z = b.op("Reshape", b.op("Transpose", b.op("MatMul", scores, v), perm=[0, 2, 1, 3]), b.ints(-1, 5, 12))
    z = b.op("MatMul", b.op("Relu", z), b.weight(12, 12))
    z = b.op("Reshape", b.norm(b.op("Reshape", z, b.ints(-1, 12)), 12), b.ints(-1, 5, 12))
    result = folded(b.model(z))
    assert kinds(result).count("MatMul") == 4 and "BatchNormalization" not in kinds(result)


def test_a_model_of_keras_full_of_transposes() -> None:
    b = Builder()
    y = b.input("x", "N", 8, 9, 3)
    for channels, before in ((6, 3), (6, 6)):
        y = b.op("Conv", b.op("Transpose", y, perm=[0, 3, 1, 2]), b.weight(channels, before, 3, 3), b.weight(channels))
        y = b.op("Identity", b.op("Transpose", y, perm=[0, 2, 3, 1]))
        scale = b.weight(values=b.random.uniform(0.5, 1.5, 6).astype(np.float32))
        y = b.op("Relu", b.op("Add", b.op("Mul", y, scale), b.weight(6)))
    y = b.op("Transpose", b.norm(b.op("Transpose", y, perm=[0, 3, 1, 2]), 6), perm=[0, 2, 3, 1])
    y = b.op("Gemm", b.op("ReduceMean", y, axes=[1, 2], keepdims=0), b.weight(6, 4), b.weight(4))
    result = folded(b.model(y))
    assert not {"BatchNormalization", "Mul", "Add"} & set(kinds(result))


def test_a_flattened_map_in_front_of_a_classifier() -> None:
    b = Builder()
    y = b.norm(b.op("Relu", b.input("x", "N", 6, 6, 6)), 6)
    y = b.op("Gemm", b.op("Flatten", b.op("MaxPool", b.op("Identity", y), kernel_shape=[1, 1])), b.weight(216, 4))
    positive = Builder()
    z = positive.norm(positive.op("Relu", positive.input("x", "N", 6, 6, 6)), 6, positive=True)
    z = positive.op("MaxPool", z, kernel_shape=[2, 2], strides=[2, 2])
    z = positive.op("Gemm", positive.op("Flatten", z), positive.weight(54, 4))
    folded(positive.model(z))
    folded(b.model(y), left=1)  # a maximum does not take the negative scales


def test_a_shuffle_of_channels_with_branches() -> None:
    b = Builder()
    x = b.op("Conv", b.input("x", "N", 6, 6, 6), b.weight(6, 6, 1, 1))
    left = b.op("Split", x, b.ints(3, 3), outputs=2, axis=1)
    right = b.norm(b.op("Conv", b.norm(left + "_", 3), b.weight(3, 1, 3, 3), group=3, pads=[1] * 4), 3)
    y = b.op("Concat", left, right, axis=1)
    y = b.op("Transpose", b.op("Reshape", y, b.ints(0, 2, 3, 6, 6)), perm=[0, 2, 1, 3, 4])
    y = b.op("Reshape", y, b.ints(0, 6, 6, 6))
    folded(b.model(b.op("Conv", b.norm(y, 6), b.weight(4, 6, 1, 1))), left=0)


def test_squeeze_and_excitation_takes_a_normalization_in_front_of_its_gate() -> None:
    b = Builder()
    x = b.op("Conv", b.input("x", "N", 3, 6, 6), b.weight(6, 3, 1, 1))
    y = b.norm(x, 6)
    gate = b.op("Conv", b.op("GlobalAveragePool", y), b.weight(2, 6, 1, 1), b.weight(2))
    gate = b.op("Sigmoid", b.norm(b.op("Conv", b.op("Relu", gate), b.weight(6, 2, 1, 1)), 6))
    folded(b.model(b.op("Mul", y, gate)))
