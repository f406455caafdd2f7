"""Two graphs side by side: the regions in which they differ, between values that mean the same in both.

A region ends in a value of both graphs and reads values of both graphs; its two sets of nodes are what lies between:
{Conv, BatchNormalization} against {Conv'}. Which names mean the same is not decided here, but in sharing.py.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx

from bnfold.bodies import bodies_of
from bnfold.files import ModelFile
from bnfold.graph import free_names
from bnfold.reference.node import schema
from bnfold.weights import read

__all__ = ["Pair", "Region", "Side"]

Key = tuple[object, ...]
_CARRIED = frozenset(
    "Relu LeakyRelu PRelu Abs Neg Identity Dropout MaxPool AveragePool GlobalAveragePool GlobalMaxPool Transpose "
    "Reshape Flatten Squeeze Unsqueeze Concat Split Tile Expand DepthToSpace SpaceToDepth Pad Resize Upsample".split()
)


class Side:
    """One model's main graph, indexed by value."""

    def __init__(self, file: ModelFile) -> None:
        self.model, self.directory = file.model, file.directory
        graph = file.model.graph
        self.opsets = {"" if e.domain == "ai.onnx" else e.domain: e.version for e in self.model.opset_import}
        self.weights = {proto.name: proto for proto in graph.initializer}
        self.sparse = {proto.values.name: proto for proto in graph.sparse_initializer}
        self.inputs = {v.name for v in graph.input} - self.weights.keys() - self.sparse.keys()
        self.outputs = [v.name for v in graph.output]
        self.nodes = list(graph.node)
        self.reads = [_reads(node) for node in self.nodes]
        self.made = {name: k for k, node in enumerate(self.nodes) for name in node.output if name}
        self.constants: set[str] = {*self.weights, *self.sparse}
        for node, reads in zip(self.nodes, self.reads, strict=True):
            if not node.op_type.startswith("Random") and all(name in self.constants for name in reads):
                self.constants.update(name for name in node.output if name)

    @cached_property
    def keys(self) -> list[Key]:
        """What each node does, its name apart: equal keys and equal operands give equal results."""
        functions = {
            (f.domain, f.name, f.overload): f.SerializeToString(deterministic=True) for f in self.model.functions
        }
        return [self._key(node, functions.get((node.domain, node.op_type, node.overload))) for node in self.nodes]

    def _key(self, node: onnx.NodeProto, function: bytes | None) -> Key:
        domain = "" if node.domain == "ai.onnx" else node.domain
        version = self.opsets.get(domain, 1)
        known = None if function is not None else schema(node.op_type, version, domain)
        attributes = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
        since = version if known is None else known.since
        return node.op_type, domain, since, tuple(node.input), tuple(node.output), tuple(attributes), function


def _reads(node: onnx.NodeProto) -> tuple[str, ...]:
    captured = [name for body in bodies_of(node) for name in sorted(free_names(body))]
    return tuple(dict.fromkeys(name for name in (*node.input, *captured) if name))


@dataclass(frozen=True)
class Cone:
    """The nodes behind a value, as positions in the graph, as far back as to the values of `frontier`."""

    nodes: tuple[int, ...]
    frontier: frozenset[str]
    weights: frozenset[str]  # initializers


@dataclass(frozen=True)
class Region:
    """What makes `end` in either graph out of the values in `inputs`."""

    end: str
    original: Cone
    candidate: Cone

    @property
    def inputs(self) -> frozenset[str]:
        return self.original.frontier | self.candidate.frontier


