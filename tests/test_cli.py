"""The command line as a user meets it: a real process a run, its exit code, its streams, the directory after it."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnfold.cli.commands import bnfold as group

RNG = np.random.default_rng(0)


def network(*, kept: bool = False, bad: bool = False, width: int = 4) -> onnx.ModelProto:
    """Conv -> BN -> Relu; `kept`: and a BN behind a Sigmoid, which stays; `bad`: the BN's parameters are too short."""
    random = np.random.default_rng(0)  # the same network whichever tests ran before

    def norm(name: str, read: str, write: str, channels: int) -> onnx.NodeProto:
        arrays = {
            "s": random.uniform(0.5, 2, channels),
            "b": random.standard_normal(channels),
            "m": random.standard_normal(channels),
            "v": random.uniform(0.5, 2, channels),
        }
        for key, array in arrays.items():
            initializers.append(numpy_helper.from_array(array.astype(np.float32), name + key))
        return helper.make_node("BatchNormalization", [read, *(name + key for key in arrays)], [write], name)

    initializers = [numpy_helper.from_array(random.standard_normal((width, 3, 3, 3)).astype(np.float32), "W")]
    nodes = [helper.make_node("Conv", ["x", "W"], ["h"], "conv"), norm("bn", "h", "n", width - 1 if bad else width)]
    if kept:
        nodes += [helper.make_node("Sigmoid", ["n"], ["g"], "sigmoid"), norm("stays", "g", "y", width)]
    else:
        nodes += [helper.make_node("Relu", ["n"], ["y"], "relu")]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 9])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width, 6, 7])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model


def plain() -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"], "relu")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model


