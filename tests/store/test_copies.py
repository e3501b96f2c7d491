"""Copies of stores in buckets: `push`, `pull` and `tidy`."""

import json
import os
import shutil
from datetime import timedelta

import numpy as np
import pytest

import embstore
from embstore import FieldSpec, Ragged
from embstore._engine.io import object_store, steps
from embstore._engine.write import fold_parts
from embstore.errors import (
    ConfigMismatchError,
    CopyRefusedError,
    CorruptStoreError,
    KeysExistError,
    NotAStoreError,
    StoreChangedError,
    StoreLockedError,
)
from embstore.store import push as push_module
from tests._helpers.crash import KilledError

obstore = pytest.importorskip("obstore")
helpers = pytest.importorskip("tests._helpers.buckets")
buckets, objects = helpers.buckets, helpers.objects

URL = "s3://mem/pets.zarr"
CONFIG = {"encoder": "demo"}


def keys(name, count=6):
    return [f"{name}{i}:c{i % 3}" for i in range(count)]


def rows(start, count=6):
    return np.arange(start, start + 3 * count, dtype=np.float32).reshape(count, 3)


def shared(*names, url=URL):
    """Make a store in a bucket, with a part for each name."""
    store = embstore.open(url, "a", config=CONFIG)
    for place, name in enumerate(names):
        store.append(keys(name), rows(100 * place))
    return store


def content(store):
    """Return the rows of a store by key."""
    return {key: np.asarray(store[key]).tolist() for key in store.select().keys}


def local(path, *names, origins=None, **options):
    with embstore.open(path, "a", config=CONFIG, **options) as store:
        for place, name in enumerate(names):
            store.append(keys(name), rows(100 * place))
    return path


def files(mirror):
    return {path for path in mirror.rglob("*") if path.is_file()}


def parts_in(mirror):
    return {path.name for path in (mirror / "parts").iterdir()}


@pytest.fixture
def asked(monkeypatch, buckets):
    """Return the list of the objects that are fetched."""
    found = []
    for name in ("get", "read"):
        was = getattr(object_store.ObjectStore, name)

        def noted(self, key, *args, was=was, **options):
            found.append(key)
            return was(self, key, *args, **options)

        monkeypatch.setattr(object_store.ObjectStore, name, noted)
    return found


@pytest.fixture
def mirror(tmp_path):
    return tmp_path / "pets.mirror"


# -- pull -------------------------------------------------------------------------------------


def test_a_mirror_has_the_rows_and_is_mapped(asked, mirror):
    store = shared("a", "b")
    store.delete(["a0:c0"])
    done = embstore.pull(URL, mirror)
    assert (done.path, done.rows, done.parts, done.fetched, done.removed) == (mirror, 11, 2, 2, 0)
    assert done.nbytes == sum(part.nbytes for part in store.snapshot.listing.parts)
    with embstore.open(mirror) as copy:
        assert content(copy) == content(store)
        assert copy.select(classes="c1").keys == store.select(classes="c1").keys
    assert (mirror / "zarr.json").read_bytes() == bytes(obstore.get(_bucket(), "pets.zarr/zarr.json").bytes())


def _bucket():
    return object_store._made("s3", "s3://mem/", {})[0]


def test_nothing_new_is_one_request(asked, mirror):
    shared("a", "b").delete(["b1:c1"])
    embstore.pull(URL, mirror)
    before = {path: path.stat().st_mtime_ns for path in files(mirror)}
    asked.clear()
    done = embstore.pull(URL, mirror)
    assert asked == ["zarr.json"]
    assert (done.fetched, done.nbytes, done.rows) == (0, 0, 11)
    assert {path: path.stat().st_mtime_ns for path in files(mirror)} == before


def test_only_new_parts_are_fetched(asked, mirror):
    store = shared("a", "b")
    embstore.pull(URL, mirror)
    store.append(keys("c"), rows(7))
    asked.clear()
    assert embstore.pull(URL, mirror).fetched == 1
    assert len(asked) == 2
    assert content(embstore.open(mirror)) == content(store)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", ["ragged", "compressed", "columns"])
