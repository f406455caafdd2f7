"""The loop over the sources of a graph: search, weigh, apply, and ask again what a fold has changed the ground for.

Every source is asked once; one that was refused is asked again only when a fold has changed something that its search
had looked at. A plan is taken only if (nodes, BatchNormalizations) become fewer as a pair, with no more nodes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING

import onnx

from . import rewrite, sources
from .direct import Pair, holds, pairs
from .errors import UsageError
from .graph import Graph, Node
from .plan import Plan
from .reasons import Reason, Refusal, most_telling
from .report import Alternative, Folded, Kept, Target
from .result import Record

if TYPE_CHECKING:
    from .search import Search

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
            self._is_normalization(gone),
        )

    def kept(self) -> Iterator[Kept]:
        rest = [n for n in self.nodes if n not in self.plans and n in self.refusals]
        if not rest:
            return
        found = [r for n in rest for r in self.refusals[n]]
        main = most_telling(found)
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
            self._is_normalization(rest),
        )

    def _is_normalization(self, nodes: list[Node]) -> bool:
        """A BatchNormalization, or arithmetic that both scales and shifts along an axis."""
        flags = [self.varies.get(n, (False, False)) for n in nodes]
        arithmetic = any(s for s, _ in flags) and any(t for _, t in flags)
        return arithmetic or any(n.op_type == "BatchNormalization" for n in nodes)


class Folder:
    """The loop over the sources of one graph at a time."""

    def __init__(
        self,
        skip: tuple[str, ...],
        only: tuple[str, ...],
        max_growth: int,
        leave: Mapping[str, str] | None,
        *,
        aggressive: bool,
        partly: bool,
        read: Callable[[Graph, Node], sources.Source | Refusal] = sources.read,
    ) -> None:
        self._aggressive, self._partial, self._read = aggressive, partly, read
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
        ready = pairs(graph, mine) if self._may_take_the_shortcut(graph) else {}
        looked: dict[Node, set[Node]] = {}  # node -> the refused sources whose search had asked it
        records: list[Record] = []
        while waiting:
            node = waiting.popleft()
            queued.discard(node)
            if node in graph.removed:  # it vanished in another's plan
                continue
            pair = ready.get(node)
            if pair is not None and holds(graph, node, pair) and self._fits(pair):
                done, visited = True, self._direct(graph, node, pair, records)
            else:
                done, visited = self._try(graph, node, records)
            if not done:
                for other in visited:
                    looked.setdefault(other, set()).add(node)
            elif looked:
                again = {s for n in visited for s in looked.pop(n, ())} - queued
                waiting.extend(sorted((n for n in again if n not in graph.removed), key=lambda n: n.order))
                queued |= again
        return records

    def _may_take_the_shortcut(self, graph: Graph) -> bool:
        if self._skip or self._only or self._read is not sources.read:
            return False
        return not any(_rounds(node) for node in graph.nodes)

    def _fits(self, pair: Pair) -> bool:
        return pair.growth <= 0 or self.growth + pair.growth <= self._max_growth

    def _direct(self, graph: Graph, node: Node, pair: Pair, records: list[Record]) -> set[Node]:
        run = self._runs[node]
        run.varies[node] = (True, True)
        plan = pair.plan()
        self.growth += pair.growth
        parameters = (None, *pair.was[-4:])
        edits = [  # nobody else reads what the Conv does
            rewrite.Change(n.inputs[k] if n.has(k) else None, edited, ((n, k),), True)
            for (n, k), edited in plan.edits.items()
        ]
        touched = rewrite.apply(graph, node, 0, plan, edits)
        run.plans[node] = plan
        run.refusals.pop(node, None)
        records.append(Record(node, parameters, pair.scale, pair.shift, plan))
        return touched

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
        source = self._read(graph, node)
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
        for gone in (node, *plan.vanished):
            if gone in self._runs:
                self._runs[gone].plans[gone] = plan
                self._runs[gone].refusals.pop(gone, None)
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
        refusals: list[Refusal] = []
        visited: set[Node] = set()
        best: Plan | None = None
        for number, (search, way) in enumerate(self._ways(graph, source)):
            plan = way()
            known = {(r.reason, r.at) for r in refusals}
            refusals += [r for r in search.refusals if not r.part or (r.reason, r.at) not in known]
            visited |= search.visited
            if plan is not None and (best is None or _rank(plan) > _rank(best)):
                best = plan
            if best is not None and (number > 0 or (best.direction == "up" and best.nodes_saved > 0)):
                break
        return best, refusals, visited

    def _ways(self, graph: Graph, source: sources.Source) -> Iterator[tuple[Search, Callable[[], Plan | None]]]:
        """The whole map upward and downward; then its scale and shift apart, of which one that works is enough."""
        from .laws import LAWS  # here: a model whose sources all take the shortcut needs neither
        from .search import Search

        node, slot, a = source.node, source.slot, source.affine

        def search(inserts: int) -> Search:
            return Search(
                graph, LAWS, inserts=inserts, inverse=source.inverse, protected=self._protected,
                stays=self._stays, aggressive=self._aggressive,
            )  # fmt: skip

        inserts = 1 if source.is_batch_normalization else 0
        up, down = search(inserts), search(inserts)
        yield up, lambda: up.up(node, slot, a)
        yield down, lambda: down.down(node, 0, a)
        if a.is_pure_scale or a.is_pure_shift:
            return
        for upper, lower in ((a.only_scale(), a.only_shift()), a.shift_first()):
            apart = search(inserts)
            yield apart, partial(apart.apart, node, slot, upper, lower)
        if self._partial and source.is_batch_normalization and a.scale.all():
            upper, lower = a.shift_first()
            partly = search(0)
            yield partly, lambda: partly.partly(node, lower, upper.shift)

    def _protected(self, node: Node) -> bool:
        return any(_matches(node, p) for p in self._skip) if self._skip else False

    def _stays(self, node: Node) -> bool:
        return bool(self._only) and node in self._runs and not any(_matches(node, p) for p in self._only)

    def _left_out(self, node: Node) -> Refusal | None:
        if self._protected(node) or self._stays(node):
            return Refusal(Reason.SKIPPED, node.at, "It was left out by --skip, --only or --rescue.")
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
