# torch leaves parts of its interface untyped: what comes from them is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""One line for training loops of other makers: right statistics before a model is validated or saved.

refresh_in(loop's model) = refresh(the network inside every wrapper), on all ranks, in the mode that it was in
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from .fitting import Refresh
from .refresh import refresh as bnfolds_own

__all__ = ["refresh_in", "unwrapped"]


def refresh_in(
    model: nn.Module, loader: Iterable[Any], *, accelerator: Any = None, refresh: Refresh | None = None, **options: Any
) -> Any:
    """Refresh the BatchNorms of `model` from `loader`; call it on every rank, before validation and before saving.

    accelerator: accelerate's Accelerator, which unwraps what it prepared; without one DistributedDataParallel, FSDP1's
    wrapper of the whole and torch.compile are looked through. refresh: instead of bnfold.train.refresh. options: its
    arguments, `device` among them, which is that of the parameters unless given. Returns what it returns.
    """
    inner: nn.Module = unwrapped(model if accelerator is None else accelerator.unwrap_model(model))
    parameter = next(inner.parameters(), None)
    if refresh is None:
        options.setdefault("device", None if parameter is None else parameter.device)
        return bnfolds_own(inner, loader, **options)
    return refresh(inner, loader, **options)


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside wrappers that keep it as `module`, and inside torch.compile's."""
    while True:
        inner: Any = getattr(model, "_orig_mod", None)
        if inner is None and type(model).__module__.startswith(("torch.nn.parallel", "torch.distributed")):
            inner = getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner
