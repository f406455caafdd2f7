# torch leaves parts of its interface untyped: what comes from there is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""What moves elements and computes nothing: shapes, axes, pieces, and padding.

view(x, sizes)   ->   Reshape(x, sizes)          permute(x, dims)   ->   Transpose(x; perm)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.fx import Node

from .calls import Arguments, Ints, Made, Number, is_number, name_of, rank, rule, sizes, spread, static


@rule("flatten.using_ints", "view.default", "reshape.default", "_unsafe_view.default", "unflatten.int",
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


@rule("squeeze.default", "squeeze.dim", "squeeze.dims")
def _squeeze(node: Node, a: Arguments) -> Made | None:
    shape = sizes(a["self"])
    dims = range(len(shape)) if a.get("dim") is None else spread(a["dim"], 1) or []
    axes = [d % len(shape) for d in dims if isinstance(shape[d], int) and shape[d] == 1]
    if len(shape) - len(axes) != rank(node):
        return None
    return Made("Squeeze", [a["self"], Ints(tuple(axes))]) if axes else Made("Identity", [a["self"]])


@rule("unsqueeze.default")
def _unsqueeze(node: Node, a: Arguments) -> Made | None:
    return Made("Unsqueeze", [a["self"], Ints((a["dim"] % rank(node),))])


@rule("permute.default", "transpose.int", "t.default", "numpy_T.default", "swapaxes.default", "mT.default",
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


@rule("cat.default", "concat.default", "concatenate.default")
def _cat(node: Node, a: Arguments) -> Made | None:
    parts = list(a["tensors"])
    if any(rank(part) != rank(node) for part in parts):
        return None  # an old habit of cat: an empty tensor of rank 1 may be among them
    return Made("Concat", parts, {"axis": a["dim"]})


@rule("split.Tensor", "split_with_sizes.default", "split.sizes", "chunk.default")
def _split(node: Node, a: Arguments) -> Made | None:
    axis = a["dim"] % rank(a["self"])
    lengths = [part.shape[axis] for part in node.meta["val"]]
    if not static(lengths):
        return None
    return Made("Split", [a["self"], Ints(tuple(lengths))], {"axis": axis})


@rule("slice.Tensor")
def _slice(node: Node, a: Arguments) -> Made | None:
    start, end, step = a["start"] or 0, a["end"], a["step"]
    end = 2**63 - 1 if end is None else end
    if not static([start, end, step]):
        return None
    if str(sizes(a["self"])) == str(sizes(node)) and start == 0 and step == 1:
        return Made("Identity", [a["self"]])
    return Made("Slice", [a["self"], Ints((start,)), Ints((end,)), Ints((a["dim"],)), Ints((step,))])


@rule("select.int")
def _select(node: Node, a: Arguments) -> Made | None:
    if not isinstance(a["index"], int):
        return None
    return Made("Gather", [a["self"], Ints((a["index"],), scalar=True)], {"axis": a["dim"]})


@rule("index_select.default")
def _index_select(node: Node, a: Arguments) -> Made | None:
    return Made("Gather", [a["self"], a["index"]], {"axis": a["dim"]}) if rank(a["index"]) == 1 else None


@rule("pixel_shuffle.default")
def _pixel_shuffle(node: Node, a: Arguments) -> Made | None:
    if rank(a["self"]) != 4:
        return None
    return Made("DepthToSpace", [a["self"]], {"blocksize": a["upscale_factor"], "mode": "CRD"})


@rule("expand.default")
def _expand(node: Node, a: Arguments) -> Made | None:
    return Made("Expand", [a["self"], Ints(sizes(node))]) if static(sizes(node)) else None


@rule("repeat.default")
def _repeat(node: Node, a: Arguments) -> Made | None:
    repeats = a["repeats"]
    return (
        Made("Tile", [a["self"], Ints(tuple(repeats))]) if static(repeats) and len(repeats) == rank(a["self"]) else None
    )


@rule("pad.default", "constant_pad_nd.default", "reflection_pad1d.default", "reflection_pad2d.default",
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
    if not static(amounts) or mode not in modes or not is_number(value):
        return None
    begins, ends = [0] * count, [0] * count
    for k in range(len(amounts) // 2):
        begins[count - 1 - k], ends[count - 1 - k] = amounts[2 * k], amounts[2 * k + 1]
    operands = [a["self"], Ints(tuple(begins + ends)), Number(float(value)) if modes[mode] == "constant" else None]
    return Made("Pad", operands, {"mode": modes[mode]})
