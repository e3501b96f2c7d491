"""Broken stores: each kind of damage is reported with its file; nothing wrong is ever served."""

import json
import os
import shutil
import warnings

import numpy as np
import pytest

import embstore
from embstore.errors import CorruptStoreError, EmbstoreError, NotAStoreError, UnsupportedFormatError
from tests._helpers.crash import run_in_child

ARRAYS = {
    "embedding": "c.1.0",
    "file_id": "c.0",
    "class_code": "c.0",
    "class_names": "c.0",
    "key_hash": "c.0.0",
    "dead_rows": "c.0",
    "split": "c.0",
    "score": "c.0",
}


@pytest.fixture
def broken(path, rng):
    """A store of 300 rows, in chunks of 128, with columns and two deleted rows: (path, keys, rows)."""
    keys = [f"file_{i:04d}:class_{i % 10}" for i in range(300)]
    rows = rng.standard_normal((300, 8)).astype(np.float32)
    with embstore.open(path, "w-", config={"a": 1}, chunk_bytes=4096) as store:
        store.append(keys, rows, columns={"split": ["train"] * 300, "score": np.arange(300)})
        store.delete([keys[7], keys[130]])
    return path, keys, rows


def good(keys):
    return [key for i, key in enumerate(keys) if i not in (7, 130)]


