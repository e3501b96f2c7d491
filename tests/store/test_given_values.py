"""Rows and column values in each form that callers give them: kept exactly, or refused by a named error."""

import contextlib
import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numpy as np
import pytest

import embstore
from embstore import FieldSpec, errors
from embstore.encoders import FunctionEncoder
from embstore.sources import Items

KEYS = ["a:x", "b:x", "c:y"]
ROWS = np.arange(9, dtype=np.float32).reshape(3, 3)


def pandas():
    return pytest.importorskip("pandas")


def arrow():
    return pytest.importorskip("pyarrow")


def torch():
    return pytest.importorskip("torch")


@contextlib.contextmanager
def opened(path, **options):
    with embstore.open(path, "w-", config={"e": 1}, **options) as store:
        yield store
        assert embstore.verify(store.path).ok


# -- values that NumPy would replace ----------------------------------------------------------


def masked(values, dtype=None):
    return np.ma.masked_array(np.array(values, dtype), mask=np.arange(np.size(values)).reshape(np.shape(values)) == 1)


LOST_ROWS = {
    "masked": lambda: masked(ROWS),
    "list of masked rows": lambda: [masked(row) for row in ROWS],
    "masked constant": lambda: [[1.0, np.ma.masked, 2.0]] * 3,
    "masked subclass": lambda: masked(ROWS).view(type("Own", (np.ma.MaskedArray,), {})),
    "structured": lambda: np.zeros(3, [("a", "f4"), ("b", "f4")]),
    "masked and structured": lambda: np.ma.zeros(3, [("a", "f4"), ("b", "f4")]),
    "pandas NA": lambda: pandas().DataFrame({n: pandas().array([1, None, 3], "Float32") for n in "abc"}),
    "series of masked rows": lambda: pandas().Series([masked(row) for row in ROWS]),
    "sparse tensor": lambda: torch().tensor(ROWS).to_sparse(),
    "csr tensor": lambda: torch().tensor(ROWS).to_sparse_csr(),
    "meta tensor": lambda: torch().empty(3, 3, device="meta"),
    "quantized tensor": lambda: torch().quantize_per_tensor(torch().tensor(ROWS), 0.5, 0, torch().qint8),
    "nested tensor": lambda: torch().nested.nested_tensor([torch().ones(3)] * 3),
    "list of sparse tensors": lambda: [row.to_sparse() for row in torch().tensor(ROWS)],
    "float8 tensor": lambda: torch().tensor(ROWS).to(torch().float8_e4m3fn),
    "masked tensor": lambda: torch().masked.masked_tensor(torch().tensor(ROWS), torch().tensor(ROWS) > 2),
    "list of masked tensors": lambda: [torch().masked.masked_tensor(row, row > 2) for row in torch().tensor(ROWS)],
    "a sparse matrix for each row": lambda: [pytest.importorskip("scipy.sparse").csr_array(ROWS)] * 3,
    "sparse matrix": lambda: pytest.importorskip("scipy.sparse").csr_matrix(ROWS),
}


@pytest.mark.parametrize("way", ["append", "writer.append", "add_field", "ragged", "encoder"])
@pytest.mark.parametrize("kind", LOST_ROWS)
def test_rows_that_would_lose_values_are_refused(path, kind, way):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, on prototypes
        rows = LOST_ROWS[kind]()
    refused = pytest.raises((errors.ShapeError, errors.DtypeError, errors.NonFiniteError))
    if way == "encoder":
        encoder = FunctionEncoder(lambda items: rows, config={"e": 1})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                result = embstore.embed(Items(dict.fromkeys(KEYS, "text"), name="n"), encoder, path)
            except (errors.ShapeError, errors.DtypeError, errors.NonFiniteError):
                return
        assert result.encoded == 0
        assert len(result.failures) == 3
        return
    fields = {"mean": FieldSpec(shape=(3,))} if way != "ragged" else {"mean": FieldSpec(shape=(), ragged=True)}
    with opened(path, fields=fields) as store, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of NumPy, on masked constants
        if way == "add_field":
            store.append(KEYS, ROWS)
            with refused:
                store.add_field("more", KEYS, rows)
        elif way == "writer.append":
            with store.writer() as writer, refused:
                writer.append(KEYS, rows)
        elif way != "ragged" or kind not in ("sparse matrix", "nested tensor", "masked tensor"):
            with refused:
                store.append(KEYS, rows)
        assert len(store) == (3 if way == "add_field" else 0)


