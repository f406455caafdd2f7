# torch leaves parts of its interface untyped: what comes from them is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Compute the population statistics of a trained model again, from data, and write them into its BNs.

All or nothing: any exception puts back buffers, modes, momenta and random state as they were.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .choosing import Choice, Score, choose
from .drifting import expected_error, gain, output_error, rms, stored
from .feeding import Forward, default_forward
from .gather import Ranks
from .ledger import Ledger
from .methods import METHODS, Estimate, Estimator, Method, statistics
from .passes import Mask, Poison
from .state import BatchNorm, Buffers, RandomState, batch_norms, evaluating, unwrapped, write


@dataclass(frozen=True)
class Refreshed:
    """One layer: how many values a channel it was estimated from, and errors of its output (RMS over channels).

    before: by how much the statistics that were there put it off. expected: what is still to be expected, because the
    data was finite (standard error); infinite for a single batch.
    """

    name: str
    n: int
    before: float
    expected: float


@dataclass
class RefreshReport:
    """What `refresh` did. `str()` is a table; `ledger` holds the exact statistics, float64."""

    method: str
    layers: list[Refreshed]
    ledger: Ledger
    batches: int
    passes: int
    residual: float | None
    quarantined: list[Poison]
    never_ran: list[str]
    left_alone: dict[str, str]
    why: str | None = None
    choice: Choice | None = None
    _undo: tuple[Buffers, dict[str, BatchNorm]] | None = field(default=None, repr=False)

    def undo(self) -> None:
        """Put back, bit for bit and in place, the statistics that were there before."""
        if self._undo is not None:
            saved, layers = self._undo
            saved.restore(layers)

    def save(self, path: str | Path) -> None:
        """Write the ledger as safetensors; `Ledger.load(path)` reads it, `ledger.merge` adds others to it."""
        self.ledger.save(path)

    def __str__(self) -> str:
        passes = f"{self.passes} pass{'es' * (self.passes > 1)}"
        lines = [f"{self.method}: {len(self.layers)} BatchNorms from {self.batches} batches in {passes}"]
        if self.residual is not None:
            lines[0] += f"; the last pass changed x̂ by {self.residual:.1e} at most"
        if self.why:
            lines.append(f"method: {self.why}")
        width = max([4, *(len(row.name) for row in self.layers)])
        lines.append(f"{'layer':{width}}  values/channel  output error before  expected now")
        for row in sorted(self.layers, key=lambda row: -row.before):
            lines.append(f"{row.name:{width}}  {row.n:14,}  {row.before:19.3g}  {row.expected:12.2g}")
        lines += [f"left alone: {name} {why}" for name, why in self.left_alone.items()]
        lines += [f"never ran, left as it was: {name}" for name in self.never_ran]
        lines += [f"quarantined: {poison}" for poison in self.quarantined]
        return "\n".join(lines)


def refresh(
    model: nn.Module,
    loader: Iterable[Any],
    method: Method | Literal["auto"] = "sequential",
    *,
    forward: Forward | None = None,
    device: torch.device | str | int | None = None,
    max_batches: int | None = None,
    tolerance: float | None = None,
    on_nonfinite: Literal["quarantine", "error"] = "quarantine",
    group: Any = "auto",
    timeout: float | None = None,
    mask: Mask | None = None,
    skip: tuple[str, ...] = (),
    max_passes: int | None = None,
    held_out: Iterable[Any] | None = None,
    score: Score | None = None,
) -> RefreshReport:
    """Estimate mean and variance of what goes into every BatchNorm of `model`, and write them into its buffers.

    method: "sequential", layer after layer by passes in evaluation mode, until they are self-consistent;
        "concurrent", one pass in evaluation mode, all layers at once; "pooled", one pass in which every BN normalizes
        by the batch, as in training, and all values are pooled; "algorithm2", the same with the mean of the batches'
        unbiased variances (Ioffe & Szegedy 2015); "auto", whichever is better on held-out data, and says why.
    forward: called as forward(model, batch); by default a tensor is passed as it is, of a tuple the first item, a dict
        as keywords. device: where each batch is moved to first.
    max_batches: how many of the batches to read. tolerance: stop reading once every BN's expected output error (RMS
        over channels, in units of that output) is at most this.
    on_nonfinite: "quarantine" leaves out, and names, a batch in which a value is not finite; "error" raises.
    group: "auto", a process group, or None for this process alone. Statistics of all ranks are merged exactly, by one
        gather a pass, so that ranks may have any number of batches. timeout: seconds to wait there for other ranks.
    mask: mask(batch) gives a bool tensor [N, ...] of the values that count, or a dict of them by layer.
    skip: glob patterns of layers to leave alone. A BN in evaluation mode in a model in training mode is left alone too.
    held_out, score: for "auto". Batches (inputs, targets), by default every fifth of `loader`; score(output, batch)
        gives one number a sample, more is better, by default right or wrong, or the negative squared error.

    The buffers change in place; modes, momenta, random state and all other buffers are as before, and if anything
    raises all of them are. Raises UsageError: no BatchNorm, an empty loader, an iterator where several passes are
    needed, a value that does not fit into a buffer's type; BnfoldError if another rank is gone.
    """
    _expect(method, on_nonfinite, max_batches, max_passes, tolerance)
    inner = unwrapped(model)
    layers, alone = batch_norms(inner, skip)
    saved, random = Buffers.of(inner), RandomState(loader)
    choice: Choice | None = None
    estimator = Estimator(
        inner, layers, loader, forward or default_forward, saved, random, Ranks(group, timeout), device, mask,
        max_batches, tolerance, max_passes, on_nonfinite == "error",
    )  # fmt: skip
    before = {name: stored(layer) for name, layer in layers.items()}
    try:
        with evaluating(inner):
            if method == "auto":
                choice = choose(estimator, held_out, score)
                if estimator.ranks.rank == 0:
                    print(choice.why, file=sys.stderr)
            chosen = method if method != "auto" else choice.method if choice else "sequential"
            estimate = estimator.estimate("sequential" if chosen == "stored" else chosen)
            if chosen == "stored":
                saved.restore(layers)
        saved.restore(layers, all_but=True)
    except BaseException:
        saved.restore()
        raise
    finally:
        random.restore()
    report = _report(estimate, layers, before, alone)
    report.method, report.choice = chosen, choice
    report.why = choice.why if choice else None
    report._undo = (saved, layers)  # pyright: ignore[reportPrivateUsage] -- for `undo`, set last
    return report


