"""Rule by rule: a key may have no class. ``"P1"``, ``"P1:_"``, `Key("P1")` and `Key("P1", None)` are one key."""

import numpy as np
import pytest

import embstore
from embstore import Key, errors
from embstore._engine.write.check_input import read_keys

FORMS = {"text": "P1", "with _": "P1:_", "Key": Key("P1"), "Key of None": Key("P1", None)}
KEYS = ["P1", "P2", "s3://b/P3:_", "P4:dog", "P4:cat", "P5:dog"]  # as they come out
GIVEN = ["P1:_", Key("P2"), Key("s3://b/P3", None), "P4:dog", "P4:cat", Key("P5", "dog")]


@pytest.fixture
def store(path):
    with embstore.open(path, "w-", config={"encoder": "e"}) as opened:
        opened.append(GIVEN, np.arange(18, dtype=np.float32).reshape(6, 3), columns={"n": list(range(6))})
        yield opened


USES = {
    "[]": lambda s, k: s[k][0] == 0,
    "[list]": lambda s, k: s[[k]].tolist() == [[0, 1, 2]],
    "in": lambda s, k: k in s,
    "find": lambda s, k: s.find([k]).tolist() == [0],
    "rows_of": lambda s, k: s.rows_of([k]).tolist() == [0],
    "missing": lambda s, k: s.missing([k, "P9"]) == ["P9"],
    "fetch": lambda s, k: s.fetch([k]).tolist() == [[0, 1, 2]],
    "select": lambda s, k: s.select(keys=[k]).keys == ["P1"],
    "nearest": lambda s, k: s.select().nearest(k, k=1).queries == ["P1"],
    "delete": lambda s, k: s.delete([k]) == 1 and "P1" not in s,
    "erase": lambda s, k: s.erase([k]).rows == (0,) and "P1" not in s,
    "set_column": lambda s, k: s.set_column("m", [k], 7, fill=0) or s.select(keys=["P1"]).column("m").tolist() == [7],
    "replace": lambda s, k: s.append([k], np.ones((1, 3), np.float32), columns={"n": 1}, if_exists="replace").replaced,
    "skip": lambda s, k: s.append([k], np.ones((1, 3), np.float32), columns={"n": 1}, if_exists="skip").skipped,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("use", USES)
def test_each_form_of_a_key_is_taken(store, use, form):
    assert USES[use](store, FORMS[form])


def test_keys_come_out_bare_where_that_parses_back(store, tmp_path):
    pytest.importorskip("pandas")
    view = store.select()
    assert list(store) == view.keys == KEYS
    assert [Key.parse(key) for key in KEYS] == [Key.parse(key) for key in GIVEN]
    assert view.file_ids == ["P1", "P2", "s3://b/P3", "P4", "P4", "P5"]
    assert view.class_names == ["_", "_", "_", "dog", "cat", "dog"]
    found = view.nearest(np.ones(3), k=6).to_pandas()
    assert dict(zip(found.key, found.class_name, strict=True)) == dict(zip(KEYS, view.class_names, strict=True))
    assert store.select(classes="_").keys == KEYS[:3]
    store.compact()
    embstore.merge(tmp_path / "merged.zarr", store.path)
    assert list(store) == list(embstore.open(tmp_path / "merged.zarr")) == KEYS


@pytest.mark.parametrize("twice", [["P1", "P1:_"], ["P1", Key("P1")], ["P1:_", Key("P1", None)]])
def test_two_forms_of_one_key_are_one_key_twice(store, twice):
    with pytest.raises(errors.DuplicateKeysError) as caught:
        store.append(twice, np.ones((2, 3), np.float32), columns={"n": 1}, if_exists="replace")
    assert caught.value.keys == ("P1",)
    with store.writer(if_exists="replace") as writer:
        writer.add(twice[0], np.ones(3, np.float32), columns={"n": 8})
        writer.add(twice[1], np.ones(3, np.float32), columns={"n": 9})
    assert store.select(keys=["P1"]).column("n").tolist() == [9]


@pytest.mark.parametrize(
    ("keys", "others"),
    [
        (["P4"], ["P4:dog", "P4:cat"]),
        (["P1:dog"], ["P1"]),
        (["P5:cat", "P9", "P2:dog"], ["P5:dog", "P2"]),
        (["s3://b/P3:dog"], ["s3://b/P3:_"]),
        (["P9"], []),
    ],
)
@pytest.mark.parametrize("call", ["rows_of", "fetch", "delete", "erase"])
def test_a_miss_names_the_classes_that_the_file_id_has(store, call, keys, others):
    with pytest.raises(errors.MissingKeysError) as caught:
        getattr(store, call)(keys)
    assert list(caught.value.keys) == keys
    assert list(caught.value.others) == others
    assert all(repr(key) in str(caught.value) for key in [*keys, *others])
    assert ("the same file_ids are stored as" in str(caught.value)) == bool(others)


def test_no_class_is_no_class(store):
    assert store.classes == store.select().classes == ["dog", "cat"]
    assert "classes: 2: dog, cat" in repr(store)
    with embstore.open(store.path.with_name("bare"), "x", config={"encoder": "demo"}) as bare:
        assert "classes: 0\n" in repr(bare)
    assert store.select(keys=["P1"]).classes == []
    for classes, unknown in ((["dog", "cat"], "_"), (["dog", "cat", "_"], "_")):
        with pytest.raises(errors.UnknownClassError, match="rows without a class") as caught:
            store.select().labels(classes)
        assert caught.value.class_names == (unknown,)
    assert store.select(classes=["dog", "cat"]).labels(["cat", "dog"]).tolist() == [1, 0, 1]
    with pytest.raises(errors.UnknownClassError) as caught:
        store.select(classes=["wolf"])
    assert caught.value.available == ("dog", "cat")


@pytest.mark.parametrize("keys", [["a", "b"], ["a:x", "b:y"], ["a", "b:y"], ["a:_", "b"], ["a", Key("b", "y")], []])
def test_keys_are_split_alike_by_the_fast_path_and_one_by_one(keys):
    batch, parsed = read_keys(keys), [Key.parse(key) for key in keys]
    assert batch.texts == [str(key) for key in parsed]
    assert list(zip(batch.file_ids, batch.class_names, strict=True)) == parsed


@pytest.mark.parametrize("keys", [["a", ""], [""], ["a", "b:"], [":b"], ["a", "\ud800"], ["x" * 65_534]])
def test_a_malformed_key_is_refused_among_bare_ones(keys):
    with pytest.raises(errors.KeyFormatError):
        read_keys(keys)
