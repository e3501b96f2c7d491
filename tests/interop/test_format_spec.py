"""What `docs/format.md` says, held against what embstore writes.

The first half is a reader written from that page alone: it uses nothing of embstore. The second half writes
stores with embstore and compares.
"""

import hashlib
import json
import re
import shutil
import struct
from itertools import pairwise
from pathlib import Path

import google_crc32c
import numcodecs
import numpy as np
import pytest

import embstore
from embstore._engine.format.parse_record import record_from_json
from embstore._engine.format.zarr_layout import array_metadata, group_document
from embstore._engine.io import steps
from embstore.encoders import FunctionEncoder
from embstore.sources import Folder
from tests._helpers import kinds
from tests._helpers.crash import KilledError, stopped_at
from tests._helpers.damage import flip
from tests._helpers.kinds import assert_rows

# -- a reader of the format ---------------------------------------------------------------------------

INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
DTYPES = ["bool", *INTEGERS, "float16", "float32", "float64", "string"]
KEY_ARRAYS = {"file_id": ("string", []), "class_code": ("int32", []), "key_hash": ("uint64", [2])}
OTHERS = {"class_names": ("string", []), "dead_rows": ("int64", [])}


class BrokenError(ValueError):
    """A store breaks the format."""


def check(holds, what):
    if not holds:
        raise BrokenError(what)


def canonical(value):
    """Section 7: JSON as RFC 8785 writes it."""
    if isinstance(value, dict):
        names = sorted(value, key=lambda name: name.encode("utf-16-be"))
        return "{" + ",".join(f"{canonical(name)}:{canonical(value[name])}" for name in names) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(canonical, value)) + "]"
    if value is None or isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False)
    number = float(value)
    if number == 0 or 1e-6 <= abs(number) < 1e21:
        return np.format_float_positional(abs(number) if number == 0 else number, trim="-")
    mantissa, exponent = repr(number).split("e")
    return f"{mantissa}e{int(exponent):+d}"


def digest(value, nbytes):
    return hashlib.blake2b(canonical(value).encode(), digest_size=nbytes).hexdigest()


def hash_key(text):
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def chunk_bytes(path, array):
    """Sections 5 and 14: a chunk file's values, once its size and its own checksum are known to be right."""
    data, size = path.read_bytes(), array["rows_per_chunk"]
    packed, nbytes = "compression" in array, 0
    if array["dtype"] == "string":
        check(len(data) >= 8 + 4 * size, f"{path}: size")
    else:
        nbytes = size * np.dtype(array["dtype"]).itemsize * int(np.prod(array["shape"]))
        most = nbytes + 4 + (nbytes + 4) // 128 + 4096
        check(5 <= len(data) <= most if packed else len(data) == nbytes + 4, f"{path}: size")
    check(google_crc32c.value(data[:-4]) == struct.unpack("<I", data[-4:])[0], f"{path}: crc32c")
    return unpacked(data[:-4], nbytes, array["compression"], path) if packed else data[:-4]


def unpacked(data, nbytes, compression, path):
    """Section 14: the values of a compressed chunk."""
    if compression == "blosc":
        check(struct.unpack_from("<I", data, 4) + struct.unpack_from("<I", data, 12) == (nbytes, len(data)), path)
    else:
        check(compression == "zstd", f"{path}: compression")
        check(data[:4] == bytes.fromhex("28b52ffd"), f"{path}: magic")
        width = {0: 1, 1: 2, 2: 4, 3: 8}[data[4] >> 6]  # of a frame that is one segment, as these small ones are
        check(data[4] & 0b00100011 == 0b00100000, f"{path}: head")
        said = int.from_bytes(data[5 : 5 + width], "little") + (256 if width == 2 else 0)
        check(said == nbytes, f"{path}: content")
    values = bytes(numcodecs.get_codec({"id": compression}).decode(data))
    check(len(values) == nbytes, f"{path}: content")
    return values


