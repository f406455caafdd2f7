"""The only module that changes a graph: it applies a plan, and writes the changed nodes and tensors back.

A constant that every reader wants edited alike keeps its name; else each distinct demand gets a clone of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx

from .graph import Graph, Node, free_names
from .plan import Plan
from .weights import Tensor, tensor


class Change(NamedTuple):
    """One tensor to write, and the edges that will read it. `name`: the constant it replaces, None: a new operand."""

    name: str | None
    edited: Tensor
    edges: tuple[tuple[Node, int], ...]
    in_place: bool

    def growth(self, graph: Graph) -> int:
        """Bytes that the model gains."""
        old = graph.constant(self.name) if self.name is not None and self.in_place else None
        return self.edited.nbytes - (old.nbytes if old is not None else 0)


def changes(graph: Graph, plan: Plan) -> list[Change]:
    """The plan's edits, equal ones of the same constant joined."""
    if len(plan.edits) < 2 or len({i for n, k in plan.edits if (i := n.inputs[k] if n.has(k) else "")}) == len(
        plan.edits
    ):
        return [_change(graph, plan, n.inputs[k] if n.has(k) else None, [(n, k)]) for n, k in plan.edits]
    groups: dict[tuple[object, ...], list[tuple[Node, int]]] = {}
    for edge, edited in plan.edits.items():
        node, slot = edge
        name = node.inputs[slot] if node.has(slot) else None
        base = graph.constant(name) if name is not None else None
        steps = edited.steps[len(base.steps) if base is not None else 0 :]
        owner: object = name if name is not None else edge
        groups.setdefault((owner, *(s.key() for s in steps)), []).append(edge)
    return [
        _change(graph, plan, owner if isinstance(owner, str) else None, edges) for (owner, *_), edges in groups.items()
    ]


def _change(graph: Graph, plan: Plan, name: str | None, edges: list[tuple[Node, int]]) -> Change:
    edited = plan.edits[edges[0]]
    alone = name is not None and _only_readers(graph, name, edges, edited.shape)
    return Change(name, edited, tuple(edges), alone)


def _only_readers(graph: Graph, name: str, edges: Sequence[tuple[Node, int]], shape: tuple[int, ...]) -> bool:
    if name in graph.outputs or name in graph.captured:
        return False
    local = name in graph.tensors or graph.constant_node(name) is not None
    base = graph.constant(name)
    kept_shape = base is not None and base.shape == shape
    # a reader of the shape alone sees nothing of an edit that keeps it
    others = set(graph.readers(name)) - set(edges)
    return local and all(kept_shape and graph.is_neutral(*edge) for edge in others)


def apply(graph: Graph, source: Node, slot: int, plan: Plan, edits: Sequence[Change]) -> set[Node]:
    """Carry the plan out. edits: its `changes`. Returns the nodes around which something changed."""
    touched = {source, *plan.through, *plan.into}
    orphans: list[str] = []
    for change in edits:
        orphans += _edit(graph, change)
    for node, values in plan.attributes.items():
        for name, value in values.items():
            _set_attribute(node, name, value)
    for node, shift in plan.added.items():
        touched.add(_add_after(graph, node, shift))
    for node, new in plan.became.items():
        node.op_type, node.changed = new.kind, True
        _set_operand(graph, node, new.operand)
    for node, kept in plan.vanished.items():
        orphans += [i for k, i in enumerate(node.inputs) if k != kept]
        touched |= _bypass(graph, node, kept)
    orphans += [i for k, i in enumerate(source.inputs) if k != slot]
    if plan.left is not None:
        touched |= _stay(graph, source, slot, plan.left)
    elif plan.upward:
        touched |= _rename_up(graph, source, slot)
    else:
        touched |= _bypass(graph, source, slot)
    _sweep(graph, orphans)
    return touched


def _edit(graph: Graph, change: Change) -> list[str]:
    edited, orphans = change.edited, list[str]()
    if change.in_place and change.name in graph.tensors:
        name = change.name
    else:
        node, slot = change.edges[0]
        name = graph.fresh(f"{change.name}_folded" if change.name else _bias_name(node, slot))
        for reader, at in change.edges:
            graph.set_input(reader, at, name)
        if change.name:
            orphans.append(change.name)
    graph.tensors[name] = edited if edited.name else edited.named(name)
    graph.edited[name] = change.name
    graph.forget(name)
    return orphans


