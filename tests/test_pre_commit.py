"""`bnfold hook`, and the pre-commit hook for real: pre-commit clones this checkout and runs it on a repository."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

import bnfold as package

from .test_cli import bnfold, folder, network  # noqa: F401 -- folder is a fixture

ROOT = Path(__file__).parent.parent


def test_the_hook_wants_what_would_fold_folded(folder: Path):  # noqa: F811
    run = bnfold(folder, "hook", "net.onnx", "kept.onnx", "plain.onnx", code=1)
    assert run.stdout.splitlines() == [
        "net.onnx: 1 normalization would fold (bn); fold it with: bnfold net.onnx",
        "kept.onnx: 1 normalization would fold (bn); fold it with: bnfold kept.onnx",
    ]
    package.fold(folder / "kept.onnx").save(folder / "rest.onnx")
    assert bnfold(folder, "hook", "rest.onnx", "plain.onnx").stdout == "", "what cannot fold is nobody's fault"
    (folder / "broken.onnx").write_text("no model")
    run = bnfold(folder, "hook", "net.onnx", "broken.onnx", code=2)
    assert "broken.onnx is not an ONNX model" in run.stdout
    assert "net.onnx: 1 normalization" in run.stdout


def test_the_hook_compares_a_fold_with_its_source(folder: Path):  # noqa: F811
    result = package.fold(folder / "net.onnx")
    result.save(folder / "net.folded.onnx")
    for names in (("net.onnx",), ("net.folded.onnx",), ("net.onnx", "net.folded.onnx")):
        assert bnfold(folder, "hook", *names).stdout == ""
    weight = next(each for each in result.model.graph.initializer if len(each.dims) == 4)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.01, weight.name))
    onnx.save(result.model, folder / "net.folded.onnx")
    for names in (("net.onnx",), ("net.folded.onnx",), ("net.onnx", "./net.folded.onnx")):
        (line,) = set(bnfold(folder, "hook", *names, code=1).stdout.splitlines())
        assert "net.folded.onnx: NOT_EQUIVALENT: The folded weight " in line
    onnx.save(network(width=5), folder / "net.onnx")
    assert "net.folded.onnx: " in bnfold(folder, "hook", "net.onnx", code=1).stdout
    run = bnfold(folder, "check", "net.onnx", "net.folded.onnx", "--certificate-only", code=3)
    assert "INCONCLUSIVE: gate 1 alone cannot tell" in run.stdout


def git(folder: Path, *arguments: str) -> None:  # noqa: F811
    who = ("-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, timeout=120)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What git tracks of this checkout, or would add, as a repository of its own."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    target = tmp_path / "bnfold-repository"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    for name in set(filter(None, listed.stdout.decode().split("\0"))):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    git(target, "init", "--quiet")
    git(target, "add", "--all")
    git(target, "commit", "--quiet", "--message", "All of it")
    return target


@pytest.mark.slow  # pre-commit installs bnfold with numpy and onnx into an environment of its own
@pytest.mark.skipif(find_spec("pre_commit") is None, reason="pre-commit is not installed")
@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_pre_commit_runs_the_hook(checkout: Path, folder: Path):  # noqa: F811
    repository = folder.parent / "models"
    repository.mkdir()
    shutil.copy(folder / "net.onnx", repository / "net.onnx")
    shutil.copy(folder / "plain.onnx", repository / "plain.onnx")
    (repository / "notes.txt").write_text("no model\n")
    git(repository, "init", "--quiet")
    revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, check=True, capture_output=True, text=True)
    hooks = {"repos": [{"repo": str(checkout), "rev": revision.stdout.strip(), "hooks": [{"id": "bnfold"}]}]}
    (repository / ".pre-commit-config.yaml").write_text(json.dumps(hooks))
    git(repository, "add", "--all")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("GIT_", "PYTHON", "PRE_COMMIT"))}
    environment["PRE_COMMIT_HOME"] = str(folder.parent / "cache")

    def pre_commit(code: int) -> str:
        run = subprocess.run(
            [sys.executable, "-m", "pre_commit", "run", "--all-files"],
            cwd=repository, env=environment, capture_output=True, text=True, timeout=280, check=False,
        )  # fmt: skip
        assert run.returncode == code, run.stdout + run.stderr
        return run.stdout

    output = pre_commit(1)
    assert "net.onnx: 1 normalization would fold (bn); fold it with: bnfold net.onnx" in output
    assert "plain.onnx" not in output
    package.fold(repository / "net.onnx").save(repository / "net.folded.onnx")
    git(repository, "add", "--all")
    assert "Passed" in pre_commit(0)
    onnx.save(network(kept=True), repository / "net.onnx")
    git(repository, "add", "--all")
    assert "net.folded.onnx: INCONCLUSIVE: gate 1 alone cannot tell" in pre_commit(1)
