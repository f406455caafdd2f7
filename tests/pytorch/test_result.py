"""A folded module is a module as before: state dict, pickle, types, devices, wrappers, and the ways to write a norm."""

import copy
import io
import pickle
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.nn.utils import parametrizations  # noqa: E402

from bnfold import pytorch  # noqa: E402
from bnfold.errors import UsageError  # noqa: E402

from .nets import distance, folded, normalizations, refused, rough  # noqa: E402
from .test_module import Block, image  # noqa: E402


def net(**options: Any) -> nn.Sequential:
    return rough(nn.Sequential(Block(4), Block(4), nn.Conv2d(4, 3, 1, bias=False), nn.BatchNorm2d(3)), **options)


def test_a_state_dict_goes_into_another_module_folded_alike():
    result = pytorch.fold(net(), (image(),))
    empty = pytorch.like_folded(net(seed=3), result.report)
    empty.load_state_dict(result.module.state_dict())
    assert torch.equal(empty(image()), result.module(image()))
    assert [type(part) for part in empty.modules()] == [type(part) for part in result.module.modules()]


def test_like_folded_parts_what_the_fold_parted():
    conv = nn.Conv2d(4, 4, 1)
    shared = rough(nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU(), conv, nn.BatchNorm2d(4)))
    result = pytorch.fold(shared, (image(),))
    empty = pytorch.like_folded(shared, result.report)
    empty.load_state_dict(result.module.state_dict())
    assert torch.equal(empty(image()), result.module(image()))


def test_like_folded_of_another_module():
    result = pytorch.fold(net(), (image(),))
    with pytest.raises(UsageError, match="not of the structure"):
        pytorch.like_folded(nn.Sequential(nn.Conv2d(4, 4, 1)), result.report)


def test_module_and_report_can_be_pickled():
    result = pytorch.fold(net(), (image(),))
    again = pickle.loads(pickle.dumps((result.module, result.report)))
    assert torch.equal(again[0](image()), result.module(image()))
    assert again[1].recipe == result.report.recipe
    held = io.BytesIO()
    torch.save(result.module.state_dict(), held)
    held.seek(0)
    assert torch.load(held, weights_only=True).keys() == result.module.state_dict().keys()


@pytest.mark.filterwarnings("ignore")
def test_it_can_be_scripted_and_exported_and_folded_again():
    plain = nn.Sequential(nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1))
    result = pytorch.fold(rough(plain), (image(),))
    x = image()
    assert torch.allclose(torch.jit.script(result.module)(x), result.module(x))
    torch.export.export(result.module, (x,))
    again = pytorch.fold(result.module, (x,))
    assert not again.report.folded and not again.report.kept


def test_inplace_changes_the_module_itself():
    own = net()
    before, weight = copy.deepcopy(own), own[2].weight
    result = pytorch.fold(own, (image(),), inplace=True)
    assert result.module is own and own[2].weight is weight
    assert normalizations(own) == 0
    assert distance(before, copy.deepcopy(own), image()) < 1e-6
    assert result.check()


def test_what_is_left_as_it_was():
    own: Any = net()
    own.to(memory_format=torch.channels_last)
    own[0].conv1.weight.requires_grad_(False)
    own.register_buffer("steps", torch.tensor(7))
    module: Any = pytorch.fold(own, (image(),)).module
    assert module[1].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert not module[0].conv1.weight.requires_grad and not module[0].conv1.bias.requires_grad
    assert module[2].weight.requires_grad and module[2].bias.requires_grad
    assert module.steps == 7
    assert own[0].conv1.bias is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_types(dtype: Any):
    result = folded(net().to(dtype), image().to(dtype))
    assert all(p.dtype == dtype for p in result.module.parameters())


def test_float64_is_folded_at_its_own_accuracy():
    own = net().double()
    assert distance(copy.deepcopy(own), pytorch.fold(own, (image().double(),)).module, image()) < 1e-13


def test_half_data_with_float_normalizations():
    own = rough(nn.Sequential(nn.Conv2d(4, 4, 1).half(), nn.BatchNorm2d(4)))
    result = folded(own, image().half())
    assert result.module[0].bias is not None and result.module[0].bias.dtype == torch.float16


