# torch has a module's children as Tensor | Module and its buffers as optional: more than the tests need to ask for.
# pyright: reportOptionalMemberAccess=false, reportOptionalOperand=false, reportOptionalSubscript=false
# pyright: reportArgumentType=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false
"""refresh against an oracle, and each of its promises."""

import copy
import random
import weakref
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - without torch the tests skip before they would need it

from bnfold import BnfoldError, train  # noqa: E402

from .nets import assert_exact, images, net, norms, oracle, state, unchanged  # noqa: E402

METHODS = ["sequential", "concurrent", "pooled", "algorithm2"]
UNEVEN = [16, 3, 1, 32, 7, 1]


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("by_class", [False, True])
@pytest.mark.parametrize("sizes", [UNEVEN, [1] * 24, [60]])
def test_sequential_is_exact(sizes: list[int], by_class: bool, offset: float):
    data = images(sizes, by_class=by_class, offset=offset)
    model = net()
    expected = oracle(copy.deepcopy(model), data)
    report = train.refresh(model, data)
    assert_exact(report.ledger, expected)
    for name, layer in norms(model).items():
        assert torch.equal(layer.running_mean, report.ledger[name].mean.float())
        assert torch.equal(layer.running_var, report.ledger[name].var.float())
        assert int(layer.num_batches_tracked) == len(sizes)
    assert report.passes <= 4 and report.batches == len(sizes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_exact(dtype):
    data = images(UNEVEN, dtype=dtype)
    model = net().to(dtype)
    expected = oracle(copy.deepcopy(model), data)
    assert_exact(train.refresh(model, data).ledger, expected)
    assert all(layer.running_var.dtype == dtype for layer in norms(model).values())


def test_a_model_without_any_statistics_is_exact_too():
    model = net()
    for layer in norms(model).values():
        layer.reset_running_stats()
    norms(model)["4"].running_var.fill_(torch.nan)
    data = images(UNEVEN)
    expected = oracle(copy.deepcopy(model), data)
    assert_exact(train.refresh(model, data).ledger, expected)


def test_many_layers_settle_in_fewer_passes_than_there_are_layers():
    torch.manual_seed(0)
    model = nn.Sequential(*[part for _ in range(12) for part in (nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU())])
    data = [torch.randn(n, 8) * 3 + 1 for n in (40, 24, 31)]
    for x in data:
        model(x)
    report = train.refresh(model, data)
    assert_exact(report.ledger, oracle(copy.deepcopy(model), [(x,) for x in data]), 1e-6)
    assert report.passes <= 13 and report.residual is not None and report.residual < 1e-6
    again = train.refresh(model, data)
    assert again.passes <= 2 and again.residual is not None and again.residual < 1e-6


@pytest.mark.parametrize("method", ["pooled", "algorithm2"])
def test_training_batch_methods_normalize_by_the_batch(method: Any):
    """Against a plain loop in training mode with hooks, at float64."""
    data = images([16, 8, 24], dtype=torch.float64)
    model, reference = net(dtype=torch.float64), net(dtype=torch.float64).train()
    seen: dict[str, list[Any]] = {name: [] for name in norms(reference)}
    for name, layer in norms(reference).items():
        layer.register_forward_pre_hook(lambda _, a, name=name: seen[name].append(a[0].movedim(1, -1).flatten(0, -2)))
    with torch.no_grad():
        for x, _ in data:
            reference(x)
    train.refresh(model, data, method)
    for name, layer in norms(model).items():
        parts = seen[name]
        n = sum(map(len, parts))
        var = torch.cat(parts).var(0, correction=0)
        if method == "algorithm2":
            var = sum(part.var(0) * len(part) for part in parts) / n
        assert torch.allclose(layer.running_mean, torch.cat(parts).mean(0), rtol=1e-12)
        assert torch.allclose(layer.running_var, var, rtol=1e-12)


def test_concurrent_is_one_pass_in_evaluation_mode():
    data, model = images(UNEVEN), net()
    layers = norms(model)
    from .nets import inputs

    expected = {name: inputs(model, layer, data) for name, layer in layers.items()}
    report = train.refresh(model, data, "concurrent")
    assert_exact(report.ledger, {name: (x.mean(0), x.var(0)) for name, x in expected.items()})
    assert report.passes == 1


# --- transactional -----------------------------------------------------------------------------------------------


class Trouble(Exception):
    pass


class Fails(nn.Module):
    """Raises at the n-th call from now on."""

    left = 10**9

    def forward(self, x):
        self.left -= 1
        if self.left < 0:
            raise Trouble
        return x


@pytest.mark.parametrize(
    ("method", "after"),
    [(method, after) for method in METHODS for after in (0, 1, 4)]
    + [("sequential", 7), ("sequential", 9), ("auto", 0), ("auto", 5), ("auto", 23), ("auto", 33)],
)
def test_any_exception_puts_everything_back(method: Any, after: int):
    model = nn.Sequential(net(), Fails()).train()
    model[0][1].momentum = None
    data = images([8] * 5)
    before, modes = state(model), [m.training for m in model.modules()]
    objects = [id(b) for b in model.buffers()]
    rng = torch.get_rng_state()
    model[1].left = after
    with pytest.raises(Trouble):
        train.refresh(model, data, method)
    assert unchanged(model, before) and [id(b) for b in model.buffers()] == objects
    assert [m.training for m in model.modules()] == modes and model[0][1].momentum is None
    assert torch.equal(torch.get_rng_state(), rng)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_a_loader_that_fails_puts_everything_back():
    def loader():
        yield from images([8] * 3)
        raise KeyboardInterrupt

    model = net()
    before = state(model)
    with pytest.raises(KeyboardInterrupt):
        train.refresh(model, loader(), "pooled")
    assert unchanged(model, before)


def test_a_variance_that_does_not_fit_is_an_error_and_changes_nothing():
    model = nn.Sequential(nn.BatchNorm1d(2).half(), nn.BatchNorm1d(2).half())
    data = [torch.tensor([[0.0, 0.0], [1.0, 500.0]]).half()]
    train.refresh(model, data)
    before = state(model)
    with pytest.raises(BnfoldError, match=r"variance 250000 of channel 1 of 0 does not fit into torch\.float16"):
        train.refresh(model, [2 * data[0]])
    assert unchanged(model, before)


# --- what else stays as it was -----------------------------------------------------------------------------------


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("last", torch.zeros(()))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        self.seen += 1
        self.last = x.mean()  # a new tensor every time
        return self.dropout(x) + 0 * torch.rand(())


@pytest.mark.parametrize("method", METHODS)
def test_buffers_change_in_place_and_all_else_stays(method: Any):
    model = nn.Sequential(Counter(), net(), nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))).train()
    data = images([8, 16, 4])
    model(data[0][0])
    held = dict(model.named_buffers())
    before = state(model)
    loader = torch.utils.data.DataLoader(
        [(x, y) for xs, ys in data for x, y in zip(xs, ys, strict=True)], batch_size=4, shuffle=True,
        generator=torch.Generator().manual_seed(5),
    )  # fmt: skip
    states = loader.generator.get_state(), torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    train.refresh(model, loader, method)
    after = dict(model.named_buffers())
    assert all(after[name] is buffer for name, buffer in held.items())
    changed = {name for name, value in before.items() if not torch.equal(model.state_dict()[name], value)}
    assert {name.rsplit(".", 1)[1] for name in changed} == {"running_mean", "running_var", "num_batches_tracked"}
    assert len(changed) == 9
    assert torch.equal(loader.generator.get_state(), states[0]) and torch.equal(torch.get_rng_state(), states[1])
    assert random.getstate() == states[2] and np.random.get_state()[1].tolist() == states[3]
    assert all(module.training for module in model.modules())


