"""Elementwise ops of every opset: values to a few ulps, special values, and the broadcasting that opset 7 replaced."""

import math

import numpy as np
import pytest

from .one_node import compare, feeds, judge, normal, one_node, relative

RNG = np.random.default_rng(3)
X = np.concatenate([normal(RNG, 40) * 3, np.array([0, 0.5, 1.5, -2.5, 20, -20, 1e-6], dtype=np.float32)])
INSIDE = np.linspace(-0.9, 0.9, 23, dtype=np.float32)
EXACT = relative(0)

# ONNX Runtime's own exp, tanh, erf and logistic are polynomials of a few ulps; near 0 theirs are absolute errors.
UNARY = {
    "Abs": (13, X, EXACT), "Neg": (13, X, EXACT), "Sign": (13, X, EXACT), "Floor": (13, X, EXACT),
    "Ceil": (13, X, EXACT), "Round": (11, X, EXACT), "Relu": (14, X, EXACT), "Identity": (16, X, EXACT),
    "Reciprocal": (13, X[X != 0], relative(2)), "Sqrt": (13, np.abs(X), relative(1)), "Exp": (13, X, relative(4)),
    "Log": (13, np.abs(X) + 0.1, relative(4, 0.1)), "Erf": (13, X, relative(8, 0.1)), "Sin": (7, X, relative(4, 0.1)),
    "Cos": (7, X, relative(4, 0.1)), "Tan": (7, INSIDE, relative(4)), "Asin": (7, INSIDE, relative(4)),
    "Acos": (7, INSIDE, relative(4)), "Atan": (7, X, relative(4)), "Sinh": (9, INSIDE, relative(4)),
    "Cosh": (9, INSIDE, relative(4)), "Tanh": (13, X, relative(8, 0.1)), "Asinh": (9, X, relative(4)),
    "Acosh": (9, np.abs(X) + 1, relative(64, 0.1)), "Atanh": (9, INSIDE, relative(8)),
    "Sigmoid": (13, X, relative(8, 0.1)), "Softplus": (1, X, relative(8, 1)), "Softsign": (1, X, relative(4)),
    "HardSwish": (14, X, relative(4, 1)), "Mish": (18, X, relative(16, 1)),
}  # fmt: skip


@pytest.mark.parametrize("op", UNARY)
def test_unary(op: str):
    opset, x, tolerance = UNARY[op]
    compare(op, [x], opset, tolerance)


@pytest.mark.parametrize(
    ("op", "opset", "attributes"),
    [
        ("LeakyRelu", 6, {}), ("LeakyRelu", 16, {"alpha": 0.3}), ("Elu", 6, {"alpha": 0.7}), ("Selu", 6, {}),
        ("Selu", 6, {"alpha": 1.5, "gamma": 0.9}), ("Celu", 12, {"alpha": 0.6}), ("HardSigmoid", 6, {}),
        ("HardSigmoid", 6, {"alpha": 0.3, "beta": 0.4}), ("ThresholdedRelu", 10, {"alpha": 0.5}),
        ("Shrink", 9, {"lambd": 0.4, "bias": 0.2}), ("Gelu", 20, {}), ("Gelu", 20, {"approximate": "tanh"}),
        ("Clip", 6, {"min": -1.0, "max": 0.5}), ("Clip", 6, {"max": 0.5}), ("Clip", 7, {"min": -0.2}),
    ],
)  # fmt: skip
def test_with_attributes(op: str, opset: int, attributes: dict[str, float]):
    compare(op, [X], opset, relative(16, 1), **attributes)


def test_clip_by_inputs():
    low, high = np.array(-0.5, dtype=np.float32), np.array(0.75, dtype=np.float32)
    for opset in (11, 12, 13):
        for bounds in ([low, high], [None, high], [low], [low, None], []):
            compare("Clip", [X, *bounds], opset, EXACT)
    compare("Clip", [X, high, low], 13, EXACT)
    compare("Clip", [np.arange(9, dtype=np.int64), np.array(2), np.array(5)], 13, EXACT)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
def test_binary(op: str):
    for a, b in (((2, 3, 4), (3, 1)), ((4,), (2, 3, 4)), ((2, 1, 4), (3, 1)), ((), (2, 2))):
        compare(op, [normal(RNG, *a), normal(RNG, *b)], 14, relative(1))
    integers = np.array([-7, 7, -7, 7, 6, -6], dtype=np.int64), np.array([2, -2, -2, 2, 3, 3], dtype=np.int64)
    compare(op, list(integers), 14, 0)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("opset", [1, 6])
