"""Samples made from the graph, the caller's own samples and shapes, and errors that teach."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bnfold.check import Verdict, check
from bnfold.check.given import read_samples
from bnfold.check.indices import bounds
from bnfold.check.inputs import KINDS, Recipe, generate
from bnfold.check.sizes import attempts, graph_inputs, shapes_for
from bnfold.errors import UsageError

from .nets import conv_net, model, value


def first_shapes(made: onnx.ModelProto, **given: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    inputs = graph_inputs(made)
    sizes, _ = next(attempts(made, inputs, given))
    return shapes_for(inputs, sizes)


def bare(*inputs: onnx.ValueInfoProto) -> onnx.ModelProto:
    return model([helper.make_node("Identity", [inputs[0].name], ["y"])], {}, list(inputs), [value("y")])


def test_free_sizes_all_differ() -> None:
    shape = first_shapes(bare(value("x", "N", 3, "H", "W")))["x"]
    assert len(set(shape)) == 4
    assert shape[0] > 1
    assert shape[2] % 32 == shape[3] % 32 == 0
    shape = first_shapes(bare(value("x", None, 64, None, None)))["x"]
    assert len(set(shape)) == 4


def test_equal_names_get_equal_sizes() -> None:
    shapes = first_shapes(bare(value("a", "N", "T", 8), value("b", "N", "T"), value("c", "N", "S")))
    assert shapes["a"][:2] == shapes["b"]
    assert shapes["c"][0] == shapes["a"][0]
    assert shapes["c"][1] != shapes["a"][1]


def test_given_shapes() -> None:
    made = bare(value("a", "N", "T", 8), value("b", "N", "T"))
    assert first_shapes(made, a=(4, 5, 8)) == {"a": (4, 5, 8), "b": (4, 5)}
    for wrong, words in (
        ({"z": (1,)}, "no input 'z'"),
        ({"a": (1, 2)}, "3 dimensions"),
        ({"a": (1, 2, 9)}, "8 on axis 2"),
        ({"a": (1, 2, 8), "b": (1, 3)}, "2 on axis 1"),
        ({"a": (0, 2, 8)}, "start at 1"),
    ):
        with pytest.raises(UsageError, match=words):
            first_shapes(made, **wrong)


def test_given_shape_is_used() -> None:
    net = conv_net(0)
    result = check(net.model(), net.folded()[0], shapes={"x": (4, 3, 9, 11)}, samples=2)
    assert [sample.shapes["x"] for sample in result.samples] == [(4, 3, 9, 11)] * 2


def test_two_batch_sizes() -> None:
    net = conv_net(0)
    result = check(net.model(), net.folded()[0])
    assert {sample.shapes["x"][0] for sample in result.samples} == {1, 2}
    assert [sample.kind for sample in result.samples] == list(KINDS)


def test_sizes_that_the_model_demands() -> None:
    """It adds a stride-4 path, upsampled again, to itself: only multiples of 4 run; and the batch must be one."""
    nodes = [
        helper.make_node("AveragePool", ["x"], ["p"], kernel_shape=[32, 32], strides=[32, 32]),
        helper.make_node("Resize", ["p", "", "by"], ["u"]),
        helper.make_node("Add", ["x", "u"], ["a"]),
        helper.make_node("Reshape", ["a", "to"], ["y"]),
    ]
    weights = {"by": np.array([1, 1, 32, 32], np.float32), "to": np.array([1, 3, -1], np.int64)}
    made = model(nodes, weights, [value("x", "N", 3, "H", "W")], [value("y", 1, 3, "L")])
    result = check(made, made)
    assert result, str(result)
    square = model([helper.make_node("MatMul", ["x", "x"], ["y"])], {}, [value("x", "A", "B")], [value("y", "A", "B")])
    assert check(square, square)


def test_channels_come_from_the_weight() -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"])]
    weights = {"w": np.ones((4, 5, 3, 3), np.float32)}
    made = model(nodes, weights, [value("x", "N", "C", "H", "W")], [value("y", "N", 4, "h", "w")])
    assert first_shapes(made)["x"][1] == 5


def test_integers_stay_inside_the_table() -> None:
    nodes = [
        helper.make_node("Cast", ["ids"], ["long"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "long"], ["e"]),
        helper.make_node("Gather", ["kinds", "types"], ["k"]),
        helper.make_node("Add", ["e", "k"], ["s"]),
        helper.make_node("Cast", ["mask"], ["m"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["m", "last"], ["n"]),
        helper.make_node("Mul", ["s", "n"], ["y"]),
    ]
    rng = np.random.default_rng(0)
    weights = {
        "table": rng.normal(size=(11, 4)).astype(np.float32),
        "kinds": rng.normal(size=(3, 4)).astype(np.float32),
        "last": np.array([-1], np.int64),
    }
    inputs = [
        value("ids", "N", "T", kind=TensorProto.INT32),
        value("types", "N", "T", kind=TensorProto.INT64),
        value("mask", "N", "T", kind=TensorProto.BOOL),
    ]
    made = model(nodes, weights, inputs, [value("y", "N", "T", 4)])
    assert bounds(made, graph_inputs(made), first_shapes(made)) == {"ids": (0, 10), "types": (0, 2)}
    result = check(made, made)
    assert result, str(result)
    assert result.counted >= 4


def test_samples_are_what_their_kind_says() -> None:
    wanted = graph_inputs(bare(value("x", "N", 3, 8, 8)))
    made = {
        KINDS[k]: generate(wanted, {"x": (2, 3, 8, 8)}, Recipe(), index=k, seed=4).feeds["x"] for k in range(len(KINDS))
    }
    assert not made["zeros"].any()
    assert set(np.unique(made["signs"])) == {-1.0, 1.0}
    assert (made["impulse"].sum((2, 3)) == 1).all()
    assert np.abs(made["large"]).max() > 100
    assert made["uniform"].min() >= 0 and made["uniform"].max() < 1
    assert all(x.dtype == np.float32 for x in made.values())
    again = generate(wanted, {"x": (2, 3, 8, 8)}, Recipe(), index=0, seed=4).feeds["x"]
    np.testing.assert_array_equal(again, made["normal"])


def test_initializers_are_not_fed() -> None:
    net = conv_net(0)
    made = net.model()
    made.graph.input.append(value("gamma0", 6))
    assert [i.name for i in graph_inputs(made)] == ["x"]
    assert check(made, net.folded()[0], samples=1)


def test_given_inputs(tmp_path: Path) -> None:
    net = conv_net(0)
    path = tmp_path / "data.npz"
    np.savez(path, x=np.random.default_rng(0).normal(size=(2, 3, 9, 11)))  # float64: cast to the model's type
    result = check(net.model(), net.folded()[0], inputs=[path, str(path)])
    assert result
    assert [sample.kind for sample in result.samples] == ["given", "given"]


def test_unfit_inputs(tmp_path: Path) -> None:
    wanted = graph_inputs(bare(value("x", "N", 3), value("z", "N", kind=TensorProto.INT64)))
    x, z = np.zeros((2, 3), np.float32), np.zeros(2, np.int64)
    for arrays, words in (
        ({"x": x}, "lacks the input 'z'"),
        ({"x": x, "z": z, "q": z}, "'q', which is no input"),
        ({"x": x[0], "z": z}, "1 dimensions"),
        ({"x": x[:, :2], "z": z}, "2 on axis 1; it must be 3"),
        ({"x": x, "z": np.zeros(5, np.int64)}, "5 on axis 0; it must be 2"),
        ({"x": x, "z": np.zeros(2)}, "wants int64"),
    ):
        path = tmp_path / "wrong.npz"
        np.savez(path, **arrays)  # pyright: ignore[reportArgumentType] -- the stub takes any keyword for allow_pickle
        with pytest.raises(UsageError, match=words):
            read_samples([path], wanted)
    assert read_samples([{"x": x, "z": z}], wanted)[0].feeds["x"] is x


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut short"])
def test_no_archive(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"bad\.npz"):
        read_samples([path], graph_inputs(bare(value("x", 2))))
    with pytest.raises(UsageError, match="cannot be read"):
        read_samples([tmp_path / "none.npz"], graph_inputs(bare(value("x", 2))))


def test_single_array_is_no_sample(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(2))
    with pytest.raises(UsageError, match="single array"):
        read_samples([tmp_path / "x.npy"], graph_inputs(bare(value("x", 2))))


def test_number_of_samples() -> None:
    net = conv_net(0)
    with pytest.raises(UsageError, match="at least 1"):
        check(net.model(), net.folded()[0], samples=0)
    assert len(check(net.model(), net.folded()[0], samples=8).samples) == 8


def test_no_inputs_at_all() -> None:
    made = model([helper.make_node("Relu", ["w"], ["y"])], {"w": np.arange(3, dtype=np.float32)}, [], [value("y", 3)])
    result = check(made, made)
    assert result.verdict is Verdict.EQUIVALENT
    assert len(result.samples) == 1
