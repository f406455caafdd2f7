"""A .pt2 archive, or the module that package.module:factory makes, as an exported program on its device, with inputs.

Files of weights are read with weights_only=True; the factory is called without arguments.
"""
# torch may not be installed, and leaves parts of its interface untyped where it is.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UnreadableModel, UnsupportedModel, UsageError
from .options import is_archive

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from .settings import Checking


@dataclass(frozen=True)
class Loaded:
    """The program, and the samples of --inputs: (args, kwargs) each."""

    program: ExportedProgram
    samples: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...]


def load(model: Path, weights: Path | None, checking: Checking) -> Loaded:
    """Raises UsageError, UnreadableModel, or UnsupportedModel where torch.export cannot export the module."""
    if is_archive(model) and weights is not None:
        raise UsageError(f"{model} holds its weights; --weights goes with package.module:factory.")
    try:
        import torch  # noqa: F401  # pyright: ignore[reportUnusedImport] -- whether it is there
    except ImportError as error:
        raise UsageError("PyTorch models need torch: pip install 'bnfold[torch]'.") from error
    device = _device(checking.providers)
    arrays = [_arrays(path) for path in checking.inputs]
    return (
        _archive(model, arrays, checking, device)
        if is_archive(model)
        else _made(model, weights, arrays, checking, device)
    )


def _device(providers: Sequence[str]) -> str | None:
    """The device that --provider names; None: where the model is."""
    import torch

    names = {name.strip().lower() for each in providers for name in each.split(",")}
    strange = names - {"cpu", "cuda"}
    if strange or len(names) > 1:
        raise UsageError("A PyTorch model runs where torch runs: --provider cpu or --provider cuda, one of them.")
    if "cuda" in names and not torch.cuda.is_available():
        raise UsageError("--provider cuda: torch finds no CUDA device here.")
    return next(iter(names), None)


def _arrays(path: Path) -> dict[str, Any]:
    """The tensors of an .npz, by the names of the inputs."""
    import numpy as np
    import torch

    if not path.is_file():
        raise UnreadableModel(f"{path} is not a file.")
    try:
        with np.load(path, allow_pickle=False) as held:
            return {name: torch.from_numpy(np.ascontiguousarray(held[name])) for name in held.files}
    except Exception as error:  # damaged archives fail in many ways, and torch lacks some types
        raise UnreadableModel(f"{path} cannot be read as an .npz of arrays: {_sentence(error)}") from error


def load_program(model: Path) -> Any:
    """The program of a .pt2 archive, where it was exported."""
    import torch

    if not model.is_file():
        raise UnreadableModel(f"{model} is not a file.")
    try:
        return torch.export.load(model)
    except Exception as error:  # an archive may be wrong in many ways
        raise UnreadableModel(f"{model} cannot be read by torch.export.load: {_sentence(error)}") from error


def _archive(model: Path, arrays: list[dict[str, Any]], checking: Checking, device: str | None) -> Loaded:
    from torch.export.graph_signature import InputKind
    from torch.utils import _pytree as pytree

    if checking.shapes:
        raise UsageError(
            f"{model} holds the inputs that it was exported with; --shape goes with package.module:factory."
        )
    program = load_program(model)
    if device is not None:
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    if not arrays:
        return Loaded(program, ())
    names = [s.arg.name for s in program.graph_signature.input_specs if s.kind == InputKind.USER_INPUT]
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    structure = program.call_spec.in_spec
    assert structure is not None, "every exported program has one"
    samples: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    for given in arrays:
        _fit(names, names, given, str(model), "--inputs")
        leaves = [_as_wanted(given[name], getattr(values[name], "dtype", None), device or "cpu") for name in names]
        samples.append(pytree.tree_unflatten(leaves, structure))
    return Loaded(program, tuple(samples))


