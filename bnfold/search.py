"""The search for a plan that removes a source: a worklist of demands over an overlay, with backtracking. It is pure.

Laws answer demands with alternatives (gauge.py); the overlay remembers what a plan would edit, and what is still asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .affine import Affine, Array
from .gauge import (
    Action,
    AddAfter,
    Answer,
    Become,
    Carry,
    Law,
    Need,
    Reason,
    Refusal,
    SetAttribute,
    Vanish,
)  # fmt: skip
from .overlay import OverlaidOp, Overlay, Route
from .plan import Plan
from .weights import Tensor, zeros

if TYPE_CHECKING:
    from .graph import Graph, Node

STEPS = 2000  # laws that one search may ask
# What arithmetic with sizes raises where they cannot go together. Shape inference leaves much of that unsaid (a bias
# longer than the channels are many), so a law meets it: such a source stays, as one that no law can move.
_IMPOSSIBLE = ValueError, IndexError, ZeroDivisionError, OverflowError


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What one op is asked: the maps that its outputs shall get (up), or those that its inputs have got (down)."""

    way: str
    maps: Mapping[int, Affine]


def _impossible(node: Node) -> Refusal:
    text = f"The sizes and attributes of this {node.op_type} contradict each other."
    return Refusal(Reason.MALFORMED, node.at, text)


def _names(path: Route) -> tuple[str, ...]:
    out: list[str] = []
    while path is not None:
        out.append(path[0].at)
        path = path[1]
    return tuple(reversed(out))


