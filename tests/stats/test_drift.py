"""The drift of a layer against brute force, and what the noise of few samples adds to it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bnfold import stats
from bnfold.reference import Evaluator
from bnfold.stats.layers import Layer
from bnfold.stats.moments import Moments
from bnfold.stats.staleness import drift_of
from tests.graphs import Builder

from .nets import Array, chained, data, saved, statistics


def layer(gamma: Array, mean: Array, variance: Array, epsilon: float = 0.01) -> Layer:
    return Layer("bn", 0, "x", gamma, gamma * 0, mean, variance, epsilon, True, (1, 1))


def measured(x: Array) -> Moments:
    moments = Moments()
    for part in np.array_split(x, 7):
        moments.add(part, (0,))
    return moments


def test_the_formula_is_the_error_of_the_output_for_any_distribution():
    random = np.random.default_rng(0)
    x = (
        random.gamma(0.7, size=(500, 5)) * random.uniform(0.1, 9, 5) + random.normal(size=5) * 4
    )  # skewed, and not normal
    gamma, mean, variance = random.normal(size=5), random.normal(size=5), random.uniform(0.1, 4, 5)
    exact = gamma * (x - x.mean(0)) / np.sqrt(x.var(0) + 0.01)
    stored = gamma * (x - mean) / np.sqrt(variance + 0.01)
    expected = np.sqrt(np.square(exact - stored).mean(0).sum() / np.square(gamma).sum())
    found = drift_of(layer(gamma, mean, variance), measured(x))
    assert found.drift == pytest.approx(expected, rel=1e-12)
    assert found.worst == np.argmax(np.square(exact - stored).mean(0))
    assert found.shift == pytest.approx(np.max(np.abs(x.mean(0) - mean) / np.sqrt(variance + 0.01)))
    ratio = (x.var(0) + 0.01) / (variance + 0.01)
    assert found.ratio == pytest.approx((ratio.min(), ratio.max()))


def test_the_drift_of_every_layer_of_a_network():
    model = chained()
    feeds = data(model, 40)
    found = {each.node: each for each in stats.drift(model, [feeds]).layers}
    held = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "BatchNormalization":
            continue
        x = Evaluator(model).run(feeds, [node.input[0]])[node.input[0]]
        gamma, _, mean, variance = (held[name].reshape(-1, 1, 1) for name in node.input[1:])
        real = x.mean(axis=(0, 2, 3), keepdims=True), x.var(axis=(0, 2, 3), keepdims=True)
        epsilon = node.attribute[0].f
        error = gamma * ((x - mean) / np.sqrt(variance + epsilon) - (x - real[0]) / np.sqrt(real[1] + epsilon))
        expected = np.sqrt(np.square(error).mean(axis=(0, 2, 3)).sum() / np.square(gamma).sum())
        assert found[node.name].drift == pytest.approx(expected, rel=1e-5)


def test_noise_is_what_fresh_statistics_show_on_few_samples():
    random = np.random.default_rng(3)
    drifts, noises, left = [], [], []
    truth = layer(np.ones(4), np.zeros(4), np.ones(4), 0.0)
    for _ in range(200):
        moments = Moments()
        for _ in range(6):
            moments.add(random.normal(size=(16, 4)), (0,))
        found = drift_of(truth, moments)
        drifts.append(found.drift)
        noises.append(found.noise)
        left.append(found.drift**2 - found.noise**2)
    assert np.mean(np.square(noises)) == pytest.approx(np.mean(np.square(drifts)), rel=0.15)
    assert abs(np.mean(left)) < 0.1 * np.mean(np.square(drifts))


def test_one_batch_has_no_noise_to_subtract():
    moments = Moments()
    moments.add(np.random.default_rng(0).normal(size=(9, 2)), (0,))
    found = drift_of(layer(np.ones(2), np.full(2, 0.5), np.ones(2)), moments)
    assert np.isnan(found.noise)
    assert found.beyond_noise == found.drift > 0


def test_corners():
    x = np.random.default_rng(0).normal(size=(50, 3))
    nothing = drift_of(layer(np.zeros(3), np.ones(3), np.ones(3)), measured(x))
    assert (nothing.drift, nothing.beyond_noise) == (0, 0)  # a scale of 0 hides whatever the statistics are
    broken = drift_of(layer(np.ones(3), np.zeros(3), np.array([1, -1, 1.0])), measured(x))
    assert (broken.drift, broken.worst) == (np.inf, 1)
    x[:, 1] = 2  # a dead channel has no spread, and no error when its mean is right
    dead = drift_of(layer(np.ones(3), np.array([0, 2, 0.0]), np.array([1, 0, 1.0])), measured(x))
    assert dead.drift < 0.5
    divided = drift_of(layer(np.ones(3), np.array([0, 2, 0.0]), np.array([1, 0, 1.0]), 0.0), measured(x))
    assert divided.drift == np.inf  # inference divides 0 by 0 there


def test_drift_reads_and_writes_nothing(tmp_path):
    model = chained()
    before = model.SerializeToString(deterministic=True)
    found = stats.drift(model, [saved(tmp_path / "x.npz", data(model, 40))])
    assert model.SerializeToString(deterministic=True) == before
    assert found.rows == 40
    assert found.worst is not None
    assert found.worst.drift == max(each.drift for each in found.layers)
    assert len(statistics(model)) == len(found.layers) == len(found.to_dict()["layers"])


def replaced(model: onnx.ModelProto, index: int, mean: Array, variance: Array) -> onnx.ModelProto:
    """With other statistics in the BatchNormalization at `index`, rounded as the model stores them."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    node = [each for each in made.graph.node if each.op_type == "BatchNormalization"][index]
    for slot, value in ((3, mean), (4, variance)):
        made.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), f"other{slot}"))
        node.input[slot] = f"other{slot}"
    return made


