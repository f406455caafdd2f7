# torch leaves parts of its interface untyped: what comes from there is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""What a fold did to a skeleton, said of the program: calls that are gone, operands that changed, sums that came in.

The engine keeps the names of nodes: a node that is missing was removed, one with another constant was edited.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from glob import escape

import onnx
from torch.fx import GraphModule, Node

from .. import sources
from ..fold import fold_leaving
from ..graph import Graph
from ..graph import Node as GraphNode
from ..reasons import Reason, Refusal
from ..report import FoldReport, Kept
from ..result import FoldResult
from .aten import is_norm
from .skeleton import Constant, Skeleton


@dataclass(frozen=True, slots=True)
class Edit:
    """The operand `slot` of a call is now the constant `value`; `was`: what it had been, None: it had none."""

    title: str
    slot: int
    value: onnx.TensorProto
    was: Constant | None


@dataclass(frozen=True, slots=True)
class Inserted:
    """A sum with the constant `value` right after a call (or, `source`, in place of one)."""

    title: str
    value: onnx.TensorProto


@dataclass(frozen=True, slots=True)
class Outcome:
    """Titles are those of the skeleton's nodes. `attributes`: numbers of a call that changed."""

    removed: frozenset[str]
    edits: tuple[Edit, ...]
    inserted: tuple[Inserted, ...]
    attributes: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Sides:
    """The original's skeleton, the folded one's, and the folded model under the names of the original."""

    original: Skeleton
    candidate: Skeleton
    model: onnx.ModelProto


