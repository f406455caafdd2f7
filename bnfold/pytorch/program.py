# torch leaves parts of its interface untyped: what comes from there is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""fold_program: an ExportedProgram in, another one out, in which every call may have weights of its own.

Calls that are gone leave the graph, and with them their parameters; a weight that calls want differently, a bias that
was not there and a number in the code become parameters of the program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram

from ..errors import BnfoldError, UsageError
from ..report import FoldReport
from .calls import Calls, named_inputs
from .functional import functional
from .outcome import Folded, digest, same_values, search
from .rewrite import Rewrite, obstacles
from .skeleton import Skeleton, skeleton
from .tensors import bits

if TYPE_CHECKING:
    from ..check.verdict import CheckResult

_HINT = "The exported program cannot express this either."


@dataclass(frozen=True, eq=False)
class ProgramFold:
    """What `fold_exported` made: the folded program, the report, and the search's result for the certificate."""

    program: ExportedProgram
    report: FoldReport
    original: ExportedProgram = field(repr=False)
    folded: Folded = field(repr=False)
    _after: Skeleton = field(repr=False)

    def inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of the program: those that it was exported with, else noise of their shapes."""
        if self.original.example_inputs is not None:
            args, kwargs = self.original.example_inputs
            return tuple(args), dict(kwargs)
        raise UsageError("This program was saved without the inputs that it was exported with, so it cannot be run.")

    def check(
        self,
        *,
        samples: int = 3,
        seed: int = 0,
        tf32: bool = False,
        inputs: Sequence[tuple[tuple[Any, ...], Mapping[str, Any]]] = (),
        ranges: Mapping[str, tuple[float, float]] | None = None,
    ) -> CheckResult:
        """Whether the folded program is the same function as the original, with torch in float64 as the judge.

        As for a module: see ModuleFold.check.
        """
        from .check import Altered, check_modules

        args, kwargs = self.inputs()
        altered = tuple(sorted(self._altered()))
        return check_modules(
            self.original.module(),
            self.program.module(),
            None if altered else self._exactly,
            args,
            kwargs,
            sides=self.folded.sides(self._after),
            certificate=Altered(altered) if altered else self.folded.result.certificate(),
            samples=samples,
            seed=seed,
            tf32=tf32,
            inputs=inputs,
            ranges=ranges,
        )

    def _altered(self) -> Iterator[str]:
        """State of the program that is no longer what the fold left."""
        now = {**self.program.constants, **self.program.state_dict}
        for tensor in self._after.model.graph.initializer:
            value = now.get(tensor.name)  # what is read in another form, as a variance is, has another name
            if isinstance(value, torch.Tensor) and bits(value) != tensor.raw_data:
                yield tensor.name

    def _exactly(self, original: nn.Module) -> Callable[..., list[torch.Tensor]] | None:
        """The folded program in float64, with its weights as they were before they were rounded."""
        if not self.folded.result.changed:
            return None
        after, model = self._after, self.folded.result.model
        calls, exact = Calls.of(after), self.folded.result.exact
        state = calls.state(wide=True)
        for name, own in same_values(model, after.model):
            held = after.constants.get(own)
            if held is None or name not in exact or exact[name].dtype.kind != "f":
                continue
            if held.kind == "number":
                return None  # what a call has in its code is rounded there
            if held.kind == "state":
                like = state[held.name]
                state[held.name] = torch.from_numpy(np.array(exact[name])).reshape(like.shape).to(like.device)
        names = {node.name: name for name, node in calls.values.items()}
        outputs = [names[n] for n in after.program.graph_signature.user_outputs if isinstance(n, str)]

        def run(*args: Any, **kwargs: Any) -> list[torch.Tensor]:
            given = named_inputs(self._after, (args, kwargs))
            found = calls.run(outputs, given, state, wide=True, sample=-1)
            return [found[name] for name in outputs]

        return run


def fold_program(program: ExportedProgram, *, skip: Sequence[str] = (), only: Sequence[str] = ()) -> ExportedProgram:
    """The program with every inference-time BatchNormalization folded that can be folded exactly.

    skip, only: glob patterns of module paths and calls. The argument is not changed. Raises UsageError for anything
    but an ExportedProgram and for a pattern that matches nothing.
    """
    return fold_exported(program, skip=skip, only=only).program


def fold_exported(program: ExportedProgram, *, skip: Sequence[str] = (), only: Sequence[str] = ()) -> ProgramFold:
    """`fold_program` with the report of what was folded and what stays, and why."""
    if not isinstance(program, ExportedProgram):  # pyright: ignore[reportUnnecessaryIsInstance] -- callers may be wrong
        raise UsageError(f"fold_program takes what torch.export.export gives, not a {type(program).__name__}.")
    plain = functional(program)
    found = skeleton(plain, sums=True)
    folded = search(found, skip=skip, only=only, express=lambda o: list(obstacles(found, o)), hint=_HINT)
    if not folded.result.changed:
        return ProgramFold(program, folded.report, program, folded, found)
    result = Rewrite(found, folded.outcome).program()
    after = skeleton(functional(result), sums=True)
    if digest(after.model) != digest(folded.result.model):
        raise BnfoldError("The program that was written is not the one that was folded; this is a bug in bnfold.")
    return ProgramFold(result, folded.report, program, folded, after)


__all__ = ["ProgramFold", "fold_exported", "fold_program"]
