"""What a command does before anything heavy is imported."""

from __future__ import annotations

import gc
import os
import sys
from importlib import import_module

_THREADS = "OPENBLAS_NUM_THREADS"
_own: list[bool] = []


def in_own_process() -> None:
    """Nothing else lives in this process, and it ends with the command: no garbage is collected until `to_compute`."""
    _own.append(True)
    gc.disable()


def to_compute() -> None:
    """Models will be run and compared: what is no longer needed has to go."""
    if _own:
        gc.enable()


def without_blas_threads() -> None:
    """Import numpy without the threads that OpenBLAS starts with it: a fold multiplies no matrices."""
    if "numpy" in sys.modules or _THREADS in os.environ:
        return
    os.environ[_THREADS] = "1"
    try:
        import_module("numpy")
    finally:
        del os.environ[_THREADS]  # the processes that are started later have matrices to multiply