def test_all_kinds_of_stores(buckets, mirror, monkeypatch, kind, zipped):
    if not zipped:
        monkeypatch.setattr("embstore._engine.write.build_part.MOST_ZIPPED", 0)
    fields = {"tokens": FieldSpec(shape=(2,), ragged=True), "mean": FieldSpec(shape=(3,))}
    options = {"ragged": {"fields": fields}, "compressed": {"compression": "zstd"}, "columns": {"chunk_bytes": 4096}}
    columns = {"note": "string", "n": "int64"}
    store = embstore.open(URL, "a", config=CONFIG, columns=columns, **options[kind])
    for start in (0, 10):
        values = rows(start, 600)
        if kind == "ragged":
            tokens = Ragged(np.arange(2400, dtype=np.float32).reshape(1200, 2), np.arange(0, 1201, 2))
            values = {"tokens": tokens, "mean": values}
        store.append(keys(f"k{start}-", 600), values, columns={"note": "ü" * 3, "n": range(600)})
    done = embstore.pull(URL, mirror)
    assert done.nbytes == sum(part.nbytes for part in store.snapshot.listing.parts)
    copy = embstore.open(mirror, check="all")
    for field in store.fields:
        for key in ("k0-3:c0", "k10-599:c2"):
            np.testing.assert_array_equal(_row(copy, key, field), _row(store, key, field))
    assert copy.select().column("note")[0] == "üüü"
    assert [name for name in parts_in(mirror) if name.startswith(".")] == []


def _row(store, key, field):
    found = store.take(store.rows_of([key]), field)
    return found.values if hasattr(found, "values") else found


def test_parts_that_went_are_removed_and_readers_notice(buckets, mirror):
    store = shared("a", "b")
    embstore.pull(URL, mirror)
    reader, opened = embstore.open(mirror), embstore.open(mirror)
    first = content(opened)
    store.delete(["a1:c1"])
    store.compact()
    done = embstore.pull(URL, mirror)
    assert (done.fetched, done.removed, done.parts) == (1, 2, 1)
    assert len(parts_in(mirror)) == 1
    assert os.listdir(mirror / "dead") == []
    with pytest.raises(StoreChangedError):
        reader["b1:c1"]
    try:
        assert content(opened) == first  # it is mapped
    except StoreChangedError:
        assert opened.refresh()
    assert reader.refresh()
    assert content(reader) == content(store)


def test_erased_rows_leave_the_mirror_first(asked, mirror, monkeypatch):
    store = shared("a", "b")
    embstore.pull(URL, mirror)
    withdrawn = np.array([100, 101, 102], np.float32).tobytes()
    assert any(withdrawn in path.read_bytes() for path in files(mirror))
    store.erase(["b0:c0"])
    store.append(keys("new"), rows(900))
    with monkeypatch.context() as broken:
        broken.setattr("embstore.store.pull._Pull._fetch", lambda *_: (_ for _ in ()).throw(KilledError))
        with pytest.raises(KilledError):
            embstore.pull(URL, mirror)
    assert not any(withdrawn in path.read_bytes() for path in files(mirror))
    with pytest.raises(NotAStoreError, match="pull again"):
        embstore.open(mirror)
    embstore.pull(URL, mirror)
    assert content(embstore.open(mirror)) == content(store)
    assert not any(withdrawn in path.read_bytes() for path in files(mirror))


def _changed():
    """Make a store, and return the functions that change it, one kind of change each."""
    return {
        "first": lambda store: None,
        "append": lambda store: store.append(keys("n"), rows(500)),
        "delete": lambda store: store.delete(["a1:c1"]),
        "compact": lambda store: (store.delete(["a2:c2"]), store.compact()),
        "erase": lambda store: store.erase(["a0:c0"]),
    }


