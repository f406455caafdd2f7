# torch leaves parts of its interface untyped: what comes from there is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""A program as the fold left it: calls that are gone leave the graph, and with them their parameters.

A weight that calls want differently, a bias that was not there and a number in the code become parameters.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import onnx
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, TensorArgument
from torch.fx import Graph, GraphModule, Node

from .aten import Number, Shaped, arguments, made, name_of, writes
from .functional import is_harmless
from .outcome import Edit, Obstacle, Outcome
from .skeleton import Skeleton
from .tensors import from_proto

if TYPE_CHECKING:
    pass

_HINT = "The exported program cannot express this either."
_ABSENT = {"Conv": {2: "bias"}, "ConvTranspose": {2: "bias"}, "linear": {2: "bias"},
           "BatchNormalization": {1: "weight", 2: "bias"}, "LayerNormalization": {2: "bias"}}  # fmt: skip
_ARITHMETIC = {
    "Add": torch.ops.aten.add.Tensor,
    "Sub": torch.ops.aten.sub.Tensor,
    "Mul": torch.ops.aten.mul.Tensor,
    "Div": torch.ops.aten.div.Tensor,
}
_ATTRIBUTES = {"leaky_relu.default": {"alpha": "negative_slope"}, "addmm.default": {"beta": "beta", "alpha": "alpha"}}
_STATE = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


def obstacles(found: Skeleton, outcome: Outcome) -> Iterator[Obstacle]:
    """What a program cannot say."""
    for edit in outcome.edits:
        node = found.nodes[edit.title]
        call = made(node)
        operand = None if call is None or edit.slot >= len(call.operands) else call.operands[edit.slot]
        if call is None or (operand is None and _ABSENT.get(call.kind, {}).get(edit.slot) is None):
            yield Obstacle(edit.title, f"{edit.title} has no operand {edit.slot} that could be given.", edit.slot)
        elif isinstance(operand, Number) and call.kind not in (*_ARITHMETIC, "Clip", "Pad"):
            yield Obstacle(edit.title, f"A number in the code of {edit.title} would change.", edit.slot)
        elif isinstance(operand, Number) and call.kind in ("Clip", "Pad") and list(edit.value.dims):
            yield Obstacle(edit.title, f"A number of {edit.title} would have to be a tensor.", edit.slot)
        elif isinstance(operand, Node) and node.all_input_nodes.count(operand) != 1:
            yield Obstacle(edit.title, f"{edit.title} reads one tensor twice.", edit.slot)
    for title, values in outcome.attributes.items():
        known = _ATTRIBUTES.get(name_of(found.nodes[title]), {})
        if not known.keys() >= values.keys():
            yield Obstacle(title, f"A number in the code of {title} would change.")


