"""Section 16 of `docs/format.md`, stores of parts, held against what embstore writes.

The first half is a reader written from the page alone, as that of `test_format_spec`, which reads the parts.
"""

import hashlib
import json
import re
import shutil
import zipfile

import google_crc32c
import numpy as np
import pytest

import embstore
from embstore._engine.write import build_part
from tests._helpers.buckets import objects
from tests._helpers.kinds import assert_rows
from tests.interop.test_format_spec import (
    COLUMNS,
    CONFIG,
    FIELDS,
    BrokenError,
    check,
    digest,
    keys_of,
    read_record,
    read_store,
    rows_of,
)


def read_listing(data):
    """Section 16: the record of a store of parts, with its checksums, names and numbers checked."""
    document = json.loads(data)
    record = document["attributes"]["embstore"]
    check(record["format"] == 1 and set(record["requires"]) <= {"compressed", "ragged", "parts"}, "features unknown")
    rest = {name: value for name, value in record.items() if name not in ("config", "checksum")}
    check(record["checksum"] == digest(rest, 16), "checksum")
    check(record["fingerprint"] == digest(record["config"], 32), "fingerprint")
    check(re.fullmatch("[0-9a-f]+", record["id"]), "id")
    check("parts" in record["requires"] and "consolidated_metadata" not in document, "parts")
    check(not {"metadata_checksum", "erasing", "dropped"} & record.keys() and record["rows"] == 0, "members")
    check(record["commit_id"] == record["recent"][-1] if record["seq"] else not record["recent"], "recent")
    ragged = {name for name, field in record["fields"].items() if field.get("ragged")}
    for name, array in record["arrays"].items():
        check(array["length"] == (name.removesuffix("_offsets") in ragged - {name}), "arrays without rows")
    for name, column in record["columns"].items():
        check(column["array"] == name, "array of a column")
    for part in record["parts"]:
        check(re.fullmatch(r"[0-9]{8,15}-[0-9a-f]{16}(\.zip)?", part["name"]), "name of a part")
        check(part["rows"] >= 1 and part.get("tokens", {}).keys() == ragged, "rows and tokens")
        if dead := part.get("dead"):
            check(re.fullmatch(r"[0-9]{8,15}-[0-9a-f]{16}", dead["name"]), "name of a list")
            check(1 <= dead["rows"] <= part["rows"], "rows of a list")
    return record


def read_parts(path):
    """Section 16: the live rows of a store of parts in a folder, as `read_store` returns them."""
    record, found = read_listing((path / "zarr.json").read_bytes()), {}
    for part in record["parts"]:
        folder = path / "parts" / part["name"]
        if part["name"].endswith(".zip"):
            with zipfile.ZipFile(folder) as archive:
                check(all(member.compress_type == 0 for member in archive.infolist()), "uncompressed")
                archive.extractall(folder := path / "unpacked" / part["name"].removesuffix(".zip"))
        data = (folder / "zarr.json").read_bytes()
        check(part["digest"] == hashlib.blake2b(data, digest_size=16).hexdigest(), "digest of a part")
        own = read_record(folder)
        check(own["rows"] == part["rows"] and own["arrays"]["dead_rows"]["length"] == 0, "rows of a part")
        for name in ("fields", "columns", "fingerprint"):
            check(own[name] == record[name], name)
        for name, tokens in part.get("tokens", {}).items():
            check(own["arrays"][name]["length"] == tokens, "tokens of a part")
        numbers = []
        if dead := part.get("dead"):
            data = (path / "dead" / dead["name"]).read_bytes()
            check(len(data) == 8 * dead["rows"] and google_crc32c.value(data) == dead["crc32c"], "list of dead rows")
            numbers = np.frombuffer(data, "<i8").tolist()
            check(numbers == sorted(set(numbers)) and numbers[0] >= 0 and numbers[-1] < part["rows"], "dead rows")
        rows = read_store(folder, numbers)
        check(not rows.keys() & found.keys(), "a key with two live rows")
        found |= rows
    return found


# -- against what embstore writes ---------------------------------------------------------------------