def bnfold(folder: Path, *arguments: str | Path, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program in `folder`, expect `code`, and no traceback whatever happens."""
    run = subprocess.run(
        [sys.executable, "-m", "bnfold", *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **environment},
        check=False,
    )
    assert run.returncode == code, (run.returncode, run.stdout, run.stderr)
    assert "Traceback" not in run.stderr + run.stdout
    return run


def listing(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def last(run: subprocess.CompletedProcess[str]) -> str:
    return run.stdout.splitlines()[-1]


def batch_norms(path: Path) -> int:
    return sum(node.op_type == "BatchNormalization" for node in onnx.load(path, load_external_data=False).graph.node)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with net.onnx (folds), kept.onnx (one BN stays) and plain.onnx (no BN)."""
    for name, model in (("net", network()), ("kept", network(kept=True)), ("plain", plain())):
        (tmp_path / f"{name}.onnx").write_bytes(model.SerializeToString())
    return tmp_path


# --- what `bnfold MODEL` does


def test_folds_checks_and_writes_beside_the_model(folder: Path):
    before = listing(folder)
    run = bnfold(folder, "net.onnx")
    assert last(run) == "EQUIVALENT: 1 of 1 source folded; wrote net.folded.onnx."
    assert "Conv <- BatchNormalization  x 1" in run.stdout
    assert run.stderr == ""
    after = listing(folder)
    assert set(after) == {*before, "net.folded.onnx"}
    assert {name: after[name] for name in before} == before
    assert batch_norms(folder / "net.folded.onnx") == 0
    onnx.checker.check_model(folder / "net.folded.onnx", full_check=True)


def test_the_default_command_and_options_in_any_order(folder: Path):
    (folder / "check").write_bytes((folder / "net.onnx").read_bytes())
    results: list[str] = []
    for number, arguments in enumerate(
        (
            ("net.onnx", "--no-check", "-o", "0.onnx"),
            ("fold", "net.onnx", "--no-check", "-o", "1.onnx"),
            ("--no-check", "-o", "2.onnx", "net.onnx"),
            ("-q", "--no-check", "--output=3.onnx", "net.onnx"),
            ("--no-check", "-o", "4.onnx", "--", "net.onnx"),
            ("./check", "--no-check", "-o", "5.onnx"),
        )
    ):
        bnfold(folder, *arguments)
        results.append(listing(folder)[f"{number}.onnx"])
    assert len(set(results)) == 1


def test_the_same_input_gives_the_same_bytes(folder: Path):
    outputs = {bnfold(folder, "kept.onnx", "--json", "--force").stdout for _ in range(2)}
    digests = {json.loads(output)["result"]["sha256"] for output in outputs}
    assert len(outputs) == len(digests) == 1
    texts = {bnfold(folder, "kept.onnx", "-v", "--force", PYTHONHASHSEED=seed).stdout for seed in ("1", "2")}
    assert len(texts) == 1
    assert listing(folder)["kept.folded.onnx"] in digests


def test_nothing_to_fold_is_copied(folder: Path):
    run = bnfold(folder, "plain.onnx", "--fail-on-unfolded")
    assert last(run) == (
        "NOTHING TO FOLD: the model holds no BatchNormalization; wrote plain.folded.onnx, an identical copy."
    )
    assert (folder / "plain.folded.onnx").read_bytes() == (folder / "plain.onnx").read_bytes()
    data = json.loads(bnfold(folder, "plain.onnx", "--force", "--json").stdout)
    assert data["result"]["identical"]
    assert data["check"] is None
    before = listing(folder)
    assert "nothing was written" in last(bnfold(folder, "plain.onnx", "--in-place"))
    assert "nothing was written" in last(bnfold(folder, "plain.onnx", "--dry-run"))
    assert listing(folder) == before


def test_fail_on_unfolded_writes_and_exits_1(folder: Path):
    run = bnfold(folder, "kept.onnx", "--fail-on-unfolded", code=1)
    assert last(run) == "UNFOLDED: 1 normalization stays (--fail-on-unfolded); EQUIVALENT; wrote kept.folded.onnx."
    assert batch_norms(folder / "kept.folded.onnx") == 1
    assert "hint: " in run.stdout
    run = bnfold(folder, "kept.onnx", "--fail-on-unfolded", "--force", "--no-check", code=1)
    assert "not checked" in last(run)
    bnfold(folder, "net.onnx", "--fail-on-unfolded")


def test_no_check_says_so(folder: Path):
    assert last(bnfold(folder, "net.onnx", "--no-check")) == "NOT CHECKED: 1 of 1 source folded; wrote net.folded.onnx."
    assert json.loads(bnfold(folder, "net.onnx", "--no-check", "--json", "--force").stdout)["check"] is None


def test_dry_run_checks_and_writes_nothing(folder: Path):
    before = listing(folder)
    assert last(bnfold(folder, "net.onnx", "--dry-run")) == "EQUIVALENT: 1 of 1 source folded; nothing was written."
    assert "nothing was written" in last(bnfold(folder, "net.onnx", "--dry-run", "--no-check"))
    assert listing(folder) == before


def test_quiet_prints_one_line_and_verbose_every_path(folder: Path):
    run = bnfold(folder, "net.onnx", "-q")
    assert run.stdout == "EQUIVALENT: 1 of 1 source folded; wrote net.folded.onnx.\n"
    assert "up into conv (Conv)" in bnfold(folder, "net.onnx", "-v", "--force").stdout


def test_skip_and_only(folder: Path):
    for option, pattern, left in (
        ("--skip", "b*", 2),
        ("--only", "bn", 1),
        ("--only", "st?ys", 2),
        ("--skip", "stays", 1),
    ):
        bnfold(folder, "kept.onnx", option, pattern, "--force", "--no-check")
        assert batch_norms(folder / "kept.folded.onnx") == left
    (folder / "kept.folded.onnx").unlink()
    for command in ((), ("explain",)):
        run = bnfold(folder, *command, "kept.onnx", "--skip", "mistyped", code=2)
        assert "mistyped" in run.stderr
    assert not (folder / "kept.folded.onnx").exists()


def test_the_check_takes_inputs_shapes_seed_samples_and_threads(folder: Path):
    np.savez(folder / "one.npz", x=RNG.standard_normal((2, 3, 8, 9)).astype(np.float32))
    arguments = ("--shape", "x:5,3,8,9", "--seed", "7", "--samples", "2", "--threads", "1")
    data = json.loads(bnfold(folder, "net.onnx", "--json", "--dry-run", *arguments).stdout)["check"]
    assert data["seed"] == 7
    assert {tuple(sample["shapes"]["x"]) for sample in data["samples"]} == {(5, 3, 8, 9)}
    given = ("--inputs", "one.npz", "--inputs", "one.npz")
    data = json.loads(bnfold(folder, "net.onnx", "--json", "--dry-run", *given).stdout)["check"]
    assert [tuple(sample["shapes"]["x"]) for sample in data["samples"]] == [(2, 3, 8, 9)] * 2
    before = listing(folder)
    for bad in ("none.npz", "net.onnx"):
        assert bad in bnfold(folder, "net.onnx", "--inputs", bad, code=2).stderr
    assert listing(folder) == before


def test_growth_is_bounded_in_bytes_and_shares(folder: Path):
    # the Conv has no bias: folding adds one
    for size, left in (("0", 1), ("1", 1), ("0%", 1), ("1MiB", 0), ("50%", 0), ("4096B", 0), ("1.5 kb", 0)):
        bnfold(folder, "net.onnx", "--max-growth", size, "--force", "--no-check")
        assert batch_norms(folder / "net.folded.onnx") == left, size
    for size in ("much", "-1", "10 %%", "1e3", ""):
        assert "is no size" in bnfold(folder, "net.onnx", f"--max-growth={size}", code=2).stderr


def test_inputs_that_are_initializers_are_left_frozen_or_kept(folder: Path):
    model = network()
    weight = model.graph.initializer[0]
    model.graph.input.append(helper.make_tensor_value_info(weight.name, TensorProto.FLOAT, list(weight.dims)))
    (folder / "few.onnx").write_bytes(model.SerializeToString())
    for each in model.graph.initializer[1:]:
        model.graph.input.append(helper.make_tensor_value_info(each.name, TensorProto.FLOAT, list(each.dims)))
    (folder / "all.onnx").write_bytes(model.SerializeToString())
    for name, options, left in (
        ("few", (), 1),
        ("few", ("--freeze-inputs",), 0),
        ("all", (), 0),
        ("all", ("--keep-inputs",), 1),
    ):
        bnfold(folder, f"{name}.onnx", *options, "--no-check", "--force")
        assert batch_norms(folder / f"{name}.folded.onnx") == left, (name, options)


# --- OUT


def test_out_rules(folder: Path):
    (folder / "out").mkdir()
    assert last(bnfold(folder, "net.onnx", "--no-check", "-o", "out")).endswith("wrote out/net.folded.onnx.")
    assert (folder / "out" / "net.folded.onnx").exists()
    (folder / "taken.onnx").write_bytes(b"mine")
    (folder / "link.onnx").symlink_to("net.onnx")
    (folder / "dangling.onnx").symlink_to("nowhere.onnx")
    os.mkfifo(folder / "fifo")
    before = listing(folder)
    for arguments, words in (
        (("-o", "taken.onnx"), "taken.onnx exists; --force overwrites it"),
        (("-o", "dangling.onnx"), "exists; --force"),
        (("-o", "net.onnx"), "is the model itself; use --in-place"),
        (("-o", "net.onnx", "--force"), "is the model itself; use --in-place"),
        (("-o", "link.onnx", "--force"), "is the model itself; use --in-place"),
        (("-o", "none/net.onnx"), "not a directory that exists"),
        (("-o", "taken.onnx/net.onnx"), "not a directory that exists"),
        (("-o", "fifo", "--force"), "neither a file nor a directory"),
        (("-o", "new.onnx", "--in-place"), "--in-place"),
        (("-o", "new.onnx", "--dry-run"), "--dry-run"),
        (("-o", "new.onnxtxt"), "leaves out large weights"),
    ):
        run = bnfold(folder, "net.onnx", *arguments, code=2)
        assert words in run.stderr, (arguments, run.stderr)
        assert run.stdout == ""
    assert listing(folder) == before
    bnfold(folder, "net.onnx", "-o", "taken.onnx", "--force", "--no-check")
    assert batch_norms(folder / "taken.onnx") == 0


def test_out_is_looked_at_before_any_work(folder: Path):
    (folder / "broken.onnx").write_bytes(b"no model")
    (folder / "broken.folded.onnx").write_bytes(b"mine")
    assert "broken.folded.onnx exists" in bnfold(folder, "broken.onnx", code=2).stderr


def test_in_place_keeps_permissions_and_follows_links(folder: Path):
    (folder / "deep").mkdir()
    real = folder / "deep" / "real.onnx"
    real.write_bytes((folder / "net.onnx").read_bytes())
    real.chmod(0o640)
    (folder / "link.onnx").symlink_to("deep/real.onnx")
    run = bnfold(folder, "link.onnx", "--in-place")
    assert last(run).startswith("EQUIVALENT")
    assert (folder / "link.onnx").is_symlink()
    assert batch_norms(real) == 0
    assert real.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in real.parent.iterdir()) == ["real.onnx"]


