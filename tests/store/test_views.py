"""Views in every dtype and state of a store, what is handed out, the writer, and what is said and logged."""

import copy
import gc
import inspect
import logging
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import embstore
from embstore import EmbedResult, analysis, errors
from embstore.store.split_rows import split_rows
from tests._helpers.crash import python, stopped_at
from tests._helpers.kinds import READ, every_way


@pytest.fixture(params=["auto", "never"])
def both(request, make):
    """A store, a reader of it with and without maps, and its keys and rows; four rows are deleted."""
    store, keys, rows = make()
    store.delete([keys[i] for i in (0, 5, 6, 299)])
    return store, embstore.open(store.path, mapping=request.param), keys, rows


def test_a_selection_has_the_order_asked_for(both, rng):
    _, reader, keys, rows = both
    order = rng.permutation(np.setdiff1d(np.arange(300), [0, 5, 6, 299]))
    order = np.concatenate([order, order[:50]])
    view = reader.select(keys=[keys[i] for i in order])
    assert view.rows.tolist() == order.tolist()
    assert view.keys == list(view) == [keys[i] for i in order]
    np.testing.assert_array_equal(view.to_numpy(), rows[order])
    assert view.file_ids == [keys[i].partition(":")[0] for i in order]
    assert view.class_names == [f"class_{i % 10}" for i in order]
    assert reader.select(rows=order, classes=["class_9", "class_1"]).rows.tolist() == [
        i for i in order if i % 10 in (1, 9)
    ]
    assert reader.select(keys=[embstore.Key("file_0001", "class_1")]).rows.tolist() == [1]


def test_everything_is_the_live_rows(both):
    store, reader, keys, rows = both
    live = np.setdiff1d(np.arange(300), [0, 5, 6, 299])
    view = reader.select()
    assert view.rows.tolist() == reader.rows.tolist() == live.tolist()
    assert len(view) == len(reader) == len(store) == 296
    np.testing.assert_array_equal(view.to_numpy(), rows[live])
    np.testing.assert_array_equal(view[3:7].to_numpy(), rows[live[3:7]])
    np.testing.assert_array_equal(view[::-1].to_numpy(), rows[live[::-1]])
    mask = view.column("split") == "val"
    for given_mask in (mask, mask.tolist()):
        np.testing.assert_array_equal(view[given_mask].to_numpy(), rows[live[live % 3 == 2]])
    assert view[[3, 1]].rows.tolist() == live[[3, 1]].tolist()
    assert [len(batch) for batch in view.batches(128)] == [128, 128, 40]
    np.testing.assert_array_equal(np.concatenate([b.to_numpy() for b in view.batches(7)]), rows[live])
    with pytest.raises(TypeError):
        view[3]
    for size in (0, -1):
        with pytest.raises(ValueError, match="batch"):
            list(view.batches(size))
    with pytest.raises(IndexError):
        reader.select(rows=[1, 5])
    with pytest.raises(errors.MissingKeysError):
        reader.select(keys=[keys[5]])


def test_nothing_selected_is_a_view_as_well(both):
    _, reader, _, _ = both
    for view in (
        reader.select(keys=[]),
        reader.select(rows=[]),
        reader.select(classes=[]),
        reader.select(where={"split": []}),
        reader.select(where={"split": "nowhere"}),
        reader.select()[:0],
    ):
        assert len(view) == 0
        assert view.keys == view.class_names == view.classes == []
        assert view.to_numpy().shape == (0, 8)
        assert view.column("split").shape == (0,)
        assert view.labels(["a"]).shape == (0,)
        assert list(view.batches(5)) == []
        assert view.nearest(np.ones(8), k=3).keys == []
        assert pickle.loads(pickle.dumps(view)).keys == []
        assert "no rows" in repr(view)
        assert {len(v) for v in view.split({"a": 0.5, "b": 0.5}, rng=np.random.default_rng(0)).values()} == {0}


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        (lambda v: (v > 7) & (v < 10), [8, 9]),
        (lambda v: [x == 2 for x in v], [2]),
    ],
)
def test_conditions_on_numbers(make, condition, kept):
    store, keys, _ = make(30, columns=False)
    store.set_column("n", keys, np.arange(30))
    assert store.select(where={"n": condition}).column("n").tolist() == kept


