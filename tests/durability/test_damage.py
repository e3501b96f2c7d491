"""Broken stores: each kind of damage is reported with its file; nothing wrong is ever served."""

import os
import shutil
import warnings

import numpy as np
import pytest

import embstore
from embstore.errors import CorruptStoreError, EmbstoreError, NotAStoreError, UnsupportedFormatError
from tests._helpers import kinds
from tests._helpers.crash import files_in, run_in_child, run_with_little_memory
from tests._helpers.damage import ABSURD, DAMAGES, damage, edit, flip, repair, sealed, setter
from tests._helpers.kinds import KINDS, assert_rows, key, put, rows_in, rows_of

KEYS = [key(i) for i in range(300)]
LIVE = [i for i in range(300) if i not in (7, 130)]
LATER = ["file_id", "class_code", "class_names", "key_hash", "dead_rows", "split", "score"]
ARRAYS = [("raw", name) for name in LATER] + [(kind, "embedding") for kind in KINDS] + [("ragged", "embedding_offsets")]
"""Every array of a raw store, and of the other kinds those that are not the same."""


@pytest.fixture
def kind(request):
    return getattr(request, "param", "raw")


@pytest.fixture
def broken(path, kind):
    """A store of 300 rows over several chunks, with columns and two deleted rows."""
    with kinds.new(path, kind, columns={"split": "string", "score": "int64"}) as store:
        put(store, range(300), columns={"split": ["train"] * 300, "score": np.arange(300)})
        store.delete([KEYS[7], KEYS[130]])
        assert store.snapshot.record.arrays["embedding"].chunks >= 3
    return path


each_kind = pytest.mark.parametrize("kind", KINDS, indirect=True)


def more(store, numbers):
    numbers = list(numbers)
    return put(store, numbers, columns={"split": ["train"] * len(numbers), "score": np.array(numbers)})


def live(*, without=()):
    return [i for i in LIVE if i not in without]


def served_right(path, numbers=LIVE, **options):
    """Read everything; without an error, all must be right. Return the error, if any."""
    try:
        store = embstore.open(path, **options)
        view = store.select()
        found = view.keys, view.column("split"), view.column("score").tolist()
        rows = {name: rows_in(view, name) for name in store.fields}
        fetched = {name: store.fetch(view.keys[::-1], name) for name in store.fields}
    except EmbstoreError as error:
        return error
    assert found[0] == [key(i) for i in numbers]
    assert set(found[1]) == {"train"}
    assert found[2] == list(numbers)
    for name, spec in store.fields.items():
        assert_rows(rows[name], rows_of(spec, numbers))
        assert_rows(fetched[name], list(rows_of(spec, numbers))[::-1])
    return None


