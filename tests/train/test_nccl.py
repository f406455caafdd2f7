"""On machines with GPUs: the statistics over nccl are those of one process on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available() or not torch.distributed.is_available() or not torch.distributed.is_nccl_available():
    pytest.skip("no GPU, or torch without nccl", allow_module_level=True)

from bnfold import train  # noqa: E402 - without torch the tests skip before they would need it

from .nccl_worker import SIZES  # noqa: E402
from .nets import images, net  # noqa: E402

ROOT = Path(__file__).parents[2]
RANKS = min(4, torch.cuda.device_count())
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={RANKS}", "-m"]


def test_the_ranks_of_all_gpus_agree_with_one_process(tmp_path: Path):
    command = [*TORCHRUN, "tests.train.nccl_worker", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    found = [json.loads((tmp_path / f"out.{rank}").read_text()) for rank in range(RANKS)]
    data = images(SIZES, by_class=True, dtype=torch.float64)
    torch.manual_seed(0)
    x = torch.randn(8, 4, 5, dtype=torch.float64) * 2 + 100
    layer = train.BatchNorm1d(4, dtype=torch.float64)
    whole = layer(x).detach()
    for rank, each in enumerate(found):
        assert each["gathered"] == [[k, k + 1, k + 2] for k in range(RANKS)]
        for method in ("sequential", "concurrent", "pooled"):
            assert each[method] == found[0][method]
            report = train.refresh(net(dtype=torch.float64), data, method)
            for name, (mean, variance) in each[method].items():
                np.testing.assert_allclose(mean, report.ledger[name].mean, rtol=1e-10, atol=1e-10)
                np.testing.assert_allclose(variance, report.ledger[name].var, rtol=1e-10)
        for row in train.drift(net(dtype=torch.float64), data).layers:
            assert each["drift"][row.name] == pytest.approx(row.error, rel=1e-9)
        np.testing.assert_allclose(each["output"], whole[rank::RANKS], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(each["variance"], x.var((0, 2), correction=0), rtol=1e-12)


def test_the_digits_train_on_all_gpus(tmp_path: Path):
    pytest.importorskip("sklearn")
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    command = [*TORCHRUN, "bnfold.train", "digits", "--arch", "mlp", "--epochs", "3", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "same predictions" in done.stdout
    assert (tmp_path / "mlp.folded.onnx").is_file()
