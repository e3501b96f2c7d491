"""The store in PyTorch: batches, labels, workers, tensors that are the caller's own."""

import pickle
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

import embstore
import embstore.errors as errors
from embstore._outputs import tensors
from tests._helpers.crash import files_in, python, run_in_child
from tests._helpers.damage import flip
from tests._helpers.kinds import every_way

torch = pytest.importorskip("torch")

from torch.utils.data import (  # noqa: E402
    ConcatDataset,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Subset,
    default_collate,
    random_split,
)

import embstore.torch  # noqa: E402
from embstore.torch import EmbeddingDataset  # noqa: E402

pytestmark = [
    # torch on a machine of one core, and Python >= 3.12 on forking beside torch's own threads
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*use of fork\\(\\) may lead to deadlocks:DeprecationWarning"),
]

CLASSES = [f"class_{i}" for i in reversed(range(10))]
N = 300


def expected_labels(keys):
    return torch.tensor([CLASSES.index(key.partition(":")[2]) for key in keys])


def joined(lists):
    return list(chain.from_iterable(lists))


@pytest.fixture
def gathers(monkeypatch):
    """The row numbers of each gather that a dataset makes, in turn."""
    made = []

    def counted(snapshot, name, rows):
        made.append(rows.tolist())
        return read_field(snapshot, name, rows)

    read_field = tensors.read_field
    monkeypatch.setattr(tensors, "read_field", counted)
    return made


# -- batches ----------------------------------------------------------------------------------


@every_way
@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_is_the_store(make, path, options, workers):
    _, keys, rows = make(**options)
    view = embstore.open(path, **options).select()
    batches = list(DataLoader(EmbeddingDataset(view, classes=CLASSES), batch_size=64, num_workers=workers))
    assert [len(x) for x, _ in batches] == [64, 64, 64, 64, 44]
    assert torch.equal(torch.cat([x for x, _ in batches]), torch.from_numpy(rows))
    assert torch.equal(torch.cat([y for _, y in batches]), expected_labels(keys))
    assert batches[0][0].dtype == torch.float32
    assert batches[0][1].dtype == torch.int64


def test_a_batch_is_one_gather(make, gathers):
    store, _, _ = make()
    for _ in DataLoader(EmbeddingDataset(store.select(), classes=CLASSES), batch_size=100, shuffle=True):
        pass
    assert [len(rows) for rows in gathers] == [100, 100, 100]
    assert sorted(joined(gathers)) == list(range(N))


def test_an_order_comes_from_the_generator(make, gathers):
    store, _, rows = make()
    dataset = EmbeddingDataset(store.select(), classes=CLASSES)

    def epoch(seed):
        generator = torch.Generator().manual_seed(seed)
        return torch.cat([x for x, _ in DataLoader(dataset, batch_size=64, shuffle=True, generator=generator)])

    first = epoch(1)
    order = joined(gathers)
    assert order != sorted(order)
    assert torch.equal(first, torch.from_numpy(rows[order]))
    assert torch.equal(first, epoch(1))
    assert not torch.equal(first, epoch(2))


def test_a_view_with_repeats_and_its_order(make):
    store, keys, _ = make()
    chosen = [keys[7], keys[3], keys[7], keys[299]]
    batch = next(iter(DataLoader(EmbeddingDataset(store.select(keys=chosen), classes=CLASSES), batch_size=4)))
    assert torch.equal(batch[0], torch.from_numpy(store[chosen]))
    assert torch.equal(batch[1], expected_labels(chosen))


def test_without_classes_a_sample_is_a_tuple_of_one(make):
    store, _, rows = make()
    dataset = EmbeddingDataset(store.select())
    assert dataset.classes is None
    assert dataset.labels is None
    assert dataset.class_to_idx == {}
    (x,) = dataset[3]
    assert torch.equal(x, torch.from_numpy(rows[3]))
    (x,) = next(iter(DataLoader(dataset, batch_size=5)))
    assert torch.equal(x, torch.from_numpy(rows[:5]))


def test_a_store_stands_for_all_of_its_rows(make):
    store, keys, _ = make()
    store.delete([keys[0]])
    dataset = EmbeddingDataset(store, classes=CLASSES)
    assert len(dataset) == N - 1
    assert torch.equal(dataset.labels, expected_labels(keys[1:]))


