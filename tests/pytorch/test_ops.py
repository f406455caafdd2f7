"""What stands between a layer and a normalization: whatever folds through it, the function stays, in either form."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812

from bnfold import pytorch  # noqa: E402

from .nets import distance, rough  # noqa: E402

# what keeps [N, 4, H, W]; with a + those through which a normalization must go upward, with a - downward
OPS: dict[str, Callable[[Any], Any]] = {
    "+- max_pool": lambda x: F.max_pool2d(x, 3, 1, 1),
    "+- avg_pool": lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    "relu6": lambda x: F.relu6(x),
    "avg_pool with counted padding": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "avg_pool with a divisor": lambda x: F.avg_pool2d(x, 2, divisor_override=3),
    "avg_pool with ceil": lambda x: F.avg_pool2d(x, 2, ceil_mode=True),
    "+- adaptive_avg_pool": lambda x: F.adaptive_avg_pool2d(x, (2, 3)),
    "+- bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "+- nearest": lambda x: F.interpolate(x, size=(9, 5)),
    "+- bicubic": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=True),
    "+- reflect": lambda x: F.pad(x, (1, 2, 1, 0), mode="reflect"),
    "+- replicate": lambda x: F.pad(x, (1, 2, 1, 0), mode="replicate"),
    "+- circular": lambda x: F.pad(x, (1, 2, 1, 0), mode="circular"),
    "zeros around": lambda x: F.pad(x, (1, 2, 1, 0)),
    "ones around": lambda x: F.pad(x, (1, 2, 1, 0), value=1.0),
    "+- cropped": lambda x: F.pad(x, (-1, 0, -1, 0)),
    "pixel shuffle": lambda x: F.pixel_shuffle(x.repeat(1, 4, 1, 1), 2),
    "+- chunks swapped": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "split": lambda x: torch.cat([p.relu() * 0 + p for p in x.split([1, 3], 1)], 1),
    "+- permuted": lambda x: x.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1),
    "+- flattened": lambda x: x.flatten(2).unflatten(2, x.shape[2:]),
    "+- groups": lambda x: x.view(x.shape[0], 2, 2, *x.shape[2:]).transpose(1, 2).reshape(x.shape),
    "- means": lambda x: x.mean((2, 3), keepdim=True),
    "sums": lambda x: x.sum((2, 3), keepdim=True),
    "+- sliced": lambda x: x[:, :, 1:, ::2],
    "+- selected": lambda x: x[:, :, -1].unsqueeze(2),
    "channels sliced": lambda x: torch.cat([x[:, 1:], x[:, :1]], 1),
    "+- added to itself": lambda x: x + x,
    "+- scaled": lambda x: x * 3,
    "+- divided": lambda x: x / 3,
    "+- negated": lambda x: 2 - (-x),
    "+- shifted": lambda x: x - 1,
    "alpha": lambda x: torch.add(x, x, alpha=2),
    "abs": lambda x: x.abs(),
    "clamped": lambda x: x.clamp(-1, 2),
    "squared": lambda x: x**2,
    "softmax": lambda x: x.softmax(1),
    "gated": lambda x: x * x.sigmoid(),
    "maximum": lambda x: torch.maximum(x, 2 * x),
    "where": lambda x: torch.where(x > 0, x, 2 * x),
    "norm": lambda x: x / x.norm(dim=1, keepdim=True),
    "group norm": lambda x: F.group_norm(x, 2),
    "inplace on a view": lambda x: _written(x),
    "inplace behind a dropout": lambda x: F.dropout(x, training=False).relu_() + x,
    "matmul of two": lambda x: x @ x.transpose(-1, -2),
    "einsum": lambda x: torch.einsum("nchw,nchv->ncwv", x, x),
    "cumsum": lambda x: x.cumsum(2),
    "roll": lambda x: x.roll(1, 1),
    "flip": lambda x: x.flip(1),
    "half": lambda x: x.to(torch.float32).to(torch.float64),
}


def _written(x: Any) -> Any:
    y = x + 1
    y[:, 0].mul_(2)
    return y


class Net(nn.Module):
    def __init__(self, op: Callable[[Any], Any]):
        super().__init__()
        self.op = op
        self.first, self.up = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.down, self.last = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, x: Any) -> Any:
        return self.last(self.op(self.down(self.up(self.op(self.first(x))).tanh())))


@pytest.mark.parametrize("name", OPS)
def test_through(name: str):
    torch.manual_seed(0)
    net = rough(Net(OPS[name])).double()
    if "relu6" in name or "max" in name:
        for norm in (net.up, net.down):
            norm.weight.data.abs_()
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64)
    result = pytorch.fold(net, (x,))
    room = 1e-5 if name == "half" else 1e-10
    assert distance(copy.deepcopy(net), copy.deepcopy(result.module), x) < room
    other = torch.randn(3, 4, 8, 9, dtype=torch.float64)
    assert distance(copy.deepcopy(net), copy.deepcopy(result.module), other) < room
    program = pytorch.fold_exported(torch.export.export(net, (x,), strict=False))
    assert distance(copy.deepcopy(net), program.program.module(), x) < room
    signs = name.partition(" ")[0]
    kept = {node for k in program.report.unfolded for node in k.nodes}
    if "+" in signs:
        assert "up" not in kept, program.report
    if "-" in signs:
        assert "down" not in kept, program.report