def test_a_shuffling_loader_gives_every_pass_the_same_batches():
    """drop_last with shuffle: without that, each pass would leave out other samples, and nothing would settle."""
    samples = [(x, y) for xs, ys in images([50], by_class=True) for x, y in zip(xs, ys, strict=True)]
    loader = torch.utils.data.DataLoader(samples, batch_size=16, shuffle=True, drop_last=True)
    torch.manual_seed(3)
    data = list(loader)
    model = net()
    expected = oracle(copy.deepcopy(model), data)
    torch.manual_seed(3)
    assert_exact(train.refresh(model, loader).ledger, expected)


def test_undo_is_bit_for_bit_and_in_place():
    model = net()
    before, held = state(model), dict(model.named_buffers())
    report = train.refresh(model, images(UNEVEN))
    assert not unchanged(model, before)
    report.undo()
    report.undo()
    assert unchanged(model, before) and all(b is held[name] for name, b in model.named_buffers())


# --- which layers ------------------------------------------------------------------------------------------------


def test_a_frozen_layer_is_left_alone_and_named():
    model = net().train()
    model[1].eval()
    model[4].momentum = 0.0
    before = state(model)
    report = train.refresh(model, images(UNEVEN))
    assert [row.name for row in report.layers] == ["8"]
    assert set(report.left_alone) == {"1", "4"} and "evaluation mode" in report.left_alone["1"]
    assert not model[1].training and model[8].training
    for key in ("1.running_mean", "1.running_var", "4.running_var", "4.num_batches_tracked"):
        assert torch.equal(model.state_dict()[key], before[key])
    assert "left alone: 1 frozen" in str(report)


