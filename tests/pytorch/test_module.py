"""pytorch.fold on ordinary modules: what folds, what must stay, and what a folded module is."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from bnfold import pytorch  # noqa: E402
from bnfold.errors import UnsupportedModel, UsageError  # noqa: E402

from .nets import folded, normalizations, refused, rough  # noqa: E402

IMAGE = (2, 4, 7, 6)


def image(*shape: int) -> Any:
    return torch.randn(*(shape or IMAGE), generator=torch.Generator().manual_seed(1))


LINEAR = {
    "conv1d": (nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), (2, 4, 9)),
    "conv2d": (nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), IMAGE),
    "conv2d without bias": (nn.Conv2d(4, 6, 3, stride=2, bias=False), nn.BatchNorm2d(6), IMAGE),
    "same": (nn.Conv2d(4, 6, 3, padding="same"), nn.BatchNorm2d(6), IMAGE),
    "reflect": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(6), IMAGE),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), IMAGE),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4, dilation=2), nn.BatchNorm2d(8), IMAGE),
    "conv3d": (nn.Conv3d(2, 4, 2), nn.BatchNorm3d(4), (2, 2, 4, 4, 4)),
    "transposed 1d": (nn.ConvTranspose1d(4, 6, 3, groups=2), nn.BatchNorm1d(6), (2, 4, 9)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), nn.BatchNorm2d(6), IMAGE),
    "transposed grouped": (nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6), IMAGE),
    "transposed 3d": (nn.ConvTranspose3d(2, 4, 2), nn.BatchNorm3d(4), (2, 2, 4, 4, 4)),
    "linear": (nn.Linear(4, 6), nn.BatchNorm1d(6), (5, 4)),
    "linear without bias": (nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), (5, 4)),
    "affine=False": (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False), IMAGE),
    "momentum=None": (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, momentum=None, eps=0.8), IMAGE),
    "SyncBatchNorm": (nn.Conv2d(4, 6, 3), nn.SyncBatchNorm(6), IMAGE),
    "one channel": (nn.Conv2d(4, 1, 3), nn.BatchNorm2d(1), IMAGE),
}


@pytest.mark.parametrize("name", LINEAR)
def test_upward(name: str):
    layer, norm, shape = LINEAR[name]
    result = folded(rough(nn.Sequential(layer, norm, nn.ReLU())), image(*shape))
    assert isinstance(result.module[1], nn.Identity)
    assert result.module[0].bias is not None
    assert type(result.module) is nn.Sequential


DOWNWARD = {
    "conv": (nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3), IMAGE),
    "grouped": (nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, groups=2, bias=False), IMAGE),
    "linear": (nn.BatchNorm1d(4), nn.Linear(4, 6), (5, 4)),
    "transposed": (nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 6, 1), IMAGE),
}


@pytest.mark.parametrize("name", DOWNWARD)
def test_downward(name: str):
    norm, layer, shape = DOWNWARD[name]
    result = folded(rough(nn.Sequential(norm, layer)), image(*shape))
    assert isinstance(result.module[0], nn.Identity)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_before_a_recurrent_layer(kind: Any, bidirectional: bool):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(4)
            self.cell = kind(4, 5, num_layers=2, batch_first=True, bidirectional=bidirectional)

        def forward(self, x: Any) -> Any:
            return self.cell(self.norm(x.transpose(1, 2)).transpose(1, 2))[0]

    folded(rough(Net()), image(2, 6, 4))


def test_a_recurrent_layer_without_bias_cannot_take_a_shift():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.cell = nn.BatchNorm1d(4), nn.LSTM(4, 5, bias=False)

        def forward(self, x: Any) -> Any:
            return self.cell(self.norm(x))[0]

    refused(rough(Net()), image(6, 4), reason="NO_GAIN", says="no bias")


def test_before_a_padded_convolution_it_stays():
    refused(rough(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1))), image(), reason="PADDED")


class Block(nn.Module):
    def __init__(self, channels: int, *, inplace: bool = True):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=inplace)

    def forward(self, x: Any) -> Any:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.relu(out)


@pytest.mark.parametrize("inplace", [True, False])
def test_residual_blocks(inplace: bool):
    net = rough(nn.Sequential(Block(4, inplace=inplace), Block(4, inplace=inplace), nn.AdaptiveAvgPool2d(1)))
    result = folded(net, image())
    assert normalizations(result.module) == 0
    assert result.report.batch_normalizations == 4


def test_through_a_pool_a_flatten_and_a_dropout():
    net = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.AvgPool2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(36, 3))
    folded(rough(net), image())


def test_through_a_concatenation():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.norm = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 5, 1, bias=False), nn.BatchNorm2d(8)

        def forward(self, x: Any) -> Any:
            return functional.relu(self.norm(torch.cat([self.a(x), self.b(x)], -3)))

    folded(rough(Net()), image())


def test_tokens_normalized_through_transposes():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)

        def forward(self, x: Any) -> Any:
            return self.norm(self.linear(x).transpose(1, 2)).transpose(1, 2).relu()

    folded(rough(Net()), image(2, 6, 4))  # L = C


def test_statistics_of_the_batch_stay():
    net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    refused(net, image(), reason="TRAINING_MODE")


def test_training_mode_is_refused_with_what_to_do():
    net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    with pytest.raises(UsageError, match=r"1 \(BatchNorm2d\) is in training mode: call model.eval\(\)"):
        pytorch.fold(net, (image(),))


def test_a_training_dropout_is_refused_too():
    net = rough(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Dropout()))
    net[2].train()
    with pytest.raises(UsageError, match="Dropout"):
        pytorch.fold(net, (image(),))


def test_a_frozen_normalization_in_a_training_module_folds():
    net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    rough(net)
    net.train()
    net[1].eval()
    result = folded(net, image())
    assert result.module.training and result.module[0].training and not result.module[1].training


# -- call sites, not attributes ----------------------------------------------------------------------------------------


class TwoSites(nn.Module):
    """One convolution at two sites, each with a normalization of its own."""

    def __init__(self):
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Any) -> Any:
        return self.second(self.conv(self.first(self.conv(x)).relu()))


def test_a_convolution_at_two_sites_with_two_normalizations():
    result = refused(rough(TwoSites()), image(), reason="CONFLICT", says="used in 2 calls", left=2)
    assert "fold_program" in result.report.kept[0].hint


def test_a_pair_that_is_called_twice():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Any) -> Any:
            return self.norm(self.conv(self.norm(self.conv(x)).relu()))

    result = folded(rough(Net()), image())
    assert isinstance(result.module.norm, nn.Identity)


def test_a_block_that_is_called_twice():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Block(4)

        def forward(self, x: Any) -> Any:
            return self.block(self.block(x))

    assert normalizations(folded(rough(Net()), image()).module) == 0


def test_a_convolution_at_two_places_is_cloned():
    conv = nn.Conv2d(4, 4, 1)
    net = rough(nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU(), conv, nn.BatchNorm2d(4)))
    result = folded(net, image())
    assert result.module[0] is not result.module[3]
    assert net[0] is net[3]


def test_a_shared_block_stays_shared():
    block = Block(4)
    result = folded(rough(nn.Sequential(block, nn.ReLU(), block)), image())
    assert result.module[0] is result.module[2]
    assert normalizations(result.module) == 0


def test_a_normalization_at_two_places():
    norm = nn.BatchNorm2d(4)
    net = rough(nn.Sequential(nn.Conv2d(4, 4, 1), norm, nn.ReLU(), nn.Conv2d(4, 4, 1), norm))
    assert normalizations(folded(net, image()).module) == 0


def test_tied_weights_part_where_they_must():
    net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))
    net[3].weight = net[0].weight
    result = folded(rough(net), image())
    assert result.module[3].weight is not result.module[0].weight
    assert torch.equal(result.module[3].weight, net[3].weight)


def test_tied_weights_stay_tied_where_they_can():
    net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    net[2].weight = net[0].weight
    result = folded(rough(net), image())
    assert result.module[2].weight is result.module[0].weight


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, 4, 1, 1)), nn.Parameter(torch.randn(6))
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x: Any) -> Any:
        return self.norm(functional.conv2d(x, self.weight, self.bias)).relu()


def test_functional_convolution_with_parameters():
    folded(rough(Functional()), image())


def test_functional_convolution_without_bias_has_no_place_for_one():
    class Net(Functional):
        def forward(self, x: Any) -> Any:
            return self.norm(functional.conv2d(x, self.weight)).relu()

    refused(rough(Net()), image(), reason="CONFLICT", says="no bias")


def test_functional_batch_norm_is_left_to_the_program():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Any) -> Any:
            n = self.norm
            return functional.batch_norm(self.conv(x), n.running_mean, n.running_var, n.weight, n.bias, False)

    refused(rough(Net()), image(), reason="CONFLICT", says="written in the code")


def test_parameters_that_are_used_elsewhere():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Any) -> Any:
            return self.norm(self.conv(x)), self.norm.weight * 2, self.conv.weight.sum() * x

    refused(rough(Net()), image(), reason="CONFLICT", says="elsewhere")


# -- hooks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"])
def test_a_hook_sees_what_it_saw(place: int, kind: str):
    net = rough(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()))
    calls: list[Any] = []
    getattr(net[place], kind)(lambda *given: calls.append(given))
    result = pytorch.fold(net, (image(),))
    seen_after_conv = place == 1 or kind != "register_forward_pre_hook"
    assert len(result.report.unfolded) == int(seen_after_conv)
    assert calls == []  # tracing runs no hook
    if seen_after_conv:
        assert "has a hook, which would see another value" in str(result.report.unfolded[0])
    else:
        x = image()
        net(x)
        result.module(x)
        assert len(calls) == 2  # the copy has the hook too


def test_hooks_of_containers_do_not_matter_inside():
    net = rough(nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), nn.ReLU()))
    seen: list[Any] = []
    net[0].register_forward_hook(lambda module, args, output: seen.append(output))
    result = folded(net, image())
    result.module(image())
    net(image())
    assert torch.allclose(seen[0], seen[1], atol=1e-4)


# -- what cannot be folded at all --------------------------------------------------------------------------------------


def test_lazy_modules():
    with pytest.raises(UsageError, match="run the module once"):
        pytorch.fold(nn.Sequential(nn.LazyConv2d(4, 1), nn.BatchNorm2d(4)).eval(), (image(),))


def test_the_meta_device():
    with pytest.raises(UsageError, match="meta device"):
        pytorch.fold(nn.Conv2d(4, 4, 1, device="meta").eval(), (image(),))


def test_quantized_modules():
    from torch.ao.quantization import FakeQuantize

    with pytest.raises(UnsupportedModel, match="before it is prepared"):
        pytorch.fold(nn.Sequential(nn.Conv2d(4, 4, 1), FakeQuantize()).eval(), (image(),))


def test_a_module_that_cannot_be_exported():
    class Net(nn.Module):
        def forward(self, x: Any) -> Any:
            return x * 2 if float(x.sum()) > 0 else x

    with pytest.raises(UnsupportedModel, match=r"torch.export cannot export this module: .*torch.cond"):
        pytorch.fold(Net().eval(), (image(),))


@pytest.mark.filterwarnings("ignore")
def test_torchscript():
    with pytest.raises(UnsupportedModel, match="TorchScript"):
        pytorch.fold(torch.jit.trace(nn.Conv2d(4, 4, 1).eval(), image()), (image(),))


def test_no_module():
    with pytest.raises(UsageError, match="not a dict"):
        pytorch.fold({"weight": image()}, (image(),))  # pyright: ignore[reportArgumentType] -- that is the test


def test_skip_and_only():
    net = rough(nn.Sequential(Block(4), Block(4)))
    result = pytorch.fold(net, (image(),), skip=["0.*"])
    assert [kept.nodes for kept in result.report.kept] == [("0.bn1",), ("0.bn2",)]
    assert len(pytorch.fold(net, (image(),), only=["0.bn1"]).report.folded) == 1
    with pytest.raises(UsageError, match="bn7"):
        pytorch.fold(net, (image(),), skip=["bn7"])


# -- numbers that come from sizes --------------------------------------------------------------------------------------


def test_a_sum_over_the_image_takes_no_shift():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.linear = nn.BatchNorm2d(4), nn.Linear(4, 3)

        def forward(self, x: Any) -> Any:
            return self.linear(self.norm(x.relu()).sum((2, 3)))

    refused(rough(Net()), image(), reason="UNKNOWN_SHAPE", says="depends on the input")


def test_a_number_that_is_a_size():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

        def forward(self, x: Any) -> Any:
            return self.conv(self.norm(x.relu()) / x.shape[-1])

    net = rough(Net())
    result = refused(net, image(), reason="UNKNOWN_OP")
    wide = image(2, 4, 5, 11)
    assert torch.allclose(result.module(wide), net(wide), atol=1e-5)
