"""Compressed stores: all that holds for others holds for them, and other readers of Zarr read them."""

import contextlib
import os
import signal
import struct
import warnings
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import zarr

import embstore
from embstore._engine.format.values import crc32c
from embstore.errors import CorruptStoreError, UnsupportedFormatError
from tests._helpers.crash import kill_at, run_in_child
from tests.durability.test_damage import edit, flip, setter
from tests.durability.test_kill import add_field, append, check_after, compact, erase, key, rows, state
from tests.interop.test_interop import assert_same, stored

CODECS = ["zstd", "blosc"]
DTYPES = [
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "bfloat16"),
]
KEYS = [f"é{i}.wav:class {i % 7}" for i in range(300)]


@pytest.fixture(params=CODECS)
def codec(request):
    return request.param


def of_dtype(dtype, rng, n=300):
    values = rng.integers(0, 2 if dtype == "bool" else 100, (n, 2, 8))
    return values.astype("float32" if dtype == "bfloat16" else dtype)


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


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_comes_back(path, codec, dtype, rng):
    values = of_dtype(dtype, rng)
    fields = {"x": embstore.FieldSpec(shape=(2, 8), dtype=dtype)}
    with embstore.open(path, "w-", config={}, fields=fields, chunk_bytes=4096, compression=codec) as store:
        store.append(KEYS[:100], values[:100], casting="same_kind")
        store.append(KEYS[100:], values[100:], casting="same_kind")
    for options in ({}, {"check": "all"}, {"check": "touched"}, {"mapping": "never"}):
        reader = embstore.open(path, **options)
        np.testing.assert_array_equal(reader[KEYS[::-1]], values[::-1])
        np.testing.assert_array_equal(reader.select().to_numpy(), values)
        np.testing.assert_array_equal(reader[KEYS[-1]], values[-1])
    record = reader.snapshot.record
    assert record.compression == record.arrays["x"].compression == codec
    assert record.requires == ["compressed"]
    assert not any(array.compression for name, array in record.arrays.items() if name != "x")
    assert embstore.verify(path).ok


@pytest.mark.parametrize("dtype", DTYPES)
def test_other_readers_see_the_same(path, codec, dtype, rng):
    fields = {"x": embstore.FieldSpec(shape=(2, 8), dtype=dtype), "n": embstore.FieldSpec(shape=(), dtype="int16")}
    options = {"fields": fields, "columns": {"s": "string"}, "chunk_bytes": 4096, "compression": codec}
    with embstore.open(path, "w-", config={}, **options) as store:
        for part in (slice(0, 70), slice(70, 300)):
            given = {"x": of_dtype(dtype, rng)[part], "n": np.arange(300, dtype=np.int16)[part]}
            store.append(KEYS[part], given, columns={"s": ["ß"] * len(KEYS[part])}, casting="same_kind")
        store.erase(KEYS[60:80])
        store.delete(KEYS[:2])
    expected = stored(path)
    for consolidated in (True, False):
        group = zarr.open_group(path, mode="r", use_consolidated=consolidated)
        for name, values in expected.items():
            assert_same(group[name][:], values, name)
    xarray = pytest.importorskip("xarray")
    dataset = xarray.open_zarr(path, mask_and_scale=False, chunks=None)
    for name, values in expected.items():
        assert_same(dataset[name].values, values, name)
    tensorstore = pytest.importorskip("tensorstore")
    for name in ("x", "n"):
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{path / name}/"}}
        assert_same(tensorstore.open(spec, read=True).result().read().result(), expected[name], name)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_ragged_fields(path, codec, dtype, rng):
    spec = embstore.FieldSpec(shape=(8,), dtype=dtype, ragged=True)
    lengths = rng.integers(0, 9, 300)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = rng.integers(0, 50, (offsets[-1], 8)).astype(np.float32 if dtype == "bfloat16" else dtype)
    with embstore.open(path, "w-", config={}, fields={"t": spec}, chunk_bytes=4096, compression=codec) as store:
        store.append(KEYS, embstore.Ragged(tokens, offsets), casting="same_kind")
        assert store.snapshot.record.requires == ["ragged", "compressed"]
        assert store.snapshot.record.arrays["t_offsets"].compression is None
        store.erase(KEYS[3:5])
        store.delete(KEYS[100:102])
        store.compact()
    left = [i for i in range(300) if i not in (3, 4, 100, 101)]
    for i, row in zip(left, embstore.open(path).select().to_ragged(), strict=True):
        np.testing.assert_array_equal(row, tokens[offsets[i] : offsets[i + 1]])
    assert embstore.verify(path).ok
    expected = stored(path)
    group = zarr.open_group(path, mode="r")
    for name in ("t", "t_offsets"):
        assert_same(group[name][:], expected[name], name)


