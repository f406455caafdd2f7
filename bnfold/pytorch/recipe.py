# torch leaves parts of its interface untyped: what comes from there is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# where a module keeps its parameters and children has no public name
# pyright: reportPrivateUsage=false
"""What a fold changes in a module, as data, and carrying it out on a module of the same structure.

A module that stands at several places, and a tied weight, stay shared where every place wants the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import onnx
import torch
from torch import nn

from ..errors import UsageError
from ..report import FoldReport
from .tensors import from_proto
from .trace import separate


@dataclass(frozen=True, slots=True)
class Recipe:
    """Paths of modules and qualified names of their state, as `named_modules` has them, duplicates included.

    identities: modules that became nn.Identity. chains: modules that became an nn.Sequential of these children.
    biases: names of biases that came in, and their length. marks: names of edited state, and a digest of the value.
    """

    identities: tuple[str, ...] = ()
    chains: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, "tuple[str, ...]"])
    biases: Mapping[str, int] = field(default_factory=dict[str, int])
    marks: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def touched(self) -> dict[str, str]:
        """Every name that changes, and a text that is the same for the same change."""
        return {
            **dict.fromkeys(self.identities, "identity"),
            **{path: " ".join(children) for path, children in self.chains.items()},
            **self.marks,
        }


@dataclass(frozen=True, slots=True)
class ModuleReport(FoldReport):
    """A FoldReport whose nodes are modules and calls, with the recipe of the fold."""

    recipe: Recipe = field(default_factory=Recipe)


def places(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every place of the tree, (path, module); a module that is shared comes once for each."""
    stack: list[tuple[str, nn.Module, frozenset[int]]] = [("", module, frozenset())]
    while stack:
        path, part, above = stack.pop()
        yield path, part
        inner = above | {id(part)}
        for name, child in reversed(list(part._modules.items())):
            if child is not None and id(child) not in inner:
                stack.append((f"{path}.{name}" if path else name, child, inner))


def carry_out(recipe: Recipe, module: nn.Module, values: Mapping[str, onnx.TensorProto] | None) -> None:
    """Change `module`, in place. values: by qualified name; None: new parameters are zeros, the others stay."""
    _separate(recipe, module)
    found = dict(places(module))
    missing = [path for path in (*recipe.identities, *recipe.chains) if path not in found]
    if missing:
        raise UsageError(f"The module has no submodule {missing[0]!r}: it is not of the structure that was folded.")
    _store(recipe, module, values)
    for name, length in recipe.biases.items():
        path, _, _ = name.rpartition(".")
        owner = found.get(path)
        weight = getattr(owner, "weight", None)
        if owner is None or not isinstance(weight, torch.Tensor):
            raise UsageError(f"The module has no layer {path!r}: it is not of the structure that was folded.")
        if owner._parameters.get("bias") is None:
            zeros = torch.zeros(length, dtype=weight.dtype, device=weight.device)
            held = zeros if values is None else from_proto(values[name]).to(weight.device)
            owner.bias = nn.Parameter(held, weight.requires_grad)
    for path, children in recipe.chains.items():
        old = found[path]
        made = nn.Sequential()
        for name in children:
            made.add_module(name, old._modules[name])
        _replace(module, path, made, old)
    for path in recipe.identities:
        _replace(module, path, nn.Identity(), found[path])


def _replace(module: nn.Module, path: str, made: nn.Module, old: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    made.training = old.training
    holder = dict(places(module)).get(parent)
    if holder is not None:
        holder._modules[name] = made


def _separate(recipe: Recipe, module: nn.Module) -> None:
    """Give places of one module that want different things a module each."""
    touched = recipe.touched
    first: dict[int, str] = {}
    for path, part in list(places(module)):
        mine = first.setdefault(id(part), path)
        if mine != path and path and _below(touched, mine) != _below(touched, path):
            parent, _, name = path.rpartition(".")
            holder = dict(places(module))[parent]
            if holder._modules[name] is part:
                holder._modules[name] = separate(part)


def _below(touched: Mapping[str, str], path: str) -> dict[str, str]:
    return {
        name[len(path) :]: change for name, change in touched.items() if name == path or name.startswith(f"{path}.")
    }


def _store(recipe: Recipe, module: nn.Module, values: Mapping[str, onnx.TensorProto] | None) -> None:
    holders: dict[int, list[tuple[nn.Module, str, str]]] = {}
    held: dict[int, torch.Tensor] = {}
    for path, part in places(module):
        for state in (part._parameters, part._buffers):
            for name, tensor in state.items():
                if tensor is not None:
                    held[id(tensor)] = tensor
                    holders.setdefault(id(tensor), []).append((part, name, f"{path}.{name}" if path else name))
    names = {full for where in holders.values() for _, _, full in where}
    strange = [name for name in recipe.marks if name not in names and name not in recipe.biases]
    if strange:
        raise UsageError(f"The module has no parameter {strange[0]!r}: it is not of the structure that was folded.")
    for key, where in holders.items():
        marks = {recipe.marks.get(full) for _, _, full in where}
        tensor = held[key]
        if marks == {None}:
            continue
        if len(marks) == 1 and isinstance(tensor, nn.Parameter):
            if values is not None:
                tensor.data = from_proto(values[where[0][2]], like=tensor.data)
            continue
        made: dict[str, torch.Tensor] = {}
        for part, name, full in where:
            mark = recipe.marks.get(full)
            if mark is None:
                continue
            if mark not in made:
                value = tensor.detach().clone() if values is None else from_proto(values[full], like=tensor.detach())
                made[mark] = nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
            if getattr(part, name) is not made[mark]:
                setattr(part, name, made[mark])
