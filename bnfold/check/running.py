"""Samples that the original runs on, and what the provider makes of both models.

Sizes are tried until the original runs; how many samples there are follows from the model's size, so that the same
model is checked with the same samples on every machine.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from bnfold.errors import UnsupportedOp, UsageError
from bnfold.files import ModelFile, format_of, load, save
from bnfold.files.external import tensors
from bnfold.files.formats import BINARY
from bnfold.reference import EvaluationError, Evaluator

from .calibration import calibrated as calibrate
from .cost import Cost, estimate
from .given import read_samples
from .inputs import KINDS, Recipe, Sample, generate, recipe
from .providers import NotLoaded, Provider, ProviderDied, ProviderError
from .sizes import GraphInput, attempts, graph_inputs, shapes_for
from .verdict import Settled, Verdict

__all__ = [
    "Plan",
    "Provided",
    "comparable_outputs",
    "load_original",
    "model_path",
    "opened",
    "run_candidate",
    "run_original",
    "run_pair",
    "same_interface",
    "samples_for",
    "starved",
]

Array = npt.NDArray[Any]
Source = str | os.PathLike[str] | onnx.ModelProto
BUDGET = 8.0  # estimated seconds for all float64 evaluations together
EVALUATIONS = 6  # of each sample: the original, the candidate once or twice, three draws
_FEW = 3  # samples wanted while the estimate stays below _PATIENCE: noise, zeros and large values
_PATIENCE = 20.0
_ROWS, _CALIBRATED_ON = 32, 1 << 15  # samples whose statistics say something, where the batch is free and inputs small


@dataclass(frozen=True)
class Plan:
    """The samples, what one evaluation of the dearest costs, and what there is to say about them."""

    samples: tuple[Sample, ...]
    cost: Cost
    notes: tuple[str, ...] = ()


@dataclass
class Provided:
    """What the provider computed: the outputs of both models for each sample that the original ran on."""

    samples: tuple[Sample, ...]
    original: list[dict[str, Array]] = field(default_factory=list[dict[str, Array]])
    candidate: list[dict[str, Array]] = field(default_factory=list[dict[str, Array]])
    warnings: list[str] = field(default_factory=list[str])


def opened(source: Source, beside: Path | None = None) -> ModelFile:
    """The model, read; a ModelProto's external data lies in the folder `beside`, that of the original."""
    if not isinstance(source, onnx.ModelProto) or beside is None:
        return load(source)
    if not any(proto.data_location == onnx.TensorProto.EXTERNAL for proto in tensors(source)):
        return load(source)
    return ModelFile(source, None, beside, source.ByteSize())


def same_interface(original: onnx.ModelProto, candidate: onnx.ModelProto) -> list[str]:
    """Raises Settled (not equivalent) unless inputs and outputs have the same names and types; returns warnings."""
    for what, mine, theirs in (
        ("input", _inputs(original), _inputs(candidate)),
        ("output", _types(original.graph.output), _types(candidate.graph.output)),
    ):
        for name in mine:
            if name not in theirs:
                raise Settled(Verdict.NOT_EQUIVALENT, f"the candidate has no {what} {name!r}")
            if mine[name] != theirs[name] and mine[name] and theirs[name]:
                was, becomes = (onnx.TensorProto.DataType.Name(kind).lower() for kind in (mine[name], theirs[name]))
                raise Settled(
                    Verdict.NOT_EQUIVALENT, f"{what} {name!r} is {was} in the original and {becomes} in the candidate"
                )
        for name in theirs:
            if name not in mine:
                raise Settled(Verdict.NOT_EQUIVALENT, f"the candidate has an {what} {name!r} that the original lacks")
    if [value.name for value in original.graph.output] != [value.name for value in candidate.graph.output]:
        return ["The outputs stand in another order; they were compared by name."]
    return []


def _inputs(model: onnx.ModelProto) -> dict[str, int]:
    initialized = {proto.name for proto in model.graph.initializer}
    initialized |= {proto.values.name for proto in model.graph.sparse_initializer}
    return {name: kind for name, kind in _types(model.graph.input).items() if name not in initialized}


