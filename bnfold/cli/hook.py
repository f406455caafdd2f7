"""`hook`: what a pre-commit hook can tell in a moment, gate 1 alone, about many files at once.

net.onnx          nothing in it would fold            net.folded.onnx beside net.onnx    is the fold of it
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from ..errors import BnfoldError
from ..files.names import fold_beside, source_of

_NAMES = 3  # nodes named before "and n more"


def run_hook(models: Sequence[Path]) -> int:
    """`bnfold hook`: returns the exit code, the worst of all files."""
    code = 0
    for original, candidate in _subjects(models):
        try:
            sentence, failed = _pair(original, candidate) if candidate is not None else _alone(original)
        except BnfoldError as error:
            text = str(error) if str(original) in str(error) else f"{original}: {error}"
            click.echo(text)
            code = max(code, error.exit_code)
            continue
        if sentence:
            click.echo(sentence)
        code = max(code, int(failed))
    return code


def _subjects(models: Sequence[Path]) -> Iterator[tuple[Path, Path | None]]:
    """Each model alone, or with its fold: once, whichever of the two was named."""
    seen: set[tuple[Path, Path | None]] = set()
    for model in models:
        source = source_of(model)
        pair = (source, model) if source is not None else (model, fold_beside(model))
        if pair not in seen:
            seen.add(pair)
            yield pair


def _alone(model: Path) -> tuple[str, bool]:
    from ..fold import fold

    nodes = [each.nodes[0] for each in fold(model).report.folded if each.is_normalization]
    if not nodes:
        return "", False
    more = f" and {len(nodes) - _NAMES} more" if len(nodes) > _NAMES else ""
    many = "1 normalization" if len(nodes) == 1 else f"{len(nodes)} normalizations"
    names = " ".join(f"{', '.join(nodes[:_NAMES])}{more}".split())
    return f"{model}: {many} would fold ({names}); fold it with: bnfold {model}", True


def _pair(original: Path, candidate: Path) -> tuple[str, bool]:
    from ..check import check

    result = check(original, candidate, certificate_only=True)
    if result:
        return "", False
    passed = result.certificate is not None and result.certificate.passed
    return f"{candidate}: {' '.join(str(result.verdict).split())}: {result.sentence.rstrip('.')}.", not passed
