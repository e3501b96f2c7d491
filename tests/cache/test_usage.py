"""Usage: runs are counted, opening a store is noted once an hour, and neither is ever in a run's way."""

import errno
import functools
import json
import logging
import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

import embstore
from embstore import errors
from embstore._engine.io import locks
from embstore.cache import usage
from embstore.cache.usage import Usage, count, mark_used, usage_of
from embstore.encoders import FunctionEncoder
from embstore.pipeline.embed import part_path
from embstore.sources import Items
from tests._helpers.caches import KEYS, RUN, counted, encoder, fill, warnings
from tests._helpers.crash import as_another_user, end_all, kill_at, needs_root, run_in_child, start_together

DAY = 86_400


@pytest.fixture
def clock(monkeypatch):
    """A clock for `time.time` that stands still; `clock.now` sets it."""

    class Clock:
        now = time.time()

    monkeypatch.setattr(time, "time", lambda: Clock.now)
    return Clock


def place_of(path):
    return path.parent / ".usage" / f"{path.name}.json"


# -- counting ---------------------------------------------------------------------------------


def test_runs_add_up(tmp_path):
    path = tmp_path / "s.zarr"
    assert usage_of(path) == Usage()
    began = time.time()
    count(path, hits=0, misses=10, served=10, encoded=8, seconds=2.0004)
    count(path, hits=9, misses=1, served=10, encoded=0, seconds=0)
    found = usage_of(path)
    assert (found.runs, found.hits, found.misses, found.served, found.encoded) == (2, 9, 11, 20, 8)
    assert found.seconds == 2.0
    assert found.seconds_saved == 9 * 2 / 8
    assert began - 1 < found.last_used < time.time() + 1
    assert Usage(hits=5).seconds_saved == 0


def test_each_store_has_its_own(tmp_path):
    for hits, name in enumerate(["a.zarr", "b.zarr", "a.zarr.part-0-of-2"]):
        count(tmp_path / name, **{**RUN, "hits": hits})
    assert [usage_of(tmp_path / name).hits for name in ("a.zarr", "b.zarr", "a.zarr.part-0-of-2")] == [0, 1, 2]
    usage.forget(tmp_path / "a.zarr")
    usage.forget(tmp_path / "a.zarr")
    assert [usage_of(tmp_path / name).runs for name in ("a.zarr", "b.zarr", "a.zarr.part-0-of-2")] == [0, 1, 1]


def test_processes_that_count_and_open_at_once_lose_no_run(tmp_path):
    path, each = tmp_path / "s.zarr", 200

    def work(number):
        for i in range(each):
            count(path, hits=i, misses=number, served=1, encoded=1, seconds=0.25)
            usage._add(path, Usage())  # an opening that is noted

    assert end_all(start_together([functools.partial(work, number) for number in range(6)])) == [0] * 6
    found = usage_of(path)
    assert found.runs == found.served == found.encoded == each * 6
    assert found.hits == 6 * sum(range(each))
    assert found.misses == each * sum(range(6))
    assert found.seconds == 0.25 * each * 6


def test_a_torn_file_counts_as_none(tmp_path):
    """No write of embstore leaves one."""
    path = tmp_path / "s.zarr"
    count(path, **RUN)
    whole = place_of(path).read_bytes()
    for cut in range(1, len(whole) + 1):
        place_of(path).write_bytes(whole[:-cut])
        assert usage_of(path) == Usage()
        count(path, **RUN)
        assert usage_of(path).runs == 1


def test_killed_while_it_counts(tmp_path):
    """At each step on the disk: the file is the one before or the one after, and the next run counts on."""
    step, seen = 0, []
    while True:
        path = tmp_path / str(step) / "s.zarr"
        path.parent.mkdir()
        count(path, **RUN)

        def work(path=path, step=step):
            kill_at(step)
            count(path, **RUN)

        ended = run_in_child(work)
        assert ended in (0, -signal.SIGKILL)
        seen.append(usage_of(path).runs)
        count(path, **RUN)
        assert usage_of(path).runs == seen[-1] + 1
        assert sorted(file.name for file in place_of(path).parent.iterdir()) == ["counting.lock", "s.zarr.json"]
        if ended == 0:
            break
        step += 1
    assert seen == sorted(seen)
    assert set(seen) == {1, 2}
    assert step >= 4


