"""Ways to write a module that led, or could have led, to a wrong fold or to none: each is the same function now."""

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812

from bnfold import pytorch  # noqa: E402

from .nets import distance, folded, refused, rough  # noqa: E402
from .test_module import image  # noqa: E402


class ConvNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("program", [False, True])
def test_an_lstm_with_projections_is_not_taken_for_one_without_weights(program: bool):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.lstm = nn.BatchNorm1d(4), nn.LSTM(4, 5, proj_size=3, batch_first=True)

        def forward(self, x: Any) -> Any:
            return self.lstm(self.norm(x.transpose(1, 2)).transpose(1, 2))[0]

    net, x = rough(Net()), image(2, 6, 4)
    if program:
        found = pytorch.fold_exported(torch.export.export(net, (x,), strict=False))
        assert len(found.report.unfolded) == 1
        assert torch.equal(found.program.module()(x), net(x))
    else:
        refused(net, x, reason="UNKNOWN_OP")


def test_a_padding_that_is_zero_for_these_sizes_only():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 2, 2)

        def forward(self, x: Any) -> Any:
            height, width = x.shape[-2:]
            return self.conv(F.pad(self.norm(x.sigmoid()), (0, width % 2, 0, height % 2)))

    net = rough(Net())
    result = refused(net, image(2, 4, 6, 8), reason="UNKNOWN_OP")
    odd = image(2, 4, 5, 7)
    assert torch.equal(result.module(odd), net(odd))


def test_code_that_reads_attributes_of_the_normalization():
    class Net(ConvNorm):
        def forward(self, x: Any) -> Any:
            return self.norm(self.conv(x)).relu() * self.norm.num_features

    refused(rough(Net()), image(), reason="CONFLICT", says="no attribute 'num_features'")


def test_only_the_normalization_that_the_code_asks_about_stays():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Conv2d(4, 4, 1) for _ in range(5)])
            self.norms = nn.ModuleList([nn.BatchNorm2d(4) for _ in range(5)])

        def forward(self, x: Any) -> Any:
            for layer, norm in zip(self.layers, self.norms, strict=True):
                x = norm(layer(x)).relu()
            return x + (1 if isinstance(self.norms[3], nn.BatchNorm2d) else 2)

    result = refused(rough(Net()), image(), reason="CONFLICT", says="it computes something else then")
    assert [kept.nodes for kept in result.report.unfolded] == [("norms.3",)]
    assert len(result.report.folded) == 4


class Affine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.rand(4, 1, 1) + 0.5)
        self.register_buffer("shift", torch.randn(4, 1, 1))

    def forward(self, value: Any, mask: Any = None) -> Any:
        return value * self.scale + self.shift


def test_a_normalization_that_is_called_as_no_identity_can_be():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 1), Affine()

        def forward(self, x: Any) -> Any:
            return self.norm(value=self.conv(x), mask=x).relu()

    refused(Net().eval(), image(), reason="CONFLICT", says="unexpected keyword argument 'value'")


def test_arithmetic_that_also_makes_another_type():
    """Half values times a float32 buffer are float32: without the product they would stay half."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.last = nn.Conv2d(4, 4, 1).half(), Affine(), nn.Conv2d(4, 4, 1)

        def forward(self, x: Any) -> Any:
            return self.last(self.norm(self.conv(x.half())).relu())

    net = Net().eval()
    result = pytorch.fold(net, (image(),))
    assert not result.report.folded
    assert torch.equal(result.module(image()), net(image()))


@pytest.mark.parametrize("view", ["type_as", "einsum", "pad"])
def test_writing_into_what_may_be_a_view(view: str):
    class Net(ConvNorm):
        def forward(self, x: Any) -> Any:
            y = self.conv(x)
            if view == "type_as":
                other = y.type_as(x)
            else:
                other = torch.einsum("nchw->nchw", y) if view == "einsum" else F.pad(y, (0, 0))
            other.relu_()
            return self.norm(y) + other

    net = rough(Net())
    result = pytorch.fold(net, (image(),))
    assert distance(copy.deepcopy(net), copy.deepcopy(result.module), image()) < 1e-6


def test_a_scale_along_the_height_is_not_resized():
    """Bilinear means mix rows, whatever the engine may know about nearest neighbours."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
            self.register_buffer("rows", torch.rand(7, 1) + 0.5)

        def forward(self, x: Any) -> Any:
            return self.last(F.interpolate(self.conv(x) * self.rows, scale_factor=2, mode="bilinear"))

    folded(Net().eval(), image())


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_module_inside():
    net = rough(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()))
    outer = nn.Sequential(torch.compile(net), nn.Conv2d(4, 4, 1)).eval()  # pyright: ignore[reportArgumentType] -- a module
    result = pytorch.fold(outer, (image(),))
    assert not result.report.unfolded
    assert distance(copy.deepcopy(outer), copy.deepcopy(result.module), image()) < 1e-6


