"""A running error bound: |ŷ − y| ≤ γ_k·M, M the value of the same graph on absolute values, γ_k = k·u/(1 − k·u).

k counts the roundings on the longest path: n for a dot product of length n in any order, 8 for a BatchNormalization
(12 where 1/√ is approximate), one for each sum or product. M carries u⁻¹·tiny from every op: what underflow may lose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx

from . import op_bounds
from .arithmetic import Arithmetic, Array, Bounded


def running_bounds(
    model: onnx.ModelProto,
    values: Mapping[str, Array],
    arithmetic: Arithmetic,
    rounded: Mapping[str, int],
    *,
    off: Mapping[str, Array] | None = None,
    kernels: op_bounds.Kernels | None = None,
) -> dict[str, Bounded]:
    """The bounds of all values that the nodes of `model` make, by name.

    values: everything in float64, graph inputs, initializers and what nodes make. rounded: how many roundings an
    initializer has behind it (a folded weight has one), by name. off: how far an initializer is from its value where
    the runtime uses it. kernels: those of another runtime than ONNX's. Raises NoBound.
    """
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    made: dict[str, Bounded] = {}

    def given(name: str) -> Bounded | None:
        if not name:
            return None
        if name not in made:
            made[name] = op_bounds.given(values[name])
            if name in rounded and values[name].dtype.kind == "f":  # it may have become subnormal, or zero
                size = made[name].size + arithmetic.tiny / arithmetic.stored
                made[name] = replace(made[name], size=size, k=rounded[name])
            if off is not None and name in off:
                made[name] = replace(made[name], size=made[name].size + off[name] / arithmetic.stored, k=1)
        return made[name]

    for node in model.graph.node:
        operands = [given(name) for name in node.input]
        outputs = [values[name] if name else None for name in node.output]
        found = op_bounds.bound(op_bounds.Op(node, operands, outputs, arithmetic, opsets, kernels or op_bounds.ONNX))
        for name, bound in zip(node.output, found, strict=False):
            if name:
                made[name] = bound
    return made
