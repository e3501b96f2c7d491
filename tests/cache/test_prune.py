"""What stores take, which of them go, and that they are removed whole, also while others use them."""

import contextlib
import os
import pickle
import shutil
import signal
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

import embstore
from embstore import errors
from embstore._engine.io import locks
from embstore.cache import prune as upkeep
from embstore.cache.claims import Claims
from embstore.cache.pins import is_pinned, pin
from embstore.cache.prune import StoreUse, choose_for_removal, remove_leftovers, remove_store
from embstore.cache.usage import Usage, count, usage_of
from embstore.pipeline.embed import part_path
from embstore.sources import Items
from tests._helpers.caches import KEYS, ROWS, RUN, counted, encoder, fill, warnings
from tests._helpers.crash import end_all, kill_at, leftovers, run_in_child, start_together, until

# -- stats ------------------------------------------------------------------------------------


def test_stats(cache):
    a = fill(cache, age=1000, dataset="a")
    b = fill(cache, age=2000, dataset="b", rows=3)
    count(b, **RUN)
    found = {store.path: store for store in cache.stats()}
    assert found.keys() == {a, b}
    assert [found[path].rows for path in (a, b)] == [40, 3]
    assert [found[path].config["dataset"] for path in (a, b)] == ["a", "b"]
    assert 40 * 1024 < found[a].nbytes < 10**6
    assert found[a].nbytes == upkeep.nbytes_on_disk(a)
    assert time.time() - found[a].last_used == pytest.approx(1000, abs=60)  # never counted: when it was written
    assert time.time() - found[b].last_used == pytest.approx(0, abs=60)
    assert found[b].usage.hits == 1
    assert [store.path for store in cache.stats(dataset="b")] == [b]
    assert [store.path for store in cache.stats({"dataset": "a"})] == [a]
    assert cache.stats(dataset="c") == []
    assert embstore.Cache(cache.path / "nowhere").stats() == []


def test_holes_take_nothing(cache):
    with cache.open({"a": 1}, "a", chunk_bytes=32 * 2**20) as store:
        store.append(KEYS, ROWS)
    apparent = sum(file.stat().st_size for file in store.path.rglob("*") if file.is_file())
    (found,) = cache.stats()
    assert apparent > 30 * 10**6
    assert found.nbytes < 10**6


@pytest.mark.parametrize("moment", ["before", "within"])
def test_stats_of_a_store_that_vanishes_meanwhile(cache, monkeypatch, caplog, moment):
    a, b = fill(cache, dataset="a"), fill(cache, dataset="b")
    own = upkeep.use_of if moment == "before" else upkeep.nbytes_on_disk
    name = "embstore.cache.stored.use_of" if moment == "before" else "embstore.cache.stored.nbytes_on_disk"

    def vanishing(looked_at, *rest):
        if getattr(looked_at, "path", looked_at) == a:
            remove_store(a)
        return own(looked_at, *rest)

    monkeypatch.setattr(name, vanishing)
    assert [store.path for store in cache.stats()] == [b]
    assert warnings(caplog) == []


def test_files_that_vanish_while_they_are_counted(cache, monkeypatch):
    path = fill(cache)
    own = os.walk

    def walk(top):
        for folder, names, files in own(top):
            yield folder, names, [*files, ".partial"]

    monkeypatch.setattr(os, "walk", walk)
    assert upkeep.nbytes_on_disk(path) > 0
    assert upkeep.nbytes_on_disk(path.with_name("nowhere")) == 0


# -- what to give up --------------------------------------------------------------------------


