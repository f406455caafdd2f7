"""The check: are two models the same function, and is the second one computed as well? See numerics in docs/.

    verdict = check("net.onnx", "net.folded.onnx")      # CheckResult, truthy when equivalent

Gate 1 (the certificate) is handed in by the fold, or found by matching the two files; gate 3 runs both models and
judges them in float64; gate 2 then looks at every region in which they differ by itself, and names the wrong one.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import onnx

from bnfold.errors import UnsupportedOp, UsageError

from .settings import Settings
from .verdict import Certificate, CheckResult, SampleRecord, Settled, Verdict

if TYPE_CHECKING:
    from bnfold.files import ModelFile

    from .catalogue import Choice
    from .cost import Cost
    from .figures import Judgement
    from .gate2 import Gate2
    from .inputs import Sample
    from .pairs import PairCertificate
    from .providers import Provider
    from .records import ProviderRecord
    from .rounds import Round
    from .running import Plan

__all__ = ["CheckResult", "Verdict", "check"]

Source = str | os.PathLike[str] | onnx.ModelProto


def check(
    original: Source,
    candidate: Source,
    *,
    samples: int | None = None,
    seed: int = 0,
    inputs: Sequence[str | os.PathLike[str] | Mapping[str, npt.NDArray[Any]]] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    calibrated: bool = False,
    threads: int | None = None,
    exact: Mapping[str, npt.NDArray[Any]] | None = None,
    certificate: Certificate | None = None,
    integers: Sequence[str] = (),
    timeout: float | None = None,
    certificate_only: bool = False,
    providers: Sequence[str] | None = None,
    tf32: bool = False,
    custom_ops: Sequence[str | os.PathLike[str]] = (),
) -> CheckResult:
    """Compare two models, whoever made the second.

    original, candidate: path or onnx.ModelProto; neither is modified. The original's BatchNormalizations must still be
        in it: it is run with graph optimisations disabled.
    samples: how many generated inputs; None lets the model's size decide (1 to 6). seed: of inputs and perturbations.
    inputs: .npz files or mappings from input name to array, each one sample or many, instead of generated ones.
    shapes: sizes for inputs with free dimensions, {"x": (1, 3, 320, 320)}.
    ranges: {"x": (0, 255)}: generated values of that input lie in [0, 255], both ends included.
    calibrated: rescale the generated inputs so that the first BatchNormalizations see their own statistics.
    threads: of onnxruntime; None is its default. timeout: seconds for loading a model and for one run of it.
    providers: execution providers to run on, short names ("cpu", "cuda") or onnxruntime's, "all" for every one that
        loads; None is the CPU. The verdict is the worst of theirs. tf32: let float32 products be computed in TF32.
    custom_ops: shared libraries of custom operators, registered with onnxruntime.
    exact: the candidate's initializers in float64 before they were rounded, by name (FoldResult.exact): question (a)
        is then answered at float64's own accuracy.
    certificate: gate 1's result; None: the layers of the two files are matched, whoever made the candidate.
    certificate_only: let gate 1 decide alone; nothing is run. Without `certificate` the original is folded again, and a
        candidate that is no such fold is INCONCLUSIVE.
    integers: values inside the models, made by ops that round, that must be the same in both, bit for bit.

    Raises UsageError for inputs or shapes that do not fit the model and for providers or libraries that do not exist,
    UnreadableModel for no model; whatever happens while the models run is a verdict.
    """
    settings = Settings(
        samples=samples,
        seed=seed,
        inputs=inputs,
        shapes=shapes,
        ranges=ranges,
        calibrated=calibrated,
        threads=threads,
        exact=exact,
        certificate=certificate,
        integers=tuple(integers),
        timeout=timeout,
        certificate_only=certificate_only,
        providers=None if providers is None else tuple(providers),
        tf32=tf32,
        custom_ops=tuple(Path(library) for library in custom_ops),
    )
    return _Check(settings).run(original, candidate)


class _Check:
    """One check under way: what is known so far goes into the result, however it ends."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pair: PairCertificate | None = None
        self._flipped: dict[str, str] = {}
        self._rounds: list[Round] = []
        self._records: list[ProviderRecord] = []
        self._ran: tuple[Sample, ...] = ()
        self._warnings: list[str] = []
        self._gate2: Gate2 | None = None

    def run(self, original: Source, candidate: Source) -> CheckResult:
        from .rounds import choices
        from .running import opened

        if self._settings.certificate_only and self._settings.certificate is None:
            from .refold import by_certificate

            return by_certificate(original, candidate)
        for library in self._settings.custom_ops:
            if not library.is_file():
                raise UsageError(f"{library}, named as a library of custom operators, is not a file.")
        first = opened(original)
        second = opened(candidate, first.directory)
        try:
            asked = choices(self._settings)
            if self._settings.certificate is not None and not self._settings.certificate.passed:
                raise Settled(Verdict.NOT_EQUIVALENT, self._settings.certificate.sentence)
            if self._settings.certificate_only:
                raise Settled(*_alone(self._settings))
            if self._settings.certificate is None:
                from .pairs import certify_pair

                self._pair = certify_pair(first, second)
            judgement = self._gate3(first, second, asked)
        except Settled as end:
            return self._result(end.verdict, end.sentence)
        except MemoryError:
            return self._result(Verdict.INCONCLUSIVE, "judging it in float64 needs more memory than there is")
        verdict, sentence = self._local(first, second, judgement)
        if self._settings.integers and verdict is not Verdict.INCONCLUSIVE:
            from .integers import changed

            ran = [each.choice for each in self._rounds if each.provided is not None]
            for choice in ran or [None]:
                found = changed(first, second, self._settings.integers, self._ran, choice, self._settings)
                self._flipped = {**found, **self._flipped}
            if self._flipped and verdict.passed:
                name, what = next(iter(self._flipped.items()))
                verdict, sentence = Verdict.DEGRADED, f"the same function, but {name!r} is rounded: {what.rstrip('.')}"
        return self._result(verdict, sentence, judgement)

    def _gate3(
        self, original: "ModelFile", candidate: "ModelFile", asked: "Sequence[tuple[Choice, bool]]"
    ) -> "Judgement":
        from .providers import NoProvider
        from .running import comparable_outputs, same_interface, samples_for

        self._warnings.extend(same_interface(original.model, candidate.model))
        comparable_outputs(original.model)
        wanted = self._settings
        how: dict[str, Any] = {
            "samples": wanted.samples, "seed": wanted.seed, "inputs": wanted.inputs, "shapes": wanted.shapes,
            "ranges": wanted.ranges, "calibrated": wanted.calibrated,
        }  # fmt: skip
        try:
            plan = self._run_all(original, candidate, asked, how)
        except NoProvider as error:
            if wanted.providers is not None:
                raise Settled(Verdict.INCONCLUSIVE, f"no provider ran: {error}") from error
            self._warnings.append(f"No provider ran: {error}.")
            try:
                plan = samples_for(original, None, **how)
            except UnsupportedOp as lacking:
                raise Settled(Verdict.INCONCLUSIVE, f"no provider ran, and no judge could: {lacking}") from lacking
            self._ran = plan.samples
            self._warnings.extend(plan.notes)
        return self._judge_all(original, candidate, plan.cost)

    def _run_all(
        self,
        original: "ModelFile",
        candidate: "ModelFile",
        asked: "Sequence[tuple[Choice, bool]]",
        how: Mapping[str, Any],
    ) -> "Plan":
        """Fill `_rounds`; raises Settled where no provider ran both models."""
        from .judging import record_of
        from .records import worst
        from .rounds import common, run_round
        from .running import samples_for

        plans: list[Plan] = []

        def plan(provider: "Provider") -> "Plan":
            if not plans:
                plans.append(samples_for(original, provider, **how))
                self._ran = plans[0].samples
                self._warnings.extend(plans[0].notes)
            return plans[0]

        for choice, needed in asked:
            made = run_round(choice, original, candidate, self._settings, plan)
            if made.not_loaded and not needed:
                self._warnings.append(f"Left out, although 'all' was asked: {made.not_loaded}.")
            else:
                self._rounds.append(made)
        if any(each.provided is not None for each in self._rounds):
            self._ran = common(self._rounds)
        for each in self._rounds:
            if each.provided is not None:
                self._warnings.extend([*each.provided.warnings, *each.notes])
        ends = [each.ended for each in self._rounds if each.ended is not None]
        if len(ends) == len(self._rounds):
            self._records = [record_of(each, each.ended, None, candidate.model) for each in self._rounds if each.ended]
            raise Settled(*worst(self._records))
        if not self._ran:
            raise Settled(Verdict.INCONCLUSIVE, "no sample runs on every provider")
        return plans[0]

    def _judge_all(self, original: "ModelFile", candidate: "ModelFile", cost: "Cost") -> "Judgement":
        """Gate 3 on every provider; what each did goes into `_records`, the worst of their verdicts is returned."""
        from .figures import Judgement
        from .judging import Gate3, NoJudge, judge_round, record_of
        from .records import worst

        names = [value.name for value in original.model.graph.output]
        provided = [each.provided for each in self._rounds if each.provided is not None]
        gate, reason = None, ""
        try:
            gate = Gate3(original, candidate, self._settings, self._ran, cost, provided)
            if not provided:
                found = gate(None)
                self._warnings.extend([*found.warnings, *gate.far()])
                return found
            judged = {id(each): judge_round(each, gate, names, "") for each in self._rounds if each.provided}
        except NoJudge as error:
            if not provided:
                raise Settled(Verdict.INCONCLUSIVE, f"no provider ran, and no judge could: {error}") from error
            gate, reason = None, str(error).rstrip(".")
            judged = {id(each): judge_round(each, None, names, reason) for each in self._rounds if each.provided}
        first: Judgement | None = None
        for each in self._rounds:
            found, deployed = judged.get(id(each), (each.ended, None))
            assert found is not None
            self._records.append(record_of(each, found, deployed, candidate.model))
            if isinstance(found, Judgement):
                first = first or found
                self._warnings.extend(warning for warning in found.warnings if warning not in self._warnings)
            if deployed is not None and not deployed.decides:
                self._warnings.append(f"{each.choice.short}: {deployed.sentence}.")
        if gate is not None:
            self._warnings.extend(gate.far())
        verdict, sentence = worst(self._records)
        if first is None:
            raise Settled(verdict, sentence)
        return replace(first, verdict=verdict, sentence=sentence)

    def _local(self, original: "ModelFile", candidate: "ModelFile", judgement: "Judgement") -> tuple[Verdict, str]:
        """Gate 2: the verdict and the sentence, with the region to blame in it."""
        from .locate import located

        ran = next((each.choice for each in self._rounds if each.provided is not None), None)
        if ran is None:
            return judgement.verdict, judgement.sentence
        gate1 = self._settings.certificate if self._pair is None else self._pair
        proven = gate1 is not None and gate1.passed and (self._pair is None or self._pair.decided)
        self._gate2, verdict, sentence = located(
            original, candidate, self._ran, self._settings, judgement, ran, proven=proven
        )
        return verdict, sentence

    def _with_gate1(self, verdict: Verdict, sentence: str) -> tuple[Verdict, str]:
        """What a wrong layer, found by matching the files, does to the verdict of gate 3.

        It names the place where gate 3 found a difference. Against a pass it stands only if it is certain: then the
        layer computes something else, and what follows it hides that from these inputs.
        """
        fault = None if self._pair is None else self._pair.fault()
        if self._pair is None or fault is None:
            return verdict, sentence
        if verdict in (Verdict.NOT_EQUIVALENT, Verdict.DEGRADED):
            return verdict, f"{sentence.rstrip('.')}; {fault}"
        if not self._pair.certain:
            return verdict, sentence
        if verdict is Verdict.INCONCLUSIVE:
            return Verdict.NOT_EQUIVALENT, f"{fault}; running the models decided nothing: {sentence}"
        return Verdict.NOT_EQUIVALENT, f"{fault}; the outputs of these inputs do not show it"

    def _result(self, verdict: Verdict, sentence: str, judgement: "Judgement | None" = None) -> CheckResult:
        reasons = judgement.counted if judgement is not None else ["not judged"] * len(self._ran)
        verdict, sentence = self._with_gate1(verdict, sentence)
        records = tuple(
            SampleRecord(sample.kind, sample.shapes, not reason, reason)
            for sample, reason in zip(self._ran, reasons, strict=True)
        )
        return CheckResult(
            verdict,
            sentence,
            self._settings.certificate if self._pair is None else self._pair,
            {} if judgement is None else judgement.figures,
            ", ".join(record.title for record in self._records if record.version) or None,
            records,
            self._settings.seed,
            tuple(self._warnings),
            self._flipped,
            tuple(self._records),
            self._gate2,
        )


def _alone(settings: Settings) -> tuple[Verdict, str]:
    """What a certificate that passed is worth when nothing is run."""
    if settings.integers:
        return (
            Verdict.INCONCLUSIVE,
            f"gate 1 passed, but only running both models can tell whether {settings.integers[0]!r} stays",
        )
    return Verdict.EQUIVALENT, "by gate 1 alone: what was folded is correctly rounded; nothing was run"
