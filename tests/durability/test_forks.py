"""A process that is forked while another thread holds a lock goes on: each lock is free there."""

import os
import re
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

import embstore
from embstore._engine.io import mapping, steps
from embstore._engine.io.folder import Folder
from embstore._engine.lazy import cached_property
from tests._helpers.crash import end_of, start
from tests._helpers.kinds import base, key, put


class Blocked:
    """Stops the thread that calls it, once, until `go` is set."""

    def __init__(self):
        self.here, self.go = threading.Event(), threading.Event()

    def __call__(self, *_):
        steps.step_hook = None
        self.here.set()
        assert self.go.wait(60)


def holding(lock):
    def work(store, blocked):
        with lock(store)():
            blocked()

    def use(store):
        with lock(store)():
            pass

    return work, use


def _loading(store):
    from embstore.encoders import loading

    return loading._LOADING


def _runner(name):
    def lock(store):
        from embstore.encoders.running import Runner

        store.__dict__.setdefault("runner", Runner(None))
        return getattr(store.__dict__["runner"], name)

    return lock


def _in_a_commit(store, blocked):
    steps.step_hook = blocked
    put(store, [500])


def _in_a_property(store, blocked):
    class Slow:
        @cached_property
        def value(self):
            blocked()
            return 3

    store.__dict__["slow"] = Slow
    assert Slow().value == 3


HELD = {
    "a commit, then refresh": (_in_a_commit, lambda store: store.refresh()),
    "a commit, then read": (_in_a_commit, lambda store: store.select().to_numpy("embedding")),
    "a commit, then open": (_in_a_commit, lambda store: embstore.open(store.path).fetch([key(1)])),
    "the session": holding(lambda store: store._session._mutex),
    "the maps": holding(lambda store: mapping.budget._lock),
    "the loading of a model": holding(_loading),
    "the processor of a model": holding(_runner("_processor_lock")),
    "the tokenizer of a model": holding(_runner("_tokenizer_lock")),
    "the weights of a model": holding(_runner("_model_lock")),
    "a property of another object": (_in_a_property, lambda store: type(store.__dict__["slow"]())),
}
"""For each lock: work that holds it while it is blocked, and its use in the forked process."""


@pytest.mark.parametrize("held", HELD)
def test_a_lock_that_is_held_during_a_fork(path, held):
    work, use = HELD[held]
    base(path, "raw")
    store, blocked = embstore.open(path, "r+"), Blocked()
    thread = threading.Thread(target=work, args=(store, blocked))
    thread.start()
    assert blocked.here.wait(60)

    def child():
        signal.alarm(20)  # by default it ends the process
        if held == "a property of another object":
            slow = store.__dict__["slow"]
            slow.value._compute = lambda self: 4
            assert slow().value == 4
        use(store)

    child = start(child)
    try:
        assert end_of(child) == 0
    finally:
        blocked.go.set()
        thread.join()


def test_the_forked_process_appends_after_the_commit_of_its_parent(path):
    base(path, "raw")
    store, blocked = embstore.open(path, "r+"), Blocked()
    thread = threading.Thread(target=_in_a_commit, args=(store, blocked))
    thread.start()
    assert blocked.here.wait(60)
    ready = os.pipe()

    def child():
        signal.alarm(60)
        store.refresh()
        os.write(ready[1], b"x")
        put(store, [501])
        assert {key(500), key(501)} <= set(store)

    child = start(child)
    os.read(ready[0], 1)
    blocked.go.set()
    thread.join()
    assert end_of(child) == 0
    put(store, [502])
    assert {key(500), key(501), key(502)} <= set(store)
    assert embstore.verify(path).ok


@pytest.mark.parametrize("adds", [False, True])
def test_gathered_rows_are_those_of_the_parent(path, adds):
    """A forked process that leaves the block of a writer commits its own rows alone."""
    base(path, "raw")
    row, columns = np.ones(8, np.float32), {"score": 7}
    with embstore.open(path, "r+") as store, store.writer(interval=1000) as writer:
        writer.add(key(500), row, columns=columns)

        def child():
            with writer:
                if adds:
                    writer.add(key(501), row, columns=columns)

        assert end_of(start(child)) == 0
        assert (key(501) in embstore.open(path)) == adds
        assert key(500) not in embstore.open(path)
        writer.add(key(502), row, columns=columns)
    assert {key(500), key(502)} <= set(embstore.open(path))


def test_no_lock_is_left_out_above():
    """Other kinds of lock, and `functools.cached_property`, stay locked after a fork."""
    package = Path(embstore.__file__).parent
    makes = re.compile(r"threading\.\w*(Lock|Condition|Semaphore|Event|Barrier)\(|functools import .*cached_property")
    found = {f.relative_to(package).as_posix() for f in package.rglob("*.py") if makes.search(f.read_text())}
    assert found == {"_engine/io/threads.py"}
    uses = {f.relative_to(package).as_posix(): f.read_text().count("ThreadLock()") for f in package.rglob("*.py")}
    assert {name: count for name, count in uses.items() if count} == {
        "_engine/write/session.py": 1,
        "_engine/write/row_writer.py": 1,
        "_engine/io/mapping.py": 1,
        "_engine/io/remote.py": 1,
        "_engine/io/zip_folder.py": 1,
        "encoders/loading.py": 1,
        "encoders/running.py": 1,
    }


def test_names_are_listed_whole_by_several_at_once(tmp_path):
    """Threads and forked processes have one descriptor, whose position in the list they would share."""
    names = {f"file {i}" for i in range(2000)}
    for name in names:
        (tmp_path / name).touch()
    folder = Folder.open(tmp_path)

    def work():
        for _ in range(30):
            assert set(folder.names()) == names

    children = [start(work) for _ in range(3)]
    assert [end_of(child) for child in children] == [0, 0, 0]


def test_a_descriptor_is_read_at_offsets(path):
    """Reads of a forked process don't move the position of its parent's files."""
    base(path, "raw")
    store = embstore.open(path, mapping="never")
    expected = store.select().to_numpy("embedding")

    def work():
        for _ in range(30):
            np.testing.assert_array_equal(store.select().to_numpy("embedding"), expected)

    children = [start(work) for _ in range(3)]
    work()
    assert [end_of(child) for child in children] == [0, 0, 0]
