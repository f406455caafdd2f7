"""The networks of models/ folded as modules, as programs and as ONNX files: the same counts, the same weights."""

import logging
import warnings
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
    same = [n for n in module.module.state_dict() if n in held and held[n].dtype.kind == "f"]
    assert same
    for each in same:
        mine = module.module.state_dict()[each].detach().numpy()
        if mine.shape != held[each].shape:
            continue  # a file may hold it transposed
        one = float(np.finfo(mine.dtype).eps) * np.abs(held[each]).max()
        assert np.abs(mine.astype(np.float64) - held[each]).max() <= 2 * one, each
