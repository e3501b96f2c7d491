"""Rows out to files of other kinds and back, files of others, and files that are broken or lie. No torch."""

import json
import os
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import embstore
from embstore import FieldSpec, errors
from embstore._engine.io import durable, steps
from embstore.exchange import bulk_append, export_file, exporting, file_contents, import_file
from embstore.exchange.import_options import ImportOptions
from embstore.exchange.naming import row_name
from embstore.exchange.store_metadata import StoreMetadata

CONFIG = {"encoder": {"id": "MIT/ast"}, "big": 1e20, "é": [1, None, True, 0.5]}
FORMATS = {"npz": None, "h5": "h5py", "safetensors": "safetensors", "parquet": "pyarrow"}
RICH = {
    "mean": FieldSpec(shape=(3,), dtype="bfloat16", layer="layer_2", pooling="mean"),
    "tokens": FieldSpec(shape=(2,), dtype="float16", ragged=True, nonfinite="allow"),
    "flat": FieldSpec(shape=(), dtype="float32", ragged=True),
    "image": FieldSpec(shape=(2, 3), dtype="float32", dims=("h", "w"), nonfinite="allow"),
    "label": FieldSpec(shape=(), dtype="uint32"),
    "bits": FieldSpec(shape=(2,), dtype="bool"),
    "wide": FieldSpec(shape=(1,), dtype="float64"),
}
COLUMNS = {"split": "string", "score": "float32", "ok": "bool", "count": "uint64", "k": "int8"}
N = 40


@pytest.fixture(params=FORMATS)
def suffix(request):
    if FORMATS[request.param]:
        pytest.importorskip(FORMATS[request.param])
    return request.param


def rich(path, n=N, *, texts=None, dead=()):
    """Make a store with a field of each kind, and values that are easily lost."""
    rng = np.random.default_rng(n)
    image = rng.standard_normal((n, 2, 3)).astype(np.float32)
    tokens = [rng.standard_normal((i % 5, 2)).astype(np.float16) for i in range(n)]
    if n > 6:
        image[3], image[5] = np.nan, -0.0
        image.view(np.uint32)[4] = 0x7FA00001  # a signalling NaN
        tokens[1][0, 0] = np.inf
    values = {
        "mean": rng.integers(0, 100, (n, 3)).astype(np.float32),
        "tokens": tokens,
        "flat": [np.arange(i % 3, dtype=np.float32) for i in range(n)],
        "image": image,
        "label": np.arange(n, dtype=np.uint32),
        "bits": rng.random((n, 2)) > 0.5,
        "wide": rng.random((n, 1)),
    }
    columns = {
        "split": texts or [f"spl\N{LATIN SMALL LETTER I WITH DIAERESIS}t {i}" * (i % 3) for i in range(n)],
        "score": np.arange(n, dtype=np.float32) / 3,
        "ok": np.arange(n) % 2 == 0,
        "count": np.arange(n, dtype=np.uint64) + 2**63,
        "k": (np.arange(n) % 100).astype(np.int8),
    }
    with embstore.open(path, "w-", config=CONFIG, fields=RICH, columns=COLUMNS) as store:
        if n:
            store.append([key(i) for i in range(n)], values, columns=columns, casting="same_kind")
        if dead:
            store.delete([key(i) for i in dead])
    return embstore.open(path)


def key(i):
    return f"dir/f:{i}.wav:c{i % 7}"


def contents(store):
    """All of a store, by what its arrays hold."""
    view = store.select()
    fields = {}
    for name, spec in store.fields.items():
        taken = view.to_ragged(name) if spec.ragged else view.to_numpy(name)
        parts = list(taken) if spec.ragged else taken
        fields[name] = [part.tobytes() for part in parts]
    columns = {
        name: (view.column(name).dtype, view.column(name).tobytes()) for name in store.columns if name != "split"
    }
    split = view.column("split").tolist() if "split" in store.columns else None
    return view.keys, store.config, list(store.fields.items()), list(store.columns.items()), fields, columns, split


def same(found, expected):
    assert contents(found) == contents(expected)
    assert embstore.verify(found.path).ok


# -- there and back ---------------------------------------------------------------------------


@pytest.mark.parametrize("n", [N, 1, 0])
def test_everything_comes_back(tmp_path, suffix, n):
    store = rich(tmp_path / "a.zarr", n)
    path = export_file(store, tmp_path / f"x.{suffix}")
    result = import_file(path, tmp_path / "b.zarr")
    assert (result.rows, result.skipped, result.replaced, result.ok) == (n, 0, 0, True)
    same(result.store, store)
    assert os.listdir(tmp_path).count(f"x.{suffix}") == 1
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".partial")]


