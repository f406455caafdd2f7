"""A model file scanned, not loaded: the bytes of large tensors stay where they are, the skeleton holds the way there.

file  -> skeleton    raw_data (field 9 of a TensorProto) becomes external_data: this file, its offset and length
parts -> file        the same walk over a serialized skeleton, with the bytes put back and every length above corrected
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import onnx

from ..errors import MalformedModel, UnreadableModel

MARK = "bnfold.in_this_file"  # the external_data key of a tensor whose bytes are in the model file itself
FOLDED = "folded"  # its value where the bytes are still to be computed; else the stamp of the file they are in
BULK = 1 << 15  # bytes; a smaller tensor is read along with the skeleton
_WINDOW = 1 << 16  # bytes that one look at the file takes in
_DEPTH = 32  # bodies within bodies

# Which fields of which message may hold tensors: {field: message}
_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _TENSOR = "model", "graph", "node", "attribute", "tensor"
_INSIDE: dict[str, dict[int, str]] = {
    _MODEL: {7: _GRAPH},
    _GRAPH: {1: _NODE, 5: _TENSOR},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 11: _GRAPH},
    _TENSOR: {},
}
_RAW, _EXTERNAL_DATA, _DATA_LOCATION = 9, 13, 14
_T = TypeVar("_T")
_RAW_TAG = bytes((_RAW << 3 | 2,))


class Span(NamedTuple):
    """`length` bytes from `offset` on in an open file, to be copied as they are."""

    offset: int
    length: int


def stamp(descriptor: int) -> str:
    """What tells whether a file is still the one that was read."""
    info = os.fstat(descriptor)
    return f"{info.st_ino}:{info.st_mtime_ns}:{info.st_size}"


def is_marked(proto: onnx.TensorProto) -> bool:
    """Whether the tensor's bytes are in the model file, or still to be computed: it only looks external."""
    return proto.data_location == onnx.TensorProto.EXTERNAL and any(e.key == MARK for e in proto.external_data)


def is_folded(proto: onnx.TensorProto) -> bool:
    """Whether the bytes of a marked tensor are still to be computed."""
    return any(e.key == MARK and e.value == FOLDED for e in proto.external_data)


def mark(proto: onnx.TensorProto, value: str, location: str = "", offset: int = 0, length: int = 0) -> None:
    """Make `proto` one whose bytes are elsewhere."""
    proto.data_location = onnx.TensorProto.EXTERNAL
    entries = {"location": location, "offset": str(offset), "length": str(length)} if location else {}
    for key, text in {**entries, MARK: value}.items():
        proto.external_data.add(key=key, value=text)


