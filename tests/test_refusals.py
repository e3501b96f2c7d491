"""Bad input: a named error with its facts, that subclasses what callers catch; nothing is lost or changed."""

import pickle

import numpy as np
import pytest

import embstore
from embstore import errors
from tests.crash import leftovers

ROW = np.ones((1, 8), np.float32)


def one(value=1.0, dtype="float32", n=1, dim=8):
    return np.full((n, dim), value, dtype)


APPENDS = {
    "another dimension": (
        ["a:b"],
        one(dim=7),
        errors.ShapeError,
        ValueError,
        {"field": "embedding", "expected": (1, 8), "found": (1, 7)},
    ),
    "more rows than keys": (["a:b"], one(n=2), errors.ShapeError, ValueError, {"expected": (1, 8), "found": (2, 8)}),
    "ragged rows": (
        ["a:b", "c:b"],
        [np.ones(8, np.float32), np.ones(7, np.float32)],
        (errors.ShapeError, ValueError),
        ValueError,
        {},
    ),
    "another dtype": (
        ["a:b"],
        one(dtype="int32"),
        errors.DtypeError,
        TypeError,
        {"expected": "float32", "found": "int32"},
    ),
    "float64": (
        ["a:b"],
        one(dtype="float64"),
        errors.DtypeError,
        TypeError,
        {"expected": "float32", "found": "float64"},
    ),
    "text": (["a:b"], [["x"] * 8], errors.DtypeError, TypeError, {}),
    "NaN": (["a:b", "c:d"], [*one(), *one(np.nan)], errors.NonFiniteError, ValueError, {"keys": ("c:d",)}),
    "infinity": (["a:b"], one(np.inf), errors.NonFiniteError, ValueError, {"field": "embedding", "keys": ("a:b",)}),
    "infinities of both signs": (
        ["a:b"],
        np.array([[np.inf, -np.inf, *[0] * 6]], np.float32),
        errors.NonFiniteError,
        ValueError,
        {},
    ),
    "no colon": (["ab"], ROW, errors.KeyFormatError, ValueError, {"key": "ab"}),
    "no file_id": ([":b"], ROW, errors.KeyFormatError, ValueError, {"key": ":b"}),
    "no class": (["a:"], ROW, errors.KeyFormatError, ValueError, {"key": "a:"}),
    "not text": ([3], ROW, errors.KeyFormatError, ValueError, {"key": 3}),
    "not Unicode": (["\ud800:b"], ROW, errors.KeyFormatError, ValueError, {"key": "\ud800:b"}),
    "twice": (["a:b", "c:d", "a:b"], one(n=3), errors.DuplicateKeysError, ValueError, {"keys": ("a:b",)}),
    "stored": (
        ["file_0001:class_1", "new:x"],
        one(n=2),
        errors.KeysExistError,
        ValueError,
        {"keys": ("file_0001:class_1",)},
    ),
    "another field": (
        ["a:b"],
        {"other": ROW},
        errors.UnknownFieldError,
        KeyError,
        {"field": "embedding", "available": ("embedding",)},
    ),
}


@pytest.mark.parametrize("kind", APPENDS)
def test_an_append_that_is_refused_changes_nothing(make, kind):
    keys, values, expected, builtin, facts = APPENDS[kind]
    store, stored, rows = make()
    before = (store.path / "zarr.json").read_bytes()
    with pytest.raises(expected) as caught:
        store.append(keys, values, columns={"split": "train"})
    assert isinstance(caught.value, builtin)
    for name, value in facts.items():
        assert getattr(caught.value, name) == value, name
    assert (store.path / "zarr.json").read_bytes() == before
    assert leftovers(store.path) == []
    np.testing.assert_array_equal(store[stored], rows)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert store.append(["fine:x"], ROW, columns={"split": "train"}).appended == 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nonfinite_in_half_precision(path, dtype, value):
    fields = {"f": embstore.FieldSpec(shape=(2,), dtype=dtype)}
    with embstore.open(path, "w-", config={}, fields=fields) as store:
        with pytest.raises(errors.NonFiniteError):
            store.append(["a:b"], np.array([[1, value]], np.float32), casting="same_kind")
        with pytest.raises(errors.NonFiniteError):
            store.append(["a:b"], np.array([[1, 1e39]]), casting="same_kind")  # overflows
        assert len(store) == 0


def test_nonfinite_may_be_allowed(path):
    fields = {"f": embstore.FieldSpec(shape=(2,), nonfinite="allow")}
    with embstore.open(path, "w-", config={}, fields=fields) as store:
        store.append(["a:b"], np.array([[np.nan, np.inf]], np.float32))
        np.testing.assert_array_equal(store["a:b"], [np.nan, np.inf])


def test_large_sums_are_not_taken_for_infinity(path):
    with embstore.open(path, "w-", config={}) as store:
        store.append(["a:b"], np.full((1, 8), 3e38, np.float32))
        assert store["a:b"][0] == np.float32(3e38)


def test_casting_on_request(make, path):
    store, _, _ = make()
    store.append(["a:b"], one(2.5, "float64"), columns={"split": "x"}, casting="same_kind")
    assert store["a:b"].tolist() == [2.5] * 8
    with pytest.raises(errors.DtypeError) as caught:
        embstore.open(path.with_name("new.zarr"), "w-", config={}).append(["a:b"], one(dtype="float64"))
    assert caught.value.found == "float64"


