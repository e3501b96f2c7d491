"""Fields: fewer than are stored are a hit, others are added to all rows at once, and nothing else is touched."""

import os
import shutil
import signal
import time

import numpy as np
import pytest

import embstore
from embstore import errors
from embstore._engine.format.record import FieldSpec
from embstore._engine.format.source_columns import UNKNOWN_SOURCE
from embstore._engine.io import filesystem, steps
from embstore.encoders.base import BaseEncoder
from embstore.pipeline import add_fields as backfilling
from embstore.pipeline import embed as pipeline
from embstore.sources import Folder
from tests._helpers.crash import end, kill_at, leftovers, run_in_child, start, until
from tests.pipeline.test_embed import (
    OLD,
    SPECS,
    Numbers,
    Source,
    check,
    columns_and_rows,
    counts,
    encoded,
    files,
    lines_in,
    note,
    noted,
    numbers,
    row_of,
    touch,
    unlabelled,
)


def bytes_of(path):
    """Return the bytes of all chunks of a store, by their places."""
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("c.*")}


def names_in(folder):
    """Return what lies in a cache apart from locks."""
    apart = (".claims", ".usage")
    return sorted(file.name for file in folder.iterdir() if file.suffix != ".lock" and file.name not in apart)


@pytest.fixture
def made(cache, log):
    """A store of the field `mean` with 20 rows, of which two are dead."""
    result = embstore.embed(Source(numbers(0, 20)), Numbers(log), cache, batch_size=6)
    with embstore.open(result.path, "r+") as store:
        store.delete(["f3:c0", "f19:c1"])
    encoded(log)
    return result.path


LEFT = {key: n for key, n in numbers(0, 20).items() if n not in (3, 19)}


# -- fewer fields ------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [["mean"], ["tokens"], ["half", "mean"], ["tokens", "half", "mean"]])
def test_fields_that_are_all_stored_are_a_hit(cache, log, fields):
    embstore.embed(Source(numbers(0, 9)), Numbers(log, SPECS), cache)
    encoded(log)
    result = embstore.embed(Source(numbers(0, 9)), Numbers(log, fields), cache)
    assert counts(result) == (9, 9, 0, 0, 0, 0)
    assert result.reason == "hit: 9 stored, 0 missing, 0 stale"
    assert encoded(log) == []


@pytest.mark.parametrize("vanished", ["report", "delete"])
def test_a_hit_of_an_encoder_that_has_fewer_fields(cache, log, vanished):
    embstore.embed(Source(numbers(0, 9)), Numbers(log, ["mean", "half"]), cache)
    result = embstore.embed(Source(numbers(2, 9)), Numbers(log, known=()), cache, vanished=vanished)
    assert counts(result) == (7, 7, 0, 0, 0, 2)


@pytest.mark.parametrize("fields", [["mean"], ["tokens"], ["half", "mean"]])
def test_new_rows_get_all_fields_that_are_stored(cache, log, fields):
    embstore.embed(Source(numbers(0, 9)), Numbers(log, SPECS), cache)
    encoded(log)
    contents = {**numbers(0, 12), "f2:c2": 22}
    result = embstore.embed(Source(contents), Numbers(log, fields), cache, batch_size=3)
    assert counts(result) == (12, 8, 4, 1, 0, 0)
    assert {names for names, _ in encoded(log)} == {"mean+half+tokens"}
    check(result.path, contents, SPECS)


@pytest.mark.parametrize("contents", [numbers(0, 12), {**numbers(0, 9), "f2:c2": 22}], ids=["missing", "stale"])
def test_an_encoder_that_cannot_give_a_field_that_is_stored(cache, log, contents):
    path = embstore.embed(Source(numbers(0, 9)), Numbers(log, SPECS), cache).path
    before = bytes_of(path)
    encoded(log)
    with pytest.raises(errors.UnknownFieldError) as caught:
        embstore.embed(Source(contents), Numbers(log, known=["half"]), cache)
    assert caught.value.field == "tokens"
    assert encoded(log) == []
    assert bytes_of(path) == before
    check(path, numbers(0, 9), SPECS)
    result = embstore.embed(Source(contents), Numbers(log), cache)
    assert result.encoded == len(encoded(log)) == len(contents) - result.hits
    check(path, contents, SPECS)


