"""Federated learning on stores and caches in a bucket."""

import numpy as np
import pytest

import embstore
from embstore.errors import ReadOnlyError
from embstore_fl import erase_client
from embstore_fl.datasets import VEGAS
from embstore_fl.partitions import load_partition, save_partition
from embstore_fl.stores import open_shared
from tests._helpers.buckets import buckets
from tests.fl.conftest import SHAPE, Counting

torch = pytest.importorskip("torch")

__all__ = ["buckets"]

CACHE = "s3://mem/VEGAS.cache"
URL = "s3://mem/pets.zarr"


@pytest.fixture
def store(buckets):
    store = embstore.open(URL, "a", config={"encoder": "demo"})
    store.append([f"{i}:dog" for i in range(6)], np.arange(12, dtype=np.float32).reshape(6, 2))
    return store


def test_a_cache_of_the_harness(buckets, vegas, log):
    from embstore_fl.a2v import VEGASDataset
    from tests.fl.test_a2v import THREE, check, rows_of

    dataset = VEGASDataset(root_dir=vegas, ast_cache_dir=CACHE)
    assert not dataset.load_ast_embeddings_from_cache(*THREE)
    assert dataset.save_ast_embeddings_to_cache(rows_of(dataset), *THREE, embedding_shape=SHAPE)
    other = VEGASDataset(root_dir=vegas, ast_cache_dir=CACHE)
    assert other.load_ast_embeddings_from_cache(*THREE)
    check(other)
    with pytest.raises(ReadOnlyError, match="not possible in a bucket"):
        other.clear_ast_cache()
    embstore.embed(VEGAS(vegas), Counting(log), CACHE)
    assert len(embstore.Cache(CACHE)) == 2


def test_a_process_has_one_reader_of_a_store(store):
    shared = open_shared(URL)
    assert open_shared(URL) is shared
    assert shared.rows("embedding", least=5)[5].tolist() == [10, 11]
    store.append(["6:dog"], np.ones((1, 2), np.float32))
    assert open_shared(URL).rows("embedding", least=6)[6].tolist() == [1, 1]


def test_a_client_is_erased(store):
    shared = open_shared(URL)
    receipt = erase_client(URL, ["1:dog", "2:dog"])
    assert len(receipt.rows) == 2
    assert sorted(shared.store) == ["0:dog", "3:dog", "4:dog", "5:dog"]
    assert embstore.verify(URL).ok


def test_a_partition_of_a_store(store, tmp_path):
    parts = {0: ["0:dog", "1:dog"], 1: ["2:dog"]}
    save_partition(parts, tmp_path / "manifest.json", scheme="by hand", config=store.config)
    again = load_partition(tmp_path / "manifest.json", embstore.open(URL))
    assert {client: view.keys for client, view in again.items()} == parts
    with pytest.raises(ReadOnlyError, match=r"s3://mem/manifest\.json"):
        save_partition(parts, "s3://mem/manifest.json", scheme="by hand", config=store.config)
    with pytest.raises(ReadOnlyError, match=r"s3://mem/manifest\.json"):
        load_partition("s3://mem/manifest.json", store)
