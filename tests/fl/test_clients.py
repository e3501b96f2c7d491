"""Clients by name, given test sets, labels that stay, small clients: the same in Flower and in PFLlib."""

import json
import pickle

import numpy as np
import pytest

import embstore
from embstore.errors import FileFormatError, MissingKeysError
from embstore_fl.datasets import ESC50, VGGSound
from embstore_fl.errors import (
    ClassOrderError,
    ClientRowsError,
    GivenTestError,
    ManifestNotFoundError,
    UnknownClientError,
)
from embstore_fl.flower import client_dataset, client_keys, client_view, partition, server_keys, server_view
from embstore_fl.manifest import Manifest
from embstore_fl.partitions import coverage, load_partition, save_partition
from tests.conftest import CONFIG
from tests.fl import layouts

torch = pytest.importorskip("torch")

from embstore_fl import pfllib  # noqa: E402

pytestmark = pytest.mark.usefixtures("system")


def filled(path, keys):
    """Make a store of these keys."""
    store = embstore.open(path, "w-", config=CONFIG)
    store.append(keys, np.arange(len(keys) * 4, dtype=np.float32).reshape(-1, 4))
    return store


def installed_keys(installed):
    return {part: {c: data.view.keys for c, data in getattr(installed, part).items()} for part in ("train", "test")}


# -- one default ------------------------------------------------------------------------------


@pytest.mark.parametrize("overlapping", [False, True])
@pytest.mark.parametrize("seed", [None, 0, 7])
def test_both_adapters_hold_out_the_same_rows_by_default(store, file, context, rng, seed, overlapping):
    """In the order of the partition, and none that another client trains on."""
    order = rng.permutation(300)
    parts = [rng.choice(300, 120, replace=False) if overlapping else order[i::5] for i in range(5)]
    save_partition([store.select(rows=rows) for rows in parts], file, scheme="fifths", seed=seed)
    found = pfllib.install(store, load_partition(file, store), store.classes)
    for client in range(5):
        for part in ("train", "test"):
            keys = [one["key"] for one in client_dataset(context(client), part, columns=["key"])]
            assert keys == getattr(found, part)[client].view.keys
    other = pfllib.install(store, load_partition(file, store), store.classes, seed=(seed or 0) + 1)
    assert installed_keys(other) != installed_keys(found)


def test_a_partition_that_is_saved_again_keeps_what_it_was_saved_with(store, file, tmp_path):
    parts = {"b": store.select(rows=range(10)), "a": store.select(rows=range(10, 20))}
    save_partition(parts, file, scheme="s", seed=9, classes=store.classes[::-1], test=store.select(rows=range(5)))
    save_partition(load_partition(file, store), tmp_path / "again.json", scheme="s")
    first, second = Manifest.read(file), Manifest.read(tmp_path / "again.json")
    assert (second.seed, second.classes, second.test) == (9, tuple(store.classes[::-1]), first.test)
    assert list(second.parts.items()) == list(first.parts.items())


# -- labels that stay -------------------------------------------------------------------------


def test_a_new_class_goes_to_the_end(tmp_path, file):
    store = filled(tmp_path / "s.zarr", ["1:dog", "2:drum", "3:cat", "4:ant"])
    save_partition([["1:dog"], ["2:drum"]], file, scheme="two", config=CONFIG)
    assert load_partition(file, store).classes == ["dog", "drum"]
    save_partition([["1:dog"], ["2:drum"], ["3:cat", "4:ant"]], file, scheme="three", config=CONFIG)
    assert load_partition(file, store).classes == ["dog", "drum", "ant", "cat"]


def test_a_class_that_is_gone_keeps_its_label(file):
    save_partition([["1:cat"], ["2:dog"]], file, scheme="two", config=CONFIG)
    save_partition([["2:dog"]], file, scheme="one", config=CONFIG)
    assert Manifest.read(file).classes == ("cat", "dog")


