"""`bnfold bench` measures what it says; nothing here depends on how fast the machine is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from bnfold import fold
from bnfold.check.latency import latency
from bnfold.cli.commands import bnfold as command
from bnfold.errors import UnsupportedModel, UsageError
from tests.graphs import Builder

pytest.importorskip("onnxruntime")
MODELS = Path(__file__).parents[1] / "models"


def bench(*arguments: object) -> str:
    done = CliRunner().invoke(command, ["bench", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_kernels_are_those_that_the_runtime_launches(tmp_path: Path):
    """Sigmoid → BatchNormalization → Conv is a case that the runtime does not fuse: one kernel less."""
    b = Builder()
    x = b.norm(b.op("Sigmoid", b.input("x", 1, 4, 9, 9)), 4)
    onnx.save(b.model(b.op("Conv", x, b.weight(6, 4, 3, 3))), tmp_path / "net.onnx")
    fold(tmp_path / "net.onnx").save(tmp_path / "folded.onnx")
    found = latency(tmp_path / "net.onnx", tmp_path / "folded.onnx", runs=7, threads=1)
    assert found.kernels[0] == found.kernels[1] + 1 >= 3
    assert [len(each) for each in (*found.runs, *found.creation)] == [7, 7, 5, 5]
    assert found.shapes == {"x": (1, 4, 9, 9)}
    low, high = found.speed[1:]
    assert 0 < low <= found.speed[0] <= high


def test_the_command_says_both_figures_and_writes_nothing():
    before = sorted(path.name for path in MODELS.iterdir())
    said = bench(MODELS / "residual.onnx", "--runs", 5)
    for word in ("session", "run", "original", "folded", "ratio", "MEASURED: ", "kernels became"):
        assert word in said
    assert sorted(path.name for path in MODELS.iterdir()) == before


def test_the_document_holds_the_medians():
    found = json.loads(bench(MODELS / "mlp.onnx", "--runs", 5, "--json"))
    measured = found["bench"]
    assert measured["rounds"] == 5 and found["source"]["path"].endswith("mlp.onnx")
    assert measured["kernels"]["candidate"] < measured["kernels"]["original"]
    assert all(measured[key]["candidate"] > 0 for key in ("run_s", "session_s"))


def test_a_model_in_text_and_a_candidate_of_ones_own(tmp_path: Path):
    result = fold(MODELS / "mlp.onnx")
    result.save(tmp_path / "mine.json")
    assert "candidate" in bench(MODELS / "mlp.onnx", tmp_path / "mine.json", "--runs", 5)


def test_ones_own_inputs_are_used(tmp_path: Path):
    model = onnx.load(MODELS / "conv.onnx")
    (value,) = model.graph.input
    sizes = [3, *(d.dim_value for d in value.type.tensor_type.shape.dim[1:])]
    feeds: dict[str, Any] = {value.name: np.zeros(sizes, np.float32)}
    np.savez(tmp_path / "one.npz", **feeds)
    said = bench(MODELS / "conv.onnx", "--inputs", tmp_path / "one.npz", "--runs", 5)
    assert f"{value.name} [1, " in said or f"{value.name} [3, " in said


def test_nothing_to_fold_is_said(tmp_path: Path):
    b = Builder()
    onnx.save(b.model(b.op("Relu", b.input("x", 1, 4))), tmp_path / "net.onnx")
    assert "nothing was folded" in bench(tmp_path / "net.onnx", "--runs", 5)


def test_what_the_runtime_does_not_run_is_a_sentence(tmp_path: Path):
    b = Builder()
    b.norm(b.op("Conv", b.input("x", 1, 3, 4, 4), b.weight(4, 3, 1, 1)), 4)
    model = b.model("v1")
    model.graph.node.add(op_type="Strange", domain="com.acme", input=["v1"], output=["z"])
    model.opset_import.add(domain="com.acme", version=1)
    model.graph.output[0].name = "z"
    onnx.save(model, tmp_path / "net.onnx")
    done = CliRunner().invoke(command, ["bench", str(tmp_path / "net.onnx")])
    assert isinstance(done.exception, UnsupportedModel) and "Strange" in str(done.exception)


def test_a_candidate_that_does_not_run_and_a_run_that_takes_too_long(tmp_path: Path):
    b = Builder()
    onnx.save(b.model(b.op("Relu", b.input("other", 1, 4))), tmp_path / "net.onnx")
    with pytest.raises(UnsupportedModel, match="cannot run both"):
        latency(MODELS / "mlp.onnx", tmp_path / "net.onnx")
    with pytest.raises((UsageError, UnsupportedModel)):
        latency(MODELS / "mlp.onnx", MODELS / "mlp.onnx", timeout=0.001)
