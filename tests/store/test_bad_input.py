"""Bad input at the edges: facts that survive a pickle, machines that refuse, and calls that make no sense."""

import contextlib
import gc
import os
import pickle
import resource
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import embstore
from embstore import errors
from embstore._engine.format.config import Config
from embstore._engine.format.record import SchemaError
from embstore._engine.io.folder import Folder
from embstore._engine.write.commit import commit, create
from embstore._engine.write.record_edits import new_record, with_field
from tests._helpers.crash import leftovers, run_in_child

ROW = np.ones((1, 8), np.float32)
NOBODY = 65_534
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root may")


def state(path):
    """What anybody can see of a store: every file's bytes, and every row."""
    files = {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    store = embstore.open(path, check="all")
    view = store.select()
    return files, view.keys, view.to_numpy().tobytes(), view.column("split").tolist()


@contextlib.contextmanager
def unchanged(path):
    before = state(path)
    yield
    assert state(path) == before
    assert leftovers(path) == []


# -- calls ------------------------------------------------------------------------------------


def test_a_whole_batch_is_refused_for_one_row(make):
    """Every bad row is named, wherever it is, and none of the good ones is stored."""
    store, _, _ = make()
    keys = [f"new{i}:c" for i in range(2000)]
    rows = np.ones((2000, 8), np.float32)
    rows[[0, 999, 1999], 7] = np.nan, np.inf, -np.inf
    with unchanged(store.path), pytest.raises(errors.NonFiniteError) as caught:
        store.append(keys, rows, columns={"split": "x"})
    assert caught.value.keys == (keys[0], keys[999], keys[1999])


def test_casts_that_are_never_made(path):
    """Narrowing integers keeps their value, or is refused: 70,000 is not 4,464."""
    fields = {"f": embstore.FieldSpec(shape=(2,), dtype="int16")}
    with embstore.open(path, "w-", config={}, fields=fields) as store:
        for values in (np.ones((1, 2), np.float32), np.ones((1, 2), bool) * 1j, np.array([["a", "b"]])):
            with pytest.raises(errors.DtypeError) as caught:
                store.append(["a:b"], values, casting="same_kind")
            assert (caught.value.expected, caught.value.found) == ("int16", values.dtype.name)
        with pytest.raises(errors.DtypeError):
            store.append(["a:b"], np.full((1, 2), 70_000, np.int64), casting="same_kind")
        assert len(store) == 0


@pytest.mark.parametrize("options", [{"check": "none"}, {"mapping": "always"}], ids=lambda o: next(iter(o)))
def test_an_unknown_option_is_refused(make, options):
    store, _, _ = make()
    with pytest.raises(ValueError, match=next(iter(options))):
        embstore.open(store.path, **options)


def test_one_key_is_not_a_list_of_keys(make):
    """A string is a sequence of strings: taken for one it would ask for its letters."""
    store, keys, _ = make()
    for call in (store.rows_of, store.fetch, store.missing, store.delete, store.erase, lambda k: store.select(keys=k)):
        with unchanged(store.path), pytest.raises((TypeError, errors.KeyFormatError)):
            call(keys[0])


def test_nothing_to_do_changes_nothing(make):
    store, _, _ = make()
    before = store.snapshot.record.commit_id
    assert store.append([], np.empty((0, 8), np.float32), columns={"split": []}).appended == 0
    assert store.delete([]) == 0
    assert store.snapshot.record.commit_id == before
    with pytest.raises(errors.ShapeError):
        store.append([], ROW, columns={"split": []})


def test_an_unknown_field_is_named_everywhere(make):
    store, keys, _ = make()
    for call in (
        lambda: store.fetch(keys[:1], "nope"),
        lambda: store.array("nope"),
        lambda: store.select().to_numpy("nope"),
        lambda: store.select().nearest(ROW[0], field="nope"),
        lambda: store.writer().add("a:b", {"nope": ROW[0]}),
    ):
        with pytest.raises(errors.UnknownFieldError) as caught:
            call()
        assert (caught.value.available, caught.value.path) == (("embedding",), store.path)


@pytest.mark.parametrize("what", ["keys", "values", "columns"])
def test_a_field_or_column_that_is_refused_changes_nothing(make, what):
    store, keys, _ = make()
    short = keys[:-1] if what == "keys" else keys
    rows = np.ones((len(short) - (what == "values"), 2), np.float32)
    numbers = np.arange(len(short) - (what == "columns"))
    with unchanged(store.path):
        if what != "columns":
            with pytest.raises((errors.MissingKeysError, errors.ShapeError)):
                store.add_field("more", short, rows)
        if what != "values":
            with pytest.raises((errors.MissingKeysError, errors.ShapeError)):
                store.set_column("score", short, numbers)
            with pytest.raises(errors.NameRefusedError):
                store.set_column("file_id", keys, np.arange(300))
        with pytest.raises(errors.DtypeError):
            store.set_column("score", keys, [object()] * 300)


def test_a_new_store_that_is_refused_is_not_made(path):
    bad = [
        ({"config": {"a": float("nan")}}, errors.ConfigError),
        ({"config": {}, "fields": {"1a": embstore.FieldSpec(shape=(2,))}}, errors.NameRefusedError),
        ({"config": {}, "columns": {"zarr.json": "int64"}}, errors.NameRefusedError),
        ({"config": {}, "provenance": {"a": 3}}, errors.ConfigError),
        ({"config": {}, "chunk_bytes": 0}, ValueError),
    ]
    for options, error in bad:
        with pytest.raises(error):
            embstore.open(path, "w-", **options)
        assert list(path.parent.iterdir()) == []
    for shape in ((0,), (-1,), (2, 0)):
        with pytest.raises(ValueError, match="shape"):
            embstore.FieldSpec(shape=shape)


def test_names_of_dimensions_that_are_no_text_are_refused(make, tmp_path):
    """Before they are in the record, which could not be read again."""
    store, keys, rows = make()
    new = tmp_path / "new.zarr"
    with pytest.raises(SchemaError, match="dims"):
        embstore.open(new, "w-", config={}, fields={"more": embstore.FieldSpec(shape=(2,), dims=(3,))})
    assert not new.exists()
    with pytest.raises(SchemaError, match="dims"):
        store.add_field("more", keys, rows[:, :2], spec=embstore.FieldSpec(shape=(2,), dims=(3,)))
    with embstore.open(store.path, "r+") as again:
        assert list(again.fields) == ["embedding"]
        again.delete(keys[:1])
        np.testing.assert_array_equal(again[keys[1:]], rows[1:])
    assert embstore.verify(store.path).ok


def test_a_record_that_could_not_be_read_again_is_not_committed(make, tmp_path):
    """Whatever has let it through."""
    store, keys, rows = make()
    old = store.snapshot.record
    new = replace(with_field(old, "more", embstore.FieldSpec(shape=(2,))), provenance={"a": 3})
    with pytest.raises(SchemaError, match="expected text"):
        commit(Folder.open(store.path), old, new, {"more": rows[:, :2]})
    with embstore.open(store.path, check="all") as again:
        assert again.snapshot.record == old
        np.testing.assert_array_equal(again[keys], rows)
    with pytest.raises(SchemaError, match="expected text"):
        create(tmp_path / "new.zarr", replace(new_record(Config({})), provenance={"a": 3}))
    assert not (tmp_path / "new.zarr").exists()


@pytest.mark.parametrize("dtype", ["complex64", "U5", "object", "bfloat16", "float99"])
def test_a_column_of_a_dtype_that_can_not_be_stored(path, dtype):
    with pytest.raises((errors.DtypeError, TypeError, ValueError)):
        embstore.open(path, "w-", config={}, columns={"a": dtype})
    assert list(path.parent.iterdir()) == []


def test_a_closed_store_refuses_everything(make):
    store, keys, _ = make()
    view = store.select()
    store.close()
    store.close()
    for call in (
        lambda: len(store),
        lambda: list(store),
        lambda: store[keys[0]],
        lambda: keys[0] in store,
        lambda: store.append(["a:b"], ROW, columns={"split": "x"}),
        lambda: store.delete(keys[:1]),
        lambda: store.select(),
        lambda: store.config,
        store.refresh,
        store.array,
        view.to_numpy,
        lambda: pickle.dumps(store),
    ):
        with pytest.raises(ValueError, match="closed"):
            call()
    assert embstore.open(store.path)[keys].shape == (300, 8)


PATHS = [
    "dangling link",
    "nothing",
    "file",
    "empty folder",
    "zarr group",
    "zarr array",
    "version 2 group",
    "another's",
]


@pytest.mark.parametrize("what", PATHS)
def test_a_path_that_is_not_a_store(path, what):
    import zarr

    if what == "dangling link":
        path.symlink_to(path.with_name("gone"))
    elif what == "file":
        path.write_text("x")
    elif what == "zarr array":
        zarr.create_array(path, shape=(1,), dtype="i1", zarr_format=3)
    elif what not in ("nothing", "empty folder"):
        attributes = {"embstores": 1} if what == "another's" else {}
        zarr.create_group(path, zarr_format=2 if what == "version 2 group" else 3, attributes=attributes)
    elif what == "empty folder":
        path.mkdir()
    for look in (embstore.open, embstore.verify, lambda path: embstore.open(path, "r+")):
        with pytest.raises(errors.NotAStoreError) as caught:
            look(path)
        assert caught.value.path in (path, path.resolve())
        assert isinstance(caught.value, FileNotFoundError)
    if "zarr" in what or what in ("version 2 group", "another's"):  # somebody else's folder is never built over
        before = sorted((f, f.read_bytes()) for f in path.rglob("*") if f.is_file())
        with pytest.raises(errors.NotAStoreError):
            embstore.open(path, "a", config={})
        with pytest.raises(errors.StoreExistsError) as caught:
            embstore.open(path, "w-", config={})
        assert caught.value.path == path
        assert sorted((f, f.read_bytes()) for f in path.rglob("*") if f.is_file()) == before


# -- the machine ------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 600, 3000, 8000, 20_000])
def test_a_file_size_limit_at_any_place(make, limit):
    """RLIMIT_FSIZE, so that another file is the first not to fit."""
    store, _, _ = make()
    more = [f"more{i}:class_{i}" for i in range(2000)]
    rows = np.ones((2000, 8), np.float32)

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        for change in (
            lambda: store.append(more, rows, columns={"split": "a long value"}),
            store.compact,
            lambda: embstore.open(store.path.with_name("new.zarr"), "w-", config={"a": "x" * 30_000}),
        ):
            with pytest.raises(errors.StorageFullError) as caught:
                change()
            assert caught.value.errno == 27
            assert str(caught.value.path).startswith(str(store.path.parent))

    before = state(store.path)
    assert run_in_child(work) == 0
    after = state(store.path)  # files that no commit names may be there, until the next writer
    assert after[0]["zarr.json"] == before[0]["zarr.json"]
    assert after[1:] == before[1:]
    assert not store.path.with_name("new.zarr").exists()
    store.append(more, rows, columns={"split": "x"})
    assert len(embstore.open(store.path, check="all")) == 2300
    assert embstore.verify(store.path).ok


@root_only
def test_a_full_disk_of_two_megabytes(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("may not mount")
    try:
        path = small / "store.zarr"
        with embstore.open(path, "w-", config={}, chunk_bytes=65_536) as store:
            store.append(["a:b"], np.ones((1, 256), np.float32), columns={"split": "x"})
            large = np.ones((4000, 256), np.float32)
            with pytest.raises(errors.StorageFullError) as caught:
                store.append([f"f{i}:c" for i in range(4000)], large, columns={"split": "x"})
            assert caught.value.errno == 28
            ended = run_in_child(lambda: state(path))  # in a child: a hole that can't be filled is a SIGBUS
            store.append(["c:d"], large[:1], columns={"split": "x"})
            assert list(store) == ["a:b", "c:d"]
        assert embstore.verify(path).ok
        assert leftovers(path) == []
        assert ended == 0
    finally:
        del store
        subprocess.run(["umount", "-l", small], check=True)


def test_a_folder_that_may_not_be_written(make):
    store, keys, rows = make()
    store.close()
    folder = store.path.parent
    for place in [*folder.parents, folder, store.path, *store.path.rglob("*")]:
        if os.geteuid() == 0 and str(place).startswith(str(folder.parents[1])):
            place.chmod(0o755 if place.is_dir() else 0o644)
    folder.chmod(0o555)

    def work():
        if os.geteuid() == 0:
            os.seteuid(NOBODY)
        for call in (
            lambda: embstore.open(store.path, "r+").append(["a:b"], ROW, columns={"split": "x"}),
            lambda: embstore.open(store.path, "r+").delete(keys[:1]),
            lambda: embstore.open(store.path, "r+").compact(),
            lambda: embstore.open(folder / "new.zarr", "w-", config={}),
            lambda: embstore.open(folder / "deeper" / "new.zarr", "w-", config={}),
        ):
            with pytest.raises(errors.ReadOnlyError) as caught:
                call()
            assert str(caught.value.path).startswith(str(folder))
        np.testing.assert_array_equal(embstore.open(store.path)[keys], rows)

    try:
        with unchanged(store.path):
            assert run_in_child(work) == 0
    finally:
        folder.chmod(0o755)


def test_a_network_file_system_that_is_refused_is_not_touched(path, monkeypatch):
    monkeypatch.setattr("embstore._engine.io.filesystem.filesystem_type", lambda path: "fuse.sshfs")
    for mode in ("w-", "a", "x"):
        with pytest.raises(errors.NetworkFileSystemError) as caught:
            embstore.open(path, mode, config={})
        assert caught.value.filesystem == "fuse.sshfs"
        assert caught.value.path in (path, path.parent)
        assert list(path.parent.iterdir()) == []
    with embstore.open(path, "w-", config={}, network="allow") as store:
        store.append(["a:b"], ROW)
    from embstore._engine.io.mapping import budget

    gc.collect()  # maps of stores that other tests let go of
    before = budget.used
    with embstore.open(path) as reader:
        np.testing.assert_array_equal(reader.array(), ROW)
        assert budget.used == before


# -- each refusal of an append, and of a call --------------------------------------------------


def one(value=1.0, dtype="float32", n=1, dim=8):
    return np.full((n, dim), value, dtype)


SHAPE, DTYPE, KEY = errors.ShapeError, errors.DtypeError, errors.KeyFormatError
STORED = "file_0001:class_1"
APPENDS = {  # keys, values, the error, the class of Python's that it also is, its facts
    "another dimension": (["a:b"], one(dim=7), SHAPE, ValueError, {"expected": (1, 8), "found": (1, 7)}),
    "more rows than keys": (["a:b"], one(n=2), SHAPE, ValueError, {"expected": (1, 8), "found": (2, 8)}),
    "fewer rows than keys": ([STORED, "a:b"], one(), SHAPE, ValueError, {}),
    "ragged rows": (["a:b", "c:b"], [one()[0], one(dim=7)[0]], SHAPE, ValueError, {}),
    "another dtype": (["a:b"], one(dtype="int32"), DTYPE, TypeError, {"expected": "float32", "found": "int32"}),
    "float64": (["a:b"], one(dtype="float64"), DTYPE, TypeError, {"expected": "float32", "found": "float64"}),
    "text": (["a:b"], [["x"] * 8], DTYPE, TypeError, {}),
    "NaN": (["a:b", "c:d"], [*one(), *one(np.nan)], errors.NonFiniteError, ValueError, {"keys": ("c:d",)}),
    "NaN of a stored key": ([STORED], one(np.nan), errors.NonFiniteError, ValueError, {"keys": (STORED,)}),
    "infinity": (["a:b"], one(np.inf), errors.NonFiniteError, ValueError, {"field": "embedding", "keys": ("a:b",)}),
    "both infinities": (
        ["a:b"],
        one() * np.float32([np.inf, -np.inf, *[1] * 6]),
        errors.NonFiniteError,
        ValueError,
        {},
    ),
    "empty": ([""], ROW, KEY, ValueError, {"key": ""}),
    "no class after good keys": (["a:b", STORED, "bad:"], one(n=3), KEY, ValueError, {"key": "bad:"}),
    "twice in two forms": (["a", "a:_", "b"], one(n=3), errors.DuplicateKeysError, ValueError, {"keys": ("a",)}),
    "no file_id": ([":b"], ROW, KEY, ValueError, {"key": ":b"}),
    "no class": (["a:"], ROW, KEY, ValueError, {"key": "a:"}),
    "not text": ([3], ROW, KEY, ValueError, {"key": 3}),
    "not Unicode": (["\ud800:b"], ROW, KEY, ValueError, {"key": "\ud800:b"}),
    "twice": (["a:b", "c:d", "a:b"], one(n=3), errors.DuplicateKeysError, ValueError, {"keys": ("a:b",)}),
    "stored": ([STORED, "new:x"], one(n=2), errors.KeysExistError, ValueError, {"keys": (STORED,)}),
    "another field": (["a:b"], {"other": ROW}, errors.UnknownFieldError, KeyError, {"available": ("embedding",)}),
}


@pytest.mark.parametrize("kind", APPENDS)
def test_an_append_that_is_refused_changes_nothing(make, kind):
    keys, values, expected, builtin, facts = APPENDS[kind]
    store, _, _ = make()
    for if_exists in ("error",) if kind == "stored" else ("error", "skip", "replace"):
        with unchanged(store.path), pytest.raises(expected) as caught:
            store.append(keys, values, columns={"split": "train"}, if_exists=if_exists)
        assert isinstance(caught.value, builtin)
        for name, value in facts.items():
            assert getattr(caught.value, name) == value, name
        again = pickle.loads(pickle.dumps(caught.value))
        assert str(again) == str(caught.value)
    assert store.append(["fine:x"], ROW, columns={"split": "train"}).appended == 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nonfinite_in_half_precision(path, dtype, value):
    fields = {"f": embstore.FieldSpec(shape=(2,), dtype=dtype)}
    with embstore.open(path, "w-", config={}, fields=fields) as store:
        with pytest.raises(errors.NonFiniteError):
            store.append(["a:b"], np.array([[1, value]], np.float32), casting="same_kind")
        with pytest.raises(errors.NonFiniteError):
            store.append(["a:b"], np.array([[1, 1e39]]), casting="same_kind")  # overflows
        assert len(store) == 0


def test_nonfinite_may_be_allowed_and_large_sums_are_finite(path):
    fields = {"f": embstore.FieldSpec(shape=(2,), nonfinite="allow"), "g": embstore.FieldSpec(shape=(8,))}
    with embstore.open(path, "w-", config={}, fields=fields) as store:
        store.append(["a:b"], {"f": np.array([[np.nan, np.inf]], np.float32), "g": one(3e38)})
        np.testing.assert_array_equal(store.fetch(["a:b"], "f"), [[np.nan, np.inf]])
        np.testing.assert_array_equal(store.fetch(["a:b"], "g"), one(3e38))


def test_casting_on_request(make, path):
    store, _, _ = make()
    store.append(["a:b"], one(2.5, "float64"), columns={"split": "x"}, casting="same_kind")
    assert store["a:b"].tolist() == [2.5] * 8
    with pytest.raises(errors.DtypeError) as caught:
        embstore.open(path.with_name("new.zarr"), "w-", config={}).append(["a:b"], one(dtype="float64"))
    assert caught.value.found == "float64"


def test_columns_must_be_those_of_the_store(make):
    store, _, _ = make()
    store.set_column("year", list(store), 1)  # integers have no fill
    for columns, column in ({}, "year"), ({"year": 1, "split": "x", "more": 1}, "more"):
        with pytest.raises(errors.UnknownColumnError) as caught:
            store.append(["a:b"], ROW, columns=columns)
        assert caught.value.column == column
    with pytest.raises(errors.DtypeError):
        store.append(["a:b"], ROW, columns={"split": [3], "year": 1})
    with pytest.raises(errors.ShapeError):
        store.append(["a:b"], ROW, columns={"split": ["x", "y"], "year": 1})
    assert len(store) == 300


def test_a_config_that_differs_names_each_attribute(make):
    store, _, _ = make()
    for mode in ("r", "r+", "a"):
        with unchanged(store.path), pytest.raises(errors.ConfigMismatchError) as caught:
            embstore.open(store.path, mode, config={"encoder": "test", "sample_rate": 8000.0, "revision": "x"})
        found = {(d.name, str(d.expected), str(d.found)) for d in caught.value.differences}
        assert found == {("sample_rate", "8000", "16000"), ("revision", "x", "(absent)"), ("duration", "(absent)", "5")}
        assert caught.value.path == store.path
        assert isinstance(caught.value, ValueError)
    assert len(embstore.open(store.path, config={"encoder": "test", "sample_rate": 16_000.0, "duration": 5})) == 300


def test_all_missing_keys_in_one_error(make):
    store, keys, _ = make()
    wanted = [keys[0], "x:y", keys[1], "z:y"]
    for read in (
        store.fetch,
        store.rows_of,
        store.__getitem__,
        store.delete,
        store.erase,
        lambda k: store.select(keys=k),
    ):
        with pytest.raises(errors.MissingKeysError) as caught:
            read(wanted)
        assert caught.value.keys == ("x:y", "z:y")
        assert caught.value.path == store.path
    assert isinstance(caught.value, KeyError)
    assert len(store) == 300
    with pytest.raises(errors.KeyFormatError):
        store["nonsense:"]


def test_modes(make, tmp_path):
    store, keys, _ = make()
    reader = embstore.open(store.path)
    for write in (
        lambda: reader.append(["a:b"], ROW, columns={"split": "x"}),
        lambda: reader.delete(keys[:1]),
        lambda: reader.erase(keys[:1]),
        reader.compact,
        reader.writer,
        lambda: reader.set_column("x", keys, np.zeros(300)),
    ):
        with pytest.raises(errors.ReadOnlyError):
            write()
    with pytest.raises(errors.StoreExistsError):
        embstore.open(store.path, "w-", config={})
    with pytest.raises(errors.NotAStoreError):
        embstore.open(tmp_path / "none", "r+")
    with pytest.raises(ValueError, match="mode"):
        embstore.open(store.path, "w")
    with pytest.raises(TypeError, match="config"):
        embstore.open(tmp_path / "new.zarr", "w-")
    with pytest.raises(ValueError, match="if_exists"):
        store.append(["a:b"], ROW, columns={"split": "x"}, if_exists="maybe")
    for options in ({"chunk_bytes": -1}, {"chunk_bytes": 2**33}, {"expected_rows": -5}):
        with pytest.raises(ValueError, match="expected"):
            embstore.open(tmp_path / "new.zarr", "w-", config={}, **options)
    assert not (tmp_path / "new.zarr").exists()


@pytest.mark.parametrize(
    "name",
    ["", "1a", "a/b", "../x", "index", "INDEX", "file_id", "__x", "x.", "x_offsets", "split", "SPLIT", "a" * 200, 3],
)
def test_names_that_are_refused(make, name):
    store, keys, _ = make()
    with pytest.raises(errors.NameRefusedError):
        store.add_field(name, keys, np.zeros((300, 2), np.float32))


def test_rows_by_number_and_closed_stores(make):
    store, keys, rows = make()
    for wrong in (0, 1.5, None, [1, 2], slice(2)):
        with pytest.raises(TypeError):
            store[wrong]
    for wrong in ([300], [-1]):
        with pytest.raises(IndexError):
            store.take(wrong)
        with pytest.raises(IndexError):
            store.select(rows=wrong)
    with pytest.raises(errors.UnknownFieldError):
        store.take([0], "other")
    store.delete(keys[:1])
    with pytest.raises(errors.DeadRowsError) as caught:
        store.array()
    assert (caught.value.dead, caught.value.field) == (1, "embedding")
    assert store.array(dead="include").shape == rows.shape
    store.close()
    with pytest.raises(ValueError, match="closed"):
        store[keys[1]]


def test_numbers_of_python_take_the_width_of_their_column(path):
    columns = {"score": "float32", "fold": "int8"}
    with embstore.open(path, "w-", config={}, columns=columns) as store:
        store.append(["a:b"], ROW, columns={"score": [0.5], "fold": 7})
        view = store.select()
        assert (view.column("score").dtype, view.column("score")[0]) == (np.float32, 0.5)
        assert (view.column("fold").dtype, view.column("fold")[0]) == (np.int8, 7)
        for wrong in (
            {"score": [0.5], "fold": 700},
            {"score": np.array([0.5]), "fold": 7},
            {"score": [1.5], "fold": 1.5},
        ):
            with pytest.raises(errors.DtypeError):
                store.append(["c:d"], ROW, columns=wrong)
        assert len(store) == 1


def test_a_store_that_is_removed_while_it_is_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "is_dir", lambda _: True)
    with pytest.raises(errors.NotAStoreError, match="there is nothing"):
        embstore.open(tmp_path / "gone.zarr")
