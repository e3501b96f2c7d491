"""Commands on a store and a cache in a bucket."""

import numpy as np
import pytest

import embstore
from embstore.cli.exits import AGAIN
from tests._helpers.buckets import buckets
from tests._helpers.caches import fill

__all__ = ["buckets"]


@pytest.fixture
def store(buckets):
    with embstore.open("s3://mem/pets.zarr", "a", config={"encoder": "demo"}) as store:
        store.append(["a:dog", "b:cat"], np.ones((2, 3), np.float32))
    return "s3://mem/pets.zarr"


def test_a_store(store, said, tmp_path):
    assert said("ls", store) == ["a:dog", "b:cat"]
    assert said("info", store)[0].split() == ["store", store]
    sound = [f"{store}: 2 rows, all as they were committed"]
    assert said("verify", store, "--storage", "endpoint_url=http://h") == sound
    assert said("compact", store)[0].startswith(f"{store}: 0 deleted rows gone")
    assert said("merge", "s3://mem/other.zarr", store) == ["s3://mem/other.zarr: 2 rows added, 0 skipped"]
    assert said("salvage", store, tmp_path / "saved") == [f"{tmp_path / 'saved'}: 2 rows kept, 0 lost"]
    assert said("export", store, tmp_path / "pets.npz") != []


def test_a_cache(buckets, said, refused):
    cache = embstore.Cache("s3://mem/V.cache")
    name = fill(cache).name
    for words in (["ls"], ["info"], ["cache", "ls"], ["cache", "stats"]):
        assert any(name in line for line in said(*words, str(cache.path))), words
    assert "not possible in a bucket" in refused(AGAIN, "cache", "clear", str(cache.path), "--yes")
