"""The tensor store: where a tensor's bytes are, read when asked for, rounded once, when they are written.

A `Tensor` never changes. An edit derives another one that shares the bytes and adds a step `W -> scale*W + shift`
in float64; `exact()` is the value before rounding, `rounded()` the one that a model file gets.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from .affine import Affine, Array
from .dtypes import DTYPES, FLOATS, LARGEST, LOST, itemsize, rounded, type_name
from .errors import MalformedModel
from .files.external import BITS, Extent, Sources, extent, read_external
from .files.wire import BULK, FOLDED, mark

_VALUE = """raw_data float_data int32_data int64_data double_data uint64_data external_data data_location""".split()
_BLOCK = 1 << 20  # bytes of a tensor that are computed at once; with less, threads wait more for the interpreter
_KEPT = 1 << 22  # bytes, or elements: rooms of more than this are not kept
_CACHED = 1 << 16  # tensors of up to this many elements keep their float64 value: BN parameters, biases


@dataclass(slots=True, eq=False)
class Tensor:
    """A constant of the graph: its original bytes and the edits since. `data_type` is ONNX's TensorProto code."""

    name: str
    data_type: int
    shape: tuple[int, ...]
    proto: onnx.TensorProto | None = None  # None: zeros, an operand that the original did not have
    directory: Path | None = None  # of the model file, where external data lies
    steps: tuple[Affine, ...] = ()
    _exact: Array | None = field(default=None, repr=False)
    stored: bytes | None = field(default=None, repr=False)  # the rounded value, where it is known already

    @property
    def is_float(self) -> bool:
        return self.data_type in FLOATS

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * itemsize(self.data_type)

    def array(self) -> NDArray[Any]:
        """The original array in its stored type, of the original's shape; read anew at each call."""
        if self.proto is None:
            return np.zeros(self.shape, np.float64)
        return read(self.proto, self.directory)

    def doubles(self) -> Array:
        """The original array in float64."""
        with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
            return self.array().astype(np.float64)

    def exact(self) -> Array:
        """The float64 value with every edit applied and nothing rounded. Do not write into it."""
        if self._exact is not None:
            return self._exact
        value = self.doubles()
        with np.errstate(invalid="ignore"):  # 0 * infinity: misfit() tells
            for step in self.steps:
                if not step.is_pure_shift:
                    value = value * step.scale
                if not step.is_pure_scale:
                    value = value + step.shift
        if value.shape != self.shape:
            value = np.broadcast_to(value, self.shape)
        if self.size <= _CACHED:
            self._exact = value
        return value

    def after(self, step: Affine, shape: tuple[int, ...] | None = None) -> Tensor:
        """This tensor with one more edit; its shape is the broadcast one unless `shape` is given."""
        if shape is None:
            shape = np.broadcast_shapes(self.shape, step.scale.shape, step.shift.shape)
        return Tensor(self.name, self.data_type, shape, self.proto, self.directory, (*self.steps, step))

    def named(self, name: str) -> Tensor:
        """The same tensor under another name."""
        return Tensor(
            name, self.data_type, self.shape, self.proto, self.directory, self.steps, self._exact, self.stored
        )

    def retyped(self, data_type: int) -> Tensor:
        """The same value, to be stored as another floating type."""
        return Tensor(self.name, data_type, self.shape, self.proto, self.directory, self.steps)

    def to_proto(self, name: str, *, later: bool = False) -> onnx.TensorProto:
        """The edited tensor, rounded once to its stored type; `later`: a large one is computed when it is written."""
        proto = onnx.TensorProto(name=name, data_type=self.data_type, dims=self.shape)
        if later and self.nbytes >= BULK:
            mark(proto, FOLDED)
        else:
            proto.raw_data = self.raw()
        if self.proto is not None and self.proto.doc_string:
            proto.doc_string = self.proto.doc_string
        return proto

    def raw(self) -> bytes:
        """The edited tensor's bytes, rounded once to its stored type."""
        return rounded(self.exact(), self.data_type).tobytes() if self.stored is None else self.stored

    def write_over(self, proto: onnx.TensorProto, *, later: bool = False) -> None:
        """`to_proto` into the protobuf that holds the original value; what else that protobuf says stays."""
        mine = self.proto
        if mine is None or mine.name != proto.name:
            proto.CopyFrom(self.to_proto(proto.name, later=later))
            return
        if self.stored is not None and proto.HasField("raw_data"):
            proto.raw_data = self.stored
            return
        for field_name in _VALUE:
            proto.ClearField(field_name)
        proto.data_type = self.data_type
        proto.dims[:] = self.shape
        if later and self.nbytes >= BULK:
            mark(proto, FOLDED)
        else:
            proto.raw_data = self.raw()

    def pieces(self) -> Iterator[tuple[int, Callable[[Sources], bytes | memoryview]]]:
        """The edited tensor's bytes, rounded once, in blocks of rows: (offset in bytes, what computes the block)."""
        if not self._in_rows():
            yield 0, lambda _: self.raw()
            return
        width = self.nbytes // self.shape[0]
        edits: list[tuple[np.ufunc, Array]] = []
        for step in self.steps:
            edits += [] if step.is_pure_shift else [(np.multiply, step.scale)]
            edits += [] if step.is_pure_scale else [(np.add, step.shift)]
        for start, stop, stored in self._blocks():
            yield start * width, partial(self._rows, [(op, _cut(c, start, stop)) for op, c in edits], stored)

    def _in_rows(self) -> bool:
        """Whether a row of the result needs only that row of the original."""
        if self.proto is None or not self.shape or tuple(self.proto.dims) != self.shape or not self.size:
            return False
        return all(c.ndim in (0, len(self.shape)) for step in self.steps for c in (step.scale, step.shift))

    def _rows(
        self, edits: Sequence[tuple[np.ufunc, Array]], stored: Callable[[Sources], NDArray[Any]], files: Sources
    ) -> memoryview:
        block = stored(files)
        # What was read from a file stands in a room of ours, where the result can take its place: nobody needs it.
        over = block.flags.writeable and self.is_float and block.dtype == DTYPES.get(self.data_type)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            if over and len(edits) == 1:
                op, coefficients = edits[0]
                op(block, coefficients, out=block, dtype=np.float64, casting="same_kind")
            else:
                value = _room.doubles(block.size).reshape(block.shape)
                np.copyto(value, block)
                for op, coefficients in edits:
                    op(value, coefficients, out=value)
                if over:
                    np.copyto(block, value, casting="same_kind")
                else:
                    block = rounded(value, self.data_type)
        return block.reshape(-1).view(np.uint8).data

    def _blocks(self) -> Iterator[tuple[int, int, Callable[[Sources], NDArray[Any]]]]:
        """The original in blocks of rows: (the first, the one after the last, what reads them). It has an axis.

        Nothing is read yet. What is read from a file stands in a room that the thread's next block takes.
        """
        assert self.proto is not None
        proto, (count, *sizes) = self.proto, tuple(self.proto.dims)
        dtype = DTYPES.get(proto.data_type)
        if dtype is None:  # bfloat16, which numpy has of ml_dtypes; what is smaller than a byte is taken out whole
            dtype = onnx.helper.tensor_dtype_to_np_dtype(proto.data_type) if BITS[proto.data_type] >= 8 else None
        external = proto.data_location == onnx.TensorProto.EXTERNAL and dtype is not None
        where, whole = (extent(proto, self.directory), None) if external else (None, _Whole(self.array))
        width = math.prod(sizes) * itemsize(proto.data_type)
        step = max(1, _BLOCK // max(1, width))
        for start in range(0, count, step):
            stop = min(start + step, count)
            if where is not None and dtype is not None:
                yield start, stop, partial(_read_rows, where, dtype, (stop - start, *sizes), start * width)
            elif whole is not None:
                yield start, stop, partial(whole.rows, start, stop)

    @property
    def fits_late(self) -> bool:
        """Whether `Watched` finds out, while the tensor is written, what `misfit` would have to read all of it for."""
        proto = self.proto
        if proto is None or self.nbytes < BULK or proto.data_location != onnx.TensorProto.EXTERNAL:
            return False  # a smaller one is not computed while it is written
        same = proto.data_type == self.data_type
        return same and self.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE) and self._in_rows()

    def misfit(self) -> str | None:
        """Why the edited value does not fit its stored type (overflow; in float16 a value lost to 0 too), or None."""
        if not self.is_float or (self.data_type not in LOST and self._fits()):
            return None  # an integer's map is made to stay in its range
        exact = self.exact()
        stored = rounded(exact, self.data_type)
        as_float = exact if self.data_type == onnx.TensorProto.BFLOAT16 else stored.astype(np.float64)
        over = ~np.isfinite(as_float) | (np.abs(exact) > LARGEST[self.data_type])
        if over.any():  # what was infinite before, a bound or a mask, may stay so
            over &= ~(np.isinf(exact) & np.isinf(np.broadcast_to(self.doubles(), exact.shape)))
        lost = (exact != 0) & (np.abs(exact) <= LOST.get(self.data_type, 0.0))
        for bad, what in ((over, "overflow to infinity"), (lost, "become 0")):
            if bad.any():
                where = np.unravel_index(int(np.argmax(bad)), bad.shape)
                index = ", ".join(map(str, where))
                return f"{self.name}[{index}] = {exact[where]:.6g} would {what} in {type_name(self.data_type)}"
        return None

    def _fits(self) -> bool:
        if self.size <= _CACHED:
            exact = self.exact()
            return not exact.size or float(np.abs(exact).max()) < LARGEST[self.data_type] / 2
        top = self._top()  # a bound instead of a look at each element: only huge scales can leave the range
        for step in self.steps:
            top = top * float(np.abs(step.scale).max()) + float(np.abs(step.shift).max())
        return top < LARGEST[self.data_type] / 2

    def _top(self) -> float:
        """The largest absolute value of the original; NaN if it holds one."""
        if self.proto is None or not self.proto.dims:
            return float(np.abs(self.doubles()).max(initial=0.0))
        found = [0.0]
        with Sources() as files:
            for _, _, stored in self._blocks():
                block = stored(files)
                if block.size:
                    found += [float(block.max()), -float(block.min())]
        return math.nan if any(map(math.isnan, found)) else max(found)


