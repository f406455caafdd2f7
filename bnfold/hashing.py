"""SHA-256 of files; one that will be asked for can be begun beside other work. Imports next to nothing."""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
from contextlib import suppress
from pathlib import Path

_BLOCK = 1 << 23  # bytes: each block is one wait for the interpreter, which the other work holds
_WORTH = 1 << 22  # bytes; a smaller file is hashed before a thread has started
_begun: dict[tuple[int, ...], _Begun] = {}


class _Begun:
    def __init__(self, path: Path) -> None:
        self._found = ""
        self._thread = threading.Thread(target=self._work, args=(path,), daemon=True)
        self._thread.start()

    def _work(self, path: Path) -> None:
        with suppress(OSError):  # whoever asks for the digest meets it again
            self._found = _digest(path, None)

    def result(self) -> str:
        self._thread.join()
        return self._found


def begin(path: Path) -> None:
    """Begin with the digest of a large file; `digest` waits for it."""
    with suppress(OSError, ValueError):
        key = _stamp(path)
        if key not in _begun and path.is_file() and path.stat().st_size >= _WORTH:
            _begun[key] = _Begun(path)


def digest(path: Path, length: int | None = None) -> str:
    """The SHA-256 of a file, in hex; of its first `length` bytes where that is given."""
    begun = _begun.pop(_stamp(path), None) if length is None and _begun else None
    return (begun.result() if begun is not None else "") or _digest(path, length)


def _digest(path: Path, length: int | None) -> str:
    value = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        left = os.fstat(file.fileno()).st_size if length is None else length
        size = max(1, min(_BLOCK, left))
        room = memoryview(mmap.mmap(-1, size))  # a bytearray would be cleared while all other threads wait
        while (length is None or left > 0) and (count := file.readinto(room[: left if length is not None else None])):
            value.update(room[:count])
            left -= count
    return value.hexdigest()


def _stamp(path: Path) -> tuple[int, ...]:
    info = path.stat()
    return info.st_dev, info.st_ino, info.st_mtime_ns, info.st_size
