"""The forms of a document: one renderer each, imported when it is wanted. `text` is made where the work is done."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

FORMS = ("text", "json", "junit", "sarif", "github", "markdown")


def render(form: str, document: Mapping[str, Any]) -> str:
    """`document` in one of FORMS but text; it ends without a newline."""
    if form == "json":
        from .json import dumps

        return dumps(document)
    return import_module(f".{form}", __package__).render(document).rstrip("\n")
