# torch leaves parts of its interface untyped: what comes from there is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""fold(module): trace, search, say it of the module, carry it out, and trace the result to see that it is the same.

The folded module must export to the very graph that the search made, op for op and bit for bit; nothing is returned
that does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import nn

from ..errors import BnfoldError, UnsupportedModel
from ..report import FoldReport
from .express import express
from .outcome import Folded, Obstacle, Outcome, digest, search
from .recipe import ModuleReport, Recipe, carry_out
from .skeleton import Skeleton
from .tensors import bits
from .trace import copied, require_foldable, sentence, trace, unwrapped, without_parametrizations

if TYPE_CHECKING:
    from ..check.certificate import CertificateResult
    from ..check.verdict import CheckResult

_Module = TypeVar("_Module", bound=nn.Module)
_HINT = "Only the form of the module stands in the way: pytorch.fold_program folds it in the exported program."

_DEPENDS = "The code of the module depends on what would be gone"


@dataclass(frozen=True, eq=False)
class ModuleFold(Generic[_Module]):
    """What `fold` made: `module` is folded, `report` says what was folded and what stays, and why.

    original: the module as it was; with inplace=True a copy, its
        parametrizations removed where that was asked for. args, kwargs: what it was traced on.
    """

    module: _Module
    report: ModuleReport
    original: nn.Module = field(repr=False)
    args: tuple[Any, ...] = field(repr=False)
    kwargs: Mapping[str, Any] = field(repr=False)
    folded: Folded = field(repr=False)
    _values: Mapping[str, onnx.TensorProto] = field(repr=False)
    _after: Skeleton = field(repr=False)

    def certificate(self) -> CertificateResult:
        """Gate 1: every stored weight is the correctly rounded one. That the module computes with them, op for op as
        the search left the graph, was seen when it was made."""
        return self.folded.result.certificate()

    def check(
        self,
        *,
        samples: int = 3,
        seed: int = 0,
        tf32: bool = False,
        inputs: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]] = (),
        ranges: Mapping[str, tuple[float, float]] | None = None,
    ) -> CheckResult:
        """Whether the folded module is the same function as the original, with torch in float64 as the judge.

        samples: the inputs that it was traced on and those in `inputs`, (args, kwargs) each, then noise of their shapes
            from `seed`. ranges: from where to where the noise lies, by the input's name in the exported program.
        tf32: let CUDA use TF32 meanwhile.
        """
        from .check import Altered, check_modules

        exact = self.folded.result.exact
        state = self.module.state_dict()
        altered = tuple(n for n, proto in self._values.items() if n not in state or bits(state[n]) != proto.raw_data)

        def to_exact(module: nn.Module) -> nn.Module:
            held = {name: _double(proto, exact) for name, proto in self._values.items()}
            carry_out(self.report.recipe, module, held)
            return module

        return check_modules(
            self.original,
            self.module,
            None if altered else to_exact,
            self.args,
            self.kwargs,
            sides=self.folded.sides(self._after),
            certificate=Altered(altered) if altered else self.certificate(),
            samples=samples,
            seed=seed,
            tf32=tf32,
            inputs=inputs,
            ranges=ranges,
        )


def _double(proto: onnx.TensorProto, exact: Mapping[str, NDArray[np.float64]]) -> onnx.TensorProto:
    raw = np.ascontiguousarray(exact[proto.name], "<f8").tobytes()
    return onnx.TensorProto(name=proto.name, data_type=onnx.TensorProto.DOUBLE, dims=proto.dims, raw_data=raw)


