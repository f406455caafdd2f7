"""From a model to its fold: read it, hand each graph to the loop, write what changed, and say what was done.

The way of the data: files.load -> sources -> search -> rewrite -> result; the check and the saving come after.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import onnx

from . import receipt, rewrite, sources
from .errors import BnfoldError, MalformedModel
from .files import ModelFile, load
from .functions import inlined
from .graph import Graph, Node, overridable_inputs
from .loop import Folder
from .reasons import Reason, Refusal
from .report import FoldReport, Kept
from .result import FoldResult

__all__ = ["FoldResult", "fold", "fold_leaving"]

_FREE_GROWTH = 16 << 20  # bytes that clones and grown biases may always add


@contextmanager
def _undisturbed() -> Generator[None]:
    """Without a collector: a fold makes many small objects that live on, and looking for cycles among them is a fifth
    of its time. Without numpy's warnings: what overflows or is no number is looked for where it matters.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        with np.errstate(all="ignore"):
            yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _contradictions_told(source: ModelFile, original: onnx.ModelProto) -> Generator[None]:
    """Turn what goes wrong inside because the model contradicts itself into a sentence that says where."""
    try:
        yield
    except (BnfoldError, MemoryError):
        raise
    except Exception as error:  # a bug here, or attributes and shapes that cannot go together
        from .files.contradiction import contradiction

        why = contradiction(original)
        if why is None:
            raise
        where = "The model" if source.path is None else str(source.path)
        raise MalformedModel(f"{where} contradicts itself: {why.rstrip('.')}.") from error


def fold(
    model: str | os.PathLike[str] | onnx.ModelProto,
    *,
    skip: Sequence[str] = (),
    only: Sequence[str] = (),
    freeze_inputs: bool = False,
    keep_inputs: bool = False,
    max_growth: int | None = None,
    aggressive: bool = False,
    partial: bool = False,
) -> FoldResult:
    """Fold every inference-time BatchNormalization of a model that can be folded exactly. Nothing is written.

    model: a path, or a ModelProto, which is not modified.
    skip, only: glob patterns of node names; a skipped node is left as it is, and `only` leaves all others.
    freeze_inputs: initializers that are also graph inputs are constants, whoever may want to replace them.
    keep_inputs: they are not, even where listing them all is only the exporter's habit.
    max_growth: bytes that clones and grown biases may add; None: the larger of 10 % of the model and 16 MiB.
    aggressive: also where the runtime loses a fusion of its own (Relu before a padded Conv becomes Max).
    partial: where a scale can go and the shift cannot, leave an Add in place of the BatchNormalization.

    A source in front of an op that rounds (Cast to integers, Floor, QuantizeLinear ...) is folded with a note: `check`
    passes it only if the integers there stay the same, bit for bit.

    Raises UnreadableModel, MalformedModel, UnsupportedModel; UsageError for a pattern that matches no source.
    """
    return fold_leaving(
        model,
        {},
        skip=skip,
        only=only,
        freeze_inputs=freeze_inputs,
        keep_inputs=keep_inputs,
        max_growth=max_growth,
        aggressive=aggressive,
        partial=partial,
    )


