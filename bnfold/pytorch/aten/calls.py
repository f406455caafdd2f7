# torch leaves parts of its interface untyped: what comes from there is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""What an ATen call is to the engine: the operands and attributes of an ONNX node, and the table that the rules enter.

An op, or a way to call it, that is not in the table becomes a node of a domain that no law knows: UNKNOWN_OP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch.fx import Node

Arguments: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Number:
    """A number that stands in the code, as an operand."""

    value: float


@dataclass(frozen=True, slots=True)
class Ints:
    """A list of sizes or axes, as an operand; `scalar`: of rank 0."""

    values: tuple[int, ...]
    scalar: bool = False


@dataclass(frozen=True, slots=True)
class Shaped:
    """A constant, read in another shape."""

    node: Node
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Made:
    """An ONNX node: operands are values, constants, or None. `exact`: attributes that ONNX would round to float32."""

    kind: str
    operands: Sequence[Node | Number | Ints | Shaped | None]
    attributes: dict[str, Any] = field(default_factory=dict[str, Any])
    exact: dict[str, float] = field(default_factory=dict[str, float])
    domain: str = ""


Rule: TypeAlias = Callable[[Node, Arguments], "Made | None"]
RULES: dict[str, Rule] = {}


def made(node: Node) -> Made | None:
    """The ONNX node of an ATen call; None where no op has this meaning."""
    found = RULES.get(name_of(node))
    if found is None:
        return None
    given = arguments(node)
    return None if given is None else found(node, given)


def name_of(node: Node) -> str:
    """The op's name and overload, "relu.default"; what writes into its first argument counts as what does not."""
    name = str(node.target).removeprefix("aten.")
    base, _, overload = name.partition(".")
    return f"{base.removesuffix('_')}.{overload}" if writes(node) else name


def is_norm(node: Node) -> bool:
    """Whether the call is a batch normalization, of whatever name."""
    return "batch_norm" in name_of(node).partition(".")[0]


def writes(node: Node) -> bool:
    """Whether the call changes an argument of its own."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def arguments(node: Node) -> dict[str, Any] | None:
    """All the arguments of a call by their name in the schema, defaults included."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return None
    found: dict[str, Any] = {}
    for position, argument in enumerate(schema.arguments):
        if position < len(node.args):
            found[argument.name] = node.args[position]
        elif argument.name in node.kwargs:
            found[argument.name] = node.kwargs[argument.name]
        else:
            found[argument.name] = argument.default_value if argument.has_default_value() else None
    return found


def rank(node: Any) -> int:
    """The rank of a tensor value; -1 where it is none."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    return value.dim() if isinstance(value, torch.Tensor) else -1


def sizes(node: Node) -> tuple[Any, ...]:
    return tuple(node.meta["val"].shape)


def rule(*names: str) -> Callable[[Rule], Rule]:
    def enter(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return enter


def spread(value: Any, count: int) -> list[int] | None:
    """A number or a list for `count` axes; None if it holds a size that is not known."""
    items = list(value) if isinstance(value, list | tuple) else [value]
    if not all(isinstance(i, int) for i in items):
        return None
    return items * count if len(items) == 1 else items


def static(values: Any) -> bool:
    return isinstance(values, list | tuple) and all(isinstance(i, int) for i in values)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