def test_a_field_that_is_stored_with_another_dtype_when_asked_for_along_with_others(cache, log):
    """Its dtype was chosen when it was made: rows that are added for the sake of other fields are converted."""

    class Wide(Numbers):
        @property
        def fields(self):
            wide = FieldSpec(shape=(2, 3), dtype="float32", layer="layer_1")
            return {name: wide if name == "half" else SPECS[name] for name in self._names}

        def _rows(self, name, items):
            rows = super()._rows(name, items)
            return rows.astype(np.float32) if name == "half" else rows

    embstore.embed(Source(numbers(0, 9)), Numbers(log, ["mean", "half"]), cache)
    result = embstore.embed(Source(numbers(0, 12)), Wide(log, ["mean"]), cache)
    check(result.path, numbers(0, 12), ["mean", "half"])


# -- fields that mean something else -----------------------------------------------------------

OTHERS = {
    "dtype": FieldSpec(shape=(2, 3), dtype="float32", layer="layer_1"),
    "shape": FieldSpec(shape=(3, 2), dtype="float16", layer="layer_1"),
    "layer": FieldSpec(shape=(2, 3), dtype="float16", layer="layer_2"),
    "pooling": FieldSpec(shape=(2, 3), dtype="float16", layer="layer_1", pooling="mean"),
    "ragged": FieldSpec(shape=(3,), dtype="float16", layer="layer_1", ragged=True),
}


class Other(Numbers):
    """Its field `half` is another one."""

    other = OTHERS["layer"]

    @property
    def fields(self):
        return {name: self.other if name == "half" else SPECS[name] for name in self._names}


@pytest.mark.parametrize("contents", [numbers(0, 9), numbers(0, 12), {}], ids=["hit", "missing", "none"])
@pytest.mark.parametrize("differs", OTHERS)
def test_a_field_of_that_name_is_another_one(cache, log, differs, contents):
    path = embstore.embed(Source(numbers(0, 9)), Numbers(log, ["mean", "half"]), cache).path
    before = bytes_of(path)
    encoded(log)
    encoder = Other(log, ["half", "tokens"])
    encoder.other = OTHERS[differs]
    with pytest.raises(errors.FieldMismatchError) as caught:
        embstore.embed(Source(contents), encoder, cache)
    assert (caught.value.field, caught.value.path) == ("half", path)
    expected, found = caught.value.expected, caught.value.found
    assert differs in {name for name in expected if expected[name] != found[name]}
    assert encoded(log) == []
    assert bytes_of(path) == before
    assert names_in(cache.path) == [path.name]


@pytest.mark.parametrize("spec", [{"dims": ("a", "b")}, {"nonfinite": "allow"}])
def test_names_of_dimensions_and_rules_of_entry_make_no_other_field(cache, log, spec):
    embstore.embed(Source(numbers(0, 9)), Numbers(log, ["mean", "half"]), cache)
    encoder = Other(log, ["mean", "half"])
    encoder.other = FieldSpec(shape=(2, 3), dtype="float16", layer="layer_1", **spec)
    check(embstore.embed(Source(numbers(0, 12)), encoder, cache).path, numbers(0, 12), ["mean", "half"])


@pytest.mark.parametrize("differs", ["layer", "pooling"])
def test_a_field_that_is_added_for_new_rows_is_another_one(cache, log, differs):
    path = embstore.embed(Source(numbers(0, 9)), Numbers(log, ["mean", "half"]), cache).path
    encoder = Other(log, ["mean"])
    encoder.other = OTHERS[differs]
    with pytest.raises(errors.FieldMismatchError):
        embstore.embed(Source(numbers(0, 12)), encoder, cache)
    check(path, numbers(0, 9), ["mean", "half"])


# -- another field -----------------------------------------------------------------------------


