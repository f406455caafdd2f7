"""Conv and ConvTranspose with any group, in one to three (or more) spatial dimensions, as matrix products.

Conv            columns(x)[c·taps, p], then W[m, c·taps] @ columns
ConvTranspose   Wᵀ[m·taps, c] @ x[c, p], then each tap is added where it belongs
"""

import math
from collections.abc import Sequence

import numpy as np

from bnfold.reference.kernels.windows import Windows, pad_spatial, windows
from bnfold.reference.node import Array, Kernel, Node

_COLUMNS = 1 << 22  # elements of the column matrix at a time: it stays in the cache's neighbourhood


def conv(node: Node, x: Array, w: Array, b: Array | None = None) -> tuple[Array]:
    """x [N, C, *], w [M, C/group, *kernel], b [M]."""
    group, spatial = node["group"], x.shape[2:]
    kernel = w.shape[2:]
    declared = node.get("kernel_shape")
    if declared and tuple(declared) != kernel:
        raise ValueError(f"kernel_shape is {declared}, the weight's is {list(kernel)}")
    if w.shape[1] * group != x.shape[1] or w.shape[0] % group:
        raise ValueError(f"{group} groups of a weight {list(w.shape)} do not fit {x.shape[1]} channels")
    over = windows(node, spatial, kernel)
    padded = over.padded(x, 0)
    y = np.empty((x.shape[0], w.shape[0], *over.sizes), dtype=x.dtype)
    for sample, out in zip(padded, y, strict=True):
        if w.shape[1] == 1 and group > 1:
            _depthwise(over, sample, w, out)
        else:
            _grouped(over, sample, w, out, group)
    if b is not None:
        y += b.reshape(-1, *[1] * len(kernel))
    return (y,)


def _depthwise(over: Windows, x: Array, w: Array, y: Array) -> None:
    """One input channel a group: a sum over the taps is faster than a product of one row."""
    group = x.shape[0]
    ones = [1] * len(over.kernel)
    weights = w.reshape(group, w.shape[0] // group, -1)
    total = y.reshape(group, -1, *over.sizes)
    total[...] = 0
    scratch = np.empty_like(total)
    for index, tap in enumerate(over.taps()):
        source = x[(slice(None), None, *tap)]
        np.multiply(source, weights[:, :, index].reshape(group, -1, *ones), out=scratch)
        total += scratch


def _grouped(over: Windows, x: Array, w: Array, y: Array, group: int) -> None:
    channels, taps = w.shape[1], math.prod(over.kernel)
    weights = w.reshape(group, w.shape[0] // group, channels * taps)
    product = y.reshape(group, w.shape[0] // group, *over.sizes)
    rest = math.prod(over.sizes[1:])
    if taps == 1 and all(s == 1 for s in over.strides):
        product[...] = (weights @ x.reshape(group, channels, -1)).reshape(product.shape)
        return
    rows = max(1, _COLUMNS // max(1, x.shape[0] * taps * rest)) if over.sizes else 1
    for first in range(0, over.sizes[0], rows):
        count = min(rows, over.sizes[0] - first)
        columns = np.empty((x.shape[0], taps, count, *over.sizes[1:]), dtype=x.dtype)
        start = first * over.strides[0]
        for index, (lead, *others) in enumerate(over.taps()):
            top = lead.start + start
            here = slice(top, top + (count - 1) * over.strides[0] + 1, over.strides[0])
            columns[:, index] = x[(slice(None), here, *others)]
        part = weights @ columns.reshape(group, channels * taps, count * rest)
        product[:, :, first : first + count] = part.reshape(group, -1, count, *over.sizes[1:])


def conv_transpose(node: Node, x: Array, w: Array, b: Array | None = None) -> tuple[Array]:
    """x [N, C, *], w [C, M/group, *kernel], b [M]."""
    group, kernel = node["group"], w.shape[2:]
    rank = len(kernel)
    if w.shape[0] != x.shape[1] or x.shape[1] % group or x.ndim != rank + 2:
        raise ValueError(f"{group} groups of a weight {list(w.shape)} do not fit an input {list(x.shape)}")
    strides = list(node.get("strides") or [1] * rank)
    dilations = list(node.get("dilations") or [1] * rank)
    extra = list(node.get("output_padding") or [0] * rank)
    full = [(n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(x.shape[2:], strides, kernel, dilations, strict=True)]
    begin, sizes = _placed(node, x.shape[2:], full, strides, extra)

    inner, outputs, taps = x.shape[1] // group, w.shape[1], math.prod(kernel)
    weights = w.reshape(group, inner, outputs * taps).transpose(0, 2, 1)
    y = np.zeros((x.shape[0], group * outputs, *sizes), dtype=x.dtype)
    for sample, out in zip(x, y, strict=True):
        products = (weights @ sample.reshape(group, inner, -1)).reshape(group, outputs, taps, *x.shape[2:])
        whole = np.zeros((group, outputs, *full), dtype=x.dtype)
        for index, tap in enumerate(np.ndindex(*kernel)):
            at = tuple(
                slice(t * d, t * d + (n - 1) * s + 1, s)
                for t, d, s, n in zip(tap, dilations, strides, x.shape[2:], strict=True)
            )
            whole[(slice(None), slice(None), *at)] += products[:, :, index]
        end = [size + b - n for size, b, n in zip(sizes, begin, full, strict=True)]
        out[...] = pad_spatial(whole.reshape(group * outputs, *full), [-b for b in begin], end, 0)
    if b is not None:
        y += b.reshape(-1, *[1] * rank)
    return (y,)


def _placed(
    node: Node, sizes: Sequence[int], full: Sequence[int], strides: Sequence[int], extra: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Where the output begins in the full product, and its sizes; past the product's end there is only the bias."""
    rank, auto_pad = len(full), node.get("auto_pad", "NOTSET")
    wanted = node.get("output_shape")
    if wanted:
        wanted = list(wanted)[-rank:]
    elif auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        # A kernel shorter than its stride reaches no further than this; the providers do not pad the output there.
        wanted = [min(n * s, m + e) for n, s, m, e in zip(sizes, strides, full, extra, strict=True)]
    else:
        pads = [0] * (2 * rank) if auto_pad == "VALID" else list(node.get("pads") or [0] * (2 * rank))
        begin = pads[:rank]
        return begin, [n + e - b - c for n, e, b, c in zip(full, extra, begin, pads[rank:], strict=True)]
    totals = [max(n + e - size, 0) for n, e, size in zip(full, extra, wanted, strict=True)]
    shorter_first = auto_pad == "SAME_UPPER"
    return [total // 2 if shorter_first else total - total // 2 for total in totals], wanted


KERNELS: dict[str, Kernel] = {"Conv": conv, "ConvTranspose": conv_transpose}
