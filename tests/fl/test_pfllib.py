"""PFLlib on a store: its `read_client_data`, in place of its own, in a stand-in that imports as PFLlib does."""

import importlib
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import embstore
from embstore.errors import MissingKeysError, ShapeError, StoreChangedError, UnknownClassError, UnknownFieldError

torch = pytest.importorskip("torch")
pytest.importorskip("embstore_fl")

from torch.utils.data import DataLoader, Subset, default_collate  # noqa: E402

import embstore_fl.clientdata  # noqa: E402
from embstore_fl import pfllib  # noqa: E402
from embstore_fl.errors import (  # noqa: E402
    ClientClassesError,
    ClientRowsError,
    FlcoreImportedError,
    OtherStoreError,
    PFLlibNotFoundError,
    UnknownClientError,
    UnknownDatasetError,
)
from embstore_fl.holdout import Held, held_out, ranks_of  # noqa: E402
from tests.conftest import CONFIG  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("system"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*use of fork\\(\\) may lead to deadlocks:DeprecationWarning"),
]

CLASSES = [f"class_{i}" for i in reversed(range(10))]
PARTS = [range(100), range(100, 150), [299, 150, 298, 151, *range(152, 298)]]


@pytest.fixture
def installed(store):
    return pfllib.install(store, PARTS, CLASSES)


def plain(data):
    """What PFLlib makes: a list of samples, each a row and a label of the same two tensors."""
    rows = data.view.store.array(dead="include")[data.view.rows].copy()
    x = torch.Tensor(rows).type(torch.float32)
    y = torch.Tensor(data.view.labels(CLASSES)).type(torch.int64)
    return list(zip(x, y, strict=True))


def same(ours, theirs):
    """Tell whether samples are the same, bit by bit and in dtype and order."""
    pairs = list(zip(ours, theirs, strict=True))
    return all(
        a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
        for one, other in pairs
        for a, b in zip(one, other, strict=True)
    )


# -- putting it in place ------------------------------------------------------------------------


def test_a_server_and_its_clients_read_the_store(store):
    pfllib.install(store, PARTS, CLASSES)
    server = importlib.import_module("flcore.servers.serverbase")
    clients = server.set_clients("anything", 3)
    assert [client.train_samples + client.test_samples for client in clients] == [100, 50, 150]
    assert server.read_client_data is pfllib.read_client_data
    x, y = clients[2].load_train_data()[0]
    assert (x.dtype, x.shape, y.dtype, y.shape) == (torch.float32, (8,), torch.int64, ())


def test_after_flcore_it_is_too_late(store):
    importlib.import_module("flcore.clients.clientbase")
    with pytest.raises(FlcoreImportedError, match="before importing flcore") as caught:
        pfllib.install(store, PARTS, CLASSES)
    assert "flcore.clients.clientbase" in caught.value.modules
    assert sys.modules["utils.data_utils"].read_client_data is not pfllib.read_client_data
    with pytest.raises(UnknownDatasetError):
        pfllib.read_client_data("anything", 0)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (None, r"sys\.path"),
        ("", "has no read_client_data"),
        ("import some_library_that_is_not_there", "some_library_that_is_not_there"),
    ],
    ids=["missing", "another", "broken"],
)
def test_without_pfllib_on_the_path(store, system, module, reason):
    file = system / "utils" / "data_utils.py"
    file.unlink()
    if module is not None:
        file.write_text(module)
    with pytest.raises(PFLlibNotFoundError, match=reason):
        pfllib.install(store, PARTS, CLASSES)


def test_nothing_is_put_in_place_if_something_is_wrong(store):
    with pytest.raises(UnknownClassError):
        pfllib.install(store, PARTS, CLASSES[:3])
    assert importlib.import_module("utils.data_utils").read_client_data is not pfllib.read_client_data


def test_the_head_of_a_model(installed):
    assert (installed.feature_dim, installed.num_classes, installed.num_clients) == (8, 10, 3)
    assert installed.classes == tuple(CLASSES)


def test_the_head_of_a_model_for_rows_of_tokens(path):
    store = embstore.open(path, "w-", config=CONFIG)
    store.append([f"{i}:c" for i in range(4)], np.zeros((4, 3, 5), np.float32))
    installed = pfllib.install(store, [range(4)], ["c"])
    assert installed.feature_dim == 15
    assert installed.train[0][0][0].shape == (3, 5)


