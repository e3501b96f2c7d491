"""Audio job of a typical project: encode recordings into a cache, then read all rows into RAM.

The first run encodes. Later runs of the same script find everything stored.
"""

import argparse
from pathlib import Path

import embstore
from embstore.sources import Folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("samples", type=Path)
    parser.add_argument("--model", default="MIT/ast-finetuned-audioset-10-10-0.4593")
    parser.add_argument("--pattern", default="{class}_*.flac")
    parser.add_argument("--cache", type=Path, default=Path("audio.cache"))
    parser.add_argument("--duration", type=float, default=5.0)
    arguments = parser.parse_args()

    encoder = embstore.from_pretrained(arguments.model, duration=arguments.duration)
    source = Folder(arguments.samples, name=arguments.samples.name, pattern=arguments.pattern)
    result = embstore.embed(source, encoder, arguments.cache, batch_size=8)
    print(result)
    print(f"in RAM: {result.store.select().to_numpy().shape}")


if __name__ == "__main__":
    main()
