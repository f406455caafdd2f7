"""`python -m benchmarks statistics`: the figures behind bnfold.train: what each way of estimating costs and is worth.

A chain of BNs, EMA, torch's update_bn and bnfold's methods on trained digits networks over several seeds, the drift
formula against brute force, and the time of a refresh against a plain pass.
"""

from __future__ import annotations

import copy
import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import click

T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}  # Student's t, n runs


Way = Literal["torch update_bn", "pooled", "algorithm2", "sequential"]
WAYS: tuple[Way, ...] = get_args(Way)
PARTS = ("chain", "formula", "digits", "enough", "speed")


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % confidence interval."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan
    return mean, T95.get(len(values), 1.96) * statistics.stdev(values) / len(values) ** 0.5


def chain(echo: Callable[[str], None]) -> None:
    """By how much the output of 20 chained BNs is scaled, against the first one's own statistics being right."""
    import torch
    from torch import nn
    from torch.optim.swa_utils import update_bn

    from bnfold import train

    torch.manual_seed(0)
    x = torch.randn(64, 16, dtype=torch.float64)
    echo("20 BNs in a chain at batch 64: scale of the output, 1 if every BN normalizes what it is given")
    for name in WAYS:
        net = nn.Sequential(*(nn.BatchNorm1d(16, eps=1e-12) for _ in range(20))).double()
        if name == "torch update_bn":
            update_bn([x], net)
        else:
            train.refresh(net, [x], name)
        with torch.no_grad():
            first = net[0].eval()(x).std(0, correction=0)
            factor = (first / net.eval()(x).std(0, correction=0)).mean()
        echo(f"  {name:16} off by a factor {float(factor):.4f}")
    echo(f"  (64/63)^9.5 is   {(64 / 63) ** 9.5:.4f}")


def trained(batch: int, seed: int, epochs: int) -> tuple[Any, list[Any], Any]:
    """A network with 4 BNs for the digits, its training batches (augmented by nothing), and the test data."""
    import torch
    from torch import nn

    from bnfold.train.digits import load_digits

    data = load_digits()
    torch.manual_seed(seed)
    widths = (1, 16, 24, 32, 32)
    parts: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        parts += [nn.Conv2d(a, b, 3, stride=2 if i == 1 else 1, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
    net = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))
    images, labels = torch.from_numpy(data.train_images), torch.from_numpy(data.train_labels)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1 if batch > 8 else 0.01, momentum=0.9)
    steps = len(images) // batch
    for _ in range(epochs):
        for chosen in torch.randperm(len(images))[: steps * batch].reshape(steps, batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[chosen]), labels[chosen]).backward()
            optimizer.step()
    order = torch.randperm(len(images))[: steps * batch]
    batches = [(images[c], labels[c]) for c in order.split(batch)]
    return net, batches, (torch.from_numpy(data.test_images), torch.from_numpy(data.test_labels))


def digits(echo: Callable[[str], None], batch: int, seeds: int, epochs: int) -> None:
    """Test accuracy and the self-consistency residual of each way, mean over seeds with a 95 % interval."""
    import torch
    from torch.optim.swa_utils import update_bn

    from bnfold import train

    names: tuple[Way | Literal["EMA as trained"], ...] = ("EMA as trained", *WAYS)
    accuracy: dict[str, list[float]] = {name: [] for name in names}
    residual: dict[str, list[float]] = {name: [] for name in names}
    for seed in range(seeds):
        net, batches, (images, labels) = trained(batch, seed, epochs)
        whole = [torch.cat([x for x, _ in batches])]  # in evaluation mode the values do not depend on the batches
        for name in names:
            model = copy.deepcopy(net)
            if name == "torch update_bn":
                update_bn(batches, model)
            elif name != "EMA as trained":
                train.refresh(model, batches, name)
            with torch.no_grad():
                accuracy[name].append(100 * float((model.eval()(images).argmax(1) == labels).double().mean()))
            residual[name].append(train.drift(model, whole, max_passes=1).residual)
    echo(f"digits, 4 BNs, batch {batch}, {epochs} epochs, {seeds} seeds (mean, 95 % interval)")
    for name in names:
        mean, half = interval(accuracy[name])
        off, spread = interval(residual[name])
        echo(f"  {name:16} {mean:5.1f} ± {half:.1f} % right   residual {off:.2g} ± {spread:.1g}")


