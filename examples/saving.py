"""Cost and saving of a store, as the table that the demos print."""

import statistics
import time
from collections.abc import Callable

import numpy as np

import embstore


def median_ms(action: Callable[[], object], repeat: int = 9) -> float:
    """Return the median time of an action, in milliseconds."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def print_saving(result: embstore.EmbedResult, seconds: float, encoded: int) -> None:
    """Print the cost and the saving of a run's store, compared with the seconds of encoding."""
    store = embstore.open(result.path, config=result.config)
    keys = list(store)
    largest = max(store.classes, key=lambda name: len(store.select(classes=name)))
    batch = np.random.default_rng(0).choice(keys, min(256, len(keys))).tolist()

    def open_and_load() -> None:
        embstore.open(result.path).select().to_numpy()

    load = median_ms(open_and_load)
    rows = [
        ("rows", f"{len(store):,} in {len(store.classes)} classes"),
        ("encode", f"{seconds:,.1f} s for {encoded:,} rows" if encoded else "nothing: all were stored"),
        ("open", f"{median_ms(lambda: embstore.open(result.path)):.2f} ms"),
        ("load all", f"{median_ms(lambda: store.select().to_numpy()):.2f} ms"),
        (f"load class {largest!r}", f"{median_ms(lambda: store.select(classes=largest).to_numpy()):.2f} ms"),
        (f"{len(batch)} random keys", f"{median_ms(lambda: store[batch]):.2f} ms"),
    ]
    if encoded:
        per_row = 1000 * seconds / encoded
        rows.append(("open and load, against encoding", f"{per_row * len(store) / load:,.0f} x faster"))
    print()
    for name, value in rows:
        print(f"  {name:<32} {value}")
