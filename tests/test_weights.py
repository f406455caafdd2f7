"""The tensor store: one rounding, to nearest even, however many edits; and every form in which bytes lie."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bnfold import weights
from bnfold.affine import affine
from bnfold.dtypes import rounded
from bnfold.errors import MalformedModel
from bnfold.files.external import Sources
from bnfold.fold import fold
from bnfold.weights import Tensor, read, tensor, zeros
from tests.graphs import Builder

# bits of the significand, exponent of the smallest normal number, largest number
FORMATS: dict[int, tuple[int, int, float]] = {
    TensorProto.FLOAT: (24, -126, float(np.finfo(np.float32).max)),
    TensorProto.FLOAT16: (11, -14, 65504.0),
    TensorProto.BFLOAT16: (8, -126, 3.3895313892515355e38),
}


def nearest(x: float, kind: int) -> float:
    """x rounded to nearest even in exact arithmetic."""
    bits, least, largest = FORMATS[kind]
    if x == 0 or not np.isfinite(x):
        return x
    exponent = max(int(np.floor(np.log2(abs(x)))) if abs(x) > 5e-324 * 2**52 else -1074, least)
    while abs(Fraction(x)) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    while exponent > least and abs(Fraction(x)) < Fraction(2) ** exponent:
        exponent -= 1
    step = Fraction(2) ** (exponent - bits + 1)
    count = round(Fraction(x) / step)  # Python rounds halves to even
    value = count * step
    return float(np.copysign(np.inf, x)) if abs(value) > Fraction(largest) else float(value)


def stored(values: NDArray[np.float64], kind: int) -> NDArray[np.float64]:
    out = rounded(values, kind)
    return (out.view(ml_dtypes.bfloat16) if kind == TensorProto.BFLOAT16 else out).astype(np.float64)


def adversarial(kind: int) -> list[float]:
    """Halfway cases, and those a hair beside them, over the whole range."""
    bits, least, largest = FORMATS[kind]
    found = [0.0, -0.0, float("inf"), float("-inf"), largest, -largest, largest * (1 + 2.0**-bits), largest * 2]
    for exponent in (least - bits, least - bits + 1, least - 1, least, -1, 0, 1, 10):
        for odd in (0, 1, 2, 3):
            half = (2.0 ** (bits - 1) + odd + 0.5) * 2.0 ** (exponent - bits + 1)
            found += [half, -half, half * (1 + 2.0**-40), half * (1 - 2.0**-40), half * (1 + 2.0**-52)]
            found += [(odd + 0.5) * 2.0 ** (least - bits + 1), (odd + 0.5) * 2.0 ** (least - bits + 1) * (1 + 2.0**-50)]
    return found


@pytest.mark.parametrize("kind", FORMATS)
def test_one_rounding_of_hard_values(kind: int) -> None:
    values = np.asarray(adversarial(kind))
    expected = np.asarray([nearest(float(v), kind) for v in values])
    np.testing.assert_array_equal(stored(values, kind), expected)
    assert np.array_equal(np.signbit(stored(values, kind)), np.signbit(values))


@pytest.mark.parametrize("kind", FORMATS)
@given(data=st.lists(st.floats(allow_nan=False, width=64), min_size=1, max_size=20))
def test_one_rounding_of_any_value(kind: int, data: list[float]) -> None:
    values = np.asarray(data, np.float64)
    np.testing.assert_array_equal(stored(values, kind), [nearest(v, kind) for v in data])


def test_bfloat16_does_not_round_through_float32() -> None:
    # float32 rounds this to exactly halfway between two bfloat16 numbers, and a second rounding to even goes down
    x = 1.0 + 2.0**-8 + 2.0**-30
    twice = np.float32(x).astype(ml_dtypes.bfloat16).astype(np.float64)
    assert twice == 1.0
    assert stored(np.asarray([x]), TensorProto.BFLOAT16)[0] == 1.0 + 2.0**-7


def test_nan_stays_nan() -> None:
    for kind in FORMATS:
        assert np.isnan(stored(np.asarray([np.nan]), kind)).all()


def test_edits_are_composed_and_rounded_once() -> None:
    base = tensor(numpy_helper.from_array(np.asarray([1.0, 3.0, 7.0], np.float32), "w"), None)
    edited = base.after(affine(1 / 3.0)).after(affine(3.0)).after(affine(1.0, 0.25))
    assert edited.exact().tolist() == [((v * (1 / 3.0)) * 3.0) + 0.25 for v in (1.0, 3.0, 7.0)]
    each = np.asarray([1.0, 3.0, 7.0], np.float32)
    for scale in (1 / 3.0, 3.0):
        each = (each.astype(np.float64) * scale).astype(np.float32)
    assert read(edited.to_proto("w"), None).tolist() == [1.25, 3.25, 7.25]
    assert base.exact().tolist() == [1.0, 3.0, 7.0]  # a derived tensor leaves its base alone
    assert edited.to_proto("w") == edited.to_proto("w")


def test_a_scalar_grows_with_what_is_added() -> None:
    grown = tensor(numpy_helper.from_array(np.asarray(2.0, np.float32), "c"), None).after(affine([1.0, 2.0, 3.0]))
    assert grown.shape == (3,) and grown.exact().tolist() == [2.0, 4.0, 6.0]
    wide = tensor(numpy_helper.from_array(np.asarray(2.0, np.float32), "c"), None).after(affine(2.0), (4,))
    assert wide.exact().tolist() == [4.0] * 4 and list(wide.to_proto("c").dims) == [4]
    assert zeros("b", (2,), TensorProto.FLOAT16).after(affine(1.0, [1.0, 2.0])).exact().tolist() == [1.0, 2.0]


FORMS: dict[str, tuple[int, dict[str, Any]]] = {
    "float_data": (TensorProto.FLOAT, {"vals": [1.5, -2.0]}),
    "double_data": (TensorProto.DOUBLE, {"vals": [1.5, -2.0]}),
    "float16 in int32_data": (TensorProto.FLOAT16, {"vals": [1.5, -2.0]}),
    "bfloat16 in int32_data": (TensorProto.BFLOAT16, {"vals": [1.5, -2.0]}),
    "int64_data": (TensorProto.INT64, {"vals": [1, -2]}),
    "int8 in int32_data": (TensorProto.INT8, {"vals": [1, -2]}),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_read(name: str) -> None:
    kind, fields = FORMS[name]
    proto = helper.make_tensor("w", kind, [2], **fields)
    assert read(proto, None).astype(np.float64).tolist() == [float(v) for v in fields["vals"]]
    raw = numpy_helper.from_array(numpy_helper.to_array(proto), "w")
    assert read(raw, None).astype(np.float64).tolist() == [float(v) for v in fields["vals"]]


def test_external_data_is_read_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "w.data").write_bytes(b"\0" * 16 + np.asarray([1.5, -2.0], "<f4").tobytes())
    proto = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "w.data"), ("offset", "16"), ("length", "8")):
        proto.external_data.add(key=key, value=value)
    assert tensor(proto, tmp_path).after(affine(2.0)).exact().tolist() == [3.0, -4.0]


@pytest.mark.parametrize("raw", [b"", b"\0" * 7, b"\0" * 12])
def test_bytes_that_do_not_fit_the_shape_are_malformed(raw: bytes) -> None:
    proto = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], raw_data=raw)
    with pytest.raises(MalformedModel, match="w"):
        read(proto, None)


@pytest.mark.parametrize(
    ("kind", "value", "scale", "word"),
    [
        (TensorProto.FLOAT16, 300.0, 300.0, "overflow"),
        (TensorProto.FLOAT16, 1e-4, 1e-4, "become 0"),
        (TensorProto.FLOAT16, 1e-4, 1e-3, None),
        (TensorProto.FLOAT, 1e30, 1e10, "overflow"),
        (TensorProto.FLOAT, 1e-30, 1e-30, None),  # a dead channel: nobody can tell it from 0 in float32
        (TensorProto.BFLOAT16, 1e30, 1e10, "overflow"),
        (TensorProto.DOUBLE, 1e300, 1e10, "overflow"),
        (TensorProto.DOUBLE, 1e30, 1e10, None),
    ],
)
def test_what_does_not_fit_its_type_says_so(kind: int, value: float, scale: float, word: str | None) -> None:
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    base = tensor(numpy_helper.from_array(np.asarray([1.0, value]).astype(dtype), "w"), None)
    with np.errstate(over="ignore"):
        found = base.after(affine(scale)).misfit()
    assert (found is None) if word is None else (word in str(found) and "w[1]" in str(found)), found


def test_integers_take_maps_that_stay_in_their_range() -> None:
    base = tensor(numpy_helper.from_array(np.asarray([-128, 0, 127], np.int8), "q"), None)
    flipped = base.after(affine(-1.0, -1.0))
    assert read(flipped.to_proto("q"), None).tolist() == [127, -1, -128]
    assert flipped.misfit() is None and isinstance(flipped, Tensor)


def test_a_large_tensor_is_bounded_without_a_look_at_each_element() -> None:
    base = tensor(numpy_helper.from_array(np.ones(70_000, np.float32), "w"), None)
    assert base.after(affine(1e20)).misfit() is None
    assert "overflow" in str(base.after(affine(1e39)).misfit())
    assert base.data_type == onnx.TensorProto.FLOAT


@pytest.mark.parametrize("where", range(6))
@pytest.mark.parametrize("size", [2, 3000])
def test_a_signalling_nan_is_no_warning(where: int, size: int):
    """Converting one raises the processor's flag; tests turn warnings into errors, and users may."""
    b = Builder()
    b.op("Relu", b.norm(b.op("Conv", b.input("x", 1, 2, 3, 3), b.weight(size, 2, 1, 1), b.weight(size)), size))
    values = b.weights[f"w{where}"].reshape(-1)
    values[1] = np.array(0x7F800001, np.uint32).view(np.float32)
    assert np.isnan(values[1])
    assert not fold(b.model("v2")).report.folded


