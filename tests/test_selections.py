"""Views: what they select, how they split, what is nearest, and when they are no longer valid."""

import pickle

import numpy as np
import pytest

import embstore
from embstore import errors


def test_select(make):
    store, keys, rows = make()
    assert store.select(keys=[keys[5], keys[1], keys[5]]).rows.tolist() == [5, 1, 5]
    assert store.select(rows=[9, 2]).keys == [keys[9], keys[2]]
    assert store.select(classes=["class_2", "class_1"]).rows.tolist() == [i for i in range(300) if i % 10 in (1, 2)]
    by_column = store.select(where={"split": ["train", "val"]}, classes="class_0")
    assert by_column.rows.tolist() == [i for i in range(0, 300, 10) if i % 3 in (0, 2)]
    assert store.select(where={"split": lambda values: values == "test"}).rows.tolist() == list(range(1, 300, 3))
    np.testing.assert_array_equal(by_column.to_numpy(), rows[by_column.rows])
    assert len(store.select().select(classes="class_3").select(where={"split": "train"})) == 10
    with pytest.raises(errors.UnknownClassError):
        store.select(classes="class_11")
    with pytest.raises(errors.UnknownColumnError):
        store.select(where={"fold": 1})
    with pytest.raises(ValueError, match="mask"):
        store.select(where={"split": lambda values: [1]})
    with pytest.raises(TypeError):
        store.select(keys=keys, rows=[1])


def test_views_are_indexed_by_slices_and_masks(make):
    store, _, rows = make()
    view = store.select()
    assert view[10:20].rows.tolist() == list(range(10, 20))
    assert view[[3, 1]].rows.tolist() == [3, 1]
    assert view[np.arange(300) < 4].rows.tolist() == [0, 1, 2, 3]
    assert [len(batch) for batch in view.batches(128)] == [128, 128, 44]
    np.testing.assert_array_equal(np.concatenate([b.to_numpy() for b in view.batches(7)]), rows)
    with pytest.raises(TypeError):
        view[3]


def test_labels_only_through_a_list(make):
    store, _, _ = make()
    view = store.select(classes=["class_1", "class_2"])
    assert view.labels(["class_2", "class_1"])[:4].tolist() == [1, 0, 1, 0]
    assert view.classes == ["class_1", "class_2"]
    with pytest.raises(errors.UnknownClassError) as caught:
        view.labels(["class_2"])
    assert caught.value.class_names == ("class_1",)
    with pytest.raises(ValueError, match="more than once"):
        view.labels(["class_1", "class_1"])


def test_pandas(make):
    pytest.importorskip("pandas")
    store, keys, _ = make()
    frame = store.select(keys=keys[:3]).to_pandas()
    assert frame.index.tolist() == keys[:3]
    assert frame["split"].tolist() == ["train", "test", "val"]
    assert frame["class_name"].tolist() == ["class_0", "class_1", "class_2"]


def test_split_is_stratified_and_repeatable(make):
    store, _, _ = make()
    view, ratios = store.select(), {"train": 0.8, "val": 0.1, "test": 0.1}
    parts = view.split(ratios, rng=np.random.default_rng(3))
    for name, part in parts.items():
        counts = np.bincount(part.labels(store.classes))
        assert counts.tolist() == [round(30 * ratios[name])] * 10
    together = np.concatenate([part.rows for part in parts.values()])
    assert sorted(together) == list(range(300))
    again = view.split(ratios, rng=np.random.default_rng(3))
    assert all((parts[name].rows == again[name].rows).all() for name in parts)
    assert (parts["train"].rows != view.split(ratios, rng=np.random.default_rng(4))["train"].rows).any()
    for wrong in ({"train": 0.8}, {"train": 1.2, "test": -0.2}, {}):
        with pytest.raises(ValueError, match="ratios"):
            view.split(wrong, rng=np.random.default_rng(3))


def test_groups_stay_together(make):
    store, keys, _ = make()
    store.set_column("origin", keys, [f"o{i // 6}" for i in range(300)])
    parts = store.select().split({"train": 0.7, "test": 0.3}, rng=np.random.default_rng(0), by=None, group="origin")
    train, test = (set(part.column("origin")) for part in parts.values())
    assert not train & test
    assert len(train) == 35


