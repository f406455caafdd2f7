"""What a check says: five verdicts, each with its exit code, a sentence for people and the figures behind it.

EQUIVALENT, MORE_ACCURATE   the same function, at least as well computed            exit 0
DEGRADED, NOT_EQUIVALENT    the same function computed worse; another function      exit 1
INCONCLUSIVE                nothing was compared, or nothing could be trusted       exit 3
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from .records import ProviderRecord

__all__ = ["Certificate", "CheckResult", "SampleRecord", "Settled", "Verdict"]

_EXIT_CODES = {"EQUIVALENT": 0, "MORE_ACCURATE": 0, "DEGRADED": 1, "NOT_EQUIVALENT": 1, "INCONCLUSIVE": 3}


class Verdict(Enum):
    """The outcome of a check, from best to worst; only the first two are a pass."""

    EQUIVALENT = "EQUIVALENT"
    MORE_ACCURATE = "MORE_ACCURATE"
    DEGRADED = "DEGRADED"
    NOT_EQUIVALENT = "NOT_EQUIVALENT"
    INCONCLUSIVE = "INCONCLUSIVE"

    @property
    def exit_code(self) -> int:
        return _EXIT_CODES[self.value]

    @property
    def passed(self) -> bool:
        return self in (Verdict.EQUIVALENT, Verdict.MORE_ACCURATE)

    def __str__(self) -> str:
        return self.value


class Settled(Exception):
    """Ends a check early: the verdict is known and nothing that follows could change it."""

    def __init__(self, verdict: Verdict, sentence: str) -> None:
        super().__init__(sentence)
        self.verdict = verdict
        self.sentence = sentence


class Certificate(Protocol):
    """What a check needs to know of gate 1: did it pass, in figures and in a sentence."""

    @property
    def passed(self) -> bool: ...

    @property
    def figures(self) -> Mapping[str, Any]: ...

    @property
    def sentence(self) -> str: ...


class LocalBounds(Protocol):
    """What a result needs to know of gate 2."""

    @property
    def passed(self) -> bool: ...

    @property
    def sentence(self) -> str: ...

    def to_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class SampleRecord:
    """One set of inputs: how it was made, its shapes, and whether its outputs could have shown a difference."""

    kind: str
    shapes: Mapping[str, tuple[int, ...]]
    counted: bool
    why_not: str = ""

    def to_dict(self) -> dict[str, Any]:
        record: dict[str, Any] = {
            "kind": self.kind,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "counted": self.counted,
        }
        if not self.counted:
            record["why_not"] = self.why_not
        return record


@dataclass(frozen=True)
class CheckResult:
    """The verdict on a pair of models. Truthy when they are equivalent.

    `figures` holds what gate 3 measured, a mapping of plain numbers and texts; rms values are in units of the output.
    `provider` names what ran the models, None when nothing did; `providers` says of each what it did, and with several
    `figures` are the first one's. `samples` are the inputs, made from `seed`.
    """

    verdict: Verdict
    sentence: str
    certificate: Certificate | None = None
    figures: Mapping[str, Any] = field(default_factory=dict[str, Any])
    provider: str | None = None
    samples: tuple[SampleRecord, ...] = ()
    seed: int = 0
    warnings: tuple[str, ...] = ()
    flipped: Mapping[str, str] = field(default_factory=dict[str, str])  # values that had to stay the same bits
    providers: "tuple[ProviderRecord, ...]" = ()
    gate2: LocalBounds | None = None  # None: the check was settled before it could be asked

    def __bool__(self) -> bool:
        return self.verdict.passed

    @property
    def exit_code(self) -> int:
        return self.verdict.exit_code

    @property
    def counted(self) -> int:
        """How many samples could have shown a difference."""
        return sum(sample.counted for sample in self.samples)

    def to_dict(self) -> dict[str, Any]:
        """The whole result as JSON-safe values; a number that JSON cannot hold (NaN, infinity) becomes a text."""
        certificate = self.certificate
        return {
            "verdict": self.verdict.value,
            "sentence": self.sentence,
            "exit_code": self.exit_code,
            "certificate": None
            if certificate is None
            else {
                "passed": bool(certificate.passed),
                "decided": bool(getattr(certificate, "decided", True)),
                "sentence": certificate.sentence,
                "figures": _json_safe(certificate.figures),
            },
            "gate2": None if self.gate2 is None else _json_safe(self.gate2.to_dict()),
            "gate3": _json_safe(self.figures),
            "provider": self.provider,
            "providers": [_json_safe(record.to_dict()) for record in self.providers],
            "samples": [sample.to_dict() for sample in self.samples],
            "seed": self.seed,
            "warnings": list(self.warnings),
        }

    def __str__(self) -> str:
        lines = [*self._lines(), f"{self.verdict}: {self.sentence}"]
        return "\n".join(lines)

    def _lines(self) -> list[str]:
        lines: list[str] = []
        if self.certificate is not None:
            lines.append(f"gate 1  {self.certificate.sentence}")
        else:
            lines.append("gate 1  was not asked")
        if self.gate2 is not None:
            lines.append(f"gate 2  {self.gate2.sentence}")
        lines.extend(f"gate 3  {line}" for line in self.figures.get("lines", ()))
        for record in self.providers:
            if len(self.providers) > 1 and record.figures is not self.figures:
                lines.extend(f"{record.short:<7} {line}" for line in record.figures.get("lines", ()))
            lines.extend(f"{record.short:<7} {line}" for line in record.lines())
        if self.samples:
            kinds = ", ".join(dict.fromkeys(sample.kind for sample in self.samples))
            lines.append(f"inputs  {self.counted} of {len(self.samples)} samples counted ({kinds}), seed {self.seed}")
        lines.extend(f"note    {warning}" for warning in self.warnings)
        return lines


def _json_safe(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _json_safe(v) for k, v in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType] -- any mapping
    if isinstance(value, np.ndarray):
        return _json_safe(value.tolist())  # pyright: ignore[reportUnknownMemberType] -- dtype is open here
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_json_safe(v) for v in value]  # pyright: ignore[reportUnknownVariableType] -- any sequence
    if isinstance(value, np.generic):
        return _json_safe(value.item())
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return str(value)
