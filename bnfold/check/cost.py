"""What judging will cost, before it is begun: bytes of memory and seconds, roughly, from shapes alone.

memory ≈ 8·(all activations + the weights, read into float64, twice) + the widest convolution's unfolded patches
seconds ≈ multiply-adds / 10⁹ + elements / 5·10⁷      (numpy in float64 on one core)
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from .verdict import Settled, Verdict

__all__ = ["Cost", "available_memory", "estimate", "inferred_shapes", "require_memory"]

_BULK = 1024  # elements: larger initializers are weights, whose values no shape depends on


@dataclass(frozen=True)
class Cost:
    """One float64 evaluation of the model: elements of all values and weights, multiply-adds, the largest temporary."""

    activations: int
    weights: int
    multiply_adds: int
    largest_temporary: int

    @property
    def memory(self) -> int:
        """Bytes."""
        return 8 * (self.activations + 2 * self.weights + self.largest_temporary)

    @property
    def seconds(self) -> float:
        return self.multiply_adds / 1e9 + self.activations / 5e7


def estimate(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> Cost:
    """The cost of one run with inputs of `shapes`; a value whose shape stays unknown counts as the others' mean."""
    weights = {proto.name: tuple(proto.dims) for proto in model.graph.initializer}
    known = {**inferred_shapes(model, shapes), **weights}
    sizes: list[int] = []
    unknown, multiply_adds, temporary = 0, 0, 0
    for node in model.graph.node:
        for name in node.output:
            if name in known:
                sizes.append(math.prod(known[name]))
            elif name:
                unknown += 1
        macs, patches = _work(node, known)
        multiply_adds += macs
        temporary = max(temporary, patches)
    activations = sum(sizes) + unknown * (sum(sizes) // max(len(sizes), 1))
    return Cost(activations, sum(math.prod(shape) for shape in weights.values()), multiply_adds, temporary)


def _work(node: onnx.NodeProto, known: Mapping[str, Sequence[int]]) -> tuple[int, int]:
    if len(node.input) < 2 or not node.output:
        return 0, 0
    x, w, y = (known.get(name) for name in (node.input[0], node.input[1], node.output[0]))
    if w is None or len(w) == 0:
        return 0, 0
    if node.op_type == "Conv" and y is not None and len(w) > 2:
        window = math.prod(w[2:])
        return math.prod(y) * math.prod(w[1:]), math.prod(y) // max(w[0], 1) * window * (x[1] if x else w[1])
    if node.op_type == "ConvTranspose" and x is not None and len(w) > 2:
        return math.prod(x) * math.prod(w[1:]), math.prod(x) // max(w[0], 1) * math.prod(w[1:])
    if node.op_type in ("MatMul", "Gemm") and y is not None and x:
        return math.prod(y) * x[-1], 0
    return 0, 0


def inferred_shapes(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Shapes of the main graph's values, by onnx's inference on a copy without bulk weights; what it says, it says."""
    light = onnx.ModelProto()
    light.ir_version = max(model.ir_version, 4)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    graph = light.graph
    graph.name = "light"
    graph.node.extend(model.graph.node)
    graph.output.extend(onnx.helper.make_empty_tensor_value_info(value.name) for value in model.graph.output)
    for proto in model.graph.initializer:
        if proto.data_location == onnx.TensorProto.EXTERNAL or math.prod(proto.dims) > _BULK:
            graph.input.append(onnx.helper.make_tensor_value_info(proto.name, proto.data_type, list(proto.dims)))
        else:
            graph.initializer.append(proto)
    for value in model.graph.input:
        if value.name in shapes:
            kind = value.type.tensor_type.elem_type
            graph.input.append(onnx.helper.make_tensor_value_info(value.name, kind, list(shapes[value.name])))
    try:
        inferred = onnx.shape_inference.infer_shapes(light, data_prop=True)
    except Exception:  # inference has no closed set of errors, and an estimate may go without it
        return {name: tuple(shape) for name, shape in shapes.items()}
    found: dict[str, tuple[int, ...]] = {}
    for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            found[value.name] = tuple(dim.dim_value for dim in tensor.shape.dim)
    return found


def available_memory() -> int | None:
    """Bytes that this process may still take, None where the system does not say."""
    limits: list[int] = []
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(1024 * int(line.split()[1]))
    except OSError:
        names = getattr(os, "sysconf_names", {})
        if "SC_AVPHYS_PAGES" in names:
            limits.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    limits.extend(_container_limits())
    return min(limits) if limits else None


def _container_limits() -> list[int]:
    """What a control group leaves to its processes; the page cache that it counts as used would be given back."""
    for most, now, cache in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        try:
            texts = (Path("/sys/fs/cgroup", name).read_text(encoding="ascii") for name in (most, now, cache))
            limit, used, stat = texts
        except OSError:
            continue
        if not limit.strip().isdigit():
            return []  # "max": no limit
        entries = dict(line.split(maxsplit=1) for line in stat.splitlines())
        return [int(limit) - int(used) + int(entries.get("inactive_file", 0))]
    return []


def require_memory(cost: Cost, outputs: int, available: int | None) -> None:
    """Raises Settled (inconclusive) when judging needs more memory than there is. `outputs`: bytes kept of those."""
    need = cost.memory + outputs
    if available is not None and need > 0.9 * available:
        raise Settled(
            Verdict.INCONCLUSIVE,
            f"judging it in float64 needs {need / 2**30:.1f} GiB of memory and {max(available, 0) / 2**30:.1f} GiB are "
            "available; give smaller inputs (--shape) or a larger machine",
        )
