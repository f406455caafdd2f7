"""pytest: `assert_equivalent(original, candidate)`, the fixture `bnfold`, and `pytest --bnfold models/*.onnx`.

pytest imports this at every start, so everything heavy is imported when it is first used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import os

    import onnx

    from .check.verdict import CheckResult
    from .fold import FoldResult

    Source = str | os.PathLike[str] | onnx.ModelProto

__all__ = ["Bnfold", "assert_equivalent"]


def assert_equivalent(
    original: Source, candidate: Source, *, accept: Sequence[str] = (), **options: Any
) -> CheckResult:
    """Assert that `candidate` is the same function as `original`, and return the check's result.

    accept: verdicts that will do although they are no pass, as in ("degraded",). options: those of `bnfold.check`.
    """
    __tracebackhide__ = True
    from .check import check

    result = check(original, candidate, **options)
    if not (result or result.verdict.name.lower() in {word.lower() for word in accept}):
        raise AssertionError(str(result))
    return result


class Bnfold:
    """What the fixture `bnfold` gives."""

    assert_equivalent = staticmethod(assert_equivalent)

    @staticmethod
    def fold(model: Source, **options: Any) -> FoldResult:
        """`bnfold.fold`."""
        from .fold import fold

        return fold(model, **options)

    @staticmethod
    def check(original: Source, candidate: Source, **options: Any) -> CheckResult:
        """`bnfold.check`."""
        from .check import check

        return check(original, candidate, **options)


@pytest.fixture(scope="session", name="bnfold")
def _bnfold() -> Bnfold:  # pyright: ignore[reportUnusedFunction] -- pytest uses it
    """Folding and checking ONNX models: `.fold`, `.check` and `.assert_equivalent`."""
    return Bnfold()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("bnfold", "BatchNormalization folding").addoption(
        "--bnfold",
        action="store_true",
        help="Collect the .onnx files that are given, or lie in the directories given: each is folded in memory and "
        "checked; MODEL.folded.onnx beside MODEL.onnx is checked against it.",
    )


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if file_path.suffix == ".onnx" and parent.config.getoption("--bnfold"):
        return ModelFile.from_parent(parent, path=file_path)  # pyright: ignore[reportUnknownMemberType] -- pytest leaves **kw open
    return None


class ModelFile(pytest.File):
    """An .onnx file: one item."""

    def collect(self) -> Iterable[pytest.Item]:
        from .files.names import source_of

        original = source_of(self.path)
        name = "fold" if original is None else "check"
        yield ModelItem.from_parent(self, name=name, original=original)  # pyright: ignore[reportUnknownMemberType] -- pytest leaves **kw open


class ModelItem(pytest.Item):
    """Fold the model in memory and check it, or check it against the `original` that it was folded from."""

    def __init__(self, *, original: Path | None = None, **others: Any) -> None:
        super().__init__(**others)  # pyright: ignore[reportUnknownMemberType] -- pytest leaves **kw open
        self._original = original

    def runtest(self) -> None:
        from .errors import BnfoldError

        try:
            self._run()
        except BnfoldError as error:
            raise NotTheSame(str(error)) from error

    def _run(self) -> None:
        from .check import check
        from .fold import fold

        if self._original is not None:
            result = check(self._original, self.path)
        else:
            folded = fold(self.path)
            if not folded.changed:
                pytest.skip("nothing to fold")
            self.add_report_section("call", "fold", str(folded.report))
            result = folded.check()
        self.add_report_section("call", "check", str(result))
        if not result:
            raise NotTheSame(str(result))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The verdict's own text: there is no line of Python to show."""
        if isinstance(excinfo.value, NotTheSame):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        return self.path, None, f"{self.path.name}::{self.name}"


class NotTheSame(Exception):
    """The verdict on a model was no pass, or there was none; the text is for people."""
