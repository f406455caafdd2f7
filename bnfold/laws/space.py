"""Expand, Tile, DepthToSpace, SpaceToDepth: elements are repeated or change places, and their coefficients with them.

expand   (s*x + t) repeated = s*(x repeated) + t, where nothing varies along a repeated axis
depth    a channel's coefficients go where the channel goes; what then varies over space is refused
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..affine import Affine, Array, affine
from ..gauge import Answer, Carry, Need, Op, Reason, Refusal
from .common import Law, attributes, fitted, no, raised, stray


def expand_up(op: Op, output: int, a: Affine) -> Answer:
    placed = fitted(op, a, 0, op.output_shape())  # nothing may vary along what is repeated
    return placed if isinstance(placed, Refusal) else [(Need(0, placed),)]


def expand_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    a, out = given.get(0), op.output_shape()
    if a is None or len(given) > 1:
        return no(op, Reason.NONLINEAR, "The value is a shape.")
    if a.rank and out is None:
        return no(op, Reason.UNKNOWN_SHAPE, "The rank of the output is not known.")
    rank = len(out) if out is not None else 0
    # an axis along which the coefficients vary is longer than 1, so Expand cannot repeat it
    return [(Carry(Affine(raised(a.scale, rank), raised(a.shift, rank))),)]


def _repeats(op: Op) -> tuple[int, ...] | Refusal:
    if op.opset < 6:
        return no(op, Reason.UNKNOWN_OP, "Tile before opset 6 repeats one axis by other rules.")
    repeats = op.integers(1)
    return repeats if repeats is not None else no(op, Reason.NOT_CONSTANT, "How often it repeats is not known.")


def tile_up(op: Op, output: int, a: Affine) -> Answer:
    if not a.varying:
        return [(Need(0, a),)]
    repeats = _repeats(op)
    if isinstance(repeats, Refusal):
        return repeats
    arrays: list[Array] = []
    for c in (a.scale, a.shift):
        for axis, times in enumerate(repeats if c.ndim else ()):
            if c.shape[axis] > 1 and times > 1:
                parts = np.split(c, times, axis) if c.shape[axis] % times == 0 else []
                if not parts or any(not np.array_equal(part, parts[0]) for part in parts):
                    text = f"The coefficients vary along axis {axis}, along which the value is repeated."
                    return no(op, Reason.WRONG_AXIS, text)
                c = parts[0]
        arrays.append(c)
    return [(Need(0, affine(*arrays)),)]


def tile_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    a = given.get(0)
    if a is None or len(given) > 1:
        return no(op, Reason.NONLINEAR, "The value says how often to repeat.")
    if not a.varying:
        return [(Carry(a),)]
    repeats = _repeats(op)
    if isinstance(repeats, Refusal):
        return repeats
    return [(Carry(a.moved(lambda c: np.tile(c, [n if d > 1 else 1 for n, d in zip(repeats, c.shape, strict=True)]))),)]


def _blocks(op: Op, channels: int, block: int) -> np.ndarray:
    """For each channel of the deep value: the channel of the wide one to which it goes."""
    wide = channels // (block * block)
    if op.kind == "DepthToSpace" and op.attribute("mode", "DCR") == "CRD":
        return np.arange(channels) // (block * block)
    return np.arange(channels) % wide


def _deep(op: Op, a: Affine, block: int) -> Affine | Refusal:
    """Coefficients of the wide value's channels, for those of the deep value."""
    size = max((c.shape[1] for c in (a.scale, a.shift) if c.ndim), default=1)
    if size == 1:
        return a
    at = _blocks(op, size * block * block, block)
    return a.moved(lambda c: np.take(c, at, 1) if c.shape[1] > 1 else c)


def _wide(op: Op, a: Affine, block: int) -> Affine | Refusal:
    """Coefficients of the deep value's channels, for those of the wide one; they must not vary over space there."""
    size = max((c.shape[1] for c in (a.scale, a.shift) if c.ndim), default=1)
    if size == 1:
        return a
    at = _blocks(op, size, block)
    arrays: list[Array] = []
    for c in (a.scale, a.shift):
        if c.ndim == 0 or c.shape[1] == 1:
            arrays.append(c)
            continue
        flat = np.empty((c.shape[0], size // (block * block), *c.shape[2:]))
        flat[:, at] = c
        if not np.array_equal(flat[:, at], c):
            text = "Channels that become neighbours in space have different coefficients."
            return no(op, Reason.WRONG_AXIS, text)
        arrays.append(flat)
    return affine(*arrays)


def _moved(op: Op, a: Affine, to_deep: bool) -> Affine | Refusal:
    refused = stray(op, a, (0, 1))
    if refused is not None:
        return refused
    block = int(op.attribute("blocksize", 1))
    return _deep(op, a, block) if to_deep else _wide(op, a, block)


def blocks_up(op: Op, output: int, a: Affine) -> Answer:
    moved = _moved(op, a, to_deep=op.kind == "DepthToSpace")
    return moved if isinstance(moved, Refusal) else [(Need(0, moved),)]


def blocks_down(op: Op, given: Mapping[int, Affine]) -> Answer:
    moved = _moved(op, given[0], to_deep=op.kind == "SpaceToDepth")
    return moved if isinstance(moved, Refusal) else [(Carry(moved),)]


LAWS = {
    ("", "Expand"): Law(expand_up, expand_down, frozenset()),
    ("", "Tile"): Law(tile_up, tile_down, frozenset()),
    ("", "DepthToSpace"): Law(blocks_up, blocks_down, attributes("blocksize mode")),
    ("", "SpaceToDepth"): Law(blocks_up, blocks_down, attributes("blocksize")),
}
