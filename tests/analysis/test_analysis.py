"""Classes, near duplicates, outliers, projections and plots, against the same calculated in one go."""

import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import embstore
from embstore import analysis, errors
from embstore.store.align import align
from tests._helpers.crash import python

HOSTILE = "<script>alert(1)</script> & 'x' \"y\" %{x} $a$"


@pytest.fixture(params=[16 * 2**20, 100], ids=["one block", "many blocks"])
def blocks(request, monkeypatch):
    monkeypatch.setattr("embstore._outputs.vectors._BLOCK_BYTES", request.param)
    monkeypatch.setattr("embstore.analysis.pairs._BLOCK_BYTES", request.param)


@pytest.fixture
def filled(path):
    """Make a store of given rows, a class each."""

    def filled(rows, classes, **options):
        spec = embstore.FieldSpec(shape=np.shape(rows)[1:], **options)
        with embstore.open(path, "w-", config={}, fields={"f": spec}) as store:
            keys = [f"{i}:{name}" for i, name in enumerate(classes)]
            store.append(keys, np.asarray(rows), casting="same_kind")
        return embstore.open(path).select()

    return filled


# -- classes ----------------------------------------------------------------------------------


def test_centroids_are_the_means_of_live_rows(make, blocks):
    store, keys, rows = make()
    store.delete(keys[:5])
    view = store.select(rows=np.arange(299, 4, -1))
    means = analysis.centroids(view)
    assert means.class_names == store.classes
    for i, name in enumerate(means.class_names):
        own = [n for n in range(5, 300) if keys[n].endswith(f":{name}")]
        assert means.counts[i] == len(own)
        np.testing.assert_allclose(means.values[i], rows[own].mean(axis=0, dtype=np.float64), rtol=1e-10)
    pytest.importorskip("pandas")
    assert means.to_pandas().loc["class_3"].tolist() == means.values[3].tolist()


def test_centroids_are_summed_in_double(filled):
    rows = np.full((3_000, 1), 0.1, np.float32)
    rows[0] = 1e8
    means = analysis.centroids(filled(rows, ["a"] * 3_000))
    np.testing.assert_allclose(means.values, rows.mean(dtype=np.float64), rtol=1e-12)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_distances_within_and_between_classes(make, blocks, metric):
    def apart(a, b):
        if metric == "euclidean":
            return np.linalg.norm(a - b)
        return 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    store, _, rows = make(30)
    found = analysis.distances(store.select(), metric=metric)
    means = [rows[i::10].mean(axis=0, dtype=np.float64) for i in range(10)]
    for i in range(10):
        np.testing.assert_allclose(found.within[i], np.mean([apart(row, means[i]) for row in rows[i::10]]), rtol=1e-6)
        for j in range(10):
            np.testing.assert_allclose(found.between[i, j], apart(means[i], means[j]), rtol=1e-6, atol=1e-12)
    pytest.importorskip("pandas")
    frame = found.to_pandas()
    assert frame["count"].tolist() == [3] * 10
    nearest = np.argsort(found.between[4])[1]
    assert frame.loc["class_4", "nearest"] == f"class_{nearest}"
    assert frame.loc["class_4", "to_nearest"] == found.between[4, nearest]


def test_classes_of_one_row_of_none_and_of_equal_rows(filled):
    view = filled([[1, 2], [1, 2], [0, 0]], ["same", "same", "zero"])
    for metric in ("euclidean", "cosine"):
        assert analysis.distances(view, metric=metric).within.tolist() == [0, 0 if metric == "euclidean" else 1]
    empty = analysis.distances(view[:0])
    assert empty.between.shape == (0, 0)
    assert empty.class_names == []
    assert analysis.centroids(view[:0]).values.shape == (0, 2)
    with pytest.raises(ValueError, match="metric"):
        analysis.distances(view, metric="dot")
    pytest.importorskip("pandas")
    assert len(empty.to_pandas()) == 0
    alone = analysis.distances(view[:1]).to_pandas()
    assert alone["nearest"].tolist() == [None]
    assert np.isnan(alone["to_nearest"].iloc[0])
    for method in ("centroid", "neighbors"):
        assert analysis.outliers(view[:1], method=method)["score"].tolist() == [0]
        assert len(analysis.outliers(view[:0], method=method)) == 0
        assert len(analysis.outliers(view, method=method)) == 3


# -- near duplicates --------------------------------------------------------------------------


