"""The shortcut for the commonest case: a BatchNormalization behind a Conv whose output nobody else reads.

s*(W(x) + b) + t = (sW)(x) + (s*b + t)     what the search would find, computed for all such pairs of a size at once

Whatever is out of the ordinary is left to the search: the result must be the same, bit for bit (tests/test_direct.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from .affine import Affine, Array
from .graph import Graph, Node
from .plan import Plan
from .sources import EPSILON
from .weights import Tensor, zeros

_FLOAT = onnx.TensorProto.FLOAT
_HALF_OF_LARGEST = float(np.finfo(np.float32).max) / 2
_SMALL = 1 << 12  # elements of a weight up to which many are computed together
CONV = frozenset(("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"))  # as its law has them
_LEFT_BY_TRAINING = frozenset(("momentum", "epsilon"))


class Pair(NamedTuple):
    """A Conv and a BatchNormalization behind it: what the Conv will hold. `was`: the tensors that it was made from."""

    conv: Node
    weight: Tensor
    bias: Tensor
    scale: Array
    shift: Array
    was: tuple[Tensor, ...]
    growth: int  # bytes that the model gains

    def plan(self) -> Plan:
        edits = {(self.conv, 1): self.weight, (self.conv, 2): self.bias}
        return Plan(True, "up", edits, {}, {}, {}, {}, (), (self.conv,))


class _Found(NamedTuple):
    node: Node
    conv: Node
    weight: Tensor
    bias: Tensor | None
    parameters: tuple[Tensor, ...]
    epsilon: float


def pairs(graph: Graph, nodes: Iterable[Node]) -> dict[Node, Pair]:
    """The pairs among `nodes` to which the shortcut applies, ready to be carried out."""
    found: dict[Node, Pair] = {}
    groups: dict[tuple[int, ...], list[_Found]] = {}
    opset = graph.opset("")
    if opset < 9:
        return found
    for node in nodes:
        if node.op_type == "BatchNormalization" and (each := _candidate(graph, node)) is not None:
            groups.setdefault(each.weight.shape, []).append(each)
    for shape, group in groups.items():
        many = math.prod(shape) <= _SMALL
        for start in range(0, len(group), 1 << 10):
            for node, pair in _prepared(graph, group[start : start + (1 << 10)], shape, many):
                found[node] = pair
    return found


def holds(graph: Graph, node: Node, pair: Pair) -> bool:
    """Whether nothing has changed since the pair was prepared."""
    conv = pair.conv
    value = node.inputs[0]
    names = (*conv.inputs[1:3], *node.inputs[1:])
    tensors = graph.tensors
    return (
        graph.producer(value) == (conv, 0)
        and len(names) == len(pair.was)
        and all(tensors.get(name) is t for name, t in zip(names, pair.was, strict=True))
        and _alone(graph, conv, value)
    )


def _candidate(graph: Graph, node: Node) -> _Found | None:
    made = graph.producer(node.inputs[0]) if len(node.inputs) == 5 else None
    if made is None or made[0].op_type != "Conv" or made[0].domain or any(node.outputs[1:]):
        return None
    conv = made[0]
    epsilon = EPSILON
    for a in node.proto.attribute:
        if a.name == "epsilon" and not a.ref_attr_name:
            epsilon = a.f
        elif a.name not in _LEFT_BY_TRAINING and (a.name != "training_mode" or a.i):
            return None
    if not CONV.issuperset(conv.attribute_names):
        return None
    tensors: list[Tensor] = []
    for name in (*conv.inputs[1:3], *node.inputs[1:]):
        t = graph.tensors.get(name)
        if t is None or t.data_type != _FLOAT or t.steps or t.proto is None or name in graph.overridable:
            return None
        tensors.append(t)
    weight, *bias = tensors[:-4]
    parameters = tuple(tensors[-4:])
    size = weight.shape[:1]
    if len(weight.shape) < 3 or size == (1,) or any(t.shape != size for t in (*bias, *parameters)):
        return None
    declared = graph.shapes.declared(node.inputs[0])
    if declared is not None and (len(declared) != len(weight.shape) or declared[1] not in (size[0], str(declared[1]))):
        return None
    if not _alone(graph, conv, node.inputs[0]):
        return None
    return _Found(node, conv, weight, bias[0] if bias else None, parameters, epsilon)


def _alone(graph: Graph, conv: Node, value: str) -> bool:
    """The Conv is the only reader of its weights, the BatchNormalization the only one of its output."""
    return all(graph.has_one_reader(name) for name in (value, *conv.inputs[1:3]))


def _stacked(tensors: Sequence[Tensor], shape: tuple[int, ...]) -> Array:
    held = [t.proto.raw_data if t.proto is not None else b"" for t in tensors]
    if not all(held):
        return np.concatenate([t.doubles().reshape(1, *shape) for t in tensors])
    return np.frombuffer(b"".join(held), "<f4").reshape(-1, *shape).astype(np.float64)


def _prepared(graph: Graph, group: list[_Found], shape: tuple[int, ...], many: bool) -> Iterator[tuple[Node, Pair]]:
    size = shape[:1]
    gamma, beta, mean, variance = (_stacked([f.parameters[k] for f in group], size) for k in range(4))
    epsilon = np.asarray([f.epsilon for f in group])[:, None]
    with np.errstate(all="ignore"):
        deviation = np.sqrt(variance + epsilon)
        scale = gamma / deviation
        shift = beta - scale * mean
        sound = np.isfinite(scale + shift + deviation).all(1) & (deviation > 0).all(1) & (variance >= 0).all(1)
    sound &= _varies(scale) & _varies(shift)  # coefficients that are all the same have a form of their own
    column = (len(group), size[0], *(1,) * (len(shape) - 1))
    weights = _stacked([f.weight for f in group], shape) * scale.reshape(column) if many else None
    if weights is not None:
        sound &= np.abs(weights).reshape(len(group), -1).max(1) < _HALF_OF_LARGEST  # NaN is not
    none = np.zeros(size)
    before = np.stack([none if f.bias is None else f.bias.doubles() for f in group])
    with np.errstate(all="ignore"):
        biases = before * scale + shift
    sound &= np.abs(biases).max(1) < _HALF_OF_LARGEST
    with np.errstate(over="ignore", invalid="ignore"):  # of what is not sound; that is left to the search
        raw = [biases.astype("<f4"), *(() if weights is None else (weights.astype("<f4"),))]
    added = size[0] * 4  # of a float32 bias
    layout = (1, size[0], *(1,) * (len(shape) - 2))
    for k, found in enumerate(group):
        if not sound[k]:
            continue
        rows = Affine(scale[k].reshape(column[1:]), np.zeros(()))
        weight = _edited(found.weight, rows, *(() if weights is None else (weights[k], raw[1][k].tobytes())))
        if weights is None and graph.misfit(weight) is not None:
            continue
        base = zeros("", size, _FLOAT) if found.bias is None else found.bias
        bias = _edited(base, Affine(scale[k], shift[k]), biases[k], raw[0][k].tobytes())
        was = (found.weight, *(() if found.bias is None else (found.bias,)), *found.parameters)
        yield (
            found.node,
            Pair(
                found.conv,
                weight,
                bias,
                scale[k].reshape(layout),
                shift[k].reshape(layout),
                was,
                added if found.bias is None else 0,
            ),
        )


def _varies(rows: Array) -> NDArray[np.bool_]:
    return (rows != rows[:, :1]).any(1)


def _edited(base: Tensor, step: Affine, exact: Array | None = None, stored: bytes | None = None) -> Tensor:
    return Tensor(base.name, base.data_type, base.shape, base.proto, base.directory, (step,), exact, stored)
