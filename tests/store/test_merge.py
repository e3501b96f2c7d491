"""Merges of stores of one config, and of the shards of a run, which are merged most often."""

import itertools
import os
import resource
import shutil
import signal
import time

import numpy as np
import pytest

import embstore
from embstore import FieldSpec, errors
from embstore._engine.io import locks, steps
from embstore._engine.write import plans as changes
from embstore._engine.write.session import Session
from embstore.encoders import FunctionEncoder
from embstore.pipeline.embed import part_path
from embstore.sources import Folder, Items
from tests._helpers.crash import files_in, kill_at, leftovers, run_in_child, run_together
from tests._helpers.damage import flip

CONFIG = {"encoder": "test", "sample_rate": 16_000}
PLAIN = {"embedding": FieldSpec(shape=(4,))}
RICH = {
    "mean": FieldSpec(shape=(3,), dtype="bfloat16", layer="layer_2", pooling="mean"),
    "tokens": FieldSpec(shape=(2,), dtype="float16", ragged=True),
    "label": FieldSpec(shape=(), dtype="int32"),
}
COLUMNS = {"split": "string", "score": "float64", "year": "int16"}
CLASSES = ("dog", "cat", "owl")


def key(i):
    return f"f{i}:{CLASSES[i % 3]}"


def plain(i):
    return {"embedding": np.full(4, i, np.float32)}


def rich(i):
    """A row of each kind of field. Each fourth has no tokens. All numbers are exact in bfloat16."""
    return {
        "mean": np.full(3, i % 128, np.float32),
        "tokens": np.arange(2 * (i % 4), dtype=np.float16).reshape(-1, 2) + i % 512,
        "label": np.int32(i * 1000),
    }


def described(i):
    return {"split": f"spl\N{LATIN SMALL LETTER I WITH DIAERESIS}t {i}" * (i % 3), "score": i / 4, "year": i % 999}


def fill(store, ids, row=rich):
    """Append the rows of these numbers, in this order."""
    ids = list(ids)
    rows = [row(i) for i in ids]
    columns = {name: [described(i)[name] for i in ids] for name in store.columns}
    values = {}
    for name, spec in store.fields.items():
        parts = [one[name] for one in rows]
        values[name] = parts if spec.ragged else np.array(parts).reshape(len(ids), *spec.shape)
    if ids:
        store.append([key(i) for i in ids], values, columns=columns, casting="same_kind")


def make(path, ids, *, row=rich, fields=None, columns=None, dead=(), config=CONFIG, **options):
    """Make a store of the rows of these numbers, some of which are then deleted."""
    fields = fields or (RICH if row is rich else PLAIN)
    columns = COLUMNS if columns is None else columns
    options = {"chunk_bytes": 4096, **options}
    with embstore.open(path, "w-", config=config, fields=fields, columns=columns, **options) as store:
        fill(store, ids, row)
        if dead:
            store.delete([key(i) for i in dead])
    return path


def contents(path):
    """Return the values of fields and columns by key. Each key occurs once, and all chunks are checked."""
    with embstore.open(path, check="all") as store:
        assert embstore.verify(path).ok, str(embstore.verify(path))
        view = store.select()
        assert len(set(view.keys)) == len(view.keys) == len(store)
        columns = {name: view.column(name).tolist() for name in store.columns}
        rows = {}
        for name, spec in store.fields.items():
            taken = store.take(store.rows, name)
            cut = [v[:n] for v, n in zip(taken.values, taken.lengths, strict=True)] if spec.ragged else taken
            rows[name] = [(values.dtype.name, values.tolist()) for values in cut]
        assert (store.find(view.keys) == store.rows).all()
        keys = view.keys
    return {
        name: ({f: rows[f][at] for f in rows}, {c: columns[c][at] for c in columns}) for at, name in enumerate(keys)
    }


def files(path):
    return files_in(path) if path.is_dir() else path.read_bytes() if path.exists() else None


def whole(tmp_path, ids, **options):
    """Return the contents of one store with all these rows."""
    return contents(make(tmp_path / "whole.zarr", ids, **options))


@pytest.fixture
def dest(tmp_path):
    return tmp_path / "dest.zarr"


def refused(error, dest, *parts, **options):
    """Merge, which raises and leaves every file as it was. Return the error."""
    before = [files(path) for path in (dest, *parts)]
    with pytest.raises(error) as caught:
        embstore.merge(dest, *parts, **options)
    assert [files(path) for path in (dest, *parts)] == before
    assert dest.exists() == (before[0] is not None)
    return caught.value


# -- rows come over ---------------------------------------------------------------------------


def test_parts_become_a_new_store(tmp_path, dest):
    a, b = make(tmp_path / "a.zarr", range(50)), make(tmp_path / "b.zarr", range(50, 83))
    assert embstore.merge(dest, a, b) == embstore.AppendResult(appended=83)
    found = contents(dest)
    assert found == whole(tmp_path, range(83))
    assert list(found) == [key(i) for i in range(83)]
    store = embstore.open(dest, config=CONFIG)
    assert store.fields == RICH
    assert store.columns == COLUMNS
    assert leftovers(dest) == []


def test_parts_come_into_a_store_with_rows(tmp_path, dest):
    make(dest, range(30))
    a, b = make(tmp_path / "a.zarr", range(30, 50)), make(tmp_path / "b.zarr", range(50, 83))
    assert embstore.merge(str(dest), str(a), b) == embstore.AppendResult(appended=53)
    assert contents(dest) == whole(tmp_path, range(83))
    with embstore.open(dest, "r+") as store:  # it takes rows as before
        fill(store, [83])
    assert contents(dest)[key(83)] == whole(tmp_path / "again", range(84))[key(83)]


def test_any_order_of_the_parts_gives_the_same_rows(tmp_path):
    parts = [make(tmp_path / f"{n}.zarr", range(n * 7, n * 7 + 7)) for n in range(3)]
    expected = whole(tmp_path, range(21))
    for order in itertools.permutations(parts):
        dest = tmp_path / f"{'-'.join(part.stem for part in order)}.zarr"
        embstore.merge(dest, *order)
        assert contents(dest) == expected


@pytest.mark.parametrize("order", ["b", "ab", "ba"])
def test_one_part_and_an_empty_one(tmp_path, dest, order):
    make(tmp_path / "a.zarr", [])
    make(tmp_path / "b.zarr", range(5))
    assert embstore.merge(dest, *(tmp_path / f"{name}.zarr" for name in order)).appended == 5
    assert contents(dest) == whole(tmp_path, range(5))


