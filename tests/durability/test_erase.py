"""A receipt is given for rows that are gone from the disk, and for each erase, also for one that failed first."""

import contextlib
import errno
import itertools
import os
import shutil

import numpy as np
import pytest

import embstore
from embstore._engine.format.zarr_layout import chunk_name
from embstore._engine.io import steps
from embstore.errors import (
    CommitUncertainError,
    CorruptStoreError,
    EraseUnfinishedError,
    MissingKeysError,
    StorageFullError,
)
from embstore_fl.withdrawal import erase_client
from tests._helpers import kinds
from tests._helpers.crash import files_in, killed_at
from tests._helpers.damage import flip
from tests._helpers.kinds import base, key, put

GONE = 128  # a row of the last chunk, with values that no other row of the store has
MARK = np.full(8, 128 % 251, np.float32).tobytes()


def files_with(folder, content):
    return [str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file() and content in f.read_bytes()]


KILLED = {
    "compact": lambda store: store.compact(),
    "add_field": lambda store: store.add_field("more", list(store), store.select().to_numpy("embedding")),
    "set_column": lambda store: store.set_column("text", list(store), [f"secret {k}" for k in store]),
    "set_column again": lambda store: store.set_column("score", list(store), np.arange(len(store))),
    "replace": lambda store: put(store, [GONE], if_exists="replace"),
    "delete": lambda store: store.delete([key(GONE)]),
    "erase": lambda store: store.erase([key(GONE)]),
    "append": lambda store: put(store, range(200, 340)),
}
"""Changes that copy rows of the store, or rows of a stored key."""


@pytest.mark.parametrize("change", KILLED)
def test_no_byte_is_left_by_a_writer_that_was_killed_at_every_step(tmp_path, change):
    """The writer that erases was open before, and made the newest commit that it knows."""
    for step in itertools.count(0, 2):
        path = tmp_path / "folder" / "store.zarr"
        path.parent.mkdir()
        base(path, "raw")
        store = embstore.open(path, "r+")
        put(store, [150])
        killed = killed_at(step, path, KILLED[change])
        with contextlib.suppress(MissingKeysError):  # killed after its commit, or before an erase gave its receipt
            receipt = store.erase([key(GONE)])
            assert len(receipt.key_hashes) == 1
        left = store.erase([])
        assert not left.rows
        assert files_with(path.parent, MARK) == [], step
        assert files_with(path.parent, key(GONE).encode()) == [], step
        report = embstore.verify(path)
        assert report.ok, str(report)
        shutil.rmtree(path.parent)
        if not killed:
            break
    assert step >= 8


# -- an erase that fails --------------------------------------------------------------------------


def fail(count, code, *, lasting):
    """Have operations on the disk fail after `count` of them: one of them, or all until the hook is removed."""
    seen, failed = itertools.count(), []

    def hook(operation, path, data):
        number = next(seen)
        if number == count or (lasting and number > count):
            failed.append(operation)
            raise OSError(code, os.strerror(code), path)

    steps.step_hook = hook
    return failed


@pytest.fixture(autouse=True)
def no_hook_is_left():
    yield
    steps.step_hook = None


def _same_object(store):
    return store


def _opened_again(store):
    store.close()
    return embstore.open(store.path, "r+")


def _after_another_writer(store):
    with embstore.open(store.path, "r+") as other:
        put(other, [700])
    return store


def _after_a_compaction(store):
    with embstore.open(store.path, "r+") as other:
        other.compact()
    return store


def _after_another_erase(store):
    with embstore.open(store.path, "r+") as other:
        other.erase([key(2)])
    return store


BETWEEN = [_same_object, _opened_again, _after_another_writer, _after_a_compaction, _after_another_erase]


CASES = [
    *((errno.ENOSPC, False, between) for between in BETWEEN),
    (errno.ENOSPC, True, _opened_again),
    (errno.EIO, False, _same_object),
]


@pytest.mark.parametrize(("code", "lasting", "between"), CASES)
def test_an_erase_that_failed_at_every_step_is_repeated_and_gives_its_receipt(tmp_path, code, lasting, between):
    keys, unfinished = [key(GONE), key(1)], 0
    for step in itertools.count(0, 1 if between is _same_object else 4):
        path = tmp_path / "folder" / "store.zarr"
        path.parent.mkdir()
        base(path, "raw")
        store = embstore.open(path, "r+")
        failed = fail(step, code, lasting=lasting)
        receipt = None
        try:
            receipt = store.erase(keys)
        except CommitUncertainError:
            pass
        except EraseUnfinishedError:
            unfinished += 1
        except StorageFullError:
            steps.step_hook = None
            assert set(keys) <= set(embstore.open(path)), "nothing was committed, it says"
        except OSError:
            assert code != errno.ENOSPC
        steps.step_hook = None
        if receipt is None:
            store = between(store)
            receipt = store.erase(keys)
        assert receipt.rows == (1, GONE)
        assert len(receipt.key_hashes) == 2
        assert not (path / "erase-keys").exists()
        assert files_with(path.parent, MARK) == [], step
        with pytest.raises(MissingKeysError):  # a receipt is given once
            store.erase(keys)
        assert embstore.verify(path).ok
        shutil.rmtree(path.parent)
        if not failed:
            break
    assert unfinished >= 3


