"""Mutants of small model files, as AFL makes them, and the one property that each must have.

`python -m tests.mutants --count 100000 --seed 0` folds that many in this process: every one ends in a BnfoldError or in
a model that loads again, within ten seconds and a gigabyte. What does not is kept, and its name is printed.
"""

from __future__ import annotations

import argparse
import faulthandler
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import Message

import bnfold
from bnfold import files, weights
from bnfold.errors import BnfoldError
from bnfold.files import loading, wire

ROOT = Path(__file__).parents[1]
LIMIT_S, LIMIT_BYTES = 10, 1 << 30
LARGEST = 100_000  # bytes of a file that is mutated
_MESSAGE, _STRING = 11, 9  # what a descriptor says of a field that holds a message, a text
_INTERESTING = (
    0,
    1,
    2,
    7,
    15,
    16,
    63,
    127,
    128,
    255,
    2**15,
    2**16,
    2**31 - 1,
    2**31,
    2**32,
    2**40,
    2**63 - 1,
    2**64 - 1,
)


def corpus() -> dict[str, bytes]:
    """The files that are mutated: those of models/ below 100 kB, and drawn graphs with bodies and constant nodes."""
    from tests.test_random_graphs import graph

    found = {path.name: path.read_bytes() for path in sorted((ROOT / "models").glob("*.onnx"))}
    for seed in range(16):
        found[f"drawn {seed}"] = graph(seed).SerializeToString(deterministic=True)
    return {name: data for name, data in found.items() if len(data) < LARGEST}


class Mutator:
    """Mutants of a corpus, one random number generator for all: the same seed gives the same mutants."""

    def __init__(self, corpus: dict[str, bytes], seed: int) -> None:
        self.random = random.Random(seed)
        self._files = list(corpus.values())
        self._heads = [heads(data) for data in self._files]

    def draw(self) -> bytes:
        index = self.random.randrange(len(self._files))
        data, places = bytearray(self._files[index]), self._heads[index]
        if self.random.random() < 0.6:  # bytes alone rarely leave something that protobuf can parse
            model = onnx.ModelProto.FromString(self._files[index])
            for _ in range(self.random.choice((1, 1, 2, 4, 8))):
                self._field(model)
            return model.SerializeToString(deterministic=True)
        for _ in range(self.random.choice((1, 1, 1, 2, 4, 8))):
            if data:
                data = self.random.choice(self._ways)(self, data, places)
        return bytes(data)

    def _place(self, data: bytearray, places: list[tuple[int, int]]) -> int:
        """A byte; most are weights, so three times of four one of the structure."""
        if places and self.random.random() < 0.75:
            return min(self.random.choice(places)[0], len(data) - 1)
        return self.random.randrange(len(data))

    def _flip(self, data: bytearray, places: list[tuple[int, int]]) -> bytearray:
        data[self._place(data, places)] ^= 1 << self.random.randrange(8)
        return data

    def _byte(self, data: bytearray, places: list[tuple[int, int]]) -> bytearray:
        data[self._place(data, places)] = self.random.choice((0, 1, 0x7F, 0x80, 0xFF, self.random.randrange(256)))
        return data

    def _run(self, data: bytearray, places: list[tuple[int, int]]) -> bytearray:
        """Bytes overwritten, taken out, put in, or repeated."""
        at, length = self._place(data, places), self.random.choice((1, 2, 4, 16, 64, 1000))
        what = self.random.randrange(4)
        new = {0: self.random.randbytes(length), 1: b"", 2: data[at : at + length] * 2}.get(what, bytes(length))
        data[at : at + (0 if what == 3 else length)] = new
        return data

    def _cut(self, data: bytearray, places: list[tuple[int, int]]) -> bytearray:
        return data[: self._place(data, places)]

    def _splice(self, data: bytearray, places: list[tuple[int, int]]) -> bytearray:
        """The beginning of this file and the end of another, or a piece of another in the middle of this one."""
        index = self.random.randrange(len(self._files))
        other, theirs = self._files[index], self._heads[index]
        at, start = self._place(data, places), self.random.choice(theirs)[0]
        if self.random.random() < 0.5:
            return data[:at] + other[start:]
        return data[:at] + other[start : start + self.random.choice((4, 32, 256))] + data[at:]

    def _varint(self, data: bytearray, places: list[tuple[int, int]]) -> bytearray:
        """Another number where one stands: a field's number or type, an enum, a size, a length."""
        at, length = self.random.choice(places)
        if at >= len(data):
            return data
        old = int.from_bytes(data[at : at + length], "little")
        near = max(0, old + self.random.choice((-1, 1, 8, -8)))
        data[at : at + length] = encoded(near if self.random.random() < 0.4 else self.random.choice(_INTERESTING))
        return data

    def _field(self, model: onnx.ModelProto) -> None:
        """Another value in one field of the message tree, whose lengths stay right."""
        message: Any = model
        while True:
            held = [(field, value) for field, value in message.ListFields() if field.name != "raw_data"]
            if not held:
                return
            field, value = self.random.choice(held)
            if field.type != _MESSAGE:
                break
            if isinstance(value, Message):
                if self.random.random() < 0.05:
                    message.ClearField(field.name)
                    return
                message = value
            elif self.random.random() < 0.15:
                self._list(value)
                return
            else:
                message = self.random.choice(value)
        if field.name in ("name", "input", "output", "op_type") or self.random.random() < 0.8:
            self._scalar(model, message, field, value)
        else:
            message.ClearField(field.name)

    def _list(self, value: Any) -> None:
        at, other = self.random.randrange(len(value)), self.random.randrange(len(value))
        match self.random.randrange(3):
            case 0:
                del value[at]
            case 1:
                value.add().CopyFrom(value[at])
            case _:
                value[at].CopyFrom(value[other])

    def _scalar(self, model: onnx.ModelProto, message: Any, field: Any, value: Any) -> None:
        repeated = not isinstance(value, str | bytes | int | float)
        old = self.random.choice(value) if repeated else value
        if isinstance(old, str | bytes):
            names = [name for node in model.graph.node for name in (*node.input, *node.output, node.op_type)]
            text = self.random.choice((*names, "", "\n", "\x00", "é" * 300, "../x", "N"))
            new: Any = text if isinstance(old, str) else text.encode()
        elif isinstance(old, float):
            new = self.random.choice((0.0, -1.0, 1e-45, 3e38, float("inf"), float("nan"), old * 2))
        else:
            new = self.random.choice((0, 1, -1, 2, 3, 7, 16, old + 1, old - 1, -old, 2**31, 2**62, -(2**63)))
        try:
            if repeated and self.random.random() < 0.3:
                value[:] = (*value, new) if self.random.random() < 0.5 else value[1:]
            elif repeated:
                value[self.random.randrange(len(value))] = new
            else:
                setattr(message, field.name, new)
        except ValueError:  # beyond the type of the field, or no member of an enum
            message.ClearField(field.name)

    _ways = (_flip, _flip, _byte, _run, _cut, _splice, _varint, _varint, _varint)


