"""Canaries: stored samples encoded again tell whether a store still holds what its encoder gives."""

import copy
import os
import weakref

import numpy as np
import pytest

import embstore
from embstore import FieldSpec, errors
from embstore.encoders import FunctionEncoder
from embstore.encoders.base import BaseEncoder
from embstore.sources import Folder, Items
from tests._helpers.crash import files_in

DIM = 4
PLAIN = {"mean": FieldSpec(shape=(DIM,))}
BOTH = {**PLAIN, "tokens": FieldSpec(shape=(2,), dtype="float16", ragged=True)}


class Model(BaseEncoder):
    """Numbers to rows, by a weight that a test may change behind the config's back."""

    config = None

    def __init__(self, fields=PLAIN, weight=1.0, **config):
        self._fields = dict(fields)
        self.config = {"encoder": "model", **config}
        self.weight = weight
        self.batches = []

    @property
    def fields(self):
        return self._fields

    def with_fields(self, names):
        super().with_fields(names)
        narrowed = copy.copy(self)  # of the same batches
        narrowed._fields = {name: self._fields[name] for name in names}
        return narrowed

    def given(self, name, rows):
        """Return a field's rows as they are; a test may bend them."""
        return rows

    def encode(self, items):
        self.batches.append(list(items))
        rows = np.array([[item + 1 + d / 8 for d in range(DIM)] for item in items], np.float32) * np.float32(
            self.weight
        )
        tokens = [np.full((item % 3, 2), (item + 1) * self.weight, np.float16) for item in items]
        found = {"mean": rows, "more": -rows, "tokens": tokens}
        return {name: self.given(name, found[name]) for name in self._fields}

    @property
    def encoded(self):
        return [item for batch in self.batches for item in batch]


def bent(given, fields=PLAIN):
    """Return a model whose rows `given` bends: a function of a field's name and rows."""
    model = Model(fields)
    model.given = given
    return model


def own(run, fields=None):
    return FunctionEncoder(run, config={"encoder": "own"}, fields=fields)


def numbers(n=20, **changed):
    return Items({f"f{i}:c{i % 3}": changed.get(f"f{i}", i) for i in range(n)}, name="numbers")


@pytest.fixture
def stored(tmp_path):
    """Encode numbers by a model into a store, and open it."""

    def stored(model, source=None, **options):
        return embstore.embed(source or numbers(), model, tmp_path / "cache", **options).store

    return stored


# -- the same, and not the same ---------------------------------------------------------------


@pytest.mark.parametrize("fields", [PLAIN, BOTH], ids=["one field", "ragged too"])
def test_the_same_values(stored, fields):
    store = stored(Model(fields))
    report = embstore.check(store, model := Model(fields), numbers())
    assert report.ok
    assert report.differences == dict.fromkeys(fields, 0.0)
    assert len(report.keys) == len(set(report.keys)) == len(model.encoded) == 8
    assert report.stale == ()
    assert set(report.keys) <= set(store)
    assert report.tolerances == {name: {"float32": 1e-4, "float16": 1e-2}[fields[name].dtype] for name in fields}


def test_nothing_is_written(stored):
    store = stored(Model())
    before = files_in(store.path)
    embstore.check(store, Model(), numbers())
    embstore.check(store, Model(weight=2), numbers())
    assert files_in(store.path) == before


@pytest.mark.parametrize(
    ("weight", "ok"),
    [(1 + 5e-5, True), (1 - 5e-5, True), (1 + 2e-4, False), (1 - 2e-4, False), (1.01, False)],
)
def test_the_last_bits_may_differ(stored, weight, ok):
    report = embstore.check(stored(Model()), Model(weight=weight), numbers())
    assert report.ok is ok
    assert report.differences["mean"] == pytest.approx(abs(weight - 1), rel=0.01)


@pytest.mark.parametrize(("tolerance", "ok"), [(1e-3, False), (0.02, True), (1, True)])
def test_a_tolerance_of_ones_own(stored, tolerance, ok):
    report = embstore.check(stored(Model(BOTH)), Model(BOTH, weight=1.0156), numbers(), tolerance=tolerance)
    assert report.ok is ok
    assert report.tolerances == dict.fromkeys(BOTH, tolerance)


