# torch leaves parts of its interface untyped, and onnxruntime all of it: what comes from them is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false
"""A trained network as ONNX with its BatchNormalizations still in the graph, and what onnxruntime makes of it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import UnsupportedModel

__all__ = ["export", "outputs", "quietly"]


@contextmanager
def quietly() -> Generator[None]:
    """Without what torch's exporter says about itself."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # torchvision's ops are not registered: none is used
    with warnings.catch_warnings():
        for message in ("_check_is_size will be removed", r"`isinstance\(treespec, LeafSpec\)` is deprecated"):
            warnings.filterwarnings("ignore", message, FutureWarning)  # torch about its own code
        warnings.filterwarnings("ignore", message="The tensor attributes .*_flat_weights", category=UserWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        try:
            yield
        finally:
            log.setLevel(level)


def export(model: nn.Module, images: Tensor, *, output: str = "output") -> onnx.ModelProto:
    """`model` as ONNX with the input `image` and a dynamic batch; `images` are at least three examples of it.

    `optimize=False`: the exporter's optimizer folds some BNs by itself. Raises UnsupportedModel.
    """
    exported = torch.onnx.export(
        model,
        (images[:3],),
        dynamo=True,
        optimize=False,
        verbose=False,
        external_data=False,
        input_names=["image"],
        output_names=[output],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    if exported is None:
        raise UnsupportedModel("torch.onnx.export returned no program.")
    proto = exported.model_proto
    _strip(proto)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def outputs(proto: onnx.ModelProto, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """What onnxruntime computes; images are converted to the type of the model's input, and the result to float32."""
    import onnxruntime

    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    half = image.type == "tensor(float16)"
    (output,) = session.run(None, {image.name: images.astype(np.float16 if half else np.float32)})
    return np.asarray(output, np.float32)


def _strip(proto: onnx.ModelProto) -> None:
    """Remove doc strings and metadata: the exporter writes stack traces there, with the paths of this machine."""
    proto.ClearField("doc_string")
    proto.ClearField("metadata_props")
    graph = proto.graph
    graph.ClearField("doc_string")
    for part in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
