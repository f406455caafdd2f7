"""Arrays by key, read-only: in memory as long as they are few, then in files of a folder."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Shelf"]

Array = npt.NDArray[Any]


class Shelf:
    """`limit`: bytes in memory; what comes later lies in `folder`, which has to outlive the shelf."""

    def __init__(self, folder: Path, name: str, limit: int) -> None:
        self._folder, self._name, self._left = folder, name, limit
        self._arrays: dict[Hashable, Array] = {}
        self._files: dict[Hashable, tuple[Path, np.dtype[Any]]] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._arrays or key in self._files

    def put(self, key: Hashable, value: Array) -> None:
        """Keep a value; one that is there already stays."""
        if key in self:
            return
        value = np.asarray(value)
        if value.nbytes <= self._left:
            self._left -= value.nbytes
            kept = np.array(value)  # what computed it may hold a larger array of which this is a part
            kept.flags.writeable = False
            self._arrays[key] = kept
            return
        path = self._folder / f"{self._name}{len(self._files)}.npy"
        plain = np.ascontiguousarray(value).reshape(value.shape)
        np.save(path, plain.view(f"V{value.itemsize}") if value.dtype.kind == "V" else plain)  # bfloat16 has no code
        self._files[key] = path, value.dtype

    def __getitem__(self, key: Hashable) -> Array:
        if key in self._arrays:
            return self._arrays[key]
        path, dtype = self._files[key]
        return np.load(path, mmap_mode="r").view(dtype)
