"""`python -m benchmarks fold [PAIRS ...]`: fold and save a chain of conv and BatchNormalization, unchecked.

bnfold, ONNX Runtime's offline optimisation, onnx's own load and save, and a copy of the file run in turn as whole
processes. Medians, ratios to bnfold and peak memory; nothing is compared across runs.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import onnx
from onnx import helper, numpy_helper

from .check import check_command
from .faults import faults_command
from .latency import latency_command
from .models import models_command
from .peers import peers_command
from .statistics import statistics_command

CHANNELS = 8
ORT = """
import sys, onnxruntime
options = onnxruntime.SessionOptions()
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
options.optimized_model_filepath, options.log_severity_level = sys.argv[2], 4
onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
"""
ONNX = "import sys, onnx; onnx.save(onnx.load(sys.argv[1]), sys.argv[2])"


def chain(pairs: int) -> onnx.ModelProto:
    """Convolutions of 8 channels, 1x1, each with a BatchNormalization behind it; seeded."""
    random = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    tensors: list[onnx.TensorProto] = []
    x = "x"
    for i in range(pairs):
        tensors.append(
            numpy_helper.from_array((random.normal(size=(CHANNELS, CHANNELS, 1, 1)) / 3).astype("f4"), f"w{i}")
        )
        for role in ("gamma", "beta", "mean", "var"):
            tensors.append(numpy_helper.from_array(random.uniform(0.5, 1.5, CHANNELS).astype("f4"), f"{role}{i}"))
        nodes.append(helper.make_node("Conv", [x, f"w{i}"], [f"c{i}"]))
        parameters = [f"{role}{i}" for role in ("gamma", "beta", "mean", "var")]
        nodes.append(helper.make_node("BatchNormalization", [f"c{i}", *parameters], [f"y{i}"]))
        x = f"y{i}"
    shape = [1, CHANNELS, 4, 4]
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("x", x)]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def measured(command: list[str]) -> tuple[float, float]:
    """Seconds and peak MiB of one run of `command`."""
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise click.ClickException(f"{' '.join(command[:3])} ... exited with {child.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


@click.group()
def main() -> None:
    """Measurements of bnfold, side by side with its peers."""


@main.command("fold")
@click.argument("pairs", type=int, nargs=-1)
@click.option("--runs", default=3, show_default=True, help="Counted runs of each command.")
def fold_command(pairs: tuple[int, ...], runs: int) -> None:
    """Fold and save chains of PAIRS conv+BN (default 1000 and 4000)."""
    python = sys.executable
    with tempfile.TemporaryDirectory() as folder:
        for count in pairs or (1000, 4000):
            source, out = f"{folder}/chain{count}.onnx", f"{folder}/out.onnx"
            onnx.save(chain(count), source)
            commands = {
                "bnfold --no-check": [python, "-m", "bnfold", source, "-o", out, "--no-check", "--force"],
                "onnxruntime BASIC": [python, "-c", ORT, source, out],
                "onnx load and save": [python, "-c", ONNX, source, out],
                "cp": ["cp", source, out],
            }
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
            for _ in range(runs):
                for name, command in commands.items():
                    Path(out).unlink(missing_ok=True)
                    times[name].append(measured(command))
            own = statistics.median(t for t, _ in times["bnfold --no-check"])
            click.echo(f"{count} pairs, {Path(source).stat().st_size / 2**20:.1f} MiB, medians of {runs}")
            for name, found in times.items():
                seconds = statistics.median(t for t, _ in found)
                click.echo(f"  {name:20} {seconds:7.2f} s  {seconds / own:6.2f}x  {max(m for _, m in found):7.0f} MiB")


main.add_command(models_command)
main.add_command(check_command)
main.add_command(faults_command)
main.add_command(peers_command)
main.add_command(latency_command)
main.add_command(statistics_command)

if __name__ == "__main__":
    main()