@pytest.mark.parametrize("new", [["half"], ["tokens"], ["half", "tokens"], ["tokens", "half"]], ids="+".join)
@pytest.mark.parametrize("own", [["mean"], []], ids=["both", "alone"])
def test_a_new_field_is_encoded_alone_and_committed_whole(cache, log, made, new, own, monkeypatch):
    """`own`: whether the encoder gives the field that is there as well."""
    before = embstore.open(made)
    rows, keys, chunks = before.rows.tolist(), list(before), bytes_of(made)
    commits = []

    def count(operation, path, data):
        if operation == "rename" and path == str(made / "zarr.json"):
            commits.append(path)

    monkeypatch.setattr(steps, "step_hook", count)
    told = []
    result = embstore.embed(
        Source(LEFT), Numbers(log, own + new), cache, batch_size=4, progress=lambda *at: told.append(at)
    )
    assert counts(result) == (18, 18, 18, 0, 0, 0)
    assert result.fields_added == tuple(new)
    assert result.reason == f"field miss: no {', '.join(new)} yet; 18 stored, 0 missing, 0 stale"
    assert f"fields added: {', '.join(new)}" in str(result)
    assert encoded(log) == [("+".join(new), number) for number in LEFT.values()]
    assert told[-1] == (18, 18)
    assert len(commits) == 1
    check(made, LEFT, ["mean", *new])
    store = embstore.open(made)
    assert (store.rows.tolist(), list(store)) == (rows, keys)
    assert {place: data for place, data in bytes_of(made).items() if place in chunks} == chunks
    added = {place.partition("/")[0].removesuffix("_offsets") for place in bytes_of(made).keys() - chunks.keys()}
    assert added == set(new)
    assert names_in(cache.path) == [made.name]
    assert before.refresh()
    assert list(before.fields) == ["mean", *new]
    again = embstore.embed(Source(LEFT), Numbers(log, own + new), cache)
    assert counts(again) == (18, 18, 0, 0, 0, 0)
    assert encoded(log) == []


def test_fields_one_after_the_other_make_the_store_of_all_at_once(cache, log, tmp_path):
    source = Source(numbers(0, 30))
    for fields in (["mean"], ["half"], ["tokens", "mean"]):
        result = embstore.embed(source, Numbers(log, fields), cache, batch_size=7)
    at_once = embstore.embed(source, Numbers(log, SPECS), tmp_path / "at once", batch_size=7)
    assert columns_and_rows(result.path) == columns_and_rows(at_once.path)
    result = embstore.embed(Source(numbers(0, 40)), Numbers(log, ["half"]), cache)
    check(result.path, numbers(0, 40), SPECS)


def test_a_new_field_and_rows_that_are_stale_missing_and_gone_at_once(cache, log):
    embstore.embed(Source(numbers(0, 10)), Numbers(log), cache)
    encoded(log)
    contents = {**numbers(1, 12), "f2:c2": 77}
    told = []
    result = embstore.embed(
        Source(contents),
        Numbers(log, SPECS),
        cache,
        vanished="delete",
        batch_size=4,
        progress=lambda *at: told.append(at),
    )
    assert counts(result) == (11, 8, 1 + 9 + 2, 1, 0, 1)
    assert result.reason == "field miss: no half, tokens yet; 8 stored, 2 missing, 1 stale"
    assert encoded(log) == [
        ("mean", 77),
        *[("half+tokens", number) for number in (1, 3, 4, 5, 6, 7, 8, 9, 77)],
        *[("mean+half+tokens", number) for number in (10, 11)],
    ]
    assert told[-1] == (12, 12)
    check(result.path, contents, SPECS)
    assert names_in(cache.path) == [result.path.name]


def test_columns_of_the_user_stay_and_are_not_asked_for(cache, log):
    def columns(sample):
        return {"n": int(sample.load())}

    embstore.embed(Source(numbers(0, 9)), Numbers(log), cache, columns=columns)
    result = embstore.embed(Source(numbers(0, 9)), Numbers(log, ["half"]), cache)  # no new row: none needed
    assert result.store.select(keys=list(numbers(0, 9))).column("n").tolist() == list(range(9))
    check(result.path, numbers(0, 9), ["mean", "half"])
    result = embstore.embed(Source(numbers(0, 12)), Numbers(log, ["tokens"]), cache, columns=columns)
    check(result.path, numbers(0, 12), SPECS)


