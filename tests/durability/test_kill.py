"""A writer is killed at every step of its work in turn, and at random moments; nothing acknowledged is lost."""

import atexit
import functools
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

import embstore
from tests._helpers.crash import Journal, kill_at, leftovers, run_in_child

DIM = 8


def key(i):
    return f"f{i}:c{i % 3}"


def row(i):
    return np.full(DIM, i, np.float32)


def rows(numbers):
    return np.stack([row(i) for i in numbers])


def base(path, n=130):
    """A store whose last chunk is partly filled (128 rows a chunk)."""
    shutil.copytree(_made(n), path)


@functools.cache
def _made(n):
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder) / "store.zarr"
    with embstore.open(path, "w-", config={"n": n}, chunk_bytes=4096) as store:
        store.append([key(i) for i in range(n)], rows(range(n)), columns={"score": np.arange(n)})
    return path


def append(store):
    store.append([key(i) for i in range(200, 500)], rows(range(200, 500)), columns={"score": np.arange(300)})


def replace(store):
    store.append([key(1), key(129)], rows([1001, 1129]), columns={"score": [1, 2]}, if_exists="replace")


def delete(store):
    store.delete([key(2), key(128)])


def erase(store):
    store.erase([key(2), key(128), key(129)])


def compact(store):
    store.compact()


def set_column(store):
    store.set_column("score", list(store), np.arange(len(store)) + 0.5)


def add_field(store):
    store.add_field("other", list(store), np.ones((len(store), 3), np.float32))


def state(store):
    """All that a reader sees."""
    view = store.select()
    columns = {name: view.column(name).tolist() for name in store.columns}
    fields = {name: view.to_numpy(name).tolist() for name in store.fields}
    return {"keys": view.keys, "columns": columns, "fields": fields}


def check_after(path, *expected):
    """Check that the store opens to one of the expected states, for readers now and for the next writer."""
    reader = embstore.open(path, check="all")
    found = state(reader)
    assert found in expected
    report = embstore.verify(path)
    assert report.ok or not len(report.rows_affected), str(report)
    with embstore.open(path, "r+") as writer:
        columns = {name: 7 if kind != "string" else "x" for name, kind in writer.columns.items()}
        fields = {name: np.ones((1, *spec.shape), spec.dtype) for name, spec in writer.fields.items()}
        writer.append(["next:c"], fields, columns=columns)
        assert state(writer)["keys"] == [*found["keys"], "next:c"]
    assert leftovers(path) == []
    report = embstore.verify(path)
    assert report.ok, str(report)
    return found


@pytest.mark.parametrize("change", [append, replace, delete, erase, compact, set_column, add_field])
@pytest.mark.parametrize("deleted", [False, True], ids=["whole", "with deleted rows"])
def test_killed_at_every_step(tmp_path, change, deleted):
    """Each change is there whole or not at all, whichever step was the last."""

    def prepare(path):
        base(path)
        if deleted:
            with embstore.open(path, "r+") as store:
                store.delete([key(5), key(127)])

    prepare(tmp_path / "done")
    with embstore.open(tmp_path / "done", "r+") as store:
        before = state(store)
        change(store)
        after = state(store)

    step = 0
    while True:
        path = tmp_path / f"{step}.zarr"
        prepare(path)

        def work(path=path, step=step):
            store = embstore.open(path, "r+")
            kill_at(step)
            change(store)

        ended = run_in_child(work)
        assert ended in (0, -signal.SIGKILL)
        found = check_after(path, before, after)
        if ended == 0:
            assert found == after
            break
        step += 1
    assert step >= 8


def test_killed_at_every_step_of_an_erase_then_again(tmp_path):
    """The next writer, which finishes the erase, is killed as well."""
    for first in range(0, 60, 3):
        for second in range(0, 40, 7):
            path = tmp_path / f"{first}-{second}.zarr"
            base(path)
            gone = [key(2), key(128)]

            def work(step=first, path=path, gone=gone):
                store = embstore.open(path, "r+")
                kill_at(step)
                store.erase(gone)

            def again(step=second, path=path):
                store = embstore.open(path, "r+")
                kill_at(step)
                store.append(["late:c"], rows([1]), columns={"score": [1]}, if_exists="replace")

            run_in_child(work)
            run_in_child(again)
            with embstore.open(path, "r+") as store:
                store.append(["last:c"], rows([2]), columns={"score": [1]})
                left = set(store)
            assert not left & set(gone) or left >= set(gone)
            report = embstore.verify(path)
            assert report.ok, str(report)


def test_killed_at_every_step_of_its_making(tmp_path):
    step = 0
    while True:
        path = tmp_path / f"{step}.zarr"

        def work(step=step, path=path):
            kill_at(step)
            embstore.open(path, "w-", config={"n": 1})

        ended = run_in_child(work)
        with embstore.open(path, "a", config={"n": 1}) as store:
            store.append([key(1)], rows([1]))
        assert embstore.verify(path).ok
        assert leftovers(path) == []
        if ended == 0:
            break
        step += 1
    assert step >= 10


@pytest.mark.parametrize("kills", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_killed_at_random_moments(tmp_path, kills):
    """Appends and compactions, killed by another process's clock; what was acknowledged is there."""
    rng = np.random.default_rng(7)
    path = tmp_path / "store.zarr"
    base(path)
    acknowledged = 0
    start = 1000
    for _ in range(kills):
        journal = Journal()

        def work(journal=journal, start=start):
            store = embstore.open(path, "r+")
            for i in range(start, start + 10_000):
                store.append([key(i)], rows([i]), columns={"score": [i]}, if_exists="skip")
                journal.acknowledge(i)
                if i % 7 == 0:
                    store.compact()

        child = os.fork()
        if child == 0:
            work()
            os._exit(0)
        time.sleep(rng.uniform(0.01, 0.15))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        done = [int(line) for line in journal.lines()]
        acknowledged += len(done)
        reader = embstore.open(path)
        keys = [key(i) for i in [*range(130), *done]]
        np.testing.assert_array_equal(reader[keys], rows([*range(130), *done]))
        extra = len(reader) - 130 - sum(1 for k in reader if int(k[1 : k.index(":")]) >= 1000)
        assert extra == 0
        start = max([start, *(i + 2 for i in done)])  # the one after the last may be committed too
    with embstore.open(path, "r+") as store:
        store.append(["end:c"], rows([1]), columns={"score": [1]})
    assert leftovers(path) == []
    assert embstore.verify(path).ok
    assert acknowledged > kills