def flip(file, place=None, bit=0):
    data = bytearray(file.read_bytes())
    data[len(data) // 3 if place is None else place] ^= 1 << bit
    file.write_bytes(data)


def read_all(path, **options):
    """Everything that a reader can ask for."""
    store = embstore.open(path, **options)
    view = store.select()
    return view.keys, view.to_numpy(), view.column("split"), view.column("score"), store[view.keys]


def served_right(path, keys, rows, **options):
    """Read everything; what comes without an error must be right. Returns the error, if any."""
    try:
        found, values, split, score, fetched = read_all(path, **options)
    except EmbstoreError as error:
        return error
    where = {key: i for i, key in enumerate(keys)}
    places = [where[key] for key in found]
    np.testing.assert_array_equal(values, rows[places])
    np.testing.assert_array_equal(fetched, rows[places])
    assert set(split) == {"train"}
    assert score.tolist() == places
    assert found == good(keys)
    return None


@pytest.mark.parametrize("mapping", ["auto", "never"])
@pytest.mark.parametrize("array", ARRAYS)
def test_a_flipped_bit_is_found(broken, array, mapping):
    path, keys, rows = broken
    file = path / array / ARRAYS[array]
    flip(file)
    error = served_right(path, keys, rows, check="all", mapping=mapping)
    assert isinstance(error, CorruptStoreError)
    assert error.path == file
    report = embstore.verify(path)
    assert [problem.path for problem in report.problems] == [file]
    assert not report.ok
    assert str(file) in str(report)


@pytest.mark.parametrize("array", ARRAYS)
@pytest.mark.parametrize("damage", ["truncated", "emptied", "deleted", "grown", "a folder", "a link", "a fifo"])
def test_a_broken_chunk_is_reported(broken, array, damage):
    path, keys, rows = broken
    file = path / array / ARRAYS[array]
    if damage == "truncated":
        os.truncate(file, file.stat().st_size - 4096 if array == "embedding" else 9)
    elif damage == "emptied":
        os.truncate(file, 0)
    elif damage == "grown":
        with file.open("ab") as f:
            f.write(b"more")
    else:
        copy = path.parent / "copy"
        shutil.copy(file, copy)
        file.unlink()
        if damage == "a folder":
            file.mkdir()
        elif damage == "a link":
            file.symlink_to(copy)
        elif damage == "a fifo":
            os.mkfifo(file)
    for mapping in ("auto", "never"):
        error = served_right(path, keys, rows, mapping=mapping, check="all")
        assert isinstance(error, CorruptStoreError), (mapping, error)
        assert error.path == file
    report = embstore.verify(path)
    assert file in [problem.path for problem in report.problems]


def test_salvage_keeps_the_rest(broken, tmp_path):
    path, keys, rows = broken
    flip(path / "embedding" / "c.1.0")
    report = embstore.verify(path)
    assert report.rows_affected.tolist() == [i for i in range(128, 256) if i != 130]
    assert list(report.keys_affected) == [keys[i] for i in range(128, 256) if i != 130]
    saved = embstore.salvage(path, tmp_path / "saved.zarr")
    left = [i for i in range(300) if i not in (7, 130) and not 128 <= i < 256]
    assert saved.rows_kept == len(left)
    assert list(saved.keys_lost) == [keys[i] for i in range(128, 256) if i != 130]
    store = embstore.open(tmp_path / "saved.zarr", config={"a": 1}, check="all")
    assert list(store) == [keys[i] for i in left]
    np.testing.assert_array_equal(store.select().to_numpy(), rows[left])
    assert store.select().column("score").tolist() == left
    assert embstore.verify(tmp_path / "saved.zarr").ok
    assert not embstore.verify(path).ok  # the broken one is left as it is


def test_salvage_of_a_sound_store_keeps_all(broken, tmp_path):
    path, keys, _ = broken
    saved = embstore.salvage(path, tmp_path / "saved.zarr")
    assert saved.rows_kept == 298
    assert list(embstore.open(saved.path)) == good(keys)
    with pytest.raises(embstore.errors.StoreExistsError):
        embstore.salvage(path, tmp_path / "saved.zarr")


RECORDS = {
    "missing": None,
    "empty": b"",
    "garbled": b"\x00\xff\x13garbage{{{",
    "half": "half",
    "deep": b"[" * 100_000,
    "a list": b"[1, 2]",
    "a number": b"3",
}


@pytest.mark.parametrize("kind", RECORDS)
def test_a_broken_record_is_reported_and_salvaged_from_its_copy(broken, tmp_path, kind):
    path, keys, rows = broken
    record = path / "zarr.json"
    content = RECORDS[kind]
    if content is None:
        record.unlink()
    elif content == "half":
        os.truncate(record, record.stat().st_size // 2)
    else:
        record.write_bytes(content)
    with pytest.raises((CorruptStoreError, NotAStoreError)) as caught:
        embstore.open(path)
    assert str(path) in str(caught.value)
    if kind in ("a list", "a number"):
        return  # a Zarr group of somebody else's, as far as can be told
    report = embstore.verify(path)
    assert report.problems[0].path == record
    assert report.rows_affected.tolist() == []
    saved = embstore.salvage(path, tmp_path / "saved.zarr")
    store = embstore.open(saved.path, config={"a": 1})
    assert list(store) == good(keys)
    np.testing.assert_array_equal(store[keys[:3]], rows[:3])


def test_a_store_without_any_record_is_reported(broken, tmp_path):
    path, _, _ = broken
    (path / "zarr.json").unlink()
    (path / "key_hash" / "zarr.json").write_text("{}")
    assert not embstore.verify(path).ok
    with pytest.raises(CorruptStoreError):
        embstore.salvage(path, tmp_path / "saved.zarr")


def edit(path, change, *, seal=True):
    """Change the record, and seal it with checksums that are right."""
    from embstore._engine.format.values import checksum

    document = json.loads((path / "zarr.json").read_text())
    record = document["attributes"]["embstore"]
    change(record)
    if seal:
        record["checksum"] = checksum(record)
    (path / "zarr.json").write_text(json.dumps(document))


def setter(*names, value):
    def change(record):
        for name in names[:-1]:
            record = record[name]
        record[names[-1]] = value

    return change


ABSURD = {
    "rows": setter("rows", value=2**60),
    "negative rows": setter("rows", value=-1),
    "length": setter("arrays", "embedding", "length", value=2**40),
    "all lengths": lambda r: [
        r.update(rows=2**40),
        *(r["arrays"][n].update(length=2**40) for n in r["arrays"] if n not in ("class_names", "dead_rows")),
    ],
    "shape": setter("arrays", "embedding", "shape", value=[2**40, 2**40]),
    "zero shape": setter("arrays", "embedding", "shape", value=[0]),
    "chunk": setter("arrays", "embedding", "rows_per_chunk", value=2**31),
    "zero chunk": setter("arrays", "embedding", "rows_per_chunk", value=0),
    "dtype": setter("arrays", "embedding", "dtype", value="object"),
    "tail": setter("arrays", "file_id", "tail", "nbytes", value=2**31),
    "a path for a name": lambda r: r["arrays"].update({"../../etc": r["arrays"]["embedding"]}),
    "a number for the record": setter("arrays", value=3),
    "fields of nothing": setter("fields", value=None),
    "a column in another's array": setter("columns", "score", "array", value="class_code"),
    "a dtype that NumPy parses as Python": setter("fields", "embedding", "dtype", value="4*é"),
    "a dtype by another name": setter("fields", "embedding", "dtype", value="f4"),
    "a dtype of an array that is no text": setter("arrays", "embedding", "dtype", value=[]),
    "provenance that is no object": setter("provenance", value=[]),
    "provenance under no name": setter("provenance", value={"..": "x"}),
    "options under no name": setter("options", value={"/": 1}),
    "an option that is no number": setter("options", value={"chunk_bytes": "x"}),
    "a huge config": setter("config", value={"a": 10**400}),
}


def _named(place, name):
    """Return a change that puts a forged name at one of the places of a record whose names become paths."""

    def change(record):
        score = record["arrays"]["score"]
        if place == "dropped":
            record["dropped"] = [name]
        elif place == "erasing":
            record["erasing"] = {name: score["tail"]}
        elif place == "a column's array":
            record["columns"]["score"]["array"] = name
            record["arrays"][name] = record["arrays"].pop("score")
        elif place == "a further array":
            record["arrays"][name] = score
        else:
            record[place][name] = record[place].pop("embedding" if place == "fields" else "score")
            record["arrays"][name] = record["arrays"].pop("embedding" if place == "fields" else "score")

    return change


PLACES_OF_NAMES = ["dropped", "erasing", "a column's array", "a further array", "fields", "columns"]
FORGED_NAMES = ["../victim", "/victim", "victim/../../victim", "..", ".", "", "\0", "embedding/c.0.0", "a" * 300]


@pytest.mark.parametrize("name", FORGED_NAMES)
@pytest.mark.parametrize("place", PLACES_OF_NAMES)
def test_a_path_in_place_of_a_name_is_refused(broken, place, name):
    """With a checksum that is right. A path in `dropped` made the next writer remove that folder."""
    path, _, _ = broken
    victim = path.parent / "victim"
    victim.mkdir()
    if name == "/victim":
        name = str(victim)
    edit(path, _named(place, name))
    for mode in ("r", "r+"):
        with pytest.raises(CorruptStoreError, match="the commit record breaks the format"):
            embstore.open(path, mode)
    assert not embstore.verify(path).ok
    assert victim.is_dir()


RESERVED_NAMES = ["zarr.json", "ZARR.json", "index", "__init__", "ends.", "class_names", "Key_Hash"]


@pytest.mark.parametrize("name", RESERVED_NAMES)
@pytest.mark.parametrize("place", [place for place in PLACES_OF_NAMES if place != "erasing"])
def test_a_reserved_name_is_refused(broken, place, name):
    path, _, _ = broken
    edit(path, _named(place, name))
    with pytest.raises(CorruptStoreError, match="the commit record breaks the format"):
        embstore.open(path, "r+")


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("dropped", "embedding"),
        ("dropped", "Embedding"),
        ("dropped", "SCORE"),
        ("a further array", "Embedding"),
        ("a further array", "SCORE"),
    ],
)
def test_an_array_of_the_store_is_not_dropped_or_named_twice(broken, place, name):
    path, _, _ = broken
    edit(path, _named(place, name))
    with pytest.raises(CorruptStoreError, match="the commit record breaks the format"):
        embstore.open(path, "r+")
    assert (path / "embedding").is_dir()


