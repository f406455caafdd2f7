"""The affine map of a value: y = scale*x + shift, with coefficients that have the value's own layout.

then:     (s1, t1) then (s2, t2)  =  (s2*s1, s2*t1 + t2)
inverse:  (1/s, -t/s)
layouts:  Transpose, Reshape, Concat ... act on the coefficients as they act on the value
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array: TypeAlias = NDArray[np.float64]

_ONE: Array = np.ones((), np.float64)
_ZERO: Array = np.zeros((), np.float64)


def squashed(array: ArrayLike) -> Array:
    """`array` in float64 with every axis along which it is constant cut to length 1, whatever its size was.

    Spatial, merged and scalar cases need no code of their own after this, and a size that happens to equal the
    channel count is never mistaken for it.
    """
    out: Array = np.asarray(array, np.float64)
    if out.size <= 1 or (out.size in out.shape and out.item(0) != out.item(-1)):
        return out  # one value, or one axis that varies: what nearly every normalization has
    for axis, size in enumerate(out.shape):
        if size > 1:
            first = out[(slice(None),) * axis + (slice(0, 1),)]
            if (out == first).all():
                out = first
    return out


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """`scale * x + shift`. Both arrays are float64 and have the rank of the value, or rank 0: the same everywhere.

    An axis of length 1 means "constant along this axis, whatever its size, dynamic included". Build one with
    `affine(scale, shift)`, which squashes the axes that do not vary.
    """

    scale: Array
    shift: Array

    @property
    def rank(self) -> int:
        return max(self.scale.ndim, self.shift.ndim)

    @property
    def is_identity(self) -> bool:
        return self.scale.size == self.shift.size == 1 and self.scale.item() == 1.0 and self.shift.item() == 0.0

    @property
    def is_pure_scale(self) -> bool:
        """Nothing is added: shift is 0 everywhere."""
        return not self.shift.any()

    @property
    def is_pure_shift(self) -> bool:
        """Nothing is scaled: scale is 1 everywhere."""
        return bool((self.scale == 1.0).all())

    @property
    def varying(self) -> frozenset[int]:
        """The axes along which a coefficient varies."""
        return frozenset(i for array in (self.scale, self.shift) for i, size in enumerate(array.shape) if size > 1)

    def equals(self, other: Affine) -> bool:
        return np.array_equal(self.scale, other.scale) and np.array_equal(self.shift, other.shift)

    def key(self) -> tuple[object, ...]:
        """A hashable stand-in: equal for equal maps."""
        return (self.scale.shape, self.scale.tobytes(), self.shift.shape, self.shift.tobytes())

    def then(self, after: Affine) -> Affine:
        """This map first, `after` on its result."""
        return affine(after.scale * self.scale, after.scale * self.shift + after.shift)

    def inverse(self) -> Affine:
        """The map that undoes this one; every scale must be non-zero."""
        return affine(1.0 / self.scale, -self.shift / self.scale)

    def only_scale(self) -> Affine:
        return Affine(self.scale, _ZERO)

    def only_shift(self) -> Affine:
        return Affine(_ONE, self.shift)

    def shift_first(self) -> tuple[Affine, Affine]:
        """(upper, lower), upper first: (1, t/s) and (s, 0); where s is 0 they are (0, t) and (1, 0)."""
        dead = self.scale == 0
        safe = np.where(dead, 1.0, self.scale)
        return affine(np.where(dead, 0.0, 1.0), self.shift / safe), affine(safe)

    def moved(self, layout: Callable[[Array], Array]) -> Affine:
        """Both coefficient arrays through `layout`; rank-0 coefficients are the same in every layout."""
        return affine(*(layout(a) if a.ndim else a for a in (self.scale, self.shift)))

    def transposed(self, perm: Sequence[int]) -> Affine:
        return self.moved(lambda a: np.transpose(a, perm))

    def squeezed(self, axes: Sequence[int]) -> Affine:
        return self.moved(lambda a: np.squeeze(a, tuple(axes)))

    def unsqueezed(self, axes: Sequence[int]) -> Affine:
        return self.moved(lambda a: np.expand_dims(a, tuple(axes)))

    def sliced(self, axis: int, start: int, stop: int) -> Affine:
        """The coefficients of the elements start:stop along `axis`; a length of 1 is never cut."""
        return self.moved(lambda a: a if a.shape[axis] == 1 else np.take(a, range(start, stop), axis))

    def vector(self, axis: int, size: int) -> tuple[Array, Array]:
        """(scale, shift) as 1-d arrays of `size` along `axis`; nothing may vary along the others."""
        return along(self.scale, axis, size), along(self.shift, axis, size)


IDENTITY = Affine(_ONE, _ZERO)


def affine(scale: ArrayLike, shift: ArrayLike = 0.0) -> Affine:
    """The map with these coefficients, squashed. `scale` and `shift`: any float arrays of the value's rank, or 0."""
    s, t = squashed(scale), squashed(shift)
    return Affine(s, t) if s.size and t.size else IDENTITY  # on no elements every map is


def channel(scale: Array, shift: Array, rank: int, axis: int = 1) -> Affine:
    """The map whose coefficients are the vectors `scale` and `shift` along `axis` of a value of rank `rank`."""
    layout = (1,) * axis + (-1,) + (1,) * (rank - axis - 1)
    return affine(scale.reshape(layout), shift.reshape(layout))


def along(coefficients: Array, axis: int, size: int) -> Array:
    """Coefficients that vary along `axis` alone, as a vector of `size` elements."""
    if coefficients.ndim == 0:
        return np.full(size, coefficients)
    flat = coefficients.reshape(coefficients.shape[axis])
    return np.full(size, flat[0]) if flat.size == 1 else flat


def concatenated(parts: Sequence[Affine], sizes: Sequence[int], axis: int, rank: int) -> Affine:
    """The map of a concatenation along `axis` whose i-th part has `sizes[i]` elements there and the map parts[i]."""

    def join(arrays: Sequence[Array]) -> Array:
        full = [a if a.ndim else a.reshape((1,) * rank) for a in arrays]
        common = reduce(np.broadcast_shapes, ((*a.shape[:axis], 1, *a.shape[axis + 1 :]) for a in full), (1,) * rank)
        wide = [np.broadcast_to(a, (*common[:axis], n, *common[axis + 1 :])) for a, n in zip(full, sizes, strict=True)]
        return np.concatenate(wide, axis)

    return affine(join([p.scale for p in parts]), join([p.shift for p in parts]))
