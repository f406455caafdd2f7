# torch leaves parts of its interface untyped: what comes from there is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Pools, reductions and resizing.

avg_pool2d(x, k, s, p)   ->   AveragePool(x; kernel_shape, strides, pads)      mean(x, dims)   ->   ReduceMean(x, axes)
"""

from __future__ import annotations

from collections.abc import Mapping

from torch.fx import Node

from ..laws import DOMAIN, SUM
from .calls import Arguments, Ints, Made, name_of, rank, rule, sizes, spread, static


@rule("max_pool1d.default", "max_pool2d.default", "max_pool3d.default",
       "max_pool2d_with_indices.default", "max_pool3d_with_indices.default")  # fmt: skip
def _max_pool(node: Node, a: Arguments) -> Made | None:
    return _window("MaxPool", node, a, {"dilations": "dilation"})


@rule("avg_pool1d.default", "avg_pool2d.default", "avg_pool3d.default")
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
        "kernel_shape": spread(a["kernel_size"], spatial),
        "strides": spread(stride, spatial),
        "pads": spread(a["padding"], spatial),
        **{name: spread(a[argument], spatial) for name, argument in more.items()},
    }
    if any(value is None for value in found.values()):
        return None
    found["pads"] = (found["pads"] or []) * 2
    return Made(kind, [a["self"]], {**found, "ceil_mode": int(a["ceil_mode"])})


@rule("adaptive_avg_pool1d.default", "adaptive_avg_pool2d.default", "adaptive_avg_pool3d.default",
       "_adaptive_avg_pool2d.default", "_adaptive_avg_pool3d.default")  # fmt: skip
def _adaptive_avg(node: Node, a: Arguments) -> Made | None:
    # every output is the mean of some window without padding: what matters to a map is that, not how large it is
    return _adaptive("GlobalAveragePool", node, a)


@rule("adaptive_max_pool1d.default", "adaptive_max_pool2d.default", "adaptive_max_pool3d.default")
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
    return spread(dims, 1)


@rule("mean.dim", "mean.default", "amax.default", "amin.default", "sum.dim_IntList", "sum.default")
def _reduce(node: Node, a: Arguments) -> Made | None:
    axes = _axes(a)
    if axes is None or a.get("dtype") is not None or rank(a["self"]) < 1:
        return None
    name = name_of(node).partition(".")[0]
    kind = {"mean": "ReduceMean", "amax": "ReduceMax", "amin": "ReduceMin", "sum": SUM}[name]
    domain = DOMAIN if kind == SUM else ""
    return Made(kind, [a["self"], Ints(tuple(axes))], {"keepdims": int(a.get("keepdim") or False)}, domain=domain)


@rule("upsample_nearest1d.vec", "upsample_nearest2d.vec", "upsample_nearest3d.vec", "upsample_linear1d.vec",
       "upsample_bilinear2d.vec", "upsample_trilinear3d.vec", "upsample_bicubic2d.vec", "upsample_nearest2d.default",
       "upsample_bilinear2d.default")  # fmt: skip
def _upsample(node: Node, a: Arguments) -> Made | None:
    # every output is a mean of inputs with weights that add up to 1: how they are chosen makes no difference to a map
    before, after = sizes(a["input"] if "input" in a else a["self"]), sizes(node)
    if not (static(before[2:]) and static(after[2:])):
        return None
    known = [int(d) if isinstance(d, int) else 1 for d in after[2:]]
    operands = [a["input"] if "input" in a else a["self"], None, None, Ints(tuple(known))]
    return Made("Resize", operands, {"axes": list(range(2, len(after))), "mode": "nearest"})
