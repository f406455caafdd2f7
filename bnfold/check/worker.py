"""The child process that runs models under ONNX Runtime, so that a crash there is not a crash here.

It is started by providers.py as a plain script, imports nothing of bnfold, and talks in lines of JSON: a request on
stdin, an answer on stdout; arrays travel as .npz files. Whatever ONNX Runtime prints goes to stderr.
"""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import numpy as np

_LEVELS = {"disabled": "ORT_DISABLE_ALL", "all": "ORT_ENABLE_ALL"}
_CPU = "CPUExecutionProvider"
_NVIDIA = ("CUDAExecutionProvider", "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")
_ERROR = 3  # onnxruntime's log level: why a provider did not load is said there and nowhere else


class _Sessions:
    """The one session that is loaded; a new one replaces it, so that two models are never in memory together."""

    def __init__(self, ort: Any, provider: str, options: dict[str, str], libraries: list[str]) -> None:
        self._ort = ort
        self._provider = provider
        self._options = options
        self._libraries = libraries
        self._session: Any = None
        self._outputs: list[str] = []
        self._profiled = False
        self._device: str | None = None
        self._ready = False

    def load(
        self, path: str, optimization: str, threads: int, folder: str, read_back: str | None = None
    ) -> dict[str, Any]:
        self._session = None
        self._profiled = False
        self._prepare()
        options = self._ort.SessionOptions()
        options.graph_optimization_level = getattr(self._ort.GraphOptimizationLevel, _LEVELS[optimization])
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERROR
        options.use_deterministic_compute = True
        for library in self._libraries:
            try:
                options.register_custom_ops_library(library)
            except Exception as error:
                raise RuntimeError(f"the custom operators of {Path(library).name} do not load: {error}") from error
        by_session = hasattr(self._ort.InferenceSession, "get_provider_graph_assignment_info")
        if by_session and read_back != "profile":
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        else:
            options.enable_profiling = self._profiled = True
            options.profile_file_prefix = os.path.join(folder, "profile")  # noqa: PTH118 -- onnxruntime takes a text
        given = dict(self._options)
        if self._provider == "OpenVINOExecutionProvider" and threads:
            given["num_of_threads"] = str(threads)
        if self._provider == "DmlExecutionProvider":
            options.enable_mem_pattern = False  # that provider cannot have it
        self._session = self._ort.InferenceSession(path, options, providers=[(self._provider, given)])
        self._outputs = [output.name for output in self._session.get_outputs()]
        return {
            "outputs": self._outputs,
            "loaded": self._session.get_providers(),
            "device": self._device,
            "placement": None if self._profiled else self._assigned(),
        }

    def run(self, feeds: str, names: list[str], results: str) -> dict[str, Any]:
        with np.load(feeds) as arrays:
            values = {name: arrays[f"i{k}"] for k, name in enumerate(names)}
        outputs = self._session.run(None, values)
        for name, value in zip(self._outputs, outputs, strict=True):
            if getattr(getattr(value, "dtype", None), "hasobject", True):
                return {"error": f"output {name!r} is no numeric tensor"}
        np.savez(results, **{f"o{k}": value for k, value in enumerate(outputs)})
        answer: dict[str, Any] = {"outputs": self._outputs}
        if self._profiled:
            self._profiled = False
            answer["placement"] = _profile(Path(self._session.end_profiling()))
        return answer

    def _prepare(self) -> None:
        if self._ready:
            return
        self._ready = True
        self._device = _device(self._provider, self._options)
        if self._provider in _NVIDIA and hasattr(self._ort, "preload_dlls"):
            self._ort.preload_dlls()  # the CUDA and cuDNN libraries that pip installs lie where no loader looks

    def _assigned(self) -> list[list[str]]:
        return [
            [part.ep_name, node.name, node.op_type]
            for part in self._session.get_provider_graph_assignment_info()
            for node in part.get_nodes()
        ]


def _profile(path: Path) -> list[list[str]]:
    """[provider, node, operator] of every kernel that ran, out of onnxruntime's profile, which is then removed."""
    events = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    found: dict[tuple[str, str], list[str]] = {}
    for event in events:
        about = event.get("args", {})
        name = str(event.get("name", ""))
        if "provider" in about and name.endswith("_kernel_time"):
            node = name.removesuffix("_kernel_time")
            key = str(about.get("node_index", "")), node  # a node of a loop's body ran many times
            found[key] = [str(about["provider"]), node, str(about.get("op_name", ""))]
    return list(found.values())


def _device(provider: str, options: dict[str, str]) -> str | None:
    """What the provider computes on, in its maker's words; None where there is no telling."""
    if provider == _CPU or (provider == "OpenVINOExecutionProvider" and options.get("device_type", "CPU") == "CPU"):
        return _processor()
    if provider in _NVIDIA:
        return _graphics_card(int(options.get("device_id", "0")))
    return None


def _processor() -> str | None:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # another system
    return platform.processor() or platform.machine() or None


def _graphics_card(index: int) -> str | None:
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        names = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return names[index].strip() if index < len(names) else None


def main(answers: IO[str], settings: dict[str, Any]) -> None:
    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        import onnxruntime  # pyright: ignore[reportMissingTypeStubs] -- it has none

        available: list[str] = onnxruntime.get_available_providers()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType, reportAttributeAccessIssue] -- no stubs
    except Exception as error:  # a broken installation raises whatever its loader raises
        answer({"missing": f"{type(error).__name__}: {error}"})
        return
    onnxruntime.set_default_logger_severity(_ERROR)  # pyright: ignore[reportUnknownMemberType] -- no stubs
    answer({"version": onnxruntime.__version__, "available": available})
    sessions = _Sessions(onnxruntime, settings["provider"], settings["options"], settings["libraries"])
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer(sessions.load(**request["load"]) if "load" in request else sessions.run(**request["run"]))
        except Exception as error:  # the runtime's own classes share no base; the text is what counts
            answer({"error": str(error) or type(error).__name__})


if __name__ == "__main__":
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a kernel that prints must not speak into the protocol
    main(channel, json.loads(sys.argv[1]))
