"""Execution providers: which are asked, which load, where the nodes run, what noise they have, how they are deployed.

Everything here runs; what needs an accelerator runs wherever one loads.
"""

import itertools
import os
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import bnfold
from bnfold.check import Verdict, check
from bnfold.check.catalogue import CPU, chosen
from bnfold.check.doctor import probe
from bnfold.check.judging import Gate3
from bnfold.check.placement import Placement, elsewhere, placed
from bnfold.check.providers import NotLoaded, Provider, ProviderDied, listing, loader_reason
from bnfold.check.records import ProviderRecord, worst
from bnfold.check.running import load_original, opened, run_pair, samples_for
from bnfold.check.settings import Settings
from bnfold.cli import main
from bnfold.errors import UsageError
from bnfold.files import save

from .nets import conv_net, model, value
from .test_special_cases import endless, expect, matmul

BUILT = listing()
AZURE = "AzureExecutionProvider"


@pytest.fixture(params=["cuda", "openvino"])
def accelerator(request: pytest.FixtureRequest) -> str:
    name = chosen([request.param], nothing)[0].name
    if name not in BUILT or not probe(name).loads:
        pytest.skip(f"{name} does not load here")
    return request.param


def nothing() -> tuple[str, ...]:
    raise AssertionError("known names are found without asking onnxruntime")


# names


def test_names() -> None:
    found = chosen(["CPU, cuda", "CUDAExecutionProvider", "trt"], nothing)
    assert [choice.short for choice in found] == ["cpu", "cuda", "tensorrt"]
    assert [choice.tf32 for choice in found] == [None, False, False]
    assert found[1].options["use_tf32"] == "0"
    assert chosen(["cuda"], nothing, tf32=True)[0].options["use_tf32"] == "1"


def test_every_provider_that_was_built_in_has_a_name() -> None:
    assert CPU in BUILT
    assert [choice.name for choice in chosen(BUILT, nothing)] == list(BUILT)


def test_a_provider_that_only_this_onnxruntime_knows() -> None:
    for text in ("NovelExecutionProvider", "novel"):
        assert [choice.name for choice in chosen([text], lambda: ("NovelExecutionProvider",))] == [
            "NovelExecutionProvider"
        ]


def test_unknown_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'gpux' is no execution provider; onnxruntime here has .*cpu"):
        check(matmul(), matmul(), providers=["cpu,gpux"])
    save(matmul(), tmp_path / "a.onnx")
    assert main(["check", str(tmp_path / "a.onnx"), str(tmp_path / "a.onnx"), "--provider", "gpux"]) == 2
    assert "'gpux' is no execution provider" in capsys.readouterr().err


# what does not load is never replaced by the CPU


def absent() -> str:
    """The name of a provider that this onnxruntime does not have."""
    return next(name for name in ("rocm", "cann", "tvm") if chosen([name], nothing)[0].name not in BUILT)


def test_absent_provider() -> None:
    result = check(matmul(), matmul(), providers=[absent()])
    expect(result, Verdict.INCONCLUSIVE, f"{chosen([absent()], nothing)[0].name} is not in this onnxruntime")
    assert result.exit_code == 3
    assert not result.figures


def test_absent_beside_one_that_runs() -> None:
    net = conv_net(1)
    candidate, exact = net.folded()
    result = check(net.model(), candidate, exact=exact, providers=["cpu", absent()], samples=1)
    expect(result, Verdict.INCONCLUSIVE, f"on {absent()}: ", "is not in this onnxruntime")
    assert [record.verdict.passed for record in result.providers] == [True, False]
    wrong, exact = net.folded("epsilon taken as 0")
    result = check(net.model(), wrong, exact=exact, providers=[absent(), "cpu"], samples=1)
    expect(result, Verdict.NOT_EQUIVALENT, "on cpu: ")  # what is known to be wrong is said


def test_all_takes_those_that_load() -> None:
    result = check(matmul(), matmul(), providers=["all"], samples=1)
    assert result.providers[0].choice.is_cpu
    assert {record.choice.name for record in result.providers} <= set(BUILT) - {AZURE}
    assert result.verdict is not Verdict.NOT_EQUIVALENT


def test_without_onnxruntime_an_asked_provider_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    expect(check(matmul(), matmul(), providers=["cpu"]), Verdict.INCONCLUSIVE, "onnxruntime is not installed")


