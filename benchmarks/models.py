"""`python -m benchmarks models [FOLDER ...]`: what each tool leaves of BatchNormalization and constant arithmetic.

Every tool runs in a process of its own; `bnfold.check` judges each result on three samples. The light models of the
onnx package, whose weights are constants, get random ones (seeded), or else nothing could differ.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import click
import numpy as np
import onnx
from onnx import numpy_helper

import bnfold
from bnfold.errors import BnfoldError
from bnfold.graph import Graph
from bnfold.sources import is_source

SECONDS = 120  # for one tool on one model
TOOLS = {
    "bnfold": "import bnfold; bnfold.fold(source).save(target)",
    "onnxruntime": """
import onnxruntime
options = onnxruntime.SessionOptions()
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
options.optimized_model_filepath, options.log_severity_level = target, 4
if how:
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", how["location"])
onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])""",
    "onnxslim": "import onnx, onnxslim; onnx.save(onnxslim.slim(onnx.load(source)), target, **how)",
    "onnxsim": "import onnx, onnxsim; onnx.save(onnxsim.simplify(onnx.load(source))[0], target, **how)",
    "onnxscript": """
import onnx
from onnxscript import ir, optimizer
from onnxscript.rewriter import rewrite
from onnxscript.rewriter.rules.common import _fuse_batchnorm as rules
model = ir.from_proto(onnx.load(source))
optimizer.optimize(model)
model = rewrite(model, pattern_rewrite_rules=rules.rules)
onnx.save(ir.to_proto(model), target, **how)""",
    "onnxoptimizer": """
import onnx, onnxoptimizer
passes = ["fuse_bn_into_conv", "extract_constant_to_initializer", "eliminate_unused_initializer"]
onnx.save(onnxoptimizer.optimize(onnx.load(source), passes), target, **how)""",
}


def program(code: str, source: Path, target: Path, *, external: bool = False) -> str:
    """`code` of TOOLS with what it reads. external: the weights go to a file of their own, as a large model's must."""
    how = {"save_as_external_data": True, "location": f"{target.name}.data"} if external else {}
    return f"source, target, how = {str(source)!r}, {str(target)!r}, {how!r}\n{code}"


def light_models(folder: Path) -> list[Path]:
    """The light models of the onnx package with random weights: variances and scales above 0."""
    made: list[Path] = []
    light = Path(onnx.__file__).parent / "backend/test/data/light"
    for path in sorted(light.glob("*.onnx")):
        model = onnx.load(path)
        random = np.random.default_rng(0)
        held = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        norms = {name for n in model.graph.node if n.op_type == "BatchNormalization" for name in n.input[1:]}
        kept: list[onnx.NodeProto] = []
        for node in model.graph.node:
            if node.op_type != "ConstantOfShape":
                kept.append(node)
                continue
            shape = [int(n) for n in held[node.input[0]]]
            fan = max(1, int(np.prod(shape[1:])))
            drawn = random.uniform(0.5, 1.5, shape) if node.output[0] in norms else random.normal(size=shape) / fan**0.5
            model.graph.initializer.append(numpy_helper.from_array(drawn.astype(np.float32), node.output[0]))
        del model.graph.node[:]
        model.graph.node.extend(kept)
        made.append(folder / path.name)
        onnx.save(model, made[-1])
    return made


def counts(model: onnx.ModelProto) -> tuple[int, int]:
    """BatchNormalizations, and floating Mul, Add, Sub, Div with a constant that fits into the value.

    What is computable from constants does not count, nor an Add that is the bias of a MatMul, Gather or Einsum.
    """
    opsets = {"" if i.domain == "ai.onnx" else i.domain: i.version for i in model.opset_import}
    graph = Graph(model.graph, opsets)
    found: Counter[bool] = Counter()
    for node in graph.nodes:
        if node.domain or not node.outputs or graph.is_constant(node.outputs[0]):
            continue
        found[node.op_type == "BatchNormalization"] += is_source(graph, node)
    return found[True], found[False]


def left_by(code: str, source: Path, target: Path) -> str:
    """A cell of the table: "BNs/arithmetic", and what is wrong with the result."""
    script = program(code, source, target)
    try:
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return "too slow"
    if done.returncode or not target.exists():
        return "failed"
    model = onnx.load(target)
    cell = "/".join(map(str, counts(model)))
    try:
        verdict = bnfold.check(source, target, samples=3)
    except BnfoldError:
        return f"{cell} unreadable"
    return cell if verdict or verdict.verdict.name == "DEGRADED" else f"{cell} {verdict.verdict.name.lower()}"


@click.command("models")
@click.argument("folders", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option("--tool", "tools", multiple=True, type=click.Choice(list(TOOLS)), help="Only this tool; repeatable.")
@click.option("--light/--no-light", default=True, help="The light models of the onnx package too.")
def models_command(folders: tuple[Path, ...], tools: tuple[str, ...], light: bool) -> None:
    """BatchNormalizations/constant arithmetic before and after each tool, for every .onnx under FOLDERS."""
    names = tools or tuple(TOOLS)
    with tempfile.TemporaryDirectory() as made:
        work = Path(made)
        paths = [path for folder in folders for path in sorted(folder.rglob("*.onnx")) if ".folded" not in path.name]
        paths += light_models(work) if light else []
        click.echo(f"| model | before | {' | '.join(names)} | what bnfold leaves |")
        click.echo("|---|---|" + "---|" * (len(names) + 1))
        for path in paths:
            label = path.parent.name if path.stem.lower() in ("model", "quant_model") else path.stem
            result = bnfold.fold(path)
            reasons = Counter(k.reason for k in result.report.unfolded)
            cells = [left_by(TOOLS[name], path, work / f"{name}.out.onnx") for name in names]
            for name in names:
                (work / f"{name}.out.onnx").unlink(missing_ok=True)
            why = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
            before = "/".join(map(str, counts(result.source.model)))
            click.echo(f"| {label} | {before} | {' | '.join(cells)} | {why} |")