def test_no_tolerance_at_all(stored):
    report = embstore.check(stored(Model()), Model(weight=1 + 1e-5), numbers(), tolerance=0)
    assert report.tolerances == {"mean": 0}
    assert not report.ok


def test_one_number_of_one_row_is_enough(stored):
    def given(name, rows):
        rows[3, 2] += 1
        return rows

    report = embstore.check(stored(Model()), model := bent(given), numbers())
    assert not report.ok
    assert report.differences["mean"] == pytest.approx(1 / (model.encoded[3] + 1 + (DIM - 1) / 8), rel=1e-5)


def test_the_difference_is_relative_to_the_largest_number_of_its_row(stored):
    """A row of small numbers does not hide behind one of large ones."""

    def rows(items):
        return np.array([[item, item / 2] for item in items], np.float32)

    source = Items({"small:c": 1e-6, "large:c": 1e6}, name="two")
    store = stored(own(rows), source)
    found = embstore.check(store, own(lambda items: rows(items) + np.float32(1e-7)), source).differences
    assert found["embedding"] == pytest.approx(0.1, rel=1e-3)


def test_rows_of_zeros(stored):
    source = Items({"a:c": 0, "b:c": 0}, name="zeros")
    store = stored(own(lambda items: np.zeros((len(items), 3), np.float32)), source)
    assert embstore.check(store, own(lambda items: np.zeros((len(items), 3))), source).ok
    assert not embstore.check(store, own(lambda items: np.full((len(items), 3), 1e-9)), source).ok


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(stored, bad):
    """They are another value, unless the field allows them and they are stored."""

    def given(name, rows):
        rows[0, 0] = bad
        return rows

    report = embstore.check(stored(Model()), bent(given), numbers())
    assert report.differences == {"mean": np.inf}
    assert not report.ok
    assert "inf" in str(report)
    fields = {"mean": FieldSpec(shape=(2,), nonfinite="allow")}
    encoder = own(lambda items: np.array([[item, bad] for item in items], np.float32), fields)
    assert embstore.check(stored(encoder), encoder, numbers()).ok


# -- kinds of fields --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bend", "difference"), [(lambda row: row[:1], np.inf), (lambda row: row * 2, 1)], ids=["lengths", "values"]
)
def test_ragged_rows_that_differ(stored, bend, difference):
    model = bent(lambda name, rows: [bend(row) for row in rows] if name == "tokens" else rows, BOTH)
    report = embstore.check(stored(Model(BOTH)), model, numbers())
    assert report.differences == {"mean": 0.0, "tokens": pytest.approx(difference, rel=1e-3)}
    assert not report.ok


@pytest.mark.parametrize(("items", "n"), [({"a:c": 0, "b:c": 3}, 8), ({"a:c": 1}, 1)], ids=["no tokens", "one row"])
def test_ragged_rows_alone(stored, items, n):
    """One row is handed out as a view of the file, unlike several."""
    source = Items(items, name="numbers")
    fields = {"tokens": BOTH["tokens"]}
    report = embstore.check(stored(Model(fields), source), Model(fields), source, n=n)
    assert (report.ok, len(report.keys)) == (True, len(items))


@pytest.mark.parametrize(
    ("dtype", "shape"), [*((d, (2,)) for d in ("float32", "float64", "float16", "int32", "uint8")), ("float32", ())]
)
def test_dtypes_and_single_numbers(stored, dtype, shape):
    fields = {"mean": FieldSpec(shape=shape, dtype=dtype)}

    def encoder(more):
        return own(lambda items: np.array([np.full(shape, item + more) for item in items], dtype), fields)

    store = stored(encoder(0))
    assert embstore.check(store, encoder(0), numbers()).ok
    report = embstore.check(store, encoder(1), numbers())
    assert not report.ok
    assert report.tolerances["mean"] == {"float16": 1e-2, "int32": 0, "uint8": 0}.get(dtype, 1e-4)


