"""How far a stored constant is from what it should be, in u*M: u of its type, M the sum of the absolute terms.

A correctly rounded value is within half a u of itself; a fold in the weights' own type was measured at 1.4 u*M.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..dtypes import FLOATS, rounded, type_name
from ..weights import Tensor, zeros
from .terms import Operand

__all__ = ["Deviation", "compare", "compensable", "values"]

Array = NDArray[np.float64]
LIMIT = 8.0  # u*M for each map taken in
_U: dict[int, float] = {
    onnx.TensorProto.DOUBLE: 2.0**-53,
    onnx.TensorProto.FLOAT: 2.0**-24,
    onnx.TensorProto.FLOAT16: 2.0**-11,
    onnx.TensorProto.BFLOAT16: 2.0**-8,
}
# Below the smallest normal number a tool may flush to zero; float16's reaches up to 6e-5, so there one subnormal step.
_FLOOR: dict[int, float] = {
    onnx.TensorProto.DOUBLE: 2.0**-1022,
    onnx.TensorProto.FLOAT: 2.0**-126,
    onnx.TensorProto.FLOAT16: 2.0**-24,
    onnx.TensorProto.BFLOAT16: 2.0**-126,
}


@dataclass(frozen=True)
class Deviation:
    """The worst element of one constant: where it stands in the candidate, what it is and what it should be.

    worst: |held - expected| / (u*M); limit: what a fold may leave. rounded: every element is a correctly rounded one.
    share: rms of the difference relative to the expected one. problem: why nothing could be compared, else "".
    """

    role: str
    worst: float = 0.0
    limit: float = LIMIT
    index: tuple[int, ...] = ()
    expected: float = 0.0
    held: float = 0.0
    rounded: bool = True
    share: float = 0.0
    problem: str = ""

    @property
    def right(self) -> bool:
        return not self.problem and self.worst <= self.limit

    def __str__(self) -> str:
        place = "[" + ",".join(map(str, self.index)) + "]" if self.index else ""
        size = f"{self.worst:,.0f} u" if math.isfinite(self.worst) else "more than any rounding"
        digits = next((d for d in (4, 6, 9) if f"{self.held:.{d}g}" != f"{self.expected:.{d}g}"), 17)
        return f"{self.role} {place}".rstrip() + (
            f" is {self.held:.{digits}g} where {self.expected:.{digits}g} is right (off by {size})"
        )


def compare(expected: Operand | None, held: Operand | None, size: Array | None = None) -> Deviation:
    """Compare a constant with the one that should be there; None is a bias that is absent, which counts as zeros.

    size: M of each element, where it is known better than from the edits; it never makes M smaller.
    """
    some = expected if expected is not None else held
    if some is None:
        return Deviation("bias")
    role = some.role
    if expected is None or held is None:
        absent = Operand(zeros(role, some.shape, some.tensor.data_type), some.node, some.slot, role)
        expected, held = expected or absent, held or absent
    limit = LIMIT * max(1, len(expected.tensor.steps))
    kinds = expected.tensor.data_type, held.tensor.data_type
    if kinds[0] != kinds[1]:
        return Deviation(role, problem=f"the {role} is {type_name(kinds[1])} where it was {type_name(kinds[0])}")
    if kinds[0] not in FLOATS:
        return _integers(role, expected.tensor, held.tensor)
    shapes = _shapes(expected, held)
    if shapes is None:
        return Deviation(role, problem=f"the {role} has shape {list(held.shape)} instead of {list(expected.shape)}")
    if _same_bytes(expected, held):
        return Deviation(role, limit=limit)
    right, got = np.broadcast_to(expected.exact(), shapes), np.broadcast_to(values(held), shapes)
    u, floor = _U[kinds[0]], _FLOOR[kinds[0]]
    terms = np.broadcast_to(expected.magnitude(), shapes)
    m = np.maximum(terms, np.abs(right))
    with np.errstate(all="ignore"):
        slack = limit * 2.0**-53 * m
        low, high = (_float(rounded(np.asarray(v), kinds[0]), kinds[0]) for v in (right - slack, right + slack))
        exactly = bool(((low <= got) & (got <= high)).all())
        if size is not None and size.shape == expected.shape:
            m = np.maximum(m, np.broadcast_to(size, shapes))
        difference = np.abs(got - right)
        off = np.where(difference <= floor, 0.0, difference / (u * m))
        off = np.where(np.isnan(off), np.where(np.isnan(got) == np.isnan(right), 0.0, np.inf), off)
        norm = float(np.sqrt(np.mean(np.square(right)))) if right.size else 0.0
        share = float(np.sqrt(np.mean(np.square(difference)))) / norm if norm else math.inf
    if not off.size:
        return Deviation(role, limit=limit)
    where = tuple(int(i) for i in np.unravel_index(int(np.argmax(off)), off.shape))
    at = held.index(where)
    return Deviation(
        role, float(off[where]), limit, at, float(right[where]), float(got[where]), exactly,
        share if math.isfinite(share) else math.inf,
    )  # fmt: skip


def _integers(role: str, expected: Tensor, held: Tensor) -> Deviation:
    right, got = _stored(expected), _stored(held)
    if right.shape != got.shape and right.size != 1 != got.size:
        return Deviation(role, problem=f"the {role} has shape {list(got.shape)} instead of {list(right.shape)}")
    different = np.atleast_1d(right.reshape(-1) != got.reshape(-1))
    if not different.any():
        return Deviation(role)
    where = int(np.argmax(different))
    was, now = (each.reshape(-1)[min(where, each.size - 1)] for each in (right, got))
    return Deviation(role, problem=f"the {role} has {now} where it had {was}")  # maybe another way to say the same


def _stored(tensor: Tensor) -> NDArray[Any]:
    return rounded(tensor.exact(), tensor.data_type) if tensor.steps else tensor.array()


def _shapes(expected: Operand, held: Operand) -> tuple[int, ...] | None:
    """The shape in which both are compared: they are equal, or a bias is written as one value for all channels."""
    a, b = expected.shape, held.shape
    if a == b:
        return a
    if expected.flat or expected.role == "bias":
        a, b = ((() if shape == (1,) else shape) for shape in (a, b))
        if not a or not b or a == b:
            return a or b
    return None


def _same_bytes(expected: Operand, held: Operand) -> bool:
    """The usual case at the least cost: what a correct rounding gives, bit for bit."""
    if expected.turned != held.turned or expected.factor != 1.0 or held.factor != 1.0 or held.tensor.steps:
        return False
    if expected.tensor.shape != held.tensor.shape:
        return False
    stored = _stored(expected.tensor) if expected.tensor.proto is None or expected.tensor.steps else None
    if stored is None:
        proto = expected.tensor.proto
        plain = proto is None or proto.data_type == expected.tensor.data_type
        stored = expected.tensor.array() if plain else rounded(expected.tensor.exact(), expected.tensor.data_type)
    got = held.tensor.array()
    return np.array_equal(
        _float(stored, expected.tensor.data_type), _float(got, held.tensor.data_type), equal_nan=True
    )  # fmt: skip


def values(held: Operand) -> Array:
    """A stored constant as float64, in the form of its term."""
    return held.exact()


def _float(stored: NDArray[Any], data_type: int) -> NDArray[Any]:
    """Stored values as numbers; bfloat16 may come as its bit pattern."""
    if data_type == onnx.TensorProto.BFLOAT16 and stored.dtype == np.uint16:
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return stored if stored.dtype.kind == "f" else stored.astype(np.float32)


def compensable(expected: Operand, held: Operand) -> bool:
    """Whether the difference could be made good by another layer: channels scaled (r_i * W_ij * c_j), or permuted."""
    right, got = expected.exact(), values(held)
    if right.ndim < 2 or right.shape != got.shape:
        return True  # a shift can be given back by whoever reads it
    flat, other = right.reshape(*right.shape[:2], -1), got.reshape(*got.shape[:2], -1)
    sorted_ = [np.sort(np.abs(each).reshape(-1)) for each in (flat, other)]
    if np.allclose(*sorted_, rtol=1e-4, atol=1e-6 * float(sorted_[0][-1]) if sorted_[0].size else 0.0):
        return True
    both = np.abs(flat * other)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a filter of zeros has no ratio at all
        ratio = np.where(both > 0, other / flat, np.nan)
        spread = np.nanmax(ratio, axis=2) - np.nanmin(ratio, axis=2)
        typical = np.nanmean(ratio, axis=2)
    if bool(((flat == 0) != (other == 0)).any()) or not np.isfinite(typical).any():
        return True  # rows made zero, or brought back
    if bool((spread > 1e-3 * np.abs(typical)).any()):
        return False  # within one filter the weights changed by different factors
    log = np.log(np.abs(np.where(np.isfinite(typical), typical, 1.0)))
    rest = log - log.mean(axis=1, keepdims=True) - log.mean(axis=0, keepdims=True) + log.mean()
    return bool((np.abs(rest) <= 1e-3).all())