@pytest.mark.parametrize(
    "mask", [np.arange(300), True, np.ones(299, bool), np.ones((300, 1), bool), None, [0, 1] * 150, np.ones(300)]
)
def test_a_condition_that_gives_no_mask(make, mask):
    store, _, _ = make()
    with pytest.raises(ValueError, match="split"):
        store.select(where={"split": lambda values: mask})


def test_conditions_apply_one_after_the_other(make):
    store, keys, _ = make()
    store.set_column("n", keys, np.arange(300))
    seen = []
    view = store.select(classes="class_1", where={"split": "train", "n": lambda v: seen.append(len(v)) or v > 100})
    assert seen == [10]
    assert view.rows.tolist() == [i for i in range(101, 300) if i % 10 == 1 and i % 3 == 0]


INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16", "bool", *INTEGERS])
@every_way
@pytest.mark.parametrize("shape", [(), (4,), (2, 8)], ids=str)
def test_every_dtype_comes_back(path, rng, dtype, options, shape):
    """From several chunks, the last of which two appends filled."""
    fields = {"f": embstore.FieldSpec(shape=shape, dtype=dtype)}
    values = rng.integers(0, 2 if dtype == "bool" else 100, (300, *shape))
    values = values.astype("float32" if dtype == "bfloat16" else dtype)
    keys = [f"{i}:c" for i in range(300)]
    with embstore.open(path, "w-", config={}, fields=fields, chunk_bytes=4096, **options) as store:
        store.append(keys[:100], values[:100], casting="same_kind")
        store.append(keys[100:], values[100:], casting="same_kind")
    for check in ("tail", "touched", "all"):
        reader = embstore.open(path, check=check, **options)
        reads = (reader[keys], reader.fetch(keys[::-1])[::-1], reader.take(range(300)), reader.select().to_numpy())
        for found in reads:
            assert found.dtype == values.dtype
            assert found.flags.writeable
            np.testing.assert_array_equal(found, values)
        one = reader[keys[3]]
        np.testing.assert_array_equal(one, values[3])
        if dtype == "bfloat16":
            with pytest.raises(errors.DtypeError):
                reader.array()
            continue
        assert not shape or not one.flags.writeable
        array = reader.array()
        assert not array.flags.writeable
        if options == READ["mapped"]:  # the pages themselves can't be written; else it is a copy of the caller's own
            with pytest.raises(ValueError, match="WRITEABLE"):
                array.flags.writeable = True
        np.testing.assert_array_equal(array, values)
    assert embstore.verify(path).ok


@every_way
def test_what_was_copied_is_the_callers_own(make, options):
    store, keys, rows = make(**options)
    reader = embstore.open(store.path, **options)
    for found in (reader[keys], reader.take(np.arange(300)), reader.select().to_numpy(), reader.rows):
        found[:] = 7
    np.testing.assert_array_equal(reader[keys], rows)
    assert reader.rows.tolist() == list(range(300))
    with pytest.raises(ValueError, match="read-only"):
        reader.select().rows[0] = 5
    given = np.arange(5)
    view = reader.select(rows=given)
    given[0] = 200
    assert view.rows[0] == 0
    classes, fields = reader.classes, reader.fields
    classes.clear(), fields.clear()
    assert len(reader.classes) == 10
    assert list(reader.fields) == ["embedding"]


@pytest.mark.parametrize("mapping", ["auto", "never"])
def test_arrays_outlive_their_store(make, mapping):
    store, keys, rows = make()
    reader = embstore.open(store.path, mapping=mapping)
    array, row = reader.array(), reader[keys[299]]
    reader.close()
    del reader
    store.delete(keys[:1])
    store.compact()
    store.close()
    del store
    gc.collect()
    np.testing.assert_array_equal(array, rows)
    np.testing.assert_array_equal(row, rows[299])


