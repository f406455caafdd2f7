# torch leaves parts of its interface untyped: what comes from there is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Weights from a file into a module: nested checkpoints, prefixes of wrappers, safetensors; no pickled object."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import UnreadableModel, UsageError
from ..files.formats import foreign
from .safetensors import read_safetensors

_NESTED = ("state_dict", "model_state_dict", "model", "net", "module", "params", "weights")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_OPTIONAL = "num_batches_tracked"


def load_weights(module: nn.Module, path: str | os.PathLike[str]) -> None:
    """Read a state dict into `module`: every name must be there, and no other.

    The dict may lie under "state_dict", "model" and the like; "module." and "_orig_mod." are stripped. Raises
    UnreadableModel for a file that holds no state dict, UsageError for one that does not belong to the module.
    """
    held = _tensors(read_state(path), Path(path))
    wanted = module.state_dict()
    held = _stripped(held, wanted)
    missing = [name for name in wanted if name not in held and not name.endswith(_OPTIONAL)]
    unexpected = [name for name in held if name not in wanted]
    if missing or unexpected:
        said = [f"{what} {_some(names)}" for what, names in (("lacks", missing), ("also has", unexpected)) if names]
        raise UsageError(f"{path} does not fit {type(module).__name__}: it {' and '.join(said)}.")
    wrong = next((name for name, value in held.items() if value.shape != wanted[name].shape), None)
    if wrong is not None:
        raise UsageError(
            f"{path} does not fit {type(module).__name__}: {wrong} has the shape {list(held[wrong].shape)} there and "
            f"{list(wanted[wrong].shape)} in the module."
        )
    module.load_state_dict(dict(held), strict=False)  # but for num_batches_tracked, which old files do not have


def read_state(path: str | os.PathLike[str]) -> Any:
    """What a checkpoint holds; weights_only, so that nothing in it is run."""
    path = Path(path)
    if not path.is_file():
        raise UnreadableModel(f"{path} is not a file.")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UnreadableModel(
            f"{path} holds more than weights (a pickled module, or objects), which is not unpickled: save "
            "model.state_dict() and give the code as package.module:factory with --weights."
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        with path.open("rb") as file:
            what = foreign(path, file.read(512), path.stat().st_size) or ""
        if what.startswith(("a TorchScript", "a torch.export")):
            kind = what.replace(":", ";").partition(";")[0]
            raise UnreadableModel(
                f"{path} is {kind}, not a state dict: save model.state_dict() and give that."
            ) from error
        raise UnreadableModel(f"{path} cannot be read by torch.load: {str(error).splitlines()[0]}") from error


def _tensors(found: Any, path: Path) -> dict[str, torch.Tensor]:
    for _ in range(4):
        if not isinstance(found, Mapping):
            break
        tensors = {str(k): v for k, v in found.items() if isinstance(v, torch.Tensor)}
        inner = next((found[key] for key in _NESTED if isinstance(found.get(key), Mapping)), None)
        if inner is None or (tensors and len(tensors) == len(found)):
            if tensors:
                return tensors
            break
        found = inner
    raise UnreadableModel(f"{path} holds no state dict: no names with tensors were found in it.")


def _stripped(held: dict[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    for _ in range(4):
        if any(name in wanted for name in held):
            return held
        prefix = next((p for p in _PREFIXES if held and all(name.startswith(p) for name in held)), None)
        if prefix is None:
            return held
        held = {name[len(prefix) :]: value for name, value in held.items()}
    return held


def _some(names: list[str]) -> str:
    more = len(names) - 5
    return ", ".join(names[:5]) + (f" and {more} more" if more > 0 else "")
