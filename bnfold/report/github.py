"""GitHub Actions: workflow commands that become annotations, at most five, and the step summary, under 1 MiB.

GitHub shows ten annotations of each kind a step and counts them over all steps; five leave room for other tools.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UnwritableOutput
from . import markdown
from .findings import Finding, findings, subject

_ANNOTATIONS = 5
_SUMMARY = (1 << 20) - 1  # bytes; GitHub refuses the whole summary of a step that passes 1 MiB


def render(document: Mapping[str, Any]) -> str:
    """The annotations, worst first, and the verdict as the log's last line."""
    found, path = findings(document), subject(document)
    shown = found if len(found) <= _ANNOTATIONS else found[: _ANNOTATIONS - 1]
    lines = [_command(each, path) for each in shown]
    rest = found[len(shown) :]
    if rest:
        worst = "error" if any(each.level == "error" for each in rest) else "warning"
        text = f"{len(rest)} more findings; the step summary has them all."
        lines.append(f"::{worst} title=bnfold::{data(text)}")
    if "verdict" in document:
        sentence = " ".join(document["verdict"]["sentence"].split())
        # "##[" opens a command anywhere in a line, and a sentence may hold the name of a node
        lines.append(f"{document['verdict']['word']}: {sentence}".replace("##[", "## ["))
    return "\n".join(lines)


def summarize(document: Mapping[str, Any]) -> None:
    """Append the Markdown to the step's summary, if this is a step. Raises UnwritableOutput."""
    name = os.environ.get("GITHUB_STEP_SUMMARY")
    if os.environ.get("GITHUB_ACTIONS") != "true" or not name:
        return
    path = Path(name)
    try:
        held = path.stat().st_size if path.exists() else 0
        text = markdown.shortened(markdown.render(document) + "\n", max(0, _SUMMARY - held))
        with path.open("ab") as file:
            file.write(text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise UnwritableOutput(f"The step summary {path} cannot be written: {error.strerror or error}.") from error


def data(text: str) -> str:
    """The message of a workflow command."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def attribute(text: str) -> str:
    """The value of one of a workflow command's properties."""
    return data(text).replace(":", "%3A").replace(",", "%2C")


def _command(finding: Finding, path: str) -> str:
    place = f"file={attribute(path)}," if path else ""
    text = finding.message + (f"\n{finding.hint}" if finding.hint else "")
    return f"::{finding.level} {place}title={attribute(f'bnfold {finding.rule}')}::{data(text)}"
