"""Refreshed statistics against brute force: float64, all the data at once, layer after layer."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from bnfold import stats
from bnfold.errors import BnfoldError, UnsupportedModel, UsageError
from bnfold.stats.moments import Moments
from tests.graphs import Builder

from .nets import Array, brute_force, chained, data, saved, statistics

MODELS = Path(__file__).parents[2] / "models"


def assert_like(model: onnx.ModelProto, expected: list[tuple[Array, Array]], tolerance: float = 2e-6) -> None:
    found = statistics(model)
    assert len(found) == len(expected)
    for (mean, variance), (exact_mean, exact_variance) in zip(found, expected, strict=True):
        spread = np.sqrt(exact_variance)
        assert np.abs(mean - exact_mean).max() <= tolerance * (spread + np.abs(exact_mean)).max()
        assert np.abs(variance - exact_variance).max() <= tolerance * exact_variance.max()


@pytest.mark.parametrize("rank", [2, 3, 4])
@pytest.mark.parametrize("rows", [16, 41])
def test_statistics_are_those_of_all_the_data(rank: int, rows: int, tmp_path: Path):
    model = chained(rank)
    feeds = data(model, rows)
    made = stats.refresh(model, [saved(tmp_path / "x.npz", feeds)])
    assert (made.rows, made.passes, len(made.layers)) == (rows, 2, 3)
    onnx.checker.check_model(made.model, full_check=True)
    assert_like(made.model, brute_force(model, feeds))
    assert statistics(model)[0][0].tobytes() != statistics(made.model)[0][0].tobytes()  # the argument stays


def test_a_later_layer_sees_the_refreshed_ones_before_it():
    model = chained()
    feeds = data(model, 20)
    stale = stats.drift(model, [feeds]).layers[-1]
    fresh = stats.refresh(model, [feeds])
    after = stats.drift(fresh.model, [feeds])
    assert stale.drift > 0.5
    assert max(layer.drift for layer in after.layers) < 1e-5
    again = stats.refresh(fresh.model, [feeds])
    for (a, b), (c, d) in zip(statistics(fresh.model), statistics(again.model), strict=True):
        np.testing.assert_allclose(a, c, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(b, d, rtol=1e-5)


def test_the_data_may_come_in_several_files_and_mappings(tmp_path: Path):
    model = chained()
    feeds = data(model, 50)["x"]
    cut = [saved(tmp_path / f"{k}.npz", {"x": part}) for k, part in enumerate(np.split(feeds, [3, 4, 37]))]
    made = stats.refresh(model, [cut[0], {"x": feeds[3:4]}, cut[2], Path(cut[3])])
    assert made.rows == 50
    assert_like(made.model, brute_force(model, {"x": feeds}))


@pytest.mark.parametrize("rows", [5, 10, 35])
def test_a_fixed_batch_divides_the_rows(rows: int, tmp_path: Path):
    model = chained(batch=5)
    feeds = data(model, rows)
    made = stats.refresh(model, [saved(tmp_path / "x.npz", feeds)])
    free = chained()
    assert made.rows == rows
    assert_like(made.model, brute_force(free, feeds))


def test_an_axis_more_in_front_is_an_axis_of_samples(tmp_path: Path):
    model = chained(batch=5)
    feeds = data(model, 30)
    stacked = {"x": feeds["x"].reshape(6, 5, *feeds["x"].shape[1:])}
    made = stats.refresh(model, [saved(tmp_path / "x.npz", stacked)])
    assert_like(made.model, brute_force(chained(), feeds))


def test_archives_that_numpy_writes_otherwise(tmp_path: Path):
    model, rows = chained(), 40
    feeds = data(model, rows)
    expected = statistics(stats.refresh(model, [feeds]).model)
    np.savez_compressed(tmp_path / "small.npz", x=feeds["x"])
    np.savez(tmp_path / "fortran.npz", x=np.asfortranarray(feeds["x"]))
    np.savez(tmp_path / "big.npz", x=feeds["x"].astype(">f4"))
    np.savez(tmp_path / "double.npz", x=feeds["x"].astype(np.float64))
    for name in ("small", "fortran", "big", "double"):
        found = statistics(stats.refresh(model, [tmp_path / f"{name}.npz"]).model)
        for mine, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_large_offsets_and_sorted_rows_lose_nothing():
    model = chained()
    feeds = data(model, 300, offset=1e4)
    made = stats.refresh(model, [feeds])
    on_input = next(k for k, layer in enumerate(made.layers) if layer.channels == 3)  # fed by the input itself
    x = feeds["x"].astype(np.float64)
    mean = x.mean(axis=(0, 2, 3))
    variance = np.square(x - mean.reshape(1, -1, 1, 1)).mean(axis=(0, 2, 3))
    np.testing.assert_allclose(made.moments[on_input].mean, mean, rtol=1e-10)
    np.testing.assert_allclose(made.moments[on_input].variance, variance, rtol=1e-10)


@pytest.mark.parametrize("cuts", [[1] * 40, [40], [7, 1, 20, 12], [0, 39, 1]])
def test_moments_do_not_depend_on_the_batches(cuts: list[int]):
    random = np.random.default_rng(5)
    x = random.normal(size=(40, 3, 6)) + np.sort(random.normal(size=40)).reshape(-1, 1, 1) * 5 + 1e4
    moments = Moments()
    for part in np.split(x, np.cumsum(cuts)[:-1]):
        moments.add(part, (0, 2))
    exact = np.asarray(x, np.longdouble)
    mean = exact.mean(axis=(0, 2))
    variance = np.square(exact - mean.reshape(1, -1, 1)).mean(axis=(0, 2))
    assert moments.count == 240
    np.testing.assert_allclose(moments.mean, mean.astype(np.float64), rtol=1e-13)
    np.testing.assert_allclose(moments.variance, variance.astype(np.float64), rtol=1e-11)


def test_the_standard_errors_are_what_repetition_shows():
    random = np.random.default_rng(7)
    means, variances, told = [], [], []
    for _ in range(400):
        moments = Moments()
        for size in (30, 40, 50) * 4:  # rows of a batch share an offset: they are not independent
            moments.add(random.normal(size=(size, 1)) * 2 + random.normal() + 100, (0,))
        means.append(float(moments.mean[0]))
        variances.append(float(moments.variance[0]))
        told.append([float(each[0]) for each in moments.errors()])
    average = np.sqrt(np.mean(np.square(told), axis=0))
    np.testing.assert_allclose(average, [np.std(means), np.std(variances)], rtol=0.15)
    alone = Moments()
    alone.add(np.zeros((5, 2)), (0,))
    assert np.isnan(alone.errors()).all()


def shared(kind: str) -> onnx.ModelProto:
    """Two BatchNormalizations whose parameters are the same tensors, made in the way that `kind` names."""
    b = Builder(11)
    x = b.input("x", "batch", 4, 5)
    names = [b.weight(values=v.astype(np.float32)) for v in np.random.default_rng(1).uniform(0.5, 2, (3, 4))]
    held = b.weight(values=np.ones(4, np.float32), name="held")
    if kind == "constant":
        del b.weights["held"]
        tensor = numpy_helper.from_array(np.ones(4, np.float32))
        b.nodes.append(helper.make_node("Constant", [], ["held"], value=tensor))
    if kind == "identity":
        held = b.op("Identity", held)
    h = b.op("BatchNormalization", x, *names, held, epsilon=0.01)
    y = b.op("BatchNormalization", b.op("Relu", h), *names, held, epsilon=0.01)
    if kind == "beta":  # a third reader: the second layer's beta is the shared mean
        y = b.op("Add", y, b.op("Reshape", names[2], b.ints(4, 1)))
    return b.model(y)


@pytest.mark.parametrize("kind", ["initializer", "constant", "identity", "beta"])
def test_shared_parameters_get_copies(kind: str):
    model = shared(kind)
    feeds = data(model, 33)
    made = stats.refresh(model, [feeds])
    onnx.checker.check_model(made.model, full_check=True)
    assert_like(made.model, brute_force(model, feeds))
    nodes = {node.op_type for node in made.model.graph.node}
    assert not nodes & {"Constant", "Identity"}  # what made the old ones is gone
    names = [name for node in made.model.graph.node for name in node.input]
    assert {t.name for t in made.model.graph.initializer} <= set(names)


def test_every_initializer_stays_an_input_in_old_files():
    b = Builder(2, opset=8, ir_version=3)
    x = b.input("x", "batch", 3, 4)
    y = b.op("Relu", b.norm(x, 3))
    model = b.model(y)
    bn = model.graph.node[0]
    model.graph.node.append(helper.make_node("BatchNormalization", [y, *bn.input[1:]], ["z"]))
    model.graph.output[0].name = "z"
    model.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in model.graph.initializer
    )
    feeds = data(model, 12)
    made = stats.refresh(model, [feeds]).model
    assert {t.name for t in made.graph.initializer} == {i.name for i in made.graph.input} - {"x"}
    assert_like(made, brute_force(model, feeds))


def test_half_precision():
    path = MODELS / "float16.onnx"
    random = np.random.default_rng(0)
    feeds = {"image": random.uniform(size=(40, 1, 8, 8)).astype(np.float32)}
    made = stats.refresh(path, [feeds]).model
    half = {"image": feeds["image"].astype(np.float16)}
    assert {mean.dtype for mean, _ in statistics(made)} == {np.dtype(np.float16)}
    assert_like(made, brute_force(onnx.load(path), half), tolerance=4e-3)
    huge = {"image": feeds["image"] * 6e4}
    with pytest.raises(UsageError, match=r"variance of channel \d+ of .* does not fit float16|is fed (-?inf|nan)"):
        stats.refresh(path, [huge])


@pytest.mark.parametrize("name", ["conv", "residual", "dense", "mlp", "tokens", "autoencoder", "lstm", "postact"])
def test_trained_models(name: str):
    path = MODELS / f"{name}.onnx"
    feeds = {"image": np.random.default_rng(1).uniform(size=(37, 1, 8, 8)).astype(np.float32)}
    made = stats.refresh(path, [feeds]).model
    assert_like(made, brute_force(onnx.load(path), feeds), tolerance=1e-5)


def test_large_and_external_models_are_saved_as_they_were(tmp_path: Path):
    b = Builder(4)
    x = b.input("x", "batch", 64)
    y = b.norm(b.op("Gemm", b.op("Relu", b.norm(b.op("Gemm", x, b.weight(64, 3000)), 3000)), b.weight(3000, 8)), 8)
    model = b.model(y)
    feeds = data(model, 30)
    expected = brute_force(model, feeds)
    onnx.save(model, tmp_path / "one.onnx")
    onnx.save(model, tmp_path / "two.onnx", save_as_external_data=True, location="two.bin", size_threshold=0)
    for name in ("one", "two"):
        made = stats.refresh(tmp_path / f"{name}.onnx", [feeds])
        written = made.save(tmp_path / f"{name}.fresh.onnx")
        assert len(written) == (1 if name == "one" else 2)
        assert_like(onnx.load(written[0]), expected)
        loaded, source = onnx.load(written[0]), onnx.load(tmp_path / f"{name}.onnx")
        assert [t.SerializeToString() for t in loaded.graph.initializer[:1]] == [
            t.SerializeToString() for t in source.graph.initializer[:1]
        ] or name == "two"
    over = tmp_path / "one.onnx"
    stats.refresh(over, [feeds]).save(over)  # in place, while its tensors are still in the file
    assert_like(onnx.load(over), expected)


def test_what_is_left_alone_is_named():
    b = Builder(6, opset=15)
    x = b.input("x", "batch", 3, 4)
    y = b.norm(x, 3)
    model = b.model(y)
    model.graph.node[0].attribute.append(helper.make_attribute("training_mode", 1))
    made = stats.refresh(model, [data(model, 5)])
    assert not made.layers
    assert "training mode" in made.left[0].why
    assert made.model == model


def test_an_overridable_statistic_is_left_alone():
    b = Builder(6)
    x = b.input("x", "batch", 3, 4)
    model = b.model(b.norm(b.op("Relu", b.norm(x, 3)), 3))
    name = model.graph.node[0].input[3]
    model.graph.input.append(helper.make_tensor_value_info(name, 1, [3]))
    made = stats.refresh(model, [data(model, 5)])
    assert [name in each.why for each in made.left] == [True]
    assert len(made.layers) == 1
    assert statistics(made.model)[0][0].tobytes() == statistics(model)[0][0].tobytes()


def in_a_function() -> onnx.ModelProto:
    """Two calls of one model-local function that normalizes, each with parameters of its own."""
    b = Builder(3)
    y = b.input("x", "batch", 5)
    for _ in range(2):
        y = b.op("Relu", b.norm(b.op("Gemm", y, b.weight(5, 5)), 5))
    model = b.model(y)
    body = [helper.make_node("BatchNormalization", list("Xsbmv"), ["Y"], epsilon=0.01)]
    model.functions.append(
        helper.make_function("local", "Norm", list("Xsbmv"), ["Y"], body, [helper.make_opsetid("", 17)])
    )
    model.opset_import.append(helper.make_opsetid("local", 1))
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            node.op_type, node.domain = "Norm", "local"
            node.ClearField("attribute")
    return model


def test_each_call_of_a_function_has_statistics_of_its_own(tmp_path: Path):
    model = in_a_function()
    feeds = data(model, 30)
    assert len(stats.drift(model, [feeds]).layers) == 2
    made = stats.refresh(model, [feeds])
    assert (len(made.layers), made.left, made.passes) == (2, (), 2)
    onnx.checker.check_model(made.model, full_check=True)
    assert_like(made.model, brute_force(made.model, feeds))
    assert model == in_a_function()
    onnx.save(model, tmp_path / "net.onnx")
    assert made.model == stats.refresh(tmp_path / "net.onnx", [feeds]).model


def test_unusable_statistics_are_repaired():
    model = chained()
    held = {t.name: t for t in model.graph.initializer}
    bn = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
    held[bn.input[4]].CopyFrom(numpy_helper.from_array(np.full(6, -7, np.float32), bn.input[4]))
    held[bn.input[3]].CopyFrom(numpy_helper.from_array(np.full(6, np.nan, np.float32), bn.input[3]))
    feeds = data(model, 20)
    made = stats.refresh(model, [feeds])
    assert made.layers[0].drift == np.inf
    assert_like(made.model, brute_force(chained(), feeds))


@pytest.mark.parametrize(
    ("feeds", "sentence"),
    [
        ({"y": np.zeros((4, 3, 5, 4), np.float32)}, "lacks the input 'x'"),
        ({"x": np.zeros((0, 3, 5, 4), np.float32)}, "was fed no values a channel"),
        ({"x": np.zeros((4, 3, 5, 9), np.float32)}, "has 9 on axis 3"),
        ({"x": np.full((4, 3, 5, 4), np.nan, np.float32)}, "is fed nan in channel"),
        ({"x": np.zeros((4, 3, 5, 4), np.complex64)}, "is of type complex64"),
    ],
)
def test_data_that_do_not_fit(feeds: dict[str, Array], sentence: str):
    with pytest.raises(UsageError, match=sentence):
        stats.refresh(chained(), [feeds])


def test_a_non_finite_value_is_named_with_its_rows(tmp_path: Path):
    model = chained()
    feeds = data(model, 40)
    feeds["x"][35, 2, 1, 1] = np.inf
    with pytest.raises(UsageError, match=r"bad\.npz, rows 32 to 39"):
        stats.refresh(model, [saved(tmp_path / "good.npz", data(model, 20)), saved(tmp_path / "bad.npz", feeds)])


def test_a_constant_channel_with_no_epsilon_is_refused():
    b = Builder(1)
    x = b.input("x", "batch", 3)
    model = b.model(b.norm(x, 3))
    model.graph.node[0].attribute[0].f = 0.0
    feeds = data(model, 9)
    feeds["x"][:, 1] = 4
    with pytest.raises(UsageError, match=r"Channel 1 of n0 is constant"):
        stats.refresh(model, [feeds])
    model.graph.node[0].attribute[0].f = 0.5
    assert statistics(stats.refresh(model, [feeds]).model)[0][1][1] == 0


def test_files_that_are_no_archives(tmp_path: Path):
    model = chained()
    whole = Path(saved(tmp_path / "whole.npz", data(model, 30)))
    (tmp_path / "short.npz").write_bytes(whole.read_bytes()[:900])
    np.save(tmp_path / "single.npy", np.zeros(3))
    np.savez(tmp_path / "objects.npz", x=np.array([{}, None], object))
    with zipfile.ZipFile(tmp_path / "lies.npz", "w") as archive, zipfile.ZipFile(whole) as good:
        archive.writestr("x.npy", good.read("x.npy")[:-40])
    for name in ("missing.npz", "short.npz", "single.npy", "objects.npz", "lies.npz"):
        with pytest.raises(UsageError, match=name.partition(".")[0]):
            stats.refresh(model, [tmp_path / name])


def test_a_model_that_does_not_run_is_a_sentence():
    b = Builder(1)
    model = b.model(b.norm(b.op("Relu", b.input("x", "batch", 3)), 3))
    model.graph.node[0].op_type, model.graph.node[0].domain = "Mystery", "nobody"
    model.opset_import.append(helper.make_opsetid("nobody", 1))
    with pytest.raises(UnsupportedModel, match="does not run under ONNX Runtime"):
        stats.refresh(model, [data(model, 4)])
    with pytest.raises(BnfoldError, match="--inputs"):
        stats.refresh(chained(), [])
