"""The networks of models/ folded as modules, as programs and as ONNX files: the same counts, the same weights."""

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("onnxscript")

import onnx  # noqa: E402

import bnfold  # noqa: E402
from bnfold import pytorch  # noqa: E402
from bnfold.train.digits import ARCHITECTURES, roughen  # noqa: E402


def network(name: str) -> Any:
    architecture = ARCHITECTURES[name]
    torch.manual_seed(3)
    net = roughen(architecture.build())
    with torch.no_grad():
        for _ in range(3):
            net(torch.rand(16, 1, 8, 8))  # statistics that are not those of a new module
    return architecture.deploy(net.eval())


def as_onnx(net: Any, image: Any) -> onnx.ModelProto:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(net, (image,), dynamo=True, optimize=False, verbose=False)
    assert exported is not None
    return exported.model_proto


@pytest.mark.filterwarnings("ignore")  # torch.export has words about the weights of an LSTM
@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_modules_programs_and_files_agree(name: str):
    net = network(name)
    image = torch.rand(3, 1, 8, 8).to(next(net.parameters()).dtype)
    module = pytorch.fold(net, (image,))
    program = pytorch.fold_exported(torch.export.export(net, (image,), strict=False))
    file = bnfold.fold(as_onnx(net, image))
    counts = [
        (sum(f.is_normalization for f in report.folded), len(report.unfolded))
        for report in (module.report, program.report, file.report)
    ]
    assert counts[0] == counts[1] == counts[2], counts
    assert counts[0][0] > 0
    assert module.check()
    held = {t.name: onnx.numpy_helper.to_array(t) for t in file.model.graph.initializer}
    biases = {f"{n.input[1].removesuffix('weight')}bias": n.input[2] for n in file.model.graph.node if len(n.input) > 2}
    state, compared = module.module.state_dict(), 0
    for each in module.report.recipe.marks:
        mine, theirs = state[each].detach().numpy(), held.get(each, held.get(biases.get(each, "")))
        if theirs is None or mine.shape != theirs.shape:
            continue
        one = float(np.finfo(mine.dtype).eps) * np.abs(theirs).max()
        assert np.abs(mine.astype(np.float64) - theirs).max() <= 2 * one, each
        compared += 1
    # torch.onnx writes the weights of an LSTM in one piece, and those of a linear layer on tokens turned round
    elsewhere = {"lstm": 2, "tokens": 4}.get(name, 0)
    assert compared == len(module.report.recipe.marks) - elsewhere


def test_all_of_models_are_defined_here():
    assert {path.stem for path in (Path(__file__).parents[2] / "models").glob("*.onnx")} == set(ARCHITECTURES)
