"""The evaluator itself: promotion, what it reads and drops, subgraphs, functions, chosen outputs, errors."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.parser import parse_model

from bnfold.errors import BnfoldError, MalformedModel, UsageError
from bnfold.reference import EvaluationError, Evaluator, UnsupportedOp, evaluate_node

TENTH = np.float64(np.float32(0.1))
TYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float": np.float32, "double": np.float64}


def parsed(body: str, opset: int = 17, extra: str = "") -> onnx.ModelProto:
    return parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]{extra}> {body}')


@pytest.mark.parametrize("name", TYPES)
def test_initializers_of_every_float_type_are_promoted(name: str):
    w = np.array([0.1, 3, -2], dtype=TYPES[name])
    model = parsed(f"g ({name}[3] x) => ({name}[3] y) {{ y = Mul(x, w) }}")
    model.graph.initializer.append(numpy_helper.from_array(w, "w"))
    x = np.array([0.3, 1, 7], dtype=TYPES[name])
    y = Evaluator(model).run({"x": x})["y"]
    assert y.dtype == np.float64
    np.testing.assert_array_equal(y, x.astype(np.float64) * w.astype(np.float64))
    native = Evaluator(model, dtype=None).run({"x": x})["y"]
    assert native.dtype == x.dtype
    np.testing.assert_array_equal(native, (x.astype(np.float64) * w.astype(np.float64)).astype(x.dtype))


@pytest.mark.parametrize(
    "source",
    [
        "c = Constant <value = float[1] {0.1}> ()",
        "c = Constant <value_float = 0.1> ()",
        "c = Constant <value_floats = [0.1]> ()",
        "s = Constant <value_ints = [1]> () c = ConstantOfShape <value = float[1] {0.1}> (s)",
        "d = Constant <value = double[1] {0.1}> () f = Cast <to = 1> (d) c = Mul(f, f) ",
        "z = Constant <value = int64[1] {3}> () h = Cast <to = 10> (z) c = Mul(h, x)",
        "z = Constant <value = int64[1] {3}> () c = CastLike(z, x)",
        "i = Constant <value = int64[1,1] {3}> () e = EyeLike <dtype = 1> (i) c = Mul(e, x)",
    ],
)
def test_every_source_of_a_float_is_promoted(source: str):
    model = parsed(f"g (float[1] x) => (float[1] y) {{ {source} y = Add(x, c) }}")
    feed = {"x": np.array([0.3], dtype=np.float32)}
    found = Evaluator(model).run(feed, ["c", "y"])
    assert {value.dtype for value in found.values()} == {np.dtype(np.float64)}
    own = Evaluator(model, dtype=None)
    if "Cast <to = 10>" not in source:  # which would be a mixture of types
        assert own.run(feed)["y"].dtype == np.float32


def test_a_constant_keeps_the_value_of_its_type():
    model = parsed("g (float[1] x) => (float[1] y) { c = Constant <value_float = 0.1> () y = Mul(x, c) }")
    np.testing.assert_array_equal(Evaluator(model).run({"x": np.ones(1, dtype=np.float32)})["y"], [TENTH])


def test_integers_stay_and_casts_to_them_truncate():
    model = parsed("g (float[3] x, int64[3] i) => (int64[3] n, int64[3] m) { n = Cast <to = 7> (x) m = Add(n, i) }")
    feeds = {"x": np.array([1.9, -1.9, 0.5], dtype=np.float32), "i": np.array([1, 2, 3], dtype=np.int64)}
    found = Evaluator(model).run(feeds)
    assert found["m"].dtype == np.int64
    np.testing.assert_array_equal(found["m"], [2, 1, 3])


def test_exact_values_replace_initializers():
    model = parsed("g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Mul(x, w) }")
    w = np.array([1 / 3, 2 / 7])
    y = Evaluator(model, exact={"w": w}).run({"x": np.ones(2, dtype=np.float32)})["y"]
    np.testing.assert_array_equal(y, w)
    with pytest.raises(UsageError, match="'v'"):
        Evaluator(model, exact={"v": w})
    with pytest.raises(UsageError, match="'w'"):
        Evaluator(model, exact={"w": np.ones(3)})


def test_an_initializer_that_is_an_input_can_be_fed():
    model = parsed("g (float[1] x, float[1] w) => (float[1] y) <float[1] w = {2}> { y = Mul(x, w) }")
    x = np.array([3], dtype=np.float32)
    evaluator = Evaluator(model)
    assert evaluator.inputs == ("x",)
    assert evaluator.run({"x": x})["y"] == 6
    assert evaluator.run({"x": x, "w": x})["y"] == 9
    assert evaluator.run({"x": x})["y"] == 6


def test_external_data(tmp_path: Path):
    w = np.arange(600, dtype=np.float32).reshape(20, 30)
    model = parsed("g (float[1, 20] x) => (float[1, 30] y) { y = MatMul(x, w) }")
    model.graph.initializer.append(numpy_helper.from_array(w, "w"))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    stored = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    before = stored.SerializeToString()
    x = np.ones((1, 20), dtype=np.float32)
    np.testing.assert_array_equal(Evaluator(stored, directory=tmp_path).run({"x": x})["y"], w.sum(axis=0)[None])
    assert stored.SerializeToString() == before
    with pytest.raises(MalformedModel, match="'w'"):
        Evaluator(stored)
    (tmp_path / "m.data").unlink()
    with pytest.raises(MalformedModel, match="'w'"):
        Evaluator(stored, directory=tmp_path)


def test_only_what_the_outputs_need_is_run():
    model = parsed(
        "g (float[2] x, float[3] z) => (float[2] y, float[2] bad) { a = Relu(x) y = Exp(a) bad = Add(x, z) }"
    )
    feeds = {"x": np.zeros(2, dtype=np.float32), "z": np.zeros(3, dtype=np.float32)}
    assert list(Evaluator(model).run(feeds, ["a"])) == ["a"]
    assert list(Evaluator(model).run(feeds, ["y"])["y"]) == [1, 1]
    with pytest.raises(EvaluationError, match="Add"):
        Evaluator(model).run(feeds)


def test_values_are_dropped_after_their_last_reader():
    body = " ".join(f"v{i + 1} = Add(v{i}, v0)" for i in range(6))
    model = parsed(f"g (float[2] v0) => (float[2] v6) {{ {body} }}")
    program = Evaluator(model)._program
    dropped = [set(dead) for _, dead in program.plan(("v6",))]
    assert dropped == [set(), {"v1"}, {"v2"}, {"v3"}, {"v4"}, {"v5", "v0"}]


def test_subgraphs_read_outer_values_and_are_promoted():
    model = parsed(
        """g (bool c, float[2] x) => (float[2] y) <float[2] w = {0.1, 0.1}> {
            h = Relu(x)
            y = If (c) <
                then_branch = t () => (float[2] a) { a = Mul(h, w) },
                else_branch = e () => (float[2] b) <float[2] v = {0.1, 0.1}> { b = Add(h, v) }
            >
        }"""
    )
    x = np.array([3, -3], dtype=np.float32)
    evaluator = Evaluator(model)
    np.testing.assert_array_equal(evaluator.run({"c": np.array(True), "x": x})["y"], [3 * TENTH, 0])
    np.testing.assert_array_equal(evaluator.run({"c": np.array(False), "x": x})["y"], [3 + TENTH, TENTH])


def test_loop_stacks_what_it_collects():
    model = parsed(
        """g (float[2, 2] x) => (float[2, 2] y, float[n, 2, 2] all) <int64 n = {3}, bool go = {1}> {
            y, all = Loop (n, go, x) <
                body = b (int64 i, bool going, float[2, 2] s) => (bool on, float[2, 2] t, float[2, 2] u) {
                    on = Identity(going) t = Add(s, x) u = Identity(t)
                }
            >
        }"""
    )
    x = np.arange(4, dtype=np.float32).reshape(2, 2)
    found = Evaluator(model).run({"x": x})
    np.testing.assert_array_equal(found["y"], 4 * x)
    np.testing.assert_array_equal(found["all"], np.stack([2 * x, 3 * x, 4 * x]))
    assert found["all"].dtype == np.float64


def test_scan_backwards():
    model = parsed(
        """g (float[2] s0, float[3, 2] x) => (float[2] s, float[3, 2] sums) {
            s, sums = Scan <num_scan_inputs = 1, scan_input_directions = [1], scan_output_directions = [1],
                body = b (float[2] s_in, float[2] x_t) => (float[2] s_out, float[2] kept) {
                    s_out = Add(s_in, x_t) kept = Identity(s_out)
                }> (s0, x)
        }"""
    )
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    found = Evaluator(model).run({"s0": np.zeros(2, dtype=np.float32), "x": x})
    np.testing.assert_array_equal(found["s"], x.sum(axis=0))
    np.testing.assert_array_equal(found["sums"], np.cumsum(x[::-1], axis=0)[::-1])


FUNCTIONS = """
<domain: "own", opset_import: ["" : 13]>
outer <alpha: float = 0.25> (x, w) => (y) { a = own.inner <slope: float = @alpha> (x) y = Mul(a, w) }
<domain: "own", opset_import: ["" : 13]>
inner <slope> (x) => (y) { y = LeakyRelu <alpha: float = @slope> (x) }
"""


@pytest.mark.parametrize(("call", "alpha"), [("own.outer <alpha = 0.5> (x, w)", 0.5), ("own.outer (x, w)", 0.25)])
def test_model_local_functions(call: str, alpha: float):
    functions = FUNCTIONS.replace('opset_import: ["" : 13]', 'opset_import: ["" : 13, "own" : 1]')
    model = parse_model(
        f'<ir_version: 8, opset_import: ["" : 17, "own" : 1]> '
        f"g (float[2] x) => (float[2] y) <float[2] w = {{0.1, 0.1}}> {{ y = {call} }} {functions}"
    )
    y = Evaluator(model).run({"x": np.array([2, -2], dtype=np.float32)})["y"]
    np.testing.assert_array_equal(y, [2 * TENTH, -2 * alpha * TENTH])


def test_a_function_that_calls_itself_is_refused():
    model = parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "own" : 1]> g (float[1] x) => (float[1] y) { y = own.f (x) } '
        '<domain: "own", opset_import: ["" : 17, "own" : 1]> f (x) => (y) { y = own.f (x) }'
    )
    with pytest.raises(MalformedModel, match="'f'"):
        Evaluator(model)


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ("y = com.microsoft.NhwcFusedConv (x, x)", "NhwcFusedConv"),
        ("y = unknown.Op (x)", "Op"),
        ("y = RandomNormalLike (x)", "RandomNormalLike"),
        ("y = NoSuchOp (x)", "NoSuchOp"),
        ("y = Relu <slope = 1> (x)", "slope"),
        ("y = If (c) <then_branch = t () => (float[1] a) { a = unknown.Op (x) }, "
         "else_branch = e () => (float[1] b) { b = Relu(x) }>", "Op"),
    ],
)  # fmt: skip
def test_an_op_that_is_missing_is_named_when_the_model_is_read(body: str, name: str):
    model = parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1, "unknown" : 1]> '
        f"g (float[1] x, bool c) => (float[1] y) {{ {body} }}"
    )
    with pytest.raises(UnsupportedOp, match=name):
        Evaluator(model)


def test_a_domain_that_is_not_imported_is_named():
    model = parsed("g (float[1] x) => (float[1] y) { y = Relu(x) }")
    model.graph.node[0].domain = "com.example"
    with pytest.raises(UnsupportedOp, match=r"com\.example"):
        Evaluator(model)
    model.graph.node[0].domain = "ai.onnx"  # the main domain's other name
    assert Evaluator(model).run({"x": np.ones(1, dtype=np.float32)})["y"] == 1


def test_errors_name_the_input_or_the_node():
    evaluator = Evaluator(parsed("g (float[2] x) => (float[2] y) { y = Relu(x) }"))
    with pytest.raises(EvaluationError, match="'x'"):
        evaluator.run({})
    with pytest.raises(EvaluationError, match="'z'"):
        evaluator.run({"x": np.ones(2), "z": np.ones(2)})
    with pytest.raises(EvaluationError, match="'nowhere'"):
        evaluator.run({"x": np.ones(2)}, ["nowhere"])
    dangling = parsed("g (float[2] x) => (float[2] y) { y = Add(x, gone) }")
    with pytest.raises(EvaluationError, match="'gone'"):
        Evaluator(dangling).run({"x": np.ones(2)})
    with pytest.raises(UsageError):
        Evaluator(dangling, dtype=np.float32)
    assert issubclass(EvaluationError, BnfoldError)


def test_evaluate_node_in_its_own_types():
    node = helper.make_node("Add", ["a", "b"], ["c"])
    half = np.array([0.1, 2], dtype=np.float16)
    (c,) = evaluate_node(node, [half, half], {"": 13})
    assert c.dtype == np.float16
    (c,) = evaluate_node(helper.make_node("Add", ["a", "a"], ["c"]), [half, half], {"": 13})
    np.testing.assert_array_equal(c, half + half)
    (c,) = evaluate_node(helper.make_node("Clip", ["a", "", "b"], ["c"]), [half, None, half[0]], {"ai.onnx": 13})
    np.testing.assert_array_equal(c, [half[0], half[0]])
    value = numpy_helper.from_array(np.arange(3, dtype=np.int32))
    (c,) = evaluate_node(helper.make_node("Constant", [], ["c"], value=value), [], {"": 13})
    assert c.dtype == np.int32
    with pytest.raises(UnsupportedOp):
        evaluate_node(helper.make_node("Op", ["a"], ["b"], domain="unknown"), [half], {"": 13, "unknown": 1})


def test_a_sparse_initializer_is_dense():
    values = helper.make_tensor("w", TensorProto.FLOAT, [2], [0.1, 5])
    indices = helper.make_tensor("i", TensorProto.INT64, [2], [1, 3])
    model = parsed("g (float[2, 2] x) => (float[2, 2] y) { y = Add(x, w) }")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2, 2]))
    y = Evaluator(model).run({"x": np.zeros((2, 2), dtype=np.float32)})["y"]
    np.testing.assert_array_equal(y, [[0, TENTH], [0, 5]])


def test_the_model_is_not_modified():
    model = parsed("g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Mul(x, w) }")
    before = model.SerializeToString()
    Evaluator(model).run({"x": np.ones(2, dtype=np.float32)})
    assert model.SerializeToString() == before
