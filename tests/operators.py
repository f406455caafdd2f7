"""`python -m tests.operators` writes the table of bnfold/files/operators.py anew, out of the installed onnx."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import onnx.defs

from bnfold.files import operators

ANY = 2**31 - 1  # onnx's number for "as many as there are"


def entries() -> dict[str, str]:
    """Operator to its entry of the table."""
    known: dict[str, list[onnx.defs.OpSchema]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if not schema.domain:
            known.setdefault(schema.name, []).append(schema)
    return {name: _entry(schemas) for name, schemas in sorted(known.items())}


def _entry(schemas: list[onnx.defs.OpSchema]) -> str:
    found: list[str] = []
    last = ""
    for schema in sorted(schemas, key=lambda each: each.since_version):
        counts = (schema.min_input, schema.max_input, schema.min_output, schema.max_output)
        known = cast("Mapping[str, Any]", schema.attributes)
        attributes = (f"{name}={value.type.value}" for name, value in sorted(known.items()))
        words = " ".join([*("*" if count == ANY else str(count) for count in counts), *attributes])
        if words != last:
            found.append(f"{schema.since_version} {words}")
        last = words
    return "; ".join(found)


def main() -> None:
    path = Path(operators.__file__)
    lines = [f"    {name!r}: {entry!r},".replace("'", '"') for name, entry in entries().items()]
    table = "_TABLE = {\n" + "\n".join(lines) + "\n}\n"
    text = re.sub(r"_TABLE = \{\n.*?\n\}\n", lambda _: table, path.read_text(), flags=re.DOTALL)
    text = re.sub(r"^OPSET = \d+", f"OPSET = {onnx.defs.onnx_opset_version()}", text, flags=re.MULTILINE)
    path.write_text(text)


if __name__ == "__main__":
    main()
