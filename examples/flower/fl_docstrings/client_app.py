"""A client. It encodes its own texts in the first round, and reads the embeddings after that."""

import time

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch.utils.data import DataLoader, Dataset

from fl_docstrings.data import client_samples
from fl_docstrings.head import fit, hits, loaded_head

app = ClientApp()


def prepared(message: Message, context: Context, split: str) -> tuple[torch.nn.Linear, Dataset, float]:
    """Return the head that the server sent, the samples, and the seconds to get the samples."""
    started = time.perf_counter()
    data = client_samples(context, split)
    taken = time.perf_counter() - started
    return loaded_head(message.content["arrays"].to_torch_state_dict()), data, taken


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
