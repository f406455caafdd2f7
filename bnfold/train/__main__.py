# torch leaves parts of its interface untyped: what comes from them is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""`python -m bnfold.train digits --arch NAME`: train, refresh, export, fold, check, run; the accuracy at each step.

Under torchrun the same command trains with all processes, and rank 0 goes on alone from the export.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from ..errors import BnfoldError
from ..fold import fold
from . import ranks, recipe
from .digits import ARCHITECTURES, Architecture, Digits, load_digits
from .exporting import export, outputs, quietly
from .refresh import refresh


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def train() -> None:
    """Train small networks with BatchNormalization."""


@train.command("digits")
@click.option(
    "--arch", "names", type=click.Choice(list(ARCHITECTURES)), multiple=True, help="Repeatable; default: conv."
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Keep NAME.onnx and its fold here.")
@click.option("--epochs", type=click.IntRange(1), default=recipe.EPOCHS, show_default=True)
@click.option("--batch", type=click.IntRange(2), default=recipe.BATCH, show_default=True, help="Of all ranks together.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), default=recipe.RATE, show_default=True)
@click.option("--seed", type=click.IntRange(0), help="Default: that of the network's file in models/.")
@click.option("--accumulate", type=click.IntRange(1), default=1, show_default=True, help="Batches that make one step.")
@click.option("--amp", type=click.Choice(["bf16", "fp16"]), help="Compute in this type where torch's autocast does.")
@click.option(
    "--checkpoint",
    type=click.Path(file_okay=False, path_type=Path),
    help="A directory of checkpoints, one for each network; training goes on from one that is there.",
)
@click.option("--no-refresh", is_flag=True, help="Keep the statistics that training left behind.")
@click.option(
    "--timeout", type=click.FloatRange(1), default=60.0, show_default=True, help="Seconds to wait for another rank."
)
def digits(names: tuple[str, ...], out: Path | None, checkpoint: Path | None, timeout: float, **options: Any) -> None:
    """Train on the digits, refresh the statistics, export, fold and check, with the accuracy at each step."""
    torch.set_num_threads(1)  # sums in one order
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it torch refuses matrix products on a GPU
    torch.use_deterministic_algorithms(True)
    for folder in (out, checkpoint):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    with ranks.process_group(timeout) as device:
        data = load_digits()
        for name in names or ("conv",):
            path = None if checkpoint is None else checkpoint / f"{name}.pt"
            _make(name, data, out, device, path, **options)


def _make(
    name: str,
    data: Digits,
    out: Path | None,
    device: torch.device,
    checkpoint: Path | None,
    *,
    no_refresh: bool,
    **options: Any,
) -> None:
    architecture = ARCHITECTURES[name]
    made = recipe.train(name, data, device=device, checkpoint=checkpoint, label=f"{name:12}", **options)
    model, told = made.model, _Telling(name, architecture, data)
    told.step("trained", _torch(model, data))
    if not no_refresh and any("running_mean" in each for each in model.state_dict()):
        refresh(model, recipe.Plain(architecture, data.train_images, data.train_labels), device=device)
        told.step("refreshed", _torch(model, data))
    if ranks.rank():
        return
    model = architecture.deploy(model.cpu().eval())
    with tempfile.TemporaryDirectory(prefix="bnfold-") as scratch:
        folder = Path(scratch) if out is None else out
        path, target = folder / f"{name}.onnx", folder / f"{name}.folded.onnx"
        images = torch.from_numpy(data.test_images).to(next(model.parameters()).dtype)
        with quietly():
            proto = export(model, images, output=architecture.output)
        path.write_bytes(proto.SerializeToString(deterministic=True))
        told.step("exported", outputs(onnx.load(path), data.test_images))
        result = fold(path)
        result.save(target)
        check = result.check(path=target, samples=3)
        folded = f"folded {len(result.report.folded)} of {result.report.sources}"
        told.step(folded, outputs(onnx.load(target), data.test_images))
    click.echo(f"{name:12} {check.verdict.name}: {' '.join(check.sentence.split())}")
    if not check:
        sys.exit(check.exit_code)


class _Telling:
    """Prints a line for each step: its figure on the held-out images, and how it differs from the step before."""

    def __init__(self, name: str, architecture: Architecture, data: Digits) -> None:
        self._name, self._architecture, self._data = name, architecture, data
        self._before: NDArray[np.float32] | None = None

    def step(self, what: str, output: NDArray[np.float32]) -> None:
        figure = recipe.figure(self._architecture, output, self._data.test_images, self._data.test_labels)
        change = "" if self._before is None else f"  {self._changed(self._before, output)}"
        self._before = output
        if not ranks.rank():
            click.echo(f"{self._name:12} {what:14} {figure}{change}")

    def _changed(self, before: NDArray[np.float32], output: NDArray[np.float32]) -> str:
        largest = float(np.abs(output - before).max())
        if self._architecture.output == "reconstruction":
            return f"the largest change of a pixel is {largest:.2g}"
        flips = int((output.argmax(1) != before.argmax(1)).sum())
        same = "same predictions" if not flips else f"{flips} other prediction{'' if flips == 1 else 's'}"
        return f"{same}, the largest change of a logit is {largest:.2g}"


def _torch(model: nn.Module, data: Digits) -> NDArray[np.float32]:
    """What the model makes of the held-out images, on the device where it is."""
    model.eval()
    first = next(model.parameters())
    with torch.inference_mode():
        return model(torch.from_numpy(data.test_images).to(first)).float().cpu().numpy()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code. Errors are one sentence on stderr."""
    try:
        train.main(arguments, prog_name="python -m bnfold.train", standalone_mode=False)
    except click.ClickException as error:
        click.echo(f"Error: {' '.join(error.format_message().split())}", err=True)
        return 2
    except BnfoldError as error:
        click.echo(f"Error: {error}", err=True)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("Error: Interrupted.", err=True)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
