"""Writing a model: everything is made in a hidden directory beside the target, synced, and moved into place at the end.

Whatever fails before the move leaves the target as it was. The data file moves first, so that a model never refers to
data that is not there.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import onnx
import onnx.numpy_helper

from ..errors import UnwritableOutput, UsageError
from .external import blocks, extent, payload, tensors
from .formats import BINARY, JSON, format_of
from .loading import LIMIT, ModelFile, size_of

ALIGNMENT = 4096  # of external tensors, so that a runtime can map them
_SMALL = 1024  # bytes; a smaller tensor stays in the model file


class Staging:
    """A place beside `target` where its files are made; `commit` moves them there, leaving the block removes the rest.

    `keep_mode_of`: the files take over the permissions (and, where allowed, the owner) of this one.
    """

    def __init__(self, target: str | os.PathLike[str], *, keep_mode_of: Path | None = None) -> None:
        self.target = Path(target)
        self._like = keep_mode_of
        self._directory: Path | None = None

    def __enter__(self) -> Staging:
        with _explained(self.target):
            self._directory = Path(tempfile.mkdtemp(prefix=".bnfold-", dir=self.target.parent))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def path(self) -> Path:
        """Where the model file is made; it has the target's name already."""
        assert self._directory is not None, "a Staging is used in a with statement"
        return self._directory / self.target.name

    def commit(self) -> list[Path]:
        """Move what was made into place, the model file last; returns the final paths, the model file first."""
        with _explained(self.target), _uninterrupted():
            made = sorted(path for path in self.path.parent.rglob("*") if path.is_file() and path != self.path)
            moved = [self.target]
            for path in (*made, self.path):
                final = self.target.parent / path.relative_to(self.path.parent)
                if self._like is not None:
                    _like(path, self._like)
                final.parent.mkdir(parents=True, exist_ok=True)
                path.replace(final)
                if final != self.target:
                    moved.append(final)
            _sync_directory(self.target.parent)
            return moved


def save(
    model: onnx.ModelProto,
    path: str | os.PathLike[str],
    *,
    directory: Path | None = None,
    external: bool | None = None,
    keep_mode_of: Path | None = None,
) -> list[Path]:
    """Write `model` to `path`, atomically; the argument is not modified. Returns the files written, the model first.

    External tensors are copied from `directory` to `<path>.data`. `external` moves the model's own tensors of 1 KiB and
    more there too; None: only if some tensor is external already, or the model would pass protobuf's limit of 2 GiB.
    The same model gives the same bytes. Raises UnwritableOutput.
    """
    path = Path(path)
    with Staging(path, keep_mode_of=keep_mode_of) as stage, _explained(path):
        if external is None:
            external = any(_is_external(proto) for proto in tensors(model))
            external = external or (_about(model) > LIMIT // 2 and size_of(model) > LIMIT)
        if external:
            copied = onnx.ModelProto()
            copied.CopyFrom(model)
            model = copied
            _externalize(model, stage.path, directory)
        _write(stage.path, serialize(model, path))
        return stage.commit()


def _about(model: onnx.ModelProto) -> int:
    """The bytes of the tensors by their shapes; asking protobuf costs as much as serializing the whole."""
    return sum(math.prod(proto.dims) * 8 for proto in tensors(model))


def copy(source: ModelFile, path: str | os.PathLike[str], *, overwrite: bool = True) -> list[Path]:
    """Write the source's own bytes to `path`; its external data files come along under the names that the model uses.

    Data files that are there already because `path` is beside the source are left alone. Raises UsageError if another
    file stands in the way and `overwrite` is false.
    """
    path = Path(path)
    if source.path is None or format_of(path) != format_of(source.path):
        return save(source.model, path, directory=source.directory)
    with Staging(path) as stage, _explained(path):
        for location, data in source.data.items():
            there = path.parent / location
            if there.exists():
                if there.samefile(data):
                    continue
                if not overwrite:
                    raise UsageError(f"{there} exists, and the copy needs its data file there; --force overwrites it.")
            staged = stage.path.parent / location
            staged.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(data, staged)
            _sync(staged)
        shutil.copyfile(source.path, stage.path)
        _sync(stage.path)
        return stage.commit()


def serialize(model: onnx.ModelProto, path: Path) -> bytes:
    """The bytes of `model` in the format that the extension of `path` stands for."""
    kind = format_of(path)
    if kind == BINARY:
        return model.SerializeToString(deterministic=True)
    from google.protobuf import json_format, text_format

    if kind == JSON:
        return json_format.MessageToJson(model, preserving_proto_field_name=True).encode()
    return text_format.MessageToString(model).encode()


def _externalize(model: onnx.ModelProto, path: Path, directory: Path | None) -> None:
    name = path.name + ".data"
    end = 0
    with path.with_name(name).open("xb") as file:
        for proto in tensors(model):
            if not _is_external(proto) and not _is_large(proto):
                continue
            start = -(-end // ALIGNMENT) * ALIGNMENT
            file.seek(start)
            end = start + _put(file, proto, directory)
            _point(proto, name, start, end - start)
        file.truncate(end)
        file.flush()
        os.fsync(file.fileno())


def _put(file: BinaryIO, proto: onnx.TensorProto, directory: Path | None) -> int:
    if not _is_external(proto):
        return file.write(_bytes(proto))
    where = extent(proto, directory)
    for block in blocks(where):
        file.write(block)
    return where.length


def _point(proto: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "external_data"):
        proto.ClearField(field)
    proto.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        proto.external_data.add(key=key, value=value)


def _bytes(proto: onnx.TensorProto) -> bytes:
    if proto.HasField("raw_data"):
        return proto.raw_data
    array = onnx.numpy_helper.to_array(proto)
    return onnx.numpy_helper.from_array(np.ascontiguousarray(array)).raw_data


def _is_external(proto: onnx.TensorProto) -> bool:
    return proto.data_location == onnx.TensorProto.EXTERNAL


def _is_large(proto: onnx.TensorProto) -> bool:
    return proto.data_type != onnx.TensorProto.STRING and payload(proto) >= _SMALL


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    if os.name != "posix":
        return  # only POSIX lets a directory be opened
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _like(path: Path, model: Path) -> None:
    info = model.stat()
    path.chmod(info.st_mode & 0o7777)
    own = path.stat()
    if os.name == "posix" and (own.st_uid, own.st_gid) != (info.st_uid, info.st_gid):
        try:
            os.chown(path, info.st_uid, info.st_gid)
        except PermissionError:
            return  # only the superuser can give a file away; the permissions are what counts
        path.chmod(info.st_mode & 0o7777)  # chown clears the set-id bits


@contextmanager
def _uninterrupted() -> Generator[None]:
    """Put Ctrl-C off for the moment that it takes to rename a pair of files."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _explained(target: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UnwritableOutput(f"{target} cannot be written: {reason}. Nothing was changed there.") from error
