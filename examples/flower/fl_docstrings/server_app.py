"""The server: federated averaging, and a report of what each round took and gave."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

import embstore
from embstore_fl.flower import coverage, load_partition
from fl_docstrings.head import new_head

app = ServerApp()


class Reported(FedAvg):
    """Federated averaging that takes replies in the order of clients, and notes what each round took.

    Replies come in any order, and sums of floats depend on it: without this, two runs of the same would differ.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.rounds: list[dict[str, Any]] = []
        self._started = 0.0

    def configure_train(self, server_round: int, *arguments: Any) -> Iterable[Message]:
        """Begin a round."""
        self._started = time.perf_counter()
        return super().configure_train(server_round, *arguments)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average what clients trained."""
        ordered = in_order(replies)
        self.rounds.append({"round": server_round, **noted(ordered, "train-seconds", "loss")})
        return super().aggregate_train(server_round, ordered)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Average what clients tested, and end the round."""
        ordered = in_order(replies)
        tested = noted(ordered, "test-seconds", "hits")
        this = self.rounds[-1]
        this["accuracy"] = sum(tested["hits"]) / sum(tested["num-examples"])
        for name in ("read-seconds", "cpu-seconds"):
            this[name] = [a + b for a, b in zip(this[name], tested[name], strict=True)]
        this["test-seconds"] = tested["test-seconds"]
        this["seconds"] = time.perf_counter() - self._started
        return super().aggregate_evaluate(server_round, ordered)


def in_order(replies: Iterable[Message]) -> list[Message]:
    """Return the replies of all clients, in the order of their numbers; a client that failed ends the run."""
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
    """Say what is stored, train, and write the report."""
    config = context.run_config
    store = embstore.open(str(config["embstore.store"]))
    partitions = load_partition(str(config["embstore.manifest"]), store)
    print(coverage(partitions))

    clients = len(partitions)
    strategy = Reported(min_train_nodes=clients, min_evaluate_nodes=clients, min_available_nodes=clients)
    arrays = ArrayRecord(new_head(len(partitions.classes)).state_dict())
    strategy.start(grid=grid, initial_arrays=arrays, num_rounds=int(config["rounds"]))
    for this in strategy.rounds:
        print(f"round {this['round']}: {this['seconds']:.2f} s, accuracy {this['accuracy']:.4f}")
    if config["report"]:
        Path(str(config["report"])).write_text(json.dumps(strategy.rounds, indent=1))
