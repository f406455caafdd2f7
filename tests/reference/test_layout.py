"""Ops that move data or have a type of their own, over their opsets: equal to ONNX Runtime bit for bit."""

import itertools

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper

from .one_node import compare, feeds, int64, judge, linear, normal, one_node, relative

RNG = np.random.default_rng(6)
X = normal(RNG, 2, 6, 4, 3)
EXACT = relative(0)


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect"])
def test_pad(mode: str):
    for opset, pads in itertools.product((2, 11, 13, 18, 19), ([0, 1, 2, 0, 0, 0, 1, 2], [0, -1, 1, 0, 0, 2, -1, 0])):
        if mode != "constant" and min(pads) < 0:
            continue  # ONNX Runtime reflects what the negative padding cut off; the specification is silent
        if opset == 2:
            compare("Pad", [X], opset, EXACT, mode=mode, pads=pads, **({"value": 1.5} if mode == "constant" else {}))
            continue
        value = [np.array(1.5, dtype=np.float32)] if mode == "constant" else []
        compare("Pad", [X, int64(*pads), *value], opset, EXACT, mode=mode)
        compare("Pad", [X, int64(*pads)], opset, EXACT, mode=mode)
        if opset >= 18:
            axes = [int64(2, -3)]
            compare("Pad", [X, int64(1, 0, 2, 1), value[0] if value else None, *axes], opset, EXACT, mode=mode)


def test_pad_wrap():
    compare("Pad", [X, int64(0, 1, 2, 0, 0, 0, 1, 2)], 19, EXACT, mode="wrap")


def test_reshape_and_flatten():
    for shape in ((0, -1), (-1, 3, 4, 6), (0, 0, 12), (144,)):
        for opset in (5, 13, 14):
            compare("Reshape", [X, int64(*shape)], opset, EXACT)
    for axis in (0, 1, 2, 4, -1):
        compare("Flatten", [X], 13, EXACT, axis=axis)
    empty = np.zeros((0, 3), dtype=np.float32)
    compare("Reshape", [empty, int64(3, 0)], 14, EXACT, allowzero=1)
    (ours,) = judge(one_node("Reshape", [X], 1, shape=[4, -1]), feeds([X]))
    np.testing.assert_array_equal(ours, X.reshape(4, -1))


def test_squeeze_and_unsqueeze():
    x = normal(RNG, 1, 3, 1, 2)
    for opset in (1, 11):
        compare("Squeeze", [x], opset, EXACT, axes=[0, 2])
        compare("Squeeze", [x], opset, EXACT)
        compare("Unsqueeze", [x], opset, EXACT, axes=[1, 5])
    compare("Squeeze", [x, int64(-2)], 13, EXACT)
    compare("Squeeze", [x], 13, EXACT)
    compare("Unsqueeze", [x, int64(-1, 0)], 13, EXACT)


def test_transpose_concat_expand_tile():
    compare("Transpose", [X], 13, EXACT)
    compare("Transpose", [X], 13, EXACT, perm=[0, 2, 3, 1])
    for axis in (0, 1, -1):
        compare("Concat", [X, X, X], 13, EXACT, axis=axis)
    compare("Expand", [X[:1, :, :1], int64(5, 1, 4, 1)], 13, EXACT)
    compare("Tile", [X, int64(1, 2, 1, 3)], 13, EXACT)


def test_slice():
    for axes, starts, ends in (([1], [1], [-1]), ([0, 3], [0, -2], [1, 99]), ([2], [3], [1])):
        compare("Slice", [X], 9, EXACT, axes=axes, starts=starts, ends=ends)
        compare("Slice", [X, int64(*starts), int64(*ends), int64(*axes)], 13, EXACT)
    for start, end, step in ((5, 0, -1), (-1, -99, -2), (0, 6, 2), (4, 99, 3), (99, 1, -1), (1, -7, -1)):
        compare("Slice", [X, int64(start), int64(end), int64(1), int64(step)], 13, EXACT)


def test_split():
    compare("Split", [X], 11, EXACT, 3, axis=1)
    compare("Split", [X], 11, EXACT, 2, axis=1, split=[2, 4])
    compare("Split", [X, int64(1, 5)], 13, EXACT, 2, axis=1)
    compare("Split", [X[:, :5]], 18, EXACT, 2, axis=1, num_outputs=2)


def test_gather_shape_and_blocks():
    compare("Gather", [X, np.array([[0, -1], [2, 3]], dtype=np.int64)], 13, EXACT, axis=1)
    compare("Gather", [X, np.array(1, dtype=np.int64)], 13, EXACT, axis=2)
    compare("Shape", [X], 15, 0, start=1, end=-1)
    compare("Size", [X], 13, 0)
    x = normal(RNG, 2, 8, 2, 4)
    for mode in ("DCR", "CRD"):
        compare("DepthToSpace", [x], 13, EXACT, blocksize=2, mode=mode)
    compare("SpaceToDepth", [x], 13, EXACT, blocksize=2)


