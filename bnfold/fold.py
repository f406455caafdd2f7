"""sources -> plans -> edits, until nothing changes.

Every source is asked once; one that was refused is asked again only when a fold has changed something that its search
had looked at. A plan is taken only if (nodes, BatchNormalizations) become fewer as a pair, with no more nodes.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from . import rewrite, sources
from .affine import Array
from .errors import UsageError
from .files import ModelFile, copy, load, save
from .functions import inlined
from .gauge import Plan, Reason, Refusal, Search, most_telling
from .graph import Graph, Node, overridable_inputs
from .laws import LAWS
from .report import Alternative, Folded, FoldReport, Kept, Target
from .weights import Tensor, rounded

if TYPE_CHECKING:
    from .check.certificate import CertificateResult
    from .check.verdict import CheckResult

_UNASKED = "it folds only where the check finds the same integers, and none was asked for."
_ROUNDING = frozenset(("Floor", "Ceil", "Round", "QuantizeLinear", "DynamicQuantizeLinear"))
_INTEGERS = frozenset(
    value for name, value in onnx.TensorProto.DataType.items() if name.startswith(("INT", "UINT", "BOOL"))
)
# ops that pass the numbers on as they are: what is rounded behind them is the source's own value
_SELECTING = frozenset(
    """Identity Relu Clip Max Min MaxPool Transpose Reshape Flatten Squeeze Unsqueeze Slice Split Gather Concat Pad
    Dropout Expand Tile DepthToSpace SpaceToDepth""".split()
)
_FREE_GROWTH = 16 << 20  # bytes that clones and grown biases may always add


def fold(
    model: str | os.PathLike[str] | onnx.ModelProto,
    *,
    skip: Sequence[str] = (),
    only: Sequence[str] = (),
    freeze_inputs: bool = False,
    keep_inputs: bool = False,
    max_growth: int | None = None,
    aggressive: bool = False,
    partial: bool = False,
) -> FoldResult:
    """Fold every inference-time BatchNormalization of a model that can be folded exactly. Nothing is written.

    model: a path, or a ModelProto, which is not modified.
    skip, only: glob patterns of node names; a skipped node is left as it is, and `only` leaves all others.
    freeze_inputs: initializers that are also graph inputs are constants, whoever may want to replace them.
    keep_inputs: they are not, even where listing them all is only the exporter's habit.
    max_growth: bytes that clones and grown biases may add; None: the larger of 10 % of the model and 16 MiB.

    aggressive: also where the runtime loses a fusion of its own (Relu before a padded Conv becomes Max).
    partial: where a scale can go and the shift cannot, leave an Add in place of the BatchNormalization.

    A source in front of an op that rounds (Cast to integers, Floor, QuantizeLinear ...) is folded with a note: `check`
    passes it only if the integers there stay the same, bit for bit.

    Raises UnreadableModel, MalformedModel, UnsupportedModel; UsageError for a pattern that matches no source.
    """
    return fold_leaving(
        model,
        {},
        skip=skip,
        only=only,
        freeze_inputs=freeze_inputs,
        keep_inputs=keep_inputs,
        max_growth=max_growth,
        aggressive=aggressive,
        partial=partial,
    )


def fold_leaving(
    model: str | os.PathLike[str] | onnx.ModelProto,
    leave: Mapping[str, str] | None,
    *,
    skip: Sequence[str] = (),
    only: Sequence[str] = (),
    freeze_inputs: bool = False,
    keep_inputs: bool = False,
    max_growth: int | Callable[[int], int] | None = None,
    aggressive: bool = False,
    partial: bool = False,
) -> FoldResult:
    """`fold`, but sources in front of the rounding ops named in `leave` stay, for the reason given there (None: all).

    max_growth: may also be a function of the model's size in bytes.
    """
    source = load(model)
    if max_growth is None:
        limit = max(_FREE_GROWTH, source.total_size // 10)
    else:
        limit = max_growth if isinstance(max_growth, int) else max_growth(source.total_size)
    overridable, frozen = overridable_inputs(source.model, freeze_inputs=freeze_inputs, keep_inputs=keep_inputs)
    opsets = {"" if i.domain == "ai.onnx" else i.domain: i.version for i in source.model.opset_import}
    original, model = onnx.ModelProto(), source.model
    original.CopyFrom(model)
    stored = original
    if model.functions and (flat := inlined(model)) is not None:
        model, stored = flat, onnx.ModelProto()
        stored.CopyFrom(flat)
    main = Graph(model.graph, opsets, source.directory, stored=stored.graph, overridable=overridable)
    folder = _Folder(tuple(skip), tuple(only), limit, leave, aggressive=aggressive, partial=partial)
    graphs = list(_nested(main))
    before = sum(g.size() for g in graphs)
    runs = [run for graph in graphs for run in folder.runs(graph)]
    folder.check_patterns()
    records = {graph: folder.fold(graph) for graph in graphs}
    changed = any(graph.edited or graph.removed for graph in graphs)
    left: list[str] = []
    if changed:
        for graph in reversed(graphs):  # bodies before the graph that may copy the nodes which hold them
            rewrite.release(graph)
            left += rewrite.finish(graph, inputs_too=graph is main and model.ir_version < 4)
    notes = [*source.notes, *folder.notes, *_rounding_notes(folder.rounded)]
    left = [name for name in left if name in frozen]
    if left:
        notes.append(
            f"{len(left)} folded weights left the graph's inputs ({left[0]}, ...): whoever feeds one gets an error, "
            "not a wrong answer."
        )
    report = FoldReport(
        folded=tuple(f for run in runs if (f := run.folded()) is not None),
        kept=(*(k for run in runs for k in run.kept()), *_in_functions(model)),
        sources=0,
        batch_normalizations=sum(1 for run in runs for n in run.nodes if n.op_type == "BatchNormalization"),
        nodes_before=before,
        nodes_after=sum(g.size() for g in graphs),
        opset=opsets.get("", 0),
        growth_bytes=folder.growth,
        notes=tuple(notes),
    )
    report = _counted(report)
    return FoldResult(
        report,
        model,
        ModelFile(original, source.path, source.directory, source.size),
        changed,
        tuple(dict.fromkeys(folder.rounded.values())),
        graphs,
        [record for graph in graphs for record in records[graph]],
    )


def _rounding_notes(rounded: Mapping[str, str]) -> list[str]:
    if not rounded:
        return []
    first, *more = rounded
    many = f"{len(rounded)} folded sources ({first}, ...) stand" if more else f"{first}, which was folded, stands"
    return [f"{many} in front of an op that rounds: the check wants the same integers there, bit for bit."]


def _counted(report: FoldReport) -> FoldReport:
    from dataclasses import replace

    inside = sum(1 for k in report.kept if k.reason == Reason.UNKNOWN_OP and k.at.startswith("function "))
    return replace(
        report,
        sources=len(report.folded) + len(report.kept),
        batch_normalizations=report.batch_normalizations + inside,
    )


def _nested(graph: Graph) -> Iterator[Graph]:
    """The graph and the bodies inside it, in the order in which certificate.py goes through a file."""
    yield graph
    for child in graph.children:
        yield from _nested(child)


def _in_functions(model: onnx.ModelProto) -> Iterator[Kept]:
    """BatchNormalizations in the bodies of model-local functions, which stay."""
    for function in model.functions:
        for proto in function.node:
            if proto.op_type == "BatchNormalization" and proto.domain in ("", "ai.onnx"):
                node = Node(proto, 0.0)
                yield Kept(
                    (node.at,), node.op_type, Reason.UNKNOWN_OP, f"function {function.name}",
                    f"It is inside the model-local function {function.name}.",
                    "Inline it first: onnx.inliner could not, probably because it imports another opset.", (), True,
                )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One source that was folded: the map as it was applied, for the certificate."""

    node: Node
    parameters: tuple[Tensor | None, ...]  # of its inputs, as they were then; None: a computed value
    scale: Array
    shift: Array
    plan: Plan