def test_the_extension_of_out_decides_the_format(folder: Path):
    bnfold(folder, "net.onnx", "-o", "net.json", "--no-check")
    assert len(json.loads((folder / "net.json").read_text())["graph"]["node"]) == 2
    bnfold(folder, "net.json", "-o", "back.textproto", "--no-check")
    assert "op_type" in (folder / "back.textproto").read_text()
    bnfold(folder, "back.textproto", "-o", "back.onnx")
    assert batch_norms(folder / "back.onnx") == 0


def saved_externally(path: Path, model: onnx.ModelProto) -> None:
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)


def test_external_data_goes_beside_out_and_comes_along_with_a_copy(folder: Path):
    source, out = folder / "source", folder / "out"
    source.mkdir()
    out.mkdir()
    model = network()
    model.graph.initializer.append(numpy_helper.from_array(np.ones((9, 9), np.float32), "untouched"))
    saved_externally(source / "ext.onnx", model)
    before = listing(source)
    bnfold(folder, "source/ext.onnx", "-o", "out")
    assert set(listing(out)) == {"ext.folded.onnx", "ext.folded.onnx.data"}
    assert listing(source) == before
    onnx.checker.check_model(out / "ext.folded.onnx")
    (out / "other.onnx.data").write_bytes(b"mine")
    assert "other.onnx.data exists" in bnfold(folder, "source/ext.onnx", "-o", "out/other.onnx", code=2).stderr
    (folder / "copy").mkdir()
    bnfold(folder, "source/ext.onnx", "-o", "copy", "--skip", "*")
    assert (folder / "copy" / "weights.bin").read_bytes() == (source / "weights.bin").read_bytes()
    assert (folder / "copy" / "ext.folded.onnx").read_bytes() == (source / "ext.onnx").read_bytes()
    (source / "evil.onnx.data").write_bytes((source / "weights.bin").read_bytes())
    model = onnx.load(source / "ext.onnx", load_external_data=False)
    for each in model.graph.initializer:
        each.external_data[0].value = "evil.onnx.data"
    (source / "ext2.onnx").write_bytes(model.SerializeToString())
    run = bnfold(folder, "source/ext2.onnx", "-o", "source/evil.onnx", "--force", code=2)
    assert "belongs to the model itself" in run.stderr


