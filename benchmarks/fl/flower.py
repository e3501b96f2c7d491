"""What a store saves in Flower: rounds after the first, from the store and encoding anew.

    python -m benchmarks.fl.flower             1,000 docstrings, MiniLM, five clients: some minutes
    python -m benchmarks.fl.flower --quick     200 docstrings

The app is ``examples/flower``, run by ``flwr run`` as anybody does: with clients that train and test, two messages to
each in a round, and with a server that tests. Both ways encode the same batches and train on the same ones. Runs take
turns, and the rounds after the first of all of them count; a ratio is that of the medians. Told apart are what the
data take, that with training and testing, the processor time of this, and the whole round, in which Flower and Ray
have their own part that no store makes shorter. On a machine with other work to do, whole rounds flatter the store:
encoding waits for a core, Flower only for the clock. Processor time hardly depends on it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.report.measure import DATA, EXAMPLES, RESULTS, Result, Times, report

sys.path.insert(0, str(EXAMPLES))

from fl_flower_demo import Rounds, as_told, client_seconds, prepare, rounds_of, simulator

GOAL = 1 / 100
TESTERS = ("clients", "server")


def measured(args: argparse.Namespace, tested_by: str) -> tuple[list[Rounds], list[Rounds]]:
    """Run the app both ways in turns; gives what each run tells of its rounds, from the store and encoding anew."""
    stored: list[Rounds] = []
    again: list[Rounds] = []
    with tempfile.TemporaryDirectory(dir=args.data, prefix="flower-") as name, simulator() as simulation:
        prepared = prepare(Path(name), texts=args.texts, clients=args.clients)
        for turn in range(args.turns):
            for way, runs in (("once", stored), ("every-round", again)):
                said = f"tested by the {tested_by}, turn {turn + 1} of {args.turns}: {way} …"
                print(said, file=sys.stderr, flush=True)
                runs.append(rounds_of(simulation, prepared, Path(name), way, args.rounds, tested_by))
    return stored, again


def compared(stored: list[Rounds], again: list[Rounds], texts: int, tested_by: str) -> list[Result]:
    def times(runs: list[Rounds], what: object) -> Times:
        return [what(this) for rounds in runs for this in rounds[1:]]

    results = []
    for label, what in (
        ("all data", lambda this: sum(this["read-seconds"])),
        ("all data, training and testing", client_seconds),
        ("the same in processor time", lambda this: sum(this["cpu-seconds"])),
        ("whole round, Flower's own part included", lambda this: this["seconds"]),
    ):
        ours, theirs = times(stored, what), times(again, what)
        faster = f"{statistics.median(theirs) / statistics.median(ours):,.0f} x faster"
        workload = f"Flower, {texts:,} texts, tested by the {tested_by}, a round after the first: {label}"
        results.append(Result(workload, GOAL, ours, theirs, "encoding anew", note=faster))
    told = [[as_told(this) for this in rounds] for rounds in [*stored, *again]]
    other = sum(this != first for rounds in told for this, first in zip(rounds, told[0], strict=True))
    note = f"encoding once took {sum(stored[0][0]['cpu-seconds']):.3g} s of processor time"
    note += f", load average at the end {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores"
    label = f"tested by the {tested_by}: rounds whose accuracy or losses differ"
    results.append(Result(label, 0, [float(other)], unit="rounds", note=note))
    return results


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=4, help="of each run; the first does not count")
    parser.add_argument(
        "--turns", type=int, default=2, help="runs of each way; with --rounds at least five rounds count"
    )
    parser.add_argument("--data", type=Path, default=DATA, help="where temporary files go")
    parser.add_argument("--results", type=Path, default=RESULTS / "fl_flower.json")
    parser.add_argument("--quick", action="store_true", help="200 texts")
    args = parser.parse_args()
    if args.turns * (args.rounds - 1) < 5:
        parser.error("at least five rounds of each way have to count")
    if args.quick:
        args.texts = 200
    return args


def main() -> None:
    args = parsed()
    args.data = args.data.resolve()  # Flower's processes have another working folder
    args.data.mkdir(parents=True, exist_ok=True)
    results = [found for who in TESTERS for found in compared(*measured(args, who), args.texts, who)]
    report(results, args.results, args.data)


if __name__ == "__main__":
    main()
