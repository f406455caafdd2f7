# torch leaves parts of its interface untyped: what comes from them is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""A small, complete training loop whose statistics are right when they are looked at.

epoch = steps under one cosine of the learning rate -> refresh of the BatchNorms -> validation -> checkpoint
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Iterable, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import UsageError
from . import checkpointing, ranks
from .refresh import refresh as refreshed
from .state import has_statistics
from .stepping import AMP, Epoch, Loop, Loss, TrainingFailed

__all__ = ["Epoch", "Fitted", "Refresh", "TrainingFailed", "fit"]

Refresh = Callable[[nn.Module, Iterable[Any]], object]


@dataclass
class Fitted:
    """The trained model, in evaluation mode, its epochs, and what the last refresh returned."""

    model: nn.Module
    epochs: list[Epoch] = field(default_factory=list[Epoch])
    refreshed: object = None

    @property
    def score(self) -> float | None:
        """The last epoch's."""
        return self.epochs[-1].score if self.epochs else None


def fit(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    epochs: int = 10,
    validation: Iterable[Any] | None = None,
    loss: Loss | None = None,
    score: Loss | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    rate: float = 1e-3,
    weight_decay: float = 1e-2,
    accumulate: int = 1,
    amp: Literal["bf16", "fp16"] | None = None,
    clip: float | None = None,
    device: torch.device | str | None = None,
    refresh: Refresh | Literal["auto"] | None = "auto",
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = True,
    label: str = "",
) -> Fitted:
    """Train `model` in place on the batches (inputs, targets) of `loader`, which has a length.

    loss(output, targets): a mean over samples; cross entropy for integer targets, else the squared error.
    score(output, targets): one number a sample, averaged over `validation`; by default 1 where the class is right, or
        minus the squared error.
    optimizer: AdamW with `rate` and `weight_decay` unless given. The rate follows one cosine to 0 over all steps.
    accumulate: batches that make one step. The gradient is that of all of them together, and so are the running
        statistics: they move once.
    amp: autocast in this type, with a scaler where fp16 needs one. clip: the largest norm of the gradient.
    refresh: called with the model and the loader before each validation, each checkpoint and at the end; "auto":
        bnfold.train.refresh, in one pass between epochs. BatchNorms in evaluation mode stay so.
    checkpoint: written after each epoch; one that is there is gone on from unless `resume` is false, to the same bits.

    In a process group every rank calls it with batches of its own; an epoch ends with the first that has no more.
    Raises UsageError, TrainingFailed, LostRank, UnwritableOutput, UnreadableModel.
    """
    path = None if checkpoint is None else Path(checkpoint)
    steps = _steps(loader, epochs, accumulate, amp)
    place = torch.device(device) if device is not None else _place(model)
    model.to(place)
    with ranks.expecting_all():
        steps = ranks.least(steps, place)
    loop = Loop(model, loss or _loss, optimizer, rate, weight_decay, steps * epochs, amp, clip, place)
    renew: Any = refresh if has_statistics(model) else None
    if renew == "auto":
        renew = partial(refreshed, device=place)
    done = Fitted(model)
    if path is not None and resume and _is_there(path, place):
        done.epochs += loop.restore(checkpointing.load(path, place, loader), epochs, path)
    with ranks.expecting_all(), _bar(epochs * steps, len(done.epochs) * steps, label) as tick:
        for number in range(len(done.epochs), epochs):
            mean, rate_now = loop.epoch(loader, accumulate, number, tick), loop.rate
            last = number + 1 == epochs
            if renew is not None and (validation is not None or path is not None or last):
                quick = refresh == "auto" and not last
                done.refreshed = renew(model, loader, method="concurrent") if quick else renew(model, loader)
            value = None if validation is None else loop.validate(validation, score or _score)
            done.epochs.append(Epoch(number + 1, mean, rate_now, value))
            if path is not None:
                checkpointing.save(path, loop.state(done.epochs, epochs), loader)
    model.eval()
    return done


def _steps(loader: Iterable[Any], epochs: int, accumulate: int, amp: str | None) -> int:
    for what, value in (("epochs", epochs), ("accumulate", accumulate)):
        if value < 1:
            raise UsageError(f"{what}={value}: it must be at least 1.")
    if amp is not None and amp not in AMP:
        raise UsageError(f"amp={amp!r} is none of {', '.join(AMP)}.")
    if not isinstance(loader, Sized):
        raise UsageError("The loader has no length, from which the cosine of the learning rate would be made.")
    if not len(loader):
        raise UsageError("The loader is empty: there is nothing to train on.")
    return -(-len(loader) // accumulate)


def _is_there(path: Path, place: torch.device) -> bool:
    """Whether there is a checkpoint; all ranks have to see the same, or they would train different epochs."""
    own = int(path.exists())
    with ranks.expecting_all():
        least, most = ranks.least(own, place), -ranks.least(-own, place)
    if least != most:
        raise UsageError(f"The checkpoint {path} is there for some ranks only: give a path that all of them see.")
    return bool(own)


def _place(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _loss(output: Tensor, targets: Tensor) -> Tensor:
    if targets.dtype == torch.int64:
        return functional.cross_entropy(output, targets)
    return functional.mse_loss(output, targets)


def _score(output: Tensor, targets: Tensor) -> Tensor:
    if targets.dtype == torch.int64:
        return (output.argmax(1) == targets).double()
    return -(output.double() - targets.double()).square().flatten(1).mean(1)


@contextmanager
def _bar(length: int, done: int, label: str) -> Generator[Callable[[], None]]:
    """A bar on stderr, only where a person watches and only from one rank."""
    if ranks.rank() or not sys.stderr.isatty():
        yield lambda: None
        return
    import click

    with click.progressbar(length=length, label=label, file=sys.stderr) as bar:
        bar.update(done)
        yield lambda: bar.update(1)
