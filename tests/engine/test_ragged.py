"""Ragged fields, attacked: rows of any length come back as they went in, or the store says why not.

Tokens have 128 to a chunk in most of these stores, so that rows begin, end and lie across chunks.
"""

import contextlib
import json
import pickle
import shutil
import struct
from importlib.util import find_spec
from itertools import pairwise

import numpy as np
import pytest

import embstore
from embstore import FieldSpec
from embstore._engine.format.parse_record import record_from_json
from embstore._engine.format.ragged import Padded, Ragged
from embstore._engine.format.record import SchemaError, offsets_name
from embstore._engine.format.values import crc32c
from embstore.errors import (
    CorruptStoreError,
    DeadRowsError,
    DtypeError,
    EmbstoreError,
    KeysExistError,
    MissingKeysError,
    NameRefusedError,
    NonFiniteError,
    ShapeError,
    StoreChangedError,
    StoreReplacedError,
    UnsupportedFormatError,
)
from tests._helpers.crash import files_in, leftovers, run_with_little_memory
from tests._helpers.damage import edit, flip, sealed, setter
from tests._helpers.kinds import assert_rows, unpadded

PLAIN = FieldSpec(shape=(8,), ragged=True)
FORMS = {
    **{
        dtype: FieldSpec(shape=(8,), dtype=dtype, ragged=True)
        for dtype in ("float32", "float16", "float64", "bfloat16", "bool", "int8", "uint16", "int32", "uint64")
    },
    "numbers": FieldSpec(shape=(), dtype="int64", ragged=True),
    "bfloat16 numbers": FieldSpec(shape=(), dtype="bfloat16", ragged=True),
    "grids": FieldSpec(shape=(2, 3), dtype="float16", ragged=True, dims=("time", "channel")),
    "unaligned": FieldSpec(shape=(4099,), dtype="uint8", ragged=True),
}
LENGTHS = [0, 3, 128, 0, 0, 1, 500, 127, 2, 0]
"""Rows that fill a chunk just, lie across several, and have nothing."""


def rows_of(lengths, spec=PLAIN, start=0):
    """Rows of numbers that every dtype holds exactly. They differ from token to token. bfloat16 is float32."""
    rows = []
    for length in lengths:
        tokens = np.arange(start, start + length).reshape(length, *(1 for _ in spec.shape))
        places = np.arange(int(np.prod(spec.shape))).reshape(spec.shape)
        numbers = (tokens * 7 + places) % 113
        rows.append(numbers % 3 == 0 if spec.dtype == "bool" else numbers.astype(read_dtype(spec)))
        start += length
    return rows


def read_dtype(spec):
    return np.dtype("float32" if spec.dtype == "bfloat16" else spec.dtype)


def keys_of(count, start=0):
    return [f"f{i}:c{i % 3}" for i in range(start, start + count)]


def new(path, spec=PLAIN, **options):
    options = {"fields": {"tokens": spec}, "chunk_bytes": 4096, **options}
    return embstore.open(path, "w-", config={"a": 1}, **options)


def filled(path, lengths=LENGTHS, spec=PLAIN, **options):
    """Make a store with rows of these lengths: (store, keys, rows)."""
    keys, rows = keys_of(len(lengths)), rows_of(lengths, spec)
    store = new(path, spec, **options)
    store.append(keys, rows, casting="same_kind")
    return store, keys, rows


def assert_holds(store, expected, field="tokens"):
    """Read a field in all ways there are, and compare with ``{key: row}``."""
    spec, keys, rows = store.fields[field], list(expected), list(expected.values())
    assert list(store) == keys
    view = store.select()
    assert_rows(view.to_ragged(field), rows)
    assert_rows(view.to_numpy(field), rows)
    assert_rows(store.take(store.rows, field), rows)
    order = np.random.default_rng(len(keys)).permutation(len(keys))[:40].tolist()
    order += order[:2]
    shuffled = [keys[i] for i in order]
    assert_rows(store.fetch(shuffled, field), [rows[i] for i in order])
    assert_rows(store.select(keys=shuffled).to_ragged(field), [rows[i] for i in order])
    for i in order[:12]:
        one = store.fetch([keys[i]], field)
        assert_rows(one, [rows[i]])
        if store.field_name(field) and len(store.fields) == 1:
            row = store[keys[i]]
            assert_rows([row], [rows[i]])
            assert spec.dtype == "bfloat16" or not row.flags.writeable
    if len(store) == store.snapshot.record.rows and spec.dtype != "bfloat16":
        whole = store.array(field)
        assert_rows(whole, rows)
        assert not whole.values.flags.writeable
        assert not whole.offsets.flags.writeable


# -- appends --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mapping", ["auto", "never"])
@pytest.mark.parametrize("form", FORMS)
def test_rows_come_back_as_they_went_in(path, form, mapping):
    """In three commits, of which the first two end in the middle of a chunk, and a row begins there."""
    spec = FORMS[form]
    lengths = [0, 1, 3, 0, 2] if form == "unaligned" else LENGTHS * 2
    keys, rows = keys_of(len(lengths)), rows_of(lengths, spec)
    store = new(path, spec, mapping=mapping)
    older = embstore.open(path, mapping=mapping)
    cuts = [0, 2, len(keys) - 2, len(keys)]
    for start, stop in pairwise(cuts):
        store.append(keys[start:stop], rows[start:stop], casting="same_kind")
        assert_holds(store, dict(zip(keys[:stop], rows[:stop], strict=True)))
        older.refresh()
        assert_holds(older, dict(zip(keys[:stop], rows[:stop], strict=True)))
    for check in ("touched", "all"):
        reader = embstore.open(path, mapping=mapping, check=check)
        assert_holds(reader, dict(zip(keys, rows, strict=True)))
    assert store.nbytes == sum(lengths) * spec.row_nbytes
    assert embstore.verify(path).ok


@pytest.mark.parametrize(
    "lengths", [[], [0], [0, 0, 0], [1], [128], [127, 1], [128, 128], [1000], [0, 0, 1000, 0], [129, 0]], ids=str
)
@pytest.mark.parametrize("mapping", ["auto", "never"])
def test_lengths_at_the_edges(path, lengths, mapping):
    store, keys, rows = filled(path, lengths, mapping=mapping)
    assert_holds(store, dict(zip(keys, rows, strict=True)))
    more = keys_of(3, start=100)
    store.append(more, rows_of([0, 130, 0], start=5))
    expected = dict(zip([*keys, *more], [*rows, *rows_of([0, 130, 0], start=5)], strict=True))
    assert_holds(store, expected)
    assert_holds(embstore.open(path, mapping=mapping, check="all"), expected)
    assert embstore.verify(path).ok


def as_ragged(rows, spec):
    values = np.concatenate([*rows, np.empty((0, *spec.shape), rows[0].dtype)])
    return Ragged(values, np.cumsum([0, *map(len, rows)]))


def as_padded(rows, spec):
    out = np.full((len(rows), max(map(len, rows)) + 2, *spec.shape), 99, rows[0].dtype)  # the padding is not read
    for place, row in zip(out, rows, strict=True):
        place[: len(row)] = row
    return Padded(out, np.array([len(row) for row in rows], np.int32))


def as_objects(rows, spec):
    out = np.empty(len(rows), object)
    out[:] = rows
    return out


GIVEN = {
    "ragged": as_ragged,
    "padded": as_padded,
    "tuple": lambda rows, spec: tuple(rows),
    "objects": as_objects,
    "generator": lambda rows, spec: iter(rows),
    "strides": lambda rows, spec: [np.repeat(row, 2, axis=0)[::2] for row in rows],
    "reversed": lambda rows, spec: [np.ascontiguousarray(row[::-1])[::-1] for row in rows],
    "big endian": lambda rows, spec: [row.astype(row.dtype.newbyteorder(">")) for row in rows],
}


@pytest.mark.parametrize("how", GIVEN)
@pytest.mark.parametrize("form", ["float32", "numbers", "grids"])
def test_forms_that_append_takes(path, how, form):
    spec = FORMS[form]
    keys, rows = keys_of(len(LENGTHS)), rows_of(LENGTHS, spec)
    with new(path, spec) as store:
        store.append(keys, GIVEN[how](rows, spec))
        assert_holds(store, dict(zip(keys, rows, strict=True)))


def test_an_array_of_equal_lengths(path):
    rows = np.arange(3 * 5 * 8, dtype=np.float32).reshape(3, 5, 8)
    with new(path) as store:
        store.append(keys_of(3), rows)
        store.append(keys_of(2, start=3), np.empty((2, 0, 8), np.float32))
        expected = [*rows, *np.empty((2, 0, 8), np.float32)]
        assert_holds(store, dict(zip(keys_of(5), expected, strict=True)))


def test_lists_of_numbers(path):
    with new(path, FieldSpec(shape=(2,), dtype="float64", ragged=True)) as store:
        store.append(keys_of(2), [[[1.0, 2.0]], [[3.0, 4.0], [5.0, 6.0]]])
        assert_rows(store.select().to_ragged(), [np.array([[1.0, 2.0]]), np.array([[3.0, 4.0], [5.0, 6.0]])])


