"""Small commits: one write into the journal each; whole or not at all, and in the chunk files in the end."""

import errno
import json
import os
import pickle
import re
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import zarr

import embstore
from embstore._engine.format.zarr_layout import crc32c, payload
from embstore._engine.io import folder as fsio
from embstore._engine.write import session
from embstore.errors import (
    CommitUncertainError,
    CorruptStoreError,
    KeysExistError,
    MissingKeysError,
    StorageFullError,
    UnsupportedFormatError,
)
from tests._helpers.crash import Journal, kill_at, leftovers, run_in_child
from tests.durability import test_kill, test_power_cut
from tests.durability.test_io_errors import fail_at
from tests.durability.test_kill import base, check_after, key, row, rows, state

N = 130  # rows that `base` makes; a chunk has 128


@pytest.fixture(autouse=True)
def no_hook_is_left():
    yield
    fsio.step_hook = None


def small(store, i, n=3):
    """Append a few rows."""
    numbers = range(1000 + 10 * i, 1000 + 10 * i + n)
    store.append([key(j) for j in numbers], rows(numbers), columns={"score": list(numbers)})


def numbers_of(times, n=3, first=0):
    return [j for i in range(first, times) for j in range(1000 + 10 * i, 1000 + 10 * i + n)]


def journals(path):
    return sorted(path.glob("key_hash/journal.*"))


def journalled(path, times=5):
    """A store of which all but two small commits are in the journal, and nobody has it open."""

    def work():
        store = embstore.open(path, "r+")
        for i in range(times):
            small(store, i)
        os.kill(os.getpid(), signal.SIGKILL)  # else it would leave no journal behind

    base(path)
    assert run_in_child(work) == -signal.SIGKILL
    assert len(journals(path)) == 1
    return [*range(N), *numbers_of(times)]


def assert_holds(store, numbers):
    keys = [key(i) for i in numbers]
    assert list(store) == keys
    np.testing.assert_array_equal(store[keys], rows(numbers))
    np.testing.assert_array_equal(store.array(), rows(numbers))
    np.testing.assert_array_equal(store.select().to_numpy(), rows(numbers))
    assert store.select().column("score").tolist() == numbers
    assert store.missing([*keys, "no:c"]) == ["no:c"]


def test_one_write_and_one_sync_a_commit(path):
    base(path)
    with embstore.open(path, "r+") as store:
        for i in range(3):
            small(store, i)
        with test_power_cut.recording() as log:
            small(store, 3)
        assert [operation for operation, *_ in log] == ["write", "fsync"]
        reader = embstore.open(path)
        assert_holds(reader, [*range(N), *numbers_of(4)])
        assert_holds(store, [*range(N), *numbers_of(4)])
        small(store, 4)
        assert reader.refresh()
        assert not reader.refresh()
        assert_holds(reader, [*range(N), *numbers_of(5)])
    assert journals(path) == []
    commit = reader.snapshot.record.commit_id
    assert not reader.refresh()  # the chunk files have the same commit now
    assert embstore.open(path).snapshot.record.commit_id == commit
    assert zarr.open_array(path / "embedding").shape == (N + 15, test_kill.DIM)
    assert embstore.verify(path).ok


@pytest.mark.parametrize("end", ["flush", "delete", "set_column", "add_field", "erase", "compact"])
def test_what_is_not_an_append_ends_the_journal(path, end):
    numbers = journalled(path)
    with embstore.open(path, "r+") as store:
        {
            "flush": lambda: store.checkpoint(),
            "delete": lambda: store.delete([key(2), key(1040)]),
            "set_column": lambda: store.set_column(
                "score", list(store), np.arange(len(store)), commit_id=store.snapshot.record.commit_id
            ),
            "add_field": lambda: store.add_field("other", list(store), np.ones((len(store), 2), np.float32)),
            "erase": lambda: store.erase([key(2), key(1040)]),
            "compact": lambda: store.compact(),
        }[end]()
        assert journals(path) == []
        gone = {2, 1040} if end in ("delete", "erase") else set()
        assert list(store) == [key(i) for i in numbers if i not in gone]
        assert zarr.open_group(path, mode="r")["file_id"].shape == (len(numbers),)
    if end == "erase":
        assert b"f1040" not in b"".join(file.read_bytes() for file in path.rglob("c.*"))
    assert embstore.verify(path).ok


def test_large_commits_and_replacements_are_written_whole(path):
    base(path)
    with embstore.open(path, "r+") as store:
        for i in range(3):
            small(store, i)
        store.append([key(1)], rows([7]), columns={"score": [7]}, if_exists="replace")
        assert journals(path) == []
        assert store.append([key(1)], rows([8]), columns={"score": [8]}, if_exists="skip").skipped == 1
        small(store, 3)
        assert len(journals(path)) == 1
        many = range(50_000, 100_000)
        store.append([key(i) for i in many], rows(many), columns={"score": list(many)})
        assert journals(path) == []
        assert len(store) == N + 12 + 50_000
        np.testing.assert_array_equal(store[key(1)], row(7))


