"""Rescue: the largest fold that passes its check, found by leaving out the sources whose fold does not.

The regions that gate 2 blames come first; where that is not enough, delta debugging (Zeller and Hildebrandt, 2002)
narrows the culprits down to a set of which each one is needed for the failure.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .check.verdict import CheckResult
    from .report import Folded
    from .result import FoldResult

__all__ = ["Rescued", "rescue"]

_Group = tuple[str, ...]  # the sources of one fold

TRIALS = 40  # folds with their checks; what is not narrowed down by then is left out whole


@dataclass(frozen=True)
class Rescued:
    """The fold that passes and its check; `left_out`: the sources that it leaves alone, as patterns for `skip`."""

    result: FoldResult
    check: CheckResult
    left_out: tuple[str, ...]


def rescue(
    result: FoldResult,
    check: CheckResult,
    fold: Callable[[Sequence[str]], FoldResult],
    judge: Callable[[FoldResult], CheckResult],
) -> Rescued | None:
    """The largest fold that passes, or None where nothing that is left to fold does.

    result, check: the fold that did not pass. fold: folds with these patterns in `skip`. judge: checks a fold.
    """
    groups = {each.nodes: each for each in result.report.folded}
    found: dict[_Group, Rescued | None] = {}

    def without(names: Sequence[_Group]) -> Rescued | None:
        """What is left of the fold without these groups of sources, if it passes."""
        left = tuple(sorted({glob.escape(name) for group in names for name in group}))
        if left not in found and len(found) < TRIALS:
            made = fold(left)
            verdict = judge(made) if made.changed else None
            found[left] = Rescued(made, verdict, left) if verdict is not None and verdict.verdict.passed else None
        return found.get(left)

    everything = list(groups)
    blamed = [nodes for nodes in everything if _is_blamed(groups[nodes], check)]
    start = blamed if blamed and without(blamed) is not None else everything
    return without(_needed(start, lambda names: without(names) is not None))


def _is_blamed(folded: Folded, check: CheckResult) -> bool:
    failures = check.gate2.to_dict().get("regions", ()) if check.gate2 is not None else ()
    texts = [each for each in failures if each.get("status") == "failed"]
    names = {folded.nodes[-1], *(target.node for target in folded.into)}
    return any(name in (each["name"], each["end"]) or f"({name})" in each["name"] for each in texts for name in names)


def _needed(names: list[_Group], passes_without: Callable[[list[_Group]], bool]) -> list[_Group]:
    """A part of `names` of which each has to be left out (ddmin); leaving out all of `names` passes."""
    parts = 2
    while len(names) > 1:
        size = -(-len(names) // parts)
        pieces = [names[k : k + size] for k in range(0, len(names), size)]
        alone = next((piece for piece in pieces if passes_without(piece)), None)
        if alone is not None:
            names, parts = alone, 2
            continue
        others = [[n for n in names if n not in piece] for piece in pieces] if len(pieces) > 2 else []
        rest = next((other for other in others if passes_without(other)), None)
        if rest is not None:
            names, parts = rest, max(parts - 1, 2)
        elif parts >= len(names):
            break
        else:
            parts = min(2 * parts, len(names))
    return names


def noted(rescued: Rescued, why: CheckResult) -> FoldResult:
    """The fold with a note on what was left out, and why."""
    report = rescued.result.report
    names = ", ".join(rescued.left_out[:5]) + (" ..." if len(rescued.left_out) > 5 else "")
    note = f"--rescue left out {names}: with all of it folded the check said {why.verdict.name}, {why.sentence}"
    return replace(rescued.result, report=replace(report, notes=(*report.notes, note)))