def test_only_empty_parts(tmp_path, dest):
    part = make(tmp_path / "a.zarr", [])
    assert embstore.merge(dest, part, part) == embstore.AppendResult()
    assert contents(dest) == {}
    before = files(dest)
    assert embstore.merge(dest, part) == embstore.AppendResult()
    assert files(dest) == before


@pytest.mark.parametrize("where", ["first", "last", "dest"])
def test_a_store_without_rows_whose_fields_were_not_declared(tmp_path, dest, where):
    """It has nothing that could differ."""
    undecided = dest if where == "dest" else tmp_path / "undecided.zarr"
    embstore.open(undecided, "w-", config=CONFIG).close()
    part = make(tmp_path / "a.zarr", range(5))
    parts = {"first": [undecided, part], "last": [part, undecided], "dest": [part]}[where]
    assert embstore.merge(dest, *parts).appended == 5
    assert contents(dest) == contents(part)


@pytest.mark.parametrize("dead", [[0, 1, 2], [19], [3, 11, 12, 18], range(20)], ids=["first", "last", "some", "all"])
def test_deleted_rows_stay_behind(tmp_path, dest, dead):
    a = make(tmp_path / "a.zarr", range(20), dead=dead)
    b = make(tmp_path / "b.zarr", range(20, 25))
    left = [i for i in range(25) if i not in dead]
    assert embstore.merge(dest, a, b).appended == len(left)
    assert contents(dest) == whole(tmp_path, left)
    assert embstore.open(dest).snapshot.record.rows == len(left)


def test_erased_and_replaced_rows(tmp_path, dest):
    part = make(tmp_path / "a.zarr", range(20), row=plain)
    with embstore.open(part, "r+") as store:
        store.erase([key(3)])
        columns = {name: [value] for name, value in described(5).items()}
        store.append([key(5)], np.full((1, 4), 555, np.float32), columns=columns, if_exists="replace")
    embstore.merge(dest, part)
    assert contents(dest) == contents(part)
    np.testing.assert_array_equal(embstore.open(dest)[key(5)], [555] * 4)


def test_classes_in_other_orders_in_each_part(tmp_path, dest):
    orders = [[0, 1, 2], [5, 4, 3], [7, 6, 8]]  # dog cat owl, owl cat dog, cat dog owl
    make(dest, [10])  # cat
    parts = [make(tmp_path / f"{n}.zarr", ids) for n, ids in enumerate(orders)]
    assert [embstore.open(part).classes for part in parts] == [
        ["dog", "cat", "owl"],
        ["owl", "cat", "dog"],
        ["cat", "dog", "owl"],
    ]
    embstore.merge(dest, *parts)
    ids = [10, *itertools.chain(*orders)]
    assert contents(dest) == whole(tmp_path, ids)
    store = embstore.open(dest)
    assert sorted(store.classes) == sorted(CLASSES)
    assert store.classes[0] == "cat"
    for name in CLASSES:
        assert store.select(classes=name).keys == [key(i) for i in ids if CLASSES[i % 3] == name]


def test_no_class_of_deleted_rows_alone_comes_over(tmp_path, dest):
    part = make(tmp_path / "a.zarr", range(6), dead=[2, 5])
    embstore.merge(dest, part)
    assert sorted(embstore.open(dest).classes) == ["cat", "dog"]


def test_columns_that_were_written_anew(tmp_path, dest):
    """Their arrays have other names in each store."""
    a, b = make(tmp_path / "a.zarr", range(5)), make(tmp_path / "b.zarr", range(5, 9))
    make(dest, range(9, 12))
    for path, times in ((a, 2), (dest, 1)):
        with embstore.open(path, "r+") as store:
            for _ in range(times):
                store.set_column("score", list(store), [float(len(name)) for name in store])
    embstore.merge(dest, a, b)
    found = contents(dest)
    for path in (a, b):
        for name, row in contents(path).items():
            assert found[name] == row


def test_provenance_and_chunks_are_those_of_the_first_part(tmp_path, dest):
    a = make(tmp_path / "a.zarr", range(5), provenance={"host": "one"}, chunk_bytes=8192)
    b = make(tmp_path / "b.zarr", range(5, 9), provenance={"host": "two"})
    embstore.merge(dest, a, b)
    record = embstore.open(dest).snapshot.record
    assert record.provenance["host"] == "one"
    assert record.options["chunk_bytes"] == 8192


def test_names_of_dimensions_and_rules_of_entry_may_differ(tmp_path, dest):
    a = make(tmp_path / "a.zarr", range(3), row=plain, fields={"embedding": FieldSpec(shape=(4,), dims=("width",))})
    b = make(
        tmp_path / "b.zarr", range(3, 6), row=plain, fields={"embedding": FieldSpec(shape=(4,), nonfinite="allow")}
    )
    embstore.merge(dest, a, b)
    assert contents(dest) == whole(tmp_path, range(6), row=plain)


def test_thousands_of_rows_equal_one_run(tmp_path, dest, rng):
    ids = rng.permutation(4000)
    parts = [make(tmp_path / f"{n}.zarr", ids[n::3].tolist(), dead=ids[n::50].tolist()[:20:3]) for n in range(3)]
    left = [i for part in parts for i in (int(name[1 : name.index(":")]) for name in embstore.open(part))]
    assert embstore.merge(dest, *parts).appended == len(left)
    assert contents(dest) == whole(tmp_path, left)


def test_random_parts_against_a_dictionary(tmp_path, rng, monkeypatch):
    """In blocks of any number of rows, with rows without tokens, and with keys that one part or the store deleted."""
    for turn in range(12):
        monkeypatch.setattr(changes, "_BLOCK_ROWS", int(rng.integers(1, 30)))
        folder = tmp_path / str(turn)
        folder.mkdir()
        expected, appended, skipped, parts = {}, 0, 0, []
        for n in range(int(rng.integers(2, 5))):
            ids = rng.choice(60, size=int(rng.integers(0, 40)), replace=False).tolist()
            dead = [i for i in ids if rng.random() < 0.2]
            part = make(folder / f"{n}.zarr", ids, dead=dead, chunk_bytes=int(rng.choice([256, 1024, 8192])))
            held = contents(part)
            if n:
                appended += len(held.keys() - expected.keys())
                skipped += len(held.keys() & expected.keys())
                parts.append(part)
            expected = {**held, **expected}
        found = embstore.merge(folder / "0.zarr", *parts, if_exists="skip")
        assert found == embstore.AppendResult(appended=appended, skipped=skipped)
        assert contents(folder / "0.zarr") == expected


