"""Demonstrate embstore on real input: docstrings of the standard library, encoded once by a real encoder.

``make demo`` runs it. The store is made in ``demo.cache``, and the next run finds it there.
"""

import argparse
import sys
from pathlib import Path

from docstrings import Docstrings
from minilm import MiniLM
from saving import print_saving

import embstore


def first_part(module: str) -> bool:
    """Return whether a module belongs to the first run. The others are added later."""
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
        result = embstore.embed(source, encoder, cache, batch_size=64)
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

    print_saving(result, seconds, encoded)
    query = encoder.encode([arguments.query])[0]
    store = embstore.open(result.path)
    neighbors = store.select().nearest(query, k=5)
    print(f"\nnearest to {arguments.query!r}")
    for key, score in zip(neighbors.keys, neighbors.scores, strict=True):
        print(f"  {score:.3f}  {key}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nstopped; what was encoded is stored, run it again to go on from there")
