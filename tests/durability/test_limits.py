"""Readers at the limits of the machine, and what they leave untouched."""

import gc
import logging
import os
import resource
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import embstore
from embstore._engine.io.mapping import budget
from tests._helpers.crash import run_in_child

NOBODY = 65_534
GIB = 2**30


@pytest.fixture
def logged(caplog):
    """The warnings that embstore logged, as texts."""
    caplog.set_level(logging.WARNING, logger="embstore")
    return lambda: [r.getMessage() for r in caplog.records if r.name == "embstore" and r.levelno == logging.WARNING]


def in_a_fresh_process(work, path):
    """Run `work(path)` where no address space is reserved yet, as a forked child would inherit it."""
    code = (
        f"import sys, pathlib; from tests.durability.test_limits import {work.__name__} as work; "
        "work(pathlib.Path(sys.argv[1]))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, path], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def whole_life(path):
    resource.setrlimit(resource.RLIMIT_AS, (4 * GIB, 4 * GIB))
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((2000, 1024)).astype(np.float32)
    keys = [f"f{i}:c{i % 7}" for i in range(2000)]
    stores = []
    for i in range(12):  # each reserves address space for each of its columns
        place = path.with_name(f"{i}.zarr")
        store = embstore.open(place, "w-", config={"i": i}, chunk_bytes=2**20)
        for start in range(0, 2000, 500):
            part = slice(start, start + 500)
            store.append(keys[part], rows[part], columns={"n": np.arange(start, start + 500)})
            assert len(store.array()) == start + 500
        stores.append(store)
    for store in stores:
        np.testing.assert_array_equal(store[keys], rows)
        assert store.select(where={"n": 77}).keys == [keys[77]]
    store = stores[0]
    view = store.select()
    store.delete(keys[:3])
    store.erase(keys[3:5])
    np.testing.assert_array_equal(view[5:].to_numpy(), rows[5:])
    store.compact()
    np.testing.assert_array_equal(store.select().to_numpy(), rows[5:])
    np.testing.assert_array_equal(store.array(), rows[5:])


def test_little_address_space_for_everything(path):
    """Under 4 GiB of address space the whole of a store's life works, mapped or not."""
    in_a_fresh_process(whole_life, path)


def many_columns(path):
    resource.setrlimit(resource.RLIMIT_AS, (4 * GIB, 4 * GIB))
    rows = np.ones((1000, 64), np.float32)
    names = [f"n{i}" for i in range(40)]
    with embstore.open(path, "w-", config={}) as store:
        store.append([f"f{i}:c" for i in range(1000)], rows, columns=dict.fromkeys(names, np.arange(1000)))
        for name in names:
            assert store.select().column(name).tolist() == list(range(1000))
        np.testing.assert_array_equal(store.array(), rows)
        assert np.ones(2**27, np.uint8).all()  # 128 MiB of the caller's own


def test_many_columns_in_little_address_space(path):
    """What is reserved for columns to grow into leaves room for everybody else."""
    in_a_fresh_process(many_columns, path)


BEYOND = """
import logging, resource, sys
from pathlib import Path
import numpy as np
import embstore
texts = []
handler = logging.Handler()
handler.emit = lambda record: texts.append((record.levelno, record.getMessage()))
logging.getLogger("embstore").addHandler(handler)
in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
limit = in_use + 120 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
reader = embstore.open(sys.argv[1], check="all")
nbytes = reader.nbytes
assert nbytes > limit // 8, (nbytes, limit)
picked = np.random.default_rng(1).permutation(3000)[:200]
assert (reader.take(picked)[:, 0] == picked).all()
assert (reader[["f7:c", "f2999:c"]][:, 4095] == [7, 2999]).all()
assert (reader.select(rows=np.arange(100, 150)).to_numpy()[:, 9] == np.arange(100, 150)).all()
assert reader.select().nearest(reader["f5:c"], k=1, metric="euclidean").keys == ["f5:c"]
assert [level for level, text in texts if "ulimit -v" in text] == [logging.WARNING], texts
"""


def test_a_column_beyond_an_eighth_of_the_address_space(path):
    """It is read chunk by chunk, with a warning, and never whole."""
    rows = np.repeat(np.arange(3000, dtype=np.float32)[:, None], 4096, axis=1)  # 49 MB
    with embstore.open(path, "w-", config={}) as store:
        store.append([f"f{i}:c" for i in range(3000)], rows)
    done = subprocess.run([sys.executable, "-c", BEYOND, path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("limit", [0, 1, 3, 5, 8])
def test_few_maps_at_every_moment(make, logged, monkeypatch, limit):
    """The maps run out at the first column, at a later one, or as a column grows."""
    monkeypatch.setattr(budget, "limit", budget.used + limit)
    store, keys, rows = make(columns=False)
    reader = embstore.open(store.path)
    expected, texts = list(rows), list(keys)
    for i in range(6):
        new = np.full((200, 8), i, np.float32)
        names = [f"new{i}_{j}:class_{j % 11}" for j in range(200)]
        store.append(names, new)
        expected += list(new)
        texts += names
        held = reader.array()
        assert reader.refresh()
        np.testing.assert_array_equal(held, expected[: len(held)])
        np.testing.assert_array_equal(reader.array(), expected)
        np.testing.assert_array_equal(reader[texts[::-1]], expected[::-1])
        np.testing.assert_array_equal(store[texts], expected)
        assert budget.used <= budget.limit
    assert any("maps" in text and "chunk by chunk" in text for text in logged())
    store.delete(texts[:10])
    store.compact()
    np.testing.assert_array_equal(store[texts[10:]], expected[10:])


@pytest.fixture
def no_more_maps(monkeypatch):
    """Have the kernel refuse to map more than so many further files, as it does past vm.max_map_count."""
    from embstore._engine.io import mapping

    def refuse(after=0):
        real, files = mapping._mmap, []

        def refused(address, nbytes, protection, flags, descriptor):
            files.extend([descriptor] if descriptor >= 0 else [])
            if descriptor >= 0 and len(files) > after:
                raise OSError(12, "Cannot allocate memory")
            return real(address, nbytes, protection, flags, descriptor)

        monkeypatch.setattr(mapping, "_mmap", refused)

    return refuse


def test_maps_that_run_out_while_mapping(make, logged, monkeypatch, no_more_maps):
    """The kernel's own refusal, after the count said yes: nothing is left half mapped."""
    store, _, rows = make()
    gc.collect()
    before = budget.used
    no_more_maps(after=2)
    reader = embstore.open(store.path)
    for _ in range(2):  # the first batch is read from the files
        np.testing.assert_array_equal(reader.take(np.arange(300)), rows)
    assert any("Cannot allocate" in text for text in logged())
    monkeypatch.undo()
    del reader
    gc.collect()
    assert budget.used <= before


def test_a_map_that_is_refused_while_a_store_grows(make, logged, no_more_maps):
    """A commit does not fail by it: the rows are on disk by then, and an error would say that they are not."""
    store, _, rows = make(columns=False)
    reader = embstore.open(store.path)
    held = reader.array(), store.array()
    store.append([f"n{i}:c" for i in range(300)], rows)
    no_more_maps()
    assert reader.refresh()
    np.testing.assert_array_equal(reader.take(np.arange(600)), [*rows, *rows])
    assert logged()
    assert store.append([f"m{i}:c" for i in range(300)], rows).appended == 300
    assert len(store) == 900
    for array in held:
        np.testing.assert_array_equal(array, rows)


def test_maps_live_as_long_as_the_last_array(make):
    def work():
        gc.collect()
        before = budget.used
        store, _, rows = make()
        part = store.array()[17:19, 3:5].T
        store.close()
        del store
        gc.collect()
        assert budget.used > before
        np.testing.assert_array_equal(part, rows[17:19, 3:5].T)
        assert not part.flags.writeable
        with pytest.raises(ValueError, match="WRITEABLE"):
            part.flags.writeable = True
        del part
        gc.collect()
        assert budget.used == before

    assert run_in_child(work) == 0


def test_maps_are_given_back_after_everything(make):
    def work():
        gc.collect()
        before = budget.used
        store, keys, rows = make(columns=False)
        reader = embstore.open(store.path, check="all")
        for i in range(5):
            store.append([f"n{i}_{j}:c" for j in range(300)], rows)
            reader.refresh()
            reader[keys], reader.select().to_numpy(), reader.array()
        store.erase(keys[:5])
        reader.refresh()
        reader[keys[5:]]
        store.compact()
        reader.refresh()
        assert reader.array().shape == (1795, 8)
        del store, reader
        gc.collect()
        assert budget.used == before

    assert run_in_child(work) == 0


def test_a_reader_under_many_commits(make):
    """Two threads read what was handed out first, while 200 commits go over the last chunk."""
    store, keys, rows = make(250, columns=False)
    reader = embstore.open(store.path)
    held, row = reader.array(), reader[keys[249]]
    view = reader.select()
    wrong, stop = [], threading.Event()

    def read():
        try:
            while not stop.is_set():
                if not ((held == rows).all() and (row == rows[249]).all()):
                    wrong.append("values")
                np.testing.assert_array_equal(view.to_numpy(), rows)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for i in range(200):
            store.append([f"new{i}:c"], np.full((1, 8), i, np.float32))
            assert reader.refresh()
            assert reader.array()[-1, 0] == i
            assert not reader.refresh()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    np.testing.assert_array_equal(reader.array()[250:, 0], np.arange(200))


def test_growth_past_what_was_reserved(path, monkeypatch):
    """A column that outgrows its addresses moves; arrays over the old ones stay."""
    monkeypatch.setattr("embstore._engine.io.mapping._LEAST_RESERVE", 0)
    with embstore.open(path, "w-", config={}, chunk_bytes=2**21) as store:
        held = []
        for i in range(20):
            rows = np.full((512, 1024), i, np.float32)
            store.append([f"{i}_{j}:c" for j in range(512)], rows)
            held.append(store.array())
        starts = {array.__array_interface__["data"][0] for array in held}
        assert 1 < len(starts) < 20
        for i, array in enumerate(held):
            assert array.shape == (512 * (i + 1), 1024)
            assert (array[::512, 5] == np.arange(i + 1)).all()


def listing(folder):
    found = {}
    for place in [folder, *folder.rglob("*")]:
        at = place.lstat()
        found[str(place)] = (at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns, at.st_mode)
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="takes on another uid")
def test_a_reader_of_another_user_leaves_no_trace(make):
    store, keys, rows = make()
    store.delete(keys[:2])
    store.close()
    folder = store.path.parent
    (folder / "store.zarr.lock").unlink()
    for parent in (folder.parent, *folder.parent.parents):
        if str(parent).startswith(("/tmp/", "/dev/shm/")):
            parent.chmod(0o755)
    for place in [*folder.rglob("*"), folder]:
        place.chmod(0o555 if place.is_dir() else 0o444)
    before = listing(folder)

    def work():
        os.setgroups([])
        os.setegid(NOBODY)
        os.seteuid(NOBODY)
        for options in ({}, {"check": "all"}, {"mapping": "never"}):
            reader = embstore.open(store.path, **options)
            assert reader.missing([*keys[:2], "x:y"]) == [*keys[:2], "x:y"]
            np.testing.assert_array_equal(reader[keys[2:]], rows[2:])
            assert reader.select(classes="class_3").to_numpy().shape == (30, 8)
            assert not reader.refresh()
        assert embstore.verify(store.path).ok

    try:
        assert run_in_child(work) == 0
        assert listing(folder) == before
    finally:
        for place in [folder, *folder.rglob("*")]:
            place.chmod(0o755)


@pytest.mark.parametrize("mask", [0o077, 0o002, 0o027])
def test_every_file_follows_the_umask(path, mask):
    """Those of a compaction, an erase, an index and a new field as well. A folder that hands its group down does so."""
    path.parent.chmod(0o2775)

    def work():
        from embstore._engine.write import index_file

        index_file._LEAST_RUN = 10
        os.umask(mask)
        with embstore.open(path, "w-", config={}) as store:
            keys = [f"f{i}:c{i}" for i in range(100)]
            store.append(keys, np.ones((100, 3), np.float32), columns={"s": "x"})
            store.erase(keys[:3])
            store.add_field("more", keys[3:], np.ones((97, 2), np.float16))
            store.delete(keys[3:5])
            store.compact()
            store.set_column("s", keys[5:], ["y"] * 95)
            store.append(
                ["new:c"],
                {"embedding": np.ones((1, 3), np.float32), "more": np.ones((1, 2), np.float16)},
                columns={"s": "x"},
            )

    assert run_in_child(work) == 0
    places = [path, *path.rglob("*"), path.with_name("store.zarr.lock")]
    assert any("index" in str(place) for place in places)
    for place in places:
        full = 0o2777 if place.is_dir() else 0o666
        assert stat.S_IMODE(place.stat().st_mode) == full & ~mask, place


def test_what_reading_imports(make):
    store, keys, _ = make()
    store.delete(keys[:1])
    code = """
import sys
import embstore
heavy = {"zarr", "numcodecs", "torch", "transformers", "pandas", "xarray", "fsspec"}
assert not {*heavy, "numpy", "filelock"} & set(sys.modules), sorted({*heavy, "numpy"} & set(sys.modules))
store = embstore.open(sys.argv[1])
view = store.select(classes=["class_1"], where={"split": "train"})
view.to_numpy(), view.keys, store[view.keys], store.take([1]), store.array(dead="include"), repr(store), repr(view)
view.nearest(store.take([1])[0], k=2), store.missing(["x:y"]), store.refresh(), embstore.verify(sys.argv[1])
assert not {*heavy, "filelock", "asyncio"} & set(sys.modules), sorted(heavy & set(sys.modules))
import threading
assert threading.active_count() == 1
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, store.path], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_no_descriptor_and_no_map_is_left(make):
    store, keys, rows = make()
    place = store.path
    store.close()
    del store

    def used():
        gc.collect()
        return len(os.listdir("/proc/self/fd")), Path("/proc/self/maps").read_text().count("store.zarr")

    before = used()
    for i in range(20):
        with embstore.open(place, "r+", check="all") as writer:
            writer.append([f"new{i}:c"], rows[:1], columns={"split": "x"})
            np.testing.assert_array_equal(writer[keys], rows)
            if i % 5 == 4:
                writer.compact()
            with pytest.raises(embstore.errors.MissingKeysError):
                writer["not:there"]
        del writer
    assert used() == before
