"""The training loop: what it computes, the order of its steps, resuming, and bad input."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402 - without torch the tests skip before they would need it
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from bnfold import train  # noqa: E402
from bnfold.errors import UnreadableModel, UnwritableOutput, UsageError  # noqa: E402
from bnfold.train import fit  # noqa: E402
from bnfold.train.stepping import TrainingFailed  # noqa: E402


def blobs(count: int = 96, seed: int = 0) -> TensorDataset:
    """Three classes that a line can part."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    centres = torch.tensor([[4.0, 0.0], [-2.0, 3.0], [-2.0, -3.0]])
    return TensorDataset(centres[labels] + torch.randn(count, 2, generator=generator), labels)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))


def loader(batch: int = 16, **options: Any) -> DataLoader[Any]:
    return DataLoader(blobs(), batch_size=batch, shuffle=True, **options)


def exact(model: nn.Module, data: Any) -> str:
    """A refresh for a network whose BatchNorm is its second layer."""
    x = torch.cat([inputs for inputs, _ in data])
    bn: Any = model[1]  # pyright: ignore[reportIndexIssue]
    with torch.no_grad():
        h = model[0](x)  # pyright: ignore[reportIndexIssue]
        bn.running_mean.copy_(h.mean(0))
        bn.running_var.copy_(h.var(0, unbiased=False))
    return "refreshed"


def same(a: nn.Module, b: nn.Module) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_it_learns_and_reports():
    held_out = DataLoader(blobs(60, seed=1), batch_size=25)
    done = fit(network(), loader(), epochs=8, validation=held_out, rate=2e-2, refresh=exact)
    assert [each.number for each in done.epochs] == list(range(1, 9))
    assert done.epochs[-1].loss < 0.5 * done.epochs[0].loss
    assert done.score is not None
    assert done.score > 0.9
    assert done.refreshed == "refreshed"
    assert not done.model.training
    assert done.epochs[-1].rate == pytest.approx(0, abs=1e-9)
    assert done.epochs[3].rate == pytest.approx(1e-2)  # half of the cosine


def test_the_same_seed_gives_the_same_bits():
    first, second = (fit(network(), loader(), epochs=2, refresh=None).model for _ in range(2))
    assert same(first, second)


def test_the_refresh_comes_before_the_validation_and_the_checkpoint(tmp_path: Path):
    order: list[str] = []
    model = network()

    def refresh(given: nn.Module, data: Any) -> None:
        assert given is model
        order.append("refresh")
        with torch.no_grad():
            given[1].running_mean.fill_(len(order))  # pyright: ignore[reportIndexIssue]

    def score(output: Tensor, targets: Tensor) -> Tensor:
        order.append(f"validation {float(model[1].running_mean[0]):g}")  # pyright: ignore[reportIndexIssue]
        return targets * 0

    path = tmp_path / "c.pt"
    fit(model, loader(), epochs=2, validation=[next(iter(loader()))], score=score, refresh=refresh, checkpoint=path)
    assert order == ["refresh", "validation 1", "refresh", "validation 3"]
    state = torch.load(path, weights_only=True)
    assert state["model"]["1.running_mean"][0] == 3


