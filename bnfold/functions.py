"""Model-local functions: those that hold a BatchNormalization are inlined, so that each call folds by itself."""

from __future__ import annotations

import onnx

from .bodies import nodes_of

_Id = tuple[str, str, str]
_MOST = 1_000_000  # nodes that inlining may make: functions that call one another twice each grow without bounds


def inlined(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """The model with the functions inlined that hold a BatchNormalization, themselves or in a function that they call.

    None where there is no such function, or where onnx cannot inline it.
    """
    holding = _holding(model)
    if not holding or not _is_finite(model, frozenset(holding)):
        return None
    from onnx import inliner

    try:
        return inliner.inline_selected_functions(model, [(domain, name) for domain, name, _ in holding], exclude=False)
    except Exception:  # whatever onnx has against it: the functions stay, and the report says so
        return None


def _holding(model: onnx.ModelProto) -> list[_Id]:
    bodies = {(f.domain, f.name, f.overload): list(f.node) for f in model.functions}
    found = {key for key, nodes in bodies.items() if any(_is_source(node) for node in nodes_of(nodes))}
    while True:
        callers = {key for key, nodes in bodies.items() if any(_calls(node) in found for node in nodes_of(nodes))}
        if callers <= found:
            return [key for key in bodies if key in found]
        found |= callers


def _is_finite(model: onnx.ModelProto, holding: frozenset[_Id]) -> bool:
    """Whether inlining ends, and with no more than _MOST nodes."""
    calls: dict[_Id, tuple[list[_Id], int]] = {}
    for f in model.functions:
        nodes = list(nodes_of(f.node))
        calls[f.domain, f.name, f.overload] = [_calls(n) for n in nodes if _calls(n) in holding], len(nodes)
    sizes: dict[_Id, int] = {}
    open_: set[_Id] = set()
    wanted = [_calls(node) for node in nodes_of(model.graph.node) if _calls(node) in holding]
    stack = list(dict.fromkeys(wanted))
    while stack:
        key = stack[-1]
        missing = [each for each in dict.fromkeys(calls[key][0]) if each not in sizes]
        if key in sizes or not missing:
            sizes.setdefault(key, calls[key][1] + sum(sizes[each] for each in calls[key][0]))
            open_.discard(stack.pop())
        elif key in open_ and any(each in open_ for each in missing):
            return False  # it calls itself
        else:
            open_.add(key)
            stack += missing
    return sum(sizes[key] for key in wanted) <= _MOST


def _is_source(node: onnx.NodeProto) -> bool:
    return node.op_type == "BatchNormalization" and node.domain in ("", "ai.onnx")


def _calls(node: onnx.NodeProto) -> _Id:
    return (node.domain, node.op_type, node.overload)
