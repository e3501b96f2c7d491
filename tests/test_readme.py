"""The README's examples run as they stand."""

import re
from pathlib import Path

import pytest

import embstore

README = Path(__file__).parents[1] / "README.md"


def blocks():
    return re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_the_store_example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(blocks()[0], scope)
    assert scope["view"].nearest(scope["store"]["video_00001:dog"], k=1).keys == ["video_00001:dog"]
    exec(blocks()[0], scope)  # a second time, everything is there
    assert len(scope["store"]) == 2


def test_the_torch_example(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(blocks()[0] + blocks()[1], scope)
    embeddings, labels = next(iter(scope["loader"]))
    assert embeddings.shape == (2, 768)
    assert sorted(labels.tolist()) == [0, 1]


def test_the_miss_it_shows_is_what_is_said(tmp_path):
    cache = embstore.Cache(tmp_path)
    cache.open({"duration": 5}, "a").close()
    assert cache.lookup({"duration": 10}).reason in README.read_text()


def test_every_link_leads_somewhere():
    for link in re.findall(r"\]\(([^)#:]+)\)", README.read_text()):
        assert (README.parent / link).exists(), link


def test_public_names_are_those_promised():
    """The public face is what `__all__` says, and each name is there."""
    for name in embstore.__all__:
        assert getattr(embstore, name) is not None
    assert set(embstore.__all__) == set(dir(embstore))
    with pytest.raises(AttributeError):
        _ = embstore.nonsense
