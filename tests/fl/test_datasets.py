"""VEGAS, ESC-50 and VGGSound in their real layouts: as sources, and as what a node has of them."""

import itertools
import json
import pickle
import shutil
import tracemalloc
import wave

import numpy as np
import pytest

import embstore
from embstore import errors
from embstore_fl.datasets import ESC50, VEGAS, Selection, VGGSound, source_for
from embstore_fl.errors import (
    DatasetLayoutError,
    ForeignKeysError,
    NodeError,
    NodeRangeError,
    RatiosError,
    UnknownDatasetError,
    UnknownSplitError,
)
from embstore_fl.splits import SplitScheme
from tests._helpers.crash import python
from tests.fl import layouts
from tests.fl.conftest import SHAPE, Counting, row_of

torch = pytest.importorskip("torch")

from embstore.encoders import AudioSettings  # noqa: E402
from embstore_fl.datasets import FLDataset  # noqa: E402
from embstore_fl.datasets.clips import decode_clip  # noqa: E402
from embstore_fl.datasets.lazy_clips import LazyClips  # noqa: E402
from embstore_fl.datasets.listed import file_of  # noqa: E402

DOGS = ["dog", "drum"]


def keys(source):
    return [str(sample.key) for sample in source]


# -- the three layouts -------------------------------------------------------------------------


def test_vegas_lists_its_classes_in_the_order_of_their_labels(vegas):
    source = VEGAS(vegas)
    assert source.name == "VEGAS"
    assert len(source.labels) == 10
    assert source.labels["water_flowing"] == 9
    assert keys(source)[:2] == ["video_00000:dog", "video_00001:dog"]
    assert len(keys(source)) == 50
    assert keys(source.select(selected_classes=["snoring", 2], num_samples_per_class=1, seed=1)) == keys(
        source.select(selected_classes=["dog", 8], num_samples_per_class=1, seed=1)
    )


def test_vegas_says_what_lies_beside_a_recording(tmp_path):
    root = layouts.vegas(tmp_path / "VEGAS", {"dog": 2}, beside=("img", "info"))
    source = VEGAS(root)
    details = source.details(source.listing()[1])
    assert details["image_filename"] == "video_00001.jpg"
    assert (details["video_filename"], details["video_path"]) == ("", None)
    assert (details["ytid"], details["start_second"], details["end_second"]) == ("yt2", 1.0, 6.0)
    bare = VEGAS(layouts.vegas(tmp_path / "bare", {"dog": 1}))
    assert bare.details(bare.listing()[0])["ytid"] == ""


def test_a_folder_laid_out_like_vegas_with_other_classes(tmp_path):
    root = layouts.vegas(tmp_path / "x", {"bass": 2, "guit": 2})
    source = VEGAS(root, name="recordings", classes=["guit", "bass"])
    assert source.labels == {"guit": 0, "bass": 1}
    assert keys(source)[0] == "video_00000:guit"
    with pytest.raises(ValueError, match="different classes"):
        VEGAS(root, classes=["bass", "bass"])


def test_esc50_in_its_official_layout(tmp_path):
    source = ESC50(layouts.esc50_official(tmp_path / "ESC-50", ["dog", "rooster", "pig"]))
    assert source.official
    assert (source.folds, source.official_splits) == ((1, 2, 3, 4, 5), ())
    assert source.labels == {"dog": 0, "rooster": 1, "pig": 2}
    assert len(keys(source)) == 30
    assert keys(source)[0] == "1-00-A-0:dog"
    assert {source.details(clip)["fold"] for clip in source.listing(["pig"])} == {1, 2, 3, 4, 5}


def test_esc50_with_a_folder_and_a_file_for_each_fold(tmp_path):
    source = ESC50(layouts.esc50_folders(tmp_path / "esc50", ["dog", "rooster", "pig"]))
    assert not source.official
    assert source.folds == (0, 1, 2, 3, 4)
    assert len(keys(source)) == 30
    assert keys(source) == keys(ESC50(tmp_path / "esc50"))


def test_clips_that_are_listed_and_not_there_are_counted(tmp_path, caplog):
    root = layouts.esc50_folders(tmp_path / "esc50", ["dog"])
    (root / "audio" / "fold02" / "2-00-A-0.wav").unlink()
    (root / "fold04.json").unlink()
    with caplog.at_level("WARNING", "embstore"):
        assert len(keys(ESC50(root))) == 7
    assert "1 of 8 listed clips are missing" in caplog.text
    assert "fold04.json: it is missing" in caplog.text


