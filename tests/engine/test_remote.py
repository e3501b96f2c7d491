"""Stores at URLs: methods that read, their requests, and servers that fail or serve old or wrong files."""

import contextlib
import gc
import itertools
import logging
import pickle
import shutil
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

import embstore
from embstore._engine.io.folder import Folder
from embstore._engine.io.object_store import ObjectStore
from embstore._engine.io.urls import Url, is_url
from embstore.errors import (
    ConfigMismatchError,
    CorruptStoreError,
    MissingKeysError,
    NotAStoreError,
    ReadOnlyError,
    RemoteError,
    StoreChangedError,
    StoreReplacedError,
)
from tests._helpers.crash import KilledError, python, run_in_child, stopped_at
from tests._helpers.damage import ABSURD, edit, sealed
from tests._helpers.webserver import serving

fsspec = pytest.importorskip("fsspec")

CODECS = [None, "zstd", "blosc"]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr("embstore._engine.io.remote._FIRST_PAUSE", 0.001)


# -- places -------------------------------------------------------------------------------------------


class Place:
    """A place where a store can be read at a URL. `publish` copies the folder there."""

    def __init__(self, url, publish=lambda: None, **options):
        self.url = url
        self.publish = publish
        self.options = options

    def open(self, **options):
        return embstore.open(self.url, storage_options=self.options or None, **options)


@pytest.fixture
def in_memory(path):
    files = fsspec.filesystem("memory")

    def publish():
        with contextlib.suppress(FileNotFoundError):
            files.rm("/there", recursive=True)
        files.put(str(path), "/there/some.zarr", recursive=True)

    return Place("memory://there/some.zarr", publish)


@pytest.fixture
def on_disk(path):
    """The folder itself, but through fsspec: a reader far away of a store that is written to."""
    return Place(f"local://{path}")


@pytest.fixture
def site(path):
    pytest.importorskip("aiohttp")
    with serving(path.parent) as (url, site):
        site.url = f"{url}/{path.name}"
        yield site


@pytest.fixture
def on_the_web(site):
    return Place(site.url)


@pytest.fixture(scope="module")
def s3_server():
    pytest.importorskip("s3fs")
    server_module = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {"key": "a", "secret": "b", "client_kwargs": {"endpoint_url": f"http://{host}:{port}", "region_name": "x-1"}}
    server.stop()


@pytest.fixture
def in_a_bucket(path, s3_server, monkeypatch):
    for name, part in {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}.items():
        monkeypatch.setenv(name, s3_server[part])  # for pickles, which hold no credentials
    files = fsspec.filesystem("s3", **s3_server)
    files.mkdir("bucket")

    def publish():
        with contextlib.suppress(FileNotFoundError):
            files.rm("bucket/deep", recursive=True)
        files.put(str(path), "bucket/deep/some.zarr", recursive=True)

    yield Place("s3://bucket/deep/some.zarr", publish, **s3_server)
    files.rm("bucket", recursive=True)


PLACES = ["in_memory", "on_disk", "on_the_web", "in_a_bucket"]


@pytest.fixture(params=PLACES)
def place(request):
    return request.getfixturevalue(request.param)


# -- all reading words --------------------------------------------------------------------------------


@pytest.fixture
def codec():
    """Compression of the rich store. Tests parametrize it."""


@pytest.fixture
def rich(path, codec, rng):
    """A store of two fields, one of them ragged, with columns, deleted rows and several chunks: (keys, values)."""
    fields = {
        "mean": embstore.FieldSpec(shape=(16,)),
        "tokens": embstore.FieldSpec(shape=(4,), dtype="bfloat16", ragged=True),
    }
    offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 9, 300))])
    values = {
        "mean": rng.standard_normal((300, 16)).astype(np.float32),
        "tokens": embstore.Ragged(rng.integers(0, 9, (offsets[-1], 4)).astype(np.float32), offsets),
    }
    columns = {"split": [f"ß{i % 3}" for i in range(300)], "score": np.arange(300) / 2}
    keys = [f"é{i}.wav:class {i // 30}" for i in range(300)]
    options = {"fields": fields, "columns": {"split": "string", "score": "float64"}, "compression": codec}
    with embstore.open(path, "w-", config={"a": 1}, chunk_bytes=4096, **options) as store:
        store.append(keys, values, columns=columns, casting="same_kind")
        store.delete([keys[7], keys[130]])
    return keys, values


@pytest.fixture
def far(place, rich):
    """The rich store, read from a place."""
    place.publish()
    return place.open()


def append(path, prefix, values, n):
    """Append rows of a class of their own to the rich store. Return their keys."""
    new = {"mean": values["mean"][:n], "tokens": embstore.Ragged(np.ones((n, 4), np.float32), np.arange(n + 1))}
    keys = [f"{prefix}{i}:class {prefix}" for i in range(n)]
    with embstore.open(path, "r+") as store:
        store.append(keys, new, columns={"split": "x", "score": 1.0}, casting="same_kind")
    return keys


def assert_reads_the_same(far, near):
    keys, rows = list(near), near.rows
    assert list(far) == keys
    assert len(far) == len(near)
    assert (far.classes, far.columns, far.fields, far.config) == (near.classes, near.columns, near.fields, near.config)
    assert far.rows.tolist() == rows.tolist()
    assert keys[5] in far
    assert "no:no" not in far
    assert far.missing([*keys[:3], "no:no"]) == ["no:no"]
    for name in near.fields:
        for mine, theirs in (
            (far.fetch(keys[::-3], name), near.fetch(keys[::-3], name)),
            (far.take(rows[5:9], name), near.take(rows[5:9], name)),
            (far.select(rows=rows[-50:]).to_numpy(name), near.select(rows=rows[-50:]).to_numpy(name)),
        ):
            np.testing.assert_equal(mine, theirs)
    np.testing.assert_array_equal(far.array("mean", dead="include"), near.array("mean", dead="include"))
    assert not far.array("mean", dead="include").flags.writeable
    for asked in (
        {"classes": "class 3"},
        {"classes": ["class 9", "class 1"], "where": {"split": "ß1"}},
        {"where": {"split": ["ß0", "ß2"], "score": lambda s: s > 40}},
        {"keys": keys[::-7]},
        {"rows": rows[[3, 1, 1]]},
    ):
        here, there = near.select(**asked), far.select(**asked)
        assert there.keys == here.keys
        assert there.class_names == here.class_names
        assert there.file_ids == here.file_ids
        np.testing.assert_array_equal(there.to_numpy("mean"), here.to_numpy("mean"))
        np.testing.assert_equal(there.to_ragged("tokens").values, here.to_ragged("tokens").values)
        assert there.column("split").tolist() == here.column("split").tolist()
        assert there.column("score").tolist() == here.column("score").tolist()
        assert there.labels(near.classes).tolist() == here.labels(near.classes).tolist()
    here, there = near.select(), far.select()
    for query in (near.fetch(keys[4:5], "mean")[0], near.fetch(keys[4:8], "mean")):
        found, expected = (v.nearest(query, k=3, field="mean") for v in (there, here))
        assert found.keys == expected.keys
        np.testing.assert_array_equal(found.scores, expected.scores)
    splits = [
        v.split({"a": 0.8, "b": 0.2}, rng=np.random.default_rng(1), group="split", by=None) for v in (there, here)
    ]
    assert {n: v.keys for n, v in splits[0].items()} == {n: v.keys for n, v in splits[1].items()}
    assert there.sample(9, rng=np.random.default_rng(2)).keys == here.sample(9, rng=np.random.default_rng(2)).keys
    assert [len(batch.to_numpy("mean")) for batch in there.batches(100)] == [100, 100, 98]
    assert "class 3" in repr(far)
    assert "class 3" in repr(there)


