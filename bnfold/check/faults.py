"""Faults planted in a fold: what others got wrong and we might, put into this model's own folded weights.

of the map       scale and shift read wrongly at one source, then folded by the laws as if they were right
of the tensor    one folded tensor written wrongly: its steps exchanged, or its values touched, then rounded
What rounding would hide anyway (β is 0 already, ε far below the variance) is no fault and is not planted.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..affine import Affine, affine, channel
from ..bodies import graphs_of
from ..dtypes import rounded
from ..fold import fold_leaving
from ..gauge import Refusal
from ..graph import Graph, Node
from ..result import FoldResult, Record
from ..sources import EPSILON, Source, read
from ..weights import Tensor
from .rounding import roundoff

__all__ = ["FAULTS", "Planted", "faulty"]

Array = NDArray[np.float64]
_TRIES = 64  # pairs of rows that are looked at for two that differ


@dataclass(frozen=True)
class Planted:
    """A folded model with one fault. `at`: the source whose fold is wrong, and the tensor where one was touched."""

    fault: str
    at: str
    model: onnx.ModelProto


@dataclass(frozen=True)
class _Norm:
    gamma: Array
    beta: Array
    mean: Array
    var: Array
    epsilon: float

    def map(self) -> tuple[Array, Array]:
        with np.errstate(all="ignore"):
            scale = self.gamma / np.sqrt(self.var + self.epsilon)
        return scale, self.beta - scale * self.mean


def faulty(result: FoldResult, fault: str, count: int, seed: int) -> Iterator[Planted]:
    """Up to `count` models with `fault` (a key of FAULTS) in different places, drawn with `seed`; fewer where it
    applies to fewer. `result` is the fold of its source, by `fold` or by `fold_leaving` with no rounding allowed."""
    rng = np.random.default_rng([seed, zlib.crc32(fault.encode())])
    for at, model in islice(FAULTS[fault](result, rng), count):
        yield Planted(fault, at, model)


_Made = Iterator[tuple[str, onnx.ModelProto]]


def _of_norms(
    norm: Callable[[_Norm], tuple[Array, Array]], others: Mapping[str, Callable[[Affine], Affine]]
) -> Callable[[FoldResult, np.random.Generator], _Made]:
    """The fault of a BatchNormalization's map, and what it is for constant arithmetic, by operator."""

    def wrongly(graph: Graph, node: Node, source: Source) -> Affine | None:
        if node.op_type != "BatchNormalization":
            change = others.get(node.op_type)
            return None if change is None else change(source.affine)
        values = [tensor.exact() for name in node.inputs[1:5] if (tensor := graph.constant(name)) is not None]
        parameters = _Norm(*values, epsilon=float(node.attribute("epsilon", EPSILON)))
        with np.errstate(all="ignore"):
            scale, shift = norm(parameters)
        rank = graph.shapes.rank(node.inputs[0])
        if rank is None or not (np.isfinite(scale).all() and np.isfinite(shift).all()):
            return None
        if scale.ndim == 1 and rank > 1:
            return channel(scale, shift, rank)
        return affine(scale[None], shift[None]) if scale.ndim == rank - 1 else None

    def make(result: FoldResult, rng: np.random.Generator) -> _Made:
        for index in rng.permutation(len(result.records)):
            record = result.records[int(index)]
            model = _refolded(result, record, wrongly)
            if model is not None:
                yield record.node.at, model

    return make


def _refolded(
    result: FoldResult, record: Record, wrongly: Callable[[Graph, Node, Source], Affine | None]
) -> onnx.ModelProto | None:
    """The original folded again with the map of one source wrong; None where that changes nothing, or does not fold."""
    place = record.node.at, record.node.order
    planted = False

    def read_wrongly(graph: Graph, node: Node) -> Source | Refusal:
        nonlocal planted
        source = read(graph, node)
        if isinstance(source, Refusal) or (node.at, node.order) != place:
            return source
        wrong = wrongly(graph, node, source)
        if wrong is None or not _moves(source.affine, wrong, record):
            return source
        planted = True
        return Source(source.node, source.slot, wrong, source.inverse)

    source = result.source
    leave: Mapping[str, str] | None = (
        {} if result.rounded else None
    )  # what stands in front of an op that rounds was folded, or stayed
    again = fold_leaving(source.path if source.path is not None else source.model, leave, read=read_wrongly)
    if not planted or place not in {(r.node.at, r.node.order) for r in again.records}:
        return None
    return again.model if _differ(result, again) else None


