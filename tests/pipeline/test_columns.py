"""Columns of samples: given by sources or a function, compared on hits, and refused before anything is encoded."""

import numpy as np
import pytest

import embstore
from embstore import errors
from embstore.encoders import FunctionEncoder
from embstore.sources import Items, Table

ROWS = [
    {"id": "P1", "says": "a", "split": "train", "age": 1, "w": 0.5},
    {"id": "P2", "says": "bb", "split": None, "age": 2, "w": None},
    {"id": "P3", "says": "ccc", "split": "test", "age": 3, "w": 2},
]


class Lengths:
    def __init__(self, *, pure=False):
        self.seen = []
        self.encoder = FunctionEncoder(self.encode, config={"encoder": "lengths"}, pure=pure)

    def encode(self, texts):
        self.seen += texts
        return np.array([[len(text)] for text in texts], np.float32)


def table(rows, columns=("split", "age", "w")):
    return Table(rows, name="x", text="says", file_id="id", columns=columns)


def run(source, lengths, path, **options):
    lengths.seen.clear()
    return embstore.embed(source, lengths.encoder, path, canaries=0, **options)


def found(result, *names):
    return [result.view.column(name).tolist() for name in names]


def test_the_columns_of_a_table_follow_it_without_encoding(tmp_path):
    lengths = Lengths()
    result = run(table(ROWS), lengths, tmp_path)
    assert result.encoded == 3
    assert found(result, "split", "age") == [["train", "", "test"], [1, 2, 3]]
    assert np.array_equal(result.view.column("w"), [0.5, np.nan, 2], equal_nan=True)
    before = result.store.snapshot.record.commit_id
    result = run(table(ROWS), lengths, tmp_path)
    assert (result.encoded, result.store.snapshot.record.commit_id) == (0, before)
    edited = [{**row, "split": "val", "new": row["id"] == "P2"} for row in ROWS]
    result = run(table(edited, ("split", "age", "w", "new")), lengths, tmp_path)
    assert (result.encoded, lengths.seen) == (0, [])
    assert found(result, "split", "age", "new") == [["val"] * 3, [1, 2, 3], [False, True, False]]
    more = [*ROWS, {"id": "P4", "says": "dddd", "split": "train", "age": 4, "w": 1}]
    result = run(table(more[1:], ("split", "w")), lengths, tmp_path, columns=lambda s: {"age": 9, "new": True})
    assert (result.encoded, lengths.seen) == (1, ["dddd"])
    assert found(result, "split", "age", "new") == [["", "test", "train"], [9] * 3, [True] * 3]
    assert result.store.select(keys=["P1"]).column("split").tolist() == ["val"]  # it is not in the source
    assert embstore.verify(result.path).ok


def test_columns_that_are_left_out_have_their_fill(tmp_path):
    lengths = Lengths()
    run(table(ROWS, ("split", "w")), lengths, tmp_path)
    result = run(table([*ROWS, {"id": "P4", "says": "dddd"}], ()), lengths, tmp_path)
    assert found(result, "split") == [["train", "", "test", ""]]
    assert np.isnan(result.view.column("w")[3])


def replaced_by_append(store, how, tmp_path):
    store.append(["P1"], np.zeros((1, 1), np.float32), if_exists="replace")


def replaced_by_a_writer(store, how, tmp_path):
    with store.writer(if_exists="replace") as writer:
        writer.append(["P1"], np.zeros((1, 1), np.float32))
        writer.append(["P2"], np.zeros((1, 1), np.float32), columns={"age": 2})


def replaced_by_a_file(store, how, tmp_path):
    np.savez(tmp_path / "new.npz", P1=np.zeros(1, np.float32))
    embstore.import_file(tmp_path / "new.npz", store.path, config=store.config, if_exists="replace")


def replaced_by_a_merge(store, how, tmp_path):
    with embstore.open(tmp_path / "part.zarr", "x", config=store.config) as part:
        part.append(["P1"], np.zeros((1, 1), np.float32))
    store.set_columns({}, fill={"age": -1})
    embstore.merge(store.path, part.path, if_exists="replace")


def encoded_again(store, how, tmp_path):
    run(table([{"id": "P1", "says": how}, *ROWS[1:]], ()), Lengths(pure=True), tmp_path / "cache")


