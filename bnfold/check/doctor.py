"""What the installation can run: each provider tried on one node, and packages that stand in each other's way.

The wheels of onnxruntime, onnxruntime-gpu and their kin install the same files; whichever came last wins, and no
metadata can say that they conflict. What a provider was built with says nothing of whether it loads.
"""

import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from bnfold.files import save

from .catalogue import CPU, named
from .providers import NoProvider, NotLoaded, Provider, ProviderError

__all__ = ["Diagnosis", "Problem", "ProviderState", "diagnose", "package_problems", "packages", "probe"]

TIMEOUT = 60.0  # seconds for one provider to load or run one node; a GPU's first start takes its time
PLAIN = "onnxruntime"
_OTHERS = ("bnfold", "click", "ml-dtypes", "numpy", "onnx", "onnxruntime-extensions", "onnxscript", "torch")
# Built into a wheel whether or not what they need is there; that they do not load is no fault.
_OPTIONAL = {"TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider", "AzureExecutionProvider"}
# Which provider a wheel is installed for.
_BRINGS = {
    "onnxruntime-gpu": "CUDAExecutionProvider",
    "onnxruntime-openvino": "OpenVINOExecutionProvider",
    "onnxruntime-directml": "DmlExecutionProvider",
    "onnxruntime-rocm": "ROCMExecutionProvider",
    "onnxruntime-migraphx": "MIGraphXExecutionProvider",
    "onnxruntime-qnn": "QNNExecutionProvider",
    "onnxruntime-vitisai": "VitisAIExecutionProvider",
    "onnxruntime-cann": "CANNExecutionProvider",
    "onnxruntime-webgpu": "WebGpuExecutionProvider",
}


@dataclass(frozen=True)
class ProviderState:
    """Whether a provider loads, which of the probes' nodes it ran itself, and on what; `sentence` says why not."""

    name: str
    loads: bool
    ran: tuple[str, ...] = ()
    device: str | None = None
    sentence: str = ""

    @property
    def short(self) -> str:
        return named(self.name).short

    @property
    def fine(self) -> bool:
        return self.name in _OPTIONAL or (self.loads and not self.sentence)

    def __str__(self) -> str:
        if not self.loads:
            return f"does not load: {self.sentence}"
        nodes = " and ".join(self.ran)
        words = f"loads and runs {nodes}" if nodes else "loads, but runs neither Add nor Conv"
        return words + (f", on {self.device}" if self.device else "") + (f"; {self.sentence}" if self.sentence else "")

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "short": self.short,
            "loads": self.loads,
            "ran": list(self.ran),
            "device": self.device,
            "sentence": self.sentence,
        }


@dataclass(frozen=True)
class Problem:
    """Something that is wrong, in a sentence, and the commands that repair it."""

    sentence: str
    commands: tuple[str, ...] = ()


@dataclass(frozen=True)
class Diagnosis:
    python: str
    packages: Mapping[str, str]  # distribution name -> version
    version: str | None  # of the onnxruntime that is imported
    providers: tuple[ProviderState, ...]
    problems: tuple[Problem, ...] = field(default=())

    @property
    def exit_code(self) -> int:
        return 1 if self.problems else 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "python": self.python,
            "packages": dict(self.packages),
            "onnxruntime": self.version,
            "providers": [state.to_dict() for state in self.providers],
            "problems": [{"sentence": each.sentence, "commands": list(each.commands)} for each in self.problems],
            "exit_code": self.exit_code,
        }


def diagnose(*, timeout: float = TIMEOUT, path: Sequence[str] | None = None) -> Diagnosis:
    """Look at everything. timeout: seconds for one provider's probe. path: where to look for packages (sys.path)."""
    found = packages(path)
    runtimes = {name: version for name, version in found.items() if name not in _OTHERS}
    version, states, missing = None, list[ProviderState](), ""
    try:
        with Provider(timeout=timeout) as provider:
            version, available = provider.version, provider.available
        states = [probe(name, timeout=timeout) for name in sorted(available, key=lambda name: name != CPU)]
    except (NoProvider, ProviderError) as error:
        missing = str(error)
    problems = package_problems(runtimes, version, {state.name for state in states}, missing)
    for state in states:
        if not state.fine:
            problems.append(Problem(f"{state.short}: {state}.", _help(state, runtimes)))
    return Diagnosis(platform.python_version(), found, version, tuple(states), tuple(problems))


