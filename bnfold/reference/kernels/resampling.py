"""Resize and Upsample, one axis at a time: an output position x reads the input at x_original, by a kernel of weights.

An axis is one matrix [out, in]; nearest selects. Sizes and nearest's positions are computed in float32, as
providers do, because there a rounding decides which element is read.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnfold.reference.node import Array, Kernel, Node


@dataclass(frozen=True, slots=True)
class _Axis:
    index: int
    size: int
    out: int
    scale: float
    start: float = 0.0  # the region of interest, as shares of the axis
    end: float = 1.0


def _positions(mode: str, axis: _Axis, real: Any) -> Array:
    """x_original of every output position."""
    x = np.arange(axis.out, dtype=real)
    scale, n, out = real(axis.scale), axis.size, axis.out
    match mode:
        case "half_pixel":
            return (x + real(0.5)) / scale - real(0.5)
        case "half_pixel_symmetric":
            adjustment = real(out) / (scale * real(n))
            offset = real(n) / real(2) * (real(1) - adjustment)
            return offset + (x + real(0.5)) / scale - real(0.5)
        case "pytorch_half_pixel":
            return (x + real(0.5)) / scale - real(0.5) if out > 1 else np.zeros(out, dtype=real)
        case "align_corners":
            return x * real(n - 1) / real(out - 1) if out > 1 else np.zeros(out, dtype=real)
        case "asymmetric":
            return x / scale
        case "tf_half_pixel_for_nn":
            return (x + real(0.5)) / scale
        case "tf_crop_and_resize":
            start, end = real(axis.start), real(axis.end)
            if out > 1:
                return start * real(n - 1) + x * (end - start) * real(n - 1) / real(out - 1)
            return np.full(out, real(0.5) * (start + end) * real(n - 1), dtype=real)
        case _:
            raise ValueError(f"the coordinate transformation {mode!r} is unknown")


def _nearest(x: Array, rounding: str, upsampling: bool) -> Array:
    match rounding:
        case "round_prefer_floor":
            chosen = np.ceil(x - x.dtype.type(0.5))
        case "round_prefer_ceil":
            chosen = np.floor(x + x.dtype.type(0.5))
        case "floor":
            chosen = np.floor(x)
        case "ceil":
            chosen = np.ceil(x)
        case "simple":  # before opset 11
            chosen = np.floor(x) if upsampling else np.ceil(x)
        case _:
            raise ValueError(f"the nearest mode {rounding!r} is unknown")
    return chosen.astype(np.int64)


def _cubic(distance: Array, a: float) -> Array:
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


def _matrix(axis: _Axis, x: Array, mode: str, a: float, antialias: bool, exclude_outside: bool) -> Array:
    """[out, in]: the weights of linear or cubic interpolation; outside the axis the border is repeated."""
    support = 1 if mode == "linear" else 2
    stretch = min(axis.scale, 1.0) if antialias else 1.0
    reach = math.ceil(support / stretch)
    taps = np.floor(x).astype(np.int64)[:, None] + np.arange(-reach, reach + 2)
    distance = (taps - x[:, None]) * stretch
    weights = np.maximum(1 - np.abs(distance), 0) if mode == "linear" else _cubic(distance, a)
    if antialias or exclude_outside:
        if exclude_outside:
            weights = np.where((taps < 0) | (taps >= axis.size), 0, weights)
        weights = weights / weights.sum(axis=1, keepdims=True)
    matrix = np.zeros((axis.out, axis.size))
    rows = np.broadcast_to(np.arange(axis.out)[:, None], taps.shape)
    np.add.at(matrix, (rows, np.clip(taps, 0, axis.size - 1)), weights)
    return matrix


def _resized(node: Node, x: Array, axes: Sequence[_Axis], transformation: str, rounding: str) -> Array:
    mode = node["mode"]
    outside = np.zeros((), dtype=bool)
    crop = transformation == "tf_crop_and_resize"
    for axis in axes:
        if axis.size == axis.out and axis.scale == 1 and not crop:
            continue
        exact = _positions(transformation, axis, np.float64)
        if crop:
            beyond = (exact < 0) | (exact > axis.size - 1)
            outside = outside | beyond.reshape(-1, *[1] * (x.ndim - axis.index - 1))
        if mode == "nearest":
            positions = _positions(transformation, axis, np.float32)
            x = np.take(x, np.clip(_nearest(positions, rounding, axis.scale > 1), 0, axis.size - 1), axis=axis.index)
            continue
        if mode not in ("linear", "bilinear", "cubic"):
            raise ValueError(f"the mode {mode!r} is unknown")
        matrix = _matrix(
            axis,
            exact if mode == "cubic" or node.get("antialias") else np.clip(exact, 0, axis.size - 1),
            "cubic" if mode == "cubic" else "linear",
            node.get("cubic_coeff_a", -0.75),
            bool(node.get("antialias")),
            bool(node.get("exclude_outside")),
        )
        kind = x.dtype if np.issubdtype(x.dtype, np.floating) else np.dtype(np.float64)
        x = np.moveaxis(np.tensordot(matrix.astype(kind), x.astype(kind, copy=False), (1, axis.index)), 0, axis.index)
    return np.where(outside, x.dtype.type(node.get("extrapolation_value", 0)), x) if outside.any() else x


def _out(scale: float, size: int) -> int:
    return int(np.float32(scale) * np.float32(size))


def upsample(node: Node, x: Array, scales: Array | None = None) -> tuple[Array]:
    """Upsample (to opset 9) and Resize of opset 10: asymmetric, nearest rounds down (up where it shrinks)."""
    if scales is not None:
        factors = [float(s) for s in scales]
    elif node.since >= 7:
        factors = list(node["scales"])
    else:
        factors = [1.0, 1.0, node["height_scale"], node["width_scale"]]
    axes = [_Axis(i, n, _out(f, n), f) for i, (n, f) in enumerate(zip(x.shape, factors, strict=True))]
    return (_resized(node, x, axes, "asymmetric", "simple").astype(x.dtype, copy=False),)


def resize(
    node: Node, x: Array, roi: Array | None = None, scales: Array | None = None, sizes: Array | None = None
) -> tuple[Array]:
    if node.since == 10:
        return upsample(node, x, roi)  # its second input is the scales
    listed = [int(a) % x.ndim for a in node.get("axes") or range(x.ndim)]
    if sizes is not None and sizes.size:
        factors, outs = _stretched(node, [x.shape[a] for a in listed], [int(n) for n in sizes])
    elif scales is not None and scales.size:
        factors = [float(s) for s in scales]
        outs = [_out(f, x.shape[a]) for a, f in zip(listed, factors, strict=True)]
    else:
        raise ValueError("it has neither scales nor sizes")
    region = [0.0] * len(listed) + [1.0] * len(listed)
    if roi is not None and roi.size:
        region = [float(v) for v in roi]
    axes = [
        _Axis(a, x.shape[a], out, factor, region[i], region[len(listed) + i])
        for i, (a, out, factor) in enumerate(zip(listed, outs, factors, strict=True))
    ]
    y = _resized(node, x, axes, node["coordinate_transformation_mode"], node["nearest_mode"])
    if np.issubdtype(x.dtype, np.integer) and y.dtype != x.dtype:
        limits = np.iinfo(x.dtype)
        y = np.clip(np.trunc(y), limits.min, limits.max)
    return (y.astype(x.dtype, copy=False),)


def _stretched(node: Node, sizes: Sequence[int], wanted: Sequence[int]) -> tuple[list[float], list[int]]:
    """The scales and sizes under keep_aspect_ratio_policy."""
    policy = node.get("keep_aspect_ratio_policy", "stretch")
    factors = [out / n for out, n in zip(wanted, sizes, strict=True)]
    if policy == "stretch":
        return factors, list(wanted)
    scale = min(factors) if policy == "not_larger" else max(factors)
    return [scale] * len(factors), [math.floor(scale * n + 0.5) for n in sizes]


KERNELS: dict[str, Kernel] = {"Resize": resize, "Upsample": upsample}
