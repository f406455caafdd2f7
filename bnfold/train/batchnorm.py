# torch leaves parts of its interface untyped: what comes from them is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""torch.nn's BatchNorm layers with a choice of what training leaves in running_mean and running_var.

"ema": (1 − momentum)·r + momentum·s, torch's. "cumulative": mean and M2/n of all values since the start. "population":
of all since the layer last went from evaluation to training, so of the last epoch. Pooled exactly, in float64.
"""

from __future__ import annotations

from typing import Any, Literal, Self, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as torch_functional

from ..errors import UsageError
from .functional import batch_norm_backward, batch_norm_transform
from .moments import Moments, merged
from .state import BatchNorm

Statistics = Literal["ema", "cumulative", "population"]


class Tracking(BatchNorm):
    """What the layers share. eps may be 0; a channel whose values are all alike then gives its bias.

    The exact values behind the buffers are not in the state_dict, so that torch.nn's layers load it and the other way
    round. Whenever something else wrote to the buffers (a loaded state, `refresh`) they are what counts: "population"
    begins anew, "cumulative" goes on from them as if all its batches had been as large as the next one.
    """

    statistics: Statistics

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        statistics: Statistics = "ema",
        **keywords: Any,
    ) -> None:
        if statistics not in get_args(Statistics):
            raise UsageError(f"statistics={statistics!r} is none of {', '.join(get_args(Statistics))}.")
        if not eps >= 0:
            raise UsageError(f"eps={eps}: it is added to a variance and cannot be negative.")
        self._exact: Moments | tuple[Tensor, Tensor] | None = None
        self._written: tuple[Any, ...] = ()
        self._anew = True
        # by keyword: SyncBatchNorm has a process group in between
        keywords |= {"device": device, "dtype": dtype}
        super().__init__(num_features, eps, momentum, affine, track_running_stats, **keywords)
        self.statistics = statistics

    def forward(self, input: Tensor) -> Tensor:
        """BN of input [N, C, ...]: by the batch in training, by the buffers in evaluation if it has any."""
        self._check_input_dim(input)
        if not self.training and self.running_mean is not None and self.running_var is not None:
            if self.eps > 0:
                return BatchNorm.forward(self, input)
            return self._plainly(input, self.running_mean, self.running_var)
        tracked = self.running_mean if self.training else None
        if self.eps > 0 and (tracked is None or (self.statistics == "ema" and not self.keeps_exact)):
            return BatchNorm.forward(self, input)
        _expect_several(input.numel() // input.shape[1], input)
        if tracked is not None:
            self._track(Moments.of(input))
        if self.eps > 0:
            return torch_functional.batch_norm(input, None, None, self.weight, self.bias, True, 0.0, self.eps)
        return self._plainly(input)

    def train(self, mode: bool = True) -> Self:
        """Training mode or not, as torch has it; "population" begins anew when it is switched on."""
        self._anew |= mode and not self.training
        return super().train(mode)

    def reset_running_stats(self) -> None:
        """Buffers to 0 and 1, and nothing behind them."""
        super().reset_running_stats()
        self._exact, self._anew = None, True

    @property
    def keeps_exact(self) -> bool:
        """Whether there are values behind the buffers; of an average only where a small step would be lost in them."""
        low = self.running_mean is not None and self.running_mean.dtype in (torch.float16, torch.bfloat16)
        return self.statistics != "ema" or low

    def exact(self) -> list[Tensor]:
        """The exact values behind the buffers, for a checkpoint; empty where the buffers are all there is."""
        mean, var = self.running_mean, self.running_var
        if self._exact is None or mean is None or var is None or self._written != _trace(mean, var):
            return []
        held = self._exact
        return [held.n, held.mean, held.m2] if isinstance(held, Moments) else list(held)

    def load_exact(self, values: list[Tensor]) -> None:
        """Go on from what `exact` gave, once the buffers that belong to it are loaded."""
        mean, var = self.running_mean, self.running_var
        if values and mean is not None and var is not None:
            self._exact = Moments(*values) if len(values) == 3 else (values[0], values[1])
            self._written, self._anew = _trace(mean, var), False

    def extra_repr(self) -> str:
        """torch's, and the kind of statistics."""
        return f"{super().extra_repr()}, statistics={self.statistics!r}"

    def _plainly(self, x: Tensor, mean: Tensor | None = None, var: Tensor | None = None) -> Tensor:
        wide = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
        operands = [None if part is None else part.to(wide) for part in (self.weight, self.bias, mean, var)]
        weight, bias, mean, var = operands
        return batch_norm_transform(x.to(wide), weight, bias, mean=mean, var=var, eps=self.eps).y.to(x.dtype)

    @torch.no_grad()
    def _track(self, moments: Moments) -> None:
        """Count a batch in: into the exact values, and these, rounded, into the buffers."""
        mean, var, count = self.running_mean, self.running_var, self.num_batches_tracked
        assert mean is not None and var is not None and count is not None
        known = self._exact is not None and self._written == _trace(mean, var)
        if self.statistics == "ema":
            old = self._exact if known and isinstance(self._exact, tuple) else (mean.double(), var.double())
            count.add_(1)
            share = 1 / count.double() if self.momentum is None else self.momentum
            new = (moments.mean, moments.unbiased_var)
            pair = tuple(torch.lerp(a.to(b.device), b, share) for a, b in zip(old, new, strict=True))
            self._exact = (pair[0], pair[1])
        else:
            if self.statistics == "population" and (self._anew or not known):
                past = None
            elif known and isinstance(self._exact, Moments):
                past = self._exact
            elif int(count) > 0:
                n = moments.n * count.double()
                past = Moments(n, mean.double(), var.double() * n)
            else:
                past = None
            if past is not None:
                there = moments.mean.device
                moments = merged([Moments(past.n.to(there), past.mean.to(there), past.m2.to(there)), moments])
            count.add_(1)
            self._exact, pair = moments, (moments.mean, moments.var)
        self._anew = False
        mean.copy_(pair[0])
        var.copy_(pair[1])
        self._written = _trace(mean, var)