KEPT_ROWS = {
    "mask of nothing": lambda: np.ma.masked_array(ROWS, mask=np.zeros((3, 3), bool)),
    "no mask": lambda: np.ma.masked_array(ROWS),
    "list of unmasked rows": lambda: [np.ma.masked_array(row) for row in ROWS],
    "data frame": lambda: pandas().DataFrame(ROWS, index=[5, 1, 3]),
    "extension data frame": lambda: pandas().DataFrame(ROWS).astype("Float32").astype("float32"),
    "series of rows": lambda: pandas().Series(list(ROWS), index=[2, 0, 1]),
    "generator": lambda: (row for row in ROWS),
    "map": lambda: map(np.array, ROWS),
    "dict values": lambda: {2: ROWS[0], 1: ROWS[1], 0: ROWS[2]}.values(),
    "tuple": lambda: tuple(ROWS),
    "object array": lambda: pandas().Series(list(ROWS)).to_numpy(),
    "fortran order": lambda: np.asfortranarray(ROWS),
    "big endian": lambda: ROWS.astype(">f4"),
    "negative strides": lambda: ROWS[::-1].copy()[::-1],
    "tensor": lambda: torch().tensor(ROWS),
    "requires grad": lambda: torch().tensor(ROWS, requires_grad=True),
    "parameter": lambda: torch().nn.Parameter(torch().tensor(ROWS)),
    "list of grads": lambda: list(torch().tensor(ROWS, requires_grad=True)),
    "negated view": lambda: torch()._neg_view(torch().tensor(-ROWS)),
    "imaginary part of a conjugate": lambda: torch().complex(torch().tensor(ROWS), torch().tensor(-ROWS)).conj().imag,
    "tensor subclass": lambda: torch().tensor(ROWS).as_subclass(type("Own", (torch().Tensor,), {})),
    "transposed tensor": lambda: torch().tensor(np.ascontiguousarray(ROWS.T)).T,
    "tensors and arrays": lambda: [ROWS[0], torch().tensor(ROWS[1]), ROWS[2]],
    "arrow": lambda: [row.to_numpy() for row in map(arrow().array, ROWS)],
}


@pytest.mark.parametrize("way", ["first append", "append", "add", "writer.append", "add_field", "encoder"])
@pytest.mark.parametrize("kind", KEPT_ROWS)
def test_rows_of_each_kind_are_kept(path, kind, way):
    rows = KEPT_ROWS[kind]()
    if way == "encoder":
        encoder = FunctionEncoder(lambda items: rows, config={"e": 1})
        store = embstore.embed(Items(dict.fromkeys(KEYS, "text"), name="n"), encoder, path, canaries=0).store
        np.testing.assert_array_equal(store.fetch(KEYS), ROWS)
        return
    with opened(path, fields=None if way == "first append" else {"mean": FieldSpec(shape=(3,))}) as store:
        if way == "add_field":
            store.append(KEYS, ROWS)
            store.add_field("more", KEYS, rows)
        elif way == "writer.append":
            with store.writer() as writer:
                writer.append(KEYS, rows)
        elif way == "add":
            rows = rows.to_numpy() if hasattr(rows, "iloc") and rows.ndim == 2 else rows
            with store.writer() as writer:
                for key, row in zip(KEYS, rows, strict=True):
                    writer.add(key, row)
        else:
            store.append(KEYS, rows)
        for name in store.fields:
            np.testing.assert_array_equal(store.fetch(KEYS, name), ROWS, strict=True)


@pytest.mark.parametrize("rows", [None, 3, "abc", b"abc", {1, 2, 3}, frozenset((1, 2, 3)), object()])
@pytest.mark.parametrize("ragged", [False, True])
def test_values_that_are_no_rows_are_refused(path, rows, ragged):
    for fields in (None, {"mean": FieldSpec(shape=() if ragged else (3,), ragged=ragged)}):
        with (
            embstore.open(path.with_name(f"{fields is None}.zarr"), "w-", config={}, fields=fields) as store,
            pytest.raises((errors.ShapeError, errors.DtypeError)),
        ):
            store.append(KEYS, rows)


# -- columns ----------------------------------------------------------------------------------