def test_in_many_blocks(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(file_contents, "BLOCK_ROWS", 7)
    monkeypatch.setattr("embstore._engine.write.plans._BLOCK_ROWS", 3)
    store = rich(tmp_path / "a.zarr")
    path = export_file(store, tmp_path / f"x.{suffix}")
    same(import_file(path, tmp_path / "b.zarr").store, store)


def test_a_view_in_its_order_without_what_was_deleted(tmp_path, suffix):
    store = rich(tmp_path / "a.zarr", dead=[2, 9])
    view = store.select(keys=[key(i) for i in (7, 3, 30, 0)])
    result = import_file(export_file(view, tmp_path / f"x.{suffix}"), tmp_path / "b.zarr")
    assert result.store.select().keys == view.keys
    np.testing.assert_array_equal(result.store.select().to_numpy("image"), view.to_numpy("image"))
    result = import_file(export_file(store, tmp_path / f"y.{suffix}"), tmp_path / "c.zarr")
    same(result.store, store)


def test_texts_that_formats_cut_or_waste(tmp_path, suffix):
    texts = ["", "a\0", "\0", "x" * 60_000, "\N{GRINNING FACE}", "a\0b"] + ["y"] * (N - 6)
    store = rich(tmp_path / "a.zarr", texts=texts)
    same(import_file(export_file(store, tmp_path / f"x.{suffix}"), tmp_path / "b.zarr").store, store)


def test_some_fields_and_columns(tmp_path, suffix):
    store = rich(tmp_path / "a.zarr")
    path = export_file(store, tmp_path / f"x.{suffix}", fields=["tokens", "mean"])
    result = import_file(path, tmp_path / "b.zarr", field="mean", columns=["k"])
    assert result.store.fields == {"mean": RICH["mean"]}
    assert result.store.columns == {"k": "int8"}
    with pytest.raises(errors.UnknownFieldError):
        import_file(path, tmp_path / "c.zarr", field="image")
    with pytest.raises(errors.UnknownColumnError):
        import_file(path, tmp_path / "c.zarr", columns=["none"])
    with pytest.raises(errors.UnknownFieldError):
        export_file(store, tmp_path / f"y.{suffix}", fields=["none"])
    assert not (tmp_path / "c.zarr").exists()


@pytest.mark.parametrize("before", [0, 37, 64])
def test_blocks_that_end_where_chunks_do(tmp_path, monkeypatch, before):
    """Blocks of a file, and rows that are there already, need not fit the chunks; each chunk is written once."""
    monkeypatch.setattr(file_contents, "BLOCK_BYTES", 7 * 64)
    monkeypatch.setattr(bulk_append, "BLOCK_BYTES", 1)
    values = np.random.default_rng(0).standard_normal((1000, 16)).astype(np.float32)
    keys = [f"{i}:c{i % 3}" for i in range(1000)]
    values[:, 0] = np.arange(1000)
    np.savez(tmp_path / "x.npz", keys=np.array(keys), x=values, n=np.arange(1000))
    with embstore.open(tmp_path / "b.zarr", "w-", config={}, chunk_bytes=4096) as store:
        columns = {"n": np.arange(before)}
        if before:
            store.append(keys[:before], {"x": values[:before]}, columns=columns)
    written = []
    monkeypatch.setattr(steps, "step_hook", lambda operation, path, data: written.append((operation, path)))
    options = {"config": {}, "keys": LAST, "if_exists": "skip", "chunk_bytes": 4096}
    store = import_file(tmp_path / "x.npz", tmp_path / "b.zarr", **options).store
    chunks = [path for operation, path in written if operation == "rename" and "/x/c." in path]
    assert len(chunks) == len(set(chunks)) >= 14
    assert store.select().keys == keys
    np.testing.assert_array_equal(store.select().to_numpy(), values)
    np.testing.assert_array_equal(store.select().column("n"), np.arange(1000))
    assert embstore.verify(store.path).ok


@hypothesis.given(
    rows=st.lists(st.lists(st.floats(width=32), min_size=2, max_size=2), max_size=20),
    texts=st.lists(st.text(max_size=5), min_size=20, max_size=20),
)
@hypothesis.settings(max_examples=25, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_any_numbers_and_texts(tmp_path_factory, suffix, rows, texts):
    folder = tmp_path_factory.mktemp("any")
    values = np.array(rows, np.float32).reshape(-1, 2)
    keys = [f"{text}{i}:{text.replace(':', '')}c" for i, text in enumerate(texts[: len(rows)])]
    fields = {"x": FieldSpec(shape=(2,), nonfinite="allow")}
    with embstore.open(folder / "a.zarr", "w-", config={}, fields=fields, columns={"split": "string"}) as store:
        if rows:
            store.append(keys, values, columns={"split": texts[: len(rows)]})
        path = export_file(store, folder / f"x.{suffix}")
        same(import_file(path, folder / "b.zarr").store, store)


def test_other_tools_read_them(tmp_path):
    store = rich(tmp_path / "a.zarr")
    view = store.select()
    with np.load(export_file(store, tmp_path / "x.npz")) as file:
        np.testing.assert_array_equal(file["image"], view.to_numpy("image"))
        assert file["file_id"].tolist() == view.file_ids
        assert file["mean"].dtype == np.uint16
    h5py = pytest.importorskip("h5py")
    with h5py.File(export_file(store, tmp_path / "x.h5")) as file:
        np.testing.assert_array_equal(file["image"], view.to_numpy("image"))
        assert file["class_name"].asstr()[:].tolist() == view.class_names
        assert file["image"].maxshape == (None, 2, 3)
    safetensors = pytest.importorskip("safetensors")
    with safetensors.safe_open(export_file(store, tmp_path / "x.safetensors"), "np") as file:
        assert file.get_slice("mean").get_dtype() == "BF16"
        np.testing.assert_array_equal(file.get_tensor("image"), view.to_numpy("image"))
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(export_file(store, tmp_path / "x.parquet"))
    assert table["file_id"].to_pylist() == view.file_ids
    assert table["wide"].to_pylist() == view.to_numpy("wide").tolist()
    assert [len(row) for row in table["tokens"].to_pylist()] == [i % 5 for i in range(N)]


# -- into what is there -----------------------------------------------------------------------


def test_into_a_store_with_rows(tmp_path, suffix):
    first, both = rich(tmp_path / "a.zarr", 12), rich(tmp_path / "b.zarr", N)
    path = export_file(both, tmp_path / f"x.{suffix}")
    with pytest.raises(errors.KeysExistError) as caught:
        import_file(path, first.path)
    assert sorted(caught.value.keys) == sorted(key(i) for i in range(12))
    result = import_file(path, first.path, if_exists="skip")
    assert (result.rows, result.skipped) == (N - 12, 12)
    assert result.store.select().keys == both.select().keys
    result = import_file(path, first.path, if_exists="replace")
    assert (result.rows, result.replaced) == (N, N)
    same(result.store, both)
    result = import_file(path, first.path, if_exists="skip")
    assert (result.rows, result.skipped) == (0, N)


def test_into_a_cache(tmp_path, suffix):
    store = rich(tmp_path / "a.zarr")
    cache = embstore.Cache(tmp_path / "cache")
    path = export_file(store, tmp_path / f"x.{suffix}")
    assert import_file(path, cache).path == cache.path_of(CONFIG)
    same(cache.open(CONFIG), store)
    assert import_file(path, cache, if_exists="skip").skipped == N


def test_configs_are_compared(tmp_path, suffix):
    path = export_file(rich(tmp_path / "a.zarr"), tmp_path / f"x.{suffix}")
    with pytest.raises(errors.ConfigMismatchError) as caught:
        import_file(path, tmp_path / "b.zarr", config={**CONFIG, "big": 2})
    assert [d.name for d in caught.value.differences] == ["big"]
    assert caught.value.path == path
    assert not (tmp_path / "b.zarr").exists()
    embstore.open(tmp_path / "c.zarr", "w-", config={"other": 1}).close()
    with pytest.raises(errors.ConfigMismatchError):
        import_file(path, tmp_path / "c.zarr")
    assert import_file(path, tmp_path / "b.zarr", config=CONFIG).config == CONFIG


def test_a_store_of_other_fields(tmp_path, suffix):
    path = export_file(rich(tmp_path / "a.zarr"), tmp_path / f"x.{suffix}", fields="image")
    for name, spec, error in (
        ("other", RICH["image"], errors.UnknownFieldError),
        ("image", FieldSpec(shape=(2, 4)), errors.FieldMismatchError),
        ("image", FieldSpec(shape=(2, 3), layer="x"), errors.FieldMismatchError),
        ("image", FieldSpec(shape=(2, 3), dtype="float16"), errors.DtypeError),
    ):
        dest = tmp_path / "b.zarr"
        with embstore.open(dest, "a", config=CONFIG, fields={name: spec}, columns=COLUMNS) as store:
            with pytest.raises(error):
                import_file(path, dest)
            assert len(store) == 0
        durable.remove_tree(dest)
    with embstore.open(tmp_path / "c.zarr", "w-", config=CONFIG, fields={"image": RICH["image"]}):
        pass
    with pytest.raises(errors.UnknownColumnError):
        import_file(path, tmp_path / "c.zarr")
    assert import_file(path, tmp_path / "c.zarr", columns=()).rows == N


def test_progress_and_the_result_in_words(tmp_path, suffix):
    told = []
    path = export_file(rich(tmp_path / "a.zarr"), tmp_path / f"x.{suffix}")
    result = import_file(path, tmp_path / "b.zarr", progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (N, N)
    assert f"{N} rows added" in str(result)
    assert str(tmp_path / "b.zarr") in str(result)


# -- files of others --------------------------------------------------------------------------


def foreign(path, arrays):
    """Write arrays as another program would."""
    if path.suffix == ".npz":
        np.savez_compressed(path, **arrays)
    elif path.suffix == ".h5":
        import h5py

        with h5py.File(path, "w") as file:
            for name, values in arrays.items():
                text = values.dtype.kind == "U"
                file.create_dataset(name, data=values.astype(object) if text else values)
    else:
        import pyarrow as pa
        from pyarrow import parquet

        columns = {name: pa.array(list(values) if values.ndim > 1 else values) for name, values in arrays.items()}
        parquet.write_table(pa.table(columns), path)
    return path


@pytest.fixture(params=["npz", "h5", "parquet"])
def other(request, tmp_path):
    if FORMATS[request.param]:
        pytest.importorskip(FORMATS[request.param])
    return tmp_path / f"x.{request.param}"


X = np.arange(12, dtype=np.float32).reshape(4, 3)
LAST = "file_id:class"


def test_keys_and_rows(tmp_path, other):
    keys = np.array(["a:dog", "b:cat", "dog:c.wav:dog", "d"])
    foreign(other, {"keys": keys, "x": X, "split": np.array(["t"] * 4), "n": np.arange(4)})
    result = import_file(other, tmp_path / "b.zarr", config={"a": 1}, class_name="owl", keys=LAST)
    assert result.ok
    assert result.store.select().keys == ["a:dog", "b:cat", "dog:c.wav:dog", "d:owl"]
    np.testing.assert_array_equal(result.store.select().to_numpy("x"), X)
    assert result.store.columns == {"split": "string", "n": "int64"}


def test_file_ids_and_classes(tmp_path, other):
    foreign(other, {"file_id": np.arange(4), "class_name": np.array(["a", "b", "b", "a"]), "x": X})
    result = import_file(other, tmp_path / "b.zarr", config={"a": 1}, field="mean")
    assert result.store.select().keys == ["0:a", "1:b", "2:b", "3:a"]
    assert list(result.store.fields) == ["mean"]


def test_rows_that_cannot_be_used_do_not_stop_the_others(tmp_path, other):
    x = np.concatenate([X, X, X]).copy()
    x[5, 1], x[7, 0] = np.nan, np.inf
    keys = ["a", "b", "", "a:_", "c:", "d", "e", "f", "g:x", "h", "g:x", "i"]
    foreign(other, {"key": np.array(keys), "x": x})
    result = import_file(other, tmp_path / "b.zarr", config={}, keys=LAST)
    assert result.store.select().keys == ["b", "e", "h", "i"]
    np.testing.assert_array_equal(result.store.select().to_numpy(), x[[1, 6, 9, 11]])
    assert {one.key: one.reason for one in result.unreadable} == {
        "": "the file_id is empty",
        "c:": "the class is empty; leave out the colon of a sample without a class",
        "a": "several entries have the key 'a'",
        "a:_": "several entries have the key 'a'",
        "g:x": "several entries have the key 'g:x'",
        "d": "NaN or infinity in 'x'",
        "f": "NaN or infinity in 'x'",
    }
    assert embstore.verify(result.path).ok
    assert "several entries have the key" in str(result)


def test_nan_where_the_field_allows_it(tmp_path, other):
    x = X.copy()
    x[2] = np.nan
    foreign(other, {"keys": np.array(list("abcd")), "x": x})
    fields = {"x": FieldSpec(shape=(3,), nonfinite="allow", layer="last")}
    result = import_file(other, tmp_path / "b.zarr", config={}, fields=fields)
    assert result.rows == 4
    assert result.store.fields == fields


def test_float64_is_cast_only_if_asked(tmp_path, other):
    foreign(other, {"keys": np.array(list("abcd")), "x": X.astype(np.float64)})
    with pytest.raises(errors.DtypeError):
        import_file(other, tmp_path / "b.zarr", config={})
    assert not (tmp_path / "b.zarr").exists()
    assert import_file(other, tmp_path / "b.zarr", config={}, casting="same_kind").store.fields["x"].dtype == "float32"
    kept = {"x": FieldSpec(shape=(3,), dtype="float64")}
    assert import_file(other, tmp_path / "c.zarr", config={}, fields=kept).store.fields == kept
    assert import_file(other, tmp_path / "c.zarr", config={}, if_exists="skip").skipped == 4


def test_no_config_anywhere(tmp_path, other):
    foreign(other, {"keys": np.array(list("abcd")), "x": X})
    with pytest.raises(TypeError, match="config="):
        import_file(other, tmp_path / "b.zarr")


@pytest.mark.parametrize("arrays", [{"x": X}, {"keys": np.array(list("abcd"))}, {"keys": X, "x": X}])
def test_what_is_not_understood_is_listed(tmp_path, other, arrays):
    foreign(other, arrays)
    with pytest.raises(errors.FileFormatError, match="Expected keys") as caught:
        import_file(other, tmp_path / "b.zarr", config={})
    for name in arrays:
        assert f"{name}: " in caught.value.reason
    assert not (tmp_path / "b.zarr").exists()


@pytest.fixture(params=["npz", "h5", "safetensors"])
def entries(request, tmp_path):
    """Save an array for each key."""
    path = tmp_path / f"x.{request.param}"

    def save(arrays):
        if request.param == "npz":
            np.savez(path, **arrays)
        elif request.param == "h5":
            with pytest.importorskip("h5py").File(path, "w") as file:
                for name, values in arrays.items():
                    file[name] = values
        else:
            pytest.importorskip("safetensors.numpy").save_file(arrays, path)
        return path

    return save


def test_an_array_for_each_key(tmp_path, entries):
    rows = {f"v{i}:{'dog' if i % 2 else 'cat'}": X[i] for i in range(4)}
    result = import_file(entries(rows), tmp_path / "b.zarr", config={}, field="mean", keys=LAST)
    assert result.store.fields == {"mean": FieldSpec(shape=(3,))}
    for key, row in rows.items():
        np.testing.assert_array_equal(result.store[key], row)
    bare = {name.partition(":")[0]: row for name, row in rows.items()}
    result = import_file(entries(bare), tmp_path / "c.zarr", config={}, keys="file_id", class_name="dog")
    assert sorted(result.store) == [f"v{i}:dog" for i in range(4)]


def test_an_array_for_each_key_of_different_lengths(tmp_path, entries):
    rows = {f"v{i}:dog": np.full((i, 2), i, np.float16) for i in (2, 0, 5)}
    result = import_file(entries(rows), tmp_path / "b.zarr", config={}, ragged=True, keys=LAST)
    for key in rows:
        np.testing.assert_array_equal(result.store[key], rows[key])


def test_an_array_for_each_key_that_do_not_fit(tmp_path, entries):
    rows = {"a:x": X[0], "b:x": X[1], "c:x": X[2, :2], "d:x": X[3].astype(np.float16), "e:x": np.full(3, np.nan, "f4")}
    result = import_file(entries(rows), tmp_path / "b.zarr", config={}, keys=LAST)
    assert result.store.select().keys == ["a:x", "b:x"]
    assert {one.key for one in result.unreadable} == {"c:x", "d:x", "e:x"}
    result = import_file(entries(rows), tmp_path / "c.zarr", config={}, casting="same_kind", keys=LAST)
    np.testing.assert_array_equal(result.store["d:x"], X[3].astype(np.float16).astype(np.float32))


def test_a_matrix_without_keys_is_no_row(tmp_path, entries):
    with pytest.raises(errors.FileFormatError, match="an array for each key, named 'file_id:class'"):
        import_file(entries({"a:x": X[0], "embeddings": X}), tmp_path / "b.zarr", config={})


def test_bfloat16_for_each_key(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "x.safetensors"
    values = torch.randn(3, 4).bfloat16()
    pytest.importorskip("safetensors.torch").save_file({f"{i}:x": values[i].clone() for i in range(3)}, path)
    view = import_file(path, tmp_path / "b.zarr", keys=LAST, config={}).store.select(keys=["0:x", "1:x", "2:x"])
    assert view.store.fields["embedding"].dtype == "bfloat16"
    np.testing.assert_array_equal(view.to_numpy(), values.float().numpy())


def test_what_does_not_fit_is_left_out(tmp_path):
    np.savez(tmp_path / "x.npz", keys=np.array(list("abcd")), x=X, y=X[:3], when=np.zeros(4, "M8[s]"), sample=X[:, 0])
    result = import_file(tmp_path / "x.npz", tmp_path / "b.zarr", config={})
    assert {one.key for one in result.left_out} == {"y", "when", "sample"}
    assert not result.ok


@pytest.mark.parametrize("packed", [np.savez, np.savez_compressed])
def test_orders_and_byte_orders_of_numpy(tmp_path, packed):
    x = np.random.default_rng(0).standard_normal((50, 3, 4))
    packed(tmp_path / "x.npz", keys=np.array([f"{i}" for i in range(50)], "S"), x=np.asfortranarray(x.astype(">f4")))
    store = import_file(tmp_path / "x.npz", tmp_path / "b.zarr", config={}).store
    np.testing.assert_array_equal(store.select().to_numpy(), x.astype(np.float32))


def test_objects_of_python_are_not_unpickled(tmp_path):
    class Touch:
        def __reduce__(self):
            return Path.touch, (tmp_path / "touched",)

    np.savez(tmp_path / "x.npz", keys=np.array([Touch()] * 4, object), x=X)
    with pytest.raises(errors.FileFormatError):
        import_file(tmp_path / "x.npz", tmp_path / "b.zarr", config={})
    np.savez(tmp_path / "y.npz", keys=np.array(list("abcd")), x=X, extra=np.array([Touch()] * 4, object))
    result = import_file(tmp_path / "y.npz", tmp_path / "b.zarr", config={})
    assert [one.key for one in result.left_out] == ["extra"]
    assert not (tmp_path / "touched").exists()


def test_lists_of_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [[1.0, 2.0], [3.0, 4.0], [5.0], None, [6.0, None]]
    table = pa.table({"keys": list("abcde"), "x": pa.array(rows, pa.list_(pa.float32()))})
    parquet.write_table(table, tmp_path / "x.parquet")
    result = import_file(tmp_path / "x.parquet", tmp_path / "b.zarr", config={})
    assert result.store.select().keys == ["a", "b"]
    assert {one.key for one in result.unreadable} == {"c", "d", "e"}
    result = import_file(tmp_path / "x.parquet", tmp_path / "c.zarr", config={}, ragged=True)
    assert result.store.select().keys == ["a", "b", "c"]
    assert result.store["c"].tolist() == [5.0]


def test_texts_in_lists_are_left_out(tmp_path):
    np.savez(tmp_path / "x.npz", keys=np.array(list("abcd")), x=X, tags=np.array([["a", "b"]] * 4))
    assert [one.key for one in import_file(tmp_path / "x.npz", tmp_path / "b.zarr", config={}).left_out] == ["tags"]
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    lists = {
        "tags": pa.array([["a"], ["b"], [], ["c"]]),
        "pairs": pa.array([["a", "b"]] * 4, pa.list_(pa.string(), 2)),
        "deep": pa.array([[[[1.0]]]] * 4),
        "when": pa.array([0] * 4, pa.timestamp("s")),
    }
    table = pa.table({"keys": list("abcd"), "x": pa.array(list(X), pa.list_(pa.float32())), **lists})
    parquet.write_table(table, tmp_path / "x.parquet")
    result = import_file(tmp_path / "x.parquet", tmp_path / "c.zarr", config={})
    assert {one.key for one in result.left_out} == set(lists)
    assert result.rows == 4


def test_what_lies_in_other_files_is_not_read(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = X
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["keys"] = list("abcd")
        file["x"] = h5py.ExternalLink("secret.h5", "x")
        layout = h5py.VirtualLayout((4, 3), "f4")
        layout[:] = h5py.VirtualSource(tmp_path / "secret.h5", "x", (4, 3))
        file.create_virtual_dataset("y", layout)
        file.create_dataset("z", (4, 3), "f4", external=[(str(tmp_path / "secret.h5"), 0, 48)])
    with pytest.raises(errors.FileFormatError, match="Expected keys"):
        import_file(tmp_path / "x.h5", tmp_path / "b.zarr", config={})


def read(name, label=None, **options):
    return row_name(name, label, ImportOptions(**options), Path("old.npz"))


@pytest.mark.parametrize(
    ("found", "label", "order", "key"),
    [
        ("v1:dog", None, "file_id:class", "v1:dog"),
        ("dog:v1.wav", None, "file_id:class", "dog:v1.wav"),
        ("dog:v1.wav", None, "class:file_id", "v1.wav:dog"),
        ("dog:v1.wav", None, "class:file_name", "v1:dog"),
        ("dog:a.b/v1", None, "class:file_name", "a.b/v1:dog"),
        ("v1.wav", None, "class:file_name", "v1"),
        ("x:y:dog", None, "file_id:class", "x:y:dog"),
        ("dog:x:y", None, "class:file_id", "x:y:dog"),
        (r"C:\data\1.wav", None, "file_id", r"C:\data\1.wav:_"),
        ("v1", "dog", None, "v1:dog"),
        ("v1.5", None, None, "v1.5"),
        ("s3://b/v1.wav", None, None, "s3://b/v1.wav:_"),
        ("s3://b/v1.wav:dog", None, "file_id:class", "s3://b/v1.wav:dog"),
        ("s3://b/v1.wav", None, "file_id:class", "s3://b/v1.wav:_"),
        # The class that is stated beside a name decides, also against the order.
        ("dog:v1", "dog", None, "v1:dog"),
        ("v1:dog", "dog", None, "v1:dog"),
        ("dog:v1", "dog", "file_id:class", "v1:dog"),
        ("v1:dog", "dog", "class:file_id", "v1:dog"),
        ("dog:dog", "dog", None, "dog:dog"),
        ("dog:a:dog", "dog", "file_id:class", "dog:a:dog"),
        (r"C:\data\1.wav", "dog", "file_id", r"C:\data\1.wav:dog"),
        ("s3://b/v1.wav:dog", "dog", None, "s3://b/v1.wav:dog"),
        # A function.
        ("v1|dog", None, lambda name: name.replace("|", ":"), "v1:dog"),
        (7, None, lambda name: embstore.Key(str(name), "dog"), "7:dog"),
        (7, "dog", lambda name: embstore.Key(str(name)), "7:dog"),
        ("dog:v1", "dog", lambda name: embstore.Key.parse(name), "v1:dog"),
    ],
)
def test_keys_as_others_write_them(found, label, order, key):
    assert read(found, label, keys=order) == (found, embstore.Key.parse(key))


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("v1:dog", None),
        ("dog:v1.wav", None),
        (r"C:\data\1.wav", None),
        ("doi:10.1/x", None),
        ("2020-01-01T10:30:00", None),
        ("s3://b/v1.wav:dog", None),
        ("a:", None),
        ("dog:x:dog", "dog"),
    ],
)
def test_no_order_is_guessed(name, label):
    """A wrong guess is a wrong label, in silence."""
    with pytest.raises(errors.FileFormatError, match="State the order") as caught:
        read(name, label)
    first, last = name.partition(":"), name.rpartition(":")
    assert caught.value.path == Path("old.npz")
    for file_id, class_name in ((last[0], last[2]), (first[2], first[0]) if "//" not in name else (last[0], last[2])):
        assert f"the file_id {file_id!r} of class {class_name!r}" in caught.value.reason


def test_an_order_is_asked_for_before_a_store_is_made(tmp_path, entries):
    for name in (r"C:\data\1.wav", "doi:10.1-x", "2020-01-01T10:30:00", "dog:v1"):
        path = entries({name: X[0]})
        with pytest.raises(errors.FileFormatError, match="keys="):
            import_file(path, tmp_path / "b.zarr", config={})
        assert not (tmp_path / "b.zarr").exists()
        result = import_file(path, tmp_path / "c.zarr", config={}, keys="file_id")
        assert list(result.store) == [str(embstore.Key(name))]
        durable.remove_tree(tmp_path / "c.zarr")
    with pytest.raises(ValueError, match="expected keys to be one of"):
        import_file(path, tmp_path / "b.zarr", config={}, keys="class")


def test_names_with_and_without_colons_in_one_file_are_refused_until_it_is_stated_what_they_are(tmp_path, other):
    foreign(other, {"ids": np.array(["P1", "P2", "Q9:x"]), "x": X[:3]})
    with pytest.raises(errors.FileFormatError, match=r"the file_id 'Q9' of class 'x' or .*a file_id without a class"):
        import_file(other, tmp_path / "a.zarr", config={})
    assert not (tmp_path / "a.zarr").exists()
    for order, keys in (("file_id", ["P1", "P2", "Q9:x:_"]), (LAST, ["P1", "P2", "Q9:x"])):
        store = import_file(other, tmp_path / f"{order[:8]}.zarr", config={}, keys=order).store
        assert list(store) == keys
        export_file(store, again := tmp_path / f"again{other.suffix}")
        assert list(import_file(again, tmp_path / "b.zarr").store) == keys  # an export states what its names are
        durable.remove_tree(tmp_path / "b.zarr")
        durable.remove_tree(store.path)


def test_an_array_of_file_ids_states_what_its_names_are(tmp_path, other):
    names = np.array(["dog:x", "C:/1.wav", "b", "doi:10.1/x"])
    foreign(other, {"file_id": names, "class_name": np.array(["dog", "a", "b", "c"]), "x": X})
    result = import_file(other, tmp_path / "b.zarr", config={})
    assert result.store.select().keys == ["dog:x:dog", "C:/1.wav:a", "b:b", "doi:10.1/x:c"]
    foreign(other, {"file_id": names, "x": X})
    assert import_file(other, tmp_path / "c.zarr", config={}).store.select().file_ids == names.tolist()
    foreign(other, {"ids": np.array(["a:x", "b:y", "c:x", "d"]), "x": X})
    result = import_file(other, tmp_path / "d.zarr", config={}, keys=LAST)
    assert result.store.select().keys == ["a:x", "b:y", "c:x", "d"]


@pytest.mark.parametrize(
    ("found", "label"),
    [
        ("v1:dog", "cat"),
        ("", None),
        (":dog", None),
        ("v1:", None),
        (7, None),
        (b"v1", None),
        ("v1", 7),
        ("v\ud800", None),
        ("x" * 70_000, None),
        ("v1", ""),
        ("v1", "a:b"),
        (None, None),
        ((), None),
    ],
)
def test_names_that_are_no_keys(found, label):
    one = read(found, label, keys=LAST)
    assert isinstance(one, embstore.exchange.Unreadable)
    assert one.key == found
    assert one.reason


# -- broken and hostile files -----------------------------------------------------------------


def refused(path, folder, **options):
    """Import a file that may be broken: it comes whole, or is refused by name and leaves no row."""
    dest = folder / "dest.zarr"
    try:
        result = import_file(path, dest, **options)
    except (errors.FileFormatError, errors.UnsupportedFormatError) as error:
        found = error
    else:
        found = result
    if isinstance(found, Exception):
        assert str(path) in str(found)
        assert not dest.exists() or len(embstore.open(dest)) == 0
    if dest.exists():
        durable.remove_tree(dest)
    return found


def test_truncated_anywhere(tmp_path, suffix):
    data = export_file(rich(tmp_path / "a.zarr"), tmp_path / f"x.{suffix}").read_bytes()
    for part in range(20):
        (tmp_path / f"y.{suffix}").write_bytes(data[: len(data) * part // 20])
        assert isinstance(refused(tmp_path / f"y.{suffix}", tmp_path), Exception), part


def test_flipped_bits(tmp_path, suffix):
    """The file is refused by name or imported. Where the format has checksums, of numbers or of all, they are right."""
    store = rich(tmp_path / "a.zarr", 12)
    data, expected = export_file(store, tmp_path / f"x.{suffix}").read_bytes(), contents(store)
    rng, path, dest = np.random.default_rng(1), tmp_path / f"y.{suffix}", tmp_path / "dest.zarr"
    count = 0
    for place in rng.integers(len(data), size=300).tolist():
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        try:
            result = import_file(path, dest)
        except (errors.FileFormatError, errors.UnsupportedFormatError):
            count += 1
        except TypeError:  # where metadata lies is lost: it is a file of others, which has no config
            count += 1
        else:
            found = contents(result.store)
            if suffix == "npz":
                assert found == expected, place
            elif suffix != "safetensors" and result.store.fields == store.fields and result.rows == 12:
                assert found[4] == expected[4], place
        if dest.exists():
            durable.remove_tree(dest)
    assert count > 10


def test_hostile_headers_of_safetensors(tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / "x.safetensors"

    def write(header, data=b"\0" * 64, length=None):
        raw = header if isinstance(header, bytes) else json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)

    good = {"dtype": "F32", "shape": [4, 3], "data_offsets": [0, 48]}
    for header, length in [
        (good, 2**63),
        (good, 2**40),
        (good, 10),
        (b"[]", None),
        (b"{" * 5000, None),
        (b'{"a": 1}', None),
        ({"x": {**good, "data_offsets": [0, 2**60]}}, None),
        ({"x": {**good, "shape": [2**40, 2**40]}}, None),
        ({"x": {**good, "shape": [-4, 3]}}, None),
        ({"x": {**good, "data_offsets": [48, 0]}}, None),
        ({"x": {**good, "dtype": "F99"}}, None),
        ({"x": good, "__metadata__": {"embstore": 7}}, None),
        ({"x": good, "__metadata__": {"embstore": "{}"}}, None),
        ({"x": good, "y": good}, None),
    ]:
        write(header, length=length)
        assert isinstance(refused(path, tmp_path, config={}), Exception), header


def test_hostile_headers_of_numpy(tmp_path):
    path = tmp_path / "x.npz"
    for header in [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 1000)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-4, 3)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 3",
        "{'descr': '|O', 'fortran_order': False, 'shape': (4,)}",
        "{'descr': '<U999999999', 'fortran_order': False, 'shape': (4,)}",
        "__import__('os').system('touch /tmp/never')",
    ]:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            raw = header.encode() + b"\n"
            archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(raw)) + raw + bytes(48))
            archive.writestr("keys.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(raw)) + raw + bytes(48))
        assert isinstance(refused(path, tmp_path, config={}), Exception), header


def test_bombs(tmp_path):
    """A small file that claims to hold terabytes is refused before anything is made."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("file_id", (10**10,), "i8", chunks=(1024,))
        file.create_dataset("x", (10**10, 768), "f4", chunks=(1024, 768))
    with pytest.raises(errors.FileFormatError, match="claims to hold"):
        import_file(tmp_path / "x.h5", tmp_path / "b.zarr", config={})
    np.savez_compressed(tmp_path / "y.npz", keys=np.array([str(i) for i in range(200)]), x=np.zeros((200, 3), "f4"))
    assert import_file(tmp_path / "y.npz", tmp_path / "c.zarr", config={}).rows == 200


def test_metadata_that_does_not_match_the_arrays(tmp_path, suffix, monkeypatch):
    store = rich(tmp_path / "a.zarr", 12)
    own = StoreMetadata.to_json
    for lie in [
        {"fields": {"image": FieldSpec(shape=(7,))}},
        {"fields": {"image": FieldSpec(shape=(2, 3), dtype="float16")}},
        {"fields": {"image": FieldSpec(shape=(2, 3), ragged=True)}},
        {"fields": {"tokens": FieldSpec(shape=(2,), dtype="float16")}},
        {"fields": {"none": FieldSpec(shape=(2,))}},
        {"columns": {"none": "int8"}},
        {"columns": {"k": "string"}},
        {"columns": {"k": "int16"}},
        {"columns": {"split": "int8"}},
    ]:

        def lying(self, lie=lie):
            return own(replace(self, **lie))

        monkeypatch.setattr(StoreMetadata, "to_json", lying)
        path = export_file(store, tmp_path / f"x.{suffix}")
        assert isinstance(refused(path, tmp_path), errors.FileFormatError), lie


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "7",
        "{}",
        "[" * 100_000,
        '{"config": {}, "fields": {"x": {}}, "columns": {}}',
        '{"config": {}, "fields": {"x": {"shape": [-1]}}, "columns": {}}',
        '{"config": {}, "fields": {"x": {"shape": [3], "new": 1}}, "columns": {}}',
        '{"config": {}, "fields": {"../x": {"shape": [3]}}, "columns": {}}',
        '{"config": {}, "fields": {"x": {"shape": [3]}}, "columns": {"y": "object"}}',
        '{"config": {}, "fields": {"x": {"shape": [3]}}, "columns": {"x": "int8"}}',
        '{"config": [], "fields": {}, "columns": {}}',
        '{"config": {"a": NaN}, "fields": {}, "columns": {}}',
        '{"config": {"a": 1e999}, "fields": {}, "columns": {}}',
    ],
)
def test_metadata_that_is_broken(tmp_path, suffix, text, monkeypatch):
    store = rich(tmp_path / "a.zarr", 3)
    monkeypatch.setattr(StoreMetadata, "to_json", lambda self: text)
    path = export_file(store, tmp_path / f"x.{suffix}")
    assert "its metadata 'embstore' is broken" in str(refused(path, tmp_path))


def test_metadata_that_is_too_large(tmp_path, monkeypatch):
    path = export_file(rich(tmp_path / "a.zarr", 3), tmp_path / "x.npz")
    monkeypatch.setattr("embstore.exchange.npz._MOST_METADATA", 10)
    assert "too large" in str(refused(path, tmp_path))


def test_metadata_is_json_that_others_read(tmp_path):
    store = rich(tmp_path / "a.zarr")
    with np.load(export_file(store, tmp_path / "x.npz")) as file:
        found = [str(file["__embstore__"])]
    h5py = pytest.importorskip("h5py")
    with h5py.File(export_file(store, tmp_path / "x.h5")) as file:
        found.append(file.attrs["embstore"])
    safetensors = pytest.importorskip("safetensors")
    with safetensors.safe_open(export_file(store, tmp_path / "x.safetensors"), "np") as file:
        found.append(file.metadata()["embstore"])
    parquet = pytest.importorskip("pyarrow.parquet")
    found.append(parquet.read_schema(export_file(store, tmp_path / "x.parquet")).metadata[b"embstore"])
    for text in found:
        metadata = json.loads(text)
        assert metadata["config"] == CONFIG
        assert metadata["columns"] == COLUMNS
        assert list(metadata["fields"]) == list(RICH)
        assert metadata["fields"]["mean"] == {"shape": [3], "dtype": "bfloat16", "layer": "layer_2", "pooling": "mean"}


def test_arrays_that_are_shorter_than_they_say(tmp_path, monkeypatch):
    """Whatever a library gives, a commit has as many rows in each array."""
    from embstore.exchange import npz

    np.savez(tmp_path / "x.npz", keys=np.array(list("abcd")), x=X, n=np.arange(4))
    own = npz.File.read
    for short in ("keys", "x", "n"):

        def lying(self, name, cuts, short=short):
            return (part[:-1] if name == short else part for part in own(self, name, cuts))

        monkeypatch.setattr(npz.File, "read", lying)
        assert "expected 4" in str(refused(tmp_path / "x.npz", tmp_path, config={}))


# -- files and libraries ----------------------------------------------------------------------


def test_an_export_that_fails_leaves_what_was_there(tmp_path, suffix, monkeypatch):
    store, path = rich(tmp_path / "a.zarr"), tmp_path / f"x.{suffix}"
    path.write_bytes(b"before")

    def fail(self, *args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting.Outgoing, "values", fail)
    with pytest.raises(KeyboardInterrupt):
        export_file(store, path)
    assert path.read_bytes() == b"before"
    assert sorted(os.listdir(tmp_path)) == ["a.zarr", "a.zarr.lock", f"x.{suffix}"]


@pytest.mark.parametrize("step", ["create", "fsync", "rename"])
def test_a_disk_that_fails(tmp_path, monkeypatch, step):
    store, path = rich(tmp_path / "a.zarr"), tmp_path / "x.npz"

    def hook(operation, where, data):
        if operation == step:
            raise OSError(28, "No space left on device", where)

    monkeypatch.setattr(steps, "step_hook", hook)
    with pytest.raises(errors.StorageFullError):
        export_file(store, path)
    assert sorted(os.listdir(tmp_path)) == ["a.zarr", "a.zarr.lock"]


def test_a_view_that_has_a_row_twice(tmp_path):
    store = rich(tmp_path / "a.zarr")
    with pytest.raises(errors.DuplicateKeysError):
        export_file(store.select(rows=[0, 1, 0]), tmp_path / "x.npz")


def test_formats_by_suffix_or_name(tmp_path):
    store = rich(tmp_path / "a.zarr")
    for call in (lambda: export_file(store, tmp_path / "x.zip"), lambda: import_file("x.csv", tmp_path / "b.zarr")):
        with pytest.raises(errors.UnknownFormatError, match="parquet"):
            call()
    path = export_file(store, tmp_path / "x.data", format="npz")
    same(import_file(path, tmp_path / "b.zarr", format="npz").store, store)
    with pytest.raises(errors.UnknownFormatError):
        import_file(path, tmp_path / "c.zarr", format="csv")
    with pytest.raises(FileNotFoundError):
        import_file(tmp_path / "none.npz", tmp_path / "c.zarr")


@pytest.mark.parametrize(("suffix", "module"), [("h5", "h5py"), ("safetensors", "safetensors"), ("parquet", "pyarrow")])
def test_a_library_that_is_missing(tmp_path, monkeypatch, suffix, module):
    store = rich(tmp_path / "a.zarr")
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(errors.MissingLibraryError, match=r"pip install 'embstore\[exchange\]'") as caught:
        export_file(store, tmp_path / f"x.{suffix}")
    assert isinstance(caught.value, ImportError)
    assert caught.value.library == module
    (tmp_path / f"x.{suffix}").write_bytes(b"")
    with pytest.raises(errors.MissingLibraryError):
        import_file(tmp_path / f"x.{suffix}", tmp_path / "b.zarr")


def test_a_commit_is_made_anew_only_for_bad_rows(tmp_path, monkeypatch):
    """A sound file is read once, and one with bad rows three times."""
    reads = []
    own = bulk_append.BulkAppend._checked

    def counted(self, *args):
        reads.append(args[0])
        return own(self, *args)

    monkeypatch.setattr(bulk_append.BulkAppend, "_checked", counted)
    x = X.copy()
    np.savez(tmp_path / "x.npz", keys=np.array(list("abcd")), x=x)
    import_file(tmp_path / "x.npz", tmp_path / "b.zarr", config={})
    assert reads == ["x"]
    x[1] = np.nan
    np.savez(tmp_path / "x.npz", keys=np.array(list("abcd")), x=x)
    reads.clear()
    result = import_file(tmp_path / "x.npz", tmp_path / "c.zarr", config={})
    assert reads == ["x"] * 3
    assert result.store.select().keys == ["a", "c", "d"]
    assert embstore.verify(result.path).ok