def use(name, age, nbytes):
    config = embstore.Config(a=1)
    return StoreUse(path=Path(name), config=config, rows=1, nbytes=nbytes, usage=Usage(), last_used=1000.0 - age)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, ""),
        ({"max_nbytes": 60}, ""),
        ({"max_nbytes": 59}, "c"),  # 30 are left
        ({"max_nbytes": 30}, "c"),
        ({"max_nbytes": 29}, "cb"),
        ({"max_nbytes": 10}, "cb"),
        ({"max_nbytes": 9}, "cba"),
        ({"max_nbytes": 0}, "cba"),
        ({"unused_for": 30}, ""),
        ({"unused_for": 29.9}, "c"),
        ({"unused_for": 20}, "c"),
        ({"unused_for": 0}, "cba"),
        ({"unused_for": 25, "max_nbytes": 30}, "c"),
        ({"unused_for": 15, "max_nbytes": 30}, "cb"),
        ({"unused_for": 25, "max_nbytes": 10}, "cb"),
    ],
    ids=str,
)
def test_which_are_chosen(limits, expected):
    stores = [use("b", 20, 20), use("a", 10, 10), use("c", 30, 30)]
    assert "".join(str(store.path) for store in choose_for_removal(stores, now=1000.0, **limits)) == expected


def test_prune_by_age(cache):
    old, new = fill(cache, age=40 * 86_400, dataset="old"), fill(cache, age=20 * 86_400, dataset="new")
    for limit in (timedelta(days=30), 30 * 86_400, 30.0 * 86_400):
        assert [store.path for store in cache.prune(unused_for=limit, dry_run=True)] == [old]
    assert cache.prune(unused_for=timedelta(days=50)) == []
    assert len(cache) == 2
    (gone,) = cache.prune(unused_for=timedelta(days=30))
    assert (gone.path, gone.rows) == (old, 40)
    assert [entry.path for entry in cache.entries()] == [new]
    assert not old.exists()


def test_a_store_that_is_used_is_not_old(cache):
    path = fill(cache, age=40 * 86_400)
    count(path, **RUN)
    assert cache.prune(unused_for=timedelta(days=30)) == []


def test_prune_by_size(cache):
    paths = [fill(cache, age=1000 - i, i=i) for i in range(4)]
    sizes = {store.path: store.nbytes for store in cache.stats()}
    limit = sizes[paths[2]] + sizes[paths[3]]
    assert [store.path for store in cache.prune(max_nbytes=limit)] == paths[:2]
    assert {entry.path for entry in cache.entries()} == set(paths[2:])
    assert cache.prune(max_nbytes=limit) == []
    assert len(cache.prune(max_nbytes=0)) == 2
    assert len(cache) == 0


def test_prune_and_clear_by_attributes(cache):
    ast = {"encoder": {"id": "ast"}}
    paths = {(d, v): fill(cache, age=1000, **ast, dataset=d, version=v) for d in "ab" for v in (1, 2)}
    assert [store.path for store in cache.prune(dataset="a", version=1, max_nbytes=0)] == [paths["a", 1]]
    assert {store.path for store in cache.clear({"encoder.id": "ast"}, version=2, dry_run=True)} == {
        *(paths["a", 2], paths["b", 2]),
    }
    assert cache.clear({"encoder.id": "clip"}) == []
    assert [store.path for store in cache.clear(dataset="a")] == [paths["a", 2]]
    assert len(cache.clear()) == 2
    assert cache.clear() == []
    assert embstore.Cache(cache.path / "nowhere").clear() == []


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({}, TypeError),
        ({"max_nbytes": -1}, ValueError),
        ({"unused_for": -0.5}, ValueError),
        ({"unused_for": timedelta(days=-1)}, ValueError),
        ({"unused_for": float("nan")}, ValueError),
        ({"unused_for": float("inf")}, ValueError),
        ({"unused_for": "30d"}, TypeError),
        ({"unused_for": True}, TypeError),
        ({"max_nbytes": "100GB"}, TypeError),
        ({"max_nbytes": 0.5}, TypeError),
        ({"max_nbytes": float("nan")}, TypeError),
        ({"max_nbytes": True}, TypeError),
    ],
    ids=str,
)
def test_limits_that_make_no_sense(cache, options, error):
    fill(cache, age=1000)
    with pytest.raises(error):
        cache.prune(**options)
    if options:
        with pytest.raises(error):
            embstore.Cache(cache.path, **options)
    assert len(cache) == 1


