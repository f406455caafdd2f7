"""What modules of others bring along: wrappers, devices, quantization, compilers; each folds, or says why not."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from bnfold import pytorch  # noqa: E402
from bnfold.errors import UnsupportedModel, UsageError  # noqa: E402

from .nets import distance, folded, normalizations, rough  # noqa: E402
from .test_module import Block, image  # noqa: E402
from .test_result import net  # noqa: E402


@pytest.mark.filterwarnings("ignore")
def test_distributed_data_parallel_is_taken_off(tmp_path: Path):
    from torch import distributed

    if not distributed.is_available():
        pytest.skip("torch was built without torch.distributed")
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        own = net()
        wrapped = nn.parallel.DistributedDataParallel(own)
        result = pytorch.fold(wrapped, (image(),))
        assert type(result.module) is nn.Sequential and result.check()
        assert normalizations(own) == 5
        inplace = pytorch.fold(wrapped, (image(),), inplace=True)
        assert inplace.module is own and normalizations(wrapped.module) == 0
        assert type(pytorch.fold(torch.compile(nn.DataParallel(net())), (image(),)).module) is nn.Sequential
    finally:
        distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_it_can_be_compiled():
    result = pytorch.fold(net(), (image(),))
    compiled = torch.compile(result.module, backend="aot_eager")
    assert torch.allclose(compiled(image()), result.module(image()), atol=1e-5)


def test_the_meta_device_takes_the_structure():
    """No values, no fold; but the folded structure can be made there, and the weights be assigned."""
    result = pytorch.fold(net(), (image(),))
    with torch.device("meta"):
        bare = nn.Sequential(Block(4), Block(4), nn.Conv2d(4, 3, 1, bias=False), nn.BatchNorm2d(3)).eval()
    with pytest.raises(UsageError, match="meta device and have no values: load them first"):
        pytorch.fold(bare, (image(),))
    empty = pytorch.like_folded(bare, result.report)
    assert all(p.is_meta for p in empty.parameters())
    empty.load_state_dict(result.module.state_dict(), assign=True)
    assert torch.equal(empty(image()), result.module(image()))


def quantized() -> dict[str, nn.Module]:
    from torch.ao.nn import quantized as q
    from torch.ao.nn.quantized import dynamic
    from torch.ao.quantization import FakeQuantize

    return {
        "convolution": q.Conv2d(4, 4, 1),
        "dynamic": dynamic.Linear(4, 4),
        "fake": FakeQuantize(),
        "embedding": q.Embedding(4, 4),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["convolution", "dynamic", "fake", "embedding"])
def test_quantized_modules_are_refused(name: str):
    own = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), quantized()[name]).eval()
    with pytest.raises(UnsupportedModel, match=r"2 .* is quantized or fake-quantized: fold the module before"):
        pytorch.fold(own, (image(),))


@pytest.mark.filterwarnings("ignore")
def test_an_aware_module_is_refused():
    from torch.ao.quantization import get_default_qat_qconfig, prepare_qat

    own = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()).train()
    own.qconfig = get_default_qat_qconfig("fbgemm")  # pyright: ignore[reportArgumentType] -- that is how it is set
    with pytest.raises(UnsupportedModel, match="before it is prepared"):
        pytorch.fold(prepare_qat(own).eval(), (image(),))


def test_half_floats_and_a_normalization_that_overflows_in_them():
    """gamma/sqrt(var + eps) is beyond float16; torch.fx computes in the stored type and makes infinities of it."""
    own = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, eps=1e-8)).eval()
    layer, norm = own
    assert isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None
    layer.weight.data.mul_(1e-3)
    norm.running_var.zero_()
    own.half()
    result = pytorch.fold(own, (image().half(),))
    assert all(bool(p.isfinite().all()) for p in result.module.parameters())
    assert all(p.dtype == torch.float16 for p in result.module.parameters())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.xfail(raises=AssertionError, reason="torch's own fuse computes in the stored type")
def test_torch_fuse_in_half_floats():
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    layer, norm = nn.Conv2d(4, 4, 1).eval(), nn.BatchNorm2d(4, eps=1e-8).eval()
    assert norm.running_var is not None
    norm.running_var.zero_()
    layer.weight.data.mul_(1e-3)
    fused = fuse_conv_bn_eval(layer.half(), norm.half())
    assert bool(fused.weight.isfinite().all())


def test_a_module_is_left_as_it_was_where_the_fold_fails():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Any) -> Any:
            return self.norm(self.conv(x)) if float(x.sum()) > 0 else x

    own = rough(Net())
    before = copy.deepcopy(own.state_dict())
    with pytest.raises(UnsupportedModel, match=r"torch.export cannot export this module: "):
        pytorch.fold(own, (image(),), inplace=True)
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())
    assert isinstance(own.norm, nn.BatchNorm2d)


def precision() -> tuple[str, str, str]:
    cudnn = torch.backends.cudnn
    return torch.backends.cuda.matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision


class Precise(nn.Module):
    """Notes how CUDA is set while it runs."""

    seen: list[tuple[str, str, str]] = []  # noqa: RUF012 -- shared by the copies

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Any) -> Any:
        self.seen.append(precision())
        return self.norm(self.conv(x))


@pytest.mark.parametrize("mine", ["none", "ieee", "tf32"])
@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_is_on_only_if_asked_for_and_is_left_as_it_was(tf32: bool, mine: str):
    """Whatever the caller has set, and by the new of torch's two ways, after which the old one raises."""
    result = pytorch.fold(rough(Precise()), (image(),))
    before = precision()
    try:
        torch.backends.cuda.matmul.fp32_precision = mine
        torch.backends.cudnn.conv.fp32_precision = mine
        own = precision()
        Precise.seen.clear()
        assert result.check(tf32=tf32)
        runs = (["tf32"] if tf32 else ["ieee"]) * 3
        assert [list(seen) for seen in Precise.seen[:6]] == [runs] * 6  # both modules, on three samples
        assert precision() == own
    finally:
        torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision = before[:2]
        torch.backends.cudnn.rnn.fp32_precision = before[2]


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@cuda
@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_on_cuda(tf32: bool, dtype: Any):
    own = net().to("cuda", dtype)
    result = pytorch.fold(own, (image().to("cuda", dtype),))
    assert all(p.is_cuda and p.dtype == dtype for p in result.module.parameters())
    check = result.check(tf32=tf32)
    assert check and check.provider == "torch cuda"
    assert check.gate2 is not None and check.gate2.to_dict()["arithmetic"] == ("tf32" if tf32 else "gpu")
    assert len(check.gate2.to_dict()["regions"]) == 5