@pytest.mark.parametrize(
    ("replace", "how"),
    [
        (replaced_by_append, ""),
        (replaced_by_a_writer, ""),
        (replaced_by_a_file, ""),
        (replaced_by_a_merge, ""),
        (encoded_again, "other"),
        (encoded_again, "bb"),  # a copy of P2
    ],
)
def test_a_row_that_is_replaced_hands_on_its_columns(tmp_path, replace, how):
    """Labels that were set by hand are not lost with an edit. The notes on the old content are not kept."""
    path = run(table(ROWS, ("split", "age")), Lengths(pure=True), tmp_path / "cache").path
    with embstore.open(path, "r+") as store:
        replace(store, how, tmp_path)
        store.refresh()
        view = store.select(keys=["P1", "P2", "P3"])
        assert (view.column("split").tolist(), view.column("age").tolist()) == (["train", "", "test"], [1, 2, 3])
        assert view.to_numpy()[0] == len(how)
        digest = view.column("source_digest")[0]
        assert digest == (f"text:{embstore.digest_of(how)}" if how else "")


def test_samples_that_turn_out_to_be_new_are_refused_before_they_are_encoded(tmp_path):
    lengths = Lengths(pure=True)
    run(table(ROWS, ("age",)), lengths, tmp_path)
    after = [{"id": "P9", "says": "a"}, *ROWS[1:], {"id": "P4", "says": "dddd"}]  # P1 moves to P9
    with pytest.raises(errors.UnknownColumnError):
        run(table(after, ()), lengths, tmp_path)
    assert lengths.seen == []


BAD = {
    "two kinds": (lambda s: {"n": "x" if s.key.file_id == "P1" else 1}, errors.DtypeError),
    "a name": (lambda s: {"1x": 1}, errors.NameRefusedError),
    "a name of embed": (lambda s: {"source_size": 1}, errors.NameRefusedError),
    "the name of the field": (lambda s: {"embedding": 1}, errors.NameRefusedError),
    "an object": (lambda s: {"n": object()}, errors.DtypeError),
    "another dtype than stored": (lambda s: {"age": "x"}, errors.DtypeError),
    "a missing integer": (lambda s: {"n": 1 if s.key.file_id == "P1" else None}, errors.DtypeError),
    "no value of integers": (lambda s: {}, errors.UnknownColumnError),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_column_is_refused_before_anything_is_encoded(tmp_path, bad):
    columns, error = BAD[bad]
    lengths = Lengths()
    before = run(table(ROWS, ("age",)), lengths, tmp_path).store.snapshot.record.commit_id
    edited = [{**row, "says": row["says"] + "!"} for row in ROWS] + [{"id": "P4", "says": "new"}]
    with pytest.raises(error):
        run(table(edited, ()), lengths, tmp_path, columns=columns)
    assert lengths.seen == []
    [entry] = embstore.Cache(tmp_path).entries()
    assert embstore.open(entry.path).snapshot.record.commit_id == before


def test_an_error_of_the_function_names_the_sample(tmp_path):
    with pytest.raises(ZeroDivisionError) as caught:
        run(Items({"P1": "a"}, name="x"), Lengths(), tmp_path, columns=lambda s: 1 / 0)
    assert caught.value.__notes__ == ["columns= of P1"]


def test_columns_of_hugging_face(tmp_path):
    hf = pytest.importorskip("datasets")
    features = hf.Features({"id": hf.Value("string"), "says": hf.Value("string"), "age": hf.Value("int32")})
    features["kind"] = hf.ClassLabel(names=["dog", "cat"])
    rows = {"id": ["P1", "P2"], "says": ["a", "bb"], "age": [3, 4], "kind": [1, 0]}
    made = hf.Dataset.from_dict(rows, features=features)
    source = embstore.sources.HFDataset(made, name="x", content="says", file_id="id", columns=["age", "kind"])
    assert found(run(source, Lengths(), tmp_path), "age", "kind") == [[3, 4], ["cat", "dog"]]
    with pytest.raises(errors.UnknownColumnError):
        embstore.sources.HFDataset(made, name="x", content="says", file_id="id", columns=["nonsense"])


def test_a_shard_asks_for_the_columns_of_its_own_samples_once(tmp_path):
    asked = []
    for shard in [(0, 2), (1, 2)]:
        run(
            table(ROWS, ()),
            Lengths(),
            tmp_path,
            shard=shard,
            columns=lambda sample: asked.append(str(sample.key)) or {},
        )
    assert sorted(asked) == ["P1", "P2", "P3"]
