"""From what every provider computed to a verdict for each: gate 3, the placement, the deployed setting.

The float64 judge evaluates each variant of the models once, however many providers there are.
"""

from collections.abc import Sequence
from dataclasses import replace

import onnx

from bnfold.errors import UnsupportedOp
from bnfold.files import ModelFile
from bnfold.reference import EvaluationError

from . import cost as costs
from .deployed import judge_deployed
from .figures import Judgement
from .gate3 import judge_pair
from .inputs import Sample
from .judge import Judge
from .placement import elsewhere
from .records import Deployed, ProviderRecord
from .rounding import unit_roundoff
from .rounds import Round
from .running import Provided
from .settings import Settings
from .statistics import far_from
from .steps import jumps_inside
from .tolerance import provider_only
from .verdict import Settled, Verdict

__all__ = ["Gate3", "NoJudge", "judge_round", "record_of"]

_TF32 = 2.0**-11  # the unit roundoff of a float32 product's operands there
_FLOAT32 = 2.0**-24


class NoJudge(Exception):
    """The float64 judge cannot evaluate one of the models."""


class Gate3:
    """The judge of one pair of models on all samples. Raises Settled where judging needs more memory than there is."""

    def __init__(
        self,
        original: ModelFile,
        candidate: ModelFile,
        settings: Settings,
        samples: Sequence[Sample],
        cost: costs.Cost,
        provided: Sequence[Provided],
    ) -> None:
        kept = 8 if not provided else 8 * sum(value.size for value in provided[0].original[0].values())
        costs.require_memory(cost, kept * len(samples) * (4 + 4 * max(len(provided), 1)), costs.available_memory())
        heavy = len(samples) == 1 and cost.seconds > 1
        self._draws = 1 if heavy and settings.exact is not None else 3
        self._settings = settings
        self._seed = settings.seed
        self._samples = len(samples)
        self._u = unit_roundoff(original.model)
        self._jumps = jumps_inside(original.model.graph)
        try:
            self._judge = Judge(original, candidate, settings.exact, samples)
        except (UnsupportedOp, EvaluationError) as error:
            raise NoJudge(str(error)) from error

    def far(self) -> list[str]:
        """A sentence if the inputs are far from what the BatchNormalizations were trained on."""
        return list(far_from(self._judge.moments, self._settings))

    def __call__(self, provided: Provided | None, *, tf32: bool | None = None) -> Judgement:
        """The judgement on what a provider computed, or on the functions alone. Raises NoJudge, and Settled."""
        single = self._u <= _FLOAT32
        coarser = _TF32 / max(self._u, _FLOAT32) if tf32 and self._u == _FLOAT32 else 1.0
        try:
            return judge_pair(
                self._judge,
                provided,
                samples=self._samples if provided is None else len(provided.samples),
                draws=self._draws,
                seed=self._seed,
                u=self._u,
                c=2.0 if single and coarser == 1 else 3.0,
                jumps=self._jumps,
                coarser=coarser,
            )
        except (UnsupportedOp, EvaluationError) as error:
            raise NoJudge(str(error)) from error


def judge_round(
    made: Round, gate: Gate3 | None, names: Sequence[str], reason: str
) -> tuple[Judgement | Settled, Deployed | None]:
    """Gate 3 on one provider, and the deployed setting. gate: None where there is no judge, for this `reason`."""
    assert made.provided is not None
    try:
        if gate is None:
            found = provider_only(names, made.provided, reason)
            return found, judge_deployed(made, names, None) if found.verdict.passed else None
        found = gate(made.provided, tf32=made.choice.tf32)
        if not found.verdict.passed:
            return found, None
        return found, judge_deployed(made, names, lambda provided: gate(provided, tf32=made.choice.tf32))
    except Settled as end:
        return end, None


def record_of(
    made: Round, found: Judgement | Settled, deployed: Deployed | None, candidate: onnx.ModelProto
) -> ProviderRecord:
    """The provider's verdict: gate 3's, and no better than the placement and the deployed setting allow."""
    record = ProviderRecord(
        made.choice,
        made.version,
        made.device,
        found.verdict,
        found.sentence,
        made.placement,
        made.noise,
        deployed,
        found.figures if isinstance(found, Judgement) else {},
    )
    if made.provided is None or record.verdict in (Verdict.NOT_EQUIVALENT, Verdict.INCONCLUSIVE):
        return record
    if wrong := elsewhere(made.placement, candidate):
        return replace(record, verdict=Verdict.INCONCLUSIVE, sentence=wrong)
    if deployed is None or not record.verdict.passed:
        return record
    if deployed.placement is not None and (wrong := elsewhere(deployed.placement, None)):
        return replace(record, verdict=Verdict.INCONCLUSIVE, sentence=f"with optimisations on, {wrong}")
    if deployed.decides and not deployed.verdict.passed:
        same = "the same function, but " if deployed.verdict is Verdict.DEGRADED else ""
        return replace(record, verdict=deployed.verdict, sentence=same + deployed.sentence)
    return record
