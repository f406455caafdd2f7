"""Integers, booleans and values rounded inside: equal, or flipped only where the float64 margin says that they may."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bnfold.check import Verdict, check
from bnfold.check.steps import decider, jumps_inside

from .nets import model, tensor, value

RNG = np.random.default_rng(1)
W = RNG.normal(size=(5, 6)).astype(np.float32)


def classifier(*nodes: onnx.NodeProto, w: np.ndarray = W, out: onnx.ValueInfoProto) -> onnx.ModelProto:
    return model([helper.make_node("MatMul", ["x", "w"], ["h"]), *nodes], {"w": w}, [value("x", 40, 5)], [out])


LABELS = value("y", 40, kind=TensorProto.INT64)
ARGMAX = helper.make_node("ArgMax", ["h"], ["y"], axis=1, keepdims=0)


def test_argmax() -> None:
    assert check(classifier(ARGMAX, out=LABELS), classifier(ARGMAX, out=LABELS))
    wrong = check(classifier(ARGMAX, out=LABELS), classifier(ARGMAX, w=W[:, ::-1].copy(), out=LABELS))
    assert wrong.verdict is Verdict.NOT_EQUIVALENT
    assert "integers" in wrong.sentence


def test_argmax_flips_at_a_tie() -> None:
    """Two columns one unit roundoff apart: rounding decides which is the largest, and the result says so."""
    tied = W.copy()
    tied[:, 3] = 10 * np.abs(W[:, 3])
    tied[:, 2] = tied[:, 3]
    nudged = tied.copy()
    nudged[:, 3] = np.nextafter(tied[:, 3], np.float32(np.inf))
    feeds = [{"x": np.abs(RNG.normal(size=(40, 5))).astype(np.float32)} for _ in range(2)]
    feeds[1]["x"][:20] *= -1
    result = check(classifier(ARGMAX, w=tied, out=LABELS), classifier(ARGMAX, w=nudged, out=LABELS), inputs=feeds)
    assert result, str(result)
    assert "integers flip" in str(result)


@pytest.mark.parametrize(
    ("nodes", "kind"),
    [
        ([helper.make_node("Cast", ["h"], ["y"], to=TensorProto.INT32)], TensorProto.INT32),
        ([helper.make_node("Greater", ["h", "half"], ["y"])], TensorProto.BOOL),
        (
            [helper.make_node("Floor", ["h"], ["f"]), helper.make_node("Cast", ["f"], ["y"], to=TensorProto.INT64)],
            TensorProto.INT64,
        ),
    ],
)
def test_thresholds(nodes: list[onnx.NodeProto], kind: int) -> None:
    def build(w: np.ndarray) -> onnx.ModelProto:
        made = classifier(*nodes, w=w, out=value("y", 40, 6, kind=kind))
        made.graph.initializer.append(tensor(np.float32(0.5), "half"))
        return made

    assert check(build(W), build(W))
    assert check(build(W), build(np.nextafter(W, np.float32(np.inf))))
    assert check(build(W), build(W * np.float32(1.05))).verdict is Verdict.NOT_EQUIVALENT


def test_top_k() -> None:
    def build(w: np.ndarray) -> onnx.ModelProto:
        made = classifier(helper.make_node("TopK", ["h", "k"], ["v", "y"]), w=w, out=value("v", 40, 2))
        made.graph.output.append(value("y", 40, 2, kind=TensorProto.INT64))
        made.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2], np.int64), "k"))
        return made

    assert check(build(W), build(W))
    assert check(build(W), build(W[:, ::-1].copy())).verdict is Verdict.NOT_EQUIVALENT


def test_margins() -> None:
    cases: list[tuple[onnx.NodeProto, list[float], list[float]]] = [
        (helper.make_node("Floor", ["h"], ["y"]), [0.25, 1.9, -2.0], [0.25, 0.1, 0.0]),
        (helper.make_node("Round", ["h"], ["y"]), [0.25, 1.9, 0.5], [0.25, 0.4, 0.0]),
        (helper.make_node("Cast", ["h"], ["y"], to=TensorProto.INT32), [0.0, 0.9, 1.25], [1.0, 0.1, 0.25]),
        (helper.make_node("Cast", ["h"], ["y"], to=TensorProto.BOOL), [0.0, 0.9, -1.25], [0.0, 0.9, 1.25]),
    ]
    for node, x, expected in cases:
        found = decider(classifier(node, out=LABELS).graph, "y")
        assert found is not None
        np.testing.assert_allclose(found.margin({"h": np.array(x)}, lambda _, m: m), expected, atol=1e-12)
    found = decider(classifier(ARGMAX, out=LABELS).graph, "y")
    assert found is not None
    rows = np.array([[1.0, 5.0, 2.0], [4.0, 4.0, 0.0]])
    np.testing.assert_array_equal(found.margin({"h": rows}, lambda _, m: m), [3.0, 0.0])


def test_rounding_inside() -> None:
    """Fake quantisation: a value on the edge of a step may fall on either side, a wrong weight is still seen."""

    def build(w: np.ndarray) -> onnx.ModelProto:
        nodes = [
            helper.make_node("QuantizeLinear", ["h", "step", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["y"]),
        ]
        made = classifier(*nodes, w=w, out=value("y", 40, 6))
        made.graph.initializer.append(tensor(np.float32(0.05), "step"))
        made.graph.initializer.append(tensor(np.int8(3), "zero"))
        return made

    assert jumps_inside(build(W).graph) == {"QuantizeLinear": 1}
    assert check(build(W), build(W))
    assert check(build(W), build(np.nextafter(W, np.float32(np.inf))))
    assert check(build(W), build(W * np.float32(1.05))).verdict is Verdict.NOT_EQUIVALENT


def test_exact_integer_arithmetic_must_stay_exact() -> None:
    """Floor of integers: the original is exact on the provider, so a candidate off by one step is no rounding."""
    weights = RNG.integers(-3, 4, (5, 6)).astype(np.float32)
    feeds = [{"x": RNG.integers(-8, 9, (40, 5)).astype(np.float32)}]

    def build(scale: float, shift: float) -> onnx.ModelProto:
        nodes = [
            helper.make_node("Mul", ["h", "s"], ["m"]),
            helper.make_node("Add", ["m", "t"], ["a"]),
            helper.make_node("Floor", ["a"], ["y"]),
        ]
        made = classifier(*nodes, w=weights, out=value("y", 40, 6))
        for name, number in (("s", scale), ("t", shift)):
            made.graph.initializer.append(tensor(np.float32(number), name))
        return made

    assert check(build(0.25, 0.5), build(0.25, 0.5), inputs=feeds)
    near = check(build(0.25, 0.5), build(float(np.nextafter(np.float32(0.25), np.float32(0))), 0.5), inputs=feeds)
    assert near.exit_code == 1, str(near)


def test_shape_arithmetic_is_no_jump() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Cast", ["s"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Floor", ["f"], ["g"]),
        helper.make_node("Relu", ["h"], ["y"]),
    ]
    assert jumps_inside(classifier(*nodes, out=value("y", 40, 6)).graph) == {}