def decode(data, array, path):
    """Section 5: the rows of a chunk."""
    if array["dtype"] != "string":
        return np.frombuffer(data, np.dtype(array["dtype"]).newbyteorder("<")).reshape(-1, *array["shape"])
    check(struct.unpack_from("<I", data)[0] == array["rows_per_chunk"], f"{path}: number of strings")
    strings, end = [], 4
    for _ in range(array["rows_per_chunk"]):
        check(end + 4 <= len(data), f"{path}: lengths")
        start = end + 4
        end = start + struct.unpack_from("<I", data, end)[0]
        check(end <= len(data), f"{path}: lengths")
        strings.append(data[start:end].decode())
    check(end == len(data), f"{path}: bytes left over")
    return strings


def read_array(folder, array, erasing, unsettled):
    """Sections 5 and 10: all committed rows of an array, with all checksums checked."""
    length, size, rows = array["length"], array["rows_per_chunk"], []
    count = -(-length // size)
    check((length > 0) == ("tail" in array), f"{folder}: tail")
    digest = 0
    for index in range(count):
        path = folder / (f"c.{index}" + ".0" * len(array["shape"]))
        data = chunk_bytes(path, array)
        if index < length // size:  # section 7
            part = struct.pack("<Q", index) + path.read_bytes()[-4:]
            digest ^= int.from_bytes(hashlib.blake2b(part, digest_size=8).digest(), "big")
        if index == count - 1:
            begin = 4 if array["dtype"] == "string" else 0
            tails = [tail for tail in (array["tail"], erasing) if tail]
            check(
                any(google_crc32c.value(data[begin : begin + t["nbytes"]]) == t["crc32c"] for t in tails),
                f"{path}: tail",
            )
        rows.extend(decode(data, array, path))
    expected = f"{digest:016x}" if length >= size else None
    check(unsettled or array.get("digest") == expected, f"{folder}: digest")
    return rows[:length]


def read_record(path):
    """Sections 6 and 7: the record, its three checksums and its agreement with itself checked."""
    document = json.loads((path / "zarr.json").read_bytes())
    record = document["attributes"]["embstore"]
    check(record["format"] == 1 and set(record["requires"]) <= {"compressed", "ragged"}, "format or features unknown")
    rest = {name: value for name, value in record.items() if name not in ("config", "checksum")}
    check(record["checksum"] == digest(rest, 16), "checksum")
    check(record["fingerprint"] == digest(record["config"], 32), "fingerprint")
    check(record["metadata_checksum"] == digest(document["consolidated_metadata"]["metadata"], 16), "metadata")
    fields = {n: (f["dtype"].replace("bfloat16", "uint16"), f["shape"]) for n, f in record["fields"].items()}
    columns = {c["array"]: (c["dtype"], []) for c in record["columns"].values()}
    for column in record["columns"].values():
        fill, number = column.get("fill", ""), not column["dtype"].startswith(("string", "bool", "float"))
        check(isinstance(fill, str) and (not number or fill == "" or isinstance(json.loads(fill), int)), "fill")
    check("primary" not in record or record["primary"] in record["fields"], "primary")
    offsets = {f"{n}_offsets": ("int64", []) for n, f in record["fields"].items() if f.get("ragged")}
    expected = KEY_ARRAYS | fields | columns | offsets
    arrays = record["arrays"]
    check({n: (a["dtype"], a["shape"]) for n, a in arrays.items()} == expected | OTHERS, "arrays")
    ragged = {name for name, field in record["fields"].items() if field.get("ragged")}
    check(bool(ragged) == ("ragged" in record["requires"]), "ragged")
    for name in ragged:  # section 13
        check(arrays[name]["dims"][0] == f"{name}_token", "dims of tokens")
        check(arrays[f"{name}_offsets"]["dims"] == [f"{name}_offset"], "dims of offsets")
        check(arrays[f"{name}_offsets"]["length"] == record["rows"] + 1, "offsets")
    compressed = {name for name, array in arrays.items() if "compression" in array}
    check(compressed <= fields.keys() and bool(compressed) == ("compressed" in record["requires"]), "compression")
    check(all(arrays[name]["length"] == record["rows"] for name in expected.keys() - ragged - offsets.keys()), "rows")
    check(all(dtype in DTYPES for dtype, _ in expected.values()), "dtypes")
    return record


def read_raw(path):
    """Section 10: the record and all arrays, of one commit."""
    while True:
        record = read_record(path)
        erasing = record.get("erasing", {})
        unsettled = "erasing" in record
        arrays = {n: read_array(path / n, a, erasing.get(n), unsettled) for n, a in record["arrays"].items()}
        again = read_record(path)  # by path, not in an open folder: so the generation counts as well
        if (again["generation"], again["epoch"]) == (record["generation"], record["epoch"]):
            return record, arrays


def read_store(path, also_dead=()):
    """Return ``{key: {field or column: value}}`` of the live rows, bfloat16 as float32."""
    record, arrays = read_raw(path)
    arrays["dead_rows"].extend(also_dead)
    dead = {int(row) for row in arrays["dead_rows"]}
    check(len(dead) == len(arrays["dead_rows"]) and dead <= set(range(record["rows"])), "dead_rows")
    sources = {name: name for name in record["fields"]} | {n: c["array"] for n, c in record["columns"].items()}
    for name in [n for n, field in record["fields"].items() if field.get("ragged")]:
        ends = [int(end) for end in arrays[f"{name}_offsets"]]
        check(ends[0] == 0 and ends[-1] == len(arrays[name]) and ends == sorted(ends), f"{name}: offsets")
        tokens = np.array(arrays[name]).reshape(-1, *record["arrays"][name]["shape"])
        arrays[name] = [tokens[start:stop] for start, stop in pairwise(ends)]
    found = {}
    for row in sorted(set(range(record["rows"])) - dead):
        check(0 <= arrays["class_code"][row] < len(arrays["class_names"]), "class_code")
        key = f"{arrays['file_id'][row]}:{arrays['class_names'][arrays['class_code'][row]]}"
        check(arrays["key_hash"][row].astype("<u8").tobytes() == hash_key(key), f"{key}: key_hash")
        found[key] = {name: arrays[source][row] for name, source in sources.items()}
        for name in [n for n, field in record["fields"].items() if field["dtype"] == "bfloat16"]:
            found[key][name] = (found[key][name].astype(np.uint32) << 16).view(np.float32)
    return found


# -- against what embstore writes ---------------------------------------------------------------------

CONFIG = {
    "encoder": {"id": "MIT/ast", "é\n": None},
    "rate": 16_000,
    "gain": [0.1, 1e21, 5e-7, -0.0, 1e20 / 3],
    "on": True,
}
FIELDS = {
    "mean": embstore.FieldSpec(shape=(8,), dtype="bfloat16"),
    "codes": embstore.FieldSpec(shape=(), dtype="int16"),
}
COLUMNS = {"split": "string", "score": "float64", "ok": "bool"}


def keys_of(start, stop):
    return [f"s3://bucket/é{i}.wav:{'dog' if i % 3 else 'cat'}" for i in range(start, stop)]


def rows_of(keys, seed):
    rng = np.random.default_rng(seed)
    values = {
        "mean": rng.normal(size=(len(keys), 8)).astype("f4"),
        "codes": rng.integers(-9, 9, len(keys)).astype("i2"),
    }
    columns = {
        "split": [f"split {i % 7}" for i in range(len(keys))],
        "score": rng.random(len(keys)),
        "ok": rng.random(len(keys)) > 0.5,
    }
    return {"values": values, "columns": columns, "casting": "same_kind"}


def new_store(path, *sizes, fields=FIELDS, **options):
    options = {"fields": fields, "columns": COLUMNS, "chunk_bytes": 4096, "provenance": {"why": "ß"}, **options}
    store = embstore.open(path, "w-", config=CONFIG, **options)
    start = 0
    for size in sizes:
        keys = keys_of(start, start + size)
        store.append(keys, **rows_of(keys, start))
        start += size
    return store


@pytest.fixture
def store(tmp_path):
    return new_store(tmp_path / "some.zarr", 100, 1, 300)


def assert_same(store):
    """Compare what the reader above reads with what embstore reads."""
    keys, found = list(store), read_store(store.path)
    assert list(found) == keys
    for name in store.fields:
        values = [found[key][name] for key in keys]
        if store.fields[name].ragged:
            assert_rows(store.fetch(keys, name), [v.reshape(-1, *store.fields[name].shape) for v in values])
        else:
            np.testing.assert_array_equal(np.array(values), store.fetch(keys, name), strict=True)
    for name in store.columns:
        assert [found[key][name] for key in keys] == store.select().column(name).tolist()
    return found


def test_several_appends_over_several_chunks(tmp_path):
    store = new_store(tmp_path / "many.zarr", 1, 300, 8000, 699)
    assert len(assert_same(store)) == 9000
    given = rows_of(keys_of(1, 301), 1)["values"]["mean"]
    np.testing.assert_allclose(store.fetch(keys_of(1, 301), "mean"), given, rtol=2**-8)
    chunks = {name: len(list((store.path / name).glob("c.*"))) for name in store.snapshot.record.arrays}
    assert chunks["mean"] > 30
    assert min(chunks[name] for name in ("file_id", "key_hash", "split", "score")) > 1


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_small_commits(tmp_path, compression):
    store = new_store(tmp_path / "small.zarr", 300, *[1] * 5, 7, 2, compression=compression)
    assert len(assert_same(store)) == 314
    for change in (delete, replace, erase, set_column):
        change(store)
        assert_same(store)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bool"])
@pytest.mark.parametrize("shape", [(), (2, 3)], ids=str)
def test_ragged_fields(tmp_path, dtype, shape, rng):
    fields = {"tokens": embstore.FieldSpec(shape=shape, dtype=dtype, ragged=True), "codes": FIELDS["codes"]}
    lengths = rng.choice([0, 0, 1, 3, 128, 300], 402)
    tokens = rng.integers(0, 2 if dtype == "bool" else 99, (lengths.sum(), *shape))
    tokens = embstore.Ragged(tokens.astype("f4" if dtype == "bfloat16" else dtype), np.cumsum([0, *lengths]))
    values = {"tokens": tokens, "codes": np.arange(402, dtype="i2")}
    options = {"columns": {"score": "float64"}, "chunk_bytes": 4096}
    with embstore.open(tmp_path / "ragged.zarr", "w-", config={}, fields=fields, **options) as store:
        assert read_store(store.path) == {}
        store.append(keys_of(0, 402), values, columns={"score": 1.5}, casting="same_kind")
        assert_same(store)
    assert read_record(store.path)["requires"] == ["ragged"]


@pytest.mark.parametrize("compression", ["zstd", "blosc"])
def test_compressed_fields(tmp_path, compression):
    store = new_store(tmp_path / "packed.zarr", 1, 300, 8000, 699, compression=compression)
    assert len(assert_same(store)) == 9000
    record = read_record(store.path)
    assert (record["requires"], record["compression"]) == (["compressed"], compression)
    expected = {
        "zstd": {"name": "zstd", "configuration": {"level": 3, "checksum": False}},
        "blosc": {
            "name": "blosc",
            "configuration": {"cname": "zstd", "clevel": 5, "shuffle": "shuffle", "blocksize": 0, "typesize": 2},
        },
    }[compression]
    for name, array in record["arrays"].items():
        codecs = json.loads((store.path / name / "zarr.json").read_bytes())["codecs"]
        assert [codec["name"] for codec in codecs[::2]] == ["bytes", "crc32c"] or name not in store.fields
        assert codecs[1:-1] == ([expected] if "compression" in array else [])
        assert ("compression" in array) == (name in store.fields)
    text = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
    assert json.dumps(expected).replace('"typesize": 2', '"typesize": 4') in text


@pytest.mark.parametrize("compression", ["zstd", "blosc"])
def test_a_flipped_bit_in_a_compressed_chunk_is_found(tmp_path, compression):
    store = new_store(tmp_path / "packed.zarr", 300, compression=compression)
    for path in (store.path / "mean").glob("c.*"):
        for place in range(0, path.stat().st_size, 97):
            flip(path, place)
            with pytest.raises(BrokenError, match="crc32c"):
                read_store(store.path)
            flip(path, place)
    assert_same(store)


def delete(store):
    store.delete(keys_of(50, 120))


def replace(store):
    keys = keys_of(390, 410)
    store.append(keys, **rows_of(keys, 7), if_exists="replace")


def erase(store):
    store.erase(keys_of(395, 401) + keys_of(0, 2))


def set_column(store):
    store.set_column("score", list(store), np.arange(len(store)) / 2)


def add_field(store):
    store.add_field("late", list(store), np.ones((len(store), 2, 3), "f2"))


@kinds.every_kind
@pytest.mark.parametrize("change", kinds.CHANGES)
def test_one_change(path, kind, change):
    kinds.base(path, kind)
    with embstore.open(path, "r+") as store:
        before = assert_same(store)
        change(store)
        assert (before.keys() == assert_same(store).keys()) == (change.__name__ not in ("append", "delete", "erase"))


def test_changes_one_upon_the_other(store):
    for change in (delete, set_column, replace, add_field, erase, set_column):
        change(store)
        assert_same(store)
        if change is replace:
            store.append(keys := keys_of(500, 650), **rows_of(keys, 8))
    assert store.snapshot.record.columns["score"].array == "score.v3"
    before, generation = read_store(store.path), store.snapshot.record.generation
    store.compact()
    np.testing.assert_equal(assert_same(store), before)
    assert store.snapshot.record.generation != generation
    assert store.snapshot.record.columns["score"].array == "score"


def test_empty_stores(tmp_path):
    assert read_store(new_store(tmp_path / "new.zarr").path) == {}
    store = new_store(tmp_path / "emptied.zarr", 3)
    store.delete(list(store))
    assert read_store(store.path) == {}
    store.compact()
    assert read_store(store.path) == {}


def test_erased_rows_are_blank(store):
    erase(store)
    record, arrays = read_raw(store.path)
    assert record["epoch"] == 1
    assert len(arrays["dead_rows"]) == 8
    for row in arrays["dead_rows"]:
        assert (arrays["file_id"][row], arrays["split"][row]) == ("", "")
        assert arrays["score"][row].tobytes() == bytes.fromhex("000000000000f87f")
        assert (arrays["mean"][row] == 0x7FC0).all()
        assert not any(arrays[name][row].any() for name in ("codes", "key_hash", "class_code", "ok"))
    texts = [path.read_bytes() for path in store.path.rglob("*") if path.is_file()]
    assert not any("é395.wav".encode() in text for text in texts)


def test_the_spare_copy_of_the_record(store):
    delete(store)
    spare = json.loads((store.path / "key_hash" / "zarr.json").read_bytes())["attributes"]["embstore_backup"]
    assert spare == read_record(store.path)


# -- writers that were killed -------------------------------------------------------------------------


def test_rows_that_were_never_committed_are_not_seen(store):
    before = read_store(store.path)
    with stopped_at("rename", "some.zarr/zarr.json"), pytest.raises(KilledError):
        replace(store)
    np.testing.assert_equal(read_store(store.path), before)
    replace(embstore.open(store.path, "r+"))
    assert len(read_store(store.path)) == 410


@pytest.mark.parametrize("end", ["file_id/c.0", "mean/c.1.0", "score/c.0", "index"])
def test_an_erase_under_way_can_be_read(store, end):
    (store.path / "index").mkdir()
    with stopped_at("rmtree" if end == "index" else "rename", end), pytest.raises(KilledError):
        erase(store)
    assert "erasing" in read_record(store.path)
    assert read_store(store.path).keys() == set(keys_of(2, 395))
    with embstore.open(store.path, "r+") as other:
        other.delete(keys_of(2, 3))
        assert_same(other)
    assert "erasing" not in read_record(store.path)


def test_the_index_may_be_removed_at_any_time(tmp_path):
    store = embstore.open(tmp_path / "indexed.zarr", "w-", config={})
    store.append([f"{i}:_" for i in range(66_000)], np.zeros((66_000, 1), np.int8))
    shutil.rmtree(store.path / "index")
    assert embstore.open(store.path, "r+").rows_of(["65999:_"]) == [65_999]


# -- the steps of a commit ----------------------------------------------------------------------------


def steps_of(monkeypatch, store, change):
    """Return the operations of a change: (operation, path in the store, and for a rename the temporary name)."""
    found = []

    def hook(operation, path, data):
        where = path.removeprefix(str(store.path)).lstrip("/")
        found.append((operation, where, data if operation == "rename" else None))

    monkeypatch.setattr(steps, "step_hook", hook)
    change(store)
    monkeypatch.setattr(steps, "step_hook", None)
    return found


def append_one(store):
    store.append(keys := keys_of(700, 701), **rows_of(keys, 5))


@pytest.mark.parametrize("change", [append_one, delete, replace, set_column, add_field])
def test_a_commit_takes_the_steps_of_section_11(store, monkeypatch, change):
    old = set(store.snapshot.record.arrays)
    found = steps_of(monkeypatch, store, change)
    changed = set(store.snapshot.record.arrays)
    commit = found.index(("rename", "zarr.json", ".partial"))
    renames = [place for place, (operation, _, _) in enumerate(found) if operation == "rename"]
    synced = [path for operation, path, _ in found[: renames[0]] if operation == "fsync"]
    names = [f"{found[place][1].rpartition('/')[0]}/{found[place][2]}".lstrip("/") for place in renames]
    assert sorted(synced) == sorted(names)  # step 5: all of them, before the first rename
    early = [found[place][1] for place in renames if place < commit]  # step 6
    assert early
    for path in early:
        folder, _, name = path.rpartition("/")
        assert name.startswith("c.")
        place = found.index(("sync_folder", folder, None))
        assert max(p for p in renames if p < commit and found[p][1].startswith(f"{folder}/")) < place < commit
    assert found[commit + 1] == ("sync_folder", "", None)  # step 7
    late = found[commit + 2 :]  # step 8
    assert {operation for operation, _, _ in late} <= {"rename", "rmtree", "sync_folder"}
    assert {path.rpartition("/")[2] for operation, path, _ in late if operation == "rename"} <= {"zarr.json"}
    assert "key_hash/zarr.json" in {path for operation, path, _ in late if operation == "rename"}
    assert {path for operation, path, _ in late if operation == "sync_folder"} - {""} == changed - old


# -- what the checksums find --------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*KEY_ARRAYS, *OTHERS, *FIELDS, *COLUMNS])
def test_a_flipped_bit_in_a_chunk_is_found(store, name):
    delete(store)
    chunks = list((store.path / name).glob("c.*"))
    for path in chunks:
        size = path.stat().st_size
        for place in (0, 5, size // 2, size - 5, size - 4, size - 1):
            flip(path, place)
            with pytest.raises(BrokenError, match="crc32c"):
                read_store(store.path)
            flip(path, place)
    assert len(chunks) == (2 if name == "mean" else 1)
    assert_same(store)


def test_a_tail_of_other_rows_is_found(store):
    """A chunk that is whole, but not the one that was committed last."""
    path = store.path / "score" / "c.0"
    old = path.read_bytes()
    store.append(keys := keys_of(401, 402), **rows_of(keys, 9))
    path.write_bytes(old)
    with pytest.raises(BrokenError, match=r"score.c\.0: tail"):
        read_store(store.path)


def test_chunks_that_changed_places_are_found(tmp_path):
    store = new_store(tmp_path / "many.zarr", 8000)
    first, second = store.path / "mean" / "c.1.0", store.path / "mean" / "c.2.0"
    one, other = first.read_bytes(), second.read_bytes()
    for contents in ((other, one), (one, one), (other, other)):
        first.write_bytes(contents[0])
        second.write_bytes(contents[1])
        with pytest.raises(BrokenError, match="mean: digest"):
            read_store(store.path)


@pytest.mark.parametrize(
    ("place", "what"),
    [
        (("attributes", "embstore", "rows"), "checksum"),
        (("attributes", "embstore", "provenance", "why"), "checksum"),
        (("attributes", "embstore", "unknown"), "checksum"),
        (("attributes", "embstore", "config", "rate"), "fingerprint"),
        (("consolidated_metadata", "metadata", "mean", "shape"), "metadata"),
    ],
)
def test_a_changed_record_is_found(store, place, what):
    path = store.path / "zarr.json"
    document = json.loads(path.read_bytes())
    inner = document
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = 7
    path.write_text(json.dumps(document))
    with pytest.raises(BrokenError, match=what):
        read_store(store.path)


# -- the page itself ----------------------------------------------------------------------------------


def json_examples():
    text = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
    return [json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL)]


def test_the_examples_of_the_page():
    metadata, example = json_examples()
    record = record_from_json(example)
    assert group_document(record)["attributes"]["embstore"] == example
    assert array_metadata(record.arrays["mean"]) == metadata
    rest = {name: value for name, value in example.items() if name not in ("config", "checksum")}
    assert (digest(example["config"], 32), digest(rest, 16)) == (example["fingerprint"], example["checksum"])


def test_the_other_figures_of_the_page():
    assert hash_key("video_00001:dog").hex() == "61e61f93e5e2c2eaf6af7671ac488edc"
    assert struct.unpack("<2Q", hash_key("video_00001:dog")) == (16916332626000733793, 15892720040512237558)
    assert google_crc32c.value(b"123456789") == 0xE3069283


def test_spacing_and_order_have_no_meaning(store):
    path = store.path / "zarr.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()), sort_keys=True, indent=2))
    assert_same(embstore.open(store.path))


@pytest.mark.parametrize("feature", ["knotted", "journal"])
def test_unknown_features_are_refused(store, feature):
    """The journal was a feature before the first release."""
    path = store.path / "zarr.json"
    document = json.loads(path.read_bytes())
    record = document["attributes"]["embstore"]
    record["requires"] = [feature]
    record["checksum"] = digest({n: v for n, v in record.items() if n not in ("config", "checksum")}, 16)
    path.write_text(json.dumps(document))
    with pytest.raises(embstore.errors.UnsupportedFormatError, match=feature):
        embstore.open(store.path)
    with pytest.raises(BrokenError, match="features"):
        read_store(store.path)


def test_the_format_names_no_feature_that_is_gone():
    text = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\d+)\.", text, re.M) == [str(number) for number in range(1, 17)]
    assert "checkpoint" not in text
    assert re.findall(r".*journal.*", text) == re.findall(r".*`\"journal\"`.*", text)


def test_origins_of_rows(tmp_path):
    """Section 9: bit i of a row's `source_origins` stands for entry i of `origins`."""
    encoder = FunctionEncoder(lambda items: np.ones((len(items), 2), "f4"), config={"encoder": "ones"})
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        for name in ("both", place):
            (tmp_path / place / f"{name}.txt").write_text(name)
        path = embstore.embed(Folder(tmp_path / place, name="x"), encoder, tmp_path / "cache").path
    origins, rows = read_record(path)["origins"], read_store(path)
    assert origins == [{"kind": "folder", "root": str(tmp_path / place)} for place in ("one", "two")]
    found = {key.partition(":")[0]: row["source_origins"] for key, row in rows.items()}
    assert found == {"both": 3, "one": 1, "two": 2}
