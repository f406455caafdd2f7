"""`python -m benchmarks fold [MODEL ...]`: fold and save, unchecked; bnfold and each installed peer as whole processes.

They take turns, so that they share whatever else the machine does; medians, ratios to bnfold and peak memory. Nothing
is compared across runs. `cp` and onnx's own load and save are the floor, and what the bytes alone cost in Python.
"""

from __future__ import annotations

import compileall
import importlib.util
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click

import bnfold

from .models import TOOLS, program
from .networks import make

MODELS = ("resnet50", "resnet152", "1000", "4000", "16000", "external")
PEERS = {
    "onnxruntime": "onnxruntime BASIC",
    "onnxslim": "onnxslim",
    "onnxsim": "onnxsim",
    "onnxscript": "onnxscript",
    "onnxoptimizer": "onnxoptimizer",
}
LOAD_AND_SAVE = "import onnx; onnx.save(onnx.load(source), target, **how)"
# Starts the command from a small process: what a child inherits of its parent's peak would be this one's, with numpy
LAUNCHER = """
import json, os, sys, time
start = time.perf_counter()
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=[
    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0), (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)])
_, status, usage = os.wait4(pid, 0)
print(json.dumps([time.perf_counter() - start, usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime, status]))
"""


@dataclass(frozen=True)
class Measured:
    """Seconds of the clock, peak MiB, and seconds of all cores; why there are none."""

    times: list[float] = field(default_factory=list[float])
    memory: list[float] = field(default_factory=list[float])
    cpu: list[float] = field(default_factory=list[float])
    failed: list[str] = field(default_factory=list[str])

    def add(self, command: list[str], seconds: float) -> None:
        program = [str(shutil.which(command[0])), *command[1:]]
        launcher = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", LAUNCHER, *program],
            stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            said, _ = launcher.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(launcher.pid, signal.SIGKILL)  # what it has started too
            launcher.communicate()
            self.failed.append(f"over {seconds:g} s")
            return
        time, peak, cpu, status = json.loads(said)
        if status:
            self.failed.append("failed")
            return
        self.times.append(time)
        self.memory.append(peak)
        self.cpu.append(cpu)


def commands(source: Path, target: Path, peers: tuple[str, ...]) -> dict[str, list[str]]:
    """Name to command line; each writes into the empty folder of `target`."""
    python = sys.executable
    files = [str(path) for path in sorted(source.parent.glob(source.name + "*"))]
    out = str(target)
    found = {"bnfold --no-check": [python, "-m", "bnfold", str(source), "-o", out, "--no-check"]}
    for peer in peers:
        found[PEERS[peer]] = [python, "-c", program(TOOLS[peer], source, target, external=len(files) > 1)]
    found["onnx load and save"] = [python, "-c", program(LOAD_AND_SAVE, source, target, external=len(files) > 1)]
    found["python and imports"] = [python, "-c", "import onnx, numpy, click"]
    reflink = ["--reflink=never"] if sys.platform == "linux" else []
    found["cp"] = ["cp", *reflink, *files, str(target.parent)]
    return found


def compare(source: Path, folder: Path, runs: int, peers: tuple[str, ...], seconds: float) -> dict[str, Measured]:
    """Every command `runs` times, in turn; one that fails or takes too long does not come again."""
    target = folder / "out" / "out.onnx"
    found = {name: Measured() for name in commands(source, target, peers)}
    for _ in range(runs):
        for name, command in commands(source, target, peers).items():
            if found[name].failed:
                continue
            shutil.rmtree(target.parent, ignore_errors=True)
            target.parent.mkdir()
            os.sync()  # what the one before has left to write is not this one's
            found[name].add(command, seconds)
    shutil.rmtree(target.parent, ignore_errors=True)
    return found


def table(found: Mapping[str, Measured]) -> list[str]:
    """Lines: the median, its ratio to bnfold's, the median of the peaks, the seconds of all cores."""
    own = statistics.median(found["bnfold --no-check"].times)
    lines: list[str] = []
    for name, each in found.items():
        if each.failed:
            lines.append(f"  {name:20} {each.failed[0]:>9}")
            continue
        time, peak, cpu = (statistics.median(values) for values in (each.times, each.memory, each.cpu))
        lines.append(f"  {name:20} {time:7.2f} s  {time / own:6.2f}x  {peak:7.0f} MiB  {cpu:7.2f} s of CPU")
    return lines


def beyond_imports(models: Sequence[Path], runs: int, seconds: float) -> Iterator[str]:
    """Lines: the CPU time of bnfold on each model less that of importing what any such tool needs."""
    for path in models:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, path.name)
            for each in path.parent.glob(path.name + "*"):  # with the data of its tensors
                shutil.copy(each, folder)
            found = compare(source, Path(folder), runs, (), seconds)
        own, imports = found["bnfold --no-check"], found["python and imports"]
        if own.failed:
            yield f"  {path.name:32} {own.failed[0]}"
            continue
        cpu, floor = (statistics.median(each.cpu) for each in (own, imports))
        yield f"  {path.name:32} {cpu:6.3f} s of CPU, {cpu - floor:+6.3f} beyond the imports' {floor:.3f}"


@click.command("fold")
@click.argument("models", nargs=-1)
@click.option("--runs", default=3, show_default=True, help="Counted runs of each command.")
@click.option("--peer", "peers", multiple=True, type=click.Choice([*PEERS, "none"]), help="Only this one; repeatable.")
@click.option("--seconds", default=120.0, show_default=True, help="How long a peer may take.")
def fold_command(models: tuple[str, ...], runs: int, peers: tuple[str, ...], seconds: float) -> None:
    """Fold and save MODELS: resnet50, resnet152, external (2.4 GB), the number of pairs of a chain, or .onnx files.

    Of files, most of which are small, it says how many seconds of CPU bnfold takes beyond Python and its imports.
    """
    compileall.compile_dir(Path(bnfold.__file__).parent, quiet=2)  # as it is where pip has installed it
    wanted = tuple(peer for peer in PEERS if (peer in peers if peers else importlib.util.find_spec(peer)))
    given = [name for name in models if name.endswith(".onnx")]
    if given:
        click.echo("\n".join(beyond_imports([Path(name) for name in given], runs, seconds)))
    for name in [name for name in models if name not in given] if models else MODELS:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "net.onnx")
            make(name, source)
            size = sum(path.stat().st_size for path in Path(folder).iterdir()) / 2**20
            title = f"{name} pairs" if name.isdecimal() else name
            click.echo(f"{title}, {size:.1f} MiB, medians of {runs}")
            click.echo("\n".join(table(compare(source, Path(folder), runs, wanted, seconds))))
