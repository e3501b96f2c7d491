"""Fixtures: folders of recordings, an encoder that counts, nodes as today's code makes them, a stand-in for PFLlib."""

import os
import sys
import types

import numpy as np
import pytest

from embstore._engine.format.record import FieldSpec
from embstore.encoders.base import BaseEncoder
from embstore.errors import DecodeError
from tests.fl import layouts

SHAPE = (6, 4)

# As PFLlib's: a client and a server each bind the function when they are imported.
DATA_UTILS = """
def read_client_data(dataset, idx, is_train=True, few_shot=0):
    raise FileNotFoundError("../dataset")
"""
CLIENT = """
from utils.data_utils import read_client_data

class Client:
    def __init__(self, dataset, id, train_samples, test_samples):
        self.dataset, self.id = dataset, id
        self.train_samples, self.test_samples = train_samples, test_samples

    def load_train_data(self):
        return read_client_data(self.dataset, self.id, is_train=True, few_shot=0)
"""
SERVER = """
from flcore.clients.clientbase import Client
from utils.data_utils import read_client_data

def set_clients(dataset, count):
    return [
        Client(dataset, i, len(read_client_data(dataset, i, is_train=True, few_shot=0)),
               len(read_client_data(dataset, i, is_train=False, few_shot=0)))
        for i in range(count)
    ]
"""


class Counting(BaseEncoder):
    """Rows that follow from a clip's bytes; notes each in a file, so that processes count together."""

    def __init__(self, log, *, shape=SHAPE, model="MIT/ast-finetuned-audioset-10-10-0.4593", duration=5.0, weights="w"):
        self.log = log
        self.shape = shape
        self._config = {
            "encoder": {"id": model, "weights": weights},
            "preprocessing": {"sample_rate": 16_000, "duration": duration, "version": 1},
        }

    @property
    def config(self):
        return self._config

    @property
    def fields(self):
        return {"last_hidden_state": FieldSpec(shape=self.shape, layer="last_hidden_state")}

    def decode(self, content):
        if not content.startswith(b"RIFF"):
            raise DecodeError("it is no WAV file")
        return content

    def encode(self, items):
        descriptor = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.write(descriptor, b"x" * len(items))
        os.close(descriptor)
        return {"last_hidden_state": np.stack([row_of(item, self.shape) for item in items])}


def row_of(content, shape=SHAPE):
    """Return the row of a clip's bytes."""
    seed = int.from_bytes(content[44:60], "little") + len(content)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def node(dataset, number=0, **more):
    """Return a client as today's code has them, around a dataset."""
    data = types.SimpleNamespace(train_dataset=dataset.train, val_dataset=dataset.val, test_dataset=dataset.test)
    return types.SimpleNamespace(id=number, node_data=data, dataset="VEGAS", **more)


@pytest.fixture
def log(tmp_path):
    """Where encoders note what they encoded."""
    return tmp_path / "encoded"


@pytest.fixture
def encoded(log):
    """Return how many clips were encoded so far, in all processes."""
    return lambda: log.stat().st_size if log.exists() else 0


@pytest.fixture
def vegas(tmp_path):
    """A folder like VEGAS, of three classes."""
    return layouts.vegas(tmp_path / "VEGAS", {"dog": 20, "drum": 20, "snoring": 10})


@pytest.fixture
def cache(tmp_path):
    """A folder for stores."""
    return tmp_path / "VEGAS.cache"


@pytest.fixture
def store(make):
    return make(300)[0]


@pytest.fixture
def file(tmp_path):
    """The file of a manifest."""
    return tmp_path / "manifest.json"


@pytest.fixture
def context(store, file):
    """Make the context that Flower gives a client."""
    from embstore_fl import flower

    def context(client, **more):
        run = {"embstore.store": str(store.path), "embstore.manifest": str(file), "embstore.test": "", **more}
        return types.SimpleNamespace(node_config={"partition-id": client, "num-partitions": 3}, run_config=run)

    flower._opened.clear()
    yield context
    flower._opened.clear()


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A folder as PFLlib's `system`, on the path; what is imported from it and installed in it is forgotten."""
    system = tmp_path / "system"
    files = {"utils/data_utils.py": DATA_UTILS}
    files |= {"flcore/clients/clientbase.py": CLIENT, "flcore/servers/serverbase.py": SERVER}
    for name, text in files.items():
        (system / name).parent.mkdir(parents=True)
        (system / name).write_text(text)
    monkeypatch.syspath_prepend(str(system))
    monkeypatch.setattr("embstore_fl.pfllib._installed", {})

    def forget():
        for name in [name for name in sys.modules if name.partition(".")[0] in ("utils", "flcore")]:
            del sys.modules[name]

    forget()
    yield system
    forget()
