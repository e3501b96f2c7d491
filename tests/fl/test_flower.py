"""Flower: any partitioner's parts as views, and a client's own part inside its ClientApp."""

import json
import logging
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

import embstore
from embstore import errors
from embstore_fl import flower
from embstore_fl.errors import ForeignKeysError, PartitionerError, RunConfigError, UnknownClientError
from embstore_fl.flower import (
    client_dataset,
    client_keys,
    client_view,
    load_partition,
    partition,
    save_partition,
    server_dataset,
    server_keys,
    server_view,
)
from tests._helpers.crash import python, run_in_child
from tests.conftest import CONFIG

EXAMPLE = Path(__file__).parents[2] / "examples" / "flower"


@pytest.fixture
def partitioners():
    pytest.importorskip("datasets")
    return pytest.importorskip("flwr_datasets.partitioner")


@pytest.fixture
def manifest(store, file, rng):
    """Three clients of a hundred rows each."""
    order = rng.permutation(store.rows)
    save_partition([store.select(rows=order[i::3]) for i in range(3)], file, scheme="thirds", seed=5)
    return file


@pytest.fixture
def context(context, manifest):
    return context


@pytest.fixture
def openings(monkeypatch):
    """The stores that were opened, in turn."""
    opened = []

    def counted(path, *arguments, **options):
        opened.append(path)
        return embstore.open(path, *arguments, **options)

    monkeypatch.setattr(flower, "open_store", counted)
    return opened


# -- partitions -------------------------------------------------------------------------------

MADE = {
    "iid": lambda p: p.IidPartitioner(num_partitions=4),
    "dirichlet": lambda p: p.DirichletPartitioner(4, "label", alpha=0.5, min_partition_size=1),
    "dirichlet by name": lambda p: p.DirichletPartitioner(4, "class_name", alpha=1.0, min_partition_size=1),
    "pathological": lambda p: p.PathologicalPartitioner(4, "label", num_classes_per_partition=5),
    "shard": lambda p: p.ShardPartitioner(4, "label", num_shards_per_partition=2),
    "linear": lambda p: p.LinearPartitioner(num_partitions=4),
    "square": lambda p: p.SquarePartitioner(num_partitions=4),
    "exponential": lambda p: p.ExponentialPartitioner(num_partitions=4),
    "sizes": lambda p: p.SizePartitioner(partition_sizes=[100, 60, 40, 100]),
    "natural": lambda p: p.NaturalIdPartitioner(partition_by="split"),
    "grouped": lambda p: p.GroupedNaturalIdPartitioner(partition_by="class_name", group_size=3),
    "inner dirichlet": lambda p: p.InnerDirichletPartitioner([75, 75, 75, 75], "label", alpha=0.5),
    "continuous": lambda p: p.ContinuousPartitioner(num_partitions=4, partition_by="score", strictness=0.5),
    "distribution": lambda p: p.DistributionPartitioner(
        distribution_array=np.ones((10, 2)),
        num_partitions=10,
        num_unique_labels_per_partition=2,
        partition_by="label",
        preassigned_num_samples_per_label=1,
    ),
}


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.filterwarnings("ignore")  # draws that are repeated, and what partitioners say of NumPy
def test_every_partitioner_shares_out_the_rows_of_a_view(kind, partitioners, path, rng):
    """Each part is compared with what the partitioner itself says of the keys."""
    keys = [f"file_{i:04d}:class_{i % 10}" for i in range(320)]
    with embstore.open(path, "w-", config=CONFIG) as store:
        columns = {"split": [("train", "test", "val")[i % 3] for i in range(320)], "score": rng.random(320)}
        store.append(keys, rng.standard_normal((320, 4)).astype(np.float32), columns=columns)
    store = embstore.open(path)
    view = store.select(rows=rng.permutation(320)[:300])
    partitioner = MADE[kind](partitioners)
    parts = partition(view, partitioner, columns=["split", "score"])
    assert list(parts) == list(range(partitioner.num_partitions))
    for client, part in parts.items():
        expected = list(partitioner.load_partition(client)["key"])
        assert sorted(part.keys) == sorted(expected)
        np.testing.assert_array_equal(part.to_numpy(), store[part.keys])
    everyone = [key for part in parts.values() for key in part.keys]
    assert len(set(everyone)) == len(everyone)
    if kind not in ("pathological", "distribution", "shard"):  # these leave rows out
        assert sorted(everyone) == sorted(view.keys)


