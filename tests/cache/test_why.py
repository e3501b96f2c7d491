"""Why a lookup misses: each attribute by its name, with what was wanted and what is stored."""

import numpy as np
import pytest

import embstore
from embstore import Config, FieldSpec, errors
from embstore.encoders import FunctionEncoder
from embstore.sources import Items
from tests._helpers.crash import files_in

AST = {
    "encoder": {"id": "MIT/ast", "revision": "f826b80", "weights": "9c0f"},
    "preprocessing": {"duration": 5, "window": {"kind": "hann", "size": 25}, "bands": [64, 128]},
    "sample_rate": 16_000,
    "dataset": "VEGAS",
}


def fill(cache, config, rows=3, **options):
    with cache.open(config, "a", **options) as store:
        if rows:
            store.append([f"{i}:dog" for i in range(rows)], np.ones((rows, 2), np.float32))
        return store.path


def but(**changed):
    """Return the config with some attributes changed: ``preprocessing__duration=10``."""
    config = {name: dict(value) if isinstance(value, dict) else value for name, value in AST.items()}
    for name, value in changed.items():
        *outer, last = name.split("__")
        place = config
        for part in outer:
            place[part] = dict(place[part])
            place = place[part]
        if value is None:
            del place[last]
        else:
            place[last] = value
    return config


def table(found):
    """Return the lines on attributes, split at their columns."""
    return [tuple(part for part in line.split("  ") if part.strip()) for line in str(found).splitlines()[2:]]


def test_a_hit(cache):
    path = fill(cache, AST)
    found = embstore.why(AST, cache)
    assert found.hit
    assert found.missing_fields == ()
    assert found.lookup.path == path
    assert str(found) == repr(found) == found.text == f"hit: {path.name} has 3 rows of embedding"


def test_a_hit_in_other_words(cache):
    """What a config takes for the same is the same."""
    fill(cache, AST)
    assert embstore.why(Config(AST), cache).hit
    assert embstore.why(but(preprocessing__duration=5.0, preprocessing__bands=(64, 128)), cache).hit
    assert embstore.why(but(sample_rate=np.int64(16_000)), cache).hit


def test_a_store_without_rows(cache):
    fill(cache, AST, rows=0)
    found = embstore.why(AST, cache)
    assert found.hit
    assert str(found).endswith("has 0 rows of no field yet")
    assert embstore.why(AST, cache, fields=["mean"]).missing_fields == ("mean",)


