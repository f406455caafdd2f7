# torch leaves parts of its interface untyped: what comes from there is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""What a module is checked on: the caller's own inputs, then noise of their shapes, within ranges if they are given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from ..errors import UsageError
from .skeleton import Skeleton

GENERATED = ("normal", "large")
_LARGE = 10.0


def by_leaf(found: Skeleton, ranges: Mapping[str, tuple[float, float]]) -> dict[int, tuple[float, float]]:
    """The ranges by the number of the argument. Raises UsageError for a name that the program does not have."""
    specs = found.program.graph_signature.input_specs
    names = [spec.arg.name for spec in specs if spec.kind == InputKind.USER_INPUT]
    strange = [name for name in ranges if name not in names]
    if strange:
        raise UsageError(f"There is no input {strange[0]!r} to give a range; the inputs are {', '.join(names)}.")
    return {names.index(name): limits for name, limits in ranges.items()}


def sample(kind: str, number: int, seed: int, given: Any, within: Mapping[int, tuple[float, float]]) -> Any:
    """The caller's own inputs, or noise of their shapes; integers and the like stay, unless they have a range."""
    random = torch.Generator().manual_seed(seed * 9973 + number)
    leaves, structure = pytree.tree_flatten(given)

    def noise(value: Any, limits: tuple[float, float] | None) -> Any:
        if kind == "given" or not isinstance(value, torch.Tensor):
            return value
        if limits is not None:
            low, high = limits
            if not value.is_floating_point():
                made = torch.randint(int(low), int(high) + 1, value.shape, generator=random)
            else:
                made = low + (high - low) * torch.rand(value.shape, generator=random, dtype=torch.float64)
        elif value.is_floating_point():
            made = torch.randn(value.shape, generator=random, dtype=torch.float64) * (
                _LARGE if kind == "large" else 1.0
            )
        else:
            return value
        return made.to(value.dtype).to(value.device)

    def detached(value: Any) -> Any:
        return value.detach() if isinstance(value, torch.Tensor) else value

    return pytree.tree_unflatten([detached(noise(v, within.get(k))) for k, v in enumerate(leaves)], structure)