@dataclass(slots=True, eq=False)
class Run:
    """A maximal run of affine nodes, in order: what people call one normalization."""

    graph: Graph
    nodes: list[Node]
    plans: dict[Node, Plan] = field(default_factory=dict["Node", Plan])
    refusals: dict[Node, Sequence[Refusal]] = field(default_factory=dict["Node", Sequence[Refusal]])
    varies: dict[Node, tuple[bool, bool]] = field(default_factory=dict["Node", tuple[bool, bool]])

    def folded(self) -> Folded | None:
        gone = [n for n in self.nodes if n in self.plans]
        if not gone:
            return None
        plans = [self.plans[n] for n in gone]
        inside = set(self.nodes)
        into = dict.fromkeys(n for p in plans for n in p.into if n not in inside or n not in self.plans)
        through = dict.fromkeys(n for p in plans for n in p.through if n not in inside and n not in into)
        ways = {p.direction for p in plans}
        return Folded(
            tuple(n.at for n in gone),
            " + ".join(n.op_type for n in gone),
            ways.pop() if len(ways) == 1 else "both",
            tuple(Target(n.at, n.op_type) for n in into),
            tuple(n.at for n in through),
            any(p.left is not None for p in plans),
        )

    def kept(self) -> Iterator[Kept]:
        rest = [n for n in self.nodes if n not in self.plans and n in self.refusals]
        if not rest:
            return
        found = [r for n in rest for r in self.refusals[n]]
        main = most_telling(found)
        norm = any(n.op_type == "BatchNormalization" for n in rest)
        flags = [self.varies.get(n, (False, False)) for n in rest]
        norm = norm or (any(s for s, _ in flags) and any(t for _, t in flags))
        yield Kept(
            tuple(n.at for n in rest),
            " + ".join(n.op_type for n in rest),
            main.reason.value,
            main.at,
            main.message,
            main.reason.hint,
            tuple(
                Alternative(leaf.direction, leaf.through, leaf.reason.value, leaf.at, leaf.message)
                for r in found
                if r.direction
                for leaf in (r, *r.because)
            ),
            norm,
        )


