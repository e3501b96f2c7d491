"""The calls and the caches of the A2V code from 29 January 2026 on, beside those of 8c08e90."""

import json

import numpy as np
import pytest

import embstore
from embstore.errors import FileFormatError
from embstore_fl.errors import ClipSettingsError
from tests.fl.conftest import SHAPE, Counting
from tests.fl.test_a2v_tokens import Client, Server, whole_row

torch = pytest.importorskip("torch")

from embstore_fl.a2v import VEGASDataset  # noqa: E402
from embstore_fl.datasets import VEGAS  # noqa: E402


@pytest.fixture
def make(vegas, cache):
    return lambda **options: VEGASDataset(
        root_dir=vegas, ast_cache_dir=cache, **{"selected_classes": ["dog", "snoring"], **options}
    )


def by_class(dataset):
    found = {}
    for key in dataset.ast_keys:
        file_id, _, name = key.partition(":")
        found.setdefault(name, {})[file_id] = whole_row(dataset, file_id, name)
    return found


def check(dataset):
    assert dataset.ast_missing == []
    for key in dataset.ast_keys[::7]:
        assert torch.equal(dataset.audio_embs[key], whole_row(dataset, *key.split(":")))


SAVES = {
    "as_named": lambda dataset, rows, folder: dataset.save_ast_embeddings_to_cache(
        ast_outputs_dict=rows, cache_dir=folder
    ),
    "named": lambda dataset, rows, folder: dataset.save_ast_embeddings_to_cache(ast_outputs_dict=rows),
    "first": lambda dataset, rows, folder: dataset.save_ast_embeddings_to_cache(rows),
    "second": lambda dataset, rows, folder: dataset.save_ast_embeddings_to_cache(rows, str(folder)),
    "path": lambda dataset, rows, folder: dataset.save_ast_embeddings_to_cache(rows, folder),
}
LOADS = {
    "named": lambda dataset, folder, classes: dataset.load_ast_embeddings_from_cache(cache_dir=folder, classes=classes),
    "first": lambda dataset, folder, classes: dataset.load_ast_embeddings_from_cache(str(folder), classes),
    "third": lambda dataset, folder, classes: dataset.load_ast_embeddings_from_cache(folder, classes, False),
    "previous": lambda dataset, folder, classes: dataset.load_ast_embeddings_from_cache(
        cache_dir=folder, classes=classes, close_previous=False
    ),
}


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("load", LOADS)
def test_embeddings_by_class_are_saved_and_loaded(save, load, make, cache):
    dataset = make()
    assert SAVES[save](dataset, by_class(dataset), cache) == {"dog": 20, "snoring": 10}
    assert SAVES[save](dataset, by_class(dataset), cache) == {"dog": 0, "snoring": 0}
    other = make(use_saved_audio_embeddings=False)
    found = LOADS[load](other, cache, ["dog"])
    assert list(found) == ["dog"]
    assert found["dog"]["manifest"]["total_samples"] == len(found["dog"]["index_map"]) == 20
    assert {*found["dog"]["index_map"]} == {*by_class(other)["dog"]}
    ((chunk, row),) = {tuple(found["dog"]["index_map"]["video_00003"])}
    stored = embstore.open(found["dog"]["chunks"][chunk]).take([row])
    np.testing.assert_array_equal(stored[0], by_class(other)["dog"]["video_00003"])
    check(other)


def test_both_forms_read_the_same_store(make, cache):
    dataset = make()
    rows = by_class(dataset)
    assert dataset.save_ast_embeddings_to_cache(ast_outputs_dict={"dog": rows["dog"]}) == {"dog": 20}
    flat = {f"{file_id}:snoring": row for file_id, row in rows["snoring"].items()}
    assert dataset.save_ast_embeddings_to_cache(flat, 16_000, 5.0, "ast-finetuned") is True
    assert len(embstore.Cache(cache)) == 1
    found = make(use_saved_audio_embeddings=False).load_ast_embeddings_from_cache(16_000, 5.0, "ast-finetuned")
    assert {name: rows["manifest"]["total_samples"] for name, rows in found.items()} == {"dog": 20, "snoring": 10}
    check(make())


def test_a_look_up_that_finds_a_part_is_true_and_one_that_finds_nothing_is_false(make):
    dataset = make()
    assert dataset.load_ast_embeddings_from_cache() == {}
    dataset.save_ast_embeddings_to_cache({"dog": by_class(dataset)["dog"]})
    assert list(dataset.load_ast_embeddings_from_cache()) == ["dog"]
    assert len(dataset.ast_missing) == 10
    assert not dataset.load_ast_embeddings_from_cache(classes=["snoring"])
    dataset.enable_ast_cache = False
    assert dataset.load_ast_embeddings_from_cache() == {}
    assert dataset.save_ast_embeddings_to_cache(ast_outputs_dict=by_class(dataset)) == {}
    assert dataset.save_ast_embeddings_to_cache(ast_outputs_dict={}) == {}