@pytest.mark.parametrize(("dtype", "value"), [("int64", 2**25 + 1), ("int32", 2**25 + 1), ("float64", 1 + 2**-40)])
def test_tensors_of_more_digits_than_float32_has(stored, dtype, value):
    torch = pytest.importorskip("torch")
    fields = {"x": FieldSpec(shape=(2,), dtype=dtype)}
    encoder = own(lambda items: torch.full((len(items), 2), value, dtype=getattr(torch, dtype)), fields)
    assert embstore.check(stored(encoder), encoder, numbers(), tolerance=0).differences == {"x": 0}


def test_bfloat16(stored):
    torch = pytest.importorskip("torch")
    fields = {name: FieldSpec(shape=(2,), dtype="bfloat16", ragged=name == "tokens") for name in ("mean", "tokens")}

    def encoder(more):
        def run(items):
            rows = torch.tensor([[item + more, 1] for item in items], dtype=torch.bfloat16)
            tokens = [row.repeat(item % 3, 1) for item, row in zip(items, rows, strict=True)]
            return {"mean": rows, "tokens": tokens}

        return own(run, fields)

    store = stored(encoder(0))
    assert embstore.check(store, encoder(0), numbers()).ok
    assert embstore.check(store, encoder(0), numbers()).tolerances == dict.fromkeys(fields, 3e-2)
    assert all(found > 0.1 for found in embstore.check(store, encoder(4), numbers()).differences.values())


def test_fields_that_only_one_side_has(stored):
    """What both have is compared, whichever has more."""
    more = {**PLAIN, "more": FieldSpec(shape=(DIM,))}
    store = stored(Model(more))
    assert embstore.check(store, Model(PLAIN), numbers()).differences == {"mean": 0.0}
    other = embstore.embed(numbers(), Model(PLAIN, kind="b"), store.path.parent).store
    model = Model(more, kind="b")
    asked = []
    model.given = lambda name, rows: asked.append(name) or rows
    assert embstore.check(other, model, numbers()).differences == {"mean": 0.0}
    assert asked == ["mean"]  # nothing else is encoded


def test_no_field_in_common(stored):
    store = stored(Model(PLAIN))
    with pytest.raises(errors.UnknownFieldError):
        embstore.check(store, Model({"more": FieldSpec(shape=(DIM,))}), numbers())


def test_an_encoder_of_two_words_alone(stored):
    class Plain:
        config = {"encoder": "plain"}  # noqa: RUF012
        factor = 1

        def encode(self, items):
            return np.array([[item * self.factor, 1] for item in items], np.float32)

    encoder = Plain()
    store = stored(encoder)
    assert embstore.check(store, encoder, numbers()).differences == {"embedding": 0.0}
    encoder.factor = 2
    assert not embstore.check(store, encoder, numbers()).ok


def test_no_field_in_common_of_an_encoder_that_declares_none(stored):
    def encoder(name):
        return own(lambda items: {name: np.array([[item, 1] for item in items], np.float32)})

    with pytest.raises(errors.UnknownFieldError):
        embstore.check(stored(encoder("one")), encoder("other"), numbers())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda name, rows: rows[:-1], "4 rows"),
        (lambda name, rows: rows if rows[0, 0] < 5 else rows[:-1], "4 rows"),  # in a later batch
        (lambda name, rows: np.concatenate([rows, rows], axis=1), "'mean'"),
        (lambda name, rows: rows[:, :1], "'mean'"),
    ],
    ids=["fewer", "fewer later", "wider", "one number"],
)
def test_rows_of_another_shape(stored, given, message):
    with pytest.raises(errors.ShapeError, match=message):
        embstore.check(stored(Model()), bent(given), numbers(), n=20, batch_size=4)


# -- which samples ----------------------------------------------------------------------------


def test_samples_are_spread_over_the_source(stored):
    store = stored(Model())
    report = embstore.check(store, model := Model(), numbers(), n=5)
    assert model.encoded == [0, 5, 10, 14, 19]
    assert list(report.keys) == [f"f{i}:c{i % 3}" for i in model.encoded]
    embstore.check(store, model := Model(), numbers(), n=1)
    assert len(model.encoded) == 1


