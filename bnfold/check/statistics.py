"""How far the inputs are from what the model was trained on, as its BatchNormalizations remember it.

z = |mean(x) − μ|/σ        ρ = std(x)/σ        each the median over channels;  σ² = the stored variance + ε

A sample is far when z > 3 or ρ is outside [1/10, 10] at the first BatchNormalization or at half of all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from bnfold.reference.tensors import tensor

from .settings import Settings

__all__ = ["FEW", "Distance", "Moments", "Stored", "far", "far_from", "stored_statistics"]

Array = npt.NDArray[Any]
FAR_MEAN = 3.0  # σ; noise through trained networks gives 0.1 to 1.5
FAR_SPREAD = 10.0  # times σ, or a tenth; noise gives 0.3 to 4
FEW = 8  # elements a channel: the variance of fewer says nothing


@dataclass(frozen=True)
class Stored:
    """What one BatchNormalization remembers of the value `input`: μ and σ, one for each channel (axis 1)."""

    node: str
    input: str
    mean: Array
    deviation: Array


@dataclass(frozen=True)
class Distance:
    """Between one sample and one BatchNormalization. `mean` in σ; `spread` as a ratio, 1 where it cannot be told."""

    node: str
    mean: float
    spread: float

    @property
    def size(self) -> float:
        """1 is where far begins."""
        return max(self.mean / FAR_MEAN, _decades(self.spread))

    @property
    def sentence(self) -> str:
        if self.mean / FAR_MEAN >= _decades(self.spread):
            return f"{self.node!r} sees a mean {self.mean:.3g}σ off"
        return f"{self.node!r} sees a spread of {self.spread:.2g}σ"


def _decades(spread: float) -> float:
    return abs(math.log(spread)) / math.log(FAR_SPREAD) if 0 < spread < math.inf else math.inf


def stored_statistics(model: onnx.ModelProto, directory: Path | None) -> list[Stored]:
    """Of the main graph's BatchNormalizations in inference, in the graph's order, whose statistics are
    constants, and not still those of a new one (0 and 1)."""
    constants = {proto.name: proto for proto in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.output:
            constants.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
    found: list[Stored] = []
    for node in model.graph.node:
        if node.op_type != "BatchNormalization" or node.domain not in ("", "ai.onnx") or len(node.input) < 5:
            continue
        attributes = {a.name: a for a in node.attribute}
        training = "training_mode" in attributes and attributes["training_mode"].i
        if training or not all(name in constants for name in node.input[3:5]):
            continue
        mean, variance = (tensor(constants[name], directory, True) for name in node.input[3:5])
        if mean.ndim != 1 or mean.shape != variance.shape or not mean.size:
            continue
        if not mean.any() and (variance == 1).all():
            continue  # as they were created: no training has touched them
        epsilon = float(attributes["epsilon"].f) if "epsilon" in attributes else 1e-5
        with np.errstate(invalid="ignore"):
            deviation = np.sqrt(variance + epsilon)
        found.append(Stored(node.name or node.output[0], node.input[0], mean, deviation))
    return found


class Moments:
    """Each BatchNormalization's input on one sample after another, reduced to mean and variance at once.

    `observe` goes to the evaluator; `close` ends a sample.
    """

    def __init__(self, stored: Sequence[Stored]) -> None:
        self.stored = tuple(stored)
        self.samples: list[list[Distance]] = []
        self._wanted = {each.input for each in stored}
        self.seen: dict[str, tuple[Array, Array, int]] = {}  # mean, variance, elements a channel

    def observe(self, name: str, value: Any) -> None:
        if name not in self._wanted or getattr(value, "ndim", 0) < 2 or value.dtype.kind != "f" or not value.size:
            return
        axes = tuple(axis for axis in range(value.ndim) if axis != 1)
        self.seen[name] = value.mean(axis=axes), value.var(axis=axes), value.size // value.shape[1]

    def close(self) -> list[Distance]:
        """The distances of the sample that was just evaluated, in the graph's order."""
        found = [d for each in self.stored if (d := self._distance(each)) is not None]
        self.samples.append(found)
        self.seen = {}
        return found

    def _distance(self, each: Stored) -> Distance | None:
        mean, variance, count = self.seen.get(each.input, (None, None, 0))
        if mean is None or variance is None or mean.shape != each.mean.shape:
            return None
        keep = np.isfinite(mean) & np.isfinite(variance) & (each.deviation > 0)
        if not keep.any():
            return Distance(each.node, math.inf, math.inf)
        deviation = each.deviation[keep]
        z = float(np.median(np.abs(mean[keep] - each.mean[keep]) / deviation))
        ratio = float(np.median(np.sqrt(variance[keep]) / deviation)) if count >= FEW else 1.0
        return Distance(each.node, z, ratio)


def far(samples: Sequence[Sequence[Distance]]) -> Distance | None:
    """The first distance that is large on the nearest sample, when all samples are far; else None."""
    known = [sample for sample in samples if sample]
    if not known:
        return None
    nearest = min(known, key=_reach)
    return next(d for d in nearest if d.size > 1) if _reach(nearest) > 1 else None


def far_from(moments: "Moments", settings: Settings) -> list[str]:
    """What to say when all samples are far, and what to do about it."""
    found = far(moments.samples)
    if found is None:
        return []
    if settings.inputs:
        return [
            f"The inputs given are far from what the model was trained on: {found.sentence}; are they prepared as then?"
        ]
    other = "--range" if settings.calibrated else "--range or --calibrated"
    return [
        "The inputs are far from what the model's BatchNormalizations saw in training: "
        f"{found.sentence}; use real data (--inputs), {other}."
    ]


def _reach(sample: Sequence[Distance]) -> float:
    """How far the first is, or the median of all; over an even number the nearer of the two in the middle."""
    return max(sample[0].size, sorted(d.size for d in sample)[(len(sample) - 1) // 2])
