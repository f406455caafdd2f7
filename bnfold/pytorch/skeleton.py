# torch leaves parts of its interface untyped: what comes from there is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The graph of torch.export in the form that the engine folds: one node for one ATen call, constants by their names.

Parameters and buffers are initializers under their qualified names. What is computed from them alone, a weight under a
parametrization, the scale of a frozen normalization, is computed here, in float64. Numbers in the code are constants.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Node
from torch.fx.node import map_aggregate

from .aten import Ints, Made, Number, Shaped, made, writes
from .laws import DOMAIN, HOOK, NO_LAWS
from .tensors import TYPES, to_proto

OPSET = 21
_FIRST = ("BatchNormalization", "MaxPool", "GlobalMaxPool")  # with statistics or indices that nobody reads
_LARGEST = 1 << 26  # elements of a constant that is computed here
_ASSERTS = ("_assert", "sym_constrain")


@dataclass(frozen=True, slots=True)
class Constant:
    """What an initializer is: the state `name` ("" for none), in `shape` of its own; `operand`: of the call `node`.

    kind: "state", "derived" (computed from constants), "number" (in the code), "absent" (an operand left out).
    """

    kind: str
    name: str = ""
    shape: tuple[int, ...] = ()


@dataclass(slots=True)
class Skeleton:
    """The ModelProto, and what its parts are in the program."""

    program: ExportedProgram
    model: onnx.ModelProto
    constants: dict[str, Constant]
    nodes: dict[str, Node]  # ONNX node name -> the call
    exact: dict[str, dict[str, float]]  # ONNX node name -> attributes in float64
    state: dict[str, torch.Tensor]  # by qualified name
    derived: dict[Node, set[str]]  # the states that each constant was made from
    values: dict[Node, str]  # what each call's value is called in the model


def skeleton(program: ExportedProgram, *, opaque: frozenset[str] = frozenset(), sums: bool = False) -> Skeleton:
    """The skeleton of a program without side effects. opaque: calls whose numbers come from sizes of the inputs.

    sums: shifts may pass a sum over axes of the given sizes.
    """
    return _Builder(program, opaque, sums).build()