@pytest.fixture
def parts(buckets):
    """Make a store of parts, and a function that copies its objects into a folder."""
    url = "s3://mem/some.zarr"
    fields = FIELDS | {"tokens": embstore.FieldSpec(shape=(3,), dtype="float32", ragged=True)}
    store = embstore.open(url, "w-", config=CONFIG, fields=fields, columns=COLUMNS, chunk_bytes=4096)

    import obstore

    def copied(folder):
        shutil.rmtree(folder, ignore_errors=True)
        for name in objects(buckets["mem"]):
            path = folder / name.removeprefix("some.zarr/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(obstore.get(buckets["mem"], name).bytes()))
        return folder

    return store, copied


def append_part(store, start, stop, **options):
    given, rng = rows_of(keys_of(start, stop), start), np.random.default_rng(start)
    lengths = rng.integers(0, 5, stop - start)
    tokens = embstore.Ragged(rng.normal(size=(lengths.sum(), 3)).astype("f4"), np.cumsum([0, *lengths]))
    store.append(keys_of(start, stop), given["values"] | {"tokens": tokens}, columns=given["columns"], **options)


def test_stores_of_parts(parts, tmp_path, monkeypatch):
    store, copied = parts

    def same():
        keys, found = list(store), read_parts(copied(tmp_path / "copy"))
        assert list(found) == keys
        for name, spec in store.fields.items():
            values = [found[key][name] for key in keys]
            if spec.ragged:
                assert_rows(store.fetch(keys, name), [value.reshape(-1, *spec.shape) for value in values])
            elif keys:
                np.testing.assert_array_equal(np.array(values), store.fetch(keys, name), strict=True)
        for name in store.columns:
            assert [found[key][name] for key in keys] == store.select().column(name).tolist()
        return read_listing((tmp_path / "copy" / "zarr.json").read_bytes())

    assert same()["parts"] == []
    options = {"casting": "same_kind"}
    append_part(store, 0, 100, **options)
    append_part(store, 90, 101, if_exists="replace", **options)
    monkeypatch.setattr(build_part, "MOST_ZIPPED", 0)
    append_part(store, 101, 500, **options)
    record = same()
    assert [part["name"].endswith(".zip") for part in record["parts"]] == [True, True, False]
    assert (record["seq"], [part.get("dead", {}).get("rows") for part in record["parts"]]) == (3, [10, None, None])
    store.delete(keys_of(95, 105))
    old = same()
    store.compact()
    record = same()
    (one,) = record["parts"]
    listed = {f"{folder}/{name}" for folder, name in _objects_of(old)}
    assert one["of"] == [part["name"] for part in old["parts"]]
    assert record["retired"] == dict.fromkeys(listed, one["name"])
    assert record["generation"] != old["generation"]
    store.erase(keys_of(0, 5))
    after = same()
    assert (after["epoch"], after["retired"], after["floor"] > after["seq"]) == (record["epoch"] + 1, {}, True)
    left = {path.relative_to(tmp_path / "copy").parts[:2] for path in (tmp_path / "copy").rglob("c.*")}
    assert left == set(_objects_of(after))


def _objects_of(record):
    for part in record["parts"]:
        yield "parts", part["name"]
        if "dead" in part:
            yield "dead", part["dead"]["name"]


def test_zarr_reads_a_part(parts, tmp_path):
    zarr = pytest.importorskip("zarr")
    store, copied = parts
    append_part(store, 0, 7, casting="same_kind")
    (path,) = (copied(tmp_path / "copy") / "parts").iterdir()
    with zarr.storage.ZipStore(path, mode="r") as archive:
        group = zarr.open_group(archive, mode="r")
        np.testing.assert_array_equal(group["codes"][:], store.fetch(keys_of(0, 7), "codes"))
        assert group["file_id"][:].tolist() == [key.rpartition(":")[0] for key in keys_of(0, 7)]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda record: record["parts"][0].update(rows=8), "checksum"),
        (lambda record: record["parts"][0].update(digest="0" * 32), "digest of a part"),
        (lambda record: record["parts"][0].update(name="../other"), "name of a part"),
        (lambda record: record["parts"][0]["dead"].update(crc32c=0), "list of dead rows"),
        (lambda record: record["parts"].append(record["parts"][0]), "two live rows"),
    ],
)
def test_a_changed_list_of_parts_is_found(parts, tmp_path, change, what):
    """By the reader above, and by embstore."""
    store, copied = parts
    append_part(store, 0, 7, casting="same_kind")
    store.delete(keys_of(0, 1))
    path = copied(tmp_path / "copy") / "zarr.json"
    document = json.loads(path.read_bytes())
    record = document["attributes"]["embstore"]
    change(record)
    if what != "checksum":
        record["checksum"] = digest({n: v for n, v in record.items() if n not in ("config", "checksum")}, 16)
    path.write_text(json.dumps(document))
    with pytest.raises(BrokenError, match=what):
        read_parts(path.parent)
    for zipped in list((path.parent / "parts").glob("*.zip")):  # as in a mirror
        shutil.unpack_archive(zipped, zipped.with_suffix(""))
    with pytest.raises(embstore.errors.CorruptStoreError):
        list(embstore.open(path.parent, check="all"))