def test_batches_stay_halved_after_a_new_field(cache, log):
    tried = []

    def fit(items):
        tried.append(len(items))
        if len(items) > 4:
            raise MemoryError

    embstore.embed(Source(numbers(0, 8)), Numbers(log), cache)
    embstore.embed(Source(numbers(0, 16)), Numbers(log, ["half"], during=fit), cache, batch_size=8)
    assert tried == [8, 4, 4, 4, 4]
    check(cache.entries()[0].path, numbers(0, 16), ["mean", "half"])


def test_an_encoder_that_leaves_with_fields_as_it_is(cache, log):
    class Plain(BaseEncoder):
        def __init__(self, *names):
            self.fields_given = names

        @property
        def config(self):
            return {"encoder": "numbers"}

        @property
        def fields(self):
            return {name: SPECS[name] for name in self.fields_given}

        def encode(self, items):
            return {name: np.stack([row_of(name, item) for item in items]) for name in self.fields_given}

    embstore.embed(Source(numbers(0, 9)), Plain("mean"), cache)
    result = embstore.embed(Source(numbers(0, 12)), Plain("mean", "half"), cache)
    check(result.path, numbers(0, 12), ["mean", "half"])


def test_a_new_field_of_an_encoder_that_has_no_other(cache, log):
    embstore.embed(Source(numbers(0, 9)), Numbers(log), cache)
    result = embstore.embed(Source(numbers(0, 9)), Numbers(log, ["half"], known=()), cache)
    check(result.path, numbers(0, 9), ["mean", "half"])


def test_a_new_field_in_a_cache_on_a_network(cache, log, monkeypatch):
    monkeypatch.setattr(filesystem, "on_network", lambda path: "nfs")
    allowed = embstore.Cache(cache.path, network="allow")
    embstore.embed(Source(numbers(0, 9)), Numbers(log), allowed)
    result = embstore.embed(Source(numbers(0, 9)), Numbers(log, ["half"]), allowed)
    check(result.path, numbers(0, 9), ["mean", "half"])


# -- stores without rows -----------------------------------------------------------------------


def test_a_new_field_of_a_store_without_rows(cache, log):
    embstore.embed(Source({}), Numbers(log), cache)
    result = embstore.embed(Source({}), Numbers(log, ["half", "tokens"]), cache)
    assert result.fields_added == ("half", "tokens")
    check(result.path, {}, SPECS)
    result = embstore.embed(Source(numbers(0, 9)), Numbers(log), cache)
    check(result.path, numbers(0, 9), SPECS)


@pytest.mark.parametrize("new", ["half", "tokens"])
def test_a_new_field_of_a_store_without_live_rows(cache, log, made, new):
    with embstore.open(made, "r+") as store:
        store.delete(list(LEFT))
    result = embstore.embed(Source(numbers(0, 30)), Numbers(log, ["mean", new]), cache)
    assert counts(result) == (30, 0, 30, 0, 0, 0)
    check(made, numbers(0, 30), ["mean", new])


# -- rows whose samples are gone ---------------------------------------------------------------


@pytest.mark.parametrize("more", [numbers(30, 40), {"f4:c1": 444}], ids=["missing", "stale"])
def test_rows_whose_samples_are_gone_keep_a_field_from_being_added(cache, log, made, more):
    before = bytes_of(made)
    contents = {key: n for key, n in LEFT.items() if n not in (1, 2)}
    with pytest.raises(errors.MissingKeysError) as caught:
        embstore.embed(Source({**contents, **more}), Numbers(log, ["half"]), cache)
    assert caught.value.keys == ("f1:c1", "f2:c2")
    assert "half can't be added" in str(caught.value)
    assert encoded(log) == []  # nothing is encoded, and nothing is left behind
    assert bytes_of(made) == before
    assert names_in(cache.path) == [made.name]
    check(made, LEFT)
    result = embstore.embed(Source(contents), Numbers(log, ["half"]), cache, vanished="delete")
    assert counts(result) == (16, 16, 16, 0, 0, 2)
    check(made, contents, ["mean", "half"])


# -- samples that fail -------------------------------------------------------------------------


