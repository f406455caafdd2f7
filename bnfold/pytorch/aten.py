# torch leaves parts of its interface untyped: what comes from there is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""ATen ops as ONNX ops of the same meaning, one node for one node; an op that has none keeps its own name.

conv2d(x, W, b, stride, padding, dilation, groups)   ->   Conv(x, W, b; strides, pads, dilations, group)
An op, or a way to call it, that is not in the table becomes a node of a domain that no law knows: UNKNOWN_OP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch.fx import Node

from .laws import DOMAIN, SUM

Arguments: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Number:
    """A number that stands in the code, as an operand."""

    value: float


@dataclass(frozen=True, slots=True)
class Ints:
    """A list of sizes or axes, as an operand; `scalar`: of rank 0."""

    values: tuple[int, ...]
    scalar: bool = False


@dataclass(frozen=True, slots=True)
class Shaped:
    """A constant, read in another shape."""

    node: Node
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Made:
    """An ONNX node: operands are values, constants, or None. `exact`: attributes that ONNX would round to float32."""

    kind: str
    operands: Sequence[Node | Number | Ints | Shaped | None]
    attributes: dict[str, Any] = field(default_factory=dict[str, Any])
    exact: dict[str, float] = field(default_factory=dict[str, float])
    domain: str = ""


Rule: TypeAlias = Callable[[Node, Arguments], "Made | None"]
RULES: dict[str, Rule] = {}


def made(node: Node) -> Made | None:
    """The ONNX node of an ATen call; None where no op has this meaning."""
    rule = RULES.get(name_of(node))
    if rule is None:
        return None
    given = arguments(node)
    return None if given is None else rule(node, given)


def name_of(node: Node) -> str:
    """The op's name and overload, "relu.default"; what writes into its first argument counts as what does not."""
    name = str(node.target).removeprefix("aten.")
    base, _, overload = name.partition(".")
    return f"{base.removesuffix('_')}.{overload}" if writes(node) else name


def writes(node: Node) -> bool:
    """Whether the call changes an argument of its own."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def arguments(node: Node) -> dict[str, Any] | None:
    """All the arguments of a call by their name in the schema, defaults included."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return None
    found: dict[str, Any] = {}
    for position, argument in enumerate(schema.arguments):
        if position < len(node.args):
            found[argument.name] = node.args[position]
        elif argument.name in node.kwargs:
            found[argument.name] = node.kwargs[argument.name]
        else:
            found[argument.name] = argument.default_value if argument.has_default_value() else None
    return found


