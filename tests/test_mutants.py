"""Damaged and hostile models end in a sentence: mutants of real files, in this library and through the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import bnfold
from bnfold.errors import BnfoldError, MalformedModel
from bnfold.graph import Graph
from tests.graphs import Builder
from tests.mutants import Mutator, corpus, examine, heads, main

pytest.importorskip("resource")
ROOT = Path(__file__).parents[1]


def test_the_same_seed_gives_the_same_mutants_and_they_differ_from_the_files():
    files = corpus()
    first, second = Mutator(files, 3), Mutator(files, 3)
    mutants = [first.draw() for _ in range(50)]
    assert mutants == [second.draw() for _ in range(50)]
    assert len(set(mutants) - set(files.values())) > 40


def test_the_places_of_the_structure_are_found():
    data = onnx.ModelProto(ir_version=8, producer_name="abc").SerializeToString()
    assert heads(data) == [(0, 1), (1, 1), (2, 1), (3, 1), (5, 1)]


def in_a_process(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.mutants", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_a_few_mutants():
    said = in_a_process("--count", "400", "--seed", "11")
    assert said.startswith("400 mutants passed")
    for outcome in ("UnreadableModel", "MalformedModel", "folded"):
        assert outcome in said


@pytest.mark.slow
def test_mutants_for_a_time_budget(slow_budget: float):
    in_a_process("--count", "1000000", "--seconds", str(slow_budget), "--seed", "5")


def test_a_mutant_that_makes_the_library_fail_is_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    import resource

    def broken(*_: object, **__: object) -> None:
        raise KeyError("broken")

    monkeypatch.setattr(bnfold, "fold", broken)
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)  # this process lives on
    monkeypatch.setattr(sys, "argv", ["mutants", "--count", "3", "--keep", str(tmp_path / "kept")])
    assert main() == 1
    assert "3 failed" in capsys.readouterr().out
    assert len(list((tmp_path / "kept").iterdir())) == 1


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, resource.RLIM_INFINITY))
from bnfold.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_mutants_through_the_command_line(tmp_path: Path):
    """Exit codes and sentences, no traceback; ru_maxrss of all children is the memory of the largest."""
    import resource

    mutator = Mutator(corpus(), 5)
    path = tmp_path / "mutant.onnx"
    ways = (["-o", str(tmp_path / "out.onnx"), "--force", "--no-check"], ["--dry-run", "--no-check", "--json"], ["-v"])
    for index in range(500):
        path.write_bytes(mutator.draw())
        way = ways[index % 3] if index % 3 != 2 else ["--in-place", "--no-check", "-v"]
        done = subprocess.run(
            [sys.executable, "-c", LIMITED, "fold", str(path), *way],
            capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
        assert done.returncode in (0, 2), (index, done.stderr)
        assert "Traceback" not in done.stderr and "bug in bnfold" not in done.stdout + done.stderr, (index, done.stderr)
        assert sorted(each.name for each in tmp_path.iterdir() if each.name != "out.onnx") == ["mutant.onnx"]
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 1 << 20


# --- what mutants have found


def chain(**attributes: Any) -> onnx.ModelProto:
    b = Builder()
    y = b.op("Conv", b.input("x", "N", 3, 8, 8), b.weight(6, 3, 3, 3), b.weight(6), **attributes)
    return b.model(b.norm(y, 6))


def test_a_bias_longer_than_the_channels_are_many_is_no_crash():
    model = chain()
    model.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(np.ones(10, "f4"), "w1"))
    result = bnfold.fold(model)
    assert "MALFORMED" in {r for k in result.report.kept for r in (k.reason, *(a.reason for a in k.alternatives))}


def test_an_attribute_of_the_wrong_type_is_refused():
    model = chain()
    (epsilon,) = model.graph.node[1].attribute
    epsilon.type, epsilon.s = onnx.AttributeProto.STRING, b"1e-5"
    with pytest.raises(MalformedModel, match="'epsilon' of BatchNormalization 'n1' has the wrong type"):
        bnfold.fold(model)


def test_an_opset_beyond_32_bits_is_refused():
    model = chain()
    model.opset_import.append(onnx.helper.make_opsetid("com.acme", 2**40))
    with pytest.raises(MalformedModel, match="opsets count from 1"):
        bnfold.fold(model)


def test_names_that_are_no_text_are_refused(tmp_path: Path):
    data = chain().SerializeToString()
    for name in (b"Conv", b"v0"):
        (tmp_path / "net.onnx").write_bytes(data.replace(name, b"\xff" * len(name)))
        with pytest.raises(MalformedModel, match="UTF-8"):
            bnfold.fold(tmp_path / "net.onnx")


def test_names_with_line_breaks_and_escapes_stay_on_one_line():
    model = chain()
    model.graph.output[0].name = "y\n\x1b[31m" + "é" * 3000
    with pytest.raises(BnfoldError) as caught:
        bnfold.fold(model)
    assert str(caught.value).isprintable() and len(str(caught.value)) <= 1000
    assert r"y\n\x1b[31mé" in str(caught.value)


def test_raw_data_longer_than_the_shape_is_refused_however_it_is_read(tmp_path: Path):
    model = chain()
    model.graph.initializer[0].dims[0] = 5
    for way in (0, 1, 2):
        assert examine(model.SerializeToString(), way, tmp_path) == "MalformedModel"


def test_what_the_engine_stumbles_over_is_named_by_onnx_itself(monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> None:
        raise IndexError("tuple index out of range")

    monkeypatch.setattr(Graph, "size", broken)
    with pytest.raises(IndexError):  # a sound model: a bug of ours stays one
        bnfold.fold(chain())
    model = chain()
    model.graph.initializer[0].dims[:] = [3, 6, 3, 3]
    with pytest.raises(MalformedModel, match=r"contradicts itself: .*Dimension mismatch"):
        bnfold.fold(model)


def test_an_axis_of_billions_costs_no_memory():
    b = Builder()
    b.input("x", "N", 4, 2**31)
    part = b.op("Slice", "x", b.ints(0), b.ints(2**30), b.ints(2))
    y = b.op("Mul", part, b.weight(4, 1))
    assert "WRONG_AXIS" in {a.reason for k in bnfold.fold(b.model(y)).report.kept for a in k.alternatives}