def test_the_index_is_written_for_many_rows(tmp_path, dest):
    parts, keys = [], []
    for n in range(2):
        own = [f"{i}:c" for i in range(n * 40_000, n * 40_000 + 40_000)]
        with embstore.open(tmp_path / f"{n}.zarr", "w-", config=CONFIG) as store:
            store.append(own, np.arange(40_000, dtype=np.float32)[:, None] + n)
        keys += own
        parts.append(store.path)
    assert embstore.merge(dest, *parts).appended == 80_000
    store = embstore.open(dest)
    assert any((dest / "index").glob("keys.*"))
    np.testing.assert_array_equal(store.find(keys), np.arange(80_000))
    np.testing.assert_array_equal(store.find(["80000:c"]), [-1])
    assert embstore.verify(dest).ok
    assert embstore.merge(dest, *parts, if_exists="skip") == embstore.AppendResult(skipped=80_000)


# -- keys that are there already --------------------------------------------------------------


def test_keys_in_several_parts(tmp_path, dest):
    a, b = make(tmp_path / "a.zarr", range(10), row=plain), make(tmp_path / "b.zarr", range(7, 15), row=plain)
    make(dest, [100], row=plain)
    error = refused(errors.DuplicateKeysError, dest, a, b)
    assert sorted(error.keys) == sorted(map(key, (7, 8, 9)))
    assert embstore.merge(dest, a, b, if_exists="skip") == embstore.AppendResult(appended=15, skipped=3)
    assert list(contents(dest)) == [key(100), *map(key, range(15))]


def test_the_first_part_with_a_key_counts(tmp_path, dest):
    a = make(tmp_path / "a.zarr", [1, 2], row=plain)
    b = make(tmp_path / "b.zarr", [2, 3], row=lambda i: {"embedding": np.full(4, -i, np.float32)}, fields=PLAIN)
    c = make(tmp_path / "c.zarr", [3, 1], row=lambda i: {"embedding": np.full(4, 9 * i, np.float32)}, fields=PLAIN)
    assert embstore.merge(dest, a, b, c, if_exists="skip") == embstore.AppendResult(appended=3, skipped=3)
    np.testing.assert_array_equal(embstore.open(dest)[[key(1), key(2), key(3)]][:, 0], [1, 2, -3])


def test_keys_at_the_destination(tmp_path, dest):
    make(dest, range(5), row=plain)
    part = make(tmp_path / "a.zarr", range(3, 8), row=lambda i: {"embedding": np.full(4, -i, np.float32)}, fields=PLAIN)
    error = refused(errors.KeysExistError, dest, part)
    assert (sorted(error.keys), error.path) == (sorted(map(key, (3, 4))), dest)
    assert embstore.merge(dest, part, if_exists="skip") == embstore.AppendResult(appended=3, skipped=2)
    np.testing.assert_array_equal(embstore.open(dest)[[key(i) for i in range(8)]][:, 0], [0, 1, 2, 3, 4, -5, -6, -7])


def test_keys_at_the_destination_replaced(tmp_path, dest):
    make(dest, range(6), dead=[1])
    own = contents(dest)
    a = make(tmp_path / "a.zarr", [5, 1, 8], row=lambda i: rich(i + 100), fields=RICH)
    b = make(tmp_path / "b.zarr", [9, 2])
    assert embstore.merge(dest, a, b, if_exists="replace") == embstore.AppendResult(appended=5, replaced=2)
    assert contents(dest) == {**own, **contents(a), **contents(b)}
    assert list(contents(dest)) == [key(i) for i in (0, 3, 4, 5, 1, 8, 9, 2)]
    assert embstore.open(dest).snapshot.record.dead == 3
    with embstore.open(dest, "r+") as store:
        store.compact()
    assert contents(dest) == {**own, **contents(a), **contents(b)}


def test_the_destination_replaces_itself(tmp_path, dest):
    make(dest, range(40), dead=[3])
    before = contents(dest)
    assert embstore.merge(dest, dest, if_exists="replace") == embstore.AppendResult(appended=39, replaced=39)
    assert contents(dest) == before


def test_a_key_that_one_part_has_deleted(tmp_path, dest):
    a, b = make(tmp_path / "a.zarr", range(5), dead=[2]), make(tmp_path / "b.zarr", [2, 7])
    assert embstore.merge(dest, a, b).appended == 6


def test_one_part_twice(tmp_path, dest):
    """Of two rows with one key none replaces the other."""
    part = make(tmp_path / "a.zarr", range(5))
    refused(errors.DuplicateKeysError, dest, part, part)
    assert embstore.merge(dest, part, part, if_exists="skip") == embstore.AppendResult(appended=5, skipped=5)
    assert embstore.merge(dest, part, if_exists="skip") == embstore.AppendResult(skipped=5)
    refused(errors.DuplicateKeysError, dest, part, part, if_exists="replace")
    assert contents(dest) == contents(part)


def test_the_destination_among_the_parts(tmp_path, dest):
    make(dest, range(5))
    part = make(tmp_path / "a.zarr", range(5, 9))
    refused(errors.KeysExistError, dest, part, dest)
    assert embstore.merge(dest, dest, part, if_exists="skip") == embstore.AppendResult(appended=4, skipped=5)
    assert contents(dest) == whole(tmp_path, range(9))


def test_nothing_is_committed_where_nothing_is_new(tmp_path, dest):
    make(dest, range(5))
    part = make(tmp_path / "a.zarr", range(3))
    before = files(dest)
    assert embstore.merge(dest, part, if_exists="skip") == embstore.AppendResult(skipped=3)
    assert files(dest) == before


# -- differences are refused ------------------------------------------------------------------

