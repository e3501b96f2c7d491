"""`embed` under attack (kills, errors, full memory, files that change), and each number of its result."""

import copy
import logging
import os
import pickle
import re
import signal
import threading
import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

import embstore
from embstore import errors
from embstore._engine.format.ragged import Ragged
from embstore._engine.format.record import FieldSpec
from embstore._engine.format.source_columns import SOURCE_COLUMNS, without_kind
from embstore._engine.io import filesystem
from embstore.encoders.base import BaseEncoder
from embstore.pipeline import embed as pipeline
from embstore.pipeline import find_missing
from embstore.pipeline.decode_ahead import Failure
from embstore.pipeline.result import folded
from embstore.sources import Folder
from tests._helpers.crash import end, leftovers, start, until

SPECS = {
    "mean": FieldSpec(shape=(4,), layer="last", pooling="mean"),
    "half": FieldSpec(shape=(2, 3), dtype="float16", layer="layer_1"),
    "tokens": FieldSpec(shape=(3,), ragged=True, layer="last"),
}
FIXED = ("mean",)


def row_of(name, number):
    """Return a field's row for a number: each is exact in the field's dtype."""
    spec = SPECS[name]
    shape = (number % 5, *spec.shape) if spec.ragged else spec.shape
    return (number + np.arange(np.prod(shape, dtype=int)).reshape(shape) / 4).astype(spec.dtype)


class Numbers(BaseEncoder):
    """Makes fields of numbers, and lists its samples in a file, so that processes count together.

    `during` is called before each batch, with the batch. `known` are the fields that `with_fields` can give.
    """

    def __init__(self, log, fields=FIXED, *, known=tuple(SPECS), during=lambda items: None, length=None, **config):
        self.log = log
        self._config = {"encoder": "numbers", **config}
        self._names = tuple(fields)
        self._known = known
        self._during = during
        self._length = length or (lambda item: 0)

    @property
    def config(self):
        return self._config

    @property
    def fields(self):
        return {name: SPECS[name] for name in self._names}

    def with_fields(self, names):
        for name in names:
            if name not in {*self._names, *self._known}:
                raise errors.UnknownFieldError(name, self._known)
        other = copy.copy(self)
        other._names = tuple(names)
        return other

    def decode(self, content):
        if isinstance(content, bytes):
            content = content.decode().strip()
        if not str(content).isdigit():
            raise errors.DecodeError(f"{content!r} is no number")
        return int(content)

    def length(self, item):
        return self._length(item)

    def encode(self, items):
        self._during(items)
        note(self.log, "".join(f"{'+'.join(self._names)} {item}\n" for item in items))
        return {name: self._rows(name, items) for name in self._names}

    def _rows(self, name, items):
        rows = [row_of(name, item) for item in items]
        return rows if SPECS[name].ragged else np.stack(rows)


