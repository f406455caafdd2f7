"""Random small modules, sequential and branching, with shared layers: the fold is the same function in float64."""

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.utils import _pytree as pytree  # noqa: E402

from bnfold import pytorch  # noqa: E402

from .nets import distance, rough  # noqa: E402

WIDTH = 4


class Tokens(nn.Module):
    """A linear layer and a normalization over the pixels, each a token."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)

    def forward(self, x: Any) -> Any:
        y = self.linear(x.flatten(2).transpose(1, 2)).transpose(1, 2)
        return self.norm(y).unflatten(2, x.shape[2:])


class Arithmetic(nn.Module):
    """A frozen normalization, written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.rand(WIDTH, 1, 1) - 1.5), nn.Parameter(torch.randn(WIDTH, 1, 1))

    def forward(self, x: Any) -> Any:
        x = x.clone()
        x *= self.scale
        x -= self.shift
        return x.relu_() - x * 0.5


LAYERS = {
    "conv": lambda: nn.Conv2d(WIDTH, WIDTH, 1),
    "padded": lambda: nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False),
    "depthwise": lambda: nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH),
    "transposed": lambda: nn.ConvTranspose2d(WIDTH, WIDTH, 1, bias=False),
    "tokens": lambda: Tokens(),
    "scaled": lambda: Arithmetic(),
    "prelu": lambda: nn.PReLU(WIDTH),
    "norm": lambda: nn.BatchNorm2d(WIDTH),
    "plain norm": lambda: nn.BatchNorm2d(WIDTH, affine=False),
    "relu": lambda: nn.ReLU(inplace=True),
    "leaky": lambda: nn.LeakyReLU(0.1),
    "pool": lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    "max": lambda: nn.MaxPool2d(3, 1, 1),
    "dropout": lambda: nn.Dropout(),
    "sigmoid": lambda: nn.Sigmoid(),
}


class Branching(nn.Module):
    """Steps over a list of layers: (layer, the value it reads, how its result joins that value, or None)."""

    def __init__(self, kinds: list[str], steps: list[tuple[int, int, str]]):
        super().__init__()
        self.layers = nn.ModuleList(LAYERS[kind]() for kind in kinds)
        self.steps = steps
        self.join = nn.Conv2d(2 * WIDTH, WIDTH, 1)

    def forward(self, x: Any) -> Any:
        values = [x]
        for layer, source, how in self.steps:
            given = values[source % len(values)]
            made = self.layers[layer % len(self.layers)](given.clone())
            if how == "add":
                made = made + given
            elif how == "cat":
                made = self.join(torch.cat([given, made], 1))
            elif how == "turn":
                made = made.permute(0, 2, 3, 1).flatten(1, 2).transpose(1, 2).unflatten(2, given.shape[2:])
            values.append(made)
        return values[-1], values[len(values) // 2]


@st.composite
def modules(draw: st.DrawFn) -> nn.Module:
    kinds = draw(st.lists(st.sampled_from(sorted(LAYERS)), min_size=2, max_size=6))
    torch.manual_seed(draw(st.integers(0, 99)))
    if draw(st.booleans()):
        made = [LAYERS[kind]() for kind in kinds]
        order = draw(st.lists(st.integers(0, len(made) - 1), min_size=2, max_size=8))
        return nn.Sequential(*[made[k] for k in order])
    step = st.tuples(st.integers(0, 5), st.integers(0, 7), st.sampled_from(["", "", "add", "cat", "turn"]))
    return Branching(kinds, draw(st.lists(step, min_size=2, max_size=8)))


@settings(max_examples=25)
@given(module=modules(), seed=st.integers(0, 9))
def test_random_modules(module: nn.Module, seed: int):
    module = rough(module.double(), seed)
    x = torch.randn(2, WIDTH, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    program = pytorch.fold_exported(torch.export.export(module, (x,), strict=False)).program.module()
    with torch.no_grad():
        for mine, theirs in zip(pytree.tree_leaves(program(x)), pytree.tree_leaves(module(x)), strict=True):
            assert float((mine - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30)) < 1e-10
    result = pytorch.fold(module, (x,))
    assert distance(copy.deepcopy(module), copy.deepcopy(result.module), x) < 1e-10
    smaller = torch.randn(3, WIDTH, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assert distance(copy.deepcopy(module), result.module, smaller) < 1e-10  # other sizes than it was traced on
