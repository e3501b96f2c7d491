"""Random batches from files that are not in the page cache, against what the disk itself can do.

    python -m benchmarks.cold --quick      20,000 rows, 24 sequences
    python -m benchmarks.cold              200,000 rows, 280 sequences

Before each measurement a system's process is started, its files are dropped from the page cache
(``posix_fadvise(DONTNEED)``; what stays there all the same is recorded), and its store is opened; then random batches
are timed. The disk's own limit is measured in the same turns: the same number of rows of a plain file of the same
size, read at random places around the page cache (``O_DIRECT``), one at a time and 32 at once. What lies below the
kernel, the disk's own cache or a host's, is not dropped: it is the same for all. Figures are rows a second.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from benchmarks.report.measure import add_options
from benchmarks.report.tables import print_report, save
from benchmarks.systems import found
from benchmarks.workloads.common import OURS, batch_size, measurement
from benchmarks.workloads.pagecache import cached, drop, read_directly
from benchmarks.workloads.players import Failed, Party
from benchmarks.workloads.source import Source, make_source
from benchmarks.workloads.turns import Measurement, Pace, Side, in_turns

DEPTHS = {"disk, 1 at a time": 1, "disk, 32 at once": 32}
IN_RAM = "NumPy in RAM"


def cold(party: Party, pace: Pace, batches: int) -> Iterator[Measurement]:
    size = batch_size(party)
    left: dict[str, list[float]] = {}
    sides: dict[str, Side] = {name: _system(party, name, size, batches, left) for name in _reading(party)}
    sides |= {name: _disk(party.source, size * batches, depth) for name, depth in DEPTHS.items()}
    turns = in_turns(sides, pace)
    turns.figures = {name: [size * batches / taken for taken in times] for name, times in turns.figures.items()}
    for name, shares in left.items():
        if max(shares) > 0.01:
            turns.notes[name] = f"{max(shares):.0%} of its pages stayed in the cache"
    yield measurement(
        party, "cold", turns, {}, unit="rows/s", better="more", detail=f"{batches} random batches of {size}"
    )


def _reading(party: Party) -> list[str]:
    """Return the systems that read from the disk."""
    return [name for name in party.names("cold") if name != IN_RAM]


def _system(party: Party, name: str, size: int, batches: int, left: dict[str, list[float]]) -> Side:
    def run(first: int, count: int) -> float:
        store = party.store_of(name)
        player = party.player(name)
        try:
            drop(store)
            left.setdefault(name, []).append(cached(store))
            player.open(store)
            answer = player.ask("batches", size=size, by="native", first=100 + first * batches, count=batches)
            return float(answer["seconds"])
        finally:
            player.stop()

    return run


def _disk(source: Source, rows: int, depth: int) -> Side:
    path = source.folder / "values.npy"
    values = open_memmap(path, "r")
    offset, row_nbytes = values.offset, values[:1].nbytes

    def run(first: int, count: int) -> float:
        # Other rows than any system's, and than the other depth's: the disk may have a cache of its own.
        numbers = np.random.default_rng([depth, first]).integers(len(source), size=rows)
        drop(path)
        began = time.perf_counter()
        read_directly(path, offset, row_nbytes, numbers, depth)
        return time.perf_counter() - began

    return run


def checked(party: Party) -> None:
    """Compare a batch of each system with what was written; those that differ are put aside."""
    for name in party.names("cold"):
        try:
            player = party.at_work(name)
            player.open(party.store_of(name))
            player.ask("check", size=batch_size(party), by="row")
        except Failed as error:
            party.aside[name] = str(error)
    for player in party.pool.values():
        player.stop()


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="*", default=[200_000])
    parser.add_argument("--sequences", type=int, nargs="*", default=[280])
    parser.add_argument("--batches", type=int, default=8, help="of one measurement")
    parser.add_argument("--systems", nargs="+", metavar="NAME", help="these, and embstore")
    add_options(parser, "cold", repeat=7)
    parser.add_argument("--most", type=float, default=60, help="seconds for one side; one that needs more is done once")
    parser.add_argument("--patience", type=float, default=300, help="seconds until a system is given up")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.rows, args.sequences, args.batches, args.repeat = [20_000], [24], 2, 5
        args.systems, args.most = args.systems or ["memmap + JSON", "LMDB"], 10
    return args


def main() -> None:
    args = parsed()
    systems, absent = found()
    systems = {
        name: entry
        for name, entry in systems.items()
        if entry[1].takes_part is None and (not args.systems or name == OURS or name in args.systems)
    }
    args.data.mkdir(parents=True, exist_ok=True)
    pace = Pace(repeat=args.repeat, most=args.most)
    done: list[Measurement] = []
    shapes = [(count, 768) for count in args.rows] + [(count, 1214, 768) for count in args.sequences]
    for shape in shapes:
        with tempfile.TemporaryDirectory(dir=args.data, prefix="cold-") as folder:
            print(f"cold: {shape} …", file=sys.stderr, flush=True)
            source = make_source(Path(folder) / "source", shape)
            party = Party(source, Path(folder) / "stores", systems, args.patience, dict(absent))
            party.write()
            checked(party)
            done += cold(party, pace, args.batches)
            save(done, args.results, args.data, absent=absent)
    print_report(done)


if __name__ == "__main__":
    main()
