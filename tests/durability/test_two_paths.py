"""One store, two writers that do not meet at its ``.lock``: the folder itself is locked as well."""

import contextlib
import os
import shutil

import numpy as np
import pytest

import embstore
from embstore._engine.io import steps
from embstore.errors import NotAStoreError, StoreLockedError, StoreReplacedError
from tests._helpers import kinds
from tests._helpers.crash import end_of, run_together, start
from tests._helpers.kinds import key, put
from tests._helpers.mounts import bound


@contextlib.contextmanager
def a_bind_mount(path):
    with bound(path, path.parent / "mounted") as other:
        yield other


@contextlib.contextmanager
def a_bind_mount_of_its_parent(path):
    with bound(path.parent, path.parent.parent / "mounted") as other:
        yield other / path.name


@contextlib.contextmanager
def a_link(path):
    other = path.parent / "link"
    other.symlink_to(path)
    yield other


@contextlib.contextmanager
def a_removed_lock(path):
    path.with_name(f"{path.name}.lock").unlink()
    yield path


@contextlib.contextmanager
def a_replaced_lock(path):
    lock = path.with_name(f"{path.name}.lock")
    lock.unlink()
    lock.touch()
    yield path


@contextlib.contextmanager
def a_move(path):
    yield path.rename(path.parent / "moved.zarr")


@contextlib.contextmanager
def a_moved_parent(path):
    yield path.parent.rename(path.parent.parent / "moved") / path.name


WAYS = [a_bind_mount, a_bind_mount_of_its_parent, a_link, a_removed_lock, a_replaced_lock, a_move, a_moved_parent]
CHANGES = {
    "append": lambda store: put(store, [500]),
    "erase": lambda store: store.erase([key(1)]),
    "set_column": lambda store: store.set_column("score", list(store), 3),
}


@pytest.fixture
def path(tmp_path):
    (tmp_path / "folder").mkdir()
    path = tmp_path / "folder" / "store.zarr"
    kinds.base(path, "raw")
    return path


@contextlib.contextmanager
def in_the_middle(path, change):
    """Start a process that stops in the middle of a change until the block ends, and then finishes it."""
    stopped, go = os.pipe(), os.pipe()

    def hook(operation, where, data):
        if operation == "rename":
            steps.step_hook = None
            os.write(stopped[1], b"x")
            os.read(go[0], 1)

    def work():
        with embstore.open(path, "r+") as store:
            steps.step_hook = hook
            change(store)

    child = start(work)
    os.read(stopped[0], 1)
    try:
        yield
    finally:
        os.write(go[1], b"x")
        assert end_of(child) == 0


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("way", WAYS)
def test_the_second_writer_waits_for_the_first(path, way, change):
    with embstore.open(path, "r+") as store:
        put(store, [400])  # makes the lock
    with contextlib.ExitStack() as stack:
        with in_the_middle(path, CHANGES[change]):
            other = stack.enter_context(way(path))
            with embstore.open(other, "r+", lock_timeout=0.1) as store, pytest.raises(StoreLockedError):
                put(store, [501])
        with embstore.open(other, "r+", lock_timeout=5) as store:
            put(store, [501])
            assert {key(400), key(501)} <= set(store)
            assert (key(500) in store) == (change == "append")
            assert (key(1) in store) == (change != "erase")
        report = embstore.verify(other)
        assert report.ok, str(report)


@pytest.mark.parametrize("way", [a_bind_mount, a_removed_lock, a_replaced_lock])
def test_no_acknowledged_row_is_lost(path, way):
    times = 15

    def work(place, first):
        with embstore.open(place, "r+", lock_timeout=60) as store:
            for i in range(first, first + times):
                put(store, [i])
                if place == path and way is not a_bind_mount:
                    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)

    with embstore.open(path, "r+") as store:
        put(store, [400])
    with way(path) as other:
        assert run_together(*(lambda p=p, n=n: work(p, n) for p, n in ((path, 1000), (other, 2000)))) == [0, 0]
    expected = {key(i) for first in (1000, 2000) for i in range(first, first + times)}
    assert expected <= set(embstore.open(path, check="all"))
    assert embstore.verify(path).ok


def test_a_store_that_moved_is_not_written_by_its_old_path(path):
    store = embstore.open(path, "r+")
    moved = path.rename(path.with_name("moved.zarr"))
    for change in CHANGES.values():
        with pytest.raises(NotAStoreError):
            change(store)
    with embstore.open(moved, "r+") as other:
        put(other, [500])
    assert embstore.verify(moved).ok


def test_a_compaction_does_not_replace_a_store_that_was_put_in_place_of_its_own(path):
    """The folder at the path is another one at the moment of the exchange."""
    other = path.with_name("other.zarr")
    with embstore.open(other, "w-", config={"other": 1}) as store:
        store.append(["a:x"], np.ones((1, 2), np.float32))
    moved = path.with_name("moved.zarr")

    def hook(operation, where, data):
        if operation == "exchange":
            steps.step_hook = None
            path.rename(moved)
            other.rename(path)

    store = embstore.open(path, "r+")
    store.delete([key(1)])
    before = list(store)
    steps.step_hook = hook
    try:
        with pytest.raises(StoreReplacedError):
            store.compact()
    finally:
        steps.step_hook = None
    assert list(embstore.open(path)) == ["a:x"]
    assert list(embstore.open(moved)) == before
    assert embstore.verify(path).ok
    assert embstore.verify(moved).ok


def test_a_store_that_was_replaced_while_the_lock_was_taken(path, monkeypatch):
    """The lock is of the folder that was at the path when it was taken."""
    store = embstore.open(path, "r+")
    copy = path.with_name("copy.zarr")
    shutil.copytree(path, copy)
    newest = type(store._session)._newest

    def swapped(session):
        path.rename(path.with_name("moved.zarr"))
        copy.rename(path)
        return newest(session)

    monkeypatch.setattr(type(store._session), "_newest", swapped)
    with pytest.raises(StoreReplacedError):
        put(store, [500])
    monkeypatch.undo()
    put(store, [500])
    assert key(500) in embstore.open(path)
