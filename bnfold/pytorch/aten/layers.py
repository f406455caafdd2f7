# torch leaves parts of its interface untyped: what comes from there is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Layers with weights: convolutions, linear layers, embeddings, recurrent layers and normalizations.

conv2d(x, W, b, stride, padding, dilation, groups)   ->   Conv(x, W, b; strides, pads, dilations, group)
"""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from ..laws import DOMAIN
from .calls import Arguments, Made, is_number, name_of, rank, rule, sizes, spread, static


@rule("conv1d.default", "conv2d.default", "conv3d.default", "convolution.default",
       "conv1d.padding", "conv2d.padding", "conv3d.padding")  # fmt: skip
def _conv(node: Node, a: Arguments) -> Made | None:
    spatial = rank(a["weight"]) - 2
    if rank(a["input"]) != spatial + 2 or spatial < 1:
        return None
    if a.get("transposed"):
        return _transposed(node, a)
    strides, dilations = spread(a["stride"], spatial), spread(a["dilation"], spatial)
    if strides is None or dilations is None or not static(sizes(a["weight"])):
        return None
    if isinstance(a["padding"], str):
        total = [0] * spatial
        if a["padding"] == "same":
            total = [d * (k - 1) for d, k in zip(dilations, sizes(a["weight"])[2:], strict=True)]
        before = [t // 2 for t in total]
        pads = [*before, *(t - b for t, b in zip(total, before, strict=True))]
    else:
        each = spread(a["padding"], spatial)
        if each is None:
            return None
        pads = each * 2
    attributes = {"strides": strides, "pads": pads, "dilations": dilations, "group": a["groups"]}
    return Made("Conv", [a["input"], a["weight"], a["bias"]], attributes)


@rule("conv_transpose1d.default", "conv_transpose2d.input", "conv_transpose3d.input")
def _transposed(node: Node, a: Arguments) -> Made | None:
    spatial = rank(a["weight"]) - 2
    found = [spread(a[name], spatial) for name in ("stride", "padding", "output_padding", "dilation")]
    if rank(a["input"]) != spatial + 2 or any(f is None for f in found):
        return None
    strides, pads, extra, dilations = (list(f or ()) for f in found)
    attributes: dict[str, Any] = {
        "strides": strides, "pads": pads * 2, "dilations": dilations, "group": a["groups"],
    }  # fmt: skip
    if any(extra):
        attributes["output_padding"] = extra
    return Made("ConvTranspose", [a["input"], a["weight"], a["bias"]], attributes)


@rule("linear.default")
def _linear(node: Node, a: Arguments) -> Made | None:
    if rank(a["input"]) < 1 or rank(a["weight"]) != 2:
        return None
    return Made("linear", [a["input"], a["weight"], a["bias"]], domain=DOMAIN)


@rule("addmm.default")
def _addmm(node: Node, a: Arguments) -> Made | None:
    if not (is_number(a["alpha"]) and is_number(a["beta"])):
        return None
    exact = {"alpha": float(a["alpha"]), "beta": float(a["beta"])}
    return Made("Gemm", [a["mat1"], a["mat2"], a["self"]], exact=exact)


@rule("mm.default", "matmul.default", "bmm.default")
def _matmul(node: Node, a: Arguments) -> Made | None:
    return Made("MatMul", [a["self"], a["other"] if "other" in a else a["mat2"]])


@rule("embedding.default")
def _embedding(node: Node, a: Arguments) -> Made | None:
    return Made("Gather", [a["weight"], a["indices"]], {"axis": 0})


@rule("lstm.input", "gru.input", "rnn_tanh.input", "rnn_relu.input")
def _recurrent(node: Node, a: Arguments) -> Made | None:
    if a["train"] and a["dropout"]:
        return None
    states = a["hx"] if isinstance(a["hx"], list | tuple) else [a["hx"]]
    directions, biased = (2 if a["bidirectional"] else 1), bool(a["has_biases"])
    held = 4 if biased else 2
    params = list(a["params"])
    if len(params) != held * directions * a["num_layers"]:
        return None  # with proj_size there are more
    first: list[Any] = []
    rest: list[Any] = []
    for k, param in enumerate(params):
        mine = k < held * directions and (k % held == 0 or (biased and k % held == 2))
        (first if mine else rest).append(param)
    attributes = {"first": 1 + len(states), "directions": directions, "biased": int(biased)}
    kind = name_of(node).partition(".")[0]
    return Made(kind, [a["input"], *states, *first, *rest], attributes, domain=DOMAIN)


BATCH_NORMS = (
    "batch_norm.default", "_native_batch_norm_legit_no_training.default", "_native_batch_norm_legit.default",
    "native_batch_norm.default", "cudnn_batch_norm.default", "_batch_norm_no_update.default",
)  # fmt: skip


@rule(*BATCH_NORMS)
def _batch_norm(node: Node, a: Arguments) -> Made | None:
    eps = a["eps"] if "eps" in a else a["epsilon"]
    training = bool(a.get("training", False)) or a["running_mean"] is None or a["running_var"] is None
    operands = [a["input"], a["weight"], a["bias"], a["running_mean"], a["running_var"]]
    return Made("BatchNormalization", operands, {"training_mode": int(training), "epsilon": float(eps)})


@rule("layer_norm.default", "native_layer_norm.default")
def _layer_norm(node: Node, a: Arguments) -> Made | None:
    shape = a["normalized_shape"]
    if a["weight"] is None or not static(shape):
        return None
    return Made("LayerNormalization", [a["input"], a["weight"], a["bias"]], {"axis": -len(shape)})


@rule("group_norm.default")
def _group_norm(node: Node, a: Arguments) -> Made | None:
    if a["weight"] is None or a["bias"] is None:
        return None
    return Made("GroupNormalization", [a["input"], a["weight"], a["bias"]], {"num_groups": a["num_groups"]})


@rule("instance_norm.default")
def _instance_norm(node: Node, a: Arguments) -> Made | None:
    if a["weight"] is None or a["bias"] is None or not a["use_input_stats"]:
        return None
    return Made("InstanceNormalization", [a["input"], a["weight"], a["bias"]])
