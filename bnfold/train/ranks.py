# torch leaves parts of its interface untyped: what comes from them is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Processes under torchrun: the group is started from its environment, and a rank that dies is an error, not a hang."""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

from ..errors import BnfoldError, UsageError

__all__ = [
    "LostRank",
    "average_gradients",
    "equalize",
    "expecting_all",
    "least",
    "place",
    "process_group",
    "rank",
    "size",
]


class LostRank(BnfoldError):
    """Another process of the group died or does not answer."""

    kind = "lost_rank"
    exit_code = 3


def size() -> int:
    """How many processes work together; 1 without a group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number; 0 without a group."""
    return dist.get_rank() if size() > 1 else 0


@contextmanager
def process_group(timeout: float) -> Generator[torch.device]:
    """The group that torchrun's environment describes, nccl where each process has a GPU and gloo elsewhere; none where
    there is no such environment. Yields the device to work on. timeout: seconds to wait for another rank.
    """
    world = os.environ.get("WORLD_SIZE", "1")
    if not world.isdecimal() or (int(world) > 1 and "MASTER_ADDR" not in os.environ):
        raise UsageError(f"WORLD_SIZE is {world!r} in the environment; start the processes with torchrun.")
    device = place(os.environ, torch.cuda.device_count() if torch.cuda.is_available() else 0)
    on_gpu = device.type == "cuda"
    if int(world) == 1:
        yield device
        return
    if on_gpu:
        torch.cuda.set_device(device)
    with expecting_all():
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(seconds=timeout))
    try:
        with expecting_all():
            yield device
    finally:
        dist.destroy_process_group()


def place(environment: Mapping[str, str], gpus: int) -> torch.device:
    """A process's own GPU where there is one for each process of the machine; else the CPU, for all of them alike."""
    local = int(environment.get("LOCAL_RANK", "0"))
    here = int(environment.get("LOCAL_WORLD_SIZE", environment.get("WORLD_SIZE", "1")))
    return torch.device("cuda", local) if gpus >= here else torch.device("cpu")


@contextmanager
def expecting_all() -> Generator[None]:
    """Inside, a failure of the communication between ranks comes out as LostRank."""
    try:
        yield
    except BnfoldError:
        raise
    except RuntimeError as error:
        text = str(error)
        lost = isinstance(error, getattr(dist, "DistError", ())) or any(mark in text for mark in _LOST)
        if not lost or int(os.environ.get("WORLD_SIZE", "1")) == 1:
            raise
        why = " ".join(re.sub(r"\[?(/[^\s:]+)+:\d+\]?", "", text).split())[:120]
        raise LostRank(
            f"Another rank of {os.environ['WORLD_SIZE']} is gone or does not answer ({why}); "
            "start all of them again: the last checkpoint is whole."
        ) from error


def least(count: int, device: torch.device) -> int:
    """The least of all ranks' counts."""
    if size() == 1:
        return count
    told = torch.tensor(count, device=device)
    dist.all_reduce(told, dist.ReduceOp.MIN)
    return int(told)


def equalize(model: nn.Module) -> None:
    """Every rank goes on with rank 0's parameters and buffers."""
    if size() > 1:
        for value in model.state_dict().values():
            dist.broadcast(value, 0)


def average_gradients(model: nn.Module) -> None:
    """The mean over all ranks in place of each rank's gradients, by one reduction for each type of them.

    Not torch's DistributedDataParallel, which has no synchronised BatchNorm on CPUs.
    """
    if size() == 1:
        return
    kinds: dict[torch.dtype, list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            kinds.setdefault(parameter.dtype, []).append(parameter)
    for parameters in kinds.values():
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        dist.all_reduce(flat)
        flat /= size()
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.reshape(parameter.shape).clone()


_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Timed out",
    "timed out",
    "gloo",
    "NCCL",
    "Broken pipe",
)
