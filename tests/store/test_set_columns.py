"""`set_columns`: several columns in one commit, compared with the stored ones, with a fill for rows without a value."""

import numpy as np
import pytest

import embstore
from embstore import errors
from embstore._engine.format.record import ColumnSpec, fill_text

ROWS = np.ones((4, 2), np.float32)
KEYS = ["a", "b:x", "c", "d:y"]


@pytest.fixture
def store(path):
    with embstore.open(path, "w-", config={"encoder": "e"}) as opened:
        opened.append(
            KEYS, ROWS, columns={"says": ["woof", "meow", "", "moo"], "age": [1, 2, 3, 4], "w": [0.5, 1, 2, np.nan]}
        )
        opened.set_columns({}, fill={"age": -1})
        yield opened


def commit(store):
    return embstore.open(store.path).snapshot.record.commit_id


def values(store, name):
    return store.select().column(name).tolist()


SAME = {
    "lists": {"says": ["woof", "meow", "", "moo"], "age": [1, 2, 3, 4], "w": [0.5, 1, 2, np.nan]},
    "arrays": {"age": np.array([1, 2, 3, 4], np.int16), "w": np.array([0.5, 1, 2, np.nan])},
    "iterators": {"age": iter([1, 2, 3, 4])},
    "nothing": {},
}


@pytest.mark.parametrize("given", SAME)
def test_equal_values_are_not_written(store, given):
    before = commit(store)
    assert store.set_columns(SAME[given], fill={"age": -1}) == ()
    assert commit(store) == before


def test_all_columns_change_in_one_commit(store):
    seen = []
    apply = store._session.commit
    store._session.commit = lambda plan: (seen.append(plan), apply(plan))
    assert store.set_columns({"says": "x", "age": [1, 2, 3, 4], "w": 0, "new": True}) == ("says", "w", "new")
    assert len(seen) == 1
    again = embstore.open(store.path)
    assert [values(again, name) for name in ("says", "age", "w", "new")] == [
        ["x"] * 4,
        [1, 2, 3, 4],
        [0.0] * 4,
        [True] * 4,
    ]
    assert embstore.verify(store.path).ok


def test_rows_that_are_not_given_keep_their_values_and_take_the_fill_of_a_new_column(store):
    chosen = store.select(keys=["d:y", "a"])
    for keys in (["d:y", "a:_"], chosen):
        store.set_columns({"age": [40, 10], "note": ["last", "first"], "z": [4.0, 1.0]}, keys, fill={"n": 7})
    assert values(store, "age") == [10, 2, 3, 40]
    assert values(store, "note") == ["first", "", "", "last"]
    assert np.array_equal(values(store, "z"), [1, np.nan, np.nan, 4], equal_nan=True)
    assert values(store, "n") == [7] * 4


FILLS = {"says": "", "age": -1, "w": np.nan}
WAYS = {
    "append": lambda s, tmp: s.append(["new"], ROWS[:1]),
    "some": lambda s, tmp: s.append(["new"], ROWS[:1], columns={"w": np.nan}),
    "writer": lambda s, tmp: write(s),
    "merge": lambda s, tmp: merge(s, tmp),
    "import": lambda s, tmp: imported(s, tmp),
}


def write(store):
    with store.writer() as writer:
        writer.add("new", ROWS[0])


def merge(store, tmp):
    with embstore.open(tmp / "part", "w-", config={"encoder": "e"}) as part:
        part.append(["new"], ROWS[:1])
    embstore.merge(store.path, tmp / "part")


def imported(store, tmp):
    np.savez(tmp / "x.npz", keys=["new"], embedding=ROWS[:1])
    embstore.import_file(tmp / "x.npz", store.path, config={"encoder": "e"})


@pytest.mark.parametrize("way", WAYS)
def test_rows_without_a_value_take_the_fill(store, tmp_path, way):
    WAYS[way](store, tmp_path)
    store.refresh()
    found = {name: store.select(keys=["new"]).column(name)[0] for name in FILLS}
    assert np.isnan(found["w"])
    assert (found["says"], found["age"]) == ("", -1)


