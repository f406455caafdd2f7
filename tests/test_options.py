"""The form of stdout is known before the rest of the command line is understood, so that errors have it too."""

import pytest

from bnfold.cli.options import form_of


@pytest.mark.parametrize(
    ("line", "form"),
    [
        ("", "text"),
        ("net.onnx --json", "json"),
        ("net.onnx --format junit", "junit"),
        ("--format=sarif net.onnx", "sarif"),
        ("net.onnx --format", "text"),
        ("net.onnx --format xml", "text"),
        ("net.onnx -- --json", "text"),
        ("--json --format github", "github"),
        ("github --formatted", "text"),
    ],
)
def test_the_form_of_a_command_line(line: str, form: str):
    assert form_of(line.split()) == form
