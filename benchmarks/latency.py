"""`python -m benchmarks latency [FOLDER ...]`: what the fold does to the latency of an ONNX Runtime session.

Without a folder, what `--aggressive` does: Relu → BatchNormalization → padded Conv becomes Max → Conv, and the runtime
cannot fuse a Max with the Conv before it. The sessions take turns, so that they share whatever else the machine does.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from onnx import helper, numpy_helper

import bnfold
from bnfold.check.latency import latency
from bnfold.errors import BnfoldError


def stack(layers: int, channels: int, size: int) -> onnx.ModelProto:
    """Padded 3x3 convolutions, each with a Relu and then a BatchNormalization; seeded."""
    random = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    tensors: list[onnx.TensorProto] = []
    x = "x"
    for i in range(layers):
        weight = random.normal(size=(channels, channels, 3, 3)) / (3 * channels**0.5)
        arrays: dict[str, Any] = {"w": weight, "c": random.normal(size=channels) / 10}
        arrays |= {role: random.uniform(0.5, 1.5, channels) for role in ("s", "v")}
        arrays |= {role: random.normal(size=channels) / 10 for role in ("b", "m")}
        tensors += [numpy_helper.from_array(a.astype(np.float32), f"{n}{i}") for n, a in arrays.items()]
        nodes.append(helper.make_node("Conv", [x, f"w{i}", f"c{i}"], [f"h{i}"], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"h{i}"], [f"r{i}"]))
        norm = [f"{role}{i}" for role in "sbmv"]
        nodes.append(helper.make_node("BatchNormalization", [f"r{i}", *norm], [f"y{i}"], name=f"bn{i}"))
        x = f"y{i}"
    shape = [1, channels, size, size]
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("x", x)]
    graph = helper.make_graph(nodes, "stack", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _models(folders: tuple[Path, ...], runs: int, threads: int | None) -> None:
    """A row for each model that the fold changes: ENABLE_ALL on both sides, in turn, on one generated sample."""
    click.echo("| model | run, ms | folded, ms | times as fast | quartiles | session | kernels |")
    click.echo("|---|---|---|---|---|---|---|")
    speeds: list[float] = []
    with tempfile.TemporaryDirectory() as work:
        for path in (path for folder in folders for path in sorted(folder.rglob("*.onnx"))):
            label = path.parent.name if path.stem.lower() in ("model", "quant_model") else path.stem
            try:
                result = bnfold.fold(path)
                if not result.changed:
                    continue
                result.save(Path(work, "folded.onnx"))
                found = latency(path, Path(work, "folded.onnx"), runs=runs, threads=threads)
            except BnfoldError as error:
                click.echo(f"| {label} | {str(error)[:120]} | | | | | |")
                continue
            speeds.append(found.speed[0])
            before, after = (1000 * statistics.median(each) for each in found.runs)
            click.echo(
                f"| {label} | {before:.3f} | {after:.3f} | {found.speed[0]:.2f} | {found.speed[1]:.2f}, "
                f"{found.speed[2]:.2f} | {found.session[0]:.2f} | {found.kernels[0]} → {found.kernels[1]} |",
            )
    if speeds:
        click.echo(
            f"\n{len(speeds)} models, geometric mean {statistics.geometric_mean(speeds):.3f}, slowest {min(speeds):.2f}"
        )


@click.command("latency")
@click.argument("folders", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option("--runs", default=60, show_default=True, help="Counted runs of each session.")
@click.option("--threads", type=int, help="Threads of the runtime, for FOLDERS. Default: its own.")
def latency_command(folders: tuple[Path, ...], runs: int, threads: int | None) -> None:
    """Original against folded for every .onnx under FOLDERS; without any, what --aggressive costs.

    Medians, both sides with all optimisations of ONNX Runtime. Without FOLDERS: a stack of Conv, Relu,
    BatchNormalization as it is, folded, and folded aggressively.
    """
    if folders:
        _models(folders, runs, threads)
        return
    import onnxruntime

    for layers, channels, size in ((8, 32, 56), (8, 64, 28), (8, 128, 14)):
        model = stack(layers, channels, size)
        variants = {
            "original": model,
            "folded": bnfold.fold(model).model,
            "aggressive": bnfold.fold(model, aggressive=True).model,
        }
        sessions = {
            name: onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"])
            for name, m in variants.items()
        }
        feeds = {"x": np.random.default_rng(1).normal(size=(1, channels, size, size)).astype(np.float32)}
        times: dict[str, list[float]] = {name: [] for name in sessions}
        for round_ in range(runs + 5):
            for name, session in sessions.items():
                start = time.perf_counter()
                session.run(None, feeds)
                if round_ >= 5:  # the first ones warm up
                    times[name].append(time.perf_counter() - start)
        base = statistics.median(times["original"])
        click.echo(f"{layers} layers of {channels} channels, {size}x{size}, medians of {runs}")
        for name, found in times.items():
            left = sum(n.op_type == "BatchNormalization" for n in variants[name].graph.node)
            median = statistics.median(found)
            click.echo(f"  {name:11} {1000 * median:8.2f} ms  {median / base:5.2f}x  {left} BatchNormalizations")
