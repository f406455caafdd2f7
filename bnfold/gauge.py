"""The search for a fold, as a change of gauge: stored(v) = g_v(v), and no function changes.

Give each value v of a graph an affine map g_v and store g_v(v) in its place. The model stays the same function as
long as every op is edited so that f'(g_in(x)) = g_out(f(x)) and g is the identity on the graph's inputs and outputs,
on captured values and on loop state. Take y = a(x), a BatchNormalization. If the same thing is stored at x and at y,
the node is gone; so there are two ways to remove it:

    up      store a(x) at x. Whoever makes x is edited to make a(x): a Conv takes `scale` into the rows of its weight
            and `shift` into its bias. Everybody who reads x sees it; who did not ask is edited by the inverse.
    down    keep x stored. Every reader of y is edited to compute reader(a(x)): a Conv takes `scale` into the columns
            of its weight and the response to `shift` into its bias.

An op that has no constant to edit lets the map through (Transpose, a pool, Add of two branches); how it comes out at
the other side is the op's *law* (bnfold/laws). Laws answer a demand with alternatives, each a tuple of the actions
below, or with a `Refusal`. Three instances:

    Relu, upward, scale >= 0, shift = 0       Need(0, a)                     relu(s*x) = s*relu(x)
    Conv, upward                              Need(1, rows s), Need(2, (s, t), missing=(C,))
    Add of two values, downward, one branch   Need(other, (1/s, 0)), Carry((s, t))    s*x + t + z = s*(x + z/s) + t

A weight is just another input: `Need(1, ...)` is an edit where the input is constant and a demand on its producer
where it is not. Planning is pure: a worklist of demands over an overlay, with backtracking over the alternatives and
a cap on the steps. It returns a `Plan` or the refusals, and changes nothing; rewrite.py applies plans.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

from .affine import Affine, Array
from .weights import Tensor, zeros

if TYPE_CHECKING:
    from .graph import Graph, Node

STEPS = 2000  # laws that one search may ask


class Reason(StrEnum):
    """Why an affine map cannot go somewhere. `hint` says what would let it fold."""

    GRAPH_BOUNDARY = "GRAPH_BOUNDARY"
    CONFLICT = "CONFLICT"
    NONLINEAR = "NONLINEAR"
    PADDED = "PADDED"
    NEGATIVE_SCALE = "NEGATIVE_SCALE"
    ZERO_SCALE = "ZERO_SCALE"
    WRONG_AXIS = "WRONG_AXIS"
    NOT_CONSTANT = "NOT_CONSTANT"
    OVERRIDABLE = "OVERRIDABLE"
    TRAINING_MODE = "TRAINING_MODE"
    BAD_STATISTICS = "BAD_STATISTICS"
    MALFORMED = "MALFORMED"
    OUT_OF_RANGE = "OUT_OF_RANGE"
    QUANTIZED = "QUANTIZED"
    UNKNOWN_SHAPE = "UNKNOWN_SHAPE"
    UNKNOWN_OP = "UNKNOWN_OP"
    NO_GAIN = "NO_GAIN"
    GROWTH = "GROWTH"
    SEARCH_BUDGET = "SEARCH_BUDGET"
    SKIPPED = "SKIPPED"

    @property
    def hint(self) -> str:
        return _HINTS[self]


_HINTS = {
    Reason.GRAPH_BOUNDARY: "Outputs, inputs and captured values keep their meaning; put a linear layer between.",
    Reason.CONFLICT: "Give each reader a layer of its own, or put the normalization on each branch.",
    Reason.NONLINEAR: "Place the normalization next to a linear layer, on the same side of the activation.",
    Reason.PADDED: "Train with the normalization after the convolution, or without padding: the border is not "
    "normalized.",
    Reason.NEGATIVE_SCALE: "Keep gamma positive in training (or swap the order of the activation and the layer).",
    Reason.ZERO_SCALE: "Prune the channels whose gamma is zero, or keep gamma away from zero in training.",
    Reason.WRONG_AXIS: "The coefficients vary along an axis that this op mixes; normalize the layer's channel axis.",
    Reason.NOT_CONSTANT: "Export the weights and statistics as constants.",
    Reason.OVERRIDABLE: "Use --freeze-inputs if nobody feeds this weight, or export it without the graph input.",
    Reason.TRAINING_MODE: "Call model.eval() before the export, so that the population statistics are used.",
    Reason.BAD_STATISTICS: "Recompute the population statistics on real data before the export.",
    Reason.MALFORMED: "Export the model again: the parameters do not belong to this value.",
    Reason.OUT_OF_RANGE: "Export in float32, fold, and convert afterwards.",
    Reason.QUANTIZED: "Fold before quantization.",
    Reason.UNKNOWN_SHAPE: "Export with static shapes, or run onnx's shape inference first.",
    Reason.UNKNOWN_OP: "No law is known for this op; report it if it commutes with an affine map.",
    Reason.NO_GAIN: "Folding would not make the model smaller.",
    Reason.GROWTH: "Allow more bytes with --max-growth.",
    Reason.SEARCH_BUDGET: "Report this model: the search gave up before it had tried everything.",
    Reason.SKIPPED: "Left out by --skip or --only.",
}

# What a reader is told first when several alternatives were refused: the obstacle that is nearest to a fold.
_TELLING = (
    Reason.NEGATIVE_SCALE, Reason.PADDED, Reason.ZERO_SCALE, Reason.OUT_OF_RANGE, Reason.GROWTH, Reason.OVERRIDABLE,
    Reason.QUANTIZED, Reason.UNKNOWN_SHAPE, Reason.WRONG_AXIS, Reason.NOT_CONSTANT, Reason.SEARCH_BUDGET,
    Reason.NO_GAIN, Reason.UNKNOWN_OP, Reason.NONLINEAR, Reason.CONFLICT, Reason.GRAPH_BOUNDARY,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Refusal:
    """A "no": the reason, where (a node or a value), a sentence, and the refusals of every alternative behind it.

    part: only the scale or only the shift was asked.
    """

    reason: Reason
    at: str
    message: str
    because: tuple[Refusal, ...] = ()
    direction: str = ""
    through: tuple[str, ...] = ()
    part: bool = False


def most_telling(refusals: Sequence[Refusal]) -> Refusal:
    order = {reason: i for i, reason in enumerate(_TELLING)}
    return min(refusals, key=lambda r: (r.part, order.get(r.reason, -1)))


@dataclass(frozen=True, slots=True)
class Need:
    """Input `slot` is to count as `affine(input)`: a constant is edited, another value is produced like that.

    missing: the shape of the zeros that stand in for an optional operand that is not there.
    grow: the edit may make a constant longer (by broadcasting), e.g. a scalar bias.
    inverse: the map undoes (part of) the source's: refused where that would be ill-conditioned.
    shape: what the constant is broadcast to, whether the map says so or not.
    like: the slot whose element type a missing operand has; None: the op's weight.
    """

    slot: int
    affine: Affine
    missing: tuple[int, ...] | None = None
    grow: bool = False
    inverse: bool = False
    shape: tuple[int, ...] | None = None
    like: int | None = None


@dataclass(frozen=True, slots=True)
class Carry:
    """The output is now to be read as `affine(output)`: the map goes on to every reader."""

    affine: Affine
    output: int = 0


@dataclass(frozen=True, slots=True)
class SetAttribute:
    name: str
    value: float | int


@dataclass(frozen=True, slots=True)
class AddAfter:
    """Insert an Add of a constant behind the op: `shift` in the layout of output 0."""

    shift: Array


@dataclass(frozen=True, slots=True)
class Become:
    """The op turns into `kind` of its input 0 and a constant `operand`, in the layout of output 0."""

    kind: str
    operand: Array


@dataclass(frozen=True, slots=True)
class Vanish:
    """The op does nothing any more: its output 0 is its input `slot`."""

    slot: int


Action: TypeAlias = Need | Carry | SetAttribute | AddAfter | Become | Vanish
Answer: TypeAlias = Refusal | Sequence[tuple[Action, ...] | Refusal]
Dim: TypeAlias = int | str
Shape: TypeAlias = tuple[Dim, ...]
_T = TypeVar("_T")


class Op(Protocol):
    """What a law sees of an op: the ONNX graph and any other graph are adapters to this."""

    @property
    def kind(self) -> str: ...
    @property
    def at(self) -> str:
        """The op's name for people."""
        ...

    @property
    def opset(self) -> int: ...
    @property
    def aggressive(self) -> bool:
        """Whether the user allows what costs the runtime a fusion of its own."""
        ...

    @property
    def slots(self) -> int:
        """The number of inputs, absent optional ones included."""
        ...

    @property
    def outputs(self) -> int: ...
    def attribute(self, name: str, default: _T) -> _T: ...
    def has(self, slot: int) -> bool: ...
    def used(self, output: int) -> bool:
        """Whether anybody reads this output."""
        ...

    def is_constant(self, slot: int) -> bool: ...
    def constant(self, slot: int) -> Array | None:
        """The exact float64 value of a constant operand, edits of this plan included."""
        ...

    def integers(self, slot: int) -> tuple[int, ...] | None:
        """The value of a constant integer operand (axes, a shape), flat."""
        ...

    def elem_type(self, slot: int) -> int:
        """TensorProto's code of a constant's type; 0 where the operand is none."""
        ...

    def shape(self, slot: int) -> Shape | None:
        """Sizes; an unknown or dynamic one is a symbol, equal symbols are equal sizes. None: unknown rank."""
        ...

    def output_shape(self, output: int = 0) -> Shape | None: ...
    def value(self, slot: int) -> str:
        """The identity of the value at this input."""
        ...


