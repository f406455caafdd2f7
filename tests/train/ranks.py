# torch has a module's children as Tensor | Module and its buffers as optional: more than the tests need to ask for.
# pyright: reportOptionalMemberAccess=false, reportOptionalOperand=false, reportOptionalSubscript=false
# pyright: reportArgumentType=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false
"""Runs in several processes: `python -m tests.train.ranks JOB,... RANK SIZE STORE OUT`, gloo over a file store."""

import json
import os
import sys
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from bnfold import BnfoldError, train

from .nets import images, net, norms

SIZES = [16, 3, 1, 32, 7, 9, 12, 5]
BAD = 4
SHARDS = {1: [range(8)], 2: [range(5), range(5, 8)], 4: [range(1), range(1, 5), range(0), range(5, 8)]}


def shard(rank: int, size: int):
    """Uneven shares of the same batches: with 4 ranks one has none."""
    data = images(SIZES, by_class=True, dtype=torch.float64)
    return [data[i] for i in SHARDS[size][rank]]


def _listed(values: torch.Tensor | None) -> object:
    return None if values is None else values.tolist()


def figures(report: train.RefreshReport, model: nn.Module) -> dict[str, object]:
    return {
        "mean": {n: report.ledger[n].mean.tolist() for n in report.ledger},
        "var": {n: report.ledger[n].var.tolist() for n in report.ledger},
        "n": {row.name: row.n for row in report.layers},
        "expected": {row.name: row.expected for row in report.layers},
        "written": {
            n: layer.running_var.tolist() if layer.running_var is not None else None
            for n, layer in norms(model).items()
        },
        "batches": report.batches,
        "passes": report.passes,
        "method": report.method,
        "why": report.why,
        "poisons": [[p.rank, p.batch, p.layer, p.channels[0]] for p in report.quarantined],
    }


def job_same(rank: int, size: int) -> object:
    found = {}
    for method in ("sequential", "concurrent", "pooled"):
        model = net(dtype=torch.float64)
        found[method] = figures(train.refresh(model, shard(rank, size), method), model)
    return found


def job_poison(rank: int, size: int) -> object:
    data = shard(rank, size)
    if rank == size - 1:
        data[-1][0][2, 0, 1, 1] = torch.nan
    model = net(dtype=torch.float64)
    return figures(train.refresh(model, data), model)


def job_auto(rank: int, size: int) -> object:
    data = images([4] * 120, seed=5)
    teacher, model = net(), net()
    train.refresh(teacher, data, "algorithm2", group=None)
    with torch.no_grad():
        taught = [(x, teacher(x)) for x, _ in data]
    return figures(train.refresh(model, taught[rank::size][: 60 - 7 * rank], "auto"), model)


def job_sampler(rank: int, size: int) -> object:
    samples: Any = [(x, y) for xs, ys in images([29], dtype=torch.float64) for x, y in zip(xs, ys, strict=True)]
    sampler = torch.utils.data.DistributedSampler(samples, shuffle=False)
    model = net(dtype=torch.float64)
    loader = torch.utils.data.DataLoader(samples, batch_size=4, sampler=sampler)
    ddp = nn.parallel.DistributedDataParallel(model)  # which would wait for the others at every forward
    return figures(train.refresh(ddp, loader, "concurrent"), model)


def job_drift(rank: int, size: int) -> object:
    report = train.drift(net(dtype=torch.float64), shard(rank, size))
    return {row.name: [row.error, row.residual] for row in report.layers}


