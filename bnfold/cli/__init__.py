"""The command line: parse, call the library, print, exit with a code. Nothing here knows how to fold.

0  equivalent, or nothing to fold          2  usage, unreadable, unsupported, or a bug (which says so)
1  not equivalent, or something was left   3  inconclusive            130  interrupted
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

import click

from ..errors import BnfoldError
from .commands import bnfold
from .options import form_of
from .output import emit_error, silence
from .signals import caught
from .startup import in_own_process

__all__ = ["main", "process"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command with the arguments `argv` (default: the process's own) and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # what a user has to know is a note of the report, not a Python warning
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a sentence with σ² must not fail on an ASCII terminal
    try:
        with caught():
            return _run(arguments)
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            silence()


def process() -> NoReturn:
    """`main` as a process of its own, which ends without taking every object of a large model apart first."""
    in_own_process()
    code = main()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    if sys.modules.keys().isdisjoint(("torch", "coverage")):  # others' code may want to be told of the end
        os._exit(code)
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    form = form_of(arguments)
    try:
        code = bnfold.main(arguments, prog_name="bnfold", standalone_mode=False)
    except click.ClickException as error:
        usage = "" if error.ctx is None else f"Try '{error.ctx.command_path} --help'."  # type: ignore[attr-defined]
        return emit_error("usage", _sentence(error.format_message()), 2, form=form, hint=usage)
    except BnfoldError as error:
        return emit_error(error.kind, str(error), error.exit_code, form=form)
    except (KeyboardInterrupt, click.Abort):
        # Where the interrupt came inside an exec() of source text, as dataclasses do, CPython holds it for unhandled:
        # under `python -m` it would die of the signal at the end, unless something else has been executed since.
        exec("pass")
        return emit_error("interrupted", "Interrupted; nothing was written.", 130, form=form)
    except BrokenPipeError:  # whoever read the output has gone, and with it the wish to know
        silence()
        return 141
    except MemoryError:
        return emit_error("memory", "Out of memory; nothing was written.", 2, form=form)
    except Exception as error:
        if os.environ.get("BNFOLD_DEBUG") == "1":
            import traceback

            traceback.print_exc()
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        message = f"This is a bug in bnfold ({what}). Please report it, with the traceback that BNFOLD_DEBUG=1 prints."
        return emit_error("internal", message, 2, form=form)
    return code if isinstance(code, int) else 0


def _sentence(text: str) -> str:
    return " ".join(text.split())