def note(log, text):
    """Append to a file in one step, in a way that survives a kill."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(descriptor, text.encode())
    os.close(descriptor)


def encoded(log):
    """Return the samples encoded since the last call, in order: (field names, number)."""
    if not log.exists():
        return []
    lines = [line.split() for line in log.read_text().splitlines()]
    log.unlink()
    return [(names, int(number)) for names, number in lines]


class Source:
    """Samples in memory: their contents by key."""

    def __init__(self, contents, name="numbers"):
        self.contents = dict(contents)
        self.name = name

    def __iter__(self):
        for key, content in self.contents.items():
            yield embstore.Sample(key, lambda content=content: content, embstore.digest_of(str(content)))


def numbers(start, stop):
    return {f"f{i}:c{i % 3}": i for i in range(start, stop)}


def check(path, contents, fields=FIXED, *, mended=True):
    """Check that a store holds the rows of these numbers to the bit, each key once, and nothing else.

    The next writer removes the files of a killed one. Until then a store need not be tidy.
    """
    with embstore.open(path, check="all") as store:
        assert sorted(store) == sorted(contents)
        assert store.fields == {name: SPECS[name] for name in fields}
        digests = [without_kind(d) for d in store.select(keys=list(contents)).column("source_digest").tolist()]
        assert digests == [embstore.digest_of(str(content)) for content in contents.values()]
        for name in fields:
            for key, content in contents.items():
                found = store.select(keys=[key]).to_numpy(name)
                row = found.values[0] if SPECS[name].ragged else found[0]
                expected = row_of(name, content)
                assert row.dtype == expected.dtype
                np.testing.assert_array_equal(row, expected)
    report = embstore.verify(path)
    assert report.ok or not (mended or len(report.rows_affected)), str(report)


def noted(log):
    """Return how much was encoded so far, as the size of the log."""
    return log.stat().st_size if log.exists() else 0


def lines_in(log):
    """Return how many samples were encoded so far."""
    return log.read_bytes().count(b"\n") if log.exists() else 0


def decoding_threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("embstore-decode")]


def counts(result):
    return (result.samples, result.hits, result.encoded, result.stale, len(result.failed), len(result.vanished))


# -- the result --------------------------------------------------------------------------------


def test_a_result_says_what_became_of_the_samples(cache, log):
    first = embstore.embed(Source(numbers(0, 4)), Numbers(log), cache)
    assert counts(first) == (4, 0, 4, 0, 0, 0)
    assert (first.rows, first.nbytes, first.ok, first.fields_added) == (4, 64, True, ())
    assert first.reason == f"miss: no store has this config; {cache.path} is empty"
    contents = {**numbers(1, 6), "f1:c1": 100, "bad:c": "bad"}
    second = embstore.embed(Source(contents), Numbers(log, SPECS), cache, vanished="delete")
    check(second.path, {key: content for key, content in contents.items() if content != "bad"}, SPECS)
    assert counts(second) == (6, 2, 1 + 3 + 2, 1, 1, 1)  # the stale one, three rows' new fields, the missing ones
    assert (second.rows, second.ok, second.fields_added) == (5, False, ("half", "tokens"))
    assert second.nbytes == second.store.nbytes > 64
    assert second.reason == "field miss: no half, tokens yet; 2 stored, 3 missing, 1 stale"
    assert second.vanished == ("f0:c0",)
    with second.store as store:
        assert not store.writable
        assert store.path == second.path
    third = embstore.embed(Source(numbers(1, 4)), Numbers(log), cache, vanished="report")
    assert third.vanished == ("f4:c1", "f5:c2")
    assert third.rows == 5


def test_a_result_reads_like_this(cache, log):
    embstore.embed(Source(numbers(0, 1000)), Numbers(log), cache, batch_size=500)
    contents = {**numbers(10, 1100), "f10:c1": 5555, "bad:c": "bad"}
    result = embstore.embed(Source(contents), Numbers(log), cache, batch_size=500)
    first, second, gone, head, failed = str(result).splitlines()
    assert re.fullmatch(r"1,091 samples: 989 hits, 1 stale, 101 encoded, 1 failed, in [\d.e-]+ s", first)
    assert second == f"1,100 rows, 17.6 kB in {result.path}"
    assert gone == "10 rows whose sample is gone: f0:c0, f1:c1, f2:c2, f3:c0, f4:c1, …"
    assert head == "failed, and tried again by the next run:"
    assert failed == "  bad:c: 'bad' is no number"
    result = embstore.embed(Source(numbers(0, 1000)), Numbers(log, ["mean", "half"]), cache, vanished="delete")
    assert "fields added: half" in str(result).splitlines()
    assert str(embstore.embed(Source(numbers(0, 1000)), Numbers(log), cache)).count("\n") == 1


def test_a_stale_sample_that_fails_is_not_said_to_be_encoded(cache, log):
    embstore.embed(Source(numbers(0, 4)), Numbers(log), cache)
    result = embstore.embed(Source({**numbers(0, 4), "f2:c2": "bad"}), Numbers(log), cache)
    assert (result.encoded, len(result.failed)) == (0, 1)
    left = {key: number for key, number in numbers(0, 4).items() if number != 2}
    check(result.path, left)  # the row is of content that is gone
    assert result.store.missing(numbers(0, 4)) == result.missing() == ["f2:c2"]
    check(embstore.embed(Source(numbers(0, 4)), Numbers(log), cache).path, numbers(0, 4))


# -- the view ----------------------------------------------------------------------------------


def label_corrected(root):
    (root / "c1/f1.txt").rename(root / "c0/f1.txt")
    return {"c1/f1:c1": None, "c0/f1:c0": 1}


def broken_since(root):
    (root / "c1/f4.txt").write_text("bad")
    return {"c1/f4:c1": None}


def unreadable_since(root):
    (root / "c1/f4.txt").unlink()
    (root / "c1/f4.txt").symlink_to("nowhere")
    return {"c1/f4:c1": None}


def removed(root):
    (root / "c0/f0.txt").unlink()
    return {"c0/f0:c0": None}


def broken_at_first(root):
    (root / "c2/f9.txt").write_text("bad")
    return {}


def added(root):
    (root / "c0/f9.txt").write_text("9")
    return {"c0/f9:c0": 9}


@pytest.mark.parametrize("change", [label_corrected, broken_since, unreadable_since, removed, broken_at_first, added])
@pytest.mark.parametrize("runs", [1, 2])
def test_the_view_has_the_samples_of_the_run_without_rows_that_are_wrong(cache, log, root, change, runs):
    contents = {f"c{i % 3}/f{i}:c{i % 3}": i for i in range(6)}
    for key, content in contents.items():
        path = root / f"{key.partition(':')[0]}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(str(content))
    embstore.embed(Folder(root, name="x"), Numbers(log), cache)
    contents = {key: content for key, content in {**contents, **change(root)}.items() if content is not None}
    for _ in range(runs):
        result = embstore.embed(Folder(root, name="x"), Numbers(log), cache)
    assert result.view.keys == list(result.keys) == sorted(contents, key=lambda key: key.partition(":")[0])
    np.testing.assert_array_equal(result.view.to_numpy(), [row_of("mean", contents[key]) for key in result.keys])
    assert result.missing() == [failure.key for failure in result.failed]
    if change is broken_since:
        assert result.store.missing(result.missing()) == ["c1/f4:c1"]


@pytest.mark.parametrize("bad", [set(), {0}, {5}, {2, 3}, set(range(6))], ids=str)
def test_rows_in_order_go_with_labels_in_order(cache, log, bad):
    """`found` is the mask of the source's samples, whatever the order of encoding and of an earlier run."""
    labels = np.arange(6)
    contents = {f"f{i}:c": "broken" if i in bad else i for i in (4, 0, 5, 2, 1, 3)}
    embstore.embed(Source({"f2:c": 2} if 2 not in bad else {"x:c": 7}), Numbers(log), cache)
    result = embstore.embed(Source(contents), Numbers(log), cache)
    order = [int(key[1]) for key in contents]
    assert labels[order][result.found].tolist() == [i for i in order if i not in bad]
    assert result.view.keys == [key for key in contents if int(key[1]) not in bad]
    assert pickle.loads(pickle.dumps(result)).found.tolist() == result.found.tolist()
    if result.keys:
        with embstore.open(result.path, "r+") as store:
            store.delete(result.keys[-1:])
        with pytest.raises(errors.MissingKeysError):
            _ = result.view


