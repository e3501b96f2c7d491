"""Stores in buckets: work that ends at any request, answers that are lost, and many writers at once."""

import os
import threading
from datetime import timedelta

import numpy as np
import pytest

import embstore
from embstore._engine.write.fold_parts import tidy
from embstore.errors import (
    CommitUncertainError,
    KeysExistError,
    MissingKeysError,
    ReadOnlyError,
    RemoteError,
    StoreChangedError,
)
from embstore.store.embedding_store import session_of
from tests._helpers.buckets import CONFLICT, DROPPED, LATE, LOST, REFUSED, EndedError
from tests._helpers.crash import run_in_child

pytest.importorskip("obstore")
CONFIG = {"encoder": "test"}


def opened(bucket, **options):
    return embstore.open(bucket.url, "a", config=CONFIG, **options)


def rows_of(numbers):
    return np.array([np.full(4, i, np.float32) for i in numbers]).reshape(-1, 4)


def key(i):
    return f"f{i}:c{i % 3}"


def put(store, numbers, add=0, **options):
    """Append a row for each number, which holds the number plus `add`."""
    held = [i + add for i in numbers]
    return store.append([key(i) for i in numbers], rows_of(held), columns={"n": held}, **options)


def content(bucket):
    """Return the number in the row of each key, after a check that its other values say the same."""
    store = embstore.open(bucket.url)
    view = store.select()
    rows, numbers = view.to_numpy(), view.column("n").tolist()
    assert len(view.keys) == len(set(view.keys)) == len(store)
    assert (rows == rows_of(numbers)).all()
    return dict(zip(view.keys, numbers, strict=True))


def append(store):
    put(store, range(20, 26))


def replace(store):
    put(store, [1, 15], add=100, if_exists="replace")


def delete(store):
    store.delete([key(2), key(12)])


def erase(store):
    store.erase([key(i) for i in (3, 13)])


def compact(store):
    store.compact()


def tidy_all(store):
    tidy(session_of(store), timedelta(0))


CHANGES = [append, replace, delete, erase, compact, tidy_all]


@pytest.fixture(params=["zips", "folders"])
def parts(request, monkeypatch):
    if request.param == "folders":
        monkeypatch.setattr("embstore._engine.write.build_part.MOST_ZIPPED", 16)


@pytest.mark.parametrize("change", CHANGES)
def test_work_that_ends_at_any_request_leaves_the_commit_before_or_after(bucket, parts, change):
    """And the same change, repeated, ends right."""
    store = opened(bucket)
    for start in (0, 10, 15):
        put(store, range(start, start + 5))
    put(store, range(5, 10))
    store.delete([key(4)])
    before, objects = content(bucket), bucket.state()
    bucket.requests.reset()
    change(opened(bucket))
    count, after = bucket.requests.changes, content(bucket)
    assert count
    # The objects of one folder are alike. The last requests are the commit and what follows.
    every = 1 if os.environ.get("EMBSTORE_SLOW") else 1 + count // 8
    for number in {*range(0, count, every), count - 2, count - 1} - {-1}:
        for forwarded in (False, True):
            bucket.restore(objects)
            store = opened(bucket)
            bucket.requests.end_at(number, after=forwarded)
            with pytest.raises(EndedError):
                change(store)
            bucket.requests.reset()
            found = content(bucket)
            assert found in (before, after), (number, forwarded)
            if found != after or change in (compact, tidy_all):
                change(opened(bucket))
            assert content(bucket) == after
            assert list(embstore.open(bucket.url)) == list(after)
            if change is tidy_all:
                listing = session_of(opened(bucket)).snapshot.listing
                assert not listing.retired
                roots = {"/".join(name.split("/")[:2]) for name in bucket.names()} - {"zarr.json"}
                assert roots == listing.objects


# -- answers that are lost -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_rows_are_there_once_though_a_tenth_of_all_answers_is_lost(bucket, seed):
    stores = [opened(bucket), opened(bucket)]
    expected = {}
    bucket.requests.lose(0.1, seed)
    for i in range(0, 60, 3):
        store = stores[i % 2]
        assert put(store, range(i, i + 3)).appended == 3
        expected |= {key(j): j for j in range(i, i + 3)}
        if i % 12 == 9:
            assert put(store, [i, i + 1], add=100, if_exists="replace").replaced == 2
            expected |= {key(i): i + 100, key(i + 1): i + 101}
            with pytest.raises(KeysExistError):
                put(stores[1 - i % 2], [i])
            stores[1 - i % 2].delete([key(i)])
            del expected[key(i)]
            with pytest.raises(MissingKeysError):
                store.delete([key(i)])
            assert put(store, [i - 1, i], if_exists="skip").skipped == 1
            expected[key(i)] = i
        if i % 15 == 12:
            stores[1 - i % 2].compact()
        if i == 30:
            store.erase([key(25)])
            del expected[key(25)]
    bucket.requests.reset()
    assert content(bucket) == expected


