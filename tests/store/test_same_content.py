"""Rows of the same content in erase and split, and keys whose rows moved."""

import logging

import numpy as np
import pytest

import embstore
from embstore import errors
from embstore.store.embedding_store import session_of
from embstore.store.same_content import moved_keys
from tests.conftest import CONFIG

DIGESTS = {"a:dog": "text:1", "b:dog": "text:2", "c:cat": "text:1", "d:cat": "bytes:1", "e:cat": "given:1", "f:cat": ""}


def store_of(tmp_path, digests=DIGESTS, **columns):
    store = embstore.open(tmp_path / "a.zarr", "a", config=CONFIG)
    columns = {"source_digest": list(digests.values()), **columns}
    store.append(list(digests), np.ones((len(digests), 4), np.float32), columns=columns)
    return store


@pytest.mark.parametrize(("key", "alike"), [("a:dog", ("c:cat",)), ("b:dog", ()), ("e:cat", ()), ("f:cat", ())])
@pytest.mark.parametrize("copies", [False, True])
def test_erase_lists_or_takes_the_rows_of_the_same_content(tmp_path, key, alike, copies):
    digests = {**DIGESTS, "g:dog": "given:1", "h:dog": ""}  # not computed, so not compared
    store = store_of(tmp_path, digests)
    receipt = store.erase([key], copies=copies)
    assert receipt.same_content == (() if copies else alike)
    gone = {key, *(alike if copies else ())}
    assert len(receipt.rows) == len(receipt.key_hashes) == len(gone)
    assert set(store) == digests.keys() - gone
    assert embstore.verify(store.path).ok


def test_erase_of_a_store_without_digests(tmp_path):
    with embstore.open(tmp_path / "a.zarr", "w-", config=CONFIG) as store:
        store.append(["a:dog", "b:dog"], np.ones((2, 4), np.float32))
        assert store.erase(["a:dog"], copies=True).same_content == ()


OWN = {"source_digest": [1, 2], "source_size": ["a", "b"], "source_origins": [0.5, 2.5]}


@pytest.mark.parametrize("name", OWN)
def test_a_column_of_such_a_name_and_another_dtype_is_the_users(tmp_path, name):
    with embstore.open(tmp_path / "a.zarr", "w-", config=CONFIG) as store:
        store.append(["a:dog", "b:dog"], np.ones((2, 4), np.float32), columns={name: OWN[name]})
        assert len(store.select().split({"train": 0.5, "test": 0.5}, rng=0, by=None)["train"]) == 1
        store.append(["a:dog"], np.zeros((1, 4), np.float32), if_exists="replace")
        embstore.merge(tmp_path / "b.zarr", store.path)
        assert store.erase(["b:dog"]).same_content == ()
    assert embstore.open(tmp_path / "b.zarr").select(keys=["a:dog", "b:dog"]).column(name).tolist() == OWN[name]


def test_an_erase_of_copies_leaves_none_of_their_keys(tmp_path):
    store = store_of(tmp_path)
    store.erase(["a:dog"], copies=True)
    with pytest.raises(errors.MissingKeysError):
        store.erase(["c:cat"])


def test_a_split_keeps_equal_content_together(tmp_path):
    digests = {f"f{i}:{'dog' if i % 2 else 'cat'}": f"text:{i // 5}" for i in range(200)}
    store = store_of(tmp_path, digests)
    parts = store.select().split({"train": 0.5, "test": 0.5}, rng=0)
    train, test = (set(part.column("source_digest")) for part in parts.values())
    assert not train & test
    assert len(train | test) == 40
    assert sum(map(len, parts.values())) == 200


def test_a_split_without_equal_content_is_that_of_before(tmp_path):
    digests = {f"f{i}:{'dog' if i % 2 else 'cat'}": f"text:{i}" for i in range(50)}
    with store_of(tmp_path, digests) as store, embstore.open(tmp_path / "b.zarr", "w-", config=CONFIG) as plain:
        plain.append(list(digests), np.ones((50, 4), np.float32))
        found = [one.select().split({"train": 0.7, "test": 0.3}, rng=3)["test"].keys for one in (store, plain)]
    assert found[0] == found[1]


@pytest.mark.parametrize("torn", [True, False])
def test_a_split_by_groups_warns_of_equal_content_in_two_parts(tmp_path, caplog, torn):
    digests = {f"f{i}:dog": f"text:{i // 2}" for i in range(200)}
    store = store_of(tmp_path, digests, speaker=[i if torn else i // 2 for i in range(200)])
    with caplog.at_level(logging.WARNING, "embstore"):
        store.select().split({"train": 0.5, "test": 0.5}, rng=0, group="speaker")
    assert ("contents have rows in several parts of the split, since their values of 'speaker'" in caplog.text) is torn


@pytest.mark.parametrize(
    ("then", "moved"),
    [
        (lambda store: None, {"a:dog": "a:cat", "b:dog": "z:cow"}),
        (lambda store: store.compact(), {}),
        (lambda store: store.erase(["a:cat"]), {}),
    ],
)
def test_moved_keys(tmp_path, then, moved):
    store = store_of(tmp_path, {"a:dog": "text:1", "b:dog": "text:2", "c:dog": "text:3", "d:dog": "given:1"})
    store.delete(["a:dog", "b:dog", "c:dog", "d:dog"])
    new = {"y:cow": "text:1", "a:cat": "text:1", "z:cow": "text:2", "d:cat": "given:1"}
    store.append(list(new), np.ones((4, 4), np.float32), columns={"source_digest": list(new.values())})
    then(store)
    keys = ["a:dog", "b:dog", "c:dog", "d:dog", "z:cow", "never:dog"]
    assert moved_keys(session_of(store).index, keys) == moved
