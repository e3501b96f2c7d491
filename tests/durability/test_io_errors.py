"""The disk fails at every step in turn: nothing is lost, and the same store object goes on."""

import errno

import numpy as np
import pytest

import embstore
from embstore._engine.io import steps
from embstore.errors import CommitUncertainError, StorageFullError
from tests._helpers.crash import leftovers
from tests.durability import test_kill
from tests.durability.test_kill import base, key, rows, state

CHANGES = [
    test_kill.append,
    test_kill.replace,
    test_kill.delete,
    test_kill.erase,
    test_kill.compact,
    test_kill.set_column,
    test_kill.add_field,
]


@pytest.fixture(autouse=True)
def no_hook_is_left():
    yield
    steps.step_hook = None


def fail_at(step, code):
    """Have the `step`-th operation on the disk fail; returns a list that says whether it came to that."""
    failed, count = [], 0

    def hook(operation, path, data):
        nonlocal count
        count += 1
        if count == step + 1:
            failed.append(operation)
            raise OSError(code, "injected", path)

    steps.step_hook = hook
    return failed


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("change", CHANGES)
def test_an_error_at_every_step(tmp_path, change, code):
    base(tmp_path / "done")
    with embstore.open(tmp_path / "done", "r+") as store:
        before = state(store)
        change(store)
        after = state(store)
    step, uncertain, full = 0, 0, False
    while True:
        path = tmp_path / f"{step}.zarr"
        base(path)
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
            expected = [before, after] if change is test_kill.erase else [before]
        steps.step_hook = None
        assert state(embstore.open(path, check="all")) in expected
        store.refresh()
        found = state(store)
        assert found in expected
        fields = {name: np.ones((1, *spec.shape), spec.dtype) for name, spec in store.fields.items()}
        store.append(["next:c"], fields, columns={"score": 1})
        assert state(store)["keys"] == [*found["keys"], "next:c"]
        assert leftovers(path) == []
        report = embstore.verify(path)
        assert report.ok, str(report)
        if not failed:
            break
        step += 1
    assert step > 8
    assert uncertain > 0
    assert full == (code == errno.ENOSPC)


def test_an_uncertain_commit_can_be_asked_for(path):
    base(path)
    with embstore.open(path, "r+") as store:
        seen = []

        def hook(operation, where, data):
            seen.append((operation, where))
            renamed = ("rename", str(path / "zarr.json")) in seen
            if renamed and operation == "sync_folder" and where == str(path):
                raise OSError(errno.EIO, "injected")

        steps.step_hook = hook
        with pytest.raises(CommitUncertainError) as caught:
            store.append([key(500)], rows([500]), columns={"score": [1]})
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
        assert store.append([key(i) for i in range(50)], rows(range(50))).appended == 50
        steps.step_hook = None
        assert "index could not be written" in caplog.text
        assert store.missing([key(i) for i in range(51)]) == [key(50)]
        store.append([key(50)], rows([50]))
        assert list((path / "index").glob("keys.*"))
    assert embstore.verify(path).ok