NAN = float("nan")
KEPT = {  # the declared dtype or None, the given values, the stored dtype and values
    "large integers": (None, [2**63 + 12345, 77, 1], "uint64", [2**63 + 12345, 77, 1]),
    "64 bits": (None, [2**62 + 1, -(2**62) - 1, 0], "int64", [2**62 + 1, -(2**62) - 1, 0]),
    "mixed widths of NumPy": (None, [np.uint64(2**63 + 1), np.int64(1), 2], "uint64", [2**63 + 1, 1, 2]),
    "into unsigned": ("uint8", [7, 0, 255], "uint8", [7, 0, 255]),
    "into unsigned 64": ("uint64", [2**63 + 12345, 77, 1], "uint64", [2**63 + 12345, 77, 1]),
    "array into unsigned": ("uint16", np.array([7, 0, 9]), "uint16", [7, 0, 9]),
    "one into unsigned": ("uint32", 7, "uint32", [7, 7, 7]),
    "into bool": ("bool", [0, 1, 1], "bool", [False, True, True]),
    "array into bool": ("bool", np.array([0, 1, 1]), "bool", [False, True, True]),
    "bools": (None, [True, False, True], "bool", [True, False, True]),
    "bools into integers": ("int8", [True, False, True], "int8", [1, 0, 1]),
    "integers into floats": ("float32", [1, 2, 3], "float32", [1.0, 2.0, 3.0]),
    "floats into float32": ("float32", [0.5, 1e30, -0.25], "float32", [0.5, float(np.float32(1e30)), -0.25]),
    "floats with NaN": ("float32", [0.5, float("inf"), 2.0], "float32", [0.5, float("inf"), 2.0]),
    "exact integers beside floats": (None, [2**53, 0.5, 2**60], "float64", [2.0**53, 0.5, 2.0**60]),
    "0-d array": (None, np.array(3), "int64", [3, 3, 3]),
    "0-d text": (None, np.array("x"), "string", ["x", "x", "x"]),
    "one of NumPy": (None, np.int16(3), "int16", [3, 3, 3]),
    "one text of NumPy": (None, np.str_("x"), "string", ["x", "x", "x"]),
    "generator": (None, lambda: (i for i in (3, 1, 2)), "int64", [3, 1, 2]),
    "dict values": (None, lambda: {"b": 3, "a": 1, "c": 2}.values(), "int64", [3, 1, 2]),
    "tuple": (None, ("b", "a", "c"), "string", ["b", "a", "c"]),
    "series": (None, lambda: pandas().Series([3, 1, 2], index=[9, 0, 4]), "int64", [3, 1, 2]),
    "series of text": (None, lambda: pandas().Series(["b", "a", "c"], index=[2, 0, 1]), "string", ["b", "a", "c"]),
    "narrow series": (None, lambda: pandas().Series([1, 2, 3], dtype="float32"), "float32", [1, 2, 3]),
    "wide series into float32": ("float32", lambda: pandas().Series([0.5, 2, 3]), "float32", [0.5, 2, 3]),
    "extension": (None, lambda: pandas().array([3, 1, 2], "Int16"), "int16", [3, 1, 2]),
    "categories": (None, lambda: pandas().Categorical(["b", "a", "b"]), "string", ["b", "a", "b"]),
    "arrow": (None, lambda: arrow().array([3, 1, 2]), "int64", [3, 1, 2]),
    "arrow text": (None, lambda: arrow().array(["b", "a", "c"]), "string", ["b", "a", "c"]),
    "tensor": (None, lambda: torch().tensor([3, 1, 2]), "int64", [3, 1, 2]),
    "0-d tensor": (None, lambda: torch().tensor(3), "int64", [3, 3, 3]),
    "tensors": (None, lambda: list(torch().tensor([3, 1, 2])), "int64", [3, 1, 2]),
    "tensors and numbers": (None, lambda: [torch().tensor(3), 1, np.int64(2)], "int64", [3, 1, 2]),
    "unmasked": (None, lambda: np.ma.masked_array([3, 1, 2]), "int64", [3, 1, 2]),
}


