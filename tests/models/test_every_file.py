"""Every model that comes with the repository, and those trained by others, through the command line and out again."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from bnfold.cli import main

onnxruntime = pytest.importorskip("onnxruntime")

MODELS = sorted((Path(__file__).parents[2] / "models").glob("*.onnx"))
LEFT = {"postact": 1, "dense": 3}  # BatchNormalizations; 0 elsewhere
# of models trained by others: BatchNormalizations left, and the reasons of all of them
OTHERS: dict[str, tuple[int, set[str]]] = {
    "ultraface-rfb320": (0, set()),
    "trt-residual-block": (0, set()),
    "fsanet-1x1": (0, set()),
    "gtcrn-simple": (0, set()),
    "nids-mlp": (0, set()),
    "ppocr-det-prune-op14": (0, set()),
    "deeploy-ae1d": (0, set()),
    "mesonet": (3, {"PADDED"}),
    "sinet": (9, {"NONLINEAR", "NEGATIVE_SCALE", "PADDED"}),
    "onnx-bn-training-mode": (1, {"TRAINING_MODE"}),
    "dory-tcn": (0, set()),
}


def count(path: Path) -> int:
    return sum(node.op_type == "BatchNormalization" for node in onnx.load(path).graph.node)


def last(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("path", [p for p in MODELS if ".folded" not in p.name], ids=lambda p: p.stem)
def test_the_models_of_the_repository(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = path.read_bytes()
    out = tmp_path / "out.onnx"
    assert main([str(path), "-o", str(out)]) == 0
    assert last(capsys).startswith("EQUIVALENT: ")
    onnx.checker.check_model(out, full_check=True)
    onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    assert count(out) == LEFT.get(path.stem, 0)
    assert path.read_bytes() == before
    explained(path, capsys)
    assert main([str(out), "--dry-run", "--no-check"]) == 0
    assert "would" not in last(capsys)


def explained(path: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, str]]:
    """Each thing that stays has a reason, a place, a sentence and a hint."""
    assert main(["explain", str(path)]) == 0
    assert last(capsys).split(":")[0] in ("EXPLAINED", "NOTHING TO FOLD")
    assert main(["explain", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    for kept in document["kept"]:
        assert all(kept[key] for key in ("nodes", "op", "reason", "at", "message", "hint")), kept
    assert document["counts"]["sources"] == len(document["folded"]) + len(document["kept"])
    return document["kept"]


@pytest.mark.parametrize("name", OTHERS)
def test_models_trained_by_others(
    name: str, real_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = sorted((real_models / name).glob("*.onnx"))
    if not paths:
        pytest.skip(f"{name} is not in the folder of real models")
    (path,) = paths
    out = tmp_path / "out.onnx"
    assert main([str(path), "-o", str(out)]) == 0
    assert last(capsys).split(":")[0] in ("EQUIVALENT", "MORE_ACCURATE", "NOTHING TO FOLD")
    onnx.checker.check_model(out, full_check=name != "trt-residual-block")  # whose original has a wrong output shape
    left, reasons = OTHERS[name]
    assert count(out) == left
    kept = explained(path, capsys)
    assert {k["reason"] for k in kept if "BatchNormalization" in k["op"]} == reasons


def test_a_model_that_does_not_run_is_written_only_on_demand(
    real_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = sorted((real_models / "keras-test-model-0").glob("*.onnx"))
    if not paths:
        pytest.skip("the model is not there")
    out = tmp_path / "out.onnx"
    assert main([str(paths[0]), "-o", str(out)]) == 3
    assert last(capsys).startswith("INCONCLUSIVE: ") and not out.exists()
    assert main([str(paths[0]), "-o", str(out), "--accept", "certificate"]) == 3
    assert "--accept certificate" in last(capsys)
    onnx.checker.check_model(out, full_check=False)
    assert count(out) == 0


def test_an_op_of_another_domain_is_the_reason(real_models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = sorted((real_models / "qonnx-espcn-subpixel").glob("*.onnx"))
    if not paths:
        pytest.skip("the model is not there")
    assert {k["reason"] for k in explained(paths[0], capsys)} == {"UNKNOWN_OP"}


def test_state_dicts_are_no_models(real_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [p for pattern in ("*.pth", "*.th", "*.pt") for p in real_models.rglob(pattern)]
    if not paths:
        pytest.skip("there are none")
    for path in paths:
        assert main([str(path), "-o", str(tmp_path / "out.onnx")]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("Error: ") and "Traceback" not in captured.err and not captured.out
        assert list(tmp_path.iterdir()) == []
