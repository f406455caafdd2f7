"""Gate 1, the certificate: every folded tensor is the correctly rounded one. It needs no data and no runtime.

sources     scale and shift of every folded node are computed again, in extended precision, from the original's bytes
tensors     fl(W* - d) <= W' <= fl(W* + d), d = 8*k*2^-53*M for k affines taken in, M the sum of the absolute terms
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..bodies import graphs_of
from ..dtypes import rounded
from ..files import load
from ..weights import Tensor, read

if TYPE_CHECKING:
    from ..result import FoldResult, Record

_U = 2.0**-53
_BLOCK = 1 << 20  # elements that are looked at together
_Wide = NDArray[np.longdouble]


@dataclass(frozen=True)
class CertificateResult:
    """Gate 1's answer. `figures`: how many tensors and sources were recomputed, and which one was wrong by how much."""

    passed: bool
    sentence: str
    figures: dict[str, Any] = field(default_factory=dict[str, Any])


def certify(result: FoldResult, candidate: str | os.PathLike[str] | onnx.ModelProto | None = None) -> CertificateResult:
    """Recompute what the fold should have written and compare it with what `candidate` holds (default: the result).

    Raises UnreadableModel and its kin where the candidate cannot be read.
    """
    model = result.model if candidate is None else candidate
    directory = result.source.directory
    if not isinstance(model, onnx.ModelProto):
        loaded = load(model)
        model, directory = loaded.model, loaded.directory
    for record in result.records:
        wrong = _source_error(record)
        if wrong is not None:
            return CertificateResult(False, wrong, {"sources": len(result.records), "wrong": record.node.at})
    count = sum(map(len, result.edited))
    for graph, edited in zip(graphs_of(model.graph), result.edited, strict=False):
        written = {t.name: t for t in graph.initializer}
        for name, tensor in edited.items():
            proto = written.get(name)
            if proto is None:
                return CertificateResult(False, f"The folded weight {name} is not in the candidate.", {"wrong": name})
            wrong = _tensor_error(name, tensor, read(proto, directory), proto.data_type)
            if wrong is not None:
                return CertificateResult(False, wrong, {"tensors": count, "wrong": name})
    figures = {"tensors": count, "sources": len(result.records)}
    return CertificateResult(
        True,
        f"{figures['tensors']} folded tensors are correctly rounded, from {figures['sources']} recomputed maps",
        figures,
    )


def _wide(tensor: Tensor) -> tuple[_Wide, _Wide]:
    """A parameter with its edits, and M of its terms: the sum of what was added up, in absolute values."""
    value = tensor.doubles().astype(np.longdouble)
    size = np.abs(value)
    for step in tensor.steps:
        scale, shift = step.scale.astype(np.longdouble), step.shift.astype(np.longdouble)
        value = value * scale + shift
        size = size * np.abs(scale) + np.abs(shift)
    return np.broadcast_to(value, tensor.shape), np.broadcast_to(max(1, len(tensor.steps)) * size, tensor.shape)


def _source_error(record: Record) -> str | None:
    """Compute scale and shift again, from the parameters' own bytes and the epsilon of the node's own protobuf."""
    found = [None if p is None else _wide(p) for p in record.parameters]
    node = record.node
    if node.op_type == "BatchNormalization":
        (gamma, gamma_m), (beta, beta_m), (mean, mean_m), (variance, variance_m) = (p for p in found[1:5] if p)
        epsilon = np.longdouble(next((a.f for a in node.proto.attribute if a.name == "epsilon"), np.float32(1e-5)))
        scale = gamma / np.sqrt(variance + epsilon)
        scale_m = np.abs(scale) * (1 + variance_m / (variance + epsilon)) + gamma_m / np.sqrt(variance + epsilon)
        shift, shift_m = beta - scale * mean, beta_m + np.abs(scale) * mean_m + scale_m * np.abs(mean)
    else:
        ((constant, constant_m),) = (p for p in found if p is not None)
        first = found[0] is not None
        one, zero = np.ones_like(constant), np.zeros_like(constant)
        match node.op_type:
            case "Mul":
                scale, scale_m, shift, shift_m = constant, constant_m, zero, zero
            case "Div":
                scale, shift, shift_m = 1 / constant, zero, zero
                scale_m = np.abs(scale) * (1 + constant_m * np.abs(scale))
            case "Add":
                scale, scale_m, shift, shift_m = one, zero, constant, constant_m
            case _:
                scale, scale_m, shift_m = (-one if first else one), zero, constant_m
                shift = constant if first else -constant
    axis = node.attribute("axis", None) if node.attribute("broadcast", 0) else None
    for name, expected, got, size in (
        ("scale", scale, record.scale, scale_m), ("shift", shift, record.shift, shift_m)
    ):  # fmt: skip
        used = _spread(got, expected, axis)
        difference = np.abs(used - expected.reshape(-1)) - 8 * _U * size.reshape(-1)
        if not (difference <= 0).all():
            worst = int(np.argmax(difference))
            return (
                f"The {name} of {node.at} is {used[worst]:.17g} at element {worst}; "
                f"its parameters give {float(expected.reshape(-1)[worst]):.17g}."
            )
    return None


