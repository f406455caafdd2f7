"""The receipt in a written model: what it says, when it still holds, and when it says nothing."""

import hashlib
import json
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

import bnfold
from bnfold import receipt
from bnfold.cli.commands import bnfold as command
from tests.graphs import Builder


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(command, [str(a) for a in arguments], standalone_mode=False)
    assert result.exception is None, result.output
    assert result.return_value == code, result.output
    return result.output


def made(folder: Path, *options: str, suffix: str = ".onnx") -> tuple[Path, Path]:
    """A network and its fold, written by the command."""
    b = Builder()
    y = b.norm(b.op("Conv", b.input("x", 2, 3, 8, 9), b.weight(6, 3, 3, 3)), 6)
    source, out = folder / f"net{suffix}", folder / f"out{suffix}"
    store(b.model(y), source)
    run(source, "-o", out, "-q", *options)
    return source, out


def store(model: onnx.ModelProto, path: Path) -> None:
    from bnfold.files import save

    save(model, path)


def held(path: Path) -> receipt.Receipt | None:
    from bnfold.files import load

    return receipt.read(path, load(path).model)


@pytest.mark.parametrize("suffix", [".onnx", ".json", ".textproto"])
def test_it_says_what_was_found_and_holds_as_long_as_the_file_does(tmp_path: Path, suffix: str) -> None:
    source, out = made(tmp_path, suffix=suffix)
    found = held(out)
    assert found is not None and found.intact
    assert found.source_sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert (found.folded, found.sources, found.unfolded, found.verdict) == (1, 1, 0, "EQUIVALENT")
    assert found.figures["certificate"] is True and found.figures["same_function"]["exact_share"] < 1e-9
    assert "EQUIVALENT: " in run("check", out)
    assert "made from the source given" in run("check", out, "--source", source)


def test_the_checked_bytes_come_first(tmp_path: Path) -> None:
    _, out = made(tmp_path)
    _, bare = made(tmp_path, "--no-receipt", "--force")
    assert held(bare) is None
    body = bare.read_bytes()
    _, out = made(tmp_path, "--force")
    assert out.read_bytes().startswith(body)
    found = held(out)
    assert found is not None and found.sha256 == hashlib.sha256(body).hexdigest()
    onnx.checker.check_model(str(out))


def test_a_changed_file_or_another_source_is_inconclusive(tmp_path: Path) -> None:
    source, out = made(tmp_path)
    assert "another source" in run("check", out, "--source", out, code=3)
    model = onnx.load(out)
    model.graph.initializer[0].raw_data = bytes(len(model.graph.initializer[0].raw_data))
    onnx.save(model, out)
    told = run("check", out, "--source", source, code=3)
    assert "INCONCLUSIVE: the file was changed" in told
    assert "no receipt" in run("check", source, code=3)


def test_an_unchecked_model_says_so(tmp_path: Path) -> None:
    _, out = made(tmp_path, "--no-check")
    assert "not checked" in run("check", out, code=3)
    found = held(out)
    assert found is not None and found.verdict == receipt.NOT_CHECKED and found.figures == {}
    assert (found.sha256, found.intact) == ("", None)


def test_a_fold_of_a_folded_model_carries_no_receipt_of_its_source(tmp_path: Path) -> None:
    b = Builder()
    y = b.norm(b.op("Conv", b.input("x", 2, 3, 8, 9), b.weight(6, 3, 3, 3)), 6)
    model = b.model(b.norm(b.op("Conv", y, b.weight(6, 6, 1, 1)), 6))
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    store(model, tmp_path / "net.onnx")
    run(tmp_path / "net.onnx", "-o", first, "-q", "--only", "n1")
    run(first, "-o", second, "-q")
    found = held(second)
    assert found is not None and found.intact
    assert found.source_sha256 == hashlib.sha256(first.read_bytes()).hexdigest()
    keys = [p.key for p in onnx.load(second).metadata_props]
    assert len(keys) == len(set(keys))


def test_json_and_a_receipt_that_is_damaged(tmp_path: Path) -> None:
    source, out = made(tmp_path)
    told = json.loads(run("check", out, "--json", "--source", source))
    assert told["check"]["receipt"]["intact"] and told["check"]["verdict"] == "EQUIVALENT"
    model = onnx.load(out)
    for p in model.metadata_props:
        if p.key == "bnfold.folded":
            p.value = "many"
    onnx.save(model, out)
    assert held(out) is None
    assert run("check", out, code=3)


def test_the_pair_is_compared_whatever_the_receipt_says(tmp_path: Path) -> None:
    source, out = made(tmp_path)
    assert "made from this original" in run("check", source, out)
    assert "another file than this original" in run("check", out, out)


def test_the_library_writes_none(tmp_path: Path) -> None:
    source, _ = made(tmp_path)
    bnfold.fold(source).save(tmp_path / "library.onnx")
    assert held(tmp_path / "library.onnx") is None
