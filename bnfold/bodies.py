"""The graphs inside a graph: the branches of an If, the body of a Loop or Scan."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx


def bodies_of(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs among a node's attributes."""
    for a in node.attribute:
        if a.type == onnx.AttributeProto.GRAPH:
            yield a.g
        elif a.type == onnx.AttributeProto.GRAPHS:
            yield from a.graphs


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and its bodies, outer ones first: the order in which a fold counts them.

    A fold moves no node that holds a body, so a model and its fold have the same order.
    """
    yield graph
    for node in graph.node:
        for body in bodies_of(node):
            yield from graphs_of(body)


def nodes_of(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes and those in their bodies."""
    for node in nodes:
        yield node
        for body in bodies_of(node):
            yield from nodes_of(body.node)
