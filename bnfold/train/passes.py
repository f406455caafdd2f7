# torch leaves parts of its interface untyped: what comes from them is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""One pass over the data: hooks take the moments of what goes into each BN, a batch at a time, and hold no activation.

A batch counts at every layer or at none: one in which a value is not finite is named (index, layer, channel) and left
out. One transfer from the device a batch, and none between ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from .drifting import expected_error
from .feeding import Forward, batches
from .ledger import Ledger
from .moments import Moments
from .state import BatchNorm

Mask = Callable[[Any], Tensor | Mapping[str, Tensor] | None]


@dataclass(frozen=True)
class Poison:
    """The first value that is not finite in a batch: where it went into a BN, and in which channels."""

    batch: int
    layer: str
    channels: tuple[int, ...]
    rank: int = 0

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.channels[:5])) + (", ..." if len(self.channels) > 5 else "")
        return (
            f"batch {self.batch}{f' of rank {self.rank}' if self.rank else ''}: a value that is not finite goes into "
            f"{self.layer or 'the model itself'}, channel{'s' * (len(self.channels) > 1)} {shown}"
        )


class Watch:
    """The hooks on `layers`, and what they saw since the last `take`.

    by_batch: names of BNs that normalize by the batch they are given instead of by their buffers, which are left alone.
    """

    def __init__(self, layers: Mapping[str, BatchNorm], by_batch: Collection[str] = ()) -> None:
        self.mask: Tensor | Mapping[str, Tensor] | None = None
        self.seen: list[tuple[str, Moments]] = []
        self.handles: list[Any] = []
        for name, layer in layers.items():
            self.handles.append(layer.register_forward_pre_hook(self._before(name, name in by_batch), with_kwargs=True))
            if name in by_batch:
                self.handles.append(layer.register_forward_hook(_put_back, always_call=True))

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _before(self, name: str, by_batch: bool) -> Callable[[BatchNorm, tuple[Any, ...], dict[str, Any]], None]:
        def hook(layer: BatchNorm, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x: Tensor = args[0] if args else next(iter(kwargs.values()))
            if x.dim() < 2 or x.shape[1] != layer.num_features:
                return  # the layer itself raises, and says better what is wrong
            with torch.no_grad():
                moments = Moments.of(x, None if self.mask is None else fitted(self.mask, name, x))
                self.seen.append((name, moments))
                if by_batch:
                    _normalize_by(layer, moments)

        return hook

    def take(self) -> list[tuple[str, Moments]]:
        """The moments of every call since the last time, in order, on the CPU."""
        seen, self.seen = self.seen, []
        if not seen or seen[0][1].mean.device.type == "cpu":
            return seen
        flat = torch.cat([part for _, m in seen for part in (m.n.reshape(1), m.mean, m.m2)]).cpu()
        sizes = [size for _, m in seen for size in (1, m.mean.shape[0], m.m2.shape[0])]
        parts = iter(flat.split(sizes))
        return [(name, Moments(next(parts).reshape(()), next(parts), next(parts))) for name, _ in seen]


def _normalize_by(layer: BatchNorm, moments: Moments) -> None:
    """Lend `layer` these statistics for one call in evaluation mode; `_put_back` takes them away."""
    buffers: Any = layer._buffers  # pyright: ignore[reportPrivateUsage] -- no public name
    layer.__dict__["_bnfold_lent"] = (buffers["running_mean"], buffers["running_var"])
    buffers["running_mean"] = moments.mean.to(buffers["running_mean"].dtype)
    buffers["running_var"] = moments.var.to(buffers["running_var"].dtype)


def _put_back(layer: nn.Module, *_: object) -> None:
    if (lent := layer.__dict__.pop("_bnfold_lent", None)) is not None:
        buffers: Any = layer._buffers  # pyright: ignore[reportPrivateUsage] -- no public name
        buffers["running_mean"], buffers["running_var"] = lent


def fitted(mask: Tensor | Mapping[str, Tensor], name: str, x: Tensor) -> Tensor | None:
    """`mask` in the shape that x [N, C, ...] has without its channels. Raises UsageError where it does not fit.

    [N, ...] as it is; [N, L] before a BN on [N·L, C] row by row; fewer axes than x has: the same along the others.
    """
    if isinstance(mask, Mapping):
        if name not in mask:
            return None
        mask = mask[name]
    wanted = (x.shape[0], *x.shape[2:])
    mask = mask.to(x.device, torch.bool)
    if tuple(mask.shape) == wanted:
        return mask
    if x.dim() == 2 and mask.numel() == x.shape[0]:
        return mask.reshape(-1)
    if mask.dim() < len(wanted) and tuple(mask.shape) == wanted[: mask.dim()]:
        return mask.reshape(*mask.shape, *[1] * (len(wanted) - mask.dim())).expand(wanted)
    raise UsageError(
        f"The mask of shape {list(mask.shape)} does not fit {name}, whose input is {list(x.shape)}: it must be "
        f"{list(wanted)}, or the masks a dict by the layer's name."
    )


def commit(
    ledger: Ledger, calls: Iterable[tuple[str, Moments]], settled: Collection[str] | None, batch: int
) -> Poison | None:
    """Add a batch's calls to `ledger`, or return the Poison in it and add none.

    settled: names of layers whose statistics are known to be right. A value that is not finite behind any other layer
    may be the fault of its statistics: then only what came before it is added. None: all of them are.
    """
    calls = list(calls)
    before: set[str] = set()
    good: list[tuple[str, Moments]] = []
    for name, moments in calls:
        finite = torch.isfinite(moments.mean) & torch.isfinite(moments.m2)
        if not finite.all():
            if settled is None or before <= set(settled):
                return Poison(batch, name, tuple((~finite).nonzero().flatten().tolist()))
            break
        before.add(name)
        good.append((name, moments))
    for name, moments in good:
        ledger.add(name, moments)
    ledger.batches += 1
    return None


@dataclass
class Pass:
    """What one pass found. `order`: the layers that ran, in order; `repeated`: whether one ran twice in a batch."""

    ledger: Ledger = field(default_factory=Ledger)
    poisons: list[Poison] = field(default_factory=list[Poison])
    order: list[str] = field(default_factory=list[str])
    repeated: bool = False
    read: int = 0
    enough: bool = False


def run(
    model: nn.Module,
    layers: Mapping[str, BatchNorm],
    loader: Iterable[Any],
    forward: Forward,
    *,
    by_batch: Collection[str] = (),
    settled: Collection[str] | None = None,
    without: Collection[int] = (),
    limit: int | None = None,
    device: torch.device | str | int | None = None,
    mask: Mask | None = None,
    tolerance: float | None = None,
    keep: Callable[[int], bool] | None = None,
) -> Pass:
    """Run the model over the batches and keep the moments of what each BN is given.

    Batches with an index in `without`, or for which keep(index) is false, are read and left out.

    tolerance: stop once every BN's expected output error is at most that (its RMS over channels).
    """
    found = Pass()
    ran: dict[str, None] = {}
    with Watch(layers, by_batch) as watch:
        for index, batch in enumerate(batches(loader, limit, device)):
            found.read = index + 1
            if index in without or (keep is not None and not keep(index)):
                continue
            watch.mask = None if mask is None else mask(batch)
            forward(model, batch)
            calls = watch.take()
            poison = commit(found.ledger, calls, settled, index)
            if poison is not None:
                found.poisons.append(poison)
                continue
            ran.update(dict.fromkeys(name for name, _ in calls))
            found.repeated |= len(calls) > len({name for name, _ in calls})
            if tolerance is not None and _check_now(found.ledger.batches):
                errors = [expected_error(layers[n], found.ledger.layers[n]) for n in found.ledger]
                if errors and max(errors) <= tolerance:
                    found.enough = True
                    break
    found.order = list(ran)
    return found


def _check_now(count: int) -> bool:
    """After 4 batches, then at steps of an eighth: the errors shrink like 1/√batches."""
    return count >= 4 and count % max(1, count // 8) == 0
