"""`python -m bnfold.train digits`: from training to the folded file in one command, and what it says on the way."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

from bnfold.train.digits import load_digits  # noqa: E402 - without torch the tests skip before they would need it


def digits(*arguments: str, code: int = 0, launch: tuple[str, ...] = ("-m",)) -> str:
    command = [sys.executable, *launch, "bnfold.train", "digits", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


def predictions(path: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": load_digits().test_images})
    return np.asarray(logits).argmax(1)


def test_from_training_to_the_folded_file(tmp_path: Path):
    told = digits("--arch", "mlp", "--epochs", "6", "--out", str(tmp_path), "--checkpoint", str(tmp_path / "c"))
    lines = told.splitlines()
    steps = ["trained", "refreshed", "exported", "folded 2 of 2"]
    assert [line.split(None, 1)[1].startswith(step) for line, step in zip(lines, steps, strict=False)] == [True] * len(
        steps
    )
    assert re.fullmatch(r"mlp +(EQUIVALENT|MORE[_ ]ACCURATE): .*", lines[-1])
    exported, folded = tmp_path / "mlp.onnx", tmp_path / "mlp.folded.onnx"
    assert sum(node.op_type == "BatchNormalization" for node in onnx.load(exported).graph.node) == 2
    assert not any(node.op_type == "BatchNormalization" for node in onnx.load(folded).graph.node)
    before, after = predictions(exported), predictions(folded)
    np.testing.assert_array_equal(before, after)
    right = int((after == load_digits().test_labels).sum())
    assert right > 300
    for line in lines[-3:-1]:
        assert f"{right}/450" in line
        assert "same predictions" in line

    again = digits("--arch", "mlp", "--epochs", "6", "--out", str(tmp_path), "--checkpoint", str(tmp_path / "c"))
    assert again.splitlines()[-3:-1] == lines[-3:-1]  # gone on from the checkpoint: nothing was left to train


def torchrun(count: int) -> tuple[str, ...]:
    return ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}", "-m")


@pytest.mark.parametrize(
    ("arch", "ranks"), [("mlp", 2), pytest.param("conv", 4, marks=pytest.mark.slow)], ids=["2", "4"]
)
def test_under_torchrun(arch: str, ranks: int):
    told = digits("--arch", arch, "--epochs", "2", launch=torchrun(ranks))
    alone = digits("--arch", arch, "--epochs", "2")
    figures = [re.findall(r"\d+/450", text) for text in (told, alone)]
    assert len(figures[0]) == len(figures[1]) == 4
    right = [[int(figure.split("/")[0]) for figure in each] for each in figures]
    assert max(abs(a - b) for a, b in zip(*right, strict=True)) <= 2  # sums in another order, over 42 steps


@pytest.mark.slow
def test_it_trains_what_the_script_in_models_writes(tmp_path: Path):
    """The same bytes; with statistics of the moving average, as models/ has them."""
    script = Path(__file__).parents[2] / "models" / "train.py"
    subprocess.run([sys.executable, str(script), "mlp", "--out", str(tmp_path)], check=True, timeout=280)
    expected = (tmp_path / "mlp.onnx").read_bytes()
    digits("--arch", "mlp", "--no-refresh", "--out", str(tmp_path / "digits"))
    assert (tmp_path / "digits" / "mlp.onnx").read_bytes() == expected


def test_bad_input_is_a_sentence(tmp_path: Path):
    (tmp_path / "mlp.pt").write_bytes(b"no checkpoint")
    assert digits("--arch", "mlp", "--checkpoint", str(tmp_path), code=2).startswith("Error: ")
    assert "'nothing' is not one of" in digits("--arch", "nothing", code=2)