def test_labels_begin_anew_for_another_config_and_where_classes_are_given(file):
    save_partition([["1:dog"]], file, scheme="s", config=CONFIG)
    save_partition([["1:dog", "2:cat"]], file, scheme="s", config={**CONFIG, "more": 1})
    assert Manifest.read(file).classes == ("cat", "dog")
    save_partition([["1:dog", "2:cat"]], file, scheme="s", config={**CONFIG, "more": 1}, classes=["dog", "cat"])
    assert Manifest.read(file).classes == ("dog", "cat")


def test_a_file_that_is_no_manifest_is_not_replaced(file):
    file.write_text("notes")
    with pytest.raises(FileFormatError, match="not a manifest of a partition"):
        save_partition([["1:dog"]], file, scheme="s", config=CONFIG)
    assert file.read_text() == "notes"


def test_labels_that_move_in_the_middle_of_a_run_are_refused(store, file, context):
    save_partition([["file_0001:class_1", "file_0011:class_1"]], file, scheme="s", config=CONFIG)
    assert client_dataset(context(0)).classes == ["class_1"]
    file.unlink()
    save_partition([["file_0001:class_1", "file_0000:class_0"]], file, scheme="s", config=CONFIG)
    with pytest.raises(ClassOrderError, match=r"expected the classes 'class_1' first, found 'class_0', 'class_1'") as e:
        client_dataset(context(0))
    assert str(pickle.loads(pickle.dumps(e.value))) == str(e.value)
    file.unlink()
    keys = ["file_0001:class_1", "file_0000:class_0"]
    save_partition([keys], file, scheme="s", config=CONFIG, classes=["class_1", "class_0"])
    assert client_dataset(context(0), "all").classes == ["class_1", "class_0"]


# -- a given test set -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["view", "keys", "Keys", "rows", "array"])
def test_a_test_set_for_pfllib(store, kind):
    rows = np.arange(0, 300, 7)
    view = store.select(rows=rows)
    test = {
        "view": view,
        "keys": view.keys,
        "Keys": [embstore.Key.parse(key) for key in view.keys],
        "rows": rows.tolist(),
        "array": rows,
    }[kind]
    found = pfllib.install(store, [range(100), range(100, 300)], store.classes, test=test)
    for client, own in enumerate([set(range(100)), set(range(100, 300))]):
        assert set(found.test[client].view.rows.tolist()) == own & set(rows.tolist())
        assert set(found.train[client].view.rows.tolist()) == own - set(rows.tolist())


def test_a_test_set_that_no_client_has_is_everybodys(store, file, context):
    test = store.select(rows=range(250, 300))
    parts = [store.select(rows=range(100)), store.select(rows=range(100, 250))]
    found = pfllib.install(store, parts, store.classes, test=test)
    save_partition(parts, file, scheme="official", test=test)
    loaded = pfllib.install(store, load_partition(file, store), store.classes)
    assert installed_keys(found) == installed_keys(loaded)
    for client, part in enumerate(parts):
        assert found.test[client].view.keys == client_keys(context(client), "test") == test.keys
        assert found.train[client].view.keys == client_keys(context(client), "train") == part.keys
        assert client_keys(context(client), "all") == part.keys
    assert server_view(context(0)).keys == test.keys
    assert server_keys(context(0), "train") == list(store)[:250]
    assert server_keys(context(0), "all") == list(store)


def test_a_test_set_in_flower_is_the_clients_own_rows_of_it(store, file, context):
    test = store.select(rows=range(0, 300, 3)).keys
    save_partition([store.select(rows=range(100)), store.select(rows=range(100, 200))], file, scheme="s", test=test)
    for client, keys in enumerate([list(store)[:100], list(store)[100:200]]):
        assert client_view(context(client), "test").keys == [key for key in keys if key in test]
        assert client_keys(context(client), "train") == [key for key in keys if key not in test]
        assert client_keys(context(client), "all") == keys
    assert server_keys(context(0)) == test
    found = pfllib.install(store, load_partition(file, store), store.classes)
    assert found.test[1].view.keys == client_keys(context(1), "test")


def test_a_large_test_set_is_packed(file):
    test = [f"{i}:dog" for i in range(5_000)]
    save_partition([["a:dog"]], file, scheme="s", config=CONFIG, test=test)
    assert Manifest.read(file).test_keys() == test
    document = json.loads(file.read_text())
    assert document["test"]["count"] == 5_000


