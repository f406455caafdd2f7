"""What a fold made: the model, the report, and all that the check needs to know of how it was made."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx

from .affine import Array
from .dtypes import rounded
from .files import ModelFile, copy, materialized, save
from .files.pouring import Computed
from .graph import Graph, Node
from .plan import Plan
from .report import FoldReport
from .weights import Tensor, Watched

if TYPE_CHECKING:
    from .check.certificate import CertificateResult
    from .check.verdict import CheckResult


class Record(NamedTuple):
    """One source that was folded: the map as it was applied, for the certificate."""

    node: Node
    parameters: tuple[Tensor | None, ...]  # of its inputs, as they were then; None: a computed value
    scale: Array
    shift: Array
    plan: Plan


class _Exact(Mapping[str, Array]):
    """The float64 values, before rounding, of the tensors that a fold edited; computed when asked for."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Array:
        found = self._tensors[name]
        return np.asarray(found.exact() if found.is_float else rounded(found.exact(), found.data_type))

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


@dataclass(frozen=True, eq=False)
class FoldResult:
    """What `fold` made. `report` says what was folded and what was kept, and why; `changed` is False where nothing was.

    `model` is the folded ModelProto (external tensors still lie where they were); `source` the file as it was read.
    """

    report: FoldReport
    skeleton: onnx.ModelProto = field(repr=False)  # `model` without the bytes of large tensors
    source: ModelFile
    changed: bool
    rounded: tuple[str, ...]  # values that an op makes by rounding a folded source's: they must stay as they are
    _graphs: list[Graph] = field(repr=False)  # the main graph, then the bodies, outer ones first
    _records: list[Record] = field(repr=False)

    @cached_property
    def model(self) -> onnx.ModelProto:
        """The folded model, whole: the bytes of large tensors are read and computed when it is first asked for."""
        return materialized(self.skeleton, self.source.directory, self._folded)

    @property
    def _folded(self) -> Mapping[str, Computed]:
        main = self._graphs[0]
        if not main.late:
            return main.tensors
        edited = ((name, main.tensors[name]) for name in main.edited)
        return {name: Watched(each) if each.fits_late else each for name, each in edited}

    @property
    def exact(self) -> Mapping[str, Array]:
        """Initializer name -> its float64 value before rounding, for every tensor that was edited.

        The bodies of If, Loop and Scan are left out where a name of theirs stands for several tensors.
        """
        held = [name for graph in self._graphs for name in graph.tensors]
        whole = {name: tensor for edited in self.edited for name, tensor in edited.items()}
        return _Exact(whole if len(set(held)) == len(held) else self.edited[0])

    @cached_property
    def edited(self) -> Sequence[Mapping[str, Tensor]]:
        """The edited tensors with their steps, by name: the main graph's, then each body's."""
        return [{name: graph.tensors[name] for name in graph.edited} for graph in self._graphs]

    @property
    def records(self) -> Sequence[Record]:
        return self._records

    def certificate(self, candidate: str | os.PathLike[str] | onnx.ModelProto | None = None) -> CertificateResult:
        """Gate 1: every folded tensor of `candidate` (default: `.model`) is the correctly rounded one."""
        from .check.certificate import certify

        return certify(self, candidate)

    def check(
        self,
        *,
        samples: int | None = None,
        seed: int = 0,
        inputs: Sequence[str | os.PathLike[str]] | None = None,
        shapes: Mapping[str, Sequence[int]] | None = None,
        ranges: Mapping[str, tuple[float, float]] | None = None,
        calibrated: bool = False,
        threads: int | None = None,
        timeout: float | None = None,
        providers: Sequence[str] | None = None,
        tf32: bool = False,
        custom_ops: Sequence[str | os.PathLike[str]] = (),
        path: str | os.PathLike[str] | None = None,
        certificate_only: bool = False,
    ) -> CheckResult:
        """Whether the folded model (the file at `path`, if given) is the same function as the source.

        certificate_only: by gate 1 alone; nothing is run.
        """
        from .check import check

        original = self.source.path if self.source.path is not None else self.source.model
        candidate = path if path is not None else self.model
        return check(
            original,
            candidate,
            samples=samples,
            seed=seed,
            inputs=inputs,
            shapes=shapes,
            ranges=ranges,
            calibrated=calibrated,
            threads=threads,
            timeout=timeout,
            providers=providers,
            tf32=tf32,
            custom_ops=custom_ops,
            exact=self.exact,
            certificate=self.certificate(candidate),
            integers=self.rounded,
            certificate_only=certificate_only,
        )

    def save(self, path: str | os.PathLike[str]) -> list[Path]:
        """Write the model, unchecked: the file itself where nothing was folded. Returns the files written."""
        if not self.changed:
            return copy(self.source, path)
        # what was external stays external, be every such tensor edited
        if self.source.path is not None and Path(path).exists() and Path(path).samefile(self.source.path):
            _ = self.model  # what is read later would be read from another file
        external = bool(self.source.data) or None
        return save(self.skeleton, path, directory=self.source.directory, external=external, folded=self._folded)
