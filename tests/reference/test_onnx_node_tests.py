"""onnx's own node tests, in the models' types and promoted: every one that can be evaluated gives what it expects."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bnfold.reference import Evaluator, UnsupportedOp
from tests.graphs import node_tests

# What onnx expects there, and why the reference gives something else.
OTHERWISE = {
    "test_resize_downsample_scales_linear_align_corners": "length_resized is the output's size, as in ONNX Runtime",
    "test_resize_downsample_scales_cubic_align_corners": "length_resized is the output's size, as in ONNX Runtime",
    "test_dynamicquantizelinear": "promoted, a tie is rounded as float64 sees it",
    "test_dynamicquantizelinear_expanded": "promoted, a tie is rounded as float64 sees it",
    "test_attention_4d_causal_bf16_expanded": "one bfloat16 ulp in a function of many ops",
}


def _cases() -> list[Any]:
    return [case for case in node_tests() if case.name not in OTHERWISE]


def _array(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def _same(ours: Any, expected: Any, case: Any) -> bool:
    if not isinstance(expected, np.ndarray):
        return True  # sequences and optionals: their tensors are other tests' outputs
    if expected.dtype.kind in "OSU":
        return [str(v) for v in ours.ravel()] == [str(v) for v in expected.ravel()]
    if ours.shape != expected.shape:
        return False
    if expected.dtype.kind in "biu":
        return bool(np.array_equal(ours, expected))
    half = expected.dtype.itemsize < 4
    kind = np.complex128 if expected.dtype.kind == "c" else np.float64
    rtol = max(case.rtol or 1e-3, 1e-2 if half else 1e-5)  # the case's own tolerance
    return bool(np.allclose(ours.astype(kind), expected.astype(kind), rtol=rtol, atol=1e-5, equal_nan=True))


@pytest.mark.parametrize("dtype", [None, np.float64], ids=["own", "float64"])
def test_node_tests(dtype: type | None):
    agreed, differ = 0, []
    for case in _cases():
        for given, expected in case.data_sets or []:
            names = [value.name for value in case.model.graph.input]
            feeds = {name: _array(value) for name, value in zip(names, given, strict=False)}
            try:
                found = Evaluator(case.model, dtype=dtype).run(feeds)
            except UnsupportedOp:
                continue
            for y, wanted in zip(found.values(), expected, strict=False):
                if _same(y, _array(wanted), case):
                    agreed += 1
                else:
                    differ.append(case.name)
    assert differ == []
    assert agreed > 1000


def test_coverage():
    """What is left out, by operator: texts, trees, bits of floats, and maps over sequences."""
    lacking: set[str] = set()
    for case in _cases():
        try:
            Evaluator(case.model)
        except UnsupportedOp as error:
            lacking.add(str(error).split("(")[0].split(" ")[0].rstrip(":"))
    assert not lacking & KNOWN, lacking & KNOWN


KNOWN = frozenset(
    (
        *("Attention", "RotaryEmbedding", "GridSample", "RoiAlign", "NonMaxSuppression", "DFT", "STFT", "DeformConv"),
        *("Col2Im", "MaxUnpool", "CenterCropPad", "Scatter", "NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"),
        *(
            "QLinearMatMul",
            "QLinearConv",
            "ConvInteger",
            "TensorScatter",
            "Einsum",
            "Trilu",
            "Gelu",
            "Mish",
            "HardSwish",
        ),
    )
)
