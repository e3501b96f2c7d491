"""A2V: the names of lucapalazzo/fedgfe at commit 8c08e90, over the store. Each fault found there is a test."""

import subprocess
import sys
import types

import numpy as np
import pytest

import embstore
from embstore import errors
from embstore_fl.errors import (
    ClipSettingsError,
    ForeignKeysError,
    NodeError,
    NodeRangeError,
    RatiosError,
    UnknownSplitError,
)
from tests.fl import layouts
from tests.fl.conftest import SHAPE, Counting, node, row_of

torch = pytest.importorskip("torch")

from embstore_fl.a2v import (  # noqa: E402
    A2VClient,
    A2VDataset,
    A2VServer,
    ESC50Dataset,
    VEGASDataset,
    VGGSoundDataset,
    collate,
)
from embstore_fl.datasets import VEGAS  # noqa: E402
from embstore_fl.datasets.lazy_clips import LazyClips  # noqa: E402

THREE = (16_000, 5.0, "ast-finetuned")


class Server(A2VServer):
    """A server with nothing but what the mix-in needs, and an encoder that counts."""

    def __init__(self, log, clients=(), **encoder):
        self.clients = list(clients)
        self.made = 0
        self._log, self._options = log, encoder

    def make_ast_encoder(self, duration):
        self.made += 1
        return Counting(self._log, **{"duration": duration, **self._options})


class Client(A2VClient):
    """A client with nothing but what the mix-in needs."""

    def __init__(self, dataset, number=0, model=None):
        self.id = number
        self.node_data = node(dataset).node_data
        self.model = model
        self.store_audio_embedding = True


@pytest.fixture
def make(vegas, cache):
    """Make a dataset as today's server does."""

    def make(kind=VEGASDataset, **options):
        return kind(root_dir=vegas, ast_cache_dir=cache, **options)

    return make


def rows_of(dataset):
    """Return embeddings as a training loop would make them, by key."""
    found = {}
    for key, sample in zip(dataset.ast_keys, dataset.samples, strict=True):
        with open(sample["audio_path"], "rb") as file:
            found[key] = torch.from_numpy(row_of(file.read()))
    return found


def check(dataset):
    """Check that each sample has its own embedding, and audio that is not decoded."""
    expected = rows_of(dataset)
    for sample in dataset:
        assert torch.equal(sample["audio_emb"], expected[f"{sample['file_id']}:{sample['class_name']}"])
        assert isinstance(sample["audio"], LazyClips)


# -- the cache ---------------------------------------------------------------------------------


def test_what_was_saved_is_found_by_its_three_attributes(make):
    dataset = make()
    assert not dataset.load_ast_embeddings_from_cache(*THREE)
    assert dataset.ast_missing == dataset.ast_keys
    assert dataset.save_ast_embeddings_to_cache(rows_of(dataset), *THREE, embedding_shape=SHAPE)
    other = make()
    assert other.load_ast_embeddings_from_cache(sample_rate=16_000, duration=5, model_name="ast-finetuned")
    other.filter_audio_embeddings_from_file()
    assert other.ast_missing == []
    check(other)
    assert other.audio_embs_from_file is other.audio_embs


def test_what_an_encoder_wrote_is_found_by_the_three_attributes(make, vegas, cache, log):
    embstore.embed(VEGAS(vegas), Counting(log), cache)
    for name in ("ast", "ast-finetuned", "MIT/ast-finetuned-audioset-10-10-0.4593"):
        dataset = make()
        assert dataset.load_ast_embeddings_from_cache(16_000, 5.0, name)
        check(dataset)


def test_five_and_five_point_zero_are_one_and_model_names_do_not_collide(make, caplog):
    """Fault 3: they hashed differently, and names with ``_`` collided."""
    dataset = make(selected_classes=["snoring"])
    rows = rows_of(dataset)
    assert dataset.save_ast_embeddings_to_cache(rows, 16_000, 5, "ast_1")
    assert make(selected_classes=["snoring"]).load_ast_embeddings_from_cache(16_000.0, 5.0, "ast_1")
    # "ast_1" and 6000 made the same text as "ast" and "1_6000".
    for duration, name in ((5, "ast"), (5, "ast_"), (5, "ast_11"), (10, "ast_1")):
        other = make(selected_classes=["snoring"], audio_duration=duration)
        with caplog.at_level("INFO", "embstore"):
            caplog.clear()
            assert not other.load_ast_embeddings_from_cache(16_000, duration, name)
        assert "VEGAS: miss" in caplog.text
        assert len(other.audio_embs) == 0
    assert "duration: expected 10, found 5" in caplog.text


def test_a_hit_is_not_all_or_nothing(make, vegas, cache, log, encoded):
    """Fault 2: now what is there is loaded, and the missing part alone is extracted."""
    embstore.embed(VEGAS(vegas).select(selected_classes=["dog"]), Counting(log), cache)
    before = encoded()
    dataset = make(selected_classes=["dog", "drum"])
    assert list(dataset.load_ast_embeddings_from_cache(*THREE)) == ["dog"]
    assert len(dataset.audio_embs) == 20
    assert [key.rpartition(":")[2] for key in dataset.ast_missing] == ["drum"] * 20
    assert dataset.ast_report.outcome == "partial"
    server = Server(log)
    found = server.load_node_embeddings(dataset)
    assert found.complete
    assert [(a.where, a.outcome, a.found, a.left) for a in found.attempts] == [
        ("cache", "partial", 20, 20),
        ("other clients", "miss", 0, 20),
        ("legacy file", "miss", 0, 20),
        ("extraction", "hit", 20, 0),
    ]
    assert encoded() - before == 20
    check(dataset)


def test_embeddings_on_the_parent_reach_train_val_and_test(make):
    """Fault 6: they never did."""
    dataset = make(selected_classes=["dog"])
    train = dataset.train
    dataset.save_ast_embeddings_to_cache(rows_of(dataset), *THREE)
    assert dataset.load_ast_embeddings_from_cache(*THREE)
    for part in (train, dataset.train, dataset.val, dataset.test):
        assert len(part)
        check(part)
        assert part.audio_embs is dataset.audio_embs
        assert part.audio_embs_from_file is dataset.audio_embs_from_file
    assert train.load_ast_embeddings_from_cache(*THREE)
    assert len(dataset.audio_embs) == 20


