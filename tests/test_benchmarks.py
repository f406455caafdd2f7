"""The measurements run, and measure what they say: the chain folds whole and stays the same function."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import bnfold
from benchmarks.__main__ import chain

pytest.importorskip("onnxruntime")


def test_the_fold_benchmark_compares_whole_processes():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "fold", "5", "--runs", "1"],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True,
    )  # fmt: skip
    for command in ("bnfold --no-check", "onnxruntime BASIC", "onnx load and save", "cp"):
        (line,) = [line for line in done.stdout.splitlines() if line.strip().startswith(command)]
        assert re.search(r"\d s +[\d.]+x +\d+ MiB$", line)


def test_the_latency_benchmark_compares_three_sessions():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "latency", "--runs", "1"],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True,
    )  # fmt: skip
    left = re.findall(r"(\w+) +[\d.]+ ms +[\d.]+x  (\d) BatchNormalizations", done.stdout)
    assert left == [("original", "8"), ("folded", "8"), ("aggressive", "0")] * 3


def test_the_chain_folds_whole():
    result = bnfold.fold(chain(12))
    assert [n.op_type for n in result.model.graph.node] == ["Conv"] * 12
    assert result.check()
