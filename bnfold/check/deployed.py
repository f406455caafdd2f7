"""Both models with all optimisations on, as they are deployed: question (b) of gate 3 again.

The original's own error there and 8 δ are what is allowed. The function is the same, that was asked without them.
"""

from collections.abc import Callable, Sequence

from .figures import Judgement
from .records import Deployed
from .rounds import Round
from .running import Provided
from .tolerance import provider_only
from .verdict import Settled, Verdict

__all__ = ["judge_deployed"]

_ON = "with optimisations on"


def judge_deployed(made: Round, names: Sequence[str], judge: Callable[[Provided], Judgement] | None) -> Deployed | None:
    """What is wrong as deployed, None where nothing ran.

    judge: gate 3 on other outputs of the provider, with the samples that these have; None where there is no judge, and
    torch.testing's tolerances decide between the two models.
    """
    if made.deployed_failure is not None:
        return Deployed(made.deployed_failure.verdict, made.deployed_failure.sentence, 0)
    if made.deployed is None or not made.deployed.samples:
        return None
    count = len(made.deployed.samples)
    try:
        if judge is None:
            found = provider_only(names, made.deployed, "")
            if found.figures["tolerance"]["used"] <= 1:
                return Deployed(Verdict.EQUIVALENT, "", count, made.deployed_placement)
            sentence = found.sentence.partition(";")[0]
            verdict = Verdict.DEGRADED if found.verdict is Verdict.NOT_EQUIVALENT else Verdict.INCONCLUSIVE
            return Deployed(verdict, f"{_ON}, {sentence}", count, made.deployed_placement)
        found = judge(made.deployed)
    except Settled as end:
        return Deployed(Verdict.INCONCLUSIVE, f"{_ON}, {end.sentence}", count, made.deployed_placement)
    figures = found.figures.get("arithmetic", {})
    verdict, sentence, decides = Verdict.EQUIVALENT, "", True
    if found.worse:
        verdict, sentence = Verdict.DEGRADED, f"{_ON}, {found.worse[0].sentence}"
    elif found.verdict is Verdict.INCONCLUSIVE and "disagree" in found.sentence:
        # The original's own arithmetic there is what it is; the models were compared with optimisations disabled.
        verdict, sentence, decides = Verdict.INCONCLUSIVE, f"{_ON}, {found.sentence}", False
    return Deployed(
        verdict,
        sentence,
        count,
        made.deployed_placement,
        figures.get("error_original"),
        figures.get("truth_candidate"),
        figures.get("used"),
        decides,
    )
