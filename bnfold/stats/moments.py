"""The moments of a channel, in float64 and merged by Chan: delta = m_b - m_a, m = m_a + delta*n_b/n,
M2 = M2_a + M2_b + delta^2*n_a*n_b/n: the mean of the variances plus the variance of the means.

The scatter of the batches gives the standard error of both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..pooling import pooled

__all__ = ["Moments"]

Array = npt.NDArray[np.float64]
_BLOCK = 1 << 20  # elements that are taken to float64 at once


class Moments:
    """Count, mean and sum of squared deviations of each channel over all batches `add`ed. `mean`, `m2`: the channels'
    shape; before the first batch both are scalars and `count` is 0.
    """

    def __init__(self) -> None:
        self.count = 0
        self.batches = 0
        self.mean: Array = np.zeros(())
        self.m2: Array = np.zeros(())
        self._origin: Array | None = None  # the first batch's mean, so that the sums below do not cancel
        self._weights = 0.0
        self._sums: list[Array] = []  # of n^2 times d, d^2, u, u*d, u^2, for a batch's d = m - origin, u = v + d^2

    @property
    def variance(self) -> Array:
        """The population variance (biased), which is what inference divides by."""
        return self.m2 / max(self.count, 1)

    def add(self, x: npt.NDArray[Any], axes: tuple[int, ...]) -> None:
        """One batch: everything but the channels is along `axes`. An empty one counts for nothing."""
        count, mean, m2 = 0, np.zeros(()), np.zeros(())
        rows = max(1, _BLOCK * len(x) // max(x.size, 1)) if x.ndim else 1
        for start in range(0, len(x), rows):
            count, mean, m2 = pooled((count, mean, m2), _measured(x[start : start + rows], axes))
        if not count:
            return
        self._scatter(count, mean, m2 / count)
        self.count, self.mean, self.m2 = pooled((self.count, self.mean, self.m2), (count, mean, m2))
        self.batches += 1

    def errors(self) -> tuple[Array, Array]:
        """The standard errors of mean and variance, from how far the batches lie apart; NaN with fewer than two."""
        if self.batches < 2 or self._origin is None:
            unknown = np.full(self.mean.shape, np.nan)
            return unknown, unknown
        d1, d2, u1, ud, u2 = self._sums
        w, delta, target = self._weights, self.mean - self._origin, self.variance
        means = d2 - 2 * delta * d1 + delta**2 * w
        # q = u - 2*delta*d + delta^2 is a batch's second moment about the mean of all; the sum of n^2*(q - target)^2
        c = delta**2 - target
        squares = u2 + 4 * delta**2 * d2 + c**2 * w - 4 * delta * ud + 2 * c * u1 - 4 * delta * c * d1
        share = self.batches / (self.batches - 1) / self.count**2
        return np.sqrt(np.maximum(means, 0) * share), np.sqrt(np.maximum(squares, 0) * share)

    def _scatter(self, count: int, mean: Array, variance: Array) -> None:
        if self._origin is None:
            self._origin = mean
            self._sums = [np.zeros_like(mean) for _ in range(5)]
        d = mean - self._origin
        u, weight = variance + d**2, float(count) ** 2
        self._weights += weight
        for total, value in zip(self._sums, (d, d**2, u, u * d, u**2), strict=True):
            total += weight * value


def _measured(x: npt.NDArray[Any], axes: tuple[int, ...]) -> tuple[int, Array, Array]:
    exact: Array = x.astype(np.float64)
    count = int(np.prod([x.shape[axis] for axis in axes], dtype=np.int64))
    if not count or not x.size:
        return 0, np.zeros(()), np.zeros(())
    mean = exact.mean(axis=axes, keepdims=True)
    exact -= mean
    rest = exact.mean(axis=axes, keepdims=True)  # what rounding left of the mean
    exact -= rest
    m2 = np.square(exact, out=exact).sum(axis=axes)
    return count, np.squeeze(mean + rest, axes), m2
