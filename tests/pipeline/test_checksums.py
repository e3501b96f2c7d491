"""A flipped bit in a full, older chunk: found by a run or by its result, and never served."""

import numpy as np
import pytest

import embstore
from embstore import errors
from embstore.encoders.base import BaseEncoder
from tests._helpers.damage import flip
from tests.pipeline.test_embed import Source, numbers


class Wide(BaseEncoder):
    """Rows of 64 kB, so that 300 rows fill more than one chunk."""

    @property
    def config(self):
        return {"encoder": "wide"}

    @property
    def fields(self):
        return {"wide": embstore.FieldSpec(shape=(16_384,))}

    def encode(self, items):
        return {"wide": np.stack([np.full(16_384, item, np.float32) for item in items])}


@pytest.fixture
def made(cache):
    return embstore.embed(Source(numbers(0, 300)), Wide(), cache)


def first_chunk(path, name):
    return min((path / name).glob("c.*"), key=lambda file: int(file.name.split(".")[1]))


@pytest.mark.parametrize(
    "read",
    [
        lambda result: result.view.to_numpy(),
        lambda result: pytest.importorskip("torch") and result.view.to_torch(),
        lambda result: result.store.select(classes="c0").to_numpy(),
        lambda result: result.store["f0:c0"],
        lambda result: result.store.fetch(["f1:c1"]),
    ],
    ids=["view", "tensor", "select", "row", "fetch"],
)
def test_the_result_of_a_hit_serves_no_flipped_bit(cache, made, read):
    assert len(list((made.path / "wide").glob("c.*"))) > 1
    read(made)
    flip(first_chunk(made.path, "wide"), 1000)
    result = embstore.embed(Source(numbers(0, 300)), Wide(), cache)
    assert result.hits == 300
    with pytest.raises(errors.CorruptStoreError):
        read(result)
