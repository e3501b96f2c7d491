"""A subclass of `str` is stored, found and compared as the characters that it holds, at every door of a store."""

import enum
import json

import numpy as np
import pytest

import embstore
from embstore import Config, Key, errors
from embstore.encoders import FunctionEncoder
from embstore.sources import Folder, Items, Table

ROW = np.ones((1, 3), np.float32)


class Shouted(str):
    """Text that shows, formats, compares and hashes as another text than it holds."""

    def __str__(self):
        return "SHOUTED"

    def __format__(self, spec):
        return "SHOUTED"

    def __eq__(self, other):
        return False

    def __hash__(self):
        return 7


class Named(str):
    def __str__(self):
        return "named"

    __repr__ = __format__ = lambda self, *_: "named"


def of_enum(text):
    return enum.Enum("Label", {"MEMBER": text}, type=str).MEMBER


def of_str_enum(text):
    return enum.StrEnum("Label", {"MEMBER": text}).MEMBER


KINDS = {"enum": of_enum, "str enum": of_str_enum, "np.str_": np.str_, "shouted": Shouted, "named": Named}

DOORS = {  # each takes a store with the row "a:dog" and the column split="train", and a function that makes text
    "find key": lambda s, t: s.find([t("a:dog")]).tolist() == [0],
    "find parts": lambda s, t: s.find([Key(t("a"), t("dog"))]).tolist() == [0],
    "in": lambda s, t: t("a:dog") in s and Key(t("a"), t("dog")) in s,
    "missing": lambda s, t: s.missing([t("b:dog")]) == ["b:dog"] and type(s.missing([t("b:x")])[0]) is str,
    "getitem": lambda s, t: s[t("a:dog")].tolist() == [1, 1, 1],
    "classes": lambda s, t: len(s.select(classes=[t("dog")])) == len(s.select(classes=t("dog"))) == 1,
    "labels": lambda s, t: s.select().labels([t("dog")]).tolist() == [0],
    "where": lambda s, t: len(s.select(where={t("split"): t("train")})) == 1,
    "where in": lambda s, t: len(s.select(where={"split": [t("x"), t("train")]})) == 1,
    "column": lambda s, t: s.select().column(t("split")).tolist() == ["train"],
    "field": lambda s, t: s.take([0], t("embedding")).tolist() == [[1, 1, 1]],
    "nearest": lambda s, t: s.select().nearest(t("a:dog"), itself="include").keys == ["a:dog"],
    "query": lambda s, t: s.select().nearest([t("a:dog")], itself="include").queries == ["a:dog"],
    "delete": lambda s, t: s.delete([Key(t("a"), t("dog"))]) == 1,
    "erase": lambda s, t: (
        s.erase([t("a:dog")]).key_hashes == (embstore._engine.format.keys.hash_keys(["a:dog"]).tobytes().hex(),)
    ),
    "new field": lambda s, t: s.add_field(t("more"), [t("a:dog")], ROW) or list(s.fields) == ["embedding", "more"],
    "new column": lambda s, t: s.set_column(t("n"), [t("a:dog")], t("x")) or s.select().column("n").tolist() == ["x"],
    "align": lambda s, t: embstore.align(classes=[t("dog")], a=s.select(), b=s.select()).classes == ("dog",),
    "split": lambda s, t: list(s.select().split({"a": 1.0}, rng=0, by=t("split"))) == ["a"],
}


@pytest.fixture
def store(path):
    with embstore.open(path, "w-", config={"e": 1}) as made:
        made.append(["a:dog"], ROW, columns={"split": ["train"]})
        yield made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("door", DOORS)
def test_text_at_each_door(store, door, kind):
    assert DOORS[door](store, KINDS[kind])
    assert embstore.verify(store.path).ok


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["append", "parts", "writer", "writer.append"])
def test_text_that_is_stored(path, kind, way):
    text = KINDS[kind]
    columns, rows = {text("split"): [text("train")]}, {text("mean"): ROW}
    with embstore.open(path, "w-", config={"e": 1}) as store:
        if way in ("append", "parts"):
            key = text("a:dog") if way == "append" else Key(text("a"), text("dog"))
            store.append([key], rows, columns=columns)
        else:
            with store.writer() as writer:
                if way == "writer":
                    writer.add(text("a:dog"), {text("mean"): ROW[0]}, columns={text("split"): text("train")})
                else:
                    writer.append([Key(text("a"), text("dog"))], rows, columns=columns)
        with pytest.raises(embstore.errors.KeysExistError):
            store.append(["a:dog"], {"mean": ROW}, columns={"split": "train"})
    with embstore.open(path) as store:
        assert (list(store), list(store.fields), store.columns) == (["a:dog"], ["mean"], {"split": "string"})
        assert store.select().column("split").tolist() == ["train"]
        assert store.find(["a:dog"]).tolist() == [0]
    assert embstore.verify(path).ok