DIFFERENT = {
    "config": ({"config": {**CONFIG, "sample_rate": 8000}}, errors.ConfigMismatchError),
    "a field more": ({"fields": {**PLAIN, "more": FieldSpec(shape=(4,))}}, errors.UnknownFieldError),
    "another field": ({"fields": {"other": FieldSpec(shape=(4,))}}, errors.UnknownFieldError),
    "shape": ({"fields": {"embedding": FieldSpec(shape=(2, 2))}}, errors.FieldMismatchError),
    "dtype": ({"fields": {"embedding": FieldSpec(shape=(4,), dtype="float16")}}, errors.FieldMismatchError),
    "bits": ({"fields": {"embedding": FieldSpec(shape=(4,), dtype="bfloat16")}}, errors.FieldMismatchError),
    "layer": ({"fields": {"embedding": FieldSpec(shape=(4,), layer="layer_2")}}, errors.FieldMismatchError),
    "pooling": ({"fields": {"embedding": FieldSpec(shape=(4,), pooling="mean")}}, errors.FieldMismatchError),
    "ragged": ({"fields": {"embedding": FieldSpec(shape=(4,), ragged=True)}}, errors.FieldMismatchError),
    "a column more": ({"columns": {**COLUMNS, "more": "int8"}}, errors.UnknownColumnError),
    "a column less": ({"columns": {"split": "string", "score": "float64"}}, errors.UnknownColumnError),
    "a column's dtype": ({"columns": {**COLUMNS, "year": "int32"}}, errors.UnknownColumnError),
    "a column's kind": ({"columns": {**COLUMNS, "year": "string"}}, errors.UnknownColumnError),
}


@pytest.mark.parametrize("rows", [0, 3], ids=["empty", "with rows"])
@pytest.mark.parametrize("kind", DIFFERENT)
def test_a_part_that_differs_from_the_destination(tmp_path, dest, kind, rows):
    options, error = DIFFERENT[kind]
    make(dest, range(rows), row=plain)
    make(tmp_path / "good.zarr", range(5, 9), row=plain)
    make(tmp_path / "odd.zarr", [], row=plain, **options)
    for parts in (["good", "odd"], ["odd", "good"], ["odd"]):
        found = refused(error, dest, *(tmp_path / f"{part}.zarr" for part in parts))
        assert found.path in (tmp_path / "odd.zarr", tmp_path / "good.zarr", dest)
    assert leftovers(dest) == []


UNDECIDED = {"another dtype": {"year": "int8"}, "another kind": {"year": "string"}, "one more": {"more": "int8"}}


@pytest.mark.parametrize("kind", UNDECIDED)
def test_columns_of_a_destination_whose_fields_were_not_declared(tmp_path, dest, kind):
    embstore.open(dest, "w-", config=CONFIG, columns=UNDECIDED[kind]).close()
    refused(errors.UnknownColumnError, dest, make(tmp_path / "a.zarr", range(999), row=plain))


@pytest.mark.parametrize("kind", ["column", "field", "first rows"])
def test_a_destination_that_changes_before_the_lock_is_held(tmp_path, dest, monkeypatch, kind):
    if kind == "first rows":
        embstore.open(dest, "w-", config=CONFIG).close()
    else:
        make(dest, range(3), row=plain)
    part = make(tmp_path / "a.zarr", range(5, 9), row=plain)
    apply = Session.apply

    def late(session, planner):
        monkeypatch.undo()
        with embstore.open(dest, "r+") as other:
            if kind == "column":
                other.set_column("year", list(other), ["text"] * 3)
            elif kind == "field":
                other.add_field("more", list(other), np.ones((3, 2), np.float32))
            else:
                other.append(["other:c"], {"other": np.ones((1, 2), np.float32)})
        before.update(files(dest))
        return apply(session, planner)

    before = {}
    monkeypatch.setattr(Session, "apply", late)
    with pytest.raises((errors.UnknownColumnError, errors.UnknownFieldError)):
        embstore.merge(dest, part)
    assert files(dest) == before


@pytest.mark.parametrize("order", ["good odd", "odd good"])
@pytest.mark.parametrize("kind", DIFFERENT)
def test_parts_that_differ_from_each_other_make_no_store(tmp_path, dest, kind, order):
    options, error = DIFFERENT[kind]
    make(tmp_path / "good.zarr", range(5), row=plain)
    make(tmp_path / "odd.zarr", [], row=plain, **options)
    refused(error, dest, *(tmp_path / f"{part}.zarr" for part in order.split()))


def test_the_error_says_what_differs(tmp_path, dest):
    a = make(tmp_path / "a.zarr", range(5), row=plain)
    b = make(tmp_path / "b.zarr", [], row=plain, config={**CONFIG, "sample_rate": 8000})
    with pytest.raises(errors.ConfigMismatchError, match=r"b\.zarr.*sample_rate") as caught:
        embstore.merge(dest, a, b)
    assert [(d.name, d.expected, d.found) for d in caught.value.differences] == [("sample_rate", 16_000, 8000)]
    c = make(tmp_path / "c.zarr", [], row=plain, columns={**COLUMNS, "year": "int32"})
    with pytest.raises(errors.UnknownColumnError, match=r"int32 column 'year'.*c\.zarr"):
        embstore.merge(dest, a, c)


