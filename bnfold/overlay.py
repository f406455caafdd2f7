"""What a search works on: the plan so far over an untouched graph, and an op as it looks with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from .affine import Affine, Array
from .dims import Shape
from .gauge import Become
from .weights import Tensor

if TYPE_CHECKING:
    from .graph import Graph, Node

_T = TypeVar("_T")

Route: TypeAlias = "tuple[Node, Route] | None"  # the ops by which a demand came, the last one first


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
    ups: list[tuple[Node, int, Affine, Route]] = field(default_factory=list["tuple[Node, int, Affine, Route]"])
    downs: dict[Node, tuple[dict[int, Affine], Route]] = field(
        default_factory=dict["Node", "tuple[dict[int, Affine], Route]"]
    )
    siblings: list[tuple[str, Route]] = field(default_factory=list["tuple[str, Route]"])

    def copy(self) -> Overlay:
        return Overlay(
            dict(self.edits), {n: dict(a) for n, a in self.attributes.items()}, dict(self.produced),
            dict(self.carried), set(self.accepted), dict(self.vanished), dict(self.added), dict(self.became),
            dict(self.through), set(self.directions), list(self.ups),
            {n: (dict(s), p) for n, (s, p) in self.downs.items()}, list(self.siblings),
        )  # fmt: skip


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

    def is_quantized(self, slot: int) -> bool:
        return self._node.has(slot) and self._graph.is_quantized(self._node.inputs[slot])

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