def test_a_part_keeps_the_order_of_the_view(partitioners, store, rng):
    view = store.select(rows=rng.permutation(300))
    places = {key: place for place, key in enumerate(view.keys)}
    for part in partition(view, partitioners.DirichletPartitioner(3, "label", alpha=1.0)).values():
        found = [places[key] for key in part.keys]
        assert found == sorted(found)


def test_a_partitioner_never_sees_a_vector(partitioners, store):
    partitioner = partitioners.IidPartitioner(num_partitions=2)
    partition(store.select(), partitioner, seed=None)
    assert partitioner.dataset.column_names == ["key", "file_id", "class_name", "label", "row"]
    assert partitioner.dataset[31]["label"] == 1
    assert partitioner.dataset[31]["class_name"] == "class_1"
    assert partitioner.dataset[31]["file_id"] == "file_0031"


def test_a_view_with_repeats(partitioners, store):
    keys = [*list(store)[:10], *list(store)[:10]]
    parts = partition(store.select(keys=keys), partitioners.IidPartitioner(num_partitions=3))
    assert sorted(key for part in parts.values() for key in part.keys) == sorted(keys)


def test_keys_are_shared_out_before_anything_is_stored(partitioners, store):
    keys = list(store)
    made = lambda: partitioners.DirichletPartitioner(3, "label", alpha=1.0, seed=4)  # noqa: E731
    of_keys, of_view = partition(keys, made()), partition(store.select(), made())
    assert of_keys == {client: view.keys for client, view in of_view.items()}
    assert partition([embstore.Key("a", "x")], partitioners.IidPartitioner(1)) == {0: ["a:x"]}


def test_a_partitioner_of_columns_is_refused(partitioners, store):
    with pytest.raises(PartitionerError, match=r"VerticalEven.*columns"):
        partition(store.select(), partitioners.VerticalEvenPartitioner(num_partitions=2))


def test_a_partitioner_that_was_used_is_refused(partitioners, store):
    partitioner = partitioners.IidPartitioner(num_partitions=2)
    partition(store.select(), partitioner)
    with pytest.raises(ValueError, match="only once"):
        partition(store.select(), partitioner)


def test_columns_that_there_are_not(partitioners, store):
    made = partitioners.IidPartitioner(num_partitions=2)
    with pytest.raises(errors.UnknownColumnError):
        partition(store.select(), made, columns=["speaker"])
    with pytest.raises(TypeError, match="view"):
        partition(list(store), made, columns=["split"])
    with pytest.raises(ValueError, match="label"):
        partition(store.select(), made, columns=["label"])


# -- a client's own part ----------------------------------------------------------------------


def test_clients_share_out_what_there_is(context, store):
    keys = [key for client in range(3) for key in client_keys(context(client), "all")]
    assert sorted(keys) == sorted(store)
    for client in range(3):
        train, test = (client_view(context(client), split) for split in ("train", "test"))
        assert (len(train), len(test)) == (75, 25)
        assert sorted([*train.keys, *test.keys]) == sorted(client_view(context(client), "all").keys)
        assert train.keys == client_keys(context(client))


def test_a_dataset_has_the_labels_of_all_clients(context, store):
    torch = pytest.importorskip("torch")
    for client in range(3):
        dataset = client_dataset(context(client), "test")
        view = client_view(context(client), "test")
        assert dataset.classes == sorted(store.classes)
        x, y = next(iter(torch.utils.data.DataLoader(dataset, batch_size=len(dataset))))
        assert torch.equal(x, view.to_torch())
        assert y.tolist() == view.labels(sorted(store.classes)).tolist()
    own = client_dataset(context(0), classes=store.classes[::-1], columns=["key"])
    assert own.classes == store.classes[::-1]
    assert own[0]["key"] == client_keys(context(0))[0]
    with pytest.raises(errors.UnknownClassError):
        client_dataset(context(0), classes=["class_1"])


