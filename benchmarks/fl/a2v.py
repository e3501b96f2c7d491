"""How long A2V's servers take over the data sets of their nodes once the store is there, and what memory they take.

    python -m benchmarks.fl.a2v --quick        280 sequences: a minute
    python -m benchmarks.fl.a2v                2,800 sequences, 10.4 GB below --data, removed afterwards: some minutes

Sequences are AST's, (1214, 768) float32. A server makes ten nodes over a folder that is laid out as VEGAS is, each
with a tenth of every class, finds their embeddings, and reads every sample once, each time in a process of its own. It
is counted how often it makes an encoder or calls one, and what it imports. Needs Linux and torch.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import embstore
from benchmarks.report.measure import DATA, RESULTS, Result, Times, fresh, report
from embstore._engine.format.record import FieldSpec
from embstore.encoders.base import BaseEncoder
from embstore_fl.datasets import VEGAS

SEQUENCE = (1214, 768)
NODES = 10
CONFIG = {
    "encoder": {"id": "MIT/ast-finetuned-audioset-10-10-0.4593", "weights": "random"},
    "preprocessing": {"sample_rate": 16_000, "duration": 5.0, "version": 1},
}

# Makes the nodes and reads their samples; prints seconds of both, megabytes of RssAnon after each, and what it called.
SERVER = """
import json, sys, time
import torch
from embstore.encoders.pretrained import PretrainedEncoder
from embstore_fl.a2v import A2VServer, VEGASDataset
calls = []
PretrainedEncoder.encode = lambda *given: calls.append(given)
class Server(A2VServer):
    clients = ()
    def make_ast_encoder(self, duration):
        calls.append("made")
        return super().make_ast_encoder(duration)
def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) * 1024e-6
root, cache, nodes = json.load(sys.stdin)
torch.empty(1)
server, before, start = Server(), anonymous(), time.perf_counter()
datasets = []
for number in range(nodes):
    dataset = VEGASDataset(root_dir=root, ast_cache_dir=cache, num_nodes=nodes, node_split_id=number)
    assert server.load_node_embeddings(dataset, node=number).complete
    datasets.append(dataset)
made, grown, start = time.perf_counter() - start, anonymous() - before, time.perf_counter()
parts = [part for dataset in datasets for part in (dataset.train, dataset.val, dataset.test)]
rows = [sample["audio_emb"] for part in parts for sample in part]
read, held, start = time.perf_counter() - start, anonymous() - before, time.perf_counter()
total = sum(float(row[0, 0]) + float(row[-1, -1]) for row in rows)
loaded = [name for name in ("transformers", "zarr") if name in sys.modules]
print(json.dumps([made, grown, read, held, anonymous() - before, len(rows), len(calls), loaded]))
"""


class Stand(BaseEncoder):
    """Gives sequences of AST's shape without AST."""

    config = CONFIG

    @property
    def fields(self) -> dict[str, FieldSpec]:
        return {"last_hidden_state": FieldSpec(shape=SEQUENCE, layer="last_hidden_state")}

    def __init__(self) -> None:
        self._row = np.random.default_rng(0).standard_normal(SEQUENCE, np.float32)

    def encode(self, items: list[bytes]) -> dict[str, np.ndarray]:
        return {"last_hidden_state": np.broadcast_to(self._row, (len(items), *SEQUENCE))}


def lay_out(root: Path, count: int) -> VEGAS:
    """Make a folder like VEGAS of ``count`` recordings, each a tenth of a second."""
    root.mkdir()
    source = VEGAS(root)
    for place in range(count):
        path = root / source.classes[place % 10] / "audios" / f"video_{place // 10:05d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16_000)
            file.writeframes(place.to_bytes(2, "little") * 1600)
    time.sleep(2.1)  # files that were changed only just now would be read once more
    return source


def measured(folder: Path, args: argparse.Namespace) -> Iterator[Result]:
    source = lay_out(folder / "VEGAS", args.rows)
    print("writing the store …", file=sys.stderr, flush=True)
    result = embstore.embed(source, Stand(), folder / "cache", batch_size=16)
    given = [str(folder / "VEGAS"), str(folder / "cache"), NODES]
    made: Times = []
    most = dict.fromkeys(("made", "read", "touched"), 0.0)
    reading: Times = []
    calls, loaded = 0, set()
    for turn in range(args.repeat + 1):
        seconds, grown, read, held, touched, rows, called, modules = fresh(SERVER, given)
        if rows != args.rows:
            raise SystemExit(f"{rows} rows of {args.rows}: nothing else is worth measuring")
        if turn:  # the first one warms up
            made.append(seconds)
            reading.append(read)
        found = {"made": grown, "read": held, "touched": touched}
        most = {name: max(most[name], found[name]) for name in most}
        calls += called
        loaded |= set(modules)
    what = f"{NODES} nodes over {result.rows:,} sequence rows ({result.nbytes / 1e9:.1f} GB)"
    yield Result(f"A2V data sets of {what}, imports apart", 1.0, made, unit="s")
    yield Result("growth of RssAnon by that", 100, [most["made"]], unit="MB")
    yield Result("then every sample read once", 1.0, reading, unit="s")
    yield Result("growth of RssAnon by both", 100, [most["read"]], unit="MB")
    yield Result("growth of RssAnon when rows are looked at, too", 100, [most["touched"]], unit="MB")
    yield Result("AST made or called by a second run", 0, [float(calls)], unit="calls")
    yield Result("transformers loaded by it", 0, [float("transformers" in loaded)], unit="modules")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=2800)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--data", type=Path, default=DATA, help="where temporary files go")
    parser.add_argument("--results", type=Path, default=RESULTS / "fl_a2v.json")
    parser.add_argument("--quick", action="store_true", help="280 sequences")
    args = parser.parse_args()
    if args.quick:
        args.rows = 280
    args.data.mkdir(parents=True, exist_ok=True)
    needed = 1.2 * args.rows * 4 * SEQUENCE[0] * SEQUENCE[1]
    if shutil.disk_usage(args.data).free < needed:
        parser.error(f"{args.data} has less than the {needed / 1e9:.1f} GB free that this takes")
    with tempfile.TemporaryDirectory(dir=args.data, prefix="fl-a2v-") as folder:
        results = list(measured(Path(folder), args))
    report(results, args.results, args.data)


if __name__ == "__main__":
    main()