class _Folder:
    """The loop over the sources of one graph at a time."""

    def __init__(
        self,
        skip: tuple[str, ...],
        only: tuple[str, ...],
        max_growth: int,
        leave: Mapping[str, str] | None,
        *,
        aggressive: bool,
        partial: bool,
    ) -> None:
        self._aggressive, self._partial = aggressive, partial
        self._skip, self._only, self._max_growth, self._leave = skip, only, max_growth, leave
        self._rounding: dict[Graph, Mapping[str, Node]] = {}
        self.rounded: dict[str, str] = {}  # source -> the value that an op makes by rounding what comes from it
        self._runs: dict[Node, Run] = {}
        self._matched: set[str] = set()
        self.growth = 0
        self.notes: list[str] = []

    def runs(self, graph: Graph) -> list[Run]:
        """The maximal runs of affine nodes of a graph."""
        out: list[Run] = []
        for node in graph.nodes:
            if not sources.is_source(graph, node):
                continue
            for pattern in (*self._skip, *self._only):
                if _matches(node, pattern):
                    self._matched.add(pattern)
            run = self._before(graph, node)
            if run is None:
                run = Run(graph, [])
                out.append(run)
            run.nodes.append(node)
            self._runs[node] = run
        return out

    def _before(self, graph: Graph, node: Node) -> Run | None:
        for name in node.inputs[:2]:
            made = graph.producer(name)
            if made is None or made[0] not in self._runs or name in graph.outputs or name in graph.captured:
                continue
            if len(graph.readers(name)) == 1 and self._runs[made[0]].nodes[-1] is made[0]:
                return self._runs[made[0]]
        return None

    def check_patterns(self) -> None:
        for pattern in (*self._skip, *self._only):
            if pattern not in self._matched:
                names = [n.at for n in self._runs][:3]
                like = f" The model's sources are called {', '.join(names)} ..." if names else ""
                raise UsageError(f"No source of the model is called {pattern!r}.{like}")

    def fold(self, graph: Graph) -> list[Record]:
        mine = [n for n, run in self._runs.items() if run.graph is graph]
        waiting = deque(
            [n for n in mine if n.op_type != "BatchNormalization"]
            + [n for n in mine if n.op_type == "BatchNormalization"]
        )
        queued = set(waiting)
        looked: dict[Node, set[Node]] = {}  # node -> the refused sources whose search had asked it
        records: list[Record] = []
        while waiting:
            node = waiting.popleft()
            queued.discard(node)
            done, visited = self._try(graph, node, records)
            if not done:
                for other in visited:
                    looked.setdefault(other, set()).add(node)
                continue
            again = {s for n in visited for s in looked.pop(n, ())} - queued
            waiting.extend(sorted((n for n in again if n not in graph.removed), key=lambda n: n.order))
            queued |= again
        return records

    def _try(self, graph: Graph, node: Node, records: list[Record]) -> tuple[bool, set[Node]]:
        """Fold the source at `node` if it can be: (whether it is gone, nodes touched or asked)."""
        run = self._runs[node]
        left_out = self._left_out(node)
        if left_out is not None:
            run.refusals[node] = [left_out]
            return False, set()
        if not sources.is_source(graph, node):
            run.refusals.pop(node, None)  # what became of its neighbours made it a minimal bias
            return False, set()
        source = sources.read(graph, node)
        if isinstance(source, Refusal):
            run.refusals[node] = [source]
            return False, {node}
        run.varies[node] = (source.affine.scale.size > 1, source.affine.shift.size > 1)
        if source.warning is not None and source.warning not in self.notes:
            self.notes.append(source.warning)
        plan, refusals, visited = self._plan(graph, source)
        if plan is None:
            run.refusals[node] = refusals
            return False, visited | {node}
        edits = rewrite.changes(graph, plan)
        growth = sum(c.growth(graph) for c in edits)
        if self.growth + growth > self._max_growth and growth > 0:
            text = f"It would add {growth:,} bytes; {max(0, self._max_growth - self.growth):,} are left to add."
            run.refusals[node] = [Refusal(Reason.GROWTH, node.at, text, (), plan.direction), *refusals]
            return False, visited | {node}
        rounding = self._rounding_behind(graph, node)
        if rounding is not None:
            asked = self._leave is not None and graph.parent is None  # the check does not see into subgraphs
            text = self._leave.get(rounding.outputs[0]) if asked and self._leave is not None else _UNASKED
            if text is not None:
                run.refusals[node] = [Refusal(Reason.NONLINEAR, rounding.at, f"{rounding.at} rounds it: {text}")]
                return False, visited | {node}
            self.rounded[node.at] = rounding.outputs[0]
        self.growth += max(0, growth)
        parameters = tuple(graph.constant(i) if i else None for i in node.inputs)
        touched = rewrite.apply(graph, node, source.slot, plan, edits)
        run.plans[node] = plan
        run.refusals.pop(node, None)
        records.append(Record(node, parameters, source.affine.scale, source.affine.shift, plan))
        return True, touched

    def _rounding_behind(self, graph: Graph, source: Node) -> Node | None:
        """The op that rounds what comes from the source to a grid, with nothing in between that computes."""
        if graph not in self._rounding:
            self._rounding[graph] = {n.outputs[0]: n for n in graph.nodes if n.outputs and _rounds(n)}
        if not self._rounding[graph]:
            return None
        stack, seen = [source], {source}
        while stack:
            for out in stack.pop().outputs:
                for reader, slot in graph.readers(out):
                    if slot == 0 and reader.outputs and reader.outputs[0] in self._rounding[graph]:
                        return reader
                    if reader not in seen and (reader.op_type in _SELECTING or reader in self._runs):
                        seen.add(reader)
                        stack.append(reader)
        return None

    def _plan(self, graph: Graph, source: sources.Source) -> tuple[Plan | None, list[Refusal], set[Node]]:
        inserts = 1 if source.is_batch_normalization else 0
        node, slot, a = source.node, source.slot, source.affine
        refusals: list[Refusal] = []
        visited: set[Node] = set()
        best: Plan | None = None
        ways: list[Callable[[Search], Plan | None]] = [lambda s: s.up(node, slot, a), lambda s: s.down(node, 0, a)]
        if not (a.is_pure_scale or a.is_pure_shift):
            scale_last = a.shift_first()
            ways.append(lambda s: s.apart(node, slot, a.only_scale(), a.only_shift()))
            ways.append(lambda s: s.apart(node, slot, *scale_last))
            if self._partial and source.is_batch_normalization and a.scale.all():
                upper, lower = scale_last
                ways.append(lambda s: s.partly(node, lower, upper.shift))
        for number, way in enumerate(ways):
            if number > 1 and best is not None:
                break
            search = Search(
                graph, LAWS, inserts=inserts if number < 4 else 0, inverse=source.inverse, protected=self._protected,
                aggressive=self._aggressive,
            )  # fmt: skip
            plan = way(search)
            known = {(r.reason, r.at) for r in refusals} if number > 1 else set[tuple[Reason, str]]()
            refusals += [r for r in search.refusals if (r.reason, r.at) not in known]
            visited |= search.visited
            if plan is not None and (best is None or _rank(plan) > _rank(best)):
                best = plan
            if best is not None and best.direction == "up" and best.nodes_saved > 0:
                break
        return best, refusals, visited

    def _protected(self, node: Node) -> bool:
        return any(_matches(node, p) for p in self._skip) if self._skip else False

    def _left_out(self, node: Node) -> Refusal | None:
        if self._protected(node) or (self._only and not any(_matches(node, p) for p in self._only)):
            return Refusal(Reason.SKIPPED, node.at, "It was left out by --skip or --only.")
        return None