def test_vggsound_has_the_classes_of_its_table(tmp_path):
    """Fault 8: every file got the first active class, and validation and test were the same files."""
    source = VGGSound(layouts.vggsound(tmp_path / "vggsound"))
    names = ["cattle,_bovinae_cowbell", "dog_barking", "playing_acoustic_guitar"]
    assert list(source.labels) == names
    found = keys(source)
    assert len(found) == 15  # one of each class has gone
    assert {key.rpartition(":")[2] for key in found} == {*names}
    assert found[0] == "-y_20_000000:cattle,_bovinae_cowbell"
    chosen = source.select(selected_classes=["Dog barking", 2], by="official").chosen
    assert {one.listed.class_name for one in chosen} == {"dog_barking", "playing_acoustic_guitar"}
    splits = {name: {one.listed.key for one in chosen if one.split == name} for name in ("train", "val", "test")}
    assert all(splits.values())
    for one, other in itertools.combinations(splits.values(), 2):
        assert not one & other
    assert {one.listed.group for one in chosen if one.split == "test"} == {"test"}
    assert {one.listed.group for one in chosen if one.split in ("train", "val")} == {"train"}


def test_files_of_vggsound_lie_in_any_folder(tmp_path):
    root = layouts.vggsound(tmp_path / "vggsound")
    shutil.move(root / "train" / "audios", root / "elsewhere")
    assert len(keys(VGGSound(root))) == 15
    (root / "twice").mkdir()
    path = next((root / "elsewhere").iterdir())
    shutil.copy(path, root / "twice" / path.name)
    with pytest.raises(errors.DuplicateKeysError, match=r"twice.*"):
        keys(VGGSound(root))


def test_folders_that_are_not_laid_out_so(tmp_path):
    with pytest.raises(errors.EmptySourceError, match="no such folder"):
        VEGAS(tmp_path / "nothing")
    with pytest.raises(DatasetLayoutError, match=r"esc50\.csv"):
        ESC50(tmp_path)
    with pytest.raises(DatasetLayoutError, match="no such file"):
        VGGSound(tmp_path)
    (tmp_path / "vggsound.csv").write_text("id,0,dog,train\nid,zero,dog,train\n")
    with pytest.raises(DatasetLayoutError, match="line 2"):
        keys(VGGSound(tmp_path))
    (tmp_path / "vggsound.csv").write_text("id,0,dog,validation\n")
    with pytest.raises(DatasetLayoutError, match="train or test"):
        keys(VGGSound(tmp_path))
    (tmp_path / "class_labels.json").write_text(json.dumps({"dog": 0, "cat": 0}))
    with pytest.raises(DatasetLayoutError, match="a different number"):
        keys(ESC50(tmp_path))
    (tmp_path / "class_labels.json").write_text(json.dumps({"dog": 0}))
    (tmp_path / "fold00.json").write_text(json.dumps({"a.wav": ["cat"]}))
    with pytest.raises(DatasetLayoutError, match=r"a\.wav"):
        keys(ESC50(tmp_path))
    (tmp_path / "fold00.json").write_text("[")
    with pytest.raises(DatasetLayoutError, match="not JSON"):
        keys(ESC50(tmp_path))
    with pytest.raises(errors.EmptySourceError, match="no recordings"):
        keys(VEGAS(tmp_path))


def test_a_source_for_the_command(vegas, tmp_path):
    assert keys(source_for("vegas", vegas)) == keys(VEGAS(vegas))
    chosen = source_for("VEGAS", vegas, selected_classes=["dog"], num_nodes=4, node_split_id=1)
    assert (len(chosen), chosen.name) == (5, "VEGAS")
    assert len(keys(source_for("ESC-50", layouts.esc50_official(tmp_path / "e", ["dog"])))) == 10
    with pytest.raises(UnknownDatasetError) as caught:
        source_for("audioset", vegas)
    assert caught.value.known == ("vegas", "esc50", "vggsound")


def test_a_source_goes_through_embed(vegas, log, encoded, cache):
    source = source_for("vegas", vegas, selected_classes=["dog"], num_samples_per_class=5)
    result = embstore.embed(source, Counting(log), cache)
    assert (result.encoded, result.config["dataset"]) == (5, "VEGAS")
    rest = embstore.embed(VEGAS(vegas), Counting(log), cache)
    assert (rest.hits, rest.encoded, rest.path) == (5, 45, result.path)
    assert encoded() == 50


