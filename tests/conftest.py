"""What every test can have: the slow tests' switch and budget, a folder of real models, Hypothesis' profiles."""

import os
from pathlib import Path

# Workers that each start a thread for every core only wait for one another. Read when numpy or torch is first imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

# No deadline and no check of the speed of generation: a test never depends on how fast the machine is.
settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("dev"), derandomize=True, database=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the slow tests too (or set BNFOLD_SLOW=1)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(2 * _slow_budget() + 300))
    if config.getoption("--slow") or os.environ.get("BNFOLD_SLOW", "0") not in ("", "0"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]


@pytest.fixture(scope="session")
def real_models() -> Path:
    """The folder that BNFOLD_REAL_MODELS names: models trained by others, which are no part of the repository."""
    name = os.environ.get("BNFOLD_REAL_MODELS")
    if not name:
        pytest.skip("BNFOLD_REAL_MODELS names no folder of real models")
    folder = Path(name).resolve()
    if not folder.is_dir():
        pytest.skip(f"BNFOLD_REAL_MODELS names {folder}, which is not a folder")
    return folder


def _slow_budget() -> float:
    return float(os.environ.get("BNFOLD_SLOW_S", "240"))


@pytest.fixture(scope="session")
def slow_budget() -> float:
    """Seconds that one slow test may spend looking for a counterexample: BNFOLD_SLOW_S, 240 unless it is set."""
    return _slow_budget()