@pytest.mark.parametrize("codec", CODECS)
def test_all_reading_words(place, path, rich):
    place.publish()
    for options in ({}, {"check": "all"}, {"check": "touched", "config": {"a": 1}}):
        with place.open(**options) as far:
            assert_reads_the_same(far, embstore.open(path))
            assert not far.refresh()
            assert not far.writable


@pytest.mark.parametrize("codec", ["zstd"])
def test_pickles_open_again(far, place, path, rich):
    keys, values = rich
    again, view = pickle.loads(pickle.dumps((far, far.select(classes="class 2"))))
    np.testing.assert_array_equal(again.fetch(keys[:3], "mean"), values["mean"][:3])
    np.testing.assert_array_equal(view.to_numpy("mean"), values["mean"][60:90])
    with embstore.open(path, "r+") as store:
        store.compact()
    place.publish()
    with pytest.raises(StoreChangedError):
        pickle.loads(pickle.dumps(far))


@pytest.mark.parametrize("codec", ["zstd"])
def test_a_forked_child_reads_after_its_parent(far, place, rich):
    keys, values = rich
    np.testing.assert_array_equal(far.fetch(keys[:3], "mean"), values["mean"][:3])

    def work():
        started = time.monotonic()
        np.testing.assert_array_equal(far.fetch(keys[200:], "mean"), values["mean"][200:])
        np.testing.assert_array_equal(place.open().fetch(keys[200:], "mean"), values["mean"][200:])
        far.close()
        gc.collect()
        assert time.monotonic() - started < 60

    assert run_in_child(work) == 0
    started = time.monotonic()  # a child that closed its inherited connections would leave its parent waiting
    np.testing.assert_array_equal(far.fetch(keys[150:190], "mean"), values["mean"][150:190])
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("codec", ["zstd"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader(far, workers, rich):
    torch = pytest.importorskip("torch")
    from torch.utils.data import DataLoader

    from embstore.torch import EmbeddingDataset

    _, values = rich
    live = [i for i in range(300) if i not in (7, 130)]
    dataset = EmbeddingDataset(far.select(), classes=far.classes, fields=["mean", "tokens"], columns=["split"])
    dataset[0]
    context = "fork" if workers else None
    batches = list(DataLoader(dataset, batch_size=50, num_workers=workers, multiprocessing_context=context))
    np.testing.assert_array_equal(torch.cat([b["mean"] for b in batches]).numpy(), values["mean"][live])
    assert torch.cat([b["label"] for b in batches]).tolist() == [i // 30 for i in live]
    tensor = far.tensor("mean", dead="include")
    tensor += 1
    np.testing.assert_array_equal(far.tensor("mean", dead="include").numpy(), values["mean"])


def test_what_was_read_is_the_readers_own(in_memory, rich):
    keys, values = rich
    in_memory.publish()
    far = in_memory.open()
    for array in (far.fetch(keys[10:19], "mean"), far.select().to_numpy("mean"), far.take([10], "mean")):
        array += 1
    np.testing.assert_array_equal(far.fetch(keys[10:19], "mean"), values["mean"][10:19])


# -- a store that moves on ----------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [None, "zstd"])
def test_refresh_after_an_append(far, place, path, rich):
    keys, values = rich
    view = far.select(classes="class 9")
    np.testing.assert_array_equal(view.to_numpy("mean"), values["mean"][270:])
    texts = append(path, "new", values, 40)
    place.publish()
    assert far.missing(texts[:2]) == texts[:2]
    assert len(far) == 298
    np.testing.assert_array_equal(far.fetch(keys[-3:], "mean"), values["mean"][-3:])
    assert far.refresh()
    assert not far.refresh()
    np.testing.assert_array_equal(far.fetch(texts, "mean"), values["mean"][:40])
    np.testing.assert_array_equal(view.to_numpy("mean"), values["mean"][270:])
    assert far.select(classes="class new").keys == texts
    assert_reads_the_same_rows(far, embstore.open(path))


def assert_reads_the_same_rows(far, near):
    assert list(far) == list(near)
    for name in near.fields:
        np.testing.assert_equal(far.select().to_numpy(name), near.select().to_numpy(name))
    for name in near.columns:
        assert far.select().column(name).tolist() == near.select().column(name).tolist()


def refused(error, *reads):
    """Read again and again: a read that failed leaves nothing behind that is served later."""
    for _ in range(3):
        for read in reads:
            with pytest.raises(error):
                read()


@pytest.mark.parametrize("codec", [None, "blosc"])
def test_rows_that_were_erased_meanwhile_are_not_served(far, place, path, rich):
    """Neither as blank rows, nor by the chunks that a failed read kept."""
    keys, values = rich
    np.testing.assert_array_equal(far.fetch(keys[:2], "mean"), values["mean"][:2])
    with embstore.open(path, "r+") as store:
        store.erase([keys[200], keys[201]])
    place.publish()
    view = far.select(classes="class 6")
    refused(
        StoreChangedError,
        partial(far.take, [200], "mean"),
        partial(view.to_numpy, "mean"),
        partial(view.to_ragged, "tokens"),
        lambda: view.keys,
        partial(view.column, "split"),
    )
    assert far.refresh()
    assert far.missing(keys[198:203]) == keys[200:202]
    with pytest.raises(StoreChangedError):
        view.to_numpy("mean")
    assert_reads_the_same_rows(far, embstore.open(path))


def test_what_could_not_be_checked_is_not_served_later(site, path, rich):
    """The blanked chunk came, and the record did not. The chunk is in memory then, and must not be served."""
    keys, _ = rich
    far = embstore.open(site.url)
    with embstore.open(path, "r+") as store:
        store.erase([keys[200], keys[201]])

    def no_record(handler, where, data, before):
        if where.endswith("store.zarr/zarr.json"):
            handler.answer(b"", status=503)
            return True
        return False

    site.behave = no_record
    with pytest.raises(RemoteError):
        far.take([200], "mean")
    site.behave = None
    refused(StoreChangedError, partial(far.take, [200], "mean"))


@pytest.mark.parametrize("codec", [None, "zstd"])
@pytest.mark.parametrize("stop", ["file_id/c.0", "mean/c.0.0", "mean/c.4.0", "score/c.0"])
def test_an_erase_under_way_can_be_read(on_disk, path, stop, rich):
    """Its last chunks may be those before or after the erase, for readers that open it and readers that refresh."""
    keys, _ = rich
    far = on_disk.open()
    far.fetch(keys[-5:], "mean")

    store = embstore.open(path, "r+")
    with stopped_at("rename", stop), pytest.raises(KilledError):
        store.erase([keys[50], keys[299]])
    assert embstore.open(path).snapshot.record.erasing
    assert far.refresh()
    for reader in (far, on_disk.open(), on_disk.open(check="all")):
        assert_reads_the_same_rows(reader, embstore.open(path))
    with embstore.open(path, "r+") as other:
        other.delete(keys[:1])
    far.select().to_numpy("mean")  # the erase belongs to its own commit, so its end changes nothing
    assert far.refresh()
    assert_reads_the_same_rows(far, embstore.open(path))


@pytest.mark.parametrize("codec", [None, "zstd"])
def test_a_folder_that_was_replaced_by_a_compacted_one(far, place, path, rich):
    keys, values = rich
    view = far.select(classes="class 6")
    np.testing.assert_array_equal(far.fetch(keys[:2], "mean"), values["mean"][:2])
    with embstore.open(path, "r+") as store:
        store.compact()
    append(path, "more", values, 9)  # there are no fewer rows than before
    place.publish()
    refused(StoreReplacedError, partial(far.take, [200], "mean"), partial(view.to_numpy, "mean"), lambda: view.keys)
    assert far.refresh()
    with pytest.raises(StoreChangedError):
        view.to_numpy("mean")
    np.testing.assert_array_equal(far.fetch(keys[199:205], "mean"), values["mean"][199:205])
    assert_reads_the_same_rows(far, embstore.open(path))


def test_names_of_another_generation_are_not_kept(on_disk, path, tmp_path, monkeypatch):
    """They are read among other chunks with one look at the record. The tails are equal, so they show no difference."""
    monkeypatch.setattr("embstore._engine.read.snapshot._FEW", 0)
    n = 17_000
    for place, first in ((path, 0), (tmp_path / "other.zarr", 1)):
        order = [first, 1 - first, *range(2, n)]
        with embstore.open(place, "w-", config={}) as store:
            store.append([f"{i}:class {i % 600}" for i in order], np.zeros((n, 1), np.int8))
    far = on_disk.open()
    view = far.select(rows=[40, 50])
    shutil.rmtree(path)
    (tmp_path / "other.zarr").rename(path)
    refused(StoreReplacedError, lambda: view.keys, lambda: far.classes)
    assert far.refresh()
    assert far.classes[:3] == ["class 1", "class 0", "class 2"]


def test_an_older_copy_in_its_place(on_disk, path, tmp_path, rich):
    keys, values = rich
    shutil.copytree(path, tmp_path / "old.zarr")
    append(path, "new", values, 1)
    far = on_disk.open()
    shutil.rmtree(path)
    shutil.copytree(tmp_path / "old.zarr", path)
    with pytest.raises(StoreReplacedError):
        far.take([0], "mean")
    assert far.refresh()
    assert list(far) == [key for key in keys if key not in (keys[7], keys[130])]


def test_a_store_that_is_gone(far, place, path):
    shutil.rmtree(path)
    path.mkdir()
    (path / "left.txt").write_text("x")
    place.publish()
    refused(StoreReplacedError, partial(far.take, [200], "mean"))
    refused(NotAStoreError, far.refresh)


def test_a_column_that_was_replaced(far, place, path):
    with embstore.open(path, "r+") as store:
        store.set_column("split", list(store), ["new"] * len(store))
    place.publish()
    with pytest.raises(StoreChangedError, match="split"):
        far.select().column("split")
    assert far.refresh()
    assert set(far.select().column("split")) == {"new"}


def test_readers_beside_a_writer(on_disk, path):
    """A read returns the rows of one commit, never a blank row or another row. Otherwise it raises a named error."""
    width = 64

    def rows(numbers):
        return np.repeat(np.array(numbers, np.int32)[:, None] + 1, width, axis=1)

    with embstore.open(path, "w-", config={}, chunk_bytes=4096, compression="zstd") as store:
        store.append([f"{i}:c" for i in range(400)], rows(range(400)))
    wrong, reads, stop = [], [], threading.Event()

    def read(seed):
        rng = np.random.default_rng(seed)
        far = on_disk.open()
        try:
            while not stop.is_set():
                try:
                    keys = [f"{i}:c" for i in rng.integers(0, 400, 20)]
                    keys = [key for key in keys if key not in set(far.missing(keys))]
                    found = far[keys] if keys else np.empty((0, width), np.int32)
                    if (found != rows([int(key[:-2]) for key in keys])).any():
                        wrong.append((keys, found))
                    reads.append(seed)
                except (StoreChangedError, StoreReplacedError, MissingKeysError):
                    far.refresh()
        except BaseException as error:
            wrong.append(error)

    with ThreadPoolExecutor(3) as pool:
        pool.map(read, range(3))
        try:
            rng = np.random.default_rng(9)
            with embstore.open(path, "r+") as store:
                for i in itertools.count():  # until all have read while it wrote
                    if wrong or (i >= 25 and set(reads) == {0, 1, 2} and len(reads) > 10):
                        break
                    gone = [f"{n}:c" for n in rng.choice(400, 5, replace=False)]
                    store.erase([key for key in gone if key in store])
                    back = [key for key in gone if key not in store]
                    store.append(back, rows([int(key[:-2]) for key in back]))
                    if i < 25 and i % 7 == 0:
                        store.compact()
        finally:
            stop.set()
    assert wrong == []


@pytest.mark.parametrize("codec", ["zstd"])
def test_one_store_object_in_many_threads(on_the_web, path, rng, rich):
    keys, values = rich
    far = on_the_web.open()
    together = threading.Barrier(6, timeout=60)

    def read(seed):
        chosen = np.random.default_rng(seed).permutation([i for i in range(300) if i not in (7, 130)])
        together.wait()
        for part in np.array_split(chosen, 12):
            np.testing.assert_array_equal(far.fetch([keys[i] for i in part], "mean"), values["mean"][part])
            far.select(rows=part).column("split")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(read, range(6)))


# -- requests -----------------------------------------------------------------------------------------


@pytest.fixture(params=CODECS, ids=str)
def sorted_by_class(request, path, rng):
    """Rows sorted by class in 41 chunks of 64 KiB: each of ten classes lies in five."""
    n = 41 * 256
    values = rng.standard_normal((n, 64)).astype(np.float32)
    keys = [f"{i}:class {i * 10 // n}" for i in range(n)]
    with embstore.open(path, "w-", config={}, chunk_bytes=2**16, compression=request.param) as store:
        store.append(keys, values)
        assert store.snapshot.record.arrays["embedding"].chunks == 41
    return keys, values


@pytest.mark.parametrize("number", range(10))
def test_a_class_takes_its_chunks_and_one_look_at_the_record(site, path, sorted_by_class, number):
    keys, values = sorted_by_class
    place = f"/{path.name}"
    far = embstore.open(site.url)
    opening = sorted(path for path, _ in site.requests)
    assert opening == sorted(
        [f"{place}/zarr.json"] * 2 + [f"{place}/class_names/c.0"] + [f"{place}/class_code/c.{i}" for i in range(1)]
    )
    site.forget()
    found = far.select(classes=f"class {number}").to_numpy()
    mine = [i for i, key in enumerate(keys) if key.endswith(f"class {number}")]
    np.testing.assert_array_equal(found, values[mine])
    holding = {f"{place}/embedding/c.{i // 256}.0" for i in mine}
    assert sorted(path for path, _ in site.requests) == sorted([*holding, f"{place}/zarr.json"])
    nbytes = sum((path.parent / name.lstrip("/")).stat().st_size for name in holding)
    assert len(site.requests) <= 1.2 * len(holding)
    assert site.nbytes <= 1.2 * nbytes
    site.forget()
    np.testing.assert_array_equal(far.select(classes=f"class {number}").to_numpy(), values[mine])
    assert site.requests == []  # it is all in memory, and was of this commit


@pytest.mark.parametrize("sorted_by_class", [None], indirect=True)
def test_what_other_reads_take(site, sorted_by_class):
    far = embstore.open(site.url)

    def taken(read):
        site.forget()
        read()
        return len(site.requests)

    assert taken(lambda: far["5000:class 4"]) == 3 + 1 + 1 + 1  # key_hash and the record, then a chunk and the record
    assert taken(lambda: far["5000:class 4"]) == 0
    assert taken(lambda: far.take([0, 1, 300])) == 2 + 1
    assert taken(lambda: far.select(rows=[9000, 1]).keys) == 2 + 1
    assert taken(lambda: repr(far)) == 0
    assert taken(lambda: far.refresh()) == 1


def test_a_ragged_field_takes_one_look(site, rich):
    far = embstore.open(site.url)
    site.forget()
    far.select(rows=range(10, 20)).to_ragged("tokens")
    assert len(site.requests) == 1 + 1 + 1  # offsets, tokens, the record
    site.forget()
    far.select(rows=range(10, 20)).keys  # noqa: B018
    assert len(site.requests) == 1 + 1


def test_opening_a_large_store_reads_little(site, path):
    """Large arrays that only selections need are read at the first selection."""
    n = 200_000
    with embstore.open(path, "w-", config={}) as store:
        store.append([f"{i}:class {i % 900}" for i in range(n)], np.zeros((n, 1), np.int8))
    far = embstore.open(site.url)
    assert len(site.requests) == 1 + 2 + 1 + 1  # the record, the class names, the last codes, the record
    site.forget()
    assert len(far.select(classes="class 7")) == 223
    assert len(site.requests) == 12 + 1


def meeting(number):
    """Have the first so many requests for chunks wait for each other, and the others not."""
    barrier, counted = threading.Barrier(number, timeout=60), itertools.count()

    def behave(handler, where, data, before):
        if "embedding/c." in where and next(counted) < number:
            barrier.wait()
        return False

    return behave


@pytest.mark.parametrize(
    ("sorted_by_class", "chunks", "budget", "number"),
    [(None, 8, 2**28, 8), (None, 41, 2**28, 16), (None, 41, 2**18, 3), ("zstd", 41, 2**18, 1)],
    indirect=["sorted_by_class"],
)
def test_chunks_come_several_at_once(site, sorted_by_class, monkeypatch, chunks, budget, number):
    """Up to sixteen, in a budget of 256 MiB: chunks of 64 MiB come by three. Here both are a thousandth of that, too.

    Each of the first requests is answered once all of them are there.
    """
    _, values = sorted_by_class
    monkeypatch.setattr("embstore._engine.io.threads._AHEAD_NBYTES", budget)
    far = embstore.open(site.url)
    site.behave = meeting(number)
    site.forget()
    np.testing.assert_array_equal(far.select(rows=range(chunks * 256)).to_numpy(), values[: chunks * 256])
    assert site.most_at_once == number
    assert len(site.asked("embedding")) == chunks


def test_long_strings_come_alone(site, path, monkeypatch):
    """The size of a chunk of strings is not known. Usual ones are fetched together, longer ones one by one."""
    with embstore.open(path, "w-", config={}, columns={"text": "string"}) as store:
        texts = ["x" * (4000 if 4096 <= i < 4196 else 3) for i in range(5 * 4096)]
        store.append([f"{i}:c" for i in range(len(texts))], np.zeros((len(texts), 1), np.int8), columns={"text": texts})
    monkeypatch.setattr("embstore._engine.chunks.chunk_file._USUAL_STRING_CHUNK", 2**17)
    far = embstore.open(site.url)
    site.forget()
    assert far.select().column("text").tolist() == texts
    assert len(site.asked("text/c.1")) == 2
    assert len(site.asked("text/")) == 6


# -- servers that fail, or serve old or wrong files --------------------------------------------------


def for_chunk(act, name="embedding/c.1.0", times=10**9):
    """Have a server misbehave for one file, the first so many times."""

    def behave(handler, where, data, before):
        if where.endswith(name) and before < times:
            act(handler, data)
            return True
        return False

    return behave


def dropped(handler, data):
    """The connection ends midway."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[: len(data) // 2])
    handler.wfile.flush()
    handler.close_connection = True


def nonsense(handler, data):
    handler.wfile.write(b"\x00\x01nonsense\r\n\r\n")
    handler.close_connection = True


def flipped(handler, data, place=None, bit=4):
    broken = bytearray(data)
    broken[len(data) // 2 if place is None else place] ^= bit
    handler.answer(bytes(broken))


LIES = {
    "cut": lambda handler, data: handler.answer(data[: len(data) // 2]),
    "grown": lambda handler, data: handler.answer(data + bytes(4096)),
    "flipped": flipped,
    "emptied": lambda handler, data: handler.answer(b""),
    "a page": lambda handler, data: handler.answer(b"<html>Please log in</html>"),
}
FAILURES = {
    "dropped": dropped,
    "server error": lambda handler, data: handler.answer(b"oh", status=500),
    "overloaded": lambda handler, data: handler.answer(b"later", status=429),
    "no answer": lambda handler, data: setattr(handler, "close_connection", True),
    "nonsense": nonsense,
}
EITHER = {  # as soon as the bytes past the announced ones are noticed, or not
    "too long": lambda handler, data: handler.answer(data, nbytes=len(data) + 1000, close=True),  # more than comes
    "too short": lambda handler, data: handler.answer(data, nbytes=len(data) - 1000, close=True),
    "too short, and goes on": lambda handler, data: handler.answer(data, nbytes=len(data) - 1000),
}
ACTS = LIES | FAILURES | EITHER


@pytest.fixture(params=["obstore", "fsspec"])
def library(request, monkeypatch):
    """The library that fetches: a forked process reads through fsspec."""
    if request.param == "fsspec":
        monkeypatch.setattr("embstore._engine.io.object_store._used", -1)
    return f"embstore._engine.io.{'object_store' if request.param == 'obstore' else 'fsspec_files'}"


@pytest.fixture(params=[None, "zstd", "in place"], ids=str)
def plain(request, path, rng, monkeypatch):
    """Rows in chunks of 64 rows, five of them. "in place": more than a column keeps, so they land in the result."""
    if request.param == "in place":
        monkeypatch.setattr("embstore._engine.read.decoded_chunks._KEPT_NBYTES", 1)
    values = rng.standard_normal((300, 16)).astype(np.float32)
    keys = [f"{i}:c{i // 100}" for i in range(300)]
    compression = None if request.param == "in place" else request.param
    with embstore.open(path, "w-", config={"a": 1}, chunk_bytes=4096, compression=compression) as store:
        store.append(keys, values)
    return keys, values


@pytest.mark.parametrize(("start", "stop"), [(0, 300), (0, 299), (10, 290), (64, 256), (63, 257), (5, 9)])
def test_a_span_of_more_chunks_than_are_kept(site, path, plain, start, stop, library):
    _, values = plain
    view = embstore.open(site.url).select(rows=range(start, stop))
    np.testing.assert_array_equal(view.to_numpy(), values[start:stop])
    view.to_numpy()[:] = 0
    np.testing.assert_array_equal(view.to_numpy(), values[start:stop])


@pytest.mark.parametrize("act", ACTS)
def test_what_goes_wrong_twice_is_fetched_again(site, path, plain, act):
    _, values = plain
    far = embstore.open(site.url)
    site.behave = for_chunk(ACTS[act], times=2)
    np.testing.assert_array_equal(far.select().to_numpy(), values)
    assert 3 <= len(site.asked("embedding/c.1.0")) <= 4  # aiohttp itself asks again where a connection was old
    # Files that came whole are not fetched again. A broken connection may take one of them along.
    assert len(site.asked("embedding/c.3.0")) <= 2


@pytest.mark.parametrize("act", ACTS)
def test_what_always_goes_wrong_is_said(site, path, plain, act):
    """A whole file with wrong bytes is corrupt. A file that can't be fetched is a remote error."""
    _, values = plain
    far = embstore.open(site.url)
    site.behave = for_chunk(ACTS[act])
    expected = {**dict.fromkeys(LIES, CorruptStoreError), **dict.fromkeys(FAILURES, RemoteError)}
    with pytest.raises(expected.get(act, (CorruptStoreError, RemoteError))) as caught:
        far.select().to_numpy()
    error, place = caught.value, f"{site.url}/embedding/c.1.0"
    if isinstance(error, RemoteError):
        assert isinstance(error, OSError)
        assert (error.url, error.attempts) == (place, 4)
        assert error.reason
        assert "4 times" in str(error)
    else:
        assert str(error.path) == place
    if act in LIES:
        assert len(site.asked("embedding/c.1.0")) == 4
    site.behave = None
    np.testing.assert_array_equal(far.select().to_numpy(), values)


@pytest.mark.parametrize("status", [400, 401, 403, 407, 451])
def test_a_refusal_is_believed_at_once(site, path, plain, status):
    far = embstore.open(site.url)
    site.behave = for_chunk(lambda handler, data: handler.answer(b"no", status=status))
    with pytest.raises(RemoteError, match=str(status)) as caught:
        far.select().to_numpy()
    assert caught.value.attempts == 1
    assert len(site.asked("embedding/c.1.0")) == 1
    site.behave = for_chunk(lambda handler, data: handler.answer(b"no", status=status), name="zarr.json")
    with pytest.raises(RemoteError, match=str(status)):
        embstore.open(site.url)
    for missing in (404, 410):
        site.behave = for_chunk(lambda handler, data, missing=missing: handler.answer(b"no", status=missing))
        with pytest.raises(CorruptStoreError, match="it is missing") as caught:
            far.select().to_numpy()
        assert str(caught.value.path) == f"{site.url}/embedding/c.1.0"


@pytest.mark.parametrize("act", ["dropped", "too long", "cut", "flipped", "a page", "server error", "no answer"])
def test_a_record_that_comes_broken(site, path, plain, act):
    keys, values = plain
    act = partial(flipped, place=200, bit=1) if act == "flipped" else ACTS[act]  # in the record
    site.behave = for_chunk(act, name="/zarr.json", times=2)
    far = embstore.open(site.url)
    np.testing.assert_array_equal(far[keys[:3]], values[:3])
    site.behave = for_chunk(act, name="/zarr.json")
    with pytest.raises((CorruptStoreError, RemoteError)):
        embstore.open(site.url)
    with pytest.raises((CorruptStoreError, RemoteError)):
        far[keys[200:]]


@pytest.mark.parametrize("array", ["embedding/c.4.0", "file_id/c.0", "class_code/c.0", "key_hash/c.0.0"])
def test_a_stale_last_chunk_is_never_served(site, path, plain, array):
    """It is whole, and its checksum matches. But it has fewer rows than were committed, and zeros for the others."""
    _, values = plain
    old = (path / array).read_bytes()
    with embstore.open(path, "r+") as store:
        new = [f"{i}:c2" for i in range(300, 310)]
        store.append(new, values[:10])

    def stale(handler, data):
        handler.answer(old)

    def read():
        far = embstore.open(site.url)
        view = far.select(classes=["c2"])
        return far[new], view.to_numpy()[-10:], view.keys[-10:]

    site.behave = for_chunk(stale, name=array)
    with pytest.raises(CorruptStoreError, match="not those committed") as caught:
        read()
    assert str(caught.value.path) == f"{site.url}/{array}"
    assert len(site.asked(array)) == 4
    site.behave = for_chunk(stale, name=array, times=6)
    np.testing.assert_array_equal(read()[0], values[:10])


def test_a_stale_record_is_an_earlier_commit(site, path, plain):
    """All that it names is still there, and nothing else is served."""
    _, values = plain
    old = (path / "zarr.json").read_bytes()
    with embstore.open(path, "r+") as store:
        store.append(["new:c2"], values[:1])
    site.behave = for_chunk(lambda handler, data: handler.answer(old), name="store.zarr/zarr.json")
    far = embstore.open(site.url)
    assert far.missing(["new:c2"]) == ["new:c2"]
    np.testing.assert_array_equal(far.select().to_numpy(), values)


def endless(handler, data):
    """Send a body without end, as fast as the client reads, and count the bytes."""
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.close_connection = True
    block = bytes(2**16)
    try:
        for _ in range(2**14):  # a gigabyte, to have an end all the same
            handler.wfile.write(block)
            handler.site.endless += len(block)
    except OSError:
        pass


@pytest.mark.parametrize("name", ["embedding/c.1.0", "file_id/c.0"])
def test_neither_a_chunk_nor_a_record_is_read_without_end(site, path, plain, name, monkeypatch, library):
    """obstore refuses a body whose length is not announced."""
    monkeypatch.setattr("embstore._engine.chunks.chunk_file.MAX_STRING_BYTES", 2044)
    error, text = (CorruptStoreError, r"expected at most [0-9,]+ bytes")
    if "object_store" in library:
        error, text = RemoteError, "Content-Length"
    site.endless = 0
    far = embstore.open(site.url)
    site.behave = for_chunk(endless, name=name)
    with pytest.raises(error, match=text):
        far.select().to_numpy(), far.select().keys
    most = 4100 if "embedding" in name else 2**23
    assert site.endless < 4 * (most + 2**24)  # the bytes in the sockets are sent, but not read
    site.endless = 0
    site.behave = for_chunk(endless, name="zarr.json")
    with pytest.raises(error, match=r"16,777,216 bytes|Content-Length"):
        embstore.open(site.url)
    assert site.endless < 4 * 2**25


def test_a_body_announced_as_too_long_is_not_read(site, path, plain, library):
    far = embstore.open(site.url)
    site.behave = for_chunk(lambda handler, data: handler.answer(data, nbytes=2**40, close=True))
    with pytest.raises((CorruptStoreError, RemoteError)):
        far.select().to_numpy()


def test_a_silent_server_is_given_up(site, path, plain, monkeypatch, library):
    monkeypatch.setattr(f"{library}._SILENT_SECONDS", 0.2)
    far = embstore.open(site.url)
    silent = threading.Event()
    site.behave = for_chunk(lambda handler, data: silent.wait(20))
    try:
        with pytest.raises(RemoteError) as caught:
            far.select().to_numpy()
    finally:
        silent.set()
    assert caught.value.attempts == 4


def test_a_server_that_trickles_is_given_up(site, path, plain, monkeypatch, library):
    monkeypatch.setattr(f"{library}._SILENT_SECONDS", 0.3)
    monkeypatch.setattr(f"{library}._LEAST_SPEED", 2**16)
    far = embstore.open(site.url)

    def trickle(handler, data):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.close_connection = True
        for i in range(100):
            handler.wfile.write(data[i : i + 1])
            handler.wfile.flush()
            time.sleep(0.1)

    site.behave = for_chunk(trickle)
    with pytest.raises(RemoteError):
        far.select().to_numpy()


def test_a_server_that_nobody_listens_at():
    pytest.importorskip("aiohttp")
    with pytest.raises(RemoteError) as caught:
        embstore.open("http://127.0.0.1:9/some.zarr")
    assert caught.value.attempts == 4
    assert caught.value.url == "http://127.0.0.1:9/some.zarr/zarr.json"


def test_the_users_own_request_options(site, path, plain):
    import aiohttp

    options = {
        "headers": {"Authorization": "Bearer x"},
        "client_kwargs": {"timeout": aiohttp.ClientTimeout(total=9), "headers": {"X-Mine": "y"}},
    }
    far = embstore.open(site.url, storage_options=options)
    assert far.select().to_numpy().shape == (300, 16)
    for headers in site.headers:
        assert headers["Authorization"] == "Bearer x"
        assert headers["X-Mine"] == "y"
        assert headers["Cache-Control"] == "no-cache"
        assert headers["Accept-Encoding"] == "identity"


# -- hostile files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ABSURD)
def test_a_hostile_record_is_refused(site, path, plain, kind):
    """Even with checksums that are right: nothing is fetched or allocated by a size that was not checked."""
    edit(path, ABSURD[kind])

    def read():
        far = embstore.open(site.url)
        return far.select().to_numpy(), far.classes, far.select().keys

    with pytest.raises(CorruptStoreError):
        read()
    assert not any(".." in name for name in site.asked(""))
    assert len(site.requests) < 2000


def test_many_chunks_that_are_not_there(site, path, plain):
    """A record may name a million chunks. The first missing one ends the read."""

    def many(record):
        record["rows"] = 2**31
        for name, array in record["arrays"].items():
            if name not in ("class_names", "dead_rows"):
                array["length"], array["digest"] = 2**31, "0" * 16
                size = array["rows_per_chunk"]
                row = {"class_code": 4, "key_hash": 16, "embedding": 64}.get(name, 0)
                array["tail"] = {"nbytes": ((2**31 - 1) % size + 1) * row, "crc32c": 1}

    edit(path, many)
    with pytest.raises(CorruptStoreError, match="it is missing"):
        embstore.open(site.url)
    assert len(site.requests) < 10


def test_hostile_strings(site, path, plain):
    far = embstore.open(site.url)
    for body in (
        struct.pack("<II", 4096, 2**32 - 1) + bytes(4 * 4095),
        struct.pack("<II", 2**31, 2**31) + bytes(16384),
    ):
        sealed(path / "file_id" / "c.0", body)
        with pytest.raises(CorruptStoreError):
            far.select().keys  # noqa: B018


# -- URLs ---------------------------------------------------------------------------------------------


def test_what_needs_a_folder_refuses_urls(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(embstore.errors.ReadOnlyError, match="memory://cache"):
        embstore.Cache("memory://cache")
    with pytest.raises(embstore.errors.ReadOnlyError, match=r"memory://x\.zarr"):
        embstore.salvage("old.zarr", "memory://x.zarr")
    for action in (embstore.verify, lambda url: embstore.salvage(url, "new.zarr")):
        with pytest.raises(embstore.errors.NotAStoreError, match=r"memory://x.zarr .*it has no zarr.json"):
            action("memory://x.zarr")
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_to_urls(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with embstore.open("a.zarr", "w-", config={"a": 1}) as store:
        store.append(["a:x", "b:x"], np.eye(2, dtype=np.float32))
    before = sorted(tmp_path.iterdir())
    view = embstore.open("a.zarr").select()
    for action in (
        lambda: embstore.salvage("a.zarr", "memory://new.zarr"),
        lambda: embstore.export_file(view, "memory://new.npz"),
        lambda: embstore.export_file(view, "memory://new.pt"),
        lambda: view.to_parquet("memory://new.parquet"),
        lambda: view.plot("memory://new.png"),
    ):
        with pytest.raises(embstore.errors.ReadOnlyError, match=r"memory://new\."):
            action()
    assert sorted(tmp_path.iterdir()) == before


def test_what_is_a_url():
    for text in ("s3://b/x", "http://h/x", "memory://x", "zip://a::s3://b/x.zip", "simplecache::s3://b/x", "gs://b"):
        assert is_url(text), text
    for text in ("/x", "x", "C:/x", "C:\\x", "C://x", "file:///x", "a:b", "a::b", "runs::1/x.zarr", "./s3:/x", "://x"):
        assert not is_url(text), text


def test_how_urls_are_shown():
    shown = {
        "s3://bucket/a/b/": "s3://bucket/a/b",
        "http://h:80/a b/[x]": "http://h:80/a b/[x]",
        "https://me:secret@h/x?token=secret#y": "https://me@h/x",
        "zip://in/x::https://me:secret@h/x.zip?token=secret": "zip://in/x::https://me@h/x.zip",
        "github://org:repo@main/x": "github://org:repo@main/x",
        "s3://bucket/a?b/c": "s3://bucket/a?b/c",
    }
    for url, text in shown.items():
        place = Url.shown(url)
        assert str(place) == text
        assert str(place / "zarr.json") == f"{text}/zarr.json"
        assert (place / "zarr.json").name == "zarr.json"
        assert str((place / "zarr.json").parent) == text


NAMES = ["a b.zarr", "[x].zarr", "50%.zarr", "é+ü.zarr", "a*b.zarr", "{x}.zarr", "q'uote.zarr", "am&p=1.zarr", "..."]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("slash", ["", "/", "//"])
def test_names_that_mean_something_elsewhere(path, site, plain, name, slash):
    _, values = plain
    path.rename(path.with_name(name))
    root = site.url.rpartition("/")[0]
    quoted = name.replace("%", "%25")  # as in any URL
    for url in (f"{root}/{quoted}{slash}", f"local://{path.with_name(name)}{slash}"):
        far = embstore.open(url)
        np.testing.assert_array_equal(far.select().to_numpy(), values)
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(far)).select().to_numpy(), values)


@pytest.mark.parametrize("name", ["a?b.zarr", "[a-z]?.zarr", "#.zarr"])
def test_names_with_marks_in_memory_and_quoted_on_the_web(path, site, plain, name):
    from fsspec.implementations.memory import MemoryFile

    _, values = plain
    files = fsspec.filesystem("memory")
    for file in path.rglob("*.*"):
        if file.is_file():
            files.store[f"/{name}/{file.relative_to(path)}"] = MemoryFile(files, file.name, file.read_bytes())
    np.testing.assert_array_equal(embstore.open(f"memory://{name}").select().to_numpy(), values)
    path.rename(path.with_name(name))
    quoted = name.replace("?", "%3F").replace("#", "%23")
    far = embstore.open(f"{site.url.rpartition('/')[0]}/{quoted}")
    np.testing.assert_array_equal(far.select().to_numpy(), values)


def test_a_token_stands_behind_each_name(site, path, plain, caplog):
    keys, values = plain
    caplog.set_level(logging.INFO, logger="embstore")
    far = embstore.open(f"{site.url}/?token=secret")
    site.behave = for_chunk(ACTS["server error"], times=1)
    np.testing.assert_array_equal(far.select().to_numpy(), values)
    assert all(name.endswith("?token=secret") for name in site.asked(""))
    again = pickle.loads(pickle.dumps(far))
    np.testing.assert_array_equal(again[keys[:2]], values[:2])
    site.behave = for_chunk(ACTS["server error"])
    with pytest.raises(RemoteError) as caught:
        again.select().to_numpy()
    assert "secret" not in f"{caught.value} {far!r} {caplog.text}"


def test_a_store_in_a_zip_file(site, path, plain):
    """A chain of file systems. The file is one state of the store, and does not change."""
    _, values = plain
    shutil.make_archive(str(path.parent / "packed"), "zip", path.parent, path.name)
    for url in (
        f"zip://{path.name}::local://{path.parent}/packed.zip",
        f"zip://{path.name}::file://{path.parent}/packed.zip",
    ):
        far = embstore.open(url)
        assert str(far.path) == url
        np.testing.assert_array_equal(far.select().to_numpy(), values)
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(far)).select().to_numpy(), values)

        def work(far=far):
            np.testing.assert_array_equal(far.take([3]), values[3:4])

        assert run_in_child(work) == 0


