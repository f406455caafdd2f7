"""Resize and Upsample: every mode, coordinate transformation, rounding and opset, against ONNX Runtime."""

import itertools

import numpy as np
import pytest

from .one_node import U, compare, feeds, judge, normal, one_node

RNG = np.random.default_rng(7)
X = normal(RNG, 2, 3, 5, 6)
# ONNX Runtime computes positions in float32: up to 12·2 ulps of a slope of at most 5 or so; then 16 terms are added.
TOLERANCE = 64 * U * 8
SCALES = [(1, 1, 2, 2), (1, 1, 2.5, 1.5), (1, 1, 0.6, 0.5), (1, 1, 1, 3)]


def floats(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scales", SCALES)
def test_before_opset_11(mode: str, scales: tuple[float, ...]):
    tolerance = 0.0 if mode == "nearest" else TOLERANCE
    if min(scales) >= 1:
        compare("Upsample", [X], 7, tolerance, mode=mode, scales=[float(s) for s in scales])
        compare("Upsample", [X, floats(*scales)], 9, tolerance, mode=mode)
    compare("Resize", [X, floats(*scales)], 10, tolerance, mode=mode)


@pytest.mark.parametrize("opset", [11, 13, 18, 19])
@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
def test_nearest(opset: int, rounding: str):
    transformations = ["half_pixel", "asymmetric", "pytorch_half_pixel", "align_corners"]
    for transformation, scales in itertools.product(transformations, SCALES):
        options = {"mode": "nearest", "coordinate_transformation_mode": transformation, "nearest_mode": rounding}
        compare("Resize", [X, floats() if opset < 13 else None, floats(*scales)], opset, 0.0, **options)
        sizes = np.array([2, 3, 7, 4], dtype=np.int64)
        empty = floats() if opset < 13 else None
        compare("Resize", [X, empty, empty, sizes], opset, 0.0, **options)


@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
def test_nearest_symmetric(rounding: str):
    """At scales where no position is a tie: there the order of the roundings would decide."""
    options = {"coordinate_transformation_mode": "half_pixel_symmetric", "nearest_mode": rounding}
    for scales in ((1, 1, 2.3, 1.7), (1, 1, 0.7, 0.55)):
        compare("Resize", [X, None, floats(*scales)], 19, 0.0, mode="nearest", **options)
        compare("Resize", [X, None, floats(*scales)], 19, TOLERANCE, mode="linear", **options)


@pytest.mark.parametrize("opset", [11, 13, 18, 19])
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_interpolation(opset: int, mode: str):
    transformations = ["half_pixel", "asymmetric", "pytorch_half_pixel", "align_corners"]
    for transformation, scales in itertools.product(transformations, SCALES):
        options = {"mode": mode, "coordinate_transformation_mode": transformation}
        empty = floats() if opset < 13 else None
        compare("Resize", [X, empty, floats(*scales)], opset, TOLERANCE, **options)
        compare("Resize", [X, empty, empty, np.array([2, 3, 7, 4], dtype=np.int64)], opset, TOLERANCE, **options)
    if mode == "cubic":
        for a, exclude in ((-0.5, 0), (-0.75, 1)):
            options = {"mode": mode, "cubic_coeff_a": a, "exclude_outside": exclude}
            compare("Resize", [X, floats() if opset < 13 else None, floats(1, 1, 1.5, 2)], opset, TOLERANCE, **options)


def test_volume():
    x = normal(RNG, 1, 2, 3, 4, 5)
    compare("Resize", [x, None, floats(1, 1, 2, 1.5, 2)], 13, TOLERANCE, mode="linear")
    compare("Resize", [x, None, floats(1, 1, 2, 1.5, 2)], 13, 0.0, mode="nearest")
    compare("Resize", [x[:, :, 0, 0], None, floats(1, 1, 2.5)], 13, TOLERANCE, mode="linear")


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_antialias(mode: str):
    for scales in ((1, 1, 0.6, 0.5), (1, 1, 0.7, 2)):
        compare("Resize", [X, None, floats(*scales)], 18, TOLERANCE, mode=mode, antialias=1)


def test_axes_and_aspect():
    sizes = np.array([8, 9], dtype=np.int64)
    for policy in ("stretch", "not_larger", "not_smaller"):
        options = {"mode": "linear", "axes": [2, 3], "keep_aspect_ratio_policy": policy}
        compare("Resize", [X, None, None, sizes], 18, TOLERANCE, **options)
    compare("Resize", [X, None, floats(2, 1.5)], 18, 0.0, mode="nearest", axes=[3, 2])


def test_crop_and_resize():
    roi = floats(0, 0, 0.2, -0.1, 1, 1, 0.8, 1.2)
    options = {"coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 9.0}
    sizes = np.array([2, 3, 4, 7], dtype=np.int64)
    compare("Resize", [X, roi, None, sizes], 13, TOLERANCE, mode="linear", **options)


def test_against_torch_in_float64():
    torch = pytest.importorskip("torch")
    x = X.astype(np.float64)
    for mode, theirs in (("linear", "bilinear"), ("cubic", "bicubic")):
        for corners in (False, True):
            transformation = "align_corners" if corners else "half_pixel"
            sizes = np.array([2, 3, 8, 11], dtype=np.int64)
            options = {"mode": mode, "coordinate_transformation_mode": transformation}
            (ours,) = judge(one_node("Resize", [x, None, None, sizes], 13, **options), feeds([x, None, None, sizes]))
            expected = torch.nn.functional.interpolate(torch.from_numpy(x), (8, 11), mode=theirs, align_corners=corners)
            np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-13)
