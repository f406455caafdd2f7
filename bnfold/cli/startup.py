"""What a command does before anything heavy is imported."""

from __future__ import annotations

import gc
import os
import sys
from importlib import import_module

_THREADS = "OPENBLAS_NUM_THREADS"
_own: list[bool] = []


def in_own_process() -> None:
    """Nothing else lives in this process, and it ends with the command."""
    _own.append(True)


def only_fold() -> None:
    """No matrices will be multiplied and, in a process of its own, no cycles of objects be looked for."""
    without_blas_threads()
    if _own:
        gc.disable()


def without_blas_threads() -> None:
    """Import numpy without the threads that OpenBLAS starts with it."""
    if "numpy" in sys.modules or _THREADS in os.environ:
        return
    os.environ[_THREADS] = "1"
    try:
        import_module("numpy")
    finally:
        del os.environ[_THREADS]  # the processes that are started later have matrices to multiply
