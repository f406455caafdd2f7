"""Is the graph a graph? Each value is defined once, before it is read; operators have the arity that their opset gives.

One linear pass over nodes and tensors, without type inference: what the engine relies on, and no more. An operator of a
domain that nobody knows is fine. Nodes that merely stand in the wrong order, as some exporters leave them, are sorted.
"""

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import onnx
import onnx.defs

from ..errors import MalformedModel, UnsupportedModel
from .external import Extent, extent, payload
from .operators import OPSET, Signature, signature

_TYPES = onnx.AttributeProto
_AS_GOOD = {(_TYPES.FLOAT, _TYPES.INT), (_TYPES.FLOATS, _TYPES.INTS)}  # (the operator's own type, what it may get)
_Scopes = tuple[set[str], ...]


class _Unsorted(Exception):
    """A value is read before the node that makes it, and there is no cycle: sorting repairs it."""


def validate(model: onnx.ModelProto, directory: Path | None) -> bool:
    """Raise MalformedModel or UnsupportedModel with a sentence unless the structure of `model` is sound.

    Returns whether the nodes had to be put into topological order, which is done in place, keeping the given order
    wherever it can be kept.
    """
    try:
        _validate(model, directory)
    except _Unsorted:
        _sort(model.graph)
        for function in model.functions:
            _sort(function)
        _validate(model, directory)
        return True
    return False


def _validate(model: onnx.ModelProto, directory: Path | None) -> None:
    if model.ir_version <= 0:
        raise MalformedModel(
            "The model does not say its IR version (ir_version); it was not written by an ONNX exporter."
        )
    if model.ir_version > onnx.IR_VERSION:
        raise UnsupportedModel(
            f"The model has IR version {model.ir_version}; the installed onnx {onnx.__version__} knows up to "
            f"{onnx.IR_VERSION}. Install a newer onnx."
        )
    opsets = _opsets(model.opset_import, model.ir_version)
    own = {(function.domain, function.name) for function in model.functions}
    check = _Check(opsets, own, directory)
    check.graph(model.graph, (), ())
    check.disjoint()
    for function in model.functions:
        known = set(function.input)
        _Check(_opsets(function.opset_import, model.ir_version), own, directory).nodes(function.node, (known,), ())
        _defined(function.output, known, f"function '{function.name}'")


def _opsets(imports: Iterable[onnx.OperatorSetIdProto], ir_version: int) -> dict[str, int]:
    opsets: dict[str, int] = {}
    for entry in imports:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        shown = domain or "ai.onnx"
        if opsets.get(domain, entry.version) != entry.version:
            raise MalformedModel(
                f"The model imports opset {opsets[domain]} and {entry.version} of {shown}; it can use one."
            )
        if domain == "" and entry.version > onnx.defs.onnx_opset_version():
            raise UnsupportedModel(
                f"The model uses opset {entry.version}; the installed onnx {onnx.__version__} knows up to "
                f"{onnx.defs.onnx_opset_version()}. Install a newer onnx, or export for an older opset."
            )
        if not 0 < entry.version < 2**31:
            raise MalformedModel(f"The model imports opset {entry.version} of {shown}; opsets count from 1.")
        opsets[domain] = entry.version
    if not opsets and ir_version < 3:  # before IR 3 there was one opset and no import
        opsets[""] = 1
    return opsets