def test_what_was_counted_is_forgotten(cache):
    path = fill(cache)
    count(path, **RUN)
    cache.clear()
    assert usage_of(path) == Usage()
    fill(cache)
    assert counted(cache) == (0, 0, 0, 0, 0)


def test_just_those_that_were_shown_are_removed(cache):
    """Between the question and the answer another store may have become the one to give up."""
    a, b = fill(cache, age=2000, i=0), fill(cache, age=1000, i=1)
    chosen = cache.prune(max_nbytes=upkeep.nbytes_on_disk(a), dry_run=True)
    count(a, **RUN)
    fill(cache, age=3000, i=2)
    assert [store.path for store in cache.remove(chosen)] == [a]
    assert b.exists()
    assert len(cache) == 2


# -- who is at them ---------------------------------------------------------------------------


def test_a_reader_goes_on_reading(cache):
    path = fill(cache)
    with cache.open({"a": 1}) as store:
        view = store.select()
        array = store.array()
        assert store.find(KEYS[5:6]) == [5]
        assert [gone.path for gone in cache.clear()] == [path]
        assert not path.exists()
        np.testing.assert_array_equal(array, ROWS)
        np.testing.assert_array_equal(store[KEYS[5]], ROWS[5])
        np.testing.assert_array_equal(view.to_numpy(), ROWS)
        with pytest.raises(errors.NotAStoreError):
            store.refresh()
    np.testing.assert_array_equal(array, ROWS)
    assert not cache.lookup({"a": 1}).hit


def test_a_reader_that_had_mapped_nothing_yet_is_told(cache):
    path = fill(cache)
    with cache.open({"a": 1}) as store:
        remove_store(path)
        with pytest.raises((errors.StoreReplacedError, errors.NotAStoreError)):
            store.array()


def test_a_writer_that_had_it_open_does_not_bring_half_of_it_back(cache):
    path = fill(cache)
    with cache.open({"a": 1}, "r+") as store:
        cache.clear()
        with pytest.raises(errors.NotAStoreError):
            store.append(["new:c"], ROWS[:1])
    assert not path.exists()
    assert leftovers(path) == []
    fill(cache)
    assert len(cache.open({"a": 1})) == 40


def test_a_writer_at_work_is_left_alone(cache, caplog):
    busy, idle = fill(cache, age=1000, i=0), fill(cache, age=1000, i=1)
    with locks.lock(busy, timeout=0):
        for remove in (cache.clear, lambda: cache.prune(max_nbytes=0), lambda: cache.prune(unused_for=1)):
            gone = remove()
            assert [store.path for store in gone] == ([idle] if remove == cache.clear else [])
            assert "not removed" in " ".join(warnings(caplog))
            caplog.clear()
        with pytest.raises(errors.StoreLockedError):
            remove_store(busy)
    assert embstore.verify(busy).ok
    assert [store.path for store in cache.clear()] == [busy]


def test_a_writer_may_be_waited_for(cache):
    path = fill(cache)
    held = locks.lock(path, timeout=0)
    held.__enter__()
    threading.Timer(0.2, held.__exit__, (None, None, None)).start()
    remove_store(path, timeout=30)
    assert not path.exists()


@pytest.mark.parametrize("fields", [("mean",), ("mean", "more")], ids=["rows", "a field"])
def test_a_run_that_is_encoding_is_left_alone(cache, caplog, fields):
    """It holds the writers' lock only while it commits."""
    items = {f"{i}:c": "x" * i for i in range(1, 9)}
    if len(fields) > 1:
        embstore.embed(Items(items, name="d"), encoder(), cache)
    entered, go_on = threading.Event(), threading.Event()

    def wait(items):
        if entered.is_set():
            assert go_on.wait(60)
        entered.set()

    results = []

    def work():
        source = Items(items, name="d")
        results.append(embstore.embed(source, encoder(wait, fields), cache, batch_size=2, interval=0, canaries=0))

    thread = threading.Thread(target=work)
    thread.start()
    assert entered.wait(60)
    until(lambda: len(cache))
    assert cache.clear() == []
    assert "not removed" in " ".join(warnings(caplog))
    go_on.set()
    thread.join(60)
    assert results[0].encoded == 8
    (gone,) = cache.clear()
    assert gone.rows == 8
    assert not list(cache.path.glob(".*backfill"))