class BatchNorm1d(Tracking, nn.BatchNorm1d):
    """torch.nn.BatchNorm1d with `statistics` ("ema", "cumulative", "population"); its state_dict fits both ways."""


class BatchNorm2d(Tracking, nn.BatchNorm2d):
    """torch.nn.BatchNorm2d with `statistics` ("ema", "cumulative", "population"); its state_dict fits both ways."""


class BatchNorm3d(Tracking, nn.BatchNorm3d):
    """torch.nn.BatchNorm3d with `statistics` ("ema", "cumulative", "population"); its state_dict fits both ways."""


class SyncBatchNorm(Tracking, nn.SyncBatchNorm):
    """torch.nn.SyncBatchNorm with `statistics`, on any backend (gloo on CPUs too).

    In training it normalizes by the batches of all ranks of `process_group` together, whatever their sizes, 0 included.
    Without torch.distributed, or with one rank, it is a BatchNorm for any number of axes.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: Any = None,
        *,
        statistics: Statistics = "ema",
        **keywords: Any,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, statistics=statistics, **keywords
        )
        self.process_group = process_group

    def forward(self, input: Tensor) -> Tensor:
        """BN of input [N, C, ...]; N may differ between ranks."""
        self._check_input_dim(input)
        up = self.training and dist.is_available() and dist.is_initialized()
        group = (self.process_group or dist.group.WORLD) if up else None
        if group is None or dist.get_world_size(group) == 1:
            return super().forward(input)
        whole = _everywhere(Moments.of(input), group)
        _expect_several(int(whole.n), input)
        if self.running_mean is not None:
            self._track(whole)
        return _Synchronized.apply(input, self.weight, self.bias, whole.mean, whole.var, self.eps, group)

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group: Any = None) -> nn.Module:
        """`module` with every BatchNorm in it replaced; parameters and buffers stay the same tensors."""
        return convert(module, sync=True, process_group=process_group)


class _Synchronized(torch.autograd.Function):
    """The transform by a mean and variance of all ranks' values, and its gradient, whose sums are theirs too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Any, bias: Any, mean: Tensor, var: Tensor, eps: float, group: Any) -> Any:
        wide = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
        mean, var = mean.to(wide), var.to(wide)
        parameters = [None if part is None else part.to(wide) for part in (weight, bias)]
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps, ctx.group, ctx.wide, ctx.bias = eps, group, wide, bias
        return batch_norm_transform(x.to(wide), *parameters, mean=mean, var=var, eps=eps).y.to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] -- torch's takes any
        x, weight, mean, var = ctx.saved_tensors

        def total(sums: Tensor) -> Tensor:
            dist.all_reduce(sums, group=ctx.group)
            return sums

        found = batch_norm_backward(
            grad.to(ctx.wide), x.to(ctx.wide), None if weight is None else weight.to(ctx.wide),
            mean=mean, var=var, eps=ctx.eps, total=total,
        )  # fmt: skip
        grad_weight = None if weight is None else found.weight.to(weight.dtype)
        grad_bias = None if ctx.bias is None else found.bias.to(ctx.bias.dtype)
        return found.x.to(x.dtype), grad_weight, grad_bias, None, None, None, None


