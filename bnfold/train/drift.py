# torch leaves parts of its interface untyped: what comes from them is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""How wrong the statistics in a trained model are, and what that does to its output. Nothing is changed.

Stored against exact, layer by layer: E[Δy²] = γ²·(σ_p²·(1/s_e − 1/s_p)² + ((μ_p − μ_e)/s_e)²); and what the network's
output does when that one layer's statistics are replaced.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .choosing import first_tensor
from .drifting import expected_error, layer_error
from .feeding import Forward, again, batches, default_forward
from .gather import Ranks
from .methods import Estimator, statistics
from .passes import Mask, Poison
from .state import Buffers, RandomState, batch_norms, evaluating, unwrapped, write

SWAP_BATCHES = 8


@dataclass(frozen=True)
class LayerDrift:
    """One BN. Errors are RMS over channels.

    error: by how much the stored statistics put its output off; relative: the same of x̂, whose scale is 1.
    residual: the same of x̂, its buffers against its own inputs as they are in the model as it stands.
    expected: what to expect of `error` were the stored statistics right, because the data was finite.
    network: RMS change of the model's output when this layer alone gets the exact statistics; flips: the share of
    predictions (argmax over axis 1) that this changes, None where the output has no such axis.
    """

    name: str
    error: float
    relative: float
    residual: float
    expected: float
    network: float
    flips: float | None


@dataclass(frozen=True)
class DriftReport:
    """`layers`, the worst first; `network` and `flips` with the exact statistics everywhere; `str()` is a table.

    residual: the largest of the layers' self-consistency residuals; no labels are needed for it, and it is zero for
    sequential statistics of the same data. exact: mean and variance [C] by layer, float64. worst: the largest
    `relative`, which tells stale statistics from good ones whatever the scale of the network.
    """

    layers: list[LayerDrift]
    residual: float
    worst: float
    network: float
    flips: float | None
    batches: int
    exact: dict[str, tuple[Tensor, Tensor]]
    quarantined: list[Poison]
    never_ran: list[str]
    left_alone: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: everything but the statistics themselves."""
        plain = asdict(self)
        plain.pop("exact")
        return plain

    def __str__(self) -> str:
        head = f"drift of {len(self.layers)} BatchNorms over {self.batches} batches: residual {self.residual:.3g}"
        lines = [f"{head}; with exact statistics the output changes by {self.network:.3g}{_flips(self.flips)}"]
        width = max([5, *(len(row.name) for row in self.layers)])
        lines.append(f"{'layer':{width}}  output error  of x̂      residual  expected  network's output")
        for row in self.layers:
            figures = f"{row.error:12.3g}  {row.relative:8.2g}  {row.residual:8.2g}  {row.expected:8.2g}"
            lines.append(f"{row.name:{width}}  {figures}  {row.network:.3g}{_flips(row.flips)}")
        lines += [f"left alone: {name} {why}" for name, why in self.left_alone.items()]
        lines += [f"never ran: {name}" for name in self.never_ran]
        lines += [f"quarantined: {poison}" for poison in self.quarantined]
        return "\n".join(lines)


def drift(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    forward: Forward | None = None,
    device: torch.device | str | int | None = None,
    max_batches: int | None = None,
    mask: Mask | None = None,
    skip: tuple[str, ...] = (),
    group: Any = "auto",
    timeout: float | None = None,
    max_passes: int | None = None,
) -> DriftReport:
    """Compare the statistics stored in `model` with those of the data (method "sequential"). Changes nothing.

    The arguments are those of `refresh`, and so are the errors. The network's output is compared over the first 8
    batches (of this rank). Raises UsageError for an iterator: the data is read several times.
    """
    inner = unwrapped(model)
    layers, alone = batch_norms(inner, skip)
    saved, random = Buffers.of(inner), RandomState(loader)
    if not again(loader):
        raise UsageError(
            "drift reads the data several times, and an iterator can be read once: pass a list or a loader."
        )
    run = forward or default_forward
    estimator = Estimator(
        inner, layers, loader, run, saved, random, Ranks(group, timeout), device, mask, max_batches,
        max_passes=max_passes,
    )  # fmt: skip

    def outputs() -> list[Tensor]:
        random.restore()
        limit = SWAP_BATCHES if max_batches is None else min(SWAP_BATCHES, max_batches)
        found = [
            first_tensor(run(inner, batch))
            for index, batch in enumerate(batches(loader, limit, device))
            if index not in estimator.without
        ]
        return [output.detach().clone() for output in found if output is not None]

    try:
        with evaluating(inner):
            first = estimator.one_pass(settled=())
            residuals = {n: layer_error(layers[n], first.ledger[n], weighted=False) for n in first.ledger}
            estimate = estimator.estimate("sequential")
            exact = {n: statistics(n, estimate.ledger.layers[n], "sequential") for n in estimate.order}
            corrected = outputs()
            saved.restore()
            reference = outputs()
            rows: list[LayerDrift] = []
            for name, (mean, var) in exact.items():
                layer = layers[name]
                write(name, layer, mean, var)
                network, flips = _difference(reference, outputs())
                saved.restore({name: layer})
                moments = estimate.ledger[name]
                error, relative = (layer_error(layer, moments, weighted=w) for w in (True, False))
                expected = expected_error(layer, estimate.ledger.layers[name])
                residual = _number(residuals.get(name, math.nan))
                rows.append(LayerDrift(name, _number(error), _number(relative), residual, expected, network, flips))
    finally:
        saved.restore()
        random.restore()
    network, flips = _difference(reference, corrected)
    rows.sort(key=lambda row: (-row.error, -row.network))
    return DriftReport(
        rows, max(row.residual for row in rows), max(row.relative for row in rows), network, flips,
        estimate.ledger.batches, exact, estimate.poisons, [n for n in layers if n not in exact], alone,
    )  # fmt: skip


def _difference(before: list[Tensor], after: list[Tensor]) -> tuple[float, float | None]:
    """RMS difference, and the share of predictions that differ."""
    if not before:
        return 0.0, None
    squares = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(before, after, strict=True))
    change = _number((squares / sum(a.numel() for a in before)) ** 0.5)
    if any(a.dim() < 2 or a.shape[1] < 2 for a in before):
        return change, None
    flipped = sum(int((a.argmax(1) != b.argmax(1)).sum()) for a, b in zip(before, after, strict=True))
    return change, flipped / sum(a.argmax(1).numel() for a in before)


def _number(value: float) -> float:
    """Infinite instead of NaN: statistics that are not finite are off by more than anything."""
    return math.inf if math.isnan(value) else value


def _flips(share: float | None) -> str:
    return "" if share is None else f", {share:.1%} of predictions flip"
