"""Files of other programs: nothing in them is dropped in silence, and no label is lost."""

import enum
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

import embstore
from embstore import FieldSpec, errors
from embstore.exchange import export_file, import_file

X = np.arange(12, dtype=np.float32).reshape(4, 3)
KEYS = np.array(["a:dog", "b:cat", "c:dog", "d:owl"])
LAST = "file_id:class"
NAN = float("nan")


def h5(path, arrays):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            dtype = h5py.string_dtype() if np.asarray(values).dtype.kind == "U" else None
            file.create_dataset(name, data=np.asarray(values).tolist() if dtype else values, dtype=dtype)
    return path


def npz(path, arrays):
    np.savez(path, **arrays)
    return path


def safetensors(path, arrays):
    pytest.importorskip("safetensors.numpy").save_file({n: np.asarray(v) for n, v in arrays.items()}, path)
    return path


def parquet(path, arrays):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {
        name: v if isinstance(v, pa.Array | pa.ChunkedArray) else pa.array(list(v)) for name, v in arrays.items()
    }
    parquet.write_table(pa.table(columns), path)
    return path


def pt(path, found):
    pytest.importorskip("torch").save(found, path)
    return path


WRITERS = {"h5": h5, "npz": npz, "safetensors": safetensors, "parquet": parquet, "pt": pt}


# -- names with "/", and parts that are not read (C15) ----------------------------------------


@pytest.mark.parametrize("kind", ["h5", "npz", "safetensors", "pt"])
@pytest.mark.parametrize("names", [["clip1:dog", "sub/clip2:dog", "sub/deep/er/clip3:cat"], ["s3://b/1:dog"]])
def test_names_with_folders_are_rows(tmp_path, kind, names):
    if kind == "h5" and "s3://b/1:dog" in names:
        names = ["s3:/b/1:dog"]  # HDF5 has no empty names
    arrays = {name: X[i].copy() for i, name in enumerate(names)}
    path = WRITERS[kind](tmp_path / f"x.{kind}", arrays)
    result = import_file(path, tmp_path / "a.zarr", config={}, keys=LAST)
    assert result.ok
    assert sorted(result.store) == sorted(names)
    for name, row in arrays.items():
        np.testing.assert_array_equal(result.store[name], row)


def soft_link(h5py, file):
    file["part"] = h5py.SoftLink("/x")


def external_link(h5py, file):
    file["part"] = h5py.ExternalLink("secret.h5", "x")


def link_in_a_group(h5py, file):
    file.create_group("sub")["part"] = h5py.SoftLink("/x")


def virtual(h5py, file):
    file.create_virtual_dataset("part", h5py.VirtualLayout((4, 3), "f4"))


def external(h5py, file):
    file.create_dataset("part", (4, 3), "f4", external=[("secret.h5", 0, 48)])


def single(h5py, file):
    file["part"] = 7


def empty(h5py, file):
    file["part"] = h5py.Empty("f4")


def named_type(h5py, file):
    file["part"] = np.dtype("f8")


def other_rows(h5py, file):
    file["sub/part"] = X[:3]


def records(h5py, file):
    file["part"] = np.zeros(4, [("a", "f4"), ("b", "i4")])


@pytest.mark.parametrize(
    "add",
    [soft_link, external_link, link_in_a_group, virtual, external, single, empty, named_type, other_rows, records],
)
def test_parts_of_hdf5_that_are_not_read_are_listed(tmp_path, add):
    h5py = pytest.importorskip("h5py")
    with h5py.File(h5(tmp_path / "x.h5", {"keys": KEYS, "x": X}), "a") as file:
        add(h5py, file)
    result = import_file(tmp_path / "x.h5", tmp_path / "a.zarr", config={}, keys=LAST)
    assert result.rows == 4
    assert [one.key.rpartition("/")[2] for one in result.left_out] == ["part"]
    assert result.left_out[0].reason