def _moves(right: Affine, wrong: Affine, record: Record) -> bool:
    u = max((roundoff(t.data_type) for t in record.plan.edits.values() if t.is_float), default=2.0**-24)
    return _beyond(right.scale, wrong.scale, u) or _beyond(right.shift, wrong.shift, u)


def _differ(right: FoldResult, wrong: FoldResult) -> bool:
    """Whether some folded tensor holds another value, more than its own rounding away, or is another tensor."""
    for mine, theirs in zip(right.edited, wrong.edited, strict=True):
        if mine.keys() != theirs.keys():
            return True
        for name, tensor in mine.items():
            other = theirs[name]
            if tensor.shape != other.shape or tensor.data_type != other.data_type:
                return True
            if tensor.is_float and _beyond(tensor.exact(), other.exact(), roundoff(tensor.data_type)):
                return True
    return False


def _beyond(right: Array, wrong: Array, u: float) -> bool:
    return bool((np.abs(wrong - right) > 2 * u * np.abs(right)).any())


def _of_tensors(
    change: Callable[[Tensor, np.random.Generator], Array | None],
) -> Callable[[FoldResult, np.random.Generator], _Made]:
    def make(result: FoldResult, rng: np.random.Generator) -> _Made:
        places = [(k, name) for k, edited in enumerate(result.edited) for name, t in edited.items() if _is_plain(t)]
        for index in rng.permutation(len(places)):
            number, name = places[int(index)]
            tensor = result.edited[number][name]
            values = change(tensor, rng)
            if values is None or not _beyond(tensor.exact(), values, roundoff(tensor.data_type)):
                continue
            stored = rounded(np.ascontiguousarray(values, np.float64), tensor.data_type)
            if not np.array_equal(stored, rounded(tensor.exact(), tensor.data_type)):
                yield _place(result, tensor, name), _with_tensor(result.model, number, name, tensor, stored)

    return make


def _is_plain(tensor: Tensor) -> bool:
    return tensor.is_float and tensor.size > 0


def _place(result: FoldResult, tensor: Tensor, name: str) -> str:
    """The source that was folded into the tensor last, and the tensor."""
    for record in reversed(result.records):
        made = {id(step) for edited in record.plan.edits.values() for step in edited.steps}
        if any(id(step) in made for step in tensor.steps):
            return f"{record.node.at} ({name})"
    return name


def _with_tensor(
    model: onnx.ModelProto, number: int, name: str, tensor: Tensor, stored: NDArray[Any]
) -> onnx.ModelProto:
    wrong = onnx.ModelProto()
    wrong.CopyFrom(model)
    graph = list(graphs_of(wrong.graph))[number]
    (proto,) = (t for t in graph.initializer if t.name == name)
    proto.CopyFrom(
        onnx.TensorProto(name=name, data_type=tensor.data_type, dims=tensor.shape, raw_data=stored.tobytes())
    )
    return wrong


def _with_steps(tensor: Tensor, steps: Sequence[Affine]) -> Array:
    return Tensor(tensor.name, tensor.data_type, tensor.shape, tensor.proto, tensor.directory, tuple(steps)).exact()


