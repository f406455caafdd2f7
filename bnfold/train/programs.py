# torch leaves parts of its interface untyped: what comes from there is unknown to pyright.
# A module's own dicts are the only way to replace a layer around the tensors that it holds.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateUsage=false
"""An exported program as a module whose normalizations are layers again, over the program's own tensors.

aten.batch_norm(x, γ, β, μ, σ², training=False, ε)   ->   Called(x) with weight, bias, running_mean, running_var
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from ..errors import UnsupportedModel
from ..pytorch.aten import arguments, name_of
from ..pytorch.aten.layers import BATCH_NORMS
from .state import BatchNorm

__all__ = ["Layered", "layered"]


class Called(BatchNorm):
    """One normalization of a program. It always computes by its buffers; `whole`: the op gives more than the output."""

    def __init__(self, operands: dict[str, Tensor | None], eps: float, *, whole: bool) -> None:
        mean = operands["running_mean"]
        assert mean is not None
        super().__init__(mean.shape[0], eps, affine=False, track_running_stats=False)
        for name, tensor in operands.items():
            held = self._buffers if name.startswith("running") else self._parameters
            held[name] = tensor  # pyright: ignore[reportArgumentType] -- parameters of a program may be plain tensors
        self.whole = whole
        self.training = False

    def forward(self, input: Tensor) -> Any:
        """BN of input [N, C, ...]."""
        operands = (input, self.running_mean, self.running_var, self.weight, self.bias)
        output = nn.functional.batch_norm(*operands, training=False, eps=self.eps)
        return (output, None, None) if self.whole else output


@dataclass(frozen=True)
class Layered:
    """The module, in evaluation mode; it shares memory with the program. left: calls that are no layer, and why.

    written: the program's names of mean and variance, by the layer's name in the module.
    """

    module: nn.Module
    left: dict[str, str]
    written: dict[str, tuple[str, str]]


def layered(program: ExportedProgram) -> Layered:
    """The module of a program. Raises UnsupportedModel where torch cannot make one."""
    try:
        module = program.module(check_guards=False)
    except Exception as error:  # whatever torch objects to
        raise UnsupportedModel(f"torch cannot make a module of this program: {str(error).splitlines()[0]}") from error
    module.training = False
    found: dict[tuple[str, str], list[tuple[Node, tuple[Any, ...]]]] = {}
    left = dict.fromkeys(_inside(module), "it is in a branch of the program")
    for node in module.graph.nodes:
        if node.op != "call_function" or name_of(node) not in BATCH_NORMS:
            continue
        what = _operands(node)
        if isinstance(what, str):
            left[str(node.name)] = what
        else:
            found.setdefault((what[2], what[3]), []).append((node, what))
    written: dict[str, tuple[str, str]] = {}
    for targets, calls in found.items():
        shared = any(other != targets and set(other) & set(targets) for other in found)
        if shared or len({what for _, what in calls}) > 1:
            left.update(dict.fromkeys((str(node.name) for node, _ in calls), "it shares statistics with another one"))
            continue
        name = _replace(module, calls)
        written[name] = targets
    module.recompile()
    return Layered(module, left, written)


def _operands(node: Node) -> tuple[Any, ...] | str:
    """Names of weight, bias, mean and variance (None: there is none), epsilon and whether the op gives three values."""
    a = arguments(node) or {}
    if a["running_mean"] is None or a["running_var"] is None:
        return "it keeps no statistics"
    if a.get("training", False):
        return "it is in training mode"
    names: list[str | None] = []
    for slot in ("weight", "bias", "running_mean", "running_var"):
        operand = a[slot]
        if operand is not None and operand.op != "get_attr":
            return f"its {slot} is computed at run time"
        names.append(None if operand is None else str(operand.target))
    eps = a["eps"] if "eps" in a else a["epsilon"]
    return (*names, float(eps), name_of(node) != "batch_norm.default")


def _replace(module: GraphModule, calls: list[tuple[Node, tuple[Any, ...]]]) -> str:
    weight, bias, mean, variance, eps, whole = calls[0][1]
    targets = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": variance}
    operands = {slot: None if target is None else attrgetter(target)(module) for slot, target in targets.items()}
    layer = Called(operands, eps, whole=whole)
    path = mean.rpartition(".")[0]
    there = path and all(target in (None, f"{path}.{slot}") for slot, target in targets.items())
    if there and type(module.get_submodule(path)) is nn.Module:
        holder = module.get_submodule(path)  # what other calls read there stays readable
        for own, theirs in ((layer._parameters, holder._parameters), (layer._buffers, holder._buffers)):
            own.update({name: value for name, value in theirs.items() if name not in targets})  # pyright: ignore[reportArgumentType, reportCallIssue] -- alike
        layer._modules.update(holder._modules)
        layer._buffers["num_batches_tracked"] = None
    else:
        path = f"{calls[0][0].name}_"
        while hasattr(module, path):
            path += "_"
    module.set_submodule(path, layer)
    for node, _ in calls:
        with module.graph.inserting_before(node):
            call = module.graph.call_module(path, ((arguments(node) or {})["input"],))
        node.replace_all_uses_with(call)
        module.graph.erase_node(node)
    return path


def _inside(module: GraphModule) -> Iterator[str]:
    for path, part in module.named_modules():
        if path and isinstance(part, GraphModule):
            for node in part.graph.nodes:
                if node.op == "call_function" and name_of(node) in BATCH_NORMS:
                    yield f"{path}.{node.name}"