@pytest.mark.filterwarnings("ignore")
def test_compiled_and_parallel_wrappers_are_taken_off():
    own = net()
    assert type(pytorch.fold(torch.compile(own), (image(),)).module) is nn.Sequential
    assert type(pytorch.fold(nn.DataParallel(own), (image(),)).module) is nn.Sequential


class LayerScale(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Any) -> Any:
        return x * self.gamma


def test_layer_scale_is_taken_in_by_the_linear_layer():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.scale = nn.Linear(4, 6), LayerScale(6)

        def forward(self, x: Any) -> Any:
            return x[..., :1] + self.scale(self.linear(x))

    result = folded(Net().eval(), image(2, 5, 4))
    assert isinstance(result.module.scale, nn.Identity)


class Frozen(nn.Module):
    """A normalization as arithmetic on buffers, as torchvision's FrozenBatchNorm2d writes it."""

    def __init__(self, width: int):
        super().__init__()
        for name in ("weight", "running_var"):
            self.register_buffer(name, torch.rand(width) + 0.5)
        for name in ("bias", "running_mean"):
            self.register_buffer(name, torch.randn(width))

    def forward(self, x: Any) -> Any:
        w, b, rv, rm = (
            getattr(self, n).reshape(1, -1, 1, 1) for n in ("weight", "bias", "running_var", "running_mean")
        )
        scale = w * (rv + 1e-5).rsqrt()
        return x * scale + (b - rm * scale)


def test_frozen_batch_norm():
    result = folded(nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), Frozen(6), nn.ReLU()).eval(), image())
    assert isinstance(result.module[1], nn.Identity)
    assert not result.report.kept


class NormAct(nn.BatchNorm2d):
    """A normalization with its activation, as timm's BatchNormAct2d."""

    def __init__(self, width: int):
        super().__init__(width)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, input: Any) -> Any:
        x = functional.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps
        )
        return self.act(self.drop(x))


def test_batch_norm_with_an_activation_keeps_the_activation():
    result = folded(rough(nn.Sequential(nn.Conv2d(4, 6, 3), NormAct(6), nn.Conv2d(6, 2, 1))), image())
    assert isinstance(result.module[1], nn.Sequential)
    assert [type(part) for part in result.module[1].children()] == [nn.ReLU]


@pytest.mark.parametrize("name", ["weight_norm", "orthogonal"])
def test_parametrizations_are_folded_only_if_asked(name: str):
    layer = getattr(parametrizations, name)(nn.Linear(4, 4))
    own = rough(nn.Sequential(layer, nn.BatchNorm1d(4)))
    refused(own, image(5, 4), reason="CONFLICT", says="parametrization")
    result = pytorch.fold(own, (image(5, 4),), remove_parametrizations=True)
    assert not result.report.kept and not hasattr(result.module[0], "parametrizations")
    assert result.check()
    assert hasattr(own[0], "parametrizations")


@pytest.mark.filterwarnings("ignore")
def test_weight_norm_by_hooks():
    own = rough(nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(4, 4)), nn.BatchNorm1d(4)))
    own(image(5, 4))
    assert len(pytorch.fold(own, (image(5, 4),)).report.unfolded) == 1
    result = pytorch.fold(own, (image(5, 4),), remove_parametrizations=True)
    assert not result.report.kept
    assert torch.allclose(result.module(image(5, 4)), own(image(5, 4)), atol=1e-5)


def test_bilinear_takes_nothing_in():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.product, self.norm = nn.Bilinear(4, 4, 5), nn.BatchNorm1d(5)

        def forward(self, x: Any) -> Any:
            return self.norm(self.product(x, x))

    refused(rough(Net()), image(6, 4), reason="UNKNOWN_OP")


def test_an_embedding_takes_a_norm_in():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.norm = nn.Embedding(9, 5), nn.BatchNorm1d(5)

        def forward(self, x: Any) -> Any:
            return self.norm(self.table(x).transpose(1, 2)).relu()

    folded(rough(Net()), torch.arange(6).reshape(2, 3))


def test_keyword_arguments_and_several_outputs():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Any, *, scale: Any, flag: bool = False) -> Any:
            y = self.norm(self.conv(x)).relu()
            return {"a": y * scale, "b": [y.mean(), None if flag else y.sum((1, 2))]}

    result = pytorch.fold(rough(Net()), (image(),), {"scale": torch.tensor(2.0)})
    assert not result.report.unfolded and result.check()