def test_a_shard_has_no_rows_in_order(cache, log):
    embstore.embed(Source(numbers(0, 4)), Numbers(log), cache)
    results = [embstore.embed(Source(numbers(0, 20)), Numbers(log), cache, shard=(i, 2)) for i in range(2)]
    assert sorted(key for result in results for key in result.keys) == sorted(numbers(4, 20))
    assert sorted(key for result in results for key in result.wanted) == sorted(numbers(0, 20))
    for name in ("view", "found"):
        with pytest.raises(errors.PartialResultError, match="merge the parts first") as caught:
            getattr(results[1], name)
        assert (caught.value.what, caught.value.shard, caught.value.path) == (name, (1, 2), results[1].path)


# -- failures ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [ValueError, MemoryError, OSError, RuntimeError, KeyError, EOFError, ZeroDivisionError]
)
@pytest.mark.parametrize("where", ["load", "decode", "length"])
def test_an_error_of_one_sample_is_recorded_and_the_run_goes_on(cache, log, where, error):
    def fail(item, here):
        if item == 17 and here == where:
            raise error("here")
        return item

    class Fails(Numbers):
        def decode(self, content):
            return fail(super().decode(content), "decode")

    class Loads(Source):
        def __iter__(self):
            for sample in super().__iter__():
                yield replace(sample, load=lambda load=sample.load: fail(load(), "load"))

    encoder = Fails(log, length=lambda item: fail(item, "length") and 0)
    result = embstore.embed(Loads(numbers(0, 40)), encoder, cache, batch_size=4)
    reason = f"{error.__name__}: {error('here')}"
    assert [(failure.key, failure.reason) for failure in result.failed] == [("f17:c2", reason)]
    check(result.path, {key: number for key, number in numbers(0, 40).items() if number != 17})


@pytest.mark.parametrize(
    ("reasons", "lines"),
    [
        (["empty"], ["k0:c: empty"]),
        (["empty"] * 3, ["3 samples: empty: k0:c, k1:c, k2:c"]),
        (["empty"] * 5000, ["5,000 samples: empty: k0:c, k1:c, k2:c, k3:c, k4:c, …"]),
        ([f"at byte {n:,}" for n in range(2000)], ["2,000 samples: at byte 0: k0:c, k1:c, k2:c, k3:c, k4:c, …"]),
        (["a", "b", "a"], ["2 samples: a: k0:c, k2:c", "k1:c: b"]),
        ([*"abcdefgg"], [*(f"k{n}:c: {c}" for n, c in enumerate("abcde")), "3 samples for 2 other reasons"]),
    ],
)  # fmt: skip
def test_equal_failures_are_folded(reasons, lines):
    assert folded([Failure(f"k{number}:c", "", reason) for number, reason in enumerate(reasons)]) == lines


def test_failures_are_logged_once_with_their_number(cache, log, caplog):
    with caplog.at_level(logging.INFO, "embstore"):
        result = embstore.embed(Source({**numbers(0, 4), **dict.fromkeys(numbers(4, 90), "bad")}), Numbers(log), cache)
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [
        "numbers: 86 of 90 samples failed; the result lists them"
    ]
    assert str(result).count("is no number") == 1
    assert len(result.failed) == 86


# -- hits --------------------------------------------------------------------------------------


def test_a_hit_writes_nothing(cache, log):
    """Neither a lock nor a claim: the cache may be read-only. The counts are in a folder of their own."""
    embstore.embed(Source(numbers(0, 4)), Numbers(log), cache)
    encoded(log)

    def files():
        found = [path for path in cache.path.rglob("*") if ".usage" not in path.parts]
        return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in found}

    before = files()
    assert embstore.embed(Source(numbers(0, 4)), Numbers(log), cache).hits == 4
    assert files() == before
    assert encoded(log) == []


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_a_hit_needs_no_right_to_write(cache, log, root, monkeypatch, kind):
    """Copied files have other mtimes, and the cache is on a network file system."""
    files(root, numbers(0, 4))
    source = Source(numbers(0, 4)) if kind == "memory" else Folder(root, name="x")
    embstore.embed(source, Numbers(log), cache)
    touch(root / "f1.txt", OLD + 1)
    monkeypatch.setattr(filesystem, "on_network", lambda path: "nfs")
    assert embstore.embed(source, Numbers(log), cache).hits == 4


@pytest.mark.parametrize("form", [Ragged.padded, lambda rows: rows], ids=["padded", "ragged"])
def test_tokens_of_a_batch_that_is_both_new_and_stale(cache, log, form):
    class Pads(Numbers):
        def encode(self, items):
            rows = super().encode(items)
            tokens = rows["tokens"]
            lengths = np.array([len(row) for row in tokens])
            joined = Ragged(np.concatenate(tokens), np.concatenate([[0], np.cumsum(lengths)]))
            return {**rows, "tokens": form(joined)}

    fields = ("mean", "tokens")
    embstore.embed(Source(numbers(0, 9)), Pads(log, fields), cache)
    contents = {**numbers(0, 12), "f3:c0": 33}
    check(embstore.embed(Source(contents), Pads(log, fields), cache).path, contents, fields)


# -- kills -------------------------------------------------------------------------------------

PACE, BATCH, INTERVAL = 0.02, 4, 0.2
LOST_PER_KILL = BATCH * (int(INTERVAL / PACE) + 2)
"""What fits the interval at this pace, the batch that ends it, and one more."""


def kill_and_start_again(cache, log, source, rng, *, kills, interval):
    """Kill a run `kills` times, each time once it has encoded 60 to 110 samples."""

    def work():
        encoder = Numbers(log, SPECS, during=lambda items: time.sleep(PACE))
        embstore.embed(source, encoder, cache, batch_size=BATCH, interval=interval)

    for _ in range(kills):
        child, enough = start(work), lines_in(log) + rng.integers(60, 110)
        until(lambda enough=enough: lines_in(log) >= enough)
        time.sleep(rng.uniform(0, PACE))
        os.kill(child, signal.SIGKILL)
        assert end(child) == -signal.SIGKILL
    return work


