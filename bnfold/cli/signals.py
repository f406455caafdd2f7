"""Ctrl-C and SIGTERM: an exception, so that a half-made file is removed on the way out, and a note of it.

The exception may be lost, for a library may swallow what is raised inside its callbacks or imports; the note is not,
and nothing is moved into place after one.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

_received: list[int] = []


@contextmanager
def caught() -> Generator[None]:
    """Handle both signals in here, on the main thread; elsewhere Python allows no handlers."""
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    _received.clear()
    before = {number: signal.signal(number, _handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_received() -> None:
    """Raise for a signal that came earlier and was lost."""
    if _received:
        _stop(_received[-1])


def _handle(number: int, frame: FrameType | None) -> None:
    _received.append(number)
    _stop(number)


def _stop(number: int) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
