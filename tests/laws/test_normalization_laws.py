"""InstanceNormalization, LayerNormalization and GroupNormalization take in what comes behind, and nothing before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from bnfold.affine import Affine, affine
from bnfold.fold import fold
from bnfold.gauge import Action, Answer, Need, Op, Refusal
from bnfold.laws import LAWS
from tests.graphs import EPSILON, Builder, difference, folded, refused

C = 6  # on a 6x6 map: no size tells the axes apart


def instance(b: Builder, x: str) -> str:
    return b.op("InstanceNormalization", x, b.weight(C), b.weight(C), epsilon=EPSILON)


def group(b: Builder, x: str, groups: int = 3, size: int = C) -> str:
    y = b.op("GroupNormalization", x, b.weight(size), b.weight(size), num_groups=groups, epsilon=EPSILON)
    return b.declare(y, 2, C, C, C)  # onnx's inference knows nothing of it


def layer(b: Builder, x: str, *shape: int, axis: int = -1, bias: bool = True) -> str:
    operands = [b.weight(*shape), *([b.weight(*shape)] if bias else [])]
    return b.op("LayerNormalization", x, *operands, axis=axis, epsilon=EPSILON)


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("shape", [(2, C, C, C), ("N", C, 5), (1, C, 3, 4, 2)])
def test_instance_takes_in_what_comes_behind(shape: tuple[int | str, ...], shift: bool) -> None:
    b = Builder()
    folded(b.model(b.norm(instance(b, b.input("x", *shape)), C, shift=shift)))


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("groups", [1, 2, C])
def test_group_takes_in_what_comes_behind(groups: int, shift: bool) -> None:
    b = Builder(opset=21, ir_version=10)
    folded(b.model(b.norm(group(b, b.input("x", 2, C, C, C), groups), C, shift=shift)))


@pytest.mark.parametrize("opset", [18, 20])
@pytest.mark.parametrize("groups", [3, C])
def test_before_opset_21_a_group_has_one_scale(opset: int, groups: int) -> None:
    def fold_it(c: str) -> Any:
        b = Builder(opset=opset, ir_version=10)
        y = group(b, b.input("x", 2, C, C, C), groups, groups)
        y = b.norm(y, C) if c == "channel" else b.op("Add", b.op("Mul", y, b.weight()), b.weight())
        model = b.model(y)  # the checker takes the old definition for deprecated
        return model, fold(model)

    model, result = fold_it("channel")
    assert [r.reason for r in result.report.unfolded] == ["WRONG_AXIS"]
    assert "one scale for each group" in result.report.unfolded[0].message
    model, result = fold_it("number")
    assert [n.op_type for n in result.model.graph.node] == ["GroupNormalization"]
    assert difference(model, result) < 1e-9 and result.certificate().passed


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("axis", "shape"), [(1, (C, C, C)), (-3, (C, C, C))])
def test_layer_over_the_channels_takes_them_in_where_its_scale_has_them(
    axis: int, shape: tuple[int, ...], bias: bool
) -> None:
    b = Builder()
    folded(b.model(b.norm(layer(b, b.input("x", "N", C, C, C), *shape, axis=axis, bias=bias), C)))


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("axis", [-1, 2])
def test_layer_over_the_last_axis_takes_in_what_a_transpose_brings(axis: int, bias: bool, shift: bool) -> None:
    b = Builder()
    y = b.op("Transpose", layer(b, b.input("x", "N", 5, C), C, axis=axis, bias=bias), perm=[0, 2, 1])
    folded(b.model(b.norm(y, C, shift=shift)))


@pytest.mark.parametrize("bias", [True, False])
def test_layer_takes_in_arithmetic_along_its_last_axis(bias: bool) -> None:
    b = Builder()
    y = layer(b, b.input("x", "N", C, C), C, bias=bias)
    model = b.model(b.op("Add", b.op("Mul", y, b.weight(C)), b.weight(C)))
    assert [n.op_type for n in folded(model).model.graph.node] == ["LayerNormalization"]


def test_the_scale_and_the_bias_of_a_layer_may_have_different_ranks() -> None:
    b = Builder()
    x = b.input("x", "N", C, C)
    y = b.op("LayerNormalization", x, b.weight(C), b.weight(C, C), axis=1)
    folded(b.model(b.norm(b.op("Transpose", y, perm=[0, 2, 1]), C)))
    b = Builder()
    y = b.op("LayerNormalization", b.input("x", "N", C, C), b.weight(C, C), b.weight(C), axis=1)
    refused(b.model(b.norm(y, C)), "WRONG_AXIS")  # the bias has not the axis


@pytest.mark.parametrize(("axis", "shape"), [(-1, (C,)), (2, (C, C)), (1, (1, C, C)), (1, (C,))])
def test_layer_cannot_take_in_along_an_axis_that_its_scale_has_not(axis: int, shape: tuple[int, ...]) -> None:
    b = Builder()
    refused(b.model(b.norm(layer(b, b.input("x", "N", C, C, C), *shape, axis=axis), C)), "WRONG_AXIS")


def test_the_mean_and_the_deviation_of_a_layer_stay() -> None:
    b = Builder()
    y = b.op("LayerNormalization", b.input("x", 2, C, 5), b.weight(C, 5), b.weight(C, 5), outputs=3, axis=1)
    folded(b.model(b.norm(y, C), f"{y}_", f"{y}__"))
    b = Builder()
    y = b.op("LayerNormalization", b.input("x", 2, C, 5), b.weight(5), b.weight(5), outputs=2)
    refused(b.model(y, b.norm(f"{y}_", C)), "NONLINEAR")


@pytest.mark.parametrize("kind", ["InstanceNormalization", "GroupNormalization", "LayerNormalization"])
@pytest.mark.parametrize("shift", [True, False])
def test_none_takes_in_what_is_before(kind: str, shift: bool) -> None:
    """Not even a scale: epsilon is added to the variance of what comes in."""
    b = Builder(opset=21, ir_version=10)
    x = b.norm(b.op("Tanh", b.input("x", 2, C, C, C)), C, positive=True, shift=shift)
    y = {"InstanceNormalization": instance, "GroupNormalization": group}.get(kind, lambda b, x: layer(b, x, C))(b, x)
    refused(b.model(b.op("Tanh", y)), "NONLINEAR")


@pytest.mark.parametrize("slot", [1, 2])
def test_a_parameter_that_is_computed_is_asked_for(slot: int) -> None:
    b = Builder()
    made = b.op("MatMul", b.input("z", C), b.weight(C, C))
    made = b.op("Add", made, b.weight(C))
    operands = [b.weight(C), b.weight(C)]
    operands[slot - 1] = made
    y = b.op("InstanceNormalization", b.input("x", 2, C, 5), *operands)
    folded(b.model(b.norm(y, C)))


def _typed(data: type[Any], own: dict[int, type[Any]], kind: str, opset: int = 17) -> onnx.ModelProto:
    """Tanh -> Batch- or InstanceNormalization with parameters of the types `own` -> BatchNormalization."""
    random = np.random.default_rng(0)
    nodes, tensors = [helper.make_node("Tanh", ["x"], ["t"])], list[onnx.TensorProto]()

    def parameters(prefix: str, types: list[type[Any]]) -> list[str]:
        for k, dtype in enumerate(types):
            tensors.append(numpy_helper.from_array(random.uniform(0.5, 2.0, C).astype(dtype), f"{prefix}{k}"))
        return [f"{prefix}{k}" for k in range(len(types))]

    count = 2 if kind == "InstanceNormalization" else 4
    first = parameters("p", [own.get(k, data) for k in range(1, count + 1)])
    second = parameters("q", [data, data, np.float32, np.float32])
    nodes.append(helper.make_node(kind, ["t", *first], ["u"]))
    nodes.append(helper.make_node("BatchNormalization", ["u", *second], ["v"]))
    nodes.append(helper.make_node("Tanh", ["v"], ["y"]))
    elem = helper.np_dtype_to_tensor_dtype(np.dtype(data))
    infos = [helper.make_tensor_value_info(n, elem, [2, C, 5]) for n in "xy"]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.mark.parametrize(
    ("kind", "own", "left"),
    [
        ("BatchNormalization", {3: np.float32, 4: np.float32}, 1),
        ("BatchNormalization", {1: np.float32, 2: np.float32, 3: np.float32, 4: np.float32}, 1),
        ("InstanceNormalization", {}, 0),
    ],
)
def test_each_parameter_keeps_its_own_type(kind: str, own: dict[int, type[Any]], left: int) -> None:
    model = _typed(np.float16, own, kind)
    result = folded(model, left=left)
    types = {t.name: t.data_type for t in model.graph.initializer}
    assert {t.name: t.data_type for t in result.model.graph.initializer}.items() <= types.items()
    assert [n.op_type for n in result.model.graph.node] == ["Tanh", kind, "Tanh"]


def test_a_batch_normalization_for_each_activation_takes_nothing_in() -> None:
    b = Builder(opset=8)
    y = b.op("Tanh", b.input("x", 2, C, 5))
    drawn = [b.weight(values=b.random.uniform(1, 2, (C, 5)).astype(np.float32)) for _ in range(4)]
    y = b.op("BatchNormalization", y, *drawn, spatial=0)
    result = fold(b.model(b.op("Tanh", b.norm(y, C))))
    told = {(a.reason, a.at) for r in result.report.unfolded for a in (r, *r.alternatives)}
    assert ("UNKNOWN_OP", "n1") in told and not result.changed


def _mutated(law_key: tuple[str, str], change: Callable[[Affine], Affine], monkeypatch: pytest.MonkeyPatch) -> None:
    law = LAWS[law_key]

    def up(op: Op, output: int, a: Affine) -> Answer:
        answer = law.up(op, output, a)
        if isinstance(answer, Refusal):
            return answer

        def each(action: Action) -> Action:
            return replace(action, affine=change(action.affine)) if isinstance(action, Need) else action

        return [o if isinstance(o, Refusal) else tuple(each(a) for a in o) for o in answer]

    monkeypatch.setitem(LAWS, law_key, replace(law, up=up))


MUTANTS: dict[str, Callable[[Affine], Affine]] = {
    "shift dropped": lambda a: a.only_scale(),
    "scale dropped": lambda a: a.only_shift(),
    "sign ignored": lambda a: affine(np.abs(a.scale), a.shift),
    "neighbour": lambda a: a.moved(lambda c: np.roll(c, 1, 0)),
    "other axis": lambda a: a.moved(lambda c: np.swapaxes(c, 0, -1)),
}


@pytest.mark.parametrize(
    ("kind", "mutant"),
    [
        *product(("InstanceNormalization", "LayerNormalization", "GroupNormalization"), list(MUTANTS)[:-1]),
        ("LayerNormalization", "other axis"),  # the others' parameters have but one
    ],
)
def test_a_mutant_is_caught(kind: str, mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    b = Builder(opset=21, ir_version=10)
    x = b.input("x", 2, C, C, C)
    makers: dict[str, Callable[[], str]] = {
        "InstanceNormalization": lambda: instance(b, x),
        "GroupNormalization": lambda: group(b, x),
        "LayerNormalization": lambda: layer(b, x, C, C, C, axis=1),
    }
    model = b.model(b.norm(makers[kind](), C))
    folded(model)
    _mutated(("", kind), MUTANTS[mutant], monkeypatch)
    assert not difference(model, fold(model)) < 1e-9


def test_a_law_that_forgets_epsilon_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A LayerNormalization swallows a scale and a shift that are the same everywhere, but for its epsilon."""
    b = Builder()
    y = b.op(
        "Add", b.op("Mul", b.op("Tanh", b.input("x", 2, C)), b.weight(values=np.asarray(3, np.float32))), b.weight()
    )
    model = b.model(layer(b, y, C))
    assert not fold(model).report.folded
    law = LAWS["", "LayerNormalization"]
    monkeypatch.setitem(LAWS, ("", "LayerNormalization"), replace(law, down=lambda op, given: [()]))
    result = fold(model)
    assert result.report.folded and difference(model, result) > 1e-6