def test_the_rows_of_all_clients_are_appended(make, log, cache):
    """Fault 1: the cache held the first client's classes only, and the next save overwrote it."""
    datasets = [make(selected_classes=[name]) for name in ("dog", "drum")] + [make(selected_classes=["snoring", "dog"])]
    server = Server(log, [Client(dataset, number) for number, dataset in enumerate(datasets)])
    for client, dataset in zip(server.clients, datasets, strict=True):
        client.audio_embedding_store = rows_of(dataset)
    assert server.save_audio_embeddings()
    assert [client.audio_embedding_store for client in server.clients] == [{}, {}, {}]
    whole = make()
    assert whole.load_ast_embeddings_from_cache(*THREE)
    check(whole)
    assert len(embstore.Cache(cache)) == 1
    for dataset in datasets:
        check(dataset)
        assert dataset.audio_embs.written == {}
    assert not server.save_audio_embeddings()


def test_tensors_arrays_and_dictionaries_are_read_in_one_mapping(make, caplog):
    """Fault 4: filtering failed on tensors, and keys stood either way round."""
    dataset = make(selected_classes=["dog"])
    expected = rows_of(dataset)
    mixed = {}
    for place, (key, row) in enumerate(expected.items()):
        file_id, _, name = key.partition(":")
        if place % 3 == 0:
            mixed[key] = row
        elif place % 3 == 1:
            mixed[f"{name}:{file_id}.wav"] = {"class_name": name, "embeddings": row.numpy()}
        else:
            mixed[key] = {"class_name": name, "embedding": row}
    mixed |= {"0_sample_3": expected[key], "video_00000:drum": expected[key], 7: row, "video_1:dog": "no tensor"}
    with caplog.at_level("WARNING", "embstore"):
        dataset.audio_embs_from_file = mixed
    check(dataset)
    assert len(dataset.audio_embs) == 20  # another class's is not the dataset's own
    assert [one.key for one in dataset.ast_unreadable] == ["0_sample_3", 7, "video_1:dog"]
    assert "3 can't be used: 0_sample_3: it has no class" in caplog.text
    other = make(selected_classes=["dog"])
    assert not other.save_ast_embeddings_to_cache(mixed, *THREE)
    assert len(other.ast_unreadable) == 3
    assert other.load_ast_embeddings_from_cache(*THREE)
    check(other)


def test_a_legacy_file_of_both_kinds_is_read(make, tmp_path):
    dataset = make(selected_classes=["dog", "drum"])
    file = tmp_path / "legacy.pt"
    expected = rows_of(dataset)
    entries = dict(list(expected.items())[:20])
    for key, row in list(expected.items())[20:]:
        file_id, _, name = key.partition(":")
        entries[f"{name}:{file_id}.wav"] = {"class_name": name, "embeddings": row.numpy()}
    torch.save({**entries, "3_sample_0_1": {"class_name": "dog"}, "x:dog": torch.zeros(7)}, file)
    dataset.load_audio_embeddings_from_file(file)
    check(dataset.train)
    check(dataset)
    assert sorted(one.key for one in dataset.ast_unreadable) == ["3_sample_0_1", "x:dog"]
    one = make(selected_classes=["dog"])
    one.load_audio_embeddings_from_file(file)
    assert sorted(one.audio_embs) == sorted(one.ast_keys)
    one.load_audio_embeddings_from_file(tmp_path / "none.pt")
    assert len(one.audio_embs) == 20


class Evil:
    """What runs a command when it is unpickled."""

    def __reduce__(self):
        return print, ("it ran",)


def test_a_legacy_file_with_code_in_it_is_refused_and_runs_nothing(make, tmp_path, capsys, log):
    """Fault 5: unpickling ran code, and exceptions became False."""
    file = tmp_path / "legacy.pt"
    torch.save({"video_00000:dog": Evil()}, file)
    dataset = make(selected_classes=["dog"])
    with pytest.raises(errors.UnsafeFileError, match="nothing was run"):
        dataset.load_audio_embeddings_from_file(file)
    server = Server(log)
    server.audio_embedding_file_name = str(file)
    with pytest.raises(errors.UnsafeFileError):
        server.load_node_embeddings(dataset)
    assert capsys.readouterr().out == ""


def test_errors_are_errors(make, monkeypatch):
    """Fault 5."""
    dataset = make(selected_classes=["dog"])

    def full(*args, **options):
        raise errors.StorageFullError(dataset.root_dir, OSError(28, "No space left on device"))

    monkeypatch.setattr(embstore.EmbeddingStore, "append", full)
    with pytest.raises(errors.StorageFullError):
        dataset.save_ast_embeddings_to_cache(rows_of(dataset), *THREE)


def test_a_clip_that_cannot_be_decoded_is_left_out_and_never_cached(make, vegas, log, cache, caplog):
    """Fault 9: it became silence, which was then cached as its embedding."""
    (vegas / "dog" / "audios" / "video_00004.wav").write_bytes(b"nothing")
    dataset = make(selected_classes=["dog"])
    whole = len(dataset.train), len(dataset.val), len(dataset.test)
    with caplog.at_level("WARNING", "embstore"):
        found = Server(log).load_node_embeddings(dataset)
    assert [failure.key for failure in found.failed] == ["video_00004:dog"]
    assert found.complete
    assert "1 clips are left out: video_00004:dog: it is no WAV file" in caplog.text
    assert found.attempts[-1].found == 19
    assert (found.metrics.extracted, found.metrics.failed, found.metrics.rows) == (19, 1, 19)
    assert len(dataset) == sum(whole) - 1 == 19
    check(dataset)
    check(dataset.train)
    (entry,) = embstore.Cache(cache).entries()
    assert entry.rows == 19
    alone = make(selected_classes=["dog"])
    with pytest.raises(errors.DecodeError, match=r"video_00004\.wav"):
        alone[4]


def test_a_file_that_changed_is_not_served(make, vegas, cache, log, encoded):
    dataset = make(selected_classes=["dog"])
    Server(log).load_node_embeddings(dataset)
    saved = make(selected_classes=["drum"])
    saved.save_ast_embeddings_to_cache(rows_of(saved), *THREE)
    for name in ("dog", "drum"):
        layouts.recording(vegas / name / "audios" / "video_00007.wav", 99, seconds=0.2)
        other = make(selected_classes=[name])
        assert len(other.load_ast_embeddings_from_cache(*THREE)[name]["index_map"]) == 19
        assert other.ast_report.stale == (f"video_00007:{name}",)
        assert other.ast_missing == [f"video_00007:{name}"]
    before = encoded()
    other = make(selected_classes=["dog"])
    assert Server(log).load_node_embeddings(other).complete
    assert encoded() - before == 1
    check(other)
    again = make(selected_classes=["drum"])
    assert again.save_ast_embeddings_to_cache(rows_of(again), *THREE)
    assert again.load_ast_embeddings_from_cache(*THREE)
    check(again)


