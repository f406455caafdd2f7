"""Two models that others trained, from their state dicts: folded, checked, exported and checked under ONNX Runtime."""

from pathlib import Path
from typing import Any

import onnx
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

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
    assert result and result.distance is not None
    assert len(result.fold.report.folded) == 19 and not result.fold.report.kept
    assert normalizations(result.fold.module) == 0
    local = result.check.gate2 if result.check is not None else None
    assert local is not None and local.passed and local.to_dict()["bounded"] == 19
    assert not _normalizations(tmp_path / "net.onnx")


def test_crepe(real_models: Path, tmp_path: Path):
    """The last of six folds into the classifier. Behind the others comes a border of zeros, before them a ReLU: the
    border would have to be another number for each channel, and the ReLU lets no shift through."""
    net, x = given(CrepeTiny(), real_models / "pt-crepe-tiny" / "tiny.pth", 2, 1024)
    result = pytorch.export(net, (x,), tmp_path / "net.onnx")
    assert result and result.distance is not None
    report = result.fold.report
    assert [folded.nodes for folded in report.folded] == [("conv6_BN",)]
    assert [kept.nodes for kept in report.kept] == [(f"conv{k}_BN",) for k in range(1, 6)]
    for kept in report.kept:
        reasons = {kept.reason, *(other.reason for other in kept.alternatives)}
        assert reasons == {"PADDED", "NONLINEAR"}, kept
        assert kept.message.startswith("It pads with one number; the channels would need")
    assert normalizations(result.fold.module) == 5
    program = pytorch.fold_exported(torch.export.export(net, (x,), strict=False))
    assert len(program.report.folded) == 1 and program.check()


def _normalizations(path: Path) -> list[str]:
    return [node.name for node in onnx.load(path).graph.node if node.op_type == "BatchNormalization"]
