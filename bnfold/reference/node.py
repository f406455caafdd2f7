"""One node as a kernel sees it: its attributes as Python values, with the defaults of the opset it belongs to.

A kernel is a plain function `(node, *inputs) -> outputs` on numpy arrays; an optional input that is absent is None.
`promote` says that every float is float64; otherwise a kernel works in the types that it is given.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import AttributeProto, defs

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Node:
    """A node whose attribute references are resolved. `since` is the opset that introduced this version of the op."""

    op_type: str
    domain: str
    name: str
    since: int
    attributes: Mapping[str, Any]
    outputs: tuple[str, ...]
    promote: bool

    def __getitem__(self, attribute: str) -> Any:
        try:
            return self.attributes[attribute]
        except KeyError:
            raise ValueError(f"it has no attribute {attribute!r}") from None

    def get(self, attribute: str, default: Any = None) -> Any:
        return self.attributes.get(attribute, default)

    def wants(self, output: int) -> bool:
        """Whether anybody may read that output."""
        return output < len(self.outputs) and self.outputs[output] != ""

    def __str__(self) -> str:
        return describe(self.op_type, self.domain, self.name, self.outputs)


Kernel = Callable[..., Sequence[Any]]


def describe(op_type: str, domain: str, name: str, outputs: Sequence[str]) -> str:
    """How messages name a node: by its name, or by its first output when it has none."""
    op = f"{domain}:{op_type}" if domain else op_type
    return f"{op} {name!r}" if name else f"{op}({next((o for o in outputs if o), '')})"


@dataclass(frozen=True, slots=True)
class Schema:
    """What onnx knows of one version of an op."""

    since: int
    attributes: frozenset[str]
    defaults: Mapping[str, AttributeProto]
    function: onnx.FunctionProto | None


@cache
def schema(op_type: str, opset: int, domain: str) -> Schema | None:
    """The op's version in that opset, or None when the opset does not have the op."""
    try:
        found = defs.get_schema(op_type, opset, domain)
    except defs.SchemaError:
        return None
    defaults = {
        name: attribute.default_value
        for name, attribute in found.attributes.items()
        if attribute.default_value.type != AttributeProto.UNDEFINED
    }
    body = found.function_body  # an empty one, without nodes, where the op is defined by no function
    function = body if body.node else None
    return Schema(found.since_version, frozenset(found.attributes), defaults, function)


def floating(x: Array) -> bool:
    """Whether x holds floats, bfloat16 and the float8 types included."""
    return np.issubdtype(x.dtype, np.floating) or x.dtype.name.startswith(("bfloat", "float"))


def lowest(dtype: np.dtype[Any]) -> Any:
    """The neutral element of the maximum: −∞, False, or the smallest integer."""
    if dtype.kind == "b":
        return False
    return np.iinfo(dtype).min if dtype.kind in "iu" else -np.inf


def highest(dtype: np.dtype[Any]) -> Any:
    """The neutral element of the minimum."""
    if dtype.kind == "b":
        return True
    return np.iinfo(dtype).max if dtype.kind in "iu" else np.inf
