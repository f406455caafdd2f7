"""Other normalizations take what comes behind into their own scale and bias; what is before them stays."""

from __future__ import annotations

import pytest

from bnfold.affine import Affine
from bnfold.fold import fold
from bnfold.gauge import Answer, Law, Need, Op, Refusal
from bnfold.laws import LAWS
from tests.graphs import Builder, difference, folded, refused


@pytest.mark.parametrize("shift", [True, False])
def test_instance_normalization(shift: bool) -> None:
    b = Builder()
    y = b.op("InstanceNormalization", b.input("x", 2, 6, 6, 6), b.weight(6), b.weight(6))
    folded(b.model(b.norm(y, 6, shift=shift)))


@pytest.mark.parametrize("axis", [-1, 2, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_normalization(axis: int, bias: bool) -> None:
    b = Builder()
    shape = (6, 5)[axis % 3 - 1 :] if axis != -1 else (5,)
    extra = [b.weight(*shape)] if bias else []
    y = b.op("LayerNormalization", b.input("x", 2, 6, 5), b.weight(*shape), *extra, axis=axis)
    if axis == 1:
        folded(b.model(b.norm(y, 6)))
    else:
        factor = b.op("Add", b.op("Mul", y, b.weight(5)), b.weight(5))
        assert len(fold(b.model(factor)).model.graph.node) == 1
        b = Builder()
        y = b.op("LayerNormalization", b.input("x", 2, 6, 5), b.weight(5), axis=axis)
        refused(b.model(b.norm(y, 6)), "WRONG_AXIS")


@pytest.mark.parametrize("opset", [18, 21])
def test_group_normalization_has_a_scale_for_each_channel_from_opset_21_on(opset: int) -> None:
    b = Builder(opset=opset, ir_version=10)
    count = 6 if opset == 21 else 2
    y = b.op("GroupNormalization", b.input("x", 2, 6, 6, 6), b.weight(count), b.weight(count), num_groups=2)
    model = b.model(b.norm(b.declare(y, 2, 6, 6, 6), 6))
    if opset == 21:
        folded(model)
    else:
        (kept,) = fold(model).report.kept  # the checker calls this version of the op deprecated
        assert kept.reason == "WRONG_AXIS"
    b = Builder(opset=opset, ir_version=10)
    y = b.op("GroupNormalization", b.input("x", 2, 6, 6, 6), b.weight(count), b.weight(count), num_groups=2)
    y = b.op("Add", b.op("Mul", b.declare(y, 2, 6, 6, 6), b.weight()), b.weight())
    assert len(fold(b.model(y)).model.graph.node) == 1


@pytest.mark.parametrize("kind", ["InstanceNormalization", "LayerNormalization"])
def test_what_is_before_them_stays_for_their_epsilon(kind: str) -> None:
    b = Builder()
    y = b.norm(b.op("Tanh", b.input("x", 2, 6, 6, 6)), 6, shift=False)
    extra = [b.weight(6), b.weight(6)]
    refused(b.model(b.op(kind, y, *extra)), "NONLINEAR")


@pytest.mark.parametrize("kind", ["InstanceNormalization", "LayerNormalization"])
def test_a_mutant_is_caught(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    law = LAWS["", kind]

    def up(op: Op, output: int, a: Affine) -> Answer:  # the bias does not follow the scale
        answer = law.up(op, output, a)
        assert not isinstance(answer, Refusal)
        (option,) = answer
        assert not isinstance(option, Refusal)
        scale, shift = option
        assert isinstance(shift, Need)
        return [(scale, Need(2, shift.affine.only_shift(), missing=shift.missing))]

    monkeypatch.setitem(LAWS, ("", kind), Law(up, law.down, law.attributes))
    b = Builder()
    y = b.op(kind, b.input("x", 2, 6, 6, 6), b.weight(6), b.weight(6))
    if kind == "LayerNormalization":
        model = b.model(b.op("Add", b.op("Mul", y, b.weight(6)), b.weight(6)))
    else:
        model = b.model(b.norm(y, 6))
    result = fold(model)
    assert result.changed and difference(model, result) > 1e-3