def test_numbers_of_netcdf(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "in.h5"
    with h5py.File(path, "w") as file:
        file.attrs["model"] = "not read"
        file["ids"] = [b"a", b"b", b"c"]
        file["embeddings"] = np.array([[1, 2], [-9, 2], [3, 4]], np.int16)
        file["embeddings"].attrs["_FillValue"] = np.int16(-9)
        file["packed"] = np.ones((3, 2), np.int16)
        file["packed"].attrs.update({"scale_factor": 0.1, "add_offset": 5.0})
        file["year"] = [1, -9, 3]
        file["year"].attrs["_FillValue"] = -9
    result = embstore.import_file(path, tmp_path / "store", config={"e": 1})
    assert list(result.store) == ["a", "c"]
    assert [(one.key, one.reason) for one in result.unreadable] == [("b", "'embeddings': a number in it is missing")]
    assert {one.key for one in result.left_out} == {"packed", "year", "@model"}


def test_a_table_for_each_group_is_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "in.h5"
    with h5py.File(path, "w") as file:
        for split in ("train", "test"):
            file[f"{split}/ids"], file[f"{split}/embeddings"] = [b"a", b"b", b"c"], np.ones((3, 4), np.float32)
    for keys in (None, "file_id"):
        with pytest.raises(errors.FileFormatError):
            embstore.import_file(path, tmp_path / "store", config={"e": 1}, keys=keys)


@pytest.mark.parametrize("names", [["a", "b", "c"], ("a", "b", "c"), np.array(["a", "b", "c"])], ids=repr)
def test_a_matrix_beside_names_of_another_word_is_not_one_row(tmp_path, names):
    torch = pytest.importorskip("torch")
    path = tmp_path / "in.pt"
    torch.save({"filenames": names, "features": torch.ones(3, 4)}, path)
    with pytest.raises(errors.FileFormatError, match="filenames"):
        embstore.import_file(path, tmp_path / "store", config={"e": 1})


def test_groups_of_hdf5_that_contain_each_other(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["sub/a:dog"] = X[0]
        file["sub/again"] = file["sub"]
        file["b:dog"] = file["sub/a:dog"]  # a second name of one array
    result = import_file(tmp_path / "x.h5", tmp_path / "a.zarr", config={}, keys=LAST)
    assert sorted(result.store) == ["b:dog", "sub/a:dog"]


@pytest.mark.parametrize("kind", ["h5", "npz", "safetensors"])
def test_a_group_for_each_key(tmp_path, kind):
    """The name of the array in it is no part of a class."""
    arrays = {f"{key}/embedding": X[i].copy() for i, key in enumerate(KEYS)}
    logits = {f"{key}/logits": X[i].copy() for i, key in enumerate(KEYS)}
    path = WRITERS[kind](tmp_path / f"x.{kind}", {**arrays, **logits})
    result = import_file(path, tmp_path / "a.zarr", config={}, keys=LAST)
    assert sorted(result.store) == sorted(KEYS)
    assert sorted(one.key for one in result.left_out) == sorted(logits)
    np.testing.assert_array_equal(result.store.fetch(KEYS.tolist()), X)
    path = WRITERS[kind](path, {**arrays, "a:dog/class_name": np.arange(1)})
    with pytest.raises(errors.FileFormatError, match="class_name"):
        import_file(path, tmp_path / "b.zarr", config={}, keys=LAST)


def test_members_of_a_zip_that_are_not_read_are_listed(tmp_path):
    def member(values, version=None):
        raw = io.BytesIO()
        np.lib.format.write_array(raw, np.asarray(values), version=version)
        return raw.getvalue()

    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("keys.npy", member(KEYS))
        archive.writestr("x.npy", member(X))
        archive.mkdir("folder")
        archive.writestr("folder/readme.txt", "text")
        archive.writestr("single.npy", member(7))
        archive.writestr("new.npy", member(np.arange(4), version=(3, 0)))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("x.npy", member(X + 1))
    result = import_file(tmp_path / "x.npz", tmp_path / "a.zarr", config={}, keys=LAST)
    np.testing.assert_array_equal(result.store.select().to_numpy(), X)
    assert {one.key: one.reason for one in result.left_out} == {
        "folder/readme.txt": "it is not an .npy array",
        "single": "it is a single value",
        "new": "its format version (3, 0) is not read",
        "x": "another array has this name",
    }


def test_single_values_of_safetensors_are_listed(tmp_path):
    arrays = {"a:dog": X[0], "b:dog": X[1], "scale": np.float32(2)}
    result = import_file(safetensors(tmp_path / "x.safetensors", arrays), tmp_path / "a.zarr", config={}, keys=LAST)
    assert result.rows == 2
    assert [str(one) for one in result.left_out] == ["scale: it is a single value"]


def test_parts_of_a_dictionary_that_are_not_read_are_listed(tmp_path):
    more = {"dim": 3, "model": "ast", "nested": {"a": 1}, 7: np.arange(4), "7": np.arange(4), "none": None}
    found = {"ids": ["a", "b", "c", "d"], "embeddings": X, **more}
    result = import_file(pt(tmp_path / "x.pt", found), tmp_path / "a.zarr", config={})
    assert result.rows == 4
    assert {one.key for one in result.left_out} == {"dim", "model", "nested", "7", "none"}


def test_dictionaries_in_dictionaries_are_named(tmp_path):
    nested = {"dog": {"clip1": X[0], "clip2": X[1]}}
    with pytest.raises(errors.FileFormatError, match="'dog': expected one of"):
        import_file(pt(tmp_path / "x.pt", nested), tmp_path / "a.zarr", config={}, keys=LAST)
    result = import_file(pt(tmp_path / "x.pt", {"a:b": X[0], **nested}), tmp_path / "a.zarr", config={}, keys=LAST)
    assert [one.key for one in result.unreadable] == ["dog"]


def test_columns_of_one_name_are_listed(tmp_path):
    pa = pytest.importorskip("pyarrow")
    table = pa.table([pa.array(KEYS), pa.array(list(X)), pa.array([1] * 4), pa.array([2] * 4)], ["key", "x", "n", "n"])
    pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "x.parquet")
    result = import_file(tmp_path / "x.parquet", tmp_path / "a.zarr", config={}, keys=LAST)
    assert [str(one) for one in result.left_out] == ["n: several columns have this name"]


@pytest.mark.parametrize("kind", ["h5", "npz", "parquet"])
def test_a_field_whose_name_is_refused_does_not_refuse_the_file(tmp_path, kind):
    arrays = {"keys": KEYS, "x": X if kind != "parquet" else list(X), "my field": X if kind != "parquet" else list(X)}
    path = WRITERS[kind](tmp_path / f"x.{kind}", arrays)
    result = import_file(path, tmp_path / "a.zarr", config={}, keys=LAST)
    assert list(result.store.fields) == ["x"]
    assert [one.key for one in result.left_out] == ["my field"]
    path = WRITERS[kind](path, {"keys": KEYS, "my field": arrays["x"]})
    assert list(import_file(path, tmp_path / "b.zarr", config={}, keys=LAST, field="y").store.fields) == ["y"]


# -- classes and missing values (C16) ---------------------------------------------------------

LABELS = {
    "text": (["dog", "cat", "dog", None], ["dog", "cat", "dog", "_"]),
    "integers": ([3, 1, 2, 0], ["3", "1", "2", "0"]),
    "integers of which one is missing": ([3, None, 2, 0], ["3", "_", "2", "0"]),
    "floats": ([3.0, 1.0, NAN, -1.0], ["3", "1", "_", "-1"]),
    "booleans": ([True, False, True, True], ["True", "False", "True", "True"]),
    "booleans of which one is missing": ([True, None, True, True], ["True", "_", "True", "True"]),
    "all missing": ([None] * 4, ["_"] * 4),
}


@pytest.mark.parametrize("kind", ["parquet", "pandas", "categories", "large", "h5", "npz", "pt", "pt array", "entries"])
@pytest.mark.parametrize("labels", LABELS)
def test_labels_of_every_dtype(tmp_path, kind, labels):
    given, expected = LABELS[labels]
    missing = any(value is None for value in given)
    path = tmp_path / f"x.{kind.partition(' ')[0]}"
    ids = ["p", "q", "r", "s"]
    if kind in ("parquet", "large", "categories"):
        pa = pytest.importorskip("pyarrow")
        column = pa.array(given)
        if kind == "categories" and pa.types.is_null(column.type):
            pytest.skip("Parquet has no such column")
        if kind == "large" and pa.types.is_string(column.type):
            column = column.cast(pa.large_string())
        if kind == "categories":
            column = column.dictionary_encode()
        parquet(path.with_suffix(".parquet"), {"file_id": ids, "class_name": column, "x": list(X)})
        path = path.with_suffix(".parquet")
    elif kind == "pandas":
        pd = pytest.importorskip("pandas")
        pytest.importorskip("pyarrow")
        frame = pd.DataFrame({"file_id": ids, "class_name": given, "x": list(X)})  # [3, None] becomes [3.0, NaN]
        frame.to_parquet(path := tmp_path / "x.parquet")
    elif kind == "entries":
        entries = {name: {"embedding": X[i], "class_name": given[i]} for i, name in enumerate(ids)}
        pt(path := tmp_path / "x.pt", entries)
    elif kind == "pt":
        pt(path, {"ids": ids, "class_name": given, "embeddings": X})
    else:
        if missing:
            pytest.skip("NumPy has no missing values")
        path = path.with_suffix(".pt" if kind == "pt array" else path.suffix)
        WRITERS[kind.partition(" ")[0]](path, {"file_id": np.array(ids), "class_name": np.array(given), "x": X})
    keys = None if kind in ("entries",) else "file_id"
    result = import_file(path, tmp_path / "a.zarr", config={}, keys=keys)
    assert result.store.select().keys == [str(embstore.Key(*both)) for both in zip(ids, expected, strict=True)]
    assert result.ok
    result = import_file(path, tmp_path / "b.zarr", config={}, keys=keys, class_name="none")
    assert result.store.select().class_names == ["none" if label == "_" else label for label in expected]


def test_labels_that_are_no_classes_are_unreadable(tmp_path):
    given = {"file_id": ["a", "b", "c", "d"], "class_name": [1.0, 0.5, 2.0, float("inf")], "x": list(X)}
    result = import_file(parquet(tmp_path / "x.parquet", given), tmp_path / "a.zarr", config={})
    assert result.store.select().keys == ["a:1", "c:2"]
    assert [one.key for one in result.unreadable] == ["b", "d"]


@pytest.mark.parametrize("labels", ["timestamps", "decimals", "lists", "bytes", "another number of rows", "objects"])
def test_labels_that_can_not_be_read_refuse_the_file(tmp_path, labels):
    """Without them all rows would be unlabelled."""
    if labels in ("another number of rows", "objects"):
        given = np.array(["dog"] * 5) if labels != "objects" else np.array(["dog", None, "cat", "cat"], object)
        path = npz(tmp_path / "x.npz", {"file_id": np.array(list("abcd")), "class_name": given, "x": X})
    else:
        import decimal

        pa = pytest.importorskip("pyarrow")
        column = {
            "timestamps": pa.array([0, 1, 2, 3], pa.timestamp("s")),
            "decimals": pa.array([decimal.Decimal("1.5")] * 4),
            "lists": pa.array([["dog"]] * 4),
            "bytes": pa.array([b"dog"] * 4),
        }[labels]
        path = parquet(tmp_path / "x.parquet", {"file_id": list("abcd"), "class_name": column, "x": list(X)})
    with pytest.raises(errors.FileFormatError, match="'class_name': expected"):
        import_file(path, tmp_path / "a.zarr", config={})
    assert not (tmp_path / "a.zarr").exists()


@pytest.mark.parametrize("nullable", [False, True])
def test_missing_values_of_columns(tmp_path, nullable):
    """They cost their column, and a float or a text has a value for them."""
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame(
        {
            "key": KEYS,
            "x": list(X),
            "whole": pd.array([1, None, 3, 4], "Int64"),
            "small": pd.array([1, None, 3, 4], "UInt8"),
            "flag": pd.array([True, None, False, True], "boolean"),
            "score": pd.array([0.5, None, 1, 2], "Float32" if nullable else "float32"),
            "text": pd.array(["a", None, "b", "c"], "string" if nullable else "object"),
            "kind": pd.Categorical(["u", None, "v", "u"]),
            "fold": pd.Categorical([1, 2, 1, 2]),
            "sound": pd.array([1, 2, 3, 4], "Int64" if nullable else "int64"),
            "when": pd.to_datetime(["2020-01-01"] * 4),
        }
    )
    frame.to_parquet(tmp_path / "x.parquet")
    result = import_file(tmp_path / "x.parquet", tmp_path / "a.zarr", config={}, keys=LAST)
    assert result.rows == 4
    assert result.unreadable == ()
    assert {one.key: one.reason for one in result.left_out if one.key != "when"} == dict.fromkeys(
        ("whole", "small", "flag"), "1 of its 4 values are missing"
    )
    view = result.store.select()
    assert result.store.columns.keys() == {"score", "text", "kind", "fold", "sound"}
    np.testing.assert_array_equal(view.column("score"), np.array([0.5, np.nan, 1, 2], np.float32))
    assert view.column("text").tolist() == ["a", "", "b", "c"]
    assert view.column("kind").tolist() == ["u", "", "v", "u"]
    assert view.column("fold").tolist() == [1, 2, 1, 2]


@pytest.mark.parametrize(
    ("ids", "expected", "unreadable"),
    [
        ([1.0, 2.0, 3.0, NAN], ["1", "2", "3"], 1),
        ([1, 2, 3, None], ["1", "2", "3"], 1),
        (["a", "b", None, ""], ["a", "b"], 2),
        (np.array([2**63 + 1, 1, 2, 3], np.uint64), [str(2**63 + 1), "1", "2", "3"], 0),
    ],
)
def test_names_that_are_missing_cost_their_row(tmp_path, ids, expected, unreadable):
    path = parquet(tmp_path / "x.parquet", {"ids": ids, "x": list(X)})
    result = import_file(path, tmp_path / "a.zarr", config={})
    assert result.store.select().file_ids == expected
    assert len(result.unreadable) == unreadable


# -- shapes of Parquet (C16) ------------------------------------------------------------------


def tensors(pa, values, order=None):
    shape = values.shape[1:] if order is None else tuple(values.shape[1:][order.index(i)] for i in range(len(order)))
    kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(values.dtype), shape, permutation=order)
    flat = values.reshape(len(values), -1)
    storage = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])
    return pa.ExtensionArray.from_storage(kind, storage)


