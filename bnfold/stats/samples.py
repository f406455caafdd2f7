"""Samples streamed from .npz files: a slice of rows at a time, so that an archive may be larger than the memory.

Which axis holds the samples is what `--inputs` means everywhere: see check/given.py.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt

from ..check.given import ROWS, samples_of
from ..check.sizes import GraphInput
from ..errors import UsageError

__all__ = ["Batch", "Source", "batches", "shapes_in"]

Array = npt.NDArray[Any]
Source = str | os.PathLike[str] | Mapping[str, Array]


@dataclass(frozen=True)
class Batch:
    """What is fed at once, and where it came from, for people."""

    feeds: Mapping[str, Array]
    at: str


class _Rows(Protocol):
    """An array that gives its rows one slice after the other."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def take(self, count: int) -> Array: ...


def batches(sources: Sequence[Source], inputs: Sequence[GraphInput]) -> Iterator[Batch]:
    """Every sample of every source, in order, in batches as large as the model or `ROWS` allows. Raises UsageError."""
    for source in sources:
        if isinstance(source, Mapping):
            held = {name: _Held(np.asarray(value)) for name, value in source.items()}
            yield from _cut("The inputs given", held, inputs)
            continue
        with _reading(Path(source)) as members:
            yield from _cut(str(source), members, inputs)


@contextmanager
def _reading(path: Path) -> Generator[dict[str, _Rows]]:
    """The arrays of an archive, open while the block lasts."""
    with ExitStack() as stack:
        try:
            members = _opened(path, stack)
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror or error}.") from error
        except UsageError:
            raise
        except Exception as error:  # a damaged archive makes zipfile and numpy raise whatever comes to their mind
            raise UsageError(f"{path} is not an .npz file of plain arrays; make one with numpy.savez.") from error
        yield members


def shapes_in(sources: Sequence[Source]) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and type of each array of the first source, by name. Raises UsageError as `batches` does."""
    for source in sources:
        if isinstance(source, Mapping):
            return {name: (np.shape(value), np.asarray(value).dtype) for name, value in source.items()}
        with _reading(Path(source)) as members:
            return {name: (rows.shape, rows.dtype) for name, rows in members.items()}
    return {}


def _cut(title: str, arrays: Mapping[str, _Rows], inputs: Sequence[GraphInput]) -> Iterator[Batch]:
    steps = _steps(arrays, inputs)
    whole = {name: rows.take(rows.shape[0] if rows.shape else 1) for name, rows in arrays.items() if name not in steps}
    counts = {name: -(-arrays[name].shape[0] // step) for name, step in steps.items()}
    if len(set(counts.values())) > 1:
        (first, some), (other, more) = [(name, counts[name]) for name in counts][:2]
        raise UsageError(f"{title}: input {first!r} has {some} samples and {other!r} {more}.")
    if not steps:
        yield from (Batch(sample.feeds, title) for sample in samples_of(title, whole, inputs))
        return
    lengths = {arrays[name].shape[0] for name, step in steps.items() if step == ROWS}
    if len(lengths) > 1:
        raise UsageError(f"{title}: the inputs have different numbers of rows: {', '.join(map(str, sorted(lengths)))}.")
    count, (step, *_) = max(counts.values()), steps.values()
    for k in range(count):
        part = {name: arrays[name].take(n) for name, n in steps.items()}
        rows = len(next(iter(part.values())))
        for sample in samples_of(title, {**whole, **part}, inputs):
            yield Batch(sample.feeds, f"{title}, rows {k * step} to {k * step + rows - 1}")


def _steps(arrays: Mapping[str, _Rows], inputs: Sequence[GraphInput]) -> dict[str, int]:
    """How many rows of each input make a batch; an input that is not named is the same in all of them."""
    known = [value for value in inputs if value.name in arrays]
    stacked = {v.name: 1 for v in known if len(arrays[v.name].shape) == len(v.dims) + 1 and arrays[v.name].shape[0]}
    if stacked:
        return stacked
    fitting = [value for value in known if value.dims and len(arrays[value.name].shape) == len(value.dims)]
    fixed = {v.name: v.dims[0] for v in fitting if isinstance(v.dims[0], int)}
    longer = {name: n for name, n in fixed.items() if arrays[name].shape[0] > n and not arrays[name].shape[0] % n}
    if longer:
        return longer
    batch = next((v.dims[0] for v in fitting if len(v.dims) > 1 and isinstance(v.dims[0], str)), None)
    if batch is None or any(batch in value.dims[1:] for value in inputs):
        return {}
    return {v.name: ROWS for v in fitting if v.dims[0] == batch and arrays[v.name].shape[0]}


class _Held:
    """An array in memory."""

    def __init__(self, array: Array) -> None:
        self.shape, self.dtype = array.shape, array.dtype
        self._array, self._at = array, 0

    def take(self, count: int) -> Array:
        if not self.shape:
            return self._array
        self._at += count
        return self._array[self._at - count : self._at]


class _Member:
    """An array of an archive, read as it is asked for."""

    def __init__(self, title: str, file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = shape, dtype
        self._title, self._file = title, file
        self._left = shape[0] if shape else 1

    def take(self, count: int) -> Array:
        count = min(count, self._left)
        self._left -= count
        shape = (count, *self.shape[1:]) if self.shape else ()
        length = int(np.prod(shape, dtype=object)) * self.dtype.itemsize
        try:
            data = self._file.read(length)
        except (OSError, EOFError, zipfile.BadZipFile, ValueError) as error:
            raise UsageError(f"{self._title} cannot be read: {error}.") from error
        except Exception as error:  # zlib's own
            raise UsageError(f"{self._title} is damaged: {error}.") from error
        if len(data) != length:
            raise UsageError(f"{self._title} is cut short.")
        return np.frombuffer(data, self.dtype).reshape(shape)


def _opened(path: Path, stack: ExitStack) -> dict[str, _Rows]:
    with path.open("rb") as file:
        if file.read(6) == b"\x93NUMPY":
            raise UsageError(f"{path} holds a single array; give an .npz file whose keys are the input names.")
    archive = stack.enter_context(zipfile.ZipFile(path))
    found: dict[str, _Rows] = {}
    for entry in archive.namelist():
        name = entry.removesuffix(".npy")
        member = stack.enter_context(archive.open(entry))
        version = np.lib.format.read_magic(member)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(member)
        if dtype.hasobject or dtype.names:
            raise ValueError("no plain array")
        if fortran and len(shape) > 1:  # its rows do not stand together
            with np.load(path, allow_pickle=False) as loaded:
                found[name] = _Held(loaded[name])
        else:
            found[name] = _Member(f"{path}: {name}", member, tuple(shape), dtype)
    return found