def test_a_full_journal_moves_on(path, monkeypatch):
    monkeypatch.setattr(session, "_SMALL_NBYTES", 1000)
    monkeypatch.setattr(session, "_JOURNAL_NBYTES", 5000)
    base(path)
    names, sizes = set(), []
    with embstore.open(path, "r+") as store:
        for i in range(40):
            small(store, i)
            names |= {file.name for file in journals(path)}
            sizes += [file.stat().st_size for file in journals(path)]
            assert len(journals(path)) <= 1
        assert_holds(store, [*range(N), *numbers_of(40)])
    assert len(names) > 3
    assert max(sizes) <= 5000
    assert_holds(embstore.open(path), [*range(N), *numbers_of(40)])


def test_rows_behind_mapped_files_are_one_array_with_them(path):
    base(path)
    with embstore.open(path, "r+") as store:
        small(store, 0)
        small(store, 1)
        views = []
        for i in range(2, 60):  # over the end of two chunks
            small(store, i)
            views.append((store.array(), store.select(), [*range(N), *numbers_of(i + 1)]))
        first = views[0][0]
        assert all(np.shares_memory(first, array) for array, *_ in views)
        store.checkpoint()
        views.append((store.array(), store.select(), [*range(N), *numbers_of(60)]))
        small(store, 60)
        small(store, 61)
        assert journals(path)
        for array, view, numbers in views:
            np.testing.assert_array_equal(array, rows(numbers))
            assert not array.flags.writeable
            np.testing.assert_array_equal(view.to_numpy(), rows(numbers))
            assert view.keys == [key(i) for i in numbers]


def test_files_that_are_mapped_late_leave_the_rows_behind_them(path):
    """A second thread that was about to map, and the column of an earlier snapshot, map over the same region."""
    numbers = journalled(path)
    store = embstore.open(path)
    early = store.snapshot
    array = store.array()
    early.column("embedding").files._map()
    np.testing.assert_array_equal(array, rows(numbers))
    with embstore.open(path, "r+") as writer:
        small(writer, 5)
        store.refresh()
        later = store.array()
        early.column("embedding").files._map()
        writer.checkpoint()
        small(writer, 6)
        small(writer, 7)
    store.refresh()
    early.column("embedding").files._map()
    last = store.array()
    np.testing.assert_array_equal(array, rows(numbers))
    np.testing.assert_array_equal(later, rows([*numbers, *numbers_of(6, first=5)]))
    np.testing.assert_array_equal(last, rows([*numbers, *numbers_of(8, first=5)]))


