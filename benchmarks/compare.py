"""All systems side by side: the same rows, one session, in turns.

    python -m benchmarks.compare --quick                                small rows, few turns: some minutes
    python -m benchmarks.compare                                        everything that the disk has room for
    python -m benchmarks.compare --rows 200000 --sequences --keys --only row-batches key-batches --systems LMDB

Each system works in a process of its own and is asked in turns, A B C A B C, so that a machine that slows down slows
all. What it gives is compared with what was written before it is timed. Where not all stores fit the page cache at
once, systems are measured in groups, and embstore is in each: a ratio is one of medians within a group. Prints tables
and the goals, and writes every single figure to `--results` after each workload. Needs Linux.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report.measure import add_options
from benchmarks.report.tables import print_report, save
from benchmarks.systems import System, found
from benchmarks.workloads import WORKLOADS
from benchmarks.workloads.common import OURS
from benchmarks.workloads.pagecache import warm
from benchmarks.workloads.players import Party
from benchmarks.workloads.scaling import STANDS_FOR_KEYS_BESIDE, scaling
from benchmarks.workloads.source import Source, make_source
from benchmarks.workloads.turns import Measurement, Pace

DIM, SEQUENCE = 768, (1214, 768)  # AST's tokens of a ten-second clip
LARGE_NBYTES = 2 * 2**30
"""Rows of more bytes are not measured by the workloads that make copies of stores, unless `--only` names them."""
IN_RAM = "numpy_ram"
COPYING = ("bulk-write", "append", "bulk-write-unsynced", "append-unsynced", "readers", "readers-and-writer")
QUICK = ("new-process", "row-batches", "key-batches", "all-rows", "epoch", "bulk-write", "append", "disk")
QUICK_LONG = ("row-batches", "all-rows", "disk")
QUICK_SCALING = (OURS, "LMDB", STANDS_FOR_KEYS_BESIDE)
LEFT_OUT_WHEN_QUICK = ("icechunk_local", "litdata_stream", "safetensors_file", "tensorstore_zarr", "zarr_zarrs")

Systems = dict[str, tuple[str, System]]


@dataclass(frozen=True)
class Session:
    """What one run measures, and how."""

    args: argparse.Namespace
    systems: Systems
    absent: dict[str, str]
    pace: Pace
    folder: Path

    def measurements(self) -> Iterator[Measurement]:
        shapes = [(count, DIM) for count in self.args.rows] + [(count, *SEQUENCE) for count in self.args.sequences]
        for shape in shapes:
            nbytes = 4 * math.prod(shape)
            if reason := self._no_room(nbytes):
                said(f"{shape[0]:,} rows left out: {reason}")
                continue
            source = make_source(self.folder / "source", shape)
            try:
                for group in self._groups(nbytes):
                    yield from self._of_group(source, group)
            finally:
                shutil.rmtree(self.folder / "source")
                shutil.rmtree(self.folder / "stores", ignore_errors=True)
        if self.args.keys and (self.args.only is None or "scaling" in self.args.only):
            said("scaling")
            systems = {n: s for n, s in self.systems.items() if not self.args.quick or n in QUICK_SCALING}
            yield from scaling(self.folder, systems, self.args.keys, self.pace, self.args.patience)

    def _of_group(self, source: Source, systems: Systems) -> Iterator[Measurement]:
        said(f"{source.label}: writing {', '.join(systems)}")
        aside = dict(self.absent)
        if self._is_too_large(source.nbytes):
            aside |= {name: "too large for RAM" for name, (module, _) in self.systems.items() if module == IN_RAM}
        party = Party(source, self.folder / "stores", systems, self.args.patience, aside)
        party.write()
        for name in self._workloads(source):
            said(f"{source.label}: {name}")
            warm(self.folder / "stores")
            yield from WORKLOADS[name](party, self.pace)
        party.clear(but=OURS)

    def _workloads(self, source: Source) -> list[str]:
        if self.args.only is not None:
            return [name for name in WORKLOADS if name in self.args.only]
        if self.args.quick:
            return list(QUICK if len(source.shape) == 1 else QUICK_LONG)
        names = [name for name in WORKLOADS if source.nbytes <= LARGE_NBYTES or name not in COPYING]
        return [name for name in names if name != "all-rows" or not self._is_too_large(source.nbytes)]

    def _groups(self, nbytes: int) -> list[Systems]:
        """Make groups whose stores fit into a quarter of memory together, with what is in RAM; ours is in each.

        In a larger part they would fit the page cache as well, but take minutes for a turn each: some kernels have let
        go by then of the files that were read first.
        """
        in_ram = IN_RAM if self._is_too_large(nbytes) else ""
        others = [name for name, (module, _) in self.systems.items() if name != OURS and module != in_ram]
        at_once = max(1, int(0.25 * memory_available() / nbytes) - 1)
        ours = {OURS: self.systems[OURS]} if OURS in self.systems else {}
        if not others:
            return [ours]
        return [
            ours | {name: self.systems[name] for name in others[start : start + at_once]}
            for start in range(0, len(others), at_once)
        ]

    def _is_too_large(self, nbytes: int) -> bool:
        """Tell whether all rows and a copy of them would not fit into memory, with some to spare."""
        return 2.5 * nbytes > memory_available()

    def _no_room(self, nbytes: int) -> str:
        stores = max(map(len, self._groups(nbytes)))
        needed, free = (stores + 2) * nbytes, shutil.disk_usage(self.folder).free
        return f"they need {needed / 1e9:.0f} GB of disk, {free / 1e9:.0f} are free" if needed > 0.8 * free else ""


def memory_available() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def said(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    known = [*WORKLOADS, "scaling"]
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 200_000, 2_000_000], help=f"pooled: of {DIM}")
    parser.add_argument("--sequences", type=int, nargs="*", default=[280, 2_800], help=f"rows of {SEQUENCE}")
    parser.add_argument("--keys", type=int, nargs="*", default=[10_000, 100_000, 1_000_000, 10_000_000], help="scaling")
    parser.add_argument("--only", nargs="+", choices=known, metavar="WORKLOAD", help=", ".join(known))
    parser.add_argument("--systems", nargs="+", metavar="NAME", help="these, and embstore")
    add_options(parser, "compare", repeat=7)
    parser.add_argument("--aim", type=float, default=0.3, help="seconds of one measurement of a fast side")
    parser.add_argument("--most", type=float, default=60, help="seconds for one side in one workload; else once")
    parser.add_argument("--patience", type=float, default=300, help="seconds until a system is given up")
    parser.add_argument(
        "--quick", action="store_true", help="the main systems and workloads, 10,000 rows, 24 sequences, few turns"
    )
    args = parser.parse_args()
    if args.quick:
        args.rows, args.sequences, args.keys = [10_000], [24], [1_000, 10_000]
        args.repeat, args.aim, args.most, args.patience = 5, 0.02, 4, 30
    return args


def main() -> None:
    args = parsed()
    systems, absent = found()
    for module, why in absent.items():
        said(f"systems/{module}.py left out: {why}")
    if args.systems:
        if unknown := set(args.systems) - set(systems):
            sys.exit(f"no such system: {', '.join(unknown)}; there are: {', '.join(systems)}")
        systems = {name: entry for name, entry in systems.items() if name == OURS or name in args.systems}
    elif args.quick:
        systems = {name: entry for name, entry in systems.items() if entry[0] not in LEFT_OUT_WHEN_QUICK}
    args.data.mkdir(parents=True, exist_ok=True)
    done: list[Measurement] = []
    pace = Pace(repeat=args.repeat, aim=args.aim, most=args.most)
    with tempfile.TemporaryDirectory(dir=args.data, prefix="compare-") as folder:
        for measurement in Session(args, systems, absent, pace, Path(folder)).measurements():
            done.append(measurement)
            save(done, args.results, args.data, absent=absent)
    print_report(done)


if __name__ == "__main__":
    main()
