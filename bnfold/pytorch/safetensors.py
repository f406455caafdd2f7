# torch leaves parts of its interface untyped: what comes from there is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""safetensors, without its package: 8 bytes for the length of a JSON header, the header, and the tensors' bytes.

{"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ..., "__metadata__": {...}}
"""

from __future__ import annotations

import json
import math
import mmap
from pathlib import Path
from typing import Any, cast

import torch

from ..errors import UnreadableModel

_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_LONGEST = 100_000_000  # bytes of a header, as the format's own reader has it


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file, by name. Raises UnreadableModel for a file that is damaged or none."""
    try:
        return _read(path)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UnreadableModel(f"{path} cannot be read as safetensors: {str(error) or type(error).__name__}.") from error


def _read(path: Path) -> dict[str, torch.Tensor]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = path.stat().st_size
        if not 2 <= length <= min(_LONGEST, size - 8):
            raise ValueError("its header is longer than the file")
        header: Any = json.loads(file.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is no table of tensors")
        held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with held:
            entries = cast(dict[str, Any], header).items()
            return {name: _tensor(held, 8 + length, name, e) for name, e in entries if name != "__metadata__"}


def _tensor(held: mmap.mmap, start: int, name: str, entry: Any) -> torch.Tensor:
    kind, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if kind not in _TYPES:
        raise ValueError(f"{name} is of the type {kind}, which is not known here")
    dtype = _TYPES[kind]
    if not all(isinstance(d, int) and d >= 0 for d in (*shape, begin, end)):
        raise ValueError(f"the shape or place of {name} is no list of sizes")
    if end - begin != math.prod(shape) * dtype.itemsize or not 0 <= begin <= end <= len(held) - start:
        raise ValueError(f"{name} does not lie in the file as its shape says")
    if begin == end:
        return torch.zeros(shape, dtype=dtype)
    return torch.frombuffer(bytearray(held[start + begin : start + end]), dtype=dtype).reshape(shape)
