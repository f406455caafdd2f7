"""`fold` and `explain`: the way of the data, and which word ends it.

destination -> fold -> candidate beside the target -> check that very file -> move it into place | remove it
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import files, receipt
from ..errors import UsageError
from ..files.names import sidecar_of
from ..report.text import explanation, fold_table
from ..weights import OutOfRange
from .documents import explained, folded_of, result_dict, source_dict, that_stay
from .options import destination
from .output import Console, Step, width
from .settings import Checking, Selection, Writing
from .signals import raise_received

if TYPE_CHECKING:
    from ..check.verdict import CheckResult
    from ..fold import FoldResult


def run(
    model: Path,
    selection: Selection,
    checking: Checking,
    writing: Writing,
    console: Console,
    target: Path | None = None,
) -> int:
    """`bnfold fold`: returns the exit code. target: where the result goes, if that is settled already."""
    if target is None:
        out, force = writing.out, writing.force
        target = destination(model, out, in_place=writing.in_place, dry_run=writing.dry_run, force=force)
    if target is not None:
        files.format_of(target)  # an extension that cannot be written is refused before any work
    console.clear_of(model, target, None if target is None else target.with_name(target.name + ".data"))
    arguments = checking.arguments()
    with console.progress(4) as step:

        def attempt(made: FoldResult) -> tuple[CheckResult | None, list[Path], str]:
            return _check_and_write(made, target, checking, arguments, writing, selection, step)

        drift = None
        if writing.max_drift is not None:
            from .stats import gate

            drift = gate(model, checking, writing.max_drift)
            if drift.code:
                return drift.refused(console)
        step("folding")
        leave: dict[str, str] | None = {} if checking.wanted else None
        late = target is not None
        result = _fold(model, selection, leave, late=late)
        digest = result.source.sha256 if console.documents else ""
        if target is not None:
            _stands_clear(target, result, writing)
        while True:
            try:
                check, written, accepted = attempt(result)
            except OutOfRange:  # a weight that is huge, infinite or NaN: look at all of them before anything is folded
                late = False
            else:
                if check is None or not check.flipped or written:
                    break
                leave = {**(leave or {}), **check.flipped}  # what is rounded right behind a fold must not change
            step("folding")
            result = _fold(model, selection, leave, late=late)
        if writing.rescue and check is not None and check.exit_code == 1 and not written:
            step("rescuing")
            saved = _rescued(model, result, check, selection, leave, arguments)
            if saved is not None:
                result = saved
                check, written, accepted = attempt(result)
    left = len(result.report.unfolded)
    code = check.exit_code if check is not None else 0
    if code == 0 and writing.fail_on_unfolded and left:
        code = 1
    console.say(fold_table(result.report, verbose=console.verbose, width=width()))
    notes = _notes(result, written, writing)
    if drift is not None:
        notes.append(f"Statistics {drift.word.lower()}: {drift.sentence}")
    if notes:
        console.say("\n".join(f"note: {note}" for note in notes))
    if check is not None:
        console.say("\n" + "\n".join(str(check).splitlines()[:-1]))
    console.say("")
    word, sentence = _verdict(result, check, written, accepted, writing)
    return console.finish(
        "fold",
        word,
        sentence,
        code,
        lambda: {
            "source": source_dict(result.source, digest, result.report.opset, result.report.nodes_before),
            "result": result_dict(
                written, result.report.opset, result.report.nodes_after, identical=not result.changed
            ),
            **result.report.to_dict(),
            "check": None if check is None else check.to_dict(),
            **({} if drift is None else {"statistics": drift.found.to_dict()}),
        },
    )


def _rescued(
    model: Path,
    result: FoldResult,
    check: CheckResult,
    selection: Selection,
    leave: Mapping[str, str] | None,
    arguments: dict[str, Any],
) -> FoldResult | None:
    from ..rescue import noted, rescue

    def fold(left_out: Sequence[str]) -> FoldResult:
        return _fold(model, selection._replace(skip=(*selection.skip, *left_out)), leave)

    def judge(made: FoldResult) -> CheckResult:
        return made.check(**arguments)

    saved = rescue(result, check, fold, judge)
    return None if saved is None else noted(saved, check)


def run_explain(model: Path, selection: Selection, console: Console) -> int:
    """`bnfold explain`: returns the exit code."""
    console.clear_of(model)
    with console.progress(1) as step:
        step("folding")
        result = _fold(model, selection, {})
    report = result.report
    console.say(explanation(report, width=width()))
    console.say("")

    def parts() -> dict[str, Any]:
        source = source_dict(result.source, result.source.sha256, report.opset, report.nodes_before)
        return {"source": source, "result": None, **report.to_dict(), "check": None}

    return console.finish("explain", *explained(report, model), 0, parts)


def _fold(model: Path, selection: Selection, leave: Mapping[str, str] | None, *, late: bool = False) -> FoldResult:
    from ..fold import fold_leaving

    growth = selection.max_growth
    return fold_leaving(
        model,
        leave,
        skip=selection.skip,
        only=selection.only,
        freeze_inputs=selection.freeze_inputs,
        keep_inputs=selection.keep_inputs,
        max_growth=None if growth is None else growth.of,
        aggressive=selection.aggressive,
        partial=selection.partial,
        late=late,
    )


def _stands_clear(target: Path, result: FoldResult, writing: Writing) -> None:
    """Refuse when the data file that may go beside `target` would overwrite the input, or anything without --force."""
    data = target.with_name(target.name + ".data")
    ours = [result.source.path, *(() if writing.in_place else result.source.data.values())]
    if data.exists() and any(path is not None and path.exists() and data.samefile(path) for path in ours):
        raise UsageError(f"{data}, where external data would go, belongs to the model itself; choose another --output.")
    if result.changed and result.source.data and os.path.lexists(data) and not (writing.force or writing.in_place):
        raise UsageError(f"{data} exists; --force overwrites it, --output chooses another name.")
    beside = sidecar_of(target)
    if writing.keep_statistics and os.path.lexists(beside) and not (writing.force or writing.in_place):
        raise UsageError(f"{beside}, where the statistics would be kept, exists; --force overwrites it.")


def _check_and_write(
    result: FoldResult,
    target: Path | None,
    checking: Checking,
    arguments: dict[str, Any],
    writing: Writing,
    selection: Selection,
    step: Step,
) -> tuple[CheckResult | None, list[Path], str]:
    """The check, the files written, and the --accept that let them be written ("" if none was needed)."""
    if not result.changed:
        step("writing")
        if target is None or writing.in_place:
            return None, [], ""
        raise_received()
        return None, files.copy(result.source, target, overwrite=writing.force), ""
    if target is None:
        step("checking")
        return (result.check(**arguments) if checking.wanted else None), [], ""
    with files.Staging(target, keep_mode_of=target if writing.in_place else None) as stage:
        step("writing")
        result.save(stage.path)
        step("checking")
        check = result.check(path=stage.path, **arguments) if checking.wanted else None
        accepted = writing.accepts(check)
        if accepted is not None and writing.receipt:
            receipt.write(stage.path, result.source.sha256, result.report, check)
        if accepted is not None and writing.keep_statistics:
            from .. import sidecar

            sidecar.write(stage.path, result.source, selection.to_dict(), name=writing.source_name)
        raise_received()
        written = [] if accepted is None else stage.commit()
        return check, [path for path in written if path != sidecar_of(target)], accepted or ""


def _notes(result: FoldResult, written: Sequence[Path], writing: Writing) -> list[str]:
    notes: list[str] = []
    if result.changed and len(written) > 1 and not result.source.data:
        notes.append(f"The model passes protobuf's limit of 2 GiB; its weights went to {written[1]}.")
    if result.changed and writing.in_place and written:
        idle = [str(path) for path in result.source.data.values() if path not in written]
        if idle:
            notes.append(f"{written[0].name} no longer uses {', '.join(idle)}.")
    if result.changed and writing.keep_statistics and written:
        beside = sidecar_of(written[0])
        size = beside.stat().st_size
        notes.append(f"{beside} ({size} bytes) keeps what was folded: bnfold unfold {written[0].name} gives it back.")
    return notes


def _verdict(
    result: FoldResult,
    check: CheckResult | None,
    written: Sequence[Path],
    accepted: str,
    writing: Writing,
) -> tuple[str, str]:
    report = result.report
    where = f"wrote {written[0]}" if written else "nothing was written"
    stays = that_stay(report)
    failed = bool(writing.fail_on_unfolded and report.unfolded)
    if not result.changed:
        same = f"{where}, an identical copy" if written else where
        why = "the model holds no BatchNormalization" if not report.batch_normalizations else "every source stays"
        return ("UNFOLDED", f"{stays}; {same}.") if failed else ("NOTHING TO FOLD", f"{why}; {same}.")
    folded = f"{folded_of(report)} folded"
    if check is None:
        return ("UNFOLDED", f"{stays}; not checked; {where}.") if failed else ("NOT CHECKED", f"{folded}; {where}.")
    word, sentence = check.verdict.name, check.sentence.rstrip(".")
    if check:
        return ("UNFOLDED", f"{stays}; {word}; {where}.") if failed else (word, f"{folded}; {where}.")
    if accepted:
        return word, f"{sentence}; {where} all the same (--accept {accepted})."
    if not writing.dry_run and word == "INCONCLUSIVE" and check.certificate is not None and check.certificate.passed:
        return word, f"{sentence}; {where}: --accept certificate would write it, the certificate passed."
    return word, f"{sentence}; {where}."
