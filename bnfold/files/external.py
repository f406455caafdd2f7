"""External tensor data: (location, offset, length) beside the model, checked before a byte of it is believed.

A model file may come from anyone. A location must stay inside the model's directory, the range inside its file, and the
length must be what type and shape say; then a tensor is read with one pread, when somebody asks for it.
"""

from __future__ import annotations

import math
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

import onnx

from ..errors import MalformedModel, UnreadableModel
from .wire import MARK, is_marked, pread, pread_into, stamp

_BITS = {
    **dict.fromkeys(("FLOAT", "INT32", "UINT32"), 32),
    **dict.fromkeys(("DOUBLE", "INT64", "UINT64", "COMPLEX64"), 64),
    **dict.fromkeys(("FLOAT16", "BFLOAT16", "INT16", "UINT16"), 16),
    **dict.fromkeys(("INT8", "UINT8", "BOOL"), 8),
    **dict.fromkeys(("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0"), 8),
    **dict.fromkeys(("INT4", "UINT4", "FLOAT4E2M1"), 4),
    **dict.fromkeys(("INT2", "UINT2"), 2),
    "COMPLEX128": 128,
}
# a TensorProto type that the installed onnx does not know has no number there
BITS: dict[int, int] = {
    onnx.TensorProto.DataType.Value(name): bits
    for name, bits in _BITS.items()
    if name in onnx.TensorProto.DataType.keys()  # noqa: SIM118 - a protobuf enum wrapper is no dict
}


class Extent(NamedTuple):
    """A tensor's bytes: `length` of them from `offset` on in the file `path`.

    `stamp`: what the file must still be; "" where it is the user's own data file.
    """

    path: Path
    offset: int
    length: int
    stamp: str = ""

    def open(self) -> int:
        """A descriptor to read from. Raises UnreadableModel if the file is no longer the one that was read."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise UnreadableModel(f"{self.path} can no longer be read: {error.strerror}.") from error
        if self.stamp and stamp(descriptor) != self.stamp:
            os.close(descriptor)
            raise UnreadableModel(f"{self.path} was changed after it was read.")
        return descriptor


class Sources:
    """Files that are read from, each opened once, by several threads; a context manager that closes them."""

    def __init__(self) -> None:
        self._open: dict[tuple[Path, str], int] = {}
        self._opening = threading.Lock()

    def open(self, extent: Extent) -> int:
        """The descriptor of the extent's file."""
        key = extent.path, extent.stamp
        with self._opening:
            if key not in self._open:
                self._open[key] = extent.open()
            return self._open[key]

    def read_into(self, room: memoryview, extent: Extent, start: int = 0) -> None:
        """Fill `room` with the extent's bytes from `start` on. Raises MalformedModel where the file ends before."""
        if pread_into(self.open(extent), room, extent.offset + start) < len(room):
            raise MalformedModel(f"{extent.path} was cut short while it was read.")

    def __enter__(self) -> Sources:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()


def payload(proto: onnx.TensorProto) -> int:
    """The number of bytes that type and shape of `proto` ask for; raises MalformedModel when either is no good."""
    dims = proto.dims
    if dims and min(dims) < 0:
        raise MalformedModel(f"Tensor '{proto.name}' has a negative size in its shape {list(dims)}.")
    bits = BITS.get(proto.data_type)
    if bits is None:
        raise MalformedModel(f"Tensor '{proto.name}' has the unknown element type {proto.data_type}.")
    return (math.prod(dims) * bits + 7) // 8


def extent(proto: onnx.TensorProto, directory: Path | None) -> Extent:
    """Where the bytes of an external tensor are, after every check; raises MalformedModel."""
    directory = Path() if directory is None else directory
    entries = {entry.key: entry.value for entry in proto.external_data}
    same = entries.get(MARK, "")
    place = entries.get("location", "")
    if same:  # in the model file itself, as it was when it was scanned; `Extent.open` sees whether it still is
        path, size = directory / place, int(same.rpartition(":")[2])
    else:
        path = _inside(proto.name, place, directory)
        size = _size(proto.name, path)
    offset = _count(proto.name, "offset", entries.get("offset", "0"))
    expected = payload(proto)
    length = _count(proto.name, "length", entries["length"]) if "length" in entries else size - offset
    if offset + max(length, 0) > size or length < 0:
        raise MalformedModel(
            f"Tensor '{proto.name}' ends at byte {offset + expected} of {path}, which has only {size}: "
            "the data file is cut short or belongs to another model."
        )
    if length != expected:
        raise MalformedModel(
            f"Tensor '{proto.name}' of shape {list(proto.dims)} needs {expected} bytes, but {path} gives it {length}."
        )
    return Extent(path, offset, length, same)