def test_skip_leaves_layers_alone():
    model = net()
    before = state(model)
    report = train.refresh(model, images(UNEVEN), skip=("[14]",))
    assert set(report.left_alone) == {"1", "4"}
    assert torch.equal(model[1].running_mean, before["1.running_mean"])
    with pytest.raises(BnfoldError, match="matches no BatchNorm"):
        train.refresh(model, images(UNEVEN), skip=("stem*",))


class Branches(nn.Module):
    """One BN used twice, one that never runs, and one that runs only for batches of more than 4."""

    def __init__(self):
        super().__init__()
        self.twice, self.never, self.sometimes = (nn.BatchNorm1d(3) for _ in range(3))

    def forward(self, x):
        y = self.twice(x) + self.twice(10 * x)
        return self.sometimes(y) if len(x) > 4 else y


@pytest.mark.parametrize("method", METHODS)
def test_twice_is_pooled_never_is_named_and_sometimes_counts_what_it_saw(method: Any):
    model = Branches().double()
    data = [torch.randn(n, 3, dtype=torch.float64) for n in (8, 3, 6, 4, 2)]
    before = state(model)
    report = train.refresh(model, data, method)
    assert report.never_ran == ["never"] and "never ran, left as it was: never" in str(report)
    assert torch.equal(model.never.running_mean, before["never.running_mean"])
    assert [(row.name, row.n) for row in report.layers] == [("twice", 46), ("sometimes", 14)]
    x = torch.cat([*data, *(10 * x for x in data)])
    assert torch.allclose(report.ledger["twice"].mean, x.mean(0), rtol=1e-12)
    assert torch.allclose(report.ledger["twice"].var, x.var(0, correction=0), rtol=1e-12)


def test_a_buffer_that_another_module_holds_too_is_refreshed():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3))
    model[1].register_buffer("mean", model[0].running_mean)
    data = [torch.randn(16, 3) + 4]
    report = train.refresh(model, data)
    assert torch.allclose(model[0].running_mean, data[0].mean(0)) and model[1].mean is model[0].running_mean
    report.undo()
    assert (model[1].mean == 0).all()


def test_a_layer_that_feeds_itself_settles():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn, self.linear = nn.BatchNorm1d(4), nn.Linear(4, 4)

        def forward(self, x):
            for _ in range(3):
                x = torch.tanh(self.linear(self.bn(x)))
            return x

    torch.manual_seed(0)
    model = Loop().double()
    data = [torch.randn(16, 4, dtype=torch.float64) for _ in range(3)]
    train.refresh(model, data)
    assert train.drift(model, data).residual < 1e-6


def test_no_statistics_no_refresh():
    with pytest.raises(BnfoldError, match="no BatchNorm"):
        train.refresh(nn.Linear(3, 3), [torch.randn(2, 3)])
    with pytest.raises(BnfoldError, match="left alone"):
        train.refresh(nn.BatchNorm1d(3, track_running_stats=False), [torch.randn(2, 3)])
    with pytest.raises(BnfoldError, match="lazy"):
        train.refresh(nn.LazyBatchNorm1d(), [torch.randn(2, 3)])
    idle = nn.ModuleDict({"bn": nn.BatchNorm1d(3)})
    with pytest.raises(BnfoldError, match="No BatchNorm ran"):
        train.refresh(idle, [torch.randn(2, 3)], forward=lambda model, batch: batch)


# --- the data ----------------------------------------------------------------------------------------------------


