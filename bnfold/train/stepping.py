# torch leaves parts of its interface untyped: what comes from them is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The steps of a training: batches that make one step, on all ranks; the gradient is that of all of them together.

step = backward of every batch's share of the loss -> mean over ranks -> clip -> optimizer -> cosine of the rate
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import BnfoldError, UsageError
from . import ranks
from .accumulating import one_update
from .batchnorm import Tracking

__all__ = ["AMP", "Epoch", "Loop", "Loss", "TrainingFailed"]

Loss = Callable[[Any, Any], Tensor]
AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


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


class Loop:
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
        self.amp = None if amp is None else AMP[amp]
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
        exact = {name: layer.exact() for name, layer in self._layers()}
        return {**found, "exact": exact, "epochs": epochs, "done": [asdict(each) for each in done]}

    def _layers(self) -> Iterator[tuple[str, Tracking]]:
        """The layers whose exact values are no part of a state_dict."""
        return ((name, layer) for name, layer in self.model.named_modules() if isinstance(layer, Tracking))

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
        for name, layer in self._layers():
            layer.load_exact(state["exact"].get(name, []))
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        return [Epoch(**each) for each in state["done"]]


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
