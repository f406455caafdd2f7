# Lightning is an extra of its own, which need not be installed; torch and it leave parts of their interface untyped.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedBaseClass=false, reportMissingModuleSource=false
"""A Lightning callback: the BatchNorms get population statistics before each validation, and so before each checkpoint.

Trainer(callbacks=[RefreshStatistics()])
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..errors import UsageError
from .fitting import Refresh
from .loops import refresh_in

try:
    from lightning.pytorch.callbacks import Callback
except ModuleNotFoundError:
    try:
        from pytorch_lightning.callbacks import Callback
    except ModuleNotFoundError as error:
        raise UsageError("bnfold.train.lightning needs Lightning: pip install lightning.") from error

__all__ = ["RefreshStatistics"]


class RefreshStatistics(Callback):
    """Refreshes before validation, once in each epoch that has trained, and at the end of training.

    loader: the data; None: the trainer's own training batches. refresh: instead of bnfold.train.refresh. options: its
    arguments. A batch (inputs, targets) is passed on as its first part; for another form give `forward`. `report` is
    what the last refresh returned.
    """

    def __init__(self, loader: Iterable[Any] | None = None, *, refresh: Refresh | None = None, **options: Any) -> None:
        super().__init__()
        self.report: Any = None
        self._loader, self._refresh, self._options = loader, refresh, options
        self._trained = False

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """There is something new to measure."""
        self._trained = True

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Before the first batch of a validation. A sanity check before training is not preceded by any."""
        if not trainer.sanity_checking:
            self._renew(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Where there was no validation; a checkpoint callback comes last, so it saves what this has measured."""
        self._renew(trainer, pl_module)

    def _renew(self, trainer: Any, pl_module: Any) -> None:
        if not self._trained:
            return
        self._trained = False
        loader = self._loader if self._loader is not None else trainer.train_dataloader
        self.report = refresh_in(pl_module, loader, refresh=self._refresh, **self._options)