def test_vggsounds_official_split_in_both_adapters(tmp_path, file, context):
    source = VGGSound(layouts.vggsound(tmp_path / "VGG"))
    official = source.select(by="official", splits="test").keys
    assert official
    keys = source.select().keys
    store = filled(tmp_path / "vgg.zarr", keys)
    found = pfllib.install(store, [keys], source.classes, test=official)
    assert sorted(found.test[0].view.keys) == sorted(official)
    save_partition([keys], file, scheme="all", config=CONFIG, classes=source.classes, test=official)
    run = context(0)
    run.run_config["embstore.store"] = str(store.path)
    assert sorted(one["key"] for one in client_dataset(run, "test", columns=["key"])) == sorted(official)


def test_a_fold_of_esc50_in_both_adapters(tmp_path, file, context):
    source = ESC50(layouts.esc50_official(tmp_path / "ESC", ["dog", "cat"]))
    fold = source.select(by="fold", folds={"train": (1, 2, 3, 4), "test": (5,)}, splits="test").keys
    keys = source.select().keys
    store = filled(tmp_path / "esc.zarr", keys)
    found = pfllib.install(store, [keys[::2], keys[1::2]], source.classes, test=fold)
    held = [key for data in found.test.values() for key in data.view.keys]
    assert sorted(held) == sorted(fold)
    save_partition([keys[::2], keys[1::2]], file, scheme="halves", config=CONFIG, test=fold)
    run = context(1)
    run.run_config["embstore.store"] = str(store.path)
    assert client_keys(run, "test") == found.test[1].view.keys


def test_a_share_beside_a_test_set_is_refused(store, file, context):
    save_partition([store.select(rows=range(100))], file, scheme="s", test=list(store)[:10])
    partitions = load_partition(file, store)
    with pytest.raises(GivenTestError, match=r"has a test set.*found test=0\.25; omit test="):
        pfllib.install(store, partitions, store.classes, test=0.25)
    with pytest.raises(GivenTestError):
        partitions.view(0, "train", test=0.5)
    asked = context(0, **{"embstore.test": 0.25})
    with pytest.raises(GivenTestError):
        client_keys(asked)


def test_keys_of_a_test_set_that_are_not_stored(store, file):
    with pytest.raises(MissingKeysError, match="nowhere:class_1"):
        pfllib.install(store, [range(100)], store.classes, test=["nowhere:class_1"])
    save_partition([store.select(rows=range(100))], file, scheme="s", test=["nowhere:class_1"])
    with pytest.raises(MissingKeysError, match="nowhere:class_1"):
        load_partition(file, store).view(0, "test")


# -- what is shared out evenly ----------------------------------------------------------------


class IidPartitioner:
    """As that of flwr-datasets, which takes contiguous shards."""

    def __init__(self, num_partitions):
        self.num_partitions = num_partitions
        self.dataset = None

    def load_partition(self, client):
        return self.dataset.shard(num_shards=self.num_partitions, index=client, contiguous=True)


class SizePartitioner(IidPartitioner):
    """One that cuts its table by sizes."""


class ByTime(IidPartitioner.__base__):
    """One of a user's own, which goes by the order of the table."""

    num_partitions = 2

    def load_partition(self, client):
        return self.dataset.shard(num_shards=2, index=client, contiguous=True)


@pytest.fixture
def by_class(tmp_path):
    """A store that was filled class by class."""
    return filled(
        tmp_path / "sorted.zarr", [f"{i}:{name}" for name in ("ant", "bee", "cat", "dog") for i in range(250)]
    )


