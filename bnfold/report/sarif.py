"""SARIF 2.1.0 for code scanning: one result for a verdict that failed, and one for each normalization that is left.

The rules are the reasons for which a normalization stays, and the verdicts. A model has no lines, so a result names the
file and, as a logical location, the node.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote

from .. import __version__
from ..reasons import Reason
from .findings import Finding, findings, subject

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_VERDICTS = {
    "NOT_EQUIVALENT": ("The candidate is another function.", "Do not deploy it; `bnfold explain` has every fold."),
    "DEGRADED": ("The same function, but its arithmetic is worse than allowed.", "See `bnfold check` for the figures."),
    "INCONCLUSIVE": ("The check could not decide.", "The message says what would let it."),
    "FOLDABLE": ("A normalization that would fold is left in the model.", "Fold the model with bnfold."),
    "ERROR": ("bnfold could not do what it was asked.", "The message says what is wrong."),
}


def render(document: Mapping[str, Any]) -> str:
    """The document as a log with one run."""
    found, path = findings(document), subject(document)
    rules = _rules(found)
    index = {rule["id"]: number for number, rule in enumerate(rules)}
    invocation: dict[str, Any] = {"executionSuccessful": "error" not in document}
    if "error" in document:
        notification = {"level": "error", "message": {"text": document["error"]["message"]}}
        invocation["toolExecutionNotifications"] = [notification]
    elif "verdict" in document:
        invocation["exitCode"] = document["verdict"]["exit_code"]
    run = {
        "tool": {"driver": {"name": "bnfold", "version": __version__, "semanticVersion": __version__, "rules": rules}},
        # one category a model, without which uploads for several models would replace one another
        "automationDetails": {"id": f"bnfold/{PurePath(path).as_posix() if path else 'model'}/"},
        "invocations": [invocation],
        "results": [_result(each, path, index[each.rule]) for each in found],
    }
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2)


def _rules(found: list[Finding]) -> list[dict[str, Any]]:
    known = {
        reason.value: (f"A normalization stays: {reason.value.lower().replace('_', ' ')}.", reason.hint)
        for reason in Reason
    } | _VERDICTS
    known |= {each.rule: (each.rule, each.hint or each.rule) for each in found if each.rule not in known}
    return [
        {
            "id": name,
            "shortDescription": {"text": title},
            "help": {"text": text},
            "defaultConfiguration": {"level": "error" if name in _VERDICTS else "warning"},
        }
        for name, (title, text) in known.items()
    ]


def _result(finding: Finding, path: str, rule: int) -> dict[str, Any]:
    text = finding.message + (f" {finding.hint}" if finding.hint else "")
    location: dict[str, Any] = {}
    if path:
        # GitHub shows no result without a line; a binary file has one at most
        uri = {"uri": _uri(path)}
        location["physicalLocation"] = {"artifactLocation": uri, "region": {"startLine": 1}}
    if finding.nodes:
        location["logicalLocations"] = [
            {"name": node, "fullyQualifiedName": f"{path}::{node}" if path else node, "kind": "object"}
            for node in finding.nodes
        ]
    # without a fingerprint of their own all results on "line 1" would count as one
    mark = hashlib.sha256(
        "\0".join((finding.rule, path, *finding.nodes)).encode("utf-8", "surrogateescape")
    ).hexdigest()[:16]
    return {
        "ruleId": finding.rule,
        "ruleIndex": rule,
        "level": finding.level,
        "message": {"text": text},
        "locations": [location] if location else [],
        "partialFingerprints": {"primaryLocationLineHash": f"{mark}:1"},
    }


def _uri(path: str) -> str:
    """Relative to the checkout where the path is; percent-encoded, with slashes everywhere."""
    where = Path(path)
    return where.as_uri() if where.is_absolute() else quote(where.as_posix(), errors="surrogateescape")
