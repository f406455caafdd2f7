"""Error bounds of the ATen calls that are no ONNX op, or another one than they are called in a skeleton.

linear   |x||W'| + |b| over n = the inputs of W          adaptive pools   windows that may share elements
"""

from __future__ import annotations

import math

import numpy as np

from ..check.arithmetic import Bounded, NoBound
from ..check.op_bounds import Op, Rule, joined, product, with_bias
from .laws import DOMAIN, HOOK, NO_LAWS, SUM


def _linear(op: Op) -> list[Bounded]:
    x, w = op[0], op[1]
    bias = op[2] if op.has(2) else None
    return [with_bias(product(op, op.on_sizes(0, 1, 2)[0], x, w, n=w.value.shape[1]), bias, 1)]


def _adaptive(op: Op) -> list[Bounded]:
    """Windows of an adaptive pool may share elements: none is longer than the ratio of the sizes, rounded up, and 1."""
    value = op.outputs[0]
    assert value is not None
    length = math.prod(-(-a // max(b, 1)) + 1 for a, b in zip(op.x.value.shape[2:], value.shape[2:], strict=True))
    return [joined(op, op.on_sizes(0)[0], [op.x], n=length, k=2)]


def _sum(op: Op) -> list[Bounded]:
    value = op.outputs[0]
    assert value is not None
    return [joined(op, op.on_sizes(0)[0], [op.x], n=max(1, op.x.value.size // max(1, value.size)))]


def _watched(op: Op) -> list[Bounded]:
    return [joined(op, op.x.size, [op.x])]


def _made_from_sizes(op: Op) -> list[Bounded]:
    value = op.outputs[0]
    assert value is not None
    return [Bounded(value, np.abs(value))]


def resized(op: Op, target: str) -> list[Bounded]:
    """Resize, by the call that it stands for."""
    if "nearest" in target:
        return [joined(op, op.on_sizes(0)[0], [op.x])]
    if "bicubic" in target:
        raise NoBound("bicubic resizing")
    return [joined(op, op.on_sizes(0)[0], [op.x], k=4 * max(op.x.value.ndim, 1))]


RULES: dict[tuple[str, str], Rule] = {
    (DOMAIN, "linear"): _linear,
    (DOMAIN, HOOK): _watched,
    (DOMAIN, SUM): _sum,
    ("", "GlobalAveragePool"): _adaptive,
    **dict.fromkeys(((NO_LAWS, kind) for kind in ("zeros", "ones", "full", "arange")), _made_from_sizes),
}
