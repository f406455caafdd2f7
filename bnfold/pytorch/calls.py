# torch leaves parts of its interface untyped: what comes from there is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The calls of an exported program, run one by one: from values that are given, in their own types or in float64.

What is given ends the way back from a wanted value; constants are computed from the program's state as it does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.fx.node import map_aggregate
from torch.utils import _pytree as pytree

from .aten import Shaped, made, writes
from .outcome import same_values
from .skeleton import Skeleton

Array = NDArray[Any]
State = Mapping[str, torch.Tensor]


class Calls:
    """values: the program's values by their names in a model, which need not be the skeleton's own."""

    def __init__(self, found: Skeleton, values: Mapping[str, Node]) -> None:
        self._program, self.values = found.program, values
        self._targets = {s.arg.name: str(s.target) for s in found.program.graph_signature.input_specs if s.target}
        self._order = {node: k for k, node in enumerate(found.program.graph.nodes)}
        self._sizes: dict[int, dict[Node, Any]] = {}

    @classmethod
    def of(cls, found: Skeleton) -> Calls:
        """Under the names of the skeleton."""
        return cls(found, {name: node for node, name in found.values.items()})

    @classmethod
    def named_like(cls, found: Skeleton, model: onnx.ModelProto) -> Calls:
        """Under the names of a model that computes the same."""
        nodes = {name: node for node, name in found.values.items()}
        values: dict[str, Node] = {}
        for name, own in same_values(model, found.model):
            held = found.constants.get(own)
            node = nodes.get(own if held is None or held.kind != "state" else held.name)
            if node is not None:
                values[name] = node
        return cls(found, values)

    def state(self, *, wide: bool) -> dict[str, torch.Tensor]:
        """Parameters, buffers and constants by their names."""
        held = {**self._program.constants, **self._program.state_dict}
        tensors = {name: value.detach() for name, value in held.items() if isinstance(value, torch.Tensor)}
        return {name: widened(value) for name, value in tensors.items()} if wide else tensors

    def run(
        self, wanted: Iterable[str], given: Mapping[str, torch.Tensor], state: State, *, wide: bool, sample: int
    ) -> dict[str, torch.Tensor]:
        """The wanted values. wide: what is given and the state are float64, and so is everything in between.

        sample: the inputs that what is given comes from; their sizes are remembered from a run on the inputs.
        """
        names = list(wanted)
        known: dict[Node, Any] = {self.values[name]: value for name, value in given.items() if name in self.values}
        known.update({node: size for node, size in self._sizes.get(sample, {}).items() if node not in known})
        asked = {self.values[name] for name in names}
        needed = self._needed(list(asked), known)
        last = {each: node for node in needed for each in node.all_input_nodes}
        for node in needed:
            known[node] = self._one(node, known, state, wide=wide)
            for each in node.all_input_nodes:
                if last[each] is node and each not in asked:
                    known.pop(each, None)
        return {name: known[self.values[name]] for name in names}

    def learn_sizes(self, given: Mapping[str, torch.Tensor], state: State, sample: int) -> None:
        """Remember the numbers that come from sizes of these inputs."""
        sizes = [n for n in self._order if n.op == "call_function" and is_number(n.meta.get("val"))]
        if not sizes:
            return
        known: dict[Node, Any] = {self.values[name]: value for name, value in given.items() if name in self.values}
        for node in self._needed(sizes, known):
            known[node] = self._one(node, known, state, wide=False)
        self._sizes[sample] = {node: known[node] for node in sizes}

    def alone(self, name: str, operands: Sequence[Array | None]) -> list[Array]:
        """The call that makes the value `name`, in float64 on these operands; an empty one stays what it is."""
        node = self.values[name]
        call: Any = node.args[0] if _is_item(node) else node
        found = made(call)
        assert found is not None, "a call that no law knows has no rule"
        known: dict[Node, Any] = {}
        device = call.args[0].meta["val"].device if isinstance(call.args[0], Node) else torch.device("cpu")
        for operand, array in zip(found.operands, operands, strict=False):
            source = operand.node if isinstance(operand, Shaped) else operand
            if isinstance(source, Node) and array is not None:
                shape = [int(d) for d in source.meta["val"].shape] if isinstance(operand, Shaped) else array.shape
                known[source] = from_array(array).reshape(shape).to(device)
        with torch.no_grad():
            value = self._called(call, known, wide=True)
        return [to_array(each) for each in (value if isinstance(value, list | tuple) else [value])]

    def _needed(self, wanted: Sequence[Node], known: Mapping[Node, Any]) -> list[Node]:
        found: set[Node] = set()
        stack = [node for node in wanted if node not in known]
        while stack:
            node = stack.pop()
            if node not in found:
                found.add(node)
                stack.extend(each for each in node.all_input_nodes if each not in known)
        return sorted(found, key=self._order.__getitem__)

    def _one(self, node: Node, known: Mapping[Node, Any], state: State, *, wide: bool) -> Any:
        if node.op == "placeholder":
            target = self._targets.get(node.name)
            if target is None or target not in state:
                raise LookupError(f"{node.name} lies behind what is given")
            return state[target]
        if node.op == "get_attr":
            return getattr(self._program.graph_module, str(node.target))
        with torch.no_grad():
            return self._called(node, known, wide=wide)

    def _called(self, node: Node, known: Mapping[Node, Any], *, wide: bool) -> Any:
        written = writes(node)

        def value(argument: Any) -> Any:
            if isinstance(argument, Node):
                held = known[argument]
                return held.clone() if written and isinstance(held, torch.Tensor) else held
            narrow = wide and isinstance(argument, torch.dtype) and argument.is_floating_point
            return torch.float64 if narrow else argument

        args: Any = map_aggregate(node.args, value)
        kwargs: Any = map_aggregate(node.kwargs, value)
        target: Any = node.target
        return target(*args, **kwargs)


def _is_item(node: Node) -> bool:
    return str(node.target) == "<built-in function getitem>"


def named_inputs(found: Skeleton, sample: Any) -> dict[str, torch.Tensor]:
    """The inputs of the model out of (args, kwargs): the arguments, and state that no constant is."""
    wanted = {info.name for info in found.model.graph.input}
    specs = found.program.graph_signature.input_specs
    given = [spec.arg.name for spec in specs if spec.kind == InputKind.USER_INPUT]
    held = {spec.arg.name: found.program.state_dict.get(str(spec.target)) for spec in specs if spec.target is not None}
    held.update(zip(given, pytree.tree_leaves(sample), strict=True))
    return {name: value.detach() for name, value in held.items() if name in wanted and isinstance(value, torch.Tensor)}


def is_number(value: Any) -> bool:
    """Whether a call makes a size, or what is computed from sizes, and no tensor."""
    return isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool | int | float)


def widened(value: torch.Tensor) -> torch.Tensor:
    return value.double() if value.is_floating_point() else value


def to_array(value: torch.Tensor) -> Array:
    """The values in numpy's type of the same name."""
    held = value.detach().cpu()
    if held.dtype == torch.bfloat16:
        return held.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return held.numpy()


def from_array(value: Array) -> torch.Tensor:
    if value.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(np.array(value).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.array(value))
