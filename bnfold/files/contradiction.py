"""Why a model that the engine stumbled over is no sound one: asked only then, for the answer takes longer than a fold.

The structure (structure.py) is looked at in every model; that attributes and shapes go together is ONNX's own to judge.
"""

from __future__ import annotations

import onnx
import onnx.checker
import onnx.shape_inference

from .external import is_external, tensors
from .wire import is_marked

_ERRORS = (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, RuntimeError, TypeError)


def contradiction(model: onnx.ModelProto) -> str | None:
    """What ONNX's checker or its strict shape inference finds wrong with `model`, on one line; None: nothing."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    graph = copied.graph
    inputs = {value.name for value in graph.input}
    for proto in [proto for proto in graph.initializer if is_external(proto) or is_marked(proto)]:
        if proto.name not in inputs:  # an input is all that the checker has to know, and needs no bytes
            graph.input.append(onnx.helper.make_tensor_value_info(proto.name, proto.data_type, proto.dims))
        graph.initializer.remove(proto)
    if any(is_external(proto) or is_marked(proto) for proto in tensors(copied)):
        return None
    for look in (
        lambda: onnx.checker.check_model(copied),  # pyright: ignore[reportUnknownMemberType]  # its PathLike is bare
        lambda: onnx.shape_inference.infer_shapes(copied, check_type=True, strict_mode=True, data_prop=True),
    ):
        try:
            look()
        except _ERRORS as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            return " ".join(lines[:1])[:300] or type(error).__name__
    return None
