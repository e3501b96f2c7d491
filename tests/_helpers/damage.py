"""Ways to damage a store: bits that flip, files that are cut, and records that are forged."""

import json
import os
import shutil

from embstore._engine.format.values import checksum, crc32c


def flip(file, place=None, bit=0):
    data = bytearray(file.read_bytes())
    data[len(data) // 3 if place is None else place] ^= 1 << bit
    file.write_bytes(data)


def sealed(file, body):
    """Write a chunk with a checksum that is right."""
    file.write_bytes(body + crc32c(body).to_bytes(4, "little"))


DAMAGES = [
    *("flipped", "flipped checksum", "zeros", "truncated", "emptied", "grown", "deleted"),
    *("a folder", "a link", "a fifo"),
]


def damage(file, how):
    """Damage a chunk file in one of the ways of `DAMAGES`."""
    if how == "flipped":
        flip(file)
    elif how == "flipped checksum":
        flip(file, place=-1)
    elif how == "zeros":
        file.write_bytes(bytes(file.stat().st_size))
    elif how == "truncated":
        os.truncate(file, max(file.stat().st_size - 4096, 9))
    elif how == "emptied":
        os.truncate(file, 0)
    elif how == "grown":
        with file.open("ab") as f:
            f.write(b"more")
    else:
        copy = file.parents[2] / "copy"
        shutil.copy(file, copy)
        file.unlink()
        if how == "a folder":
            file.mkdir()
        elif how == "a link":
            file.symlink_to(copy)
        elif how == "a fifo":
            os.mkfifo(file)


def repair(file, content):
    """Put back the content of a file that was damaged."""
    if file.is_dir():
        file.rmdir()
    else:
        file.unlink(missing_ok=True)
    file.write_bytes(content)


def edit(path, change, *, seal=True):
    """Change the record, and seal it with checksums that are right."""
    document = json.loads((path / "zarr.json").read_text())
    record = document["attributes"]["embstore"]
    change(record)
    if seal:
        record["checksum"] = checksum(record)
    (path / "zarr.json").write_text(json.dumps(document))


def setter(*names, value):
    """Return a change of a record that sets one of its values."""

    def change(record):
        for name in names[:-1]:
            record = record[name]
        record[names[-1]] = value

    return change


_DIGEST = "0" * 16  # of the full chunks that such an array would have
ABSURD = {
    "rows": setter("rows", value=2**60),
    "negative rows": setter("rows", value=-1),
    "length": setter("arrays", "embedding", "length", value=2**40),
    "all lengths": lambda r: [
        r.update(rows=2**40),
        *(
            a.update(length=2**40, digest=_DIGEST)
            for n, a in r["arrays"].items()
            if n not in ("class_names", "dead_rows")
        ),
    ],
    "shape": setter("arrays", "embedding", "shape", value=[2**40, 2**40]),
    "zero shape": setter("arrays", "embedding", "shape", value=[0]),
    "chunk": setter("arrays", "embedding", "rows_per_chunk", value=2**31),
    "zero chunk": setter("arrays", "embedding", "rows_per_chunk", value=0),
    "dtype": setter("arrays", "embedding", "dtype", value="object"),
    "tail": setter("arrays", "file_id", "tail", "nbytes", value=2**31),
    "many names": lambda r: r["arrays"]["class_names"].update(length=2**40, digest=_DIGEST),
    "long names": setter("arrays", "class_names", "tail", "nbytes", value=2**32),
    "many codes": lambda r: r["arrays"]["class_code"].update(rows_per_chunk=1, digest=_DIGEST),
    "a path for a name": lambda r: r["arrays"].update({"../../etc": r["arrays"]["embedding"]}),
    "a number for the record": setter("arrays", value=3),
    "fields of nothing": setter("fields", value=None),
    "a column in another's array": lambda r: r["columns"].update(c={"dtype": "int32", "array": "class_code"}),
    "a column's array elsewhere": lambda r: r["columns"].update(c={"dtype": "int8", "array": "../x"}),
    "a huge config": setter("config", value={"a": 10**400}),
}
"""Changes of the record of any store with a field `embedding`, after which no size in it may be believed."""
