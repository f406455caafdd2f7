"""`unfold`, and the statistics of models that are folded: the source out of the sidecar, measured or refreshed there.

refresh of a folded model = unfold -> refresh -> fold as before: weights and biases are rounded once
"""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import files, sidecar
from ..errors import UsageError
from .options import destination
from .output import Console

if TYPE_CHECKING:
    from .stats import Measuring


def run_unfold(model: Path, out: Path | None, console: Console, *, force: bool) -> int:
    """`bnfold unfold`: returns the exit code."""
    files.load(model)  # what is no model at all gets the loader's sentence
    found = sidecar.read(model)
    source = found.source[0]
    suffix = Path(source.name).suffix
    if out is None or out.is_dir():
        out = (model.parent if out is None else out) / f"{model.stem}.unfolded{suffix}"
    target = destination(model, out, in_place=False, dry_run=False, force=force)
    assert target is not None, "only a dry run has none"
    if files.format_of(target) != files.format_of(Path(source.name)):
        raise UsageError(
            f"The source is a {suffix or 'binary'} file and comes back as it was; {target} is called otherwise."
        )
    console.clear_of(model, found.path, target, *(target.parent / each.name for each in found.source[1:]))
    with console.progress(1) as step:
        step("unfolding")
        written = sidecar.restore(model, target, force=force)
    sentence = f"{source.name} as it was, sha256 {source.sha256[:12]}…; wrote {', '.join(map(str, written))}."

    def parts() -> dict[str, Any]:
        about = {"path": str(target), "sha256": source.sha256, "bytes": source.size}
        return {"source": None, "result": {**about, "data": [str(path) for path in written[1:]]}, "check": None}

    return console.finish("unfold", "RESTORED", sentence, 0, parts)


@contextmanager
def unfolded(model: Path) -> Generator[Path | None]:
    """The source of a folded model in a temporary folder, while the block lasts; None where no sidecar is beside it."""
    if not sidecar.sidecar_of(model).exists():
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="bnfold-") as folder:
        name = Path(sidecar.read(model).source[0].name).name
        yield sidecar.restore(model, Path(folder) / name)[0]


def refold(
    model: Path, source: Path, measuring: Measuring, target: Path, console: Console, *, force: bool, in_place: bool
) -> int:
    """Refresh the `source` of a folded `model` and fold it to `target` as it was folded before, sidecar and all."""
    from ..stats import refresh
    from .folding import run
    from .settings import Checking, Selection, Writing
    from .stats import parts_of, refreshed, table

    selection = Selection.of(sidecar.read(model).options)
    with console.progress(1) as step:
        step("measuring")
        made = refresh(source, measuring.inputs, **measuring.arguments())
        fresh = source.with_name(f"fresh.{source.name}")
        made.save(fresh)
    console.say("\n".join([*table(made), ""]))
    if not made.layers:
        word, sentence = refreshed(made, made.passes, (), f"{model}, before it was folded, held no BatchNormalization")
        return console.finish("stats refresh", word, sentence, 0, lambda: parts_of(made, []))
    checking = Checking(
        True, measuring.threads, (), {}, 0, None, timeout=measuring.timeout, custom_ops=measuring.custom_ops
    )
    writing = Writing(None, force, in_place, False, frozenset(), False, keep_statistics=True, source_name=source.name)
    return run(fresh, selection, checking, writing, console, target)
