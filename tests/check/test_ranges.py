"""Values stay where --range says, both ends included; what cannot be a range says so."""

from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import TensorProto

from bnfold.check import check
from bnfold.check.inputs import KINDS, generate, recipe
from bnfold.check.sizes import graph_inputs
from bnfold.cli.commands import bnfold
from bnfold.errors import UsageError

from .nets import conv_net, value
from .test_inputs import bare


def made(kind: int, low: float, high: float, samples: int = 6) -> list[np.ndarray]:
    net = bare(value("x", 40, 3, 5, kind=kind))
    wanted, shapes = graph_inputs(net), {"x": (40, 3, 5)}
    how = recipe(net, wanted, shapes, {"x": (low, high)})
    return [generate(wanted, shapes, how, index=k, seed=1).feeds["x"] for k in range(samples)]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0, 255), (-3, -1), (0.25, 0.25)])
def test_floats(low: float, high: float) -> None:
    samples = made(TensorProto.FLOAT, low, high)
    assert all(x.min() >= low and x.max() <= high and x.dtype == np.float32 for x in samples)
    noise, zeros, signs = (samples[KINDS.index(kind)] for kind in ("uniform", "zeros", "signs"))
    assert (zeros == min(max(low, 0), high)).all()
    assert set(np.unique(signs)) == {low, high}
    assert noise.max() - noise.min() >= 0.9 * (high - low)


@pytest.mark.parametrize("kind", [TensorProto.INT64, TensorProto.UINT8, TensorProto.INT32])
def test_integers(kind: int) -> None:
    samples = made(kind, 3, 7)
    assert {int(v) for x in samples for v in np.unique(x)} == {3, 4, 5, 6, 7}
    assert (samples[1] == 3).all() and (samples[2] == 7).all()


def test_the_widest_integers() -> None:
    assert made(TensorProto.INT64, -(2**63), 2**63 - 1)[2].max() == 2**63 - 1
    assert made(TensorProto.UINT64, 0, 2**64 - 1)[2].max() == 2**64 - 1


def test_booleans() -> None:
    assert all(x.all() for x in made(TensorProto.BOOL, 1, 1))
    assert not any(x.any() for x in made(TensorProto.BOOL, 0, 0))


@pytest.mark.parametrize(
    ("kind", "limits", "words"),
    [
        (TensorProto.FLOAT, {"z": (0, 1)}, "no input 'z' to give a range; its inputs are x"),
        (TensorProto.FLOAT, {"x": (2, 1)}, "begins at 2 and ends at 1"),
        (TensorProto.FLOAT, {"x": (0, float("nan"))}, "finite"),
        (TensorProto.FLOAT16, {"x": (0, 1e6)}, "float16, which cannot hold"),
        (TensorProto.INT64, {"x": (0, 1.5)}, "integers"),
        (TensorProto.UINT8, {"x": (0, 256)}, "from 0 to 255"),
        (TensorProto.BOOL, {"x": (0, 2)}, "from 0 to 1"),
    ],
)
def test_no_range(kind: int, limits: dict[str, Any], words: str) -> None:
    net = bare(value("x", 4, kind=kind))
    with pytest.raises(UsageError, match=words):
        recipe(net, graph_inputs(net), {"x": (4,)}, limits)


def test_in_the_check() -> None:
    net = conv_net(0)
    assert check(net.model(), net.folded()[0], ranges={"x": (0, 255)}, samples=2)
    with pytest.raises(UsageError, match="no input 'q'"):
        check(net.model(), net.folded()[0], ranges={"q": (0, 255)})
    with pytest.raises(UsageError, match="generated inputs"):
        check(net.model(), net.folded()[0], ranges={"x": (0, 1)}, inputs=[{"x": np.zeros((1, 3, 9, 11), np.float32)}])


@pytest.mark.parametrize("text", ["x", "x:1", "x:1,2,3", ":0,1", "x:a,b", "x:0,inf", "x:0,nan", "x:0;1"])
def test_malformed_option(text: str) -> None:
    done = CliRunner().invoke(bnfold, ["check", "a.onnx", "b.onnx", "--range", text])
    assert done.exit_code == 2
    assert "no range" in done.output


def test_option_given_twice() -> None:
    done = CliRunner().invoke(bnfold, ["check", "a.onnx", "b.onnx", "--range", "x:0,1", "--range", "x:0,2"])
    assert done.exit_code == 2
    assert "given twice" in done.output