def test_rows_of_unknown_content_count_as_current(make, vegas):
    saved = make(selected_classes=["dog"])
    rows = rows_of(saved)
    nobody = make(selected_classes=["snoring"])
    assert nobody.save_ast_embeddings_to_cache(rows, *THREE)  # a server that knows no file of theirs
    assert saved.load_ast_embeddings_from_cache(*THREE)
    check(saved)


def test_several_encoders_stores_are_told_apart(make, vegas, cache, log):
    for weights in ("one", "two"):
        embstore.embed(VEGAS(vegas), Counting(log, weights=weights), cache)
    dataset = make()
    with pytest.raises(errors.AmbiguousConfigError, match=r"encoder\.weights") as caught:
        dataset.load_ast_embeddings_from_cache(*THREE)
    assert len(caught.value.paths) == 2
    assert "ast_config" in str(caught.value)
    server = Server(log, weights="two")
    assert server.load_node_embeddings(dataset).attempts[0].outcome == "hit"
    assert dataset.ast_report.paths == (
        embstore.Cache(cache).path_of({**Counting(log, weights="two").config, "dataset": "VEGAS"}),
    )
    dataset.ast_config = Counting(log, weights="none").config
    assert not dataset.load_ast_embeddings_from_cache(*THREE)


def test_rows_of_two_encoders_are_never_mixed(make, vegas, cache, log, encoded, caplog):
    embstore.embed(VEGAS(vegas).select(selected_classes=["dog"]), Counting(log, weights="old"), cache)
    before = encoded()
    dataset = make(selected_classes=["dog", "drum"])
    with caplog.at_level("WARNING", "embstore"):
        found = Server(log, weights="new").load_node_embeddings(dataset)
    assert found.complete
    assert encoded() - before == 40
    assert "encoder.weights: expected 'new', found 'old'" in caplog.text
    assert (found.metrics.hits, found.metrics.extracted) == (0, 40)
    (layer,) = dataset.audio_embs.layers
    assert layer.store.config["encoder"]["weights"] == "new"


def test_a_models_name_is_found_in_full_or_by_its_last_part(make, vegas, cache, log):
    embstore.embed(VEGAS(vegas), Counting(log, model="lab/small_ast"), cache)
    for name, there in (("lab/small_ast", True), ("small_ast", True), ("ast", False), ("other/small_ast", False)):
        assert bool(make().load_ast_embeddings_from_cache(16_000, 5.0, name)) == there
    dataset = make(selected_classes=["dog"])
    for name in ("ast", "ast-finetuned"):  # one model, and so one store
        assert dataset.save_ast_embeddings_to_cache(rows_of(dataset), 16_000, 5.0, name)
    assert dataset.load_ast_embeddings_from_cache(16_000, 5.0, "MIT/ast-finetuned-audioset-10-10-0.4593")
    assert len(embstore.Cache(cache)) == 2


def test_rows_of_other_shapes_are_not_mixed_in(make, vegas, cache, log):
    """The CLS token alone, as today's model hands it on when it is told to."""
    dataset = make(selected_classes=["dog"])
    tokens = {key: row[:1] for key, row in rows_of(dataset).items()}
    assert dataset.save_ast_embeddings_to_cache(tokens, *THREE)
    embstore.embed(VEGAS(vegas).select(selected_classes=["dog"], num_samples_per_class=5), Counting(log), cache)
    assert dataset.load_ast_embeddings_from_cache(*THREE)
    assert len(dataset.audio_embs) == 5
    assert dataset.save_ast_embeddings_to_cache(rows_of(dataset), *THREE)
    assert dataset.load_ast_embeddings_from_cache(*THREE)
    check(dataset)
    dataset.use_cls_token_only = True
    dataset.ast_config = {"encoder": "MIT/ast-finetuned-audioset-10-10-0.4593", "sample_rate": 16_000, "duration": 5}
    dataset.ast_config |= {"embedding_shape": [1, SHAPE[1]], "tokens": "cls"}
    assert dataset.load_ast_embeddings_from_cache(*THREE)
    assert dataset[0]["audio_emb"].shape == (1, SHAPE[1])


def test_the_cache_is_cleared_whole_or_by_any_attribute(make, cache, vegas, log):
    dataset = make(selected_classes=["snoring"])
    rows = rows_of(dataset)
    for rate, duration, name in ((16_000, 5, "ast"), (16_000, 10, "ast"), (8_000, 5, "ast"), (16_000, 5, "other")):
        dataset.audio_sample_rate, dataset.audio_duration = rate, duration
        dataset.save_ast_embeddings_to_cache(rows, model_name=name)
    embstore.embed(VEGAS(vegas), Counting(log), cache)
    esc50 = VEGAS(vegas, name="ESC50")
    embstore.embed(esc50, Counting(log), cache)

    def left():
        return len(embstore.Cache(cache))

    assert left() == 6
    dataset.clear_ast_cache(duration=10)
    assert left() == 5
    dataset.clear_ast_cache(model_name="other")
    assert left() == 4
    dataset.clear_ast_cache(sample_rate=16_000, duration=5.0, model_name="ast")  # the encoder's, too
    assert left() == 2
    dataset.audio_sample_rate = 8_000
    dataset.load_ast_embeddings_from_cache()
    assert len(dataset.audio_embs)
    dataset.clear_ast_cache()
    assert [entry.config["dataset"] for entry in embstore.Cache(cache).entries()] == ["ESC50"]
    assert len(dataset.audio_embs) == 0


def test_the_cache_can_be_off(make, cache, log, caplog):
    dataset = make(selected_classes=["dog"], enable_ast_cache=False)
    with caplog.at_level("INFO", "embstore"):
        assert not dataset.load_ast_embeddings_from_cache(*THREE)
        assert not dataset.save_ast_embeddings_to_cache(rows_of(dataset), *THREE)
        dataset.clear_ast_cache()
        found = Server(log).load_node_embeddings(dataset)
    assert "the cache is off" in caplog.text
    assert not found.complete
    assert not cache.exists()
    default = VEGASDataset(root_dir=dataset.root_dir)
    assert default.ast_stores.path.name == "ast_cache"
    assert not default.save_ast_embeddings_to_cache({}, *THREE)


