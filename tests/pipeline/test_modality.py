"""The modality of files: an encoder refuses a source of another one, and records single files of another one."""

import pytest

import embstore
from embstore import errors
from embstore.sources import Folder, HFDataset, Table
from tests.pipeline.test_embed import Numbers, encoded


class Takes(Numbers):
    """An encoder of one modality, whose content is numbers all the same."""

    modality = None

    def __init__(self, log, modality):
        super().__init__(log)
        self.modality = modality


def write(root, *names):
    for name in names:
        (root / name).write_text("12")


@pytest.mark.parametrize(
    ("modality", "names", "found"),
    [
        ("text", ["a.wav", "b.wav", "c.FLAC"], "audio"),
        ("text", ["a.jpg"], "image"),
        ("text", ["a.mp4", "b.unknown"], "video"),
        ("image", ["a.opus"], "audio"),
        ("image", ["a.txt", "b.txt"], "text"),
        ("audio", ["a.png"], "image"),
        ("audio", ["a.json"], "text"),
    ],
)
@pytest.mark.parametrize("listed", [False, True])
def test_a_source_of_another_modality(cache, log, root, modality, names, found, listed):
    write(root, *[name for name in names if not name.endswith("unknown")])
    source = Folder(root, name="x")
    if listed:
        source = Table([{"file": path.name} for path in root.iterdir()], name="x", path="file", root=root)
    with pytest.raises(errors.ModalityError) as caught:
        embstore.embed(source, Takes(log, modality), cache)
    assert (caught.value.expected, caught.value.found) == (modality, found)
    assert str(root) in caught.value.where
    assert encoded(log) == []
    assert not cache.path.exists()


def texts():
    return Table([{"id": 1, "says": "12"}], name="x", text="says", file_id="id")


def rows_of(feature):
    hf = pytest.importorskip("datasets")
    made = hf.Dataset.from_dict({"content": [{"bytes": b"12", "path": "a"}], "id": ["a"]})
    return HFDataset(made.cast_column("content", getattr(hf, feature)()), name="x", content="content", file_id="id")


@pytest.mark.parametrize(
    ("make", "found"),
    [(texts, "text"), (lambda: rows_of("Audio"), "audio"), (lambda: rows_of("Image"), "image")],
    ids=["texts", "audio", "image"],
)
@pytest.mark.parametrize("modality", ["audio", "image", "text"])
def test_rows_of_another_modality(cache, log, make, found, modality):
    if found == modality:
        assert embstore.embed(make(), Takes(log, modality), cache).encoded == 1
        return
    with pytest.raises(errors.ModalityError) as caught:
        embstore.embed(make(), Takes(log, modality), cache)
    assert (caught.value.expected, caught.value.found) == (modality, found)


def test_single_files_of_another_modality(cache, log, root):
    """A broken recording of 12 ASCII bytes is no text, and a README is no reason to refuse a folder of recordings."""
    write(root, "a.txt", "b.wav", "c.md", "d.unknown")
    result = embstore.embed(Folder(root, name="x"), Takes(log, "text"), cache)
    assert [(failure.key, failure.reason) for failure in result.failed] == [
        ("b", "expected text for this encoder, found audio by its suffix")
    ]
    assert result.view.keys == ["a", "c", "d"]


@pytest.mark.parametrize(
    ("modality", "name"),
    [("audio", "a.mp4"), ("audio", "a.bin"), ("audio", "a"), ("image", "a.WebP"), ("text", "a.py"), (None, "a.wav")],
)
def test_files_that_fit_or_whose_suffix_does_not_tell(cache, log, root, modality, name):
    write(root, name)
    assert embstore.embed(Folder(root, name="x"), Takes(log, modality), cache).encoded == 1
