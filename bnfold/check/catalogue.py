"""The execution providers of ONNX Runtime: short names, and options under which the arithmetic is the model's own.

TF32 is off unless it is asked for, convolution algorithms are not chosen by timing, precision is the model's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bnfold.errors import UsageError

__all__ = ["ALL", "CPU", "DEFAULT", "Choice", "chosen", "named", "split"]

ALL = "all"
DEFAULT = "cpu"
CPU = "CPUExecutionProvider"

_NAMES = {
    "cpu": CPU,
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "nvtensorrtrtx": "NvTensorRTRTXExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "dml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    "dnnl": "DnnlExecutionProvider",
    "nnapi": "NnapiExecutionProvider",
    "acl": "ACLExecutionProvider",
    "armnn": "ArmNNExecutionProvider",
    "cann": "CANNExecutionProvider",
    "rknpu": "RknpuExecutionProvider",
    "snpe": "SNPEExecutionProvider",
    "tvm": "TvmExecutionProvider",
    "vitisai": "VitisAIExecutionProvider",
    "vsinpu": "VSINPUExecutionProvider",
    "azure": "AzureExecutionProvider",
}
_ALSO = {"directml": "dml", "trt": "tensorrt", "gpu": "cuda"}
_SHORT = {full.lower(): short for short, full in _NAMES.items()}

_TF32 = {"CUDAExecutionProvider", "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider"}


@dataclass(frozen=True)
class Choice:
    """One provider as it is asked for: onnxruntime's name, a short one, and the options it is created with.

    tf32: whether float32 products may be computed in TF32; None where the provider knows no such thing.
    """

    name: str
    short: str
    tf32: bool | None = None
    options: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def is_cpu(self) -> bool:
        return self.name == CPU


def named(name: str, *, tf32: bool = False) -> Choice:
    """The choice for onnxruntime's full name of a provider."""
    return Choice(name, _short(name), tf32 if name in _TF32 else None, _options(name, tf32))


def chosen(asked: Sequence[str], available: Callable[[], Sequence[str]], *, tf32: bool = False) -> list[Choice]:
    """The providers that `asked` names (short or full names, each possibly a comma list), in order, each once.

    available: tells what this onnxruntime was built with; it is called only for a name that the list above lacks.
    Raises UsageError for a name that nobody knows; `all` is not one of them, the caller knows what loads.
    """
    found: dict[str, Choice] = {}
    for text in split(asked):
        name = _known(text)
        if name is None:
            built = available()
            name = next((each for each in built if text.lower() in (each.lower(), _short(each).lower())), None)
            if name is None:
                has = f"has {', '.join(_short(each) for each in built)}" if built else "does not load"
                names = ", ".join((*_NAMES, ALL))
                raise UsageError(f"'{text}' is no execution provider; onnxruntime here {has}. Names known: {names}.")
        found[name] = named(name, tf32=tf32)
    return list(found.values())


def split(asked: Sequence[str]) -> list[str]:
    """The single names in texts that may be comma lists."""
    return [part.strip() for each in asked for part in each.split(",")]


def _known(text: str) -> str | None:
    short = text.lower()
    return _NAMES.get(_SHORT.get(short, _ALSO.get(short, short)))


def _short(name: str) -> str:
    return _SHORT.get(name.lower(), name.removesuffix("ExecutionProvider"))


def _options(name: str, tf32: bool) -> dict[str, str]:
    if name == "CUDAExecutionProvider":
        return {"use_tf32": "1" if tf32 else "0", "cudnn_conv_algo_search": "DEFAULT"}
    if name == "OpenVINOExecutionProvider":
        return {"precision": "ACCURACY"}  # on a GPU it would be half precision
    return {}