@pytest.mark.parametrize("kind", [IidPartitioner, SizePartitioner])
def test_a_store_that_was_filled_class_by_class_is_shared_out_evenly(by_class, kind):
    pytest.importorskip("datasets")
    parts = partition(by_class.select(), kind(5))
    assert sum(map(len, parts.values())) == 1000
    for view in parts.values():
        counts = np.unique(view.class_names, return_counts=True)[1]
        assert len(counts) == 4
        assert counts.min() > 25  # of 50, with a standard deviation of 6
        assert view.rows.tolist() == sorted(view.rows.tolist())
    again = partition(list(by_class), kind(5), seed=0)
    assert again == {client: view.keys for client, view in parts.items()}
    assert partition(list(by_class), kind(5), seed=1) != again
    ordered = partition(by_class.select(), kind(5), seed=None)
    assert ordered[0].rows.tolist() == list(range(200))


def test_the_real_partitioners_share_out_evenly(by_class):
    pytest.importorskip("datasets")
    partitioners = pytest.importorskip("flwr_datasets.partitioner")
    for made in (
        partitioners.IidPartitioner(5),
        partitioners.SizePartitioner([200] * 5),
        partitioners.LinearPartitioner(5),
    ):
        for view in partition(by_class.select(), made).values():
            counts = np.unique(view.class_names, return_counts=True)[1]
            assert len(counts) == 4
            assert counts.min() > len(view) / 8


def test_the_order_of_other_partitioners_is_left(by_class):
    pytest.importorskip("datasets")
    assert partition(by_class.select(), ByTime())[0].rows.tolist() == list(range(500))


# -- clients by name --------------------------------------------------------------------------

SITES = ["site-10", "site-2", "überlingen"]


@pytest.fixture
def sites(store):
    return {name: store.select(rows=range(i, 300, 3)) for i, name in enumerate(SITES)}


def test_names_come_back_in_their_order(store, sites, file):
    save_partition(sites, file, scheme="by site")
    again = load_partition(file, store)
    assert list(again) == SITES
    assert {name: view.keys for name, view in again.items()} == {name: view.keys for name, view in sites.items()}
    assert again.keys_of("site-2", "test")
    assert "site-2" in again
    assert "site-3" not in again
    with pytest.raises(UnknownClientError, match="no client 'site-3'; clients: 'site-10', 'site-2', "):
        again["site-3"]
    assert list(pickle.loads(pickle.dumps(again))) == SITES
    store.delete(sites["site-2"].keys[:4])
    assert str(coverage(again)).splitlines()[1] == "client site-2: 4 of 100 missing"
    assert coverage(again).missing.keys() == {"site-2"}


def test_a_node_by_its_name_or_its_place(store, sites, file, context):
    save_partition(sites, file, scheme="by site")
    for place, name in enumerate(SITES):
        assert client_keys(context(name), "all") == sites[name].keys
        assert client_keys(context(place), "all") == sites[name].keys  # a simulation numbers its nodes
    for unknown in (3, -1, "site-3"):
        with pytest.raises(UnknownClientError):
            client_keys(context(unknown))


def test_a_number_as_text_is_the_number(store, file, context):
    save_partition({7: store.select(rows=range(9))}, file, scheme="one")
    assert client_keys(context("7"), "all") == list(store)[:9]


def test_names_for_pfllib(store, sites, file):
    found = pfllib.install(store, sites, store.classes)
    assert found.names == tuple(SITES)
    assert list(found.train) == [0, 1, 2]
    for place, name in enumerate(SITES):
        for is_train in (True, False):
            assert pfllib.read_client_data("any", name, is_train) is pfllib.read_client_data("any", place, is_train)
    with pytest.raises(UnknownClientError, match="site-3"):
        pfllib.read_client_data("any", "site-3")
    save_partition(sites, file, scheme="by site")
    loaded = pfllib.install(store, load_partition(file, store), store.classes)
    assert installed_keys(loaded) == installed_keys(found)
    with pytest.raises(ClientRowsError, match="client site-1 has 1"):
        pfllib.install(store, {"site-1": [0]}, store.classes)


@pytest.mark.parametrize("wrong", [{"7": []}, {"-1": []}, {"": []}, {0: [], "a": []}])
def test_what_is_no_name(file, wrong):
    with pytest.raises(ValueError, match="expected"):
        save_partition(wrong, file, scheme="s", config=CONFIG)
    assert not file.exists()