def convert(
    module: nn.Module,
    statistics: Statistics | None = None,
    *,
    sync: bool = False,
    process_group: Any = None,
) -> nn.Module:
    """`module` with every torch.nn BatchNorm in it, itself included, replaced by the layer of this module.

    Parameters and buffers stay the same tensors, so that an optimizer keeps its hold on them. statistics: of the new
    layers; None keeps what a layer has ("ema" for torch's own). Subclasses made by others are left alone.
    """
    known: dict[Any, Any] = {nn.BatchNorm1d: BatchNorm1d, nn.BatchNorm2d: BatchNorm2d, nn.BatchNorm3d: BatchNorm3d}
    kind = type(module)
    result = module
    if kind in (*known, *known.values(), nn.SyncBatchNorm, SyncBatchNorm):
        assert isinstance(module, BatchNorm)
        chosen: Statistics = statistics or getattr(module, "statistics", "ema")
        arguments = (module.num_features, module.eps, module.momentum, False, False)
        if sync or kind in (nn.SyncBatchNorm, SyncBatchNorm):
            group = process_group or getattr(module, "process_group", None)
            new: BatchNorm = SyncBatchNorm(*arguments, group, device="meta", statistics=chosen)
        else:
            made: Any = known.get(kind, kind)
            new = made(*arguments, device="meta", statistics=chosen)
        new.affine, new.track_running_stats = module.affine, module.track_running_stats
        new._parameters.update(module._parameters)  # pyright: ignore[reportPrivateUsage] -- no public name
        new._buffers.update(module._buffers)  # pyright: ignore[reportPrivateUsage] -- as above
        new.training = module.training
        result = new
    for name, child in module.named_children():
        converted = convert(child, statistics, sync=sync, process_group=process_group)
        if converted is not child:
            setattr(result, name, converted)
    return result


def _everywhere(own: Moments, group: Any) -> Moments:
    values = torch.cat([own.n.reshape(1), own.mean, own.m2])
    found = [torch.empty_like(values) for _ in range(dist.get_world_size(group))]
    dist.all_gather(found, values, group=group)
    channels = own.mean.shape[0]
    return merged([Moments(part[0], part[1 : 1 + channels], part[1 + channels :]) for part in found])


def _expect_several(n: int, x: Tensor) -> None:
    if n <= 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {list(x.shape)}")


def _trace(*buffers: Tensor) -> tuple[Any, ...]:
    """What changes whenever somebody else replaces a buffer or writes to it; comparing it waits for no device."""
    return tuple((id(buffer), buffer._version) for buffer in buffers)  # pyright: ignore[reportPrivateUsage] -- as above
