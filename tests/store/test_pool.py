"""Pooled tokens, on the fly and as a field, of ragged and of fixed rows, against plain NumPy."""

import numpy as np
import pytest

import embstore
from embstore import FieldSpec, errors

HOW = {
    "mean": lambda row: row.astype(np.float64).mean(axis=0),
    "max": lambda row: row.max(axis=0),
    "cls": lambda row: row[0],
    "first": lambda row: row[0],
    "last": lambda row: row[-1],
}


@pytest.fixture(params=["ragged", "fixed"])
def tokens(request, path, rng):
    ragged = request.param == "ragged"
    rows = [rng.standard_normal((int(rng.integers(1, 9)) if ragged else 5, 3)).astype(np.float32) for _ in range(300)]
    spec = FieldSpec(shape=(3,) if ragged else (5, 3), ragged=ragged, layer="last_hidden_state")
    keys = [f"P{i}" for i in range(300)]
    with embstore.open(path, "w-", config={"encoder": "e"}, fields={"tokens": spec}) as store:
        store.append(keys, {"tokens": rows if ragged else np.stack(rows)})
        store.delete(["P0", "P7"])
        yield store, rows


@pytest.mark.parametrize("how", HOW)
def test_pooled_rows_are_those_of_numpy(tokens, how):
    store, rows = tokens
    view = store.select(keys=["P9", "P1", "P299", "P9"])
    expected = np.stack([HOW[how](rows[i]) for i in (9, 1, 299, 9)])
    found = view.pool(how)
    assert (found.dtype, found.shape) == (np.float32, (4, 3))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    assert view[:0].pool(how).shape == (0, 3)
    store.add_pooled(how, from_field="tokens", how=how)
    again = embstore.open(store.path)
    assert again.fields[how] == FieldSpec(shape=(3,), layer="last_hidden_state", pooling=how)
    np.testing.assert_array_equal(again.fetch(view.keys, how), found)
    assert again["P9", how].tolist() == found[0].tolist()
    assert again.snapshot.record.primary == "tokens"
    assert embstore.verify(store.path).ok


def test_pooling_that_cannot_be(path):
    fields = {"flat": FieldSpec(shape=(3,)), "tokens": FieldSpec(shape=(2,), ragged=True)}
    with embstore.open(path, "w-", config={"encoder": "e"}, fields=fields) as store:
        rows = [np.ones((2, 2), np.float32), np.ones((0, 2), np.float32)]
        store.append(["P1", "P2"], {"flat": np.ones((2, 3), np.float32), "tokens": rows})
        before = store.snapshot.record.commit_id
        for field, how, error in (
            ("flat", "mean", errors.ShapeError),
            ("tokens", "mean", errors.ShapeError),
            ("nope", "mean", errors.UnknownFieldError),
            ("tokens", "sum", ValueError),
        ):
            with pytest.raises(error):
                store.select().pool(how, field)
            with pytest.raises(error):
                store.add_pooled("pooled", from_field=field, how=how)
        assert embstore.open(path).snapshot.record.commit_id == before
        assert store.select(keys=["P1"]).pool("max", "tokens").tolist() == [[1, 1]]
    assert embstore.verify(path).ok
