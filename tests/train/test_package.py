"""bnfold.train imports torch only when a name is used, and its functions are not hidden by modules of their names."""

import subprocess
import sys

import pytest

pytest.importorskip("torch")

from bnfold import train


def python(script: str) -> None:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_imports_no_torch():
    python("import sys, bnfold.train; assert 'torch' not in sys.modules; assert 'refresh' in dir(bnfold.train)")


def test_a_module_does_not_hide_the_function_of_its_name():
    python(
        "import bnfold.train.refresh, bnfold.train.drift, bnfold.train.collect\n"
        "from bnfold import train\n"
        "assert all(callable(f) for f in (train.refresh, train.drift, train.collect))\n"
        "assert train.functional.batch_norm_transform\n"
        "import bnfold.train.fitting, bnfold.train.loops\n"
        "assert train.fit.__name__ == 'fit' and train.refresh_in.__name__ == 'refresh_in'"
    )


@pytest.mark.parametrize("name", train.__all__)
def test_every_name_is_there_and_has_a_docstring(name: str):
    assert getattr(train, name).__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="refreshed"):
        train.refreshed  # noqa: B018 - reading the attribute is the test
