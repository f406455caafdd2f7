"""A list of nodes made ready to run: kernels chosen, attributes read, subgraphs and functions compiled inside.

A value is dropped after its last reader, and only the nodes that the wanted outputs need are run. A subgraph reads
the values around it; a function's body is compiled once for each call, with the call's attributes in place.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto
from onnx.helper import make_attribute

from bnfold.errors import BnfoldError, MalformedModel, UnsupportedOp
from bnfold.reference.kernels import ATTRIBUTES, CONTROL, KERNELS, REFUSALS, TYPED
from bnfold.reference.node import Array, Kernel, Node, Schema, describe, schema
from bnfold.reference.stock import stock_kernel
from bnfold.reference.tensors import HALF, promoted_dtype, sparse_tensor, tensor

Values = dict[str, Any]
_DEPTH = 64  # functions that call functions: deeper than this is a function that calls itself


class EvaluationError(BnfoldError):
    """A node could not be evaluated: its operands contradict the specification."""

    kind = "evaluation"


@dataclass(frozen=True)
class Scope:
    """What is the same for all nodes of one graph or function."""

    opsets: Mapping[str, int]
    functions: Mapping[tuple[str, str, str], FunctionProto]
    promote: bool
    directory: Path | None
    attributes: Mapping[str, AttributeProto] | None = None  # of the call, inside a function
    depth: int = 0
    exact: Mapping[str, Array] = field(default_factory=dict[str, Array])  # what replaces initializers, bodies' included


@dataclass(frozen=True, slots=True)
class Step:
    node: Node
    inputs: tuple[str, ...]
    captured: frozenset[str]  # what its subgraphs read from outside
    kernel: Kernel
    needs_outer: bool  # the kernel takes the values around it, for its subgraphs

    @property
    def reads(self) -> set[str]:
        return {name for name in self.inputs if name} | self.captured


class Program:
    """Nodes in topological order with their inputs' and outputs' names, ready to run."""

    def __init__(
        self, nodes: Iterable[NodeProto], scope: Scope, inputs: Sequence[str], outputs: Sequence[str], constants: Values
    ) -> None:
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.constants = constants
        self.steps = [_step(node, scope) for node in nodes]
        made = {*self.inputs, *constants, *(name for step in self.steps for name in step.node.outputs)}
        read = {name for step in self.steps for name in step.reads} | set(self.outputs)
        self.captured = frozenset(read - made - {""})
        self._plans: dict[tuple[str, ...], list[tuple[Step, tuple[str, ...]]]] = {}

    @classmethod
    def of_graph(cls, graph: GraphProto, scope: Scope) -> "Program":
        """A graph's program. `scope.exact` replaces initializers, and those are not even read."""
        exact = scope.exact
        constants: Values = {
            proto.name: exact[proto.name] if proto.name in exact else tensor(proto, scope.directory, scope.promote)
            for proto in graph.initializer
        }
        for proto in graph.sparse_initializer:
            constants[proto.values.name] = sparse_tensor(proto, scope.directory, scope.promote)
        inputs = [value.name for value in graph.input]
        return cls(graph.node, scope, inputs, [value.name for value in graph.output], constants)

    @classmethod
    def of_function(
        cls, function: FunctionProto, scope: Scope, given: Mapping[str, AttributeProto], own: bool
    ) -> "Program":
        """The body of one call. `own`: a function of the model, which may call the model's other functions."""
        if scope.depth > _DEPTH:
            raise MalformedModel(f"The function {function.name!r} calls itself.")
        attributes = {proto.name: proto for proto in function.attribute_proto} | dict(given)
        opsets = {_plain(entry.domain): entry.version for entry in function.opset_import} or dict(scope.opsets)
        inner = replace(
            scope, opsets=opsets, functions=scope.functions if own else {}, attributes=attributes, depth=scope.depth + 1
        )
        return cls(function.node, inner, function.input, function.output, {})

    def plan(self, wanted: Sequence[str]) -> list[tuple[Step, tuple[str, ...]]]:
        """The steps that `wanted` needs, each with the names whose last reader it is."""
        key = tuple(wanted)
        if key in self._plans:
            return self._plans[key]
        needed = set(wanted)
        steps: list[tuple[Step, tuple[str, ...]]] = []
        for step in reversed(self.steps):
            if needed.isdisjoint(step.node.outputs):
                continue
            reads = step.reads
            dead = (reads - needed) | (set(step.node.outputs) - needed - {""})
            needed |= reads
            steps.append((step, tuple(dead)))
        steps.reverse()
        self._plans[key] = steps
        return steps

    def run(
        self,
        given: Values,
        wanted: Sequence[str] | None = None,
        outer: Values | None = None,
        observe: Callable[[str, Any], None] | None = None,
    ) -> list[Any]:
        """The wanted values, by default the outputs, from the inputs by name and the values around a subgraph.

        `observe` is shown every value by name: what is given, and what the nodes that are run compute.
        """
        wanted = self.outputs if wanted is None else wanted
        values: Values = {**(outer or {}), **self.constants, **given}
        if observe is not None:
            for name, value in given.items():
                observe(name, value)
        with np.errstate(all="ignore"):
            for step, dead in self.plan(wanted):
                results = _execute(step, values)
                for name, value in zip(step.node.outputs, results, strict=False):
                    if name:
                        values[name] = value
                        if observe is not None:
                            observe(name, value)
                for name in dead:
                    values.pop(name, None)
        try:
            return [values[name] for name in wanted]
        except KeyError as error:
            raise EvaluationError(f"Nothing in the model computes the value {error.args[0]!r}.") from error


