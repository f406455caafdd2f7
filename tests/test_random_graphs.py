"""Random graphs out of lawful ops: the fold is the same function in float64, and a second fold finds nothing more."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from bnfold.fold import fold
from tests.graphs import Builder, count, difference

KINDS = """
    Conv Conv Conv BN BN BN Relu LeakyRelu PRelu Abs Clip Add Sub Product Max Mean Where Concat Slice Split Gather
    MaxPool AveragePool LpPool Reduce Resize Pad Tile Blocks Turn Shuffle Mul Plus ConvTranspose Shared MatMul Einsum
    Norm Quantized Softmax Tanh If
""".split()
SIZE = 6  # channels, height and width coincide on purpose


class Drawn(Builder):
    """Ops on values [N, 6, 6, 6], drawn one after another; each reads any of the values made so far."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.choose = random.Random(seed)
        batch = self.choose.choice((2, "N"))
        self.values = [self.op("Relu", self.input("x", batch, SIZE, SIZE, SIZE))]
        self.shared = self.weight(SIZE, SIZE, 1, 1)

    def conv(self, x: str, channels: int = SIZE) -> str:
        return self.op("Conv", x, self.weight(SIZE, channels, 1, 1))

    def number(self, value: float) -> str:
        return self.weight(values=np.asarray(value, np.float32))

    def draw(self) -> None:
        x, other = self.choose.choice(self.values[-3:]), self.choose.choice(self.values)
        kind = self.choose.choice(KINDS)
        self.values.append(getattr(self, f"_{kind.lower()}", self._plain)(kind, x, other))

    def _plain(self, kind: str, x: str, _: str) -> str:
        return self.op(kind, x)

    def _conv(self, _: str, x: str, __: str) -> str:
        group, kernel = self.choose.choice((1, 2, 3, 6)), self.choose.choice((1, 3))
        extra = [self.weight(SIZE)] if self.choose.random() < 0.5 else []
        w = self.weight(SIZE, SIZE // group, kernel, kernel)
        return self.op("Conv", x, w, *extra, group=group, pads=[kernel // 2] * 4)

    def _convtranspose(self, _: str, x: str, __: str) -> str:
        group = self.choose.choice((1, 2, 3))
        return self.op("ConvTranspose", x, self.weight(SIZE, SIZE // group, 3, 3), group=group, pads=[1] * 4)

    def _shared(self, _: str, x: str, __: str) -> str:
        return self.op("Conv", x, self.shared)

    def _bn(self, _: str, x: str, __: str) -> str:
        return self.norm(x, SIZE, positive=self.choose.random() < 0.5, shift=self.choose.random() < 0.7)

    def _prelu(self, _: str, x: str, __: str) -> str:
        slopes = np.asarray(
            self.random.uniform(-0.3 if self.choose.random() < 0.3 else 0.1, 2, (SIZE, 1, 1)), np.float32
        )
        return self.op("PRelu", x, self.weight(values=slopes))

    def _leakyrelu(self, _: str, x: str, __: str) -> str:
        return self.op("LeakyRelu", x, alpha=self.choose.choice((0.5, 0.1)))

    def _clip(self, _: str, x: str, __: str) -> str:
        return self.op("Clip", x, *(self.number(v) for v in (-0.7, 1.3)))

    def _add(self, kind: str, x: str, other: str) -> str:
        return self.op(kind, x, other)

    _sub = _add

    def _product(self, _: str, x: str, other: str) -> str:
        return self.op("Mul", x, self.op("Sigmoid", other) if self.choose.random() < 0.5 else other)

    def _max(self, _: str, x: str, other: str) -> str:
        return self.op(self.choose.choice(("Max", "Min")), x, self.choose.choice((other, self.weight(SIZE, 1, 1))))

    def _mean(self, kind: str, x: str, other: str) -> str:
        return self.op(kind, x, other, self.conv(x))

    def _where(self, kind: str, x: str, other: str) -> str:
        condition = self.op("Greater", self.values[0], self.number(0.3))
        return self.op(kind, condition, x, self.choose.choice((other, self.number(-1.5))))

    def _concat(self, _: str, x: str, other: str) -> str:
        return self.conv(self.op("Concat", x, other, axis=1), 2 * SIZE)

    def _slice(self, _: str, x: str, __: str) -> str:
        start = self.choose.randint(0, 3)
        axis = self.choose.choice((1, 1, 2))
        y = self.op("Slice", x, self.ints(start), self.ints(start + 3), self.ints(axis))
        if axis == 1:
            return self.conv(y, 3)
        return self.op("Resize", y, "", self.weight(values=np.asarray([1, 1, 2, 1], np.float32)), mode="nearest")

    def _split(self, _: str, x: str, other: str) -> str:
        first = self.op("Split", x, self.ints(2, 4), outputs=2, axis=1)
        second = self.norm(first + "_", 4) if self.choose.random() < 0.5 else first + "_"
        parts = (first, second) if self.choose.random() < 0.5 else (second, first)
        return self.op("Concat", *parts, axis=1)

    def _gather(self, _: str, x: str, __: str) -> str:
        order = self.choose.sample(range(SIZE), SIZE) if self.choose.random() < 0.7 else [0, 0, 1, 2, 3, 4]
        return self.op("Gather", x, self.ints(*order), axis=self.choose.choice((1, -3, 2)))

    def _maxpool(self, kind: str, x: str, _: str) -> str:
        return self.op(kind, x, kernel_shape=[3, 3], pads=[1] * 4)

    _averagepool = _lppool = _maxpool

    def _reduce(self, _: str, x: str, __: str) -> str:
        kind = self.choose.choice(("ReduceMean", "ReduceMax", "ReduceL2"))
        y = self.op(kind, x, axes=[self.choose.choice((1, 2, 3))], keepdims=1)
        return self.op("Add", y, self.values[0])

    def _resize(self, _: str, x: str, __: str) -> str:
        mode = self.choose.choice(("nearest", "linear", "cubic"))
        up, down = (self.weight(values=np.asarray([1, 1, f, f], np.float32)) for f in (2.0, 0.5))
        return self.op("Resize", self.op("Resize", x, "", up, mode=mode), "", down, mode=mode)

    def _pad(self, _: str, x: str, __: str) -> str:
        mode = self.choose.choice(("constant", "reflect", "edge"))
        extra = [self.number(0.7)] if mode == "constant" and self.choose.random() < 0.5 else []
        y = self.op("Pad", x, self.ints(0, 0, 1, 1, 0, 0, 1, 1), *extra, mode=mode)
        return self.op("Conv", y, self.weight(SIZE, SIZE, 3, 3))

    def _tile(self, _: str, x: str, __: str) -> str:
        return self.op("AveragePool", self.op("Tile", x, self.ints(1, 1, 2, 1)), kernel_shape=[2, 1], strides=[2, 1])

    def _blocks(self, _: str, x: str, __: str) -> str:
        wide = self.op("SpaceToDepth", x, blocksize=2)
        if self.choose.random() < 0.5:
            wide = self.op("Conv", wide, self.weight(4 * SIZE, 4 * SIZE, 1, 1))
        return self.op("DepthToSpace", wide, blocksize=2, mode=self.choose.choice(("DCR", "CRD")))

    def _turn(self, _: str, x: str, __: str) -> str:
        return self.op("Transpose", x, perm=[0, *self.choose.sample((1, 2, 3), 3)])

    def _shuffle(self, _: str, x: str, __: str) -> str:
        y = self.op("Transpose", self.op("Reshape", x, self.ints(0, 2, 3, SIZE, SIZE)), perm=[0, 2, 1, 3, 4])
        return self.op("Reshape", y, self.ints(0, SIZE, SIZE, SIZE))

    def _mul(self, kind: str, x: str, _: str) -> str:
        shape = self.choose.choice(((), (SIZE,), (SIZE, 1, 1), (1, SIZE, 1)))
        return self.op("Mul" if kind == "Mul" else "Add", x, self.weight(*shape))

    _plus = _mul

    def _matmul(self, kind: str, x: str, _: str) -> str:
        w = self.weight(SIZE, SIZE)
        return self.op(kind, *((x, w) if self.choose.random() < 0.7 else (w, x)))

    def _einsum(self, kind: str, x: str, _: str) -> str:
        return self.op(
            kind, x, self.weight(SIZE, SIZE), equation=self.choose.choice(("bihw,io->bohw", "bihw,wo->biho"))
        )

    def _norm(self, _: str, x: str, __: str) -> str:
        return self.op("InstanceNormalization", x, self.weight(SIZE), self.weight(SIZE))

    def _quantized(self, _: str, x: str, __: str) -> str:
        q = self.weight(values=self.random.integers(-128, 128, (SIZE, SIZE, 1, 1)).astype(np.int8))
        scales = self.weight(values=self.random.uniform(0.005, 0.01, SIZE).astype(np.float32))
        return self.op("Conv", x, self.op("DequantizeLinear", q, scales, axis=0))

    def _softmax(self, kind: str, x: str, _: str) -> str:
        return self.op(kind, x, axis=self.choose.choice((1, 2)))

    def _if(self, kind: str, x: str, _: str) -> str:
        """One branch scales what it captures, the other convolves it; each with a BatchNormalization of its own."""
        branches: dict[str, Any] = {}
        for name in ("then_branch", "else_branch"):
            start = len(self.nodes)
            self.norm(self.conv(x) if name == "else_branch" else self.op("Tanh", x), SIZE)
            inner, self.nodes = self.nodes[start:], self.nodes[:start]
            made = {out for node in inner for out in node.output}
            for node in inner:  # names inside a body must not meet those outside
                node.name += f"_{name}{start}"
                for names in (node.input, node.output):
                    names[:] = [f"{n}_{name}{start}" if n in made else n for n in names]
            out = helper.make_tensor_value_info(inner[-1].output[0], onnx.TensorProto.FLOAT, None)
            branches[name] = helper.make_graph(inner, name, [], [out])
        condition = self.op("Greater", self.op("ReduceMax", self.values[0], keepdims=0), self.number(0.5))
        return self.op(kind, condition, **branches)


def graph(seed: int) -> onnx.ModelProto:
    """3 to 12 ops; the last two values are outputs."""
    drawn = Drawn(seed)
    for _ in range(drawn.choose.randint(3, 12)):
        drawn.draw()
    model = drawn.model(*dict.fromkeys(drawn.values[-2:]))
    kind = drawn.choose.choice((onnx.TensorProto.FLOAT,) * 3 + (onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16))
    ops = {node.op_type for node in model.graph.node}
    return model if ops & {"Resize", "DequantizeLinear"} else retyped(model, kind)


def retyped(model: onnx.ModelProto, kind: int) -> onnx.ModelProto:
    """The model in another floating type: its weights, inputs and outputs."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    bodies = [a.g for node in model.graph.node for a in node.attribute if a.HasField("g")]
    for graph in (model.graph, *bodies):
        for info in (*graph.input, *graph.output, *graph.value_info):
            if info.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
                info.type.tensor_type.elem_type = kind
    return model


def graphs(proto: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and the bodies in it."""
    yield proto
    for node in proto.node:
        for a in node.attribute:
            if a.type == onnx.AttributeProto.GRAPH:
                yield from graphs(a.g)


def holds(seed: int) -> None:
    model = graph(seed)
    flags: Any = {"aggressive": seed % 4 == 1, "partial": seed % 4 == 2}
    result = fold(model, **flags)
    onnx.checker.check_model(result.model)
    assert difference(model, result) < 1e-9
    assert result.certificate().passed
    left = [k for k in result.report.kept if "BatchNormalization" in k.op]
    assert count(result.model) == sum(k.op.split(" + ").count("BatchNormalization") for k in left)
    assert all(k.reason and k.message and k.hint for k in result.report.kept)
    reasons = {r for k in result.report.kept for r in (k.reason, *(a.reason for a in k.alternatives))}
    assert "MALFORMED" not in reasons, "a law stumbled over sizes that go together"
    gone = [name for f in result.report.folded for name in f.nodes]
    kept = [name for k in result.report.kept for name in k.nodes]
    assert len({*gone, *kept}) == len(gone) + len(kept), "a source is reported twice"
    names = {node.name for g in graphs(result.model.graph) for node in g.node}
    assert not names & set(gone) and names >= set(kept)
    again = fold(result.model, **flags)
    assert not again.report.folded, again.report
    if seed % 3 == 0 and gone:
        chosen = gone[:: 1 + seed % 2]
        result = fold(model, only=chosen, **flags)
        assert difference(model, result) < 1e-9
        names = {node.name for g in graphs(result.model.graph) for node in g.node}
        assert names >= {*gone, *kept} - set(chosen), "a source outside `only` is gone"


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_random_graph_stays_the_same_function(seed: int) -> None:
    holds(seed)


@pytest.mark.slow
def test_random_graphs_for_a_time_budget(slow_budget: float) -> None:
    end, seed = time.monotonic() + slow_budget, 0
    while time.monotonic() < end:
        holds(seed)
        seed += 1
    assert seed > 50
