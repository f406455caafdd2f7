# torch has a module's children as Tensor | Module and its buffers as optional: more than the tests need to ask for.
# pyright: reportOptionalMemberAccess=false, reportOptionalOperand=false, reportOptionalSubscript=false
# pyright: reportArgumentType=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false
"""The layers against torch.nn's: the same numbers where they promise the same, better ones where they do not."""

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - without torch the tests skip before they would need it

from bnfold import BnfoldError, train  # noqa: E402

PAIRS = [(nn.BatchNorm1d, train.BatchNorm1d, (6, 4)), (nn.BatchNorm1d, train.BatchNorm1d, (5, 4, 7))]
PAIRS += [(nn.BatchNorm2d, train.BatchNorm2d, (3, 4, 5, 6)), (nn.BatchNorm3d, train.BatchNorm3d, (2, 4, 3, 2, 3))]
KINDS = ["ema", "cumulative", "population"]


def batches(shape: tuple[int, ...], count: int = 4, dtype=torch.float32):
    torch.manual_seed(0)
    return [(torch.randn(shape) * (1 + i) + i).to(dtype) for i in range(count)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("theirs", "ours", "shape"), PAIRS)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_ema_is_torchs_bit_for_bit(theirs, ours, shape: tuple[int, ...], momentum: float | None, dtype):
    one, two = theirs(4, momentum=momentum, dtype=dtype), ours(4, momentum=momentum, dtype=dtype)
    x = torch.empty(0)
    for x in batches(shape, dtype=dtype):
        assert torch.equal(one(x), two(x))
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(one.eval()(x), two.eval()(x))


@pytest.mark.parametrize("statistics", KINDS)
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": False}])
@pytest.mark.parametrize(("theirs", "ours", "shape"), PAIRS)
def test_the_state_fits_both_ways(theirs, ours, shape: tuple[int, ...], statistics: Any, options: dict[str, bool]):
    one, two = theirs(4, **options), ours(4, statistics=statistics, **options)
    x = torch.empty(0)
    for x in batches(shape):
        one(x)
    two.load_state_dict(one.state_dict())
    assert torch.equal(one.eval()(x), two.eval()(x))
    two.train()(x + 1)
    one.load_state_dict(two.state_dict())
    assert torch.equal(one(x), two.eval()(x))


@pytest.mark.parametrize(("theirs", "ours", "shape"), PAIRS)
@pytest.mark.parametrize("statistics", ["cumulative", "population"])
def test_pooled_statistics_are_those_of_all_values(theirs, ours, shape: tuple[int, ...], statistics: Any):
    bn, reference = ours(4, statistics=statistics, dtype=torch.float64), theirs(4, dtype=torch.float64)
    data = batches(shape, dtype=torch.float64)
    data[-1] = data[-1][:2]  # a short last batch
    for x in data:
        assert torch.equal(bn(x), reference(x)), "training normalizes by the batch, as ever"
    whole = torch.cat([x.movedim(1, -1).reshape(-1, 4) for x in data])
    assert torch.allclose(bn.running_mean, whole.mean(0), rtol=1e-12, atol=0)
    assert torch.allclose(bn.running_var, whole.var(0, correction=0), rtol=1e-12, atol=0)
    assert int(bn.num_batches_tracked) == 4


def test_population_begins_anew_in_every_epoch_and_cumulative_does_not():
    one, two = train.BatchNorm1d(3, statistics="population"), train.BatchNorm1d(3, statistics="cumulative")
    epochs = [torch.randn(4, 8, 3), torch.randn(4, 8, 3) * 5 + 100]
    for epoch in epochs:
        for bn in (one, two):
            bn.train()
            for x in epoch:
                bn(x)
            bn.eval()
    last, all_ = epochs[1].reshape(-1, 3), torch.cat(epochs).reshape(-1, 3)
    assert torch.allclose(one.running_mean, last.mean(0)) and torch.allclose(one.running_var, last.var(0, correction=0))
    assert torch.allclose(two.running_mean, all_.mean(0)) and torch.allclose(two.running_var, all_.var(0, correction=0))
    one.train().reset_running_stats()
    one(epochs[0][0])
    assert torch.allclose(one.running_mean, epochs[0][0].mean(0))


def test_cumulative_goes_on_after_a_state_was_loaded():
    data = torch.randn(6, 8, 3) * torch.arange(1, 7).reshape(-1, 1, 1)
    whole, first, second = (train.BatchNorm1d(3, statistics="cumulative", dtype=torch.float64) for _ in range(3))
    for x in data.double():
        whole(x)
    for x in data[:4].double():
        first(x)
    second.load_state_dict(first.state_dict())
    for x in data[4:].double():
        second(x)
    assert torch.allclose(second.running_mean, whole.running_mean, rtol=1e-12)
    assert torch.allclose(second.running_var, whole.running_var, rtol=1e-12)


@pytest.mark.parametrize("statistics", KINDS)
def test_values_written_by_others_count(statistics: Any):
    bn = train.BatchNorm1d(2, momentum=0.5, statistics=statistics).to(torch.bfloat16)
    x = torch.randn(8, 2).to(torch.bfloat16)
    bn(x)
    with torch.no_grad():
        bn.running_mean.fill_(100.0)
    bn(x)
    assert (bn.running_mean > 40).all() == (statistics != "population")