def _execute(step: Step, values: Values) -> Sequence[Any]:
    node = step.node
    try:
        inputs = [values[name] if name else None for name in step.inputs]
    except KeyError as error:
        raise EvaluationError(
            f"{node} reads {error.args[0]!r}, which is neither an input that was given nor computed before it."
        ) from error
    try:
        if step.needs_outer:
            return step.kernel(node, values, *inputs)
        results = step.kernel(node, *inputs)
    except (BnfoldError, MemoryError):
        raise
    except Exception as error:  # a kernel meets whatever a malformed model holds
        shapes = ", ".join("absent" if x is None else str(list(getattr(x, "shape", ()))) for x in inputs)
        raise EvaluationError(f"{node} cannot be evaluated on inputs of shapes {shapes}: {error}") from error
    if node.promote:
        for dtype in map(_dtype, results):
            if dtype is not None and promoted_dtype(dtype) != dtype:
                raise UnsupportedOp(f"{node} gave {dtype} although its inputs are float64.")
    return results


def _dtype(value: Any) -> np.dtype[Any] | None:
    """A tensor's type; None for a sequence and for an optional that holds nothing."""
    return getattr(value, "dtype", None)


def _widened(kernel: Kernel) -> Kernel:
    """A kernel that computes half floats in float32 and rounds its results once."""

    def run(node: Node, *inputs: Any) -> Sequence[Any]:
        half = next((dtype for dtype in map(_dtype, inputs) if dtype in HALF), None)
        if half is None:
            return kernel(node, *inputs)
        wide: list[Any] = [x.astype(np.float32) if _dtype(x) in HALF else x for x in inputs]
        return [y.astype(half) if _dtype(y) == np.float32 else y for y in kernel(node, *wide)]

    return run