def test_rows_that_cannot_be_stored_are_listed_and_the_others_stored(make):
    dataset = make(selected_classes=["dog"])
    rows = rows_of(dataset)
    keys = list(rows)
    rows[keys[0]] = torch.full(SHAPE, float("nan"))
    rows[keys[1]] = torch.zeros(1, SHAPE[1])  # the CLS token alone
    assert not dataset.save_ast_embeddings_to_cache(rows, *THREE)
    reasons = {one.key: one.reason for one in dataset.ast_unreadable}
    assert reasons == {keys[0]: "NaN or infinity", keys[1]: f"its shape is (1, 4), not {SHAPE}"}
    assert dataset.load_ast_embeddings_from_cache(*THREE)
    assert dataset.ast_missing == keys[:2]


def test_bfloat16_becomes_float32(make):
    dataset = make(selected_classes=["snoring"])
    rows = {key: row.bfloat16().requires_grad_() for key, row in rows_of(dataset).items()}
    assert dataset.save_ast_embeddings_to_cache(rows, *THREE)
    assert dataset.load_ast_embeddings_from_cache(*THREE)
    for key, row in rows.items():
        assert torch.equal(dataset.audio_embs[key], row.detach().float())


# -- a node's dataset as today's ----------------------------------------------------------------


def test_a_sample_has_what_todays_training_loop_reads(make, tmp_path, log):
    texts = {"Dog": {"flux": {"prompt_embeds": torch.ones(1, 3, 4), "pooled_prompt_embeds": torch.ones(1, 5)}}}
    torch.save(
        {**texts, "drum": {"flux": {"prompt_embeds": torch.zeros(1, 3, 4), "pooled_prompt_embeds": torch.zeros(1, 5)}}},
        tmp_path / "t.pt",
    )
    dataset = make(selected_classes=["dog", "drum"], embedding_file=tmp_path / "t.pt")
    Server(log).load_node_embeddings(dataset)
    sample = dataset[25]
    assert {"audio_emb", "audio", "text_emb", "label", "class_name", "file_id", "audio_filename"} <= {*sample}
    assert {"image_filename", "video_filename", "video_id", "sample_idx", "ytid", "start_second", "end_second"} <= {
        *sample
    }
    assert torch.equal(sample["text_emb"]["flux"]["pooled_prompt_embeds"], torch.zeros(1, 5))
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=4, collate_fn=dataset.get_collate_fn(), sampler=[0, 1, 25, 26]
    )
    (batch,) = loader
    assert isinstance(batch["audio"], LazyClips)
    assert batch["audio"].shape == (4, 80_000)
    assert batch["audio_emb"].shape == (4, *SHAPE)
    assert batch["labels"].tolist() == batch["label"].tolist() == [2, 2, 3, 3]
    assert batch["text_emb"]["flux"]["prompt_embeds"].shape == (4, 3, 4)
    assert batch["text_emb"]["flux"]["pooled_prompt_embeds"].mean(1).tolist() == [1, 1, 0, 0]
    assert batch["class_name"] == ["dog", "dog", "drum", "drum"]
    assert batch["metadata"]["video_ids"][0] == "video_00000"
    (batch,) = torch.utils.data.DataLoader(dataset, batch_size=4, sampler=[0, 1, 25, 26])  # torch's own collate
    assert batch["text_emb"]["flux"]["prompt_embeds"].shape == (4, 1, 3, 4)
    assert batch["audio"].shape == (4, 80_000)


def test_a_sample_on_a_miss_has_its_audio(make):
    sample = make(selected_classes=["dog"])[0]
    assert sample["audio"].shape == (80_000,)
    assert "audio_emb" not in sample
    assert "audio" not in make(selected_classes=["dog"], load_audio=False)[0]
    assert "text_emb" not in sample
    two = [make(selected_classes=["dog"])[place] for place in (0, 1)]
    assert collate(two)["audio"].shape == (2, 80_000)


def test_the_words_of_todays_data_sets(make):
    dataset = make(selected_classes=["snoring", "dog"])
    assert dataset.get_class_names() == ["dog", "snoring"]
    assert dataset.get_class_labels() == [2, 8]
    assert (dataset.get_num_classes(), dataset.get_max_class_label()) == (2, 8)
    assert dataset.get_samples_per_class() == {"dog": 20, "snoring": 10}
    assert dataset.get_class_distribution()["dog"] == pytest.approx(200 / 3)
    assert dataset.CLASS_LABELS["dog"] == 2
    assert dataset.LABEL_TO_CLASS[8] == "snoring"
    assert dataset.selected_classes == ["snoring", "dog"]
    assert dataset.excluded_classes is None
    assert dataset.available_classes[0] == "baby_cry"
    assert dataset.to("cpu") is dataset
    assert dataset.get_text_embeddings("dog") is None
    dataset.text_embs = {"dog": 1}
    assert dataset.get_text_embeddings("Dog") == 1
    assert dataset.split == "all"
    assert make(split="test").split == "test"
    assert len(make(split="test")) == 10


def test_options_of_todays_constructors(make, vegas, caplog):
    both = make(splits_to_load=["train", "val"])
    assert len(both) == 40
    assert len(make(split_ratio=0.8).test) == 10
    assert len(make(num_samples_per_class=0)) == 50
    assert len(make(samples_per_node=5, node_split_id=1)) == 15
    with caplog.at_level("WARNING", "embstore"):
        assert len(make(node_split_id=3)) == 50
        make(stratify=False, load_image=True)
    assert "the node has all samples" in caplog.text
    assert "stratify=False has no effect" in caplog.text
    with pytest.raises(errors.UnknownClassError):
        make(selected_classes=["dog", "cat"])
    with pytest.raises(UnknownSplitError):
        make(split="dev")
    with pytest.raises(UnknownSplitError, match="no fold"):
        make(use_folds=True, train_folds=[0], test_folds=[1])
    with pytest.raises(RatiosError):
        make(train_ratio=0.9)
    with pytest.raises(NodeError):
        make(num_nodes=2, samples_per_node=4, node_split_id=0)
    with pytest.raises(NodeRangeError):
        make(num_nodes=2, node_split_id=2)
    with pytest.raises(TypeError, match="root_dir"):
        VEGASDataset()
    with pytest.raises(TypeError, match="colour"):
        make(colour="red")

    class Ours(VEGASDataset):
        default_root_dir = vegas

    assert len(Ours()) == 50
    assert Ours().ast_dataset_name == "VEGAS"