def test_threads_that_read_while_one_appends(path):
    base(path)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    store, wrong, done = embstore.open(path, "r+"), [], threading.Event()

    def read(look):
        while not done.is_set():
            try:
                reader = embstore.open(path)
                for _ in range(5):
                    numbers = [int(k[1 : k.index(":")]) for k in reader]
                    arrays = look(reader, numbers)
                    wrong.extend(1 for array in arrays if not (array == rows(numbers)).all())
                    reader.refresh()
            except BaseException as error:
                wrong.append(error)
                raise

    def both(reader, numbers):
        found = []
        threads = [
            threading.Thread(target=lambda: found.append(reader.array())),
            threading.Thread(target=lambda: found.append(reader.take(np.arange(len(numbers))))),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found

    looks = [both, lambda reader, numbers: [reader.array()], lambda reader, numbers: [reader.select().to_numpy()]]
    threads = [threading.Thread(target=read, args=[look]) for look in looks]
    try:
        for thread in threads:
            thread.start()
        for i in range(120):
            small(store, i)
            if i % 25 == 24:
                store.checkpoint()
    finally:
        done.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert wrong == []


def test_where_nothing_can_be_put_behind_mapped_files(path, monkeypatch):
    """As on macOS: a whole column is a copy then."""
    monkeypatch.setattr("embstore._engine.io.mapping.Region._make_own", lambda *_: None)
    numbers = journalled(path)
    store = embstore.open(path)
    assert_holds(store, numbers)
    assert not store.array().flags.writeable
    if torch := sys.modules.get("torch"):
        assert torch.equal(store.tensor(), torch.from_numpy(rows(numbers)))


def test_no_journal_where_files_are_on_a_network(path, monkeypatch):
    base(path)
    monkeypatch.setattr(fsio, "on_network", lambda _: "nfs")
    with embstore.open(path, "r+", network="allow") as store:
        for i in range(5):
            small(store, i)
            assert journals(path) == []
    assert len(embstore.open(path)) == N + 15


def test_a_journal_of_many_commits_moves_on(path, monkeypatch):
    monkeypatch.setattr(session, "_JOURNAL_COMMITS", 5)
    base(path)
    names = set()
    with embstore.open(path, "r+") as store:
        for i in range(30):
            small(store, i)
            names |= {file.name for file in journals(path)}
        assert store.snapshot.journal.commits <= 5
    assert len(names) >= 4
    assert_holds(embstore.open(path), [*range(N), *numbers_of(30)])


def test_the_index_has_no_rows_that_are_in_the_journal_alone(path, monkeypatch):
    """Were the last commit damaged, others would get their numbers, and not be found."""
    monkeypatch.setattr("embstore._engine.read.key_index._LEAST_RUN", 10)
    numbers = journalled(path, times=20)
    assert all(int(run.name.rpartition(".")[2]) <= N + 6 for run in path.glob("index/keys.*"))
    size = journals(path)[0].stat().st_size
    os.truncate(journals(path)[0], size - 1)
    with embstore.open(path, "r+") as store:
        small(store, 30)
        small(store, 31)
        assert_holds(store, [*numbers[:-3], *numbers_of(32, first=30)])
        with pytest.raises(KeysExistError):
            small(store, 30)


def test_a_store_that_is_closed_while_another_writes(path, monkeypatch, caplog):
    monkeypatch.setattr(session, "_LEAVING_SECONDS", 0.05)
    base(path)
    store = embstore.open(path, "r+")
    for i in range(4):
        small(store, i)
    with fsio.lock(path, timeout=1):
        store.close()
    assert "rows stay in the journal" in caplog.text
    assert_holds(embstore.open(path), [*range(N), *numbers_of(4)])
    other = embstore.open(path, "r+")
    reader = embstore.open(path)
    small(other, 4)
    reader.close()  # has nothing to do with it
    other.close()
    assert journals(path) == []


def test_merged_with_a_journal_on_either_side(path, tmp_path):
    numbers = journalled(path)
    part = tmp_path / "part.zarr"
    shutil.copytree(path, part)
    with embstore.open(part, "r+") as store:
        store.delete([key(i) for i in numbers[:-3]])
        for i in range(5, 9):
            small(store, i)
        embstore.merge(path, part, if_exists="skip")
        assert set(embstore.open(path)) == {key(i) for i in [*numbers, *numbers_of(9, first=5)]}
    assert embstore.verify(path).ok
    other = tmp_path / "other.zarr"
    with embstore.open(other, "w-", config={"n": N}, columns={"score": "int64"}) as store:
        for i in range(4):
            small(store, i)
        store.add_field("more", list(store), np.ones((12, 2), np.float32))
        for i in range(4, 9):
            wide = {"embedding": rows(numbers_of(i + 1, first=i)), "more": np.full((3, 2), i, np.float32)}
            store.append([key(j) for j in numbers_of(i + 1, first=i)], wide, columns={"score": 1})
        with embstore.open(path, "r+") as whole:
            whole.delete([key(i) for i in range(N)])
            whole.copy_fields(store, ["more"])
            assert whole.fetch([key(1080)], "more").tolist() == [[8, 8]]


def test_readers_of_an_earlier_commit_keep_it(path):
    base(path)
    with embstore.open(path, "r+") as store:
        readers = []
        for i in range(6):
            small(store, i)
            readers.append((embstore.open(path), [*range(N), *numbers_of(i + 1)]))
        for reader, numbers in readers:
            assert_holds(reader, numbers)
        store.checkpoint()
        small(store, 6)
        for reader, numbers in readers:
            assert_holds(reader, numbers)
            assert reader.refresh()
            assert_holds(reader, [*range(N), *numbers_of(7)])


SHAPES = {
    "float32": {"shape": (8,)},
    "unaligned": {"shape": (5, 7), "dtype": "uint8"},
    "a number a row": {"shape": (), "dtype": "int64"},
    "bfloat16": {"shape": (16,), "dtype": "bfloat16"},
    "ragged": {"shape": (4,), "ragged": True},
}


@pytest.mark.parametrize("mapping", ["auto", "never"])
@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("name", SHAPES)
def test_every_kind_of_field(path, name, compression, mapping, rng):
    spec = embstore.FieldSpec(**SHAPES[name])
    dtype = "float32" if spec.dtype == "bfloat16" else spec.dtype

    def values(n):
        if spec.ragged:
            return [rng.integers(0, 99, (int(rng.integers(0, 5)), *spec.shape)).astype(dtype) for _ in range(n)]
        return rng.integers(0, 99, (n, *spec.shape)).astype(dtype)

    keys, expected = [], []
    options = {"fields": {"x": spec}, "columns": {"text": "string"}, "chunk_bytes": 4096, "compression": compression}
    with embstore.open(path, "w-", config={}, mapping=mapping, **options) as store:
        reader = embstore.open(path, mapping=mapping)
        for i in range(12):
            new = [f"é{i}-{j}:class {i % 4}" for j in range(4)]
            block = values(4)
            store.append(new, block, columns={"text": [f"ü{i}"] * 4}, casting="same_kind")
            keys += new
            expected += list(block)
            reader.refresh()
            for at in (store, reader):
                found = at.take(np.arange(len(keys)))
                if spec.ragged:
                    assert found.lengths.tolist() == [len(part) for part in expected]
                    found = [found.values[j, : len(part)] for j, part in enumerate(expected)]
                for one, other in zip(found, expected, strict=True):
                    np.testing.assert_array_equal(one, other)
                assert at.select(where={"text": f"ü{i}"}).keys == new
                assert at.select(classes=f"class {i % 4}").keys[-4:] == new
        assert journals(path)
    assert embstore.verify(path).ok
    assert list(embstore.open(path)) == keys


def test_tensors_of_a_store_with_a_journal(path):
    torch = pytest.importorskip("torch")
    numbers = journalled(path)
    store = embstore.open(path)
    tensor = store.tensor()
    assert torch.equal(tensor, torch.from_numpy(rows(numbers)))
    tensor += 1
    np.testing.assert_array_equal(store.array(), rows(numbers))
    view = store.select(where={"score": numbers[-2:]})
    assert torch.equal(view.to_torch(), torch.from_numpy(rows(numbers[-2:])))


# -- those who come upon a journal -----------------------------------------------------------------------


def test_a_writer_that_was_killed_leaves_a_journal_that_all_read(path, tmp_path):
    numbers = journalled(path)
    for check in ("tail", "touched", "all"):
        assert_holds(embstore.open(path, check=check), numbers)
    assert_holds(pickle.loads(pickle.dumps(embstore.open(path))), numbers)
    report = embstore.verify(path)
    assert report.ok, str(report)
    assert report.rows == len(numbers)
    assert embstore.salvage(path, tmp_path / "saved").rows_kept == len(numbers)
    assert_holds(embstore.open(tmp_path / "saved"), numbers)
    shutil.copytree(path, tmp_path / "copy")
    assert_holds(embstore.open(tmp_path / "copy"), numbers)
    with embstore.open(path, "r+") as store:
        small(store, 5)
        assert len(journals(path)) == 1
    assert journals(path) == []
    assert_holds(embstore.open(path), [*numbers, *numbers_of(6, first=5)])


def test_what_is_damaged_in_chunk_files_costs_no_row_of_the_journal(path):
    numbers = journalled(path)
    file = path / "embedding" / "c.1.0"
    data = bytearray(file.read_bytes())
    data[3] ^= 1
    file.write_bytes(data)
    report = embstore.verify(path)
    assert report.rows_affected.tolist() == list(range(128, N + 6))
    assert embstore.salvage(path, path.with_name("saved")).rows_kept == len(numbers) - 8


def test_keys_are_checked_where_the_journal_is_torn(path):
    journalled(path)
    with journals(path)[0].open("ab") as file:
        file.write(b"Emb")
    name = path / "file_id" / "c.0"
    data = name.read_bytes().replace(b"f77", b"f78", 1)
    name.write_bytes(data[:-4] + crc32c(data[:-4]).to_bytes(4, "little"))
    report = embstore.verify(path)
    assert any("not whole" in problem.detail for problem in report.problems)
    assert 77 in report.rows_affected


def test_a_reader_that_does_not_know_journals_refuses_the_store(path, monkeypatch):
    journalled(path)
    monkeypatch.setattr("embstore._engine.format.record.FEATURES", frozenset(["ragged", "compressed"]))
    with pytest.raises(UnsupportedFormatError, match="journal"):
        embstore.open(path)


def test_a_store_at_a_url(path):
    fsspec = pytest.importorskip("fsspec")
    numbers = journalled(path)
    memory = fsspec.filesystem("memory")
    memory.put(str(path), "/store.zarr", recursive=True)
    reader = embstore.open("memory://store.zarr")
    assert_holds(reader, numbers)
    with embstore.open(path, "r+") as store:
        small(store, 5)
        memory.put(str(path), "/", recursive=True)
        assert reader.refresh()
        assert_holds(reader, [*numbers, *numbers_of(6, first=5)])


def test_a_cache_counts_what_is_in_a_journal(tmp_path):
    cache = embstore.Cache(tmp_path / "a.cache")
    store = cache.open({"encoder": "x"}, mode="a")
    for i in range(4):
        store.append([f"{i}:c"], np.ones((1, 3), np.float32))
    assert [entry.rows for entry in cache.entries()] == [4]
    assert cache.lookup({"encoder": "x"}, ["3:c", "4:c"]).missing == ("4:c",)
    store.close()


SCRIPT = """
import numpy as np, embstore
def append():
    store = embstore.open({path!r}, "r+")
    for i in range(5):
        store.append([f"n{{i}}:c"], np.ones((1, 8), np.float32), columns={{"score": 1}})
    assert store.snapshot.base.rows < store.snapshot.record.rows
    return store
{end}
"""


@pytest.mark.parametrize(
    "end",
    ["append()", "store = append()", "kept = append()\nraise SystemExit(3)", "append()\nimport os; os._exit(0)"],
)
def test_a_process_that_ends_without_closing(path, end):
    base(path)
    subprocess.run([sys.executable, "-c", textwrap.dedent(SCRIPT).format(path=str(path), end=end)], check=False)
    assert len(embstore.open(path)) == N + 5
    assert bool(journals(path)) == ("_exit" in end)
    assert embstore.verify(path).ok


def test_a_store_that_is_gone_at_the_end(path):
    base(path)
    end = "append()\nimport shutil; shutil.rmtree(store_path)"
    code = f"store_path = {str(path)!r}\n" + textwrap.dedent(SCRIPT).format(path=str(path), end=end)
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stderr == ""


def test_a_forked_process_that_appends_ends_the_journal_when_it_closes(path):
    base(path)
    with embstore.open(path, "r+") as store:
        for i in range(4):
            small(store, i)

        def work():
            small(store, 4)
            store.close()
            assert journals(path) == []

        assert run_in_child(work) == 0
        store.refresh()
        assert_holds(store, [*range(N), *numbers_of(5)])


def test_a_forked_process_ends_no_journal(path):
    base(path)
    with embstore.open(path, "r+") as store:
        for i in range(4):
            small(store, i)

        def work():
            assert len(store) == N + 12
            session._leave_all()
            store.close()

        assert run_in_child(work) == 0
        assert journals(path)
        small(store, 4)
        assert_holds(store, [*range(N), *numbers_of(5)])


# -- several at once -------------------------------------------------------------------------------------


def test_writers_in_turns_share_a_journal(path):
    base(path)
    stores = [embstore.open(path, "r+") for _ in range(3)]
    for i in range(30):
        small(stores[i % 3], i)
    assert len(journals(path)) == 1
    for store in stores:
        store.refresh()
        assert_holds(store, [*range(N), *numbers_of(30)])
    stores[0].close()
    assert journals(path) == []
    small(stores[1], 30)
    for store in stores[1:]:
        store.close()
    assert journals(path) == []
    assert_holds(embstore.open(path), [*range(N), *numbers_of(31)])


def test_eight_processes_append_a_little_each(path, monkeypatch):
    monkeypatch.setattr(session, "_SMALL_NBYTES", 2000)
    monkeypatch.setattr(session, "_JOURNAL_NBYTES", 20_000)
    base(path)

    def work(worker):
        with embstore.open(path, "r+", lock_timeout=120) as store:
            for i in range(25):
                small(store, 25 * worker + i)

    children = []
    for worker in range(8):
        if (child := os.fork()) == 0:
            status = 1
            try:
                work(worker)
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    reader, most = embstore.open(path), 0
    while children:
        ended, status = os.waitpid(children[-1], os.WNOHANG)
        if ended:
            assert status == 0
            children.pop()
        reader.refresh()
        assert len(reader) >= most  # what was seen is not unseen
        most = len(reader)
        keys = list(reader)
        np.testing.assert_array_equal(reader[keys], rows([int(k[1 : k.index(":")]) for k in keys]))
        np.testing.assert_array_equal(reader.array(), reader[keys])
    found = embstore.open(path)
    assert sorted(found) == sorted(key(i) for i in [*range(N), *numbers_of(200)])
    assert journals(path) == []
    assert embstore.verify(path).ok


# -- what may go wrong -----------------------------------------------------------------------------------


def test_killed_at_every_step(tmp_path):
    base(tmp_path / "done")
    states = [state(embstore.open(tmp_path / "done"))]
    with embstore.open(tmp_path / "done", "r+") as store:
        for i in range(5):
            small(store, i)
            states.append(state(store))
    step = 0
    while True:
        path = tmp_path / f"{step}.zarr"
        base(path)
        acknowledged = Journal()

        def work(path=path, step=step, acknowledged=acknowledged):
            store = embstore.open(path, "r+")
            kill_at(step)
            for i in range(5):
                small(store, i)
                acknowledged.acknowledge(i)
            store.close()

        ended = run_in_child(work)
        assert ended in (0, -signal.SIGKILL)
        count = len(acknowledged.lines())
        check_after(path, *states[count : count + 2])
        if ended == 0:
            break
        step += 1
    assert step > 30


@pytest.mark.parametrize("turns", [40, pytest.param(2000, marks=pytest.mark.slow)])
def test_interrupted_at_any_moment(path, turns, rng):
    """Ctrl-C, and the same store goes on: what was acknowledged is there once, and all of it as it was given."""

    def work():
        """In a child: an interruption may leave a lock of the lock file's library held, that other tests wait for."""
        armed = False

        def interrupt(*_):
            if armed:
                raise KeyboardInterrupt

        sys.unraisablehook = lambda _: None  # in a finalizer, Python drops it: the timer comes again
        signal.signal(signal.SIGALRM, interrupt)
        store, sure, tried = embstore.open(path, "r+"), [], 1000
        for turn in range(turns):
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.001, 0.02), 0.01)
            try:
                armed = True
                while True:
                    tried += 1
                    store.append([key(tried)], rows([tried]), columns={"score": [tried]})
                    sure.append(tried)
                    assert len(store.array()) == len(store)
            except KeyboardInterrupt:
                armed = False
            if turn % 10 == 9:
                store.close()
                store = embstore.open(path, "r+")
        signal.setitimer(signal.ITIMER_REAL, 0)
        store.close()
        found = embstore.open(path)
        numbers = [int(k[1 : k.index(":")]) for k in found]
        assert set(sure) <= set(numbers) - set(range(N)) <= set(range(1000, tried + 1))
        assert len(sure) > turns / 4
        assert_holds(found, numbers)

    base(path)
    assert run_in_child(work) == 0
    assert embstore.verify(path).ok


