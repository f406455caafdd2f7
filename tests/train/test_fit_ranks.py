"""Training with several processes on gloo: the same as with one, and an error where a rank is lost."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

from bnfold.train import ranks  # noqa: E402 - without torch the tests skip before they would need it

WORKER = Path(__file__).with_name("fit_ranks_worker.py")
ROOT = Path(__file__).parents[2]


def start(world: int, how: str, out: Path) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": path}
    shared |= {"WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, str(WORKER), how, str(out)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


def ended(children: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    try:
        return [(child.wait(120), child.communicate()[1]) for child in children]
    finally:
        for child in children:
            child.kill()


def trained(world: int, how: str, folder: Path) -> list[dict[str, Any]]:
    out = folder / f"{how}{world}"
    for code, told in ended(start(world, how, out)):
        assert code == 0, told
    return [torch.load(f"{out}.{rank}", weights_only=True) for rank in range(world)]


def test_two_ranks_train_as_one(tmp_path: Path):
    (alone,), pair = trained(1, "even", tmp_path), trained(2, "even", tmp_path)
    for each in pair:
        assert each["steps"] == alone["steps"] == 36
        for name, value in alone["model"].items():
            torch.testing.assert_close(each["model"][name], value, rtol=1e-12, atol=1e-14)
        assert each["scores"] == pytest.approx(alone["scores"], rel=1e-12)


def test_uneven_loaders_end_together(tmp_path: Path):
    first, second = trained(2, "uneven", tmp_path)
    assert first["steps"] == second["steps"] == 33
    for name, value in first["model"].items():
        assert torch.equal(value, second["model"][name])


@pytest.mark.parametrize("how", ["dies", "hangs"])
def test_a_lost_rank_is_an_error_on_the_others(how: str, tmp_path: Path):
    first, second = start(2, how, tmp_path / "lost")
    try:
        told = first.communicate(timeout=120)[1]
    finally:
        for child in (first, second):
            child.kill()
        second.communicate()
    assert first.returncode == 3, told
    (sentence,) = [line for line in told.splitlines() if line.startswith("Error: ")]
    assert "Another rank of 2 is gone or does not answer" in sentence
    assert "Traceback" not in told


def test_a_checkpoint_that_only_some_ranks_see_is_an_error_on_all(tmp_path: Path):
    trained(2, "apart", tmp_path)
    for code, told in ended(start(2, "apart", tmp_path / "apart2")):
        assert code == 2
        assert "is there for some ranks only" in told


@pytest.mark.parametrize(
    ("environment", "gpus", "device"),
    [
        ({}, 0, "cpu"),
        ({}, 1, "cuda:0"),
        (
            {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "0"},
            1,
            "cpu",
        ),  # as its neighbours, which have none
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "3"}, 4, "cuda:3"),
        ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}, 2, "cuda:1"),  # two machines
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "1"}, 1, "cpu"),
    ],
)
def test_all_ranks_of_a_machine_compute_in_one_kind_of_place(environment: dict[str, str], gpus: int, device: str):
    assert ranks.place(environment, gpus) == torch.device(device)