# -- nearest ----------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16", "int8"])
def test_nearest_in_other_dtypes(path, rng, metric, dtype):
    values = rng.integers(-100, 100, (200, 4)).astype("float32" if dtype == "bfloat16" else dtype)
    fields = {"f": embstore.FieldSpec(shape=(2, 2), dtype=dtype)}
    with embstore.open(path, "w-", config={}, fields=fields) as store:
        store.append([f"{i}:c" for i in range(200)], values.reshape(200, 2, 2), casting="same_kind")
        store.delete(["199:c"])
        query = values[17].astype(np.float64)
        found = store.select().nearest(query, k=199, metric=metric)
        exact = values[:199].astype(np.float64)
        scores = {
            "dot": exact @ query,
            "cosine": exact @ query / np.linalg.norm(exact, axis=1) / np.linalg.norm(query),
            "euclidean": np.linalg.norm(exact - query, axis=1),
        }[metric]
        np.testing.assert_allclose(found.scores, np.sort(scores)[:: 1 if metric == "euclidean" else -1], atol=1e-2)
        np.testing.assert_allclose(scores[found.rows], found.scores, atol=1e-2)
        assert sorted(found.rows.tolist()) == list(range(199))


def test_nearest_of_vectors_far_from_zero(path):
    """Distances are small beside the vectors' lengths: expanding the square must not lose them."""
    rows = np.full((50, 16), 1000, np.float32)
    rows[:, 0] += np.arange(50) / 8
    with embstore.open(path, "w-", config={}) as store:
        store.append([f"{i}:c" for i in range(50)], rows)
        found = store.select().nearest(rows[20], k=5, metric="euclidean")
        assert found.rows[0] == 20
        assert set(found.rows.tolist()) == {18, 19, 20, 21, 22}
        np.testing.assert_allclose(np.sort(found.scores), [0, 0.125, 0.125, 0.25, 0.25], atol=1e-3)


def test_nearest_with_a_zero_row_and_a_zero_query(path):
    with embstore.open(path, "w-", config={}) as store:
        store.append(["zero:c", "one:c"], np.array([[0, 0], [1, 0]], np.float32))
        assert store.select().nearest([1, 0], k=2).keys == ["one:c", "zero:c"]
        assert np.isfinite(store.select().nearest([0, 0], k=2).scores).all()


@pytest.mark.parametrize(
    ("query", "options", "error"),
    [
        (np.ones(7), {}, errors.ShapeError),
        (np.ones((2, 9)), {}, errors.ShapeError),
        (np.ones((1, 1, 8)), {}, errors.ShapeError),
        (np.float32(3), {}, errors.ShapeError),
        (np.full(8, np.nan), {}, errors.NonFiniteError),
        (np.ones(8), {"k": 0}, ValueError),
        (np.ones(8), {"metric": "manhattan"}, ValueError),
        (np.ones(8), {"field": "nope"}, errors.UnknownFieldError),
    ],
)
def test_a_search_that_is_refused(make, query, options, error):
    """Also where there is nothing to search."""
    store, _, _ = make()
    for view in (store.select(), store.select(rows=[])):
        with pytest.raises(error):
            view.nearest(query, **options)


