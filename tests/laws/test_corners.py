"""Corners of Slice, Split and Resize that the specification decides."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.fold import fold
from tests.graphs import Builder, folded, refused


def made(b: Builder, batch: int | str = 2) -> str:
    return b.op("Conv", b.input("x", batch, 3, 6, 6), b.weight(6, 3, 1, 1), b.weight(6))


@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize("roi", [[0, 1, 0, 0, 1, 0, 1, 1], [0, 0.2, 0, 0, 1, 0.8, 1, 1]])
def test_a_region_that_moves_the_channels_stays(down: bool, roi: list[float]) -> None:
    b = Builder()
    y = b.norm(b.op("Tanh", made(b)), 6, shift=False) if down else made(b)
    f = [b.weight(values=np.asarray(v, np.float32)) for v in (roi, [1, 1, 2, 2])]
    y = b.op("Resize", y, *f, mode="nearest", coordinate_transformation_mode="tf_crop_and_resize")
    refused(b.model(b.op("Conv", y, b.weight(4, 6, 1, 1)) if down else b.norm(y, 6, shift=False)), "WRONG_AXIS")


@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize(("start", "step"), [(-100, -1), (-7, -2)])
def test_a_slice_backward_from_far_before_the_beginning(down: bool, start: int, step: int) -> None:
    b = Builder()
    y = b.norm(b.op("Tanh", made(b)), 6) if down else made(b)
    y = b.op("Slice", y, b.ints(start), b.ints(-200), b.ints(1), b.ints(step))
    result = folded(b.model(b.op("Conv", y, b.weight(4, 1, 1, 1)) if down else b.norm(y, 1)))
    assert result.check()  # ONNX Runtime selects the first element as well


@pytest.mark.parametrize("value", [-np.inf, np.inf])
def test_an_infinite_border_keeps_its_sign_or_stays(value: float) -> None:
    for s, kept in ((2.0, 0), (-2.0, 1)):
        b = Builder()
        y = b.op("Pad", made(b), b.ints(0, 0, 1, 1, 0, 0, 1, 1), b.weight(values=np.asarray(value, np.float32)))
        y = b.op("Mul", y, b.weight(values=np.asarray(s, np.float32)))
        result = fold(
            b.model(
                b.op("Clip", y, b.weight(values=np.asarray(-9, np.float32)), b.weight(values=np.asarray(9, np.float32)))
            )
        )
        assert [n.op_type for n in result.model.graph.node].count("Mul") == kept, result.report
        if kept:
            (k,) = result.report.kept
            assert "OUT_OF_RANGE" in {k.reason, *(a.reason for a in k.alternatives)}


def test_a_split_of_unknown_size_whose_outputs_agree() -> None:
    b = Builder()
    first = b.op("Split", made(b, "N"), outputs=2, axis=0)
    folded(b.model(b.norm(b.op("Concat", first + "_", first, axis=0), 6)))