def test_reason_of_a_loader() -> None:
    log = (
        "\x1b[1;31m2026-01-01 10:00:00.123 [E:onnxruntime:Default, provider_bridge_ort.cc:2251 TryGet] "
        "provider_bridge_ort.cc:1844 Get Failed to load library libonnxruntime_providers_cuda.so with error: "
        "libcublasLt.so.13: cannot open shared object file: No such file or directory\x1b[m\n"
        "2026-01-01 10:00:00.124 [W:onnxruntime:Default, python.cc:1013] Failed to create CUDAExecutionProvider.\n"
    )
    assert loader_reason(log) == "libcublasLt.so.13: cannot open shared object file: No such file or directory"


# placement


def branching() -> onnx.ModelProto:
    """y = If(x[0] > 0, x·w, x·w + 1), a MatMul in either branch and one before."""

    def branch(name: str, *after: onnx.NodeProto, out: str) -> onnx.GraphProto:
        first = helper.make_node("MatMul", ["h", "w"], ["m"], name=f"{name}_product")
        return helper.make_graph([first, *after], name, [], [value(out, None, None)])

    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="before"),
        helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
        helper.make_node("Greater", ["top", "zero"], ["which"]),
        helper.make_node(
            "If",
            ["which"],
            ["y"],
            then_branch=branch("then", out="m"),
            else_branch=branch("else", helper.make_node("Add", ["m", "one"], ["a"]), out="a"),
        ),
    ]
    weights = {"w": np.eye(4, dtype=np.float32), "zero": np.float32(0), "one": np.float32(1)}
    return model(nodes, weights, [value("x", 3, 4)], [value("y", 3, 4)])


def test_placement_by_session(tmp_path: Path) -> None:
    save(branching(), tmp_path / "m.onnx")
    with Provider() as provider:
        provider.load(tmp_path / "m.onnx")
        placement = provider.placement
        assert provider.device
    assert placement is not None
    assert set(placement.nodes) == {CPU}
    names = {name for name, op in placement.nodes[CPU] if op == "MatMul"}
    assert names == {"before", "then_product", "else_product"}
    assert str(placement) == f"all {placement.total} nodes"


def test_placement_by_profile(tmp_path: Path) -> None:
    """What an onnxruntime before 1.24 has: the nodes that ran, after a run."""
    save(matmul(helper.make_node("Relu", ["h"], ["y"])), tmp_path / "m.onnx")
    with Provider() as provider:
        provider.load(tmp_path / "m.onnx", read_back="profile")
        assert provider.placement is None
        provider.run({"x": np.ones((2, 5), np.float32)})
        profiled: Placement | None = provider.placement
        assert profiled is not None
        assert [op for _, op in profiled.nodes[CPU]] == ["MatMul", "Relu"]
        assert not list(provider.folder.glob("profile*"))
        provider.run({"x": np.ones((2, 5), np.float32)})


def test_what_ran_elsewhere() -> None:
    cuda, net = "CUDAExecutionProvider", conv_net(0, layers=2).folded()[0]
    convs = [[cuda, "a", "Conv"], [cuda, "b", "Conv"]]
    shape = [CPU, "s", "Shape"]
    assert elsewhere(placed(cuda, [*convs, shape]), net) == ""
    assert str(placed(cuda, [*convs, shape])) == "2 of 3 nodes; on cpu: Shape"
    assert elsewhere(placed(cuda, [convs[0], [CPU, "b", "Conv"]]), net) == "Conv 'b' ran on cpu, not on cuda"
    assert elsewhere(placed(cuda, [convs[0], [CPU, "b", "Conv"]]), None) == "Conv 'b' ran on cpu, not on cuda"
    assert elsewhere(placed(cuda, [convs[0]]), net).startswith("cuda took 1 of 2 Conv nodes")
    assert elsewhere(placed(cuda, [convs[0]]), None) == ""  # as deployed, two may have become one
    assert elsewhere(placed(cuda, [shape]), net) != ""
    assert "cannot be read back" in elsewhere(None, net)
    assert elsewhere(placed(CPU, ()), net) == ""