@pytest.mark.parametrize("change", _changed())
def test_killed_at_each_step(asked, tmp_path, change):
    """The next pull ends it and fetches no whole part twice. Until then the mirror has a commit, or is not opened."""
    store = shared(*("a", "b")[: 1 + (change == "first")])
    before = content(store)
    base = tmp_path / "base.mirror"
    if change != "first":
        embstore.pull(URL, base)
    _changed()[change](store)
    after = content(store)
    seen = set()
    mirror = tmp_path / "m"
    for step in range(10_000):
        shutil.rmtree(mirror, ignore_errors=True)
        if base.exists():
            shutil.copytree(base, mirror)
        count = 0

        def hook(operation, path, data, step=step):
            nonlocal count
            if not path.startswith(str(mirror)) or operation in ("create", "write"):
                return
            if count == step:
                raise KilledError
            count += 1

        steps.step_hook = hook
        try:
            embstore.pull(URL, mirror)
            ended = True
        except KilledError:
            ended = False
        finally:
            steps.step_hook = None
        if not ended:
            try:
                with embstore.open(mirror) as found:
                    assert content(found) in (before, after)
                    seen.add("readable")
            except NotAStoreError:
                seen.add("not")
            whole = {name for name in (parts_in(mirror) if (mirror / "parts").exists() else ()) if name[0] != "."}
            asked.clear()
            embstore.pull(URL, mirror)
            fetched = {name.split("/")[-1].removesuffix(".zip") for name in asked if name.endswith(".zip")}
            assert not whole & fetched
        assert content(embstore.open(mirror)) == after
        names = {part.name.removesuffix(".zip") for part in store.snapshot.listing.parts}
        assert parts_in(mirror) == names
        assert {path.name for path in mirror.iterdir()} == {"zarr.json", "parts", "dead"}
        if ended:
            break
    assert step > 3
    assert "readable" in seen
    assert ("not" in seen) == (change in ("first", "erase"))


def test_whole_files_of_a_stopped_pull_are_kept(asked, mirror, monkeypatch):
    monkeypatch.setattr("embstore._engine.write.build_part.MOST_ZIPPED", 0)
    monkeypatch.setattr("embstore.store.pull._WRITTEN_NBYTES", 0)
    store = embstore.open(URL, "a", config=CONFIG, chunk_bytes=4096)
    store.append(keys("a", 2000), rows(0, 2000))
    moves = []

    def hook(operation, path, data):
        if operation == "rename":
            moves.append(path)
        if len(moves) == 6:
            raise KilledError

    steps.step_hook = hook
    with pytest.raises(KilledError):
        embstore.pull(URL, mirror)
    steps.step_hook = None
    kept = {path.relative_to(next((mirror / "parts").iterdir())) for path in (mirror / "parts").rglob("c.*")}
    assert kept
    damaged = next((mirror / "parts").rglob("c.*"))
    asked.clear()
    embstore.pull(URL, mirror)
    assert not {str(path) for path in kept} & {name.partition("/")[2].partition("/")[2] for name in asked}
    assert len(embstore.open(mirror)) == 2000
    assert damaged


def test_files_that_a_power_cut_tore_are_fetched_again(buckets, mirror, monkeypatch):
    monkeypatch.setattr("embstore._engine.write.build_part.MOST_ZIPPED", 0)
    store = shared("a")
    embstore.pull(URL, mirror)
    (part,) = (mirror / "parts").iterdir()
    (mirror / "zarr.json").unlink()
    chunk = part / "embedding" / "c.0.0"
    chunk = chunk if chunk.exists() else next(part.rglob("c.0.0"))
    chunk.write_bytes(bytes(chunk.stat().st_size))
    part.rename(part.with_name(f".{part.name}.partial"))
    embstore.pull(URL, mirror)
    assert content(embstore.open(mirror)) == content(store)


def test_parts_replaced_during_a_pull_are_looked_up_again(buckets, mirror, monkeypatch):
    store = shared("a", "b")
    from embstore.store.pull import _Pull

    was, begun = _Pull._fetch_missing, []

    def beaten(self, root, listing):
        if not begun:
            begun.append(1)
            store.compact()
            embstore.tidy(URL, older_than=0)
        was(self, root, listing)

    monkeypatch.setattr(_Pull, "_fetch_missing", beaten)
    embstore.pull(URL, mirror)
    assert content(embstore.open(mirror)) == content(store)