class Pair:
    """Two models and the questions about their structure that a comparison of regions asks."""

    def __init__(self, original: ModelFile, candidate: ModelFile) -> None:
        self.original, self.candidate = Side(original), Side(candidate)
        self._same: dict[str, bool] = {}
        common = [name for name in self.original.made if name in self.candidate.made]
        self.names = [name for name in common if name not in self.original.constants]

    def region(self, end: str, shared: Container[str]) -> Region:
        """The region that ends in `end`, both sides of which read the same values, or else graph inputs."""
        passed: set[str] = {end}  # shared values that only one side would read: both go behind them
        while True:
            cones = [_cone(side, end, shared, passed) for side in (self.original, self.candidate)]
            odd = (cones[0].frontier ^ cones[1].frontier) - self.original.inputs
            for side, cone in zip((self.original, self.candidate), cones, strict=True):
                # a node of the region may make such a value too, beside what it is in the region for
                odd |= {name for name in cone.frontier if side.made.get(name) in cone.nodes}
            if not odd:
                return Region(end, *cones)
            passed |= odd

    def identical(self, region: Region) -> bool:
        """The same nodes on the same weights."""
        a, b = region.original, region.candidate
        if len(a.nodes) != len(b.nodes) or a.weights != b.weights or a.frontier != b.frontier:
            return False
        mine = {self.original.keys[k] for k in a.nodes}
        return all(self.candidate.keys[k] in mine for k in b.nodes) and all(map(self.same_weight, a.weights))

    def same_weight(self, name: str) -> bool:
        """The initializer is in both models, with the same type, shape and values."""
        if name not in self._same:
            self._same[name] = self._compared(name)
        return self._same[name]

    def _compared(self, name: str) -> bool:
        a, b = self.original.weights.get(name), self.candidate.weights.get(name)
        if a is None or b is None:
            mine, theirs = self.original.sparse.get(name), self.candidate.sparse.get(name)
            return mine is not None and mine == theirs
        if a.data_type != b.data_type or list(a.dims) != list(b.dims):
            return False
        if a.data_location != onnx.TensorProto.EXTERNAL and a.SerializeToString() == b.SerializeToString():
            return True
        if a.data_type == onnx.TensorProto.STRING:
            return list(a.string_data) == list(b.string_data)
        mine, theirs = (read(p, side.directory) for p, side in ((a, self.original), (b, self.candidate)))
        return mine.tobytes() == theirs.tobytes()

    def changed_weights(self, region: Region) -> list[str]:
        """The candidate's initializers in the region that the original lacks or has with other values."""
        return sorted(name for name in region.candidate.weights if not self.same_weight(name))

    def carried(self, name: str) -> bool:
        """Made by the same cheap op from the same names in both: a value that differs before it differs after it."""
        mine, theirs = self.original.made[name], self.candidate.made[name]
        if self.original.nodes[mine].op_type not in _CARRIED:
            return False
        operands = [r for r in self.original.reads[mine] if r in self.original.constants]
        return self.original.keys[mine] == self.candidate.keys[theirs] and all(map(self.same_weight, operands))

    def title(self, region: Region) -> str:
        """The candidate's nodes that hold changed weights, else the original's that have gone, else what ends it."""
        changed = set(self.changed_weights(region))
        nodes = [self.candidate.nodes[k] for k in region.candidate.nodes]
        holders = [node for node in nodes if not changed.isdisjoint(node.input)]
        if not holders:
            kept = {name for node in nodes for name in node.output}
            holders = [n for n in self.titled(region) if kept.isdisjoint(n.output)]
        if not holders:
            holders = [self.original.nodes[self.original.made[region.end]]]
        names = [_name(node) for node in holders]
        return " + ".join(names) if len(names) <= 3 else f"{names[0]} … {names[-1]} ({len(names)} nodes)"

    def titled(self, region: Region) -> Iterator[onnx.NodeProto]:
        """The original's nodes in the region."""
        for k in region.original.nodes:
            yield self.original.nodes[k]

    def model(self, region: Region, which: int, arrays: dict[str, np.dtype[np.generic]]) -> onnx.ModelProto:
        """One side (0: the original) as a model of its own; `arrays`: the types of the region's inputs."""
        side, cone = ((self.original, region.original), (self.candidate, region.candidate))[which]
        piece = onnx.ModelProto(ir_version=max(side.model.ir_version, 4))
        piece.opset_import.extend(side.model.opset_import)
        piece.functions.extend(side.model.functions)
        graph = piece.graph
        graph.name = "region"
        graph.node.extend(side.nodes[k] for k in cone.nodes)
        graph.initializer.extend(side.weights[name] for name in sorted(cone.weights) if name in side.weights)
        graph.sparse_initializer.extend(side.sparse[name] for name in sorted(cone.weights) if name in side.sparse)
        for name in sorted(cone.frontier):
            kind = onnx.helper.np_dtype_to_tensor_dtype(arrays[name])
            graph.input.append(onnx.helper.make_tensor_value_info(name, kind, None))
        graph.output.append(onnx.ValueInfoProto(name=region.end))
        return piece


def _cone(side: Side, end: str, shared: Container[str], passed: Container[str]) -> Cone:
    nodes: set[int] = set()
    frontier: set[str] = set()
    weights: set[str] = set()
    stack = [side.made[end]]
    while stack:
        k = stack.pop()
        if k in nodes:
            continue
        nodes.add(k)
        for name in side.reads[k]:
            if name in side.inputs:
                frontier.add(name)
            elif name in side.weights or name in side.sparse:
                weights.add(name)
            elif name in shared and name not in passed and name not in side.constants:
                frontier.add(name)
            elif name in side.made:
                stack.append(side.made[name])
    return Cone(tuple(sorted(nodes)), frozenset(frontier), frozenset(weights))


def _name(node: onnx.NodeProto) -> str:
    return node.name or f"{node.op_type}({next((o for o in node.output if o), '')})"