def test_gathers_and_scatters_of_onnx():
    index = RNG.integers(0, 4, X.shape)
    compare("GatherElements", [X, index], 13, EXACT, axis=2)
    compare("GatherND", [X, np.array([[0, 5], [1, 2]], dtype=np.int64)], 13, EXACT)
    compare("ScatterND", [X, np.array([[0, 5], [1, 2]], dtype=np.int64), normal(RNG, 2, 4, 3)], 13, EXACT)
    unique = np.tile(np.array([3, 1, 0, 2]).reshape(1, 1, 4, 1), (2, 6, 1, 3))
    compare("ScatterElements", [X, unique, normal(RNG, *X.shape)], 13, EXACT, axis=2)
    compare("TopK", [X, int64(2)], 11, EXACT, 2, axis=1)
    compare("TopK", [X, int64(3)], 11, EXACT, 2, axis=-1, largest=0)
    compare("Trilu", [X], 14, EXACT, upper=0)
    compare("NonZero", [np.round(X)], 13, 0)


def test_one_hot_range_eye_and_constant_of_shape():
    values = np.array([-1, 2], dtype=np.float32)
    for axis in (-1, 0, 1):
        compare(
            "OneHot",
            [np.array([[0, 2], [-1, 3]], dtype=np.int64), np.array(4, dtype=np.int64), values],
            11,
            EXACT,
            axis=axis,
        )
    compare("Range", [np.array(v, dtype=np.int64) for v in (10, -3, -3)], 11, 0)
    compare("EyeLike", [X[0, :, :, 0]], 9, EXACT, k=1)
    value = numpy_helper.from_array(np.array([7], dtype=np.int64))
    compare("ConstantOfShape", [int64(2, 3)], 9, 0, value=value)
    compare("ConstantOfShape", [int64(2, 0)], 9, EXACT)


def test_cast_truncates():
    x = np.array([-1.7, -0.2, 0, 0.9, 1.5, 200.7], dtype=np.float32)
    for to in (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL, TensorProto.FLOAT):
        compare("Cast", [x], 13, EXACT, to=to)
    (ours,) = judge(one_node("Cast", [x], 13, to=TensorProto.FLOAT16), feeds([x]))
    assert ours.dtype == np.float64
    np.testing.assert_array_equal(ours, x)


def test_quantize_and_dequantize():
    q = RNG.integers(-128, 128, (2, 3, 4)).astype(np.int8)
    scale, zero = np.array([0.1, 0.25, 2], dtype=np.float32), np.array([3, -5, 0], dtype=np.int8)
    compare("DequantizeLinear", [q, scale, zero], 13, relative(1), axis=1)
    compare("DequantizeLinear", [q, scale[0:1].reshape(()), zero[0:1].reshape(())], 10, relative(1))
    x = normal(RNG, 2, 3, 4) * 20
    compare("QuantizeLinear", [x, scale, zero], 13, 0, axis=1)
    half = np.array([0.5, 1.5, 2.5, -0.5, 300], dtype=np.float32)
    one = np.array(1, dtype=np.float32)
    compare("QuantizeLinear", [half, one, np.array(0, dtype=np.uint8)], 13, 0)


@pytest.mark.parametrize("opset", [1, 6])
def test_gemm_before_opset_7(opset: int):
    a, b, c = RNG.standard_normal((3, 4)), RNG.standard_normal((4, 5)), RNG.standard_normal(5)
    (ours,) = judge(one_node("Gemm", [a, b, c], opset, broadcast=1, alpha=0.5, beta=2.0), feeds([a, b, c]))
    np.testing.assert_allclose(ours, 0.5 * a @ b + 2 * c, rtol=1e-13)


def test_products():
    for ta, tb in itertools.product((0, 1), repeat=2):
        a, b = normal(RNG, *((4, 3) if ta else (3, 4))), normal(RNG, *((5, 4) if tb else (4, 5)))
        for c in (None, normal(RNG, 5), normal(RNG, 3, 1), normal(RNG, 3, 5), normal(RNG, 1)):
            linear("Gemm", [a, b, c], 13, 8, transA=ta, transB=tb, alpha=0.5, beta=1.5)
    for a, b in (((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((4,), (2, 4, 5)), ((2, 1, 3, 4), (6, 4, 2)), ((4,), (4,))):
        linear("MatMul", [normal(RNG, *a), normal(RNG, *b)], 13, 6)
    linear("Einsum", [normal(RNG, 2, 3, 4), normal(RNG, 2, 4, 5)], 12, 6, equation="bij, bjk -> bik")
