"""Stores in buckets for tests: a bucket in memory whose requests can fail, and a server for several processes."""

import contextlib
import random
import threading
from collections import Counter

import pytest

from embstore._engine.io import object_store
from embstore._engine.io.object_store import ObjectStore
from embstore._engine.io.urls import ConditionError, RefusedError

SECRETS = {"access_key_id": "some-key-id", "secret_access_key": "hidden-secret"}
LOST, DROPPED, CONFLICT, REFUSED, LATE = "lost", "dropped", "conflict", "refused", "late"
"""Faults of a request: done but the answer is lost; not done; not done because of a condition (409 or 412); refused
(403); and done only before the request after the next one, when the client has long given up."""


class EndedError(BaseException):
    """Ends the work in the middle, as a kill does: no `except Exception` stops it."""


class Requests:
    """The requests that change or read a bucket, and the faults that they meet.

    Attributes
    ----------
    log : list of (kind, name)
        Kind is "put", "delete", "read", "get" or "list".
    fault : callable, optional
        Takes the kind, the name and the number of the request among those that change something (from 0), and returns
        one of the faults above, or None. It may also raise, wait, or change the bucket.
    """

    def __init__(self):
        self.log = []
        self.fault = None
        self.changes = 0
        self._late = []
        self._lock = threading.Lock()

    def reset(self, fault=None):
        self.log.clear()
        self.changes = 0
        self.fault = fault

    def names(self, kind):
        return [name for done, name in self.log if done == kind]

    def end_at(self, number, *, after):
        """End the work before or after the change with this number, and at every request that follows."""

        def fault(kind, name, change):
            if change > number or (change == number and not after):
                raise EndedError
            return EndedError if change == number and kind in ("put", "delete") else None

        self.reset(fault)

    def lose(self, share, seed=0, kinds=("put", "delete", "read", "get", "list")):
        """Lose a share of the requests: half of them before they reach the server.

        An object is not hit more than twice in a row. After four failures of one request the client gives up, which
        is not what is tested.
        """
        chance, in_a_row = random.Random(seed), Counter()

        def fault(kind, name, change):
            if kind not in kinds or chance.random() >= share or in_a_row[kind, name] == 2:
                in_a_row[kind, name] = 0
                return None
            in_a_row[kind, name] += 1
            return chance.choice([LOST, DROPPED])

        self.reset(fault)

    def run(self, kind, name, call):
        with self._lock:
            number = self.changes
            self.changes += kind in ("put", "delete")
            self.log.append((kind, name))
            due = [again for when, again in self._late if when <= number]
            self._late = [(when, again) for when, again in self._late if when > number]
        for again in due:
            with contextlib.suppress(ConditionError, OSError):
                again()
        fault = self.fault and self.fault(kind, name, number)
        if fault == DROPPED:
            raise OSError("the connection was reset")
        if fault == LATE:
            self._late.append((number + 1, call))
            raise OSError("the request timed out")
        if fault == CONFLICT:
            raise ConditionError(name)
        if fault == REFUSED:
            raise RefusedError("the server answered 403 Forbidden")
        done = call()
        if fault is EndedError:
            raise EndedError
        if fault == LOST:
            raise OSError("the answer was lost")
        return done


class MemoryBucket:
    """A bucket in the memory of this process.

    Attributes
    ----------
    url : str
        Of a store in it.
    store : obstore.store.MemoryStore
    requests : Requests
    """

    def __init__(self, store, requests):
        self.url = "s3://bucket/deep/some.zarr"
        self.store = store
        self.requests = requests

    def names(self):
        """Return the names of all objects of the store, sorted."""
        return sorted(name.removeprefix("deep/some.zarr/") for name in objects(self.store))

    def read(self, name):
        import obstore

        return bytes(obstore.get(self.store, f"deep/some.zarr/{name}").bytes())

    def write(self, name, data):
        import obstore

        obstore.put(self.store, f"deep/some.zarr/{name}", data)

    def remove(self, name):
        import obstore

        obstore.delete(self.store, f"deep/some.zarr/{name}")

    def state(self):
        """Return all objects of the store by name."""
        return {name: self.read(name) for name in self.names()}

    def restore(self, objects):
        """Make the store consist of these objects."""
        for name in self.names():
            self.remove(name)
        for name, data in objects.items():
            self.write(name, data)


@pytest.fixture
def buckets(monkeypatch):
    """Make every ``s3://`` URL lead to a bucket in memory. Return the buckets by name."""
    pytest.importorskip("obstore")
    from obstore.store import MemoryStore

    made = {}

    def found(kind, url, options):
        name, _, prefix = url.partition("://")[2].partition("/")
        prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        return made.setdefault(name, MemoryStore()), prefix

    monkeypatch.setattr(object_store, "_made", found)
    return made


def objects(store):
    """Return the names of the objects of a bucket."""
    import obstore

    return [one["path"] for page in obstore.list(store) for one in page]


@pytest.fixture
def bucket(buckets, monkeypatch):
    """A bucket in memory, whose requests are counted and can fail. Pauses between attempts are short."""
    from obstore.store import MemoryStore

    requests = Requests()
    for kind in ("put", "delete", "read", "get"):
        monkeypatch.setattr(ObjectStore, kind, _counted(kind, getattr(ObjectStore, kind), requests))
    monkeypatch.setattr(ObjectStore, "listed", _counted_list(ObjectStore.listed, requests))
    for module in ("bucket", "remote"):
        monkeypatch.setattr(f"embstore._engine.io.{module}._FIRST_PAUSE", 0.0005)
    monkeypatch.setattr("embstore._engine.write.parts_session._LONGEST_PAUSE", 0.01)
    return MemoryBucket(buckets.setdefault("bucket", MemoryStore()), requests)


def _counted(kind, method, requests):
    def call(self, name, *arguments, **options):
        shown = name[0] if kind == "delete" else name
        return requests.run(kind, shown, lambda: method(self, name, *arguments, **options))

    return call


def _counted_list(method, requests):
    return lambda self, prefix="": iter(requests.run("list", prefix, lambda: list(method(self, prefix))))
