"""Gate 2 in torch: each region fed the original's own activations, within its proven bound, or the layer is named."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812

from bnfold import pytorch  # noqa: E402
from bnfold.check.gate2 import Gate2  # noqa: E402
from bnfold.check.verdict import Verdict  # noqa: E402

from .nets import folded, rough  # noqa: E402
from .test_module import Block, image  # noqa: E402
from .test_result import Frozen, net  # noqa: E402


def gate2(check: Any) -> Gate2:
    assert isinstance(check.gate2, Gate2) and check.gate2.done, check.gate2
    return check.gate2


def test_every_fold_is_within_its_bound_and_named():
    found = gate2(pytorch.fold(net(), (image(),)).check())
    assert [local.name for local in found.regions] == ["0.conv1", "0.conv2", "1.conv1", "1.conv2", "2"]
    assert all(local.ratio is not None and 0 < local.ratio < 1 for local in found.regions)
    assert found.regions[0].original == ("Conv", "BatchNormalization") and found.regions[0].candidate == ("Conv",)
    assert found.passed and found.samples == 3 and found.arithmetic == "ieee"


def test_programs_have_it_too_and_with_a_free_batch():
    sizes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(net(), (image(),), strict=False, dynamic_shapes=sizes)
    found = gate2(pytorch.fold_exported(program).check())
    assert len(found.regions) == 5 and found.passed


@pytest.mark.parametrize("program", [False, True])
def test_a_weight_that_is_changed_is_named(program: bool):
    torch.manual_seed(0)  # not every channel of every net is alive behind its ReLU
    own, x = net(), image()
    result: Any
    if program:
        result = pytorch.fold_exported(torch.export.export(own, (x,), strict=False))
        weight = result.program.state_dict["1.conv1.weight"]
    else:
        result = pytorch.fold(own, (x,))
        weight = result.module[1].conv1.weight
    assert result.check()
    with torch.no_grad():
        weight[:, 1] *= 1.01
    check = result.check()
    assert check.verdict is Verdict.NOT_EQUIVALENT
    guilty = gate2(check).first_failure
    assert guilty is not None and guilty.name == "1.conv1" and guilty.other_function
    assert "1.conv1" in check.sentence
    assert "1.conv1.weight is no longer what the fold made of it" in str(check)


def test_it_reports_what_has_no_bound():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.cell = nn.BatchNorm1d(4), nn.GRU(4, 5, batch_first=True)

        def forward(self, x: Any) -> Any:
            return self.cell(self.norm(x.transpose(1, 2)).transpose(1, 2))[0]

    found = gate2(folded(rough(Net()), image(2, 6, 4)).check())
    assert {local.why for local in found.regions} == {"gru"}


BETWEEN = {
    "adaptive": nn.AdaptiveAvgPool2d((3, 4)),
    "average": nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    "max": nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(6, 6, 1, bias=False)),
    "bilinear": nn.Upsample(scale_factor=2, mode="bilinear"),
    "nearest": nn.Upsample(scale_factor=2),
    "reflect": nn.ReflectionPad2d(1),
    "transposed": nn.ConvTranspose2d(6, 6, 3, stride=2, groups=2),
    "dropout": nn.Dropout(),
    "channels last": nn.Conv2d(6, 6, 3, padding=1).to(memory_format=torch.channels_last),  # pyright: ignore[reportCallIssue] -- torch's overloads leave it out
}


@pytest.mark.parametrize("name", BETWEEN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_what_stands_between_is_in_the_bound(name: str, dtype: Any):
    own = rough(nn.Sequential(nn.Conv2d(4, 6, 3), BETWEEN[name], nn.BatchNorm2d(6), nn.ReLU())).to(dtype)
    check = pytorch.fold(own, (image().to(dtype),)).check()
    assert check, str(check)
    found = gate2(check)
    bounded = any(local.ratio is not None for local in found.regions)
    assert not found.failures and bounded == ((name, dtype) != ("bilinear", torch.bfloat16))  # too many roundings there


def test_constants_that_the_code_computes_have_their_own_error_in_the_bound():
    """A frozen normalization: scale and shift are computed in float32 on every call, and may cancel."""
    norm: Any = Frozen(6)
    own = nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), norm, nn.ReLU()).eval()
    norm.running_mean.fill_(1000.0)
    norm.bias.copy_(norm.running_mean * norm.weight / (norm.running_var + 1e-5).sqrt())
    found = gate2(pytorch.fold(own, (image(),)).check())
    assert [local.ratio is not None and local.ratio < 1 for local in found.regions] == [True]


def test_linear_layers_and_matrices():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.second = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3, bias=False)
            self.last = nn.BatchNorm1d(3)

        def forward(self, x: Any) -> Any:
            return F.softmax(self.last(self.second(self.norm(self.first(x)).relu())), -1)

    found = gate2(folded(rough(Net()), image(5, 4)).check())
    assert len(found.regions) == 2 and found.passed


def test_a_large_model_is_asked_on_one_sample(monkeypatch: pytest.MonkeyPatch):
    from bnfold.pytorch import local

    result = pytorch.fold(net(), (image(),))
    monkeypatch.setattr(local, "BUDGET", 0.0)
    assert gate2(result.check()).samples == 1
    monkeypatch.setattr(local, "PATIENCE", 0.0)
    check = result.check()
    assert check and check.gate2 is not None and "was not asked: it would take" in check.gate2.sentence


def test_nothing_was_folded():
    own = rough(nn.Sequential(nn.Sigmoid(), nn.BatchNorm2d(4), nn.Sigmoid()))
    assert "do not differ" in gate2(pytorch.fold(own, (image(),)).check()).sentence


def test_in_place():
    own = rough(nn.Sequential(Block(4)))
    assert gate2(pytorch.fold(own, (image(),), inplace=True).check()).passed


def test_weights_are_moved_by_their_own_roundoff():
    from bnfold.pytorch.local import _Moved

    own = {"w": torch.randn(50), "half": torch.randn(50).half(), "n": torch.arange(3)}
    wide = {name: value.double() if value.is_floating_point() else value for name, value in own.items()}
    moved = _Moved(own, wide, [0, 1])
    for name, u in (("w", 2.0**-24), ("half", 2.0**-11)):
        ratio = (moved[name] / wide[name] - 1) / u
        assert torch.allclose(ratio.abs(), torch.ones(50, dtype=torch.float64)) and -40 < float(ratio.sum()) < 40
        assert torch.equal(moved[name], moved[name])
    assert torch.equal(moved["n"], own["n"]) and set(moved) == set(own) and len(moved) == 3
    assert not torch.equal(moved["w"], _Moved(own, wide, [0, 2])["w"])