# --- bad input

BAD: dict[str, Callable[[Path], object]] = {
    "prose.onnx": lambda path: path.write_text("this is no protobuf"),
    "cut.onnx": lambda path: path.write_bytes(network().SerializeToString()[:400]),
    "empty.onnx": lambda path: path.touch(),
    "folder.onnx": lambda path: path.mkdir(),
    "missing.onnx": lambda path: None,
    "opset.onnx": lambda path: path.write_bytes(changed(lambda m: setattr(m.opset_import[0], "version", 999))),
    "domain.onnx": lambda path: path.write_bytes(changed(lambda m: setattr(m.graph.node[2], "domain", "com.acme"))),
    "cycle.onnx": lambda path: path.write_bytes(changed(lambda m: m.graph.node[0].input.__setitem__(0, "y"))),
    "state.pth": lambda path: path.write_bytes(bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")),
}


def changed(change: Callable[[Any], object]) -> bytes:
    model = network()
    change(model)
    return model.SerializeToString()


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_and_nothing_is_written(name: str, tmp_path: Path):
    BAD[name](tmp_path / name)
    before = listing(tmp_path)
    run = bnfold(tmp_path, name, code=2)
    assert run.stdout == ""
    assert run.stderr.startswith("Error: ")
    assert run.stderr.count("\n") == 1
    assert name in run.stderr
    run = bnfold(tmp_path, "explain", name, "--json", code=2)
    error = json.loads(run.stdout)
    assert error["schema"] == 1
    assert set(error["error"]) == {"kind", "message"}
    assert error["error"]["kind"] in ("unreadable", "malformed", "unsupported")
    assert name in error["error"]["message"]
    assert listing(tmp_path) == before


@pytest.mark.parametrize("command", ["fold", "explain"])
def test_a_malformed_batch_normalization_is_refused_with_a_sentence(command: str, tmp_path: Path):
    (tmp_path / "bad.onnx").write_bytes(network(bad=True).SerializeToString())
    run = bnfold(tmp_path, command, "bad.onnx", code=2)
    assert "bn has 3 channels of parameters for a value with 4 channels." in run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bad.onnx"]


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="permissions are POSIX's")
def test_no_permission_to_read_or_to_write(folder: Path):
    target = folder / "closed"
    target.mkdir()
    shutil.copy(folder / "net.onnx", target / "net.onnx")
    (folder / "net.onnx").chmod(0)
    target.chmod(0o555)
    for parent in folder.parents:
        if parent.stat().st_uid == os.getuid() and not parent.stat().st_mode & 1:
            parent.chmod(parent.stat().st_mode | 0o011)
    folder.chmod(0o777)
    # root may read anything: what is imported already is used as nobody
    program = (
        "import os, sys, bnfold.fold, bnfold.cli.folding, bnfold.report.json\n"
        "from bnfold.cli import main\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "sys.exit(main())"
    )
    for path, words in (
        ("net.onnx", "net.onnx cannot be read: Permission denied"),
        ("closed/net.onnx", "write-protected"),
    ):
        run = subprocess.run(
            [sys.executable, "-c", program, path, "--no-check"], cwd=folder, capture_output=True, text=True, check=False
        )
        assert run.returncode == 2, run.stderr
        assert words in run.stderr
        assert "Traceback" not in run.stderr
    assert sorted(path.name for path in target.iterdir()) == ["net.onnx"]


