"""`python -m benchmarks peers`: folds made by other tools, judged: their wrong ones are found, their right ones pass.

Each graph is one on which some tool is known to be wrong, or an ordinary one. A tool runs in a process of its own and
`bnfold.check` judges its file; what is right is known from the graph, by hand.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import bnfold

from .models import TOOLS, program

SECONDS = 120


def _model(
    nodes: list[onnx.NodeProto], weights: Mapping[str, NDArray[Any]], x: list[int], kind: int = TensorProto.FLOAT
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    ends = [helper.make_tensor_value_info("x", kind, x)], [helper.make_tensor_value_info("y", kind, None)]
    graph = helper.make_graph(nodes, "g", *ends, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    inferred = onnx.shape_inference.infer_shapes(model)
    model.graph.output[0].CopyFrom(inferred.graph.output[0])
    return model


def _weights(channels: int, *shape: int, dtype: type = np.float32) -> dict[str, NDArray[Any]]:
    random = np.random.default_rng(len(shape) * 100 + channels)
    fan = max(1, int(np.prod(shape[1:])))
    drawn = {
        "w": random.normal(size=shape) / fan**0.5,
        "gamma": random.uniform(0.5, 2, channels),
        "beta": random.normal(size=channels),
        "mean": random.normal(size=channels),
        "var": random.uniform(0.2, 2, channels),
    }
    return {name: value.astype(dtype) for name, value in drawn.items()}


def _norm(x: str, y: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("BatchNormalization", [x, "gamma", "beta", "mean", "var"], [y], **attributes)


def conv_norm() -> onnx.ModelProto:
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]), _norm("c", epsilon=1e-3)]
    return _model(nodes, _weights(6, 6, 3, 3, 3), [2, 3, 9, 11])


def grouped_conv_norm() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], group=3),
        _norm("c", "n"),
        helper.make_node("Relu", ["n"], ["y"]),
    ]
    return _model(nodes, {**_weights(6, 6, 1, 3, 3), "b": np.arange(6, dtype=np.float32)}, [2, 3, 9, 11])


def transposed_conv_norm() -> onnx.ModelProto:
    nodes = [helper.make_node("ConvTranspose", ["x", "w"], ["c"], strides=[2, 2]), _norm("c")]
    return _model(nodes, _weights(5, 3, 5, 3, 3), [2, 3, 9, 11])


def gemm_norm() -> onnx.ModelProto:
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["c"], transB=1), _norm("c")]
    return _model(nodes, {**_weights(6, 6, 5), "b": np.arange(6, dtype=np.float32)}, [8, 5])


def matmul_transpose_norm() -> onnx.ModelProto:
    """The Transpose turns the rows into the channels: what is folded by column belongs to another axis."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Transpose", ["m"], ["t"], perm=[1, 0]),
        _norm("t", epsilon=1e-3),
    ]
    return _model(nodes, _weights(6, 6, 6), [6, 6])


def matmul_reshape_norm() -> onnx.ModelProto:
    """The channels of the normalization are three columns each of another row."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Reshape", ["m", "to"], ["t"]),
        _norm("t", epsilon=1e-3),
    ]
    return _model(nodes, {**_weights(6, 6, 6), "to": np.array([2, 6, 3])}, [6, 6])


def width_vector() -> onnx.ModelProto:
    """A (6,) constant on an output 6 wide: it goes along the width, not along the 6 channels."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Mul", ["c", "gamma"], ["y"])]
    return _model(nodes, {k: v for k, v in _weights(6, 6, 3, 1, 1).items() if k in ("w", "gamma")}, [2, 3, 6, 6])


def width_shift() -> onnx.ModelProto:
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Add", ["c", "beta"], ["y"])]
    return _model(nodes, {k: v for k, v in _weights(6, 6, 3, 1, 1).items() if k in ("w", "beta")}, [2, 3, 6, 6])


def training_mode() -> onnx.ModelProto:
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), _norm("c", training_mode=1)]
    nodes[1].output.extend(["running_mean", "running_var"])
    return _model(nodes, _weights(6, 6, 3, 3, 3), [2, 3, 9, 11])