def test_what_is_no_client_at_all(file):
    with pytest.raises(TypeError, match=r"expected a number or a name for a client, found 1\.5"):
        save_partition({1.5: []}, file, scheme="s", config=CONFIG)


class NaturalIdPartitioner:
    """As that of flwr-datasets."""

    def __init__(self, partition_by):
        self.by = partition_by
        self.dataset = None

    @property
    def partition_id_to_natural_id(self):
        return dict(enumerate(sorted(self.dataset.unique(self.by))))

    @property
    def num_partitions(self):
        return len(self.partition_id_to_natural_id)

    def load_partition(self, client):
        name = self.partition_id_to_natural_id[client]
        return self.dataset.filter(lambda row: row[self.by] == name)


@pytest.mark.parametrize("real", [False, True])
def test_natural_ids_are_in_the_manifest(tmp_path, file, context, real):
    pytest.importorskip("datasets")
    made = pytest.importorskip("flwr_datasets.partitioner").NaturalIdPartitioner if real else NaturalIdPartitioner
    with embstore.open(tmp_path / "s.zarr", "w-", config=CONFIG) as writer:
        keys, sites = [f"{i}:dog" for i in range(12)], np.array(["lyon", "graz", "brno"] * 4)
        writer.append(keys, np.ones((12, 4), np.float32), columns={"site": sites})
    store = embstore.open(tmp_path / "s.zarr")
    parts = partition(store.select(), made(partition_by="site"), columns=["site"])
    assert list(parts) == [0, 1, 2]
    assert parts.names == {0: "brno", 1: "graz", 2: "lyon"}
    save_partition(parts, file, scheme="natural")
    again = load_partition(file, store)
    assert again.names == parts.names
    assert list(again) == [0, 1, 2]
    assert again["lyon"].keys == again[2].keys == keys[::3]
    run = context("graz")
    run.run_config["embstore.store"] = str(store.path)
    assert client_keys(run, "all") == keys[1::3]
    with pytest.raises(ValueError, match="different names"):
        save_partition(parts, file, scheme="natural", names={0: "x", 1: "x"})


# -- small clients, and no manifest -----------------------------------------------------------


def test_a_client_without_rows_in_a_part_is_named(store, file, context):
    keys = list(store)
    save_partition({0: [], 1: keys[:1], 2: keys[1:3]}, file, scheme="few", config=CONFIG)
    for client, part in ((0, "train"), (0, "test"), (0, "all"), (1, "test")):
        with pytest.raises(ClientRowsError, match=f"client {client} has no row in its part '{part}'") as caught:
            client_dataset(context(client), part)
        assert (caught.value.client, caught.value.part, caught.value.found) == (client, part, 0)
        assert len(client_view(context(client), part)) == 0
    assert len(client_dataset(context(1))) == len(client_dataset(context(2), "test")) == 1


@pytest.mark.parametrize(("part", "rows"), [("train", range(0, 5)), ("test", range(51, 60))])
def test_a_test_set_that_leaves_a_client_without_a_part(store, part, rows):
    with pytest.raises(ClientRowsError, match=f"client 1 has no row in its part '{part}'"):
        pfllib.install(store, [range(50, 60), rows], store.classes, test=[0, 1, 2, 3, 4, 50])
    with pytest.raises(ClientRowsError, match="client 0 has no row in its part 'train'"):
        pfllib.install(store, [[], [1]], store.classes, test=[5])


def test_rows_of_others_can_leave_a_client_without_a_part(store):
    with pytest.raises(ClientRowsError, match="client 1 has no row in its part 'test'"):
        pfllib.install(
            store, [range(100), pfllib.install(store, [range(100)], store.classes).train[0].view], store.classes
        )


def test_no_manifest(tmp_path, store, file, context):
    for call in (
        lambda: load_partition(file, store),
        lambda: client_dataset(context(0)),
        lambda: server_keys(context(0)),
    ):
        with pytest.raises(ManifestNotFoundError, match="no manifest; save_partition") as caught:
            call()
        assert caught.value.path == file
        assert isinstance(caught.value, FileNotFoundError)
    with pytest.raises(FileFormatError, match="found a folder"):
        load_partition(tmp_path, store)
