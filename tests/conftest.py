"""Fixtures that several test modules share."""

import inspect
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest

import embstore
from embstore.encoders import FunctionEncoder
from tests._helpers.buckets import bucket, buckets  # noqa: F401  (fixtures)

hypothesis.settings.register_profile(
    "ci", max_examples=25, stateful_step_count=30, deadline=None, print_blob=True, derandomize=False
)
hypothesis.settings.register_profile(
    "slow", hypothesis.settings.get_profile("ci"), max_examples=1000, stateful_step_count=60
)
hypothesis.settings.load_profile("slow" if os.environ.get("EMBSTORE_SLOW") else "ci")

CONFIG = {"encoder": "test", "sample_rate": 16_000, "duration": 5}


def pytest_configure(config):
    """Work in memory where that is at hand: the tests sync thousands of times, and none measures the disk."""
    memory = Path("/dev/shm")
    if config.option.basetemp is None and os.access(memory, os.W_OK):
        folder = tempfile.mkdtemp(prefix="embstore-tests-", dir=memory)
        config.option.basetemp = tempfile.tempdir = folder
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


EXHAUSTIVE = ("at_every_step", "every_prefix", "flipped_bits")
"""Parts of the names of tests that try each step on the disk, or each bit, in turn."""


def pytest_collection_modifyitems(items):
    for item in items:
        if any(words in item.name for words in EXHAUSTIVE):
            item.add_marker(pytest.mark.exhaustive)
    if not os.environ.get("EMBSTORE_SLOW"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="set EMBSTORE_SLOW=1 to run it"))


@pytest.fixture(autouse=True)
def memory_file_system_left_empty():
    """There is one a process, and a store that is put where another lies ends up inside it."""
    yield
    if memory := sys.modules.get("fsspec.implementations.memory"):
        memory.MemoryFileSystem.store.clear()
        memory.MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture(autouse=True)
def logging_left_as_it_was():
    """The command sets how much embstore says, for its own process."""
    logger = logging.getLogger("embstore")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.zarr"


@pytest.fixture
def make(path, rng):
    """Make a store of `n` rows in ten classes, in chunks of 128 rows, and return (store, keys, rows)."""

    def make(n=300, *, dim=8, dtype="float32", columns=True, **options):
        keys = [f"file_{i:04d}:class_{i % 10}" for i in range(n)]
        rows = rng.standard_normal((n, dim)).astype(dtype)
        store = embstore.open(path, "w-", config=CONFIG, **{"chunk_bytes": 4096, **options})
        if n:
            store.append(keys, rows, columns={"split": ["train", "test", "val"] * (n // 3)} if columns else {})
        return store, keys, rows

    return make


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