# -- who has what ------------------------------------------------------------------------------


def parts_of(root, **selection):
    """Return keys by split."""
    parts = {"train": set(), "val": set(), "test": set()}
    for one in VEGAS(root).select(**selection).chosen:
        parts[one.split].add(one.listed.key)
    return parts


def test_two_nodes_share_no_sample_whatever_their_classes(vegas):
    """Fault 7: one random state was shared over the classes, and 97 of 200 "dog" samples were in both nodes."""
    lists = [["dog", "drum"], ["drum", "dog"], ["dog"], ["snoring", "dog"], None]
    for one, other in itertools.product(lists, lists):
        for mode in ({"num_nodes": 2}, {"samples_per_node": 5}):
            first = keys(VEGAS(vegas).select(selected_classes=one, node_split_id=0, **mode))
            second = keys(VEGAS(vegas).select(selected_classes=other, node_split_id=1, **mode))
            assert first
            assert second
            assert not {*first} & {*second}


def test_no_nodes_test_sample_is_anothers_training_sample(vegas):
    """Fault 7: splits had a seed for each node."""
    nodes = [{}, *({"num_nodes": n, "node_split_id": i} for n in (2, 3, 5) for i in range(n))]
    nodes += [{"samples_per_node": 4, "node_split_id": i} for i in range(5)]
    found = [parts_of(vegas, selected_classes=classes, **node) for node in nodes for classes in (None, ["dog"])]
    for split, other in itertools.permutations(("train", "val", "test"), 2):
        together = set().union(*(parts[split] for parts in found))
        assert not together & set().union(*(parts[other] for parts in found))


def test_nodes_with_other_ratios_and_numbers_share_no_sample_either(vegas):
    one = parts_of(vegas, num_nodes=2, node_split_id=0, ratios={"train": 0.5, "test": 0.5}, num_samples_per_class=7)
    other = parts_of(vegas, num_nodes=2, node_split_id=1)
    assert not set().union(*one.values()) & set().union(*other.values())


def test_nodes_cover_the_data_set(vegas):
    found = [key for i in range(3) for key in keys(VEGAS(vegas).select(num_nodes=3, node_split_id=i))]
    assert sorted(found) == sorted(keys(VEGAS(vegas)))


