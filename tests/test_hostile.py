"""Models made to do harm end in a sentence, exit code 2, within seconds and a bounded memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import bnfold
from bnfold.errors import MalformedModel
from tests.graphs import Builder
from tests.mutants import encoded

pytest.importorskip("resource")
LIMITED = """
import resource, sys
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30), resource.RLIM_INFINITY))  # OpenBLAS' threads take one of them
from bnfold.cli import main
code = main(sys.argv[1:])
print("PEAK", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
sys.exit(code)
"""


def run(path: Path) -> tuple[int, str]:
    """Exit code and what was said, of a process that must stay below 1 GiB."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "fold", str(path), "--no-check", "--force", "-o", str(path) + ".out"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr and "bug in bnfold" not in done.stderr, done.stderr
    *_, peak = done.stdout.split()
    assert int(peak) < 1024
    return done.returncode, done.stdout + done.stderr


def field(number: int, content: bytes) -> bytes:
    return encoded(number << 3 | 2) + encoded(len(content)) + content


def model(weight: onnx.TensorProto | None = None) -> onnx.ModelProto:
    b = Builder()
    made = b.model(b.norm(b.op("Conv", b.input("x", "N", 3, 8, 8), b.weight(6, 3, 3, 3)), 6))
    if weight is not None:
        weight.name = "w0"
        made.graph.initializer[0].CopyFrom(weight)
    return made


def external(dims: list[int], **entries: str) -> onnx.TensorProto:
    tensor = onnx.TensorProto(data_type=1, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def nested(depth: int) -> bytes:
    """Bodies within bodies, written from the inside out."""
    graph = b""
    for _ in range(depth):
        graph = field(1, field(4, b"If") + field(5, field(1, b"then_branch") + field(6, graph) + b"\xa0\x01\x05"))
    return b"\x08\x08" + field(8, b"\x10\x11") + field(7, graph)


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "2^60 elements outside": (
        lambda: model(external([2**30, 2**30, 1, 1], location="data")).SerializeToString(), "needs 4611686018427387904"
    ),
    "2^60 elements, as long as it says": (
        lambda: model(external([2**30, 2**30, 1, 1], location="data", length=str(2**62))).SerializeToString(), "cut sh"
    ),
    "2^60 elements inside": (
        lambda: model(onnx.TensorProto(data_type=1, dims=[2**30, 2**30, 1, 1], raw_data=b"1")).SerializeToString(),
        "holds fewer",
    ),
    "a product of sizes beyond 64 bits": (
        lambda: model(external([2**62] * 4, location="data")).SerializeToString(), "gives it 4096"
    ),
    "bodies in bodies": (lambda: nested(3000), "cannot parse"),
    "bodies in bodies, as deep as protobuf goes": (lambda: nested(32), ""),
    "a graph of gigabytes": (lambda: b"\x08\x08" + b"\x3a" + encoded(2**34) + b"1234", "more are missing"),
    "packed sizes of gigabytes": (
        lambda: b"\x08\x08" + field(7, b"\x2a" + encoded(2**33) + b"\x0a" + encoded(2**32) + b"1"), "cannot parse"
    ),
    "a million empty nodes": (lambda: b"\x08\x08" + field(8, b"\x10\x11") + field(7, b"\x0a\x00" * 10**6), "operator"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_bounded_memory(name: str, tmp_path: Path):
    make, words = HOSTILE[name]
    (tmp_path / "data").write_bytes(bytes(4096))
    (tmp_path / "net.onnx").write_bytes(make())
    code, said = run(tmp_path / "net.onnx")
    assert code == 2 and words in said, said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "net.onnx"]


def test_a_constant_of_2_to_the_60_elements_is_not_computed(tmp_path: Path):
    for kind in ("ConstantOfShape", "Expand", "Tile", "Concat"):
        b = Builder()
        y = b.norm(b.op("Conv", b.input("x", "N", 3, 8, 8), b.weight(6, 3, 3, 3)), 6)
        if kind == "ConstantOfShape":
            huge = b.op(kind, b.ints(2**30, 2**30))
        elif kind == "Concat":
            huge = b.weight(1000)
            for _ in range(50):
                huge = b.op(kind, huge, huge, axis=0)
        else:
            huge = b.op(kind, b.weight(1, 1), b.ints(2**30, 2**30))
        z = b.op("Mul", y, b.op("ReduceMax", huge, keepdims=0))
        info = helper.make_tensor_value_info(z, 1, None)
        graph = helper.make_graph(
            b.nodes, "g", b.inputs, [info], [onnx.numpy_helper.from_array(a, n) for n, a in b.weights.items()]
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "n")
        code, said = run(tmp_path / "n")
        assert code == 0 and "1 of 1 source folded" in said, (kind, said)


@pytest.mark.parametrize("endless", [False, True])
def test_functions_that_grow_without_bounds_stay(endless: bool, tmp_path: Path):
    """Each function calls the one below twice: 2^40 normalizations; or the lowest calls the highest."""
    made = model()
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    names = ["a", "s", "b", "m", "v"]
    lowest = helper.make_node("BatchNormalization", names, ["t"])
    last = helper.make_node("f39" if endless else "Relu", ["t", *names[1:]] if endless else ["t"], ["y"])
    last.domain = "f" if endless else ""
    made.functions.append(helper.make_function("f", "f0", names, ["y"], [lowest, last], opsets))
    for i in range(1, 40):
        twice = [
            helper.make_node(f"f{i - 1}", names, ["t"], domain="f"),
            helper.make_node(f"f{i - 1}", ["t", *names[1:]], ["y"], domain="f"),
        ]
        made.functions.append(helper.make_function("f", f"f{i}", names, ["y"], twice, opsets))
    norm = made.graph.node[1]
    made.graph.node.append(helper.make_node("f39", [norm.output[0], *norm.input[1:]], ["z"], domain="f"))
    made.graph.output[0].name = "z"
    made.opset_import.append(opsets[1])
    onnx.save(made, tmp_path / "net.onnx")
    code, said = run(tmp_path / "net.onnx")
    assert code == 0 and "function f0" in said, said


def test_functions_that_share_one_are_inlined():
    made = model()
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    names = ["a", "s", "b", "m", "v"]
    norm = helper.make_function(
        "f", "norm", names, ["y"], [helper.make_node("BatchNormalization", names, ["y"])], opsets
    )
    for i in (0, 1):
        body = [helper.make_node("norm", names, ["t"], domain="f"), helper.make_node("Relu", ["t"], ["y"])]
        made.functions.append(helper.make_function("f", f"act{i}", names, ["y"], body, opsets))
    made.functions.append(norm)
    first = made.graph.node[1]
    x, parameters = first.input[0], list(first.input[1:])
    del made.graph.node[1]
    made.graph.node.append(helper.make_node("act0", [x, *parameters], ["q"], domain="f"))
    made.graph.node.append(helper.make_node("Conv", ["q", "k"], ["r"]))
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((6, 6, 1, 1), np.float32), "k"))
    made.graph.node.append(helper.make_node("act1", ["r", *parameters], ["z"], domain="f"))
    made.graph.output[0].name = "z"
    made.opset_import.append(opsets[1])
    assert len(bnfold.fold(made).report.folded) == 2


@pytest.mark.parametrize("shift", [1, 4, 428])
def test_tensors_that_overlap_are_refused_and_the_same_bytes_twice_are_not(shift: int, tmp_path: Path):
    made = model()
    size = 6 * 3 * 3 * 3 * 4
    made.graph.initializer.add().CopyFrom(made.graph.initializer[0])
    made.graph.initializer[-1].name = "again"
    for tensor, offset in ((made.graph.initializer[0], 0), (made.graph.initializer[-1], shift)):
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "data"), ("offset", str(offset)), ("length", str(size))):
            tensor.external_data.add(key=key, value=value)
    (tmp_path / "data").write_bytes(np.random.default_rng(0).standard_normal(300).astype(np.float32).tobytes())
    path = tmp_path / "net.onnx"
    path.write_bytes(made.SerializeToString())
    with pytest.raises(MalformedModel, match="'w0' and 'again' overlap in"):
        bnfold.fold(path)
    made.graph.initializer[-1].external_data[1].value = "0"
    path.write_bytes(made.SerializeToString())
    assert bnfold.fold(path).changed