class Backwards(nn.Module):
    """The layer that is registered first runs last."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.last, self.linear, self.first = nn.BatchNorm1d(72), nn.Linear(72, 72), nn.BatchNorm2d(2)
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.linear(self.first(x).flatten(1)))


def job_order(rank: int, size: int) -> object:
    report = train.refresh(Backwards(), shard(rank, size))
    return [[row.name for row in report.layers], report.passes]


def job_traffic(rank: int, size: int) -> object:
    """How often ranks speak with each other, by what; the real functions do it."""
    calls: dict[str, int] = {}

    def counted(name: str) -> None:
        real = getattr(dist, name)

        def call(*args: Any, **keywords: Any) -> Any:
            calls[name] = calls.get(name, 0) + 1
            return real(*args, **keywords)

        setattr(dist, name, call)

    names = ["all_gather", "all_reduce", "broadcast", "all_gather_object", "barrier", "gather", "reduce"]
    real = {name: getattr(dist, name) for name in names}
    for name in names:
        counted(name)
    found = {}
    for method in ("sequential", "concurrent", "pooled", "algorithm2"):
        calls.clear()
        large = [batch for batch in shard(rank, size) if len(batch[0]) > 1]  # Algorithm 2 has no use for others
        report = train.refresh(net(dtype=torch.float64), large, method)
        found[method] = [dict(calls), report.passes]
    for name, function in real.items():
        setattr(dist, name, function)
    return found


def job_failing(rank: int, size: int) -> object:
    """One rank's data raises: it shows its own error, the others learn of it, and nothing changes anywhere."""

    def loader():
        yield from shard(rank, size)
        if rank == 1:
            raise OSError("the disk is gone")

    model = net(dtype=torch.float64)
    before = [buffer.clone() for buffer in model.buffers()]
    try:
        train.refresh(model, loader(), "pooled")
    except (BnfoldError, OSError) as error:
        same = all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))
        return [type(error).__name__, str(error), same]
    return "no error"


def job_dead(rank: int, size: int) -> object:
    def forward(model, batch):
        if rank == 1:
            os._exit(7)
        return model(batch[0])

    return _expecting_an_error(rank, size, forward, None)


def job_hanging(rank: int, size: int) -> object:
    def forward(model, batch):
        if rank == 1:
            time.sleep(600)
        return model(batch[0])

    return _expecting_an_error(rank, size, forward, 3.0)


def _expecting_an_error(rank: int, size: int, forward, timeout: float | None) -> object:
    model = net(dtype=torch.float64)
    before = [buffer.clone() for buffer in model.buffers()]
    start = time.monotonic()
    try:
        train.refresh(model, shard(rank, size), forward=forward, timeout=timeout)
    except BnfoldError as error:
        same = all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))
        return [str(error), same, time.monotonic() - start]
    return "no error"


def job_sync(rank: int, size: int) -> object:
    """SyncBatchNorm against one process with the whole batch: outputs, statistics and all gradients."""
    found = {}
    sizes = {2: [5, 3], 4: [4, 1, 0, 3]}[size]
    for statistics in ("ema", "cumulative", "population"):
        for eps in (1e-3, 0.0):
            torch.manual_seed(0)
            x = torch.randn(3, 8, 4, 5, dtype=torch.float64) * 2 + 100
            sync = train.SyncBatchNorm(4, eps=eps, statistics=statistics, dtype=torch.float64)
            whole = train.BatchNorm1d(4, eps=eps, statistics=statistics, dtype=torch.float64)
            nn.init.uniform_(sync.weight)
            whole.load_state_dict(sync.state_dict())
            for step in x:
                one, two = step.clone().requires_grad_(), step.split(sizes)[rank].clone().requires_grad_()
                y, z = whole(one), sync(two)
                whole.zero_grad()
                sync.zero_grad()
                y.tanh().sum().backward()
                z.tanh().sum().backward()
                for parameter in sync.parameters():
                    dist.all_reduce(parameter.grad)
                errors = [
                    (z - y.split(sizes)[rank]).detach(), two.grad - one.grad.split(sizes)[rank],
                    sync.weight.grad - whole.weight.grad, sync.bias.grad - whole.bias.grad,
                    sync.running_mean - whole.running_mean, sync.running_var - whole.running_var,
                ]  # fmt: skip
                found[f"{statistics} {eps}"] = [float(error.abs().sum()) for error in errors]
    return found


def main() -> None:
    job, rank, size, store, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=120)
    )
    result = {name: globals()[f"job_{name}"](rank, size) for name in job.split(",")}
    with open(f"{out}.{rank}", "w") as file:  # noqa: PTH123 - nothing else of pathlib is needed here
        json.dump(result, file)
    os._exit(0)  # a rank that others have left need not say goodbye to them


if __name__ == "__main__":
    main()
