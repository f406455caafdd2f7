"""`bnfold stats` and `fold --max-drift` as a user meets them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from bnfold.cli import main

from .nets import brute_force, chained, data, saved, statistics


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    model = chained()
    onnx.save(model, "net.onnx")
    saved("x.npz", data(model, 50))
    return tmp_path


def test_refresh_then_fold(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["fold", "net.onnx", "--inputs", "x.npz", "--max-drift", "0.05"]) == 1
    told = capsys.readouterr().out
    assert told.splitlines()[-1].startswith("STALE: the largest drift is ")
    assert "bnfold stats refresh" in told
    assert not Path("net.folded.onnx").exists()

    assert main(["stats", "refresh", "net.onnx", "--inputs", "x.npz"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "REFRESHED: 3 BatchNormalizations on 50 rows in 2 passes; wrote net.refreshed.onnx."
    )
    exact = brute_force(onnx.load("net.onnx"), data(chained(), 50))
    for (mean, variance), (m, v) in zip(statistics(onnx.load("net.refreshed.onnx")), exact, strict=True):
        np.testing.assert_allclose(mean, m, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(variance, v, rtol=1e-4)

    assert main(["fold", "net.refreshed.onnx", "--inputs", "x.npz", "--max-drift", "0.05"]) == 0
    told = capsys.readouterr().out
    assert "note: Statistics fresh: the largest drift is" in told
    assert Path("net.refreshed.folded.onnx").exists()


def test_drift_says_how_far_and_exits_by_the_bound(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["stats", "drift", "net.onnx", "--inputs", "x.npz"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines[0].split()) == (
        "drift ± noise mean off by variance × output ± flips values BatchNormalization"
    )
    worst = float(lines[1].split()[0])
    assert worst == max(float(line.split()[0]) for line in lines[1:4])
    assert lines[-1].startswith(f"MEASURED: the largest drift is {worst:g}")
    assert main(["stats", "drift", "net.onnx", "--inputs", "x.npz", "--max-drift", str(worst * 2)]) == 0
    assert main(["stats", "drift", "net.onnx", "--inputs", "x.npz", "--max-drift", "0.01"]) == 1


def test_the_document(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["fold", "net.onnx", "--inputs", "x.npz", "--max-drift", "0.05", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["verdict"]["word"] == "STALE"
    assert document["result"] is None
    assert document["statistics"]["rows"] == 50
    assert len(document["statistics"]["layers"]) == 3
    assert main(["stats", "refresh", "net.onnx", "--inputs", "x.npz", "--json", "-o", "fresh.onnx"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["command"], document["result"]["path"]) == ("stats refresh", "fresh.onnx")
    assert main(["fold", "fresh.onnx", "--inputs", "x.npz", "--max-drift", "0.05", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert max(each["drift"] for each in document["statistics"]["layers"]) < 0.05


@pytest.mark.parametrize("form", ["junit", "sarif", "github", "markdown"])
def test_stale_statistics_are_an_error_in_every_form(form: str, folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["fold", "net.onnx", "--inputs", "x.npz", "--max-drift", "0.05", "--format", form]) == 1
    told = capsys.readouterr().out
    assert "STALE" in told
    assert "stats refresh" in told
    assert main(["stats", "drift", "net.onnx", "--inputs", "x.npz", "--format", form]) == 0
    assert "STALE" not in capsys.readouterr().out


def test_in_place_and_force(folder: Path, capsys: pytest.CaptureFixture[str]):
    before = Path("net.onnx").read_bytes()
    Path("out.onnx").write_bytes(b"mine")
    assert main(["stats", "refresh", "net.onnx", "--inputs", "x.npz", "-o", "out.onnx"]) == 2
    assert "out.onnx exists; --force overwrites it" in capsys.readouterr().err
    assert main(["stats", "refresh", "net.onnx", "--inputs", "x.npz", "-o", "out.onnx", "--force"]) == 0
    assert Path("net.onnx").read_bytes() == before
    assert main(["stats", "refresh", "net.onnx", "--inputs", "x.npz", "--in-place"]) == 0
    assert Path("net.onnx").read_bytes() == Path("out.onnx").read_bytes() != before


def test_nothing_to_do(folder: Path, capsys: pytest.CaptureFixture[str]):
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Relu", ["x"], ["y"])],
            "g",
            [onnx.helper.make_tensor_value_info("x", 1, ["n", 3])],
            [onnx.helper.make_tensor_value_info("y", 1, ["n", 3])],
        )
    )
    onnx.save(model, "plain.onnx")
    assert main(["stats", "refresh", "plain.onnx", "--inputs", "x.npz"]) == 0
    assert "NOTHING TO REFRESH: plain.onnx holds no BatchNormalization" in capsys.readouterr().out
    assert not Path("plain.refreshed.onnx").exists()
    assert main(["stats", "drift", "plain.onnx", "--inputs", "x.npz"]) == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["fold", "net.onnx", "--max-drift", "0.05"], "give samples with --inputs"),
        (["fold", "net.onnx", "--inputs", "x.npz", "--max-drift", "-1"], "a drift is a number above 0"),
        (["fold", "net.onnx", "--inputs", "x.npz", "--max-drift", "nan"], "a drift is a number above 0"),
        (["stats", "drift", "net.onnx"], "Missing option '--inputs'"),
        (["stats", "drift", "net.onnx", "--inputs", "missing.npz"], "missing.npz cannot be read"),
        (["stats", "refresh", "missing.onnx", "--inputs", "x.npz"], "missing.onnx"),
        (["stats", "refresh", "net.onnx", "--inputs", "x.npz", "-o", "no/out.onnx"], "no is not a directory"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], sentence: str, folder: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert told.err.startswith("Error: ")
    assert sentence in told.err
    assert len(told.err.strip().splitlines()) == 1
    assert sorted(p.name for p in folder.iterdir()) == ["net.onnx", "x.npz"]


def test_the_process(folder: Path):
    done = subprocess.run(
        [sys.executable, "-m", "bnfold", "stats", "refresh", "net.onnx", "--inputs", "x.npz", "-q"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("REFRESHED: ")
    assert len(done.stdout.splitlines()) == 1
