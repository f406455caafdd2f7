"""The networks in models/: what each file holds, and the figure that models/README.md gives for it."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
onnxruntime = pytest.importorskip("onnxruntime")

from bnfold.train import digits, networks  # noqa: E402 - without torch the tests skip before they would need it

MODELS = Path(__file__).parents[2] / "models"
NAMES = list(digits.ARCHITECTURES)
BATCH_NORMALIZATIONS = {
    "conv": 3,
    "residual": 9,
    "postact": 3,
    "dense": 7,
    "mlp": 2,
    "tokens": 2,
    "autoencoder": 5,
    "lstm": 2,
    "frozen": 0,
    "float16": 5,
}
MADE_WITH = {
    "autoencoder": "ConvTranspose",
    "dense": "Concat",
    "float16": "Clip",
    "lstm": "LSTM",
    "mlp": "Gemm",
    "tokens": "MatMul",
}


def rows(text: str) -> dict[str, list[str]]:
    """The table's rows by the name of the file: BatchNormalization, BNs, parameters, size, held out, folding."""
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if re.match(r"\| `\w+\.onnx` ", line)]
    return {row[0].strip("`").removesuffix(".onnx"): row[1:] for row in cells}


@pytest.fixture(scope="module")
def documented() -> dict[str, list[str]]:
    return rows((MODELS / "README.md").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def data() -> digits.Digits:
    return digits.load_digits()


def load(name: str) -> onnx.ModelProto:
    return onnx.load(MODELS / f"{name}.onnx")


def run(name: str, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(MODELS / f"{name}.onnx", providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"image": images.astype(np.float16 if name == "float16" else np.float32)})
    return output


def initializers(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {initializer.name: tuple(initializer.dims) for initializer in model.graph.initializer}


def test_the_folder_the_definitions_and_the_table_name_the_same_models(documented: dict[str, list[str]]):
    assert list(documented) == NAMES == list(BATCH_NORMALIZATIONS)
    assert {path.stem for path in MODELS.glob("*.onnx") if not path.stem.endswith(".folded")} == set(NAMES)


def test_all_of_them_together_are_small():
    assert sum((MODELS / f"{name}.onnx").stat().st_size for name in NAMES) < 2_000_000


@pytest.mark.parametrize("name", NAMES)
def test_the_graph_is_valid_and_keeps_its_normalizations(name: str, documented: dict[str, list[str]]):
    model = load(name)
    onnx.checker.check_model(model, full_check=True)
    ops = Counter(node.op_type for node in model.graph.node)
    assert ops["BatchNormalization"] == BATCH_NORMALIZATIONS[name] == int(documented[name][1])
    assert MADE_WITH.get(name, "Conv") in ops
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            assert set(node.input[1:]) <= set(initializers(model))
            assert all(attribute.i == 0 for attribute in node.attribute if attribute.name == "training_mode")


def test_the_decomposed_normalizations_are_pairs_of_mul_and_add():
    model = load("frozen")
    constants = initializers(model)
    maker = {output: node for node in model.graph.node for output in node.output}
    adds = [node for node in model.graph.node if node.op_type == "Add"]
    assert len(adds) == 3
    for add in adds:
        mul = maker[add.input[0]]
        assert (mul.op_type, maker[mul.input[0]].op_type) == ("Mul", "Conv")
        assert constants[mul.input[1]] == constants[add.input[1]] == (1, constants[add.input[1]][1], 1, 1)


@pytest.mark.parametrize("name", NAMES)
def test_the_normalizations_are_not_trivial(name: str):
    """Scales of both signs, and shifts and statistics that differ between channels by more than rounding could hide."""
    model = load(name)
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    if name == "frozen":
        runs = [[tensors[f"bn{i}.scale"], tensors[f"bn{i}.shift"]] for i in (1, 2, 3)]
    else:
        runs = [[tensors[i] for i in n.input[1:]] for n in model.graph.node if n.op_type == "BatchNormalization"]
    assert any((scale < 0).any() for scale, *_ in runs)
    for coefficients in runs:
        assert all(np.ptp(coefficient.astype(np.float64)) > 0.01 for coefficient in coefficients)


def test_the_float16_model_computes_in_float16():
    model = load("float16")
    half = onnx.TensorProto.FLOAT16
    assert {tensor.data_type for tensor in model.graph.initializer} == {half}
    assert {value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)} == {half}
    assert not any(node.op_type == "Cast" for node in model.graph.node)


def test_the_autoencoder_has_a_grouped_transposed_convolution():
    nodes = [node for node in load("autoencoder").graph.node if node.op_type == "ConvTranspose"]
    groups = [attribute.i for node in nodes for attribute in node.attribute if attribute.name == "group"]
    assert sorted(groups) == [1, 4]


@pytest.mark.parametrize("name", NAMES)
def test_inputs_and_outputs_have_names_and_a_dynamic_batch(name: str):
    (image,), (output,) = load(name).graph.input, load(name).graph.output
    assert (image.name, output.name) == ("image", digits.ARCHITECTURES[name].output)
    assert [size.dim_param or size.dim_value for size in image.type.tensor_type.shape.dim] == ["batch", 1, 8, 8]
    assert output.type.tensor_type.shape.dim[0].dim_param == "batch"


@pytest.mark.parametrize("name", NAMES)
def test_nothing_says_where_it_was_made(name: str):
    model = load(name)
    parts = [model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output]
    assert not any(part.doc_string or len(part.metadata_props) for part in parts)
    assert not re.search(rb"[\w./\\-]+\.py\b|site-packages", (MODELS / f"{name}.onnx").read_bytes())


@pytest.mark.parametrize("name", [name for name in NAMES if name != "autoencoder"])
def test_accuracy_is_the_documented_one(name: str, data: digits.Digits, documented: dict[str, list[str]]):
    """An image may fall either way only if its two best logits differ by a few roundings of the largest, or less."""
    logits = run(name, data.test_images)
    rounding = np.finfo(logits.dtype).eps * np.abs(logits).max()
    second, best = np.sort(logits.astype(np.float64), axis=1)[:, -2:].T
    decided = best - second > 8 * rounding
    right = logits.argmax(1) == data.test_labels
    figure = re.fullmatch(r"(\d+)/(\d+) = ([\d.]+)%", documented[name][4])
    assert figure
    count, total, percent = figure.groups()
    assert int(total) == len(right) == digits.TEST_IMAGES
    assert f"{int(count) / int(total):.1%}" == f"{percent}%"
    assert (right & decided).sum() <= int(count) <= (right & decided).sum() + (~decided).sum()
    assert (~decided).sum() <= (3 if name == "float16" else 0)


def test_reconstruction_error_is_the_documented_one(data: digits.Digits, documented: dict[str, list[str]]):
    error = np.sqrt(np.square(run("autoencoder", data.test_images) - data.test_images, dtype=np.float64).mean())
    figure = documented["autoencoder"][4].removeprefix("RMSE ")
    assert abs(error - float(figure)) < 0.6e-4
    assert error < data.test_images.std() / 2, "no better than an image that is the same everywhere"


@pytest.mark.parametrize("name", NAMES)
def test_the_batch_may_have_any_size(name: str, data: digits.Digits):
    whole = run(name, data.test_images[:5])
    for size in (1, 2):
        assert run(name, data.test_images[:size]).shape == (size, *whole.shape[1:])


@pytest.mark.parametrize("name", NAMES)
def test_definition_and_file_have_the_same_tensors(name: str, documented: dict[str, list[str]]):
    module = digits.ARCHITECTURES[name].deployed()
    state = {k: tuple(v.shape) for k, v in module.state_dict().items() if not k.endswith("num_batches_tracked")}
    assert initializers(load(name)) == state
    assert sum(p.numel() for p in module.parameters()) == int(documented[name][2].replace(",", ""))
    assert documented[name][0] == digits.ARCHITECTURES[name].what
    assert documented[name][5] == digits.ARCHITECTURES[name].folding
    assert documented[name][3] == f"{(MODELS / f'{name}.onnx').stat().st_size / 1000:.0f} kB"


@pytest.mark.parametrize("name", NAMES)
def test_the_definition_computes_what_the_file_does(name: str, data: digits.Digits):
    """The file's weights in the definition: not alone the names, also their order in the network is the same."""
    module = digits.ARCHITECTURES[name].deployed()
    tensors = {
        tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
        for tensor in load(name).graph.initializer
    }
    missing, unexpected = module.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)
    images = data.test_images[:50]
    dtype = next(iter(tensors.values())).dtype
    with torch.inference_mode():
        expected = module(torch.from_numpy(images).to(dtype)).double().numpy()
    # Two runtimes add in different orders: a few roundings of the largest value, at each of at most 24 layers.
    allowed = 24 * 4 * torch.finfo(dtype).eps * np.abs(expected).max()
    assert np.abs(run(name, images) - expected).max() < allowed


