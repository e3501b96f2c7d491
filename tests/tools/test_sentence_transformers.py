"""CachedSentenceTransformer against the library: values, forms of output, signature, and a full hit without torch."""

import inspect
import pickle

import numpy as np
import pytest

import embstore

library = pytest.importorskip("sentence_transformers")

from embstore_tools.sentence_transformers import CachedSentenceTransformer  # noqa: E402
from tests._helpers import tiny_models  # noqa: E402
from tests._helpers.crash import python  # noqa: E402

TEXTS = ["a cat", "", "a dog that barks at a cat", "a cat", "an owl"]
PROMPTS = {"query": "find: ", "document": "text: "}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    tiny_models.text(path / "bert")
    made = library.SentenceTransformer(str(path / "bert"), device="cpu", prompts=PROMPTS)
    made.save_pretrained(str(path / "sentences"))
    return path / "sentences"


@pytest.fixture(scope="module")
def plain(folder):
    return library.SentenceTransformer(str(folder), device="cpu")


@pytest.fixture
def cached(folder, tmp_path):
    return CachedSentenceTransformer(folder, cache=tmp_path / "cache", device="cpu")


def same(found, expected):
    assert type(found) is type(expected)
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
    else:
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(np.asarray(found, np.float64), np.asarray(expected, np.float64), atol=1e-6)


CALLS = {
    "plain": {},
    "normalized": {"normalize_embeddings": True},
    "prompt": {"prompt": "query: "},
    "prompt_name": {"prompt_name": "query"},
    "truncated": {"truncate_dim": 3},
    "int8": {"precision": "int8"},
    "ubinary": {"precision": "ubinary"},
    "tensor": {"convert_to_tensor": True},
    "tensors": {"convert_to_numpy": False},
    "batches": {"batch_size": 2, "show_progress_bar": False, "device": "cpu"},
    "tokens": {"output_value": "token_embeddings"},
    "everything": {"output_value": None},
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_values_and_forms_are_those_of_the_library(cached, plain, call):
    for texts in (TEXTS, TEXTS, tuple(TEXTS), np.array(TEXTS), TEXTS[2], []):  # misses, then hits
        if call != "int8" or len(texts) == len(TEXTS):  # the library has no ranges for a single one
            same(cached.encode(texts, **CALLS[call]), plain.encode(texts, **CALLS[call]))


@pytest.mark.parametrize("method", ["encode_query", "encode_document"])
def test_prompts_of_queries_and_documents(cached, plain, method):
    for arguments in ((), (None, "as: ")):
        found = getattr(cached, method)(TEXTS, *arguments)
        same(found, getattr(plain, method)(TEXTS, *arguments))
    assert len(cached._cache.entries()) == 2


def test_the_model_is_loaded_for_missing_texts_only(folder, tmp_path, monkeypatch):
    encoded = []
    own = library.SentenceTransformer.encode

    def encode(self, inputs, *args, **kwargs):
        encoded.extend(inputs)
        return own(self, inputs, *args, **kwargs)

    monkeypatch.setattr(library.SentenceTransformer, "encode", encode)
    first = CachedSentenceTransformer(str(folder), cache=tmp_path / "cache", device="cpu")
    first.encode(TEXTS)
    assert sorted(encoded) == sorted(set(TEXTS))
    second = pickle.loads(pickle.dumps(first))
    second.encode(TEXTS[::-1])
    assert "model" not in vars(second)
    second.encode([*TEXTS, "a new one"])
    assert encoded[4:] == ["a new one"]
    assert second.max_seq_length == first.model.max_seq_length  # all else is the model's
    with pytest.raises(ValueError, match="nonsense"):
        second.encode(TEXTS, prompt_name="nonsense")
    with pytest.raises(ValueError, match="nonsense"):
        second.encode(TEXTS, nonsense=1)


def test_other_weights_and_options_have_rows_of_their_own(folder, tmp_path):
    import shutil

    cached = CachedSentenceTransformer(folder, cache=tmp_path / "cache", device="cpu")
    cached.encode(TEXTS)
    CachedSentenceTransformer(folder, cache=tmp_path / "cache", device="cpu", truncate_dim=2).encode(TEXTS)
    shutil.copytree(folder, tmp_path / folder.name)
    weights = tmp_path / folder.name / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    CachedSentenceTransformer(tmp_path / folder.name, cache=tmp_path / "cache", device="cpu").encode(TEXTS)
    assert len(embstore.Cache(tmp_path / "cache").entries()) == 3


def test_the_signature_is_that_of_the_library():
    ours = inspect.signature(CachedSentenceTransformer.encode).parameters
    theirs = inspect.signature(library.SentenceTransformer.encode).parameters
    assert [(name, one.kind, one.default) for name, one in ours.items()] == [
        (name, one.kind, one.default) for name, one in theirs.items()
    ]


FULL_HIT = """
import sys, time
started = time.perf_counter()
from embstore_tools.sentence_transformers import CachedSentenceTransformer
begun = time.perf_counter(), time.process_time()
cached = CachedSentenceTransformer({folder!r}, cache={cache!r}, device="cpu")
rows = cached.encode([f"text {{i}}" for i in range(10_000)])
took = time.perf_counter() - begun[0], time.process_time() - begun[1]
assert rows.shape == (10_000, 384), rows.shape
assert "torch" not in sys.modules and "sentence_transformers" not in sys.modules
print(min(took), begun[0] - started)
"""


def test_a_full_hit_of_ten_thousand_texts_takes_less_than_a_second(folder, tmp_path):
    cached = CachedSentenceTransformer(folder, cache=tmp_path / "cache", device="cpu")

    class Model:
        def encode(self, texts, **options):
            return np.ones((len(texts), 384), np.float32)

    cached.model = Model()
    cached.encode([f"text {i}" for i in range(10_000)])
    code = FULL_HIT.format(folder=str(folder), cache=str(tmp_path / "cache"))
    found = python(code)
    assert float(found.split()[0]) < 1, found
