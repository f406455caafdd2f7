# torch leaves parts of its interface untyped: what comes from them is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The ways to estimate population statistics, over this process's batches or those of all ranks.

In inference layer k sees inputs normalized by population statistics. Only sequential estimation is consistent with
that: passes in evaluation mode, exact for layers 1 … p after p passes, until nothing changes any more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import BnfoldError, UsageError
from .drifting import output_error, rms, stored
from .feeding import Forward, again
from .gather import Ranks
from .ledger import SHARDS, Ledger, Shards
from .moments import Moments
from .passes import Mask, Pass, Poison, run
from .state import BatchNorm, Buffers, NotFitting, RandomState, write

Method = Literal["sequential", "concurrent", "pooled", "algorithm2"]
METHODS: tuple[Method, ...] = ("sequential", "concurrent", "pooled", "algorithm2")
POISONS = 16  # that a rank can name to the others in one pass
HEADER = 3 + 3 * POISONS


class NotEstimable(UsageError):
    """The method cannot be used with this data, while others can."""


@dataclass
class Estimate:
    """Statistics as they were written into the model, and how they came about.

    residual: by how much the last pass still changed x̂ (RMS over channels, the worst layer); sequential only.
    """

    method: Method
    ledger: Ledger
    order: list[str]
    poisons: list[Poison]
    passes: int
    residual: float | None = None


