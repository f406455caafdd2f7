"""The BatchNormalizations whose statistics can be measured: in inference mode, with constant parameters.

level of a layer = 1 + the highest level among the layers that stand before it: one pass over the data for each level.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx

from ..bodies import bodies_of
from ..errors import MalformedModel
from ..files import ModelFile
from ..graph import Graph, Node, free_names, overridable_inputs
from ..sources import EPSILON, training_mode

__all__ = ["Layer", "Left", "found"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Layer:
    """One BatchNormalization of the main graph: node `index` reads `input`. Parameters in float64, all of one shape:
    [C], or [C, ...] where a layer of an old opset keeps statistics for each position (`spatial` False).
    """

    node: str
    index: int
    input: str
    gamma: Array
    beta: Array
    mean: Array
    variance: Array
    epsilon: float
    spatial: bool
    kinds: tuple[int, int]  # ONNX's types of the stored mean and variance
    level: int = 0

    def axes(self, rank: int) -> tuple[int, ...]:
        """The axes of an input of that rank that are pooled over."""
        if not self.spatial:
            return (0,)
        return tuple(axis for axis in range(rank) if axis != 1)


@dataclass(frozen=True)
class Left:
    """A BatchNormalization that is not measured, and why."""

    node: str
    why: str


def found(source: ModelFile) -> tuple[list[Layer], list[Left]]:
    """The layers in topological order, and what is left alone. Raises MalformedModel."""
    model = source.model
    opsets = {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in model.opset_import}
    overridable, _ = overridable_inputs(model, freeze_inputs=False, keep_inputs=False)
    graph = Graph(model.graph, opsets, source.directory, overridable=overridable)
    layers: list[Layer] = []
    left: list[Left] = []
    for index, node in enumerate(graph.nodes):
        if node.op_type == "BatchNormalization" and node.domain == "":
            made = _layer(graph, node, index)
            if isinstance(made, Layer):
                layers.append(made)
            else:
                left.append(Left(node.at, made))
    left += [Left(node, "it is in the body of a control-flow op") for node in _inside(model.graph)]
    left += [
        Left(Node(proto, 0.0).at, f"it is inside the model-local function {function.name}")
        for function in model.functions
        for proto in function.node
        if _is_normalization(proto)
    ]
    return _levelled(model.graph, layers), left


def _layer(graph: Graph, node: Node, index: int) -> Layer | str:
    training = training_mode(graph, node)
    if training is not None:
        return training[0].lower() + training[1:].rstrip(".")
    if len(node.inputs) < 5 or not all(node.inputs[:5]):
        raise MalformedModel(f"{node.at}: a BatchNormalization has five inputs, X, scale, B, mean and var.")
    if not node.outputs or graph.is_constant(node.outputs[0]):
        return "what it normalizes is a constant"
    parameters: list[Array] = []
    kinds: list[int] = []
    for name in node.inputs[1:5]:
        tensor = graph.constant(name)
        if tensor is None:
            what = "is also a graph input" if name in graph.overridable else "is computed at run time"
            return f"its parameter {name} {what}"
        parameters.append(tensor.exact())
        kinds.append(tensor.data_type)
    spatial = graph.opset("") >= 9 or bool(node.attribute("spatial", 1))
    if len({p.shape for p in parameters}) != 1 or (spatial and parameters[0].ndim != 1):
        shapes = ", ".join(str(list(p.shape)) for p in parameters)
        raise MalformedModel(f"The parameters of {node.at} have different or impossible shapes: {shapes}.")
    if not parameters[0].size:
        return "it has no channels"
    epsilon = float(node.attribute("epsilon", EPSILON))
    gamma, beta, mean, variance = parameters
    kind = kinds[2], kinds[3]
    return Layer(node.at, index, node.inputs[0], gamma, beta, mean, variance, epsilon, spatial, kind)


def _levelled(graph: onnx.GraphProto, layers: list[Layer]) -> list[Layer]:
    """The layers with their levels."""
    waiting: Mapping[int, Layer] = {layer.index: layer for layer in layers}
    level: dict[str, int] = {}
    done: list[Layer] = []
    for index, node in enumerate(graph.node):
        reached = max((level.get(name, 0) for name in reads(node)), default=0)
        if index in waiting:
            done.append(replace(waiting[index], level=reached))
            reached += 1
        level.update(dict.fromkeys(node.output, reached))
    return done


def reads(node: onnx.NodeProto) -> set[str]:
    """The values that a node needs, those that its bodies capture included."""
    return {name for name in node.input if name}.union(*(free_names(body) for body in bodies_of(node)))


def _inside(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        for body in bodies_of(node):
            yield from (Node(each, 0.0).at for each in body.node if _is_normalization(each))
            yield from _inside(body)


def _is_normalization(proto: onnx.NodeProto) -> bool:
    return proto.op_type == "BatchNormalization" and proto.domain in ("", "ai.onnx")
