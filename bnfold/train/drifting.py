# torch leaves parts of its interface untyped: what comes from them is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""What wrong statistics do to a BN's output: stored (μ_e, s_e = √(σ_e² + ε)) against the data's (μ_p, σ_p², s_p).

E[Δy²] = γ²·(σ_p²·(1/s_e − 1/s_p)² + ((μ_p − μ_e)/s_e)²), exact for any distribution; σ_p² is the biased variance.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import pooling
from .functional import inverse_std
from .ledger import Shards
from .moments import Moments
from .state import BatchNorm


def gain(layer: BatchNorm) -> Tensor:
    """γ, float64 [C] on the CPU; ones where the layer has none."""
    if layer.weight is None:  # pyright: ignore[reportUnnecessaryComparison] - affine=False
        return torch.ones(layer.num_features, dtype=torch.float64)
    return layer.weight.detach().double().cpu()


def stored(layer: BatchNorm) -> tuple[Tensor, Tensor]:
    """Copies of running_mean and running_var, float64 [C] on the CPU."""
    mean, var = layer.running_mean, layer.running_var
    assert mean is not None and var is not None
    return mean.detach().to("cpu", torch.float64, copy=True), var.detach().to("cpu", torch.float64, copy=True)


def output_error(
    stored_mean: Tensor, stored_var: Tensor, mean: Tensor, var: Tensor, eps: float, weight: Tensor | float = 1.0
) -> Tensor:
    """E[Δy²] a channel: the mean square by which y is off that was normalized by the stored mean and variance.

    mean, var: those of the data, float64 [C]; var biased. With weight left out, of x̂ instead of y.
    """
    error = pooling.output_error(stored_mean, inverse_std(stored_var, eps), mean, var, inverse_std(var, eps))
    return weight * weight * error


def rms(squares: Tensor) -> float:
    """The root of the mean over channels."""
    return float(squares.mean().sqrt()) if squares.numel() else 0.0


def layer_error(layer: BatchNorm, moments: Moments, *, weighted: bool = True) -> float:
    """RMS over channels of how far the layer's output is off by its buffers; with weighted=False, of x̂."""
    weight = gain(layer) if weighted else 1.0
    return rms(output_error(*stored(layer), moments.mean, moments.var, layer.eps, weight))


def expected_error(layer: BatchNorm, shards: Shards) -> float:
    """RMS over channels of the output error to be expected because the data was finite.

    The standard errors of mean and variance, from how they differ between batches, through the formula above to first
    order: γ²·(SE(μ)²/s² + σ²·SE(σ²)²/(4s⁶)). Infinite from fewer than two batches.
    """
    mean_error, var_error = shards.standard_errors()
    var = shards.total().var
    inverse = inverse_std(var, layer.eps)
    squares = (mean_error * inverse).square() + var * var_error.square() * inverse**6 / 4
    squares = torch.where(inverse == 0, torch.zeros_like(squares), squares)
    return rms(gain(layer).square() * squares)