# -- several data sets --------------------------------------------------------------------------


def test_several_data_sets_by_name(store):
    first = pfllib.install(store, PARTS, CLASSES, dataset="first")
    second = pfllib.install(store, PARTS[:1], CLASSES, dataset="second")
    assert pfllib.read_client_data("first", 1) is first.train[1]
    assert pfllib.read_client_data("second", 0) is second.train[0]
    with pytest.raises(UnknownDatasetError) as caught:
        pfllib.read_client_data("third", 0)
    assert caught.value.known == ("first", "second")
    with pytest.raises(UnknownClientError):
        pfllib.read_client_data("second", 1)


def test_one_without_a_name_answers_to_any_and_gives_way(store):
    pfllib.install(store, PARTS, CLASSES)
    again = pfllib.install(store, PARTS[:2], CLASSES)
    assert pfllib.read_client_data("anything", 1) is again.train[1]
    pfllib.install(store, PARTS, CLASSES, dataset="named")
    with pytest.raises(UnknownDatasetError):
        pfllib.read_client_data("anything", 1)


# -- what each client holds ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["views", "rows", "keys", "arrays", "mapping"])
def test_partitions_of_every_kind_are_the_same(store, installed, kind):
    views = [store.select(rows=part) for part in PARTS]
    given = {
        "views": views,
        "rows": [list(part) for part in PARTS],
        "keys": [view.keys for view in views],
        "arrays": [np.array(part) for part in PARTS],
        "mapping": {np.int64(client): view for client, view in enumerate(views)},
    }[kind]
    again = pfllib.install(store, given, CLASSES)
    for part, expected in ((again.train, installed.train), (again.test, installed.test)):
        assert list(part) == [0, 1, 2]
        for client, data in part.items():
            np.testing.assert_array_equal(data.view.rows, expected[client].view.rows)


def test_labels_are_places_in_the_classes_for_every_client(store, installed):
    for data in (*installed.train.values(), *installed.test.values()):
        assert [int(y) for _, y in data] == [CLASSES.index(name) for name in data.view.class_names]


@pytest.mark.parametrize("client", [3, -1, 10**9])
def test_an_unknown_client(installed, client):
    with pytest.raises(UnknownClientError) as caught:
        pfllib.read_client_data("x", client)
    assert caught.value.known == (0, 1, 2)


def test_classes_that_leave_a_client_without_labels(store):
    with pytest.raises(ClientClassesError, match="client 1") as caught:
        pfllib.install(store, [[0, 10, 20], [0, 1, 2]], ["class_0", "class_2"])
    assert (caught.value.client, caught.value.class_names) == (1, ("class_1",))
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.client) == (str(caught.value), 1)


@pytest.mark.parametrize("rows", [[], [5], [5, 5]])
def test_a_client_needs_two_rows(store, rows):
    with pytest.raises(ClientRowsError, match="client 1") as caught:
        pfllib.install(store, [[0, 1], rows], CLASSES)
    assert caught.value.found == len(set(rows))


@pytest.mark.parametrize("test", [0, 1, -0.1, 1.5, math.nan])
def test_a_share_that_is_none(store, test):
    with pytest.raises(ValueError, match="test"):
        pfllib.install(store, PARTS, CLASSES, test=test)


def test_a_mask_is_not_taken_for_row_numbers(store):
    with pytest.raises(TypeError, match="client 0"):
        pfllib.install(store, [np.arange(300) < 5], CLASSES)


def test_a_view_of_another_store(store, tmp_path):
    with embstore.open(tmp_path / "other.zarr", "w-", config=CONFIG) as other:
        other.append(["a:class_0", "b:class_0"], np.zeros((2, 8), np.float32))
        with pytest.raises(OtherStoreError, match="client 1"):
            pfllib.install(store, [[0, 1], other.select()], CLASSES)


def test_keys_that_are_not_stored(store):
    with pytest.raises(MissingKeysError):
        pfllib.install(store, [["file_0000:class_0", "nowhere:class_0"]], CLASSES)


def test_a_ragged_field(path):
    store = embstore.open(path, "w-", config=CONFIG)
    store.append(["a:c", "b:c"], embstore.Ragged(np.zeros((7, 3), np.float32), np.array([0, 2, 7])))
    with pytest.raises(ShapeError, match="ragged"):
        pfllib.install(store, [[0, 1]], ["c"])


