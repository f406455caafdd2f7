"""Which sources of the original the candidate still has: what is equal first, then what is called the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator

from .. import sources
from ..graph import Graph, Node
from .replay import Key, Opened

__all__ = ["missing", "repeated"]

_KINDS = sources.ARITHMETIC | {"BatchNormalization"}


def missing(original: Opened, candidate: Opened, *, named: bool = False) -> list[Key]:
    """The sources of the original to which none of the candidate corresponds, in the order of the file.

    named: only one that is called the same is the same; else an equal one may have got another name.
    """
    content: dict[Node, str] = {}
    sizes: dict[Node, str] = {}  # a tool that numbers nodes anew may give an old name to something else
    for file in (original, candidate):
        content.update((node, _content(graph, node)) for graph, node in _affine(file))
        sizes.update((node, _sizes(graph, node)) for graph, node in _affine(file))
    mine, theirs = ({node: None for _, node in _affine(file)} for file in (original, candidate))

    def name(node: Node) -> str:
        return f"{node.op_type} {node.name} {sizes[node]}" if node.name else ""

    def output(node: Node) -> str:
        return f"{node.op_type} {node.outputs[0]} {sizes[node]}"

    def both(one: Callable[[Node], str]) -> Callable[[Node], str]:
        return lambda node: one(node) and f"{one(node)} {content[node]}"

    equal = () if named else (content.__getitem__,)
    for key in (both(name), both(output), *equal, name, output):
        waiting: dict[str, list[Node]] = {}
        for node in theirs:
            waiting.setdefault(key(node), []).append(node)
        for node in list(mine):
            queue = waiting.get(key(node)) if key(node) else None
            if queue:
                del theirs[queue.pop(0)]
                del mine[node]
    return [place for place, node in original.sources.items() if node in mine]


def repeated(original: Opened, gone: Collection[Key]) -> list[Key]:
    """Those of `gone` that equal a source which the candidate has: a tool may have joined two that do the same."""
    content = {key: _content(original.graphs[key[0]], node) for key, node in original.sources.items()}
    kept = {text for key, text in content.items() if key not in gone}
    return [key for key in gone if content[key] in kept]


def _affine(file: Opened) -> Iterator[tuple[Graph, Node]]:
    """The nodes that may be sources, whether or not the file lets one see that they are."""
    for graph in file.graphs:
        for node in graph.nodes:
            if node.domain or node.op_type not in _KINDS or not node.outputs or graph.is_constant(node.outputs[0]):
                continue
            held = [graph.constant(name) for name in node.inputs if name]
            if any(tensor is not None and tensor.is_float for tensor in held):
                yield graph, node


def _sizes(graph: Graph, node: Node) -> str:
    held = [graph.constant(name) if name else None for name in node.inputs]
    return " ".join("x" if tensor is None else str(tensor.size) for tensor in held)


def _content(graph: Graph, node: Node) -> str:
    """The op with its constants, as a digest."""
    digest = hashlib.sha256(f"{node.op_type} {node.attribute('epsilon', None)}".encode())
    for slot, name in enumerate(node.inputs):
        held = graph.constant(name) if name else None
        if held is not None:
            digest.update(f"{slot} {held.data_type} {held.size}".encode())
            digest.update(held.array().tobytes())
    return digest.hexdigest()