def _size(name: str, path: Path) -> int:
    try:
        info = path.stat()
    except OSError as error:
        raise MalformedModel(
            f"Tensor '{name}' lies in {path}, which cannot be read: {error.strerror}. "
            "External data must stand beside the model; copy it there."
        ) from error
    if not stat.S_ISREG(info.st_mode):
        raise MalformedModel(f"Tensor '{name}' lies in {path}, which is not a regular file.")
    return info.st_size


def read_external(proto: onnx.TensorProto, directory: Path | None, start: int = 0, length: int | None = None) -> bytes:
    """The bytes of an external tensor, little-endian, or `length` of them from `start` on.

    Raises MalformedModel when they are not where the model says.
    """
    where = extent(proto, directory)
    if length is not None:
        where = where._replace(offset=where.offset + start, length=length)
    return b"".join(blocks(where, where.length))


def blocks(where: Extent, size: int = 1 << 24) -> Iterator[bytes]:
    """The bytes of an extent, `size` at a time."""
    descriptor = where.open()
    try:
        offset, end = where.offset, where.offset + where.length
        while offset < end:
            block = pread(descriptor, min(size, end - offset), offset)
            if not block:
                raise MalformedModel(f"{where.path} was cut short while it was read.")
            offset += len(block)
            yield block
    finally:
        os.close(descriptor)


def is_external(proto: onnx.TensorProto) -> bool:
    """Whether the tensor's bytes are in a data file beside the model."""
    return proto.data_location == onnx.TensorProto.EXTERNAL and not is_marked(proto)


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every TensorProto of a model: initializers and attributes, of subgraphs and functions too."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _node_tensors(node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        match attribute.type:
            case onnx.AttributeProto.TENSOR:
                yield attribute.t
            case onnx.AttributeProto.TENSORS:
                yield from attribute.tensors
            case onnx.AttributeProto.SPARSE_TENSOR:
                yield attribute.sparse_tensor.values
                yield attribute.sparse_tensor.indices
            case onnx.AttributeProto.GRAPH:
                yield from _graph_tensors(attribute.g)
            case onnx.AttributeProto.GRAPHS:
                for graph in attribute.graphs:
                    yield from _graph_tensors(graph)
            case _:
                pass


def location(proto: onnx.TensorProto) -> str:
    """The file name that an external tensor gives, unchecked."""
    return next((entry.value for entry in proto.external_data if entry.key == "location"), "")


def _inside(name: str, place: str, directory: Path) -> Path:
    if not place or "\0" in place:
        raise MalformedModel(f"Tensor '{name}' is external, but does not say in which file.")
    posix, windows = PurePosixPath(place), PureWindowsPath(place)
    if posix.is_absolute() or windows.drive or windows.root or ".." in posix.parts or ".." in windows.parts:
        raise MalformedModel(f"Tensor '{name}' lies in '{place}', outside the model's directory; that is refused.")
    path = directory / place
    try:
        stays = path.resolve().is_relative_to(directory.resolve())
    except (OSError, RuntimeError) as error:  # a loop of links
        raise MalformedModel(f"Tensor '{name}' lies in '{place}', which cannot be resolved: {error}.") from error
    if not stays:
        raise MalformedModel(
            f"Tensor '{name}' lies in '{place}', a symbolic link that leaves the model's directory; "
            "that is refused. Copy the model and its data into one directory."
        )
    return path


def _count(name: str, key: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise MalformedModel(f"Tensor '{name}' has the external {key} '{text[:40]}', which is not a byte count.")
    return int(text)
