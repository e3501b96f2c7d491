"""A writer is killed at every step of its work in turn, and at random moments; nothing acknowledged is lost."""

import itertools
import os
import shutil
import signal
import time

import numpy as np
import pytest

import embstore
from tests._helpers import kinds
from tests._helpers.crash import Journal, end_of, kill_at, killed_at, leftovers, run_in_child, start
from tests._helpers.kinds import CHANGES, KINDS, base, every_kind, key, put, rows_of, state

RAW = KINDS["raw"]["fields"]["embedding"]


def check_after(path, *expected):
    """Check that the store opens to one of the expected states, for readers now and for the next writer."""
    found = state(embstore.open(path, check="all"))
    assert found in expected
    assert state(embstore.open(path, mapping="never")) == found
    report = embstore.verify(path)
    assert report.ok or not len(report.rows_affected), str(report)
    with embstore.open(path, "r+") as writer:
        put(writer, [1001], ["next:c"])
        now = state(writer)
        for name, spec in writer.fields.items():
            kinds.assert_rows(writer.fetch(["next:c"], name), rows_of(spec, [1001]))
    assert now["keys"] == [*found["keys"], "next:c"]
    for what in ("columns", "fields"):
        assert {name: values[:-1] for name, values in now[what].items()} == found[what]
    assert leftovers(path) == []
    report = embstore.verify(path)
    assert report.ok, str(report)
    return found


# Raw and ragged stores are killed at each step, the others at each fifth, each kind from another one on.
STEPS = {"raw": (0, 1), "ragged": (0, 1), "zstd": (0, 5), "blosc": (2, 5), "bfloat16": (3, 5)}
CASES = [("raw", False), *((kind, True) for kind in KINDS)]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize(
    ("kind", "deleted"), CASES, ids=lambda value: {True: "deleted", False: "whole"}.get(value, value)
)
def test_killed_at_every_step(tmp_path, kind, deleted, change):
    """Each change is there whole or not at all, whichever step was the last."""
    base(tmp_path / "done", kind, deleted=deleted)
    with embstore.open(tmp_path / "done", "r+") as store:
        before = state(store)
        change(store)
        after = state(store)
    for step in itertools.count(*STEPS[kind]):
        path = tmp_path / f"{step}.zarr"
        base(path, kind, deleted=deleted)
        killed = killed_at(step, path, change)
        found = check_after(path, before, after)
        if change is kinds.erase and found == after:  # the next writer has finished it, if need be
            spec = embstore.open(path).fields["embedding"]
            assert not any(kinds.files_with(path, spec, i) for i in kinds.ERASED)
        shutil.rmtree(path)
        if not killed:
            assert found == after
            break
    assert step >= 8


@pytest.mark.parametrize(
    ("kind", "firsts", "seconds"),
    [("raw", range(0, 60, 3), range(0, 40, 7)), ("ragged", range(4, 60, 7), range(0, 40, 9))],
    ids=["raw", "ragged"],
)
def test_killed_at_every_step_of_an_erase_then_again(tmp_path, kind, firsts, seconds):
    """The next writer, which finishes the erase, is killed as well."""
    gone = {key(i) for i in kinds.ERASED}
    for first, second in itertools.product(firsts, seconds):
        path = tmp_path / f"{first}-{second}.zarr"
        base(path, kind)
        killed_at(first, path, kinds.erase)
        killed_at(second, path, lambda store: put(store, [300], if_exists="replace"))
        with embstore.open(path, "r+") as store:
            put(store, [301])
            left = set(store)
            for name, spec in store.fields.items():
                keys = sorted(left)
                kinds.assert_rows(store.fetch(keys, name), rows_of(spec, map(kinds.number_of, keys)))
            assert not left & gone or left >= gone
            if not left & gone:
                assert not any(kinds.files_with(path, store.fields["embedding"], i) for i in kinds.ERASED)
        report = embstore.verify(path)
        assert report.ok, str(report)
        shutil.rmtree(path)


@every_kind
def test_killed_at_every_step_of_its_making(tmp_path, kind):
    first, stride = STEPS[kind]
    for step in itertools.count(first, stride):
        path = tmp_path / f"{step}.zarr"

        def work(step=step, path=path):
            kill_at(step)
            kinds.new(path, kind)

        ended = run_in_child(work)
        with embstore.open(path, "a", config={"kind": kind}, **KINDS[kind]) as store:
            put(store, [1, 2])
            for name, spec in store.fields.items():
                kinds.assert_rows(store.fetch([key(1), key(2)], name), rows_of(spec, [1, 2]))
        assert embstore.verify(path).ok
        assert leftovers(path) == []
        if ended == 0:
            break
    assert step >= 10


@pytest.mark.parametrize("kills", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_killed_at_random_moments(tmp_path, kills):
    """Appends and compactions, killed by another process after some of them; what was acknowledged is there."""
    rng = np.random.default_rng(7)
    path = tmp_path / "store.zarr"
    base(path, "raw")
    acknowledged, begin = 0, 1000
    for _ in range(kills):
        journal = Journal()

        def work(journal=journal, begin=begin):
            store = embstore.open(path, "r+")
            for i in range(begin, begin + 10_000):
                put(store, [i], if_exists="skip")
                journal.acknowledge(i)
                if i % 7 == 0:
                    store.compact()

        child = start(work)
        with journal.reader() as pipe:
            done = [pipe.readline() for _ in range(rng.integers(0, 6))]
            time.sleep(rng.uniform(0, 0.03))  # into the next change
            os.kill(child, signal.SIGKILL)
            assert end_of(child) == -signal.SIGKILL
            done = list(map(int, [*done, *pipe]))
        acknowledged += len(done)
        reader = embstore.open(path)
        numbers = [*range(130), *done]
        np.testing.assert_array_equal(reader[[key(i) for i in numbers]], rows_of(RAW, numbers))
        assert len(reader) == 130 + sum(kinds.number_of(k) >= 1000 for k in reader)
        begin = max([begin, *(i + 2 for i in done)])  # the one after the last may be committed too
    with embstore.open(path, "r+") as store:
        put(store, [999])
    assert leftovers(path) == []
    assert embstore.verify(path).ok
    assert acknowledged > kills
