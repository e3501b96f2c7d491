"""The pages of the documentation: their examples run as they stand, and print what they say; links lead somewhere."""

import inspect
import os
import re
import wave
from pathlib import Path

import numpy as np
import pytest

import embstore
from embstore.encoders import FunctionEncoder

DOCS = Path(__file__).parents[1] / "docs"
PAGES = [DOCS / "index.md", *sorted((DOCS / "how-to").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def models(monkeypatch):
    """Stands for real models: counts bytes; asked for in words that `from_pretrained` understands."""
    own = embstore.from_pretrained

    def from_pretrained(*arguments, **options):
        asked = inspect.signature(own).bind(*arguments, **options).arguments
        specs = {name: embstore.FieldSpec(shape=(2,)) for name in asked["fields"]}
        return FunctionEncoder(
            lambda items: {name: np.array([[len(item), 1] for item in items], np.float32) for name in specs},
            config={"encoder": {"id": asked["model"]}, "preprocessing": {"duration": asked.get("duration")}},
            fields=specs,
        )

    monkeypatch.setattr(embstore, "from_pretrained", from_pretrained)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with what the pages find in theirs."""
    monkeypatch.chdir(tmp_path)
    for place, name in enumerate(["cat/1.wav", "dog/1.wav", "dog/2.wav"]):
        path = tmp_path / "recordings" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            file.writeframes(np.full(800 * (place + 1), place, "<i2").tobytes())
        os.utime(path, ns=(10**18, 10**18))
    (tmp_path / "texts.csv").write_text("id,says,label\n1,It barks.,dog\n2,It purrs.,cat\n")
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_print_what_they_say(page, folder, models, capsys):
    text = page.read_text()
    for library in re.findall(r"^(?:import|from) (torch|h5py|pandas|xarray|matplotlib|plotly|sklearn)\b", text, re.M):
        pytest.importorskip(library)
    found = BLOCK.findall(text)
    assert any(language == "python" for language, _ in found)
    scope = {"__name__": "__page__"}
    said = None
    for language, body in found:
        if language == "python":
            assert said in (None, ""), f"not shown: {said}"
            exec(compile(body, f"{page.name}", "exec"), scope)
            said = capsys.readouterr().out
        elif language == "" and said is not None:
            # "…" stands for what differs from machine to machine.
            shown = ".*".join(map(re.escape, body.split("…")))
            assert re.fullmatch(shown, said), f"{said}\nis not\n{body}"
            said = None
    assert said in (None, ""), f"not shown: {said}"


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: str(page.relative_to(DOCS)))
def test_every_link_leads_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / link).exists(), link


def test_every_page_is_in_the_contents():
    contents = (DOCS.parent / "mkdocs.yml").read_text()
    for page in DOCS.rglob("*.md"):
        assert str(page.relative_to(DOCS)) in contents, page


def test_names_in_the_text_are_there():
    for page in PAGES:
        for name in set(re.findall(r"`(embstore(?:\.\w+)+)(?=[`(])", page.read_text())):
            value = embstore
            for part in name.split(".")[1:]:
                value = getattr(value, part, None) or __import__(name, fromlist=[part])
                assert value is not None, f"{page.name}: {name}"
