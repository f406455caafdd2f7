"""Tensors of a model as arrays: read once, from the file beside the model where they are external, and promoted.

Promotion is exact: float16, bfloat16 and float32 are subsets of float64. The 8- and 4-bit floats are quantised data
and stay as they are, like integers.
"""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, external_data_helper, numpy_helper

from bnfold.errors import MalformedModel
from bnfold.files import read_external
from bnfold.reference.node import Array

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
HALF = frozenset({np.dtype(np.float16), _BFLOAT16})
_PROMOTED = {
    np.dtype(np.float16): np.float64,
    _BFLOAT16: np.float64,
    np.dtype(np.float32): np.float64,
    np.dtype(np.complex64): np.complex128,
}


def promoted(x: Array) -> Array:
    """x in float64 if it holds floats, else x itself."""
    wider = _PROMOTED.get(x.dtype)
    return x if wider is None else x.astype(wider)


def promoted_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(_PROMOTED.get(dtype, dtype))


def dtype_of(data_type: int, promote: bool) -> np.dtype[Any]:
    """The numpy type of an ONNX element type, float64 for the floats when `promote`."""
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(data_type))
    return promoted_dtype(dtype) if promote else dtype


def tensor(proto: TensorProto, directory: Path | None, promote: bool) -> Array:
    """The array of a TensorProto, which is not modified. External data lies under `directory`."""
    if external_data_helper.uses_external_data(proto):
        if directory is None:
            raise MalformedModel(f"The data of {proto.name!r} is in another file, and no directory was given.")
        raw = read_external(proto, directory)
        proto = TensorProto(name=proto.name, data_type=proto.data_type, dims=proto.dims, raw_data=raw)
    try:
        array = numpy_helper.to_array(proto)
    except (ValueError, TypeError) as error:
        raise MalformedModel(f"The tensor {proto.name!r} is malformed: {error}") from error
    return promoted(array) if promote else array


def sparse_tensor(proto: onnx.SparseTensorProto, directory: Path | None, promote: bool) -> Array:
    """The dense array of a SparseTensorProto; its indices are linear, or one row of coordinates a value."""
    values = tensor(proto.values, directory, promote)
    indices = tensor(proto.indices, directory, promote)
    dense = np.zeros(tuple(proto.dims), dtype=values.dtype)
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return dense
