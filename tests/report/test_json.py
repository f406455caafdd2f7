"""The JSON document: schema 1, exactly these keys, and nothing in it that a strict parser refuses."""

import json

import numpy as np

import bnfold
from bnfold.report import Alternative, Folded, FoldReport, Kept, Target
from bnfold.report.json import document, dumps, error_document

REPORT = FoldReport(
    (Folded(("bn",), "BatchNormalization", "up", (Target("conv", "Conv"),), ("relu",)),),
    (
        Kept(
            ("bn2",),
            "BatchNormalization",
            "PADDED",
            "conv2",
            "The border differs.",
            "Pad with reflect.",
            (Alternative("down", ("relu",), "PADDED", "conv2", "The border differs."),),
            True,
        ),
    ),
    2,
    2,
    5,
    4,
    13,
    0,
    ("A note.",),
)


def test_the_report_has_the_keys_of_the_schema():
    assert REPORT.to_dict() == {
        "counts": {"sources": 2, "batch_normalizations": 2, "folded": 1, "kept": 1},
        "folded": [
            {
                "nodes": ["bn"],
                "op": "BatchNormalization",
                "direction": "up",
                "into": [{"node": "conv", "op": "Conv"}],
                "through": ["relu"],
                "normalization": True,
            }
        ],
        "kept": [
            {
                "nodes": ["bn2"],
                "op": "BatchNormalization",
                "reason": "PADDED",
                "at": "conv2",
                "message": "The border differs.",
                "hint": "Pad with reflect.",
                "alternatives": [{"direction": "down", "through": ["relu"], "reason": "PADDED", "at": "conv2"}],
                "normalization": True,
            }
        ],
        "notes": ["A note."],
    }


def test_a_document_says_its_schema_and_its_tool_first():
    whole = document(source=None, **REPORT.to_dict())
    assert list(whole)[:3] == ["schema", "tool", "source"]
    assert whole["schema"] == 1
    assert whole["tool"] == {"name": "bnfold", "version": bnfold.__version__}
    assert json.loads(dumps(whole)) == whole


def test_an_error_document():
    assert error_document("usage", "No.") == {"schema": 1, "error": {"kind": "usage", "message": "No."}}


def test_numpy_values_and_numbers_that_json_lacks():
    values = {
        "f": np.float32(0.5),
        "i": np.int64(3),
        "b": np.bool_(True),
        "nan": float("nan"),
        "inf": np.float64("-inf"),
        "t": (1, [2.0]),
        "n": None,
        "σ": "σ²",
    }
    text = dumps(values)
    assert text.isascii()
    assert json.loads(text, parse_constant=refuse) == {
        "f": 0.5,
        "i": 3,
        "b": True,
        "nan": "nan",
        "inf": "-inf",
        "t": [1, [2.0]],
        "n": None,
        "σ": "σ²",
    }


def refuse(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")