@pytest.mark.parametrize("rows", [20, 5])
def test_the_effect_on_the_output_is_that_of_a_model_with_other_statistics(rows: int):
    model = chained()
    feeds = data(model, rows)
    found = {each.node: each for each in stats.drift(model, [feeds]).layers}
    output = model.graph.output[0].name
    before = Evaluator(model).run(feeds, [output])[output]
    layers = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    for k, node in enumerate(layers):
        x = Evaluator(model).run(feeds, [node.input[0]])[node.input[0]]
        other = replaced(model, k, x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3)))
        after = Evaluator(other).run(feeds, [output])[output]
        mine = found[node.name]
        assert mine.output == pytest.approx(np.sqrt(np.square(after - before).mean()), rel=1e-4)
        assert mine.flips == pytest.approx((after.argmax(1) != before.argmax(1)).mean(), abs=1e-9)
    assert len({round(each.output or 0, 6) for each in found.values()}) == 3


def test_a_layer_that_the_output_does_not_read_has_no_effect():
    b = Builder(4)
    x = b.input("x", "batch", 3)
    y = b.op("Gemm", b.norm(x, 3), b.weight(3, 1))
    b.norm(x, 3)  # nobody reads it
    model = b.model(y)
    first, second = stats.drift(model, [data(model, 12)]).layers
    assert (first.output or 0) > 0
    assert (second.output, second.flips) == (0, None)
    assert first.flips is None  # a single number is no prediction
    quick = stats.drift(model, [data(model, 12)], effects=False)
    assert [each.output for each in quick.layers] == [None, None]


def test_outputs_that_are_not_finite_are_infinitely_off():
    b = Builder(4)
    model = b.model(b.norm(b.input("x", "batch", 3), 3))
    held = next(t for t in model.graph.initializer if t.name == model.graph.node[0].input[4])
    held.CopyFrom(numpy_helper.from_array(np.full(3, -7, np.float32), held.name))
    (layer,) = stats.drift(model, [data(model, 20)]).layers
    assert (layer.drift, layer.output) == (np.inf, np.inf)


def test_what_stands_behind_the_layers_need_not_run():
    model = chained()
    last = model.graph.node[-1]
    last.op_type, last.domain = "Mystery", "nobody"
    model.opset_import.append(onnx.helper.make_opsetid("nobody", 1))
    found = stats.drift(model, [data(model, 20)])
    assert [each.drift > 0 and each.output is None for each in found.layers] == [True] * 3
    assert len(stats.refresh(model, [data(model, 20)]).layers) == 3
