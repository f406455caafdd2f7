"""The command line on PyTorch models: archives, factories with weights, and what is said when they do not fit."""

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from bnfold.cli import main  # noqa: E402
from bnfold.pytorch.state import load_weights, read_state  # noqa: E402

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
    assert "is for ONNX models" in bnfold(capsys, FACTORY, *out, "--aggressive", code=2)
    assert "not a file" in bnfold(capsys, str(tmp_path / "none.pt2"), *out, code=2)
    (tmp_path / "broken.pt2").write_bytes(b"PK\x03\x04nothing")
    assert "cannot be read by torch.export.load" in bnfold(capsys, str(tmp_path / "broken.pt2"), *out, code=2)
    assert "a PyTorch checkpoint" in bnfold(capsys, str(weights), code=2)
    assert not (tmp_path / "net.pt2").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("module.head.bias"), "lacks 1 names (head.bias)"),
        (lambda s: s.update({"module.tail": torch.ones(1)}), "also has 1 names (tail)"),
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