def taken_bias_name() -> onnx.ModelProto:
    """w_bias, the name that a new bias would get, is another tensor's already."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        _norm("c", "n"),
        helper.make_node("Mul", ["n", "w_bias"], ["p"]),
        helper.make_node("Sigmoid", ["p"], ["y"]),
    ]
    return _model(nodes, {**_weights(6, 6, 3, 1, 1), "w_bias": np.linspace(1, 3, 11, dtype=np.float32)}, [2, 3, 9, 11])


def absent_bias() -> onnx.ModelProto:
    nodes = [helper.make_node("Conv", ["x", "w", ""], ["c"]), _norm("c")]
    return _model(nodes, _weights(6, 6, 3, 1, 1), [2, 3, 9, 11])


def half_overflow() -> onnx.ModelProto:
    """Without a variance the scale is γ/√ε = 20,000: the product with the weights is beyond float16."""
    weights = _weights(4, 4, 3, 1, 1, dtype=np.float16)
    weights["w"] *= np.float16(8)
    weights |= {"gamma": np.full(4, 2, np.float16), "var": np.zeros(4, np.float16), "mean": np.zeros(4, np.float16)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), _norm("c", epsilon=1e-8)]
    return _model(nodes, weights, [2, 3, 5, 7], TensorProto.FLOAT16)


def half_with_float_norm() -> onnx.ModelProto:
    """float16 data and weights, float32 parameters of the normalization, as opset 15 allows."""
    weights = _weights(4, 4, 3, 3, 3)
    weights["w"] = weights["w"].astype(np.float16)
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), _norm("c", epsilon=1e-3)]
    return _model(nodes, weights, [2, 3, 7, 9], TensorProto.FLOAT16)


GRAPHS: dict[str, Callable[[], onnx.ModelProto]] = {
    "Conv, BN": conv_norm,
    "grouped Conv with a bias, BN": grouped_conv_norm,
    "ConvTranspose, BN": transposed_conv_norm,
    "Gemm, BN": gemm_norm,
    "MatMul, Transpose, BN": matmul_transpose_norm,
    "MatMul, Reshape, BN": matmul_reshape_norm,
    "Conv, Mul of a width vector": width_vector,
    "Conv, Add of a width vector": width_shift,
    "Conv, BN in training mode": training_mode,
    "Conv, BN; the bias's name is taken": taken_bias_name,
    'Conv with a bias of "", BN': absent_bias,
    "float16 that overflows": half_overflow,
    "float16 with a float32 BN": half_with_float_norm,
}


def made_by(tool: str, model: onnx.ModelProto, folder: Path) -> Path | None:
    """The file that `tool` (a key of TOOLS) makes of the model; None where it fails."""
    source, target = folder / "original.onnx", folder / f"{tool}.onnx"
    onnx.save(model, source)
    script = program(TOOLS[tool], source, target)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=SECONDS, check=False)
    return target if done.returncode == 0 and target.exists() else None


@click.command("peers")
@click.option("--tool", "tools", multiple=True, type=click.Choice(list(TOOLS)), help="Only this tool; repeatable.")
def peers_command(tools: tuple[str, ...]) -> None:
    """The verdicts of `bnfold check` on what each tool makes of graphs that are easily folded wrong."""
    names = tools or tuple(TOOLS)
    click.echo(f"| graph | {' | '.join(names)} |")
    click.echo("|---|" + "---|" * len(names))
    for title, make in GRAPHS.items():
        cells: list[str] = []
        with tempfile.TemporaryDirectory() as folder:
            for name in names:
                path = made_by(name, make(), Path(folder))
                if path is None:
                    cells.append("failed")
                    continue
                try:
                    cells.append(bnfold.check(Path(folder, "original.onnx"), path, threads=1).verdict.name)
                except bnfold.errors.BnfoldError:
                    cells.append("unreadable")
        click.echo(f"| {title} | {' | '.join(cells)} |")
