# torch has a module's children as Tensor | Module and its buffers as optional: more than the tests need to ask for.
# pyright: reportOptionalMemberAccess=false, reportOptionalOperand=false, reportOptionalSubscript=false
# pyright: reportArgumentType=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false
"""drift, collect, update_bn, apply and the choice of a method."""

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - without torch the tests skip before they would need it

from bnfold import BnfoldError, train  # noqa: E402
from bnfold.train import drifting  # noqa: E402

from .nets import assert_exact, images, net, norms, oracle, state, unchanged  # noqa: E402

UNEVEN = [16, 3, 1, 32, 7, 1]


@pytest.mark.parametrize("make", [torch.randn, torch.rand, lambda *s, **k: torch.randn(*s, **k).exp()])
@pytest.mark.parametrize("eps", [1e-5, 0.1, 0.0])
def test_the_formula_is_brute_force(make, eps: float):
    """E[Δy²] is exact for any distribution, with the data's own moments."""
    torch.manual_seed(0)
    x = make(5000, 4, dtype=torch.float64)
    mean, var, weight = torch.randn(4).double(), torch.rand(4).double() + 0.2, torch.randn(4).double()
    one = train.functional.batch_norm_transform(x, weight, mean=mean, var=var, eps=eps).y
    two = train.functional.batch_norm_transform(x, weight, mean=x.mean(0), var=x.var(0, correction=0), eps=eps).y
    formula = drifting.output_error(mean, var, x.mean(0), x.var(0, correction=0), eps, weight)
    assert torch.allclose(formula, (one - two).square().mean(0), rtol=1e-11)


def test_drift_changes_nothing_and_ranks_the_worst_first():
    data, model = images(UNEVEN), net().train()
    train.refresh(model, data)
    with torch.no_grad():
        model[4].running_var *= 3
    before, rng = state(model), torch.get_rng_state()
    report = train.drift(model, data)
    assert unchanged(model, before) and torch.equal(torch.get_rng_state(), rng)
    assert all(module.training for module in model.modules())
    assert report.layers[0].name == "4" and report.layers[0].error > 10 * report.layers[1].error
    assert report.layers[0].network > report.layers[1].network
    assert report.layers[0].flips is not None and report.layers[0].flips > 0
    assert str(report).splitlines()[2].startswith("4 ")
    assert report.to_dict()["layers"][0]["name"] == "4" and "exact" not in report.to_dict()


def test_the_errors_are_those_of_the_outputs():
    """Of one BN, brute force: y as it is stored against y with the statistics of the data; and the network's output."""
    data, model = images([64]), net()
    stale = net()
    report = train.drift(stale, data)
    oracle(model, data)
    for row in report.layers:
        layer, exact = norms(stale)[row.name], norms(model)[row.name]
        from .nets import inputs

        x = torch.from_numpy(inputs(model, exact, data).astype(float)).float()
        with torch.no_grad():
            difference = layer.eval()(x.reshape(*x.shape, *[1] * (2 * isinstance(layer, nn.BatchNorm2d)))) - exact(
                x.reshape(*x.shape, *[1] * (2 * isinstance(layer, nn.BatchNorm2d)))
            )
        assert abs(float(difference.double().square().mean().sqrt()) / row.error - 1) < 1e-4
        swapped = copy.deepcopy(stale)
        norms(swapped)[row.name].load_state_dict(exact.state_dict())
        with torch.no_grad():
            change = swapped(data[0][0]).double() - stale(data[0][0]).double()
        assert abs(float(change.square().mean().sqrt()) - row.network) < 1e-5
    with torch.no_grad():
        change = model(data[0][0]).double() - stale(data[0][0]).double()
        flips = (model(data[0][0]).argmax(1) != stale(data[0][0]).argmax(1)).double().mean()
    assert abs(float(change.square().mean().sqrt()) - report.network) < 1e-5 and float(flips) == report.flips


