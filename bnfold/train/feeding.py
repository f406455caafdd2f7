# torch leaves parts of its interface untyped: what comes from them is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""From a loader's batches to the model: what is passed on, to which device, and how many of its rows are real.

A tensor goes in as it is, of a tuple or list the first item, a dict as keywords. torch's DistributedSampler repeats
samples until every rank has equally many; those rows are cut off, so that no sample counts twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DistributedSampler

from ..errors import UsageError

Forward = Callable[[nn.Module, Any], Any]


def default_forward(model: nn.Module, batch: Any) -> Any:
    """model(batch), model(batch[0]) or model(**batch)."""
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, tuple | list):
        if not batch:
            raise UsageError("A batch is an empty tuple: there is nothing to pass to the model.")
        return model(batch[0])
    return model(batch)


def moved(value: Any, device: torch.device | str | int) -> Any:
    """`value` with every tensor in it, at any depth of tuples, lists and dicts, on `device`."""
    return _mapped(value, lambda tensor: tensor.to(device))


def batches(loader: Iterable[Any], limit: int | None, device: torch.device | str | int | None) -> Iterator[Any]:
    """The batches of one pass, at most `limit` (from the first), without the rows that a sampler repeated."""
    left = _own_samples(loader)
    for batch in islice(iter(loader), limit):
        if left is not None:
            size = _rows(batch)
            if left <= 0:
                return
            if size > left:
                batch = _mapped(batch, lambda t, size=size, n=left: t[:n] if t.dim() and t.shape[0] == size else t)
            left -= size
        yield batch if device is None else moved(batch, device)


def again(loader: Iterable[Any]) -> bool:
    """Whether there can be a second pass: an iterator (a generator) is used up by the first."""
    return not isinstance(loader, Iterator)


def _own_samples(loader: Iterable[Any]) -> int | None:
    """How many samples of this rank's are no repetitions, if torch's DistributedSampler chose them; else None."""
    sampler = getattr(loader, "sampler", None)
    if not isinstance(sampler, DistributedSampler) or sampler.drop_last:
        return None
    total: int = len(cast(Sized, sampler.dataset))
    return len(range(sampler.rank, total, sampler.num_replicas))


def _rows(batch: Any) -> int:
    sizes: list[int] = []
    _mapped(batch, lambda t: sizes.append(t.shape[0]) or t if t.dim() else t)
    if not sizes:
        raise UsageError("A batch holds no tensor, so that its size cannot be told.")
    return sizes[0]


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _mapped(item, function) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a namedtuple
        return type(value)(*(_mapped(item, function) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(_mapped(item, function) for item in value)
    return value