MATRICES = np.arange(24).reshape(4, 2, 3)
SHAPES = {
    "fixed_shape_tensor": lambda pa, v: tensors(pa, v),
    "fixed_shape_tensor in another order": lambda pa, v: tensors(pa, v.transpose(0, 2, 1), [1, 0]),
    "fixed lists of fixed lists": lambda pa, v: pa.array(
        v.tolist(), pa.list_(pa.list_(pa.from_numpy_dtype(v.dtype), 3), 2)
    ),
    "lists of fixed lists": lambda pa, v: pa.array(v.tolist(), pa.list_(pa.list_(pa.from_numpy_dtype(v.dtype), 3))),
    "lists of lists": lambda pa, v: pa.array(v.tolist(), pa.list_(pa.list_(pa.from_numpy_dtype(v.dtype)))),
    "large lists of lists": lambda pa, v: pa.array(
        v.tolist(), pa.large_list(pa.large_list(pa.from_numpy_dtype(v.dtype)))
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "uint8"])
def test_rows_of_two_axes(tmp_path, shape, dtype):
    pa = pytest.importorskip("pyarrow")
    column = SHAPES[shape](pa, MATRICES.astype(dtype))
    expected = column.to_numpy_ndarray() if shape.endswith("another order") else MATRICES.astype(dtype)
    path = parquet(tmp_path / "x.parquet", {"key": KEYS, "x": column})
    result = import_file(path, tmp_path / "a.zarr", config={}, keys=LAST)
    assert result.ok
    assert result.store.fields == {"x": FieldSpec(shape=expected.shape[1:], dtype=dtype)}
    np.testing.assert_array_equal(result.store.select().to_numpy(), expected)


