"""Several gloo processes against one: the same statistics, and an error instead of a hang."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("torch without gloo", allow_module_level=True)

from bnfold import train  # noqa: E402 - without torch the tests skip before they would need it

from .nets import images, net  # noqa: E402

ROOT = Path(__file__).parents[2]


def start(job: str, size: int, folder: Path) -> list[subprocess.Popen[str]]:
    arguments = [sys.executable, "-m", "tests.train.ranks", job]
    return [
        subprocess.Popen(
            [*arguments, str(rank), str(size), str(folder / "store"), str(folder / "out")],
            cwd=ROOT, text=True, stderr=subprocess.PIPE,
        )
        for rank in range(size)
    ]  # fmt: skip


def results(jobs: str, size: int, folder: Path) -> list[dict[str, Any]]:
    """What each rank found, by job. Starting processes takes longest, so each runs several jobs."""
    folder.mkdir(parents=True, exist_ok=True)
    processes = start(jobs, size, folder)
    for process in processes:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    return [json.loads((folder / f"out.{rank}").read_text()) for rank in range(size)]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("ranks")
    jobs = {1: "same,drift", 2: "same,poison,auto,drift,sync,traffic", 4: "same,sampler,sync,traffic,order"}
    return {size: results(names, size, folder / str(size)) for size, names in jobs.items()}


def close(a: dict[str, list[float]], b: dict[str, list[float]]) -> bool:
    return a.keys() == b.keys() and all(np.allclose(a[n], b[n], rtol=1e-12, atol=1e-12) for n in a)


def test_one_two_and_four_processes_have_the_same_statistics(ran):
    single = ran[1][0]["same"]
    for size in (2, 4):
        found = [rank["same"] for rank in ran[size]]
        assert all(rank == found[0] for rank in found), "to the last bit the same on every rank"
        for method, one in single.items():
            many = found[0][method]
            assert close(many["mean"], one["mean"]) and close(many["var"], one["var"])
            assert close(many["written"], one["written"])
            assert (many["n"], many["batches"]) == (one["n"], one["batches"]) and one["batches"] == 8


@pytest.mark.parametrize("size", [2, 4])
def test_there_is_one_gather_a_pass_and_nothing_else(ran, size: int):
    for rank in ran[size]:
        assert len(rank["traffic"]) == 4
        for calls, passes in rank["traffic"].values():
            assert calls == {"all_gather": passes}
        assert rank["traffic"]["sequential"][1] > 1 == rank["traffic"]["pooled"][1]


def test_a_rank_without_batches_knows_the_order_too(ran):
    assert [rank["order"][0] for rank in ran[4]] == [["first", "last"]] * 4
    assert len({rank["order"][1] for rank in ran[4]}) == 1


def test_the_mean_of_ranks_drops_the_variance_of_their_means():
    """What timm's distribute_bn computes: the mean over ranks of their variances."""
    torch.manual_seed(0)
    parts = [torch.randn(512, 1) - 1, torch.randn(512, 1) + 1]
    averaged = sum(part.var(correction=0) for part in parts) / 2
    ledgers = []
    for part in parts:
        report = train.refresh(torch.nn.Sequential(torch.nn.BatchNorm1d(1)), [part])
        ledgers.append(report.ledger)
    merged = ledgers[0].merge(ledgers[1])["0"].var
    assert float(averaged) < 1.1 and abs(float(merged) / float(torch.cat(parts).double().var(correction=0)) - 1) < 1e-10


def test_a_poisoned_batch_is_named_on_every_rank(ran):
    found = [rank["poison"] for rank in ran[2]]
    assert found[0] == found[1]
    assert found[0]["poisons"] == [[1, 2, "1", 0]] and found[0]["batches"] == 7


def test_auto_decides_alike(ran):
    found = [rank["auto"] for rank in ran[2]]
    assert found[0] == found[1] and found[0]["method"] == "algorithm2", found[0]["why"]


def test_sampler_padding_counts_once_and_ddp_does_not_wait(ran):
    """29 samples for 4 ranks: torch's sampler repeats three."""
    found = [rank["sampler"] for rank in ran[4]]
    model = net(dtype=torch.float64)
    report = train.refresh(model, images([29], dtype=torch.float64), "concurrent")
    assert found[0]["n"] == {row.name: row.n for row in report.layers}
    assert close(found[0]["var"], {n: report.ledger[n].var.tolist() for n in report.ledger})


def test_drift_of_all_ranks_data(ran):
    for rank in ran[2]:
        assert close(rank["drift"], ran[1][0]["drift"])


@pytest.mark.parametrize("size", [2, 4])
def test_synchronized_layers_are_one_process_with_the_whole_batch(ran, size: int):
    for rank in ran[size]:
        assert len(rank["sync"]) == 6
        assert all(error < 1e-10 for errors in rank["sync"].values() for error in errors), rank["sync"]


def test_an_error_on_one_rank_is_an_error_on_all(tmp_path: Path):
    one, two = (rank["failing"] for rank in results("failing", 2, tmp_path))
    assert two == ["OSError", "the disk is gone", True]
    assert one[0] == "BnfoldError" and "Rank 1 of 2 stopped with an error of its own" in one[1] and one[2]


@pytest.mark.parametrize("job", ["dead", "hanging"])
def test_a_rank_that_is_gone_or_hangs_is_an_error_in_time(tmp_path: Path, job: str):
    processes = start(job, 2, tmp_path)
    try:
        _, errors = processes[0].communicate(timeout=100)
        assert processes[0].returncode == 0, errors
        message, unchanged, _seconds = json.loads((tmp_path / "out.0").read_text())[job]
        assert "Rank 0 of 2 did not hear from the others" in message and unchanged
        assert ("within 3 s" in message) == (job == "hanging")
    finally:
        for process in processes:
            process.kill()
            process.communicate()
