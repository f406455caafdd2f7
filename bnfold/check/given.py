"""The caller's own samples: .npz files or mappings, one sample each or many.

array [N, ...]             as the model declares it: one sample
array [S, N, ...]          one axis more in front than declared: S samples
array [k·N, ...]           N fixed: k samples; N free: slices of at most 16 rows
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from bnfold.errors import UsageError

from .inputs import Sample
from .sizes import GraphInput

__all__ = ["ROWS", "read_samples", "samples_of"]

Array = npt.NDArray[Any]
ROWS = 16  # of a free batch that are fed at once


def read_samples(
    sources: Sequence[str | os.PathLike[str] | Mapping[str, Array]], inputs: Sequence[GraphInput]
) -> list[Sample]:
    """The samples of all sources in order, each a file or a mapping from input name to array; raises UsageError."""
    found = [sample for source in sources for sample in _read(source, inputs)]
    if not found:
        raise UsageError("The inputs given hold no sample.")
    return found


def _read(source: str | os.PathLike[str] | Mapping[str, Array], inputs: Sequence[GraphInput]) -> list[Sample]:
    if isinstance(source, Mapping):
        title, arrays = "The inputs given", {name: np.asarray(value) for name, value in source.items()}
    else:
        title, arrays = str(source), _load(Path(source))
    return samples_of(title, arrays, inputs)


def samples_of(title: str, arrays: Mapping[str, Array], inputs: Sequence[GraphInput]) -> list[Sample]:
    """The samples that the arrays of one source hold; `title` is its name in the sentences of a UsageError."""
    wanted = {value.name: value for value in inputs}
    missing = [name for name in wanted if name not in arrays]
    unknown = [name for name in arrays if name not in wanted]
    if missing or unknown:
        lack = f"lacks the input {missing[0]!r}" if missing else f"holds {unknown[0]!r}, which is no input"
        raise UsageError(f"{title} {lack}; the model's inputs are {', '.join(wanted) or 'none'}.")
    return [Sample("given", feeds) for feeds in _samples(title, arrays, inputs)]


def _samples(title: str, arrays: Mapping[str, Array], inputs: Sequence[GraphInput]) -> Iterator[dict[str, Array]]:
    """The archive's samples, one after the other; what has no axis of samples is the same in all of them."""
    stacked = [value for value in inputs if arrays[value.name].ndim == len(value.dims) + 1]
    if stacked:
        count = _agreed(title, {value.name: len(arrays[value.name]) for value in stacked}, "samples")
        several = {value.name for value in stacked}
        for k in range(count):
            yield _one(title, {name: x[k] if name in several else x for name, x in arrays.items()}, inputs)
        return
    cut = _steps(title, arrays, inputs)
    if not cut:
        yield _one(title, arrays, inputs)
        return
    count = max(-(-len(arrays[name]) // step) for name, step in cut.items())
    for k in range(count):
        part = {name: x[k * cut[name] : (k + 1) * cut[name]] if name in cut else x for name, x in arrays.items()}
        yield _one(title, part, inputs)


def _steps(title: str, arrays: Mapping[str, Array], inputs: Sequence[GraphInput]) -> dict[str, int]:
    """For the inputs whose rows make several samples, how many rows are one."""
    fitting = [value for value in inputs if value.dims and arrays[value.name].ndim == len(value.dims)]
    fixed = {value.name: value.dims[0] for value in fitting if isinstance(value.dims[0], int)}
    longer = {name: n for name, n in fixed.items() if len(arrays[name]) > n and len(arrays[name]) % n == 0}
    if longer:
        _agreed(title, {name: len(arrays[name]) // n for name, n in longer.items()}, "samples")
        return longer
    batch = next((v.dims[0] for v in fitting if len(v.dims) > 1 and isinstance(v.dims[0], str)), None)
    shared = [value for value in fitting if value.dims[0] == batch]
    elsewhere = any(batch in value.dims[1:] for value in inputs)
    if batch is None or elsewhere or len(arrays[shared[0].name]) <= ROWS:
        return {}
    _agreed(title, {value.name: len(arrays[value.name]) for value in shared}, "rows")
    return {value.name: ROWS for value in shared}


def _agreed(title: str, counts: Mapping[str, int], what: str) -> int:
    (name, count), *others = counts.items()
    for other, found in others:
        if found != count:
            raise UsageError(f"{title}: input {name!r} has {count} {what} and {other!r} {found}.")
    return count


def _one(title: str, arrays: Mapping[str, Array], inputs: Sequence[GraphInput]) -> dict[str, Array]:
    sizes: dict[str, int] = {}
    return {value.name: _fitted(title, arrays[value.name], value, sizes) for value in inputs}


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
