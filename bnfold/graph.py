"""A thin index over an ONNX GraphProto: producer, readers, constant, shape; subgraphs and outer scopes.

The protobuf stays what it is until `rewrite.finish` writes the changed nodes and tensors back, so that everything
nobody touched, unknown fields included, is given back as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx

from . import constants
from .bodies import bodies_of
from .dims import Shape
from .dtypes import FLOATS
from .reasons import Reason, Refusal
from .shapes import Shapes
from .weights import Tensor, tensor

_NEUTRAL = frozenset(("Shape", "Size"))
_RANDOM = frozenset(
    ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")
)
_QUANTIZED = frozenset(("DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLinear"))
_HABIT = 0.9  # share of the initializers that must be listed as inputs to call it the exporter's habit


class Node:
    """A node of the graph; `inputs` and `outputs` may be edited, the rest is read from the protobuf."""

    __slots__ = ("_attributes", "changed", "domain", "inputs", "name", "op_type", "order", "outputs", "proto")

    def __init__(self, proto: onnx.NodeProto, order: float) -> None:
        self.proto = proto
        self.op_type: str = proto.op_type
        self.domain: str = "" if proto.domain == "ai.onnx" else proto.domain
        self.name: str = proto.name
        self.inputs: list[str] = list(proto.input)
        self.outputs: list[str] = list(proto.output)
        self.order = order
        self.changed = False
        self._attributes: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"<{self.op_type} {self.at}>"

    @property
    def at(self) -> str:
        if self.name:
            return self.name
        return f"{self.op_type}({next(filter(None, self.outputs), '')})"

    @property
    def attributes(self) -> dict[str, Any]:
        if self._attributes is None:
            self._attributes = {
                a.name: onnx.helper.get_attribute_value(a) for a in self.proto.attribute if not a.ref_attr_name
            }
        return self._attributes

    @property
    def attribute_names(self) -> Iterable[str]:
        return [a.name for a in self.proto.attribute]

    def attribute(self, name: str, default: Any) -> Any:
        value = self.attributes.get(name, default)
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else value

    def has(self, slot: int) -> bool:
        return slot < len(self.inputs) and self.inputs[slot] != ""

    def reset(self) -> None:
        """The protobuf's attributes have changed: read them anew."""
        self._attributes = None

    def subgraphs(self) -> Iterator[onnx.GraphProto]:
        return bodies_of(self.proto)


