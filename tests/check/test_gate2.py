"""Gate 2 on small networks: correct folds lie within the bound, and a fault is found in the region that holds it."""

import json
from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bnfold.check import Verdict, check
from bnfold.check.gate2 import Gate2, local_bounds
from bnfold.check.inputs import Sample
from bnfold.check.providers import Provider
from bnfold.check.regions import Pair
from bnfold.check.running import opened
from bnfold.fold import fold
from tests.graphs import Builder

from .nets import FAULTS, conv_net


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with Provider(threads=1) as runtime:
        yield runtime


def judged(
    provider: Provider,
    original: onnx.ModelProto,
    candidate: onnx.ModelProto,
    different: bool | None = None,
    seed: int = 0,
) -> Gate2:
    rng = np.random.default_rng(seed)
    shapes = {v.name: [d.dim_value or 2 for d in v.type.tensor_type.shape.dim] for v in original.graph.input}
    kind = onnx.helper.tensor_dtype_to_np_dtype(original.graph.input[0].type.tensor_type.elem_type)
    feeds = [{name: rng.normal(size=shape).astype(kind) for name, shape in shapes.items()} for _ in range(2)]
    samples = [Sample("normal", given) for given in feeds]
    return local_bounds(opened(original), opened(candidate), samples, provider, different=different, own=True)


def one_percent(model: onnx.ModelProto, weight: str) -> onnx.ModelProto:
    """A copy in which one element of the weight, the largest, is off by 1 %."""
    wrong = onnx.ModelProto()
    wrong.CopyFrom(model)
    proto = next(t for t in wrong.graph.initializer if t.name == weight)
    value = numpy_helper.to_array(proto).copy()
    value[np.unravel_index(np.argmax(np.abs(value)), value.shape)] *= value.dtype.type(1.01)
    proto.CopyFrom(numpy_helper.from_array(value, weight))
    return wrong