def test_duplicates_are_all_pairs_above_the_threshold(make, blocks, rng):
    pytest.importorskip("pandas")
    store, keys, rows = make()
    close = [f"copy_{i}:class_{i % 3}" for i in range(20)]
    store.append(close, rows[:20] * 3 + 0.02 * rng.standard_normal((20, 8)).astype(np.float32), columns={"split": "x"})
    store.delete([keys[4]])
    view = store.select()[::-1]
    values = view.to_numpy().astype(np.float64)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    for threshold in (0.9, 0.999):
        scores = values @ values.T
        a, b = np.nonzero(np.triu(scores >= threshold, 1))
        found = analysis.duplicates(view, threshold)
        assert len(found) == len(a) > 10
        wanted = {(view.keys[i], view.keys[j]) for i, j in zip(a, b, strict=True)}
        assert set(zip(found["key_a"], found["key_b"], strict=True)) == wanted
        np.testing.assert_allclose(found["score"], np.sort(scores[a, b])[::-1], rtol=1e-9)
        across = analysis.duplicates(view, threshold, across_classes=True)
        assert (across["class_a"] != across["class_b"]).all()
        assert len(across) == (found["class_a"] != found["class_b"]).sum()


def test_duplicates_of_equal_zero_few_and_repeated_rows(filled):
    pytest.importorskip("pandas")
    view = filled(np.r_[np.full((60, 3), 0.3), np.zeros((2, 3))], ["a", "b"] * 31)
    found = analysis.duplicates(view, 1.0)
    assert len(found) == 60 * 59 // 2
    assert set(found["score"]) == {1.0}
    with pytest.raises(errors.TooManyPairsError) as caught:
        analysis.duplicates(view, most=100)
    assert caught.value.most == 100
    assert len(analysis.duplicates(view[:0])) == 0
    assert len(analysis.duplicates(view[:1])) == 0
    assert len(analysis.duplicates(view[[0, 0, 0]])) == 0
    for wrong in (0, 1.1, -1):
        with pytest.raises(ValueError, match="threshold"):
            analysis.duplicates(view, wrong)


# -- outliers ---------------------------------------------------------------------------------


def test_outliers_by_centroid_and_by_neighbours(make, blocks, monkeypatch):
    pytest.importorskip("pandas")
    monkeypatch.setattr("embstore.analysis.unusual._ASKED_AT_ONCE", 64)
    store, _, _ = make()
    store.append(["odd:class_3"], np.full((1, 8), 40, np.float32), columns={"split": "x"})
    view = store.select()
    assert analysis.outliers(view, 1, metric="euclidean")["key"].tolist() == ["odd:class_3"]
    found = analysis.outliers(view, 5, method="neighbors", k=4, metric="euclidean")
    assert found["key"][0] == "odd:class_3"
    values = view.to_numpy()
    apart = np.linalg.norm(values[:, None] - values[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    mean = np.sort(apart, axis=1)[:, :4].mean(axis=1)
    np.testing.assert_allclose(found["score"], np.sort(mean)[::-1][:5], rtol=1e-4)
    own = analysis.distances(store.select(classes="class_7"), metric="cosine")
    listed = analysis.outliers(store.select(classes="class_7"), 30)
    assert len(listed) == 30
    np.testing.assert_allclose(listed["distance"].mean(), own.within[0], rtol=1e-6)
    np.testing.assert_allclose(listed["score"].mean(), 1, rtol=1e-6)
    for wrong in ({"method": "x"}, {"metric": "dot"}, {"n": 0}, {"k": 0}):
        with pytest.raises(ValueError, match="expected"):
            analysis.outliers(view, **wrong)


# -- projections ------------------------------------------------------------------------------


@pytest.mark.parametrize("exact", [True, False])
def test_principal_components_are_those_of_a_decomposition(make, blocks, monkeypatch, exact, rng):
    if not exact:
        monkeypatch.setattr("embstore._outputs.projection._MOST_EXACT", 2)
    store, keys, _ = make(columns=False)
    spread = (rng.standard_normal((300, 40)) * 0.8 ** np.arange(40) + 100).astype(np.float32)
    store.add_field("wide", keys, spread.reshape(300, 4, 10))
    store.delete(keys[:7])
    found = analysis.project(store.select(), n=3, field="wide")
    centred = spread[7:] - spread[7:].mean(axis=0, dtype=np.float64)
    _, lengths, axes = np.linalg.svd(centred, full_matrices=False)
    wanted = centred @ axes[:3].T
    wanted *= np.sign((wanted * found.points).sum(axis=0))
    np.testing.assert_allclose(found.points, wanted, atol=2e-3)
    np.testing.assert_allclose(found.explained, (lengths**2 / (lengths**2).sum())[:3], rtol=1e-4)
    again = analysis.project(store.select(), n=3, field="wide", rng=np.random.default_rng(0))
    assert (again.points == found.points).all()


@pytest.mark.parametrize("exact", [True, False])
def test_projections_of_little(filled, monkeypatch, exact):
    if not exact:
        monkeypatch.setattr("embstore._outputs.projection._MOST_EXACT", 0)
    view = filled(np.full((4, 3), 7), ["a", "b"] * 2)
    for part in (view[:1], view):
        found = analysis.project(part)
        assert found.points.tolist() == [[0, 0]] * len(part)
        assert found.explained.tolist() == [0, 0]
    with pytest.raises(errors.EmptyViewError, match=r"cannot project: the view of .* is empty"):
        analysis.project(view[:0])
    with pytest.raises(ValueError, match="method"):
        analysis.project(view, "tsne")
    with pytest.raises(ValueError, match="expected n from 1"):
        analysis.project(view, n=0)


def test_a_projection_on_more_dimensions_than_there_are(filled):
    found = analysis.project(filled(np.arange(4).reshape(4, 1), "aabb"), n=3)
    np.testing.assert_allclose(found.points[:, 0], [-1.5, -0.5, 0.5, 1.5])
    assert not found.points[:, 1:].any()
    assert found.explained.tolist() == [1, 0, 0]


def test_umap_is_asked_for_by_name_and_seeded(make, monkeypatch):
    asked = []

    class UMAP:
        def __init__(self, **options):
            asked.append(options)

        def fit_transform(self, rows):
            return rows[:, :2]

    store, _, rows = make()
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(errors.MissingLibraryError, match=r"embstore\[umap\]"):
        analysis.project(store.select(), "umap")
    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=UMAP))
    found = analysis.project(store.select(), "umap", rng=np.random.default_rng(3))
    np.testing.assert_array_equal(found.points, rows[:, :2])
    assert found.explained is None
    assert asked[0]["random_state"] == np.random.default_rng(3).integers(2**31)
    with pytest.raises(ValueError, match="at least"):
        analysis.project(store.select()[:4], "umap")


