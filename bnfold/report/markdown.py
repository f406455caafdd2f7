"""Markdown for a pull request or a step summary: the verdict, what is left and why, what was folded and checked."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from .findings import Finding, findings, is_left, subject

_SPACES = re.compile(r"[\s\x00-\x1f\x7f]+")
_ACTIVE = re.compile(r"([\\`*_{}\[\]<>#|~&@!])")  # what GitHub's Markdown gives a meaning inside a line


def render(document: Mapping[str, Any]) -> str:
    """The document as headings and tables."""
    text = "\n".join(_lines(document)) + "\n"
    return text.encode("utf-8", "backslashreplace").decode()  # a path may hold bytes that are no text


def shortened(text: str, limit: int) -> str:
    """`text` in at most `limit` bytes of UTF-8: whole lines, then a sentence that says what is missing."""
    if len(text.encode()) <= limit:
        return text
    notice = "\n\nThe rest is left out: it does not fit into this page.\n"
    room = limit - len(notice.encode())
    kept: list[str] = []
    for line in text.splitlines():
        room -= len(line.encode()) + 1
        if room < 0:
            break
        kept.append(line)
    return "\n".join(kept) + notice if limit >= len(notice.encode()) else ""


def _lines(document: Mapping[str, Any]) -> Iterator[str]:
    path = subject(document)
    yield f"### bnfold: {code(path)}" if path else "### bnfold"
    yield ""
    if "error" in document:
        yield f"**Error**: {escaped(document['error']['message'])}"
        return
    verdict = document["verdict"]
    yield f"**{verdict['word']}**: {escaped(verdict['sentence'])}"
    yield from _table(("", "rule", "node", "what"), map(_finding, findings(document)))
    folded = document.get("folded", [])
    if folded and document["command"] != "check":
        title = "folded" if document["command"] == "fold" else "would fold"
        yield from _table((title, "", "count"), _kinds(folded))
    other = [each for each in document.get("kept", []) if not is_left(each)]
    if other:
        yield from ("", f"Other affine nodes that stay, no normalizations: {len(other)}.")
    if document["check"] is not None:
        yield from _check(document["check"])
    for note in document.get("notes", ()):
        yield from ("", f"Note: {escaped(note)}")


def _finding(finding: Finding) -> tuple[str, ...]:
    what = escaped(finding.message) + (f" *{escaped(finding.hint)}*" if finding.hint else "")
    return finding.level, code(finding.rule), ", ".join(map(code, finding.nodes)), what


def _kinds(folded: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    kinds = Counter(
        (each["op"], ", ".join(sorted({target["op"] for target in each["into"]})) or "nothing") for each in folded
    )
    for (op, into), count in kinds.most_common():
        yield code(op), f"into {escaped(into)}", str(count)


def _check(check: Mapping[str, Any]) -> Iterator[str]:
    rows: list[tuple[str, ...]] = []
    lines: Sequence[object] = (check.get("gate3") or dict[str, Any]()).get("lines", ())
    samples: Sequence[Mapping[str, Any]] = check.get("samples") or []
    if check.get("certificate") is not None:
        rows.append(("gate 1", escaped(check["certificate"]["sentence"])))
    if check.get("gate2") is not None:
        rows.append(("gate 2", escaped(check["gate2"]["sentence"])))
    rows += [("gate 3", escaped(str(line))) for line in lines]
    if samples:
        counted = sum(bool(each["counted"]) for each in samples)
        rows.append(("inputs", f"{counted} of {len(samples)} samples counted, seed {check['seed']}"))
    for each in check.get("providers") or ():
        rows += [(code(each["name"]), escaped(line)) for line in each["lines"]]
    if check.get("provider") and not check.get("providers"):
        rows.append(("provider", escaped(check["provider"])))
    rows += [("note", escaped(each)) for each in check.get("warnings", ())]
    yield from _table(("check", ""), rows)


def _table(head: Sequence[str], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    body = [f"| {' | '.join(row)} |" for row in rows]
    if body:
        yield ""
        yield f"| {' | '.join(head)} |"
        yield f"|{'---|' * len(head)}"
        yield from body


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _ACTIVE.sub(r"\\\1", _SPACES.sub(" ", text).strip())


def code(text: str) -> str:
    """A code span, in a table too: a fence longer than any run of backticks inside, and pipes escaped."""
    text = _SPACES.sub(" ", text).strip().replace("|", "\\|")
    if not text:
        return ""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if text[0] == "`" or text[-1] == "`" else ""
    return f"{fence}{pad}{text}{pad}{fence}"
