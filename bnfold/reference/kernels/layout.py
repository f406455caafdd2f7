"""Ops that move elements without computing any: Reshape, Flatten, Concat, Pad and their like.

Where a later opset turned an attribute into an input, both are read here.
"""

import math
from typing import Any

import numpy as np

from bnfold.reference.node import Array, Kernel, Node


def reshape(node: Node, x: Array, shape: Array | None = None) -> tuple[Array]:
    """0 copies the input's size unless allowzero; -1 is what remains."""
    wanted = [int(n) for n in (node["shape"] if shape is None else shape.reshape(-1))]
    if not node.get("allowzero"):
        wanted = [x.shape[i] if n == 0 else n for i, n in enumerate(wanted)]
    if -1 in wanted and x.size == 0:
        rest = math.prod(n for n in wanted if n != -1)
        wanted = [(0 if rest == 0 else x.size // rest) if n == -1 else n for n in wanted]
    return (x.reshape(wanted),)


def flatten(node: Node, x: Array) -> tuple[Array]:
    axis = node["axis"] + x.ndim if node["axis"] < 0 else node["axis"]
    return (x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:])),)


def transpose(node: Node, x: Array) -> tuple[Array]:
    return (np.transpose(x, node.get("perm")),)


def _listed(node: Node, attribute: str, given: Array | None) -> list[int] | None:
    return node.get(attribute) if given is None else [int(n) for n in given.reshape(-1)]


def squeeze(node: Node, x: Array, axes: Array | None = None) -> tuple[Array]:
    listed = _listed(node, "axes", axes)
    return (x.squeeze() if listed is None else x.squeeze(tuple(listed)),)


def unsqueeze(node: Node, x: Array, axes: Array | None = None) -> tuple[Array]:
    return (np.expand_dims(x, tuple(_listed(node, "axes", axes) or ())),)


def concat(node: Node, *inputs: Array) -> tuple[Array]:
    """Opset 1 has a default axis of 1."""
    return (np.concatenate(inputs, axis=node.get("axis", 1)),)


def expand(_: Node, x: Array, shape: Array) -> tuple[Array]:
    """Broadcasting works both ways: a size of 1 in `shape` keeps the input's."""
    return (np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(int(n) for n in shape))),)


def tile(_: Node, x: Array, repeats: Array, axis: Array | None = None) -> tuple[Array]:
    """Opset 1 has a number of tiles and an axis instead of the repeats of every axis."""
    if axis is None:
        return (np.tile(x, [int(n) for n in repeats]),)
    times = [1] * x.ndim
    times[int(axis.reshape(-1)[0])] = int(repeats.reshape(-1)[0])
    return (np.tile(x, times),)


def slice_(
    node: Node,
    x: Array,
    starts: Array | None = None,
    ends: Array | None = None,
    axes: Array | None = None,
    steps: Array | None = None,
) -> tuple[Array]:
    first, last = _listed(node, "starts", starts) or [], _listed(node, "ends", ends) or []
    along = _listed(node, "axes", axes) or list(range(len(first)))
    by = _listed(node, "steps", steps) or [1] * len(first)
    index: list[Any] = [slice(None)] * x.ndim
    for axis, start, end, step in zip(along, first, last, by, strict=True):
        n = x.shape[axis]
        if step > 0:
            index[axis] = slice(start, end, step)
        else:
            begin = min(max(start + n, 0) if start < 0 else start, n - 1)
            stop = max(end + n, -1) if end < 0 else min(end, n)
            index[axis] = slice(begin, None if stop < 0 else stop, step) if begin >= 0 else slice(0, 0)
    return (x[tuple(index)],)


def split(node: Node, x: Array, sizes: Array | None = None) -> tuple[Array, ...]:
    """Without sizes into equal parts; with num_outputs the last may be smaller."""
    listed, axis = _listed(node, "split", sizes), node["axis"]
    if listed is None:
        parts = node.get("num_outputs") or len(node.outputs)
        each = -(-x.shape[axis] // parts)
        listed = [each] * (parts - 1) + [x.shape[axis] - each * (parts - 1)]
    if sum(listed) != x.shape[axis]:
        raise ValueError(f"the parts {listed} do not make up an axis of {x.shape[axis]}")
    return tuple(np.split(x, np.cumsum(listed)[:-1], axis=axis))


def shape(node: Node, x: Array) -> tuple[Array]:
    return (np.array(x.shape[node.get("start", 0) : node.get("end")], dtype=np.int64),)


def size(_: Node, x: Array) -> tuple[Array]:
    return (np.array(x.size, dtype=np.int64),)


def gather(node: Node, x: Array, indices: Array) -> tuple[Array]:
    return (np.asarray(np.take(x, indices, axis=node["axis"])),)


def scatter(node: Node, x: Array, indices: Array, updates: Array) -> tuple[Array]:
    """The name of ScatterElements before opset 11."""
    axis = node["axis"] % x.ndim
    y = x.copy()
    np.put_along_axis(y, np.where(indices < 0, indices + x.shape[axis], indices), updates, axis)
    return (y,)


def depth_to_space(node: Node, x: Array) -> tuple[Array]:
    n, c, h, w = x.shape
    b = node["blocksize"]
    if node.get("mode", "DCR") == "DCR":
        y = x.reshape(n, b, b, c // b**2, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, c // b**2, b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    return (y.reshape(n, c // b**2, h * b, w * b),)


def space_to_depth(node: Node, x: Array) -> tuple[Array]:
    n, c, h, w = x.shape
    b = node["blocksize"]
    y = x.reshape(n, c, h // b, b, w // b, b)
    y = y.transpose(0, 1, 3, 5, 2, 4) if node.get("mode", "DCR") == "CRD" else y.transpose(0, 3, 5, 1, 2, 4)
    return (y.reshape(n, c * b**2, h // b, w // b),)


def pad(
    node: Node, x: Array, pads: Array | None = None, value: Array | None = None, axes: Array | None = None
) -> tuple[Array]:
    """Negative pads cut first. The modes: constant, edge, reflect (the border is not repeated), wrap."""
    amounts = _listed(node, "paddings" if node.since == 1 else "pads", pads) or []
    along = [int(a) % x.ndim for a in axes.reshape(-1)] if axes is not None else list(range(x.ndim))
    half = len(amounts) // 2
    widths = [(0, 0)] * x.ndim
    for i, axis in enumerate(along):
        widths[axis] = (amounts[i], amounts[half + i])
    x = x[tuple(slice(max(-b, 0), n - max(-e, 0)) for (b, e), n in zip(widths, x.shape, strict=True))]
    added = [(max(b, 0), max(e, 0)) for b, e in widths]
    mode = node["mode"]
    if mode == "constant":
        fill = node.get("value", 0) if value is None else value.reshape(-1)[0]
        return (np.pad(x, added, mode="constant", constant_values=fill),)
    if mode not in ("edge", "reflect", "wrap"):
        raise ValueError(f"the padding mode {mode!r} is unknown")
    return (np.pad(x, added, mode=mode),)


KERNELS: dict[str, Kernel] = {
    "Reshape": reshape,
    "Flatten": flatten,
    "Transpose": transpose,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Concat": concat,
    "Expand": expand,
    "Tile": tile,
    "Slice": slice_,
    "Split": split,
    "Shape": shape,
    "Size": size,
    "Gather": gather,
    "Scatter": scatter,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "Pad": pad,
}
