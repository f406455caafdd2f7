"""The command line on PyTorch models: archives, factories with weights, and what is said when they do not fit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from bnfold.cli import main  # noqa: E402
from bnfold.errors import UnreadableModel  # noqa: E402
from bnfold.pytorch.state import load_weights, read_state  # noqa: E402
from bnfold.pytorch.tensors import bits  # noqa: E402

from .nets import rough  # noqa: E402
from .test_module import Block, image  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(Block(4), Block(4)), nn.Conv2d(4, 3, 1)

    def forward(self, x: Any) -> Any:
        return self.head(self.body(x))


FACTORY = f"{__name__}:Net"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    state = {f"module.{name}": value for name, value in rough(Net()).state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "w.pth")
    return tmp_path / "w.pth"


def bnfold(capsys: Any, *arguments: str, code: int = 0) -> str:
    found = main(list(arguments))
    out = capsys.readouterr()
    assert found == code, out
    assert "bug in bnfold" not in out.err
    return out.out + out.err


def test_a_factory_with_weights_to_an_archive_and_on_to_onnx(weights: Path, tmp_path: Path, capsys: Any):
    shape = ("--shape", "x:2,4,7,6")
    said = bnfold(capsys, FACTORY, "--weights", str(weights), *shape, "-o", str(tmp_path / "net.pt2"))
    assert "EQUIVALENT: 4 of 4 sources folded" in said or "MORE_ACCURATE: 4 of 4 sources folded" in said
    program = torch.export.load(tmp_path / "net.pt2")
    net = Net().eval()
    load_weights(net, weights)
    assert torch.allclose(program.module()(x=image()), net(image()), atol=1e-3)
    said = bnfold(capsys, str(tmp_path / "net.pt2"), "-o", str(tmp_path / "net.onnx"))
    assert "under ONNX Runtime" in said
    assert (tmp_path / "net.onnx").is_file()


def test_an_archive(weights: Path, tmp_path: Path, capsys: Any):
    net = Net().eval()
    load_weights(net, weights)
    torch.export.save(torch.export.export(net, (image(),), strict=False), tmp_path / "net.pt2")
    document = json.loads(bnfold(capsys, str(tmp_path / "net.pt2"), "--json"))
    assert document["verdict"]["exit_code"] == 0
    assert (tmp_path / "net.folded.pt2").is_file()


def test_what_does_not_fit(weights: Path, tmp_path: Path, capsys: Any):
    out = ("-o", str(tmp_path / "net.pt2"))
    assert "give --shape x:SIZES" in bnfold(capsys, FACTORY, *out, code=2)
    assert "give --shape x:SIZES" in bnfold(capsys, FACTORY, "--shape", "y:1", *out, code=2)
    assert "cannot be imported" in bnfold(capsys, "no.such:thing", *out, code=2)
    assert "has no Nothing" in bnfold(capsys, f"{__name__}:Nothing", *out, code=2)
    assert "Say with --output" in bnfold(capsys, FACTORY, code=2)
    assert "give samples with --inputs" in bnfold(capsys, FACTORY, *out, "--max-drift", "1", code=2)
    for option in (["--aggressive"], ["--rescue"], ["--keep-statistics"], ["--threads", "2"]):
        assert f"{option[0]} is for ONNX models" in bnfold(capsys, FACTORY, *out, *option, code=2)
    assert "--provider cpu or --provider cuda" in bnfold(capsys, FACTORY, *out, "--provider", "openvino", code=2)
    if not torch.cuda.is_available():
        assert "finds no CUDA device" in bnfold(capsys, FACTORY, *out, "--provider", "cuda", code=2)
    assert "not a file" in bnfold(capsys, str(tmp_path / "none.pt2"), *out, code=2)
    (tmp_path / "broken.pt2").write_bytes(b"PK\x03\x04nothing")
    assert "cannot be read by torch.export.load" in bnfold(capsys, str(tmp_path / "broken.pt2"), *out, code=2)
    said = bnfold(capsys, str(weights), code=2)
    assert "a PyTorch checkpoint: weights without a graph" in said
    assert "bnfold package.module:factory --weights FILE" in said
    said = bnfold(capsys, "check", str(tmp_path / "broken.pt2"), str(tmp_path / "broken.pt2"), code=2)
    assert "Error" in said
    assert not (tmp_path / "net.pt2").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("module.head.bias"), "it lacks head.bias."),
        (lambda s: s.update({"module.tail": torch.ones(1)}), "it also has tail."),
        (lambda s: s.update({"module.head.bias": torch.ones(5)}), "has the shape [5] there and [3] in the module"),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_weights_of_another_module(change: Any, says: str, weights: Path, capsys: Any):
    held = read_state(weights)
    change(held["state_dict"])
    torch.save(held, weights)
    arguments = (FACTORY, "--weights", str(weights), "--shape", "x:2,4,7,6", "--dry-run")
    assert says in bnfold(capsys, *arguments, code=2)


def test_a_pickled_module_is_not_unpickled(tmp_path: Path, capsys: Any):
    torch.save(Net(), tmp_path / "net.pth")
    arguments = (FACTORY, "--weights", str(tmp_path / "net.pth"), "--shape", "x:2,4,7,6", "--dry-run")
    assert "which is not unpickled: save model.state_dict()" in bnfold(capsys, *arguments, code=2)


def test_other_archives_are_no_weights(tmp_path: Path, capsys: Any):
    net = rough(Net())
    torch.jit.save(torch.jit.trace(net, image()), tmp_path / "script.pt")
    torch.export.save(torch.export.export(net, (image(),), strict=False), tmp_path / "net.pt2")
    (tmp_path / "text.pth").write_text("nothing")
    shape = ("--shape", "x:2,4,7,6", "--dry-run")
    for name, says in (
        ("script.pt", "is a TorchScript archive, not a state dict: save model.state_dict()"),
        ("net.pt2", "is a torch.export archive, not a state dict"),
        ("text.pth", "which is not unpickled"),
        ("none.pth", "is not a file"),
    ):
        assert says in bnfold(capsys, FACTORY, "--weights", str(tmp_path / name), *shape, code=2)
    said = bnfold(capsys, "check", str(tmp_path / "net.pt2"), str(tmp_path / "net.pt2"), code=2)
    assert "a torch.export archive: `bnfold fold` and `bnfold explain` take it" in said


def test_explain(weights: Path, tmp_path: Path, capsys: Any):
    arguments = ("explain", FACTORY, "--weights", str(weights), "--shape", "x:2,4,7,6")
    said = bnfold(capsys, *arguments)
    assert "EXPLAINED: 4 of 4 sources would fold; nothing was written." in said
    assert "body.0.bn1" in said
    net = rough(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)))
    torch.export.save(torch.export.export(net, (image(),), strict=False), tmp_path / "net.pt2")
    document = json.loads(bnfold(capsys, "explain", str(tmp_path / "net.pt2"), "--json"))
    assert [kept["reason"] for kept in document["kept"]] == ["PADDED"] and document["result"] is None
    assert "--weights and --shape go with" in bnfold(capsys, "explain", "net.onnx", "--shape", "x:1", code=2)
    assert "--weights goes with" in bnfold(capsys, "explain", str(tmp_path / "net.pt2"), "--weights", "w", code=2)
    assert "--shape goes with" in bnfold(capsys, "explain", str(tmp_path / "net.pt2"), "--shape", "x:1", code=2)


class Tokens(nn.Module):
    """Integers and a float: what no shape alone can say."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm, self.head = nn.Embedding(9, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, ids: Any, *, weight: Any) -> Any:
        return self.head((self.norm(self.table(ids).transpose(1, 2)).transpose(1, 2) * weight).mean(1))


