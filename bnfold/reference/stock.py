"""onnx's own reference for the ops that select, move or compare elements, or that handle sequences.

Only ops on this list are taken: elsewhere onnx's reference is wrong for some opset or attribute, or below float64.
"""

from typing import Any

from onnx import NodeProto

from bnfold.reference.node import Kernel, Node

_TAKEN = frozenset(
    {
        *(
            "BitShift",
            "CenterCropPad",
            "Compress",
            "ConcatFromSequence",
            "CumProd",
            "Det",
            "GatherElements",
            "GatherND",
        ),
        *("NonMaxSuppression", "NonZero", "Optional", "OptionalGetElement", "OptionalHasElement"),
        *(
            "ReverseSequence",
            "Scatter",
            "ScatterElements",
            "ScatterND",
            "SequenceAt",
            "SequenceConstruct",
            "SequenceEmpty",
        ),
        *("SequenceErase", "SequenceInsert", "SequenceLength", "SplitToSequence", "TopK", "Trilu", "Unique"),
    }
)


def _no_log(*_: Any) -> None:
    """onnx's reference logs each op as it runs."""


def stock_kernel(proto: NodeProto, domain: str, opset: int) -> Kernel | None:
    """onnx's implementation of a node of the main domain, or None if it is not one that can be trusted."""
    if domain or proto.op_type not in _TAKEN:
        return None
    from onnx.reference.ops import load_op  # it imports every op that onnx has, which few models need

    implementation: Any = load_op(domain, proto.op_type, opset)
    parameters: dict[str, Any] = {"log": _no_log, "opsets": {"": opset}, "new_ops": None, "verbose": 0}
    op: Any = implementation(proto, parameters)

    def run(_: Node, *inputs: Any) -> Any:
        return op.run(*inputs)

    return run