def update_bn(
    loader: Iterable[Any], model: nn.Module, device: torch.device | str | int | None = None
) -> RefreshReport | None:
    """torch.optim.swa_utils.update_bn's name and arguments: `refresh` in one pass by method "pooled".

    None, and nothing read, for a model without BatchNorm; all errors are those of `refresh`.
    """
    if not any(isinstance(layer, BatchNorm) for layer in unwrapped(model).modules()):
        return None
    return refresh(model, loader, "pooled", device=device)


def apply(ledger: Ledger, model: nn.Module, *, method: Literal["pooled", "algorithm2"] = "pooled") -> RefreshReport:
    """Write the statistics of a ledger (collected, loaded, merged) into the BNs of these names, all or none.

    Raises UsageError if the ledger names a layer that the model does not have, or has with other channels.
    """
    inner = unwrapped(model)
    layers, alone = batch_norms(inner)
    for name, shards in ledger.layers.items():
        if name in alone:
            raise UsageError(f"The ledger has statistics of {name}, which {alone[name]}.")
        if name not in layers:
            raise UsageError(f"The ledger has statistics of {name}, and the model no BatchNorm of that name.")
        if layers[name].num_features != shards.channels:
            raise UsageError(f"{name} has {layers[name].num_features} channels, and {shards.channels} in the ledger.")
    if not len(ledger):
        raise UsageError("The ledger is empty: there are no statistics to write.")
    before = {name: stored(layer) for name, layer in layers.items()}
    saved = Buffers.of(inner)
    try:
        for name, shards in ledger.layers.items():
            write(name, layers[name], *statistics(name, shards, method), ledger.batches)
    except BaseException:
        saved.restore()
        raise
    report = _report(Estimate(method, ledger, list(ledger), [], 1), layers, before, alone)
    report._undo = (saved, layers)  # pyright: ignore[reportPrivateUsage] -- for `undo`, set last
    return report


def _expect(
    method: str, on_nonfinite: str, max_batches: int | None, max_passes: int | None, tolerance: float | None
) -> None:
    if method not in (*METHODS, "auto"):
        raise UsageError(f"method={method!r} is none of {', '.join(METHODS)}, auto.")
    if on_nonfinite not in ("quarantine", "error"):
        raise UsageError(f"on_nonfinite={on_nonfinite!r} is neither 'quarantine' nor 'error'.")
    for what, value in (("max_batches", max_batches), ("max_passes", max_passes)):
        if value is not None and value < 1:
            raise UsageError(f"{what}={value}: it must be at least 1.")
    if tolerance is not None and not tolerance > 0:
        raise UsageError(f"tolerance={tolerance}: an output error to stop at is above 0.")


def _report(
    estimate: Estimate, layers: dict[str, BatchNorm], before: dict[str, tuple[Tensor, Tensor]], alone: dict[str, str]
) -> RefreshReport:
    rows: list[Refreshed] = []
    for name in estimate.order:
        layer, shards = layers[name], estimate.ledger.layers[name]
        mean, var = statistics(name, shards, estimate.method)
        error = rms(output_error(*before[name], mean, var, layer.eps, gain(layer)))
        error = math.inf if math.isnan(error) else error  # buffers that were not finite
        rows.append(Refreshed(name, shards.n, error, expected_error(layer, shards)))
    never = [name for name in layers if name not in estimate.ledger.layers]
    return RefreshReport(
        estimate.method, rows, estimate.ledger, estimate.ledger.batches, estimate.passes, estimate.residual,
        estimate.poisons, never, alone,
    )  # fmt: skip
