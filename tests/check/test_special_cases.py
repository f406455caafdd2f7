"""What else can happen to a pair of models: each has its verdict, its exit code and a sentence."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bnfold.check import CheckResult, Verdict, check, cost
from bnfold.check.cost import available_memory, estimate, require_memory
from bnfold.check.gate3 import judge_pair
from bnfold.check.judge import Judge
from bnfold.check.providers import Provider, clean_sentence
from bnfold.check.running import load_original, opened, run_pair, samples_for
from bnfold.check.verdict import Settled
from bnfold.errors import UnreadableModel

from .nets import conv_net, model, tensor, value

W = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)


def matmul(*after: onnx.NodeProto, out: onnx.ValueInfoProto | None = None, w: np.ndarray = W) -> onnx.ModelProto:
    """y = x·w, or whatever `after` makes of h = x·w."""
    first = helper.make_node("MatMul", ["x", "w"], ["h" if after else "y"])
    return model([first, *after], {"w": w}, [value("x", "N", 5)], [out or value("y", "N", 4)])


def expect(result: CheckResult, verdict: Verdict, *words: str) -> None:
    assert result.verdict is verdict, str(result)
    for word in words:
        assert word in str(result), str(result)
    assert "\n" not in result.sentence


def test_exit_codes() -> None:
    assert [v.exit_code for v in Verdict] == [0, 0, 1, 1, 3]
    assert [v.passed for v in Verdict] == [True, True, False, False, False]


def test_input_missing_in_the_candidate() -> None:
    node = helper.make_node("MatMul", ["z", "w"], ["y"])
    candidate = model([node], {"w": W}, [value("z", "N", 5)], [value("y", "N", 4)])
    expect(check(matmul(), candidate), Verdict.NOT_EQUIVALENT, "no input 'x'")


def test_further_input_in_the_candidate() -> None:
    add = helper.make_node("Add", ["h", "b"], ["y"])
    candidate = matmul(add)
    candidate.graph.input.append(value("b", 4))
    expect(check(matmul(), candidate), Verdict.NOT_EQUIVALENT, "input 'b'")


def test_fewer_outputs() -> None:
    original = matmul(helper.make_node("Relu", ["h"], ["y"]))
    original.graph.output.append(value("h", "N", 4))
    candidate = matmul(helper.make_node("Relu", ["h"], ["y"]))
    expect(check(original, candidate), Verdict.NOT_EQUIVALENT, "no output 'h'")


def test_another_type() -> None:
    cast = helper.make_node("Cast", ["h"], ["y"], to=TensorProto.DOUBLE)
    candidate = matmul(cast, out=value("y", "N", 4, kind=TensorProto.DOUBLE))
    expect(check(matmul(), candidate), Verdict.NOT_EQUIVALENT, "float", "double")


def test_another_shape() -> None:
    transpose = helper.make_node("Transpose", ["h"], ["y"])
    expect(check(matmul(), matmul(transpose, out=value("y", 4, "N"))), Verdict.NOT_EQUIVALENT, "shape")


def test_candidate_that_does_not_load() -> None:
    candidate = matmul(helper.make_node("NoSuchOp", ["h"], ["y"], domain="nowhere"))
    candidate.opset_import.append(helper.make_opsetid("nowhere", 1))
    expect(check(matmul(), candidate), Verdict.NOT_EQUIVALENT, "not the candidate")


def test_custom_op() -> None:
    original = matmul(helper.make_node("NoSuchOp", ["h"], ["y"], domain="nowhere"))
    original.opset_import.append(helper.make_opsetid("nowhere", 1))
    result = check(original, original)
    expect(result, Verdict.INCONCLUSIVE, "onnxruntime cannot run the original", "NoSuchOp")
    assert result.exit_code == 3
    assert "ONNXRuntimeError" not in result.sentence


def test_all_nan() -> None:
    original = matmul(helper.make_node("Mul", ["h", "nan"], ["y"]))
    original.graph.initializer.append(tensor(np.float32(np.nan), "nan"))
    expect(check(original, original), Verdict.INCONCLUSIVE, "not finite")


def test_nan_in_another_place() -> None:
    original, candidate = (matmul(helper.make_node("Sqrt", ["h"], ["y"]), w=w) for w in (W, -W))
    expect(check(original, candidate), Verdict.NOT_EQUIVALENT, "NaN")


def test_constant_outputs() -> None:
    dead = matmul(w=np.zeros_like(W))
    expect(check(dead, dead), Verdict.INCONCLUSIVE, "all zero")


def test_a_dead_output_is_said() -> None:
    dead = matmul(helper.make_node("Mul", ["h", "zero"], ["y"]))
    dead.graph.initializer.append(tensor(np.float32(0), "zero"))
    dead.graph.output.append(value("h", "N", 4))
    expect(check(dead, dead), Verdict.EQUIVALENT, "Output 'y' is the same in every element")


def test_empty_outputs() -> None:
    cut = helper.make_node("Slice", ["h", "from", "to"], ["y"])
    original = matmul(cut, out=value("y", 0, 4))
    for name, bound in (("from", 0), ("to", 0)):
        original.graph.initializer.append(onnx.numpy_helper.from_array(np.array([bound], np.int64), name))
    expect(check(original, original), Verdict.INCONCLUSIVE, "empty")


def test_crash_of_the_runtime() -> None:
    """onnxruntime 1.31.1 dies of an opset-9 BN with trailing empty outputs. Whatever it does, this process lives."""
    norm = helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y", "", "", "", ""])
    four = {name: np.ones(4, np.float32) for name in "sbmv"}
    original = model([norm], four, [value("x", 2, 4, 3)], [value("y", 2, 4, 3)], opset=9)
    result = check(original, original)
    assert result.verdict in (Verdict.INCONCLUSIVE, Verdict.EQUIVALENT)
    if result.verdict is Verdict.INCONCLUSIVE:
        assert "onnxruntime" in result.sentence


def endless() -> onnx.ModelProto:
    """A Loop of 2⁶² rounds."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["more"], ["again"]), helper.make_node("Cos", ["s"], ["t"])],
        "body",
        [value("i", kind=TensorProto.INT64), value("more", kind=TensorProto.BOOL), value("s", 4)],
        [value("again", kind=TensorProto.BOOL), value("t", 4)],
    )
    loop = helper.make_node("Loop", ["rounds", "", "x"], ["y"], body=body)
    return model([loop], {"rounds": np.int64(2**62)}, [value("x", 4)], [value("y", 4)])