def test_sample(make):
    store, _, _ = make()
    sample = store.select().sample(50, rng=np.random.default_rng(1))
    assert len(set(sample.rows.tolist())) == 50
    with pytest.raises(ValueError, match="larger sample"):
        store.select().sample(301, rng=np.random.default_rng(1))


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_nearest_is_exact(make, rng, metric, monkeypatch):
    monkeypatch.setattr("embstore.neighbors._BLOCK_BYTES", 1000)  # many blocks
    store, keys, rows = make()
    store.delete([keys[3]])
    queries = rng.standard_normal((4, 8)).astype(np.float32)
    live = np.delete(np.arange(300), 3)
    if metric == "euclidean":
        scores = np.linalg.norm(queries[:, None] - rows[live], axis=2)
        order = scores.argsort(axis=1)[:, :6]
    else:
        norms = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(rows[live], axis=1)
        scores = queries @ rows[live].T / (norms if metric == "cosine" else 1)
        order = (-scores).argsort(axis=1)[:, :6]
    found = store.select().nearest(queries, k=6, metric=metric)
    assert found.rows.tolist() == live[order].tolist()
    assert found.keys == [[keys[i] for i in row] for row in live[order]]
    np.testing.assert_allclose(found.scores, np.take_along_axis(scores, order, 1), rtol=1e-4, atol=1e-5)
    one = store.select().nearest(queries[0], k=6, metric=metric)
    assert one.keys == found.keys[0]
    assert len(store.select(classes="class_1").nearest(queries[0], k=1000).keys) == 30
    with pytest.raises(errors.ShapeError):
        store.select().nearest(np.ones(7))


def test_views_follow_the_store_or_say_why_not(make):
    store, keys, rows = make()
    first, second = store.select(keys=keys[:100]), store.select(keys=keys[100:])
    reader = embstore.open(store.path)
    seen = reader.select()
    store.append(["new:c"], rows[:1], columns={"split": "x"})
    np.testing.assert_array_equal(first.to_numpy(), rows[:100])
    reader.refresh()
    np.testing.assert_array_equal(seen.to_numpy(), rows)
    store.delete([keys[0]])
    np.testing.assert_array_equal(first.to_numpy(), rows[:100])  # still what it was
    store.erase([keys[1]])
    with pytest.raises(errors.StoreChangedError):
        first.to_numpy()
    np.testing.assert_array_equal(second.to_numpy(), rows[100:])
    store.compact()
    with pytest.raises(errors.StoreChangedError):
        second.to_numpy()
    reader.refresh()
    with pytest.raises(errors.StoreChangedError):
        seen.to_numpy()


def test_pickles_are_small(make):
    store, keys, rows = make(3000)
    assert len(pickle.dumps(store)) < 1000
    again = pickle.loads(pickle.dumps(store.select()))
    assert len(pickle.dumps(store.select())) < 1000
    np.testing.assert_array_equal(again.to_numpy(), rows)
    scattered = store.select(rows=np.arange(0, 3000, 3))
    assert len(pickle.dumps(scattered)) < 1000 + scattered.rows.nbytes
    with pytest.raises(errors.ReadOnlyError):
        again.store.delete(keys[:1])
    data = pickle.dumps(store.select())
    store.delete(keys[:1])
    store.compact()
    with pytest.raises(errors.StoreChangedError):
        pickle.loads(data)


def test_how_they_look(make, capsys):
    store, keys, _ = make()
    text = repr(store)
    for part in (str(store.path), "300", "class_0", "embedding float32 (8,)", "split", "sample_rate=16000"):
        assert part in text
    assert "300" in repr(store.select())
    assert "class_1" in repr(store.select(classes="class_1"))
    assert "<table>" in store._repr_html_()
    assert "Config" in store.config._repr_html_()
    store.close()
    assert "closed" in repr(store)
    assert len(keys) == 300
    assert capsys.readouterr().out == ""


def test_set_column_and_add_field_want_every_live_row(make, rng):
    store, keys, _ = make()
    store.delete(keys[:2])
    with pytest.raises(errors.MissingKeysError) as caught:
        store.set_column("score", keys[3:], np.zeros(297))
    assert caught.value.keys == (keys[2],)
    shuffled = [keys[i] for i in rng.permutation(np.arange(2, 300))]
    store.set_column("score", shuffled, [int(key[5:9]) for key in shuffled])
    assert store.select().column("score").tolist() == list(range(2, 300))
    store.add_field("half", shuffled, np.array([[int(key[5:9])] for key in shuffled], np.float16))
    assert store.select().to_numpy("half")[:, 0].tolist() == list(range(2, 300))
    with pytest.raises(errors.UnknownFieldError):
        store[keys[5]]  # which of the two?
    assert store.fetch([keys[5]], "half").tolist() == [[5]]


def test_the_writer_commits_in_time_and_at_its_end(make):
    store, _, rows = make(0, columns=False)
    with store.writer(interval=1000) as writer:
        writer.add("a:c", rows.reshape(-1, 8)[:0].sum(0) + 1)
        assert len(store) == 0
        writer.flush()
        assert len(store) == 1
        writer.add("b:c", np.ones(8, np.float32))
    assert list(store) == ["a:c", "b:c"]
    with store.writer(interval=0) as writer:
        writer.add("c:c", np.ones(8, np.float32))
        assert len(store) == 3
    with pytest.raises(ZeroDivisionError), store.writer(interval=1000) as writer:  # noqa: PT012
        writer.add("d:c", np.ones(8, np.float32))
        writer.add(f"{1 / 0}:c", np.ones(8, np.float32))
    assert "d:c" in store
    with pytest.raises(errors.KeysExistError), store.writer() as writer:
        writer.add("d:c", np.ones(8, np.float32))
