"""The public names of `embstore_fl`, and what importing it costs."""

import importlib
import subprocess
import sys

import pytest

import embstore_fl
from embstore_fl import errors


@pytest.mark.parametrize("package", ["embstore_fl", "embstore_fl.datasets", "embstore_fl.a2v"])
def test_every_public_name_is_there(package):
    pytest.importorskip("torch")
    module = importlib.import_module(package)
    names = {*module.__all__} - {"flower"}  # it needs flwr
    assert {*names, *module.__all__} == {*dir(module)}
    for name in names:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError):
        module.nothing  # noqa: B018


def test_importing_it_loads_no_heavy_library():
    code = (
        "import sys, embstore_fl, embstore_fl.errors, embstore_fl.datasets, embstore_fl.a2v, embstore_fl.metrics; "
        "print([name for name in ('torch', 'transformers', 'flwr', 'zarr') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_error_is_one_of_embstores_and_in_the_tree():
    for name in errors.__all__:
        assert issubclass(getattr(errors, name), embstore_fl.errors.EmbstoreError)
        assert f"-- {name} (" in errors.__doc__
