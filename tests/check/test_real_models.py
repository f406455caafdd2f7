"""Models trained by others: each is equivalent to itself, or inconclusive for the reason that is known."""

from pathlib import Path

import pytest

from bnfold.check import Verdict, check
from bnfold.fold import fold

RUNS = ["ultraface-rfb320", "fsanet-1x1", "gtcrn-simple", "nids-mlp", "ppocr-det-prune-op14", "mesonet", "deeploy-ae1d",
        "dory-tcn", "onnx-bn-training-mode", "trt-residual-block", "sinet"]  # fmt: skip


def only(folder: Path) -> Path:
    (path,) = folder.glob("*.onnx")
    return path


@pytest.mark.parametrize("name", RUNS)
def test_equivalent_to_itself(real_models: Path, name: str) -> None:
    path = only(real_models / name)
    result = check(path, path, samples=None if name in ("ultraface-rfb320", "nids-mlp") else 2)
    assert result.verdict is Verdict.EQUIVALENT, str(result)
    assert result.figures["judge"] == "float64"
    assert result.counted >= 1


@pytest.mark.parametrize(("name", "word"), [("qonnx-espcn-subpixel", "Quant"), ("keras-test-model-0", "Concat")])
def test_cannot_run(real_models: Path, name: str, word: str) -> None:
    path = only(real_models / name)
    result = check(path, path)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert word in result.sentence


def test_a_shift_hidden_beside_large_values(real_models: Path, tmp_path: Path) -> None:
    """There a shift of 1 is stored beside values of 1e9; with these inputs nothing behind it shows that it moved on."""
    path = only(real_models / "sinet")
    fold(path).save(tmp_path / "folded.onnx")
    result = check(path, tmp_path / "folded.onnx", samples=1, seed=4)
    assert result, str(result)