@pytest.mark.parametrize("kind", ["list<list>", "list<fixed>", "fixed<fixed>", "fixed"], ids=lambda kind: kind)
def test_numbers_that_are_missing_cost_their_row(tmp_path, kind):
    pa = pytest.importorskip("pyarrow")
    number, other = pa.int32(), [[1, 2], [3, 4]]
    kinds = {
        "list<list>": pa.list_(pa.list_(number)),
        "list<fixed>": pa.list_(pa.list_(number, 2)),
        "fixed<fixed>": pa.list_(pa.list_(number, 2), 2),
        "fixed": pa.list_(number, 2),
    }
    rows = [other, None, [[5, 6], [7, 8]], [[1, None], [3, 4]], [[9, 9], [9, 9]]]
    if kind == "fixed":
        rows = [[1, 2], None, [5, 6], [1, None], [9, 9]]
    keys = ["a", "b", "c", "d", "e"]
    path = parquet(tmp_path / "x.parquet", {"key": keys, "x": pa.array(rows, kinds[kind])})
    result = import_file(path, tmp_path / "a.zarr", config={})
    assert result.store.select().file_ids == ["a", "c", "e"]
    assert {one.key for one in result.unreadable} == {"b", "d"}
    np.testing.assert_array_equal(result.store.select().to_numpy(), [rows[0], rows[2], rows[4]])
    if "list" in kind:
        result = import_file(path, tmp_path / "b.zarr", config={}, ragged=True)
        assert [row.tolist() for row in result.store.select().to_ragged()] == [rows[0], rows[2], rows[4]]


