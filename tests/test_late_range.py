"""Weights whose range is looked at while they are written: the result is that of a look beforehand."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

import bnfold
from bnfold import hashing
from bnfold.cli.commands import bnfold as command
from bnfold.files import external
from bnfold.fold import fold_leaving
from bnfold.weights import OutOfRange
from tests.graphs import Builder


def stored(tmp_path: Path, weight: NDArray[Any]) -> Path:
    """Two Convs with a BatchNormalization each, the first with this large weight; all large weights are external."""
    b = Builder()
    rows = weight.shape[0]
    y = b.norm(b.op("Conv", b.input("x", 1, weight.shape[1], 5, 5), b.weight(*weight.shape)), rows)
    model = b.model(b.norm(b.op("Conv", b.op("Tanh", y), b.weight(4, rows, 1, 1)), 4))
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, model.graph.initializer[0].name))
    path = tmp_path / "net.onnx"
    onnx.save(model, path, save_as_external_data=True, size_threshold=1024)
    (proto,) = (p for p in external.tensors(onnx.load(path, load_external_data=False)) if p.dims == list(weight.shape))
    assert proto.data_location == TensorProto.EXTERNAL and np.prod(proto.dims) > 1 << 16
    return path


def plain() -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((301, 64, 3, 3)).astype(np.float32)


def with_values(*values: float, rows: slice = slice(None)) -> NDArray[np.float32]:
    weight = plain()
    weight.reshape(301, -1)[rows, 5 : 5 + len(values)] = values
    return weight


LARGEST = float(np.finfo(np.float32).max)
CASES = {
    "plain": (plain(), False),
    "largest": (with_values(LARGEST, -LARGEST), True),
    "infinite": (with_values(np.inf), True),
    "minus infinite": (with_values(-np.inf, 1.0), True),
    "nan": (with_values(np.nan), True),
    "late": (with_values(LARGEST, rows=slice(200, None)), True),
}


@pytest.mark.parametrize("name", CASES)
def test_the_command_writes_what_the_library_does(name: str, tmp_path: Path) -> None:
    weight, doubtful = CASES[name]
    path = stored(tmp_path, weight)
    library = bnfold.fold(path)
    library.save(tmp_path / "library.onnx")
    out = tmp_path / "command.onnx"
    given = [str(path), "-o", str(out), "--no-check", "--no-receipt", "--json"]
    made = CliRunner().invoke(command, given, standalone_mode=False)
    assert made.exception is None, made.output
    told = json.loads(made.output)
    assert [kept["reason"] for kept in told["kept"]] == [kept.reason for kept in library.report.kept]
    assert len(told["folded"]) == len(library.report.folded)
    assert onnx.load(out).SerializeToString() == onnx.load(tmp_path / "library.onnx").SerializeToString()
    late = fold_leaving(path, None, late=True)
    if doubtful:
        with pytest.raises(OutOfRange):
            late.save(tmp_path / "late.onnx")
        assert not list(tmp_path.glob("late*")) and not list(tmp_path.glob(".bnfold-*"))
    else:
        late.save(tmp_path / "late.onnx")
        assert onnx.load(tmp_path / "late.onnx") == onnx.load(out)


def test_some_of_the_cases_are_refused(tmp_path: Path) -> None:
    kept = [bnfold.fold(stored(tmp_path, CASES[name][0])).report.kept for name in ("plain", "largest", "nan")]
    assert [[k.reason for k in each] for each in kept] == [[], ["OUT_OF_RANGE"], ["OUT_OF_RANGE"]]


def test_a_dry_run_looks_beforehand(tmp_path: Path) -> None:
    path = stored(tmp_path, CASES["nan"][0])
    for arguments in ([str(path), "--dry-run", "--no-check"], ["explain", str(path)]):
        assert "OUT_OF_RANGE" in CliRunner().invoke(command, arguments, standalone_mode=False).output


def test_a_digest_that_was_begun_is_that_of_the_file_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "data"
    first, second = (np.random.default_rng(k).bytes((20 << 20) + 3) for k in range(2))
    path.write_bytes(first)
    hashing.begin(path)
    assert hashing.digest(path, 1000) == hashlib.sha256(first[:1000]).hexdigest()
    assert hashing.digest(path) == hashing.digest(path) == hashlib.sha256(first).hexdigest()
    hashing.begin(path)
    (tmp_path / "other").write_bytes(second)
    (tmp_path / "other").replace(path)
    assert hashing.digest(path) == hashlib.sha256(second).hexdigest()
    hashing.begin(tmp_path / "missing")
    hashing.begin(tmp_path)
    with pytest.raises(FileNotFoundError):
        hashing.digest(tmp_path / "missing")
