"""Running a model under onnxruntime in a child process: on one execution provider, optimisations disabled or all on.

with Provider("cuda") as provider:        # raises NoProvider where onnxruntime is absent
    provider.load(path)                   # ProviderError: the runtime said no; NotLoaded: the provider did not load
    outputs = provider.run(feeds)         # ProviderDied: it crashed, hung or was killed
"""

import importlib.util
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from .catalogue import DEFAULT, Choice, chosen, named
from .placement import Placement, placed

__all__ = ["NoProvider", "NotLoaded", "Provider", "ProviderDied", "ProviderError", "clean_sentence", "listing"]

Array = npt.NDArray[Any]

TIMEOUT = 600.0  # seconds for one request; a single run of the largest models takes tens of seconds on a CPU
_START_TIMEOUT = 120.0  # a cold disk may take long to read onnxruntime


class NoProvider(Exception):
    """onnxruntime is not installed, or does not load; the text says which."""


class ProviderError(Exception):
    """The runtime refused the model or the inputs; the text is its own sentence, cleaned to one line."""


class NotLoaded(ProviderError):
    """The execution provider is not in this onnxruntime, or did not load; a session would run on the CPU instead."""


class ProviderDied(ProviderError):
    """The runtime ended its process, or had to be ended. `exhausted`: for want of time or memory."""

    def __init__(self, text: str, *, exhausted: bool) -> None:
        super().__init__(text)
        self.exhausted = exhausted


class Provider:
    """One child process with one model at a time. A context manager: leaving it ends the child.

    `device` names what it computes on, once something was loaded; `placement` says where the nodes of the loaded model
    run, None before that is known (an onnxruntime before 1.24 tells it only after a run).
    """

    def __init__(
        self,
        provider: str | Choice = DEFAULT,
        *,
        threads: int | None = None,
        timeout: float | None = None,
        tf32: bool = False,
        libraries: Sequence[str | os.PathLike[str]] = (),
    ) -> None:
        """Start the child; it imports onnxruntime while the caller goes on.

        provider: a short name or onnxruntime's full one; UsageError for a name that the catalogue lacks. threads None:
        the runtime's default. timeout: seconds for one request. libraries: of custom operators.
        """
        self.choice = provider if isinstance(provider, Choice) else chosen([provider], listing, tf32=tf32)[0]
        if not _installed():
            raise NoProvider("onnxruntime is not installed (pip install 'bnfold[cpu]')")
        self.device: str | None = None
        self.placement: Placement | None = None
        self._threads = threads or 0
        self._timeout = TIMEOUT if timeout is None else timeout
        self._folder = tempfile.TemporaryDirectory(prefix="bnfold-check-", ignore_cleanup_errors=True)
        self._log = (Path(self._folder.name) / "stderr.txt").open("wb")
        environment = dict(os.environ)
        if self.choice.tf32 is False:
            environment["NVIDIA_TF32_OVERRIDE"] = "0"  # what has no option of its own obeys this
        settings = {
            "provider": self.choice.name,
            "options": dict(self.choice.options),
            "libraries": [str(Path(library).absolute()) for library in libraries],
        }
        # -P: this folder must not come first on the child's path, where its modules would hide others.
        self._child = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("worker.py")), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
            env=environment,
        )
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._version: str | None = None
        self._available: tuple[str, ...] = ()
        self._runs = 0

    @property
    def folder(self) -> Path:
        """A temporary folder that lives as long as the provider; models that have no file are written there."""
        return Path(self._folder.name)

    @property
    def process(self) -> int:
        """The child's process id."""
        return self._child.pid

    @property
    def version(self) -> str:
        """onnxruntime's version. The first use waits for the child to be ready; NoProvider when it cannot be."""
        if self._version is None:
            answer = self._wait(_START_TIMEOUT)
            if "missing" in answer:
                raise NoProvider(f"onnxruntime is installed but does not load: {clean_sentence(answer['missing'])}")
            self._version = str(answer["version"])
            self._available = tuple(answer["available"])
        return self._version

    @property
    def available(self) -> tuple[str, ...]:
        """The providers that this onnxruntime was built with, by their full names; whether they load is not said."""
        _ = self.version
        return self._available

    def load(
        self,
        path: Path,
        *,
        optimization: str = "disabled",
        threads: int | None = None,
        read_back: str | None = None,
    ) -> tuple[str, ...]:
        """Load the model file in place of the one before it; returns the names of its outputs.

        optimization: "disabled" or "all". threads: for this model, instead of the provider's. read_back: "profile"
        learns the placement from a profile of the first run, as it is done where the session cannot say it.
        """
        if self.choice.name not in self.available:
            has = ", ".join(named(name).short for name in self.available)
            raise NotLoaded(f"{self.choice.name} is not in this onnxruntime ({self.version} has {has})")
        self.placement = None
        request = {
            "path": str(path),
            "optimization": optimization,
            "threads": self._threads if threads is None else threads,
            "folder": str(self.folder),
            "read_back": read_back,
        }
        said = self._said()
        answer = self._ask({"load": request}, path)
        if self.choice.name not in answer["loaded"]:
            reason = loader_reason(self._said()[len(said) :])
            raise NotLoaded(f"{self.choice.name} does not load" + (f": {reason}" if reason else ""))
        self.device = answer["device"]
        if answer["placement"] is not None:
            self.placement = placed(self.choice.name, answer["placement"])
        return tuple(answer["outputs"])

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the loaded model once; the arrays have the types of the model's inputs and outputs."""
        source, target = self.folder / f"in{self._runs}.npz", self.folder / f"out{self._runs}.npz"
        self._runs += 1
        np.savez(source, **{f"i{k}": value for k, value in enumerate(feeds.values())})  # pyright: ignore[reportArgumentType] -- the stub takes **kwds for allow_pickle
        try:
            answer = self._ask({"run": {"feeds": str(source), "names": list(feeds), "results": str(target)}})
            if answer.get("placement") is not None:
                self.placement = placed(self.choice.name, answer["placement"])
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

    def _said(self) -> str:
        """What the runtime wrote to stderr so far."""
        return (self.folder / "stderr.txt").read_text(encoding="utf-8", errors="replace")

    def _ask(self, request: Mapping[str, Any], path: Path | None = None) -> dict[str, Any]:
        _ = self.version
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(request) + "\n")
            self._child.stdin.flush()
        except OSError as error:
            raise self._dead() from error
        answer = self._wait(self._timeout)
        if "error" in answer:
            raise ProviderError(clean_sentence(str(answer["error"]), str(path or "")))
        return answer

    def _wait(self, seconds: float) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=seconds)
        except queue.Empty:
            self._child.kill()
            self._child.wait()
            text = f"onnxruntime did not answer within {seconds:g} s and was stopped"
            raise ProviderDied(text, exhausted=True) from None
        if line is None:
            raise self._dead()
        return json.loads(line)

    def _dead(self) -> ProviderDied:
        code = self._child.wait()
        if code == -signal.SIGTERM or code == -getattr(signal, "SIGKILL", 9):
            text = "onnxruntime's process was killed from outside, most likely because the memory ran out"
            return ProviderDied(text, exhausted=True)
        if code < 0:
            return ProviderDied(f"onnxruntime crashed on it ({signal.Signals(-code).name})", exhausted=False)
        return ProviderDied(f"onnxruntime ended its process with code {code}", exhausted=False)


