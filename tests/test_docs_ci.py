"""docs/ci.md: its commands run, its Python runs, and its YAML names what action.yml and the hook's file have."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "ci.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    for name in ("residual", "postact", "mlp"):
        shutil.copy(ROOT / "models" / f"{name}.onnx", tmp_path / "models")
    return tmp_path


def run(folder: Path, command: str) -> str:
    program, *arguments = shlex.split(command)
    plugin = ["-p", "bnfold.pytest_plugin"] if program == "pytest" else []
    environment = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PATH": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", program, *plugin, *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def test_the_commands_and_the_tests_run(copy: Path):
    shell = "".join(blocks("sh"))
    lines = [line for line in shell.splitlines() if line]
    assert len(lines) == 6
    assert PAGE.count("<!-- commands: run by a test -->") == len(blocks("sh"))
    for line in lines:
        run(copy, line)
    assert {"bnfold.xml", "bnfold.sarif", "check.txt", "folded.onnx"} < {path.name for path in copy.iterdir()}
    (script,) = blocks("python")
    (copy / "test_page.py").write_text(script)
    assert "2 passed" in run(copy, "pytest test_page.py")


def test_the_yaml_is_about_what_there_is():
    yaml = pytest.importorskip("yaml", reason="pre-commit brings PyYAML")
    action: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
    workflow, gitlab, hooks = (yaml.safe_load(block) for block in blocks("yaml"))
    _, step, upload = workflow["jobs"]["models"]["steps"]
    assert set(step["with"]) <= set(action["inputs"])
    assert upload["with"]["sarif_file"] == "${{ steps.bnfold.outputs.sarif }}"
    assert "sarif" in action["outputs"]
    assert gitlab["bnfold"]["script"][1].startswith("bnfold models/residual.onnx --dry-run --report junit=")
    ids = {hook["id"] for hook in yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())}
    assert {hook["id"] for hook in hooks["repos"][0]["hooks"]} <= ids
    table = dict(re.findall(r"^\| `([\w-]+)` \| `?([\w.-]*)`? ?\|", PAGE[PAGE.index("| input |") :], re.MULTILINE))
    assert table == {name: str(about.get("default", "")) for name, about in action["inputs"].items()}
