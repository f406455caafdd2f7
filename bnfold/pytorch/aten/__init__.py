"""ATen ops as ONNX ops of the same meaning, one node for one node; an op that has none keeps its own name."""

from . import arithmetic, layers, layout, pooling  # they enter their rules
from .calls import Ints, Made, Number, Shaped, arguments, is_norm, made, name_of, writes

__all__ = [
    "Ints",
    "Made",
    "Number",
    "Shaped",
    "arguments",
    "arithmetic",
    "is_norm",
    "layers",
    "layout",
    "made",
    "name_of",
    "pooling",
    "writes",
]
