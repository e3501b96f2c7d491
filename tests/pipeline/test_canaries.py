"""An encoder in memory whose code changed, or which is random: found on a hit, and with the first batch of a store."""

import itertools

import numpy as np
import pytest

import embstore
from embstore import FieldSpec, errors
from embstore.encoders import FunctionEncoder, ModuleEncoder
from embstore.sources import Items

SOURCE = Items({f"{n}:c": n for n in range(1, 10)}, name="numbers")
CONFIG = {"encoder": "f"}

factor = 1.0


def helper(item):
    return item + 0.5


def rows(items):
    return np.array([[helper(item) * factor, 1] for item in items], np.float32)


def function(run=lambda items: rows(items), **options):
    return FunctionEncoder(run, config=CONFIG, **options)


# -- code that changed ---------------------------------------------------------------------------


def the_body(monkeypatch):
    return function(lambda items: rows(items) * 2)


def a_helper(monkeypatch):
    monkeypatch.setitem(globals(), "helper", lambda item: item + 0.75)
    return function()


def a_global(monkeypatch):
    monkeypatch.setitem(globals(), "factor", 1.01)
    return function()


def the_decoder(monkeypatch):
    return function(decode=lambda content: content + 1)


def one_number_of_a_row(monkeypatch):
    return function(lambda items: rows(items) + np.array([0, 0.01], np.float32))


@pytest.mark.parametrize("change", [the_body, a_helper, a_global, the_decoder, one_number_of_a_row])
@pytest.mark.parametrize("more", [{}, {"new:c": 20}], ids=["hit", "partial"])
def test_a_function_that_changed(cache, monkeypatch, change, more):
    path = embstore.embed(SOURCE, function(), cache).path
    source = Items({**dict(SOURCE._items), **more}, name="numbers")
    changed = change(monkeypatch)
    with pytest.raises(errors.EncoderChangedError, match="the encoder changed") as caught:
        embstore.embed(source, changed, cache)
    assert type(caught.value) is errors.EncoderChangedError
    assert (caught.value.key, caught.value.field, caught.value.path) == ("1:c", "embedding", path)
    assert caught.value.difference > caught.value.tolerance == 1e-4
    assert len(embstore.open(path)) == 9  # no row of the other function is mixed in
    assert embstore.embed(SOURCE, changed, cache, canaries=0).hits == 9


FORMS = {  # in which an encoder may return its rows
    "list": list,
    "tuple": tuple,
    "iterator": iter,
    "generator": lambda found: (row for row in found),
    "map": lambda found: map(np.copy, found),
    "values of a dict": lambda found: dict(enumerate(found)).values(),
    "mapping of iterators": lambda found: {"embedding": iter(found)},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_rows_in_any_form_are_compared(cache, form):
    encoder = function(lambda items: form(rows(items)))
    assert embstore.embed(SOURCE, encoder, cache).encoded == 9
    result = embstore.embed(SOURCE, encoder, cache)
    assert result.hits == 9
    assert embstore.check(result.store, encoder, SOURCE).ok
    with pytest.raises(errors.EncoderChangedError):
        embstore.embed(SOURCE, function(lambda items: form(rows(items) + 1)), cache)


def module():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Dropout(0.5), torch.nn.ReLU())


def encoder_of(own, **options):
    torch = pytest.importorskip("torch")
    return ModuleEncoder(own, collate=lambda items: torch.tensor(items, dtype=torch.float32)[:, None], **options)


def its_weights(own):
    own[0].weight.data += 1


def its_hooks(own):
    own.register_forward_hook(lambda own, inputs, found: found + 1)


def a_plain_attribute(own):
    own[0].forward = lambda inputs: inputs.expand(-1, 4)


@pytest.mark.parametrize("change", [its_weights, its_hooks, a_plain_attribute])
def test_a_module_changed_in_place(cache, change):
    own = module()
    encoder = encoder_of(own)
    embstore.embed(SOURCE, encoder, cache)
    assert embstore.embed(SOURCE, encoder, cache).hits == 9
    change(own)
    with pytest.raises((errors.EncoderChangedError, errors.WeightsChangedError)):
        embstore.embed(SOURCE, encoder, cache)


# -- code that is random -------------------------------------------------------------------------


def random_rows(rng):
    return function(lambda items: rows(items) + rng.normal(size=(len(items), 2)).astype(np.float32))


