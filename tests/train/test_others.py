# torch has a module's children as Tensor | Module and its buffers as optional: more than the tests need to ask for.
# pyright: reportOptionalMemberAccess=false, reportOptionalOperand=false, reportOptionalSubscript=false
# pyright: reportArgumentType=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false
"""What goes wrong in other tools, row by row: their result is wrong here, and ours is the oracle's.

torch's update_bn is run as it is; what fvcore, AIMET and timm compute is written out in a line or two.
"""

import copy

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - without torch the tests skip before they would need it
from torch.optim.swa_utils import update_bn  # noqa: E402

from bnfold import BnfoldError, train  # noqa: E402

from .nets import images, net, norms, oracle  # noqa: E402


def bn_model() -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm1d(3))


def off(model: nn.Module, x) -> float:
    """By how much, relative to deviation and variance, the first BN's statistics are off those of x."""
    layer = next(iter(norms(model).values()))
    x = x.double()
    mean, var = x.mean(0), x.var(0, correction=0)
    error = (layer.running_mean - mean).abs() / var.sqrt() + (layer.running_var / var - 1).abs()
    return float(error.nan_to_num(torch.inf).max())


def both(batches) -> tuple[nn.Sequential, nn.Sequential]:
    theirs, ours = bn_model(), bn_model()
    update_bn(batches, theirs)
    train.update_bn(batches, ours)
    return theirs, ours


def test_a_short_last_batch_counts_as_a_full_one():
    torch.manual_seed(0)
    batches = [torch.randn(64, 3), torch.randn(2, 3) + 5]
    theirs, ours = both(batches)
    assert off(theirs, torch.cat(batches)) > 1 and off(ours, torch.cat(batches)) < 1e-6


def test_the_variance_of_the_means_is_dropped():
    torch.manual_seed(0)
    batches = [torch.randn(32, 3) + label for label in (-1.0, 0.0, 1.0)]  # sorted by class
    theirs, ours = both(batches)
    assert off(theirs, torch.cat(batches)) > 0.3 and off(ours, torch.cat(batches)) < 1e-6


def test_dropout_is_on():
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3)) for _ in range(2)]
    batches = [torch.randn(64, 3) + 3 for _ in range(4)]
    update_bn(batches, models[0])
    train.update_bn(batches, models[1])
    x = torch.cat(batches)
    assert off(models[0], x) > 1 and off(models[1], x) < 1e-6


def test_one_infinite_batch_poisons_for_ever():
    torch.manual_seed(0)
    batches = [torch.randn(16, 3) for _ in range(4)]
    batches[1][3, 1] = torch.inf
    theirs, ours = both(batches)
    assert not torch.isfinite(theirs[0].running_var).all()
    assert off(ours, torch.cat([batches[0], *batches[2:]])) < 1e-6


def test_a_frozen_layer_thaws():
    models = [nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3)).train() for _ in range(2)]
    batches = [torch.randn(16, 3) + 4 for _ in range(2)]
    for model in models:
        model[0].eval()
    update_bn(batches, models[0])
    train.update_bn(batches, models[1])
    assert (models[0][0].running_mean != 0).all() and (models[1][0].running_mean == 0).all()
    assert (models[1][1].running_mean > 3).all()
    assert models[0][0].training and not models[1][0].training


def test_a_used_up_generator_leaves_zero_and_one():
    theirs, ours = bn_model(), bn_model()
    for model in (theirs, ours):
        model(torch.randn(8, 3) + 5)
    kept = ours[0].running_mean.clone()
    update_bn(iter([]), theirs)
    with pytest.raises(BnfoldError, match="no batch"):
        train.update_bn(iter([]), ours)
    assert (theirs[0].running_mean == 0).all() and torch.equal(ours[0].running_mean, kept)


def test_an_exception_leaves_momentum_none():
    theirs, ours = bn_model(), bn_model()
    batches = [torch.randn(8, 3), torch.randn(8, 4)]
    with pytest.raises(RuntimeError):
        update_bn(batches, theirs)
    with pytest.raises(RuntimeError):
        train.update_bn(batches, ours)
    assert theirs[0].momentum is None and ours[0].momentum == 0.1
    assert (ours[0].running_mean == 0).all() and (theirs[0].running_mean != 0).any()


def test_batches_that_are_dicts_fail():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm1d(3)

        def forward(self, image):
            return self.bn(image)

    batches = [{"image": torch.randn(8, 3)}]
    with pytest.raises(AttributeError):
        update_bn(batches, Named())
    model = Named()
    train.update_bn(batches, model)
    assert off(model, batches[0]["image"]) < 1e-6


def test_a_batch_of_one_fails():
    batches = [torch.randn(8, 3), torch.randn(1, 3)]
    with pytest.raises(ValueError, match="more than 1 value"):
        update_bn(batches, bn_model())
    model = bn_model()
    train.update_bn(batches, model)
    assert off(model, torch.cat(batches)) < 1e-6


