"""Regions run side by side in one model give what they give alone, and one that does not run takes no other with it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper

from bnfold.check import batches
from bnfold.check.batches import grouped, run_side
from bnfold.check.evaluation import Regions
from bnfold.check.gate2 import local_bounds
from bnfold.check.inputs import Sample
from bnfold.check.providers import Provider, ProviderError
from bnfold.check.regions import Pair, Region
from bnfold.check.running import opened
from bnfold.check.shelf import Shelf
from bnfold.check.teacher import NoValue, Teacher

from .nets import conv_net

Array = npt.NDArray[Any]


class Counting(Provider):
    """A provider that counts what it loads."""

    loads = 0

    def load(self, path: Path, **rest: Any) -> tuple[str, ...]:
        self.loads += 1
        return super().load(path, **rest)


@pytest.fixture(scope="module")
def provider() -> Iterator[Counting]:
    with Counting(threads=1) as runtime:
        yield runtime


def parts(layers: int = 4) -> tuple[Pair, list[Region], list[Sample]]:
    """The regions of a fold, n0 to n3, and what they read on two samples."""
    net = conv_net(3, layers=layers)
    original, candidate = opened(net.model()), opened(net.folded()[0])
    pair = Pair(original, candidate)
    rng = np.random.default_rng(0)
    shape = [d.dim_value or 2 for d in original.model.graph.input[0].type.tensor_type.shape.dim]
    samples = [Sample("normal", {"x": rng.normal(size=shape).astype(np.float32)}) for _ in range(2)]
    shared = {"x", *(f"r{k}" for k in range(layers))}
    regions = [pair.region(f"n{k}", shared) for k in range(layers)]
    return pair, regions, samples


def fed(teacher: Teacher, regions: Sequence[Region], samples: int) -> list[list[dict[str, Array]]]:
    return [[teacher.values(k, sorted(region.inputs)) for k in range(samples)] for region in regions]


@pytest.mark.parametrize("which", [0, 1])
def test_together_as_alone(provider: Counting, which: int) -> None:
    pair, regions, samples = parts()
    feeds = fed(Teacher(opened(conv_net(3, layers=4).model()), samples, provider), regions, len(samples))
    together = run_side(pair, which, regions, feeds, provider)
    for region, given, found in zip(regions, feeds, together, strict=True):
        (alone,) = run_side(pair, which, [region], [given], provider)
        assert isinstance(found, list) and isinstance(alone, list)
        assert len(found) == len(alone) == len(samples)
        assert all(np.array_equal(a, b) for a, b in zip(found, alone, strict=True))
    assert not list(provider.folder.glob("regions.onnx*"))


def test_one_load_for_each_side(provider: Counting) -> None:
    net = conv_net(3, layers=5)
    samples = parts()[-1]
    before = provider.loads
    found = local_bounds(opened(net.model()), opened(net.folded()[0]), samples, provider, different=False)
    assert found.passed and len(found.regions) == 5
    assert provider.loads - before == 2


def test_one_that_does_not_run(provider: Counting) -> None:
    pair, regions, samples = parts()
    feeds = fed(Teacher(opened(conv_net(3, layers=4).model()), samples, provider), regions, len(samples))
    feeds[2] = [{name: value[:, :1] for name, value in given.items()} for given in feeds[2]]
    found = run_side(pair, 0, regions, feeds, provider)
    assert [isinstance(one, ProviderError) for one in found] == [False, False, True, False]


def test_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    pair, regions, _ = parts()
    assert list(grouped(pair, regions, [0] * 4)) == [[0, 1, 2, 3]]
    monkeypatch.setattr(batches, "_MEMORY", 100_000)
    assert list(grouped(pair, regions, [40_000, 40_000, 10, 200_000])) == [[0, 1, 2], [3]]


def test_a_region_with_a_body_runs_alone(provider: Counting) -> None:
    branch = helper.make_graph(
        [helper.make_node("Relu", ["a"], ["inside"])], "b", [], [helper.make_tensor_value_info("inside", 1, None)]
    )
    graph = helper.make_graph(
        [
            helper.make_node("Neg", ["x"], ["a"]),
            helper.make_node("If", ["c"], ["i"], then_branch=branch, else_branch=branch),
            helper.make_node("Abs", ["i"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", 1, [2, 3])],
        [helper.make_tensor_value_info("y", 1, None)],
        [helper.make_tensor("c", TensorProto.BOOL, [], [True])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    file = opened(model)
    pair = Pair(file, file)
    regions = [pair.region("a", {"x"}), pair.region("i", {"x"}), pair.region("y", {"x", "i"})]
    assert list(grouped(pair, regions, [0] * 3)) == [[1], [0, 2]]
    x = np.asarray([[1, -2, 3], [-4, 5, -6]], np.float32)
    (found,) = run_side(pair, 0, regions[1:2], [[{"x": x}]], provider)
    assert isinstance(found, list)
    np.testing.assert_array_equal(found[0], np.maximum(-x, 0))


def test_activations_are_the_provider_s_to_rounding(provider: Counting) -> None:
    """The reference's, and those of an original with an op that it lacks: the provider hands them out."""
    net = conv_net(3, layers=3).model()
    samples = parts()[-1]
    mine = Teacher(opened(net), samples, provider)
    other = onnx.ModelProto()
    other.CopyFrom(net)
    other.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    extra = helper.make_node("QuickGelu", ["r0"], ["unknown"], domain="com.microsoft", alpha=1.0)
    extra.attribute.append(helper.make_attribute("no_such", 1))  # the reference refuses it
    other.graph.node.append(extra)
    before = provider.loads
    values = mine.values(1, ["n1", "x"])
    assert provider.loads == before and values["n1"].dtype == np.float32
    theirs = Teacher(opened(other), samples, provider)
    with pytest.raises(NoValue):
        theirs.values(1, ["n1"])  # onnxruntime refuses it too
    other.graph.node.pop()
    runner = Teacher(opened(other), samples, provider)
    runner._evaluates = False
    np.testing.assert_allclose(runner.values(1, ["n1"])["n1"], values["n1"], rtol=1e-4, atol=1e-5)
    assert provider.loads > before


