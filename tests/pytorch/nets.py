"""Modules for the tests, with normalizations that are far from the identity, and what a fold of them must satisfy."""

from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils import _pytree as pytree

from bnfold import pytorch

Net = TypeVar("Net", bound=nn.Module)


def rough(module: Net, seed: int = 0) -> Net:
    """Statistics and parameters of both signs for every normalization; the module in eval mode."""
    random = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if not isinstance(part, nn.modules.batchnorm._BatchNorm):
            continue
        if part.running_mean is not None and part.running_var is not None:
            part.running_mean.normal_(generator=random)
            part.running_var.uniform_(0.3, 2.0, generator=random)
        if part.affine:
            part.weight.data.uniform_(0.5, 1.5, generator=random)
            part.weight.data[::2] *= -1
            part.bias.data.normal_(generator=random)
    return module.eval()


def normalizations(module: nn.Module) -> int:
    return sum(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())


def distance(first: nn.Module, second: nn.Module, *args: Any) -> float:
    """The largest difference of the outputs, relative to the largest output; both in float64 on the same input."""
    wide = [a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args]
    with torch.no_grad():
        ours, theirs = (pytree.tree_leaves(m.double()(*wide)) for m in (second, first))
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in zip(ours, theirs, strict=True))


def folded(module: Net, *args: Any, left: int = 0, **options: Any) -> pytorch.ModuleFold[Net]:
    """The fold of a module: the same function, its argument untouched, and `left` normalizations that stay."""
    before = {name: value.clone() for name, value in module.state_dict().items()}
    result = pytorch.fold(module, args, **options)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert len(before) == len(module.state_dict())
    assert len(result.report.unfolded) == left, result.report
    verdict = result.check()
    assert verdict, str(verdict)
    return result


def refused(module: Net, *args: Any, reason: str, says: str = "", left: int = 1) -> pytorch.ModuleFold[Net]:
    result = folded(module, *args, left=left)
    kept = result.report.unfolded[0]
    found = {kept.reason, *(other.reason for other in kept.alternatives)}
    texts = " ".join([kept.message, *(other.message for other in kept.alternatives)])
    assert reason in found, kept
    if says:
        assert says in texts, texts
    return result


__all__ = ["distance", "folded", "normalizations", "refused", "rough"]