def listing() -> tuple[str, ...]:
    """The providers that the installed onnxruntime was built with; none where it is absent or does not load."""
    try:
        with Provider() as provider:
            return provider.available
    except (NoProvider, ProviderDied):
        return ()


def _installed() -> bool:
    try:
        return importlib.util.find_spec("onnxruntime") is not None
    except (ImportError, ValueError):
        return False


def loader_reason(log: str) -> str:
    """Why a provider did not load, out of what onnxruntime logged: the loader's own words, if there are any."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", log)
    lines = [re.sub(r"^\d{4}-\d\d-\d\d [\d:.]+ \[\w:[^\]]*\]\s*", "", line).strip() for line in plain.splitlines()]
    for mark in ("with error:", "Require", "Failed to", "cannot open", "rror"):
        for line in lines:
            if mark in line:
                return clean_sentence(line.partition("with error:")[2] or line)
    return ""


def clean_sentence(text: str, path: str = "", limit: int = 300) -> str:
    """One line of at most `limit` characters out of a runtime's message, without its prefixes and source positions."""
    if path:
        text = text.replace(path, Path(path).name)
    if "bad_alloc" in text or "Failed to allocate memory" in text:
        return "the memory ran out"
    text = re.sub(r"\[ONNXRuntimeError\]\s*:\s*\d+\s*:\s*(?:[A-Z_]+\s*:\s*)?", "", text)
    text = re.sub(r"(/[^\s:]+)+\.(cc|h|cpp|hpp):\d+:?\s*", "", text)  # a position in the runtime's source
    text = re.sub(r"\b\w+\.(cc|h|cpp|hpp):\d+:?\s*", "", text)
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
