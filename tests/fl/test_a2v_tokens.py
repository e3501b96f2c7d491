"""Whole sequences and rows of the CLS token alone: nodes of both kinds share a cache, and nobody gets wrong rows."""

import types

import pytest

import embstore
from embstore.errors import AmbiguousConfigError
from embstore_fl.datasets import VEGAS
from tests.fl import layouts
from tests.fl.conftest import SHAPE, Counting, row_of

torch = pytest.importorskip("torch")

from embstore_fl.a2v import A2VClient, A2VServer, ESC50Dataset, VEGASDataset, VGGSoundDataset  # noqa: E402

CLS = (1, SHAPE[1])


class Client(A2VClient):
    """As the A2V client: the flag is set after a first `node_data` and before the second."""

    store_audio_embedding = True

    def __init__(self, dataset, *, cls=False, number=0):
        self.id = number
        self.node_data = types.SimpleNamespace(train_dataset=dataset.train)
        self.use_cls_token_only = cls
        self.node_data = types.SimpleNamespace(train_dataset=dataset.train)

    def train(self):
        """Train as the A2V code does for an epoch. Return the number of clips that AST got."""
        made = 0
        train = self.node_data.train_dataset
        for batch in torch.utils.data.DataLoader(train, batch_size=4, collate_fn=train.get_collate_fn()):
            rows = batch.get("audio_emb")
            if rows is None:
                rows = self.audio_embedding_cache_load(batch)
            if rows is None:
                made += len(batch["file_id"])
                names = zip(batch["file_id"], batch["class_name"], strict=True)
                rows = torch.stack([whole_row(train, *name) for name in names])
            rows = rows[:, 0:1] if self.use_cls_token_only else rows
            assert rows.shape[1:] == (CLS if self.use_cls_token_only else SHAPE)
            for file_id, class_name, row in zip(batch["file_id"], batch["class_name"], rows, strict=True):
                assert torch.equal(row, whole_row(train, file_id, class_name)[: len(row)])
            outputs = {"audio_embeddings": rows}
            self.audio_embeddings_dataset_cache(batch, outputs)
            outputs |= {"class_name": batch["class_name"], "audio_filename": batch["audio_filename"]}
            self.store_audio_embeddings(None, outputs)
        return made


def whole_row(dataset, file_id, class_name):
    (path,) = (
        one["audio_path"] for one in dataset.samples if (one["file_id"], one["class_name"]) == (file_id, class_name)
    )
    with open(path, "rb") as file:
        return torch.from_numpy(row_of(file.read()))


class Server(A2VServer):
    def __init__(self, clients, file=None):
        self.clients = clients
        self.audio_embedding_file_name = file


def run(make, kinds, file=None, look=True):
    """Make a node for each flag, train a round, and save. Return the clips that AST got, for each node."""
    server = Server([], file)
    for number, cls in enumerate(kinds):
        dataset = make()
        if look:
            for where in (server._from_cache, server._from_clients, server._from_file):
                where(dataset)
        server.clients.append(Client(dataset, cls=cls, number=number))
    made = [client.train() for client in server.clients]
    server.save_audio_embeddings(file)
    for client in server.clients:
        assert client.audio_embedding_store == {}
        assert client.node_data.train_dataset.audio_embs.written == {}
    return made


@pytest.fixture
def make(vegas, cache):
    return lambda: VEGASDataset(root_dir=vegas, ast_cache_dir=cache, selected_classes=["dog"])


@pytest.mark.parametrize("look", [True, False])
@pytest.mark.parametrize(
    ("first", "second", "extracted"),
    [
        ([False], [False], [0]),
        ([False], [True], [0]),  # whole rows serve every node
        ([True], [True], [0]),
        ([True], [False], [14]),  # rows of the token alone serve no other node
        ([True, False], [False, True], [0, 0]),
        ([False, True, False], [True, False, True], [0, 0, 0]),
        ([True, True], [True, False, False], [0, 14, 14]),
    ],
)
def test_what_one_run_stored_serves_the_nodes_of_the_next_that_can_use_it(first, second, extracted, look, make):
    run(make, first, look=look)
    assert run(make, second, look=look) == extracted
    assert run(make, second, look=look) == [0] * len(second)


