#!/usr/bin/env python
"""Train the networks of bnfold.train.digits and export them as they are used here: with their BNs still in the graph.

    python models/train.py                   all of them, into models/
    python models/train.py mlp lstm --out DIRECTORY

Seeded: the same machine and the same torch write the same bytes, whichever networks are asked for.
"""

import logging
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional

from bnfold.train.digits import ARCHITECTURES, Architecture, Digits, load_digits, roughen

EPOCHS = 40
BATCH = 64
LEARNING_RATE = 4e-3
NOISE = 0.1  # added to the pixels while training; their own range is 0 to 1


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


def train(architecture: Architecture, data: Digits, *, seed: int, label: str) -> nn.Module:
    """The architecture trained on the first part of the data, by Adam with one cosine of the learning rate."""
    torch.manual_seed(seed)
    model = roughen(architecture.build())
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=1e-3)
    images, labels = torch.from_numpy(data.train_images), torch.from_numpy(data.train_labels)
    steps = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * steps)
    with click.progressbar(range(EPOCHS), label=label, file=sys.stderr, hidden=not sys.stderr.isatty()) as epochs:
        for _ in epochs:
            for batch in torch.randperm(len(images))[: steps * BATCH].reshape(steps, BATCH):
                noisy = images[batch] + NOISE * torch.randn(BATCH, *images.shape[1:])
                optimizer.zero_grad()
                loss(architecture, model(noisy), images[batch], labels[batch]).backward()
                optimizer.step()
                schedule.step()
    return architecture.deploy(model.eval())


def loss(architecture: Architecture, output: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    if architecture.output == "reconstruction":
        return functional.mse_loss(output, images)
    return functional.cross_entropy(output, labels, label_smoothing=0.05)


def export(architecture: Architecture, model: nn.Module, images: Tensor) -> onnx.ModelProto:
    """The model as ONNX with a dynamic batch. `optimize=False`: the exporter's optimizer folds some BNs by itself."""
    exported = torch.onnx.export(
        model,
        (images[:3],),
        dynamo=True,
        optimize=False,
        verbose=False,
        external_data=False,
        input_names=["image"],
        output_names=[architecture.output],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    if exported is None:
        raise click.ClickException("torch.onnx.export returned no program")
    proto = exported.model_proto
    strip(proto)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def strip(proto: onnx.ModelProto) -> None:
    """Remove doc strings and metadata: the exporter writes stack traces there, with the paths of this machine."""
    proto.ClearField("doc_string")
    proto.ClearField("metadata_props")
    graph = proto.graph
    graph.ClearField("doc_string")
    for part in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")


def outputs(proto: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    """What onnxruntime computes; images are converted to the type of the model's input, and the result to float32."""
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    half = image.type == "tensor(float16)"
    (output,) = session.run(None, {image.name: images.astype(np.float16 if half else np.float32)})
    return np.asarray(output, np.float32)


def figure(architecture: Architecture, output: np.ndarray, images: np.ndarray, labels: np.ndarray) -> str:
    """The figure of the table: right answers, or the root of the mean squared error of a reconstruction."""
    if architecture.output == "reconstruction":
        return f"RMSE {np.sqrt(np.mean(np.square(output - images, dtype=np.float64))):.4f}"
    right = int((output.argmax(1) == labels).sum())
    return f"{right}/{len(labels)} = {right / len(labels):.1%}"


def make(name: str, data: Digits, out: Path) -> Row:
    """Train, export, compare torch's figure with onnxruntime's, write the file."""
    architecture = ARCHITECTURES[name]
    model = train(architecture, data, seed=list(ARCHITECTURES).index(name), label=f"{name:12}")
    images = torch.from_numpy(data.test_images).to(next(model.parameters()).dtype)
    proto = export(architecture, model, images)
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
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # torchvision's ops are not registered: none is used
    for message in ("_check_is_size will be removed", r"`isinstance\(treespec, LeafSpec\)` is deprecated"):
        warnings.filterwarnings("ignore", message, FutureWarning)  # torch about its own code
    warnings.filterwarnings("ignore", message="The tensor attributes .*_flat_weights", category=UserWarning)
    out.mkdir(parents=True, exist_ok=True)
    data = load_digits()
    rows = [make(name, data, out) for name in names or ARCHITECTURES]
    click.echo("\n".join([HEADER, *map(str, rows)]))


if __name__ == "__main__":
    main()
