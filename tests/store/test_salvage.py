"""Damage that `verify` finds byte by byte, and the rows that `salvage` keeps of it."""

import json
import resource
import shutil

import numpy as np
import pytest

import embstore
from embstore._engine.format.parse_record import record_from_json
from embstore._engine.format.values import checksum
from tests._helpers.crash import run_in_child

KEYS = [f"f{i}:{'dog' if i % 3 else 'cat'}" for i in range(99)]
ROWS = np.arange(99 * 4, dtype=np.float32).reshape(99, 4)
STRINGS = ("file_id", "class_names", "note")


def filled(path, keys=KEYS, **options):
    rows = np.resize(ROWS, (len(keys), 4))
    with embstore.open(path, "w-", config={"e": 1}, **options) as store:
        store.append(keys, rows, columns={"note": [f"note {key}" for key in keys], "n": np.arange(len(keys))})
        store.delete(keys[:2])
    return rows


def flip(file, place):
    data = bytearray(file.read_bytes())
    data[place] ^= 4
    file.write_bytes(data)


def assert_kept(path, left, keys=KEYS, rows=ROWS):
    with embstore.open(path, check="all") as store:
        assert list(store) == [keys[i] for i in left]
        np.testing.assert_array_equal(store.fetch([keys[i] for i in left]), rows[left])
        assert store.select().column("n").tolist() == left
    assert embstore.verify(path).ok


# -- the padding of a last chunk --------------------------------------------------------------


@pytest.mark.parametrize("place", ["padding", "checksum"])
@pytest.mark.parametrize("name", ["dead_rows", "class_code", "key_hash", "embedding", "n", *STRINGS])
def test_a_flipped_bit_beside_the_rows_loses_no_row(tmp_path, name, place):
    filled(tmp_path / "a.zarr")
    (file,) = (tmp_path / "a.zarr" / name).glob("c.*")
    flip(file, -1 if place == "checksum" else -9)
    with pytest.raises(embstore.errors.CorruptStoreError):
        assert_kept(tmp_path / "a.zarr", list(range(2, 99)))
    report = embstore.verify(tmp_path / "a.zarr")
    assert [problem.path for problem in report.problems] == [file]
    assert not len(report.rows_affected)
    assert "committed rows are sound" in str(report)
    saved = embstore.salvage(tmp_path / "a.zarr", tmp_path / "saved.zarr")
    assert (saved.rows_kept, saved.rows_lost.tolist(), saved.keys_lost) == (97, [], ())
    assert_kept(saved.path, list(range(2, 99)))


# -- arrays that can be made again ------------------------------------------------------------

MANY = [f"f{i}:{'cdog'[i * i % 7 % 4]}" for i in range(33_000)]  # two full chunks of class codes, eight of hashes


@pytest.mark.parametrize("how", ["rows", "chunk", "folder"])
@pytest.mark.parametrize("names", [("key_hash",), ("class_code",), ("key_hash", "class_code")], ids="+".join)
def test_hashes_and_class_codes_are_made_again(tmp_path, names, how):
    path = tmp_path / "a.zarr"
    rows = filled(path, MANY)
    for name in names:
        file = path / name / ("c.1.0" if name == "key_hash" else "c.1")
        {"rows": lambda f: flip(f, 100), "chunk": lambda f: f.unlink(), "folder": lambda f: shutil.rmtree(f.parent)}[
            how
        ](file)
    if "key_hash" in names and how == "folder":
        pytest.skip("a folder without key_hash is a store only by its record")
    affected = set(embstore.verify(path).rows_affected.tolist())
    codes = range(16_384, 32_768) if how != "folder" else range(33_000)
    hashes = range(4096, 8192)
    assert affected == set().union(*({"key_hash": hashes, "class_code": codes}[name] for name in names)) - {0, 1}
    saved = embstore.salvage(path, tmp_path / "saved.zarr")
    assert saved.rows_lost.tolist() == []
    assert_kept(saved.path, list(range(2, 33_000)), MANY, rows)


def test_a_class_code_whose_hash_is_lost_too_is_lost(tmp_path):
    path = tmp_path / "a.zarr"
    filled(path)
    flip(path / "key_hash" / "c.0.0", 100)
    flip(path / "class_code" / "c.0", 100)
    saved = embstore.salvage(path, tmp_path / "saved.zarr")
    assert (saved.rows_kept, len(saved.rows_lost)) == (0, 97)


# -- whole chunks in wrong places -------------------------------------------------------------


def swap(first, second):
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)


