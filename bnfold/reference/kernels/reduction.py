"""Reductions over axes, and the softmax family, which before opset 13 acts on the input made two-dimensional.

`axes` is an attribute or, from opset 13 or 18, an input; none means all, or with noop_with_empty_axes no axis.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from bnfold.reference.node import Array, Kernel, Node, highest, lowest

Reducer = Callable[[Array, tuple[int, ...], bool], Any]


def _axes(node: Node, x: Array, given: Array | None) -> tuple[int, ...]:
    listed = node.get("axes") if given is None else given.reshape(-1).tolist()
    if not listed:
        return () if node.get("noop_with_empty_axes") else tuple(range(x.ndim))
    return tuple(int(axis) % x.ndim for axis in listed)


def _reduction(reduce: Reducer) -> Kernel:
    def kernel(node: Node, x: Array, axes: Array | None = None) -> tuple[Array]:
        y = np.asarray(reduce(x, _axes(node, x, axes), bool(node.get("keepdims", 1))))
        return (y.astype(x.dtype, copy=False),)

    return kernel


def _log_sum_exp(x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    top = x.max(axis=axes, keepdims=True, initial=lowest(x.dtype))
    top = np.where(np.isfinite(top), top, 0)
    total = np.log(np.exp(x - top).sum(axis=axes, keepdims=True)) + top
    return total if keepdims else total.squeeze(axes)


_REDUCERS: dict[str, Reducer] = {
    "ReduceSum": lambda x, axes, keep: x.sum(axis=axes, keepdims=keep),
    "ReduceMean": lambda x, axes, keep: x.mean(axis=axes, keepdims=keep),
    "ReduceProd": lambda x, axes, keep: x.prod(axis=axes, keepdims=keep),
    "ReduceMax": lambda x, axes, keep: x.max(axis=axes, keepdims=keep, initial=lowest(x.dtype)),
    "ReduceMin": lambda x, axes, keep: x.min(axis=axes, keepdims=keep, initial=highest(x.dtype)),
    "ReduceL1": lambda x, axes, keep: np.abs(x).sum(axis=axes, keepdims=keep),
    "ReduceL2": lambda x, axes, keep: np.sqrt(np.square(x).sum(axis=axes, keepdims=keep)),
    "ReduceSumSquare": lambda x, axes, keep: np.square(x).sum(axis=axes, keepdims=keep),
    "ReduceLogSum": lambda x, axes, keep: np.log(x.sum(axis=axes, keepdims=keep)),
    "ReduceLogSumExp": _log_sum_exp,
}


def _softmax_axes(node: Node, x: Array) -> tuple[int, ...]:
    axis = node["axis"] % x.ndim if x.ndim else 0
    return (axis,) if node.since >= 13 else tuple(range(axis, x.ndim))


def softmax(node: Node, x: Array) -> tuple[Array]:
    axes = _softmax_axes(node, x)
    e = np.exp(x - x.max(axis=axes, keepdims=True))
    return (e / e.sum(axis=axes, keepdims=True),)


def log_softmax(node: Node, x: Array) -> tuple[Array]:
    axes = _softmax_axes(node, x)
    centred = x - x.max(axis=axes, keepdims=True)
    return (centred - np.log(np.exp(centred).sum(axis=axes, keepdims=True)),)


def hardmax(node: Node, x: Array) -> tuple[Array]:
    """One at the first largest element, zero elsewhere."""
    axes = _softmax_axes(node, x)
    if len(axes) == 1:
        first = np.expand_dims(x.argmax(axis=axes[0]), axes[0])
        y = np.zeros_like(x)
        np.put_along_axis(y, first, 1, axis=axes[0])
        return (y,)
    rows = x.reshape(int(np.prod(x.shape[: axes[0]])), -1)
    flat = np.zeros_like(rows)
    flat[np.arange(len(rows)), rows.argmax(axis=1)] = 1
    return (flat.reshape(x.shape),)


def _arg(pick: Callable[..., Any]) -> Kernel:
    def kernel(node: Node, x: Array) -> tuple[Array]:
        axis = node["axis"] % x.ndim
        if node.get("select_last_index"):
            found = x.shape[axis] - 1 - pick(np.flip(x, axis), axis=axis)
        else:
            found = pick(x, axis=axis)
        found = np.asarray(found, dtype=np.int64)
        return (np.expand_dims(found, axis) if node.get("keepdims", 1) else found,)

    return kernel


def cum_sum(node: Node, x: Array, axis: Array) -> tuple[Array]:
    along = int(np.asarray(axis).reshape(-1)[0])
    flipped = np.flip(x, along) if node["reverse"] else x
    y = np.cumsum(flipped, axis=along, dtype=x.dtype)
    if node["exclusive"]:
        y = y - flipped if np.issubdtype(x.dtype, np.integer) else _shifted(y, along)
    return (np.flip(y, along) if node["reverse"] else y,)


def _shifted(y: Array, axis: int) -> Array:
    moved = np.roll(y, 1, axis)
    first: list[Any] = [slice(None)] * y.ndim
    first[axis] = 0
    moved[tuple(first)] = 0
    return moved


KERNELS: dict[str, Kernel] = {
    **{name: _reduction(reduce) for name, reduce in _REDUCERS.items()},
    "Softmax": softmax,
    "LogSoftmax": log_softmax,
    "Hardmax": hardmax,
    "ArgMax": _arg(np.argmax),
    "ArgMin": _arg(np.argmin),
    "CumSum": cum_sum,
}
