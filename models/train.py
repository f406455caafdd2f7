#!/usr/bin/env python
"""Train the networks of bnfold.train.networks and export them as they are used here: with their BNs still in the graph.

    python models/train.py                   all of them, into models/
    python models/train.py mlp lstm --out DIRECTORY

Seeded: the same machine and the same torch write the same bytes, whichever networks are asked for.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import click
import torch

from bnfold.train.digits import ARCHITECTURES, Architecture, Digits, load_digits
from bnfold.train.exporting import export, outputs, quietly
from bnfold.train.recipe import figure, train

HEADER = """| file | BatchNormalization | BNs | parameters | size | held out | folding |
|---|---|---:|---:|---:|---:|---|"""


@dataclass(frozen=True)
class Row:
    """What the table says about one file."""

    file: str
    architecture: Architecture
    batch_normalizations: int
    parameters: int
    size: int
    figure: str

    def __str__(self) -> str:
        numbers = f"{self.batch_normalizations} | {self.parameters:,} | {self.size / 1000:.0f} kB | {self.figure}"
        return f"| `{self.file}` | {self.architecture.what} | {numbers} | {self.architecture.folding} |"


def make(name: str, data: Digits, out: Path) -> Row:
    """Train, export, compare torch's figure with onnxruntime's, write the file."""
    architecture = ARCHITECTURES[name]
    model = architecture.deploy(train(name, data, label=f"{name:12}").model)
    images = torch.from_numpy(data.test_images).to(next(model.parameters()).dtype)
    proto = export(model, images, output=architecture.output)
    with torch.inference_mode():
        expected = figure(architecture, model(images).float().numpy(), data.test_images, data.test_labels)
    result = figure(architecture, outputs(proto, data.test_images), data.test_images, data.test_labels)
    if result != expected:
        raise click.ClickException(
            f"{name}: onnxruntime gives {result} on the held-out images where torch gives {expected}."
        )
    path = out / f"{name}.onnx"
    written = proto.SerializeToString(deterministic=True)
    path.write_bytes(written)
    batch_normalizations = sum(node.op_type == "BatchNormalization" for node in proto.graph.node)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Row(path.name, architecture, batch_normalizations, parameters, len(written), result)


@click.command(help="Train NAMES (all, unless some are given) on scikit-learn's digits and write NAME.onnx for each.")
@click.argument("names", nargs=-1, type=click.Choice(list(ARCHITECTURES)), metavar="[NAMES]...")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default=Path(__file__).parent, help="default: models/"
)
def main(names: Iterable[str], out: Path) -> None:
    torch.set_num_threads(1)  # sums in one order
    torch.use_deterministic_algorithms(True)
    out.mkdir(parents=True, exist_ok=True)
    data = load_digits()
    with quietly():
        rows = [make(name, data, out) for name in names or ARCHITECTURES]
    click.echo("\n".join([HEADER, *map(str, rows)]))


if __name__ == "__main__":
    main()
