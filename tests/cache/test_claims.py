"""Claims: processes that fill one store at once share the work, to the sample, and outlive each other."""

import json
import os
import signal
import threading
import time

import numpy as np
import pytest

import embstore
from embstore import errors
from embstore.cache import claims as claiming
from embstore.cache.claims import Claims, hashes_of
from embstore.pipeline import embed as pipeline
from embstore.sources import Folder
from tests._helpers.crash import end, end_all, run_in_child, start, start_together, until
from tests.pipeline.test_embed import (
    OLD,
    SPECS,
    Numbers,
    Scanned,
    Source,
    check,
    counts,
    encoded,
    files,
    note,
    noted,
    numbers,
    touch,
    unlabelled,
)


def embedding(source, encoder, cache, results, **options):
    """Return a function that embeds, and notes the counts of its result."""

    def work():
        result = embstore.embed(source, encoder, cache, **options)
        note(results, json.dumps(counts(result)) + "\n")

    return work


def results_of(results):
    return [json.loads(line) for line in results.read_text().splitlines()]


def claimed(cache):
    """Return what lies in the folders of claims, apart from the lock that stays."""
    folder = cache.path / ".claims"
    return [file for file in folder.rglob("*") if file.is_file() and file.name != "choosing.lock"]


# -- each sample once --------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "interval"), [(2, 0.05), (4, 0.05), (8, 0.05), (4, 1000)])
def test_no_sample_is_encoded_twice(cache, log, tmp_path, count, interval):
    """Not even if nothing is committed before the end (the last case)."""
    source, results, began = Source(numbers(0, 400)), tmp_path / "results", tmp_path / "began"
    seen = set()

    def during(items):
        if not seen:  # the first batch waits until another process has one: else one might do all the work
            seen.update(items)
            note(began, ".")
            until(lambda: noted(began) > 1)
        time.sleep(0.002)

    encoder = Numbers(log, SPECS, during=during)
    works = [embedding(source, encoder, cache, results, batch_size=5, interval=interval)] * count
    assert end_all(start_together(works)) == [0] * count
    assert sorted(number for _, number in encoded(log)) == list(range(400))
    found = results_of(results)
    assert len(found) == count
    assert sum(made for _, _, made, *_ in found) == 400
    assert {(samples, failed) for samples, _, _, _, failed, _ in found} == {(400, 0)}
    assert all(hits + made <= 400 for _, hits, made, *_ in found)
    assert sum(made > 0 for _, _, made, *_ in found) > 1  # the work was shared
    (entry,) = cache.entries()
    check(entry.path, source.contents, SPECS)
    assert embstore.open(entry.path).snapshot.record.rows == 400
    assert claimed(cache) == []


def test_fewer_samples_than_processes(cache, log, tmp_path):
    source, results = Source(numbers(0, 3)), tmp_path / "results"
    encoder = Numbers(log, during=lambda items: time.sleep(0.05))
    assert end_all(start_together([embedding(source, encoder, cache, results, batch_size=1)] * 6)) == [0] * 6
    assert sorted(number for _, number in encoded(log)) == [0, 1, 2]
    check(cache.entries()[0].path, source.contents)
    assert claimed(cache) == []


@pytest.mark.parametrize("count", [2, 4])
def test_files_that_are_stale_or_missing(cache, log, tmp_path, root, count):
    results = tmp_path / "results"
    files(root, numbers(0, 120))
    embstore.embed(Folder(root, name="x"), Numbers(log, SPECS), cache)
    files(root, {f"f{i}": 1000 + i for i in range(0, 120, 2)}, OLD + 1)
    files(root, numbers(120, 180))
    contents = {f"f{i}": 1000 + i if i < 120 and i % 2 == 0 else i for i in range(180)}
    encoded(log)
    encoder = Numbers(log, SPECS, during=lambda items: time.sleep(0.004))
    works = [embedding(Folder(root, name="x"), encoder, cache, results, batch_size=5, interval=0.03)] * count
    assert end_all(start_together(works)) == [0] * count
    assert sorted(number for _, number in encoded(log)) == [*range(120, 180), *range(1000, 1120, 2)]
    (entry,) = cache.entries()
    check(entry.path, contents, SPECS)
    assert embstore.open(entry.path).snapshot.record.rows == 180 + 60
    assert claimed(cache) == []


