"""Noise is near for trained networks, what is far is said to be; calibration brings it near and replays."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from bnfold.check import check
from bnfold.check.running import opened, samples_for
from bnfold.check.statistics import Distance, Moments, far, stored_statistics
from bnfold.reference import Evaluator

from .nets import Net, conv_net, model, value

MODELS = Path(__file__).parent.parent.parent / "models"
RNG = np.random.default_rng(0)


def trained_on(scale: float, offset: float, seed: int = 0) -> Net:
    """A net whose statistics are those of normal inputs, scaled and moved."""
    net = conv_net(seed)
    x = {"x": (scale * RNG.standard_normal((32, 3, 9, 11)) + offset).astype(np.float32)}
    for k in range(len(net.layers)):
        seen = Evaluator(net.model()).run(x, [f"c{k}"])[f"c{k}"]
        layers = list(net.layers)
        layers[k] = replace(layers[k], mean=seen.mean(axis=(0, 2, 3)), var=seen.var(axis=(0, 2, 3)))
        net = replace(net, layers=tuple(layers))
    return net


def distances(net: onnx.ModelProto, x: np.ndarray) -> list[Distance]:
    moments = Moments(stored_statistics(net, None))
    Evaluator(net).run({"x": x}, observe=moments.observe)
    return moments.close()


def test_distances() -> None:
    net = trained_on(1, 0).model()
    near = distances(net, RNG.standard_normal((8, 3, 9, 11)).astype(np.float32))
    assert [d.node for d in near] == [f"n{k}" for k in range(len(near))]
    assert all(d.mean < 0.2 and 0.8 < d.spread < 1.25 for d in near)
    wide = distances(net, (20 * RNG.standard_normal((8, 3, 9, 11))).astype(np.float32))
    assert 15 < wide[0].spread < 25
    assert far([near]) is None
    assert far([wide]) == wide[0]
    assert far([wide, near]) is None  # one near sample is enough


def test_directly_on_the_input() -> None:
    weights = {n: np.array(v, np.float32) for n, v in (("g", [1, 1]), ("b", [0, 0]), ("m", [5, 7]), ("v", [4, 9]))}
    net = model([helper.make_node("BatchNormalization", ["x", "g", "b", "m", "v"], ["y"])], weights,
                [value("x", "N", 2, 3)], [value("y", "N", 2, 3)])  # fmt: skip
    x = (RNG.standard_normal((400, 2, 3)) * [[[2], [3]]] + [[[5], [7]]]).astype(np.float32)
    (found,) = distances(net, x)
    assert found.mean < 0.1 and found.spread == pytest.approx(1, rel=0.1)
    (moved,) = distances(net, (x + 20).astype(np.float32))
    assert moved.mean == pytest.approx((20 / 2 + 20 / 3) / 2, rel=0.05)
    assert "'y' sees a mean 8." in moved.sentence
    (single,) = distances(net, x[:1])
    assert single.spread == 1  # three elements say nothing about a variance


def test_untouched_and_computed_statistics_are_left_out() -> None:
    net = trained_on(1, 0).model()
    count = len(stored_statistics(net, None))
    for proto in net.graph.initializer:
        if proto.name in ("mean0", "var0"):
            fill = np.full(proto.dims, float(proto.name == "var0"), np.float32)
            proto.CopyFrom(onnx.numpy_helper.from_array(fill, proto.name))
    assert len(stored_statistics(net, None)) == count - 1
    net.graph.node[1].attribute.append(helper.make_attribute("training_mode", 1))
    assert len(stored_statistics(net, None)) == count - 1


def test_constants_hold_statistics_too() -> None:
    net = trained_on(1, 0).model()
    before = stored_statistics(net, None)
    proto = next(p for p in net.graph.initializer if p.name == "mean0")
    net.graph.node.insert(0, helper.make_node("Constant", [], ["mean0"], value=proto))
    net.graph.initializer.remove(proto)
    after = stored_statistics(net, None)
    assert [each.node for each in after] == [each.node for each in before]
    np.testing.assert_array_equal(after[0].mean, before[0].mean)


def test_infinite_is_far() -> None:
    net = trained_on(1, 0).model()
    found = distances(net, np.full((2, 3, 9, 11), np.inf, np.float32))
    assert far([found]) is not None


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.onnx")), ids=lambda path: path.stem)
def test_trained_models_do_not_warn(path: Path) -> None:
    file = opened(path)
    plan = samples_for(file, None, samples=3, seed=0, inputs=None, shapes=None)
    moments = Moments(stored_statistics(file.model, None))
    for sample in plan.samples:
        Evaluator(file.model).run(sample.feeds, observe=moments.observe)
        moments.close()
    assert far(moments.samples) is None


@pytest.mark.parametrize(("scale", "offset"), [(2000.0, 0.0), (1.0, 3000.0), (1e-3, 0.0), (50.0, 20000.0)])
def test_far_inputs_warn_and_calibrated_ones_do_not(scale: float, offset: float) -> None:
    net = trained_on(scale, offset)
    candidate, exact = net.folded()
    plain = check(net.model(), candidate, exact=exact, samples=2)
    assert plain and any("far from" in w and "--calibrated" in w for w in plain.warnings), str(plain)
    done = check(net.model(), candidate, exact=exact, samples=2, calibrated=True)
    assert done, str(done)
    assert [w[:10] for w in done.warnings] == ["Calibrated"], str(done)
    again = check(net.model(), candidate, exact=exact, samples=2, calibrated=True)
    assert again.warnings == done.warnings and again.figures == done.figures


def test_a_range_is_not_far_when_it_is_right() -> None:
    net = trained_on(60.0, 120.0)
    candidate, exact = net.folded()
    assert not check(net.model(), candidate, exact=exact, samples=1, ranges={"x": (0, 255)}).warnings


def test_given_inputs_that_are_far() -> None:
    net = trained_on(1.0, 0.0)
    x = (255 * RNG.random((2, 3, 9, 11))).astype(np.float32)
    result = check(net.model(), net.folded()[0], inputs=[{"x": x}])
    assert any("are they prepared" in w for w in result.warnings), str(result)


def test_calibration_recovers_channels() -> None:
    """Channels of very different size, told apart by what the first layer remembers."""
    net = conv_net(3)
    scale, offset = np.array([[[1.0]], [[30.0]], [[5.0]]]), np.array([[[-4.0]], [[100.0]], [[0.0]]])
    x = (scale * RNG.standard_normal((64, 3, 9, 11)) + offset).astype(np.float32)
    seen = Evaluator(net.model()).run({"x": x}, ["c0"])["c0"]
    first = replace(net.layers[0], mean=seen.mean(axis=(0, 2, 3)), var=seen.var(axis=(0, 2, 3)))
    net = replace(net, layers=(first,))
    plan = samples_for(opened(net.model()), None, samples=1, seed=0, inputs=None, shapes=None, calibrated=True)
    made = plan.samples[0].feeds["x"]
    assert "3 channels" in plan.notes[0]
    np.testing.assert_allclose(made.mean(axis=(0, 2, 3)), offset.ravel(), atol=25)
    assert made.std(axis=(0, 2, 3)).argmax() == 1


def test_nothing_to_calibrate_by() -> None:
    net = model([helper.make_node("Relu", ["x"], ["y"])], {}, [value("x", 2, 3)], [value("y", 2, 3)])
    result = check(net, net, calibrated=True)
    assert result and "not calibrated" in result.warnings[0]


def test_calibration_of_an_input_that_is_normalized_at_once() -> None:
    count = 100  # more channels than are searched for
    mean, var = (RNG.uniform(5, 50, count).astype(np.float32) for _ in range(2))
    weights = {"g": np.ones(count, np.float32), "b": np.zeros(count, np.float32), "m": mean, "v": var}
    net = model([helper.make_node("BatchNormalization", ["x", "g", "b", "m", "v"], ["y"])], weights,
                [value("x", "N", count)], [value("y", "N", count)])  # fmt: skip
    plan = samples_for(opened(net), None, samples=1, seed=0, inputs=None, shapes={"x": (500, count)}, calibrated=True)
    made = plan.samples[0].feeds["x"]
    np.testing.assert_allclose(made.mean(axis=0), mean, atol=2)
    np.testing.assert_allclose(made.var(axis=0), var, rtol=0.4)
