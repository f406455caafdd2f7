"""One round for each provider: both models with optimisations disabled, both as deployed, the original once more.

The first provider that runs the original says which sizes work; all others get the same samples.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bnfold.files import ModelFile

from .catalogue import ALL, CPU, DEFAULT, Choice, chosen, named, split
from .inputs import Sample
from .placement import Placement
from .providers import NotLoaded, Provider, ProviderDied, ProviderError, listing
from .records import Noise
from .running import Plan, Provided, load_original, model_path, run_pair, starved
from .settings import Settings
from .verdict import Settled, Verdict

__all__ = ["Round", "choices", "common", "run_round"]

Array = npt.NDArray[Any]
_HEAVY = 1.0  # estimated seconds in float64: as deployed, such a model runs on one sample only
_REMOTE = "AzureExecutionProvider"  # computes nothing by itself: it calls a service that a model names


@dataclass
class Round:
    """What one provider computed, and why it ended early if it did (`ended`)."""

    choice: Choice
    version: str | None = None
    device: str | None = None
    provided: Provided | None = None
    placement: Placement | None = None
    deployed: Provided | None = None
    deployed_placement: Placement | None = None
    deployed_failure: Settled | None = None
    noise: Noise | None = None
    ended: Settled | None = None
    not_loaded: str = ""  # why, where it is the provider itself that does not load
    notes: list[str] = field(default_factory=list[str])


def choices(settings: Settings) -> list[tuple[Choice, bool]]:
    """The providers to run on, and whether each has to load: those that only `all` names need not.

    Raises UsageError for a name that is none.
    """
    asked = settings.providers or (DEFAULT,)
    wanted = [name for name in split(asked) if name.lower() != ALL]
    found = [(choice, True) for choice in chosen(wanted, listing, tf32=settings.tf32)]
    if len(wanted) == len(split(asked)):
        return found
    known = {choice.name for choice, _ in found}
    built = sorted(listing(), key=lambda name: name != CPU)  # the CPU first: it runs whatever the others run
    more = [named(name, tf32=settings.tf32) for name in built if name not in known and name != _REMOTE]
    return [*found, *((choice, choice.is_cpu) for choice in more)] or [(named(CPU), True)]


def run_round(
    choice: Choice,
    original: ModelFile,
    candidate: ModelFile,
    settings: Settings,
    plan: Callable[[Provider], Plan],
) -> Round:
    """Everything that runs on one provider. NoProvider where there is no onnxruntime; other failures are in the round.

    plan: the samples, found on a provider that has the original loaded.
    """
    made = Round(choice)
    with Provider(
        choice, threads=settings.threads, timeout=settings.timeout, libraries=settings.custom_ops
    ) as provider:
        try:
            made.version = provider.version
            load_original(provider, original)
            samples = plan(provider)
            made.provided = run_pair(provider, samples.samples, candidate)
        except Settled as end:
            made.ended = end
            made.not_loaded = end.sentence if isinstance(end.__cause__, NotLoaded) else ""
            return made
        except ProviderDied as error:  # while onnxruntime itself was starting
            made.ended = Settled(Verdict.INCONCLUSIVE, f"onnxruntime does not start: {error}")
            return made
        finally:
            made.device = provider.device
        made.placement = provider.placement
        kept = made.provided.samples[: 1 if samples.cost.seconds > _HEAVY else None]
        paths = [
            model_path(file, provider.folder, f"{name}.onnx")
            for file, name in ((original, "original"), (candidate, "candidate"))
        ]
        if _deploy(made, provider, paths, kept):
            _listen(made, provider, paths[0], settings.threads)
    return made


def _deploy(made: Round, provider: Provider, paths: Sequence[Path], samples: Sequence[Sample]) -> bool:
    """Run both models with all optimisations on; False if that was the provider's end."""
    both: list[list[dict[str, Array]]] = []
    for path, what in zip(paths, ("original", "candidate"), strict=True):
        try:
            provider.load(path, optimization="all")
            both.append([provider.run(sample.feeds) for sample in samples])
        except ProviderError as error:
            text = f"with optimisations on, the {what} does not run: {error}".rstrip(".")
            if what == "candidate":  # the original did
                verdict = Verdict.INCONCLUSIVE if starved(error) else Verdict.DEGRADED
                made.deployed_failure = Settled(verdict, text)
            else:
                made.notes.append(f"{made.choice.short}: {text}; nothing was compared there.")
            return not isinstance(error, ProviderDied)
    made.deployed = Provided(tuple(samples), both[0], both[1])
    made.deployed_placement = provider.placement
    return True


def _listen(made: Round, provider: Provider, path: Path, threads: int | None) -> None:
    """The provider's own noise: the original again, on a CPU with another number of threads."""
    assert made.provided is not None
    other, how = None, "once more"
    if made.choice.is_cpu:
        other = 1 if (threads or os.cpu_count() or 1) > 2 else 3  # the default may be fewer threads than cores
        how = f"with {other} thread{'s' if other > 1 else ''}"
    try:
        provider.load(path, threads=other)
        again = provider.run(made.provided.samples[0].feeds)
    except ProviderError as error:
        made.notes.append(f"{made.choice.short}: the noise could not be measured: {error}".rstrip(".") + ".")
        return
    hat = made.provided.original[0]
    floor, difference = _distance(again, hat), _distance(made.provided.candidate[0], hat)
    if floor is not None and difference is not None:
        made.noise = Noise(floor, difference, how)


def _distance(outputs: Mapping[str, Array], hat: Mapping[str, Array]) -> float | None:
    """The rms of the difference over that of `hat`, over all finite elements of floating outputs; None without any."""
    shares: list[tuple[float, float]] = []
    for name, value in hat.items():
        other = outputs.get(name)
        if other is None or other.shape != value.shape or not value.size or value.dtype.kind in "iubc":
            continue
        wide, theirs = value.astype(np.float64), other.astype(np.float64)
        keep = np.isfinite(wide) & np.isfinite(theirs)
        if keep.any():
            size = float(np.sqrt(np.mean(np.square(wide[keep]))))
            shares.append((float(np.sqrt(np.mean(np.square(theirs[keep] - wide[keep])))), size))
    found = [moved / size for moved, size in shares if size > 0]
    return float(np.sqrt(np.mean(np.square(found)))) if found else None


def common(rounds: Sequence[Round]) -> tuple[Sample, ...]:
    """Leave in every round only the samples that all of them ran, and return those."""
    provided = [each.provided for each in rounds if each.provided is not None]
    if not provided:
        return ()
    kept = [s for s in provided[0].samples if all(any(s is other for other in p.samples) for p in provided)]
    for each in rounds:
        for runs in (each.provided, each.deployed):
            if runs is not None:
                rows = [k for k, sample in enumerate(runs.samples) if any(sample is other for other in kept)]
                runs.original[:] = [runs.original[k] for k in rows]
                runs.candidate[:] = [runs.candidate[k] for k in rows]
                runs.samples = tuple(runs.samples[k] for k in rows)
    return tuple(kept)