# -- split and sample -------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 4), max_size=60),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.integers(0, 2**32),
    st.booleans(),
)
def test_a_split_gives_each_place_to_one_part(strata, weights, seed, grouped):
    ratios = {f"p{i}": w / sum(weights) for i, w in enumerate(weights)}
    groups = [i // 3 for i in range(len(strata))] if grouped else None

    def split():
        return split_rows(len(strata), ratios, rng=np.random.default_rng(seed), strata=strata, groups=groups)

    parts = split()
    assert np.concatenate(list(parts.values())).size == len(strata)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(strata)))
    assert all((np.diff(part) > 0).all() for part in parts.values())
    assert {n: p.tolist() for n, p in parts.items()} == {n: p.tolist() for n, p in split().items()}
    owner = {place: name for name, part in parts.items() for place in part.tolist()}
    if grouped:
        assert all(owner[place] == owner[place // 3 * 3] for place in owner)
    else:
        for stratum in set(strata):
            places = [i for i, s in enumerate(strata) if s == stratum]
            for name, ratio in ratios.items():
                assert abs(sum(owner[p] == name for p in places) - ratio * len(places)) <= 1


def test_small_classes_reach_every_part_on_average(make):
    """Where each class has a few rows, a part's share of all rows is still near its ratio."""
    store, keys, _ = make(300)
    store.set_column("speaker", keys, [f"s{i % 150}" for i in range(300)])
    parts = store.select().split({"train": 0.8, "test": 0.2}, rng=np.random.default_rng(0), by="speaker")
    assert 30 <= len(parts["test"]) <= 90


@pytest.mark.parametrize(
    "ratios",
    [{"a": float("nan"), "b": 1.0}, {"a": float("inf")}, {"a": 0.5, "b": 0.6}, {"a": 0.8}, {"a": 1.2, "b": -0.2}, {}],
)
def test_ratios_that_are_refused(make, ratios):
    store, _, _ = make()
    with pytest.raises(ValueError, match="ratios"):
        store.select().split(ratios, rng=np.random.default_rng(0))


def test_splits_do_not_draw_from_global_state(make):
    store, _, _ = make()
    before = np.random.get_state()[1].tolist()
    store.select().split({"a": 0.5, "b": 0.5}, rng=np.random.default_rng(0))
    store.select().sample(5, rng=np.random.default_rng(0))
    assert np.random.get_state()[1].tolist() == before
    with pytest.raises(TypeError):
        store.select().split({"a": 1.0})
    with pytest.raises(errors.UnknownColumnError):
        store.select().split({"a": 1.0}, rng=np.random.default_rng(0), by="nope")


# -- while the store moves on -----------------------------------------------------------------


def test_a_view_of_an_earlier_commit_stays_what_it_was(make):
    store, keys, rows = make()
    view = store.select()
    store.append(["new:class_0"], rows[:1], columns={"split": "x"})
    store.append(keys[:2], rows[2:4], columns={"split": "y"}, if_exists="replace")
    store.set_column("split", list(store), ["z"] * 301)
    assert view.keys == keys
    np.testing.assert_array_equal(view.to_numpy(), rows)
    np.testing.assert_array_equal(store[keys[:2]], rows[2:4])
    assert len(store.select()) == 301
    assert set(view[2:].column("split")) == {"z"}


def test_a_view_after_an_erase_of_others_survives_a_pickle(make):
    store, keys, rows = make()
    keep, gone = store.select(keys=keys[10:20]), store.select(keys=keys[:10])
    both = pickle.dumps(keep), pickle.dumps(gone)
    store.erase(keys[5:7])
    np.testing.assert_array_equal(keep.to_numpy(), rows[10:20])
    np.testing.assert_array_equal(pickle.loads(both[0]).to_numpy(), rows[10:20])
    for read in (gone.to_numpy, lambda: gone.keys, lambda: gone[5:].to_numpy(), pickle.loads(both[1]).to_numpy):
        with pytest.raises(errors.StoreChangedError) as caught:
            read()
        assert caught.value.path == store.path
    np.testing.assert_array_equal(store.select(keys=keys[:5]).to_numpy(), rows[:5])
    store.erase(keys[19:20])  # a second one, after the view was found sound
    with pytest.raises(errors.StoreChangedError):
        keep.to_numpy()


def test_a_view_pickled_before_the_store_grew(make):
    store, keys, rows = make()
    data = pickle.dumps(store.select())
    store.append(["new:class_0"], rows[:1], columns={"split": "x"})
    again = pickle.loads(data)
    assert again.keys == keys
    assert len(again.store) == 301
    same = copy.copy(again)
    assert same.rows.tolist() == again.rows.tolist()


def test_a_view_is_unpickled_in_another_process(make, tmp_path):
    store, _, rows = make()
    (tmp_path / "view.pkl").write_bytes(pickle.dumps(store.select(classes="class_2")))
    code = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).to_numpy().sum(dtype='float64'))"
    assert float(python(code, tmp_path / "view.pkl")) == rows[2::10].sum(dtype="float64")


