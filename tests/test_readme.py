"""README's commands and what they print are true."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def block(language: str, after: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", README[README.index(after) :], re.DOTALL)
    assert found is not None
    return found.group(1)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "models", tmp_path / "models", ignore=shutil.ignore_patterns("*.folded.onnx*"))
    return tmp_path


def test_the_fold_command_prints_what_the_readme_says(copy: Path) -> None:
    command = block("sh", "<!-- command: fold -->").strip().split(" && ")[-1].split()
    assert command[0] == "bnfold"
    done = subprocess.run(
        [sys.executable, "-m", "bnfold", *command[1:]], cwd=copy, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = block("text", "<!-- command: fold -->")
    # The last digits of the measured errors belong to the machine; everything else is compared as it stands.
    figures = re.compile(r"\d+\.\d+(e-\d+)?")
    assert figures.sub("#", done.stdout).strip() == figures.sub("#", expected).strip()


def test_the_five_lines_of_python_run(copy: Path) -> None:
    script = block("python", "In five lines of Python")
    done = subprocess.run([sys.executable, "-c", script], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (copy / "residual.folded.onnx").exists()


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