def test_the_residual_is_zero_for_sequential_statistics_alone():
    data = images([16] * 6, by_class=True)
    residuals = {}
    for method in ("sequential", "pooled", "algorithm2"):
        model = net()
        train.refresh(model, data, method)
        residuals[method] = train.drift(model, data).residual
    residuals["ema"] = train.drift(net(), data).residual
    assert residuals["sequential"] < 1e-6 < 1e-3 < residuals["pooled"] < residuals["ema"]
    assert residuals["sequential"] < 1e-6 < residuals["algorithm2"]


def test_drift_of_statistics_that_are_not_finite():
    model = net()
    model[4].running_var[2] = torch.nan
    report = train.drift(model, images([32, 32]))
    assert report.layers[0].name == "4" and report.layers[0].error == float("inf")
    assert not report.quarantined
    with pytest.raises(BnfoldError, match="read once"):
        train.drift(model, iter(images([8])))


def test_an_exception_in_drift_leaves_everything():
    model = net()
    before = state(model)
    calls = iter(range(100))

    def forward(model, batch):
        if next(calls) == 17:
            raise RuntimeError("stop")
        return model(batch[0])

    with pytest.raises(RuntimeError, match="stop"):
        train.drift(model, images([8] * 3), forward=forward)
    assert unchanged(model, before)


# --- collect -----------------------------------------------------------------------------------------------------


def test_collecting_in_a_loop_of_ones_own():
    data, model = images(UNEVEN), net()
    before = state(model)
    with train.collect(model) as statistics, torch.no_grad():
        for x, _ in data:
            model(x)
    assert unchanged(model, before) and statistics.batches == len(data)
    model(data[0][0])
    assert statistics.batches == len(data), "the hooks are gone"
    report = train.refresh(model, data, "concurrent")
    theirs = report.ledger.state_dict()
    assert all(torch.equal(v.nan_to_num(7), theirs[k].nan_to_num(7)) for k, v in statistics.state_dict().items())


def test_collecting_while_training_and_applying():
    data, model = images([16, 8, 4]), net().train()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    with train.collect(model) as statistics:
        for x, y in data:
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    before = state(model)
    report = train.apply(statistics, model)
    twin = net()
    train.refresh(twin, data, "pooled")
    for name, layer in norms(twin).items():
        assert torch.allclose(norms(model)[name].running_var, layer.running_var, rtol=1e-5)
    report.undo()
    assert unchanged(model, before)


def test_a_forward_that_raises_does_not_count():
    model = net()
    with train.collect(model) as statistics, torch.no_grad():
        model(images([4])[0][0])
        with pytest.raises(RuntimeError):
            model(torch.randn(4, 2, 9, 9))  # it fails behind two of the BNs
        model(images([4], seed=2)[0][0])
    assert statistics.batches == 2 and float(statistics["1"].n) == 2 * 4 * 36


def test_collecting_with_masks_and_poison():
    bn = nn.BatchNorm1d(3)
    x = torch.randn(4, 3, 5)
    with train.collect(bn) as statistics:
        statistics.mask = torch.arange(5) < torch.tensor([[2], [5], [1], [3]])
        bn(x)
        statistics.mask = None
        bn(x / 0)
    assert float(statistics[""].n) == 11 and statistics.batches == 1
    assert [(p.batch, p.layer) for p in statistics.quarantined] == [(1, "")]


def test_shards_merge_without_the_data(tmp_path):
    data, model = images([16, 8, 24, 5]), net()
    parts = []
    for half in (data[:2], data[2:]):
        with train.collect(model) as statistics, torch.no_grad():
            for x, _ in half:
                model(x)
        statistics.save(tmp_path / "part.safetensors")
        parts.append(train.Ledger.load(tmp_path / "part.safetensors"))
    merged = parts[0].merge(parts[1])
    report = train.refresh(model, data, "concurrent")
    assert_exact(merged, {n: (report.ledger[n].mean.numpy(), report.ledger[n].var.numpy()) for n in merged}, 1e-12)
    report.save(tmp_path / "stats.safetensors")
    assert train.Ledger.load(tmp_path / "stats.safetensors").batches == 4