class _File:
    """Random access to a file through a window; `varint` and `field` read at a position and return the next one."""

    def __init__(self, descriptor: int, size: int, path: Path) -> None:
        self.descriptor, self.size, self.path = descriptor, size, path
        self._start, self._window = 0, b""

    def read(self, offset: int, length: int) -> bytes:
        return pread(self.descriptor, length, offset)

    def _at(self, position: int) -> tuple[bytes, int]:
        inside = position - self._start
        if not 0 <= inside <= len(self._window) - 32:
            self._start = position
            self._window = pread(self.descriptor, min(_WINDOW, self.size - position), position)
            inside = 0
        return self._window, inside

    def varint(self, position: int) -> tuple[int, int]:
        window, at = self._at(position)
        value, shift, first = 0, 0, at
        while True:
            if at >= len(window) or shift > 63:
                raise self.damaged()
            byte = window[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position + at - first
            shift += 7

    def field(self, position: int, end: int, depth: int = 0) -> tuple[int, int, int, int]:
        """The field at `position`: (its number, its wire type, where its content begins, where it ends)."""
        tag, position = self.varint(position)
        number, kind = tag >> 3, tag & 7
        match kind:
            case 0:
                _, stop = self.varint(position)
            case 1:
                stop = position + 8
            case 2:
                length, position = self.varint(position)
                stop = position + length
            case 3:
                stop = self._group(number, position, end, depth + 1)
            case 5:
                stop = position + 4
            case _:
                raise self.damaged()
        if number == 0:
            raise self.damaged()
        if stop > self.size:
            raise UnreadableModel(
                f"{self.path} is cut short: it has {self.size} bytes and at least {stop - self.size} more are missing."
            )
        if stop > end:
            raise self.damaged()
        return number, kind, position, stop

    def _group(self, number: int, position: int, end: int, depth: int) -> int:
        """Where a group ends: an unknown field of the oldest protobuf, which no length delimits."""
        while position < end and depth < _DEPTH:
            tag, after = self.varint(position)
            if tag & 7 == 4:
                if tag >> 3 != number:
                    break
                return after
            position = self.field(position, end, depth)[3]
        raise self.damaged()

    def damaged(self) -> UnreadableModel:
        return UnreadableModel(f"{self.path} is not an ONNX model, or a damaged one: protobuf cannot parse it.")


def pread(descriptor: int, length: int, offset: int) -> bytes:
    """`length` bytes from `offset` on; fewer only at the end of the file."""
    if hasattr(os, "pread"):
        found = os.pread(descriptor, length, offset)
        while len(found) < length and (more := os.pread(descriptor, length - len(found), offset + len(found))):
            found += more  # Linux gives at most 2 GiB at once
        return found
    os.lseek(descriptor, offset, os.SEEK_SET)
    pieces: list[bytes] = []
    while length > 0 and (piece := os.read(descriptor, length)):
        pieces.append(piece)
        length -= len(piece)
    return b"".join(pieces)


def pread_into(descriptor: int, room: memoryview, offset: int) -> int:
    """Fill `room` with the bytes from `offset` on; returns how many there were, fewer only at the end of the file."""
    if not hasattr(os, "preadv"):
        found = pread(descriptor, len(room), offset)
        room[: len(found)] = found
        return len(found)
    done = os.preadv(descriptor, [room], offset)
    while done < len(room) and (more := os.preadv(descriptor, [room[done:]], offset + done)):
        done += more
    return done


def skeleton(descriptor: int, path: Path) -> bytes:
    """The model file without the bytes of its large tensors, each of which says where in the file they are."""
    size = os.fstat(descriptor).st_size
    file = _File(descriptor, size, path)
    pieces: list[bytes] = []
    count = _scan(file, 0, size, _MODEL, pieces, (path.name, stamp(descriptor)), 0)
    found = b"".join(pieces)
    if found.count(MARK.encode()) != count:
        raise MalformedModel(f"{path} holds the text '{MARK}', which is reserved.")
    return found


def _scan(file: _File, start: int, end: int, kind: str, pieces: list[bytes], where: tuple[str, str], depth: int) -> int:
    """Append to `pieces` what the message from `start` to `end` becomes; returns how many tensors were left behind."""
    inside = _INSIDE[kind]
    position = copied = start
    count = tensors = 0
    while position < end:
        number, wire, content, stop = file.field(position, end)
        tensors += kind == _ATTRIBUTE and number == 5
        if wire == 2 and number in inside and stop - content >= BULK and depth < _DEPTH:
            inner: list[bytes] = []
            if inside[number] == _TENSOR:
                left = _tensor(file, content, stop, inner, where)
            else:
                left = _scan(file, content, stop, inside[number], inner, where, depth + 1)
            if left:
                pieces.append(file.read(copied, position - copied))
                body = b"".join(inner)
                pieces += (_encoded(number << 3 | 2), _encoded(len(body)), body)
                copied, count = stop, count + left
        position = stop
    if tensors > 1 and count:  # protobuf merges them into one: what is left behind could be another's data
        pieces[:] = [file.read(start, end - start)]
        return 0
    pieces.append(file.read(copied, end - copied))
    return count


def _tensor(file: _File, start: int, end: int, pieces: list[bytes], where: tuple[str, str]) -> int:
    """The tensor without its raw_data; unchanged (0) where it has no large one, or data elsewhere too."""
    position, raw, other = start, None, b""
    while position < end:
        number, wire, content, stop = file.field(position, end)
        if number == _RAW and wire == 2 and raw is None:
            raw = Span(content, stop - content)
        elif stop - position >= BULK or number in (_RAW, _EXTERNAL_DATA, _DATA_LOCATION):
            return 0
        else:
            other += file.read(position, stop - position)
        position = stop
    if raw is None or raw.length < BULK:
        return 0
    tail = onnx.TensorProto()
    mark(tail, where[1], where[0], raw.offset, raw.length)
    pieces += (other, tail.SerializeToString(deterministic=True))
    return 1


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def parts(data: bytes, content: Callable[[onnx.TensorProto], _T], length: Callable[[_T], int]) -> list[bytes | _T]:
    """What a serialized skeleton becomes in a file: bytes, and the `content` of each marked tensor, `length` long."""
    places: list[int] = []
    key, at = MARK.encode(), -1
    while (at := data.find(key, at + 1)) >= 0:
        places.append(at)
    if not places:
        return [data]
    out: list[bytes | _T] = []
    _Emission(_Bytes(data), content, length).message(0, len(data), _MODEL, places, out)
    return out


class _Bytes(_File):
    """The same reader over bytes in memory."""

    def __init__(self, data: bytes) -> None:
        super().__init__(-1, len(data), Path())
        self._data = data

    def read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]

    def _at(self, position: int) -> tuple[bytes, int]:
        return self._data, position