# -- columns and fields -----------------------------------------------------------------------


def test_a_column_may_change_its_type(make):
    store, keys, _ = make()
    for values in (np.arange(300), np.arange(300) / 2, [f"é{i}" for i in range(300)], np.arange(300) % 2 == 0):
        store.set_column("c", keys[::-1], values)
        assert store.select().column("c").tolist() == list(values)[::-1]
        assert embstore.open(store.path, check="all").select().column("c").tolist() == list(values)[::-1]
    assert store.columns["c"] == "bool"
    assert embstore.verify(store.path).ok


def test_one_value_stands_for_all(make):
    store, keys, rows = make()
    store.set_column("fold", keys, 3)
    assert set(store.select().column("fold").tolist()) == {3}
    store.append(["new:class_0", "newer:class_0"], rows[:2], columns={"split": "x", "fold": 4})
    assert store.select(where={"fold": 4}).keys == ["new:class_0", "newer:class_0"]


def test_a_field_added_to_an_empty_store(path):
    with embstore.open(path, "w-", config={}) as store:
        store.add_field("f", [], np.empty((0, 3), np.float32))
        store.set_column("n", [], np.empty(0, np.int64))
        assert store.columns == {"n": "int64"}
        assert store.fields["f"].shape == (3,)
        store.append(["a:b"], {"f": np.ones((1, 3), np.float32)}, columns={"n": 1})
        assert store.select(where={"n": 1}).to_numpy().tolist() == [[1, 1, 1]]


# -- the writer -------------------------------------------------------------------------------


def test_the_writer_commits_by_time_and_by_size(make, monkeypatch):
    store, _, _ = make(0, columns=False)
    now = [100.0]
    monkeypatch.setattr("embstore._engine.write.row_writer.time.monotonic", lambda: now[0])
    with store.writer(interval=2.0, max_bytes=200) as writer:
        writer.add("a:c", np.ones(8, np.float32))
        now[0] += 1.9
        writer.add("b:c", np.ones(8, np.float32))
        assert len(store) == 0
        now[0] += 0.2
        writer.add("c:c", np.ones(8, np.float32))
        assert len(store) == 3
        for i in range(7):  # 32 bytes each
            writer.add(f"{i}:c", np.ones(8, np.float32))
        assert len(store) == 10
        writer.add("d:c", np.ones(8, np.float32))
    assert len(embstore.open(store.path)) == 11


def test_the_writer_keeps_what_could_not_be_committed(make):
    store, _, _ = make(0, columns=False)
    writer = store.writer(interval=1000)
    writer.add("a:c", np.ones(8, np.float32))

    full = OSError(28, "No space left on device")
    with stopped_at("write", error=full), pytest.raises(errors.StorageFullError):
        writer.flush()
    writer.add("b:c", np.ones(8, np.float32))
    assert writer.flush().appended == 2
    assert list(embstore.open(store.path)) == ["a:c", "b:c"]
    assert writer.flush().appended == 0


def test_a_buffer_may_be_used_again(make):
    store, _, _ = make(0, columns=False)
    buffer = np.zeros(8, np.float32)
    with store.writer(interval=1000) as writer:
        for i in range(5):
            buffer[:] = i
            writer.add(f"{i}:c", buffer)
    assert store.array()[:, 0].tolist() == [0, 1, 2, 3, 4]


# -- keys and columns as they come -------------------------------------------------------------

KEYS_AS = {
    "list": list,
    "array": np.array,
    "objects": lambda keys: np.array(keys, dtype=object),
    "generator": iter,
    "dict": lambda keys: dict.fromkeys(keys).keys(),
    "Key": lambda keys: [embstore.Key.parse(key) for key in keys],
    "Series": lambda keys: pytest.importorskip("pandas").Series(keys, index=range(7, 7 + len(keys))),
    "Index": lambda keys: pytest.importorskip("pandas").Index(keys),
    "polars": lambda keys: pytest.importorskip("polars").Series(keys),
}


