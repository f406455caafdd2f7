"""Which node of one file is which of the other: both walked together from the outputs, and by name where that ends.

The walk needs no names. Where it reaches the inputs without a break the two graphs compute the same expression but
for their constants, so constants that agree make it a proof; after a break, names, then shapes and order, match layers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TypeAlias

import onnx

from ..graph import Graph, Node
from .terms import LAYERS, Operand, Term, bypassed, term

__all__ = ["Match", "Walk", "layers", "leftover"]

_Place: TypeAlias = "tuple[str, Graph, Node | str, int]"  # what makes a value: kind, where, the node or name, output


@dataclass(frozen=True, eq=False)
class Match:
    """A term of each file. how: "structure", "name", "weight", "output" or "shape", from sure to guessed."""

    first: Term
    second: Term
    how: str

    def constants(self) -> list[tuple[Operand | None, Operand | None]]:
        """The constants that belong together; None is an operand that is absent."""
        pairs = zip_longest(_read(self.first), _read(self.second))
        found = [(x, y) for x, y in pairs if not isinstance(x, str) and not isinstance(y, str)]
        return [(x, y) for x, y in found if x is not None or y is not None]


class Walk:
    """Two graphs walked together. `matches`: the pairs of terms met; `breaks`: where the files differ in structure."""

    def __init__(self, first: Graph, second: Graph, name: Callable[[Node], str]) -> None:
        """name: what a node of the first graph was called in its file."""
        self.matches: dict[tuple[Node, Node], Match] = {}
        self.loose: list[tuple[Operand, Operand]] = []  # outputs and body outputs that are constants
        self.breaks: list[str] = []
        self._name = name
        self._same: set[tuple[Graph, str, Graph, str]] = set()  # inputs of bodies that were paired by position
        self._seen: set[tuple[Graph, str, Graph, str]] = set()
        self._stack: list[tuple[Graph, str, Graph, str]] = []
        outputs = {value.name for value in second.proto.output}
        for value in first.proto.output:
            if value.name in outputs:
                self._push(first, value.name, second, value.name)
            else:
                self.breaks.append(f"the candidate has no output {value.name!r}")
        while self._stack:
            self._step(*self._stack.pop())

    def _push(self, a: Graph, x: str, b: Graph, y: str) -> None:
        if (a, x, b, y) not in self._seen:
            self._seen.add((a, x, b, y))
            self._stack.append((a, x, b, y))

    def _step(self, a: Graph, x: str, b: Graph, y: str) -> None:
        first, second = _settle(a, x), _settle(b, y)
        kinds = first[0], second[0]
        if kinds == ("node", "node"):
            self._nodes(first, second)
        elif kinds == ("constant", "constant") or (kinds == ("default", "default") and first[2] == second[2]):
            pair = [_loose(place) for place in (first, second)]
            if pair[0] is None or pair[1] is None:
                self.breaks.append(f"{x} is a constant whose value is not known")
            else:
                self.loose.append((pair[0], pair[1]))
        elif kinds == ("input", "input"):
            _, a, x_, _ = first
            _, b, y_, _ = second
            top = a.parent is None and b.parent is None and x_ == y_
            if not top and (a, x_, b, y_) not in self._same:
                self.breaks.append(f"{x_} is read where the candidate reads {y_}")
        else:
            self.breaks.append(f"{self._what(first)} stands where the candidate has {_what(second)}")

    def _what(self, place: _Place) -> str:
        node = place[2]
        return f"{node.op_type} {self._name(node)!r}" if isinstance(node, Node) else _what(place)

    def _nodes(self, first: _Place, second: _Place) -> None:
        _, a, node, output = first
        _, b, other, other_output = second
        assert isinstance(node, Node) and isinstance(other, Node)
        if (node, other) in self.matches and output == other_output:
            return
        one, two = term(a, node), term(b, other)
        why = _difference(one, two, a, b) or ("" if output == other_output else "another output is read")
        if why:
            self.breaks.append(f"{self._what(first)} and the candidate's {_what(second)}: {why}")
            return
        self.matches[node, other] = Match(one, two, "structure")
        for x, y in _paired(a, one, b, two):
            self._push(a, x, b, y)
        for body, twin in zip(_bodies(a, node), _bodies(b, other), strict=False):
            names = [value.name for value in body.proto.input], [value.name for value in twin.proto.input]
            self._same.update((body, x, twin, y) for x, y in zip(*names, strict=False))
            for x, y in zip(body.proto.output, twin.proto.output, strict=False):
                self._push(body, x.name, twin, y.name)


def _what(place: _Place) -> str:
    kind, _, what, _ = place
    return f"{what.op_type} {what.at!r}" if isinstance(what, Node) else f"the {kind} {what!r}"


def _settle(graph: Graph, value: str) -> _Place:
    """What makes a value: past nodes that only hand it on, in the scope that defines it."""
    while True:
        if value in graph.sparse:
            return "sparse constant", graph, value, 0
        if value in graph.overridable and value in graph.tensors:
            return "default", graph, value, 0
        if graph.is_constant(value) and graph.constant(value) is not None:
            return "constant", graph, value, 0
        made = graph.producer(value)
        if made is not None:
            node, output = made
            if output == 0 and bypassed(graph, node):
                value = node.inputs[0]
                continue
            return "node", graph, node, output
        if value in graph.inputs or graph.parent is None:
            return "input", graph, value, 0
        graph = graph.parent


def _loose(place: _Place) -> Operand | None:
    _, graph, name, _ = place
    held = (graph.tensors.get(name) or graph.constant(name)) if isinstance(name, str) else None
    owner = onnx.NodeProto(op_type="Constant", name=str(name))
    return None if held is None else Operand(held, Node(owner, -1.0), 0, "value")


def _difference(one: Term, two: Term, a: Graph, b: Graph) -> str:
    """Why two terms do not compute the same thing whatever their constants, or ""."""
    if (one.kind, one.domain) != (two.kind, two.domain):
        return "another operator"
    if one.attributes != two.attributes:
        names = [n for n in {**one.attributes, **two.attributes} if one.attributes.get(n) != two.attributes.get(n)]
        return f"attribute {sorted(names)[0]} differs"
    if one.kind != "Linear" and _version(one, a) != _version(two, b):
        return "they belong to different opsets"
    if len(list(one.node.subgraphs())) != len(list(two.node.subgraphs())):
        return "they have different bodies"
    for body, twin in zip(_bodies(a, one.node), _bodies(b, two.node), strict=True):
        counts = [(len(g.proto.input), len(g.proto.output)) for g in (body, twin)]
        if counts[0] != counts[1]:
            return "their bodies have different inputs or outputs"
    if len(_read(one)) != len(_read(two)):
        return "they have different numbers of inputs"
    for x, y in zip(_read(one), _read(two), strict=True):
        if isinstance(x, str) != isinstance(y, str) and not _constant_both(x, y):
            return "one reads a constant where the other does not"
    return ""


def _constant_both(x: str | Operand | None, y: str | Operand | None) -> bool:
    return not isinstance(x, str) and not isinstance(y, str)


def _read(one: Term) -> Sequence[str | Operand | None]:
    """The operands; a layer always has a bias, be it None."""
    if one.kind in LAYERS:
        return (*one.operands, *(None,) * (3 - len(one.operands)))
    return one.operands


def _paired(a: Graph, one: Term, b: Graph, two: Term) -> Iterator[tuple[str, str]]:
    """The computed operands that belong together; two of a commutative op may stand crosswise."""
    mine, theirs = ([o for o in t.operands if isinstance(o, str)] for t in (one, two))
    if one.kind in ("Add", "Mul", "Max", "Min") and len(mine) == len(theirs) == 2:
        places = [_sort_key(_settle(a, x)) for x in mine], [_sort_key(_settle(b, y)) for y in theirs]
        if places[0] == places[1][::-1] and places[0][0] != places[0][1]:
            theirs = theirs[::-1]
    yield from zip(mine, theirs, strict=True)


def _sort_key(place: _Place) -> tuple[str, str, str]:
    kind, _, what, _ = place
    return (kind, what.op_type, what.name) if isinstance(what, Node) else (kind, what, "")


@functools.cache
def _since(kind: str, domain: str, opset: int) -> int:
    try:
        return onnx.defs.get_schema(kind, opset, domain).since_version
    except onnx.defs.SchemaError:
        return opset


def _version(one: Term, graph: Graph) -> int:
    return _since(one.kind, one.domain, graph.opset(one.domain))


def _bodies(graph: Graph, node: Node) -> list[Graph]:
    """The indexes of the bodies of `node`: children come in the order of the nodes that hold them."""
    if not any(True for _ in node.subgraphs()):
        return []
    start = 0
    for holder in graph.nodes:
        count = sum(1 for _ in holder.subgraphs())
        if holder is node:
            return graph.children[start : start + count]
        start += count
    return []


def layers(graphs: Sequence[Graph]) -> Iterator[tuple[Graph, Term]]:
    """The convolutions and products with a constant weight, in the order of the file."""
    for graph in graphs:
        found = {node: term(graph, node) for node in graph.live()}
        inner = {t.node for node, t in found.items() if t.node is not node}  # a MatMul that its bias speaks for
        for node, one in found.items():
            if one.kind in LAYERS and node not in inner and one.constants and one.constants[0].role == "weight":
                yield graph, one


def leftover(first: Sequence[Term], second: Sequence[Term], name: Callable[[Node], str]) -> list[Match]:
    """Match layers that the walk did not reach: by node name, weight, output, then by kind, shape and order."""

    def weight(one: Term) -> str:
        return one.node.inputs[one.constants[0].slot]

    def output(one: Term) -> str:
        return one.node.outputs[0]

    ways: list[tuple[str, Callable[[Term], str], Callable[[Term], str]]] = [
        ("name", lambda t: t.node.name and name(t.node), lambda t: t.node.name),
        ("weight", weight, weight),
        ("output", output, output),
        ("shape", _form, _form),
    ]
    out: list[Match] = []
    mine, theirs = list(first), list(second)
    for how, key, other_key in ways:
        waiting: dict[str, list[Term]] = {}
        for two in theirs:
            waiting.setdefault(other_key(two), []).append(two)
        rest: list[Term] = []
        for one in mine:
            queue = waiting.get(key(one), []) if key(one) else []
            same = next((two for two in queue if _form(two) == _form(one)), None)
            if same is None:
                rest.append(one)
                continue
            queue.remove(same)
            theirs.remove(same)
            out.append(Match(one, same, how))
        mine = rest
    return out


def _form(one: Term) -> str:
    return f"{one.kind} {one.constants[0].shape}"
