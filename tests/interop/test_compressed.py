"""Compressed stores: all that holds for others holds for them, and other readers of Zarr read them."""

import contextlib
import struct
from pathlib import Path

import numcodecs
import numpy as np
import pytest

import embstore
from embstore.errors import CorruptStoreError, OptionsMismatchError, UnsupportedFormatError
from tests._helpers.crash import run_in_child
from tests._helpers.damage import edit, flip, sealed, setter

CODECS = ["zstd", "blosc"]
KEYS = [f"é{i}.wav:class {i % 7}" for i in range(300)]


@pytest.fixture(params=CODECS)
def codec(request):
    return request.param


@pytest.fixture
def some(path, codec, rng):
    """A compressed store of 300 rows, in chunks of 64, with columns and two deleted rows: (path, rows)."""
    values = rng.standard_normal((300, 16)).astype(np.float32)
    with embstore.open(path, "w-", config={"a": 1}, chunk_bytes=4096, compression=codec) as store:
        store.append(KEYS, values, columns={"split": ["train", "test"] * 150, "score": np.arange(300)})
        store.delete([KEYS[7], KEYS[130]])
    return path, values


def live():
    return [i for i in range(300) if i not in (7, 130)]


def test_what_is_compressed_stays_so(some, codec, tmp_path):
    """Through all that can happen to a store, and into stores that are made of it."""
    path, _ = some
    early = embstore.open(path)
    with embstore.open(path, "r+") as store:
        store.add_field("late", list(store), np.ones((len(store), 3), np.float16))
        store.erase([KEYS[21], KEYS[299]])
        with pytest.raises(embstore.errors.StoreChangedError):
            early.take(np.array([298]), "embedding")
        assert early.refresh()
        assert np.isnan(early.array("embedding", dead="include")[[21, 299]]).all()
        store.compact()
        assert {a.compression for n, a in store.snapshot.record.arrays.items() if n in store.fields} == {codec}
    with pytest.raises(embstore.errors.StoreReplacedError):
        early.take(np.array([0]), "embedding")
    assert early.refresh()
    assert embstore.salvage(path, tmp_path / "saved.zarr").rows_kept == 296
    embstore.merge(tmp_path / "merged.zarr", path)
    for name in ("saved.zarr", "merged.zarr"):
        other = embstore.open(tmp_path / name, check="all")
        assert other.snapshot.record.requires == ["compressed"]
        np.testing.assert_array_equal(other.fetch(list(other), "embedding"), early.fetch(list(other), "embedding"))
        assert embstore.verify(tmp_path / name).ok


def test_stores_are_merged_across_compressions(path, codec, tmp_path):
    for name, compression in (("raw", None), ("packed", codec)):
        with embstore.open(tmp_path / name, "w-", config={}, compression=compression) as store:
            store.append([f"{name}:c"], np.ones((1, 3), np.float32))
    embstore.merge(path, tmp_path / "raw", tmp_path / "packed")
    assert embstore.open(path).snapshot.record.requires == []
    embstore.merge(tmp_path / "other", tmp_path / "raw", tmp_path / "packed", compression=codec)
    store = embstore.open(tmp_path / "other")
    assert store.snapshot.record.requires == ["compressed"]
    np.testing.assert_array_equal(store[["raw:c", "packed:c"]], np.ones((2, 3)))


def test_it_is_smaller(path, codec):
    with embstore.open(path, "w-", config={}, compression=codec) as store:
        store.append([f"{i}:c" for i in range(10_000)], np.tile(np.arange(64, dtype=np.float32), (10_000, 1)))
    nbytes = embstore.open(path).nbytes
    assert sum(file.stat().st_size for file in (path / "embedding").glob("c.*")) < nbytes / 20


