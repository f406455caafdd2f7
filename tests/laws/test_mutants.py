"""A wrong law must not pass: each mutant is caught by the comparison that the grid uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

from bnfold import loop, sources
from bnfold.affine import Affine, affine
from bnfold.fold import fold
from bnfold.gauge import Action, AddAfter, Answer, Carry, Need, Op, Refusal
from bnfold.graph import Graph, Node
from bnfold.laws import LAWS
from tests.graphs import Builder, count, difference, folded


@pytest.fixture(autouse=True)
def no_shortcut(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shortcut for Conv and BatchNormalization asks neither laws nor sources."""
    monkeypatch.setattr(loop, "pairs", lambda graph, nodes: {})


def conv(down: bool, group: int = 2) -> onnx.ModelProto:
    b = Builder()
    x = b.input("x", "N", 6, 6, 6)
    x = b.norm(b.op("Relu", x), 6) if down else x
    y = b.op("Conv", x, b.weight(6, 6 // group, 3, 3), b.weight(6), group=group)
    return b.model(y if down else b.norm(y, 6))


def transposed(down: bool) -> onnx.ModelProto:
    b = Builder()
    x = b.input("x", "N", 6, 6, 6)
    x = b.norm(b.op("Relu", x), 6) if down else x
    y = b.op("ConvTranspose", x, b.weight(6, 3, 1, 1), b.weight(6), group=2)
    return b.model(y if down else b.norm(y, 6))


def gemm(down: bool) -> onnx.ModelProto:
    b = Builder()
    x = b.input("x", 6, 6)
    x = b.norm(b.op("Relu", x), 6) if down else x
    y = b.op("Gemm", x, b.weight(6, 6), b.weight(6), alpha=0.5, beta=0.7)
    return b.model(y if down else b.norm(y, 6))


def matmul(down: bool) -> onnx.ModelProto:
    b = Builder()
    x = b.input("x", 6, 6)
    x = b.norm(b.op("Relu", x), 6) if down else x
    y = b.op("MatMul", x, b.weight(6, 6))
    return b.model(b.op("Gemm", y, b.weight(6, 6)) if down else b.norm(y, 6))


def lstm(_: bool) -> onnx.ModelProto:
    b = Builder()
    x = b.op("Transpose", b.norm(b.op("Relu", b.input("x", 3, 4, 7)), 4), perm=[2, 0, 1])
    return b.model(b.op("LSTM", x, b.weight(1, 16, 4), b.weight(1, 16, 4), b.weight(1, 32), hidden_size=4))


def after_conv(kind: str, *shape: int, **attributes: Any) -> Callable[[bool], onnx.ModelProto]:
    def made(_: bool) -> onnx.ModelProto:
        b = Builder()
        y = b.op("Conv", b.input("x", "N", 6, 6, 6), b.weight(6, 6, 1, 1))
        constant = [b.weight(*shape)] if shape else []
        return b.model(b.norm(b.op(kind, y, *constant, **attributes), 6, positive=kind == "MaxPool"))

    return made


def branches(_: bool) -> onnx.ModelProto:
    b = Builder()
    x = b.input("x", "N", 6, 6, 6)
    y = b.op("Add", b.op("Conv", x, b.weight(6, 6, 1, 1)), b.op("Conv", x, b.weight(6, 6, 1, 1)))
    return b.model(b.norm(y, 6))


def product(_: bool) -> onnx.ModelProto:
    b = Builder()
    x = b.input("x", "N", 6, 6, 6)
    y = b.op("Mul", b.op("Conv", x, b.weight(6, 6, 1, 1)), b.op("Conv", x, b.weight(6, 6, 1, 1)))
    return b.model(b.norm(y, 6, shift=False))


def concat(_: bool) -> onnx.ModelProto:
    b = Builder()
    x = b.input("x", 2, 6, 6, 6)
    y = b.op("Concat", b.op("Conv", x, b.weight(3, 6, 1, 1)), b.op("Conv", x, b.weight(3, 6, 1, 1)), axis=1)
    return b.model(b.norm(y, 6))


def layout(kind: str) -> Callable[[bool], onnx.ModelProto]:
    def made(_: bool) -> onnx.ModelProto:
        b = Builder()
        y = b.op("MatMul", b.input("x", 6, 6, 6), b.weight(6, 6))
        if kind == "Transpose":
            return b.model(b.norm(b.op("Transpose", y, perm=[0, 2, 1]), 6))
        return b.model(b.norm(b.op("Reshape", y, b.ints(36, 6)), 6))

    return made


def norms(_: bool) -> onnx.ModelProto:
    b = Builder()
    y = b.op("Tanh", b.input("x", "N", 6, 5, 5))
    return b.model(b.op("Tanh", b.norm(b.norm(y, 6), 6)))


def _each(answer: Answer, change: Callable[[Action], Action]) -> Answer:
    if isinstance(answer, Refusal):
        return answer
    return [o if isinstance(o, Refusal) else tuple(change(a) for a in o) for o in answer]


def _on(a: Affine, change: Callable[[Any], Any]) -> Affine:
    return affine(change(a.scale), change(a.shift))


def shift_dropped(action: Action) -> Action:
    if isinstance(action, Need | Carry):
        return replace(action, affine=affine(action.affine.scale))
    return replace(action, shift=action.shift * 0) if isinstance(action, AddAfter) else action


def scale_dropped(action: Action) -> Action:
    return replace(action, affine=affine(1.0, action.affine.shift)) if isinstance(action, Need | Carry) else action


def channels_turned(action: Action) -> Action:
    """The coefficients of the neighbour: a wrong order along the axis, as a wrong group or axis gives it."""
    if isinstance(action, Need | Carry):
        return replace(
            action, affine=_on(action.affine, lambda c: np.roll(c, 1, tuple(range(c.ndim))) if c.ndim else c)
        )
    return action


def axes_swapped(action: Action) -> Action:
    """Scale on the wrong axis: alignment by length, where the sizes coincide."""
    if isinstance(action, Need | Carry) and action.affine.rank >= 2:
        first, second = (0, 1) if action.affine.rank > 3 else (-1, -2)
        return replace(action, affine=_on(action.affine, lambda c: np.swapaxes(c, first, second) if c.ndim > 1 else c))
    return action


CASES: list[tuple[str, Callable[[bool], onnx.ModelProto], bool, Callable[[Action], Action]]] = [
    *(("Conv", conv, down, m) for down in (False, True) for m in (shift_dropped, scale_dropped, channels_turned)),
    ("Conv", lambda down: conv(down, 1), False, axes_swapped),
    ("Conv", lambda down: conv(down, 1), True, axes_swapped),
    *(
        ("ConvTranspose", transposed, down, m)
        for down in (False, True)
        for m in (shift_dropped, scale_dropped, channels_turned)
    ),
    *(
        ("Gemm", gemm, down, m)
        for down in (False, True)
        for m in (shift_dropped, scale_dropped, channels_turned, axes_swapped)
    ),
    *(
        ("MatMul", matmul, down, m)
        for down in (False, True)
        for m in (shift_dropped, scale_dropped, channels_turned, axes_swapped)
    ),
    *(("LSTM", lstm, True, m) for m in (shift_dropped, scale_dropped, channels_turned)),
    *(("BatchNormalization", norms, False, m) for m in (shift_dropped, scale_dropped, channels_turned)),
    *(("Add", branches, False, m) for m in (shift_dropped, scale_dropped, channels_turned)),
    *(("Add", after_conv("Add", 6), False, m) for m in (shift_dropped, scale_dropped, channels_turned)),
    *(("Mul", product, False, m) for m in (scale_dropped, channels_turned)),
    *(("Concat", concat, False, m) for m in (shift_dropped, scale_dropped, channels_turned)),
    *(("Identity", after_conv("Identity"), False, m) for m in (shift_dropped, scale_dropped)),
    *(("Transpose", layout("Transpose"), False, m) for m in (shift_dropped, channels_turned)),
    *(("Reshape", layout("Reshape"), False, m) for m in (shift_dropped, channels_turned)),
    *(
        ("MaxPool", after_conv("MaxPool", kernel_shape=[2, 2]), False, m)
        for m in (shift_dropped, scale_dropped, channels_turned)
    ),
    *(
        ("AveragePool", after_conv("AveragePool", kernel_shape=[2, 2]), False, m)
        for m in (shift_dropped, scale_dropped, channels_turned)
    ),
    *(("GlobalAveragePool", after_conv("GlobalAveragePool"), False, m) for m in (shift_dropped, channels_turned)),
    *(("ReduceMean", after_conv("ReduceMean", axes=[2, 3]), False, m) for m in (shift_dropped, channels_turned)),
]


@pytest.mark.parametrize(
    ("kind", "graph", "down", "mutant"),
    CASES,
    ids=[f"{kind}-{'down' if down else 'up'}-{mutant.__name__}-{i}" for i, (kind, _, down, mutant) in enumerate(CASES)],
)
def test_a_mutant_is_caught(
    kind: str,
    graph: Callable[[bool], onnx.ModelProto],
    down: bool,
    mutant: Callable[[Action], Action],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = graph(down)
    left = 1 if kind == "BatchNormalization" else 0
    folded(model, left=left)  # the right law passes
    law = LAWS[("", kind)]

    def up(op: Op, output: int, a: Affine) -> Answer:
        return _each(law.up(op, output, a), mutant)

    def wrong_down(op: Op, given: Mapping[int, Affine]) -> Answer:
        return _each(law.down(op, given), mutant)

    monkeypatch.setitem(LAWS, ("", kind), replace(law, up=up, down=wrong_down))
    try:
        result = fold(model)
        caught = not difference(model, result) < 1e-9 or count(result.model) > left
    except Exception:  # coefficients of an impossible shape: caught as well
        caught = True
    assert caught


@pytest.mark.parametrize("kind", ["Relu", "MaxPool"])
def test_a_law_that_ignores_the_sign_is_caught(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    b = Builder()
    y = b.op("Conv", b.input("x", "N", 6, 6, 6), b.weight(6, 6, 1, 1))
    y = b.op("MaxPool", y, kernel_shape=[2, 2]) if kind == "MaxPool" else b.op("Relu", y)
    model = b.model(b.norm(y, 6, shift=False))
    law = LAWS[("", kind)]
    monkeypatch.setitem(LAWS, ("", kind), replace(law, up=lambda op, output, a: [(Need(0, a),)]))
    assert difference(model, fold(model)) > 1e-3


def test_epsilon_ignored_is_caught_by_the_comparison_and_the_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Node.attribute

    def attribute(self: Node, name: str, default: Any) -> Any:
        return 0.0 if name == "epsilon" else right(self, name, default)

    monkeypatch.setattr(Node, "attribute", attribute)
    model = conv(down=False)
    result = fold(model)
    assert not result.certificate().passed
    monkeypatch.undo()
    assert difference(model, result) > 1e-4


def test_a_mean_of_the_wrong_sign_is_caught_by_the_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    right = sources.batch_normalization

    def wrong(graph: Graph, node: Node) -> sources.Source | Refusal:
        found = right(graph, node)
        if isinstance(found, Refusal):
            return found
        return found._replace(affine=affine(found.affine.scale, -found.affine.shift))

    monkeypatch.setattr(sources, "batch_normalization", wrong)
    assert not fold(conv(down=False)).certificate().passed


def test_a_weight_that_is_off_is_caught_by_the_certificate() -> None:
    result = fold(conv(down=False))
    model = onnx.ModelProto()
    model.CopyFrom(result.model)
    tensor = model.graph.initializer[0]
    array = onnx.numpy_helper.to_array(tensor).copy()
    array.reshape(-1)[0] = np.nextafter(array.reshape(-1)[0], np.float32(9), dtype=np.float32)
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    assert result.certificate().passed
    assert not result.certificate(model).passed
