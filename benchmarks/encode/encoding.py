"""What `embstore.embed` costs beside the encoder, and what it saves.

    python -m benchmarks.encode.encoding --quick              1,000 texts, 40 recordings of a smaller AST: some minutes
    python -m benchmarks.encode.encoding --samples FOLDER     2,000 texts, all recordings

Texts are docstrings of the standard library through MiniLM with its real weights. Recordings are the FLAC files of
``--samples`` (Debian's sonic-pi-samples). AST has its real architecture, of four layers unless ``--layers`` says
otherwise, and random weights from a fixed seed. Sides are measured in turns; a ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import embstore
from benchmarks.report.measure import EXAMPLES, Result, Times, add_options, fresh, in_turns, report
from embstore.encoders.base import BaseEncoder
from embstore.pipeline.decode_ahead import batches, decoded_ahead
from embstore.sources import Folder, Items
from embstore.sources.base import AnySample

sys.path.insert(0, str(EXAMPLES))
BATCH = 32

# A run over files of which none is missing, in a process of its own; prints seconds, and what it loaded.
NOTHING_MISSING = """
import json, sys, time
started = time.perf_counter()
import embstore
from embstore.sources import Folder
model, folder, cache = json.load(sys.stdin)
result = embstore.embed(Folder(folder, name="texts"), embstore.from_pretrained(model), cache)
taken = time.perf_counter() - started
print(json.dumps([taken, result.hits, [name for name in ("torch", "transformers") if name in sys.modules]]))
"""

# How much more resident memory `embed` takes at most than the encoder alone does with the same batches, in MB.
MEMORY = """
import json, sys, threading, time
import embstore
from embstore.pipeline.decode_ahead import batches, decoded_ahead
from embstore.sources import Folder
model, folder, pattern, cache, fields, duration, batch = json.load(sys.stdin)
def resident():
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(status["RssAnon"].split()[0]) * 1024e-6
def most(action):
    seen, done = [resident()], []
    def watch():
        while not done:
            seen.append(resident())
            time.sleep(0.01)
    watcher = threading.Thread(target=watch)
    watcher.start()
    result = action()
    done.append(True)
    watcher.join()
    return max(seen), result
encoder = embstore.from_pretrained(model, fields=fields, duration=duration)
source = Folder(folder, name="x", pattern=pattern)
pairs = [(str(sample.key), sample) for sample in source]
def bare():
    for gathered in batches(decoded_ahead(pairs, encoder, workers=2, batch_size=batch), batch):
        encoder.encode([done.item for done in gathered])
alone, _ = most(bare)
whole, result = most(lambda: embstore.embed(source, encoder, cache, batch_size=batch))
print(json.dumps([whole - alone, result.rows, result.nbytes / 1e6]))
"""


def texts(count: int) -> dict[str, str]:
    """Return docstrings by key, in an order that has nothing to do with their length."""
    from docstrings import Docstrings

    found = {str(sample.key): sample.load() for sample in Docstrings(lambda module: True)}
    keys = sorted(found, key=embstore.digest_of)
    return {key: found[key] for key in keys[:count]}


def minilm() -> Path:
    from minilm import shipped_folder

    return shipped_folder()


def make_ast(folder: Path, layers: int) -> Path:
    import torch
    from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

    torch.manual_seed(0)
    ASTModel(ASTConfig(num_hidden_layers=layers)).save_pretrained(folder)
    ASTFeatureExtractor().save_pretrained(folder)
    return folder


def pipeline_overhead(folder: Path, args: argparse.Namespace) -> Iterator[Result]:
    """Time the whole of `embed` against the encoder alone on the batches that `embed` makes."""
    source = Items(texts(args.texts), name="texts")
    encoder = embstore.from_pretrained(minilm())
    pairs = [(str(sample.key), sample) for sample in source]
    ready = list(batches(list(decoded_ahead(pairs, encoder, workers=2, batch_size=BATCH)), BATCH))

    def bare() -> None:
        for batch in ready:
            encoder.encode([done.item for done in batch])

    def whole() -> None:
        embstore.embed(source, encoder, folder / "texts", batch_size=BATCH)

    def forget() -> None:
        shutil.rmtree(folder / "texts", ignore_errors=True)

    ours, theirs = in_turns(args.repeat, whole, bare, after=forget)
    yield Result(f"embed {len(pairs):,} texts, MiniLM", 1.05, ours, theirs, "the encoder alone, on the same batches")


class Elsewhere(BaseEncoder):
    """An encoder's decoding, with an encoding that leaves the CPU alone, as a GPU's does: it waits."""

    def __init__(self, encoder: BaseEncoder, seconds: float) -> None:
        self._encoder = encoder
        self._seconds = seconds  # a sample

    @property
    def config(self) -> Mapping[str, Any]:
        return {"model": "waits"}

    def decode(self, content: Any) -> Any:
        return self._encoder.decode(content)

    def encode(self, items: Sequence[Any]) -> Any:
        time.sleep(self._seconds * len(items))
        return np.zeros((len(items), 768), np.float32)


def decoding_overlap(folder: Path, args: argparse.Namespace) -> Iterator[Result]:
    """Time `embed` against decoding first and encoding then, and against encoding alone.

    Once with an encoder that is elsewhere and takes as long as decoding does, when there is most to win; once with
    AST on all cores but one. With all of them at work nothing can be done beside it.
    """
    import torch

    torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))
    source = Folder(args.samples, name="recordings", pattern="{class}_*.flac")
    ast = embstore.from_pretrained(make_ast(folder / "ast", args.layers), duration=5, fields=["mean"])
    samples = list(source)[: args.recordings]
    [decoding] = in_turns(args.repeat, lambda: decoded(ast, samples))
    elsewhere = Elsewhere(ast, float(np.median(decoding)) / len(samples))
    there = "an encoder elsewhere that takes as long as decoding"
    whole, serial, _ = overlap(elsewhere, samples, folder, args.repeat)
    least = "0.5 x is the least that there can be"
    yield Result(f"embed {len(samples)} FLAC files, {there}", 1.0, whole, serial, "decoding, then encoding", note=least)
    fewer = samples[:40]
    here = f"AST of {args.layers} layer(s) on {torch.get_num_threads()} of {os.cpu_count()} cores"
    label = f"embed {len(fewer)} FLAC files, {here}"
    whole, serial, alone = overlap(ast, fewer, folder, args.repeat)
    yield Result(label, 1.0, whole, serial, "decoding, then encoding")
    yield Result(label, 1.05, whole, alone, "encoding alone")


def decoded(encoder: BaseEncoder, samples: Iterable[AnySample]) -> list[Any]:
    return [encoder.decode(sample.read().value) for sample in samples]


def overlap(encoder: BaseEncoder, samples: list[AnySample], folder: Path, repeat: int) -> list[Times]:
    """Time `embed`, decoding and then encoding, and encoding alone."""
    items = decoded(encoder, samples)
    source = Items([(str(sample.key), sample.read().value) for sample in samples], name="recordings")

    def encode() -> None:
        for start in range(0, len(items), 8):
            encoder.encode(items[start : start + 8])

    def one_after_the_other() -> None:
        decoded(encoder, samples)
        encode()

    def whole() -> None:
        embstore.embed(source, encoder, folder / "recordings", batch_size=8)

    def forget() -> None:
        shutil.rmtree(folder / "recordings", ignore_errors=True)

    return in_turns(repeat, whole, one_after_the_other, encode, after=forget)


def nothing_missing(folder: Path, args: argparse.Namespace) -> Iterator[Result]:
    """Time a run of which nothing is missing, from the interpreter's start."""
    files, cache = folder / "files", folder / "cache"
    for place in range(args.files):
        path = files / f"class_{place % 10}" / f"{place:06d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text {place}")
    time.sleep(2.1)  # files that were changed only just now would be read once more
    encoder = embstore.from_pretrained(minilm())
    source = Folder(files, name="texts")
    fill(encoder, source, cache)
    given = [str(minilm()), str(files), str(cache)]
    times: Times = []
    loaded: set[str] = set()
    for _ in range(args.repeat):
        start = time.perf_counter()
        _, hits, modules = fresh(NOTHING_MISSING, given)
        times.append(time.perf_counter() - start)
        loaded |= set(modules)
        if hits != args.files:
            raise SystemExit(f"{hits} hits of {args.files}: nothing else is worth measuring")
    yield Result(f"embed {args.files:,} files of which none is missing, whole process", 1.0, times, unit="s")
    yield Result("of torch and transformers loaded by it", 0, [float(len(loaded))], unit="modules")