def columns_and_rows(path):
    """Return all that a store holds, by key, apart from the order of its rows."""
    with embstore.open(path, check="all") as store:
        keys = sorted(store)
        view = store.select(keys=keys)
        columns = {name: view.column(name).tolist() for name in store.columns}
        rows = {name: [np.asarray(row).tobytes() for row in view.to_numpy(name)[:2]] for name in store.fields}
        return keys, columns, rows, store.fields, store.config


def test_killed_at_ten_random_moments(cache, log, tmp_path, rng):
    source, kills = Source(numbers(0, 1200)), 10
    work = kill_and_start_again(cache, log, source, rng, kills=kills, interval=INTERVAL)
    path = cache.entries()[0].path
    there = cache.entries()[0].rows
    assert there > 200
    assert end(start(work)) == 0
    lost = len(encoded(log)) - len(source.contents)
    assert 0 <= lost <= kills * LOST_PER_KILL
    check(path, source.contents, SPECS)
    assert leftovers(path) == []
    undisturbed = embstore.embed(source, Numbers(log, SPECS), tmp_path / "undisturbed", batch_size=BATCH)
    assert columns_and_rows(path) == columns_and_rows(undisturbed.path)
    assert embstore.open(path).snapshot.record.rows == len(source.contents)


def test_that_test_fails_if_commits_are_made_at_the_end_alone(cache, log, rng):
    kills = 4
    kill_and_start_again(cache, log, Source(numbers(0, 2000)), rng, kills=kills, interval=1000)
    assert cache.entries()[0].rows == 0
    assert len(encoded(log)) > kills * LOST_PER_KILL


def test_interrupted_from_the_keyboard(cache, log, rng):
    """SIGINT at a random moment: all that was encoded is committed, but for the batch at hand."""
    contents, stored = numbers(0, 2000), 0
    encoder = Numbers(log, during=lambda items: time.sleep(0.005))
    notes = log.with_name("notes")

    def work():
        try:
            embstore.embed(Source(contents), encoder, cache, batch_size=BATCH, interval=1000)
        except KeyboardInterrupt as error:
            notes.write_text("\n".join(error.__notes__))
            raise

    for _ in range(4):
        child = start(work)
        enough = rng.integers(1, 200)
        until(lambda enough=enough: lines_in(log) >= enough)
        time.sleep(rng.uniform(0, 0.005))
        os.kill(child, signal.SIGINT)
        assert end(child) == 1
        made = len(encoded(log))
        stored, before = cache.entries()[0].rows, stored
        assert made - BATCH <= stored - before <= made
        assert notes.read_text() == f"{stored:,} rows are stored; run it again to go on"
    embstore.embed(Source(contents), Numbers(log), cache)
    check(cache.entries()[0].path, contents)


# -- decoding ahead ----------------------------------------------------------------------------


class Counting(Numbers):
    """Counts items that were decoded and not encoded yet. Decoding takes varying times.

    The first items are decoded once all workers have one, and a batch is encoded once more than it is decoded.
    """

    def __init__(self, *args, workers, **options):
        super().__init__(*args, **options)
        self.lock, self.left = threading.Lock(), 100
        self.barrier, self.first = threading.Barrier(workers), workers
        self.waiting = self.most = self.at_once = self.most_at_once = 0

    def decode(self, content):
        with self.lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            self.first, waits = self.first - 1, self.first > 0
        if waits:
            self.barrier.wait(60)
        time.sleep(content * 7 % 5 / 1000)
        item = super().decode(content)
        with self.lock:
            self.at_once -= 1
            self.waiting += 1
            self.most = max(self.most, self.waiting)
        return item

    def encode(self, items):
        until(lambda: self.waiting > len(items) or self.waiting == self.left)
        time.sleep(0.02)  # decoding gets as far ahead as it may
        rows = super().encode(items)
        with self.lock:
            self.waiting -= len(items)
            self.left -= len(items)
        return rows


@pytest.mark.parametrize(("length", "batches"), [(None, 3), (lambda item: 1 + item % 7, 16)])
@pytest.mark.parametrize("workers", [1, 5])
def test_a_bounded_number_is_decoded_ahead(cache, log, workers, length, batches):
    """Two batches ahead and one at hand, or eight and eight where they are sorted by length."""
    encoder = Counting(log, SPECS, length=length, workers=workers)
    contents = numbers(0, 100)
    result = embstore.embed(Source(contents), encoder, cache, batch_size=5, workers=workers)
    check(result.path, contents, SPECS)
    assert encoder.waiting == 0
    assert 5 < encoder.most <= batches * 5
    assert encoder.most_at_once == workers
    assert decoding_threads() == []


def test_batches_of_like_lengths_the_longest_first(cache, log):
    batches = []

    def length(item):
        return 1 + item * 37 % 101

    encoder = Numbers(log, SPECS, length=length, during=lambda items: batches.append([length(item) for item in items]))
    contents = numbers(0, 100)
    result = embstore.embed(Source(contents), encoder, cache, batch_size=5)
    check(result.path, contents, SPECS)
    assert [len(batch) for batch in batches] == [5] * 20
    for window in (batches[:8], batches[8:16], batches[16:]):
        lengths = [length for batch in window for length in batch]
        assert lengths == sorted(lengths, reverse=True)
    other = embstore.embed(Source(contents), Numbers(log, SPECS), cache.path.with_name("plain"), batch_size=5)
    assert columns_and_rows(result.path) == columns_and_rows(other.path)