class Search:
    """One search for a plan that removes the source `node` (y = affine(x))."""

    def __init__(
        self,
        graph: Graph,
        laws: Mapping[tuple[str, str], Law],
        *,
        inserts: int,
        inverse: Callable[[], Refusal | None],
        protected: Callable[[Node], bool] = lambda _: False,
        stays: Callable[[Node], bool] = lambda _: False,
        aggressive: bool = False,
    ) -> None:
        """inserts: how many Adds may come in.
        inverse: why no reader may be given the inverse, or None; asked only when one needs it.
        protected: the nodes that must not be touched; stays: those that may take something in, but not vanish.
        """
        self._graph, self._laws, self._inserts, self._inverse = graph, laws, inserts, inverse
        self._protected, self._stays, self._aggressive = protected, stays, aggressive
        self.visited: set[Node] = set()
        self.refusals: list[Refusal] = []
        self._steps = 0
        self.in_parts = False  # only the scale or only the shift goes one way
        self._source: Node | None = None

    def up(self, node: Node, slot: int, a: Affine) -> Plan | None:
        """The source's input is to be stored as a(input)."""
        self._source = node
        start = Overlay()
        refused = self._need(start, node, Need(slot, a), None)
        return self._run(start, refused, "up")

    def down(self, node: Node, output: int, a: Affine) -> Plan | None:
        """The source's output is to be stored as its input: every reader applies a."""
        self._source = node
        start = Overlay()
        refused = self._carry(start, node, Carry(a, output), None)
        return self._run(start, refused, "down")

    def apart(self, node: Node, slot: int, upper: Affine, lower: Affine) -> Plan | None:
        """The source in two parts, upper first: one into what makes its input, the other into what reads its output."""
        self._source = node
        start = Overlay(directions={"up", "down"})
        self.in_parts = True
        for way, refused in (
            ("up", self._need(start, node, Need(slot, upper), None)),
            ("down", self._carry(start, node, Carry(lower), None)),
        ):
            if refused is not None:
                self._note(refused, way, None)
                return None
        return self._run(start, None, "both")

    def partly(self, node: Node, lower: Affine, left: Array) -> Plan | None:
        """The scale goes down; the shift `left` stays as an Add in the source's place."""
        self.in_parts = True
        plan = self.down(node, 0, lower)
        return None if plan is None else plan._replace(left=left)

    def _run(self, overlay: Overlay, refused: Refusal | None, direction: str) -> Plan | None:
        if refused is not None:
            self._note(refused, direction, None)
            return None
        waiting: list[tuple[Overlay, list[tuple[tuple[Action, ...], Node, Route, str]]]] = []
        while True:
            dead = False
            step = self._next(overlay)
            if isinstance(step, Refusal):
                self._note(step, direction, None)
                dead = True
            elif step is None:
                return self._finish(overlay, direction)
            else:
                node, ask, path = step
                self._steps += 1
                if self._steps > STEPS:
                    self._note(
                        Refusal(Reason.SEARCH_BUDGET, node.at, f"The search stopped after {STEPS} steps."),
                        direction,
                        path,
                    )
                    return None
                answer = self._ask(overlay, node, ask)
                told = ask.way if direction == "both" else direction
                options: list[tuple[tuple[Action, ...], Node, Route, str]] = []
                for option in (answer,) if isinstance(answer, Refusal) else answer:
                    if isinstance(option, Refusal):
                        self._note(option, told, path)
                    else:
                        options.append((option, node, path, ask.way))
                if len(options) == 1:
                    dead = not self._apply(overlay, options[0], direction)
                else:
                    if options:
                        waiting.append((overlay, options[::-1]))
                    dead = True
            while dead:
                if not waiting:
                    return None
                base, options = waiting[-1]
                chosen = options.pop()
                if not options:
                    waiting.pop()
                overlay = base.copy() if options else base
                dead = not self._apply(overlay, chosen, direction)

    def _note(self, refusal: Refusal, direction: str, path: Route) -> None:
        way = direction if direction != "both" else "up"
        told = Refusal(refusal.reason, refusal.at, refusal.message, refusal.because, way, _names(path), self.in_parts)
        if told not in self.refusals:
            self.refusals.append(told)

    def _next(self, overlay: Overlay) -> tuple[Node, _Wanted, Route] | Refusal | None:
        # Upward demands first, because they say which readers agree, and an op of several outputs when all of them
        # have been asked for; then maps on their way down, the joins of several values last, so that both arms of a
        # diamond have arrived.
        if overlay.ups:
            at = next((i for i in range(len(overlay.ups) - 1, -1, -1) if len(overlay.ups[i][0].outputs) == 1), -1)
            node, output, a, path = overlay.ups.pop(at)
            wanted = {output: a}
            if len(node.outputs) > 1:
                wanted |= {o: b for n, o, b, _ in overlay.ups if n is node}
                overlay.ups = [up for up in overlay.ups if up[0] is not node]
            return node, _Wanted("up", wanted), path
        while overlay.siblings:
            value, path = overlay.siblings.pop()
            refused = self._compensate(overlay, value, path)
            if refused is not None:
                return refused
        if overlay.downs:
            node = min(overlay.downs, key=lambda n: (self._graph.joins(n), n.order))
            given, path = overlay.downs.pop(node)
            return node, _Wanted("down", given), path
        return None

    def _compensate(self, overlay: Overlay, value: str, path: Route) -> Refusal | None:
        others = [
            edge
            for edge in self._graph.readers(value)
            if edge not in overlay.accepted and not self._graph.is_neutral(*edge)
        ]
        if not others:
            return None
        a = overlay.produced[value]
        weak = self._inverse()
        if weak is not None:
            return weak
        if not a.scale.all():
            return Refusal(
                Reason.ZERO_SCALE, others[0][0].at, "It reads the value too, and a zero scale has no inverse."
            )
        overlay.directions.add("down")
        for node, slot in others:
            overlay.accepted.add((node, slot))
            refused = self._give(overlay, node, slot, a.inverse(), path)
            if refused is not None:
                return refused
        return None

    def _ask(self, overlay: Overlay, node: Node, ask: _Wanted) -> Answer:
        self.visited.add(node)
        if node is self._source:  # it goes, so it can take nothing in
            return Refusal(Reason.CONFLICT, node.at, "Another reader meets the value before and after this node.")
        if node in overlay.vanished or node in overlay.became:
            return Refusal(Reason.CONFLICT, node.at, "Two maps meet at this op.")
        if self._protected(node):
            return Refusal(Reason.SKIPPED, node.at, "This node was left out by --skip.")
        law = self._laws.get((node.domain, node.op_type))
        if law is None:
            from .laws import without_law

            return without_law(node)
        if not law.attributes.issuperset(node.attribute_names):
            strange = sorted(set(node.attribute_names) - law.attributes)
            return Refusal(Reason.UNKNOWN_OP, node.at, f"{node.op_type} has an unknown attribute {strange[0]!r}.")
        op = OverlaidOp(self._graph, overlay, node, self._aggressive)
        try:
            if ask.way == "down":
                return law.down(op, ask.maps)
            if len(ask.maps) == 1:
                return law.up(op, *next(iter(ask.maps.items())))
            if law.up_all is not None:
                return law.up_all(op, ask.maps)
        except _IMPOSSIBLE:
            return _impossible(node)
        return Refusal(Reason.CONFLICT, node.at, f"More than one output of {node.op_type} would have to change.")

    def _apply(self, overlay: Overlay, option: tuple[tuple[Action, ...], Node, Route, str], direction: str) -> bool:
        actions, node, path, way = option
        overlay.through[node] = None
        overlay.directions.add(way)
        here: Route = (node, path)
        for action in actions:
            match action:
                case Need():
                    refused = self._needed(overlay, node, action, here)
                case Carry():
                    refused = self._carry(overlay, node, action, here)
                case SetAttribute(name, value):
                    overlay.attributes.setdefault(node, {})[name] = value
                    refused = None
                case AddAfter(shift):
                    refused = self._insert(overlay, node, shift)
                case Become():
                    overlay.became[node] = action
                    refused = None
                case Vanish(slot):
                    overlay.vanished[node] = slot
                    refused = self._graph.boundary(node.outputs[0], output_only=True)
                    if self._stays(node):
                        refused = Refusal(Reason.SKIPPED, node.at, "It would vanish, but --only leaves it out.")
            if refused is not None:
                self._note(refused, way if direction == "both" else direction, path)
                return False
        return True

    def _insert(self, overlay: Overlay, node: Node, shift: Array) -> Refusal | None:
        if not shift.any():
            return None
        if len(overlay.added) >= self._inserts + len(overlay.vanished):
            return Refusal(
                Reason.NO_GAIN, node.at, f"{node.op_type} has no bias: the shift would need an Add of its own."
            )
        overlay.added[node] = shift if node not in overlay.added else overlay.added[node] + shift
        return None

    def _need(self, overlay: Overlay, node: Node, need: Need, path: Route) -> Refusal | None:
        if need.affine.is_identity and need.shape is None:
            return None
        if need.inverse and (weak := self._inverse()) is not None:
            return weak
        edge = (node, need.slot)
        if not node.has(need.slot):
            base = overlay.edits.get(edge)
            if base is None:
                if need.missing is None:
                    return Refusal(Reason.UNKNOWN_OP, node.at, f"{node.op_type} has no input {need.slot}.")
                like = None if need.like is None else self._graph.constant(node.inputs[need.like])
                base = zeros("", need.missing, self._graph.type_of(node) if like is None else like.data_type)
            return self._edit(overlay, edge, base, need)
        value = node.inputs[need.slot]
        base = overlay.edits.get(edge) or self._graph.constant(value)
        if base is None and need.plain and not (need.affine.is_pure_scale and (need.affine.scale > 0).all()):
            base = self._graph.dequantized(value)
        if base is not None:
            return self._edit(overlay, edge, base, need)
        return self._produce(overlay, value, need.affine, edge, path)

    def _needed(self, overlay: Overlay, node: Node, need: Need, path: Route) -> Refusal | None:
        try:
            return self._need(overlay, node, need, path)
        except _IMPOSSIBLE:
            return _impossible(node)

    def _edit(self, overlay: Overlay, edge: tuple[Node, int], base: Tensor, need: Need) -> Refusal | None:
        edited = base.after(need.affine, need.shape)
        if edited.shape != base.shape and not need.grow:
            return Refusal(
                Reason.WRONG_AXIS, edge[0].at, f"The constant {base.name or need.slot} has not the axis that varies."
            )
        overlay.edits[edge] = edited
        return None

    def _produce(self, overlay: Overlay, value: str, a: Affine, edge: tuple[Node, int], path: Route) -> Refusal | None:
        if value in overlay.produced:
            if edge not in overlay.accepted and overlay.produced[value].equals(a):
                overlay.accepted.add(edge)
                return None
            return Refusal(Reason.CONFLICT, value, f"Two readers of {value} want it stored in different ways.")
        if value in overlay.carried:
            return Refusal(Reason.CONFLICT, value, f"The map would have to pass {value} in both directions.")
        refused = self._graph.boundary(value)
        if refused is not None:
            return refused
        producer = self._graph.producer(value)
        if producer is None:
            return Refusal(Reason.GRAPH_BOUNDARY, value, f"{value} is not made in this graph.")
        overlay.produced[value] = a
        overlay.accepted.add(edge)
        overlay.ups.append((*producer, a, path))
        overlay.siblings.append((value, path))
        return None

    def _carry(self, overlay: Overlay, node: Node, carry: Carry, path: Route) -> Refusal | None:
        if carry.affine.is_identity:
            return None
        value = node.outputs[carry.output]
        if value in overlay.produced or value in overlay.carried:
            return Refusal(Reason.CONFLICT, value, f"Two maps meet at {value}.")
        refused = self._graph.boundary(value, output_only=True)
        if refused is not None:
            return refused
        overlay.carried[value] = carry.affine
        for reader, slot in self._graph.readers(value):
            if not self._graph.is_neutral(reader, slot):
                refused = self._give(overlay, reader, slot, carry.affine, path)
                if refused is not None:
                    return refused
        return None

    def _give(self, overlay: Overlay, node: Node, slot: int, a: Affine, path: Route) -> Refusal | None:
        given, _ = overlay.downs.setdefault(node, ({}, path))
        if slot in given:
            return Refusal(Reason.CONFLICT, node.at, "Two maps meet at one input.")
        given[slot] = a
        return None

    def _finish(self, overlay: Overlay, direction: str) -> Plan | None:
        into = dict.fromkeys([n for n, _ in overlay.edits] + [*overlay.attributes, *overlay.added, *overlay.became])
        through = tuple(n for n in overlay.through if n not in into)
        for edge, edited in overlay.edits.items():
            misfit = self._graph.misfit(edited)
            if misfit is not None:
                if not edited.name:
                    misfit = "bias" + misfit
                self._note(Refusal(Reason.OUT_OF_RANGE, edge[0].at, f"The folded weight {misfit}."), direction, None)
                return None
        way = "both" if len(overlay.directions) > 1 else direction
        return Plan(
            direction != "down",
            way,
            overlay.edits,
            overlay.attributes,
            overlay.vanished,
            overlay.added,
            overlay.became,
            through,
            tuple(into),
        )