def test_splits_are_stratified(vegas):
    parts = parts_of(vegas)
    for name, count in (("dog", 20), ("drum", 20), ("snoring", 10)):
        of_class = {split: sum(key.endswith(name) for key in members) for split, members in parts.items()}
        assert of_class == {"train": count * 7 // 10, "val": count // 10, "test": count // 5}
    node = parts_of(vegas, num_nodes=2, node_split_id=1, selected_classes=["dog"])
    assert {split: len(members) for split, members in node.items()} == {"train": 7, "val": 1, "test": 2}


def test_another_seed_is_another_split(vegas):
    assert parts_of(vegas, seed=1) == parts_of(vegas, seed=1) != parts_of(vegas, seed=2)


def test_a_split_does_not_change_with_the_order_of_files(vegas, monkeypatch):
    before = parts_of(vegas, num_nodes=3, node_split_id=2)
    listing = VEGAS.listing
    monkeypatch.setattr(VEGAS, "listing", lambda self, classes=None: listing(self, classes)[::-1])
    assert parts_of(vegas, num_nodes=3, node_split_id=2) == before


def test_folds_make_splits(tmp_path):
    source = ESC50(layouts.esc50_official(tmp_path / "ESC-50", ["dog", "pig"]))
    chosen = source.select(by="fold", folds={"train": (1, 2, 3), "val": (4,), "test": (5,)}).chosen
    assert {one.split: {o.listed.group for o in chosen if o.split == one.split} for one in chosen} == {
        "train": {1, 2, 3},
        "val": {4},
        "test": {5},
    }
    half = source.select(by="fold", folds={"train": (1,), "test": (5,)}, splits=["train", "test"]).chosen
    assert {one.listed.group for one in half} == {1, 5}


def test_labels_are_never_renumbered(vegas):
    for classes, labels in ((["snoring", "dog"], {"dog": 2, "snoring": 8}), ([8], {"snoring": 8}), (None, None)):
        dataset = FLDataset(VEGAS(vegas), Selection.of(selected_classes=classes))
        assert dataset.active_classes == (labels or VEGAS(vegas).labels)
        for sample in dataset:
            assert int(sample["label"]) == {"dog": 2, "drum": 3, "snoring": 8}[sample["class_name"]]


@pytest.mark.parametrize(
    ("selection", "error", "reason"),
    [
        ({"selected_classes": ["dog", "cat", 12]}, errors.UnknownClassError, "'cat', '12'"),
        ({"excluded_classes": ["cat"]}, errors.UnknownClassError, "cat"),
        ({"selected_classes": [True]}, errors.UnknownClassError, "True"),
        ({"selected_classes": ["dog"], "excluded_classes": ["dog"]}, errors.UnknownClassError, "all are excluded"),
        ({"selected_classes": "dog"}, TypeError, "a list of classes"),
        ({"by": "official"}, UnknownSplitError, "no split 'official'"),
        ({"by": "fold", "folds": {"train": (1,)}}, UnknownSplitError, "no fold 1; it has none"),
        ({"splits": "validation"}, UnknownSplitError, "'validation'"),
        ({"ratios": {"train": 0.8, "test": 0.1}}, RatiosError, "sum to 1"),
        ({"num_nodes": 2, "samples_per_node": 3, "node_split_id": 0}, NodeError, "not both"),
        ({"num_nodes": 2, "samples_per_node": 3}, NodeError, "not both"),
        ({"num_nodes": 2}, NodeError, "node_split_id, the node's number"),
        ({"num_nodes": 2, "node_split_id": 2}, NodeRangeError, "no node 2"),
        ({"samples_per_node": 5, "node_split_id": 4}, NodeRangeError, "nodes go from 0 to 3"),
        ({"num_samples_per_class": -1}, ValueError, "samples per class"),
    ],
    ids=str,
)
def test_bad_selections(vegas, selection, error, reason):
    with pytest.raises(error, match=reason):
        VEGAS(vegas).select(**selection)


def test_a_fold_that_there_is_not(tmp_path):
    esc50 = ESC50(layouts.esc50_official(tmp_path / "ESC-50", ["dog"]))
    with pytest.raises(UnknownSplitError, match="no fold 0; it has 1, 2, 3, 4, 5") as caught:
        esc50.select(by="fold", folds={"train": (0, 1)})
    assert (caught.value.kind, caught.value.wanted) == ("fold", 0)


def test_a_node_with_fewer_samples_than_it_asks_for_is_told(vegas, caplog):
    with caplog.at_level("WARNING", "embstore"):
        chosen = VEGAS(vegas).select(samples_per_node=8, node_split_id=1, selected_classes=["dog", "snoring"])
    assert "node 1 gets fewer samples of snoring" in caplog.text
    assert len(chosen) == 10


# -- the data set ------------------------------------------------------------------------------


@pytest.fixture
def stored(vegas, log, cache):
    """The store of all of VEGAS."""
    return embstore.embed(VEGAS(vegas), Counting(log), cache).path


def test_a_sample_is_a_mapping_with_its_embedding(vegas, stored):
    dataset = FLDataset(VEGAS(vegas), Selection.of(selected_classes=DOGS), text_embs={"dog": {"sd": 1}})
    assert dataset.use(stored) == []
    sample = dataset[3]
    assert list(sample) == ["audio_emb", "file_id", "class_name", "audio_filename", "label", "text_emb"]
    assert (sample["file_id"], sample["class_name"]) == ("video_00003", "dog")
    assert sample["audio_filename"] == "video_00003.wav"
    assert sample["label"].dtype == torch.int64
    assert sample["label"].shape == ()
    assert sample["text_emb"] == {"sd": 1}
    content = (vegas / "dog" / "audios" / "video_00003.wav").read_bytes()
    np.testing.assert_array_equal(sample["audio_emb"].numpy(), row_of(content))
    assert "text_emb" not in dataset[-1]
    with pytest.raises(IndexError):
        dataset[40]


def test_reading_every_sample_decodes_and_copies_nothing(vegas, stored, monkeypatch):
    monkeypatch.setattr("embstore_fl.datasets.federated.decode_clip", lambda *_: pytest.fail("decoded"))
    dataset = FLDataset(VEGAS(vegas))
    dataset.use(stored)
    first = [sample["audio_emb"] for sample in dataset]
    assert len({emb.untyped_storage().data_ptr() for emb in first}) == 1
    for part in (dataset.train, dataset.val, dataset.test):
        for sample in part:
            key = f"{sample['file_id']}:{sample['class_name']}"
            assert sample["audio_emb"].data_ptr() == first[dataset.keys.index(key)].data_ptr()


def test_the_splits_share_the_embeddings_of_the_whole(vegas, stored):
    dataset = FLDataset(VEGAS(vegas))
    train = dataset.train  # before anything is loaded
    assert "audio_emb" not in train[0]
    dataset.use(stored)
    assert all("audio_emb" in sample for part in (train, dataset.val, dataset.test) for sample in part)
    assert train.audio_embs is dataset.audio_embs
    assert len(train) + len(dataset.val) + len(dataset.test) == len(dataset)
    assert getattr(train, "train", None) is None


def test_only_the_decoded_audio_that_is_asked_for(vegas, stored):
    wanted = Selection.of(selected_classes=["dog"], num_samples_per_class=2)
    always = FLDataset(VEGAS(vegas), wanted, load_audio="always")
    assert always[0]["audio"].shape == (80_000,)
    assert "audio_emb" not in always[0]
    missing = FLDataset(VEGAS(vegas), wanted, load_audio="missing")
    assert missing[0]["audio"].shape == (80_000,)
    missing.use(stored)
    assert isinstance(missing[0]["audio"], LazyClips)
    assert torch.equal(missing[0]["audio"], always[0]["audio"])
    whole = FLDataset(VEGAS(vegas), wanted, load_audio="missing", audio=AudioSettings(sample_rate=16_000))
    whole.use(stored)
    assert type(whole[0]["audio"]) is torch.Tensor  # without a duration its length is not known before
    with pytest.raises(ValueError, match="'never', 'missing' or 'always'"):
        FLDataset(VEGAS(vegas), load_audio=True)


def test_a_clip_that_cannot_be_decoded_is_no_silence(vegas, log, cache):
    """Fault 9: it became silence, which was then cached as its embedding."""
    broken = vegas / "dog" / "audios" / "video_00001.wav"
    broken.write_bytes(b"nothing")
    result = embstore.embed(VEGAS(vegas), Counting(log), cache)
    assert [failure.key for failure in result.failed] == ["video_00001:dog"]
    assert "video_00001:dog" not in result.store
    dataset = FLDataset(VEGAS(vegas), load_audio="missing")
    assert dataset.use(result.path) == ["video_00001:dog"]
    with pytest.raises(errors.DecodeError, match=r"video_00001\.wav"):
        dataset[1]
    whole = len(dataset.train) + len(dataset.val) + len(dataset.test)
    dataset.leave_out(["video_00001:dog"])
    assert len(dataset) == 49
    assert len(dataset.train) + len(dataset.val) + len(dataset.test) == whole - 1
    assert all("audio_emb" in sample for sample in dataset)


def test_a_batch_has_all_embeddings_or_all_audio(vegas, stored):
    dataset = FLDataset(VEGAS(vegas), Selection.of(selected_classes=["dog"]), load_audio="missing")
    dataset.use(stored)
    del dataset.audio_embs["video_00002:dog"]
    loader = torch.utils.data.DataLoader(dataset, batch_size=2)
    batches = list(loader)
    assert batches[0]["audio_emb"].shape == (2, *SHAPE)
    assert isinstance(batches[0]["audio"], LazyClips)
    assert "audio_emb" not in batches[1]
    assert batches[1]["audio"].shape == (2, 80_000)
    joined = torch.utils.data.ConcatDataset([dataset.train, dataset.val])  # reads samples one by one
    (batch,) = torch.utils.data.DataLoader(joined, batch_size=len(joined))
    assert "audio_emb" not in batch
    assert len(batch["class_name"]) == len(joined)


def test_a_client_asks_for_another_clients_keys(vegas, stored):
    one, other = (
        FLDataset(VEGAS(vegas), Selection.of(num_nodes=2, node_split_id=node), client=node) for node in (0, 1)
    )
    one.use(stored)
    foreign = other.keys[0]
    assert foreign not in one.audio_embs
    assert one.audio_embs.get(foreign) is None
    assert not {*one.audio_embs} & {*other.keys}
    with pytest.raises(ForeignKeysError) as caught:
        one.audio_embs[foreign]
    assert (caught.value.client, caught.value.keys) == (0, (foreign,))


def test_what_is_written_stays_in_memory(vegas, stored):
    dataset = FLDataset(VEGAS(vegas), Selection.of(selected_classes=["dog"]))
    dataset.use(stored)
    before = embstore.open(stored).select().to_numpy()
    embs, key = dataset.audio_embs, dataset.keys[0]
    embs[key] = torch.zeros(SHAPE)
    assert not dataset[0]["audio_emb"].any()
    embs[dataset.keys[1]].fill_(7)  # in place: this process's own copy of the page
    del embs[key]
    assert key not in embs
    assert len(embs) == 19
    with pytest.raises(errors.MissingKeysError):
        embs[key]
    with pytest.raises(errors.MissingKeysError):
        del embs[key]
    embs.clear()
    assert len(embs) == 0
    assert not embs
    np.testing.assert_array_equal(embstore.open(stored).select().to_numpy(), before)
    assert dataset.use(stored) == []


def test_another_mapping_takes_the_place_of_the_embeddings(vegas):
    dataset = FLDataset(VEGAS(vegas), Selection.of(selected_classes=["dog"]))
    dataset.audio_embs = {"video_00000:dog": torch.ones(2), "video_00000:drum": torch.ones(2)}
    assert list(dataset.audio_embs) == ["video_00000:dog"]
    dataset.train.audio_embs = None
    assert list(dataset.audio_embs) == []


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_the_store_for_themselves(vegas, stored, method):
    dataset = FLDataset(VEGAS(vegas), Selection.of(selected_classes=["dog"]))
    dataset.use(stored)
    expected = torch.stack([sample["audio_emb"] for sample in dataset])
    assert len(pickle.dumps(dataset.train)) < 20_000
    loader = torch.utils.data.DataLoader(dataset, batch_size=5, num_workers=1, multiprocessing_context=method)
    found = torch.cat([batch["audio_emb"] for batch in loader])
    assert torch.equal(found, expected)


def test_a_store_that_grows_is_compacted_and_loses_rows_while_it_is_read(vegas, log, cache):
    source = VEGAS(vegas)
    path = embstore.embed(source.select(selected_classes=["dog"]), Counting(log), cache).path
    dogs = FLDataset(source, Selection.of(selected_classes=["dog"]))
    assert dogs.use(path) == []
    expected = [sample["audio_emb"].clone() for sample in dogs]
    embstore.embed(source, Counting(log), cache)
    others = FLDataset(source, Selection.of(excluded_classes=["dog"]))
    assert others.use(path) == []
    assert all("audio_emb" in sample for sample in others)
    with embstore.open(path, "r+") as store:
        store.erase(["video_00000:drum", "video_00003:dog"])
        store.compact()
    assert len(others.use(path)) == 1
    left = [place for place in range(20) if place != 3]
    assert [dogs[place]["audio_emb"].equal(expected[place]) for place in left] == [True] * 19
    assert "audio_emb" not in dogs[3]


def test_a_store_that_cannot_be_mapped_is_read_row_by_row(vegas, stored, monkeypatch):
    monkeypatch.setattr("embstore_fl.stores.available", lambda nbytes, maps: "too many maps")
    dataset = FLDataset(VEGAS(vegas), Selection.of(selected_classes=["drum"]))
    dataset.use(stored)
    content = (vegas / "drum" / "audios" / "video_00002.wav").read_bytes()
    np.testing.assert_array_equal(dataset[2]["audio_emb"].numpy(), row_of(content))


def test_samples_are_described_without_being_read(vegas):
    dataset = FLDataset(VEGAS(vegas), Selection(scheme=SplitScheme(seed=3)))
    assert len(dataset.samples) == 50
    first = dataset.samples[0]
    assert first["audio_path"].endswith("dog/audios/video_00000.wav")
    assert (first["class_label"], first["sample_idx"], first["video_id"]) == (2, 0, "video_00000")
    assert [one["split"] for one in dataset.samples] == [one.split for one in dataset.chosen]
    assert dataset.samples[-2:][1]["sample_idx"] == 49
    assert "50 samples" in repr(dataset)


def test_listing_needs_no_torch(vegas):
    code = (
        "import sys; from embstore_fl.datasets import source_for; "
        f"n = len(list(source_for('vegas', {str(vegas)!r}, selected_classes=['dog']))); "
        "print(n, [m for m in ('torch', 'transformers', 'zarr') if m in sys.modules])"
    )
    assert python(code) == "20 []\n"


def test_a_clip_of_a_long_recording_is_read_in_part(tmp_path):
    path = tmp_path / "long.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(np.full(2**24, 2**14, "<i2").tobytes())
    tracemalloc.start()
    clip = decode_clip(file_of("long", path), AudioSettings(sample_rate=16_000, duration=0.5))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert clip.tolist() == [0.5] * 8000
    assert most < 2**24