# --- JSON


def test_the_json_document(folder: Path):
    run = bnfold(folder, "kept.onnx", "--json")
    data = json.loads(run.stdout)
    keys = ["schema", "tool", "source", "result", "counts", "folded", "kept", "notes", "check", "command", "verdict"]
    assert list(data) == keys
    assert data["schema"] == 1
    assert data["tool"]["name"] == "bnfold"
    source = (folder / "kept.onnx").read_bytes()
    assert data["source"] == {
        "path": "kept.onnx",
        "sha256": hashlib.sha256(source).hexdigest(),
        "bytes": len(source),
        "opset": 17,
        "nodes": 4,
    }
    result = (folder / "kept.folded.onnx").read_bytes()
    assert data["result"]["path"] == "kept.folded.onnx"
    assert data["result"]["sha256"] == hashlib.sha256(result).hexdigest()
    assert data["result"]["bytes"] == len(result)
    assert data["result"]["nodes"] == 3
    assert data["counts"] == {"sources": 2, "batch_normalizations": 2, "folded": 1, "kept": 1}
    (folded,) = data["folded"]
    assert folded == {
        "nodes": ["bn"],
        "op": "BatchNormalization",
        "direction": "up",
        "into": [{"node": "conv", "op": "Conv"}],
        "through": [],
        "normalization": True,
    }
    (kept,) = data["kept"]
    assert list(kept) == ["nodes", "op", "reason", "at", "message", "hint", "alternatives", "normalization"]
    assert kept["nodes"] == ["stays"]
    assert all(list(each) == ["direction", "through", "reason", "at"] for each in kept["alternatives"])
    assert kept["alternatives"]
    assert data["check"]["verdict"] == "EQUIVALENT"
    assert data["command"] == "fold"
    sentence = "1 of 2 sources folded; wrote kept.folded.onnx."
    word = {"word": "EQUIVALENT", "sentence": sentence, "exit_code": 0, "fail_on_unfolded": False}
    assert data["verdict"] == word
    explained = json.loads(bnfold(folder, "explain", "kept.onnx", "--json").stdout)
    assert explained["result"] is None
    assert explained["check"] is None
    assert (explained["folded"], explained["kept"]) == (data["folded"], data["kept"])
    dry = json.loads(bnfold(folder, "kept.onnx", "--json", "--dry-run").stdout)
    assert dry["result"] is None


@pytest.mark.parametrize(
    "arguments",
    [("--json",), ("--json", "a", "b"), ("a", "--json", "--nonsense"), ("explain", "--json"), ("check", "--json")],
)
def test_usage_errors_are_json_too(arguments: Sequence[str], tmp_path: Path):
    run = bnfold(tmp_path, *arguments, code=2)
    error = json.loads(run.stdout)
    assert error["error"]["kind"] == "usage"
    assert error["error"]["message"]
    assert run.stderr.startswith("Error: ")


