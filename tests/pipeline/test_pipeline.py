"""The embedding loop: nothing is encoded twice, nothing stale is served, and a kill costs little."""

import contextlib
import itertools
import re
import sys
import time
import types

import numpy as np
import pytest

import embstore
from embstore import errors
from embstore._engine.progress import reporting
from embstore.sources import Items
from tests._helpers.caches import encoder

DIM = 4


class Source:
    """Samples whose contents are numbers: ``contents`` by key."""

    def __init__(self, contents, name="numbers"):
        self.contents = dict(contents)
        self.name = name
        self.loaded = []

    def _load(self, key):
        self.loaded.append(key)
        return self.contents[key]

    def __iter__(self):
        for key, content in self.contents.items():
            yield embstore.Sample(key, lambda key=key: self._load(key), embstore.digest_of(str(content)))


class Encoder:
    """Repeats each number; `during` is called before each batch, with the batch."""

    def __init__(self, during=lambda items: None, **config):
        self.config = {"encoder": "repeat", **config}
        self.batches = []
        self.during = during

    @property
    def encoded(self):
        return [item for batch in self.batches for item in batch]

    def encode(self, items):
        self.during(items)
        self.batches.append(list(items))
        return np.repeat(np.array(items, np.float32)[:, None], DIM, axis=1)


def numbers(start, stop):
    return {f"f{i}:c{i % 3}": i for i in range(start, stop)}


def check(result, contents):
    """Check that the store holds these contents, each key once, and nothing else."""
    store = embstore.open(result.path, check="all")
    assert sorted(store) == sorted(contents)
    expected = np.repeat(np.array([*contents.values()], np.float32)[:, None], DIM, axis=1)
    np.testing.assert_array_equal(store[list(contents)], expected)
    digests = store.select(keys=list(contents)).column("source_digest").tolist()
    assert digests == ["given:" + embstore.digest_of(str(content)) for content in contents.values()]
    assert embstore.verify(result.path).ok


# -- what is encoded --------------------------------------------------------------------------


def test_first_second_and_further_runs(cache):
    source, encoder = Source(numbers(0, 10)), Encoder()
    first = embstore.embed(source, encoder, cache, batch_size=4)
    assert encoder.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert (first.samples, first.hits, first.encoded, first.stale) == (10, 0, 10, 0)
    assert first.reason.startswith("miss: no store has this config")
    assert first.config == {"encoder": "repeat", "dataset": "numbers"}
    assert first.path == cache.path_of(first.config)
    assert first.seconds > 0
    check(first, source.contents)

    def refuse(items):
        raise AssertionError("nothing is missing")

    source.loaded.clear()
    second = embstore.embed(source, Encoder(during=refuse), cache, batch_size=3)
    assert (second.samples, second.hits, second.encoded, second.stale) == (10, 10, 0, 0)
    assert second.reason == "hit: 10 stored, 0 missing, 0 stale"
    assert second.path == first.path
    assert source.loaded == []

    more = Source(numbers(5, 15))
    third = embstore.embed(more, encoder := Encoder(), cache)
    assert encoder.encoded == [10, 11, 12, 13, 14]
    assert sorted(more.loaded) == sorted(numbers(10, 15))  # threads load them, in any order
    assert (third.samples, third.hits, third.encoded, third.stale) == (10, 5, 5, 0)
    assert third.reason == "partial: 5 stored, 5 missing, 0 stale"
    check(third, numbers(0, 15))


def test_changed_content_is_stale_and_replaced(cache):
    contents = numbers(0, 10)
    embstore.embed(Source(contents), Encoder(), cache)
    changed = {**contents, "f3:c0": 333, "f8:c2": 888, "new:c": 7}
    encoder = Encoder()
    result = embstore.embed(Source(changed), encoder, cache, batch_size=2)
    assert sorted(encoder.encoded) == [7, 333, 888]
    assert (result.samples, result.hits, result.encoded, result.stale) == (11, 8, 3, 2)
    assert result.reason == "partial: 8 stored, 1 missing, 2 stale"
    check(result, changed)
    again = embstore.embed(Source(changed), encoder := Encoder(), cache)
    assert again.hits == 11
    assert encoder.batches == []
    back = embstore.embed(Source(contents), Encoder(), cache)  # what was there before is not remembered
    assert (back.encoded, back.stale) == (2, 2)