@pytest.mark.parametrize("way", ["append", "writer", "add", "set_column"])
@pytest.mark.parametrize("kind", KEPT)
def test_column_values_that_are_kept(path, kind, way):
    declared, given, dtype, expected = KEPT[kind]
    given = given() if callable(given) else given
    columns = {"n": declared} if declared and way != "set_column" else None
    with opened(path, fields={"mean": FieldSpec(shape=(3,))} if declared else None, columns=columns) as store:
        if way == "append":
            store.append(KEYS, ROWS, columns={"n": given})
        elif way == "writer":
            with store.writer() as writer:
                writer.append(KEYS, ROWS, columns={"n": given})
        elif way == "set_column":
            store.append(KEYS, ROWS)
            store.set_column("n", KEYS, given)
        else:
            if not declared or not isinstance(given, list):
                pytest.skip("the first value alone decides the dtype")
            with store.writer() as writer:
                for key, row, value in zip(KEYS, ROWS, given, strict=True):
                    writer.add(key, row, columns={"n": value})
        if not (declared and way == "set_column"):
            assert store.columns == {"n": dtype}
            assert store.select().column("n").tolist() == expected


REFUSED = {  # the declared dtype or None, the given values, words of the message
    "beyond 64 bits": (None, [2**64, 1, 2], "found 18446744073709551616"),
    "no dtype for both": (None, [2**63, -1, 2], "found 9223372036854775808"),
    "inexact beside floats": (None, [2**53 + 1, 0.5, 1], f"found {2**53 + 1}"),
    "inexact into float64": ("float64", [2**53 + 1, 1, 2], "not all values fit"),
    "inexact array into float64": ("float64", np.array([2**53 + 1, 1, 2]), "not all values fit"),
    "inexact into float32": ("float32", [2**24 + 1, 1, 2], "not all values fit"),
    "too large for float32": ("float32", [1e39, 1.0, 2.0], "not all values fit"),
    "negative into unsigned": ("uint8", [-1, 1, 2], "not all values fit"),
    "negative into unsigned 64": ("uint64", [-1, 1, 2], "not all values fit"),
    "large into int64": ("int64", [2**63 + 1, 1, 2], "not all values fit"),
    "large into int8": ("int8", np.array([200, 1, 2]), "not all values fit"),
    "two into bool": ("bool", [0, 1, 2], "not all values fit"),
    "floats into integers": ("int64", [1.0, 2.0, 3.0], "expected dtype int64, found float64"),
    "float array into float32": ("float32", np.array([0.1, 2, 3]), "expected dtype float32, found float64"),
    "numbers into text": ("string", [1, 2, 3], "expected dtype string, found int as value 0"),
    "text into numbers": ("int64", [1, "2", 3], "expected dtype int64, found str as value 1"),
    "None": (None, [1, None, 3], "found NoneType as value 1"),
    "None into integers": ("int64", [1, None, 3], "expected dtype int64, found NoneType as value 1"),
    "None among text": (None, ["a", None, "c"], "expected dtype string, found NoneType as value 1"),
    "one None": (None, None, "found NoneType as value 0"),
    "numbers among text": (None, ["a", 2, "c"], "expected dtype string, found int as value 1"),
    "lists": (None, [1, [2], 3], "found list as value 1"),
    "bytes": (None, b"abc", "bytes"),
    "list of bytes": (None, [b"a", b"b", b"c"], "found"),
    "complex": (None, [1j, 2, 3], "found complex128"),
    "dates": (None, np.array(["2020-01-01"] * 3, "M8[D]"), "found datetime64"),
    "by key": (None, dict.fromkeys(KEYS, "text"), "in the order of the keys, found a dict"),
    "set": (None, {1, 2, 3}, "in the order of the keys, found a set"),
    "two dimensions": (None, np.ones((3, 2)), r"expected \(3,\), found \(3, 2\)"),
    "too few": (None, [1, 2], r"expected \(3,\), found \(2,\)"),
    "data frame": (None, lambda: pandas().DataFrame({"a": [1, 2, 3]}), r"found \(3, 1\)"),
    "square data frame": (None, lambda: pandas().DataFrame(ROWS, columns=list("abc")), r"found \(3, 3\)"),
    "masked": (None, masked([1, -9999, 3]), "1 masked or missing"),
    "masked constant": (None, [1, np.ma.masked, 3], "1 masked or missing"),
    "masked text": (None, masked(["a", "b", "c"]), "1 masked or missing"),
    "pandas NA": (None, lambda: pandas().array([1, None, 3], "Int64"), "1 masked or missing"),
    "pandas text NA": (None, lambda: pandas().array(["a", None, "c"], "string"), "1 masked or missing"),
    "pandas category NA": (None, lambda: pandas().Categorical(["a", None, "c"]), "1 masked or missing"),
    "series with NA": (None, lambda: pandas().Series([True, None, False], dtype="boolean"), "1 masked or missing"),
    "list with NA": (None, lambda: [1, pandas().NA, 3], "found NAType as value 1"),
    "arrow nulls": (None, lambda: arrow().array([1, None, 3]), "1 masked or missing"),
    "chunked arrow nulls": (None, lambda: arrow().chunked_array([[1, None], [3]]), "1 masked or missing"),
    "arrow text with nulls": (None, lambda: arrow().array(["a", None, "c"]), "1 masked or missing"),
    "sparse tensor": (None, lambda: torch().tensor([1, 0, 3]).to_sparse(), "dense tensor"),
    "meta tensor": (None, lambda: torch().empty(3, device="meta"), "dense tensor"),
    "bfloat16 tensor": (None, lambda: torch().ones(3, dtype=torch().bfloat16), "found bfloat16"),
    "structured": (None, np.zeros(3, [("a", "i4")]), "found"),
    "object": (None, object(), "found object"),
}