def test_claims_of_a_killed_process_keep_nothing(cache):
    path = fill(cache)

    def work():
        claims = Claims(path)
        with claims.choosing():
            claims.announce(["new:c"])
        os.kill(os.getpid(), signal.SIGKILL)

    assert run_in_child(work) == -signal.SIGKILL
    assert len(cache.clear()) == 1


def test_what_belongs_to_a_store_goes_with_it(cache):
    source = Items({"1:c": "x", "2:c": "y"}, name="d")
    embstore.embed(source, encoder(), cache)
    embstore.embed(source, encoder(), cache, shard=(0, 1))
    (entry,) = cache.entries()
    gathered = entry.path.with_name(f".{entry.path.name}.0123abcd.backfill")  # of a run that was killed
    other = entry.path.with_name(f".{entry.path.name[:-6]}x.zarr.0123abcd.backfill")
    for path in (gathered, other):
        with embstore.open(path, "w-", config={"a": 1}) as store:
            store.append(["1:c"], ROWS[:1])
    part = part_path(entry.path, (0, 1))
    assert part.exists()
    cache.clear()
    assert not entry.path.exists()
    assert not gathered.exists()
    assert other.exists()
    assert part.exists()  # its rows may be nowhere else


@pytest.mark.parametrize("left", [["key_hash"], ["key_hash", "mean"], ["mean"], []], ids=str)
def test_what_was_half_removed_when_a_process_was_killed_stops_no_run(cache, left):
    """Rows that gathered for a field are removed once they are in the store: their record first."""
    source = Items({"1:c": "x", "2:c": "yy"}, name="d")
    path = embstore.embed(source, encoder(), cache).path
    gathered = path.with_name(f".{path.name}.0123abcd.backfill")
    with embstore.open(gathered, "w-", config={"a": 1}, fields={"mean": embstore.FieldSpec(shape=(1,))}) as store:
        store.append(["1:c"], np.ones((1, 1), np.float32))
    for place in gathered.iterdir():
        if place.name not in left:
            shutil.rmtree(place) if place.is_dir() else place.unlink()
    assert embstore.embed(Items({"3:c": "zzz"}, name="d"), encoder(), cache).encoded == 1
    assert not gathered.exists()


def test_a_link_is_left_alone(cache, tmp_path, caplog):
    elsewhere = fill(embstore.Cache(tmp_path / "elsewhere"))
    cache.path.mkdir()
    link = cache.path / elsewhere.name
    link.symlink_to(elsewhere)
    assert len(cache) == 1
    assert cache.clear() == []
    assert "it is a link" in " ".join(warnings(caplog))
    assert link.is_symlink()
    assert embstore.verify(elsewhere).ok


def test_what_is_broken_is_not_cleared(cache, caplog):
    """It may be salvaged."""
    path = fill(cache)
    (path / "zarr.json").write_text("{")
    assert cache.clear() == []
    assert "left out" in " ".join(warnings(caplog))
    assert path.exists()


def test_processes_that_clear_at_once(cache):
    for round_ in range(5):
        for i in range(4):
            fill(cache, rows=2, i=i)
        assert end_all(start_together([cache.clear] * 4)) == [0] * 4, round_
        cache.clear()  # one that another was removing was left alone
        assert len(cache) == 0
        assert [p for p in cache.path.iterdir() if p.suffix != ".lock" and p.name != ".usage"] == []


def test_readers_beside_a_removal_see_all_or_nothing(cache):
    path = fill(cache)
    stop = threading.Event()
    wrong = []

    def read():
        while not stop.is_set():
            try:
                with cache.open({"a": 1}) as store:
                    np.testing.assert_array_equal(store[KEYS], ROWS[: len(KEYS)])
            except (FileNotFoundError, errors.CacheMissError, errors.StoreReplacedError):  # NotAStoreError is the first
                pass
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(40):
        with embstore.open(path, "a", config={"a": 1}, fields={"embedding": embstore.FieldSpec(shape=(256,))}) as store:
            store.append(KEYS, ROWS, if_exists="skip")
        time.sleep(0.005)
        remove_store(path, timeout=10)
    stop.set()
    for thread in threads:
        thread.join()
    # A store that is made is there, and empty, before its rows are: only that may be seen.
    assert [error for error in wrong if not isinstance(error, errors.MissingKeysError)] == []


