"""The tables that people read: a fold in a few lines however large the model is, an explanation in as many as needed.

Folds of one kind are one line ("Conv <- BatchNormalization x 35"); each normalization that stays has its reason and
what would help; lone Muls and Adds, which are no normalizations, are counted by reason.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from . import Alternative, Folded, FoldReport, Kept

WIDTH = 100  # columns, when the output is not a terminal: the same bytes everywhere
_LISTED = 20  # normalizations that stay, listed one by one unless every one is asked for
_NAMES = 3  # node names in a row before "and n more"


def fold_table(report: FoldReport, *, verbose: bool = False, width: int = WIDTH) -> str:
    """What was folded, what stays and why; `verbose` lists every fold with its path and every source that stays."""
    lines = [*_summary(report, width)]
    if report.folded:
        lines += ["", f"folded  {of_sources(len(report.folded), report.sources)}"]
        lines += _each_fold(report.folded, width) if verbose else _fold_kinds(report.folded)
    normal = report.unfolded
    other = [kept for kept in report.kept if not kept.is_normalization]
    if normal:
        lines += ["", f"kept    {of_sources(len(normal), report.sources)}"]
        lines += _each_kept(normal if verbose else normal[:_LISTED], width, alternatives=verbose)
        if not verbose and len(normal) > _LISTED:
            lines.append(f"  and {len(normal) - _LISTED} more; -v lists them all")
    if other:
        title = f"other affine nodes that stay  {len(other)}  (no normalization: a lone scale, shift or bias)"
        lines += ["", *_wrapped(title, width, 0, 2)]
        lines += _each_kept(other, width, alternatives=True) if verbose else _kept_kinds(other)
    if report.notes:
        lines += ["", *_notes(report.notes, width)]
    return "\n".join(lines)


def explanation(report: FoldReport, *, width: int = WIDTH) -> str:
    """Each source: where its affine goes and through what, or the refusal of every alternative and what would help."""
    lines = [*_summary(report, width)]
    if report.folded:
        lines += ["", f"folds  {of_sources(len(report.folded), report.sources)}", *_each_fold(report.folded, width)]
    for title, kept in (
        ("stays", report.unfolded),
        ("stays, no normalization", [kept for kept in report.kept if not kept.is_normalization]),
    ):
        if kept:
            lines += [
                "",
                f"{title}  {of_sources(len(kept), report.sources)}",
                *_each_kept(kept, width, alternatives=True),
            ]
    if report.notes:
        lines += ["", *_notes(report.notes, width)]
    return "\n".join(lines)


def kind_of(folded: Folded) -> str:
    """One fold as people say it, in the order of the data flow: "Conv <- BatchNormalization"."""
    into = ", ".join(
        op if count == 1 else f"{count} {op}" for op, count in sorted(Counter(t.op for t in folded.into).items())
    )
    if not into:
        return f"{folded.op}, the identity"
    kind = {
        "up": f"{into} <- {folded.op}",
        "down": f"{folded.op} -> {into}",
    }.get(folded.direction, f"{folded.op} <-> {into}")
    return f"{kind}, partly: an Add stays" if folded.partial else kind


def _summary(report: FoldReport, width: int) -> Iterator[str]:
    batch = plural(report.batch_normalizations, "BatchNormalization")
    nodes = f"{report.nodes_before} nodes"
    if report.nodes_after != report.nodes_before:
        nodes += f", {report.nodes_after} after the fold"
    text = f"opset {report.opset}, {nodes}; {batch}, {plural(report.sources, 'affine source')}"
    yield from _wrapped(text, width, 0, 2)
    if report.growth_bytes:
        yield f"the weights grow by {_bytes(report.growth_bytes)}"


def _fold_kinds(folded: Iterable[Folded]) -> list[str]:
    kinds: Counter[tuple[str, str]] = Counter()
    for each in folded:
        kinds[kind_of(each), plural(len(each.through), "node") if each.through else ""] += 1
    rows = [(kind, f"x {count}", f"through {via}" if via else "") for (kind, via), count in kinds.most_common()]
    return _aligned(rows)


def _each_fold(folded: Iterable[Folded], width: int) -> Iterator[str]:
    for each in folded:
        yield from _wrapped(f"{', '.join(each.nodes)}  ({each.op})", width, 2, 6)
        where = ", ".join(f"{target.node} ({target.op})" for target in each.into) or "nothing: it is the identity"
        via = f", through {', '.join(each.through)}" if each.through else ""
        stays = "; an Add of the shift stays" if each.partial else ""
        yield from _wrapped(f"{_DIRECTION[each.direction]} into {where}{via}{stays}", width, 6, 8)


_DIRECTION = {"up": "up", "down": "down", "both": "up and down"}


def _each_kept(kept: Sequence[Kept], width: int, *, alternatives: bool) -> Iterator[str]:
    for index, each in enumerate(kept):
        yield from _wrapped(f"{', '.join(each.nodes)}  ({each.op})", width, 2, 6)
        at = f" at {each.at}" if each.at and each.at not in each.nodes else ""
        tried = list(dict.fromkeys(each.alternatives)) if alternatives else []
        if not any((t.reason, t.at, t.message) == (each.reason, each.at, each.message) for t in tried):
            yield from _wrapped(f"{each.reason}{at}: {each.message}", width, 6, 8)
        for alternative in tried:
            yield from _alternative(alternative, width)
        # runs of sources that stay for one cause would repeat its hint
        last = index + 1 == len(kept) or kept[index + 1].hint != each.hint
        if each.hint and (last or alternatives):
            yield from _wrapped(f"hint: {each.hint}", width, 6, 8)


def _alternative(tried: Alternative, width: int) -> list[str]:
    via = f" through {', '.join(tried.through)}" if tried.through else ""
    at = f" at {tried.at}" if tried.at else ""
    return _wrapped(f"{tried.direction}{via}: {tried.reason}{at}: {tried.message}", width, 6, 8)


def _kept_kinds(kept: Iterable[Kept]) -> list[str]:
    groups: dict[tuple[str, str], list[str]] = {}
    for each in kept:
        groups.setdefault((each.reason, each.op), []).append(each.nodes[0])
    rows: list[tuple[str, str, str]] = []
    for (reason, op), names in sorted(groups.items(), key=lambda group: -len(group[1])):
        more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
        rows.append((f"{op}  {reason}", f"x {len(names)}", ", ".join(names[:_NAMES]) + more))
    return [line if len(line) <= WIDTH else line[: WIDTH - 3] + "..." for line in _aligned(rows)]


def _aligned(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    first = max((len(row[0]) for row in rows), default=0)
    second = max((len(row[1]) for row in rows), default=0)
    return [f"  {row[0]:<{first}}  {row[1]:<{second}}  {row[2]}".rstrip() for row in rows]


def _notes(notes: Iterable[str], width: int) -> Iterator[str]:
    for note in notes:
        yield from _wrapped(f"note: {note}", width, 0, 6)


def _wrapped(text: str, width: int, indent: int, hanging: int) -> list[str]:
    return textwrap.wrap(
        text,
        max(width, 40),
        initial_indent=" " * indent,
        subsequent_indent=" " * hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )


def of_sources(count: int, sources: int) -> str:
    """As in "3 of 4 sources"."""
    return f"{count} of {plural(sources, 'source')}"


def plural(count: int, noun: str) -> str:
    """As in "1 node" and "2 nodes"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _bytes(count: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return plural(count, "byte")
