# torch leaves parts of its interface untyped: what comes from them is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Checkpoints: written to a file beside and moved into place, so that there is always a whole one; no code in them.

They hold the random state of every rank too: a run that is resumed ends in the same bits as one that was not stopped.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ..errors import BnfoldError, UnreadableModel, UnwritableOutput
from . import ranks
from .state import generators

__all__ = ["load", "save"]

_KIND = "bnfold.train checkpoint 1"


def save(path: Path, state: Mapping[str, Any], loader: object = None) -> None:
    """Write `state` and the random state of all ranks, generators of `loader`'s own included; rank 0 writes, all call
    it. Raises UnwritableOutput.
    """
    states = [_random_state(loader)]
    if ranks.size() > 1:
        states: list[Any] = [None] * ranks.size()
        dist.all_gather_object(states, _random_state(loader))
    if ranks.rank():
        return
    part = path.with_name(f".{path.name}.part")
    try:
        torch.save({"kind": _KIND, **state, "random": states}, part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, RuntimeError) as error:  # torch wraps what the system says
        part.unlink(missing_ok=True)
        raise UnwritableOutput(f"The checkpoint {path} cannot be written: {error}.") from error


def load(path: Path, device: torch.device, loader: object = None) -> dict[str, Any]:
    """The state, with this rank's random state put in force. Raises UnreadableModel for anything but a checkpoint."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        if state["kind"] != _KIND:
            raise ValueError(f"it is a {state['kind']}")
        states = state.pop("random")
        if len(states) != ranks.size():
            raise UnreadableModel(
                f"The checkpoint {path} is of {len(states)} processes, and these are {ranks.size()}: "
                "what they would draw at random is not known. Start as many, or give another checkpoint."
            )
        _set_random_state(states[ranks.rank()], loader)
    except BnfoldError:
        raise
    except Exception as error:  # a damaged file makes torch raise whatever comes to its mind
        why = " ".join(str(error).split())[:160]
        raise UnreadableModel(f"{path} is no checkpoint of bnfold.train, or a damaged one ({why}).") from error
    return state


def _random_state(loader: object) -> dict[str, Any]:
    version, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    words = torch.from_numpy(np.asarray(keys, np.int64))
    own, internal, spare = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": [str(version), words, int(position), int(has_gauss), float(gauss)],
        "python": [own, list(internal), spare],
        "loader": [generator.get_state() for generator in generators(loader)],
    }


def _set_random_state(state: Mapping[str, Any], loader: object) -> None:
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
    version, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((version, keys.cpu().numpy().astype(np.uint32), position, has_gauss, gauss))
    own, internal, spare = state["python"]
    random.setstate((own, tuple(internal), spare))
    for generator, held in zip(generators(loader), state["loader"], strict=False):
        generator.set_state(held.cpu())