class Graph:
    """The index of one graph. Names resolve to the outer scopes (`parent`) where this one does not define them."""

    def __init__(
        self,
        proto: onnx.GraphProto,
        opsets: Mapping[str, int],
        directory: Path | None = None,
        *,
        stored: onnx.GraphProto | None = None,
        parent: Graph | None = None,
        names: set[str] | None = None,
        overridable: frozenset[str] = frozenset(),
        late: bool = False,
    ) -> None:
        """stored: an untouched copy of `proto`, where the original bytes of the weights stay readable.

        late: whether large weights fit their type is found out when they are written.
        """
        self.proto = proto
        self.stored = proto if stored is None else stored
        self.opsets = opsets
        self.directory = directory
        self.parent = parent
        self.overridable = overridable
        self.late = late
        self.names: set[str] = set() if names is None else names
        self.tensors: dict[str, Tensor] = {t.name: tensor(t, directory) for t in self.stored.initializer}
        self.sparse: frozenset[str] = frozenset(t.values.name for t in proto.sparse_initializer)
        self.inputs: set[str] = {i.name for i in proto.input} - (self.tensors.keys() - overridable)
        self.outputs: set[str] = {o.name for o in proto.output}
        self.nodes: list[Node] = []
        self.removed: set[Node] = set()
        self.inserted: list[Node] = []
        self.captured: dict[str, str] = {}
        self._holders: list[Node] = []  # nodes with bodies
        self.edited: dict[str, str | None] = {}  # tensors with an edit, and the constant that each was made from
        self._producer: dict[str, tuple[Node, int]] = {}
        self._readers: dict[str, dict[tuple[Node, int], None]] = {}
        self._constant: dict[str, Node] = {}
        self._quantized: set[str] = set()
        self._known: dict[str, Tensor | None] = {}
        self.shapes = Shapes(self)
        self._index()
        self._measured_shapes()

    def _index(self) -> None:
        self.names.update(self.tensors, self.inputs, self.outputs)
        for order, proto in enumerate(self.proto.node):
            node = Node(proto, float(order))
            self.nodes.append(node)
            self._enter(node)
            self.names.update(node.outputs)
            if node.name:
                self.names.add(node.name)
            bodies = list(node.subgraphs())
            if bodies:
                self._holders.append(node)
            for body in bodies:
                for name in free_names(body):
                    self.captured.setdefault(name, node.at)
            if bodies or node.op_type in _RANDOM or not node.outputs:
                continue
            given = [i for i in node.inputs if i]
            if node.op_type == "Constant" and node.domain == "":
                self._constant[node.outputs[0]] = node
            elif given and node.domain == "" and self._is_expression(node, given):
                self._mark(node)

    def _is_expression(self, node: Node, given: list[str]) -> bool:
        # CastLike takes but the type from its second input
        return all(self._computable(i) for i in (given[:1] if node.op_type == "CastLike" else given))

    def _mark(self, node: Node) -> None:
        for out in node.outputs:
            self._constant[out] = node
        if node.op_type in _QUANTIZED or any(i in self._quantized for i in node.inputs):
            self._quantized.update(node.outputs)

    def _measured_shapes(self) -> None:
        """A Shape whose sizes are all static is a constant, and so is what is computed from it."""
        measured = False
        for node in self.nodes:
            if not node.outputs or node.outputs[0] in self._constant or node.domain:
                continue
            if node.op_type == "Shape":
                found = self.shapes.elements(node.outputs[0])
                if found is not None and all(isinstance(d, int) for d in found):
                    measured = True
                    self._mark(node)
            elif measured and node.op_type not in _RANDOM and not any(True for _ in node.subgraphs()):
                given = [i for i in node.inputs if i]
                if given and self._is_expression(node, given):
                    self._mark(node)

    def _computable(self, name: str) -> bool:
        if name in self._constant:
            return True
        if name in self.tensors:
            return name not in self.overridable
        if name in self._producer or name in self.inputs or name in self.sparse or self.parent is None:
            return False
        return self.parent.is_constant(name)

    def _enter(self, node: Node) -> None:
        for k, out in enumerate(node.outputs):
            if out:
                self._producer[out] = (node, k)
        for slot, name in enumerate(node.inputs):
            if name:
                self._readers.setdefault(name, {})[node, slot] = None

    # -- questions ---------------------------------------------------------------------------------------------------

    def opset(self, domain: str) -> int:
        return self.opsets.get(domain, 1)

    def producer(self, value: str) -> tuple[Node, int] | None:
        return self._producer.get(value)

    def readers(self, value: str) -> list[tuple[Node, int]]:
        return list(self._readers.get(value, ()))

    def has_one_reader(self, value: str) -> bool:
        """One node of this graph reads the value, and nobody else."""
        return len(self._readers.get(value, ())) == 1 and value not in self.outputs and value not in self.captured

    def is_used(self, node: Node, output: int) -> bool:
        if output >= len(node.outputs) or not node.outputs[output]:
            return False
        name = node.outputs[output]
        return bool(self._readers.get(name)) or name in self.outputs or name in self.captured

    def is_neutral(self, node: Node, slot: int) -> bool:
        """The node reads no element of this input: it does not see the gauge."""
        return node.domain == "" and (node.op_type in _NEUTRAL or (node.op_type == "CastLike" and slot == 1))

    def is_constant(self, value: str) -> bool:
        """Computable from constants alone; its nodes cost nothing at run time."""
        return self._computable(value)

    def is_quantized(self, value: str) -> bool:
        return value in self._quantized

    def joins(self, node: Node) -> bool:
        """Whether more than one input is computed at run time."""
        return sum(1 for i in node.inputs if i and not self.is_constant(i)) > 1

    def shape(self, value: str) -> Shape | None:
        return self.shapes.of(value)

    def constant(self, value: str) -> Tensor | None:
        """The tensor of a constant value: an initializer, a Constant node or a constant expression; else None."""
        found = self.tensors.get(value)
        if found is not None:
            return None if value in self.overridable else found
        if value in self._known:
            return self._known[value]
        result = None
        if value in self._constant:
            if value not in self._quantized:
                result = constants.tensor_of(self, value)
        elif value not in self._producer and value not in self.inputs and self.parent is not None:
            result = self.parent.constant(value)
        self._known[value] = result
        return result

    def dequantized(self, value: str) -> Tensor | None:
        """The floating constant that a DequantizeLinear of constants makes, in float64; else None."""
        made = self._producer.get(value)
        if made is None or made[0].op_type != "DequantizeLinear" or not self.is_quantized(value):
            return None
        return constants.dequantized(self, made[0], value)

    def constant_node(self, value: str) -> Node | None:
        """The node that computes a constant value."""
        return self._constant.get(value)

    def type_of(self, node: Node) -> int:
        """The floating type that a new operand of `node` must have: that of its weight, else of its value."""
        for name in node.inputs[1:] + node.inputs[:1]:
            found = self.constant(name) if name else None
            if found is not None and found.is_float:
                return found.data_type
        for name in node.inputs + node.outputs:
            elem = self.shapes.elem_type(name)
            if elem in FLOATS:
                return elem
        return onnx.TensorProto.FLOAT

    def boundary(self, value: str, *, output_only: bool = False) -> Refusal | None:
        """Why what is stored at `value` must stay: a graph output, captured, or (unless output_only) an input."""
        if value in self.outputs:
            return Refusal(Reason.GRAPH_BOUNDARY, value, f"{value} is an output of the graph.")
        if value in self.captured:
            return Refusal(
                Reason.GRAPH_BOUNDARY, value, f"{value} is captured by the subgraph of {self.captured[value]}."
            )
        if output_only:
            return None
        if value in self.overridable:
            return Refusal(
                Reason.OVERRIDABLE,
                value,
                f"{value} has a default but is also a graph input: the caller may replace it.",
            )
        if value in self.inputs:
            return Refusal(Reason.GRAPH_BOUNDARY, value, f"{value} is an input of the graph.")
        return None

    def size(self) -> int:
        """N of the gain rule: nodes that are not computable from constants."""
        return sum(1 for node in self.live() if not (node.outputs and node.outputs[0] in self._constant))

    def live(self) -> Iterator[Node]:
        for node in self.nodes:
            if node not in self.removed:
                yield node

    # -- changes (rewrite.py alone calls these) ------------------------------------------------------------------------

    def fresh(self, wish: str) -> str:
        """A name nobody has, like `wish`."""
        name, n = wish, 1
        while name in self.names:
            n += 1
            name = f"{wish}_{n}"
        self.names.add(name)
        return name

    def remove(self, node: Node) -> None:
        self.removed.add(node)
        for slot, name in enumerate(node.inputs):
            if name:
                self._readers[name].pop((node, slot), None)
        for out in node.outputs:
            if out and self._producer.get(out, (None,))[0] is node:
                del self._producer[out]
                self._constant.pop(out, None)

    def insert(self, proto: onnx.NodeProto, after: Node) -> Node:
        node = Node(proto, after.order + 0.5)
        node.changed = True
        self.inserted.append(node)
        self.nodes.append(node)
        self._enter(node)
        return node

    def set_input(self, node: Node, slot: int, name: str) -> None:
        while len(node.inputs) <= slot:
            node.inputs.append("")
        if node.inputs[slot]:
            self._readers[node.inputs[slot]].pop((node, slot), None)
        node.inputs[slot] = name
        node.changed = True
        self._readers.setdefault(name, {})[node, slot] = None

    def set_output(self, node: Node, output: int, name: str) -> None:
        old = node.outputs[output]
        node.outputs[output] = name
        node.changed = True
        if old and self._producer.get(old, (None,))[0] is node:
            del self._producer[old]
        self._producer[name] = (node, output)

    def replace(self, old: str, new: str) -> None:
        """Everybody who reads `old` reads `new`."""
        for node, slot in self.readers(old):
            self.set_input(node, slot, new)

    def forget(self, name: str) -> None:
        """A constant has changed or gone: what was derived from it is read anew."""
        self._known.pop(name, None)
        self.shapes.forget(name)

    @cached_property
    def children(self) -> list[Graph]:
        """The bodies of If, Loop and Scan in this graph, each a graph of its own that sees this one's constants."""
        return [
            Graph(body, self.opsets, self.directory, stored=stored, parent=self, names=self.names)
            for node in self._holders
            for body, stored in zip(node.subgraphs(), bodies_of(self.stored.node[int(node.order)]), strict=True)
        ]

    def misfit(self, edited: Tensor) -> str | None:
        """Why an edited weight does not fit its type, as far as that is to be known now."""
        return None if self.late and edited.fits_late else edited.misfit()

    def nested(self) -> Iterator[Graph]:
        """The graph and the bodies inside it, outer ones first: the order of `bodies.graphs_of`."""
        yield self
        for child in self.children:
            yield from child.nested()


