"""Sliding windows: where they start, how many there are, and the slices that one tap of all windows reads.

An axis of n with padding b + e and a window of k taps, d apart, has (n + b + e − ((k−1)·d + 1)) / s + 1 positions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnfold.reference.node import Array, Node


@dataclass(frozen=True, slots=True)
class Windows:
    """The windows over the spatial axes; `overhang` is how far the last one reaches past the padding (ceil_mode)."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    sizes: tuple[int, ...]
    overhang: tuple[int, ...]

    def taps(self) -> Iterator[tuple[slice, ...]]:
        """For each tap, in row-major order, the slices of the padded input that all windows read there."""
        for tap in np.ndindex(*self.kernel):
            yield tuple(
                slice(t * d, t * d + (n - 1) * s + 1, s)
                for t, d, s, n in zip(tap, self.dilations, self.strides, self.sizes, strict=True)
            )

    def padded(self, x: Array, value: Any) -> Array:
        """x with its spatial axes padded, the overhang included."""
        end = [e + o for e, o in zip(self.end, self.overhang, strict=True)]
        return pad_spatial(x, self.begin, end, value)


def pad_spatial(x: Array, begin: Sequence[int], end: Sequence[int], value: Any) -> Array:
    """The last axes of x padded by a constant; negative numbers cut."""
    if not any(begin) and not any(end):
        return x
    lead = x.ndim - len(begin)
    inner = (slice(None),) * lead + tuple(
        slice(max(-b, 0), n - max(-e, 0)) for b, e, n in zip(begin, end, x.shape[lead:], strict=True)
    )
    x = x[inner]
    begin, end = [max(b, 0) for b in begin], [max(e, 0) for e in end]
    sizes = [b + n + e for b, e, n in zip(begin, end, x.shape[lead:], strict=True)]
    padded = np.full((*x.shape[:lead], *sizes), value, dtype=x.dtype)
    middle = tuple(slice(b, b + n) for b, n in zip(begin, x.shape[lead:], strict=True))
    padded[(slice(None),) * lead + middle] = x
    return padded


def windows(node: Node, sizes: Sequence[int], kernel: Sequence[int]) -> Windows:
    """The windows of a convolution or pool over spatial axes of these sizes, as auto_pad and ceil_mode ask."""
    rank = len(kernel)
    if len(sizes) != rank:
        raise ValueError(f"a window of {rank} axes does not fit {len(sizes)} spatial axes")
    strides = list(node.get("strides") or [1] * rank)
    dilations = list(node.get("dilations") or [1] * rank)
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    auto_pad = node.get("auto_pad", "NOTSET")
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        totals = [max((-(-n // s) - 1) * s + e - n, 0) for n, s, e in zip(sizes, strides, extents, strict=True)]
        shorter = [total // 2 for total in totals]
        longer = [total - half for total, half in zip(totals, shorter, strict=True)]
        begin, end = (shorter, longer) if auto_pad == "SAME_UPPER" else (longer, shorter)
    elif auto_pad == "VALID":
        begin, end = [0] * rank, [0] * rank
    elif auto_pad in ("NOTSET", ""):
        pads = list(node.get("pads") or [0] * (2 * rank))
        begin, end = pads[:rank], pads[rank:]
    else:
        raise ValueError(f"auto_pad {auto_pad!r} is unknown")
    counts: list[int] = []
    overhang: list[int] = []
    for n, b, e, s, extent in zip(sizes, begin, end, strides, extents, strict=True):
        room = n + b + e - extent
        if room < 0:
            raise ValueError(f"a window of {extent} does not fit an axis of {n} with the padding {b}, {e}")
        count = room // s + 1
        # A window that would start in the padding at the end is left out.
        if node.get("ceil_mode") and room % s and count * s < n + b:
            count += 1
        counts.append(count)
        overhang.append(max((count - 1) * s + extent - (n + b + e), 0))
    return Windows(*map(tuple, (kernel, strides, dilations, begin, end, counts, overhang)))
