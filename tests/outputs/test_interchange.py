"""Views taken by NumPy, PyTorch, scikit-learn, Arrow, polars and DuckDB, without a method of embstore's."""

import numpy as np
import pytest

import embstore
from embstore import FieldSpec, errors

N = 40
SPECS = {
    "float32": FieldSpec(shape=(4,)),
    "float16": FieldSpec(shape=(2, 3), dtype="float16"),
    "bfloat16": FieldSpec(shape=(4,), dtype="bfloat16"),
    "int8": FieldSpec(shape=(4,), dtype="int8"),
    "float64": FieldSpec(shape=(), dtype="float64"),
}
RAGGED = FieldSpec(shape=(4,), ragged=True)
ROWS = {"all": slice(None), "neighbours": slice(4, 12), "backwards": slice(None, None, -3), "none": slice(0)}

every_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
every_place = pytest.mark.parametrize("places", ROWS.values(), ids=ROWS)


def store_of(path, **specs):
    """Make a store of `N` rows with a column of the caller and a column of `embed`. One row is deleted."""
    keys = [f"f{i}:c{i % 3}" for i in range(N)]
    rows = {
        name: [np.full((i % 3, *spec.shape), i, np.float32) for i in range(N)]
        if spec.ragged
        else np.arange(N * int(np.prod(spec.shape))).reshape(N, *spec.shape)
        for name, spec in specs.items()
    }
    columns = {"n": "int64", "split": "string", "source_digest": "string"}
    store = embstore.open(path, "w-", config={"encoder": "x"}, fields=specs, columns=columns)
    values = {
        name: value if specs[name].ragged else value.astype(specs[name].dtype.replace("bf", "f").replace("t16", "t32"))
        for name, value in rows.items()
    }
    given = {"n": np.arange(N), "split": ["a", "b"] * (N // 2), "source_digest": "0"}
    store.append(keys, values, columns=given, casting="same_kind")
    store.delete([keys[20]])
    return store


# -- arrays -----------------------------------------------------------------------------------


@every_spec
@every_place
def test_numpy_and_torch_take_a_view(path, spec, places):
    view = store_of(path, x=spec).select()[places]
    wanted = view.to_numpy()
    assert view.shape == wanted.shape
    found = np.asarray(view)
    np.testing.assert_array_equal(found, wanted, strict=True)
    assert found.flags.writeable
    assert np.array(view, dtype=np.float64).dtype == np.float64
    assert list(view) == view.keys
    for call in (lambda: np.asarray(view, copy=False), lambda: view.__dlpack__(copy=False)):
        with pytest.raises((ValueError, BufferError), match="always copied"):
            call()
    np.testing.assert_array_equal(np.from_dlpack(view), wanted, strict=True)
    torch = pytest.importorskip("torch")
    for tensor in (torch.as_tensor(view), torch.from_dlpack(view)):
        np.testing.assert_array_equal(tensor.numpy(), wanted, strict=True)


def test_scikit_learn_takes_a_view(path):
    linear = pytest.importorskip("sklearn.linear_model")
    selection = pytest.importorskip("sklearn.model_selection")
    view = store_of(path, x=SPECS["float32"]).select()
    labels = view.column("n") > 20
    train, test, seen, unseen = selection.train_test_split(view, labels, random_state=0)
    assert [int(key[1:-3]) > 20 for key in [*train, *test]] == [*seen, *unseen]
    assert linear.LogisticRegression(max_iter=999).fit(train, seen).score(test, unseen) == 1
    assert len(selection.cross_val_score(linear.LogisticRegression(max_iter=999), view, labels, cv=3)) == 3


# -- Arrow ------------------------------------------------------------------------------------


@every_spec
@every_place
def test_arrow_takes_a_view(path, spec, places):
    pa = pytest.importorskip("pyarrow")
    store = store_of(path, x=spec, tokens=RAGGED)
    view = store.select()[places]
    table = pa.table(view)
    assert table.column_names == ["key", "file_id", "class_name", "n", "split", "x"]
    for name, wanted in {"key": view.keys, "file_id": view.file_ids, "class_name": view.class_names}.items():
        assert table[name].to_pylist() == wanted
    assert table["split"].to_pylist() == view.column("split").tolist()
    if not len(view):
        return
    whole = table["x"].chunk(0)
    found = whole.to_numpy_ndarray() if spec.shape else whole.to_numpy()
    wanted = view.to_numpy("x")
    np.testing.assert_array_equal(found, wanted.astype(found.dtype), strict=True)
    plain = spec.dtype not in ("float16", "bfloat16")
    assert found.dtype == (wanted.dtype if plain else np.float32)
    if plain and places == ROWS["neighbours"]:
        assert np.shares_memory(found, store.array("x", dead="include"))


def test_polars_and_duckdb_take_a_view(path):
    view = store_of(path, x=SPECS["float16"], y=SPECS["bfloat16"], tokens=RAGGED).select(where={"split": "a"})
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame(view)
    assert frame["key"].to_list() == view.keys
    np.testing.assert_array_equal(frame["y"].to_numpy(), view.to_numpy("y"))
    assert frame["x"].to_numpy().size == view.to_numpy("x").size
    duckdb = pytest.importorskip("duckdb")
    found = duckdb.sql("SELECT class_name, count(*), sum(y[2]) FROM view GROUP BY class_name ORDER BY ALL").fetchall()
    names, y = np.array(view.class_names), view.to_numpy("y")
    assert found == [(c, (names == c).sum(), y[names == c, 1].sum()) for c in view.classes]


# -- xarray -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("index", "label"), [("key", "f7:c1"), ("file_id", "f7")])
def test_xarray_selects_by_label(path, index, label):
    pytest.importorskip("xarray")
    view = store_of(path, x=SPECS["float32"], tokens=RAGGED).select()
    data = view.to_xarray(index=index)
    assert data.sel(sample=label)["n"].item() == 7
    np.testing.assert_array_equal(data.sel(sample=[label])["x"].values, view[7:8].to_numpy("x"))
    assert "sample" not in view.to_xarray().coords
    with pytest.raises(ValueError, match="index"):
        view.to_xarray(index="row")


# -- columns that embed keeps for itself ------------------------------------------------------


def under_the_pointer(view, **options):
    return view.plot(field="x", **options).data[0].hovertemplate


def written(view, tmp_path, **options):
    parquet = pytest.importorskip("pyarrow.parquet")
    return parquet.read_schema(view.to_parquet(tmp_path / "a.parquet", field="x", **options)).names


@pytest.mark.parametrize(
    ("library", "names"),
    [
        ("pandas", lambda view, _, **options: list(view.to_pandas(**options))),
        ("xarray", lambda view, _, **options: list(view.to_xarray(**options).coords)),
        ("plotly", lambda view, _, **options: under_the_pointer(view, **options)),
        ("pyarrow", written),
    ],
    ids=["pandas", "xarray", "plot", "parquet"],
)
def test_columns_of_embed_are_shown_only_when_asked_for(path, tmp_path, library, names):
    pytest.importorskip(library)
    pytest.importorskip("pandas")
    view = store_of(path, x=SPECS["float32"]).select()
    shown = names(view, tmp_path)
    assert "split" in shown
    assert "source_digest" not in shown
    asked = names(view, tmp_path, columns=["source_digest", "n"])
    assert "source_digest" in asked
    assert "split" not in asked
    with pytest.raises(errors.UnknownColumnError, match="nothing"):
        names(view, tmp_path, columns=["nothing"])


# -- views that can't be taken ----------------------------------------------------------------

WAYS = {
    "numpy": np.asarray,
    "dlpack": np.from_dlpack,
    "arrow": lambda view: pytest.importorskip("pyarrow").table(view),
    "xarray": lambda view: pytest.importorskip("xarray") and view.to_xarray("x", index="key"),
    "pandas": lambda view: pytest.importorskip("pandas") and view.to_pandas("x"),
}


@pytest.mark.parametrize("gone", ["erased", "compacted"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_view_whose_rows_are_gone_is_a_named_error(path, way, gone):
    store = store_of(path, x=SPECS["float32"])
    view = store.select()
    store.erase(["f3:c0"]) if gone == "erased" else store.compact()
    with pytest.raises(errors.StoreChangedError, match="select\\(\\) again"):
        way(view)


def test_a_stream_that_has_begun_ends_with_the_error(path, monkeypatch):
    pa = pytest.importorskip("pyarrow")
    monkeypatch.setattr("embstore._outputs.arrow.GROUP_ROWS", 10)
    store = store_of(path, x=SPECS["float32"])
    reader = pa.RecordBatchReader.from_stream(store.select())
    assert reader.read_next_batch().num_rows == 10
    store.erase(["f39:c0"])
    with pytest.raises(Exception, match="rows of this view were erased"):
        reader.read_all()


@pytest.mark.parametrize("way", [np.asarray, np.from_dlpack, lambda view: view.shape], ids=["numpy", "dlpack", "shape"])
def test_ragged_rows_are_no_array(path, way):
    view = store_of(path, x=RAGGED).select()
    with pytest.raises(errors.ShapeError, match="to_ragged"):
        way(view)