class Rewrite:
    """A copy of the graph, changed call by call; the tensors by their names, old and new."""

    def __init__(self, found: Skeleton, outcome: Outcome) -> None:
        self._found, self._outcome, self._old = found, outcome, found.program
        self._graph = Graph()
        self._copy: dict[Node, Node] = {}
        for node in self._old.graph.nodes:
            self._copy[node] = self._graph.node_copy(node, lambda n: self._copy[n])
        self._unused = {s.arg.name for s, n in self._specs() if not n.users}
        self._protos = {found.nodes[p.name]: p for p in found.model.graph.node}
        self._state: dict[str, Any] = dict(self._old.state_dict)
        self._constants: dict[str, Any] = dict(self._old.constants)
        self._added: list[tuple[Node, InputSpec]] = []
        self._fresh: dict[tuple[str, bytes, tuple[int, ...]], Node] = {}

    def _specs(self) -> list[tuple[InputSpec, Node]]:
        nodes = [n for n in self._graph.nodes if n.op == "placeholder"]
        return list(zip(self._old.graph_signature.input_specs, nodes, strict=True))

    def program(self) -> ExportedProgram:
        last = [n for n in self._graph.nodes if n.op == "placeholder"]
        self._before = next((n for s, n in self._specs() if s.kind not in _STATE), last[-1].next)
        whole = self._whole_names()
        for edit in self._outcome.edits:
            self._edit(edit, whole)
        for title, values in self._outcome.attributes.items():
            node = self._copy[self._found.nodes[title]]
            for name, value in values.items():
                _set(node, _ATTRIBUTES[name_of(node)][name], value)
        for title in self._found.nodes:
            if title in self._outcome.removed:
                self._remove(self._found.nodes[title])
        for each in self._outcome.inserted:
            self._insert(each.title, each.value)
        for old in reversed([n for n in self._old.graph.nodes if self._gone(n)]):
            if not self._copy[old].users:  # a call that writes is never dead by itself
                self._graph.erase_node(self._copy[old])
        self._graph.eliminate_dead_code()
        self._write_into_nothing_shared()
        specs = self._remaining()
        graph_module = GraphModule(self._old.graph_module, self._graph)
        graph_module.meta.update(self._old.graph_module.meta)
        signature = ExportGraphSignature(specs, list(self._old.graph_signature.output_specs))
        signature = _outputs_renamed(signature, self._graph)
        return ExportedProgram(
            graph_module,
            self._graph,
            signature,
            self._state,
            self._old.range_constraints,
            list(self._old.module_call_graph),
            self._old.example_inputs,
            self._constants,
            verifiers=[self._old.verifier],
        )

    def _whole_names(self) -> dict[str, bytes]:
        """State that every call reads with the same new value: it keeps its name."""
        edits = {(e.title, e.slot): e for e in self._outcome.edits}
        seen: dict[str, set[bytes | None]] = {}
        for proto in self._found.model.graph.node:
            if proto.name in self._outcome.removed:
                continue
            for slot, name in enumerate(proto.input):
                what = self._found.constants.get(name)
                edit = edits.get((proto.name, slot))
                if what is not None and what.kind == "state":
                    seen.setdefault(what.name, set()).add(None if edit is None else edit.value.raw_data)
                elif what is not None and what.kind == "derived" and edit is None:
                    for node, sources in self._found.derived.items():
                        if node.name == name.partition(":")[0]:
                            for source in sources:
                                seen.setdefault(source, set()).add(None)
        for info in self._found.model.graph.output:
            seen.setdefault(info.name, set()).add(None)
        return {name: next(iter(v)) or b"" for name, v in seen.items() if len(v) == 1 and None not in v}

    def _edit(self, edit: Edit, whole: Mapping[str, bytes]) -> None:
        old = self._found.nodes[edit.title]
        node, call = self._copy[old], made(old)
        assert call is not None
        operand = call.operands[edit.slot] if edit.slot < len(call.operands) else None
        value = onnx.TensorProto()
        value.CopyFrom(edit.value)
        if isinstance(operand, Shaped):
            del value.dims[:]
            value.dims.extend(int(d) for d in operand.node.meta["val"].shape)
        if edit.was is not None and edit.was.kind == "state":
            like = self._found.state[edit.was.name]
            if edit.was.name in whole and tuple(value.dims) == tuple(like.shape):
                held = from_proto(value, like=like.detach())
                table = self._state if edit.was.name in self._state else self._constants
                table[edit.was.name] = nn.Parameter(held, like.requires_grad) if _is_parameter(like) else held
                return
        if isinstance(operand, Number) and call.kind == "Clip":
            bounds = [o.value if isinstance(o, Number) else None for o in call.operands[1:]]
            if name_of(node) != "clamp.default":
                node.target, node.args, node.kwargs = torch.ops.aten.clamp.default, (node.args[0], *bounds), {}
            _set(node, "min" if edit.slot == 1 else "max", float(from_proto(value)))
            return
        if isinstance(operand, Number) and call.kind == "Pad":
            _set(node, "value", float(from_proto(value)))
            return
        new = self._parameter(value, node)
        if isinstance(operand, Number):
            kept = [new if k == edit.slot else o for k, o in enumerate(call.operands)]
            node.target = _ARITHMETIC[call.kind]
            operands: list[Any] = [self._copy[o] if isinstance(o, Node) and o is not new else o for o in kept]
            node.args, node.kwargs = tuple(operands), {}
        elif operand is None:
            _set(node, _ABSENT[call.kind][edit.slot], new)
        else:
            node.replace_input_with(self._copy[operand.node if isinstance(operand, Shaped) else operand], new)  # pyright: ignore[reportArgumentType] -- no Ints

    def _parameter(self, value: onnx.TensorProto, node: Node) -> Node:
        """A placeholder of a parameter that was not there."""
        wanted = node.meta.get("val")
        held = from_proto(value)
        if value.data_type == onnx.TensorProto.DOUBLE and isinstance(wanted, torch.Tensor):
            held = held.to(wanted.dtype)  # what was computed from constants is kept wider than it is used
        key = (value.name, value.raw_data, tuple(value.dims))
        if key in self._fresh:
            return self._fresh[key]
        device = wanted.device if isinstance(wanted, torch.Tensor) else torch.device("cpu")
        target = re.sub(r"[^\w.]", "_", value.name)
        while target in self._state or target in self._constants:
            target += "_"
        parameter = nn.Parameter(held.to(device), requires_grad=held.is_floating_point())
        with self._graph.inserting_before(self._before):
            made_ = self._graph.placeholder("p_" + target.replace(".", "_"))
        made_.meta["val"] = _fake(parameter, node)
        spec = InputSpec(InputKind.PARAMETER, TensorArgument(made_.name), target)
        self._state[target] = parameter
        self._added.append((made_, spec))
        self._fresh[key] = made_
        return made_

    def _remove(self, old: Node) -> None:
        source = self._copy[self._source(old)]
        many = not isinstance(old.meta.get("val"), torch.Tensor)
        for each in [u for u in old.users if _is_item(u)] if many else [old]:
            self._copy[each].replace_all_uses_with(source)

    def _gone(self, old: Node) -> bool:
        call: Any = old.args[0] if _is_item(old) else old
        return call in self._protos and self._protos[call].name in self._outcome.removed

    def _write_into_nothing_shared(self) -> None:
        """relu_ behind a normalization that is gone would write into what the layer before gives to others too."""
        order = {node: k for k, node in enumerate(self._graph.nodes)}
        for node in self._graph.nodes:
            if node.op == "call_function" and writes(node) and not is_harmless(node, order):
                base, _, overload = name_of(node).partition(".")
                packet = getattr(torch.ops.aten, base, None)
                if hasattr(packet, overload):
                    node.target = getattr(packet, overload)

    def _source(self, old: Node) -> Node:
        """The value that a call gave on, or what gave it on to that one."""
        proto = self._protos[old]
        name = next(n for n in proto.input if n and n not in self._found.constants)
        source = next(n for n in old.all_input_nodes if self._value(n) == name)
        behind: Any = source.args[0] if _is_item(source) else source
        return self._source(behind) if self._gone(behind) else source

    def _value(self, node: Node) -> str:
        if _is_item(node):
            source: Any = node.args[0]
            return f"{self._value(source)}:{node.args[1]}"
        return node.name

    def _insert(self, title: str, value: onnx.TensorProto) -> None:
        node = self._copy[self._found.nodes[title]]
        new = self._parameter(value, node)
        with self._graph.inserting_after(node):
            added = self._graph.call_function(torch.ops.aten.add.Tensor, (node, new))
        added.meta.update(node.meta)
        node.replace_all_uses_with(added, delete_user_cb=lambda user: user is not added)

    def _remaining(self) -> list[InputSpec]:
        """The specs in the order of the placeholders; state that only removed calls read is dropped."""
        by_node = {
            n: s for s, n in zip(self._old.graph_signature.input_specs, self._placeholders_copied(), strict=True)
        }
        by_node.update(dict(self._added))
        dropped = {
            str(s.target)
            for n, s in by_node.items()
            if s.kind in _STATE and not n.users and s.arg.name not in self._unused
        }
        modules = {name.rpartition(".")[0] for name in dropped if name.endswith(("running_mean", "running_var"))}
        dropped |= {f"{path}.num_batches_tracked" if path else "num_batches_tracked" for path in modules}
        specs: list[InputSpec] = []
        for node in [n for n in self._graph.nodes if n.op == "placeholder"]:
            spec = by_node[node]
            if spec.kind in _STATE and str(spec.target) in dropped and not node.users:
                self._graph.erase_node(node)
            else:
                same = isinstance(spec.arg, TensorArgument)
                arg = TensorArgument(node.name) if same else spec.arg
                specs.append(InputSpec(spec.kind, arg, spec.target, spec.persistent))
        kept = {str(s.target) for s in specs}
        for name in dropped - kept:
            self._state.pop(name, None)
            self._constants.pop(name, None)
        return specs

    def _placeholders_copied(self) -> list[Node]:
        return [self._copy[n] for n in self._old.graph.nodes if n.op == "placeholder"]


