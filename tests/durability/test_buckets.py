"""Stores in buckets: work that ends at any request, answers that are lost, and many writers at once."""

import os

import numpy as np
import pytest

import embstore
from tests._helpers.buckets import EndedError

pytest.importorskip("obstore")
CONFIG = {"encoder": "test"}


def opened(bucket, **options):
    return embstore.open(bucket.url, "a", config=CONFIG, **options)


def rows_of(numbers):
    return np.array([np.full(4, i, np.float32) for i in numbers]).reshape(-1, 4)


def key(i):
    return f"f{i}:c{i % 3}"


def put(store, numbers, add=0, **options):
    """Append a row for each number, which holds the number plus `add`."""
    held = [i + add for i in numbers]
    return store.append([key(i) for i in numbers], rows_of(held), columns={"n": held}, **options)


def content(bucket):
    """Return the number in the row of each key, after a check that its other values say the same."""
    store = embstore.open(bucket.url)
    view = store.select()
    rows, numbers = view.to_numpy(), view.column("n").tolist()
    assert len(view.keys) == len(set(view.keys)) == len(store)
    assert (rows == rows_of(numbers)).all()
    return dict(zip(view.keys, numbers, strict=True))


def append(store):
    put(store, range(20, 26))


def replace(store):
    put(store, [1, 15], add=100, if_exists="replace")


def delete(store):
    store.delete([key(2), key(12)])


def erase(store):
    store.erase([key(i) for i in (3, 13)])


def compact(store):
    store.compact()


CHANGES = [append, replace, delete, erase, compact]


@pytest.fixture(params=["zips", "folders"])
def parts(request, monkeypatch):
    if request.param == "folders":
        monkeypatch.setattr("embstore._engine.write.build_part.MOST_ZIPPED", 16)


@pytest.mark.parametrize("change", CHANGES)
def test_work_that_ends_at_any_request_leaves_the_commit_before_or_after(bucket, parts, change):
    """And the same change, repeated, ends right."""
    store = opened(bucket)
    for start in (0, 10, 15):
        put(store, range(start, start + 5))
    put(store, range(5, 10))
    store.delete([key(4)])
    before, objects = content(bucket), bucket.state()
    bucket.requests.reset()
    change(opened(bucket))
    count, after = bucket.requests.changes, content(bucket)
    assert count
    # The objects of one folder are alike. The last requests are the commit and what follows.
    every = 1 if os.environ.get("EMBSTORE_SLOW") else 1 + count // 8
    for number in {*range(0, count, every), count - 2, count - 1} - {-1}:
        for forwarded in (False, True):
            bucket.restore(objects)
            store = opened(bucket)
            bucket.requests.end_at(number, after=forwarded)
            with pytest.raises(EndedError):
                change(store)
            bucket.requests.reset()
            found = content(bucket)
            assert found in (before, after), (number, forwarded)
            if found != after or change is compact:
                change(opened(bucket))
            assert content(bucket) == after
            assert list(embstore.open(bucket.url)) == list(after)