def test_an_empty_loader_is_an_error():
    model = net()
    before = state(model)
    used = iter(images([4]))
    list(used)
    for loader in ([], used):
        with pytest.raises(BnfoldError, match="no batch"):
            train.refresh(model, loader, "pooled")
    with pytest.raises(BnfoldError, match="read once"):
        train.refresh(model, iter(images([4])))
    assert unchanged(model, before)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm1d(3)

    def forward(self, a, b=None):
        return self.bn(a if b is None else a + b)


def test_what_is_passed_on():
    a, b = torch.randn(2, 8, 3)
    both = (a + b).mean(0)
    for batch, forward, expected in (
        (a, None, a.mean(0)),
        ((a, b), None, a.mean(0)),
        ([a, b], None, a.mean(0)),
        ({"a": a, "b": b}, None, both),
        ({"b": b, "a": a}, None, both),
        ((a, b), lambda model, batch: model(*batch), both),
    ):
        model = Two()
        train.refresh(model, [batch], forward=forward)
        assert torch.allclose(model.bn.running_mean, expected, atol=1e-6)
    with pytest.raises(BnfoldError, match="empty tuple"):
        train.refresh(Two(), [()])


def test_batches_are_moved_to_the_device():
    seen: list[Any] = []

    def forward(model, batch):
        seen.extend([batch["a"].device, batch["more"][0].device])
        return model(torch.randn(4, 3))

    train.refresh(Two(), [{"a": torch.randn(4, 3), "more": (torch.zeros(1), "text")}], forward=forward, device="meta")
    assert {device.type for device in seen} == {"meta"}


def test_max_batches():
    data, model = images(UNEVEN), net()
    expected = oracle(copy.deepcopy(model), data[:3])
    report = train.refresh(model, data, max_batches=3)
    assert_exact(report.ledger, expected)
    assert report.batches == 3


@pytest.mark.parametrize("method", ["sequential", "pooled"])
def test_masked_padding_does_not_count(method: Any):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.channels, self.rows, self.linear = nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.Linear(4, 4)

        def forward(self, x):  # [N, L, 4]
            y = self.channels(x.transpose(1, 2)).transpose(1, 2)
            return self.rows(self.linear(y).reshape(-1, 4)).reshape(x.shape)

    torch.manual_seed(0)
    model, flat = Tokens().double(), Tokens().double()
    flat.load_state_dict(model.state_dict())
    sequences = [[torch.randn(int(n), 4, dtype=torch.float64) for n in torch.randint(1, 9, (5,))] for _ in range(4)]
    padded = []
    for batch in sequences:
        mask = torch.zeros(5, 9, dtype=torch.bool)
        x = torch.full((5, 9, 4), 1e3, dtype=torch.float64)
        for i, sequence in enumerate(batch):
            mask[i, : len(sequence)], x[i, : len(sequence)] = True, sequence
        padded.append((x, mask))
    report = train.refresh(model, padded, method, mask=lambda batch: batch[1])
    unpadded = [torch.cat(batch).unsqueeze(0) for batch in sequences]
    assert_exact(report.ledger, {n: (m.mean.numpy(), m.var.numpy()) for n in ("channels", "rows")
                                 for m in [train.refresh(flat, unpadded, method).ledger[n]]}, 1e-12)  # fmt: skip
    with pytest.raises(BnfoldError, match=r"mask of shape \[3\] does not fit channels, whose input is \[5, 4, 9\]"):
        train.refresh(model, padded, method, mask=lambda batch: torch.ones(3, dtype=torch.bool))
    by_layer = train.refresh(model, padded, "pooled", mask=lambda batch: {"channels": batch[1]})
    assert [row.n for row in by_layer.layers] == [int(sum(m.sum() for _, m in padded)), 180]


