"""How far stored statistics (mean m_e, s_e = sqrt(var_e + eps)) are from exact ones (m_p, var_p, s_p), for a layer:

e^2 = var_p*(1/s_e - 1/s_p)^2 + ((m_p - m_e)/s_e)^2      E[dy^2] = gamma^2*e^2 of its output, for any distribution
drift = sqrt(sum gamma^2*e^2 / sum gamma^2)              in standard deviations of the output
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .. import pooling
from .layers import Layer, Left

__all__ = ["Drift", "Figures", "Measurement", "drift_of"]

Array = npt.NDArray[np.float64]


class Measurement(Protocol):
    """Values a channel, their mean and biased variance, and the standard errors of these two; see `Moments`."""

    @property
    def count(self) -> int: ...
    @property
    def mean(self) -> Array: ...
    @property
    def variance(self) -> Array: ...
    def errors(self) -> tuple[Array, Array]: ...


@dataclass(frozen=True, eq=False)
class Drift:
    """One layer's stored statistics against the measured ones.

    count: values a channel. shift: |mean - stored| in stored sigmas, the largest of the channels and their median.
    ratio: measured over stored variance (epsilon included), the least and the largest. drift, noise: see the module;
    noise is what the sample's size alone adds to it, NaN where one batch was all there was. worst: the channel that
    adds most to the drift. output, flips: by how much the model's output changes when this layer alone gets the
    measured statistics (root of the mean square), and the share of predictions (argmax over axis 1) that this changes;
    None where that was not tried, or there is no such output.
    """

    node: str
    channels: int
    count: int
    shift: float
    median_shift: float
    ratio: tuple[float, float]
    drift: float
    noise: float
    worst: int
    output: float | None = None
    flips: float | None = None

    @property
    def beyond_noise(self) -> float:
        """The drift without the part that so few samples explain."""
        noise = 0.0 if math.isnan(self.noise) else self.noise
        return math.sqrt(max(self.drift**2 - noise**2, 0.0)) if math.isfinite(self.drift) else self.drift

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        return {
            "node": self.node,
            "channels": self.channels,
            "count": self.count,
            "mean_shift": self.shift,
            "median_mean_shift": self.median_shift,
            "variance_ratio": list(self.ratio),
            "drift": self.drift,
            "noise": self.noise,
            "worst_channel": self.worst,
            "output_change": self.output,
            "flips": self.flips,
        }


@dataclass(frozen=True)
class Figures:
    """The layers in the graph's order, what was not measured, and how many rows of axis 0 were fed."""

    layers: tuple[Drift, ...]
    left: tuple[Left, ...]
    rows: int

    @property
    def worst(self) -> Drift | None:
        """The layer whose statistics are furthest off, beyond what chance explains; None where there is no layer."""
        return max(self.layers, key=lambda each: each.beyond_noise, default=None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe values."""
        return {
            "rows": self.rows,
            "layers": [layer.to_dict() for layer in self.layers],
            "left": [{"node": each.node, "why": each.why} for each in self.left],
        }


def output_error(variance: Array, mean: Array, stored_variance: Array, stored_mean: Array, epsilon: float) -> Array:
    """e^2 of each channel; infinite where the stored statistics are unusable."""
    with np.errstate(divide="ignore", invalid="ignore"):
        stored, exact = 1 / np.sqrt(stored_variance + epsilon), 1 / np.sqrt(variance + epsilon)
        exact = np.where(variance > 0, exact, stored)  # a constant has no spread
        error = pooling.output_error(stored_mean, stored, mean, variance, exact)
    return np.where(np.isfinite(error), error, np.inf)


def drift_of(layer: Layer, moments: Measurement) -> Drift:
    """The drift of `layer` on what it was fed."""
    mean, variance, gamma = (each.reshape(-1) for each in (moments.mean, moments.variance, layer.gamma))
    stored_mean, stored = layer.mean.reshape(-1), layer.variance.reshape(-1)
    error = output_error(variance, mean, stored, stored_mean, layer.epsilon)
    mean_error, variance_error = (each.reshape(-1) for each in moments.errors())
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        s_e, exact = np.sqrt(stored + layer.epsilon), variance + layer.epsilon
        shift, ratio = np.abs(mean - stored_mean) / s_e, exact / (stored + layer.epsilon)
        chance = np.square(mean_error / s_e)
        chance = chance + np.where(variance > 0, variance * np.square(variance_error) / (4 * exact**3), 0.0)
    weights = np.square(gamma)
    parts = np.where(weights > 0, weights * np.where(weights > 0, error, 0.0), 0.0)
    return Drift(
        layer.node,
        gamma.size,
        moments.count,
        _largest(shift),
        float(np.median(np.where(np.isnan(shift), np.inf, shift))),
        (float(np.nanmin(ratio)) if not np.isnan(ratio).all() else math.nan, _largest(ratio)),
        _rms(parts, weights),
        _rms(np.where(weights > 0, weights * chance, 0.0), weights),
        int(np.argmax(parts)),
    )


def _largest(values: Array) -> float:
    return math.inf if np.isnan(values).any() else float(values.max())


def _rms(parts: Array, weights: Array) -> float:
    return math.sqrt(float(parts.sum()) / float(weights.sum())) if weights.any() else 0.0
