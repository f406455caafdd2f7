"""Expand, Tile, DepthToSpace, SpaceToDepth; Resize, Upsample and Pad."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from bnfold.fold import fold
from bnfold.gauge import Carry, Law, Need
from bnfold.laws import LAWS
from tests.graphs import Builder, difference, folded, refused


def made(b: Builder, channels: int = 6) -> str:
    return b.op("Conv", b.input("x", 2, 3, 6, 6), b.weight(channels, 3, 1, 1), b.weight(channels))


def read(b: Builder, y: str, channels: int = 6) -> onnx.ModelProto:
    return b.model(b.op("Conv", y, b.weight(4, channels, 1, 1), b.weight(4)))


def _attributes(wanted: bool, **attributes: Any) -> dict[str, Any]:
    return attributes if wanted else {}


def ends(make: Any, channels: int = 6, after: int | None = None) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """`make(b, y)` between a Conv and a BatchNormalization, and between a BatchNormalization and a Conv."""
    b = Builder()
    up = b.model(b.norm(make(b, made(b, channels)), after or channels))
    b = Builder()
    down = read(b, make(b, b.norm(b.op("Tanh", made(b, channels)), channels)), after or channels)
    return up, down


@pytest.mark.parametrize("shape", [(2, 6, 6, 6), (1, 1, 1, 1), (3, 2, 6, 6, 6), (1,)])
def test_expand(shape: tuple[int, ...]) -> None:
    b = Builder()
    y = b.op("Expand", b.norm(b.op("Tanh", made(b)), 6), b.ints(*shape))
    if len(shape) < 5:
        folded(read(b, y))
    b = Builder()
    y = b.op("GlobalAveragePool", made(b))
    model = b.model(b.norm(b.op("Expand", y, b.ints(2, 6, 5, 5)), 6))
    folded(model)


def test_expand_of_the_axis_that_varies_stays() -> None:
    b = Builder()
    y = b.op("Expand", made(b, 1), b.ints(2, 6, 6, 6))
    refused(b.model(b.norm(y, 6)), "WRONG_AXIS")


@pytest.mark.parametrize("repeats", [(1, 1, 2, 3), (2, 1, 1, 1)])
def test_tile_of_other_axes(repeats: tuple[int, ...]) -> None:
    for model in ends(lambda b, y: b.op("Tile", y, b.ints(*repeats))):
        folded(model)


def test_tile_of_the_channels() -> None:
    b = Builder()
    y = b.op("Tile", b.norm(b.op("Tanh", made(b, 3)), 3), b.ints(1, 2, 1, 1))
    folded(read(b, y))
    b = Builder()
    refused(b.model(b.norm(b.op("Tile", made(b, 3), b.ints(1, 2, 1, 1)), 6)), "WRONG_AXIS")
    b = Builder()
    y = b.op("Tile", made(b, 3), b.ints(1, 2, 1, 1))
    periodic = b.weight(values=np.asarray([2, -3, 5, 2, -3, 5], np.float32).reshape(6, 1, 1))
    assert fold(b.model(b.op("Mul", y, periodic))).report.folded


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode: str) -> None:
    up, down = ends(lambda b, y: b.op("DepthToSpace", y, blocksize=2, mode=mode), 24, 6)
    folded(up)
    refused(down, "WRONG_AXIS")
    b = Builder()  # equal inside each group of four
    y = b.op("Tanh", made(b, 24))
    values = np.tile([2, 3, -5, 7, 11, 13], 4) if mode == "DCR" else np.repeat([2, 3, -5, 7, 11, 13], 4)
    y = b.op("Mul", y, b.weight(values=values.astype(np.float32).reshape(24, 1, 1)))
    result = fold(read(b, b.op("DepthToSpace", y, blocksize=2, mode=mode)))
    assert result.report.folded
    folded(read(b, b.op("DepthToSpace", y, blocksize=2, mode=mode)))


def test_space_to_depth() -> None:
    up, down = ends(lambda b, y: b.op("SpaceToDepth", y, blocksize=2), 6, 24)
    refused(up, "WRONG_AXIS")
    folded(down)


MODES: list[dict[str, Any]] = [
    {"mode": "nearest"}, {"mode": "nearest", "nearest_mode": "ceil", "coordinate_transformation_mode": "asymmetric"},
    {"mode": "linear"}, {"mode": "linear", "coordinate_transformation_mode": "align_corners"}, {"mode": "cubic"},
    {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
]  # fmt: skip


@pytest.mark.parametrize("attributes", MODES)
@pytest.mark.parametrize("scales", [(1, 1, 2, 2), (1, 1, 0.5, 1.5)])
def test_resize(attributes: dict[str, Any], scales: tuple[float, ...]) -> None:
    def resize(b: Builder, y: str) -> str:
        return b.op("Resize", y, "", b.weight(values=np.asarray(scales, np.float32)), **attributes)

    for model in ends(resize):
        folded(model)


def test_resize_to_sizes_and_upsample() -> None:
    for model in ends(lambda b, y: b.op("Resize", y, "", "", b.ints(2, 6, 9, 11), mode="linear")):
        folded(model)
    for opset in (8, 9):
        b = Builder(opset=opset)
        factors = [1.0, 1.0, 2.0, 2.0]
        attributes = _attributes(opset == 8, scales=factors)
        extra = [] if opset == 8 else [b.weight(values=np.asarray(factors, np.float32))]
        folded(b.model(b.norm(b.op("Upsample", made(b), *extra, mode="nearest", **attributes), 6)))


def test_resize_of_the_channels_stays() -> None:
    def resize(b: Builder, y: str) -> str:
        return b.op("Resize", y, "", b.weight(values=np.asarray([1, 2, 1, 1], np.float32)), mode="nearest")

    for model in ends(resize, 3, 6):
        refused(model, "WRONG_AXIS")


def test_resize_that_puts_a_constant_outside_stays() -> None:
    b = Builder()
    roi = b.weight(values=np.asarray([0, 0, -0.5, -0.5, 1, 1, 1.5, 1.5], np.float32))
    scales = b.weight(values=np.asarray([1, 1, 2, 2], np.float32))
    y = b.op("Resize", made(b), roi, scales, mode="linear", coordinate_transformation_mode="tf_crop_and_resize",
             extrapolation_value=3.0)  # fmt: skip
    result = fold(b.model(b.norm(y, 6)))
    assert not result.changed
    assert "PADDED" in {result.report.kept[0].reason, *(a.reason for a in result.report.kept[0].alternatives)}


@pytest.mark.parametrize("mode", ["reflect", "edge"])
@pytest.mark.parametrize("opset", [10, 17])
def test_pad_with_values_of_its_own(mode: str, opset: int) -> None:
    pads = [0, 0, 1, 2, 0, 0, 2, 1]

    def pad(b: Builder, y: str) -> str:
        extra = [] if opset < 11 else [b.ints(*pads)]
        return b.op("Pad", y, *extra, mode=mode, **_attributes(opset < 11, pads=pads))

    b = Builder(opset=opset)
    folded(b.model(b.norm(pad(b, made(b)), 6)))
    b = Builder(opset=opset)
    folded(read(b, pad(b, b.norm(b.op("Tanh", made(b)), 6))))


def uniform(b: Builder, y: str, s: float, t: float) -> str:
    y = b.op("Mul", y, b.weight(values=np.asarray(s, np.float32)))
    return b.op("Add", y, b.weight(values=np.asarray(t, np.float32)))


@pytest.mark.parametrize("value", [None, 0.0, 1.5])
@pytest.mark.parametrize("s", [2.0, -3.0])
@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("opset", [10, 17])
def test_pad_with_a_constant_that_becomes_another(value: float | None, s: float, down: bool, opset: int) -> None:
    pads = [0, 0, 1, 2, 0, 0, 2, 1]
    b = Builder(opset=opset)
    y = made(b)
    y = uniform(b, b.op("Tanh", y), s, 0.5) if down else y
    if opset < 11:
        y = b.op("Pad", y, pads=pads, **_attributes(value is not None, value=value))
    else:
        y = b.op("Pad", y, b.ints(*pads), *([] if value is None else [b.weight(values=np.asarray(value, np.float32))]))
    model = read(b, y) if down else b.model(uniform(b, y, s, 0.5))
    result = fold(model)
    assert difference(model, result) < 1e-9
    exact = opset >= 11 or not (down and s == -3.0)  # an attribute must hold the new value exactly
    if exact:
        assert not [n for n in result.model.graph.node if n.op_type in ("Mul", "Add")], result.report


def test_pad_with_one_constant_for_channels_that_differ_stays() -> None:
    for model in ends(lambda b, y: b.op("Pad", y, b.ints(0, 0, 1, 1, 0, 0, 1, 1))):
        refused(model, "PADDED")
    b = Builder()  # without a shift 0 stays 0
    y = b.op("Pad", b.norm(b.op("Tanh", made(b)), 6, shift=False), b.ints(0, 0, 1, 1, 0, 0, 1, 1))
    folded(read(b, y))
    for model in ends(lambda b, y: b.op("Pad", y, b.ints(0, 0, -1, -1, 0, 0, 0, -1))):
        folded(model)  # it only cuts


def test_pad_of_the_channels_gives_the_new_ones_the_identity() -> None:
    _, down = ends(lambda b, y: b.op("Pad", y, b.ints(0, 1, 0, 0, 0, 2, 0, 0)), 6, 9)
    folded(down)
    up, _ = ends(lambda b, y: b.op("Pad", y, b.ints(0, 1, 0, 0, 0, 2, 0, 0)), 6, 9)
    refused(up, "WRONG_AXIS")
    _, down = ends(lambda b, y: b.op("Pad", y, b.ints(0, 1, 1, 0, 0, 0, 0, 0)), 6, 7)
    refused(down, "PADDED")


def test_explicit_padding_takes_the_shift_where_it_is_one_number() -> None:
    """BatchNormalization -> Pad -> Conv: with t/s the same in all channels the border can be padded with -t/s."""
    b = Builder()
    y = b.op("Tanh", made(b))
    scale = b.weight(values=np.asarray([1, 2, 3, 4, 5, 6], np.float32).reshape(6, 1, 1))
    y = b.op("Mul", b.op("Add", y, b.weight(values=np.asarray(0.75, np.float32))), scale)
    model = read(b, b.op("Pad", y, b.ints(0, 0, 1, 1, 0, 0, 1, 1)))
    result = fold(model)
    assert difference(model, result) < 1e-9
    assert not [n for n in result.model.graph.node if n.op_type in ("Mul", "Add")], result.report


MUTANTS: dict[str, tuple[str, Law]] = {
    "depth to space keeps the order of DCR": (
        "DepthToSpace",
        Law(
            lambda op, out, a: [(Need(0, a.moved(lambda c: np.tile(c, (1, 4, 1, 1)) if c.shape[1] > 1 else c)),)],
            LAWS["", "DepthToSpace"].down,
            LAWS["", "DepthToSpace"].attributes,
        ),
    ),
    "pad carries": ("Pad", Law(LAWS["", "Pad"].up, lambda op, given: [(Carry(given[0]),)], LAWS["", "Pad"].attributes)),
    "pad lets through": (
        "Pad",
        Law(lambda op, out, a: [(Need(0, a),)], LAWS["", "Pad"].down, LAWS["", "Pad"].attributes),
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, law = MUTANTS[name]
    monkeypatch.setitem(LAWS, ("", kind), law)
    if kind == "Pad":
        up, down = ends(lambda b, y: b.op("Pad", y, b.ints(0, 0, 1, 1, 0, 0, 1, 1)))
        model = down if "carries" in name else up
    else:
        model, _ = ends(lambda b, y: b.op(kind, y, blocksize=2, mode="CRD"), 24, 6)
    result = fold(model)
    assert result.changed and difference(model, result) > 1e-3