def test_columns_must_be_those_of_the_store(make):
    store, _, _ = make()
    for columns, column in ({}, "split"), ({"split": "x", "more": 1}, "more"):
        with pytest.raises(errors.UnknownColumnError) as caught:
            store.append(["a:b"], ROW, columns=columns)
        assert caught.value.column == column
    with pytest.raises(errors.DtypeError):
        store.append(["a:b"], ROW, columns={"split": [3]})
    with pytest.raises(errors.ShapeError):
        store.append(["a:b"], ROW, columns={"split": ["x", "y"]})
    assert len(store) == 300


def test_a_config_that_differs_names_each_attribute(make):
    store, _, _ = make()
    with pytest.raises(errors.ConfigMismatchError) as caught:
        embstore.open(store.path, config={"encoder": "test", "sample_rate": 8000, "revision": "x"})
    found = {(d.name, str(d.expected), str(d.found)) for d in caught.value.differences}
    assert found == {("sample_rate", "8000", "16000"), ("revision", "x", "(absent)"), ("duration", "(absent)", "5")}
    assert caught.value.path == store.path
    assert isinstance(caught.value, ValueError)


def test_all_missing_keys_in_one_error(make):
    store, keys, _ = make()
    wanted = [keys[0], "x:y", keys[1], "z:y"]
    for read in (
        store.fetch,
        store.rows_of,
        store.__getitem__,
        store.delete,
        store.erase,
        lambda k: store.select(keys=k),
    ):
        with pytest.raises(errors.MissingKeysError) as caught:
            read(wanted)
        assert caught.value.keys == ("x:y", "z:y")
        assert caught.value.path == store.path
    assert isinstance(caught.value, KeyError)
    assert len(store) == 300
    with pytest.raises(errors.KeyFormatError):
        store["nonsense"]


def test_what_is_not_a_store(tmp_path):
    import zarr

    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    zarr.create_group(tmp_path / "group", zarr_format=3)
    for name in ("absent", "file", "empty", "group"):
        for look in (embstore.open, embstore.verify):
            with pytest.raises(errors.NotAStoreError) as caught:
                look(tmp_path / name)
            assert caught.value.path == tmp_path / name
            assert isinstance(caught.value, FileNotFoundError)


def test_modes(make, tmp_path):
    store, keys, _ = make()
    reader = embstore.open(store.path)
    for write in (
        lambda: reader.append(["a:b"], ROW, columns={"split": "x"}),
        lambda: reader.delete(keys[:1]),
        lambda: reader.erase(keys[:1]),
        reader.compact,
        reader.writer,
        lambda: reader.set_column("x", keys, np.zeros(300)),
    ):
        with pytest.raises(errors.ReadOnlyError):
            write()
    with pytest.raises(errors.StoreExistsError):
        embstore.open(store.path, "w-", config={})
    with pytest.raises(errors.NotAStoreError):
        embstore.open(tmp_path / "none", "r+")
    with pytest.raises(ValueError, match="mode"):
        embstore.open(store.path, "w")
    with pytest.raises(TypeError, match="config"):
        embstore.open(tmp_path / "new.zarr", "w-")
    with pytest.raises(ValueError, match="if_exists"):
        store.append(["a:b"], ROW, columns={"split": "x"}, if_exists="maybe")
    for options in ({"chunk_bytes": -1}, {"chunk_bytes": 2**33}, {"expected_rows": -5}):
        with pytest.raises(ValueError, match="expected"):
            embstore.open(tmp_path / "new.zarr", "w-", config={}, **options)
    assert not (tmp_path / "new.zarr").exists()


@pytest.mark.parametrize(
    "name",
    ["", "1a", "a/b", "../x", "index", "INDEX", "file_id", "__x", "x.", "x_offsets", "split", "SPLIT", "a" * 200, 3],
)
def test_names_that_are_refused(make, name):
    store, keys, _ = make()
    with pytest.raises(errors.NameRefusedError):
        store.add_field(name, keys, np.zeros((300, 2), np.float32))


def test_rows_by_number_and_closed_stores(make):
    store, keys, rows = make()
    for wrong in (0, 1.5, None, [1, 2], slice(2)):
        with pytest.raises(TypeError):
            store[wrong]
    for wrong in ([300], [-1]):
        with pytest.raises(IndexError):
            store.take(wrong)
        with pytest.raises(IndexError):
            store.select(rows=wrong)
    with pytest.raises(errors.UnknownFieldError):
        store.take([0], "other")
    store.delete(keys[:1])
    with pytest.raises(errors.DeadRowsError) as caught:
        store.array()
    assert (caught.value.dead, caught.value.field) == (1, "embedding")
    assert store.array(dead="include").shape == rows.shape
    store.close()
    with pytest.raises(ValueError, match="closed"):
        store[keys[1]]


def test_every_error_is_in_the_tree():
    import re

    tree = set(re.findall(r"\|?-- (\w+Error)", errors.__doc__)) | {"EmbstoreError"}
    classes = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert classes == tree