@pytest.mark.parametrize("damage", ["missing", "cut", "exchanged", "flipped"])
def test_a_part_that_is_not_as_committed(buckets, mirror, monkeypatch, damage):
    monkeypatch.setattr("time.sleep", lambda _: None)
    shared("a", "b")
    bucket = _bucket()
    first, second = sorted(name for name in objects(bucket) if name.endswith(".zip"))
    data = bytes(obstore.get(bucket, first).bytes())
    flipped = bytearray(data)
    flipped[data.index(rows(0).tobytes()[4:24])] ^= 1
    if damage == "missing":
        obstore.delete(bucket, first)
    else:
        other = bytes(obstore.get(bucket, second).bytes())
        obstore.put(bucket, first, {"cut": data[:-9], "exchanged": other, "flipped": bytes(flipped)}[damage])
    with pytest.raises(CorruptStoreError):
        embstore.pull(URL, mirror)
    assert not (mirror / "zarr.json").exists()


@pytest.mark.parametrize("place", ["another", "earlier", "a store", "files", "a file"])
def test_what_is_no_mirror_of_the_store(buckets, tmp_path, place):
    shared("a")
    mirror = tmp_path / "m"
    if place == "another":
        shared("b", url="s3://mem/other.zarr")
        embstore.pull("s3://mem/other.zarr", mirror)
    elif place == "earlier":
        record = bytes(obstore.get(_bucket(), "pets.zarr/zarr.json").bytes())
        shared("b")
        embstore.pull(URL, mirror)
        obstore.put(_bucket(), "pets.zarr/zarr.json", record)
    elif place == "a store":
        local(mirror, "a")
    elif place == "files":
        mirror.mkdir()
        (mirror / "thesis.tex").write_text("x")
    else:
        mirror.write_text("x")
    before = {path: path.read_bytes() for path in files(tmp_path) if path.suffix != ".lock"}
    with pytest.raises(CopyRefusedError, match=r"pets\.zarr"):
        embstore.pull(URL, mirror)
    assert {path: path.read_bytes() for path in files(tmp_path) if path.suffix != ".lock"} == before


def test_one_pull_at_a_time(buckets, mirror):
    from embstore._engine.io.locks import lock

    shared("a")
    with lock(mirror, timeout=0), pytest.raises(StoreLockedError):
        embstore.pull(URL, mirror, lock_timeout=0)


def test_pull_of_nothing(buckets, mirror):
    with pytest.raises(NotAStoreError):
        embstore.pull(URL, mirror)
    assert not mirror.exists()
    shared()
    assert embstore.pull(URL, mirror).rows == 0
    assert len(embstore.open(mirror)) == 0


def test_progress_counts_rows(buckets, mirror, tmp_path):
    calls = []
    path = local(tmp_path / "s.zarr", "a", "b")
    embstore.push(path, URL, progress=lambda *seen: calls.append(seen))
    assert calls == [(12, 12)]
    calls.clear()
    embstore.pull(URL, mirror, progress=lambda *seen: calls.append(seen))
    assert calls == [(12, 12)]


# -- push -------------------------------------------------------------------------------------


def test_push_makes_the_store_and_then_adds_new_keys(buckets, tmp_path, monkeypatch):
    monkeypatch.setattr(push_module, "_PART_NBYTES", 60)  # five rows
    path = local(tmp_path / "s.zarr", "a", "b", chunk_bytes=2**20)
    before = {file: file.read_bytes() for file in files(path)}
    done = embstore.push(path, URL)
    assert (done.appended, done.skipped, done.replaced, done.commits) == (12, 0, 0, 3)
    store = embstore.open(URL)
    assert len(store.snapshot.listing.parts) == 3
    assert content(store) == content(embstore.open(path))
    done = embstore.push(path, URL)
    assert (done.appended, done.skipped, done.commits) == (0, 12, 0)
    embstore.open(path, "r+").append(keys("c"), rows(5))
    assert embstore.push(path, URL).appended == 6
    assert content(embstore.open(URL)) == content(embstore.open(path))
    with pytest.raises(KeysExistError):
        embstore.push(path, URL, if_exists="error")
    assert embstore.push(path, URL, if_exists="replace").replaced == 18
    assert files(path) >= before.keys()
    assert not (path / "pushed.json").exists()