@pytest.mark.parametrize("place", ["cache", "clients", "file", "assigned", "from_file"])
@pytest.mark.parametrize("flag", ["before", "after"])
def test_rows_of_the_token_alone_go_to_nodes_that_asked_for_it(place, flag, make, tmp_path):
    source = make()
    rows = {key: whole_row(source, *key.split(":"))[:1] for key in source.ast_keys}
    server = Server([], str(tmp_path / "legacy.pt"))
    torch.save(rows, server.audio_embedding_file_name)
    dataset = make()
    if flag == "before":
        dataset.use_cls_token_only = True
    if place == "cache":
        assert source.save_ast_embeddings_to_cache(rows)
        server._from_cache(dataset)
    elif place == "clients":
        server.clients.append(Client(source, cls=True))
        source.audio_embs.written.update(rows)
        server._from_clients(dataset)
    elif place == "file":
        server._from_file(dataset)
    elif place == "assigned":
        dataset.audio_embs = rows
    else:
        dataset.audio_embs_from_file = rows
    if flag == "after":
        assert dataset.ast_missing == dataset.ast_keys
        assert len(dataset.audio_embs) == 0
        assert "audio_emb" not in dataset[0]
        dataset.use_cls_token_only = True
    assert dataset.ast_missing == []
    assert dataset[3]["audio_emb"].shape == CLS
    dataset.use_cls_token_only = False
    assert "audio_emb" not in dataset[3]


def test_values_without_a_shape_are_handed_on(make):
    for tokens in ("all", "cls"):
        dataset = make()
        dataset.audio_embs.tokens = tokens
        dataset.audio_embs = {dataset.ast_keys[0]: {"class_name": "dog"}}
        assert dataset.audio_embs[dataset.ast_keys[0]] == {"class_name": "dog"}


def test_the_rows_of_the_token_alone_have_a_store_of_their_own(make, cache):
    run(make, [True])
    (entry,) = embstore.Cache(cache).entries()
    assert entry.config["tokens"] == "cls"
    assert entry.config["embedding_shape"] == list(CLS)
    run(make, [False])
    assert sorted(entry.config.get("tokens", "-") for entry in embstore.Cache(cache).entries()) == ["-", "cls"]


def test_a_node_of_the_token_alone_uses_rows_of_an_encoder(make, vegas, cache, log, encoded):
    embstore.embed(VEGAS(vegas), Counting(log), cache)
    assert run(make, [True, False, True]) == [0, 0, 0]
    assert len(embstore.Cache(cache)) == 1


@pytest.mark.parametrize("own", [True, False])
def test_the_joined_data_sets_of_nodes_of_both_kinds_collate(own, make):
    run(make, [False])
    both = [make(), make()]
    both[1].use_cls_token_only = True
    joined = torch.utils.data.ConcatDataset([one.train for one in both])
    collate_fn = both[0].get_collate_fn() if own else None
    (batch,) = torch.utils.data.DataLoader(joined, batch_size=len(joined), collate_fn=collate_fn)
    assert "audio_emb" not in batch
    assert batch["audio"].shape == (28, 80_000)
    for one, shape in zip(both, (SHAPE, CLS), strict=True):
        (batch,) = torch.utils.data.DataLoader(one.train, batch_size=14, collate_fn=collate_fn)
        assert batch["audio_emb"].shape == (14, *shape)


def test_a_legacy_file_keeps_whole_rows(make, tmp_path):
    file = str(tmp_path / "legacy.pt")
    run(make, [False], file=file)
    run(make, [True, True], file=file)
    assert {tuple(row.shape) for row in torch.load(file).values()} == {SHAPE}


def test_a_legacy_file_of_both_kinds_serves_both(make, tmp_path):
    source = make()
    rows = {key: whole_row(source, *key.split(":")) for key in source.ast_keys}
    for place, key in enumerate(rows):
        rows[key] = rows[key][:1] if place % 3 else rows[key][None]
    torch.save(rows | {"x:dog": torch.ones(9)}, tmp_path / "legacy.pt")
    for cls in (True, False):
        dataset = make()
        dataset.use_cls_token_only = cls
        dataset.load_audio_embeddings_from_file(tmp_path / "legacy.pt")
        assert [one.key for one in dataset.ast_unreadable] == ["x:dog"]
        assert len(dataset.audio_embs) == (20 if cls else 7)
        assert dataset[0]["audio_emb"].shape == (CLS if cls else SHAPE)


