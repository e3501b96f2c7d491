"""A cache in a bucket: the same methods, those that remove stores are refused, and no secret is pickled."""

import pickle

import pytest

import embstore
from embstore import errors
from tests._helpers.buckets import buckets
from tests._helpers.caches import KEYS, fill
from tests.cache.conftest import cache as local

__all__ = ["buckets", "local"]

SECRET = {"key": "AKIA", "secret": "sesame", "endpoint_url": "http://127.0.0.1:1"}


@pytest.fixture
def cache(buckets):
    return embstore.Cache("s3://mem/V.cache", storage_options=SECRET)


def test_it_answers_as_a_local_cache(cache, local):
    for one in (cache, local):
        assert (len(one), one.stats(), one.nearest({"a": 1})) == (0, [], (None, ()))
        fill(one, a=1)
        fill(one, a=2, rows=3)
        with one.open({"a": 2}, "r+") as store:
            store.delete(KEYS[:1])

    def answers(one):
        lookup, miss = one.lookup({"a": 2}, KEYS[:4]), one.lookup({"a": 2, "b": 3}, KEYS[:1])
        entries = [(entry.path.name, entry.config, entry.rows, entry.pinned, entry.differs) for entry in one]
        with one.find_one(a=1) as store, one.open({"a": 2}) as other:
            keys = list(store), list(other)
        found = keys, entries, repr(one), str(embstore.why({"a": 3}, one)), str(embstore.why({"a": 1}, one))
        texts = [(text.hit, text.reason, text.stored, text.missing, text.nearest.rows) for text in (miss,)]
        return str((found, texts, lookup.stored, lookup.missing, lookup.reason)).replace(str(one.path), "CACHE")

    assert answers(cache) == answers(local)
    assert [use.usage.runs for use in cache.stats()] == [0, 0]
    assert [use.nbytes for use in cache.stats()] > [40 * 1024, 3 * 1024]
    assert cache.entries()[0].last_used > 1e9


def test_a_miss_and_a_store_that_can_t_be_read(cache, buckets, caplog):
    fill(cache)
    with pytest.raises(errors.CacheMissError, match=r"the nearest differs in a: expected 2, found 1"):
        cache.open({"a": 2})
    buckets["mem"].put("V.cache/x-1.zarr/zarr.json", b"{}")
    buckets["mem"].put("V.cache/y-1.zarr/other", b"{}")
    assert len(cache) == 1
    assert caplog.text.count("left out of the cache") == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda cache: cache.prune(max_nbytes=1),
        lambda cache: cache.clear(),
        lambda cache: cache.remove(cache.stats()),
        lambda cache: cache.pin(a=1),
        lambda cache: cache.unpin(a=1),
        lambda cache: embstore.Cache(str(cache.path), max_nbytes=1),
        lambda cache: embstore.Cache(str(cache.path), unused_for=1),
    ],
)
def test_nothing_is_removed_from_a_bucket(cache, change):
    fill(cache)
    with pytest.raises(errors.ReadOnlyError, match=r"not possible in a bucket.*delete all objects below its URL"):
        change(cache)
    assert len(cache) == 1


@pytest.mark.parametrize("url", ["https://h/V.cache", "hf://datasets/a/b", "zip://x::s3://b/c"])
def test_other_urls_are_refused(url):
    with pytest.raises(errors.ReadOnlyError, match=r"at s3://, gs:// or az://"):
        embstore.Cache(url)


def test_a_pickle_holds_no_secret(cache):
    fill(cache)
    data = pickle.dumps(cache)
    assert b"sesame" not in data
    assert pickle.loads(data).entries() == cache.entries()
    assert cache.storage_options == SECRET
