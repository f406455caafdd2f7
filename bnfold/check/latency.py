"""How long two models take under ONNX Runtime with all its optimisations, measured in turn: what a fold is worth.

speed-up = median over rounds of (a run of the original) / (the run of the candidate beside it)
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UnsupportedModel, UsageError
from ..files import load
from .providers import Provider, clean_sentence
from .running import load_original, model_path, samples_for
from .verdict import Settled

__all__ = ["Latency", "latency"]

RUNS, TIMEOUT = 100, 600.0  # rounds; seconds for everything


@dataclass(frozen=True)
class Latency:
    """Of the original and the candidate: `creation` and `runs` in seconds, `kernels` that one run launches."""

    creation: tuple[tuple[float, ...], tuple[float, ...]]
    runs: tuple[tuple[float, ...], tuple[float, ...]]
    kernels: tuple[int, int]
    shapes: Mapping[str, tuple[int, ...]]
    version: str  # of onnxruntime

    @property
    def speed(self) -> tuple[float, float, float]:
        """How many times as fast the candidate runs: the median of the rounds, and their quartiles."""
        return _ratios(*self.runs)

    @property
    def session(self) -> tuple[float, float, float]:
        """The same for making a session."""
        return _ratios(*self.creation)

    def to_dict(self) -> dict[str, Any]:
        names = ("original", "candidate")
        return {
            "onnxruntime": self.version,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "rounds": len(self.runs[0]),
            "run_s": {name: statistics.median(each) for name, each in zip(names, self.runs, strict=True)},
            "session_s": {name: statistics.median(each) for name, each in zip(names, self.creation, strict=True)},
            "kernels": dict(zip(names, self.kernels, strict=True)),
            "speed": dict(zip(("median", "low", "high"), self.speed, strict=True)),
            "session_speed": dict(zip(("median", "low", "high"), self.session, strict=True)),
        }


def _ratios(original: Sequence[float], candidate: Sequence[float]) -> tuple[float, float, float]:
    ratios = np.asarray(original) / np.maximum(np.asarray(candidate), 1e-9)
    low, middle, high = (float(q) for q in np.quantile(ratios, (0.25, 0.5, 0.75)))
    return middle, low, high


def latency(
    original: Path,
    candidate: Path,
    *,
    runs: int = RUNS,
    threads: int | None = None,
    seed: int = 0,
    shapes: Mapping[str, Sequence[int]] | None = None,
    inputs: Sequence[Path] = (),
    custom_ops: Sequence[Path] = (),
    timeout: float | None = None,
) -> Latency:
    """Time both model files on the CPU, on one sample: the first of `inputs`, or a generated one.

    Raises UsageError; UnsupportedModel where the runtime is missing or runs one of the models not.
    """
    file = load(original)
    seconds = TIMEOUT if timeout is None else timeout
    with tempfile.TemporaryDirectory(prefix="bnfold-bench-") as folder:
        try:
            with Provider(threads=threads, timeout=seconds, libraries=custom_ops) as provider:
                load_original(provider, file)
                plan = samples_for(file, provider, samples=1, seed=seed, inputs=inputs or None, shapes=shapes)
        except Settled as error:
            raise UnsupportedModel(f"{original} cannot be timed: {str(error).rstrip('.')}.") from error
        sample = plan.samples[0]
        arrays: dict[str, Any] = {f"i{k}": value for k, value in enumerate(sample.feeds.values())}
        np.savez(Path(folder, "feeds.npz"), **arrays)
        other = load(candidate)
        paths = model_path(file, Path(folder), "original.onnx"), model_path(other, Path(folder), "candidate.onnx")
        settings = {
            "models": [str(path) for path in paths],
            "feeds": str(Path(folder, "feeds.npz")),
            "names": list(sample.feeds),
            "runs": runs,
            "threads": threads or 0,
            "libraries": [str(path.absolute()) for path in custom_ops],
            "folder": folder,
        }
        answer = _timed(settings, seconds)
    if "error" in answer:
        raise UnsupportedModel(f"onnxruntime cannot run both models: {clean_sentence(answer['error']).rstrip('.')}.")
    first, second = ((tuple(a), tuple(b)) for a, b in (answer["creation"], answer["runs"]))
    kernels = answer["kernels"]
    return Latency(first, second, (kernels[0], kernels[1]), sample.shapes, answer["version"])


def _timed(settings: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    command = [sys.executable, "-P", str(Path(__file__).with_name("stopwatch.py")), json.dumps(settings)]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=seconds, text=True)
    except subprocess.TimeoutExpired:
        raise UsageError(
            f"Timing both models took longer than {seconds:g} s; --timeout or fewer --runs help."
        ) from None
    lines = done.stdout.splitlines()
    return json.loads(lines[-1]) if lines else {"error": f"it died with exit status {done.returncode}"}