def random_decoder(rng):
    return function(decode=lambda content: content * rng.uniform(0.9, 1.1))


def one_buffer_for_all_batches(rng):
    buffer = np.empty((16, 2), np.float32)

    def run(items):
        buffer[: len(items)] = rows(items) + rng.normal(size=(len(items), 2))
        return buffer[: len(items)]

    return function(run)


def one_field_of_two(rng):
    fields = {"mean": FieldSpec(shape=(2,)), "tokens": FieldSpec(shape=(2,), ragged=True)}

    def run(items):
        return {"mean": rows(items), "tokens": [rng.normal(size=(3, 2)).astype(np.float32) for _ in items]}

    return function(run, fields=fields)


def lengths_of_tokens(rng):
    lengths = itertools.count(1)

    def run(items):
        length = next(lengths)
        return {"tokens": [np.ones((length, 2), np.float32) for _ in items]}

    return function(run, fields={"tokens": FieldSpec(shape=(2,), ragged=True)})


def dropout_that_is_left_on(rng):
    torch = pytest.importorskip("torch")
    return encoder_of(module(), forward=lambda own, x: torch.nn.functional.dropout(own(x), 0.5, training=True))


@pytest.mark.parametrize(
    "make",
    [
        random_rows,
        random_decoder,
        one_buffer_for_all_batches,
        one_field_of_two,
        lengths_of_tokens,
        dropout_that_is_left_on,
    ],
)
def test_an_encoder_that_is_random_stores_no_row(cache, rng, make):
    encoder = make(rng)
    with pytest.raises(errors.RandomEncoderError, match="the encoder is random") as caught:
        embstore.embed(SOURCE, encoder, cache, batch_size=4)
    assert caught.value.difference > caught.value.tolerance
    assert [entry.rows for entry in cache.entries()] == [0]
    assert embstore.embed(SOURCE, encoder, cache, canaries=0).encoded == 9


def test_an_encoder_that_became_random(cache, rng):
    embstore.embed(SOURCE, function(), cache)
    with pytest.raises(errors.RandomEncoderError, match="the encoder is random"):
        embstore.embed(SOURCE, random_rows(rng), cache)


# -- values that depend on the batch -------------------------------------------------------------


def padded_without_a_mask(items):
    padded = np.zeros((len(items), max(items)), np.float32)
    for row, item in zip(padded, items, strict=True):
        row[:item] = item
    return np.stack([padded.mean(1), padded.max(1)], axis=1)


def standardised(items):
    return rows(items) - rows(items).mean(0)


def softmax_over_the_batch(items):
    return np.exp(rows(items)) / np.exp(rows(items)).sum(0)


def ranks(items):
    return np.argsort(np.argsort(rows(items), axis=0), axis=0)


def sum_of_neighbours(items):
    return rows(items) + np.roll(rows(items), 1, axis=0)


@pytest.mark.parametrize("run", [padded_without_a_mask, standardised, softmax_over_the_batch, ranks, sum_of_neighbours])
@pytest.mark.parametrize("length", [None, int], ids=["in order", "by length"])
def test_values_that_depend_on_the_rest_of_the_batch(cache, run, length):
    encoder = function(run, length=length)
    with pytest.raises(errors.BatchDependentError, match="depend on the batch"):
        embstore.embed(SOURCE, encoder, cache, batch_size=4)
    assert [entry.rows for entry in cache.entries()] == [0]
    assert embstore.embed(SOURCE, encoder, cache, canaries=0).encoded == 9


def test_a_module_with_statistics_of_the_batch(cache):
    torch = pytest.importorskip("torch")
    own = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.BatchNorm1d(2, track_running_stats=False))
    with pytest.raises((errors.BatchDependentError, ValueError)) as caught:  # torch refuses a batch of one
        embstore.embed(SOURCE, encoder_of(own), cache)
    assert "is encoded alone" in str(caught.value.__notes__)


# -- what is encoded again -----------------------------------------------------------------------


@pytest.fixture
def counting():
    batches = []

    def run(items):
        batches.append(list(items))
        return rows(items)

    encoder = function(run)
    encoder.batches = batches
    return encoder