def test_hang() -> None:
    expect(check(endless(), endless(), timeout=1.0), Verdict.INCONCLUSIVE, "did not answer within 1 s")


def test_hang_of_the_candidate_alone() -> None:
    """The original answers at once."""
    quick = model([helper.make_node("Cos", ["x"], ["y"])], {}, [value("x", 4)], [value("y", 4)])
    expect(check(quick, endless(), timeout=1.0, samples=1), Verdict.INCONCLUSIVE, "not the candidate", "within 1 s")


def test_needs_more_memory_than_there_is() -> None:
    """The inputs are asked for in a size whose intermediate values no machine holds in float64."""
    expand = helper.make_node("Expand", ["x", "wide"], ["h"])
    reduce = helper.make_node("ReduceMax", ["h"], ["y"])
    original = model([helper.make_node("Identity", ["x"], ["y"])], {"w": W}, [value("x", "N", 5)], [value("y", "N", 5)])
    vast = model([expand, reduce], {"wide": np.array([2**20, 2**24], np.int64)}, [value("x", 1, 1)], [value("y", 1, 1)])
    needed = estimate(vast, {"x": (1, 1)})
    assert needed.memory >= 8 * 2**44
    with pytest.raises(Settled, match=r"needs \d+\.\d GiB") as end:
        require_memory(needed, 0, 2**34)
    assert end.value.verdict is Verdict.INCONCLUSIVE
    require_memory(estimate(original, {"x": (2, 5)}), 0, 2**34)
    require_memory(needed, 0, None)


