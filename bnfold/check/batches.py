"""Many regions in one model, side by side, so that a provider loads a few models instead of two for each region.

Values are renamed "number/name", for a region may make what another one reads; weights keep one name for all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from bnfold.bodies import bodies_of
from bnfold.files import save

from .providers import Provider, ProviderDied, ProviderError
from .regions import Pair, Region

__all__ = ["Feeds", "grouped", "run_side"]

Array = npt.NDArray[Any]
Feeds = Sequence[Mapping[str, Array]]  # of one region, by sample
_MEMORY = 1 << 28  # bytes of weights, inputs and results in one model


def grouped(pair: Pair, regions: Sequence[Region], ends: Sequence[int]) -> Iterator[list[int]]:
    """Positions of regions that are run together. `ends`: bytes of what is read and made, for one sample."""
    group: list[int] = []
    weights: set[str] = set()
    used = 0
    for k, region in enumerate(regions):
        if _has_bodies(pair, region):
            yield [k]  # their bodies see names around them
            continue
        more = region.original.weights | region.candidate.weights
        size = ends[k] + _bytes(pair, more - weights)
        if group and used + size > _MEMORY:
            yield group
            group, weights, used = [], set[str](), 0
            size = ends[k] + _bytes(pair, more)
        group.append(k)
        weights |= more
        used += size
    if group:
        yield group


def run_side(
    pair: Pair, which: int, regions: Sequence[Region], feeds: Sequence[Feeds], provider: Provider
) -> list[list[Array] | ProviderError]:
    """What one side (0: the original) of each region makes on the provider, by sample, or why it does not run."""
    try:
        return list(_together(pair, which, regions, feeds, provider))
    except ProviderDied:
        raise
    except ProviderError as error:
        if len(regions) == 1:
            return [error]
    half = len(regions) // 2
    parts = (slice(None, half), slice(half, None))
    return [one for part in parts for one in run_side(pair, which, regions[part], feeds[part], provider)]


def _together(
    pair: Pair, which: int, regions: Sequence[Region], feeds: Sequence[Feeds], provider: Provider
) -> list[list[Array]]:
    kinds = [{name: value.dtype for name, value in given[0].items()} for given in feeds]
    models = [pair.model(region, which, kind) for region, kind in zip(regions, kinds, strict=True)]
    model = models[0] if len(models) == 1 else _joined(models)
    path = provider.folder / "regions.onnx"
    written = save(model, path, directory=(pair.original, pair.candidate)[which].directory)
    try:
        provider.load(path)
        return _made(regions, models, feeds, provider)
    finally:
        for file in written:  # a file that is replaced would be flushed to the disk
            file.unlink(missing_ok=True)


def _made(
    regions: Sequence[Region], models: Sequence[onnx.ModelProto], feeds: Sequence[Feeds], provider: Provider
) -> list[list[Array]]:
    alone = len(regions) == 1
    made: list[list[Array]] = [[] for _ in regions]
    for sample in range(len(feeds[0])):
        inputs: dict[str, Array] = {}
        for k, piece in enumerate(models):
            for value in piece.graph.input:
                inputs[value.name if alone else f"{k}/{value.name}"] = np.asarray(feeds[k][sample][value.name])
        found = provider.run(inputs)
        for k, region in enumerate(regions):
            made[k].append(found[region.end if alone else f"{k}/{region.end}"])
    return made


def _joined(models: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    whole = onnx.ModelProto(ir_version=models[0].ir_version)
    whole.opset_import.extend(models[0].opset_import)
    whole.functions.extend(models[0].functions)
    graph = whole.graph
    graph.name = "regions"
    weights: set[str] = set()
    for k, model in enumerate(models):
        held = {proto.name for proto in model.graph.initializer}
        held |= {proto.values.name for proto in model.graph.sparse_initializer}

        def renamed(name: str, k: int = k, held: set[str] = held) -> str:
            return "" if not name else f"w/{name}" if name in held else f"{k}/{name}"

        for proto in model.graph.initializer:
            if proto.name not in weights:
                graph.initializer.add().CopyFrom(proto)
                graph.initializer[-1].name = renamed(proto.name)
        for proto in model.graph.sparse_initializer:
            if proto.values.name not in weights:
                graph.sparse_initializer.add().CopyFrom(proto)
                graph.sparse_initializer[-1].values.name = renamed(proto.values.name)
        weights |= held
        for node in model.graph.node:
            copy = graph.node.add()
            copy.CopyFrom(node)
            copy.name = f"{k}/{node.name}" if node.name else ""
            copy.input[:] = [renamed(name) for name in node.input]
            copy.output[:] = [renamed(name) for name in node.output]
        for values, there in ((model.graph.input, graph.input), (model.graph.output, graph.output)):
            for value in values:
                there.add().CopyFrom(value)
                there[-1].name = renamed(value.name)
    return whole


def _has_bodies(pair: Pair, region: Region) -> bool:
    sides = (pair.original, region.original), (pair.candidate, region.candidate)
    return any(True for side, cone in sides for k in cone.nodes for _ in bodies_of(side.nodes[k]))


def _bytes(pair: Pair, names: set[str] | frozenset[str]) -> int:
    sides = pair.original.weights, pair.candidate.weights
    found = (weights[name] for weights in sides for name in names if name in weights)
    return sum(8 * math.prod(proto.dims) for proto in found)
