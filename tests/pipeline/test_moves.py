"""Rows that move to another key, content that is encoded once, and the origin of rows."""

import contextlib

import numpy as np
import pytest

import embstore
from embstore import errors
from embstore._engine.io.stamps import UNKNOWN
from embstore.pipeline import same_content
from embstore.sources import FileSample, Folder, Items, Sample, Table
from embstore.sources.base import Content, stored_digest
from tests._helpers.crash import kill_at, run_in_child, run_together
from tests.pipeline.test_embed import Numbers, check, encoded


def test_a_label_that_changes_moves_no_sample_to_another_shard(cache, log):
    def shards(label):
        source = Items({f"f{i}:{label}": i for i in range(40)}, name=label)
        results = [embstore.embed(source, Numbers(log), cache, shard=(i, 3)) for i in range(3)]
        return [{key.rpartition(":")[0] for key in result.keys} for result in results]

    assert shards("dog") == shards("cat")
    assert all(shards("bird"))


# -- kinds of digests ---------------------------------------------------------------------------


class Half(FileSample):
    """A part of a file, which gives the digest of the whole one as its version."""

    def read(self):
        content = super().read()
        return content._replace(value=content.value[:1])


class Delegating:
    """A sample of a user, which takes the digest of a file for its own."""

    key, where = "a:_", "here"

    def __init__(self, sample):
        self.sample, self.stamp = sample, sample.stamp

    def read(self):
        return self.sample.read()