@pytest.mark.parametrize("kind", ["nothing", "file", "folder", "zarr group"])
@pytest.mark.parametrize("order", ["first", "last"])
def test_a_part_that_is_no_store(tmp_path, dest, kind, order):
    odd = tmp_path / "odd"
    if kind == "file":
        odd.write_text("no store")
    elif kind != "nothing":
        odd.mkdir()
    if kind == "zarr group":
        (odd / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    part = make(tmp_path / "a.zarr", range(5))
    assert refused(errors.NotAStoreError, dest, *([odd, part] if order == "first" else [part, odd])).path == odd


@pytest.mark.parametrize("kind", ["file", "folder", "folder with files"])
def test_a_destination_that_is_no_store(tmp_path, dest, kind):
    if kind == "file":
        dest.write_text("no store")
    else:
        dest.mkdir()
    if kind == "folder with files":
        (dest / "notes.txt").write_text("mine")
    assert refused(errors.NotAStoreError, dest, make(tmp_path / "a.zarr", range(5))).path == dest


def test_arguments_that_make_no_sense(tmp_path, dest):
    part = make(tmp_path / "a.zarr", range(5))
    with pytest.raises(TypeError, match="found none"):
        embstore.merge(dest)
    for how in ("renew", "", None):
        with pytest.raises(ValueError, match="if_exists"):
            embstore.merge(dest, part, if_exists=how)
    with pytest.raises(TypeError):
        embstore.merge(dest, part, nonsense=1)
    assert not dest.exists()


def test_options_of_the_destination(tmp_path, dest):
    part = make(tmp_path / "a.zarr", range(5))
    embstore.merge(dest, part, chunk_bytes=1024, expected_rows=10, provenance={"host": "here"}, lock_timeout=1)
    assert embstore.open(dest).snapshot.record.options == {"chunk_bytes": 1024, "expected_rows": 10}


def test_a_locked_destination(tmp_path, dest):
    make(dest, range(5))
    part = make(tmp_path / "a.zarr", range(5, 9))
    with locks.lock(dest, timeout=1), pytest.raises(errors.StoreLockedError):
        embstore.merge(dest, part, lock_timeout=0.05)
    assert len(embstore.open(dest)) == 5


# -- parts that are broken --------------------------------------------------------------------


@pytest.mark.parametrize("array", ["mean", "tokens", "tokens_offsets", "split", "file_id", "key_hash"])
def test_a_part_that_lacks_a_chunk(tmp_path, dest, array):
    make(dest, range(5))
    part = make(tmp_path / "a.zarr", range(5, 2000), chunk_bytes=1024)
    names = {path.parent.name for path in part.rglob("c.*")}
    folder = part / (array if array in names else next(n for n in names if n.startswith("tokens") and n != "tokens"))
    sorted(folder.glob("c.*"))[0].unlink()
    before = contents(dest)
    with pytest.raises((errors.CorruptStoreError, errors.StoreChangedError)):
        embstore.merge(dest, part)
    assert contents(dest) == before
    with embstore.open(dest, "r+") as store:
        fill(store, [3000])
    assert leftovers(dest) == []


def test_a_flipped_bit_does_not_come_over(tmp_path, dest):
    part = make(tmp_path / "a.zarr", range(600), row=plain)
    chunk = min((part / "embedding").glob("c.*"))
    flip(chunk, place=100)
    assert not embstore.verify(part).ok
    with pytest.raises(errors.CorruptStoreError):
        embstore.merge(dest, part)


# -- one commit -------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [False, True], ids=["new", "with rows"])
def test_a_reader_sees_all_or_nothing(tmp_path, dest, monkeypatch, made):
    """A reader looks at each step on the disk."""
    monkeypatch.setattr(changes, "_BLOCK_ROWS", 10)
    parts = [make(tmp_path / "a.zarr", range(100, 140)), make(tmp_path / "b.zarr", range(140, 171))]
    before = []
    if made:
        make(dest, range(10))
        with embstore.open(dest) as store:
            before = [(store.snapshot.record.commit_id, 10)]
    seen = []

    def look(operation, path, data):
        if (dest / "zarr.json").exists():
            with embstore.open(dest) as store:
                found = (store.snapshot.record.commit_id, len(store.select().keys))
            if found not in seen:
                seen.append(found)

    monkeypatch.setattr(steps, "step_hook", look)
    embstore.merge(dest, *parts)
    monkeypatch.undo()
    assert [rows for _, rows in seen] == ([10, 81] if made else [0, 71])
    assert seen[: len(before)] == before
    assert embstore.open(dest).snapshot.record.commit_id == seen[-1][0]


def test_the_parts_are_left_as_they_were(tmp_path, dest):
    a, b = make(tmp_path / "a.zarr", range(50), dead=[3, 4]), make(tmp_path / "b.zarr", range(50, 60))
    before = files(a), files(b), sorted(p.name for p in tmp_path.iterdir())
    for path in (a, b):  # they need not be writable
        for place in (path, *path.rglob("*")):
            place.chmod(0o500 if place.is_dir() else 0o400)
    embstore.merge(dest, a, b)
    for path in (a, b):
        for place in (path, *path.rglob("*")):
            place.chmod(0o700 if place.is_dir() else 0o600)
    assert (files(a), files(b)) == before[:2]
    left = {p.name for p in tmp_path.iterdir()} - {*before[2], dest.name}
    assert not any(name.startswith((".a.zarr", ".b.zarr")) for name in left)


def test_a_reader_that_is_there_moves_on(tmp_path, dest):
    make(dest, range(5))
    reader = embstore.open(dest)
    view = reader.select()
    embstore.merge(dest, make(tmp_path / "a.zarr", range(5, 9)))
    assert len(reader) == len(view) == 5
    assert reader.refresh()
    assert len(reader) == 9


@pytest.mark.parametrize("made", [False, True], ids=["new", "with rows"])
def test_killed_at_every_step(tmp_path, monkeypatch, made):
    monkeypatch.setattr(changes, "_BLOCK_ROWS", 32)
    kinds = {"fields": {"tokens": RICH["tokens"]}, "columns": {"split": "string"}}
    parts = [
        make(tmp_path / "a.zarr", range(50, 90), dead=[55, 60], **kinds),
        make(tmp_path / "b.zarr", range(90, 101), **kinds),
    ]
    own = make(tmp_path / "own.zarr", range(50), **kinds) if made else None
    held = {path: files(path) for path in parts}

    def prepare(path):
        if own is not None:
            shutil.copytree(own, path)

    prepare(tmp_path / "done.zarr")
    before = contents(own) if made else {}
    embstore.merge(tmp_path / "done.zarr", *parts)
    after = contents(tmp_path / "done.zarr")
    assert len(after) == len(before) + 49
    for step in itertools.count():
        path = tmp_path / f"{step}.zarr"
        prepare(path)

        def work(step=step, path=path):
            kill_at(step)
            embstore.merge(path, *parts)

        ended = run_in_child(work)
        assert ended in (0, -signal.SIGKILL)
        if path.exists():
            with embstore.open(path, check="all") as store:
                assert len(store) in (len(before), len(after))
                whole_at_once = len(store) == len(after)
            assert ended or whole_at_once
        else:
            assert not made
        if step % 3 == 0 or not ended:  # the next one carries it through
            again = embstore.merge(path, *parts, if_exists="skip")
            assert again.appended + again.skipped == 49
            assert contents(path) == after
            assert leftovers(path) == []
        elif path.exists():  # or does something else
            with embstore.open(path, "r+") as store:
                fill(store, [500])
            assert {name: row for name, row in contents(path).items() if name != key(500)} in (before, after)
            assert leftovers(path) == []
        shutil.rmtree(path, ignore_errors=True)
        if not ended:
            break
    assert step >= 10
    assert {path: files(path) for path in parts} == held


def test_several_processes_merge_into_one_store(tmp_path, dest):
    """Into a store that did not exist. Two of the processes merge the same part."""
    parts = [make(tmp_path / f"{n}.zarr", range(n * 30, n * 30 + 30)) for n in range(3)]

    def work(part):
        return lambda: embstore.merge(dest, part, if_exists="skip")

    assert run_together(*map(work, [*parts, parts[0]])) == [0] * 4
    assert contents(dest) == whole(tmp_path, range(90))
    assert leftovers(dest) == []


def test_a_writer_at_the_destination_meanwhile(tmp_path, dest, monkeypatch):
    monkeypatch.setattr(changes, "_BLOCK_ROWS", 5)
    make(dest, [0])
    parts = [make(tmp_path / f"{n}.zarr", range(100 + n * 40, 140 + n * 40)) for n in range(4)]

    def write():
        with embstore.open(dest, "r+") as store:
            for i in range(1, 40):
                fill(store, [i])

    def merge():
        for part in parts:
            embstore.merge(dest, part)
            time.sleep(0.005)

    assert run_together(write, merge) == [0, 0]
    assert contents(dest) == whole(tmp_path, [*range(40), *range(100, 260)])


# -- shards -----------------------------------------------------------------------------------


def sizes(items):
    return np.array([[len(item), item[0]] for item in items], np.float32)


class Counting(FunctionEncoder):
    """An encoder of bytes: their number, and the first of them. It keeps a list of its samples."""

    def __init__(self, *, declared=True, decode=None, width=2, version=1):
        fields = {"size": FieldSpec(shape=(width,))} if declared else None
        super().__init__(self._run, config={"encoder": "size", "version": version}, fields=fields, decode=decode)
        self.encoded = []

    @property
    def in_memory(self):
        """False, so that no sample is encoded again to compare."""
        return False

    def _run(self, items):
        self.encoded += items
        return sizes(items)


@pytest.fixture
def cache(tmp_path):
    return embstore.Cache(tmp_path / "cache")


@pytest.fixture
def folder(tmp_path):
    """Files whose stamps have settled, so that they count."""
    root = tmp_path / "files"
    for i in range(60):
        place = root / CLASSES[i % 3] / f"{i}.bin"
        place.parent.mkdir(parents=True, exist_ok=True)
        write(place, bytes([i]) * (i + 1))
    return root


@pytest.fixture
def source(folder):
    return Folder(folder, name="files")


@pytest.fixture(params=[True, False], ids=["part kept", "part removed"])
def stored(request, source, cache):
    """Make the whole store, with or without a part beside it. Return the path of the store."""
    if request.param:
        shards(source, cache, 1)
    return embstore.embed(source, Counting(), cache).path


def write(path, data):
    path.write_bytes(data)
    os.utime(path, ns=(10**18, 10**18 + 1000 * len(data)))


def tale(path):
    """Return the row and the columns of each key."""
    with embstore.open(path) as store:
        view = store.select()
        columns = [view.column(name).tolist() for name in sorted(store.columns)]
        return dict(zip(view.keys, zip(view.to_numpy().tolist(), *columns, strict=True), strict=True))


def shards(source, cache, n, encoder=Counting, **options):
    """Run n shards one after the other."""
    results = [embstore.embed(source, encoder(), cache, shard=(i, n), **options) for i in range(n)]
    return results, [result.path for result in results]


def merged(source, cache, n):
    """Run n shards and merge their parts. Return the path of the store and those of the parts."""
    results, parts = shards(source, cache, n)
    path = cache.path_of(results[0].config)
    embstore.merge(path, *parts)
    return path, parts


def as_one_run(source, folder):
    """Return the `tale` of a run without shards, into a cache of its own."""
    return tale(embstore.embed(source, Counting(), folder / "one").path)


@pytest.mark.parametrize("n", range(1, 6))
def test_shards_share_out_each_sample_once(cache, n):
    contents = {f"file {i}:c{i % 4}": bytes([i % 256]) * (i % 9 + 1) for i in range(300)}
    results, parts = shards(Items(contents, name="n"), cache, n)
    held = [list(embstore.open(part)) for part in parts]
    assert sorted(itertools.chain(*held)) == sorted(contents)
    assert [r.samples for r in results] == [r.encoded for r in results] == [len(keys) for keys in held]
    assert all(300 / n * 0.6 < len(keys) < 300 / n * 1.4 for keys in held)
    # Neither the order nor other rows decide.
    other = embstore.Cache(cache.path.with_name("other"))
    some = [name for name in reversed(contents) if not name.startswith("file 1")]
    _, parts = shards(Items({name: contents[name] for name in some}, name="n"), other, n)
    for own, part in zip(held, parts, strict=True):
        assert set(embstore.open(part)) == {name for name in own if not name.startswith("file 1")}


def test_four_shards_in_four_processes_merged_are_one_run(source, cache, tmp_path):
    works = [
        lambda i=i: embstore.embed(source, Counting(), cache, shard=(i, 4), batch_size=3, interval=0.01)
        for i in range(4)
    ]
    assert run_together(*works) == [0] * 4
    assert len(cache) == 0
    config = {**Counting().config, "dataset": "files"}
    path = cache.path_of(config)
    parts = [part_path(path, (i, 4)) for i in range(4)]
    assert all(part.parent == path.parent and part.is_dir() for part in parts)
    assert embstore.merge(path, *parts).appended == 60
    assert embstore.verify(path).ok
    one = embstore.embed(source, Counting(), tmp_path / "one", batch_size=7)
    assert tale(path) == tale(one.path)
    store = cache.open(config)
    assert store.columns == one.store.columns
    assert store.fields == one.store.fields
    assert store.select().column("source_size").min() > 0  # the stamps came over
    assert len(cache) == 1


@pytest.mark.parametrize("kept", [True, False], ids=["parts kept", "parts removed"])
def test_a_second_round_encodes_nothing(source, cache, kept):
    path, parts = merged(source, cache, 3)
    if not kept:
        for part in parts:
            shutil.rmtree(part)
    result = embstore.embed(source, encoder := Counting(), cache)
    assert (result.hits, result.encoded, encoder.encoded) == (60, 0, [])
    results, parts = shards(source, cache, 3)
    assert all((r.encoded, len(r.failed)) == (0, 0) for r in results)
    # The whole round again, as a job script would do it.
    assert embstore.merge(path, *parts, if_exists="skip").appended == 0
    assert len(cache.open(results[0].config)) == 60


def test_a_second_round_encodes_what_is_new(source, folder, cache, tmp_path):
    path, parts = merged(source, cache, 3)
    for i in range(60, 70):
        write(folder / "dog" / f"{i}.bin", bytes([i]))
    results, parts = shards(source, cache, 3)
    assert sum(r.encoded for r in results) == 10
    assert [r.samples - r.hits for r in results] == [r.encoded for r in results]
    assert sum(r.samples for r in results) == 70
    with pytest.raises(errors.KeysExistError):
        embstore.merge(path, *parts)
    assert embstore.merge(path, *parts, if_exists="skip") == embstore.AppendResult(appended=10, skipped=60)
    assert tale(path) == as_one_run(source, tmp_path)


def test_a_second_round_renews_what_has_changed(source, folder, cache, tmp_path):
    path, parts = merged(source, cache, 3)
    for part in parts:
        shutil.rmtree(part)
    write(folder / "cat" / "4.bin", b"changed")
    results, parts = shards(source, cache, 3)
    assert sum(r.encoded for r in results) == 1
    assert embstore.merge(path, *parts, if_exists="replace").replaced == 1
    assert tale(path) == as_one_run(source, tmp_path)


def test_a_plain_run_renews_what_shards_could_not(source, folder, cache, tmp_path):
    path, parts = merged(source, cache, 3)
    write(folder / "cat" / "4.bin", b"changed")
    results, parts = shards(source, cache, 3)
    assert sum(r.encoded for r in results) == 1
    embstore.merge(path, *parts, if_exists="skip")
    result = embstore.embed(source, encoder := Counting(), cache)
    assert (result.stale, encoder.encoded) == (1, [b"changed"])
    assert tale(path) == as_one_run(source, tmp_path)


def test_shards_with_failures(source, cache, tmp_path):
    def decode(content):
        if content[0] in (7, 20, 33):
            raise errors.DecodeError("unlucky")
        return content

    results, parts = shards(source, cache, 2, lambda: Counting(decode=decode))
    failed = [failure for r in results for failure in r.failed]
    assert sorted(failure.key for failure in failed) == ["cat/7:cat", "dog/33:dog", "owl/20:owl"]
    assert {f.reason for f in failed} == {"unlucky"}
    assert [r.ok for r in results] == [not r.failed for r in results]
    path = cache.path_of(results[0].config)
    assert embstore.merge(path, *parts).appended == 57
    again, parts = shards(source, cache, 2)
    assert sum(r.encoded for r in again) == 3  # tried again, by the shard that they are in
    assert embstore.merge(path, *parts, if_exists="skip").appended == 3
    assert tale(path) == as_one_run(source, tmp_path)


def test_a_shard_that_was_killed_goes_on(source, cache):

    class Dying(Counting):
        def _run(self, items):
            if len(self.encoded) >= 9:
                os.kill(os.getpid(), signal.SIGKILL)
            return super()._run(items)

    ended = run_in_child(lambda: embstore.embed(source, Dying(), cache, shard=(0, 2), batch_size=3, interval=0))
    assert ended == -signal.SIGKILL
    result = embstore.embed(source, encoder := Counting(), cache, shard=(0, 2))
    assert result.hits >= 6
    assert len(encoder.encoded) == result.encoded == result.samples - result.hits
    assert embstore.embed(source, Counting(), cache, shard=(0, 2)).hits == result.samples


def test_a_shard_again_is_a_hit(source, cache):
    first = embstore.embed(source, Counting(), cache, shard=(1, 3))
    before = files(first.path)
    again = embstore.embed(source, encoder := Counting(), cache, shard=(1, 3))
    assert (again.hits, again.encoded, encoder.encoded) == (first.samples, 0, [])
    assert again.path == first.path
    assert again.reason.startswith("hit")
    assert files(first.path) == before


@pytest.mark.parametrize("new", [0, 9])
def test_what_the_whole_store_holds_is_a_hit_of_the_shard(stored, source, folder, cache, new):
    for i in range(new):
        write(folder / "dog" / f"new{i}.bin", bytes([i]))
    result = embstore.embed(source, encoder := Counting(), cache, shard=(0, 1))
    assert (result.samples, result.hits, result.stale) == (60 + new, 60, 0)
    assert result.encoded == len(encoder.encoded) == new
    assert result.reason == f"{'partial' if new else 'hit'}: 60 stored, {new} missing, 0 stale"
    again = embstore.embed(source, Counting(), cache, shard=(0, 1))
    assert (again.samples, again.hits, again.encoded) == (60 + new, 60 + new, 0)
    assert again.reason == f"hit: {60 + new} stored, 0 missing, 0 stale"


def test_a_shard_of_which_nothing_is_stored_is_a_miss(source, folder, cache):
    """Rows of other samples in the whole store don't count."""
    embstore.embed(Folder(folder, name="files", pattern="cat/*.bin"), Counting(), cache)
    source = Folder(folder, name="files", pattern="dog/*.bin")
    results, _ = shards(source, cache, 2)
    for result in results:
        assert result.reason == f"miss: 0 stored, {result.samples} missing, 0 stale"
        assert (result.hits, result.encoded) == (0, result.samples)


def test_a_first_shard_says_what_its_config_misses(source, cache):
    embstore.embed(source, Counting(version=2), cache)
    result = embstore.embed(source, Counting(), cache, shard=(0, 2))
    assert result.reason == "miss: no store has this config; the nearest differs in version: expected 1, found 2"


def test_what_is_stale_in_the_whole_store_is_stale_until_the_part_has_it(stored, source, folder, cache):
    write(folder / "cat" / "4.bin", b"changed")
    write(folder / "cat" / "7.bin", b"changed, too")
    result = embstore.embed(source, Counting(), cache, shard=(0, 1))
    assert (result.samples, result.hits, result.stale, result.encoded) == (60, 58, 2, 2)
    assert result.reason == "partial: 58 stored, 0 missing, 2 stale"
    again = embstore.embed(source, Counting(), cache, shard=(0, 1))
    assert (again.samples, again.hits, again.stale, again.encoded) == (60, 60, 0, 0)
    assert again.reason == "hit: 60 stored, 0 missing, 0 stale"


def test_a_shard_tells_of_a_stored_file_that_it_can_not_compare(stored, source, folder, cache):
    """As a run without shards does."""
    write(folder / "cat" / "4.bin", b"changed")
    scanned = list(source)
    (folder / "cat" / "4.bin").unlink()

    class Scanned:
        name = "files"

        def __iter__(self):
            return iter(scanned)

    plain, shard = (embstore.embed(Scanned(), Counting(), cache, shard=how) for how in (None, (0, 1)))
    assert [failure.key for failure in plain.failed] == ["cat/4:cat"]
    for name in ("samples", "hits", "stale", "encoded", "failed", "reason"):
        assert getattr(shard, name) == getattr(plain, name)


def test_a_shard_leaves_the_whole_store_as_it_is(source, folder, cache):
    """It does not even note the stamps of files that were touched."""
    path = embstore.embed(source, Counting(), cache).path
    before = files(path)
    os.utime(folder / "cat" / "4.bin", ns=(10**18, 5 * 10**17))
    for _ in range(2):
        result = embstore.embed(source, Counting(), cache, shard=(0, 1))
        assert (result.hits, result.encoded) == (60, 0)
    assert files(path) == before


def test_parts_are_no_stores_of_the_cache(source, folder, cache):
    results, parts = shards(Folder(folder, name="files"), cache, 2)
    config = results[0].config
    assert cache.entries() == []
    assert cache.find(encoder="size") == []
    assert len(cache) == 0
    assert cache.nearest(config) == (None, ())
    lookup = cache.lookup(config, list(embstore.open(parts[0])))
    assert not lookup.hit
    assert not lookup.stored
    with pytest.raises(errors.CacheMissError):
        cache.open(config)


def test_a_shard_sees_nothing_of_rows_whose_samples_are_gone(source, folder, cache):
    path = embstore.embed(source, Counting(), cache).path
    (folder / "cat" / "4.bin").unlink()
    for i in range(2):
        result = embstore.embed(source, Counting(), cache, shard=(i, 2), vanished="delete")
        assert result.vanished == ()
    assert len(embstore.open(path)) == 60


@pytest.mark.parametrize("declared", [True, False])
def test_more_shards_than_samples(cache, declared):
    source = Items({"a:c": b"a", "b:c": b"bb"}, name="two")
    results, parts = shards(source, cache, 5, lambda: Counting(declared=declared))
    assert sum(r.samples for r in results) == 2
    assert sum(r.samples == 0 for r in results) >= 3
    path = cache.path_of(results[0].config)
    assert embstore.merge(path, *parts).appended == 2
    assert embstore.embed(source, Counting(declared=declared), cache).hits == 2


def of_two_fields():
    fields = {name: FieldSpec(shape=(2,)) for name in ("size", "more")}
    return FunctionEncoder(lambda items: dict.fromkeys(fields, sizes(items)), config=Counting().config, fields=fields)


def test_a_field_that_only_the_shards_have(source, cache):
    """It can't come over by a merge, and is refused before anything is encoded."""
    embstore.embed(source, Counting(), cache)

    encoder = of_two_fields()
    with pytest.raises(errors.UnknownFieldError, match="'more'"):
        embstore.embed(source, encoder, cache, shard=(0, 2))
    assert len(list(cache.path.glob("*.part-*"))) == 0
    assert embstore.embed(source, encoder, cache).fields_added == ("more",)


def test_a_field_that_only_the_whole_store_has_is_added_to_a_part(source, folder, cache):
    """Also for rows of the part that came into the whole store by a merge."""
    results, parts = shards(source, cache, 2)
    embstore.merge(cache.path_of(results[0].config), *parts)

    encoder = of_two_fields()
    assert embstore.embed(source, encoder, cache).fields_added == ("more",)
    write(folder / "dog" / "new.bin", b"new")
    results, parts = shards(source, cache, 2, lambda: encoder)
    assert [r.fields_added for r in results] == [("more",)] * 2
    assert embstore.merge(cache.path_of(results[0].config), *parts, if_exists="skip").appended == 1


def test_another_meaning_of_a_field_is_refused(source, cache):
    embstore.embed(source, Counting(), cache)
    with pytest.raises(errors.FieldMismatchError):
        embstore.embed(source, Counting(width=3), cache, shard=(0, 2))


@pytest.mark.parametrize(
    "shard", [(2, 2), (-1, 2), (0, 0), (0, -1), (5, 4), (1,), (0, 1, 2), ("0", "2"), "0/2", 3, (None, 2), (0.5, 2)]
)
def test_shards_that_make_no_sense(source, folder, cache, shard):
    with pytest.raises((ValueError, TypeError)):
        embstore.embed(Folder(folder, name="files"), encoder := Counting(), cache, shard=shard)
    assert encoder.encoded == []
    assert not cache.path.exists()


def test_more_parts_than_a_process_may_open(tmp_path):
    """Each open store has a descriptor for each of its arrays."""
    parts = []
    for i in range(40):
        parts.append(tmp_path / f"part{i}.zarr")
        with embstore.open(parts[-1], "w-", config={"e": 1}) as store:
            store.append([f"{i}:dog", f"{i}:cat{i}"], np.full((2, 3), i, np.float32), columns={"n": i})

    def work():
        most = max(map(int, os.listdir("/proc/self/fd"))) + 130  # other tests may have left descriptors open
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        assert embstore.merge(tmp_path / "all.zarr", *parts).appended == 80

    assert run_in_child(work) == 0
    with embstore.open(tmp_path / "all.zarr", check="all") as store:
        assert store.select(classes="dog").to_numpy()[:, 0].tolist() == list(range(40))
        assert store.select().column("n").tolist() == np.repeat(np.arange(40), 2).tolist()
    assert embstore.verify(tmp_path / "all.zarr").ok


def test_a_part_that_is_erased_during_the_merge(tmp_path, monkeypatch):
    for name in "ab":
        with embstore.open(tmp_path / name, "w-", config={"e": 1}) as store:
            store.append([f"{name}{i}:x" for i in range(3)], np.ones((3, 2), np.float32))
    monkeypatch.setattr("embstore.store.merge._MOST_OPEN", 1)

    def erased(*args, **options):
        with embstore.open(tmp_path / "a", "r+") as store:
            store.erase(["a1:x"])
        return open_store(*args, **options)

    open_store = embstore.open
    monkeypatch.setattr("embstore.store.merge.open_store", erased)
    with pytest.raises(embstore.errors.StoreChangedError, match="erased or renumbered during the merge"):
        embstore.merge(tmp_path / "all", tmp_path / "a", tmp_path / "b")
    assert len(embstore.open(tmp_path / "all")) == 0
