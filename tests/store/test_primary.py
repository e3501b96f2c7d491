"""The primary field: read where none is named, decided by the creator, unchanged by fields that are added."""

import json

import numpy as np
import pytest

import embstore
from embstore import FieldSpec, Key, errors
from embstore._engine.format.parse_record import record_from_json
from embstore._engine.format.record import SchemaError

KEYS = ["P1", "b:x"]
A, B = np.float32([[1, 2], [3, 4]]), np.float32([[5, 6, 7], [8, 9, 10]])
FIELDS = {"a": FieldSpec(shape=(2,)), "b": FieldSpec(shape=(3,))}


def made(path, **options):
    store = embstore.open(path, "w-", config={"encoder": "e"}, **options)
    store.append(KEYS, {"a": A, "b": B})
    return store


READS = {
    "[]": lambda s: s["P1"].tolist(),
    "[list]": lambda s: s[["P1"]][0].tolist(),
    "fetch": lambda s: s.fetch(["P1"])[0].tolist(),
    "take": lambda s: s.take([0])[0].tolist(),
    "array": lambda s: s.array()[0].tolist(),
    "to_numpy": lambda s: s.select().to_numpy()[0].tolist(),
    "nearest": lambda s: s.select().vectors().read(0, 1)[0].tolist(),
    "align": lambda s: embstore.align(x=s.select(), y=s.select())[0]["x"].tolist(),
}


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("how", ["first", "declared", "named"])
def test_the_creator_decides_and_a_field_that_is_added_changes_nothing(path, read, how):
    options = {"first": {}, "declared": {"fields": FIELDS}, "named": {"fields": FIELDS, "primary": "b"}}[how]
    expected = [5, 6, 7] if how == "named" else [1, 2]
    with made(path, **options) as store:
        assert READS[read](store) == expected
        store.add_field("c", KEYS, np.ones((2, 4), np.float32))
        store.compact()
        assert READS[read](embstore.open(path)) == expected
    assert embstore.verify(path).ok


def test_another_field_is_named_beside_the_key(path):
    with made(path) as store:
        assert store["P1", "b"].tolist() == store[Key("P1"), "b"].tolist() == [5, 6, 7]
        assert store[["b:x", "P1"], "b"].tolist() == B[::-1].tolist()
        with pytest.raises(errors.UnknownFieldError):
            store["P1", "b:x"]
        for odd in (("P1",), ("P1", "b", "a"), ("P1", 3)):
            with pytest.raises(TypeError, match="and a field"):
                store[odd]


def test_a_merge_keeps_that_of_the_target(path, tmp_path):
    made(path, fields=FIELDS, primary="b").close()
    embstore.merge(tmp_path / "new", path)
    assert embstore.open(tmp_path / "new").snapshot.record.primary == "b"
    with embstore.open(tmp_path / "other", "w-", config={"encoder": "e"}, fields=FIELDS) as other:
        assert other.snapshot.record.primary == "a"
    embstore.merge(tmp_path / "other", path)
    assert embstore.open(tmp_path / "other").snapshot.record.primary == "a"


def test_a_primary_field_that_is_none_is_refused(path):
    with pytest.raises(errors.UnknownFieldError):
        embstore.open(path, "w-", config={"encoder": "e"}, fields=FIELDS, primary="c")
    made(path, fields=FIELDS).close()
    with pytest.raises(errors.OptionsMismatchError):
        embstore.open(path, "a", config={"encoder": "e"}, primary="b")
    record = json.loads((path / "zarr.json").read_bytes())["attributes"]["embstore"]
    assert record_from_json(record).primary == "a"
    for odd in ("nope", 3, []):
        with pytest.raises(SchemaError, match="primary"):
            record_from_json({**record, "primary": odd})
