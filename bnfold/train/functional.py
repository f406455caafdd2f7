# torch leaves parts of its interface untyped: what comes from them is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The transform of Ioffe & Szegedy 2015, y = γ·(x − μ)/√(σ² + ε) + β, and its gradients by the chain rule (section 3).

∂x̂ = g·γ;  ∂σ² = Σ∂x̂·(x − μ)·(−½)(σ² + ε)^(−3/2);  ∂μ = −Σ∂x̂/√(σ² + ε) + ∂σ²·Σ−2(x − μ)/m;
∂x = ∂x̂/√(σ² + ε) + ∂σ²·2(x − μ)/m + ∂μ/m;  ∂γ = Σg·x̂;  ∂β = Σg
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UsageError


class Transformed(NamedTuple):
    """y like x; mean and var, [C], are those that x was normalized by."""

    y: Tensor
    mean: Tensor
    var: Tensor


class Gradients(NamedTuple):
    """The loss's gradients: `x` of x's shape; `weight` (∂γ) and `bias` (∂β), each [C]."""

    x: Tensor
    weight: Tensor
    bias: Tensor


def batch_norm_transform(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    mean: Tensor | None = None,
    var: Tensor | None = None,
    eps: float = 1e-5,
) -> Transformed:
    """BN of x [N, C, ...] with γ = weight and β = bias, each [C]; 1 and 0 if left out.

    Normalizes by mean and var, [C] (inference), or without them by the batch's own, the biased variance (training).
    eps may be 0: a channel whose variance is 0 is then x̂ = 0, as it is for every eps > 0 in training.
    """
    axes = _axes(x)
    if mean is None or var is None:
        mean = x.mean(axes)
        var = (x - _shaped(mean, x)).square().mean(axes)
    y = (x - _shaped(mean, x)) * _shaped(inverse_std(var, eps), x)
    if weight is not None:
        y = y * _shaped(weight, x)
    if bias is not None:
        y = y + _shaped(bias, x)
    return Transformed(y, mean, var)


def batch_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None = None,
    *,
    mean: Tensor | None = None,
    var: Tensor | None = None,
    eps: float = 1e-5,
    total: Callable[[Tensor], Tensor] | None = None,
) -> Gradients:
    """The gradients of the training transform of x [N, C, ...], given `grad`, the loss's gradient at y.

    mean, var: the batch's own, [C], as `batch_norm_transform` returns them; computed from x where left out. Through
    both of them the gradient flows too: dropping those two terms is the mistake that section 2 of the paper is about.
    total: where x is one part of a batch, its sums, [4, C], to those of the whole batch, whose mean and var must then
    be given. ∂γ and ∂β are those of the part.
    """
    axes = _axes(x)
    if mean is None or var is None:
        if total is not None:
            raise UsageError("batch_norm_backward with total= needs the mean and var of the whole batch.")
        _, mean, var = batch_norm_transform(x, eps=eps)
    centred = x - _shaped(mean, x)
    inverse = inverse_std(var, eps)
    grad_hat = grad if weight is None else grad * _shaped(weight, x)
    m = torch.full_like(mean, x.numel() // x.shape[1])
    sums = torch.stack([(grad_hat * centred).sum(axes), grad_hat.sum(axes), centred.sum(axes), m])
    by_centred, by_one, offset, m = (sums if total is None else total(sums)).unbind()
    grad_var = by_centred * -0.5 * inverse**3
    grad_mean = -by_one * inverse + grad_var * -2 * offset / m
    grad_x = grad_hat * _shaped(inverse, x) + _shaped(grad_var / m, x) * 2 * centred + _shaped(grad_mean / m, x)
    return Gradients(grad_x, (grad * centred * _shaped(inverse, x)).sum(axes), grad.sum(axes))


def inverse_std(var: Tensor, eps: float) -> Tensor:
    """1/√(σ² + ε), and 0 where that would be 1/0: with ε = 0 a constant channel has nothing to be scaled up."""
    shifted = var + eps
    return torch.where(shifted == 0, 0, torch.rsqrt(torch.where(shifted == 0, 1, shifted)))


def _axes(x: Tensor) -> list[int]:
    return [axis for axis in range(x.dim()) if axis != 1]


def _shaped(value: Tensor, x: Tensor) -> Tensor:
    return value.reshape(1, -1, *[1] * (x.dim() - 2))