def test_a_deleted_row_is_encoded_again(cache):
    source = Source(numbers(0, 5))
    result = embstore.embed(source, Encoder(), cache)
    with embstore.open(result.path, "r+") as store:
        store.delete(["f2:c2"])
    result = embstore.embed(source, encoder := Encoder(), cache)
    assert encoder.encoded == [2]
    check(result, source.contents)


def test_the_config_decides_and_the_batch_size_does_not(cache):
    source = Source(numbers(0, 5))
    embstore.embed(source, Encoder(), cache, batch_size=5)
    assert embstore.embed(source, Encoder(), cache, batch_size=1).hits == 5
    other = embstore.embed(source, encoder := Encoder(revision="v2"), cache)
    assert len(encoder.encoded) == 5
    assert "revision" in other.reason
    assert len(cache) == 2


def test_two_data_sets_share_nothing(cache):
    one, two = Source(numbers(0, 5), "one"), Source(dict.fromkeys(numbers(0, 5), 9), "two")
    a = embstore.embed(one, Encoder(), cache)
    b = embstore.embed(two, encoder := Encoder(), cache)
    assert len(encoder.encoded) == 5
    assert b.reason.endswith("dataset: expected 'two', found 'one'")
    assert a.path != b.path
    check(a, one.contents)
    check(b, two.contents)


def test_no_samples(cache):
    result = embstore.embed(Source({}), encoder := Encoder(), cache)
    assert (result.samples, result.hits, result.encoded) == (0, 0, 0)
    assert encoder.batches == []
    assert embstore.embed(Source(numbers(0, 3)), Encoder(), cache).encoded == 3


@pytest.mark.parametrize("twice", ["a:dog", embstore.Key("a", "dog")], ids=["text", "Key"])
def test_a_key_twice(cache, twice):
    class Twice(Source):
        def __iter__(self):
            yield from super().__iter__()
            yield embstore.Sample(twice, lambda: 2, "d")

    with pytest.raises(errors.DuplicateKeysError) as caught:
        embstore.embed(Twice({"a:dog": 1, "b:dog": 2}), encoder := Encoder(), cache)
    assert caught.value.keys == ("a:dog",)
    assert encoder.batches == []
    assert len(cache) == 0


def test_a_key_that_is_none(cache):
    with pytest.raises(errors.SourceError, match=":dog: "):
        embstore.embed(Source({"a:dog": 1, ":dog": 2}), encoder := Encoder(), cache)
    assert encoder.batches == []


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_of_nothing_is_refused(cache, size):
    with pytest.raises(ValueError, match="expected batch_size from 1, found"):
        embstore.embed(Source(numbers(0, 3)), Encoder(), cache, batch_size=size)
    assert not cache.path.exists()


def test_a_digest_is_of_bytes_or_text():
    assert embstore.digest_of("é") == embstore.digest_of("é".encode())
    assert embstore.digest_of("a") != embstore.digest_of("b")
    assert len(embstore.digest_of(b"")) == 32


# -- columns and fields -----------------------------------------------------------------------


def test_columns(cache):
    def columns(sample):
        return {"split": "train" if len(sample.digest) and "c0" in sample.key else "test", "score": len(sample.key)}

    embstore.embed(Source(numbers(0, 7)), Encoder(), cache, batch_size=2, columns=columns)
    result = embstore.embed(Source(numbers(0, 12)), Encoder(), cache, batch_size=2, columns=columns)
    check(result, numbers(0, 12))
    view = embstore.open(result.path).select()
    assert view.column("split").tolist() == ["train" if "c0" in key else "test" for key in view]
    assert view.column("score").tolist() == [len(key) for key in view]


def test_columns_that_not_all_samples_have(cache):
    """A value must not slide to another row."""
    view = embstore.embed(
        Source(numbers(0, 6)), Encoder(), cache, columns=lambda s: {"odd": s.key} if s.key != "f2:c2" else {}
    ).view
    assert view.column("odd").tolist() == [key if key != "f2:c2" else "" for key in view]