def _other_axis(tensor: Tensor, rng: np.random.Generator) -> Array | None:
    """The scale of the last step that varies, along another axis of the same size."""
    for k in reversed(range(len(tensor.steps))):
        scale = tensor.steps[k].scale
        if scale.ndim != len(tensor.shape):
            continue
        along = [axis for axis, size in enumerate(scale.shape) if size > 1]
        others = [axis for axis in range(scale.ndim) if axis not in along and tensor.shape[axis] == scale.size]
        if len(along) == 1 and others:
            turned = affine(np.swapaxes(scale, along[0], int(rng.choice(others))), tensor.steps[k].shift)
            return _with_steps(tensor, [*tensor.steps[:k], turned, *tensor.steps[k + 1 :]])
    return None


def _no_shift(tensor: Tensor, rng: np.random.Generator) -> Array | None:
    """The folded bias as if nothing had been added to it; a bias that the fold brought in is then 0."""
    if not tensor.steps:
        return np.zeros(tensor.shape)  # the constant of an Add that the fold put in
    if not any(step.shift.any() for step in tensor.steps):
        return None
    return _with_steps(tensor, [step.only_scale() for step in tensor.steps])


def _one_weight(tensor: Tensor, rng: np.random.Generator) -> Array | None:
    """One element of at least the tensor's rms, 1 % too large."""
    values = tensor.exact().copy()
    large = np.flatnonzero(np.abs(values) >= np.sqrt(np.mean(np.square(values))))
    if not large.size or not values.any():
        return None
    values.reshape(-1)[rng.choice(large)] *= 1.01
    return values


def _rows(tensor: Tensor, rng: np.random.Generator) -> Array | None:
    """Two neighbouring rows exchanged, along the axis of the last step's channels."""
    if not tensor.shape:
        return None
    axes = [axis for step in tensor.steps if step.scale.ndim == len(tensor.shape) for axis in _varying(step.scale)]
    axis = axes[-1] if axes else 0
    values, size = tensor.exact(), tensor.shape[axis]
    for first in rng.permutation(max(size - 1, 0))[:_TRIES]:
        order = np.arange(size)
        order[[first, first + 1]] = first + 1, first
        one, two = (np.take(values, int(i), axis) for i in (first, first + 1))
        if _beyond(one, two, roundoff(tensor.data_type)):
            return np.take(values, order, axis)
    return None


def _varying(array: Array) -> list[int]:
    return [axis for axis, size in enumerate(array.shape) if size > 1]


def _through_half(tensor: Tensor, rng: np.random.Generator) -> Array | None:
    """float32 weights that went through float16; those beyond its range stay."""
    if tensor.data_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
        return None
    values = tensor.exact()
    with np.errstate(over="ignore", under="ignore"):
        half = values.astype(np.float16).astype(np.float64)
    return np.where(np.isfinite(half), half, values)


def _rolled(a: Affine) -> Affine:
    axes = _varying(a.scale)
    return affine(np.roll(a.scale, 1, axes[0]), a.shift) if axes else a


FAULTS: Mapping[str, Callable[[FoldResult, np.random.Generator], _Made]] = {
    "ε taken as 0": _of_norms(lambda n: _Norm(n.gamma, n.beta, n.mean, n.var, 0.0).map(), {}),
    "β dropped": _of_norms(
        lambda n: _Norm(n.gamma, np.zeros_like(n.beta), n.mean, n.var, n.epsilon).map(),
        {"Add": Affine.only_scale},
    ),
    "sign of μ": _of_norms(
        lambda n: _Norm(n.gamma, n.beta, -n.mean, n.var, n.epsilon).map(),
        {"Sub": lambda a: affine(a.scale, -a.shift)},
    ),
    "γ of the neighbour": _of_norms(
        lambda n: _Norm(np.roll(n.gamma, 1, 0), n.beta, n.mean, n.var, n.epsilon).map(),
        {"Mul": _rolled, "Div": _rolled},
    ),
    "scale on another axis": _of_tensors(_other_axis),
    "bias missing": _of_tensors(_no_shift),
    "one weight off by 1 %": _of_tensors(_one_weight),
    "rows exchanged": _of_tensors(_rows),
    "rounded to half": _of_tensors(_through_half),
}
