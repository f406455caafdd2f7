"""Gate 1 on any pair of files: what each layer may rightly hold, whoever folded, and what it does hold.

The sources that the candidate no longer has are folded again on the original; its graph and the candidate's are then
walked together. Constants that agree in graphs that agree are a proof; one that differs is named.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import BnfoldError
from ..files import ModelFile
from ..graph import overridable_inputs
from .deviation import Deviation, compare, compensable
from .layers import LayerRecord, PairCertificate, explain, label
from .matching import Match, Walk, layers, leftover
from .present import missing, repeated
from .replay import Key, Replay, open_graphs, replay
from .terms import LAYERS, Operand, Term

__all__ = ["LayerRecord", "PairCertificate", "certify_pair"]

_CLOSE = 0.2  # rms, relative: the expected state is the closest explanation of what is held
_NOTHING = (0, 0, 0)
_TURNS = 8  # sources that are tried in the other direction one by one


def certify_pair(original: ModelFile, candidate: ModelFile) -> PairCertificate:
    """Match the layers of two files and say of each whether it holds what it should, whoever made the candidate.

    Neither file is modified. It needs no data and no runtime; what cannot be read or understood is "not decided".
    """
    try:
        return _Pair(_flat(original), _flat(candidate)).certificate()
    except BnfoldError as error:
        return PairCertificate((), (str(error).rstrip("."),))


def _flat(file: ModelFile) -> ModelFile:
    """The file with its local functions inlined."""
    if not file.model.functions:
        return file
    from onnx import inliner

    try:
        return replace(file, model=inliner.inline_local_functions(file.model))
    except Exception as error:  # whatever onnx has against it: then nothing can be said about the inside
        raise BnfoldError("it has local functions that onnx cannot inline") from error


@dataclass
class _Attempt:
    """The candidate against one way to fold what it lacks."""

    gone: list[Key]
    replay: Replay
    options: dict[str, Any]
    walk: Walk
    records: dict[object, LayerRecord] = field(default_factory=dict[object, LayerRecord])
    pairs: dict[object, Match] = field(default_factory=dict[object, Match])
    absolute: Replay | None = None

    def cost(self) -> tuple[int, int, int]:
        states = [record.state for record in self.records.values()]
        return len(self.walk.breaks), states.count("wrong"), states.count("unknown")


class _Pair:
    def __init__(self, original: ModelFile, candidate: ModelFile) -> None:
        inputs = {value.name for value in candidate.model.graph.input}
        first, frozen = overridable_inputs(original.model, freeze_inputs=False, keep_inputs=False)
        second = overridable_inputs(candidate.model, freeze_inputs=False, keep_inputs=False)[0]
        if frozen:  # the exporter's habit; a fold may have taken some off the list
            second &= first
        self._file, self._overridable = original, first & inputs  # those no longer listed were frozen
        self._candidate = open_graphs(candidate, second)
        self._original = open_graphs(original, self._overridable)
        self._gone = missing(self._original, self._candidate)
        self._named = missing(self._original, self._candidate, named=True)

    def certificate(self) -> PairCertificate:
        best = self._attempt(self._gone)
        again = repeated(self._original, self._gone)
        for gone in (self._named, [key for key in self._gone if key not in again]):
            if gone != self._gone and best.cost() > _NOTHING:
                best = min(best, self._attempt(gone), key=_Attempt.cost)
        for options in ({"aggressive": True}, {"partly": True}):
            if best.walk.breaks and best.gone:
                best = min(best, self._attempt(best.gone, **options), key=_Attempt.cost)
        best = self._turned(best)
        records = self._explained(best)
        breaks = list(best.walk.breaks)
        lost = [self._original.at(self._original.sources[k]) for k in best.gone if k not in best.replay.folded]
        if breaks and lost:
            breaks.insert(0, f"{lost[0]!r} is gone from the candidate, and no exact fold of it is known")
        return PairCertificate(tuple(records), tuple(dict.fromkeys(breaks)), len(best.gone))

    def _turned(self, best: _Attempt) -> _Attempt:
        """Where a layer holds the original's weights although its sources are gone, they may have gone downward."""
        keys: list[Key] = []
        for node, record in best.records.items():
            match = best.pairs.get(node)
            if record.state == "wrong" and match is not None and record.sources and _untouched(best.replay, match):
                keys += [k for one in _nodes(match) for k in best.replay.keys.get(one, ())]
        tried: list[tuple[Key, ...]] = [(key,) for key in dict.fromkeys(keys)][:_TURNS]
        if len(tried) > 1:  # all of them first
            tried = [tuple(dict.fromkeys(keys)), *tried]
        turned: tuple[Key, ...] = ()
        for group in tried:
            if not best.cost()[1]:
                break
            options = {**best.options, "turned": (*turned, *group)}
            other = self._attempt(best.gone, **options)
            if other.cost() < best.cost():
                best, turned = other, (*turned, *group)
        return best

    def _attempt(self, gone: list[Key], **options: Any) -> _Attempt:
        folded = replay(self._file, self._overridable, gone, **options)
        main, twin = folded.graphs[0], self._candidate.graphs[0]
        attempt = _Attempt(gone, folded, options, Walk(main, twin, folded.at))
        found = {match.first.node: match for match in attempt.walk.matches.values()}
        mine = [one for _, one in layers(folded.graphs)]
        reached = {match.second.node for match in found.values()}
        rest = [two for _, two in layers(self._candidate.graphs) if two.node not in reached]
        if attempt.walk.breaks:
            for match in leftover([one for one in mine if one.node not in found], rest, folded.at):
                found[match.first.node] = match
        # a node of the original may stand for several of the candidate
        several: dict[object, list[Match]] = {}
        for pair in [*attempt.walk.matches.values(), *(m for m in found.values() if m.how != "structure")]:
            several.setdefault(pair.first.node, []).append(pair)
        for node, pairs in several.items():
            judged = [self._judge(attempt, pair) for pair in pairs]
            order = ("wrong", "unknown", "folded", "unchanged")
            worst = min(range(len(pairs)), key=lambda i: order.index(judged[i].state))
            if pairs[worst].first.kind in LAYERS or judged[worst].sources or judged[worst].state in order[:2]:
                attempt.records[node], attempt.pairs[node] = judged[worst], pairs[worst]
        if attempt.walk.breaks:
            for one in mine:
                if one.node not in attempt.records:
                    name = folded.at(one.node)
                    text = f"no layer of the candidate could be matched to {label(one.node.op_type, name)}"
                    attempt.records[one.node] = LayerRecord(name, None, one.node.op_type, "unknown", explanation=text)
        for expected, held in attempt.walk.loose:
            deviation = compare(expected, held)
            if not deviation.right:
                text = f"the constant {expected.node.name!r} differs: {deviation.problem or deviation}"
                attempt.records[expected] = LayerRecord(
                    expected.node.name, held.node.name, "Constant", "wrong", (), "structure", (deviation,), False, text
                )
        return attempt

    def _judge(self, attempt: _Attempt, match: Match) -> LayerRecord:
        """Compare every constant of a matched pair; the explanation comes later, when all are known."""
        deviations: list[Deviation] = []
        for expected, held in match.constants():
            deviation = compare(expected, held)
            if deviation.worst > 1 and not deviation.problem and expected is not None:
                size = self._terms(attempt, expected)
                deviation = compare(expected, held, size) if size is not None else deviation
            deviations.append(deviation)
        sources = tuple(dict.fromkeys(s for node in _nodes(match) for s in attempt.replay.taken.get(node, ())))
        kind = match.first.node.op_type
        state = "folded" if sources else "unchanged"
        if any(d.problem for d in deviations):
            state = "unknown"
        elif not all(d.right for d in deviations):
            close = all(d.share <= _CLOSE for d in deviations)
            state = "wrong" if match.how != "shape" or close else "unknown"
        at, other = attempt.replay.at(match.first.node), self._candidate.at(match.second.node)
        text = ""
        if state == "wrong" and attempt.walk.breaks and sources and _untouched(attempt.replay, match):
            kinds = {self._original.sources[k].op_type for n in _nodes(match) for k in attempt.replay.keys.get(n, ())}
            if "BatchNormalization" not in kinds:  # arithmetic may be gone because the tool wrote it in another way
                state = "unknown"
                text = f"{sources[0]!r} is gone from the candidate, and {label(kind, at)} did not take it in"
        return LayerRecord(at, other, kind, state, sources, match.how, tuple(deviations), explanation=text)

    def _terms(self, attempt: _Attempt, expected: Operand) -> Any:
        """M of an edited constant, from the fold of the absolute values; None where that fold took another way."""
        if attempt.absolute is None:
            attempt.absolute = replay(self._file, self._overridable, attempt.gone, absolute=True, **attempt.options)
        for graph, twin in zip(attempt.replay.graphs, attempt.absolute.graphs, strict=True):
            if expected.node not in graph.nodes:
                continue
            for node in twin.nodes:
                if node.order == expected.node.order and node.has(expected.slot):
                    held = twin.constant(node.inputs[expected.slot])
                    if held is not None and held.shape == expected.tensor.shape:
                        return abs(replace(expected, tensor=held).exact())
        return None

    def _explained(self, best: _Attempt) -> list[LayerRecord]:
        """The records, in the order of the file; wrong ones say what became of the fold and whether it is certain."""
        wrong = [node for node, record in best.records.items() if record.state == "wrong"]
        full: Replay | None = None
        asked = 0
        out: list[tuple[float, LayerRecord]] = []
        for node, record in best.records.items():
            match = best.pairs.get(node)
            position = match.first.node.order if match is not None else getattr(node, "order", math.inf)
            if record.state == "unknown" and not record.explanation:
                problem = next((d.problem for d in record.deviations if d.problem), "it is too far from all it may be")
                record = replace(record, explanation=f"of {label(record.kind, record.name)} {problem}")
            elif record.state == "wrong" and match is not None:
                twice: str | None = None
                dropped = bool(record.sources) and _untouched(best.replay, match)
                if not dropped and match.first.kind in LAYERS and asked < _TURNS:
                    asked += 1
                    full = full or replay(self._file, self._overridable, None)
                    twice = self._twice(best, match, record, full)
                record = replace(
                    record, certain=self._certain(best, match, record, len(wrong)),
                    explanation=explain(record, twice, dropped=dropped),
                )  # fmt: skip
            out.append((position, record))
        return [record for _, record in sorted(out, key=lambda pair: pair[0])]

    def _twice(self, best: _Attempt, match: Match, record: LayerRecord, full: Replay) -> str | None:
        """The source that a layer has taken in although the candidate applies it as well."""
        place = next(
            ((k, match.first.node.order) for k, g in enumerate(best.replay.graphs) if match.first.node in g.nodes)
        )
        twin = _layer_at(full, place)
        if twin is None:
            return None
        keys = sorted({k for n in _nodes(Match(twin, match.second, "")) for k in full.keys.get(n, ())} - {*best.gone})
        for stop in range(1, min(len(keys), 3) + 1):
            other = _layer_at(replay(self._file, self._overridable, [*best.gone, *keys[:stop]]), place)
            pairs = [] if other is None else Match(other, match.second, "").constants()
            if pairs and all(d.right or (not d.problem and d.share < 1e-5) for d in (compare(e, h) for e, h in pairs)):
                name = self._original.at(self._original.sources[keys[0]])
                return None if name in record.sources else name
        return None

    def _certain(self, best: _Attempt, match: Match, record: LayerRecord, wrong: int) -> bool:
        pairs = [(e, h) for (e, h), d in zip(match.constants(), record.deviations, strict=True) if not d.right]
        local = any(e is not None and h is not None and not compensable(e, h) for e, h in pairs)
        if best.walk.breaks:
            return local and match.how == "name" and bool(record.sources)
        return wrong == 1 or (local and 2 * wrong <= len(best.records))


def _layer_at(replayed: Replay, place: tuple[int, float]) -> Term | None:
    graph = replayed.graphs[place[0]]
    return next((one for _, one in layers([graph]) if one.node.order == place[1]), None)


def _nodes(match: Match) -> list[Any]:
    """The nodes of the original that a match stands for: the layer, and the Add that is its bias."""
    return list(dict.fromkeys([match.first.node, *(c.node for c in match.first.constants)]))


def _untouched(replayed: Replay, match: Match) -> bool:
    """The candidate's layer holds the original's weights from before the fold."""
    for expected, held in match.constants():
        if expected is not None and expected.node not in replayed.names:
            expected = None  # an Add that the fold put in
        if not compare(None if expected is None else expected.original(), held).right:
            return False
    return True
