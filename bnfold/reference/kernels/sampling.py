"""Values taken between the elements: GridSample, RoiAlign and DeformConv; and put back together: Col2Im, MaxUnpool.

linear   Σ over the 2ⁿ corners of Π (1 − |distance|)        cubic   Keys' kernel with a = −3/4 over 4ⁿ
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from bnfold.reference.node import Array, Kernel, Node

_A = -0.75


def _keys(t: Array) -> Array:
    t = np.abs(t)
    near = ((_A + 2) * t - (_A + 3)) * t * t + 1
    return np.where(t <= 1, near, (((t - 5) * t + 8) * t - 4) * _A)


def _reflected(index: Array, low: float, high: float) -> Array:
    """Thrown back and forth between the walls `low` and `high`."""
    span = high - low
    if span == 0:
        return np.zeros_like(index)
    over = np.mod(index - low, 2 * span)
    return np.where(over > span, 2 * span - over, over) + low


def _interpolated(x: Array, places: Sequence[Array], mode: str, padding: str, align: bool) -> Array:
    """x [C, *spatial] at fractional places, one array for each spatial axis: [C, *shape of the places]."""
    if mode == "nearest":
        anchors, reach = [np.rint(p) for p in places], range(1)
    elif mode in ("linear", "bilinear"):
        anchors, reach = [np.floor(p) for p in places], range(2)
    else:
        anchors, reach = [np.floor(p) - 1 for p in places], range(4)
    y = np.zeros((x.shape[0], *places[0].shape), dtype=x.dtype)
    for steps in itertools.product(reach, repeat=len(places)):
        weight: Array = np.ones(places[0].shape, dtype=x.dtype)
        indices: list[Array] = []
        for place, anchor, step, n in zip(places, anchors, steps, x.shape[1:], strict=True):
            at = anchor + step
            if len(reach) == 2:
                weight = weight * (1 - np.abs(place - at))
            elif len(reach) == 4:
                weight = weight * _keys(place - at)
            if padding == "reflection":
                at = _reflected(at, 0, n - 1) if align else _reflected(at, -0.5, n - 0.5)
            elif padding == "zeros":
                weight = weight * ((at >= 0) & (at < n))
            indices.append(np.clip(at, 0, n - 1).astype(np.int64))
        y += x[(slice(None), *indices)] * weight
    return y


def grid_sample(node: Node, x: Array, grid: Array) -> tuple[Array]:
    """x [N, C, *spatial], grid [N, *sizes, rank] with the last axis first, from −1 to 1 over x."""
    align = bool(node["align_corners"])
    rows: list[Array] = []
    for sample, where in zip(x, grid, strict=True):
        places: list[Array] = []
        for axis, n in enumerate(x.shape[2:]):
            g = where[..., x.ndim - 3 - axis]
            places.append((g + 1) / 2 * (n - 1) if align else ((g + 1) * n - 1) / 2)
        rows.append(_interpolated(sample, places, node["mode"], node["padding_mode"], align))
    return (np.stack(rows).astype(x.dtype, copy=False),)


def roi_align(node: Node, x: Array, rois: Array, batch: Array) -> tuple[Array]:
    """x [N, C, H, W], rois [R, 4] as x1, y1, x2, y2. Before opset 16 there is no half pixel, and a side is at least 1.

    `max` takes the largest weighted corner, not the largest interpolated value: so does ONNX Runtime.
    """
    height, width, ratio = node["output_height"], node["output_width"], node["sampling_ratio"]
    half = node.get("coordinate_transformation_mode", "output_half_pixel") == "half_pixel"
    y = np.zeros((len(rois), x.shape[1], height, width), dtype=x.dtype)
    for r, (roi, n) in enumerate(zip(rois, batch, strict=True)):
        left, top, right, bottom = roi * node["spatial_scale"] - (0.5 if half else 0.0)
        sides = [bottom - top, right - left]
        sides = sides if half else [max(side, 1.0) for side in sides]
        bins = [side / count for side, count in zip(sides, (height, width), strict=True)]
        samples = [ratio or max(math.ceil(size), 0) for size in bins]
        if not all(samples):
            continue
        places: list[Array] = []
        for begin, count, s, size in zip((top, left), (height, width), samples, bins, strict=True):
            within: Array = (np.arange(s, dtype=np.int64).reshape(1, -1) + 0.5) / s
            whole: Array = np.arange(count, dtype=np.int64).reshape(-1, 1)
            places.append(begin + (whole + within) * size)
        v, u = np.broadcast_arrays(places[0][:, None, :, None], places[1][None, :, None, :])
        corners = _corners(x[int(n)], v, u)
        if node["mode"] == "max":
            y[r] = np.max(corners, axis=0).max(axis=(-2, -1))
        else:
            y[r] = np.sum(corners, axis=0).mean(axis=(-2, -1))
    return (y,)


def _corners(x: Array, v: Array, u: Array) -> list[Array]:
    """The four weighted neighbours; what lies more than one element outside counts as zero."""
    height, width = x.shape[1:]
    inside = (v >= -1) & (v <= height) & (u >= -1) & (u <= width)
    v, u = np.clip(v, 0, height - 1), np.clip(u, 0, width - 1)
    top, left = np.floor(v).astype(np.int64), np.floor(u).astype(np.int64)
    bottom, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    down, across = v - top, u - left
    parts = (
        (top, left, (1 - down) * (1 - across)),
        (top, right, (1 - down) * across),
        (bottom, left, down * (1 - across)),
        (bottom, right, down * across),
    )
    return [x[:, i, j] * (weight * inside) for i, j, weight in parts]


def deform_conv(
    node: Node, x: Array, w: Array, offset: Array, b: Array | None = None, mask: Array | None = None
) -> tuple[Array]:
    """x [N, C, H, W], w [M, C/group, kh, kw], offset [N, groups·kh·kw·2, h, w], mask [N, groups·kh·kw, h, w]."""
    if x.ndim != 4:
        raise ValueError("only two spatial dimensions are evaluated")
    (kh, kw), (h, width) = w.shape[2:], offset.shape[2:]
    taps, groups, group = kh * kw, node["offset_group"], node["group"]
    pads, strides = node.get("pads") or [0] * 4, node.get("strides") or [1, 1]
    dilations = node.get("dilations") or [1, 1]
    moved = offset.reshape(len(x), groups, taps, 2, h, width)
    weights = (
        np.ones((len(x), groups, taps, h, width), x.dtype)
        if mask is None
        else mask.reshape(len(x), groups, taps, h, width)
    )
    y = np.empty((len(x), w.shape[0], h, width), dtype=x.dtype)
    each = x.shape[1] // groups
    for n, sample in enumerate(x):
        columns = np.empty((x.shape[1], taps, h, width), dtype=x.dtype)
        for g, t in np.ndindex(groups, taps):
            rows: Array = (
                np.arange(h, dtype=np.int64).reshape(-1, 1) * strides[0]
                - pads[0]
                + (t // kw) * dilations[0]
                + moved[n, g, t, 0]
            )
            cols: Array = (
                np.arange(width, dtype=np.int64).reshape(1, -1) * strides[1]
                - pads[1]
                + (t % kw) * dilations[1]
                + moved[n, g, t, 1]
            )
            part = sample[g * each : (g + 1) * each]
            columns[g * each : (g + 1) * each, t] = (
                _interpolated(part, [rows, cols], "linear", "zeros", True) * weights[n, g, t]
            )
        matrix = w.reshape(group, w.shape[0] // group, -1)
        y[n] = (matrix @ columns.reshape(group, -1, h * width)).reshape(w.shape[0], h, width)
    return (y if b is None else y + b.reshape(-1, 1, 1),)


def col2im(node: Node, x: Array, image: Array, block: Array) -> tuple[Array]:
    """x [N, C·Πblock, L] added back into [N, C, *image]."""
    sizes, kernel = [int(n) for n in image], [int(n) for n in block]
    rank = len(sizes)
    pads, strides = node.get("pads") or [0] * (2 * rank), node.get("strides") or [1] * rank
    dilations = node.get("dilations") or [1] * rank
    padded = [n + b + e for n, b, e in zip(sizes, pads[:rank], pads[rank:], strict=True)]
    counts = [(n - d * (k - 1) - 1) // s + 1 for n, d, k, s in zip(padded, dilations, kernel, strides, strict=True)]
    parts = x.reshape(x.shape[0], -1, math.prod(kernel), *counts)
    y = np.zeros((x.shape[0], parts.shape[1], *padded), dtype=x.dtype)
    for index, tap in enumerate(np.ndindex(*kernel)):
        at = tuple(
            slice(t * d, t * d + (n - 1) * s + 1, s) for t, d, s, n in zip(tap, dilations, strides, counts, strict=True)
        )
        y[(slice(None), slice(None), *at)] += parts[:, :, index]
    return (y[(slice(None), slice(None), *(slice(b, b + n) for b, n in zip(pads[:rank], sizes, strict=True)))],)


def max_unpool(node: Node, x: Array, indices: Array, shape: Array | None = None) -> tuple[Array]:
    """The maxima put back where MaxPool found them, zeros elsewhere; indices count over the whole unpadded tensor."""
    kernel = node["kernel_shape"]
    rank = len(kernel)
    strides, pads = node.get("strides") or [1] * rank, node.get("pads") or [0] * (2 * rank)
    sizes = [
        (n - 1) * s - b - e + k
        for n, s, b, e, k in zip(x.shape[2:], strides, pads[:rank], pads[rank:], kernel, strict=True)
    ]
    natural = (*x.shape[:2], *sizes)
    y = np.zeros(math.prod(natural), dtype=x.dtype)
    y[indices.reshape(-1)] = x.reshape(-1)
    y = y.reshape(natural)
    if shape is None:
        return (y,)
    whole = np.zeros(tuple(int(n) for n in shape), dtype=x.dtype)
    whole[tuple(slice(0, n) for n in natural)] = y
    return (whole,)


KERNELS: dict[str, Kernel] = {
    "GridSample": grid_sample,
    "RoiAlign": roi_align,
    "DeformConv": deform_conv,
    "Col2Im": col2im,
    "MaxUnpool": max_unpool,
}
