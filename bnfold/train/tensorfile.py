# torch leaves parts of its interface untyped: what comes from them is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""float64 tensors in a safetensors file: the header's length (8 bytes), a JSON header, and the values behind it.

{"NAME": {"dtype": "F64", "shape": [...], "data_offsets": [begin, end]}, "__metadata__": {str: str}}. The format is
that small, and this way a ledger needs no further package; the safetensors library reads these files.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UnwritableOutput, UsageError


def save(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write `path`, whole or not at all. Raises UnwritableOutput."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    chunks: list[bytes] = []
    end = 0
    for name, tensor in tensors.items():
        chunks.append(tensor.detach().double().cpu().contiguous().numpy().astype("<f8").tobytes())
        begin, end = end, end + len(chunks[-1])
        header[name] = {"dtype": "F64", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # values begin at a multiple of 8
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("wb") as file:
            file.writelines([len(text).to_bytes(8, "little"), text, *chunks])
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UnwritableOutput(f"{target} could not be written: {error.strerror or error}.") from error


def load(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file that `save` wrote. Raises UsageError if it is not such a file."""
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{path} could not be read: {error.strerror or error}.") from error
    length = int.from_bytes(raw[:8], "little")
    values = memoryview(raw)[8 + length :]
    try:
        header = json.loads(raw[8 : 8 + length])
        metadata = header.pop("__metadata__", {})
        tensors = {name: _tensor(entry, values) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is not a safetensors file of float64 values, or is damaged.") from error
    return tensors, metadata


def _tensor(entry: dict[str, Any], values: memoryview) -> Tensor:
    begin, end = entry["data_offsets"]
    shape = [int(size) for size in entry["shape"]]
    if entry["dtype"] != "F64" or not 0 <= begin <= end <= len(values) or end - begin != 8 * prod(shape):
        raise ValueError("an entry that is no float64 tensor within the file")
    if begin == end:
        return torch.empty(shape, dtype=torch.float64)
    return torch.frombuffer(bytearray(values[begin:end]), dtype=torch.float64).reshape(shape).clone()
