"""How fast exact search and analysis over a mapped store are, against NumPy with everything in RAM.

    python -m benchmarks.analysis --quick     20,000 rows: seconds
    python -m benchmarks.analysis             200,000 rows: some minutes

Sides run in turns on the same values, once unmeasured, as in store.py; a ratio is that of the medians. NumPy's side
of a search is one matrix product and one argpartition: it neither sorts, nor measures the rows for a cosine. Unset
OPENBLAS_CORETYPE and OPENBLAS_L2_SIZE, where they are set; where other programs run, OPENBLAS_NUM_THREADS=1 measures
the work, and not how long threads wait for each other. Needs Linux.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import embstore
from benchmarks.report.measure import Result, add_options, fresh, in_turns, report
from embstore import analysis

CLASSES = 10

# Searches a store, and prints by how many megabytes RssAnon grew at most meanwhile.
GROWTH = """
import json, sys, threading, time, numpy as np, embstore
def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) * 1024e-6
path, queries, k = json.load(sys.stdin)
view = embstore.open(path).select()
Q = view[:queries].to_numpy()
view[:queries].nearest(Q, k=k)  # threads of the matrix product, and their buffers
before, seen, over = anonymous(), [], threading.Event()
def watch():
    while not over.wait(0.002):
        seen.append(anonymous())
thread = threading.Thread(target=watch)
thread.start()
view.nearest(Q, k=k)
over.set(); thread.join()
print(json.dumps(max(seen) - before))
"""


@dataclass(frozen=True, slots=True)
class Data:
    """The same rows in a store and in RAM, and queries."""

    label: str
    store: Path
    rows: np.ndarray
    codes: np.ndarray
    queries: np.ndarray
    k: int


def made(folder: Path, args: argparse.Namespace) -> Data:
    rng = np.random.default_rng(int.from_bytes(os.urandom(8)))
    rows = rng.standard_normal((args.rows, args.dim), dtype=np.float32)
    codes = rng.integers(CLASSES, size=len(rows))
    path = folder / "rows.zarr"
    with embstore.open(path, "w-", config={"benchmark": "analysis"}) as store:
        store.append([f"sample_{i:08d}:class_{code}" for i, code in enumerate(codes.tolist())], rows)
    queries = rng.standard_normal((args.queries, args.dim), dtype=np.float32)
    return Data(f"{args.rows:,} x {args.dim:,}", path, rows, codes, queries, args.k)


def close(ours: np.ndarray, theirs: np.ndarray) -> None:
    if not np.allclose(ours, theirs, rtol=1e-3, atol=1e-3):
        raise SystemExit("the store gives another result than NumPy: nothing else is worth measuring")


def in_ram(data: Data) -> np.ndarray:
    scores = data.queries @ data.rows.T
    return np.argpartition(scores, -data.k, axis=1)[:, -data.k :]


def searching(data: Data, repeat: int) -> Iterator[Result]:
    view = embstore.open(data.store).select()
    found = view.nearest(data.queries, k=data.k, metric="dot")
    close(np.sort(found.rows, axis=1), np.sort(in_ram(data), axis=1))
    sides: list[Callable[[], object]] = [
        lambda: view.nearest(data.queries, k=data.k, metric="dot"),
        lambda: view.nearest(data.queries, k=data.k, metric="cosine"),
        lambda: in_ram(data),
    ]
    dot, cosine, theirs = in_turns(repeat, *sides)
    for metric, ours in (("dot", dot), ("cosine", cosine)):
        workload = f"{data.k} nearest of {len(data.queries)} queries, {metric}, {data.label}"
        yield Result(workload, 1.2, ours, theirs, "Q @ X.T and argpartition in RAM")


def growing(data: Data, repeat: int) -> Iterator[Result]:
    given = [str(data.store), len(data.queries), data.k]
    growth = [fresh(GROWTH, given) for _ in range(repeat)]
    yield Result(f"growth of RssAnon by that, {data.label}", 100.0, growth, unit="MB")


def centring(data: Data, repeat: int) -> Iterator[Result]:
    view = embstore.open(data.store).select()

    def means() -> np.ndarray:
        return np.stack([data.rows[data.codes == i].mean(axis=0, dtype=np.float64) for i in range(CLASSES)])

    order = [int(name.removeprefix("class_")) for name in analysis.centroids(view).class_names]
    close(analysis.centroids(view).values, means()[order])
    yield Result(
        f"centroids of {CLASSES} classes, {data.label}",
        1.5,
        *in_turns(repeat, lambda: analysis.centroids(view), means),
        "means in float64 in RAM",
    )


def projecting(data: Data, repeat: int) -> Iterator[Result]:
    view = embstore.open(data.store).select()

    def components() -> np.ndarray:
        centred = data.rows - data.rows.mean(axis=0)
        _, axes = np.linalg.eigh(centred.T @ centred)
        return centred @ axes[:, :-3:-1]

    close(np.abs(analysis.project(view).points).mean(axis=0), np.abs(components()).mean(axis=0))
    yield Result(
        f"PCA to 2 dimensions, {data.label}",
        1.5,
        *in_turns(repeat, lambda: analysis.project(view), components),
        "covariance and eigh in RAM",
    )


WORKLOADS = {"nearest": searching, "memory": growing, "centroids": centring, "pca": projecting}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--k", type=int, default=10)
    add_options(parser, "analysis", repeat=7)
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
    with tempfile.TemporaryDirectory(dir=args.data, prefix="analysis-") as folder:
        data = made(Path(folder), args)
        for name in args.only:
            print(name, "…", file=sys.stderr, flush=True)
            results += WORKLOADS[name](data, args.repeat)
    report(results, args.results, args.data)


if __name__ == "__main__":
    main()
