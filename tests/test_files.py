"""Reading refuses what is no sound ONNX model, with one sentence; writing is atomic and the same each time."""

import errno
import io
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.external_data_helper
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnfold import files
from bnfold.errors import BnfoldError, MalformedModel, UnreadableModel, UnsupportedModel, UnwritableOutput, UsageError


def model_of(nodes: list[onnx.NodeProto], initializers: dict[str, np.ndarray], **keywords: int) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 9])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "c", "h", "w"])],
        [numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    opset = keywords.get("opset", 17)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = keywords.get("ir_version", 8)
    return model


def conv(width: int = 4) -> onnx.ModelProto:
    weight = np.random.default_rng(0).standard_normal((width, 3, 3, 3)).astype(np.float32)
    return model_of(
        [helper.make_node("Conv", ["x", "W"], ["h"], "conv"), helper.make_node("Relu", ["h"], ["y"], "relu")],
        {"W": weight},
    )


def external(folder: Path, width: int = 4) -> Path:
    path = folder / "net.onnx"
    onnx.save(conv(width), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def state_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(path: Path, kind: type[BnfoldError], *words: str) -> str:
    with pytest.raises(kind) as caught:
        files.load(path)
    message = str(caught.value)
    for word in words:
        assert word in message, message
    assert path.name in message
    assert "\n" not in message
    assert len(message) < 400
    return message


# --- files that are no model


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    return buffer.getvalue()


FOREIGN = {
    "torch zip": (zipped("archive/data.pkl", "archive/data/0"), "PyTorch checkpoint", "torch.onnx.export"),
    "torchscript": (zipped("m/data.pkl", "m/constants.pkl", "m/code/a.py"), "TorchScript", "torch.jit.load"),
    "torch.export": (zipped("m/archive_format", "m/models/model.json"), ".pt2", "`bnfold explain` take it"),
    "keras": (zipped("config.json", "model.weights.h5"), "Keras", "tf2onnx"),
    "npz": (zipped("a.npy"), ".npz", "arrays"),
    "zip": (zipped("net.onnx"), "zip archive", "unpack"),
    "cut zip": (zipped("archive/data.pkl")[:40], "damaged zip", ""),
    "legacy torch": (bytes.fromhex("80028a0a6cfc9c46f9206aa850192e") + b"rest", "PyTorch checkpoint", "export"),
    "pickle": (pickle.dumps({"weight": [1.0]}, protocol=4), "pickle", "export"),
    "safetensors": (struct.pack("<Q", 12) + b'{"a":{"b":1}' + b"\0" * 8, "safetensors", "export"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 64, "HDF5", "tf2onnx"),
    "tflite": (b"\x1c\0\0\0TFL3" + b"\0" * 64, "TensorFlow Lite", "tf2onnx"),
    "ort": (b"\x1c\0\0\0ORTM" + b"\0" * 64, ".ort", "made from"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS", "git lfs pull"),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>", "web page", "download"),
    "gzip": (b"\x1f\x8b\x08" + b"\0" * 20, "gzip", "unpack"),
    "text": (b"this is not a model, it is prose\n" * 9, "not an ONNX model", ""),
    "noise": (random.Random(0).randbytes(999), "not an ONNX model", ""),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_of_another_kind_is_named_and_answered(name: str, tmp_path: Path):
    data, *words = FOREIGN[name]
    path = tmp_path / "net.onnx"
    path.write_bytes(data)
    refused(path, UnreadableModel, *words)


def test_a_missing_file_a_directory_an_empty_file_and_a_fifo(tmp_path: Path):
    refused(tmp_path / "none.onnx", UnreadableModel, "does not exist")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", UnreadableModel, "is a directory")
    (tmp_path / "empty.onnx").touch()
    refused(tmp_path / "empty.onnx", UnreadableModel, "is empty")
    os.mkfifo(tmp_path / "fifo.onnx")
    refused(tmp_path / "fifo.onnx", UnreadableModel, "not a regular file")


def test_every_truncation_is_refused(tmp_path: Path):
    whole = conv().SerializeToString()
    path = tmp_path / "net.onnx"
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(BnfoldError) as caught:
            files.load(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(whole[: len(whole) // 2])
    refused(path, UnreadableModel, "cut short", "missing")


def test_another_protobuf_message_has_no_graph(tmp_path: Path):
    path = tmp_path / "net.onnx"
    path.write_bytes(onnx.ModelProto(ir_version=8, producer_name="nobody").SerializeToString())
    refused(path, UnreadableModel, "no ONNX graph")


# --- graphs that are no graph


def two_relus(first: tuple[str, str], second: tuple[str, str]) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Relu", [first[0]], [first[1]], "one"),
        helper.make_node("Relu", [second[0]], [second[1]], "two"),
    ]
    return model_of(nodes, {})


def with_opsets(*opsets: tuple[str, int]) -> onnx.ModelProto:
    model = conv()
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(*opset) for opset in opsets)
    return model


def with_node(node: onnx.NodeProto) -> onnx.ModelProto:
    return model_of([node], {name: np.ones(3, np.float32) for name in ("s", "b", "m", "v") if name in node.input})


def with_initializers(*names: str) -> onnx.ModelProto:
    model = two_relus(("x", "h"), ("h", "y"))
    model.graph.initializer.extend(numpy_helper.from_array(np.ones(2, np.float32), name) for name in names)
    return model


def with_tensor(**fields: object) -> onnx.ModelProto:
    model = two_relus(("x", "h"), ("h", "y"))
    model.graph.initializer.append(onnx.TensorProto(name="W", **fields))  # type: ignore[arg-type]
    return model


BATCH_NORM = helper.make_node("BatchNormalization", ["x", "s", "b"], ["y"], "bn")
MALFORMED: dict[str, tuple[Callable[[], onnx.ModelProto], type[BnfoldError], str]] = {
    "cycle": (
        lambda: two_relus(("y", "h"), ("h", "y")),
        MalformedModel,
        "cycle: Relu 'two' -> Relu 'one' -> Relu 'two'",
    ),
    "self": (lambda: two_relus(("h", "h"), ("h", "y")), MalformedModel, "cycle: Relu 'one' -> Relu 'one'"),
    "undefined": (lambda: two_relus(("z", "h"), ("h", "y")), MalformedModel, "'z', which no node"),
    "no output": (lambda: two_relus(("x", "h"), ("h", "k")), MalformedModel, "'y' of graph 'g' is made by no node"),
    "twice": (lambda: two_relus(("x", "y"), ("x", "y")), MalformedModel, "'y' is defined twice"),
    "shadowed input": (lambda: two_relus(("x", "x"), ("x", "y")), MalformedModel, "'x' is defined twice"),
    "initializer twice": (lambda: with_initializers("c", "c"), MalformedModel, "'c' stands twice"),
    "initializer made": (lambda: with_initializers("h"), MalformedModel, "'h' is defined twice"),
    "newer opset": (lambda: with_opsets(("", 999)), UnsupportedModel, "opset 999"),
    "newer opset, by its long name": (lambda: with_opsets(("ai.onnx", 999)), UnsupportedModel, "opset 999"),
    "opset 0": (lambda: with_opsets(("", 0)), MalformedModel, "opset 0"),
    "two opsets": (lambda: with_opsets(("", 11), ("", 12)), MalformedModel, "11 and 12"),
    "no opset": (lambda: with_opsets(("com.acme", 1)), MalformedModel, "imports no opset"),
    "newer IR": (lambda: model_of([helper.make_node("Relu", ["x"], ["y"])], {}, ir_version=99), UnsupportedModel, "99"),
    "no IR": (
        lambda: model_of([helper.make_node("Relu", ["x"], ["y"])], {}, ir_version=0),
        MalformedModel,
        "IR version",
    ),
    "BN without statistics": (lambda: with_node(BATCH_NORM), MalformedModel, "has 3 inputs; opset 17 gives"),
    "no op": (lambda: with_node(onnx.NodeProto(input=["x"], output=["y"])), MalformedModel, "op_type is empty"),
    "unknown domain": (
        lambda: with_node(helper.make_node("Foo", ["x"], ["y"], domain="com.acme")),
        MalformedModel,
        "'com.acme'",
    ),
    "2^60 elements": (lambda: with_tensor(data_type=1, dims=[2**30, 2**30], raw_data=b"12"), MalformedModel, "fewer"),
    "typed, short": (lambda: with_tensor(data_type=1, dims=[9999], float_data=[1.0]), MalformedModel, "fewer"),
    "negative size": (lambda: with_tensor(data_type=1, dims=[-1], raw_data=b""), MalformedModel, "negative"),
    "unknown type": (lambda: with_tensor(data_type=77, dims=[1], raw_data=b"1"), MalformedModel, "type 77"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_model_is_refused_with_its_place(name: str, tmp_path: Path):
    make, kind, word = MALFORMED[name]
    path = tmp_path / "net.onnx"
    path.write_bytes(make().SerializeToString())
    refused(path, kind, word)
    with pytest.raises(kind):
        files.load(make())


def test_a_domain_that_nobody_knows_is_fine():
    model = with_node(helper.make_node("Foo", ["x"], ["y"], domain="com.acme"))
    model.opset_import.append(helper.make_opsetid("com.acme", 1))
    assert files.load(model).model == model


def test_nodes_in_the_wrong_order_are_sorted_and_otherwise_left():
    model = two_relus(("x", "h"), ("h", "y"))
    first, second = model.graph.node
    shuffled = onnx.ModelProto()
    shuffled.CopyFrom(model)
    del shuffled.graph.node[:]
    shuffled.graph.node.extend([second, first])
    loaded = files.load(shuffled)
    assert loaded.model == model
    assert "sorted" in loaded.notes[0]
    assert files.load(model).notes == ()
    assert [node.name for node in shuffled.graph.node] == ["two", "one"], "the argument is not modified"


def branch(name: str, read: str) -> onnx.GraphProto:
    output = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    return helper.make_graph([helper.make_node("Relu", [read], [name], f"in {name}")], f"graph {name}", [], [output])


def test_captured_values_count_as_read():
    def model(read: str) -> onnx.ModelProto:
        nodes = [
            helper.make_node("If", ["c"], ["y"], "if", then_branch=branch("a", read), else_branch=branch("b", "x")),
            helper.make_node("Relu", ["y"], ["late"], "late"),
            helper.make_node("Sigmoid", ["x"], ["early"], "early"),
        ]
        return model_of(nodes, {"c": np.array(True)})

    assert not files.load(model("x")).notes
    assert [node.name for node in files.load(model("early")).model.graph.node] == ["early", "if", "late"]
    with pytest.raises(MalformedModel, match="cycle"):
        files.load(model("late"))
    with pytest.raises(MalformedModel, match="which no node"):
        files.load(model("nothing"))


def test_a_chain_of_any_length_can_be_a_cycle():
    nodes = [helper.make_node("Relu", [f"v{i}"], [f"v{(i + 1) % 5000}"], f"n{i}") for i in range(5000)]
    with pytest.raises(MalformedModel, match="cycle"):
        files.load(model_of([*nodes, helper.make_node("Relu", ["v0"], ["y"])], {}))


# --- external data


def test_external_data_is_left_where_it_is_and_read_on_request(tmp_path: Path):
    loaded = files.load(external(tmp_path))
    (weight,) = loaded.model.graph.initializer
    assert weight.data_location == TensorProto.EXTERNAL
    assert not weight.raw_data
    assert loaded.data == {"weights.bin": tmp_path / "weights.bin"}
    assert loaded.total_size == loaded.size + (tmp_path / "weights.bin").stat().st_size
    assert files.read_external(weight, tmp_path) == conv().graph.initializer[0].raw_data


HOSTILE: dict[str, tuple[dict[str, str | None], str]] = {
    "parent": ({"location": "../weights.bin"}, "outside the model's directory"),
    "hidden parent": ({"location": "a/../../weights.bin"}, "outside the model's directory"),
    "windows parent": ({"location": "..\\weights.bin"}, "outside the model's directory"),
    "absolute": ({"location": "/etc/passwd"}, "outside the model's directory"),
    "drive": ({"location": "C:\\weights.bin"}, "outside the model's directory"),
    "link": ({"location": "link.bin"}, "symbolic link"),
    "loop": ({"location": "loop.bin"}, "cannot be"),
    "missing": ({"location": "none.bin"}, "No such file"),
    "no location": ({"location": None}, "in which file"),
    "NUL": ({"location": "a\0b"}, "in which file"),
    "directory": ({"location": "folder"}, "not a regular file"),
    "device": ({"location": "fifo"}, "not a regular file"),
    "offset beyond": ({"offset": "1000000"}, "cut short"),
    "length beyond": ({"length": "1000000"}, "cut short"),
    "no length, offset beyond": ({"offset": "1000000", "length": None}, "cut short"),
    "shorter than the shape": ({"length": "12"}, "needs 432 bytes"),
    "no length, shorter than the shape": ({"offset": "4", "length": None}, "needs 432 bytes"),
    "negative offset": ({"offset": "-4"}, "not a byte count"),
    "offset in words": ({"offset": "many"}, "not a byte count"),
    "endless offset": ({"offset": "9" * 5000}, "not a byte count"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_external_data_is_checked_before_it_is_believed(name: str, tmp_path: Path):
    changes, words = HOSTILE[name]
    folder = tmp_path / "model"
    folder.mkdir()
    path = external(folder)
    (tmp_path / "outside.bin").write_bytes(bytes(432))
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    (folder / "loop.bin").symlink_to(folder / "loop.bin")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "fifo")
    model = onnx.load(path, load_external_data=False)
    (weight,) = model.graph.initializer
    entries = {entry.key: entry.value for entry in weight.external_data} | changes
    weight.ClearField("external_data")
    for key, value in entries.items():
        if value is not None:
            weight.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    refused(path, MalformedModel, words, "'W'")
    with pytest.raises(MalformedModel):
        files.read_external(weight, folder)


# --- writing


def test_saving_is_deterministic_and_keeps_what_it_does_not_know(tmp_path: Path):
    model = conv()
    model.metadata_props.add(key="author", value="someone")
    data = model.SerializeToString(deterministic=True) + b"\xfa\x3e\x03abc"  # field 1007, which ONNX does not have
    model = onnx.ModelProto.FromString(data)
    files.save(model, tmp_path / "a.onnx")
    files.save(model, tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert (tmp_path / "a.onnx").read_bytes().count(b"\xfa\x3e\x03abc") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]


def test_external_tensors_stay_external_beside_the_result(tmp_path: Path):
    source = files.load(external(tmp_path))
    before = state_of(tmp_path)
    target = tmp_path / "out" / "new.onnx"
    target.parent.mkdir()
    written = files.save(source.model, target, directory=source.directory)
    assert written == [target, target.with_name("new.onnx.data")]
    assert sorted(path.name for path in target.parent.iterdir()) == ["new.onnx", "new.onnx.data"]
    onnx.checker.check_model(target)
    assert np.array_equal(
        numpy_helper.to_array(onnx.load(target).graph.initializer[0]),
        numpy_helper.to_array(conv().graph.initializer[0]),
    )
    assert {name: data for name, data in state_of(tmp_path).items() if not name.startswith("out/")} == before
    assert onnx.load(tmp_path / "net.onnx", load_external_data=False) == source.model, "the argument is not modified"


def test_external_offsets_are_aligned_and_typed_fields_are_converted(tmp_path: Path):
    model = conv(64)
    rng = np.random.default_rng(1)
    extra = {"a": rng.standard_normal(1000).astype(np.float32), "small": np.ones(3, np.float32)}
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in extra.items())
    typed = helper.make_tensor("typed", TensorProto.FLOAT16, [700], np.arange(700, dtype=np.float16))
    model.graph.initializer.append(typed)
    files.save(model, tmp_path / "big.onnx", external=True)
    saved = onnx.load(tmp_path / "big.onnx", load_external_data=False)
    places = {
        proto.name: {entry.key: entry.value for entry in proto.external_data} for proto in saved.graph.initializer
    }
    assert not places["small"]
    for name in ("W", "a", "typed"):
        assert places[name]["location"] == "big.onnx.data"
        assert int(places[name]["offset"]) % 4096 == 0
    whole = {proto.name: numpy_helper.to_array(proto) for proto in onnx.load(tmp_path / "big.onnx").graph.initializer}
    for proto in model.graph.initializer:
        assert np.array_equal(whole[proto.name], numpy_helper.to_array(proto))


def test_an_unchanged_copy_takes_its_data_along(tmp_path: Path):
    source = files.load(external(tmp_path))
    (tmp_path / "out").mkdir()
    files.copy(source, tmp_path / "out" / "copy.onnx")
    assert (tmp_path / "out" / "copy.onnx").read_bytes() == (tmp_path / "net.onnx").read_bytes()
    assert (tmp_path / "out" / "weights.bin").read_bytes() == (tmp_path / "weights.bin").read_bytes()
    files.copy(source, tmp_path / "copy.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.onnx", "net.onnx", "out", "weights.bin"]
    (tmp_path / "out" / "weights.bin").write_bytes(b"another model's")
    before = state_of(tmp_path)
    with pytest.raises(UsageError, match="--force"):
        files.copy(source, tmp_path / "out" / "copy2.onnx", overwrite=False)
    assert state_of(tmp_path) == before


@pytest.mark.parametrize("extension", [".json", ".textproto", ".pbtxt", ".onnxjson"])
def test_the_extension_decides_the_format(extension: str, tmp_path: Path):
    model = conv()
    path = tmp_path / f"net{extension}"
    files.save(model, path)
    assert path.read_bytes().decode("ascii")
    assert files.load(path).model == model
    path.write_bytes(model.SerializeToString())
    refused(path, UnreadableModel, "extension")
    files.copy(files.load(model), tmp_path / "net.onnx")
    assert (tmp_path / "net.onnx").read_bytes() == model.SerializeToString(deterministic=True)


def test_a_format_that_loses_weights_is_refused(tmp_path: Path):
    (tmp_path / "net.onnxtxt").write_text("<ir_version: 8>")
    refused(tmp_path / "net.onnxtxt", UnsupportedModel, "weights")
    with pytest.raises(UnsupportedModel):
        files.save(conv(), tmp_path / "out.onnxtxt")
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnxtxt"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    source = files.load(external(tmp_path))
    (tmp_path / "weights.bin").write_bytes(b"short")
    (tmp_path / "out.onnx").write_bytes(b"old")
    before = state_of(tmp_path)
    with pytest.raises(MalformedModel):
        files.save(source.model, tmp_path / "out.onnx", directory=tmp_path)
    assert state_of(tmp_path) == before
    with pytest.raises(UnwritableOutput, match="cannot be written"):
        files.save(conv(), tmp_path / "none" / "out.onnx")
    with pytest.raises(RuntimeError), files.Staging(tmp_path / "out.onnx") as stage:
        stage.path.write_bytes(b"half")
        raise RuntimeError
    assert state_of(tmp_path) == before
    assert not list(tmp_path.glob(".bnfold-*"))


def test_a_disk_without_room_is_a_sentence(tmp_path: Path):
    resource = pytest.importorskip("resource")
    (tmp_path / "out.onnx").write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))  # Python ignores SIGXFSZ: writing more raises EFBIG
    try:
        for external in (False, True):
            with pytest.raises(UnwritableOutput, match=os.strerror(errno.EFBIG)):
                files.save(conv(512), tmp_path / "out.onnx", external=external)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert state_of(tmp_path) == {"out.onnx": b"old"}


def test_the_permissions_are_taken_over_on_request(tmp_path: Path):
    like = tmp_path / "like.onnx"
    like.touch()
    like.chmod(0o640)
    files.save(conv(), tmp_path / "a.onnx", keep_mode_of=like)
    files.save(conv(), tmp_path / "b.onnx")
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "a.onnx").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "b.onnx").stat().st_mode & 0o777 == 0o666 & ~umask


def test_the_digest_is_that_of_the_file(tmp_path: Path):
    path = tmp_path / "net.onnx"
    files.save(conv(), path)
    assert files.load(path).sha256 == files.digest(path) == files.load(conv()).sha256


def test_a_machine_of_the_other_byte_order_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.byteorder", "big")
    with pytest.raises(UnsupportedModel, match="highest byte first"):
        files.load(onnx.ModelProto())
