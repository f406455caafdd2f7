"""Values inside the original: what both sides of a region are fed.

A bound of a region holds on any input, so they need not be the provider's own: the reference computes them, in the
model's own types, and only an original that it cannot evaluate is run on the provider with them as outputs.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from bnfold.errors import UnsupportedOp
from bnfold.files import ModelFile, save
from bnfold.reference import EvaluationError, Evaluator

from .cost import estimate
from .inputs import Sample
from .providers import Provider, ProviderDied, ProviderError
from .shelf import Shelf

__all__ = ["NoValue", "Teacher"]

Array = npt.NDArray[Any]
_GROUP = 1 << 29  # bytes of activations that the provider holds at once
_MEMORY = 1 << 28  # bytes of values that are kept in memory; and up to which all are kept, asked for or not


class NoValue(Exception):
    """Neither the reference nor the provider hands out this value of the original."""


class Teacher:
    """Values inside the original, for every sample. `names`: those that may be asked for.

    May load models into the provider.
    """

    def __init__(
        self, original: ModelFile, samples: Sequence[Sample], provider: Provider, names: Collection[str] = ()
    ) -> None:
        self._file, self._samples, self._provider = original, samples, provider
        made = sum(len(node.output) for node in original.model.graph.node)
        elements = [estimate(original.model, s.shapes).activations for s in samples]
        groups = math.ceil(4 * max(elements, default=0) / _GROUP)
        self._together = max(1, made // max(groups, 1))
        self._all = frozenset(names) if 4 * sum(elements) <= _MEMORY else frozenset[str]()
        self._shelf = Shelf(provider.folder, "value", _MEMORY)
        self._inputs = {value.name for value in original.model.graph.input}
        self._refused: set[str] = set()
        self._own: Evaluator | None = None
        self._evaluates = True

    def fetch(self, names: Iterable[str]) -> None:
        """Have the values ready, for all samples. Raises ProviderDied."""
        missing = self._missing(names)
        if missing and self._evaluates:
            self._evaluate(missing)
            missing = self._missing(missing)
        for start in range(0, len(missing), self._together):
            self._run(missing[start : start + self._together])

    def values(self, index: int, names: Iterable[str]) -> dict[str, Array]:
        """The values of one sample, read-only. Raises NoValue."""
        wanted = list(names)
        self.fetch(wanted)
        feeds = self._samples[index].feeds
        return {name: feeds[name] if name in feeds else self._stored(index, name) for name in wanted}

    def _missing(self, names: Iterable[str]) -> list[str]:
        last = len(self._samples) - 1  # the samples are filled in order
        known = self._inputs | self._refused
        return [name for name in dict.fromkeys(names) if name not in known and (last, name) not in self._shelf]

    def _stored(self, index: int, name: str) -> Array:
        if (index, name) not in self._shelf:
            raise NoValue(f"the provider does not hand out {name!r}")
        return self._shelf[index, name]

    def _evaluate(self, names: Sequence[str]) -> None:
        keep = self._all.union(names)
        try:
            if self._own is None:
                self._own = Evaluator(self._file.model, dtype=None, directory=self._file.directory)
            for index, sample in enumerate(self._samples):

                def observe(name: str, value: Any, index: int = index) -> None:
                    if name in keep and hasattr(value, "dtype"):  # sequences and optionals are none
                        self._shelf.put((index, name), value)

                with np.errstate(all="ignore"):
                    self._own.run(sample.feeds, list(names), observe=observe)
        except (UnsupportedOp, EvaluationError):
            self._evaluates = False

    def _run(self, names: Sequence[str]) -> None:
        try:
            self._load(names)
            for index, sample in enumerate(self._samples):
                found = self._provider.run(sample.feeds)
                for name in names:
                    self._shelf.put((index, name), found[name])
        except ProviderDied:
            raise
        except ProviderError:
            if len(names) == 1:
                self._refused.add(names[0])
                return
            self._run(self._missing(names[: len(names) // 2]))
            self._run(self._missing(names[len(names) // 2 :]))

    def _load(self, names: Sequence[str]) -> None:
        model = onnx.ModelProto()
        model.CopyFrom(self._file.model)
        there = {value.name for value in model.graph.output}
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
        path = self._provider.folder / "teacher.onnx"
        save(model, path, directory=self._file.directory)
        self._provider.load(path)
        path.unlink()
