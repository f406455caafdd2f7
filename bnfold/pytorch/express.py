# torch leaves parts of its interface untyped: what comes from there is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Can a fold be said of the module? From an outcome to a recipe, or to what stands in the way.

A call that is gone belongs to a module whose calls are all gone, and which becomes nn.Identity; or what is left of it
are its children, one after the other, and it becomes an nn.Sequential. A weight has one value, wherever it is used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

import onnx
from torch import nn

from .outcome import Edit, Obstacle, Outcome
from .recipe import Recipe
from .skeleton import Skeleton, calls_of
from .trace import Traced

_WITH_BIAS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear,
)  # fmt: skip
_WHAT = {
    "derived": "is computed in the module's code or by a parametrization",
    "number": "is a number in the module's code",
    "absent": "is left out in the module",
}


def express(traced: Traced, outcome: Outcome) -> tuple[Recipe, dict[str, onnx.TensorProto]] | list[Obstacle]:
    """The recipe and the values that it stores by name; or every obstacle."""
    return _Expression(traced, outcome).result()


class _Expression:
    def __init__(self, traced: Traced, outcome: Outcome) -> None:
        self._skeleton: Skeleton = traced.skeleton
        self._work = traced.work
        self._outcome = outcome
        self._obstacles: list[Obstacle] = []
        self._values: dict[str, onnx.TensorProto] = {}
        self._edits = {(e.title, e.slot): e for e in outcome.edits}
        self._protos = {node.name: node for node in self._skeleton.model.graph.node}
        self._identities: dict[str, None] = {}
        self._chains: dict[str, tuple[str, ...]] = {}
        self._biases: dict[str, int] = {}

    def result(self) -> tuple[Recipe, dict[str, onnx.TensorProto]] | list[Obstacle]:
        self._weights()
        self._new_biases()
        for sum_ in self._outcome.inserted:
            self._no(sum_.title, f"{sum_.title} has no bias, and its module has no place for a sum behind it.")
        for title in self._outcome.attributes:
            self._no(title, f"A number in the code of {title} would change.")
        for title in sorted(self._outcome.removed):
            self._gone(title)
        if self._obstacles:
            return self._obstacles
        marks = {name: hashlib.blake2b(p.raw_data, digest_size=16).hexdigest() for name, p in self._values.items()}
        return Recipe(tuple(self._identities), self._chains, self._biases, marks), self._values

    def _no(self, title: str, sentence: str, slot: int | None = None) -> None:
        self._obstacles.append(Obstacle(title, sentence, slot))

    def _weights(self) -> None:
        """A name has one value: all calls that read it must have got the same."""
        readers: dict[str, list[tuple[str, int]]] = {}
        computed: dict[str, str] = {}
        for title, proto in self._protos.items():
            if title in self._outcome.removed:
                continue
            for slot, name in enumerate(proto.input):
                what = self._skeleton.constants.get(name)
                if what is not None and what.kind == "state":
                    readers.setdefault(what.name, []).append((title, slot))
                elif what is not None and what.kind == "derived" and (title, slot) not in self._edits:
                    computed.update(dict.fromkeys(self._made_from(name), title))
        outputs = {info.name for info in self._skeleton.model.graph.output}
        for edit in self._outcome.edits:
            if edit.was is None:
                continue
            if edit.was.kind != "state":
                self._no(edit.title, f"An operand of {edit.title} {_WHAT[edit.was.kind]}.", edit.slot)
                continue
            self._one_value(edit, readers[edit.was.name], computed, outputs)

    def _one_value(
        self, edit: Edit, readers: Sequence[tuple[str, int]], computed: dict[str, str], outputs: set[str]
    ) -> None:
        assert edit.was is not None
        name = edit.was.name
        shape = edit.was.shape or tuple(self._skeleton.state[name].shape)
        values = {self._edits[r].value.raw_data if r in self._edits else None for r in readers}
        if len(values) > 1:
            text = f"{name} is used in {len(readers)} calls, which would need different values of it."
            self._no(edit.title, text, edit.slot)
        elif name in computed or name in outputs:
            where = computed.get(name, "an output")
            self._no(edit.title, f"{name} is used elsewhere too, in {where}.", edit.slot)
        elif len(edit.value.raw_data) != self._skeleton.state[name].nbytes:
            self._no(edit.title, f"{name} has the shape {list(shape)} and would need a larger one.", edit.slot)
        elif name not in self._names:
            self._no(edit.title, f"{name} is a constant in the module's code.", edit.slot)
        else:
            value = onnx.TensorProto()
            value.CopyFrom(edit.value)
            del value.dims[:]
            value.dims.extend(shape)
            self._values[name] = value

    @cached_property
    def _names(self) -> set[str]:
        return {*(n for n, _ in self._work.named_parameters()), *(n for n, _ in self._work.named_buffers())}

    def _made_from(self, name: str) -> set[str]:
        return next(
            (made for node, made in self._skeleton.derived.items() if node.name == name.partition(":")[0]), set[str]()
        )

    def _new_biases(self) -> None:
        found: dict[str, list[Edit]] = {}
        for edit in self._outcome.edits:
            if edit.was is not None:
                continue
            path = self._owner(edit.title)
            part = self._module(path)
            weight = self._protos[edit.title].input[1]
            fits = (
                edit.slot == 2
                and isinstance(part, _WITH_BIAS)
                and _is_plain(part)
                and part.bias is None
                and weight == f"{path}.weight"
            )
            if fits:
                found.setdefault(path, []).append(edit)
            else:
                self._no(edit.title, f"{edit.title} has no bias, and its code has no place for one.", edit.slot)
        for path, edits in found.items():
            calls = [t for t, proto in self._protos.items() if self._owner(t) == path and len(proto.input) > 1]
            if len({e.value.raw_data for e in edits}) > 1 or len(edits) != len(calls):
                for edit in edits:
                    text = f"{path} is called {len(calls)} times, and would need different biases."
                    self._no(edit.title, text, edit.slot)
                continue
            name = f"{path}.bias"
            self._values[name], self._biases[name] = edits[0].value, edits[0].value.dims[0]

    def _owner(self, title: str) -> str:
        calls = calls_of(self._skeleton.nodes[title])
        return calls[-1][1] if calls else ""

    def _module(self, path: str) -> nn.Module | None:
        try:
            return self._work.get_submodule(path)
        except AttributeError:
            return None

    # -- calls that are gone -----------------------------------------------------------------------------------------

    def _gone(self, title: str) -> None:
        path = self._owner(title)
        if path in self._identities or path in self._chains:
            return
        if not path or self._module(path) is None:
            self._no(title, f"{title} is written in the code of {path or 'the module'}, which stays as it is.")
            return
        calls = {c for t in self._protos for c, p in calls_of(self._skeleton.nodes[t]) if p == path}
        kinds = {self._kind(call, path) for call in calls}
        kind = kinds.pop() if len(kinds) == 1 else None
        if kind is None:
            self._no(title, f"{path} does more than this normalization, or is called elsewhere too: it has to stay.")
        elif self._state_in_use(path, kind):
            self._no(title, f"The parameters of {path} are used elsewhere too.")
        elif kind:
            self._chains[path] = kind
        else:
            self._identities[path] = None

    def _state_in_use(self, path: str, children: tuple[str, ...]) -> bool:
        inside = [f"{path}.{child}." for child in children]
        for title, proto in self._protos.items():
            if title in self._outcome.removed:
                continue
            for name in proto.input:
                what = self._skeleton.constants.get(name)
                used = () if what is None else (what.name,) if what.kind == "state" else self._made_from(name)
                if any(u.startswith(f"{path}.") and not any(u.startswith(i) for i in inside) for u in used):
                    return True
        return False

    def _kind(self, call: str, path: str) -> tuple[str, ...] | None:
        """What is left of a module call: () for nothing, children in a row, or None for anything else."""
        titles = [t for t in self._protos if call in {c for c, _ in calls_of(self._skeleton.nodes[t])}]
        ends = self._ends(titles)
        if ends is None:
            return None
        value, end = ends
        children: dict[str, list[str]] = {}
        for title in titles:
            if title in self._outcome.removed:
                continue
            below = [(c, p) for c, p in calls_of(self._skeleton.nodes[title]) if p.startswith(f"{path}.")]
            if not below or "." in below[0][1][len(path) + 1 :]:
                return None
            children.setdefault(below[0][0], []).append(title)
        row: list[str] = []
        for child in children:
            whole = [t for t in titles if child in {c for c, _ in calls_of(self._skeleton.nodes[t])}]
            inner = self._ends(whole)
            if inner is None or self._behind(inner[0]) != self._behind(value):
                return None
            value = inner[1]
            row.append(child[len(path) + 1 :])
        if self._behind(end) != self._behind(value) or len(set(row)) != len(row) or any("@" in name for name in row):
            return None
        return tuple(row)

    def _ends(self, titles: Sequence[str]) -> tuple[str, str] | None:
        """The one value that goes into these nodes and the one that comes out of them; None if there are more."""
        made = {out for t in titles for out in self._protos[t].output}
        given = {n for t in titles for n in self._protos[t].input if n and n not in made and not self._is_constant(n)}
        inside = set(titles)
        used = {n for t, proto in self._protos.items() if t not in inside for n in proto.input}
        used |= {info.name for info in self._skeleton.model.graph.output}
        out = made & used
        return (given.pop(), out.pop()) if len(given) == len(out) == 1 else None

    def _is_constant(self, name: str) -> bool:
        return name in self._skeleton.constants

    @cached_property
    def _producers(self) -> dict[str, str]:
        return {out: title for title, proto in self._protos.items() for out in proto.output}

    def _behind(self, value: str) -> str:
        """The value, or where it comes from through calls that are gone."""
        while (title := self._producers.get(value)) is not None and title in self._outcome.removed:
            value = next(n for n in self._protos[title].input if n and not self._is_constant(n))
        return value


def _is_plain(part: nn.Module) -> bool:
    """Whether the module runs torch's own code, which reads `bias`."""
    kind = type(part)
    own = next(c for c in kind.__mro__ if "forward" in vars(c))
    return own in (*_WITH_BIAS, nn.Conv2d) and "forward" not in vars(part)