def fold(
    module: _Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    inplace: bool = False,
    skip: Sequence[str] = (),
    only: Sequence[str] = (),
    remove_parametrizations: bool = False,
) -> ModuleFold[_Module]:
    """Fold every inference-time BatchNormalization of a module that can be folded exactly.

    args, kwargs: inputs that the module can be run on; only their structure, types and sizes matter. An axis of length
        1 counts as one that always has it. dynamic_shapes: as for torch.export.export.
    inplace: change the module itself, and not a copy.
    skip, only: glob patterns of module paths ("layer1.*.bn2") and of calls, as the report names them.
    remove_parametrizations: make weights that parametrizations or weight_norm compute ordinary parameters first.

    Raises UsageError for a module in training mode, without weights, or a pattern that matches nothing, and
    UnsupportedModel for what torch.export cannot export, quantized modules and TorchScript.
    """
    module = cast(_Module, unwrapped(module))
    require_foldable(module)
    args = tuple(args) if isinstance(args, list | tuple) else (args,)
    subject = module
    if remove_parametrizations:
        subject = module if inplace else copied(module)
        without_parametrizations(subject)
    original = copied(subject) if inplace else subject
    attempt = _Attempt(subject, args, kwargs, dynamic_shapes, skip, only)
    refused: dict[str, str] = {}
    folded, problem = attempt.fold(refused)
    while problem is not None:
        sources = [record.node.name for record in folded.result.records]
        blamed = attempt.blamed(sources, refused) or dict.fromkeys(sources, f"{_DEPENDS}: {problem}")
        if not blamed:
            raise BnfoldError(f"The module is not traced twice alike, so it is not folded: {problem}")
        refused |= blamed
        folded, problem = attempt.fold(refused)
    recipe, values, made, after = attempt.recipe, attempt.values, attempt.made, attempt.after
    if inplace:
        carry_out(recipe, module, values)
        made = module
    report = _report(folded.report, recipe)
    return ModuleFold(made, report, original, args, dict(kwargs or {}), folded, values, after)


def _report(report: FoldReport, recipe: Recipe) -> ModuleReport:
    return ModuleReport(**{f.name: getattr(report, f.name) for f in fields(report)}, recipe=recipe)


class _Attempt(Generic[_Module]):
    """Folds of one module, each of which is carried out on a copy and traced again."""

    made: _Module
    recipe: Recipe
    values: dict[str, onnx.TensorProto]
    after: Skeleton

    def __init__(
        self,
        module: _Module,
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None,
        dynamic_shapes: Any,
        skip: Sequence[str],
        only: Sequence[str],
    ) -> None:
        self._module, self._given, self._selection = module, (args, kwargs, dynamic_shapes), (skip, only)
        self._traced = trace(module, *self._given)

    def fold(self, refused: Mapping[str, str]) -> tuple[Folded, str | None]:
        """Fold all but the refused sources; and why the module that came of it is not what it should be, if so."""
        skip, only = self._selection
        folded = search(
            self._traced.skeleton, skip=skip, only=only, express=self._expressed, hint=_HINT, refused=refused
        )
        self.made = copied(self._module)
        carry_out(self.recipe, self.made, self.values)
        return folded, self._seen(folded)

    def blamed(self, sources: Sequence[str], refused: Mapping[str, str]) -> dict[str, str]:
        """Those of the sources without which the module's own code goes on as before, and what happens with them."""

        def among(part: Sequence[str]) -> dict[str, str]:
            _, problem = self.fold({**refused, **dict.fromkeys(set(sources) - set(part), "")})
            if problem is None:
                return {}
            if len(part) == 1:
                return {part[0]: f"{_DEPENDS}: {problem}"}
            half = len(part) // 2
            return {**among(part[:half]), **among(part[half:])}

        return among(sources)

    def _expressed(self, outcome: Outcome) -> Sequence[Obstacle]:
        found = express(self._traced, outcome)
        if isinstance(found, list):
            return found
        self.recipe, self.values = found
        return ()

    def _seen(self, folded: Folded) -> str | None:
        """Whether the module that was made exports to the graph that was folded; what it does instead."""
        wanted = folded.result.model if folded.result.changed else self._traced.skeleton.model
        try:
            self.after = trace(self.made, *self._given).skeleton
        except UnsupportedModel as error:
            return sentence(error.__cause__ if isinstance(error.__cause__, Exception) else error)
        if digest(self.after.model) != digest(wanted):
            return "it computes something else then."
        return None


def like_folded(module: _Module, report: ModuleReport) -> _Module:
    """A copy of `module`, unfolded and of the structure that was folded, changed as `report` says but for the values.

    It takes the state dict of the folded module: like_folded(Net(), result.report).load_state_dict(saved).
    """
    made = cast(_Module, copied(unwrapped(module)))
    carry_out(report.recipe, made, None)
    return made
