"""Other readers of Zarr v3 see what embstore sees, whatever happened to the store before."""

import json
import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import zarr

import embstore
from tests._helpers.damage import flip

FIELDS = {
    "float32": {"mean": embstore.FieldSpec(shape=(8,))},
    "float16": {"mean": embstore.FieldSpec(shape=(2, 8), dtype="float16", dims=("time", "channel"))},
    "float64": {"mean": embstore.FieldSpec(shape=(4,), dtype="float64")},
    "bfloat16": {"mean": embstore.FieldSpec(shape=(16,), dtype="bfloat16")},
    "number": {"mean": embstore.FieldSpec(shape=(), dtype="int64")},
    "bool": {"tags": embstore.FieldSpec(shape=(9,), dtype="bool")},
    "integers": {
        f"{sign}int{bits}": embstore.FieldSpec(shape=(2,), dtype=f"{sign}int{bits}")
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
    "unaligned": {"bytes": embstore.FieldSpec(shape=(4099,), dtype="uint8")},
    "nonfinite": {"mean": embstore.FieldSpec(shape=(8,), nonfinite="allow")},
    "two": {
        "mean": embstore.FieldSpec(shape=(8,), dims=("channel",)),
        "tokens": embstore.FieldSpec(shape=(3, 8), dtype="float16", dims=("token", "channel")),
    },
    "ragged": {
        "tokens": embstore.FieldSpec(shape=(2, 3), dtype="float16", ragged=True, dims=("time", "channel")),
        "mean": embstore.FieldSpec(shape=(4,)),
    },
    "ragged bfloat16": {"tokens": embstore.FieldSpec(shape=(8,), dtype="bfloat16", ragged=True)},
    "ragged numbers": {"tokens": embstore.FieldSpec(shape=(), dtype="int64", ragged=True)},
    "ragged bool": {"tokens": embstore.FieldSpec(shape=(8,), dtype="bool", ragged=True)},
}
KEYS = [f"clips/é日本😀 {i}:{name}:klasse ß {i % 3}" for i, name in enumerate(["a", "b", "c", "d"] * 75)]
NAMES = ["", "plain", "naïve — 日本語", "line\nbreak", 'quote " \\ \x00', "😀"] * 50


def values_for(spec, rng, n=300):
    if spec.ragged:
        one = replace(spec, ragged=False, dims=None)
        return [values_for(one, rng, length) for length in rng.choice([0, 0, 1, 3, 128, 300], n).tolist()]
    low = 0 if spec.dtype.startswith("uint") else -100
    values = rng.integers(low, 100, (n, *spec.shape))
    if spec.nonfinite == "allow":
        values = np.where(values > 80, np.nan, np.where(values < -80, -np.inf, values))
    return values.astype("float32" if spec.dtype == "bfloat16" else spec.dtype)


def unchanged(store):
    return store


def erased(store):
    store.erase(store.select(rows=[0, 7, 150, 299]).keys)


def compacted(store):
    store.delete(store.select(rows=[0, 7, 150, 299]).keys)
    store.compact()


def changed(store):
    keys = list(store)
    store.set_column("score", keys, np.arange(len(keys)) / 4)
    store.add_field("later", keys, np.arange(len(keys), dtype=np.float16)[:, None])
    store.delete(keys[5:9])
    store.erase(keys[10:12])
    name = next(iter(store.fields))
    again = {n: values_for(s, np.random.default_rng(9), 2) for n, s in store.fields.items()}
    columns = {"note": "replaced", "score": 9.5, "flag": [True, False]}
    store.append(keys[20:22], again, columns=columns, if_exists="replace", casting="same_kind")
    assert name in store.fields


HISTORIES = {f.__name__: f for f in (unchanged, erased, compacted, changed)}


PACKED = ["float32", "float16", "float64", "bfloat16", "bool", "integers", "unaligned", "ragged", "ragged bfloat16"]
FORMS = [
    *((form, "changed", None) for form in FIELDS),
    *(("two", history, None) for history in HISTORIES if history != "changed"),
    *((form, "changed", codec) for form in PACKED for codec in ("zstd", "blosc")),
]


@pytest.fixture(params=FORMS, ids=lambda form: "-".join(map(str, form)))
def written(request, path, rng):
    form, history, codec = request.param
    fields = FIELDS[form]
    columns = {"note": "string", "score": "float64", "flag": "bool"}
    options = {"fields": fields, "columns": columns, "chunk_bytes": 4096, "compression": codec}
    with embstore.open(path, "w-", config={"é": form}, **options) as store:
        for part in (slice(0, 1), slice(1, 200), slice(200, 300)):
            n = part.stop - part.start
            rows = {name: values_for(spec, rng, n) for name, spec in fields.items()}
            given = {"note": NAMES[part], "score": np.arange(n) / 2, "flag": np.arange(n) % 3 == 0}
            store.append(KEYS[part], rows, columns=given, casting="same_kind")
        HISTORIES[history](store)
        record = store.snapshot.record
        ragged = any(spec.ragged for spec in fields.values())
        assert record.requires == ["ragged"] * ragged + ["compressed"] * (codec is not None)
        packed = {name for name, array in record.arrays.items() if array.compression}
        assert packed == (set(store.fields) if codec else set())
    return path


def stored(path):
    """Every array by its name, as embstore reads it, all rows."""
    snapshot = embstore.open(path, mapping="never").snapshot
    found = {}
    for name, array in snapshot.record.arrays.items():
        if array.dtype == "string":
            found[name] = np.array(snapshot.take_strings(name, np.arange(array.length)), dtype=object)
        else:
            found[name] = snapshot.span(name)
    return found


def assert_same(values, expected, name):
    values = np.asarray(values)
    assert values.shape == expected.shape, name
    if expected.dtype == object:
        assert [str(v) for v in values.tolist()] == expected.tolist(), name
    else:
        assert values.dtype == expected.dtype, name
        assert values.tobytes() == expected.tobytes(), name


@pytest.mark.parametrize("consolidated", [True, False])
def test_zarr_python(written, consolidated):
    group = zarr.open_group(written, mode="r", use_consolidated=consolidated)
    for name, expected in stored(written).items():
        assert_same(group[name][:], expected, name)
    record = json.loads((written / "zarr.json").read_text())["attributes"]["embstore"]
    assert group.attrs["embstore"] == record
    if consolidated:
        listed = group.metadata.consolidated_metadata.metadata
        assert set(record["arrays"]) <= set(listed)


@pytest.mark.parametrize("consolidated", [True, False])
def test_xarray(written, consolidated):
    xarray = pytest.importorskip("xarray")
    with warnings.catch_warnings():
        # index/ holds what is embstore's own; unconsolidated, zarr-python says so of what is no node.
        warnings.filterwarnings("ignore", message="Object at .* is not recognized as a component of a Zarr hierarchy")
        dataset = xarray.open_zarr(written, consolidated=consolidated, mask_and_scale=False, chunks=None)
    expected = stored(written)
    for name, values in expected.items():
        assert_same(dataset[name].values, values, name)
    assert dataset.sizes["sample"] == len(expected["file_id"])
    for name, spec in embstore.open(written).fields.items():
        assert dataset[name].dims[0] == (f"{name}_token" if spec.ragged else "sample")
        if spec.ragged:
            assert dataset[f"{name}_offsets"].dims == (f"{name}_offset",)
            assert dataset.sizes[f"{name}_offset"] == dataset.sizes["sample"] + 1
        assert spec.dims is None or dataset[name].dims[1:] == spec.dims
    live = dataset.isel(sample=~np.isin(np.arange(dataset.sizes["sample"]), dataset["dead_rows"].values))
    names = dataset["class_names"].values[live["class_code"].values]
    keys = [f"{f}:{c}" for f, c in zip(live["file_id"].values, names, strict=True)]
    assert keys == list(embstore.open(written))


def test_xarray_shows_blank_rows_as_missing(path):
    """What was erased is NaN to whoever ignores dead_rows; what is stored is never masked."""
    xarray = pytest.importorskip("xarray")
    with embstore.open(path, "w-", config={}) as store:
        store.append(["a:c", "b:c"], np.zeros((2, 3), np.float32))
        store.erase(["a:c"])
    dataset = xarray.open_zarr(path, chunks=None)
    assert np.isnan(dataset["embedding"].values[0]).all()
    assert (dataset["embedding"].values[1] == 0).all()


def test_tensorstore(written):
    tensorstore = pytest.importorskip("tensorstore")
    for name, expected in stored(written).items():
        if expected.dtype == object:
            continue  # it has no strings
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{written / name}/"}}
        array = tensorstore.open(spec, read=True).result()
        assert_same(array.read().result(), expected, name)


def test_bfloat16_is_its_bits(path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.array([[1.0, -2.5, 3.140625, 1e-30]], ml_dtypes.bfloat16)
    with embstore.open(path, "w-", config={}) as store:
        store.append(["a:c"], values)
        np.testing.assert_array_equal(store["a:c"], values[0].astype(np.float32))
    bits = zarr.open_group(path, mode="r")["embedding"][:]
    assert bits.dtype == np.uint16
    assert (bits.view(ml_dtypes.bfloat16) == values).all()


@pytest.mark.parametrize("array", ["embedding", "file_id", "class_code", "key_hash"])
def test_another_reader_finds_a_flipped_bit(make, array):
    store, _, _ = make()
    file = sorted((store.path / array).glob("c.*"))[0]
    flip(file)
    with pytest.raises(Exception, match=r"(?i)crc|checksum"):
        zarr.open_group(store.path, mode="r")[array][:]


def test_another_reader_sees_no_uncommitted_rows(make, monkeypatch):
    """A writer that dies before its commit leaves what other readers do not see either."""
    from embstore._engine.io import steps
    from tests._helpers.crash import kill_at, run_in_child

    store, keys, rows = make()

    def work(step):
        kill_at(step)
        store.append(["new:c"], rows[:1], columns={"split": "x"})

    for step in range(0, 60, 4):
        if run_in_child(partial(work, step)) == 0:
            break
        committed = len(embstore.open(store.path))
        for consolidated in (True, False):
            group = zarr.open_group(store.path, mode="r", use_consolidated=consolidated)
            found = group["embedding"][:]
            assert 300 <= len(found) <= committed
            np.testing.assert_array_equal(found[:300], rows)
        if committed == 301:
            break
    assert step > 8
    assert steps.step_hook is None
    assert len(keys) == 300