@pytest.mark.parametrize("n", [20, 21, 1000])
def test_more_than_are_stored(stored, n):
    report = embstore.check(stored(Model()), model := Model(), numbers(), n=n)
    assert sorted(model.encoded) == list(range(20))
    assert len(report.keys) == 20


def test_samples_that_are_not_stored_are_left_out(stored):
    store = stored(Model(), numbers(5))
    report = embstore.check(store, model := Model(), numbers(20), n=10)
    assert model.encoded == [0, 1, 2, 3, 4]
    assert report.ok
    assert report.stale == ()
    with embstore.open(store.path, "r+") as writer:
        writer.delete(["f2:c2"])
        assert embstore.check(writer, Model(), numbers(20), n=10).keys == ("f0:c0", "f1:c1", "f3:c0", "f4:c1")


def test_a_generator_chooses(stored):
    store = stored(Model())
    chosen = [
        embstore.check(store, Model(), numbers(), n=6, rng=np.random.default_rng(seed)).keys for seed in (1, 1, 2, 3)
    ]
    assert chosen[0] == chosen[1]
    assert len(set(chosen)) == 3
    assert all(len(set(keys)) == 6 for keys in chosen)
    assert len(embstore.check(store, Model(), numbers(), n=99, rng=np.random.default_rng(0)).keys) == 20


def test_samples_are_encoded_in_batches_and_in_order(stored):
    store = stored(Model(BOTH))
    report = embstore.check(store, model := Model(BOTH), numbers(), n=20, batch_size=8)
    assert [len(batch) for batch in model.batches] == [8, 8, 4]
    assert model.encoded == list(range(20))
    assert list(report.keys) == [f"f{i}:c{i % 3}" for i in range(20)]
    assert report.differences == dict.fromkeys(BOTH, 0.0)


def test_a_batch_is_of_32_unless_told_otherwise(stored):
    store = stored(Model(), numbers(70))
    embstore.check(store, model := Model(), numbers(70), n=70)
    assert [len(batch) for batch in model.batches] == [32, 32, 6]


@pytest.mark.parametrize("place", [0, 9, 19])
def test_the_largest_difference_is_that_of_all_batches(stored, place):
    store = stored(Model())
    model = Model()

    def given(name, rows):
        if (inside := place - len(model.encoded) + len(rows)) in range(len(rows)):
            rows[inside] *= 1.25
        return rows

    model.given = given
    report = embstore.check(store, model, numbers(), n=20, batch_size=7)
    assert report.differences["mean"] == pytest.approx(0.25)


def test_one_batch_is_in_memory_at_a_time(stored):
    store = stored(Model())
    model, seen = Model(), []

    def given(name, rows):
        assert [rows for rows in (known() for known in seen) if rows is not None] == []
        seen.append(weakref.ref(rows))
        return rows

    model.given = given
    embstore.check(store, model, numbers(), n=20, batch_size=4)
    assert len(seen) == 5


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_of_nothing_is_refused(stored, size):
    store = stored(Model())
    with pytest.raises(ValueError, match="expected batch_size from 1, found"):
        embstore.check(store, model := Model(), numbers(), batch_size=size)
    assert model.batches == []


@pytest.mark.parametrize("n", [0, -3])
def test_no_samples_are_refused(stored, n):
    with pytest.raises(ValueError):  # noqa: PT011
        embstore.check(stored(Model()), Model(), numbers(), n=n)


def test_stale_samples_are_passed_over(stored):
    """Others are compared in their place, as far as there are any."""
    store = stored(Model())
    report = embstore.check(store, model := Model(), numbers(20, f0=100, f19=119), n=5)
    assert report.stale == ("f0:c0", "f19:c1")
    assert str(report).splitlines()[-1] == "  2 passed over as stale, of other content than was encoded"
    assert len(report.keys) == len(set(report.keys)) == 5
    assert {5, 10, 14} < set(model.encoded) < set(range(1, 19))
    assert report.ok
    assert len(embstore.check(store, Model(), numbers(20, f0=100, f19=119), n=20).keys) == 18
    assert len(embstore.check(store, Model(), numbers(20, f0=100), n=1).keys) == 1