def test_items_of_which_some_have_no_length(cache, log):
    contents = numbers(0, 57)
    encoder = Numbers(log, SPECS, length=lambda item: item % 3)
    check(embstore.embed(Source(contents), encoder, cache, batch_size=4).path, contents, SPECS)


OF_ONE_SAMPLE, OF_THE_RUN = ("load", "decode", "length"), ("encode", "progress")
ENDS = [
    *((where, error) for where in OF_ONE_SAMPLE for error in (TypeError, KeyboardInterrupt, SystemExit)),
    *((where, error) for where in OF_THE_RUN for error in (ValueError, OSError, KeyboardInterrupt, SystemExit)),
]


@pytest.mark.parametrize(("where", "error"), ENDS)
def test_an_error_ends_the_run_and_loses_nothing_that_was_encoded(cache, log, where, error):
    def fail(item):
        if item == 17:
            raise error("here")

    class Fails(Numbers):
        def decode(self, content):
            item = super().decode(content)
            fail(item if where == "decode" else None)
            return item

    class Loads(Source):
        def __iter__(self):
            for sample in super().__iter__():
                load = sample.load
                yield replace(sample, load=lambda load=load: fail(load()) or load())

    source = Source(numbers(0, 40))
    encoder = Fails(
        log,
        length=lambda item: fail(item if where == "length" else None) or 0,
        during=lambda items: [fail(item if where == "encode" else None) for item in items],
    )
    options = {"batch_size": 4, "interval": 1000}
    if where == "progress":
        options["progress"] = lambda done, total: fail(17 if done == 20 else None)
    with pytest.raises(error, match="here") as caught:
        embstore.embed(Loads(source.contents) if where == "load" else source, encoder, cache, **options)
    if error is not KeyboardInterrupt and error is not SystemExit and where != "progress":
        assert "f17:c2" in caught.value.__notes__[0]
    assert decoding_threads() == []
    done = [number for _, number in encoded(log)]
    assert done == list(range(20 if where == "progress" else 16))
    check(cache.entries()[0].path, numbers(0, 20 if where == "progress" else 16))
    options.pop("progress", None)
    result = embstore.embed(source, Numbers(log), cache, **options)
    assert result.hits + result.encoded == 40
    check(result.path, source.contents)


@pytest.mark.parametrize(("value", "interval"), [(np.nan, 0), (np.inf, 1000), (-np.inf, 2)])
def test_a_sample_that_fails_holds_up_no_other(cache, log, value, interval):
    class Fails(Numbers):
        def decode(self, content):
            if content == 3:
                raise errors.SampleError(None, "it is odd")
            return super().decode(content)

        def _rows(self, name, items):
            rows = super()._rows(name, items)
            for place, item in enumerate(items):
                if item in (8, 9, 10, 11) and name == "half":
                    rows[place][0, 0] = value
            return rows

    # A number that is too large for float16 comes as infinity as well.
    large = "infinity (half): the largest number of float16 is 65,504: store the field as float32 or bfloat16"
    reason = large if np.isinf(value) else "the encoder gave NaN or infinity (half)"
    contents = {**numbers(0, 20), "f5:c2": "five"}
    result = embstore.embed(Source(contents), Fails(log, SPECS), cache, batch_size=4, interval=interval)
    assert [(failure.key, failure.where) for failure in result.failed if failure.key == "f3:c0"] == [("f3:c0", "f3:c0")]
    assert {failure.key: failure.reason for failure in result.failed} == {
        "f3:c0": "it is odd",
        "f5:c2": "'five' is no number",
        **{f"f{i}:c{i % 3}": reason for i in (8, 9, 10, 11)},
    }
    assert counts(result) == (20, 0, 14, 0, 6, 0)
    check(result.path, {key: n for key, n in contents.items() if n not in (3, "five", 8, 9, 10, 11)}, SPECS)
    again = embstore.embed(Source(numbers(0, 20)), Numbers(log, SPECS), cache)
    assert counts(again) == (20, 14, 6, 0, 0, 0)
    check(again.path, numbers(0, 20), SPECS)


def test_all_samples_fail(cache, log):
    result = embstore.embed(Source(dict.fromkeys(numbers(0, 9), "bad")), Numbers(log), cache, batch_size=4)
    assert counts(result) == (9, 0, 0, 0, 9, 0)
    assert (result.rows, result.ok, encoded(log)) == (0, False, [])
    check(result.path, {})


# -- batches that do not fit the memory --------------------------------------------------------


class OutOfMemoryError(RuntimeError):
    """As torch's is called."""


FULL = [
    MemoryError(),
    OutOfMemoryError("CUDA"),
    RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
]


@pytest.mark.parametrize("error", FULL, ids=lambda error: f"{type(error).__name__} {error}"[:30])
def test_a_batch_that_does_not_fit_is_halved_for_good(cache, log, error):
    tried = []

    def fit(items):
        tried.append(len(items))
        if len(items) > 3:
            raise error

    contents = numbers(0, 21)
    result = embstore.embed(Source(contents), Numbers(log, SPECS, during=fit), cache, batch_size=8)
    check(result.path, contents, SPECS)
    assert tried == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1]
    assert [number for _, number in encoded(log)] == list(range(21))
    assert counts(result) == (21, 0, 21, 0, 0, 0)


