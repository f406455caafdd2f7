"""What of a document a CI system shows beside the code: the failed verdict, and every normalization that is left.

A finding is an error where it makes the exit code what it is, and a warning where it does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_PASSED = ("EQUIVALENT", "MORE_ACCURATE")


@dataclass(frozen=True, slots=True)
class Finding:
    """`rule`: a reason of `Reason`, a verdict, FOLDABLE or ERROR; `level`: "error" or "warning"; `hint` may be ""."""

    rule: str
    level: str
    nodes: tuple[str, ...]
    message: str
    hint: str = ""


def findings(document: Mapping[str, Any]) -> list[Finding]:
    """The verdict first, then errors before warnings, otherwise in the order of the document."""
    if "error" in document:
        return [Finding("ERROR", "error", (), document["error"]["message"])]
    found = [*_verdict(document), *_left(document)]
    return sorted(found, key=lambda each: each.level != "error")


def subject(document: Mapping[str, Any]) -> str:
    """The model that the findings are about: the candidate of a check, else the source; "" where it has no path."""
    about: Mapping[str, Any] | None = document.get("result") if document.get("command") == "check" else None
    about = about or document.get("source")
    return (about or dict[str, Any]()).get("path") or ""


def fails_on_unfolded(document: Mapping[str, Any]) -> bool:
    """Whether a normalization that is left is a failure."""
    return bool(document.get("verdict", {}).get("fail_on_unfolded"))


def is_left(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of `kept` or `folded` is a normalization, and no lone scale or shift."""
    return bool(entry["normalization"])


def _verdict(document: Mapping[str, Any]) -> Iterator[Finding]:
    if document["verdict"]["word"] == "STALE":
        layers: list[Mapping[str, Any]] = document["statistics"]["layers"]
        worst = max(layers, key=lambda each: each["drift"])
        hint = "Measure the statistics anew: bnfold stats refresh."
        yield Finding("STALE", "error", (str(worst["node"]),), document["verdict"]["sentence"], hint)
    check = document.get("check")
    if check is None or check["verdict"] in _PASSED:
        return
    certificate: Mapping[str, Any] = check.get("certificate") or {"figures": {}}
    wrong = certificate["figures"].get("wrong")
    level = "error" if document["verdict"]["exit_code"] else "warning"
    yield Finding(check["verdict"], level, (str(wrong),) if wrong else (), check["sentence"])


def _left(document: Mapping[str, Any]) -> Iterator[Finding]:
    level = "error" if fails_on_unfolded(document) else "warning"
    if document.get("command") == "check":  # what would fold is left in a candidate too
        for each in filter(is_left, document.get("folded", ())):
            yield Finding("FOLDABLE", level, tuple(each["nodes"]), would_fold(each), "Fold it with bnfold.")
    for each in filter(is_left, document.get("kept", ())):
        where = f" at {each['at']}" if each["at"] and each["at"] not in each["nodes"] else ""
        message = f"{', '.join(each['nodes'])} ({each['op']}) stays: {each['reason']}{where}: {each['message']}"
        yield Finding(each["reason"], level, tuple(each["nodes"]), message, each["hint"])


def would_fold(entry: Mapping[str, Any]) -> str:
    """The sentence for a normalization of a candidate that could be folded."""
    into = ", ".join(f"{target['node']} ({target['op']})" for target in entry["into"])
    where = f"would fold into {into}" if into else "is the identity and could go"
    return f"{', '.join(entry['nodes'])} ({entry['op']}) is left in the model; it {where}."