def test_too_little_memory_is_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "available_memory", lambda: 2**16)  # a small machine
    result = check(conv_net(0).model(), conv_net(0).folded()[0])
    expect(result, Verdict.INCONCLUSIVE, "GiB")
    assert result.exit_code == 3


def test_available_memory() -> None:
    available = available_memory()
    assert available is None or 0 < available < 2**50


def test_text_input() -> None:
    texts = [value(name, "N", kind=TensorProto.STRING) for name in "tu"]
    original = model([helper.make_node("Identity", ["t"], ["u"])], {}, texts[:1], texts[1:])
    expect(check(original, original), Verdict.INCONCLUSIVE, "texts")


def test_sequence_output() -> None:
    out = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    original = matmul(helper.make_node("SequenceConstruct", ["h"], ["y"]), out=out)
    expect(check(original, original), Verdict.INCONCLUSIVE, "sequence")


def test_no_judge_for_an_op() -> None:
    """com.microsoft's Trilu runs in onnxruntime; the float64 judge does not have it."""

    def trilu(w: np.ndarray) -> onnx.ModelProto:
        made = matmul(helper.make_node("Trilu", ["h"], ["y"], domain="com.microsoft"), w=w)
        made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        return made

    expect(check(trilu(W), trilu(W)), Verdict.EQUIVALENT, "no float64 judge", "Trilu")
    expect(check(trilu(W), trilu(W * 1.01)), Verdict.NOT_EQUIVALENT, "no float64 judge")
    expect(check(trilu(W), trilu(W * np.float32(1 + 6e-5))), Verdict.NOT_EQUIVALENT, "may be rounding or not")


def test_underflow_is_no_disagreement() -> None:
    """x·10⁻³⁸·10⁻³⁸/10⁻³⁸/10⁻³⁸ is x in float64 and 0 in float32, on the provider and under the judge: they agree."""
    tiny = np.float32(1e-38)
    nodes = [
        helper.make_node("Mul", ["x", "tiny"], ["a"]),
        helper.make_node("Mul", ["a", "tiny"], ["b"]),
        helper.make_node("Div", ["b", "tiny"], ["c"]),
        helper.make_node("Div", ["c", "tiny"], ["y"]),
    ]
    original = model(nodes, {"tiny": tiny}, [value("x", 2, 5)], [value("y", 2, 5)])
    expect(check(original, original), Verdict.EQUIVALENT)


def test_overflow_at_the_edge_of_the_type() -> None:
    """40 is added to numbers a unit roundoff apart: 65512 is rounded down to the largest number, 65544 is infinite."""
    x = np.random.default_rng(0).normal(size=(2, 64)).astype(np.float16)
    x[:, 0] = 40
    first, last = ([value(name, 2, 64, kind=TensorProto.FLOAT16)] for name in ("x", "y"))
    add = helper.make_node("Add", ["x", "c"], ["y"])
    weights = ({"c": np.asarray([size] + [0] * 63, np.float16)} for size in (65472, 65504))
    original, candidate = (model([add], held, first, last) for held in weights)
    result = check(original, candidate, inputs=[{"x": x}])
    expect(result, Verdict.EQUIVALENT, "2 output elements are so close to their type's largest number")


def test_overflow_on_the_way() -> None:
    """2·x overflows, although what comes out is far from the largest number: that is counted."""
    ends = [value("x", 2, 64)], [value("y", 2, 64)]
    plain = model([helper.make_node("Mul", ["x", "c"], ["y"])], {"c": np.float32(0.75)}, *ends)
    nodes = [helper.make_node("Mul", ["x", "two"], ["a"]), helper.make_node("Mul", ["a", "c"], ["y"])]
    scaled = model(nodes, {"two": np.float32(2), "c": np.float32(0.375)}, *ends)
    x = np.random.default_rng(0).normal(size=(2, 64)).astype(np.float32) * np.float32(1e37)
    expect(check(plain, scaled, inputs=[{"x": x}]), Verdict.EQUIVALENT)
    x[:, 0] = 2.5e38
    expect(check(plain, scaled, inputs=[{"x": x}]), Verdict.DEGRADED, "overflows on the provider in 2 elements")