def _types(values: Sequence[onnx.ValueInfoProto]) -> dict[str, int]:
    return {value.name: value.type.tensor_type.elem_type for value in values}


def comparable_outputs(model: onnx.ModelProto) -> None:
    """Raises Settled (inconclusive) for outputs that are no numeric tensors."""
    for value in model.graph.output:
        kind = value.type.WhichOneof("value")
        if kind not in (None, "tensor_type"):
            name = str(kind).removesuffix("_type")
            raise Settled(Verdict.INCONCLUSIVE, f"output {value.name!r} is a {name}; only tensors can be compared")
        if value.type.tensor_type.elem_type == onnx.TensorProto.STRING:
            raise Settled(Verdict.INCONCLUSIVE, f"output {value.name!r} holds texts, which are not compared here")
    if not model.graph.output:
        raise Settled(Verdict.INCONCLUSIVE, "the model has no outputs, so there is nothing to compare")


def samples_for(
    model: ModelFile,
    provider: Provider | None,
    *,
    samples: int | None,
    seed: int,
    inputs: Sequence[str | os.PathLike[str] | Mapping[str, Array]] | None,
    shapes: Mapping[str, Sequence[int]] | None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    calibrated: bool = False,
) -> Plan:
    """The samples to compare on: the caller's, or generated ones with sizes on which the original runs.

    `provider` has the original loaded; without one the float64 judge says which sizes work. `samples` bounds how many
    of the caller's are taken. Raises UsageError.
    """
    if samples is not None and samples < 1:
        raise UsageError(f"The number of samples must be at least 1; it is {samples}.")
    wanted = graph_inputs(model.model)
    if inputs:
        if ranges or calibrated:
            raise UsageError("Ranges and calibration are for generated inputs; the inputs given are taken as they are.")
        given = tuple(read_samples(inputs, wanted))[:samples]
        return Plan(given, max((estimate(model.model, s.shapes) for s in given), key=lambda cost: cost.memory))
    sizes, batch, made = _working_sizes(model, wanted, provider, seed, shapes, ranges)
    cost = estimate(model.model, shapes_for(wanted, sizes))
    notes: tuple[str, ...] = ()
    if calibrated:
        many = {**sizes, batch: max(_ROWS, sizes[batch])} if batch else sizes
        settled = shapes_for(wanted, many)
        if max(map(math.prod, settled.values()), default=0) > _CALIBRATED_ON:
            settled = shapes_for(wanted, sizes)
        made, note = calibrate(model.model, model.directory, wanted, settled, made, seed=seed, seconds=cost.seconds)
        notes = (note,)
    count = samples or _count(cost, model.model)
    rows = sizes[batch] if batch else 1
    found: list[Sample] = []
    for index in range(count):
        if batch:  # two batch sizes in turn; a lone sample is kept cheap
            sizes = {**sizes, batch: 1 if index % 2 or count == 1 else rows}
        found.append(generate(wanted, shapes_for(wanted, sizes), made, index=index, seed=seed))
    return Plan(tuple(found), cost, notes)


def _count(cost: Cost, model: onnx.ModelProto) -> int:
    if not _inputs(model):
        return 1
    fits = int(BUDGET / (EVALUATIONS * max(cost.seconds, 1e-9)))
    if fits < _FEW and _FEW * EVALUATIONS * cost.seconds < _PATIENCE:
        return _FEW
    least = 2 if all(_is_one_number(value) for value in model.graph.output) else 1
    return min(max(fits, least), len(KINDS))


def _is_one_number(value: onnx.ValueInfoProto) -> bool:
    """Such an output shows something only beside another sample's."""
    dims = value.type.tensor_type.shape.dim
    return all(dim.dim_value == 1 or (axis == 0 and not dim.dim_value) for axis, dim in enumerate(dims))