def rank(node: Any) -> int:
    """The rank of a tensor value; -1 where it is none."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    return value.dim() if isinstance(value, torch.Tensor) else -1


def sizes(node: Node) -> tuple[Any, ...]:
    return tuple(node.meta["val"].shape)


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def enter(rule: Rule) -> Rule:
        for name in names:
            RULES[name] = rule
        return rule

    return enter


def _spread(value: Any, count: int) -> list[int] | None:
    """A number or a list for `count` axes; None if it holds a size that is not known."""
    items = list(value) if isinstance(value, list | tuple) else [value]
    if not all(isinstance(i, int) for i in items):
        return None
    return items * count if len(items) == 1 else items


def _static(values: Any) -> bool:
    return isinstance(values, list | tuple) and all(isinstance(i, int) for i in values)


# -- linear ops ----------------------------------------------------------------------------------------------------


@_rule("conv1d.default", "conv2d.default", "conv3d.default", "convolution.default",
       "conv1d.padding", "conv2d.padding", "conv3d.padding")  # fmt: skip
def _conv(node: Node, a: Arguments) -> Made | None:
    spatial = rank(a["weight"]) - 2
    if rank(a["input"]) != spatial + 2 or spatial < 1:
        return None
    if a.get("transposed"):
        return _transposed(node, a)
    strides, dilations = _spread(a["stride"], spatial), _spread(a["dilation"], spatial)
    if strides is None or dilations is None or not _static(sizes(a["weight"])):
        return None
    if isinstance(a["padding"], str):
        total = [0] * spatial
        if a["padding"] == "same":
            total = [d * (k - 1) for d, k in zip(dilations, sizes(a["weight"])[2:], strict=True)]
        before = [t // 2 for t in total]
        pads = [*before, *(t - b for t, b in zip(total, before, strict=True))]
    else:
        each = _spread(a["padding"], spatial)
        if each is None:
            return None
        pads = each * 2
    attributes = {"strides": strides, "pads": pads, "dilations": dilations, "group": a["groups"]}
    return Made("Conv", [a["input"], a["weight"], a["bias"]], attributes)


@_rule("conv_transpose1d.default", "conv_transpose2d.input", "conv_transpose3d.input")
def _transposed(node: Node, a: Arguments) -> Made | None:
    spatial = rank(a["weight"]) - 2
    found = [_spread(a[name], spatial) for name in ("stride", "padding", "output_padding", "dilation")]
    if rank(a["input"]) != spatial + 2 or any(f is None for f in found):
        return None
    strides, pads, extra, dilations = (list(f or ()) for f in found)
    attributes: dict[str, Any] = {
        "strides": strides, "pads": pads * 2, "dilations": dilations, "group": a["groups"],
    }  # fmt: skip
    if any(extra):
        attributes["output_padding"] = extra
    return Made("ConvTranspose", [a["input"], a["weight"], a["bias"]], attributes)


@_rule("linear.default")
def _linear(node: Node, a: Arguments) -> Made | None:
    if rank(a["input"]) < 1 or rank(a["weight"]) != 2:
        return None
    return Made("linear", [a["input"], a["weight"], a["bias"]], domain=DOMAIN)


@_rule("addmm.default")
def _addmm(node: Node, a: Arguments) -> Made | None:
    if not (_is_number(a["alpha"]) and _is_number(a["beta"])):
        return None
    exact = {"alpha": float(a["alpha"]), "beta": float(a["beta"])}
    return Made("Gemm", [a["mat1"], a["mat2"], a["self"]], exact=exact)


@_rule("mm.default", "matmul.default", "bmm.default")
def _matmul(node: Node, a: Arguments) -> Made | None:
    return Made("MatMul", [a["self"], a["other"] if "other" in a else a["mat2"]])


@_rule("embedding.default")
def _embedding(node: Node, a: Arguments) -> Made | None:
    return Made("Gather", [a["weight"], a["indices"]], {"axis": 0})


@_rule("lstm.input", "gru.input", "rnn_tanh.input", "rnn_relu.input")
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


# -- normalizations ------------------------------------------------------------------------------------------------


@_rule("batch_norm.default", "_native_batch_norm_legit_no_training.default", "_native_batch_norm_legit.default",
       "native_batch_norm.default", "cudnn_batch_norm.default", "_batch_norm_no_update.default")  # fmt: skip
def _batch_norm(node: Node, a: Arguments) -> Made | None:
    eps = a["eps"] if "eps" in a else a["epsilon"]
    training = bool(a.get("training", False)) or a["running_mean"] is None or a["running_var"] is None
    operands = [a["input"], a["weight"], a["bias"], a["running_mean"], a["running_var"]]
    return Made("BatchNormalization", operands, {"training_mode": int(training), "epsilon": float(eps)})


@_rule("layer_norm.default", "native_layer_norm.default")
def _layer_norm(node: Node, a: Arguments) -> Made | None:
    shape = a["normalized_shape"]
    if a["weight"] is None or not _static(shape):
        return None
    return Made("LayerNormalization", [a["input"], a["weight"], a["bias"]], {"axis": -len(shape)})


@_rule("group_norm.default")
def _group_norm(node: Node, a: Arguments) -> Made | None:
    if a["weight"] is None or a["bias"] is None:
        return None
    return Made("GroupNormalization", [a["input"], a["weight"], a["bias"]], {"num_groups": a["num_groups"]})


@_rule("instance_norm.default")
def _instance_norm(node: Node, a: Arguments) -> Made | None:
    if a["weight"] is None or a["bias"] is None or not a["use_input_stats"]:
        return None
    return Made("InstanceNormalization", [a["input"], a["weight"], a["bias"]])


# -- arithmetic ----------------------------------------------------------------------------------------------------


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _operand(value: Any) -> Node | Number | None:
    if isinstance(value, Node):
        return value if rank(value) >= 0 else None
    return Number(float(value)) if _is_number(value) else None


def _arithmetic(kind: str, node: Node, first: Any, second: Any) -> Made | None:
    operands = [_operand(first), _operand(second)]
    floating = isinstance(node.meta.get("val"), torch.Tensor) and node.meta["val"].dtype.is_floating_point
    return Made(kind, operands) if floating and all(o is not None for o in operands) else None


def _alpha(a: Arguments) -> bool:
    return a.get("alpha", 1) == 1 and a.get("rounding_mode") is None


for _kind, _names in (
    ("Add", "add.Tensor add.Scalar"),
    ("Sub", "sub.Tensor sub.Scalar"),
    ("Mul", "mul.Tensor mul.Scalar"),
    ("Div", "div.Tensor div.Scalar div.Tensor_mode"),
):
    _rule(*_names.split())(
        lambda node, a, kind=_kind: _arithmetic(kind, node, a["self"], a["other"]) if _alpha(a) else None
    )
_rule("rsub.Scalar", "rsub.Tensor")(
    lambda node, a: _arithmetic("Sub", node, a["other"], a["self"]) if _alpha(a) else None
)
_rule("neg.default")(lambda node, a: _arithmetic("Mul", node, a["self"], -1.0))
_rule("maximum.default", "max.other")(lambda node, a: Made("Max", [a["self"], a["other"]]))
_rule("minimum.default", "min.other")(lambda node, a: Made("Min", [a["self"], a["other"]]))
_rule("where.self")(lambda node, a: Made("Where", [a["condition"], a["self"], a["other"]]))

for _kind, _names in (
    ("Relu", "relu.default"), ("Abs", "abs.default"), ("Sign", "sign.default"), ("Sigmoid", "sigmoid.default"),
    ("Tanh", "tanh.default"), ("Selu", "selu.default"), ("Elu", "elu.default"), ("Celu", "celu.default"),
    ("Gelu", "gelu.default"), ("Swish", "silu.default"), ("HardSwish", "hardswish.default"), ("Mish", "mish.default"),
    ("Softplus", "softplus.default"), ("Softsign", "softsign.default"), ("Exp", "exp.default"),
    ("Log", "log.default"), ("Sqrt", "sqrt.default"), ("Erf", "erf.default"), ("Sin", "sin.default"),
    ("Cos", "cos.default"), ("Floor", "floor.default"), ("Ceil", "ceil.default"), ("Round", "round.default"),
    ("Reciprocal", "reciprocal.default"),
):  # fmt: skip
    _rule(*_names.split())(lambda node, a, kind=_kind: Made(kind, [a["self"] if "self" in a else a["input"]]))


@_rule("pow.Tensor_Scalar")
def _pow(node: Node, a: Arguments) -> Made | None:
    return Made("Pow", [a["self"], Number(float(a["exponent"]))]) if _is_number(a["exponent"]) else None


@_rule("leaky_relu.default")
def _leaky(node: Node, a: Arguments) -> Made | None:
    slope = a["negative_slope"]
    return Made("LeakyRelu", [a["self"]], exact={"alpha": float(slope)}) if _is_number(slope) else None


@_rule("prelu.default", "_prelu_kernel.default")
def _prelu(node: Node, a: Arguments) -> Made | None:
    weight, count = a["weight"], rank(a["self"])
    if count < 2 or not isinstance(weight, Node) or not _static(sizes(weight)):
        return None
    shape = (sizes(weight)[0], *(1,) * (count - 2)) if rank(weight) == 1 else None
    if shape is None:
        return None
    return Made("PRelu", [a["self"], Shaped(weight, shape)])


@_rule("relu6.default", "hardtanh.default", "clamp.default", "clamp_min.default", "clamp_max.default")
def _clip(node: Node, a: Arguments) -> Made | None:
    if name_of(node) == "relu6.default":
        low, high = 0.0, 6.0
    else:
        low = a.get("min_val", a.get("min"))
        high = a.get("max_val", a.get("max"))
    if any(bound is not None and not _is_number(bound) for bound in (low, high)):
        return None
    return Made("Clip", [a["self"], *(None if b is None else Number(float(b)) for b in (low, high))])


@_rule("softmax.int", "_softmax.default")
def _softmax(node: Node, a: Arguments) -> Made | None:
    return Made("Softmax", [a["self"]], {"axis": a["dim"]}) if a.get("dtype") is None else None


@_rule("log_softmax.int", "_log_softmax.default")
def _log_softmax(node: Node, a: Arguments) -> Made | None:
    return Made("LogSoftmax", [a["self"]], {"axis": a["dim"]}) if a.get("dtype") is None else None


@_rule("argmax.default", "argmin.default")
def _argmax(node: Node, a: Arguments) -> Made | None:
    if a["dim"] is None:
        return None
    kind = "ArgMax" if "argmax" in name_of(node) else "ArgMin"
    return Made(kind, [a["self"]], {"axis": a["dim"], "keepdims": int(a["keepdim"])})


# -- pools and reductions ------------------------------------------------------------------------------------------


@_rule("max_pool1d.default", "max_pool2d.default", "max_pool3d.default",
       "max_pool2d_with_indices.default", "max_pool3d_with_indices.default")  # fmt: skip
def _max_pool(node: Node, a: Arguments) -> Made | None:
    return _window("MaxPool", node, a, {"dilations": "dilation"})


@_rule("avg_pool1d.default", "avg_pool2d.default", "avg_pool3d.default")
def _avg_pool(node: Node, a: Arguments) -> Made | None:
    if a.get("divisor_override") is not None:
        return None
    found = _window("AveragePool", node, a, {})
    if found is not None:
        found.attributes["count_include_pad"] = int(a["count_include_pad"])
    return found


def _window(kind: str, node: Node, a: Arguments, more: Mapping[str, str]) -> Made | None:
    spatial = int(name_of(node).split("pool")[1][0])
    if rank(a["self"]) != spatial + 2:
        return None
    stride = a["stride"] or a["kernel_size"]
    found = {
        "kernel_shape": _spread(a["kernel_size"], spatial),
        "strides": _spread(stride, spatial),
        "pads": _spread(a["padding"], spatial),
        **{name: _spread(a[argument], spatial) for name, argument in more.items()},
    }
    if any(value is None for value in found.values()):
        return None
    found["pads"] = (found["pads"] or []) * 2
    return Made(kind, [a["self"]], {**found, "ceil_mode": int(a["ceil_mode"])})


@_rule("adaptive_avg_pool1d.default", "adaptive_avg_pool2d.default", "adaptive_avg_pool3d.default",
       "_adaptive_avg_pool2d.default", "_adaptive_avg_pool3d.default")  # fmt: skip
def _adaptive_avg(node: Node, a: Arguments) -> Made | None:
    # every output is the mean of some window without padding: what matters to a map is that, not how large it is
    return _adaptive("GlobalAveragePool", node, a)


@_rule("adaptive_max_pool1d.default", "adaptive_max_pool2d.default", "adaptive_max_pool3d.default")
def _adaptive_max(node: Node, a: Arguments) -> Made | None:
    indices = [user for user in node.users if user.args[1:] == (1,) and user.users]
    return None if indices else _adaptive("GlobalMaxPool", node, a)


def _adaptive(kind: str, node: Node, a: Arguments) -> Made | None:
    spatial = int(name_of(node).split("pool")[1][0])
    return Made(kind, [a["self"]]) if rank(a["self"]) == spatial + 2 else None


def _axes(a: Arguments) -> list[int] | None:
    dims = a.get("dim")
    if dims is None or (isinstance(dims, list | tuple) and not dims):
        return list(range(rank(a["self"])))
    return _spread(dims, 1)


@_rule("mean.dim", "mean.default", "amax.default", "amin.default", "sum.dim_IntList", "sum.default")
def _reduce(node: Node, a: Arguments) -> Made | None:
    axes = _axes(a)
    if axes is None or a.get("dtype") is not None or rank(a["self"]) < 1:
        return None
    name = name_of(node).partition(".")[0]
    kind = {"mean": "ReduceMean", "amax": "ReduceMax", "amin": "ReduceMin", "sum": SUM}[name]
    domain = DOMAIN if kind == SUM else ""
    return Made(kind, [a["self"], Ints(tuple(axes))], {"keepdims": int(a.get("keepdim") or False)}, domain=domain)


# -- layout --------------------------------------------------------------------------------------------------------


@_rule("flatten.using_ints", "view.default", "reshape.default", "_unsafe_view.default", "unflatten.int",
       "view_copy.default", "_reshape_alias.default")  # fmt: skip
def _reshape(node: Node, a: Arguments) -> Made | None:
    return Made("Reshape", [a["self"], _target(sizes(a["self"]), sizes(node))])


def _target(source: Sequence[Any], wanted: Sequence[Any]) -> Ints:
    """Reshape's target: the declared shapes say the rest where more than one size is not known."""
    out = [int(d) if isinstance(d, int) else -1 for d in wanted]
    for k, d in enumerate(wanted):
        if out[k] == -1 and k < len(source) and str(source[k]) == str(d):
            out[k] = 0
    return Ints(tuple(out))