def test_judge_and_provider_disagree() -> None:
    """The provider runs another model than the judge: whatever the candidate is, that is never a pass."""
    net = conv_net(0)
    other = net.folded("epsilon taken as 0")[0]
    with Provider(threads=1) as provider:
        file = opened(other)
        load_original(provider, file)
        plan = samples_for(file, provider, samples=2, seed=0, inputs=None, shapes=None)
        provided = run_pair(provider, plan.samples, opened(other))
    judge = Judge(opened(net.model()), opened(net.folded()[0]), net.folded()[1], plan.samples)
    judgement = judge_pair(judge, provided, samples=2, draws=3, seed=0, u=2.0**-24, c=2.0, jumps={})
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert "judge and provider disagree" in judgement.sentence


def test_without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # Python's own way to say that a module is not there
    net = conv_net(0)
    candidate, exact = net.folded()
    result = check(net.model(), candidate, exact=exact)
    expect(result, Verdict.EQUIVALENT, "no provider ran")
    assert result.exit_code == 0
    assert result.provider is None
    wrong, exact = net.folded("epsilon taken as 0")
    expect(check(net.model(), wrong, exact=exact), Verdict.NOT_EQUIVALENT)


def test_neither_provider_nor_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    original = matmul(helper.make_node("NoSuchOp", ["h"], ["y"], domain="nowhere"))
    original.opset_import.append(helper.make_opsetid("nowhere", 1))
    expect(check(original, original), Verdict.INCONCLUSIVE, "no judge could", "NoSuchOp")


def test_runtime_sentences_are_cleaned() -> None:
    text = (
        "[ONNXRuntimeError] : 1 : FAIL : Load model from /tmp/a/m.onnx failed:\n"
        "/onnxruntime_src/onnxruntime/core/graph/model.cc:181 bad opset"
    )
    assert clean_sentence(text, "/tmp/a/m.onnx") == "Load model from m.onnx failed: bad opset"
    assert len(clean_sentence("word " * 500)) <= 300


def test_unreadable_model_is_an_error_and_no_verdict(tmp_path: Path) -> None:
    with pytest.raises(UnreadableModel):
        check(tmp_path / "missing.onnx", matmul())


def test_arguments_are_not_modified() -> None:
    net = conv_net(0)
    original, (candidate, exact) = net.model(), net.folded()
    before = original.SerializeToString(), candidate.SerializeToString()
    check(original, candidate, exact=exact, samples=1)
    assert before == (original.SerializeToString(), candidate.SerializeToString())


def test_external_data(tmp_path: Path) -> None:
    net = conv_net(0)
    candidate, exact = net.folded()
    onnx.save(net.model(), tmp_path / "a.onnx", save_as_external_data=True, location="a.data", size_threshold=0)
    onnx.save(candidate, tmp_path / "b.onnx", save_as_external_data=True, location="b.data", size_threshold=0)
    assert check(tmp_path / "a.onnx", tmp_path / "b.onnx", exact=exact, samples=1)
    bare = onnx.load(tmp_path / "b.onnx", load_external_data=False)
    assert check(tmp_path / "a.onnx", bare, exact=exact, samples=1)


def test_importing_the_check_loads_no_runtime() -> None:
    code = "import sys, bnfold.check; sys.exit('onnxruntime' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_nothing_of_the_runtime_reaches_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    original = matmul(helper.make_node("NoSuchOp", ["h"], ["y"], domain="nowhere"))
    original.opset_import.append(helper.make_opsetid("nowhere", 1))
    check(original, original)
    check(matmul(), matmul(), samples=1)
    assert capfd.readouterr() == ("", "")
