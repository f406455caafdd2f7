"""Running a model under onnxruntime (CPU, graph optimisations disabled) in a child process.

with Provider(threads=2) as provider:     # raises NoProvider where onnxruntime is absent
    provider.load(path)                   # ProviderError: the runtime said no
    outputs = provider.run(feeds)         # ProviderDied: it crashed, hung or was killed
"""

import importlib.util
import json
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

__all__ = ["NoProvider", "Provider", "ProviderDied", "ProviderError", "clean_sentence"]

Array = npt.NDArray[Any]

TIMEOUT = 600.0  # seconds for one request; a single run of the largest models takes tens of seconds on a CPU
_START_TIMEOUT = 120.0  # a cold disk may take long to read onnxruntime


class NoProvider(Exception):
    """onnxruntime is not installed, or does not load; the text says which."""


class ProviderError(Exception):
    """The runtime refused the model or the inputs; the text is its own sentence, cleaned to one line."""


class ProviderDied(ProviderError):
    """The runtime ended its process, or had to be ended."""


class Provider:
    """One child process with one model at a time. A context manager: leaving it ends the child."""

    name = "onnxruntime CPU"

    def __init__(self, *, threads: int | None = None, timeout: float = TIMEOUT) -> None:
        """Start the child; it imports onnxruntime while the caller goes on. `threads` None: the runtime's default."""
        if not _installed():
            raise NoProvider("onnxruntime is not installed (pip install 'bnfold[cpu]')")
        self._timeout = timeout
        self._folder = tempfile.TemporaryDirectory(prefix="bnfold-check-", ignore_cleanup_errors=True)
        self._log = (Path(self._folder.name) / "stderr.txt").open("wb")
        # -P: this folder must not come first on the child's path, where its modules would hide others.
        self._child = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("worker.py")), str(threads or 0)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
        )
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._version: str | None = None
        self._runs = 0

    @property
    def folder(self) -> Path:
        """A temporary folder that lives as long as the provider; models that have no file are written there."""
        return Path(self._folder.name)

    @property
    def version(self) -> str:
        """onnxruntime's version. The first use waits for the child to be ready; NoProvider when it cannot be."""
        if self._version is None:
            answer = self._wait(_START_TIMEOUT)
            if "missing" in answer:
                raise NoProvider(f"onnxruntime is installed but does not load: {clean_sentence(answer['missing'])}")
            self._version = str(answer["version"])
        return self._version

    def load(self, path: Path, *, optimization: str = "disabled") -> tuple[str, ...]:
        """Load the model file in place of the one before it; returns the names of its outputs."""
        answer = self._ask({"do": "load", "path": str(path), "optimization": optimization})
        return tuple(answer["outputs"])

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the loaded model once; the arrays have the types of the model's inputs and outputs."""
        source, target = self.folder / f"in{self._runs}.npz", self.folder / f"out{self._runs}.npz"
        self._runs += 1
        np.savez(source, **{f"i{k}": value for k, value in enumerate(feeds.values())})  # pyright: ignore[reportArgumentType] -- the stub takes **kwds for allow_pickle
        try:
            answer = self._ask({"do": "run", "feeds": str(source), "names": list(feeds), "results": str(target)})
            with np.load(target) as arrays:
                return {name: arrays[f"o{k}"] for k, name in enumerate(answer["outputs"])}
        finally:
            source.unlink(missing_ok=True)
            target.unlink(missing_ok=True)

    def close(self) -> None:
        if self._child.poll() is None:
            self._child.kill()
        self._child.wait()
        for stream in (self._child.stdin, self._child.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    continue  # a pipe whose other end is gone cannot be flushed
        self._reader.join(timeout=5)
        self._log.close()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> None:
        assert self._child.stdout is not None
        try:
            for line in self._child.stdout:
                self._answers.put(line)
        except ValueError:
            pass  # close() closed the stream under the reader
        self._answers.put(None)

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        _ = self.version
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(request) + "\n")
            self._child.stdin.flush()
        except OSError as error:
            raise ProviderDied(self._epitaph()) from error
        answer = self._wait(self._timeout)
        if "error" in answer:
            raise ProviderError(clean_sentence(str(answer["error"]), str(request.get("path", ""))))
        return answer

    def _wait(self, seconds: float) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=seconds)
        except queue.Empty:
            self._child.kill()
            self._child.wait()
            raise ProviderDied(f"onnxruntime did not answer within {seconds:g} s and was stopped") from None
        if line is None:
            raise ProviderDied(self._epitaph())
        return json.loads(line)

    def _epitaph(self) -> str:
        code = self._child.wait()
        if code == -signal.SIGTERM or code == -getattr(signal, "SIGKILL", 9):
            return "onnxruntime's process was killed from outside, most likely because the memory ran out"
        if code < 0:
            return f"onnxruntime crashed on it ({signal.Signals(-code).name})"
        return f"onnxruntime ended its process with code {code}"


def _installed() -> bool:
    try:
        return importlib.util.find_spec("onnxruntime") is not None
    except (ImportError, ValueError):
        return False


def clean_sentence(text: str, path: str = "", limit: int = 300) -> str:
    """One line of at most `limit` characters out of a runtime's message, without its prefixes and source positions."""
    if path:
        text = text.replace(path, Path(path).name)
    text = re.sub(r"\[ONNXRuntimeError\]\s*:\s*\d+\s*:\s*(?:[A-Z_]+\s*:\s*)?", "", text)
    text = re.sub(r"(/[^\s:]+)+\.(cc|h|cpp|hpp):\d+:?\s*", "", text)  # a position in the runtime's source
    text = re.sub(r"\b\w+\.(cc|h|cpp|hpp):\d+:?\s*", "", text)
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
