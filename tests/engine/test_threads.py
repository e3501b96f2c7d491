"""Copies in parts, chunks decoded ahead, and a lock that is free in a forked process."""

import os
import resource
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import embstore
from embstore._engine.io import threads
from embstore._engine.io.threads import ThreadLock, in_parts, in_turn
from embstore._engine.read.dtypes import widen_bfloat16
from tests._helpers.crash import python, run_in_child
from tests._helpers.kinds import every_way


@pytest.fixture
def small_parts(monkeypatch):
    """Have copies done in parts that nobody would do in parts, on as many cores as that needs."""
    monkeypatch.setattr(threads, "_WORTH_A_THREAD", 64)
    monkeypatch.setattr(threads, "_cores", lambda: 4)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 17])
@pytest.mark.parametrize("nbytes", [0, 63, 128, 10_000])
def test_every_part_is_done_once(count, nbytes, small_parts):
    done, before = [], set(threading.enumerate())
    together = threading.Barrier(parts := max(1, min(4, count, nbytes // 64)))

    def work(start, stop):
        together.wait(timeout=60)  # each in a thread of its own, at the same time
        done.append((start, stop))

    in_parts(work, count, nbytes)
    done.sort()
    assert [start for start, _ in done] == [0, *(stop for _, stop in done[:-1])]
    assert done[-1][1] == count
    assert len(done) == parts
    assert max(stop - start for start, stop in done) - min(stop - start for start, stop in done) <= 1
    assert set(threading.enumerate()) <= before  # threads of other tests may have ended


def test_an_error_in_any_part_comes_out(small_parts):
    before = set(threading.enumerate())
    for bad in range(8):

        def work(start, stop, bad=bad):
            if start <= bad < stop:
                raise OSError(5, "broken")

        with pytest.raises(OSError, match="broken"):
            in_parts(work, 8, 10_000)
    assert set(threading.enumerate()) <= before  # threads of other tests may have ended


@every_way
@pytest.mark.parametrize("dim", [1024, 5])  # rows that fill pages, and rows that don't
def test_rows_are_those_that_were_asked_for(path, rng, small_parts, options, dim):
    values = rng.standard_normal((300, dim)).astype("float32")
    keys = [f"{i}:c{i % 3}" for i in range(300)]
    embstore.open(path, "w-", config={}, chunk_bytes=4096, **options).append(keys, values)
    store = embstore.open(path, **options)
    for count in (1, 3, 257):
        rows = rng.integers(0, 300, count)
        for _ in range(2):  # the first batch is read, the next is mapped
            np.testing.assert_array_equal(store.take(rows), values[rows])
    np.testing.assert_array_equal(store.select().to_numpy(), values)
    np.testing.assert_array_equal(store.select(rows=np.arange(7, 290)).to_numpy(), values[7:290])
    with pytest.raises(IndexError):
        store.take([5, 300])
    chunk = path / "embedding" / "c.0.0"
    for spoil, reason in ((lambda: chunk.write_bytes(b"x" * 50), r"c\.0\.0"), (chunk.unlink, "missing")):
        spoil()
        with pytest.raises(embstore.errors.CorruptStoreError, match=reason):
            embstore.open(path, **options).select().to_numpy()


def test_none_are_started_where_others_share_the_work(monkeypatch):
    """In a worker of multiprocessing; in a process with a limit, where a thread may find no memory."""
    code = (
        "import multiprocessing as mp\nfrom embstore._engine.io import threads\n"
        "if __name__ == '__main__':\n"
        "    with mp.get_context('fork').Pool(1) as pool: print(pool.apply(threads._cores), threads._cores())"
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert python(code).split() == ["1", str(cores)]

    def work():
        resource.setrlimit(resource.RLIMIT_AS, (2**36, 2**36))
        started = []
        monkeypatch.setattr(threads, "ThreadPoolExecutor", started.append)
        in_parts(lambda start, stop: None, 100, 2**30)
        assert not started

    assert run_in_child(work) == 0


def test_where_no_thread_starts_any_more_it_is_done_all_the_same(monkeypatch, small_parts):
    """As at the interpreter's end: the first thread is started, the second is not."""
    submit, done = threads.ThreadPoolExecutor.submit, []

    def refuse(pool, *arguments):
        if done:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")
        done.append(None)
        return submit(pool, *arguments)

    monkeypatch.setattr(threads.ThreadPoolExecutor, "submit", refuse)
    covered = []
    in_parts(lambda start, stop: covered.extend(range(start, stop)), 8, 10_000)
    assert sorted(covered) == list(range(8))


def test_results_come_in_turn_whichever_is_done_first(small_parts):
    """The first of four waits for the second: they are at work at the same time."""
    second, before = threading.Event(), set(threading.enumerate())

    def work(item):
        if item == 0:
            assert second.wait(timeout=60)
        elif item == 1:
            second.set()
        return item * item

    assert list(in_turn(work, range(17), held=1)) == [item * item for item in range(17)]
    assert set(threading.enumerate()) <= before  # threads of other tests may have ended


@pytest.mark.parametrize(("held", "ahead"), [(1, 5), (100 * 2**20, 3), (200 * 2**20, 1), (2**40, 1)])
def test_no_more_is_done_ahead_than_memory_allows(small_parts, held, ahead):
    taken = []
    results = in_turn(lambda item: item, (taken.append(item) or item for item in range(40)), held=held)
    for given in range(40):
        assert next(results) == given
        assert len(taken) <= max(2, given + ahead)
    assert next(results, None) is None


def test_one_item_and_none_need_no_thread(monkeypatch, small_parts):
    started = []
    monkeypatch.setattr(threads, "ThreadPoolExecutor", started.append)
    assert list(in_turn(str, [], held=1)) == []
    assert list(in_turn(str, [7], held=1)) == ["7"]
    assert not started


def test_an_error_comes_when_it_is_its_turn_and_ends_the_work(small_parts):
    before = set(threading.enumerate())

    def work(item):
        if item == 3:
            raise OSError(5, "broken")
        return item

    results, given = in_turn(work, range(1000), held=1), []
    with pytest.raises(OSError, match="broken"):
        given.extend(results)
    assert given == [0, 1, 2]
    assert set(threading.enumerate()) <= before  # threads of other tests may have ended


def test_who_stops_halfway_leaves_no_thread_behind(small_parts):
    before = set(threading.enumerate())
    results = in_turn(str, range(1000), held=1)
    assert next(results) == "0"
    results.close()
    assert set(threading.enumerate()) <= before  # threads of other tests may have ended


def test_the_rest_is_done_in_turn_where_no_thread_starts_any_more(monkeypatch, small_parts):
    submit, done = threads.ThreadPoolExecutor.submit, []

    def refuse(pool, *arguments):
        if len(done) == 2:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")
        done.append(None)
        return submit(pool, *arguments)

    monkeypatch.setattr(threads.ThreadPoolExecutor, "submit", refuse)
    assert list(in_turn(str, range(9), held=1)) == [str(item) for item in range(9)]


@pytest.mark.parametrize("shape", [(), (0,), (5,), (0, 3), (300, 7), (2, 3, 4)])
def test_bfloat16_becomes_the_same_numbers_in_parts(rng, small_parts, shape):
    torch = pytest.importorskip("torch")
    bits = rng.integers(0, 2**16, shape, dtype=np.uint16)
    wide = widen_bfloat16(bits)
    expected = torch.from_numpy(bits.view(np.int16).copy()).view(torch.bfloat16).to(torch.float32).numpy()
    assert wide.shape == shape
    np.testing.assert_array_equal(wide.view(np.uint32), expected.view(np.uint32))
    wide[...] = 1  # the caller's own


def test_bfloat16_out_of_every_second_row(rng):
    bits = rng.integers(0, 2**15, (10, 6), dtype=np.uint16)
    np.testing.assert_array_equal(widen_bfloat16(bits[::2, 1:]), widen_bfloat16(bits[::2, 1:].copy()))


def test_one_thread_at_a_time():
    lock, inside, most = ThreadLock(), [], []

    def work():
        for _ in range(200):
            with lock():
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1


def test_a_forked_process_has_one_of_its_own():
    lock = ThreadLock()
    with lock():

        def work():
            assert lock().acquire(timeout=5)
            lock().release()

        assert run_in_child(work) == 0
        assert not in_another_thread(lambda: lock().acquire(blocking=False))
    assert in_another_thread(lambda: lock().acquire(blocking=False))


def in_another_thread(work):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()