# -- damage -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [0, 4])
def test_a_flipped_bit_is_found_wherever_it_is(some, chunk):
    path, values = some
    file = path / "embedding" / f"c.{chunk}.0"
    size = file.stat().st_size
    for place in sorted({0, 1, 4, 5, 6, 15, 16, size - 5, size - 4, size - 1, *range(7, size, size // 40)}):
        flip(file, place=place, bit=place % 8)
        with pytest.raises(CorruptStoreError) as caught:
            embstore.open(path).select().to_numpy()
        assert caught.value.path == file
        assert [problem.path for problem in embstore.verify(path).problems] == [file]
        flip(file, place=place, bit=place % 8)
    np.testing.assert_array_equal(embstore.open(path, check="all").select().to_numpy(), values[live()])


def frame(flags, size, rest=b"\x01\x00\x00"):
    return b"\x28\xb5\x2f\xfd" + bytes([flags]) + size + rest


NBYTES = 64 * 16 * 4
WHOLE = np.arange(NBYTES, dtype=np.uint8)
ZSTD, BLOSC = numcodecs.Zstd(), numcodecs.Blosc("zstd")
BLOCK = bytes([1 | (100 << 3) & 255, 100 >> 5, 0]) + bytes(100)
HOSTILE = {
    "zstd": {
        "a terabyte": frame(0xE0, struct.pack("<Q", 2**40)),
        "2^64 - 1 bytes": frame(0xE0, b"\xff" * 8),
        "a chunk twice": ZSTD.encode(WHOLE) * 2,
        "a longer one": ZSTD.encode(np.zeros(NBYTES + 1, np.uint8)),
        "a shorter one": ZSTD.encode(np.ones(NBYTES - 1, np.uint8)),
        "two halves": ZSTD.encode(WHOLE[: NBYTES // 2]) * 2,
        "a size unsaid": frame(0, b"\x58", BLOCK),
        "a size that is a lie": frame(0x60, struct.pack("<H", NBYTES - 256), BLOCK),
        "a dictionary": frame(0x63, b"abcd" + struct.pack("<H", NBYTES - 256), BLOCK),
        "no block": frame(0x60, struct.pack("<H", NBYTES - 256), b""),
        "half of it": ZSTD.encode(WHOLE)[:-20],
        "something to skip first": struct.pack("<II", 0x184D2A50, 4) + b"abcd" + ZSTD.encode(WHOLE),
        "of another codec": BLOSC.encode(WHOLE),
        "one byte": b"\x28",
        "zeros": bytes(200),
    },
    "blosc": {
        "two gigabytes": BLOSC.encode(WHOLE)[:4] + struct.pack("<I", 2**31 - 17) + BLOSC.encode(WHOLE)[8:],
        "four gigabytes": BLOSC.encode(WHOLE)[:4] + b"\xff" * 4 + BLOSC.encode(WHOLE)[8:],
        "a longer one": BLOSC.encode(np.zeros(NBYTES + 1, np.uint8)),
        "a shorter one": BLOSC.encode(np.ones(NBYTES - 1, np.uint8)),
        "more than there is": BLOSC.encode(WHOLE)[:12] + struct.pack("<I", 2**20) + BLOSC.encode(WHOLE)[16:],
        "half of it": BLOSC.encode(WHOLE)[:-20],
        "a huge block": BLOSC.encode(WHOLE)[:8] + struct.pack("<I", 2**31 - 1) + BLOSC.encode(WHOLE)[12:],
        "no head": BLOSC.encode(WHOLE)[:15],
        "a head alone": BLOSC.encode(WHOLE)[:12] + struct.pack("<I", 16),
        "of another codec": ZSTD.encode(WHOLE),
        "one byte": b"\x02",
        "zeros": bytes(200),
    },
}


@pytest.mark.parametrize(("codec", "kind"), [(c, k) for c in CODECS for k in HOSTILE[c]], indirect=["codec"])
def test_a_hostile_chunk_is_refused(some, codec, kind):
    """Its checksum is right. No size in it is believed, and what it is short of is never made up."""
    path, _ = some
    file = path / "embedding" / "c.1.0"
    sealed(file, HOSTILE[codec][kind])
    embstore.open(path).take([0])  # all is imported

    def work():
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**27, used + 2**27))
        with pytest.raises(CorruptStoreError) as caught:
            embstore.open(path).take([64])
        assert caught.value.path == file

    assert run_in_child(work) == 0
    assert file in [problem.path for problem in embstore.verify(path).problems]


@pytest.mark.parametrize("bytes_changed", [1, 3])
def test_a_chunk_that_is_garbled_and_sealed_crashes_nothing(some, bytes_changed, rng):
    path, _ = some
    file = path / "embedding" / "c.1.0"
    good = file.read_bytes()[:-4]

    def work():
        store = embstore.open(path)
        for _ in range(400):
            payload = bytearray(good)
            for place in rng.integers(0, min(len(good), 64), bytes_changed):
                payload[place] = rng.integers(0, 256)
            sealed(file, bytes(payload))
            store.snapshot._columns.pop("embedding", None)
            with contextlib.suppress(CorruptStoreError):
                assert store.take(np.array([64])).shape == (1, 16)

    assert run_in_child(work) == 0


def test_an_unknown_compression_is_refused(some):
    path, _ = some
    for place in (("compression",), ("arrays", "embedding", "compression")):
        for value in ("lz77", "", 3, ["zstd"], True):
            edit(path, setter(*place, value=value))
            with pytest.raises(CorruptStoreError, match=r"compression: expected one of \['blosc', 'zstd'\]"):
                embstore.open(path)
        edit(path, setter(*place, value="zstd"))


@pytest.mark.parametrize("array", ["class_code", "key_hash", "file_id", "score"])
def test_only_fields_are_compressed(some, array):
    path, _ = some
    edit(path, setter("arrays", array, "compression", value="zstd"))
    with pytest.raises(CorruptStoreError, match=f"arrays.{array}.compression"):
        embstore.open(path)


def test_a_record_that_does_not_say_so_is_refused(some):
    path, _ = some
    edit(path, setter("requires", value=[]))
    with pytest.raises(CorruptStoreError, match="requires: expected 'compressed'"):
        embstore.open(path)


def test_a_reader_that_does_not_know_it_says_so(some, monkeypatch):
    path, _ = some
    monkeypatch.setattr("embstore._engine.format.record.FEATURES", frozenset(["ragged"]))
    with pytest.raises(UnsupportedFormatError, match="compressed"):
        embstore.open(path)


def test_what_is_not_known_is_not_made(path):
    with pytest.raises(ValueError, match="zstd"):
        embstore.open(path, "w-", config={}, compression="gzip")
    assert not path.exists()


def test_a_store_without_compression_requires_nothing(path, codec):
    with embstore.open(path, "w-", config={}) as store:
        store.append(["a:c"], np.ones((1, 3), np.float32))
        assert store.snapshot.record.requires == []
        assert "compression" not in store.snapshot.record.to_json()
    with pytest.raises(OptionsMismatchError):
        embstore.open(path, "a", config={}, compression=codec)
    with embstore.open(path, "a", config={}) as store:
        store.add_field("late", ["a:c"], np.ones((1, 3), np.float32))
        assert store.snapshot.record.requires == []
