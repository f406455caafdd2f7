"""Reading a model: the file's outside first (is it there, is it ONNX), then its structure, in one linear pass."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError

from ..errors import BnfoldError, MalformedModel, UnreadableModel, UnsupportedModel
from ..hashing import digest
from .external import extent, is_external, tensors
from .formats import BINARY, JSON, foreign, format_of, missing_bytes
from .structure import validate
from .wire import MARK, is_marked, skeleton

LIMIT = 2**31 - 1  # a protobuf message cannot be longer, in bytes
SCANNED = 1 << 24  # bytes; a shorter file is read at once, which is faster than looking for its tensors


@dataclass
class ModelFile:
    """A model as it was read. External tensors keep `data_location` EXTERNAL: their bytes stay in `directory`. So do
    the large tensors of a large file, whose bytes stay in the file itself (wire.py): `model` is a skeleton then.

    `path` is None for a model that came as a ModelProto; `size` counts the bytes of the model file alone; `notes` are
    sentences for people about what had to be repaired.
    """

    model: onnx.ModelProto
    path: Path | None
    directory: Path
    size: int
    notes: tuple[str, ...] = ()
    external: bool = True  # whether tensors may lie in other files; False spares a look at each

    @cached_property
    def sha256(self) -> str:
        """The hex digest of the model file (of the serialized model when there is no file)."""
        if self.path is None:
            if self.size > LIMIT:
                raise UnsupportedModel("A model over 2 GiB has no serialized form to take a digest of; save it first.")
            return hashlib.sha256(self.model.SerializeToString(deterministic=True)).hexdigest()
        return digest(self.path)

    @cached_property
    def data(self) -> dict[str, Path]:
        """The external data files: location, as the model gives it, to path."""
        found: dict[str, Path] = {}
        for proto in tensors(self.model) if self.external else ():
            if is_external(proto):
                where = extent(proto, self.directory)
                found[where.path.relative_to(self.directory).as_posix()] = where.path
        return found

    @property
    def total_size(self) -> int:
        """The bytes of the model file and of its external data together."""
        return self.size + sum(path.stat().st_size for path in self.data.values())


def size_of(model: onnx.ModelProto) -> int:
    """The bytes of the serialized model, or of its tensors alone when it passes protobuf's limit."""
    try:
        return model.ByteSize()
    except EncodeError:
        return sum(proto.ByteSize() for proto in tensors(model))


def load(source: str | os.PathLike[str] | onnx.ModelProto) -> ModelFile:
    """Read and validate a model. A ModelProto is copied; its external data is looked for in the working directory.

    Raises UnreadableModel, MalformedModel or UnsupportedModel; each says what is wrong and what to do.
    """
    if sys.byteorder != "little":
        raise UnsupportedModel(
            "This machine stores numbers with the highest byte first, and ONNX with the lowest: bnfold was never "
            "tested here, so it refuses."
        )
    if isinstance(source, onnx.ModelProto):
        model = onnx.ModelProto()
        model.CopyFrom(source)
        loaded = ModelFile(model, None, Path(), size_of(model))
    else:
        path = Path(source)
        data, size = _read(path)
        loaded = ModelFile(
            _parse(path, data), path, path.parent, size, external=format_of(path) != BINARY or b"location" in data
        )
    if not loaded.model.HasField("graph"):
        name = loaded.path or "The model"
        raise UnreadableModel(f"{name} holds no ONNX graph: it is not an ONNX model, or an empty one.")
    if (loaded.path is None or format_of(loaded.path) != BINARY) and any(map(is_marked, tensors(loaded.model))):
        raise _reserved(loaded.path)
    try:
        if validate(loaded.model, loaded.directory):
            loaded.notes = ("The nodes were not in topological order, which ONNX demands; they were sorted.",)
    except BnfoldError as error:
        if loaded.path is not None:
            raise type(error)(f"{loaded.path}: {error}") from error
        raise
    return loaded


def _reserved(path: Path | None) -> MalformedModel:
    return MalformedModel(f"{path or 'The model'} holds the text '{MARK}', which is reserved.")


def _read(path: Path) -> tuple[bytes, int]:
    """The file, or the skeleton of a large one, and how long the file is."""
    try:
        info = path.stat()
        if stat.S_ISDIR(info.st_mode):
            raise UnreadableModel(f"{path} is a directory; give the .onnx file itself.")
        if not stat.S_ISREG(info.st_mode):
            raise UnreadableModel(f"{path} is not a regular file; save the model to disk and give that file.")
        if info.st_size == 0:
            raise UnreadableModel(f"{path} is empty.")
        with path.open("rb") as file:
            what = foreign(path, file.read(512), info.st_size)
            if what is not None:
                raise UnreadableModel(f"{path} is {what}.")
            binary = format_of(path) == BINARY
            if binary and info.st_size >= SCANNED:
                data = skeleton(file.fileno(), path)
            elif info.st_size <= LIMIT:
                file.seek(0)
                data = file.read()
            else:
                data = b""
            if len(data) > LIMIT or not data:
                raise UnsupportedModel(
                    f"{path} is larger than 2 GiB, which protobuf cannot hold; store the weights as external data."
                )
            if binary and info.st_size < SCANNED and MARK.encode() in data:
                raise _reserved(path)
            return data, info.st_size
    except FileNotFoundError:
        raise UnreadableModel(f"{path} does not exist.") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL byte
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UnreadableModel(f"{path} cannot be read: {reason}.") from error


def _parse(path: Path, data: bytes) -> onnx.ModelProto:
    model = onnx.ModelProto()
    kind = format_of(path)
    if kind == BINARY:
        try:
            model.ParseFromString(data)
        except (DecodeError, UnicodeDecodeError) as error:  # the latter: protobuf in pure Python
            lacking = missing_bytes(data)
            if data[:1] == b"\x08" and lacking:
                raise UnreadableModel(
                    f"{path} is cut short: it has {len(data)} bytes and at least {lacking} more are missing."
                ) from error
            raise UnreadableModel(
                f"{path} is not an ONNX model, or a damaged one: protobuf cannot parse it."
            ) from error
        return model
    from google.protobuf import json_format, text_format  # 15 ms that a binary model need not pay

    try:
        text = data.decode("utf-8")
        if kind == JSON:
            json_format.Parse(text, model)
        else:
            text_format.Parse(text, model)
    except (UnicodeDecodeError, json_format.ParseError, text_format.ParseError, RecursionError) as error:
        why = " ".join(str(error).split())[:200]
        raise UnreadableModel(f"{path} is no ONNX model in {kind}, which its extension stands for: {why}.") from error
    return model
