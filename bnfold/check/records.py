"""What one execution provider did with both models: where they ran, how well, how noisy it is by itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .catalogue import Choice, named
from .placement import Placement
from .verdict import Verdict

__all__ = ["Deployed", "Noise", "ProviderRecord", "worst"]

_SEVERITY = (
    Verdict.MORE_ACCURATE,
    Verdict.EQUIVALENT,
    Verdict.DEGRADED,
    Verdict.INCONCLUSIVE,
    Verdict.NOT_EQUIVALENT,
)


@dataclass(frozen=True)
class Noise:
    """The original against itself on the first sample, and the candidate against it: rms shares of the outputs.

    how: what was different in the second run of the original ("with 1 thread", "once more").
    """

    floor: float
    difference: float
    how: str

    def __str__(self) -> str:
        again = self.how if "thread" not in self.how else "with another number of threads"
        floor, difference = (f"{share:.1e}" if share else "0.0" for share in (self.floor, self.difference))
        return f"the original {again} differs by {floor} of rms, the candidate by {difference}"

    def to_dict(self) -> dict[str, Any]:
        share = self.difference / self.floor if self.floor else None
        return {"floor": self.floor, "difference": self.difference, "difference_in_floors": share, "how": self.how}


@dataclass(frozen=True)
class Deployed:
    """Both models with all optimisations on. `sentence` says what is wrong, "" where nothing is; errors are rms shares
    of the outputs, None where they were not measured; used: share of the bound. decides: whether the check's verdict
    can be no better than this one."""

    verdict: Verdict
    sentence: str
    samples: int
    placement: Placement | None = None
    error_original: float | None = None
    error_candidate: float | None = None
    used: float | None = None
    decides: bool = True

    def __str__(self) -> str:
        if self.error_candidate is None or self.error_original is None or self.used is None:
            return self.sentence or "agrees within the tolerance"
        words = f"error {self.error_candidate:.1e} of rms, the original's {self.error_original:.1e}"
        return f"{words}; {self.used:.2g} of the bound" + ("" if self.decides or not self.sentence else "; not judged")

    def to_dict(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict.value,
            "sentence": self.sentence,
            "samples": self.samples,
            "placement": None if self.placement is None else self.placement.to_dict(),
            "error_original": self.error_original,
            "error_candidate": self.error_candidate,
            "used": self.used,
        }


@dataclass(frozen=True)
class ProviderRecord:
    """One provider's part of a check. `placement` is the candidate's with optimisations disabled, `figures` are gate
    3's on this provider; both are empty where the check ended before they were known."""

    choice: Choice
    version: str | None
    device: str | None
    verdict: Verdict
    sentence: str
    placement: Placement | None = None
    noise: Noise | None = None
    deployed: Deployed | None = None
    figures: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def short(self) -> str:
        return self.choice.short

    @property
    def title(self) -> str:
        """As in "onnxruntime 1.31.1 CUDA"."""
        about = "CPU" if self.choice.is_cpu else self.choice.short
        return f"onnxruntime {self.version} {about}" if self.version else about

    def lines(self) -> list[str]:
        """For people: where it ran, the noise, the deployed setting."""
        device = None if self.choice.is_cpu else self.device  # what every machine has is not worth the words
        about = [each for each in (self.version and f"onnxruntime {self.version}", device) if each]
        if self.choice.tf32 is not None:
            about.append(f"TF32 {'on' if self.choice.tf32 else 'off'}")
        if self.placement is not None:
            about.append(str(self.placement))
        found = [", ".join(about)] if about else []
        if self.noise is not None:
            found.append(f"noise: {self.noise}")
        if self.deployed is not None:
            found.append(f"with optimisations on: {self.deployed}")
        return found

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.choice.name,
            "version": self.version,
            "device": self.device,
            "tf32": self.choice.tf32,
            "verdict": self.verdict.value,
            "sentence": self.sentence,
            "lines": self.lines(),
            "placement": None if self.placement is None else self.placement.to_dict(),
            "noise_floor": None if self.noise is None else self.noise.to_dict(),
            "deployed": None if self.deployed is None else self.deployed.to_dict(),
            "gate3": dict(self.figures),
        }


def worst(records: list[ProviderRecord]) -> tuple[Verdict, str]:
    """The worst verdict of all providers, and its sentence with the provider's name.

    What is known to be wrong stands before what is not known, and that before what passed; one provider on which the
    candidate is merely as accurate makes it so for all.
    """
    if len(records) == 1:
        return records[0].verdict, records[0].sentence
    passed = [record for record in records if record.verdict.passed]
    if len(passed) == len(records):
        verdict = max((record.verdict for record in records), key=_SEVERITY.index)
        sentence = next(record.sentence for record in records if record.verdict is verdict)
        return verdict, f"on {', '.join(record.short for record in records)}: {sentence}"
    found = max(records, key=lambda record: _SEVERITY.index(record.verdict))
    return found.verdict, f"on {named(found.choice.name).short}: {found.sentence}"
