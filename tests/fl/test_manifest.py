"""Manifests and partitions: keys per client as a file, views of them, what is missing, what is held out."""

import contextlib
import json
import os
import pickle
import zlib

import numpy as np
import pytest

import embstore
from embstore import errors
from embstore._engine.io import steps
from embstore.encoders import FunctionEncoder
from embstore.sources import Items
from embstore_fl.errors import ForeignKeysError, OtherStoreManifestError, UnknownClientError
from embstore_fl.manifest import Manifest, Packed
from embstore_fl.partitions import Partitions, coverage, load_partition, save_partition
from embstore_fl.withdrawal import erase_client
from tests.conftest import CONFIG

SHARES = [0.5, 0.3, 0.2]


@pytest.fixture
def parts(store, rng):
    """Three clients' views, rows in no order."""
    order = rng.permutation(store.rows)
    ends = np.cumsum([int(share * len(order)) for share in SHARES])
    return {client: store.select(rows=rows) for client, rows in enumerate(np.split(order, ends[:-1]))}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "parts" / "manifest.json"


def keys_by_class(keys):
    found = {}
    for key in keys:
        found.setdefault(key.rpartition(":")[2], []).append(key)
    return found


# -- the file ---------------------------------------------------------------------------------


def test_a_partition_comes_back_as_it_was_saved(store, parts, file):
    save_partition(parts, file, scheme={"partitioner": "Dirichlet", "alpha": 0.5}, seed=7)
    again = load_partition(file, store)
    assert list(again) == [0, 1, 2]
    assert again.manifest.scheme == {"partitioner": "Dirichlet", "alpha": 0.5}
    assert again.manifest.seed == 7
    assert again.manifest.fingerprint == store.config.fingerprint
    assert again.classes == sorted(store.classes)
    for client, view in again.items():
        assert view.keys == parts[client].keys
        np.testing.assert_array_equal(view.to_numpy(), parts[client].to_numpy())


def test_a_sequence_of_views_is_numbered_from_zero(store, parts, file):
    save_partition(list(parts.values()), file, scheme="by hand")
    assert load_partition(file, store)[2].keys == parts[2].keys


def test_few_keys_can_be_read_by_people(parts, file):
    save_partition(parts, file, scheme="by hand", seed=None)
    document = json.loads(file.read_text())
    assert document["scheme"] == "by hand"
    assert document["clients"]["1"] == parts[1].keys
    assert document["fingerprint"] == embstore.Config(CONFIG).fingerprint


def test_many_keys_are_packed(file):
    keys = [f"folder/näme_{i:06d}.wav:class_{i % 7}" for i in range(100_000)]
    save_partition({0: keys[::2], 1: keys[1::2], 2: keys[:3]}, file, scheme="halves", config=CONFIG)
    assert file.stat().st_size < sum(map(len, keys)) / 5
    manifest = Manifest.read(file)
    assert manifest.sizes == {0: 50_000, 1: 50_000, 2: 3}
    assert manifest.keys_of(0) == keys[::2]
    assert manifest.keys_of(1) == keys[1::2]
    assert manifest.keys_of(2) == keys[:3]
    assert manifest.shared


def test_the_manifest_of_keys_needs_a_config(file):
    with pytest.raises(TypeError, match="config"):
        save_partition([["a:x"]], file, scheme="by hand")
    assert not file.exists()


def test_the_manifest_of_a_part_keeps_the_classes_of_the_whole(store, parts, file):
    few = store.select(classes="class_3")
    save_partition({5: few}, file, scheme="one client", classes=store.classes)
    again = load_partition(file, store)
    assert list(again) == [5]
    assert again.classes == store.classes


def test_classes_that_lack_one_of_the_keys_are_refused(parts, file):
    with pytest.raises(ValueError, match="class_9"):
        save_partition(parts, file, scheme="by hand", classes=["class_1"])


def test_a_key_that_is_none_is_refused(file):
    with pytest.raises(errors.KeyFormatError):
        save_partition([["no-class:"]], file, scheme="by hand", config=CONFIG)


def test_keys_without_a_class_add_no_class(file):
    save_partition([["P1", "P2:_", "P3:dog"]], file, scheme="by hand", config=CONFIG)
    assert Manifest.read(file).classes == ("dog",)
    assert Manifest.read(file).keys_of(0) == ["P1", "P2", "P3:dog"]