def test_several_fields(cache):
    class Two(Encoder):
        def encode(self, items):
            rows = super().encode(items)
            return {"mean": rows, "tokens": np.stack([rows, -rows], axis=1).astype(np.float16)}

    source = Source(numbers(0, 10))
    result = embstore.embed(source, Two(), cache, batch_size=4)
    store = embstore.open(result.path)
    assert {name: (spec.dtype, spec.shape) for name, spec in store.fields.items()} == {
        "mean": ("float32", (DIM,)),
        "tokens": ("float16", (2, DIM)),
    }
    np.testing.assert_array_equal(store.fetch(["f7:c1"], "mean"), np.full((1, DIM), 7))
    np.testing.assert_array_equal(store.fetch(["f7:c1"], "tokens")[0], [[7] * DIM, [-7] * DIM])
    assert embstore.embed(source, Two(), cache).hits == 10


def test_an_encoder_may_use_one_buffer_for_all_batches(cache):
    class Buffered(Encoder):
        buffer = np.empty((4, DIM), np.float32)

        def encode(self, items):
            self.buffer[: len(items)] = super().encode(items)
            return self.buffer[: len(items)]

    source = Source(numbers(0, 10))
    check(embstore.embed(source, Buffered(), cache, batch_size=4), source.contents)


# -- progress ---------------------------------------------------------------------------------


def test_progress_is_told_how_much_is_done(cache):
    told = []
    embstore.embed(Source(numbers(0, 4)), Encoder(), cache)
    changed = {**numbers(0, 10), "f0:c0": 99}
    embstore.embed(Source(changed), Encoder(), cache, batch_size=4, progress=lambda *a: told.append(a))
    assert told == [(4, 7), (6, 7), (7, 7)]
    told.clear()
    embstore.embed(Source(changed), Encoder(), cache, progress=lambda *a: told.append(a))
    assert told == []


@pytest.mark.parametrize("progress", [None, False])
def test_no_progress_prints_nothing(cache, capfd, progress):
    embstore.embed(Source(numbers(0, 4)), Encoder(), cache, progress=progress)
    assert capfd.readouterr() == ("", "")


def test_a_bar(cache, capfd):
    pytest.importorskip("tqdm")
    embstore.embed(Source(numbers(0, 10)), Encoder(), cache, batch_size=4, progress=True)
    said = capfd.readouterr()
    assert "10/10" in said.err
    assert "numbers" in said.err
    assert said.out == ""


def test_a_bar_without_tqdm(cache, monkeypatch, capsys):
    for name in ("tqdm", "tqdm.auto"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with pytest.raises(ImportError, match="pip install tqdm"):
        embstore.embed(Source(numbers(0, 4)), encoder := Encoder(), cache, progress=True)
    assert encoder.batches == []
    assert embstore.embed(Source(numbers(0, 4)), encoder, cache).encoded == 4
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("where", ["terminal", "jupyter", "neither"])
@pytest.mark.parametrize("progress", [None, False])
def test_a_bar_where_people_see_it(cache, monkeypatch, capsys, where, progress):
    pytest.importorskip("tqdm")
    shell = types.SimpleNamespace(config={"IPKernelApp": {}} if where == "jupyter" else {})
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: where == "terminal")
    for shown in (where != "neither" and progress is None, False):  # nothing is left for the second run
        embstore.embed(Source(numbers(0, 10)), Encoder(), cache, progress=progress)
        assert ("10/10" in (said := capsys.readouterr()).err) is shown
        assert said.out == ""
        assert shown or said.err == ""


@pytest.mark.parametrize("progress", ["bar", 1, []], ids=repr)
def test_progress_of_another_kind(cache, progress):
    with pytest.raises(TypeError, match=re.escape(f"found {progress!r}")):
        embstore.embed(Source(numbers(0, 4)), Encoder(), cache, progress=progress)
    assert not cache.path.exists()