@pytest.mark.parametrize("way", ["append", "writer", "set_column"])
@pytest.mark.parametrize("kind", REFUSED)
def test_column_values_that_are_refused(path, kind, way):
    declared, given, words = REFUSED[kind]
    given = given() if callable(given) else given
    columns = {"n": declared} if declared else None
    with opened(path, fields={"mean": FieldSpec(shape=(3,))} if declared else None, columns=columns) as store:
        refused = pytest.raises((errors.ShapeError, errors.DtypeError), match=words)
        if way == "set_column":
            if declared:
                pytest.skip("a column that is set has the dtype of its values")
            store.append(KEYS, ROWS)
            with refused:
                store.set_column("n", KEYS, given)
        elif way == "writer":
            with store.writer() as writer, refused:
                writer.append(KEYS, ROWS, columns={"n": given})
        else:
            with refused:
                store.append(KEYS, ROWS, columns={"n": given})
        assert len(store) == (3 if way == "set_column" else 0)


FILLED = {  # values for two keys of three, the fill, the dtype and the values that are stored
    "float32": (np.array([0.5, 1.5], np.float32), 0, "float32", [0.5, 1.5, 0.0]),
    "int32": (np.array([5, 6], np.int32), 0, "int32", [5, 6, 0]),
    "uint8": (np.array([5, 6], np.uint8), 7, "uint8", [5, 6, 7]),
    "bool": (np.array([True, True]), False, "bool", [True, True, False]),
    "one of NumPy": (np.int64(3), 0, "int64", [3, 3, 0]),
    "narrow one of NumPy": (np.float32(0.5), 0, "float32", [0.5, 0.5, 0.0]),
    "0-d array": (np.array(3), np.array(0), "int64", [3, 3, 0]),
    "list": ([5, 6], 0, "int64", [5, 6, 0]),
    "list of floats": ([5, 6], 0.5, "float64", [5.0, 6.0, 0.5]),
    "large": ([2**63 + 1, 6], 0, "uint64", [2**63 + 1, 6, 0]),
    "text": (["a", "b"], "", "string", ["a", "b", ""]),
    "text array": (np.array(["a", "b"]), "", "string", ["a", "b", ""]),
    "one text": ("a", "b", "string", ["a", "a", "b"]),
    "series": (lambda: pandas().Series([5, 6], dtype="int16", index=[3, 3]), 0, "int16", [5, 6, 0]),
    "generator": (lambda: (i for i in (5, 6)), 0, "int64", [5, 6, 0]),
    "tensor": (lambda: torch().tensor([0.5, 1.5]), 0, "float32", [0.5, 1.5, 0.0]),
    "does not fit": (np.array([5, 6], np.uint8), -1, errors.DtypeError, None),
    "NaN does not fit": (np.array([5, 6]), NAN, errors.DtypeError, None),
    "other kind": (["a", "b"], 0, errors.DtypeError, None),
    "None among values": ([1, None], 0, errors.DtypeError, None),
    "by key": ({"a:x": 1, "b:x": 2}, 0, errors.ShapeError, None),
    "a list as fill": ([1, 2], [1, 2], errors.ShapeError, None),
}