def test_a_scheme_that_json_cannot_hold_is_refused(parts, file):
    with pytest.raises((TypeError, ValueError)):
        save_partition(parts, file, scheme={"alpha": float("nan")})
    with pytest.raises(TypeError):
        save_partition(parts, file, scheme={"alpha": object()})
    assert not file.exists()


def test_it_is_written_whole_or_not_at_all(parts, file, monkeypatch):
    save_partition(parts, file, scheme="first")
    before = file.read_bytes()
    done = []

    def fail(operation, path, data):
        done.append(operation)
        if operation == "rename":
            raise OSError(5, "no")

    monkeypatch.setattr(steps, "step_hook", fail)
    with pytest.raises(OSError, match="no"):
        save_partition(parts, file, scheme="second")
    assert done[-2:] == ["fsync", "rename"]
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]


# -- of another store -------------------------------------------------------------------------


def test_the_manifest_of_another_store_is_refused(parts, file, tmp_path):
    save_partition(parts, file, scheme="by hand")
    other = embstore.open(tmp_path / "other.zarr", "w-", config={**CONFIG, "duration": 10})
    with pytest.raises(OtherStoreManifestError, match="duration: expected 5, found 10") as caught:
        load_partition(file, other)
    error = caught.value
    assert (error.expected, error.found) == (embstore.Config(CONFIG).fingerprint, other.config.fingerprint)
    assert (error.path, error.store) == (file, other.path)
    assert isinstance(error, ValueError)
    assert pickle.loads(pickle.dumps(error)).differences == error.differences


def test_views_of_different_stores_make_no_manifest(parts, file, tmp_path):
    other = embstore.open(tmp_path / "other.zarr", "w-", config={**CONFIG, "duration": 10})
    other.append(["a:x"], np.ones((1, 8), np.float32))
    with pytest.raises(OtherStoreManifestError):
        save_partition({**parts, 3: other.select()}, file, scheme="by hand")
    assert not file.exists()


def test_it_fits_a_store_of_the_same_config_in_another_order(store, parts, file, tmp_path, rng):
    save_partition(parts, file, scheme="by hand", seed=3)
    keys = [str(key) for key in rng.permutation(list(store))]
    other = embstore.open(tmp_path / "elsewhere.zarr", "w-", config=CONFIG)
    other.append(keys, store[keys])
    here, there = load_partition(file, store), load_partition(file, other)
    for client in here:
        for split in ("train", "test", "all"):
            assert here.view(client, split).keys == there.view(client, split).keys
            np.testing.assert_array_equal(here.view(client, split).to_numpy(), there.view(client, split).to_numpy())


def test_it_outlives_a_compaction(store, parts, file):
    save_partition(parts, file, scheme="by hand")
    expected = {client: view.to_numpy() for client, view in parts.items()}
    extra = [f"extra_{i}:class_1" for i in range(5)]
    store.append(extra, np.ones((5, 8), np.float32), columns={"split": "train"})
    again = load_partition(file, store)
    before = again[1]
    store.delete(extra)
    store.compact()
    with pytest.raises(errors.StoreChangedError):
        before.to_numpy()
    for client, view in again.items():
        np.testing.assert_array_equal(view.to_numpy(), expected[client])


def test_an_erased_client_leaves_the_others_as_they_are(store, parts, file):
    save_partition(parts, file, scheme="by hand")
    again = load_partition(file, store)
    views, expected = dict(again), {client: view.to_numpy() for client, view in parts.items()}
    store.erase(again.keys_of(1))
    with pytest.raises(errors.MissingKeysError):
        again[1]
    for client in (0, 2):
        np.testing.assert_array_equal(views[client].to_numpy(), expected[client])
        np.testing.assert_array_equal(again[client].to_numpy(), expected[client])
    assert coverage(again).missing == {1: tuple(again.keys_of(1))}


# -- files that are not what they should be ---------------------------------------------------


def test_every_flipped_byte_is_found(parts, file):
    save_partition(parts, file, scheme="by hand", seed=1)
    whole = file.read_bytes()
    for place in range(0, len(whole), 97):
        flipped = bytearray(whole)
        flipped[place] ^= 0x10
        file.write_bytes(flipped)
        with contextlib.suppress(errors.FileFormatError):
            found = Manifest.read(file)
            # White space between values became another, and means nothing.
            assert {client: found.keys_of(client) for client in found.parts} == {c: parts[c].keys for c in parts}