def test_inputs_of_ones_own(tmp_path: Path, capsys: Any):
    factory = f"{__name__}:Tokens"
    np.savez(tmp_path / "a.npz", ids=np.array([[0, 8, 3]]), weight=np.float64(2.0))
    np.savez(tmp_path / "b.npz", ids=np.array([[5, 5, 1]]), weight=np.float64(-1.0))
    np.savez(tmp_path / "c.npz", ids=np.array([[5, 5, 1]]))
    inputs = ("--inputs", str(tmp_path / "a.npz"), "--inputs", str(tmp_path / "b.npz"))
    out = ("-o", str(tmp_path / "net.pt2"))
    said = bnfold(capsys, factory, *inputs, *out, "--range", "ids:0,8", "--samples", "2")
    assert "4 of 4 samples counted (given, normal, large)" in said
    said = bnfold(capsys, str(tmp_path / "net.pt2"), *inputs, "--dry-run", "--samples", "1")
    assert "4 of 4 samples counted" in said
    refused = bnfold(capsys, factory, "--inputs", str(tmp_path / "c.npz"), *out, "--force", code=2)
    assert "give an array 'weight' in --inputs" in refused
    assert "no input 'x' to give a range" in bnfold(
        capsys, factory, *inputs, *out, "--force", "--range", "x:0,1", code=2
    )
    (tmp_path / "d.npz").write_bytes(b"nothing")
    assert "cannot be read as an .npz" in bnfold(
        capsys, factory, "--inputs", str(tmp_path / "d.npz"), "--dry-run", code=2
    )