def _made(
    model: Path, weights: Path | None, arrays: list[dict[str, Any]], checking: Checking, device: str | None
) -> Loaded:
    import torch

    module = module_of(str(model), weights)
    if device is not None:
        module = module.to(device)
    if not arrays or checking.shapes:
        arrays = [_noise(module, checking.shapes, checking.seed, checking.ranges), *arrays]
    needed, named = _parameters(module)
    where = next((p.device for p in module.parameters()), torch.device("cpu"))
    samples: list[dict[str, Any]] = []
    for given in arrays:
        _fit(needed, named, given, _forward(module), "--inputs")
        samples.append({each: _as_wanted(value, _dtype(module), where) for each, value in given.items()})
    return Loaded(_exported(str(model), module, samples[0]), tuple(((), sample) for sample in samples[1:]))


def module_of(name: str, weights: Path | None) -> Any:
    """The module that a factory makes, with these weights, in eval mode."""
    import torch

    from ..pytorch.state import load_weights
    from ..pytorch.trace import require_foldable, unwrapped

    try:
        module = _factory(name)()
    except Exception as error:  # the user's own code
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{name}() fails: {_sentence(error)} It is called without arguments.") from error
    if not isinstance(module, torch.nn.Module):
        raise UsageError(f"{name}() makes a {type(module).__name__}, not a torch.nn.Module.")
    module = unwrapped(module).eval()
    if weights is not None:
        load_weights(module, weights)
    require_foldable(module)
    return module


def exported(name: str, module: Any, shapes: Mapping[str, tuple[int, ...]]) -> ExportedProgram:
    """The program of a module, exported with noise of these shapes as its arguments."""
    return _exported(name, module, _noise(module, shapes, 0, {}))


def _exported(name: str, module: Any, sample: dict[str, Any]) -> ExportedProgram:
    import torch

    try:
        return torch.export.export(module, (), sample, strict=False)
    except Exception as error:  # as in trace.py
        raise UnsupportedModel(f"torch.export cannot export {name}: {_sentence(error)}") from error


def _parameters(module: Any) -> tuple[list[str], list[str]]:
    """The names of the inputs that must be given, and of all that may be."""
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    named = [p for p in inspect.signature(module.forward).parameters.values() if p.kind in kinds]
    return [p.name for p in named if p.default is p.empty], [p.name for p in named]


def _forward(module: Any) -> str:
    return f"{type(module).__name__}.forward"


def _noise(
    module: Any, shapes: Mapping[str, tuple[int, ...]], seed: int, ranges: Mapping[str, tuple[float, float]]
) -> dict[str, Any]:
    import torch

    needed, named = _parameters(module)
    _fit(needed, named, shapes, _forward(module), "--shape")
    dtype = _dtype(module)
    random = torch.Generator().manual_seed(seed)
    made: dict[str, Any] = {}
    for name, sizes in shapes.items():
        low, high = ranges.get(name, (0.0, 0.0))
        if name in ranges:
            made[name] = (low + (high - low) * torch.rand(*sizes, generator=random)).to(dtype)
        else:
            made[name] = torch.randn(*sizes, generator=random).to(dtype)
    return made


def _dtype(module: Any) -> Any:
    import torch

    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)


def _as_wanted(value: Any, dtype: Any, device: Any) -> Any:
    """An array that holds other floats than the model takes, as numpy's habit of float64 has it, is converted."""
    convert = dtype is not None and dtype.is_floating_point and value.is_floating_point()
    return value.to(device, dtype if convert else value.dtype)


def _fit(needed: Sequence[str], known: Sequence[str], given: Mapping[str, Any], what: str, option: str) -> None:
    strange = [each for each in given if each not in known]
    missing = [each for each in needed if each not in given]
    if not strange and not missing:
        return
    example = (missing or [*known, "x"])[0]
    how = f"--shape {example}:SIZES" if option == "--shape" else f"an array {example!r} in {option}"
    raise UsageError(f"{what} takes {', '.join(known) or 'nothing'}: give {how} and the like for each of them.")


def _sentence(error: Exception) -> str:
    from ..pytorch.trace import sentence

    return sentence(error)


def _factory(name: str) -> Any:
    package, _, attribute = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does
    try:
        found: Any = importlib.import_module(package)
    except ImportError as error:
        raise UsageError(f"{package} cannot be imported: {error}.") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UsageError(f"{package} has no {attribute}.")
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(f"{name} cannot be called: give a class or a function that makes the module.")
    return found
