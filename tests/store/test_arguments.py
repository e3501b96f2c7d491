"""Arguments of other types than expected: read as they are meant, or refused with what is expected."""

from importlib.util import find_spec

import numpy as np
import pytest

import embstore
from embstore import Key
from embstore.errors import ReadOnlyError

ROWS = np.arange(15, dtype=np.float32).reshape(5, 3)
KEYS = [f"f{i}:c{i % 2}" for i in range(5)]
COLUMNS = {
    "year": np.array([1, 2, 2, 0, 3]),
    "gain": np.array([0.5, 0.25, 1.0, 0.1, 0.5], np.float32),
    "split": ["train", "test", "train", "val", "2"],
    "clean": np.array([True, False, True, True, False]),
}


@pytest.fixture
def store(tmp_path):
    with embstore.open(tmp_path / "a.zarr", "w-", config={"e": 1}) as made:
        made.append(KEYS, ROWS, columns=COLUMNS)
        yield made


# -- row numbers ------------------------------------------------------------------------------


BAD_ROWS = {
    "floats": [1.9],
    "whole floats": np.array([1.0]),
    "text": ["3"],
    "mask": np.array([False, True, False, False, True]),
    "list of bools": [True, False],
    "one number": 3,
    "none": None,
    "two dimensions": [[0, 1]],
    "generator": (i for i in range(2)),
    "set": {1, 2},
    "dict": {1: 2}.keys(),
}


@pytest.mark.parametrize("rows", BAD_ROWS.values(), ids=BAD_ROWS)
def test_row_numbers_are_lists_of_integers(store, rows):
    readers = [store.take] + ([] if rows is None else [lambda given: store.select(rows=given)])
    for read in readers:
        with pytest.raises(TypeError, match=r"row numbers"):
            read(rows)


@pytest.mark.parametrize("name", ["range", "series", "index", "tensor", "uint8", "list", "tuple", "empty"])
def test_row_numbers_of_every_kind_of_list(store, name):
    rows = _as(name, [3, 1]) if name not in ("empty", "range") else {"empty": [], "range": range(1, 3)}[name]
    expected = ROWS[[int(row) for row in rows]]
    np.testing.assert_array_equal(store.take(rows), expected)
    np.testing.assert_array_equal(store.select(rows=rows).to_numpy(), expected)


def _as(name, values):
    if name in ("series", "index"):
        pandas = pytest.importorskip("pandas")
        return pandas.Series(values, index=range(7, 7 + len(values))) if name == "series" else pandas.Index(values)
    if name == "tensor":
        return pytest.importorskip("torch").tensor(values)
    makers = {
        "uint8": lambda given: np.array(given, np.uint8),
        "array": np.array,
        "list": list,
        "tuple": tuple,
        "set": set,
        "frozenset": frozenset,
        "dict keys": lambda given: dict.fromkeys(given).keys(),
        "generator": lambda given: (value for value in given),
        "map": lambda given: map(values[0].__class__, given),
    }
    return makers[name](values)


@pytest.mark.parametrize("places", [None, 1, np.int64(1), True, "a", [[0, 1]]], ids=repr)
def test_a_view_is_indexed_by_places(store, places):
    with pytest.raises(TypeError, match=r"expected a slice, a list of places or a mask"):
        store.select()[places]


@pytest.mark.parametrize("indices", [[1.9], ["3"], [True, False], [[0, 1]]], ids=repr)
def test_samples_of_a_dataset_are_integers(store, indices):
    pytest.importorskip("torch")
    from embstore.torch import EmbeddingDataset

    other = embstore.align(a=store.select(), b=store.select())
    for dataset in (EmbeddingDataset(store.select()), other):
        with pytest.raises(TypeError, match="row numbers"):
            dataset.__getitems__(indices)


# -- conditions -------------------------------------------------------------------------------

KINDS = ["list", "tuple", "set", "frozenset", "array", "series", "index", "dict keys", "generator", "map"]


@pytest.mark.parametrize("kind", [*KINDS, "tensor"])
def test_a_condition_is_any_list_of_values(store, kind):
    """Five values, as many as rows: they must not be compared place by place."""
    wanted = [3, 9, 0, 8, 7]
    assert store.select(where={"year": _as(kind, wanted)}).rows.tolist() == [3, 4]
    assert store.select(where={"gain": _as(kind, [0.5, 4.0, 0.25, 8.0, 9.0])}).rows.tolist() == [0, 1, 4]
    if kind != "tensor":
        names = ["val", "x", "test", "y", "z"]
        assert store.select(where={"split": _as(kind, names)}).rows.tolist() == [1, 3]


def test_a_condition_is_a_range(store):
    assert store.select(where={"year": range(5)}).rows.tolist() == [0, 1, 2, 3, 4]
    assert store.select(where={"year": range(0, 2)}).rows.tolist() == [0, 3]


@pytest.mark.parametrize("value", [2, np.int64(2), np.array(2), 2.0, "tensor"], ids=str)
def test_a_condition_is_a_single_value(store, value):
    value = pytest.importorskip("torch").tensor(2) if isinstance(value, str) else value
    assert store.select(where={"year": value}).rows.tolist() == [1, 2]
    assert store.select(where={"gain": np.float32(0.1)}).rows.tolist() == [3]
    assert store.select(where={"split": np.str_("2")}).rows.tolist() == [4]
    assert store.select(where={"clean": np.bool_(True)}).rows.tolist() == [0, 2, 3]
    assert store.select(where={"clean": [False]}).rows.tolist() == [1, 4]