def forged(file, change):
    from embstore_fl.manifest import _digest

    document = json.loads(file.read_text())
    document.pop("checksum")
    change(document)
    document["checksum"] = _digest(document)
    file.write_text(json.dumps(document))


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("clients"),
        lambda d: d.update(clients=[]),
        lambda d: d.update(clients={"zero": []}),
        lambda d: d.update(clients={"0": [1, 2]}),
        lambda d: d.update(clients={"0": {"count": 1}}),
        lambda d: d.update(clients={"0": {"count": "1", "nbytes": 1, "deflated": ""}}),
        lambda d: d.update(fingerprint="0" * 64),
        lambda d: d.update(config="{}"),
        lambda d: d.update(config={"a": 1}),
        lambda d: d.update(seed="7"),
        lambda d: d.update(seed=True),
        lambda d: d.update(classes="abc"),
        lambda d: d.update(names=[1]),
        lambda d: d.update(names={"0": 1}),
        lambda d: d.update(names={"0": "a", "1": "a"}),
        lambda d: d.update(named=True),
        lambda d: d.update(test=[1]),
        lambda d: d.update(test={"count": 1}),
    ],
)
def test_a_forged_file_is_an_error_that_names_it(parts, file, change):
    save_partition(parts, file, scheme="by hand")
    forged(file, change)
    with pytest.raises(errors.FileFormatError, match=r"manifest\.json"):
        Manifest.read(file)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"embstore_partition": 1}']
)
def test_what_is_no_manifest_is_an_error_that_names_it(file, content):
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(errors.FileFormatError, match=r"manifest\.json"):
        Manifest.read(file)


def test_a_file_that_is_not_there(file):
    with pytest.raises(FileNotFoundError):
        Manifest.read(file)


def test_a_newer_manifest_is_told_from_a_broken_one(parts, file):
    save_partition(parts, file, scheme="by hand")
    forged(file, lambda d: d.update(embstore_partition=2))
    with pytest.raises(errors.UnsupportedFormatError, match="manifest 2"):
        Manifest.read(file)


@pytest.mark.parametrize(
    "packed",
    [
        Packed(count=2, nbytes=9, deflated="!"),
        Packed(count=2, nbytes=9, deflated="AAAA"),
        Packed(count=1, nbytes=2**40, deflated=""),
        Packed(count=1, nbytes=-1, deflated=""),
        Packed(count=2, nbytes=7, deflated=Packed.of(["a:x"]).deflated),
        Packed(count=1, nbytes=6, deflated=Packed.of(["a:x"]).deflated),
    ],
    ids=["not base64", "not deflated", "too large", "negative", "fewer keys", "more bytes"],
)
def test_packed_keys_that_lie_are_refused(packed):
    with pytest.raises(ValueError, match="keys"):
        packed.keys()


def test_packed_keys_cannot_fill_the_memory():
    import base64
    import tracemalloc

    bomb = base64.b64encode(zlib.compress(bytes(200 * 2**20))).decode()
    tracemalloc.start()
    with pytest.raises(ValueError, match="or more"):
        Packed(count=1, nbytes=1000, deflated=bomb).keys()
    assert tracemalloc.get_traced_memory()[1] < 5 * 2**20
    tracemalloc.stop()


# -- a client's own part ----------------------------------------------------------------------


def test_a_client_that_is_not_there(store, parts, file):
    save_partition(parts, file, scheme="by hand")
    again = load_partition(file, store)
    with pytest.raises(UnknownClientError) as caught:
        again[3]
    assert (caught.value.client, caught.value.known) == (3, (0, 1, 2))
    assert 3 not in again
    assert again.get(3) is None


def test_the_keys_of_another_client_are_refused(store, parts, file):
    save_partition(parts, file, scheme="by hand")
    again = load_partition(file, store)
    own, foreign = parts[0].keys[:2], parts[1].keys[:2]
    assert again.view(0, keys=own[::-1]).keys == own[::-1]
    for wanted in (foreign, ["nobody's:class_1"]):
        with pytest.raises(ForeignKeysError) as caught:
            again.view(0, keys=[*own, *wanted])
        assert caught.value.client == 0
        assert caught.value.keys == tuple(wanted)
        assert isinstance(caught.value, KeyError)
    with pytest.raises(ForeignKeysError):  # of the test split, asked for in training
        again.view(0, "train", keys=again.keys_of(0, "test")[:1])


