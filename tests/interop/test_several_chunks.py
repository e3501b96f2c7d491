"""Stores of several chunks: each kind, mapped or not, under each `check=`, through each way out and each change."""

import functools
import itertools
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import embstore
from embstore import FieldSpec, errors
from embstore._engine.format import zarr_layout
from embstore.exchange import export_file, import_file

KINDS = {
    "float32": {"spec": FieldSpec(shape=(16,))},
    "awkward": {"spec": FieldSpec(shape=(7, 3))},  # no number of its rows fills pages, so it can't be mapped
    "float16": {"spec": FieldSpec(shape=(4, 8), dtype="float16")},
    "uint8": {"spec": FieldSpec(shape=(64,), dtype="uint8")},
    "bfloat16": {"spec": FieldSpec(shape=(32,), dtype="bfloat16")},
    "zstd": {"spec": FieldSpec(shape=(16,)), "compression": "zstd"},
    "blosc": {"spec": FieldSpec(shape=(16,)), "compression": "blosc"},
    "sequences": {"spec": FieldSpec(shape=(8, 8))},
    "ragged": {"spec": FieldSpec(shape=(8,), ragged=True)},
}
N, FIRST = 300, 270  # rows, and rows of the first commit
DEAD = (7, 150, 290)
CONFIG = {"encoder": "demo"}
COLUMNS = {"split": "string", "n": "int64"}
FORMATS = {"npz": None, "h5": "h5py", "safetensors": "safetensors", "parquet": "pyarrow", "pt": "torch"}

MAPPINGS = ["auto", "never"]
CHECKS = ["tail", "touched", "all"]