@pytest.mark.parametrize("own", [False, True], ids=["global", "generator"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_resuming_gives_the_same_bits(accumulate: int, own: bool, tmp_path: Path):
    options: dict[str, Any] = {"epochs": 5, "accumulate": accumulate, "refresh": exact, "rate": 1e-2}
    options["validation"] = loader(8)

    def batches() -> Any:
        return loader(generator=torch.Generator().manual_seed(11)) if own else loader()

    whole = fit(network(), batches(), checkpoint=tmp_path / "whole.pt", **options)

    class Stopped(Exception):
        pass

    def stopping(model: nn.Module, data: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Stopped
        exact(model, data)

    calls: list[int] = []
    path = tmp_path / "part.pt"
    with pytest.raises(Stopped):
        fit(network(), batches(), checkpoint=path, **{**options, "refresh": stopping})
    torch.manual_seed(99)
    resumed = fit(network(seed=5), batches(), checkpoint=path, **options)
    assert same(resumed.model, whole.model)
    assert resumed.epochs == whole.epochs
    again = fit(network(seed=6), batches(), checkpoint=path, **options)  # nothing is left to do
    assert same(again.model, whole.model)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["part.pt", "whole.pt"]


@pytest.mark.parametrize(
    ("statistics", "dtype", "accumulate"),
    [("cumulative", torch.float32, 1), ("cumulative", torch.float32, 2), ("population", torch.float32, 1),
     ("ema", torch.bfloat16, 1), ("ema", torch.bfloat16, 2)],
)  # fmt: skip
def test_layers_with_exact_values_resume_to_the_same_bits(statistics: Any, dtype: Any, accumulate: int, tmp_path: Path):
    def make(seed: int) -> Any:
        model = train.convert(network(seed), statistics)
        model[1].to(dtype)  # pyright: ignore[reportIndexIssue]
        return nn.Sequential(model[0], Cast(dtype), model[1], Cast(torch.float32), *model[2:])  # pyright: ignore[reportIndexIssue]

    class Cast(nn.Module):
        def __init__(self, kind: Any) -> None:
            super().__init__()
            self.kind = kind

        def forward(self, x: Tensor) -> Tensor:
            return x.to(self.kind)

    options: dict[str, Any] = {"epochs": 4, "refresh": None, "accumulate": accumulate, "rate": 1e-2}
    batches = loader(14)  # the last one is short
    whole = fit(make(0), batches, checkpoint=tmp_path / "whole.pt", **options)
    calls: list[int] = []

    def failing(output: Tensor, targets: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > 17:
            raise KeyboardInterrupt
        return nn.functional.cross_entropy(output, targets)

    with pytest.raises(KeyboardInterrupt):
        fit(make(0), batches, checkpoint=tmp_path / "part.pt", loss=failing, **options)
    resumed = fit(make(1), batches, checkpoint=tmp_path / "part.pt", **options)
    assert same(resumed.model, whole.model)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_half_precision_learns_with_accumulation_too(amp: Any, accumulate: int):
    done = fit(network(), loader(), epochs=12, amp=amp, accumulate=accumulate, rate=3e-2, validation=loader())
    assert (done.score or 0) > 0.9
    assert train.drift(done.model, loader()).residual < 1e-6


def test_the_default_refresh_resumes_alike_and_knows_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from bnfold.train import fitting

    devices: list[Any] = []
    real: Any = fitting.refreshed

    def watched(*arguments: Any, **options: Any) -> Any:
        devices.append(options["device"])
        if len(devices) == stop:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(fitting, "refreshed", watched)
    stop = 0
    whole = fit(network(), loader(), epochs=4, checkpoint=tmp_path / "whole.pt", validation=loader())
    assert devices == [torch.device("cpu")] * 4 and isinstance(whole.refreshed, train.RefreshReport)
    stop = 7
    with pytest.raises(KeyboardInterrupt):
        fit(network(), loader(), epochs=4, checkpoint=tmp_path / "part.pt", validation=loader())
    resumed = fit(network(seed=3), loader(), epochs=4, checkpoint=tmp_path / "part.pt", validation=loader())
    assert same(resumed.model, whole.model) and resumed.epochs == whole.epochs
    assert train.drift(resumed.model, loader()).residual < 1e-6


def test_accumulated_gradients_are_those_of_the_large_batch():
    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3)).double()

    x, y = blobs(20).tensors
    x = x.double()
    small = [(x[a:b], y[a:b]) for a, b in ((0, 8), (8, 16), (16, 20))]  # the last is a short one
    first, second = net(), net()
    for model, data, count in ((first, small, 3), (second, [(x, y)], 1)):
        fit(model, data, epochs=3, accumulate=count, rate=1e-2, refresh=None)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_accumulation_moves_the_running_statistics_once_a_step():
    x, y = blobs(48).tensors
    order = x[:, 0].argsort()
    x, y = x[order], y[order]
    models = []
    for data, count in (([(x, y)], 1), (list(zip(x.split(8), y.split(8), strict=True)), 6)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 3))
        fit(model, data, epochs=1, accumulate=count, refresh=None, rate=1e-9)
        models.append(model)
    torch.testing.assert_close(models[0][0].running_mean, models[1][0].running_mean)
    torch.testing.assert_close(models[0][0].running_var, models[1][0].running_var)


def test_frozen_batchnorms_stay_frozen():
    model = network().train()
    bn: Any = model[1]  # pyright: ignore[reportIndexIssue]
    bn.eval()
    before = bn.running_mean.clone()
    fit(model, loader(), epochs=2, validation=loader(), refresh=None)
    assert torch.equal(bn.running_mean, before)
    thawed = network().eval()  # a whole model in evaluation mode is one that was just built or loaded
    fit(thawed, loader(), epochs=1, refresh=None)
    assert not torch.equal(thawed[1].running_mean, before)  # pyright: ignore[reportIndexIssue]


def test_amp_and_clipping():
    model = network()
    kinds: list[Any] = []
    model[0].register_forward_hook(lambda module, inputs, output: kinds.append(output.dtype))  # pyright: ignore[reportIndexIssue]
    done = fit(model, loader(), epochs=6, amp="bf16", clip=1.0, rate=2e-2, refresh=None, validation=loader())
    assert set(kinds) == {torch.bfloat16}
    assert done.score is not None
    assert done.score > 0.9
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_regression_and_networks_without_batchnorm():
    torch.manual_seed(0)
    x = torch.randn(64, 2)
    data = DataLoader(TensorDataset(x, x @ torch.tensor([[1.0], [-2.0]])), batch_size=16)
    done = fit(
        nn.Linear(2, 1), data, epochs=30, rate=0.1, weight_decay=0.0, validation=data
    )  # "auto" finds no statistics
    assert done.score is not None
    assert -1e-3 < done.score <= 0
    assert done.refreshed is None


class Endless:
    def __iter__(self) -> Iterator[Any]:
        return iter(loader())


def test_bad_input(tmp_path: Path):
    good, model = loader(), network()
    for data, options, kind, sentence in (
        (Endless(), {}, UsageError, "has no length"),
        ([], {}, UsageError, "is empty"),
        ([1, 2], {}, UsageError, "a pair"),
        (good, {"epochs": 0}, UsageError, "epochs=0"),
        (good, {"accumulate": 0}, UsageError, "accumulate=0"),
        (good, {"amp": "int8"}, UsageError, "none of bf16, fp16"),
        (good, {"validation": []}, UsageError, "no sample"),
        (DataLoader(blobs(17), batch_size=16), {}, TrainingFailed, "drop_last=True"),
        (good, {"rate": 1e30, "epochs": 4}, TrainingFailed, "lower the rate"),
        (good, {"checkpoint": tmp_path / "no" / "c.pt"}, UnwritableOutput, "cannot be written"),
    ):
        with pytest.raises(kind, match=sentence):
            fit(model if "rate" not in options else network(), data, refresh=None, **options)  # pyright: ignore[reportArgumentType]


def test_checkpoints_that_do_not_fit(tmp_path: Path):
    path = tmp_path / "c.pt"
    fit(network(), loader(), epochs=2, checkpoint=path, refresh=None)
    with pytest.raises(UsageError, match="over 2 epochs"):
        fit(network(), loader(), epochs=3, checkpoint=path, refresh=None)
    with pytest.raises(UsageError, match="another model"):
        fit(nn.Linear(2, 3), loader(), epochs=2, checkpoint=path, refresh=None)
    before = path.read_bytes()
    path.write_bytes(before[:200])
    with pytest.raises(UnreadableModel, match="no checkpoint"):
        fit(network(), loader(), epochs=2, checkpoint=path, refresh=None)
    fit(network(), loader(), epochs=2, checkpoint=path, refresh=None, resume=False)
    assert len(path.read_bytes()) == len(before)
    torch.save({"kind": "something"}, path)
    with pytest.raises(UnreadableModel, match="no checkpoint"):
        fit(network(), loader(), epochs=2, checkpoint=path, refresh=None)


def test_a_diverged_epoch_leaves_the_last_good_checkpoint(tmp_path: Path):
    path, calls = tmp_path / "c.pt", []

    def loss(output: Tensor, targets: Tensor) -> Tensor:
        calls.append(1)
        return output.sum() * (float("nan") if len(calls) > 8 else 0.0)

    with pytest.raises(TrainingFailed, match="epoch 2"):
        fit(network(), loader(), epochs=3, checkpoint=path, loss=loss, refresh=None)
    state = torch.load(path, weights_only=True)
    assert len(state["done"]) == 1
    assert all(value.isfinite().all() for value in state["model"].values())