@pytest.mark.parametrize("test", [0.1, 0.25, 0.5])
def test_a_client_is_split_by_class(store, parts, file, test):
    save_partition(parts, file, scheme="by hand", seed=1)
    again = load_partition(file, store)
    for client, view in parts.items():
        train, held = again.keys_of(client, "train", test=test), again.keys_of(client, "test", test=test)
        assert sorted([*train, *held]) == sorted(view.keys)
        assert [key for key in view.keys if key in set(train)] == train
        assert abs(len(held) - test * len(view)) <= 1
        sizes, of_test = keys_by_class(view.keys), keys_by_class(held)
        for name, keys in sizes.items():
            assert abs(len(of_test.get(name, [])) - test * len(keys)) <= 1


def test_another_seed_splits_in_another_way(store, parts, file):
    save_partition(parts, file, scheme="by hand", seed=1)
    again = load_partition(file, store)
    assert again.keys_of(0, "test") == again.keys_of(0, "test", seed=1)
    assert again.keys_of(0, "test") != again.keys_of(0, "test", seed=2)


def test_the_split_is_the_same_on_every_machine(store, file):
    """Written down, since it must not change with versions either."""
    keys = [f"file_{i:04d}:class_{i % 2}" for i in range(12)]
    save_partition({0: keys}, file, scheme="by hand", seed=0, config=CONFIG)
    assert load_partition(file, store).keys_of(0, "test") == EXPECTED_TEST


EXPECTED_TEST = ["file_0003:class_1", "file_0006:class_0", "file_0010:class_0"]


def test_small_clients(store, file):
    keys = list(store)
    save_partition(
        {0: [], 1: keys[:1], 2: keys[1:3], 3: [keys[5], keys[5], keys[6]]}, file, scheme="few", config=CONFIG
    )
    again = load_partition(file, store)
    assert [len(again[client]) for client in again] == [0, 1, 2, 3]
    assert [len(again.view(client, "test")) for client in (0, 1, 2)] == [0, 0, 1]
    held, trained = again.keys_of(3, "test"), again.keys_of(3, "train")
    assert not set(held) & set(trained)
    assert again.keys_of(2, "train", test=0) == keys[1:3]


@pytest.mark.parametrize("wrong", [{"test": 1}, {"test": -0.1}, {"split": "val"}])
def test_a_split_that_there_is_not(store, parts, file, wrong):
    save_partition(parts, file, scheme="by hand")
    with pytest.raises(ValueError, match="expected"):
        load_partition(file, store).keys_of(0, **{"split": "train", **wrong})


def test_rows_that_were_replaced_are_read_anew(store, parts, file):
    save_partition(parts, file, scheme="by hand")
    again = load_partition(file, store)
    assert again[0] is again[0]
    key = parts[0].keys[0]
    store.append([key], np.full((1, 8), 9, np.float32), columns={"split": "train"}, if_exists="replace")
    assert (again[0].to_numpy()[0] == 9).all()


def test_partitions_are_pickled_without_their_rows(path, file):
    keys = [f"file_{i:05d}:c" for i in range(20_000)]
    with embstore.open(path, "w-", config=CONFIG) as store:
        store.append(keys, np.arange(40_000, dtype=np.float32).reshape(-1, 2))
    store = embstore.open(path)
    save_partition(
        {0: store.select(rows=range(0, 20_000, 2)), 1: store.select(rows=range(1, 20_000, 2))}, file, scheme="x"
    )
    again = load_partition(file, store)
    expected = again[1].to_numpy()
    pickled = pickle.dumps(again)
    assert len(pickled) < 150_000
    np.testing.assert_array_equal(pickle.loads(pickled)[1].to_numpy(), expected)


# -- before round 1 ---------------------------------------------------------------------------


def test_coverage_says_what_is_missing(store, parts, file):
    save_partition(parts, file, scheme="by hand")
    again = load_partition(file, store)
    assert coverage(again).complete
    assert str(coverage(again)) == "3 clients: all of their 300 samples are stored"
    gone = again.keys_of(1)[3:15]
    store.delete(gone)
    found = coverage(again)
    assert not found.complete
    assert found.missing == {1: tuple(gone)}
    assert str(found) == "1 of 3 clients: 12 of 300 samples missing\nclient 1: 12 of 90 missing"
    with pytest.raises(errors.MissingKeysError) as caught:
        again[1]
    assert caught.value.keys == tuple(gone)
    assert len(again[0]) == 150