@pytest.mark.parametrize("made", KEYS_AS.values(), ids=KEYS_AS)
@pytest.mark.parametrize("places", [[4, 0, 299], [7], []], ids=str)
def test_a_store_takes_keys_in_every_form(make, made, places):
    store, keys, rows = make()
    np.testing.assert_array_equal(store[made([keys[i] for i in places])], rows[places])


@pytest.mark.parametrize(
    "bad",
    [3, [3, 4], {"file_0001:class_1"}, b"file_0001:class_1", None, np.eye(2), [None], (), ("file_0001:class_1",)],
    ids=str,
)
def test_other_things_are_no_keys(make, bad):
    store, _, _ = make(30)
    with pytest.raises(TypeError, match="expected a"):
        store[bad]


def test_keys_are_columns_too(make):
    store, keys, _ = make(30)
    view = store.select()[::-1]
    for name, wanted in {"key": view.keys, "file_id": view.file_ids, "class_name": view.class_names}.items():
        assert view.column(name).tolist() == wanted
        assert view.column(name).dtype == object
        assert view.select(where={name: wanted[3]}).keys[0] == view.keys[3]
    with pytest.raises(errors.UnknownColumnError, match="columns: split, key, file_id, class_name"):
        view.column("nothing")
    parts = store.select().split({"a": 0.5, "b": 0.5}, rng=0, by=None, group="file_id")
    assert sorted(key for part in parts.values() for key in part) == keys


@pytest.mark.parametrize("by", ["class", "class_name", "split"])
def test_so_many_rows_of_each_value_are_drawn(make, by):
    view = make()[0].select()
    drawn = view.sample(5, rng=0, by=by)
    values = drawn.column("class_name" if by == "class" else by).tolist()
    names = list(dict.fromkeys(view.column("class_name" if by == "class" else by)))
    assert values == [name for name in names for _ in range(5)]
    assert len(set(drawn.keys)) == len(drawn)
    assert drawn.keys == view.sample(5, rng=np.random.default_rng(0), by=by).keys != view.sample(5, rng=1, by=by).keys
    assert len(view.sample(0, rng=0, by=by)) == len(view[:0].sample(3, rng=0, by=by)) == 0
    with pytest.raises(ValueError, match=r"expected at least 11 rows of each .*: '(class_0|val)' has (4|10)"):
        view[:32].sample(11, rng=0, by=by)


def test_every_rng_takes_a_seed():
    """Each public function with a parameter `rng` says that it takes an int."""
    places = {name: getattr(embstore, name) for name in embstore.__all__ if name != "errors"}
    places |= {f"analysis.{name}": getattr(analysis, name) for name in analysis.__all__}
    found = {}
    for name, value in places.items():
        for function in [value, *(vars(value).values() if isinstance(value, type) else ())]:
            if inspect.isfunction(function) and (rng := inspect.signature(function).parameters.get("rng")):
                found[f"{name}.{function.__name__}"] = rng.annotation
    assert {"check.check", "View.sample", "View.split"} < found.keys()
    assert all(annotation.startswith("Rng") for annotation in found.values()), found


# -- what is said -----------------------------------------------------------------------------