WHOLE = {"runs": 1, **RUN, "last_used": 1.0}


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"\xff\xfe\x00", b"null", b"[]", b"7", b'"text"', b"{}", b"[" * 100_000, b"{" * 100, b"nonsense"),
        json.dumps({**WHOLE, "hits": None}).encode(),
        json.dumps({**WHOLE, "hits": "many"}).encode(),
        json.dumps({**WHOLE, "hits": -1}).encode(),
        json.dumps({**WHOLE, "hits": float("nan")}).encode(),
        json.dumps({**WHOLE, "seconds": float("inf")}).encode(),
        json.dumps({**WHOLE, "served": 10**400}).encode(),
        json.dumps({**WHOLE, "runs": 2**53}).encode(),
        json.dumps({**WHOLE, "last_used": 1e12}).encode(),
        json.dumps({**WHOLE, "last_used": -1}).encode(),
        json.dumps(RUN).encode(),
        json.dumps({name: WHOLE[name] for name in WHOLE if name != "seconds"}).encode(),
        json.dumps(WHOLE).encode() + b" " * 4096,
    ],
    ids=lambda data: data[:40],
)
def test_a_file_of_something_else_counts_as_none(tmp_path, caplog, data):
    path = tmp_path / "s.zarr"
    count(path, **RUN)
    place_of(path).write_bytes(json.dumps(WHOLE).encode())
    assert usage_of(path) == Usage(**WHOLE)
    place_of(path).write_bytes(data)
    assert usage_of(path) == Usage()
    with caplog.at_level(logging.INFO, "embstore"):
        count(path, **RUN)
    assert "counting starts again" in caplog.text
    found = usage_of(path)
    assert (found.runs, found.hits, found.seconds) == (1, 1, 0.5)


@pytest.mark.parametrize("make", [os.mkfifo, lambda place: place.symlink_to("/etc/passwd")], ids=["fifo", "link"])
def test_what_is_no_file_is_not_followed(tmp_path, make):
    path = tmp_path / "s.zarr"
    place_of(path).parent.mkdir()
    make(place_of(path))
    assert usage_of(path) == Usage()
    count(path, **RUN)
    assert usage_of(path).runs == 1
    assert place_of(path).is_file()
    assert not place_of(path).is_symlink()


def test_a_file_that_cant_be_read_is_not_replaced(tmp_path, monkeypatch, caplog):
    """Its counts would be lost."""
    path = tmp_path / "s.zarr"
    count(path, **RUN)
    before = place_of(path).read_bytes()
    with monkeypatch.context() as patch, caplog.at_level(logging.INFO, "embstore"):
        patch.setattr(
            "embstore._engine.io.folder.read_exactly", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "broken"))
        )
        assert usage_of(path) == Usage()
        count(path, **RUN)
        mark_used(path)
    assert "is not counted" in caplog.text
    assert place_of(path).read_bytes() == before


def test_a_process_that_counts_is_waited_for(tmp_path, monkeypatch, caplog):
    path = tmp_path / "s.zarr"
    count(path, **RUN)
    monkeypatch.setattr(usage, "_WAIT", 0.05)
    with locks.lock(place_of(path).with_name("counting"), timeout=0), caplog.at_level(logging.INFO, "embstore"):
        count(path, **RUN)
    assert "is not counted" in caplog.text
    assert f"process {os.getpid()}" in caplog.text
    assert usage_of(path).runs == 1