@pytest.mark.skipif(AZURE not in BUILT, reason="this onnxruntime has no provider that leaves its nodes to the CPU")
def test_a_fallback_is_inconclusive() -> None:
    """Azure's provider loads and runs nothing by itself: the CPU does, and the numbers are perfect."""
    net = conv_net(2)
    candidate, exact = net.folded()
    result = check(net.model(), candidate, exact=exact, providers=["azure"], samples=1)
    expect(result, Verdict.INCONCLUSIVE, "ran on cpu, not on azure", "on cpu: Conv ×3")
    assert result.figures["arithmetic"]["used"] < 1


# noise, options, what a result says


def test_noise_and_records() -> None:
    net = conv_net(3)
    candidate, exact = net.folded()
    result = check(net.model(), candidate, exact=exact, samples=2, threads=2)
    assert result.verdict.passed
    (record,) = result.to_dict()["providers"]
    assert record["name"] == CPU
    assert record["version"]
    assert record["tf32"] is None
    assert record["placement"]["elsewhere"] == {}
    assert record["noise_floor"]["how"] == "with 3 threads"
    assert 0 < record["noise_floor"]["difference"] < 1e-5
    assert record["noise_floor"]["floor"] < 1e-5
    assert record["deployed"]["samples"] == 2
    assert 0 < record["deployed"]["used"] < 1
    lines = str(result).splitlines()
    assert sum(line.startswith("cpu ") for line in lines) == 3
    assert result.provider == f"onnxruntime {record['version']} CPU"


def test_the_worst_verdict_counts() -> None:
    def record(short: str, verdict: Verdict) -> ProviderRecord:
        return ProviderRecord(chosen([short], nothing)[0], "1", None, verdict, f"{verdict.value.lower()} there")

    order = [
        Verdict.MORE_ACCURATE,
        Verdict.EQUIVALENT,
        Verdict.DEGRADED,
        Verdict.INCONCLUSIVE,
        Verdict.NOT_EQUIVALENT,
    ]
    for better, worse in itertools.pairwise(order):
        for pair in ([("cpu", better), ("cuda", worse)], [("cuda", worse), ("cpu", better)]):
            verdict, sentence = worst([record(*each) for each in pair])
            assert verdict is worse
            assert f"{worse.value.lower()} there" in sentence
            assert "cuda" in sentence
    assert worst([record("cpu", Verdict.DEGRADED)]) == (Verdict.DEGRADED, "degraded there")


def test_threads_and_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = conv_net(4)
    save(net.model(), tmp_path / "net.onnx")
    assert main([str(tmp_path / "net.onnx"), "--provider", "cpu", "--timeout", "200", "--threads", "1"]) == 0
    assert "with optimisations on" in capsys.readouterr().out
    assert main([str(tmp_path / "net.onnx"), "--force", "--provider", f"cpu,{absent()}"]) == 3
    assert "is not in this onnxruntime" in capsys.readouterr().out
    assert main([str(tmp_path / "net.onnx"), "--custom-ops", str(tmp_path / "no.so"), "--force"]) == 2
    assert "not a file" in capsys.readouterr().err


# as deployed


def quantized() -> tuple[onnx.ModelProto, np.ndarray]:
    """Conv → BN → QuantizeLinear with large int8 weights: folded, onnxruntime makes one QLinearConv of it, whose uint8
    by int8 kernel saturates in 16 bits on processors without VNNI. Returns an input that makes it."""
    rng = np.random.default_rng(0)
    weights = {
        "sx": np.float32(1 / 255),
        "zx": np.uint8(0),
        "w": rng.integers(100, 128, (8, 16, 3, 3)).astype(np.int8),
        "sw": np.full(8, 0.01, np.float32),
        "zw": np.zeros(8, np.int8),
        "b": np.zeros(8, np.float32),
        "gamma": np.linspace(0.5, 1.5, 8).astype(np.float32),
        "beta": np.zeros(8, np.float32),
        "mean": np.full(8, 60, np.float32),
        "var": np.full(8, 10, np.float32),
        "sy": np.float32(0.1),
        "zy": np.uint8(128),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "sx", "zx"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["wd"], axis=0),
        helper.make_node("Conv", ["xd", "wd", "b"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["n"]),
        helper.make_node("QuantizeLinear", ["n", "sy", "zy"], ["nq"]),
        helper.make_node("DequantizeLinear", ["nq", "sy", "zy"], ["y"]),
    ]
    made = model(nodes, weights, [value("x", "N", 16, 6, 7)], [value("y", "N", 8, 4, 5)], opset=13)
    return made, rng.uniform(0.7, 1, (1, 16, 6, 7)).astype(np.float32)