def test_one_of_several_fields(path):
    store = embstore.open(path, "w-", config=CONFIG)
    values = {"a": np.zeros((4, 3), np.float32), "b": np.arange(8, dtype=np.float16).reshape(4, 2)}
    store.append([f"{i}:c" for i in range(4)], values)
    with pytest.raises(UnknownFieldError):
        pfllib.install(store, [range(4)], ["c"], field="nope")
    installed = pfllib.install(store, [range(4)], ["c"], field="b")
    assert installed.feature_dim == 2
    row = installed.test[0].view.rows[0]
    assert torch.equal(installed.test[0][0][0], torch.tensor([2.0 * row, 2.0 * row + 1]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_rows_of_any_dtype_come_as_float32(path, dtype):
    base = torch.arange(24, dtype=dtype).reshape(8, 3) / 4
    store = embstore.open(path, "w-", config=CONFIG)
    store.append([f"{i}:c" for i in range(8)], base)
    data = pfllib.install(store, [range(8)], ["c"]).train[0]
    rows = torch.from_numpy(data.view.rows.copy())
    x, y = next(iter(DataLoader(data, batch_size=len(data))))
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert torch.equal(x, base[rows].float())
    assert torch.equal(data[0][0], base[rows[0]].float())


# -- who is for testing -------------------------------------------------------------------------


def test_each_class_of_a_client_is_split_in_the_same_share(installed):
    for client, part in enumerate(PARTS):
        train, test = installed.train[client], installed.test[client]
        assert sorted([*train.view.rows, *test.view.rows]) == sorted(part)
        assert len(test) == round(len(part) / 4)
        for name in CLASSES:
            held, trained = test.view.class_names.count(name), train.view.class_names.count(name)
            assert abs(held - (held + trained) / 4) < 1


def test_a_seed_decides(store, installed):
    again = pfllib.install(store, PARTS, CLASSES, seed=0)
    other = pfllib.install(store, PARTS, CLASSES, seed=1)
    np.testing.assert_array_equal(installed.test[0].view.rows, again.test[0].view.rows)
    assert installed.test[0].view.rows.tolist() != other.test[0].view.rows.tolist()


def test_a_split_is_of_keys_and_outlives_other_clients_rows_and_compactions(store, installed):
    before = set(installed.test[1].view.keys)
    own = installed.train[1].view.keys + installed.test[1].view.keys
    store.delete([key for key in store if key not in own][:80])
    store.append([f"new_{i}:class_0" for i in range(20)], np.ones((20, 8), np.float32), columns={"split": "train"})
    store.compact()
    again = pfllib.install(store, {1: own, 7: [f"new_{i}:class_0" for i in range(20)]}, CLASSES)
    assert set(again.test[1].view.keys) == before
    assert len(again.test[7]) == 5


def test_no_sample_is_for_testing_here_and_to_train_on_there(store):
    rng = np.random.default_rng(3)
    for seed in range(5):
        parts = [rng.choice(300, size=size, replace=False) for size in (200, 100, 250, 60)]
        installed = pfllib.install(store, parts, CLASSES, seed=seed)
        train = {row for data in installed.train.values() for row in data.view.rows.tolist()}
        test = {row for data in installed.test.values() for row in data.view.rows.tolist()}
        assert not train & test
        assert len(train | test) == len({int(row) for part in parts for row in part})


def test_a_row_that_a_client_holds_twice_is_on_one_side(store):
    rows = [*range(40), *range(40)]
    installed = pfllib.install(store, [rows], CLASSES)
    train, test = installed.train[0].view.rows.tolist(), installed.test[0].view.rows.tolist()
    assert not set(train) & set(test)
    assert sorted(train + test) == sorted(rows)
    assert len(test) == 20


@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize("test", [0.001, 0.25, 0.5, 0.999])
def test_a_client_has_always_both(store, count, test):
    installed = pfllib.install(store, [range(count)], CLASSES, test=test)  # as many classes as rows
    assert 1 <= len(installed.test[0]) < count
    assert len(installed.train[0]) + len(installed.test[0]) == count


def test_ranks_are_even_and_of_the_seed():
    hashes = np.random.default_rng(0).integers(2**64, size=(40_000, 2), dtype=np.uint64)
    one, other = ranks_of(hashes, 0), ranks_of(hashes, 1)
    low = 2**62  # a fourth of the range
    assert abs((one < low).mean() - 0.25) < 0.01
    assert abs(((one < low) & (other < low)).mean() - 0.0625) < 0.01


def test_shares_are_made_up_for_where_others_have_decided():
    """All that the second shares is the first's to train on: its tests come from what is its own."""
    ranks = np.arange(40, dtype=np.uint64)
    first = Held(rows=np.arange(20), labels=np.zeros(20, np.int64), ranks=ranks[:20])
    second = Held(rows=np.arange(10, 40), labels=np.zeros(30, np.int64), ranks=ranks[10:])
    found = held_out({"a": first, "b": second}, 0.3)
    assert np.flatnonzero(found["a"]).tolist() == [0, 1, 2, 3, 4, 5]
    assert (np.flatnonzero(found["b"]) + 10).tolist() == list(range(20, 29))


# -- a sequence, as PFLlib's lists --------------------------------------------------------------


def test_a_call_costs_nothing_and_reads_nothing(installed, monkeypatch):
    monkeypatch.setattr(embstore_fl.clientdata, "_Rows", None)
    assert pfllib.read_client_data("x", 0) is pfllib.read_client_data("x", 0)
    assert len(pfllib.read_client_data("x", 0, is_train=False)) == 25
    assert len(pfllib.read_client_data("x", np.int64(2), few_shot=2)) == 20
    assert len(pfllib.read_client_data("x", 0)[10:20]) == 10


def test_samples_are_those_of_a_list(installed):
    data = installed.train[2]
    expected = plain(data)
    assert same(data, expected)
    assert same([data[i] for i in range(len(data))], expected)
    assert same([data[-1], data[-len(data)], data[np.int64(3)]], [expected[-1], expected[0], expected[3]])
    for index in (len(data), -len(data) - 1):
        with pytest.raises(IndexError):
            data[index]
    with pytest.raises(TypeError):
        data["a"]


@pytest.mark.parametrize(
    "part",
    [
        slice(-22, None),  # FedFomo's validation
        slice(None, -22),
        slice(5, 95),  # FedALA's
        slice(-0, None),
        slice(None, -0),
        slice(90, 1000),
        slice(None, None, -3),
        slice(50, 10),
    ],
    ids=str,
)
def test_slices_are_those_of_a_list(installed, part):
    data = installed.train[2]
    assert same(data[part], plain(data)[part])
    assert len(data[part]) == len(plain(data)[part])


def test_slices_of_slices(installed):
    data = installed.train[2]
    assert same(data[10:-10][-20:][::2], plain(data)[10:-10][-20:][::2])


def test_iterating_goes_over_the_end_of_a_block(installed, monkeypatch):
    monkeypatch.setattr(embstore_fl.clientdata, "_BLOCK", 7)
    data = installed.train[0]
    assert same(iter(data), plain(data))
    assert len(list(data[:7])) == 7
    assert list(data[:0]) == []


@pytest.mark.parametrize("count", [1, 3, 1000])
def test_few_shot_takes_the_first_of_each_label(installed, count):
    data = pfllib.read_client_data("x", 2, few_shot=count)
    seen, expected = {}, []
    for sample in plain(installed.train[2]):  # as PFLlib counts them
        label = sample[1].item()
        if seen.get(label, 0) < count:
            expected.append(sample)
            seen[label] = seen.get(label, 0) + 1
    assert same(data, expected)
    assert pfllib.read_client_data("x", 2, few_shot=count) is data
    assert pfllib.read_client_data("x", 2, is_train=False, few_shot=count) is installed.test[2]


def test_samples_are_the_callers_own(installed, store):
    before = store.array().copy()
    data = installed.train[0]
    x, y = data[0]
    x.fill_(7)
    y.fill_(7)
    bx, by = next(iter(DataLoader(data, batch_size=10)))
    bx.zero_()
    by.fill_(9)
    for x, y in data[:5]:
        x.fill_(3)
        y.fill_(3)
    assert same(data, plain(data))
    np.testing.assert_array_equal(store.array(), before)


def test_a_pickle_is_where_the_store_is_and_row_numbers(installed):
    data = installed.train[0]
    again = pickle.loads(pickle.dumps(data))
    assert same(again, plain(data))
    assert len(pickle.dumps(data)) < 3000
    assert same([pickle.loads(pickle.dumps(data[3]))], [data[3]])


def test_rows_that_were_erased_are_not_read(store, installed):
    data, other = installed.train[0], installed.train[1]
    store.erase(data.view.keys[:1])
    with pytest.raises(StoreChangedError):
        data[0]
    with pytest.raises(StoreChangedError):
        next(iter(DataLoader(data, batch_size=4)))
    assert same(other, plain(other))


def test_rows_that_another_program_erased_are_not_read(store, installed):
    """What is mapped by the first read are blanked rows by then."""
    data = installed.train[0]
    with embstore.open(store.path, "r+") as other:
        other.erase(data.view.keys[:1])
    for _ in range(3):
        with pytest.raises(StoreChangedError):
            data[0]


# -- in a DataLoader ----------------------------------------------------------------------------


@pytest.fixture
def gathers(monkeypatch):
    """How many rows each gather takes."""
    made = []

    def counted(self, rows):
        made.append(len(rows))
        return take(self, rows)

    take = embstore_fl.clientdata._Rows.take
    monkeypatch.setattr(embstore_fl.clientdata._Rows, "take", counted)
    return made


@pytest.mark.parametrize("mapping", ["auto", "never"])
@pytest.mark.parametrize("options", [{"drop_last": True, "shuffle": True}, {"drop_last": False}], ids=["train", "test"])
def test_batches_are_those_of_a_list(path, store, options, mapping):
    """The same containers, dtypes and bits in the same order, and as many numbers drawn from the generator."""
    data = pfllib.install(embstore.open(path, mapping=mapping), PARTS, CLASSES).train[2]
    torch.manual_seed(4)
    ours = [*DataLoader(data, 10, **options), torch.rand(1)]
    torch.manual_seed(4)
    theirs = [*DataLoader(plain(data), 10, **options), torch.rand(1)]
    assert torch.equal(ours.pop(), theirs.pop())
    assert {type(batch) for batch in ours} == {type(batch) for batch in theirs} == {list}
    assert same(ours, theirs)
    assert all(part.is_contiguous() for batch in ours for part in batch)


def test_a_batch_is_one_gather(installed, gathers):
    data = installed.train[0]
    for _ in DataLoader(data, batch_size=30, shuffle=True):
        pass
    for _ in DataLoader(Subset(data, range(40)), batch_size=20):
        pass
    assert gathers == [30, 30, 15, 20, 20]


@pytest.mark.parametrize("small", [0, 2**30], ids=["by the reader", "by NumPy"])
def test_small_and_large_batches_are_alike(installed, monkeypatch, small):
    monkeypatch.setattr(embstore_fl.clientdata, "_SMALL", small)
    data = installed.train[2]
    assert same(DataLoader(data, 16), DataLoader(plain(data), 16))


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers(installed, context):
    data = installed.train[2]
    loader = DataLoader(data, 32, num_workers=2, multiprocessing_context=context)
    assert same(loader, DataLoader(plain(data), 32))


def test_a_collate_function_of_ones_own_gets_samples(installed):
    data = installed.train[0]

    def collate(samples):
        assert all(isinstance(sample, tuple) for sample in samples)
        assert len(samples[1:3]) == 2
        with pytest.raises(IndexError):
            samples[4]
        return default_collate([*reversed(samples)])

    x, y = next(iter(DataLoader(data, batch_size=4, collate_fn=collate)))
    assert same([(x, y)], [default_collate(plain(data)[:4][::-1])])


def test_samples_of_a_batch_can_be_pickled(installed):
    batch = installed.train[0].__getitems__([3, 1])
    assert same(pickle.loads(pickle.dumps(list(batch))), [plain(installed.train[0])[i] for i in (3, 1)])


# -- PFLlib itself ------------------------------------------------------------------------------


@pytest.mark.skipif("EMBSTORE_PFLLIB" not in os.environ, reason="set EMBSTORE_PFLLIB to a checkout of PFLlib")
def test_the_losses_of_pfllib_itself_are_the_same(tmp_path):
    root = Path(__file__).parents[2]
    script = root / "benchmarks" / "pfllib_algorithms.py"
    asked = ["--only", "FedAvg", "FedFomo", "FedALA", "--results", str(tmp_path / "results.json")]
    done = subprocess.run(
        [sys.executable, script, os.environ["EMBSTORE_PFLLIB"], *asked],
        env={**os.environ, "PYTHONPATH": str(root / "integrations")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "3 identical"
