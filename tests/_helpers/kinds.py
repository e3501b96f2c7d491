"""Kinds of store that the tests of durability run over: how each is made, its rows, and how rows are compared."""

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

import embstore
from embstore import FieldSpec
from embstore._engine.format.ragged import Padded

BFLOAT16 = FieldSpec(shape=(16,), dtype="bfloat16")
RAGGED = FieldSpec(shape=(8,), ragged=True)
KINDS = {
    "raw": {"fields": {"embedding": FieldSpec(shape=(8,))}},
    "ragged": {"fields": {"embedding": RAGGED, "mean": FieldSpec(shape=(4,))}},
    "bfloat16": {"fields": {"embedding": BFLOAT16}},
    "zstd": {"fields": {"embedding": FieldSpec(shape=(8,))}, "compression": "zstd"},
    "blosc": {"fields": {"embedding": FieldSpec(shape=(8,))}, "compression": "blosc"},
}
"""Options of a new store of each kind. A row, or a token, has 32 bytes, so a chunk of 4,096 has 128 of them."""

every_kind = pytest.mark.parametrize("kind", KINDS)
READ = {
    "mapped": {},
    "unmapped": {"mapping": "never"},
    "zstd": {"compression": "zstd"},
    "blosc": {"compression": "blosc"},
}
"""Options of `embstore.open` for each way in which rows get from files to readers."""

every_way = pytest.mark.parametrize("options", READ.values(), ids=READ)
LONG = {128: 500, 1129: 140}


def new(path, kind, **options):
    return embstore.open(path, "w-", **{"config": {"kind": kind}, "chunk_bytes": 4096, **KINDS[kind], **options})


def key(i):
    return f"f{i}:c{i % 3}"


def number_of(name):
    return int(name[1 : name.index(":")])


def rows_of(spec, numbers):
    """Return the rows of these numbers, exact in every dtype: one array, or a list of them if the field is ragged.

    Ragged rows have 0 to 4 tokens, every 64th has 127, and two are longer than a chunk.
    """
    numbers, dtype = list(numbers), "float32" if spec.dtype == "bfloat16" else spec.dtype
    if spec.ragged:
        lengths = [LONG.get(i, 127 if i % 64 == 1 else i % 5) for i in numbers]
        return [np.full((n, *spec.shape), i % 251, dtype) for i, n in zip(numbers, lengths, strict=True)]
    column = np.array([i % 251 for i in numbers], dtype).reshape(-1, *(1 for _ in spec.shape))
    return np.tile(column, (1, *spec.shape))


def put(store, numbers, keys=None, **options):
    """Append the rows of these numbers to all fields, with a value for each column."""
    numbers = list(numbers)
    values = {name: rows_of(spec, numbers) for name, spec in store.fields.items()}
    options = {"columns": dict.fromkeys(store.columns, 7), "casting": "same_kind", **options}
    return store.append(keys or [key(i) for i in numbers], values, **options)


def base(path, kind, *, deleted=False):
    """Put a store of 130 rows at `path`. Its last chunk is partly filled."""
    shutil.copytree(_made(kind, deleted), path)


@functools.cache
def _made(kind, deleted):
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder) / "store.zarr"
    with new(path, kind, columns={"score": "int64"}) as store:
        put(store, range(130), columns={"score": np.arange(130)})
        if deleted:
            store.delete([key(5), key(127)])
    return path


# -- comparing ----------------------------------------------------------------------------------------


def unpadded(padded):
    """Return the rows of a padded array, once it is known that only zeros are past them."""
    values, lengths = np.asarray(padded.values), np.asarray(padded.lengths)
    assert lengths.dtype == np.int64
    assert values.shape[:2] == (len(lengths), max(lengths.tolist(), default=0))
    assert not values[np.arange(values.shape[1]) >= lengths[:, None]].any()
    return [row[:length] for row, length in zip(values, lengths.tolist(), strict=True)]


def assert_rows(found, expected):
    """Compare rows, padded or not, with an array or with a list of arrays of different lengths."""
    expected = list(expected)
    if isinstance(found, np.ndarray) and expected:  # row by row, comparing took most of the time of the state machine
        np.testing.assert_array_equal(found, np.stack(expected), strict=True)
        return
    found = list(unpadded(found) if isinstance(found, Padded) else found)
    assert [(np.shape(row), row.dtype) for row in found] == [(np.shape(row), row.dtype) for row in expected]
    if expected:
        found, expected = (np.concatenate([np.ravel(row) for row in rows]) for rows in (found, expected))
        np.testing.assert_array_equal(found, expected)


def rows_in(view, field="embedding"):
    """Return a view's rows, one by one."""
    return list(view.to_ragged(field) if view.store.fields[field].ragged else view.to_numpy(field))


def state(store):
    """Return all that a reader sees."""
    view = store.select()
    columns = {name: view.column(name).tolist() for name in store.columns}
    fields = {name: [row.tolist() for row in rows_in(view, name)] for name in store.fields}
    return {"keys": view.keys, "columns": columns, "fields": fields}


def files_with(path, spec, number):
    """Return the chunk files that hold a value of this row as it is stored. Compressed chunks show none."""
    row = rows_of(FieldSpec(shape=spec.shape), [number])
    pattern = (row.view(np.uint32) >> 16).astype("<u2").tobytes() if spec.dtype == "bfloat16" else row.tobytes()
    return [file for file in path.rglob("c.*") if file.is_file() and pattern in file.read_bytes()]


# -- changes ------------------------------------------------------------------------------------------


def append(store):
    put(store, range(200, 500), columns={"score": np.arange(300)})


def replace(store):
    put(store, [1001, 1129], [key(1), key(129)], columns={"score": [1, 2]}, if_exists="replace")


def delete(store):
    store.delete([key(2), key(128)])


ERASED = (2, 128, 129)


def erase(store):
    store.erase([key(i) for i in ERASED])


def compact(store):
    store.compact()


def set_column(store):
    store.set_column("score", list(store), np.arange(len(store)) + 0.5)


def add_field(store):
    spec, keys = store.fields["embedding"], list(store)
    store.add_field("other", keys[::-1], rows_of(spec, range(len(keys))), spec=spec, casting="same_kind")


CHANGES = [append, replace, delete, erase, compact, set_column, add_field]