@_rule("squeeze.default", "squeeze.dim", "squeeze.dims")
def _squeeze(node: Node, a: Arguments) -> Made | None:
    shape = sizes(a["self"])
    dims = range(len(shape)) if a.get("dim") is None else _spread(a["dim"], 1) or []
    axes = [d % len(shape) for d in dims if isinstance(shape[d], int) and shape[d] == 1]
    if len(shape) - len(axes) != rank(node):
        return None
    return Made("Squeeze", [a["self"], Ints(tuple(axes))]) if axes else Made("Identity", [a["self"]])


@_rule("unsqueeze.default")
def _unsqueeze(node: Node, a: Arguments) -> Made | None:
    return Made("Unsqueeze", [a["self"], Ints((a["dim"] % rank(node),))])


@_rule("permute.default", "transpose.int", "t.default", "numpy_T.default", "swapaxes.default", "mT.default",
       "movedim.int")  # fmt: skip
def _transpose(node: Node, a: Arguments) -> Made | None:
    count, name = rank(node), name_of(node).partition(".")[0]
    perm = list(range(count))
    if name == "permute":
        perm = [int(d) % count for d in a["dims"]]
    elif name in ("t", "numpy_T"):
        perm.reverse()
    elif name == "movedim":
        perm.insert(a["destination"] % count, perm.pop(a["source"] % count))
    else:
        one, two = (-2, -1) if name == "mT" else (a.get("dim0", a.get("axis0")), a.get("dim1", a.get("axis1")))
        if count:
            perm[one % count], perm[two % count] = two % count, one % count
    return Made("Transpose", [a["self"]], {"perm": perm}) if count else Made("Identity", [a["self"]])


