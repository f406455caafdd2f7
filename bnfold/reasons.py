"""Why an affine map stays where it is: the reasons, what would help, and a "no" with its place."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple


class Reason(StrEnum):
    """Why an affine map cannot go somewhere. `hint` says what would let it fold."""

    GRAPH_BOUNDARY = "GRAPH_BOUNDARY"
    CONFLICT = "CONFLICT"
    NONLINEAR = "NONLINEAR"
    PADDED = "PADDED"
    NEGATIVE_SCALE = "NEGATIVE_SCALE"
    ZERO_SCALE = "ZERO_SCALE"
    WRONG_AXIS = "WRONG_AXIS"
    NOT_CONSTANT = "NOT_CONSTANT"
    OVERRIDABLE = "OVERRIDABLE"
    TRAINING_MODE = "TRAINING_MODE"
    BAD_STATISTICS = "BAD_STATISTICS"
    MALFORMED = "MALFORMED"
    OUT_OF_RANGE = "OUT_OF_RANGE"
    QUANTIZED = "QUANTIZED"
    UNKNOWN_SHAPE = "UNKNOWN_SHAPE"
    UNKNOWN_OP = "UNKNOWN_OP"
    NO_GAIN = "NO_GAIN"
    GROWTH = "GROWTH"
    SEARCH_BUDGET = "SEARCH_BUDGET"
    SKIPPED = "SKIPPED"

    @property
    def hint(self) -> str:
        return _HINTS[self]


_HINTS = {
    Reason.GRAPH_BOUNDARY: "Outputs, inputs and captured values keep their meaning; put a linear layer between.",
    Reason.CONFLICT: "Give each reader a layer of its own, or put the normalization on each branch.",
    Reason.NONLINEAR: "Place the normalization next to a linear layer, on the same side of the activation.",
    Reason.PADDED: "Train with the normalization after the convolution, or without padding: the border is not "
    "normalized.",
    Reason.NEGATIVE_SCALE: "Keep gamma positive in training (or swap the order of the activation and the layer).",
    Reason.ZERO_SCALE: "Prune the channels whose gamma is zero, or keep gamma away from zero in training.",
    Reason.WRONG_AXIS: "The coefficients vary along an axis that this op mixes; normalize the layer's channel axis.",
    Reason.NOT_CONSTANT: "Export the weights and statistics as constants.",
    Reason.OVERRIDABLE: "Use --freeze-inputs if nobody feeds this weight, or export it without the graph input.",
    Reason.TRAINING_MODE: "Call model.eval() before the export, so that the population statistics are used.",
    Reason.BAD_STATISTICS: "Recompute the population statistics on real data before the export.",
    Reason.MALFORMED: "Export the model again: the parameters do not belong to this value.",
    Reason.OUT_OF_RANGE: "Export in float32, fold, and convert afterwards.",
    Reason.QUANTIZED: "Fold before quantization.",
    Reason.UNKNOWN_SHAPE: "Export with static shapes, or run onnx's shape inference first.",
    Reason.UNKNOWN_OP: "No law is known for this op; report it if it commutes with an affine map.",
    Reason.NO_GAIN: "Folding would not make the model smaller.",
    Reason.GROWTH: "Allow more bytes with --max-growth.",
    Reason.SEARCH_BUDGET: "Report this model: the search gave up before it had tried everything.",
    Reason.SKIPPED: "Left out by --skip, --only or --rescue.",
}

# What a reader is told first when several alternatives were refused: the obstacle that is nearest to a fold.
_TELLING = (
    Reason.NEGATIVE_SCALE, Reason.PADDED, Reason.ZERO_SCALE, Reason.OUT_OF_RANGE, Reason.GROWTH, Reason.OVERRIDABLE,
    Reason.QUANTIZED, Reason.UNKNOWN_SHAPE, Reason.WRONG_AXIS, Reason.NOT_CONSTANT, Reason.SEARCH_BUDGET,
    Reason.NO_GAIN, Reason.UNKNOWN_OP, Reason.NONLINEAR, Reason.CONFLICT, Reason.GRAPH_BOUNDARY,
)  # fmt: skip


class Refusal(NamedTuple):
    """A "no": the reason, where (a node or a value), a sentence, and the refusals of every alternative behind it.

    part: only the scale or only the shift was asked.
    """

    reason: Reason
    at: str
    message: str
    because: tuple[Refusal, ...] = ()
    direction: str = ""
    through: tuple[str, ...] = ()
    part: bool = False


def most_telling(refusals: Sequence[Refusal]) -> Refusal:
    order = {reason: i for i, reason in enumerate(_TELLING)}
    return min(refusals, key=lambda r: (r.part, order.get(r.reason, -1)))
