"""The first batch of a column, read from its files; and the rows of a batch that the kernel is asked for ahead."""

import mmap

import numpy as np
import pytest

import embstore
from embstore import errors
from embstore._engine.io.mapping import PAGE_NBYTES, Region
from embstore._engine.read import prefetch
from embstore._engine.read.prefetch import Prefetcher
from embstore._engine.read.snapshot import Snapshot
from tests._helpers.damage import flip


@pytest.fixture
def many(make):
    """A store of ten chunks, in a reader that has read nothing."""
    store, keys, rows = make(1280, columns=False)
    return store, embstore.open(store.path), keys, rows


def chunk(store, index):
    return store.path / "embedding" / f"c.{index}.0"


def test_it_opens_the_files_of_its_rows_alone(many):
    store, reader, _, rows = many
    chunk(store, 5).unlink()
    wanted = np.array([3, 1279, 130, 3, 131])
    np.testing.assert_array_equal(reader.take(wanted), rows[wanted])
    with pytest.raises(errors.CorruptStoreError, match=r"c\.5\.0: it is missing"):
        reader.take(wanted)


def test_its_rows_are_fresh_and_writable(many):
    _, reader, _, rows = many
    for _ in range(2):
        found = reader.take([2, 1])
        found[:] = 0
        np.testing.assert_array_equal(reader.take([2, 1]), rows[[2, 1]])


@pytest.mark.parametrize(
    "read",
    [
        lambda reader, keys: reader.take(np.arange(1100)),
        lambda reader, keys: reader.array(),
        lambda reader, keys: reader[keys[0]],
        lambda reader, keys: reader.select().to_numpy(),
        lambda reader, keys: (reader.take([1]), reader.take([2])),
    ],
    ids=["many rows", "column", "row", "view", "two batches"],
)
def test_what_maps_all_chunks_goes_on_reading_whatever_becomes_of_the_files(many, read):
    store, reader, keys, rows = many
    read(reader, keys)
    store.delete(keys[:1])
    store.compact()
    np.testing.assert_array_equal(reader.take(np.arange(1280)), rows)


def test_one_that_has_read_a_batch_alone_is_told_of_a_compaction(many):
    store, reader, keys, rows = many
    np.testing.assert_array_equal(reader.take([7]), rows[[7]])
    store.delete(keys[:1])
    store.compact()
    with pytest.raises(errors.StoreReplacedError):
        reader.take([7])
    reader.refresh()
    np.testing.assert_array_equal(reader[[keys[7]]], rows[[7]])


