# torch leaves parts of its interface untyped: what comes from them is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""A small, complete training loop whose statistics are right when they are looked at.

epoch = steps under one cosine of the learning rate -> refresh of the BatchNorms -> validation -> checkpoint
"""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm  # pyright: ignore[reportPrivateUsage]

from ..errors import BnfoldError, UsageError
from . import checkpointing, ranks
from .accumulating import one_update

__all__ = ["Epoch", "Fitted", "TrainingFailed", "default_refresh", "fit"]

Loss = Callable[[Any, Any], Tensor]
Refresh = Callable[[nn.Module, Iterable[Any]], object]
_AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TrainingFailed(BnfoldError):
    """The training diverged, or cannot go on with this data."""

    kind = "training"
    exit_code = 1


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to. `loss`: the mean over its samples while training. `score`: of the validation, or None."""

    number: int
    loss: float
    rate: float
    score: float | None = None


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
    loop = _Loop(model, loss or _loss, optimizer, rate, weight_decay, steps * epochs, amp, clip, place)
    renew: Any = refresh if _has_statistics(model) else None
    if renew == "auto":
        renew = default_refresh()
    done = Fitted(model)
    if path is not None and path.exists() and resume:
        done.epochs += loop.restore(checkpointing.load(path, place), epochs, path)
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
                checkpointing.save(path, loop.state(done.epochs, epochs))
    model.eval()
    return done


class _Loop:
    """What lives as long as the training does."""

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: torch.optim.Optimizer | None,
        rate: float,
        weight_decay: float,
        steps: int,
        amp: str | None,
        clip: float | None,
        place: torch.device,
    ) -> None:
        self.model, self.loss, self.place, self.clip = model, loss, place, clip
        self.frozen = [m for m in model.modules() if not m.training] if model.training else []
        self.optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=weight_decay)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, steps)
        self.amp = None if amp is None else _AMP[amp]
        self.scaler = torch.amp.GradScaler(place.type, enabled=amp == "fp16" and place.type == "cuda")
        ranks.equalize(model)

    @property
    def rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def epoch(self, loader: Iterable[Any], accumulate: int, number: int, tick: Callable[[], None]) -> float:
        """One pass over the data; returns the mean loss."""
        self.model.train()
        for module in self.frozen:
            module.training = False
        total = torch.zeros((), dtype=torch.float64, device=self.place)
        count = 0
        sampler = getattr(loader, "sampler", None)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(number)  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue] -- as hasattr says
        for batches in _together(loader, accumulate, self.place):
            share = self._share(sum(len(targets) for _, targets in batches))
            if share is None:
                break
            with one_update(self.model) if accumulate > 1 else nullcontext():
                value, rows = self._step(batches, share)
            total += value
            count += rows
            tick()
        if not count:
            raise UsageError("The loader gave no batch to train on.")
        mean = float(total) / count
        if not math.isfinite(mean):
            raise TrainingFailed(f"The loss is {mean} in epoch {number + 1}: lower the rate, or clip the gradient.")
        return mean

    def _step(self, batches: list[tuple[Any, Any]], share: float) -> tuple[Tensor, int]:
        rows = sum(len(targets) for _, targets in batches)
        total = torch.zeros((), dtype=torch.float64, device=self.place)
        self.optimizer.zero_grad()
        for inputs, targets in batches:
            try:
                with torch.autocast(self.place.type, self.amp, enabled=self.amp is not None):
                    value = self.loss(self.model(inputs), targets)
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise TrainingFailed(
                    "A batch of one sample has no variance to normalize by: give the loader drop_last=True."
                ) from error
            self.scaler.scale(value * (share * len(targets) / rows)).backward()
            total += value.detach().double() * len(targets)
        ranks.average_gradients(self.model)
        if self.clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        return total, rows

    def _share(self, rows: int) -> float | None:
        """How much this rank's mean counts for in the mean over ranks; None once a rank has no more batches."""
        if ranks.size() == 1:
            return 1.0 if rows else None
        told = torch.tensor([float(rows), float(rows > 0)], device=self.place)
        dist.all_reduce(told)
        everywhere, having = told.tolist()
        return rows * ranks.size() / everywhere if having == ranks.size() else None

    def validate(self, batches: Iterable[Any], score: Loss) -> float:
        """The mean score over the samples of all ranks."""
        self.model.eval()
        found = torch.zeros(2, dtype=torch.float64, device=self.place)
        with torch.inference_mode():
            for inputs, targets in _moved(batches, self.place):
                with torch.autocast(self.place.type, self.amp, enabled=self.amp is not None):
                    values = score(self.model(inputs), targets)
                found += torch.stack([values.double().sum(), torch.tensor(float(len(targets))).to(found)])
        if ranks.size() > 1:
            dist.all_reduce(found)
        total, count = found.tolist()
        if not count:
            raise UsageError("The validation data hold no sample.")
        return total / count

    def state(self, done: list[Epoch], epochs: int) -> dict[str, Any]:
        parts = {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule, "scaler": self.scaler}
        found: dict[str, Any] = {name: part.state_dict() for name, part in parts.items()}
        return {**found, "epochs": epochs, "done": [asdict(each) for each in done]}

    def restore(self, state: dict[str, Any], epochs: int, path: Path) -> list[Epoch]:
        if state["epochs"] != epochs:
            raise UsageError(
                f"The checkpoint {path} is of a training over {state['epochs']} epochs, whose rate follows another "
                f"cosine than that of {epochs}; give another checkpoint, or resume=False."
            )
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            why = " ".join(str(error).split())[:160]
            raise UsageError(f"The checkpoint {path} is of another model or optimizer ({why}).") from error
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        return [Epoch(**each) for each in state["done"]]


def _steps(loader: Iterable[Any], epochs: int, accumulate: int, amp: str | None) -> int:
    for what, value in (("epochs", epochs), ("accumulate", accumulate)):
        if value < 1:
            raise UsageError(f"{what}={value}: it must be at least 1.")
    if amp is not None and amp not in _AMP:
        raise UsageError(f"amp={amp!r} is none of {', '.join(_AMP)}.")
    if not isinstance(loader, Sized):
        raise UsageError("The loader has no length, from which the cosine of the learning rate would be made.")
    if not len(loader):
        raise UsageError("The loader is empty: there is nothing to train on.")
    return -(-len(loader) // accumulate)


def _moved(batches: Iterable[Any], place: torch.device) -> Iterator[tuple[Any, Any]]:
    for batch in batches:
        if not isinstance(batch, list | tuple) or len(batch) != 2:  # pyright: ignore[reportUnknownArgumentType] -- anything
            raise UsageError("A batch is a pair (inputs, targets); wrap the loader, or write a loop of your own.")
        inputs, targets = batch
        yield _to(inputs, place), _to(targets, place)


def _to(value: Any, place: torch.device) -> Any:
    return value.to(place, non_blocking=True) if isinstance(value, Tensor) else value


def _together(batches: Iterable[Any], count: int, place: torch.device) -> Iterator[list[tuple[Any, Any]]]:
    """Lists of `count` batches, the last one maybe shorter; with ranks an empty one says that there are no more."""
    held: list[tuple[Any, Any]] = []
    for batch in _moved(batches, place):
        held.append(batch)
        if len(held) == count:
            yield held
            held = []
    if held:
        yield held
    yield []


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


def _has_statistics(model: nn.Module) -> bool:
    return any(isinstance(layer, BatchNorm) and layer.running_mean is not None for layer in model.modules())


def default_refresh() -> Any:
    """bnfold.train.refresh, which is imported when it is first needed."""
    return importlib.import_module("bnfold.train.refresh").refresh


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
