"""What the options mean: shapes and sizes in bytes as click callbacks; OUT, as a rule of its own."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from ..errors import UnwritableOutput, UsageError
from ..report.forms import FORMS

if TYPE_CHECKING:
    from fractions import Fraction

_UNITS = {"": 1, "B": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30}
_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


_T = TypeVar("_T")


def chosen(settings: type[_T], given: Mapping[str, Any], **more: Any) -> _T:
    """The NamedTuple `settings` out of the options of a command that bear the names of its fields."""
    return settings(**{name: given[name] for name in settings.__annotations__ if name in given}, **more)


class Growth(NamedTuple):
    """A bound on added bytes: an absolute number, or a share of the model's size."""

    share: Fraction | None
    fixed: int = 0

    def of(self, size: int) -> int:
        """The bound in bytes for a model of `size` bytes."""
        return self.fixed if self.share is None else int(self.share * size)


def form_of(arguments: Sequence[str]) -> str:
    """The form of stdout that a command line asks for, be the rest of it as wrong as it likes."""
    given = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    form = "json" if "--json" in given else "text"
    for word, following in zip(given, [*given, ""][1:], strict=True):
        value = following if word == "--format" else word.removeprefix("--format=")
        if word.startswith("--format") and value in FORMS:
            form = value
    return form


def chosen_form(ctx: click.Context, as_json: bool, form: str | None) -> str:
    """One form out of --json and --format."""
    if as_json and form not in (None, "json"):
        raise click.UsageError(f"--json is --format json, and cannot be combined with --format {form}.", ctx)
    return "json" if as_json else form or "text"


def growth(ctx: click.Context, param: click.Parameter, value: str | None) -> Growth | None:
    """`4096`, `16MiB`, `2.5MB` or `10%`, as a click callback."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*(%|(?:([KMG]I?)?B?))", value.strip().upper(), re.ASCII)
    if match is None:
        text = f"'{value}' is no size; write bytes (4096), a unit (16MiB) or a share of the model (10%)."
        raise click.BadParameter(text, ctx, param)
    from fractions import Fraction  # it brings decimal along, which nothing else needs

    number = Fraction(match[1])
    return Growth(number / 100) if match[2] == "%" else Growth(None, int(number * _UNITS[match[3] or ""]))


def shapes(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """`NAME:1,3,224,224` each, as a click callback; the name may hold colons, and no sizes at all are a scalar's."""
    found: dict[str, tuple[int, ...]] = {}
    for text in value:
        name, _, sizes = text.rpartition(":")
        parts = [part.strip() for part in sizes.split(",")] if sizes.strip() else []
        if not name or not all(re.fullmatch(r"\d{1,18}", part, re.ASCII) for part in parts):
            what = f"'{text}' is no shape; write the input's name and its sizes, as in input:1,3,224,224."
            raise click.BadParameter(what, ctx, param)
        if name in found:
            raise click.BadParameter(f"the input '{name}' is given twice.", ctx, param)
        found[name] = tuple(int(part) for part in parts)
    return found


def ranges(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    """`NAME:lo,hi` each, as a click callback; the name may hold colons. Whole numbers stay integers."""
    found: dict[str, tuple[float, float]] = {}
    for text in value:
        name, _, ends = text.rpartition(":")
        parts = [_number(part) for part in ends.split(",")]
        if not name or len(parts) != 2 or parts[0] is None or parts[1] is None:
            what = f"'{text}' is no range; write the input's name, its lowest and its highest value, as in input:0,255."
            raise click.BadParameter(what, ctx, param)
        if name in found:
            raise click.BadParameter(f"the input '{name}' is given twice.", ctx, param)
        found[name] = parts[0], parts[1]
    return found


def limit(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    """`--max-drift`: a number above 0, as a click callback."""
    if value is not None and not (math.isfinite(value) and value > 0):
        what = "a drift is a number above 0: 0.05 is 5 % of the standard deviation of an output."
        raise click.BadParameter(what, ctx, param)
    return value


def _number(text: str) -> float | None:
    text = text.strip()
    if re.fullmatch(r"[+-]?\d{1,20}", text, re.ASCII):
        return int(text)
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?", text, re.ASCII):
        return float(text)
    return None


def is_torch(model: Path) -> bool:
    """Whether the argument names a .pt2 archive or a factory of PyTorch modules."""
    return is_archive(model) or (not model.exists() and _FACTORY.fullmatch(str(model)) is not None)


def is_archive(model: Path) -> bool:
    """Whether the argument names an archive of torch.export."""
    return model.suffix == ".pt2"


def destination(
    model: Path, out: Path | None, *, in_place: bool, dry_run: bool, force: bool, made: str = "folded"
) -> Path | None:
    """Where the result goes, MODEL.`made`.onnx unless told; None for a dry run.

    Raises UsageError or UnwritableOutput before any work is done.
    """
    if out is not None and (in_place or dry_run):
        raise UsageError(f"--output cannot be combined with {'--in-place' if in_place else '--dry-run'}.")
    if dry_run:
        return None
    if in_place:
        target = model.resolve()
        if target.exists() and not os.access(target, os.W_OK):
            raise UnwritableOutput(f"{model} is write-protected; --in-place would replace it.")
    elif out is None:
        target = model.with_name(f"{model.stem}.{made}{model.suffix or '.onnx'}")
    elif out.is_dir():
        target = out / f"{model.stem}.{made}{model.suffix or '.onnx'}"
    else:
        target = out
    parent = target.parent
    if not parent.is_dir():
        raise UsageError(f"{parent} is not a directory that exists; create it first, or choose another --output.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UnwritableOutput(f"The directory {parent} is write-protected; choose another place with --output.")
    if in_place:
        return target
    if target.exists() and model.exists() and target.samefile(model):
        raise UsageError(f"{target} is the model itself; use --in-place to replace it.")
    if target.exists() and not target.is_file():
        raise UsageError(f"{target} is neither a file nor a directory; choose another --output.")
    if os.path.lexists(target) and not force:
        raise UsageError(f"{target} exists; --force overwrites it, --output chooses another name.")
    return target
