"""What gate 1 says of a pair of files: a record for each layer, and the sentence that sums them up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .deviation import Deviation

__all__ = ["LayerRecord", "PairCertificate", "explain", "label"]


@dataclass(frozen=True)
class LayerRecord:
    """One layer. state: "unchanged", "folded" (it took in `sources`), "wrong" or "unknown".

    name, candidate: in each file; candidate is None where no layer there could be matched. matched: how it was found.
    certain: nothing that other layers hold could make the difference good. explanation: a sentence if not right.
    """

    name: str
    candidate: str | None
    kind: str
    state: str
    sources: tuple[str, ...] = ()
    matched: str = ""
    deviations: tuple[Deviation, ...] = ()
    certain: bool = False
    explanation: str = ""

    @property
    def worst(self) -> Deviation | None:
        """The constant that is furthest from what it should be, in u*M."""
        return max(self.deviations, key=lambda d: (bool(d.problem), d.worst / max(d.limit, 1.0)), default=None)

    def to_dict(self) -> dict[str, Any]:
        record: dict[str, Any] = {
            "name": self.name, "candidate": self.candidate, "kind": self.kind, "state": self.state,
            "sources": list(self.sources),
        }  # fmt: skip
        worst = self.worst
        if worst is not None:
            record |= {
                "operand": worst.role, "worst_u": worst.worst, "index": list(worst.index),
                "expected": worst.expected, "held": worst.held,
            }  # fmt: skip
        if self.explanation:
            record["explanation"] = self.explanation
        return record


@dataclass(frozen=True)
class PairCertificate:
    """Gate 1's answer on a pair of files.

    passed: the same graph with every constant as it should be. decided: False where something could not be said;
    then this must not decide a verdict. layers: one record each, in the order of the original. breaks: where the two
    graphs differ in more than constants.
    """

    layers: tuple[LayerRecord, ...]
    breaks: tuple[str, ...]
    gone: int = 0

    @property
    def wrong(self) -> tuple[LayerRecord, ...]:
        """The layers that do not hold what they should, the sure ones first."""
        return tuple(sorted((r for r in self.layers if r.state == "wrong"), key=lambda r: not r.certain))

    @property
    def unknown(self) -> tuple[LayerRecord, ...]:
        return tuple(r for r in self.layers if r.state == "unknown")

    @property
    def decided(self) -> bool:
        return bool(self.wrong) or not (self.unknown or self.breaks)

    @property
    def passed(self) -> bool:
        return not (self.wrong or self.unknown or self.breaks)

    @property
    def certain(self) -> bool:
        """Another function for sure, be it masked by what follows: one layer is wrong, and no other makes it good."""
        return any(record.certain for record in self.wrong)

    def fault(self) -> str | None:
        """The first wrong layer in a sentence without a full stop, or None."""
        found = self.wrong
        if not found:
            return None
        others = len(found) - 1
        more = "" if not others else f" (and {others} more {'layer is' if others == 1 else 'layers are'} wrong)"
        return f"{found[0].explanation}{more}"

    @property
    def sentence(self) -> str:
        fault = self.fault()
        if fault is not None:
            return fault
        good = [record for record in self.layers if record.state in ("unchanged", "folded")]
        folded = [record for record in good if record.state == "folded"]
        if self.passed:
            took = f"{len(folded)} with {_count(self.gone, 'source')} folded in, {len(good) - len(folded)} unchanged"
            hold = "1 layer holds" if len(good) == 1 else f"all {len(good)} layers hold"
            return f"{hold} what is right ({took}), and the graphs agree"
        why = self.unknown[0].explanation if self.unknown else self.breaks[0]
        if self.breaks:
            why = self.breaks[0]
        right = (
            f"{len(good)} of {_count(len(self.layers), 'layer')} are right" if self.layers else "no layer was compared"
        )
        return f"not decided: {right}, but {why}"

    @property
    def figures(self) -> dict[str, Any]:
        states = [record.state for record in self.layers]
        known = [d for record in self.layers for d in record.deviations if not d.problem]
        return {
            "decided": self.decided,
            "sources_gone": self.gone,
            "states": {state: states.count(state) for state in ("unchanged", "folded", "wrong", "unknown")},
            "correctly_rounded": all(d.rounded for d in known) if known else None,
            "worst_u": max((d.worst for d in known), default=0.0),
            "layers": [record.to_dict() for record in self.layers],
            "breaks": list(self.breaks[:8]),
        }


def label(kind: str, name: str) -> str:
    """A node for people; one without a name is called by its output already."""
    return name if name.startswith(f"{kind}(") else f"{kind} {name!r}"


def explain(record: LayerRecord, twice: str | None, *, dropped: bool) -> str:
    layer = label(record.kind, record.name)
    names = " and ".join(repr(source) for source in record.sources[:3])
    bad = [d for d in record.deviations if not d.right]
    worst = max(bad, key=lambda d: d.worst, default=None)
    if dropped:
        verb = "is" if len(record.sources) == 1 else "are"
        return f"{names} {verb} gone from the candidate, but {layer} still holds the weights from before: {worst}"
    if twice is not None:
        return f"{layer} took in {twice!r}, which the candidate still has: it is applied twice; its {worst}"
    if record.sources:
        return f"{layer} took in {names}, but its {worst}"
    return f"{layer} took in nothing, but its {worst}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
