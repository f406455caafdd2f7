"""MODEL.bnfold, the sidecar of a folded model: a reverse patch from which the source comes back, byte for byte.

a file of the source = literal bytes (what the fold replaced) and extents of the folded files (tensors that it left)
zip: manifest.json, with the digests of all files, and the literals of each file of the source, deflated
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, cast

import onnx

from . import __version__
from .errors import UnreadableModel, UsageError
from .files import ModelFile, Staging, digest, load
from .files.external import Extent, blocks, extent, tensors
from .files.names import sidecar_of

__all__ = ["Sidecar", "read", "restore", "sidecar_of", "write"]

_KIND, _SCHEMA, _MANIFEST = "bnfold sidecar", 1, "manifest.json"
_BLOCK = 1 << 20
_LARGEST = 1 << 26  # bytes of a manifest


@dataclass(frozen=True)
class Part:
    """`length` bytes: of the literals when `file` is None, else of that folded file from `offset` on."""

    length: int
    file: int | None = None
    offset: int = 0


@dataclass(frozen=True)
class File:
    """A file as it must be. `name`: as the model gives it, relative to its folder."""

    name: str
    size: int
    sha256: str
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Sidecar:
    """What the sidecar at `path` says: the folded files, the source's (the model first), the options of the fold."""

    path: Path
    version: str
    folded: tuple[File, ...]
    source: tuple[File, ...]
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])


def write(folded: Path, source: ModelFile, options: Mapping[str, Any], *, name: str | None = None) -> Path:
    """Write the sidecar of the model file `folded`, which `source` was folded to and which stays as it is from now on.

    options: of the fold, JSON-safe. name: of the source, where it is not its file's.
    """
    assert source.path is not None, "a source without a file has no bytes to give back"
    made = load(folded)
    held = [folded, *made.data.values()]
    known = _contents(made.model, made.directory, {path: k for k, path in enumerate(held)})
    path = sidecar_of(folded)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        files: list[File] = []
        names = {name or source.path.name: source.path, **source.data}
        for k, (title, file) in enumerate(names.items()):
            extents = [each for each in _extents(source.model, source.directory) if each.path == file]
            with archive.open(f"{k}.bin", "w", force_zip64=True) as literals:
                files.append(_patched(title, file, extents, known, literals))
        manifest = {
            "kind": _KIND,
            "schema": _SCHEMA,
            "version": __version__,
            "folded": [_listed(_named(each, folded.parent)) for each in held],
            "source": [_listed(each) for each in files],
            "options": dict(options),
        }
        archive.writestr(_MANIFEST, json.dumps(manifest))
    return path


def read(model: Path) -> Sidecar:
    """The sidecar of a folded model. Raises UnreadableModel where there is none, or it is damaged."""
    path = sidecar_of(model)
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(_MANIFEST).file_size > _LARGEST:
                raise ValueError("its manifest is too long")
            manifest: Any = json.loads(archive.read(_MANIFEST))
        if manifest["kind"] != _KIND or manifest["schema"] != _SCHEMA:
            raise ValueError("it is of a kind that this version does not know")
        folded, source = ([_file(each) for each in manifest[key]] for key in ("folded", "source"))
        if not folded or not source or not isinstance(manifest["options"], dict):
            raise ValueError("it names no file")
        for each in source:
            if sum(part.length for part in each.parts) != each.size:
                raise ValueError(f"its parts do not make up {each.name}")
            for part in each.parts:
                if part.file is not None and not part.offset + part.length <= folded[part.file].size:
                    raise ValueError(f"a part of {each.name} lies outside its file")
        options = cast("dict[str, Any]", manifest["options"])
        return Sidecar(path, str(manifest["version"]), tuple(folded), tuple(source), options)
    except FileNotFoundError as error:
        raise UnreadableModel(
            f"{model} has no sidecar {path.name} beside it; bnfold fold --keep-statistics writes one."
        ) from error
    except OSError as error:
        raise UnreadableModel(f"{path} cannot be read: {error.strerror or error}.") from error
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise UnreadableModel(f"{path} is no sidecar of a folded model, or a damaged one: {error}.") from error