def test_indices(make):
    store, _, rows = make()
    dataset = EmbeddingDataset(store.select(), classes=CLASSES)
    assert len(dataset) == N
    x, label = dataset[-1]
    assert torch.equal(x, torch.from_numpy(rows[-1]))
    assert int(label) == CLASSES.index("class_9")
    for index in (N, -N - 1):
        with pytest.raises(IndexError):
            dataset[index]
        with pytest.raises(IndexError):
            dataset.__getitems__([0, index])
    assert len(list(dataset)) == N  # the protocol that ends at an IndexError


def test_classes_labels_and_places_agree(make):
    store, keys, _ = make()
    dataset = EmbeddingDataset(store.select(), classes=CLASSES)
    assert dataset.classes == CLASSES
    assert dataset.class_to_idx == {name: i for i, name in enumerate(CLASSES)}
    assert torch.equal(dataset.labels, expected_labels(keys))
    dataset.labels[:] = 0  # a copy
    assert torch.equal(dataset.labels, expected_labels(keys))
    assert torch.equal(dataset[5][1], expected_labels(keys)[5])


def test_labels_agree_between_stores_of_another_class_order(tmp_path):
    found = {}
    for name, keys in {"a": ["1:cat", "2:dog", "3:owl"], "b": ["3:owl", "2:dog", "1:cat"]}.items():
        store = embstore.open(tmp_path / name, "w-", config={"n": 1})
        store.append(keys, np.ones((3, 2), np.float32))
        labels = EmbeddingDataset(store.select(), classes=["owl", "cat", "dog", "unseen"]).labels
        found[name] = dict(zip(keys, labels.tolist(), strict=True))
    assert found["a"] == found["b"] == {"1:cat": 1, "2:dog": 2, "3:owl": 0}


def test_a_class_that_is_not_in_the_list(make):
    store, _, _ = make()
    with pytest.raises(errors.UnknownClassError) as caught:
        EmbeddingDataset(store.select(), classes=CLASSES[:8])
    assert set(caught.value.class_names) == {"class_0", "class_1"}
    assert caught.value.available == tuple(CLASSES[:8])
    assert len(EmbeddingDataset(store.select(classes=CLASSES[:8]), classes=CLASSES[:8])) == 240
    with pytest.raises(ValueError, match="more than once"):
        EmbeddingDataset(store.select(), classes=[*CLASSES, "class_0"])


# -- mappings ---------------------------------------------------------------------------------


@pytest.fixture
def wide(path, rng):
    """A store of two fields and three columns."""
    store = embstore.open(path, "w-", config={"n": 1})
    keys = [f"f{i}:c{i % 2}" for i in range(20)]
    fields = {
        "mean": rng.standard_normal((20, 4)).astype(np.float32),
        "tokens": rng.standard_normal((20, 3, 2)).astype(np.float16),
    }
    store.append(
        keys, fields, columns={"split": ["train", "test"] * 10, "score": np.arange(20.0), "take": np.arange(20)}
    )
    return store, keys, fields


def test_a_mapping_of_fields_and_columns(wide):
    store, keys, fields = wide
    names = ["key", "file_id", "class_name", "split", "score", "take"]
    dataset = EmbeddingDataset(store.select(), classes=["c0", "c1"], fields=["mean", "tokens"], columns=names)
    batch = next(iter(DataLoader(dataset, batch_size=4, sampler=[3, 0, 5, 4])))
    order = [3, 0, 5, 4]
    assert set(batch) == {"mean", "tokens", "label", *names}
    assert torch.equal(batch["mean"], torch.from_numpy(fields["mean"][order]))
    assert torch.equal(batch["tokens"], torch.from_numpy(fields["tokens"][order]))
    assert batch["key"] == [keys[i] for i in order]
    assert batch["file_id"] == ["f3", "f0", "f5", "f4"]
    assert batch["class_name"] == ["c1", "c0", "c1", "c0"]
    assert batch["split"] == ["test", "train", "test", "train"]
    assert torch.equal(batch["score"], torch.tensor([3.0, 0.0, 5.0, 4.0], dtype=torch.float64))
    assert torch.equal(batch["take"], torch.tensor(order))
    assert torch.equal(batch["label"], torch.tensor([1, 0, 1, 0]))


def test_a_mapping_gathers_each_field_once_a_batch(wide, gathers):
    store, _, _ = wide
    dataset = EmbeddingDataset(store.select(), fields=["mean", "tokens"])
    assert set(next(iter(DataLoader(dataset, batch_size=20)))) == {"mean", "tokens"}
    assert len(gathers) == 2