class _Check:
    """The pass over one model or function: what its operators mean, and which functions it brings along."""

    def __init__(self, opsets: Mapping[str, int], own: set[tuple[str, str]], directory: Path | None) -> None:
        self._opsets = opsets
        self._own = own
        self._directory = directory
        self._extents: list[tuple[Extent, str]] = []
        self._arity: dict[tuple[str, str], tuple[int, int, int, int] | None] = {}
        self._types: dict[tuple[str, str], dict[str, int]] = {}  # of the attributes that an operator has

    def graph(self, graph: onnx.GraphProto, scopes: _Scopes, outer: tuple[Sequence[onnx.NodeProto], ...]) -> None:
        known: set[str] = set()
        for value in graph.input:
            _define(value.name, known, "graph inputs")
        initialized = {proto.name for proto in graph.initializer}
        if len(initialized) < len(graph.initializer):
            seen: set[str] = set()
            for proto in graph.initializer:
                _define(proto.name, seen, "initializers")
        for proto in graph.initializer:
            self._tensor(proto)
        for sparse in graph.sparse_initializer:
            _define(sparse.values.name, initialized, "initializers")
            self._tensor(sparse.values)
            self._tensor(sparse.indices)
        known |= initialized
        self.nodes(graph.node, (*scopes, known), outer)
        _texts(known)
        _defined([value.name for value in graph.output], known.union(*scopes), f"graph '{graph.name}'")

    def nodes(
        self, nodes: Sequence[onnx.NodeProto], scopes: _Scopes, outer: tuple[Sequence[onnx.NodeProto], ...]
    ) -> None:
        known = scopes[-1]
        for node in nodes:
            inputs, outputs = node.input, node.output
            for name in inputs:
                if name and name not in known and not any(name in scope for scope in scopes):
                    raise _undefined(node, name, nodes, outer)
            self._operator(node, len(inputs), len(outputs))
            types = self._types.get((node.domain, node.op_type), {}) if node.attribute else {}
            for attribute in node.attribute:
                wanted = types.get(attribute.name, attribute.type)
                if wanted != attribute.type and (wanted, attribute.type) not in _AS_GOOD:
                    raise MalformedModel(f"The attribute '{attribute.name}' of {_label(node)} has the wrong type.")
                match attribute.type:
                    case onnx.AttributeProto.TENSOR:
                        self._tensor(attribute.t)
                    case onnx.AttributeProto.GRAPH:
                        self.graph(attribute.g, scopes, (*outer, nodes))
                    case onnx.AttributeProto.GRAPHS:
                        for graph in attribute.graphs:
                            self.graph(graph, scopes, (*outer, nodes))
                    case _:
                        pass
            for name in outputs:
                if name:
                    if name in known:
                        raise MalformedModel(
                            f"The value '{name}' is defined twice, the second time by {_label(node)}: "
                            "an ONNX graph gives each value one definition."
                        )
                    known.add(name)

    def disjoint(self) -> None:
        """Refuse external tensors that share a part of their bytes. The very same bytes are one tensor used twice."""
        last: tuple[Path, int, int, str] | None = None
        for path, start, end, name in sorted((w.path, w.offset, w.offset + w.length, n) for w, n in self._extents):
            if last is not None and path == last[0] and start < last[2] and start < end and (start, end) != last[1:3]:
                raise MalformedModel(
                    f"The tensors '{last[3]}' and '{name}' overlap in {path}: the data belongs to another model."
                )
            last = (path, start, end, name)

    def _operator(self, node: onnx.NodeProto, inputs: int, outputs: int) -> None:
        key = (node.domain, node.op_type)
        if key not in self._arity:
            self._arity[key] = self._look_up(node)
        arity = self._arity[key]
        if arity is None:
            return
        least_in, most_in, least_out, most_out = arity
        for what, count, least, most in (
            ("inputs", inputs, least_in, most_in),
            ("outputs", outputs, least_out, most_out),
        ):
            if not least <= count <= most:
                wanted = f"{least}" if least == most else f"{least} to {most}"
                version = self._opsets.get("" if node.domain == "ai.onnx" else node.domain, 1)
                raise MalformedModel(
                    f"{_label(node)} has {count} {what}; opset {version} gives {node.op_type} {wanted}."
                )

    def _look_up(self, node: onnx.NodeProto) -> tuple[int, int, int, int] | None:
        domain = "" if node.domain == "ai.onnx" else node.domain
        _texts((node.op_type, node.domain))
        if not node.op_type:
            raise MalformedModel(f"{_label(node)} names no operator (its op_type is empty).")
        if (node.domain, node.op_type) in self._own:
            return None
        version = self._opsets.get(domain)
        if version is None:
            raise MalformedModel(
                f"{_label(node)} belongs to the domain '{domain or 'ai.onnx'}', for which the model imports no opset."
            )
        known = signature(node.op_type, version) if not domain and version <= OPSET else _asked(node, version, domain)
        if known is None:
            return None
        self._types[node.domain, node.op_type] = known.attributes
        return known[:4]

    def _tensor(self, proto: onnx.TensorProto) -> None:
        if proto.data_location == onnx.TensorProto.EXTERNAL:
            self._extents.append((extent(proto, self._directory), proto.name))
            return
        if proto.data_type == onnx.TensorProto.STRING:
            return
        needed, held = payload(proto), len(proto.raw_data)
        if held > needed:
            raise MalformedModel(
                f"Tensor '{proto.name}' of shape {list(proto.dims)} needs {needed} bytes and holds {held}: "
                "the model is damaged."
            )
        # ByteSize does not copy the data; a typed field holds at least one byte for an element, or for eight of 4 bits
        enough = needed if proto.HasField("raw_data") else needed // 16
        if enough > (held or proto.ByteSize()):
            raise MalformedModel(
                f"Tensor '{proto.name}' of shape {list(proto.dims)} needs {needed} bytes and holds fewer: "
                "the model is damaged."
            )


