"""A refusal is never wrong: where one says that a map cannot go somewhere, no weights there would do.

For a BatchNormalization beside a layer, all weights and biases of that layer are free; least squares over random inputs
finds the best ones, and they miss by far. The same procedure finds the fold where there is one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from bnfold.fold import fold
from bnfold.reference import Evaluator
from tests.graphs import Builder, count

Values = NDArray[np.float64]
SAMPLES = 40


def residual(model: onnx.ModelProto, layer: str, *, drop: str) -> float:
    """How far the model without its BatchNormalization stays from itself, over all weights of `layer`: 0 to 1.

    The output must be linear in the layer's weights, which holds where nothing but linear ops come behind.
    """
    names = [n for n in next(n for n in model.graph.node if n.name == layer).input[1:] if n]
    weights = {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    random = np.random.default_rng(5)
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    inputs = [random.normal(size=shape) for _ in range(SAMPLES)]
    target = np.concatenate([run(model, {}, x) for x in inputs])
    without = onnx.ModelProto()
    without.CopyFrom(model)
    norm = next(n for n in without.graph.node if n.name == drop)
    inner, outer = norm.input[0], norm.output[0]
    without.graph.node.remove(norm)
    for node in without.graph.node:
        node.input[:] = [inner if name == outer else name for name in node.input]
        node.output[:] = [outer if name == inner and outer in outputs(model) else name for name in node.output]
        if outer in outputs(model):
            node.input[:] = [outer if name == inner else name for name in node.input]
    zero = {name: np.zeros_like(weights[name]) for name in names}
    base = np.concatenate([run(without, zero, x) for x in inputs])
    columns: list[Values] = []
    for name in names:
        for index in np.ndindex(weights[name].shape):
            unit = {**zero, name: np.zeros_like(weights[name])}
            unit[name][index] = 1.0
            columns.append(np.concatenate([run(without, unit, x) for x in inputs]) - base)
    matrix = np.stack(columns, axis=1)
    best, *_ = np.linalg.lstsq(matrix, target - base, rcond=None)
    spread = target - target.mean()
    return float(np.linalg.norm(matrix @ best - (target - base)) / np.linalg.norm(spread))


def outputs(model: onnx.ModelProto) -> set[str]:
    return {o.name for o in model.graph.output}


def run(model: onnx.ModelProto, exact: dict[str, Values], x: Values) -> Values:
    (y,) = Evaluator(model, exact=exact).run({model.graph.input[0].name: x}).values()
    return y.reshape(-1)


def before_conv(pads: int, *, shift: bool = True) -> Callable[[Builder], str]:
    def make(b: Builder) -> str:
        y = b.norm(b.op("Tanh", b.input("x", 1, 2, 4, 4)), 2, shift=shift)
        return b.op("Conv", y, b.weight(2, 2, 3, 3), b.weight(2), pads=[pads] * 4)

    return make


def behind(kind: str, *, positive: bool = False, shift: bool = False, last: bool = False) -> Callable[[Builder], str]:
    """Conv, an activation and a normalization; `last`: of the last axis instead of the channels."""

    def make(b: Builder) -> str:
        y = b.op(kind, b.op("Conv", b.input("x", 1, 2, 3, 2), b.weight(2, 2, 1, 1), b.weight(2)))
        if last:
            return b.op("Mul", y, b.weight(2))
        return b.norm(y, 2, positive=positive, shift=shift)

    return make


LINEAR = {
    "a shift before a padded convolution": (before_conv(1), "n2", "n1", "PADDED"),
    "a scale of another axis": (behind("Identity", last=True), "n0", "n2", "WRONG_AXIS"),
}


@pytest.mark.parametrize("name", LINEAR)
def test_no_weights_of_a_linear_neighbour_would_do(name: str) -> None:
    make, layer, drop, reason = LINEAR[name]
    b = Builder(seed=4)
    model = b.model(make(b))
    result = fold(model)
    assert not result.changed
    assert reason in {r for k in result.report.kept for r in (k.reason, *(a.reason for a in k.alternatives))}
    assert residual(model, layer, drop=drop) > 0.01


FOLDS = {
    "without padding": (before_conv(0), "n2", "n1"),
    "without a shift": (before_conv(1, shift=False), "n2", "n1"),
    "behind a layer": (behind("Identity", shift=True), "n0", "n2"),
}


@pytest.mark.parametrize("name", FOLDS)
def test_least_squares_finds_the_weights_where_there_are_some(name: str) -> None:
    make, layer, drop = FOLDS[name]
    b = Builder(seed=4)
    model = b.model(make(b))
    assert count(fold(model).model) == 0
    assert residual(model, layer, drop=drop) < 1e-9


CURVED = {
    "a shift behind Relu": (behind("Relu", positive=True, shift=True), "NONLINEAR"),
    "a negative scale behind Relu": (behind("Relu"), "NEGATIVE_SCALE"),
    "a negative scale behind MaxPool": (
        lambda b: b.norm(b.op("MaxPool", b.op("Conv", b.input("x", 1, 2, 4, 4), b.weight(2, 2, 1, 1), b.weight(2)),
                              kernel_shape=[2, 2]), 2, shift=False), "NEGATIVE_SCALE"),
    "a scale behind Sigmoid": (behind("Sigmoid", positive=True), "NONLINEAR"),
}  # fmt: skip


@pytest.mark.parametrize("name", CURVED)
def test_no_output_of_a_curve_has_the_range_that_is_wanted(name: str) -> None:
    """Behind a curve the weights cannot leave its range: the wanted values lie outside, whatever the layer does."""
    make, reason = CURVED[name]
    b = Builder(seed=4)
    model = b.model(make(b))
    result = fold(model)
    assert not result.changed
    assert reason in {r for k in result.report.kept for r in (k.reason, *(a.reason for a in k.alternatives))}
    random = np.random.default_rng(6)
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    wanted = np.concatenate([run(model, {}, 10 * random.normal(size=shape)) for _ in range(SAMPLES)])
    if name == "a negative scale behind MaxPool":
        # a maximum is convex in its input along any line; what is wanted is concave in one channel
        x, d = random.normal(size=shape), random.normal(size=shape)
        ys = [run(model, {}, x + t * d).reshape(2, -1) for t in np.linspace(-5, 5, 41)]
        bends = np.diff(np.stack(ys), 2, axis=0)
        assert (bends[:, 0] >= -1e-9).all() and bends[:, 1].min() < -1e-3
    elif name == "a shift behind Relu":
        # where Relu is constant while its input moves it is 0; what is wanted is constant somewhere else
        values, often = np.unique(np.round(wanted, 9), return_counts=True)
        assert often.max() > SAMPLES and abs(values[often.argmax()]) > 1e-3
    elif "Relu" in name:
        assert wanted.min() < -1e-3  # Relu makes nothing below 0
    else:
        assert wanted.max() > 1.0 + 1e-3 or wanted.min() < -1e-3  # Sigmoid makes nothing beyond 0 and 1
