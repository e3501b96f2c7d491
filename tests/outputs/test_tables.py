"""Views as pandas, xarray and Parquet: what is read, when, and what names may not be."""

import pickle

import numpy as np
import pytest

import embstore
from embstore import errors

pd = pytest.importorskip("pandas")
xr = pytest.importorskip("xarray")
pq = pytest.importorskip("pyarrow.parquet")


COLUMNS = {"split": "string", "n": "int64"}


@pytest.fixture
def several(path, rng):
    """A store of fields of every kind, its keys, and what is in it; one row is deleted."""
    keys = [f"file_{i:02d}:class_{i % 3}" for i in range(20)]
    lengths = rng.integers(1, 6, 20)
    values = {
        "mean": rng.standard_normal((20, 4)).astype(np.float32),
        "map": rng.standard_normal((20, 2, 3)).astype(np.float16),
        "score": rng.standard_normal(20),
        "tokens": [rng.standard_normal((n, 4)).astype(np.float32) for n in lengths],
        "brain": rng.standard_normal((20, 3)).astype(np.float32),
    }
    specs = {
        "mean": embstore.FieldSpec(shape=(4,), dims=("feature",)),
        "map": embstore.FieldSpec(shape=(2, 3), dtype="float16"),
        "score": embstore.FieldSpec(shape=(), dtype="float64"),
        "tokens": embstore.FieldSpec(shape=(4,), dims=("feature",), ragged=True),
        "brain": embstore.FieldSpec(shape=(3,), dtype="bfloat16"),
    }
    store = embstore.open(path, "w-", config={"encoder": "test"}, fields=specs, columns=COLUMNS, chunk_bytes=4096)
    store.append(keys, values, columns={"split": ["a", "b"] * 10, "n": np.arange(20)}, casting="same_kind")
    store.delete([keys[3]])
    values["tokens"] = np.array(values["tokens"], dtype=object)
    return store, keys, values


# -- pandas -----------------------------------------------------------------------------------


def test_a_join_on_file_id_is_one_line(several):
    store, _, _ = several
    metadata = pd.DataFrame({"loudness": [0.5, 0.7]}, index=["file_01", "file_02"])
    frame = store.select(classes=["class_1", "class_2"]).to_pandas(index="file_id").join(metadata)
    assert frame.index.name == "file_id"
    assert frame.loc["file_01", "loudness"] == 0.5
    assert frame.loc["file_02", "key"] == "file_02:class_2"
    assert frame["loudness"].isna().sum() == len(frame) - 2
    with pytest.raises(ValueError, match="index"):
        store.select().to_pandas(index="row")