@pytest.mark.parametrize("error", FULL, ids=lambda error: f"{type(error).__name__} {error}"[:30])
def test_one_item_that_does_not_fit_ends_the_run(cache, log, error):
    def fit(items):
        if 13 in items:
            raise error

    with pytest.raises(type(error)) as caught:
        embstore.embed(Source(numbers(0, 40)), Numbers(log, during=fit), cache, batch_size=8, interval=1000)
    assert caught.value is error
    check(cache.entries()[0].path, numbers(0, 13))  # of its batch, those before it
    assert [number for _, number in encoded(log)] == list(range(13))


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), OSError(12, "no memory")])
def test_other_errors_are_not_tried_again(cache, log, error):
    tried = []

    def fail(items):
        tried.append(len(items))
        raise error

    with pytest.raises(type(error)) as caught:
        embstore.embed(Source(numbers(0, 40)), Numbers(log, during=fail), cache, batch_size=8)
    assert caught.value is error
    assert tried == [8]


# -- files -------------------------------------------------------------------------------------

OLD = 10**18  # an mtime in ns, long settled


def touch(path, mtime=OLD):
    os.utime(path, ns=(mtime, mtime))


def files(root, contents, mtime=OLD):
    """Write a file a sample, without its class, since all are in one folder."""
    for key, content in contents.items():
        path = root / f"{key.partition(':')[0]}.txt"
        path.write_text(str(content))
        touch(path, mtime)


def unlabelled(contents):
    return {key.partition(":")[0]: content for key, content in contents.items()}


def test_files_are_read_again_only_where_their_stamp_differs(cache, log, root, reads):
    files(root, numbers(0, 6))
    source, encoder = Folder(root, name="x"), Numbers(log)
    assert counts(embstore.embed(source, encoder, cache)) == (6, 0, 6, 0, 0, 0)
    assert reads() == [f"f{i}" for i in range(6)]
    assert counts(embstore.embed(source, encoder, cache)) == (6, 6, 0, 0, 0, 0)
    assert reads() == []

    touch(root / "f2.txt", OLD + 1)  # the same content, said to be newer
    result = embstore.embed(source, encoder, cache)
    assert counts(result) == (6, 6, 0, 0, 0, 0)
    assert result.reason == "hit: 6 stored, 0 missing, 0 stale"
    assert reads() == ["f2"]
    assert counts(embstore.embed(source, encoder, cache)) == (6, 6, 0, 0, 0, 0)
    assert reads() == []  # its new stamp is known by now

    encoded(log)
    files(root, {"f3": 9}, OLD + 2)  # other content of the same size
    assert counts(embstore.embed(source, encoder, cache)) == (6, 5, 1, 1, 0, 0)
    assert set(reads()) == {"f3"}
    assert encoded(log) == [("mean", 9)]
    files(root, {"f4": 444})  # of another size, and the same mtime
    result = embstore.embed(source, encoder, cache)
    assert counts(result) == (6, 5, 1, 1, 0, 0)
    assert set(reads()) == {"f4"}
    check(result.path, unlabelled({**numbers(0, 6), "f3:c0": 9, "f4:c1": 444}))
    assert counts(embstore.embed(source, encoder, cache)) == (6, 6, 0, 0, 0, 0)
    assert reads() == []


@pytest.mark.parametrize("runs", [1, 2])
def test_a_file_of_just_now_is_compared_by_its_content(cache, log, root, reads, runs):
    """Its mtime may not move when it is changed again at once."""
    now = time.time_ns()
    files(root, {"f0": 1}, now)
    for _ in range(runs):
        embstore.embed(Folder(root, name="x"), Numbers(log), cache)
    files(root, {"f0": 2}, now)
    result = embstore.embed(Folder(root, name="x"), Numbers(log), cache)
    assert counts(result) == (1, 0, 1, 1, 0, 0)
    check(result.path, {"f0": 2})


def test_a_file_that_changes_within_its_clocks_tick_after_it_was_compared(cache, log, root, monkeypatch):
    """Comparing thousands of files takes a while: whether one had settled is a question of before it was read."""
    clock, compare = time.time_ns(), find_missing.compare_samples
    files(root, {"f0": 1}, clock - 10**9)
    embstore.embed(Folder(root, name="x"), Numbers(log), cache)

    def slowly(*args, **options):
        found = compare(*args, **options)
        files(root, {"f0": 2}, clock - 10**9)
        monkeypatch.setattr(time, "time_ns", lambda: clock + 10**10)
        return found

    monkeypatch.setattr(find_missing, "compare_samples", slowly)
    embstore.embed(Folder(root, name="x"), Numbers(log), cache)
    monkeypatch.setattr(find_missing, "compare_samples", compare)
    result = embstore.embed(Folder(root, name="x"), Numbers(log), cache)
    assert counts(result) == (1, 0, 1, 1, 0, 0)
    check(result.path, {"f0": 2})


def test_the_stamp_of_a_file_is_noted_once_it_has_settled(cache, log, root, reads, monkeypatch):
    files(root, {"f0": 1}, time.time_ns())
    embstore.embed(Folder(root, name="x"), Numbers(log), cache)
    later = time.time_ns() + 10**10
    monkeypatch.setattr(time, "time_ns", lambda: later)
    reads()
    assert embstore.embed(Folder(root, name="x"), Numbers(log), cache).hits == 1
    assert reads() == ["f0"]
    assert embstore.embed(Folder(root, name="x"), Numbers(log), cache).hits == 1
    assert reads() == []


class Scanned:
    """A source that was scanned a while ago."""

    def __init__(self, source):
        self.name, self.origin = source.name, source.origin
        self.samples = list(source)

    def __iter__(self):
        return iter(self.samples)


