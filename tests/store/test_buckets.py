"""verify, salvage, merge and exports of stores in a bucket."""

import dataclasses
import io
import zipfile

import numpy as np
import pytest

import embstore
from embstore import errors
from embstore.store.embedding_store import session_of
from tests._helpers.buckets import buckets, objects

obstore = pytest.importorskip("obstore")

__all__ = ["buckets"]

URL = "s3://mem/pets.zarr"
CONFIG = {"encoder": "demo"}
ROWS = np.arange(40 * 8, dtype=np.float32).reshape(40, 8)
KEYS = [f"{i}:{'cat' if i % 2 else 'dog'}" for i in range(40)]


@pytest.fixture
def store(buckets):
    """A store of four parts with ten rows each, of which two rows are deleted."""
    store = embstore.open(URL, "a", config=CONFIG)
    for start in range(0, 40, 10):
        some = slice(start, start + 10)
        store.append(KEYS[some], ROWS[some], columns={"age": list(range(start, start + 10))})
    store.delete([KEYS[3], KEYS[25]])
    return store


def content(store):
    view = store.select()
    return dict(
        zip(view.keys, zip(view.to_numpy()[:, 0].tolist(), view.column("age").tolist(), strict=True), strict=True)
    )


def part(buckets, number):
    """Return the name of the object of a part, by its number in the store."""
    return sorted(name for name in objects(buckets["mem"]) if "/parts/" in name)[number]


def cut(buckets, name):
    data = bytes(obstore.get(buckets["mem"], name).bytes())
    obstore.put(buckets["mem"], name, data[:-100])


def flip(buckets, name):
    """Flip a bit of a row, and keep the archive valid."""
    data = bytes(obstore.get(buckets["mem"], name).bytes())
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
        for file in old.namelist():
            found = bytearray(old.read(file))
            if file.startswith("embedding/c."):
                found[0] ^= 1
            new.writestr(file, bytes(found))
    obstore.put(buckets["mem"], name, made.getvalue())


def lose(buckets, name):
    obstore.delete(buckets["mem"], name)


def test_a_sound_store(store):
    report = embstore.verify(URL)
    assert (report.ok, report.rows, str(report.path)) == (True, 38, URL)
    store.compact()
    assert embstore.verify(URL).ok
    assert str(embstore.verify(URL)) == f"{URL}: 38 rows, all as they were committed"


@pytest.mark.parametrize("damage", [cut, flip, lose])
def test_a_damaged_part(store, buckets, damage, tmp_path):
    damage(buckets, part(buckets, 2))
    report = embstore.verify(URL)
    assert not report.ok
    assert report.rows == 38
    assert report.rows_affected.tolist() == [20, 21, 22, 23, 24, 26, 27, 28, 29]
    assert all(str(problem.path).startswith(f"{URL}/parts/00000003-") for problem in report.problems)
    saved = embstore.salvage(URL, tmp_path / "saved.zarr")
    assert (saved.rows_kept, saved.rows_lost.tolist()) == (29, report.rows_affected.tolist())
    kept = [i for i in range(40) if not 20 <= i < 30 and i != 3]
    with embstore.open(tmp_path / "saved.zarr", config=CONFIG) as found:
        assert content(found) == {KEYS[i]: (ROWS[i, 0], i) for i in kept}
    assert embstore.verify(tmp_path / "saved.zarr").ok
    with pytest.raises(errors.StoreExistsError):
        embstore.salvage(URL, tmp_path / "saved.zarr")


def test_a_lost_list_of_deleted_rows(store, buckets):
    lose(buckets, next(name for name in objects(buckets["mem"]) if "/dead/" in name and "00000005" in name))
    report = embstore.verify(URL)
    assert len(report.problems) == 1
    assert len(report.rows_affected) == 10
    assert len(report.keys_affected) == 10


def test_a_damaged_record(store, buckets):
    obstore.put(buckets["mem"], "pets.zarr/zarr.json", b"{}x")
    (problem,) = embstore.verify(URL).problems
    assert "it is not JSON" in problem.detail
    with pytest.raises(errors.CorruptStoreError):
        embstore.salvage(URL, "/nowhere/saved.zarr")
    with pytest.raises(errors.NotAStoreError):
        embstore.verify("s3://mem/other.zarr")


