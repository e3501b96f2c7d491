"""Anything that reads Zarr v3 reads a store: plain zarr-python, xarray, tensorstore."""

import warnings

import numpy as np
import pytest

import embstore

FORMS = {
    "float32": {"mean": ("float32", (8,))},
    "float16": {"mean": ("float16", (2, 8))},
    "bfloat16": {"mean": ("bfloat16", (16,))},
    "int": {"labels": ("uint8", (5,))},
    "unaligned": {"bytes": ("uint8", (4099,))},
    "two fields": {"mean": ("float32", (8,)), "tokens": ("float32", (3, 8))},
}


@pytest.fixture(params=FORMS)
def written(request, path, rng):
    """A store of each form, with deleted rows and a replaced column, and what its arrays must hold."""
    fields = {n: embstore.FieldSpec(shape=shape, dtype=dtype) for n, (dtype, shape) in FORMS[request.param].items()}
    keys = [f"clip é {i}:class {i % 3}" for i in range(200)]
    columns = {"split": "string", "score": "int64"}
    options = {"fields": fields, "columns": columns, "chunk_bytes": 4096}
    with embstore.open(path, "w-", config={"form": request.param}, **options) as store:
        for part in (slice(0, 150), slice(150, 200)):
            rows = {n: rng.integers(0, 100, (len(keys[part]), *s.shape)).astype("float32") for n, s in fields.items()}
            rows = {n: r if fields[n].dtype == "bfloat16" else r.astype(fields[n].dtype) for n, r in rows.items()}
            columns = {"split": ["a", "bc"] * (len(keys[part]) // 2), "score": np.arange(len(keys[part]))}
            store.append(keys[part], rows, columns=columns, casting="same_kind")
        store.set_column("score", keys, np.arange(200) * 2)
        store.delete(keys[3:6])
    return path


def expected(path):
    """The arrays by name, as embstore reads them: all rows, the stored bits."""
    snapshot = embstore.open(path).snapshot
    everything = np.arange(snapshot.record.rows)
    found = {"file_id": np.array(snapshot.file_ids_of(everything), dtype=object)}
    for name, array in snapshot.record.arrays.items():
        if array.dtype != "string":
            found[name] = snapshot.span(name)
    found["split"] = np.array(snapshot.take_strings("split", everything), dtype=object)
    return found


@pytest.mark.parametrize("consolidated", [True, False])
def test_zarr(written, consolidated):
    import zarr

    group = zarr.open_group(written, mode="r", use_consolidated=consolidated)
    for name, values in expected(written).items():
        np.testing.assert_array_equal(np.asarray(group[name][:]).astype(values.dtype), values, err_msg=name)


@pytest.mark.parametrize("consolidated", [True, False])
def test_xarray(written, consolidated):
    import xarray

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr's, on string types and on index/ having no array metadata
        dataset = xarray.open_zarr(written, consolidated=consolidated, mask_and_scale=False)
    for name, values in expected(written).items():
        np.testing.assert_array_equal(dataset[name].values.astype(values.dtype), values, err_msg=name)


def test_tensorstore(written):
    tensorstore = pytest.importorskip("tensorstore")
    for name, values in expected(written).items():
        if values.dtype == object:
            continue  # tensorstore does not know strings
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(written / name) + "/"}}
        array = tensorstore.open(spec, read=True).result()
        np.testing.assert_array_equal(array.read().result(), values, err_msg=name)


def test_after_a_compaction(written):
    import zarr

    with embstore.open(written, "r+") as store:
        store.compact()
        keys = list(store)
    group = zarr.open_group(written, mode="r")
    assert group["dead_rows"].shape == (0,)
    assert group["file_id"].shape == (197,)
    assert list(group["score"][:3]) == [0, 2, 4]
    assert len(keys) == 197