@_rule("dropout.default", "feature_dropout.default", "alpha_dropout.default", "feature_alpha_dropout.default")
def _dropout(node: Node, a: Arguments) -> Made | None:
    return None if a["train"] else Made("Identity", [a["input"]])


@_rule("contiguous.default", "clone.default", "alias.default", "detach.default", "lift_fresh_copy.default",
       "lift_fresh.default", "to.dtype", "to.dtype_layout", "to.device", "to.other", "_to_copy.default",
       "type_as.default", "view_as.default", "expand_as.default", "positive.default")  # fmt: skip
def _same(node: Node, a: Arguments) -> Made | None:
    source = a["self"] if "self" in a else a["x"]
    before, after = source.meta["val"], node.meta["val"]
    if before.dtype == after.dtype:
        return Made("Identity", [source]) if str(before.shape) == str(after.shape) else None
    from .tensors import TYPES

    return Made("Cast", [source], {"to": TYPES[after.dtype]}) if after.dtype in TYPES else None


@_rule("cat.default", "concat.default", "concatenate.default")
def _cat(node: Node, a: Arguments) -> Made | None:
    parts = list(a["tensors"])
    if any(rank(part) != rank(node) for part in parts):
        return None  # an old habit of cat: an empty tensor of rank 1 may be among them
    return Made("Concat", parts, {"axis": a["dim"]})