def test_generated_values_lie_in_their_range(tmp_path: Path, capsys: Any):
    """A module that is another thing below 0: with the range it is never there."""
    arguments = (f"{__name__}:Roots", "--shape", "x:2,4,7,6", "--dry-run")
    assert "INCONCLUSIVE" in bnfold(capsys, *arguments, code=3)
    assert "EQUIVALENT" in bnfold(capsys, *arguments, "--range", "x:1,2")


class Roots(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Any) -> Any:
        return self.norm(self.conv((x - 1).min().sqrt() + x))


def test_safetensors(weights: Path, tmp_path: Path, capsys: Any):
    state = read_state(weights)["state_dict"]
    path = tmp_path / "w.safetensors"
    path.write_bytes(written(state))
    found = read_state(path)
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in state.items())
    arguments = (FACTORY, "--weights", str(path), "--shape", "x:2,4,7,6", "--dry-run")
    assert "4 of 4 sources folded" in bnfold(capsys, *arguments)


def written(state: dict[str, Any]) -> bytes:
    """A .safetensors file, as its specification has it."""
    names = {torch.float32: "F32", torch.int64: "I64", torch.float16: "F16", torch.bfloat16: "BF16", torch.bool: "BOOL"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, value in state.items():
        raw = bits(value)
        offsets = [len(body), len(body) + len(raw)]
        header[name] = {"dtype": names[value.dtype], "shape": list(value.shape), "data_offsets": offsets}
        body += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


def test_safetensors_as_others_write_them(tmp_path: Path):
    other = pytest.importorskip("safetensors.torch")
    state = {
        "a": torch.randn(3, 2).to(torch.bfloat16),
        "b": torch.arange(4),
        "c": torch.zeros(0, 3),
        "d": torch.ones(()),
    }
    other.save_file(state, tmp_path / "w.safetensors")
    found = read_state(tmp_path / "w.safetensors")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in state.items())


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "header is longer than the file"),
        (b"\xff" * 20, "header is longer than the file"),
        (b"\x02\0\0\0\0\0\0\0[]", "no table of tensors"),
        (b"\x02\0\0\0\0\0\0\0{{", "cannot be read as safetensors"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, "does not lie in the file as its shape says"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}, "does not lie in the file as its shape says"),
        ({"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}, "no list of sizes"),
        ({"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}, "F8_E4M3, which is not known"),
        ({"dtype": "F32"}, "cannot be read as safetensors"),
        (7, "cannot be read as safetensors"),
    ],
)
def test_damaged_safetensors(data: Any, says: str, tmp_path: Path):
    if not isinstance(data, bytes):
        text = json.dumps({"a": data}).encode()
        data = len(text).to_bytes(8, "little") + text + bytes(4)
    (tmp_path / "w.safetensors").write_bytes(data)
    with pytest.raises(UnreadableModel, match=says):
        read_state(tmp_path / "w.safetensors")
