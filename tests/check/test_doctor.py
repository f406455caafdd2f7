"""The doctor: what loads, which packages are in each other's way, and the commands that repair it."""

import json
from pathlib import Path

import numpy as np
import pytest

from bnfold.check.catalogue import CPU
from bnfold.check.doctor import diagnose, package_problems, packages, probe
from bnfold.check.providers import listing
from bnfold.cli import main


def install(folder: Path, name: str, version: str, *files: str) -> None:
    """A package's metadata, as pip leaves it."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))


def test_packages_that_hold_the_runtime(tmp_path: Path) -> None:
    runtime = "onnxruntime/__init__.py"
    install(tmp_path, "onnxruntime", "1.31.1", runtime)
    install(tmp_path, "onnxruntime-gpu", "1.30.0", runtime)
    install(tmp_path, "onnxruntime_novel", "1.2.3", runtime)  # one that this version has never heard of
    install(tmp_path, "onnxruntime-genai", "0.9", "onnxruntime_genai/__init__.py")
    install(tmp_path, "numpy", "2.0", "numpy/__init__.py")
    install(tmp_path, "left-pad", "1.0", "left_pad.py")
    found = packages([str(tmp_path)])
    assert found == {"numpy": "2.0", "onnxruntime": "1.31.1", "onnxruntime-gpu": "1.30.0", "onnxruntime-novel": "1.2.3"}


def test_two_runtimes(tmp_path: Path) -> None:
    install(tmp_path, "onnxruntime", "1.31.1")
    install(tmp_path, "onnxruntime-gpu", "1.30.0")
    found = diagnose(path=[str(tmp_path)])
    assert found.exit_code == 1
    problem = found.problems[0]
    assert problem.sentence.startswith("onnxruntime and onnxruntime-gpu are installed together")
    assert problem.commands == (
        "python -m pip uninstall -y onnxruntime onnxruntime-gpu",
        "python -m pip install --no-deps onnxruntime-gpu==1.30.0",
    )


@pytest.mark.parametrize(
    ("runtimes", "version", "available", "words", "command"),
    [
        ({}, None, set(), "No onnxruntime is installed", "python -m pip install onnxruntime"),
        (
            {"onnxruntime-openvino": "1.24.1"},
            None,
            set(),
            "cannot be used: its files are gone",
            "python -m pip install --force-reinstall --no-deps onnxruntime-openvino==1.24.1",
        ),
        (
            {"onnxruntime": "1.31.1"},
            "1.24.1",
            {CPU},
            "1.31.1 by its metadata and 1.24.1 when imported",
            "python -m pip install --force-reinstall --no-deps onnxruntime==1.31.1",
        ),
        (
            {"onnxruntime-gpu": "1.31.1"},
            "1.31.1",
            {CPU},
            "has no CUDAExecutionProvider",
            "python -m pip install --force-reinstall --no-deps onnxruntime-gpu==1.31.1",
        ),
    ],
)
def test_one_runtime_that_is_not_what_it_says(
    runtimes: dict[str, str], version: str | None, available: set[str], words: str, command: str
) -> None:
    (problem,) = package_problems(runtimes, version, available, "its files are gone")
    assert words in problem.sentence
    assert problem.commands == (command,)


def test_nothing_is_wrong() -> None:
    assert package_problems({"onnxruntime": "1.31.1"}, "1.31.1", {CPU}) == []
    assert package_problems({"onnxruntime-gpu": "1.31.1"}, "1.31.1", {CPU, "CUDAExecutionProvider"}) == []
    assert package_problems({"onnxruntime": "1.32.0+cu13"}, "1.32.0", {CPU}) == []
    assert package_problems({}, "1.32.0", {CPU}) == []  # built from source, without metadata


def test_probes() -> None:
    cpu = probe(CPU)
    assert (cpu.loads, cpu.ran, cpu.fine) == (True, ("Add", "Conv"), True)
    assert str(cpu).startswith("loads and runs Add and Conv")
    absent = probe("ROCMExecutionProvider")
    if "ROCMExecutionProvider" not in listing():
        assert not absent.loads
        assert not absent.fine
        assert "is not in this onnxruntime" in str(absent)


def test_a_probe_that_hangs() -> None:
    state = probe(CPU, timeout=1e-9)
    assert not state.loads
    assert "did not answer" in state.sentence


def test_this_installation(capsys: pytest.CaptureFixture[str]) -> None:
    found = diagnose()
    assert found.packages["numpy"] == np.__version__
    assert [state.name for state in found.providers] == sorted(listing(), key=lambda name: name != CPU)
    assert main(["doctor"]) == found.exit_code
    text = capsys.readouterr().out
    assert "loads and runs Add and Conv" in text
    assert text.splitlines()[-1].startswith("WRONG" if found.problems else "FINE: models can be checked on cpu")
    assert main(["doctor", "--json"]) == found.exit_code
    document = json.loads(capsys.readouterr().out)
    assert document["doctor"]["exit_code"] == found.exit_code
    assert document["doctor"]["providers"][0]["ran"] == ["Add", "Conv"]
    assert main(["doctor", "-q"]) == found.exit_code
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_no_runtime_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = diagnose(path=[str(tmp_path)])
    assert found.providers == ()
    assert found.exit_code == 1
    assert found.problems[0].commands == ("python -m pip install onnxruntime",)
