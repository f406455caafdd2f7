"""The options that several commands share; what their values mean is options.py's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from .. import __version__
from ..report.forms import FORMS
from .options import growth, limit, ranges, shapes
from .reports import reports

_F = TypeVar("_F", bound=Callable[..., Any])


def _options(*decorators: Callable[[_F], _F]) -> Callable[[_F], _F]:
    def decorate(function: _F) -> _F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


FILE = click.Path(readable=False, path_type=Path)  # existence is for the loader to judge: its sentences say more

how_to_say = _options(
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
fail_on_unfolded = click.option("--fail-on-unfolded", is_flag=True, help="Exit 1 if a normalization was left.")
version = click.version_option(
    __version__, "--version", message="bnfold %(version)s", help="Show the version and exit."
)
what_to_fold = _options(
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
max_drift = click.option(
    "--max-drift",
    type=float,
    callback=limit,
    metavar="SHARE",
    help="Exit 1 and write nothing if stored statistics are further off than this on the data of --inputs, in standard "
    "deviations of a normalization's output; 0.05 is a good bound.",
)
timeout = click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Stop the runtime when it loads or runs a model for longer. Default: 600, and 60 for the doctor.",
)
threads = click.option(
    "--threads", type=click.IntRange(1), metavar="N", help="Threads for the runtime. Default: its own."
)
custom_ops = click.option(
    "--custom-ops",
    type=FILE,
    multiple=True,
    metavar="LIB",
    help="A shared library of custom operators for the runtime; repeatable.",
)


def shape(text: str) -> Callable[[_F], _F]:
    """`--shape`, of which `text` says what it is for."""
    return click.option("--shape", "shapes", callback=shapes, multiple=True, metavar="NAME:SIZES", help=text)


_shape = shape("The shape of a dynamic input, as in input:1,3,224,224; repeatable.")
_seed = click.option(
    "--seed", type=click.IntRange(0), default=0, metavar="N", help="Seed of the generated inputs. Default: 0."
)
how_to_check = _options(
    threads,
    click.option(
        "--inputs",
        type=FILE,
        multiple=True,
        metavar="FILE",
        help="Check on these samples: an .npz, keys are input names, one sample or many; repeatable.",
    ),
    _shape,
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
    _seed,
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
    timeout,
    custom_ops,
)
weights = click.option(
    "--weights",
    type=FILE,
    metavar="FILE",
    help="With package.module:factory as MODEL: the state dict of the PyTorch module that the factory makes.",
)
how_to_measure = _options(
    weights,
    shape(
        "With package.module:factory as MODEL: the shape in which an input is fed, as in x:8,3,32,32; repeatable. "
        "Default: any number of rows."
    ),
    click.option(
        "--inputs",
        type=FILE,
        multiple=True,
        required=True,
        metavar="FILE",
        help="Measure on these samples: an .npz, keys are input names, axis 0 is the samples; repeatable.",
    ),
    threads,
    timeout,
    custom_ops,
)
how_to_time = _options(
    click.option("--runs", type=click.IntRange(1), default=100, show_default=True, metavar="N", help="Rounds at most."),
    threads,
    _seed,
    _shape,
    click.option("--inputs", type=FILE, multiple=True, metavar="FILE", help="Run on the first sample of this .npz."),
    custom_ops,
    timeout,
)
force = click.option("--force", is_flag=True, help="Overwrite OUT if it exists.")
in_place = click.option(
    "--in-place", is_flag=True, help="Replace MODEL, atomically; links are followed, permissions kept."
)


def model(name: str = "model", *, required: bool = True) -> Callable[[_F], _F]:
    """A model as an argument: whether it is there is for the loader to judge, whose sentences say more."""
    return click.argument(name, type=FILE, required=required)


def output(made: str, what: str = "the result") -> Callable[[_F], _F]:
    """`--output`, whose default is called after what was `made`."""
    text = f"Where {what} goes: a file or a directory. Default: MODEL.{made}.onnx beside MODEL."
    return click.option("-o", "--output", type=FILE, metavar="OUT", help=text)
