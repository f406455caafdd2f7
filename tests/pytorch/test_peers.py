"""What torch's own fuse gets wrong, and this fold does not. strict xfail: the day that torch mends one, we learn it."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from bnfold import pytorch  # noqa: E402

from .nets import distance, rough  # noqa: E402
from .test_module import TwoSites, image  # noqa: E402


class TwoLists(nn.Module):
    """One convolution at two places of the tree, each with a normalization of its own."""

    def __init__(self):
        super().__init__()
        conv = nn.Conv2d(4, 4, 1)
        self.net = nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU(), conv, nn.BatchNorm2d(4))

    def forward(self, x: Any) -> Any:
        return self.net(x)


class Tokens(nn.Module):
    """Linear on [N, L, C], then BatchNorm1d, whose channels are L; L = C."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)

    def forward(self, x: Any) -> Any:
        return self.norm(self.linear(x))


class Hooked(nn.Module):
    """A convolution whose forward hook halves what it gives."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.conv.register_forward_hook(lambda module, args, output: torch.div(output, 2))

    def forward(self, x: Any) -> Any:
        return self.norm(self.conv(x))


class Weighted(nn.Module):
    """A second layer that shares the weight which is folded into."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.other = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.other.weight = self.conv.weight

    def forward(self, x: Any) -> Any:
        return self.other(self.norm(self.conv(x)).relu())


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "a conv called at two sites, two norms": (TwoSites, (2, 4, 5, 5)),
    "a conv at two places, two norms": (TwoLists, (2, 4, 5, 5)),
    "Linear, BN1d on [N, L, C] with L = C": (Tokens, (3, 6, 4)),
    "a conv with a forward hook": (Hooked, (2, 4, 5, 5)),
    "tied weights": (Weighted, (2, 4, 5, 5)),
}
MENDED = ("tied weights",)  # what torch does right: the control


def _torch_fuse(net: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.fx.experimental.optimization import fuse

        return fuse(copy.deepcopy(net))


@pytest.mark.parametrize(
    "name",
    [
        n if n in MENDED else pytest.param(n, marks=pytest.mark.xfail(raises=AssertionError, reason="torch's own fuse"))
        for n in CASES
    ],
)
def test_torch_fuse(name: str):
    make, shape = CASES[name]
    torch.manual_seed(0)
    net, x = rough(make()), image(*shape)
    assert distance(copy.deepcopy(net), _torch_fuse(net), x) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_ours(name: str):
    make, shape = CASES[name]
    torch.manual_seed(0)
    net, x = rough(make()), image(*shape)
    result = pytorch.fold(net, (x,))
    assert distance(copy.deepcopy(net), copy.deepcopy(result.module), x) < 1e-6
    assert result.check()


def test_a_norm_along_the_tokens_is_not_one_of_the_features():
    """L = C: the reason names the axis, and nothing is folded."""
    result = pytorch.fold(rough(Tokens()), (image(3, 6, 4),))
    (kept,) = result.report.kept
    assert "WRONG_AXIS" in {kept.reason, *(a.reason for a in kept.alternatives)}


@pytest.mark.parametrize("shape", [(4, 6, 1, 1), (4, 2, 3, 3)])
def test_a_transposed_convolution_is_scaled_on_its_outputs(shape: tuple[int, ...]):
    groups = 6 // shape[1] if shape[1] == 2 else 1
    net = nn.Sequential(nn.ConvTranspose2d(4, shape[1] * groups, shape[2], groups=1 if groups == 1 else 2))
    net.append(nn.BatchNorm2d(net[0].out_channels))  # pyright: ignore[reportArgumentType] -- a number
    rough(net)
    result = pytorch.fold(net, (image(2, 4, 5, 5),))
    assert not result.report.kept
    assert result.check()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_floats_do_not_overflow(dtype: Any):
    """var = 0 and a small epsilon: gamma/sqrt(var + eps) is beyond float16, the folded weight is not."""
    net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, eps=1e-8)).eval()
    net[0].weight.data.mul_(1e-3)  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue] -- a Parameter
    net[1].running_var.zero_()  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue] -- a Tensor
    net.to(dtype)
    result = pytorch.fold(net, (image(2, 4, 5, 5).to(dtype),))
    assert all(bool(p.isfinite().all()) for p in result.module.parameters())
