"""Writing a model: everything is made in a hidden directory beside the target, and moved into place at the end.

Whatever fails before the move leaves the target as it was, and a process that is killed leaves the old model or the new
one, each with its own data.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np
import onnx
from google.protobuf.message import EncodeError

from ..errors import UnwritableOutput, UsageError
from .external import Extent, extent, is_external, payload, tensors
from .formats import BINARY, JSON, format_of
from .loading import LIMIT, ModelFile, load
from .pouring import Computed, Content, gathered, length_of, pour
from .wire import is_folded, is_marked, parts

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
            replaces = os.path.lexists(self.target)
            if replaces:  # a power cut must not leave less than there was; a new file has nothing to lose
                for path in (*made, self.path):
                    _sync(path)
            finals = {path: self.target.parent / path.relative_to(self.path.parent) for path in (*made, self.path)}
            for path, final in finals.items():
                if self._like is not None:
                    _like(path, self._like)
                final.parent.mkdir(parents=True, exist_ok=True)
            if replaces and any(finals[path].exists() for path in made):
                self._aside(made)
            for path in made:
                path.replace(finals[path])
            self.path.replace(self.target)
            if replaces:
                _sync_directory(self.target.parent)
            return [self.target, *(finals[path] for path in made)]

    def _aside(self, made: Sequence[Path]) -> None:
        """Before new data takes the place of what the old model reads, let the new model stand there with a copy of
        its data in here: so there is no moment at which a model and its data do not go together. (A link would do, but
        onnx refuses data that has two.)
        """
        here = self.path.parent
        locations: dict[str, str] = {}
        for path in made:
            copied, size = path.with_name(path.name + ".copy"), path.stat().st_size
            pour(copied, [(0, Extent(path, 0, size))], size)
            _sync(copied)
            locations[path.relative_to(here).as_posix()] = f"{here.name}/{copied.relative_to(here).as_posix()}"
        first = self.path.with_name(self.path.name + ".first")
        first.write_bytes(_redirected(self.path, locations))
        for path in (first, *(here.parent / location for location in locations.values())):
            if self._like is not None:
                _like(path, self._like)
        _sync(first)
        first.replace(self.target)


def save(
    model: onnx.ModelProto,
    path: str | os.PathLike[str],
    *,
    directory: Path | None = None,
    external: bool | None = None,
    keep_mode_of: Path | None = None,
    folded: Mapping[str, Computed] | None = None,
) -> list[Path]:
    """Write `model` to `path`, atomically; the argument is not modified. Returns the files written, the model first.

    External tensors are copied from `directory` to `<path>.data`. `external` moves the model's own tensors of 1 KiB and
    more there too; None: only if some tensor is external already, or the model would pass protobuf's limit of 2 GiB.
    folded: the tensors of a skeleton that are still to be computed, by name.
    The same model gives the same bytes. Raises UnwritableOutput.
    """
    path = Path(path)
    content = _Content(directory, folded or {})
    with Staging(path, keep_mode_of=keep_mode_of) as stage, _explained(path):
        if format_of(path) != BINARY:
            model = materialized(model, directory, folded)
        if external is None:
            external = any(is_external(proto) for proto in tensors(model))
        parts, size = ([], 0) if external else _parts(model, path, content)
        if external or size > LIMIT:
            copied = onnx.ModelProto()
            copied.CopyFrom(model)
            _externalize(copied, stage.path, content)
            parts, size = _parts(copied, path, content)
        pour(stage.path, parts, size)
        return stage.commit()


class _Content:
    """The bytes of tensors that are not in the skeleton."""

    def __init__(self, directory: Path | None, folded: Mapping[str, Computed]) -> None:
        self._directory, self._folded = directory, folded

    def of(self, proto: onnx.TensorProto) -> Content:
        if proto.data_location != onnx.TensorProto.EXTERNAL:
            return _bytes(proto)
        if is_folded(proto):
            return self._folded[proto.name]
        return extent(proto, self._directory)


def _parts(model: onnx.ModelProto, path: Path, content: _Content) -> tuple[list[tuple[int, Content]], int]:
    """The parts of the model file with their offsets, and its size; a size beyond LIMIT where there is no such file."""
    try:
        data = serialize(model, path)
    except (EncodeError, ValueError):  # protobuf's own limit
        return [], LIMIT + 1
    placed: list[tuple[int, Content]] = []
    offset = 0
    for part in parts(data, content.of, length_of):
        placed.append((offset, part))
        offset += length_of(part)
    return placed, offset


def materialized(
    model: onnx.ModelProto, directory: Path | None, folded: Mapping[str, Computed] | None = None
) -> onnx.ModelProto:
    """A copy of a skeleton with the bytes of its tensors in it; what was external stays so."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    content = _Content(directory, folded or {})
    for proto in tensors(copied):
        if is_marked(proto):
            raw = gathered(content.of(proto))
            proto.ClearField("external_data")
            proto.ClearField("data_location")
            proto.raw_data = raw
    return copied


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
        shutil.copyfile(source.path, stage.path)
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


def _externalize(model: onnx.ModelProto, path: Path, content: _Content) -> None:
    name = path.name + ".data"
    placed: list[tuple[int, Content]] = []
    end = 0
    for proto in tensors(model):
        if proto.data_location != onnx.TensorProto.EXTERNAL and not _is_large(proto):
            continue
        start = -(-end // ALIGNMENT) * ALIGNMENT
        part = content.of(proto)
        placed.append((start, part))
        end = start + length_of(part)
        _point(proto, name, start, end - start)
    pour(path.with_name(name), placed, end)


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


def _is_large(proto: onnx.TensorProto) -> bool:
    return proto.data_type != onnx.TensorProto.STRING and payload(proto) >= _SMALL


def _redirected(path: Path, locations: Mapping[str, str]) -> bytes:
    """The model file at `path` as bytes, with other locations of its external data."""
    if format_of(path) == BINARY:
        model = onnx.ModelProto.FromString(path.read_bytes())
    else:
        model = load(path).model
    for proto in tensors(model):
        for entry in proto.external_data:
            if entry.key == "location" and is_external(proto):
                entry.value = locations.get(entry.value, entry.value)
    return serialize(model, path)


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