def test_another_process_notes_stamps_meanwhile(cache, log, root, monkeypatch):
    files(root, numbers(0, 12))
    embstore.embed(Folder(root, name="x"), Numbers(log), cache)
    files(root, {"f3": 33}, OLD + 1)
    source = Scanned(Folder(root, name="x"))
    touch(root / "f5.txt", OLD + 1)
    touched = Scanned(Folder(root, name="x"))
    touched.samples = [sample for sample in touched if sample.path.stem == "f5"]
    writable = pipeline._writable

    def beaten(*args):
        store = writable(*args)
        monkeypatch.setattr(pipeline, "_writable", writable)
        embstore.embed(touched, Numbers(log), cache)
        return store

    monkeypatch.setattr(pipeline, "_writable", beaten)
    result = embstore.embed(source, Numbers(log), cache)
    check(result.path, unlabelled({**numbers(0, 12), "f3:c0": 33}))


def test_sources_that_overlap(cache, log, tmp_path):
    results = tmp_path / "results"
    encoder = Numbers(log, during=lambda items: time.sleep(0.002))
    works = [
        embedding(Source(numbers(lowest, lowest + 100)), encoder, cache, results, batch_size=4, interval=0.02)
        for lowest in (0, 50, 100)
    ]
    assert end_all(start_together(works)) == [0] * 3
    assert sorted(number for _, number in encoded(log)) == list(range(200))
    check(cache.entries()[0].path, numbers(0, 200))


def test_different_stores_of_one_cache(cache, log, tmp_path):
    results = tmp_path / "results"
    works = [
        embedding(Source(numbers(0, 50), name), Numbers(log, **config), cache, results, batch_size=4)
        for name, config in (("one", {}), ("two", {}), ("one", {"revision": 2}), ("one", {}))
    ]
    assert end_all(start_together(works)) == [0] * 4
    assert len(encoded(log)) == 150
    assert len(cache) == 3
    assert claimed(cache) == []


@pytest.mark.parametrize("count", [2, 4])
def test_threads_of_one_process(cache, log, count):
    source = Source(numbers(0, 200))
    encoder = Numbers(log, SPECS, during=lambda items: time.sleep(0.003))
    barrier, results = threading.Barrier(count), []

    def work():
        barrier.wait()
        results.append(embstore.embed(source, encoder, cache, batch_size=4, interval=0.05, workers=2))

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == count
    assert sorted(number for _, number in encoded(log)) == list(range(200))
    assert sum(result.encoded for result in results) == 200
    check(results[0].path, source.contents, SPECS)
    assert claimed(cache) == []


@pytest.mark.parametrize("count", [2, 4])
def test_a_new_field(cache, log, tmp_path, count):
    source, results = Source(numbers(0, 120)), tmp_path / "results"
    path = embstore.embed(source, Numbers(log), cache).path
    encoded(log)
    encoder = Numbers(log, ["mean", "half"], during=lambda items: time.sleep(0.004))
    works = [embedding(source, encoder, cache, results, batch_size=4, interval=0.05)] * count
    codes = end_all(start_together(works))
    assert sorted(encoded(log)) == [("half", number) for number in range(120)]
    check(path, source.contents, ["mean", "half"])
    assert codes == [0] * count
    assert claimed(cache) == []


# -- processes that end early ------------------------------------------------------------------


def test_the_samples_of_a_killed_process_are_done_by_the_others(cache, log, tmp_path):
    source, results, pace, batch, interval = Source(numbers(0, 400)), tmp_path / "results", 0.01, 4, 0.1
    own = tmp_path / "of the killed one"

    def during(items):
        time.sleep(pace)

    works = [
        embedding(source, Numbers(place, SPECS, during=during), cache, results, batch_size=batch, interval=interval)
        for place in (own, log, log)
    ]
    killed, *others = start_together(works)
    until(lambda: noted(own) > 500)
    os.kill(killed, signal.SIGKILL)
    assert end(killed) == -signal.SIGKILL
    assert end_all(others) == [0, 0]
    (entry,) = cache.entries()
    check(entry.path, source.contents, SPECS)
    made = [number for place in (own, log) for _, number in encoded(place)]
    assert set(made) == set(range(400))
    assert len(made) - 400 <= batch * (int(interval / pace) + 2)
    assert embstore.open(entry.path).snapshot.record.rows == 400
    assert claimed(cache) == []