def fill(encoder: object, source: Folder, cache: Path) -> None:
    """Store rows for all samples, as `embed` does, without encoding each."""

    class Stand(BaseEncoder):
        config = encoder.config
        fields = encoder.fields

        def encode(self, items: list[bytes]) -> dict[str, np.ndarray]:
            return {name: np.ones((len(items), *spec.shape), spec.dtype) for name, spec in encoder.fields.items()}

    embstore.embed(source, Stand(), cache, batch_size=1000)


def memory(folder: Path, args: argparse.Namespace) -> Iterator[Result]:
    """Say how much resident memory grows while thousands of samples are encoded."""
    files = folder / "memory"
    for place, text in enumerate(texts(args.memory_texts).values()):
        path = files / f"c{place % 10}" / f"{place:06d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    given = [str(minilm()), str(files), None, str(folder / "a"), ["last_hidden_state"], None, BATCH]
    grown, rows, stored = fresh(MEMORY, given)
    label = f"RssAnon beyond the encoder's own, while {rows:,} texts become {stored:,.0f} MB of tokens"
    yield Result(label, 250, [grown], unit="MB")
    model = make_ast(folder / "small", 2)
    given = [str(model), str(args.samples), "{class}_*.flac", str(folder / "b"), ["last_hidden_state"], 5, 8]
    grown, rows, stored = fresh(MEMORY, given)
    label = f"RssAnon beyond the encoder's own, while {rows:,} recordings become {stored:,.0f} MB of tokens"
    yield Result(label, 250, [grown], unit="MB")


WORKLOADS: dict[str, Callable[[Path, argparse.Namespace], Iterator[Result]]] = {
    "overhead": pipeline_overhead,
    "overlap": decoding_overlap,
    "nothing-missing": nothing_missing,
    "memory": memory,
}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=Path, default=Path("demo-audio/usr/share/sonic-pi/samples"))
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--recordings", type=int, default=165)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--memory-texts", type=int, default=10_000)
    parser.add_argument("--layers", type=int, default=4, help="of AST; 12 is its full size")
    add_options(parser, "encoding", repeat=5)
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="1,000 texts, 40 recordings")
    args = parser.parse_args()
    if args.quick:
        args.texts, args.recordings, args.memory_texts = 1000, 40, 1000
    return args


def main() -> None:
    args = parsed()
    args.data.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    with tempfile.TemporaryDirectory(dir=args.data, prefix="encoding-") as folder:
        for name in args.only:
            print(name, "…", file=sys.stderr, flush=True)
            results += WORKLOADS[name](Path(folder), args)
    report(results, args.results, args.data)


if __name__ == "__main__":
    main()
