"""Arguments of other types than expected: read as they are meant, or refused with what is expected."""

import unicodedata
from importlib.util import find_spec

import numpy as np
import pytest

import embstore
from embstore import Key, errors
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
        ("clean", np.array([True, False, True, False, False])),
        ("gain", float("nan")),
        ("gain", [0.5, np.nan]),
        ("year", True),
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
        with fresh.writer() as writer:
            writer.append([], values)
            writer.append(KEYS, ROWS)
            writer.append([], values)
        assert fresh.fetch(KEYS).tolist() == ROWS.tolist()


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


# -- everything else --------------------------------------------------------------------------

HUGE = [("a", "b")] * 20_000
ODD = {"none": None, "number": 3, "float": 1.5, "text": "q:r", "bytes": b"x", "huge": HUGE, "dict": {"a": 1}}
ODD |= {"object": object(), "list of none": [None], "nested": [[1, 2]], "floats": np.ones(3), "names": ["zz"]}

CALLS = {  # each takes a store and one argument, which none of the odd values above fits, but for those that are named
    "find": (lambda s, x: s.find(x), "dict", "names"),
    "fetch": (lambda s, x: s.fetch(x),),
    "take": (lambda s, x: s.take(x),),
    "take field": (lambda s, x: s.take([0], x), "none"),
    "getitem": (lambda s, x: s[x],),
    "select rows": (lambda s, x: s.select(rows=x), "none"),
    "select keys": (lambda s, x: s.select(keys=x), "none"),
    "classes": (lambda s, x: s.select(classes=x), "none"),
    "where": (lambda s, x: s.select(where=x), "none"),
    "where a number": (lambda s, x: s.select(where={"year": x}), "number", "float", "floats"),
    "where a text": (lambda s, x: s.select(where={"split": x}), "text", "dict", "names"),
    "append keys": (lambda s, x: s.append(x, ROWS[:1], columns={n: COLUMNS[n][:1] for n in COLUMNS}), "dict", "names"),
    "append values": (lambda s, x: s.append(["q:r"], x, columns={n: v[:1] for n, v in COLUMNS.items()}),),
    "append columns": (lambda s, x: s.append(["q:r"], ROWS[:1], columns=x),),
    "if_exists": (lambda s, x: s.append(KEYS, ROWS, columns=COLUMNS, if_exists=x),),
    "casting": (lambda s, x: s.append(["q:r"], ROWS[:1] * 1.0, columns={**COLUMNS, "year": 1}, casting=x),),
    "writer interval": (lambda s, x: s.writer(interval=x), "none", "number", "float"),
    "writer max_bytes": (lambda s, x: s.writer(max_bytes=x), "number"),
    "writer if_exists": (lambda s, x: s.writer(if_exists=x),),
    "writer casting": (lambda s, x: s.writer(casting=x),),
    "writer add": (lambda s, x: s.writer().add("q:r", x),),
    "writer columns": (lambda s, x: s.writer().add("q:r", ROWS[0], columns=x),),
    "delete": (lambda s, x: s.delete(x),),
    "erase": (lambda s, x: s.erase(x),),
    "set_column name": (lambda s, x: s.set_column(x, KEYS, 1),),
    "set_column keys": (lambda s, x: s.set_column("n", x, 1, fill=2),),
    "add_field name": (lambda s, x: s.add_field(x, KEYS, ROWS),),
    "add_field values": (lambda s, x: s.add_field("more", KEYS, x),),
    "add_field spec": (lambda s, x: s.add_field("more", KEYS, ROWS, spec=x), "none"),
    "copy_fields other": (lambda s, x: s.copy_fields(x, ["embedding"]),),
    "copy_fields names": (lambda s, x: s.copy_fields(s, x),),
    "array": (lambda s, x: s.array(x), "none"),
    "array dead": (lambda s, x: s.array(dead=x),),
    "view": (lambda s, x: s.select()[x],),
    "batches": (lambda s, x: list(s.select().batches(x)), "number"),
    "sample": (lambda s, x: s.select().sample(x, rng=0), "number"),
    "split": (lambda s, x: s.select().split(x, rng=0), "dict"),
    "split by": (lambda s, x: s.select().split({"a": 1.0}, rng=0, by=x), "none"),
    "split group": (lambda s, x: s.select().split({"a": 1.0}, rng=0, group=x), "none"),
    "labels": (lambda s, x: s.select().labels(x),),
    "column": (lambda s, x: s.select().column(x),),
    "to_numpy": (lambda s, x: s.select().to_numpy(x), "none"),
    "nearest": (lambda s, x: s.select().nearest(x), "floats"),
    "nearest k": (lambda s, x: s.select().nearest(KEYS[0], x), "number"),
    "nearest metric": (lambda s, x: s.select().nearest(KEYS[0], metric=x),),
    "align": (lambda s, x: embstore.align(a=s.select(), b=x),),
    "align classes": (lambda s, x: embstore.align(a=s.select(), b=s.select(), classes=x), "none"),
    "align fields": (lambda s, x: embstore.align(a=s.select(), b=s.select(), fields=x), "none"),
    "config": (lambda s, x: embstore.open(s.path.parent / "n", "w-", config=x), "dict"),
    "fields": (lambda s, x: embstore.open(s.path.parent / "n", "w-", config={}, fields=x), "none"),
    "field": (lambda s, x: embstore.open(s.path.parent / "n", "w-", config={}, fields={"a": x}),),
    "columns": (lambda s, x: embstore.open(s.path.parent / "n", "w-", config={}, columns=x), "none"),
    "dtype": (lambda s, x: embstore.open(s.path.parent / "n", "w-", config={}, columns={"a": x}), "none"),
    "chunk_bytes": (lambda s, x: embstore.open(s.path.parent / "n", "w-", config={}, chunk_bytes=x), "number", "none"),
    "expected_rows": (lambda s, x: embstore.open(s.path.parent / "n", "w-", config={}, expected_rows=x), "number"),
    "provenance": (lambda s, x: embstore.open(s.path.parent / "n", "w-", config={}, provenance=x), "none"),
    "compression": (lambda s, x: embstore.open(s.path.parent / "n", "w-", config={}, compression=x), "none"),
    "mode": (lambda s, x: embstore.open(s.path, x),),
    "check": (lambda s, x: embstore.open(s.path, check=x),),
}