def test_broadcast_before_opset_7(op: str, opset: int):
    """ONNX Runtime begins at opset 7, so numpy says what it should be."""
    function = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}[op]
    a = RNG.standard_normal((2, 3, 3, 5))
    for shape, axis, aligned in (
        ((3,), 1, (3, 1, 1)),
        ((3,), 2, (3, 1)),
        ((3, 5), 2, (3, 5)),
        ((2, 3), 0, (2, 3, 1, 1)),
    ):
        b = RNG.standard_normal(shape)
        (ours,) = judge(one_node(op, [a, b], opset, broadcast=1, axis=axis), feeds([a, b]))
        np.testing.assert_array_equal(ours, function(a, b.reshape(aligned)))
    b = RNG.standard_normal(5)
    (ours,) = judge(one_node(op, [a, b], opset, broadcast=1), feeds([a, b]))
    np.testing.assert_array_equal(ours, function(a, b))
    (ours,) = judge(one_node(op, [a, b[:3]], opset, broadcast=1, axis=-3), feeds([a, b[:3]]))
    np.testing.assert_array_equal(ours, function(a, b[:3].reshape(3, 1, 1)))


def test_prelu():
    x = normal(RNG, 2, 3, 4, 3)
    for opset in (7, 9, 16):
        for slope in ((3, 1, 1), (1,), (3,), (3, 4, 3), (1, 3, 1, 1)):
            compare("PRelu", [x, normal(RNG, *slope)], opset, relative(1))
    slope = RNG.standard_normal(3)
    wide = x.astype(np.float64)
    for opset in (1, 6):  # of the channels, though the last axis has the same size
        (ours,) = judge(one_node("PRelu", [wide, slope], opset), feeds([wide, slope]))
        np.testing.assert_array_equal(ours, np.where(wide < 0, wide * slope.reshape(3, 1, 1), wide))


def test_pow_keeps_the_type_of_its_base():
    x = np.abs(normal(RNG, 2, 3)) + 0.5
    compare("Pow", [x, np.array([2, 3, -1], dtype=np.int64)], 13, relative(8))
    compare("Pow", [x, np.array(0.5, dtype=np.float32)], 13, relative(4))
    compare("Pow", [np.arange(4, dtype=np.int64), np.array(2.0, dtype=np.float32)], 13, 0)


def test_several_operands():
    given = [normal(RNG, 2, 3, 4), normal(RNG, 3, 1), normal(RNG, 4)]
    for op in ("Max", "Min", "Sum", "Mean"):
        compare(op, given, 13, relative(4, 4))
        compare(op, given[:1], 13, EXACT)


def test_comparisons_and_logic():
    a, b = np.array([[0, 1, 2], [3, 1, 0]], dtype=np.float32), np.array([0, 2, 2], dtype=np.float32)
    for op, opset in (("Equal", 13), ("Less", 13), ("Greater", 13), ("LessOrEqual", 16), ("GreaterOrEqual", 16)):
        compare(op, [a, b], opset, 0)
    for op in ("And", "Or", "Xor"):
        compare(op, [a > 1, b > 1], 7, 0)
    compare("Not", [a > 1], 1, 0)
    compare("Where", [a > 1, a, b], 16, EXACT)
    odd = np.array([np.nan, np.inf, -np.inf, 1], dtype=np.float32)
    compare("IsNaN", [odd], 13, 0)
    compare("IsInf", [odd], 10, 0, detect_negative=0)


def test_dropout_at_inference():
    x = normal(RNG, 2, 3)
    compare("Dropout", [x], 7, EXACT, 2, ratio=0.4)
    compare("Dropout", [x], 10, EXACT, 2, ratio=0.4)
    compare("Dropout", [x, np.array(0.4, dtype=np.float32)], 13, EXACT, 2)
    (y,) = judge(one_node("Dropout", [x], 6, is_test=1), feeds([x]))
    np.testing.assert_array_equal(y, x)


def test_erf_is_double():
    x = np.linspace(-4, 4, 101)
    (ours,) = judge(one_node("Erf", [x], 13), feeds([x]))
    np.testing.assert_array_equal(ours, [math.erf(v) for v in x])


def test_modulo():
    a, b = np.array([-7, 7, 5, -5], dtype=np.int64), np.array([3, -3, 3, -3], dtype=np.int64)
    for fmod in (0, 1):
        compare("Mod", [a, b], 13, 0, fmod=fmod)
    compare("Mod", [normal(RNG, 5), np.array(0.7, dtype=np.float32)], 13, 1e-6, fmod=1)
