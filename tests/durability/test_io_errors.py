"""The disk fails at every step in turn: nothing is lost, and the same store object goes on."""

import errno
import itertools
import shutil

import numpy as np
import pytest

import embstore
from embstore._engine.io import steps
from embstore.errors import CommitUncertainError, StorageFullError
from tests._helpers import kinds
from tests._helpers.crash import leftovers
from tests._helpers.kinds import CHANGES, base, key, put, state
from tests.durability.test_kill import STEPS


@pytest.fixture(autouse=True)
def no_hook_is_left():
    yield
    steps.step_hook = None


def fail_at(step, code):
    """Have the `step`-th operation on the disk fail; return a list that says whether it came to that."""
    failed, count = [], 0

    def hook(operation, path, data):
        nonlocal count
        count += 1
        if count == step + 1:
            failed.append(operation)
            raise OSError(code, "injected", path)

    steps.step_hook = hook
    return failed


CASES = [("raw", errno.EIO), ("raw", errno.ENOSPC), *((kind, errno.ENOSPC) for kind in ("ragged", "zstd", "bfloat16"))]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize(("kind", "code"), CASES)
def test_an_error_at_every_step(tmp_path, kind, code, change):
    """At every step of a raw store, and at each fifth of the others."""
    base(tmp_path / "done", kind)
    with embstore.open(tmp_path / "done", "r+") as store:
        before = state(store)
        change(store)
        after = state(store)
    uncertain, full, stride = 0, False, 1 if kind == "raw" else 5
    for step in itertools.count(STEPS[kind][0], stride):
        path = tmp_path / f"{step}.zarr"
        base(path, kind)
        store = embstore.open(path, "r+")
        failed = fail_at(step, code)
        expected = [after]
        try:
            change(store)
        except CommitUncertainError:
            uncertain += 1
            expected = [before, after]
        except OSError as error:  # erasing is deleting first, in a commit of its own
            full = full or isinstance(error, StorageFullError)
            expected = [before, after] if change is kinds.erase else [before]
        steps.step_hook = None
        assert state(embstore.open(path, check="all")) in expected
        store.refresh()
        found = state(store)
        assert found in expected
        put(store, [1001], ["next:c"])
        assert state(store)["keys"] == [*found["keys"], "next:c"]
        assert leftovers(path) == []
        report = embstore.verify(path)
        assert report.ok, str(report)
        shutil.rmtree(path)
        if not failed:
            break
    assert step > 8
    assert uncertain > 0 or stride > 1
    assert full == (code == errno.ENOSPC)


def test_an_uncertain_commit_can_be_asked_for(path):
    base(path, "raw")
    with embstore.open(path, "r+") as store:
        seen = []

        def hook(operation, where, data):
            seen.append((operation, where))
            renamed = ("rename", str(path / "zarr.json")) in seen
            if renamed and operation == "sync_folder" and where == str(path):
                raise OSError(errno.EIO, "injected")

        steps.step_hook = hook
        with pytest.raises(CommitUncertainError) as caught:
            put(store, [500])
        steps.step_hook = None
        assert caught.value.commit_id
        store.refresh()
        assert store.missing([key(500), key(501)]) == [key(501)]


def test_an_index_that_can_not_be_written_does_not_fail_the_append(path, monkeypatch, caplog):
    monkeypatch.setattr("embstore._engine.write.index_file._LEAST_RUN", 10)
    with embstore.open(path, "w-", config={}) as store:

        def hook(operation, where, data):
            if "/index" in where:
                raise OSError(errno.ENOSPC, "injected", where)

        steps.step_hook = hook
        rows = np.ones((50, 3), np.float32)
        assert store.append([key(i) for i in range(50)], rows).appended == 50
        steps.step_hook = None
        assert "index could not be written" in caplog.text
        assert store.missing([key(i) for i in range(51)]) == [key(50)]
        store.append([key(50)], rows[:1])
        assert list((path / "index").glob("keys.*"))
    assert embstore.verify(path).ok
