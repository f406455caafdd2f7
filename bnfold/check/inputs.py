"""Samples made from the graph, seeded: the same seed gives the same numbers on every machine.

A sample's kind says what it may show: noise (normal, uniform), borders and single positions (impulse), sign errors
(signs), saturation and overflow (large), the shift alone (zeros). Integers that index a table stay inside it.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from bnfold.errors import UsageError

from .indices import FLAGS, Interval, bounds
from .sizes import GraphInput
from .states import state_inputs
from .verdict import Settled, Verdict

__all__ = ["KINDS", "Recipe", "Sample", "generate", "recipe"]

Array = npt.NDArray[Any]
KINDS = ("normal", "zeros", "large", "uniform", "impulse", "signs")
_LARGE = 100.0  # standard deviations; half floats overflow early and get a tenth of it
_STATE = 0.1  # standard deviations: gates at work, none of them saturated


@dataclass(frozen=True)
class Sample:
    kind: str
    feeds: Mapping[str, Array]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: value.shape for name, value in self.feeds.items()}


@dataclass(frozen=True)
class Recipe:
    """What is known of the inputs, by name, all of it optional.

    intervals: closed, for integers and for floats. states: what begins at zero. affine: scale and offset, numbers or
    one for each channel (axis 1), that a floating input gets at the end.
    """

    intervals: Mapping[str, Interval] = field(default_factory=dict[str, Interval])
    states: frozenset[str] = frozenset()
    affine: Mapping[str, tuple[Array, Array]] = field(default_factory=dict[str, tuple[Array, Array]])


def recipe(
    model: onnx.ModelProto,
    inputs: Sequence[GraphInput],
    shapes: Mapping[str, tuple[int, ...]],
    ranges: Mapping[str, Interval] | None = None,
) -> Recipe:
    """What the graph says of its inputs, and `ranges`, the caller's, which count more. Raises UsageError."""
    given = {name: _range(name, limits, inputs) for name, limits in (ranges or {}).items()}
    return Recipe({**bounds(model, inputs, shapes), **given}, state_inputs(model, inputs) - given.keys())


def _range(name: str, limits: Sequence[float], inputs: Sequence[GraphInput]) -> Interval:
    known = {value.name: value for value in inputs}
    if name not in known:
        raise UsageError(
            f"The model has no input {name!r} to give a range; its inputs are {', '.join(known) or 'none'}."
        )
    if len(limits) != 2 or not all(np.isfinite(limits)):
        raise UsageError(f"The range of input {name!r} must be two finite numbers, the lowest and the highest.")
    low, high = float(limits[0]), float(limits[1])
    if low > high:
        raise UsageError(f"The range of input {name!r} begins at {low:g} and ends at {high:g}; the lower comes first.")
    dtype = _dtype(known[name])
    if dtype.kind in "iub":
        least, most = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        if low != int(low) or high != int(high) or limits[0] < least or limits[1] > most:
            raise UsageError(f"Input {name!r} is {dtype}; its range must be of integers from {least} to {most}.")
        return int(limits[0]), int(limits[1])
    with np.errstate(over="ignore"):
        held = np.array([low, high]).astype(dtype)
    if not np.isfinite(held).all():
        raise UsageError(f"Input {name!r} is {dtype}, which cannot hold its range from {low:g} to {high:g}.")
    return low, high


def generate(
    inputs: Sequence[GraphInput], shapes: Mapping[str, tuple[int, ...]], made: Recipe, *, index: int, seed: int
) -> Sample:
    """Sample number `index`: the kinds in turn, each input with its own stream of random numbers."""
    kind = KINDS[index % len(KINDS)]
    feeds: dict[str, Array] = {}
    for value in inputs:
        name, shape = value.name, shapes[value.name]
        rng = np.random.default_rng([seed, index, zlib.crc32(name.encode())])
        dtype = _dtype(value)
        if dtype.kind in "iub":
            limits = made.intervals.get(name, FLAGS)
            feeds[name] = _integers(kind, shape, int(limits[0]), int(limits[1]), rng).astype(dtype)
            continue
        if name in made.states:
            x = _STATE * rng.standard_normal(shape) if index else np.zeros(shape)
        elif name in made.intervals:
            x = _between(kind, shape, *made.intervals[name], rng)
        else:
            x = _floats(kind, shape, _LARGE / 10 if dtype.itemsize == 2 else _LARGE, rng)
        if name in made.affine:
            scale, offset = made.affine[name]
            x = x * _along(scale, x.ndim) + _along(offset, x.ndim)
        with np.errstate(over="ignore"):
            feeds[name] = np.asarray(x).astype(dtype)
    return Sample(kind, feeds)


def _dtype(value: GraphInput) -> "np.dtype[Any]":
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.elem_type))
    except KeyError:
        raise Settled(Verdict.INCONCLUSIVE, f"input {value.name!r} does not declare its element type") from None
    if dtype.kind in "iub" or (dtype.kind in "fV" and dtype.itemsize >= 2):
        return dtype
    raise Settled(Verdict.INCONCLUSIVE, f"input {value.name!r} is of type {dtype}, for which no data is made here")


def _along(parameter: Array, rank: int) -> Array:
    """A number, or a vector that belongs to axis 1."""
    return parameter.reshape(-1, *[1] * (rank - 2)) if parameter.ndim == 1 else parameter


def _integers(kind: str, shape: tuple[int, ...], low: int, high: int, rng: np.random.Generator) -> Array:
    if kind == "zeros":
        return np.full(shape, min(max(low, 0), high), object if high > 2**63 - 1 else np.int64)
    if kind == "large":
        return np.full(shape, high, object if high > 2**63 - 1 else np.int64)
    return rng.integers(low, high, shape, np.uint64 if high > 2**63 - 1 else np.int64, endpoint=True)


def _between(kind: str, shape: tuple[int, ...], low: float, high: float, rng: np.random.Generator) -> Array:
    """The kinds inside [low, high]: around its middle, its value nearest to zero, its ends ..."""
    rest = min(max(low, 0.0), high)
    match kind:
        case "zeros":
            return np.full(shape, rest)
        case "signs":
            return np.where(rng.random(shape) < 0.5, low, high)
        case "impulse":
            return np.where(_impulses(shape, rng) > 0, high if high != rest else low, rest)
        case "normal":
            return np.clip((low + high) / 2 + (high - low) / 4 * rng.standard_normal(shape), low, high)
        case _:
            return low + (high - low) * rng.random(shape)


def _floats(kind: str, shape: tuple[int, ...], large: float, rng: np.random.Generator) -> Array:
    match kind:
        case "zeros":
            return np.zeros(shape)
        case "large":
            return large * rng.standard_normal(shape)
        case "uniform":
            return rng.random(shape)
        case "signs":
            return np.where(rng.random(shape) < 0.5, -1.0, 1.0)
        case "impulse":
            return _impulses(shape, rng)
        case _:
            return rng.standard_normal(shape)


def _impulses(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Zeros with a single one in each channel (axis 1), at its own place; a vector has a single one."""
    x = np.zeros(shape)
    if x.size == 0:
        return x
    rows = x.reshape(shape[0] * shape[1], -1) if len(shape) > 2 else x.reshape(shape[0] if len(shape) > 1 else 1, -1)
    rows[np.arange(len(rows)), rng.integers(0, rows.shape[1], len(rows))] = 1.0
    return x