READS = {
    "take": lambda reader, keys: reader.take([1]),
    "many": lambda reader, keys: reader.take(np.arange(1100)),
    "row": lambda reader, keys: reader[keys[5]],
    "column": lambda reader, keys: reader.array(dead="include"),
    "view": lambda reader, keys: reader.select().to_numpy(),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize("batches", [0, 1])
def test_one_that_has_mapped_nothing_is_told_of_an_erase_however_often_it_reads(many, read, batches):
    """What it maps by then are blanked rows, and no later read may take them for those of its commit."""
    store, reader, keys, _ = many
    reader.rows_of(keys[:1])
    for _ in range(batches):
        reader.take([1])
    store.delete(keys[:1])
    store.erase(keys[1:2])
    for _ in range(4):
        with pytest.raises(errors.StoreChangedError):
            read(reader, keys)


def test_what_another_thread_maps_counts_only_once_it_was_looked_at(many, monkeypatch):
    """Between the map and the look, nobody else may take it for looked at."""
    store, reader, keys, _ = many
    reader.take([1])
    reader.rows_of(keys[:2])
    store.erase(keys[1:2])
    look, told = Snapshot.ensure_current, []

    def look_late(snapshot):
        if not told:
            told.append(None)
            with pytest.raises(errors.StoreChangedError) as caught:  # the other thread
                reader.take([1])
            told.append(caught.value)
        look(snapshot)

    monkeypatch.setattr(Snapshot, "ensure_current", look_late)
    with pytest.raises(errors.StoreChangedError):
        reader.take([1])
    assert isinstance(told[1], errors.StoreChangedError)


@pytest.mark.parametrize("check", ["touched", "all"])
def test_it_is_checked_where_that_is_asked_for(many, check):
    store, _, _, rows = many
    flip(chunk(store, 0), place=100)
    with pytest.raises(errors.CorruptStoreError, match="checksum"):
        embstore.open(store.path, check=check).take([0])
    if check == "touched":
        reader = embstore.open(store.path, check=check)
        np.testing.assert_array_equal(reader.take([1279]), rows[[1279]])


def test_a_chunk_cut_short_is_found_before_it_is_read(many):
    store, reader, _, _ = many
    data = chunk(store, 3).read_bytes()
    chunk(store, 3).write_bytes(data[:-1])
    for _ in range(2):
        with pytest.raises(errors.CorruptStoreError, match="bytes"):
            reader.take([3 * 128])


def test_a_reader_that_read_a_batch_grows_with_the_store(many):
    store, reader, keys, rows = many
    np.testing.assert_array_equal(reader.take([5]), rows[[5]])
    store.append(["new:class_0"], rows[:1])
    reader.refresh()
    for _ in range(2):
        np.testing.assert_array_equal(reader[["new:class_0", keys[5]]], rows[[0, 5]])


class Asked:
    """Stands in for the kernel: which bytes were asked for, and how many faults a thread has had."""

    def __init__(self, monkeypatch):
        self.stretches, self.faults = [], 0
        monkeypatch.setattr(Region, "advise", lambda _, advice, start, nbytes: self.stretches.append((start, nbytes)))
        monkeypatch.setattr(prefetch, "_major_faults", lambda: self.faults)


@pytest.fixture
def asked(monkeypatch):
    return Asked(monkeypatch)


def prefetcher(row_nbytes):
    return Prefetcher(Region(1000 * row_nbytes), row_nbytes)


class Cold(np.ndarray):
    """Rows each of which is a fault."""

    def __new__(cls, count, asked):
        rows = np.zeros((count, 4), np.float32).view(cls)
        rows.asked = asked
        return rows

    def __array_finalize__(self, source):
        self.asked = getattr(source, "asked", None)

    def __getitem__(self, place):
        self.asked.faults += 1
        return super().__getitem__(place)


def test_rows_in_memory_are_not_asked_for(asked):
    ahead, rows = prefetcher(16), np.arange(256)
    for _ in range(40):
        ahead.before(np.zeros((1000, 4), np.float32), rows)
        ahead.after()
    assert asked.stretches == []


def test_the_first_batch_is_asked_for_once_its_first_rows_were_not_there(asked):
    ahead = prefetcher(PAGE_NBYTES)
    ahead.before(Cold(1000, asked), np.arange(0, 512, 2))
    ahead.after()
    assert asked.stretches == [(PAGE_NBYTES * row, PAGE_NBYTES) for row in range(0, 512, 2)]


def test_a_batch_that_waited_has_the_next_looked_at(asked):
    ahead, values, rows = prefetcher(PAGE_NBYTES), np.zeros((1000, 4), np.float32), np.arange(0, 64, 2)
    ahead.before(values, rows)
    ahead.after()
    ahead.before(values, rows)
    asked.faults += 3
    ahead.after()
    assert asked.stretches == []
    ahead.before(values, rows)  # looked at, and found in memory
    ahead.after()
    assert asked.stretches == []
    ahead.before(values, rows)
    asked.faults += 3
    ahead.after()
    for batch in range(1, 4):
        ahead.before(Cold(1000, asked), rows)
        ahead.after()
        assert len(asked.stretches) == 32 * batch


@pytest.mark.parametrize(
    ("row_nbytes", "rows", "stretches"),
    [
        (PAGE_NBYTES, [5, 1, 2, 5, 9], [(1, 2), (5, 1), (9, 1)]),
        (PAGE_NBYTES // 4, [0, 3, 9, 4, 40], [(0, 3), (10, 1)]),
        (PAGE_NBYTES * 3 // 4, [1, 9], [(0, 2), (6, 2)]),
        (3 * PAGE_NBYTES, [2, 0, 1], [(0, 9)]),
    ],
    ids=["pages", "parts of pages", "across pages", "several pages"],
)
def test_what_lies_side_by_side_is_asked_for_at_once(row_nbytes, rows, stretches):
    pages = [
        (start // PAGE_NBYTES, (stop - start) / PAGE_NBYTES) for start, stop in prefetcher(row_nbytes)._pages(rows)
    ]
    assert pages == stretches


def test_a_few_rows_are_not_worth_a_look(asked):
    ahead = prefetcher(PAGE_NBYTES)
    ahead.before(Cold(1000, asked), np.arange(7))
    assert asked.faults == 0
    assert asked.stretches == []


@pytest.mark.skipif(not hasattr(mmap, "MADV_WILLNEED"), reason="the kernel can't be asked")
def test_rows_that_are_asked_for_are_the_rows(many, monkeypatch):
    _, reader, _, rows = many
    faults = iter(range(1000))
    monkeypatch.setattr(prefetch, "_major_faults", lambda: next(faults))
    for start in range(3):
        wanted = np.arange(start, 1280, 3)
        np.testing.assert_array_equal(reader.take(wanted), rows[wanted])
