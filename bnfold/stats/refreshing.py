"""Population statistics for the BatchNormalizations of an ONNX model, layer after layer: a layer's inputs are measured
when all layers before it have theirs already, as inference will feed it.

running_mean, running_var = the mean and the (biased) variance of all the data, each rounded once to its stored type
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx

from .. import receipt
from ..files import ModelFile, load, materialized, save
from ..functions import inlined
from .layers import found
from .measuring import bench
from .moments import Moments
from .samples import Source
from .staleness import Drift, Figures, drift_of
from .storing import Store
from .swapping import swapped

__all__ = ["Measured", "Refreshed", "drift", "refresh"]

Model = str | os.PathLike[str] | onnx.ModelProto


@dataclass(frozen=True)
class Measured(Figures):
    """What `drift` found in the file `source`."""

    source: ModelFile = field(repr=False)


@dataclass(frozen=True)
class Refreshed(Measured):
    """What `refresh` made. `layers` say how far the old statistics were from the new ones; `passes` over the data."""

    skeleton: onnx.ModelProto = field(repr=False)
    passes: int
    moments: tuple[Moments, ...] = field(repr=False)  # as measured, before rounding

    @property
    def model(self) -> onnx.ModelProto:
        """The model with its new statistics, whole."""
        return materialized(self.skeleton, self.source.directory)

    def save(self, path: str | os.PathLike[str]) -> list[Path]:
        """Write the model; returns the files written, the model first. What was external stays external."""
        skeleton = self.skeleton
        if self.source.path is not None and Path(path).exists() and Path(path).samefile(self.source.path):
            skeleton = self.model  # what is read later would be read from another file
        return save(skeleton, path, directory=self.source.directory, external=bool(self.source.data) or None)


def drift(
    model: Model,
    inputs: Sequence[Source],
    *,
    threads: int | None = None,
    timeout: float | None = None,
    custom_ops: Sequence[str | os.PathLike[str]] = (),
    effects: bool = True,
) -> Measured:
    """How far the stored statistics are from those of what the layers are fed, by the model as it is. One pass; changes
    nothing.

    model: a path or a ModelProto. inputs: .npz files, or mappings from input name to array; axis 0 is the samples.
    effects: also find what each layer does to the model's output, on the first batches.
    threads: of the runtime; timeout: seconds for one run; custom_ops: libraries of operators.
    Raises UsageError for data that do not fit, UnreadableModel and its kin for the model.
    """
    source = _opened(model)
    layers, left = found(source)
    if not layers:
        return Measured((), tuple(left), 0, source)
    with bench(source, inputs, threads=threads, timeout=timeout, custom_ops=custom_ops) as on:
        moments = on.measure(layers)
        rows, drifts = on.rows, [drift_of(layer, each) for layer, each in zip(layers, moments, strict=True)]
        if effects:
            drifts = swapped(on, layers, moments, drifts)
        return Measured(tuple(drifts), tuple(left), rows, source)


def refresh(
    model: Model,
    inputs: Sequence[Source],
    *,
    threads: int | None = None,
    timeout: float | None = None,
    custom_ops: Sequence[str | os.PathLike[str]] = (),
) -> Refreshed:
    """Give every BatchNormalization in inference mode the population statistics of the data; `model` is not modified.

    The arguments are those of `drift`. As many passes over the data as BatchNormalizations stand one behind the other.
    Parameters that something else reads too get a copy of their own. Raises UsageError also where the statistics do
    not fit the type that they are stored in.
    """
    source = _opened(model)
    layers, left = found(source)
    work = onnx.ModelProto()
    work.CopyFrom(source.model)
    if not layers:
        return Refreshed((), tuple(left), 0, source, work, 0, ())
    measured: dict[int, Moments] = {}
    told: dict[int, Drift] = {}
    store = Store(work)
    levels = sorted({layer.level for layer in layers})
    with bench(replace_model(source, work), inputs, threads=threads, timeout=timeout, custom_ops=custom_ops) as on:
        for level in levels:
            here = [layer for layer in layers if layer.level == level]
            for layer, moments in zip(here, on.measure(here), strict=True):
                store.put(layer, moments)
                measured[layer.index], told[layer.index] = moments, drift_of(layer, moments)
        rows = on.rows
    store.finish()
    receipt.without(work)  # it speaks of another file
    drifts = tuple(told[layer.index] for layer in layers)
    exact = tuple(measured[layer.index] for layer in layers)
    return Refreshed(drifts, tuple(left), rows, source, work, len(levels), exact)


def _opened(model: Model) -> ModelFile:
    """The model, with the functions inlined that hold a BatchNormalization: each call has statistics of its own."""
    source = load(model)
    flat = inlined(source.model) if source.model.functions else None
    return source if flat is None else replace_model(source, flat)


def replace_model(source: ModelFile, model: onnx.ModelProto) -> ModelFile:
    """The same file with another content in memory."""
    return replace(source, model=model)
