"""The measurements run, and measure what they say: the chain folds whole and stays the same function."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

import bnfold
from benchmarks.__main__ import main
from benchmarks.folding import Measured
from benchmarks.networks import chain, resnet

pytest.importorskip("onnxruntime")


def test_the_fold_benchmark_compares_whole_processes():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "fold", "5", "--runs", "1", "--peer", "onnxruntime"],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True,
    )  # fmt: skip
    for command in ("bnfold --no-check", "onnxruntime BASIC", "onnx load and save", "python and imports", "cp"):
        (line,) = [line for line in done.stdout.splitlines() if line.strip().startswith(command)]
        assert re.search(r"\d s +[\d.]+x +\d+ MiB +[\d.]+ s of CPU$", line)
    assert "failed" not in done.stdout


def test_a_peer_that_fails_or_never_ends_is_named(tmp_path: Path):
    found = Measured()
    found.add([sys.executable, "-c", "raise SystemExit(3)"], 20)
    found.add([sys.executable, "-c", "while True: pass"], 0.5)
    assert found.failed == ["failed", "over 0.5 s"] and not found.times


def test_the_network_of_the_benchmark_is_a_resnet_and_folds_whole():
    result = bnfold.fold(resnet((1, 1)))
    kinds = [n.op_type for n in result.model.graph.node]
    assert "BatchNormalization" not in kinds and kinds.count("Conv") == 9
    onnx.checker.check_model(result.model, full_check=True)


def test_the_latency_benchmark_compares_three_sessions():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "latency", "--runs", "1"],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True,
    )  # fmt: skip
    left = re.findall(r"(\w+) +[\d.]+ ms +[\d.]+x  (\d) BatchNormalizations", done.stdout)
    assert left == [("original", "8"), ("folded", "8"), ("aggressive", "0")] * 3


def test_the_latency_benchmark_has_a_row_for_each_model_that_folds(tmp_path: Path):
    shutil.copy(Path(__file__).parents[1] / "models/mlp.onnx", tmp_path)
    bnfold.fold(tmp_path / "mlp.onnx").save(tmp_path / "done.onnx")
    done = CliRunner().invoke(main, ["latency", str(tmp_path), "--runs", "5"], catch_exceptions=False)
    assert re.search(r"\| mlp \| [\d.]+ \| [\d.]+ \| [\d.]+ \| [\d.]+, [\d.]+ \| [\d.]+ \| \d+ → \d+ \|", done.output)
    assert "| done |" not in done.output and "1 models, geometric mean" in done.output


def test_the_chain_folds_whole():
    result = bnfold.fold(chain(12))
    assert [n.op_type for n in result.model.graph.node] == ["Conv"] * 12
    assert result.check()


def test_the_check_benchmark_counts_who_passes_what():
    done = CliRunner().invoke(main, ["check", "--seeds", "1", "--type", "float32"], catch_exceptions=False)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if "fold" in line]
    faults = [line.split("|")[1:-1] for line in done.stdout.splitlines() if "fault:" in line]
    correct = [row for row in rows if row[0].startswith("correct")]
    assert len(correct) == 4 and all(row[-2:] == ["1", "1"] for row in correct)
    assert len(faults) == 9 and all(int(row[-1]) == 0 for row in faults)


def test_the_faults_benchmark_catches_all_in_a_trained_net(tmp_path: Path):
    shutil.copy(Path(__file__).parents[1] / "models/mlp.onnx", tmp_path)
    arguments = ["faults", str(tmp_path), "--seeds", "1", "--per-fault", "1", "--samples", "2"]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (row,) = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("| mlp")]
    assert int(row[1]) == int(row[5]) == 9
    assert int(row[7]) == 0


def test_the_statistics_benchmark_shows_what_compounds_and_what_it_costs():
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    arguments = ["statistics", "--seeds", "2", "--epochs", "1", "--runs", "1", "--size", "8", "--batch", "64"]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    factors = dict(re.findall(r"  (torch update_bn|sequential) +off by a factor ([\d.]+)", done.output))
    assert factors == {"torch update_bn": "1.1614", "sequential": "1.0000"}
    residuals = re.findall(r"  (EMA as trained|sequential) .* residual ([\d.e-]+) ", done.output)
    assert [name for name, _ in residuals] == ["EMA as trained", "sequential"]
    assert all((float(value) < 1e-6) == (name == "sequential") for name, value in residuals)
    assert re.search(r"pooled +[\d.]+ ms +[\d.]+x\n", done.output)


def test_the_torch_benchmark_compares_folds_and_runs():
    pytest.importorskip("torch")
    arguments = ["torch", "--runs", "2", "--size", "32", "--blocks", "1,1", "--batch", "2", "--no-compile"]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert re.search(r"^fold: 9 of 9, (EQUIVALENT|MORE_ACCURATE)$", done.output, re.M)
    for row in ("bnfold, torch.fx", "eager, batch 2"):
        assert re.search(rf"^  {row} +[\d.]+ ms +[\d.]+x +\([\d.]+ to [\d.]+\)$", done.output, re.M), done.output
