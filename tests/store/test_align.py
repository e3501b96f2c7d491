"""Views of several stores as one: who belongs to whom, in which order, and how they are read."""

import pickle

import numpy as np
import pytest

import embstore
from embstore import errors
from embstore.store.align import Aligned, align


@pytest.fixture
def two(tmp_path, rng):
    """Stores of audio and images that share some of their keys, in another order; and their rows by key."""
    made = []
    for name, dim, places in (("audio", 4, range(12)), ("image", 3, [9, 2, 30, 5, 11, 7, 40])):
        keys = [f"file_{i:02d}:class_{i % 3}" for i in places]
        rows = rng.standard_normal((len(keys), dim)).astype(np.float32)
        with embstore.open(tmp_path / f"{name}.zarr", "w-", config={"encoder": name}) as store:
            store.append(keys, rows)
        made.append((embstore.open(store.path), dict(zip(keys, rows, strict=True))))
    return made


def test_rows_belong_together_in_the_order_of_the_first(two):
    (audio, heard), (image, seen) = two
    both = align(audio=audio.select(), image=image.select())
    assert isinstance(both, Aligned)
    assert both.keys == [f"file_{i:02d}:class_{i % 3}" for i in (2, 5, 7, 9, 11)]
    assert both.file_ids == [key[:7] for key in both.keys]
    assert both.left_out == {"audio": 7, "image": 2}
    assert len(both) == len(both.views["audio"]) == len(both.views["image"]) == 5
    for i, key in enumerate(both.keys):
        sample = both[i]
        assert set(sample) == {"audio", "image", "key"}
        assert sample["key"] == key
        np.testing.assert_array_equal(sample["audio"], heard[key])
        np.testing.assert_array_equal(sample["image"], seen[key])
    assert both[-1]["key"] == both.keys[-1]
    with pytest.raises(IndexError):
        both[5]
    assert align(image=image.select(), audio=audio.select()).keys[0] == "file_09:class_0"
    assert both.labels(["class_2", "class_1", "class_0"]).tolist() == [0, 0, 1, 2, 0]
    part = both[[4, 0]]
    assert part.keys == [both.keys[4], both.keys[0]]
    assert both[1:3].views["image"].keys == both.keys[1:3]
    assert "5 rows" in repr(both)


def test_nothing_in_common_is_no_error(two):
    (audio, _), (image, _) = two
    both = align(audio=audio.select(classes="class_0"), image=image.select(classes="class_1"), classes=["class_0"])
    assert len(both) == 0
    assert both.keys == []
    assert both.labels(["class_0"]).shape == (0,)
    assert len(align(a=audio.select(rows=[]), b=image.select())) == 0


def test_repeats_are_refused_unless_asked_for(tmp_path):
    pairs = {"audio": ["a:dog", "a:cat", "b:dog"], "image": ["b:cow", "a:cow"], "text": ["b:x", "b:y", "a:x"]}
    views = {}
    for name, keys in pairs.items():
        with embstore.open(tmp_path / name, "w-", config={"encoder": name}) as store:
            store.append(keys, np.ones((len(keys), 2), np.float32))
        views[name] = embstore.open(tmp_path / name).select()
    audio, image, text = views.values()
    with pytest.raises(errors.AlignmentError, match="repeats=") as caught:
        align(audio=audio, image=image, on="file_id")
    assert caught.value.view == "audio"
    assert caught.value.ids == ("a",)
    both = align(audio=audio, image=image, on="file_id", repeats="allow")
    assert both.keys == ["a:dog", "a:cat", "b:dog"]
    assert both.views["image"].keys == ["a:cow", "a:cow", "b:cow"]
    both = align(image=image, audio=audio, on="file_id", repeats="allow")
    assert both.views["audio"].keys == ["b:dog", "a:dog", "a:cat"]
    assert [both[i]["file_id"] for i in range(3)] == ["b", "a", "a"]
    assert len(align(audio=audio, text=text, on="file_id", repeats="allow")) == 4  # each has another one twice
    with pytest.raises(errors.AlignmentError, match="both"):
        align(audio=audio, other=audio, on="file_id", repeats="allow")
    assert len(align(audio=audio, image=image)) == 0  # on the key, in which classes differ
    with pytest.raises(errors.AlignmentError, match="more than once"):
        align(a=audio[[0, 0, 1]], b=audio)
    assert align(a=audio[[1, 0, 1]], b=audio, repeats="allow").keys == ["a:cat", "a:dog", "a:cat"]
    with pytest.raises(errors.AlignmentError, match="class"):
        align(audio=audio[:1], image=image, on="file_id", classes=["dog", "cow"])
    with pytest.raises(errors.AlignmentError, match="class"):
        align(audio=audio[:1], image=image, on="file_id").labels(["dog"])
    with pytest.raises(errors.UnknownClassError):
        align(audio=audio[:1], image=image, on="file_id").labels(["cow"])