@pytest.mark.parametrize("requires", [[[]], [{}], [None], [1], {}, "ragged", None])
def test_features_that_are_no_names_are_refused(broken, requires):
    path, _, _ = broken
    edit(path, setter("requires", value=requires))
    with pytest.raises(UnsupportedFormatError):
        embstore.open(path)


@pytest.mark.parametrize("name", ["c.²", "c.x", "c.", "c.²²"])
def test_a_file_that_only_looks_like_a_chunk_blocks_no_writer(broken, name):
    """`int("²")` raises though `"²".isdigit()` is true: no writer could recover the store."""
    path, keys, _ = broken
    (path / "score" / name).write_bytes(b"")
    with embstore.open(path, "r+") as store:
        store.delete([keys[1]])
        assert len(store) == 297
    assert (path / "score" / name).exists()


@pytest.mark.parametrize("kind", ABSURD)
def test_an_absurd_record_is_refused(broken, kind):
    """Even with checksums that are right: no size is believed before it was checked."""
    path, _, _ = broken
    edit(path, ABSURD[kind])

    def work():
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (2**36, 2**36))
        with pytest.raises(CorruptStoreError) as caught:
            read_all(path)
        assert str(path) in str(caught.value)

    assert run_in_child(work) == 0


def test_a_changed_record_is_refused(broken):
    path, _, _ = broken
    edit(path, setter("rows", value=299), seal=False)
    with pytest.raises(CorruptStoreError, match="checksum"):
        embstore.open(path)


