"""Where words go: results to stdout, the verdict last; progress and errors to stderr; with --json one document."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

import click


class Step(Protocol):
    """Says what is being done now."""

    def __call__(self, what: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Console:
    """How much to say: `quiet` is the verdict alone, `json` the document alone."""

    quiet: bool = False
    verbose: bool = False
    json: bool = False

    def say(self, text: str) -> None:
        """A part of the result, on stdout."""
        if not self.quiet and not self.json:
            click.echo(text, color=_coloured(sys.stdout))

    def document(self, value: Mapping[str, Any]) -> None:
        """The JSON document, if JSON is wanted."""
        if self.json:
            from ..report.json import dumps

            click.echo(dumps(value))

    def verdict(self, word: str, sentence: str, *, good: bool) -> None:
        """The last line: one word for scripts and colours, one sentence for people."""
        if not self.json:
            coloured = click.style(word, fg="green" if good else "red", bold=True)
            click.echo(f"{coloured}: {' '.join(sentence.split())}", color=_coloured(sys.stdout))

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


def emit_error(kind: str, message: str, code: int, *, as_json: bool, hint: str = "") -> int:
    """Say what went wrong: a sentence on stderr and, with --json, the error document on stdout. Returns `code`."""
    try:
        if as_json:
            from ..report.json import dumps, error_document

            click.echo(dumps(error_document(kind, message)))
        word = click.style("Error", fg="red", bold=True)
        click.echo(f"{word}: {message}" + (f" {hint}" if hint else ""), err=True, color=_coloured(sys.stderr))
    except BrokenPipeError:
        silence()
    return code


def silence() -> None:
    """Point stdout at nothing, so that Python does not complain about the closed pipe when it exits."""
    descriptor = os.open(os.devnull, os.O_WRONLY)
    os.dup2(descriptor, sys.stdout.fileno())
    os.close(descriptor)


def _unseen(what: str) -> None:
    """Progress that nobody watches."""


def _coloured(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
