"""Which sources of the original the candidate still has: what is equal first, then what is called the same."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from ..graph import Graph, Node
from .replay import Key, Opened

__all__ = ["missing"]


def missing(original: Opened, candidate: Opened) -> list[Key]:
    """The sources of the original to which none of the candidate corresponds, in the order of the file."""
    content: dict[Node, str] = {}
    for file in (original, candidate):
        for (number, _), node in file.sources.items():
            content[node] = _content(file.graphs[number], node)
    mine, theirs = dict(original.sources), list(candidate.sources.values())

    def name(node: Node) -> str:
        return f"{node.op_type} {node.name}" if node.name else ""

    def output(node: Node) -> str:
        return f"{node.op_type} {node.outputs[0]}"

    def both(one: Callable[[Node], str]) -> Callable[[Node], str]:
        return lambda node: one(node) and f"{one(node)} {content[node]}"

    for key in (both(name), both(output), content.__getitem__, name, output):
        waiting: dict[str, list[Node]] = {}
        for node in theirs:
            waiting.setdefault(key(node), []).append(node)
        for place, node in list(mine.items()):
            queue = waiting.get(key(node)) if key(node) else None
            if queue:
                theirs.remove(queue.pop(0))
                del mine[place]
    return list(mine)


def _content(graph: Graph, node: Node) -> str:
    """The op with its constants, as a digest."""
    digest = hashlib.sha256(f"{node.op_type} {node.attribute('epsilon', None)}".encode())
    for slot, name in enumerate(node.inputs):
        held = graph.constant(name) if name else None
        if held is not None:
            digest.update(f"{slot} {held.data_type} {held.size}".encode())
            digest.update(held.array().tobytes())
    return digest.hexdigest()