def _working_sizes(
    model: ModelFile,
    wanted: Sequence[GraphInput],
    provider: Provider | None,
    seed: int,
    shapes: Mapping[str, Sequence[int]] | None,
    ranges: Mapping[str, tuple[float, float]] | None,
) -> tuple[dict[str, int], str | None, Recipe]:
    refusal = ""
    judge = None if provider else Evaluator(model.model, directory=model.directory)
    for sizes, batch in attempts(model.model, wanted, shapes):
        settled = shapes_for(wanted, sizes)
        made = recipe(model.model, wanted, settled, ranges)
        sample = generate(wanted, settled, made, index=0, seed=seed)
        try:
            if provider is not None:
                provider.run(sample.feeds)
            elif judge is not None:
                with np.errstate(all="ignore"):
                    judge.run(sample.feeds)
        except ProviderDied as error:
            raise Settled(Verdict.INCONCLUSIVE, f"the original does not run: {error}") from error
        except UnsupportedOp:
            raise
        except (ProviderError, EvaluationError) as error:
            refusal = refusal or str(error)
            continue
        return sizes, batch, made
    what = "onnxruntime does not run the original" if provider else "the original cannot be evaluated"
    raise Settled(Verdict.INCONCLUSIVE, f"{what}: {refusal.rstrip('.')}")


def model_path(file: ModelFile, folder: Path, name: str) -> Path:
    """A file that the provider can read: the model's own, or a copy in `folder` when it has none in binary form."""
    if file.path is not None and format_of(file.path) == BINARY:
        return file.path.absolute()
    if not (folder / name).exists():
        save(file.model, folder / name, directory=file.directory)
    return folder / name


def load_original(provider: Provider, file: ModelFile) -> None:
    """Raises Settled (inconclusive) when the provider does not load, or refuses the original or dies of it."""
    try:
        provider.load(model_path(file, provider.folder, "original.onnx"))
    except NotLoaded as error:
        raise Settled(Verdict.INCONCLUSIVE, f"{error}".rstrip(".")) from error
    except ProviderError as error:
        hint = "; --custom-ops registers a library that has it" if "not a registered function/op" in str(error) else ""
        on = "" if provider.choice.is_cpu else f" on {provider.choice.short}"
        raise Settled(
            Verdict.INCONCLUSIVE, f"onnxruntime cannot run the original{on}: {error}".rstrip(".") + hint
        ) from error


def run_pair(provider: Provider, samples: Sequence[Sample], candidate: ModelFile) -> Provided:
    """Run both models on all samples; the original is loaded already.

    A candidate that fails is not equivalent; one that was stopped for want of time or memory is not known to be.
    """
    return run_candidate(provider, run_original(provider, samples), candidate)


def run_original(provider: Provider, samples: Sequence[Sample]) -> Provided:
    """Run the original, which is loaded already; samples that it does not run on are left out."""
    kept: list[Sample] = []
    provided = Provided(())
    for sample in samples:
        try:
            provided.original.append(provider.run(sample.feeds))
        except ProviderDied as error:
            raise Settled(Verdict.INCONCLUSIVE, f"the original does not run: {error}") from error
        except ProviderError as error:
            provided.warnings.append(f"The original does not run on the sample '{sample.kind}': {error}")
            refusal = str(error)
            if sample is samples[-1] and not kept:
                raise Settled(Verdict.INCONCLUSIVE, f"onnxruntime does not run the original: {refusal}") from error
            continue
        kept.append(sample)
    provided.samples = tuple(kept)
    return provided


def run_candidate(provider: Provider, originals: Provided, candidate: ModelFile) -> Provided:
    """The candidate on the samples that the original ran on; one that fails is not equivalent."""
    provided = replace(originals, candidate=[])
    try:
        provider.load(model_path(candidate, provider.folder, "candidate.onnx"))
    except ProviderError as error:
        raise _candidate_failed("loads", error) from error
    for sample in provided.samples:
        try:
            provided.candidate.append(provider.run(sample.feeds))
        except ProviderError as error:
            raise _candidate_failed("runs", error) from error
    return provided


def starved(error: ProviderError) -> bool:
    """It failed for want of time or memory, which says nothing about the model."""
    return "memory ran out" in str(error) or (isinstance(error, ProviderDied) and error.exhausted)


def _candidate_failed(does: str, error: ProviderError) -> Settled:
    return Settled(
        Verdict.INCONCLUSIVE if starved(error) else Verdict.NOT_EQUIVALENT,
        f"onnxruntime {does} the original but not the candidate: {error}".rstrip("."),
    )