def test_esc50_and_vggsound_take_the_place_of_todays(tmp_path, cache, log):
    root = layouts.esc50_folders(tmp_path / "esc50", ["dog", "rooster"])
    esc50 = ESC50Dataset(root_dir=root, use_folds=True, train_folds=[0, 1, 2, 3], test_folds=[4], ast_cache_dir=cache)
    assert (len(esc50.train), len(esc50.test)) == (14, 4)
    assert len(esc50.val) == 2
    assert Server(log).load_node_embeddings(esc50).complete
    assert esc50.test[0]["fold"] == 4
    usual = ESC50Dataset(root_dir=root, use_folds=True, ast_cache_dir=cache)
    assert len(usual.test) == 4
    clips = VGGSoundDataset(root_dir=layouts.vggsound(tmp_path / "vggsound"), ast_cache_dir=cache, node_id=3)
    assert clips.audio_duration == 10.0
    assert {one.listed.group for one in clips.test.chosen} == {"test"}
    assert clips[0]["audio"].shape == (160_000,)
    assert clips[1]["start_second"] in range(0, 200, 30)
    assert Server(log).load_node_embeddings(clips).complete
    assert {entry.config["dataset"] for entry in embstore.Cache(cache).entries()} == {"ESC50", "VGGSound"}


# -- facts of each data set ----------------------------------------------------------------------


def test_duration_and_rate_come_from_each_data_set(make, tmp_path, cache, log):
    """One server had one duration for 5 s and 10 s clips, and labelled both as 5 s."""
    clips = VGGSoundDataset(root_dir=layouts.vggsound(tmp_path / "vggsound"), ast_cache_dir=cache)
    server = Server(log)
    for dataset in (make(selected_classes=["snoring"]), clips):
        assert server.load_node_embeddings(dataset).complete
        assert dataset.save_ast_embeddings_to_cache(rows_of(dataset), model_name="loop")
    assert server.made == 2
    found = [{**entry.config, **entry.config.get("preprocessing", {})} for entry in embstore.Cache(cache).entries()]
    assert sorted((one["dataset"], one["duration"]) for one in found) == [("VEGAS", 5)] * 2 + [("VGGSound", 10)] * 2


@pytest.mark.parametrize("given", [{"duration": 5.0}, {"sample_rate": 8_000}])
def test_another_duration_or_rate_than_the_data_sets_is_an_error(given, tmp_path, cache, log):
    clips = VGGSoundDataset(root_dir=layouts.vggsound(tmp_path / "vggsound"), ast_cache_dir=cache)
    ((name, number),) = given.items()
    server, made = Server(log), Server(log, duration=5.0)
    setattr(server, f"ast_{name}", number)
    calls = [
        lambda: clips.load_ast_embeddings_from_cache(**given),
        lambda: clips.save_ast_embeddings_to_cache(rows_of(clips), **given),
        lambda: server.load_node_embeddings(clips),
        lambda: made.load_node_embeddings(clips),  # an encoder of its own
    ]
    for call in calls if name == "duration" else calls[:3]:
        with pytest.raises(ClipSettingsError, match=f"VGGSound: expected {name} .* found") as caught:
            call()
        assert (caught.value.name, caught.value.found) == (name, number)
    assert len(embstore.Cache(cache)) == 0


def test_a_models_name_follows_from_its_folder(make, vegas, cache, log):
    embstore.embed(VEGAS(vegas), Counting(log, model="tiny-ast"), cache)
    server = Server(log)
    server.ast_model = vegas.parent / "tiny-ast"
    assert [a.outcome for a in server.load_node_embeddings(make()).attempts] == ["hit"]


@pytest.mark.parametrize("form", ["file", "dictionary", "server"])
def test_bare_ids_get_their_class_from_the_data_set(form, make, vegas, tmp_path, cache, log):
    """The keys of the ESC-50 and VGGSound data sets were file_ids alone, and none was read."""
    root = layouts.esc50_official(tmp_path / "ESC-50", ["dog", "rain"])
    sounds = layouts.vggsound(tmp_path / "vggsound")
    options = {"ast_cache_dir": cache}
    made = [(ESC50Dataset, root), (VGGSoundDataset, sounds), (VEGASDataset, vegas)]
    for kind, folder in made:
        dataset = kind(root_dir=folder, selected_classes=["dog"] if kind is not VGGSoundDataset else None, **options)
        bare = {key.rpartition(":")[0]: row for key, row in rows_of(dataset).items()}
        file = tmp_path / f"{kind.__name__}.pt"
        torch.save(bare, file)
        if form == "file":
            dataset.load_audio_embeddings_from_file(file)
        elif form == "dictionary":
            dataset.audio_embs_from_file = bare
        else:
            server = Server(log)
            server.audio_embedding_file_name = str(file)
            dataset.enable_ast_cache = False
            server.load_node_embeddings(dataset)
        if kind is VEGASDataset:  # each class has a video_00000
            assert len(dataset.audio_embs) == 0
            assert {one.reason for one in dataset.ast_unreadable} == {"it has no class"}
        else:
            assert dataset.ast_missing == []
            assert dict(dataset.audio_embs).keys() == rows_of(dataset).keys()
            for key, row in rows_of(dataset).items():
                assert torch.equal(dataset.audio_embs[key], row)


def test_a_missing_text_file_is_an_error_at_once(make, tmp_path):
    for name in ("embedding_file", "text_embedding_file"):
        with pytest.raises(FileNotFoundError, match=r"none\.pt"):
            make(**{name: tmp_path / "none.pt"})


def test_rows_of_unknown_weights_beside_an_encoders_are_logged(make, vegas, cache, log, caplog):
    embstore.embed(VEGAS(vegas).select(selected_classes=["dog"]), Counting(log), cache)
    loop = make(selected_classes=["drum"])
    loop.save_ast_embeddings_to_cache(rows_of(loop))
    with caplog.at_level("INFO", "embstore"):
        found = make(selected_classes=["dog", "drum", "snoring"]).load_ast_embeddings_from_cache()
    assert list(found) == ["dog", "drum"]
    assert "20 rows of a training loop, with unknown weights, are used beside rows of an encoder" in caplog.text
    assert "VEGAS: partial: 40 of 50 there, 10 missing, 0 stale; the rows that are there are used" in caplog.text


# -- classes of a code base ----------------------------------------------------------------------


class Base:
    """What today's dataset inherits from."""


