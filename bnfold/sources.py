"""Sources: the affine nodes of a graph, read as `Affine`.

BatchNormalization (inference)   scale = gamma / sqrt(var + epsilon),  shift = beta - scale * mean
x*c, x/c, x+c, x-c, c-x          with a floating constant c that provably broadcasts into x
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .affine import Affine, Array, affine, channel
from .errors import MalformedModel
from .reasons import Reason, Refusal

if TYPE_CHECKING:
    from .graph import Graph, Node

ARITHMETIC = frozenset(("Mul", "Div", "Add", "Sub"))
_NO_BIAS = frozenset(("MatMul", "Einsum"))
EPSILON = float(np.float32(1e-5))  # the default, an attribute of float32 as any other epsilon is
_NOISE = 16.0  # how much worse conditioned an inverse may leave a value than the original was


class Source(NamedTuple):
    """y = affine(x): `node`'s input `slot` is x, its output 0 is y. `inverse()`: why nobody may undo it, or None."""

    node: Node
    slot: int
    affine: Affine
    inverse: Callable[[], Refusal | None]
    warning: str | None = None

    @property
    def is_batch_normalization(self) -> bool:
        return self.node.op_type == "BatchNormalization"


def is_source(graph: Graph, node: Node) -> bool:
    """Whether the node is a BatchNormalization or arithmetic with a constant: it will be folded or reported."""
    if node.domain or not node.outputs or graph.is_constant(node.outputs[0]):
        return False
    if node.op_type == "BatchNormalization":
        return True
    return node.op_type in ARITHMETIC and arithmetic(graph, node) is not None


def read(graph: Graph, node: Node) -> Source | Refusal:
    """The source at `node` (for which `is_source` holds), with the weights as they are now."""
    if node.op_type == "BatchNormalization":
        return batch_normalization(graph, node)
    return arithmetic(graph, node) or Refusal(Reason.NOT_CONSTANT, node.at, "Its constant is gone.")


def batch_normalization(graph: Graph, node: Node) -> Source | Refusal:
    """The affine map of a BatchNormalization, every opset; refused in training mode and on unusable statistics."""
    training = training_mode(graph, node)
    if training is not None:
        return Refusal(Reason.TRAINING_MODE, node.at, training)
    if len(node.inputs) < 5 or not all(node.inputs[:5]):
        raise MalformedModel(f"{node.at}: a BatchNormalization has five inputs, X, scale, B, mean and var.")
    parameters: list[Array] = []
    for name, role in zip(node.inputs[1:5], ("scale", "bias", "running_mean", "running_var"), strict=True):
        tensor = graph.constant(name)
        if tensor is None:
            if name in graph.overridable:
                return Refusal(
                    Reason.OVERRIDABLE, name, f"Its {role} {name} is also a graph input: the caller may replace it."
                )
            return Refusal(Reason.NOT_CONSTANT, name, f"Its {role} {name} is computed at run time.")
        parameters.append(tensor.exact())
    sizes = {p.shape for p in parameters}
    spatial = graph.opset("") >= 9 or bool(node.attribute("spatial", 1))
    if len(sizes) != 1 or (spatial and parameters[0].ndim != 1):
        shapes = ", ".join(str(list(p.shape)) for p in parameters)
        raise MalformedModel(f"The parameters of {node.at} have different or impossible shapes: {shapes}.")
    gamma, beta, mean, var = parameters
    if not gamma.size:
        return Refusal(Reason.MALFORMED, node.at, "It has no channels.")
    epsilon = float(node.attribute("epsilon", EPSILON))
    with np.errstate(all="ignore"):
        deviation = np.sqrt(var + epsilon)
        scale = gamma / deviation
        shift = beta - scale * mean
        # a sum is finite only if all its terms are
        sound = math.isfinite(float((scale + shift + deviation).sum())) and bool(deviation.all())
    if not sound:
        bad = ~np.isfinite(gamma) | ~np.isfinite(beta) | ~np.isfinite(mean) | ~np.isfinite(var) | ~(var + epsilon > 0)
        if bad.any():
            return Refusal(Reason.BAD_STATISTICS, node.at, _bad_channels(bad.reshape(-1), parameters, epsilon))
        if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
            return Refusal(Reason.OUT_OF_RANGE, node.at, "Its scale or shift is beyond float64.")
    rank = graph.shapes.rank(node.inputs[0])
    if rank is None:
        return Refusal(Reason.UNKNOWN_SHAPE, node.inputs[0], f"The rank of {node.inputs[0]} is not known.")
    count = gamma.size if spatial else gamma.shape[0]
    misfit = _channel_misfit(graph, node, rank, count)
    if misfit is not None:
        return misfit
    if spatial:
        a = channel(scale, shift, rank, 1) if rank > 1 else affine(scale, shift) if gamma.size == 1 else None
    else:
        a = affine(scale[None], shift[None]) if gamma.ndim == rank - 1 else None
    if a is None:
        return Refusal(Reason.MALFORMED, node.at, f"Its parameters do not fit a value of rank {rank}.")

    def inverse() -> Refusal | None:
        # Undoing the map costs the reader u*(|beta| + spread)/|scale| where the original had u*(|mean| + spread).
        with np.errstate(divide="ignore", invalid="ignore"):
            spread = np.sqrt(np.maximum(var, 0.0))
            noise = (np.abs(beta) / np.abs(scale) + 3 * deviation) / (np.abs(mean) + 3 * spread)
        weak = ~(noise <= _NOISE)
        if not weak.any():
            return None
        where = _list(weak.reshape(-1))
        return Refusal(
            Reason.ZERO_SCALE, node.at, f"Other readers would need its inverse, but gamma is (nearly) 0 in {where}."
        )

    negative = float(var.min()) < 0
    warning = f"{node.at}: the variance is negative in {_list((var < 0).reshape(-1))}." if negative else None
    return Source(node, 0, a, inverse, warning)