def test_saturation_as_deployed(tmp_path: Path) -> None:
    original, x = quantized()
    result = bnfold.fold(original)
    assert result.changed
    result.save(tmp_path / "folded.onnx")
    outputs: list[np.ndarray] = []
    with Provider() as provider:
        for level in ("disabled", "all"):
            provider.load(tmp_path / "folded.onnx", optimization=level)
            outputs.append(provider.run({"x": x})["y"])
    saturates = bool(np.max(np.abs(outputs[1] - outputs[0])) > 1)
    verdict = check(original, tmp_path / "folded.onnx", exact=result.exact, inputs=[{"x": x}])
    if saturates:
        expect(verdict, Verdict.DEGRADED, "the same function, but with optimisations on, output 'y'")
        assert verdict.figures["arithmetic"]["used"] < 1  # with optimisations disabled nothing is wrong
    else:
        assert verdict.verdict.passed, str(verdict)


def test_candidate_that_does_not_run_as_deployed() -> None:
    """Optimisations that never begin: the loop is run when the model is loaded, for everything in it is constant."""
    quick = model(
        [helper.make_node("Add", ["x", "c"], ["y"])], {"c": np.zeros(4, np.float32)}, [value("x", 4)], [value("y", 4)]
    )
    slow = onnx.ModelProto()
    slow.CopyFrom(endless())
    del slow.graph.node[0].input[2]
    slow.graph.node[0].input.append("c")
    slow.graph.node[0].output[0] = "unused"
    slow.graph.initializer.append(quick.graph.initializer[0])
    slow.graph.node.append(helper.make_node("Identity", ["x"], ["y"]))
    result = check(quick, slow, samples=1, timeout=3.0)
    assert result.verdict is Verdict.INCONCLUSIVE, str(result)
    assert "did not answer within 3 s" in result.sentence


# how a run can end


def test_killed_from_outside(tmp_path: Path) -> None:
    """As the kernel does when the memory runs out."""
    save(endless(), tmp_path / "endless.onnx")
    with Provider(timeout=60) as provider:
        provider.load(tmp_path / "endless.onnx")
        killer = threading.Timer(0.3, os.kill, (provider.process, signal.SIGKILL))
        killer.start()
        with pytest.raises(ProviderDied, match="killed from outside, most likely because the memory ran out") as caught:
            provider.run({"x": np.ones(4, np.float32)})
        killer.join()
    assert caught.value.exhausted


def vast() -> onnx.ModelProto:
    """128 TiB of ones, more than a process can address."""
    nodes = [
        helper.make_node("ConstantOfShape", ["n"], ["h"]),
        helper.make_node("ReduceMax", ["h"], ["t"], keepdims=0),
        helper.make_node("Add", ["x", "t"], ["y"]),
    ]
    return model(nodes, {"n": np.array([2**45], np.int64)}, [value("x", 4)], [value("y", 4)])


def test_out_of_memory() -> None:
    expect(check(vast(), vast()), Verdict.INCONCLUSIVE, "the memory ran out")
    small = model([helper.make_node("Identity", ["x"], ["y"])], {}, [value("x", 4)], [value("y", 4)])
    expect(check(small, vast(), samples=1), Verdict.INCONCLUSIVE, "not the candidate: the memory ran out")


def test_hang_is_a_verdict_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(endless(), tmp_path / "endless.onnx")
    path = str(tmp_path / "endless.onnx")
    assert main(["check", path, path, "--timeout", "1"]) == 3
    assert "INCONCLUSIVE: the original does not run: onnxruntime did not answer within 1 s" in capsys.readouterr().out


def test_a_provider_that_is_not_there_is_an_error_of_its_own(tmp_path: Path) -> None:
    save(matmul(), tmp_path / "m.onnx")
    with Provider(absent()) as provider, pytest.raises(NotLoaded):
        provider.load(tmp_path / "m.onnx")


# custom operators


