"""Archives that hold many samples: an axis more, or a multiple of the batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from bnfold.check import check
from bnfold.check.given import ROWS, read_samples
from bnfold.check.sizes import graph_inputs
from bnfold.errors import UsageError

from .nets import conv_net, value
from .test_inputs import bare

RNG = np.random.default_rng(0)


def shapes(arrays: dict[str, Any], *inputs: Any) -> list[dict[str, tuple[int, ...]]]:
    return [sample.shapes for sample in read_samples([arrays], graph_inputs(bare(*inputs)))]


def numbers(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def test_an_axis_of_samples() -> None:
    x, z = numbers(5, 2, 3), np.arange(10).reshape(5, 2)
    inputs = value("x", "N", 3), value("z", "N", kind=TensorProto.INT64)
    samples = read_samples([{"x": x, "z": z}], graph_inputs(bare(*inputs)))
    assert len(samples) == 5
    np.testing.assert_array_equal(samples[3].feeds["x"], x[3])
    np.testing.assert_array_equal(samples[3].feeds["z"], z[3])


def test_what_has_no_such_axis_is_shared() -> None:
    found = shapes({"x": numbers(5, 2, 3), "t": numbers(7)}, value("x", "N", 3), value("t", 7))
    assert found == [{"x": (2, 3), "t": (7,)}] * 5


def test_a_multiple_of_a_fixed_batch() -> None:
    x = numbers(6, 3)
    samples = read_samples([{"x": x}], graph_inputs(bare(value("x", 2, 3))))
    assert len(samples) == 3
    np.testing.assert_array_equal(samples[1].feeds["x"], x[2:4])


def test_rows_of_a_free_batch() -> None:
    assert shapes({"x": numbers(ROWS, 3)}, value("x", "N", 3)) == [{"x": (ROWS, 3)}]
    assert shapes({"x": numbers(2 * ROWS + 1, 3)}, value("x", "N", 3)) == [{"x": (n, 3)} for n in (ROWS, ROWS, 1)]
    both = value("x", "N", 3), value("z", "N", 4)
    found = shapes({"x": numbers(ROWS + 2, 3), "z": numbers(ROWS + 2, 4)}, *both)
    assert found == [{"x": (ROWS, 3), "z": (ROWS, 4)}, {"x": (2, 3), "z": (2, 4)}]
    assert len(shapes({"x": numbers(3 * ROWS, 3 * ROWS)}, value("x", "N", "N"))) == 1  # the batch is a side of a square


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": numbers(5, 2, 3), "z": numbers(4, 2, 3)}, "'x' has 5 samples and 'z' 4"),
        ({"x": numbers(4, 3), "z": numbers(6, 3)}, "'x' has 2 samples and 'z' 3"),
        ({"x": numbers(5, 3), "z": numbers(2, 3)}, "5 on axis 0; it must be 2"),
        ({"x": numbers(0, 2, 3), "z": numbers(0, 2, 3)}, "no sample"),
        ({"x": numbers(1, 5, 2, 3), "z": numbers(2, 3)}, "4 dimensions"),
    ],
)
def test_unfit(arrays: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        shapes(arrays, value("x", 2, 3), value("z", 2, 3))


def test_many_samples_are_checked(tmp_path: Path) -> None:
    net = conv_net(0)
    np.savez(tmp_path / "data.npz", x=numbers(4, 2, 3, 9, 11))
    np.savez(tmp_path / "more.npz", x=numbers(2, 3, 9, 11))
    files = [tmp_path / "data.npz", tmp_path / "more.npz"]
    result = check(net.model(), net.folded()[0], inputs=files)
    assert result and len(result.samples) == 5
    assert len(check(net.model(), net.folded()[0], inputs=files, samples=2).samples) == 2
    assert not check(net.model(), net.folded("beta dropped")[0], inputs=files)
