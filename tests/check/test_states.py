"""States begin at zero; an image that comes back as an image is no state."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bnfold.check.inputs import generate, recipe
from bnfold.check.sizes import attempts, graph_inputs, shapes_for
from bnfold.check.states import state_inputs

from .nets import model, value

node = helper.make_node


def paired(given: str, made: str, *, same: bool = True) -> onnx.ModelProto:
    nodes = [node("Identity", ["x"], ["y"]), node("Identity", [given], [made])]
    shapes = (2, 4, 8), (2, 4, 8 if same else 9)
    return model(nodes, {}, [value("x", 2, 3), value(given, *shapes[0])], [value("y", 2, 3), value(made, *shapes[1])])


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ("past_key_values.0.key", "present.0.key"),
        ("past_key_values.7.value", "present_key_values.7.value"),
        ("h0", "hn"),
        ("h_in", "hOut"),
        ("state", "stateN"),
        ("conv_cache", "conv_cache_out"),
        ("prev_state", "new_state"),
        ("hidden_in_1", "hidden_out_1"),
    ],
)
def test_pairs(given: str, made: str) -> None:
    net = paired(given, made)
    assert state_inputs(net, graph_inputs(net)) == {given}


@pytest.mark.parametrize(
    ("given", "made"),
    [("image", "out"), ("input_image", "output_image"), ("past_key_values.0.key", "present.1.key"), ("h0", "cn")],
)
def test_others(given: str, made: str) -> None:
    net = paired(given, made)
    assert not state_inputs(net, graph_inputs(net))


def test_another_shape() -> None:
    net = paired("state_in", "state_out", same=False)
    assert not state_inputs(net, graph_inputs(net))


def test_something_is_the_data() -> None:
    net = model([node("Relu", ["state"], ["state_out"])], {}, [value("state", 2)], [value("state_out", 2)])
    assert not state_inputs(net, graph_inputs(net))


def test_recurrent_slots() -> None:
    w, r = (np.ones((1, 20, n), np.float32) for n in (3, 5))
    nodes = [
        node("Transpose", ["a"], ["h"], perm=[1, 0, 2]),
        node("LSTM", ["x", "w", "r", "", "", "h", "b"], ["y"], hidden_size=5),
    ]
    inputs = [value("x", "T", "N", 3), value("a", "N", 1, 5), value("b", 1, "N", 5)]
    net = model(nodes, {"w": w, "r": r}, inputs, [value("y", "T", 1, "N", 5)])
    wanted = graph_inputs(net)
    assert state_inputs(net, wanted) == {"a", "b"}
    sizes, _ = next(attempts(net, wanted))
    shapes = shapes_for(wanted, sizes)
    first, second = (generate(wanted, shapes, recipe(net, wanted, shapes), index=k, seed=0).feeds for k in (0, 2))
    assert not first["a"].any() and not first["b"].any() and first["x"].any()
    assert 0.01 < second["a"].std() < 0.3 < second["x"].std()


def test_a_size_that_is_a_sum() -> None:
    inputs = [
        value("past", "N", 2, "P", 4),
        value("mask", "N", "P + S", kind=TensorProto.INT64),
        value("ids", "N", "S"),
    ]
    nodes = [node("Identity", ["past"], ["y"])]
    net = model(nodes, {}, inputs, [value("y", "N", 2, "P", 4)])
    wanted = graph_inputs(net)
    sizes, _ = next(attempts(net, wanted))
    shapes = shapes_for(wanted, sizes)
    assert shapes["mask"][1] == shapes["past"][2] + shapes["ids"][1]