def signs(scale: float = 1.0) -> onnx.ModelProto:
    """The negative and the positive part of x·w, by an operator of onnxruntime-extensions."""
    w = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32) * np.float32(scale)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("NegPos", ["h"], ["n", "p"], domain="ai.onnx.contrib"),
    ]
    made = model(nodes, {"w": w}, [value("x", "N", 5)], [value("n", "N", 4), value("p", "N", 4)])
    made.opset_import.append(helper.make_opsetid("ai.onnx.contrib", 1))
    return made


def test_custom_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    # importing it makes protobuf pure Python in every process that is started afterwards
    monkeypatch.setenv("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "upb")
    extensions = pytest.importorskip("onnxruntime_extensions", exc_type=ImportError)
    monkeypatch.setenv("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "upb")
    library = [extensions.get_library_path()]
    expect(check(signs(), signs(), custom_ops=library), Verdict.EQUIVALENT, "no float64 judge", "NegPos")
    expect(check(signs(), signs(1.01), custom_ops=library), Verdict.NOT_EQUIVALENT, "no float64 judge")


def test_custom_operators_that_are_not_there(tmp_path: Path) -> None:
    expect(check(signs(), signs()), Verdict.INCONCLUSIVE, "NegPos", "--custom-ops registers")
    with pytest.raises(UsageError, match="not a file"):
        check(signs(), signs(), custom_ops=[tmp_path / "absent.so"])
    (tmp_path / "text.so").write_text("no library")
    expect(check(signs(), signs(), custom_ops=[tmp_path / "text.so"]), Verdict.INCONCLUSIVE, "text.so do not load")


# accelerators, wherever one loads


def test_fold_on_an_accelerator(accelerator: str) -> None:
    net = conv_net(5)
    candidate, exact = net.folded()
    result = check(net.model(), candidate, exact=exact, providers=[accelerator, "cpu"])
    assert result.verdict.passed, str(result)
    first = result.providers[0]
    assert first.placement is not None
    assert first.placement.there > 0
    assert first.noise is not None
    wrong, exact = net.folded("beta dropped")
    assert check(net.model(), wrong, exact=exact, providers=[accelerator]).verdict is Verdict.NOT_EQUIVALENT


def test_tf32_is_off_unless_it_is_asked_for(accelerator: str) -> None:
    net = conv_net(6)
    candidate, exact = net.folded()
    strict, loose = (
        check(net.model(), candidate, exact=exact, providers=[accelerator], tf32=tf32) for tf32 in (False, True)
    )
    assert strict.verdict.passed, str(strict)
    assert loose.verdict.passed, str(loose)
    assert strict.figures["arithmetic"]["error_original"] < 1e-5


def ten_bits(net: onnx.ModelProto) -> onnx.ModelProto:
    """The weights of the convolutions rounded to TF32's 10 bits, which does to their products what TF32 does."""
    rounded = onnx.ModelProto()
    rounded.CopyFrom(net)
    for proto in rounded.graph.initializer:
        if len(proto.dims) == 4:
            bits = onnx.numpy_helper.to_array(proto).view(np.uint32)
            near = ((bits + np.uint32(1 << 12)) & ~np.uint32((1 << 13) - 1)).view(np.float32)
            proto.CopyFrom(onnx.numpy_helper.from_array(near, proto.name))
    return rounded


@pytest.mark.parametrize("seed", range(4))
def test_coarser_products(seed: int) -> None:
    """Products as coarse as TF32's: with `tf32` the provider's arithmetic is what was asked, without it suspicious."""
    net = conv_net(seed)
    original, (folded, exact) = opened(net.model()), net.folded()
    settings = Settings(exact=exact, samples=2)
    with Provider() as provider:
        load_original(provider, opened(ten_bits(net.model())))
        plan = samples_for(original, provider, samples=2, seed=0, inputs=None, shapes=None)
        provided = run_pair(provider, plan.samples, opened(ten_bits(folded)))
    gate = Gate3(original, opened(folded), settings, plan.samples, plan.cost, [provided])
    assert gate(provided, tf32=True).verdict.passed
    strict = gate(provided, tf32=False)
    assert strict.verdict is Verdict.INCONCLUSIVE
    assert "judge and provider disagree" in strict.sentence
    wrong, exact = net.folded("beta dropped")
    gate = Gate3(original, opened(wrong), Settings(exact=exact), plan.samples, plan.cost, [provided])
    assert gate(provided, tf32=True).verdict is Verdict.NOT_EQUIVALENT
