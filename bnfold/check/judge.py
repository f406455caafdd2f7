"""The judge at work: every model variant evaluated in float64 over all samples, one after the other.

One variant is in memory at a time; only outputs are kept. The variants: the original, the candidate as stored, the
candidate with its weights before rounding, and the original with its weights perturbed by ±u.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from bnfold.bodies import graphs_of
from bnfold.files import ModelFile
from bnfold.reference import Evaluator, evaluate_node

from .inputs import Sample
from .rounding import Weights, lifted
from .statistics import Moments, stored_statistics
from .steps import Decider, decider

__all__ = ["Judge"]

Array = npt.NDArray[Any]
WIDE = 32.0  # in u: how far weights are moved to see where a value inside the model may jump
_WIDE_DRAW = 1000  # the numbers of such draws, apart from those of the ordinary ones


class Judge:
    """Evaluates a pair of models in float64. Raises UnsupportedOp when an operator is missing, EvaluationError when
    a node cannot be evaluated."""

    def __init__(
        self, original: ModelFile, candidate: ModelFile, exact: Mapping[str, Array] | None, samples: Sequence[Sample]
    ) -> None:
        self._original = lifted(original.model)
        self._files = original, candidate
        # `exact` may leave the bodies out: one that was changed then holds rounded weights all the same.
        inside = {proto.name for body in _bodies(candidate.model) for proto in body.initializer}
        whole = exact is not None and not inside.isdisjoint(exact)
        self._exact = exact if whole or _written(original.model) == _written(candidate.model) else None
        self._samples = samples
        self._weights = Weights(self._original, original.directory)
        self.outputs = tuple(value.name for value in original.model.graph.output)
        self._deciders: dict[str, Decider] = {}
        self._extra: tuple[str, ...] = ()
        self._own: Evaluator | None = None
        self.moments = Moments(stored_statistics(self._original, original.directory))

        self._known: dict[tuple[str, int], list[dict[str, Array]]] = {}  # a further provider asks for the same again
        self._of_candidate: dict[tuple[str, int], list[dict[str, Array]]] = {}

    def beside(self, candidate: ModelFile) -> "Judge":
        """The judge of another candidate, of unknown make; what is evaluated of the original is shared."""
        self.original()
        other = copy(self)
        other._files, other._exact, other._of_candidate = (self._files[0], candidate), None, {}
        return other

    def original(self) -> list[dict[str, Array]]:
        """y64 of every sample; `moments` are then what the BatchNormalizations saw."""
        return self._once(("original", 0), self._original_outputs)

    def _original_outputs(self) -> list[dict[str, Array]]:
        y = self._run(self._original, 0, moments=self.moments)
        integers = [name for name in self.outputs if y and y[0][name].dtype.kind in "iub"]
        for name in integers:
            found = decider(self._original.graph, name)
            if found is not None:
                self._deciders[name] = found
        if self._deciders:
            self._extra = tuple(dict.fromkeys(v for d in self._deciders.values() for v in d.operands))
            y = self._run(self._original, 0)
        return y

    def own_types(self, index: int) -> dict[str, Array]:
        """The original under the judge in its own types, for one sample."""

        def run() -> list[dict[str, Array]]:
            if self._own is None:
                self._own = Evaluator(self._files[0].model, dtype=None, directory=self._files[0].directory)
            with np.errstate(all="ignore"):
                return [self._own.run(self._samples[index].feeds)]

        return self._once(("own types", index), run)[0]

    def nearby(self, index: int, number: int, seed: int) -> tuple[dict[str, Array], dict[str, Array]]:
        """The original with every weight moved a little, in float64 and in its own types, for one sample."""

        def run() -> list[dict[str, Array]]:
            moved = self._weights.neighbours(seed, number)
            feeds, directory = self._samples[index].feeds, self._files[0].directory
            with np.errstate(all="ignore"):
                truth = Evaluator(self._original, directory=directory, exact=_wide(moved)).run(feeds)
                return [truth, Evaluator(self._original, dtype=None, directory=directory, exact=moved).run(feeds)]

        truth, mine = self._once((f"nearby {seed} {index}", number), run)
        return truth, mine

    def candidate(self) -> list[dict[str, Array]]:
        """y64' of every sample: the weights as they are stored."""
        return self._once(("candidate", 0), lambda: self._run(self._files[1].model, 1))

    def exact(self) -> list[dict[str, Array]] | None:
        """y64*: the weights before they were rounded; None for a candidate of unknown make."""
        exact = self._exact
        if exact is None:
            return None
        return self._once(("exact", 0), lambda: self._run(self._files[1].model, 1, exact))

    def draw(self, number: int, seed: int, *, wide: bool = False) -> list[dict[str, Array]]:
        """The original with each weight moved by ±u, or by ±32u."""
        scale, draw = (WIDE, _WIDE_DRAW + number) if wide else (1.0, number)

        def run() -> list[dict[str, Array]]:
            model, moved = self._weights.perturbed(seed, draw, scale)
            return self._run(model, 0, moved)

        return self._once((f"draw {seed}", draw), run)

    def _once(self, key: tuple[str, int], run: Callable[[], list[dict[str, Array]]]) -> list[dict[str, Array]]:
        known = self._of_candidate if key[0] in ("candidate", "exact") else self._known
        if key not in known:
            known[key] = run()
        return known[key]

    def margin(self, output: str, y: Mapping[str, Array]) -> Array | None:
        """By how much the float producer of an integer output must change before each element can flip."""
        found = self._deciders.get(output)
        if found is None or any(y[name].dtype.kind != "f" for name in found.operands[:1]):
            return None
        return found.margin(y, self._move)

    def producers(self, output: str) -> tuple[str, ...]:
        """The float values that an integer output is decided by; their names are keys of `original` and `draw`."""
        found = self._deciders.get(output)
        return () if found is None else found.operands

    def _run(
        self,
        model: onnx.ModelProto,
        which: int,
        exact: Mapping[str, Array] | None = None,
        moments: Moments | None = None,
    ) -> list[dict[str, Array]]:
        evaluator = Evaluator(model, directory=self._files[which].directory, exact=exact)
        names = (*self.outputs, *(self._extra if which == 0 else ()))
        with np.errstate(all="ignore"):
            if moments is None:
                return [evaluator.run(sample.feeds, names) for sample in self._samples]
            found: list[dict[str, Array]] = []
            for sample in self._samples:
                found.append(evaluator.run(sample.feeds, names, observe=moments.observe))
                moments.close()
            return found

    def _move(self, node: onnx.NodeProto, x: Array) -> Array:
        """One layout node applied to `x`; its constant operands are initializers of the lifted model."""
        weights = self._original.graph.initializer
        constants = {p.name: onnx.numpy_helper.to_array(p) for p in weights if p.name in node.input}
        operands = [x, *(constants[name] if name else None for name in list(node.input)[1:])]
        opset = {entry.domain: entry.version for entry in self._original.opset_import}
        return evaluate_node(node, operands, opset)[0]


def _wide(weights: Mapping[str, Array]) -> dict[str, Array]:
    return {name: value.astype(np.float64) for name, value in weights.items()}


def _bodies(model: onnx.ModelProto) -> list[onnx.GraphProto]:
    """The graphs inside If, Loop and Scan nodes."""
    return list(graphs_of(model.graph))[1:]


def _written(model: onnx.ModelProto) -> list[bytes]:
    return sorted(body.SerializeToString(deterministic=True) for body in _bodies(model))