def test_a_stopped_push_goes_on(buckets, tmp_path, monkeypatch):
    monkeypatch.setattr(push_module, "_PART_NBYTES", 24)
    path = local(tmp_path / "s.zarr", "a", "b")
    expected = content(embstore.open(path))
    was = object_store.ObjectStore.put
    for step in range(1000):
        url, count = f"s3://mem/{step}.zarr", 0

        def put(self, name, data, *, old=None, step=step):
            nonlocal count
            count += 1
            if count > step:
                raise KilledError
            return was(self, name, data, old=old)

        monkeypatch.setattr(object_store.ObjectStore, "put", put)
        try:
            embstore.push(path, url)
            break
        except KilledError:
            monkeypatch.setattr(object_store.ObjectStore, "put", was)
            embstore.push(path, url)
            assert content(embstore.open(url)) == expected
    assert step > 10


def test_paths_of_folders_stay_here(buckets, tmp_path):
    from embstore.sources import Folder

    (tmp_path / "in" / "dog").mkdir(parents=True)
    (tmp_path / "in" / "dog" / "x.txt").write_text("woof")
    cache = embstore.Cache(tmp_path / "cache")

    encoder = embstore.encoders.FunctionEncoder(lambda batch: np.ones((len(batch), 3), np.float32), config=CONFIG)
    embstore.embed(Folder(tmp_path / "in", name="pets"), encoder, cache)
    (path,) = (tmp_path / "cache").glob("*.zarr")
    assert any(origin.root for origin in embstore.open(path).snapshot.record.origins)
    embstore.push(path, URL)
    store = embstore.open(URL)
    assert [origin.root for origin in store.snapshot.record.origins] == [None]
    for name in objects(_bucket()):
        assert str(tmp_path).encode() not in bytes(obstore.get(_bucket(), name).bytes())


def test_another_config(buckets, tmp_path):
    shared("a")
    with embstore.open(tmp_path / "s.zarr", "a", config={"encoder": "other"}) as store:
        store.append(keys("z"), rows(1))
    with pytest.raises(ConfigMismatchError):
        embstore.push(tmp_path / "s.zarr", URL)
    assert len(embstore.open(URL)) == 6


def test_a_copy_older_than_an_erase_is_refused(buckets, tmp_path, mirror):
    path = local(tmp_path / "s.zarr", "a")
    embstore.push(path, URL)
    embstore.pull(URL, mirror)
    store = embstore.open(URL, "r+")
    store.erase(["a0:c0"])
    for older in (
        path,
        mirror,
        shutil.copytree(path, tmp_path / "copy.zarr"),
        local(tmp_path / "never.zarr", "a", "b"),
    ):
        with pytest.raises(CopyRefusedError, match="seen_epoch=1"):
            embstore.push(older, URL)
    with pytest.raises(CopyRefusedError):
        embstore.push(path, URL, seen_epoch=2)
    store.refresh()
    assert store.missing(["a0:c0"]) == ["a0:c0"]
    backup = shutil.copytree(path, tmp_path / "backup.zarr")
    with embstore.open(path, "r+") as own:
        own.erase(["a0:c0"])
        own.append(keys("n"), rows(50))
    assert embstore.push(path, URL, seen_epoch=1).appended == 6
    # From here on it is known, also after a compaction. A backup from before is not.
    with embstore.open(path, "r+") as own:
        own.compact()
        own.append(keys("m"), rows(70))
    assert embstore.push(path, URL).appended == 6
    with pytest.raises(CopyRefusedError):
        embstore.push(backup, URL)
    shutil.rmtree(path)
    shutil.move(backup, path)  # put back
    with pytest.raises(CopyRefusedError):
        embstore.push(path, URL)
    assert embstore.verify(path).ok
    embstore.pull(URL, mirror)
    assert embstore.push(mirror, URL).appended == 0
    # What it saw of one store says nothing of another.
    shared("a", url="s3://mem/other.zarr").erase(["a0:c0"])
    with pytest.raises(CopyRefusedError):
        embstore.push(mirror, "s3://mem/other.zarr")
    store.refresh()
    assert store.missing(["a0:c0"]) == ["a0:c0"]


