# torch leaves parts of its interface untyped: what comes from them is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The ledger of statistics: for every layer a list of shards (n, mean, M2), to add to, merge and save without the data.

Shards are batches as long as there are few, then runs of neighbouring batches, merged in pairs: the totals stay
exact, and the spread between shards is what the standard errors come from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UsageError
from . import tensorfile
from .moments import Moments, merged

SHARDS = 64  # kept a layer after a merge of pairs; twice as many before it
FORMAT = "bnfold-statistics"


@dataclass
class Shards:
    """The shards of one layer with C channels: n [S], mean, M2 and `within` [S, C], float64 on the CPU.

    within: Σ n_b·M2_b/(n_b − 1) over the batches b of a shard, which Algorithm 2 averages; NaN where a batch gave one
    value a channel.
    """

    channels: int
    parts: list[tuple[Moments, Tensor]] = field(default_factory=list[tuple[Moments, Tensor]])

    def add(self, moments: Moments, within: Tensor | None = None) -> None:
        """One batch more, or with `within` a shard of several."""
        self._expect(moments.mean.shape[0])
        if float(moments.n) > 0:
            self.parts.append((moments, moments.n * moments.unbiased_var if within is None else within))
            if len(self.parts) > 2 * SHARDS:
                self.compact(SHARDS)

    def merge(self, other: Shards) -> None:
        """The shards of `other` too: the statistics of both sets of data together."""
        self._expect(other.channels)
        self.parts += other.parts
        if len(self.parts) > 2 * SHARDS:
            self.compact(SHARDS)

    def compact(self, limit: int) -> None:
        """Merge neighbours in pairs until there are at most `limit` shards."""
        while len(self.parts) > limit:
            pairs = [self.parts[i : i + 2] for i in range(0, len(self.parts), 2)]
            self.parts = [(merged([m for m, _ in pair]), torch.stack([w for _, w in pair]).sum(0)) for pair in pairs]

    @property
    def n(self) -> int:
        """Values a channel."""
        return int(sum(float(m.n) for m, _ in self.parts))

    def total(self) -> Moments:
        """The moments of all data."""
        if not self.parts:
            zeros = torch.zeros(self.channels, dtype=torch.float64)
            return Moments(torch.zeros((), dtype=torch.float64), zeros, zeros.clone())
        n = torch.stack([m.n for m, _ in self.parts])
        mean = torch.stack([m.mean for m, _ in self.parts])
        share = (n / n.sum()).unsqueeze(1)
        whole = mean[0] + (share * (mean - mean[0])).sum(0)
        between = (n.unsqueeze(1) * (mean - whole).square()).sum(0)
        return Moments(n.sum(), whole, torch.stack([m.m2 for m, _ in self.parts]).sum(0) + between)

    def algorithm2(self) -> tuple[Tensor, Tensor]:
        """E_B[μ_B] and E_B[m/(m−1)·σ_B²] of Ioffe & Szegedy's Algorithm 2, each batch weighted by its values."""
        total = self.total()
        within = sum((w for _, w in self.parts), torch.zeros(self.channels, dtype=torch.float64))
        return total.mean, within / total.n

    def standard_errors(self) -> tuple[Tensor, Tensor]:
        """Of the mean and of the variance, [C], from how they differ between shards; infinite with fewer than two."""
        if len(self.parts) < 2:
            unknown = torch.full((self.channels,), math.inf, dtype=torch.float64)
            return unknown, unknown
        total = self.total()
        share = torch.stack([m.n for m, _ in self.parts]).unsqueeze(1) / total.n
        delta = torch.stack([m.mean for m, _ in self.parts]) - total.mean
        variance = torch.stack([m.var for m, _ in self.parts]) + delta.square() - total.var
        correction = len(self.parts) / (len(self.parts) - 1)
        means, variances = ((correction * (share * d).square().sum(0)).sqrt() for d in (delta, variance))
        return means, variances

    def _expect(self, channels: int) -> None:
        if channels != self.channels:
            raise UsageError(f"Statistics of {channels} channels cannot be added to those of {self.channels}.")


@dataclass
class Ledger:
    """Statistics by the layer's name, and how many batches they come from.

    `mask`: set it before a forward of `collect` to count only part of a padded batch; no part of what is saved.
    """

    layers: dict[str, Shards] = field(default_factory=dict[str, Shards])
    batches: int = 0
    mask: Tensor | Mapping[str, Tensor] | None = field(default=None, repr=False, compare=False)

    def __getitem__(self, name: str) -> Moments:
        return self.layers[name].total()

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def add(self, name: str, moments: Moments) -> None:
        """The moments of one batch at one layer; of no value at all they say nothing, and the layer is not entered."""
        if float(moments.n) > 0 or name in self.layers:
            self.layers.setdefault(name, Shards(moments.mean.shape[0])).add(moments)

    def merge(self, other: Ledger) -> Ledger:
        """Add the statistics of other data; returns this ledger. Raises UsageError where channels differ."""
        for name, shards in other.layers.items():
            own = self.layers.get(name)
            if own is not None and own.channels != shards.channels:
                raise UsageError(f"{name!r} has {own.channels} channels in one ledger, {shards.channels} in the other.")
        for name, shards in other.layers.items():
            self.layers.setdefault(name, Shards(shards.channels)).merge(shards)
        self.batches += other.batches
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """Everything as float64 tensors: NAME.n [S], NAME.mean, NAME.m2 and NAME.within [S, C], and `batches` []."""
        state = {"batches": torch.tensor(float(self.batches), dtype=torch.float64)}
        for name, shards in self.layers.items():
            if shards.parts:
                state[f"{name}.n"] = torch.stack([m.n for m, _ in shards.parts])
                state[f"{name}.mean"] = torch.stack([m.mean for m, _ in shards.parts])
                state[f"{name}.m2"] = torch.stack([m.m2 for m, _ in shards.parts])
                state[f"{name}.within"] = torch.stack([w for _, w in shards.parts])
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replace the contents by those of `state_dict()`. Raises UsageError if it is not one."""
        layers: dict[str, Shards] = {}
        names = [key.removesuffix(".n") for key in state if key.endswith(".n")]
        known = {f"{name}.{part}" for name in names for part in ("n", "mean", "m2", "within")} | {"batches"}
        if known != set(state):
            raise UsageError(f"This is no ledger of statistics: {min(known ^ set(state))!r} is missing or unknown.")
        for name in names:
            n, mean, m2, within = (state[f"{name}.{part}"].double().cpu() for part in ("n", "mean", "m2", "within"))
            if mean.dim() != 2 or n.shape != mean.shape[:1] or not mean.shape == m2.shape == within.shape:
                raise UsageError(f"The ledger contradicts itself: the shapes at {name!r} do not fit together.")
            layers[name] = Shards(mean.shape[1])
            layers[name].parts = [(Moments(*row[:3]), row[3]) for row in zip(n, mean, m2, within, strict=True)]
        self.layers, self.batches = layers, int(state["batches"])

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all."""
        tensorfile.save(path, self.state_dict(), {"format": FORMAT, "schema": "1"})

    @classmethod
    def load(cls, path: str | Path) -> Ledger:
        """Read what `save` wrote. Raises UsageError if the file is something else."""
        tensors, metadata = tensorfile.load(path)
        if metadata.get("format") != FORMAT:
            raise UsageError(f"{path} is no ledger of statistics; `report.save(path)` writes one.")
        ledger = cls()
        ledger.load_state_dict(tensors)
        return ledger
