"""JUnit XML: one case a normalization, folded or left, and one for the verdict.

A normalization that is left is a failure under --fail-on-unfolded and skipped otherwise, so that a run that exits 0
has no failures and a run that does not has at least one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from xml.etree import ElementTree

from .findings import fails_on_unfolded, findings, is_left, subject, would_fold

# XML 1.0, section 2.2: everything else cannot stand in a document, not even as a character reference.
_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(document: Mapping[str, Any]) -> str:
    """The document as a `testsuites` element with one suite."""
    cases = list(_cases(document, f"bnfold.{subject(document) or 'model'}"))
    counts = {
        "tests": len(cases),
        "failures": sum(case.find("failure") is not None for case in cases),
        "errors": sum(case.find("error") is not None for case in cases),
        "skipped": sum(case.find("skipped") is not None for case in cases),
    }
    numbers = {name: str(count) for name, count in counts.items()}
    root = ElementTree.Element("testsuites", {"name": "bnfold", **numbers})
    suite = ElementTree.SubElement(root, "testsuite", {"name": _legal(subject(document) or "bnfold"), **numbers})
    suite.extend(cases)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode")


def _cases(document: Mapping[str, Any], place: str) -> Iterator[ElementTree.Element]:
    if "error" in document:
        case = _case(place, "verdict")
        _outcome(case, "error", document["error"]["kind"], document["error"]["message"])
        yield case
        return
    outcome = "failure" if fails_on_unfolded(document) else "skipped"
    candidate = document["command"] == "check"
    for each in filter(is_left, document.get("folded", ())):
        case = _case(place, _name(each))
        if candidate:
            _outcome(case, outcome, "FOLDABLE", would_fold(each))
        yield case
    for each in filter(is_left, document.get("kept", ())):
        case = _case(place, _name(each))
        _outcome(case, outcome, each["reason"], each["message"], each["hint"])
        yield case
    yield _verdict(document, _case(place, "verdict"))


def _verdict(document: Mapping[str, Any], case: ElementTree.Element) -> ElementTree.Element:
    verdict, check = document["verdict"], document["check"]
    if verdict["exit_code"]:
        tag = "error" if verdict["word"] == "INCONCLUSIVE" else "failure"
        details = "\n".join(f"{each.level}: {each.message}" for each in findings(document))
        _outcome(case, tag, verdict["word"], verdict["sentence"], details)
    elif check is None and verdict["word"] == "NOT CHECKED":
        _outcome(case, "skipped", verdict["word"], verdict["sentence"])
    else:
        ElementTree.SubElement(case, "system-out").text = _legal(f"{verdict['word']}: {verdict['sentence']}")
    return case


def _name(entry: Mapping[str, Any]) -> str:
    return f"{', '.join(entry['nodes'])} ({entry['op']})"


def _case(place: str, name: str) -> ElementTree.Element:
    return ElementTree.Element("testcase", {"classname": _legal(place), "name": _legal(name)})


def _outcome(case: ElementTree.Element, tag: str, kind: str, message: str, more: str = "") -> None:
    attributes = {"message": _legal(message)} if tag == "skipped" else {"type": kind, "message": _legal(message)}
    text = f"{kind}: {message}" + (f"\n{more}" if more else "")
    ElementTree.SubElement(case, tag, attributes).text = _legal(text)


def _legal(text: str) -> str:
    return _ILLEGAL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