@pytest.mark.parametrize("kind", ["simplecache", "filecache", "blockcache"])
def test_a_cache_of_files_by_name_is_refused(path, plain, kind, tmp_path):
    """It would serve chunks of another generation, or erased rows, without an error."""
    with pytest.raises(RemoteError, match="cache"):
        embstore.open(f"{kind}::local://{path}", storage_options={kind: {"cache_storage": str(tmp_path / "kept")}})


def test_a_file_url_is_a_path(path, plain):
    _, values = plain
    with embstore.open(f"file://{path}", "r+") as store:
        store.append(["new:c2"], values[:1])
        assert store.path == path
        assert isinstance(store.snapshot.folder, Folder)
    with pytest.raises(ValueError, match="storage_options"):
        embstore.open(path, storage_options={"key": "x"})
    assert embstore.verify(f"file://{path}").ok
    assert embstore.Cache(f"file://{path.parent}").path == path.parent


@pytest.mark.parametrize("mode", ["a", "r+", "w-", "x"])
def test_nothing_is_written_at_a_url(mode):
    with pytest.raises(ReadOnlyError, match="read-only"):
        embstore.open("memory://some.zarr", mode, config={"a": 1})
    with pytest.raises(ReadOnlyError) as caught:
        embstore.open("http://me:secret@127.0.0.1:9/some.zarr", mode, config={"a": 1})
    assert "secret" not in str(caught.value)