def enough(echo: Callable[[str], None], epochs: int) -> None:
    """How far logits are off with statistics of a few batches only, and what the report says is to be expected."""
    import torch

    from bnfold import train

    net, batches, (images, _) = trained(64, 0, epochs)

    def logits(count: int | None) -> tuple[torch.Tensor, train.RefreshReport]:
        model = copy.deepcopy(net)
        report = train.refresh(model, batches, max_batches=count)
        with torch.no_grad():
            return model.eval()(images), report

    whole, _ = logits(None)
    echo(f"digits, 4 BNs: statistics of a few of {len(batches)} batches of 64 against those of all")
    for count in (1, 2, 5, 10, 20):
        found, report = logits(count)
        off = float((found - whole).square().mean().sqrt())
        expected = max(row.expected for row in report.layers)
        echo(f"  {count:2} batches: logits off by {off:.2f} (RMS); expected at the worst BN's output: {expected:.2g}")


def formula(echo: Callable[[str], None]) -> None:
    """E[Δy²] against y computed both ways, on inputs that are anything but Gaussian."""
    import torch

    from bnfold.train.drifting import output_error
    from bnfold.train.functional import batch_norm_transform

    torch.manual_seed(0)
    x = torch.randn(100_000, 8, dtype=torch.float64).exp()
    mean, var, weight = torch.rand(8).double() + 1, torch.rand(8).double() + 3, torch.randn(8).double()
    own = x.mean(0), x.var(0, correction=0)
    one = batch_norm_transform(x, weight, mean=mean, var=var).y
    two = batch_norm_transform(x, weight, mean=own[0], var=own[1]).y
    found, brute = output_error(mean, var, *own, 1e-5, weight), (one - two).square().mean(0)
    echo(f"drift formula against brute force, log-normal inputs: {float((found / brute - 1).abs().max()):.1e} relative")


def speed(echo: Callable[[str], None], runs: int, size: int) -> None:
    """Refresh against a plain pass in evaluation mode, in turn, medians."""
    import torch
    from torch import nn

    from bnfold import train

    torch.manual_seed(0)
    widths = (3, 32, 64, 64, 128, 128)
    parts: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        parts += [nn.Conv2d(a, b, 3, 2 if i in (1, 3) else 1, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
    net = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))
    data = [torch.randn(32, 3, size, size) for _ in range(4)]
    with torch.no_grad():
        for x in data:
            net(x)  # statistics that are not 0 and 1
    net.eval()

    def plain() -> int:
        with torch.no_grad():
            for x in data:
                net(x)
        return 1

    ways: dict[str, Callable[[], int]] = {"plain pass": plain}
    for method in ("concurrent", "pooled", "sequential"):
        ways[method] = lambda method=method: train.refresh(net, data, method).passes
    times: dict[str, list[float]] = {name: [] for name in ways}
    passes: dict[str, int] = {}
    for run in range(runs + 1):
        for name, way in ways.items():
            for layer in net.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.get_buffer("running_var").mul_(1.1)  # something to do for every method
            start = time.perf_counter()
            passes[name] = way()
            if run:  # the first one warms up
                times[name].append(time.perf_counter() - start)
    base = statistics.median(times["plain pass"])
    echo(f"5 convs of 32 to 128 channels with BN, {len(data)} batches of 32 x 3 x {size} x {size}, medians of {runs}")
    for name, found in times.items():
        median = statistics.median(found)
        each = f"  {median / base / passes[name]:5.2f}x a pass, {passes[name]} passes" if passes[name] > 1 else ""
        echo(f"  {name:12} {1000 * median:8.1f} ms  {median / base:5.2f}x{each}")


@click.command("statistics")
@click.option("--seeds", default=5, show_default=True, help="Networks trained for each batch size.")
@click.option(
    "--epochs", default=8, show_default=True, help="Epochs of each; an eighth of it for batches of 8 and less."
)
@click.option("--runs", default=9, show_default=True, help="Timed runs of each way.")
@click.option("--size", default=32, show_default=True, help="Height and width of the images that are timed.")
@click.option("--batch", type=int, multiple=True, help="Batch sizes to train with (default 64 and 2).")
@click.option("--part", type=click.Choice(PARTS), multiple=True, help="Only this.")
def statistics_command(
    seeds: int, epochs: int, runs: int, size: int, batch: tuple[int, ...], part: tuple[str, ...]
) -> None:
    """What ways of estimating population statistics are worth, and what they cost (needs torch, scikit-learn)."""
    import torch

    chosen = part or PARTS
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # networks this small only wait for a second one
    if "chain" in chosen:
        chain(click.echo)
    if "formula" in chosen:
        formula(click.echo)
    if "digits" in chosen:
        for count in batch or (64, 2):
            digits(click.echo, count, seeds, epochs if count > 8 else max(1, epochs // 8))
    if "enough" in chosen:
        enough(click.echo, epochs)
    torch.set_num_threads(threads)
    if "speed" in chosen:
        speed(click.echo, runs, size)
