# torch leaves parts of its interface untyped: what comes from them is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Gradient accumulation that does not spoil BatchNorm: k small batches move the running statistics once, not k times.

r = (1 - momentum)*r + momentum*s    where s are mean and unbiased variance of the k batches' values together
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .batchnorm import Tracking
from .state import BatchNorm

__all__ = ["one_update"]


class _Pooled:
    """One layer's batches so far, merged by Chan in float64.

    Each call gets buffers of its own, which become what its batch has; autograd wants nobody to write into them later.
    """

    def __init__(self, layer: BatchNorm) -> None:
        assert layer.running_mean is not None and layer.running_var is not None
        self.layer, self.momentum = layer, layer.momentum
        self.buffers = (layer.running_mean, layer.running_var)
        self.tracked = None if layer.num_batches_tracked is None else layer.num_batches_tracked.clone()
        self.n, self.mean, self.m2 = 0, torch.zeros(()), torch.zeros(())
        self.exact = layer.exact() if isinstance(layer, Tracking) else []
        layer.momentum = 1.0
        self.hooks = [layer.register_forward_pre_hook(self._prepare), layer.register_forward_hook(self._count)]

    def _prepare(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.layer.running_mean, self.layer.running_var = (torch.zeros_like(buffer) for buffer in self.buffers)

    @torch.no_grad()
    def _count(self, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        x: Tensor = inputs[0]
        mean, variance = self.layer.running_mean, self.layer.running_var
        assert mean is not None and variance is not None
        n = x.numel() // x.shape[1]
        if isinstance(self.layer, nn.SyncBatchNorm) and dist.is_available() and dist.is_initialized():
            n *= dist.get_world_size(self.layer.process_group)
        new, m2 = mean.double(), variance.double() * (n - 1)
        delta, total = new - self.mean.to(new), self.n + n
        self.mean = self.mean.to(new) + delta * (n / total)
        self.m2 = self.m2.to(new) + m2 + delta.square() * (self.n * n / total)
        self.n = total

    @torch.no_grad()
    def finish(self, *, used: bool) -> None:
        """Put the layer back as it was, and its buffers one update further if it `used` batches."""
        for hook in self.hooks:
            hook.remove()
        layer, count = self.layer, self.layer.num_batches_tracked
        layer.running_mean, layer.running_var = self.buffers
        layer.momentum = self.momentum
        used = used and self.n > 1
        if count is not None and self.tracked is not None:
            count.copy_(self.tracked + int(used))
        exact = self.exact
        if used:
            share = self.momentum if self.momentum is not None else 1.0 / float(1 if count is None else count)
            old = exact or [buffer.double() for buffer in self.buffers]
            new = [value.to(old[0]) for value in (self.mean, self.m2 / (self.n - 1))]
            exact = [torch.lerp(a, b, share) for a, b in zip(old, new, strict=True)]
            for buffer, value in zip(self.buffers, exact, strict=True):
                buffer.copy_(value)
        if isinstance(layer, Tracking) and (self.exact or layer.keeps_exact):
            layer.load_exact(exact)


@contextmanager
def one_update(model: nn.Module) -> Generator[None]:
    """Whatever batches go through `model` inside move the running statistics of each BatchNorm in training once.

    Layers that keep exact statistics (`statistics` other than "ema") do so for any batches: they are left alone.
    An exception inside leaves all buffers as they were.
    """
    pooled = [_Pooled(layer) for layer in model.modules() if _is_averaging(layer)]
    done = False
    try:
        yield
        done = True
    finally:
        for each in pooled:
            each.finish(used=done)


def _is_averaging(layer: nn.Module) -> TypeGuard[BatchNorm]:
    if not isinstance(layer, BatchNorm) or not layer.training or layer.running_mean is None:
        return False
    return layer.running_var is not None and getattr(layer, "statistics", "ema") == "ema"
