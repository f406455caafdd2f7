"""Small networks with a fold and its faults written out in numpy, so that the check is tested by itself.

net = conv_net(seed)         Conv → BN → Relu, layer after layer, as plain numpy parameters
net.model()                  with its BatchNormalizations
net.folded()                 (model without them, float64 weights before rounding)
net.folded(fault="epsilon")  the same with something wrong in the middle layer
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[np.float64]
EPSILON = float(np.float32(1e-3))


@dataclass(frozen=True)
class Layer:
    weight: Array  # [out, in, k, k]
    gamma: Array
    beta: Array
    mean: Array
    var: Array


@dataclass(frozen=True)
class Net:
    layers: tuple[Layer, ...]
    dtype: type = np.float32
    size: tuple[int, int] = (9, 11)

    def model(self) -> onnx.ModelProto:
        """The network as it was trained."""
        nodes: list[onnx.NodeProto] = []
        weights: dict[str, npt.NDArray[np.generic]] = {}
        x = "x"
        for k, layer in enumerate(self.layers):
            for name, value in vars(layer).items():
                weights[f"{name}{k}"] = value.astype(self.dtype)
            nodes.append(helper.make_node("Conv", [x, f"weight{k}"], [f"c{k}"], pads=[1, 1, 1, 1]))
            parameters = [f"{name}{k}" for name in ("gamma", "beta", "mean", "var")]
            nodes.append(helper.make_node("BatchNormalization", [f"c{k}", *parameters], [f"n{k}"], epsilon=EPSILON))
            nodes.append(helper.make_node("Relu", [f"n{k}"], [x := f"r{k}"]))
        nodes.append(helper.make_node("Identity", [x], ["y"]))
        return self._graph(nodes, weights)

    def folded(self, fault: str = "") -> tuple[onnx.ModelProto, dict[str, Array]]:
        """The network without normalizations, and its weights before they were rounded."""
        nodes: list[onnx.NodeProto] = []
        exact: dict[str, Array] = {}
        x, middle = "x", len(self.layers) // 2
        for k, layer in enumerate(self.layers):
            stored = replace(layer, **{n: v.astype(self.dtype).astype(np.float64) for n, v in vars(layer).items()})
            exact[f"weight{k}"], exact[f"bias{k}"] = FAULTS[fault if k == middle else ""](stored)
            nodes.append(helper.make_node("Conv", [x, f"weight{k}", f"bias{k}"], [f"n{k}"], pads=[1, 1, 1, 1]))
            nodes.append(helper.make_node("Relu", [f"n{k}"], [x := f"r{k}"]))
        nodes.append(helper.make_node("Identity", [x], ["y"]))
        return self._graph(nodes, {name: value.astype(self.dtype) for name, value in exact.items()}), exact

    def _graph(self, nodes: list[onnx.NodeProto], weights: Mapping[str, npt.ArrayLike]) -> onnx.ModelProto:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        channels = self.layers[0].weight.shape[1], self.layers[-1].weight.shape[0]
        return model(
            nodes,
            weights,
            inputs=[helper.make_tensor_value_info("x", kind, ["N", channels[0], *self.size])],
            outputs=[helper.make_tensor_value_info("y", kind, ["N", channels[1], *self.size])],
        )


def model(
    nodes: list[onnx.NodeProto],
    weights: Mapping[str, npt.ArrayLike],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    opset: int = 17,
) -> onnx.ModelProto:
    tensors = [tensor(v, n) for n, v in weights.items()]
    graph = helper.make_graph(nodes, "net", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def value(name: str, *dims: int | str | None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(dims))


def tensor(data: npt.ArrayLike, name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(data), name)


def conv_net(seed: int, *, layers: int = 3, ill_conditioned: bool = False, dtype: type = np.float32) -> Net:
    """Random layers of 6 channels; ill-conditioned: variances down to 1e-8 and means far from zero."""
    rng = np.random.default_rng(seed)
    made: list[Layer] = []
    channels = 3
    for _ in range(layers):
        var = rng.uniform(0.5, 2.0, 6)
        mean = rng.normal(0.0, 0.3, 6)
        if ill_conditioned:
            var, mean = 10.0 ** rng.uniform(-8, 0, 6), mean * 30
        made.append(
            Layer(
                rng.normal(0.0, np.sqrt(2 / (9 * channels)), (6, channels, 3, 3)),
                rng.uniform(0.6, 1.4, 6) * rng.choice([-1.0, 1.0], 6),
                rng.normal(0.3, 0.3, 6),
                mean,
                var,
            )
        )
        channels = 6
    return Net(tuple(made), dtype)


def dyadic_net(seed: int) -> Net:
    """Weights that are small multiples of a power of two, and variances that make every scale one: exact in float32."""
    rng = np.random.default_rng(seed)
    made: list[Layer] = []
    channels = 3
    for _ in range(2):
        weight = rng.integers(-4, 5, (6, channels, 3, 3)) / 8.0
        beta, mean = (rng.integers(-8, 9, 6) / 8.0 for _ in range(2))
        made.append(Layer(weight, np.ones(6), beta, mean, np.full(6, 1.0 - EPSILON)))
        channels = 6
    return Net(tuple(made))


def _fold(layer: Layer, *, epsilon: float = EPSILON, axis: int = 0) -> tuple[Array, Array]:
    scale = layer.gamma / np.sqrt(layer.var + epsilon)
    shape = [1, 1, 1, 1]
    shape[axis] = -1
    return layer.weight * scale.reshape(shape), layer.beta - scale * layer.mean


def _off(layer: Layer) -> tuple[Array, Array]:
    weight, bias = _fold(layer)
    largest = np.unravel_index(np.argmax(np.abs(weight)), weight.shape)
    weight[largest] *= 1.01
    return weight, bias


def _half(layer: Layer) -> tuple[Array, Array]:
    weight, bias = _fold(layer)
    return weight.astype(np.float16).astype(np.float64), bias


FAULTS: dict[str, Callable[[Layer], tuple[Array, Array]]] = {
    "": _fold,
    "epsilon taken as 0": lambda layer: _fold(layer, epsilon=0.0),
    "beta dropped": lambda layer: _fold(replace(layer, beta=np.zeros_like(layer.beta))),
    "sign of the mean": lambda layer: _fold(replace(layer, mean=-layer.mean)),
    "scale on the wrong axis": lambda layer: _fold(layer, axis=1),
    "gamma of the neighbour": lambda layer: _fold(replace(layer, gamma=np.roll(layer.gamma, 1))),
    "one weight off by 1 %": _off,
    "rounded to half": _half,
}
