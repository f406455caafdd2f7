"""A scanned file gives, byte for byte, what a file that was read at once gives; on every system; whatever is in it."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import google.protobuf.text_format
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold import files, weights
from bnfold.cli.commands import bnfold as command
from bnfold.errors import BnfoldError, MalformedModel, UnreadableModel
from bnfold.files import loading, pouring, wire
from bnfold.files.external import Extent
from tests.graphs import Builder, count, difference
from tests.mutants import encoded
from tests.test_random_graphs import graph as drawn

MODELS = sorted((Path(__file__).parents[1] / "models").glob("*.onnx"))


@pytest.fixture
def scanning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is scanned, and tensors of 64 bytes are large."""
    monkeypatch.setattr(loading, "SCANNED", 1)
    monkeypatch.setattr(wire, "BULK", 64)
    monkeypatch.setattr(weights, "BULK", 64)


def both(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[bytes, bytes]:
    """What is written: read at once, and scanned."""
    found: list[bytes] = []
    for on in (False, True):
        with monkeypatch.context() as patch:
            if on:
                patch.setattr(loading, "SCANNED", 1)
                patch.setattr(wire, "BULK", 64)
                patch.setattr(weights, "BULK", 64)
            result = bnfold.fold(path)
            marked = [p for p in files.external.tensors(result.source.model) if wire.is_marked(p)]
            assert bool(marked) == on, "nothing was left in the file" if on else "something was"
            out = path.with_name(f"out{on}.onnx")
            result.save(out)
            assert result.model == onnx.load(out), "what is handed out is what is written"
            found.append(out.read_bytes())
    return found[0], found[1]


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_the_models_come_out_the_same(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / path.name).write_bytes(path.read_bytes())
    plain, scanned = both(tmp_path / path.name, monkeypatch)
    assert plain == scanned


@pytest.mark.parametrize("seed", range(60))
def test_drawn_graphs_come_out_the_same(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = drawn(seed)
    model.graph.initializer.append(numpy_helper.from_array(np.arange(99.0), "large enough to be left behind"))
    model.graph.node.append(helper.make_node("Relu", ["large enough to be left behind"], ["never read"]))
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    plain, scanned = both(tmp_path / "net.onnx", monkeypatch)
    assert plain == scanned


def with_bodies() -> onnx.ModelProto:
    """Constant nodes that hold the weights, in the graph, in both branches of an If and in the body of a Loop."""
    b = Builder()
    x = b.input("x", "N", 4, 6, 6)

    def constant(name: str, *shape: int) -> onnx.NodeProto:
        value = numpy_helper.from_array(b.random.normal(size=shape).astype(np.float32), "")
        return helper.make_node("Constant", [], [name], value=value)

    def body(name: str, read: str, out: str) -> list[onnx.NodeProto]:
        norm = [b.weight(values=np.full(4, v, np.float32)) for v in (2.0, 0.5, 0.25, 4.0)]
        return [
            constant(f"w {name}", 4, 4, 1, 1),
            helper.make_node("Conv", [read, f"w {name}"], [f"c {name}"], f"conv {name}"),
            helper.make_node("BatchNormalization", [f"c {name}", *norm], [out], f"bn {name}"),
        ]

    def graph(name: str) -> onnx.GraphProto:
        info = helper.make_tensor_value_info(f"y {name}", TensorProto.FLOAT, None)
        return helper.make_graph(body(name, "h", f"y {name}"), name, [], [info])

    b.nodes += body("outer", x, "h")
    b.weight(values=np.array(True), name="yes")
    b.weight(values=np.array(2), name="twice")
    b.nodes.append(helper.make_node("If", ["yes"], ["i"], then_branch=graph("then"), else_branch=graph("else")))
    loop = helper.make_graph(
        [*body("loop", "s", "t"), helper.make_node("Identity", ["c"], ["d"])],
        "loop",
        [
            helper.make_tensor_value_info("n", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, ["N", 4, 6, 6]),
        ],
        [helper.make_tensor_value_info("d", TensorProto.BOOL, []), helper.make_tensor_value_info("t", 1, None)],
    )
    b.nodes.append(helper.make_node("Loop", ["twice", "yes", "i"], ["y"], body=loop))
    return b.model("y")


def test_constant_nodes_and_bodies_come_out_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = with_bodies()
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    plain, scanned = both(path, monkeypatch)
    assert plain == scanned
    assert count(onnx.ModelProto.FromString(plain)) == 0
    assert difference(model, bnfold.fold(path)) < 1e-9


# --- protobuf that no exporter writes


def conv() -> onnx.ModelProto:
    b = Builder()
    return b.model(b.norm(b.op("Conv", b.input("x", "N", 3, 8, 8), b.weight(6, 3, 3, 3)), 6))


def field(number: int, content: bytes) -> bytes:
    return encoded(number << 3 | 2) + encoded(len(content)) + content


def with_tensor(tensor: bytes, extra: bytes = b"") -> bytes:
    """A model whose one weight is the serialized `tensor`."""
    model = conv()
    weight = model.graph.initializer[0]
    assert weight.name == "w0"
    del model.graph.initializer[0]
    graph = model.graph.SerializeToString()
    model.ClearField("graph")
    return model.SerializeToString() + field(7, graph + field(5, tensor)) + extra


RAW = numpy_helper.to_array(conv().graph.initializer[0]).tobytes()
HEAD = onnx.TensorProto(name="w0", data_type=1, dims=[6, 3, 3, 3]).SerializeToString()
INNER = encoded(901 << 3 | 3) + encoded(901 << 3 | 4)
GROUP = encoded(900 << 3 | 3) + field(1, b"inside") + INNER + encoded(900 << 3 | 4)
MORE = onnx.GraphProto(doc_string="b" * 99).SerializeToString()
ODD: dict[str, bytes] = {
    "plain": with_tensor(HEAD + field(9, RAW)),
    "raw_data first": with_tensor(field(9, RAW) + HEAD),
    "raw_data twice": with_tensor(HEAD + field(9, bytes(len(RAW))) + field(9, RAW)),
    "raw_data twice, the last one short": with_tensor(HEAD + field(9, RAW) + field(9, b"1234")),
    "an unknown field": with_tensor(HEAD + field(77, b"what") + field(9, RAW) + field(78, bytes(200)), field(99, b"x")),
    "a group": with_tensor(HEAD + GROUP + field(9, RAW), GROUP),
    "a group without an end": with_tensor(HEAD + field(9, RAW), GROUP[:-2]),
    "a group with another's end": with_tensor(HEAD + field(9, RAW), encoded(900 << 3 | 3) + encoded(901 << 3 | 4)),
    "groups in groups": with_tensor(HEAD + field(9, RAW), encoded(900 << 3 | 3) * 5000 + encoded(900 << 3 | 4) * 5000),
    "a longer varint than needed": with_tensor(HEAD + b"\x4a" + b"\x88\x85\x80\x00" + RAW),
    "data_location default": with_tensor(HEAD + field(9, RAW) + encoded(14 << 3) + b"\x00"),
    "raw_data as a number": with_tensor(HEAD + encoded(9 << 3) + b"\x01" + field(9, RAW)),
    "field 0": with_tensor(HEAD + field(9, RAW), b"\x00\x00"),
    "two graphs": with_tensor(HEAD + field(9, RAW)) + field(7, MORE),
    "a length of 2^63": with_tensor(HEAD + field(9, RAW), b"\x3a" + encoded(2**63)),
    "a length of 2^40": with_tensor(HEAD + b"\x4a" + encoded(2**40) + RAW),
    "an endless varint": with_tensor(HEAD + field(9, RAW), b"\xff" * 30),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_protobuf_comes_out_the_same_or_is_refused_both_ways(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path, found = tmp_path / "net.onnx", []
    path.write_bytes(ODD[name])
    for on in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(loading, "SCANNED", 1 if on else 1 << 24)
            patch.setattr(wire, "BULK", 64)
            patch.setattr(weights, "BULK", 64 if on else 1 << 15)
            try:
                bnfold.fold(path).save(tmp_path / "out.onnx")
                found.append((tmp_path / "out.onnx").read_bytes())
            except BnfoldError as error:
                assert "\n" not in str(error)
                found.append(b"")
    assert found[0] == found[1]
    refused = {"raw_data twice, the last one short", "groups in groups", "field 0"}
    if name in refused or "end" in name.split() or "endless" in name or name.startswith("a length"):
        assert found[0] == b""
    else:
        assert onnx.ModelProto.FromString(found[0]).graph.node[0].op_type == "Conv"


def test_an_attribute_with_two_tensors_means_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Protobuf merges them: neither may be left behind alone."""
    b = Builder()
    model = b.model(b.norm(b.op("Conv", b.input("x", "N", 3, 8, 8), b.weight(6, 3, 3, 3)), 6))
    weight = model.graph.initializer[0]
    first, second = field(5, HEAD + field(9, bytes(len(RAW)))), field(5, field(9, RAW))
    name = onnx.AttributeProto(name="value", type=onnx.AttributeProto.TENSOR).SerializeToString()
    node = onnx.NodeProto(op_type="Constant", output=["w0"]).SerializeToString() + field(5, name + first + second)
    nodes, graph = b"".join(field(1, n.SerializeToString()) for n in model.graph.node), model.graph
    assert weight.name == "w0"
    del graph.initializer[0]
    graph.ClearField("node")
    rest = graph.SerializeToString()
    model.ClearField("graph")
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString() + field(7, field(1, node) + nodes + rest))
    with monkeypatch.context() as patch:
        patch.setattr(loading, "SCANNED", 1)
        patch.setattr(wire, "BULK", 64)
        scanned = bnfold.fold(path).model
    assert scanned == bnfold.fold(path).model
    assert difference(conv(), bnfold.fold(path)) < 1e-9


def test_a_file_cut_anywhere_is_refused_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole, path = conv().SerializeToString(), tmp_path / "net.onnx"
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        for on in (False, True):
            with monkeypatch.context() as patch, pytest.raises(BnfoldError) as caught:
                patch.setattr(loading, "SCANNED", 1 if on else 1 << 24)
                patch.setattr(wire, "BULK", 64)
                files.load(path)
            assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("scanning")
def test_a_model_that_uses_the_mark_itself_is_refused(tmp_path: Path):
    model = conv()
    model.graph.initializer[0].external_data.add(key=wire.MARK, value="folded")
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(MalformedModel, match="reserved"):
        files.load(tmp_path / "net.onnx")


def test_nor_may_a_text_or_a_proto_use_it(tmp_path: Path):
    model = conv()
    weights = model.graph.initializer[0]
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="net.textproto")
    weights.external_data.add(key=wire.MARK, value="1:2:3")
    text = google.protobuf.text_format.MessageToString(model)
    (tmp_path / "net.textproto").write_text(text.replace(wire.MARK, "\\x62" + wire.MARK[1:]))
    for source in (model, tmp_path / "net.textproto"):
        with pytest.raises(MalformedModel, match="reserved"):
            files.load(source)


# --- the file and time


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.usefixtures("scanning")
def test_a_file_that_changes_after_it_was_read_is_a_sentence(gone: bool, tmp_path: Path):
    path = tmp_path / "net.onnx"
    path.write_bytes(ODD["plain"])
    result = bnfold.fold(path)
    path.unlink() if gone else path.write_bytes(ODD["plain"] + field(99, b"x"))
    for use in (lambda: result.save(tmp_path / "out.onnx"), lambda: result.model):
        with pytest.raises(UnreadableModel, match="can no longer be read" if gone else "changed after it was read"):
            use()
    assert [each.name for each in tmp_path.iterdir()] == ([] if gone else ["net.onnx"])


@pytest.mark.usefixtures("scanning")
def test_in_place_and_the_model_that_is_asked_for_afterwards(tmp_path: Path):
    path, other = tmp_path / "net.onnx", tmp_path / "other.onnx"
    path.write_bytes(ODD["plain"])
    bnfold.fold(path).save(other)
    result = bnfold.fold(path)
    result.save(path)
    assert path.read_bytes() == other.read_bytes()
    assert result.model == onnx.load(other)
    path.write_bytes(ODD["plain"])
    done = CliRunner().invoke(command, ["fold", str(path), "--in-place", "--no-check", "--no-receipt"])
    assert done.exit_code == 0, done.output
    assert path.read_bytes() == other.read_bytes()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["net.onnx", "other.onnx"]


# --- systems that lack something


CALLS = ("copy_file_range", "sendfile", "pread", "preadv", "pwrite")


@pytest.mark.parametrize(
    "missing",
    [CALLS[:1], CALLS[:2], CALLS[2:3], CALLS[2:4], CALLS[3:4], CALLS[4:], CALLS],
    ids=", ".join,
)
@pytest.mark.parametrize("external", [False, True])
@pytest.mark.usefixtures("scanning")
def test_a_system_without_a_call_writes_the_same_bytes(
    missing: tuple[str, ...], external: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "net.onnx"
    onnx.save(with_bodies(), path, save_as_external_data=external, location="weights.bin", size_threshold=0)
    bnfold.fold(path).save(tmp_path / "a.onnx")
    for name in missing:
        monkeypatch.delattr(os, name)
    (tmp_path / "without").mkdir()
    bnfold.fold(path).save(tmp_path / "without" / "a.onnx")
    made = [each.name for each in (tmp_path / "without").iterdir()]
    assert sorted(made) == (["a.onnx", "a.onnx.data"] if external else ["a.onnx"])
    for name in made:
        assert (tmp_path / name).read_bytes() == (tmp_path / "without" / name).read_bytes()


@pytest.mark.parametrize("missing", [("pread", "preadv"), ("pwrite",), CALLS], ids=", ".join)
def test_threads_do_not_move_each_others_position(
    missing: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A large file in many pieces, in another order than in the source, where a file has only the one position."""
    monkeypatch.setattr(pouring, "_COPY", 1 << 12)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    data = random.Random(0).randbytes(1 << 23)
    (tmp_path / "source").write_bytes(data)
    size = 1 << 16
    order = random.Random(1).sample(range(len(data) // size), len(data) // size)
    parts = [(k * size, Extent(tmp_path / "source", at * size, size)) for k, at in enumerate(order)]
    assert pouring.threads(len(data)) == 8
    for name in missing:
        monkeypatch.delattr(os, name)
    assert pouring.threads(len(data)) == 1
    pouring.pour(tmp_path / "target", parts, len(data))
    assert (tmp_path / "target").read_bytes() == b"".join(data[at * size :][:size] for at in order)


@pytest.mark.parametrize("broken", ["copy_file_range", "sendfile"])
@pytest.mark.parametrize("after", [0, 1])
def test_a_call_that_fails_halfway_is_taken_over(
    broken: str, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Another file system or an old kernel: what is left goes the next way; `after` calls of ten bytes have worked."""
    data = random.Random(0).randbytes(5000)
    (tmp_path / "source").write_bytes(data)
    right, calls = getattr(os, broken), [0]
    if broken == "sendfile":
        monkeypatch.delattr(os, "copy_file_range")

    def failing(source: int, target: int, *where: int) -> int:
        calls[0] += 1
        if calls[0] > after:
            raise OSError(errno.EXDEV, "cross-device")
        if broken == "sendfile":
            return right(source, target, where[0], 10)
        return right(source, target, 10, *where[1:])

    monkeypatch.setattr(os, broken, failing)
    pouring.pour(tmp_path / "target", [(3, Extent(tmp_path / "source", 7, 4000))], 5000)
    assert (tmp_path / "target").read_bytes() == bytes(3) + data[7:4007] + bytes(997)
    assert calls[0] == after + 1


def test_a_source_cut_short_while_it_is_copied_is_a_sentence(tmp_path: Path):
    (tmp_path / "source").write_bytes(b"1234")
    with pytest.raises(MalformedModel, match="cut short"):
        pouring.pour(tmp_path / "target", [(0, Extent(tmp_path / "source", 0, 10))], 10)


def test_an_error_in_a_thread_is_raised_in_the_caller(tmp_path: Path):
    class Broken:
        nbytes = 1 << 23

        def pieces(self):
            for at in range(0, self.nbytes, 1 << 20):
                yield at, self.make

        def make(self, _: object) -> bytes:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        pouring.pour(tmp_path / "target", [(0, Broken())], Broken.nbytes)


def test_large_tensors_are_computed_in_blocks_that_join(tmp_path: Path):
    """Several blocks and threads, a last block that is shorter, and a scale per output channel."""
    b = Builder()
    y = b.op("Conv", b.input("x", "N", 301, 3, 3), b.weight(1203, 301, 3, 3), b.weight(1203))
    model = b.model(b.norm(y, 1203))
    result = bnfold.fold(model)
    result.save(tmp_path / "out.onnx")
    weight = numpy_helper.to_array(onnx.load(tmp_path / "out.onnx").graph.initializer[0])
    exact = result.exact[result.model.graph.node[0].input[1]]
    assert np.array_equal(weight, exact.astype(np.float32))
    assert result.certificate(tmp_path / "out.onnx").passed


# --- external data


def test_external_data_at_offsets_aligned_for_a_mapping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Tensors in two files at offsets of all kinds, one without a length, go to one file at multiples of 4096."""
    model = with_bodies()
    plain = tmp_path / "plain.onnx"
    onnx.save(model, plain)
    bnfold.fold(plain).save(tmp_path / "plain.out.onnx")
    held = list(files.external.tensors(model))
    starts = {"a.bin": 0, "b.bin": 4096}
    (tmp_path / "sub").mkdir()
    for index, proto in enumerate(held):
        name = ("a.bin", "b.bin")[index % 2]
        raw = proto.raw_data or numpy_helper.from_array(numpy_helper.to_array(proto)).raw_data
        with (tmp_path / "sub" / name).open("r+b" if (tmp_path / "sub" / name).exists() else "wb") as file:
            file.seek(starts[name])
            file.write(raw)
        proto.ClearField("raw_data")
        proto.data_location = TensorProto.EXTERNAL
        entries = {"location": f"sub/{name}", "offset": str(starts[name]), "length": str(len(raw))}
        if index >= len(held) - 2:
            del entries["length"]
        for key, value in entries.items():
            proto.external_data.add(key=key, value=value)
        starts[name] += len(raw) + index % 5
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    bnfold.fold(tmp_path / "net.onnx").save(tmp_path / "out.onnx")
    found, wanted = onnx.load(tmp_path / "out.onnx"), onnx.load(tmp_path / "plain.out.onnx")
    for proto in files.external.tensors(found):
        proto.ClearField("data_location")  # DEFAULT, as it is where nothing is said
    assert found == wanted
    stored = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    outside = [p for p in files.external.tensors(stored) if p.data_location == TensorProto.EXTERNAL]
    assert outside
    ends = [0]
    for proto in outside:
        where = {entry.key: entry.value for entry in proto.external_data}
        assert where["location"] == "out.onnx.data"
        assert int(where["offset"]) % 4096 == 0 and int(where["offset"]) >= ends[-1]
        ends.append(int(where["offset"]) + int(where["length"]))


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="the file is sparse")
def test_more_than_2_gib_in_and_out(tmp_path: Path):
    """A model file of 2.2 GiB, nearly all of it zeros that take no room: its weights go to a data file, as it says."""
    rows = 19 << 16
    tensor = onnx.TensorProto(name="big", data_type=1, dims=[rows, 472]).SerializeToString()
    size = rows * 472 * 4
    assert size > 2**31
    model = conv()
    model.graph.node.append(helper.make_node("MatMul", ["z", "big"], ["unused"]))
    model.graph.input.append(helper.make_tensor_value_info("z", 1, ["N", rows]))
    graph = model.graph.SerializeToString()
    model.ClearField("graph")
    raw = encoded(9 << 3 | 2) + encoded(size)
    inner = encoded(5 << 3 | 2) + encoded(len(tensor) + len(raw) + size) + tensor + raw
    path = tmp_path / "net.onnx"
    with path.open("wb") as file:
        file.write(model.SerializeToString() + encoded(7 << 3 | 2) + encoded(len(graph) + len(inner) + size) + graph)
        file.write(inner)
        file.seek(size - 4, os.SEEK_CUR)
        file.write(np.float32(7).tobytes())
    done = CliRunner().invoke(command, ["fold", str(path), "--no-check", "--no-receipt"])
    assert done.exit_code == 0, done.output
    assert "2 GiB" in done.output and "net.folded.onnx.data" in done.output
    stored = onnx.load(tmp_path / "net.folded.onnx", load_external_data=False)
    big = next(p for p in stored.graph.initializer if p.name == "big")
    where = files.external.extent(big, tmp_path)
    assert where.length == size
    assert files.read_external(big, tmp_path, size - 8, 8) == np.array([0, 7], np.float32).tobytes()
    assert count(stored) == 0
    in_place = CliRunner().invoke(command, ["fold", str(path), "--in-place", "--no-check", "--no-receipt"])
    assert in_place.exit_code == 0, in_place.output
    assert path.stat().st_size < 1 << 20
