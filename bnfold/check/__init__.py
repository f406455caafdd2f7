"""The check: are two models the same function, and is the second one computed as well? See numerics in docs/.

    verdict = check("net.onnx", "net.folded.onnx")      # CheckResult, truthy when equivalent

Gate 1 (the certificate) is handed in by the fold, or found by matching the two files; gate 3 runs both models and
judges them in float64.
"""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import onnx

from bnfold.errors import UnsupportedOp

from .settings import Settings
from .verdict import Certificate, CheckResult, SampleRecord, Settled, Verdict

if TYPE_CHECKING:
    from bnfold.files import ModelFile

    from .figures import Judgement
    from .inputs import Sample
    from .pairs import PairCertificate

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
) -> CheckResult:
    """Compare two models, whoever made the second.

    original, candidate: path or onnx.ModelProto; neither is modified. The original's BatchNormalizations must still be
        in it: it is run with graph optimisations disabled.
    samples: how many generated inputs; None lets the model's size decide (1 to 6). seed: of inputs and perturbations.
    inputs: .npz files or mappings from input name to array, each one sample or many, instead of generated ones.
    shapes: sizes for inputs with free dimensions, {"x": (1, 3, 320, 320)}.
    ranges: {"x": (0, 255)}: generated values of that input lie in [0, 255], both ends included.
    calibrated: rescale the generated inputs so that the first BatchNormalizations see their own statistics.
    threads: of onnxruntime; None is its default. timeout: seconds for one run of a model.
    exact: the candidate's initializers in float64 before they were rounded, by name (FoldResult.exact): question (a)
        is then answered at float64's own accuracy.
    certificate: gate 1's result; None: the layers of the two files are matched, whoever made the candidate.
    certificate_only: let gate 1 decide alone; nothing is run. Without `certificate` the original is folded again, and a
        candidate that is no such fold is INCONCLUSIVE.
    integers: values inside the models, made by ops that round, that must be the same in both, bit for bit.

    Raises UsageError for inputs or shapes that do not fit the model, UnreadableModel for no model; whatever happens
    while the models run is a verdict.
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
    )
    return _Check(settings).run(original, candidate)


class _Check:
    """One check under way: what is known so far goes into the result, however it ends."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pair: PairCertificate | None = None
        self._flipped: dict[str, str] = {}
        self._provider_name: str | None = None
        self._ran: tuple[Sample, ...] = ()
        self._warnings: list[str] = []

    def run(self, original: Source, candidate: Source) -> CheckResult:
        from .running import opened

        if self._settings.certificate_only and self._settings.certificate is None:
            from .refold import by_certificate

            return by_certificate(original, candidate)
        first = opened(original)
        second = opened(candidate, first.directory)
        try:
            if self._settings.certificate is not None and not self._settings.certificate.passed:
                raise Settled(Verdict.NOT_EQUIVALENT, self._settings.certificate.sentence)
            if self._settings.certificate_only:
                raise Settled(*_alone(self._settings))
            if self._settings.certificate is None:
                from .pairs import certify_pair

                self._pair = certify_pair(first, second)
            judgement = self._gate3(first, second)
        except Settled as end:
            return self._result(end.verdict, end.sentence)
        except MemoryError:
            return self._result(Verdict.INCONCLUSIVE, "judging it in float64 needs more memory than there is")
        self._warnings.extend(judgement.warnings)
        verdict, sentence = judgement.verdict, judgement.sentence
        if self._settings.integers and verdict is not Verdict.INCONCLUSIVE:
            from .integers import changed

            self._flipped = changed(
                first, second, self._settings.integers, self._ran, provider=self._provider_name is not None
            )
            if self._flipped and verdict.passed:
                name, what = next(iter(self._flipped.items()))
                verdict, sentence = Verdict.DEGRADED, f"the same function, but {name!r} is rounded: {what.rstrip('.')}"
        return self._result(verdict, sentence, judgement)

    def _gate3(self, original: "ModelFile", candidate: "ModelFile") -> "Judgement":
        from .providers import NoProvider, Provider
        from .running import comparable_outputs, load_original, run_pair, same_interface, samples_for
        from .tolerance import provider_only

        self._warnings.extend(same_interface(original.model, candidate.model))
        comparable_outputs(original.model)
        wanted = self._settings
        asked: dict[str, Any] = {
            "samples": wanted.samples, "seed": wanted.seed, "inputs": wanted.inputs, "shapes": wanted.shapes,
            "ranges": wanted.ranges, "calibrated": wanted.calibrated,
        }  # fmt: skip
        limit = {} if wanted.timeout is None else {"timeout": wanted.timeout}
        try:
            with Provider(threads=wanted.threads, **limit) as provider:
                self._provider_name = f"onnxruntime {provider.version} CPU"
                load_original(provider, original)
                plan = samples_for(original, provider, **asked)
                self._ran = plan.samples
                self._warnings.extend(plan.notes)
                provided = run_pair(provider, plan.samples, candidate)
            self._ran = provided.samples
            self._warnings.extend(provided.warnings)
        except NoProvider as error:
            self._warnings.append(f"No provider ran: {error}.")
            provided = None
            try:
                plan = samples_for(original, None, **asked)
            except UnsupportedOp as lacking:
                raise Settled(Verdict.INCONCLUSIVE, f"no provider ran, and no judge could: {lacking}") from lacking
            self._ran = plan.samples
            self._warnings.extend(plan.notes)
        try:
            return self._judged(original, candidate, plan.cost, provided)
        except _NoJudge as error:
            if provided is None:
                raise Settled(Verdict.INCONCLUSIVE, f"no provider ran, and no judge could: {error}") from error
            names = [value.name for value in original.model.graph.output]
            return provider_only(names, provided, str(error).rstrip("."))

    def _judged(self, original: "ModelFile", candidate: "ModelFile", cost: Any, provided: Any) -> "Judgement":
        from bnfold.reference import EvaluationError

        from .cost import available_memory, require_memory
        from .gate3 import judge_pair
        from .judge import Judge
        from .rounding import unit_roundoff
        from .statistics import far_from
        from .steps import jumps_inside

        kept = 8 if provided is None else 8 * sum(value.size for value in provided.original[0].values())
        require_memory(cost, kept * len(self._ran) * 6, available_memory())
        u = unit_roundoff(original.model)
        heavy = len(self._ran) == 1 and cost.seconds > 1
        try:
            judge = Judge(original, candidate, self._settings.exact, self._ran)
            judgement = judge_pair(
                judge,
                provided,
                samples=len(self._ran),
                draws=1 if heavy and self._settings.exact is not None else 3,
                seed=self._settings.seed,
                u=u,
                c=2.0 if u <= 2.0**-24 else 3.0,
                jumps=jumps_inside(original.model.graph),
            )
            self._warnings.extend(far_from(judge.moments, self._settings))
            return judgement
        except (UnsupportedOp, EvaluationError) as error:
            raise _NoJudge(str(error)) from error

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
            self._provider_name,
            records,
            self._settings.seed,
            tuple(self._warnings),
            self._flipped,
        )


def _alone(settings: Settings) -> tuple[Verdict, str]:
    """What a certificate that passed is worth when nothing is run."""
    if settings.integers:
        return (
            Verdict.INCONCLUSIVE,
            f"gate 1 passed, but only running both models can tell whether {settings.integers[0]!r} stays",
        )
    return Verdict.EQUIVALENT, "by gate 1 alone: what was folded is correctly rounded; nothing was run"


class _NoJudge(Exception):
    """The float64 judge cannot evaluate one of the models."""
