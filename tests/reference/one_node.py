"""One node as a model, run by ONNX Runtime in float32 without optimisations and by the float64 reference.

A float32 result may differ from the exact one by γ_k·M: k roundings on the longest path, M the same op on absolute
values (Higham, Accuracy and Stability of Numerical Algorithms, ch. 3).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bnfold.reference import Evaluator

U = 2.0**-24

Arrays = list[np.ndarray | None]


def one_node(op: str, inputs: Sequence[np.ndarray | None], opset: int, outputs: int = 1, /, **attributes: Any):
    """A model of one node whose inputs are all graph inputs; an input of None is left out."""
    names = ["" if x is None else f"x{i}" for i, x in enumerate(inputs)]
    node = helper.make_node(op, names, [f"y{i}" for i in range(outputs)], **attributes)
    given = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for name, x in zip(names, inputs, strict=True)
        if x is not None
    ]
    results = [helper.make_value_info(name, onnx.TypeProto()) for name in node.output]
    graph = helper.make_graph([node], "one", given, results)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def feeds(inputs: Sequence[np.ndarray | None]) -> dict[str, np.ndarray]:
    return {f"x{i}": x for i, x in enumerate(inputs) if x is not None}


def judge(model: onnx.ModelProto, given: Mapping[str, np.ndarray], **options: Any) -> list[np.ndarray]:
    return list(Evaluator(model, **options).run(given).values())


def provider(model: onnx.ModelProto, given: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """ONNX Runtime's outputs on the CPU. Skips where it is not installed, fails where it does not run the model."""
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(given))


def compare(
    op: str, inputs: Sequence[np.ndarray | None], opset: int, tolerance: Any, outputs: int = 1, /, **attributes: Any
):
    """Provider and judge agree within `tolerance` (a number, an array, or a function of the exact outputs)."""
    model, given = one_node(op, inputs, opset, outputs, **attributes), feeds(inputs)
    theirs, exact = provider(model, given), judge(model, given)
    own = judge(model, given, dtype=None)
    for index, (ours, y, native) in enumerate(zip(exact, theirs, own, strict=True)):
        case = f"{op}-{opset} output {index} {attributes} {[None if x is None else x.shape for x in inputs]}"
        assert ours.shape == y.shape == native.shape, f"{case}: {ours.shape} is not {y.shape}"
        assert native.dtype == y.dtype, f"{case}: {native.dtype} is not {y.dtype}"
        if y.dtype.kind != "f":
            np.testing.assert_array_equal(ours, y, err_msg=case)
            np.testing.assert_array_equal(native, y, err_msg=case)
            continue
        assert ours.dtype == np.float64, case
        allowed = tolerance(ours) if callable(tolerance) else tolerance
        for name, result in (("provider", y), ("native", native)):
            equal = (result == ours) | (np.isnan(result) & np.isnan(ours))
            with np.errstate(invalid="ignore"):
                worst = np.where(equal, 0, np.abs(result.astype(np.float64) - ours) - allowed).max(initial=-1)
            assert worst <= 0, f"{case}: {name} beyond its rounding by {worst:.3g}"


def linear(
    op: str, inputs: Sequence[np.ndarray | None], opset: int, roundings: int, outputs: int = 1, /, **attributes: Any
):
    """`compare` for an op that is linear in its operands: the bound is γ_k times the op on absolute values."""
    magnitude = judge(
        one_node(op, inputs, opset, outputs, **attributes),
        feeds([x if x is None or x.dtype.kind != "f" else np.abs(x) for x in inputs]),
    )[0]
    gamma = roundings * U / (1 - roundings * U)
    compare(op, inputs, opset, gamma * magnitude, outputs, **attributes)


def relative(ulps: float, floor: float = 0.0):
    """A tolerance of so many float32 ulps of the result, at least of `floor`."""
    return lambda y: ulps * 2 * U * np.maximum(np.abs(y), floor)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def int64(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


__all__ = [
    "TensorProto",
    "U",
    "compare",
    "feeds",
    "int64",
    "judge",
    "linear",
    "normal",
    "one_node",
    "provider",
    "relative",
]
