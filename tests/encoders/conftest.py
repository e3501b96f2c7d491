"""Tiny models, each saved once."""

import shutil
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="module")
def one_thread():
    """Models this small are only slowed down by more."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """Each tiny model, saved once."""
    from tests._helpers import tiny_models  # needs torch and transformers

    made = {}

    def folder_of(kind):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("models") / kind.replace(", ", "-")
            tiny_models.MAKERS[kind](made[kind])
        return made[kind]

    return folder_of


@pytest.fixture
def own(folder_of, tmp_path):
    """A tiny model's folder that a test may change."""

    def own(kind="bert", name="model"):
        return Path(shutil.copytree(folder_of(kind), tmp_path / name))

    return own


@pytest.fixture
def contents(rng):
    """Samples of each modality, of different lengths and sizes. All clips have another rate than the model."""
    from tests._helpers.tiny_models import TEXTS

    return {
        "audio": [(rng.standard_normal(n).astype(np.float32) / 9, 12_000) for n in (4000, 6500, 4000, 2000, 13_000)],
        "image": [rng.integers(0, 255, (n, 40, 3), dtype=np.uint8) for n in (36, 50, 60, 33)],
        "text": TEXTS,
    }
