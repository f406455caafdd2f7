"""The check's power: planted faults are caught, masked ones are called so, what is no fault is not planted."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from bnfold.check import check
from bnfold.check.faults import FAULTS, faulty
from bnfold.check.power import Outcome, PowerResult, power
from bnfold.cli import main
from bnfold.fold import fold
from tests.graphs import Builder

from .nets import Net, conv_net, dyadic_net, model, value

OF_THE_MAP = ("ε taken as 0", "β dropped", "sign of μ", "γ of the neighbour")


def found(model: onnx.ModelProto, *, per_fault: int = 1, samples: int = 2, seed: int = 0) -> PowerResult:
    return power(model, per_fault=per_fault, samples=samples, seed=seed, threads=1)


def planted(result: PowerResult) -> set[str]:
    return {each.fault for each in result.outcomes}


def downward() -> onnx.ModelProto:
    """BN → Gemm and BN → Conv without padding: the maps go into what reads them."""
    b = Builder()
    x = b.norm(b.input("x", 3, 6), 6)
    y = b.op("Gemm", x, b.weight(6, 6), b.weight(6))
    return b.model(b.op("Tanh", y))


def arithmetic() -> onnx.ModelProto:
    b = Builder()
    y = b.op("Conv", b.input("x", "N", 3, 7, 8), b.weight(5, 3, 3, 3))
    y = b.op("Mul", b.op("Sub", y, b.weight(5, 1, 1)), b.weight(5, 1, 1))
    return b.model(b.op("Relu", b.op("Add", y, b.weight(5, 1, 1))))


@pytest.mark.parametrize("seed", range(5))
def test_every_fault_in_a_conv_net_is_caught_by_both_gates(seed: int) -> None:
    result = found(conv_net(seed).model(), seed=seed)
    assert planted(result) == set(FAULTS)
    assert not result.alarm and not result.without and not result.missed
    assert all(each.gate1 for each in result.outcomes)
    assert not result.masked, str(result)
    assert not result.warnings


@pytest.mark.parametrize("seed", range(5))
def test_every_fault_in_an_ill_conditioned_net(seed: int) -> None:
    result = found(conv_net(seed, ill_conditioned=True).model(), seed=seed)
    assert planted(result) == set(FAULTS)
    assert not result.alarm and not result.missed
    visible = [each for each in result.outcomes if each.fault in OF_THE_MAP]
    assert all(each.same_function for each in visible), str(result)


@pytest.mark.parametrize("seed", range(5))
def test_in_float16_rounding_to_half_is_no_fault(seed: int) -> None:
    result = found(conv_net(seed, dtype=np.float16).model(), seed=seed)
    assert "rounded to half" not in planted(result)
    assert {"β dropped", "sign of μ", "γ of the neighbour", "one weight off by 1 %"} <= planted(result)
    assert not result.alarm and not result.missed


def test_faults_of_a_downward_fold() -> None:
    result = found(downward())
    assert set(OF_THE_MAP) | {"scale on another axis", "bias missing", "one weight off by 1 %"} <= planted(result)
    assert not result.alarm and not result.missed and not result.masked, str(result)


def test_faults_of_constant_arithmetic() -> None:
    result = found(arithmetic())
    assert planted(result) == set(FAULTS) - {"ε taken as 0", "scale on another axis"}
    assert not result.alarm and not result.missed and not result.masked, str(result)


def test_faults_inside_a_body() -> None:
    """The folded weights are initializers of the branch; the fault must land there."""
    inner = conv_net(0, layers=1).model().graph
    del inner.input[:]
    other = helper.make_graph([helper.make_node("Concat", ["x", "x"], ["y"], axis=1)], "o", [], list(inner.output))
    nodes = [helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=other)]
    outer = model(nodes, {"yes": np.array(True)}, [value("x", "N", 3, 9, 11)], [value("y", "N", 6, 9, 11)])
    result = found(outer)
    assert planted(result) == set(FAULTS) - {"scale on another axis"}
    assert not result.alarm and not result.missed and not result.masked, str(result)


def test_what_changes_nothing_is_no_fault() -> None:
    net = conv_net(3)
    layers = [
        replace(layer, beta=np.zeros(6), mean=np.zeros(6), gamma=np.full(6, 0.7), var=np.full(6, 1e6))
        for layer in net.layers
    ]
    for fault in OF_THE_MAP:
        assert not list(faulty(fold(Net(tuple(layers)).model()), fault, 4, 0)), fault


def test_a_fault_lies_in_its_own_place_only() -> None:
    result = fold(conv_net(4).model())
    for fault in FAULTS:
        (one,) = faulty(result, fault, 1, 0)
        right = {t.name: onnx.numpy_helper.to_array(t) for t in result.model.graph.initializer}
        wrong = {t.name: onnx.numpy_helper.to_array(t) for t in one.model.graph.initializer}
        changed = {name for name in right if not np.array_equal(right[name], wrong[name])}
        assert 1 <= len(changed) <= 2, fault
        assert len({layer for name in changed for layer in "012" if layer in name}) == 1, changed
        onnx.checker.check_model(one.model)


def test_faults_are_drawn_by_the_seed() -> None:
    net = conv_net(4, layers=6).model()
    first, again, other = (
        [each.at for each in faulty(fold(net), "one weight off by 1 %", 4, seed)] for seed in (0, 0, 1)
    )
    assert first == again != other


def test_a_masked_fault_is_said_to_be_masked() -> None:
    """Nobody reads the channels of the first layer that have a fault: only gate 1 can see it."""
    net = conv_net(1, layers=2)
    net.layers[1].weight[:] = 0.0
    result = power(net.model(), per_fault=4, samples=2, threads=1)
    hidden = [each for each in result.masked if "weight0" in each.at]
    assert hidden and all(each.gate1 and each.moved is not None and each.moved < 2 for each in hidden)
    assert not result.missed
    (warning,) = result.warnings
    assert "could not show" in warning and "only gate 1 can" in warning
    assert warning in str(result)


def test_inputs_that_show_nothing() -> None:
    """Zeros through a net without biases: what the weights are cannot be seen."""
    b = Builder()
    y = b.op("Conv", b.input("x", 2, 3, 7, 8), b.weight(5, 3, 3, 3))
    net = b.model(b.norm(y, 5))
    zeros = {"x": np.zeros((2, 3, 7, 8), np.float32)}
    result = power(net, inputs=[zeros], threads=1)
    unseen = {each.fault for each in result.masked}
    assert "one weight off by 1 %" in unseen
    assert "β dropped" not in unseen
    assert not result.missed


def test_a_wrong_candidate_raises_the_alarm() -> None:
    net = conv_net(2)
    right, wrong = net.folded()[0], net.folded("sign of the mean")[0]
    assert not power(net.model(), right, per_fault=1, samples=1, threads=1).alarm
    result = power(net.model(), wrong, per_fault=1, samples=1, threads=1)
    assert "differs by" in result.alarm
    assert any("raised an alarm" in warning for warning in result.warnings)


def test_nothing_to_plant_a_fault_in() -> None:
    plain = conv_net(0).folded()[0]
    result = power(plain)
    assert not result.outcomes and "folds nothing" in result.warnings[0]


def test_no_fault_is_planted_in_front_of_an_op_that_rounds() -> None:
    """Such a source folds only where the check finds the same integers, so its fold may not be right."""
    b = Builder()
    x = b.norm(b.op("Conv", b.input("x", 2, 3, 7, 8), b.weight(5, 3, 3, 3, name="first")), 5)
    y = b.norm(b.op("Conv", b.op("Relu", x), b.weight(4, 5, 3, 3, name="second")), 4)
    result = found(b.model(b.op("Floor", y)))
    assert result.folded == 1 and result.outcomes
    assert not any("second" in each.at for each in result.outcomes)
    assert not result.alarm and not result.missed


def test_without_gate_3_the_first_gate_is_still_asked() -> None:
    b = Builder()
    y = b.norm(b.op("Conv", b.input("x", 2, 3, 7, 8), b.weight(5, 3, 3, 3)), 5)
    net = b.model(y)
    net.opset_import.append(helper.make_opsetid("elsewhere", 1))
    out = net.graph.output[0].name
    net.graph.node.append(helper.make_node("Strange", [out], ["z"], domain="elsewhere"))
    net.graph.output.append(value("z", 2, 5, 5, 6))
    result = found(net)
    assert "Strange" in result.without
    assert result.outcomes and not result.missed and not result.masked
    assert all(each.same_function is None for each in result.outcomes)
    assert any("Gate 3 was not asked" in warning for warning in result.warnings)


def test_a_miss_is_counted_and_named() -> None:
    outcomes = (
        Outcome("β dropped", "bn0", True, True, False, 1e6),
        Outcome("β dropped", "bn1", False, False, False, 0.1),
    )
    result = PowerResult(outcomes, 2, 0)
    row = next(row for row in result.rows() if row["fault"] == "β dropped")
    assert (row["planted"], row["gate1"], row["same_function"], row["caught"]) == (2, 1, 1, 1)
    assert row["missed"] == row["masked"] == ["bn1"]
    assert "1 of 2 planted faults caught" in str(result)


CORRECT = {
    "float32": lambda seed: conv_net(seed, layers=8),
    "float32 ill-conditioned": lambda seed: conv_net(seed, layers=8, ill_conditioned=True),
    "float16": lambda seed: conv_net(seed, layers=8, dtype=np.float16),
    "exact": dyadic_net,
}


def raises_no_alarm(kind: str, seed: int) -> None:
    """As bnfold's own fold, and as a file of unknown make, which has neither certificate nor exact weights."""
    net = CORRECT[kind](seed)
    rng = np.random.default_rng(seed)
    if kind == "exact":
        whole = rng.integers(-3, 4, (2, 3, *net.size)).astype(np.float32)
        impulse = np.zeros_like(whole)
        impulse[:, :, 4, 5] = 1
        feeds = [{"x": whole}, {"x": impulse}]
    else:
        feeds = [{"x": rng.normal(size=(2, 3, *net.size)).astype(net.dtype)}]
    result = fold(net.model())
    own = check(
        net.model(), result.model, inputs=feeds, exact=result.exact, certificate=result.certificate(), threads=1
    )
    assert own, str(own)
    others = check(net.model(), result.model, inputs=feeds, threads=1)
    assert others, str(others)


