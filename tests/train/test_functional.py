# torch has a module's children as Tensor | Module and its buffers as optional: more than the tests need to ask for.
# pyright: reportOptionalMemberAccess=false, reportOptionalOperand=false, reportOptionalSubscript=false
# pyright: reportArgumentType=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOperatorIssue=false
"""The transform and its gradients against autograd, in float64."""

import pytest

torch = pytest.importorskip("torch")

from bnfold.train import functional  # noqa: E402 - without torch the tests skip before they would need it

SHAPES = [(7, 5), (4, 3, 6), (5, 4, 3, 4), (3, 2, 2, 3, 4), (2, 1), (2, 3, 3)]


def case(shape: tuple[int, ...]):
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * 3 + 2
    weight, bias = torch.randn(2, shape[1], generator=generator, dtype=torch.float64)
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), torch.randn(shape, dtype=torch.float64)


def error(a, b) -> float:
    return float((a - b).detach().norm() / b.detach().norm())


@pytest.mark.parametrize("shape", SHAPES)
def test_the_transform_is_torchs(shape: tuple[int, ...]):
    x, weight, bias, _ = case(shape)
    y, mean, var = functional.batch_norm_transform(x, weight, bias, eps=1e-3)
    expected = torch.nn.functional.batch_norm(x, None, None, weight, bias, training=True, eps=1e-3)
    assert error(y, expected) < 1e-13
    again = functional.batch_norm_transform(x, weight, bias, mean=mean, var=var, eps=1e-3).y
    assert torch.equal(y, again)
    mean, var = mean.detach(), var.detach()
    assert error(y, torch.nn.functional.batch_norm(x, mean, var, weight, bias, eps=1e-3)) < 1e-13


@pytest.mark.parametrize("eps", [1e-5, 1e-2, 0.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradients_are_autograds(shape: tuple[int, ...], eps: float):
    x, weight, bias, g = case(shape)
    y, mean, var = functional.batch_norm_transform(x, weight, bias, eps=eps)
    expected = torch.autograd.grad(y, (x, weight, bias), g)
    for statistics in ({}, {"mean": mean.detach(), "var": var.detach()}):
        found = functional.batch_norm_backward(g, x.detach(), weight.detach(), eps=eps, **statistics)
        # with two values a channel and ε = 0, x̂ = ±1 whatever x is: the gradient is rounding alone
        if not (shape == (2, 1) and eps == 0):
            assert (found.x - expected[0]).norm() < 1e-13 * (g.norm() * functional.inverse_std(var.detach(), eps).max())
        assert error(found.weight, expected[1]) < 1e-13
        assert error(found.bias, expected[2]) < 1e-13


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_without_weight_and_bias(shape: tuple[int, ...]):
    x, *_, g = case(shape)
    (expected,) = torch.autograd.grad(functional.batch_norm_transform(x).y, x, g)
    assert error(functional.batch_norm_backward(g, x.detach()).x, expected) < 1e-13


def test_the_gradient_through_the_statistics_is_not_optional():
    x, weight, bias, g = case((5, 4, 3, 4))
    y, mean, var = functional.batch_norm_transform(x, weight, bias)
    (expected,) = torch.autograd.grad(y, x, g)
    frozen = functional.batch_norm_transform(x, weight, bias, mean=mean.detach(), var=var.detach()).y
    (dropped,) = torch.autograd.grad(frozen, x, g)
    assert error(dropped, expected) > 0.05


def test_a_constant_channel_with_eps_zero_is_its_bias():
    x = torch.full((4, 2, 3), 5.0)
    x[:, 1] = torch.randn(4, 3)
    y = functional.batch_norm_transform(x, bias=torch.tensor([2.0, 0.0]), eps=0).y
    assert (y[:, 0] == 2).all() and abs(float(y[:, 1].var(correction=0)) - 1) < 1e-5
    gradients = functional.batch_norm_backward(torch.randn(4, 2, 3), x, eps=0)
    assert (gradients.x[:, 0] == 0).all() and torch.isfinite(gradients.x).all()


def test_eps_is_added_to_the_variance_before_the_root():
    x = torch.tensor([[3.0], [5.0]])
    assert torch.allclose(functional.batch_norm_transform(x, eps=3.0).y, torch.tensor([[-0.5], [0.5]]))