# -- what a server may see --------------------------------------------------------------------


def test_a_server_tests_what_the_clients_hold_out(context):
    """In the order of the clients; a server's context has no number of a client."""
    server = context(0)
    server.node_config = {}
    for split in ("test", "train", "all"):
        parts = [key for client in range(3) for key in client_keys(context(client), split)]
        assert server_keys(server, split) == parts
        assert server_view(server, split).keys == parts
    assert server_keys(server) == server_keys(server, "test")
    assert len(server_view(server)) == 75


def test_a_row_that_clients_share_is_tested_once(context, store, tmp_path):
    manifest = tmp_path / "shared.json"
    save_partition([store.select(rows=range(200)), store.select(rows=range(100, 300))], manifest, scheme="shared")
    server = context(0, **{"embstore.manifest": str(manifest)})
    assert server_keys(server, "all") == list(store)
    tested, trained = set(server_keys(server, "test")), set(server_keys(server, "train"))
    assert tested | trained == set(store)
    assert not tested & trained


def test_a_servers_dataset_has_the_labels_of_all_clients(context, store):
    torch = pytest.importorskip("torch")
    dataset = server_dataset(context(0), columns=["key"])
    assert dataset.classes == sorted(store.classes)
    batch = next(iter(torch.utils.data.DataLoader(dataset, batch_size=75)))
    assert batch["key"] == server_keys(context(0))
    assert torch.equal(batch["embedding"], server_view(context(0)).to_torch())
    with pytest.raises(errors.UnknownClassError):
        server_dataset(context(0), classes=["class_1"])


def test_a_server_is_told_all_that_is_missing(context, store):
    keys = server_keys(context(0))
    gone = [keys[3], keys[40]]
    store.delete(gone)
    with pytest.raises(errors.MissingKeysError) as error:
        server_view(context(0))
    assert sorted(error.value.keys) == sorted(gone)


# -- how a context is read --------------------------------------------------------------------


def test_share_and_seed_of_the_split_are_configured(context):
    half = client_view(context(1, **{"embstore.test": 0.5}), "test")
    assert len(half) == 50
    assert client_keys(context(1, **{"embstore.seed": 5}), "test") == client_keys(context(1), "test")
    assert client_keys(context(1, **{"embstore.seed": 6}), "test") != client_keys(context(1), "test")


def test_a_machine_may_have_its_own_paths(context, store, manifest):
    own = context(0, **{"embstore.store": "/nowhere"})
    own.node_config["embstore.store"] = str(store.path)
    assert len(client_view(own, "all")) == 100


def test_store_and_manifest_are_opened_once_a_process(context, openings):
    views = [
        client_view(context(client), split) for _ in range(3) for client in range(3) for split in ("train", "test")
    ]
    assert len(openings) == 1
    assert len({id(view.store) for view in views}) == 1
    assert len({id(view) for view in views}) == 6


def test_a_forked_process_opens_its_own(context, openings):
    client_view(context(0))

    def work():
        assert len(client_view(context(0)).to_numpy()) == 75
        assert len(openings) == 2

    assert run_in_child(work) == 0
    assert len(openings) == 1


def test_a_manifest_that_was_replaced_is_read_anew(context, store, manifest, openings):
    assert len(client_view(context(0), "all")) == 100
    save_partition([store.select(rows=range(7))], manifest, scheme="few")
    assert len(client_view(context(0), "all")) == 7
    with pytest.raises(UnknownClientError):
        client_view(context(1))


def test_a_compacted_store_is_opened_anew(context, store, openings):
    before = client_view(context(0)).to_numpy()
    extra = ["extra:class_1"]
    store.append(extra, np.ones((1, 8), np.float32), columns={"split": "train"})
    store.delete(extra)
    store.compact()
    np.testing.assert_array_equal(client_view(context(0)).to_numpy(), before)
    assert len(openings) == 2


