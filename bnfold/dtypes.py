"""The element types of tensors, by ONNX's TensorProto codes: how they are stored, their range, one rounding to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from .affine import Array

DTYPES: dict[int, np.dtype[Any]] = {
    onnx.TensorProto.FLOAT: np.dtype("<f4"),
    onnx.TensorProto.DOUBLE: np.dtype("<f8"),
    onnx.TensorProto.FLOAT16: np.dtype("<f2"),
    onnx.TensorProto.INT64: np.dtype("<i8"),
    onnx.TensorProto.INT32: np.dtype("<i4"),
    onnx.TensorProto.INT8: np.dtype("i1"),
    onnx.TensorProto.UINT8: np.dtype("u1"),
}
FLOATS = frozenset(
    (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
)
LARGEST: dict[int, float] = {
    onnx.TensorProto.FLOAT: float(np.finfo(np.float32).max),
    onnx.TensorProto.DOUBLE: float(np.finfo(np.float64).max),
    onnx.TensorProto.FLOAT16: 65504.0,
    onnx.TensorProto.BFLOAT16: 3.3895313892515355e38,
}
# Half of float16's smallest subnormal: what rounds to 0 there (a tie goes to even, which is 0), and is missed, for an
# activation of 1e4 would have made 3e-4 of it. Below float32's 2^-150 nothing is missed: only activations near the end
# of the range could make it more than the last bit of a subnormal. Dead channels (gamma and weights both decayed to
# 1e-39) have such products.
LOST: dict[int, float] = {onnx.TensorProto.FLOAT16: 2.0**-25}


def rounded(exact: Array, data_type: int) -> NDArray[Any]:
    """float64 to the stored type in one rounding, to nearest even; bfloat16 as its uint16 bit pattern."""
    if data_type == onnx.TensorProto.BFLOAT16:
        return _bfloat16(exact)
    if data_type not in FLOATS:
        exact = np.rint(exact)
    with np.errstate(over="ignore", under="ignore"):
        return np.ascontiguousarray(exact).astype(DTYPES[data_type]).reshape(exact.shape)


def _bfloat16(exact: Array) -> NDArray[np.uint16]:
    # Through float32 to nearest would round twice. Round to odd first: the last bit of the float32 says "inexact",
    # and with 16 bits to spare the second rounding is then the right one (Boldo and Melquiond, 2008).
    with np.errstate(over="ignore", under="ignore"):
        single = np.ascontiguousarray(exact).astype(np.float32)
        back = single.astype(np.float64)
        inexact = (back != exact) & np.isfinite(back)
        away = inexact & (np.abs(back) > np.abs(exact))
    bits = single.view(np.uint32).reshape(exact.shape).copy()
    bits = np.where(away, bits - 1, bits) | inexact.astype(np.uint32)  # toward zero, then odd
    finite = np.isfinite(exact)
    nearest = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.asarray(np.where(finite, nearest, bits >> np.uint32(16)), np.uint16)


def itemsize(data_type: int) -> int:
    """Bytes of an element."""
    known = DTYPES.get(data_type)
    return (onnx.helper.tensor_dtype_to_np_dtype(data_type) if known is None else known).itemsize


def type_name(data_type: int) -> str:
    """As in "float16"."""
    return onnx.TensorProto.DataType.Name(data_type).lower()
