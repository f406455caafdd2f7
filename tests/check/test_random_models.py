"""The whole check on random graphs: every correct fold passes, and none of its gates cries wolf."""

import pytest

from bnfold.check import Verdict, check
from bnfold.fold import fold
from tests.test_random_graphs import graph

# 1, 366: where the input is zero, an InstanceNormalization divides the rounding of a constant by a small number
# 326: float16, and one element of an output next to the type's largest number
SEEDS = (1, 2, 7, 12, 326, 366)


@pytest.mark.parametrize("seed", SEEDS)
def test_correct_fold(seed: int) -> None:
    model = graph(seed)
    result = fold(model, aggressive=seed % 4 == 1, partial=seed % 4 == 2)
    for verdict in (result.check(seed=seed % 3), check(model, result.model, seed=seed % 5)):
        assert verdict.verdict in (Verdict.EQUIVALENT, Verdict.MORE_ACCURATE), str(verdict)
        assert verdict.gate2 is not None and verdict.gate2.passed, str(verdict)