def test_a_ledger_of_another_model_is_not_applied():
    model = net()
    before = state(model)
    for name, channels, sentence in (("9", 6, "no BatchNorm of that name"), ("1", 5, "6 channels, and 5")):
        ledger = train.Ledger()
        ledger.add(name, moments_of(channels))
        with pytest.raises(BnfoldError, match=sentence):
            train.apply(ledger, model)
    with pytest.raises(BnfoldError, match="empty"):
        train.apply(train.Ledger(), model)
    assert unchanged(model, before)


def moments_of(channels: int):
    from bnfold.train.moments import Moments

    return Moments.of(torch.randn(5, channels))


# --- update_bn and auto ------------------------------------------------------------------------------------------


def test_update_bn_has_torchs_arguments():
    data, one, two = images([16, 16]), net(), net()
    report = train.update_bn(data, one)
    assert report is not None and report.method == "pooled"
    train.update_bn(iter(data), two, torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(one.buffers(), two.buffers(), strict=True))
    assert train.update_bn(data, nn.Linear(2, 2)) is None


def test_auto_takes_what_the_held_out_data_favours(capsys):
    """Targets made by the model with one method's statistics: that method wins, the sentence says why."""
    data = images([4] * 120, by_class=True, seed=5)
    torch.manual_seed(0)
    order = torch.randperm(len(data)).tolist()
    data = [data[i] for i in order]
    for method in ("algorithm2", "sequential"):
        model, teacher = net(), net()
        train.refresh(teacher, data, method)
        with torch.no_grad():
            taught = [(x, teacher(x)) for x, _ in data]
        report = train.refresh(model, taught, "auto")
        assert report.method == method, report.why
        assert report.choice is not None and report.choice.scores[method] == max(report.choice.scores.values())
        assert capsys.readouterr().err.strip() == report.why and report.why.startswith(method)
        assert "96 held-out samples" in report.why and f"method: {method}" in str(report)
        for a, b in zip(model.buffers(), teacher.buffers(), strict=True):
            assert torch.allclose(a.double(), b.double(), rtol=1e-5, atol=1e-6)


def test_auto_keeps_what_is_stored_if_that_is_better():
    data, model, teacher = images([16] * 20), net(), net()
    with torch.no_grad():
        taught = [(x, teacher(x)) for x, _ in data]
    before = state(model)
    report = train.refresh(model, taught, "auto", held_out=taught[:5])
    assert report.method == "stored" and unchanged(model, before)


def test_auto_needs_a_difference_that_is_sure():
    data, model = images([16] * 20), net()
    train.refresh(model, data)
    report = train.refresh(model, data, "auto")  # labels that the net never saw: all are as bad
    assert report.method == "sequential" and "none is better" in report.why
    assert all(low <= 0 for low, _ in report.choice.intervals.values())


@pytest.mark.parametrize(
    ("loader", "method", "sentence"),
    [
        (lambda: iter(images([16] * 20)), "pooled", "read only once"),
        (lambda: [x for x, _ in images([16] * 20)], "sequential", "only 0 held-out samples"),
        (lambda: images([16] * 4), "sequential", "only 0 held-out samples"),
    ],
)
def test_auto_without_anything_to_measure_says_so(loader, method: Any, sentence: str):
    report = train.refresh(net(), loader(), "auto")
    assert report.method == method and sentence in report.why


def test_auto_with_a_score_of_ones_own():
    data, model = images([1] * 200), net()
    report = train.refresh(model, data, "auto", score=lambda output, batch: -output.square().mean(1))
    assert "40 held-out" in report.why
    assert "algorithm2" not in report.choice.scores, "batches of one have no unbiased variance"