def test_lists_without_values_do_not_refuse_the_file(tmp_path):
    pa = pytest.importorskip("pyarrow")
    empty = {
        "lists": pa.array([[]] * 4, pa.list_(pa.float32())),
        "lists_of_lists": pa.array([[[]], [], None, [[], []]], pa.list_(pa.list_(pa.float32()))),
        "fixed": pa.array([[]] * 4, pa.list_(pa.float32(), 0)),
        "nothing": pa.array([None] * 4),
    }
    path = parquet(tmp_path / "x.parquet", {"key": KEYS, "x": list(X), **empty})
    result = import_file(path, tmp_path / "a.zarr", config={}, keys=LAST)
    assert result.rows == 4
    assert {one.key for one in result.left_out} == set(empty)


def test_the_field_of_a_missing_list_is_named(tmp_path):
    pa = pytest.importorskip("pyarrow")
    boxes = pa.array([[1, 2], None, [3, 4], [5, 6]], pa.list_(pa.int32()))
    path = parquet(tmp_path / "x.parquet", {"key": KEYS, "x": list(X), "boxes": boxes})
    result = import_file(path, tmp_path / "a.zarr", config={}, keys=LAST)
    assert [str(one) for one in result.unreadable] == ["b:cat: 'boxes': its value is missing"]
    assert import_file(path, tmp_path / "b.zarr", config={}, keys=LAST, field="x").rows == 4


# -- names whose class is not stated (C17) ----------------------------------------------------


@pytest.mark.parametrize("columns", [dict, list, np.array, tuple])
@pytest.mark.parametrize("name", ["ids", "keys", "key", "id", "file_id"])
@pytest.mark.parametrize("matrix", ["embeddings", "embedding", "features"])
def test_a_matrix_and_its_ids_in_a_dictionary(tmp_path, columns, name, matrix):
    ids = ["a", "b", "c", "d"] if columns is dict else columns(["a", "b", "c", "d"])
    result = import_file(pt(tmp_path / "x.pt", {name: ids, matrix: X}), tmp_path / "a.zarr", config={})
    assert result.store.select().file_ids == ["a", "b", "c", "d"]
    np.testing.assert_array_equal(result.store.select().to_numpy(), X)


@pytest.mark.parametrize("kind", ["h5", "npz", "safetensors", "pt"])
@pytest.mark.parametrize(
    "name", [r"C:\data\1.wav", "doi:10.1-x", "2020-01-01T10:30:00", "00:30", "urn:isbn:1", "C:1.wav", "a::b"]
)
def test_no_class_is_guessed_from_a_colon(tmp_path, kind, name):
    path = WRITERS[kind](tmp_path / f"x.{kind}", {name: X[0].copy()})
    with pytest.raises(errors.FileFormatError, match="keys="):
        import_file(path, tmp_path / "a.zarr", config={})
    assert not (tmp_path / "a.zarr").exists()
    result = import_file(path, tmp_path / "a.zarr", config={}, keys="file_id")
    assert list(result.store) == [str(embstore.Key(name))]


# -- text of a subclass (C1) ------------------------------------------------------------------


class Text(str, enum.Enum):  # noqa: UP042 (a StrEnum formats its members as their text)
    DOG = "dog"
    FIELD = "mean"
    COLUMN = "n"
    NPZ = "npz"
    SKIP = "skip"
    ORDER = "file_id"


class Plain(str):
    """A subclass that shows another text than it is."""

    def __str__(self):
        return "other"


@pytest.mark.parametrize("dog", [Text.DOG, Plain("dog"), np.str_("dog"), enum.StrEnum("S", {"DOG": "dog"}).DOG])
def test_text_of_a_subclass_is_its_text(tmp_path, dog):
    path = npz(tmp_path / "x.data", {"ids": np.array(list("abcd")), "x": X, "n": np.arange(4)}).with_suffix(".data.npz")
    options = {"field": Text.FIELD, "columns": [Text.COLUMN], "format": Text.NPZ, "if_exists": Text.SKIP}
    for number, more in enumerate(
        [
            {"class_name": dog, "keys": Text.ORDER},
            {"keys": lambda name: embstore.Key(name, dog)},
            {"keys": lambda name: type(dog)(f"{name}:dog") if type(dog) in (Plain, np.str_) else f"{name}:dog"},
        ]
    ):
        result = import_file(path, tmp_path / f"{number}.zarr", config={}, **options, **more)
        assert result.store.select().keys == ["a:dog", "b:dog", "c:dog", "d:dog"]
        assert result.store.rows_of(["d:dog"]).tolist() == [3]
        assert result.store.classes == ["dog"]
        assert {type(text) for text in result.store.classes} == {str}
        assert list(result.store.fields) == ["mean"]
        assert embstore.verify(result.path).ok
        assert import_file(path, result.path, config={}, **options, **more).skipped == 4
    found = result.store.select().nearest(Plain("a:dog"), k=1)
    assert found.queries == ["a:dog"]
    assert found.keys == ["b:dog"]


