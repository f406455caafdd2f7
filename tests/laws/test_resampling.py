"""Resize, Upsample and Pad in every syntax: factors, sizes, chosen axes, borders, and the constants of a Pad."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

from bnfold.affine import Affine, affine
from bnfold.fold import fold
from bnfold.gauge import Answer, Carry, Need, Op
from bnfold.laws import LAWS
from tests.graphs import Builder, difference, folded, refused

Make = Callable[[Builder, str], str]


def floats(b: Builder, *values: float) -> str:
    return b.weight(values=np.asarray(values, np.float32))


def scalar(b: Builder, value: float) -> str:
    return b.weight(values=np.asarray(value, np.float32))


def made(b: Builder, channels: int = 6, spatial: Sequence[int] = (6, 6)) -> str:
    ones = (1,) * len(spatial)
    return b.op("Conv", b.input("x", 2, 3, *spatial), b.weight(channels, 3, *ones), b.weight(channels))


def upward(make: Make, opset: int = 19, after: int = 6, *, shift: bool = True, **sizes: Any) -> onnx.ModelProto:
    b = Builder(opset=opset)
    return b.model(b.norm(make(b, made(b, **sizes)), after, shift=shift))


def downward(make: Make, opset: int = 19, after: int = 6, *, shift: bool = True, **sizes: Any) -> onnx.ModelProto:
    b = Builder(opset=opset)
    y = make(b, b.norm(b.op("Tanh", made(b, **sizes)), sizes.get("channels", 6), shift=shift))
    return b.model(b.op("Conv", y, b.weight(4, after, *(1,) * len(sizes.get("spatial", (6, 6)))), b.weight(4)))


both = pytest.mark.parametrize("side", [upward, downward])
Side = Callable[..., onnx.ModelProto]


@both
@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("opset", [7, 8, 9])
def test_upsample(side: Side, mode: str, opset: int) -> None:
    def upsample(b: Builder, y: str) -> str:
        if opset < 9:
            return b.op("Upsample", y, mode=mode, scales=[1.0, 1.0, 2.0, 3.0])
        return b.op("Upsample", y, floats(b, 1, 1, 2, 3), mode=mode)

    folded(side(upsample, opset))


@both
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_the_first_resize(side: Side, mode: str) -> None:
    folded(side(lambda b, y: b.op("Resize", y, floats(b, 1, 1, 2, 1.5), mode=mode), 10))


@both
@pytest.mark.parametrize("exclude", [0, 1])
@pytest.mark.parametrize("a", [-0.75, -0.5, 0.3])
@pytest.mark.parametrize("scales", [(1.7, 0.6), (0.3, 4.0)])
def test_cubic_weights_add_up_to_one_at_the_borders_too(
    side: Side, exclude: int, a: float, scales: tuple[float, float]
) -> None:
    # outside the value the nearest element counts, or the weights are divided by the sum of those inside
    options: dict[str, Any] = {"mode": "cubic", "cubic_coeff_a": a, "exclude_outside": exclude}
    folded(side(lambda b, y: b.op("Resize", y, "", floats(b, 1, 1, *scales), **options)))


@both
@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("scales", [(0.4, 0.6), (0.7, 2.0)])
def test_antialiasing_weights_are_normalized(side: Side, mode: str, scales: tuple[float, float]) -> None:
    folded(side(lambda b, y: b.op("Resize", y, "", floats(b, 1, 1, *scales), mode=mode, antialias=1)))


@both
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("transformation", ["half_pixel", "half_pixel_symmetric", "asymmetric", "align_corners"])
def test_every_transformation(side: Side, mode: str, transformation: str) -> None:
    options = {"mode": mode, "coordinate_transformation_mode": transformation}
    folded(side(lambda b, y: b.op("Resize", y, "", floats(b, 1, 1, 1.3, 0.7), **options)))


@both
@pytest.mark.parametrize("spatial", [(6,), (6, 4, 5)])
def test_resize_of_one_and_of_three_axes(side: Side, spatial: tuple[int, ...]) -> None:
    factors = (1.0, 1.0, 2.0, 1.5, 0.5)[: 2 + len(spatial)]
    folded(side(lambda b, y: b.op("Resize", y, "", floats(b, *factors), mode="linear"), spatial=spatial))


@both
@pytest.mark.parametrize("axes", [[2, 3], [3, 2], [-1, -2]])
@pytest.mark.parametrize("policy", [None, "stretch", "not_larger", "not_smaller"])
def test_resize_of_chosen_axes(side: Side, axes: list[int], policy: str | None) -> None:
    def resize(b: Builder, y: str) -> str:
        if policy is None:
            return b.op("Resize", y, "", floats(b, 1.5, 2), mode="linear", axes=axes)
        return b.op("Resize", y, "", "", b.ints(9, 11), mode="linear", axes=axes, keep_aspect_ratio_policy=policy)

    folded(side(resize))


@both
def test_a_policy_may_resize_the_channels_whose_size_is_given(side: Side) -> None:
    # the channels are said to stay 6, but `not_larger` would make them fewer if the other axis asked for it
    options: dict[str, Any] = {"mode": "linear", "axes": [1, 2], "keep_aspect_ratio_policy": "not_larger"}
    refused(side(lambda b, y: b.op("Resize", y, "", "", b.ints(6, 6), **options)), "WRONG_AXIS")


@both
def test_a_factor_that_leaves_the_size_alone_resizes_all_the_same(side: Side) -> None:
    # 6 * 1.1 is cut to 6 elements, but they lie elsewhere
    refused(side(lambda b, y: b.op("Resize", y, "", floats(b, 1, 1.1, 1, 1), mode="linear")), "WRONG_AXIS")


@both
@pytest.mark.parametrize("nearest", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
def test_a_mode_that_moves_elements_where_nothing_is_resized(side: Side, nearest: str) -> None:
    options: dict[str, Any] = {"coordinate_transformation_mode": "tf_half_pixel_for_nn", "nearest_mode": nearest}
    model = side(lambda b, y: b.op("Resize", y, floats(b), floats(b, 1, 1, 2, 2), mode="nearest", **options), 11)
    if "ceil" in nearest:  # (c + 0.5) / 1 is rounded to the next channel
        refused(model, "WRONG_AXIS")
    else:
        folded(model)


@both
@pytest.mark.parametrize("shift", [False, True])
def test_a_region_that_keeps_the_channels_takes_a_scale(side: Side, shift: bool) -> None:
    options: dict[str, Any] = {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize"}

    def crop(b: Builder, y: str) -> str:  # half of the region lies outside, where there is 0
        return b.op("Resize", y, floats(b, 0, 0, -0.5, 0, 1, 1, 0.5, 1), floats(b, 1, 1, 2, 2), **options)

    if shift:
        refused(side(crop, 13), "PADDED")
    else:
        folded(side(crop, 13, shift=False))


# -- Pad -------------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("mode", ["reflect", "edge", "wrap"])
@pytest.mark.parametrize(
    ("axes", "pads"), [((2, 3), (1, 2, 0, 1)), ((-1,), (1, 2)), ((-1, -2), (1, 0, 2, 1)), ((3, 2), (0, -1, 2, 0))]
)
def test_pad_with_copies_on_chosen_axes(side: Side, mode: str, axes: tuple[int, ...], pads: tuple[int, ...]) -> None:
    folded(side(lambda b, y: b.op("Pad", y, b.ints(*pads), "", b.ints(*axes), mode=mode)))


@both
@pytest.mark.parametrize("mode", ["reflect", "edge", "wrap"])
def test_copies_of_channels_that_differ_stay(side: Side, mode: str) -> None:
    pads = (0, 1, 0, 0, 0, 2, 0, 0)
    refused(side(lambda b, y: b.op("Pad", y, b.ints(*pads), mode=mode), after=9), "WRONG_AXIS")


@both
@pytest.mark.parametrize(("axes", "pads"), [((2, 3), (1, 2, 0, 1)), ((-1,), (1, 2)), ((-2, -1), (1, -1, 0, 2))])
def test_zeros_beside_a_scale_stay_zeros(side: Side, axes: tuple[int, ...], pads: tuple[int, ...]) -> None:
    def pad(b: Builder, y: str) -> str:
        return b.op("Pad", y, b.ints(*pads), "", b.ints(*axes))

    folded(side(pad, shift=False))
    refused(side(pad), "PADDED")


@pytest.mark.parametrize("axis", [1, -3])
@pytest.mark.parametrize("mode", ["constant", "edge"])
@pytest.mark.parametrize("pads", [(-1, -2), (0, -3), (-5, 0)])
def test_pad_that_only_cuts_the_channels(axis: int, mode: str, pads: tuple[int, int]) -> None:
    after = 6 + sum(pads)
    folded(downward(lambda b, y: b.op("Pad", y, b.ints(*pads), "", b.ints(axis), mode=mode), after=after))


def uniform(b: Builder, y: str, s: float, t: float) -> str:
    return b.op("Add", b.op("Mul", y, scalar(b, s)), scalar(b, t))


@pytest.mark.parametrize("pads", [(0, 1, 0, 0, 0, 2, 0, 0), (0, 0, 1, 0, 0, 0, 0, 2), (1, 1, 1, 1, 1, 1, 1, 1)])
@pytest.mark.parametrize("value", [None, 0.0, -1.5])
@pytest.mark.parametrize("opset", [11, 18])
def test_one_map_for_all_channels_moves_the_constant(pads: tuple[int, ...], value: float | None, opset: int) -> None:
    b = Builder(opset=opset)
    y = b.op("Pad", made(b), b.ints(*pads), *([] if value is None else [scalar(b, value)]))
    model = b.model(uniform(b, y, -3.0, 0.5))
    result = fold(model)
    assert difference(model, result) < 1e-9
    assert [n.op_type for n in result.model.graph.node] == ["Conv", "Pad"], result.report


def test_a_constant_that_two_pads_share_is_edited_in_one() -> None:
    b = Builder()
    pads, value = b.ints(0, 0, 1, 1, 0, 0, 1, 1), scalar(b, 0.5)
    first = uniform(b, b.op("Pad", made(b), pads, value), -3.0, 0.25)
    other = b.op("Tanh", b.op("Pad", b.op("Tanh", b.input("z", 2, 6, 6, 6)), pads, value))
    model = b.model(b.op("Tanh", first), other)
    result = fold(model)
    assert difference(model, result) < 1e-9
    assert not [n for n in result.model.graph.node if n.op_type in ("Mul", "Add")], result.report


@both
def test_pads_that_are_computed_stay(side: Side) -> None:
    def pad(b: Builder, y: str) -> str:
        ends = b.op("Cast", b.op("Abs", b.input("p", 8)), to=onnx.TensorProto.INT64)
        return b.op("Pad", y, ends, scalar(b, 0.0))

    result = fold(side(pad, 17))
    (kept,) = result.report.kept
    assert "NOT_CONSTANT" in {kept.reason, *(a.reason for a in kept.alternatives)}


def _wrong_value(op: Op, output: int, a: Affine) -> Answer:
    return [(Need(0, a), Need(2, affine(1.0, -float(a.shift.reshape(-1)[0])), missing=()))]


def _identity_forgotten(op: Op, given: Mapping[int, Affine]) -> Answer:
    return [(Carry(given[0].moved(lambda c: np.pad(c, [(0, 0), (1, 2), (0, 0), (0, 0)], mode="edge"))),)]


def test_mutants_of_pad_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    b = Builder()
    model = b.model(uniform(b, b.op("Pad", made(b), b.ints(0, 0, 1, 1, 0, 0, 1, 1)), -3.0, 0.5))
    extended = downward(lambda b, y: b.op("Pad", y, b.ints(0, 1, 0, 0, 0, 2, 0, 0), scalar(b, 2.0)), after=9)
    folded(extended)
    law = LAWS["", "Pad"]
    monkeypatch.setitem(LAWS, ("", "Pad"), replace(law, up=_wrong_value, down=_identity_forgotten))
    for graph in (model, extended):
        result = fold(graph)
        assert result.changed and difference(graph, result) > 1e-3


@both
def test_a_resize_that_ignores_its_axes_is_caught(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    model = side(lambda b, y: b.op("Resize", y, "", floats(b, 1, 1.1, 1, 1), mode="linear"))
    law = LAWS["", "Resize"]
    wrong = replace(law, up=lambda op, out, a: [(Need(0, a),)], down=lambda op, given: [(Carry(given[0]),)])
    monkeypatch.setitem(LAWS, ("", "Resize"), wrong)
    result = fold(model)
    assert result.changed and difference(model, result) > 1e-3