@pytest.mark.parametrize("items", [{f"f{i}:c{i % 3}": i + 50 for i in range(20)}, {"new:c": 1}], ids=["stale", "new"])
def test_none_of_the_source_is_stored(stored, items):
    store = stored(Model())
    with pytest.raises(errors.EmptySourceError, match="content that it has now"):
        embstore.check(store, model := Model(), Items(items, name="numbers"))
    assert model.batches == []


def test_a_store_of_unknown_content(tmp_path):
    """Without digests nothing tells that the content is that which was encoded."""
    config = {**Model().config, "dataset": "numbers"}
    with embstore.open(tmp_path / "own.zarr", "w-", config=config, fields=PLAIN) as store:
        store.append(["f0:c0"], Model().encode([0]))
        with pytest.raises(errors.EmptySourceError):
            embstore.check(store, Model(), numbers())


@pytest.mark.parametrize("which", ["encoder", "source"])
def test_another_config(stored, which):
    store = stored(Model())
    model = Model(revision="v2") if which == "encoder" else Model()
    source = numbers() if which == "encoder" else Items({"f0:c0": 0}, name="letters")
    with pytest.raises(errors.ConfigMismatchError) as caught:
        embstore.check(store, model, source)
    assert [d.name for d in caught.value.differences] == ["revision" if which == "encoder" else "dataset"]
    assert caught.value.path == store.path
    assert model.batches == []


# -- files ------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    for i in range(6):
        place = tmp_path / "files" / "c" / f"{i}.bin"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(bytes([i + 1]) * 3)
        os.utime(place, ns=(10**18, 10**18))
    return tmp_path / "files"


def bytes_encoder(decode=None):
    return FunctionEncoder(
        lambda items: np.array([list(item) for item in items], np.float32), config={"encoder": "bytes"}, decode=decode
    )


def test_files_are_read_and_decoded(stored, folder):
    source = Folder(folder, name="files")
    doubled = bytes_encoder(lambda content: [2 * byte for byte in content])
    store = stored(bytes_encoder(), source)
    assert embstore.check(store, bytes_encoder(), source).ok
    report = embstore.check(store, doubled, source)
    assert report.differences["embedding"] == pytest.approx(1)


def test_a_changed_file_is_stale_and_one_that_is_gone_is_left_out(stored, folder):
    source = Folder(folder, name="files")
    store = stored(bytes_encoder(), source)
    (folder / "c" / "2.bin").write_bytes(b"new")
    (folder / "c" / "3.bin").unlink()
    os.utime(folder / "c" / "4.bin")  # touched: the same content
    report = embstore.check(store, bytes_encoder(), source)
    assert report.stale == ("c/2:c",)
    assert set(report.keys) == {f"c/{i}:c" for i in (0, 1, 4, 5)}
    assert report.ok


def test_a_file_that_can_not_be_decoded_any_more(stored, folder):
    def refuse(content):
        raise errors.DecodeError("the library has forgotten how")

    source = Folder(folder, name="files")
    store = stored(bytes_encoder(), source)
    with pytest.raises(errors.DecodeError, match="forgotten"):
        embstore.check(store, bytes_encoder(refuse), source)


# -- what it says -----------------------------------------------------------------------------


def test_it_says_how_much_differs(stored):
    store = stored(Model(BOTH))
    assert str(embstore.check(store, Model(BOTH), numbers(), n=3)).splitlines() == [
        "3 samples encoded again: the cache still holds",
        "  mean: largest difference 0, tolerance 0.0001",
        "  tokens: largest difference 0, tolerance 0.01",
    ]
    report = embstore.check(store, Model(BOTH, weight=1.25), numbers(), n=3)
    assert str(report).splitlines() == [
        "3 samples encoded again: the encoder gives other values than are stored",
        "  mean: largest difference 0.25, tolerance 0.0001",
        "  tokens: largest difference 0.25, tolerance 0.01",
    ]
