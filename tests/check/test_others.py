"""Folds made by other tools: where they are wrong the verdict is NOT_EQUIVALENT, where they are right they pass."""

from pathlib import Path

import pytest

from benchmarks.peers import GRAPHS, made_by
from bnfold.check import Verdict, check
from bnfold.errors import BnfoldError

WRONG = [
    ("onnxruntime", "MatMul, Transpose, BN"),
    ("onnxruntime", "MatMul, Reshape, BN"),
    ("onnxruntime", "float16 that overflows"),
    ("onnxslim", "Conv, Mul of a width vector"),
    ("onnxslim", "float16 that overflows"),
    ("onnxslim", "float16 with a float32 BN"),
    ("onnxscript", "Conv, BN in training mode"),
    ("onnxscript", "float16 that overflows"),
    ("onnxscript", "float16 with a float32 BN"),
]
RIGHT = [
    (tool, graph) for tool in ("onnxruntime", "onnxslim", "onnxscript") for graph in ("grouped Conv with a bias, BN",)
] + [("onnxruntime", "float16 with a float32 BN"), ("onnxslim", "ConvTranspose, BN"), ("onnxscript", "Gemm, BN")]


def made(tool: str, graph: str, folder: Path) -> Path:
    pytest.importorskip("onnxruntime")
    pytest.importorskip(tool)
    path = made_by(tool, GRAPHS[graph](), folder)
    if path is None:
        pytest.skip(f"this version of {tool} fails on it")
    return path


@pytest.mark.parametrize(("tool", "graph"), WRONG)
def test_a_wrong_fold_is_not_equivalent(tool: str, graph: str, tmp_path: Path) -> None:
    path = made(tool, graph, tmp_path)
    result = check(tmp_path / "original.onnx", path, threads=1)
    assert result.verdict is Verdict.NOT_EQUIVALENT, str(result)


@pytest.mark.parametrize(("tool", "graph"), RIGHT)
def test_a_right_fold_passes(tool: str, graph: str, tmp_path: Path) -> None:
    path = made(tool, graph, tmp_path)
    result = check(tmp_path / "original.onnx", path, threads=1)
    assert result, str(result)


def test_a_file_that_is_no_valid_model_does_not_pass(tmp_path: Path) -> None:
    """onnxscript gives the new bias the name of another tensor."""
    path = made("onnxscript", "Conv, BN; the bias's name is taken", tmp_path)
    with pytest.raises(BnfoldError, match="w_bias"):
        check(tmp_path / "original.onnx", path, threads=1)