def test_the_unbiased_variance_compounds():
    """20 BNs in a chain at batch 64: each stores 64/63 of the variance that it normalizes by."""
    torch.manual_seed(0)
    chain = nn.Sequential(*(nn.BatchNorm1d(2, eps=0.0 + 1e-12) for _ in range(20))).double()
    x = torch.randn(64, 2, dtype=torch.float64)
    ours = copy.deepcopy(chain)
    update_bn([x], chain)
    train.refresh(ours, [x])
    biased = chain.eval()(x).var(0, correction=0)
    # the first one's factor is the data's own: its variance is that of the batch
    assert torch.allclose(biased, torch.full((2,), (63 / 64) ** 20, dtype=torch.float64), rtol=1e-9)
    assert torch.allclose(ours.eval()(x).var(0, correction=0), torch.ones(2, dtype=torch.float64), rtol=1e-9)


def test_a_moving_average_lags_while_weights_move():
    """A weight that doubles over 60 steps: the average is of what it was, the exact statistics of what it is."""
    torch.manual_seed(0)
    batches = [torch.randn(64, 3) + 1 for _ in range(60)]
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).train()
    for k, x in enumerate(batches):
        with torch.no_grad():
            model[0].weight.copy_(torch.eye(3) * (1 + (k + 1) / 60))
            model[0].bias.zero_()
        model(x)
    now = 2 * torch.cat(batches)
    assert off(model, now) > 0.2
    train.refresh(model, batches)
    assert off(model, now) < 1e-6


def test_algorithm_2_with_equal_weights_is_not_the_data():
    """AIMET: Algorithm 2 with every batch counting alike; ours weights by the values, and pools unless asked."""
    torch.manual_seed(0)
    batches = [torch.randn(60, 3), torch.randn(4, 3) * 5 + 3]
    equal = torch.stack([x.var(0) for x in batches]).mean(0)
    whole = torch.cat(batches)
    assert (equal / whole.var(0) - 1).abs().min() > 1
    ours = bn_model()
    train.refresh(ours, batches, "algorithm2")
    weighted = (60 * batches[0].var(0) + 4 * batches[1].var(0)) / 64
    assert torch.allclose(ours[0].running_var, weighted, rtol=1e-5)
    train.refresh(ours, batches)
    assert off(ours, whole) < 1e-6


def test_the_mean_of_squares_cancels():
    """fvcore's PreciseBN: E[x²] − E[x]² in float32."""
    torch.manual_seed(0)
    x = torch.randn(4096, 3) + 1e4
    assert ((x.square().mean(0) - x.mean(0).square()) - 1).abs().max() > 1
    model = bn_model()
    train.refresh(model, list(x.split(64)))
    assert (model[0].running_var / x.double().var(0, correction=0) - 1).abs().max() < 1e-7


def test_momentum_one_does_not_clear_a_nan():
    """fvcore sets momentum to 1 to read a batch's statistics from the buffers: 0·NaN stays NaN."""
    theirs, ours = (nn.BatchNorm1d(3, momentum=1.0) for _ in range(2))
    x = torch.randn(16, 3)
    for layer in (theirs, ours):
        layer.running_mean.fill_(torch.nan)
    theirs(x)
    assert theirs.running_mean.isnan().all()
    train.refresh(ours, [x])
    assert torch.allclose(ours.running_mean, x.mean(0), atol=1e-6)


class Skips(nn.Module):
    """Its BN runs for every second batch only."""

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm1d(3)
        self.calls = 0

    def forward(self, x):
        return self.bn(x) if x[0, 0] > 0 else x


def test_a_skipped_layer_is_not_counted_again():
    """AIMET adds what the buffers hold after every batch, also where the layer did not run."""
    torch.manual_seed(0)
    batches = [torch.randn(16, 3) + 10, torch.randn(16, 3) - 10, torch.randn(16, 3) + 20, torch.randn(16, 3) - 5]
    theirs, ours = Skips(), Skips()
    theirs.bn.momentum = 1.0
    sums = torch.zeros(3)
    for x in batches:
        theirs(x)
        sums += theirs.bn.running_mean
    ran = torch.cat([batches[0], batches[2]])
    assert ((sums / 4) - ran.mean(0)).abs().max() < 0.1  # by luck: each counted twice
    for x in [batches[2], batches[1], batches[1]]:
        theirs(x)
        sums += theirs.bn.running_mean
    assert ((sums / 7) - ran.mean(0)).abs().max() > 1
    report = train.update_bn([*batches, batches[1], batches[1]], ours)
    assert report is not None and report.layers[0].n == 32
    assert off(ours, ran) < 1e-6


@pytest.mark.parametrize("sizes", [[32, 32, 5], [8] * 8])
def test_in_a_network_only_ours_agrees_with_the_oracle(sizes: list[int]):
    data = images(sizes, by_class=True)
    theirs, ours, exact = net(), net(), net()
    oracle(exact, data)
    update_bn(data, theirs)
    train.refresh(ours, data)
    for name, layer in norms(exact).items():
        assert torch.allclose(norms(ours)[name].running_var, layer.running_var, rtol=1e-6)
    worst = max(
        float((norms(theirs)[n].running_var / bn.running_var - 1).abs().max()) for n, bn in norms(exact).items()
    )
    assert worst > 0.1
