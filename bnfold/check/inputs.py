"""The inputs of a check: seeded samples made from the graph, or the caller's own.

A sample's kind says what it may show: noise (normal, uniform), borders and single positions (impulse), sign errors
(signs), saturation and overflow (large), the shift alone (zeros). Integers that index a table stay inside it.
"""

import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from bnfold.errors import UsageError

from .sizes import GraphInput
from .verdict import Settled, Verdict

__all__ = ["KINDS", "Sample", "generate", "integer_ranges", "read_samples"]

Array = npt.NDArray[Any]
KINDS = ("normal", "zeros", "large", "uniform", "impulse", "signs")
_LARGE = 100.0  # standard deviations; half floats overflow early and get a tenth of it
_TO_INDICES = frozenset(
    ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Clip", "Slice", "Split", "Expand")
)
_SAFE = (0, 2)  # for integers of unknown meaning: masks, flags and token types are 0 or 1


@dataclass(frozen=True)
class Sample:
    kind: str
    feeds: Mapping[str, Array]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: value.shape for name, value in self.feeds.items()}


def generate(
    inputs: Sequence[GraphInput],
    shapes: Mapping[str, tuple[int, ...]],
    ranges: Mapping[str, tuple[int, int]],
    *,
    index: int,
    seed: int,
) -> Sample:
    """Sample number `index`: the kinds in turn, each input with its own stream of random numbers.

    `ranges`: for integer inputs the half-open range of values. The same seed gives the same sample on every machine.
    """
    kind = KINDS[index % len(KINDS)]
    feeds: dict[str, Array] = {}
    for value in inputs:
        rng = np.random.default_rng([seed, index, zlib.crc32(value.name.encode())])
        feeds[value.name] = _array(kind, value, shapes[value.name], ranges.get(value.name, _SAFE), rng)
    return Sample(kind, feeds)


def _array(
    kind: str, value: GraphInput, shape: tuple[int, ...], limits: tuple[int, int], rng: np.random.Generator
) -> Array:
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.elem_type))
    except KeyError:
        raise Settled(Verdict.INCONCLUSIVE, f"input {value.name!r} does not declare its element type") from None
    if dtype == np.bool_:
        return np.zeros(shape, dtype) if kind == "zeros" else rng.integers(0, 2, shape).astype(dtype)
    if dtype.kind in "iu":
        low, high = limits
        if kind == "zeros":
            return np.full(shape, min(max(low, 0), high - 1), dtype)
        return np.full(shape, high - 1, dtype) if kind == "large" else rng.integers(low, high, shape).astype(dtype)
    if dtype.kind not in "fV" or dtype.itemsize < 2:
        raise Settled(Verdict.INCONCLUSIVE, f"input {value.name!r} is of type {dtype}, for which no data is made here")
    with np.errstate(over="ignore"):
        return _floats(kind, shape, _LARGE / 10 if dtype.itemsize == 2 else _LARGE, rng).astype(dtype)


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


def integer_ranges(model: onnx.ModelProto, inputs: Sequence[GraphInput]) -> dict[str, tuple[int, int]]:
    """For every integer input the half-open range of values that is safe to feed."""
    weights = {proto.name: tuple(proto.dims) for proto in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.output:
            weights.update((node.output[0], tuple(a.t.dims)) for a in node.attribute if a.name == "value")
    shapes = {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in (*model.graph.input, *model.graph.value_info)
        if value.type.tensor_type.HasField("shape")
    }
    shapes.update(weights)
    return {i.name: _range(model.graph, i, shapes) for i in inputs if _is_integer(i.elem_type)}


def _is_integer(elem_type: int) -> bool:
    try:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(elem_type)).kind in "iu"
    except KeyError:
        return False


def _range(graph: onnx.GraphProto, value: GraphInput, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    bounds: list[int] = []
    low = 0
    reached = {value.name}
    for node in graph.node:
        hit = [slot for slot, name in enumerate(node.input) if name in reached]
        if not hit:
            continue
        if node.op_type in _TO_INDICES and 0 in hit:
            reached.update(name for name in node.output if name)
        elif node.op_type in ("Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND") and 1 in hit:
            table = shapes.get(node.input[0], ())
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            if node.op_type.endswith("ND"):
                bounds.append(min(table, default=1))
            else:
                bounds.append(table[axis] if -len(table) <= axis < len(table) else 1)
        elif node.op_type in ("LSTM", "GRU", "RNN") and 4 in hit:
            low = 1  # a sequence has at least one step, and no fewer steps are known to exist
    if bounds:
        return 0, max(min(bounds), 1)
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.elem_type))
    if dtype.itemsize == 1:
        return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max) + 1  # bytes are data: pixels, quantised values
    return low, _SAFE[1]


def read_samples(
    sources: Sequence[str | os.PathLike[str] | Mapping[str, Array]], inputs: Sequence[GraphInput]
) -> list[Sample]:
    """The caller's samples, each an .npz file or a mapping from input name to array; raises UsageError."""
    return [_read(source, inputs) for source in sources]


def _read(source: str | os.PathLike[str] | Mapping[str, Array], inputs: Sequence[GraphInput]) -> Sample:
    if isinstance(source, Mapping):
        title, arrays = "The inputs given", {name: np.asarray(value) for name, value in source.items()}
    else:
        title, arrays = str(source), _load(Path(source))
    wanted = {value.name: value for value in inputs}
    missing = [name for name in wanted if name not in arrays]
    unknown = [name for name in arrays if name not in wanted]
    if missing or unknown:
        lack = f"lacks the input {missing[0]!r}" if missing else f"holds {unknown[0]!r}, which is no input"
        raise UsageError(f"{title} {lack}; the model's inputs are {', '.join(wanted) or 'none'}.")
    sizes: dict[str, int] = {}
    feeds = {name: _fitted(title, arrays[name], value, sizes) for name, value in wanted.items()}
    return Sample("given", feeds)


def _load(path: Path) -> dict[str, Array]:
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise UsageError(f"{path} holds a single array; give an .npz file whose keys are the input names.")
            with archive:
                return {name: archive[name] for name in archive.files}
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, EOFError, KeyError) as error:
        raise UsageError(f"{path} is not an .npz file of plain arrays; make one with numpy.savez.") from error
    except Exception as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path} is not an .npz file, or a damaged one: {error}.") from error


def _fitted(title: str, array: Array, value: GraphInput, sizes: dict[str, int]) -> Array:
    if array.ndim != len(value.dims):
        raise UsageError(
            f"{title}: input {value.name!r} has {array.ndim} dimensions; the model wants {len(value.dims)}."
        )
    for axis, (dim, size) in enumerate(zip(value.dims, array.shape, strict=True)):
        wanted = dim if isinstance(dim, int) else sizes.setdefault(dim, size)
        if wanted != size:
            raise UsageError(f"{title}: input {value.name!r} has {size} on axis {axis}; it must be {wanted}.")
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.elem_type))
    if array.dtype == dtype:
        return array
    if not np.can_cast(array.dtype, dtype, "same_kind") and not (array.dtype.kind in "iu" and dtype.kind == "f"):
        raise UsageError(f"{title}: input {value.name!r} is of type {array.dtype}; the model wants {dtype}.")
    return array.astype(dtype)