class _Builder:
    def __init__(self, program: ExportedProgram, opaque: frozenset[str], sums: bool) -> None:
        self._program, self._opaque, self._sums = program, opaque, sums
        self._names: dict[Node, str] = {}
        self._known: dict[Node, torch.Tensor] = {}  # constants, where something else is computed from them
        self._constants: dict[str, Constant] = {}
        self._tensors: dict[str, onnx.TensorProto] = {}
        self._nodes: dict[str, Node] = {}
        self._exact: dict[str, dict[str, float]] = {}
        self._protos: list[onnx.NodeProto] = []
        self._infos: list[onnx.ValueInfoProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._state: dict[str, torch.Tensor] = {}
        self._derived: dict[Node, set[str]] = {}
        self._titles = _titles(program)

    def build(self) -> Skeleton:
        signature = self._program.graph_signature
        changed = set(signature.buffers_to_mutate.values())
        kinds = {spec.arg.name: spec for spec in signature.input_specs}
        for node in self._program.graph.nodes:
            if node.op == "placeholder":
                self._placeholder(node, kinds.get(node.name), changed)
            elif node.op == "call_function":
                self._call(node)
        outputs = self._outputs()
        graph = onnx.helper.make_graph(
            self._protos, "program", self._inputs, outputs, list(self._tensors.values()), value_info=self._infos
        )
        domains = (("", OPSET), (DOMAIN, 1), (NO_LAWS, 1))
        opsets = [onnx.helper.make_opsetid(*each) for each in domains]
        model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
        return Skeleton(
            self._program, model, self._constants, self._nodes, self._exact, self._state, self._derived, self._names
        )

    def _placeholder(self, node: Node, spec: Any, changed: set[str]) -> None:
        held = None
        if spec is not None and spec.target is not None and spec.target not in changed:
            if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
                held = self._program.state_dict.get(spec.target)
                held = self._program.constants.get(spec.target) if held is None else held
            elif spec.kind == InputKind.CONSTANT_TENSOR:
                held = self._program.constants.get(spec.target)
        if isinstance(held, torch.Tensor) and held.dtype in TYPES and held.layout == torch.strided:
            name = "" if spec is None else str(spec.target)
            self._names[node], self._known[node] = name, held
            self._derived[node] = {name}
            self._state[name] = held
            return
        self._names[node] = node.name
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            self._inputs.append(_info(node.name, value))

    def _call(self, node: Node) -> None:
        if node.target is operator.getitem:
            source: Any = node.args[0]
            self._names[node] = f"{self._names.get(source, source.name)}:{node.args[1]}"
            value = node.meta.get("val")
            if isinstance(value, torch.Tensor):
                self._infos.append(_info(self._names[node], value))
            return
        if self._computed(node) or any(str(node.target).removeprefix("aten.").startswith(a) for a in _ASSERTS):
            return
        value = node.meta.get("val")
        many = isinstance(value, list | tuple)
        if not isinstance(value, torch.Tensor) and not many:
            return  # a size: it reads no element
        found = None if node.name in self._opaque else made(node)
        if found is not None and not self._sums and found.kind == "Einsum":
            found = None
        if found is not None and any(isinstance(o, Shaped) and o.node not in self._known for o in found.operands):
            found = None
        if found is None or self._converts(node, found):
            found = self._unknown(node)
        elif self._sums and found.kind == "sum":
            found = Made("ReduceSum", found.operands, found.attributes)
        title = self._titles[node]
        self._names[node] = node.name
        outputs = [f"{node.name}:{k}" for k in range(len(value))] if many else [node.name]
        if found.kind in _FIRST and all(user.args[1:] == (0,) or not user.users for user in node.users):
            outputs = outputs[:1]
        inputs = [self._operand(node, k, o, found) for k, o in enumerate(found.operands)]
        attributes = {**found.attributes, **found.exact}
        proto = onnx.helper.make_node(found.kind, inputs, outputs, title, domain=found.domain)
        proto.attribute.extend(onnx.helper.make_attribute(key, each) for key, each in sorted(attributes.items()))
        self._protos.append(proto)
        self._nodes[title] = node
        if found.exact:
            self._exact[title] = found.exact
        if not many:
            self._infos.append(_info(node.name, value))

    def _converts(self, node: Node, found: Made) -> bool:
        """Whether arithmetic with a constant makes another type of its operand: without it the type would stay."""
        if found.kind not in ("Add", "Sub", "Mul", "Div"):
            return False
        read = [o for o in found.operands if isinstance(o, Node) and o not in self._known]
        return len(read) < 2 and any(_dtype(o) != _dtype(node) for o in read)

    def _unknown(self, node: Node) -> Made:
        """A node of a domain without laws: it reads what the call reads."""
        read = [n for n in node.all_input_nodes if n in self._names and _is_tensor(n)]
        name = str(node.target)
        if name.startswith("bnfold.watch"):
            return Made(HOOK, read, domain=DOMAIN)
        return Made(name.removeprefix("aten.").partition(".")[0], read, domain=NO_LAWS)

    def _computed(self, node: Node) -> bool:
        """Whether the call's value depends on constants alone: then it is one."""
        inputs = list(node.all_input_nodes)
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or not _is_static(value):
            return False
        if any(n not in self._known for n in inputs) or value.numel() > _LARGEST or value.dtype not in TYPES:
            return False
        if not isinstance(node.target, torch._ops.OpOverload) or node.name in self._opaque:  # pyright: ignore[reportPrivateUsage] -- as above
            return False
        if torch.Tag.nondeterministic_seeded in node.target.tags or node.target.namespace not in ("aten", "prims"):
            return False
        if "empty" in str(node.target):
            return False
        self._known[node] = _evaluated(node, self._known)
        self._names[node] = node.name
        self._derived[node] = set[str]().union(*(self._derived.get(n, set[str]()) for n in inputs))
        return True

    def _operand(self, node: Node, slot: int, operand: Any, found: Made) -> str:
        if isinstance(operand, Node) and operand not in self._known:
            return self._names[operand]
        if isinstance(operand, Node) and found.kind == "BatchNormalization" and slot == 4:
            return self._variance(operand, float(found.attributes["epsilon"]))
        if isinstance(operand, Node):
            name = self._names[operand]
            kind = "state" if operand.op == "placeholder" else "derived"
            self._constant(name, self._known[operand], Constant(kind, name if kind == "state" else ""))
            return name
        if isinstance(operand, Shaped):
            base = self._names[operand.node]
            kind = "state" if operand.node.op == "placeholder" else "derived"
            name = f"{base}:{len(operand.shape)}"
            origin = Constant(kind, base if kind == "state" else "", tuple(self._known[operand.node].shape))
            self._constant(name, self._known[operand.node].reshape(operand.shape), origin)
            return name
        if isinstance(operand, Number):
            name = f"{node.name}:number{slot}"
            double = _dtype(node) == torch.float64
            held = torch.tensor(operand.value, dtype=torch.float64 if double else torch.float32)
            self._constant(name, held, Constant("number"))
            return name
        if isinstance(operand, Ints):
            name = f"{node.name}:ints{slot}"
            values = operand.values[0] if operand.scalar else operand.values
            self._constant(name, torch.tensor(values, dtype=torch.int64), Constant("number"))
            return name
        if found.kind == "BatchNormalization":
            return self._absent(node, slot, found)
        return ""

    def _variance(self, node: Node, epsilon: float) -> str:
        """The variance in float64, with what epsilon loses as an attribute of float32: their sum is the module's."""
        base, held = self._names[node], self._known[node]
        name = f"{base}:{epsilon!r}"
        kind = "state" if node.op == "placeholder" else "derived"
        kept = held.double() + (epsilon - float(np.float32(epsilon)))
        self._constant(name, kept, Constant(kind, base if kind == "state" else "", tuple(held.shape)))
        return name

    def _absent(self, node: Node, slot: int, found: Made) -> str:
        """The scale or shift that a normalization goes without, or statistics that it does not keep."""
        name = f"{node.name}:absent{slot}"
        read: Any = found.operands[0]
        like = next((self._known[o] for o in found.operands if isinstance(o, Node) and o in self._known), None)
        count = like.shape[0] if like is not None else read.meta["val"].shape[1]
        dtype = like.dtype if like is not None else torch.float32
        held = torch.full((int(count),), 1.0 if slot in (1, 4) else 0.0, dtype=dtype)
        self._constant(name, held, Constant("absent"))
        return name

    def _constant(self, name: str, held: torch.Tensor, what: Constant) -> None:
        if name not in self._tensors:
            self._tensors[name] = to_proto(held, name)
            self._constants[name] = what

    def _outputs(self) -> list[onnx.ValueInfoProto]:
        found: dict[str, onnx.ValueInfoProto] = {}
        output = next(node for node in self._program.graph.nodes if node.op == "output")
        kinds = [spec.kind for spec in self._program.graph_signature.output_specs]
        for node, kind in zip(output.args[0], kinds, strict=False):
            if not isinstance(node, Node) or not _is_tensor(node) or kind == OutputKind.TOKEN:
                continue
            name = self._names[node]
            if node in self._known:
                self._operand(node, 0, node, Made("", ()))
            found[name] = _info(name, node.meta["val"])
        return list(found.values())


def _is_tensor(node: Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def _is_static(value: torch.Tensor) -> bool:
    sizes: list[Any] = list(value.shape)
    return all(isinstance(d, int) for d in sizes)


def _dtype(node: Node) -> torch.dtype | None:
    value = node.meta.get("val")
    return value.dtype if isinstance(value, torch.Tensor) else None


def _info(name: str, value: torch.Tensor) -> onnx.ValueInfoProto:
    sizes: list[Any] = list(value.shape)  # of which some may be symbols
    shape = [d if isinstance(d, int) else str(d) for d in sizes]
    return onnx.helper.make_tensor_value_info(name, TYPES.get(value.dtype, 0), shape)


def _evaluated(node: Node, known: Mapping[Node, torch.Tensor]) -> torch.Tensor:
    def wide(value: Any) -> Any:
        if isinstance(value, Node):
            held = known[value].detach().cpu()
            return held.double() if held.is_floating_point() else held
        if isinstance(value, torch.device):
            return torch.device("cpu")
        return value

    args: Any = map_aggregate(node.args, wide)
    kwargs: Any = map_aggregate(node.kwargs, wide)
    if node.meta["val"].is_floating_point() and _is_conversion(node):
        return args[0] if args[0].is_floating_point() else args[0].double()
    target: Any = node.target
    with torch.no_grad():
        found = target(*args, **kwargs)
    return found.clone() if writes(node) else found


def _is_conversion(node: Node) -> bool:
    return str(node.target).removeprefix("aten.").split(".")[0] in ("to", "_to_copy", "type_as")


def _titles(program: ExportedProgram) -> dict[Node, str]:
    """A name for each call: that of the module, where it makes but one; names are unique."""
    calls: list[tuple[Node, str]] = []
    for node in program.graph.nodes:
        if node.op == "call_function":
            calls.append((node, call_of(node)))
    alone = Counter(path for node, path in calls if _is_real(node))
    leaves = {node: path for node, path in calls if path and alone[path] == 1 and _is_real(node)}
    taken: set[str] = set()
    titles: dict[Node, str] = {}
    for node, path in calls:
        title = leaves.get(node) or (f"{path}.{node.name}" if path else node.name)
        while title in taken:
            title += "_"
        taken.add(title)
        titles[node] = title
    return titles


def _is_real(node: Node) -> bool:
    return node.target is not operator.getitem and not str(node.target).startswith("bnfold.watch")


def calls_of(node: Node) -> Sequence[tuple[str, str]]:
    """The module calls around a node, outermost first: (path with the number of the call, path)."""
    found: list[tuple[str, str]] = []
    for key, (path, _) in (node.meta.get("nn_module_stack") or {}).items():
        number = key.rpartition("@")[2] if "@" in key else ""
        found.append((f"{path}@{number}" if number else path, path))
    return found


def call_of(node: Node) -> str:
    """The innermost module call, as `calls_of` writes it."""
    found = calls_of(node)
    return found[-1][0] if found else ""
