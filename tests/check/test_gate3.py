"""Gate 3 on convolutional networks: every correct fold passes, every planted fault is caught, the figures say why."""

import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper

from bnfold.check import CheckResult, Verdict, check

from .nets import FAULTS, Net, conv_net, dyadic_net, model, value


def run(net: Net, fault: str = "", *, exact: bool = True, seed: int = 0, samples: int | None = 3) -> CheckResult:
    candidate, weights = net.folded(fault)
    return check(net.model(), candidate, exact=weights if exact else None, seed=seed, samples=samples, threads=1)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("ill_conditioned", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_correct_fold(seed: int, ill_conditioned: bool, exact: bool) -> None:
    result = run(conv_net(seed, ill_conditioned=ill_conditioned), exact=exact, seed=seed)
    assert result, str(result)
    assert result.exit_code == 0
    assert result.counted == 3


@pytest.mark.parametrize("fault", [name for name in FAULTS if name])
@pytest.mark.parametrize("exact", [True, False])
def test_planted_fault(fault: str, exact: bool) -> None:
    """All faults are in the weights before they are rounded, "rounded to half" too: there both questions see them."""
    result = run(conv_net(7), fault, exact=exact)
    assert result.verdict is Verdict.NOT_EQUIVALENT, str(result)
    assert result.exit_code == 1
    assert not result


@pytest.mark.parametrize("fault", ["epsilon taken as 0", "beta dropped", "scale on the wrong axis"])
def test_fault_in_an_ill_conditioned_net(fault: str) -> None:
    assert run(conv_net(5, ill_conditioned=True), fault).verdict is Verdict.NOT_EQUIVALENT


def test_no_fault_excuses_itself_by_its_size() -> None:
    """Whatever the candidate is, it is on one side of the inequality only."""
    net = conv_net(2)
    candidate, exact = net.folded()
    huge = {name: 1e6 * value for name, value in exact.items()}
    for proto in candidate.graph.initializer:
        proto.CopyFrom(onnx.numpy_helper.from_array(huge[proto.name].astype(np.float32), proto.name))
    assert check(net.model(), candidate, samples=1).verdict is Verdict.NOT_EQUIVALENT


@pytest.mark.parametrize("fault", ["", "beta dropped"])
def test_float16(fault: str) -> None:
    result = run(conv_net(3, dtype=np.float16), fault, samples=6)
    assert bool(result) is (fault == ""), str(result)


@pytest.mark.parametrize(("seed", "size"), [(1, 3e4), (3, 1e5)])
def test_where_many_overflow_one_more_is_luck(seed: int, size: float) -> None:
    *first, last = conv_net(seed, dtype=np.float16).layers
    gamma = np.clip(last.gamma * size, -6e4, 6e4)
    result = run(Net((*first, replace(last, gamma=gamma)), np.float16), samples=4)
    assert result, str(result)
    assert any("overflow" in warning for warning in result.warnings)


def test_float64() -> None:
    """Affine layers: onnxruntime's CPU has no double Conv. The judge rounds as coarsely as the provider here."""
    rng = np.random.default_rng(4)
    w, s, t = rng.normal(size=(50, 40)), rng.uniform(0.5, 2, 40), rng.normal(size=40)
    shapes = [value("x", 8, 50, kind=onnx.TensorProto.DOUBLE)], [value("y", 8, 40, kind=onnx.TensorProto.DOUBLE)]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Mul", ["h", "s"], ["m"]),
        helper.make_node("Add", ["m", "t"], ["y"]),
    ]
    original = model(nodes, {"w": w, "s": s, "t": t}, *shapes)
    short = [nodes[0], helper.make_node("Add", ["h", "t"], ["y"])]
    assert check(original, model(short, {"w": w * s, "t": t}, *shapes))
    wrong = w * s
    wrong[3, 4] *= 1 + 1e-9
    assert check(original, model(short, {"w": wrong, "t": t}, *shapes)).verdict is Verdict.NOT_EQUIVALENT


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("exact", [True, False])
def test_exact_original_raises_no_alarm(seed: int, exact: bool) -> None:
    """Dyadic weights and integer inputs: the original has no error at all, the fold has its roundings."""
    net = dyadic_net(seed)
    candidate, weights = net.folded()
    rng = np.random.default_rng(seed)
    feeds = [{"x": rng.integers(-3, 4, (2, 3, *net.size)).astype(np.float32)} for _ in range(2)]
    result = check(net.model(), candidate, inputs=feeds, exact=weights if exact else None)
    assert result, str(result)