@dataclass
class Estimator:
    """Estimates for one model and loader. Writes into the BNs' buffers; whoever calls it restores them on an error."""

    model: nn.Module
    layers: Mapping[str, BatchNorm]
    loader: Iterable[Any]
    forward: Forward
    saved: Buffers
    random: RandomState
    ranks: Ranks
    device: torch.device | str | int | None = None
    mask: Mask | None = None
    limit: int | None = None
    tolerance: float | None = None
    max_passes: int | None = None
    forbid_poison: bool = False
    keep: Callable[[int], bool] | None = None
    poisons: list[Poison] = field(default_factory=list[Poison])
    without: set[int] = field(default_factory=set[int])

    def estimate(self, method: Method) -> Estimate:
        """Run `method` and write its statistics. Raises UsageError where the data allows none."""
        if method == "sequential":
            return self._sequential()
        by_batch = set(self.layers) if method != "concurrent" else self._unusable()
        found = self.one_pass(by_batch)
        self._write(found, method)
        return Estimate(method, found.ledger, found.order, self.poisons, 1)

    def one_pass(self, by_batch: Collection[str] = (), settled: Collection[str] | None = None) -> Pass:
        """A pass over the data of all ranks; the same ledger, with the same numbers, on each of them."""
        self.random.restore()  # a loader that shuffles or augments gives the same batches in every pass
        self.saved.restore(self.layers, all_but=True)
        values = sum(1 + 3 * layer.num_features for layer in self.layers.values())
        length = HEADER + len(self.layers) + self._shards() * values
        try:
            found = run(
                self.model, self.layers, self.loader, self.forward,
                by_batch=by_batch, settled=settled, without=self.without, limit=self.limit, device=self.device,
                mask=self.mask, tolerance=self.tolerance, keep=self.keep,
            )  # fmt: skip
            if self.forbid_poison and found.poisons:
                raise UsageError(f"{found.poisons[0]}.".capitalize())
        except Exception:
            with suppress(BnfoldError):  # this rank's own error is the one to show
                self.ranks.fail(length)
            raise
        if found.enough:
            self.limit, self.tolerance = found.read, None  # later passes read the same batches
        merged = self._merge(found, length)
        self._expect_data(merged)
        return merged

    def _sequential(self) -> Estimate:
        if not again(self.loader):
            raise UsageError(
                "method='sequential' reads the data several times, and an iterator can be read once: pass a list or a "
                "DataLoader, or method='pooled'."
            )
        budget = (self.tolerance or 0) / 10
        by_batch = self._unusable()
        settled: list[str] = list(by_batch)  # these normalize by the batch, which is no statistic that could be wrong
        passes = since = 0
        while True:
            found = self.one_pass(by_batch, settled)
            passes, since = passes + 1, since + 1
            before = {name: stored(layer) for name, layer in self.layers.items()}
            unsure = found.order[_prefix(found.order, set(settled)) + 1 :] if passes != self.max_passes else []
            changed, beyond = self._write(found, "sequential", unsure)
            residual = max(math.inf if n in beyond else self._change(n, before[n]) for n in found.ledger)
            changed |= by_batch  # what came behind them was not normalized by their buffers
            by_batch = set[str]()
            if found.poisons:  # what was estimated with these batches is estimated again without them
                settled, since = [], 0
                continue
            settled = found.order[: _prefix(found.order, set(found.order) - changed) + 1]
            most = len(found.ledger) + (25 if found.repeated else 1)  # a layer that feeds itself only converges
            close = not beyond and all(
                self._change(name, before[name]) <= max(4 * _eps(self.layers[name]), budget) for name in found.ledger
            )
            if close or since >= most or passes == self.max_passes:
                return Estimate("sequential", found.ledger, found.order, self.poisons, passes, residual)

    def _unusable(self) -> set[str]:
        """Layers whose buffers cannot be normalized by: not finite, or as they are before any training (0 and 1)."""
        found: set[str] = set()
        for name, layer in self.layers.items():
            mean, var = stored(layer)
            if not (torch.isfinite(mean) & torch.isfinite(var) & (var >= 0)).all() or ((mean == 0) & (var == 1)).all():
                found.add(name)
        return found

    def _change(self, name: str, before: tuple[Tensor, Tensor]) -> float:
        change = rms(output_error(*before, *stored(self.layers[name]), self.layers[name].eps))
        return math.inf if math.isnan(change) else change

    def _write(self, found: Pass, method: Method, unsure: Collection[str] = ()) -> tuple[set[str], set[str]]:
        """Write into the buffers; the layers that this changed, and those of `unsure` whose buffers cannot hold it.

        What layers before have to get right first may well be beyond the buffer's type until then: it is not written.
        """
        changed: set[str] = set()
        beyond: set[str] = set()
        for name in found.ledger:
            mean, var = statistics(name, found.ledger.layers[name], method)
            try:
                if write(name, self.layers[name], mean, var, found.ledger.batches):
                    changed.add(name)
            except NotFitting:
                if name not in unsure:
                    raise
                beyond.add(name)
        return changed | beyond, beyond

    def _expect_data(self, found: Pass) -> None:
        if found.ledger.batches == 0:
            if self.poisons:
                raise UsageError(
                    f"No batch can be used, every one holds values that are not finite: {self.poisons[0]}."
                )
            raise UsageError("The loader gave no batch: it is empty, or an iterator that was used up before.")
        if not len(found.ledger):
            raise UsageError("No BatchNorm ran in the forward pass, or the mask hides every value from all of them.")

    def _shards(self) -> int:
        return max(1, SHARDS // self.ranks.size)

    def _merge(self, found: Pass, length: int) -> Pass:
        """The same pass with the ledger of all ranks, and the poisons that are new."""
        names = list(self.layers)
        values = [float(found.ledger.batches), float(found.repeated), float(len(found.poisons))]
        for poison in found.poisons[:POISONS]:
            values += [float(poison.batch), float(names.index(poison.layer)), float(poison.channels[0])]
        values += [0.0] * (HEADER - len(values))
        values += [float(found.order.index(n) + 1 if n in found.order else 0) for n in names]
        parts = [torch.tensor(values, dtype=torch.float64)]
        if self.ranks.size > 1:
            parts += [_packed(found.ledger.layers.get(n), self.layers[n].num_features, self._shards()) for n in names]
            gathered = self.ranks.gather(torch.cat(parts))
            assert all(part.shape[0] == length for part in gathered)
        else:
            gathered = parts
        poisons: list[Poison] = []
        merged = Ledger()
        for rank, part in enumerate(gathered):
            count = int(part[2])
            if rank == self.ranks.rank:
                poisons += [replace(poison, rank=rank) for poison in found.poisons]
            else:
                entries = part[3 : 3 + 3 * min(count, POISONS)].reshape(-1, 3).int().tolist()
                poisons += [Poison(batch, names[layer], (channel,), rank) for batch, layer, channel in entries]
            ledger = found.ledger if self.ranks.size == 1 else _unpacked(part, self.layers, self._shards())
            merged.merge(replace(ledger, batches=int(part[0])))
        self.without |= {poison.batch for poison in found.poisons}
        self.poisons += poisons
        repeated = any(part[1] != 0 for part in gathered)
        order: dict[str, None] = {}  # the same everywhere, for what is decided by it; a rank may have had no batch
        for part in gathered:
            places = zip(part[HEADER : HEADER + len(names)].tolist(), names, strict=True)
            order.update(dict.fromkeys(name for place, name in sorted(places) if place))
        return Pass(merged, poisons, [n for n in order if n in merged.layers], repeated, found.read, found.enough)


def statistics(name: str, shards: Shards, method: str) -> tuple[Tensor, Tensor]:
    """Mean and variance [C] as `method` has them: M2/n of all data, or the mean of the batches' unbiased ones."""
    if method != "algorithm2":
        total = shards.total()
        return total.mean, total.var
    mean, var = shards.algorithm2()
    if var.isnan().any():
        raise NotEstimable(
            f"method='algorithm2' averages the variances of batches with m/(m − 1), and {name} was given a batch with "
            "one value a channel: use larger batches, drop the last one, or take another method."
        )
    return mean, var


def _prefix(order: Sequence[str], members: Collection[str]) -> int:
    """How many of the first layers are all members."""
    return next((i for i, name in enumerate(order) if name not in members), len(order))


def _eps(layer: BatchNorm) -> float:
    assert layer.running_var is not None
    return torch.finfo(layer.running_var.dtype).eps


def _packed(shards: Shards | None, channels: int, limit: int) -> Tensor:
    rows = torch.zeros(limit, 1 + 3 * channels, dtype=torch.float64)
    if shards is not None:
        few = Shards(channels, list(shards.parts))
        few.compact(limit)
        for row, (moments, within) in zip(rows, few.parts, strict=False):
            row.copy_(torch.cat([moments.n.reshape(1), moments.mean, moments.m2, within]))
    return rows.flatten()


def _unpacked(values: Tensor, layers: Mapping[str, BatchNorm], limit: int) -> Ledger:
    ledger = Ledger()
    at = HEADER + len(layers)
    for name, layer in layers.items():
        width = 1 + 3 * layer.num_features
        for row in values[at : at + limit * width].reshape(limit, width):
            n, mean, m2, within = row.split([1] + 3 * [layer.num_features])
            if float(n) > 0:
                shards = ledger.layers.setdefault(name, Shards(layer.num_features))
                shards.add(Moments(n.reshape(()), mean, m2), within)
        at += limit * width
    return ledger
