"""`--report FORMAT=PATH`: looked at before any work, written atomically at its end, whatever the verdict."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import click

from ..errors import UnwritableOutput, UsageError
from ..report.forms import FORMS


class Report(NamedTuple):
    """One more file: `form` is one of FORMS."""

    form: str
    path: Path


def reports(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[Report, ...]:
    """`junit=results.xml` each, as a click callback; the path may hold equals signs."""
    found: list[Report] = []
    for text in value:
        form, equals, path = text.partition("=")
        if not equals or not path or form not in FORMS:
            what = f"'{text}' is no report; write FORMAT=PATH with one of {', '.join(FORMS)}, as in junit=bnfold.xml."
            raise click.BadParameter(what, ctx, param)
        found.append(Report(form, Path(path)))
    return tuple(found)


def stand_clear(wanted: Sequence[Report], of: Iterable[Path | None]) -> None:
    """Refuse reports that could not be written, or would overwrite one another or one of the models `of`."""
    taken = {_resolved(path): f"the model {path}" for path in of if path is not None}
    for report in wanted:
        target = _resolved(report.path)
        if target in taken:
            raise UsageError(f"--report {report.form}={report.path} would overwrite {taken[target]}.")
        taken[target] = "another report"
        if target.exists() and not target.is_file():
            raise UsageError(f"{report.path} is no file that a report could be written to; choose another --report.")
        if not target.parent.is_dir():
            raise UsageError(f"{target.parent}, where {report.path} would go, is not a directory that exists.")
        if not os.access(target.parent, os.W_OK | os.X_OK):
            raise UnwritableOutput(f"The directory {target.parent} is write-protected; choose another --report.")


def store(report: Report, text: str) -> None:
    """Write `text`, atomically; a link is followed, the permissions of a file that is there are kept."""
    from ..files import Staging

    target = _resolved(report.path)
    with Staging(target, keep_mode_of=target if target.exists() else None) as stage:
        try:
            stage.path.write_bytes((text + "\n").encode("utf-8", "backslashreplace"))
        except OSError as error:
            raise UnwritableOutput(f"{report.path} cannot be written: {error.strerror or error}.") from error
        stage.commit()


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a name that is too long, links in a circle, a NUL byte
        raise UsageError(f"{str(path)!r} is no path that could be used: {error}.") from error
