"""The fixtures of the tests of caches, and the files that a run reads."""

import pytest

from embstore.sources import FileSample
from tests.cache.conftest import cache, log, no_hook_is_left, root

__all__ = ["cache", "log", "no_hook_is_left", "root"]


@pytest.fixture
def reads(monkeypatch):
    """Return a function that returns the names of the files that were read since its last call, sorted."""
    names, read = [], FileSample._open

    def counted(sample):
        names.append(sample.path.stem)
        return read(sample)

    def taken():
        found = sorted(names)
        names.clear()
        return found

    monkeypatch.setattr(FileSample, "_open", counted)
    return taken