def test_coverage_of_an_empty_store(path, file):
    save_partition([["a:x", "b:y"], ["c:x"]], file, scheme="by hand", config=CONFIG)
    store = embstore.open(path, "w-", config=CONFIG)
    found = coverage(load_partition(file, store))
    assert found.missing == {0: ("a:x", "b:y"), 1: ("c:x",)}


def test_coverage_of_other_things(store, parts, file):
    manifest = save_partition(parts, file, scheme="by hand")
    store.delete(parts[2].keys[:1])
    expected = {2: tuple(parts[2].keys[:1])}
    assert coverage(manifest, store).missing == expected
    assert coverage(parts).missing == expected
    assert coverage(list(parts.values())).missing == expected
    assert coverage({client: view.keys for client, view in parts.items()}, store).missing == expected
    with pytest.raises(TypeError, match="store"):
        coverage([["a:x"]])
    with pytest.raises(TypeError, match="store"):
        coverage(manifest)


def test_coverage_sees_what_others_have_written(path, file):
    save_partition([["a:x"], ["b:x"]], file, scheme="by hand", config=CONFIG)
    writer = embstore.open(path, "w-", config=CONFIG)
    again = load_partition(file, embstore.open(path))
    assert set(coverage(again).missing) == {0, 1}
    writer.append(["a:x"], np.ones((1, 2), np.float32))
    assert set(coverage(again).missing) == {1}
    assert isinstance(again, Partitions)
    assert again[0].keys == ["a:x"]


def test_a_label_that_changes_moves_no_row_between_train_and_test(tmp_path):
    def held(label):
        keys = [f"f{i}:{label}" for i in range(40)]
        with embstore.open(tmp_path / label, "w-", config=CONFIG) as store:
            store.append(keys, np.ones((40, 2), np.float32))
            manifest = Manifest.of({0: keys}, scheme="by hand", seed=3, config=CONFIG)
            tested = Partitions(manifest, store).keys_of(0, "test")
        return [key.rpartition(":")[0] for key in tested]

    assert held("dog") == held("cat")
    assert 0 < len(held("bird")) < 40


def relabelled(tmp_path):
    """Return a store of which two labels changed, and the manifest of its keys before."""
    encoder = FunctionEncoder(lambda texts: np.array([[len(t)] for t in texts], "f4"), config=CONFIG, pure=True)
    before = {f"f{i}:dog": "x" * i for i in range(8)}
    after = {(f"f{i}:cat" if i in (2, 5) else key): text for i, (key, text) in enumerate(before.items())}
    for contents in (before, after):
        result = embstore.embed(Items(contents, name="x"), encoder, tmp_path / "cache")
    keys = list(before)
    manifest = Manifest.of({0: keys[:4], 1: keys[4:]}, scheme="by hand", seed=3, config=result.config)
    return embstore.open(result.path, "r+"), manifest


def test_a_manifest_that_names_a_relabelled_key(tmp_path):
    store, manifest = relabelled(tmp_path)
    parts = Partitions(manifest, store)
    for view in (lambda: parts[0], lambda: parts.view(0, keys=["f2:dog"])):
        with pytest.raises(errors.RelabelledKeysError, match=r"'f2:dog'; .*keys now: 'f2:cat'; make the partition"):
            view()
    store.delete(["f1:dog"])
    store.erase(["f2:cat"])
    with pytest.raises(errors.MissingKeysError, match="f1:dog") as caught:
        parts[0]
    assert not isinstance(caught.value, errors.RelabelledKeysError)


def test_a_withdrawn_client_whose_row_has_another_label(tmp_path):
    store, manifest = relabelled(tmp_path)
    own = manifest.keys_of(1)
    with pytest.raises(errors.RelabelledKeysError, match="'f5:cat'; nothing was erased") as caught:
        erase_client(store, own)
    assert (caught.value.keys, caught.value.moved) == (("f5:dog",), ("f5:cat",))
    assert len(store) == 8
    erase_client(store, own, copies=True)
    assert set(store) == {"f0:dog", "f1:dog", "f2:cat", "f3:dog"}
    erase_client(store, own)  # again: nothing is left
