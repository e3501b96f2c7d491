"""The pages on federated learning: their examples run as they stand, and print what they say."""

import numpy as np
import pytest

import embstore
from tests._helpers.pages import DOCS, runs_as_it_stands
from tests.conftest import CONFIG
from tests.fl import layouts

pytest.importorskip("torch")

PAGES = sorted(DOCS.glob("federated-learning*.md"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with what the pages find in theirs."""
    monkeypatch.chdir(tmp_path)
    layouts.vegas(tmp_path / "VEGAS", {"dog": 20, "drum": 20, "rail_transport": 20, "snoring": 6})
    with embstore.open(tmp_path / "minilm.zarr", "w-", config=CONFIG) as store:
        keys = [f"{number}:class_{number % 20}" for number in range(400)]
        store.append(keys, np.ones((400, 384), np.float32), columns={"site": np.arange(400) % 10})


@pytest.mark.usefixtures("folder", "models", "system")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_print_what_they_say(page, capsys):
    runs_as_it_stands(page, capsys)
