"""The fold played again on the original, for exactly the sources that a candidate no longer has.

Whoever folded, the weights that a layer may rightly hold are those that the laws give for these sources. The answer
is a graph in memory, with the float64 values before rounding; nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
import onnx

from .. import sources
from ..files import ModelFile
from ..graph import Graph, Node
from ..laws import LAWS
from ..loop import Folder
from ..plan import Plan
from ..result import Record
from ..search import Search
from ..weights import Tensor, tensor

__all__ = ["Key", "Opened", "Replay", "open_graphs", "replay"]

Key = tuple[int, int]  # (number of the graph, position of the node in it): the same in every replay of one file
_NO_LIMIT = 1 << 62


@dataclass(eq=False)
class Opened:
    """One file: its graph and the bodies inside it, outer ones first, and what each node was called in the file."""

    file: ModelFile
    graphs: list[Graph]
    names: dict[Node, str]

    @cached_property
    def sources(self) -> dict[Key, Node]:
        """BatchNormalizations and constant arithmetic, as the file has them."""
        return {
            (number, int(node.order)): node
            for number, graph in enumerate(self.graphs)
            for node in graph.nodes
            if sources.is_source(graph, node)
        }

    def at(self, node: Node) -> str:
        return self.names.get(node, node.at)


@dataclass(eq=False)
class Replay(Opened):
    """The original with some sources folded. `taken`: the sources that each edited node took in, by name."""

    records: list[tuple[Key, Record]] = field(default_factory=list["tuple[Key, Record]"])
    taken: dict[Node, tuple[str, ...]] = field(default_factory=dict["Node", "tuple[str, ...]"])
    keys: dict[Node, tuple[Key, ...]] = field(default_factory=dict["Node", "tuple[Key, ...]"])

    @property
    def folded(self) -> dict[Key, str]:
        """The sources that are gone, and the way each went: up, down or both."""
        return {key: record.plan.direction for key, record in self.records}


def open_graphs(file: ModelFile, overridable: frozenset[str]) -> Opened:
    """Index a file's graphs; they may be edited without touching the file."""
    model = onnx.ModelProto()
    model.CopyFrom(file.model)
    opsets = {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in model.opset_import}
    main = Graph(model.graph, opsets, file.directory, stored=file.model.graph, overridable=overridable)
    graphs = list(main.nested())
    return Opened(file, graphs, {node: node.at for graph in graphs for node in graph.nodes})


def replay(
    file: ModelFile,
    overridable: frozenset[str],
    gone: Collection[Key] | None,
    *,
    turned: Collection[Key] = (),
    aggressive: bool = False,
    partly: bool = False,
    absolute: bool = False,
) -> Replay:
    """Fold the sources `gone` (None: every one that can be) of the original; the others stay.

    turned: the sources to be folded downward only, where upward would come first.
    absolute: every weight by its absolute value, so that what comes out is M, the sum of the absolute terms.
    """
    opened = open_graphs(file, overridable)
    if absolute:
        for graph in opened.graphs:
            _make_absolute(graph)
    keys = {node: key for key, node in opened.sources.items()}
    chosen = {node for node, key in keys.items() if gone is None or key in gone}
    folder = _Replayer(chosen, {node for node in chosen if keys[node] in turned}, aggressive=aggressive, partly=partly)
    for graph in opened.graphs:
        folder.runs(graph)
    records = [record for graph in opened.graphs for record in folder.fold(graph)]
    result = Replay(file, opened.graphs, opened.names)
    for record in records:
        key = keys[record.node]
        result.records.append((key, record))
        for node in (*record.plan.vanished,):  # a source that vanished on the way is folded as well
            if node in keys:
                result.records.append((keys[node], record))
        for node in {*(reader for reader, _ in record.plan.edits), *record.plan.added}:
            result.taken[node] = (*result.taken.get(node, ()), opened.names[record.node])
            result.keys[node] = (*result.keys.get(node, ()), key)
    return result


class _Replayer(Folder):
    """The loop over the sources, for chosen ones alone."""

    def __init__(self, chosen: set[Node], downward: set[Node], *, aggressive: bool, partly: bool) -> None:
        super().__init__((), (), _NO_LIMIT, {}, aggressive=aggressive, partly=partly)
        self._chosen, self._downward = chosen, downward

    def _may_take_the_shortcut(self, graph: Graph) -> bool:
        return False  # it asks nobody which sources are chosen

    def _stays(self, node: Node) -> bool:
        return node in self._runs and node not in self._chosen

    def _ways(self, graph: Graph, source: sources.Source) -> Iterator[tuple[Search, Callable[[], Plan | None]]]:
        if source.node not in self._downward:
            yield from super()._ways(graph, source)
            return
        search = Search(
            graph, LAWS, inserts=1, inverse=source.inverse, stays=self._stays, aggressive=self._aggressive
        )  # fmt: skip
        yield search, partial(search.down, source.node, 0, source.affine)


def _make_absolute(graph: Graph) -> None:
    """Signs such that every term of a fold is positive: beta - s*mean needs a negative mean, x - c a negative c."""
    negative = {n.inputs[3] for n in graph.nodes if n.op_type == "BatchNormalization" and n.has(3)}
    negative |= {n.inputs[1] for n in graph.nodes if n.op_type == "Sub" and n.has(1)}
    values = dict.fromkeys([*graph.tensors, *(i for n in graph.nodes for i in n.inputs if i and graph.is_constant(i))])
    for name in values:
        held = graph.constant(name)
        if held is None or not held.is_float:
            continue
        value = np.abs(held.exact())
        graph.tensors[name] = _literal(name, -value if name in negative else value, held)
        graph.forget(name)


def _literal(name: str, value: np.ndarray, like: Tensor) -> Tensor:
    proto = onnx.TensorProto(name=name, data_type=onnx.TensorProto.DOUBLE, dims=value.shape, raw_data=value.tobytes())
    return tensor(proto, None, name).retyped(like.data_type)
