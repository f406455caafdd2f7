"""`stats` of PyTorch models: a .pt2 archive, or package.module:factory with --weights.

refresh writes what it read: an archive as .pt2; of a factory's module the state dict, which --weights reads again.
"""
# torch may not be installed, and leaves parts of its interface untyped where it is.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import files
from ..errors import UnsupportedModel, UsageError
from .documents import result_dict
from .options import destination
from .output import Console
from .signals import raise_received
from .torch_loading import exported, load_program, module_of

if TYPE_CHECKING:
    from ..check.sizes import GraphInput
    from ..stats.layers import Left
    from ..stats.staleness import Figures
    from ..train.measured import Found
    from ..train.sampling import Samples
    from .settings import Checking
    from .stats import Gate, Measuring

_STATES = (".pth", ".pt", ".safetensors")


@dataclass(frozen=True)
class Opened:
    """A model whose normalizations are layers of `module`; `program`: of an archive, over the same memory."""

    model: Path
    module: Any
    samples: Samples
    forward: Any
    left: tuple[Left, ...] = ()
    program: Any = field(default=None, repr=False)

    @property
    def nothing(self) -> str:
        """What is said where there is nothing to measure."""
        return f"{self.model} holds no BatchNormalization with statistics of its own"


def drift_of(model: Path, measuring: Measuring, *, effects: bool = True) -> tuple[Opened, Found]:
    """The model and how far its statistics are off."""
    opened = _opened(model, measuring)
    from ..train.measured import measure

    found = measure(opened.module, opened.samples, opened.forward, effects=effects)
    return opened, replace(found, left=(*opened.left, *found.left))


def run_torch_drift(model: Path, measuring: Measuring, most: float | None, console: Console) -> int:
    """`bnfold stats drift` of a PyTorch model: returns the exit code."""
    from .stats import judged, table

    console.clear_of(model)
    with console.progress(1) as step:
        step("measuring")
        opened, found = drift_of(model, measuring)
    console.say("\n".join([*table(found), ""]))
    word, sentence, code = judged(found, most, opened.nothing)
    return console.finish("stats drift", word, sentence, code, lambda: parts(opened, found, []))


def run_torch_refresh(
    model: Path, measuring: Measuring, out: Path | None, console: Console, *, force: bool, in_place: bool
) -> int:
    """`bnfold stats refresh` of a PyTorch model: returns the exit code."""
    from .stats import refreshed, table

    archive = model.suffix == ".pt2"
    if not archive and (in_place or out is None):
        raise UsageError("Say with --output where the state dict of the refreshed module goes: a .pth file.")
    target = destination(model, out, in_place=in_place, dry_run=False, force=force, made="refreshed")
    assert target is not None, "only a dry run has none"
    known = (".pt2",) if archive else (*_STATES, ".pt2")
    if target.suffix not in known:
        raise UsageError(f"{target}: what is refreshed here is written as {' or '.join(known)}.")
    console.clear_of(model if archive else measuring.weights, target)
    opened = _opened(model, measuring)
    from ..train.measured import renew

    with console.progress(2) as step:
        step("measuring")
        found = renew(opened.module, opened.samples, opened.forward)
        found = replace(found, left=(*opened.left, *found.left))
        step("writing")
        written: list[Path] = []
        if found.layers:
            with files.Staging(target, keep_mode_of=target if in_place else None) as stage:
                _write(opened, stage.path, measuring.shapes)
                raise_received()
                written = stage.commit()
    console.say("\n".join([*table(found), ""]))
    word, sentence = refreshed(found, found.passes, written, opened.nothing)
    return console.finish("stats refresh", word, sentence, 0, lambda: parts(opened, found, written))


def gate(model: Path, weights: Path | None, checking: Checking, most: float | None) -> Gate | None:
    """The drift of the model before it is folded; None where no bound was given."""
    if most is None:
        return None
    from .stats import NO_DATA, Gate, Measuring, judged

    if not checking.inputs:
        raise UsageError(NO_DATA)
    shapes = {} if model.suffix == ".pt2" else checking.shapes
    opened, found = drift_of(
        model, Measuring(checking.inputs, checking.threads, None, (), weights, shapes), effects=False
    )
    return Gate(found, lambda: parts(opened, found, []), *judged(found, most, opened.nothing))


def parts(opened: Opened, found: Figures, written: Sequence[Path]) -> dict[str, Any]:
    """The JSON document's."""
    is_file = opened.model.is_file()
    tensors = opened.module.state_dict().values()
    nodes = 0 if opened.program is None else len(opened.program.graph.nodes)
    source = {
        "path": str(opened.model),
        "sha256": files.digest(opened.model) if is_file else "",
        "bytes": opened.model.stat().st_size if is_file else sum(t.nbytes for t in tensors),
        "opset": 0,
        "nodes": nodes,
    }
    return {
        "source": source,
        "result": result_dict(written, 0, nodes),
        "statistics": found.to_dict(),
        "check": None,
    }