def test_loading_is_not_part_of_the_estimate(cache, monkeypatch, capsys):
    pytest.importorskip("tqdm")
    clock = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    with reporting(True, 90, "rows", hits=10) as advance:
        for seconds, count, loading in [(60, 10, True), (1, 10, False), (1, 10, False)]:
            clock[0] += seconds
            advance(count, loading=loading)
    assert "40/100 [00:02<00:06, 10.00row/s" in capsys.readouterr().err.splitlines()[-1].rpartition("\r")[2]

    told = []

    @contextlib.contextmanager
    def recorded(*_, **__):
        yield lambda count, loading=False: told.append((count, loading))

    monkeypatch.setattr("embstore.pipeline.embed.reporting", recorded)
    embstore.embed(Source({**numbers(0, 7), "bad:c": None}), Encoder(), cache, batch_size=4, workers=1)
    assert sorted(told) == [(1, False), (3, False), (4, True)]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (("mean",), "4 rows are stored; run it again to go on"),
        (("mean", "more"), "10 rows are stored, and 4 with the new fields; run it again to go on"),
    ],
    ids=["rows", "a field"],
)
def test_an_interrupted_run_says_how_much_is_stored(cache, fields, said):
    calls = itertools.count()

    def interrupt(items):
        if next(calls) == 2:
            raise KeyboardInterrupt

    source = Items({f"{i}:c": "x" * i for i in range(1, 11)}, name="d")
    if len(fields) > 1:
        embstore.embed(source, encoder(), cache)
    with pytest.raises(KeyboardInterrupt) as caught:
        embstore.embed(source, encoder(interrupt, fields), cache, batch_size=2, interval=1000, canaries=0)
    assert caught.value.__notes__ == [said]
    assert embstore.embed(source, encoder(fields=fields), cache).encoded == 6


# -- what goes wrong --------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["fewer", "wider", "float64"])
def test_rows_unlike_the_others_are_refused_with_their_batch_alone(cache, change):
    class Broken(Encoder):
        def encode(self, items):
            rows = super().encode(items)
            if 9 not in items:
                return rows
            return {"fewer": rows[:-1], "wider": np.hstack([rows, rows]), "float64": rows.astype(np.float64)}[change]

    with pytest.raises((errors.ShapeError, errors.DtypeError)):
        embstore.embed(Source(numbers(0, 20)), Broken(), cache, batch_size=4)
    (entry,) = cache.entries()
    assert set(embstore.open(entry.path)) == numbers(0, 8).keys()


def test_a_column_value_that_is_refused_comes_before_the_first_batch(cache):
    with pytest.raises(errors.DtypeError):
        embstore.embed(
            *(Source(numbers(0, 20)), encoder := Encoder(), cache),
            columns=lambda s: {"n": "x" if "f9" in s.key else 1},
        )
    assert (encoder.batches, cache.entries()) == ([], [])


def test_column_values_stay_with_the_rows_that_they_were_given_for(path):
    """One too few and then one too many are refused, though their sum is right."""
    with embstore.open(path, "w-", config={"n": 1}) as store:
        writer = store.writer(interval=1000)
        with pytest.raises(errors.ShapeError):
            writer.append(["a:c", "b:c"], np.ones((2, DIM), np.float32), columns={"n": [1]})
        with pytest.raises(errors.ShapeError):
            writer.append(["c:c"], np.ones((1, DIM), np.float32), columns={"n": [1, 2]})


def test_rows_are_committed_as_it_goes(cache):
    seen = []

    def look(items):
        seen.append([entry.rows for entry in cache.entries()])

    embstore.embed(Source(numbers(0, 12)), Encoder(during=look), cache, batch_size=4, interval=0)
    assert seen == [[0], [4], [8]]


def test_new_rows_do_not_wait_for_the_stale_ones(cache):
    """Rows older than the interval are committed, whichever kind is encoded by then."""
    embstore.embed(Source(numbers(0, 8)), Encoder(), cache)
    seen = []

    def look(items):
        if items[0] >= 1000:  # the slow ones
            (entry,) = cache.entries()
            seen.append(len(set(embstore.open(entry.path)) & numbers(8, 12).keys()))
            time.sleep(0.15)

    changed = {key: content + 1000 for key, content in numbers(0, 8).items()}
    embstore.embed(Source({**changed, **numbers(8, 12)}), Encoder(during=look), cache, batch_size=2, interval=0.1)
    assert len(seen) == 4
    assert seen[2:] == [4, 4]