@pytest.mark.parametrize("kind", KINDS)
def test_text_of_a_new_store(path, kind):
    text = KINDS[kind]
    options = {
        "fields": {
            text("mean"): embstore.FieldSpec(shape=(3,), dtype=text("float16"), pooling=text("cls"), dims=(text("d"),))
        },
        "columns": {text("split"): text("string")},
        "provenance": {text("host"): text("here")},
        "compression": text("zstd"),
    }
    with embstore.open(path, "w-", config={text("model"): [text("ast")]}, **options) as store:
        spec = store.fields["mean"]
        assert (spec.dtype, spec.pooling, spec.dims, store.columns) == ("float16", "cls", ("d",), {"split": "string"})
    record = json.loads((path / "zarr.json").read_bytes())["attributes"]["embstore"]
    assert (record["provenance"], record["compression"]) == ({"host": "here"}, "zstd")
    assert embstore.open(path, config={"model": ["ast"]}).config == {"model": ["ast"]}


@pytest.mark.parametrize("kind", KINDS)
def test_text_in_a_config(kind):
    text = KINDS[kind]
    config = Config({text("model"): text("ast"), "inner": {text("a"): [text("b")]}})
    assert config.fingerprint == Config(model="ast", inner={"a": ["b"]}).fingerprint
    assert type(next(iter(config))) is type(config["model"]) is type(config["inner"]["a"][0]) is str


def test_two_names_of_a_config_with_the_same_characters():
    with pytest.raises(embstore.errors.ConfigError, match="occurs twice"):
        Config({Shouted("a"): 1, "a": 2})


@pytest.mark.parametrize("kind", KINDS)
def test_text_that_an_encoder_reads(tmp_path, kind):
    """It is plain, as its digest is: a prompt that is formatted has the same characters."""
    text, read = KINDS[kind], []
    encoder = FunctionEncoder(lambda items: read.extend(items) or np.ones((len(items), 3), np.float32), config={"e": 1})
    embstore.embed(Items([("a:dog", text("hello"))], name=text("n")), encoder, tmp_path / "items")
    embstore.embed(Items([("a:dog", {text("says"): [text("hello")]})], name="n"), encoder, tmp_path / "nested")
    rows = [{"id": text("a"), "says": text("hello")}]
    embstore.embed(Table(rows, text="says", file_id="id", name="n"), encoder, tmp_path / "table")
    assert {type(item) for item in read} == {str, dict}
    assert {f"{item}" for item in read} == {"hello", "{'says': ['hello']}"}


@pytest.mark.parametrize("kind", KINDS)
def test_text_of_places_and_of_samples_of_a_source(tmp_path, kind):
    text, encoder = KINDS[kind], FunctionEncoder(lambda items: np.ones((len(items), 3), np.float32), config={"e": 1})

    class Own:
        name = text("n")

        def __iter__(self):
            yield embstore.Sample(text("a:dog"), lambda: "x", text("digest"))

    assert list(embstore.embed(Own(), encoder, tmp_path / "cache").store) == ["a:dog"]
    (tmp_path / "in" / "dog").mkdir(parents=True)
    (tmp_path / "in" / "dog" / "a.txt").write_text("hello")
    assert [str(sample.key) for sample in Folder(text(str(tmp_path / "in")), name="n")] == ["dog/a:dog"]
    rows = [{"path": text("dog/a.txt"), "label": text("dog")}]
    table = Table(rows, path="path", class_name="label", name="n", root=text(str(tmp_path / "in")))
    assert [sample.read().value for sample in table] == [b"hello"]


def test_a_member_that_is_no_text_is_no_label():
    label = enum.Enum("Label", {"DOG": "dog"}).DOG
    with pytest.raises(errors.SourceError, match="found Label"):
        list(Table([{"id": "a", "says": "x", "label": label}], text="says", class_name="label", file_id="id", name="n"))


@pytest.mark.parametrize("kind", KINDS)
def test_text_of_samples(tmp_path, kind):
    text = KINDS[kind]
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"id": [text("a")], "label": [text("dog")], "says": ["hello"]}, dtype=object)
    encoder = FunctionEncoder(lambda batch: np.ones((len(batch), 3), np.float32), config={"e": 1})
    for name, source in {
        "items": Items({Key(text("a"), text("dog")): text("hello")}, name="n"),
        "table": Table(table, text="says", class_name="label", file_id="id", name="n"),
    }.items():
        result = embstore.embed(source, encoder, tmp_path / name)
        assert result.encoded == 1
        assert list(result.store) == ["a:dog"]
        assert embstore.verify(result.store.path).ok
        assert embstore.embed(source, encoder, tmp_path / name).encoded == 0