def test_a_mapping_sample(wide):
    store, keys, fields = wide
    sample = EmbeddingDataset(store.select(), fields=["mean"], columns=["key", "score"])[2]
    assert sample["key"] == keys[2]
    assert float(sample["score"]) == 2.0
    assert torch.equal(sample["mean"], torch.from_numpy(fields["mean"][2]))
    assert "label" not in sample


def test_the_primary_field_is_read_unless_another_is_named(wide):
    store, _, _ = wide
    assert (EmbeddingDataset(store.select())[0][0].numpy() == store.select().to_numpy()[0]).all()
    with pytest.raises(errors.UnknownFieldError):
        EmbeddingDataset(store.select(), fields=["other"])
    with pytest.raises(errors.UnknownColumnError) as caught:
        EmbeddingDataset(store.select(), fields=["mean"], columns=["other"])
    assert caught.value.column == "other"


# -- dtypes -----------------------------------------------------------------------------------


def test_dtype_converts_embeddings_alone(wide):
    store, _, fields = wide
    dataset = EmbeddingDataset(
        store.select(), fields=["mean", "tokens"], columns=["score"], classes=["c0", "c1"], dtype=torch.bfloat16
    )
    batch = next(iter(DataLoader(dataset, batch_size=20)))
    assert torch.equal(batch["mean"], torch.from_numpy(fields["mean"]).to(torch.bfloat16))
    assert batch["tokens"].dtype == torch.bfloat16
    assert batch["score"].dtype == torch.float64
    assert batch["label"].dtype == torch.int64


@pytest.mark.parametrize("mapping", ["auto", "never"])
def test_bfloat16_comes_as_what_it_is(path, mapping):
    values = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    with embstore.open(path, "w-", config={"n": 1}) as store:
        store.append([f"f{i}:c" for i in range(50)], values)
        assert store.fields["embedding"].dtype == "bfloat16"
    store = embstore.open(path, mapping=mapping)
    (batch,) = next(iter(DataLoader(EmbeddingDataset(store.select()), batch_size=50)))
    for found in (batch, store.tensor(), store.select().to_torch()):
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, values)
    np.testing.assert_array_equal(store.select().to_numpy(), values.float().numpy())
    assert torch.equal(EmbeddingDataset(store.select(), dtype=torch.float32)[7][0], values[7].float())


# -- what surrounds a dataset -----------------------------------------------------------------


@pytest.mark.parametrize("persistent", [False, True], ids=["", "persistent"])
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers(make, context, persistent):
    store, keys, rows = make()
    dataset = EmbeddingDataset(store.select(rows=range(10, N)), classes=CLASSES, columns=["key", "split"])
    loader = DataLoader(
        dataset, batch_size=64, num_workers=2, multiprocessing_context=context, persistent_workers=persistent
    )
    for _ in range(2 if persistent else 1):
        batches = list(loader)
        assert joined(batch["key"] for batch in batches) == keys[10:]
        assert torch.equal(torch.cat([batch["embedding"] for batch in batches]), torch.from_numpy(rows[10:]))
        assert torch.equal(torch.cat([batch["label"] for batch in batches]), expected_labels(keys[10:]))


def test_a_collate_function_of_ones_own_in_workers(make):
    store, _, rows = make()
    loader = DataLoader(
        EmbeddingDataset(store.select(), classes=CLASSES),
        batch_size=100,
        num_workers=1,
        multiprocessing_context="fork",
        collate_fn=lambda samples: torch.stack([sample[0] for sample in samples]),
    )
    assert torch.equal(torch.cat(list(loader)), torch.from_numpy(rows))


def test_two_ranks_share_the_rows(make):
    store, keys, _ = make()
    dataset = EmbeddingDataset(store.select(), columns=["key"])
    seen = []
    for rank in range(2):
        sampler = DistributedSampler(dataset, num_replicas=2, rank=rank, seed=3)
        sampler.set_epoch(1)
        seen.append(joined(batch["key"] for batch in DataLoader(dataset, batch_size=32, sampler=sampler)))
    assert len(seen[0]) == len(seen[1]) == N // 2
    assert sorted(seen[0] + seen[1]) == sorted(keys)


