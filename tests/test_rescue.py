"""--rescue: what does not pass is left out, all else is folded, and the report says so."""

import itertools
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from bnfold import receipt
from bnfold.cli.commands import bnfold as command
from bnfold.files import load
from bnfold.rescue import _needed
from tests.graphs import Builder


def half(bad: tuple[int, ...], layers: int = 4) -> onnx.ModelProto:
    """float16 Conv and BatchNormalization; the folded weights of the `bad` ones have two or three significant bits."""
    random, b = np.random.default_rng(0), Builder()
    x = b.input("x", 2, 6, 12, 11)
    b.inputs[0].type.tensor_type.elem_type = TensorProto.FLOAT16

    def weight(values: np.ndarray) -> str:
        return b.weight(values=values.astype(np.float16))

    for k in range(layers):
        low = k in bad
        signs = random.choice([-1.0, 1.0], size=(6, 6, 3, 3))
        x = b.op("Conv", x, weight(signs * random.uniform(0.5, 1, (6, 6, 3, 3)) * (1 if low else 0.2)))
        gamma = random.uniform(0.9, 2, 6) * (2.0**-21 if low else 1)
        beta, mean = (random.normal(size=6) * (0 if low else size) for size in (1.0, 0.1))
        variance = random.uniform(0.5, 1, 6)
        x = b.op("BatchNormalization", x, *map(weight, (gamma, beta, mean, variance)), epsilon=0.01)
        if low:
            x = b.op("InstanceNormalization", x, weight(np.ones(6)), weight(np.zeros(6)), epsilon=1e-20)
        else:
            x = b.op("Relu", x)
    tensors = [numpy_helper.from_array(array, name) for name, array in b.weights.items()]
    out = [helper.make_tensor_value_info(x, TensorProto.FLOAT16, None)]
    graph = helper.make_graph(b.nodes, "g", b.inputs, out, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model)


def run(*arguments: object, code: int) -> str:
    result = CliRunner().invoke(command, [str(a) for a in arguments], standalone_mode=False)
    assert result.exception is None, result.output
    assert result.return_value == code, result.output
    return result.output


def left(path: Path) -> int:
    return sum(node.op_type == "BatchNormalization" for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("bad", [(2,), (1, 2)])
def test_only_the_guilty_stay(bad: tuple[int, ...], tmp_path: Path) -> None:
    source, out = tmp_path / "net.onnx", tmp_path / "out.onnx"
    onnx.save(half(bad), source)
    assert "DEGRADED" in run(source, "-o", out, code=1)
    assert not out.exists()
    told = run(source, "-o", out, "--rescue", code=0)
    assert "--rescue left out" in told and "EQUIVALENT" in told
    assert left(out) == len(bad)
    held = receipt.read(out, load(out).model)
    assert held is not None and held.unfolded == len(bad) and held.verdict in ("EQUIVALENT", "MORE_ACCURATE")
    run("check", source, out, code=0)


def test_what_passes_needs_no_rescue(tmp_path: Path) -> None:
    onnx.save(half(()), tmp_path / "net.onnx")
    assert "--rescue" not in run(tmp_path / "net.onnx", "--rescue", code=0)
    assert left(tmp_path / "net.folded.onnx") == 0


def test_where_nothing_passes_nothing_is_written(tmp_path: Path) -> None:
    onnx.save(half((0,), layers=1), tmp_path / "net.onnx")
    assert "DEGRADED" in run(tmp_path / "net.onnx", "--rescue", code=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx"]


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_the_search_finds_a_set_of_which_each_is_needed(count: int) -> None:
    names = [(str(k),) for k in range(count)]
    for guilty in itertools.chain.from_iterable(itertools.combinations(names, k) for k in (1, 2, 3)):
        assert sorted(_needed(names, lambda out, guilty=guilty: set(guilty) <= set(out))) == sorted(guilty)
