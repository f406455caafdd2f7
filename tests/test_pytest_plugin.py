"""The pytest plugin as its users meet it: pytest runs in a process of its own, with their files."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import bnfold
from bnfold.files.names import fold_beside, source_of

from .test_cli import network, plain

ROOT = Path(__file__).parent.parent
PLUGIN = "bnfold.pytest_plugin"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """net.onnx and net.folded.onnx; wrong.onnx, the same with one filter off; plain.onnx, with nothing to fold."""
    onnx.save(network(), tmp_path / "net.onnx")
    onnx.save(plain(), tmp_path / "plain.onnx")
    folded = bnfold.fold(tmp_path / "net.onnx")
    folded.save(tmp_path / "net.folded.onnx")
    model = folded.model
    weight = next(each for each in model.graph.initializer if len(each.dims) == 4)
    array = numpy_helper.to_array(weight).copy()
    array[0] *= 1.01
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    onnx.save(model, tmp_path / "wrong.onnx")
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    return tmp_path


def run_pytest(folder: Path, *arguments: str, code: int = 0) -> str:
    """pytest with this plugin, and with no other that happens to be installed; its output."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", PLUGIN, "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        env={**environment, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        check=False,
    )
    assert run.returncode == code, run.stdout + run.stderr
    return run.stdout


def test_the_entry_point_names_the_plugin():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"bnfold": PLUGIN}


def test_importing_it_imports_nothing_heavy():
    heavy = ["numpy", "onnx", "onnxruntime", "torch", "click"]
    program = (
        f"import sys, {PLUGIN}\nassert not set({heavy}) & set(sys.modules), sorted(set({heavy}) & set(sys.modules))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_a_start_of_pytest_imports_nothing_heavy(tmp_path: Path):
    (tmp_path / "test_light.py").write_text(
        "import sys\ndef test_light():\n    assert not {'numpy', 'onnx', 'onnxruntime'} & set(sys.modules)\n"
    )
    assert "1 passed" in run_pytest(tmp_path)


def test_the_fixture_and_the_assertion(folder: Path):
    (folder / "test_mine.py").write_text(
        "import pytest\n"
        "from bnfold.pytest_plugin import assert_equivalent\n"
        "@pytest.fixture(scope='session')\n"
        "def folded(bnfold):\n"
        "    return bnfold.fold('net.onnx')\n"
        "def test_folds(folded):\n"
        "    assert not folded.report.unfolded\n"
        "def test_same(bnfold):\n"
        "    assert bnfold.check('net.onnx', 'net.folded.onnx', samples=2)\n"
        "    assert bnfold.assert_equivalent('net.onnx', 'net.folded.onnx').verdict.name == 'EQUIVALENT'\n"
        "def test_wrong():\n"
        "    assert_equivalent('net.onnx', 'wrong.onnx')\n"
        "def test_wrong_is_not_merely_degraded():\n"
        "    with pytest.raises(AssertionError, match='NOT_EQUIVALENT'):\n"
        "        assert_equivalent('net.onnx', 'wrong.onnx', accept=['degraded'])\n"
    )
    output = run_pytest(folder, code=1)
    assert "1 failed, 3 passed" in output
    assert "E       AssertionError: gate 1" in output
    assert "NOT_EQUIVALENT: " in output
    assert ">       assert_equivalent('net.onnx', 'wrong.onnx')" in output
    assert "pytest_plugin.py" not in output, "the frame of the assertion is of no use to a reader"


def test_models_are_collected_only_when_asked(folder: Path):
    (folder / "test_mine.py").write_text("def test_nothing(): pass\n")
    assert "1 passed" in run_pytest(folder)
    assert "1 passed, 1 skipped" in run_pytest(folder, "--bnfold", "net.onnx", "plain.onnx")
    output = run_pytest(folder, "--bnfold", "--collect-only", "-q")
    assert {"net.onnx::fold", "net.folded.onnx::check", "wrong.onnx::fold", "test_mine.py::test_nothing"} < set(
        output.splitlines()
    )


def test_a_wrong_fold_fails_with_the_verdict_and_no_traceback(folder: Path):
    (folder / "wrong.onnx").rename(folder / "net.folded.onnx")
    (folder / "broken.onnx").write_text("no model")
    output = run_pytest(folder, "--bnfold", "net.onnx", "net.folded.onnx", "broken.onnx", code=1)
    assert "2 failed, 1 passed" in output
    assert "NOT_EQUIVALENT: " in output
    assert "gate 3  " in output
    assert "broken.onnx is not an ONNX model" in output
    assert "Traceback" not in output
    assert "pytest_plugin.py" not in output


def test_the_original_of_a_folded_file(tmp_path: Path):
    for name in ("net.onnx", ".onnx"):
        (tmp_path / name).touch()
    assert source_of(tmp_path / "net.folded.onnx") == tmp_path / "net.onnx"
    assert [source_of(tmp_path / name) for name in ("net.onnx", "other.folded.onnx", ".folded.onnx")] == [None] * 3
    assert fold_beside(tmp_path / "net.onnx") is None
    (tmp_path / "net.folded.onnx").touch()
    assert fold_beside(tmp_path / "net.onnx") == tmp_path / "net.folded.onnx"
    assert fold_beside(tmp_path / "net.folded.onnx") is None


def test_weights_off_by_one_per_cent_are_off(folder: Path):
    right, wrong = (onnx.load(folder / name).graph.initializer for name in ("net.folded.onnx", "wrong.onnx"))
    pairs = [(numpy_helper.to_array(a), numpy_helper.to_array(b)) for a, b in zip(right, wrong, strict=True)]
    assert sum(not np.array_equal(a, b) for a, b in pairs) == 1
