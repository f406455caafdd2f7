"""Refreshing inside the loops of others: wrappers are looked through, and Lightning saves what was measured."""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - without torch the tests skip before they would need it
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from bnfold.errors import UsageError  # noqa: E402
from bnfold.train.loops import refresh_in, unwrapped  # noqa: E402


def data() -> Any:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=generator) * 2 + 5
    return DataLoader(TensorDataset(x, (x[:, 0] > 5).long()), batch_size=8)


def network() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))


def exact(model: Any, loader: Any, **options: Any) -> dict[str, Any]:
    """The population statistics of a network that begins with its BatchNorm, which is Sequential or in `.net`."""
    net = getattr(model, "net", model)
    x = torch.cat([inputs for inputs, _ in loader])
    with torch.no_grad():
        net[0].running_mean.copy_(x.mean(0))
        net[0].running_var.copy_(x.var(0, unbiased=False))
    return options


def test_wrappers_are_looked_through():
    model = network()
    assert unwrapped(model) is model
    assert unwrapped(nn.DataParallel(model)) is model
    assert unwrapped(torch.compile(model, backend="eager")) is model  # pyright: ignore[reportArgumentType]
    assert unwrapped(torch.compile(nn.DataParallel(model), backend="eager")) is model  # pyright: ignore[reportArgumentType]
    holder = nn.Module()
    holder.module = model  # a network that happens to call a part of its own so
    assert unwrapped(holder) is holder


def test_the_network_inside_is_refreshed():
    model, loader = network(), data()
    options = refresh_in(nn.DataParallel(model), loader, refresh=exact, method="pooled")
    assert options == {"method": "pooled"}
    x = loader.dataset.tensors[0]
    torch.testing.assert_close(model[0].running_mean, x.mean(0))


def test_bnfolds_own_refresh():
    model, loader = network(), data()
    refresh_in(model, loader)
    x = loader.dataset.tensors[0]
    torch.testing.assert_close(model[0].running_mean, x.mean(0))
    torch.testing.assert_close(model[0].running_var, x.var(0, unbiased=False))


def test_accelerate():
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    model, loader = network(), data()
    prepared = accelerator.prepare(model)
    refresh_in(prepared, loader, accelerator=accelerator, refresh=exact)
    torch.testing.assert_close(model[0].running_mean, loader.dataset.tensors[0].mean(0))


def test_without_lightning_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch):
    for name in ("lightning", "lightning.pytorch", "lightning.pytorch.callbacks", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "bnfold.train.lightning", raising=False)
    with pytest.raises(UsageError, match="needs Lightning: pip install lightning"):
        importlib.import_module("bnfold.train.lightning")


def test_lightning_with_bnfolds_own_refresh():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own imports warn
        pytest.importorskip("lightning")
        import lightning.pytorch as pl  # pyright: ignore[reportMissingImports]

        from bnfold import train
        from bnfold.train.lightning import RefreshStatistics

        class Module(pl.LightningModule):  # pyright: ignore[reportUntypedBaseClass]
            def __init__(self) -> None:
                super().__init__()
                self.net = network()

            def forward(self, x: Any) -> Any:
                return self.net(x)

            def training_step(self, batch: Any, index: int) -> Any:
                return nn.functional.cross_entropy(self(batch[0]), batch[1])

            def validation_step(self, batch: Any, index: int) -> None:
                """What is validated is refreshed before."""

            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.parameters(), 0.1)

        callback, module, loader = RefreshStatistics(), Module(), data()
        quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = pl.Trainer(max_epochs=2, accelerator="cpu", callbacks=[callback], enable_checkpointing=False, **quiet)
        trainer.fit(module, loader, val_dataloaders=loader)
    assert isinstance(callback.report, train.RefreshReport) and callback.report.method == "sequential"
    assert train.drift(module.eval(), loader).residual < 1e-6


def test_lightning(tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own imports warn
        pytest.importorskip("lightning")
        import lightning.pytorch as pl  # pyright: ignore[reportMissingImports]

        from bnfold.train.lightning import RefreshStatistics

        loader = data()
        exact_mean = loader.dataset.tensors[0].mean(0)
        seen: list[Any] = []

        class Module(pl.LightningModule):  # pyright: ignore[reportUntypedBaseClass]
            def __init__(self) -> None:
                super().__init__()
                self.net = network()

            def training_step(self, batch: Any, index: int) -> Any:
                return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

            def validation_step(self, batch: Any, index: int) -> None:
                seen.append((self.trainer.sanity_checking, self.net[0].running_mean.clone()))

            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.parameters(), 0.1)

        def trained(**options: Any) -> tuple[Any, Any]:
            callback = RefreshStatistics(refresh=exact, note=1)
            saving = pl.callbacks.ModelCheckpoint(dirpath=tmp_path, filename=str(len(list(tmp_path.iterdir()))))
            quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
            trainer = pl.Trainer(max_epochs=2, accelerator="cpu", callbacks=[callback, saving], **quiet)
            trainer.fit(Module(), loader, **options)
            return callback, torch.load(saving.best_model_path, weights_only=True)["state_dict"]

        callback, saved = trained(val_dataloaders=loader)
    checks = [mean for sanity, mean in seen if sanity]
    after = [mean for sanity, mean in seen if not sanity]
    assert torch.equal(checks[0], torch.zeros(3))  # nothing has been trained yet
    assert len(after) == 10
    assert all(torch.allclose(mean, exact_mean) for mean in after)
    torch.testing.assert_close(saved["net.0.running_mean"], exact_mean)
    assert callback.report == {"note": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, saved = trained()  # without a validation
    torch.testing.assert_close(saved["net.0.running_mean"], exact_mean)
