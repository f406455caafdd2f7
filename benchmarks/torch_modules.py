"""`python -m benchmarks torch`: a ResNet-50 folded in PyTorch, beside torch.fx's fuse; what it is worth on the CPU.

Runs are interleaved; every figure is a ratio of one run to the run beside it, the median over the rounds.
"""

from __future__ import annotations

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


def resnet50(counts: tuple[int, ...] = (3, 4, 6, 3)) -> nn.Module:
    """The architecture with random weights and statistics. counts: blocks in each stage."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
    layers.append(nn.MaxPool2d(3, 2, 1))
    before = 64
    for width, count in zip((64, 128, 256, 512), counts, strict=False):
        for k in range(count):
            layers.append(Bottleneck(before, width, 2 if k == 0 and width > 64 else 1))
            before = 4 * width
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 1000))
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d) and part.running_mean is not None and part.running_var is not None:
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(0.5, 1.5)
    return net.eval()


def compared(before: Callable[[], object], after: Callable[[], object], runs: int) -> tuple[float, list[float]]:
    """The median seconds of `before`, and the quartiles of how many times as long it takes as `after`, in turn."""
    times: list[tuple[float, float]] = []
    for number in range(runs + 1):
        pair = [_seconds(each) for each in ((before, after) if number % 2 else (after, before))]
        if number:  # the first warms up
            times.append((pair[0], pair[1]) if number % 2 else (pair[1], pair[0]))
    ratios = [first / second for first, second in times]
    quartiles = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return statistics.median(first for first, _ in times), quartiles


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _row(name: str, seconds: float, quartiles: list[float]) -> None:
    low, middle, high = quartiles
    click.echo(f"  {name:<20} {1e3 * seconds:9.1f} ms   {middle:5.2f}x   ({low:.2f} to {high:.2f})")


@click.command("torch")
@click.option("--runs", type=click.IntRange(1), default=11, show_default=True, help="Rounds, after one that warms up.")
@click.option("--size", default=224, show_default=True, help="Height and width of the images.")
@click.option("--blocks", default="3,4,6,3", show_default=True, help="Blocks in each stage; 3,4,6,3 is ResNet-50.")
@click.option("--batch", "batches", multiple=True, type=click.IntRange(1), default=(1, 16), show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Threads for torch.  [default: its own]")
@click.option(
    "--compile/--no-compile", "compiled", default=True, help="With torch.compile too; it needs a C++ compiler."
)
def torch_command(
    runs: int, size: int, blocks: str, batches: tuple[int, ...], threads: int | None, compiled: bool
) -> None:
    """Fold a ResNet-50 in PyTorch, beside torch.fx's fuse, and run it before and after."""
    if threads is not None:
        torch.set_num_threads(threads)
    net, image = resnet50(tuple(map(int, blocks.split(",")))), torch.randn(1, 3, size, size)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        from torch.fx.experimental.optimization import fuse

        result = pytorch.fold(net, (image,))
        check = result.check(samples=1)
        report = result.report
        click.echo(f"fold: {len(report.folded)} of {report.batch_normalizations}, {check.verdict}")
        _row("bnfold, torch.fx", *compared(lambda: pytorch.fold(net, (image,)), lambda: fuse(net), runs))
        click.echo("run, before the fold, and how many times as long as after it")
        for mode, prepared in _modes(compiled):
            try:
                before, after = prepared(net), prepared(result.module)
                after(image)
            except Exception as error:  # inductor without a compiler says so in many ways
                click.echo(f"  {mode}: not measured ({next(iter(str(error).splitlines()), type(error).__name__)})")
                continue
            for batch in batches:
                x = torch.randn(batch, 3, size, size)
                _row(f"{mode}, batch {batch}", *compared(lambda m=before, x=x: m(x), lambda m=after, x=x: m(x), runs))


def _modes(compiled: bool) -> list[tuple[str, Callable[[nn.Module], Any]]]:
    eager: tuple[str, Callable[[nn.Module], Any]] = ("eager", lambda module: module)
    return [eager, ("compiled", lambda module: torch.compile(copy.deepcopy(module)))] if compiled else [eager]
