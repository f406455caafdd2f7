"""The original's own activations, as the provider computes them: what both sides of a region are fed.

They are read by running a copy of the original with these values as outputs, so many at a time as fit into memory, and
lie on disk until they are needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from bnfold.files import ModelFile, save

from .cost import estimate
from .inputs import Sample
from .providers import Provider, ProviderDied, ProviderError

__all__ = ["NoValue", "Teacher"]

Array = npt.NDArray[Any]
_GROUP = 1 << 29  # bytes of activations that the provider holds at once


class NoValue(Exception):
    """The provider does not hand out this value of the original."""


class Teacher:
    """Values inside the original, for every sample. Loads models into the provider as it needs them."""

    def __init__(self, original: ModelFile, samples: Sequence[Sample], provider: Provider) -> None:
        self._file, self._samples, self._provider = original, samples, provider
        made = sum(len(node.output) for node in original.model.graph.node)
        elements = max((estimate(original.model, s.shapes).activations for s in samples), default=0)
        groups = math.ceil(4 * elements / _GROUP)
        self._together = max(1, made // max(groups, 1))
        self._number: dict[str, int] = {}  # of the file that holds it; -1: the provider refuses

    def fetch(self, names: Iterable[str]) -> None:
        """Have the values ready, for all samples. Raises ProviderDied."""
        inputs = {value.name for value in self._file.model.graph.input}
        missing = [name for name in dict.fromkeys(names) if name not in self._number and name not in inputs]
        for start in range(0, len(missing), self._together):
            self._run(missing[start : start + self._together])

    def values(self, index: int, names: Iterable[str]) -> dict[str, Array]:
        """The values of one sample, read-only. Raises NoValue."""
        wanted = list(names)
        self.fetch(wanted)
        feeds = self._samples[index].feeds
        return {name: feeds[name] if name in feeds else self._stored(index, name) for name in wanted}

    def _stored(self, index: int, name: str) -> Array:
        number = self._number.get(name, -1)
        if number < 0:
            raise NoValue(f"the provider does not hand out {name!r}")
        return np.load(self._provider.folder / f"value{number}-{index}.npy", mmap_mode="r")

    def _run(self, names: Sequence[str]) -> None:
        try:
            self._load(names)
            for index, sample in enumerate(self._samples):
                found = self._provider.run(sample.feeds)
                for name in names:
                    number = self._number.setdefault(name, len(self._number))
                    np.save(self._provider.folder / f"value{number}-{index}.npy", found[name])
        except ProviderDied:
            raise
        except ProviderError:
            for name in names:
                self._number.pop(name, None)
            if len(names) == 1:
                self._number[names[0]] = -1
                return
            self._run(names[: len(names) // 2])
            self._run(names[len(names) // 2 :])

    def _load(self, names: Sequence[str]) -> None:
        model = onnx.ModelProto()
        model.CopyFrom(self._file.model)
        there = {value.name for value in model.graph.output}
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
        path = self._provider.folder / "teacher.onnx"
        save(model, path, directory=self._file.directory)
        self._provider.load(path)
        path.unlink()
