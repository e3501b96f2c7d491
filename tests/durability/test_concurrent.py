"""Many processes on one store."""

import contextlib
import os
import shutil
import signal
import time

import numpy as np
import pytest

import embstore
from embstore import errors
from embstore.errors import EmbstoreError, StoreLockedError
from tests._helpers.crash import leftovers, run_in_child

DIM = 16


def number_of(key):
    return int(key[1 : key.index(":")])


def rows_for(keys):
    """Rows that say which key they belong to."""
    numbers = np.array([number_of(key) for key in keys], dtype=np.float32)
    return np.repeat(numbers[:, None], DIM, axis=1)


def append_in_steps(path, worker, times, each=3):
    store = embstore.open(path, "a", config={"a": 1}, chunk_bytes=4096, lock_timeout=120)
    for i in range(times):
        start = (worker * times + i) * each
        keys = [f"f{n}:c{n % 5}" for n in range(start, start + each)]
        store.append(keys, rows_for(keys))


children = []


@pytest.fixture(autouse=True)
def no_child_outlives_its_test():
    yield
    for child in children:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    children.clear()


def start(work):
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    children.append(child)
    return child


def finish(started):
    for child in started:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_eight_processes_append(path):
    workers, times, each = 8, 50, 3
    finish([start(lambda w=w: append_in_steps(path, w, times, each)) for w in range(workers)])
    store = embstore.open(path, check="all")
    keys = list(store)
    assert sorted(map(number_of, keys)) == list(range(workers * times * each))
    np.testing.assert_array_equal(store.select().to_numpy(), rows_for(keys))
    assert embstore.verify(path).ok
    with embstore.open(path, "r+") as writer:
        writer.append(["f99999:c"], rows_for(["f99999:c"]))
    assert leftovers(path) == []


def test_processes_append_the_same_keys_and_skip(path):
    """Each key is there once, whoever was first."""

    def work(worker):
        store = embstore.open(path, "a", config={}, lock_timeout=120)
        order = np.random.default_rng(worker).permutation(60)
        for i in order.tolist():
            keys = [f"f{i}:c"]
            store.append(keys, rows_for(keys), if_exists="skip")

    finish([start(lambda w=w: work(w)) for w in range(4)])
    store = embstore.open(path)
    assert sorted(map(number_of, store)) == list(range(60))


@pytest.mark.parametrize("mapping", ["auto", "never"])
def test_readers_beside_writers_and_a_compactor(path, mapping):
    """What a reader sees is a whole commit, and each row is under its own key."""
    with embstore.open(path, "w-", config={"a": 1}, chunk_bytes=4096) as store:
        keys = [f"f{n}:c{n % 5}" for n in range(100_000, 100_400)]
        store.append(keys, rows_for(keys))

    def compactor():
        store = embstore.open(path, "r+", lock_timeout=120)
        for i in range(40):
            key = f"f{200_000 + i}:c"
            store.append([key], rows_for([key]))
            (store.erase if i % 4 == 0 else store.delete)([key])
            store.compact()

    def reader(seed):
        rng = np.random.default_rng(seed)
        store = embstore.open(path, mapping=mapping)
        end, reads = time.monotonic() + 6, 0
        while time.monotonic() < end:
            try:
                if rng.random() < 0.3:
                    store = embstore.open(path, mapping=mapping)
                elif rng.random() < 0.5:
                    store.refresh()
                found = list(store)
                assert len(found) == len(store) == len(set(found))
                chosen = rng.choice(found, 50).tolist()
                np.testing.assert_array_equal(store[chosen], rows_for(chosen))
                view = store.select()
                np.testing.assert_array_equal(view.to_numpy(), rows_for(view.keys))
                # Rows are appended three at a time: no part of a commit is ever seen.
                assert sum(number_of(k) < 10_000 for k in found) % 3 == 0
                reads += 1
            except embstore.errors.StoreChangedError:
                pass
            except embstore.errors.StoreReplacedError:
                store = embstore.open(path, mapping=mapping)
        assert reads > 20

    started = [
        start(compactor),
        start(lambda: append_in_steps(path, 0, 40)),
        start(lambda: append_in_steps(path, 1, 40)),
    ]
    started += [start(lambda s=s: reader(s)) for s in range(3)]
    finish(started)
    store = embstore.open(path, check="all")
    assert sorted(number_of(k) for k in store if number_of(k) < 10_000) == list(range(240))
    assert embstore.verify(path).ok


def test_a_held_lock_says_who_holds_it(path):
    embstore.open(path, "w-", config={}).close()
    ready, go = os.pipe(), os.pipe()

    def holder():
        from embstore._engine.io import locks

        with locks.lock(path.resolve(), timeout=5):
            os.write(ready[1], b"x")
            os.read(go[0], 1)

    child = start(holder)
    os.read(ready[0], 1)
    store = embstore.open(path, "r+", lock_timeout=0.1)
    with pytest.raises(StoreLockedError) as caught:
        store.append(["a:b"], rows_for(["f1:b"]))
    assert f"process {child} on " in caught.value.holder
    assert caught.value.path == path
    assert isinstance(caught.value, TimeoutError)
    os.write(go[1], b"x")
    finish([child])
    store.append(["a:b"], rows_for(["f1:b"]))


def test_a_killed_holder_leaves_no_lock(path):
    embstore.open(path, "w-", config={}).close()

    def work():
        from embstore._engine.io import locks

        with locks.lock(path.resolve(), timeout=5):
            os.kill(os.getpid(), signal.SIGKILL)

    assert run_in_child(work) == -signal.SIGKILL
    with embstore.open(path, "r+", lock_timeout=0.5) as store:
        store.append(["a:b"], rows_for(["f1:b"]))


def test_a_forked_child_reads_what_its_parent_opened(path):
    with embstore.open(path, "w-", config={}) as store:
        store.append(["f1:c"], rows_for(["f1:c"]))

        def work():
            assert store["f1:c"][0] == 1
            store.append(["f2:c"], rows_for(["f2:c"]))

        assert run_in_child(work) == 0
        store.append(["f3:c"], rows_for(["f3:c"]))
        assert list(store) == ["f1:c", "f2:c", "f3:c"]
    assert issubclass(StoreLockedError, EmbstoreError)


def test_threads_share_a_store(path):
    from concurrent.futures import ThreadPoolExecutor

    with embstore.open(path, "w-", config={}, chunk_bytes=4096) as store:

        def work(worker):
            for i in range(20):
                keys = [f"f{worker * 20 + i}:c"]
                store.append(keys, rows_for(keys))
                np.testing.assert_array_equal(store[keys], rows_for(keys))

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