def _is_item(node: Node) -> bool:
    return node.op == "call_function" and node.target is operator.getitem


def _outputs_renamed(signature: ExportGraphSignature, graph: Graph) -> ExportGraphSignature:
    """Outputs are named after the calls that make them, and another call may make one now."""
    output = next(node for node in graph.nodes if node.op == "output")
    specs = [
        type(spec)(spec.kind, TensorArgument(node.name), spec.target)
        if isinstance(node, Node) and isinstance(spec.arg, TensorArgument)
        else spec
        for spec, node in zip(signature.output_specs, output.args[0], strict=True)
    ]
    return ExportGraphSignature(signature.input_specs, specs)


def _set(node: Node, name: str, value: Any) -> None:
    """Give a call the argument of this name."""
    schema: Any = getattr(node.target, "_schema")  # noqa: B009 -- every ATen call has one, though no type says so
    position = [a.name for a in schema.arguments].index(name)
    given = arguments(node) or {}
    if schema.arguments[position].kwarg_only:
        node.kwargs = {**node.kwargs, name: value}
        return
    args = list(node.args)
    for argument in schema.arguments[len(args) : position + 1]:
        args.append(given[argument.name])
    args[position] = value
    node.args = tuple(args)
    node.kwargs = {k: v for k, v in node.kwargs.items() if k not in [a.name for a in schema.arguments[: len(args)]]}


def _is_parameter(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, nn.Parameter)


def _fake(tensor: torch.Tensor, near: Node) -> Any:
    for node in (near, *near.all_input_nodes):
        mode = getattr(node.meta.get("val"), "fake_mode", None)
        if mode is not None:
            return mode.from_tensor(tensor, static_shapes=True)
    return tensor
