"""VectorCache in the cache seams of LangChain, LlamaIndex and MTEB, with their own code around it."""

import asyncio
import gc

import numpy as np
import pytest

import embstore
from tests._helpers.crash import python

CONFIG = {"model": "letters", "version": 1}
TEXTS = ["a cat", "a dog", "a cat", ""]
ENCODED = []


def letters(texts):
    ENCODED.extend(texts)
    return [[float(text.count(letter)) / 3 for letter in "acdot"] for text in texts]


def float32(rows):
    return np.asarray(rows, np.float32).tolist()


@pytest.fixture(autouse=True)
def nothing_encoded():
    ENCODED.clear()


@pytest.fixture
def langchain(tmp_path):
    pytest.importorskip("langchain_classic")
    from langchain_classic.embeddings import CacheBackedEmbeddings
    from langchain_core.embeddings import Embeddings

    from embstore_tools.langchain import VectorCache

    class Letters(Embeddings):
        def embed_documents(self, texts):
            return letters(texts)

        def embed_query(self, text):
            return letters([f"to {text}"])[0]

    def make(**options):
        documents = VectorCache(tmp_path, CONFIG, **options)
        queries = VectorCache(tmp_path, {**CONFIG, "prompt": "query"}, **options)
        return CacheBackedEmbeddings(Letters(), documents, query_embedding_store=queries)

    return make


def test_langchain_encodes_each_text_once(langchain):
    assert float32(langchain().embed_documents(TEXTS)) == float32(letters(TEXTS))
    ENCODED.clear()
    again = langchain()
    assert again.embed_documents(TEXTS[::-1]) == float32(letters(TEXTS[::-1]))
    ENCODED.clear()
    assert again.embed_documents([*TEXTS, "an owl"])[:4] == again.embed_documents(TEXTS)
    assert ENCODED == ["an owl"]
    ENCODED.clear()
    first = again.embed_query("a cat")
    assert float32(first) == langchain().embed_query("a cat") != again.embed_documents(["a cat"])[0]
    assert ENCODED == ["to a cat"]
    assert asyncio.run(again.aembed_documents(TEXTS)) == again.embed_documents(TEXTS)
    assert ENCODED == ["to a cat"]


def test_langchain_keeps_all_bits_if_asked(langchain):
    langchain(dtype="float64").embed_documents(TEXTS)
    assert langchain().embed_documents(TEXTS) == letters(TEXTS)


def test_langchain_deletes_and_lists_no_texts(langchain):
    store = langchain().document_embedding_store
    store.mset([("a", [1.0]), ("b", [2.0]), ("a", [3.0])])
    assert store.mget(["b", "c", "a"]) == [[2.0], None, [1.0]]
    store.mdelete(["a", "c"])
    assert store.mget(["a", "b"]) == [None, [2.0]]
    store.mset([])
    assert store.mget([]) == []
    with pytest.raises(NotImplementedError, match="digests of texts"):
        list(store.yield_keys())


@pytest.fixture
def llama():
    pytest.importorskip("llama_index.core")
    from llama_index.core.base.embeddings.base import BaseEmbedding

    class Letters(BaseEmbedding):
        def _get_text_embeddings(self, texts):
            return letters(texts)

        def _get_text_embedding(self, text):
            return letters([text])[0]

        def _get_query_embedding(self, query):
            return letters([query])[0]

        async def _aget_query_embedding(self, query):
            return letters([query])[0]

    return Letters


