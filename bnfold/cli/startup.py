"""What a command does before anything heavy is imported."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from types import ModuleType

_THREADS = "OPENBLAS_NUM_THREADS"
# What `import onnx` brings along and a fold of a binary model has no use for: an eighth of what its imports take.
_LATER = frozenset(
    """google.protobuf.internal.python_message google.protobuf.json_format google.protobuf.text_format
    onnx.checker onnx.compose onnx.gen_proto onnx.helper onnx.numpy_helper onnx.parser onnx.printer
    onnx.shape_inference onnx.utils onnx.version_converter""".split()
)
_own: list[bool] = []


def in_own_process() -> None:
    """Nothing else lives in this process, and it ends with the command: no garbage is collected until `to_compute`."""
    _own.append(True)
    gc.disable()


def to_compute() -> None:
    """Models will be run and compared: what is no longer needed has to go."""
    if _own:
        gc.enable()


def to_fold_alone() -> None:
    """Import numpy and onnx for a fold that compares nothing: numpy without the threads that OpenBLAS starts with it,
    for a fold multiplies no matrices; onnx with some of its modules executed only when something in them is asked for.
    """
    if "numpy" not in sys.modules and _THREADS not in os.environ:
        os.environ[_THREADS] = "1"
        try:
            import_module("numpy")
        finally:
            del os.environ[_THREADS]  # the processes that are started later have matrices to multiply
    if _own and "onnx" not in sys.modules:
        sys.meta_path.insert(0, _Later)
        try:
            import_module("onnx")
        finally:
            sys.meta_path.remove(_Later)


class _Later:
    """Finds the modules of _LATER, to be executed at the first look into them."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        found = PathFinder.find_spec(name, path, target) if name in _LATER else None
        if found is not None and found.loader is not None:
            found.loader = LazyLoader(found.loader)
        return found