class FailsAt(Numbers):
    """Some numbers can't be decoded, or become NaN in the field `half`."""

    bad = ()
    nan = ()

    def decode(self, content):
        item = super().decode(content)
        if item in self.bad:
            raise errors.DecodeError(f"{item} is bad")
        return item

    def _rows(self, name, items):
        rows = super()._rows(name, items)
        for place, item in enumerate(items):
            if item in self.nan and name == "half":
                rows[place][:] = np.nan
        return rows


def test_a_sample_that_fails_keeps_a_field_from_being_added_and_the_others_are_not_encoded_again(
    cache,
    log,
    made,
):
    before = bytes_of(made)
    encoder = FailsAt(log, ["mean", "half"])
    encoder.bad, encoder.nan = (5,), (11,)
    contents = {**LEFT, **numbers(20, 24)}
    result = embstore.embed(Source(contents), encoder, cache, batch_size=4)
    assert sorted((failure.key, failure.reason) for failure in result.failed) == [
        ("f11:c2", "the encoder gave NaN or infinity (half)"),
        ("f5:c2", "5 is bad"),
    ]
    assert counts(result) == (22, 18, 16 + 4, 0, 2, 0)
    assert (result.fields_added, result.ok) == ((), False)
    assert [n for names, n in encoded(log) if names == "half"] == [n for n in LEFT.values() if n != 5]
    check(made, contents)  # rows that are missing don't wait for the field
    assert {place: bytes_of(made)[place] for place in before if place.startswith("mean/")} != {}
    encoder.bad = ()
    result = embstore.embed(Source(contents), encoder, cache)
    assert [failure.key for failure in result.failed] == ["f11:c2"]
    assert sorted(encoded(log)) == [("half", n) for n in (5, 11, 20, 21, 22, 23)]
    result = embstore.embed(Source(contents), Numbers(log, ["mean", "half"]), cache)
    assert encoded(log) == [("half", 11)]
    assert counts(result) == (22, 22, 1, 0, 0, 0)
    assert result.fields_added == ("half",)
    check(made, contents, ["mean", "half"])
    assert names_in(cache.path) == [made.name]


def test_the_reason_of_a_failure_is_the_first_one(cache, log, made):
    result = embstore.embed(Source({**LEFT, "f5:c2": "five"}), Numbers(log, ["half"]), cache)
    assert [failure.reason for failure in result.failed] == ["'five' is no number"]


def test_a_file_that_changes_during_the_backfill(cache, log, root):
    files(root, numbers(0, 20))
    embstore.embed(Folder(root, name="x"), Numbers(log), cache)
    encoded(log)

    def change(items):
        if 0 in items:
            files(root, {"f17": 1700}, OLD + 1)

    encoder = Numbers(log, ["mean", "half"], during=change)
    result = embstore.embed(Folder(root, name="x"), encoder, cache, batch_size=2, workers=1)
    path = result.path
    assert [(failure.key, failure.where) for failure in result.failed] == [("f17", str(root / "f17.txt"))]
    assert result.failed[0].reason == "it changed during the run: the next one encodes it again"
    assert counts(result) == (20, 20, 19, 0, 1, 0)
    assert result.fields_added == ()
    check(path, unlabelled(numbers(0, 20)))
    encoded(log)
    result = embstore.embed(Folder(root, name="x"), encoder, cache)
    assert encoded(log) == [("mean", 1700), ("half", 1700)]
    assert counts(result) == (20, 19, 2, 1, 0, 0)
    check(path, unlabelled({**numbers(0, 20), "f17:c2": 1700}), ["mean", "half"])


def test_a_file_whose_content_changes_back(cache, log, root):
    """Rows that gathered of other content don't count."""
    files(root, numbers(0, 9))
    embstore.embed(Folder(root, name="x"), Numbers(log), cache)
    encoder = FailsAt(log, ["mean", "half"])
    encoder.bad = (8,)
    for content, mtime in ((33, OLD + 1), (3, OLD + 2), (34, OLD + 3)):
        files(root, {"f3": content}, mtime)
        encoded(log)
        embstore.embed(Folder(root, name="x"), encoder, cache)
        assert ("half", content) in encoded(log)
    encoder.bad = ()
    result = embstore.embed(Folder(root, name="x"), encoder, cache)
    assert encoded(log) == [("half", 8)]
    check(result.path, unlabelled({**numbers(0, 9), "f3:c0": 34}), ["mean", "half"])


