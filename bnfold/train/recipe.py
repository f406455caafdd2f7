# torch leaves parts of its interface untyped: what comes from them is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""How the networks of models/ are trained on the digits: batches of 64, noise on the pixels, AdamW under one cosine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from . import ranks
from .batchnorm import convert
from .digits import ARCHITECTURES, Architecture, Digits, roughen
from .fitting import Fitted, Refresh, fit

__all__ = ["BATCH", "EPOCHS", "NOISE", "RATE", "Noisy", "Plain", "figure", "right", "train"]

EPOCHS = 40
BATCH = 64
RATE = 4e-3
NOISE = 0.1  # added to the pixels while training; their own range is 0 to 1


class Noisy:
    """The training images in a new order each time, with new noise, in batches (image, target), none of them short.

    Draws from torch's global generator. In a process group every rank draws the same batch and takes its share of it.
    """

    def __init__(self, architecture: Architecture, data: Digits, batch: int = BATCH, noise: float = NOISE) -> None:
        self.images, self.targets = _tensors(architecture, data.train_images, data.train_labels)
        self.batch, self.noise = min(batch, len(self.images)), noise

    def __len__(self) -> int:
        return len(self.images) // self.batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.images))[: len(self) * self.batch].reshape(len(self), self.batch)
        for chosen in order:
            noisy = self.images[chosen] + self.noise * torch.randn(self.batch, *self.images.shape[1:])
            mine = slice(ranks.rank(), None, ranks.size())
            yield noisy[mine], self.targets[chosen][mine]


class Plain:
    """Images as they are, in order, in batches (image, target); in a process group each rank has every so-manieth."""

    def __init__(
        self, architecture: Architecture, images: NDArray[np.float32], labels: NDArray[np.int64], batch: int = 256
    ) -> None:
        self.images, self.targets = _tensors(architecture, images, labels)
        self.images, self.targets = (
            self.images[ranks.rank() :: ranks.size()],
            self.targets[ranks.rank() :: ranks.size()],
        )
        self.batch = batch

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.images.split(self.batch), self.targets.split(self.batch), strict=True)


def train(
    name: str,
    data: Digits,
    *,
    seed: int | None = None,
    epochs: int = EPOCHS,
    batch: int = BATCH,
    noise: float = NOISE,
    rate: float = RATE,
    validate: bool = False,
    refresh: Refresh | None = None,
    **options: Any,
) -> Fitted:
    """The architecture `name` trained on the first part of the data; the second is for validation, if that is wanted.

    seed: of the weights, the order and the noise; None: the one of the file in models/. In a process group the
    BatchNorms see the batches of all ranks together. refresh, options: as `fit` has them.
    """
    architecture = ARCHITECTURES[name]
    torch.manual_seed(list(ARCHITECTURES).index(name) if seed is None else seed)
    model = roughen(architecture.build())
    if ranks.size() > 1:
        model = convert(model, sync=True)
    return fit(
        model,
        Noisy(architecture, data, batch, noise),
        epochs=epochs,
        validation=Plain(architecture, data.test_images, data.test_labels) if validate else None,
        loss=lambda output, targets: _loss(architecture, output, targets),
        optimizer=torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-3),
        refresh=refresh,
        **options,
    )


def right(architecture: Architecture, output: NDArray[Any], images: NDArray[Any], labels: NDArray[Any]) -> float:
    """The share of right answers, or minus the root of the mean squared error of a reconstruction."""
    if architecture.output == "reconstruction":
        return -float(np.sqrt(np.mean(np.square(output - images, dtype=np.float64))))
    return float((output.argmax(1) == labels).mean())


def figure(architecture: Architecture, output: NDArray[Any], images: NDArray[Any], labels: NDArray[Any]) -> str:
    """The same for people."""
    value = right(architecture, output, images, labels)
    if architecture.output == "reconstruction":
        return f"RMSE {-value:.4f}"
    return f"{round(value * len(labels))}/{len(labels)} = {value:.1%}"


def _tensors(
    architecture: Architecture, images: NDArray[np.float32], labels: NDArray[np.int64]
) -> tuple[Tensor, Tensor]:
    given = torch.from_numpy(images)
    return given, given if architecture.output == "reconstruction" else torch.from_numpy(labels)


def _loss(architecture: Architecture, output: Tensor, targets: Tensor) -> Tensor:
    if architecture.output == "reconstruction":
        return functional.mse_loss(output, targets)
    return functional.cross_entropy(output, targets, label_smoothing=0.05)