def test_calls_that_mean_nothing(two):
    (audio, _), (image, _) = two
    with pytest.raises(TypeError, match="two"):
        align(audio=audio.select())
    with pytest.raises(TypeError, match="select"):
        align(audio=audio, image=image)
    with pytest.raises(ValueError, match="on"):
        align(a=audio.select(), b=image.select(), on="row")
    with pytest.raises(ValueError, match="repeats"):
        align(a=audio.select(), b=image.select(), repeats="perhaps")
    with pytest.raises(ValueError, match="text"):
        align(a=audio.select(), b=image.select(), fields={"text": "mean"})
    with pytest.raises(errors.UnknownFieldError):
        align(a=audio.select(), b=image.select(), fields={"a": "mean"})
    with pytest.raises(errors.NameRefusedError):
        align(label=audio.select(), b=image.select())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_takes_it_as_it_is(two, workers):
    torch = pytest.importorskip("torch")
    (audio, heard), (image, seen) = two
    both = align(audio=audio.select(), image=image.select(), classes=["class_2", "class_1", "class_0"])
    keys = []
    for batch in torch.utils.data.DataLoader(both, batch_size=2, num_workers=workers):
        assert set(batch) == {"audio", "image", "key", "label"}
        assert batch["label"].tolist() == both.labels(both.classes)[len(keys) : len(keys) + len(batch["key"])].tolist()
        for i, key in enumerate(batch["key"]):
            np.testing.assert_array_equal(batch["audio"][i].numpy(), heard[key])
            np.testing.assert_array_equal(batch["image"][i].numpy(), seen[key])
        keys += batch["key"]
    assert keys == both.keys
    shuffled = torch.utils.data.DataLoader(torch.utils.data.Subset(both, [3, 1]), batch_size=2)
    assert next(iter(shuffled))["key"] == [both.keys[3], both.keys[1]]


def test_ragged_fields_and_bfloat16_in_a_batch(two, tmp_path, rng):
    torch = pytest.importorskip("torch")
    (audio, _), _ = two
    fields = {
        "tokens": embstore.FieldSpec(shape=(2,), ragged=True),
        "brain": embstore.FieldSpec(shape=(2,), dtype="bfloat16"),
    }
    tokens = [np.full((n, 2), n, np.float32) for n in (3, 1, 2)]
    with embstore.open(tmp_path / "text", "w-", config={"encoder": "text"}, fields=fields) as store:
        brain = torch.ones(3, 2, dtype=torch.bfloat16)
        store.append([f"file_0{i}:class_{i}" for i in range(3)], {"tokens": tokens, "brain": brain})
    text = embstore.open(store.path).select()
    both = align(audio=audio.select(), text=text, brain=text, fields={"text": "tokens", "brain": "brain"})
    assert both[0]["text"].shape == (3, 2)
    assert both[0]["brain"].dtype == np.float32
    (batch,) = torch.utils.data.DataLoader(both, batch_size=8)
    assert batch["text"].shape == (3, 3, 2)
    assert batch["text_lengths"].tolist() == [3, 1, 2]
    assert batch["brain"].dtype == torch.bfloat16
    (unshuffled,) = torch.utils.data.DataLoader([both[i] for i in range(1)], batch_size=1)
    assert unshuffled["key"] == ["file_00:class_0"]


def test_a_pickle_is_where_the_stores_are(two):
    (audio, _), (image, _) = two
    both = align(audio=audio.select(), image=image.select(), classes=["class_0", "class_1", "class_2"])
    data = pickle.dumps(both)
    assert len(data) < 2500
    again = pickle.loads(data)
    assert again.keys == both.keys
    assert again.left_out == both.left_out
    np.testing.assert_array_equal(again[2]["image"], both[2]["image"])