@pytest.mark.parametrize("kind", ["FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "INT8", "typed"])
def test_nothing_is_read_until_a_block_is_computed(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Not even planned blocks hold anything; and a tensor in a file is read by rows, whatever its type."""
    monkeypatch.setattr(weights, "_BLOCK", 1 << 12)
    code = TensorProto.DataType.Value("FLOAT" if kind == "typed" else kind)
    dtype = helper.tensor_dtype_to_np_dtype(code)
    drawn = np.random.default_rng(0).integers(-7, 7, (301, 40)).astype(dtype)
    proto = numpy_helper.from_array(drawn, "w")
    if kind == "typed":
        proto = helper.make_tensor("w", code, drawn.shape, drawn.reshape(-1))
    else:
        (tmp_path / "w.bin").write_bytes(b"123" + proto.raw_data)
        entries = {"location": "w.bin", "offset": "3", "length": str(len(proto.raw_data))}
        proto = TensorProto(name="w", data_type=code, dims=drawn.shape, data_location=TensorProto.EXTERNAL)
        for key, text in entries.items():
            proto.external_data.add(key=key, value=text)
    calls: list[str] = []
    right = Tensor.array
    monkeypatch.setattr(Tensor, "array", lambda self: calls.append("array") or right(self))
    step = affine(np.random.default_rng(1).choice([-1.0, 1.0], (301, 1)), 0.0)
    edited = tensor(proto, tmp_path).after(step)
    planned = list(edited.pieces())
    assert not calls and len(planned) > 2
    with Sources() as sources:
        made = b"".join(bytes(make(sources)) for _, make in planned)
    assert calls == (["array"] if kind == "typed" else [])
    assert made == rounded(edited.exact(), code).tobytes()