@pytest.mark.parametrize("different", [False, None])
@pytest.mark.parametrize("ill_conditioned", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_correct_folds(provider: Provider, seed: int, ill_conditioned: bool, different: bool | None) -> None:
    net = conv_net(seed, layers=4, ill_conditioned=ill_conditioned)
    found = judged(provider, net.model(), net.folded()[0], different)
    assert [r.end for r in found.regions] == ["n0", "n1", "n2", "n3"]
    assert {(r.original, r.candidate) for r in found.regions} == {(("Conv", "BatchNormalization"), ("Conv",))}
    assert found.passed and found.first_failure is None, found.sentence
    assert all(r.ratio is not None and 0 < r.ratio < 0.2 for r in found.regions), found
    assert found.sentence.startswith("4 of 4 folds within the bound, the worst at 0.0")


@pytest.mark.parametrize("different", [True, None])
@pytest.mark.parametrize("fault", [name for name in FAULTS if name])
def test_planted_fault_is_named(provider: Provider, fault: str, different: bool | None) -> None:
    net = conv_net(3, layers=5)
    found = judged(provider, net.model(), net.folded(fault)[0], different)
    guilty = found.first_failure
    assert guilty is not None and guilty.end == "n2" and guilty.name == "Conv(n2)", found.sentence
    assert guilty.other_function and guilty.ratio is not None and guilty.ratio > 10
    assert [r.end for r in found.failures] == ["n2"], "what follows is fed the original's values"
    assert "Conv(n2) computes another function" in found.sentence


@pytest.mark.parametrize("fault", ["epsilon taken as 0", "beta dropped", "one weight off by 1 %"])
def test_planted_fault_in_an_ill_conditioned_net(provider: Provider, fault: str) -> None:
    net = conv_net(3, layers=5, ill_conditioned=True)
    guilty = judged(provider, net.model(), net.folded(fault)[0], True).first_failure
    assert guilty is not None and guilty.name == "Conv(n2)"


def test_every_layer_wrong(provider: Provider) -> None:
    """A converter that forgets ε forgets it everywhere: the first layer is the first to be named, and all are."""
    net = conv_net(4, layers=4)
    candidate, _ = net.folded()
    for proto in candidate.graph.initializer:
        if proto.name.startswith("weight"):
            value = numpy_helper.to_array(proto) * np.float32(1.02)
            proto.CopyFrom(numpy_helper.from_array(value, proto.name))
    found = judged(provider, net.model(), candidate, True)
    assert [r.end for r in found.failures] == ["n0", "n1", "n2", "n3"], found.sentence


def residual() -> onnx.ModelProto:
    """Two paths meet in an Add; a BatchNormalization on each, and one behind the Add that nothing before it takes."""
    b = Builder(seed=5)
    x = b.input("x", 2, 4, 7, 9)
    left = b.norm(b.op("Conv", x, b.weight(4, 4, 3, 3), pads=[1] * 4), 4)
    right = b.norm(b.op("Conv", x, b.weight(4, 4, 1, 1)), 4)
    y = b.op("Relu", b.op("Add", left, right))
    return b.model(b.op("Relu", b.op("Conv", b.norm(y, 4), b.weight(5, 4, 1, 1))))


def downward() -> onnx.ModelProto:
    """BatchNormalization → Relu → MaxPool → Conv: the values between are stored unscaled, under the names they had."""
    b = Builder(seed=6)
    y = b.norm(b.input("x", 2, 4, 8, 10), 4, positive=True, shift=False)
    y = b.op("MaxPool", b.op("Relu", y), kernel_shape=[2, 2])
    return b.model(b.op("Relu", b.op("Conv", y, b.weight(5, 4, 3, 3), b.weight(5))))


def upward() -> onnx.ModelProto:
    """Conv → MaxPool → BatchNormalization: the Conv's output keeps its name and becomes another value."""
    b = Builder(seed=7)
    y = b.op("Conv", b.input("x", 2, 4, 8, 10), b.weight(6, 4, 3, 3))
    y = b.norm(b.op("MaxPool", y, kernel_shape=[2, 2]), 6, positive=True)
    return b.model(b.op("Conv", b.op("Relu", y), b.weight(3, 6, 1, 1)))


def concat() -> onnx.ModelProto:
    """A BatchNormalization behind a Concat of two convolutions, each of which takes its channels."""
    b = Builder(seed=8)
    x = b.input("x", 2, 4, 8, 10)
    parts = [b.op("Conv", x, b.weight(n, 4, 3, 3)) for n in (3, 5)]
    return b.model(b.op("Relu", b.norm(b.op("Concat", *parts, axis=1), 8)))


def decomposed() -> onnx.ModelProto:
    """The normalization written as Sub, Div, Mul and Add, its deviation computed from constants."""
    b = Builder(seed=9)
    y = b.op("Conv", b.input("x", 2, 4, 8, 10), b.weight(6, 4, 3, 3))
    variance = b.weight(values=b.random.uniform(0.1, 2, (6, 1, 1)).astype(np.float32))
    deviation = b.op("Sqrt", b.op("Add", variance, b.weight(values=np.asarray(1e-3, np.float32))))
    y = b.op("Div", b.op("Sub", y, b.weight(6, 1, 1)), deviation)
    return b.model(b.op("Relu", b.op("Add", b.op("Mul", y, b.weight(6, 1, 1)), b.weight(6, 1, 1))))


NETS = {f.__name__: f for f in (residual, downward, upward, concat, decomposed)}


@pytest.mark.parametrize("different", [False, None])
@pytest.mark.parametrize("name", NETS)
def test_folds_of_every_direction(provider: Provider, name: str, different: bool | None) -> None:
    original = NETS[name]()
    result = fold(original)
    assert not result.report.unfolded
    found = judged(provider, original, result.model, different)
    assert found.regions and found.passed, found.sentence
    assert all(r.ratio is not None and r.ratio < 0.5 for r in found.regions), found
    assert all(r.function is not None and r.function <= 1 for r in found.regions), found


@pytest.mark.parametrize("name", NETS)
def test_fault_in_folds_of_every_direction(provider: Provider, name: str) -> None:
    """Whichever folded weight is wrong, the region to blame holds it, and the others are not blamed."""
    original = NETS[name]()
    result = fold(original)
    weights = [t for t in result.model.graph.initializer if t.name in result.exact and len(t.dims) == 4]
    assert weights
    for weight in weights:
        found = judged(provider, original, one_percent(result.model, weight.name), True)
        reader = next(node for node in result.model.graph.node if weight.name in node.input)
        assert len(found.failures) == 1, found.sentence
        assert reader.name in found.failures[0].name, (weight.name, found.sentence)


def test_a_value_of_another_meaning_is_not_shared(provider: Provider) -> None:
    """v1 and v2 are in both graphs, unscaled in the candidate: the region reaches over them to the Conv."""
    original = downward()
    candidate = fold(original).model
    assert {"v1", "v2"} <= set(Pair(opened(original), opened(candidate)).names)
    (region,) = judged(provider, original, candidate).regions
    assert region.original == ("BatchNormalization", "Relu", "MaxPool", "Conv")
    assert region.candidate == ("Relu", "MaxPool", "Conv")


def test_no_bound_is_neither_passed_nor_failed(provider: Provider) -> None:
    b = Builder(seed=2)
    y = b.op("Softmax", b.op("Conv", b.input("x", 2, 4, 5, 6), b.weight(4, 4, 1, 1)), axis=1)
    original = b.model(b.op("Relu", b.norm(y, 4)))
    candidate = onnx.ModelProto()
    candidate.CopyFrom(original)
    candidate.graph.node[0].output[0] = candidate.graph.node[1].input[0] = "renamed"
    candidate.graph.node[1].output[0] = candidate.graph.node[2].input[0] = "too"
    found = judged(provider, original, candidate)
    (region,) = found.regions
    assert region.ratio is None and region.why == "Softmax" and not region.failed
    assert found.sentence == "no fold has a bound (Softmax)"


def test_same_model(provider: Provider) -> None:
    model = residual()
    found = judged(provider, model, model)
    assert found.done and not found.regions
    assert found.sentence == "the models do not differ in any node or weight"


def test_what_reaches_no_output(provider: Provider) -> None:
    """A wrong weight behind which nothing is read is a difference all the same, and is not called none."""
    b = Builder(seed=3)
    x = b.input("x", 2, 4, 5, 6)
    b.norm(b.op("Conv", x, b.weight(4, 4, 1, 1)), 4)
    original = b.model(b.op("Relu", x))
    candidate = fold(original).model
    assert "BatchNormalization" not in {node.op_type for node in candidate.graph.node}
    (weight,) = (t.name for t in candidate.graph.initializer if len(t.dims) == 4)
    wrong = one_percent(candidate, weight)
    found = judged(provider, original, wrong)
    assert found.passed and found.sentence == "what differs reaches no output"


def test_half_floats_only_warn(provider: Provider) -> None:
    """How sums are accumulated is not known there; a difference in float64 is one all the same."""
    net = conv_net(3, dtype=np.float16)
    good = judged(provider, net.model(), net.folded()[0], False)
    assert good.passed and all(not r.certain for r in good.regions)
    wrong = judged(provider, net.model(), net.folded("beta dropped")[0], True)
    assert wrong.first_failure is not None and wrong.first_failure.end == "n1"


def test_weights_that_become_subnormal(provider: Provider) -> None:
    """A dead channel, γ decayed to 1e-39 and β to zero: the folded weights lose bits, or vanish. That is rounding."""
    net = conv_net(5, layers=2)
    for layer in net.layers:
        layer.gamma[1], layer.beta[1] = 1e-39, 0.0
    found = judged(provider, net.model(), net.folded()[0], False)
    assert found.passed and all(r.ratio is not None for r in found.regions), found.sentence


def test_verdict_names_the_region() -> None:
    net = conv_net(7)
    candidate, exact = net.folded("beta dropped")
    result = check(net.model(), candidate, exact=exact, samples=2, threads=1)
    assert result.verdict is Verdict.NOT_EQUIVALENT
    assert "the first place that is wrong: Conv(n1) computes another function" in result.sentence
    document = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert document["gate2"]["first_failure"] == "Conv(n1)"
    assert [r["status"] for r in document["gate2"]["regions"]] == ["passed", "failed", "passed"]
    assert any(line.startswith("gate 2  2 of 3 folds within the bound") for line in str(result).splitlines())


def test_figures_of_a_pass() -> None:
    net = conv_net(7)
    candidate, exact = net.folded()
    result = check(net.model(), candidate, exact=exact, samples=2, threads=1)
    assert result.verdict is Verdict.EQUIVALENT
    gate2 = result.to_dict()["gate2"]
    assert gate2["passed"] and gate2["within"] == gate2["bounded"] == 3 and gate2["worst"] < 0.2