def test_nothing_is_written_through_a_store_that_was_opened(in_memory, rich):
    keys, _ = rich
    in_memory.publish()
    far = in_memory.open()
    for change in (far.compact, partial(far.delete, keys[:1]), partial(far.erase, keys[:1])):
        with pytest.raises(ReadOnlyError):
            change()


def test_another_config_is_refused(place, rich):
    place.publish()
    with pytest.raises(ConfigMismatchError):
        place.open(config={"a": 2})


def test_a_store_that_is_not_there(place, rich):
    place.publish()
    with pytest.raises(NotAStoreError) as caught:
        embstore.open(f"{place.url}/nothing/here", storage_options=place.options or None)
    assert f"{place.url}/nothing/here" in str(caught.value)


def test_a_zarr_group_of_somebody_elses(place, path):
    path.mkdir()
    (path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    place.publish()
    with pytest.raises(NotAStoreError, match="no embstore record"):
        place.open()


def test_a_protocol_that_nobody_knows():
    with pytest.raises(RemoteError, match="nobody") as caught:
        embstore.open("nobody://some.zarr")
    assert caught.value.attempts == 0


def test_a_library_that_is_not_installed():
    code = """if True:
        import sys
        sys.modules["s3fs"] = sys.modules["obstore"] = None
        import embstore
        try:
            embstore.open("s3://bucket/some.zarr")
        except embstore.errors.RemoteError as error:
            print(error)
    """
    assert "Install s3fs to access S3; pip install 'embstore[bucket]'" in python(code)


def test_a_forked_process_without_the_library_says_how_to_start_it(site, path, plain, monkeypatch):
    far = embstore.open(site.url)

    def url_to_fs(url, **options):
        raise ImportError("Install aiohttp")

    monkeypatch.setattr(fsspec, "url_to_fs", url_to_fs)

    def work():
        with pytest.raises(RemoteError, match="multiprocessing_context='spawn'"):
            far.select().to_numpy()

    assert run_in_child(work) == 0


SECRETS = {
    "s3fs": {
        "key": "hidden",
        "secret": "hidden",
        "token": "hidden",
        "client_kwargs": {"aws_secret_access_key": "hidden"},
    },
    "obstore": {"access_key_id": "hidden", "secret_access_key": "hidden", "session_token": "hidden"},
    "azure": {"account_key": "hidden", "sas_token": "hidden", "connection_string": "hidden", "client_secret": "hidden"},
    "web": {"headers": {"Authorization": "Bearer hidden", "Cookie": "hidden", "X-Api-Key": "hidden"}},
    "aiohttp": {"client_kwargs": {"auth": "hidden", "headers": {"X-Auth-Token": "hidden"}}},
    "ssh": {"password": "hidden", "passphrase": "hidden"},
}


@pytest.mark.parametrize("options", SECRETS.values(), ids=SECRETS)
def test_pickles_hold_no_secret(options, in_memory, path, plain):
    in_memory.publish()
    far = embstore.open(in_memory.url)
    far.snapshot.folder._connection.options = {"region": "kept", **options}
    for pickled in (pickle.dumps(far), pickle.dumps(far.select(classes="c1"))):
        assert b"kept" in pickled
        assert b"hidden" not in pickled


OPTIONS = {
    "s3fs": lambda s: s,
    "obstore": lambda s: {
        "access_key_id": s["key"],
        "secret_access_key": s["secret"],
        "endpoint": s["client_kwargs"]["endpoint_url"],
        "region": "x-1",
    },
    "aws": lambda s: {
        "aws_access_key_id": s["key"],
        "aws_secret_access_key": s["secret"],
        "endpoint_url": s["client_kwargs"]["endpoint_url"],
    },
    "only fsspec": lambda s: {**s, "config_kwargs": {"s3": {"addressing_style": "path"}}},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name", ["some.zarr", "50%.zarr", "a b/[x].zarr", "é+ü?.zarr"])
def test_a_bucket_by_either_names_of_options(path, plain, s3_server, options, name):
    _, values = plain
    files = fsspec.filesystem("s3", **s3_server)
    files.mkdir("named")
    for file in path.rglob("*.*"):
        if file.is_file():
            files.pipe_file(f"named/{name}/{file.relative_to(path)}", file.read_bytes())
    try:
        far = embstore.open(f"s3://named/{name}/", storage_options=options(s3_server))
        np.testing.assert_array_equal(far.select().to_numpy(), values)
    finally:
        files.rm("named", recursive=True)


STORES = {
    "sas": ("az://c/deep/x.zarr", {"account_name": "a", "sas_token": "sv=2020&sig=x"}),
    "account": ("abfss://c@a.dfs.core.windows.net/deep/x.zarr", {"account_key": "a2V5"}),
    "public azure": ("az://c/deep/x.zarr", {"account_name": "a", "anon": True}),
    "public google": ("gs://b/deep/x.zarr", {"anon": True}),
    "google": ("gcs://b/deep/x.zarr", {"client_options": {"timeout": "9s"}}),
    "public s3": ("s3://b/deep/x.zarr", {"anon": True, "region_name": "x-1"}),
}


@pytest.mark.parametrize(("url", "options"), STORES.values(), ids=STORES)
def test_options_of_other_buckets_are_known_to_obstore(url, options):
    """Only their names are tested: no such server can run here."""
    pytest.importorskip("obstore")
    assert ObjectStore.connect(url, options)._prefix == "deep/x.zarr/"


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("gs://b/x.zarr", {"token": "anon"}),
        ("az://c/x.zarr", {"connection_string": "x"}),
        ("http://h/x.zarr", {"ssl": False}),
        ("http://h/x.zarr", {"client_kwargs": {"trust_env": True}}),
        ("zip://x.zarr::http://h/x.zip", {}),
    ],
)
def test_options_that_only_fsspec_knows_are_left_to_it(url, options):
    assert ObjectStore.connect(url, options) is None


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"profile": "nonesuch"}, "profile"),
        ({"anon": "perhaps"}, "perhaps"),
        ({"key": "a", "secret": "b", "client_options": {"timeout": "soon"}}, "soon"),
    ],
)
def test_options_with_values_that_are_refused(options, reason):
    pytest.importorskip("obstore")
    with pytest.raises(RemoteError, match=reason) as caught:
        embstore.open("s3://b/x.zarr", storage_options=options)
    assert (caught.value.url, caught.value.attempts) == ("s3://b/x.zarr", 0)


