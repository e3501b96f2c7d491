"""A cache, a log of encoded samples and a folder of files; no test leaves a hook on the steps of writing."""

import pytest

import embstore
from embstore._engine.io import steps


@pytest.fixture
def cache(tmp_path):
    return embstore.Cache(tmp_path / "cache")


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log"


@pytest.fixture
def root(tmp_path):
    (tmp_path / "files").mkdir()
    return tmp_path / "files"


@pytest.fixture(autouse=True)
def no_hook_is_left():
    yield
    steps.step_hook = None