@_rule("split.Tensor", "split_with_sizes.default", "split.sizes", "chunk.default")
def _split(node: Node, a: Arguments) -> Made | None:
    axis = a["dim"] % rank(a["self"])
    lengths = [part.shape[axis] for part in node.meta["val"]]
    if not _static(lengths):
        return None
    return Made("Split", [a["self"], Ints(tuple(lengths))], {"axis": axis})


@_rule("slice.Tensor")
def _slice(node: Node, a: Arguments) -> Made | None:
    start, end, step = a["start"] or 0, a["end"], a["step"]
    end = 2**63 - 1 if end is None else end
    if not _static([start, end, step]):
        return None
    if str(sizes(a["self"])) == str(sizes(node)) and start == 0 and step == 1:
        return Made("Identity", [a["self"]])
    return Made("Slice", [a["self"], Ints((start,)), Ints((end,)), Ints((a["dim"],)), Ints((step,))])


@_rule("select.int")
def _select(node: Node, a: Arguments) -> Made | None:
    if not isinstance(a["index"], int):
        return None
    return Made("Gather", [a["self"], Ints((a["index"],), scalar=True)], {"axis": a["dim"]})


@_rule("index_select.default")
def _index_select(node: Node, a: Arguments) -> Made | None:
    return Made("Gather", [a["self"], a["index"]], {"axis": a["dim"]}) if rank(a["index"]) == 1 else None