def test_vectors_come_only_when_asked_for(several):
    store, _, values = several
    view = store.select()
    assert list(view.to_pandas()) == ["file_id", "class_name", "split", "n"]
    frame = view.to_pandas(["mean", "map", "score", "tokens"])
    np.testing.assert_array_equal(np.stack(frame["mean"]), values["mean"][view.rows])
    np.testing.assert_array_equal(np.stack(frame["map"]), values["map"][view.rows])
    np.testing.assert_array_equal(frame["score"], values["score"][view.rows])
    for found, wanted in zip(frame["tokens"], values["tokens"][view.rows], strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert view[:1].to_pandas("mean")["mean"].iloc[0].shape == (4,)
    empty = view[:0].to_pandas(["mean", "tokens"], index="file_id")
    assert len(empty) == 0
    assert list(empty) == ["key", "class_name", "split", "n", "mean", "tokens"]
    with pytest.raises(errors.UnknownFieldError):
        view.to_pandas(["nothing"])


# -- xarray -----------------------------------------------------------------------------------


def test_a_dataset_has_fields_columns_and_keys(several):
    store, keys, values = several
    view = store.select(rows=[7, 2, 2, 19])
    data = view.to_xarray()
    assert dict(data["mean"].sizes) == {"sample": 4, "feature": 4}
    assert data["map"].dims == ("sample", "map_0", "map_1")
    assert data["score"].dims == ("sample",)
    assert data["brain"].dtype == np.float32
    assert set(data.coords) == {"key", "file_id", "class_name", "split", "n", "tokens_length"}
    assert data["key"].values.tolist() == [keys[i] for i in (7, 2, 2, 19)]
    assert data["n"].values.tolist() == [7, 2, 2, 19]
    assert data["split"].values.tolist() == ["b", "a", "a", "b"]
    np.testing.assert_array_equal(data["map"].values, values["map"][view.rows])
    np.testing.assert_array_equal(data["brain"].values, view.to_numpy("brain"))
    padded = view.to_numpy("tokens")
    np.testing.assert_array_equal(data["tokens"].values, padded.values)
    assert data["tokens_length"].values.tolist() == padded.lengths.tolist()
    assert data.attrs["fingerprint"] == store.snapshot.record.fingerprint
    assert set(view.to_xarray("mean").data_vars) == {"mean"}
    assert view.to_xarray("mean").set_xindex("key").sel(key=keys[19])["n"].item() == 19
    assert data.where(data["class_name"] == "class_1", drop=True).sizes["sample"] == 2
    assert "2.0" not in repr(data["mean"])


@pytest.mark.parametrize("mapping", ["auto", "never"])
@pytest.mark.parametrize(
    "rows", [slice(None), slice(4, 12), slice(None, None, -3)], ids=["all", "neighbours", "others"]
)
def test_every_kind_of_index_reads_what_numpy_does(several, mapping, rows):
    store, _, values = several
    view = embstore.open(store.path, mapping=mapping).select()[rows]
    wanted = values["map"][view.rows]
    lazy = view.to_xarray()["map"]
    for key in (
        (slice(None),),
        (2,),
        (-1, 1),
        (slice(1, 5), slice(None), 2),
        (slice(None, None, -1), 0, [2, 0]),
        ([2, 0, 2], slice(None), [1]),
        (slice(0, 0),),
        ([0, 1], 1, 2),
    ):
        outer = wanted
        for axis in reversed(range(len(key))):
            outer = outer[(slice(None),) * axis + (key[axis],)]
        np.testing.assert_array_equal(lazy[key].values, outer)
    points = xr.DataArray([0, 2, 1], dims="p"), xr.DataArray([1, 0, 1], dims="p"), xr.DataArray([2, 2, 0], dims="p")
    np.testing.assert_array_equal(lazy[points].values, wanted[[0, 2, 1], [1, 0, 1], [2, 2, 0]])
    tokens = view.to_xarray()["tokens"]
    np.testing.assert_array_equal(tokens[1:3, 0].values, view.to_numpy("tokens").values[1:3, 0])


def test_nothing_is_read_before_it_is_asked_for(several, monkeypatch):
    store, _, _ = several
    reader = embstore.open(store.path, mapping="never")
    view, read = reader.select(rows=[9, 4, 1]), []
    own = type(reader.snapshot).take
    monkeypatch.setattr(
        type(reader.snapshot), "take", lambda s, name, rows: read.append((name, len(rows))) or own(s, name, rows)
    )
    monkeypatch.setattr(type(reader.snapshot), "copy", lambda *a: pytest.fail("read"))
    monkeypatch.setattr(type(reader.snapshot), "span", lambda *a: pytest.fail("read"))
    monkeypatch.setattr(type(reader.snapshot), "take_strings", lambda *a: pytest.fail("read"))
    data = view.to_xarray(["mean", "map"])
    repr(data)
    data._repr_html_()
    chosen = data["mean"].isel(sample=[0, 2]).isel(feature=slice(1, 3))
    assert read == []
    assert chosen.values.shape == (2, 2)
    assert read == [("mean", 2)]


def test_part_of_each_row_is_read_a_block_at_a_time(several, monkeypatch):
    store, _, values = several
    monkeypatch.setattr("embstore._outputs.xarray_dataset._BLOCK_BYTES", 40)
    view = store.select()
    np.testing.assert_array_equal(view.to_xarray()["mean"][:, 2].values, values["mean"][view.rows, 2])
    np.testing.assert_array_equal(
        view.to_xarray()["mean"][::-1, [3, 0]].values, values["mean"][view.rows[::-1]][:, [3, 0]]
    )


def test_what_a_dataset_hands_out_may_be_changed(make):
    store, _, rows = make()
    data = store.select().to_xarray()
    for part in (data["embedding"], data["embedding"][:, 2], data["embedding"][5:9, :3]):
        part.load()[0] = 7
    np.testing.assert_array_equal(store.select().to_numpy(), rows)


def test_a_dataset_pickles_and_notices_a_compaction(several):
    store, keys, values = several
    view = embstore.open(store.path).select()
    data = view.to_xarray("mean")
    again = pickle.loads(pickle.dumps(data))
    np.testing.assert_array_equal(again["mean"].values, values["mean"][view.rows])
    data = store.select().to_xarray("mean")
    store.delete(keys[:1])
    store.compact()
    with pytest.raises(errors.StoreChangedError):
        data["mean"].load()


def test_a_dataset_of_nothing(several):
    store, _, _ = several
    data = store.select(rows=[]).to_xarray()
    assert data.sizes["sample"] == 0
    assert data["tokens"].shape == (0, 0, 4)
    assert data.load()["key"].shape == (0,)


def test_names_that_xarray_takes_for_others(path):
    fields = {"a": embstore.FieldSpec(shape=(2,), dims=("split",)), "b": embstore.FieldSpec(shape=(2,), ragged=True)}
    columns = {"split": "string", "b_length": "int64"}
    with embstore.open(path, "w-", config={}, fields=fields, columns=columns) as store:
        values = {"a": np.ones((1, 2), np.float32), "b": [np.ones((3, 2), np.float32)]}
        store.append(["x:y"], values, columns={"split": "train", "b_length": 3})
        with pytest.raises(ValueError, match="split"):
            store.select().to_xarray("a")
        with pytest.raises(ValueError, match="b_length"):
            store.select().to_xarray("b")
        assert store.select().to_xarray([])["b_length"].item() == 3


# -- Parquet ----------------------------------------------------------------------------------


def test_a_parquet_file_holds_keys_columns_and_vectors(several, tmp_path, monkeypatch):
    monkeypatch.setattr("embstore._outputs.pandas_parquet.GROUP_ROWS", 8)
    store, keys, values = several
    view = store.select()
    points = np.arange(38, dtype=np.float32).reshape(19, 2)
    written = view.to_parquet(tmp_path / "a.parquet", field="map", projection=points)
    assert written == tmp_path / "a.parquet"
    table = pq.read_table(written)
    assert table.column_names == ["key", "file_id", "class_name", "split", "n", "vector", "x", "y"]
    assert pq.ParquetFile(written).num_row_groups == 3
    assert str(table.schema.field("vector").type) == "list<element: float>"
    assert table["key"].to_pylist() == [key for key in keys if key != keys[3]]
    assert table["y"].to_pylist() == points[:, 1].tolist()
    vectors = np.array(table["vector"].to_pylist(), np.float32)
    np.testing.assert_array_equal(vectors, values["map"][view.rows].reshape(19, 6).astype(np.float32))
    frame = pd.read_parquet(view.to_parquet(tmp_path / "b.parquet", field="brain", projection="pca"))
    np.testing.assert_array_equal(np.stack(frame["vector"]), view.to_numpy("brain"))
    np.testing.assert_allclose(frame[["x", "y"]].to_numpy().mean(axis=0), 0, atol=1e-6)


def test_a_parquet_file_of_little(several, tmp_path):
    store, _, _ = several
    empty = pq.read_table(store.select(rows=[]).to_parquet(tmp_path / "a.parquet", field="mean"))
    assert empty.num_rows == 0
    assert "vector" in empty.column_names
    one = store.select(rows=[4]).to_parquet(str(tmp_path / "b.parquet"), field="score", projection="pca")
    assert pq.read_table(one)["x"].to_pylist() == [0.0]
    with pytest.raises(errors.ShapeError):
        store.select().to_parquet(tmp_path / "c.parquet", field="tokens")
    with pytest.raises(errors.UnknownFieldError):
        store.select().to_parquet(tmp_path / "c.parquet", field="nope")
    with pytest.raises(errors.ShapeError, match="projection"):
        store.select().to_parquet(tmp_path / "c.parquet", field="mean", projection=np.ones((3, 2)))
    assert sorted(p.name for p in tmp_path.glob("*parquet*")) == ["a.parquet", "b.parquet"]


def test_a_parquet_file_is_whole_or_not_there(make, tmp_path, monkeypatch):
    store, keys, _ = make()
    target = tmp_path / "a.parquet"
    target.write_text("what was there")
    monkeypatch.setattr("embstore._outputs.pandas_parquet.GROUP_ROWS", 100)
    own, calls = type(store.snapshot).keys_of, []

    def broken(snapshot, name, rows):
        calls.append(name)
        if len(calls) > 1:
            raise OSError("gone")
        return own(snapshot, rows)

    monkeypatch.setattr("embstore._outputs.arrow.column_of", broken)
    with pytest.raises(OSError, match="gone"):
        store.select().to_parquet(target)
    assert target.read_text() == "what was there"
    assert [p.name for p in tmp_path.iterdir() if "parquet" in p.name] == ["a.parquet"]
    monkeypatch.undo()

    def full(operation, where, data):
        if operation == "fsync":  # before the rename: after a power cut the file is the old one or the new one
            raise OSError(28, "No space left on device", where)

    monkeypatch.setattr("embstore._engine.io.steps.step_hook", full)
    with pytest.raises(errors.StorageFullError):
        store.select().to_parquet(target)
    assert target.read_text() == "what was there"
    assert [p.name for p in tmp_path.iterdir() if "parquet" in p.name] == ["a.parquet"]
    monkeypatch.undo()
    store.set_column("Vector", keys, 1)
    with pytest.raises(errors.NameRefusedError, match="Vector"):
        store.select().to_parquet(target)
