"""JUnit, SARIF, Markdown and workflow commands: valid whatever a node is called, and the same findings in each."""

import copy
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bnfold.reasons import Reason
from bnfold.report import github, junit, markdown, sarif
from bnfold.report.findings import findings
from bnfold.report.forms import FORMS, render
from bnfold.report.json import document, error_document

NASTY = 'a|b`c``\n::error::x%\r\x00\x1b[31m<i>&"*_@you]]>,:\ufffe\U0001f600'


def kept(*nodes: str, reason: str = "PADDED", normalization: bool = True) -> dict[str, Any]:
    return {
        "nodes": list(nodes), "op": "BatchNormalization", "reason": reason, "at": "conv", "message": f"At {nodes[0]}.",
        "hint": "Move it.", "alternatives": [], "normalization": normalization,
    }  # fmt: skip


def folded(*nodes: str, normalization: bool = True) -> dict[str, Any]:
    into = [{"node": "conv", "op": "Conv"}]
    about = {"op": "BatchNormalization", "direction": "up", "into": into, "through": []}
    return {"nodes": list(nodes), **about, "normalization": normalization}


def whole(
    *stays: dict[str, Any],
    folds: tuple[dict[str, Any], ...] = (folded("bn"),),
    verdict: str = "EQUIVALENT",
    code: int = 0,
    fail: bool = False,
    command: str = "fold",
    path: str = "models/net.onnx",
) -> dict[str, Any]:
    check = {"verdict": verdict, "sentence": "It is so.", "certificate": None, "gate3": {"lines": ["a line"]}}
    check |= {"samples": [{"counted": True}], "seed": 0, "warnings": [], "provider": "some"}
    source = {"path": "models/net.onnx"}
    end = {"word": verdict, "sentence": "It is so.", "exit_code": code, "fail_on_unfolded": fail}
    return document(
        source=source, result={"path": path}, folded=list(folds), kept=list(stays), notes=[], check=check,
        command=command, verdict=end,
    )  # fmt: skip


def cases(of: dict[str, Any]) -> dict[str, str | None]:
    """Name of a case -> what its element says: failure, error, skipped or None."""
    root = ElementTree.fromstring(junit.render(of).encode())
    found = {
        case.attrib["name"]: next((e.tag for e in case if e.tag != "system-out"), None)
        for case in root.iter("testcase")
    }
    (suite,) = root
    for counted in (root, suite):
        assert int(counted.attrib["tests"]) == len(found)
        for tag, name in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
            assert int(counted.attrib[name]) == list(found.values()).count(tag)
    return found


def test_junit_has_a_case_a_normalization_and_one_for_the_verdict():
    stays = (kept("stays"), kept("lone", normalization=False))
    bn, other = "bn (BatchNormalization)", "stays (BatchNormalization)"
    assert cases(whole(*stays)) == {bn: None, other: "skipped", "verdict": None}
    assert cases(whole(*stays, fail=True, code=1)) == {bn: None, other: "failure", "verdict": "failure"}
    assert cases(whole(verdict="NOT_EQUIVALENT", code=1)) == {bn: None, "verdict": "failure"}
    assert cases(whole(verdict="INCONCLUSIVE", code=3)) == {bn: None, "verdict": "error"}
    assert cases(whole(command="check", fail=True, code=1)) == {bn: "failure", "verdict": "failure"}
    unchecked = whole(verdict="NOT CHECKED") | {"check": None}
    assert cases(unchecked) == {bn: None, "verdict": "skipped"}
    assert cases(error_document("usage", NASTY)) == {"verdict": "error"}


def test_junit_survives_every_name():
    text = junit.render(whole(kept(NASTY), fail=True, code=1))
    root = ElementTree.fromstring(text.encode())
    names = [case.attrib["name"] for case in root.iter("testcase")]
    assert any("::error::x%" in name and r"\x00\x1b[31m<i>&" in name and r"\xfffe😀" in name for name in names)
    assert "\x00" not in text


def assert_sarif(text: str) -> dict[str, Any]:
    """The rules of the SARIF 2.1.0 schema, and of GitHub's code scanning, that a log of this shape can break."""
    log = json.loads(text)
    assert set(log) == {"$schema", "version", "runs"}
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"] == "bnfold"
    ids = [rule["id"] for rule in driver["rules"]]
    assert len(ids) == len(set(ids))
    for rule in driver["rules"]:
        assert rule["shortDescription"]["text"]
        assert rule["help"]["text"]
        assert rule["defaultConfiguration"]["level"] in ("error", "warning")
    assert run["automationDetails"]["id"].endswith("/")
    (invocation,) = run["invocations"]
    assert isinstance(invocation["executionSuccessful"], bool)
    for result in run["results"]:
        assert ids[result["ruleIndex"]] == result["ruleId"]
        assert result["level"] in ("none", "note", "warning", "error")
        assert result["message"]["text"]
        for place in result["locations"]:
            uri = place["physicalLocation"]["artifactLocation"]["uri"]
            assert uri.isascii() and not any(character in uri for character in ' "<>\\^`{|}')
            assert place["physicalLocation"]["region"]["startLine"] >= 1
            for logical in place.get("logicalLocations", ()):
                assert logical["name"] in logical["fullyQualifiedName"]
        assert result["partialFingerprints"]["primaryLocationLineHash"]
    marks = [result["partialFingerprints"]["primaryLocationLineHash"] for result in run["results"]]
    assert len(marks) == len(set(marks))
    return run