@pytest.mark.parametrize(
    "error",
    [
        errors.ReadOnlyError(Path("x"), "read-only file system"),
        errors.StorageFullError(Path("x"), OSError(errno.ENOSPC, "full")),
        OSError(errno.EIO, "broken"),
        FileExistsError(errno.EEXIST, "a file"),
        FileNotFoundError(errno.ENOENT, "gone"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_where_nothing_can_be_written_nothing_is_counted(tmp_path, monkeypatch, caplog, error):
    def fail(folder, name, parts):
        raise error

    monkeypatch.setattr(usage, "replace_file", fail)
    with caplog.at_level(logging.INFO, "embstore"):
        count(tmp_path / "s.zarr", **RUN)
    assert usage_of(tmp_path / "s.zarr") == Usage()
    assert [r.levelname for r in caplog.records] == ["INFO"]
    assert "is not counted" in caplog.text


def test_a_file_where_the_counts_should_be(tmp_path):
    (tmp_path / ".usage").write_text("mine")
    count(tmp_path / "s.zarr", **RUN)
    assert usage_of(tmp_path / "s.zarr") == Usage()
    usage.forget(tmp_path / "s.zarr")
    assert (tmp_path / ".usage").read_text() == "mine"
    count(tmp_path / "gone" / "s.zarr", **RUN)
    assert not (tmp_path / "gone").exists()


@needs_root
@pytest.mark.parametrize("there", [False, True], ids=["first time", "after a year"])
def test_another_user_reads_and_neither_counts_nor_removes(cache, clock, caplog, there):
    path = fill(cache)
    if there:
        count(path, **RUN)
        clock.now += 365 * DAY
    before = {file: file.stat().st_mtime_ns for file in cache.path.rglob("*")}

    def work():
        assert len(cache.open({"a": 1})) == len(cache.find_one(a=1)) == 40
        count(path, **RUN)
        assert warnings(caplog) == []
        (store,) = cache.stats()
        assert (store.usage.runs, store.rows) == (there, 40)
        assert cache.clear(dry_run=True) == [store]
        for remove in (cache.clear, lambda: cache.prune(max_nbytes=0)):
            with pytest.raises(errors.ReadOnlyError):
                remove()

    assert as_another_user(cache.path, work) == 0
    assert {file: file.stat().st_mtime_ns for file in cache.path.rglob("*")} == before


# -- what embed counts ------------------------------------------------------------------------


def test_embed_counts_hits_and_misses(cache):
    items = {f"{i}:c": "x" * i for i in range(1, 11)}
    slow = encoder(lambda items: time.sleep(0.05))
    embstore.embed(Items(items, name="d"), slow, cache)
    assert counted(cache) == (1, 0, 10, 10, 10)
    (store,) = cache.stats()
    taken = store.usage.seconds
    assert 0.05 <= taken < 30
    embstore.embed(Items(items, name="d"), slow, cache)  # nothing is missing
    assert counted(cache) == (2, 10, 10, 20, 10)
    (store,) = cache.stats()
    assert store.usage.seconds == taken  # a run that encodes nothing says nothing of what that takes
    assert store.usage.seconds_saved == pytest.approx(taken)
    assert abs(store.last_used - time.time()) < 60
    items["1:c"], items["new:c"] = "another", "new"
    embstore.embed(Items(items, name="d"), slow, cache)  # one is stale, one is new
    assert counted(cache) == (3, 19, 12, 31, 12)


def test_embed_counts_no_row_that_failed(cache):
    def decode(content):
        if content == "bad":
            raise errors.DecodeError("it is bad")
        return content

    specs = {"mean": embstore.FieldSpec(shape=(1,))}
    fails = FunctionEncoder(
        lambda items: np.ones((len(items), 1), np.float32), config={"a": 1}, fields=specs, decode=decode
    )
    for _ in range(2):
        embstore.embed(Items({"1:c": "good", "2:c": "bad"}, name="d"), fails, cache)
    assert counted(cache) == (2, 1, 3, 2, 1)


def test_embed_counts_shards_as_uses_of_the_whole(cache):
    source = Items({f"{i}:c": "x" * i for i in range(1, 21)}, name="d")
    path = cache.path_of({"encoder": "length", "dataset": "d"})
    for i in range(3):
        embstore.embed(source, encoder(), cache, shard=(i, 3))
    found = usage_of(path)
    assert (found.runs, found.hits, found.misses, found.served, found.encoded) == (3, 0, 20, 20, 20)
    parts = [part_path(path, (i, 3)) for i in range(3)]
    embstore.merge(path, *parts)
    assert counted(cache) == (3, 0, 20, 20, 20)
    embstore.embed(source, encoder(), cache, shard=(0, 3))  # what the whole store has is a hit of the shard's
    share = len(embstore.open(parts[0]))
    assert counted(cache) == (4, share, 20, 20 + share, 20)
    assert all(usage_of(part) == Usage() for part in parts)


def test_embed_counts_a_field_that_is_added(cache):
    source = Items({"1:c": "x", "2:c": "xx"}, name="d")
    embstore.embed(source, encoder(), cache)
    embstore.embed(source, encoder(fields=("mean", "more")), cache)
    assert counted(cache) == (2, 2, 2, 6, 4)  # two rows of a field each time, of which the second found the first's


def test_embed_into_a_cache_that_counts_nothing(cache, monkeypatch):
    def refuse(folder, name, parts):
        raise errors.ReadOnlyError(folder.path, "read-only file system")

    monkeypatch.setattr(usage, "replace_file", refuse)
    source = Items({"1:c": "x"}, name="d")
    assert embstore.embed(source, encoder(), cache).encoded == 1
    assert embstore.embed(source, encoder(), cache).hits == 1
    assert counted(cache) == (0, 0, 0, 0, 0)
    assert not list(cache.path.glob(".usage/*.json"))


# -- when a store was last used ---------------------------------------------------------------


OPENINGS = {
    "open": lambda cache, source: cache.open({"encoder": "length", "dataset": "d"}).close(),
    "open for writing": lambda cache, source: cache.open({"encoder": "length", "dataset": "d"}, "r+").close(),
    "find_one": lambda cache, source: cache.find_one(dataset="d").close(),
    "embed": lambda cache, source: embstore.embed(source, encoder(), cache),
}


@pytest.mark.parametrize("way", OPENINGS)
def test_a_store_that_is_opened_daily_is_kept(cache, clock, way):
    source = Items({"1:c": "x", "2:c": "yy"}, name="d")
    used = embstore.embed(source, encoder(), cache).path
    unused = embstore.embed(Items({"1:c": "x"}, name="other"), encoder(), cache).path
    for day in range(1, 101):
        clock.now += DAY
        OPENINGS[way](cache, source)
        gone = [store.path for store in cache.prune(unused_for=timedelta(days=30))]
        assert gone == ([unused] if day == 31 else [])
    assert [entry.path for entry in cache.entries()] == [used]
    assert cache.prune(unused_for=timedelta(days=2)) == []


def test_a_store_without_usage_goes_by_its_record(cache, clock):
    path = fill(cache)
    assert not place_of(path).exists()
    clock.now += 31 * DAY
    assert [store.path for store in cache.prune(unused_for=timedelta(days=30), dry_run=True)] == [path]
    cache.open({"a": 1}).close()
    assert cache.prune(unused_for=timedelta(days=30)) == []


def test_opening_is_noted_once_an_hour(cache, clock):
    path = fill(cache)
    count(path, **RUN)
    first = clock.now

    def noted():
        cache.open({"a": 1}).close()
        return place_of(path).stat().st_ino, place_of(path).stat().st_mtime_ns, usage_of(path).last_used

    before = noted()
    assert before[-1] == pytest.approx(first, abs=0.001)
    for later in (60, 3599):
        clock.now = first + later
        assert noted() == before
    clock.now = first + 3601
    after = noted()
    assert after[-1] == pytest.approx(clock.now, abs=0.001)
    assert after != before
    assert counted(cache) == (1, 1, 2, 3, 4)


def test_a_clock_that_was_wrong(cache, clock):
    path = fill(cache)
    clock.now += 1000 * DAY
    cache.open({"a": 1}).close()
    clock.now -= 1000 * DAY
    assert usage_of(path).last_used > clock.now + DAY
    cache.open({"a": 1}).close()
    assert usage_of(path).last_used == pytest.approx(clock.now, abs=0.001)


def test_looking_is_no_use(cache):
    path = fill(cache)
    cache.lookup({"a": 1}, KEYS)
    embstore.why({"a": 1}, cache)
    cache.stats()
    cache.prune(max_nbytes=10**12)
    with pytest.raises(errors.CacheMissError):
        cache.open({"a": 2})
    assert usage_of(path) == Usage()
    assert not place_of(path).parent.exists()


def test_reading_counts_no_run(cache):
    path = fill(cache)
    with cache.open({"a": 1}) as store:
        store.select().to_numpy()
    assert counted(cache) == (0, 0, 0, 0, 0)
    assert usage_of(path) == Usage(last_used=usage_of(path).last_used)
    assert abs(usage_of(path).last_used - time.time()) < 60


def test_entries_say_when_they_were_used(cache):
    old, new = fill(cache, age=40 * DAY, i=0), fill(cache, age=40 * DAY, i=1)
    cache.open({"i": 1}).close()
    found = {entry.path: time.time() - entry.last_used for entry in cache.entries()}
    assert found[old] == pytest.approx(40 * DAY, abs=60)
    assert found[new] == pytest.approx(0, abs=60)
    assert {store.path: store.last_used for store in cache.stats()} == {
        entry.path: entry.last_used for entry in cache.entries()
    }
