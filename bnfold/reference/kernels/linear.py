"""Products of matrices: Gemm, MatMul and Einsum, and the integer products.

Gemm   α·op(A)·op(B) + β·C
"""

import numpy as np

from bnfold.reference.node import Array, Kernel, Node


def gemm(node: Node, a: Array, b: Array, c: Array | None = None) -> tuple[Array]:
    """Before opset 7 C broadcasts only with `broadcast` 1, and then as numpy does."""
    left = a.T if node["transA"] else a
    right = b.T if node["transB"] else b
    y = left @ right
    if node["alpha"] != 1:
        y *= node["alpha"]
    if c is not None and node["beta"] != 0:
        y += c if node["beta"] == 1 else node["beta"] * c
    return (y,)


def matmul(_: Node, a: Array, b: Array) -> tuple[Array]:
    return (np.asarray(np.matmul(a, b)),)


def einsum(node: Node, *inputs: Array) -> tuple[Array]:
    return (np.asarray(np.einsum(node["equation"].replace(" ", ""), *inputs, optimize=True)),)


def _centred(x: Array, zero_point: Array | None, column: bool) -> Array:
    """x minus its zero point in int32; a zero point of rank 1 belongs to A's rows or B's columns."""
    wide = x.astype(np.int32)
    if zero_point is None:
        return wide
    zero = zero_point.astype(np.int32)
    if column and zero.ndim == 1 and zero.size > 1:
        zero = zero[:, None]
    return wide - zero


def matmul_integer(
    _: Node, a: Array, b: Array, a_zero_point: Array | None = None, b_zero_point: Array | None = None
) -> tuple[Array]:
    return (np.asarray(np.matmul(_centred(a, a_zero_point, True), _centred(b, b_zero_point, False))),)


KERNELS: dict[str, Kernel] = {"Gemm": gemm, "MatMul": matmul, "Einsum": einsum, "MatMulInteger": matmul_integer}