def _plain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _step(proto: NodeProto, scope: Scope) -> Step:
    domain, op_type = _plain(proto.domain), proto.op_type
    title = describe(op_type, domain, proto.name, proto.output)
    given = _resolved(proto, scope)
    function = scope.functions.get((domain, op_type, proto.overload))
    if function is not None:
        return _call(proto, Program.of_function(function, scope, given, own=True), scope)
    if domain not in scope.opsets:
        raise UnsupportedOp(f"{title} belongs to the domain {domain!r}, which the model does not import.")
    opset = scope.opsets[domain]
    known = schema(op_type, opset, domain) or _fused_schema(domain, op_type)
    if known is None:
        raise UnsupportedOp(f"{title}: the float64 reference does not know this operator (opset {opset}).")
    unknown = sorted(set(given) - known.attributes)
    if unknown:
        raise UnsupportedOp(f"{title} has the attribute {unknown[0]!r}, which the operator lacks in opset {opset}.")
    protos = {**known.defaults, **given}
    kernel = CONTROL.get((domain, op_type)) or KERNELS.get((domain, op_type)) or stock_kernel(proto, domain, opset)
    if kernel is None and known.function is not None:
        return _call(proto, Program.of_function(known.function, scope, protos, own=False), scope)
    if kernel is None:
        raise UnsupportedOp(f"{title}: the float64 reference does not have this operator.")
    attributes = {name: _value(attribute, scope) for name, attribute in protos.items()}
    node = Node(op_type, domain, proto.name, known.since, attributes, tuple(proto.output), scope.promote)
    refusal = REFUSALS[domain, op_type](node) if (domain, op_type) in REFUSALS else None
    if refusal is not None:
        raise UnsupportedOp(f"{title}: {refusal}")
    bodies = [value for value in attributes.values() if isinstance(value, Program)]
    captured = frozenset[str]().union(*(body.captured for body in bodies))
    if not scope.promote and (domain, op_type) in KERNELS and op_type not in TYPED:
        kernel = _widened(kernel)
    return Step(node, tuple(proto.input), captured, kernel, (domain, op_type) in CONTROL)


def _fused_schema(domain: str, op_type: str) -> Schema | None:
    """Of an op that onnx has no schema of, but ONNX Runtime has."""
    attributes = ATTRIBUTES.get((domain, op_type))
    if attributes is None:
        return None
    defaults = {name: make_attribute(name, value) for name, value in attributes.items() if value is not None}
    return Schema(1, frozenset(attributes), defaults, None)


def _call(proto: NodeProto, body: Program, scope: Scope) -> Step:
    def run(_: Node, *inputs: Any) -> Sequence[Any]:
        padded = [*inputs, *[None] * (len(body.inputs) - len(inputs))]
        return body.run(dict(zip(body.inputs, padded, strict=True)))

    node = Node(proto.op_type, proto.domain, proto.name, 0, {}, tuple(proto.output), scope.promote)
    return Step(node, tuple(proto.input), frozenset(), run, needs_outer=False)


def _resolved(proto: NodeProto, scope: Scope) -> dict[str, AttributeProto]:
    """The node's attributes; inside a function a reference is replaced by what the call gave, or left out."""
    given: dict[str, AttributeProto] = {}
    for attribute in proto.attribute:
        if not attribute.ref_attr_name:
            given[attribute.name] = attribute
        elif scope.attributes and attribute.ref_attr_name in scope.attributes:
            given[attribute.name] = scope.attributes[attribute.ref_attr_name]
    return given


def _value(attribute: AttributeProto, scope: Scope) -> Any:
    """An attribute as a Python value; a subgraph as a Program. A float attribute is float32, held exactly."""
    match attribute.type:
        case AttributeProto.FLOAT:
            return float(attribute.f)
        case AttributeProto.INT:
            return int(attribute.i)
        case AttributeProto.STRING:
            return attribute.s.decode("utf-8")
        case AttributeProto.FLOATS:
            return [float(value) for value in attribute.floats]
        case AttributeProto.INTS:
            return [int(value) for value in attribute.ints]
        case AttributeProto.STRINGS:
            return [value.decode("utf-8") for value in attribute.strings]
        case AttributeProto.TENSOR:
            return tensor(attribute.t, scope.directory, scope.promote)
        case AttributeProto.SPARSE_TENSOR:
            return sparse_tensor(attribute.sparse_tensor, scope.directory, scope.promote)
        case AttributeProto.GRAPH:
            return Program.of_graph(attribute.g, scope)
        case _:
            return attribute
