"""Memory that rows are copied into: whose it is, and when it is used again."""

import gc
import threading

import numpy as np
import pytest

import embstore
from embstore._engine.io import buffers
from embstore._engine.io.buffers import aligned_empty
from embstore._engine.io.mapping import HUGE_PAGE_NBYTES, PAGE_NBYTES

FLOAT = np.dtype("float32")
LARGE = (buffers._LARGE_NBYTES // 4 // 1024, 1024)


@pytest.fixture(autouse=True)
def nothing_kept():
    yield
    gc.collect()
    while buffers._kept:
        nbytes, address = buffers._kept.pop()
        buffers.unmap_memory(address, nbytes)


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("shape", [(0, 4), (3, 5), (1000, 7), (5000, 1024), LARGE, (3, *LARGE)])
def test_an_array_is_what_was_asked_for(shape):
    array = aligned_empty(shape, FLOAT)
    assert (array.shape, array.dtype) == (shape, FLOAT)
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert array.nbytes < 4 * PAGE_NBYTES or address(array) % PAGE_NBYTES == 0
    array[...] = 7
    assert (array == 7).all()


def test_memory_is_used_again_once_nobody_has_it():
    first = aligned_empty(LARGE, FLOAT)
    place = address(first)
    assert address(aligned_empty(LARGE, FLOAT)) != place
    del first
    gc.collect()
    assert place in [kept for _, kept in buffers._kept]
    assert place in {address(again) for again in [aligned_empty(LARGE, FLOAT), aligned_empty(LARGE, FLOAT)]}


def test_a_slice_keeps_it():
    array = aligned_empty(LARGE, FLOAT)
    array[5] = 3
    row, place = array[5].reshape(32, 32)[1:].T, address(array)
    del array
    gc.collect()
    others = [aligned_empty(LARGE, FLOAT) for _ in range(4)]
    for other in others:
        other[...] = 9
    assert place not in map(address, others)
    assert (row == 3).all()


def test_a_tensor_keeps_it():
    torch = pytest.importorskip("torch")
    array = aligned_empty(LARGE, FLOAT)
    array[...] = 3
    tensor = torch.from_numpy(array)[2:4]
    del array
    gc.collect()
    aligned_empty(LARGE, FLOAT)[...] = 9
    assert (tensor == 3).all()


def test_only_so_much_is_kept():
    arrays = [aligned_empty(LARGE, FLOAT) for _ in range(8)]
    del arrays
    gc.collect()
    assert 0 < sum(nbytes for nbytes, _ in buffers._kept) <= buffers._KEPT_NBYTES
    too_large = aligned_empty((buffers._KEPT_NBYTES + 1,), np.dtype("uint8"))
    before = list(buffers._kept)
    del too_large
    gc.collect()
    assert buffers._kept == before


def test_another_size_is_not_given():
    aligned_empty(LARGE, FLOAT)
    gc.collect()
    other = aligned_empty((LARGE[0] + HUGE_PAGE_NBYTES // 4096, LARGE[1]), FLOAT)
    assert address(other) not in [kept for _, kept in buffers._kept]
    other[...] = 1


def test_threads_never_share_memory(monkeypatch):
    monkeypatch.setattr(buffers, "_LARGE_NBYTES", HUGE_PAGE_NBYTES)
    monkeypatch.setattr(buffers, "_KEPT_NBYTES", 3 * HUGE_PAGE_NBYTES)
    wrong = []

    def work(number):
        for turn in range(200):
            array = aligned_empty((HUGE_PAGE_NBYTES // 4,), FLOAT)
            array[::512] = number * 1000 + turn
            if not (array[::512] == number * 1000 + turn).all():
                wrong.append((number, turn))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_batches_of_a_store_are_each_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(buffers, "_LARGE_NBYTES", 2**20)
    rows = np.random.default_rng(0).standard_normal((40, 300, 256)).astype(np.float32)
    with embstore.open(tmp_path / "a.zarr", "w-", config={}) as store:
        store.append([f"f{i}:c" for i in range(40)], rows)
    held, store = [], embstore.open(tmp_path / "a.zarr")
    for start in range(36):
        wanted = [start, start + 3, start + 1, start + 2]
        batch = embstore.open(tmp_path / "a.zarr").take(wanted) if start % 9 == 0 else store.take(wanted)
        if start % 3 == 0:
            held.append((wanted, batch))
        np.testing.assert_array_equal(batch, rows[wanted])
    for wanted, batch in held:
        np.testing.assert_array_equal(batch, rows[wanted])