@dataclass(frozen=True, slots=True)
class Law:
    """How one op commutes with an affine map.

    up(op, output, a): alternatives that make the op's output become a(output).
    down(op, given): alternatives that make the op compute with given[slot](input) in place of each of these inputs.
    attributes: every attribute of the op that the law has thought of; the search refuses any other.
    up_all(op, wanted): the same as `up` for several outputs at once, where they are one demand (Split).
    """

    up: Callable[[Op, int, Affine], Answer]
    down: Callable[[Op, Mapping[int, Affine]], Answer]
    attributes: frozenset[str]
    up_all: Callable[[Op, Mapping[int, Affine]], Answer] | None = None


_Path: TypeAlias = "tuple[Node, _Path] | None"


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What one op is asked: the maps that its outputs shall get (up), or those that its inputs have got (down)."""

    way: str
    maps: Mapping[int, Affine]


def _names(path: _Path) -> tuple[str, ...]:
    out: list[str] = []
    while path is not None:
        out.append(path[0].at)
        path = path[1]
    return tuple(reversed(out))


@dataclass(slots=True)
class Overlay:
    """What a plan would do so far, and what it still has to ask."""

    edits: dict[tuple[Node, int], Tensor] = field(default_factory=dict["tuple[Node, int]", Tensor])
    attributes: dict[Node, dict[str, float | int]] = field(default_factory=dict["Node", dict[str, float | int]])
    produced: dict[str, Affine] = field(default_factory=dict[str, Affine])
    carried: dict[str, Affine] = field(default_factory=dict[str, Affine])
    accepted: set[tuple[Node, int]] = field(default_factory=set["tuple[Node, int]"])
    vanished: dict[Node, int] = field(default_factory=dict["Node", int])
    added: dict[Node, Array] = field(default_factory=dict["Node", Array])
    became: dict[Node, Become] = field(default_factory=dict["Node", Become])
    through: dict[Node, None] = field(default_factory=dict["Node", None])
    directions: set[str] = field(default_factory=set[str])
    ups: list[tuple[Node, int, Affine, _Path]] = field(default_factory=list["tuple[Node, int, Affine, _Path]"])
    downs: dict[Node, tuple[dict[int, Affine], _Path]] = field(
        default_factory=dict["Node", "tuple[dict[int, Affine], _Path]"]
    )
    siblings: list[tuple[str, _Path]] = field(default_factory=list["tuple[str, _Path]"])

    def copy(self) -> Overlay:
        return Overlay(
            dict(self.edits), {n: dict(a) for n, a in self.attributes.items()}, dict(self.produced),
            dict(self.carried), set(self.accepted), dict(self.vanished), dict(self.added), dict(self.became),
            dict(self.through), set(self.directions), list(self.ups),
            {n: (dict(s), p) for n, (s, p) in self.downs.items()}, list(self.siblings),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plan:
    """A fold that works: edits of constant operands by edge, and what happens to nodes. Applied by rewrite.py."""

    upward: bool  # the source's input is stored as its output was; else the other way round
    direction: str
    edits: dict[tuple[Node, int], Tensor]
    attributes: dict[Node, dict[str, float | int]]
    vanished: dict[Node, int]
    added: dict[Node, Array]
    became: dict[Node, Become]
    through: tuple[Node, ...]
    into: tuple[Node, ...]
    left: Array | None = None  # the shift that stays behind as an Add in the source's place

    @property
    def nodes_saved(self) -> int:
        """The source itself, and the ops that vanish, less the ones that come in."""
        return 1 + len(self.vanished) - len(self.added) - (self.left is not None)


class OverlaidOp:
    """The `Op` of a node with the plan's edits on it."""

    def __init__(self, graph: Graph, overlay: Overlay, node: Node, aggressive: bool) -> None:
        self._graph, self._overlay, self._node = graph, overlay, node
        self.aggressive = aggressive
        self.kind: str = node.op_type
        self.at: str = node.at
        self.opset: int = graph.opset(node.domain)
        self.slots: int = len(node.inputs)
        self.outputs: int = len(node.outputs)

    def attribute(self, name: str, default: _T) -> _T:
        changed = self._overlay.attributes.get(self._node)
        if changed is not None and name in changed:
            return changed[name]  # pyright: ignore[reportReturnType]  # SetAttribute keeps the attribute's type
        return self._node.attribute(name, default)

    def has(self, slot: int) -> bool:
        return self._node.has(slot) or (self._node, slot) in self._overlay.edits

    def used(self, output: int) -> bool:
        return self._graph.is_used(self._node, output)

    def _tensor(self, slot: int) -> Tensor | None:
        edited = self._overlay.edits.get((self._node, slot))
        if edited is not None:
            return edited
        return self._graph.constant(self._node.inputs[slot]) if self._node.has(slot) else None

    def is_constant(self, slot: int) -> bool:
        return self._tensor(slot) is not None

    def constant(self, slot: int) -> Array | None:
        found = self._tensor(slot)
        return None if found is None or not found.is_float else found.exact()

    def integers(self, slot: int) -> tuple[int, ...] | None:
        found = self._tensor(slot)
        if found is None:
            return None
        if found.steps:
            return tuple(int(i) for i in found.exact().reshape(-1))
        return tuple(found.array().reshape(-1).tolist())

    def elem_type(self, slot: int) -> int:
        found = self._tensor(slot)
        return 0 if found is None else found.data_type

    def shape(self, slot: int) -> Shape | None:
        edited = self._overlay.edits.get((self._node, slot))
        return edited.shape if edited is not None else self._graph.shape(self._node.inputs[slot])

    def output_shape(self, output: int = 0) -> Shape | None:
        return self._graph.shape(self._node.outputs[output])

    def value(self, slot: int) -> str:
        return self._node.inputs[slot]


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
        aggressive: bool = False,
    ) -> None:
        """inserts: how many Adds may come in.
        inverse: why no reader may be given the inverse, or None; asked only when one needs it.
        """
        self._graph, self._laws, self._inserts, self._inverse = graph, laws, inserts, inverse
        self._protected, self._aggressive = protected, aggressive
        self.visited: set[Node] = set()
        self.refusals: list[Refusal] = []
        self._steps = 0
        self._part = False
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
        self._part = True
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
        plan = self.down(node, 0, lower)
        return None if plan is None else replace(plan, left=left)

    def _run(self, overlay: Overlay, refused: Refusal | None, direction: str) -> Plan | None:
        if refused is not None:
            self._note(refused, direction, None)
            return None
        waiting: list[tuple[Overlay, list[tuple[tuple[Action, ...], Node, _Path, str]]]] = []
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
                options: list[tuple[tuple[Action, ...], Node, _Path, str]] = []
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

    def _note(self, refusal: Refusal, direction: str, path: _Path) -> None:
        way = direction if direction != "both" else "up"
        told = Refusal(refusal.reason, refusal.at, refusal.message, refusal.because, way, _names(path), self._part)
        if told not in self.refusals:
            self.refusals.append(told)

    def _next(self, overlay: Overlay) -> tuple[Node, _Wanted, _Path] | Refusal | None:
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

    def _compensate(self, overlay: Overlay, value: str, path: _Path) -> Refusal | None:
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
        if ask.way == "down":
            return law.down(op, ask.maps)
        if len(ask.maps) == 1:
            return law.up(op, *next(iter(ask.maps.items())))
        if law.up_all is not None:
            return law.up_all(op, ask.maps)
        return Refusal(Reason.CONFLICT, node.at, f"More than one output of {node.op_type} would have to change.")

    def _apply(self, overlay: Overlay, option: tuple[tuple[Action, ...], Node, _Path, str], direction: str) -> bool:
        actions, node, path, way = option
        overlay.through[node] = None
        overlay.directions.add(way)
        here: _Path = (node, path)
        for action in actions:
            match action:
                case Need():
                    refused = self._need(overlay, node, action, here)
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

    def _need(self, overlay: Overlay, node: Node, need: Need, path: _Path) -> Refusal | None:
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
        if base is not None:
            return self._edit(overlay, edge, base, need)
        return self._produce(overlay, value, need.affine, edge, path)

    def _edit(self, overlay: Overlay, edge: tuple[Node, int], base: Tensor, need: Need) -> Refusal | None:
        edited = base.after(need.affine, need.shape)
        if edited.shape != base.shape and not need.grow:
            return Refusal(
                Reason.WRONG_AXIS, edge[0].at, f"The constant {base.name or need.slot} has not the axis that varies."
            )
        overlay.edits[edge] = edited
        return None

    def _produce(self, overlay: Overlay, value: str, a: Affine, edge: tuple[Node, int], path: _Path) -> Refusal | None:
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

    def _carry(self, overlay: Overlay, node: Node, carry: Carry, path: _Path) -> Refusal | None:
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

    def _give(self, overlay: Overlay, node: Node, slot: int, a: Affine, path: _Path) -> Refusal | None:
        given, _ = overlay.downs.setdefault(node, ({}, path))
        if slot in given:
            return Refusal(Reason.CONFLICT, node.at, "Two maps meet at one input.")
        given[slot] = a
        return None

    def _finish(self, overlay: Overlay, direction: str) -> Plan | None:
        into = dict.fromkeys([n for n, _ in overlay.edits] + [*overlay.attributes, *overlay.added, *overlay.became])
        through = tuple(n for n in overlay.through if n not in into)
        for edge, edited in overlay.edits.items():
            misfit = edited.misfit()
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
