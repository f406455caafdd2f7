"""What ONNX Runtime runs beyond convolutions: attention, sampling, transforms, quantized products and fused ops."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from bnfold.reference import UnsupportedOp

from .one_node import feeds, int64, judge, normal, one_node, provider

RNG = np.random.default_rng(11)
MS = "com.microsoft"


def same(
    op: str, inputs: Sequence[np.ndarray | None], opset: int, outputs: int = 1, /, domain: str = "", **attributes: Any
) -> None:
    """Judge and provider agree to 1e-6 of the output's rms, 1e-5 in the largest element; integers to the last bit.

    A DFT of the provider's is less exact where the length is no power of two: it gets four times that.
    """
    allowed = 4e-6 if op == "DFT" else 1e-6
    model = one_node(op, inputs, opset, outputs, **attributes)
    for output in model.graph.output:
        output.CopyFrom(helper.make_empty_tensor_value_info(output.name))
    if domain:
        model.graph.node[0].domain = domain
        model.opset_import.append(helper.make_opsetid(domain, 1))
    given = feeds(inputs)
    for ours, own, theirs in zip(
        judge(model, given), judge(model, given, dtype=None), provider(model, given), strict=True
    ):
        assert ours.shape == own.shape == theirs.shape, op
        assert own.dtype == theirs.dtype, op
        if theirs.dtype.kind != "f":
            np.testing.assert_array_equal(ours, theirs, err_msg=op)
            continue
        assert ours.dtype == np.float64
        rms = np.sqrt(np.mean(np.square(ours)))
        for result in (theirs, own):
            error = result.astype(np.float64) - ours
            assert np.sqrt(np.mean(np.square(error))) <= allowed * rms, op
            assert np.abs(error).max() <= 1e-5 * rms, op


@pytest.mark.parametrize("more", [{}, {"is_causal": 1}, {"softcap": 2.0}, {"scale": 0.3}])
def test_attention(more: dict[str, Any]):
    q, k, v = normal(RNG, 2, 6, 5, 8), normal(RNG, 2, 3, 7, 8), normal(RNG, 2, 3, 7, 4)
    same("Attention", [q, k, v], 23, **more)
    same("Attention", [q, k, v, normal(RNG, 5, 7)], 23, **more)
    same("Attention", [q, k, v, RNG.random((2, 1, 5, 7)) < 0.7], 23, **more)
    past = [normal(RNG, 2, 3, 4, 8), normal(RNG, 2, 3, 4, 4)]
    same("Attention", [q, k, v, None, *past], 23, 3, **more)
    flat = [normal(RNG, 2, 5, 24), normal(RNG, 2, 7, 12), normal(RNG, 2, 7, 12)]
    same("Attention", flat, 23, q_num_heads=6, kv_num_heads=3, **more)


@pytest.mark.parametrize("interleaved", [0, 1])
def test_rotary_embedding(interleaved: int):
    x, cos, sin = normal(RNG, 2, 3, 5, 8), normal(RNG, 9, 4), normal(RNG, 9, 4)
    at = RNG.integers(0, 9, (2, 5))
    same("RotaryEmbedding", [x, cos, sin, at], 23, interleaved=interleaved)
    same("RotaryEmbedding", [normal(RNG, 2, 5, 24), cos, sin, at], 23, interleaved=interleaved, num_heads=3)
    for positions in (at, int64(2)):
        same("RotaryEmbedding", [x, positions, cos, sin], 17, domain=MS, interleaved=interleaved)
        same("RotaryEmbedding", [normal(RNG, 2, 5, 24), positions, cos, sin], 17, domain=MS, interleaved=interleaved)


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align", [0, 1])
def test_grid_sample(padding: str, align: int):
    x, grid = normal(RNG, 2, 3, 6, 7), (1.4 * RNG.uniform(-1, 1, (2, 5, 4, 2))).astype(np.float32)
    for opset, modes in ((16, ("nearest", "bilinear", "bicubic")), (20, ("nearest", "linear", "cubic"))):
        for mode in modes:
            same("GridSample", [x, grid], opset, mode=mode, padding_mode=padding, align_corners=align)
    volume, places = normal(RNG, 1, 2, 4, 5, 6), (1.4 * RNG.uniform(-1, 1, (1, 3, 4, 5, 3))).astype(np.float32)
    for mode in ("nearest", "linear"):
        same("GridSample", [volume, places], 20, mode=mode, padding_mode=padding, align_corners=align)


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align(mode: str, ratio: int):
    x = normal(RNG, 2, 3, 9, 11)
    rois = np.array([[0, 0, 8, 8], [1.5, 2.25, 6, 20], [-3, -2, 4, 5], [5, 5, 5.2, 5.1]], np.float32)
    given = [x, rois, int64(0, 1, 1, 0)]
    sizes = {"output_height": 3, "output_width": 2, "sampling_ratio": ratio, "spatial_scale": 0.75, "mode": mode}
    same("RoiAlign", given, 10, **sizes)
    for how in ("half_pixel", "output_half_pixel"):
        same("RoiAlign", given, 16, coordinate_transformation_mode=how, **sizes)


def test_transforms():
    x = normal(RNG, 2, 12, 5, 1)
    same("DFT", [x], 17, axis=1)
    same("DFT", [x], 17, axis=1, onesided=1)
    same("DFT", [normal(RNG, 2, 12, 2)], 17, axis=1, inverse=1)
    same("DFT", [x, np.array(10), np.array(-3)], 20)
    signal, window = normal(RNG, 2, 40, 1), np.hanning(16).astype(np.float32)
    for onesided in (0, 1):
        same("STFT", [signal, np.array(5), window], 17, onesided=onesided)
        same("STFT", [signal, np.array(5), None, np.array(16)], 17, onesided=onesided)


def test_col2im_and_unpooling():
    x = normal(RNG, 2, 3 * 6, 20)
    same("Col2Im", [x, int64(5, 7), int64(2, 3)], 18)
    pooled, where = normal(RNG, 1, 1, 2, 2), np.array([[[[5, 7], [13, 15]]]])
    same("MaxUnpool", [pooled, where], 11, kernel_shape=[2, 2], strides=[2, 2])


@pytest.mark.parametrize("signed", [np.uint8, np.int8])
def test_quantized_products(signed: Any):
    """The scales are powers of two: what the provider multiplies in float32 is then exact as well."""
    limits = np.iinfo(signed)
    x, w = (RNG.integers(limits.min, limits.max, shape).astype(signed) for shape in ((2, 4, 6, 5), (6, 2, 3, 3)))
    a, b = (RNG.integers(limits.min, limits.max, shape).astype(signed) for shape in ((3, 7), (7, 4)))
    scale, zero = [np.array(2.0**-k, np.float32) for k in (3, 4, 1)], [np.array(k, signed) for k in (3, 0, 9)]
    same("QLinearMatMul", [a, scale[0], zero[0], b, scale[1], zero[1], scale[2], zero[2]], 10)
    if signed is np.uint8:
        bias = RNG.integers(-500, 500, 6).astype(np.int32)
        given = [x, scale[0], zero[0], w, scale[1], zero[1], scale[2], zero[2], bias]
        same("QLinearConv", given, 10, group=2, pads=[1, 0, 1, 2], strides=[2, 1])
        same("ConvInteger", [x, w, zero[0]], 10, group=2, pads=[1, 1, 1, 1])


ACTIVATIONS: dict[str, list[float]] = {
    "Relu": [], "Sigmoid": [], "Tanh": [], "LeakyRelu": [0.25], "Clip": [-0.5, 1.5], "HardSigmoid": [0.5, 0.25],
}  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_fused_products(activation: str):
    params = ACTIVATIONS[activation]
    given = [normal(RNG, 2, 4, 7, 6), normal(RNG, 6, 2, 3, 3), normal(RNG, 6)]
    more: dict[str, Any] = {"activation_params": params} if params else {}
    same("FusedConv", given, 17, domain=MS, group=2, pads=[1, 1, 1, 1], activation=activation, **more)
    if not params:
        same(
            "FusedConv", [*given, normal(RNG, 2, 6, 7, 6)], 17, domain=MS, group=2, pads=[1] * 4, activation=activation
        )
    if activation in ("Relu", "Sigmoid", "Tanh", "LeakyRelu"):
        more = {"activation_alpha": params[0]} if params else {}
        product = [normal(RNG, 3, 7), normal(RNG, 4, 7), normal(RNG, 4)]
        same("FusedGemm", product, 17, domain=MS, transB=1, alpha=0.5, beta=2.0, activation=activation, **more)


def test_fused_matmul():
    for shapes, attributes in (
        (((3, 4, 5), (3, 5, 6)), {}),
        (((3, 5, 4), (3, 5, 6)), {"transA": 1, "alpha": 0.25}),
        (((3, 4, 5), (3, 6, 5)), {"transB": 1}),
        (((4, 3, 5), (3, 5, 6)), {"transBatchA": 1}),
    ):
        same("FusedMatMul", [normal(RNG, *shape) for shape in shapes], 17, domain=MS, **attributes)


def test_fused_activations():
    x, bias = 3 * normal(RNG, 4, 9), normal(RNG, 9)
    same("Gelu", [x], 17, domain=MS)
    same("BiasGelu", [x, bias], 17, domain=MS)
    same("FastGelu", [x, bias], 17, domain=MS)
    same("FastGelu", [x], 17, domain=MS)
    for alpha in (1.702, 0.5):
        same("QuickGelu", [x], 17, domain=MS, alpha=alpha)


def test_fused_normalizations():
    x, skip = normal(RNG, 2, 5, 16), normal(RNG, 2, 5, 16)
    gamma, beta, bias = (normal(RNG, 16) for _ in range(3))
    same("SkipLayerNormalization", [x, skip, gamma, beta, bias], 17, domain=MS, epsilon=1e-5)
    same("SkipLayerNormalization", [x, skip, gamma], 17, domain=MS)
    same("SkipSimplifiedLayerNormalization", [x, skip, gamma, bias], 17, domain=MS, epsilon=1e-5)
    same("SimplifiedLayerNormalization", [x, gamma], 17, epsilon=1e-5)
    same("LayerNormalization", [x, gamma, beta], 17)
    same("RMSNormalization", [x, gamma], 23)
    ids, kinds = RNG.integers(0, 11, (2, 5)).astype(np.int32), RNG.integers(0, 2, (2, 5)).astype(np.int32)
    tables = [normal(RNG, n, 16) for n in (11, 8, 2)]
    same("EmbedLayerNormalization", [ids, kinds, *tables, gamma, beta], 17, 2, domain=MS)


def test_multi_head_attention():
    q, k, v = normal(RNG, 2, 5, 24), normal(RNG, 2, 7, 24), normal(RNG, 2, 7, 24)
    same("MultiHeadAttention", [q, k, v], 17, domain=MS, num_heads=3)
    same("MultiHeadAttention", [q, k, v, normal(RNG, 72)], 17, domain=MS, num_heads=3, scale=0.25)
    same("MultiHeadAttention", [q, k, v, None, None, normal(RNG, 2, 3, 5, 7)], 17, domain=MS, num_heads=3)


def test_what_is_not_evaluated_says_so():
    model = one_node("MultiHeadAttention", [normal(RNG, 2, 5, 3, 3, 8)], 17, num_heads=3)
    model.graph.node[0].domain = MS
    with pytest.raises(UnsupportedOp, match="does not import"):
        judge(model, {"x0": normal(RNG, 2, 5, 3, 3, 8)})
    model.opset_import.append(onnx.helper.make_opsetid(MS, 1))
    model.graph.node[0].attribute.append(helper.make_attribute("colour", 1))
    with pytest.raises(UnsupportedOp, match="'colour'"):
        judge(model, {"x0": normal(RNG, 2, 5, 3, 3, 8)})