@pytest.mark.parametrize(
    ("column", "condition"),
    [
        ("year", "2"),
        ("year", ["1", "2"]),
        ("year", b"2"),
        ("year", None),
        ("year", [None]),
        ("year", {"min": 1}),
        ("year", [True, False, True, False, False]),
        ("year", np.array([True, False, True, False, False])),
        ("year", [[1, 2]]),
        ("gain", "0.5"),
        ("gain", [True]),
        ("split", 2),
        ("split", [2]),
        ("split", np.array([1, 2])),
        ("split", True),
        ("split", None),
        ("split", b"train"),
        ("clean", "True"),
        ("clean", ["yes"]),
    ],
    ids=repr,
)
def test_a_condition_that_no_value_of_the_column_can_meet_is_refused(store, column, condition):
    with pytest.raises(TypeError, match=rf"expected (text|a number) as the condition on '{column}', found"):
        store.select(where={column: condition})
    with pytest.raises(TypeError, match=rf"as the condition on '{column}'"):
        store.select()[:0].select(where={column: condition})


@pytest.mark.parametrize("where", ["size > 3", ["year"], ("year", 2), 3, {"year"}], ids=repr)
def test_conditions_are_a_mapping(store, where):
    with pytest.raises(TypeError, match=r"expected where to be a mapping of columns to conditions.*lambda"):
        store.select(where=where)
    with pytest.raises(TypeError, match="expected where to be a mapping"):
        store.select().select(where=where)


# -- keys and values --------------------------------------------------------------------------

NOT_KEYS = [None, 3, 1.5, "f0:c0", b"f0:c0", Key("f0", "c0")]


@pytest.mark.parametrize("keys", NOT_KEYS, ids=repr)
@pytest.mark.parametrize(
    "call",
    [
        lambda s, keys: s.find(keys),
        lambda s, keys: s.rows_of(keys),
        lambda s, keys: s.missing(keys),
        lambda s, keys: s.fetch(keys),
        lambda s, keys: s.append(keys, ROWS, columns=COLUMNS),
        lambda s, keys: s.delete(keys),
        lambda s, keys: s.erase(keys),
        lambda s, keys: s.set_column("n", keys, 1),
        lambda s, keys: s.add_field("f", keys, ROWS),
    ],
    ids=["find", "rows_of", "missing", "fetch", "append", "delete", "erase", "set_column", "add_field"],
)
def test_keys_are_a_list(store, call, keys):
    before = store.snapshot.record.commit_id
    with pytest.raises(TypeError, match="expected a list of keys, found"):
        call(store, keys)
    assert store.snapshot.record.commit_id == before
    assert len(store) == 5


@pytest.mark.parametrize("kind", ["dict keys", "generator", "map", "array", "series", "index"])
def test_keys_of_every_kind_of_list(store, kind):
    wanted = ["f3:c1", "f0:c0"]
    assert store.find(_as(kind, wanted)).tolist() == [3, 0]
    assert store.rows_of(_as(kind, wanted)).tolist() == [3, 0]
    assert store.missing(_as(kind, [*wanted, "x:y"])) == ["x:y"]
    assert store.select(keys=_as(kind, wanted)).rows.tolist() == [3, 0]
    np.testing.assert_array_equal(store.fetch(_as(kind, wanted)), ROWS[[3, 0]])
    store.set_column("n", _as(kind, wanted), [7, 8], fill=0)
    assert store.select().column("n").tolist() == [8, 0, 0, 7, 0]
    store.add_field("copy", _as(kind, KEYS), ROWS)
    np.testing.assert_array_equal(store.take([0], "copy"), ROWS[:1])
    assert store.delete(_as(kind, wanted)) == 2
    assert len(store.erase(_as(kind, ["f1:c1"])).rows) == 1


@pytest.mark.parametrize("columns", [["year"], "year", 3], ids=repr)
def test_columns_are_a_mapping(store, columns):
    with pytest.raises(TypeError, match="expected columns to be a mapping of column names to values"):
        store.append(["x:y"], ROWS[:1], columns=columns)


@pytest.mark.parametrize("values", [[], (), {"embedding": []}], ids=repr)
def test_nothing_is_appended_by_empty_lists(store, values):
    before = store.snapshot.record.commit_id
    assert store.append([], values) == embstore.AppendResult()
    assert store.snapshot.record.commit_id == before
    with embstore.open(store.path) as reader, pytest.raises(ReadOnlyError):
        reader.append([], values)
    with embstore.open(store.path.parent / "b.zarr", "w-", config={"e": 1}) as fresh:
        assert fresh.append([], values) == embstore.AppendResult()
        assert fresh.append(KEYS, ROWS).appended == 5


# -- paths ------------------------------------------------------------------------------------


def test_a_tilde_is_the_home_folder(store, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    assert embstore.open("~/a.zarr").path == store.path
    assert embstore.verify("~/a.zarr").ok
    assert embstore.salvage("~/a.zarr", "~/saved.zarr").rows_kept == 5
    assert embstore.merge("~/merged.zarr", "~/a.zarr").appended == 5
    with embstore.open("~/new/b.zarr", "w-", config={"e": 2}) as made:
        assert made.path == tmp_path / "new" / "b.zarr"
    assert embstore.Cache("~/cache").path == tmp_path / "cache"
    if find_spec("pyarrow"):
        assert store.select().to_parquet("~/a.parquet") == tmp_path / "a.parquet"
    assert list(work.iterdir()) == []
