"""Nearest neighbours by key, in tables, and of rows that are equal, empty or not numbers."""

import numpy as np
import pytest

import embstore
from embstore import errors


@pytest.fixture(params=[None, 1000], ids=["one block", "many blocks"])
def blocks(request, monkeypatch):
    if request.param:
        monkeypatch.setattr("embstore._outputs.neighbors._BLOCK_BYTES", request.param)


def test_keys_are_looked_up_and_not_their_own_neighbours(make, blocks):
    store, keys, rows = make()
    view = store.select()
    found = view.nearest([keys[7], keys[3]], k=4)
    assert found.queries == [keys[7], keys[3]]
    with_itself = view.nearest(rows[[7, 3]], k=5)
    assert [listed[0] for listed in with_itself.keys] == [keys[7], keys[3]]
    assert found.keys == [listed[1:] for listed in with_itself.keys]
    np.testing.assert_allclose(found.scores, with_itself.scores[:, 1:], rtol=1e-5)
    assert view.nearest([keys[7]], k=1, itself="include").keys == [[keys[7]]]
    one = view.nearest(embstore.Key.parse(keys[7]), k=4)
    assert one.keys == found.keys[0]
    assert one.scores.shape == (4,)
    assert view.nearest(np.array(keys[:2])).keys == view.nearest(tuple(keys[:2])).keys
    with pytest.raises(errors.MissingKeysError):
        view.nearest(["no:such"])
    with pytest.raises(errors.MissingKeysError) as caught:
        view.nearest("a cat on a mat")
    assert "pass text= and encoder=" in caught.value.__notes__[0]
    with pytest.raises(ValueError, match="itself"):
        view.nearest(keys[0], itself="maybe")


def test_the_row_of_a_key_is_left_out_wherever_it_ranks(make, blocks, rng):
    store, keys, rows = make()
    view = store.select(rows=np.concatenate([rng.permutation(300), [7, 7]]))  # which has one row three times
    asked = [keys[7], keys[7], keys[299], keys[0]]
    found = view.nearest(asked, k=1000, metric="dot")
    assert found.rows.shape == (4, 299)
    for key, listed in zip(asked, found.keys, strict=True):
        assert key not in listed
    scores = rows[[7, 7, 299, 0]] @ rows[view.rows].T
    for row, place in ((0, 7), (2, 299)):
        left = scores[row][view.rows != place]
        np.testing.assert_allclose(found.scores[row], np.sort(left)[::-1][:299], rtol=1e-4, atol=1e-5)


def test_a_key_need_not_be_in_the_view(make):
    store, keys, rows = make()
    view = store.select(classes="class_1")
    found = view.nearest(keys[0], k=3)
    assert found.keys == view.nearest(rows[0], k=3).keys
    assert view[:1].nearest([keys[1], keys[0]], k=3).rows.shape == (2, 0)  # the one has none
    assert view[:1].nearest([keys[0]], k=3).keys == [[keys[1]]]


def test_queries_of_nothing(make):
    store, keys, _ = make()
    assert store.select().nearest([], k=3).keys == []
    assert store.select().nearest(np.empty((0, 8)), k=3).scores.shape == (0, 3)
    assert store.select(rows=[]).nearest([keys[0]], k=3).scores.shape == (1, 0)
    assert len(store.select().nearest([], k=3).to_pandas()) == 0


def test_of_rows_that_are_equal_the_first_comes_first(path, monkeypatch):
    with embstore.open(path, "w-", config={}) as store:
        store.append([f"{i:03d}:c" for i in range(200)], np.ones((200, 4), np.float32))
    view = embstore.open(path).select()[::-1]
    for nbytes in (16 * 2**20, 1000, 16):
        monkeypatch.setattr("embstore._outputs.neighbors._BLOCK_BYTES", nbytes)
        for metric in ("cosine", "dot", "euclidean"):
            found = view.nearest([np.ones(4), -np.ones(4)], k=7, metric=metric)
            assert found.rows.tolist() == [list(range(199, 192, -1))] * 2


def test_rows_that_are_not_numbers_come_last(path, blocks):
    spec = embstore.FieldSpec(shape=(3,), nonfinite="allow")
    rows = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1]]
    rows[1] = np.nan
    rows[3, 2] = np.inf
    keys = [f"{i}:c" for i in range(5)]
    with embstore.open(path, "w-", config={}, fields={"f": spec}) as store:
        store.append(keys, rows)
        view = store.select()
        for metric in ("cosine", "dot", "euclidean"):
            found = view.nearest([[1, 0, 0]], k=5, metric=metric)
            assert found.keys[0][0] == "0:c"
            assert sorted(found.keys[0]) == keys
            assert found.keys[0][-1] in ("1:c", "3:c")
            assert view.nearest(keys[0], k=9, metric=metric).rows.shape == (4,)
        with pytest.raises(errors.NonFiniteError) as caught:
            view.nearest([keys[0], keys[1], keys[3]])
        assert caught.value.keys == (keys[1], keys[3])
        with pytest.raises(errors.NonFiniteError):
            view.nearest([np.nan, 0, 0])


def test_neighbours_as_a_table(make):
    pytest.importorskip("pandas")
    store, keys, rows = make()
    found = store.select().nearest([keys[7], keys[3]], k=3)
    frame = found.to_pandas()
    assert list(frame) == ["query", "rank", "key", "file_id", "class_name", "score"]
    assert frame["query"].tolist() == [keys[7]] * 3 + [keys[3]] * 3
    assert frame["rank"].tolist() == [1, 2, 3] * 2
    assert frame["key"].tolist() == found.keys[0] + found.keys[1]
    assert (frame["file_id"] + ":" + frame["class_name"] == frame["key"]).all()
    assert frame["score"].tolist() == found.scores.reshape(-1).tolist()
    assert store.select().nearest(rows[:2], k=2).to_pandas()["query"].tolist() == [0, 0, 1, 1]
    assert store.select().nearest(rows[0], k=2).to_pandas()["query"].tolist() == [0, 0]
    assert store.select().nearest(keys[0], k=2).to_pandas()["query"].tolist() == [keys[0]] * 2
