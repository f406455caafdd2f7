"""Shapes where onnx's inference says nothing: ranks and sizes from weights, perm, Reshape targets.

A size is an int, or a symbol (str): equal symbols are equal sizes. What the file declares, what the rules below derive
and, only when both leave a gap, what onnx's own inference finds are merged; ints win over symbols.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import onnx

from .dims import Dim, Shape, broadcast, concat, matmul, merged, product, resolve

if TYPE_CHECKING:
    from .graph import Graph, Node

_SAME = frozenset(
    """Identity Dropout BatchNormalization Relu LeakyRelu PRelu Elu Selu Celu Sigmoid HardSigmoid HardSwish Mish Tanh
    Softplus Softsign ThresholdedRelu Gelu Erf Exp Log Sqrt Abs Neg Ceil Floor Round Sign Clip Cast Softmax
    LogSoftmax Hardmax InstanceNormalization GroupNormalization LayerNormalization LRN LpNormalization
    MeanVarianceNormalization Not Reciprocal Sin Cos CumSum QuantizeLinear DequantizeLinear Swish
    SkipLayerNormalization""".split()
)
_BROADCAST = frozenset("Add Sub Mul Div Pow Sum Mean Max Min Where And Or Xor Equal Less Greater Mod".split())
_GLOBAL = frozenset(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"))
_POOLS = frozenset(("MaxPool", "AveragePool", "LpPool"))
_REDUCE = frozenset(
    f"Reduce{what}" for what in "Mean Sum Max Min Prod L1 L2 LogSum LogSumExp SumSquare".split()
)  # fmt: skip
_FUSED = {("com.microsoft", f"Fused{kind}"): kind for kind in ("Conv", "Gemm", "MatMul")}
_TURNED = ("transA", "transB", "transBatchA", "transBatchB")
_LARGE = 1024  # bytes: tensors above this are stripped before onnx's inference; no shape is read from them


class Shapes:
    """The shapes of one graph's values, found when asked for and remembered."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._known: dict[str, Shape | None] = {}
        self._declared: dict[str, onnx.TypeProto.Tensor] | None = None
        self._inferred: dict[str, onnx.TypeProto.Tensor] | None = None

    def of(self, value: str) -> Shape | None:
        """The shape of a value, or None where not even its rank is known."""
        found = self._derive(value)
        if found is None or any(isinstance(d, str) and d.startswith("?") for d in found):
            inferred = self._from(self._infer().get(value), value)
            both = merged(found, inferred)
            if both != found:
                self._known[value] = both
            return both
        return found

    def quick(self, value: str) -> Shape | None:
        """What the file and the rules say, without onnx's inference."""
        return self._derive(value)

    def declared(self, value: str) -> Shape | None:
        """What the file says of a value, and nothing else."""
        return self._from(self._declare().get(value), value)

    def rank(self, value: str) -> int | None:
        """The rank alone: cheaper, for a weight says it."""
        found = self._derive(value)
        if found is None:
            found = self.of(value)
        return None if found is None else len(found)

    def elem_type(self, value: str) -> int:
        """TensorProto's code of the element type, 0 where unknown."""
        for table in (self._declare, self._infer):
            found = table().get(value)
            if found is not None and found.elem_type:
                return found.elem_type
        return 0

    def forget(self, value: str) -> None:
        self._known.pop(value, None)

    def copy(self, old: str, new: str) -> None:
        """`new` will have the sizes that `old` has."""
        self._known[new] = self.of(old)

    def rename(self, old: str, new: str) -> None:
        """`new` is stored where `old` was: same sizes."""
        if old in self._known:
            self._known.setdefault(new, self._known[old])

    def _derive(self, value: str) -> Shape | None:
        stack = [value]
        while stack:
            name = stack[-1]
            if name in self._known:
                stack.pop()
                continue
            declared = self._from(self._declare().get(name), name)
            if declared is not None and all(isinstance(d, int) for d in declared):
                self._known[name] = declared
                continue
            constant = self._graph.constant(name) if self._graph.is_constant(name) else None
            if constant is not None:
                self._known[name] = constant.shape
                continue
            made = self._graph.producer(name)
            if made is None:
                outer = self._graph.parent
                local = name in self._graph.inputs
                self._known[name] = declared if outer is None or local or declared else outer.shapes.of(name)
                continue
            missing = [i for i in made[0].inputs if i and i not in self._known]
            if missing:
                stack.extend(missing)
                continue
            derived = self._rule(*made)
            if derived is not None and declared is not None and len(derived) != len(declared):
                derived = None
            self._known[name] = merged(derived, declared)
        return self._known[value]

    def _declare(self) -> dict[str, onnx.TypeProto.Tensor]:
        if self._declared is None:
            proto = self._graph.proto
            self._declared = {
                info.name: info.type.tensor_type
                for infos in (proto.value_info, proto.output, proto.input)
                for info in infos
                if info.type.HasField("tensor_type")
            }
        return self._declared

    def _infer(self) -> dict[str, onnx.TypeProto.Tensor]:
        if self._inferred is None:
            self._inferred = _onnx_inference(self._graph) if self._graph.parent is None else {}
        return self._inferred

    def _from(self, found: onnx.TypeProto.Tensor | None, value: str) -> Shape | None:
        if found is None or not found.HasField("shape"):
            return None
        return tuple(
            d.dim_value if d.HasField("dim_value") else (d.dim_param or f"?{value}.{i}")
            for i, d in enumerate(found.shape.dim)
        )

    # -- rules --------------------------------------------------------------------------------------------------------

    def _rule(self, node: Node, output: int) -> Shape | None:
        if node.domain and (node.domain, node.op_type) not in _FUSED:
            return None
        shapes = [self._known.get(i) if i else None for i in node.inputs]
        name = node.outputs[output]
        first = shapes[0] if shapes else None
        if node.op_type == "FusedMatMul" and any(node.attribute(n, 0) for n in _TURNED):
            return None
        match _FUSED.get((node.domain, node.op_type), node.op_type):
            case op if op in _SAME:
                return first
            case op if op in _BROADCAST:
                # before opset 7 the second operand is broadcast into the first, at the axis that `axis` names
                return first if node.attribute("broadcast", 0) else broadcast(shapes, name)
            case "Conv" | "ConvTranspose":
                weight = shapes[1] if len(shapes) > 1 else None
                kernel = node.attribute("kernel_shape", None)
                known = weight if weight is not None else first
                rank = len(known) if known is not None else (len(kernel) + 2 if kernel else None)
                if rank is None:
                    return None
                batch: Dim = first[0] if first is not None and len(first) == rank else f"?{name}.0"
                return (batch, self._channels(node, weight, name), *self._window(node, first, weight, name, rank))
            case op if op in _POOLS:
                if first is None:
                    return None
                return (*first[:2], *self._window(node, first, None, name, len(first)))
            case op if op in _GLOBAL:
                return None if first is None else (*first[:2], *(1 for _ in first[2:]))
            case "Transpose":
                perm = node.attribute("perm", None)
                return None if first is None else tuple(first[i] for i in (perm or range(len(first))[::-1]))
            case "Flatten":
                if first is None:
                    return None
                axis = node.attribute("axis", 1)
                axis += len(first) if axis < 0 else 0
                return (product(first[:axis], f"?{name}.0"), product(first[axis:], f"?{name}.1"))
            case "Reshape":
                target = self._target(node)
                if target is None:
                    return None
                return resolve(first, target, bool(node.attribute("allowzero", 0)), name)
            case "Gemm":
                if len(shapes) < 2 or shapes[0] is None or shapes[1] is None:
                    return None
                rows, columns = node.attribute("transA", 0), node.attribute("transB", 0)
                return (shapes[0][1 if rows else 0], shapes[1][0 if columns else 1])
            case "MatMul":
                return matmul(shapes, name)
            case "Concat":
                return concat(node.attribute("axis", 1), shapes, name)
            case "Squeeze" | "Unsqueeze":
                return self._squeeze(node, first)
            case op if op in _REDUCE:
                return self._reduce(node, first)
            case "LSTM" | "GRU" | "RNN":
                return self._recurrent(node, shapes, output, name)
            case "Gather":
                if first is None or shapes[1] is None:
                    return None
                axis = node.attribute("axis", 0) % max(len(first), 1)
                return (*first[:axis], *shapes[1], *first[axis + 1 :])
            case "Shape":
                part = slice(node.attribute("start", 0), node.attribute("end", None))
                return None if first is None else (len(first[part]),)
            case "Expand" | "ConstantOfShape":
                target = self.elements(node.inputs[-1])
                if target is None or node.op_type == "ConstantOfShape":
                    return None if target is None else tuple(target)
                return broadcast([first, tuple(target)], name)
            case "Resize" | "Upsample" | "Pad" | "Slice" | "DepthToSpace" | "SpaceToDepth" | "Split":
                return None if first is None else tuple(f"?{name}.{i}" for i in range(len(first)))
            case _:
                return None

    def _channels(self, node: Node, weight: Shape | None, name: str) -> Dim:
        if weight is None:
            return f"?{name}.1"
        if node.op_type != "ConvTranspose":
            return weight[0]
        per_group = weight[1]
        return per_group * int(node.attribute("group", 1)) if isinstance(per_group, int) else f"?{name}.1"

    def _window(self, node: Node, x: Shape | None, weight: Shape | None, name: str, rank: int) -> list[Dim]:
        n = rank - 2
        kernel: Sequence[Dim] = node.attribute("kernel_shape", None) or (weight[2:] if weight is not None else ())
        strides = node.attribute("strides", None) or [1] * n
        dilations = node.attribute("dilations", None) or [1] * n
        pads = node.attribute("pads", None) or [0] * (2 * n)
        auto = node.attribute("auto_pad", "NOTSET")
        out: list[Dim] = []
        for i in range(n):
            size = x[2 + i] if x is not None and len(x) == rank else None
            k = kernel[i] if i < len(kernel) else None
            unknown = f"?{name}.{2 + i}"
            if not isinstance(size, int) or not isinstance(k, int) or node.op_type == "ConvTranspose":
                out.append(unknown)
            elif auto.startswith("SAME"):
                out.append(-(-size // strides[i]))
            else:
                padded = size + (0 if auto == "VALID" else pads[i] + pads[n + i]) - (k - 1) * dilations[i] - 1
                out.append(unknown if node.attribute("ceil_mode", 0) else padded // strides[i] + 1)
        return out

    def _target(self, node: Node) -> list[Dim] | None:
        if self._graph.opset("") < 5:
            return list(node.attribute("shape", ()))
        return self.elements(node.inputs[1]) if node.has(1) else None

    def elements(self, value: str, depth: int = 0) -> list[Dim] | None:
        """The elements of a 1-d integer tensor that describes a shape, as far as they are known."""
        constant = self._graph.constant(value)
        if constant is not None:
            return [int(i) for i in constant.array().reshape(-1)] if constant.size <= 64 else None
        made = self._graph.producer(value)
        if made is None or depth > 32:
            return None
        node = made[0]

        def given(slot: int) -> list[Dim] | None:
            return self.elements(node.inputs[slot], depth + 1) if node.has(slot) else None

        match node.op_type:
            case "Shape":
                shape = self.of(node.inputs[0])
                if shape is None:
                    return None
                return list(shape[node.attribute("start", 0) : node.attribute("end", None)])
            case "Identity" | "Cast" | "Unsqueeze" | "Squeeze":
                return given(0)
            case "Concat":
                parts = [given(i) for i in range(len(node.inputs))]
                return None if any(p is None for p in parts) else [d for p in parts if p is not None for d in p]
            case "Gather":
                data, index = given(0), given(1)
                if data is None or index is None or not all(isinstance(i, int) for i in index):
                    return None
                return [data[i] for i in index if isinstance(i, int) and -len(data) <= i < len(data)]
            case "Slice":
                parts = [given(i) for i in range(1, len(node.inputs))] if len(node.inputs) > 1 else []
                data = given(0)
                if data is None or len(parts) < 2 or any(p is None or len(p) != 1 for p in parts):
                    return None
                numbers = [p[0] for p in parts if p is not None]
                if not all(isinstance(i, int) for i in numbers):
                    return None
                step = numbers[3] if len(numbers) > 3 else 1
                return data[slice(*(i for i in (numbers[0], numbers[1], step) if isinstance(i, int)))]
            case _:
                return None

    def _axes(self, node: Node) -> Sequence[int] | None:
        axes = node.attribute("axes", None)
        if axes is None and node.has(1):
            constant = self._graph.constant(node.inputs[1])
            return None if constant is None else [int(i) for i in constant.array().reshape(-1)]
        return axes if axes is not None else ()

    def _squeeze(self, node: Node, x: Shape | None) -> Shape | None:
        axes = self._axes(node)
        if x is None or axes is None:
            return None
        if node.op_type == "Squeeze":
            drop = {a % len(x) for a in axes} if axes else {i for i, d in enumerate(x) if d == 1}
            if not axes and not all(isinstance(d, int) for d in x):
                return None
            return tuple(d for i, d in enumerate(x) if i not in drop)
        rank = len(x) + len(axes)
        new, rest = {a % rank for a in axes}, iter(x)
        return tuple(1 if i in new else next(rest) for i in range(rank))

    def _reduce(self, node: Node, x: Shape | None) -> Shape | None:
        axes = self._axes(node)
        if x is None or axes is None:
            return None
        if not axes and node.attribute("noop_with_empty_axes", 0):
            return x
        gone = {a % len(x) for a in axes} if axes else set(range(len(x)))
        if node.attribute("keepdims", 1):
            return tuple(1 if i in gone else d for i, d in enumerate(x))
        return tuple(d for i, d in enumerate(x) if i not in gone)

    def _recurrent(self, node: Node, shapes: list[Shape | None], output: int, name: str) -> Shape | None:
        hidden = node.attribute("hidden_size", None)
        directions = 2 if node.attribute("direction", "forward") == "bidirectional" else 1
        x = shapes[0] or (f"?{name}.s", f"?{name}.b", 0)
        size: Dim = int(hidden) if hidden is not None else f"?{name}.h"
        if node.attribute("layout", 0):
            return (x[0], x[1], directions, size) if output == 0 else (x[0], directions, size)
        return (x[0], directions, x[1], size) if output == 0 else (directions, x[1], size)


def _onnx_inference(graph: Graph) -> dict[str, onnx.TypeProto.Tensor]:
    """onnx's own shape inference, over the graph without its big tensors."""
    proto = graph.proto
    slim = onnx.GraphProto(name="shapes")
    slim.input.extend(i for i in proto.input)
    listed = {i.name for i in proto.input}
    for t in proto.initializer:
        held = len(t.raw_data) or 4 * (len(t.float_data) + 2 * len(t.int64_data) + len(t.int32_data))
        if t.data_location != onnx.TensorProto.EXTERNAL and held <= _LARGE:
            slim.initializer.append(t)
        elif t.name not in listed:
            slim.input.append(onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)))
    slim.node.extend(proto.node)
    slim.output.extend(proto.output)
    slim.value_info.extend(proto.value_info)
    opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in graph.opsets.items()]
    model = onnx.helper.make_model(slim, opset_imports=opsets)
    try:
        done = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # an inference that fails knows nothing; the laws refuse what they cannot see
        return {}
    return {
        info.name: info.type.tensor_type
        for infos in (done.graph.value_info, done.graph.output)
        for info in infos
        if info.type.HasField("tensor_type")
    }
