"""`embed` into a cache in a bucket: few commits, rows exactly once, and what stored rows can't get is refused."""

import pickle
import threading

import numpy as np
import pytest

import embstore
from embstore import errors
from embstore.encoders import FunctionEncoder
from embstore.sources import Folder, Items
from tests._helpers.buckets import buckets
from tests._helpers.caches import encoder
from tests.pipeline.conftest import root

__all__ = ["buckets", "root"]

OPTIONS = {"key": "AKIA", "secret": "sesame"}


@pytest.fixture
def cache(buckets):
    return embstore.Cache("s3://mem/V.cache", storage_options=OPTIONS)


def items(count, name="pets"):
    return Items({f"f{i}:c{i % 3}": "x" * (i + 1) for i in range(count)}, name=name)


def texts(root, **files):
    for file in root.iterdir():
        file.unlink()
    for name, text in files.items():
        (root / f"{name}.txt").write_text(text)
    return Folder(root, name="pets", suffixes=(".txt",))


def pure():
    """Return an encoder that gives the length of each item, and is pure: rows of one content are copied."""
    specs = {"mean": embstore.FieldSpec(shape=(1,))}
    encode = lambda items: np.array([[len(item)] for item in items], np.float32)  # noqa: E731
    return FunctionEncoder(encode, config={"encoder": "length"}, fields=specs, pure=True)


def seen(result):
    return (result.hits, result.encoded, result.stale, result.copied, len(result.relabelled), result.deleted)


def rows(result):
    return dict(zip(result.store, result.store.select().to_numpy()[:, 0].tolist(), strict=True))


def parts(result):
    return len(result.store.snapshot.listing.parts)


def test_a_run_makes_one_part_and_the_next_none(cache):
    result = embstore.embed(items(200), encoder(), cache, batch_size=4)
    assert (seen(result), parts(result)) == ((0, 200, 0, 0, 0, 0), 1)
    np.testing.assert_array_equal(result.view.to_numpy()[:, 0], np.arange(1, 201))
    again = embstore.embed(items(200), encoder(), cache)
    assert (seen(again), parts(again)) == ((200, 0, 0, 0, 0, 0), 1)
    assert embstore.embed(items(200), encoder(), cache, interval=0, batch_size=50, force=True).rows == 200


def test_units_of_work(cache):
    result = embstore.embed(items(20), encoder(), cache, batch_size=5, interval=0)
    assert parts(result) == 4


def test_stale_vanished_moved_and_copied_rows(cache, root):
    first = embstore.embed(texts(root, a="1", b="22", c="333", d="4444"), pure(), cache)
    assert seen(first) == (0, 4, 0, 0, 0, 0)
    source = texts(root, a="55555", b="22", e="333", f="22")
    second = embstore.embed(source, pure(), cache, vanished="delete")
    assert second.relabelled == {"c": "e"}
    assert (second.copied, second.encoded, second.stale, second.deleted) == (1, 1, 1, 1)
    assert sorted(rows(second).values()) == [2, 2, 3, 5]
    assert seen(embstore.embed(source, pure(), cache)) == (4, 0, 0, 0, 0, 0)


def test_machines_that_embed_one_source_at_once_store_each_row_once(cache):
    results = []

    def run():
        mine = embstore.Cache(str(cache.path))
        results.append(embstore.embed(items(60), encoder(), mine, batch_size=4, interval=0))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = results[0].store
    assert sorted(store) == sorted(f"f{i}:c{i % 3}" for i in range(60))
    assert len(results) == 2
    assert all((result.view.to_numpy()[:, 0] == np.arange(1, 61)).all() for result in results)


def test_shards_write_into_the_one_store(cache):
    results = [embstore.embed(items(60), encoder(), cache, shard=(i, 3)) for i in range(3)]
    assert [result.path for result in results] == [cache.path_of(results[0].config)] * 3
    assert sum(result.encoded for result in results) == results[-1].rows == 60
    assert len(results[0].view) == results[0].encoded
    assert embstore.embed(items(60), encoder(), cache).hits == 60


def test_columns_of_new_rows_and_of_stored_rows(cache):
    result = embstore.embed(items(4), encoder(), cache, columns=lambda sample: {"split": "train", "age": 3})
    assert result.view.column("split").tolist() == ["train"] * 4
    more = embstore.embed(items(6), encoder(), cache, columns=lambda sample: {"split": "train", "age": 3})
    assert (more.encoded, more.view.column("age").tolist()) == (2, [3] * 6)
    for values in ({"split": "test", "age": 3}, {"more": "x"}):
        with pytest.raises(errors.ReadOnlyError, match=r"in stored rows is not possible in a bucket.*a local copy"):
            embstore.embed(items(6), encoder(), cache, columns=lambda sample, values=values: values)
    assert embstore.embed(items(6), encoder(), cache).view.column("split").tolist() == ["train"] * 6


def test_a_field_that_stored_rows_lack_is_refused(cache):
    embstore.embed(items(4), encoder(), cache)
    with pytest.raises(errors.ReadOnlyError, match=r"max can't be added in a bucket.*encode into a new store"):
        embstore.embed(items(4), encoder(fields=("mean", "max")), cache)
    other = embstore.Cache("s3://mem/other.cache")
    assert embstore.embed(items(4), encoder(fields=("mean", "max")), other).encoded == 4


def test_files_that_were_only_touched(cache, root):
    source = texts(root, a="1", b="22")
    embstore.embed(source, encoder(), cache)
    (root / "a.txt").write_text("1")
    assert seen(embstore.embed(source, encoder(), cache)) == (2, 0, 0, 0, 0, 0)


def test_ctrl_c_says_how_many_rows_are_stored(cache):
    def stop(batch):
        if len(batch[0]) > 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        embstore.embed(items(8), encoder(stop), cache, batch_size=2, canaries=0)
    assert caught.value.__notes__ == ["4 rows are stored; run it again to go on"]


def test_a_pickled_result_holds_no_secret(cache):
    result = embstore.embed(items(2), encoder(), cache)
    assert b"sesame" not in pickle.dumps(result)
    assert len(pickle.loads(pickle.dumps(result)).view) == 2
