"""What a fold did, as plain data: which normalizations were taken in where, which stay, and why.

A *source* is a maximal run of affine nodes. `Folded` says into which nodes its affine went and through which it was
carried; `Kept` names every alternative that was tried with its refusal, because the first one alone misleads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = ["Alternative", "FoldReport", "Folded", "Kept", "Target"]


class Alternative(NamedTuple):
    """One way that was tried: "up" or "down", `through` the nodes that it passed, and `at` the one that refused."""

    direction: str
    through: tuple[str, ...]
    reason: str
    at: str
    message: str


class Target(NamedTuple):
    """A node whose constants took an affine in."""

    node: str
    op: str


class Folded(NamedTuple):
    """A source that is gone: `direction` is "up", "down" or "both". `partial`: an Add stays in its place.
    `is_normalization`: as in `Kept`."""

    nodes: tuple[str, ...]
    op: str
    direction: str
    into: tuple[Target, ...]
    through: tuple[str, ...]
    partial: bool = False
    is_normalization: bool = True


class Kept(NamedTuple):
    """A source that was left. `is_normalization`: a BatchNormalization, or a run of arithmetic with both a scale and a
    shift that vary along an axis; a lone Mul or a position embedding is not one."""

    nodes: tuple[str, ...]
    op: str
    reason: str
    at: str
    message: str
    hint: str
    alternatives: tuple[Alternative, ...]
    is_normalization: bool


@dataclass(frozen=True, slots=True)
class FoldReport:
    """The outcome of one fold. `growth_bytes`: added by clones and grown biases; `notes`: sentences for people."""

    folded: tuple[Folded, ...]
    kept: tuple[Kept, ...]
    sources: int
    batch_normalizations: int
    nodes_before: int
    nodes_after: int
    opset: int
    growth_bytes: int
    notes: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """How many sources and BatchNormalizations the model held, and how many sources were folded and kept."""
        return {
            "sources": self.sources,
            "batch_normalizations": self.batch_normalizations,
            "folded": len(self.folded),
            "kept": len(self.kept),
        }

    @property
    def unfolded(self) -> tuple[Kept, ...]:
        """The kept sources that are normalizations: what `--fail-on-unfolded` counts."""
        return tuple(kept for kept in self.kept if kept.is_normalization)

    def to_dict(self) -> dict[str, Any]:
        """`counts`, `folded`, `kept` and `notes` as the JSON output has them."""
        from .json import report_dict

        return report_dict(self)

    def __str__(self) -> str:
        from .text import fold_table

        return fold_table(self)
