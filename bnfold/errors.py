"""The exceptions of bnfold: one tree, and each class owns its exit code and the `kind` that the JSON output names.

    BnfoldError
    ├── UsageError        the request itself cannot be met: a bad option, an output that exists
    ├── UnreadableModel   there is no model to read: missing, a directory, truncated, another format
    ├── UnwritableOutput  the result cannot be stored: no permission, a full disk
    ├── MalformedModel    a model that contradicts itself: a cycle, a weight that lies outside its file
    └── UnsupportedModel  a valid model that this version cannot handle: a newer opset, a text format
        └── UnsupportedOp an operator that the reference evaluator does not have

`str(error)` is one or two sentences for people: what is wrong, where, and what to do.
"""

__all__ = [
    "BnfoldError",
    "MalformedModel",
    "UnreadableModel",
    "UnsupportedModel",
    "UnsupportedOp",
    "UnwritableOutput",
    "UsageError",
]

_LONGEST = 1000  # characters of a sentence


class BnfoldError(Exception):
    """Anything that bnfold refuses to do. Its text is meant to be shown as it is, without a traceback."""

    exit_code: int = 2
    kind: str = "error"

    def __init__(self, message: str = "") -> None:
        super().__init__(_on_one_line(message))


def _on_one_line(text: str) -> str:
    """Names come from the model, whoever made it: no line break or control character of theirs is shown as it is."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 200]} ... {text[-150:]}"


class UsageError(BnfoldError):
    """The request cannot be met as it was made."""

    kind = "usage"


class UnreadableModel(BnfoldError):
    """The source cannot be read as an ONNX model."""

    kind = "unreadable"


class UnwritableOutput(BnfoldError):
    """The result cannot be stored where it was asked for; nothing was left there."""

    kind = "unwritable"


class MalformedModel(BnfoldError):
    """The model contradicts itself or the ONNX specification."""

    kind = "malformed"


class UnsupportedModel(BnfoldError):
    """The model may well be valid, but it needs something that this version does not know."""

    kind = "unsupported"


class UnsupportedOp(UnsupportedModel):
    """The float64 reference has no implementation of an operator."""

    kind = "unsupported_op"
