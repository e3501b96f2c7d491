"""A client: it encodes its own texts when they are first needed, and reads the embeddings from then on."""

import time
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch.utils.data import DataLoader, Dataset, TensorDataset

from embstore.errors import MissingKeysError
from embstore_fl.flower import client_dataset, client_keys
from embstore_fl.manifest import Manifest
from fl_docstrings.encoder import encode_anew, encode_into_store
from fl_docstrings.head import fit, hits, new_head

app = ClientApp()


def samples(context: Context, split: str) -> Dataset:
    """Return the client's samples: embeddings and labels."""
    if context.run_config["encode"] == "every-round":
        return encoded_again(context, split)
    try:
        return client_dataset(context, split)
    except MissingKeysError as error:  # in the first round
        encode_into_store(error.keys, str(context.run_config["texts"]), Path(str(context.run_config["embstore.store"])))
        return client_dataset(context, split)


def encoded_again(context: Context, split: str) -> Dataset:
    """Return the same samples as they are had without a store: encoded each time."""
    keys = client_keys(context, split)
    classes = Manifest.read(str(context.run_config["embstore.manifest"])).classes
    labels = [classes.index(key.rpartition(":")[2]) for key in keys]
    return TensorDataset(encode_anew(keys, str(context.run_config["texts"])), torch.tensor(labels))


def prepared(message: Message, context: Context, split: str) -> tuple[torch.nn.Linear, Dataset, float]:
    """Return the head that the server sent, the samples, and the seconds that these took."""
    started = time.perf_counter()
    data = samples(context, split)
    taken = time.perf_counter() - started
    state = message.content["arrays"].to_torch_state_dict()
    head = new_head(len(state["bias"]))
    head.load_state_dict(state)
    return head, data, taken


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the head on the client's training samples."""
    config, began = context.run_config, time.process_time()
    head, data, read = prepared(message, context, "train")
    client, server_round = int(context.node_config["partition-id"]), int(message.content["config"]["server-round"])
    order = torch.Generator().manual_seed(1000 * server_round + client)
    loader = DataLoader(data, batch_size=int(config["batch-size"]), shuffle=True, generator=order)
    started = time.perf_counter()
    loss = fit(head, loader, epochs=int(config["epochs"]), learning_rate=float(config["learning-rate"]))
    trained = time.perf_counter() - started
    metrics = {"num-examples": len(data), "loss": loss, "read-seconds": read, "train-seconds": trained}
    metrics["cpu-seconds"] = time.process_time() - began
    content = {"arrays": ArrayRecord(head.state_dict()), "metrics": MetricRecord(metrics)}
    return Message(RecordDict({**content, "who": ConfigRecord({"client": client})}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Test the head on the client's test samples."""
    began = time.process_time()
    head, data, read = prepared(message, context, "test")
    started = time.perf_counter()
    right = hits(head, DataLoader(data, batch_size=256))
    tested = time.perf_counter() - started
    metrics = {"num-examples": len(data), "hits": right, "read-seconds": read, "test-seconds": tested}
    metrics["cpu-seconds"] = time.process_time() - began
    content = {"metrics": MetricRecord(metrics)}
    client = int(context.node_config["partition-id"])
    return Message(RecordDict({**content, "who": ConfigRecord({"client": client})}), reply_to=message)
