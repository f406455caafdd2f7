"""action.yml: the steps of the composite action run as GitHub runs them, by bash with its files and variables."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .test_cli import folder, listing  # noqa: F401 -- folder is a fixture

yaml = pytest.importorskip("yaml", reason="pre-commit brings PyYAML")

ROOT = Path(__file__).parent.parent
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
STEPS: list[dict[str, Any]] = ACTION["runs"]["steps"]

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the action's steps are for bash")


def run_action(folder: Path, code: int = 0, **given: str) -> tuple[str, dict[str, str], str]:  # noqa: F811
    """Run the step that calls bnfold in `folder`: (its log, its outputs, the step summary)."""
    inputs = {name: about.get("default", "") for name, about in ACTION["inputs"].items()}
    inputs |= {name.replace("_", "-"): value for name, value in given.items()}
    (step,) = (each for each in STEPS if each.get("id") == "bnfold")
    assert step["shell"] == "bash"

    def expression(match: re.Match[str]) -> str:
        return inputs[match[1]]

    environment = {k: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", expression, v) for k, v in step["env"].items()}
    bin_directory = folder.parent / f"{folder.name}-bin"
    bin_directory.mkdir(exist_ok=True)
    (bin_directory / "python").unlink(missing_ok=True)
    (bin_directory / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (bin_directory / "python").chmod(0o755)
    page, output = folder.parent / "summary.md", folder.parent / "output"
    for path in (page, output):
        path.write_text("")
    script = folder.parent / "step.sh"
    script.write_text(step["run"])
    run = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],  # GitHub's own command line for `bash`
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        env={
            **os.environ,
            **environment,
            "PATH": f"{bin_directory}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "GITHUB_ACTIONS": "true",
            "GITHUB_STEP_SUMMARY": str(page),
            "GITHUB_OUTPUT": str(output),
            "GITHUB_ACTION_PATH": str(ROOT),
        },
        check=False,
    )
    assert run.returncode == code, run.stdout + run.stderr
    outputs = dict(line.split("=", 1) for line in output.read_text().splitlines())
    return run.stdout, outputs, page.read_text()


def test_the_action_is_well_formed():
    assert ACTION["runs"]["using"] == "composite"
    for name, about in (ACTION["inputs"] | ACTION["outputs"]).items():
        assert about["description"], name
    for step in STEPS:
        assert "uses" in step or step["shell"] == "bash"
        assert "${{" not in step.get("run", ""), "an input that is written into a script is run"
    used = set(re.findall(r"inputs\.([\w-]+)", json.dumps(STEPS)))
    assert used == set(ACTION["inputs"])
    steps = {step.get("id") for step in STEPS}
    for about in ACTION["outputs"].values():
        match = re.fullmatch(r"\$\{\{ steps\.(\w+)\.outputs\.(\w+) \}\}", about["value"])
        assert match is not None and match[1] in steps
        assert f'echo "{match[2]}=' in next(step["run"] for step in STEPS if step.get("id") == match[1])


def test_models_are_folded_in_memory_checked_and_reported(folder: Path):  # noqa: F811
    (folder / "with space.onnx").write_bytes((folder / "kept.onnx").read_bytes())
    before = listing(folder)
    log, outputs, page = run_action(folder, models="net.onnx\nwith*.onnx\nplain.onnx\n")
    assert outputs == {"verdict": "NOTHING TO FOLD", "sarif": "bnfold-sarif"}
    assert re.findall(r"^::(\w+) file=([^,]+),", log, re.MULTILINE) == [("warning", "with space.onnx")]
    assert page.count("### bnfold: ") == 3
    after = listing(folder)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {f"bnfold-sarif/{number}.sarif" for number in (1, 2, 3)}
    runs = [json.loads((folder / "bnfold-sarif" / f"{number}.sarif").read_text())["runs"][0] for number in (1, 2, 3)]
    assert [len(run["results"]) for run in runs] == [0, 1, 0]
    assert len({run["automationDetails"]["id"] for run in runs}) == 3


def test_a_failure_fails_the_step_after_all_models_were_seen(folder: Path):  # noqa: F811
    models = "net.onnx\nkept.onnx\nplain.onnx"
    log, outputs, page = run_action(folder, 1, models=models, fail_on_unfolded="true", sarif="out dir")
    assert outputs == {"verdict": "UNFOLDED", "sarif": "out dir"}
    assert "::error file=kept.onnx," in log
    assert page.count("### bnfold: ") == 3
    assert len(list((folder / "out dir").iterdir())) == 3
    log, outputs, _ = run_action(folder, 2, models="gone*.onnx\nnet.onnx")
    assert outputs["verdict"] == "ERROR"
    assert "::error title=bnfold ERROR::gone*.onnx does not exist." in log
    assert "EQUIVALENT: " in log
    assert run_action(folder, 2, models="\n")[1]["verdict"] == "ERROR"


def test_args_are_words_and_never_code(folder: Path):  # noqa: F811
    (folder / "out dir").mkdir()
    run_action(folder, models="net.onnx", args="--no-check -o 'out dir'")
    assert (folder / "out dir" / "net.folded.onnx").exists()
    run_action(folder, models="net.onnx", args="")
    assert (folder / "net.folded.onnx").exists()
    run_action(folder, 2, models="net.onnx", args="--dry-run '$(touch evil)' `touch evil`; touch evil")
    run_action(folder, 2, models="$(touch evil)")
    assert not (folder / "evil").exists()
