"""`python -m benchmarks check`: tolerances beside this check, on correct folds and on folds with a known fault.

Nets of eight Conv, BatchNormalization, Relu, one a seed. A rule sees what ONNX Runtime makes of original and fold; the
check sees the files: gate 3 alone, as for a file of unknown make, and whole, with the certificate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

import bnfold
from bnfold.check.faults import FAULTS, faulty

Array = NDArray[Any]
LAYERS, CHANNELS, SIZE = 8, 8, (13, 17)
EPSILON = float(np.float32(1e-3))


def _slim(y: Array, z: Array) -> bool:
    return np.allclose(y, z, rtol=1e-3, atol=1e-4)


def _sim(y: Array, z: Array) -> bool:
    return np.allclose(y, z, rtol=1e-4, atol=1e-5)


def _polygraphy(y: Array, z: Array) -> bool:
    """Each element within 1e-5, absolutely or relatively."""
    difference = np.abs(y - z)
    return bool(((difference <= 1e-5) | (difference <= 1e-5 * np.abs(z))).all())


def _torch(y: Array, z: Array) -> bool:
    rtol = 1e-3 if y.dtype == np.float16 else 1.3e-6
    wide = y.astype(np.float64), z.astype(np.float64)
    return np.allclose(*wide, rtol=rtol, atol=1e-5)


def _cosine(y: Array, z: Array) -> bool:
    a, b = (v.astype(np.float64).ravel() for v in (y, z))
    return bool(a @ b > 0.9999 * np.linalg.norm(a) * np.linalg.norm(b))


RULES: dict[str, Callable[[Array, Array], bool]] = {
    "onnxsim: allclose 1e-4/1e-5": _sim,
    "onnxslim: allclose 1e-3/1e-4": _slim,
    "Polygraphy: abs or rel 1e-5": _polygraphy,
    "torch assert_close": _torch,
    "cosine > .9999": _cosine,
}


def net(seed: int, dtype: type, *, ill_conditioned: bool = False) -> onnx.ModelProto:
    """Eight layers. ill_conditioned: variances from 1 down to 1e-8, and means of tens of standard deviations, which
    the convolution's bias makes and the normalization takes away again."""
    random = np.random.default_rng(seed)
    layers: list[dict[str, Array]] = []
    channels = 3
    for _ in range(LAYERS):
        layer: dict[str, Array] = {
            "w": random.normal(size=(CHANNELS, channels, 3, 3)) * np.sqrt(2 / (9 * channels)),
            "gamma": random.uniform(0.6, 1.4, CHANNELS) * random.choice([-1.0, 1.0], CHANNELS),
            "beta": random.normal(0.3, 0.3, CHANNELS),
            "mean": random.normal(0.0, 0.3, CHANNELS),
            "var": random.uniform(0.1, 2, CHANNELS),
        }
        if ill_conditioned:
            layer["var"] = 10.0 ** random.uniform(-8, 0, CHANNELS)
            deviation = np.sqrt(layer["var"] + EPSILON)
            layer["w"] *= deviation.reshape(-1, 1, 1, 1)
            layer["mean"] = 100 * deviation * layer["mean"]
            layer["bias"] = layer["mean"].copy()
        layers.append(layer)
        channels = CHANNELS
    return _model(layers, dtype)


def exact_net(seed: int, dtype: type) -> onnx.ModelProto:
    """Small multiples of 1/8, and variances that make every scale one as the runtime computes it: nothing rounds."""
    random = np.random.default_rng(seed)
    layers: list[dict[str, Array]] = []
    channels = 3
    for _ in range(2):
        layers.append(
            {
                "w": random.integers(-4, 5, (CHANNELS, channels, 3, 3)) / 8,
                "gamma": np.ones(CHANNELS),
                "beta": random.integers(-8, 9, CHANNELS) / 8,
                "mean": random.integers(-8, 9, CHANNELS) / 8,
                "var": np.full(CHANNELS, 1 - EPSILON),
            }
        )
        channels = CHANNELS
    return _model(layers, dtype)