def test_a_mask_of_samples_reaches_every_pixel():
    data = images([8, 8])
    masks = iter([torch.arange(8) < 5, torch.arange(8) < 8])
    report = train.refresh(net(), data, "concurrent", mask=lambda _: next(masks))
    assert [row.n for row in report.layers] == [13 * 36, 13 * 16, 13]


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_that_no_value_reaches_is_left_as_it_was(method: Any):
    """Hidden by the mask, or in batches of no sample: M2/n of nothing is not 0."""
    data = images([8, 8])
    nothing = torch.zeros(8, dtype=torch.bool)
    model = net()
    before = state(model)
    report = train.refresh(model, data, method, mask=lambda _: {"4": nothing})
    assert report.never_ran == ["4"] and [row.name for row in report.layers] == ["1", "8"]
    assert torch.equal(model[4].running_var, before["4.running_var"])
    for batches, mask in ((data, lambda _: nothing), ([(x[:0], y[:0]) for x, y in data], None)):
        model = net()
        with pytest.raises(BnfoldError, match="No BatchNorm ran"):
            train.refresh(model, batches, method, mask=mask)
        assert unchanged(model, before)
    plain = train.refresh(model, data, method)
    padded = train.refresh(net(), [(data[0][0][:0], data[0][1][:0]), *data], method)  # one of no sample among others
    assert torch.equal(padded.ledger["8"].m2, plain.ledger["8"].m2)
    with train.collect(model) as collected:
        collected.mask = nothing
        model(data[0][0])
    with pytest.raises(BnfoldError, match="ledger is empty"):
        train.apply(collected, model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch about its own code
@pytest.mark.parametrize("method", METHODS)
def test_channels_last_compiled_and_wrapped_models(method: Any):
    data = images([16, 8, 2])
    plain, last, wrapped, compiled = net(), net(), net(), net()
    last.to(memory_format=torch.channels_last)
    expected = train.refresh(plain, data, method)
    last_data = [(x.to(memory_format=torch.channels_last), y) for x, y in data]
    for model, batches in (
        (last, last_data),
        (nn.DataParallel(wrapped), data),
        (torch.compile(compiled), data),  # the hooks have to run; compiled code would not run them
    ):
        report = train.refresh(model, batches, method)
        for name in expected.ledger:
            assert torch.allclose(report.ledger[name].mean, expected.ledger[name].mean, rtol=1e-4, atol=1e-5)
            assert torch.allclose(report.ledger[name].var, expected.ledger[name].var, rtol=1e-4)


def test_sync_batch_norm():
    data, plain = images([16, 8, 1]), net()
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(net())
    for method in METHODS[:3]:
        expected = train.refresh(plain, data, method)
        assert_exact(
            train.refresh(synced, data, method).ledger,
            {n: (expected.ledger[n].mean.numpy(), expected.ledger[n].var.numpy()) for n in expected.ledger}, 1e-12,
        )  # fmt: skip


def test_autocast():
    data, model = images([16, 8]), net()
    seen = []
    model[1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.autocast("cpu", torch.bfloat16):
        report = train.refresh(model, data, "concurrent")
    assert {x.dtype for x in seen} == {torch.bfloat16} and model[1].running_var.dtype == torch.float32
    x = torch.cat(seen).double()
    assert torch.allclose(report.ledger["1"].var, x.var((0, 2, 3), correction=0), rtol=1e-10)


@pytest.mark.parametrize("method", ["sequential", "concurrent", "pooled"])
def test_batches_of_one(method: Any):
    model, data = net(), images([1] * 12)
    train.refresh(model, data, method)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    with pytest.raises(BnfoldError, match="one value a channel"):
        train.refresh(model, data, "algorithm2")


# --- values that are not finite ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("method", METHODS)
def test_a_poisoned_batch_is_left_out_and_named(method: Any, value: float):
    data = images([8, 4, 6, 3], seed=4)
    bad = [(x.clone(), y) for x, y in data]
    bad[2][0][1, 1, 3, 3] = value
    model, clean = net(), net()
    report = train.refresh(model, bad, method)
    expected = train.refresh(clean, [data[0], data[1], data[3]], method)
    for name in expected.ledger:
        assert torch.equal(report.ledger[name].mean, expected.ledger[name].mean)
        assert torch.equal(report.ledger[name].m2, expected.ledger[name].m2)
    (poison,) = report.quarantined
    assert (poison.batch, poison.layer, poison.channels) == (2, "1", (0, 1, 2, 3, 4, 5))
    assert "batch 2: a value that is not finite goes into 1, channels 0, 1" in str(report)
    assert report.batches == 3
    with pytest.raises(BnfoldError, match="Batch 2: a value that is not finite goes into 1"):
        train.refresh(model, bad, method, on_nonfinite="error")


@pytest.mark.parametrize("method", METHODS)
def test_a_value_that_appears_within_is_named_with_its_channel(method: Any):
    class Overflow(nn.Module):
        def forward(self, x):
            y = x.clone()
            y[:, 3] = torch.where(y[:, 3].abs() > 50, torch.inf, y[:, 3])
            return y

    model = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 6), Overflow(), nn.BatchNorm1d(6))
    nn.init.eye_(model[1].weight)
    data = [torch.randn(64, 5) for _ in range(5)]
    data[1][0, 3] = 1e6
    with torch.no_grad():
        model[1].weight[3, 3] = 10.0
    report = train.refresh(model, data, method)
    clean = train.refresh(model, [data[0], *data[2:]], method)
    assert [(p.batch, p.layer, p.channels) for p in report.quarantined] == [(1, "3", (3,))]
    for name in ("0", "3"):
        assert torch.allclose(report.ledger[name].m2, clean.ledger[name].m2, rtol=1e-6)