def test_closed_by_a_signal_in_the_middle_of_an_append(path):
    """Its handler does not wait for the lock that is held by what it interrupts."""
    base(path)
    store = embstore.open(path, "r+")
    for i in range(4):
        small(store, i)

    def hook(what, where, data):
        if what == "fsync":
            start = time.monotonic()
            store.close()
            assert time.monotonic() - start < 1

    fsio.step_hook = hook
    with pytest.raises(ValueError, match="closed"):
        small(store, 4)
    fsio.step_hook = None
    assert_holds(embstore.open(path), [*range(N), *numbers_of(5)])
    session._leave_all()
    assert journals(path) == []


def test_memory_that_runs_out_while_rows_are_read(path, monkeypatch):
    def no_memory(*_):
        raise MemoryError

    numbers = journalled(path)
    with embstore.open(path, "r+") as store:
        with monkeypatch.context() as patch:
            patch.setattr("embstore._engine.chunks.journal.np", SimpleNamespace(empty=no_memory))
            with pytest.raises(MemoryError):
                store.array()
        assert_holds(store, numbers)
        small(store, 5)
    assert_holds(embstore.open(path), [*numbers, *numbers_of(6, first=5)])


def test_forked_while_another_thread_reads(path):
    """A child finds no lock held by a thread that it does not have."""
    numbers = journalled(path)
    store, done = embstore.open(path), threading.Event()

    def read():
        while not done.is_set():
            opened = embstore.open(path)
            opened.array()
            opened.refresh()
            opened.take([0, len(numbers) - 1])

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for _ in range(40):
            assert run_in_child(lambda: assert_holds(store, numbers)) == 0
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("kills", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_killed_in_the_middle_of_a_write(tmp_path, kills, rng):
    """Only a part of a commit is in the file: no reader takes it, and the next writer cuts it off."""
    source = tmp_path / "source.zarr"
    numbers = journalled(source)
    whole = journals(source)[0].read_bytes()
    for _ in range(kills):
        path = tmp_path / "store.zarr"
        shutil.copytree(source, path)
        torn = int(rng.integers(1, len(whole) // 3))
        garbage = whole[:torn] if rng.random() < 0.5 else rng.bytes(torn)
        with journals(path)[0].open("ab") as file:
            file.write(garbage)
        assert_holds(embstore.open(path), numbers)
        report = embstore.verify(path)
        assert not report.ok
        assert not len(report.rows_affected)
        with embstore.open(path, "r+") as store:
            small(store, 5)
            small(store, 6)
        assert_holds(embstore.open(path), [*numbers, *numbers_of(7, first=5)])
        assert embstore.verify(path).ok
        shutil.rmtree(path)


def test_every_cut_leaves_whole_commits(tmp_path):
    source = tmp_path / "source.zarr"
    numbers = journalled(source)
    whole = journals(source)[0].read_bytes()
    sizes = set()
    for size in range(0, len(whole), 7):
        path = tmp_path / "store.zarr"
        shutil.copytree(source, path)
        os.truncate(journals(path)[0], size)
        found = embstore.open(path)
        sizes.add(len(found))
        assert_holds(found, numbers[: len(found)])
        shutil.rmtree(path)
    assert sizes == {N + 6, N + 9, N + 12}


def test_flipped_bits_never_give_other_rows(tmp_path, rng):
    """A flipped bit costs the last commit at most; before that it is an error, and never another value."""
    source = tmp_path / "source.zarr"
    numbers = journalled(source)
    file = journals(source)[0]
    whole = file.read_bytes()
    broken, short, heads = 0, 0, [found.start() for found in re.finditer(b"EmbJ", whole)]
    assert len(heads) == 3
    bits = [8 * head + bit for head in heads for bit in range(8 * 16)]
    for bit in [*bits, *rng.choice(8 * len(whole), 400, replace=False).tolist()]:
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        try:
            found = embstore.open(source)
        except CorruptStoreError:
            broken += 1
        else:
            short += 1
            assert_holds(found, numbers[:-3])
        report = embstore.verify(source)
        assert not report.ok
    assert broken > 200
    assert short > 50


def frame(store, arrays, *, previous=None, rows_=1, commit_id="0" * 32):
    """A frame as section 16 of docs/format.md has it, whatever it says."""
    previous = previous or store.snapshot.record.commit_id
    entries = [[name, count, len(data)] for name, count, data in arrays]
    head = json.dumps({"previous": previous, "commit_id": commit_id, "rows": rows_, "arrays": entries}).encode()
    return frame_of(head, b"".join(bytes(data) for *_, data in arrays))


def frame_of(head, data=b""):
    checked = b"EmbJ" + struct.pack("<IQ", len(head), len(data)) + head + data
    return checked + crc32c(checked).to_bytes(4, "little")


def arrays_of(store, **others):
    """One more row, as an append would have it."""
    record = store.snapshot.record
    values = {
        "embedding": rows([5000]),
        "score": np.array([1.0]),
        "file_id": ["f5000"],
        "class_code": np.zeros(1, np.int32),
        "key_hash": embstore._engine.format.keys.hash_keys(["f5000:c0"]),
        **others,
    }
    return [
        (n, len(v), payload(record.arrays[n], v)) for n, v in values.items() if v is not None and n in record.arrays
    ]


NONSENSE = {
    "an id that is a path": lambda s: frame(s, arrays_of(s), commit_id="../../../../etc/passwd"),
    "an id in capitals": lambda s: frame(s, arrays_of(s), commit_id="A" * 32),
    "an id that is no text": lambda s: frame(s, arrays_of(s), commit_id=7),
    "a number that is none": lambda s: frame(s, arrays_of(s), rows_=True),
    "a fraction": lambda s: frame(s, arrays_of(s), rows_=1.0),
    "an array twice": lambda s: frame(s, [*arrays_of(s), *arrays_of(s)[:1]]),
    "follows another commit": lambda s: frame(s, arrays_of(s), previous="f" * 32),
    "rows of no array": lambda s: frame(s, [*arrays_of(s), ("nothing", 1, b"12345678")]),
    "dead rows": lambda s: frame(s, [*arrays_of(s), ("dead_rows", 1, bytes(8))]),
    "more rows than it says": lambda s: frame(s, arrays_of(s), rows_=2),
    "fewer for one array": lambda s: frame(s, arrays_of(s, score=None)),
    "rows of another size": lambda s: frame(s, [*arrays_of(s, score=None), ("score", 1, b"123")]),
    "a negative number": lambda s: frame(s, [*arrays_of(s, score=None), ("score", -1, b"")], rows_=-1),
    "texts that are cut off": lambda s: frame(s, [*arrays_of(s, file_id=None), ("file_id", 1, b"\xff\0\0\0a")]),
    "texts that are none": lambda s: frame(s, [*arrays_of(s, file_id=None), ("file_id", 1, b"\x01\0\0\0\xff")]),
}


@pytest.mark.parametrize("what", NONSENSE)
def test_nonsense_with_a_right_checksum(path, what):
    numbers = journalled(path)
    with journals(path)[0].open("ab") as file:
        file.write(NONSENSE[what](embstore.open(path)))
    with pytest.raises(CorruptStoreError, match="journal"):
        embstore.open(path)
    report = embstore.verify(path)
    assert not report.ok
    assert embstore.salvage(path, path.with_name("saved")).rows_kept == len(numbers)


def test_a_frame_like_ours_is_taken(path):
    """The nonsense above is refused for what is wrong with it."""
    numbers = journalled(path)
    with journals(path)[0].open("ab") as file:
        file.write(frame(embstore.open(path), arrays_of(embstore.open(path))))
    assert len(embstore.open(path)) == len(numbers) + 1


@pytest.mark.parametrize("offsets", [[5, 3], [4, 9], [-1, 7], [7, 2**40]])
def test_offsets_that_do_not_rise_to_the_last_token(path, offsets):
    spec = embstore.FieldSpec(shape=(2,), ragged=True)
    store = embstore.open(path, "w-", config={}, fields={"x": spec})
    for i in range(3):
        store.append([f"{i}:c"], [np.ones((1, 2), np.float32)])
    arrays = arrays_of(store, embedding=None, score=None, file_id=["a", "b"], class_code=np.zeros(2, np.int32))
    arrays = [entry for entry in arrays if entry[0] != "key_hash"]
    for name, values in (
        ("key_hash", embstore._engine.format.keys.hash_keys(["a:c", "b:c"])),
        ("x", np.ones((4, 2), np.float32)),
        ("x_offsets", np.array(offsets, np.int64)),
    ):
        arrays.append((name, len(values), payload(store.snapshot.record.arrays[name], values)))
    whole = journals(path)[0].read_bytes()
    journals(path)[0].write_bytes(whole + frame(store, arrays, rows_=2))
    with pytest.raises(CorruptStoreError, match="don't rise"):
        embstore.open(path)
    arrays[-1] = ("x_offsets", 2, payload(store.snapshot.record.arrays["x_offsets"], np.array([4, 7])))
    journals(path)[0].write_bytes(whole + frame(store, arrays, rows_=2))
    assert embstore.open(path).take([3, 4]).lengths.tolist() == [1, 3]


def test_heads_that_are_no_heads(path, rng):
    numbers = journalled(path)
    file = journals(path)[0]
    whole = file.read_bytes()
    for junk in (b"[]", b"{}", b'{"previous": 1}', b"\xff", b"[" * 100_000, b'{"rows": 1e999, "arrays": 3}'):
        file.write_bytes(whole + frame_of(junk))
        with pytest.raises(CorruptStoreError):
            embstore.open(path)
    file.write_bytes(whole)
    assert_holds(embstore.open(path), numbers)


def test_a_journal_that_is_lost_is_said_so(path):
    journalled(path)
    reader = embstore.open(path)
    journals(path)[0].unlink()
    for act in (lambda: embstore.open(path), reader.refresh):
        with pytest.raises(CorruptStoreError, match=r"journal.*missing"):
            act()


def test_a_journal_that_is_too_large_is_not_read(path):
    journalled(path)
    with journals(path)[0].open("ab") as file:
        file.truncate(65 * 2**20)
    with pytest.raises(CorruptStoreError, match="at most"):
        embstore.open(path)


def test_a_journal_that_is_a_link_is_refused(path, tmp_path):
    journalled(path)
    file = journals(path)[0]
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CorruptStoreError, match="regular file"):
        embstore.open(path)


def test_readers_and_writers_who_saw_a_commit_that_failed(path):
    """It was written, and neither could it be synced, nor the commit be written whole: it is given up, by all."""
    base(path)
    store, reader, other = embstore.open(path, "r+"), embstore.open(path), embstore.open(path, "r+")
    for i in range(4):
        small(store, i)
    small(other, 4)
    numbers = [*range(N), *numbers_of(5)]

    def hook(what, where, data):
        if what == "fsync" and "/journal." in where:
            for seen in (reader, other):
                assert seen.refresh()
                assert_holds(seen, [*numbers, *numbers_of(6, first=5)])
            raise OSError(5, "injected", where)
        if what == "create":
            raise OSError(28, "injected", where)

    fsio.step_hook = hook
    with pytest.raises(StorageFullError):
        small(store, 5)
    fsio.step_hook = None
    assert_holds(embstore.open(path), numbers)
    small(other, 6)
    small(store, 7)
    numbers += numbers_of(8, first=6)
    for seen in (reader, other, store, embstore.open(path)):
        seen.refresh()
        assert_holds(seen, numbers)
        assert seen.missing([key(1050)]) == [key(1050)]
    small(store, 5)
    assert_holds(store, [*numbers, *numbers_of(6, first=5)])
    for opened in (store, other):
        opened.close()
    assert embstore.verify(path).ok


def test_a_reader_who_saw_a_commit_that_was_written_whole_in_the_end(path):
    base(path)
    store, reader = embstore.open(path, "r+"), embstore.open(path)
    for i in range(4):
        small(store, i)
    numbers = [*range(N), *numbers_of(5)]

    def hook(what, where, data):
        if what == "fsync" and "/journal." in where:
            assert reader.refresh()
            raise OSError(5, "injected", where)

    fsio.step_hook = hook
    small(store, 4)
    fsio.step_hook = None
    assert_holds(reader, numbers)
    assert not reader.refresh()
    assert_holds(reader, numbers)
    small(store, 5)
    assert reader.refresh()
    assert_holds(reader, [*numbers, *numbers_of(6, first=5)])
    store.close()


@pytest.mark.parametrize("operation", ["write", "fsync"])
def test_where_the_journal_fails_chunks_are_written(path, operation, caplog):
    base(path)
    with embstore.open(path, "r+") as store:
        for i in range(4):
            small(store, i)

        def hook(what, where, data):
            if what == operation and "/journal." in where:
                raise OSError(5, "injected", where)

        fsio.step_hook = hook
        small(store, 4)
        fsio.step_hook = None
        assert "the journal can't be written" in caplog.text
        assert_holds(embstore.open(path), [*range(N), *numbers_of(5)])
        small(store, 5)
        assert_holds(store, [*range(N), *numbers_of(6)])
    assert embstore.verify(path).ok


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_an_error_at_every_step(tmp_path, code):
    """The disk fails once: what was acknowledged is there, what was refused is not, and the same store goes on."""
    step = 0
    while True:
        path = tmp_path / f"{step}.zarr"
        base(path)
        store = embstore.open(path, "r+")
        failed = fail_at(step, code)
        sure, perhaps = [], []
        for i in range(6):
            try:
                small(store, i) if i < 5 else store.checkpoint()
                sure += numbers_of(i + 1, first=i) if i < 5 else []
            except CommitUncertainError:
                perhaps += numbers_of(i + 1, first=i)
            except OSError:
                pass
        fsio.step_hook = None
        found = {int(k[1 : k.index(":")]) for k in embstore.open(path, check="all")} - set(range(N))
        assert set(sure) <= found <= {*sure, *perhaps}
        for i in range(50, 53):
            small(store, i)
        assert_holds(store, [*range(N), *sorted(found), *numbers_of(53, first=50)])
        store.close()
        assert_holds(embstore.open(path), [*range(N), *sorted(found), *numbers_of(53, first=50)])
        assert leftovers(path) == []
        assert journals(path) == []
        report = embstore.verify(path)
        assert report.ok, str(report)
        shutil.rmtree(path)
        if not failed:
            break
        step += 1
    assert step > 60


def test_a_disk_that_is_full_for_good(path):
    base(path)
    store = embstore.open(path, "r+")
    for i in range(4):
        small(store, i)

    def hook(what, where, data):
        if what == "write":
            raise OSError(28, "injected", where)

    fsio.step_hook = hook
    with pytest.raises(StorageFullError):
        small(store, 4)
    store.close()  # what is in the journal stays there
    fsio.step_hook = None
    assert len(journals(path)) == 1
    assert_holds(embstore.open(path), [*range(N), *numbers_of(4)])
    with pytest.raises(MissingKeysError):
        embstore.open(path)[key(1040)]
    with embstore.open(path, "r+") as store:
        small(store, 4)
    assert_holds(embstore.open(path), [*range(N), *numbers_of(5)])
    assert leftovers(path) == []


def test_every_prefix_of_a_power_cut_opens_to_a_whole_commit(tmp_path):
    """As `test_power_cut` has it for other changes; here commits are written into a file that is there."""

    def write_more(store):
        for i in range(99, 102):
            small(store, i)

    changes = [*(lambda store, i=i: small(store, i) for i in range(4)), lambda store: store.checkpoint()]
    test_power_cut.check_every_prefix(tmp_path, changes, write_more)