def test_what_is_shown(make, tmp_path, capsys):
    store, keys, _ = make()
    store.delete(keys[:2])
    for text in (repr(store), store._repr_html_()):
        for part in (str(store.path), "298", "2 deleted", "10", "class_2", "embedding", "float32", "split", "duration"):
            assert part in text
    assert "embedding float32 (8,)" in repr(store)
    assert "sample_rate=16000" in repr(store)
    assert "<table>" in store._repr_html_()
    assert "Config" in store.config._repr_html_()
    view = store.select(classes=["class_1", "class_2"])
    for text in (repr(view), view._repr_html_()):
        for part in ("59", "298", "class_1", "class_2", str(store.path)):
            assert part in text
    cache = embstore.Cache(tmp_path / "cache")
    assert "cache" in repr(cache)
    assert str(cache.path) in cache._repr_html_()
    evil = "<script>&'\""
    with embstore.open(tmp_path / f"{'<b>'}.zarr", "w-", config={evil: evil}) as other:
        other.append([f"a:{evil}"], np.ones((1, 2), np.float32))
        found = other.select().nearest(np.ones(2))
        report = embstore.verify(other.path)
        counts = {"samples": 1, "hits": 0, "encoded": 0, "stale": 0, "rows": 1, "nbytes": 8, "seconds": 0.5}
        failed = (EmbedResult._failure("a:b", "a", evil),)
        result = EmbedResult(path=other.path, config=other.config, reason="", failed=failed, **counts)
        assert "<pre>" in report._repr_html_()
        for part in ("<th", "samples", "failed", "a:b", "0.5"):
            assert part in result._repr_html_()
        for part in ("<th", "rank", "score", "a:"):
            assert part in found._repr_html_()
        for shown in (other, other.select(), other.config, found, report, result):
            assert "<script>" not in shown._repr_html_()
            assert "<b>" not in shown._repr_html_()
    assert "class_0" in repr(store)
    store.close()
    assert "closed" in repr(store)
    assert capsys.readouterr().out == ""


