"""Gate 1 alone on a pair of files: the fold of the first passes, and everything else about the second is found."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import bnfold
from bnfold import Verdict

from ..graphs import Builder
from ..test_cli import network

MODELS = Path(__file__).parent.parent.parent / "models"


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    onnx.save(network(kept=True), path)
    return path


def verdict(original: Path, candidate: Path | onnx.ModelProto) -> Verdict:
    result = bnfold.check(original, candidate, certificate_only=True)
    assert result.provider is None
    assert result.samples == ()
    return result.verdict


@pytest.mark.parametrize("path", sorted(MODELS.glob("*[!d].onnx")), ids=lambda path: path.stem)
def test_every_fold_of_ours_passes(path: Path, tmp_path: Path):
    result = bnfold.fold(path)
    result.save(tmp_path / "folded.onnx")
    assert verdict(path, tmp_path / "folded.onnx") is Verdict.EQUIVALENT
    assert verdict(path, path) is Verdict.EQUIVALENT


@pytest.mark.parametrize("flags", [{}, {"aggressive": True}, {"partial": True}, {"aggressive": True, "partial": True}])
def test_the_flags_that_it_was_folded_with_are_found(flags: dict[str, bool], tmp_path: Path):
    b = Builder()
    x = b.op("Relu", b.norm(b.op("Conv", b.input("x", 2, 3, 7, 8), b.weight(4, 3, 3, 3)), 4))
    y = b.op("Conv", b.norm(b.op("Relu", x), 4, positive=True), b.weight(5, 4, 3, 3), pads=[1, 1, 1, 1])
    model = b.model(y)
    onnx.save(model, tmp_path / "a.onnx")
    bnfold.fold(model, aggressive=flags.get("aggressive", False), partial=flags.get("partial", False)).save(
        tmp_path / "b.onnx"
    )
    assert verdict(tmp_path / "a.onnx", tmp_path / "b.onnx") is Verdict.EQUIVALENT


def nudge(model: onnx.ModelProto, name: str) -> None:
    """The smallest change of one element that float32 has."""
    tensor = next(each for each in model.graph.initializer if each.name == name)
    array = numpy_helper.to_array(tensor).copy()
    array.flat[0] = np.nextafter(array.flat[0], np.float32(9))
    tensor.CopyFrom(numpy_helper.from_array(array, name))


def drop_type(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE


CHANGES: dict[str, tuple[Callable[[onnx.ModelProto], object], Verdict]] = {
    "names": (
        lambda m: [setattr(n, "name", "") or setattr(n, "doc_string", "d") for n in m.graph.node],
        Verdict.EQUIVALENT,
    ),
    "folded weight": (lambda m: nudge(m, m.graph.node[0].input[1]), Verdict.NOT_EQUIVALENT),
    "folded bias": (lambda m: nudge(m, m.graph.node[0].input[2]), Verdict.NOT_EQUIVALENT),
    "other weight": (lambda m: nudge(m, "staysm"), Verdict.NOT_EQUIVALENT),
    "attribute": (lambda m: m.graph.node[0].attribute.append(helper.make_attribute("group", 1)), Verdict.EQUIVALENT),
    "op": (lambda m: setattr(m.graph.node[1], "op_type", "Tanh"), Verdict.INCONCLUSIVE),
    "edge": (lambda m: m.graph.node[2].input.__setitem__(0, "n"), Verdict.INCONCLUSIVE),
    "opset": (lambda m: setattr(m.opset_import[0], "version", 18), Verdict.INCONCLUSIVE),
    "type": (drop_type, Verdict.NOT_EQUIVALENT),
    "renamed": (lambda m: setattr(m.graph.initializer[0], "name", "other"), Verdict.INCONCLUSIVE),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_is_another_model_is_seen(change: str, net: Path, monkeypatch: pytest.MonkeyPatch):
    candidate = bnfold.fold(net).model
    assert verdict(net, candidate) is Verdict.EQUIVALENT
    edit, expected = CHANGES[change]
    edit(candidate)
    # some of these are no valid models, which loading would say first
    monkeypatch.setattr("bnfold.files.loading.validate", lambda *_: False)
    assert verdict(net, candidate) is expected


def test_a_stale_fold_does_not_pass(net: Path, tmp_path: Path):
    bnfold.fold(net).save(tmp_path / "net.folded.onnx")
    model = onnx.load(net)
    nudged = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "W")).copy() * np.float32(1.01)
    next(t for t in model.graph.initializer if t.name == "W").CopyFrom(numpy_helper.from_array(nudged, "W"))
    onnx.save(model, net)
    assert verdict(net, tmp_path / "net.folded.onnx") is Verdict.NOT_EQUIVALENT


def test_what_is_rounded_behind_a_fold_is_not_for_gate_1(tmp_path: Path):
    b = Builder()
    y = b.op("Floor", b.norm(b.op("Conv", b.input("x", 2, 3, 7, 8), b.weight(4, 3, 3, 3)), 4))
    onnx.save(b.model(y), tmp_path / "a.onnx")
    result = bnfold.fold(tmp_path / "a.onnx")
    assert result.rounded
    found = bnfold.check(tmp_path / "a.onnx", result.model, certificate_only=True)
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.certificate is not None and found.certificate.passed
    handed = bnfold.check(
        tmp_path / "a.onnx",
        result.model,
        certificate_only=True,
        certificate=result.certificate(),
        integers=result.rounded,
    )
    assert handed.verdict is Verdict.INCONCLUSIVE
    assert verdict(tmp_path / "a.onnx", tmp_path / "a.onnx") is Verdict.EQUIVALENT, "a check may have sent it back"


def test_a_certificate_that_is_handed_in_decides_alone(net: Path):
    result = bnfold.fold(net)
    found = bnfold.check(net, result.model, certificate=result.certificate(), certificate_only=True)
    assert found.verdict is Verdict.EQUIVALENT
    nudge(result.model, result.model.graph.node[0].input[1])
    found = bnfold.check(net, result.model, certificate=result.certificate(), certificate_only=True)
    assert found.verdict is Verdict.NOT_EQUIVALENT