every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module", autouse=True)
def folder():
    """Make chunks of 4 KiB and of 100 texts, so that keys, classes and columns have several as well."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(zarr_layout, "_SIDE_SIZES", (4096, 4096, 512))
        patch.setattr(zarr_layout, "_STRING_CHUNK_ROWS", 100)
        patch.setattr(zarr_layout, "_CLASS_CHUNK_ROWS", 3)
        yield Path(folder)
        made.cache_clear()
        flipped_once.cache_clear()


def key(i):
    return f"dir/f{i}:c{i % 11}"


def rows_of(spec, numbers):
    """Return the rows of these numbers, exact in every dtype: an array, or a list if the field is ragged."""
    every = every_row(spec)
    return [every[i] for i in numbers] if spec.ragged else every[list(numbers)]


@functools.cache
def every_row(spec):
    rng = np.random.default_rng(0)
    dtype = "float32" if spec.dtype == "bfloat16" else spec.dtype
    if spec.ragged:
        return [rng.standard_normal((i % 4, *spec.shape)).astype(dtype) for i in range(2 * N)]
    return rng.integers(0 if dtype == "uint8" else -99, 100, (2 * N, *spec.shape)).astype(dtype)


def columns_of(numbers):
    return {"split": [f"part {i % 5}" * (i % 3) for i in numbers], "n": np.array(numbers) * 3}


def put(store, numbers, keys=None, **options):
    spec = store.fields["x"]
    numbers = list(numbers)
    keys = keys or [key(i) for i in numbers]
    return store.append(keys, rows_of(spec, numbers), columns=columns_of(numbers), casting="same_kind", **options)


def new(path, kind, **options):
    spec, compression = KINDS[kind]["spec"], KINDS[kind].get("compression")
    made = {"fields": {"x": spec}, "columns": COLUMNS, "compression": compression, "chunk_bytes": 4096}
    return embstore.open(path, "w-", config=CONFIG, **{**made, **options})


@functools.cache
def made(kind, folder):
    """Return a store of two commits, the second one small, with rows deleted in between."""
    path = folder / f"{kind}.zarr"
    with new(path, kind) as store:
        put(store, range(FIRST))
        put(store, range(FIRST, N))
        store.delete([key(i) for i in DEAD])
    store = embstore.open(path)
    for array in ("x", "file_id", "class_names", "key_hash", "split"):
        assert store.snapshot.record.arrays[array].chunks > 1, array
    return path


@dataclass
class Case:
    """A store of one kind, how it is opened, and a place for files."""

    kind: str
    path: Path
    how: dict[str, Any]
    tmp: Path
    folder: Path

    @property
    def spec(self):
        return KINDS[self.kind]["spec"]

    def open(self, path=None, mode="r"):
        return embstore.open(path or self.path, mode, **self.how)

    def rows(self, numbers):
        return rows_of(self.spec, numbers)


LIVE = [i for i in range(N) if i not in DEAD]
SOME = [299, 3, 64, 65, 270, 269, 3, 130]


def same_rows(found, expected, spec):
    """Compare rows, padded, ragged or not, with an array or a list of rows."""
    if spec.ragged:
        if hasattr(found, "lengths") and hasattr(found, "offsets"):
            found = list(found)
        elif hasattr(found, "lengths"):
            found = [row[:n] for row, n in zip(np.asarray(found.values), np.asarray(found.lengths), strict=True)]
        found = [np.asarray(row) for row in found]
        assert [len(row) for row in found] == [len(row) for row in expected]
        np.testing.assert_array_equal(np.concatenate(found), np.concatenate(expected))
        assert found[0].dtype == expected[0].dtype
    else:
        np.testing.assert_array_equal(np.asarray(found), expected, strict=True)


def floats(tensor):
    return tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor


def same_store(store, numbers, spec, columns=("n", "split"), *, ordered=True):
    """Compare all that a reader sees with the rows of these numbers."""
    view = store.select()
    numbers = list(numbers)
    expected = [key(i) for i in numbers]
    assert (view.keys == expected) if ordered else (sorted(view.keys) == sorted(expected))
    if not ordered:
        view = store.select(keys=expected)
    same_rows(view.to_ragged() if spec.ragged else view.to_numpy(), rows_of(spec, numbers), spec)
    for name in columns:
        assert view.column(name).tolist() == list(columns_of(numbers)[name])
    assert view.class_names == [f"c{i % 11}" for i in numbers]
    assert store.rows_of(expected).tolist() == view.rows.tolist()


# -- ways out ---------------------------------------------------------------------------------


def take(case):
    same_rows(case.open().take(SOME), case.rows(SOME), case.spec)
    same_rows(case.open().take(LIVE[:1]), case.rows(LIVE[:1]), case.spec)


def fetch(case):
    store = case.open()
    same_rows(store.fetch([key(i) for i in SOME]), case.rows(SOME), case.spec)
    for i in (0, 130, 299):
        np.testing.assert_array_equal(store[key(i)], case.rows([i])[0])


def array(case):
    store = case.open()
    if case.kind == "bfloat16":
        with pytest.raises(errors.DtypeError):
            store.array(dead="include")
        return
    with pytest.raises(errors.DeadRowsError):
        store.array()
    same_rows(store.array(dead="include"), case.rows(range(N)), case.spec)


def tensor(case):
    pytest.importorskip("torch")
    whole = case.open().tensor(dead="include")
    if case.spec.ragged:
        np.testing.assert_array_equal(whole.values.numpy(), np.concatenate(case.rows(range(N))))
        return
    same_rows(floats(whole), case.rows(range(N)), case.spec)
    whole[:] = 0  # private
    same_rows(case.open().take(SOME), case.rows(SOME), case.spec)


def view(case):
    same_store(case.open(), LIVE, case.spec)
    part = case.open().select(rows=LIVE[60:250])
    same_rows(part.to_ragged() if case.spec.ragged else part.to_numpy(), case.rows(LIVE[60:250]), case.spec)


def to_torch(case):
    pytest.importorskip("torch")
    found = case.open().select().to_torch()
    if case.spec.ragged:
        same_rows(found, case.rows(LIVE), case.spec)
    else:
        same_rows(floats(found), case.rows(LIVE), case.spec)


def classes(case):
    chosen = case.open().select(classes=["c3", "c9"], where={"n": lambda n: n > 300})
    numbers = [i for i in LIVE if i % 11 in (3, 9) and 3 * i > 300]
    assert chosen.keys == [key(i) for i in numbers]
    assert chosen.labels(["c9", "c3"]).tolist() == [int(i % 11 == 3) for i in numbers]
    same_rows(chosen.to_ragged() if case.spec.ragged else chosen.to_numpy(), case.rows(numbers), case.spec)


def loader(case):
    torch = pytest.importorskip("torch")
    from embstore.torch import EmbeddingDataset

    data = EmbeddingDataset(case.open(), classes=[f"c{i}" for i in range(11)], columns=["n"], fields=["x"])
    batches = list(torch.utils.data.DataLoader(data, batch_size=64))
    assert torch.cat([batch["label"] for batch in batches]).tolist() == [i % 11 for i in LIVE]
    assert torch.cat([batch["n"] for batch in batches]).tolist() == [3 * i for i in LIVE]
    if case.spec.ragged:
        found = [row[:n] for b in batches for row, n in zip(b["x"].numpy(), b["x_lengths"].tolist(), strict=True)]
        same_rows(found, case.rows(LIVE), case.spec)
    else:
        same_rows(floats(torch.cat([batch["x"] for batch in batches])), case.rows(LIVE), case.spec)


def pandas(case):
    pytest.importorskip("pandas")
    frame = case.open().select().to_pandas(["x"])
    assert frame.index.tolist() == [key(i) for i in LIVE]
    assert frame["n"].tolist() == [3 * i for i in LIVE]
    same_rows(np.stack(frame["x"]) if not case.spec.ragged else list(frame["x"]), case.rows(LIVE), case.spec)


def asarray(case):
    chosen = case.open().select()
    if case.spec.ragged:
        with pytest.raises(errors.ShapeError, match="to_ragged"):
            np.asarray(chosen)
        return
    same_rows(np.asarray(chosen), case.rows(LIVE), case.spec)
    assert chosen.shape == case.rows(LIVE).shape


def arrow(case):
    """Whole batches, one of them without deleted rows and so without a copy."""
    pa = pytest.importorskip("pyarrow")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("embstore._outputs.arrow.GROUP_ROWS", 120)
        table = pa.table(case.open().select())
    assert table["key"].to_pylist() == [key(i) for i in LIVE]
    assert table["n"].to_pylist() == [3 * i for i in LIVE]
    assert table["split"].to_pylist() == columns_of(LIVE)["split"]
    if case.spec.ragged:
        assert "x" not in table.column_names
        return
    found = np.concatenate([chunk.to_numpy_ndarray() for chunk in table["x"].chunks])
    same_rows(found, case.rows(LIVE).astype(found.dtype), case.spec)
    assert found.dtype == (case.rows(LIVE).dtype if case.kind != "float16" else np.float32)


def xarray(case):
    pytest.importorskip("xarray")
    data = case.open().select().to_xarray()
    assert data["key"].values.tolist() == [key(i) for i in LIVE]
    assert data["split"].values.tolist() == columns_of(LIVE)["split"]
    if case.spec.ragged:
        rows = [row[:n] for row, n in zip(data["x"].values, data["x_length"].values, strict=True)]
        same_rows(rows, case.rows(LIVE), case.spec)
        return
    same_rows(data["x"].values, case.rows(LIVE), case.spec)
    same_rows(data["x"][60:250, ..., -1].values, case.rows(LIVE)[60:250, ..., -1], case.spec) if case.spec.shape else 0
    same_rows(data["x"][::-7].values, case.rows(LIVE)[::-7], case.spec)


def parquet(case):
    arrow = pytest.importorskip("pyarrow.parquet")
    if case.spec.ragged:
        with pytest.raises(errors.ShapeError):
            case.open().select().to_parquet(case.tmp / "x.parquet")
        return
    table = arrow.read_table(case.open().select().to_parquet(case.tmp / "x.parquet"))
    assert table["key"].to_pylist() == [key(i) for i in LIVE]
    found = np.stack(table["vector"].to_numpy())
    np.testing.assert_array_equal(found, case.rows(LIVE).reshape(len(LIVE), -1).astype(np.float32))


def nearest(case):
    chosen = case.open().select()
    if case.spec.ragged:
        with pytest.raises(errors.ShapeError):
            chosen.nearest(key(5))
        return
    rows = case.rows(LIVE).reshape(len(LIVE), -1).astype(np.float64)
    asked = case.rows([270]).reshape(-1).astype(np.float64)
    order = np.argsort(((rows - asked) ** 2).sum(axis=1), kind="stable")
    found = chosen.nearest(key(270), k=3, metric="euclidean", itself="include")
    assert found.rows.tolist() == [LIVE[i] for i in order[:3]]
    assert chosen.nearest([key(270)], k=3, metric="euclidean", itself="include").rows.tolist() == [found.rows.tolist()]


def analysis(case):
    from embstore.analysis import centroids

    if case.spec.ragged:
        with pytest.raises(errors.ShapeError):
            centroids(case.open())
        return
    means, rows = centroids(case.open()), case.rows(LIVE).reshape(len(LIVE), -1).astype(np.float64)
    expected = [np.mean([row for i, row in zip(LIVE, rows, strict=True) if i % 11 == c], axis=0) for c in range(11)]
    np.testing.assert_allclose(means.values, expected, rtol=1e-6, atol=1e-6)


def export(suffix):
    def export(case):
        if FORMATS[suffix]:
            pytest.importorskip(FORMATS[suffix])
        return export_file(case.open(), case.tmp / f"x.{suffix}")

    export.__name__ = f"export_{suffix}"
    return export


EXPORTS = [export(suffix) for suffix in FORMATS]
READS = [
    take,
    fetch,
    array,
    tensor,
    view,
    to_torch,
    classes,
    loader,
    pandas,
    asarray,
    arrow,
    xarray,
    parquet,
    nearest,
    analysis,
]


# -- changes ----------------------------------------------------------------------------------


def changed(case, change, numbers, **options):
    """Carry out a change on a copy. Compare what its store, a new one and a reader from before see, and verify."""
    path = Path(shutil.copytree(case.path, case.tmp / "a.zarr"))
    before = case.open(path)
    before.take(SOME)
    with case.open(path, "r+") as store:
        store.take(SOME)
        change(store)
        same_store(store, numbers, case.spec, **options)
    same_store(case.open(path), numbers, case.spec, **options)
    before.refresh()
    same_store(before, numbers, case.spec, **options)
    assert embstore.verify(path).ok
    return path


def append(case):
    changed(case, lambda store: put(store, range(N, 2 * N)), [*LIVE, *range(N, 2 * N)])


def replace(case):
    def replace(store):
        numbers = [5, 299, 200]
        put(store, numbers, [key(i) for i in numbers], if_exists="replace")

    changed(case, replace, [*(i for i in LIVE if i not in (5, 299, 200)), 5, 299, 200])


def delete(case):
    gone = [0, *range(60, 230), 299]
    changed(case, lambda store: store.delete([key(i) for i in gone if i in LIVE]), [i for i in LIVE if i not in gone])


def erase(case):
    gone = [0, 63, 64, 269, 270, 299]
    path = changed(case, lambda store: store.erase([key(i) for i in gone]), [i for i in LIVE if i not in gone])
    erased = case.open(path).take(gone)
    if case.spec.ragged:
        assert not np.nan_to_num(erased.values).any()
    else:
        assert not np.nan_to_num(erased).any()


def compact(case):
    path = changed(case, lambda store: store.compact(), LIVE)
    assert case.open(path).snapshot.record.dead == 0


def set_column(case):
    def set_column(store):
        store.set_column("n", [key(i) for i in LIVE[::-1]], [i + 0.5 for i in LIVE[::-1]])
        store.set_column("new", [key(3), key(299)], "x", fill="y")

    path = changed(case, set_column, LIVE, columns=("split",))
    found = case.open(path).select()
    assert found.column("n").tolist() == [i + 0.5 for i in LIVE]
    assert found.column("new").tolist() == ["x" if i in (3, 299) else "y" for i in LIVE]


def add_field(case):
    def add_field(store):
        keys, rows = [key(i) for i in LIVE[::-1]], case.rows(LIVE[::-1])
        store.add_field("other", keys, rows, spec=case.spec, casting="same_kind")

    path = Path(shutil.copytree(case.path, case.tmp / "a.zarr"))
    with case.open(path, "r+") as store:
        add_field(store)
    found = case.open(path).select()
    for name in ("x", "other"):
        rows = found.to_ragged(name) if case.spec.ragged else found.to_numpy(name)
        same_rows(rows, case.rows(LIVE), case.spec)
    assert embstore.verify(path).ok


def refresh(case):
    path = Path(shutil.copytree(case.path, case.tmp / "a.zarr"))
    reader = case.open(path)
    reader.take(SOME)
    with embstore.open(path, "r+") as store:
        for start in range(N, 2 * N, 150):
            put(store, range(start, start + 150))
            assert reader.refresh()
            same_store(reader, [*LIVE, *range(N, start + 150)], case.spec)


def merge(case):
    with new(case.tmp / "other.zarr", case.kind) as other:
        put(other, range(N, 2 * N))
    embstore.merge(case.tmp / "a.zarr", case.path, other.path, **case.how)
    same_store(case.open(case.tmp / "a.zarr"), [*LIVE, *range(N, 2 * N)], case.spec)
    assert embstore.verify(case.tmp / "a.zarr").ok


def salvage(case):
    report = embstore.salvage(case.path, case.tmp / "a.zarr")
    assert report.rows_kept == len(LIVE)
    same_store(case.open(case.tmp / "a.zarr"), LIVE, case.spec)
    assert embstore.verify(case.tmp / "a.zarr").ok


def verify(case):
    assert embstore.verify(case.path).ok
    path = flipped(case)
    report = embstore.verify(path)
    assert not report.ok
    salvaged = embstore.salvage(path, case.tmp / "salvaged.zarr")
    lost = set(salvaged.rows_lost.tolist())
    assert 0 < len(lost) < N // 2
    same_store(case.open(case.tmp / "salvaged.zarr"), [i for i in LIVE if i not in lost], case.spec)


def import_(suffix):
    """Export to a format. Import into a new store, and into one that has some of the rows."""

    def import_(case):
        made = {"chunk_bytes": 4096, "compression": KINDS[case.kind].get("compression"), **case.how}
        file = export(suffix)(case)
        result = import_file(file, case.tmp / "a.zarr", **made)
        assert result.ok
        same_store(case.open(result.path), LIVE, case.spec)
        with new(case.tmp / "b.zarr", case.kind) as store:
            put(store, range(150, N + 150))
        result = import_file(file, store.path, if_exists="replace", **case.how)
        assert result.replaced == len([i for i in LIVE if i >= 150])
        same_store(case.open(result.path), [*DEAD[1:], *range(N, N + 150), *LIVE], case.spec)

    import_.__name__ = f"import_{suffix}"
    return import_


CHANGES = [
    append,
    replace,
    delete,
    erase,
    compact,
    set_column,
    add_field,
    refresh,
    merge,
    salvage,
    verify,
    *(import_(suffix) for suffix in FORMATS),
]


def each(kind, path, tmp_path, folder, checks):
    """Yield a case for each mapping and check. All run in one test: a test takes longer than a case."""
    mapped = kind not in ("awkward", "zstd", "blosc")  # these are read chunk by chunk in any case
    for mapping, check in itertools.product(MAPPINGS if mapped else MAPPINGS[:1], checks):
        tmp = tmp_path / f"mapping={mapping} check={check}"  # a failure shows it
        tmp.mkdir()
        yield Case(kind, path, {"mapping": mapping, "check": check}, tmp, folder)


@every_kind
@pytest.mark.parametrize("way", [*READS, *CHANGES], ids=lambda way: way.__name__)
def test_each_way_over_several_chunks(kind, way, tmp_path, folder):
    for case in each(kind, made(kind, folder), tmp_path, folder, CHECKS):
        way(case)


# -- a flipped bit ----------------------------------------------------------------------------


def flipped(case):
    """Return a copy with a flipped bit in the chunk of row 130, which is not the last one."""
    path = Path(shutil.copytree(case.path, case.tmp / "flipped.zarr"))
    array = embstore.open(path).snapshot.record.arrays["x"]
    place = sum(i % 4 for i in range(130)) if case.spec.ragged else 130
    index = place // array.rows_per_chunk
    assert 0 < index < array.chunks - 1
    chunk = path / "x" / zarr_layout.chunk_name(array, index)
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    return path


def key_130(case):
    case.open()[key(130)]


CHECKED = [key_130, *READS]
"""Ways that check the chunks that they read under `check="touched"` and `check="all"`."""
FLAT = (asarray, arrow, parquet, nearest, analysis)  # these refuse or leave out a ragged field


@functools.cache
def flipped_once(kind, folder):
    return flipped(Case(kind, made(kind, folder), {}, Path(tempfile.mkdtemp(dir=folder)), folder))


@every_kind
@pytest.mark.parametrize("way", CHECKED, ids=lambda way: way.__name__)
def test_a_flipped_bit_is_found_where_chunks_are_checked(kind, way, tmp_path, folder):
    if (kind == "ragged" and way in FLAT) or (kind == "bfloat16" and way is array):
        pytest.skip("it refuses such a field")
    error = OSError if way is arrow else errors.CorruptStoreError  # Arrow's C interface passes on a code and a text
    for case in each(kind, flipped_once(kind, folder), tmp_path, folder, CHECKS[1:]):
        with pytest.raises(error, match=r"embstore\.verify"):
            way(case)


def compact_it(case):
    with case.open(mode="r+") as store:
        store.compact()


def merge_it(case):
    embstore.merge(case.tmp / "merged.zarr", case.path)


def erase_its_row(case):
    with case.open(mode="r+") as store:
        store.erase([key(130)])


def copy_its_field(case):
    fields = {"other": FieldSpec(shape=(1,))}
    with embstore.open(case.tmp / "b.zarr", "w-", config=CONFIG, fields=fields) as store:
        store.append([key(i) for i in LIVE], np.ones((len(LIVE), 1), np.float32))
        store.copy_fields(case.open(), ["x"])


ALWAYS = [compact_it, merge_it, erase_its_row, copy_its_field, *EXPORTS]
"""Ways that write what they read: a new checksum must not hide a flipped bit."""


@every_kind
@pytest.mark.parametrize("way", ALWAYS, ids=lambda way: way.__name__)
def test_a_flipped_bit_is_not_copied_under_any_check(kind, way, tmp_path, folder):
    for case in each(kind, made(kind, folder), tmp_path, folder, CHECKS[:1]):
        case.path = flipped(case)
        with pytest.raises(errors.CorruptStoreError):
            way(case)
        assert not list(case.tmp.glob("x.*"))