CHANGES = {
    "a number": ({"sample_rate": 8000}, ("sample_rate", "wanted 8000", "stored 16000")),
    "text": ({"dataset": "AudioSet"}, ("dataset", "wanted 'AudioSet'", "stored 'VEGAS'")),
    "nested": ({"preprocessing__duration": 10}, ("preprocessing.duration", "wanted 10", "stored 5")),
    "deeper": ({"preprocessing__window__size": 30}, ("preprocessing.window.size", "wanted 30", "stored 25")),
    "wanted more": ({"encoder__dtype": "bfloat16"}, ("encoder.dtype", "wanted 'bfloat16'", "stored nothing")),
    "wanted less": ({"encoder__revision": None}, ("encoder.revision", "wanted nothing", "stored 'f826b80'")),
    "another kind": ({"preprocessing__duration": "5"}, ("preprocessing.duration", "wanted '5'", "stored 5")),
    "true is not one": ({"preprocessing__duration": True}, ("preprocessing.duration", "wanted True", "stored 5")),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_miss_names_the_attribute(cache, kind):
    changed, expected = CHANGES[kind]
    path = fill(cache, AST)
    found = embstore.why(but(**changed), cache)
    assert not found.hit
    assert not found.lookup.hit
    assert found.lookup.nearest.path == path
    assert str(found).splitlines()[:2] == [
        f"miss: no store in {cache.path} has this config",
        f"the nearest is {path.name} (3 rows); it differs in",
    ]
    (line,) = table(found)
    assert tuple(part.strip() for part in line) == expected


def test_each_difference_is_named_and_they_stand_in_columns(cache):
    fill(cache, AST)
    found = embstore.why(
        but(
            sample_rate=8000, preprocessing__duration=10, preprocessing__window__kind="hamming", encoder__weights="abcd"
        ),
        cache,
    )
    lines = str(found).splitlines()[2:]
    assert {line.split()[0] for line in lines} == {
        "encoder.weights",
        "preprocessing.duration",
        "preprocessing.window.kind",
        "sample_rate",
    }
    assert len({line.index("wanted") for line in lines}) == len({line.index("stored") for line in lines}) == 1
    assert len(found.lookup.differences) == len(lines) == 4


def test_lists_differ(cache):
    fill(cache, AST)
    (line, *more) = table(embstore.why(but(preprocessing__bands=[64, 256]), cache))
    assert line[0].strip().startswith("preprocessing.bands")
    assert "256" in line[1]
    assert "128" in line[2]
    assert not more


def test_a_part_in_place_of_a_value(cache):
    fill(cache, AST)
    text = str(embstore.why(but(encoder="MIT/ast"), cache))
    assert "encoder" in text
    assert "'MIT/ast'" in text


def test_an_empty_config(cache):
    fill(cache, AST)
    lines = str(embstore.why({}, cache)).splitlines()[2:]
    assert lines
    assert all("wanted nothing" in line for line in lines)


def test_the_nearest_of_several(cache):
    fill(cache, but(sample_rate=8000, preprocessing__duration=1, dataset="other"))
    near = fill(cache, but(preprocessing__duration=1))
    found = embstore.why(but(preprocessing__duration=10), cache)
    assert found.lookup.nearest.path == near
    assert str(found).splitlines()[2:] == ["  preprocessing.duration  wanted 10  stored 1"]


def test_fields_that_are_not_there(cache):
    fields = {"mean": FieldSpec(shape=(2,)), "cls": FieldSpec(shape=(2,))}
    path = fill(cache, AST, rows=0, fields=fields)
    found = embstore.why(AST, cache, fields=["cls", "layer_6", "mean", "layer_7"])
    assert not found.hit
    assert found.lookup.hit  # the config is there
    assert found.missing_fields == ("layer_6", "layer_7")
    assert str(found) == f"field miss: {path.name} has 0 rows of mean, cls, and no layer_6, layer_7"
    for wanted in (None, [], ["mean"], iter(["cls", "mean"]), fields):
        found = embstore.why(AST, cache, fields=wanted)
        assert found.hit
        assert found.missing_fields == ()


def test_fields_of_a_config_that_is_not_there(cache):
    """There is no store that could lack them."""
    fill(cache, AST)
    found = embstore.why(but(sample_rate=8000), cache, fields=["mean"])
    assert not found.hit
    assert found.missing_fields == ()


@pytest.mark.parametrize("there", [True, False], ids=["stored", "not stored"])
def test_one_field_is_no_list_of_its_letters(cache, there):
    fill(cache, AST if there else but(sample_rate=8000))
    with pytest.raises(TypeError, match="expected a list of fields, found one: 'mean'"):
        embstore.why(AST, cache, fields="mean")


def test_an_empty_cache(cache):
    cache.path.mkdir()
    found = embstore.why(AST, cache)
    assert not found.hit
    assert found.lookup.nearest is None
    assert str(found).splitlines() == [f"miss: no store in {cache.path} has this config", "the cache is empty"]


@pytest.mark.parametrize("kind", [str, embstore.Cache, lambda path: path], ids=["text", "Cache", "Path"])
def test_a_path_or_a_cache_which_is_not_made(cache, tmp_path, kind):
    fill(cache, AST, rows=1234)
    assert "has 1,234 rows" in str(embstore.why(AST, kind(cache.path)))
    assert "(1,234 rows)" in str(embstore.why(but(sample_rate=8000), kind(cache.path)))
    path = tmp_path / "some" / "where"
    found = embstore.why(AST, kind(path))
    assert not found.hit
    assert str(path) in str(found)
    assert not path.parent.exists()


def test_nothing_is_written(cache):
    path = fill(cache, AST)
    before = files_in(cache.path)
    embstore.why(AST, cache, fields=["more"])
    embstore.why(but(sample_rate=8000), cache)
    assert files_in(cache.path) == before
    assert sorted(cache.path.glob("*.zarr")) == [path]


def test_what_is_no_config(cache):
    with pytest.raises(errors.ConfigError):
        embstore.why({"rate": float("nan")}, cache)


def test_a_broken_store_is_told(cache):
    path = fill(cache, AST)
    (path / "zarr.json").write_text("{")
    with pytest.raises(errors.CorruptStoreError):
        embstore.why(AST, cache)
    assert "the cache is empty" in str(embstore.why(but(sample_rate=8000), cache))


def test_after_embed(cache):
    """As the README says it: the encoder's config, and the source's name."""
    encoder = FunctionEncoder(
        lambda items: np.ones((len(items), 2), np.float32), config={"encoder": "own", "version": 1}
    )
    source = Items({"a:dog": "It barks."}, name="pets")
    assert not embstore.why({**encoder.config, "dataset": source.name}, cache).hit
    embstore.embed(source, encoder, cache)
    assert embstore.why({**encoder.config, "dataset": source.name}, cache, fields=encoder.fields).hit
    text = str(embstore.why({**encoder.config, "version": 2, "dataset": source.name}, cache))
    assert text.endswith("version  wanted 2  stored 1")
    assert "dataset  wanted nothing" in str(embstore.why(encoder.config, cache))


def test_a_store_of_this_config_under_another_name(tmp_path):
    cache = embstore.Cache(tmp_path)
    with cache.open({"a": 1}, "a") as store:
        store.path.rename(tmp_path / "renamed.zarr")
    found = embstore.why({"a": 1}, cache)
    assert not found.hit
    assert f"renamed.zarr has this config under another name; move it to {store.path.name}" in found.text
