"""What importing bnfold costs: nothing heavy before it is needed, and no extra that was not asked for."""

import importlib
import inspect
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import bnfold

HEAVY = ("numpy", "onnx", "torch", "onnxruntime", "onnx.reference")
PACKAGE = Path(bnfold.__file__).parent
MODULES = sorted(
    ".".join(("bnfold", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path.name != "__main__.py"  # `python -m bnfold` below is its test
)
# The parts of the package that are of use only together with an extra, and what that extra brings.
EXTRAS = {
    "bnfold.lab": ("matplotlib", "sklearn"),
    "bnfold.pytorch": ("torch",),
    "bnfold.pytest_plugin": ("pytest",),
    "bnfold.train.lightning": ("torch", "lightning"),
    "bnfold.train": ("torch", "sklearn"),
}


def needs(module: str) -> tuple[str, ...]:
    return next((libraries for part, libraries in EXTRAS.items() if f"{module}.".startswith(f"{part}.")), ())


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    run = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr
    return run


def heavy_imports(*arguments: str) -> list[str]:
    """The modules of HEAVY that `python ARGUMENTS` imports, as the interpreter itself reports them."""
    lines = python("-X", "importtime", *arguments).stderr.splitlines()
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    return [module for module in HEAVY if module in imported]


def test_a_heavy_import_would_be_seen():
    assert heavy_imports("-c", "import onnx.reference") == ["numpy", "onnx", "onnx.reference"]


@pytest.mark.parametrize(
    "arguments",
    [("-c", "import bnfold"), ("-m", "bnfold", "--help"), ("-m", "bnfold", "--version")],
    ids=["import", "help", "version"],
)
def test_nothing_heavy_is_imported_before_it_is_needed(arguments: tuple[str, ...]):
    assert heavy_imports(*arguments) == []


def test_version_is_the_package_version():
    assert bnfold.__version__ in python("-m", "bnfold", "--version").stdout.split()[-1]


def test_the_command_is_installed():
    (command,) = entry_points(group="console_scripts", name="bnfold")
    assert callable(command.load())


def test_the_core_needs_no_extra():
    core = [module for module in MODULES if not needs(module)]
    absent = ["torch", "onnxruntime", "onnxscript", "sklearn", "matplotlib"]
    python(
        "-c",
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({absent}))\n"  # None: importing it raises ModuleNotFoundError
        f"for module in {core}: importlib.import_module(module)",
    )


@pytest.mark.parametrize("module", MODULES)
def test_every_module_imports(module: str):
    for library in needs(module):
        pytest.importorskip(library)
    importlib.import_module(module)


@pytest.mark.parametrize("name", [name for name in bnfold.__all__ if name != "__version__"])
def test_every_public_name_has_a_docstring(name: str):
    public = getattr(bnfold, name)
    written = inspect.cleandoc(vars(public).get("__doc__") or "") if inspect.isclass(public) else inspect.getdoc(public)
    assert written
    assert not written.startswith(f"{name}("), "a dataclass made this docstring from its fields"


@pytest.mark.parametrize("name", ["check", "fold"])
def test_a_module_does_not_hide_the_function_of_its_name(name: str):
    python("-c", f"import bnfold.{name}; assert callable(bnfold.{name})")
    python("-c", f"import bnfold; bnfold.{name}; import bnfold.{name}; assert callable(bnfold.{name})")


def test_all_is_complete_and_resolves():
    assert dir(bnfold) == sorted(bnfold.__all__)
    with pytest.raises(AttributeError, match="unfold"):
        bnfold.unfold  # noqa: B018 - reading the attribute is the test


def test_numpy_without_threads_of_blas_leaves_the_environment_as_it_was():
    program = (
        "import os, sys\n"
        "os.environ.pop('OPENBLAS_NUM_THREADS', None)\n"
        "from bnfold.cli.startup import to_fold_alone\n"
        "to_fold_alone()\n"
        "print('numpy' in sys.modules, 'OPENBLAS_NUM_THREADS' in os.environ)"
    )
    assert python("-c", program).stdout.split() == ["True", "False"]


def test_a_fold_alone_executes_no_more_of_onnx_than_it_needs(tmp_path: Path):
    """And the rest is there when it is asked for, as by a model that is text."""
    program = """
import sys, types
from bnfold.cli import main
from bnfold.cli.startup import in_own_process
in_own_process()
code = main(sys.argv[1:])
import onnx
print(code, *sorted(name for name, module in sys.modules.items() if "LazyModule" in str(object.__repr__(module))))
print(onnx.helper.make_node("Relu", ["x"], ["y"]).op_type, onnx.checker.check_model.__name__)
"""
    source = str(Path(__file__).parent.parent / "models" / "conv.onnx")
    later = ("onnx.checker", "onnx.compose", "onnx.parser", "google.protobuf.json_format")
    for number, (target, unused) in enumerate((("b.onnx", later), ("b.textproto", later[:3]), ("b.json", later[:3]))):
        given = source if number < 2 else str(tmp_path / "b.textproto")
        said = python("-c", program, given, "-o", str(tmp_path / target), "--no-check").stdout.splitlines()
        code, *lazy = said[-2].split()
        assert code == "0" and set(unused) <= set(lazy)
        assert said[-1] == "Relu check_model"
    assert bnfold.fold(tmp_path / "b.json").report.folded == ()
    assert (tmp_path / "b.onnx").stat().st_size > 1000
