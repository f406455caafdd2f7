"""What a model wants to be fed: its inputs, and sizes for the dimensions that it leaves free.

Where sizes are free no two axes get the same one, so that a fold along the wrong axis cannot go unseen; dimensions of
one name share a size. A model may still demand more (multiples of 32, a square), so there is a list of attempts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx

from bnfold.errors import UsageError

from .verdict import Settled, Verdict

__all__ = ["GraphInput", "attempts", "graph_inputs", "shapes_for"]

# Sizes in the order in which they are handed out: to the axes of images, and to all others (lengths, tokens).
_ATTEMPTS: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
    ((64, 96, 32, 160), (24, 40, 56, 72)),
    ((224, 256, 192, 160), (160, 192, 224, 256)),
    ((64, 64, 64, 64), (16, 16, 16, 16)),
    ((320, 320, 320, 320), (128, 128, 128, 128)),
    ((224, 224, 224, 224), (1, 1, 1, 1)),
    ((32, 48, 16, 80), (4096, 3072, 2048, 1024)),
    ((28, 28, 28, 28), (16000, 12000, 8000, 4000)),
)
_BATCHES = (2, 3, 5)


@dataclass(frozen=True)
class GraphInput:
    """An input that has to be fed. A dimension is its size, or the name of a free size; `batch` is one such name."""

    name: str
    elem_type: int
    dims: tuple[int | str, ...]


def graph_inputs(model: onnx.ModelProto) -> list[GraphInput]:
    """The inputs without an initializer. Raises Settled (inconclusive) for what cannot be generated at all."""
    initialized = {proto.name for proto in model.graph.initializer}
    initialized |= {proto.values.name for proto in model.graph.sparse_initializer}
    found: list[GraphInput] = []
    for value in model.graph.input:
        if value.name in initialized:
            continue
        if not value.type.HasField("tensor_type"):
            kind = value.type.WhichOneof("value") or "value without a type"
            raise Settled(
                Verdict.INCONCLUSIVE,
                f"input {value.name!r} is a {kind.removesuffix('_type')}; only tensors can be fed here",
            )
        tensor = value.type.tensor_type
        if tensor.elem_type == onnx.TensorProto.STRING:
            raise Settled(Verdict.INCONCLUSIVE, f"input {value.name!r} holds texts, which are not supported here")
        found.append(GraphInput(value.name, tensor.elem_type, tuple(_dims(value.name, tensor))))
    return found


def _dims(name: str, tensor: onnx.TypeProto.Tensor) -> Iterator[int | str]:
    if not tensor.HasField("shape"):
        raise Settled(Verdict.INCONCLUSIVE, f"input {name!r} does not declare its shape, so no data can be made for it")
    rank = len(tensor.shape.dim)
    for axis, dim in enumerate(tensor.shape.dim):
        if dim.HasField("dim_value") and dim.dim_value > 0:
            yield dim.dim_value
        elif dim.dim_param:
            yield dim.dim_param
        elif axis == 0 and rank > 1:
            yield "batch"  # anonymous first axes are one batch
        else:
            yield f"{name}[{axis}]"


def attempts(
    model: onnx.ModelProto, inputs: Sequence[GraphInput], shapes: Mapping[str, Sequence[int]] | None = None
) -> Iterator[tuple[dict[str, int], str | None]]:
    """Sizes for every free dimension, the likeliest first, and the name of the batch where that is free.

    `shapes` are the caller's, input name to sizes; what they settle is no longer free. Raises UsageError when they
    contradict the model.
    """
    given = _settled(inputs, shapes or {})
    demanded = {**_demanded(model, inputs), **given}
    first = (i.dims[0] for i in inputs if len(i.dims) > 1)
    batch = next((dim for dim in first if isinstance(dim, str) and dim not in demanded), None)
    fixed = {d for i in inputs for d in i.dims if isinstance(d, int)} | set(demanded.values())
    seen: set[tuple[tuple[str, int], ...]] = set()
    for image, other in _ATTEMPTS:
        sizes = _assigned(inputs, demanded, batch, fixed, image, other)
        for rows in (next(b for b in _BATCHES if b not in fixed or b == _BATCHES[-1]), 1) if batch else (0,):
            chosen = {**sizes, batch: rows} if batch else sizes
            key = tuple(sorted(chosen.items()))
            if key not in seen:
                seen.add(key)
                yield chosen, batch


def shapes_for(inputs: Sequence[GraphInput], sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Every input's shape when the free dimensions have `sizes`; one that is called a sum, "past + 1", is that sum."""
    return {i.name: tuple(d if isinstance(d, int) else _sum(d, sizes) or sizes[d] for d in i.dims) for i in inputs}


