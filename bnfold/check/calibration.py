"""Inputs rescaled so that the first BatchNormalizations see what they remember: x ↦ a·x + b for each input.

Σ_c z_c² + ln²ρ_c → min over a, b     by damped Gauss-Newton steps (Levenberg, Marquardt) in float64 on one sample

a and b belong to the channels (axis 1) where those are few, else to the whole input. See statistics.py for z and ρ.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from bnfold.bodies import nodes_of
from bnfold.errors import UnsupportedOp
from bnfold.reference import EvaluationError, Evaluator

from .inputs import Recipe, generate
from .sizes import GraphInput
from .statistics import FEW, Distance, Moments, Stored, stored_statistics

__all__ = ["calibrated"]

Array = npt.NDArray[np.float64]
CHANNELS = 32  # up to so many, each channel gets a scale and an offset of its own
STEPS = 6
PATIENCE = 200.0  # estimated seconds for all evaluations; beyond, inputs are not taken apart into channels
EQUAL = 0.3  # how much the channels of one input hold together, where the statistics do not tell them apart
_NUDGE = 1e-3
_LONGEST = 3.0  # in the logarithm of a scale, for one step
_ENOUGH = 0.01  # an improvement below this share ends it


@dataclass
class _Problem:
    """What is moved (each input's number of parameters) and what is looked at (the first BatchNormalizations)."""

    evaluator: Evaluator
    first: Sequence[Stored]
    feeds: Mapping[str, npt.NDArray[Any]]
    counts: Mapping[str, int]

    def affine(self, p: Array) -> dict[str, tuple[Array, Array]]:
        """The parameters, offsets and logarithms of scales, as scale and offset of each input."""
        found: dict[str, tuple[Array, Array]] = {}
        begin = 0
        for name, n in self.counts.items():
            offset, scale = p[begin : begin + n], np.exp(p[begin + n : begin + 2 * n])
            found[name] = (scale, offset) if n > 1 else (scale[0], offset[0])
            begin += 2 * n
        return found

    def logarithms(self, p: Array) -> list[Array]:
        """Of the scales among the parameters, one array for each input."""
        found: list[Array] = []
        begin = 0
        for n in self.counts.values():
            found.append(p[begin + n : begin + 2 * n])
            begin += 2 * n
        return found

    def look(self, p: Array) -> tuple[Array, list[Distance]]:
        """The residuals and the distances."""
        given = {name: np.asarray(x, np.float64) if x.dtype.kind in "fV" else x for name, x in self.feeds.items()}
        for name, (scale, offset) in self.affine(p).items():
            shape = (-1, *[1] * (given[name].ndim - 2)) if scale.ndim else ()
            given[name] = given[name] * scale.reshape(shape) + offset.reshape(shape)
        moments = Moments(self.first)
        with np.errstate(all="ignore"):
            self.evaluator.run(given, sorted({each.input for each in self.first}), observe=moments.observe)
            parts: list[Array] = []
            for each in self.first:
                mean, variance, count = moments.seen.get(each.input, (each.mean, np.square(each.deviation), 0))
                parts.append((mean - each.mean) / each.deviation)
                if count >= FEW:
                    ratio = np.sqrt(np.maximum(variance, 1e-12 * np.square(each.deviation))) / each.deviation
                    parts.append(np.log(ratio))
            equal = EQUAL * np.sqrt(sum(map(len, parts)))
            parts += [equal * (logs - logs.mean()) / np.sqrt(len(logs)) for logs in self.logarithms(p)]
        residual = np.concatenate(parts)
        return np.where(np.isfinite(residual), residual, 1e3), moments.close()


def calibrated(
    model: onnx.ModelProto,
    directory: Path | None,
    inputs: Sequence[GraphInput],
    shapes: Mapping[str, tuple[int, ...]],
    made: Recipe,
    *,
    seed: int,
    seconds: float,
) -> tuple[Recipe, str]:
    """The recipe with a scale and an offset for floating inputs, and a sentence that says what was done.

    Left alone: states, and inputs whose range is given or traced. `seconds`: the estimate for one evaluation.
    """
    movable = [v for v in inputs if _floating(v) and v.name not in made.states and v.name not in made.intervals]
    first, reached = _first(model, stored_statistics(model, directory), {v.name for v in movable})
    movable = [value for value in movable if value.name in reached]
    if not first or not movable:
        return made, "The inputs are not calibrated: no BatchNormalization with statistics stands behind one."
    direct = {each.input: each for each in first if each.input in reached}  # solved without a search
    fine = {v.name: _channels(v, shapes[v.name]) for v in movable if v.name not in direct}
    evaluations = STEPS * (2 * sum(fine.values()) + 4)
    counts = fine if evaluations * seconds < PATIENCE else dict.fromkeys(fine, 1)
    counts |= {name: len(each.mean) for name, each in direct.items()}
    feeds = generate(inputs, shapes, made, index=0, seed=seed).feeds
    start = [part for each in direct.values() for part in (each.mean, np.log(each.deviation))]
    moved = 2 * sum(n for name, n in counts.items() if name not in direct)
    try:
        problem = _Problem(Evaluator(model, directory=directory), first, feeds, counts)
        _, before = problem.look(np.zeros(2 * sum(counts.values())))
        p, after = _solved(problem, np.concatenate([np.zeros(moved), *start]), moved)
    except (UnsupportedOp, EvaluationError) as error:
        return made, f"The inputs are not calibrated: {error}"
    if not before or not after or not p.any():
        return made, "The inputs are not calibrated: no rescaling brings the normalizations closer to their statistics."
    affine = problem.affine(p)
    was, now = before[0], after[0]
    done = "; ".join(f"{name!r}: {_said(*affine[name])}" for name in affine)
    return replace(made, affine=affine), (
        f"Calibrated {done}. {now.node!r} sees a mean {now.mean:.2g}σ off and a spread of {now.spread:.2g}σ; "
        f"it was {was.mean:.2g}σ and {was.spread:.2g}σ."
    )


def _said(scale: Array, offset: Array) -> str:
    if not scale.ndim:
        return f"{float(scale):.3g}·x {float(offset):+.3g}"
    return (
        f"scales {scale.min():.3g} to {scale.max():.3g}, offsets {offset.min():.3g} to {offset.max():.3g} "
        f"for its {scale.size} channels"
    )


def _floating(value: GraphInput) -> bool:
    return value.elem_type in (1, 10, 11, 16)  # float, float16, double, bfloat16


def _channels(value: GraphInput, shape: tuple[int, ...]) -> int:
    return shape[1] if len(shape) > 1 and isinstance(value.dims[1], int) and 1 < shape[1] <= CHANNELS else 1


def _first(model: onnx.ModelProto, stored: Sequence[Stored], movable: set[str]) -> tuple[list[Stored], set[str]]:
    """The BatchNormalizations that no other one stands before, and the movable inputs that reach them."""
    outputs = {each.input: each for each in stored}
    behind: dict[str, frozenset[str]] = {name: frozenset((name,)) for name in movable}
    for node in model.graph.node:
        above = frozenset[str]().union(*(behind.get(name, frozenset()) for name in _reads(node)))
        normalizes = node.op_type == "BatchNormalization" and node.input[0] in outputs
        mark = frozenset(("",)) if normalizes and above else frozenset[str]()  # no input is called ""
        for name in node.output:
            behind[name] = above | mark
    first = [each for each in stored if behind.get(each.input) and "" not in behind[each.input]]
    return first, {name for each in first for name in behind[each.input]}


def _reads(node: onnx.NodeProto) -> list[str]:
    return [name for inner in nodes_of([node]) for name in inner.input if name]


def _solved(problem: _Problem, p: Array, moved: int) -> tuple[Array, list[Distance]]:
    """Levenberg and Marquardt's method with differences for derivatives; a step that does not help is not taken.

    Only the first `moved` parameters are.
    """
    residual, distances = problem.look(p)
    damping = 1e-3
    for _ in range(STEPS if moved else 0):
        size = float(residual @ residual)
        slopes = _slopes(problem, p[:moved], p[moved:], residual)
        square, gradient = slopes.T @ slopes, slopes.T @ residual
        scale = np.diag(square) + 1e-9 * (np.trace(square) / moved + 1e-30)
        for _ in range(4):
            step = np.zeros_like(p)
            step[:moved] = -np.linalg.solve(square + damping * np.diag(scale), gradient)
            step *= min(1.0, _LONGEST / max(float(np.abs(np.concatenate(problem.logarithms(step))).max()), 1e-30))
            tried, seen = problem.look(p + step)
            if float(tried @ tried) < size:
                break
            damping *= 10
        else:
            break
        p, residual, distances, damping = p + step, tried, seen, damping / 10
        if float(residual @ residual) > (1 - _ENOUGH) * size:
            break
    return p, distances


def _slopes(problem: _Problem, p: Array, rest: Array, residual: Array) -> Array:
    slopes = np.empty((len(residual), len(p)))
    for k in range(len(p)):
        moved = np.concatenate([p, rest])
        moved[k] += _NUDGE
        slopes[:, k] = (problem.look(moved)[0] - residual) / _NUDGE
    return slopes