@pytest.mark.parametrize("call", CALLS)
def test_an_odd_argument_is_refused_in_few_words(store, call):
    run, *fitting = CALLS[call]
    before = store.snapshot.record.commit_id
    for name in ODD.keys() - set(fitting):
        with pytest.raises((errors.EmbstoreError, TypeError, ValueError)) as caught:
            run(store, ODD[name])
        said = str(caught.value)
        assert len(said) < 2500, (name, len(said))
        assert isinstance(caught.value, errors.EmbstoreError) or "expected" in said or "config" in said, (name, said)
    assert store.snapshot.record.commit_id == before
    assert not (store.path.parent / "n").exists() or "config" in call


@pytest.mark.parametrize("make", ["dataset", "classes", "fields", "columns"])
def test_an_odd_argument_of_a_dataset_is_refused(store, make):
    pytest.importorskip("torch")
    from embstore.torch import EmbeddingDataset

    view = store.select()
    for name, odd in ODD.items():
        if (make, name) in {("classes", "none"), ("fields", "none")}:
            continue
        arguments = {"dataset": (odd, {})}.get(make, (view, {make: odd}))
        with pytest.raises((errors.EmbstoreError, TypeError)) as caught:
            EmbeddingDataset(arguments[0], **arguments[1])
        assert len(str(caught.value)) < 2500


@pytest.mark.parametrize(("stored", "wanted"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_key_in_another_unicode_form_is_hinted_at(tmp_path, stored, wanted):
    """Both look the same in a message. macOS once wrote names in the decomposed form."""
    key = "café naïve:chien"
    with embstore.open(tmp_path / "a", "w-", config={"e": 1}) as made:
        made.append([unicodedata.normalize(stored, key), "b:x"], ROWS[:2])
        for call in (made.rows_of, made.fetch, made.delete, lambda keys: made.select(keys=keys)):
            with pytest.raises(errors.MissingKeysError, match=f"1 of them are stored in the Unicode form {stored}"):
                call([unicodedata.normalize(wanted, key), "é:x", "z:z"])
        with pytest.raises(errors.MissingKeysError) as caught:
            made.rows_of(["é:x"])
        assert caught.value.hint == ""
        assert "Unicode" not in str(caught.value)
