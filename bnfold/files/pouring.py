"""Pouring parts into a file: bytes, copied extents, and tensors that are computed block by block where they belong.

Every part has its place, so blocks are written with pwrite by as many threads as there are cores; numpy lets go of the
interpreter while it computes. What is copied goes through the kernel (copy_file_range, sendfile) where that works.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from ..errors import MalformedModel
from .external import Extent, Sources, blocks
from .wire import pread

_BLOCK = 1 << 20  # bytes that are copied at once where the kernel does not do it
_COPY = 1 << 22  # bytes that one job copies
_THREADED = 1 << 22  # bytes; a smaller file is done before a second thread has started
_COPIED = "copy_file_range", "sendfile"  # ways of the kernel, the best first


class Computed(Protocol):
    """Bytes that do not exist yet: pieces of (offset, how to compute them), in any order, that cover all of them.

    What computes a piece is given the files to read from; its answer holds until the same thread computes another one.
    """

    @property
    def nbytes(self) -> int: ...

    def pieces(self) -> Iterator[tuple[int, Callable[[Sources], bytes | memoryview]]]: ...


Content = bytes | Extent | Computed
_Job = Callable[[Sources], None]


def length_of(content: Content) -> int:
    """How many bytes a part stands for."""
    if isinstance(content, bytes):
        return len(content)
    return content.length if isinstance(content, Extent) else content.nbytes


def gathered(content: Content) -> bytes:
    """All the bytes of a part."""
    if isinstance(content, bytes):
        return content
    if isinstance(content, Extent):
        return b"".join(blocks(content))
    whole = bytearray(content.nbytes)
    with Sources() as sources:
        for at, make in content.pieces():
            piece = make(sources)
            whole[at : at + len(piece)] = piece
    return bytes(whole)


def pour(path: Path, parts: Sequence[tuple[int, Content]], size: int) -> None:
    """Make the file `path`, `size` bytes long, out of (offset, content); what no part covers is 0."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0), 0o666)
    try:
        os.ftruncate(descriptor, size)
        target = _Target(descriptor)
        # All jobs beforehand: what a thread does in Python between two blocks, the other threads wait for.
        jobs: list[_Job] = []
        for offset, content in _joined(parts):
            if isinstance(content, bytes):
                target.put(content, offset)
            elif isinstance(content, Extent):
                jobs += _copies(target, content, offset)
            else:
                jobs += (partial(_make, target, offset + at, make) for at, make in content.pieces())
        _do(jobs, threads(size))
    finally:
        os.close(descriptor)


def _joined(parts: Sequence[tuple[int, Content]]) -> Iterator[tuple[int, Content]]:
    """Neighbours in the target that are neighbours in the source too become one."""
    start, pieces, run = 0, list[bytes](), None
    for offset, content in parts:
        if run is not None:
            at, extent = run
            same = isinstance(content, Extent) and (content.path, content.stamp) == (extent.path, extent.stamp)
            if same and isinstance(content, Extent) and content.offset - extent.offset == offset - at == extent.length:
                run = at, Extent(extent.path, extent.offset, extent.length + content.length, extent.stamp)
                continue
            yield run
            run = None
        if isinstance(content, bytes):
            if pieces and start + sum(map(len, pieces)) == offset and len(pieces) < 256:
                pieces.append(content)
                continue
            if pieces:
                yield start, b"".join(pieces)
            start, pieces = offset, [content]
            continue
        if pieces:
            yield start, b"".join(pieces)
            pieces = []
        if isinstance(content, Extent):
            run = offset, content
        else:
            yield offset, content
    if run is not None:
        yield run
    if pieces:
        yield start, b"".join(pieces)


def _copies(target: _Target, extent: Extent, offset: int) -> Iterator[_Job]:
    for start in range(0, extent.length, _COPY):
        part = Extent(extent.path, extent.offset + start, min(_COPY, extent.length - start), extent.stamp)
        yield partial(target.copy, part, offset + start)


def _make(target: _Target, offset: int, make: Callable[[Sources], bytes | memoryview], sources: Sources) -> None:
    target.put(make(sources), offset)


def threads(size: int) -> int:
    """How many threads make a file of `size` bytes."""
    positioned = hasattr(os, "pread") and hasattr(os, "pwrite")  # else the threads would move each other's position
    return min(os.cpu_count() or 1, 8) if positioned and size >= _THREADED else 1


def _do(jobs: list[_Job], count: int) -> None:
    """Do all of them, the first first, in `count` threads: this one too, for one that only waits keeps others waiting
    for its core."""
    jobs.reverse()
    failed: list[BaseException] = []

    def work() -> None:
        while not failed:
            try:
                job = jobs.pop()
            except IndexError:  # there is none left
                return
            try:
                job(sources)
            except BaseException as error:  # it is raised again below, in the thread that waits
                failed.append(error)

    with Sources() as sources:
        others = [threading.Thread(target=work) for _ in range(min(count, len(jobs)) - 1)]
        for thread in others:
            thread.start()
        try:
            work()
        finally:
            for thread in others:
                thread.join()
    if failed:
        raise failed[0]


class _Target:
    """The file that is made, written at any place by any thread."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._moving = threading.Lock()  # the position that the file has for calls that take none

    def put(self, data: bytes | memoryview, offset: int) -> None:
        view = memoryview(data)
        if hasattr(os, "pwrite"):
            while view:
                done = os.pwrite(self._descriptor, view, offset)
                view, offset = view[done:], offset + done
            return
        with self._moving:
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            while view:
                view = view[os.write(self._descriptor, view) :]

    def copy(self, extent: Extent, offset: int, sources: Sources) -> None:
        source, target = sources.open(extent), self._descriptor
        left, at = extent.length, extent.offset
        for way in _COPIED:
            if not hasattr(os, way):
                continue
            try:
                while left:
                    if way == "copy_file_range":
                        done = os.copy_file_range(source, target, left, at, offset)
                    else:
                        with self._moving:
                            os.lseek(target, offset, os.SEEK_SET)
                            done = os.sendfile(target, source, at, left)
                    if not done:
                        break
                    left, at, offset = left - done, at + done, offset + done
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG):
                    raise
                continue  # another file system, or a kernel that does not know how: the next way
        while left:
            block = pread(source, min(_BLOCK, left), at)
            if not block:
                raise MalformedModel(f"{extent.path} was cut short while it was read.")
            self.put(block, offset)
            left, at, offset = left - len(block), at + len(block), offset + len(block)
