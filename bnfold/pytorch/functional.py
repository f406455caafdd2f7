# torch leaves parts of its interface untyped: what comes from there is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Programs without side effects: relu_(x) is relu(x) where nobody else sees x; else torch takes the writing out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch.export import ExportedProgram
from torch.fx import Node

from .aten import name_of, writes

# calls that surely make a tensor of their own; others may give a view, or their input itself, without saying so
_FRESH = frozenset(
    "conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d linear addmm batch_norm "
    "layer_norm group_norm instance_norm embedding add sub mul div rsub neg cat relu sigmoid tanh silu gelu leaky_relu "
    "elu hardtanh hardswish hardsigmoid softmax mean sum exp pow sqrt where maximum minimum matmul mm bmm clone "
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool2d adaptive_avg_pool1d".split()
)


def functional(program: ExportedProgram) -> ExportedProgram:
    """The program without calls that change a value which somebody else still reads."""
    order = {node: k for k, node in enumerate(program.graph.nodes)}
    for node in program.graph.nodes:
        if node.op == "call_function" and writes(node) and not is_harmless(node, order):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns itself of what it does here
                return program.run_decompositions({})
    return program


def is_harmless(node: Node, order: Mapping[Node, int]) -> bool:
    """relu_(x) is relu(x) where x is nobody's but this call's from here on, and no view of anything."""
    schema: Any = getattr(node.target, "_schema", None)
    written = [k for k, a in enumerate(schema.arguments) if a.alias_info is not None and a.alias_info.is_write]
    if written != [0] or not node.args or not isinstance(node.args[0], Node):
        return False
    value = node.args[0]
    if value.op != "call_function" or not (_is_fresh(value) or writes(value)):
        return False
    return all(user is node or (order[user] < order[node] and _is_fresh(user)) for user in value.users)


def _is_fresh(node: Node) -> bool:
    return node.op == "call_function" and not writes(node) and name_of(node).partition(".")[0] in _FRESH