def test_a_copy_of_a_local_store(buckets, tmp_path):
    with embstore.open(tmp_path / "a.zarr", "a", config=CONFIG) as local:
        local.append(KEYS, ROWS)
    embstore.open("s3://mem/x.zarr", "a", config=CONFIG)
    for file in (tmp_path / "a.zarr").rglob("*"):
        if file.is_file():
            obstore.put(buckets["mem"], f"a.zarr/{file.relative_to(tmp_path / 'a.zarr')}", file.read_bytes())
    assert embstore.verify("s3://mem/a.zarr").rows == 40
    obstore.delete(buckets["mem"], "a.zarr/embedding/c.0.0")
    assert [str(one.path) for one in embstore.verify("s3://mem/a.zarr").problems] == ["s3://mem/a.zarr/embedding/c.0.0"]


@pytest.mark.parametrize("ragged", [False, True])
def test_merge_from_and_to_a_bucket(buckets, tmp_path, ragged):
    rows = [np.full((i % 3 + 1, 2), i, np.float32) for i in range(40)] if ragged else ROWS
    for name, some in {"a": slice(0, 25), "b": slice(25, 40)}.items():
        fields = {"embedding": embstore.FieldSpec(shape=(2,), ragged=True)} if ragged else None
        with embstore.open(tmp_path / name, "a", config=CONFIG, fields=fields, columns={"age": "int64"}) as local:
            local.append(KEYS[some], rows[some], columns={"age": list(range(40))[some]})
    options = {"storage_options": {"key": "x", "secret": "y"}}
    assert embstore.merge(URL, tmp_path / "a", **options).appended == 25
    with pytest.raises(errors.KeysExistError):
        embstore.merge(URL, tmp_path / "a", tmp_path / "b")
    done = embstore.merge(URL, tmp_path / "a", tmp_path / "b", if_exists="skip", **options)
    assert dataclasses.astuple(done)[:2] == (15, 25)
    assert embstore.merge(URL, tmp_path / "b", if_exists="replace").replaced == 15
    assert embstore.verify(URL).ok
    assert embstore.merge(tmp_path / "c", URL, **options).appended == 40
    for place in (URL, tmp_path / "c"):
        with embstore.open(place) as store:
            assert sorted(store) == sorted(KEYS)
            assert {store.select(keys=[key]).class_names[0] for key in KEYS[:2]} == {"cat", "dog"}
            for i in (0, 24, 25, 39):
                np.testing.assert_array_equal(store[KEYS[i]], rows[i])
    embstore.open(tmp_path / "d", "a", config={"encoder": "other"}).close()
    with pytest.raises(errors.ConfigMismatchError):
        embstore.merge(URL, tmp_path / "d")


def test_exports_and_imports(store, tmp_path):
    embstore.export_file(store, tmp_path / "pets.parquet")
    result = embstore.import_file(tmp_path / "pets.parquet", "s3://mem/again.zarr", config=CONFIG)
    assert result.rows == 38
    assert content(embstore.open("s3://mem/again.zarr")) == content(store)
    again = embstore.import_file(tmp_path / "pets.parquet", embstore.Cache("s3://mem/V.cache"), config=CONFIG)
    assert (again.rows, len(embstore.Cache("s3://mem/V.cache"))) == (38, 1)


def test_columns_of_a_store_without_rows(buckets):
    store = embstore.open(URL, "a", config=CONFIG)
    store.set_columns({"split": []}, [], fill={"split": "train"})
    store.append(["a"], ROWS[:1])
    assert store.select().column("split").tolist() == ["train"]
    assert store.set_columns({"split": "train"}) == ()
    with pytest.raises(errors.ReadOnlyError, match="a change of split in stored rows is not possible in a bucket"):
        store.set_columns({"split": "test"})
    assert len(embstore.open(URL)) == 1


def test_archives_that_are_not_kept_are_fetched_once_for_each_pass(bucket, monkeypatch):
    """All rows take more memory than the archives that are kept."""
    with embstore.open(bucket.url, "a", config=CONFIG) as made:
        for start in range(0, 40, 5):
            made.append(KEYS[start : start + 5], ROWS[start : start + 5])
        nbytes = max(part.nbytes for part in session_of(made).snapshot.listing.parts)
    monkeypatch.setattr("embstore._engine.io.zip_folder._KEPT_NBYTES", 4 * nbytes)
    monkeypatch.setattr("embstore._engine.read.parts_snapshot._LOADED_NBYTES", 2 * nbytes)
    reader = embstore.open(bucket.url)
    bucket.requests.reset()
    assert (reader.select().to_numpy() == ROWS).all()
    fetched = bucket.requests.names("get")
    assert len(fetched) == len(set(fetched)) == 8
    assert len({part for part, _ in reader.snapshot.parts._columns}) <= 4