@pytest.mark.parametrize("how", ["removed", "a folder", "a broken link"])
def test_a_stored_file_that_cannot_be_read_is_recorded_and_its_row_kept(cache, log, root, how):
    files(root, numbers(0, 6))
    embstore.embed(Folder(root, name="x"), Numbers(log), cache)
    touch(root / "f2.txt", OLD + 1)
    source = Scanned(Folder(root, name="x"))
    (root / "f2.txt").unlink()
    if how == "a folder":
        (root / "f2.txt").mkdir()
    if how == "a broken link":
        (root / "f2.txt").symlink_to(root / "nowhere")
        source = Folder(root, name="x")
    encoded(log)
    result = embstore.embed(source, Numbers(log), cache)
    assert counts(result) == (6, 5, 0, 0, 1, 0)
    (failure,) = result.failed
    assert (failure.key, failure.where) == ("f2", str(root / "f2.txt"))
    assert failure.reason == ("Is a directory" if how == "a folder" else "No such file or directory")
    assert str(result).endswith(f"  f2: {failure.reason} ({root / 'f2.txt'})")
    assert not result.ok
    assert encoded(log) == []
    check(result.path, unlabelled(numbers(0, 6)))


def test_a_new_file_that_goes_between_the_scan_and_its_reading(cache, log, root):
    files(root, numbers(0, 6))
    source = Scanned(Folder(root, name="x"))
    (root / "f4.txt").unlink()
    result = embstore.embed(source, Numbers(log), cache)
    assert counts(result) == (6, 0, 5, 0, 1, 0)
    assert [failure.key for failure in result.failed] == ["f4"]
    check(result.path, unlabelled({key: n for key, n in numbers(0, 6).items() if n != 4}))


def test_a_file_that_changes_between_the_scan_and_its_reading(cache, log, root, reads):
    """The row is of the bytes that were read, and so are its digest and its stamp."""
    files(root, numbers(0, 6))
    source = Scanned(Folder(root, name="x"))
    files(root, {"f4": 444}, OLD + 5)
    result = embstore.embed(source, Numbers(log), cache)
    assert counts(result) == (6, 0, 6, 0, 0, 0)
    check(result.path, unlabelled({**numbers(0, 6), "f4:c1": 444}))
    reads()
    assert embstore.embed(Folder(root, name="x"), Numbers(log), cache).hits == 6
    assert reads() == []


def test_a_file_that_never_stops_changing_does_not_hold_up_the_run(cache, log, root):
    """A recording under way, for example: the run ends without this file, and reports it. A later run has the rest."""
    files(root, {"f0": 1, "f1": 1}, time.time_ns())
    tries = []

    def write(items):
        tries.append(list(items))
        if len(tries) > 10:
            raise AssertionError("without an end")
        files(root, {"f1": 1000 + len(tries)}, time.time_ns())

    result = embstore.embed(Folder(root, name="x"), Numbers(log, during=write), cache)
    assert {failure.key for failure in result.failed} <= {"f1"}
    last = {"f0": 1, "f1": 1000 + len(tries)}
    result = embstore.embed(Folder(root, name="x"), Numbers(log), cache)
    assert result.ok
    check(result.path, last)


def test_files_that_are_gone(cache, log, root):
    files(root, numbers(0, 6))
    embstore.embed(Folder(root, name="x"), Numbers(log), cache)
    for name in ("f1", "f4"):
        (root / f"{name}.txt").unlink()
    left = unlabelled({key: n for key, n in numbers(0, 6).items() if n not in (1, 4)})
    for _ in range(2):
        result = embstore.embed(Folder(root, name="x"), Numbers(log), cache)
        assert counts(result) == (4, 4, 0, 0, 0, 2)
        assert (result.vanished, result.rows, result.ok) == (("f1", "f4"), 6, True)
    result = embstore.embed(Folder(root, name="x"), Numbers(log), cache, vanished="delete")
    assert (result.vanished, result.rows) == (("f1", "f4"), 4)
    check(result.path, left)
    result = embstore.embed(Folder(root, name="x"), Numbers(log), cache, vanished="delete")
    assert (result.vanished, result.rows) == ((), 4)
    with pytest.raises(ValueError, match="'report', 'delete', 'ignore'"):
        embstore.embed(Folder(root, name="x"), Numbers(log), cache, vanished="forget")


def test_two_processes_delete_the_rows_whose_samples_are_gone(cache, log, monkeypatch):
    result = embstore.embed(Source(numbers(0, 6)), Numbers(log), cache)
    writable = pipeline._writable

    def beaten(*args):
        with embstore.open(result.path, "r+") as store:
            store.delete(["f0:c0"])
        return writable(*args)

    monkeypatch.setattr(pipeline, "_writable", beaten)
    result = embstore.embed(Source(numbers(2, 6)), Numbers(log), cache, vanished="delete")
    check(result.path, numbers(2, 6))


# -- stores of before --------------------------------------------------------------------------


def make_old(cache, contents, columns, name="x"):
    """Make a store as it was before there were columns of sources, or stamps among them."""
    config = {"encoder": "numbers", "dataset": name}
    with cache.open(config, "a", fields={"mean": SPECS["mean"]}, columns=dict.fromkeys(columns, "string")) as store:
        rows = np.stack([row_of("mean", content) for content in contents.values()])
        store.append(list(contents), {"mean": rows}, columns=columns)


def test_a_store_without_stamps_gets_them(cache, log, root, reads):
    files(root, numbers(0, 6))
    contents = unlabelled({**numbers(0, 6), "f3:c0": 33})
    make_old(cache, contents, {"source_digest": [embstore.digest_of(str(content)) for content in contents.values()]})
    result = embstore.embed(Folder(root, name="x"), Numbers(log), cache)
    assert counts(result) == (6, 5, 1, 1, 0, 0)
    assert set(reads()) == {f"f{i}" for i in range(6)}
    assert encoded(log) == [("mean", 3)]
    check(result.path, unlabelled(numbers(0, 6)))
    assert result.store.columns == SOURCE_COLUMNS
    assert embstore.embed(Folder(root, name="x"), Numbers(log), cache).hits == 6
    assert reads() == []
    assert result.store.select().column("source_mtime").tolist() == [OLD] * 6
    assert result.store.select().column("source_size").tolist() == [1] * 6


