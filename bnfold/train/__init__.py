"""Training with BatchNormalization: what a fold relies on is made, measured and repaired here.

    report = train.refresh(model, loader)     # population statistics from data, in place; report.undo()
    print(train.drift(model, loader))         # how wrong the stored ones are; changes nothing
    train.fit(model, loader, epochs=30)       # a training loop that sees to them

Needs torch (`pip install 'bnfold[torch]'`), which is imported when a name is first used. bnfold.train.digits has
what models/ holds, of which the data need scikit-learn too.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d, SyncBatchNorm, convert
    from .collect import collect
    from .drift import DriftReport, drift
    from .fitting import Fitted, fit
    from .ledger import Ledger
    from .loops import refresh_in
    from .refresh import RefreshReport, apply, refresh, update_bn

_HOME = {
    "BatchNorm1d": "batchnorm",
    "BatchNorm2d": "batchnorm",
    "BatchNorm3d": "batchnorm",
    "DriftReport": "drift",
    "Fitted": "fitting",
    "Ledger": "ledger",
    "RefreshReport": "refresh",
    "SyncBatchNorm": "batchnorm",
    "apply": "refresh",
    "collect": "collect",
    "convert": "batchnorm",
    "drift": "drift",
    "fit": "fitting",
    "refresh": "refresh",
    "refresh_in": "loops",
    "update_bn": "refresh",
}
_MODULES = ("digits", "functional", "networks")

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "DriftReport",
    "Fitted",
    "Ledger",
    "RefreshReport",
    "SyncBatchNorm",
    "apply",
    "collect",
    "convert",
    "drift",
    "fit",
    "refresh",
    "refresh_in",
    "update_bn",
]


def __getattr__(name: str) -> Any:
    import importlib

    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES])


class _Package(ModuleType):
    """`train.refresh`, `train.collect` and `train.drift` are functions, although modules of these names exist.

    Python binds a submodule to its package when it is first imported; that must not hide the function.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and _HOME.get(name) == name):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