def test_what_is_not_a_number_is_told_and_can_be_left_out(filled):
    pytest.importorskip("pandas")
    rows = np.random.default_rng(0).standard_normal((9, 3))
    rows[2, 1], rows[5] = np.nan, np.inf
    view = filled(rows, "abc" * 3, nonfinite="allow")
    for function in (
        analysis.centroids,
        analysis.distances,
        analysis.duplicates,
        analysis.outliers,
        lambda v: analysis.outliers(v, method="neighbors"),
        analysis.project,
        lambda v: v.plot("never.png"),
    ):
        with pytest.raises(errors.NonFiniteError, match="leave them out") as caught:
            function(view)
        assert caught.value.keys == ("2:c", "5:c")
        if "plot" not in function.__code__.co_names:
            function(view[np.isfinite(view.to_numpy()).all(axis=1)])


def test_sums_that_overflow_are_not_taken_for_infinity(filled):
    view = filled(np.full((50, 4), 3e38, np.float32), "a" * 50)
    np.testing.assert_allclose(analysis.centroids(view).values, 3e38, rtol=1e-6)


def test_ragged_fields_are_to_be_pooled(path):
    fields = {"t": embstore.FieldSpec(shape=(2,), ragged=True)}
    with embstore.open(path, "w-", config={}, fields=fields) as store:
        store.append(["a:b"], [np.ones((3, 2), np.float32)])
        view = store.select()
        for function in (analysis.centroids, analysis.duplicates, analysis.project, view.plot.__func__):
            with pytest.raises(errors.ShapeError, match="pool"):
                function(view)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64", "int16"])
def test_every_dtype_is_analysed(filled, dtype):
    pytest.importorskip("pandas")
    rows = np.array([[1, 2, 0], [2, 4, 0], [4, 0, 1]], np.int16 if dtype == "int16" else np.float32)
    view = filled(rows, "aab", dtype=dtype)
    assert analysis.centroids(view).values.tolist() == [[1.5, 3, 0], [4, 0, 1]]
    assert len(analysis.duplicates(view)) == 1
    assert analysis.project(view).points.shape == (3, 2)


# -- plots ------------------------------------------------------------------------------------


