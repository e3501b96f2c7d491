"""Many processes on one store."""

import multiprocessing
import os
import shutil
import signal

import numpy as np
import pytest

import embstore
from embstore import errors
from embstore._engine.io import locks
from embstore.errors import EmbstoreError, StoreLockedError
from tests._helpers import kinds
from tests._helpers.crash import end_of, leftovers, run_in_child, run_together, start
from tests._helpers.kinds import assert_rows, key, number_of, put, rows_in, rows_of


def assert_whole(store, keys=None):
    """Each row is whole, and under its own key."""
    for name, spec in store.fields.items():
        view = store.select() if keys is None else store.select(keys=keys)
        assert_rows(rows_in(view, name), rows_of(spec, map(number_of, view.keys)))


def append_in_steps(path, worker, times, each=3):
    store = embstore.open(path, "r+", lock_timeout=120)
    for i in range(times):
        first = (worker * times + i) * each
        put(store, range(first, first + each))


def test_eight_processes_append(path):
    workers, times = 8, 50
    kinds.new(path, "raw").close()
    ended = run_together(*(lambda w=w: append_in_steps(path, w, times) for w in range(workers)))
    assert ended == [0] * workers
    store = embstore.open(path, check="all")
    assert sorted(map(number_of, store)) == list(range(workers * times * 3))
    assert_whole(store)
    assert embstore.verify(path).ok
    with embstore.open(path, "r+") as writer:
        put(writer, [99_999])
    assert leftovers(path) == []


def test_processes_append_the_same_keys_and_skip(path):
    """Each key is there once, whoever was first."""

    def work(worker):
        store = embstore.open(path, "a", config={}, lock_timeout=120)
        for i in np.random.default_rng(worker).permutation(60).tolist():
            store.append([key(i)], np.full((1, 4), i, np.float32), if_exists="skip")

    assert run_together(*(lambda w=w: work(w) for w in range(4))) == [0] * 4
    store = embstore.open(path)
    assert sorted(map(number_of, store)) == list(range(60))


@pytest.mark.parametrize("kind", ["raw", "ragged", "zstd", "bfloat16"])
def test_readers_beside_writers_and_a_compactor(path, kind):
    """What a reader sees is a whole commit, and each row is under its own key.

    The compactor goes on until each reader has read, and readers until all is appended: so they do overlap.
    """
    with kinds.new(path, kind) as store:
        put(store, range(100_000, 100_400))
    fork = multiprocessing.get_context("fork")
    all_here, appended, readers_done = fork.Barrier(6, timeout=120), [fork.Event(), fork.Event()], fork.Semaphore(0)

    def compactor():
        store = embstore.open(path, "r+", lock_timeout=120)
        all_here.wait()
        done, turn = 0, 0
        while done < 3 or turn < 20:
            done += readers_done.acquire(block=False)
            put(store, [200_000 + turn])
            (store.erase if turn % 4 == 0 else store.delete)([key(200_000 + turn)])
            if turn < 20:  # afterwards readers that start over each time come to an end as well
                store.compact()
            turn += 1

    def appender(worker):
        all_here.wait()
        try:
            append_in_steps(path, worker, 20)
        finally:
            appended[worker].set()

    def reader(seed):
        rng = np.random.default_rng(seed)
        mapping = "auto" if seed else "never"
        store = embstore.open(path, mapping=mapping)
        all_here.wait()
        reads = 0
        while reads < 10 or not all(event.is_set() for event in appended):
            try:
                if rng.random() < 0.3:
                    store = embstore.open(path, mapping=mapping)
                elif rng.random() < 0.5:
                    store.refresh()
                found = list(store)
                assert len(found) == len(store) == len(set(found))
                assert_whole(store, rng.choice(found, 50).tolist())
                assert_whole(store)
                # Rows are appended three at a time: no part of a commit is ever seen.
                assert sum(number_of(k) < 10_000 for k in found) % 3 == 0
                reads += 1
            except errors.StoreChangedError:
                pass
            except errors.StoreReplacedError:
                store = embstore.open(path, mapping=mapping)

    def counted_reader(seed):
        try:
            reader(seed)
        finally:
            readers_done.release()

    works = [compactor, *(lambda w=w: appender(w) for w in (0, 1)), *(lambda s=s: counted_reader(s) for s in range(3))]
    assert run_together(*works) == [0] * 6
    store = embstore.open(path, check="all")
    assert sorted(number_of(k) for k in store if number_of(k) < 10_000) == list(range(120))
    assert_whole(store)
    assert embstore.verify(path).ok


def test_a_held_lock_says_who_holds_it(path):
    kinds.new(path, "raw").close()
    ready, go = os.pipe(), os.pipe()

    def holder():
        with locks.lock(path.resolve(), timeout=5):
            os.write(ready[1], b"x")
            os.read(go[0], 1)

    child = start(holder)
    os.read(ready[0], 1)
    store = embstore.open(path, "r+", lock_timeout=0.1)
    with pytest.raises(StoreLockedError) as caught:
        put(store, [1])
    assert f"process {child} on " in caught.value.holder
    assert caught.value.path == path
    assert isinstance(caught.value, TimeoutError)
    os.write(go[1], b"x")
    assert end_of(child) == 0
    put(store, [1])


def test_a_killed_holder_leaves_no_lock(path):
    kinds.new(path, "raw").close()

    def work():
        with locks.lock(path.resolve(), timeout=5):
            os.kill(os.getpid(), signal.SIGKILL)

    assert run_in_child(work) == -signal.SIGKILL
    with embstore.open(path, "r+", lock_timeout=0.5) as store:
        put(store, [1])


@pytest.mark.parametrize("kind", ["raw", "zstd"])
def test_a_forked_child_reads_what_its_parent_opened(path, kind):
    """Also where the parent's decompressor has threads."""
    with kinds.new(path, kind) as store:
        put(store, range(300))
        assert_whole(store)

        def work():
            assert_whole(store)
            assert_whole(embstore.open(path))
            put(store, [301])

        assert run_in_child(work) == 0
        put(store, [302])
        assert list(store) == [key(i) for i in (*range(300), 301, 302)]
    assert issubclass(StoreLockedError, EmbstoreError)


def test_threads_share_a_store(path):
    from concurrent.futures import ThreadPoolExecutor

    with kinds.new(path, "raw") as store:

        def work(worker):
            for i in range(worker * 20, worker * 20 + 20):
                put(store, [i])
                assert_whole(store, [key(i)])

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(work, range(6)))
        assert sorted(map(number_of, store)) == list(range(120))


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_a_store_of_another_config_at_the_path_is_not_taken_for_this_one(tmp_path, mode):
    """Its rows have the same keys, and are other values."""
    path = tmp_path / "a.zarr"
    with embstore.open(path, "w-", config={"n": 1}) as store:
        store.append(["a:x"], np.ones((1, 2), np.float32))
    old = embstore.open(path, mode)
    shutil.rmtree(path)
    with embstore.open(path, "w-", config={"n": 2}) as store:
        store.append(["a:x"], np.zeros((1, 2), np.float32))
    with pytest.raises(errors.StoreReplacedError, match="another config"):
        old.refresh()
    if mode == "r+":
        with pytest.raises(errors.StoreReplacedError, match="another config"):
            old.append(["b:x"], np.ones((1, 2), np.float32))
    assert list(embstore.open(path)) == ["a:x"]