def test_masked_fault_is_seen_by_the_other_gate_only() -> None:
    """A channel that the next layer does not read: no output can show it, the weights do."""
    net = conv_net(1, layers=2)
    net.layers[1].weight[:, 2] = 0.0
    candidate, _ = net.folded()
    weight = next(proto for proto in candidate.graph.initializer if proto.name == "weight0")
    value = onnx.numpy_helper.to_array(weight).copy()
    value[2] *= 2
    weight.CopyFrom(onnx.numpy_helper.from_array(value, "weight0"))
    result = check(net.model(), candidate, samples=1)
    assert result.verdict is Verdict.NOT_EQUIVALENT
    assert "'BatchNormalization(n0)'" in result.sentence and "do not show it" in result.sentence
    assert result.figures["same_function"]["stored_share"] < 1e-6


def test_weights_that_are_not_the_roundings_of_the_exact_ones() -> None:
    """The law was right and the file is wrong: the exact weights must not hide what was written."""
    net = conv_net(6)
    candidate, _ = net.folded("rounded to half")
    result = check(net.model(), candidate, exact=net.folded()[1], samples=2)
    assert result.verdict is Verdict.DEGRADED, str(result)
    assert "as stored" in result.sentence


def test_body_of_an_if() -> None:
    """Weights inside a body take part in δ, and a body that was changed is not taken for exact."""
    net = conv_net(3)
    original, (candidate, _) = net.model(), net.folded()
    assert check(wrapped(original), wrapped(candidate), exact={}, samples=2)
    wrong, _ = net.folded("epsilon taken as 0")
    assert check(wrapped(original), wrapped(wrong), exact={}, samples=2).verdict is Verdict.NOT_EQUIVALENT


def wrapped(inner: onnx.ModelProto) -> onnx.ModelProto:
    """The model as the body of an If whose condition holds; the other branch gives y = 0·x's first channels."""
    body = onnx.GraphProto()
    body.CopyFrom(inner.graph)
    del body.input[:]
    shape = value("y", *(d.dim_value or d.dim_param for d in inner.graph.output[0].type.tensor_type.shape.dim))
    other = helper.make_graph([helper.make_node("Concat", ["x", "x"], ["y"], axis=1)], "other", [], [shape])
    node = helper.make_node("If", ["yes"], ["y"], then_branch=body, else_branch=other)
    return model([node], {"yes": np.array(True)}, list(inner.graph.input), list(inner.graph.output))


def test_same_model_twice() -> None:
    model = conv_net(0).model()
    result = check(model, model)
    assert result.verdict is Verdict.EQUIVALENT
    assert result.figures["same_function"]["stored_share"] == 0


def test_degraded_is_the_same_function_with_worse_arithmetic() -> None:
    """y = x·w against y = (x·w + 10⁶) − 10⁶: the same function in float64, but float32 loses twenty bits on the way."""
    weights = {"w": np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32), "big": np.float32(1e6)}
    shapes = [value("x", 8, 5)], [value("y", 8, 4)]
    short = model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weights["w"]}, *shapes)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Add", ["a", "big"], ["b"]),
        helper.make_node("Sub", ["b", "big"], ["y"]),
    ]
    long = model(nodes, weights, *shapes)
    worse = check(short, long)
    assert worse.verdict is Verdict.DEGRADED
    assert worse.exit_code == 1
    assert "conditioned" in worse.sentence
    better = check(long, short)
    assert better.verdict is Verdict.MORE_ACCURATE, str(better)
    assert better


def test_result_for_people_and_machines() -> None:
    result = run(conv_net(0))
    lines = str(result).splitlines()
    assert lines[-1] == f"EQUIVALENT: {result.sentence}"
    assert "gate 1 " in lines[0] and "all 3 layers hold what is right (3 with 3 sources folded in" in lines[0]
    document = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert document["verdict"] == "EQUIVALENT"
    assert document["certificate"]["passed"] and document["certificate"]["decided"]
    assert document["provider"].startswith("onnxruntime ")
    assert [sample["kind"] for sample in document["samples"]] == ["normal", "zeros", "large"]
    assert document["gate3"]["same_function"]["exact_share"] < 1e-12
    assert len(document["gate3"]["outputs"]) == 3


def test_same_seed_same_result() -> None:
    first, again, other = (run(conv_net(0), seed=seed).to_dict() for seed in (5, 5, 6))
    assert first == again
    assert first["gate3"] != other["gate3"]


class Gate1:
    """A certificate with a given outcome."""

    def __init__(self, passed: bool) -> None:
        self.passed = passed
        self.figures: Mapping[str, int] = {"tensors": 3}
        self.sentence = "3 tensors correctly rounded" if passed else "weight1 is not the rounded fold"


def test_certificate_decides_first() -> None:
    net = conv_net(0)
    candidate, exact = net.folded()
    passed = check(net.model(), candidate, exact=exact, certificate=Gate1(True), samples=1)
    assert passed and "3 tensors correctly rounded" in str(passed)
    failed = check(net.model(), candidate, exact=exact, certificate=Gate1(False), samples=1)
    assert failed.verdict is Verdict.NOT_EQUIVALENT
    assert failed.sentence == "weight1 is not the rounded fold"
    assert failed.to_dict()["certificate"]["passed"] is False
