"""The sidecar of a folded model: the source byte for byte, and new statistics for what is folded already."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from bnfold import fold, stats
from bnfold.cli import main
from tests.graphs import Builder

from .nets import Array, chained, data, saved, tensors

MODELS = Path(__file__).parents[2] / "models"


def mixed(width: int = 300) -> onnx.ModelProto:
    """Gemm, BN, then a Gemm that no fold touches, of width x width, read twice."""
    b = Builder(9)
    x = b.input("x", "batch", 5)
    h = b.op("Relu", b.norm(b.op("Gemm", x, b.weight(5, width)), width))
    weight = b.weight(width, width)
    y = b.op("MatMul", b.op("Sigmoid", b.op("MatMul", h, weight)), weight)
    return b.model(b.op("Sigmoid", y))


def run(*arguments: str, code: int = 0) -> None:
    assert main([*arguments, "-q"]) == code


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


FOLD = ("fold", "net.onnx", "--keep-statistics", "--no-check")


@pytest.mark.parametrize("name", sorted(path.name for path in MODELS.glob("*.onnx")))
def test_trained_models_come_back(name: str):
    source = (MODELS / name).read_bytes()
    Path("net.onnx").write_bytes(source)
    run(*FOLD)
    Path("net.onnx").unlink()
    run("unfold", "net.folded.onnx")
    assert Path("net.folded.unfolded.onnx").read_bytes() == source
    assert b"BatchNormalization" in source or name == "frozen.onnx"


def test_with_a_check_and_options():
    onnx.save(chained(), "net.onnx")
    source = Path("net.onnx").read_bytes()
    run("fold", "net.onnx", "--keep-statistics", "--only", "n1", "--samples", "1", "-o", "out.onnx")
    with zipfile.ZipFile("out.onnx.bnfold") as archive:
        assert json.loads(archive.read("manifest.json"))["options"]["only"] == ["n1"]
    run("unfold", "out.onnx", "-o", "back.onnx")
    assert Path("back.onnx").read_bytes() == source


def test_tensors_that_the_fold_leaves_are_taken_from_the_folded_file():
    onnx.save(mixed(2200), "net.onnx")  # 19 MB: read in pieces, its large tensors never as a whole
    source = Path("net.onnx").read_bytes()
    assert len(source) > 1 << 24
    run(*FOLD)
    assert Path("net.folded.onnx.bnfold").stat().st_size < len(source) / 50
    Path("net.onnx").unlink()
    run("unfold", "net.folded.onnx")
    assert Path("net.folded.unfolded.onnx").read_bytes() == source


def test_external_data():
    onnx.save(mixed(), "net.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    model, weights = Path("net.onnx").read_bytes(), Path("weights.bin").read_bytes()
    run(*FOLD)
    assert Path("net.folded.onnx.bnfold").stat().st_size < len(weights) / 10
    run("unfold", "net.folded.onnx")  # beside its data, which are still there
    assert Path("net.folded.unfolded.onnx").read_bytes() == model
    Path("there").mkdir()
    run("unfold", "net.folded.onnx", "-o", "there/net.onnx")
    assert Path("there/net.onnx").read_bytes() == model
    assert Path("there/weights.bin").read_bytes() == weights
    Path("weights.bin").write_bytes(b"somebody else's")
    run("unfold", "net.folded.onnx", "-o", "again.onnx", code=2)
    assert Path("weights.bin").read_bytes() == b"somebody else's"
    assert not Path("again.onnx").exists()


def test_external_data_in_place():
    onnx.save(mixed(), "net.onnx", save_as_external_data=True, location="net.onnx.data", size_threshold=0)
    model, weights = Path("net.onnx").read_bytes(), Path("net.onnx.data").read_bytes()
    run(*FOLD, "--in-place")
    assert Path("net.onnx.data").read_bytes() != weights
    Path("there").mkdir()
    run("unfold", "net.onnx", "-o", "there/net.onnx")
    assert (Path("there/net.onnx").read_bytes(), Path("there/net.onnx.data").read_bytes()) == (model, weights)


@pytest.mark.parametrize("suffix", [".json", ".textproto"])
def test_texts(suffix: str, capsys: pytest.CaptureFixture[str]):
    onnx.save(chained(), f"net{suffix}")
    source = Path(f"net{suffix}").read_bytes()
    run("fold", f"net{suffix}", "--keep-statistics", "--no-check")
    run("unfold", f"net.folded{suffix}")
    assert Path(f"net.folded.unfolded{suffix}").read_bytes() == source
    capsys.readouterr()
    run("unfold", f"net.folded{suffix}", "-o", "x.onnx", code=2)
    assert "comes back as it was" in capsys.readouterr().err


def test_bytes_that_protobuf_would_write_otherwise():
    model = chained().SerializeToString()
    model += onnx.ModelProto(doc_string="fields may come later").SerializeToString()
    Path("net.onnx").write_bytes(model)
    run(*FOLD)
    run("unfold", "net.folded.onnx")
    assert Path("net.folded.unfolded.onnx").read_bytes() == model


@pytest.mark.parametrize("damage", ["model", "missing", "cut", "manifest", "outside", "other", "literals", "no zip"])
def test_what_does_not_belong_together_is_refused(damage: str, capsys: pytest.CaptureFixture[str]):
    onnx.save(mixed(), "net.onnx")
    run(*FOLD)
    folded, beside = Path("net.folded.onnx"), Path("net.folded.onnx.bnfold")
    with zipfile.ZipFile(beside) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(parts["manifest.json"])
    match damage:
        case "model":
            content = bytearray(folded.read_bytes())
            content[-30] ^= 1
            folded.write_bytes(content)
        case "missing":
            beside.unlink()
        case "cut":
            beside.write_bytes(beside.read_bytes()[:-100])
        case "no zip":
            beside.write_bytes(b"hello")
        case "manifest":
            parts["manifest.json"] = b"[]"
        case "outside":
            manifest["source"].append({**manifest["source"][0], "name": "../escaped"})
            parts |= {"manifest.json": json.dumps(manifest).encode(), "1.bin": parts["0.bin"]}
        case "other":
            manifest["source"][0]["parts"][-1][0] += 1
            parts["manifest.json"] = json.dumps(manifest).encode()
        case _:
            parts["0.bin"] = bytes(len(parts["0.bin"]))
    if damage in ("manifest", "outside", "other", "literals"):
        with zipfile.ZipFile(beside, "w") as archive:
            for name, content in parts.items():
                archive.writestr(name, content)
    before = sorted(Path().iterdir())
    capsys.readouterr()
    run("unfold", "net.folded.onnx", code=2)
    told = capsys.readouterr().err
    assert told.startswith("Error: net.folded.onnx")
    assert len(told.splitlines()) == 1
    assert sorted(Path().iterdir()) == before


def test_nothing_is_overwritten_without_force(capsys: pytest.CaptureFixture[str]):
    onnx.save(chained(), "net.onnx")
    Path("net.folded.onnx.bnfold").write_bytes(b"mine")
    run(*FOLD, code=2)
    assert Path("net.folded.onnx.bnfold").read_bytes() == b"mine"
    assert "where the statistics would be kept" in capsys.readouterr().err
    assert not Path("net.folded.onnx").exists()
    run(*FOLD, "--force")
    Path("net.folded.unfolded.onnx").write_bytes(b"mine")
    run("unfold", "net.folded.onnx", code=2)
    run("unfold", "net.folded.onnx", "--force")


def dead(model: onnx.ModelProto) -> onnx.ModelProto:
    """With a scale of 0 in one channel of the first BatchNormalization: its folded weights are all 0."""
    bn = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
    gamma = next(t for t in model.graph.initializer if t.name == bn.input[1])
    values = numpy_helper.to_array(gamma).copy()
    values[0] = 0
    gamma.CopyFrom(numpy_helper.from_array(values, gamma.name))
    return model


def test_a_folded_model_gets_new_statistics_as_if_it_had_had_them():
    source = dead(chained())
    onnx.save(source, "net.onnx")
    feeds = data(source, 50)
    saved("x.npz", feeds)
    run(*FOLD)
    run("stats", "refresh", "net.folded.onnx", "--inputs", "x.npz", "-o", "fresh.onnx")
    expected = tensors(fold(stats.refresh(source, [feeds]).model).model)
    found = tensors(onnx.load("fresh.onnx"))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
    assert any((found[name] != old).any() for name, old in tensors(onnx.load("net.folded.onnx")).items())

    run("unfold", "fresh.onnx", "-o", "back.onnx")  # the new sidecar holds the refreshed source
    assert tensors(onnx.load("back.onnx")).keys() == tensors(source).keys()
    assert max(each.drift for each in stats.drift("back.onnx", [feeds]).layers) < 1e-5
    run("stats", "drift", "fresh.onnx", "--inputs", "x.npz", "--max-drift", "0.01")
    run("stats", "drift", "net.folded.onnx", "--inputs", "x.npz", "--max-drift", "0.01", code=1)


def test_options_of_the_fold_hold_for_the_refreshed_model(capsys: pytest.CaptureFixture[str]):
    source = chained()
    onnx.save(source, "net.onnx")
    saved("x.npz", data(source, 40))
    run(*FOLD, "--skip", "n1", "--max-growth", "10%")
    capsys.readouterr()
    assert main(["stats", "refresh", "net.folded.onnx", "--inputs", "x.npz", "--in-place", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [node.name for node in onnx.load("net.folded.onnx").graph.node if node.op_type == "BatchNormalization"] == [
        "n1"
    ]
    assert document["verdict"]["word"] == "EQUIVALENT"


def test_a_folded_model_without_a_sidecar_says_what_it_lacks(capsys: pytest.CaptureFixture[str]):
    source = chained()
    onnx.save(source, "net.onnx")
    saved("x.npz", data(source, 20))
    run("fold", "net.onnx", "--no-check")
    capsys.readouterr()
    run("stats", "refresh", "net.folded.onnx", "--inputs", "x.npz")
    assert "it was folded, and only bnfold fold --keep-statistics" in capsys.readouterr().out
    run("unfold", "net.folded.onnx", code=2)
    assert "--keep-statistics writes one" in capsys.readouterr().err


def test_bodies_come_back():
    b = Builder(2)
    x = b.input("x", "batch", 4)
    h = b.op("Relu", b.norm(b.op("Gemm", x, b.weight(4, 4)), 4))
    weight: Array = np.random.default_rng(0).normal(size=(4, 2500)).astype(np.float32)
    branch = helper.make_graph(
        [helper.make_node("MatMul", [h, "inner"], ["out"])],
        "branch",
        [],
        [helper.make_tensor_value_info("out", 1, ["batch", 2500])],
        [numpy_helper.from_array(weight, "inner")],
    )
    flag = b.weight(values=np.array(True))
    y = b.op("If", flag, then_branch=branch, else_branch=branch)
    model = b.model(y)
    onnx.save(model, "net.onnx")
    run(*FOLD)
    run("unfold", "net.folded.onnx")
    assert Path("net.folded.unfolded.onnx").read_bytes() == Path("net.onnx").read_bytes()


def test_nothing_to_refresh_in_a_folded_model(capsys: pytest.CaptureFixture[str]):
    Path("net.onnx").write_bytes((MODELS / "frozen.onnx").read_bytes())
    saved("x.npz", {"image": np.zeros((4, 1, 8, 8), np.float32)})
    run(*FOLD)
    capsys.readouterr()
    run("stats", "refresh", "net.folded.onnx", "--inputs", "x.npz", "-o", "fresh.onnx")
    told = capsys.readouterr().out
    assert told.startswith("NOTHING TO REFRESH: net.folded.onnx, before it was folded, held no BatchNormalization")
    assert not Path("fresh.onnx").exists()
