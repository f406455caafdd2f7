# torch leaves parts of its interface untyped: what comes from there is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Tensors between torch and the store of the engine: TensorProto <-> torch.Tensor, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch

TYPES: dict[torch.dtype, int] = {
    torch.float32: onnx.TensorProto.FLOAT,
    torch.float64: onnx.TensorProto.DOUBLE,
    torch.float16: onnx.TensorProto.FLOAT16,
    torch.bfloat16: onnx.TensorProto.BFLOAT16,
    torch.int64: onnx.TensorProto.INT64,
    torch.int32: onnx.TensorProto.INT32,
    torch.int16: onnx.TensorProto.INT16,
    torch.int8: onnx.TensorProto.INT8,
    torch.uint8: onnx.TensorProto.UINT8,
    torch.bool: onnx.TensorProto.BOOL,
}
_BY_CODE = {code: dtype for dtype, code in TYPES.items()}


def to_proto(tensor: torch.Tensor, name: str) -> onnx.TensorProto:
    """The tensor's own bits. Its dtype must be one of `TYPES`."""
    held = tensor.detach().cpu().contiguous()
    raw = held.reshape(-1).view(torch.uint8).numpy().tobytes() if held.numel() else b""
    return onnx.TensorProto(name=name, data_type=TYPES[tensor.dtype], dims=tuple(tensor.shape), raw_data=raw)


def from_proto(proto: onnx.TensorProto, *, like: torch.Tensor | None = None) -> torch.Tensor:
    """The tensor of a proto that holds its own bytes; on the device and in the memory format of `like`."""
    dtype = _BY_CODE[proto.data_type]
    shape = tuple(proto.dims)
    if proto.raw_data:
        flat = torch.frombuffer(bytearray(proto.raw_data), dtype=dtype)
    else:
        flat = torch.zeros(int(np.prod(shape)), dtype=dtype)
    value = flat.reshape(shape)
    if like is None:
        return value
    made = torch.empty_like(like) if tuple(like.shape) == shape else torch.empty(shape, device=like.device)
    return made.to(value.dtype).copy_(value)


def bits(tensor: torch.Tensor) -> bytes:
    """The tensor's elements in their order, as bytes."""
    held: Any = tensor.detach().cpu().contiguous().reshape(-1)
    return held.view(torch.uint8).numpy().tobytes() if held.numel() else b""