class OutOfRange(Exception):
    """A tensor that was believed to fit its type may not: its `misfit` has to be asked before it is written."""


class Watched(NamedTuple):
    """A tensor whose range is looked at while it is computed: its pieces raise OutOfRange."""

    tensor: Tensor

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes

    def pieces(self) -> Iterator[tuple[int, Callable[[Sources], bytes | memoryview]]]:
        for at, make in self.tensor.pieces():
            yield at, partial(self._piece, make)

    def _piece(self, make: Callable[[Sources], bytes | memoryview], files: Sources) -> bytes | memoryview:
        piece = make(files)
        values: NDArray[Any] = np.frombuffer(piece, DTYPES[self.tensor.data_type])
        top = LARGEST[self.tensor.data_type]
        if values.size and not (-top < values.min() and values.max() < top):  # NaN is not
            raise OutOfRange(self.tensor.name)
        return piece


def zeros(name: str, shape: Sequence[int], data_type: int) -> Tensor:
    """An operand that the model does not have and that counts as 0: a bias."""
    return Tensor(name, data_type, tuple(shape))


def tensor(proto: onnx.TensorProto, directory: Path | None, name: str | None = None) -> Tensor:
    """The store's entry for `proto`; nothing is read yet."""
    return Tensor(proto.name if name is None else name, proto.data_type, tuple(proto.dims), proto, directory)


