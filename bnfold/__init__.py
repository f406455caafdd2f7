"""Fold inference-time BatchNormalization into the weights beside it, exactly, and prove that nothing changed.

    result = bnfold.fold("model.onnx")      # FoldResult: .report, .model, .check(), .save(path)
    verdict = bnfold.check("model.onnx", "model.folded.onnx")      # CheckResult, truthy when equivalent

Everything is imported when it is first used: `import bnfold` loads neither numpy nor onnx.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .check import check
    from .check.verdict import CheckResult, Verdict
    from .errors import BnfoldError
    from .fold import FoldResult, fold
    from .report import FoldReport

__all__ = ["BnfoldError", "CheckResult", "FoldReport", "FoldResult", "Verdict", "__version__", "check", "fold"]

_HOME = {
    "BnfoldError": "bnfold.errors",
    "CheckResult": "bnfold.check.verdict",
    "FoldReport": "bnfold.report",
    "FoldResult": "bnfold.fold",
    "Verdict": "bnfold.check.verdict",
    "check": "bnfold.check",
    "fold": "bnfold.fold",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bnfold' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """`bnfold.fold` and `bnfold.check` are functions, although modules of these names exist.

    Python binds a submodule to its package when it is first imported; that must not hide the function.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and name in ("fold", "check")):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