@pytest.mark.parametrize("kind", CORRECT)
@pytest.mark.parametrize("seed", range(5))
def test_a_correct_fold_raises_no_alarm(kind: str, seed: int) -> None:
    raises_no_alarm(kind, seed)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CORRECT)
@pytest.mark.parametrize("seed", range(5, 20))
def test_many_correct_folds_raise_no_alarm(kind: str, seed: int) -> None:
    raises_no_alarm(kind, seed)


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = conv_net(0)
    onnx.save(net.model(), tmp_path / "net.onnx")
    fold(net.model()).save(tmp_path / "folded.onnx")
    arguments = ["check", str(tmp_path / "net.onnx"), str(tmp_path / "folded.onnx"), "--power", "--samples", "1"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "planted faults caught" in said and "ε taken as 0" in said
    assert main([*arguments, "--json"]) == 0
    table = json.loads(capsys.readouterr().out)["check"]["power"]
    assert table["planted"] == table["caught"] > 0
    assert {row["fault"] for row in table["faults"]} == set(FAULTS)


def test_the_exit_code_stays_that_of_the_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = conv_net(0)
    onnx.save(net.model(), tmp_path / "net.onnx")
    onnx.save(net.folded("beta dropped")[0], tmp_path / "wrong.onnx")
    assert main(["check", str(tmp_path / "net.onnx"), str(tmp_path / "wrong.onnx"), "--power", "--samples", "1"]) == 1
    assert "planted faults caught" in capsys.readouterr().out
