"""Inputs that carry a state from one step to the next: an RNN's first state, a cache that comes back as an output.

They start at zero and stay small: that is what they are when a model begins, and where gates are not saturated.
"""

import re
from collections.abc import Sequence

from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto

from .sizes import GraphInput

__all__ = ["state_inputs"]

_SLOTS: dict[str, tuple[int, ...]] = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}
_LAYOUT = frozenset(
    ("Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Slice", "Split", "Expand", "Tile")
)
_TURNS = frozenset(("past", "present", "prev", "previous", "next", "new", "old", "cur", "current", "last"))
_SIDES = frozenset(("in", "out", "input", "output"))  # these alone say nothing: input_image, output_image
_STATES = frozenset(
    ("state", "states", "hidden", "cell", "cache", "memory", "mem", "mems", "key", "value", "h", "c", "kv", "buffer")
)
_LETTERS = {"h0": "h", "hn": "h", "c0": "c", "cn": "c", "hx": "h", "cx": "c", "hy": "h", "cy": "c"}
_FLOATS = frozenset((TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE))


def state_inputs(model: ModelProto, inputs: Sequence[GraphInput]) -> frozenset[str]:
    """The floating inputs that are states. Never all of them: something has to be the data."""
    floating = [value for value in inputs if value.elem_type in _FLOATS]
    initial = _initial(model.graph)
    found = {v.name for v in floating if v.name in initial or any(_pair(v, out) for out in model.graph.output)}
    return frozenset(found) if len(found) < len(inputs) else frozenset()


def _initial(graph: GraphProto) -> set[str]:
    """What an RNN starts from, followed back through layout."""
    found: set[str] = set()
    for node in reversed(graph.node):
        found.update(node.input[slot] for slot in _SLOTS.get(node.op_type, ()) if slot < len(node.input))
        if not found.isdisjoint(node.output):
            if node.op_type == "Concat":
                found.update(node.input)
            elif node.op_type in _LAYOUT:
                found.add(node.input[0])
    return found - {""}


def _pair(value: GraphInput, output: ValueInfoProto) -> bool:
    """Whether the output is the next value of that input: by name, element type and shape."""
    mine, theirs = _plain(value.name), _plain(output.name)
    if mine is None or mine != theirs:
        return False
    tensor = output.type.tensor_type
    if tensor.elem_type != value.elem_type or len(tensor.shape.dim) != len(value.dims):
        return False
    sizes = zip(value.dims, tensor.shape.dim, strict=True)
    return all(not isinstance(mine, int) or not dim.dim_value or dim.dim_value == mine for mine, dim in sizes)


def _plain(name: str) -> tuple[str, ...] | None:
    """The words of a name without those that say on which side it stands; None when nothing hints at a state."""
    text = re.sub(r"key_?values?(?=.*(?:key|value))", "", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    spelled = [match.group() for match in re.finditer(r"[a-z]+\d?|\d+", text)]
    words = [m.group() for word in spelled for m in re.finditer(r"[a-z]+|\d+", _LETTERS.get(word, word))]
    hint = any(word in _TURNS or word in _STATES for word in words)
    rest = tuple(word for word in words if word not in _TURNS and word not in _SIDES)
    rest = rest[:-1] if rest[-1:] == ("n",) else rest  # stateN
    return rest if hint and rest else None
