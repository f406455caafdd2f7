"""Which format a file is in: the extension decides how a model is stored, the first bytes tell what is no model at all.

People hand a converter whatever their training left behind. Each such file has a magic number, and each deserves a
sentence that says what to give instead.
"""

import struct
import zipfile
from pathlib import Path

from ..errors import UnsupportedModel

BINARY, TEXTPROTO, JSON = "protobuf", "textproto", "json"

_TEXT_SYNTAX = frozenset((".onnxtxt", ".onnxtext"))
_BY_EXTENSION = {
    ".json": JSON,
    ".onnxjson": JSON,
    ".pbtxt": TEXTPROTO,
    ".prototxt": TEXTPROTO,
    ".textproto": TEXTPROTO,
    ".txtpb": TEXTPROTO,
}

_EXPORT = "export the network to ONNX (torch.onnx.export) and give that file"
_WEIGHTS = f"weights without a graph; {_EXPORT}, or the code too: bnfold package.module:factory --weights FILE"
_LEGACY_TORCH = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")

_PREFIXES: tuple[tuple[bytes, str], ...] = (
    (_LEGACY_TORCH, f"a PyTorch checkpoint: {_WEIGHTS}"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 (Keras) file; convert it with tf2onnx and give the .onnx file"),
    (b"version https://git-lfs", "a Git LFS pointer, not the model itself; run `git lfs pull` first"),
    (b"\x93NUMPY", "a NumPy array, not a model; give the .onnx file"),
    (b"GGUF", "a GGUF file: weights without an ONNX graph; give the .onnx file that the network was exported to"),
    (b"ftrt", "a TensorRT engine, already compiled; give the .onnx file that it was built from"),
    (b"\x1f\x8b", "a gzip archive; unpack it and give the .onnx file"),
    (b"BZh", "a bzip2 archive; unpack it and give the .onnx file"),
    (b"\xfd7zXZ\x00", "an xz archive; unpack it and give the .onnx file"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it and give the .onnx file"),
    (b"<?xml", "an XML file (an OpenVINO graph?); give the .onnx file that it was converted from"),
)


def format_of(path: Path) -> str:
    """The storage format that the extension of `path` stands for; anything unknown is binary protobuf."""
    extension = path.suffix.lower()
    if extension in _TEXT_SYNTAX:
        raise UnsupportedModel(
            f"{path}: ONNX's text syntax ({extension}) leaves out large weights; keep the model in an .onnx file."
        )
    return _BY_EXTENSION.get(extension, BINARY)


def foreign(path: Path, head: bytes, size: int) -> str | None:
    """What a file that is not ONNX is, and what to give instead ("a PyTorch checkpoint: ..."), or None.

    `head` is the start of the file, some hundred bytes; `size` is the length of the whole file in bytes.
    """
    for prefix, what in _PREFIXES:
        if head.startswith(prefix):
            return what
    if head.startswith(b"PK\x03\x04"):
        return _zip(path)
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return f"a Python pickle (a PyTorch or scikit-learn object); {_EXPORT}"
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite model; convert it with tf2onnx (--tflite) and give the .onnx file"
    if head[4:8] == b"ORTM":
        return "a model in ONNX Runtime's own .ort format; give the .onnx file that it was made from"
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it and give the .onnx file"
    if len(head) > 9 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= size - 8:
        return f"a safetensors file: {_WEIGHTS}"
    if head.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        return "a web page, not a model: the download went wrong; fetch the file itself"
    return None


def _zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "a damaged zip archive (a PyTorch checkpoint cut short?); give the .onnx file"
    leaves = {name.partition("/")[2] for name in names}
    if "constants.pkl" in leaves:
        return f"a TorchScript archive; load it with torch.jit.load, {_EXPORT}"
    if "data.pkl" in leaves:
        return f"a PyTorch checkpoint: {_WEIGHTS}"
    if "archive_format" in leaves or "models/model.json" in leaves:
        return f"a torch.export archive: `bnfold fold` and `bnfold explain` take it as MODEL.pt2; for others {_EXPORT}"
    if "model.weights.h5" in names:
        return "a Keras archive; convert it with tf2onnx or model.export(format='onnx') and give the .onnx file"
    if any(name.endswith(".npy") for name in names):
        return "an .npz archive of arrays, not a model; give the .onnx file"
    return "a zip archive; unpack it and give the .onnx file"


def missing_bytes(data: bytes) -> int:
    """How many bytes a protobuf message lacks at its end, judged by its outermost fields; 0 if it is whole."""
    position, size = 0, len(data)
    while position < size:
        tag, position = _varint(data, position)
        kind = tag & 7
        if tag >> 3 == 0 or kind not in (0, 1, 2, 5):
            return 0  # not protobuf at all
        if kind == 0:
            _, position = _varint(data, position)
        elif kind == 2:
            length, position = _varint(data, position)
            position += length
        else:
            position += 8 if kind == 1 else 4
    return position - size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(data) and shift < 70:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
        shift += 7
    return value, len(data) + 1