def test_a_collate_function_gets_a_list_of_samples(make):
    store, keys, rows = make()
    dataset = EmbeddingDataset(store.select(), classes=CLASSES)

    def collate(samples):
        assert len(samples) == 4
        assert all(isinstance(sample, tuple) for sample in samples)
        assert torch.equal(samples[-1][0], torch.from_numpy(rows[3]))
        with pytest.raises(IndexError):
            samples[4]
        with pytest.raises(IndexError):
            samples[-5]
        x, y = zip(*samples, strict=True)
        return torch.stack(x), torch.stack(y)

    x, y = next(iter(DataLoader(dataset, batch_size=4, collate_fn=collate)))
    assert torch.equal(x, torch.from_numpy(rows[:4]))
    assert torch.equal(y, expected_labels(keys[:4]))


@pytest.mark.parametrize(
    ("pick", "places"),
    [
        (lambda samples: [*reversed(samples)], [3, 2, 1, 0]),
        (lambda samples: [s for s in samples if int(s[1]) != CLASSES.index("class_1")], [0, 2, 3]),
        (lambda samples: samples[1:3], [1, 2]),
    ],
    ids=["reversed", "filtered", "sliced"],
)
def test_a_collate_function_may_pick_samples(make, pick, places):
    """The default collate takes a batch whole only if it is whole."""
    store, _, rows = make()
    dataset = EmbeddingDataset(store.select(), classes=CLASSES)
    loader = DataLoader(dataset, batch_size=4, collate_fn=lambda samples: default_collate(pick(samples)))
    assert torch.equal(next(iter(loader))[0], torch.from_numpy(rows[places]))


@pytest.mark.parametrize("as_mapping", [False, True], ids=["tuples", "mappings"])
def test_subsets_splits_and_concatenations(make, gathers, as_mapping):
    store, keys, rows = make()
    options = {"columns": ["key"]} if as_mapping else {}
    dataset = EmbeddingDataset(store.select(), classes=CLASSES, **options)

    def epoch(data, **loading):
        batches = list(DataLoader(data, batch_size=16, **loading))
        if not as_mapping:
            return [torch.cat(parts) for parts in zip(*batches, strict=True)]
        x, y = (torch.cat([batch[name] for batch in batches]) for name in ("embedding", "label"))
        assert torch.equal(expected_labels(joined(batch["key"] for batch in batches)), y)
        return x, y

    def check(data, order, **loading):
        x, y = epoch(data, **loading)
        assert torch.equal(x, torch.from_numpy(rows[order]))
        assert torch.equal(y, expected_labels([keys[i] for i in order]))

    check(Subset(dataset, [5, 2, 299, 5]), [5, 2, 299, 5])
    assert gathers == [[5, 2, 299, 5]]  # a subset keeps the gather of a batch
    check(Subset(Subset(dataset, range(100, 200)), [3, 1]), [103, 101])
    train, test = random_split(dataset, [200, 100], generator=torch.Generator().manual_seed(0))
    check(train, list(train.indices))
    check(test, list(test.indices))
    assert sorted([*train.indices, *test.indices]) == list(range(N))
    halves = ConcatDataset([Subset(dataset, range(10)), Subset(dataset, range(50, 70))])
    check(halves, [*range(10), *range(50, 70)])
    check(halves, [*range(10), *range(50, 70)], num_workers=1, multiprocessing_context="fork")


def test_without_batches(make):
    """With batch_size=None, samples come one by one."""
    store, _, rows = make()
    samples = list(DataLoader(EmbeddingDataset(store.select(), classes=CLASSES), batch_size=None))
    assert len(samples) == N
    assert torch.equal(samples[9][0], torch.from_numpy(rows[9]))
    sampler = RandomSampler(range(N), replacement=True, num_samples=7)
    assert len(list(DataLoader(EmbeddingDataset(store.select()), batch_size=None, sampler=sampler))) == 7


def test_a_pickled_dataset_is_small_and_the_same(path):
    with embstore.open(path, "w-", config={"n": 1}) as store:
        store.append([f"f{i}:c{i % 3}" for i in range(12_000)], np.arange(24_000, dtype=np.float32).reshape(-1, 2))
    store = embstore.open(path)
    dataset = EmbeddingDataset(store.select(rows=range(1000, 11_000)), classes=["c0", "c1", "c2"], columns=["key"])
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 3000
    again = pickle.loads(pickled)
    assert len(again) == 10_000
    assert torch.equal(again.labels, dataset.labels)
    assert again[-1]["key"] == "f10999:c1"
    assert torch.equal(again[-1]["embedding"], torch.tensor([21998.0, 21999.0]))
    assert len(pickle.dumps(store)) < 1000


def test_samples_can_be_pickled(make):
    store, _, rows = make()
    batch = EmbeddingDataset(store.select(), classes=CLASSES).__getitems__(range(200))
    assert torch.equal(pickle.loads(pickle.dumps(batch[3]))[0], torch.from_numpy(rows[3]))


