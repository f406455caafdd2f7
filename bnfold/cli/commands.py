"""The commands and their options. `bnfold MODEL` is `bnfold fold MODEL`; a file called `check` is reachable as ./check.

Everything heavy is imported inside a command, so that --help and --version answer at once.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from .. import __version__
from ..report.forms import FORMS
from .options import chosen, chosen_form, growth, ranges, shapes
from .output import Console
from .reports import reports
from .stats import limit

_F = TypeVar("_F", bound=Callable[..., Any])

_EXIT_CODES = (
    ("0", "equivalent, or nothing to fold"),
    ("1", "not equivalent; or --fail-on-unfolded and a normalization was left"),
    ("2", "usage, unreadable or unsupported model, or a bug in bnfold (which says so)"),
    ("3", "inconclusive: the check could not decide"),
    ("130", "interrupted; nothing was written"),
)


class DefaultGroup(click.Group):
    """A group whose first argument may be a model: then the command is `fold`."""

    default = "fold"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h", "--version"):
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return ["MODEL [OPTIONS]  |  COMMAND ..."]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_commands(ctx, formatter)
        fold = self.commands[self.default]
        options = [each for each in fold.params if isinstance(each, click.Option)]
        rows = [row for row in (each.get_help_record(ctx) for each in options) if row is not None]
        with formatter.section("Options of fold"):
            formatter.write_dl([*rows, ("-h, --help", "Show this message and exit.")])
        with formatter.section("Exit codes"):
            formatter.write_dl(_EXIT_CODES)


def _options(*decorators: Callable[[_F], _F]) -> Callable[[_F], _F]:
    def decorate(function: _F) -> _F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


_MODEL = click.Path(readable=False, path_type=Path)  # existence is for the loader to judge: its sentences say more

_how_to_say = _options(
    click.option(
        "--format",
        "form",
        type=click.Choice(FORMS),
        help="What stdout gets. json, junit, sarif and markdown are one document; github is workflow commands, "
        "and a step summary where there is one. Default: text.",
    ),
    click.option("--json", "as_json", is_flag=True, help="The same as --format json."),
    click.option(
        "--report",
        "reports",
        callback=reports,
        multiple=True,
        metavar="FORMAT=PATH",
        help="Write this form to a file too, whatever the verdict; repeatable.",
    ),
    click.option("-q", "--quiet", is_flag=True, help="Print only the verdict line."),
)
_unfolded = click.option("--fail-on-unfolded", is_flag=True, help="Exit 1 if a normalization was left.")
_version = click.version_option(
    __version__, "--version", message="bnfold %(version)s", help="Show the version and exit."
)
_what_to_fold = _options(
    click.option("--skip", multiple=True, metavar="NODE", help="Leave nodes of this name alone; a glob, repeatable."),
    click.option("--only", multiple=True, metavar="NODE", help="Fold only nodes of this name; a glob, repeatable."),
    click.option(
        "--freeze-inputs",
        is_flag=True,
        help="Fold weights that are also graph inputs; callers can override them no more.",
    ),
    click.option("--keep-inputs", is_flag=True, help="Never fold a weight that is also a graph input."),
    click.option(
        "--max-growth",
        callback=growth,
        metavar="SIZE",
        help="How many bytes clones and grown biases may add: 4096, 16MiB, or 10% of the model. "
        "Default: the larger of 10% and 16MiB.",
    ),
    click.option(
        "--aggressive",
        is_flag=True,
        help="Fold Relu, BatchNormalization, padded Conv too: the Relu becomes a Max, which runtimes do not fuse.",
    ),
    click.option(
        "--partial",
        is_flag=True,
        help="Where only the scale of a BatchNormalization can go, fold that and leave an Add of the shift.",
    ),
)
_max_drift = click.option(
    "--max-drift",
    type=float,
    callback=limit,
    metavar="SHARE",
    help="Exit 1 and write nothing if stored statistics are further off than this on the data of --inputs, in standard "
    "deviations of a normalization's output; 0.05 is a good bound.",
)
_timeout = click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Stop the runtime when it loads or runs a model for longer. Default: 600, and 60 for the doctor.",
)
_threads = click.option(
    "--threads", type=click.IntRange(1), metavar="N", help="Threads for the runtime. Default: its own."
)
_custom_ops = click.option(
    "--custom-ops",
    type=click.Path(readable=False, path_type=Path),
    multiple=True,
    metavar="LIB",
    help="A shared library of custom operators for the runtime; repeatable.",
)
_how_to_check = _options(
    _threads,
    click.option(
        "--inputs",
        type=click.Path(readable=False, path_type=Path),
        multiple=True,
        metavar="FILE",
        help="Check on these samples: an .npz, keys are input names, one sample or many; repeatable.",
    ),
    click.option(
        "--shape",
        "shapes",
        callback=shapes,
        multiple=True,
        metavar="NAME:SIZES",
        help="The shape of a dynamic input, as in input:1,3,224,224; repeatable.",
    ),
    click.option(
        "--range",
        "ranges",
        callback=ranges,
        multiple=True,
        metavar="NAME:LO,HI",
        help="Generated values of an input lie from LO to HI, both included, as in image:0,255; repeatable.",
    ),
    click.option(
        "--calibrated",
        is_flag=True,
        help="Rescale the generated inputs until the first normalizations see their own statistics.",
    ),
    click.option(
        "--seed", type=click.IntRange(0), default=0, metavar="N", help="Seed of the check's inputs. Default: 0."
    ),
    click.option("--samples", type=click.IntRange(1), metavar="N", help="How many random samples the check uses."),
    click.option(
        "--provider",
        "providers",
        multiple=True,
        metavar="NAME",
        help="Run both models on this execution provider: cpu, cuda, openvino, ... or all that load; repeatable, "
        "comma lists too. Default: cpu.",
    ),
    click.option("--tf32", is_flag=True, help="Let NVIDIA's providers compute float32 products in TF32."),
    _timeout,
    _custom_ops,
)
_how_to_measure = _options(
    click.option(
        "--inputs",
        type=click.Path(readable=False, path_type=Path),
        multiple=True,
        required=True,
        metavar="FILE",
        help="Measure on these samples: an .npz, keys are input names, axis 0 is the samples; repeatable.",
    ),
    _threads,
    _timeout,
    _custom_ops,
)


@click.group(cls=DefaultGroup, context_settings={"help_option_names": ["-h", "--help"]})
@_version
def bnfold() -> None:
    """Fold every BatchNormalization of an ONNX model into the weights beside it, prove that nothing changed, and say
    why when one stays.

    `bnfold net.onnx` writes net.folded.onnx beside it. A file that is called like a command is reachable as ./check.
    """


_weights = click.option(
    "--weights",
    type=click.Path(readable=False, path_type=Path),
    metavar="FILE",
    help="With package.module:factory as MODEL: the state dict of the PyTorch module that the factory makes.",
)


@bnfold.command("fold")
@click.argument("model", type=_MODEL)
@click.option(
    "-o",
    "--output",
    type=click.Path(readable=False, path_type=Path),
    metavar="OUT",
    help="Where the result goes: a file or a directory. Default: MODEL.folded.onnx beside MODEL.",
)
@_weights
@click.option("--force", is_flag=True, help="Overwrite OUT if it exists.")
@click.option("--in-place", is_flag=True, help="Replace MODEL, atomically; links are followed, permissions kept.")
@click.option("--dry-run", is_flag=True, help="Fold and check, but write nothing.")
@click.option("--no-check", is_flag=True, help="Do not compare the result with the original.")
@click.option(
    "--accept",
    type=click.Choice(["degraded", "certificate", "any"]),
    multiple=True,
    help="Write a result that did not pass: one of lower accuracy; one that only the certificate vouches for; "
    "any. Repeatable; the exit code stays.",
)
@_unfolded
@click.option(
    "--rescue",
    is_flag=True,
    help="If the result does not pass, leave out the sources to blame and write the largest fold that does.",
)
@click.option("--no-receipt", is_flag=True, help="Write no receipt of the check into OUT's metadata.")
@click.option(
    "--keep-statistics",
    is_flag=True,
    help="Keep what the fold replaces in OUT.bnfold, a sidecar from which `bnfold unfold` gives MODEL back.",
)
@_max_drift
@_what_to_fold
@_how_to_check
@_how_to_say
@click.option("-v", "--verbose", is_flag=True, help="List every fold with its path, and every source that stays.")
@_version
def fold(
    model: Path,
    output: Path | None,
    weights: Path | None,
    force: bool,
    in_place: bool,
    dry_run: bool,
    no_check: bool,
    accept: tuple[str, ...],
    fail_on_unfolded: bool,
    no_receipt: bool,
    rescue: bool,
    keep_statistics: bool,
    max_drift: float | None,
    **others: Any,
) -> int:
    """Fold MODEL, check the result against it, and write it. This is what `bnfold MODEL` does."""
    from .folding import Checking, Selection, Writing, run
    from .torch_loading import is_torch
    from .torch_models import run_torch

    console = _console(others, fail_on_unfolded=fail_on_unfolded)
    selection, checking = chosen(Selection, others), chosen(Checking, others, wanted=not no_check)
    writing = Writing(
        output,
        force,
        in_place,
        dry_run,
        frozenset(accept),
        fail_on_unfolded,
        not no_receipt,
        rescue,
        max_drift,
        keep_statistics,
    )
    with console.reporting():
        if is_torch(model):
            return run_torch(model, weights, selection, checking, writing, console)
        if weights is not None:
            raise click.UsageError("--weights goes with package.module:factory as MODEL.")
        return run(model, selection, checking, writing, console)


@bnfold.command("explain")
@click.argument("model", type=_MODEL)
@_weights
@click.option(
    "--shape",
    "shapes",
    callback=shapes,
    multiple=True,
    metavar="NAME:SIZES",
    help="With package.module:factory as MODEL: the shape of an input, as in x:1,3,224,224; repeatable.",
)
@_what_to_fold
@_how_to_say
def explain(model: Path, weights: Path | None, shapes: dict[str, tuple[int, ...]], **others: Any) -> int:
    """Say where each affine of MODEL goes, or why not. Writes nothing."""
    from .folding import Checking, Selection, run_explain
    from .torch_loading import is_torch
    from .torch_models import explain_torch

    console = _console(others)
    selection = chosen(Selection, others)
    with console.reporting():
        if is_torch(model):
            return explain_torch(model, weights, selection, Checking(False, None, (), shapes, 0, None), console)
        if weights is not None or shapes:
            raise click.UsageError("--weights and --shape go with package.module:factory as MODEL.")
        return run_explain(model, selection, console)


@bnfold.command("check")
@click.argument("original", type=_MODEL)
@click.argument("candidate", type=_MODEL, required=False)
@click.option(
    "--source",
    type=_MODEL,
    metavar="FILE",
    help="With a single MODEL: the file that its receipt must name as its source.",
)
@click.option(
    "--accept",
    type=click.Choice(["degraded"]),
    multiple=True,
    help="Exit 0 for this verdict too: the same function at a lower accuracy.",
)
@_unfolded
@click.option(
    "--certificate-only",
    is_flag=True,
    help="Run nothing: fold ORIGINAL again and compare every weight of CANDIDATE. For folds that bnfold made.",
)
@click.option("--power", is_flag=True, help="Plant known faults in a fold of ORIGINAL and say how many are caught.")
@_how_to_check
@_how_to_say
def check(
    original: Path,
    candidate: Path | None,
    source: Path | None,
    accept: tuple[str, ...],
    fail_on_unfolded: bool,
    power: bool,
    **others: Any,
) -> int:
    """Is CANDIDATE the same function as ORIGINAL? Whoever made it. Writes nothing.

    A single MODEL: what does its receipt say, and is it still the file that was checked?
    """
    from .checking import run_check, run_receipt
    from .folding import Checking

    if candidate is not None and source is not None:
        raise click.UsageError("--source goes with a single MODEL; two models are compared with each other.")
    console = _console(others, fail_on_unfolded=fail_on_unfolded)
    with console.reporting():
        if candidate is None:
            return run_receipt(original, source, console)
        checking = chosen(Checking, others, wanted=True)
        return run_check(original, candidate, checking, frozenset(accept), console, power=power)


@bnfold.command("bench")
@click.argument("model", type=_MODEL)
@click.argument("candidate", type=_MODEL, required=False)
@click.option("--runs", type=click.IntRange(1), default=100, show_default=True, metavar="N", help="Rounds at most.")
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Threads for the runtime. Default: its own.")
@click.option("--seed", type=click.IntRange(0), default=0, metavar="N", help="Seed of the inputs. Default: 0.")
@click.option(
    "--shape",
    "shapes",
    callback=shapes,
    multiple=True,
    metavar="NAME:SIZES",
    help="The shape of a dynamic input, as in input:1,3,224,224; repeatable.",
)
@click.option(
    "--inputs",
    type=click.Path(readable=False, path_type=Path),
    multiple=True,
    metavar="FILE",
    help="Run on the first sample of this .npz.",
)
@click.option(
    "--custom-ops",
    type=click.Path(readable=False, path_type=Path),
    multiple=True,
    metavar="LIB",
    help="A shared library of custom operators for the runtime; repeatable.",
)
@_timeout
@_how_to_say
def bench(model: Path, candidate: Path | None, **others: Any) -> int:
    """Time MODEL against its fold (or CANDIDATE) in ONNX Runtime.

    Session creation and runs, in turn, with all optimisations; and how many kernels a run launches. Writes nothing.
    """
    from .bench import Timing, run_bench

    console = _console(others)
    with console.reporting():
        return run_bench(model, candidate, chosen(Timing, others), console)


@bnfold.command("unfold")
@click.argument("model", type=_MODEL)
@click.option(
    "-o",
    "--output",
    type=click.Path(readable=False, path_type=Path),
    metavar="OUT",
    help="Where the source goes: a file or a directory. Default: MODEL.unfolded.onnx beside MODEL.",
)
@click.option("--force", is_flag=True, help="Overwrite OUT if it exists.")
@_how_to_say
def unfold(model: Path, output: Path | None, force: bool, **others: Any) -> int:
    """Give back, byte for byte, the file that MODEL was folded from.

    MODEL.bnfold must be beside it: the sidecar that `bnfold fold --keep-statistics` writes.
    """
    from .unfolding import run_unfold

    console = _console(others)
    with console.reporting():
        return run_unfold(model, output, console, force=force)


@bnfold.group("stats")
def stats() -> None:
    """Measure a model's statistics on data, and put the data's in place."""


@stats.command("drift")
@click.argument("model", type=_MODEL)
@_max_drift
@_how_to_measure
@_how_to_say
def stats_drift(model: Path, max_drift: float | None, **others: Any) -> int:
    """How far the stored statistics of MODEL are from those of what its BatchNormalizations are fed. Writes nothing."""
    from .stats import Measuring, run_drift

    console = _console(others)
    with console.reporting():
        return run_drift(model, chosen(Measuring, others), max_drift, console)


@stats.command("refresh")
@click.argument("model", type=_MODEL)
@click.option(
    "-o",
    "--output",
    type=click.Path(readable=False, path_type=Path),
    metavar="OUT",
    help="Where the result goes: a file or a directory. Default: MODEL.refreshed.onnx beside MODEL.",
)
@click.option("--force", is_flag=True, help="Overwrite OUT if it exists.")
@click.option("--in-place", is_flag=True, help="Replace MODEL, atomically; links are followed, permissions kept.")
@_how_to_measure
@_how_to_say
def stats_refresh(model: Path, output: Path | None, force: bool, in_place: bool, **others: Any) -> int:
    """Give the BatchNormalizations of MODEL the mean and variance of the data, layer after layer."""
    from .options import destination
    from .stats import Measuring, run_refresh

    console = _console(others)
    with console.reporting():
        target = destination(model, output, in_place=in_place, dry_run=False, force=force, made="refreshed")
        assert target is not None, "only a dry run has none"
        return run_refresh(model, chosen(Measuring, others), target, force=force, in_place=in_place, console=console)


@bnfold.command("hook")
@click.argument("models", type=_MODEL, nargs=-1, required=True)
def hook(models: tuple[Path, ...]) -> int:
    """Say which MODELS still hold what would fold; runs nothing.

    What the pre-commit hook runs. A normalization that would fold is a failure, and so is a MODEL.folded.onnx that is
    not, weight for weight, the fold of the MODEL.onnx beside it. A model with its fold beside it need not be folded.
    """
    from .hook import run_hook

    return run_hook(models)


@bnfold.command("doctor")
@_timeout
@_how_to_say
def doctor(timeout: float | None, **others: Any) -> int:
    """Try each execution provider on one node.

    Lists what is installed, finds packages that are in each other's way, and says which commands repair it.
    """
    from .doctor import run_doctor

    console = _console(others)
    with console.reporting():
        return run_doctor(console, timeout)


def _console(given: dict[str, Any], *, fail_on_unfolded: bool = False) -> Console:
    form = chosen_form(click.get_current_context(), given["as_json"], given["form"])
    return Console(given["quiet"], given.get("verbose", False), form, given["reports"], fail_on_unfolded)