def _rounds(node: Node) -> bool:
    if node.op_type == "Cast":
        return int(node.attribute("to", 0)) in _INTEGERS
    return node.domain == "" and node.op_type in _ROUNDING


def _rank(plan: Plan) -> tuple[int, bool, int]:
    """Fewer nodes first; then without an inverse anywhere; then fewer edits."""
    return (plan.nodes_saved, plan.direction != "both", -len(plan.edits))


def _matches(node: Node, pattern: str) -> bool:
    return fnmatchcase(node.at, pattern) or fnmatchcase(node.name, pattern)


class _Exact(Mapping[str, Array]):
    """The float64 values, before rounding, of the tensors that a fold edited; computed when asked for."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Array:
        found = self._tensors[name]
        return np.asarray(found.exact() if found.is_float else rounded(found.exact(), found.data_type))

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


@dataclass(frozen=True, eq=False)
class FoldResult:
    """What `fold` made. `report` says what was folded and what was kept, and why; `changed` is False where nothing was.

    `model` is the folded ModelProto (external tensors still lie where they were); `source` the file as it was read.
    """

    report: FoldReport
    model: onnx.ModelProto
    source: ModelFile
    changed: bool
    rounded: tuple[str, ...]  # values that an op makes by rounding a folded source's: they must stay as they are
    _graphs: list[Graph] = field(repr=False)  # the main graph, then the bodies, outer ones first
    _records: list[Record] = field(repr=False)

    @property
    def exact(self) -> Mapping[str, Array]:
        """Initializer name -> its float64 value before rounding, for every tensor that was edited.

        The bodies of If, Loop and Scan are left out where a name of theirs stands for several tensors.
        """
        held = [name for graph in self._graphs for name in graph.tensors]
        whole = {name: tensor for edited in self.edited for name, tensor in edited.items()}
        return _Exact(whole if len(set(held)) == len(held) else self.edited[0])

    @cached_property
    def edited(self) -> Sequence[Mapping[str, Tensor]]:
        """The edited tensors with their steps, by name: the main graph's, then each body's."""
        return [{name: graph.tensors[name] for name in graph.edited} for graph in self._graphs]

    @property
    def records(self) -> Sequence[Record]:
        return self._records

    def certificate(self, candidate: str | os.PathLike[str] | onnx.ModelProto | None = None) -> CertificateResult:
        """Gate 1: every folded tensor of `candidate` (default: `.model`) is the correctly rounded one."""
        from .check.certificate import certify

        return certify(self, candidate)

    def check(
        self,
        *,
        samples: int | None = None,
        seed: int = 0,
        inputs: Sequence[str | os.PathLike[str]] | None = None,
        shapes: Mapping[str, Sequence[int]] | None = None,
        threads: int | None = None,
        path: str | os.PathLike[str] | None = None,
    ) -> CheckResult:
        """Whether the folded model (the file at `path`, if given) is the same function as the source."""
        from .check import check

        original = self.source.path if self.source.path is not None else self.source.model
        candidate = path if path is not None else self.model
        return check(
            original,
            candidate,
            samples=samples,
            seed=seed,
            inputs=inputs,
            shapes=shapes,
            threads=threads,
            exact=self.exact,
            certificate=self.certificate(candidate),
            integers=self.rounded,
        )

    def save(self, path: str | os.PathLike[str]) -> list[Path]:
        """Write the model, unchecked: the file itself where nothing was folded. Returns the files written."""
        if not self.changed:
            return copy(self.source, path)
        return save(self.model, path, directory=self.source.directory)
