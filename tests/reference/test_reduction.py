"""Reductions with axes as attribute and as input, the softmax family before and after opset 13, ArgMax, CumSum."""

import numpy as np
import pytest

from .one_node import U, compare, feeds, int64, judge, normal, one_node

RNG = np.random.default_rng(5)
X = normal(RNG, 3, 4, 5)
REDUCERS = "Sum Mean Max Min Prod L1 L2 SumSquare LogSum LogSumExp".split()
# Sums of at most 60 terms whose absolute values add up to less than 100, then at most a logarithm or a root.
TOLERANCE = 70 * U * 100


@pytest.mark.parametrize("name", REDUCERS)
def test_reduce(name: str):
    op = f"Reduce{name}"
    x = np.abs(X) + np.float32(0.5) if name in ("LogSum", "Prod") else X
    x = x[:, :2, :2] if name == "Prod" else x
    first = 13 if name == "Sum" else 18
    for axes in ([0], [-1], [0, 2], [1, -3], None):
        for keepdims in (0, 1):
            attributes = {"keepdims": keepdims, **({} if axes is None else {"axes": axes})}
            for opset in (1, 11, *(() if name == "Sum" else (13,))):
                compare(op, [x], opset, TOLERANCE, **attributes)
            given = [x] if axes is None else [x, int64(*axes)]
            compare(op, given, first, TOLERANCE, keepdims=keepdims)


@pytest.mark.parametrize("name", ["Sum", "Mean", "Max", "Min"])
def test_no_axes_and_noop(name: str):
    op, first = f"Reduce{name}", 13 if name == "Sum" else 18
    for given in ([X], [X, np.zeros(0, dtype=np.int64)]):
        for noop in (0, 1):
            compare(op, given, first, TOLERANCE, noop_with_empty_axes=noop)


def test_integers_keep_their_type():
    x = np.arange(12, dtype=np.int64).reshape(3, 4)
    for name in ("Sum", "Max", "Min", "Mean"):
        compare(f"Reduce{name}", [x], 11, 0, axes=[1])


@pytest.mark.parametrize("opset", [1, 11, 12, 13, 18])
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
def test_softmax_family(op: str, opset: int):
    for axis in (0, 1, 2, -1, -2):
        if axis < 0 and opset < 11:
            continue
        compare(op, [X], opset, TOLERANCE, axis=axis)
    compare(op, [X], opset, TOLERANCE)
    compare(op, [X * 100], opset, 100 * TOLERANCE)


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
def test_arg(op: str):
    x = np.round(X)  # with ties
    for opset in (1, 11, 13):
        for axis in (0, 1, 2):
            for keepdims in (0, 1):
                compare(op, [x], opset, 0, axis=axis, keepdims=keepdims)
                if opset >= 12:
                    compare(op, [x], opset, 0, axis=axis, keepdims=keepdims, select_last_index=1)


def test_cum_sum():
    for axis in (0, 1, -1):
        for exclusive in (0, 1):
            for reverse in (0, 1):
                given = [X, np.array(axis, dtype=np.int64)]
                compare("CumSum", given, 14, TOLERANCE, exclusive=exclusive, reverse=reverse)


def test_softmax_against_torch_in_float64():
    torch = pytest.importorskip("torch")
    x = X.astype(np.float64)
    (ours,) = judge(one_node("Softmax", [x], 13, axis=1), feeds([x]))
    np.testing.assert_allclose(ours, torch.softmax(torch.from_numpy(x), 1), rtol=1e-14)