def test_what_was_read_goes_in_again(path, tmp_path):
    """Ragged over a map, ragged in RAM and padded rows of one store are rows for another."""
    store, keys, rows = filled(path)
    for i, values in enumerate((store.array(), store.select().to_ragged(), store.select().to_numpy())):
        with new(tmp_path / f"{i}.zarr") as other:
            other.append(keys, values)
            assert_holds(other, dict(zip(keys, rows, strict=True)))


def test_bfloat16_of_ml_dtypes(path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    spec = FORMS["bfloat16"]
    keys, rows = keys_of(len(LENGTHS)), rows_of(LENGTHS, spec)
    with new(path, spec) as store:
        store.append(keys, [row.astype(ml_dtypes.bfloat16) for row in rows])
        assert_holds(store, dict(zip(keys, rows, strict=True)))
        with pytest.raises(DtypeError):
            store.append(["x:c"], [rows[1]])
        with pytest.raises(DtypeError):  # its bits are not its numbers
            store.append(["x:c"], [np.ones((1, 8), np.uint16)], casting="same_kind")
        with pytest.raises(DtypeError, match="tensor"):
            store.array()


def test_the_callers_array_is_left_alone(path):
    rows = rows_of([2, 3])
    whole = as_ragged(rows, PLAIN)
    before = whole.values.copy(), whole.offsets.copy()
    with new(path) as store:
        store.append(keys_of(2), whole)
        np.testing.assert_array_equal(whole.values, before[0])
        np.testing.assert_array_equal(whole.offsets, before[1])
        whole.values[:] = -1
        assert_rows(store.select().to_ragged(), rows)


# -- keys that are stored -------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["tuple", "ragged", "padded"])
def test_skip_replace_and_error(path, how):
    store, keys, rows = filled(path)
    model = dict(zip(keys, rows, strict=True))
    again = [keys[6], "n1:c", keys[0], "n2:c", keys[9]]
    fresh = rows_of([4, 200, 7, 0, 1], start=31)
    given = GIVEN[how](fresh, PLAIN)
    with pytest.raises(KeysExistError) as caught:
        store.append(again, given)
    assert caught.value.keys == (keys[6], keys[0], keys[9])
    assert_holds(store, model)
    result = store.append(again, given, if_exists="skip")
    assert (result.appended, result.skipped) == (2, 3)
    model |= {"n1:c": fresh[1], "n2:c": fresh[3]}
    assert_holds(store, model)
    result = store.append(again, given, if_exists="replace")
    assert (result.appended, result.replaced) == (5, 5)
    for key, row in zip(again, fresh, strict=True):
        del model[key]
        model[key] = row
    assert_holds(store, model)
    with pytest.raises(DeadRowsError):
        store.array()
    whole = store.array(dead="include")
    assert_rows([whole[int(row)] for row in store.rows], list(model.values()))
    assert embstore.verify(path).ok


def test_skipping_all_changes_nothing(path):
    store, keys, rows = filled(path)
    before = store.snapshot.record
    assert store.append(keys, rows, if_exists="skip").skipped == len(keys)
    assert store.append([], []).appended == 0
    assert store.append([], np.empty((0, 3, 8), np.float32)).appended == 0
    assert store.snapshot.record == before


# -- the writer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["float32", "numbers", "int32"])
def test_the_writer_gathers_rows_of_any_length(path, form):
    """Its caller may use the same buffer for each row."""
    spec = FORMS[form]
    keys, rows = keys_of(len(LENGTHS)), rows_of(LENGTHS, spec)
    buffer = np.empty((max(LENGTHS), *spec.shape), spec.dtype)
    with new(path, spec) as store:
        with store.writer(interval=1000) as writer:
            for key, row in zip(keys[:4], rows[:4], strict=True):
                buffer[: len(row)] = row
                writer.add(key, buffer[: len(row)])
            buffer[:] = 1
            offsets = np.array([0, *np.cumsum([len(row) for row in rows[4:7]])])
            whole = np.concatenate(rows[4:7])
            writer.append(keys[4:7], Ragged(whole, offsets))
            whole[:] = 1
            offsets[:] = 0
            assert len(store) == 0
            assert writer.flush().appended == 7
            assert_holds(store, dict(zip(keys[:7], rows[:7], strict=True)))
            writer.append(keys[7:], rows[7:])
        assert_holds(store, dict(zip(keys, rows, strict=True)))
    assert embstore.verify(path).ok


def test_the_writer_counts_the_bytes_of_tokens(path):
    with new(path) as store:
        writer = store.writer(interval=1000, max_bytes=100 * 32)
        writer.add("a:c", np.zeros((99, 8), np.float32))
        assert len(store) == 0
        writer.add("b:c", np.zeros((1, 8), np.float32))
        assert len(store) == 2


def test_what_was_added_before_an_exception_is_committed(path):
    rows = rows_of([3, 0, 5])

    def encode(writer):
        with writer:
            writer.append(keys_of(3), rows)
            raise KeyError("the encoder failed")

    with new(path) as store:
        with pytest.raises(KeyError, match="encoder"):
            encode(store.writer(interval=1000))
        assert_holds(store, dict(zip(keys_of(3), rows, strict=True)))


def test_a_row_that_is_refused_does_not_hold_up_those_before_it(path):
    rows = rows_of([3, 0, 5])
    with new(path) as store:
        with store.writer(interval=1000) as writer:
            writer.add("f0:c0", rows[0])
            for bad, error in (
                (np.ones((3, 7), np.float32), ShapeError),
                (np.ones(8, np.float32), ShapeError),
                (np.ones((3, 8)), DtypeError),
                (np.full((2, 8), np.nan, np.float32), NonFiniteError),
            ):
                with pytest.raises(error):
                    writer.add("bad:c", bad)
            with pytest.raises(ShapeError):
                writer.append(["bad:c", "worse:c"], [rows[2]])
            writer.add("f1:c1", rows[1])
            writer.add("f2:c2", rows[2])
        assert_holds(store, dict(zip(keys_of(3), rows, strict=True)))


def test_the_writer_takes_no_rows_for_a_column_of_integers(path):
    with new(path, columns={"score": "int64"}) as store:
        with store.writer() as writer:
            writer.append([], [], columns={"score": np.array([], np.int64)})
        assert len(store) == 0


@pytest.mark.parametrize("if_exists", ["skip", "replace"])
def test_the_writer_skips_and_replaces(path, if_exists):
    store, keys, rows = filled(path)
    fresh = rows_of([6, 2], start=50)
    with store.writer(if_exists=if_exists, interval=1000) as writer:
        writer.add(keys[6], fresh[0])
        writer.add("new:c", fresh[1])
    model = dict(zip(keys, rows, strict=True))
    if if_exists == "replace":
        del model[keys[6]]
        model[keys[6]] = fresh[0]
    assert_holds(store, model | {"new:c": fresh[1]})


def test_rows_beside_rows_of_one_shape(path):
    """Several fields, of both kinds, in a writer and in one append."""
    fields = {"tokens": PLAIN, "mean": FieldSpec(shape=(4,)), "codes": FORMS["numbers"]}
    keys, rows, codes = keys_of(10), rows_of(LENGTHS), rows_of(LENGTHS[::-1], FORMS["numbers"])
    means = np.arange(40, dtype=np.float32).reshape(10, 4)
    with new(path, fields=fields) as store:
        store.append(keys[:5], {"mean": means[:5], "tokens": rows[:5], "codes": codes[:5]})
        with store.writer() as writer:
            writer.add(keys[5], {"tokens": rows[5], "codes": codes[5], "mean": means[5]})
            writer.append(keys[6:], {"codes": codes[6:], "tokens": rows[6:], "mean": means[6:]})
        assert_holds(store, dict(zip(keys, rows, strict=True)))
        assert_holds(store, dict(zip(keys, codes, strict=True)), "codes")
        np.testing.assert_array_equal(store.array("mean"), means)
        view = store.select(keys=keys[::-2])
        assert_rows(view.to_ragged("tokens"), rows[::-2])
        np.testing.assert_array_equal(view.to_numpy("mean"), means[::-2])
        with pytest.raises(ShapeError, match="ragged"):
            view.to_ragged("mean")


# -- refusals -------------------------------------------------------------------------------------


@contextlib.contextmanager
def unchanged(store):
    """A refused change leaves the commit and every file as they were."""

    before = store.snapshot.record, files_in(store.path)
    yield
    assert (store.snapshot.record, files_in(store.path)) == before
    assert leftovers(store.path) == []


BAD = {
    "another token shape": ([np.ones((2, 7), np.float32)], ShapeError),
    "one token without its dimension": ([np.ones(8, np.float32)], ShapeError),
    "a dimension more": ([np.ones((2, 1, 8), np.float32)], ShapeError),
    "one of two": ([np.ones((2, 8), np.float32), np.ones((2, 9), np.float32)], ShapeError),
    "an empty row of another shape": ([np.ones((0, 7), np.float32)], ShapeError),
    "lists of different lengths in a row": ([[[1.0], [1.0, 2.0]]], ShapeError),
    "text": (["abc"], ShapeError),
    "a number": ([3], ShapeError),
    "too few rows": ([], ShapeError),
    "too many rows": ([np.ones((1, 8), np.float32)] * 3, ShapeError),
    "an array of too many rows": (np.ones((3, 2, 8), np.float32), ShapeError),
    "float64": ([np.ones((2, 8))], DtypeError),
    "integers": ([np.ones((2, 8), np.int64)], DtypeError),
    "objects": ([np.ones((2, 8), object)], DtypeError),
    "two dtypes": ([np.ones((2, 8), np.float32), np.ones((2, 8), np.float16)], DtypeError),
    "offsets that begin late": (Ragged(np.ones((4, 8), np.float32), np.array([1, 4])), ShapeError),
    "offsets that end early": (Ragged(np.ones((4, 8), np.float32), np.array([0, 3])), ShapeError),
    "offsets that end late": (Ragged(np.ones((4, 8), np.float32), np.array([0, 5])), ShapeError),
    "offsets that fall": (Ragged(np.ones((4, 8), np.float32), np.array([0, 3, 2, 4])), ShapeError),
    "offsets below 0": (Ragged(np.ones((4, 8), np.float32), np.array([0, -1, 4])), ShapeError),
    "no offsets": (Ragged(np.ones((0, 8), np.float32), np.array([], np.int64)), ShapeError),
    "offsets of another number of rows": (Ragged(np.ones((4, 8), np.float32), np.array([0, 1, 2, 4])), ShapeError),
    "ragged tokens of another shape": (Ragged(np.ones((4, 7), np.float32), np.array([0, 4])), ShapeError),
    "ragged float64": (Ragged(np.ones((4, 8)), np.array([0, 4])), DtypeError),
    "nothing": (None, ShapeError),
    "a number for all": (3, ShapeError),
    "offsets that are no integers": (Ragged(np.ones((4, 8), np.float32), np.array([0, 4.5])), ShapeError),
    "offsets of two dimensions": (Ragged(np.ones((4, 8), np.float32), np.array([[0], [4]])), ShapeError),
    "a length past the padding": (Padded(np.ones((1, 3, 8), np.float32), np.array([5])), ShapeError),
    "a negative length": (Padded(np.ones((1, 3, 8), np.float32), np.array([-1])), ShapeError),
    "a length that is no integer": (Padded(np.ones((1, 3, 8), np.float32), np.array([1.7])), ShapeError),
    "fewer lengths than rows": (Padded(np.ones((2, 3, 8), np.float32), np.array([1])), ShapeError),
    "padded rows without a dimension": (Padded(np.ones(1, np.float32), np.array([1])), ShapeError),
    "padded rows of another shape": (Padded(np.ones((1, 3, 7), np.float32), np.array([3])), ShapeError),
}


@pytest.mark.parametrize("kind", BAD)
def test_rows_that_are_refused(path, kind):
    store, _, _ = filled(path)
    values, error = BAD[kind]
    keys = [f"new{i}:c" for i in range(2 if kind in ("one of two", "two dtypes") else 1)]
    with unchanged(store), pytest.raises(error) as caught:
        store.append(keys, values)
    assert caught.value.field == "tokens"
    assert isinstance(caught.value, EmbstoreError)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
@pytest.mark.parametrize("how", ["tuple", "ragged"])
def test_just_the_rows_with_nan_are_named(path, dtype, how):
    spec = FieldSpec(shape=(2, 3), dtype=dtype, ragged=True)
    lengths = [0, 3, 0, 0, 1, 4, 0, 2, 0]
    keys, rows = keys_of(len(lengths)), rows_of(lengths, spec)
    rows[1][2, 1, 2] = np.nan
    rows[4][0, 0, 0] = np.inf
    rows[7][1, 1, 1] = -np.inf
    with new(path, spec) as store:
        with pytest.raises(NonFiniteError) as caught:
            store.append(keys, GIVEN[how](rows, spec), casting="same_kind")
        assert caught.value.keys == (keys[1], keys[4], keys[7])
        assert len(store) == 0


def test_nan_in_a_row_of_many_blocks_is_named_once(path):
    """Tokens are checked a million values at a time."""
    spec = FieldSpec(shape=(512,), ragged=True)
    rows = [np.zeros((n, 512), np.float32) for n in (1500, 0, 5000, 3)]
    for place in (600, 3000, 4999):
        rows[2][place, 7] = np.nan
    with new(path, spec) as store, pytest.raises(NonFiniteError) as caught:
        store.append(keys_of(4), rows)
    assert caught.value.keys == ("f2:c2",)


def test_nan_that_is_allowed_is_kept(path):
    spec = FieldSpec(shape=(2,), ragged=True, nonfinite="allow")
    rows = rows_of([2, 0, 1], spec)
    rows[0][1] = np.nan, np.inf
    with new(path, spec) as store:
        store.append(keys_of(3), rows)
        assert_holds(store, dict(zip(keys_of(3), rows, strict=True)))


def test_a_cast_that_overflows_names_its_row(path):
    spec = FieldSpec(shape=(2,), dtype="float16", ragged=True)
    rows = [np.ones((n, 2), np.float32) for n in (2, 0, 3)]
    rows[2][1] = 1e6
    with new(path, spec) as store:
        with pytest.raises(NonFiniteError) as caught:
            store.append(keys_of(3), rows, casting="same_kind")
        assert caught.value.keys == ("f2:c2",)
    spec = FieldSpec(shape=(), dtype="int8", ragged=True)
    with new(path.parent / "b.zarr", spec) as store:
        with pytest.raises(DtypeError):
            store.append(["a:c"], [np.array([1, 300])], casting="same_kind")
        store.append(["a:c"], [np.array([1, 100])], casting="same_kind")
        assert store["a:c"].tolist() == [1, 100]


def different_lengths():
    return [np.ones((2, 4), np.float32), np.ones((3, 4), np.float32)]


def test_a_store_without_fields_says_how_to_declare_one(path):
    """The first rows decide the fields of a store, but ragged rows must be declared."""
    with embstore.open(path, "w-", config={}) as store:
        for call in (store.append, store.writer().append):
            with pytest.raises(ShapeError, match=r"fields=\{'embedding': FieldSpec\(shape=…, ragged=True\)\}"):
                call(keys_of(2), different_lengths())
            with pytest.raises(ShapeError, match=r"'other'.*ragged=True"):
                call(keys_of(2), {"other": different_lengths()})
        assert store.fields == {}
        store.append(keys_of(1), different_lengths()[:1])
        assert not store.fields["embedding"].ragged


def test_a_field_added_without_a_spec_says_how_to_declare_one(path):
    store, keys, _ = filled(path, [1, 2])
    with unchanged(store), pytest.raises(ShapeError, match=r"'more'.*ragged=True"):
        store.add_field("more", keys, different_lengths())


def test_rows_of_one_shape_are_not_ragged(path):
    """A field that was not declared ragged takes no rows of other lengths."""
    with new(path, FieldSpec(shape=(3, 4))) as store:
        with pytest.raises(ShapeError):
            store.append(keys_of(2), different_lengths())
        with pytest.raises(ShapeError):
            store.append(keys_of(1), [np.ones((2, 4), np.float32)])
        assert len(store) == 0


@pytest.mark.parametrize("shape", [(3, 4), (4,)], ids=str)
def test_ragged_rows_for_a_field_that_is_not(path, shape):
    values = as_ragged(different_lengths(), FieldSpec(shape=(4,)))
    with new(path, FieldSpec(shape=shape)) as store:
        with pytest.raises(ShapeError):
            store.append(keys_of(2), values)
        assert len(store) == 0


@pytest.mark.parametrize("lengths", [(2, 3), (2, 2), (0, 0), ()], ids=str)
@pytest.mark.parametrize("how", [as_ragged, as_padded])
@pytest.mark.parametrize("verb", ["append", "writer.append"])
@pytest.mark.parametrize("form", ["float32", "numbers", "grids"])
def test_ragged_rows_in_a_store_without_fields(path, how, lengths, verb, form):
    """They say that they are ragged, even where all are of one length: so the field is."""
    spec = FORMS[form]
    keys, rows = keys_of(len(lengths)), rows_of(lengths, spec)
    empty = np.empty((0, 0, *spec.shape), read_dtype(spec))
    values = how(rows, spec) if rows else Ragged(empty[0:0, 0:0].reshape(0, *spec.shape), np.array([0]))
    if not rows and how is as_padded:
        values = Padded(empty, np.empty(0, np.int64))
    with embstore.open(path, "w-", config={}) as store:
        if verb == "append":
            store.append(keys, values)
        else:
            with store.writer() as writer:
                writer.append(keys, values)
        found = store.fields["embedding"]
        assert (found.ragged, found.shape, found.dtype) == (True, spec.shape, spec.dtype)
        assert_holds(store, dict(zip(keys, rows, strict=True)), "embedding")
    assert embstore.verify(path).ok


@pytest.mark.parametrize("name", ["tokens_offsets", "TOKENS", "tokens"])
def test_names_beside_a_ragged_field(path, name):
    store, keys, rows = filled(path, [1, 2])
    with unchanged(store), pytest.raises(NameRefusedError):
        store.add_field(name, keys, rows, spec=PLAIN)
    with unchanged(store), pytest.raises(NameRefusedError):
        store.set_column(name, keys, [1, 2])
    assert_holds(embstore.open(path), dict(zip(keys, rows, strict=True)))


def test_somebody_elses_folder_is_not_taken_for_offsets(path):
    store, keys, rows = filled(path, [1, 2])
    (path / "more_offsets").mkdir()
    (path / "more_offsets" / "mine.txt").write_text("keep")
    with pytest.raises(embstore.errors.StoreExistsError):
        store.add_field("more", keys, rows, spec=PLAIN)
    assert (path / "more_offsets" / "mine.txt").read_text() == "keep"
    assert_holds(embstore.open(path), dict(zip(keys, rows, strict=True)))
    store.append(["n:c"], [rows[0]])
    assert embstore.verify(path).ok


@pytest.mark.parametrize("value", ["yes", 1, None, []], ids=str)
def test_ragged_is_true_or_false(value):
    with pytest.raises(SchemaError, match="ragged"):
        FieldSpec(shape=(2,), ragged=value)


def test_reads_that_are_refused(path):
    store, _, rows = filled(path)
    with pytest.raises(ShapeError, match="pool"):
        store.select().nearest(rows[1][0])
    for row in (-1, 10, 11, 2**62):
        for read in (store.take, lambda rows: store.select(rows=rows)):
            for asked in ([row], [0, row]):
                with pytest.raises(IndexError, match="from 0 to 9"):
                    read(asked)


# -- reads ----------------------------------------------------------------------------------------


def test_a_row_is_a_view_of_the_map(path):
    store, keys, rows = filled(path)
    base = store.array().values
    row = store[keys[6]]
    assert np.shares_memory(row, base)
    one = store.fetch([keys[6]])
    assert np.shares_memory(one.values, base)
    assert one.lengths.tolist() == [500]
    for values in (row, one.values):
        assert not values.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            values[0] = 1
    store.close()
    assert_rows([row], [rows[6]])


@pytest.mark.parametrize("mapping", ["auto", "never"])
def test_copies_are_the_callers_own(path, mapping):
    store, keys, rows = filled(path)
    reader = embstore.open(path, mapping=mapping)
    copies = [
        reader.fetch(keys[5:9]).values,
        reader.fetch([keys[8], keys[6]]).values,
        reader.select().to_numpy().values,
        reader.select(keys=[keys[6]]).to_numpy().values,
        reader.select(keys=[keys[6]]).to_ragged().values,
        reader.select(keys=keys[::-1]).to_ragged().values,
    ]
    for values in copies:
        assert values.flags.writeable
        values[...] = -5
    assert_rows(reader.select().to_ragged(), rows)
    assert_rows(store.select().to_ragged(), rows)
    assert embstore.verify(path).ok


def test_no_rows_and_no_tokens(path):
    store, keys, _ = filled(path)
    for padded in (store.fetch([]), store.take([]), store[[]], store.select(keys=[]).to_numpy()):
        assert (padded.values.shape, padded.lengths.shape) == ((0, 0, 8), (0,))
    empty = store.select(keys=[]).to_ragged()
    assert (len(empty), empty.values.shape, empty.offsets.tolist(), list(empty)) == (0, (0, 8), [0], [])
    nothing = store.select(keys=[keys[0], keys[9], keys[3]]).to_numpy()
    assert (nothing.values.shape, nothing.lengths.tolist()) == ((3, 0, 8), [0, 0, 0])
    assert store[keys[0]].shape == (0, 8)
    assert store.fetch([keys[9]]).values.shape == (1, 0, 8)


def test_ragged_rows_are_a_sequence(path):
    store, _, rows = filled(path)
    whole = store.array()
    assert len(whole) == 10
    assert whole.lengths.tolist() == LENGTHS
    assert whole.nbytes == store.nbytes == sum(LENGTHS) * 32
    assert_rows([whole[-4], whole[np.int64(6)]], [rows[6], rows[6]])
    for row in (10, -11):
        with pytest.raises(IndexError):
            whole[row]
    assert_rows(whole.take(np.array([6, 0, -1, 6])), [rows[6], rows[0], rows[9], rows[6]])
    assert_rows(whole.padded(), rows)
    assert_rows(pickle.loads(pickle.dumps(whole)), rows)


def test_views_select_by_class_and_column(path):
    store, keys, rows = filled(path)
    store.set_column("split", keys, ["train", "test"] * 5)
    view = store.select(classes="c0", where={"split": "test"})
    chosen = [i for i in range(10) if i % 3 == 0 and i % 2]
    assert_rows(view.to_ragged(), [rows[i] for i in chosen])
    assert_rows(view.to_numpy(), [rows[i] for i in chosen])
    batches = [batch.to_ragged() for batch in store.select().batches(3)]
    assert_rows([row for batch in batches for row in batch], rows)
    assert "('length', 8)" in repr(store)
    assert "length" in store._repr_html_()


def test_pickles_of_stores_and_views(path):
    store, keys, rows = filled(path)
    view = store.select(keys=keys[::-1])
    other, again = pickle.loads(pickle.dumps((store, view)))
    assert_holds(other, dict(zip(keys, rows, strict=True)))
    assert_rows(again.to_ragged(), rows[::-1])
    padded, ragged = pickle.loads(pickle.dumps((view.to_numpy(), view.to_ragged())))
    assert_rows(padded, rows[::-1])
    assert_rows(ragged, rows[::-1])
    assert len(pickle.dumps(store.select())) < 2000
    store.delete(keys[:1])
    store.compact()
    with pytest.raises(StoreChangedError):
        pickle.loads(pickle.dumps(view)).to_ragged()


# -- deleting, erasing, compacting, adding --------------------------------------------------------

SECRET = 12345.5
PATTERN = struct.pack("<f", SECRET)


def with_secrets(path, rows=(2, 5, 6), **options):
    """A store where some rows hold one value throughout, that nothing else does: (store, keys, rows, secret keys)."""
    keys, values = keys_of(len(LENGTHS)), rows_of(LENGTHS)
    for row in rows:
        values[row][:] = SECRET
    store = new(path, **options)
    store.append(keys, values)
    return store, keys, values, [keys[row] for row in rows]


def chunks_with(path, pattern=PATTERN):
    return sorted(str(f.relative_to(path)) for f in path.rglob("c.*") if f.is_file() and pattern in f.read_bytes())


def offsets_file(path, field="tokens"):
    return (path / offsets_name(field) / "c.0").read_bytes()


@pytest.mark.parametrize("mapping", ["auto", "never"])
def test_erase_blanks_tokens_and_leaves_offsets(path, mapping):
    store, keys, rows, secret = with_secrets(path, mapping=mapping)
    view = store.select(keys=[keys[8], keys[7], keys[1]])
    gone = store.select(keys=[keys[1], secret[0]])
    assert chunks_with(path)
    before, offsets = store.snapshot.record, offsets_file(path)
    receipt = store.erase(secret)
    assert receipt.rows == (2, 5, 6)
    assert receipt.files_rewritten >= 5
    assert chunks_with(path) == []
    record = store.snapshot.record
    assert offsets_file(path) == offsets
    assert record.arrays["tokens_offsets"] == before.arrays["tokens_offsets"]
    assert record.arrays["tokens"].length == before.arrays["tokens"].length
    model = {key: row for key, row in zip(keys, rows, strict=True) if key not in secret}
    for reader in (store, embstore.open(path, mapping=mapping, check="all")):
        assert_holds(reader, model)
        whole = reader.array(dead="include")
        assert whole.lengths.tolist() == LENGTHS
        assert all(np.isnan(whole[row]).all() for row in (2, 5, 6))
    assert_rows(view.to_ragged(), [rows[8], rows[7], rows[1]])
    with pytest.raises(StoreChangedError):
        gone.to_ragged()
    assert embstore.verify(path).ok


BLANK = {"float16": np.nan, "float64": np.nan, "bfloat16": np.nan, "bool": False, "int8": 0, "uint64": 0}


@pytest.mark.parametrize("dtype", BLANK)
def test_tokens_of_each_dtype_are_blanked(path, dtype):
    spec = FORMS[dtype]
    store, keys, rows = filled(path, LENGTHS, spec)
    store.delete([keys[1]])  # rows deleted before are erased with it
    store.erase([keys[6]])
    model = {key: row for i, (key, row) in enumerate(zip(keys, rows, strict=True)) if i not in (1, 6)}
    assert_holds(store, model)
    for i in (1, 6):
        found = store.take([i]).values
        assert found.shape == (1, LENGTHS[i], 8)
        np.testing.assert_array_equal(found, np.full(found.shape, BLANK[dtype]))
    store.append(["n:c"], [rows[7]], casting="same_kind")
    assert_holds(embstore.open(path, check="all"), model | {"n:c": rows[7]})
    assert embstore.verify(path).ok


def test_erasing_rows_without_tokens(path):
    store, keys, rows, _ = with_secrets(path)
    record = store.snapshot.record
    receipt = store.erase([keys[0], keys[3], keys[9]])
    assert store.snapshot.record.arrays["tokens"] == record.arrays["tokens"]
    assert receipt.rows == (0, 3, 9)
    assert_holds(store, {k: r for i, (k, r) in enumerate(zip(keys, rows, strict=True)) if i not in (0, 3, 9)})
    assert embstore.verify(path).ok
    store.erase(list(store))
    assert chunks_with(path) == []
    assert len(store) == 0
    assert embstore.verify(path).ok
    store.append(keys, rows)
    assert_holds(store, dict(zip(keys, rows, strict=True)))


def test_erasing_where_no_row_has_tokens(path):
    store, keys, rows = filled(path, [0, 0, 0])
    store.erase(keys[:1])
    assert_holds(store, dict(zip(keys[1:], rows[1:], strict=True)))
    store.compact()
    assert_holds(store, dict(zip(keys[1:], rows[1:], strict=True)))
    assert embstore.verify(path).ok


@pytest.mark.parametrize("mapping", ["auto", "never"])
def test_compact_drops_tokens_that_a_delete_leaves(path, mapping):
    store, keys, rows, secret = with_secrets(path, mapping=mapping)
    reader, view = embstore.open(path, mapping=mapping), store.select()
    row, before = store[keys[7]], chunks_with(path)
    gone = [*secret, keys[0], keys[9]]
    store.delete(gone)
    model = {k: r for k, r in zip(keys, rows, strict=True) if k not in gone}
    for deleted in (store, embstore.open(path, mapping=mapping, check="all")):
        assert_holds(deleted, model)
        with pytest.raises(MissingKeysError):
            deleted.fetch([secret[0]])
    assert chunks_with(path) == before != []
    assert embstore.verify(path).ok
    store.compact()
    assert_holds(store, model)
    assert store.array().lengths.tolist() == [len(r) for r in model.values()]
    assert store.snapshot.record.arrays["tokens"].length == sum(map(len, model.values()))
    assert chunks_with(path) == []
    with pytest.raises(StoreChangedError):
        view.to_ragged()
    if mapping == "auto":
        assert_rows([row], [rows[7]])
    with contextlib.suppress(StoreReplacedError):
        assert_holds(reader, dict(zip(keys, rows, strict=True)))
    reader.refresh()
    assert_holds(reader, model)
    store.append(["n:c"], [rows[6]])
    assert_holds(store, model | {"n:c": rows[6]})
    store.delete(list(store))
    store.compact()
    assert store.array().offsets.tolist() == [0]
    assert embstore.verify(path).ok


def test_compact_in_blocks(path, monkeypatch):
    """Rows are copied in blocks of bytes, which may begin and end anywhere."""
    store, keys, rows = filled(path, LENGTHS * 5)
    store.delete(keys[::7])
    monkeypatch.setattr("embstore._engine.write.plans._BLOCK_BYTES", 6000)
    store.compact()
    assert_holds(store, {k: r for i, (k, r) in enumerate(zip(keys, rows, strict=True)) if i % 7})
    assert embstore.verify(path).ok


@pytest.mark.parametrize("form", ["float32", "numbers", "bfloat16"])
@pytest.mark.parametrize("mapping", ["auto", "never"])
def test_add_field(path, form, mapping):
    """To a store with deleted rows, in an order of the caller's own."""
    spec = FORMS[form]
    keys = keys_of(300)
    with embstore.open(path, "w-", config={"a": 1}, chunk_bytes=4096, mapping=mapping) as store:
        store.append(keys, np.arange(2400, dtype=np.float32).reshape(300, 8))
        assert store.snapshot.record.to_json()["requires"] == []
        reader = embstore.open(path, mapping=mapping)
        store.delete([keys[0], keys[150], keys[299]])
        live = [k for i, k in enumerate(keys) if i not in (0, 150, 299)]
        order = np.random.default_rng(1).permutation(297).tolist()
        rows = rows_of([i % 5 for i in range(297)], spec)
        with pytest.raises(MissingKeysError):
            store.add_field("tokens", live[:-1], rows[:-1], spec=spec, casting="same_kind")
        with pytest.raises(ShapeError):
            store.add_field("tokens", live, rows[:-1], spec=spec, casting="same_kind")
        shuffled = [live[i] for i in order], [rows[i] for i in order]
        store.add_field("tokens", *shuffled, spec=spec, casting="same_kind")
        assert store.snapshot.record.to_json()["requires"] == ["ragged"]
        model = dict(zip(live, rows, strict=True))
        assert_holds(store, model)
        assert store.take([0, 150, 299], "tokens").lengths.tolist() == [0, 0, 0]
        assert set(reader.fields) == {"embedding"}
        reader.refresh()
        assert_holds(reader, model)
        fresh = rows_of([2, 0], spec, start=40)
        values = {"embedding": np.ones((2, 8), np.float32), "tokens": fresh}
        store.append(["n1:c", live[7]], values, if_exists="replace", casting="same_kind")
        del model[live[7]]
        model |= {"n1:c": fresh[0], live[7]: fresh[1]}
        assert_holds(store, model)
        store.erase(live[1:3])
        for key in live[1:3]:
            del model[key]
        assert_holds(store, model)
        store.compact()
        assert_holds(store, model)
    assert embstore.verify(path).ok


def test_add_field_to_a_store_without_rows(path):
    with embstore.open(path, "w-", config={}, chunk_bytes=4096) as store:
        store.add_field("tokens", [], [], spec=PLAIN)
        assert store.array().offsets.tolist() == [0]
        assert embstore.verify(path).ok
        store.add_field("codes", [], [], spec=FORMS["numbers"])
        rows, codes = rows_of(LENGTHS), rows_of(LENGTHS, FORMS["numbers"])
        store.append(keys_of(10), {"tokens": rows, "codes": codes})
        assert_holds(store, dict(zip(keys_of(10), rows, strict=True)))
        assert_holds(store, dict(zip(keys_of(10), codes, strict=True)), "codes")
    assert embstore.verify(path).ok


def test_add_field_where_all_rows_are_deleted(path):
    with embstore.open(path, "w-", config={}, chunk_bytes=4096) as store:
        store.append(keys_of(5), np.ones((5, 2), np.float32))
        store.delete(keys_of(5))
        store.add_field("tokens", [], [], spec=PLAIN)
        assert store.array("tokens", dead="include").lengths.tolist() == [0] * 5
        store.append(["n:c"], {"embedding": np.ones((1, 2), np.float32), "tokens": rows_of([3])})
        assert_holds(store, {"n:c": rows_of([3])[0]})
        store.erase(["n:c"])
    assert embstore.verify(path).ok


# -- readers beside a writer ----------------------------------------------------------------------


@pytest.mark.parametrize("mapping", ["auto", "never"])
@pytest.mark.parametrize("check", ["tail", "touched", "all"])
def test_readers_and_views_while_the_store_grows(path, mapping, check):
    """Rows that a reader has stay as they are. A refresh moves to a whole commit."""
    store = new(path)
    reader = embstore.open(path, mapping=mapping, check=check)
    model, held = {}, []
    for step in range(12):
        keys = keys_of(5, start=step * 5)
        rows = rows_of([step * 9 % 140, 0, 1, step, 64], start=step * 300)
        store.append(keys, rows)
        before = dict(model)
        if before:
            assert_holds(reader, before)
        model |= dict(zip(keys, rows, strict=True))
        reader.refresh()
        assert_holds(reader, model)
        held.append((reader.select(keys=list(model)[::-3]), list(model.values())[::-3]))
        held.append((reader.array(), list(model.values())))
        for what, expected in held:
            assert_rows(what if isinstance(what, Ragged) else what.to_ragged(), expected)


# -- broken chunks --------------------------------------------------------------------------------

MANY = [(i * 29) % 7 if i % 4 else 0 for i in range(1700)]
"""Some 3,800 tokens in 30 chunks; every fourth row has none."""
OFFSETS_A_CHUNK = 512


def broken_store(path):
    """A store with two deleted rows, 512 offsets to a chunk, and a field that is not ragged: (keys, rows)."""
    keys, rows = keys_of(len(MANY)), rows_of(MANY)
    fields = {"tokens": PLAIN, "mean": FieldSpec(shape=(4,))}
    with new(path, fields=fields, columns={"score": "int64"}) as store:
        means = np.arange(len(keys) * 4, dtype=np.float32).reshape(-1, 4)
        store.append(keys, {"tokens": rows, "mean": means}, columns={"score": np.arange(len(keys))})
        store.delete([keys[9], keys[130]])
    return keys, rows


@pytest.fixture
def broken(path, monkeypatch):
    sizes = (8 * OFFSETS_A_CHUNK, 8 * OFFSETS_A_CHUNK, 512)
    monkeypatch.setattr("embstore._engine.format.zarr_layout._SIDE_SIZES", sizes)
    keys, rows = broken_store(path)
    record = embstore.open(path).snapshot.record
    assert record.arrays["tokens_offsets"].rows_per_chunk == OFFSETS_A_CHUNK
    assert record.arrays["tokens_offsets"].chunks == 4
    assert record.arrays["tokens"].rows_per_chunk == 128
    assert record.arrays["tokens"].chunks > 20
    return keys, rows


def needing(array, chunk):
    """The live rows that have a token, or an offset, in a chunk."""
    ends = np.cumsum([0, *MANY])
    if array == "tokens":
        first, stop = chunk * 128, (chunk + 1) * 128
        there = [bool(set(range(ends[i], ends[i + 1])) & set(range(first, stop))) for i in range(len(MANY))]
    elif array == "mean":
        there = [i // 256 == chunk for i in range(len(MANY))]
    else:
        there = [chunk in (i // OFFSETS_A_CHUNK, (i + 1) // OFFSETS_A_CHUNK) for i in range(len(MANY))]
    return [i for i, yes in enumerate(there) if yes and i not in (9, 130)]


def chunk_file(path, array, chunk):
    return path / array / (f"c.{chunk}" if array == "tokens_offsets" else f"c.{chunk}.0")


BROKEN = [
    *([("tokens", chunk)] for chunk in (0, 2, 13, 20)),
    *([("tokens_offsets", chunk)] for chunk in range(4)),
    [("tokens", 1), ("tokens", 9), ("mean", 0)],
    [("tokens", 20), ("tokens_offsets", 0)],
]


@pytest.mark.parametrize("chunks", BROKEN, ids=str)
def test_just_the_rows_that_need_a_broken_chunk_are_affected(broken, path, tmp_path, chunks):
    """They are lost. The rows that a salvage keeps are right."""
    keys, rows = broken
    files = [chunk_file(path, *chunk) for chunk in chunks]
    for file in files:
        flip(file, place=40)
    lost = sorted(set().union(*(needing(*chunk) for chunk in chunks)))
    report = embstore.verify(path)
    assert {problem.path for problem in report.problems} == set(files)
    assert report.rows_affected.tolist() == lost
    assert list(report.keys_affected) == [keys[i] for i in lost]
    left = [i for i in range(len(keys)) if i not in (9, 130, *lost)]
    saved = embstore.salvage(path, tmp_path / "saved.zarr")
    assert saved.rows_lost.tolist() == lost
    assert saved.rows_kept == len(left)
    assert list(saved.keys_lost) == [keys[i] for i in lost]
    store = embstore.open(tmp_path / "saved.zarr", config={"a": 1}, check="all")
    assert_holds(store, {keys[i]: rows[i] for i in left})
    assert store.select().column("score").tolist() == left
    np.testing.assert_array_equal(store.array("mean")[:, 0], np.array(left) * 4)
    assert embstore.verify(tmp_path / "saved.zarr").ok


@pytest.mark.parametrize("array", ["tokens", "tokens_offsets"])
@pytest.mark.parametrize("what", ["folder", "metadata"])
def test_a_lost_folder_or_metadata(broken, path, array, what):
    keys, rows = broken
    if what == "folder":
        shutil.rmtree(path / array)
        with pytest.raises(CorruptStoreError):
            embstore.open(path)
        report = embstore.verify(path)
        assert len(report.rows_affected) == len(keys) - 2
    else:
        (path / array / "zarr.json").unlink()
        assert_holds(
            embstore.open(path, check="all"),
            {k: r for i, (k, r) in enumerate(zip(keys, rows, strict=True)) if i not in (9, 130)},
        )
        report = embstore.verify(path)
        assert [(p.path, len(p.rows)) for p in report.problems] == [(path / array / "zarr.json", 0)]
        with embstore.open(path, "r+") as store:
            store.delete([keys[0]])
        assert embstore.verify(path).ok


# -- hostile records and offsets ------------------------------------------------------------------

FEW = [2, 0, 3, 1, 4, 0, 2]  # 12 tokens


def forge(path, change, array="tokens_offsets", file="c.0"):
    """Change an array's values, with checksums that are right."""
    where = path / array / file
    values = np.frombuffer(where.read_bytes()[:-4], "<i8").copy()
    change(values)
    body = values.tobytes()
    sealed(where, body)

    def seal(record):
        tail = record["arrays"][array]["tail"]
        tail["crc32c"] = crc32c(body[: tail["nbytes"]])

    edit(path, seal)


def put(**places):
    def change(values):
        for place, value in places.items():
            values[int(place[1:])] = value

    return change


OFFSETS = {  # in place of 0 2 2 5 6 10 10 12, and the rows that can't be right
    "fall": (put(_3=1), [2]),
    "fall to the first": (put(_4=0), [3]),  # and row 4 is as long as all before it
    "are beyond the tokens": (put(_4=99), [3, 4]),
    "are far beyond": (put(_4=2**62), [3, 4]),
    "are as far as can be": (put(_4=2**63 - 1), [3, 4]),
    "are negative": (put(_2=-3), [1, 2]),
    "are as negative as can be": (put(_2=-(2**63)), [1, 2]),
    "begin below 0": (put(_0=-1), [0]),
    "end late": (put(_7=13), [6]),
    "are all beyond": (lambda values: np.add(values, 2**40, out=values), list(range(7))),
    "are all negative": (lambda values: np.subtract(values, 2**40, out=values), list(range(7))),
    "fall all the way": (lambda values: np.copyto(values[:8], values[7::-1].copy()), [0, 2, 3, 4, 6]),
}
ODD_ENDS = {"begin late": (put(_0=1), [0]), "end early": (put(_7=11), [6])}
"""Ends with tokens of nobody: the first, or the last, row is not whole, and a salvage must not keep it."""


@pytest.mark.parametrize("kind", OFFSETS)
@pytest.mark.parametrize("mapping", ["auto", "never"])
def test_offsets_that_lie_are_refused(path, kind, mapping):
    """A row is right, or a CorruptStoreError: also where all checksums are."""
    _, keys, rows = filled(path, FEW)
    change, affected = OFFSETS[kind]
    forge(path, change)

    def work():
        store = embstore.open(path, mapping=mapping, check="all")
        refused = []
        for i, key in enumerate(keys):
            for read in (
                lambda key=key: [store[key]],
                lambda key=key: store.fetch([key]).values,
                lambda key=key: store.select(keys=[key]).to_ragged(),
                lambda key=key: unpadded(store.select(keys=[key, key]).to_numpy())[:1],
            ):
                try:
                    assert_rows(read(), [rows[i]])
                except CorruptStoreError as error:
                    refused.append((i, error.path))
        assert set(refused) == {(i, path / "tokens_offsets") for i in affected}
        for read in (store.select().to_ragged, store.select().to_numpy, lambda: store.fetch(keys)):
            with pytest.raises(CorruptStoreError):
                read()

    if kind == "fall":  # row 3 has the length that its offsets state, which can't be checked
        rows[3] = np.concatenate([rows[0][1:], rows[2], rows[3]])
    if kind == "fall to the first":
        rows[4] = np.concatenate([*rows[:4], rows[4]])
    run_with_little_memory(work)
    store = embstore.open(path, mapping=mapping)
    for whole in (store.array, store.tensor) if find_spec("torch") else (store.array,):
        with pytest.raises(CorruptStoreError):
            list(whole())


@pytest.mark.parametrize("kind", OFFSETS | ODD_ENDS)
def test_offsets_that_lie_are_reported(path, kind, tmp_path):
    _, keys, rows = filled(path, FEW)
    change, affected = (OFFSETS | ODD_ENDS)[kind]
    forge(path, change)
    report = embstore.verify(path)
    assert path / "tokens_offsets" in [problem.path for problem in report.problems]
    assert report.rows_affected.tolist() == affected
    saved = embstore.salvage(path, tmp_path / "saved.zarr")
    assert embstore.verify(saved.path).ok
    if not kind.startswith("fall"):  # where they fall, a row beside may be too long, which can't be checked
        assert_holds(embstore.open(saved.path), {key: rows[i] for i, key in enumerate(keys) if i not in affected})


def test_salvage_of_offsets_that_lie_beside_another_problem(path, tmp_path):
    store, keys, rows = filled(path, FEW)
    store.set_column("score", keys, np.arange(7))
    forge(path, OFFSETS["are beyond the tokens"][0])
    (path / "score" / "zarr.json").unlink()
    saved = embstore.salvage(path, tmp_path / "saved.zarr")
    assert_holds(embstore.open(saved.path), {key: rows[i] for i, key in enumerate(keys) if i not in (3, 4)})


ERASURES = {"fall": 2, "are negative": 2, "are beyond the tokens": 3, "are far beyond": 3}


@pytest.mark.parametrize("kind", ERASURES)
def test_offsets_that_lie_are_not_erased_by(path, kind):
    _, keys, _ = filled(path, FEW)
    forge(path, OFFSETS[kind][0])

    def work():
        store = embstore.open(path, "r+")
        store.delete([keys[5]])  # which mends the copy of the record that was forged
        with unchanged(store), pytest.raises(CorruptStoreError):
            store.erase([keys[ERASURES[kind]]])

    run_with_little_memory(work)


# The offsets of all rows are looked at, not only those of rows to blank.
NEIGHBOURS = {"fall": 3, "fall to the first": 4, "are beyond the tokens": 0}


@pytest.mark.parametrize("kind", NEIGHBOURS)
def test_an_erase_never_blanks_tokens_of_others(path, kind):
    """Offsets that lie may give a row the tokens of its neighbours: a row too long by its own offsets."""
    _, keys, _ = filled(path, FEW)
    forge(path, OFFSETS[kind][0])
    before = (path / "tokens" / "c.0.0").read_bytes()
    with embstore.open(path, "r+") as store:
        gone = NEIGHBOURS[kind]
        with contextlib.suppress(CorruptStoreError):
            store.erase([keys[gone]])
    own = np.cumsum([0, *FEW]) * 32
    after = (path / "tokens" / "c.0.0").read_bytes()
    for row in set(range(7)) - {gone}:
        assert after[own[row] : own[row + 1]] == before[own[row] : own[row + 1]], row


@pytest.mark.parametrize("verb", ["append", "merge"])
@pytest.mark.parametrize("kind", ["end late", "end early"])
def test_a_row_is_never_added_to_tokens_of_nobody(path, tmp_path, kind, verb):
    _, _, rows = filled(path, FEW)
    forge(path, (OFFSETS | ODD_ENDS)[kind][0])
    with new(tmp_path / "part.zarr") as part:
        part.append(["n:c"], [rows[2]])
    try:
        if verb == "merge":
            embstore.merge(path, part.path)
        else:
            embstore.open(path, "r+").append(["n:c"], [rows[2]])
    except CorruptStoreError:
        return
    assert_rows([embstore.open(path)["n:c"]], [rows[2]])


ABSURD = {
    "more tokens": setter("arrays", "tokens", "length", value=2**40),
    "negative tokens": setter("arrays", "tokens", "length", value=-1),
    "no tokens": setter("arrays", "tokens", "length", value=0),
    "fewer offsets": setter("arrays", "tokens_offsets", "length", value=7),
    "no offsets at all": lambda r: r["arrays"].pop("tokens_offsets"),
    "no tokens array": lambda r: r["arrays"].pop("tokens"),
    "offsets of another type": setter("arrays", "tokens_offsets", "dtype", value="uint64"),
    "offsets of floats": setter("arrays", "tokens_offsets", "dtype", value="float64"),
    "offsets of another shape": setter("arrays", "tokens_offsets", "shape", value=[1]),
    "tokens of another shape": setter("arrays", "tokens", "shape", value=[4]),
    "tokens of another type": setter("arrays", "tokens", "dtype", value="int32"),
    "ragged by a number": setter("fields", "tokens", "ragged", value=1),
    "ragged by a word": setter("fields", "tokens", "ragged", value="true"),
    "not ragged": setter("fields", "tokens", "ragged", value=False),
    "not required": setter("requires", value=[]),
    "offsets that are a column's": lambda r: r["columns"].update(x={"dtype": "int64", "array": "tokens_offsets"}),
    "tokens that are a column's": lambda r: r["columns"].update(x={"dtype": "float32", "array": "tokens"}),
    "a field called like offsets": lambda r: r["fields"].update(tokens_offsets={"shape": [], "dtype": "int64"}),
    "more rows": setter("rows", value=8),
    "most rows": setter("rows", value=2**48),
}


@pytest.mark.parametrize("kind", ABSURD)
def test_an_absurd_record_is_refused(path, kind):
    _, keys, _ = filled(path, FEW)
    edit(path, ABSURD[kind])

    def work():
        with pytest.raises(CorruptStoreError) as caught:
            embstore.open(path).fetch(keys)
        assert str(path) in str(caught.value)

    run_with_little_memory(work)


def test_fewer_tokens_than_the_offsets_say(path):
    """The record, with a tail that is right, has lost the last token."""
    _, keys, rows = filled(path, FEW)

    def shorten(record):
        data = (path / "tokens" / "c.0.0").read_bytes()[: 11 * 32]
        record["arrays"]["tokens"] |= {"length": 11, "tail": {"nbytes": len(data), "crc32c": crc32c(data)}}

    edit(path, shorten)
    metadata = json.loads((path / "tokens" / "zarr.json").read_text())
    (path / "tokens" / "zarr.json").write_text(json.dumps(metadata | {"shape": [11, 8]}))
    store = embstore.open(path)
    assert_rows(store.select(keys=keys[:6]).to_ragged(), rows[:6])
    with pytest.raises(CorruptStoreError):
        store[keys[6]]
    assert embstore.verify(path).rows_affected.tolist() == [6]


# -- the record, and other readers ----------------------------------------------------------------


def record_of(path):
    return json.loads((path / "zarr.json").read_text())["attributes"]["embstore"]


def test_ragged_is_required_exactly_when_needed(path):
    with embstore.open(path, "w-", config={}, fields={"mean": FieldSpec(shape=(4,))}) as store:
        store.append(["a:c"], np.ones((1, 4), np.float32))
        record = record_of(path)
        assert record["requires"] == []
        assert "ragged" not in record["fields"]["mean"]
        store.add_field("tokens", ["a:c"], [np.ones((3, 8), np.float32)], spec=PLAIN)
        record = record_of(path)
        assert record["requires"] == ["ragged"]
        assert record["fields"]["tokens"]["ragged"] is True
        assert "ragged" not in record["fields"]["mean"]
        store.compact()
        assert record_of(path)["requires"] == ["ragged"]
    new(path.parent / "b.zarr").close()
    record = record_of(path.parent / "b.zarr")
    assert record["requires"] == ["ragged"]
    assert record["arrays"]["tokens_offsets"]["length"] == 1
    assert record["arrays"]["tokens"]["length"] == 0


OLD = (
    b'{"format":1,"requires":[],"config":{"a":1},'
    b'"fingerprint":"10a7ff3e312baec0c356be489739b93f63af84416c40f1c13023eb96c7ed50aa",'
    b'"generation":"8d5e5d5c3b9e4c0a9a39d0f0c1b7e214","commit_id":"f3c1a07b6e2d4985b0c7d61e9a845f32","epoch":0,"rows":3,'
    b'"fields":{"mean":{"shape":[768],"dtype":"float32","layer":"last_hidden_state","pooling":"mean",'
    b'"nonfinite":"refuse"},"codes":{"shape":[],"dtype":"bfloat16","nonfinite":"allow"}},'
    b'"columns":{"score":{"dtype":"float32","array":"score.v2"}},"arrays":{'
    b'"file_id":{"dtype":"string","shape":[],"dims":["sample"],"rows_per_chunk":4096,"length":3,'
    b'"tail":{"nbytes":45,"crc32c":902642703}},'
    b'"class_code":{"dtype":"int32","shape":[],"dims":["sample"],"rows_per_chunk":16384,"length":3,'
    b'"tail":{"nbytes":12,"crc32c":1650247802}},'
    b'"class_names":{"dtype":"string","shape":[],"dims":["class"],"rows_per_chunk":512,"length":2,'
    b'"tail":{"nbytes":14,"crc32c":1915677555}},'
    b'"key_hash":{"dtype":"uint64","shape":[2],"dims":["sample","key_hash_half"],"rows_per_chunk":4096,"length":3,'
    b'"tail":{"nbytes":48,"crc32c":1007587942}},'
    b'"dead_rows":{"dtype":"int64","shape":[],"dims":["dead_row"],"rows_per_chunk":8192,"length":0},'
    b'"mean":{"dtype":"float32","shape":[768],"dims":["sample","mean_0"],"rows_per_chunk":2048,"length":3,'
    b'"tail":{"nbytes":9216,"crc32c":3217694670}},'
    b'"codes":{"dtype":"uint16","shape":[],"dims":["sample"],"rows_per_chunk":4096,"fill":32704,"length":3,'
    b'"tail":{"nbytes":6,"crc32c":1}},'
    b'"score.v2":{"dtype":"float32","shape":[],"dims":["sample"],"rows_per_chunk":16384,"length":3,'
    b'"tail":{"nbytes":12,"crc32c":1894868508}}},'
    b'"provenance":{"embstore":"0.1.0"},"options":{"chunk_bytes":8388608,"expected_rows":0}}'
)
"""A record as it was written before there were ragged fields."""


def test_a_record_without_ragged_fields_is_as_before():
    from embstore._engine.format.values import dump_json

    assert dump_json(record_from_json(json.loads(OLD)).to_json()) == OLD


def test_a_reader_of_before_refuses_it(path, monkeypatch):
    new(path).close()
    monkeypatch.setattr("embstore._engine.format.record.FEATURES", frozenset())
    with pytest.raises(UnsupportedFormatError, match="ragged"):
        embstore.open(path)


@pytest.mark.parametrize("lengths", [[], [0, 0]], ids=str)
def test_other_readers_of_a_store_without_tokens(path, lengths):
    zarr, xarray = pytest.importorskip("zarr"), pytest.importorskip("xarray")
    filled(path, lengths)
    group = zarr.open_group(path, mode="r")
    assert group["tokens"].shape == (0, 8)
    assert group["tokens_offsets"][:].tolist() == [0] * (len(lengths) + 1)
    assert xarray.open_zarr(path, chunks=None)["tokens"].shape == (0, 8)


@pytest.mark.parametrize("where", ["its own", "another's"])
def test_no_dimension_is_called_as_that_of_tokens(path, where):
    xarray = pytest.importorskip("xarray")
    named = FieldSpec(shape=(8,), ragged=where == "its own", dims=("tokens_token",))
    fields = {"tokens": named} if where == "its own" else {"tokens": PLAIN, "other": named}
    try:
        store = new(path, fields=fields)
    except EmbstoreError:
        return
    values = {name: rows_of([2, 3]) if spec.ragged else np.ones((2, 8), np.float32) for name, spec in fields.items()}
    store.append(keys_of(2), values)
    xarray.open_zarr(path, chunks=None)


# -- torch ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def tensors_of(torch, rows, spec):
    return [torch.from_numpy(row).to(getattr(torch, spec.dtype)) for row in rows]


@pytest.mark.parametrize("form", ["float32", "bfloat16", "bool", "numbers", "grids", "bfloat16 numbers", "uint16"])
def test_tensors_go_in_and_come_out(torch, path, form):
    spec = FORMS[form]
    keys, rows = keys_of(len(LENGTHS)), rows_of(LENGTHS, spec)
    tensors = tensors_of(torch, rows, spec)
    model = dict(zip(keys, rows, strict=True))
    whole = Ragged(torch.cat(tensors), torch.tensor([0, *np.cumsum(LENGTHS).tolist()]))
    for i, values in enumerate((tensors, tuple(tensors), whole)):
        store = new(path.parent / f"{i}.zarr", spec)
        store.append(keys, values)
        assert_holds(store, model)
        assert torch.equal(torch.cat(list(store.tensor())), torch.cat(tensors))
        assert [len(row) for row in store.tensor()] == LENGTHS
        assert store.tensor().values.dtype == tensors[0].dtype
        padded = store.select(keys=keys[::-1]).to_torch()
        assert padded.values.dtype == tensors[0].dtype
        assert padded.lengths.dtype == torch.int64
        assert padded.lengths.tolist() == LENGTHS[::-1]
        for row, expected in zip(padded.values, tensors[::-1], strict=True):
            assert torch.equal(row[: len(expected)], expected)
            assert not row[len(expected) :].any()
    store = new(path.parent / "w.zarr", spec)
    with store.writer(interval=1000) as writer:
        for key, tensor in zip(keys[:4], tensors[:4], strict=True):
            buffer = tensor.clone()
            writer.add(key, buffer)
            buffer.zero_()
        writer.append(keys[4:], tensors[4:])
    assert_holds(store, model)
    again = new(path.parent / "p.zarr", spec)
    again.append(keys, store.select().to_torch())
    assert_holds(again, model)


def test_tensors_that_need_a_gradient_or_a_cast(torch, path):
    with new(path) as store:
        store.append(["a:c"], [torch.ones((2, 8), requires_grad=True)])
        store.append(["b:c"], [torch.ones((3, 8), dtype=torch.bfloat16)], casting="same_kind")
        store.append(["c:c"], torch.ones((1, 4, 8)))
        assert store.array().lengths.tolist() == [2, 3, 4]
        assert (store.array().values == 1).all()
        with pytest.raises(DtypeError, match="bfloat16"):
            store.append(["d:c"], [torch.ones((3, 8), dtype=torch.bfloat16)])
        with pytest.raises(DtypeError):
            store.append(["d:c", "e:c"], [torch.ones((3, 8)), torch.ones((3, 8), dtype=torch.bfloat16)])
        padded = store.select().to_torch(dtype=torch.float16)
        assert padded.values.dtype == torch.float16
        assert padded.lengths.dtype == torch.int64
    with embstore.open(path.parent / "b.zarr", "w-", config={}) as store:
        with pytest.raises(ShapeError, match="ragged=True"):
            store.append(keys_of(2), [torch.ones(2, 8), torch.ones(3, 8)])


def test_a_tensor_is_the_callers_own(torch, path):
    store, keys, rows = filled(path)
    whole = store.tensor()
    whole.values.fill_(-7)
    whole.offsets.fill_(3)
    for view in (store.select(), store.select(keys=[keys[6]])):
        view.to_torch().values.fill_(-7)
    assert_holds(store, dict(zip(keys, rows, strict=True)))
    assert embstore.verify(path).ok
    with new(path.parent / "b.zarr") as empty:
        assert empty.tensor().values.shape == (0, 8)
        assert empty.tensor().offsets.tolist() == [0]
        assert empty.select().to_torch().values.shape == (0, 0, 8)


def test_ragged_tensors_are_taken_and_padded(torch, path):
    store, _, rows = filled(path)
    whole = store.tensor()
    taken, padded = whole.take(np.array([6, 1])), whole.padded()
    assert all(isinstance(part, torch.Tensor) for part in (taken.values, taken.offsets, padded.values))
    assert_rows([row.numpy() for row in taken], [rows[6], rows[1]])
    assert_rows(Padded(padded.values.numpy(), padded.lengths.numpy()), rows)


torch_warnings = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create:UserWarning",
    "ignore:.*use of fork\\(\\) may lead to deadlocks:DeprecationWarning",
)


def loader(dataset, **options):
    from torch.utils.data import DataLoader

    return DataLoader(dataset, **options)


def rows_of_batch(values, lengths):
    return unpadded(Padded(values.numpy(), lengths.numpy()))


@torch_warnings
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("mapping", ["auto", "never"])
def test_batches_have_lengths(torch, path, mapping, workers):
    from embstore.torch import EmbeddingDataset

    _, keys, rows = filled(path, LENGTHS * 3)
    view = embstore.open(path, mapping=mapping).select(keys=keys[::-1])
    dataset = EmbeddingDataset(view, classes=["c2", "c0", "c1"])
    found, labels = [], []
    options = {"num_workers": workers, "multiprocessing_context": "fork"} if workers else {}
    for values, lengths, label in loader(dataset, batch_size=7, **options):
        assert values.shape[1] == lengths.max()
        found += rows_of_batch(values, lengths)
        labels += label.tolist()
    assert_rows(found, rows[::-1])
    assert labels == [["c2", "c0", "c1"].index(key[-2:]) for key in keys[::-1]]
    values, length = EmbeddingDataset(view)[-7]
    assert_rows([values.numpy()], [rows[6]])
    assert int(length) == 500
    pickled = pickle.loads(pickle.dumps(dataset))
    values, _, label = pickled[29]
    assert_rows([values.numpy()], [rows[0]])


def test_batches_as_mappings(torch, path):
    from embstore.torch import EmbeddingDataset

    fields = {"tokens": PLAIN, "codes": FORMS["bfloat16 numbers"], "mean": FieldSpec(shape=(4,))}
    keys, rows, codes = keys_of(10), rows_of(LENGTHS), rows_of(LENGTHS[::-1], FORMS["numbers"])
    with new(path, fields=fields) as store:
        codes = [row.astype(np.float32) for row in codes]
        values = {"tokens": rows, "codes": codes, "mean": np.ones((10, 4), np.float32)}
        store.append(keys, values, casting="same_kind")
        dataset = EmbeddingDataset(
            store, fields=["codes", "tokens", "mean"], columns=["key"], classes=["c0", "c1", "c2"]
        )
        (batch,) = loader(dataset, batch_size=10)
        assert list(batch) == ["codes", "codes_lengths", "tokens", "tokens_lengths", "mean", "key", "label"]
        assert batch["codes"].dtype == torch.bfloat16
        assert_rows(rows_of_batch(batch["tokens"], batch["tokens_lengths"]), rows)
        assert_rows(rows_of_batch(batch["codes"].float(), batch["codes_lengths"]), codes)
        assert batch["key"] == keys
        half = EmbeddingDataset(store, fields=["tokens"], dtype=torch.float16)
        (batch,) = loader(half, batch_size=10)
        assert (batch["tokens"].dtype, batch["tokens_lengths"].dtype) == (torch.float16, torch.int64)
        batch["tokens"].fill_(3)
        assert_rows(store.select().to_ragged("tokens"), rows)


@pytest.mark.parametrize("kind", ["column", "field"])
def test_lengths_are_not_mixed_up_with_a_column_of_that_name(torch, path, kind):
    """A mapping can't hold both: asking for both is refused, as it is for labels."""
    from embstore.torch import EmbeddingDataset

    store, keys, _ = filled(path, [2, 3])
    if kind == "column":
        store.set_column("tokens_lengths", keys, [77, 78])
        options = {"columns": ["tokens_lengths"], "fields": ["tokens"]}
    else:
        store.add_field("tokens_lengths", keys, np.array([[77], [78]], np.float32))
        options = {"fields": ["tokens", "tokens_lengths"]}
    with pytest.raises(ValueError, match="tokens_lengths"):
        EmbeddingDataset(store, **options)


def test_samples_of_several_datasets_make_a_batch(torch, path):
    """A ConcatDataset asks for one sample at a time. Their batch is padded too."""
    from torch.utils.data import ConcatDataset

    from embstore.torch import EmbeddingDataset

    store, _, rows = filled(path)
    both = ConcatDataset([EmbeddingDataset(store), EmbeddingDataset(store)])
    ((values, lengths),) = loader(both, batch_size=20)
    assert_rows(rows_of_batch(values, lengths), [*rows, *rows])
