"""Small networks for the tests of statistics, and an oracle that shares no code with what it judges."""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def net(seed: int = 0, dtype=torch.float32) -> Any:
    """conv, BN, relu twice and a linear BN, with statistics that are stale: of other data."""
    torch.manual_seed(seed)
    made = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5), nn.ReLU(),
        nn.Flatten(), nn.Linear(80, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 4),
    ).to(dtype)  # fmt: skip
    for layer in made:
        if isinstance(layer, _BatchNorm):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.3)
    for _ in range(3):
        made(torch.randn(16, 2, 6, 6, dtype=dtype) * 2 + 1)
    return made.eval()


def images(sizes: list[int], *, offset: float = 0.0, by_class: bool = False, dtype=torch.float32, seed: int = 1):
    """Batches (images [n, 2, 6, 6], labels [n]) of these sizes; by_class: sorted, so that no two are alike."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(sizes)
    labels = torch.randint(4, (count,), generator=generator)
    if by_class:
        labels = labels.sort().values
    scale = (1 + labels.reshape(-1, 1, 1, 1)) / 2
    x = torch.randn(count, 2, 6, 6, generator=generator) * scale + labels.reshape(-1, 1, 1, 1) + offset
    return [*zip(x.to(dtype).split(sizes), labels.split(sizes), strict=True)]


def norms(model: nn.Module) -> dict[str, Any]:
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, _BatchNorm)}


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    after = model.state_dict()
    return all(torch.equal(a.nan_to_num(7), after[k].nan_to_num(7)) for k, a in before.items())


def inputs(model: nn.Module, layer: nn.Module, batches) -> np.ndarray:
    """Everything that goes into `layer`, [values, C] in numpy's longest float, the model in evaluation mode."""
    seen: list[np.ndarray] = []
    hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].movedim(1, -1).double().numpy().copy()))
    with torch.no_grad():
        for batch in batches:
            model.eval()(batch[0])
    hook.remove()
    return np.concatenate([x.reshape(-1, x.shape[-1]) for x in seen]).astype(np.longdouble)


def oracle(model: nn.Module, batches) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Layer after layer: the exact statistics of what goes in once every layer before has its own. Changes `model`."""
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, layer in norms(model).items():
        x = inputs(model, layer, batches)
        assert layer.running_mean is not None and layer.running_var is not None
        found[name] = x.mean(0), x.var(0)
        layer.running_mean.copy_(torch.from_numpy(found[name][0].astype(np.float64)))
        layer.running_var.copy_(torch.from_numpy(found[name][1].astype(np.float64)))
    return found


def assert_exact(ledger, expected: dict[str, tuple[np.ndarray, np.ndarray]], tolerance: float = 1e-10) -> None:
    assert set(ledger) == set(expected)
    for name, (mean, var) in expected.items():
        scale = np.abs(mean) + np.sqrt(var)
        assert (np.abs(ledger[name].mean.numpy() - mean) <= tolerance * scale).all(), name
        assert (np.abs(ledger[name].var.numpy() - var) <= tolerance * var).all(), name