def test_an_erase_during_a_push(buckets, tmp_path, monkeypatch):
    monkeypatch.setattr(push_module, "_PART_NBYTES", 24)
    path = local(tmp_path / "s.zarr", "a")
    embstore.push(path, URL)
    with embstore.open(path, "r+") as own:
        own.append(keys("n"), rows(50))

    def erase(done, total):
        if done == 8:
            embstore.open(URL, "r+").erase(["n0:c0"])

    with pytest.raises(CopyRefusedError, match="during the push"):
        embstore.push(path, URL, progress=erase)
    assert embstore.open(URL).missing(["n0:c0"]) == ["n0:c0"]


@pytest.mark.parametrize("note", ["", "[]", "null", '{"a": "b"}', "\0"])
def test_a_broken_note_counts_as_none(buckets, tmp_path, note):
    path = local(tmp_path / "s.zarr", "a")
    (path / "pushed.json").write_text(note)
    assert embstore.push(path, URL).appended == 6
    embstore.open(URL, "r+").erase(["a0:c0"])
    with pytest.raises(CopyRefusedError):
        embstore.push(path, URL)
    embstore.push(path, URL, seen_epoch=1)
    assert list(json.loads((path / "pushed.json").read_text()).values())[-1] == 1


# -- tidy -------------------------------------------------------------------------------------


def test_tidy_deletes_old_objects(buckets):
    store = shared("a", "b")
    store.compact()
    obstore.put(_bucket(), "pets.zarr/parts/00000001-0123456789abcdef.zip", b"of a killed writer")
    assert len(objects(_bucket())) == 5
    assert embstore.tidy(URL, older_than=timedelta(days=1)) == embstore.TidyResult(objects=0, nbytes=0)
    done = embstore.tidy(URL, older_than=0)
    assert done.objects == 3
    assert len(objects(_bucket())) == 2
    store.refresh()
    assert len(content(store)) == 12
    assert fold_parts.TidyResult is embstore.TidyResult


def test_tidy_stopped_at_each_request(buckets, monkeypatch):
    was = {name: getattr(object_store.ObjectStore, name) for name in ("put", "delete")}
    for step in range(100):
        url, count = f"s3://mem/{step}.zarr", 0
        store = shared("a", "b", url=url)
        store.delete(["a0:c0"])
        store.compact()
        expected = content(store)

        def stopped(name, step=step):
            def call(self, *args, **options):
                nonlocal count
                count += 1
                if count > step:
                    raise KilledError
                return was[name](self, *args, **options)

            return call

        with monkeypatch.context() as patched:
            for name in was:
                patched.setattr(object_store.ObjectStore, name, stopped(name))
            try:
                embstore.tidy(url, older_than=0)
                break
            except KilledError:
                pass
        assert content(embstore.open(url)) == expected
        embstore.tidy(url, older_than=0)
        assert content(embstore.open(url)) == expected
        assert len([name for name in objects(_bucket()) if name.startswith(f"{step}.zarr/")]) == 2
    assert step == 5  # the record, two parts, a list of deleted rows, and the record again


@pytest.mark.parametrize(
    ("value", "error"), [("1d", TypeError), (True, TypeError), (-1, ValueError), (float("nan"), ValueError)]
)
def test_tidy_takes_a_time(value, error):
    with pytest.raises(error, match="older_than"):
        embstore.tidy(URL, older_than=value)


@pytest.mark.parametrize(
    "call",
    [
        lambda path: embstore.pull(str(path), path),
        lambda path: embstore.pull(URL, URL),
        lambda path: embstore.push(URL, URL),
        lambda path: embstore.push(path, URL, if_exists="never"),
        lambda path: embstore.pull(URL, path, network="maybe"),
        lambda path: embstore.pull(URL, path, progress=3),
    ],
)
def test_wrong_arguments(buckets, tmp_path, call):
    with pytest.raises((ValueError, TypeError, NotAStoreError)):
        call(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