def restore(model: Path, target: Path, *, force: bool = False) -> list[Path]:
    """Write the source of the folded `model` to `target`, and its external data beside it under the names that it uses.

    Returns the files written, the model first; a data file that is there with the right bytes is left alone. Raises
    UnreadableModel where the folded files are not those that the sidecar belongs to, UsageError where another file
    stands in the way.
    """
    found = read(model)
    held = [model, *(model.parent / each.name for each in found.folded[1:])]
    for path, file in zip(held, found.folded, strict=True):
        if not path.is_file():
            raise UnreadableModel(f"{path}, a part of the folded model, is missing.")
        if path.stat().st_size != file.size or digest(path) != file.sha256:
            raise UnreadableModel(f"{path} was changed after it was folded: {found.path.name} does not belong to it.")
    with zipfile.ZipFile(found.path) as archive, Staging(target) as stage:
        for k, file in enumerate(found.source):
            final = target if k == 0 else target.parent / file.name
            if k and final.exists() and digest(final) == file.sha256:
                continue
            if k and os.path.lexists(final) and (not force or any(final.samefile(path) for path in held)):
                raise UsageError(f"{final} exists, and the source needs its data file there; choose another folder.")
            path = stage.path if k == 0 else stage.path.parent / file.name
            path.parent.mkdir(parents=True, exist_ok=True)
            _assemble(path, file, held, archive, f"{k}.bin")
        return stage.commit()


def _assemble(path: Path, file: File, held: Sequence[Path], archive: zipfile.ZipFile, entry: str) -> None:
    sidecar = archive.filename
    value = hashlib.sha256()
    try:
        with archive.open(entry) as literals, path.open("wb") as out:
            for part in file.parts:
                pieces = _taken(literals, part.length) if part.file is None else _copied(held[part.file], part)
                for piece in pieces:
                    value.update(piece)
                    out.write(piece)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError) as error:
        raise UnreadableModel(f"{sidecar} is damaged: {error}.") from error
    if value.hexdigest() != file.sha256:
        raise UnreadableModel(f"{sidecar} is damaged: {file.name} does not come out of it as it was.")


def _copied(path: Path, part: Part) -> Iterator[bytes]:
    yield from blocks(Extent(path, part.offset, part.length), _BLOCK)


def _taken(literals: IO[bytes], length: int) -> Iterator[bytes]:
    while length:
        piece = literals.read(min(length, _BLOCK))
        if not piece:
            raise EOFError("it ends too early")
        length -= len(piece)
        yield piece


def _extents(model: onnx.ModelProto, directory: Path) -> list[Extent]:
    """Where the large tensors are, in the model file and in its data files; each place once, none within another."""
    found = [extent(proto, directory) for proto in tensors(model) if proto.data_location == onnx.TensorProto.EXTERNAL]
    found.sort(key=lambda each: (str(each.path), each.offset, -each.length))
    kept: list[Extent] = []
    for each in found:
        if not each.length or (kept and kept[-1].path == each.path and each.offset < kept[-1].offset + kept[-1].length):
            continue
        kept.append(each)
    return kept


def _contents(model: onnx.ModelProto, directory: Path, indices: Mapping[Path, int]) -> dict[str, tuple[int, Extent]]:
    """Digest of a large tensor -> where a folded file holds it."""
    return {_digest(each): (indices[each.path], each) for each in _extents(model, directory) if each.path in indices}


def _digest(where: Extent) -> str:
    value = hashlib.sha256(str(where.length).encode())
    for block in blocks(where, _BLOCK):
        value.update(block)
    return value.hexdigest()


def _patched(
    name: str, path: Path, extents: Sequence[Extent], known: Mapping[str, tuple[int, Extent]], literals: IO[bytes]
) -> File:
    size, value = path.stat().st_size, digest(path)
    parts: list[Part] = []
    at = 0

    def literal(end: int) -> None:
        if end > at:
            for block in blocks(Extent(path, at, end - at), _BLOCK):
                literals.write(block)
            parts.append(Part(end - at))

    for each in extents:
        there = known.get(_digest(each))
        if there is None:
            continue
        literal(each.offset)
        parts.append(Part(each.length, there[0], there[1].offset))
        at = each.offset + each.length
    literal(size)
    return File(name, size, value, tuple(parts))


def _named(path: Path, directory: Path) -> File:
    return File(path.relative_to(directory).as_posix(), path.stat().st_size, digest(path))


def _listed(file: File) -> dict[str, Any]:
    parts = [[p.length] if p.file is None else [p.length, p.file, p.offset] for p in file.parts]
    return {"name": file.name, "size": file.size, "sha256": file.sha256, "parts": parts}


def _file(entry: Any) -> File:
    """An entry of the manifest, believed only as far as it goes."""
    name, size, sha256 = entry["name"], entry["size"], entry["sha256"]
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    if not name or "\0" in name or posix.is_absolute() or windows.drive or windows.root:
        raise ValueError(f"the file name {name!r}")
    if ".." in posix.parts or ".." in windows.parts:
        raise ValueError(f"the file name {name!r}")
    parts = tuple(Part(*numbers) for numbers in entry["parts"])
    numbers = [size, *(n for p in parts for n in (p.length, p.offset, p.file or 0))]
    if not isinstance(sha256, str) or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError(f"the entry of {name}")
    return File(name, size, sha256, parts)