def test_bf16_does_not_stall():
    """Momentum .001 towards 1: a step is less than half a unit in the last place of bf16 from .5 on."""
    ours, theirs = (make(1, momentum=1e-3).to(torch.bfloat16) for make in (train.BatchNorm1d, nn.BatchNorm1d))
    x = torch.tensor([[0.0], [2.0]]).to(torch.bfloat16)
    for _ in range(2000):
        ours(x)
        theirs(x)
    assert abs(float(theirs.running_mean) - 0.5) < 0.01
    assert abs(float(ours.running_mean) - (1 - 0.999**2000)) < 0.005


@pytest.mark.parametrize("statistics", KINDS)
def test_eps_zero_trains_and_runs(statistics: Any):
    torch.manual_seed(0)
    bn = train.BatchNorm2d(3, eps=0, statistics=statistics)
    nn.init.constant_(bn.bias, 0.5)
    x = torch.randn(4, 3, 5, 5)
    x[:, 1] = 7.0
    x.requires_grad_()
    y = bn(x)
    assert (y[:, 1] == 0.5).all()
    assert torch.allclose(y[:, [0, 2]].var((0, 2, 3), correction=0), torch.ones(2), atol=1e-5)
    y.square().sum().backward()
    assert torch.isfinite(x.grad).all() and (x.grad[:, 1] == 0).all()
    for _ in range(200):
        bn(x.detach())
    bn.running_var[1] = 0
    assert torch.isfinite(bn.eval()(x)).all() and (bn(x)[:, 1] == 0.5).all()
    with pytest.raises(BnfoldError, match="negative"):
        train.BatchNorm2d(3, eps=-1e-5)


@pytest.mark.parametrize("statistics", KINDS)
def test_gradients_are_torchs(statistics: Any):
    ours, theirs = train.BatchNorm2d(4, statistics=statistics), nn.BatchNorm2d(4)
    inputs = [torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2)]
    for bn, x in zip((ours, theirs), inputs, strict=True):
        bn(x).square().square().sum().backward()
    assert torch.equal(inputs[0].grad, inputs[1].grad) and torch.equal(ours.weight.grad, theirs.weight.grad)


@pytest.mark.parametrize("statistics", KINDS)
@pytest.mark.parametrize("make", [train.BatchNorm1d, train.SyncBatchNorm])
def test_wrong_inputs_are_torchs_errors(statistics: Any, make):
    bn = make(3, statistics=statistics)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        bn(torch.randn(1, 3))
    with pytest.raises(ValueError, match="expected"):
        bn(torch.randn(3))
    assert int(bn.num_batches_tracked) <= 1  # torch's own counts before it looks


def test_unknown_statistics_are_an_error():
    with pytest.raises(BnfoldError, match="'mean' is none of ema, cumulative, population"):
        train.BatchNorm1d(3, statistics="mean")


@pytest.mark.parametrize("statistics", KINDS)
def test_copies_and_pickles_are_independent(statistics: Any, tmp_path):
    bn = train.BatchNorm1d(3, statistics=statistics)
    bn(torch.randn(8, 3))
    other = copy.deepcopy(bn)
    torch.save(bn, tmp_path / "bn.pt")
    loaded = torch.load(tmp_path / "bn.pt", weights_only=False)
    before = bn.running_mean.clone()
    for twin in (other, loaded):
        assert torch.equal(twin.running_mean, before)
        twin(torch.randn(8, 3) + 5)
        assert not torch.equal(twin.running_mean, before)
    assert torch.equal(bn.running_mean, before)
    assert f"statistics='{statistics}'" in repr(bn)


def test_converting_keeps_tensors_and_function():
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, eps=1e-3), nn.Sequential(nn.BatchNorm2d(4, affine=False), nn.ReLU()),
        nn.Flatten(), nn.BatchNorm1d(64, track_running_stats=False), nn.Unflatten(1, (4, 16)), nn.InstanceNorm1d(4),
    )  # fmt: skip
    x = torch.randn(5, 1, 6, 6)
    net(x)
    expected, tensors, weights = net.eval()(x), [*net.parameters()], [*net.buffers()]
    converted = train.convert(net, "population")
    assert converted is net and type(net[1]) is train.BatchNorm2d and net[1].statistics == "population"
    assert not net[1].training
    assert all(a is b for a, b in zip(tensors, net.parameters(), strict=True))
    assert all(a is b for a, b in zip(weights, net.buffers(), strict=True))
    assert torch.equal(net(x), expected)
    synced = train.SyncBatchNorm.convert_sync_batchnorm(net)
    assert type(synced[1]) is train.SyncBatchNorm and synced[1].statistics == "population" and synced[1].eps == 1e-3
    assert torch.equal(synced(x), expected)
    assert type(train.convert(nn.BatchNorm3d(2))) is train.BatchNorm3d


def test_without_a_group_sync_is_a_plain_layer():
    ours, theirs = train.SyncBatchNorm(4), nn.BatchNorm2d(4)
    for x in batches((3, 4, 5, 6)):
        assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours.running_var, theirs.running_var)


@pytest.mark.parametrize("statistics", KINDS)
@pytest.mark.filterwarnings("ignore")  # torch about its own code
def test_the_fold_knows_the_layer(statistics: Any):
    pytest.importorskip("onnxscript")
    import bnfold

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), train.BatchNorm2d(4, statistics=statistics), nn.ReLU())
    net(torch.randn(8, 1, 6, 6))
    program = torch.onnx.export(net.eval(), (torch.randn(2, 1, 6, 6),), dynamo=True, optimize=False, verbose=False)
    assert program is not None
    result = bnfold.fold(program.model_proto)
    assert len(result.report.folded) == 1 and not result.report.kept
