"""Integers stay inside the tables they index, however they get there."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bnfold.check import check
from bnfold.check.indices import Interval, bounds
from bnfold.check.sizes import attempts, graph_inputs, shapes_for

from .nets import model, value

INT64, INT32, FLOAT, BOOL = TensorProto.INT64, TensorProto.INT32, TensorProto.FLOAT, TensorProto.BOOL
RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(11, 4)).astype(np.float32)
node = helper.make_node


def made(
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, Any] | None = None,
    inputs: Sequence[onnx.ValueInfoProto] = (value("ids", "N", "T", kind=INT64),),
    opset: int = 17,
) -> onnx.ModelProto:
    """Nodes that make y from ids and the table."""
    given = {"table": TABLE, "one": np.array(1, np.int64), "two": np.array(2, np.int64), **(weights or {})}
    used = {name for each in nodes for name in _reads(each)}
    given = {name: array for name, array in given.items() if name in used}
    return model(list(nodes), given, list(inputs), [helper.make_empty_tensor_value_info("y")], opset)


def _reads(each: onnx.NodeProto) -> list[str]:
    inner = [n for a in each.attribute if a.type == onnx.AttributeProto.GRAPH for n in a.g.node]
    return [*each.input, *(name for n in inner for name in _reads(n))]


def found(net: onnx.ModelProto) -> dict[str, Interval]:
    inputs = graph_inputs(net)
    sizes, _ = next(attempts(net, inputs))
    return bounds(net, inputs, shapes_for(inputs, sizes))


def lookup(name: str, axis: int = 0) -> onnx.NodeProto:
    return node("Gather", ["table", name], ["y"], axis=axis)


BOUNDED: dict[str, tuple[list[onnx.NodeProto], Interval]] = {
    "cast": ([node("Cast", ["ids"], ["a"], to=INT32), lookup("a")], (0, 10)),
    "added to": ([node("Add", ["ids", "two"], ["a"]), lookup("a")], (0, 8)),
    "taken from": ([node("Sub", ["two", "ids"], ["a"]), lookup("a")], (0, 2)),
    "less two": ([node("Sub", ["ids", "two"], ["a"]), lookup("a")], (2, 12)),
    "doubled": ([node("Mul", ["ids", "two"], ["a"]), lookup("a")], (0, 5)),
    "halved": ([node("Div", ["ids", "two"], ["a"]), lookup("a")], (0, 20)),
    "negated": ([node("Neg", ["ids"], ["a"]), node("Add", ["a", "two"], ["b"]), lookup("b")], (0, 2)),
    "clipped enough": ([node("Clip", ["ids", "one", "two"], ["a"]), lookup("a")], (0, 1)),
    "clipped too little": ([node("Clip", ["ids", "one"], ["a"]), lookup("a")], (0, 10)),
    "reshaped": (
        [node("Unsqueeze", ["ids", "one"], ["a"]), node("Transpose", ["a"], ["b"]), lookup("b")],
        (0, 10),
    ),
    "another axis": ([lookup("ids", axis=1)], (0, 3)),
    "joined": ([node("Concat", ["ids", "ids"], ["a"], axis=1), lookup("a")], (0, 10)),
    "twice": ([node("Add", ["ids", "ids"], ["a"]), lookup("a")], (0, 5)),
    "elements": ([node("GatherElements", ["table", "ids"], ["y"], axis=1)], (0, 3)),
    "one hot": ([node("OneHot", ["ids", "depth", "values"], ["y"])], (0, 6)),
    "scattered": ([node("ScatterElements", ["table", "ids", "more"], ["y"])], (0, 10)),
    "two tables": ([lookup("ids"), node("Gather", ["small", "ids"], ["z"])], (0, 2)),
    "unknown": ([node("Cast", ["ids"], ["y"], to=FLOAT)], (0, 1)),
}


@pytest.mark.parametrize("how", BOUNDED)
def test_traced(how: str) -> None:
    nodes, expected = BOUNDED[how]
    weights = {
        "depth": np.array(7, np.int64),
        "values": np.array([0, 1], np.float32),
        "more": np.ones((2, 24), np.float32),
        "small": TABLE[:3],
    }
    assert found(made(nodes, weights)) == {"ids": expected}


def test_tuples_of_indices() -> None:
    net = made([node("GatherND", ["table", "ids"], ["y"])], inputs=[value("ids", "N", 2, kind=INT64)])
    assert found(net) == {"ids": (0, 3)}
    net = made([node("GatherND", ["table", "ids"], ["y"])], inputs=[value("ids", "N", 1, kind=INT64)])
    assert found(net) == {"ids": (0, 10)}


def test_computed_table() -> None:
    nodes = [node("Relu", ["x"], ["r"]), node("Gather", ["r", "ids"], ["y"], axis=1)]
    net = made(nodes, inputs=[value("x", 2, 7), value("ids", "T", kind=INT64)])
    assert found(net) == {"ids": (0, 6)}
    assert check(net, net)


def test_floats_that_become_indices() -> None:
    nodes = [node("Cast", ["x"], ["a"], to=INT64), lookup("a")]
    net = made(nodes, inputs=[value("x", "N", "T")])
    assert found(net) == {"x": (0, 10)}
    result = check(net, net)
    assert result, str(result)


def test_lengths_of_sequences() -> None:
    w, r = (RNG.normal(size=(1, 20, n)).astype(np.float32) for n in (3, 5))
    nodes = [node("LSTM", ["x", "w", "r", "", "lengths"], ["y"], hidden_size=5)]
    net = made(nodes, {"w": w, "r": r}, [value("x", 6, 4, 3), value("lengths", 4, kind=INT32)])
    assert found(net) == {"lengths": (1, 6)}
    result = check(net, net)
    assert result, str(result)


def test_bytes_are_data() -> None:
    net = made([node("Cast", ["x"], ["y"], to=FLOAT)], inputs=[value("x", 2, 3, kind=TensorProto.UINT8)])
    assert found(net) == {"x": (0, 255)}


def body(nodes: list[onnx.NodeProto], inputs: Sequence[Any] = (), outputs: Sequence[Any] = ()) -> onnx.GraphProto:
    return helper.make_graph(nodes, "body", list(inputs), list(outputs) or [value("t", kind=FLOAT)])


def test_inside_a_branch() -> None:
    taken = body([node("Gather", ["table", "ids"], ["t"])])
    other = body([node("Gather", ["table", "shifted"], ["t"])])
    nodes = [
        node("Add", ["ids", "two"], ["shifted"]),
        node("If", ["flag"], ["y"], then_branch=taken, else_branch=other),
    ]
    net = made(nodes, inputs=[value("ids", "N", "T", kind=INT64), value("flag", kind=BOOL)])
    assert found(net) == {"ids": (0, 8)}
    result = check(net, net)
    assert result, str(result)


def test_inside_a_loop() -> None:
    inner = body(
        [
            node("Gather", ["table", "carried"], ["row"]),
            node("Identity", ["carried"], ["next"]),
            node("Identity", ["condition"], ["going"]),
        ],
        [value("i", kind=INT64), value("condition", kind=BOOL), value("carried", kind=INT64)],
        [value("going", kind=BOOL), value("next", kind=INT64), value("row", 4)],
    )
    nodes = [node("Loop", ["two", "", "ids"], ["last", "y"], body=inner)]
    net = made(nodes, inputs=[value("ids", kind=INT64)])
    assert found(net) == {"ids": (0, 10)}
    assert check(net, net, samples=2).verdict.passed


def test_through_a_function() -> None:
    function = helper.make_function(
        "own", "Embed", ["t", "i"], ["e"],
        [node("Add", ["i", "i"], ["j"]), node("Gather", ["t", "j"], ["e"])], [helper.make_opsetid("", 17)],
    )  # fmt: skip
    net = made([node("Embed", ["table", "ids"], ["y"], domain="own")])
    net.functions.append(function)
    net.opset_import.append(helper.make_opsetid("own", 1))
    assert found(net) == {"ids": (0, 5)}
    result = check(net, net)
    assert result, str(result)


def test_embeddings_of_a_fused_layer() -> None:
    inputs = [value(name, "N", "T", kind=INT32) for name in ("ids", "types")]
    weights = {"words": TABLE, "places": RNG.normal(size=(40, 4)).astype(np.float32), "kinds": TABLE[:2]}
    weights |= {"g": np.ones(4, np.float32), "b": np.zeros(4, np.float32)}
    operands = ["ids", "types", "words", "places", "kinds", "g", "b"]
    fused = node("EmbedLayerNormalization", operands, ["y", "m"], domain="com.microsoft")
    net = made([fused], weights, inputs)
    net.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert found(net) == {"ids": (0, 10), "types": (0, 1)}


def test_what_is_generated_runs() -> None:
    """Every traced model is looked up by the runtime itself, with values at the ends of the interval."""
    for how in ("added to", "less two", "doubled", "twice", "another axis"):
        net = made(BOUNDED[how][0])
        result = check(net, net)
        assert result and not result.warnings, f"{how}: {result}"