# --- explain and check


def test_explain_names_the_way_and_every_refusal(folder: Path):
    before = listing(folder)
    run = bnfold(folder, "explain", "kept.onnx")
    assert "up into conv (Conv)" in run.stdout
    assert re.search(r"up.*: NONLINEAR at sigmoid", run.stdout)
    assert re.search(r"down.*: GRAPH_BOUNDARY", run.stdout)
    assert "hint: " in run.stdout
    assert last(run) == "EXPLAINED: 1 of 2 sources would fold; nothing was written."
    assert last(bnfold(folder, "explain", "plain.onnx", "-q")).startswith("NOTHING TO FOLD")
    assert listing(folder) == before


def test_check_compares_two_files_of_whatever_make(folder: Path):
    bnfold(folder, "net.onnx", "--no-check")
    run = bnfold(folder, "check", "net.onnx", "net.folded.onnx")
    assert last(run).startswith("EQUIVALENT: ")
    model = onnx.load(folder / "net.folded.onnx")
    weight = next(each for each in model.graph.initializer if len(each.dims) == 4)
    array = numpy_helper.to_array(weight).copy()
    array[0] *= 1.01
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    onnx.save(model, folder / "wrong.onnx")
    before = listing(folder)
    assert last(bnfold(folder, "check", "net.onnx", "wrong.onnx", code=1)).startswith("NOT_EQUIVALENT: ")
    data = json.loads(bnfold(folder, "check", "net.onnx", "wrong.onnx", "--json", code=1).stdout)
    assert data["check"]["verdict"] == "NOT_EQUIVALENT"
    assert (data["source"]["path"], data["result"]["path"]) == ("net.onnx", "wrong.onnx")
    assert len(bnfold(folder, "check", "net.onnx", "net.folded.onnx", "-q").stdout.splitlines()) == 1
    for pair in (("net.onnx", "none.onnx"), ("none.onnx", "net.onnx")):
        assert "none.onnx does not exist" in bnfold(folder, "check", *pair, code=2).stderr
    assert listing(folder) == before


def test_a_result_that_did_not_pass_is_written_only_when_it_is_accepted(folder: Path):
    # onnxruntime has no kernel for an operator of somebody's domain: only the certificate can speak
    model = network()
    model.graph.node[2].op_type = "Unheard"
    model.graph.node[2].domain = "com.acme"
    model.opset_import.append(helper.make_opsetid("com.acme", 1))
    (folder / "odd.onnx").write_bytes(model.SerializeToString())
    before = listing(folder)
    for accept in ((), ("--accept", "degraded")):
        run = bnfold(folder, "odd.onnx", *accept, code=3)
        assert last(run).startswith("INCONCLUSIVE: ")
        assert "; nothing was written: --accept certificate would write it" in last(run)
        assert listing(folder) == before
    assert json.loads(bnfold(folder, "odd.onnx", "--json", code=3).stdout)["result"] is None
    for accept in (("certificate",), ("any",), ("degraded", "certificate")):
        run = bnfold(folder, "odd.onnx", "--force", *(word for each in accept for word in ("--accept", each)), code=3)
        assert last(run).endswith(f"wrote odd.folded.onnx all the same (--accept {accept[-1]}).")
        assert batch_norms(folder / "odd.folded.onnx") == 0
        (folder / "odd.folded.onnx").unlink()
    assert listing(folder) == before


# --- help, colours, signals


def test_every_command_and_option_is_documented():
    for name, command in group.commands.items():
        text = command.get_help(click.Context(command, info_name=name))
        assert command.help
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, (name, parameter.name)
                assert all(option in text for option in parameter.opts), (name, parameter.opts)
    whole = " ".join(group.get_help(click.Context(group, info_name="bnfold")).split())
    for name, command in group.commands.items():
        assert f" {name} " in whole
        assert "..." not in command.get_short_help_str(70), "the summary is cut off"
    for parameter in group.commands["fold"].params:
        if isinstance(parameter, click.Option):
            assert all(option in whole for option in parameter.opts), parameter.opts