@dataclass(frozen=True, slots=True)
class Folded:
    """A fold that can be expressed, and the report of it. `skeleton`: what was folded."""

    skeleton: Skeleton
    result: FoldResult
    outcome: Outcome
    report: FoldReport

    def sides(self, after: Skeleton) -> Sides:
        """The two graphs that gate 2 compares; `after`: the skeleton of what was made."""
        return Sides(self.skeleton, after, self.result.model if self.result.changed else self.skeleton.model)


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Something that the form of the result cannot express, at the node called `title`."""

    title: str
    sentence: str
    slot: int | None = None


def search(
    skeleton: Skeleton,
    *,
    skip: Sequence[str],
    only: Sequence[str],
    express: Callable[[Outcome], Sequence[Obstacle]],
    hint: str,
    refused: Mapping[str, str] | None = None,
) -> Folded:
    """Fold until nothing is left that `express` objects to: what led to it stays, for the reason that it gives.

    refused: sources that stay in any case, and the sentence that says why.
    """
    left: dict[str, str] = {}
    normal: set[str] = set()  # what is left is not read, so that it stays unknown there whether it is a normalization
    while True:
        result = _folded(skeleton, (*skip, *map(escape, left)), only)
        normal.update(name for each in result.report.folded if each.is_normalization for name in each.nodes)
        if refused and not left:
            left.update(refused)
            continue
        outcome = _outcome(skeleton, result)
        obstacles = express(outcome)
        new = {source: o.sentence for o in obstacles for source in _sources(result, o)} if obstacles else {}
        new = {source: sentence for source, sentence in new.items() if source not in left}
        if not obstacles:
            return Folded(skeleton, result, outcome, _with_hidden(_told(result.report, left, normal, hint), skeleton))
        if not new:  # it cannot be traced to one: none is folded
            new = {r.node.name: o.sentence for r in result.records for o in obstacles[:1]}
        left.update(new)


def _folded(skeleton: Skeleton, skip: Sequence[str], only: Sequence[str]) -> FoldResult:
    def read(graph: Graph, node: GraphNode) -> sources.Source | Refusal:
        for each in graph.nodes:  # what ONNX keeps as a float32 attribute is a float64 number here
            each.attributes.update(skeleton.exact.get(each.name, {}))
        return sources.read(graph, node)

    return fold_leaving(skeleton.model, None, skip=skip, only=only, max_growth=_any_growth, read=read)


def _any_growth(_: int) -> int:
    return 1 << 62  # a module has no file to keep small; what is told apart here may be the same tensor in the end


def _outcome(skeleton: Skeleton, result: FoldResult) -> Outcome:
    if not result.changed:
        return Outcome(frozenset(), (), (), {})
    before = {node.name: node for node in skeleton.model.graph.node}
    after = {node.name: node for node in result.model.graph.node}
    held = {t.name: t for t in result.model.graph.initializer}
    old = {t.name: t for t in skeleton.model.graph.initializer}
    edits: list[Edit] = []
    inserted: list[Inserted] = []
    made = {out: node.name for node in result.model.graph.node for out in node.output}
    for title, node in after.items():
        was = before.get(title)
        if was is None:
            inserted.append(Inserted(made[node.input[0]], held[node.input[1]]))
            continue
        for slot, name in enumerate(node.input):
            mine = was.input[slot] if slot < len(was.input) else ""
            if name in held and (mine not in old or held[name].raw_data != old[mine].raw_data):
                edits.append(Edit(title, slot, held[name], skeleton.constants.get(mine)))
    attributes: dict[str, dict[str, float]] = {}
    for record in result.records:
        for node, values in record.plan.attributes.items():
            if node.name in after:
                attributes.setdefault(node.name, {}).update({k: float(v) for k, v in values.items()})
    return Outcome(frozenset(before.keys() - after.keys()), tuple(edits), tuple(inserted), attributes)


def _sources(result: FoldResult, obstacle: Obstacle) -> list[str]:
    """The sources whose fold had to do with the place."""
    found: list[str] = []
    for record in result.records:
        plan = record.plan
        names = {record.node.name, *(n.name for n in plan.vanished), *(n.name for n in plan.added)}
        names |= {n.name for n in plan.attributes} | {n.name for n in plan.became}
        names |= {n.name for n, slot in plan.edits if obstacle.slot is None or slot == obstacle.slot}
        if obstacle.title in names:
            found.append(record.node.name)
    return found


def _told(report: FoldReport, left: Mapping[str, str], normal: set[str], hint: str) -> FoldReport:
    def of(kept: Kept) -> Kept:
        sentences = [left[name] for name in kept.nodes if name in left]
        if kept.reason != Reason.SKIPPED or not sentences:
            return kept
        known = kept.is_normalization or not normal.isdisjoint(kept.nodes)
        return kept._replace(reason=Reason.CONFLICT.value, message=sentences[0], hint=hint, is_normalization=known)

    return replace(report, kept=tuple(map(of, report.kept)))


def _with_hidden(report: FoldReport, skeleton: Skeleton) -> FoldReport:
    """Normalizations in graphs inside the graph, of torch.cond or an autocast region, are left and said to be so."""
    found: list[Kept] = []
    for path, inner in skeleton.program.graph_module.named_modules():
        if path and isinstance(inner, GraphModule):
            found += [_hidden(node, path) for node in inner.graph.nodes if node.op == "call_function" and is_norm(node)]
    if not found:
        return report
    return replace(
        report,
        kept=(*report.kept, *found),
        sources=report.sources + len(found),
        batch_normalizations=report.batch_normalizations + len(found),
    )


def _hidden(node: Node, path: str) -> Kept:
    return Kept(
        (f"{path}.{node.name}",), "BatchNormalization", Reason.UNKNOWN_OP.value, path,
        "It is inside a region of its own in the exported graph (torch.cond, torch.autocast), which is left as it is.",
        "Fold without autocast, and convert the folded module to the smaller type.", (), True,
    )  # fmt: skip


def runtime_input(node: onnx.NodeProto, constants: Mapping[str, Constant]) -> str:
    """The value that a removed node gave on."""
    return next(name for name in node.input if name and name not in constants)


def digest(model: onnx.ModelProto) -> dict[str, bytes]:
    """`digests` of the outputs, by position."""
    known = digests(model)
    return {str(k): known[info.name] for k, info in enumerate(model.graph.output)}


def digests(model: onnx.ModelProto) -> dict[str, bytes]:
    """For each value of a graph a number that is the same in graphs that compute it by the same ops, attributes and
    constants, whatever their names are."""
    known: dict[str, bytes] = {"": b"none"}
    for position, info in enumerate(model.graph.input):
        known[info.name] = f"input {position}".encode()
    for tensor in model.graph.initializer:
        found = hashlib.blake2b(f"{tensor.data_type} {list(tensor.dims)}".encode(), digest_size=16)
        found.update(tensor.raw_data)
        known[tensor.name] = found.digest()
    for node in model.graph.node:
        names = [known[name] for name in node.input]
        while names and names[-1] == b"none":
            names.pop()
        held = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
        found = hashlib.blake2b(repr((node.domain, node.op_type, names, held)).encode(), digest_size=16)
        for k, out in enumerate(node.output):
            known[out] = found.digest() + str(k).encode()
    return known


def same_values(model: onnx.ModelProto, other: onnx.ModelProto) -> set[tuple[str, str]]:
    """Names of the same value in two graphs that compute the same: inputs, what nodes make, and the constants that
    they read. A constant of one may be several of the other."""
    mine, theirs = digests(model), digests(other)
    found = {(a.name, b.name) for a, b in zip(model.graph.input, other.graph.input, strict=True)}
    waiting: dict[bytes, list[onnx.NodeProto]] = {}
    for node in other.graph.node:
        waiting.setdefault(theirs[node.output[0]], []).append(node)
    constants = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        twin = waiting[mine[node.output[0]]].pop(0)
        found.update(zip(node.output, twin.output, strict=True))
        found.update((a, b) for a, b in zip(node.input, twin.input, strict=False) if a in constants)
    return found