def _opened(model: Path, measuring: Measuring) -> Opened:
    for name, value in (("custom-ops", measuring.custom_ops), ("timeout", measuring.timeout)):
        if value:
            raise UsageError(f"--{name} is for ONNX models; a PyTorch model knows no such thing.")
    if not measuring.inputs:
        raise UsageError("Statistics are measured on data: give samples with --inputs.")
    try:
        import torch
    except ImportError as error:
        raise UsageError("PyTorch models need torch: pip install 'bnfold[torch]'.") from error
    if measuring.threads:
        torch.set_num_threads(measuring.threads)
    return _archive(model, measuring) if model.suffix == ".pt2" else _factory(model, measuring)


def _archive(model: Path, measuring: Measuring) -> Opened:
    from torch.utils import _pytree as pytree

    from ..stats.layers import Left
    from ..train.programs import layered
    from ..train.sampling import Samples, wanted

    for name, value in (("weights", measuring.weights), ("shape", measuring.shapes)):
        if value:
            raise UsageError(f"{model} holds its weights and the shapes of its inputs; --{name} goes with a factory.")
    program = load_program(model)
    made = layered(program)
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    order: list[Any] = []
    for spec in program.graph_signature.input_specs:
        if spec.kind.name == "USER_INPUT":
            constant = not hasattr(values[spec.arg.name], "shape")
            if constant and not hasattr(spec.arg, "value"):
                raise UnsupportedModel(f"The input {spec.arg.name} of {model} is a number that is no constant.")
            order.append((spec.arg.name, spec.arg.value if constant else None, constant))
    tensors = {name: values[name] for name, _, constant in order if not constant}
    inputs = [wanted(name, list(_sizes(value.shape)), value.dtype) for name, value in tensors.items()]
    dtypes = {name: value.dtype for name, value in tensors.items()}

    def forward(module: Any, batch: Mapping[str, Any]) -> Any:
        flat = [value if constant else batch[name].to(tensors[name].device) for name, value, constant in order]
        args, kwargs = pytree.tree_unflatten(flat, program.call_spec.in_spec)
        return module(*args, **kwargs)

    left = tuple(Left(name, why) for name, why in made.left.items())
    return Opened(model, made.module, Samples(measuring.inputs, inputs, dtypes), forward, left, program)


def _sizes(shape: Sequence[Any]) -> Iterator[int | str]:
    """A size that the program leaves free is a name."""
    for size in shape:
        yield size if isinstance(size, int) else str(size)


def _factory(model: Path, measuring: Measuring) -> Opened:
    import torch

    from ..train.sampling import Samples

    module = module_of(str(model), measuring.weights)
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    inputs, dtypes = _inputs(module, measuring, dtype)

    def forward(module: Any, batch: Mapping[str, Any]) -> Any:
        where = next((p.device for p in module.parameters()), torch.device("cpu"))
        return module(**{name: value.to(where) for name, value in batch.items()})

    return Opened(model, module, Samples(measuring.inputs, inputs, dtypes), forward)


def _inputs(module: Any, measuring: Measuring, dtype: Any) -> tuple[list[GraphInput], dict[str, Any]]:
    """What the module takes: --shape where it is given, else the rows of the first file, any number of them at once."""
    from ..stats.samples import shapes_in
    from ..train.sampling import wanted

    held = shapes_in(measuring.inputs)
    parameters = inspect.signature(module.forward).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        strange = next((name for name in (*measuring.shapes, *held) if name not in parameters), None)
        if strange is not None:
            takes = ", ".join(parameters) or "nothing"
            raise UsageError(f"{type(module).__name__}.forward takes {takes}, and no {strange!r}.")
    inputs: list[GraphInput] = []
    dtypes: dict[str, Any] = {}
    for name, (shape, kind) in held.items():
        given = measuring.shapes.get(name)
        sizes: list[int | str] = list(given) if given is not None else ["batch", *shape[1:]] if shape else []
        mine = dtype if kind.kind == "f" else _dtype(kind)
        inputs.append(wanted(name, sizes, mine))
        dtypes[name] = mine
    return inputs, dtypes


def _dtype(kind: Any) -> Any:
    import numpy as np
    import torch

    try:
        return torch.from_numpy(np.empty(0, kind)).dtype
    except TypeError as error:
        raise UsageError(f"torch has no type like {kind}.") from error


def _write(opened: Opened, path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    import torch

    if opened.program is not None:
        torch.export.save(opened.program, path)
    elif path.suffix == ".pt2":
        torch.export.save(exported(str(opened.model), opened.module, shapes), path)
    elif path.suffix == ".safetensors":
        try:
            from safetensors.torch import save_file  # pyright: ignore[reportMissingImports] -- an extra of the user's
        except ImportError as error:
            raise UsageError(f"Writing {path.name} needs safetensors: pip install safetensors.") from error
        save_file({name: value.contiguous() for name, value in opened.module.state_dict().items()}, path)
    else:
        torch.save(opened.module.state_dict(), path)
