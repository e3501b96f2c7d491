"""Files that become durable together: each is synced before it has its name, and its folder after."""

import errno
import os
import resource
import threading
import time

import numpy as np
import pytest

import embstore
from embstore import errors
from embstore._engine.io import durable, folder, steps
from embstore._engine.io.durable import WriteBatch
from embstore._engine.io.folder import Folder, is_partial
from tests._helpers.crash import leftovers


@pytest.fixture
def folders(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    return [Folder.open(tmp_path / name) for name in "ab"]


@pytest.fixture
def order(monkeypatch):
    """The order in which files were synced, named, and folders synced; the first syncs take longest."""
    events, delays, lock = [], iter(range(100)), threading.Lock()
    real_sync, real_rename = durable.sync_descriptor, os.rename

    def sync(descriptor):
        with lock:
            delay = max(0, 5 - next(delays)) * 0.01
        time.sleep(delay)
        real_sync(descriptor)
        events.append(("synced", os.readlink(f"/proc/self/fd/{descriptor}").rpartition("/")[2]))

    def rename(source, target, **where):
        events.append(("named", source))
        real_rename(source, target, **where)

    for module in (durable, folder):
        monkeypatch.setattr(module, "sync_descriptor", sync)
    monkeypatch.setattr(durable.os, "rename", rename)
    return events


def test_each_is_synced_before_it_has_its_name_and_its_folder_after(folders, order):
    a, _ = folders
    with WriteBatch() as batch:
        for number in range(20):
            batch.write(a, f"c.{number}", [b"x" * number])
    seen = {}
    for what, name in order:
        if what == "named":
            assert seen.pop(name) == "synced", name
        else:
            seen[name] = what
    assert order[-1] == ("synced", "a")
    assert [name for _, name in order].count("a") == 1
    assert {name: (a.path / name).read_bytes() for name in a.names()} == {f"c.{n}": b"x" * n for n in range(20)}


@pytest.mark.parametrize(
    ("allowed", "most"), [(20_000, durable._MOST_OPEN), (resource.RLIM_INFINITY, durable._MOST_OPEN), (80, 10), (4, 1)]
)
def test_no_more_are_under_way_than_a_process_may_have_descriptors_for(folders, monkeypatch, allowed, most):
    real = resource.getrlimit
    monkeypatch.setattr(
        durable.resource, "getrlimit", lambda what: (allowed,) * 2 if what == resource.RLIMIT_NOFILE else real(what)
    )
    a, _ = folders
    before, found = len(os.listdir("/proc/self/fd")), 0
    with WriteBatch() as batch:
        for number in range(2 * durable._MOST_OPEN):
            batch.write(a, f"c.{number}", [b"x"])
            found = max(found, len(os.listdir("/proc/self/fd")) - before)
        assert all(map(is_partial, a.names()))
    assert found == most
    assert sorted(a.names()) == sorted(f"c.{number}" for number in range(2 * durable._MOST_OPEN))


def test_the_disk_works_on_all_of_them_before_the_first_is_synced(folders, monkeypatch):
    """One commit of the file system's journal then covers them all."""
    events = []
    real = durable.sync_descriptor
    monkeypatch.setattr(durable, "start_writeback", lambda descriptor: events.append("written back"))
    monkeypatch.setattr(durable, "sync_descriptor", lambda descriptor: events.append("synced") or real(descriptor))
    a, b = folders
    with WriteBatch() as batch:
        for folder, name in ((a, "one"), (a, "two"), (b, "one")):
            batch.write(folder, name, [name.encode()])
    assert events == ["written back"] * 3 + ["synced"] * 3


def write_all(folder, names):
    with WriteBatch() as batch:
        for name in names:
            batch.write(folder, name, [b"x"])


@pytest.mark.parametrize("which", range(5))
def test_a_sync_that_fails_leaves_no_file(folders, monkeypatch, which):
    a, _ = folders
    real, names = durable.sync_descriptor, [f"c.{number}" for number in range(5)]

    def sync(descriptor):
        if os.fstat(descriptor).st_ino == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    def hook(operation, path, data):
        nonlocal failing, created
        if operation == "write":
            created += 1
            if created == which + 1:
                failing = os.stat(path).st_ino

    failing, created = -1, 0
    monkeypatch.setattr(durable, "sync_descriptor", sync)
    monkeypatch.setattr(steps, "step_hook", hook)
    with pytest.raises(errors.StorageFullError):
        write_all(a, names)
    assert a.names() == []


def test_a_block_that_raises_leaves_no_temporary_files(folders):
    a, _ = folders

    def names():
        yield "one"
        yield "two"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_all(a, names())
    assert a.names() == []


def test_the_files_of_one_folder_are_published_first(folders):
    a, b = folders
    with WriteBatch() as batch:
        batch.write(b, "other", [b"1"])
        batch.write(a, "one", [b"1"])
        batch.publish(batch.pending(a))
        assert a.read("one", most=10) == b"1"
        assert "other" not in b.names()
    assert b.names() == ["other"]


@pytest.mark.parametrize("name", [".partial", ".partial-1", ".partial-12"])
def test_the_next_writer_removes_what_a_killed_one_left(make, name):
    store, keys, rows = make(columns=False)
    for place in (store.path, store.path / "embedding", store.path / "file_id"):
        (place / name).write_bytes(b"half")
    store.close()
    with embstore.open(store.path, "r+") as again:
        again.append(["new:class_0"], rows[:1])
        np.testing.assert_array_equal(again[keys], rows)
    assert leftovers(store.path) == []
    assert not [path for path in store.path.rglob(".partial*") if path.is_file()]


def test_names_that_are_somebody_else_s():
    assert not any(map(is_partial, (".partial-", ".partial-x", "x.partial", ".partial.1", "partial-1", "c.0")))
