# torch leaves parts of its interface untyped: what comes from them is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""One gather of float64 values from all ranks, after which every rank holds the same and decides the same.

The first value is a rank's state: a rank with an error of its own still takes part, so that the others learn of it
and need not wait. A rank that is gone is an error after `timeout` seconds at most.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import BnfoldError

NCCL = timedelta(minutes=10)  # its own default


class Ranks:
    """The processes among which statistics are merged. `size` 1: this one alone, and nothing is sent."""

    def __init__(self, group: Any = "auto", timeout: float | None = None) -> None:
        """group: "auto" for the default group if torch.distributed is initialised, None for this process alone.

        timeout: seconds to wait for the other ranks at a gather; without it what the group was made with.
        """
        up = dist.is_available() and dist.is_initialized()
        self.group = (dist.group.WORLD if up else None) if isinstance(group, str) else group
        self.size = 1 if self.group is None else dist.get_world_size(self.group)
        self.rank = 0 if self.group is None else dist.get_rank(self.group)
        self.timeout = None if timeout is None else timedelta(seconds=timeout)

    def gather(self, values: Tensor) -> list[Tensor]:
        """`values` [k], float64 on the CPU and of the same k everywhere, of each rank in order.

        Raises BnfoldError if a rank reported an error, is gone, or does not answer in time.
        """
        if self.size == 1:
            return [values]
        found = self._all(torch.cat([torch.zeros(1, dtype=torch.float64), values]))
        failed = [rank for rank, part in enumerate(found) if part[0] != 0]
        if failed:
            raise BnfoldError(
                f"Rank {', '.join(map(str, failed))} of {self.size} stopped with an error of its own while it read its "
                "data; that rank says which. Nothing was changed here."
            )
        return [part[1:] for part in found]

    def fail(self, length: int) -> None:
        """Tell the others, who are to gather `length` values next, that this rank cannot."""
        if self.size > 1:
            state = torch.zeros(length + 1, dtype=torch.float64)
            state[0] = 1
            self._all(state)

    def _all(self, values: Tensor) -> list[Tensor]:
        device, limit = torch.device("cpu"), self.timeout
        if dist.get_backend(self.group) == "nccl":
            device = torch.device("cuda", torch.cuda.current_device())
            limit = limit or NCCL  # without one, wait() only puts the copy below behind the gather, and that one hangs
        own = values.to(device)
        found = [torch.empty_like(own) for _ in range(self.size)]
        try:
            work = dist.all_gather(found, own, group=self.group, async_op=True)
            assert work is not None
            if limit is None:
                work.wait()
            else:
                work.wait(limit)
            return [part.cpu() for part in found]
        except RuntimeError as error:  # what gloo and nccl raise for a closed connection and for a timeout
            within = "" if limit is None else f" within {limit.total_seconds():g} s"
            cause = str(error).strip().splitlines()[0]
            raise BnfoldError(
                f"Rank {self.rank} of {self.size} did not hear from the others{within}: one of them is gone or hangs "
                f"({cause}). Nothing was changed here."
            ) from error
