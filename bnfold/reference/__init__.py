"""The float64 reference: `Evaluator` runs a model with every float promoted, `evaluate_node` runs one node.

The kernels are bnfold's own wherever arithmetic is done; onnx's reference supplies the ops that only move data.
"""

from bnfold.errors import UnsupportedOp
from bnfold.reference.evaluator import Evaluator, evaluate_node
from bnfold.reference.program import EvaluationError

__all__ = ["EvaluationError", "Evaluator", "UnsupportedOp", "evaluate_node"]