@pytest.mark.filterwarnings("ignore")
def test_an_embedding_that_renormalizes_its_table():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.norm = nn.Embedding(9, 5, max_norm=1.0), nn.BatchNorm1d(5)

        def forward(self, x: Any) -> Any:
            return self.norm(self.table(x)).relu()

    net = rough(Net())
    result = pytorch.fold(net, (torch.arange(6),))
    assert torch.allclose(copy.deepcopy(net)(torch.arange(9)), result.module(torch.arange(9)), atol=1e-6)


def program(net: nn.Module, x: Any) -> pytorch.ProgramFold:
    """The fold of the exported program, which is the same function."""
    made = torch.export.export(net.double().eval(), (x.double(),), strict=False)
    result = pytorch.fold_exported(made)
    given = x.double()
    assert torch.allclose(result.program.module()(given.clone()), net(given.clone()), rtol=1e-9)
    return result


def test_arithmetic_in_place_that_folds_leaves_the_program():
    """A call that writes is not dead when nobody reads it: it has to be taken out."""

    class Net(ConvNorm):
        def forward(self, x: Any) -> Any:
            y = self.conv(x).clone()
            y.mul_(2)
            y -= 3
            return self.norm(y).relu()

    result = program(rough(Net()), image())
    assert not result.report.kept
    assert not [n for n in result.program.graph.nodes if "mul_" in str(n.target) or "sub_" in str(n.target)]


def test_what_writes_behind_a_normalization_that_others_are_not_to_see():
    """The convolution's value is read twice; without the normalization relu_ would write into it."""

    class Net(ConvNorm):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Conv2d(4, 4, 1)

        def forward(self, x: Any) -> Any:
            y = self.conv(x)
            z = self.norm(y).relu_()
            return self.other(y) + z

    net = rough(Net())
    assert not program(net, image()).report.unfolded
    result = pytorch.fold(net.double(), (image().double(),))
    assert distance(copy.deepcopy(net), copy.deepcopy(result.module), image()) < 1e-12


def test_an_adaptive_maximum_has_indices_that_nobody_reads():
    folded(nn.Sequential(nn.Conv2d(4, 4, 1), Affine(), nn.AdaptiveMaxPool2d(3)).eval(), image())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("region", ["cond", "autocast"])
def test_a_normalization_in_a_region_of_its_own_is_reported(region: str):
    class Net(ConvNorm):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.second = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Any) -> Any:
            if region == "cond":
                y = torch.cond(x.sum() > 0, lambda t: self.norm(self.conv(t)), lambda t: self.conv(t), (x,))
            else:
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    y = self.norm(self.conv(x))
            return self.second(self.last(y.float())).relu()

    result = pytorch.fold(rough(Net()), (image(),))
    assert result.report.batch_normalizations == 2 and len(result.report.folded) == 1
    (kept,) = result.report.unfolded
    assert kept.reason == "UNKNOWN_OP" and "region of its own" in kept.message
    x = image()
    assert torch.allclose(result.module(x), result.original(x), rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_a_weight_that_a_region_reads_too():
    class Net(ConvNorm):
        def forward(self, x: Any) -> Any:
            y = torch.cond(x.sum() > 0, lambda t: self.conv(t), lambda t: t.sin(), (x,))
            return self.norm(self.conv(y)).relu()

    net = rough(Net())
    refused(net, image(), reason="CONFLICT", says="used in 2 calls")
    program = pytorch.fold_exported(torch.export.export(net, (image(),), strict=False))
    assert not program.report.unfolded
    for x in (image(), -image()):
        assert torch.allclose(program.program.module()(x), net(x), atol=1e-4)
