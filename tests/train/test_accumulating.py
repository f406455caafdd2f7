"""Small batches that make one step move the running statistics once, by what they are together."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402 - without torch the tests skip before they would need it

from bnfold import train  # noqa: E402
from bnfold.train.accumulating import one_update  # noqa: E402


def layer(momentum: float | None = 0.1) -> Any:
    torch.manual_seed(0)
    bn: Any = nn.BatchNorm1d(4, momentum=momentum)
    bn.running_mean.normal_()
    bn.running_var.uniform_(0.5, 2)
    return bn.train()


def parts() -> list[Any]:
    torch.manual_seed(1)
    return [torch.randn(n, 4, 3) * 2 + offset for n, offset in ((8, 3.0), (3, -2.0), (5, 100.0))]


@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
@pytest.mark.parametrize("steps", [1, 3])
def test_it_is_one_update_by_all_of_them(momentum: float | None, steps: int):
    ours, whole, plain = layer(momentum), layer(momentum), layer(momentum)
    for _ in range(steps):
        with one_update(ours):
            for part in parts():
                ours(part)
        whole(torch.cat(parts()))
        for part in parts():
            plain(part)
    assert int(ours.num_batches_tracked) == int(whole.num_batches_tracked) == steps
    assert ours.momentum == momentum
    torch.testing.assert_close(ours.running_mean, whole.running_mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.running_var, whole.running_var, rtol=1e-5, atol=1e-5)
    assert (plain.running_var - whole.running_var).abs().max() > 0.2 * whole.running_var.max()  # torch's own


def test_a_layer_that_is_called_twice_counts_both_calls():
    ours, whole = layer(), layer()
    with one_update(ours):
        for part in parts():
            ours(ours(part))
    second = [nn.functional.batch_norm(p, None, None, whole.weight, whole.bias, True) for p in parts()]
    whole(torch.cat([*parts(), *second]))
    torch.testing.assert_close(ours.running_mean, whole.running_mean, rtol=1e-5, atol=1e-5)


def test_the_output_and_its_gradient_are_torchs():
    ours, plain = layer(), layer()
    x = parts()[0].requires_grad_()
    with one_update(ours):
        (found,) = torch.autograd.grad(ours(x).square().sum() + ours(x)[0].sum(), x)
    (expected,) = torch.autograd.grad(plain(x).square().sum() + plain(x)[0].sum(), x)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_what_is_not_averaging_is_left_alone():
    frozen, untracked = layer().eval(), nn.BatchNorm1d(4, track_running_stats=False)
    unused = layer()
    model = nn.ModuleDict({"frozen": frozen, "untracked": untracked, "unused": unused})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with one_update(model):
        for part in parts():
            frozen(part)
            untracked(part)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_an_exception_puts_everything_back():
    bn = layer()
    before = {name: value.clone() for name, value in bn.state_dict().items()}
    with pytest.raises(ZeroDivisionError), one_update(bn):
        bn(parts()[0])
        raise ZeroDivisionError
    assert bn.momentum == 0.1
    for name, value in bn.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert not bn._forward_hooks


def test_a_nan_that_was_there_does_not_reach_the_pooled_values():
    bn = layer(1.0)
    bn.running_mean.fill_(float("nan"))
    with one_update(bn):
        bn(parts()[0])
    assert bn.running_mean.isnan().all()  # (1 - 1)*nan: torch's own rule, the old value counts
    fresh = layer(1.0)
    with one_update(fresh):
        fresh(parts()[0])
    torch.testing.assert_close(fresh.running_mean, parts()[0].mean((0, 2)), rtol=1e-5, atol=1e-5)


def test_half_precision_buffers_do_not_stall():
    """Momentum .001 towards 1 in steps of two batches, as in one: see the test of the layer itself."""
    ours: Any = train.BatchNorm1d(1, momentum=1e-3).to(torch.bfloat16)
    x = torch.tensor([[0.0], [2.0]]).to(torch.bfloat16)
    for k in range(2000):
        with one_update(ours):
            ours(x)
            ours(x)
        if k == 1000:
            with pytest.raises(KeyboardInterrupt), one_update(ours):
                ours(x)
                raise KeyboardInterrupt
    assert abs(float(ours.running_mean) - (1 - 0.999**2000)) < 0.005
    assert int(ours.num_batches_tracked) == 2000