@pytest.mark.parametrize("way", WAYS)
def test_integers_without_a_fill_need_a_value(path, tmp_path, way):
    with embstore.open(path, "w-", config={"encoder": "e"}) as store:
        store.append(KEYS, ROWS, columns={"age": 1, "w": 2.0})
        before = commit(store)
        with pytest.raises(errors.UnknownColumnError, match="set_columns"):
            WAYS[way](store, tmp_path)
        assert commit(store) == before
        with pytest.raises(errors.MissingKeysError, match="set_columns"):
            store.set_columns({"flag": [True]}, ["a"])


def replaced_by_append(store):
    store.append(["a"], ROWS[:1], if_exists="replace")


def replaced_by_a_writer(store):
    with store.writer(if_exists="replace") as writer:
        writer.add("a", ROWS[0])


@pytest.mark.parametrize("way", [replaced_by_append, replaced_by_a_writer])
def test_notes_on_content_that_are_not_kept_need_a_value_too(path, way):
    with embstore.open(path, "w-", config={"encoder": "e"}) as store:
        store.append(KEYS, ROWS, columns={"source_size": 1, "age": 2})
        before = commit(store)
        with pytest.raises(errors.UnknownColumnError, match="source_size"):
            way(store)
        assert commit(store) == before


def test_a_fill_survives_a_compaction_and_a_merge(store, tmp_path):
    store.delete(["a"])
    store.compact()
    embstore.merge(tmp_path / "copy", store.path)
    for path in (store.path, tmp_path / "copy"):
        with embstore.open(path, "r+") as again:
            again.append(["new"], ROWS[:1])
            assert again.select(keys=["new"]).column("age").tolist() == [-1]


def test_all_rows_may_get_values_of_another_dtype(store):
    assert store.set_columns({"age": ["x"] * 4, "says": "y"}) == ("age", "says")
    assert values(store, "age") == ["x"] * 4
    assert store.columns["age"] == "string"


@pytest.mark.parametrize(
    ("columns", "keys", "fill", "error"),
    [
        ({"says": "y", "age": ["x"]}, ["a"], {}, errors.DtypeError),
        ({"says": "y", "age": [1.5]}, ["a"], {}, errors.DtypeError),
        ({"says": "y", "age": [1, 2]}, ["a"], {}, errors.ShapeError),
        ({"says": "y", "1x": 1}, None, {}, errors.NameRefusedError),
        ({"says": "y", "embedding": 1}, None, {}, errors.NameRefusedError),
        ({"says": "y"}, ["a", "zz"], {}, errors.MissingKeysError),
        ({"says": "y"}, ["a", "a:_"], {}, errors.DuplicateKeysError),
        ({"says": "y"}, None, {"age": "x"}, errors.DtypeError),
        ({"says": "y"}, None, {"age": 2**70}, errors.DtypeError),
        (["says"], None, {}, TypeError),
    ],
)
def test_a_bad_column_is_refused_and_none_is_written(store, columns, keys, fill, error):
    before = commit(store)
    with pytest.raises(error):
        store.set_columns(columns, keys, fill=fill)
    assert commit(store) == before


def test_a_view_of_deleted_rows_is_refused(store):
    view = store.select()
    store.append(["a"], ROWS[:1], if_exists="replace")
    with pytest.raises(errors.StoreChangedError):
        store.set_columns({"says": "x"}, view)


TEXTS = [("string", "ß\n"), ("bool", True), ("bool", False), ("int8", -128), ("uint64", 2**64 - 1), ("float32", 0.5)]
NO_VALUES = [("int8", "128"), ("int8", "0.5"), ("int8", "true"), ("bool", "1"), ("float32", '"x"'), ("uint8", "-1")]


@pytest.mark.parametrize(("dtype", "value"), [*TEXTS, ("float64", float("inf")), ("float16", float("-inf"))])
def test_a_fill_is_text_in_the_record(dtype, value):
    spec = ColumnSpec(dtype=dtype, array="x", fill=fill_text(value))
    assert isinstance(spec.fill, str)
    assert (type(spec.fill_value), spec.fill_value) == (type(value), value)


@pytest.mark.parametrize(("dtype", "text"), [*NO_VALUES, ("float32", "x")])
def test_a_fill_of_another_dtype_is_no_record(dtype, text):
    with pytest.raises(ValueError):  # noqa: PT011 # json's own, or that of the spec
        ColumnSpec(dtype=dtype, array="x", fill=text)