def test_sarif_has_a_result_for_each_that_is_left_and_for_a_failed_verdict():
    run = assert_sarif(sarif.render(whole(kept("a"), kept(NASTY, reason="NONLINEAR"), verdict="DEGRADED", code=1)))
    assert [(each["ruleId"], each["level"]) for each in run["results"]] == [
        ("DEGRADED", "error"), ("PADDED", "warning"), ("NONLINEAR", "warning"),
    ]  # fmt: skip
    place = run["results"][1]["locations"][0]
    assert place["physicalLocation"]["artifactLocation"]["uri"] == "models/net.onnx"
    assert [each["name"] for each in place["logicalLocations"]] == ["a"]
    assert run["invocations"][0]["exitCode"] == 1
    assert assert_sarif(sarif.render(whole()))["results"] == []
    run = assert_sarif(sarif.render(whole(kept("a"), command="check", fail=True, code=1, path="my models/ü|.onnx")))
    assert [each["ruleId"] for each in run["results"]] == ["FOLDABLE", "PADDED"]
    assert {each["level"] for each in run["results"]} == {"error"}
    uri = run["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert uri == "my%20models/%C3%BC%7C.onnx"


def test_sarif_knows_every_reason_and_says_when_nothing_could_be_done():
    names = {rule["id"] for rule in assert_sarif(sarif.render(whole()))["tool"]["driver"]["rules"]}
    assert {reason.value for reason in Reason} <= names
    run = assert_sarif(sarif.render(error_document("unreadable", "It is gone.")))
    assert run["invocations"][0]["executionSuccessful"] is False
    assert [each["ruleId"] for each in run["results"]] == ["ERROR"]


def test_findings_put_errors_first_and_name_the_wrong_weight():
    data = whole(kept("a"), verdict="NOT_EQUIVALENT", code=1)
    data["check"]["certificate"] = {"passed": False, "sentence": "s", "figures": {"wrong": "conv.weight"}}
    first, second = findings(data)
    assert (first.rule, first.level, first.nodes) == ("NOT_EQUIVALENT", "error", ("conv.weight",))
    assert (second.rule, second.level) == ("PADDED", "warning")
    (accepted,) = findings(whole(verdict="DEGRADED", code=0))
    assert accepted.level == "warning"


def commands(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("::")]


@pytest.mark.parametrize("count", [0, 1, 5, 6, 500])
def test_at_most_five_annotations(count: int):
    found = commands(github.render(whole(*(kept(f"n{k}") for k in range(count)))))
    assert len(found) == min(count, 5)
    if count > 5:
        assert f"{count - 4} more findings" in found[-1]


def test_workflow_commands_are_escaped():
    text = github.render(whole(kept(NASTY), path="a,b:c%.onnx", command="check", folds=(), fail=True, code=1))
    (line,) = commands(text)
    assert line.startswith("::error file=a%2Cb%3Ac%25.onnx,title=bnfold PADDED::")
    message = line.split("::", 2)[2]
    assert "%0A::error::x%25%0D" in message
    assert len(text.splitlines()) == 2, "a name must not begin a line of its own"
    data = whole()
    data["verdict"]["sentence"] = "x ##[add-mask]y\n::error::z"
    assert github.render(data) == "EQUIVALENT: x ## [add-mask]y ::error::z"
    assert commands(github.render(error_document("usage", "No\n."))) == ["::error title=bnfold ERROR::No%0A."]


def test_the_step_summary_is_appended_and_stays_under_a_mebibyte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    monkeypatch.setenv("GITHUB_ACTIONS", "false")
    github.summarize(whole())
    assert not page.exists()
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    page.write_text("# Before\n")
    github.summarize(whole())
    github.summarize(error_document("usage", "No."))
    assert page.read_text().startswith("# Before\n### bnfold: `models/net.onnx`\n\n**EQUIVALENT**: It is so.")
    assert "**Error**: No." in page.read_text()
    large = whole(*(kept(f"β{k}" * 10) for k in range(20_000)))
    github.summarize(large)
    assert 1_000_000 < page.stat().st_size < 1 << 20
    assert page.read_text().endswith("The rest is left out: it does not fit into this page.\n")
    before = page.read_bytes()
    github.summarize(large)
    assert page.stat().st_size < 1 << 20
    assert page.read_bytes().startswith(before)


def test_markdown_is_one_line_a_row_and_shows_names_as_they_are():
    text = markdown.render(whole(kept(NASTY), kept("lone", normalization=False)))
    rows = [line for line in text.splitlines() if line.startswith("| warning")]
    (row,) = rows
    assert row.replace("\\|", "").count("|") == 5
    assert "```a\\|b`c`` ::error" in row
    assert "\\<i\\>" in row and "\\@you" in row
    assert "no normalizations: 1" in text
    assert "| gate 3 | a line |" in text


@pytest.mark.parametrize("form", [form for form in FORMS if form != "text"])
def test_every_form_renders_every_document_and_changes_none(form: str):
    for given in (whole(), whole(kept(NASTY), fail=True, code=1), error_document("usage", NASTY), whole(path="\udcff")):
        before = copy.deepcopy(given)
        text = render(form, given)
        assert text
        assert not text.endswith("\n")
        assert given == before