# -- the home folder, and files without rows (E12) --------------------------------------------


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    store = import_file(npz(tmp_path / "x.npz", {"keys": KEYS, "x": X}), "~/a.zarr", config={}, keys=LAST).store
    assert store.path == tmp_path / "a.zarr"
    assert export_file(store, "~/y.npz") == tmp_path / "y.npz"
    assert import_file("~/y.npz", "~/b.zarr").path == tmp_path / "b.zarr"
    assert import_file("~/y.npz", "~/b.zarr", if_exists="skip").skipped == 4
    assert store.select().to_parquet("~/z.parquet") == tmp_path / "z.parquet" if find_arrow() else True
    assert not Path("~").exists()


def find_arrow():
    from importlib.util import find_spec

    return find_spec("pyarrow") is not None


@pytest.mark.parametrize("kind", ["npz", "h5", "parquet", "pt"])
@pytest.mark.parametrize("keys", [np.array([]), np.array([], "U1"), np.array([], np.int64)])
def test_a_file_without_rows(tmp_path, kind, keys):
    if kind == "parquet":
        pa = pytest.importorskip("pyarrow")
        given = {
            "keys": pa.array(keys.tolist(), pa.from_numpy_dtype(keys.dtype) if keys.dtype.kind != "U" else pa.string())
        }
        path = parquet(tmp_path / "x.parquet", {**given, "x": pa.array([], pa.list_(pa.float32(), 3))})
    else:
        path = WRITERS[kind](tmp_path / f"x.{kind}", {"keys": keys, "x": X[:0]})
    result = import_file(path, tmp_path / "a.zarr", config={})
    assert result.ok
    assert (result.rows, len(result.store)) == (0, 0)
    assert result.store.fields == {"x": FieldSpec(shape=(3,))}
    assert import_file(path, result.path, config={}).rows == 0


@pytest.mark.parametrize("kind", ["npz", "h5", "safetensors", "parquet", "pt"])
@pytest.mark.parametrize("what", ["no rows selected", "all rows deleted", "no field decided"])
def test_an_export_without_rows(tmp_path, kind, what):
    if kind in ("h5", "parquet", "safetensors", "pt"):
        pytest.importorskip({"h5": "h5py", "parquet": "pyarrow", "pt": "torch"}.get(kind, kind))
    with embstore.open(tmp_path / "a.zarr", "w-", config={"a": 1}) as store:
        if what != "no field decided":
            store.append(KEYS.tolist(), X)
        if what == "all rows deleted":
            store.delete(KEYS.tolist())
        rows = store.select(rows=[]) if what == "no rows selected" else store
        path = export_file(rows, tmp_path / f"x.{kind}")
    result = import_file(path, tmp_path / "b.zarr")
    assert (result.rows, result.config) == (0, {"a": 1})
    assert result.store.fields == embstore.open(tmp_path / "a.zarr").fields


# -- deleted rows, for readers of Zarr (F) ----------------------------------------------------


def test_other_readers_of_zarr_leave_out_the_dead_rows(tmp_path):
    zarr = pytest.importorskip("zarr")
    with embstore.open(tmp_path / "a.zarr", "w-", config={}) as store:
        store.append(KEYS.tolist(), X)
        store.append(["b:cat"], X[:1] + 7, if_exists="replace")
        store.delete(["a:dog"])
        group = zarr.open_group(store.path, mode="r")
        assert len(group["embedding"][:]) == 5
        live = np.delete(group["embedding"][:], group["dead_rows"][:], 0)
        np.testing.assert_array_equal(live, store.select().to_numpy())


# -- an array for each id (issue 16, 9) -------------------------------------------------------

PROTEINS = {"P12345": 3, "A0A024": 5, "Q9Y6K9": 2}  # lengths


def residues():
    """Return an array for each protein, of its length."""
    parts = np.split(np.arange(40, dtype=np.float16).reshape(10, 4), np.cumsum([*PROTEINS.values()])[:-1])
    return {name: part.copy() for name, part in zip(PROTEINS, parts, strict=True)}


PER_KEY = ["h5", "npz", "safetensors", "pt"]


def per_key(kind, path, arrays):
    if kind == "pt":
        torch = pytest.importorskip("torch")
        arrays = {name: torch.from_numpy(values) for name, values in arrays.items()}
    return WRITERS[kind](path / f"x.{kind}", arrays)


