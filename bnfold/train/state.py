# torch leaves parts of its interface untyped: what comes from them is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""What a pass over data may not leave behind, and how it is put back: buffers, modes, momentum, random state.

Values are copied into the tensors that were there, so that whoever holds a buffer still holds the model's.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage] -- see below
from torch.nn.parameter import is_lazy

from ..errors import UsageError

BatchNorm = _BatchNorm  # what torch's layers have in common; it has no public name, so the others take it from here


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, DataParallel or torch.compile.

    DistributedDataParallel sends buffers at every forward, which hangs as soon as two ranks have unequal numbers of
    batches; the other two do not run the hooks.
    """
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def has_statistics(model: nn.Module) -> bool:
    """Whether some BatchNormalization of the model keeps statistics."""
    return any(isinstance(each, BatchNorm) and each.running_mean is not None for each in model.modules())


def batch_norms(model: nn.Module, skip: tuple[str, ...] = ()) -> tuple[dict[str, BatchNorm], dict[str, str]]:
    """The BNs whose statistics are to be estimated, by name, and those left alone with the reason.

    Left alone are a BN that keeps no statistics, one that `skip` names (glob patterns), one with momentum 0, and one
    in evaluation mode inside a model in training mode: that is how people freeze a BN. Raises UsageError if the model
    has none at all, or a pattern matches none.
    """
    found = {name: layer for name, layer in model.named_modules() if isinstance(layer, BatchNorm)}
    if not found:
        raise UsageError(f"{type(model).__name__} holds no BatchNorm layer of torch.nn: there are no statistics.")
    for pattern in skip:
        if not any(fnmatchcase(name, pattern) for name in found):
            raise UsageError(f"skip={pattern!r} matches no BatchNorm; there are {', '.join(list(found)[:8])}.")
    layers: dict[str, BatchNorm] = {}
    alone: dict[str, str] = {}
    for name, layer in found.items():
        if layer.running_mean is None or layer.running_var is None:
            alone[name] = "keeps no statistics (track_running_stats=False)"
        elif any(fnmatchcase(name, pattern) for pattern in skip):
            alone[name] = "named by skip="
        elif layer.momentum == 0:
            alone[name] = "frozen: its momentum is 0"
        elif model.training and not layer.training:
            alone[name] = "frozen: in evaluation mode while the model trains"
        elif is_lazy(layer.running_mean):
            raise UsageError(f"{name} has no shape yet (a lazy module): run the model once on one batch.")
        else:
            layers[name] = layer
    if not layers:
        raise UsageError("Every BatchNorm is left alone: " + "; ".join(f"{k} {v}" for k, v in alone.items()) + ".")
    return layers, alone


@dataclass(frozen=True)
class Buffers:
    """Copies of buffers, and the tensors that they are copies of."""

    kept: list[tuple[nn.Module, str, Tensor | None, Tensor | None]]

    @staticmethod
    def of(model: nn.Module) -> Buffers:
        """Every buffer of every module."""
        kept: list[tuple[nn.Module, str, Tensor | None, Tensor | None]] = []
        for module in model.modules():
            for name, buffer in module._buffers.items():  # pyright: ignore[reportPrivateUsage] -- no public name
                copy = None if buffer is None or is_lazy(buffer) else buffer.detach().clone()
                kept.append((module, name, buffer, copy))
        return Buffers(kept)

    def restore(self, layers: Mapping[str, BatchNorm] | None = None, *, all_but: bool = False) -> None:
        """Put back every buffer, or only those of `layers`, or with all_but only those of all other modules."""
        chosen = None if layers is None else set(map(id, layers.values()))
        theirs = {id(b) for module, _, b, _ in self.kept if chosen and b is not None and id(module) in chosen}
        with torch.no_grad():
            for module, name, buffer, copy in self.kept:
                if chosen is not None and (id(module) in chosen or id(buffer) in theirs) == all_but:
                    continue  # a buffer that another module holds too is the layer's
                module._buffers[name] = buffer  # pyright: ignore[reportPrivateUsage] -- no public name
                if buffer is not None and copy is not None and not same(buffer, copy):
                    buffer.copy_(copy)


def same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit equal, counting NaN as equal to itself."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a, b) or (a.is_floating_point() and bool(((a == b) | (a.isnan() & b.isnan())).all()))


@contextmanager
def evaluating(model: nn.Module) -> Generator[None, None, None]:
    """The model in evaluation mode, eagerly and without gradients; modes and momenta as they were afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    momenta = [(module, module.momentum) for module in model.modules() if isinstance(module, BatchNorm)]
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if "torch._dynamo" in sys.modules:  # what was compiled before would not run the new hooks
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            for module, _ in modes:
                module.training = False  # not .eval(): a module may do more there than change its mode
            yield
        finally:
            for module, training in modes:
                module.training = training
            for module, momentum in momenta:
                module.momentum = momentum


class NotFitting(UsageError):
    """A statistic is beyond the range of the buffer's type."""


def generators(loader: object) -> list[torch.Generator]:
    """Those that a loader or its samplers draw from, each once."""
    owners = (loader, *(getattr(loader, name, None) for name in ("sampler", "batch_sampler")))
    found = [getattr(owner, "generator", None) for owner in owners]
    return list({id(each): each for each in found if isinstance(each, torch.Generator)}.values())


class RandomState:
    """The state of every generator that a loader or a model may draw from; restore() to it any number of times."""

    def __init__(self, loader: Any = None) -> None:
        self.generators = [(generator, generator.get_state()) for generator in generators(loader)]
        self.torch = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
        self.python = random.getstate()
        self.numpy = sys.modules["numpy"].random.get_state() if "numpy" in sys.modules else None

    def restore(self) -> None:
        """Every generator as it was when this was made: a loader that shuffles then gives the same order again."""
        for generator, state in self.generators:
            generator.set_state(state)
        torch.set_rng_state(self.torch)
        if self.cuda is not None:
            torch.cuda.set_rng_state_all(self.cuda)
        random.setstate(self.python)
        if self.numpy is not None:
            sys.modules["numpy"].random.set_state(self.numpy)


def write(name: str, layer: BatchNorm, mean: Tensor, var: Tensor, batches: int | None = None) -> bool:
    """Copy the statistics, float64 [C], into the buffers of `layer`; whether that changed a bit of them.

    Raises NotFitting, before anything is changed, where a value does not fit into the buffers' type.
    """
    running_mean, running_var = layer.running_mean, layer.running_var
    assert running_mean is not None and running_var is not None
    with torch.no_grad():
        new = [value.to(old.device, old.dtype) for value, old in ((mean, running_mean), (var, running_var))]
        for what, value in zip(("mean", "variance"), new, strict=True):
            if not torch.isfinite(value).all():
                channel = int((~torch.isfinite(value)).nonzero()[0])
                exact = float((mean if what == "mean" else var)[channel])
                raise NotFitting(
                    f"The {what} {exact:.6g} of channel {channel} of {name} does not fit into {value.dtype}: "
                    "keep the statistics in float32 (layer.running_var = layer.running_var.float())."
                )
        changed = not (same(new[0], running_mean) and same(new[1], running_var))
        running_mean.copy_(new[0])
        running_var.copy_(new[1])
        if batches is not None and layer.num_batches_tracked is not None:
            layer.num_batches_tracked.fill_(batches)
    return changed