def test_keys_of_two_failed_erases_each_get_a_receipt(path):
    base(path, "raw")
    store = embstore.open(path, "r+")
    for number in (1, 2):
        fail(30, errno.ENOSPC, lasting=True)
        with pytest.raises(EraseUnfinishedError, match="are deleted, but") as caught:
            store.erase([key(number)])
        assert caught.value.path == path
        assert "nothing was lost" not in str(caught.value)
        steps.step_hook = None
    assert store.erase([key(1)]).rows == (1,)
    assert store.erase([key(2)]).rows == (2,)


def test_a_client_whose_withdrawal_failed_gets_its_receipt(path):
    base(path, "raw")
    store = embstore.open(path, "r+")
    fail(30, errno.ENOSPC, lasting=True)
    with pytest.raises(EraseUnfinishedError):
        erase_client(store, [key(1), "unknown:x"])
    steps.step_hook = None
    assert erase_client(store, [key(1), "unknown:x"]).rows == (1,)


def test_a_file_of_others_under_the_name_of_the_keys_is_no_receipt(path):
    base(path, "raw")
    (path / "erase-keys").mkdir()
    with embstore.open(path, "r+") as store, pytest.raises(MissingKeysError):
        store.erase(["unknown:x"])


# -- damage -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [40, -9, -2], ids=["rows", "padding", "checksum"])
@pytest.mark.parametrize("kind", kinds.KINDS)
def test_an_erase_beside_a_flipped_bit_is_whole_or_not_made(path, kind, place):
    """In the first or the last chunk of any array. Padding that is damaged is written again."""
    kept = path.with_name("kept.zarr")
    with kinds.new(kept, kind, columns={"score": "int64", "text": "string"}) as store:
        put(store, range(300), columns={"score": 7, "text": "secret"})
        store.delete([key(5)])
        arrays = store.snapshot.record.arrays
    made = 0
    for name, array in arrays.items():
        for chunk in {0, array.chunks - 1}:
            shutil.copytree(kept, path)
            flip(path / name / chunk_name(array, chunk), place)
            with contextlib.suppress(CorruptStoreError), embstore.open(path, "r+") as store:
                before = files_in(path)
                try:
                    store.erase([key(1), key(299)])
                    made += 1
                except CorruptStoreError:
                    assert files_in(path) == before, (name, chunk)
                    put(store, [900], columns={"score": 7, "text": "secret"})
                else:
                    assert not len(embstore.verify(path).rows_affected), (name, chunk)
            shutil.rmtree(path)
    assert made or place == 40


# -- a disk that fills ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_chunks_that_were_renamed_before_the_disk_was_full_are_removed(path, kind):
    """The same writer removes them, before anybody writes again."""
    base(path, kind)
    sizes = {f.relative_to(path): f.stat().st_size for f in path.rglob("*")}
    renamed = []

    def hook(operation, where, data):
        if operation == "rename" and where == f"{path}/zarr.json":
            renamed.extend(f for f in path.rglob("c.*") if f.relative_to(path) not in sizes)
            raise OSError(errno.ENOSPC, "injected", where)

    with embstore.open(path, "r+") as store:
        steps.step_hook = hook
        with pytest.raises(StorageFullError):
            put(store, range(1000, 1500))
        steps.step_hook = None
        assert renamed
        assert {f.relative_to(path) for f in path.rglob("*")} == sizes.keys()
        put(store, range(1000, 1500))
    assert embstore.verify(path).ok


@pytest.mark.parametrize("step", range(0, 60, 4))
def test_nothing_is_left_of_a_store_that_could_not_be_made(tmp_path, step):
    failed = fail(step, errno.ENOSPC, lasting=False)
    with contextlib.suppress(StorageFullError):
        kinds.new(tmp_path / "store.zarr", "raw").close()
    steps.step_hook = None
    left = {entry.name for entry in tmp_path.iterdir()} - {"store.zarr.lock"}
    assert left == {"store.zarr"} or (failed and not left)