@pytest.mark.parametrize("protocol", ["s3", "s3a"])
def test_a_profile_and_the_environment_give_credentials(path, plain, in_a_bucket, protocol, tmp_path, monkeypatch):
    pytest.importorskip("boto3")
    _, values = plain
    in_a_bucket.publish()
    options = {"endpoint_url": in_a_bucket.options["client_kwargs"]["endpoint_url"], "region": "x-1"}
    url = in_a_bucket.url.replace("s3", protocol, 1)
    np.testing.assert_array_equal(embstore.open(url, storage_options=options).select().to_numpy(), values)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    (tmp_path / "credentials").write_text("[mine]\naws_access_key_id = a\naws_secret_access_key = b\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    far = embstore.open(url, storage_options={**options, "profile": "mine"})
    np.testing.assert_array_equal(far.select().to_numpy(), values)


def test_a_user_in_the_url_is_sent_and_not_shown(site, path, plain):
    far = embstore.open(site.url.replace("http://", "http://me:hidden@"))
    assert site.headers[-1]["authorization"] == "Basic bWU6aGlkZGVu"
    site.behave = for_chunk(ACTS["server error"])
    with pytest.raises(RemoteError) as caught:
        far.select().to_numpy()
    assert "hidden" not in f"{caught.value} {far!r}"


def test_a_bucket_that_is_not_there(s3_server):
    with pytest.raises(NotAStoreError):
        embstore.open("s3://not-there/some.zarr", storage_options=s3_server)
