"""Values that an op inside the models rounds to a grid: right behind a fold they must stay as they are, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from bnfold.files import ModelFile, save
from bnfold.reference import Evaluator

from .catalogue import Choice
from .inputs import Sample
from .providers import Provider, ProviderError
from .settings import Settings

__all__ = ["changed"]

Array = npt.NDArray[Any]


def changed(
    original: ModelFile,
    candidate: ModelFile,
    names: Sequence[str],
    samples: Sequence[Sample],
    provider: Choice | None,
    settings: Settings,
) -> dict[str, str]:
    """What changed, a sentence for each name. Both run on all samples, on the provider or else by the judge."""
    try:
        mine, theirs = (_values(file, names, samples, provider, settings) for file in (original, candidate))
    except ProviderError as error:
        return dict.fromkeys(names, f"it could not be looked at ({error}).")
    found: dict[str, str] = {}
    for k, name in enumerate(names):
        pairs = [(a[k], b[k]) for a, b in zip(mine, theirs, strict=True)]
        count = sum(int((a != b).sum()) if a.shape == b.shape else a.size for a, b in pairs)
        if count:
            found[name] = f"the check saw {count:,} of {sum(a.size for a, _ in pairs):,} integers change."
    return found


def _values(
    file: ModelFile, names: Sequence[str], samples: Sequence[Sample], provider: Choice | None, settings: Settings
) -> list[list[Array]]:
    model = onnx.ModelProto()
    model.CopyFrom(file.model)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    if provider is None:
        evaluator = Evaluator(model, dtype=None, directory=file.directory)
        with np.errstate(all="ignore"):
            return [_listed(evaluator.run(sample.feeds), names) for sample in samples]
    with Provider(
        provider, threads=settings.threads, timeout=settings.timeout, libraries=settings.custom_ops
    ) as runtime:
        path = runtime.folder / "rounded.onnx"
        save(model, path, directory=file.directory)
        runtime.load(path)
        return [_listed(runtime.run(sample.feeds), names) for sample in samples]


def _listed(outputs: dict[str, Array], names: Sequence[str]) -> list[Array]:
    return [outputs[name] for name in names]
