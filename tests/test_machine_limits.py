"""Little address space, few maps, read-only trees, other users, full disks: each works, or says what to mend."""

import gc
import logging
import os
import resource
import stat
import subprocess
import sys
import threading

import numpy as np
import pytest

import embstore
from embstore.errors import NetworkFileSystemError, ReadOnlyError, StorageFullError
from tests.crash import leftovers, run_in_child

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="takes on another uid")
NOBODY = 65_534


@pytest.fixture
def warnings_logged(caplog):
    caplog.set_level(logging.WARNING, logger="embstore")
    return caplog


def test_little_address_space(make):
    """Under `ulimit -v` everything works; what would take too much of it is read chunk by chunk."""
    store, keys, rows = make(3000, dim=1024)
    store.close()
    path = store.path

    def work():
        records = []
        handler = logging.Handler()
        handler.emit = records.append
        logging.getLogger("embstore").addHandler(handler)
        resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
        with embstore.open(path, "r+") as store:
            np.testing.assert_array_equal(store[keys], rows)
            assert not records
            store.append(["new:c"], rows[:1], columns={"split": "train"})
            store.delete([keys[0]])
            store.compact()
            np.testing.assert_array_equal(store[keys[1:]], rows[1:])
        resource.setrlimit(resource.RLIMIT_AS, (64 * 2**20, 4 * 2**30))  # an eighth is less than the column
        with embstore.open(path) as store:
            np.testing.assert_array_equal(store[keys[1:3]], rows[1:3])
        assert any("ulimit -v" in record.getMessage() for record in records)

    assert run_in_child(work) == 0


def test_few_maps(make, warnings_logged, monkeypatch):
    monkeypatch.setattr("embstore.mapping.budget.limit", 3)
    store, keys, rows = make()
    reader = embstore.open(store.path)
    np.testing.assert_array_equal(reader[keys], rows)
    assert "chunk by chunk" in warnings_logged.text
    store.append(["new:c"], rows[:1], columns={"split": "train"})
    assert reader.refresh()
    np.testing.assert_array_equal(reader[[*keys, "new:c"]], [*rows, rows[0]])


def test_maps_are_given_back(make):
    from embstore.mapping import budget

    gc.collect()
    before = budget.used
    store, keys, _ = make()
    array = store.array()
    store.close()
    assert budget.used > before
    assert array.sum() == array.sum()
    del array, store
    gc.collect()
    assert budget.used == before
    assert len(keys) == 300


def test_arrays_stay_valid_while_a_reader_moves_on(make):
    store, _, rows = make()
    reader = embstore.open(store.path)
    array = reader.array()
    stop, wrong = threading.Event(), []

    def read():
        while not stop.is_set():
            if not (array == rows).all():
                wrong.append(1)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for i in range(100):
        store.append([f"new{i}:c"], rows[:1], columns={"split": "train"})
        assert reader.refresh()
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    np.testing.assert_array_equal(array, rows)
    reader.close()
    np.testing.assert_array_equal(array, rows)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


@root_only
def test_a_read_only_tree_of_another_user(make):
    store, keys, rows = make()
    store.close()
    for folder in (store.path, *store.path.parents):
        if str(folder).startswith(("/tmp", "/dev/shm")) and folder.stat().st_uid == 0:
            folder.chmod(0o755)
    for file in store.path.rglob("*"):
        file.chmod(0o555 if file.is_dir() else 0o444)
    store.path.parent.chmod(0o555)

    def listing():
        return {str(p): (p.stat().st_mtime_ns, p.stat().st_ino) for p in store.path.parent.rglob("*")}

    before = listing()

    def work():
        os.seteuid(NOBODY)
        reader = embstore.open(store.path, check="all")
        np.testing.assert_array_equal(reader[keys], rows)
        assert not reader.refresh()
        with pytest.raises(ReadOnlyError) as caught:
            embstore.open(store.path, "r+").append(["a:b"], rows[:1], columns={"split": "x"})
        assert isinstance(caught.value, PermissionError)

    assert run_in_child(work) == 0
    assert listing() == before


@pytest.mark.parametrize("mask", [0o077, 0o002])
def test_files_follow_the_umask(path, mask):
    def work():
        os.umask(mask)
        with embstore.open(path, "w-", config={}) as store:
            store.append(["a:b"], np.ones((1, 3), np.float32))

    assert run_in_child(work) == 0
    for file in [path, *path.rglob("*"), path.with_name("store.zarr.lock")]:
        full = 0o777 if file.is_dir() else 0o666
        assert stat.S_IMODE(file.stat().st_mode) == full & ~mask, file


def test_a_full_disk(make):
    store, keys, rows = make()
    more = [f"more{i}:c" for i in range(5000)]

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        with pytest.raises(StorageFullError) as caught:
            store.append(more, np.ones((5000, 8), np.float32), columns={"split": "train"})
        assert isinstance(caught.value, OSError)
        assert str(caught.value.path).startswith(str(store.path))

    assert run_in_child(work) == 0
    assert embstore.verify(store.path).ok
    np.testing.assert_array_equal(embstore.open(store.path)[keys], rows)
    assert store.append(more, np.ones((5000, 8), np.float32), columns={"split": "train"}).appended == 5000
    assert leftovers(store.path) == []


def test_a_network_file_system(make, monkeypatch):
    store, keys, rows = make()
    monkeypatch.setattr("embstore.fsio.filesystem_type", lambda path: "nfs4")
    with pytest.raises(NetworkFileSystemError) as caught:
        embstore.open(store.path, "r+")
    assert (caught.value.filesystem, caught.value.path) == ("nfs4", store.path)
    with embstore.open(store.path, "r+", network="allow") as opted_in:
        opted_in.append(["new:c"], rows[:1], columns={"split": "train"})
    reader = embstore.open(store.path)
    assert reader.snapshot.mapping == "never"
    np.testing.assert_array_equal(reader[keys], rows)


def test_what_is_imported(make):
    store, keys, _ = make()
    code = f"""
import sys, embstore
assert not {{"numpy", "zarr", "torch", "transformers"}} & set(sys.modules)
store = embstore.open({str(store.path)!r})
assert store[{keys[:3]!r}].shape == (3, 8) and len(store.select(classes="class_1")) == 30
assert not {{"zarr", "torch", "transformers", "pandas"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