def _model(layers: list[dict[str, Array]], dtype: type) -> onnx.ModelProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes: list[onnx.NodeProto] = []
    tensors: list[onnx.TensorProto] = []
    x = "x"
    for k, layer in enumerate(layers):
        tensors += [numpy_helper.from_array(value.astype(dtype), f"{name}{k}") for name, value in layer.items()]
        norm = [f"{name}{k}" for name in ("gamma", "beta", "mean", "var")]
        operands = [x, f"w{k}", *([f"bias{k}"] if "bias" in layer else [])]
        nodes.append(helper.make_node("Conv", operands, [f"c{k}"], pads=[1] * 4))
        nodes.append(helper.make_node("BatchNormalization", [f"c{k}", *norm], [f"n{k}"], epsilon=EPSILON))
        nodes.append(helper.make_node("Relu", [f"n{k}"], [x := f"r{k}" if k + 1 < len(layers) else "y"]))
    ends = [helper.make_tensor_value_info(n, kind, [2, c, *SIZE]) for n, c in (("x", 3), (x, CHANNELS))]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _run(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> Array:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, dict(feeds))[0])


def judged(original: onnx.ModelProto, fold: Any, candidate: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[bool]:
    """Who passes `candidate`: every rule, gate 3 alone, the whole check. fold: bnfold's FoldResult of the original."""
    y, z = _run(original, feeds), _run(candidate, feeds)
    alone = bnfold.check(original, candidate, inputs=[feeds], threads=1)
    certificate = fold.certificate(candidate)
    exact = fold.exact if certificate.passed else None
    whole = bnfold.check(original, candidate, inputs=[feeds], threads=1, exact=exact, certificate=certificate)
    return [*(rule(y, z) for rule in RULES.values()), bool(alone), bool(whole)]


def cases(seed: int, dtype: type) -> list[tuple[str, list[bool] | None]]:
    """Every case of one seed, with who passes it; None where the fault would change nothing."""
    random = np.random.default_rng(seed)
    noise = {"x": random.normal(size=(2, 3, *SIZE)).astype(dtype)}
    whole = {"x": random.integers(-3, 4, (2, 3, *SIZE)).astype(dtype)}
    impulse = {"x": np.zeros((2, 3, *SIZE), dtype)}
    impulse["x"][:, :, 6, 8] = 1
    rows: list[tuple[str, list[bool] | None]] = []
    for title, original, feeds in (
        ("correct fold", net(seed, dtype), noise),
        ("correct fold, ill-conditioned", net(seed, dtype, ill_conditioned=True), noise),
        ("correct fold of an exact net, integers", exact_net(seed, dtype), whole),
        ("correct fold of an exact net, impulses", exact_net(seed, dtype), impulse),
    ):
        fold = bnfold.fold(original)
        rows.append((title, judged(original, fold, fold.model, feeds)))
    original = net(seed, dtype)
    fold = bnfold.fold(original)
    for fault in FAULTS:
        planted = next(faulty(fold, fault, 1, seed), None)
        rows.append((f"fault: {fault}", None if planted is None else judged(original, fold, planted.model, noise)))
    return rows


@click.command("check")
@click.option("--seeds", default=20, show_default=True)
@click.option("--type", "types", multiple=True, type=click.Choice(["float32", "float16"]), help="Default: both.")
def check_command(seeds: int, types: tuple[str, ...]) -> None:
    """How many of SEEDS nets pass each rule: all correct folds should, and none with a fault."""
    for name in types or ("float32", "float16"):
        table: dict[str, list[list[bool]]] = {}
        for seed in range(seeds):
            for title, passed in cases(seed, getattr(np, name)):
                table.setdefault(title, []).extend([] if passed is None else [passed])
        click.echo(f"{name}, passes out of {seeds}\n")
        click.echo(f"| case | nets | {' | '.join(RULES)} | gate 3 alone | this check |")
        click.echo("|---|---|" + "---|" * (len(RULES) + 2))
        for title, found in table.items():
            counts = np.sum(found, axis=0) if found else ["-"] * (len(RULES) + 2)
            click.echo(f"| {title} | {len(found)} | {' | '.join(map(str, counts))} |")
        click.echo("")
