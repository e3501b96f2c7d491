"""The whole of embstore on real input: docstrings of the standard library through a real encoder, once.

Run by ``make demo``. The store is made in ``demo.cache``; the next run finds it there.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from docstrings import Docstrings
from minilm import MiniLM

import embstore


def first_part(module: str) -> bool:
    """Tell whether a module belongs to the first run; the others are added later."""
    return module[0].lower() < "t"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("demo.cache"))
    parser.add_argument("--query", default="compress a file")
    arguments = parser.parse_args()

    cache = embstore.Cache(arguments.cache)
    seconds, encoded = 0.0, 0
    for title, source in [
        ("first run: modules a to s", Docstrings(first_part)),
        ("second run: the same again", Docstrings(first_part)),
        ("third run: a further group of modules", Docstrings(lambda module: True)),
    ]:
        print(f"\n{title}")
        encoder = MiniLM()
        result = embstore.embed(source, encoder, cache, batch_size=64, progress=sys.stderr.isatty() or None)
        print(f"  {result.reason}")
        print(
            f"  {result.samples:,} docstrings: {result.hits:,} hits, {result.encoded:,} encoded, {result.seconds:.1f} s"
        )
        if not encoder.loaded:
            print("  everything is stored: the encoder was not even loaded")
        if result.encoded:
            seconds, encoded = seconds + result.seconds, encoded + result.encoded
    if not encoded:
        print(f"\nreusing {result.path}: nothing was encoded (remove {arguments.cache} to start anew)")

    report(result, seconds, encoded)
    query = encoder.encode([arguments.query])[0]
    store = embstore.open(result.path)
    neighbors = store.select().nearest(query, k=5)
    print(f"\nnearest to {arguments.query!r}")
    for key, score in zip(neighbors.keys, neighbors.scores, strict=True):
        print(f"  {score:.3f}  {key}")


def median_ms(action: Callable[[], object], repeat: int = 9) -> float:
    """Return the median time of an action, in milliseconds."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def report(result: embstore.EmbedResult, seconds: float, encoded: int) -> None:
    """Print what the store costs and saves."""
    store = embstore.open(result.path, config=result.config)
    keys = list(store)
    largest = max(store.classes, key=lambda name: len(store.select(classes=name)))
    batch = np.random.default_rng(0).choice(keys, 256).tolist()

    def open_and_load() -> None:
        embstore.open(result.path).select().to_numpy()

    load = median_ms(open_and_load)
    rows = [
        ("rows", f"{len(store):,} in {len(store.classes)} classes"),
        ("encode", f"{seconds:,.1f} s for {encoded:,} rows" if encoded else "nothing: all were stored"),
        ("open", f"{median_ms(lambda: embstore.open(result.path)):.2f} ms"),
        ("load all", f"{median_ms(lambda: store.select().to_numpy()):.2f} ms"),
        (f"load class {largest!r}", f"{median_ms(lambda: store.select(classes=largest).to_numpy()):.2f} ms"),
        ("256 random keys", f"{median_ms(lambda: store[batch]):.2f} ms"),
    ]
    if encoded:
        per_row = 1000 * seconds / encoded
        rows.append(("open and load, against encoding", f"{per_row * len(store) / load:,.0f} x faster"))
    print()
    for name, value in rows:
        print(f"  {name:<32} {value}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nstopped; what was encoded is stored, run it again to go on from there")
