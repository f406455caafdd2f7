# torch leaves parts of its interface untyped: what comes from them is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""n, mean and M2 = Σ(x − mean)² of each channel, in float64, and their merging (Chan, Golub & LeVeque 1979).

δ = m_b − m_a,  n = n_a + n_b,  m = m_a + δ·n_b/n,  M2 = M2_a + M2_b + δ²·n_a·n_b/n: the mean of the variances
and the variance of the means. E[x²] − E[x]² is never formed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UsageError
from ..pooling import pooled

CHUNK = {"cpu": 1 << 16}  # values converted to float64 at a time: they stay in a CPU's cache
ELSEWHERE = 1 << 26


@dataclass(frozen=True)
class Moments:
    """`n` values a channel, float64 []; their mean and M2, float64 [C]. All three on one device."""

    n: Tensor
    mean: Tensor
    m2: Tensor

    @staticmethod
    def of(x: Tensor, mask: Tensor | None = None) -> Moments:
        """The moments of x [N, C, ...] a channel, over every other axis, whatever x's type and memory format.

        mask: bool, of x's shape without the channel axis; only values where it is true count.
        """
        x = x.detach()
        if mask is not None:
            x = x.movedim(1, -1)[mask]
        channels = x.shape[1]
        count = x.numel() // channels if channels else 0
        n = torch.tensor(float(count), dtype=torch.float64, device=x.device)
        if count == 0:
            zeros = torch.zeros(channels, dtype=torch.float64, device=x.device)
            return Moments(n, zeros, zeros.clone())
        if x.dim() > 2 and not x.is_contiguous() and x.movedim(1, -1).is_contiguous():
            x = x.movedim(1, -1).reshape(-1, channels)  # channels_last: a view
        x = x.reshape(x.shape[0], channels, -1)
        step = max(1, CHUNK.get(x.device.type, ELSEWHERE) // (channels * x.shape[2]))
        # Sums about the mean of the first chunk. It is one of k chunks, so that what S1²/n takes away from S2 below is
        # at most k times what is left: k roundings are lost, whatever the offset.
        shift = x[:step].double().sum(2).sum(0) / (min(step, x.shape[0]) * x.shape[2])
        s1: Tensor = torch.zeros_like(shift)
        s2: Tensor = torch.zeros_like(shift)
        scratch = torch.empty((min(step, x.shape[0]), *x.shape[1:]), dtype=torch.float64, device=x.device)
        for part in x.split(step):
            d = scratch[: part.shape[0]].copy_(part).sub_(shift.unsqueeze(1))
            s1 += d.sum(2).sum(0)
            s2 += d.square_().sum(2).sum(0)
        # inf − inf: clamp keeps a NaN, so that a value that is not finite always shows in M2
        return Moments(n, shift + s1 / count, (s2 - s1.square() / count).clamp_(min=0))

    @property
    def var(self) -> Tensor:
        """M2/n, the variance of just these values: float64 [C]; 0 where there are none."""
        return self.m2 / self.n.clamp(min=1)

    @property
    def unbiased_var(self) -> Tensor:
        """M2/(n − 1): float64 [C]; NaN for a single value, of which it cannot be known."""
        return self.m2 / (self.n - 1)

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets of values together."""
        return merged([self, other])


def merged(parts: Sequence[Moments]) -> Moments:
    """The moments of all parts together, by the pairwise formula applied in order."""
    if not parts:
        raise UsageError("There are no moments to merge.")
    first, *rest = parts
    whole = (first.n, first.mean, first.m2)
    for part in rest:
        if part.mean.shape != first.mean.shape:
            raise UsageError(f"Moments of {part.mean.shape[0]} channels cannot be merged with {first.mean.shape[0]}.")
        whole = pooled(whole, (part.n, part.mean, part.m2))
    return Moments(*whole)