def test_frozen_normalization_is_the_normalization():
    torch.manual_seed(0)
    net = digits.roughen(networks.ConvNet()).double()
    images = torch.rand(8, 1, 8, 8, dtype=torch.float64)
    net.train()(images)  # statistics that are not 0 and 1
    expected = net.eval()(images)
    frozen = networks.freeze(net)
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in frozen.modules())
    # scale and shift are kept in float32
    assert torch.allclose(frozen(images), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="no statistics"):
        networks.freeze(torch.nn.Sequential(torch.nn.BatchNorm2d(3, track_running_stats=False)))


def test_the_split_is_fixed_and_has_every_class_on_both_sides(data: digits.Digits):
    assert data.train_images.shape == (1347, 1, 8, 8)
    assert data.test_images.shape == (450, 1, 8, 8)
    assert data.train_images.dtype == np.float32
    assert (data.train_images.min(), data.train_images.max()) == (0, 1)
    for labels in (data.train_labels, data.test_labels):
        share = np.bincount(labels, minlength=10) / len(labels)
        assert np.abs(share - 0.1).max() < 0.01
    again = digits.load_digits()
    assert all(np.array_equal(a, b) for a, b in zip(data, again, strict=True))


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(MODELS / "train.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_script_knows_its_networks(tmp_path: Path):
    run = script("resnet", "--out", str(tmp_path))
    assert run.returncode == 2
    assert "'resnet' is not one of" in run.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_training_again_gives_as_good_a_model_and_the_same_bytes_each_time(
    tmp_path: Path, documented: dict[str, list[str]]
):
    runs = [script("mlp", "--out", str(tmp_path / name)) for name in ("a", "b")]
    assert [run.returncode for run in runs] == [0, 0], runs[0].stderr
    assert runs[0].stderr == "", "no progress bar where there is no terminal"
    assert runs[0].stdout == runs[1].stdout
    (row,) = rows(runs[0].stdout).values()
    assert row[:4] + row[5:] == documented["mlp"][:4] + documented["mlp"][5:]
    # Another machine trains other weights: three standard deviations of a count of 450 at the documented share.
    count = int(documented["mlp"][4].partition("/")[0])
    assert int(row[4].partition("/")[0]) >= count - 3 * np.sqrt(count * (1 - count / digits.TEST_IMAGES))
    assert (tmp_path / "a/mlp.onnx").read_bytes() == (tmp_path / "b/mlp.onnx").read_bytes()
