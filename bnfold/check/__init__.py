"""The check: are two models the same function, and is the second one computed as well? See numerics in docs/.

    verdict = check("net.onnx", "net.folded.onnx")      # CheckResult, truthy when equivalent

Gate 1 (the certificate) is handed in by the fold; gate 3 runs both models and judges them in float64; gate 2 then looks
at every region in which they differ by itself, and names the one that is wrong.
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
    from .gate2 import Gate2
    from .inputs import Sample

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
    threads: int | None = None,
    exact: Mapping[str, npt.NDArray[Any]] | None = None,
    certificate: Certificate | None = None,
    integers: Sequence[str] = (),
    timeout: float | None = None,
) -> CheckResult:
    """Compare two models, whoever made the second.

    original, candidate: path or onnx.ModelProto; neither is modified. The original's BatchNormalizations must still be
        in it: it is run with graph optimisations disabled.
    samples: how many generated inputs; None lets the model's size decide (1 to 6). seed: of inputs and perturbations.
    inputs: .npz files or mapping from input name to array, one sample each, instead of generated ones.
    shapes: sizes for inputs with free dimensions, {"x": (1, 3, 320, 320)}.
    threads: of onnxruntime; None is its default. timeout: seconds for one run of a model.
    exact: the candidate's initializers in float64 before they were rounded, by name (FoldResult.exact): question (a)
        is then answered at float64's own accuracy.
    certificate: gate 1's result, None when it cannot be asked.
    integers: values inside the models, made by ops that round, that must be the same in both, bit for bit.

    Raises UsageError for inputs or shapes that do not fit the model, UnreadableModel for no model; whatever happens
    while the models run is a verdict.
    """
    settings = Settings(
        samples=samples,
        seed=seed,
        inputs=inputs,
        shapes=shapes,
        threads=threads,
        exact=exact,
        certificate=certificate,
        integers=tuple(integers),
        timeout=timeout,
    )
    return _Check(settings).run(original, candidate)


class _Check:
    """One check under way: what is known so far goes into the result, however it ends."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._flipped: dict[str, str] = {}
        self._provider_name: str | None = None
        self._ran: tuple[Sample, ...] = ()
        self._warnings: list[str] = []
        self._gate2: Gate2 | None = None

    def run(self, original: Source, candidate: Source) -> CheckResult:
        from .running import opened

        first = opened(original)
        second = opened(candidate, first.directory)
        try:
            if self._settings.certificate is not None and not self._settings.certificate.passed:
                raise Settled(Verdict.NOT_EQUIVALENT, self._settings.certificate.sentence)
            judgement = self._gate3(first, second)
        except Settled as end:
            return self._result(end.verdict, end.sentence)
        except MemoryError:
            return self._result(Verdict.INCONCLUSIVE, "judging it in float64 needs more memory than there is")
        self._warnings.extend(judgement.warnings)
        verdict, sentence = self._local(first, second, judgement)
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
        }  # fmt: skip
        limit = {} if wanted.timeout is None else {"timeout": wanted.timeout}
        try:
            with Provider(threads=wanted.threads, **limit) as provider:
                self._provider_name = f"onnxruntime {provider.version} CPU"
                load_original(provider, original)
                plan = samples_for(original, provider, **asked)
                self._ran = plan.samples
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
        try:
            return self._judged(original, candidate, plan.cost, provided)
        except _NoJudge as error:
            if provided is None:
                raise Settled(Verdict.INCONCLUSIVE, f"no provider ran, and no judge could: {error}") from error
            names = [value.name for value in original.model.graph.output]
            return provider_only(names, provided, str(error).rstrip("."))

    def _local(self, original: "ModelFile", candidate: "ModelFile", judgement: "Judgement") -> tuple[Verdict, str]:
        """Gate 2: the verdict and the sentence, with the region to blame in it."""
        from .locate import located

        if self._provider_name is None:
            return judgement.verdict, judgement.sentence
        self._gate2, verdict, sentence = located(original, candidate, self._ran, self._settings, judgement)
        return verdict, sentence

    def _judged(self, original: "ModelFile", candidate: "ModelFile", cost: Any, provided: Any) -> "Judgement":
        from bnfold.reference import EvaluationError

        from .cost import available_memory, require_memory
        from .gate3 import judge_pair
        from .judge import Judge
        from .rounding import unit_roundoff
        from .steps import jumps_inside

        kept = 8 if provided is None else 8 * sum(value.size for value in provided.original[0].values())
        require_memory(cost, kept * len(self._ran) * 6, available_memory())
        u = unit_roundoff(original.model)
        heavy = len(self._ran) == 1 and cost.seconds > 1
        try:
            return judge_pair(
                Judge(original, candidate, self._settings.exact, self._ran),
                provided,
                samples=len(self._ran),
                draws=1 if heavy and self._settings.exact is not None else 3,
                seed=self._settings.seed,
                u=u,
                c=2.0 if u <= 2.0**-24 else 3.0,
                jumps=jumps_inside(original.model.graph),
            )
        except (UnsupportedOp, EvaluationError) as error:
            raise _NoJudge(str(error)) from error

    def _result(self, verdict: Verdict, sentence: str, judgement: "Judgement | None" = None) -> CheckResult:
        reasons = judgement.counted if judgement is not None else ["not judged"] * len(self._ran)
        records = tuple(
            SampleRecord(sample.kind, sample.shapes, not reason, reason)
            for sample, reason in zip(self._ran, reasons, strict=True)
        )
        return CheckResult(
            verdict,
            sentence,
            self._settings.certificate,
            {} if judgement is None else judgement.figures,
            self._provider_name,
            records,
            self._settings.seed,
            tuple(self._warnings),
            self._flipped,
            self._gate2,
        )


class _NoJudge(Exception):
    """The float64 judge cannot evaluate one of the models."""
