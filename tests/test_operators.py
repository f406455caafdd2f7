"""The table of operators says what onnx.defs says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import onnx.defs
import pytest

from bnfold.files.operators import OPSET, signature

from .operators import entries


def asked(operator: str, opset: int):
    try:
        schema = onnx.defs.get_schema(operator, opset, "")
    except onnx.defs.SchemaError:
        return None
    attributes = cast("Mapping[str, Any]", schema.attributes)
    types = {name: each.type.value for name, each in attributes.items()}
    return (schema.min_input, schema.max_input, schema.min_output, schema.max_output, types)


@pytest.mark.parametrize("operator", sorted(entries()))
def test_every_operator_at_every_opset(operator: str):
    for opset in range(1, min(OPSET, onnx.defs.onnx_opset_version()) + 1):
        assert signature(operator, opset) == asked(operator, opset), opset


@pytest.mark.parametrize("operator", ["", "Nothing", "conv", "Conv ", "FusedConv"])
def test_what_is_no_operator_has_no_signature(operator: str):
    assert signature(operator, OPSET) is None
