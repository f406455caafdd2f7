"""Pools: every auto_pad, ceil_mode, count_include_pad, dilation and asymmetric padding, against ONNX Runtime."""

import itertools

import numpy as np
import pytest

from .one_node import compare, feeds, judge, linear, normal, one_node

RNG = np.random.default_rng(1)
PADS = {
    1: [[0, 0], [1, 0], [0, 1], [1, 1]],
    2: [[0, 0, 0, 0], [1, 0, 0, 1], [1, 1, 1, 1], [0, 1, 1, 0]],
    3: [[0] * 6, [1, 0, 1, 0, 1, 0]],
}
KERNEL = {1: [3], 2: [3, 2], 3: [2, 3, 2]}


def settings(rank: int, opset: int, dilated: bool):
    size = [8, 7, 6][:rank]
    x = normal(RNG, 2, 3, *size)
    for stride in (1, 2, 3):
        for auto_pad in ("SAME_UPPER", "SAME_LOWER", "VALID"):
            if stride > min(KERNEL[rank]) and auto_pad != "VALID":
                continue  # ONNX Runtime takes the padding for negative there, and stops
            yield x, {"kernel_shape": KERNEL[rank], "strides": [stride] * rank, "auto_pad": auto_pad}
        for pads, ceil, dilation in itertools.product(PADS[rank], (0, 1), (1, 2) if dilated else (1,)):
            if ceil and opset < 10:
                continue
            common = {"kernel_shape": KERNEL[rank], "strides": [stride] * rank, "pads": pads}
            common |= {"ceil_mode": 1} if ceil else {}
            yield x, common | ({"dilations": [dilation] * rank} if dilation > 1 else {})


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("opset", [1, 8, 10, 12, 22])
def test_max_pool(rank: int, opset: int):
    for x, attributes in settings(rank, opset, dilated=opset >= 10):
        compare("MaxPool", [x], opset, 0.0, **attributes)
        if opset >= 8:
            compare("MaxPool", [x], opset, 0.0, 2, **attributes)


def test_max_pool_in_column_major_order():
    x = normal(RNG, 1, 2, 5, 6)
    compare("MaxPool", [x], 12, 0.0, 2, kernel_shape=[3, 2], storage_order=1)


def test_max_pool_takes_the_first_of_equal_values():
    x = np.zeros((1, 1, 4, 4), dtype=np.float32)
    compare("MaxPool", [x], 12, 0.0, 2, kernel_shape=[2, 2], strides=[2, 2], pads=[1, 1, 1, 1])


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("opset", [7, 10, 11, 19, 22])
def test_average_pool(rank: int, opset: int):
    for x, attributes in settings(rank, opset, dilated=opset >= 19):
        for include in (0, 1):
            linear("AveragePool", [x], opset, 40, count_include_pad=include, **attributes)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_global_pools(rank: int):
    x = normal(RNG, 2, 3, *[5, 4, 6][:rank])
    linear("GlobalAveragePool", [x], 1, 130)
    compare("GlobalMaxPool", [x], 1, 0.0)


def test_lp_pool():
    x = normal(RNG, 2, 3, 8, 7)
    for p in (1, 2, 3):
        linear("LpPool", [x], 11, 40, kernel_shape=[3, 2], p=p, pads=[1, 0, 1, 1], strides=[2, 1])


def test_average_against_torch_in_float64():
    torch = pytest.importorskip("torch")
    x = RNG.standard_normal((2, 3, 8, 7))
    for include, ceil in itertools.product((0, 1), (0, 1)):
        attributes = {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 1, 1, 1]}
        model = one_node("AveragePool", [x], 22, count_include_pad=include, ceil_mode=ceil, **attributes)
        (ours,) = judge(model, feeds([x]))
        theirs = torch.nn.functional.avg_pool2d(torch.from_numpy(x), (3, 2), 2, 1, bool(ceil), bool(include))
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=1e-15 * 6)
