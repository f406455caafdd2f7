"""Folding a ResNet-50 in PyTorch: beside torch.fx's fuse, and what it is worth on the CPU, eager and compiled.

    python -m benchmarks.pytorch [--compile]

Runs are interleaved and every figure is a ratio of medians on the same machine.
"""

import copy
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import click
import torch
from torch import nn

from bnfold import pytorch

ROUNDS = 7


class Bottleneck(nn.Module):
    def __init__(self, before: int, width: int, stride: int):
        super().__init__()
        after = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, after, 1, bias=False), nn.BatchNorm2d(after)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or before != after:
            self.downsample = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Any) -> Any:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(out)))))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


def resnet50() -> nn.Module:
    """The architecture with random weights and statistics."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
    layers.append(nn.MaxPool2d(3, 2, 1))
    before = 64
    for width, count in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for k in range(count):
            layers.append(Bottleneck(before, width, 2 if k == 0 and width > 64 else 1))
            before = 4 * width
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 1000))
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d) and part.running_mean is not None and part.running_var is not None:
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(0.5, 1.5)
    return net.eval()


def medians(*runs: Callable[[], object]) -> list[float]:
    """The median time of each, interleaved."""
    times: list[list[float]] = [[] for _ in runs]
    for number in range(ROUNDS + 1):
        for k, run in enumerate(runs):
            start = time.perf_counter()
            run()
            if number:  # the first warms up
                times[k].append(time.perf_counter() - start)
    return [statistics.median(each) for each in times]


@click.command()
@click.option("--compile", "compiled", is_flag=True, help="With torch.compile too; it needs a C++ compiler.")
def main(compiled: bool) -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    from torch.fx.experimental.optimization import fuse

    net, image = resnet50(), torch.randn(1, 3, 224, 224)
    ours, theirs = medians(lambda: pytorch.fold(net, (image,)), lambda: fuse(copy.deepcopy(net)))
    result = pytorch.fold(net, (image,))
    click.echo(f"fold: {len(result.report.folded)} of 53, {ours:.2f} s, {ours / theirs:.1f} times torch.fx's fuse")
    modes: list[tuple[str, Callable[[nn.Module], Any]]] = [("eager", lambda module: module)]
    if compiled:
        modes.append(("compiled", torch.compile))
    with torch.no_grad():
        for name, mode in modes:
            before, after = mode(net), mode(result.module)
            for batch in (1, 16):
                x = torch.randn(batch, 3, 224, 224)
                plain, folded = medians(lambda m=before, x=x: m(x), lambda m=after, x=x: m(x))
                click.echo(f"{name}, batch {batch}: {folded / plain:.2f} of the time before the fold")


if __name__ == "__main__":
    main()
