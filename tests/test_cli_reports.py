"""--format, --report, and the exit codes of `check` under --fail-on-unfolded and --accept, in real processes."""

import json
import os
from pathlib import Path
from subprocess import CompletedProcess
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from .test_cli import bnfold, folder, last, listing  # noqa: F401 -- folder is a fixture


def test_reports_are_what_stdout_would_be(folder: Path):  # noqa: F811
    forms = ("text", "json", "junit", "sarif", "github", "markdown")
    run = bnfold(folder, "kept.onnx", "--dry-run", *(f"--report={form}=out.{form}" for form in forms))
    assert (folder / "out.text").read_text() == run.stdout
    for form in forms:
        printed = bnfold(folder, "kept.onnx", "--dry-run", "--format", form).stdout
        assert printed == (folder / f"out.{form}").read_text(), form
    assert bnfold(folder, "kept.onnx", "--dry-run", "--json").stdout == (folder / "out.json").read_text()
    quiet = bnfold(folder, "kept.onnx", "--dry-run", "-q", "--report", "text=quiet.txt")
    assert len(quiet.stdout.splitlines()) == 1
    assert (folder / "quiet.txt").read_text() == run.stdout


def test_explain_and_check_have_every_form_too(folder: Path):  # noqa: F811
    run = bnfold(folder, "explain", "kept.onnx", "--format", "junit")
    cases = list(ElementTree.fromstring(run.stdout).iter("testcase"))
    assert [case.attrib["name"] for case in cases] == [
        "bn (BatchNormalization)",
        "stays (BatchNormalization)",
        "verdict",
    ]
    run = bnfold(folder, "check", "net.onnx", "net.onnx", "--format", "sarif")
    assert json.loads(run.stdout)["runs"][0]["results"] == []
    assert "**EQUIVALENT**" in bnfold(folder, "check", "net.onnx", "net.onnx", "--format", "markdown").stdout


def test_reports_are_written_when_the_verdict_fails_and_when_there_is_none(folder: Path):  # noqa: F811
    (folder / "out.json").write_text("of yesterday")
    (folder / "out.json").chmod(0o640)
    bnfold(folder, "kept.onnx", "--dry-run", "--fail-on-unfolded", "--report", "json=out.json", code=1)
    assert json.loads((folder / "out.json").read_text())["verdict"]["exit_code"] == 1
    assert (folder / "out.json").stat().st_mode & 0o777 == 0o640
    run = bnfold(folder, "gone.onnx", "--report", "json=out.json", "--report", "junit=out.xml", code=2)
    assert json.loads((folder / "out.json").read_text())["error"]["message"] in run.stderr
    assert "gone.onnx does not exist" in (folder / "out.xml").read_text()
    assert sorted(path.name for path in folder.iterdir()) == [
        "kept.onnx",
        "net.onnx",
        "out.json",
        "out.xml",
        "plain.onnx",
    ]


def test_a_report_that_cannot_be_written_is_refused_before_any_work(folder: Path):  # noqa: F811
    (folder / "dir").mkdir()
    os.mkfifo(folder / "fifo")
    (folder / "circle").symlink_to("circle")
    before = listing(folder)
    for report, words in (
        ("junit", "FORMAT=PATH"),
        ("junit=", "FORMAT=PATH"),
        ("toml=a", "FORMAT=PATH"),
        ("junit=none/a.xml", "not a directory that exists"),
        ("junit=dir", "no file that a report"),
        ("junit=fifo", "no file that a report"),
        ("junit=circle", "no "),
        ("junit=broken.onnx", "would overwrite the model broken.onnx"),
        ("junit=./dir/../broken.folded.onnx", "would overwrite the model"),
    ):
        run = bnfold(folder, "broken.onnx", "--report", report, code=2)
        assert words in run.stderr, (report, run.stderr)
        assert run.stderr.startswith("Error: ") and run.stdout == ""
        assert listing(folder) == before, report
    run = bnfold(folder, "net.onnx", "--report", "junit=a.xml", "--report", "sarif=dir/../a.xml", code=2)
    assert "would overwrite another report" in run.stderr
    assert (
        "would overwrite"
        in bnfold(folder, "check", "net.onnx", "kept.onnx", "--report", "text=kept.onnx", code=2).stderr
    )
    assert "cannot be combined" in bnfold(folder, "net.onnx", "--json", "--format", "junit", code=2).stderr
    assert "junit" in bnfold(folder, "net.onnx", "--format", "xml", code=2).stderr
    assert listing(folder) == before
    (folder / "net.folded.onnx").write_bytes(b"mine")
    assert "exists; --force" in bnfold(folder, "net.onnx", "--report", "junit=net.folded.onnx", code=2).stderr
    assert (folder / "net.folded.onnx").read_bytes() == b"mine"