def test_a_store_of_another_config_in_its_place_is_refused(context, store, tmp_path):
    client_view(context(0))
    keys, rows = list(store), store.select().to_numpy()
    os.rename(store.path, tmp_path / "gone.zarr")
    with embstore.open(store.path, "w-", config={**CONFIG, "duration": 10}) as other:
        other.append(keys, rows)
    with pytest.raises(ValueError, match="duration"):
        client_view(context(0))


def test_rows_that_come_later_are_seen(path, tmp_path, context):
    file = tmp_path / "early.json"
    place = tmp_path / "early.zarr"
    save_partition([["a:x", "b:y"], ["c:x"]], file, scheme="by hand", config=CONFIG)
    writer = embstore.open(place, "w-", config=CONFIG)
    early = context(0, **{"embstore.store": str(place), "embstore.manifest": str(file), "embstore.test": 0})
    with pytest.raises(errors.MissingKeysError) as caught:
        client_view(early)
    assert list(caught.value.keys) == client_keys(early) == ["a:x", "b:y"]
    writer.append(["b:y", "a:x"], np.array([[2], [1]], np.float32))
    assert client_view(early).to_numpy().ravel().tolist() == [1, 2]
    writer.append(["a:x"], np.array([[3]], np.float32), if_exists="replace")
    assert client_view(early).to_numpy().ravel().tolist() == [3, 2]


def test_another_clients_keys_are_refused(context):
    foreign = client_keys(context(1), "all")[:3]
    with pytest.raises(ForeignKeysError) as caught:
        client_view(context(0), "all", keys=foreign)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.client, again.keys, str(again)) == (0, tuple(foreign), str(caught.value))
    own = client_keys(context(0))[:3]
    assert client_view(context(0), keys=own).keys == own
    assert not set(client_view(context(0), "all").keys) & set(client_keys(context(1), "all"))


@pytest.mark.parametrize("name", ["embstore.store", "embstore.manifest"])
def test_a_name_that_is_not_configured(context, name):
    lacking = context(0)
    for empty in (True, False):
        if empty:
            lacking.run_config[name] = ""
        else:
            del lacking.run_config[name]
        with pytest.raises(RunConfigError, match="--run-config") as caught:
            client_view(lacking)
        assert name not in caught.value.available  # an empty one is not set
        assert (caught.value.name, caught.value.place) == (name, "run_config")


def test_a_node_without_a_number(context):
    lacking = context(0)
    del lacking.node_config["partition-id"]
    with pytest.raises(RunConfigError, match="--node-config") as caught:
        client_view(lacking)
    assert caught.value.available == ("num-partitions",)


def test_fewer_nodes_than_clients_are_told(context, caplog):
    few = context(0)
    few.node_config["num-partitions"] = 2
    with caplog.at_level(logging.WARNING, "embstore"):
        client_view(few)
        client_view(few)
    assert [record.message for record in caplog.records if "not all data" in record.message] == [
        f"{few.run_config['embstore.manifest']} has 3 clients, the run 2: not all data is used"
    ]


def test_a_datasets_pickle_is_small_and_the_same(context):
    torch = pytest.importorskip("torch")
    dataset = client_dataset(context(2))
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 3000
    again = pickle.loads(pickled)
    assert torch.equal(again.labels, dataset.labels)
    assert torch.equal(again[5][0], dataset[5][0])


def test_a_view_in_another_process_is_the_same_and_imports_neither_flower_nor_torch(context):
    code = """
import json, sys
from types import SimpleNamespace
from embstore_fl.flower import client_view, load_partition, coverage
node, run = json.load(sys.stdin)
view = client_view(SimpleNamespace(node_config=node, run_config=run), "test")
view.to_numpy()
print(json.dumps([view.keys, *({"flwr", "flwr_datasets", "datasets", "torch", "ray"} & {*sys.modules})]))
"""
    here = context(1)
    found = python(code, input=json.dumps([here.node_config, here.run_config]))
    assert json.loads(found) == [client_keys(here, "test")]


