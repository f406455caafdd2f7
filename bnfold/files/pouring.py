"""Pouring parts into a file: bytes, copied extents, and tensors that are computed block by block where they belong.

Every part has its place, so blocks are written with pwrite by as many threads as there are cores; numpy lets go of the
interpreter while it computes. What is copied goes through the kernel (copy_file_range, sendfile) where that works.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from ..errors import MalformedModel
from .external import Extent, Sources, blocks
from .wire import pread

_BLOCK = 1 << 20  # bytes that are copied at once where the kernel does not do it
_THREADED = 1 << 22  # bytes; less than that is computed before a second thread has started
_COPIED = "copy_file_range", "sendfile"  # ways of the kernel, the best first


class Computed(Protocol):
    """Bytes that do not exist yet: pieces of (offset, how to compute them), in any order, that cover all of them.

    What computes a piece is given the files to read from; its answer holds until the same thread computes another one.
    """

    @property
    def nbytes(self) -> int: ...

    def pieces(self) -> Iterator[tuple[int, Callable[[Sources], bytes | memoryview]]]: ...


Content = bytes | Extent | Computed


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
        to_compute: list[tuple[int, Computed]] = []
        with Sources() as sources:
            for offset, content in _joined(parts):
                if isinstance(content, bytes):
                    _put(descriptor, content, offset)
                elif isinstance(content, Extent):
                    _copy(sources.open(content), content, descriptor, offset)
                else:
                    to_compute.append((offset, content))
            _compute(descriptor, to_compute, sources)
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


def _compute(descriptor: int, tensors: Sequence[tuple[int, Computed]], sources: Sources) -> None:
    lock = None if hasattr(os, "pwrite") else threading.Lock()
    jobs = ((offset + at, make) for offset, tensor in tensors for at, make in tensor.pieces())

    def work() -> None:
        while True:
            with taking:
                job = next(jobs, None)
            if job is None or failed:
                return
            try:
                _put(descriptor, job[1](sources), job[0], lock)
            except BaseException as error:  # it is raised again below, in the thread that waits
                failed.append(error)
                return

    taking, failed = threading.Lock(), list[BaseException]()
    count = min(os.cpu_count() or 1, 8) if sum(tensor.nbytes for _, tensor in tensors) >= _THREADED else 1
    if count == 1:
        work()
    else:
        threads = [threading.Thread(target=work) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failed:
        raise failed[0]


def _put(descriptor: int, data: bytes | memoryview, offset: int, lock: threading.Lock | None = None) -> None:
    view = memoryview(data)
    if hasattr(os, "pwrite"):
        while view:
            done = os.pwrite(descriptor, view, offset)
            view, offset = view[done:], offset + done
        return
    with lock or threading.Lock():
        os.lseek(descriptor, offset, os.SEEK_SET)
        while view:
            view = view[os.write(descriptor, view) :]


def _copy(source: int, extent: Extent, target: int, offset: int) -> None:
    left, at = extent.length, extent.offset
    for way in _COPIED:
        if not hasattr(os, way):
            continue
        try:
            while left:
                if way == "copy_file_range":
                    done = os.copy_file_range(source, target, min(left, 1 << 30), at, offset)
                else:
                    os.lseek(target, offset, os.SEEK_SET)
                    done = os.sendfile(target, source, at, min(left, 1 << 30))
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
        _put(target, block, offset)
        left, at, offset = left - len(block), at + len(block), offset + len(block)
