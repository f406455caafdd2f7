"""`stats drift` and `stats refresh`: a table of the layers, and a word that says whether the statistics hold.

drift: 0, or 1 where --max-drift is passed     refresh: writes the model; 0
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import files, receipt, sidecar
from ..errors import UsageError
from .documents import result_dict, source_dict
from .output import Console
from .signals import raise_received
from .unfolding import refold, unfolded

if TYPE_CHECKING:
    from ..stats import Drift, Measured
    from ..stats.staleness import Figures
    from .settings import Checking

NO_DATA = "--max-drift measures the statistics on data: give samples with --inputs."
CURE = "nothing was written: measure them anew: bnfold stats refresh"


@dataclass(frozen=True, slots=True)
class Measuring:
    """On what the statistics are measured, and how."""

    inputs: tuple[Path, ...]
    threads: int | None
    timeout: float | None
    custom_ops: tuple[Path, ...]
    weights: Path | None = None
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict[str, "tuple[int, ...]"])

    def arguments(self) -> dict[str, Any]:
        """As keyword arguments of `drift` and `refresh` of ONNX models."""
        if self.weights is not None:
            raise UsageError("--weights goes with package.module:factory as MODEL.")
        if self.shapes:
            raise UsageError("--shape is for PyTorch models; an ONNX file says what its inputs are.")
        return {"threads": self.threads, "timeout": self.timeout, "custom_ops": self.custom_ops}


def run_drift(model: Path, measuring: Measuring, most: float | None, console: Console) -> int:
    """`bnfold stats drift`: returns the exit code."""
    from ..stats import drift

    console.clear_of(model)
    with console.progress(1) as step, unfolded(model) as source:
        step("measuring")
        found = drift(source or model, measuring.inputs, **measuring.arguments())
        _ = found.source.sha256  # its file may be a temporary one
    console.say("\n".join([*table(found), ""]))
    word, sentence, code = judged(found, most, _nothing(found))
    return console.finish("stats drift", word, sentence, code, lambda: parts_of(found, []))


def run_refresh(
    model: Path, measuring: Measuring, target: Path, *, force: bool, in_place: bool, console: Console
) -> int:
    """`bnfold stats refresh`: returns the exit code."""
    from ..stats import refresh

    files.format_of(target)  # an extension that cannot be written is refused before any work
    console.clear_of(model, target, target.with_name(target.name + ".data"), sidecar.sidecar_of(target))
    with unfolded(model) as source:
        if source is not None:
            return refold(model, source, measuring, target, console, force=force, in_place=in_place)
    with console.progress(2) as step:
        step("measuring")
        made = refresh(model, measuring.inputs, **measuring.arguments())
        step("writing")
        written: list[Path] = []
        if made.layers:
            with files.Staging(target, keep_mode_of=target if in_place else None) as stage:
                made.save(stage.path)
                raise_received()
                written = stage.commit()
    console.say("\n".join([*table(made), ""]))
    word, sentence = refreshed(made, made.passes, written, _nothing(made))
    return console.finish("stats refresh", word, sentence, 0, lambda: parts_of(made, written))


def refreshed(made: Figures, passes: int, written: Sequence[Path], nothing: str) -> tuple[str, str]:
    """The word and the sentence of a refresh."""
    if not made.layers:
        return "NOTHING TO REFRESH", f"{nothing}; nothing was written."
    count = len(made.layers)
    return "REFRESHED", (
        f"{count} BatchNormalization{'' if count == 1 else 's'} on {made.rows} rows in {passes} "
        f"pass{'' if passes == 1 else 'es'}; wrote {written[0]}."
    )


def judged(found: Figures, most: float | None, nothing: str) -> tuple[str, str, int]:
    """The word, the sentence and the exit code of a drift that may be `most`. nothing: said where there is no layer."""
    worst = found.worst
    if worst is None:
        return "NOTHING TO MEASURE", f"{nothing}.", 0
    said = f"the largest drift is {worst.drift:.3g}, of {worst.node}"
    if most is None:
        return "MEASURED", f"{said} ({found.rows} rows).", 0
    stale = [layer for layer in found.layers if layer.beyond_noise > most]
    if stale:
        many = f" and {len(stale) - 1} more" if len(stale) > 1 else ""
        return "STALE", f"{said}{many}, above {most:g} (--max-drift)", 1
    noisy = next((layer for layer in found.layers if layer.drift > most), None)
    if noisy is not None:
        sentence = f"{noisy.node} drifts by {noisy.drift:.3g}, of which {noisy.noise:.2g} is so few samples' own noise"
        return "FRESH", f"{sentence}: within {most:g} (--max-drift).", 0
    return "FRESH", f"{said}: within {most:g} (--max-drift).", 0


def table(found: Figures) -> Iterator[str]:
    """A line for each layer, the worst first, and one for each that was not measured."""
    layers = sorted(found.layers, key=lambda each: (-each.drift, -(each.output or 0)))
    tried = any(layer.output is not None for layer in layers)
    effect = ("output ±", *(("flips",) if any(layer.flips is not None for layer in layers) else ())) if tried else ()
    rows = [("drift", "± noise", "mean off by", "variance ×", *effect, "values", "BatchNormalization")]
    rows += [_row(layer, len(effect)) for layer in layers]
    if len(rows) > 1:
        wide = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
        for row in rows:
            cells = [f"{cell:>{width}}" for cell, width in zip(row[:-1], wide, strict=False)]
            yield "  ".join([*cells, row[-1]])
    for each in found.left:
        yield f"left    {each.node}: {each.why}"


def _row(layer: Drift, effects: int) -> tuple[str, ...]:
    low, high = layer.ratio
    noise = "?" if math.isnan(layer.noise) else f"{layer.noise:.2g}"
    name = f"{layer.node} ({layer.channels} channels, most in {layer.worst})"
    output = "" if layer.output is None else f"{layer.output:.2g}"
    effect = (output, "" if layer.flips is None else f"{layer.flips:.1%}")[:effects]
    return (
        f"{layer.drift:.3g}",
        noise,
        f"{layer.shift:.2g}σ",
        f"{low:.3g} … {high:.3g}",
        *effect,
        str(layer.count),
        name,
    )


def _nothing(found: Measured) -> str:
    told = f"{found.source.path} holds no BatchNormalization in inference mode with statistics of its own"
    if any(entry.key.startswith(receipt.PREFIX) for entry in found.source.model.metadata_props):
        told += "; it was folded, and only bnfold fold --keep-statistics keeps them beside such a file"
    return told


def parts_of(found: Measured, written: Sequence[Path]) -> dict[str, Any]:
    """The JSON document's."""
    model = found.source.model
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    nodes = len(model.graph.node)
    return {
        "source": source_dict(found.source, found.source.sha256, opset, nodes),
        "result": result_dict(written, opset, nodes),
        "statistics": found.to_dict(),
        "check": None,
    }


@dataclass(frozen=True, slots=True)
class Gate:
    """What `fold --max-drift` found before it folded; `code` is 1 where the statistics are stale."""

    found: Figures
    document: Callable[[], dict[str, Any]]  # the parts of the JSON document, where it ends the fold
    word: str
    sentence: str
    code: int

    def refused(self, console: Console) -> int:
        """The end of a fold that did not happen."""
        console.say("\n".join([*table(self.found), ""]))
        sentence = f"{self.sentence}; {CURE}."
        return console.finish("fold", self.word, sentence, self.code, self.document)


def gate(model: Path, checking: Checking, most: float) -> Gate:
    """The drift of the model before it is folded, and whether it is more than `most`."""
    if not checking.inputs:
        raise UsageError(NO_DATA)
    from ..stats import drift

    measuring = Measuring(checking.inputs, checking.threads, checking.timeout, checking.custom_ops)
    found = drift(model, measuring.inputs, **measuring.arguments(), effects=False)
    return Gate(found, lambda: parts_of(found, []), *judged(found, most, _nothing(found)))
