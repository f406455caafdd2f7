"""The child process that times two models under ONNX Runtime, in turn, so that they share what else the machine does.

It is started by latency.py as a plain script, imports nothing of bnfold, and prints one line of JSON.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import IO, Any

import numpy as np

_SESSIONS = 5  # how often each session is made
_WARM = 3  # runs of each that do not count
_SECONDS = 20.0  # of counted runs; the ones that have begun by then are finished, and at least _LEAST
_LEAST = 5
_ERROR = 3  # onnxruntime's log level


def _options(ort: Any, settings: dict[str, Any]) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = settings["threads"]
    options.log_severity_level = _ERROR
    for library in settings["libraries"]:
        options.register_custom_ops_library(library)
    return options


def _session(ort: Any, path: str, settings: dict[str, Any], profile: str = "") -> Any:
    options = _options(ort, settings)
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _kernels(ort: Any, path: str, settings: dict[str, Any], feeds: dict[str, Any]) -> int:
    """How many kernels one run launches, those in the bodies of loops each time."""
    session = _session(ort, path, settings, os.path.join(settings["folder"], "profile"))  # noqa: PTH118 -- a text
    session.run(None, feeds)
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return sum(str(event.get("name", "")).endswith("_kernel_time") for event in events)


def measured(ort: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Seconds of making each session and of each run, and the kernels of a run, a list for each model."""
    paths = settings["models"]
    with np.load(settings["feeds"]) as arrays:
        feeds = {name: arrays[f"i{k}"] for k, name in enumerate(settings["names"])}
    creation: list[list[float]] = [[] for _ in paths]
    runs: list[list[float]] = [[] for _ in paths]
    order = list(range(len(paths)))
    for _ in range(_SESSIONS):
        for k in order:
            start = time.perf_counter()
            _session(ort, paths[k], settings)
            creation[k].append(time.perf_counter() - start)
        order.reverse()  # whoever comes second finds the caches warm
    sessions = [_session(ort, path, settings) for path in paths]
    for session in sessions * _WARM:
        session.run(None, feeds)
    end = time.perf_counter() + _SECONDS
    for count in range(settings["runs"]):
        if count >= _LEAST and time.perf_counter() > end:
            break
        for k in order:
            start = time.perf_counter()
            sessions[k].run(None, feeds)
            runs[k].append(time.perf_counter() - start)
        order.reverse()
    kernels = [_kernels(ort, path, settings, feeds) for path in paths]
    return {"creation": creation, "runs": runs, "kernels": kernels, "version": ort.__version__}


def main(answers: IO[str], settings: dict[str, Any]) -> None:
    try:
        import onnxruntime  # pyright: ignore[reportMissingTypeStubs] -- it has none

        answer = measured(onnxruntime, settings)
    except Exception as error:  # the runtime's own classes share no base; the text is what counts
        answer = {"error": f"{error}" or type(error).__name__}
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a kernel that prints must not speak into the answer
    main(channel, json.loads(sys.argv[1]))
