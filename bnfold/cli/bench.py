"""`bench`: what the fold of a model is worth to the runtime, in time and in kernels."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from .output import Console

if TYPE_CHECKING:
    from ..check.latency import Latency


@dataclass(frozen=True, slots=True)
class Timing:
    """How the models are run."""

    runs: int
    threads: int | None
    seed: int
    shapes: dict[str, tuple[int, ...]]
    inputs: tuple[Path, ...]
    custom_ops: tuple[Path, ...]
    timeout: float | None


def run_bench(model: Path, candidate: Path | None, timing: Timing, console: Console) -> int:
    """`bnfold bench`: returns the exit code."""
    console.clear_of(model, candidate)
    from ..check.latency import latency
    from ..fold import fold
    from .documents import source_dict

    result = fold(model)
    with tempfile.TemporaryDirectory(prefix="bnfold-bench-") as folder, console.progress(2) as step:
        if candidate is None:
            step("folding")
            other = Path(folder, "folded.onnx")
            result.save(other)
        else:
            other = candidate
        step("timing")
        found = latency(
            model, other, runs=timing.runs, threads=timing.threads, seed=timing.seed, shapes=timing.shapes,
            inputs=timing.inputs, custom_ops=timing.custom_ops, timeout=timing.timeout,
        )  # fmt: skip
    console.say("\n".join([*_table(found, "folded" if candidate is None else "candidate"), ""]))
    middle, low, high = found.speed
    sentence = (
        f"{middle:.2f} times as fast (quartiles {low:.2f} and {high:.2f} over {len(found.runs[0])} rounds); "
        f"{found.kernels[0]} kernels became {found.kernels[1]}."
    )
    if candidate is None and not result.changed:
        sentence = f"nothing was folded, both are the same model; {sentence}"

    def parts() -> dict[str, Any]:
        report = result.report
        source = source_dict(result.source, result.source.sha256, report.opset, report.nodes_before)
        return {"source": source, "bench": found.to_dict()}

    return console.finish("bench", "MEASURED", sentence, 0, parts)


def _table(found: Latency, name: str) -> list[str]:
    shapes = ", ".join(f"{key} {list(shape)}" for key, shape in found.shapes.items())
    lines = [f"onnxruntime {found.version}, all optimisations, on the CPU; {shapes or 'no inputs'}", ""]
    lines.append(f"{'':10} {'session':>11} {'run':>11} {'kernels':>8}")
    rows = zip(("original", name), found.creation, found.runs, found.kernels, strict=True)
    for title, creation, runs, kernels in rows:
        lines.append(f"{title:10} {1000 * median(creation):8.2f} ms {1000 * median(runs):8.3f} ms {kernels:8}")
    lines.append(f"{'ratio':10} {found.session[0]:10.2f}x {found.speed[0]:10.2f}x")
    return lines