def with_path():
    """Return the environment, with the package on its path also where it is not installed."""
    place = str(Path(flower.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([place, os.environ.get("PYTHONPATH", "")])}


# -- in Flower --------------------------------------------------------------------------------

APP = """
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from embstore_fl.flower import client_view, client_keys
from embstore_fl.errors import ForeignKeysError

client = ClientApp()

@client.train()
def train(message, context):
    import os
    view = client_view(context, "train")
    foreign = message.content["config"]["foreign"]
    try:
        client_view(context, keys=[foreign])
        refused = 0
    except ForeignKeysError:
        refused = 1
    array = view.to_numpy()
    metrics = {"num-examples": len(view), "sum": float(array.sum()), "refused": refused, "process": os.getpid()}
    content = {"arrays": ArrayRecord([array[:1]]), "metrics": MetricRecord(metrics)}
    who = ConfigRecord({"client": context.node_config["partition-id"], "keys": view.keys})
    return Message(RecordDict({**content, "who": who}), reply_to=message)
"""

SERVER = """
import json
from itertools import pairwise
from pathlib import Path
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import ServerApp

server = ServerApp()

@server.main()
def main(grid, context):
    import time
    while len(nodes := list(grid.get_node_ids())) < 2:
        time.sleep(0.1)
    found = []
    config = ConfigRecord({"foreign": context.run_config["foreign"]})
    for _ in range(2):
        messages = [Message(RecordDict({"config": config}), node, MessageType.TRAIN) for node in nodes]
        for reply in grid.send_and_receive(messages):
            if reply.has_error():
                found.append({"error": reply.error.reason})
                continue
            found.append({**dict(reply.content["metrics"]), **dict(reply.content["who"])})
    Path(context.run_config["report"]).write_text(json.dumps(found))
"""

PYPROJECT = """
[project]
name = "test-app"
version = "1.0.0"
description = ""
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "embstore"
[tool.flwr.app.components]
serverapp = "app_server:server"
clientapp = "app_client:client"
[tool.flwr.app.config]
foreign = ""
report = ""
[tool.flwr.app.config.embstore]
store = ""
manifest = ""
"""


@pytest.mark.slow
def test_two_clients_in_a_simulation(store, manifest, tmp_path, monkeypatch):
    """Two actors of Ray, of which each reads its own part, in two rounds; afterwards no process is left."""
    pytest.importorskip("flwr")
    pytest.importorskip("ray")
    monkeypatch.syspath_prepend(str(EXAMPLE))
    from simulation import simulator, started_here

    app = tmp_path / "app"
    app.mkdir()
    for name, text in {"app_client.py": APP, "app_server.py": SERVER, "pyproject.toml": PYPROJECT}.items():
        (app / name).write_text(text)
    parts = load_partition(manifest, store)
    report = tmp_path / "report.json"
    given = {
        "foreign": parts.keys_of(2)[0],
        "report": str(report),
        "embstore.store": str(store.path),
        "embstore.manifest": str(manifest),
    }
    config = tmp_path / "run.toml"
    config.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in given.items()))
    for name, value in with_path().items():
        monkeypatch.setenv(name, value)
    with simulator() as simulation:
        home = Path(simulation.environment["FLWR_HOME"])
        simulation.run(app, config, clients=2)
    assert report.exists(), simulation.said
    found = json.loads(report.read_text())
    assert [reply.get("error") for reply in found] == [None] * 4, found
    assert sorted(reply["client"] for reply in found) == [0, 0, 1, 1]
    for reply in found:
        view = parts.view(reply["client"], "train")
        assert reply["keys"] == view.keys
        assert reply["sum"] == pytest.approx(float(view.to_numpy().sum()))
        assert reply["refused"] == 1
        assert reply["process"] != os.getpid()
    assert started_here(home) == []
    assert not home.exists()