def encoded(value: int) -> bytes:
    """A protobuf varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def heads(data: bytes) -> list[tuple[int, int]]:
    """(position, length) of every tag, length and number of a serialized model, and of the bytes of its names."""
    found: list[tuple[int, int]] = []
    stack: list[tuple[int, int, Any]] = [(0, len(data), onnx.ModelProto.DESCRIPTOR)]
    while stack:
        at, end, kind = stack.pop()
        while at < end:
            start, (tag, at) = at, _varint(data, at)
            found.append((start, at - start))
            field = kind.fields_by_number.get(tag >> 3)
            if tag & 7 == 0:
                start, (_, at) = at, _varint(data, at)
                found.append((start, at - start))
            elif tag & 7 == 2:
                start, (length, at) = at, _varint(data, at)
                found.append((start, at - start))
                if field is not None and field.type == _MESSAGE:
                    stack.append((at, at + length, field.message_type))
                elif field is not None and field.type == _STRING and length:
                    found.append((at + length // 2, 1))
                at += length
            else:
                at += 8 if tag & 7 == 1 else 4
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
        shift += 7


class Hang(BaseException):
    """A mutant that takes longer than LIMIT_S."""


def scanned(on: bool) -> None:
    """Whether small files are scanned, as only large ones are."""
    loading.SCANNED = 1 if on else 1 << 24
    wire.BULK = weights.BULK = 64 if on else 1 << 15


def outcome(path: Path, target: Path) -> tuple[str, bytes]:
    """("folded" | "unchanged" | the error's class, the bytes written); anything but a BnfoldError gets out."""
    try:
        result = bnfold.fold(path, partial=True)
        result.save(target)
    except BnfoldError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000, error
        return type(error).__name__, b""
    written = target.read_bytes()
    files.load(target)
    return "folded" if result.changed else "unchanged", written


def examine(data: bytes, way: int, folder: Path) -> str:
    """The outcome of one mutant, read at once (0), scanned (1), or both, which must agree (2)."""
    path, target = folder / "mutant.onnx", folder / "out.onnx"
    path.write_bytes(data)
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)  # of this process: a busy disk is no hang
    try:
        scanned(way == 1)
        found = outcome(path, target)
        if way == 2:
            scanned(True)
            other = outcome(path, target)
            assert found == other, f"read at once: {found[0]}; scanned: {other[0]}"
        return found[0]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        scanned(False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="how many mutants")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after that long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="where mutants that fail are kept")
    given = parser.parse_args()
    warnings.simplefilter("error", RuntimeWarning)  # numpy's, as in the tests
    signal.signal(signal.SIGPROF, _hang)
    mutator, counts, failures, slowest = Mutator(corpus(), given.seed), Counter[str](), Counter[str](), 0.0
    with tempfile.TemporaryDirectory() as name:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT_BYTES, resource.RLIM_INFINITY))
        end = time.monotonic() + given.seconds
        for index in range(given.count):
            if time.monotonic() > end:
                break
            data, way = mutator.draw(), mutator.random.choice((0, 0, 1, 2))
            start = time.monotonic()
            try:
                counts[examine(data, way, Path(name))] += 1
            except (Exception, Hang) as error:
                frame = traceback.extract_tb(error.__traceback__)[-1]
                what = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}: {str(error)[:100]}"
                if not failures[what] and given.keep is not None:
                    given.keep.mkdir(parents=True, exist_ok=True)
                    (given.keep / f"{given.seed}-{index}.onnx").write_bytes(data)
                failures[what] += 1
                if failures[what] == 1:
                    print(f"mutant {index} (way {way}): {what}", flush=True)
            slowest = max(slowest, time.monotonic() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{sum(counts.values())} mutants passed: {dict(counts.most_common())}")
    print(f"slowest {slowest:.1f} s, peak {peak:.0f} MiB; {sum(failures.values())} failed")
    for what, many in failures.most_common():
        print(f"  {many} x {what}")
    return 1 if failures else 0


def _hang(*_: object) -> None:
    raise Hang


if __name__ == "__main__":
    faulthandler.enable()
    sys.exit(main())
