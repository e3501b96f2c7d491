"""The server: federated averaging, and a report with times and results of each round."""

import json
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch.utils.data import DataLoader

import embstore
from embstore_fl.flower import coverage, load_partition
from fl_docstrings.data import server_samples
from fl_docstrings.head import hits, loaded_head, new_head

app = ServerApp()


class Reported(FedAvg):
    """Federated averaging that sorts replies by client, and records the times of each round.

    Replies arrive in any order, and sums of floats depend on the order. Without sorting, two equal runs differ.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.rounds: list[dict[str, Any]] = []
        self._started = 0.0

    def tested_here(self, context: Context, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Test the averaged head on the test samples of all clients, and end the round."""
        if not server_round:  # Flower also calls it before the first round
            return None
        began, started = time.process_time(), time.perf_counter()
        data = server_samples(context)
        read = time.perf_counter() - started
        right = hits(loaded_head(arrays.to_torch_state_dict()), DataLoader(data, batch_size=256))
        tested = {"num-examples": len(data), "hits": right, "read-seconds": read}
        tested["test-seconds"] = time.perf_counter() - started - read
        tested["cpu-seconds"] = time.process_time() - began
        self._end({name: [value] for name, value in tested.items()})
        return MetricRecord({"accuracy": right / len(data)})

    def configure_train(self, server_round: int, *arguments: Any) -> Iterable[Message]:
        """Begin a round."""
        self._started = time.perf_counter()
        return super().configure_train(server_round, *arguments)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the heads that the clients trained."""
        ordered = in_order(replies)
        self.rounds.append({"round": server_round, **noted(ordered, "train-seconds", "loss")})
        return super().aggregate_train(server_round, ordered)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Average the clients' test results, if there are any, and end the round."""
        ordered = in_order(replies)
        if ordered:
            self._end(noted(ordered, "test-seconds", "hits"))
        return super().aggregate_evaluate(server_round, ordered)

    def _end(self, tested: dict[str, list[Any]]) -> None:
        this = self.rounds[-1]
        this["accuracy"] = sum(tested["hits"]) / sum(tested["num-examples"])
        for name in ("read-seconds", "cpu-seconds"):
            this[name] += tested[name]
        this["test-seconds"] = tested["test-seconds"]
        this["seconds"] = time.perf_counter() - self._started


def in_order(replies: Iterable[Message]) -> list[Message]:
    """Return the replies of all clients, sorted by number. Raise if a client failed."""
    found = list(replies)
    for reply in found:
        if reply.has_error():
            raise RuntimeError(f"a client failed: {reply.error.reason}")
    return sorted(found, key=lambda reply: reply.content["who"]["client"])


def noted(replies: list[Message], *names: str) -> dict[str, list[Any]]:
    """Return metrics of all clients, by name."""
    names = ("num-examples", "read-seconds", "cpu-seconds", *names)
    return {name: [reply.content["metrics"][name] for reply in replies] for name in names}


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Log the coverage, train, and write the report."""
    config = context.run_config
    store = embstore.open(str(config["embstore.store"]))
    partitions = load_partition(str(config["embstore.manifest"]), store)
    print(coverage(partitions))

    clients, here = len(partitions), config["tested-by"] == "server"
    strategy = Reported(
        min_train_nodes=clients,
        min_evaluate_nodes=clients,
        min_available_nodes=clients,
        fraction_evaluate=0.0 if here else 1.0,
    )
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(new_head(len(partitions.classes)).state_dict()),
        num_rounds=int(config["rounds"]),
        evaluate_fn=partial(strategy.tested_here, context) if here else None,
    )
    for this in strategy.rounds:
        print(f"round {this['round']}: {this['seconds']:.2f} s, accuracy {this['accuracy']:.4f}")
    if config["report"]:
        Path(str(config["report"])).write_text(json.dumps(strategy.rounds, indent=1))
