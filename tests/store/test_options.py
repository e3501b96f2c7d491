"""Options of a new store, given for one that exists: an equal value is no error, another one is."""

import numpy as np
import pytest

import embstore
from embstore import errors
from embstore._engine.format.config import ABSENT

CONFIG = {"encoder": "e"}
SPEC = embstore.FieldSpec(shape=(3,), layer="last")
MADE = {
    "fields": {"mean": SPEC},
    "columns": {"split": "string", "year": "int64"},
    "compression": "zstd",
    "chunk_bytes": 4096,
    "expected_rows": 10,
    "provenance": {"host": "one"},
}


@pytest.fixture
def made(path):
    embstore.open(path, "w-", config=CONFIG, **MADE).close()
    return path


@pytest.mark.parametrize("mode", ["r", "r+", "a"])
@pytest.mark.parametrize(
    ("options", "name", "found"),
    [
        ({"fields": {"mean": embstore.FieldSpec(shape=(4,), layer="last")}}, "field mean", SPEC),
        ({"fields": {"mean": embstore.FieldSpec(shape=(3,), layer="last", dtype="float16")}}, "field mean", SPEC),
        ({"fields": {"mean": embstore.FieldSpec(shape=(3,), layer="last", nonfinite="allow")}}, "field mean", SPEC),
        ({"fields": {"mean": SPEC, "other": SPEC}}, "field other", ABSENT),
        ({"columns": {"year": "float64"}}, "column year", "int64"),
        ({"columns": {"split": "string", "fold": "int64"}}, "column fold", ABSENT),
        ({"compression": "blosc"}, "compression", "zstd"),
        ({"chunk_bytes": 8192}, "chunk_bytes", 4096),
    ],
)
def test_another_value_is_an_error(made, mode, options, name, found):
    with pytest.raises(errors.OptionsMismatchError) as caught:
        embstore.open(made, mode, **({"config": CONFIG} if mode == "a" else {}), **options)
    assert [(difference.name, difference.found) for difference in caught.value.differences] == [(name, found)]
    assert caught.value.path == made
    assert name in str(caught.value)


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("mode", ["r", "r+", "a"])
def test_an_equal_value_is_no_error(made, mode, name):
    embstore.open(made, mode, config=CONFIG, **{name: MADE[name]}).close()
    embstore.open(made, mode, config=CONFIG, **MADE).close()
    embstore.open(made, mode, config=CONFIG).close()


def test_a_part_of_the_fields_and_columns_is_no_error(made):
    embstore.open(made, "a", config=CONFIG, fields={}, columns={"year": "int64"}).close()


def test_facts_and_hints_of_an_existing_store_stay(made):
    with embstore.open(made, "a", config=CONFIG, expected_rows=10**6, provenance={"host": "other"}) as store:
        assert store.snapshot.record.provenance == {"host": "one"}


def test_a_cache_hands_its_options_on(tmp_path):
    cache = embstore.Cache(tmp_path)
    cache.open(CONFIG, "a", **MADE).close()
    with pytest.raises(errors.OptionsMismatchError, match="compression: expected 'blosc', found 'zstd'"):
        cache.open(CONFIG, "a", compression="blosc")
    with pytest.raises(errors.OptionsMismatchError):
        embstore.Cache(tmp_path, compression="blosc").open(CONFIG)


def test_a_merge_into_a_store_of_other_options(made, tmp_path):
    """Its own options hold, unless others are asked for."""
    with embstore.open(tmp_path / "part.zarr", "w-", config=CONFIG, **{**MADE, "compression": None}) as part:
        part.append(["a:b"], np.ones((1, 3), np.float32), columns={"split": "x", "year": 1})
    assert embstore.merge(made, part.path).appended == 1
    with pytest.raises(errors.OptionsMismatchError):
        embstore.merge(made, part.path, if_exists="skip", compression="blosc")
