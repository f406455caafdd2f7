"""Gate 1, the certificate: every folded tensor is the correctly rounded one. It needs no data and no runtime.

sources     scale and shift of every folded node are computed again, in extended precision, from the original's bytes
tensors     fl(W* - d) <= W' <= fl(W* + d), d = 8*k*2^-53*M for k affines taken in, M the sum of the absolute terms
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..files import load
from ..weights import Tensor, read, rounded

if TYPE_CHECKING:
    from ..fold import FoldResult, Record

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
    written = {t.name: t for t in _initializers(model.graph)}
    for name, tensor in result.edited.items():
        proto = written.get(name)
        if proto is None:
            return CertificateResult(False, f"The folded weight {name} is not in the candidate.", {"wrong": name})
        wrong = _tensor_error(name, tensor, read(proto, directory), proto.data_type)
        if wrong is not None:
            return CertificateResult(False, wrong, {"tensors": len(result.edited), "wrong": name})
    figures = {"tensors": len(result.edited), "sources": len(result.records)}
    return CertificateResult(
        True,
        f"{figures['tensors']} folded tensors are correctly rounded, from {figures['sources']} recomputed maps",
        figures,
    )


def _initializers(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _initializers(body)


def _wide(tensor: Tensor) -> _Wide:
    value = tensor.array().astype(np.float64).astype(np.longdouble)
    for step in tensor.steps:
        value = value * step.scale.astype(np.longdouble) + step.shift.astype(np.longdouble)
    return np.broadcast_to(value, tensor.shape)


def _source_error(record: Record) -> str | None:
    """Compute scale and shift again, from the parameters' own bytes and the epsilon of the node's own protobuf."""
    found = [None if p is None else _wide(p) for p in record.parameters]
    node = record.node
    if node.op_type == "BatchNormalization":
        gamma, beta, mean, variance = (p for p in found[1:5] if p is not None)
        epsilon = next((a.f for a in node.proto.attribute if a.name == "epsilon"), float(np.float32(1e-5)))
        if not any(a.name == "epsilon" for a in node.proto.attribute):
            epsilon = 1e-5
        scale = gamma / np.sqrt(variance + np.longdouble(epsilon))
        shift, size = beta - scale * mean, np.abs(beta) + np.abs(scale * mean)
    else:
        (constant,) = (p for p in found if p is not None)
        first = found[0] is not None
        one = np.ones_like(constant)
        match node.op_type:
            case "Mul":
                scale, shift = constant, 0 * constant
            case "Div":
                scale, shift = 1 / constant, 0 * constant
            case "Add":
                scale, shift = one, constant
            case _:
                scale, shift = (-one, constant) if first else (one, -constant)
        size = np.abs(shift)
    for name, expected, got, slack in (
        ("scale", scale, record.scale, np.abs(scale)), ("shift", shift, record.shift, size)
    ):  # fmt: skip
        difference = np.abs(_spread(got, expected) - expected.reshape(-1))
        if not (difference <= 8 * _U * slack.reshape(-1)).all():
            worst = int(np.argmax(difference - 8 * _U * slack.reshape(-1)))
            return (
                f"The {name} of {node.at} is {_spread(got, expected)[worst]:.9g} at element {worst}; "
                f"its parameters give {float(expected.reshape(-1)[worst]):.9g}."
            )
    return None


def _spread(got: NDArray[np.float64], expected: _Wide) -> NDArray[np.float64]:
    """The used coefficients, squashed where they were constant, at the size of the recomputed ones."""
    flat = got.reshape(-1)
    if flat.size in (1, expected.size):
        return np.broadcast_to(flat, (expected.size,))
    squeezed = got.reshape([d for d in got.shape if d > 1])
    shape = [d for d in expected.shape if d > 1]
    lead = [d if d in squeezed.shape else 1 for d in shape]
    return np.broadcast_to(squeezed.reshape(lead), shape).reshape(-1)


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
        slack = np.longdouble(8 * max(1, len(tensor.steps)) * _U) * size
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
