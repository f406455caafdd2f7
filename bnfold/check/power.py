"""How good is the check itself, on this model, with these inputs? Known faults are planted in its fold and judged.

    found = power("net.onnx")           # PowerResult: for each fault how many were caught, and by which gate
    found.masked                        # planted faults that these inputs could not show: only gate 1 sees them

Gate 3 is asked as for a file of unknown make, (a) with its bound of 2 δ; what the original does is evaluated once.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy.typing as npt
import onnx

from bnfold.errors import UnsupportedOp
from bnfold.files import ModelFile
from bnfold.fold import fold_leaving
from bnfold.reference import EvaluationError

from .compare import SAME
from .cost import Cost, available_memory, require_memory
from .faults import FAULTS, faulty
from .figures import Judgement
from .gate3 import judge_pair
from .judge import Judge
from .providers import NoProvider, Provider
from .rounding import unit_roundoff
from .running import Provided, load_original, opened, run_candidate, run_original, samples_for
from .steps import jumps_inside
from .tolerance import provider_only
from .verdict import Settled, Verdict

__all__ = ["Outcome", "PowerResult", "power"]

Source = str | os.PathLike[str] | onnx.ModelProto


@dataclass(frozen=True)
class Outcome:
    """One planted fault: where it was, which gate caught it, and by how many δ it moved the float64 outputs.

    None: the gate could not be asked, or nothing was measured.
    """

    fault: str
    at: str
    gate1: bool | None
    same_function: bool | None  # gate 3 (a)
    arithmetic: bool | None  # gate 3 (b)
    moved: float | None

    @property
    def caught(self) -> bool:
        return bool(self.gate1 or self.by_gate3)

    @property
    def by_gate3(self) -> bool:
        return bool(self.same_function or self.arithmetic)


@dataclass(frozen=True)
class PowerResult:
    """What became of the planted faults. `alarm`: the sentence with which the fold without a fault was refused, or "".

    `without`: why gate 3 could not be asked, or "". `folded`: how many sources there were to plant a fault in.
    """

    outcomes: tuple[Outcome, ...]
    folded: int
    seed: int
    alarm: str = ""
    without: str = ""
    warnings: tuple[str, ...] = field(default=())

    @property
    def missed(self) -> tuple[Outcome, ...]:
        """Planted faults that passed every gate."""
        return tuple(each for each in self.outcomes if not each.caught)

    @property
    def masked(self) -> tuple[Outcome, ...]:
        """Planted faults that gate 3 did not see with these inputs."""
        return () if self.without else tuple(each for each in self.outcomes if not each.by_gate3)

    def rows(self) -> list[dict[str, Any]]:
        """For every kind of fault: planted, and caught by gate 1, by gate 3 (a), by gate 3 (b), by any."""
        table: list[dict[str, Any]] = []
        for fault in FAULTS:
            mine = [each for each in self.outcomes if each.fault == fault]
            table.append(
                {
                    "fault": fault,
                    "planted": len(mine),
                    "gate1": _caught([each.gate1 for each in mine]),
                    "same_function": _caught([each.same_function for each in mine]),
                    "arithmetic": _caught([each.arithmetic for each in mine]),
                    "caught": sum(each.caught for each in mine),
                    "missed": [each.at for each in mine if not each.caught],
                    "masked": [each.at for each in mine if each in self.masked],
                }
            )
        return table

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return {
            "planted": len(self.outcomes),
            "caught": sum(each.caught for each in self.outcomes),
            "faults": self.rows(),
            "folded": self.folded,
            "alarm": self.alarm,
            "without_gate3": self.without,
            "seed": self.seed,
            "warnings": list(self.warnings),
        }

    def __str__(self) -> str:
        lines = [f"power   {'fault':22} {'planted':>7} {'gate 1':>7} {'3 (a)':>7} {'3 (b)':>7} {'caught':>7}"]
        for row in self.rows():
            cells = [row[key] for key in ("planted", "gate1", "same_function", "arithmetic", "caught")]
            shown = [f"{'-' if cell is None or not cells[0] else cell:>7}" for cell in cells[1:]]
            lines.append(f"        {row['fault']:22} {cells[0]:>7} {' '.join(shown)}")
        lines.append(
            f"power   {sum(each.caught for each in self.outcomes)} of {len(self.outcomes)} planted faults caught"
        )
        lines.extend(f"warning {warning}" for warning in self.warnings)
        return "\n".join(lines)


def power(
    original: Source,
    candidate: Source | None = None,
    *,
    per_fault: int = 4,
    samples: int | None = None,
    seed: int = 0,
    inputs: Sequence[str | os.PathLike[str] | Mapping[str, npt.NDArray[Any]]] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    threads: int | None = None,
    timeout: float | None = None,
) -> PowerResult:
    """Fold `original`, plant up to `per_fault` faults of each kind in the fold, and judge each on the check's inputs.

    candidate: a fold that is held to be right and must raise no alarm; None: bnfold's own. The others: as in `check`.

    Raises UsageError for inputs or shapes that do not fit the model, UnreadableModel for no model.
    """
    result = fold_leaving(original, None)  # right for sure: in front of an op that rounds no fold is, unless checked
    count = len(result.records)
    if not count:
        text = "bnfold folds nothing in the original that is not rounded right behind: no fault can be planted."
        return PowerResult((), 0, seed, warnings=(text,))
    first = opened(original)
    right = opened(result.model if candidate is None else candidate, first.directory)
    asked = {"samples": samples, "seed": seed, "inputs": inputs, "shapes": shapes}
    with ExitStack() as stack:
        bench: _Bench | None = None
        alarm = without = ""
        try:
            bench = stack.enter_context(_Bench(first, right, asked, threads, timeout))
            control = bench.judge(right)
            if control.verdict is Verdict.INCONCLUSIVE:
                bench, without = None, control.sentence
            elif not control.verdict.passed:
                alarm = control.sentence
        except Settled as end:
            if end.verdict is Verdict.NOT_EQUIVALENT:
                alarm = end.sentence
            else:
                bench, without = None, end.sentence
        except MemoryError:
            bench, without = None, "judging it in float64 needs more memory than there is"
        certificate = result.certificate()
        if not certificate.passed:
            alarm = alarm or certificate.sentence
        outcomes = tuple(
            _outcome(
                planted.fault,
                planted.at,
                not result.certificate(planted.model).passed,
                bench,
                opened(planted.model, first.directory),
            )
            for fault in FAULTS
            for planted in faulty(result, fault, per_fault, seed)
        )
    found = PowerResult(outcomes, count, seed, alarm, without)
    return replace(found, warnings=tuple(_warnings(found)))


def _outcome(fault: str, at: str, gate1: bool, bench: "_Bench | None", model: ModelFile) -> Outcome:
    if bench is None:
        return Outcome(fault, at, gate1, None, None, None)
    try:
        judgement = bench.judge(model)
    except Settled as end:  # other shapes, NaN in other places, or the runtime refuses it
        return Outcome(fault, at, gate1, end.verdict is Verdict.NOT_EQUIVALENT, False, None)
    if judgement.figures.get("judge") is None:
        return Outcome(fault, at, gate1, None, judgement.verdict is Verdict.NOT_EQUIVALENT, None)
    moved = judgement.figures.get("same_function", {}).get("stored_in_delta")
    failed = judgement.failed
    return Outcome(fault, at, gate1, "same_function" in failed, "arithmetic" in failed, moved)


class _Bench:
    """Original and inputs, set up once; every candidate is run and judged beside them."""

    def __init__(
        self,
        original: ModelFile,
        right: ModelFile,
        asked: Mapping[str, Any],
        threads: int | None,
        timeout: float | None,
    ) -> None:
        self._original = original
        self._start: dict[str, Any] = {"threads": threads, **({} if timeout is None else {"timeout": timeout})}
        self._provider: Provider | None = None
        self._seed: int = asked["seed"]
        self._no_judge = ""
        try:
            self._provider = Provider(**self._start)
            load_original(self._provider, original)
            plan = samples_for(original, self._provider, **asked)
            self._provided: Provided | None = run_original(self._provider, plan.samples)
            self._samples = self._provided.samples
        except NoProvider:
            self._provided = None
            try:
                plan = samples_for(original, None, **asked)
            except UnsupportedOp as lacking:
                raise Settled(Verdict.INCONCLUSIVE, f"no provider ran, and no judge could: {lacking}") from lacking
            self._samples = plan.samples
        except BaseException:
            self.close()
            raise
        self._require_memory(plan.cost)
        self._judge = Judge(original, right, None, self._samples)

    def __enter__(self) -> "_Bench":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._provider is not None:
            self._provider.close()

    def _require_memory(self, cost: Cost) -> None:
        kept = 8 if self._provided is None else 8 * sum(value.size for value in self._provided.original[0].values())
        try:
            require_memory(cost, kept * len(self._samples) * 6, available_memory())
        except Settled:
            self.close()
            raise

    def judge(self, candidate: ModelFile) -> Judgement:
        """Gate 3 on one candidate. Raises Settled as a check would end."""
        provided = self._run(candidate)
        names = [value.name for value in self._original.model.graph.output]
        if not self._no_judge:
            u = unit_roundoff(self._original.model)
            try:
                return judge_pair(
                    self._judge.beside(candidate),
                    provided,
                    samples=len(self._samples),
                    draws=3,
                    seed=self._seed,
                    u=u,
                    c=2.0 if u <= 2.0**-24 else 3.0,
                    jumps=jumps_inside(self._original.model.graph),
                )
            except (UnsupportedOp, EvaluationError) as error:
                self._no_judge = str(error).rstrip(".")
        if provided is None:
            raise Settled(Verdict.INCONCLUSIVE, f"no provider ran, and no judge could: {self._no_judge}")
        return provider_only(names, provided, self._no_judge)

    def _run(self, candidate: ModelFile) -> Provided | None:
        if self._provider is None or self._provided is None:
            return None
        try:
            return run_candidate(self._provider, self._provided, candidate)
        except Settled:
            self._provider.close()  # it may have died of this one; the next candidate gets a new one
            self._provider = Provider(**self._start)
            raise


def _caught(found: Sequence[bool | None]) -> int | None:
    return None if None in found else sum(map(bool, found))


def _warnings(found: PowerResult) -> list[str]:
    said: list[str] = []
    if found.alarm:
        said.append(f"The fold without any fault raised an alarm: {found.alarm.rstrip('.')}.")
    if found.without:
        said.append(f"Gate 3 was not asked: {found.without.rstrip('.')}.")
    if found.missed:
        said.append(f"{len(found.missed)} planted faults passed every gate: {_list(found.missed)}.")
    if found.masked:
        said.append(
            f"The inputs could not show {len(found.masked)} of {len(found.outcomes)} planted faults at the outputs "
            f"(they move by less than {SAME:g} δ, or a few elements' luck), only gate 1 can: {_list(found.masked)}. "
            "More samples (--samples) or real data (--inputs) may show them."
        )
    if not found.outcomes and found.folded:
        said.append("No fault applies to what was folded.")
    return said


def _list(outcomes: Sequence[Outcome]) -> str:
    moved = [
        f"{each.fault} at {each.at}" + (f" ({each.moved:.2g} δ)" if each.moved is not None else "") for each in outcomes
    ]
    return "; ".join(moved[:5]) + (f"; and {len(moved) - 5} more" if len(moved) > 5 else "")
