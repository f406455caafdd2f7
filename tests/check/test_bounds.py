"""The running error bound against float32 arithmetic in many orders: it is never exceeded, and a fault exceeds it.

One case is one output element: a dot product followed by a BatchNormalization on one side, the folded dot product on
the other, both in float32, summed forwards, backwards, in pairs, in blocks, or with fused multiply-adds.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from onnx import ModelProto, helper

from bnfold.check.arithmetic import NoBound, arithmetic_of, gamma
from bnfold.check.bounds import running_bounds
from bnfold.reference import Evaluator

from .nets import model, value

F = np.float32
Array = npt.NDArray[Any]
IEEE = arithmetic_of("float32", "ieee")
CASES = 1000  # of each kind, of each length


def forwards(p: Array) -> Array:
    total = np.zeros(p.shape[1], F)
    for row in p:
        total = total + row
    return total


def backwards(p: Array) -> Array:
    return forwards(p[::-1])


def pairs(p: Array) -> Array:
    while len(p) > 1:
        half = len(p) // 2
        p = np.concatenate([p[:half] + p[half : 2 * half], p[2 * half :]])
    return p[0]


def blocks(p: Array) -> Array:
    return forwards(np.stack([forwards(p[k::8]) for k in range(min(8, len(p)))]))


SUMS: dict[str, Callable[[Array], Array]] = {
    "forwards": forwards, "backwards": backwards, "pairs": pairs, "blocks": blocks,
}  # fmt: skip


def dot(w: Array, x: Array, order: str, start: Array | None = None) -> Array:
    """Σ w·x of every column in float32; `fused`: a product and its addition are rounded once."""
    if order == "fused":
        total = np.zeros(x.shape[1], F) if start is None else start
        for a, b in zip(w, x, strict=True):
            total = (a.astype(np.float64) * b + total).astype(F)
        return total
    found = SUMS[order](w * x)
    return found if start is None else found + start


def norm(x: Array, p: dict[str, Array], form: str) -> Array:
    """A BatchNormalization in float32, in the ways that runtimes write it."""
    spread = np.sqrt(p["var"] + F(1e-5))
    if form == "textbook":
        return p["gamma"] * (x - p["mean"]) / spread + p["beta"]
    inverse = F(1) / spread
    scale = p["gamma"] * inverse if form != "quotient" else p["gamma"] / spread
    if form == "inverse":
        return (x - p["mean"]) * inverse * p["gamma"] + p["beta"]
    shift = p["beta"] - p["mean"] * scale
    if form == "fused":
        return (x.astype(np.float64) * scale + shift).astype(F)
    return x * scale + shift


FORMS = ("textbook", "inverse", "precomputed", "quotient", "fused")


def drawn(kind: str, n: int, rng: np.random.Generator) -> tuple[Array, Array, dict[str, Array]]:
    """Weights [n, CASES], inputs [n, CASES] and the parameters [CASES] of one kind of trouble."""
    w, x = rng.normal(size=(n, CASES)), rng.normal(size=(n, CASES))
    p = {
        "gamma": rng.normal(size=CASES),
        "beta": rng.normal(size=CASES),
        "mean": rng.normal(size=CASES),
        "var": rng.uniform(0.1, 3, CASES),
    }
    if kind == "cancellation" and n > 1:
        x[1::2] = x[0::2][: len(x[1::2])]
        w[1::2] = -w[0::2][: len(w[1::2])] * (1 + rng.uniform(-1e-6, 1e-6, w[1::2].shape))
    elif kind == "exponents":
        w, x = (v * 2.0 ** rng.integers(-20, 20, v.shape) for v in (w, x))
    elif kind == "ill-conditioned":
        p["var"] = 10.0 ** rng.uniform(-9, 0, CASES)
        p["mean"] *= 1e3
        p["beta"] = p["gamma"] * p["mean"] / np.sqrt(p["var"] + 1e-5)  # β ≈ sμ
    elif kind == "one sign":
        w, x = np.abs(w), np.abs(x)
    elif kind == "ties":  # sums just past the middle between two floats: every rounding goes the same way
        w[:] = 1.0
        x[0], x[1:] = 1.0, 2.0**-24 * (1 + 2.0**-10)
    elif kind == "tiny":
        w, x = w * 2.0**-75, x * 2.0 ** rng.integers(-74, -50, x.shape)
        p["beta"] *= 0
        p["mean"] *= 0
    return w.astype(F), x.astype(F), {name: v.astype(F) for name, v in p.items()}


def graphs(n: int, folded: dict[str, Array], w: Array, p: dict[str, Array]) -> tuple[ModelProto, ...]:
    """One case a row of a batched MatMul, its channel a parameter: [CASES, 1, n] × [CASES, n, 1]."""
    info = [value("x", CASES, 1, n)], [value("y", 1, CASES, 1)]
    rows = np.ascontiguousarray(w.T[:, :, None])
    tail = ["gamma", "beta", "mean", "var"]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["d"]),
        helper.make_node("Transpose", ["d"], ["t"], perm=[1, 0, 2]),
        helper.make_node("BatchNormalization", ["t", *tail], ["y"], epsilon=1e-5),
    ]
    original = model(nodes, {"w": rows, **p}, *info)
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["d"]),
        helper.make_node("Transpose", ["d"], ["t"], perm=[1, 0, 2]),
        helper.make_node("Add", ["t", "b"], ["y"]),
    ]
    weights = {"v": np.ascontiguousarray(folded["w"].T[:, :, None]), "b": folded["b"].reshape(CASES, 1)}
    return original, model(nodes, weights, *info)


def bound(graph: ModelProto, x: Array, rounded: dict[str, int]) -> npt.NDArray[np.float64]:
    evaluator = Evaluator(graph)
    names = [*evaluator.inputs, *(t.name for t in graph.graph.initializer)]
    names += [out for node in graph.graph.node for out in node.output]
    feeds = {"x": np.ascontiguousarray(x.T[:, None, :])}
    found = running_bounds(graph, evaluator.run(feeds, names), IEEE, rounded)["y"]
    return IEEE.share(found) * found.size.reshape(-1)


def fold(w: Array, p: dict[str, Array]) -> dict[str, Array]:
    exact = {name: v.astype(np.float64) for name, v in p.items()}
    scale = exact["gamma"] / np.sqrt(exact["var"] + float(F(1e-5)))
    return {"w": (w * scale).astype(F), "b": (exact["beta"] - scale * exact["mean"]).astype(F)}


KINDS = ("normal", "cancellation", "exponents", "ill-conditioned", "one sign", "ties", "tiny")


@pytest.mark.parametrize("n", [1, 9, 27, 288])
@pytest.mark.parametrize("kind", KINDS)
def test_no_order_of_summation_exceeds_it(kind: str, n: int) -> None:
    """28,000 cases, each in five orders and five forms on either side; and it is not met by far where n is small."""
    rng = np.random.default_rng([n, KINDS.index(kind)])
    w, x, p = drawn(kind, n, rng)
    folded = fold(w, p)
    original, candidate = graphs(n, folded, w, p)
    allowed = bound(original, x, {}) + bound(candidate, x, {"v": 1, "b": 1})
    assert np.isfinite(allowed).all()
    orders = [*SUMS, "fused"]
    before = [norm(dot(w, x, order), p, form) for order in orders for form in FORMS]
    after = [dot(folded["w"], x, order, start) for order in orders for start in (None, folded["b"])]
    after = [y if k % 2 else y + folded["b"] for k, y in enumerate(after)]  # the bias last, and the bias first
    a, b = np.asarray(before, np.float64), np.asarray(after, np.float64)
    high = np.maximum(a.max(0) - b.min(0), b.max(0) - a.min(0))
    assert (high <= allowed).all(), float(np.max(high / allowed))


@pytest.mark.parametrize("n", [9, 27, 288])
def test_a_fault_of_one_percent_in_one_weight_exceeds_it(n: int) -> None:
    """The largest weight, one output element: mostly no order of summation can explain the difference."""
    w, x, p = drawn("normal", n, np.random.default_rng(n))
    wrong = fold(w, p)
    hit = np.argmax(np.abs(w), axis=0), np.arange(CASES)
    wrong["w"][hit] *= F(1.01)
    original, candidate = graphs(n, wrong, w, p)
    allowed = bound(original, x, {}) + bound(candidate, x, {"v": 1, "b": 1})
    difference = np.abs(norm(dot(w, x, "pairs"), p, "precomputed") - (dot(wrong["w"], x, "pairs") + wrong["b"]))
    assert np.mean(difference > allowed) > (0.95 if n < 100 else 0.8)


def test_gamma() -> None:
    assert gamma(3, 2.0**-24) == 3 * 2.0**-24 / (1 - 3 * 2.0**-24)
    assert gamma(2**24, 2.0**-24) == np.inf


def traced(nodes: list[str], weights: dict[str, Array], x: Array) -> tuple[int, int]:
    """k and n behind the last of a chain of unary ops, written "Op" or "Op operand"."""
    protos, name = [], "x"
    for k, text in enumerate(nodes):
        kind, *rest = text.split()
        protos.append(helper.make_node(kind, [name, *rest], [f"h{k}"]))
        name = f"h{k}"
    graph = model(protos, weights, [value("x", *x.shape)], [value(name, *[None] * x.ndim)])
    made = [out for node in protos for out in node.output]
    values = Evaluator(graph).run({"x": x}, ["x", *weights, *made])
    found = running_bounds(graph, values, IEEE, {})[name]
    assert (found.size >= np.abs(values[name])).all()
    return found.k, found.n


def test_counts() -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(F)
    w = np.ones((6, 3, 1, 1), F)
    channel = np.ones(3, F)
    assert traced(["Conv w"], {"w": w}, x) == (0, 3)
    assert traced(["Conv w b"], {"w": w, "b": np.ones(6, F)}, x) == (1, 3)
    assert traced(["BatchNormalization s s s s"], {"s": channel}, x) == (8, 0)
    assert traced(["Mul c", "Add c", "Relu"], {"c": np.ones(1, F)}, x) == (2, 0)
    assert traced(["GlobalAveragePool"], {}, x) == (2, 20)
    assert traced(["MatMul m", "Neg"], {"m": np.ones((5, 2), F)}, x) == (0, 5)


def test_no_bound() -> None:
    x = np.random.default_rng(0).normal(size=(2, 3)).astype(F)
    for chain in (["Softmax"], ["Relu", "Tanh"], ["Add c", "Reciprocal"]):
        with pytest.raises(NoBound):
            traced(chain, {"c": np.full(1, 0.5, F)}, x)
    assert traced(["Add c", "Sqrt"], {"c": np.ones(1, F)}, np.abs(x)) == (2, 0)
    with pytest.raises(NoBound):
        arithmetic_of("int8", "ieee")