class OldDataset(A2VDataset, Base, existing="replace"):
    """A dataset that is written as today's is, with methods of its own, and one base class more."""

    def __init__(self, root, classes, cache, split=None):
        self.root_dir = str(root)
        self.enable_ast_cache = True
        self.ast_cache_dir = cache
        self.audio_embs_from_file = None
        self._audio_embs = {}
        self.load_audio = True
        if split is None:
            self.train = OldDataset(root, classes, cache, "train")
            self.val = OldDataset(root, classes, cache, "val")
            self.test = OldDataset(root, classes, cache, "test")
        chosen = [one for one in VEGAS(root).select(selected_classes=classes).chosen if split in (None, one.split)]
        self.samples = [
            {
                "file_id": one.listed.file_id,
                "class_name": one.listed.class_name,
                "audio_path": one.listed.path,
                "audio_emb": self.audio_embs.get(one.listed.audio_filename, None),
            }
            for one in chosen
        ]

    @property
    def audio_embs(self):
        return self._audio_embs

    @audio_embs.setter
    def audio_embs(self, value):
        self._audio_embs = value

    def load_ast_embeddings_from_cache(self, sample_rate=16_000, duration=5.0, model_name="ast"):
        raise AssertionError("today's own")

    def filter_audio_embeddings_from_file(self):
        raise AssertionError("today's own")

    def _load_audio(self, audio_path):
        return torch.zeros(80_000)

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        sample = self.samples[index]
        output = {"audio": self._load_audio(sample["audio_path"])} if self.load_audio else {}
        key = self.key_of(sample)
        if self.audio_embs and key in self.audio_embs:
            output["audio_emb"] = self.audio_embs[key]
        return {**output, "file_id": sample["file_id"], "class_name": sample["class_name"]}

    def key_of(self, sample):
        return f"{sample['file_id']}:{sample['class_name'].lower()}"

    def to(self, device):
        for key in self.audio_embs:
            self.audio_embs[key] = self.audio_embs[key].to(device)


OldDataset.ast_dataset_name = "VEGAS"


@pytest.mark.parametrize("key_of", [OldDataset.key_of, lambda self, sample: sample["file_id"]])  # ESC-50, VGGSound
def test_a_dataset_of_the_code_base_changes_its_base_class_and_nothing_else(key_of, vegas, cache, log, monkeypatch):
    monkeypatch.setattr(OldDataset, "key_of", key_of)
    dataset = OldDataset(vegas, ["dog"], cache)
    assert "load_ast_embeddings_from_cache" not in vars(OldDataset)
    assert dataset[0]["audio"].shape == (80_000,)
    assert dataset[0]["audio"].any()  # decoded, and no silence
    found = Server(log).load_node_embeddings(dataset)
    assert found.complete
    for part in (dataset, dataset.train, dataset.val, dataset.test):
        check(part)
    assert dataset.to("cpu").train.device == torch.device("cpu")
    assert dataset.audio_embs.written == {}  # rows of a store stay there
    assigned = OldDataset(vegas, ["dog"], cache)
    assigned.audio_embs = rows_of(assigned)
    assert torch.equal(assigned[3]["audio_emb"], dataset[3]["audio_emb"])
    again = OldDataset(vegas, ["dog"], cache)
    assert again.load_ast_embeddings_from_cache(*THREE)
    again.filter_audio_embeddings_from_file()
    check(again.train)


def test_a_clip_that_cannot_be_decoded_in_a_dataset_of_the_code_base(vegas, cache, log):
    path = vegas / "dog" / "audios" / "video_00004.wav"
    path.write_bytes(b"nothing")
    dataset = OldDataset(vegas, ["dog"], cache)
    with pytest.raises(errors.DecodeError, match=r"video_00004\.wav"):
        dataset[4]
    Server(log).load_node_embeddings(dataset)
    assert len(dataset) == 19
    check(dataset)


def test_a_class_that_keeps_its_own_methods_is_told(caplog):
    with caplog.at_level("INFO", "embstore"):

        class Kept(A2VClient):
            def audio_embedding_cache_load(self, samples):
                return "own"

        class Replaced(A2VClient, existing="replace"):
            def audio_embedding_cache_load(self, samples):
                return "own"

    assert "Kept: its own audio_embedding_cache_load override" in caplog.text
    assert Kept().audio_embedding_cache_load({}) == "own"
    assert Replaced.audio_embedding_cache_load is A2VClient.audio_embedding_cache_load
    with pytest.raises(ValueError, match="'keep' or 'replace'"):

        class Wrong(A2VClient, existing="drop"):
            pass


def test_todays_order_of_calls_in_create_clients_works(make, log, tmp_path, vegas):
    """The server's own lines at 8c08e90: cache, then another client's, then the legacy file."""
    first = make(selected_classes=["dog", "drum"])
    legacy = tmp_path / "legacy.pt"
    assert not first.load_ast_embeddings_from_cache(sample_rate=16_000, duration=5.0, model_name="ast-finetuned")
    torch.save({key: row for key, row in rows_of(first).items() if key.endswith("dog")}, legacy)
    first.load_audio_embeddings_from_file(str(legacy))
    assert len(first.train.audio_embs) == 20
    second = make(selected_classes=["dog"])
    assert first.audio_embs_from_file is not None
    second.audio_embs_from_file = first.audio_embs_from_file
    check(second)


def test_a_legacy_file_reaches_clients_of_other_classes(make, tmp_path):
    """The A2V server reads the file for its first client, and gives the others that client's embeddings."""
    first, second = make(selected_classes=["dog"]), make(selected_classes=["drum", "dog"])
    torch.save({**rows_of(first), **rows_of(second)}, tmp_path / "legacy.pt")
    first.load_audio_embeddings_from_file(tmp_path / "legacy.pt")
    assert {*first.audio_embs} == {*first.ast_keys}
    second.audio_embs_from_file = first.audio_embs_from_file
    check(second)


# -- client --------------------------------------------------------------------------------------


def batch_of(dataset, places, collate_fn=None):
    loader = torch.utils.data.DataLoader(dataset, batch_size=len(places), sampler=places, collate_fn=collate_fn)
    (batch,) = loader
    return batch


def test_a_client_keeps_what_the_model_made(make):
    dataset = make(selected_classes=["dog"])
    client = Client(dataset)
    batch = batch_of(dataset.train, [0, 1, 2], dataset.get_collate_fn())
    made = torch.randn(3, *SHAPE, requires_grad=True)
    client.audio_embeddings_dataset_cache(batch, {"audio_embeddings": made}, dataloader=None, device="cpu")
    keys = dataset.train.ast_keys[:3]
    assert list(client.audio_embedding_store) == keys
    for key, row in zip(keys, made, strict=True):
        assert torch.equal(dataset.audio_embs[key], row.detach())
        assert not dataset.audio_embs[key].requires_grad
        assert dataset.audio_embs[key].untyped_storage().nbytes() == row.nbytes
    assert torch.equal(client.audio_embedding_cache_load(batch), made.detach())
    loader = torch.utils.data.DataLoader(torch.utils.data.Subset(dataset.val, [0]))
    (batch,) = loader
    client.audio_embeddings_dataset_cache(batch, {"audio_embeddings": made[:1]}, dataloader=loader)
    assert len(client.audio_embedding_store) == 4
    client.audio_embeddings_dataset_cache({"audio": 1}, {"audio_embeddings": made})  # no keys: nothing to keep
    del client.audio_embedding_store
    assert client.audio_embedding_store == {}