def records(*faults):
    """Return a fault for the first replacements of the record."""
    left = list(faults)

    def fault(kind, name, change):
        return left.pop(0) if kind == "put" and name == "zarr.json" and left else None

    return fault


@pytest.mark.parametrize("faults", [[LOST], [LATE], [DROPPED, LATE, LOST], [CONFLICT] * 30, [LATE, CONFLICT, LOST]])
def test_a_commit_whose_answers_are_lost_counts_once(bucket, faults):
    store = opened(bucket)
    put(store, range(3))
    bucket.requests.reset(records(*faults))
    assert put(store, [2, 3, 4], add=10, if_exists="replace").replaced == 1
    store.delete([key(0)])
    assert content(bucket) == {key(1): 1, key(2): 12, key(3): 13, key(4): 14}


def test_a_commit_that_was_lost_is_found_though_its_part_was_folded_meanwhile(bucket, monkeypatch):
    monkeypatch.setattr("embstore._engine.write.parts_session.RECENT", 1)
    store, other = opened(bucket), opened(bucket)
    put(store, range(3))
    answers = records(LOST)

    def fault(kind, name, change):
        if found := answers(kind, name, change):
            return found
        if kind == "read" and name == "zarr.json" and bucket.requests.names("put") and not folded:
            folded.append(True)
            other.compact()
        return None

    folded = []
    bucket.requests.reset(fault)
    assert put(store, [3, 4]).appended == 2
    assert folded
    assert content(bucket) == {key(i): i for i in range(5)}


@pytest.mark.parametrize("fault", [DROPPED, LOST, REFUSED])
def test_errors_say_whether_the_rows_may_be_there(bucket, fault):
    """The record can't be read either once its replacement failed."""
    store, replaced = opened(bucket), []

    def failing(kind, name, change):
        if kind == "put" and name == "zarr.json":
            replaced.append(name)
        return fault if replaced else None

    bucket.requests.reset(failing)
    with pytest.raises(RemoteError if fault == REFUSED else CommitUncertainError):
        put(store, range(3))
    bucket.requests.reset()
    assert list(embstore.open(bucket.url)) == ([key(i) for i in range(3)] if fault == LOST else [])


def test_a_refusal_after_an_answer_that_was_lost_is_no_proof(bucket):
    store = opened(bucket)
    bucket.requests.reset(records(DROPPED, REFUSED))
    with pytest.raises(CommitUncertainError):
        put(store, range(3))


@pytest.mark.parametrize("fault", [LOST, DROPPED, LATE, CONFLICT])
def test_new_objects_are_written_again_after_any_fault(bucket, fault):
    """A server says 409 to a create that met another request, though no object is there."""
    seen = set()

    def first(kind, name, change):
        new = kind == "put" and name not in seen
        seen.add(name)
        return fault if new else None

    bucket.requests.reset(first)
    store = opened(bucket)
    put(store, range(3))
    bucket.requests.reset()
    assert content(bucket) == {key(i): i for i in range(3)}


# -- others beside --------------------------------------------------------------------------------------


def once(action, kind, part):
    """Return a fault that does `action` before the first request of a kind for an object of this folder."""
    done = []

    def fault(found, name, change):
        if found == kind and name.startswith(part) and not done:
            done.append(True)
            action()

    return fault


@pytest.mark.parametrize("change", [append, replace, delete, erase, compact])
@pytest.mark.parametrize("beside", ["erase", "tidy"])
def test_a_change_plans_again_if_objects_are_deleted_while_it_reads_them(bucket, change, beside):
    put(opened(bucket), range(10))
    put(opened(bucket), range(10, 20))
    opened(bucket).delete([key(9)])
    store, other = opened(bucket), opened(bucket)

    def action():
        if beside == "erase":
            other.erase([key(0), key(10)])
        else:
            other.delete([key(0), key(10)])
            other.compact()
            tidy_all(other)

    bucket.requests.reset(once(action, "get", "parts/" if beside == "erase" else "dead/"))
    change(store)
    if change is append and beside == "tidy":  # it reads no list of deleted rows
        bucket.requests.reset()
        assert content(bucket).keys() >= {key(1), key(11)}
        return
    assert bucket.requests.names("delete")
    found = content(bucket)
    assert not found.keys() & {key(0), key(9), key(10)}
    assert found.keys() >= {key(i) for i in (1, 4, 11, 14)}


def hour_older(session, reader):
    """Have the objects of a reader's commit an hour old by the server's clock."""
    listed, old = session.bucket.listed, reader.snapshot.listing.objects

    def older(prefix):
        back = timedelta(hours=1)
        return [one._replace(modified=one.modified - back) if one.name in old else one for one in listed(prefix)]

    session.bucket.listed = older