@pytest.mark.parametrize("kind", PER_KEY)
@pytest.mark.parametrize("folder", ["", "human/"])
@pytest.mark.parametrize("options", [{}, {"keys": "file_id"}, {"class_name": "enzyme"}])
def test_bare_names_are_ids(tmp_path, kind, folder, options):
    arrays = {folder + name: values[0] for name, values in residues().items()}
    result = import_file(per_key(kind, tmp_path, arrays), tmp_path / "a.zarr", config={}, **options)
    assert result.ok
    assert sorted(result.store.select().file_ids) == sorted(arrays)
    assert result.store.classes == [name for name in options.values() if name != "file_id"]
    assert result.store.fields == {"embedding": FieldSpec(shape=(4,), dtype="float16")}
    for key, name in zip(result.store.select().keys, result.store.select().file_ids, strict=True):
        np.testing.assert_array_equal(result.store[key], arrays[name])


@pytest.mark.parametrize("kind", PER_KEY)
def test_bare_names_of_rows_of_different_lengths(tmp_path, kind):
    path = per_key(kind, tmp_path, residues())
    result = import_file(path, tmp_path / "a.zarr", config={}, ragged=True)
    assert result.ok
    for key, name in zip(result.store.select().keys, result.store.select().file_ids, strict=True):
        np.testing.assert_array_equal(result.store[key], residues()[name])
    with pytest.raises(errors.FileFormatError, match="ragged=True"):
        import_file(path, tmp_path / "b.zarr", config={})


@pytest.mark.parametrize("kind", PER_KEY)
@pytest.mark.parametrize("order", [1, -1])
def test_names_with_and_without_a_colon_are_refused_with_their_readings(tmp_path, kind, order):
    arrays = dict([("P1", X[0].copy()), ("P2:enzyme", X[1].copy())][::order])
    path = per_key(kind, tmp_path, arrays)
    with pytest.raises(errors.FileFormatError) as caught:
        import_file(path, tmp_path / "a.zarr", config={})
    for part in ("'P2' of class 'enzyme'", "a file_id without a class", "without a colon, such as 'P1'", "keys="):
        assert part in caught.value.reason
    assert not (tmp_path / "a.zarr").exists()
    result = import_file(path, tmp_path / "a.zarr", config={}, keys="file_id")
    assert sorted(result.store.select().file_ids) == ["P1", "P2:enzyme"]
    result = import_file(path, tmp_path / "b.zarr", config={}, keys=LAST)
    assert sorted(result.store.select().file_ids) == ["P1", "P2"]


@pytest.mark.parametrize("kind", PER_KEY[:3])
@pytest.mark.parametrize(
    "arrays",
    [
        {"x": X},
        {"features": X, "labels": X[:, 0].copy()},
        {"X_train": X, "y_train": X[:, 0].copy(), "X_test": X[:2].copy(), "y_test": X[:2, 0].copy()},
        {"keys": X, "x": X},
        {"id": X, "class_name": X},
        {"embeddings": X, "logits": X},
    ],
)
@pytest.mark.parametrize("ragged", [False, True])
def test_matrices_are_no_rows(tmp_path, kind, arrays, ragged):
    path = per_key(kind, tmp_path, arrays)
    if ragged and list(arrays) == ["x"]:
        assert list(import_file(path, tmp_path / "a.zarr", config={}, ragged=True).store) == ["x"]  # as stated
        return
    with pytest.raises(errors.FileFormatError, match=r"Expected keys|most of its arrays differ in shape: '\w+'"):
        import_file(path, tmp_path / "a.zarr", config={}, ragged=ragged)
    assert not (tmp_path / "a.zarr").exists()


@pytest.mark.parametrize("ragged", [False, True])
def test_matrices_and_labels_in_pt_are_no_rows(tmp_path, ragged):
    arrays = {"features": X, "labels": X[:, 0].copy()}
    path = per_key("pt", tmp_path, arrays)
    with pytest.raises(errors.FileFormatError, match=r"'features' \(4, 3\), 'labels' \(4,\); ragged=True"):
        import_file(path, tmp_path / "a.zarr", config={}, ragged=ragged)
    assert import_file(path, tmp_path / "a.zarr", config={}, ragged=ragged, keys="file_id").rows == 1


def test_columns_of_parquet_are_no_rows(tmp_path):
    path = parquet(tmp_path / "x.parquet", {f"v{i}": X[i] for i in range(4)})
    with pytest.raises(errors.FileFormatError, match="Expected keys"):
        import_file(path, tmp_path / "a.zarr", config={})


@pytest.mark.parametrize("last", ["embedding", "embeddings", "last_hidden_state"])
def test_a_group_for_each_bare_id(tmp_path, last):
    arrays = {f"{name}/{last}": values for name, values in residues().items()}
    lengths = {f"{name}/length": np.array([n]) for name, n in PROTEINS.items()}
    result = import_file(
        h5(tmp_path / "x.h5", {**arrays, **lengths}), tmp_path / "a.zarr", config={}, ragged=True, field=last
    )
    assert sorted(result.store.select().file_ids) == sorted(PROTEINS)
    assert list(result.store.fields) == [last]
    assert {one.key for one in result.left_out} == {*lengths}


