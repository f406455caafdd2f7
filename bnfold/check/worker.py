"""The child process that runs models under ONNX Runtime, so that a crash there is not a crash here.

It is started by providers.py as a plain script, imports nothing of bnfold, and talks in lines of JSON: a request on
stdin, an answer on stdout; arrays travel as .npz files. Whatever ONNX Runtime prints goes to stderr.
"""

import json
import os
import sys
from typing import IO, Any

import numpy as np

_LEVELS = {"disabled": "ORT_DISABLE_ALL", "all": "ORT_ENABLE_ALL"}


class _Sessions:
    """The one session that is loaded; a new one replaces it, so that two models are never in memory together."""

    def __init__(self, ort: Any, threads: int) -> None:
        self._ort = ort
        self._threads = threads
        self._session: Any = None
        self._outputs: list[str] = []

    def load(self, path: str, optimization: str) -> dict[str, Any]:
        self._session = None
        options = self._ort.SessionOptions()
        options.graph_optimization_level = getattr(self._ort.GraphOptimizationLevel, _LEVELS[optimization])
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        self._session = self._ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._outputs = [output.name for output in self._session.get_outputs()]
        return {"outputs": self._outputs}

    def run(self, feeds: str, names: list[str], results: str) -> dict[str, Any]:
        with np.load(feeds) as arrays:
            values = {name: arrays[f"i{k}"] for k, name in enumerate(names)}
        outputs = self._session.run(None, values)
        for name, value in zip(self._outputs, outputs, strict=True):
            if getattr(getattr(value, "dtype", None), "hasobject", True):
                return {"error": f"output {name!r} is no numeric tensor"}
        np.savez(results, **{f"o{k}": value for k, value in enumerate(outputs)})
        return {"outputs": self._outputs}


def main(answers: IO[str], threads: int) -> None:
    def answer(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        import onnxruntime  # pyright: ignore[reportMissingTypeStubs] -- it has none
    except Exception as error:  # a broken installation raises whatever its loader raises
        answer({"missing": f"{type(error).__name__}: {error}"})
        return
    onnxruntime.set_default_logger_severity(4)  # pyright: ignore[reportUnknownMemberType] -- no stubs
    answer({"version": onnxruntime.__version__})
    sessions = _Sessions(onnxruntime, threads)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "load":
                answer(sessions.load(request["path"], request["optimization"]))
            else:
                answer(sessions.run(request["feeds"], request["names"], request["results"]))
        except Exception as error:  # the runtime's own classes share no base; the text is what counts
            answer({"error": str(error) or type(error).__name__})


if __name__ == "__main__":
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a kernel that prints must not speak into the protocol
    main(channel, int(sys.argv[1]))
