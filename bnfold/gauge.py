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
a cap on the steps. It returns a `Plan` or the refusals, and changes nothing (search.py); rewrite.py applies plans.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

from .affine import Affine, Array
from .dims import Dim, Shape
from .reasons import Reason, Refusal, most_telling

__all__ = [
    "Action", "AddAfter", "Answer", "Become", "Carry", "Dim", "Law", "Need", "Op", "Reason", "Refusal", "SetAttribute",
    "Shape", "Vanish", "most_telling",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Need:
    """Input `slot` is to count as `affine(input)`: a constant is edited, another value is produced like that.

    missing: the shape of the zeros that stand in for an optional operand that is not there.
    grow: the edit may make a constant longer (by broadcasting), e.g. a scalar bias.
    inverse: the map undoes (part of) the source's: refused where that would be ill-conditioned.
    shape: what the constant is broadcast to, whether the map says so or not.
    plain: a dequantized constant may become a floating one, where it takes more than a scale (a bias).
    like: the slot whose element type a missing operand has; None: the op's weight.
    """

    slot: int
    affine: Affine
    missing: tuple[int, ...] | None = None
    grow: bool = False
    inverse: bool = False
    shape: tuple[int, ...] | None = None
    plain: bool = False
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

    def is_quantized(self, slot: int) -> bool:
        """Whether the operand is computed from a quantized constant."""
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