def test_the_first_batch_is_encoded_twice_with_two_samples_alone_and_one_of_a_hit(cache, counting):
    embstore.embed(SOURCE, counting, cache, batch_size=4)
    assert counting.batches == [[1, 2, 3, 4], [1, 2, 3, 4], [1], [4], [5, 6, 7, 8], [9]]
    counting.batches.clear()
    for canaries, batches in ((1, [[1]]), (3, [[1], [2], [3]]), (0, [])):
        assert embstore.embed(SOURCE, counting, cache, canaries=canaries).hits == 9
        assert counting.batches == batches
        counting.batches.clear()


def test_an_encoder_that_is_not_in_memory_is_not_loaded(cache):
    class Plain:
        config = CONFIG
        loaded = 0

        def encode(self, items):
            Plain.loaded += 1
            return rows(items)

    embstore.embed(SOURCE, Plain(), cache)
    embstore.embed(SOURCE, Plain(), cache)
    assert Plain.loaded == 1


def test_a_first_batch_that_does_not_fit_the_memory_twice(cache):
    def run(items):
        if len(items) > 3:
            raise MemoryError
        return rows(items)

    assert embstore.embed(SOURCE, function(run), cache, batch_size=8).encoded == 9


def test_a_new_field_alone(cache):
    """The encoder gives no stored field, so no row can be compared."""
    encoders = [
        FunctionEncoder(lambda items, n=name: {n: rows(items)}, config=CONFIG, fields={name: FieldSpec(shape=(2,))})
        for name in ("one", "two")
    ]
    for encoder in encoders:
        result = embstore.embed(SOURCE, encoder, cache)
    assert result.fields_added == ("two",)


def test_values_that_depend_on_the_compute_dtype(cache):
    """A batch of one differs from a batch of many in the last bits of bfloat16."""
    config = {"encoder": "f", "compute_dtype": "bfloat16"}
    encoder = FunctionEncoder(lambda items: rows(items) * (1 + len(items) / 1000), config=config)
    embstore.embed(SOURCE, encoder, cache)
    assert embstore.embed(SOURCE, encoder, cache).hits == 9


def test_a_stored_sample_that_can_not_be_decoded_now_is_passed_over(cache):
    """Another one is encoded in its place."""
    embstore.embed(SOURCE, function(), cache)

    def decode(content):
        if content == 1:
            raise ValueError("broken")
        return content + 1

    with pytest.raises(errors.EncoderChangedError) as caught:
        embstore.embed(SOURCE, function(decode=decode), cache)
    assert caught.value.key == "2:c"


@pytest.mark.parametrize("spec", [FieldSpec(shape=(3,)), FieldSpec(shape=(2,), dtype="float64")])
def test_a_field_of_another_shape_or_dtype_is_named_as_before(cache, spec):
    embstore.embed(SOURCE, function(fields={"mean": FieldSpec(shape=(2,))}), cache)
    other = function(lambda items: np.zeros((len(items), *spec.shape), spec.dtype), fields={"mean": spec})
    with pytest.raises(errors.FieldMismatchError):
        embstore.embed(SOURCE, other, cache)


def test_shards_are_checked_against_the_store_that_has_their_rows(cache, monkeypatch):
    embstore.embed(SOURCE, function(), cache)
    with pytest.raises(errors.EncoderChangedError):
        embstore.embed(SOURCE, the_body(monkeypatch), cache, shard=(0, 2))


@pytest.mark.parametrize("new", [{}, {"new:d": "999"}])
def test_code_that_changed_is_found_on_rows_that_only_move(tmp_path, new):
    """Without a hit to encode again, old rows would stand beside those of the new code."""
    lengths = {"factor": 1}

    def encode(texts):
        return np.array([[len(text) * lengths["factor"]] for text in texts], np.float32)

    encoder = FunctionEncoder(encode, config=CONFIG, pure=True)
    before = {f"{n}:c": str(n) for n in range(3)}
    embstore.embed(Items(before, name="x"), encoder, tmp_path)
    lengths["factor"] = 2
    after = Items({f"{n}:d": str(n) for n in range(3)} | new, name="x")
    with pytest.raises(errors.EncoderChangedError):
        embstore.embed(after, encoder, tmp_path)
    assert set(embstore.open(embstore.Cache(tmp_path).entries()[0].path)) == set(before)
    lengths["factor"] = 1
    result = embstore.embed(after, encoder, tmp_path)
    assert (len(result.relabelled), result.encoded) == (3, len(new))
