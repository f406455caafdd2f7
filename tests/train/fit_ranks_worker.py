"""One rank of tests/train/test_fit_ranks.py: a small training in which ranks may have unlike data, die or hang."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import torch
from torch import nn

from bnfold.errors import BnfoldError
from bnfold.train import ranks
from bnfold.train.fitting import fit


def data(rank: int, world: int, how: str) -> list[Any]:
    """12 batches of 8 rows in all, every rank its own part; "uneven": rank 1 has one batch less."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(96, 3, generator=generator, dtype=torch.float64)
    y = x.sum(1, keepdim=True)
    parts = [(x[k::world], y[k::world]) for k in range(world)]
    inputs, targets = parts[rank]
    size = 8 // world
    batches = list(zip(inputs.split(size), targets.split(size), strict=True))
    return batches[:-1] if how == "uneven" and rank == 1 else batches


def main(how: str, out: str) -> int:
    torch.set_num_threads(1)
    try:
        with ranks.process_group(timeout=8) as device:
            torch.manual_seed(ranks.rank())  # rank 0's weights are what counts
            model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
            steps: list[int] = []

            def loss(output: Any, targets: Any) -> Any:
                steps.append(1)
                if ranks.rank() == 1 and len(steps) == 5:
                    if how == "dies":
                        os._exit(7)
                    if how == "hangs":
                        time.sleep(60)
                return (output - targets).square().mean()

            mine = data(ranks.rank(), ranks.size(), how)
            path = f"{out}.{ranks.rank()}.pt" if how == "apart" else None  # each its own disk; rank 0 writes
            done = fit(
                model, mine, epochs=3, loss=loss, rate=1e-2, refresh=None, device=device, validation=mine,
                checkpoint=path,
            )  # fmt: skip
            state = {"model": model.state_dict(), "steps": len(steps), "scores": [e.score for e in done.epochs]}
            torch.save(state, f"{out}.{ranks.rank()}")
    except BnfoldError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1], sys.argv[2])
    sys.stderr.flush()
    os._exit(code)  # threads of a broken group need not be waited for