def test_a_newer_format_is_refused(broken):
    path, _, _ = broken
    edit(path, setter("format", value=2))
    with pytest.raises(UnsupportedFormatError) as caught:
        embstore.open(path)
    assert caught.value.found == "format 2"
    edit(path, setter("format", value=1))
    edit(path, setter("requires", value=["ragged", "knotted"]))
    with pytest.raises(UnsupportedFormatError) as caught:
        embstore.open(path)
    assert "knotted" in str(caught.value)
    assert "ragged" not in str(caught.value)


def test_strings_that_ask_for_much_are_refused(broken):
    """A chunk of a few bytes may claim billions of strings, or one of gigabytes."""
    import struct

    from embstore._engine.format.values import crc32c

    path, _, _ = broken
    for body in (
        struct.pack("<II", 2**31, 2**31),
        struct.pack("<I", 4096) + struct.pack("<I", 2**32 - 1) + bytes(4 * 4095),
    ):
        (path / "split" / "c.0").write_bytes(body + struct.pack("<I", crc32c(body)))
        with pytest.raises(CorruptStoreError):
            read_all(path)


def test_consolidating_with_zarr_does_no_harm(broken, caplog):
    import zarr

    path, keys, rows = broken
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(path)
    assert served_right(path, keys, rows) is None
    assert str(path / "zarr.json") in caplog.text
    report = embstore.verify(path)
    assert [problem.path for problem in report.problems] == [path / "zarr.json"]
    with embstore.open(path, "r+") as store:
        store.append(["new:c"], rows[:1], columns={"split": "train", "score": 300})
    assert embstore.verify(path).ok


def test_a_store_copied_while_it_was_written(broken, tmp_path):
    """An old record over newer files, and a new record over older ones."""
    path, keys, rows = broken
    early = tmp_path / "early.zarr"
    shutil.copytree(path, early)
    more = [f"more_{i}:class_1" for i in range(100)]
    with embstore.open(path, "r+") as store:
        store.append(more, rows[:100], columns={"split": "train", "score": np.arange(100)})
    mixed = tmp_path / "mixed.zarr"
    shutil.copytree(path, mixed)
    shutil.copy(early / "zarr.json", mixed / "zarr.json")
    assert served_right(mixed, keys, rows) is None  # the newer files hold all that the record names
    shutil.copytree(early, tmp_path / "torn.zarr")
    shutil.copy(path / "zarr.json", tmp_path / "torn.zarr" / "zarr.json")
    with pytest.raises(CorruptStoreError):
        embstore.open(tmp_path / "torn.zarr")
    assert not embstore.verify(tmp_path / "torn.zarr").ok


