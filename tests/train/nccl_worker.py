"""One rank of tests/train/test_nccl.py: refresh, drift and a synchronised layer on a GPU, over nccl."""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from bnfold import train
from bnfold.train.gather import Ranks

from .nets import images, net

SIZES = [16, 3, 1, 32, 7, 9, 12, 5]


def main(out: str) -> None:
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", timeout=timedelta(seconds=120))
    parts = Ranks()._all(torch.arange(3, dtype=torch.float64) + rank)  # pyright: ignore[reportPrivateUsage]
    found: dict[str, object] = {"gathered": [part.tolist() for part in parts]}
    data = images(SIZES, by_class=True, dtype=torch.float64)[rank::size]
    for method in ("sequential", "concurrent", "pooled"):
        report = train.refresh(net(dtype=torch.float64).to(device), data, method, device=device, timeout=60)
        found[method] = {name: [report.ledger[name].mean.tolist(), report.ledger[name].var.tolist()] for name in
                         report.ledger}  # fmt: skip
    drift = train.drift(net(dtype=torch.float64).to(device), data, device=device)
    found["drift"] = {row.name: row.error for row in drift.layers}
    torch.manual_seed(0)
    x = torch.randn(8, 4, 5, dtype=torch.float64) * 2 + 100
    layer = train.SyncBatchNorm(4, dtype=torch.float64, device=device, statistics="cumulative")
    y = layer(x[rank::size].to(device))
    y.square().sum().backward()
    found["output"] = y.detach().cpu().tolist()
    found["variance"] = layer.get_buffer("running_var").tolist()
    Path(f"{out}.{rank}").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