def _channel_misfit(graph: Graph, node: Node, rank: int, count: int) -> Refusal | None:
    shape = graph.shapes.quick(node.inputs[0])
    channels = shape[1] if shape is not None and rank > 1 else 1
    if isinstance(channels, int) and channels != count:
        made = graph.producer(node.inputs[0])
        weight = graph.shape(made[0].inputs[1]) if made is not None and made[0].op_type == "Conv" else None
        text = f"{count} channels of parameters for a value with {channels} channels."
        if weight is not None and weight[0] == channels:
            raise MalformedModel(f"{node.at} has {text}")
        # elsewhere it may be the declared shape that is wrong: this one stays, the others can fold
        return Refusal(Reason.MALFORMED, node.at, f"It has {text}")
    return None


def training_mode(graph: Graph, node: Node) -> str | None:
    """Why the BatchNormalization is one in training mode, or None."""
    opset = graph.opset("")
    if opset >= 14:
        if node.attribute("training_mode", 0):
            return "It is in training mode: it normalizes by the statistics of each batch."
    elif opset < 7 and not node.attribute("is_test", 0):
        return "It is in training mode (is_test is 0): it normalizes by the statistics of each batch."
    if any(node.outputs[1:]):
        return "It updates its running statistics (it has more than one output): training mode."
    return None


def _bad_channels(bad: NDArray[np.bool_], parameters: list[Array], epsilon: float) -> str:
    channel_ = int(np.argmax(bad))
    names = ("scale", "bias", "running_mean", "running_var")
    for name, values in zip(names, parameters, strict=True):
        value = float(values.reshape(-1)[channel_])
        if not np.isfinite(value):
            return f"Its {name} is {value} in {_list(bad)}."
    value = float(parameters[3].reshape(-1)[channel_])
    return f"Its running_var + epsilon is {value + epsilon:.3g}, not above 0, in {_list(bad)}."


def _list(mask: NDArray[np.bool_]) -> str:
    where = np.flatnonzero(mask)
    text = ", ".join(str(i) for i in where[:8]) + (", ..." if len(where) > 8 else "")
    return f"channel {text}" if len(where) == 1 else f"{len(where)} channels ({text})"


def arithmetic(graph: Graph, node: Node) -> Source | None:
    """Mul, Div, Add or Sub of a value with a floating constant that broadcasts into it; else None."""
    if node.op_type not in ARITHMETIC or len(node.inputs) != 2:
        return None
    first, second = (graph.is_constant(i) for i in node.inputs)
    if first == second or (first and node.op_type == "Div"):
        return None
    slot = 1 if first else 0
    constant = graph.constant(node.inputs[1 - slot])
    if constant is None or not constant.is_float or not constant.size:
        return None
    if constant.size > 1 or len(constant.shape) > 0:
        c = aligned(graph, node, slot, constant.exact())
        if c is None:
            return None
    else:
        c = constant.exact()
    if not np.isfinite(c).all():
        return None
    match node.op_type:
        case "Mul":
            a = affine(c)
        case "Div":
            if not c.all():
                return None
            a = affine(1.0 / c)
        case "Add":
            a = affine(1.0, c)
        case _:
            a = affine(1.0, -c) if slot == 0 else affine(-1.0, c)
    if a.is_pure_shift and _is_bias(graph, node.inputs[slot]):
        return None

    def inverse() -> Refusal | None:
        size = np.abs(a.scale)
        if size.min() > 1e-3 * size.max() and np.abs(a.shift).max() <= _NOISE * size.max():
            return None
        return Refusal(Reason.ZERO_SCALE, node.at, "Other readers would need its inverse, which is ill-conditioned.")

    return Source(node, slot, a, inverse)


def _is_bias(graph: Graph, value: str) -> bool:
    # The minimal way to write a bias for an op that has none: nothing to fold.
    made = graph.producer(value)
    return made is not None and made[0].domain == "" and made[0].op_type in _NO_BIAS


def aligned(graph: Graph, node: Node, slot: int, c: Array) -> Array | None:
    """The constant in the layout of the value at `slot`; None unless it provably broadcasts *into* that value.

    A constant's alignment decides, not its length: [6] on a 6-wide output is a width vector. Before opset 7 the
    attributes `broadcast` and `axis` say where the constant stands.
    """
    shape = graph.shape(node.inputs[slot])
    if shape is None:
        return None
    rank = len(shape)
    if graph.opset("") < 7 and node.attribute("broadcast", 0) and slot == 0:
        axis = node.attribute("axis", None)
        if axis is not None and c.ndim:
            trailing = rank - (axis % rank) - c.ndim
            if trailing < 0:
                return None
            c = c.reshape(c.shape + (1,) * trailing)
    elif graph.opset("") < 7 and c.ndim != rank:
        return None
    if c.ndim > rank:
        return None
    full = c.reshape((1,) * (rank - c.ndim) + c.shape)
    fits = all(size == 1 or size == d for size, d in zip(full.shape, shape, strict=True))
    return full if fits else None