def affected(path, array, chunk):
    """Return the live rows that have a value in a chunk."""
    record = embstore.open(path).snapshot.record
    size = record.arrays[array].rows_per_chunk
    if record.fields["embedding"].ragged:
        ends = np.cumsum([0, *map(len, rows_of(kinds.RAGGED, range(300)))])
        return [
            i for i in LIVE if ends[i] < ends[i + 1] and ends[i] < (chunk + 1) * size and ends[i + 1] > chunk * size
        ]
    return [i for i in LIVE if i // size == chunk]


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize(("kind", "array"), ARRAYS, indirect=["kind"])
def test_a_broken_chunk_is_reported_and_never_served(broken, array, how):
    """The first, the last and one between; with maps and without, and whichever checks are made."""
    files = sorted((broken / array).glob("c.*"), key=lambda file: int(file.name.split(".")[1]))
    for file in {files[0], files[len(files) // 2], files[-1]}:
        content = file.read_bytes()
        damage(file, how)
        for options in ({"check": "touched"}, {"check": "all"}, {"check": "all", "mapping": "never"}):
            error = served_right(broken, **options)
            assert isinstance(error, CorruptStoreError), (file, options, error)
            assert error.path == file
        report = embstore.verify(broken)
        assert [problem.path for problem in report.problems] == [file]
        assert not report.ok
        assert str(file) in str(report)
        repair(file, content)
    assert embstore.verify(broken).ok
    assert served_right(broken, check="all") is None


@each_kind
def test_salvage_keeps_the_rest(broken, tmp_path):
    lost = affected(broken, "embedding", 1)
    flip(broken / "embedding" / "c.1.0")
    report = embstore.verify(broken)
    assert report.rows_affected.tolist() == lost
    assert list(report.keys_affected) == [KEYS[i] for i in lost]
    saved = embstore.salvage(broken, tmp_path / "saved.zarr")
    left = live(without=lost)
    assert saved.rows_kept == len(left) > 0
    assert saved.rows_lost.tolist() == lost
    assert list(saved.keys_lost) == [KEYS[i] for i in lost]
    assert served_right(saved.path, left, check="all") is None
    assert embstore.verify(saved.path).ok
    assert not embstore.verify(broken).ok  # the broken one is left as it is


def test_salvage_of_a_sound_store_keeps_all(broken, tmp_path):
    saved = embstore.salvage(broken, tmp_path / "saved.zarr")
    assert saved.rows_kept == 298
    assert served_right(saved.path) is None
    with pytest.raises(embstore.errors.StoreExistsError):
        embstore.salvage(broken, tmp_path / "saved.zarr")


RECORDS = {
    "missing": None,
    "empty": b"",
    "garbled": b"\x00\xff\x13garbage{{{",
    "half": "half",
    "deep": b"[" * 100_000,
    "a list": b"[1, 2]",
    "a number": b"3",
}


@pytest.mark.parametrize(
    ("kind", "content"),
    [*(("raw", content) for content in RECORDS), *((kind, "half") for kind in KINDS if kind != "raw")],
    indirect=["kind"],
)
def test_a_broken_record_is_reported_and_salvaged_from_its_copy(broken, tmp_path, content):
    record = broken / "zarr.json"
    if RECORDS[content] is None:
        record.unlink()
    elif content == "half":
        os.truncate(record, record.stat().st_size // 2)
    else:
        record.write_bytes(RECORDS[content])
    with pytest.raises((CorruptStoreError, NotAStoreError)) as caught:
        embstore.open(broken)
    assert str(broken) in str(caught.value)
    if content in ("a list", "a number"):
        return  # a Zarr group of somebody else's, as far as can be told
    report = embstore.verify(broken)
    assert report.problems[0].path == record
    assert report.rows_affected.tolist() == []
    saved = embstore.salvage(broken, tmp_path / "saved.zarr")
    assert served_right(saved.path) is None


def test_a_store_without_any_record_is_reported(broken, tmp_path):
    (broken / "zarr.json").unlink()
    (broken / "key_hash" / "zarr.json").write_text("{}")
    assert not embstore.verify(broken).ok
    with pytest.raises(CorruptStoreError):
        embstore.salvage(broken, tmp_path / "saved.zarr")


@pytest.mark.parametrize("what", ABSURD)
def test_an_absurd_record_is_refused(broken, what):
    """Even with checksums that are right: no size is believed before it was checked."""
    edit(broken, ABSURD[what])

    def work():
        error = served_right(broken)
        assert isinstance(error, CorruptStoreError)
        assert str(broken) in str(error)

    run_with_little_memory(work)


def test_a_changed_record_is_refused(broken):
    edit(broken, setter("rows", value=299), seal=False)
    with pytest.raises(CorruptStoreError, match="checksum"):
        embstore.open(broken)


def test_a_newer_format_is_refused(broken):
    edit(broken, setter("format", value=2))
    with pytest.raises(UnsupportedFormatError) as caught:
        embstore.open(broken)
    assert caught.value.found == "format 2"
    edit(broken, setter("format", value=1))
    edit(broken, setter("requires", value=["ragged", "knotted"]))
    with pytest.raises(UnsupportedFormatError) as caught:
        embstore.open(broken)
    assert "knotted" in str(caught.value)
    assert "ragged" not in str(caught.value)


def test_a_store_with_a_journal_is_refused_with_the_remedy(broken):
    """Format 1 had a journal before its first release. Rows in one are nowhere else."""
    edit(broken, setter("requires", value=["journal"]))
    for mode in ("r", "r+"):
        with pytest.raises(UnsupportedFormatError, match=r"journal.*open the store for writing.*317788e") as caught:
            embstore.open(broken, mode)
        assert str(broken) in str(caught.value)


def test_strings_that_ask_for_much_are_refused(broken):
    """A chunk of a few bytes may claim billions of strings, or one of gigabytes."""
    for start, size in ((2**31, 8), (4096, 4 + 4 * 4096)):
        sealed(broken / "split" / "c.0", np.array([start, 2**32 - 1], "<u4").tobytes().ljust(size, b"\0"))
        assert isinstance(served_right(broken), CorruptStoreError)


def test_consolidating_with_zarr_does_no_harm(broken, caplog):
    import zarr

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(broken)
    assert served_right(broken) is None
    assert str(broken / "zarr.json") in caplog.text
    report = embstore.verify(broken)
    assert [problem.path for problem in report.problems] == [broken / "zarr.json"]
    with embstore.open(broken, "r+") as store:
        more(store, [300])
    assert embstore.verify(broken).ok


@each_kind
def test_a_store_copied_while_it_was_written(broken, tmp_path):
    """An old record over newer files, and a new record over older ones."""
    early, mixed, torn = (tmp_path / f"{name}.zarr" for name in ("early", "mixed", "torn"))
    shutil.copytree(broken, early)
    with embstore.open(broken, "r+") as store:
        more(store, range(300, 400))
    shutil.copytree(broken, mixed)
    shutil.copy(early / "zarr.json", mixed)
    assert served_right(mixed, check="all") is None  # the newer files hold all that the record names
    with embstore.open(mixed, "r+") as store:
        more(store, [500])
    assert served_right(mixed, [*LIVE, 500], check="all") is None
    assert embstore.verify(mixed).ok
    shutil.copytree(early, torn)
    shutil.copy(broken / "zarr.json", torn)
    with pytest.raises(CorruptStoreError):
        embstore.open(torn).select().to_numpy("embedding")
    assert not embstore.verify(torn).ok


@pytest.mark.parametrize(("kind", "array"), ARRAYS[len(LATER) :], indirect=["kind"])
def test_a_writer_does_not_seal_a_flipped_bit(broken, array):
    """Appending to a chunk that was damaged must not give it a checksum that is right."""
    store = embstore.open(broken, "r+")
    file = max((broken / array).glob("c.*"), key=lambda file: int(file.name.split(".")[1]))
    flip(file, place=8)
    with pytest.raises(CorruptStoreError):
        embstore.open(broken).select().to_numpy("embedding")
    with pytest.raises(CorruptStoreError) as caught:
        more(store, [301])
    assert caught.value.path == file
    assert not embstore.verify(broken).ok
    flip(file, place=8)
    more(store, [301])
    assert served_right(broken, [*LIVE, 301], check="all") is None


@pytest.mark.parametrize("mapping", ["auto", "never"])
@pytest.mark.parametrize("chunk", ["c.0.0", "c.1.0"])
@pytest.mark.parametrize("kind", ["raw", "ragged", "zstd"], indirect=True)
def test_a_compaction_does_not_seal_a_flipped_bit(broken, chunk, mapping):
    """Chunks that are full are not checked when a store is opened, but as they are copied."""
    file = broken / "embedding" / chunk
    flip(file)
    before = files_in(broken)
    with embstore.open(broken, "r+", mapping=mapping) as store, pytest.raises(CorruptStoreError) as caught:
        store.compact()
    assert caught.value.path == file
    assert files_in(broken) == before
    assert [problem.path for problem in embstore.verify(broken).problems] == [file]
    assert [place for place in broken.parent.iterdir() if place.is_dir()] == [broken]  # nor is half a copy left


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
        values = np.frombuffer(file.read_bytes()[:-4], "<u8").reshape(2, -1).copy()
        change(values)
        sealed(file, values.tobytes())

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

    def work():
        store = embstore.open(broken, "r+")

        def hook(operation, where, data):
            if operation == "rmtree":
                os._exit(0)

        steps.step_hook = hook
        store.set_column("split", list(store), ["new"] * 298)

    run_in_child(work)
    assert (broken / "split").exists()
    assert set(embstore.open(broken).select().column("split")) == {"new"}
    with embstore.open(broken, "r+") as store:
        store.delete(KEYS[:1])
    assert not (broken / "split").exists()


def test_what_others_put_there_stays(broken):
    (broken / "notes").mkdir()
    (broken / "notes" / "mine.txt").write_text("keep")
    with embstore.open(broken, "r+") as store:
        with pytest.raises(embstore.errors.StoreExistsError):
            store.set_column("notes", list(store), ["x"] * 298)
        store.delete(KEYS[:1])
    assert (broken / "notes" / "mine.txt").read_text() == "keep"


def test_columns_never_share_an_array(broken):
    with embstore.open(broken, "r+") as store:
        store.set_column("score.v2", list(store), np.zeros(298))
        store.set_column("score", list(store), np.ones(298))
        for compact in (False, True):
            if compact:
                store.compact()
            assert set(store.select().column("score.v2")) == {0.0}
            assert set(store.select().column("score")) == {1.0}


@pytest.mark.parametrize("kind", ["raw", "zstd", "ragged"], indirect=True)
@pytest.mark.parametrize("consolidated", [True, False])
def test_rows_of_a_small_append_are_there_for_zarr_at_once(path, kind, consolidated):
    """The moment `append` returns, and with metadata of the arrays alone; nothing is left behind by 50 of them."""
    import zarr

    with kinds.new(path, kind) as store:
        for i in range(50):
            put(store, [i])
            if i % 7:
                continue
            group = zarr.open_group(path, mode="r", use_consolidated=consolidated)
            assert group["file_id"].shape == (i + 1,)
            expected = rows_of(store.fields["embedding"], range(i + 1))
            if kind == "ragged":
                assert group["embedding_offsets"][:].tolist() == np.cumsum([0, *map(len, expected)]).tolist()
                expected = np.concatenate(expected)
            np.testing.assert_array_equal(group["embedding"][:], expected)
        files = [file for file in path.rglob("*") if file.is_file()]
        record = store.snapshot.record
    assert len(files) == 1 + sum(1 + array.chunks for array in record.arrays.values())
    assert {file.name for file in path.iterdir()} == {"zarr.json", *record.arrays}
    assert {file.name for file in path.parent.iterdir()} == {path.name, f"{path.name}.lock"}