def test_stored_files_that_cannot_be_read(cache, log, root):
    files(root, numbers(0, 9))
    embstore.embed(Folder(root, name="x"), Numbers(log), cache)
    (root / "f3.txt").unlink()
    (root / "f3.txt").symlink_to(root / "nowhere")
    result = embstore.embed(Folder(root, name="x"), Numbers(log, ["half"]), cache)
    assert [failure.reason for failure in result.failed] == ["No such file or directory"]
    assert counts(result) == (9, 8, 8, 0, 1, 0)
    check(result.path, unlabelled(numbers(0, 9)))
    (root / "f3.txt").unlink()
    files(root, {"f3": 3})
    encoded(log)
    result = embstore.embed(Folder(root, name="x"), Numbers(log, ["half"]), cache)
    assert encoded(log) == [("half", 3)]
    check(result.path, unlabelled(numbers(0, 9)), ["mean", "half"])


# -- kills -------------------------------------------------------------------------------------


def test_killed_at_random_moments(cache, log, rng):
    contents, pace, batch, interval, kills = numbers(0, 800), 0.01, 4, 0.05, 8
    path = embstore.embed(Source(contents), Numbers(log), cache, batch_size=100).path
    encoded(log)

    def work():
        encoder = Numbers(log, SPECS, during=lambda items: time.sleep(pace))
        embstore.embed(Source(contents), encoder, cache, batch_size=batch, interval=interval)

    for _ in range(kills):
        child, enough = start(work), lines_in(log) + batch * rng.integers(1, 15)
        until(lambda enough=enough: lines_in(log) >= enough)
        time.sleep(rng.uniform(0, pace))
        os.kill(child, signal.SIGKILL)
        assert end(child) == -signal.SIGKILL
        check(path, contents, mended=False)  # the field is there whole or not at all
    assert end(start(work)) == 0
    made = encoded(log)
    assert {names for names, _ in made} == {"half+tokens"}
    assert 0 <= len(made) - len(contents) <= kills * batch * (int(interval / pace) + 2)
    check(path, contents, SPECS)
    assert names_in(cache.path) == [path.name]
    assert [name for name in leftovers(path) if not name.endswith(".lock")] == []


def test_killed_at_random_steps_on_the_disk(log, tmp_path, rng):
    """Wherever that is, the field is there whole or not at all, and no more than the batch at hand is lost."""
    contents, taken = numbers(0, 12), tmp_path / "steps"
    path = embstore.embed(Source(contents), Numbers(log), tmp_path / "made").path

    def work(folder):
        embstore.embed(Source(contents), Numbers(log, SPECS), folder, batch_size=4, interval=0)

    def counted():
        steps.step_hook = lambda *step: note(taken, ".")
        work(tmp_path / "counted")

    shutil.copytree(tmp_path / "made", tmp_path / "counted")
    assert run_in_child(counted) == 0
    for step in rng.choice(noted(taken), size=16, replace=False).tolist():
        folder = shutil.copytree(tmp_path / "made", tmp_path / f"killed at {step}")
        encoded(log)
        assert run_in_child(lambda step=step, folder=folder: (kill_at(step), work(folder))) == -signal.SIGKILL
        with embstore.open(folder / path.name, check="all") as store:
            found = list(store.fields)
        assert found in (["mean"], list(SPECS))
        check(folder / path.name, contents, found, mended=False)
        work(folder)
        assert len(encoded(log)) <= 12 + 4
        check(folder / path.name, contents, SPECS, mended=found == ["mean"])
        if found == ["mean"]:
            assert names_in(folder) == [path.name]


def test_killed_between_the_commit_and_the_tidying_up(cache, log):
    path = embstore.embed(Source(numbers(0, 12)), Numbers(log), cache).path

    def die(operation, place, data):
        if operation == "rmtree" and place.endswith(".backfill"):
            os.kill(os.getpid(), signal.SIGKILL)

    def work():
        steps.step_hook = die
        embstore.embed(Source(numbers(0, 12)), Numbers(log, SPECS), cache)

    assert run_in_child(work) == -signal.SIGKILL
    check(path, numbers(0, 12), SPECS, mended=False)
    embstore.embed(Source(numbers(0, 14)), Numbers(log, SPECS), cache)
    assert names_in(cache.path) == [path.name]


