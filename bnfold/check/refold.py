"""Gate 1 for a pair of files, the second made from the first by bnfold: fold again, and compare.

what the fold left alone    must be the same: nodes, opsets, inputs, outputs, and every other tensor bit for bit
what it edited              must be the correctly rounded tensor of the certificate
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import onnx

from ..bodies import graphs_of
from ..files import ModelFile, load, materialized
from ..fold import fold_leaving
from ..weights import read
from .certificate import CertificateResult, certify
from .verdict import CheckResult, Settled, Verdict

if TYPE_CHECKING:
    from ..result import FoldResult

# the flags that change what is folded; a file does not say with which of them it was made
_FLAGS = ((False, False), (True, False), (False, True), (True, True))  # aggressive, partial


def by_certificate(
    original: str | os.PathLike[str] | onnx.ModelProto, candidate: str | os.PathLike[str] | onnx.ModelProto
) -> CheckResult:
    """The verdict of gate 1 alone; nothing is run.

    INCONCLUSIVE where no fold of `original` has the candidate's nodes, and where a fold stands in front of an op that
    rounds. Raises UnreadableModel and its kin.
    """
    other = load(candidate)
    other.model = materialized(other.model, other.directory)
    closest = ""
    for result in _folds(original):
        difference = _difference(result, other.model)
        if difference is None:
            return _certified(result, other, candidate)
        closest = closest or difference
    return _matched(original, other, closest)


def _matched(original: str | os.PathLike[str] | onnx.ModelProto, other: ModelFile, closest: str) -> CheckResult:
    """Made with other options, or by another tool: the layers of the two files are matched."""
    from .pairs import certify_pair
    from .running import same_interface

    first = load(original)
    pair = certify_pair(first, other)
    try:
        same_interface(first.model, other.model)
    except Settled as end:
        return CheckResult(end.verdict, end.sentence, pair)
    fault = pair.fault()
    if fault is not None and pair.certain:
        return CheckResult(Verdict.NOT_EQUIVALENT, fault, pair)
    if pair.decided and pair.passed and _opsets(first.model) == _opsets(other.model):
        sentence = "by gate 1 alone: every layer is the original's or rightly folded; nothing was run"
        return CheckResult(Verdict.EQUIVALENT, sentence, pair)
    sentence = f"gate 1 alone cannot tell: no fold that bnfold makes of the original is like the candidate ({closest})"
    return CheckResult(Verdict.INCONCLUSIVE, sentence, pair)


def _folds(original: str | os.PathLike[str] | onnx.ModelProto) -> Iterator[FoldResult]:
    for aggressive, partial in _FLAGS:
        result = fold_leaving(original, {}, aggressive=aggressive, partial=partial)
        yield result
        if result.rounded:  # a check may have sent these sources back
            yield fold_leaving(original, None, aggressive=aggressive, partial=partial)


def _certified(result: FoldResult, other: ModelFile, candidate: Any) -> CheckResult:
    changed = _changed_tensor(result, other)
    if changed is not None:
        name, what = changed
        sentence = f"the tensor {name} {what} than in the original, and no fold has to do with it"
        return CheckResult(Verdict.NOT_EQUIVALENT, sentence, CertificateResult(False, sentence, {"wrong": name}))
    certificate = certify(result, candidate)
    if not certificate.passed:
        return CheckResult(Verdict.NOT_EQUIVALENT, certificate.sentence.rstrip("."), certificate)
    if result.rounded:
        sentence = (
            f"gate 1 passed, but {result.rounded[0]!r} is rounded behind a fold: only running both models can tell"
        )
        return CheckResult(Verdict.INCONCLUSIVE, sentence, certificate)
    sentence = "by gate 1 alone: what was folded is correctly rounded, all else is the original's; nothing was run"
    return CheckResult(Verdict.EQUIVALENT, sentence, certificate)


def _difference(result: FoldResult, other: onnx.ModelProto) -> str | None:
    """What makes the candidate another program than the fold, in words; values of tensors aside."""
    model = result.model
    if _opsets(model) != _opsets(other):
        return "it imports other operator sets"
    if [_bytes(f) for f in model.functions] != [_bytes(f) for f in other.functions]:
        return "its model-local functions differ"
    graphs, others = list(graphs_of(model.graph)), list(graphs_of(other.graph))
    if not len(graphs) == len(others) == len(result.edited):
        return "it has other subgraphs"
    for mine, theirs in zip(graphs, others, strict=True):
        for what in ("input", "output"):
            values = ([(v.name, _bytes(v.type)) for v in getattr(graph, what)] for graph in (mine, theirs))
            if next(values) != next(values):
                return f"it has other {what}s"
        if len(mine.node) != len(theirs.node):
            return f"it has {len(theirs.node)} nodes where the fold has {len(mine.node)}"
        for ours, node in zip(mine.node, theirs.node, strict=True):
            if _node(ours) != _node(node):
                return f"its node {node.name or node.op_type} is another than the fold's {ours.name or ours.op_type}"
        if {t.name for t in mine.initializer} != {t.name for t in theirs.initializer}:
            return "it has other initializers"
        if [_bytes(t) for t in mine.sparse_initializer] != [_bytes(t) for t in theirs.sparse_initializer]:
            return "its sparse initializers differ"
    return None


def _changed_tensor(result: FoldResult, other: ModelFile) -> tuple[str, str] | None:
    """The first tensor that no fold edited and that is not the same, bit for bit: its name, and how it differs."""
    directory = result.source.directory
    pairs = zip(graphs_of(result.model.graph), graphs_of(other.model.graph), result.edited, strict=True)
    for mine, theirs, edited in pairs:
        held = {tensor.name: tensor for tensor in theirs.initializer}
        for tensor in mine.initializer:
            if tensor.name in edited:
                continue
            twin = held[tensor.name]
            if (tensor.data_type, list(tensor.dims)) != (twin.data_type, list(twin.dims)):
                return tensor.name, "has another type or shape"
            if tensor.data_type == onnx.TensorProto.STRING:
                same = list(tensor.string_data) == list(twin.string_data)
            else:
                same = read(tensor, directory).tobytes() == read(twin, other.directory).tobytes()
            if not same:
                return tensor.name, "holds other values"
    return None


def _node(proto: onnx.NodeProto) -> bytes:
    """What a node computes: without its name and documentation, and without its bodies, which are compared apart."""
    node = onnx.NodeProto()
    node.CopyFrom(proto)
    for field in ("name", "doc_string", "metadata_props"):
        node.ClearField(field)
    for attribute in node.attribute:
        for field in ("g", "graphs", "doc_string"):
            attribute.ClearField(field)
    attributes = sorted(_bytes(attribute) for attribute in node.attribute)
    node.ClearField("attribute")
    return b"\0".join([_bytes(node), *attributes])


def _opsets(model: onnx.ModelProto) -> Mapping[str, int]:
    return {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in model.opset_import}


def _bytes(proto: Any) -> bytes:
    return proto.SerializeToString(deterministic=True)