def test_a_life(some, codec, rng, tmp_path):
    """Everything that can happen to a store; what was compressed stays so."""
    path, values = some
    early = embstore.open(path)
    view = early.select(classes="class 3")
    before = view.to_numpy()
    with embstore.open(path, "r+") as store:
        store.append([KEYS[20]], values[:1], columns={"split": "x", "score": 1}, if_exists="replace")
        store.add_field("late", list(store), np.ones((len(store), 3), np.float16))
        store.set_column("score", list(store), np.zeros(len(store)))
        assert early.refresh()
        np.testing.assert_array_equal(view.to_numpy("embedding"), before)
        store.erase([KEYS[21], KEYS[299]])
    with pytest.raises(embstore.errors.StoreChangedError):
        early.take(np.array([298]), "embedding")
    assert early.refresh()
    assert early.missing(KEYS) == [KEYS[i] for i in (7, 21, 130, 299)]
    np.testing.assert_array_equal(early.fetch([KEYS[20]], "embedding"), values[:1])
    assert np.isnan(early.array("embedding", dead="include")[[21, 299]]).all()
    with embstore.open(path, "r+") as store:
        store.compact()
        assert embstore.verify(path).ok
        assert {a.compression for n, a in store.snapshot.record.arrays.items() if n in store.fields} == {codec}
    with pytest.raises(embstore.errors.StoreReplacedError):
        early.take(np.array([0]), "embedding")
    assert early.refresh()
    report = embstore.salvage(path, tmp_path / "saved.zarr")
    assert report.rows_kept == 296
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


def test_torch_reads_it(some):
    torch = pytest.importorskip("torch")
    from embstore.torch import EmbeddingDataset

    path, values = some
    store = embstore.open(path)
    classes = store.classes
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
        for workers in (0, 2):
            loader = torch.utils.data.DataLoader(
                EmbeddingDataset(store.select(), classes=classes), batch_size=50, num_workers=workers
            )
            batches = list(loader)
            np.testing.assert_array_equal(torch.cat([b[0] for b in batches]).numpy(), values[live()])
            assert torch.cat([b[1] for b in batches]).tolist() == [i % 7 for i in live()]
    tensor = store.tensor(dead="include")
    tensor += 1
    np.testing.assert_array_equal(store.select().to_numpy(), values[live()])


def test_a_forked_child_reads_after_its_parent(some):
    """Also where the parent's decompressor has threads."""
    path, values = some
    store = embstore.open(path)
    np.testing.assert_array_equal(store[KEYS[:3]], values[:3])

    def work():
        np.testing.assert_array_equal(store.select().to_numpy(), values[live()])
        np.testing.assert_array_equal(embstore.open(path)[KEYS[-3:]], values[-3:])

    assert run_in_child(work) == 0


def test_views_are_copies_that_can_be_written_to(some):
    path, values = some
    store = embstore.open(path)
    taken = store[KEYS[:3]]
    taken += 1
    whole = store.select().to_numpy()
    whole += 1
    np.testing.assert_array_equal(store[KEYS[:3]], values[:3])
    row = store[KEYS[0]]
    assert not row.flags.writeable
    assert not store.array(dead="include").flags.writeable


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


def test_salvage_keeps_the_other_chunks(some, tmp_path):
    path, values = some
    flip(path / "embedding" / "c.1.0")
    saved = embstore.salvage(path, tmp_path / "saved.zarr")
    left = [i for i in live() if not 64 <= i < 128]
    np.testing.assert_array_equal(embstore.open(saved.path)[[KEYS[i] for i in left]], values[left])
    assert list(saved.keys_lost) == [KEYS[i] for i in range(64, 128)]


def test_a_writer_does_not_seal_a_flipped_bit(some):
    path, values = some
    store = embstore.open(path, "r+")
    flip(path / "embedding" / "c.4.0")
    with pytest.raises(CorruptStoreError) as caught:
        store.append(["new:c"], values[:1], columns={"split": "x", "score": 1})
    assert caught.value.path == path / "embedding" / "c.4.0"


@pytest.mark.parametrize("damage", ["truncated", "emptied", "deleted", "grown"])
def test_a_broken_chunk_is_reported(some, damage):
    path, _ = some
    file = path / "embedding" / "c.1.0"
    if damage == "deleted":
        file.unlink()
    elif damage == "grown":
        file.write_bytes(file.read_bytes() + b"more")
    else:
        os.truncate(file, 0 if damage == "emptied" else file.stat().st_size - 9)
    with pytest.raises(CorruptStoreError) as caught:
        embstore.open(path).select().to_numpy()
    assert caught.value.path == file
    assert file in [problem.path for problem in embstore.verify(path).problems]


def sealed(file, payload):
    file.write_bytes(payload + struct.pack("<I", crc32c(payload)))


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
    with embstore.open(path, "a", config={}, compression=codec) as store:  # of a new store only
        store.add_field("late", ["a:c"], np.ones((1, 3), np.float32))
        assert store.snapshot.record.requires == []


# -- writers that are killed --------------------------------------------------------------------------


@pytest.mark.parametrize("change", [append, erase, compact, add_field])
def test_killed_at_every_fifth_step(tmp_path, change, codec):
    """Each change is there whole or not at all, whichever step was the last."""

    def prepare(path):
        with embstore.open(path, "w-", config={"n": 130}, chunk_bytes=4096, compression=codec) as store:
            store.append([key(i) for i in range(130)], rows(range(130)), columns={"score": np.arange(130)})
            store.delete([key(5), key(127)])

    prepare(tmp_path / "done")
    with embstore.open(tmp_path / "done", "r+") as store:
        before = state(store)
        change(store)
        after = state(store)
        assert store.snapshot.record.requires == ["compressed"]

    for step in range(0, 500, 5):
        path = tmp_path / f"{step}.zarr"
        prepare(path)

        def work(path=path, step=step):
            store = embstore.open(path, "r+")
            kill_at(step)
            change(store)

        ended = run_in_child(work)
        assert ended in (0, -signal.SIGKILL)
        found = check_after(path, before, after)
        if ended == 0:
            assert found == after
            break
    assert step >= 10
