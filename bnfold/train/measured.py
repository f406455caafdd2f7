# torch leaves parts of its interface untyped: what comes from them is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""What `bnfold stats` says of ONNX files, of a PyTorch model: the same figures of the same data.

drift: one pass by the model as it stands, then each layer's effect on the output     refresh: method "sequential"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from torch import Tensor, nn

from ..errors import BnfoldError, UnsupportedModel, UsageError
from ..pytorch.tensors import TYPES
from ..pytorch.trace import sentence
from ..stats.layers import Layer, Left
from ..stats.staleness import Drift, Figures, drift_of
from ..stats.swapping import BATCHES, RUNS, Outputs
from .choosing import first_tensor
from .drifting import gain, stored
from .feeding import Forward, batches
from .gather import Ranks
from .ledger import Shards
from .methods import Estimator, statistics
from .passes import Poison
from .refresh import refresh
from .sampling import Samples
from .state import BatchNorm, Buffers, NotFitting, RandomState, batch_norms, evaluating, has_statistics, write

__all__ = ["Found", "measure", "renew"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Found(Figures):
    """The layers in the order in which they ran; `passes` over the data."""

    passes: int


class _Measured:
    """A layer's shards as bnfold.stats has moments."""

    def __init__(self, shards: Shards) -> None:
        total = shards.total()
        self.count, self._shards = shards.n, shards
        self.mean: Array = total.mean.numpy()
        self.variance: Array = total.var.numpy()

    def errors(self) -> tuple[Array, Array]:
        """NaN where there was a single batch."""
        mean, variance = (each.numpy() for each in self._shards.standard_errors())
        return np.where(np.isinf(mean), np.nan, mean), np.where(np.isinf(variance), np.nan, variance)


def measure(model: nn.Module, samples: Samples, forward: Forward, *, effects: bool = True) -> Found:
    """How far the statistics of `model` are from those of what its layers are fed, as it stands; changes nothing.

    Raises UsageError for data that do not fit or are not finite, UnsupportedModel where the model does not run.
    """
    if not has_statistics(model):
        return Found((), (), 0, 0)
    run = _telling(forward, samples)
    layers, alone = batch_norms(model)
    saved, random = Buffers.of(model), RandomState()
    estimator = Estimator(model, layers, samples, run, saved, random, Ranks(None))
    try:
        with evaluating(model):
            try:
                ledger = estimator.one_pass().ledger
            finally:
                _expect_finite(estimator.poisons, samples)
            rows, passes = samples.rows, 1
            known = {name: ledger.layers[name] for name in ledger}
            drifts = [drift_of(_layer(name, layers[name]), _Measured(shards)) for name, shards in known.items()]
            if effects:
                drifts = _swapped(model, samples, run, layers, known, drifts, saved, random)
    finally:
        saved.restore()
        random.restore()
    return Found(tuple(drifts), _left(alone, [n for n in layers if n not in ledger.layers]), rows, passes)


def renew(model: nn.Module, samples: Samples, forward: Forward) -> Found:
    """Give the layers of `model`, in place, the statistics of the data; says how far the old ones were from them.

    Raises what `measure` raises, and then changes nothing.
    """
    if not has_statistics(model):
        return Found((), (), 0, 0)
    layers, _ = batch_norms(model)
    before = {name: _layer(name, layer) for name, layer in layers.items()}
    report = refresh(model, samples, forward=_telling(forward, samples), group=None)
    try:
        _expect_finite(report.quarantined, samples)
        for row in report.layers:
            _expect_spread(row.name, report.ledger.layers[row.name], layers[row.name].eps)
    except UsageError:
        report.undo()
        raise
    drifts = [drift_of(before[row.name], _Measured(report.ledger.layers[row.name])) for row in report.layers]
    return Found(tuple(drifts), _left(report.left_alone, report.never_ran), samples.rows, report.passes)


def _swapped(
    model: nn.Module,
    samples: Samples,
    run: Forward,
    layers: Mapping[str, BatchNorm],
    known: Mapping[str, Shards],
    drifts: list[Drift],
    saved: Buffers,
    random: RandomState,
) -> list[Drift]:
    found = {name: Outputs() for name in known}
    random.restore()
    for batch in batches(samples, max(1, min(BATCHES, RUNS // (len(found) + 1))), None):
        reference = _output(model, run, batch)
        if reference is None:
            return drifts
        for name, outputs in list(found.items()):
            try:
                write(name, layers[name], *statistics(name, known[name], "concurrent"))
            except NotFitting:
                del found[name]
                continue
            changed = _output(model, run, batch)
            assert changed is not None, "the same model gives as many tensors"
            outputs.add(reference, changed)
            saved.restore()
    tried = {name: {"output": outputs.change, "flips": outputs.flips} for name, outputs in found.items()}
    return [replace(each, **tried.get(each.node, {})) for each in drifts]


def _output(model: nn.Module, run: Forward, batch: Any) -> Array | None:
    output: Tensor | None = first_tensor(run(model, batch))
    return None if output is None else output.detach().double().cpu().numpy()


def _telling(forward: Forward, samples: Samples) -> Forward:
    """What the model's own code raises comes out as a sentence that says on which rows."""

    def run(model: nn.Module, batch: Any) -> Any:
        try:
            return forward(model, batch)
        except BnfoldError:
            raise
        except Exception as error:  # a module may raise anything
            raise UnsupportedModel(f"The model does not run on {samples.at[-1]}: {sentence(error)}") from error

    return run


def _expect_finite(poisons: list[Poison], samples: Samples) -> None:
    if poisons:
        first = poisons[0]
        raise UsageError(
            f"{first.layer or 'The normalization'} is fed a value that is not finite in channel {first.channels[0]} by "
            f"{samples.at[first.batch]}; statistics need finite data."
        )


def _expect_spread(name: str, shards: Shards, epsilon: float) -> None:
    zero = shards.total().var + epsilon <= 0
    if zero.any():
        channel = int(zero.nonzero()[0])
        raise UsageError(
            f"Channel {channel} of {name} is constant on these samples and its epsilon is 0: it would divide by 0."
        )


def _layer(name: str, layer: BatchNorm) -> Layer:
    mean, variance = (each.numpy() for each in stored(layer))
    assert layer.running_mean is not None
    kind = TYPES.get(layer.running_mean.dtype, onnx.TensorProto.FLOAT)
    gamma = gain(layer).numpy()
    return Layer(name, 0, "", gamma, np.zeros_like(gamma), mean, variance, layer.eps, True, (kind, kind))


def _left(alone: Mapping[str, str], never: list[str]) -> tuple[Left, ...]:
    return (*(Left(name, why) for name, why in alone.items()), *(Left(name, "it never ran") for name in never))
