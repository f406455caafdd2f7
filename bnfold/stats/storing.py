"""New statistics into a model: each rounded once to the type that the old one had, into the same tensor where nothing
else reads it, else into a copy that this layer alone reads.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx

from ..bodies import bodies_of, graphs_of
from ..dtypes import rounded, type_name
from ..errors import UsageError
from ..graph import free_names
from .layers import Layer
from .moments import Moments

__all__ = ["Store"]

Array = npt.NDArray[np.float64]
_ROLES = {3: "mean", 4: "variance"}  # the inputs of a BatchNormalization that are statistics


class Store:
    """Writes into `model`. Nodes keep their places until `finish` removes those that nobody needs any more."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._orphans: list[str] = []

    def put(self, layer: Layer, moments: Moments) -> None:
        """The moments become the layer's running_mean and running_var. Raises UsageError where they cannot."""
        zero = moments.variance + layer.epsilon <= 0
        if zero.any():
            channel = int(np.argmax(zero))
            raise UsageError(
                f"Channel {channel} of {layer.node} is constant on these samples and its epsilon is 0: "
                "it would divide by 0."
            )
        node = self._model.graph.node[layer.index]
        for slot, exact, kind in zip((3, 4), (moments.mean, moments.variance), layer.kinds, strict=True):
            fresh = _proto(layer, slot, exact, kind)
            self._write(node, slot, fresh)

    def finish(self) -> None:
        """Remove the constants that no longer have a reader, and the nodes that made them."""
        graph = self._model.graph
        makers = {name: node for node in graph.node for name in node.output}
        stack = self._orphans
        while stack:
            name = stack.pop()
            if not name or _readers(graph, name):
                continue
            if name in makers:
                node = makers[name]
                if not any(_readers(graph, output) for output in node.output) and node in graph.node:
                    graph.node.remove(node)
                    stack += node.input
                continue
            for repeated in (graph.initializer, graph.input):
                for item in [each for each in repeated if each.name == name]:
                    repeated.remove(item)  # pyright: ignore[reportArgumentType] -- it is an item of this very field

    def _write(self, node: onnx.NodeProto, slot: int, fresh: onnx.TensorProto) -> None:
        graph, name = self._model.graph, node.input[slot]
        old = next((tensor for tensor in graph.initializer if tensor.name == name), None)
        if old is not None and _readers(graph, name) == 1:
            fresh.name = name
            old.CopyFrom(fresh)
            return
        fresh.name = _free(graph, f"{name}_refreshed")
        graph.initializer.append(fresh)
        if self._model.ir_version < 4:  # every initializer is an input there
            graph.input.append(onnx.helper.make_tensor_value_info(fresh.name, fresh.data_type, list(fresh.dims)))
        node.input[slot] = fresh.name
        self._orphans.append(name)


def _proto(layer: Layer, slot: int, exact: Array, kind: int) -> onnx.TensorProto:
    stored = rounded(exact, kind)
    values = exact if kind == onnx.TensorProto.BFLOAT16 else stored.astype(np.float64)
    if not np.isfinite(values).all():
        channel = int(np.argmax(~np.isfinite(values.reshape(-1))))
        raise UsageError(
            f"The {_ROLES[slot]} of channel {channel} of {layer.node}, {exact.reshape(-1)[channel]:.4g}, "
            f"does not fit {type_name(kind)}, in which the model stores it."
        )
    return onnx.TensorProto(data_type=kind, dims=exact.shape, raw_data=stored.tobytes())


def _readers(graph: onnx.GraphProto, name: str) -> int:
    """How often a value is read: as an output and by the bodies of nodes too."""
    count = sum(info.name == name for info in graph.output)
    for node in graph.node:
        count += sum(each == name for each in node.input)
        count += sum(name in free_names(body) for body in bodies_of(node))
    return count


def _free(graph: onnx.GraphProto, wish: str) -> str:
    """A name like `wish` that nothing has, in the bodies neither."""
    taken: set[str] = set()
    for each in graphs_of(graph):
        taken |= {item.name for item in (*each.initializer, *each.input)}
        for node in each.node:
            taken.update(node.input, node.output)
    name, n = wish, 1
    while name in taken:
        n += 1
        name = f"{wish}_{n}"
    return name