@pytest.mark.parametrize("mapping", ["auto", "never"])
@pytest.mark.parametrize("order", [range(N), [*range(0, N, 2)], [4]], ids=["neighbours", "scattered", "one"])
def test_batches_are_the_callers_own(make, path, order, mapping):
    _, _, rows = make()
    store = embstore.open(path, mapping=mapping)
    dataset = EmbeddingDataset(store.select(rows=order), classes=CLASSES)
    loader = DataLoader(dataset, batch_size=len(order))
    x, y = next(iter(loader))
    x.fill_(7)
    y.fill_(7)
    again, labels = next(iter(loader))
    assert torch.equal(again, torch.from_numpy(rows[list(order)]))
    assert torch.equal(labels, dataset.labels)
    np.testing.assert_array_equal(store.array(), rows)
    assert embstore.verify(path).ok


# -- tensors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mapping", ["auto", "never"])
def test_a_tensor_is_the_column(make, path, mapping):
    store, keys, rows = make()
    assert torch.equal(embstore.open(path, mapping=mapping).tensor(), torch.from_numpy(rows))
    store.delete(keys[:1])
    with pytest.raises(errors.DeadRowsError):
        store.tensor()
    assert len(store.tensor(dead="include")) == N


@pytest.mark.parametrize("mapping", ["auto", "never"])
@pytest.mark.parametrize("check", ["tail", "touched", "all"])
def test_a_tensor_of_many_chunks_is_checked(path, check, mapping):
    """A private map had no checksums, and sound chunks were compared with zeros."""
    rows = np.random.default_rng(0).standard_normal((1000, 16)).astype(np.float32)
    with embstore.open(path, "w-", config={}, chunk_bytes=4096) as store:
        store.append([f"{i}:c" for i in range(1000)], rows)
    for _ in range(2):
        tensor = embstore.open(path, mapping=mapping, check=check).tensor()
        assert torch.equal(tensor, torch.from_numpy(rows))
        tensor += 1  # reaches neither the file nor another tensor
    flip(path / "embedding" / "c.2.0", place=100)
    if check != "tail":
        with pytest.raises(errors.CorruptStoreError, match=r"c\.2\.0"):
            embstore.open(path, mapping=mapping, check=check).tensor()


@every_way
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_operations_in_place_neither_crash_nor_reach_the_file(make, path, dtype, options):
    _, _, rows = make(dtype=dtype, **options)
    before = files_in(path)

    def work():
        store = embstore.open(path, **options)
        tensor = store.tensor()
        tensor.mul_(2).add_(1)
        tensor[5] = 0
        expected = rows * np.asarray(2, dtype) + np.asarray(1, dtype)
        expected[5] = 0
        np.testing.assert_array_equal(tensor.numpy(), expected)
        np.testing.assert_array_equal(store.array(), rows)
        np.testing.assert_array_equal(store.tensor().numpy(), rows)
        np.testing.assert_array_equal(store.take(range(N)), rows)

    assert run_in_child(work) == 0
    assert embstore.verify(path).ok
    np.testing.assert_array_equal(embstore.open(path).array(), rows)
    assert files_in(path) == before


def test_what_was_handed_out_outlives_the_store(make, path):
    store, _, rows = make()
    array, tensor, view = store.array(), store.tensor(), store.select().to_torch()
    row = store["file_0003:class_3"]
    store.close()
    del store
    np.testing.assert_array_equal(array, rows)
    np.testing.assert_array_equal(row, rows[3])
    for found in (tensor, view):
        assert torch.equal(found, torch.from_numpy(rows))
    tensor.zero_()
    np.testing.assert_array_equal(array, rows)


def test_a_tensor_keeps_its_rows_while_the_store_grows(make):
    store, _, rows = make()
    tensor = store.tensor()
    store.append(["late:class_0"], np.zeros((1, 8), np.float32), columns={"split": "train"})
    assert torch.equal(tensor, torch.from_numpy(rows))
    assert store.tensor().shape == (N + 1, 8)