def test_the_contract_lists_these_options():
    wanted = """--output --weights --force --in-place --dry-run --no-check --max-drift --keep-statistics --rescue
    --no-receipt --accept --fail-on-unfolded --skip --only --freeze-inputs --keep-inputs --max-growth
    --aggressive --partial --threads --inputs --shape --range --calibrated --seed --samples --provider
    --tf32 --timeout --custom-ops --json --format --report --quiet --verbose --version"""
    found = {option for each in group.commands["fold"].params for option in each.opts if option.startswith("--")}
    assert found == set(wanted.split())
    assert set(group.commands) == {"fold", "explain", "check", "bench", "hook", "doctor", "stats", "unfold"}


def test_help_and_version_and_no_arguments(tmp_path: Path):
    assert bnfold(tmp_path, "--version").stdout.startswith("bnfold ")
    assert bnfold(tmp_path, "-h").stdout == bnfold(tmp_path, "--help").stdout
    assert "Usage" in bnfold(tmp_path, code=2).stderr


def terminal(folder: Path, *arguments: str, **environment: str) -> str:
    """Everything that the program shows on a terminal."""
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "bnfold", *arguments],
        cwd=folder,
        stdout=slave,
        stderr=slave,
        env={**os.environ, "TERM": "xterm", **environment},
    ):
        os.close(slave)
        shown = b""
        try:
            while block := os.read(master, 4096):
                shown += block
        except OSError:  # Linux: the other end is closed
            pass
    os.close(master)
    return shown.decode()


def test_colour_and_progress_only_on_a_terminal(folder: Path):
    environment = {"NO_COLOR": ""}
    shown = terminal(folder, "net.onnx", "--no-check", **environment)
    assert "\x1b[32m" in shown
    assert "folding" in shown
    shown = terminal(folder, "net.onnx", "--no-check", "--force", NO_COLOR="1")
    assert "\x1b[3" not in shown
    assert "folding" not in terminal(folder, "net.onnx", "--no-check", "--force", "-q")
    run = bnfold(folder, "net.onnx", "--no-check", "--force")
    assert "\x1b" not in run.stdout + run.stderr
    assert run.stderr == ""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_leaves_nothing(number: signal.Signals, code: int, folder: Path):
    (folder / "net.onnx").write_bytes(network(width=256).SerializeToString())
    before = listing(folder)
    for moment in ("start", "staged"):
        with subprocess.Popen(
            [sys.executable, "-m", "bnfold", "net.onnx", "--samples", "4000"],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            if moment == "staged":
                while not list(folder.glob(".bnfold-*/net.onnx*")) and not list(folder.glob(".bnfold-*/*.onnx")):
                    assert process.poll() is None
                    time.sleep(0.005)
            else:
                time.sleep(0.7)  # whatever it is doing by now
            process.send_signal(number)
            stdout, stderr = process.communicate(timeout=120)
        if moment == "staged":
            assert process.returncode == code, (stdout, stderr)
            assert "Traceback" not in stderr
        assert listing(folder) == before
        assert not list(folder.glob(".bnfold-*"))


def test_a_closed_pipe_is_silent(folder: Path):
    for arguments in (("net.onnx", "--no-check"), ("explain", "net.onnx", "--json"), ("--help",)):
        read, write = os.pipe()
        os.close(read)
        with subprocess.Popen(
            [sys.executable, "-m", "bnfold", *arguments], cwd=folder, stdout=write, stderr=subprocess.PIPE, text=True
        ) as process:
            os.close(write)
            _, stderr = process.communicate(timeout=120)
        assert stderr == ""
    assert (folder / "net.folded.onnx").exists(), "it was written before anything was printed"


def test_an_internal_error_says_that_it_is_a_bug(folder: Path):
    # a broken installation: report.text lacks what the command needs
    program = (
        "import sys, bnfold.report.text as text\n"
        "del text.fold_table.__globals__['_summary']\n"
        "from bnfold.cli import main\n"
        "sys.exit(main())"
    )
    for debug in ("0", "1"):
        run = subprocess.run(
            [sys.executable, "-c", program, "net.onnx", "--no-check", "--dry-run"],
            cwd=folder,
            capture_output=True,
            text=True,
            env={**os.environ, "BNFOLD_DEBUG": debug},
            check=False,
        )
        assert run.returncode == 2
        assert "This is a bug in bnfold (NameError" in run.stderr
        assert ("Traceback" in run.stderr) == (debug == "1")