@_undisturbed()
def fold_leaving(
    model: str | os.PathLike[str] | onnx.ModelProto,
    leave: Mapping[str, str] | None,
    *,
    skip: Sequence[str] = (),
    only: Sequence[str] = (),
    freeze_inputs: bool = False,
    keep_inputs: bool = False,
    max_growth: int | Callable[[int], int] | None = None,
    aggressive: bool = False,
    partial: bool = False,
    late: bool = False,
    read: Callable[[Graph, Node], sources.Source | Refusal] = sources.read,
) -> FoldResult:
    """`fold`, but sources in front of the rounding ops named in `leave` stay, for the reason given there (None: all).

    max_growth: may also be a function of the model's size in bytes.
    late: whether large weights fit their type is found out when they are written: `save` raises OutOfRange where one
        may not, and the model has to be folded again without `late`.
    read: what a source's map is; the check's faults.py reads one wrongly on purpose.
    """
    source = load(model)
    original = onnx.ModelProto()
    original.CopyFrom(source.model)
    with _contradictions_told(source, original):
        if max_growth is None:
            limit = max(_FREE_GROWTH, source.total_size // 10)
        else:
            limit = max_growth if isinstance(max_growth, int) else max_growth(source.total_size)
        overridable, frozen = overridable_inputs(source.model, freeze_inputs=freeze_inputs, keep_inputs=keep_inputs)
        opsets = {"" if i.domain == "ai.onnx" else i.domain: i.version for i in source.model.opset_import}
        model, stored = source.model, original
        if model.functions and (flat := inlined(model)) is not None:
            model, stored = flat, onnx.ModelProto()
            stored.CopyFrom(flat)
        main = Graph(model.graph, opsets, source.directory, stored=stored.graph, overridable=overridable, late=late)
        folder = Folder(tuple(skip), tuple(only), limit, leave, aggressive=aggressive, partly=partial, read=read)
        graphs = list(main.nested())
        before = sum(g.size() for g in graphs)
        runs = [run for graph in graphs for run in folder.runs(graph)]
        folder.check_patterns()
        records = {graph: folder.fold(graph) for graph in graphs}
        changed = any(graph.edited or graph.removed for graph in graphs)
        left: list[str] = []
        if changed:
            receipt.without(model)
            for graph in reversed(graphs):  # bodies before the graph that may copy the nodes which hold them
                rewrite.release(graph)
                left += rewrite.finish(graph, inputs_too=graph is main and model.ir_version < 4)
        folded = tuple(f for run in runs if (f := run.folded()) is not None)
        inside = tuple(_in_functions(model))
        kept = (*(k for run in runs for k in run.kept()), *inside)
        report = FoldReport(
            folded=folded,
            kept=kept,
            sources=len(folded) + len(kept),
            batch_normalizations=len(inside)
            + sum(1 for run in runs for n in run.nodes if n.op_type == "BatchNormalization"),
            nodes_before=before,
            nodes_after=sum(g.size() for g in graphs),
            opset=opsets.get("", 0),
            growth_bytes=folder.growth,
            notes=(
                *source.notes,
                *folder.notes,
                *_rounding_notes(folder.rounded),
                *_input_notes([name for name in left if name in frozen]),
            ),
        )
        return FoldResult(
            report,
            model,
            ModelFile(original, source.path, source.directory, source.size, external=source.external),
            changed,
            tuple(dict.fromkeys(folder.rounded.values())),
            graphs,
            [record for graph in graphs for record in records[graph]],
        )


def _rounding_notes(rounded: Mapping[str, str]) -> list[str]:
    if not rounded:
        return []
    first, *more = rounded
    many = f"{len(rounded)} folded sources ({first}, ...) stand" if more else f"{first}, which was folded, stands"
    return [f"{many} in front of an op that rounds: the check wants the same integers there, bit for bit."]


def _input_notes(left: Sequence[str]) -> list[str]:
    if not left:
        return []
    weights = f"{len(left)} folded weights left the graph's inputs ({left[0]}, ...)"
    return [f"{weights}: whoever feeds one gets an error, not a wrong answer."]


def _in_functions(model: onnx.ModelProto) -> Iterator[Kept]:
    """BatchNormalizations in the bodies of model-local functions, which stay."""
    for function in model.functions:
        for proto in function.node:
            if proto.op_type == "BatchNormalization" and proto.domain in ("", "ai.onnx"):
                node = Node(proto, 0.0)
                yield Kept(
                    (node.at,), node.op_type, Reason.UNKNOWN_OP, f"function {function.name}",
                    f"It is inside the model-local function {function.name}.",
                    "Inline it first: onnx.inliner could not, probably because it imports another opset.", (), True,
                )  # fmt: skip
