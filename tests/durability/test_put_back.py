"""An earlier copy of a store, such as a backup, takes its place while it is open. No row of another key is served."""

import contextlib
import os
import pickle
import shutil

import numpy as np
import pytest

import embstore
from embstore.errors import StoreChangedError, StoreReplacedError

VALUES = {"a": 0, "b": 1000, "c": 5000}


def keys(line, start, stop):
    return [f"{line}{i}:x" for i in range(start, stop)]


def rows(names):
    return np.repeat([[VALUES[name[0]] + int(name[1:-2])] for name in names], 8, axis=1).astype(np.float32)


def put(path, line, start, stop):
    names = keys(line, start, stop)
    with embstore.open(path, "a", config={}, chunk_bytes=4096) as store:
        store.append(names, rows(names), columns={"n": np.arange(start, stop)})


def renamed(backup, path):
    shutil.rmtree(path)
    backup.rename(path)


def replaced_file_by_file(backup, path):
    """As rsync does it, with ``--delete``."""
    for file in path.rglob("*"):
        if file.is_file() and not (backup / file.relative_to(path)).exists():
            file.unlink()
    for file in backup.rglob("*"):
        if file.is_file():
            os.replace(file, path / file.relative_to(backup))


def replaced_files_only(backup, path):
    """As rsync does it. Files of the later copy stay."""
    for file in backup.rglob("*"):
        if file.is_file():
            os.replace(file, path / file.relative_to(backup))


def nothing(path):
    pass


def fewer_rows(path):
    put(path, "c", 150, 160)


def as_many_rows(path):
    put(path, "c", 150, 450)


def more_rows(path):
    put(path, "c", 150, 750)


def more_rows_without_some(path):
    put(path, "c", 150, 750)
    with embstore.open(path, "r+") as store:
        store.delete(keys("c", 200, 300))


def other_rows_erased(path):
    put(path, "c", 150, 750)
    with embstore.open(path, "r+") as store:
        store.erase(keys("a", 0, 60))
        store.erase(keys("c", 300, 310))


def other_rows_deleted(path):
    with embstore.open(path, "r+") as store:
        store.delete(keys("a", 0, 60))


WAYS = [renamed, replaced_file_by_file, replaced_files_only]
THEN = [nothing, fewer_rows, as_many_rows, more_rows, more_rows_without_some, other_rows_erased]
NAMED = (StoreReplacedError, StoreChangedError)


@pytest.mark.parametrize("check", ["tail", "touched"])
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
@pytest.mark.parametrize("then", THEN)
@pytest.mark.parametrize("way", WAYS)
def test_no_row_of_another_key(tmp_path, way, then, used, check):
    path, backup = tmp_path / "store.zarr", tmp_path / "backup.zarr"
    put(path, "a", 0, 150)
    shutil.copytree(path, backup)
    put(path, "b", 150, 450)
    reader, writer = embstore.open(path, check=check), embstore.open(path, "r+", check=check)
    if used:
        assert reader.array().shape == writer.fetch(list(writer)).shape == (450, 8)
    names = keys("b", 150, 450)
    view = reader.select(keys=names)
    pickled = pickle.dumps(view)
    way(backup, path)
    then(path)
    for read in (
        view.to_numpy,
        lambda: reader.fetch(names),
        lambda: (reader.refresh(), reader.fetch(names))[1],
        lambda: (writer.refresh(), writer.fetch(names))[1],
        lambda: pickle.loads(pickled).to_numpy(),
        view.to_numpy,
    ):
        with contextlib.suppress(*NAMED):
            np.testing.assert_array_equal(read(), rows(names))
    for change in (
        lambda: writer.append(["a1:x"], rows(["a1:x"]), columns={"n": 1}, if_exists="skip"),
        lambda: writer.append(keys("c", 150, 170), rows(keys("c", 150, 170)), columns={"n": 1}, if_exists="replace"),
        lambda: writer.delete(["a100:x"]),
        writer.compact,
    ):
        with pytest.raises(StoreReplacedError, match="an earlier copy of it was put back since it was opened; open it"):
            change()
    store = embstore.open(path, "r+", check="all")
    found = list(store)
    assert len(set(found)) == len(found)
    np.testing.assert_array_equal(store.fetch(found), rows(found))
    put(path, "b", 150, 160)
    assert embstore.verify(path).ok


@pytest.mark.parametrize("way", WAYS)
def test_deletions_that_were_put_back(tmp_path, way):
    path, backup = tmp_path / "store.zarr", tmp_path / "backup.zarr"
    put(path, "a", 0, 150)
    shutil.copytree(path, backup)
    with embstore.open(path, "r+") as store:
        store.delete(keys("a", 90, 150))
    reader = embstore.open(path)
    assert len(reader.select()) == 90
    way(backup, path)
    other_rows_deleted(path)
    with pytest.raises(StoreReplacedError):
        reader.refresh()
    assert list(embstore.open(path)) == keys("a", 60, 150)


def test_the_newest_commit_put_back(tmp_path):
    """The store goes on, as do its views."""
    path, backup = tmp_path / "store.zarr", tmp_path / "backup.zarr"
    put(path, "a", 0, 150)
    store = embstore.open(path, "r+")
    view = store.select()
    shutil.copytree(path, backup)
    renamed(backup, path)
    put(path, "b", 150, 450)
    assert store.refresh()
    np.testing.assert_array_equal(view.to_numpy(), rows(keys("a", 0, 150)))
    store.append(keys("c", 0, 9), rows(keys("c", 0, 9)), columns={"n": 1})
    assert len(store) == 459


def test_an_index_of_a_later_copy(tmp_path, monkeypatch):
    """Two of its 3,002 rows have other keys."""
    path, backup = tmp_path / "store.zarr", tmp_path / "backup.zarr"
    put(path, "a", 0, 3000)
    shutil.copytree(path, backup)
    with monkeypatch.context() as patch:
        patch.setattr("embstore._engine.write.index_file._LEAST_RUN", 100)
        put(path, "b", 3000, 3002)
    replaced_files_only(backup, path)
    assert list((path / "index").glob("keys.*.3002"))
    put(path, "c", 3000, 3002)
    assert embstore.open(path).missing([*keys("a", 0, 3000), *keys("c", 3000, 3002)]) == []