def test_ids_that_bio_embeddings_keeps_beside_its_names(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for i, (name, values) in enumerate(residues().items()):
            file.create_dataset(str(i), data=values).attrs["original_id"] = name
    result = import_file(tmp_path / "x.h5", tmp_path / "a.zarr", config={}, ragged=True)
    assert sorted(result.store.select().file_ids) == sorted(PROTEINS)
    with h5py.File(tmp_path / "x.h5", "a") as file:
        file["1"].attrs["original_id"] = "P12345"
    with pytest.raises(errors.FileFormatError, match="several of its arrays state the id 'P12345'"):
        import_file(tmp_path / "x.h5", tmp_path / "b.zarr", config={}, ragged=True)


def loaded(kind, path):
    """Return the arrays of a file as a script of another program reads them."""
    if kind == "npz":
        with np.load(path) as file:
            return dict(file.items())
    if kind == "h5":
        h5py = pytest.importorskip("h5py")
        with h5py.File(path) as file:
            found = {}
            file.visititems(lambda name, one: found.update({name: one[()]} if isinstance(one, h5py.Dataset) else {}))
            return found
    torch = pytest.importorskip("torch")
    if kind == "safetensors":
        tensors = pytest.importorskip("safetensors.torch").load_file(path)
    else:
        tensors = torch.load(path, weights_only=True)
    return {name: tensor.float().numpy() for name, tensor in tensors.items()}


NAMED = {"P12345": "_", "sub/A0A024": "_", "v1": "dog", "a:b": "_"}
WRITTEN = ["P12345", "sub/A0A024", "v1:dog", "a:b:_"]


@pytest.mark.parametrize("kind", PER_KEY)
@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16", "int8"])
@pytest.mark.parametrize("ragged", [False, True])
def test_one_array_an_id_out_and_in(tmp_path, kind, dtype, ragged, monkeypatch):
    if kind == "pt":
        pytest.importorskip("torch")
    monkeypatch.setattr("embstore._engine.write.plans._BLOCK_ROWS", 3)
    rows = [
        np.full((n, 2), i, "f4") + np.arange(2, dtype="f4") for i, n in enumerate((3, 1, 0, 2) if ragged else [2] * 4)
    ]
    spec = FieldSpec(shape=(2,) if ragged else (2, 2), dtype=dtype, ragged=ragged, layer="last")
    with embstore.open(tmp_path / "a.zarr", "w-", config={"m": 1}, fields={"x": spec}, columns={"n": "int64"}) as store:
        given = [row if dtype == "bfloat16" else row.astype(dtype) for row in rows]
        casting = "same_kind" if dtype == "bfloat16" else "no"
        store.append([embstore.Key(*one) for one in NAMED.items()], given, columns={"n": np.arange(4)}, casting=casting)
    store = embstore.open(tmp_path / "a.zarr")
    path = export_file(store, tmp_path / f"x.{kind}", layout="per-key")
    found = loaded(kind, path)
    assert sorted(found) == sorted(WRITTEN)
    for name, row in zip(WRITTEN, rows, strict=True):
        np.testing.assert_array_equal(found[name], row)
    if kind in ("h5", "safetensors"):
        again = import_file(path, tmp_path / "b.zarr")
        assert (again.ok, again.config, again.store.fields) == (True, {"m": 1}, {"x": spec})
    else:
        again = import_file(path, tmp_path / "b.zarr", config={"m": 1}, ragged=ragged, keys=LAST)
        assert again.ok
    assert sorted(again.store.select().keys) == sorted(store.select().keys)
    for key in store.select().keys:
        np.testing.assert_array_equal(again.store[key], store[key])
    path = export_file(store, path, layout="per-key", keys="file_id")
    assert sorted(loaded(kind, path)) == sorted(NAMED)


def twice(tmp_path):
    with embstore.open(tmp_path / "a.zarr", "w-", config={}) as store:
        store.append(["a:dog", "a:cat", "a/b:_", "s3://c/d:_"], {"x": X, "y": X})
    return embstore.open(tmp_path / "a.zarr")


@pytest.mark.parametrize(
    ("kind", "options", "error", "text"),
    [
        ("npz", {}, errors.LayoutError, "2 fields: pass fields="),
        ("parquet", {"fields": "x"}, errors.LayoutError, "Parquet has a row for each key"),
        ("h5", {"fields": "x"}, errors.LayoutError, "reads 's3://c/d:_' as another name"),
        ("npz", {"fields": "x", "keys": "file_id"}, errors.DuplicateKeysError, 'keys="file_id:class"'),
        ("npz", {"fields": "x", "keys": "class"}, ValueError, "expected keys to be one of"),
        ("npz", {"layout": "rows"}, ValueError, "expected layout to be one of"),
    ],
)
def test_rows_that_one_array_an_id_can_not_hold(tmp_path, kind, options, error, text):
    pytest.importorskip({"parquet": "pyarrow", "h5": "h5py"}.get(kind, "numpy"))
    with pytest.raises(error, match=text):
        export_file(twice(tmp_path), tmp_path / f"x.{kind}", **{"layout": "per-key", **options})
    assert not (tmp_path / f"x.{kind}").exists()


def test_an_id_that_is_the_group_of_another_in_hdf5(tmp_path):
    pytest.importorskip("h5py")
    with embstore.open(tmp_path / "a.zarr", "w-", config={}) as store:
        store.append(["a:_", "a/b:_"], X[:2])
        with pytest.raises(errors.LayoutError, match="can't have 'a' beside 'a/b'"):
            export_file(store, tmp_path / "x.h5", layout="per-key")
