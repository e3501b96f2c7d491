"""Run a Flower app twice, encoding its texts in each round or only once, and compare times and results of a round.

The first half of ``make demo-fl``. Five clients share a thousand docstrings, and train a linear head on frozen MiniLM
for three rounds (see ``examples/flower``). Both ways encode the same batches, so both give the same head.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

APP = Path(__file__).parent / "flower"
sys.path.insert(0, str(APP))

from prepare import Prepared, prepare  # noqa: E402
from simulation import Simulator, simulator  # noqa: E402

WAYS = {"every-round": "encoding in every round", "once": "from the store"}

Rounds = list[dict[str, Any]]


def rounds_of(
    simulation: Simulator, prepared: Prepared, folder: Path, way: str, rounds: int, tested_by: str = "clients"
) -> Rounds:
    """Run the app in one of the two ways, and return its report of each round."""
    report, config = folder / f"{way}.json", folder / f"{way}.toml"
    given = {"encode": way, "tested-by": tested_by, "rounds": rounds, "report": str(report)}
    config.write_text(prepared.run_config(**given))
    report.unlink(missing_ok=True)
    simulation.run(APP, config, clients=prepared.clients)
    if not report.exists():  # `flwr run` exits with 0 even if the app fails
        raise SystemExit(f"the app failed:\n{simulation.said[-5000:]}")
    return json.loads(report.read_text())


def client_seconds(this: dict[str, Any]) -> float:
    """Return the seconds of all clients (and of a server that tests) for data, training and testing in a round."""
    return sum(sum(this[f"{part}-seconds"]) for part in ("read", "train", "test"))


def as_told(this: dict[str, Any]) -> dict[str, Any]:
    """Return the results of a round without its times."""
    return {name: value for name, value in this.items() if not name.endswith("seconds")}


def print_ways(ways: dict[str, Rounds], prepared: Prepared) -> None:
    print(f"\n{prepared.samples:,} docstrings, {prepared.clients} clients, MiniLM, a linear head\n")
    print(f"  {'':<26}{'round':>6}{'seconds':>10}{'of clients':>15}{'for data':>13}{'accuracy':>11}")
    for way, rounds in ways.items():
        for this in rounds:
            print(
                f"  {WAYS[way]:<26}{this['round']:>6}{this['seconds']:>10.2f}{client_seconds(this):>15.3f}"
                f"{sum(this['read-seconds']):>13.4f}{this['accuracy']:>11.4f}"
            )
    again, stored = ways["every-round"], ways["once"]
    same = list(map(as_told, again)) == list(map(as_told, stored))
    print(f"\n  accuracy and losses of all rounds: {'equal, to the last digit' if same else 'DIFFERENT'}")
    later = range(1, len(again))
    if not later:
        return

    def mean(rounds: Rounds, what: Any) -> float:
        return sum(what(rounds[place]) for place in later) / len(later)

    print(f"  encoding once, in the first round: {sum(stored[0]['read-seconds']):.1f} s of the clients' time")
    print(
        f"  saved in each later round:         {mean(again, client_seconds) - mean(stored, client_seconds):.1f} s of it"
    )
    for title, what in (
        ("a client's data and training", client_seconds),
        ("whole rounds, Flower's own time included", lambda this: this["seconds"]),
    ):
        print(f"  rounds after the first, {title}: {mean(again, what) / mean(stored, what):,.0f} x faster")
    if not same:
        raise SystemExit("the store gave other results than encoding did")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fl-demo-") as name, simulator() as simulation:
        folder = Path(name)
        prepared = prepare(folder, texts=arguments.texts, clients=arguments.clients)
        ways = {}
        for way, title in WAYS.items():
            print(f"{arguments.rounds} rounds, {title} …", flush=True)
            ways[way] = rounds_of(simulation, prepared, folder, way, arguments.rounds)
        print_ways(ways, prepared)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nstopped; nothing is left behind")
