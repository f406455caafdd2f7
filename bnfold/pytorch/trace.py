# torch leaves parts of its interface untyped: what comes from there is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# where a module keeps its parameters, children and hooks has no public name
# pyright: reportPrivateUsage=false
"""From a module to its skeleton: a working copy in which nothing is shared, exported by torch.export.

Tied weights and modules that stand at several places are told apart, so that each place has a name of its own; the
values are the module's own, not copies. What a hook sees is marked by an op that no map passes; hooks are not run.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.fx import Node
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

from ..errors import UnsupportedModel, UsageError
from .aten import arguments, name_of
from .functional import functional
from .skeleton import Skeleton, skeleton

_Module = TypeVar("_Module", bound=nn.Module)
_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip
_WITH = ("_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called")
_NUMBERS = frozenset("add sub mul div rsub pow clamp clamp_min clamp_max hardtanh leaky_relu".split())
_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.qat", "torch.ao.nn.intrinsic.q", "torch.nn.quantized",
              "torch.ao.quantization.fake_quantize", "torch.nn.qat", "torch.nn.intrinsic.q")  # fmt: skip


@torch.library.custom_op("bnfold::watch", mutates_args=())
def watch(value: torch.Tensor) -> torch.Tensor:
    """The value, which somebody outside the graph looks at."""
    return value.clone()


@watch.register_fake
def _(value: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(value)


@dataclass(frozen=True, slots=True)
class Sharing:
    """What the working copy tells apart: path -> the first path of the same module; name -> that of the same tensor."""

    modules: Mapping[str, str]
    tensors: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Traced:
    skeleton: Skeleton
    sharing: Sharing
    work: nn.Module


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, DataParallel and torch.compile's wrapper."""
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
            module = inner
        else:
            return module


def require_foldable(module: object) -> None:
    """Raises UsageError or UnsupportedModel, with what to do, for a module that cannot be folded at all."""
    if isinstance(module, torch.jit.ScriptModule):
        raise UnsupportedModel(
            "This is a TorchScript module, which has no call sites to follow: give the nn.Module that it was made from."
        )
    if not isinstance(module, nn.Module):
        raise UsageError(f"pytorch.fold takes a torch.nn.Module, not a {type(module).__name__}.")
    for path, part in module.named_modules():
        where = f"{path or 'the module'} ({type(part).__name__})"
        if any(isinstance(t, UninitializedParameter | UninitializedBuffer) for t in _held(part)):
            raise UsageError(f"{where} has no weights yet, it is lazy: run the module once on an input first.")
        if any(t.device.type == "meta" for t in _held(part)):
            raise UsageError(f"The weights of {where} are on the meta device and have no values: load them first.")
        if type(part).__module__.startswith(_QUANTIZED):
            raise UnsupportedModel(f"{where} is quantized or fake-quantized: fold the module before it is prepared.")
        if _trains(part):
            raise UsageError(f"{where} is in training mode: call model.eval() first.")


def _held(part: nn.Module) -> Iterator[torch.Tensor]:
    for tensor in (*part._parameters.values(), *part._buffers.values()):
        if tensor is not None:
            yield tensor


def _trains(part: nn.Module) -> bool:
    """Whether the module computes something else than it will after `eval`."""
    if not part.training:
        return False
    if isinstance(part, _NormBase):
        return part.running_mean is not None
    if isinstance(part, _DropoutNd | nn.RNNBase):
        return bool(part.p if isinstance(part, _DropoutNd) else part.dropout)
    return isinstance(part, nn.RReLU)


