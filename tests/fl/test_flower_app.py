"""The app in examples/flower, its server and clients in this process: what rounds give, whoever encodes and tests."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import embstore
from embstore_fl import flower
from embstore_fl.flower import save_partition

pytest.importorskip("flwr")
torch = pytest.importorskip("torch")
from flwr.supercore.task_identity import TaskIdentity  # noqa: E402

EXAMPLE = Path(__file__).parents[2] / "examples" / "flower"
CLIENTS, DIM = 3, 384
TEXTS = {f"text_{i}:module_{i % 4}": f"{'abcd'[i % 4] * 3} {i}" for i in range(120)}


class Letters:
    """Embeds a text by what it says; counts the texts."""

    def __init__(self):
        self.config = {"encoder": "letters"}
        self.encoded = 0

    def encode(self, texts):
        self.encoded += len(texts)
        return torch.tensor(
            [[text.count(chr(97 + i % 26)) / 3 + len(text) / 100 for i in range(DIM)] for text in texts]
        )


class Grid:
    """Hands each message to the client that it is for, here and now."""

    def __init__(self, app, context):
        self._app, self._context = app, context
        self.messages = 0

    def get_node_ids(self):
        return list(range(1, CLIENTS + 1))

    def send_and_receive(self, messages, *, timeout=None):
        replies = []
        for message in messages:
            self.messages += 1
            replies.append(self._app(message, self._context(message.metadata.dst_node_id - 1)))
        return replies[::-1]  # they come in any order


@pytest.fixture
def encoder(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE))
    import fl_docstrings.encoder

    letters = Letters()
    monkeypatch.setattr(fl_docstrings.encoder, "encoder", lambda: letters)
    return letters


@pytest.fixture
def run(encoder, monkeypatch, tmp_path):
    """Run the app; gives what each round reports, and the number of messages."""
    from fl_docstrings import client_app, server_app
    from fl_docstrings import encoder as example

    texts, manifest = tmp_path / "texts.json", tmp_path / "manifest.json"
    texts.write_text(json.dumps(TEXTS))
    config = {**encoder.config, "dataset": example.NAME}
    order = np.random.default_rng(0).permutation(len(TEXTS))
    keys = [[list(TEXTS)[i] for i in order[client::CLIENTS]] for client in range(CLIENTS)]
    save_partition(dict(enumerate(keys)), manifest, scheme="thirds", seed=1, config=config)

    def run(encode, tested_by):
        folder, report = tmp_path / encode / tested_by, tmp_path / f"{encode}-{tested_by}.json"
        store = embstore.Cache(folder).path_of(config)
        embstore.open(store, "a", config=config).close()
        given = {
            "texts": str(texts),
            "report": str(report),
            "encode": encode,
            "tested-by": tested_by,
            "rounds": 3,
            "epochs": 2,
            "batch-size": 16,
            "learning-rate": 1.0,
            "embstore.store": str(store),
            "embstore.manifest": str(manifest),
            "embstore.test": 0.25,
        }

        def context(client):
            return SimpleNamespace(node_config={"partition-id": client}, run_config=given)

        grid = Grid(client_app.app, context)
        server_app.app(grid, SimpleNamespace(node_config={}, run_config=given))
        return json.loads(report.read_text()), grid.messages

    for name in (
        "_task_id",
        "_run_id",
        "_node_id",
    ):  # what a message is made with, in a process that Flower has started
        monkeypatch.setattr(TaskIdentity, name, 1)
    flower._opened.clear()
    yield run
    flower._opened.clear()


def gave(rounds):
    return [{name: value for name, value in this.items() if not name.endswith("seconds")} for this in rounds]


@pytest.mark.parametrize("tested_by", ["clients", "server"])
def test_the_store_gives_what_encoding_in_each_round_gives(run, encoder, tested_by):
    again, _ = run("every-round", tested_by)
    assert encoder.encoded == 3 * len(TEXTS)
    stored, _ = run("once", tested_by)
    assert encoder.encoded == 4 * len(TEXTS)
    assert gave(stored) == gave(again)
    assert stored[-1]["accuracy"] > 0.5  # of four classes
    for this in stored:
        assert this["seconds"] > 0
        assert len(this["loss"]) == CLIENTS


def test_a_server_finds_the_accuracy_that_the_clients_find_together(run):
    theirs, both = run("once", "clients")
    ours, once = run("once", "server")
    assert gave(ours) == gave(theirs)
    assert (both, once) == (2 * 3 * CLIENTS, 3 * CLIENTS)