# -- open and pinned stores are kept ---------------------------------------------------------


def by_another_process(path):
    """Open the store in a child, which ends with the block."""
    ready, told = os.pipe()
    stop, end = os.pipe()

    def work():
        os.close(end)
        with embstore.open(path):
            os.write(told, b"x")
            os.read(stop, 1)

    child = start_together([work])
    os.read(ready, 1)

    def close():
        os.close(end)
        assert end_all(child) == [0]

    return close


def by_a_link(path):
    link = path.with_name("link")
    link.symlink_to(path)
    return embstore.open(link).close


def by_a_pickled_view(path):
    with embstore.open(path) as store:
        data = pickle.dumps(store.select())
    return pickle.loads(data).store.close


WAYS = {
    "its path": lambda path: embstore.open(path).close,
    "the cache": lambda path: embstore.Cache(path.parent).open({"a": 1}).close,
    "a writer": lambda path: embstore.open(path, "r+").close,
    "never mapped": lambda path: embstore.open(path, mapping="never").close,
    "a link": by_a_link,
    "a pickled view": by_a_pickled_view,
    "another process": by_another_process,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_store_that_is_open_is_kept(cache, caplog, way):
    path, other = fill(cache, age=2000, a=1), fill(cache, age=1000, a=2)
    close = WAYS[way](path)
    nbytes = upkeep.nbytes_on_disk(other)
    for limits in ({"max_nbytes": nbytes}, {"unused_for": 1500, "max_nbytes": 10**9}):
        assert [store.path for store in cache.prune(**limits, dry_run=True)] == [other] * ("unused_for" not in limits)
    with pytest.raises(errors.StoreLockedError, match="open"):
        remove_store(path, if_open="keep")
    assert [store.path for store in cache.prune(max_nbytes=0)] == [other]
    assert "are open, pinned or just written" in " ".join(warnings(caplog))
    assert embstore.verify(path).ok
    close()
    assert [store.path for store in cache.prune(max_nbytes=0)] == [path]


def test_readers_never_lose_a_store_that_they_opened(cache):
    """A reader opens, reads and refreshes, while another thread makes the store and removes it again."""
    path = fill(cache)
    stop, wrong, reads = threading.Event(), [], []

    def read():
        while not stop.is_set():
            try:
                store = cache.open({"a": 1})
            except (FileNotFoundError, errors.CacheMissError):
                continue
            try:
                store.refresh()
                reads.append(len(store.fetch([*store])) if len(store) else 0)
            except Exception as error:
                wrong.append(error)
            store.close()

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    removed = 0
    for _ in range(100):
        with embstore.open(path, "a", config={"a": 1}) as store:
            store.append(KEYS, ROWS, if_exists="skip")
        for _ in range(20):
            with contextlib.suppress(errors.StoreLockedError):
                remove_store(path, timeout=10, if_open="keep")
                removed += 1
                break
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert removed
    assert len(KEYS) in reads


def refused_as_gone(call, path):
    with pytest.raises(errors.NotAStoreError):
        call(path)
    return True


def test_a_reader_that_opens_during_the_removal_waits(cache):
    path = fill(cache)
    mark = locks.FileLock(path / locks.OPEN_MARK, folder=True)
    assert mark.acquire()
    found = []
    thread = threading.Thread(target=lambda: found.append(refused_as_gone(embstore.open, path)))
    thread.start()
    time.sleep(0.1)
    assert found == []
    path.rename(path.with_name("removed"))
    mark.release()
    thread.join(60)
    assert found == [True]


def test_pins_are_kept_across_processes(cache, caplog):
    a, b = fill(cache, a=1), fill(cache, a=2)
    assert run_in_child(lambda: embstore.Cache(cache.path).pin(a=1)) == 0
    assert {entry.path: entry.pinned for entry in cache} == {a: True, b: False}
    assert [store.path for store in cache.prune(max_nbytes=0)] == [b]
    assert cache.clear() == []
    assert f"{a}: kept: it is pinned" in warnings(caplog)
    with pytest.raises(errors.StoreLockedError, match=r"is held by a pin \(cache\.unpin removes it\)$"):
        remove_store(a)
    for wrong in (cache.pin, cache.unpin):
        with pytest.raises(errors.CacheMissError):
            wrong(a=3)
    cache.pin()  # again
    assert [entry.path for entry in cache.unpin()] == [a]
    assert [store.path for store in cache.clear()] == [a]
    fill(cache, a=1)
    assert not next(iter(cache)).pinned


def test_a_pin_waits_for_a_removal(cache):
    path = fill(cache)
    with locks.lock(path, timeout=0):
        done = []
        thread = threading.Thread(target=lambda: done.append(refused_as_gone(pin, path)))
        thread.start()
        path.rename(path.with_name("removed"))
    thread.join(60)
    assert done == [True]
    assert not is_pinned(path)


# -- a cache with limits ----------------------------------------------------------------------


def ran(cache, name, count=40):
    """Encode into a store of its own."""
    return embstore.embed(Items({f"{i}:c": "x" * (i + 1) for i in range(count)}, name=name), encoder(), cache).path


def test_a_cache_with_limits_prunes_after_a_run_that_wrote(cache, caplog):
    old, pinned, opened, recent = (fill(cache, age=age, a=age) for age in (4000, 3000, 2000, 1000))
    cache.pin(a=3000)
    own = embstore.Cache(cache.path, max_nbytes=0)
    with embstore.open(opened):
        new = ran(own, "d")
        assert [path.exists() for path in (old, pinned, opened, recent, new)] == [False, True, True, False, True]
        said = [text for text in warnings(caplog) if "removed by the limits of the cache: 40 rows" in text]
        assert [text.split(":")[0] for text in said] == [str(old), str(recent)]
        assert "are left of at most 0 B" in " ".join(warnings(caplog))
    caplog.clear()
    assert ran(own, "d") == new  # it wrote nothing
    assert opened.exists()
    assert warnings(caplog) == []
    ran(cache, "e")  # a cache without limits
    assert opened.exists()
    assert [store.path for store in embstore.Cache(cache.path, unused_for=1500).prune()] == [opened]


@pytest.mark.parametrize("limit", [{"max_nbytes": 2.0**20}, {"unused_for": timedelta(hours=1)}], ids=str)
def test_a_limit_that_holds_removes_nothing(cache, caplog, limit):
    paths = [fill(cache, age=3000 - i, rows=2, i=i) for i in range(3)]
    own = pickle.loads(pickle.dumps(embstore.Cache(cache.path, **limit)))
    ran(own, "d")
    assert all(path.exists() for path in paths)
    assert warnings(caplog) == []


@pytest.mark.parametrize("reason", ["network", "not removable"])
def test_a_run_ends_well_where_its_cache_can_not_be_pruned(cache, caplog, monkeypatch, reason):
    path = fill(cache, age=1000)

    def refuse(*_, **__):
        raise errors.ReadOnlyError(path, "it is not yours")

    if reason == "network":
        monkeypatch.setattr("embstore.cache.cache.on_network", lambda _: "nfs4")
    else:
        monkeypatch.setattr("embstore.cache.cache.remove_store", refuse)
    assert len(embstore.open(ran(embstore.Cache(cache.path, max_nbytes=0), "d"))) == 40
    assert path.exists()
    assert {"network": "not pruned: on nfs4", "not removable": "it is not yours"}[reason] in " ".join(warnings(caplog))


def test_a_writer_that_appends_is_left_alone_by_limits(cache, caplog):
    """Runs prune beside a writer of another store, which never loses its store nor a row."""
    path = fill(cache, age=1000, rows=1, a=1)
    stop = threading.Event()
    wrote = []

    def write():
        while not stop.is_set():
            with cache.open({"a": 1}, "a") as store:
                for _ in range(3):
                    store.append([f"new{len(wrote)}:c"], ROWS[:1])
                    wrote.append(1)

    thread = threading.Thread(target=write)
    thread.start()
    until(lambda: wrote)
    for i in range(10):
        with cache.open({"a": 1}):  # the writer may have closed it
            ran(embstore.Cache(cache.path, max_nbytes=0), f"d{i}", count=2)
    stop.set()
    thread.join(60)
    assert len(embstore.open(path)) == 1 + len(wrote)


# -- killed -----------------------------------------------------------------------------------


def kill_at_call(number):
    """Have this process killed at one of the calls that remove something from the disk."""
    left = number

    def hook(event, arguments):
        nonlocal left
        if event in ("os.remove", "os.rmdir", "os.rename"):
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.addaudithook(hook)


@pytest.mark.parametrize("kill", [kill_at, kill_at_call])
@pytest.mark.parametrize("next_one", ["writer", "clear", "prune", "removal"])
def test_killed_at_every_step(tmp_path, kill, next_one):
    step, seen = 0, set()
    while True:
        cache = embstore.Cache(tmp_path / f"{next_one} {step}")
        path = fill(cache, rows=2)
        count(path, **RUN)

        def work(path=path, step=step):
            kill(step)
            remove_store(path)

        ended = run_in_child(work)
        assert ended in (0, -signal.SIGKILL)
        there = [entry.path for entry in cache.entries()]
        assert there in ([], [path])
        assert path.exists() == bool(there)
        if there:
            assert embstore.verify(path).ok
            assert len(cache.open({"a": 1})) == 2
        else:
            assert not cache.lookup({"a": 1}).hit
            assert cache.stats() == []
        seen.add(bool(there))
        if next_one == "writer":
            fill(cache, rows=2) if not there else cache.open({"a": 1}, "r+").append(["new:c"], ROWS[:1])
            assert embstore.verify(path).ok
            assert len(cache.open({"a": 1})) == (3 if there else 2)
        elif next_one == "clear":
            cache.clear()
        elif next_one == "prune":
            cache.prune(max_nbytes=10**12)
        else:
            remove_store(path)
        assert leftovers(path) == []
        if next_one in ("clear", "removal"):
            assert not path.exists()
            assert [p.name for p in cache.path.iterdir()] in (
                [f"{path.name}.lock", ".usage"],
                [".usage", f"{path.name}.lock"],
            )
        if ended == 0:
            break
        step += 1
    assert seen == ({True, False} if kill is kill_at else {False})  # whatever removes a file comes after the move
    assert step >= 4


def test_a_killed_compaction_is_tidied_up_by_a_prune(cache):
    path = fill(cache)
    with cache.open({"a": 1}, "r+") as store:
        store.delete(KEYS[:1])

    def work():
        store = cache.open({"a": 1}, "r+")
        kill_at(20)
        store.compact()

    assert run_in_child(work) == -signal.SIGKILL
    assert leftovers(path) != []
    assert cache.prune(max_nbytes=10**12) == []
    assert leftovers(path) == []
    assert embstore.verify(path).ok
    assert len(cache.open({"a": 1})) == 39


def test_tidying_up_leaves_alone_what_is_not_left_over(cache):
    path = fill(cache)
    others = [".notes.partial", ".x.zarr.tmp", "x.zarr.partial", ".partial", ".zarr"]
    for name in others:
        (cache.path / name).mkdir()
    (cache.path / ".file.zarr.0123.partial").write_text("a download")
    busy = cache.path / ".busy.zarr.partial"
    busy.mkdir()
    with locks.lock(cache.path / "busy.zarr", timeout=0):
        remove_leftovers(cache.path, ".zarr")
        assert busy.exists()
    remove_leftovers(cache.path, ".zarr")
    assert not busy.exists()
    assert (cache.path / ".file.zarr.0123.partial").exists()
    assert all((cache.path / name).exists() for name in others)
    assert path.exists()
