"""What the store saved each node, and a client that withdraws."""

import numpy as np
import pytest

import embstore
from embstore import errors
from embstore_fl import Metrics, NodeMetrics, erase_client
from embstore_fl.datasets import VEGAS, Selection
from embstore_fl.errors import SharedKeysError
from embstore_fl.partitions import load_partition, save_partition
from tests.fl.conftest import SHAPE, Counting, node

torch = pytest.importorskip("torch")

from embstore_fl.a2v import A2VServer, VEGASDataset  # noqa: E402
from embstore_fl.datasets import FLDataset  # noqa: E402

ROW = 4 * SHAPE[0] * SHAPE[1]


@pytest.fixture
def stored(vegas, log, cache):
    """The store of all of VEGAS."""
    return embstore.embed(VEGAS(vegas), Counting(log), cache).path


# -- metrics -----------------------------------------------------------------------------------


def test_metrics_of_nodes_and_in_total(vegas, cache, log, caplog):
    class Server(A2VServer):
        def __init__(self):
            self.clients = []

        def make_ast_encoder(self, duration):
            return Counting(log)

    for run in ("first", "second"):
        server = Server()
        with caplog.at_level("INFO", "embstore"):
            caplog.clear()
            for number, classes in enumerate((["dog"], ["dog", "drum"])):
                dataset = VEGASDataset(root_dir=vegas, ast_cache_dir=cache, selected_classes=classes)
                server.load_node_embeddings(dataset, node=number)
                server.clients.append(node(dataset, number))
            server.embedding_metrics.log()
        metrics = server.embedding_metrics
        if run == "first":
            assert (metrics[0].hits, metrics[0].misses, metrics[0].extracted) == (0, 20, 20)
            assert (metrics[1].hits, metrics[1].misses, metrics[1].extracted) == (20, 20, 20)
            assert metrics[0].seconds_saved == 0
        else:
            assert [(metrics[n].hits, metrics[n].misses) for n in (0, 1)] == [(20, 0), (40, 0)]
            assert 0 < metrics[0].seconds_saved < metrics[1].seconds_saved
            assert metrics.total.seconds_saved == metrics[0].seconds_saved + metrics[1].seconds_saved
        assert [metrics[n].rows for n in (0, 1)] == [20, 40]
        assert metrics.total.nbytes == 60 * ROW
        lines = [record.getMessage() for record in caplog.records]
        assert lines[-3:] == metrics.lines()
        assert lines[-1].startswith("2 nodes: ")
        assert str(metrics) == "\n".join(metrics.lines())
    (use,) = embstore.Cache(cache).stats()
    assert use.usage.hits == 20 + 20 + 40  # the dogs, found by the second node; then all of both
    assert use.usage.encoded == 40


def test_metrics_add_up():
    metrics = Metrics()
    metrics.add(7, NodeMetrics(hits=1, seconds=0.5))
    metrics.add("7", NodeMetrics(hits=2, failed=1, seconds=0.25))
    assert metrics[7] == NodeMetrics(hits=3, failed=1, seconds=0.75)
    assert (len(metrics), list(metrics)) == (1, ["7"])
    assert Metrics().total == NodeMetrics()


# -- withdrawal --------------------------------------------------------------------------------


def nodes_of(vegas, path):
    """Return two nodes' datasets over the store."""
    found = [FLDataset(VEGAS(vegas), Selection.of(num_nodes=2, node_split_id=number)) for number in (0, 1)]
    for dataset in found:
        assert dataset.use(path) == []
    return found


def test_a_withdrawn_clients_rows_are_gone_from_the_files(vegas, stored):
    gone, stays = nodes_of(vegas, stored)
    store = embstore.open(stored)
    bits = [store[key].tobytes() for key in gone.keys]
    kept = {key: stays.audio_embs[key].clone() for key in stays.keys}
    view = store.select(keys=stays.keys)
    before = view.to_numpy()
    receipt = erase_client(store, gone)
    assert len(receipt.rows) == len(receipt.key_hashes) == 25
    assert receipt.files_rewritten
    on_disk = b"".join(path.read_bytes() for path in stored.rglob("*") if path.is_file())
    assert not any(row in on_disk for row in bits)
    np.testing.assert_array_equal(view.to_numpy(), before)
    assert all(torch.equal(stays.audio_embs[key], row) for key, row in kept.items())
    assert sorted(store) == sorted(stays.keys)
    assert embstore.verify(stored).ok
    assert gone.audio_embs.missing == gone.keys
    assert "audio_emb" not in gone[0]
    again = erase_client(stored, gone.keys)
    assert again.rows == ()


def test_manifests_of_the_others_stay_valid(vegas, stored, tmp_path):
    gone, stays = nodes_of(vegas, stored)
    store = embstore.open(stored)
    file = tmp_path / "manifest.json"
    views = {0: store.select(keys=gone.keys), 1: store.select(keys=stays.keys)}
    save_partition(views, file, scheme="two nodes", seed=42)
    erase_client(store, views[0])
    found = load_partition(file, embstore.open(stored))
    assert found[1].keys == stays.keys
    np.testing.assert_array_equal(found[1].to_numpy(), views[1].to_numpy())
    with pytest.raises(errors.StoreChangedError):
        views[0].to_numpy()
    with pytest.raises(errors.MissingKeysError):
        found[0]


def test_keys_that_another_client_has_too_are_not_erased(vegas, stored):
    dogs = FLDataset(VEGAS(vegas), Selection.of(selected_classes=["dog"]))
    both = FLDataset(VEGAS(vegas), Selection.of(selected_classes=["dog", "drum"]))
    with pytest.raises(SharedKeysError) as caught:
        erase_client(stored, both, others=[dogs])
    assert sorted(caught.value.keys) == sorted(dogs.keys)
    assert len(embstore.open(stored)) == 50
    own = [key for key in both.keys if key not in {*dogs.keys}]
    assert len(erase_client(stored, own, others=[dogs, []]).rows) == 20


def test_an_erase_through_a_writable_store_and_of_nothing(vegas, stored):
    with embstore.open(stored, "r+") as store:
        assert len(erase_client(store, ["video_00000:dog", "video_00000:dog"]).rows) == 1
        assert erase_client(store, []).rows == ()
    with pytest.raises(errors.KeyFormatError):
        erase_client(stored, [":dog"])
