"""Where words go: results to stdout, the verdict last; progress and errors to stderr; --format json: one document."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

import click

from ..errors import BnfoldError
from .reports import Report, stand_clear, store


class Step(Protocol):
    """Says what is being done now."""

    def __call__(self, what: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Console:
    """What to say: `quiet` is the verdict alone; `form` that of stdout, text or a document; `reports` are more files.

    `fail_on_unfolded`: a normalization that is left is an error in the documents, and no warning.
    """

    quiet: bool = False
    verbose: bool = False
    form: str = "text"
    reports: tuple[Report, ...] = ()
    fail_on_unfolded: bool = False
    _said: list[str] = field(default_factory=list[str])
    _cleared: list[bool] = field(default_factory=list[bool])  # empty until it is known what a report may not overwrite

    @property
    def documents(self) -> bool:
        """Whether anything but text is wanted."""
        return any(form != "text" for form in (self.form, *(report.form for report in self.reports)))

    def say(self, text: str) -> None:
        """A part of the result, on stdout."""
        self._said.append(text)
        if not self.quiet and self.form == "text":
            click.echo(text, color=_coloured(sys.stdout))

    def clear_of(self, *models: Path | None) -> None:
        """Refuse reports that would overwrite a model, or could not be written. Until then none is written."""
        stand_clear(self.reports, models)
        self._cleared.append(True)

    @contextmanager
    def reporting(self) -> Generator[None]:
        """When the work ends with an error, that is what the reports hold: no CI shows those of the last run."""
        try:
            yield
        except BnfoldError as error:
            from ..report.json import error_document

            with suppress(BnfoldError):  # the first error is the one to tell
                if self._cleared:
                    self._store(error_document(error.kind, str(error)), f"Error: {error}")
            raise

    def finish(self, command: str, word: str, sentence: str, code: int, parts: Callable[[], Mapping[str, Any]]) -> int:
        """The end of a command: the document out of `parts`, the reports, the verdict's line. Returns `code`."""
        from ..report.json import document

        verdict = {"word": word, "sentence": " ".join(sentence.split()), "exit_code": code}
        verdict |= {"fail_on_unfolded": self.fail_on_unfolded}
        whole = document(**parts(), command=command, verdict=verdict) if self.documents else {}
        line = f"{word}: {verdict['sentence']}"
        self._store(whole, "\n".join([*self._said, line]))
        if self.form != "text":
            _emit(self.form, whole)
        else:
            coloured = click.style(word, fg="red" if code else "green", bold=True)
            click.echo(f"{coloured}: {verdict['sentence']}", color=_coloured(sys.stdout))
        return code

    def _store(self, document: Mapping[str, Any], text: str) -> None:
        from ..report.forms import render

        for report in self.reports:
            store(report, text if report.form == "text" else render(report.form, document))

    @contextmanager
    def progress(self, steps: int) -> Generator[Step]:
        """A bar on stderr, only where a person watches; yields the function that names the next step."""
        if self.quiet or not sys.stderr.isatty():
            yield _unseen
            return
        with click.progressbar(length=steps, file=sys.stderr, color=_coloured(sys.stderr), show_eta=False) as bar:
            done = 0

            def step(what: str) -> None:
                nonlocal done
                bar.label = f"{what:<9}"
                bar.update(1 if done else 0)
                bar.render_progress()
                done += 1

            yield step
            bar.update(steps)


def width() -> int:
    """Columns for tables: the terminal's, and a fixed number elsewhere, so that the same input gives the same bytes."""
    from ..report.text import WIDTH

    return shutil.get_terminal_size((WIDTH, 24)).columns if sys.stdout.isatty() else WIDTH


def emit_error(kind: str, message: str, code: int, *, form: str, hint: str = "") -> int:
    """Say what went wrong: a sentence on stderr and, unless `form` is text, a document on stdout. Returns `code`."""
    try:
        if form != "text":
            from ..report.json import error_document

            with suppress(BnfoldError):  # a step summary that cannot be written is not what went wrong
                _emit(form, error_document(kind, message))
        word = click.style("Error", fg="red", bold=True)
        click.echo(f"{word}: {message}" + (f" {hint}" if hint else ""), err=True, color=_coloured(sys.stderr))
    except BrokenPipeError:
        silence()
    return code


def _emit(form: str, document: Mapping[str, Any]) -> None:
    from ..report.forms import render

    click.echo(render(form, document))
    if form == "github":
        from ..report.github import summarize

        summarize(document)


def silence() -> None:
    """Point stdout at nothing, so that Python does not complain about the closed pipe when it exits."""
    descriptor = os.open(os.devnull, os.O_WRONLY)
    os.dup2(descriptor, sys.stdout.fileno())
    os.close(descriptor)


def _unseen(what: str) -> None:
    """Progress that nobody watches."""


def _coloured(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