def test_the_kind_of_a_digest(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    place = ("a:_", tmp_path / "a", UNKNOWN)
    file = FileSample(*place)
    text, content, array, given = Items([("a:_", "1"), ("b:_", b"1"), ("c:_", np.ones(2)), ("d:_", 1, "v1")], name="x")
    samples = [text, content, array, file, given, Half(*place)]
    samples += [Sample("a:_", lambda: "1", embstore.digest_of("1")), Delegating(file)]
    found = [stored_digest(sample, sample.read()).partition(":")[0] for sample in samples]
    assert found == ["text", "bytes", "value", "bytes", "given", "given", "given", "given"]
    assert stored_digest(given, Content(1, "text:v1")) == "given:text:v1"


@pytest.mark.parametrize("content", ["7", b"7"])
def test_the_content_of_one_key_is_compared_without_the_kind(cache, log, content):
    key = "a:_"
    embstore.embed(Items({key: "7"}, name="x"), Numbers(log), cache)
    assert embstore.embed(Items({key: content}, name="x"), Numbers(log), cache).hits == 1
    config = {**Numbers(log).config, "dataset": "x"}
    assert cache.lookup(config, keys=[key], digests={key: embstore.digest_of(content)}).hit
    assert not cache.lookup(config, keys=[key], digests={key: embstore.digest_of("8")}).hit


# -- rows that move -----------------------------------------------------------------------------


class Pure(Numbers):
    """Its rows depend on the content alone. It takes texts and files, whose digests embstore computes."""

    pure = True


def texts(contents, name="x", *, whole=True):
    source = Items({key: str(content) for key, content in contents.items()}, name=name)
    source.whole = whole
    return source


def table(rows):
    return Table(rows, name="x", text="says", file_id="id", class_name="label")


def run(contents, log, cache, encoder=Pure, **options):
    source = contents if hasattr(contents, "name") else texts(contents)
    return embstore.embed(source, encoder(log), cache, **options)


def told(result):
    return result.relabelled, result.copied, result.encoded, sorted(result.vanished)


def numbers_of(path):
    """Return the number that each stored row was made from."""
    with embstore.open(path) as store:
        return dict(zip(store, store.select().to_numpy()[:, 0].astype(int).tolist(), strict=True))


BEFORE = {"a:dog": 1, "b:dog": 2, "c:cat": 3}


@pytest.mark.parametrize(
    ("after", "moved", "copied", "gone"),
    [
        ({"a:cat": 1, "b:dog": 2, "c:cat": 3}, {"a:dog": "a:cat"}, 0, []),
        # The one candidate, though of another file_id.
        ({"d:dog": 1, "b:dog": 2, "c:cat": 3}, {"a:dog": "d:dog"}, 0, []),
        ({"a:cat": 1, "b:cat": 2, "c:dog": 3}, {"a:dog": "a:cat", "b:dog": "b:cat", "c:cat": "c:dog"}, 0, []),
        ({**BEFORE, "a:cat": 1}, {}, 1, []),  # the old key is still in the source
        ({**BEFORE, "d:dog": 1, "e:dog": 1}, {}, 2, []),
        # One row for two samples: that of its file_id gets it, or the first one.
        ({"d:dog": 1, "a:cat": 1, "b:dog": 2, "c:cat": 3}, {"a:dog": "a:cat"}, 1, []),
        ({"d:dog": 1, "e:dog": 1, "b:dog": 2, "c:cat": 3}, {"a:dog": "d:dog"}, 1, []),
        # Another wanted sample has the file_id of the row, which may be meant for that one.
        ({"d:dog": 1, "a:cat": 7, "b:dog": 2, "c:cat": 3}, {}, 1, ["a:dog"]),
        ({"a:dog": 2, "b:dog": 1, "c:cat": 3}, {}, 2, []),  # contents were swapped: both rows are replaced
        ({"a:dog": 3, "b:dog": 2}, {"c:cat": "a:dog"}, 0, []),  # onto a key whose row is stale
    ],
)
def test_rows_move_or_are_copied(cache, log, after, moved, copied, gone):
    run(BEFORE, log, cache)
    encoded(log)
    result = run(after, log, cache)
    new = [number for number in after.values() if number > 3]
    assert told(result) == (moved, copied, len(new), gone)
    assert encoded(log) == [("mean", number) for number in new]
    assert numbers_of(result.path) == {**after, **{key: BEFORE[key] for key in gone}}
    assert result.view.keys == list(after)
    assert f"{len(moved)} relabelled, {copied} copied" in str(result)
    assert told(run(after, log, cache)) == ({}, 0, 0, gone)


def two_candidates(log, cache):
    run({"a:dog": 1, "b:dog": 1}, log, cache)
    return run({"c:dog": 1}, log, cache), 1


def two_candidates_of_its_file_id(log, cache):
    run({"a:dog": 1, "a:cat": 1}, log, cache)
    return run({"a:cow": 1}, log, cache), 1


def a_source_of_some_samples(log, cache):
    run({"a:dog": 1, "b:dog": 2}, log, cache)
    return run(texts({"a:cat": 1}, whole=False), log, cache), 1


def a_source_that_does_not_say(log, cache):
    class Some:
        name = "x"

        def __init__(self, contents):
            self.origin, self.samples = Items.origin, texts(contents)

        def __iter__(self):
            return iter(self.samples)

    run({"a:dog": 1, "b:dog": 2}, log, cache)
    return run(Some({"a:cat": 1}), log, cache), 1


def an_ignored_part(log, cache):
    run({"a:dog": 1, "b:dog": 2}, log, cache)
    return run({"a:cat": 1}, log, cache, vanished="ignore"), 1


def another_origin(log, cache):
    run({"a:dog": 1, "b:dog": 2}, log, cache)
    return run(table([{"id": "a", "says": "1", "label": "cat"}]), log, cache), 1


def another_kind(log, cache):
    run({"a:dog": 1, "b:dog": 2}, log, cache)
    return run(Items({"a:cat": b"1"}, name="x"), log, cache), 0


def given_digests(log, cache):
    run(Items([("a:dog", "1", "v1")], name="x"), log, cache)
    return run(Items([("a:cat", "1", "v1")], name="x"), log, cache), 0


def an_encoder_that_is_not_pure(log, cache):
    run({"a:dog": 1, "b:dog": 2}, log, cache, Numbers)
    return run({"a:cat": 1}, log, cache, Numbers), 0


def a_shard(log, cache):
    run({"a:dog": 1, "b:dog": 2}, log, cache)
    return run({"a:cat": 1}, log, cache, shard=(0, 1)), 0


@pytest.mark.parametrize(
    "case",
    [
        two_candidates,
        two_candidates_of_its_file_id,
        a_source_of_some_samples,
        a_source_that_does_not_say,
        an_ignored_part,
        another_origin,
        another_kind,
        given_digests,
        an_encoder_that_is_not_pure,
        a_shard,
    ],
)
def test_rows_that_do_not_move(cache, log, case):
    result, copied = case(log, cache)
    assert (result.relabelled, result.copied, result.encoded) == ({}, copied, 1 - copied)
    with embstore.open(cache.entries()[0].path) as store:
        assert "a:dog" in store
    assert result.ok


@pytest.mark.parametrize("vanished", ["report", "ignore", "delete"])
def test_a_source_of_some_samples_deletes_no_others(cache, log, vanished):
    run(BEFORE, log, cache)
    with pytest.raises(ValueError, match="some samples") if vanished == "delete" else contextlib.nullcontext():
        assert run(texts({"a:dog": 1}, whole=False), log, cache, vanished=vanished).vanished == ()
    assert numbers_of(run(BEFORE, log, cache).path) == BEFORE
    assert len(encoded(log)) == 3


def test_the_view_of_a_run_whose_rows_moved_since(cache, log):
    before = run(BEFORE, log, cache)
    run({"a:cat": 1, "b:dog": 2, "c:cat": 3}, log, cache)
    with pytest.raises(errors.MissingKeysError, match=r"stored as 'a:cat'; they were deleted or relabelled .*again"):
        _ = before.view


def test_equal_content_of_one_run_is_encoded_once(cache, log):
    contents = {f"f{i}:c": i % 7 for i in range(200)}
    result = run(contents, log, cache, batch_size=4)
    assert told(result) == ({}, 193, 7, [])
    assert len(encoded(log)) == 7
    assert numbers_of(result.path) == contents
    assert len(result.view) == 200


def test_all_fields_and_columns_travel(cache, log):
    """The bytes of each field are those of the old row. Columns that are not given stay those of a row that moves."""
    fields = ["mean", "half", "tokens"]
    columns = {"columns": lambda sample: {"length": len(str(sample.key))}}
    contents = {f"f{i}:c": i for i in range(20)}
    path = embstore.embed(texts(contents), Pure(log, fields), cache, **columns).path
    with embstore.open(path, "r+") as store:
        store.set_column("split", list(contents), [f"split {i}" for i in range(20)])
    encoded(log)
    after = {(f"f{i}:cat" if i % 3 == 0 else key): i for i, key in enumerate(contents)}
    result = embstore.embed(texts(after), Pure(log, fields), cache, **columns)
    assert (len(result.relabelled), encoded(log)) == (7, [])
    check(path, after, fields)
    with embstore.open(path) as store:
        view = store.select(keys=list(after))
        assert view.column("split").tolist() == [f"split {i}" for i in range(20)]
        assert view.column("length").tolist() == [len(key) for key in after]


def test_columns_of_rows_that_move_beside_copies(cache, log):
    """Rows that move keep their values, in the commit of rows that are copied too. Those have the fill."""
    path = run(BEFORE, log, cache).path
    with embstore.open(path, "r+") as store:
        store.set_columns({"split": ["one", "two", "three"], "age": [1, 2, 3]}, list(BEFORE), fill={"age": -1})
    result = run({"a:cat": 1, "b:dog": 2, "c:cat": 3, "d:cow": 3}, log, cache)
    assert (result.relabelled, result.copied) == ({"a:dog": "a:cat"}, 1)
    with result.store as store:
        view = store.select(keys=["a:cat", "b:dog", "c:cat", "d:cow"])
        assert view.column("split").tolist() == ["one", "two", "three", ""]
        assert view.column("age").tolist() == [1, 2, 3, -1]


def test_a_new_field_of_rows_that_move(cache, log):
    """The field that is stored is not encoded again. The new one needs a sample for each row, so rows move before."""
    run(BEFORE, log, cache)
    encoded(log)
    after = {"a:cat": 1, "b:dog": 2, "d:cow": 4}
    result = embstore.embed(texts(after), Pure(log, ["mean", "half"]), cache, vanished="delete")
    assert (result.relabelled, result.deleted, result.vanished) == ({"a:dog": "a:cat"}, 1, ("c:cat",))
    assert sorted(encoded(log)) == [("half", 1), ("half", 2), ("mean+half", 4)]
    check(result.path, after, ["mean", "half"])


def test_rows_are_deleted_after_those_that_move(cache, log):
    run({**BEFORE, "g:dog": 7}, log, cache)
    result = run({"a:cat": 1, "b:dog": 2}, log, cache, vanished="delete")
    assert (result.relabelled, result.vanished, result.deleted) == ({"a:dog": "a:cat"}, ("c:cat", "g:dog"), 2)
    assert numbers_of(result.path) == {"a:cat": 1, "b:dog": 2}


def append(store, key, number, **options):
    columns = dict.fromkeys(store.columns, 0) | {"source_digest": "text:x"}
    store.append([key], np.full((1, 4), number, np.float32), columns=columns, **options)


def replace_it(store):
    append(store, "a:dog", 0, if_exists="replace")


def delete_it(store):
    store.delete(["a:dog"])


def erase_it(store):
    store.erase(["a:dog"])


def compact_it(store):
    store.compact()


def give_it_to_another_origin(store):
    store.set_column("source_origins", list(store), [0] * len(store))


def add_the_new_key(store):
    append(store, "a:cat", 9)


@pytest.mark.parametrize(
    ("change", "keys", "encodes"),
    [
        (replace_it, {"a:dog": 0, "a:cat": 1}, True),
        (delete_it, {"a:cat": 1}, True),
        (erase_it, {"a:cat": 1}, True),
        (compact_it, {"a:cat": 1}, False),
        (give_it_to_another_origin, {"a:dog": 1, "a:cat": 1}, False),
        (add_the_new_key, {"a:dog": 1, "a:cat": 1}, True),
    ],
)
def test_rows_that_change_before_they_move(cache, log, monkeypatch, change, keys, encodes):
    """All is checked again under the lock. A row that can't be copied any more is encoded."""
    path = run(BEFORE, log, cache).path
    encoded(log)
    sources = same_content.SameContent.sources

    def changed(self, copies):
        monkeypatch.undo()
        found = sources(self, copies)
        with embstore.open(path, "r+") as store:
            change(store)
        return found

    monkeypatch.setattr(same_content.SameContent, "sources", changed)
    result = run({"a:cat": 1, "b:dog": 2, "c:cat": 3}, log, cache)
    assert numbers_of(result.path) == {"b:dog": 2, "c:cat": 3, **keys}
    assert (encoded(log) == [("mean", 1)]) is encodes
    assert embstore.verify(path).ok


def test_damage_is_not_copied_under_a_new_checksum(cache, log):
    path = run(BEFORE, log, cache).path
    chunk = next(path.glob("mean/c.*"))
    data = bytearray(chunk.read_bytes())
    data[3] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(errors.CorruptStoreError):
        run({"a:cat": 1, "b:dog": 2, "c:cat": 3}, log, cache)


# -- whole jobs -----------------------------------------------------------------------------------


def test_the_second_day_of_a_table(cache, log):
    """Of 1,000 texts, 20 are edited, 3 get another label and 10 go, and 500 are new: 520 are encoded."""
    first = [{"id": i, "says": str(i), "label": "cat"} for i in range(1000)]
    second = [dict(row) for row in first[10:]] + [{"id": i, "says": str(i), "label": "dog"} for i in range(1000, 1500)]
    for row in second[:20]:
        row["says"] = str(5000 + row["id"])
    for row in second[50:53]:
        row["label"] = "dog"
    for rows in (first, second):
        encoded(log)
        result = embstore.embed(table(rows), Pure(log), cache, batch_size=256)
    assert len(encoded(log)) == result.encoded == 520
    assert (len(result.relabelled), len(result.vanished)) == (3, 10)
    assert result.view.file_ids == [str(row["id"]) for row in second]
    assert result.view.class_names == [row["label"] for row in second]
    assert result.view.to_numpy()[:, 0].tolist() == [float(row["says"]) for row in second]


def put(root, contents):
    for place, number in contents.items():
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_text(str(number))


def test_three_files_of_a_folder_move_between_classes(cache, log, tmp_path):
    put(
        tmp_path / "data",
        {f"{label}/{i}.txt": i + 100 * (label == "dog") for label in ("cat", "dog") for i in range(10)},
    )
    source = Folder(tmp_path / "data", name="x")
    embstore.embed(source, Pure(log), cache)
    encoded(log)
    for i in (2, 5, 7):
        (tmp_path / f"data/cat/{i}.txt").rename(tmp_path / f"data/dog/1{i}.txt")
    result = embstore.embed(source, Pure(log), cache)
    assert result.relabelled == {f"cat/{i}:cat": f"dog/1{i}:dog" for i in (2, 5, 7)}
    assert (result.vanished, encoded(log), result.rows) == ((), [], 20)
    assert {numbers_of(result.path)[f"dog/1{i}:dog"] for i in (2, 5, 7)} == {2, 5, 7}


def two_folders(tmp_path):
    for node, label in (("one", "cat"), ("two", "dog")):
        put(tmp_path / node, {f"{label}/clip.txt": 1, "cow/both.txt": 2, f"{label}/own {node}.txt": ord(node[0])})
    return [lambda node=node: Folder(tmp_path / node, name="x") for node in ("one", "two")]


def two_selections(tmp_path):
    put(tmp_path / "all", {"clip.txt": 1, "both.txt": 2, "own one.txt": 3, "own two.txt": 4})

    def node(label, own):
        rows = [{"file": f"{name}.txt", "label": label if name == "clip" else "cow"} for name in ("clip", "both", own)]
        table = Table(rows, name="x", path="file", class_name="label", root=tmp_path / "all")
        table.whole = False
        return table

    return [lambda: node("cat", "own one"), lambda: node("dog", "own two")]


def two_tables(tmp_path):
    def node(label):
        return texts({f"clip:{label}": 1, "both:cow": 2, f"own {label}:cow": ord(label[0])})

    return [lambda: node("cat"), lambda: node("dog")]


@pytest.mark.parametrize(("make", "kept"), [(two_folders, True), (two_selections, True), (two_tables, False)])
def test_two_nodes_list_one_clip_under_two_classes(cache, log, tmp_path, make, kept):
    """Two whole sources without a root are one to the cache: the row goes back and forth, and nothing is encoded."""
    nodes = make(tmp_path)
    for node in nodes:
        embstore.embed(node(), Pure(log), cache)
    assert len(encoded(log)) == 4
    for _ in range(10):
        for node in nodes:
            result = embstore.embed(node(), Pure(log), cache)
            assert encoded(log) == []
            assert len(result.view) == 3
            assert 1.0 in result.view.to_numpy()[:, 0]
            assert (result.rows == 5) is kept


# -- kills and runs at once ----------------------------------------------------------------------


OLD_LISTING = {f"f{i}:cat": i for i in range(6)}
NEW_LISTING = {f"f{i}:{'dog' if i < 4 else 'cat'}": i for i in range(6)}


def test_a_kill_in_the_middle_of_a_move(tmp_path, log):
    """At each step on the disk: the keys of before or those of after, and the next run encodes nothing."""
    seen, step = set(), 0
    while True:
        cache = embstore.Cache(tmp_path / f"cache {step}")
        path = run(OLD_LISTING, log, cache).path
        encoded(log)

        def killed(at=step, cache=cache):
            kill_at(at)
            run(NEW_LISTING, log, cache)

        ended = run_in_child(killed)
        found = numbers_of(path)
        seen.add(frozenset(found))
        assert found in (OLD_LISTING, NEW_LISTING)
        assert numbers_of(run(NEW_LISTING, log, cache).path) == NEW_LISTING
        assert encoded(log) == []
        if not ended:
            break
        step += 1
    assert seen == {frozenset(OLD_LISTING), frozenset(NEW_LISTING)}
    assert step > 10


def test_an_old_and_a_new_listing_at_once(cache, log):
    path = run(OLD_LISTING, log, cache).path
    encoded(log)
    for _ in range(5):
        ended = run_together(*[lambda source=source: run(source, log, cache) for source in (OLD_LISTING, NEW_LISTING)])
        assert ended == [0, 0]
        found = numbers_of(path)
        assert {key.partition(":")[0]: number for key, number in found.items()} == {f"f{i}": i for i in range(6)}
        assert found.keys() <= {*OLD_LISTING, *NEW_LISTING}
    assert encoded(log) == []
    assert numbers_of(run(NEW_LISTING, log, cache).path) == NEW_LISTING