def test_statistics_that_are_not_finite_are_no_fault_of_the_batches():
    model, good = net(), net()
    norms(model)["1"].running_var.fill_(torch.inf)
    norms(model)["4"].running_mean.fill_(torch.nan)
    data = images(UNEVEN)
    report = train.refresh(model, data)
    assert not report.quarantined
    assert_exact(report.ledger, oracle(good, data))


def test_stale_statistics_that_overflow_are_no_fault_of_the_batches():
    """A variance of 0 sends everything behind to infinity in the first passes, and in no later one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    data = [torch.randn(8, 3) * 100 for _ in range(3)]
    for layer in norms(model).values():
        layer.running_var.fill_(0.0)
        layer.eps = 1e-38
    report = train.refresh(model, data)
    assert not report.quarantined and report.batches == 3
    assert_exact(report.ledger, oracle(copy.deepcopy(model), [(x,) for x in data]))


def test_nothing_but_poison_is_an_error():
    model = net()
    before = state(model)
    with pytest.raises(BnfoldError, match="every one holds values that are not finite: batch 0"):
        train.refresh(model, [torch.full((4, 2, 6, 6), torch.nan)] * 2)
    assert unchanged(model, before)


# --- tolerance ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["concurrent", "pooled", "sequential"])
def test_tolerance_stops_when_the_error_is_small_enough(method: Any):
    data = images([16] * 200)
    loose = train.refresh(net(), data, method, tolerance=0.1)
    tight = train.refresh(net(), data, method, tolerance=0.05)
    assert 4 <= loose.batches < tight.batches < 200
    assert all(row.expected <= 0.1 for row in loose.layers)
    unreachable = train.refresh(net(), data[:10], method, tolerance=1e-6)
    assert unreachable.batches == 10


def test_the_expected_error_is_the_error():
    """Over 60 draws of 8 batches: what the report expects against what all 480 batches say."""
    model = nn.Sequential(nn.BatchNorm1d(4)).double()
    torch.manual_seed(0)
    data = [torch.randn(16, 4, dtype=torch.float64) * 3 + 1 for _ in range(480)]
    whole = train.refresh(model, data, "concurrent").ledger["0"]
    from bnfold.train.drifting import layer_error

    errors, expected = [], []
    for i in range(0, 480, 8):
        (row,) = train.refresh(model, data[i : i + 8], "concurrent").layers
        errors.append(layer_error(model[0], whole) ** 2)
        expected.append(row.expected**2)
    assert 0.8 < (np.mean(expected) / np.mean(errors)) ** 0.5 < 1.25


# --- arguments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"method": "ema"}, "method='ema' is none of sequential"),
        ({"on_nonfinite": "ignore"}, "neither 'quarantine' nor 'error'"),
        ({"max_batches": 0}, "max_batches=0"),
        ({"max_passes": 0}, "max_passes=0"),
        ({"tolerance": 0.0}, "above 0"),
        ({"tolerance": float("nan")}, "above 0"),
    ],
)
def test_wrong_arguments_are_errors_in_a_sentence(arguments, sentence: str):
    with pytest.raises(BnfoldError, match=sentence):
        train.refresh(net(), images([4]), **arguments)


@pytest.mark.parametrize("method", METHODS)
def test_no_activation_outlives_its_batch(method: Any):
    model, seen = net(), []
    for layer in norms(model).values():
        layer.register_forward_pre_hook(lambda _, args: seen.append(weakref.ref(args[0])))

    def forward(model, batch):
        assert not any(reference() is not None for reference in seen)
        model(batch[0])

    train.refresh(model, images([8, 8, 8, 8]), method, forward=forward)
    assert len(seen) >= 12


def test_max_passes():
    model = net()
    assert train.refresh(model, images(UNEVEN), max_passes=1).passes == 1
