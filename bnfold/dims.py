"""Arithmetic with sizes, each an int or a symbol (str): broadcasting, products, the targets of Reshape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

Dim: TypeAlias = int | str
Shape: TypeAlias = tuple[Dim, ...]


def broadcast(shapes: Sequence[Shape | None], name: str) -> Shape | None:
    """numpy's broadcasting of several shapes; None where one is unknown."""
    known = [s for s in shapes if s is not None]
    if len(known) != len(shapes) or not known:
        return None
    rank = max(map(len, known))
    out: list[Dim] = []
    for axis in range(-rank, 0):
        sizes = {s[axis] for s in known if len(s) >= -axis} - {1}
        ints = [d for d in sizes if isinstance(d, int)]
        if not sizes:
            out.append(1)
        elif ints:
            out.append(ints[0])
        else:
            out.append(next(iter(sizes)) if len(sizes) == 1 else f"?{name}.{rank + axis}")
    return tuple(out)


def factor(dims: Sequence[Dim]) -> tuple[int, Counter[str]]:
    """A product of sizes as its static part and its symbols."""
    static, symbols = 1, Counter[str]()
    for d in dims:
        if isinstance(d, int):
            static *= d
        else:
            symbols[d] += 1
    return static, symbols


def product(dims: Sequence[Dim], unknown: str) -> Dim:
    """A product of sizes as one; `unknown` where that is no size that has a name."""
    static, symbols = factor(dims)
    if not symbols:
        return static
    return next(iter(symbols)) if static == 1 and symbols.total() == 1 else unknown


def resolve(x: Shape | None, target: Sequence[Dim], allowzero: bool, name: str) -> Shape:
    """The output shape of a Reshape of `x` to `target`, with 0 (copy) and -1 (the rest) worked out where possible."""
    out: list[Dim] = []
    for i, d in enumerate(target):
        if d == 0 and not allowzero:
            out.append(x[i] if x is not None and i < len(x) else f"?{name}.{i}")
        else:
            out.append(d)
    if -1 in out:
        at = out.index(-1)
        out[at] = f"?{name}.{at}"
        if x is not None:
            whole, symbols = factor(x)
            part, others = factor(out[:at] + out[at + 1 :])
            left = symbols - others
            if part and not (others - symbols) and whole % part == 0:
                if not left:
                    out[at] = whole // part
                elif whole == part and left.total() == 1:
                    out[at] = next(iter(left))
    return tuple(out)


def matmul(shapes: Sequence[Shape | None], name: str) -> Shape | None:
    """The shape of a MatMul's output; None where an operand's is unknown."""
    a, b = shapes[0], shapes[1]
    if a is None or b is None or not a or not b:
        return None
    batch = broadcast([a[:-2], b[:-2]], name) or ()
    return (*batch, *(a[-2:-1] if len(a) > 1 else ()), *(b[-1:] if len(b) > 1 else ()))


def concat(axis: int, shapes: Sequence[Shape | None], name: str) -> Shape | None:
    """The shape of a Concat's output; None where no operand's is known."""
    known = [s for s in shapes if s is not None]
    if not known:
        return None
    rank = len(known[0])
    axis %= rank
    sizes: list[Dim] = [s[axis] if s is not None else f"?{name}" for s in shapes]
    static, symbols = factor_sum(sizes)
    out: list[Dim] = []
    for i in range(rank):
        if i == axis:
            out.append(f"?{name}.{i}" if symbols else static)
        else:
            ints = [s[i] for s in known if isinstance(s[i], int)]
            out.append(ints[0] if ints else known[0][i])
    return tuple(out)


def factor_sum(sizes: Sequence[Dim]) -> tuple[int, bool]:
    """The static part of a sum of sizes, and whether there is another part."""
    return sum(d for d in sizes if isinstance(d, int)), any(isinstance(d, str) for d in sizes)


def merged(first: Shape | None, second: Shape | None) -> Shape | None:
    """Two findings about one shape: sizes win over symbols, the file's symbols over those made here."""
    if first is None or second is None or len(first) != len(second):
        return first if first is not None else second
    out: list[Dim] = []
    for a, b in zip(first, second, strict=True):
        if isinstance(b, int) and not isinstance(a, int):
            out.append(b)
        elif isinstance(a, str) and a.startswith("?") and isinstance(b, str) and not b.startswith("?"):
            out.append(b)
        else:
            out.append(a)
    return tuple(out)