def test_a_client_keeps_no_row_that_is_stored(make, log):
    """Today's loop hands embeddings that were read back to be kept: ten gigabytes would come into memory."""
    dataset = make(selected_classes=["dog"])
    Server(log).load_node_embeddings(dataset)
    client = Client(dataset)
    batch = batch_of(dataset.train, [0, 1])
    client.audio_embeddings_dataset_cache(batch, {"audio_embeddings": batch["audio_emb"]})
    assert dataset.audio_embs.written == client.audio_embedding_store == {}


class Data:
    """What the A2V `NodeData` is after a stratified split failed: for a class with fewer than ten samples."""

    def __init__(self, dataset, kind=torch.utils.data.Subset):
        self.dataset = dataset
        self.train_dataset, self.val_dataset, self.test_dataset = (kind(dataset, range(n)) for n in (16, 2, 2))


def test_a_nodes_splits_are_those_of_its_data_set(make, caplog):
    """A random split made samples for training into samples for testing."""
    dataset = make(selected_classes=["dog"], val_ratio=0, train_ratio=0.8)
    client = Client(dataset)
    client.node_data = data = Data(dataset)
    assert data.train_dataset is dataset.train
    assert data.test_dataset is dataset.test
    assert data.val_dataset is None  # it is empty
    assert (data.train_samples, data.val_samples, data.test_samples) == (16, 0, 4)
    assert "in place of random ones" in caplog.text
    caplog.clear()
    kept = [
        Data(make(split="train"), torch.utils.data.Subset),  # it has no splits
        Data(types.SimpleNamespace()),
        Data(dataset, lambda dataset, places: dataset),
        Data(dataset, lambda dataset, places: dataset.train),
    ]
    for data in kept:
        before = data.train_dataset
        client.node_data = data
        assert client.node_data.train_dataset is before
    assert caplog.text == ""


class Model:
    """What today's client has as its model: an extractor of features and AST, which count their clips."""

    def __init__(self):
        self.clips = 0
        self.ast_model = torch.nn.Linear(1, 1)
        self.ast_model.forward = self.run

    def ast_feature_extractor(self, audio, sampling_rate, return_tensors, padding):
        assert (sampling_rate, return_tensors, padding) == (16_000, "pt", True)
        return types.SimpleNamespace(input_values=torch.from_numpy(audio))

    def run(self, inputs):
        self.clips += len(inputs)
        return types.SimpleNamespace(last_hidden_state=inputs.mean(1)[:, None, None].expand(-1, *SHAPE))


def test_of_a_batch_that_is_partly_there_the_rest_alone_is_extracted(make):
    dataset = make(selected_classes=["dog"])
    client = Client(dataset, model=Model())
    batch = batch_of(dataset.train, [0, 1, 2, 3])
    assert client.audio_embedding_cache_load(batch) is None  # none is there: the model makes all of them, as today
    keys = dataset.train.ast_keys
    dataset.audio_embs[keys[1]] = torch.ones(SHAPE)
    dataset.audio_embs[keys[3]] = torch.ones(SHAPE) * 3
    found = client.audio_embedding_cache_load(batch)
    assert client.model.clips == 2
    assert found.shape == (4, *SHAPE)
    assert torch.equal(found[1], torch.ones(SHAPE))
    assert torch.equal(found[2], batch["audio"][2].mean().expand(SHAPE))
    assert list(client.audio_embedding_store) == [keys[0], keys[2]]
    assert torch.equal(client.audio_embedding_cache_load(batch), found)
    assert client.model.clips == 2


def test_a_batch_that_is_partly_there_without_a_model_or_audio(make):
    dataset = make(selected_classes=["dog"])
    client = Client(dataset)
    batch = batch_of(dataset.train, [0, 1])
    dataset.audio_embs[dataset.train.ast_keys[0]] = torch.ones(SHAPE)
    assert client.audio_embedding_cache_load(batch) is None
    client.model = Model()
    assert client.audio_embedding_cache_load({**batch, "audio": torch.empty(2, 0)}) is None
    assert client.audio_embedding_cache_load({"audio": 1}) is None


def test_a_client_sees_no_other_clients_keys(make, log):
    one, other = (make(num_nodes=2, node_split_id=number) for number in (0, 1))
    server = Server(log)
    for dataset in (one, other):
        server.load_node_embeddings(dataset)
        server.clients.append(Client(dataset))
    assert not {*one.audio_embs} & {*other.audio_embs}
    with pytest.raises(ForeignKeysError, match="not client 0's own"):
        one.audio_embs[other.ast_keys[0]]


# -- server --------------------------------------------------------------------------------------


def test_the_order_is_cache_other_clients_legacy_file_extraction(make, vegas, cache, log, encoded, tmp_path, caplog):
    embstore.embed(VEGAS(vegas).select(selected_classes=["dog"], num_samples_per_class=12), Counting(log), cache)
    other = make(selected_classes=["dog"])
    stored = {*embstore.Cache(cache).open({**Counting(log).config, "dataset": "VEGAS"})}
    missing = [key for key in other.ast_keys if key not in stored]
    rows = rows_of(other)
    other.audio_embs = {key: rows[key] for key in missing[:3]}
    server = Server(log, [Client(other)])
    server.audio_embedding_file_name = str(tmp_path / "legacy.pt")
    torch.save({key: rows[key] for key in missing[2:6]}, server.audio_embedding_file_name)
    dataset = make(selected_classes=["dog"])
    before = encoded()
    with caplog.at_level("INFO", "embstore"):
        found = server.load_node_embeddings(dataset, node="seven")
    assert [(a.where, a.outcome, a.found) for a in found.attempts] == [
        ("cache", "partial", 12),
        ("other clients", "partial", 3),
        ("legacy file", "partial", 3),
        ("extraction", "hit", 2),
    ]
    assert encoded() - before == 2
    check(dataset)
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("node seven: ")]
    assert len(lines) == 5  # one for each attempt, and one for all
    assert lines[0].startswith("node seven: cache: partial: 12 found, 8 missing, ")
    assert lines[3].endswith(f"2 encoded, 0 failed, in {found.attempts[3].reason.rpartition(' ')[2]}")
    assert (found.metrics.hits, found.metrics.misses, found.metrics.extracted) == (18, 2, 2)


