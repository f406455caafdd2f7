"""The models of `python -m benchmarks fold`, made with onnx.helper and seeded random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 8  # of the chains
WIDE, DEEP = 2580, 10  # of the model with external data: ten weights of 240 MB


class _Network:
    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def weight(self, name: str, values: NDArray[Any]) -> str:
        self.tensors.append(numpy_helper.from_array(values.astype(np.float32, copy=False), name))
        return name

    def conv_norm(self, x: str, c_in: int, c_out: int, kernel: int, stride: int = 1) -> str:
        i = len(self.nodes)
        drawn = self.random.standard_normal((c_out, c_in, kernel, kernel), np.float32) / (c_in * kernel**2) ** 0.5
        w, pads = self.weight(f"w{i}", drawn), [kernel // 2] * 4
        self.nodes.append(helper.make_node("Conv", [x, w], [f"c{i}"], strides=[stride, stride], pads=pads))
        norm = [self.weight(f"{role}{i}", self.random.uniform(0.5, 1.5, c_out)) for role in ("s", "b", "m", "v")]
        self.nodes.append(helper.make_node("BatchNormalization", [f"c{i}", *norm], [f"y{i}"]))
        return f"y{i}"

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [f"v{len(self.nodes)}"], **attributes))
        return self.nodes[-1].output[0]

    def model(self, output: str, x: list[int], y: list[int]) -> onnx.ModelProto:
        ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)]
        ends.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, y))
        graph = helper.make_graph(self.nodes, "network", ends[:1], ends[1:], self.tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def chain(pairs: int) -> onnx.ModelProto:
    """Convolutions of 8 channels, 1x1, each with a BatchNormalization behind it."""
    net, x = _Network(), "x"
    for _ in range(pairs):
        x = net.conv_norm(x, CHANNELS, CHANNELS, 1)
    return net.model(x, [1, CHANNELS, 4, 4], [1, CHANNELS, 4, 4])


def resnet(blocks: tuple[int, ...]) -> onnx.ModelProto:
    """A ResNet of bottlenecks for 224x224: (3, 4, 6, 3) is ResNet-50, (3, 8, 36, 3) is ResNet-152."""
    net = _Network()
    x = net.op("Relu", net.conv_norm("x", 3, 64, 7, 2))
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    width = 64
    for stage, count in enumerate(blocks):
        inner = 64 << stage
        for block in range(count):
            stride = 2 if stage and not block else 1
            y = net.op("Relu", net.conv_norm(x, width, inner, 1))
            y = net.op("Relu", net.conv_norm(y, inner, inner, 3, stride))
            y = net.conv_norm(y, inner, 4 * inner, 1)
            if not block:
                x = net.conv_norm(x, width, 4 * inner, 1, stride)
            x, width = net.op("Relu", net.op("Add", y, x)), 4 * inner
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    w = net.weight("head", net.random.standard_normal((1000, width), np.float32) / width**0.5)
    y = net.op("Gemm", x, w, net.weight("bias", np.zeros(1000)), transB=1)
    return net.model(y, [1, 3, 224, 224], [1, 1000])


def huge(path: Path) -> None:
    """Write ten pairs with 2.4 GB of weights, all of which the fold computes anew, beside `path`; one at a time."""
    net, x = _Network(), "x"
    path.with_name(path.name + ".data").write_bytes(b"")
    offset = 0
    for _ in range(DEEP):
        x = net.conv_norm(x, WIDE, WIDE, 3)
        for proto in (each for each in net.tensors if each.HasField("raw_data") and len(each.raw_data) > 1 << 20):
            raw = proto.raw_data
            proto.ClearField("raw_data")
            proto.data_location = TensorProto.EXTERNAL
            for key, value in (("location", path.name + ".data"), ("offset", str(offset)), ("length", str(len(raw)))):
                proto.external_data.add(key=key, value=value)
            with path.with_name(path.name + ".data").open("ab") as file:
                file.write(raw + bytes(-len(raw) % 4096))
            offset += len(raw) + -len(raw) % 4096
    path.write_bytes(net.model(x, [1, WIDE, 4, 4], [1, WIDE, 4, 4]).SerializeToString())


def make(name: str, path: Path) -> None:
    """Write the model called `name`: resnet50, resnet152, external, or the number of pairs of a chain."""
    if name == "external":
        huge(path)
        return
    depths = {"resnet50": (3, 4, 6, 3), "resnet152": (3, 8, 36, 3)}
    onnx.save(resnet(depths[name]) if name in depths else chain(int(name)), path)