def test_one_embedding_and_closing(make):
    dataset = make(parent_ast_cache={}, parent_audio_embs={})
    assert dataset.get_cached_ast_embedding("dog", "video_00001") is None
    dataset.save_ast_embeddings_to_cache(ast_outputs_dict=by_class(dataset))
    dataset.load_ast_embeddings_from_cache()
    found = dataset.get_cached_ast_embedding("dog", "video_00001")
    np.testing.assert_array_equal(found, whole_row(dataset, "video_00001", "dog"))
    assert dataset.train.get_cached_ast_embedding("dog", "none") is None
    dataset.close_ast_cache()
    assert dataset.get_cached_ast_embedding("dog", "video_00001") is None
    assert dataset.load_ast_embeddings_from_cache()
    check(dataset)


def test_rows_of_an_encoders_store_are_not_saved_again(make, vegas, cache, log):
    """The newer client hands all of `audio_embs` over after its first round."""
    embstore.embed(VEGAS(vegas), Counting(log), cache)
    dataset = make()
    given = {}
    for key, row in dataset.audio_embs.items():
        file_id, name = key.split(":")
        given.setdefault(name, {})[file_id] = row
    assert dataset.save_ast_embeddings_to_cache(ast_outputs_dict=given) == {"dog": 0, "snoring": 0}
    assert len(embstore.Cache(cache)) == 1


def test_a_client_saves_its_new_rows_and_frees_their_memory(make):
    client = Client(make())
    assert client.train() == len(make().train)
    client._save_ast_embeddings_to_disk_cache()
    dataset = client.node_data.train_dataset
    assert dataset.audio_embs.written == {}
    assert client.train() == 0
    assert Server([client]).save_audio_embeddings()  # as the server calls it next: they are stored
    assert client.audio_embedding_store == {}
    client._save_ast_embeddings_to_disk_cache()
    client.node_data.train_dataset = None
    client._save_ast_embeddings_to_disk_cache()


# -- caches of the newer code --------------------------------------------------------------------


def write_chunks(folder, rows):
    """Write a cache as the newer code does: two chunks for each class."""
    for name, found in rows.items():
        (folder / name).mkdir(parents=True)
        names = list(found)
        manifest = {"file_id_to_index": {}, "chunks": [], "embedding_shape": list(SHAPE), "class_name": name}
        for number, part in enumerate((names[:4], names[4:])):
            file = f"embeddings_{number:03d}.npy"
            np.save(folder / name / file, np.stack([found[one].numpy() for one in part]))
            manifest["chunks"].append({"file": file, "num_samples": len(part), "shape": [len(part), *SHAPE]})
            manifest["file_id_to_index"] |= {one: [number, place] for place, one in enumerate(part)}
        manifest["total_samples"] = len(names)
        (folder / name / "manifest.json").write_text(json.dumps(manifest))


KNOWN = {"sample_rate": 16_000, "duration": 5.0, "model_name": "ast"}


def test_a_cache_of_chunks_is_imported(make, tmp_path):
    dataset = make()
    write_chunks(tmp_path / "chunks", by_class(dataset))
    assert dataset.import_ast_cache(tmp_path / "chunks", **KNOWN) == {"dog": 20, "snoring": 10}
    assert dataset.import_ast_cache(tmp_path / "chunks", **KNOWN) == {"dog": 0, "snoring": 0}
    dataset.load_ast_embeddings_from_cache()
    check(dataset)
    check(make())


@pytest.mark.parametrize("left_out", KNOWN)
def test_an_import_demands_what_the_manifest_does_not_state(left_out, make, tmp_path):
    write_chunks(tmp_path / "chunks", by_class(make()))
    with pytest.raises(TypeError, match=left_out):
        make().import_ast_cache(
            tmp_path / "chunks", **{name: value for name, value in KNOWN.items() if name != left_out}
        )
    if left_out != "model_name":
        with pytest.raises(ClipSettingsError, match=left_out):
            make().import_ast_cache(tmp_path / "chunks", **{**KNOWN, left_out: 10})


def broken_chunk(folder):
    (folder / "embeddings_000.npy").write_bytes(b"nothing")


def missing_chunk(folder):
    (folder / "embeddings_000.npy").unlink()


def cut_chunk(folder):
    np.save(folder / "embeddings_000.npy", np.zeros((0, *SHAPE), np.float32))


def outside(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "embeddings_000.npy").rename(folder.parent / "embeddings_000.npy")
    manifest["chunks"][0]["file"] = "../embeddings_000.npy"
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("damage", [broken_chunk, missing_chunk, cut_chunk, outside])
def test_rows_that_the_manifest_names_in_vain_are_listed(damage, make, tmp_path):
    dataset = make()
    write_chunks(tmp_path / "chunks", by_class(dataset))
    damage(tmp_path / "chunks" / "dog")
    assert dataset.import_ast_cache(tmp_path / "chunks", **KNOWN) == {"dog": 16, "snoring": 10}
    assert len(dataset.ast_unreadable) == 4
    assert "of chunk 0, which is not there" in dataset.ast_unreadable[0].reason


@pytest.mark.parametrize("text", ["{", "[]", '{"chunks": 3}', '{"chunks": [], "file_id_to_index": {"a": 3}}', None])
def test_a_broken_cache_is_an_error_that_names_the_file(text, make, tmp_path):
    (tmp_path / "chunks" / "dog").mkdir(parents=True)
    if text is not None:
        (tmp_path / "chunks" / "dog" / "manifest.json").write_text(text)
    with pytest.raises(FileFormatError, match="manifest"):
        make().import_ast_cache(tmp_path / "chunks", **KNOWN)
