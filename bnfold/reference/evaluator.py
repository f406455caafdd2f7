"""The judge: an ONNX model evaluated in float64, every float tensor promoted, or in the model's own types.

Float64 rounding is 2⁻²⁹ of float32's, so what it computes is the truth that a float32 run is measured against.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from bnfold.bodies import graphs_of
from bnfold.errors import UsageError
from bnfold.reference.node import Array
from bnfold.reference.program import EvaluationError, Program, Scope
from bnfold.reference.tensors import promoted


class Evaluator:
    """A model ready to be evaluated, as often as wanted.

    model: its initializers are read once; it is not modified and not kept.
    dtype: float64 promotes every float tensor: initializers, constants, what is cast, what is fed. Integers stay.
        None evaluates in the model's own types (half floats are computed in float32 and rounded after each op).
    directory: where external data lies.
    exact: float64 arrays that replace initializers of the main graph by name.

    Raises UnsupportedOp, naming the node, when an operator is missing here.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        *,
        dtype: type | None = np.float64,
        directory: Path | None = None,
        exact: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        if dtype is not None and np.dtype(dtype) != np.float64:
            raise UsageError("The reference evaluates in float64, or in the model's own types with dtype=None.")
        self._promote = dtype is not None
        exact = {name: np.asarray(value) for name, value in (exact or {}).items()}
        dims = {proto.name: tuple(proto.dims) for graph in graphs_of(model.graph) for proto in graph.initializer}
        for name, value in exact.items():
            if name not in dims:
                raise UsageError(f"The exact value of {name!r} replaces no initializer of the model.")
            if value.shape != dims[name]:
                raise UsageError(f"The exact value of {name!r} is {value.shape}, the initializer {dims[name]}.")
        opsets = {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in model.opset_import}
        functions = {(function.domain, function.name, function.overload): function for function in model.functions}
        scope = Scope(opsets or {"": 1}, functions, self._promote, directory, exact=exact)
        self._program = Program.of_graph(model.graph, scope)
        self._required = tuple(name for name in self._program.inputs if name not in self._program.constants)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs that have to be fed: those without an initializer."""
        return self._required

    @property
    def outputs(self) -> tuple[str, ...]:
        return self._program.outputs

    def run(
        self,
        feeds: Mapping[str, np.ndarray],
        outputs: Sequence[str] | None = None,
        *,
        observe: Callable[[str, Any], None] | None = None,
    ) -> dict[str, np.ndarray]:
        """The outputs, or the values named, whichever node computes them, from the inputs by name.

        `observe(name, value)` is called with every input and every value that a node of the main graph computes, as
        soon as it is there; values are dropped after their last reader, so what it does not reduce, it keeps.

        Raises EvaluationError when an input is missing or a node's operands do not fit it.
        """
        missing = [name for name in self._required if name not in feeds]
        unknown = [name for name in feeds if name not in self._program.inputs]
        if missing or unknown:
            what = f"needs the input {missing[0]!r}" if missing else f"has no input {unknown[0]!r}"
            raise EvaluationError(f"The model {what}; its inputs are {', '.join(self._required) or 'none'}.")
        wanted = self._program.outputs if outputs is None else tuple(outputs)
        given = {name: self._fed(value) for name, value in feeds.items()}
        return dict(zip(wanted, self._program.run(given, wanted, observe=observe), strict=True))

    def _fed(self, value: Any) -> Any:
        if isinstance(value, list):  # a sequence of tensors
            return [self._fed(item) for item in value]  # pyright: ignore[reportUnknownVariableType] # a feed of any kind
        if value is None:  # an optional that holds nothing
            return None
        array: Array = np.asarray(value)
        return promoted(array) if self._promote else array


def evaluate_node(
    node: onnx.NodeProto, inputs: Sequence[np.ndarray | None], opset: Mapping[str, int]
) -> list[np.ndarray]:
    """One node's outputs in its own types, for constant expressions. `opset` is the version of each domain."""
    names = [f"{index}:{name}" for index, name in enumerate(node.input)]
    alone = onnx.NodeProto()
    alone.CopyFrom(node)
    for index, value in enumerate(inputs):
        alone.input[index] = "" if value is None else names[index]
    opsets = {"" if domain == "ai.onnx" else domain: version for domain, version in opset.items()}
    program = Program([alone], Scope(opsets, {}, promote=False, directory=None), names, list(node.output), {})
    given = {name: value for name, value in zip(names, inputs, strict=False) if value is not None}
    wanted = [name for name in node.output if name]
    found = dict(zip(wanted, program.run(given, wanted), strict=True))
    return [found[name] for name in node.output if name]
