"""Pools: the largest, the mean or the p-norm of each window, tap by tap over all windows at once.

The mean counts the padding only with count_include_pad; what ceil_mode reaches beyond the padding never counts.
"""

import math

import numpy as np

from bnfold.reference.kernels.windows import pad_spatial, windows
from bnfold.reference.node import Array, Kernel, Node, lowest


def max_pool(node: Node, x: Array) -> tuple[Array, ...]:
    """x [N, C, *]; Indices are linear in x, along the axes' order or, with storage_order 1, its reverse."""
    over = windows(node, x.shape[2:], node["kernel_shape"])
    padded = over.padded(x, lowest(x.dtype))
    y: Array | None = None
    if not node.wants(1):
        for tap in over.taps():
            here = padded[(..., *tap)]
            y = here.copy() if y is None else np.maximum(y, here, out=y)
        return (y,) if y is not None else ()
    spatial = x.shape[2:]
    steps = [
        math.prod(spatial[i + 1 :]) if not node.get("storage_order") else math.prod(spatial[:i])
        for i in range(len(spatial))
    ]
    grids = np.meshgrid(
        *[np.arange(n, dtype=np.int64) * step for n, step in zip(spatial, steps, strict=True)], indexing="ij"
    )
    end = [e + o for e, o in zip(over.end, over.overhang, strict=True)]
    places = pad_spatial(np.sum(grids, axis=0), over.begin, end, -1)
    where = np.empty((), dtype=np.int64)
    for tap in over.taps():
        here, place = padded[(..., *tap)], places[tap]
        if y is None:
            y, where = here.copy(), np.broadcast_to(place, here.shape).copy()
            continue
        better = (here > y) | ((where < 0) & (place >= 0))  # the first of equal values; never a place in the padding
        y = np.where(better, here, y)
        where = np.where(better, place, where)
    if y is None:
        return ()
    planes = np.arange(x.shape[0] * x.shape[1], dtype=np.int64).reshape(*x.shape[:2], *[1] * len(spatial))
    return y, where + planes * math.prod(spatial)


def average_pool(node: Node, x: Array) -> tuple[Array]:
    over = windows(node, x.shape[2:], node["kernel_shape"])
    padded = over.padded(x, 0)
    total = np.zeros((*x.shape[:2], *over.sizes), dtype=x.dtype)
    for tap in over.taps():
        total += padded[(..., *tap)]
    inside = np.ones(x.shape[2:], dtype=x.dtype)
    counted = pad_spatial(inside, over.begin, over.end, 1 if node.get("count_include_pad") else 0)
    counted = pad_spatial(counted, [0] * counted.ndim, over.overhang, 0)
    counts = np.zeros(over.sizes, dtype=x.dtype)
    for tap in over.taps():
        counts += counted[tap]
    return (total / np.where(counts == 0, 1, counts),)  # a window wholly in the padding: 0


def lp_pool(node: Node, x: Array) -> tuple[Array]:
    p = node.get("p", 2)
    over = windows(node, x.shape[2:], node["kernel_shape"])
    padded = np.abs(over.padded(x, 0)) ** p
    total = np.zeros((*x.shape[:2], *over.sizes), dtype=x.dtype)
    for tap in over.taps():
        total += padded[(..., *tap)]
    return (total ** (1.0 / p),)


def global_average_pool(_: Node, x: Array) -> tuple[Array]:
    return (x.mean(axis=tuple(range(2, x.ndim)), keepdims=True),)


def global_max_pool(_: Node, x: Array) -> tuple[Array]:
    return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


def global_lp_pool(node: Node, x: Array) -> tuple[Array]:
    p = node.get("p", 2)
    return ((np.abs(x) ** p).sum(axis=tuple(range(2, x.ndim)), keepdims=True) ** (1.0 / p),)


KERNELS: dict[str, Kernel] = {
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "LpPool": lp_pool,
    "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool,
    "GlobalLpPool": global_lp_pool,
}