@pytest.mark.parametrize("kind", FILLED)
def test_a_fill_takes_the_dtype_of_the_values(path, kind):
    values, fill, dtype, expected = FILLED[kind]
    values = values() if callable(values) else values
    with opened(path) as store:
        store.append(KEYS, ROWS)
        if expected is None:
            with pytest.raises(dtype):
                store.set_column("n", KEYS[:2], values, fill=fill)
            assert store.columns == {}
        else:
            store.set_column("n", KEYS[:2], values, fill=fill)
            assert store.columns == {"n": dtype}
            assert store.select().column("n").tolist() == expected
            store.set_column("only_filled", [], [], fill=fill)
            assert store.select().column("only_filled").tolist() == [expected[-1]] * 3


def test_a_fill_of_a_store_without_rows(path):
    with opened(path) as store:
        for name, fill in {"n": 0, "x": np.float32(0), "s": ""}.items():
            store.set_column(name, [], [], fill=fill)
        assert store.columns == {"n": "int64", "x": "float32", "s": "string"}


# -- the order of keys ------------------------------------------------------------------------

IN_ORDER = {
    "append": lambda s, keys: s.append(keys, ROWS[: len(keys)]),
    "writer.append": lambda s, keys: s.writer().append(keys, ROWS[: len(keys)]),
    "find": lambda s, keys: s.find(keys),
    "rows_of": lambda s, keys: s.rows_of(keys),
    "fetch": lambda s, keys: s.fetch(keys),
    "select": lambda s, keys: s.select(keys=keys),
    "set_column": lambda s, keys: s.set_column("n", keys, list(range(len(keys)))),
    "add_field": lambda s, keys: s.add_field("f", keys, ROWS),
    "labels": lambda s, keys: s.select().labels({"x", "y"}),
    "align": lambda s, keys: embstore.align(a=s.select(), b=s.select(), classes={"x", "y"}),
}


@pytest.mark.parametrize("kind", [set, frozenset])
@pytest.mark.parametrize("call", IN_ORDER)
def test_a_set_is_refused_where_the_order_counts(path, call, kind):
    with opened(path) as store:
        store.append(KEYS, ROWS)
        with pytest.raises(TypeError, match="expected"):
            IN_ORDER[call](store, kind(KEYS))
        assert (list(store), store.columns, list(store.fields)) == (KEYS, {}, ["embedding"])


def test_a_set_is_accepted_where_the_order_does_not_count(path):
    with opened(path) as store:
        store.append(KEYS, ROWS)
        assert store.missing({"a:x", "z:z"}) == ["z:z"]
        assert len(store.select(classes={"x"})) == 2
        assert len(store.select(where={})) == 3
        assert store.delete({"a:x"}) == 1
        assert store.erase(frozenset(["b:x"])).rows == (1,)


@pytest.mark.skipif(find_spec("pandas") is None, reason="needs pandas")
def test_a_table_is_no_list_of_keys(path):
    frame = pandas().DataFrame({"a:x": [1], "b:x": [2], "c:y": [3]})
    with opened(path) as store:
        with pytest.raises(TypeError, match="list of keys"):
            store.append(frame, ROWS)
        store.append(pandas().Series(KEYS, index=[4, 2, 0]), ROWS)
        assert store.find(pandas().Index(KEYS)).tolist() == [0, 1, 2]


# -- the writer -------------------------------------------------------------------------------


def test_rows_of_several_threads_are_all_committed(path):
    with opened(path) as store:
        with store.writer(interval=0) as writer, ThreadPoolExecutor(8) as pool:
            done = pool.map(lambda n: writer.add(f"{n}:x", np.full(3, n, np.float32)), range(200))
            assert len(list(done)) == 200
        keys = list(store)
        assert len(keys) == 200
        assert store.fetch(keys)[:, 0].tolist() == [int(key.split(":")[0]) for key in keys]


@pytest.mark.parametrize("interval", [-1, NAN, "2"])
def test_an_interval_that_is_none(path, interval):
    with opened(path) as store, pytest.raises(TypeError, match="number of seconds"):
        store.writer(interval=interval)


AGAIN = {  # rows that the store holds at the end, by the keys "a:x" and "b:x"
    "skip": {"a:x": 0, "b:x": 1, "c:y": 2},
    "replace": {"a:x": 5, "b:x": 1, "c:y": 2},
}


