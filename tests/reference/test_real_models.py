"""Models that others trained: ONNX Runtime and the judge agree about the original, as well as float32 allows."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from bnfold.reference import EvaluationError, Evaluator, UnsupportedOp

from .one_node import provider

FREE = {"p2o.DynamicDimension.1": 320, "p2o.DynamicDimension.2": 320}
RUNS = {
    "deeploy-ae1d": "network.onnx",
    "dory-tcn": "TCN.onnx",
    "fsanet-1x1": "fsanet-1x1-iter-688590.onnx",
    "gtcrn-simple": "gtcrn_simple.onnx",
    "mesonet": "model.onnx",
    "nids-mlp": "model.onnx",
    "onnx-bn-training-mode": "model.onnx",
    "ppocr-det-prune-op14": "ch_ppocr_mobile_v2.0_det_prune_infer.onnx",
    "sinet": "SINet.onnx",
    "trt-residual-block": "residual_block.onnx",
    "ultraface-rfb320": "version-RFB-320.onnx",
}
REFUSED = {
    "keras-test-model-0": ("test_model_0_no_opt.onnx", EvaluationError, "Identity:0"),
    "qonnx-espcn-subpixel": ("quant_model.onnx", UnsupportedOp, "Quant"),
}


def load(folder: Path, *parts: str) -> onnx.ModelProto:
    path = folder.joinpath(*parts)
    if not path.is_file():
        pytest.skip(f"{path.name} is not in the folder of real models")
    return onnx.load(path)


def inputs(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    constant = {proto.name for proto in model.graph.initializer}
    given: dict[str, np.ndarray] = {}
    for value in model.graph.input:
        if value.name not in constant:
            dims = [FREE.get(d.dim_param, max(d.dim_value, 1)) for d in value.type.tensor_type.shape.dim]
            given[value.name] = rng.standard_normal(dims).astype(np.float32)
    if "var" in given:  # of a BatchNormalization
        given["var"] = np.abs(given["var"])
    return given


@pytest.mark.parametrize("name", RUNS)
def test_judge_and_provider_agree(real_models: Path, name: str):
    model = load(real_models, name, RUNS[name])
    given = inputs(model)
    exact, own = Evaluator(model).run(given), Evaluator(model, dtype=None).run(given)
    for (output, y), ours, theirs in zip(exact.items(), own.values(), provider(model, given), strict=True):
        assert y.dtype == np.float64
        assert y.shape == theirs.shape == ours.shape
        assert ours.dtype == theirs.dtype
        rms = float(np.sqrt(np.mean(np.square(y))))
        assert rms > 0, output
        error, expected = (float(np.sqrt(np.mean(np.square(z - y)))) for z in (theirs, ours))
        assert error <= 10 * expected + 2.0**-24 * rms, f"{output}: {error:.3g}, the judge in float32 {expected:.3g}"


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_run_says_why(real_models: Path, name: str):
    file, error, message = REFUSED[name]
    model = load(real_models, name, file)
    given = {value.name: np.zeros([1 if d.dim_value == 0 else d.dim_value for d in value.type.tensor_type.shape.dim],
             dtype=np.float32) for value in model.graph.input}  # fmt: skip
    with pytest.raises(error, match=message):
        Evaluator(model).run({name: given[name] for name in [model.graph.input[0].name]})