@_rule("pixel_shuffle.default")
def _pixel_shuffle(node: Node, a: Arguments) -> Made | None:
    if rank(a["self"]) != 4:
        return None
    return Made("DepthToSpace", [a["self"]], {"blocksize": a["upscale_factor"], "mode": "CRD"})


@_rule("expand.default")
def _expand(node: Node, a: Arguments) -> Made | None:
    return Made("Expand", [a["self"], Ints(sizes(node))]) if _static(sizes(node)) else None


@_rule("repeat.default")
def _repeat(node: Node, a: Arguments) -> Made | None:
    repeats = a["repeats"]
    return (
        Made("Tile", [a["self"], Ints(tuple(repeats))])
        if _static(repeats) and len(repeats) == rank(a["self"])
        else None
    )


@_rule("upsample_nearest1d.vec", "upsample_nearest2d.vec", "upsample_nearest3d.vec", "upsample_linear1d.vec",
       "upsample_bilinear2d.vec", "upsample_trilinear3d.vec", "upsample_bicubic2d.vec", "upsample_nearest2d.default",
       "upsample_bilinear2d.default")  # fmt: skip
def _upsample(node: Node, a: Arguments) -> Made | None:
    # every output is a mean of inputs with weights that add up to 1: how they are chosen makes no difference to a map
    before, after = sizes(a["input"] if "input" in a else a["self"]), sizes(node)
    if not (_static(before[2:]) and _static(after[2:])):
        return None
    known = [int(d) if isinstance(d, int) else 1 for d in after[2:]]
    operands = [a["input"] if "input" in a else a["self"], None, None, Ints(tuple(known))]
    return Made("Resize", operands, {"axes": list(range(2, len(after))), "mode": "nearest"})


@_rule("pad.default", "constant_pad_nd.default", "reflection_pad1d.default", "reflection_pad2d.default",
       "replication_pad1d.default", "replication_pad2d.default")  # fmt: skip
def _pad(node: Node, a: Arguments) -> Made | None:
    name = name_of(node).partition(".")[0]
    amounts = a["pad"] if "pad" in a else a["padding"]
    mode = a.get("mode") or (
        "constant" if name.startswith("constant") else name.split("_")[0].replace("reflection", "reflect")
    )
    modes = {
        "constant": "constant",
        "reflect": "reflect",
        "replicate": "edge",
        "replication": "edge",
        "circular": "wrap",
    }
    value = a.get("value") or 0.0
    count = rank(a["self"])
    if not _static(amounts) or mode not in modes or not _is_number(value):
        return None
    begins, ends = [0] * count, [0] * count
    for k in range(len(amounts) // 2):
        begins[count - 1 - k], ends[count - 1 - k] = amounts[2 * k], amounts[2 * k + 1]
    operands = [a["self"], Ints(tuple(begins + ends)), Number(float(value)) if modes[mode] == "constant" else None]
    return Made("Pad", operands, {"mode": modes[mode]})