@pytest.fixture
def hostile(path, rng):
    """A view whose keys, classes and columns are HTML, mathematics, and what legends leave out."""
    names = [HOSTILE, "_", "ümläut", "$x_1$"]
    keys = [f"{i}{HOSTILE}:{names[i % 4]}" for i in range(40)]
    columns = {
        "note": [HOSTILE] * 40,
        "fold": np.arange(40) % 3,
        "loud": np.linspace(0, 1, 40),
        "ok": np.arange(40) > 7,
    }
    columns["loud"][3] = np.nan
    with embstore.open(path, "w-", config={}) as store:
        store.append(keys, rng.standard_normal((40, 5)).astype(np.float32), columns=columns)
    return embstore.open(path).select()


@pytest.mark.parametrize(
    ("color", "suffix"),
    [
        *((name, ".png") for name in ("class_name", "note", "fold", "loud", "ok", None)),
        ("note", ".svg"),
        ("ok", ".pdf"),
    ],
)
def test_a_picture_in_every_colour(hostile, tmp_path, color, suffix):
    pytest.importorskip("matplotlib")
    file = hostile.plot(tmp_path / f"a{suffix}", color=color)
    assert file == tmp_path / f"a{suffix}"
    assert file.read_bytes()[:4] == {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xm"}[suffix]
    assert len(list(tmp_path.glob("*a.*"))) == 1


def test_a_picture_does_not_touch_the_state_of_matplotlib(hostile, tmp_path):
    pytest.importorskip("matplotlib")
    code = (
        "import sys, warnings\nwarnings.simplefilter('error')\nimport embstore\n"
        "embstore.open(sys.argv[1]).select().plot(sys.argv[2])\n"
        "assert 'matplotlib.pyplot' not in sys.modules and 'plotly' not in sys.modules\n"
    )
    assert python(code, hostile.store.path, tmp_path / "a.png") == ""


def test_a_page_holds_nothing_that_runs_or_is_fetched(hostile, tmp_path):
    pytest.importorskip("plotly")
    text = hostile.plot(str(tmp_path / "a.html")).read_text()
    assert "<script>alert" not in text
    assert "alert(1)" in text
    assert not re.search(r'<(script|link)[^>]+(src|href)="', text)


def test_no_file_gives_the_figure(hostile):
    pytest.importorskip("plotly")
    figure = hostile.plot()
    assert [trace.name for trace in figure.data][1:] == ["_", "ümläut", "$x_1$"]
    assert sum(len(trace.x) for trace in figure.data) == 40
    assert figure.layout.showlegend
    assert "40 rows" in figure.layout.title.text
    assert "% of the variance" in figure.layout.xaxis.title.text
    assert "note" in figure.data[0].hovertemplate
    assert "&lt;script&gt;" in figure.data[0].customdata[0][0]
    loud = hostile.plot(color="loud")
    assert len(loud.data) == 1
    assert not loud.layout.showlegend
    assert [trace.name for trace in hostile.plot(color="fold").data] == ["0", "1", "2"]


def test_many_points_are_sampled_and_the_title_says_so(make):
    pytest.importorskip("plotly")
    store, _, _ = make()
    figure = store.select().plot(max_points=50)
    assert sum(len(trace.x) for trace in figure.data) == 50
    assert "50 of 300 rows, drawn at random" in figure.layout.title.text
    shown = {note[0] for trace in figure.data for note in trace.customdata}
    again = store.select().plot(max_points=50, rng=np.random.default_rng(5))
    assert shown != {note[0] for trace in again.data for note in trace.customdata}


def test_a_seed_stands_for_its_generator(make, tmp_path, monkeypatch):
    pytest.importorskip("plotly")
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("embstore._outputs.projection._MOST_EXACT", 2)
    store, _, rows = make(columns=False)
    store.add_field("wide", store.select().keys, np.tile(rows, 5))
    view = store.select()

    def results(rng):
        table = parquet.read_table(view.to_parquet(tmp_path / "a.parquet", field="wide", projection="pca", rng=rng()))
        shown = [trace.customdata.tolist() for trace in view.plot(field="wide", max_points=9, rng=rng()).data]
        points = analysis.project(view, n=3, field="wide", rng=rng()).points.tolist()
        return points, table["x"].to_pylist(), shown

    for seed in (0, 7):
        assert results(lambda seed=seed: seed) == results(lambda seed=seed: np.random.default_rng(seed))
    assert results(lambda: None) == results(lambda: 0)
    for call in (
        lambda: analysis.project(view, field="wide", rng="0"),
        lambda: view.plot(field="wide", rng=0.0),
        lambda: view.to_parquet(tmp_path / "b.parquet", field="wide", projection="pca", rng=True),
    ):
        with pytest.raises(TypeError, match="an int seed"):
            call()


OVER_VIEWS = (
    analysis.centroids,
    analysis.distances,
    analysis.duplicates,
    analysis.explore,
    analysis.Exploration,
    analysis.outliers,
    analysis.project,
)


@pytest.mark.parametrize("function", OVER_VIEWS, ids=lambda function: function.__name__)
@pytest.mark.parametrize(("given", "hint"), [("a.zarr", r"embstore\.open\('a\.zarr'\)\.select"), (None, "NoneType")])
def test_what_is_neither_a_view_nor_a_store_is_refused(function, given, hint):
    with pytest.raises(TypeError, match=f"expected a View or an EmbeddingStore, found .*{hint}"):
        function(given)


def test_a_store_stands_for_all_of_its_rows(make):
    pytest.importorskip("pandas")
    store, keys, _ = make()
    store.delete(keys[:2])
    assert analysis.project(store).points.shape == (298, 2)
    assert analysis.centroids(store).counts.sum() == analysis.distances(store).counts.sum() == 298
    assert len(analysis.outliers(store, 400)) == 298
    assert len(analysis.duplicates(store, 1.0)) == len(analysis.duplicates(store.select(), 1.0))


def test_many_classes_share_a_legend(filled, tmp_path, rng):
    pytest.importorskip("matplotlib")
    pytest.importorskip("plotly")
    view = filled(rng.standard_normal((140, 4)), [i % 70 for i in range(140)])
    view.plot(tmp_path / "a.png")
    assert len({(trace.marker.color, trace.marker.symbol) for trace in view.plot().data[:50]}) == 50


def test_a_page_names_the_largest_of_many_classes_and_folds_the_others(filled, rng):
    pytest.importorskip("plotly")
    classes = [f"rare{i}" for i in range(60)] + [f"common{i}" for i in range(48)] * 3 + ["20 others"]
    view = filled(rng.standard_normal((len(classes), 4)), classes)
    figure, nothing_folded = view.plot(), view.select(classes=[f"rare{i}" for i in range(50)]).plot()
    others, *named = figure.data
    assert [trace.name for trace in named] == ["rare0", "rare1", *(f"common{i}" for i in range(48))]
    assert (others.name, len(others.x)) == ("59 others", 59)
    assert others.legendrank > 1_000  # below all that are named
    assert others.marker.color not in {trace.marker.color for trace in named}
    assert {note[1] for note in others.customdata} == {*(f"rare{i}" for i in range(2, 60)), "20 others"}
    assert figure.layout.legend.title.text == "class_name: 50 of 109"
    assert [trace.name for trace in nothing_folded.data] == [f"rare{i}" for i in range(50)]
    assert nothing_folded.layout.legend.title.text == "class_name"


def test_groups_whose_names_look_equal_stay_apart(path):
    """Names are cut for the legend, and a group of the store may be called as the folded ones are."""
    pytest.importorskip("plotly")
    notes = ["n" * 300 + end for end in "ab"] + ["", "<b>"]
    with embstore.open(path, "w-", config={}) as store:
        store.append([f"{i}:c" for i in range(4)], np.eye(4, dtype=np.float32), columns={"note": notes})
        figure = store.select().plot(color="note")
    assert [len(trace.x) for trace in figure.data] == [1, 1, 1, 1]
    assert [trace.name for trace in figure.data] == ["", "&lt;b&gt;", *["n" * 199 + "…"] * 2]
    assert [trace.customdata[0][2] for trace in figure.data] == [trace.name for trace in figure.data]


def test_numbers_under_the_pointer_are_exact(path):
    """JavaScript rounds whole numbers beyond 2**53."""
    pytest.importorskip("plotly")
    columns = {"n": np.array([2**63 - 1, 0]), "x": np.array([np.nan, 0.5])}
    with embstore.open(path, "w-", config={}) as store:
        store.append(["a:c", "b:c"], np.eye(2, dtype=np.float32), columns=columns)
        (trace,) = store.select().plot(color="x").data
    assert trace.customdata.tolist() == [["a:c", "c", str(2**63 - 1), "nan"], ["b:c", "c", "0", "0.5"]]
    np.testing.assert_array_equal(trace.marker.color, columns["x"])


@pytest.mark.parametrize(("most", "kind"), [(4, "scatter"), (3, "scattergl")])
def test_many_points_are_drawn_by_webgl(filled, monkeypatch, most, kind):
    pytest.importorskip("plotly")
    monkeypatch.setattr("embstore._outputs.plot._MOST_SVG", most)
    assert [trace.type for trace in filled(np.eye(4), "abab").plot().data] == [kind] * 2


def test_a_picture_lists_the_largest_of_many_classes(filled, tmp_path, rng):
    pytest.importorskip("matplotlib")
    classes = [f"rare{i}" for i in range(40)] + ["common"] * 5
    filled(rng.standard_normal((len(classes), 4)), classes).plot(tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert "<!-- class_name: 30 of 41 -->" in text
    assert "<!-- common -->" in text
    assert sum(f"<!-- rare{i} -->" in text for i in range(40)) == 29


def test_plots_that_are_not_drawn(make, tmp_path):
    store, _, _ = make()
    view = store.select()
    for file in (tmp_path / "a.png", tmp_path / "a.html", None):
        with pytest.raises(errors.EmptyViewError, match=r"cannot plot: the view of .* is empty"):
            view[:0].plot(file)
    with pytest.raises(ValueError, match=r"\.html"):
        view.plot(tmp_path / "a.jpeg")
    with pytest.raises(errors.UnknownColumnError):
        view.plot(tmp_path / "a.png", color="nothing")
    with pytest.raises(ValueError, match="max_points"):
        view.plot(tmp_path / "a.png", max_points=0)
    assert list(tmp_path.glob("*a.*")) == []


def test_a_plot_of_one_row(make, tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("plotly")
    store, _, _ = make()
    store.select()[:1].plot(tmp_path / "a.png")
    assert len(store.select()[:1].plot().data[0].x) == 1


@pytest.mark.parametrize("library", ["matplotlib", "plotly.express", "pandas", "pyarrow", "xarray"])
def test_a_library_that_is_missing_is_named(make, monkeypatch, tmp_path, library):
    store, keys, _ = make()
    view = store.select()
    monkeypatch.setitem(sys.modules, library, None)
    call = {
        "matplotlib": lambda: view.plot(tmp_path / "a.png"),
        "pandas": lambda: view.nearest(keys[:2]).to_pandas(),
        "pyarrow": lambda: view.to_parquet(tmp_path / "a.parquet"),
        "xarray": view.to_xarray,
    }.get(library, lambda: view.plot(tmp_path / "a.html"))
    with pytest.raises(errors.MissingLibraryError, match=r"embstore\[analysis\]"):
        call()


# -- embedding-atlas --------------------------------------------------------------------------


@pytest.fixture
def atlas(tmp_path, monkeypatch):
    """A program that says what it was called with, and stays as long as it is told to."""
    program = tmp_path / "bin" / "embedding-atlas"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\n[ "$7" = y ] || exit 3\nexec sleep ${{9:-0}}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    return tmp_path / "called"


def test_exploring_writes_a_file_and_starts_the_program(make, atlas, monkeypatch):
    pytest.importorskip("pyarrow")
    monkeypatch.setattr("embstore.analysis.atlas.sys.executable", "/nowhere/python")
    store, _, _ = make()
    assert analysis.explore(store.select()) == 0
    file, *options = atlas.read_text().split()
    assert options == ["--vector", "vector", "--x", "x", "--y", "y"]
    assert not Path(file).exists()
    with analysis.Exploration(store.select(), options=["--wait", "60"]) as running:
        assert running.path.exists()
        assert running.process.poll() is None
    assert not running.path.exists()
    assert running.process.poll() is not None
    with pytest.raises(errors.EmptyViewError, match=r"cannot explore: the view of .* is empty"):
        analysis.explore(store.select(rows=[]))


def test_exploring_without_the_program(make, monkeypatch):
    store, _, _ = make()
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("embstore.analysis.atlas.sys.executable", "/nowhere/python")
    with pytest.raises(errors.MissingLibraryError, match="embedding-atlas"):
        analysis.explore(store.select())


# -- names ------------------------------------------------------------------------------------


def test_importing_it_loads_no_library():
    code = (
        "import sys, embstore, embstore.analysis as a\n"
        "[getattr(a, name) for name in a.__all__]; from embstore.store.align import align\n"
        "print(*{m.partition('.')[0] for m in sys.modules} & {'pandas', 'xarray', 'pyarrow', 'matplotlib', 'plotly',"
        " 'torch', 'zarr', 'umap'})\n"
    )
    assert python(code).split() == []
    assert align is not None
    assert set(dir(analysis)) == set(analysis.__all__)