def _bias_name(node: Node, slot: int) -> str:
    weight = node.inputs[1] if node.has(1) else node.at
    if weight.endswith("weight"):
        return weight[: -len("weight")] + "bias"
    return f"{weight}_bias"


def _set_attribute(node: Node, name: str, value: float | int) -> None:
    kept = [a for a in node.proto.attribute if a.name != name]
    fresh = onnx.helper.make_attribute(name, value)
    del node.proto.attribute[:]
    node.proto.attribute.extend([*kept, fresh])
    node.reset()


def _add_after(graph: Graph, node: Node, shift: np.ndarray) -> Node:
    value = node.outputs[0]
    inner = graph.fresh(f"{value}_unbiased")
    graph.shapes.copy(value, inner)  # of which neither the file nor onnx's inference knows
    proto = _add(graph, node, (inner, value), shift, _bias_name(node, 1), f"{node.at}_bias")
    graph.set_output(node, 0, inner)
    return graph.insert(proto, node)


def _add(graph: Graph, node: Node, values: tuple[str, str], shift: np.ndarray, wish: str, title: str) -> onnx.NodeProto:
    """values[1] = values[0] + shift, with the constant of the name `wish` beside `node`."""
    placed: list[onnx.AttributeProto] = []
    if graph.opset("") < 7:  # it broadcasts when it is told to, from `axis` on and without trailing ones
        placed = [onnx.helper.make_attribute("broadcast", 1)]
        lead = _leading_ones(shift)
        if lead < shift.ndim:
            placed.append(onnx.helper.make_attribute("axis", lead))
            shift = shift.reshape(shift.shape[: shift.ndim - _leading_ones(shift.T)])
    name = _constant(graph, node, wish, shift)
    proto = onnx.helper.make_node("Add", [values[0], name], [values[1]], name=graph.fresh(title))
    proto.attribute.extend(placed)
    return proto


def _constant(graph: Graph, node: Node, wish: str, exact: np.ndarray) -> str:
    """A new initializer beside `node`: coefficients in the layout of its output, to be rounded to its type."""
    name = graph.fresh(wish)
    flat = np.asarray(exact.reshape(exact.shape[_leading_ones(exact) :]), np.float64)  # rank 0 stays rank 0
    base = onnx.TensorProto(name=name, data_type=onnx.TensorProto.DOUBLE, dims=flat.shape, raw_data=flat.tobytes())
    graph.tensors[name] = tensor(base, None, name).retyped(graph.type_of(node))
    graph.edited[name] = None
    return name


def _set_operand(graph: Graph, node: Node, exact: np.ndarray) -> None:
    del node.proto.attribute[:]
    node.reset()
    graph.set_input(node, 1, _constant(graph, node, f"{node.at}_bound", exact))


def _stay(graph: Graph, source: Node, slot: int, left: np.ndarray) -> set[Node]:
    """An Add of `left` comes in the source's place."""
    inner, outer = source.inputs[slot], source.outputs[0]
    proto = _add(graph, source, (inner, outer), left, f"{source.at}_shift", f"{source.at}_add")
    graph.remove(source)
    made = graph.producer(inner)
    readers = {reader for reader, _ in graph.readers(outer)}
    return {graph.insert(proto, source), *readers} | ({made[0]} if made else set())


def _leading_ones(shift: np.ndarray) -> int:
    lead = 0
    while lead < shift.ndim and shift.shape[lead] == 1:
        lead += 1
    return lead


def _bypass(graph: Graph, node: Node, slot: int) -> set[Node]:
    """The node goes; whoever read it reads its input."""
    out, kept = node.outputs[0], node.inputs[slot]
    readers = {reader for reader, _ in graph.readers(out)}
    graph.remove(node)
    graph.replace(out, kept)
    made = graph.producer(kept)
    return readers | ({made[0]} if made else set())


def _rename_up(graph: Graph, node: Node, slot: int) -> set[Node]:
    """The node goes; its input takes the name of its output, which people know."""
    inner, outer = node.inputs[slot], node.outputs[0]
    made = graph.producer(inner)
    graph.remove(node)
    if made is None:
        graph.replace(outer, inner)
        return {reader for reader, _ in graph.readers(inner)}
    graph.shapes.rename(inner, outer)
    graph.set_output(*made, outer)
    graph.replace(inner, outer)
    return {made[0], *(reader for reader, _ in graph.readers(outer))}


