"""Affine maps against numpy: what is done to the coefficients is what is done to the value."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from bnfold.affine import IDENTITY, Affine, Array, affine, along, channel, concatenated, squashed

Value = NDArray[np.float64]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Affine, Value]:
    """A value of rank 1 to 4 whose sizes may coincide, and a map in its layout."""
    shape = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=4)))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def coefficients() -> Array:
        if draw(st.booleans()):
            return np.asarray(random.normal())
        part = tuple(n if draw(st.booleans()) else 1 for n in shape)
        return random.normal(size=part)

    scale = coefficients()
    return affine(np.where(scale == 0, 1.0, scale), coefficients()), random.normal(size=shape)


def at(a: Affine, x: Value) -> Value:
    return np.asarray(a.scale * x + a.shift)


def close(a: Value, b: Value) -> None:
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@given(cases(), st.integers(0, 2**32 - 1))
def test_then_is_one_after_the_other(case: tuple[Affine, Value], seed: int) -> None:
    a, x = case
    b = affine(np.random.default_rng(seed).normal(size=x.shape), 0.5)
    close(at(a.then(b), x), at(b, at(a, x)))


@given(cases())
def test_inverse_undoes(case: tuple[Affine, Value]) -> None:
    a, x = case
    if np.abs(a.scale).min() > 1e-3:
        np.testing.assert_allclose(at(a.inverse(), at(a, x)), x, rtol=1e-6, atol=1e-6)


@given(cases())
def test_first_the_shift_then_the_scale(case: tuple[Affine, Value]) -> None:
    a, x = case
    dead = affine(np.where(np.abs(a.scale) < 0.3, 0.0, a.scale), a.shift)
    upper, lower = dead.shift_first()
    assert lower.is_pure_scale and lower.scale.all()
    np.testing.assert_allclose(at(lower, at(upper, x)), at(dead, x), rtol=1e-6, atol=1e-6)


@given(cases(), st.randoms(use_true_random=False))
def test_layouts(case: tuple[Affine, Value], choose: object) -> None:
    a, x = case
    order = list(range(x.ndim))
    choose.shuffle(order)  # type: ignore[attr-defined]
    close(at(a.transposed(order), x.transpose(order)), at(a, x).transpose(order))
    close(at(a.unsqueezed((0, 2)), np.expand_dims(x, (0, 2))), np.expand_dims(at(a, x), (0, 2)))
    ones = tuple(i for i, n in enumerate(x.shape) if n == 1)
    close(at(a.squeezed(ones), x.squeeze(ones)), at(a, x).squeeze(ones))
    axis = order[0]
    stop = max(1, x.shape[axis] - 1)
    cut = (slice(None),) * axis + (slice(0, stop),)
    close(at(a.sliced(axis, 0, stop), x[cut]), at(a, x)[cut])


@given(cases(), cases(), st.integers(0, 3))
def test_concatenation(first: tuple[Affine, Value], second: tuple[Affine, Value], axis: int) -> None:
    (a, x), (b, _) = first, second
    axis %= x.ndim
    y = x + 1.0
    wide = [c.shape for c in (b.scale, b.shift) if c.ndim]
    if any(len(d) != x.ndim or any(n not in (1, m) for n, m in zip(d, x.shape, strict=True)) for d in wide):
        b = affine(2.0, -1.0)
    both = concatenated([a, b], [x.shape[axis], y.shape[axis]], axis, x.ndim)
    close(at(both, np.concatenate([x, y], axis)), np.concatenate([at(a, x), at(b, y)], axis))


@given(cases())
def test_squashing_keeps_the_map_and_cuts_only_what_is_equal(case: tuple[Affine, Value]) -> None:
    a, x = case
    wide = np.broadcast_to(a.scale, x.shape) if a.scale.ndim else np.full(x.shape, a.scale)
    narrow = squashed(wide)
    assert np.array_equal(np.broadcast_to(narrow, wide.shape), wide)
    assert narrow.shape == squashed(narrow).shape
    for axis, n in enumerate(narrow.shape):
        if n > 1:
            assert not all(np.array_equal(np.take(narrow, 0, axis), np.take(narrow, k, axis)) for k in range(n))


def test_sizes_that_coincide_are_not_taken_for_one_another() -> None:
    table = np.arange(36.0).reshape(1, 6, 6)
    rows = affine(table[:, :, :1])
    assert rows.varying == {1}
    assert affine(table[:, :1, :]).varying == {2}
    assert affine(np.broadcast_to(table[:, :, :1], (1, 6, 6))).varying == {1}
    assert affine(table).varying == {1, 2}


def test_one_axis_whose_ends_are_equal_still_varies() -> None:
    assert affine([[1.0], [2.0], [1.0]]).varying == {0}
    assert affine([[1.0], [1.0], [1.0]]).varying == frozenset()


@pytest.mark.parametrize(
    ("make", "identity", "pure_scale", "pure_shift"),
    [
        (lambda: IDENTITY, True, True, True),
        (lambda: affine(np.ones((1, 3)), np.zeros((1, 3))), True, True, True),
        (lambda: affine([1.0, 2.0]), False, True, False),
        (lambda: affine(1.0, [1.0, 2.0]), False, False, True),
        (lambda: affine([1.0, 2.0], [0.0, 1.0]), False, False, False),
    ],
)
def test_kinds(make: Callable[[], Affine], identity: bool, pure_scale: bool, pure_shift: bool) -> None:
    a = make()
    assert (a.is_identity, a.is_pure_scale, a.is_pure_shift) == (identity, pure_scale, pure_shift)


def test_vectors_along_the_channel() -> None:
    a = channel(np.asarray([1.0, 2.0, 3.0]), np.asarray([5.0, 5.0, 5.0]), 4)
    assert a.scale.shape == (1, 3, 1, 1) and a.shift.size == 1
    s, t = a.vector(1, 3)
    assert s.tolist() == [1.0, 2.0, 3.0] and t.tolist() == [5.0] * 3
    assert along(np.asarray(2.0), 1, 2).tolist() == [2.0, 2.0]


def test_keys_tell_maps_apart() -> None:
    assert affine([1.0, 2.0]).key() == affine([1.0, 2.0]).key() != affine([2.0, 1.0]).key()
    assert affine([[1.0], [2.0]]).key() != affine([[1.0, 2.0]]).key()
    assert affine([1.0, 2.0]).equals(affine([1.0, 2.0])) and not affine(1.0).equals(affine(2.0))