def free_names(graph: onnx.GraphProto) -> set[str]:
    """The names that a subgraph reads from outer scopes."""
    own = {t.name for t in graph.initializer} | {i.name for i in graph.input}
    free: set[str] = set()
    for node in graph.node:
        free.update(i for i in node.input if i and i not in own)
        for body in Node(node, 0.0).subgraphs():
            free.update(free_names(body) - own)
        own.update(node.output)
    free.update(o.name for o in graph.output if o.name not in own)
    return free


def overridable_inputs(
    model: onnx.ModelProto, *, freeze_inputs: bool, keep_inputs: bool
) -> tuple[frozenset[str], frozenset[str]]:
    """Initializers among the graph's inputs: (those a caller may replace, those that leave the inputs once folded).

    IR 3 demands that every initializer is an input: constants. From IR 4 on it is a choice; exporters that list
    (nearly) all of them do it out of habit, and a shorter list is meant.
    """
    listed = {i.name for i in model.graph.input} & {t.name for t in model.graph.initializer}
    if not listed or model.ir_version < 4:
        return frozenset(), frozenset()
    if keep_inputs:
        return frozenset(listed), frozenset()
    habit = len(listed) >= _HABIT * len(model.graph.initializer)
    return (frozenset(), frozenset(listed)) if habit or freeze_inputs else (frozenset(listed), frozenset())