def _sweep(graph: Graph, names: list[str]) -> None:
    """Remove the constants among `names` that nobody reads any more, and what computed them."""
    stack = list(dict.fromkeys(names))
    while stack:
        name = stack.pop()
        if not name or graph.readers(name) or name in graph.outputs or name in graph.captured:
            continue
        if name in graph.tensors and name not in graph.overridable:
            del graph.tensors[name]
            graph.edited.pop(name, None)
            graph.forget(name)
            continue
        node = graph.constant_node(name)
        if node is not None and not any(graph.is_used(node, k) for k in range(len(node.outputs))):
            stack.extend(node.inputs)
            graph.remove(node)


def release(graph: Graph) -> None:
    """The bodies inside are written: remove the constants of this graph that they no longer read."""
    still: set[str] = set()
    for node in graph.live():
        for body in node.subgraphs():
            still |= free_names(body)
    freed = [name for name in graph.captured if name not in still]
    for name in freed:
        del graph.captured[name]
    _sweep(graph, freed)


def finish(graph: Graph, *, inputs_too: bool) -> list[str]:
    """Write the changes back into the protobuf. Returns the weights that left the graph's inputs.

    inputs_too: the file's version (IR 3) demands that every initializer is an input.
    """
    proto = graph.proto
    _write_nodes(graph)
    had = {t.name for t in proto.initializer}
    for t in proto.initializer:
        if t.name in graph.edited:
            graph.tensors[t.name].write_over(t, later=graph.parent is None)
    gone = had - graph.tensors.keys()
    if gone:
        proto.initializer.sort(key=lambda t: t.name in gone)
        del proto.initializer[len(proto.initializer) - len(gone) :]
    new = [name for name in graph.tensors if name not in had]
    proto.initializer.extend(graph.tensors[name].to_proto(name, later=graph.parent is None) for name in new)
    left: list[str] = []
    if inputs_too:
        proto.input.extend(
            onnx.helper.make_tensor_value_info(n, graph.tensors[n].data_type, graph.tensors[n].shape) for n in new
        )
        for info in proto.input:
            if info.name in graph.edited and info.name in graph.tensors and info.name in had:
                shape = onnx.helper.make_tensor_value_info("", 1, graph.tensors[info.name].shape).type.tensor_type.shape
                info.type.tensor_type.shape.CopyFrom(shape)
        drop = gone
    else:
        left = [i.name for i in proto.input if i.name in graph.edited and i.name in had]
        drop = gone | set(left)
    _drop(proto.input, {i.name for i in proto.input} & drop)
    made = {out for node in graph.live() for out in node.outputs} | graph.tensors.keys() | graph.inputs
    stale = {info.name for info in proto.value_info} - made
    stale |= {info.name for info in proto.value_info if info.name in graph.edited}
    _drop(proto.value_info, stale)
    return left


def _write_nodes(graph: Graph) -> None:
    proto = graph.proto
    order = {id(n): n.order for n in graph.nodes}
    for node in graph.live():
        if node.changed:
            del node.proto.input[:]
            node.proto.input.extend(node.inputs)
            del node.proto.output[:]
            node.proto.output.extend(node.outputs)
            node.proto.op_type = node.op_type
    if not graph.removed and not graph.inserted:
        return
    kept = sorted((n for n in graph.live()), key=lambda n: order[id(n)])
    protos = [onnx.NodeProto.FromString(n.proto.SerializeToString()) for n in kept] if graph.inserted else None
    if protos is not None:
        del proto.node[:]
        proto.node.extend(protos)
        return
    dead = {id(n) for n in graph.removed}
    flags = iter([id(n) in dead for n in graph.nodes])
    proto.node.sort(key=lambda _: next(flags))
    del proto.node[len(kept) :]


def _drop(infos: Any, names: set[str]) -> None:
    # infos: a repeated field of ValueInfoProto, for which protobuf has no public type
    if names:
        count = sum(1 for info in infos if info.name in names)
        infos.sort(key=lambda info: info.name in names)  # pyright: ignore  # as above
        del infos[len(infos) - count :]