@cuda
def test_a_fault_on_cuda_is_found():
    own = net().cuda()
    result: Any = pytorch.fold(own, (image().cuda(),))
    with torch.no_grad():
        result.module[0].conv1.weight *= 1.001
    assert not result.check()


@cuda
def test_a_program_on_cuda():
    program = torch.export.export(net().cuda(), (image().cuda(),), strict=False)
    result = pytorch.fold_exported(program)
    assert not result.report.unfolded and result.check()


def test_samples_of_ones_own():
    result = pytorch.fold(net(), (image(),))
    other = image(3, 4, 5, 9) * 3
    check = result.check(inputs=[((other,), {})], samples=3, ranges={"input": (0.0, 255.0)})
    assert check and [sample.kind for sample in check.samples] == ["given", "given", "normal"]
    assert check.samples[1].shapes == {"input 0": (3, 4, 5, 9)}
    with pytest.raises(UsageError, match="no input 'y' to give a range; the inputs are input"):
        result.check(ranges={"y": (0.0, 1.0)})


def test_memory_formats_and_views_survive():
    own = net().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] -- torch's overloads lack it
    result = folded(own, image().to(memory_format=torch.channels_last))
    first = result.module[0].conv1.weight
    assert first.is_contiguous(memory_format=torch.channels_last) and np.isfinite(first.detach().numpy()).all()
    assert distance(copy.deepcopy(own), copy.deepcopy(result.module), image()) < 1e-6
