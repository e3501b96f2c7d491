"""How fast a store is, against what NumPy, torch and the file system do with the same bytes.

    python -m benchmarks.store --quick              20,000 rows and 500,000 keys: a minute
    python -m benchmarks.store                      200,000 rows and 10 million keys: some minutes
    python -m benchmarks.store --only row-batches key-batches

Each side of a comparison runs once unmeasured (so the page cache is warm), then `--repeat` times in turns,
A B A B, so that a machine that slows down slows both. A ratio is that of the medians. Prints a table in
Markdown, and writes every single time to `--results`. What it makes lies in a temporary folder under
`--data`, on the file system that is measured. Needs Linux, embstore installed, and torch for one workload.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import statistics
import sys
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

import embstore
from benchmarks.report.measure import Result, add_options, fresh, in_turns, report
from embstore._engine.format.keys import hash_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CLASSES = [f"class_{i}" for i in range(10)]
SEQUENCE = (1214, 768)  # AST's tokens of a ten-second clip
KEY_DIM, LOOKUP = 8, 256
HEAVY = ("zarr", "torch", "transformers")

# Opens a store and calls one of its methods; prints seconds, megabytes of RssAnon, and which of `heavy` it loaded.
FIRST_CALL = """
import json, sys, time, embstore
embstore.open
def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) * 1024e-6
path, method, argument, heavy = json.load(sys.stdin)
before, start = anonymous(), time.perf_counter()
store = embstore.open(path)
found = getattr(store, method)(argument)
taken, grown = time.perf_counter() - start, anonymous() - before
print(json.dumps([taken, grown, [name for name in heavy if name in sys.modules]]))
"""
IMPORT = "import json, sys, embstore; print(json.dumps([name for name in json.load(sys.stdin) if name in sys.modules]))"


@dataclass(frozen=True, slots=True)
class Data:
    """The same rows twice, in a store and in one .npy."""

    label: str
    store: Path
    npy: Path
    keys: list[str]
    codes: np.ndarray
    size: int  # rows a batch
    batches: int  # in one measurement

    def memmap(self) -> np.ndarray:
        return np.load(self.npy, mmap_mode="r")

    def drawn(self) -> list[np.ndarray]:
        """Draw the random batches of one measurement, the same at each call."""
        rng = np.random.default_rng(1)
        return [rng.integers(len(self.keys), size=self.size) for _ in range(self.batches)]


class Bench:
    """What is measured, made in `folder` when the first workload asks for it."""

    def __init__(self, folder: Path, args: argparse.Namespace) -> None:
        self.folder = folder
        self.args = args

    @cached_property
    def flat(self) -> Data:
        return self._made("flat", (self.args.rows, self.args.dim), size=256, batches=100)

    @cached_property
    def sequences(self) -> Data:
        return self._made("sequences", (self.args.sequence_rows, *SEQUENCE), size=16, batches=10)

    @cached_property
    def many_keys(self) -> Path:
        """A store of short rows, appended in ten parts."""
        count, path = self.args.keys, self.folder / "keys.zarr"
        values = np.random.default_rng(0).standard_normal((-(-count // 10), KEY_DIM), dtype=np.float32)
        with embstore.open(path, "w-", config={"benchmark": "keys"}, expected_rows=count) as store:
            for start in range(0, count, len(values)):
                part = range(start, min(start + len(values), count))
                store.append([key_of(i, i) for i in part], values[: len(part)])
        return path

    def _made(self, name: str, shape: tuple[int, ...], *, size: int, batches: int) -> Data:
        rng = np.random.default_rng(0)
        values = rng.standard_normal(shape, dtype=np.float32)
        codes = rng.integers(len(CLASSES), size=len(values))
        keys = [key_of(i, code) for i, code in enumerate(codes.tolist())]
        npy, store = self.folder / f"{name}.npy", self.folder / f"{name}.zarr"
        write_durably(npy, lambda file: np.save(file, values))
        write_store(store, keys, values)
        return Data(" x ".join(f"{n:,}" for n in shape), store, npy, keys, codes, size, batches)


def key_of(i: int, code: int) -> str:
    return f"sample_{i:08d}:{CLASSES[code % len(CLASSES)]}"


def write_store(path: Path, keys: list[str], values: np.ndarray) -> None:
    with embstore.open(path, "w-", config={"benchmark": path.stem}) as store:
        store.append(keys, values)


def write_durably(path: Path, write: Callable[[BinaryIO], object]) -> None:
    with path.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def same(ours: np.ndarray, theirs: np.ndarray) -> None:
    if not np.array_equal(ours, theirs):
        raise SystemExit("the store gives other rows than were put in: nothing else is worth measuring")


def each(read: Callable[[object], object], batches: list) -> Callable[[], None]:
    """Read batch after batch, each freed before the next."""

    def read_all() -> None:
        for batch in batches:
            read(batch)

    return read_all


def row_batches(data: Data, repeat: int) -> Iterator[Result]:
    store, memmap, batches = embstore.open(data.store), data.memmap(), data.drawn()
    same(store.take(batches[0]), memmap[batches[0]])
    sides = each(store.take, batches), each(memmap.__getitem__, batches)
    times = in_turns(repeat, *sides, parts=data.batches)
    yield Result(f"random batches of {data.size} by row, {data.label}", 1.2, *times, "memmap[rows]")


def key_batches(data: Data, repeat: int) -> Iterator[Result]:
    store, memmap, batches = embstore.open(data.store), data.memmap(), data.drawn()
    keys = [[data.keys[row] for row in rows.tolist()] for rows in batches]
    same(store.fetch(keys[0]), memmap[batches[0]])
    sides = each(store.fetch, keys), each(memmap.__getitem__, batches), each(hash_keys, keys)
    *times, hashing = in_turns(repeat, *sides, parts=data.batches)
    note = f"hashing {statistics.median(hashing) * 1e6:.0f} us"
    yield Result(f"random batches of {data.size} by key, {data.label}", 3.0, *times, "memmap[rows]", note=note)


def one_class(data: Data, repeat: int) -> Iterator[Result]:
    store, memmap = embstore.open(data.store), data.memmap()
    rows, classes = np.flatnonzero(data.codes == 0), CLASSES[:1]
    same(store.select(classes=classes).to_numpy(), memmap[rows])
    times = in_turns(repeat, lambda: store.select(classes=classes).to_numpy(), lambda: memmap[rows])
    yield Result(f"one class of {len(CLASSES)} to RAM, {data.label}", 1.2, *times, "memmap[rows]")


def all_rows(data: Data, repeat: int) -> Iterator[Result]:
    store, memmap = embstore.open(data.store), data.memmap()
    same(store.select().to_numpy(), memmap)
    times = in_turns(repeat, lambda: store.select().to_numpy(), lambda: np.array(memmap))
    yield Result(f"all rows to RAM, {data.label}", 1.2, *times, "np.array(memmap)")


def first_batch(data: Data, repeat: int) -> Iterator[Result]:
    given = [str(data.store), "take", data.drawn()[0].tolist(), HEAVY]
    times = [fresh(FIRST_CALL, given)[0] for _ in range(repeat + 1)][1:]
    yield Result(f"open and first batch, imports apart, {data.label}", 0.005, times, unit="s")


def loader_epoch(data: Data, repeat: int) -> Iterator[Result]:
    try:
        import torch
        from torch.utils.data import DataLoader, TensorDataset

        from embstore.torch import EmbeddingDataset
    except ImportError as error:
        return print(f"loader-epoch skipped: {error}", file=sys.stderr)
    dataset = EmbeddingDataset(embstore.open(data.store).select(), classes=CLASSES)
    in_ram = TensorDataset(torch.from_numpy(np.load(data.npy)), torch.from_numpy(data.codes))
    mapped = DataLoader(dataset, batch_size=data.size, shuffle=True)
    collated = DataLoader(in_ram, batch_size=data.size, shuffle=True)
    for found, wanted in zip(next(iter(DataLoader(dataset, batch_size=2))), in_ram[[0, 1]], strict=True):
        same(found.numpy(), wanted.numpy())
    sides = each(lambda _: None, mapped), each(lambda _: None, collated)
    workload = f"shuffled DataLoader epoch, batches of {data.size}, {data.label}"
    yield Result(workload, 0.5, *in_turns(repeat, *sides), "TensorDataset in RAM")


def bulk_write(data: Data, repeat: int) -> Iterator[Result]:
    values, store, npy = np.load(data.npy), data.store.with_name("bulk.zarr"), data.npy.with_name("bulk.npy")

    def remove() -> None:
        shutil.rmtree(store, ignore_errors=True)
        npy.unlink(missing_ok=True)
        os.sync()  # or the next side's first fsync waits for the removal
        # A virtual machine may give freed memory back to its host, and touching it anew costs up to 0.7 s here. Which
        # side paid for it went by who came later: so both begin with memory that was just in use.
        np.ones(2 * values.nbytes, np.uint8)

    def save() -> None:
        write_durably(npy, lambda file: np.save(file, values))

    times = in_turns(repeat, lambda: write_store(store, data.keys, values), save, after=remove)
    yield Result(f"bulk writing with keys, {data.label}", 2.0, *times, "np.save and fsync")


def small_append(data: Data, repeat: int) -> Iterator[Result]:
    """Append to the rows there are: the last chunk is partly filled, and rewritten by each commit."""
    count, new = 64, itertools.count(len(data.keys))
    values, files = np.array(data.memmap()[:count]), itertools.count()
    path = data.store.with_name("appended.zarr")
    shutil.copytree(data.store, path)
    chunk = np.random.default_rng(0).bytes((path / "embedding" / "c.0.0").stat().st_size)
    with embstore.open(path, "r+") as store:

        def append() -> None:
            store.append([key_of(i, i) for i in itertools.islice(new, count)], values)

        def write() -> None:
            write_durably(path.with_name(f"chunk-{next(files)}"), lambda file: file.write(chunk))

        os.sync()  # the copy's pages are not to be written by the first fsync
        times = in_turns(repeat, append, write)
    against = f"a file of {len(chunk) / 2**20:.1f} MiB, fsynced"
    yield Result(f"one append of {count} rows, committed, {data.label}", 3.0, *times, against)


def first_lookup(path: Path, repeat: int) -> Iterator[Result]:
    store = embstore.open(path)
    count = len(store)
    rows = np.random.default_rng(1).integers(count, size=LOOKUP)
    keys = [key_of(row, row) for row in rows.tolist()]
    same(store.rows_of(keys), rows)
    found = [fresh(FIRST_CALL, [str(path), "rows_of", keys, HEAVY]) for _ in range(repeat + 1)][1:]
    times, growth = ([figures[i] for figures in found] for i in (0, 1))
    yield Result(f"open and first lookup of {LOOKUP} of {count:,} keys", 0.1, times, unit="s")
    yield Result(f"growth of RssAnon by that, {count:,} keys", 60.0, growth, unit="MB")


def imports(data: Data, repeat: int) -> Iterator[Result]:
    times = in_turns(repeat, lambda: fresh("import embstore", None), lambda: fresh("pass", None))
    yield Result("import embstore, less what an interpreter takes", 0.15, *times, "an interpreter", unit="s")
    given = [str(data.store), "take", [0, len(data.keys) - 1], HEAVY]
    for when, loaded in ("import", fresh(IMPORT, HEAVY)), ("opening and reading", fresh(FIRST_CALL, given)[2]):
        yield Result(f"of {', '.join(HEAVY)} loaded after {when}", 0, [len(loaded)], unit="modules")


WORKLOADS: dict[str, tuple[Callable[..., Iterator[Result]], str]] = {  # what measures, and of `Bench` what it needs
    "row-batches": (row_batches, "flat"),
    "key-batches": (key_batches, "flat"),
    "one-class": (one_class, "flat"),
    "all-rows": (all_rows, "flat"),
    "first-batch": (first_batch, "flat"),
    "loader-epoch": (loader_epoch, "flat"),
    "bulk-write": (bulk_write, "flat"),
    "small-append": (small_append, "flat"),
    "sequence-row-batches": (row_batches, "sequences"),
    "sequence-key-batches": (key_batches, "sequences"),
    "sequence-one-class": (one_class, "sequences"),
    "sequence-all-rows": (all_rows, "sequences"),
    "first-lookup": (first_lookup, "many_keys"),
    "imports": (imports, "flat"),
}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--sequence-rows", type=int, default=280, help=f"of {SEQUENCE[0]} x {SEQUENCE[1]}")
    parser.add_argument("--keys", type=int, default=10_000_000, help="rows of the store that keys are looked up in")
    add_options(parser, "store", repeat=7)
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="20,000 rows and 500,000 keys")
    args = parser.parse_args()
    if args.quick:
        args.rows, args.keys = 20_000, 500_000
    return args


def main() -> None:
    args = parsed()
    args.data.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    with tempfile.TemporaryDirectory(dir=args.data, prefix="store-") as folder:
        bench = Bench(Path(folder), args)
        for name in args.only:
            print(name, "…", file=sys.stderr, flush=True)
            workload, needs = WORKLOADS[name]
            results += workload(getattr(bench, needs), args.repeat)
    report(results, args.results, args.data)


if __name__ == "__main__":
    main()