def read_first(snapshot, name):
    if snapshot.record.arrays[name].dtype == "string":
        snapshot.take_strings(name, np.arange(9))
    else:
        snapshot.span(name, 0, 9)


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("change", [swap, shutil.copy], ids=["swapped", "copied"])
@pytest.mark.parametrize("name", ["embedding", "file_id", "class_code", "key_hash", "note", "n"])
def test_a_chunk_in_the_place_of_another_is_found(tmp_path, name, change, compression):
    path = tmp_path / "a.zarr"
    rows = filled(path, MANY, chunk_bytes=65_536, compression=compression)
    assert embstore.verify(path).ok
    first, second = sorted((path / name).glob("c.*"))[:2]
    change(first, second)
    report = embstore.verify(path)
    assert path / name in [problem.path for problem in report.problems]
    assert len(report.rows_affected)
    for check in ("touched", "all"):
        with pytest.raises(embstore.errors.CorruptStoreError, match="not in their places"):
            read_first(embstore.open(path, check=check).snapshot, name)
    with embstore.open(path, "r+") as store:
        for write in (store.compact, lambda: store.erase([MANY[20]])):
            with pytest.raises(embstore.errors.CorruptStoreError):
                write()
    with pytest.raises(embstore.errors.CorruptStoreError):
        embstore.merge(tmp_path / "merged.zarr", path)
    saved = embstore.salvage(path, tmp_path / "saved.zarr")
    assert_kept(saved.path, sorted({*range(2, 33_000)} - {*saved.rows_lost.tolist()}), MANY, rows)


@pytest.mark.parametrize("compression", [None, "blosc"])
def test_the_digest_follows_each_change(tmp_path, compression):
    path = tmp_path / "a.zarr"
    with embstore.open(path, "w-", config={}, chunk_bytes=4096, compression=compression) as store:
        for start in range(0, 2000, 250):
            keys = MANY[start : start + 250]
            store.append(keys, np.resize(ROWS, (250, 4)), columns={"n": 1})
            assert embstore.verify(path).ok
        for change in (
            lambda: store.delete(MANY[300:310]),
            lambda: store.append(MANY[:9], ROWS[:9], columns={"n": 2}, if_exists="replace"),
            lambda: store.erase(MANY[600:900]),
            lambda: store.set_column("n", [], [], fill=3),
            lambda: store.add_field("more", list(store), np.zeros((len(store), 8), np.int16)),
            lambda: store.erase([MANY[1999]]),
            store.compact,
            lambda: store.append(
                ["z:z"], {"embedding": ROWS[:1], "more": np.zeros((1, 8), np.int16)}, columns={"n": 1}
            ),
        ):
            change()
            assert embstore.verify(path).ok
            record = store.snapshot.record
            assert {n for n, a in record.arrays.items() if a.digest} == {
                n for n, a in record.arrays.items() if a.length >= a.rows_per_chunk
            }
    assert embstore.merge(tmp_path / "merged.zarr", path).appended == len(store_keys(path))
    assert embstore.verify(tmp_path / "merged.zarr").ok


def store_keys(path):
    with embstore.open(path, check="all") as store:
        return list(store)


# -- the copy of the record, and forged records -----------------------------------------------


def test_each_flipped_bit_in_the_copy_of_the_record_is_found(tmp_path):
    path = tmp_path / "a.zarr"
    filled(path)
    file = path / "key_hash" / "zarr.json"
    data = file.read_bytes()
    missed = []
    for place in range(0, len(data), 17):
        for bit in (1, 4, 32):
            changed = bytearray(data)
            changed[place] ^= bit
            file.write_bytes(changed)
            if embstore.verify(path).ok:
                missed.append((place, bit))
    assert missed == []
    file.write_bytes(data)
    assert embstore.verify(path).ok


def forge(path, change):
    file = path / "zarr.json"
    document = json.loads(file.read_bytes())
    record = document["attributes"]["embstore"]
    change(record)
    record["checksum"] = checksum(record)
    record_from_json(record)
    file.write_text(json.dumps(document))


def claimed(rows):
    def change(record):
        record["rows"] = rows
        for name, array in record["arrays"].items():
            if name not in ("class_names", "dead_rows"):
                left = (rows - 1) % array["rows_per_chunk"] + 1
                size = np.dtype(array["dtype"]).itemsize * int(np.prod(array["shape"])) if name not in STRINGS else 0
                array |= {"length": rows, "digest": "0" * 16, "tail": {"nbytes": left * size, "crc32c": 0}}

    return change


def many_names(record):
    record["arrays"]["class_names"] |= {"length": 2**48, "digest": "0" * 16}


@pytest.mark.parametrize(
    "change", [claimed(2**48), claimed(2**32), claimed(2**24), many_names], ids=["2**48", "2**32", "2**24", "names"]
)
def test_a_record_that_claims_more_rows_than_its_files_hold(tmp_path, change):
    path = tmp_path / "a.zarr"
    filled(path)
    forge(path, change)

    def work():
        resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
        report = embstore.verify(path)
        assert not report.ok
        if change is not many_names:
            assert "the files hold at most" in str(report)
            with pytest.raises(embstore.errors.CorruptStoreError, match="the files hold at most"):
                embstore.salvage(path, tmp_path / "saved.zarr")

    assert run_in_child(work) == 0


def test_more_deleted_rows_than_rows_break_the_format(tmp_path):
    path = tmp_path / "a.zarr"
    filled(path)
    tail = {"nbytes": 800, "crc32c": 0}
    with pytest.raises(ValueError, match="dead_rows: expected at most 99 rows"):
        forge(path, lambda record: record["arrays"]["dead_rows"].update(length=100, tail=tail))