def test_killed_in_the_middle_of_tidying_up(cache, log):
    path = embstore.embed(Source(numbers(0, 12)), Numbers(log), cache).path

    def half(place, **options):
        if not str(place).endswith(".backfill"):
            return remove(place, **options)
        for inside in (path.parent / place).iterdir():
            if inside.is_dir():
                remove(inside)
        os.kill(os.getpid(), signal.SIGKILL)

    def work():
        shutil.rmtree = half
        embstore.embed(Source(numbers(0, 12)), Numbers(log, SPECS), cache)

    remove = shutil.rmtree
    assert run_in_child(work) == -signal.SIGKILL
    check(path, numbers(0, 12), SPECS, mended=False)
    embstore.embed(Source(numbers(0, 14)), Numbers(log, SPECS), cache)
    check(path, numbers(0, 14), SPECS)
    assert names_in(cache.path) == [path.name]


# -- beside others -----------------------------------------------------------------------------


def once(work):
    """Return a function that does `work` when it is first called."""
    done = []

    def during(items):
        if not done:
            done.append(True)
            work()

    return during


def stored_columns(contents):
    digests = [embstore.digest_of(str(content)) for content in contents.values()]
    return {**UNKNOWN_SOURCE, "source_digest": digests}


def put(path, contents, **options):
    """Add rows of the field `mean`, as another process does that knows of no other."""
    with embstore.open(path, "r+") as store:
        rows = np.stack([row_of("mean", content) for content in contents.values()])
        store.append(list(contents), {"mean": rows}, columns=stored_columns(contents), **options)


def test_rows_that_another_process_adds_meanwhile(cache, log, made):
    more = numbers(30, 36)
    encoder = Numbers(log, ["mean", "half"], during=once(lambda: put(made, more)))
    result = embstore.embed(Source({**LEFT, **more}), encoder, cache, batch_size=4)
    assert encoded(log) == [("half", n) for n in (*LEFT.values(), *more.values())]
    assert counts(result) == (24, 18, 24, 0, 0, 0)
    check(made, {**LEFT, **more}, ["mean", "half"])
    assert names_in(cache.path) == [made.name]


def test_rows_that_another_process_adds_when_all_had_gathered(cache, log, made, monkeypatch):
    more, copied = numbers(30, 36), backfilling._copy_over
    add = once(lambda: put(made, more))

    def beaten(*args):
        add(None)
        return copied(*args)

    monkeypatch.setattr(backfilling, "_copy_over", beaten)
    embstore.embed(Source({**LEFT, **more}), Numbers(log, ["mean", "half"]), cache, batch_size=4)
    assert encoded(log) == [("half", n) for n in (*LEFT.values(), *more.values())]
    check(made, {**LEFT, **more}, ["mean", "half"])


def test_rows_of_other_samples_that_another_process_adds_meanwhile(cache, log, made):
    """There is nothing to encode for them; what gathered is kept for a run that has these samples."""
    more = numbers(30, 36)
    encoder = Numbers(log, ["mean", "half"], during=once(lambda: put(made, more)))
    with pytest.raises(errors.MissingKeysError) as caught:
        embstore.embed(Source(LEFT), encoder, cache, batch_size=4)
    assert set(caught.value.keys) == set(more)
    encoded(log)
    check(made, {**LEFT, **more})
    embstore.embed(Source({**LEFT, **more}), encoder, cache)
    assert encoded(log) == [("half", n) for n in more.values()]
    check(made, {**LEFT, **more}, ["mean", "half"])