@pytest.mark.parametrize("removed", [[1], [0, 1, 2], [0, 1, 2, "compact"], [1, "compact"]], ids=str)
def test_objects_that_were_replaced_just_now_stay_for_their_readers(bucket, removed):
    store = opened(bucket)
    put(store, range(4))
    store.delete([key(3)])
    reader = embstore.open(bucket.url)
    for one in removed:
        store.compact() if one == "compact" else store.delete([key(one)])
    session = session_of(store)
    hour_older(session, reader)
    assert tidy(session, timedelta(minutes=30)).objects == 0
    assert (reader.select().to_numpy() == rows_of(range(3))).all()
    assert tidy(session, timedelta(0)).objects > 0
    assert list(embstore.open(bucket.url)) == [key(i) for i in range(3) if i not in removed]
    assert not session.parts_snapshot.listing.retired


def test_a_part_that_was_retired_while_tidy_works_stays_for_its_readers(bucket):
    store, other = opened(bucket), opened(bucket)
    for i in range(3):
        put(store, [i])
    reader = embstore.open(bucket.url)
    bucket.requests.reset(once(other.compact, "list", "parts"))
    session = session_of(store)
    hour_older(session, reader)
    assert tidy(session, timedelta(minutes=30)).objects == 0
    assert (reader.select().to_numpy() == rows_of(range(3))).all()


def test_threads_change_one_store_object_and_their_own(bucket):
    """Writers, a deleter, a compactor, an eraser, a tidier and a reader: no row is lost, none comes back."""
    put(opened(bucket), range(1000, 1040))
    shared, errors, done = opened(bucket), [], threading.Event()
    acknowledged, removed = set(), set()

    def worker(work):
        def run():
            try:
                work()
            except BaseException as error:
                errors.append(error)
                done.set()

        return threading.Thread(target=run)

    def write(number):
        store = shared if number < 2 else opened(bucket)
        for i in range(number * 100, number * 100 + 12, 3):
            put(store, range(i, i + 3))
            acknowledged.update(range(i, i + 3))

    def remove(how, numbers):
        store = shared if how == "delete" else opened(bucket)
        for i in numbers:
            getattr(store, how)([key(i)])
            removed.add(i)

    def repeat(work):
        store = shared if work is compact else opened(bucket)
        while not done.is_set():
            work(store)
            done.wait(0.5)  # more often, and writers would wait for a turn most of the time

    def read():
        store = embstore.open(bucket.url)
        while not done.is_set():
            done.wait(0.05)
            gone = {key(i) for i in list(removed)}
            store.refresh()
            try:
                view = store.select()
                rows, numbers = view.to_numpy(), view.column("n").tolist()
            except StoreChangedError:
                continue
            assert (rows == rows_of(numbers)).all()
            assert not gone & set(view.keys)

    workers = [worker(lambda number=number: write(number)) for number in range(4)]
    workers += [worker(lambda: remove("delete", range(1000, 1005))), worker(lambda: remove("erase", range(1020, 1023)))]
    beside = [worker(lambda: repeat(compact)), worker(lambda: repeat(tidy_all)), worker(read)]
    for one in [*workers, *beside]:
        one.start()
    for one in workers:
        one.join()
    done.set()
    for one in beside:
        one.join()
    assert not errors
    assert content(bucket) == {key(i): i for i in (acknowledged | set(range(1000, 1040))) - removed}


# -- refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ignored", ["create", "replace"])
def test_a_server_that_ignores_conditions_is_refused(bucket, monkeypatch, ignored):
    from embstore._engine.io.object_store import Mark, ObjectStore

    put_object = ObjectStore.put

    def careless(self, name, data, *, old=None):
        if ignored == ("create" if old is None else "replace"):
            bucket.write(name, bytes(data))
            return Mark("1", None)
        return put_object(self, name, data, old=old)

    monkeypatch.setattr(ObjectStore, "put", careless)
    with pytest.raises(RemoteError, match="ignores"):
        opened(bucket)
    assert bucket.names() == []


def test_a_forked_process_is_refused_by_name(bucket):
    store = opened(bucket)

    def write():
        with pytest.raises(RemoteError, match="forked"):
            put(store, range(3))

    assert run_in_child(write) == 0


def test_a_copy_of_a_local_store_is_refused(bucket, path):
    with embstore.open(path, "a", config=CONFIG) as local:
        put(local, range(3))
    bucket.restore({str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()})
    with pytest.raises(ReadOnlyError, match="copy of a local store"):
        opened(bucket)
    assert list(embstore.open(bucket.url)) == [key(i) for i in range(3)]
