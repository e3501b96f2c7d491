"""Clients in processes of their own, which extract their parts into one store."""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest

import embstore
from embstore_fl.datasets import VEGAS, Selection
from embstore_fl.errors import ForeignKeysError
from tests.fl.conftest import SHAPE, Counting, row_of

torch = pytest.importorskip("torch")

from embstore_fl.datasets import FLDataset  # noqa: E402

BATCH = 4
FORK = multiprocessing.get_context("fork")


class Slow(Counting):
    """Takes its time, so that clients meet."""

    def encode(self, items):
        time.sleep(0.02)
        return super().encode(items)


def extract(root, cache, log, selection, result=None):
    """Do what a client does: encode its own part, then read it."""
    source = VEGAS(root)
    embstore.embed(source.select(**selection), Slow(log), cache, batch_size=BATCH, interval=0.05, workers=1)
    dataset = FLDataset(source, Selection.of(**selection), client=selection.get("node_split_id"))
    missing = dataset.use(embstore.Cache(cache).path_of({**Counting(log).config, "dataset": "VEGAS"}))
    if result is not None:
        result.put((missing, len(dataset), sorted(dataset.audio_embs)))


def run(*clients):
    """Run clients at once; return what they found."""
    result = FORK.Queue()
    children = [FORK.Process(target=extract, args=(*client, result)) for client in clients]
    for child in children:
        child.start()
    found = [result.get(timeout=120) for _ in children]
    for child in children:
        child.join(30)
        assert child.exitcode == 0
    return found


def check(root, path, keys):
    with embstore.open(path, check="all") as store:
        assert sorted(store) == sorted(keys)
        for key in keys:
            file_id, _, name = key.partition(":")
            np.testing.assert_array_equal(store[key], row_of((root / name / "audios" / f"{file_id}.wav").read_bytes()))
    assert embstore.verify(path).ok


def path_of(cache, log):
    return embstore.Cache(cache).path_of({**Counting(log).config, "dataset": "VEGAS"})


def test_the_union_is_complete_and_nothing_is_extracted_twice(vegas, cache, log, encoded):
    nodes = [{"num_nodes": 4, "node_split_id": node} for node in range(4)]
    found = run(*[(vegas, cache, log, node) for node in nodes])
    whole = VEGAS(vegas).select().keys
    check(vegas, path_of(cache, log), whole)
    assert encoded() == 50
    assert all(missing == [] for missing, _, _ in found)
    own = [{*keys} for _, _, keys in found]
    assert sum(map(len, own)) == 50 == len(set().union(*own))


def test_clients_with_overlapping_classes_extract_each_clip_once(vegas, cache, log, encoded):
    lists = [["dog"], ["dog", "drum"], ["drum", "snoring"], ["snoring", "dog"]]
    found = run(*[(vegas, cache, log, {"selected_classes": classes}) for classes in lists])
    check(vegas, path_of(cache, log), VEGAS(vegas).select().keys)
    assert encoded() <= 50 + BATCH * len(lists)
    for missing, count, keys in found:
        assert missing == []
        assert len(keys) == count


def test_a_client_that_is_killed_loses_no_more_than_what_it_was_at(vegas, cache, log, encoded):
    part = {"selected_classes": ["dog", "drum"]}
    child = FORK.Process(target=extract, args=(vegas, cache, log, part))
    child.start()
    deadline = time.monotonic() + 60
    while not encoded() and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.1)
    os.kill(child.pid, signal.SIGKILL)
    child.join(30)
    run((vegas, cache, log, part), (vegas, cache, log, {"selected_classes": ["drum"]}))
    check(vegas, path_of(cache, log), VEGAS(vegas).select(**part).keys)


def test_a_view_of_its_own_shows_a_client_no_other_keys(vegas, cache, log):
    extract(vegas, cache, log, {})
    source = VEGAS(vegas)
    one, other = (FLDataset(source, Selection.of(num_nodes=2, node_split_id=node), client=node) for node in (0, 1))
    store = embstore.open(path_of(cache, log))
    view = store.select(keys=one.keys)
    assert view.keys == one.keys
    assert view.to_numpy().shape == (25, *SHAPE)
    one.use(store)
    assert sorted(one.audio_embs) == sorted(one.keys)
    for key in other.keys:
        assert key not in one.audio_embs
        with pytest.raises(ForeignKeysError):
            one.audio_embs[key]