def test_a_second_server_extracts_nothing_and_makes_no_encoder(make, log, encoded):
    first = Server(log)
    lists = [["dog"], ["dog", "drum"], ["drum", "snoring"], None]
    for classes in lists:
        assert first.load_node_embeddings(make(selected_classes=classes)).complete
    assert (first.made, encoded()) == (1, 50)
    second = Server(log)
    for classes in lists:
        dataset = make(selected_classes=classes)
        found = second.load_node_embeddings(dataset)
        assert [(a.where, a.outcome) for a in found.attempts] == [("cache", "hit")]
        check(dataset)
    assert (second.made, encoded()) == (0, 50)
    assert second.embedding_metrics.total.hits == 140


def test_a_legacy_file_of_another_configuration_is_not_used(make, log, tmp_path):
    dataset = make(selected_classes=["dog"], enable_ast_cache=False)
    server = Server(log)
    server.audio_embedding_file_name = tmp_path / "cache.pt"
    metadata = {"sample_rate": 8_000, "duration": 5.0, "model_name": "ast"}
    torch.save({"embeddings": rows_of(dataset), "metadata": metadata}, server.audio_embedding_file_name)
    found = server.load_node_embeddings(dataset)
    assert found.attempts[2].outcome == "miss"
    assert "sample_rate: expected 16000, found 8000" in found.attempts[2].reason
    assert not found.complete
    torch.save(
        {"embeddings": rows_of(dataset), "metadata": {**metadata, "sample_rate": 16_000}},
        server.audio_embedding_file_name,
    )
    assert server.load_node_embeddings(dataset).complete
    check(dataset)


def test_the_legacy_file_is_written_whole_and_loses_nothing(make, log, tmp_path):
    """Of rows of a store each is written alone: the storage of one has all other clients' rows in it."""
    file = tmp_path / "embeddings.pt"
    torch.save({"before:drum": torch.ones(SHAPE)}, file)
    stored, made = make(selected_classes=["dog"]), make(selected_classes=["snoring"])
    server = Server(log, [Client(stored), Client(made)])
    server.load_node_embeddings(stored)
    rows = rows_of(made)
    server.clients[1].audio_embedding_store = {**rows, "0_sample_1": torch.zeros(SHAPE)}
    assert not server.save_audio_embeddings(file_name=file)  # one of them has no key
    assert list(server.clients[1].audio_embedding_store) == ["0_sample_1"]
    found = torch.load(file, weights_only=True)
    assert len(found) == 1 + 20 + 10 + 1
    assert torch.equal(found["video_00003:snoring"], rows["video_00003:snoring"])
    assert torch.equal(found["before:drum"], torch.ones(SHAPE))
    assert torch.equal(found["video_00003:dog"], rows_of(stored)["video_00003:dog"])
    assert file.stat().st_size < 60_000
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".partial"] == []
    broken = tmp_path / "broken.pt"
    torch.save({"video_00000:dog": Evil()}, broken)
    before = broken.read_bytes()
    server.clients[1].audio_embedding_store = rows
    with pytest.raises(errors.UnsafeFileError):
        server.save_audio_embeddings(file_name=broken)
    assert broken.read_bytes() == before


def test_clients_rows_are_saved_beside_those_of_an_encoder(make, log, cache):
    dataset = make(selected_classes=["dog"])
    Server(log).load_node_embeddings(dataset)
    other = make(selected_classes=["dog", "drum"])
    assert list(other.load_ast_embeddings_from_cache(*THREE)) == ["dog"]
    client = Client(other)
    client.audio_embedding_store = {key: row for key, row in rows_of(other).items() if key.endswith("drum")}
    assert Server(log, [client]).save_audio_embeddings()
    assert len(embstore.Cache(cache)) == 2  # a training loop does not say which weights it had
    check(other)
    again = make(selected_classes=["dog", "drum"])
    assert again.load_ast_embeddings_from_cache(*THREE)
    check(again)


def test_rows_from_a_file_stay_when_others_are_saved(make, log, tmp_path):
    dataset = make(selected_classes=["dog"])
    rows = rows_of(dataset)
    keys = list(rows)
    torch.save({key: rows[key] for key in keys[:8]}, tmp_path / "legacy.pt")
    dataset.load_audio_embeddings_from_file(tmp_path / "legacy.pt")
    client = Client(dataset)
    client.audio_embedding_store = {key: rows[key] for key in keys[8:]}
    assert Server(log, [client]).save_audio_embeddings()
    check(dataset)


AST_RUN = """
import json, logging, sys
root, cache, model, classes = json.loads(sys.argv[1])
from embstore_fl.a2v import A2VServer, VEGASDataset
class Server(A2VServer):
    ast_model, ast_duration, ast_model_name, clients = model, 0.4, "tiny-ast", ()
server = Server()
datasets = [VEGASDataset(root_dir=root, ast_cache_dir=cache, selected_classes=c, audio_duration=0.4) for c in classes]
outcomes = [[a.outcome for a in server.load_node_embeddings(d).attempts] for d in datasets]
read = sum(float(sample["audio_emb"].sum()) for d in datasets for sample in d)
print(json.dumps([outcomes, read, "transformers" in sys.modules]))
"""


def test_the_second_run_calls_no_ast_and_imports_no_transformers(vegas, cache, tmp_path):
    """The real family of models, tiny, in processes of their own."""
    pytest.importorskip("transformers")
    import json

    from tests._helpers import tiny_models

    model = tiny_models.ast(tmp_path / "tiny-ast")
    given = json.dumps([str(vegas), str(cache), str(model), [["snoring"], ["snoring", "dog"]]])

    def run():
        done = subprocess.run([sys.executable, "-c", AST_RUN, given], capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    outcomes, first, imported = run()
    assert [one[-1] for one in outcomes] == ["hit", "hit"]
    assert len(outcomes[0]) == 4
    assert imported
    outcomes, second, imported = run()
    assert outcomes == [["hit"], ["hit"]]
    assert not imported
    assert first == second
    (entry,) = embstore.Cache(cache).entries()
    assert entry.rows == 30
    np.testing.assert_allclose(np.isfinite(embstore.open(entry.path).select().to_numpy()).all(), True)
