"""Two models that others trained, from their state dicts: folded, checked, exported and checked under ONNX Runtime."""

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from bnfold import pytorch  # noqa: E402
from bnfold.pytorch.state import load_weights  # noqa: E402

from .architectures import CrepeTiny, ResNet20  # noqa: E402
from .nets import normalizations  # noqa: E402


def given(net: Any, path: Path, *shape: int) -> tuple[Any, Any]:
    load_weights(net, path)
    return net.eval(), torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_resnet20(real_models: Path, tmp_path: Path):
    net, x = given(ResNet20(), real_models / "pt-resnet20-cifar" / "resnet20-12fca82f.th", 2, 3, 32, 32)
    result = pytorch.export(net, (x,), tmp_path / "net.onnx")
    assert result
    assert len(result.fold.report.folded) == 19
    assert normalizations(result.fold.module) == 0


def test_crepe(real_models: Path, tmp_path: Path):
    net, x = given(CrepeTiny(), real_models / "pt-crepe-tiny" / "tiny.pth", 2, 1024)
    result = pytorch.fold(net, (x,))
    print(result.report)
    assert result.check()
