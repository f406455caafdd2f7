"""Small graphs around a BatchNormalization, and the comparison that every law must pass."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from bnfold.fold import FoldResult, fold
from bnfold.reference import Evaluator

EPSILON = 0.01  # unusual, so that a fold that takes another one is caught


class Builder:
    """A graph written down node by node; weights are drawn from one seed."""

    def __init__(self, seed: int = 0, opset: int = 17, ir_version: int = 8) -> None:
        self.random = np.random.default_rng(seed)
        self.opset, self.ir_version = opset, ir_version
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, NDArray[Any]] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.declared: list[onnx.ValueInfoProto] = []

    def input(self, name: str, *shape: int | str) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
        return name

    def declare(self, name: str, *shape: int | str) -> str:
        """Say the shape of a value of which onnx's inference knows nothing."""
        self.declared.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
        return name

    def weight(self, *shape: int, values: NDArray[Any] | None = None, name: str | None = None) -> str:
        name = name or f"w{len(self.weights)}"
        drawn = self.random.normal(size=shape) if values is None else values
        self.weights[name] = np.asarray(drawn, np.float32) if values is None else np.asarray(drawn)
        return name

    def ints(self, *values: int) -> str:
        return self.weight(values=np.asarray(values, np.int64))

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        names = [f"v{len(self.nodes)}{'_' * k}" for k in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, name=f"n{len(self.nodes)}", **attributes))
        return names[0]

    def norm(self, x: str, channels: int, *, positive: bool = False, shift: bool = True) -> str:
        gamma = self.random.uniform(0.5, 2.0, channels)
        if not positive:
            gamma *= np.where(np.arange(channels) % 2, -1.0, 1.0)
        mean = self.random.normal(size=channels)
        variance = self.random.uniform(0.1, 2.0, channels)
        beta = self.random.normal(size=channels)
        if not shift:
            mean, beta = np.zeros(channels), np.zeros(channels)
        names = [self.weight(values=p.astype(np.float32)) for p in (gamma, beta, mean, variance)]
        return self.op("BatchNormalization", x, *names, epsilon=EPSILON)

    def model(self, *outputs: str) -> onnx.ModelProto:
        infos = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs]
        tensors = [numpy_helper.from_array(array, name) for name, array in self.weights.items()]
        graph = helper.make_graph(self.nodes, "g", self.inputs, infos, tensors, value_info=self.declared)
        opsets = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=self.ir_version)
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        del model.graph.output[:]
        model.graph.output.extend(inferred.graph.output)  # the checker wants their shapes
        return model


@functools.cache
def node_tests() -> list[Any]:
    """onnx's own node tests; they register themselves, so a process can collect them once."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tests' own numpy code warns
        return [case for case in collect_testcases(None) if case.model is not None]  # pyright: ignore[reportArgumentType] # None: all ops


def feeds(model: onnx.ModelProto, seed: int = 1, batch: int = 2) -> dict[str, NDArray[np.float64]]:
    random = np.random.default_rng(seed)
    held = {t.name for t in model.graph.initializer}
    return {
        info.name: random.normal(size=[d.dim_value or batch for d in info.type.tensor_type.shape.dim])
        for info in model.graph.input
        if info.name not in held
    }


def difference(model: onnx.ModelProto, result: FoldResult) -> float:
    """The largest difference of the fold, its weights not rounded, in float64: relative to the rms of the outputs."""
    given = feeds(model)
    before = Evaluator(model).run(given)
    after = Evaluator(result.model, exact=result.exact).run(given)
    worst = 0.0
    for name, expected in before.items():
        scale = float(np.sqrt(np.mean(np.square(expected)))) or 1.0
        assert after[name].shape == expected.shape
        worst = max(worst, float(np.max(np.abs(after[name] - expected))) / scale)
    return worst


def folded(model: onnx.ModelProto, left: int = 0) -> FoldResult:
    """Fold, and assert that it is a valid model of the same function with `left` BatchNormalizations in it."""
    result = fold(model)
    onnx.checker.check_model(result.model)
    assert difference(model, result) < 1e-9
    if result.changed:
        assert result.certificate().passed
    assert count(result.model) == left, result.report
    return result


def refused(model: onnx.ModelProto, reason: str) -> FoldResult:
    """Fold, and assert that the one normalization stays, with `reason` among what was in the way."""
    result = folded(model, left=1)
    (kept,) = result.report.unfolded
    assert reason in {kept.reason, *(a.reason for a in kept.alternatives)}, result.report
    return result


def count(model: onnx.ModelProto) -> int:
    """BatchNormalizations, those in bodies included."""

    def inside(graph: onnx.GraphProto) -> int:
        bodies = [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
        return sum(node.op_type == "BatchNormalization" for node in graph.node) + sum(map(inside, bodies))

    return inside(model.graph)
