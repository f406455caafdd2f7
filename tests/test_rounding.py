"""A source right in front of an op that rounds is folded only where the check sees the same integers, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import bnfold
from bnfold.check import Verdict
from bnfold.cli import main
from tests.graphs import Builder


def model(kind: str, *, doubled: bool) -> onnx.ModelProto:
    """Conv, a factor of 2 or a BatchNormalization, Relu, and an op that rounds."""
    b = Builder()
    y = b.op("Conv", b.input("x", 1, 6, 16, 16), b.weight(6, 6, 3, 3))
    y = b.op("Mul", y, b.weight(values=np.full((6, 1, 1), 2.0, np.float32))) if doubled else b.norm(y, 6)
    y = b.op("Relu", y)
    if kind == "Cast":
        y = b.op("Cast", b.op("Cast", y, to=onnx.TensorProto.INT32), to=onnx.TensorProto.FLOAT)
    else:
        y = b.op(kind, y)
    return b.model(y)


@pytest.mark.parametrize("kind", ["Floor", "Ceil", "Round", "Cast"])
def test_it_folds_where_no_bit_changes(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = bnfold.fold(model(kind, doubled=True))
    assert result.rounded and len(result.report.folded) == 1
    assert any("bit for bit" in note for note in result.report.notes)
    assert result.check()
    path = tmp_path / "net.onnx"
    onnx.save(model(kind, doubled=True), path)
    assert main([str(path)]) == 0
    assert "EQUIVALENT: 1 of 1" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["Floor", "Cast"])
def test_it_stays_where_an_integer_changes(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = model(kind, doubled=False)  # the samples with large values reach integers whose neighbours are an ulp away
    check = bnfold.fold(odd).check()
    assert check.verdict is Verdict.DEGRADED and check.flipped
    path = tmp_path / "net.onnx"
    onnx.save(odd, path)
    assert main([str(path)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "integers change" in printed and "NOTHING TO FOLD" in printed
    assert (tmp_path / "net.folded.onnx").read_bytes() == path.read_bytes()


def test_it_stays_where_nothing_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(model("Floor", doubled=False), path)
    assert main([str(path), "--no-check"]) == 0
    assert "none was asked for" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "net.folded.onnx").read_bytes() == path.read_bytes()


def test_an_op_in_between_that_computes_ends_it() -> None:
    b = Builder()
    y = b.norm(b.op("Conv", b.input("x", 1, 6, 8, 8), b.weight(6, 6, 3, 3)), 6)
    result = bnfold.fold(b.model(b.op("Floor", b.op("Sigmoid", y))))
    assert len(result.report.folded) == 1 and not result.rounded