def test_to_torch(make):
    store, _, rows = make()
    view = store.select(rows=[9, 2])
    assert torch.equal(view.to_torch(), torch.from_numpy(rows[[9, 2]]))
    half = view.to_torch(dtype=torch.float16, device="cpu")
    assert torch.equal(half, torch.from_numpy(rows[[9, 2]]).half())
    view.to_torch().zero_()
    np.testing.assert_array_equal(store.take([9, 2]), rows[[9, 2]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_tensors_are_appended(path, dtype):
    base = torch.arange(24, dtype=dtype).reshape(4, 6)
    given = {
        "plain": base,
        "requires_grad": base.clone().requires_grad_(),
        "transposed": base.t().contiguous().t(),
        "strided": torch.arange(48, dtype=dtype).reshape(4, 12)[:, ::2] / 2,
        "list": list(base),
        "tuple with grad": tuple(base.clone().requires_grad_()),
    }
    assert not given["transposed"].is_contiguous()
    wider = torch.float64 if dtype == torch.float32 else torch.float32
    with embstore.open(path, "w-", config={"n": 1}) as store:
        for name, values in given.items():
            store.append([f"{name} {i}:c" for i in range(4)], values)
            assert torch.equal(store.select().to_torch()[-4:], base), name
        with pytest.raises(errors.DtypeError):
            store.append(["x:c"], base[:1].to(wider))
        store.append(["one:c"], base[:1].to(wider), casting="same_kind")
        assert len(store) == 25
        assert f"torch.{store.fields['embedding'].dtype}" == str(dtype)
    assert embstore.verify(path).ok


@pytest.mark.parametrize("first", [torch.float32, torch.bfloat16], ids=str)
def test_tensors_of_several_dtypes_are_not_mixed_up(path, first):
    """A list of float32 and bfloat16 is refused, or comes back as what it was; never as bits taken for numbers."""
    other = torch.bfloat16 if first == torch.float32 else torch.float32
    with embstore.open(path, "w-", config={"n": 1}) as store:
        try:
            store.append(["a:c", "b:c"], [torch.full((3,), 1.5, dtype=first), torch.full((3,), 2.5, dtype=other)])
        except (errors.DtypeError, errors.ShapeError):
            assert len(store) == 0
            return
        np.testing.assert_array_equal(store.select().to_numpy(), [[1.5] * 3, [2.5] * 3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_writer_takes_tensors(path, dtype):
    base = torch.arange(12, dtype=dtype).reshape(4, 3).requires_grad_()
    with embstore.open(path, "w-", config={"n": 1}) as store:
        with store.writer() as writer:
            writer.add("0:c", base[0])
            writer.append(["1:c"], base[1:2])
            writer.append(["2:c", "3:c"], list(base[2:]))
        assert torch.equal(store.select().to_torch(), base.detach())


def test_a_column_called_label_is_not_taken_for_the_labels(path):
    """A mapping can't hold both under one name: asking for both is refused."""
    with embstore.open(path, "w-", config={"n": 1}) as store:
        store.append(["a:c", "b:d"], np.ones((2, 3), np.float32), columns={"label": [7, 8]})
        assert EmbeddingDataset(store.select(), columns=["label"])[1]["label"] == 8
        with pytest.raises(ValueError, match="label"):
            EmbeddingDataset(store.select(), classes=["c", "d"], columns=["label"])


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("a.zarr", r"found a path: pass embstore\.open\('a\.zarr'\)\.select\(\)"),
        (Path("a.zarr"), r"found a path: pass embstore\.open\('a\.zarr'\)\.select\(\)"),
        (np.ones((2, 3)), "found ndarray"),
        (None, "found NoneType"),
    ],
    ids=["str", "path", "array", "none"],
)
def test_a_dataset_is_of_a_view_or_a_store(given, hint):
    with pytest.raises(TypeError, match=f"expected a View or an EmbeddingStore, {hint}"):
        EmbeddingDataset(given)


@pytest.mark.parametrize(
    ("statement", "extra"),
    [
        ("from embstore.torch import EmbeddingDataset", "torch"),
        ("import embstore, sys; embstore.open(sys.argv[1]).tensor()", "torch"),
        ("from embstore_fl.datasets import FLDataset", "fl"),
        ("from embstore_fl.a2v import VEGASDataset", "fl"),
        ("from embstore_fl import pfllib", "fl"),
    ],
)
def test_without_torch_its_extra_is_named(statement, extra, make, path):
    make()
    code = f"""
import sys
sys.modules["torch"] = None
from embstore.errors import MissingLibraryError
try:
    {statement}
except MissingLibraryError as error:
    print(error.library, error.extra, error)
"""
    said = python(code, path)
    assert said.startswith(f"torch {extra} torch is needed for ")
    assert said.endswith(f": pip install 'embstore[{extra}]'\n")
