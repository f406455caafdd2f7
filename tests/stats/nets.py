"""Graphs with several BatchNormalizations, and their population statistics by brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from bnfold.reference import Evaluator
from tests.graphs import Builder

Array = NDArray[Any]


def chained(rank: int = 4, batch: int | str = "batch") -> onnx.ModelProto:
    """conv, BN, relu, grouped conv, BN (Gemm in place of conv at rank 2), and a BN on a branch of its own."""
    b = Builder(3)
    sizes = {2: (), 3: (7,), 4: (5, 4)}[rank]
    x = b.input("x", batch, 3, *sizes)
    ones = [1] * len(sizes)
    if rank == 2:
        h = b.op("Relu", b.norm(b.op("Gemm", x, b.weight(3, 6)), 6))
        y = b.norm(b.op("Gemm", h, b.weight(6, 4)), 4)
        branch = b.op("Gemm", b.norm(x, 3), b.weight(3, 4))
    else:
        h = b.op("Relu", b.norm(b.op("Conv", x, b.weight(6, 3, *[3] * len(sizes)), pads=[1, 1] * len(sizes)), 6))
        y = b.norm(b.op("Conv", h, b.weight(4, 3, *ones), group=2), 4)
        branch = b.op("Conv", b.norm(x, 3), b.weight(4, 3, *ones))
    return b.model(b.op("Add", y, branch))


def data(model: onnx.ModelProto, rows: int, seed: int = 0, offset: float = 3.0) -> dict[str, Array]:
    """Rows that are sorted by their mean, as class-sorted data are."""
    random = np.random.default_rng(seed)
    (value,) = [i for i in model.graph.input if i.name not in {t.name for t in model.graph.initializer}]
    dims = [d.dim_value for d in value.type.tensor_type.shape.dim][1:]
    x = random.normal(size=(rows, *dims)) * 2 + offset + np.linspace(-2, 2, rows).reshape(-1, *[1] * len(dims))
    return {value.name: x.astype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))}


def tensors(model: onnx.ModelProto) -> dict[str, Array]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def statistics(model: onnx.ModelProto) -> list[tuple[Array, Array]]:
    """(running_mean, running_var) of each BatchNormalization, in the graph's order."""
    held = tensors(model)
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            held[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return [
        (held[node.input[3]], held[node.input[4]]) for node in model.graph.node if node.op_type == "BatchNormalization"
    ]


def brute_force(model: onnx.ModelProto, feeds: dict[str, Array]) -> list[tuple[Array, Array]]:
    """(mean, biased variance) of each BatchNormalization's input, in float64 on all the data at once; each layer sees
    the exact statistics in the layers before it.
    """
    work = onnx.ModelProto()
    work.CopyFrom(model)
    exact: dict[str, Array] = {}
    found: list[tuple[Array, Array]] = []
    for k, node in enumerate(each for each in work.graph.node if each.op_type == "BatchNormalization"):
        value = Evaluator(work, exact=exact).run(feeds, [node.input[0]])[node.input[0]]
        axes = tuple(axis for axis in range(value.ndim) if axis != 1)
        mean = value.mean(axis=axes)
        variance = np.square(value - np.expand_dims(mean, axes)).mean(axis=axes)
        found.append((mean, variance))
        for slot, array in ((3, mean), (4, variance)):  # every layer's own, whoever shared them
            name = f"exact{k}_{slot}"
            work.graph.initializer.append(numpy_helper.from_array(array.astype(np.float64), name))
            node.input[slot] = name
            exact[name] = array
    return found


def saved(path: Any, feeds: dict[str, Array]) -> str:
    np.savez(path, **feeds)  # pyright: ignore[reportArgumentType] -- the stub takes **kwds for allow_pickle
    return str(path)
