"""What a search, or the shortcut, comes to: the edits that remove one source. rewrite.py carries them out."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .affine import Array
    from .gauge import Become
    from .graph import Node
    from .weights import Tensor


class Plan(NamedTuple):
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
