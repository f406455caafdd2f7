# torch leaves parts of its interface untyped: what comes from them is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Statistics of what goes into every BN, collected while a loop of one's own runs the model.

with train.collect(model) as statistics:
    for images, _ in loader: model(images)
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch import nn

from .ledger import Ledger
from .passes import Poison, Watch, commit
from .state import batch_norms, unwrapped


class Collected(Ledger):
    """A Ledger that fills while the model runs. Read it after a forward, or after the block.

    quarantined: batches in which a value was not finite; they count at no layer.
    """

    quarantined: list[Poison]


@contextmanager
def collect(model: nn.Module, *, skip: tuple[str, ...] = ()) -> Generator[Collected, None, None]:
    """Take the moments of what every BN of `model` is given; nothing in the model is changed, in whatever mode it runs.

    Each forward of `model` is one batch; one that raises does not count. Set `statistics.mask` before a forward to
    count only part of a padded batch. Afterwards `statistics.merge(other)`, `.save(path)`, `.state_dict()`, or
    `train.apply(statistics, model)` to write them into the model.
    """
    inner = unwrapped(model)
    layers, _ = batch_norms(inner, skip)
    statistics = Collected()
    statistics.quarantined = []
    index = 0
    with Watch(layers) as watch:

        def begin(*_: Any) -> None:
            watch.take()
            watch.mask = statistics.mask

        def end(*_: Any) -> None:
            nonlocal index
            if calls := watch.take():
                poison = commit(statistics, calls, None, index)
                if poison is not None:
                    statistics.quarantined.append(poison)
                index += 1

        handles = [inner.register_forward_pre_hook(begin, prepend=True), inner.register_forward_hook(end)]
        try:
            yield statistics
        finally:
            for handle in handles:
                handle.remove()