@pytest.mark.parametrize("limit", [0, 1 << 20])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64", "bool"])
def test_shelf(tmp_path: Path, limit: int, dtype: str) -> None:
    import ml_dtypes

    kind = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    shelf = Shelf(tmp_path, "v", limit)
    values = {k: np.arange(k).reshape(1, k).astype(kind) for k in range(3)} | {3: np.asarray(1).astype(kind)}
    for key, value in values.items():
        shelf.put(key, value)
        shelf.put(key, np.zeros_like(value))  # the first one stays
    for key, value in values.items():
        assert key in shelf and shelf[key].dtype == kind and shelf[key].shape == value.shape
        assert np.array_equal(shelf[key].astype(np.float32), value.astype(np.float32))
        with pytest.raises(ValueError, match="read-only"):
            shelf[key][...] = 0
    assert 9 not in shelf
    assert bool(list(tmp_path.iterdir())) == (limit == 0)


def test_evaluated_once() -> None:
    pair, regions, samples = parts()
    asked: list[frozenset[str]] = []

    def values(index: int, names: frozenset[str]) -> dict[str, Array]:
        asked.append(names)
        rng = np.random.default_rng(index)
        return {name: rng.normal(size=(2, 6, 9, 11)).astype(np.float32) for name in names}

    found = Regions(pair, values, len(samples))
    first = found.evaluated(regions[1], 0)
    count = len(asked)
    assert found.evaluated(regions[1], 0) is first and len(asked) == count
    assert first[0]["n1"].dtype == np.float64 and first[0]["n1"].shape == first[1]["n1"].shape
