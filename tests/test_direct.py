"""The shortcut for Conv and BatchNormalization pairs gives what the search gives: same bytes, same report."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bnfold import direct, loop
from bnfold.affine import Affine
from bnfold.direct import Pair, pairs
from bnfold.fold import FoldResult, fold
from bnfold.graph import Graph, Node
from bnfold.laws import LAWS
from bnfold.weights import Tensor
from tests.graphs import Builder, difference
from tests.test_random_graphs import graph

MODELS = sorted((Path(__file__).parents[1] / "models").glob("*.onnx"))


@contextmanager
def no_shortcut(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(loop, "pairs", lambda graph, nodes: {})
        yield


def same(model: onnx.ModelProto | Path, monkeypatch: pytest.MonkeyPatch) -> FoldResult:
    quick = fold(model)
    with no_shortcut(monkeypatch):
        slow = fold(model)
    assert quick.report == slow.report
    assert quick.model.SerializeToString(deterministic=True) == slow.model.SerializeToString(deterministic=True)
    assert quick.certificate().passed
    for name, value in slow.exact.items():
        assert np.array_equal(quick.exact[name], value), name
    return quick


def ready(model: onnx.ModelProto) -> int:
    """How many pairs the shortcut sees in a model."""
    index = Graph(model.graph, {"": model.opset_import[0].version})
    return len(pairs(index, index.nodes))


def chain(b: Builder, lengths: int = 7, *, bias: bool, channels: int = 6, kernel: int = 3) -> onnx.ModelProto:
    x = b.input("x", 2, channels, 20, 20)
    for _ in range(lengths):
        weights = [b.weight(channels, channels, kernel, kernel), *([b.weight(channels)] if bias else [])]
        x = b.op("Relu", b.norm(b.op("Conv", x, *weights, pads=[1, 1, 1, 1]), channels))
    return b.model(x)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("channels", [6, 40])  # small weights are computed together, large ones one by one
def test_a_chain(bias: bool, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = chain(Builder(), bias=bias, channels=channels)
    assert ready(model) == 7
    assert len(same(model, monkeypatch).report.folded) == 7


@pytest.mark.parametrize("first", range(0, 120, 20))
def test_random_graphs(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(first, first + 20):
        same(graph(seed), monkeypatch)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_models(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same(path, monkeypatch)


def one(**parameters: np.ndarray) -> onnx.ModelProto:
    """Conv and BatchNormalization with some parameters replaced: gamma, beta, mean, variance, weight, bias."""
    model = chain(Builder(), 1, bias=True)
    norm = next(n for n in model.graph.node if n.op_type == "BatchNormalization")
    conv = next(n for n in model.graph.node if n.op_type == "Conv")
    names = dict(zip(("gamma", "beta", "mean", "variance"), norm.input[1:], strict=True))
    names |= {"weight": conv.input[1], "bias": conv.input[2]}
    for role, value in parameters.items():
        held = next(t for t in model.graph.initializer if t.name == names[role])
        held.CopyFrom(numpy_helper.from_array(value.astype(np.float32), held.name))
    return model


ODD = {
    "constant scale": {"gamma": np.ones(6), "variance": np.ones(6)},
    "constant shift": {"beta": np.zeros(6), "mean": np.zeros(6)},
    "identity": {"gamma": np.sqrt(np.full(6, 1.01)), "beta": np.zeros(6), "mean": np.zeros(6), "variance": np.ones(6)},
    "dead channels": {"gamma": np.asarray([0, 1, 0, 2, 3, 4])},
    "negative variance": {"variance": np.asarray([1, 1, -0.001, 1, 1, 2])},
    "bad variance": {"variance": np.asarray([1, 1, -1, 1, 1, 2])},
    "NaN": {"mean": np.asarray([np.nan, 0, 0, 0, 0, 0])},
    "overflow": {"gamma": np.linspace(1, 3e38, 6), "variance": np.full(6, 1e-9)},
    "large weights": {"weight": np.full((6, 6, 3, 3), 3e38)},
    "large bias": {"bias": np.full(6, 3e38)},
    "infinite weight": {"weight": np.where(np.arange(324).reshape(6, 6, 3, 3) == 5, np.inf, 1.0)},
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning")
def test_odd_parameters(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = one(**ODD[kind])
    quick = fold(model)
    with no_shortcut(monkeypatch):
        slow = fold(model)
    assert quick.report == slow.report
    assert quick.model.SerializeToString(deterministic=True) == slow.model.SerializeToString(deterministic=True)


def test_what_it_leaves_to_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    for spoil in ("shared weight", "second reader", "output", "rounded"):
        b = Builder()
        x = b.input("x", 2, 6, 8, 8)
        weight = b.weight(6, 6, 3, 3)
        y = b.op("Conv", x, weight)
        n = b.norm(y, 6)
        outputs = [b.op("Floor" if spoil == "rounded" else "Relu", n)]
        if spoil == "shared weight":
            outputs.append(b.op("Conv", x, weight))
        if spoil == "second reader":
            outputs.append(b.op("Tanh", y))
        if spoil == "output":
            outputs.append(y)
        model = b.model(*outputs)
        assert spoil in ("rounded",) or ready(model) == 0, spoil
        same(model, monkeypatch)


def test_a_pair_that_changed_meanwhile_is_asked_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    b = Builder()
    y = b.op("Mul", b.op("Conv", b.input("x", 2, 6, 8, 8), b.weight(6, 6, 3, 3)), b.weight(1, 6, 1, 1))
    y = b.op("Add", b.norm(y, 6), b.weight(1, 6, 1, 1))
    z = b.norm(b.op("Conv", b.op("Relu", y), b.weight(6, 6, 1, 1)), 6)
    result = same(b.model(b.op("Mul", z, b.weight(1, 6, 1, 1))), monkeypatch)
    assert [n.op_type for n in result.model.graph.node] == ["Conv", "Relu", "Conv"]


MUTANTS = ["stored bytes of another channel", "scale of another channel", "shift dropped"]


@pytest.mark.parametrize("mutant", MUTANTS)
@pytest.mark.parametrize("channels", [6, 40])
def test_mutants_are_caught(mutant: str, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the shortcut gets wrong is seen by the certificate, or by the comparison of the outputs."""
    if mutant == MUTANTS[0] and channels == 40:
        pytest.skip("large weights are computed when they are written")

    def wrong(index: Graph, nodes: list[Node]) -> dict[Node, Pair]:
        found = pairs(index, nodes)
        return {node: pair._replace(**spoilt(pair)) for node, pair in found.items()}

    def spoilt(pair: Pair) -> dict[str, Tensor]:
        weight, bias = copy(pair.weight), copy(pair.bias)
        (rows,), (both,) = pair.weight.steps, pair.bias.steps
        match mutant:
            case "stored bytes of another channel":
                weight.stored = np.roll(np.frombuffer(weight.stored or b"", "<f4"), 54).tobytes()
            case "scale of another channel":
                weight.steps, weight.stored, weight._exact = (
                    (Affine(np.roll(rows.scale, 1, 0), rows.shift),),
                    None,
                    None,
                )
            case _:
                bias.steps, bias.stored, bias._exact = (Affine(both.scale, np.zeros_like(both.shift)),), None, None
        return {"weight": weight, "bias": bias}

    model = chain(Builder(), 2, bias=True, channels=channels)
    monkeypatch.setattr(loop, "pairs", wrong)
    result = fold(model)
    assert len(result.report.folded) == 2
    assert not result.certificate().passed or difference(model, result) > 1e-3


def test_a_conv_has_the_attributes_that_its_law_knows():
    assert LAWS["", "Conv"].attributes == direct.CONV
