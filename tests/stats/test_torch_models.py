"""`bnfold stats` on .pt2 archives and factories: the same figures as for the ONNX file of the same network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
from torch import nn  # noqa: E402 - without torch the tests skip before they would need it

from bnfold import train  # noqa: E402 - as above
from bnfold.cli import main  # noqa: E402 - as above
from bnfold.train.exporting import export, quietly  # noqa: E402 - as above

from .nets import saved, statistics  # noqa: E402 - as above

pytestmark = pytest.mark.filterwarnings("ignore")  # torch.export about its own code


class Net(nn.Module):
    """conv, BN, relu, conv, BN; the first BN's statistics are stale."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.conv, self.bn = nn.Conv2d(6, 5, 3), nn.BatchNorm2d(5)
        for layer in (self.stem[1], self.bn):
            nn.init.uniform_(layer.weight, 0.5, 1.5)  # pyright: ignore[reportArgumentType]
            nn.init.uniform_(layer.running_var, 0.5, 2)  # pyright: ignore[reportArgumentType]
            nn.init.normal_(layer.running_mean)  # pyright: ignore[reportArgumentType]

    def forward(self, image: Any) -> Any:
        return self.bn(self.conv(self.stem(image))).mean((2, 3))


class Shared(nn.Module):
    """A BatchNorm called twice, one that keeps no statistics, one called by a function, and a second input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.twice, self.none = nn.BatchNorm1d(4), nn.BatchNorm1d(4, track_running_stats=False)
        self.register_buffer("mu", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def forward(self, x: Any, *, scale: Any) -> Any:
        y = self.twice(self.none(self.twice(x)) * scale)
        return torch.nn.functional.batch_norm(y, self.mu, self.var)


NET, SHARED = f"{__name__}:Net", f"{__name__}:Shared"


def images(rows: int = 41) -> np.ndarray:
    random = np.random.default_rng(0)
    return (random.normal(size=(rows, 3, 6, 5)) * 2 + np.linspace(-2, 2, rows).reshape(-1, 1, 1, 1) + 1).astype("f4")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    np.savez("x.npz", image=images())
    net, example = Net().eval(), torch.from_numpy(images(3))
    free = {"image": {0: torch.export.Dim("batch")}}
    torch.export.save(torch.export.export(net, (example,), dynamic_shapes=free, strict=False), "net.pt2")
    torch.export.save(torch.export.export(net, (example,), strict=False), "fixed.pt2")
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, "w.pth")
    return tmp_path


def to_onnx() -> None:
    with quietly():
        onnx.save(export(Net().eval(), torch.from_numpy(images(3))), "net.onnx")


def run(*arguments: str, code: int = 0) -> None:
    assert main(list(arguments)) == code


def layers(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    run("stats", *arguments, "--inputs", "x.npz", "--json")
    return json.loads(capsys.readouterr().out)["statistics"]["layers"]


def assert_alike(one: list[dict[str, Any]], two: list[dict[str, Any]]) -> None:
    assert len(one) == len(two) == 2
    for a, b in zip(one, two, strict=True):
        for key in a.keys() - {"node"}:
            assert b[key] == (None if a[key] is None else pytest.approx(a[key], rel=1e-4)), key


def test_drift_is_that_of_the_onnx_file(capsys: pytest.CaptureFixture[str]):
    to_onnx()
    expected = layers(capsys, "drift", "net.onnx")
    assert expected[0]["output_change"] > 0.1 and expected[0]["flips"] is not None
    weights = ("--weights", "w.pth")
    for model in (("net.pt2",), (NET, *weights), (NET, *weights, "--shape", "image:41,3,6,5"), (NET,)):
        found = layers(capsys, "drift", *model)
        assert [each["node"] for each in found] == ["stem.1", "bn"]
        if "--shape" in model:  # one batch of 41 rows: no noise can be told
            assert found[0]["noise"] == "nan"
            assert found[0]["drift"] == pytest.approx(expected[0]["drift"], rel=1e-4)
        else:
            assert_alike(expected, found)


def test_refreshed_statistics_are_those_of_the_onnx_file(capsys: pytest.CaptureFixture[str]):
    to_onnx()
    expected = layers(capsys, "refresh", "net.onnx", "-o", "fresh.onnx")
    assert_alike(expected, layers(capsys, "refresh", "net.pt2"))  # net.refreshed.pt2
    assert_alike(expected, layers(capsys, "refresh", NET, "--weights", "w.pth", "-o", "fresh.pth"))
    exact = statistics(onnx.load("fresh.onnx"))
    held = torch.load("fresh.pth", weights_only=True)
    program = torch.export.load("net.refreshed.pt2")
    reference = Net()
    train.refresh(reference, [torch.from_numpy(images())])
    for name, (mean, variance) in zip(("stem.1", "bn"), exact, strict=True):
        for state in (held, program.state_dict, reference.state_dict()):
            np.testing.assert_allclose(state[f"{name}.running_mean"], mean, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(state[f"{name}.running_var"], variance, rtol=1e-4)
    # what is written does compute with them, and is read again
    example = torch.from_numpy(images())
    reference.eval()
    with torch.no_grad():
        torch.testing.assert_close(program.module()(example), reference(example), rtol=1e-4, atol=1e-4)
    for model in (("net.refreshed.pt2",), (NET, "--weights", "fresh.pth")):
        run("stats", "drift", *model, "--inputs", "x.npz", "--max-drift", "0.001")
    run("stats", "drift", "net.pt2", "--inputs", "x.npz", "--max-drift", "0.001", code=1)


def test_in_place_and_formats(capsys: pytest.CaptureFixture[str]):
    before = Path("net.pt2").read_bytes()
    run("stats", "refresh", "net.pt2", "--inputs", "x.npz", "--in-place")
    assert Path("net.pt2").read_bytes() != before
    assert "REFRESHED: 2 BatchNormalizations on 41 rows in" in capsys.readouterr().out
    run("stats", "refresh", NET, "--inputs", "x.npz", "-o", "made.pt2", "--shape", "image:1,3,6,5")
    assert torch.export.load("made.pt2").module()(image=torch.zeros(1, 3, 6, 5)).shape == (1, 5)
    run("stats", "drift", "made.pt2", "--inputs", "x.npz", "--max-drift", "0.01")  # 41 batches of one row


def test_safetensors():
    pytest.importorskip("safetensors", reason="its format is an extra")
    run("stats", "refresh", NET, "--inputs", "x.npz", "-o", "fresh.safetensors")
    run("stats", "drift", NET, "--weights", "fresh.safetensors", "--inputs", "x.npz", "--max-drift", "0.01")


def test_a_fixed_batch_divides_the_rows(capsys: pytest.CaptureFixture[str]):
    run("stats", "drift", "fixed.pt2", "--inputs", "x.npz", code=2)
    assert "has 41 on axis 0; it must be 3" in capsys.readouterr().err
    np.savez("x.npz", image=images(42))
    expected, found = layers(capsys, "drift", "net.pt2"), layers(capsys, "drift", "fixed.pt2")
    assert [each["drift"] for each in found] == pytest.approx([each["drift"] for each in expected], rel=1e-5)


@pytest.mark.parametrize("form", ["factory", "archive", "decomposed"])
def test_layers_that_are_called_twice_or_keep_nothing(form: str, capsys: pytest.CaptureFixture[str]):
    random = np.random.default_rng(0)
    feeds = {"x": random.normal(size=(24, 4)).astype("f4") * 3 + 1, "scale": random.uniform(1, 2, (1, 4)).astype("f4")}
    saved("x.npz", feeds)
    model = ["net2.pt2"]
    example = (torch.zeros(24, 4),)
    program = torch.export.export(Shared().eval(), example, {"scale": torch.ones(1, 4)}, strict=False)
    if form == "factory":
        model = [SHARED, "--shape", "x:24,4", "--shape", "scale:1,4"]
    else:
        torch.export.save(program if form == "archive" else program.run_decompositions(), "net2.pt2")
    capsys.readouterr()
    run("stats", "drift", *model, "--inputs", "x.npz", "--json")
    told = json.loads(capsys.readouterr().out)["statistics"]
    names = ["twice"] if form == "factory" else ["twice", told["layers"][1]["node"]]
    assert [each["node"] for each in told["layers"]] == names
    assert told["layers"][0]["count"] == 48  # both calls
    if form != "decomposed":  # torch decomposes what keeps no statistics
        assert any("keeps no statistics" in each["why"] for each in told["left"])
    run("stats", "refresh", *model, "--inputs", "x.npz", "-o", "fresh.pt2")
    fresh = torch.export.load("fresh.pt2").state_dict
    assert not torch.equal(fresh["twice.running_mean"], torch.zeros(4))
    assert torch.equal(fresh["mu"], torch.zeros(4)) == (form == "factory")


def test_half_precision(capsys: pytest.CaptureFixture[str]):
    net = Net().eval().bfloat16()
    program = torch.export.export(net, (torch.zeros(41, 3, 6, 5, dtype=torch.bfloat16),), strict=False)
    torch.export.save(program, "half.pt2")
    found = layers(capsys, "refresh", "half.pt2")
    assert len(found) == 2
    fresh = torch.export.load("half.refreshed.pt2").state_dict["bn.running_var"]
    assert fresh.dtype == torch.bfloat16


def test_the_gate_before_a_fold(capsys: pytest.CaptureFixture[str]):
    bound = ("--inputs", "x.npz", "--max-drift", "0.05")
    run("fold", "net.pt2", *bound, code=1)
    told = capsys.readouterr().out
    assert told.splitlines()[-1].startswith("STALE: the largest drift is ") and "bnfold stats refresh" in told
    assert not Path("net.folded.pt2").exists()
    run("fold", NET, "--shape", "image:1,3,6,5", "-o", "net.onnx", *bound, code=1)
    assert not Path("net.onnx").exists()
    run("stats", "refresh", "net.pt2", "--inputs", "x.npz")
    capsys.readouterr()
    run("fold", "net.refreshed.pt2", *bound)
    assert "note: Statistics fresh: the largest drift is" in capsys.readouterr().out
    assert Path("net.refreshed.folded.pt2").exists()
    run("stats", "drift", "net.refreshed.folded.pt2", "--inputs", "x.npz")
    assert "NOTHING TO MEASURE: net.refreshed.folded.pt2 holds no BatchNormalization" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["stats", "drift", "none.pt2", "--inputs", "x.npz"], "none.pt2 is not a file"),
        (["stats", "drift", "net.pt2", "--inputs", "none.npz"], "none.npz cannot be read"),
        (["stats", "drift", "net.pt2", "--inputs", "x.npz", "--weights", "w.pth"], "--weights goes with a factory"),
        (["stats", "drift", "net.pt2", "--inputs", "x.npz", "--shape", "x:1"], "--shape goes with a factory"),
        (["stats", "drift", "net.pt2", "--inputs", "x.npz", "--custom-ops", "a.so"], "--custom-ops is for ONNX models"),
        (["stats", "drift", NET, "--inputs", "y.npz"], "takes image, and no 'other'"),
        (["stats", "drift", NET, "--inputs", "bad.npz"], "does not run on bad.npz, rows 0 to 3"),
        (
            ["stats", "drift", NET, "--inputs", "nan.npz"],
            "stem.1 is fed a value that is not finite in channel 0 by",
        ),
        (
            ["stats", "refresh", NET, "--inputs", "nan.npz", "-o", "o.pth"],
            "in channel 0 by nan.npz, rows 16 to 31",
        ),
        (["stats", "refresh", NET, "--inputs", "x.npz"], "Say with --output where"),
        (["stats", "refresh", NET, "--inputs", "x.npz", "--in-place"], "Say with --output where"),
        (["stats", "refresh", NET, "--inputs", "x.npz", "-o", "o.onnx"], "is written as .pth or"),
        (["stats", "refresh", NET, "--inputs", "x.npz", "-o", "o.pt2"], "give --shape image:SIZES"),
        (["stats", "refresh", "net.pt2", "--inputs", "x.npz", "-o", "o.pth"], "is written as .pt2"),
        (["stats", "refresh", "net.pt2", "--inputs", "x.npz", "-o", "w.pth"], "w.pth"),
        (["fold", "net.pt2", "--max-drift", "0.05"], "give samples with --inputs"),
        (["fold", "net.pt2", "--keep-statistics"], "--keep-statistics is for ONNX models"),
        (["stats", "drift", "x.onnx", "--inputs", "x.npz", "--weights", "w.pth"], "--weights goes with package.module"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str], sentence: str, folder: Path, capsys: pytest.CaptureFixture[str]
):
    np.savez("y.npz", other=images(4))
    np.savez("bad.npz", image=images(4)[:, :2])
    poisoned = images(40)
    poisoned[17, 1] = np.inf
    np.savez("nan.npz", image=poisoned)
    before = sorted(path.name for path in folder.iterdir())
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert told.err.startswith("Error: ") and sentence in told.err
    assert len(told.err.strip().splitlines()) == 1 and "bug" not in told.err
    assert sorted(path.name for path in folder.iterdir()) == before