@pytest.mark.parametrize("end", ["persist", "delete", "interval"])
def test_llama_index_encodes_each_text_once(llama, tmp_path, monkeypatch, end):
    from embstore_tools import llama_index

    cache = llama_index.VectorCache(tmp_path, CONFIG)
    if end == "interval":
        monkeypatch.setattr(llama_index, "_INTERVAL", 0.0)
        cache.persist()
    model = llama(embeddings_cache=cache)
    model.get_text_embedding_batch(["a cat", "a dog"])
    found = model.get_text_embedding_batch(["a dog", "a cat", "an owl"])
    assert float32(found) == float32(letters(["a dog", "a cat", "an owl"]))
    if end == "persist":
        cache.persist()
    del model, cache
    gc.collect()
    ENCODED.clear()
    again = llama(embeddings_cache=llama_index.VectorCache(tmp_path, CONFIG))
    assert again.get_text_embedding_batch(["an owl", "a cat"]) == float32(letters(["an owl", "a cat"]))
    ENCODED.clear()
    assert again.get_query_embedding("a dog") == asyncio.run(again.aget_query_embedding("a dog"))
    assert ENCODED == []


def test_llama_index_deletes_and_lists_no_texts(llama, tmp_path):
    from embstore_tools.llama_index import VectorCache

    cache = VectorCache(tmp_path, CONFIG)
    for key in "abc":
        cache.put(key, {"x": [float(ord(key))]})
        if key == "b":
            cache.persist()
    assert [cache.delete(key) for key in "acd"] == [True, True, False]
    assert [cache.get(key) for key in "abc"] == [None, {"embedding": [98.0]}, None]
    with pytest.raises(NotImplementedError, match="digests of texts"):
        cache.get_all()


def test_llama_index_commits_at_the_end_of_the_process(llama, tmp_path):
    code = f"""
from embstore_tools.llama_index import VectorCache
cache = VectorCache({str(tmp_path)!r}, {CONFIG!r})
cache.put("a cat", {{"x": [1.0, 2.0]}})
"""
    python(code)
    assert embstore.Cache(tmp_path).entries()[0].rows == 1


@pytest.mark.filterwarnings("ignore")
def test_mteb_encodes_each_item_once(tmp_path):
    pytest.importorskip("mteb")
    from datasets import Dataset
    from mteb.models.cache_wrappers import CachedEmbeddingWrapper
    from mteb.models.cache_wrappers.cache_backend_protocol import CacheBackendProtocol
    from torch.utils.data import DataLoader

    from embstore_tools.mteb import VectorCache

    class Model:
        mteb_model_meta = None

        def encode(self, inputs, **options):
            return np.array(letters([text for batch in inputs for text in batch["text"]]), np.float32)

    class Task:
        name = "letters"
        modalities = ("text",)

    def run(texts):
        model = CachedEmbeddingWrapper(Model(), tmp_path, VectorCache)
        rows = Dataset.from_dict({"text": texts, "id": [str(i) for i in range(len(texts))]})
        options = {"task_metadata": metadata, "hf_split": "test", "hf_subset": "default"}
        found = model.encode(DataLoader(rows, batch_size=2), **options)
        model.close()
        return found

    import mteb

    metadata = mteb.get_task("STS12").metadata
    assert isinstance(VectorCache(tmp_path / "x"), CacheBackendProtocol)
    np.testing.assert_array_equal(run(["a cat", "a dog"]), float32(letters(["a cat", "a dog"])))
    ENCODED.clear()
    found = run(["an owl", "a dog", "a cat"])
    assert ENCODED == ["an owl"]
    np.testing.assert_array_equal(found, float32(letters(["an owl", "a dog", "a cat"])))


def test_mteb_items_of_several_parts(tmp_path):
    from embstore_tools.mteb import VectorCache

    image = pytest.importorskip("PIL.Image").new("RGB", (2, 2))
    sound = {"array": np.ones(4, np.float32), "sampling_rate": 16_000}
    items = [{"text": "a"}, {"text": "a", "image": image}, {"image": image}, {"audio": sound}]
    cache = VectorCache(tmp_path / "task", config=CONFIG)
    for place, item in enumerate(items):
        assert item not in cache
        cache.add([{**item, "id": "7"}], np.full(3, place, np.float32))
    again = VectorCache(tmp_path / "task", config=CONFIG)
    assert [again.get_vector(item).tolist() for item in items] == [[float(place)] * 3 for place in range(4)]
    with pytest.raises(ValueError, match="expected an item with text"):
        again.get_vector({"id": "7"})