@pytest.mark.parametrize("committed", [False, True])
@pytest.mark.parametrize("if_exists", AGAIN)
def test_a_key_that_is_added_again(path, if_exists, committed):
    with opened(path) as store:
        with store.writer(interval=3600, if_exists=if_exists) as writer:
            for key, value in [("a:x", 0), ("b:x", 1), ("a:x", 5), ("c:y", 2)]:
                if committed and value == 5:
                    assert writer.flush().appended == 2
                writer.add(key, np.full(3, value, np.float32), columns={"n": value})
            result = writer.flush()
            assert result.skipped == (if_exists == "skip")
        expected = AGAIN[if_exists]
        assert store.fetch(list(expected))[:, 0].tolist() == list(expected.values())
        assert dict(zip(store, store.select().column("n").tolist(), strict=True)) == expected
        assert len(store) == 3


def test_a_key_that_is_added_again_by_mistake(path):
    with opened(path) as store:
        with store.writer(interval=3600) as writer:
            writer.add("a:x", ROWS[0])
            with pytest.raises(errors.DuplicateKeysError) as caught:
                writer.add("a:x", ROWS[1])
            assert caught.value.keys == ("a:x",)
            with pytest.raises(errors.DuplicateKeysError):
                writer.append(["b:x", "b:x"], ROWS[:2])
            writer.add("c:y", ROWS[2])
        assert list(store) == ["a:x", "c:y"]
        np.testing.assert_array_equal(store.fetch(["a:x"]), ROWS[:1])


def test_keys_that_are_stored_do_not_hold_up_the_others(path):
    with opened(path) as store:
        store.append(["a:x"], ROWS[:1])
        with pytest.raises(errors.KeysExistError) as caught, store.writer(interval=3600) as writer:
            writer.append(KEYS, ROWS + 1)
        assert caught.value.keys == ("a:x",)
        assert list(store) == KEYS
        np.testing.assert_array_equal(store.fetch(KEYS), [ROWS[0], ROWS[1] + 1, ROWS[2] + 1])
        assert writer.flush() == embstore.AppendResult()


@pytest.mark.parametrize("failed", [False, True])
def test_nothing_is_added_after_the_block(path, failed):
    with opened(path) as store:
        with contextlib.suppress(KeyboardInterrupt), store.writer(interval=3600) as writer:
            writer.add("a:x", ROWS[0])
            if failed:
                raise KeyboardInterrupt
        for add in (lambda: writer.add("b:x", ROWS[1]), lambda: writer.append(["b:x"], ROWS[:1])):
            with pytest.raises(ValueError, match="block of the writer"):
                add()
        assert list(store) == ["a:x"]


# -- selections of rows -----------------------------------------------------------------------

SELECTORS = {
    "take": lambda s, given: s.take(given),
    "rows": lambda s, given: s.select(rows=given),
    "view": lambda s, given: s.select()[given],
    "where": lambda s, given: s.select(where={"n": given}),
    "where in": lambda s, given: s.select(where={"n": [given]}),
    "function": lambda s, given: s.select(where={"n": lambda values: given}),
    "align": lambda s, given: embstore.align(a=s.select(), b=s.select())[given],
}
MASKED = {
    "masked": lambda: masked([0, 1, 2]),
    "masked bools": lambda: masked([True, True, False]),
    "pandas NA": lambda: pandas().array([0, None, 2], "Int64"),
    "pandas bools": lambda: pandas().Series([True, None, False], dtype="boolean"),
    "arrow": lambda: arrow().array([0, None, 2]),
    "masked constant": lambda: np.ma.masked,
}


@pytest.mark.parametrize("kind", MASKED)
@pytest.mark.parametrize("way", SELECTORS)
def test_masked_numbers_select_no_row(path, way, kind):
    with opened(path) as store:
        store.append(KEYS, ROWS, columns={"n": [0, 1, 2]})
        with pytest.raises((errors.ShapeError, TypeError, ValueError)):
            SELECTORS[way](store, MASKED[kind]())


@pytest.mark.parametrize("way", ["take", "rows", "view", "where"])
def test_numbers_without_a_mask_select_rows(path, way):
    with opened(path) as store:
        store.append(KEYS, ROWS, columns={"n": [0, 1, 2]})
        for given in (np.ma.masked_array([0, 2]), pandas().array([0, 2], "Int64"), arrow().array([0, 2]).to_numpy()):
            found = SELECTORS[way](store, given)
            np.testing.assert_array_equal(found if way == "take" else found.to_numpy(), ROWS[[0, 2]])
