"""What a check was asked for: the keyword arguments of `bnfold.check`, in one place. See there for their meaning."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from .verdict import Certificate

__all__ = ["Settings"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    samples: int | None = None
    seed: int = 0
    inputs: Sequence[str | os.PathLike[str] | Mapping[str, npt.NDArray[Any]]] | None = None
    shapes: Mapping[str, Sequence[int]] | None = None
    ranges: Mapping[str, tuple[float, float]] | None = None
    calibrated: bool = False
    threads: int | None = None
    exact: Mapping[str, npt.NDArray[Any]] | None = None
    certificate: Certificate | None = None
    integers: tuple[str, ...] = ()
    timeout: float | None = None
    certificate_only: bool = False
    providers: tuple[str, ...] | None = None
    tf32: bool = False
    custom_ops: tuple[Path, ...] = ()