class _Emission(Generic[_T]):
    """The walk over a skeleton that puts the bytes back; each method returns how long its part has become."""

    def __init__(self, file: _Bytes, content: Callable[[onnx.TensorProto], _T], length: Callable[[_T], int]) -> None:
        self._file, self._content, self._length = file, content, length

    def message(self, start: int, end: int, kind: str, places: list[int], out: list[bytes | _T]) -> int:
        inside = _INSIDE[kind]
        copied, total = start, 0
        for number, first, begin, stop, within in self._fields(start, end, places):
            if not within or number not in inside:
                continue
            inner: list[bytes | _T] = []
            if inside[number] == _TENSOR:
                length = self._tensor(self._file.read(begin, stop - begin), inner)
            else:
                length = self.message(begin, stop, inside[number], within, inner)
            head = self._file.read(copied, first - copied) + _encoded(number << 3 | 2) + _encoded(length)
            out.append(head)
            out += inner
            total += len(head) + length
            copied = stop
        out.append(self._file.read(copied, end - copied))
        return total + end - copied

    def _fields(self, start: int, end: int, places: list[int]) -> Iterator[tuple[int, int, int, int, list[int]]]:
        """The length-delimited fields with the places inside each: (number, start, content, end, places)."""
        at, position = 0, start
        while position < end and at < len(places):
            number, wire, begin, stop = self._file.field(position, end)
            first = at
            while at < len(places) and places[at] < stop:
                at += 1
            if wire == 2:
                yield number, position, begin, stop, places[first:at]
            position = stop

    def _tensor(self, data: bytes, out: list[bytes | _T]) -> int:
        """A marked tensor with its bytes back; the fields stay in the order that protobuf writes them in."""
        proto = onnx.TensorProto.FromString(data)
        if not is_marked(proto):
            out.append(data)
            return len(data)
        content = self._content(proto)
        length = self._length(content)
        proto.ClearField("external_data")
        proto.ClearField("data_location")
        whole = proto.SerializeToString(deterministic=True)
        file, at = _Bytes(whole), 0
        while at < len(whole):
            number, _, _, stop = file.field(at, len(whole))
            if number > _RAW:
                break
            at = stop
        head = whole[:at] + _RAW_TAG + _encoded(length)
        out += (head, content, whole[at:])
        return len(head) + length + len(whole) - at
