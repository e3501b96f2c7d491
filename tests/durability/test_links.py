"""A link at any path beside or inside a store leads no writer out of the store."""

import contextlib
import shutil

import numpy as np
import pytest

import embstore
from embstore.cache.claims import Claims, at_work
from embstore.cache.prune import remove_leftovers, remove_store
from embstore.cache.usage import count, forget, usage_of
from embstore.errors import EmbstoreError
from embstore.pipeline.add_fields import remove_backfill_leftovers
from tests._helpers.kinds import base, key, put

PLACES = {
    "the folder of a build": (".store.zarr.partial", ""),
    "a folder of gathered rows": (".store.zarr.1234abcd.backfill", ""),
    "the lock": ("store.zarr.lock", "zarr.json"),
    "the record": ("store.zarr/zarr.json", "zarr.json"),
    "a temporary record": ("store.zarr/.partial", "zarr.json"),
    "a second temporary file": ("store.zarr/.partial-1", "zarr.json"),
    "an array": ("store.zarr/embedding", "embedding"),
    "an array that is not in the record": ("store.zarr/score.v2", "embedding"),
    "the metadata of an array": ("store.zarr/embedding/zarr.json", "embedding/zarr.json"),
    "a chunk": ("store.zarr/embedding/c.0.0", "embedding/c.0.0"),
    "the last chunk": ("store.zarr/embedding/c.1.0", "embedding/c.1.0"),
    "a chunk past the last": ("store.zarr/embedding/c.2.0", "embedding/c.1.0"),
    "a temporary chunk": ("store.zarr/embedding/.partial", "embedding/c.1.0"),
    "the index": ("store.zarr/index", ""),
    "a run of the index": ("store.zarr/index/keys.0123456789abcdef.7", ""),
    "the keys of an erase": ("store.zarr/withdrawn", "zarr.json"),
    "the claims": (".claims", ""),
    "the claims of a store": (".claims/store.zarr", ""),
    "the usage": (".usage", ""),
    "the usage of a store": (".usage/store.zarr.json", "zarr.json"),
}
"""A path beside or inside a store, and the path in the other store that its link leads to."""


def _claim(path):
    with Claims(path) as claims, claims.choosing():
        claims.announce([key(1)])
    at_work(path)


def _use(path):
    count(path, hits=1, misses=1, served=1, encoded=1, seconds=1)
    usage_of(path)
    forget(path)


def _change(change):
    def work(path):
        with embstore.open(path, "r+") as store:
            change(store)

    return work


ACTIONS = {
    "append": _change(lambda store: put(store, [500])),
    "append with an index": _change(lambda store: put(store, range(500, 620))),
    "replace": _change(lambda store: put(store, [1, 128], if_exists="replace")),
    "delete": _change(lambda store: store.delete([key(1)])),
    "erase": _change(lambda store: store.erase([key(1), key(129)])),
    "compact": _change(lambda store: store.compact()),
    "set_column": _change(lambda store: store.set_column("score", list(store), np.arange(len(store)))),
    "add_field": _change(lambda store: store.add_field("more", list(store), np.ones((len(store), 2), np.float32))),
    "read": lambda path: embstore.open(path, check="touched").select().to_numpy("embedding"),
    "verify": embstore.verify,
    "make": lambda path: (shutil.rmtree(path), embstore.open(path, "a", config={"kind": "raw"}).close()),
    "remove": remove_store,
    "remove leftovers": lambda path: remove_leftovers(path.parent, ".zarr"),
    "remove gathered rows": lambda path: remove_backfill_leftovers(embstore.open(path)),
    "claim": _claim,
    "count": _use,
}


def content(path):
    return {file.relative_to(path): file.is_file() and file.read_bytes() for file in path.rglob("*")}


@pytest.fixture(scope="module")
def victim(tmp_path_factory):
    """Another store, with files whose names are like those of claims, index runs and usage."""
    path = tmp_path_factory.mktemp("other") / "victim.zarr"
    base(path, "raw", deleted=True)
    for name in ("README", "0" * 32, f"{'0' * 32}.held", "store.zarr.json", "keys.0123456789abcdef.7"):
        (path / name).write_text("kept")
    return path


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("place", PLACES)
def test_the_other_store_stays_as_it_is(tmp_path, monkeypatch, victim, place, action):
    monkeypatch.setattr("embstore._engine.write.index_file._LEAST_RUN", 100)
    path = tmp_path / "store.zarr"
    base(path, "raw")
    where, target = PLACES[place]
    link = tmp_path / where
    if link.is_dir():
        shutil.rmtree(link)
    link.unlink(missing_ok=True)
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(victim / target)
    before = content(victim)
    derived = place in ("the index", "a run of the index") and action in ("append with an index", "read")
    with contextlib.nullcontext() if derived else contextlib.suppress(EmbstoreError):
        ACTIONS[action](path)
    assert content(victim) == before
    # Temporary names are the writers' own: the link is removed, not only refused.
    if ".partial" in where and action in ("append", "erase", "compact"):
        assert not link.is_symlink()
        assert embstore.verify(path).ok
