"""Ops whose result has a type of its own: constants, casts and quantisation. With `promote` every float is float64.

A cast between floats is then the identity; a cast to an integer still truncates, and one to float8 still rounds.
"""

import math
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from bnfold.reference.node import Array, Kernel, Node, floating
from bnfold.reference.tensors import dtype_of, promoted_dtype


def constant(node: Node) -> tuple[Array]:
    for attribute in ("value", "sparse_value"):
        if node.get(attribute) is not None:
            return (node[attribute],)
    real = np.float64 if node.promote else np.float32
    kinds: dict[str, Any] = {"value_float": real, "value_floats": real, "value_int": np.int64, "value_ints": np.int64}
    for attribute, kind in kinds.items():
        if node.get(attribute) is not None:
            return (np.array(node[attribute], dtype=kind),)
    for attribute in ("value_string", "value_strings"):
        if node.get(attribute) is not None:
            return (np.array(node[attribute], dtype=object),)
    raise ValueError("it has no value")


def constant_of_shape(node: Node, shape: Array) -> tuple[Array]:
    value = node.get("value")
    if value is None:
        value = np.zeros(1, dtype=np.float64 if node.promote else np.float32)
    return (np.full(tuple(int(n) for n in shape), value.reshape(-1)[0], dtype=value.dtype),)


def _cast(node: Node, x: Array, dtype: np.dtype[Any]) -> Array:
    if x.dtype == dtype:
        return x
    if dtype.kind in "UOS" or x.dtype.kind in "UOS":
        text = x.astype(str)
        return text.astype(object) if dtype.kind in "UOS" else text.astype(np.float64).astype(dtype)
    if dtype.name == "float8_e8m0fnu":
        rounded = numpy_helper.to_float8e8m0(x.astype(np.float32), bool(node.get("saturate", 1)), node["round_mode"])
        return rounded.astype(dtype)
    if dtype.name.startswith("float8") and node.get("saturate", 1):
        return numpy_helper.saturate_cast(x, dtype)
    if dtype.kind == "b":
        return x != 0
    return x.astype(dtype)


def cast(node: Node, x: Array) -> tuple[Array]:
    """`to` is an element type; a string in opset 1, as 'FLOAT'."""
    to = node["to"]
    if isinstance(to, str):
        to = onnx.TensorProto.DataType.Value(to.upper())
    return (_cast(node, x, dtype_of(to, node.promote)),)


def cast_like(node: Node, x: Array, like: Array) -> tuple[Array]:
    return (_cast(node, x, promoted_dtype(like.dtype) if node.promote else like.dtype),)


def eye_like(node: Node, x: Array) -> tuple[Array]:
    dtype = x.dtype if node.get("dtype") is None else dtype_of(node["dtype"], node.promote)
    rows, columns = x.shape
    return (np.eye(rows, columns, k=node["k"]).astype(dtype),)


def one_hot(node: Node, indices: Array, depth: Array, values: Array) -> tuple[Array]:
    count = int(depth.reshape(-1)[0])
    axis = node["axis"] % (indices.ndim + 1)
    wrapped = indices.astype(np.int64)
    wrapped = np.where(wrapped < 0, wrapped + count, wrapped)
    places = np.arange(count, dtype=np.int64).reshape((-1, *[1] * (indices.ndim - axis)))
    hot = np.equal(np.expand_dims(wrapped, axis), places)
    return (values[hot.astype(np.int64)],)  # [off, on]


def range_(_: Node, start: Array, limit: Array, delta: Array) -> tuple[Array]:
    first, by = start.reshape(-1)[0], delta.reshape(-1)[0]
    count = max(math.ceil((limit.reshape(-1)[0] - first) / by), 0)
    steps = np.arange(count, dtype=np.int64)
    return (np.asarray(first + steps * by).astype(start.dtype),)


def _along(parameter: Array, x: Array, node: Node) -> Array:
    """A scale or zero point as it broadcasts into x: per tensor, per axis, or per block of an axis (opset 21)."""
    if parameter.size == 1 and parameter.ndim <= 1:
        return parameter.reshape(())
    axis = node.get("axis", 1) % x.ndim
    block = node.get("block_size", 0)
    if block:
        whole = np.repeat(parameter, block, axis=axis)
        return np.split(whole, [x.shape[axis]], axis=axis)[0]  # the last block may be short
    return parameter.reshape(-1, *[1] * (x.ndim - axis - 1))


def dequantize_linear(node: Node, x: Array, scale: Array, zero_point: Array | None = None) -> tuple[Array]:
    """(x − z)·s, in the scale's type or, from opset 23, the one that output_dtype names."""
    wide = np.float64 if node.promote else np.float32
    y = x.astype(wide)
    if zero_point is not None:
        y = y - _along(zero_point, x, node).astype(wide)
    y = y * _along(scale, x, node).astype(wide)
    output = node.get("output_dtype") or 0
    return (np.asarray(y).astype(dtype_of(output, node.promote) if output else scale.dtype),)


def quantize_linear(node: Node, x: Array, scale: Array, zero_point: Array | None = None) -> tuple[Array]:
    """saturate(round_half_even(x/s) + z); to a float8, saturate(x/s)."""
    output = node.get("output_dtype") or 0
    dtype = zero_point.dtype if zero_point is not None else dtype_of(output or onnx.TensorProto.UINT8, promote=False)
    wide = np.float64 if node.promote else np.float32
    y = x.astype(wide) / _along(scale, x, node).astype(wide)
    if floating(np.empty(0, dtype=dtype)):
        return (numpy_helper.saturate_cast(y, dtype),)
    y = np.rint(y)
    if zero_point is not None:
        y = y + _along(zero_point, x, node).astype(wide)
    limits: dict[str, tuple[int, int]] = {"int4": (-8, 7), "uint4": (0, 15), "int2": (-2, 1), "uint2": (0, 3)}
    if dtype.name in limits:
        low, high = limits[dtype.name]
    else:
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    return (np.clip(y, low, high).astype(np.int64).astype(dtype),)


def dynamic_quantize_linear(_: Node, x: Array) -> tuple[Array, ...]:
    """Its scale is a float32 by definition, but the arithmetic is x's own."""
    high, low = max(x.max(initial=0), 0), min(x.min(initial=0), 0)
    scale = np.asarray((high - low) / x.dtype.type(255) if high != low else 1).astype(x.dtype)
    zero = np.asarray(np.clip(np.rint(-low / scale), 0, 255))
    y = np.clip(np.rint(x / scale) + zero, 0, 255)
    return y.astype(np.uint8), scale, zero.astype(np.uint8)


KERNELS: dict[str, Kernel] = {
    "Constant": constant,
    "ConstantOfShape": constant_of_shape,
    "Cast": cast,
    "CastLike": cast_like,
    "EyeLike": eye_like,
    "OneHot": one_hot,
    "Range": range_,
    "DequantizeLinear": dequantize_linear,
    "QuantizeLinear": quantize_linear,
    "DynamicQuantizeLinear": dynamic_quantize_linear,
}
TYPED = frozenset(
    {"Constant", "ConstantOfShape", "Cast", "CastLike", "EyeLike", "OneHot", "DequantizeLinear", "QuantizeLinear"}
)