def _sum(dim: str, sizes: Mapping[str, int]) -> int | None:
    """What a name such as "past_length + 1" says, when all its terms are numbers or free sizes themselves."""
    terms = [term.strip() for term in dim.split("+")]
    if len(terms) < 2 or not all(term.isdecimal() or term in sizes for term in terms):
        return None
    return sum(int(term) if term.isdecimal() else sizes[term] for term in terms)


def _assigned(
    inputs: Sequence[GraphInput],
    demanded: Mapping[str, int],
    batch: str | None,
    fixed: set[int],
    image: Sequence[int],
    other: Sequence[int],
) -> dict[str, int]:
    sizes = dict(demanded)
    used = set(fixed) if len(set(image)) > 1 else set[int]()  # an attempt at a square wants equal sizes
    for value in inputs:
        for axis, dim in enumerate(value.dims):
            if isinstance(dim, int) or dim in sizes or dim == batch:
                continue
            pool = image if _is_image_axis(value.dims, axis) else other
            free = [size for size in pool if size not in used]
            sizes[dim] = free[0] if free else pool[0] + 32 * len(used)
            if len(set(image)) > 1:
                used.add(sizes[dim])
    return sizes


def _is_image_axis(dims: Sequence[int | str], axis: int) -> bool:
    return len(dims) >= 4 and axis > 0 and (axis > 1 or isinstance(dims[-1], int))  # [N, C, H, W] or [N, H, W, 3]


def _settled(inputs: Sequence[GraphInput], shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    known = {value.name: value for value in inputs}
    for name, shape in shapes.items():
        if name not in known:
            raise UsageError(f"The model has no input {name!r}; its inputs are {', '.join(known) or 'none'}.")
        dims = known[name].dims
        if len(shape) != len(dims):
            raise UsageError(f"Input {name!r} has {len(dims)} dimensions, and the shape given for it {len(shape)}.")
        for axis, (dim, size) in enumerate(zip(dims, shape, strict=True)):
            if size < 1:
                raise UsageError(f"The shape given for input {name!r} has the size {size}; sizes start at 1.")
            if sizes.setdefault(str(dim), int(size)) != size if isinstance(dim, str) else dim != size:
                wanted = sizes[dim] if isinstance(dim, str) else dim
                raise UsageError(f"Input {name!r} has {wanted} on axis {axis}, and the shape given for it says {size}.")
    return sizes


def _demanded(model: onnx.ModelProto, inputs: Sequence[GraphInput]) -> dict[str, int]:
    """Free dimensions that the weight of a direct reader settles: a convolution's channels, a product's columns."""
    weights = {proto.name: list(proto.dims) for proto in model.graph.initializer}
    sizes: dict[str, int] = {}
    for value in inputs:
        for node in model.graph.node:
            if len(node.input) < 2 or node.input[0] != value.name or node.input[1] not in weights:
                continue
            shape, dims = weights[node.input[1]], value.dims
            attributes = {a.name: a.i for a in node.attribute if a.type == onnx.AttributeProto.INT}
            axis, size = None, 0
            if node.op_type == "Conv" and len(dims) == len(shape):
                axis, size = 1, shape[1] * attributes.get("group", 1)
            elif node.op_type == "ConvTranspose" and len(dims) == len(shape):
                axis, size = 1, shape[0]
            elif node.op_type == "MatMul" and len(shape) >= 2:
                axis, size = len(dims) - 1, shape[-2]
            elif node.op_type == "Gemm" and len(dims) == len(shape) == 2 and not attributes.get("transA", 0):
                axis, size = 1, shape[1] if attributes.get("transB", 0) else shape[0]
            if axis is not None and isinstance(dims[axis], str) and size > 0:
                sizes.setdefault(str(dims[axis]), size)
    return sizes
