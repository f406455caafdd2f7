"""What the options of `bnfold fold` and `bnfold check` add up to: what may be folded, checked and written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import UsageError
from .options import Growth

if TYPE_CHECKING:
    from ..check.verdict import CheckResult


class Selection(NamedTuple):
    """What may be folded."""

    skip: tuple[str, ...]
    only: tuple[str, ...]
    freeze_inputs: bool
    keep_inputs: bool
    max_growth: Growth | None
    aggressive: bool = False
    partial: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe values; `of` is the way back."""
        growth = self.max_growth
        written = None if growth is None else [None if growth.share is None else str(growth.share), growth.fixed]
        plain = self._asdict()
        return {**plain, "skip": list(self.skip), "only": list(self.only), "max_growth": written}

    @classmethod
    def of(cls, written: Mapping[str, Any]) -> Selection:
        """The selection that a sidecar kept. Raises UsageError where it is none."""
        from fractions import Fraction

        try:
            flags = {name: bool(written[name]) for name in ("freeze_inputs", "keep_inputs", "aggressive", "partial")}
            growth = written["max_growth"]
            if growth is not None:
                growth = Growth(None if growth[0] is None else Fraction(growth[0]), int(growth[1]))
            skip, only = (tuple(map(str, written[name])) for name in ("skip", "only"))
        except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
            raise UsageError(f"The sidecar does not say how the model was folded ({error}).") from error
        return cls(skip, only, max_growth=growth, **flags)


class Checking(NamedTuple):
    """Whether and how the result is compared with the original."""

    wanted: bool
    threads: int | None
    inputs: tuple[Path, ...]
    shapes: dict[str, tuple[int, ...]]
    seed: int
    samples: int | None
    certificate_only: bool = False
    ranges: Mapping[str, tuple[float, float]] = MappingProxyType({})
    calibrated: bool = False
    timeout: float | None = None
    providers: tuple[str, ...] = ()
    tf32: bool = False
    custom_ops: tuple[Path, ...] = ()

    def arguments(self) -> dict[str, Any]:
        """As keyword arguments of `check`."""
        given = {name: value for name, value in self._asdict().items() if name != "wanted"}
        empty = {name for name, value in given.items() if value in ((), {}) and name != "custom_ops"}
        return {name: None if name in empty else value for name, value in given.items()}


class Writing(NamedTuple):
    """Where the result goes, and what may be written although it did not pass."""

    out: Path | None
    force: bool
    in_place: bool
    dry_run: bool
    accept: frozenset[str]
    fail_on_unfolded: bool
    receipt: bool = True
    rescue: bool = False
    max_drift: float | None = None
    keep_statistics: bool = False
    source_name: str | None = None  # what the sidecar calls the source, where it is no file of the user's

    def accepts(self, check: CheckResult | None) -> str | None:
        """None if the result may not be written; else the --accept that lets it, "" when none is needed."""
        if check is None or check:
            return ""
        word = check.verdict.name
        if "degraded" in self.accept and word == "DEGRADED":
            return "degraded"
        if "certificate" in self.accept and word == "INCONCLUSIVE":
            return "certificate" if check.certificate is not None and check.certificate.passed else None
        return "any" if "any" in self.accept else None