def test_a_writer_does_not_seal_a_flipped_bit(broken):
    """Appending to a chunk that was damaged must not give it a checksum that is right."""
    path, _, rows = broken
    flip(path / "embedding" / "c.2.0", place=5)
    with pytest.raises(CorruptStoreError):
        embstore.open(path, "r+")
    flip(path / "embedding" / "c.2.0", place=5)
    store = embstore.open(path, "r+")
    flip(path / "embedding" / "c.2.0", place=5)
    with pytest.raises(CorruptStoreError) as caught:
        store.append(["new:c"], rows[:1], columns={"split": "train", "score": 300})
    assert caught.value.path == path / "embedding" / "c.2.0"
    with pytest.raises(CorruptStoreError):
        embstore.open(path)


@pytest.mark.parametrize("mapping", ["auto", "never"])
@pytest.mark.parametrize("chunk", ["c.0.0", "c.1.0"])
def test_a_compaction_does_not_seal_a_flipped_bit(broken, chunk, mapping):
    """Chunks that are full are not checked when a store is opened, but as they are copied."""
    path, _, _ = broken
    file = path / "embedding" / chunk
    flip(file)
    before = {place: place.read_bytes() for place in path.rglob("*") if place.is_file()}
    with embstore.open(path, "r+", mapping=mapping) as store, pytest.raises(CorruptStoreError) as caught:
        store.compact()
    assert caught.value.path == file
    assert {place: place.read_bytes() for place in path.rglob("*") if place.is_file()} == before
    assert [problem.path for problem in embstore.verify(path).problems] == [file]
    assert [place for place in path.parent.iterdir() if place.is_dir()] == [path]  # nor is half a copy left


class TestIndex:
    """The index is derived: whatever is in it, answers are those of key_hash."""

    @pytest.fixture
    def indexed(self, path, monkeypatch):
        monkeypatch.setattr("embstore._engine.write.index_file._LEAST_RUN", 100)
        keys = [f"f{i}:c" for i in range(600)]
        with embstore.open(path, "w-", config={}) as store:
            store.append(keys, np.arange(600, dtype=np.float32)[:, None])
            store.append([f"late{i}:c" for i in range(20)], np.arange(20, dtype=np.float32)[:, None])
        runs = list((path / "index").glob("keys.*"))
        assert len(runs) == 1
        return path, keys, runs[0] / "c.0.0"

    def rewrite(self, file, change):
        from embstore._engine.format.values import crc32c

        values = np.frombuffer(file.read_bytes()[:-4], "<u8").reshape(2, -1).copy()
        change(values)
        body = values.tobytes()
        file.write_bytes(body + crc32c(body).to_bytes(4, "little"))

    def check(self, path, keys):
        store = embstore.open(path)
        assert store.rows_of(keys).tolist() == list(range(600))
        assert store.missing([*keys, "other:c"]) == ["other:c"]
        assert store.rows_of(["late7:c"]).tolist() == [607]

    def test_is_used(self, indexed):
        path, keys, _ = indexed
        self.check(path, keys)
        assert embstore.verify(path).ok

    @pytest.mark.parametrize("place", [3, 4 * 600 + 1, -2])
    def test_with_a_flipped_bit(self, indexed, place, caplog):
        path, keys, file = indexed
        flip(file, place=place, bit=6)
        self.check(path, keys)
        assert [problem.path for problem in embstore.verify(path).problems] == [file]
        assert str(path) in caplog.text

    def test_with_rows_of_others(self, indexed, caplog):
        path, keys, file = indexed
        self.rewrite(file, lambda values: values[1].sort())
        self.check(path, keys)
        assert "index does not match key_hash (its hashes differ); rebuilding it" in caplog.text
        assert not embstore.verify(path).ok

    def test_with_rows_that_are_not_there(self, indexed):
        path, keys, file = indexed
        self.rewrite(file, lambda values: values[1].fill(2**63 + 1))
        self.check(path, keys)

    @pytest.mark.parametrize("size", [0, 3, 1000])
    def test_cut_short(self, indexed, size):
        path, keys, file = indexed
        os.truncate(file, size)
        self.check(path, keys)
        assert not embstore.verify(path).ok

    @pytest.mark.parametrize("rows", ["0", "00", "000000000000000"])
    def test_without_rows(self, indexed, rows):
        path, keys, file = indexed
        file.write_bytes(bytes(4))  # the checksum of nothing
        file.parent.rename(file.parent.with_suffix(f".{rows}"))
        self.check(path, keys)
        assert embstore.verify(path).ok

    def test_of_another_store(self, indexed, tmp_path):
        path, keys, file = indexed
        other = tmp_path / "other.zarr"
        with embstore.open(other, "w-", config={}) as store:
            store.append([f"x{i}:c" for i in range(600)], np.zeros((600, 1), np.float32))
        theirs = next((other / "index").glob("keys.*")) / "c.0.0"
        shutil.copy(theirs, file)
        self.check(path, keys)

    def test_removed(self, indexed):
        path, keys, _ = indexed
        shutil.rmtree(path / "index")
        self.check(path, keys)

    def test_with_a_stray_file_beside_it(self, indexed):
        path, keys, _ = indexed
        (path / "index" / ".DS_Store").write_text("x")
        with embstore.open(path, "r+") as store:
            store.append(["one:c"], np.zeros((1, 1), np.float32))
        self.check(path, keys)
        assert (path / "index" / ".DS_Store").exists()

    def test_of_an_erased_store_is_gone(self, indexed):
        path, keys, file = indexed
        with embstore.open(path, "r+") as store:
            store.erase(keys[:3])
            assert store.missing(keys[:5]) == keys[:3]
        assert not file.exists()
        assert embstore.verify(path).ok