def read(proto: onnx.TensorProto, directory: Path | None) -> NDArray[Any]:
    """The array of a TensorProto, from its own bytes or from the external file in `directory`."""
    dtype = DTYPES.get(proto.data_type)
    try:
        if proto.data_location == onnx.TensorProto.EXTERNAL:
            raw = read_external(proto, directory)
            if dtype is None:
                inline = onnx.TensorProto(name=proto.name, data_type=proto.data_type, dims=proto.dims, raw_data=raw)
                return onnx.numpy_helper.to_array(inline)
            return np.frombuffer(raw, dtype).reshape(tuple(proto.dims))
        if dtype is not None and proto.HasField("raw_data"):
            return np.frombuffer(proto.raw_data, dtype).reshape(tuple(proto.dims))
        return onnx.numpy_helper.to_array(proto)
    except (ValueError, TypeError) as error:
        raise MalformedModel(f"Tensor '{proto.name}' cannot be read: {error}.") from error


class _Room(threading.local):
    """Where a thread computes one block after the other: memory that is new each time costs more than the product."""

    def __init__(self) -> None:
        self._bytes, self._doubles = bytearray(), np.empty(0)

    def bytes(self, count: int) -> memoryview:
        if count > len(self._bytes):
            if count > _KEPT:
                return memoryview(bytearray(count))
            self._bytes = bytearray(max(count, _BLOCK))
        return memoryview(self._bytes)[:count]

    def doubles(self, count: int) -> Array:
        if count > self._doubles.size:
            if count > _KEPT:
                return np.empty(count)
            self._doubles = np.empty(max(count, _BLOCK // 4))  # a block of float32
        return self._doubles[:count]


_room = _Room()


def _read_rows(where: Extent, dtype: np.dtype[Any], shape: tuple[int, ...], start: int, files: Sources) -> NDArray[Any]:
    room = _room.bytes(math.prod(shape) * dtype.itemsize)
    files.read_into(room, where, start)
    return np.frombuffer(room, dtype).reshape(shape)


class _Whole:
    """An array that is made when its first rows are asked for, and goes with the last that may ask."""

    def __init__(self, make: Callable[[], NDArray[Any]]) -> None:
        self._make, self._made, self._making = make, None, threading.Lock()

    def rows(self, start: int, stop: int, _: Sources) -> NDArray[Any]:
        with self._making:
            if self._made is None:
                self._made = self._make()
        held = self._made[start:stop]
        held.flags.writeable = False  # it is the original itself
        return held


def _cut(coefficients: Array, start: int, stop: int) -> Array:
    """The rows of coefficients that broadcast to the tensor."""
    return coefficients[start:stop] if coefficients.ndim and coefficients.shape[0] > 1 else coefficients
