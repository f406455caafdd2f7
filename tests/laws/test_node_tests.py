"""onnx's own node tests as the ops in between: each with a BatchNormalization behind it, and one before it.

Attributes, opsets, broadcasts and odd shapes that nobody here thought of. Whatever happens, the function stays.
"""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bnfold.fold import fold
from bnfold.laws import LAWS
from bnfold.reference import EvaluationError, Evaluator, UnsupportedOp
from tests.graphs import EPSILON, node_tests

FLOAT = TensorProto.FLOAT
OPS = {kind for domain, kind in LAWS if domain == ""} - {"BatchNormalization"}


@functools.cache
def cases() -> list[tuple[str, onnx.ModelProto, dict[str, NDArray[Any]]]]:
    found: list[tuple[str, onnx.ModelProto, dict[str, NDArray[Any]]]] = []
    for case in node_tests():
        model = case.model
        if model is None or len(model.graph.node) != 1 or model.graph.node[0].op_type not in OPS or not case.data_sets:
            continue
        inputs, _ = case.data_sets[0]
        if all(isinstance(x, np.ndarray) for x in inputs):
            feeds = {i.name: x for i, x in zip(model.graph.input, inputs, strict=True)}
            found.append((case.name, model, feeds))
    return found


def norm(x: str, y: str, channels: int, seed: int, *, positive: bool) -> tuple[onnx.NodeProto, list[onnx.TensorProto]]:
    random = np.random.default_rng(seed)
    gamma = random.uniform(0.5, 2, channels) * (1 if positive else np.where(np.arange(channels) % 2, -1, 1))
    arrays = (gamma, random.normal(size=channels), random.normal(size=channels), random.uniform(0.5, 2, channels))
    names = [f"{y}_{role}" for role in ("scale", "bias", "mean", "var")]
    tensors = [numpy_helper.from_array(a.astype(np.float32), n) for a, n in zip(arrays, names, strict=True)]
    return helper.make_node("BatchNormalization", [x, *names], [y], epsilon=EPSILON, name="added"), tensors


def layer(x: str, y: str, shape: tuple[int, ...]) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    random = np.random.default_rng(3)
    tensors = [numpy_helper.from_array(random.uniform(0.5, 2, shape).astype(np.float32), f"{y}_{k}") for k in "st"]
    nodes = [helper.make_node("Mul", [x, f"{y}_s"], [f"{y}_m"]), helper.make_node("Add", [f"{y}_m", f"{y}_t"], [y])]
    return nodes, tensors


def extended(
    model: onnx.ModelProto, feeds: dict[str, NDArray[Any]], *, before: bool, positive: bool, constant: bool
) -> tuple[onnx.ModelProto, dict[str, NDArray[Any]]] | None:
    """The model with a BatchNormalization at its first floating output (or input), and a linear map at the other end.

    The linear map is a Mul and an Add with a number for each element, which can take in coefficients of any layout.
    constant: every input but the first floating one becomes an initializer.
    """
    out = onnx.ModelProto()
    out.CopyFrom(model)
    graph, node = out.graph, out.graph.node[0]
    floats = [i.name for i in graph.input if i.type.tensor_type.elem_type == FLOAT and feeds[i.name].ndim > 0]
    if not floats:
        return None
    data = floats[0]
    if constant:
        for name in [i.name for i in graph.input if i.name != data]:
            if feeds[name].dtype.kind not in "fiub":
                return None
            graph.initializer.append(numpy_helper.from_array(feeds[name], name))
        kept = [i for i in graph.input if i.name == data]
        del graph.input[:]
        graph.input.extend(kept)
    if before:
        shape = feeds[data].shape
        if len(shape) < 2:
            return None
        added, tensors = norm("curved", "normal", shape[1], 1, positive=positive)
        node.input[:] = ["normal" if name == data else name for name in node.input]
        nodes = [helper.make_node("Tanh", [data], ["curved"]), added, node]
        result = next((o for o in graph.output if o.type.tensor_type.elem_type == FLOAT), None)
        if result is not None:
            name = result.name
            node.output[:] = ["inner" if o == name else o for o in node.output]
            linear, more = layer("inner", "rescaled", Evaluator(model).run(feeds)[name].shape)
            tensors += more
            nodes += [*linear, helper.make_node("Tanh", ["rescaled"], [name])]
    else:
        result = next((o for o in graph.output if o.type.tensor_type.elem_type == FLOAT), None)
        if result is None or len(result.type.tensor_type.shape.dim) < 2:
            return None
        made = Evaluator(model).run(feeds)[result.name]
        if made.ndim < 2:
            return None
        name = result.name
        node.output[:] = ["inner" if o == name else o for o in node.output]
        added, tensors = norm("inner", name, made.shape[1], 2, positive=positive)
        linear, more = layer("curved", "rescaled", feeds[data].shape)
        tensors += more
        node.input[:] = ["rescaled" if i == data else i for i in node.input]
        nodes = [helper.make_node("Tanh", [data], ["curved"]), *linear, node, added]
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensors)
    held = {t.name for t in graph.initializer}
    return out, {name: value for name, value in feeds.items() if name not in held}


@pytest.mark.parametrize("before", [False, True], ids=["behind", "before"])
@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("constant", [True, False])
def test_every_node_test_stays_the_same_function(before: bool, positive: bool, constant: bool) -> None:
    tried: Counter[str] = Counter()
    folded: Counter[str] = Counter()
    for name, model, feeds in cases():
        try:
            made = extended(model, feeds, before=before, positive=positive, constant=constant)
            if made is None:
                continue
            candidate, given = made
            expected = Evaluator(candidate).run(given)
        except (UnsupportedOp, EvaluationError):
            continue  # the judge has no such op, or the normalization does not fit its shape
        kind = model.graph.node[0].op_type
        tried[kind] += 1
        result = fold(candidate)
        if not result.changed:
            assert result.report.kept and all(k.reason and k.message for k in result.report.kept), name
            continue
        folded[kind] += 1
        assert result.certificate().passed, name
        got = Evaluator(result.model, exact=result.exact).run(given)
        for key, y in expected.items():
            scale = float(np.max(np.abs(y), initial=0.0, where=np.isfinite(y))) if y.dtype.kind == "f" else 0.0
            np.testing.assert_allclose(got[key], y, rtol=0, atol=1e-9 * scale, err_msg=name)
    assert sum(tried.values()) > 150 and (sum(folded.values()) > 100 or not constant), (tried, folded)
