"""What a command does before anything heavy is imported."""

from __future__ import annotations

import os
import sys
from importlib import import_module

_THREADS = "OPENBLAS_NUM_THREADS"


def without_blas_threads() -> None:
    """Import numpy without the threads that OpenBLAS starts with it: a fold multiplies no matrices."""
    if "numpy" in sys.modules or _THREADS in os.environ:
        return
    os.environ[_THREADS] = "1"
    try:
        import_module("numpy")
    finally:
        del os.environ[_THREADS]  # the processes that are started later have matrices to multiply
