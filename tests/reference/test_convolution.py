"""Conv and ConvTranspose: every group, stride, dilation, padding and rank, against ONNX Runtime and against torch."""

import itertools
import math

import numpy as np
import pytest

from bnfold.reference import EvaluationError

from .one_node import compare, feeds, judge, linear, normal, one_node

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("opset", [1, 11, 22])
@pytest.mark.parametrize(
    ("rank", "group", "bias"), [(1, 1, True), (1, 2, False), (2, 1, True), (2, 6, True), (2, 3, False), (3, 2, True)]
)
def test_conv(opset: int, rank: int, group: int, bias: bool):
    size, kernel = [7, 9, 5][:rank], [3, 2, 1][:rank]
    x, w = normal(RNG, 2, 6, *size), normal(RNG, 2 * group, 6 // group, *kernel)
    b = normal(RNG, 2 * group) if bias else None
    roundings = math.prod(w.shape[1:]) + 2
    for stride, dilation in itertools.product((1, 2, 3), (1, 2)):
        for pads in ([0] * 2 * rank, [1, 0, 2][:rank] + [2, 1, 0][:rank]):
            common = {"strides": [stride] * rank, "dilations": [dilation] * rank, "group": group}
            linear("Conv", [x, w, b], opset, roundings, pads=pads, kernel_shape=kernel, **common)
    for auto_pad in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        for stride in (1, 2, 3):
            linear("Conv", [x, w, b], opset, roundings, auto_pad=auto_pad, strides=[stride] * rank, group=group)


@pytest.mark.parametrize("opset", [1, 11, 22])
@pytest.mark.parametrize(
    ("rank", "group", "bias"), [(1, 1, True), (1, 3, True), (2, 1, False), (2, 2, True), (2, 6, True), (3, 2, True)]
)
def test_conv_transpose(opset: int, rank: int, group: int, bias: bool):
    size, kernel = [4, 5, 3][:rank], [3, 2, 4][:rank]
    x, w = normal(RNG, 2, 6, *size), normal(RNG, 6, 2, *kernel)
    b = normal(RNG, 2 * group) if bias else None
    roundings = 6 // group * math.prod(kernel) + 2
    for stride, dilation, extra in ((1, 1, 0), (2, 1, 0), (2, 1, 1), (3, 2, 0), (3, 1, 2), (1, 2, 0)):
        common = {"strides": [stride] * rank, "dilations": [dilation] * rank, "group": group}
        for pads in ([0] * 2 * rank, [1, 0, 1][:rank] + [0, 1, 1][:rank]):
            linear("ConvTranspose", [x, w, b], opset, roundings, pads=pads, output_padding=[extra] * rank, **common)
    for auto_pad in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        for stride in (1, 2, 3):
            common = {"strides": [stride] * rank, "group": group}
            linear("ConvTranspose", [x, w, b], opset, roundings, auto_pad=auto_pad, **common)
    for auto_pad in ("NOTSET", "SAME_UPPER", "SAME_LOWER"):
        wanted = [2 * n + 1 for n in size]
        common = {"strides": [2] * rank, "group": group, "output_shape": wanted}
        linear("ConvTranspose", [x, w, b], opset, roundings, auto_pad=auto_pad, **common)


def test_against_torch_in_float64():
    torch = pytest.importorskip("torch")
    x, w, b = RNG.standard_normal((2, 6, 7, 9)), RNG.standard_normal((8, 3, 3, 2)), RNG.standard_normal(8)
    (ours,) = judge(one_node("Conv", [x, w, b], 22, group=2, strides=[2, 1], pads=[1, 2, 1, 2]), feeds([x, w, b]))
    theirs = torch.nn.functional.conv2d(*map(torch.from_numpy, (x, w, b)), stride=(2, 1), padding=(1, 2), groups=2)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=1e-14 * 20)
    w = RNG.standard_normal((6, 4, 3, 2))
    options = {"group": 2, "strides": [2, 3], "pads": [1, 0, 1, 0], "output_padding": [1, 2]}
    (ours,) = judge(one_node("ConvTranspose", [x, w, b], 22, **options), feeds([x, w, b]))
    theirs = torch.nn.functional.conv_transpose2d(
        *map(torch.from_numpy, (x, w, b)), stride=(2, 3), padding=(1, 0), output_padding=(1, 2), groups=2
    )
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=1e-14 * 20)


def test_stock_grouped_transpose_is_not_enough():
    """onnx's own reference is wrong, and silently, for a depthwise ConvTranspose that has a bias."""
    from onnx.reference import ReferenceEvaluator

    torch = pytest.importorskip("torch")
    x, w, b = RNG.standard_normal((1, 3, 4, 4)), RNG.standard_normal((3, 1, 2, 2)), RNG.standard_normal(3)
    model = one_node("ConvTranspose", [x, w, b], 11, group=3)
    truth = torch.nn.functional.conv_transpose2d(*map(torch.from_numpy, (x, w, b)), groups=3).numpy()
    stock, *_ = ReferenceEvaluator(model).run(None, feeds([x, w, b]))
    assert np.abs(np.asarray(stock) - truth).max() > 0.1
    assert np.abs(judge(model, feeds([x, w, b]))[0] - truth).max() < 1e-13


def test_a_large_convolution_in_pieces_is_the_same(monkeypatch: pytest.MonkeyPatch):
    x, w = RNG.standard_normal((1, 4, 13, 11)), RNG.standard_normal((5, 4, 3, 3))
    model = one_node("Conv", [x, w], 22, strides=[2, 1], pads=[1, 1, 1, 1])
    (whole,) = judge(model, feeds([x, w]))
    monkeypatch.setattr("bnfold.reference.kernels.convolution._COLUMNS", 700)
    (pieces,) = judge(model, feeds([x, w]))
    np.testing.assert_allclose(pieces, whole, rtol=0, atol=1e-14 * 36)


def test_an_odd_weight_is_an_error_and_not_a_number():
    x, w = normal(RNG, 1, 6, 5, 5), normal(RNG, 4, 4, 3, 3)
    with pytest.raises(EvaluationError, match="Conv"):
        judge(one_node("Conv", [x, w], 22), feeds([x, w]))


def test_float16_is_rounded_once():
    x, w = normal(RNG, 1, 3, 5, 5).astype(np.float16), normal(RNG, 2, 3, 3, 3).astype(np.float16)
    model = one_node("Conv", [x, w], 22)
    (exact,), (native,) = judge(model, feeds([x, w])), judge(model, feeds([x, w]), dtype=None)
    assert native.dtype == np.float16
    assert np.abs(native - exact).max() <= 2.0**-11 * np.abs(exact).max() * (1 + 1e-3)
    compare("Conv", [x.astype(np.float32), w.astype(np.float32)], 22, 1e-4)