def packages(path: Sequence[str] | None = None) -> dict[str, str]:
    """Name -> version of every installed package that installs the module `onnxruntime`, and of those beside it."""
    found: dict[str, str] = {}
    for each in distributions(path=list(sys.path if path is None else path)):
        name = str(each.metadata["Name"] or "").lower().replace("_", "-")
        if name and name not in found and (name in _OTHERS or _holds_runtime(name, each)):
            found[name] = each.version
    return dict(sorted(found.items()))


def _holds_runtime(name: str, package: Distribution) -> bool:
    if name == PLAIN or name in _BRINGS:
        return True
    if "onnxruntime" not in name and not name.startswith("ort-"):
        return False
    top = (package.read_text("top_level.txt") or "").split()
    return PLAIN in top or any(file.as_posix() == "onnxruntime/__init__.py" for file in package.files or ())


def package_problems(
    runtimes: Mapping[str, str], version: str | None, available: set[str], missing: str = ""
) -> list[Problem]:
    """What is wrong with the packages that install `onnxruntime`.

    runtimes: those packages. version, available: of the module as it is imported; missing: why it cannot be.
    """
    if not runtimes:
        if version is not None:
            return []
        return [Problem("No onnxruntime is installed; nothing can run a model.", (_install(PLAIN),))]
    if len(runtimes) > 1:
        keep = _best(runtimes)
        return [
            Problem(
                f"{_and(sorted(runtimes))} are installed together; they install the same files, and which of them are "
                f"there is a matter of chance. Keep one; the commands keep {keep}.",
                (f"python -m pip uninstall -y {' '.join(sorted(runtimes))}", _install(keep, runtimes[keep])),
            )
        ]
    ((name, installed),) = runtimes.items()
    again = (_install(name, installed, again=True),)
    if version is None:
        return [Problem(f"{name} {installed} is installed, but cannot be used: {missing}.", again)]
    if version.partition("+")[0] != installed.partition("+")[0]:
        text = f"{name} is version {installed} by its metadata and {version} when imported: its files were overwritten."
        return [Problem(text, again)]
    brings = _BRINGS.get(name)
    if brings and brings not in available:
        text = f"{name} is installed, but the module has no {brings}: its files were overwritten by another package."
        return [Problem(text, again)]
    return []


def probe(name: str, *, timeout: float = TIMEOUT) -> ProviderState:
    """Load and run an Add and a Conv on one provider, each in a session of its own, in a child process."""
    ran: list[str] = []
    device, wrong = None, ""
    try:
        with Provider(named(name), timeout=timeout) as provider:
            for model, feed, expected in _probes():
                op = model.graph.node[0].op_type
                path = Path(provider.folder) / f"{op}.onnx"
                save(model, path)
                provider.load(path)
                device = provider.device
                result = provider.run({"x": feed})["y"]
                if not np.allclose(result, expected, rtol=1e-3, atol=1e-3):
                    wrong = f"its {op} gives wrong numbers"
                elif provider.placement is not None and provider.placement.there:
                    ran.append(op)
    except NotLoaded as error:
        return ProviderState(name, False, sentence=str(error).removeprefix(f"{name} does not load: "))
    except ProviderError as error:
        return ProviderState(name, False, tuple(ran), device, str(error))
    return ProviderState(name, True, tuple(ran), device, wrong)


def _probes() -> list[tuple[onnx.ModelProto, np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """One-node models with an input and what they must give; small integers, so that every precision is exact."""
    x = np.arange(32, dtype=np.float32).reshape(1, 2, 4, 4) % 5
    ones = np.ones((1, 2, 1, 1), np.float32)
    made = (("Add", ones, x + 1), ("Conv", ones, x.sum(axis=1, keepdims=True)))
    return [(_one_node(op, weight, y.shape), x, y) for op, weight, y in made]


def _one_node(op: str, weight: np.ndarray[Any, Any], shape: Sequence[int]) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"], name=op)],
        op,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(shape))],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def _best(runtimes: Mapping[str, str]) -> str:
    """The one to keep: what was installed beside the plain package was installed for a reason."""
    return next((name for name in (*_BRINGS, *sorted(runtimes)) if name in runtimes and name != PLAIN), PLAIN)


def _install(name: str, version: str = "", *, again: bool = False) -> str:
    if not version:
        return f"python -m pip install {name}"
    return f"python -m pip install {'--force-reinstall ' if again else ''}--no-deps {name}=={version}"


def _help(state: ProviderState, runtimes: Mapping[str, str]) -> tuple[str, ...]:
    if state.name == "CUDAExecutionProvider" and "onnxruntime-gpu" in runtimes and ".so" in state.sentence:
        return (f'python -m pip install "onnxruntime-gpu[cuda,cudnn]=={runtimes["onnxruntime-gpu"]}"',)
    return ()


def _and(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"
