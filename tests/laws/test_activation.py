"""Piecewise linear ops with scales of either sign, and the ops that swallow part of a map."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from bnfold.affine import affine
from bnfold.fold import fold
from bnfold.gauge import Carry, Law
from bnfold.laws import LAWS
from tests.graphs import Builder, count, difference, folded, refused


def made(b: Builder) -> str:
    return b.op("Conv", b.input("x", "N", 3, 6, 6), b.weight(6, 3, 1, 1))


def read(b: Builder, y: str) -> onnx.ModelProto:
    return b.model(b.op("Conv", y, b.weight(4, 6, 3, 3), b.weight(4)))


SLOPES = [(6, 1, 1), (1, 6, 1, 1), (1,), ()]


@pytest.mark.parametrize("shape", SLOPES)
@pytest.mark.parametrize("down", [False, True])
def test_prelu_takes_scales_of_any_sign_where_its_slopes_are_above_zero(shape: tuple[int, ...], down: bool) -> None:
    b = Builder(opset=17)
    slope = b.weight(values=np.random.default_rng(3).uniform(0.1, 2.0, shape).astype(np.float32))
    if down:
        y = b.op("PRelu", b.norm(b.op("Tanh", made(b)), 6, shift=False), slope)
        folded(read(b, y))
    else:
        folded(b.model(b.norm(b.op("PRelu", made(b), slope), 6, shift=False)))


def test_prelu_with_one_slope_not_above_zero_stays() -> None:
    values = np.full((6, 1, 1), 0.5, np.float32)
    values[1] = 0.0  # where the scale is negative
    for slopes, reason in ((values, "NEGATIVE_SCALE"), (-values, "NEGATIVE_SCALE")):
        b = Builder()
        refused(b.model(b.norm(b.op("PRelu", made(b), b.weight(values=slopes)), 6, shift=False)), reason)


def test_prelu_before_opset_7_has_its_slopes_on_the_channels() -> None:
    b = Builder(opset=6)
    y = b.op("PRelu", made(b), b.weight(values=np.full(6, 0.5, np.float32)))
    scale = b.weight(values=np.full((1, 6, 1, 1), -2.0, np.float32))
    result = fold(b.model(b.op("Mul", y, scale)))
    assert not result.changed


@pytest.mark.parametrize(("alpha", "folds"), [(0.5, True), (0.25, True), (0.1, False), (0.0, False), (-0.5, False)])
@pytest.mark.parametrize("down", [False, True])
def test_leaky_relu_flips_where_its_slope_has_an_exact_inverse(alpha: float, folds: bool, down: bool) -> None:
    b = Builder()
    minus = b.weight(values=-np.linspace(0.5, 2, 6, dtype=np.float32).reshape(6, 1, 1))
    if down:
        model = read(b, b.op("LeakyRelu", b.op("Mul", b.op("Tanh", made(b)), minus), alpha=alpha))
    else:
        model = b.model(b.op("Mul", b.op("LeakyRelu", made(b), alpha=alpha), minus))
    result = fold(model)
    assert (len(result.report.folded) == 1) == folds, result.report
    assert difference(model, result) < 1e-9


@pytest.mark.parametrize("alpha", [0.1, -0.5, 0.0])
def test_leaky_relu_with_any_slope_keeps_scales_above_zero(alpha: float) -> None:
    b = Builder()
    folded(b.model(b.norm(b.op("LeakyRelu", made(b), alpha=alpha), 6, positive=True, shift=False)))


def test_leaky_relu_with_scales_of_both_signs_stays() -> None:
    b = Builder()
    refused(b.model(b.norm(b.op("LeakyRelu", made(b), alpha=0.5), 6, shift=False)), "NEGATIVE_SCALE")


@pytest.mark.parametrize("positive", [False, True])
def test_abs(positive: bool) -> None:
    b = Builder()
    up = b.model(b.norm(b.op("Abs", made(b)), 6, positive=positive, shift=False))
    if positive:
        folded(up)
    else:
        refused(up, "NEGATIVE_SCALE")
    b = Builder()
    folded(read(b, b.op("Abs", b.norm(b.op("Tanh", made(b)), 6, positive=positive, shift=False))))
    b = Builder()
    refused(read(b, b.op("Abs", b.norm(b.op("Tanh", made(b)), 6, positive=True))), "NONLINEAR")


def scalar(b: Builder, y: str, s: float, t: float) -> str:
    y = b.op("Mul", y, b.weight(values=np.asarray(s, np.float32)))
    return b.op("Add", y, b.weight(values=np.asarray(t, np.float32)))


@pytest.mark.parametrize("bounds", [(-0.5, 0.75), (None, 0.75), (-0.5, None), (None, None)])
@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("s", [2.0, -2.0])
def test_clip_moves_its_bounds(bounds: tuple[float | None, float | None], down: bool, s: float) -> None:
    b = Builder()
    y = b.op("Tanh", made(b)) if down else made(b)
    given = ["" if v is None else b.weight(values=np.asarray(v, np.float32)) for v in bounds]
    y = scalar(b, y, s, 0.5) if down else y
    y = b.op("Clip", y, *given)
    model = read(b, y) if down else b.model(scalar(b, y, s, 0.5))
    result = fold(model)
    assert difference(model, result) < 1e-9
    assert ("Mul" not in [n.op_type for n in result.model.graph.node]) == (s > 0), result.report


def test_clip_with_attributes_moves_them_where_they_stay_exact() -> None:
    for low, folds in ((-0.5, True), (0.1, False)):
        b = Builder(opset=9)
        y = b.op("Clip", made(b), min=low, max=2.0)
        model = b.model(b.op("Mul", y, b.weight(values=np.asarray(4.0 if folds else 0.3, np.float32))))
        result = fold(model)
        assert bool(result.report.folded) == folds, result.report
        assert difference(model, result) < 1e-9


def test_clip_with_coefficients_that_vary_stays() -> None:
    b = Builder()
    refused(b.model(b.norm(b.op("Clip", made(b), b.weight(values=np.asarray(0, np.float32))), 6)), "NONLINEAR")


@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("axis", [1, 2, -1])
@pytest.mark.parametrize("opset", [11, 17])
def test_softmax_swallows_a_shift_that_is_constant_along_its_axis(kind: str, axis: int, opset: int) -> None:
    b = Builder(opset=opset)
    y = b.op("Add", b.op("Tanh", made(b)), b.weight(6, 1, 1))
    model = b.model(b.op(kind, y, axis=axis))
    result = fold(model)
    swallows = axis in (2, -1)  # before opset 13 all axes from `axis` on are one
    assert bool(result.report.folded) == swallows, result.report
    assert difference(model, result) < 1e-9
    b = Builder(opset=opset)
    y = b.op("Mul", b.op("Tanh", made(b)), b.weight(6, 1, 1))
    assert not fold(b.model(b.op(kind, y, axis=axis))).report.folded


@pytest.mark.parametrize("axis", [1, 2, -1])
@pytest.mark.parametrize("positive", [True, False])
def test_arg_max_swallows_what_keeps_the_order(axis: int, positive: bool) -> None:
    b = Builder()
    y = b.norm(b.op("Tanh", made(b)), 6, positive=positive)
    model = b.model(b.op("Cast", b.op("ArgMax", y, axis=axis), to=onnx.TensorProto.FLOAT))
    folds = positive and axis != 1
    result = fold(model)
    assert count(result.model) == (0 if folds else 1), result.report
    assert difference(model, result) == 0


@pytest.mark.parametrize(("positive", "shift", "left"), [(True, False, 0), (False, False, 1), (True, True, 1)])
def test_sign_swallows_a_scale_above_zero(positive: bool, shift: bool, left: int) -> None:
    b = Builder()
    folded(b.model(b.op("Sign", b.norm(b.op("Tanh", made(b)), 6, positive=positive, shift=shift))), left=left)


@pytest.mark.parametrize(("s", "folds"), [(2.0, True), (-0.5, True), (1.1, False)])
def test_hard_sigmoid_takes_what_its_attributes_hold_exactly(s: float, folds: bool) -> None:
    b = Builder()
    y = scalar(b, b.op("Tanh", made(b)), s, 0.25)
    model = b.model(b.op("HardSigmoid", y, alpha=0.25 if folds else 0.2, beta=0.5))
    result = fold(model)
    assert bool(result.report.folded) == folds, result.report
    assert difference(model, result) < 1e-9


def _wrong(kind: str, **laws: Any) -> Law:
    law = LAWS["", kind]
    return Law(laws.get("up", law.up), laws.get("down", law.down), law.attributes)


MUTANTS: dict[str, tuple[str, Law]] = {
    "prelu keeps its slope": ("PRelu", _wrong("PRelu", up=lambda op, out, a: LAWS["", "Identity"].up(op, out, a))),
    "clip keeps its bounds": ("Clip", _wrong("Clip", up=lambda op, out, a: LAWS["", "Identity"].up(op, out, a))),
    "abs carries the sign": ("Abs", _wrong("Abs", down=lambda op, given: [(Carry(given[0]),)])),
    "softmax swallows any shift": ("Softmax", _wrong("Softmax", down=lambda op, given: [()])),
    "arg max swallows anything": ("ArgMax", _wrong("ArgMax", down=lambda op, given: [()])),
    "sign swallows anything": ("Sign", _wrong("Sign", down=lambda op, given: [()])),
    "leaky relu forgets the sign": (
        "LeakyRelu", _wrong("LeakyRelu", down=lambda op, given: [(Carry(affine(np.abs(given[0].scale))),)]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, law = MUTANTS[name]
    monkeypatch.setitem(LAWS, ("", kind), law)
    b = Builder()
    if "keeps" in name:
        extra = [b.weight(values=np.full((6, 1, 1), 0.5, np.float32))] if kind == "PRelu" else [
            b.weight(values=np.asarray(v, np.float32)) for v in (-0.2, 0.3)]  # fmt: skip
        model = b.model(scalar(b, b.op(kind, made(b), *extra), -2.0 if kind == "PRelu" else 2.0, 0.0))
    else:
        y = b.norm(b.op("Tanh", made(b)), 6, shift=kind in ("Softmax", "ArgMax"))
        attributes = {"axis": 1} if kind in ("Softmax", "ArgMax") else {}
        y = b.op(kind, y, **attributes)
        if kind == "ArgMax":
            y = b.op("Cast", y, to=onnx.TensorProto.FLOAT)
        model = b.model(y) if kind in ("Softmax", "ArgMax", "Sign") else read(b, y)
    result = fold(model)
    assert result.changed and difference(model, result) > 1e-3
