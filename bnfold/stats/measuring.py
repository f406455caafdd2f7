"""Running an ONNX model under onnxruntime with the inputs of its BatchNormalizations as outputs, reduced to moments.

Optimisations are disabled, so that each value is the one that the graph names; only the nodes in front of it run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from ..check.providers import NoProvider, Provider, ProviderError
from ..check.sizes import GraphInput, graph_inputs
from ..check.verdict import Settled
from ..errors import MalformedModel, UnsupportedModel, UsageError
from ..files import ModelFile, save
from .layers import Layer, reads
from .moments import Moments
from .samples import Source, batches

__all__ = ["Bench", "bench"]

Array = npt.NDArray[Any]
Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]


class Bench:
    """A provider for models cut out of `source`, and the data that they are fed."""

    def __init__(self, provider: Provider, source: ModelFile, inputs: Sequence[Source]) -> None:
        self._provider, self._source, self._inputs = provider, source, tuple(inputs)
        try:
            self._wanted: Sequence[GraphInput] = graph_inputs(source.model)
        except Settled as why:
            raise UnsupportedModel(f"The statistics cannot be measured: {why.sentence}.") from why
        self.rows = 0  # of axis 0 that the last pass was fed
        self._passes = 0

    @property
    def model(self) -> onnx.ModelProto:
        """The model as it stands now; not to be modified."""
        return self._source.model

    def measure(self, layers: Sequence[Layer]) -> list[Moments]:
        """The moments of what each layer is fed, by the model as it stands now, over all the data. Raises UsageError
        for data that do not fit or hold no sample, and where a value is not finite.
        """
        moments = [Moments() for _ in layers]
        names = list(dict.fromkeys(layer.input for layer in layers))
        self.rows = 0
        for values, at in self.run(names):
            self._take(layers, moments, values, at)
        for layer, found in zip(layers, moments, strict=True):
            if found.count < 2:
                raise UsageError(
                    f"{layer.node} was fed {found.count or 'no'} value{'' if found.count == 1 else 's'} a channel: "
                    "statistics need more samples."
                )
        return moments

    def run(self, names: Sequence[str]) -> Iterator[tuple[Mapping[str, Array], str]]:
        """The values named for each batch in turn, and where the batch is from."""
        fed = {value.name for value in self._wanted}
        cut = excerpt(self._source.model, [name for name in names if name not in fed])
        if not cut.graph.output:  # nothing needs to run
            for batch in batches(self._inputs, self._wanted):
                yield self._counted(batch.feeds), batch.at
            return
        with self._loaded(cut):
            for batch in batches(self._inputs, self._wanted):
                yield {**self._counted(batch.feeds), **self._provider.run(batch.feeds)}, batch.at

    def runs(self, model: onnx.ModelProto, limit: int) -> Iterator[Run]:
        """For each of the first `limit` batches a function that runs `model` on it; its argument is fed too."""
        with self._loaded(model):
            for batch in islice(batches(self._inputs, self._wanted), limit):
                yield lambda more, feeds=batch.feeds: self._provider.run({**feeds, **more})

    @contextmanager
    def _loaded(self, model: onnx.ModelProto) -> Generator[None]:
        self._passes += 1
        files = save(model, self._provider.folder / f"pass{self._passes}.onnx", directory=self._source.directory)
        self._provider.load(files[0], optimization="disabled")
        yield
        for file in files:
            file.unlink(missing_ok=True)

    def _counted(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        self.rows += max((len(value) for value in feeds.values() if value.ndim), default=1)
        return feeds

    def _take(self, layers: Sequence[Layer], moments: Sequence[Moments], values: Mapping[str, Array], at: str) -> None:
        for layer, found in zip(layers, moments, strict=True):
            x = values[layer.input]
            channels = layer.mean.shape if layer.spatial else x.shape[1:]
            if (layer.spatial and (x.shape[1] if x.ndim > 1 else 1) != layer.mean.size) or channels != layer.mean.shape:
                raise MalformedModel(
                    f"{layer.node} has parameters of shape {list(layer.mean.shape)} for a value of shape "
                    f"{list(x.shape)}."
                )
            if not np.isfinite(x).all():
                where = np.argwhere(~np.isfinite(x))[0]
                channel = int(where[1]) if x.ndim > 1 else 0
                value = x[tuple(where)]
                raise UsageError(
                    f"{layer.node} is fed {value} in channel {channel} by {at}; statistics need finite data."
                )
            found.add(x, layer.axes(x.ndim))


@contextmanager
def bench(
    source: ModelFile,
    inputs: Sequence[Source],
    *,
    threads: int | None = None,
    timeout: float | None = None,
    custom_ops: Sequence[str | os.PathLike[str]] = (),
) -> Generator[Bench]:
    """A `Bench` while the block lasts; what the runtime has to object comes out as UnsupportedModel or UsageError."""
    if not inputs:
        raise UsageError("Statistics are measured on data: give samples with --inputs.")
    title = "The model" if source.path is None else str(source.path)
    try:
        with Provider(threads=threads, timeout=timeout, libraries=custom_ops) as provider:
            yield Bench(provider, source, inputs)
    except NoProvider as error:
        raise UsageError(f"Statistics are measured under ONNX Runtime: {error}.") from error
    except ProviderError as error:
        raise UnsupportedModel(f"{title} does not run under ONNX Runtime: {error}.") from error


def excerpt(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The part of `model` that computes the values `names`, with its inputs; `model` is not modified."""
    wanted = set(names)
    kept: list[onnx.NodeProto] = []
    for node in reversed(model.graph.node):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted |= reads(node)
    cut = onnx.ModelProto(ir_version=model.ir_version)
    cut.opset_import.extend(model.opset_import)
    cut.functions.extend(model.functions)
    graph, of = cut.graph, model.graph
    graph.name = of.name
    graph.node.extend(reversed(kept))
    graph.initializer.extend(t for t in of.initializer if t.name in wanted)
    graph.sparse_initializer.extend(t for t in of.sparse_initializer if t.values.name in wanted)
    held = {t.name for t in of.initializer} | {t.values.name for t in of.sparse_initializer}
    graph.input.extend(i for i in of.input if i.name not in held or i.name in wanted)
    known = {info.name: info for info in (*of.value_info, *of.output)}
    graph.value_info.extend(info for name, info in known.items() if name in wanted and name not in names)
    for name in names:
        info = onnx.ValueInfoProto(name=name)
        if name in known:
            info.type.CopyFrom(known[name].type)
            info.type.tensor_type.ClearField("shape")  # what is declared may be wrong; the runtime knows
        graph.output.append(info)
    return cut