def test_it_logs_and_never_prints(make, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    store, keys, _ = make()
    store.erase(keys[:2])
    store.compact()
    reader = embstore.open(store.path)
    reader.select().to_numpy()
    assert any("compacted" in record.getMessage() for record in caplog.records)
    assert {record.name for record in caplog.records} == {"embstore"}
    assert logging.getLogger("embstore").handlers == []
    assert capfd.readouterr() == ("", "")


# -- the whole of a view's words ---------------------------------------------------------------


def test_selections_are_narrowed_one_by_the_other(make):
    store, keys, rows = make()
    by_column = store.select(where={"split": ["train", "val"]}, classes="class_0")
    assert by_column.rows.tolist() == [i for i in range(0, 300, 10) if i % 3 in (0, 2)]
    assert store.select(where={"split": lambda values: values == "test"}).rows.tolist() == list(range(1, 300, 3))
    np.testing.assert_array_equal(by_column.to_numpy(), rows[by_column.rows])
    assert len(store.select().select(classes="class_3").select(where={"split": "train"})) == 10
    for options, error in (
        ({"classes": "class_11"}, errors.UnknownClassError),
        ({"where": {"fold": 1}}, errors.UnknownColumnError),
        ({"keys": keys, "rows": [1]}, TypeError),
    ):
        with pytest.raises(error):
            store.select(**options)


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
    with pytest.raises(ValueError, match="expected n from 0 to 300"):
        store.select().sample(301, rng=np.random.default_rng(1))


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_nearest_is_exact(make, rng, metric, monkeypatch):
    monkeypatch.setattr("embstore._outputs.neighbors._BLOCK_BYTES", 1000)  # many blocks
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


def test_views_do_not_survive_a_compaction(make):
    """Neither those of the writer nor, once it has refreshed, those of a reader."""
    store, keys, rows = make()
    reader = embstore.open(store.path)
    view, seen = store.select(keys=keys[100:]), reader.select()
    store.append(["new:c"], rows[:1], columns={"split": "x"})
    reader.refresh()
    np.testing.assert_array_equal(seen.to_numpy(), rows)
    store.delete([keys[0]])
    np.testing.assert_array_equal(view.to_numpy(), rows[100:])
    store.compact()
    with pytest.raises(errors.StoreChangedError):
        view.to_numpy()
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


def test_set_column_and_add_field_want_every_live_row(make, rng):
    store, keys, _ = make()
    store.delete(keys[:2])
    with pytest.raises(errors.MissingKeysError) as caught:
        store.set_column("score", keys[3:], np.zeros(297, int))
    assert caught.value.keys == (keys[2],)
    shuffled = [keys[i] for i in rng.permutation(np.arange(2, 300))]
    store.set_column("score", shuffled, [int(key[5:9]) for key in shuffled])
    assert store.select().column("score").tolist() == list(range(2, 300))
    store.add_field("half", shuffled, np.array([[int(key[5:9])] for key in shuffled], np.float16))
    assert store.select().to_numpy("half")[:, 0].tolist() == list(range(2, 300))
    assert store[keys[5]].tolist() == store[keys[5], "embedding"].tolist()  # the field that was added changes nothing
    assert store.fetch([keys[5]], "half").tolist() == store[[keys[5]], "half"].tolist() == [[5]]


def test_the_writer_commits_when_told_and_at_the_end_of_its_block(make):
    """Also where the block ends in an error, which is the one that is seen."""
    store, _, _ = make(0, columns=False)
    one = np.ones(8, np.float32)
    with store.writer(interval=1000) as writer:
        writer.add("a:c", one)
        assert len(store) == 0
        writer.flush()
        assert len(store) == 1
        writer.add("b:c", one)
    assert list(store) == ["a:c", "b:c"]
    with store.writer(interval=0) as writer:
        writer.add("c:c", one)
        assert len(store) == 3
    with pytest.raises(LookupError, match="mine"), store.writer(interval=1000) as writer:  # noqa: PT012
        writer.add("d:c", one)
        raise LookupError("mine")
    assert "d:c" in embstore.open(store.path)
    with pytest.raises(errors.KeysExistError), store.writer() as writer:
        writer.add("d:c", one)


@pytest.mark.parametrize("how", ["compact", "erase"])
@pytest.mark.parametrize("worth_reading", [0, 2**40], ids=["read", "mapped"])
def test_a_mapped_reader_copies_its_commit_whatever_became_of_the_files(make, monkeypatch, how, worth_reading):
    monkeypatch.setattr("embstore._engine.read.mapped_column._WORTH_READING", worth_reading)
    store, keys, rows = make()
    reader = embstore.open(store.path)
    view = reader.select()
    np.testing.assert_array_equal(view.to_numpy(), rows)
    store.delete(keys[:3])
    if how == "compact":
        store.compact()
    else:
        store.erase(keys[3:5])
    np.testing.assert_array_equal(view.to_numpy(), rows)


def test_a_seed_stands_for_its_generator(make):
    store, _, _ = make()
    view, ratios = store.select(), {"a": 0.5, "b": 0.5}
    for seed in (0, 3, np.int64(3), 2**70):
        rng = np.random.default_rng(int(seed))
        assert view.sample(9, rng=seed).keys == view.sample(9, rng=np.random.default_rng(int(seed))).keys
        parts = view.split(ratios, rng=rng)
        assert {name: part.keys for name, part in view.split(ratios, rng=seed).items()} == {
            name: part.keys for name, part in parts.items()
        }
        assert view.split(ratios, rng=rng)["a"].keys != parts["a"].keys  # a generator goes on, and is no seed
    assert view.sample(9, rng=0).keys != view.sample(9, rng=1).keys


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (None, "found NoneType"),
        (0.0, "found float"),
        ("0", "found str"),
        (True, "found bool"),
        (np.random.RandomState(0), r"found numpy\.random.*RandomState"),
        (-1, "at least 0, found -1"),
    ],
    ids=str,
)
def test_what_is_no_seed_is_refused(make, given, error):
    store, _, _ = make()
    view = store.select()
    for call in (
        lambda: view.sample(3, rng=given),
        lambda: view.split({"a": 1.0}, rng=given),
        lambda: split_rows(3, {"a": 1.0}, rng=given),
    ):
        with pytest.raises(ValueError if given == -1 else TypeError, match=error):
            call()


def test_a_column_may_fill_what_it_leaves_out(make):
    store, keys, _ = make()
    store.delete(keys[:1])
    store.set_column("score", keys[1:3], [1.5, 2.5], fill=-1.0)
    assert store.select().column("score").tolist() == [1.5, 2.5, *[-1.0] * 297]
    store.set_column("note", [], [], fill="none")
    assert set(store.select().column("note")) == {"none"}