def in_actions(folder: Path, *arguments: str, code: int = 0) -> CompletedProcess[str]:  # noqa: F811
    page = str(folder / "summary.md")
    return bnfold(folder, *arguments, code=code, GITHUB_ACTIONS="true", GITHUB_STEP_SUMMARY=page)


def test_errors_have_the_form_that_was_asked(folder: Path):  # noqa: F811
    run = in_actions(folder, "gone.onnx", "--format=github", code=2)
    assert run.stdout == "::error title=bnfold ERROR::gone.onnx does not exist.\n"
    assert "**Error**: gone.onnx does not exist." in (folder / "summary.md").read_text()
    run = bnfold(folder, "gone.onnx", "--format", "junit", code=2)
    assert ElementTree.fromstring(run.stdout).attrib["errors"] == "1"


def test_github_annotates_and_appends_the_summary(folder: Path):  # noqa: F811
    page = folder / "summary.md"
    run = in_actions(folder, "kept.onnx", "--dry-run", "--format", "github")
    assert run.stdout.startswith("::warning file=kept.onnx,title=bnfold NONLINEAR::stays (BatchNormalization) stays: ")
    assert last(run) == "EQUIVALENT: 1 of 2 sources folded; nothing was written."
    first = page.read_text()
    in_actions(folder, "net.onnx", "--dry-run", "--format", "github")
    assert page.read_text().startswith(first)
    assert page.read_text().count("### bnfold") == 2
    in_actions(folder, "net.onnx", "--dry-run")
    assert page.read_text().count("### bnfold") == 2


def test_check_fails_on_a_normalization_that_is_left(folder: Path):  # noqa: F811
    bnfold(folder, "kept.onnx")
    bnfold(folder, "net.onnx")
    strict = "--fail-on-unfolded"
    assert last(bnfold(folder, "check", "net.onnx", "net.folded.onnx", strict)).startswith("EQUIVALENT: ")
    run = bnfold(folder, "check", "kept.onnx", "kept.folded.onnx", strict, code=1)
    assert last(run) == "UNFOLDED: 1 normalization is left in the candidate (--fail-on-unfolded); EQUIVALENT."
    assert "left    stays (BatchNormalization) stays: NONLINEAR" in run.stdout
    run = bnfold(folder, "check", "kept.onnx", "kept.onnx", strict, code=1)
    assert "2 normalizations are left in the candidate" in last(run)
    assert "bn (BatchNormalization) is left in the model; it would fold into conv (Conv)." in run.stdout
    run = bnfold(folder, "check", "kept.onnx", "kept.onnx", strict, "--format", "sarif", code=1)
    results = json.loads(run.stdout)["runs"][0]["results"]
    assert [each["ruleId"] for each in results] == ["FOLDABLE", "NONLINEAR"]
    bnfold(folder, "check", "kept.onnx", "kept.onnx")
    assert last(bnfold(folder, "check", "net.onnx", "kept.onnx", strict, code=1)).startswith("NOT_EQUIVALENT: ")


@pytest.fixture
def degraded(folder: Path) -> Path:  # noqa: F811
    """pair.onnx and worse.onnx: x, and (x + 4096) - 4096, the same function for the judge and not in float32."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((6, 6)).astype(np.float32), "big": np.array([4096.0], np.float32)}
    for name, far in (("pair", False), ("worse", True)):
        nodes = [onnx.helper.make_node("MatMul", ["x", "w"], ["h" if far else "y"], "mm")]
        if far:
            nodes += [
                onnx.helper.make_node("Add", ["h", "big"], ["g"], "add"),
                onnx.helper.make_node("Sub", ["g", "big"], ["y"], "sub"),
            ]
        info = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [4, 6]) for n in ("x", "y")]
        tensors = [numpy_helper.from_array(array, key) for key, array in weights.items() if far or key == "w"]
        model = onnx.helper.make_model(
            onnx.helper.make_graph(nodes, "g", info[:1], info[1:], tensors),
            opset_imports=[onnx.helper.make_opsetid("", 17)],
            ir_version=8,
        )
        onnx.save(model, folder / f"{name}.onnx")
    return folder


def test_check_accepts_degraded_when_it_is_told_to(degraded: Path):
    run = bnfold(degraded, "check", "pair.onnx", "worse.onnx", code=1)
    assert last(run).startswith("DEGRADED: ")
    run = bnfold(degraded, "check", "pair.onnx", "worse.onnx", "--accept", "degraded")
    assert last(run).startswith("DEGRADED: ")
    assert last(run).endswith("; accepted (--accept degraded).")
    data = json.loads(bnfold(degraded, "check", "pair.onnx", "worse.onnx", "--accept", "degraded", "--json").stdout)
    assert (data["check"]["exit_code"], data["verdict"]["exit_code"]) == (1, 0)
    bnfold(degraded, "check", "net.onnx", "kept.onnx", "--accept", "degraded", code=1)
    assert "any" in bnfold(degraded, "check", "net.onnx", "net.onnx", "--accept", "any", code=2).stderr
