"""What bringing old files into a store costs, against loading them alone; and writing files, against writing bytes.

    python -m benchmarks.exchange --quick          20,000 rows of 768: a minute
    python -m benchmarks.exchange                  200,000 rows: many minutes, most of them torch's

Each measurement is a process of its own, the sides in turns; a ratio is that of the medians. ``load`` imports a
``.pt`` of ``{key: tensor}`` and compares with `torch.load(weights_only=True, mmap=True)` of the same file, and nothing
else. Times are counted without imports. The page cache is warm.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import embstore
from benchmarks.report.measure import Result, add_options, fresh, report
from embstore.exchange import export_file

CLASSES = [f"class_{i}" for i in range(10)]
CONFIG = {"benchmark": "exchange"}

# One side of a comparison; prints seconds, seconds of CPU, and MB of RssAnon at its highest.
SIDE = """
import json, sys, threading, time
what, source, target = json.load(sys.stdin)
import numpy as np
import embstore, embstore.exchange.importing, embstore.exchange.exporting
from embstore.exchange import export_file, import_file
if source.endswith(".pt") or target.endswith(".pt"):
    import torch
if "parquet" in source + target:
    import pyarrow.parquet
def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) * 1024e-6
seen, done = [resident()], []
def watch():
    while not done:
        seen.append(resident())
        time.sleep(0.01)
watcher = threading.Thread(target=watch)
watcher.start()
start, cpu = time.perf_counter(), time.process_time()
if what == "torch.load":
    found = torch.load(source, weights_only=True, mmap=True)
elif what == "import":
    found = import_file(source, target, config={"benchmark": "exchange"}, keys="file_id:class")
elif what == "export":
    found = export_file(embstore.open(source), target)
elif what == "np.save":
    with open(target, "wb") as file:
        np.save(file, embstore.open(source).array())
        file.flush()
        import os
        os.fsync(file.fileno())
elif what == "append":
    values = np.load(source + ".npy", mmap_mode="r")
    with embstore.open(target, "w-", config={"benchmark": "exchange"}, expected_rows=len(values)) as store:
        store.append(json.load(open(source + ".json")), values)
taken, used = time.perf_counter() - start, time.process_time() - cpu
done.append(True)
watcher.join()
print(json.dumps([taken, used, max(seen) - seen[0]]))
"""

MAKE = """
import json, sys
import numpy as np, torch
path, rows, dim = json.load(sys.stdin)
values = np.random.default_rng(0).standard_normal((rows, dim), dtype=np.float32)
torch.save({f"sample_{i:08d}:class_{i % 10}": torch.from_numpy(row) for i, row in enumerate(values)}, path)
"""


def in_turns(repeat: int, sides: list[tuple[str, Path, Path]]) -> list[list[list[float]]]:
    """Run the sides in turns, each in a process of its own, once unmeasured; what they make is removed."""
    found: list[list[list[float]]] = [[] for _ in sides]
    for turn in range(repeat + 1):
        for (what, source, target), taken in zip(sides, found, strict=True):
            one = fresh(SIDE, [what, str(source), str(target)])
            if target.is_dir():
                shutil.rmtree(target)
            target.unlink(missing_ok=True)
            if turn:
                taken.append(one)
    return found


def column(measured: list[list[float]], place: int) -> list[float]:
    return [one[place] for one in measured]


def load(folder: Path, args: argparse.Namespace) -> Iterator[Result]:
    """Import a dictionary of tensors, against loading it alone."""
    file, store = folder / "old.pt", folder / "new.zarr"
    fresh(MAKE, [str(file), args.rows, args.dim])
    ours, theirs = in_turns(args.repeat, [("import", file, store), ("torch.load", file, folder / "none")])
    label = f"{args.rows:,} x {args.dim} of {{key: tensor}}"
    yield Result(f"import {label}", 1.3, column(ours, 0), column(theirs, 0), "torch.load(mmap=True) alone")
    yield Result(f"import {label}, CPU", 1.3, column(ours, 1), column(theirs, 1), "torch.load(mmap=True) alone")
    grown = [a - b for a, b in zip(column(ours, 2), column(theirs, 2), strict=True)]
    yield Result(f"RssAnon of that beyond torch.load's, {label}", 200, grown, unit="MB")
    file.unlink()


def formats(folder: Path, args: argparse.Namespace) -> Iterator[Result]:
    """Write each format against np.save, read each against an append of the same rows."""
    values = np.random.default_rng(0).standard_normal((args.rows, args.dim), dtype=np.float32)
    keys = [f"sample_{i:08d}:{CLASSES[i % 10]}" for i in range(args.rows)]
    source = folder / "source.zarr"
    with embstore.open(source, "w-", config=CONFIG, expected_rows=args.rows) as store:
        store.append(keys, values)
        np.save(f"{source}.npy", values)
        Path(f"{source}.json").write_text(json.dumps(keys))
    del values
    for suffix in args.formats:
        goal = 6 if suffix == "parquet" else 3  # which keeps two levels for each number of a list
        file, target = folder / f"x.{suffix}", folder / "new.zarr"
        ours, theirs = in_turns(args.repeat, [("export", source, file), ("np.save", source, folder / "x.npy")])
        yield Result(
            f"export {args.rows:,} x {args.dim} to .{suffix}", goal, column(ours, 0), column(theirs, 0), "np.save"
        )
        yield Result(f"RssAnon of that, .{suffix}", 200, column(ours, 2), unit="MB")
        export_file(embstore.open(source), file)
        ours, theirs = in_turns(args.repeat, [("import", file, target), ("append", source, target)])
        yield Result(f"import it from .{suffix}", goal, column(ours, 0), column(theirs, 0), "append")
        yield Result(f"RssAnon of that, .{suffix}", 200, column(ours, 2), unit="MB")
        file.unlink()


WORKLOADS: dict[str, Callable[[Path, argparse.Namespace], Iterator[Result]]] = {"load": load, "formats": formats}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--formats", nargs="+", default=["npz", "h5", "safetensors", "parquet"])
    add_options(parser, "exchange", repeat=5)
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="20,000 rows")
    args = parser.parse_args()
    if args.quick:
        args.rows = 20_000
    return args


def main() -> None:
    args = parsed()
    args.data.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    with tempfile.TemporaryDirectory(dir=args.data, prefix="exchange-") as folder:
        for name in args.only:
            print(name, "…", file=sys.stderr, flush=True)
            results += WORKLOADS[name](Path(folder), args)
    report(results, args.results, args.data)


if __name__ == "__main__":
    main()