@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: data.decode().encode("utf-16"),
        lambda data: data.decode().encode("utf-16-le"),
        lambda data: data.decode().encode("utf-32"),
        lambda data: data.replace(b'"attributes":', b'"attributes":{},"attributes":', 1),
        lambda data: data.replace(b'"zarr_format":3', b'"zarr_format":3,"zarr_format":3', 1),
    ],
)
def test_json_that_the_format_forbids(path, change):
    """In another encoding, with a byte order mark, or with a name twice: programs would read different records."""
    embstore.open(path, "w-", config={"a": 1}).append(["1:c"], np.ones((1, 3), np.float32))
    file = path / "zarr.json"
    data = file.read_bytes()
    changed = change(data)
    assert changed != data
    file.write_bytes(changed)
    with pytest.raises(embstore.errors.CorruptStoreError, match="JSON in UTF-8 with each name once"):
        embstore.open(path)
    assert not embstore.verify(path).ok


def test_a_replaced_column_is_gone_after_the_next_writer(broken):
    """Its array was dropped by the record, whether or not the writer lived to remove it."""
    from embstore._engine.io import steps

    path, keys, _ = broken

    def work():
        store = embstore.open(path, "r+")

        def hook(operation, where, data):
            if operation == "rmtree":
                os._exit(0)

        steps.step_hook = hook
        store.set_column("split", good(keys), ["new"] * 298)

    run_in_child(work)
    assert (path / "split").exists()
    assert set(embstore.open(path).select().column("split")) == {"new"}
    with embstore.open(path, "r+") as store:
        store.delete([keys[0]])
    assert not (path / "split").exists()


def test_what_others_put_there_stays(broken):
    path, keys, _ = broken
    (path / "notes").mkdir()
    (path / "notes" / "mine.txt").write_text("keep")
    with embstore.open(path, "r+") as store:
        with pytest.raises(embstore.errors.StoreExistsError):
            store.set_column("notes", good(keys), ["x"] * 298)
        store.delete([keys[0]])
    assert (path / "notes" / "mine.txt").read_text() == "keep"


def test_columns_never_share_an_array(broken):
    path, keys, _ = broken
    with embstore.open(path, "r+") as store:
        store.set_column("score.v2", good(keys), np.zeros(298))
        store.set_column("score", good(keys), np.ones(298))
        assert set(store.select().column("score.v2")) == {0.0}
        assert set(store.select().column("score")) == {1.0}
        store.compact()
        assert set(store.select().column("score.v2")) == {0.0}
        assert set(store.select().column("score")) == {1.0}