def test_the_samples_of_a_process_that_is_at_work_are_waited_for(cache, log, tmp_path):
    """And taken over as soon as it is gone."""
    source, results = Source(numbers(0, 40)), tmp_path / "results"

    def stuck(items):
        note(tmp_path / "stuck", "at work\n")
        time.sleep(60)

    first = start(embedding(source, Numbers(log, during=stuck), cache, results, batch_size=2))
    until(lambda: noted(tmp_path / "stuck"))
    second = start(embedding(source, Numbers(log), cache, results, batch_size=2))
    until(lambda: noted(log))
    time.sleep(0.5)
    assert os.waitid(os.P_PID, second, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    assert [number for _, number in encoded(log)] == list(range(8, 40))  # four batches are claimed at a time
    os.kill(first, signal.SIGKILL)
    assert end(first) == -signal.SIGKILL
    assert end(second) == 0
    assert [number for _, number in encoded(log)] == list(range(8))
    check(cache.entries()[0].path, source.contents)
    assert claimed(cache) == []


def test_a_process_that_ends_by_an_error_gives_its_claims_up(cache, log):
    def fail(items):
        raise ValueError("here")

    with pytest.raises(ValueError, match="here"):
        embstore.embed(Source(numbers(0, 40)), Numbers(log, during=fail), cache, batch_size=4)
    assert claimed(cache) == []
    assert run_in_child(lambda: embstore.embed(Source(numbers(0, 40)), Numbers(log), cache, batch_size=4)) == 0
    check(cache.entries()[0].path, numbers(0, 40))


def test_claims_of_the_dead_are_cleaned_up_by_the_next_that_claims(cache, log):
    def die(items):
        os.kill(os.getpid(), signal.SIGKILL)

    for _ in range(3):
        work = start(lambda: embstore.embed(Source(numbers(0, 40)), Numbers(log, during=die), cache, batch_size=4))
        assert end(work) == -signal.SIGKILL
        assert len(claimed(cache)) == 2  # the claim and its lock: those before it are gone
    result = embstore.embed(Source(numbers(0, 40)), Numbers(log), cache)
    check(result.path, numbers(0, 40))
    assert claimed(cache) == []


def test_the_lock_of_a_process_that_was_killed_before_it_claimed_is_cleaned_up(cache, log):
    def work():
        Claims.announce = lambda claims, keys: os.kill(os.getpid(), signal.SIGKILL)
        embstore.embed(Source(numbers(0, 40)), Numbers(log), cache)

    assert run_in_child(work) == -signal.SIGKILL
    embstore.embed(Source(numbers(0, 40)), Numbers(log), cache)
    assert claimed(cache) == []


def test_a_child_of_a_killed_process_holds_no_claims(cache, log, tmp_path):
    """An encoder may have workers of its own, which outlive it for a while."""
    child = tmp_path / "child"

    def leave_a_child(items):
        note(child, str(start(lambda: time.sleep(600))))
        os.kill(os.getpid(), signal.SIGKILL)

    source = Source(numbers(0, 40))
    assert run_in_child(lambda: embstore.embed(source, Numbers(log, during=leave_a_child), cache)) == -signal.SIGKILL
    try:
        assert end(start(lambda: embstore.embed(source, Numbers(log), cache))) == 0
    finally:
        os.kill(int(child.read_text()), signal.SIGKILL)
    check(cache.entries()[0].path, source.contents)


# -- samples that fail -------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 5])
def test_nobody_waits_for_samples_that_fail(cache, log, tmp_path, count):
    """Each process tries them itself, and says so in its result."""
    results = tmp_path / "results"

    class Fails(Numbers):
        def _rows(self, name, items):
            rows = super()._rows(name, items)
            rows[[item % 50 == 7 for item in items]] = np.nan
            return rows

    contents = {key: "bad" if n % 20 == 3 else n for key, n in numbers(0, 200).items()}
    good = {key: n for key, n in contents.items() if n != "bad" and n % 50 != 7}
    encoder = Fails(log, during=lambda items: time.sleep(0.002))
    works = [embedding(Source(contents), encoder, cache, results, batch_size=4, interval=0.02)] * count
    assert end_all(start_together(works)) == [0] * count
    found = results_of(results)
    assert {failed for *_, failed, _ in found} == {10 + 4}
    assert sum(made for _, _, made, *_ in found) == len(good) == 186
    assert sorted(n for _, n in encoded(log) if n % 50 != 7) == sorted(good.values())
    check(cache.entries()[0].path, good)
    assert claimed(cache) == []


def test_nobody_waits_for_samples_that_all_fail(cache, log, tmp_path):
    results = tmp_path / "results"
    contents = dict.fromkeys(numbers(0, 60), "bad")
    works = [embedding(Source(contents), Numbers(log), cache, results, batch_size=4)] * 4
    assert end_all(start_together(works)) == [0] * 4
    assert results_of(results) == [[60, 0, 0, 0, 60, 0]] * 4
    assert claimed(cache) == []


def test_an_error_in_one_process_ends_no_other(cache, log, tmp_path):
    source, results, failed = Source(numbers(0, 120)), tmp_path / "results", tmp_path / "failed"
    seen = []

    def fail(items):
        seen.extend(items)
        if len(seen) > 20:
            note(failed, ".")
            raise ValueError("here")

    others = Numbers(log, during=lambda items: until(lambda: noted(failed)))  # else they might leave it nothing to do
    works = [
        embedding(source, Numbers(log, during=fail), cache, results, batch_size=4),
        *[embedding(source, others, cache, results, batch_size=4)] * 2,
    ]
    assert sorted(end_all(start_together(works))) == [0, 0, 1]
    assert sorted(number for _, number in encoded(log)) == list(range(120))
    check(cache.entries()[0].path, source.contents)
    assert claimed(cache) == []


# -- hits --------------------------------------------------------------------------------------


def test_a_hit_leaves_no_claims(cache, log, root):
    files(root, numbers(0, 12))
    for source in (Folder(root, name="x"), Source(numbers(0, 12))):
        path = embstore.embed(source, Numbers(log), cache).path
        folder = cache.path / ".claims" / path.name
        assert [file.name for file in folder.iterdir()] == ["choosing.lock"]
        (folder / "choosing.lock").unlink()
        folder.rmdir()
        assert embstore.embed(source, Numbers(log), cache).hits == 12
        assert not folder.exists()
    check(cache.path_of({"encoder": "numbers", "dataset": "x"}), unlabelled(numbers(0, 12)))


def test_a_cache_takes_the_claims_for_no_store(cache, log):
    embstore.embed(Source(numbers(0, 12)), Numbers(log), cache)
    assert (cache.path / ".claims").is_dir()
    assert len(cache) == 1


# -- the claims themselves ---------------------------------------------------------------------


def test_claims_are_seen_by_others_alone_and_only_while_they_are_held(tmp_path):
    path, keys = tmp_path / "a.zarr", list(numbers(0, 5))
    with Claims(path) as one, Claims(path) as two:
        with one.choosing() as others:
            assert others == set()
            one.announce(keys)
        with one.choosing() as others:
            assert others == set()
        with two.choosing() as others:
            assert others == set(hashes_of(keys))
            two.announce(["other:c"])
        with one.choosing() as others:
            assert others == set(hashes_of(["other:c"]))
            one.announce(keys[:2])
        with two.choosing() as others:
            assert others == set(hashes_of(keys[:2]))
        one.release()
        with two.choosing() as others:
            assert others == set()
    assert [file.name for file in (tmp_path / ".claims" / path.name).iterdir()] == ["choosing.lock"]


def test_claims_on_different_stores_are_apart(tmp_path):
    with Claims(tmp_path / "a.zarr") as one, Claims(tmp_path / "b.zarr") as two:
        with one.choosing():
            one.announce(["a:c"])
        with two.choosing() as others:
            assert others == set()


def test_one_chooses_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(claiming, "_WAIT", 0.05)
    with Claims(tmp_path / "a.zarr") as one, Claims(tmp_path / "a.zarr") as two, one.choosing():
        with pytest.raises(errors.StoreLockedError), two.choosing():
            pass


def test_a_claim_that_was_cut_short_by_a_kill_is_of_the_dead(tmp_path):
    path = tmp_path / "a.zarr"

    def die():
        claims = Claims(path)
        with claims.choosing():
            claims.announce(["a:c", "b:c"])
            with claims._own.open("r+b") as file:
                file.truncate(20)
            os.kill(os.getpid(), signal.SIGKILL)

    assert run_in_child(die) == -signal.SIGKILL
    with Claims(path) as claims, claims.choosing() as others:
        assert others == set()