def without_parametrizations(module: nn.Module) -> None:
    """Make what parametrizations and weight_norm compute ordinary parameters of the module, in place."""
    for part in module.modules():
        if parametrize.is_parametrized(part):
            kind = type(part)  # made for one module, and shared by its copies: what is removed here stays there
            own = {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")}
            part.__class__ = cast(type[nn.Module], type(kind.__name__, kind.__bases__, own))
            for name in list(part.parametrizations):  # pyright: ignore[reportCallIssue, reportArgumentType] -- a ModuleDict
                parametrize.remove_parametrizations(part, name, leave_parametrized=True)
        for hook in list(part._forward_pre_hooks.values()):
            if type(hook).__name__ in ("WeightNorm", "SpectralNorm"):
                from torch.nn.utils import remove_spectral_norm, remove_weight_norm

                remove: Any = remove_weight_norm if type(hook).__name__ == "WeightNorm" else remove_spectral_norm
                remove(part, vars(hook)["name"])


def trace(
    module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None, dynamic_shapes: Any = None
) -> Traced:
    """The skeleton of a module on these arguments. The module itself is neither run nor changed."""
    work = _aliased(module)
    sharing = _told_apart(work)
    _watch_hooks(work)
    program = functional(_exported(work, args, kwargs, dynamic_shapes))
    found = skeleton(program)
    if dynamic_shapes is None and _has_numbers(found):
        found = skeleton(program, opaque=_from_sizes(work, args, kwargs, program))
    return Traced(found, sharing, work)


def _aliased(module: nn.Module) -> nn.Module:
    """A copy of the module's structure over the same memory."""
    memo: dict[int, Any] = {}
    for part in module.modules():
        for tensor in _held(part):
            memo[id(tensor)] = _alias(tensor)
    return copied(module, memo)


def copied(module: _Module, memo: dict[int, Any] | None = None) -> _Module:
    """A deep copy; hooks that belong to something outside the module stay with that."""
    memo = {} if memo is None else memo
    inside = {id(part) for part in module.modules()}
    for part in module.modules():
        for value in vars(part).values():  # weight_norm leaves what it computed last as an ordinary attribute
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach()
        for name in _HOOKS:
            for hook in getattr(part, name).values():
                if id(getattr(hook, "__self__", None)) not in inside:
                    memo[id(hook)] = hook
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch says of its own classes
            return copy.deepcopy(module, memo)
    except Exception as error:  # whatever a user's class may do in __deepcopy__
        raise UnsupportedModel(
            f"This module cannot be copied ({sentence(error)}): make copy.deepcopy(module) work first."
        ) from error


def _alias(tensor: torch.Tensor) -> torch.Tensor:
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(tensor.data, tensor.requires_grad)
    return tensor.detach()


def _told_apart(work: nn.Module) -> Sharing:
    first_module: dict[int, str] = {}
    modules: dict[str, str] = {}
    _split(work, "", first_module, modules, frozenset())
    tensors: dict[str, str] = {}
    first: dict[int, tuple[str, torch.Tensor]] = {}
    for path, part in list(work.named_modules()):
        for held in (part._parameters, part._buffers):
            for name, tensor in list(held.items()):
                if tensor is None:
                    continue
                full = f"{path}.{name}" if path else name
                if id(tensor) in first:
                    tensors[full] = first[id(tensor)][0]
                    setattr(part, name, _alias(tensor))
                else:
                    first[id(tensor)] = (full, tensor)
    return Sharing(modules, tensors)


def _split(part: nn.Module, path: str, first: dict[int, str], found: dict[str, str], above: frozenset[int]) -> None:
    first.setdefault(id(part), path)
    for name, child in list(part._modules.items()):
        if child is None or id(child) in above or child is part:
            continue
        below = f"{path}.{name}" if path else name
        if id(child) in first:
            found[below] = first[id(child)]
            child = separate(child)
            part._modules[name] = child
        _split(child, below, first, found, above | {id(part)})


def separate(module: nn.Module) -> nn.Module:
    """Another module with the same parameters, buffers and children."""
    made = copy.copy(module)
    for name in ("_parameters", "_buffers", "_modules"):
        made.__dict__[name] = type(module.__dict__[name])(module.__dict__[name])
    if isinstance(made, nn.RNNBase):
        made.__dict__["_flat_weights"] = list(made.__dict__["_flat_weights"])
    return made


def _watch_hooks(work: nn.Module) -> None:
    for part in work.modules():
        before = any(getattr(part, name) for name in _HOOKS)
        behind = any(getattr(part, name) for name in _HOOKS if name != "_forward_pre_hooks")
        for name in (*_HOOKS, *_WITH):
            if hasattr(part, name):
                setattr(part, name, type(getattr(part, name))())
        if before:
            part.register_forward_pre_hook(lambda _, args, kwargs: _watched((args, kwargs)), with_kwargs=True)
        if behind:
            part.register_forward_hook(lambda _, args, output: _watched(output))


def _watched(values: Any) -> Any:
    def mark(value: Any) -> Any:
        return watch(value) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    return pytree.tree_map(mark, values)


def _exported(
    work: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None, dynamic_shapes: Any
) -> ExportedProgram:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of things that the copy alone is concerned with
            return torch.export.export(
                work, tuple(args), dict(kwargs or {}), dynamic_shapes=dynamic_shapes, strict=False
            )
    except Exception as error:  # the exporter runs the module's own code
        raise UnsupportedModel(
            f"torch.export cannot export this module: {sentence(error)} Try the module on these arguments first; "
            "code that depends on values needs torch.cond, or fold its submodules one by one."
        ) from error


def sentence(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _has_numbers(found: Skeleton) -> bool:
    return any(c.kind == "number" and ":number" in name for name, c in found.constants.items()) or any(
        not node.all_input_nodes or _pads_nothing(node) for node in _calls(found.program)
    )


def _suspect(node: Node) -> bool:
    """Whether a number of the call may come from a size, and makes a difference to what may pass it."""
    return not node.all_input_nodes or _pads_nothing(node) or name_of(node).partition(".")[0] in _NUMBERS


def _pads_nothing(node: Node) -> bool:
    """A padding that adds nothing to these sizes may do so to others; one that adds something lets no more through."""
    if name_of(node).partition(".")[0] not in ("pad", "constant_pad_nd"):
        return False
    amounts: Any = (arguments(node) or {}).get("pad")
    return not any(isinstance(amount, int) and amount > 0 for amount in amounts or ())


def _calls(program: ExportedProgram) -> list[Node]:
    """The calls that make tensors."""
    found: list[Node] = []
    for node in program.graph.nodes:
        value = node.meta.get("val")
        many = isinstance(value, list | tuple)
        if node.op == "call_function" and (many or isinstance(value, torch.Tensor)):
            found.append(node)
    return found


def _from_sizes(
    work: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None, program: ExportedProgram
) -> frozenset[str]:
    """The calls in which a number may come from a size of the inputs: another input would give another number."""
    mine = _calls(program)
    suspects = frozenset(node.name for node in mine if _suspect(node))

    def free(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return None
        return {k: Dim.AUTO for k, size in enumerate(value.shape) if size > 1}  # 0 and 1 are never free

    def unmarked(value: Any) -> Any:
        return value.detach() if isinstance(value, torch.Tensor) else value  # Dim.AUTO leaves a mark on the tensor

    given: Any = pytree.tree_map(unmarked, (tuple(args), dict(kwargs or {})))
    args, kwargs = given
    shapes = tuple(pytree.tree_map(free, value) for value in (*given[0], *given[1].values()))
    try:
        theirs = _calls(functional(_exported(work, args, kwargs, shapes)))
    except UnsupportedModel:
        return suspects
    if [str(node.target) for node in mine] != [str(node.target) for node in theirs]:
        return suspects
    return (
        frozenset(
            one.name for one, other in zip(mine, theirs, strict=True) if any(_is_size(n) for n in other.all_input_nodes)
        )
        & suspects
    )


def _is_size(node: Node) -> bool:
    return not isinstance(node.meta.get("val"), torch.Tensor | list | tuple)