@pytest.mark.parametrize("at", ["first batch", "all had gathered"])
def test_rows_that_another_process_renews_meanwhile(cache, log, root, at, monkeypatch):
    files(root, numbers(0, 20))
    path = embstore.embed(Folder(root, name="x"), Numbers(log), cache).path
    encoded(log)

    def renew():
        files(root, {"f1": 100, "f18": 1800}, OLD + 1)
        embstore.embed(Folder(root, name="x"), Numbers(log), cache)

    renewed, copied = once(renew), backfilling._copy_over
    if at == "all had gathered":
        monkeypatch.setattr(backfilling, "_copy_over", lambda *args: renewed(None) or copied(*args))
    during = renewed if at == "first batch" else lambda items: None
    encoder = Numbers(log, ["mean", "half"], during=during)
    embstore.embed(Folder(root, name="x"), encoder, cache, batch_size=2, workers=1)
    while len(embstore.open(path).fields) == 1:  # a file that is read too soon is a failure
        embstore.embed(Folder(root, name="x"), encoder, cache)
    made = encoded(log)
    assert [n for names, n in made if names == "mean"] == [100, 1800]
    halves = [n for names, n in made if names == "half"]
    assert len(halves) <= 22
    assert {100, 1800} <= set(halves)
    check(path, unlabelled({**numbers(0, 20), "f1:c1": 100, "f18:c0": 1800}), ["mean", "half"])


@pytest.mark.parametrize("change", ["delete", "compact", "erase"])
def test_rows_that_another_process_removes_meanwhile(cache, log, made, change):
    def remove():
        with embstore.open(made, "r+") as store:
            if change == "compact":
                store.compact()
            else:
                getattr(store, change)(["f4:c1", "f9:c0"])

    left = LEFT if change == "compact" else {key: n for key, n in LEFT.items() if n not in (4, 9)}
    encoder = Numbers(log, ["mean", "half", "tokens"], during=once(remove))
    embstore.embed(Source(LEFT), encoder, cache, batch_size=4)
    check(made, left, SPECS)
    result = embstore.embed(Source(LEFT), encoder, cache, batch_size=4)
    assert result.encoded == len(LEFT) - len(left)
    check(made, LEFT, SPECS)


def test_a_field_that_another_process_adds_while_rows_are_encoded(cache, log, made):
    add = once(lambda: embstore.embed(Source(LEFT), Numbers(log, ["half"]), cache))
    source = Source({**LEFT, **numbers(30, 50)})
    embstore.embed(source, Numbers(log, during=add), cache, batch_size=4)
    check(made, source.contents, ["mean", "half"])


def test_another_process_that_was_at_the_same_field_is_done_first(cache, log, made, monkeypatch):
    copied = backfilling._copy_over
    other = once(lambda: embstore.embed(Source(LEFT), Numbers(log, ["half"]), cache))
    monkeypatch.setattr(backfilling, "_copy_over", lambda *args: other(None) or copied(*args))
    result = embstore.embed(Source(LEFT), Numbers(log, ["half"]), cache, batch_size=4)
    assert result.ok
    assert len(encoded(log)) == len(LEFT)
    check(made, LEFT, ["mean", "half"])
    assert names_in(cache.path) == [made.name]


def test_a_field_that_another_process_adds_after_the_look(cache, log, made, monkeypatch):
    writable = pipeline._writable
    other = once(lambda: embstore.embed(Source(LEFT), Numbers(log, ["half"]), cache))
    monkeypatch.setattr(pipeline, "_writable", lambda *args: other(None) or writable(*args))
    embstore.embed(Source(LEFT), Numbers(log, ["half"]), cache)
    assert len(encoded(log)) == len(LEFT)
    check(made, LEFT, ["mean", "half"])
    assert names_in(cache.path) == [made.name]


def test_files_that_are_touched_meanwhile_make_no_difference(cache, log, root):
    files(root, numbers(0, 20))
    embstore.embed(Folder(root, name="x"), Numbers(log), cache)
    encoded(log)
    encoder = Numbers(log, ["half"], during=once(lambda: [touch(file, OLD + 7) for file in root.iterdir()]))
    for _ in range(2):  # one that is touched just as it is read is a failure, which the next run mends
        result = embstore.embed(Folder(root, name="x"), encoder, cache, batch_size=2)
    assert result.ok
    assert len(encoded(log)) == 20
    check(result.path, unlabelled(numbers(0, 20)), ["mean", "half"])