def test_rows_of_unknown_content_are_encoded_again(cache, log):
    make_old(cache, numbers(0, 6), {}, "numbers")
    result = embstore.embed(Source(numbers(0, 8)), Numbers(log), cache)
    assert counts(result) == (8, 0, 8, 6, 0, 0)
    check(result.path, numbers(0, 8))
    assert embstore.embed(Source(numbers(0, 8)), Numbers(log), cache).hits == 8


def test_two_processes_add_the_columns_of_sources(cache, log, monkeypatch):
    make_old(cache, numbers(0, 6), {}, "numbers")
    opened, nested = pipeline.open_store, []

    def beaten(path, mode="r", **options):
        store = opened(path, mode, **options)
        if mode == "r+" and not nested:
            nested.append(True)
            embstore.embed(Source(numbers(0, 6)), Numbers(log), cache)
        return store

    monkeypatch.setattr(pipeline, "open_store", beaten)
    embstore.embed(Source(numbers(0, 6)), Numbers(log), cache)
    check(cache.entries()[0].path, numbers(0, 6))
    assert len(encoded(log)) == 6


@pytest.mark.parametrize("fields", [{"mean": SPECS["mean"]}, None], ids=["no rows", "no fields"])
def test_a_store_that_was_made_by_hand_and_is_empty(cache, log, fields):
    cache.open({"encoder": "numbers", "dataset": "numbers"}, "a", fields=fields).close()
    for _ in range(2):  # without fields, the second run raised FieldMismatchError
        check(embstore.embed(Source(numbers(0, 6)), Numbers(log), cache).path, numbers(0, 6))


def test_a_store_whose_rows_were_all_deleted(cache, log):
    make_old(cache, numbers(0, 6), {}, "numbers")
    with embstore.open(cache.entries()[0].path, "r+") as store:
        store.delete(list(numbers(0, 6)))
    check(embstore.embed(Source(numbers(0, 6)), Numbers(log), cache).path, numbers(0, 6))


# -- columns -----------------------------------------------------------------------------------


def columns(sample):
    number = int(str(sample.key).partition(":")[0][1:])
    return {"split": "test" if number % 5 == 0 else "train", "weight": number / 2, "fold": number % 3}


def test_columns_of_declared_fields(cache, log):
    """They are made with the store, of the dtypes that the first sample shows."""
    embstore.embed(Source(numbers(0, 7)), Numbers(log, SPECS), cache, batch_size=2, columns=columns)
    contents = {**numbers(0, 12), "f3:c0": 33}
    result = embstore.embed(Source(contents), Numbers(log, SPECS), cache, batch_size=2, columns=columns)
    assert counts(result) == (12, 6, 6, 1, 0, 0)
    check(result.path, contents, SPECS)
    store = result.store
    own = {name: dtype for name, dtype in store.columns.items() if not name.startswith("source_")}
    assert own == {"split": "string", "weight": "float64", "fold": "int64"}
    view = store.select(keys=list(contents))
    for name in own:
        assert view.column(name).tolist() == [columns(sample)[name] for sample in Source(contents)]
    assert store.select(where={"split": "test"}).keys == ["f0:c0", "f5:c2", "f10:c1"]


def test_columns_that_the_store_does_not_have(cache, log):
    embstore.embed(Source(numbers(0, 6)), Numbers(log), cache)
    result = embstore.embed(Source(numbers(0, 8)), Numbers(log), cache, columns=columns)
    assert (result.hits, result.encoded) == (6, 2)  # rows that are there get theirs
    check(result.path, numbers(0, 8))


def test_columns_of_a_source_that_was_empty_at_first(cache, log):
    embstore.embed(Source({}), Numbers(log), cache, columns=columns)
    check(embstore.embed(Source(numbers(0, 6)), Numbers(log), cache, columns=columns).path, numbers(0, 6))


# -- memory ------------------------------------------------------------------------------------

NBYTES = 100_000


class Large(Numbers):
    """Its items, and rows of a field `wide`, have 100 kB."""

    @property
    def fields(self):
        return {"wide": FieldSpec(shape=(NBYTES // 4,))} if self._names == ("wide",) else super().fields

    def decode(self, content):
        return np.full(NBYTES // 4, content, np.float32)

    def encode(self, items):
        return {"wide": np.stack(items)} if self._names == ("wide",) else super().encode([int(row[0]) for row in items])


@pytest.mark.parametrize(
    ("fields", "count", "interval", "limit"),
    [
        ("mean", 2000, 2.0, 8 * 8 * NBYTES),  # eight batches, of 250
        ("wide", 600, 0.0, 8 * 8 * NBYTES + 2 * 8 * 2**20),  # and two chunks
    ],
)
def test_memory_holds_the_batches_under_way_alone(cache, log, fields, count, interval, limit):
    contents = numbers(0, count)
    assert limit < count * NBYTES / 2
    tracemalloc.start()
    try:
        result = embstore.embed(Source(contents), Large(log, [fields]), cache, batch_size=8, interval=interval)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result.encoded == count
    assert peak < limit
    key = f"f{count - 1}:c{(count - 1) % 3}"
    assert result.store[key][0] == count - 1


def test_rows_of_others_are_not_looked_for(cache, log):
    """A client's samples are a part of the store's."""
    embstore.embed(Source(numbers(0, 8)), Numbers(log), cache)
    result = embstore.embed(Source(numbers(0, 3)), Numbers(log), cache, vanished="ignore")
    assert (result.hits, result.vanished, result.rows) == (3, (), 8)
    assert len(embstore.embed(Source(numbers(0, 3)), Numbers(log), cache).vanished) == 5