def _asked(node: onnx.NodeProto, version: int, domain: str) -> Signature | None:
    try:
        schema = onnx.defs.get_schema(node.op_type, version, domain)
    except onnx.defs.SchemaError:
        return None
    attributes = cast("Mapping[str, Any]", schema.attributes)
    types = {name: each.type.value for name, each in attributes.items()}
    return Signature(schema.min_input, schema.max_input, schema.min_output, schema.max_output, types)


def _define(name: str, known: set[str], where: str) -> None:
    if name in known:
        raise MalformedModel(
            f"The name '{name}' stands twice among the {where}; an ONNX graph gives each value one definition."
        )
    known.add(name)


def _defined(names: Iterable[str], known: set[str], where: str) -> None:
    for name in names:
        if name not in known:
            raise MalformedModel(f"The output '{name}' of {where} is made by no node.")


def _undefined(
    node: onnx.NodeProto, name: str, nodes: Sequence[onnx.NodeProto], outer: tuple[Sequence[onnx.NodeProto], ...]
) -> Exception:
    makers = {output: maker for level in (*outer, nodes) for maker in level for output in maker.output}
    if name not in makers:
        return MalformedModel(f"{_label(node)} reads '{name}', which no node, input or initializer defines.")
    for level in (nodes, *reversed(outer)):
        cycle = _cycle(level)
        if cycle:
            return MalformedModel(f"The graph has a cycle: {' -> '.join(_label(each) for each in cycle)}.")
    return _Unsorted()


def _sort(graph: onnx.GraphProto | onnx.FunctionProto) -> None:
    nodes = list(graph.node)
    maker = {output: index for index, node in enumerate(nodes) for output in node.output if output}
    waiting: list[int] = []
    readers: dict[int, list[int]] = {}
    for index, node in enumerate(nodes):
        needed = {maker[name] for name in _reads(node) if name in maker and maker[name] != index}
        waiting.append(len(needed))
        for each in needed:
            readers.setdefault(each, []).append(index)
    ready = [index for index, count in enumerate(waiting) if count == 0]
    order: list[int] = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for reader in readers.get(index, ()):
            waiting[reader] -= 1
            if waiting[reader] == 0:
                heapq.heappush(ready, reader)
    if order != sorted(order):
        ordered = [onnx.NodeProto.FromString(nodes[index].SerializeToString()) for index in order]
        del graph.node[:]
        graph.node.extend(ordered)
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _sort(inner)


def _cycle(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    # depth first with an explicit stack; the path from a node back to itself is the cycle
    maker = {output: index for index, node in enumerate(nodes) for output in node.output if output}
    done: set[int] = set()
    for start in range(len(nodes)):
        path: list[int] = []
        on_path: set[int] = set()
        stack: list[tuple[int, Iterator[str]]] = []
        nxt: int | None = start
        while nxt is not None or stack:
            if nxt is not None and nxt not in done:
                path.append(nxt)
                on_path.add(nxt)
                stack.append((nxt, _reads(nodes[nxt])))
            nxt = None
            if not stack:
                break
            for name in stack[-1][1]:
                index = maker.get(name)
                if index in on_path:
                    loop = path[path.index(index) :]
                    return [nodes[each] for each in (*reversed(loop), loop[-1])]
                if index is not None and index not in done:
                    nxt = index
                    break
            else:
                index, _ = stack.pop()
                path.pop()
                on_path.discard(index)
                done.add(index)
    return []


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    # what a node depends on: its inputs, and whatever its subgraphs may capture
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            own = {output for inner in graph.node for output in inner.output}
            for inner in graph.node:
                yield from (name for name in _reads(inner) if name not in own)


def _texts(names: Iterable[object]) -> None:
    """Refuse names that are not UTF-8, which protobuf hands out as bytes."""
    if bytes in set(map(type, names)):
        raise MalformedModel("The model has names that are not text in UTF-8: it is damaged.")


def _label(node: onnx.NodeProto) -> str:
    op = node.op_type or "a node"
    if node.name:
        return f"{op} '{node.name}'"
    return f"{op}({next((output for output in node.output if output), '')})"
