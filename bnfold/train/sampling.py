# torch leaves parts of its interface untyped: what comes from them is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""The samples of .npz files as a loader: batches {input's name: tensor}, cut as bnfold.stats cuts them for ONNX."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx
import torch
from torch import Tensor

from ..check.sizes import GraphInput
from ..pytorch.tensors import TYPES
from ..stats.samples import batches

__all__ = ["Samples", "wanted"]


class Samples:
    """Every sample of every file, in batches, as often as it is iterated.

    inputs: what the model takes; dtypes: of its inputs, where that is none that numpy has. `at` says where each batch
    of the last pass came from, `rows` how many rows of axis 0 it had in all.
    """

    def __init__(
        self, sources: Sequence[Path], inputs: Sequence[GraphInput], dtypes: Mapping[str, torch.dtype] | None = None
    ) -> None:
        self._sources, self._inputs, self._dtypes = tuple(sources), tuple(inputs), dict(dtypes or {})
        self.at: list[str] = []
        self.rows = 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        self.at, self.rows = [], 0
        for batch in batches(self._sources, self._inputs):
            self.at.append(batch.at)
            self.rows += max((len(value) for value in batch.feeds.values() if value.ndim), default=1)
            feeds = {name: torch.from_numpy(value.copy()) for name, value in batch.feeds.items()}
            yield {name: value.to(self._dtypes.get(name, value.dtype)) for name, value in feeds.items()}


def wanted(name: str, dims: Sequence[int | str], dtype: torch.dtype) -> GraphInput:
    """An input of these dimensions; a bfloat16 one is fed from float32."""
    kind = onnx.TensorProto.FLOAT if dtype == torch.bfloat16 else TYPES.get(dtype, onnx.TensorProto.FLOAT)
    return GraphInput(name, kind, tuple(dims))
