"""Where the nodes of a loaded model really run: a session that was asked for a GPU runs on the CPU without a word.

Nodes are counted by operator with optimisations disabled, where each node of the file is a node of the session.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from ..bodies import nodes_of
from .catalogue import CPU, named

__all__ = ["FOLDED", "Placement", "elsewhere", "placed"]

FOLDED = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # what takes in a normalization nearly always


@dataclass(frozen=True)
class Placement:
    """asked: the provider's full name. nodes: for every provider that got some, (name, operator) of each."""

    asked: str
    nodes: Mapping[str, tuple[tuple[str, str], ...]]

    @property
    def total(self) -> int:
        return sum(len(each) for each in self.nodes.values())

    @property
    def there(self) -> int:
        """How many nodes run on the provider that was asked."""
        return len(self.nodes.get(self.asked, ()))

    @property
    def elsewhere(self) -> dict[str, tuple[tuple[str, str], ...]]:
        return {provider: nodes for provider, nodes in self.nodes.items() if provider != self.asked}

    def __str__(self) -> str:
        """As in "53 of 55 nodes; on cpu: Shape ×2"."""
        words = f"{self.there} of {self.total} nodes" if self.elsewhere else f"all {self.total} nodes"
        for provider, nodes in self.elsewhere.items():
            counts = Counter(op or "?" for _, op in nodes)
            listed = ", ".join(f"{op} ×{count}" if count > 1 else op for op, count in sorted(counts.items()))
            words += f"; on {named(provider).short}: {listed}"
        return words

    def to_dict(self) -> dict[str, object]:
        return {
            "asked": self.asked,
            "nodes": self.total,
            "there": self.there,
            "elsewhere": {
                provider: [{"node": name, "op": op} for name, op in nodes] for provider, nodes in self.elsewhere.items()
            },
        }


def placed(asked: str, rows: Sequence[Sequence[str]]) -> Placement:
    """The placement out of [provider, node, operator] rows."""
    nodes: dict[str, list[tuple[str, str]]] = {}
    for provider, name, op in rows:
        nodes.setdefault(provider, []).append((name, op))
    return Placement(asked, {provider: tuple(each) for provider, each in nodes.items()})


def elsewhere(placement: Placement | None, model: onnx.ModelProto | None) -> str:
    """Which Conv, ConvTranspose, Gemm or MatMul did not run where it was asked to, as a sentence; "" if all did.

    model: what was loaded with optimisations disabled, so that a node that the session does not list is missed too;
    None where it was optimised, and nodes may have gone.
    """
    if placement is not None and placement.asked == CPU:
        return ""
    if placement is None:
        return "where its nodes ran cannot be read back from this onnxruntime"
    asked = named(placement.asked).short
    wrong = [
        (name, op, provider) for provider, nodes in placement.elsewhere.items() for name, op in nodes if op in FOLDED
    ]
    if wrong:
        name, op, provider = wrong[0]
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        return f"{op} {name!r}{more} ran on {named(provider).short}, not on {asked}"
    if model is None:
        return ""
    there = Counter(op for _, op in placement.nodes.get(placement.asked, ()))
    for op, count in Counter(node.op_type for node in nodes_of(model.graph.node) if node.op_type in FOLDED).items():
        if there[op] < count:
            return f"{asked} took {there[op]} of {count} {op} nodes; nothing says where the others ran"
    return ""