def _spread(got: NDArray[np.float64], expected: _Wide, axis: int | None) -> NDArray[np.float64]:
    """The used coefficients, squashed where they were constant, at the size of the recomputed ones.

    axis: of the value, where the parameter's own axes begin; None: they are the last ones.
    """
    flat = got.reshape(-1)
    if flat.size in (1, expected.size):
        return np.broadcast_to(flat, (expected.size,))
    first = got.ndim - expected.ndim if axis is None else axis % got.ndim
    own = got.reshape(got.shape[first : first + expected.ndim])
    return np.broadcast_to(own, expected.shape).reshape(-1)


def _tensor_error(name: str, tensor: Tensor, got: NDArray[Any], data_type: int) -> str | None:
    if data_type != tensor.data_type or tuple(got.shape) != tensor.shape:
        return f"The folded weight {name} has another type or shape in the candidate."
    base = np.broadcast_to(tensor.array(), _base_shape(tensor))
    rows = max(1, _BLOCK // max(1, tensor.size // max(1, tensor.shape[0]))) if tensor.shape else 1
    count = tensor.shape[0] if tensor.shape else 1
    for start in range(0, count, rows):
        part = slice(start, start + rows)
        value = _rows(base, part, tensor).astype(np.float64).astype(np.longdouble)
        size = np.abs(value)
        for step in tensor.steps:
            scale, shift = (_rows(c, part, tensor).astype(np.longdouble) for c in (step.scale, step.shift))
            value = value * scale + shift
            size = size * np.abs(scale) + np.abs(shift)
        slack = np.longdouble(8 * max(1, len(tensor.steps)) * _U) * np.where(np.isfinite(size), size, 0)
        low, high = (_ordered(rounded(np.asarray(v, np.float64), data_type)) for v in (value - slack, value + slack))
        piece = _ordered(_rows(got, part, tensor))
        bad = ~((low <= piece) & (piece <= high))
        if bad.any():
            where = np.unravel_index(int(np.argmax(bad)), bad.shape)
            index = ", ".join(str(int(i) + (start if k == 0 and tensor.shape else 0)) for k, i in enumerate(where))
            right = float(np.broadcast_to(value, bad.shape)[where])
            held = float(np.broadcast_to(piece, bad.shape)[where])
            return f"The folded weight {name}[{index}] is {held:.9g}; it should be {right:.9g}."
    return None


def _base_shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.array().shape)


def _rows(array: NDArray[Any], part: slice, tensor: Tensor) -> NDArray[Any]:
    """The block of leading rows of something that broadcasts to the tensor's shape."""
    same_rank = array.ndim == len(tensor.shape) and array.ndim > 0
    return array[part] if same_rank and array.shape[0] == tensor.shape[0] and array.shape[0] > 1 else array


def _ordered(stored: NDArray[Any]) -> NDArray[np.float64]:
    """Stored values as float64, exactly; bfloat16 comes as its bit pattern, or as numpy's extension type."""
    if stored.dtype == np.uint16:
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    return stored.astype(np.float64)
