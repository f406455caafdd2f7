"""How a runtime computes, and a value with the roundings behind it: what running error bounds are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class NoBound(Exception):
    """An operator whose error is not bounded by counting roundings; the text names it."""


@dataclass(frozen=True)
class Arithmetic:
    """How a runtime computes: unit roundoffs of what is stored and of the sums, roundings of a BatchNormalization.

    `operand`: unit roundoff to which the operands of products are rounded first (TF32), 0 where they are not.
    `certain`: whether the sums are known to be accumulated so; otherwise an exceeded bound is a warning only.
    """

    stored: float
    sums: float
    tiny: float
    largest: float
    norm: int = 8
    operand: float = 0.0
    certain: bool = True

    def share(self, bound: Bounded) -> float:
        """The factor of M in |ŷ − y| ≤ factor·M; infinite where too many roundings leave no bound."""
        if self.stored == self.sums:
            total = gamma(bound.k + bound.n, self.stored)
        else:
            total = gamma(bound.k, self.stored) + gamma(bound.n, self.sums)
        return total + gamma(bound.operands, self.operand)


def gamma(k: int, u: float) -> float:
    """γ_k, infinite from k·u = 1 on."""
    return k * u / (1 - k * u) if k * u < 1 else math.inf


def arithmetic_of(dtype: str, kind: str) -> Arithmetic:
    """dtype: numpy's name of the values' type. kind: "ieee" (a CPU), "gpu" or "tf32"."""
    norm = 8 if kind == "ieee" else 12
    match dtype:
        case "float64":
            return Arithmetic(2.0**-53, 2.0**-53, 2.0**-1022, float(np.finfo(np.float64).max), norm)
        case "float32" if kind == "tf32":
            # Tensor cores add products with truncation: twice float32's unit roundoff.
            return Arithmetic(2.0**-24, 2.0**-23, 2.0**-126, float(np.finfo(np.float32).max), norm, 2.0**-11, False)
        case "float32":  # Winograd and FFT kernels, which a GPU may choose, are outside the theorem
            largest = float(np.finfo(np.float32).max)
            return Arithmetic(2.0**-24, 2.0**-24, 2.0**-126, largest, norm, certain=kind == "ieee")
        case "float16":
            return Arithmetic(2.0**-11, 2.0**-24, 2.0**-25, 65504.0, norm, certain=False)
        case "bfloat16":
            return Arithmetic(2.0**-8, 2.0**-24, 2.0**-126, 3.3895313892515355e38, norm, certain=False)
        case _:
            raise NoBound(f"values of type {dtype}")


@dataclass(frozen=True)
class Bounded:
    """One value: what it is in float64, M, and the roundings behind it.

    k: roundings of single operations. n: lengths of the sums. operands: products' operands that were rounded (TF32).
    """

    value: Array
    size: Array
    k: int = 0
    n: int = 0
    operands: int = 0

    @property
    def exact(self) -> bool:
        return self.k == 0 and self.n == 0