# -- a run whose rows are stored ---------------------------------------------------------------


def test_rows_that_came_from_a_store_are_not_collected(make):
    """The A2V client kept NumPy copies of every batch of every epoch, and stored them again."""
    run(make, [False])
    client = Client(make())
    for _ in range(3):
        assert client.train() == 0
        assert client.audio_embedding_store == {}
        assert client.node_data.train_dataset.audio_embs.written == {}
    del client.audio_embedding_store  # as the A2V code does from round 2
    assert client.audio_embedding_store == {}


def test_new_rows_are_collected_once(make):
    client = Client(make())
    client.train()
    client.train()
    assert {*client.audio_embedding_store} == {*client.node_data.train_dataset.ast_keys}
    for key, row in client.audio_embedding_store.items():
        assert row is client.node_data.train_dataset.audio_embs.written[key]
        assert row.untyped_storage().nbytes() == row.nbytes
    client.store_audio_embeddings(None, {})
    client.store_audio_embeddings(None, {"audio_embeddings": torch.ones(1, *SHAPE), "audio_filename": None})


# -- a data set looks by itself ----------------------------------------------------------------


def kinds(tmp_path):
    return {
        "VEGAS": (VEGASDataset, layouts.vegas(tmp_path / "VEGAS1", {"dog": 10, "drum": 10})),
        "ESC50": (ESC50Dataset, layouts.esc50_official(tmp_path / "ESC-50", ["dog", "rain"])),
        "VGGSound": (VGGSoundDataset, layouts.vggsound(tmp_path / "VGGSound", each=9)),
    }


@pytest.mark.parametrize("kind", ["VEGAS", "ESC50", "VGGSound"])
def test_a_data_set_looks_up_the_cache_by_itself(kind, tmp_path, cache):
    """The A2V server's lines for ESC-50 and VGGSound have no call of the cache, and extracted in each run."""
    made, root = kinds(tmp_path)[kind]

    def make(**options):
        return made(root_dir=root, ast_cache_dir=cache, **options)

    first = run(make, [False], look=False)
    assert first == [len(make().train)]
    dataset = make()
    assert "audio_emb" in dataset.train[0]
    assert dataset.audio_embs_from_file is not None
    assert run(make, [False, True], look=False) == [0, 0]
    off = make(use_saved_audio_embeddings=False)
    assert off.ast_missing == off.ast_keys


def test_another_nodes_embeddings_are_added_when_they_are_assigned(tmp_path, cache):
    """The A2V server assigns those of the first VGGSound client to each later one."""
    made, root = kinds(tmp_path)["VGGSound"]
    one, other = (made(root_dir=root, ast_cache_dir=cache, selected_classes=[name]) for name in (0, 1))
    run(lambda: made(root_dir=root, ast_cache_dir=cache), [False], look=False)
    one, other = (made(root_dir=root, ast_cache_dir=cache, selected_classes=[name]) for name in (0, 1))
    before = len(other.audio_embs)
    assert before
    other.audio_embs = one.audio_embs
    assert len(other.audio_embs) == before
    other.audio_embs = other.audio_embs
    assert len(other.audio_embs) == before


def test_a_data_set_that_finds_two_encoders_is_made_and_says_so(vegas, cache, log, caplog):
    for weights in ("one", "two"):
        embstore.embed(VEGAS(vegas), Counting(log, weights=weights), cache)
    with caplog.at_level("WARNING", "embstore"):
        dataset = VEGASDataset(root_dir=vegas, ast_cache_dir=cache)
    assert "no store is used yet" in caplog.text
    assert "encoder.weights" in caplog.text
    with pytest.raises(AmbiguousConfigError):
        dataset.load_ast_embeddings_from_cache()


def test_the_use_of_a_store_counts_one_look_of_each_data_set(vegas, cache, log):
    from embstore.cache.usage import usage_of

    path = embstore.embed(VEGAS(vegas), Counting(log), cache).path
    before = usage_of(path).hits
    dataset = VEGASDataset(root_dir=vegas, ast_cache_dir=cache)
    for _ in range(3):
        dataset.load_ast_embeddings_from_cache()
    assert usage_of(path).hits - before == 50
